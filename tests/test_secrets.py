"""The key and customer data do not appear in logs, errors or files."""

import traceback

import pytest
import requests

import connector
from mock_server import Fault, MockKustomer, make_records
from mock_server.behaviour import ROLES, Behaviour
from tests.project import Project
from tests.support import mock, sync

KEY = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI1In0.c2VjcmV0LXNpZ25hdHVyZQ"
RECORDS = make_records(customers=50, companies=10, brands=2, messages=60)


def personal_data() -> list:
    """Return the personal data in the mock's records."""
    found = []
    for record in RECORDS["customers"].values():
        attributes = record["attributes"]
        found += [attributes.get("name"), *(entry["email"] for entry in attributes["emails"])]
        found += [entry["phone"] for entry in attributes["phones"]]
    found += [record["attributes"].get("preview") for record in RECORDS["messages"].values()]
    return [text for text in found if text]


def key_is_in(text: str) -> bool:
    """Return whether a text has any twelve consecutive characters of the key."""
    key, text = KEY.lower(), text.lower()
    return any(key[place : place + 12] in text for place in range(len(key) - 11))


def everything_in(error: BaseException) -> str:
    """Return everything that an exception and its causes can show."""
    texts, seen = ["".join(traceback.format_exception(error))], []
    while error is not None and error not in seen:
        seen.append(error)
        texts += [repr(error), str(error), repr(error.args), repr(vars(error))]
        request = getattr(error, "request", None)
        texts.append(repr(getattr(request, "headers", "")))
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def failures_by_name() -> dict:
    """Return functions that change a server so that a sync fails, by name."""

    def refuse(status):
        def change(server):
            server.rewrite = lambda request, answer: answer._replace(
                status=status,
                payload={"errors": [{"title": f"Bad token {KEY}", "code": KEY, "detail": [KEY]}]},
            )

        return change

    def order(kind):
        return lambda server: server.order(Fault(kind, seconds=0.01))

    ways = {f"status {status}": refuse(status) for status in (302, 400, 401, 403, 404, 422)}
    ways.update(
        {kind: order(kind) for kind in ("429", "500", "502", "reset", "truncated", "html")}
    )
    ways["no data"] = lambda server: setattr(
        server, "rewrite", lambda request, answer: answer._replace(payload={"data": KEY})
    )
    return ways


def message_with(title: str, destination, key: str) -> str:
    """Return the error of a sync whose key is refused with this title."""
    with MockKustomer({}, api_key=key) as server:
        server.rewrite = lambda request, answer: answer._replace(
            status=401, payload={"errors": [{"title": title}]}
        )
        with pytest.raises(connector.SyncStoppedError) as raised:
            sync(server, destination)
    return str(raised.value)


@pytest.mark.parametrize(
    "repeated",
    [KEY, f"x{KEY}y", KEY[:-1], KEY[:20], KEY.replace(".", "%2E")],
    ids=["whole", "within a word", "all but one character", "cut off", "encoded"],
)
# At 290 characters, the key lies across the end of the shortened message.
@pytest.mark.parametrize("characters_before", [10, 290])
def test_a_key_that_kustomer_repeats_is_replaced_before_its_message_is_shortened(
    repeated, characters_before, destination
):
    title = f"{'-' * characters_before} {repeated} was rejected"
    message = message_with(title, destination, KEY)
    assert "--- " in message and not key_is_in(message) and "eyJ" not in message
    assert ("was rejected" in message) is (characters_before == 10)


def test_a_key_that_looks_like_any_word_is_replaced_as_well(destination):
    message = message_with(f"{'-' * 290} sesame-open-now", destination, "sesame-open-now")
    assert "--- " in message and "sesame" not in message


@pytest.mark.parametrize("way", failures_by_name())
def test_no_exception_log_line_or_warning_shows_the_key_or_customer_data(way, destination, capsys):
    with MockKustomer(RECORDS, api_key=KEY) as server:
        failures_by_name()[way](server)
        with pytest.raises(Exception) as error:
            sync(server, destination, enable_debug_logging="true", retry_attempts="1")
    shown = everything_in(error.value) + capsys.readouterr().out + "".join(destination.warnings)
    assert not key_is_in(shown)
    assert not [text for text in personal_data() if text in shown]


def test_the_log_of_a_successful_sync_shows_neither_the_key_nor_customer_data(destination, capsys):
    with MockKustomer(RECORDS, api_key=KEY) as server:
        sync(server, destination, enable_debug_logging="true")
    shown = capsys.readouterr().out + "".join(destination.warnings)
    assert not key_is_in(shown)
    assert not [text for text in personal_data() if text in shown]


def test_a_netrc_file_does_not_replace_the_key(tmp_path, monkeypatch, destination):
    netrc = tmp_path / "netrc"
    netrc.write_text(
        "machine 127.0.0.1 login user password other\n"
        "machine api.kustomerapp.com login user password other\n"
    )
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert requests.utils.get_netrc_auth("https://api.kustomerapp.com/v1") == ("user", "other")
    with connector.open_client(connector.validate_configuration({"api_key": KEY})) as client:
        request = requests.Request("GET", "https://api.kustomerapp.com/v1/users/current")
        prepared = client.session.prepare_request(request)
    assert prepared.headers["Authorization"] == f"Bearer {KEY}"
    with MockKustomer(RECORDS, api_key=KEY) as server:
        sync(server, destination)
        assert {request.headers["Authorization"] for request in server.requests} == {
            f"Bearer {KEY}"
        }


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status, destination):
    with mock({}) as elsewhere, mock({}) as server:
        server.rewrite = lambda request, answer: answer._replace(
            status=status, headers={"Location": elsewhere.url + request.path}
        )
        with pytest.raises(connector.KustomerError, match=f"{status}.*redirect.*base_url"):
            sync(server, destination, retry_attempts="1")
        assert not elsewhere.requests and len(server.requests) == 2


def test_a_next_link_to_another_host_is_not_followed(destination):
    records = make_records(customers=150, companies=150, messages=150)
    with mock({}) as elsewhere, mock(records) as server:

        def lead_away(request, answer):
            if answer.payload.get("links", {}).get("next"):
                answer.payload["links"]["next"] = elsewhere.url + "/v1/messages?page=2"
            return answer

        server.rewrite = lead_away
        sync(server, destination, max_records_per_page="50")
        assert not elsewhere.requests


def test_requests_to_this_machine_do_not_use_a_proxy_from_the_environment(
    destination, monkeypatch
):
    with mock({}) as proxy, mock(RECORDS) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        sync(server, destination)
        assert not proxy.requests


@pytest.mark.parametrize("way", ["wrong key", "missing role", "server error", "bad setting"])
def test_files_of_a_failed_fivetran_debug_contain_neither_the_key_nor_customer_data(way, tmp_path):
    without = {"org.permission.message.read"} if way == "missing role" else set()
    settings = {"retry_attempts": "eleven"} if way == "bad setting" else {"retry_attempts": "0"}
    with MockKustomer(RECORDS, Behaviour(roles=ROLES - without), api_key=KEY) as server:
        project = Project(tmp_path, server, enable_debug_logging="true", **settings)
        if way == "wrong key":
            server.rewrite = lambda request, answer: answer._replace(
                status=401, payload={"errors": [{"title": f"No token {KEY}"}]}
            )
        if way == "server error":
            server.order(Fault("500", path="/v1/messages"))
            server.order(Fault("500", after=2))
        output = project.debug(succeeds=False)
    assert "Error" in output
    warehouse = project.folder / "files"
    written = {"output": output}
    for place in (project.folder, project.home):
        for file in place.rglob("*"):
            if file.is_file():
                written[file] = file.read_bytes().decode(errors="replace")
    assert any("crash" in str(file) for file in written)
    assert not [file for file, content in written.items() if key_is_in(content)]
    for file, content in written.items():
        # Only the warehouse may contain customer data.
        if file == "output" or warehouse not in file.parents:
            assert not [text for text in personal_data() if text in content], file

"""The inspection: what it asks and shows, and that it shows no key, id or value."""

import copy
import json

import pytest

import connector
from mock_server import Behaviour, Fault, MockKustomer, make_records
from mock_server.behaviour import READ_ROLES, ROLES, SEARCH_ROLE
from tests.support import bare_records, even_times, mock
from tools import inspect
from tools.questions import QUESTIONS
from tools.samples import MAX_REQUESTS

RECORDS = make_records(
    customers=60,
    companies=8,
    brands=6,
    messages=60,
    notes=8,
    users=8,
    teams=6,
    tags=8,
    kobjects=8,
    klasses=3,
    shortcuts=6,
    audit_logs=30,
)
RECORDS["customers"][next(iter(RECORDS["customers"]))]["attributes"]["deleted"] = True
MARK = "SECRET"
# The tables with enough records on their list to see its order.
ORDERED = (
    *("customers", "companies", "brands", "messages", "conversations", "notes"),
    *("users", "teams", "tags", "shortcuts"),
)
SORTED = {"descending": True, "ascending": True}
COUNTS = {"x-ratelimit-limit": "count", "x-ratelimit-remaining": "count"}


@pytest.fixture(autouse=True)
def log_off(monkeypatch):
    """Outside of a sync, the connector does not log."""
    monkeypatch.setattr(connector.log, "LOG_LEVEL", None)


@pytest.fixture
def ask(tmp_path, capsys):
    """Return a function that inspects a mock, and returns the exit code and the JSON."""

    def run(server, **settings):
        file = tmp_path / "configuration.json"
        file.write_text(json.dumps(server.configuration(**settings)))
        code = inspect.main([str(tmp_path), "--json"])
        assert len(server.requests) <= MAX_REQUESTS
        return code, json.loads(capsys.readouterr().out)

    return run


def answers_of(result: dict) -> dict:
    return {name: answer["answer"] for name, answer in result["answers"].items()}


def world(**behaviour):
    return mock(copy.deepcopy(RECORDS), **behaviour)


def test_with_the_defaults_every_answer_is_what_kustomer_documents_or_others_observed(ask):
    with world() as server:
        code, result = ask(server)
    found = answers_of(result)
    deletes = found.pop("audit_logs.deletes")
    assert deletes.keys() == {"conversation", "customer", "message", "company"}
    assert {one["deletes"] for one in deletes.values()} == {0}
    assert sum(one["entries"] for one in deletes.values()) == 30
    assert found.pop("lists.order")["messages"] == "id"
    assert "displayColor" in found.pop("attributes.unmapped")["customers"]
    # Kustomer locks conversations only.
    assert "locked" in found.pop("attributes.never_seen")["customers"]
    assert found == {
        "lists.page_size_honoured": True,
        "lists.show_deleted": False,
        "lists.past_the_end": "empty",
        "lists.end": None,
        "search.counts": {"total": True, "equal": True, "largest": 60},
        "search.sorts.customer": SORTED,
        "search.sorts.message": SORTED,
        "search.sorts.conversation": SORTED,
        "search.sorts.note": SORTED,
        "search.sorts.kobject": SORTED,
        "search.page_maximum": 500,
        "search.page_101": "status 400",
        "search.knows_companies": "status 400",
        "search.shows_deleted": True,
        "search.repeatable": True,
        "search.lag_seconds": 0,
        "search.median_seconds": None,
        "headers.rate_limit": {"list": COUNTS, "search": COUNTS},
        "roles.missing": {},
        "audit_logs.readable": True,
        "audit_logs.order": "newest first",
    }
    assert code == 0
    assert [name for name, a in result["answers"].items() if a["holds"]] == [
        "lists.page_size_honoured",
        "search.counts",
        "search.shows_deleted",
        "search.lag_seconds",
        "headers.rate_limit",
        "roles.missing",
    ]
    assert {request.method for request in server.requests} == {"GET", "POST"}
    assert {r.path for r in server.requests if r.method == "POST"} == {"/v1/customers/search"}


def reset(kind: str) -> dict:
    """Return the switches that let every answer report the end of the window."""
    return {"rate_limit_reset": kind, "reset_on_every_answer": True}


def headers(**others: str) -> dict:
    named = {name.replace("_", "-"): kind for name, kind in others.items()}
    return {"list": {**COUNTS, **named}, "search": {**COUNTS, **named}}


def counts(total: bool, equal, largest) -> dict:
    return {"total": total, "equal": equal, "largest": largest}


# Switches of the mock, the answers that they change, and whether what the connector relies on holds.
SWITCHES = [
    (
        {"page_size_limit": 30},
        {"lists.page_size_honoured": (False, False), "search.page_maximum": (30, None)},
    ),
    (
        {"allowed_page_sizes": {100, 500}},
        {"lists.page_size_honoured": (False, False), "search.page_maximum": ("status 400", None)},
    ),
    ({"list_order": "updated"}, {"lists.order": (dict.fromkeys(ORDERED, "updatedAt"), None)}),
    ({"lists_show_deleted": True}, {"lists.show_deleted": (True, None)}),
    (
        {"list_links_on": "empty"},
        {"lists.past_the_end": ("empty, with a link to a next page", None)},
    ),
    ({"list_links_on": "repeat"}, {"lists.past_the_end": ("records", None)}),
    ({"shows_total": False}, {"search.counts": (counts(False, None, None), False)}),
    ({"search_window": 40}, {"search.counts": (counts(True, False, 40), False)}),
    (
        {"hidden": {next(iter(RECORDS["customers"]))}},
        {"search.counts": (counts(True, False, 60), False)},
    ),
    (
        {"search_is_empty": True},
        {"search.counts": (counts(True, False, 0), False), "search.shows_deleted": (None, None)},
    ),
    (
        {"search_is_empty": True, "lists_show_deleted": True},
        {"search.shows_deleted": (False, False)},
    ),
    (
        {"sort_contexts": {"customer"}},
        {
            "search.sorts.customer": (SORTED, None),
            "search.sorts.message": ({"descending": False, "ascending": False}, None),
        },
    ),
    (
        {"sort_contexts": {"customer"}, "other_sorts": "refuse", "company_search": "knows"},
        {
            "search.sorts.message": ("status 400", None),
            # Like the connector, it asks again without sorting.
            "search.knows_companies": (True, None),
        },
    ),
    ({"company_search": "finds_nothing"}, {"search.knows_companies": ("empty", None)}),
    (reset("epoch"), {"headers.rate_limit": (headers(x_ratelimit_reset="epoch seconds"), True)}),
    (
        reset("epoch_ms"),
        {"headers.rate_limit": (headers(x_ratelimit_reset="epoch milliseconds"), True)},
    ),
    (reset("seconds"), {"headers.rate_limit": (headers(x_ratelimit_reset="seconds"), True)}),
    (reset("retry_after"), {"headers.rate_limit": (headers(retry_after="seconds"), True)}),
    ({"audit_log_order": "oldest"}, {"audit_logs.order": ("oldest first", None)}),
]


@pytest.mark.parametrize("behaviour, expected", SWITCHES, ids=lambda value: " ".join(value))
def test_a_switch_of_the_mock_changes_its_answer(ask, behaviour, expected):
    with world(**behaviour) as server:
        code, result = ask(server)
    for name, answer in expected.items():
        found = result["answers"][name]
        assert (found["answer"], found["holds"]) == answer
    assert code == any(one["holds"] is False for one in result["answers"].values())


@pytest.mark.parametrize(
    "behaviour, goes_on, past_the_end",
    [
        ({}, True, "empty"),
        ({"list_window": 10_000}, False, "empty"),
        ({"list_window": 10_000, "list_window_status": 400}, False, "status 400"),
    ],
)
def test_a_list_of_more_than_10_000_customers_shows_whether_lists_end_there(
    ask, behaviour, goes_on, past_the_end
):
    with mock(bare_records("customers", even_times(10_050)), **behaviour) as server:
        code, result = ask(server)
    found = answers_of(result)
    assert (found["lists.end"], found["lists.past_the_end"]) == (goes_on, past_the_end)
    # Whether as many come is found out in a part of time that has at most three pages.
    assert found["search.counts"]["equal"] and found["search.counts"]["largest"] > 10_000
    took = found["search.median_seconds"]
    assert 0 <= took["seconds"] < 10 and took["minutes_for_a_million"] >= 20
    assert code == 0


def test_servers_of_search_with_orders_of_their_own_are_noticed(ask):
    moments = [even_times(1)[0]] * 20
    with mock(bare_records("messages", moments), replicas=2) as server:
        _, result = ask(server)
    assert answers_of(result)["search.repeatable"] is False


def test_search_is_as_late_as_the_oldest_message_that_it_does_not_show(ask, clock):
    with world(index_lag_seconds=7_200) as server:
        newest = max(server.store.records("messages"))
        server.store.change("messages", newest, direction="out")
        clock.move(3_600)
        code, result = ask(server)
    answer = result["answers"]["search.lag_seconds"]
    assert answer["answer"] == pytest.approx(3_600, abs=5)
    assert (answer["holds"], code) == (False, 1)


def test_a_list_that_cannot_be_reversed_does_not_show_whether_search_is_late(ask):
    with mock(RECORDS) as server:
        server.before_answer = lambda request: request.params.pop("sort", None)
        _, result = ask(server)
    assert answers_of(result)["search.lag_seconds"] is None


def test_a_deletion_in_the_audit_log_is_counted(ask):
    with world() as server:
        for message in list(server.store.records("messages"))[:2]:
            server.store.erase("messages", message)
        _, result = ask(server)
    assert answers_of(result)["audit_logs.deletes"]["message"]["deletes"] == 2


def test_an_attribute_that_no_column_reads_appears_by_its_name(ask):
    with world() as server:
        for customer in server.store.records("customers"):
            server.store.change("customers", customer, favouriteColour="mauve", locked=False)
        _, result = ask(server)
    found = answers_of(result)
    assert "favouriteColour" in found["attributes.unmapped"]["customers"]
    assert "locked" not in found["attributes.never_seen"].get("customers", [])


def marked(value, number: list):
    """Return a value in which every text, number and name inside of an object is marked."""
    if isinstance(value, dict):
        return {f"{MARK}{name}": marked(inner, number) for name, inner in value.items()}
    if isinstance(value, list):
        return [marked(inner, number) for inner in value]
    if isinstance(value, bool) or value is None:
        return value
    number[0] += 1
    return f"{MARK}-{number[0]}" if isinstance(value, str) else 77_665_544_000 + number[0]


def marked_record(record: dict, number: list) -> dict:
    times = ("createdAt", "updatedAt")
    attributes = {
        name: value if name in times or name == "deleted" else marked(value, number)
        for name, value in record["attributes"].items()
    }
    related = {
        name: {"data": {"type": MARK, "id": marked("id", number)}}
        for name in record["relationships"]
    }
    record_id = marked("id", number)
    return {"id": record_id, "type": MARK, "attributes": attributes, "relationships": related}


def refuse_with_a_mark(request, answer):
    """Let the errors of Kustomer repeat values and the key."""
    if answer.status == 200:
        return answer
    key = request.headers["Authorization"]
    errors = [{"code": MARK, "title": f"{key} {MARK}", "detail": [MARK]}]
    return answer._replace(payload={"errors": errors})


@pytest.mark.parametrize("roles", [ROLES, frozenset()], ids=["every role", "no role"])
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "JSON"])
def test_the_output_has_no_value_no_id_and_no_key(tmp_path, capsys, roles, options):
    number = [0]
    records = {}
    for table, originals in RECORDS.items():
        made = [marked_record(record, number) for record in originals.values()]
        records[table] = {record["id"]: record for record in made}
    with MockKustomer(records, Behaviour(roles=roles), api_key=f"{MARK}-key") as server:
        server.rewrite = refuse_with_a_mark
        (tmp_path / "configuration.json").write_text(json.dumps(server.configuration()))
        inspect.main([str(tmp_path), *options])
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert "displayColor" in shown or not roles
    assert MARK not in shown and "77665544" not in shown
    times = {record["attributes"]["updatedAt"] for record in RECORDS["messages"].values()}
    assert not any(time in shown for time in times)


def test_a_line_a_question_says_what_the_connector_relies_on(tmp_path, capsys):
    with world(page_size_limit=30) as server:
        (tmp_path / "configuration.json").write_text(json.dumps(server.configuration()))
        assert inspect.main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "NO  Does a list return pages of 37 records if asked? no (the connector relies on: yes)"
    )
    starts = [line for line in lines[: lines.index("")] if not line.startswith("      ")]
    assert [line[4:15] for line in starts] == [one.words[:11] for one in QUESTIONS]
    assert {line[:4] for line in starts} == {"NO  ", "ok  ", "    "}


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_without_any_role_is_told_which_ones_it_lacks(ask, status):
    with world(roles=frozenset(), missing_role_status=status) as server:
        code, result = ask(server)
    found = result["answers"]
    missing = found["roles.missing"]["answer"]
    assert missing.keys() == {*(table.name for table in connector.TABLES), "search"}
    assert missing["kobjects"] == connector.KLASSES.role
    assert SEARCH_ROLE in missing["search"]
    assert found["audit_logs.readable"]["answer"] is False
    assert found["lists.order"]["could_not_ask"] == f"refused with status {status}"
    assert found["search.counts"]["could_not_ask"] == f"refused with status {status}"
    assert code == 1


def test_a_key_without_the_role_for_search_can_ask_about_lists(ask):
    with world(roles=ROLES - {SEARCH_ROLE}) as server:
        code, result = ask(server)
    found = result["answers"]
    assert found["roles.missing"]["answer"].keys() == {"search"}
    assert found["lists.page_size_honoured"]["holds"] is True
    unasked = {name for name, answer in found.items() if "could_not_ask" in answer}
    # How long searches take is known from those that brought enough records, and here none did.
    searches = {name for name in found if name.startswith("search.")} - {"search.median_seconds"}
    assert unasked == searches
    assert code == 1


@pytest.mark.parametrize("needed", [True, False])
def test_search_may_need_the_role_of_an_object_too(ask, needed):
    roles = ROLES - {READ_ROLES["notes"]}
    with world(roles=roles, search_needs_object_role=needed) as server:
        code, result = ask(server)
    assert ("could_not_ask" in result["answers"]["search.sorts.note"]) is needed
    assert answers_of(result)["roles.missing"].keys() == {"notes"}
    # Notes are read on request only.
    assert code == 0


def test_a_role_for_a_selected_table_is_needed(ask):
    with world(roles=ROLES - {READ_ROLES["notes"]}) as server:
        code, result = ask(server, additional_tables="notes")
    assert (result["answers"]["roles.missing"]["holds"], code) == (False, 1)


def test_a_rate_limit_of_thirty_requests_a_minute_takes_longer(ask, waits):
    with world(org_limit=30) as server:
        code, result = ask(server)
    assert code == 0 and not any("could_not_ask" in a for a in result["answers"].values())
    assert 0 < sum(waits) < 300


def test_a_rate_limit_that_others_use_up_ends_the_questions(ask, waits):
    with world() as server:
        server.order(Fault("429", after=10))
        code, result = ask(server)
    assert "429" in result["answers"]["search.counts"]["could_not_ask"]
    assert code == 1 and sum(waits) < 120


def test_one_failure_in_twenty_is_retried_within_the_number_of_requests(ask):
    tables = ("customers", "companies", "brands", "messages", "notes", "tags", "shortcuts")
    records = {}
    for table in tables:
        records.update(bare_records(table, even_times(600)))
    with mock(records) as server:
        server.order(Fault("503", rate=0.05))
        code, result = ask(server)
    assert any(exchange.outcome == "503" for exchange in server.exchanges)
    assert code == 0 and not any("could_not_ask" in a for a in result["answers"].values())
    assert result["requests"] == len(server.requests)


def test_what_fails_again_and_again_could_not_be_asked(ask):
    with world() as server:
        server.order(Fault("503", path="/search"))
        code, result = ask(server)
    found = result["answers"]
    assert "503" in found["search.counts"]["could_not_ask"]
    assert "127.0.0.1" not in json.dumps(result)
    assert found["lists.page_size_honoured"]["answer"] is True
    assert code == 1


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_dead_key_ends_with_one_line(tmp_path, capsys, options):
    with world() as server:
        settings = {**server.configuration(), "api_key": "another"}
        (tmp_path / "configuration.json").write_text(json.dumps(settings))
        assert inspect.main([str(tmp_path), *options]) == 1
        assert len(server.requests) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith(f"api_key: {server.url} refused the key")


@pytest.mark.parametrize(
    "content, problem",
    [
        (None, "There is no file"),
        ("{", "cannot be read as JSON"),
        ("[]", "has to be a JSON object"),
        ("{}", "api_key: is required"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_named_before_any_request(
    tmp_path, capsys, content, problem
):
    if content:
        (tmp_path / "configuration.json").write_text(content)
    assert inspect.main([str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert problem in captured.err and captured.out == ""


def test_an_encrypted_key_is_named_as_the_reason_why_nothing_can_be_asked(tmp_path, capsys):
    configuration = {"api_key": "fivetran_encrypted:abcdef"}
    (tmp_path / "configuration.json").write_text(json.dumps(configuration))
    assert inspect.main([str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "api_key is encrypted" in shown.err and "abcdef" not in shown.out + shown.err

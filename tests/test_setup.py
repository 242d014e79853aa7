"""The setup form and its tests."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import connector
from mock_server import Fault, make_records
from mock_server.behaviour import ROLES, SEARCH_ROLE
from tools.fivetran import run_fivetran
from tests.project import PROJECT
from tests.support import TABLES, mock, sync

RECORDS = make_records(customers=3, companies=2, brands=1, messages=3)
FUNCTIONS = ["test_configuration", "test_api_key", "test_roles", "test_search"]
FORM_TESTS = [
    "The configuration is valid",
    "Kustomer accepts the API key in this region",
    "The API key can read every table",
    "The API key can search (optional)",
]


@pytest.fixture
def fields(monkeypatch) -> dict:
    """Return the arguments of each field of the form, by the name of the field."""
    made = {}

    class Fields:
        class TextField:
            password, plain_text = "password", "text"

            def __new__(cls, name, label, kind, **arguments):
                made[name] = {"kind": kind, "label": label, **arguments}

        @staticmethod
        def ToggleField(name, label, **arguments):
            made[name] = {"kind": "toggle", "label": label, **arguments}

    class Form:
        def add_field(self, field):
            """Does nothing, because the fields record themselves."""

        def add_test(self, label, func):
            """Does nothing, because these tests do not use it."""

    monkeypatch.setattr(connector, "form_field", Fields)
    monkeypatch.setattr(connector, "ConfigurationForm", Form)
    connector.configuration_form()
    return made


def test_the_form_has_a_field_for_every_setting_and_requires_the_key_only(fields):
    assert fields.keys() == {setting.name for setting in connector.SETTINGS}
    assert [name for name, field in fields.items() if field["required"]] == ["api_key"]
    assert [name for name, field in fields.items() if field["kind"] == "password"] == ["api_key"]
    toggles = {name for name, field in fields.items() if field["kind"] == "toggle"}
    assert toggles == {"enable_incremental_sync", "enable_debug_logging"}


def test_the_description_of_each_field_has_its_default_and_range(fields):
    for setting in connector.SETTINGS:
        field = fields[setting.name]
        assert field["label"] and field["description"].endswith(".")
        if setting.limits:
            shown = "Leave empty" if setting.default is None else f"Default: {setting.default}."
            assert shown in field["description"]
            assert "{} to {}.".format(*setting.limits) in field["description"]
        if field["kind"] != "toggle":
            assert field["placeholder"]
    for region in (
        "api.kustomerapp.com",
        "api.prod2.kustomerapp.com",
        "api.prod4.kustomerapp.com",
    ):
        assert region in fields["base_url"]["description"]


def test_update_accepts_the_values_of_the_form_unchanged(tmp_path, destination):
    shutil.copy(PROJECT / "connector.py", tmp_path)
    with mock(RECORDS) as server:
        answers = {"api_key": server.api_key, "base_url": server.url}
        # The command asks for the settings in this order. An empty line leaves a field empty.
        lines = [answers.get(setting.name, "") for setting in connector.SETTINGS]
        subprocess.run(
            [os.path.join(os.path.dirname(sys.executable), "fivetran"), "configuration"]
            + [str(tmp_path), "--disable-encryption"],
            input="\n".join(lines) + "\n",
            text=True,
            capture_output=True,
            env={**os.environ, "DO_NOT_TRACK": "1", "HOME": str(tmp_path)},
            check=True,
        )
        produced = json.loads((tmp_path / "configuration.json").read_text())
        assert produced.keys() == {setting.name for setting in connector.SETTINGS}
        connector.update(produced, {})
    assert len(destination.rows["messages"]) == 3


def run_form_tests(folder, server, **settings) -> tuple:
    """Run `fivetran configuration --test`, and return its exit code and output."""
    shutil.copy(PROJECT / "connector.py", folder)
    (folder / "configuration.json").write_text(json.dumps(server.configuration(**settings)))
    run = run_fivetran(
        "configuration", str(folder), "--test", environment={"HOME": str(folder / "home")}
    )
    return run.returncode, run.stdout


def test_a_good_key_passes_every_setup_test(tmp_path):
    with mock(RECORDS) as server:
        code, output = run_form_tests(tmp_path, server)
        assert code == 0
        assert [label for label in FORM_TESTS if f"- {label}]: PASSED" in output] == FORM_TESTS
        lists = [r for r in server.requests if r.method == "GET" and r.params]
        assert sorted(r.path for r in lists) == sorted(f"/v1/{table}" for table in TABLES)


@pytest.mark.parametrize(
    ("label", "says", "settings", "without"),
    [
        (
            FORM_TESTS[0],
            "initial_sync_days: '0' must be a whole number from 1 to 365",
            {"initial_sync_days": "0"},
            "",
        ),
        (FORM_TESTS[0], "api_key: is required", {"api_key": "<YOUR_KUSTOMER_API_KEY>"}, ""),
        (FORM_TESTS[1], "invalid, expired or from another region", {"api_key": "other"}, ""),
        (FORM_TESTS[2], "companies: GET /v1/companies was refused with 403", {}, "company"),
        (FORM_TESTS[2], "The API key lacks the role org.permission.message.read", {}, "message"),
    ],
)
def test_an_invalid_configuration_fails_the_matching_setup_test_with_a_helpful_message(
    label, says, settings, without
):
    with mock(RECORDS, roles=ROLES - {f"org.permission.{without}.read"}) as server:
        test = getattr(connector, FUNCTIONS[FORM_TESTS.index(label)])
        failure = failure_of(test(server.configuration(**settings)))
        assert says in failure and server.api_key not in failure


def test_a_failed_setup_test_is_named_and_fails_the_command(tmp_path):
    with mock(RECORDS) as server:
        code, output = run_form_tests(tmp_path, server, api_key="other")
        assert code == 1
        (line,) = [line for line in output.splitlines() if f"- {FORM_TESTS[1]}]" in line]
        assert "invalid, expired or from another region" in line


def test_a_key_without_the_search_role_passes_with_a_warning_that_names_the_role(tmp_path):
    with mock(RECORDS, roles=ROLES - {SEARCH_ROLE}) as server:
        code, output = run_form_tests(tmp_path, server)
    assert code == 0
    (warning,) = [line for line in output.splitlines() if "search was refused" in line]
    assert "lacks the role org.permission.search.create" in warning
    assert "Without search, every sync reads whole lists" in warning


def test_one_error_names_every_missing_role(tmp_path):
    bare = frozenset({SEARCH_ROLE})
    with mock(RECORDS, roles=bare) as server:
        _, output = run_form_tests(tmp_path, server, additional_tables="all")
    for table in connector.TABLES:
        assert table.role in output


def test_syncs_and_setup_tests_send_the_same_user_agent(destination):
    with mock(RECORDS) as server:
        connector.test_roles(server.configuration())
        connector.test_search(server.configuration())
        agents = {request.headers["User-Agent"] for request in server.requests}
        sync(server, destination)
        assert agents == {request.headers["User-Agent"] for request in server.requests}


def failure_of(result) -> str:
    return getattr(result, "failure", "") or ""


@pytest.mark.parametrize("name", ["test_api_key", "test_roles", "test_search"])
def test_a_setup_test_waits_only_about_a_minute_for_the_rate_limit(name, waits):
    with mock(RECORDS) as server:
        server.order(Fault("429", headers={"Retry-After": "60"}))
        result = getattr(connector, name)(server.configuration(additional_tables="all"))
    assert "returned 429 (rate limit) for 1 minute. " in failure_of(result)
    assert "resume" not in failure_of(result)
    assert 60 <= sum(waits) <= 70


@pytest.mark.parametrize("name", ["test_api_key", "test_roles", "test_search"])
def test_an_invalid_key_is_reported_once_by_each_setup_test(name):
    with mock(RECORDS) as server:
        result = getattr(connector, name)(server.configuration(api_key="other"))
    assert failure_of(result).count("refused the key with 401") == 1


@pytest.mark.parametrize("name", ["test_api_key", "test_roles", "test_search"])
def test_a_page_of_a_proxy_fails_a_setup_test_and_names_the_proxy_as_a_possible_cause(name):
    with mock(RECORDS) as server:
        server.order(Fault("html", status=404))
        result = getattr(connector, name)(server.configuration())
    assert "failed 4 times. The last error was: status 404" in failure_of(result)
    assert "Check base_url, and whether a proxy answers" in failure_of(result)


def test_an_outage_of_search_fails_its_setup_test_instead_of_passing_for_a_missing_role():
    with mock(RECORDS) as server:
        server.order(Fault("503", path="/search"))
        result = connector.test_search(server.configuration())
    assert "POST /v1/customers/search failed 4 times" in failure_of(result)


def test_the_setup_test_of_the_configuration_warns_about_unknown_settings(capsys):
    with mock(RECORDS) as server:
        result = connector.test_configuration(server.configuration(initial_sync_day="30"))
    assert not failure_of(result)
    assert "Unknown setting 'initial_sync_day'. Did you mean 'initial_sync_days'?" in (
        capsys.readouterr().out
    )

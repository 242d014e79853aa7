"""What the README says is true."""

import ast
import json
import re
import sys
from datetime import datetime, timedelta, timezone

import duckdb
import pytest

import connector
from mock_server import Fault, make_records
from mock_server.behaviour import ROLES, SEARCH_ROLE
from tests.project import PROJECT, Project
from tests.support import COLUMNS, Destination, mock, sync

README = (PROJECT / "README.md").read_text()
SEED_HEADINGS = [
    "Connector overview",
    "Requirements",
    "Getting started",
    "Features",
    "Configuration file",
    "Requirements file",
    "Authentication",
    "Pagination",
    "Data handling",
    "Error handling",
    "Tables created",
    "Additional files",
    "Additional considerations",
]
INSTALLED_ON_FIVETRAN = {"fivetran_connector_sdk", "requests"}


def table_after(heading: str, columns: int) -> list:
    """Return the cells of the rows with so many columns in a section."""
    section = README.split(f"\n{heading}\n", 1)[1]
    section = re.split(r"\n#+ ", section)[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [row for row in rows if len(row) == columns and not row[0].startswith("--")][1:]


def test_the_headings_are_the_seeds_in_its_order():
    assert re.findall(r"^## (.*)$", README, re.M) == SEED_HEADINGS


def test_the_two_commands_stand_at_the_top():
    top = README.split("\n## ")[1]
    assert "make demo" in top and "make test" in top
    assert "make test" in (PROJECT / ".ci" / "run").read_text()


def test_every_column_is_listed_with_its_type():
    listed = {}
    for table, column, kind, _source in table_after("## Tables created", 4):
        listed.setdefault(table, {})[column.strip("`")] = kind
    assert listed == COLUMNS
    assert [(name, list(columns)) for name, columns in listed.items()] == [
        (name, list(columns)) for name, columns in COLUMNS.items()
    ]


def test_every_setting_is_listed_with_its_default_and_range():
    listed = {
        row[0].strip("`"): row[1:3] for row in table_after("### Configuration parameters", 4)
    }
    assert listed.keys() == {setting.name for setting in connector.SETTINGS}
    for setting in connector.SETTINGS:
        default, extent = listed[setting.name]
        shown = {None: "not set", True: "true", False: "false"}.get(setting.default)
        if setting.name == "api_key":
            shown = "required"
        assert default == (shown if setting.default is None or shown else str(setting.default))
        if setting.limits:
            assert extent == "{}-{}".format(*setting.limits)


def test_the_template_in_the_text_is_the_file():
    (template,) = re.findall(r"```json\n(.*?)```", README, re.S)
    assert json.loads(template) == json.loads((PROJECT / "configuration.json").read_text())


def test_the_roles_are_those_that_errors_name():
    roles = {
        row[1].strip("`"): row[2].strip("` |")
        for row in re.findall(r"^   \| (.*) \| (.*) \| (.*) \|$", README, re.M)[1:]
    }
    named = [table.role for table in connector.TABLES]
    assert {f"{role} (legacy {legacy})" for role, legacy in roles.items()} >= set(named)
    assert roles[SEARCH_ROLE] == "org.user.search.read"


def failures() -> list:
    """Make each failure that the table of messages speaks of, and return what was said."""
    return [
        *(configuration_failure(**wrong) for wrong in WRONG_SETTINGS),
        sync_failure(key="other"),
        sync_failure(roles=ROLES - {"org.permission.brand.read"}),
        sync_failure(roles=ROLES - {SEARCH_ROLE}),
        sync_failure(fault="429"),
        sync_failure(fault="503"),
        sync_failure(endless=True),
        sync_failure(state={"cursor": "1"}),
    ]


WRONG_SETTINGS = [
    {"api_key": ""},
    {"api_key": "Bearer k"},
    {"retry_attempts": "11"},
    {"enable_debug_logging": "maybe"},
    {"base_url": "https://example.com"},
]


def configuration_failure(**wrong) -> str:
    with pytest.raises(ValueError) as error:
        connector.validate_configuration({"api_key": "key", **wrong})
    return str(error.value)


def sync_failure(roles=ROLES, fault="", key="", endless=False, state=None) -> str:
    destination = Destination()
    destination.state = state or {}
    records = make_records(companies=150, customers=3)
    with mock(records, roles=roles) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(connector, "op", destination)
        if fault:
            server.order(Fault(fault))
        if endless:
            server.rewrite = (
                lambda request, answer: (
                    answer.payload["links"].update(next="/v1/companies")
                    if request.path == "/v1/companies"
                    else None
                )
                or answer
            )
        try:
            sync(server, destination, **({"api_key": key} if key else {}))
        except Exception as error:
            return str(error)
    return " ".join(destination.warnings)


def test_every_message_of_the_error_table_is_what_the_code_says():
    patterns = [
        ".*".join(map(re.escape, row[0].strip("`").split("…")))
        for row in table_after("## Error handling", 2)
    ]
    said = failures()
    assert len(patterns) == len(said)
    for pattern, message in zip(patterns, said):
        assert re.search(pattern, message, re.S), (pattern, message)


def test_the_sql_examples_answer_their_questions(tmp_path):
    now = datetime.now(timezone.utc)
    records = make_records(customers=30, messages=300, same_moment=0)
    silent = next(iter(records["customers"]))
    for record in records["messages"].values():
        record["relationships"]["customer"]["data"]["id"] = list(records["customers"])[1]
        record["attributes"]["createdAt"] = (now - timedelta(days=1)).isoformat()
    with mock(records) as server:
        project = Project(tmp_path, server)
        project.debug()
    days, quiet, responses = re.findall(r"```sql\n(.*?)```", README, re.S)
    with duckdb.connect(str(project.warehouse), read_only=True) as database:
        by_day = database.execute(
            f"select sum(messages), count(distinct day) from ({days.rstrip().rstrip(';')})"
        )
        assert by_day.fetchone() == (300, 1)
        found = database.execute(f"select id from ({quiet.rstrip().rstrip(';')})").fetchall()
        assert silent in {row[0] for row in found} and len(found) >= 25
        database.execute(responses)


def test_the_example_of_a_first_response_is_timed_right(tmp_path):
    database = duckdb.connect()
    database.execute("create schema tester")
    database.execute(
        "create table tester.messages (conversation_id varchar, direction varchar, "
        "created_at timestamp, _fivetran_deleted boolean)"
    )
    start = datetime(2026, 1, 1)
    for name, direction, minute in [
        ("a", "out", 0),
        ("a", "in", 5),
        ("a", "in", 6),
        ("a", "out", 25),
        ("b", "in", 0),
        ("c", "out", 0),
    ]:
        moment = start + timedelta(minutes=minute)
        database.execute(
            "insert into tester.messages values (?, ?, ?, false)", [name, direction, moment]
        )
    responses = re.findall(r"```sql\n(.*?)```", README, re.S)[2]
    rows = database.execute(responses).fetchall()
    assert [(row[0], row[3]) for row in rows] == [("a", timedelta(minutes=20))]


def third_party_imports() -> set:
    """Return the names of the packages that the project's Python files import."""
    own = {path.stem for path in PROJECT.glob("*.py")} | {"tests", "mock_server"}
    names = set()
    for folder in (PROJECT, PROJECT / "tests", PROJECT / "mock_server"):
        for path in folder.glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names.update(alias.name.split(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names.add(node.module.split(".")[0])
    return names - own - set(sys.stdlib_module_names)


def test_requirements_list_every_import_that_fivetran_has_not_and_pin_it():
    lines = (PROJECT / "requirements.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert set(pinned) == third_party_imports() - INSTALLED_ON_FIVETRAN


def test_the_connector_imports_only_what_fivetran_has():
    tree = ast.parse((PROJECT / "connector.py").read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert {n.split(".")[0] for n in names} - set(sys.stdlib_module_names) == INSTALLED_ON_FIVETRAN


def test_the_newest_version_of_the_changelog_is_the_connectors():
    versions = re.findall(r"^## (\S+)$", (PROJECT / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] == connector.VERSION


def test_a_configuration_with_a_key_is_ignored_by_git_and_the_template_is_not():
    ignored = (PROJECT / ".gitignore").read_text().splitlines()
    assert "configuration.*.json" in ignored and "configuration.json" not in ignored
    assert "configuration.local.json" in README

"""The README and the docs match the code."""

import ast
import collections
import json
import re
import shutil
import statistics
import subprocess
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
TABLES_PAGE = (PROJECT / "docs" / "tables.md").read_text()
SQL = re.findall(r"```sql\n(.*?);\n```", TABLES_PAGE, re.S)
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
# pytest loads these without an import.
PLUGINS = {"pytest_timeout", "pytest_xdist"}


def table_after(heading: str, columns: int, page: str = README) -> list:
    """Return the cells of the table rows with `columns` columns in a section."""
    section = page.split(f"\n{heading}\n", 1)[1]
    section = re.split(r"\n#+ ", section)[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [row for row in rows if len(row) == columns and not row[0].startswith("--")][1:]


def test_the_readme_has_the_expected_headings_in_order():
    assert re.findall(r"^## (.*)$", README, re.M) == SEED_HEADINGS


def test_the_readme_begins_with_make_demo_and_make_test():
    top = README.split("\n## ")[1]
    assert "make demo" in top and "make test" in top
    assert "make test" in (PROJECT / ".ci" / "run").read_text()


def test_every_column_is_listed_with_its_type():
    listed = {}
    for table, column, kind, _source in table_after("## Columns", 4, TABLES_PAGE):
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
        words = {None: "not set", True: "true", False: "false", (): "none"}
        shown = words.get(setting.default)
        if setting.name == "api_key":
            shown = "required"
        assert default == (shown if setting.default is None or shown else str(setting.default))
        if setting.limits:
            assert extent == "{}-{}".format(*setting.limits)


def test_the_template_in_the_readme_equals_the_file():
    (template,) = re.findall(r"```json\n(.*?)```", README, re.S)
    assert json.loads(template) == json.loads((PROJECT / "configuration.json").read_text())


def test_the_readme_lists_the_roles_that_errors_name():
    roles = {
        row[1].strip("`"): row[2].strip("` |")
        for row in re.findall(r"^   \| (.*) \| (.*) \| (.*) \|$", README, re.M)[1:]
    }
    named = [table.role for table in connector.TABLES]
    assert {f"{role} (legacy {legacy})" for role, legacy in roles.items()} >= set(named)
    assert roles[SEARCH_ROLE] == "org.user.search.read"


def failures() -> list:
    """Cause each failure in the README's error table, and return the messages."""
    return [
        *(configuration_failure(**wrong) for wrong in WRONG_SETTINGS),
        sync_failure(key="other"),
        sync_failure(roles=ROLES - {"org.permission.brand.read"}),
        sync_failure(roles=ROLES - {SEARCH_ROLE}),
        sync_failure(fault="429"),
        sync_failure(fault="503"),
        sync_failure(list_window=100, list_window_status=400),
        sync_failure(state={"cursor": "1"}),
    ]


WRONG_SETTINGS = [
    {"api_key": ""},
    {"api_key": "k k"},
    {"retry_attempts": 3},
    {"retry_attempts": "11"},
    {"enable_debug_logging": "maybe"},
    {"additional_tables": "orders"},
    {"base_url": "https://example.com"},
]


def configuration_failure(**wrong) -> str:
    with pytest.raises(ValueError) as error:
        connector.validate_configuration({"api_key": "key", **wrong})
    return str(error.value)


def sync_failure(roles=ROLES, fault="", key="", state=None, **behaviour) -> str:
    destination = Destination()
    destination.state = state or {}
    records = make_records(companies=150, customers=3)
    with mock(records, roles=roles, **behaviour) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(connector, "op", destination)
        if fault:
            server.order(Fault(fault))
        try:
            sync(server, destination, **({"api_key": key} if key else {}))
        except Exception as error:
            return str(error)
    return " ".join(destination.warnings)


def test_every_message_in_the_error_table_matches_the_code():
    patterns = [
        ".*".join(map(re.escape, row[0].strip("`").split("…")))
        for row in table_after("## Error handling", 2)
    ]
    messages = failures()
    assert len(patterns) == len(messages)
    for pattern, message in zip(patterns, messages):
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
    days, quiet, responses = SQL[:3]
    with duckdb.connect(str(project.warehouse), read_only=True) as database:
        by_day = database.execute(f"select sum(messages), count(distinct day) from ({days})")
        assert by_day.fetchone() == (300, 1)
        found = database.execute(f"select id from ({quiet})").fetchall()
        assert silent in {row[0] for row in found} and len(found) >= 25
        database.execute(responses)


def test_the_sql_example_measures_the_first_response_time_correctly(tmp_path):
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
    rows = database.execute(SQL[2]).fetchall()
    assert [(row[0], row[3]) for row in rows] == [("a", timedelta(minutes=20))]


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Yield the store of a mock with records of every table, and a project that synced them."""
    records = make_records(
        customers=60, brands=3, messages=900, notes=20, users=8, teams=3, tags=6, same_moment=0
    )
    with mock(records) as server:
        project = Project(tmp_path_factory.mktemp("project"), server, additional_tables="all")
        project.debug()
        yield server.store, project


def named(store, table: str, record_id: str) -> str:
    return store.records(table)[record_id]["attributes"]["name"]


def live_conversations(store) -> dict:
    """Return the attributes of the conversations that are not deleted, by id."""
    return {
        record_id: record["attributes"]
        for record_id, record in store.records("conversations").items()
        if not record["attributes"].get("deleted")
    }


def test_the_sql_example_returns_the_median_response_time_of_each_team_and_brand(
    everything,
):
    store, project = everything
    minutes: dict = {}
    for conversation_id, attributes in live_conversations(store).items():
        if "firstResponse" not in attributes:
            continue
        brand = store.records("conversations")[conversation_id]["relationships"]["brand"]
        names = (
            named(store, "teams", attributes["assignedTeams"][0]),
            named(store, "brands", brand["data"]["id"]),
        )
        minutes.setdefault(names, []).append(attributes["firstResponse"]["responseTime"] / 60_000)
    found = {row[:2]: row[2:] for row in project.query(SQL[3])}
    assert len(found) > 5 and found.keys() == minutes.keys()
    for names, times in minutes.items():
        assert found[names][0] == len(times)
        # The query counts whole seconds and returns whole minutes.
        assert found[names][1] == pytest.approx(statistics.median(times), abs=0.55)


def test_the_sql_example_counts_every_open_conversation_by_its_age_in_weeks(everything):
    store, project = everything

    def backlog() -> list:
        weeks: dict = {}
        for attributes in live_conversations(store).values():
            if attributes["status"] == "open":
                created = datetime.fromisoformat(attributes["createdAt"].replace("Z", "+00:00"))
                age = (datetime.now(timezone.utc).date() - created.date()).days // 7
                weeks.setdefault(age, []).append(attributes["outboundMessageCount"] == 0)
        return [(age, len(without), sum(without)) for age, without in sorted(weeks.items())]

    before, found = backlog(), project.query(SQL[4])
    # The date may change between the two calls.
    assert len(found) > 5 and found in (before, backlog())


def test_the_sql_example_counts_the_most_used_tags_by_name(everything):
    store, project = everything
    used = collections.Counter(
        named(store, "tags", tag_id)
        for attributes in live_conversations(store).values()
        for tag_id in attributes["tags"]
    )
    assert len(used) == 6
    assert project.query(SQL[5]) == sorted(used.items(), key=lambda item: (-item[1], item[0]))


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


def test_requirements_pin_every_import_that_fivetran_does_not_install():
    lines = (PROJECT / "requirements.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    modules = {name.replace("-", "_") for name in pinned}
    assert modules == third_party_imports() - INSTALLED_ON_FIVETRAN | PLUGINS


def test_the_connector_imports_only_what_fivetran_installs():
    tree = ast.parse((PROJECT / "connector.py").read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert {n.split(".")[0] for n in names} - set(sys.stdlib_module_names) == INSTALLED_ON_FIVETRAN


def test_the_newest_version_in_the_changelog_is_the_version_of_the_connector():
    versions = re.findall(r"^## (\S+)$", (PROJECT / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] == connector.VERSION


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
@pytest.mark.parametrize(
    ("file", "is_ignored"),
    [
        ("local/configuration.json", True),
        ("local/configuration.json~", True),
        ("local-eu/configuration.json", True),
        ("local.json", True),
        ("configuration.local.json", True),
        ("configuration.json.bak", True),
        ("destination.json", True),
        ("build/mock/configuration.json", True),
        ("configuration.json", False),
        ("connector.py", False),
    ],
)
def test_git_ignores_files_with_a_key_but_not_the_template(file, is_ignored, tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    shutil.copy(PROJECT / ".gitignore", tmp_path)
    ignored = subprocess.run(["git", "check-ignore", "-q", file], cwd=tmp_path, check=False)
    assert (ignored.returncode == 0) is is_ignored

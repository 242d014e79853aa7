"""The README and the docs match the code."""

import ast
import collections
import importlib.util
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
from tests.support import Destination, mock, sync
from tools.questions import QUESTIONS

README = (PROJECT / "README.md").read_text()
DOCS = {path.name: path.read_text() for path in (PROJECT / "docs").glob("*.md")}
PAGES = {
    "README.md": README,
    "CONTRIBUTING.md": (PROJECT / "CONTRIBUTING.md").read_text(),
    **{f"docs/{name}": page for name, page in DOCS.items()},
}
# The paragraph before each example, and the example.
EXAMPLES = re.findall(r"((?:[^\n]+\n)+)\n```sql\n([^`]*);\n```", DOCS["tables.md"])
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
# What nothing imports: the plugins of pytest, and the linters.
COMMANDS = {"pytest_timeout", "pytest_xdist", "black", "flake8", "flake8_bugbear"}
COMMANDS |= {"flake8_cognitive_complexity"}


def table_after(heading: str, columns: int, page: str = README) -> list:
    """Return the cells of the table rows with `columns` columns in a section."""
    section = page.split(f"\n{heading}\n", 1)[1]
    section = re.split(r"\n#+ ", section)[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [row for row in rows if len(row) == columns and not row[0].startswith("--")][1:]


def test_the_readme_has_the_expected_headings_in_order():
    assert re.findall(r"^## (.*)$", README, re.M) == SEED_HEADINGS


def test_the_readme_and_the_docs_are_short():
    assert len(README.splitlines()) <= 180
    pages = [README, *(page for name, page in DOCS.items() if name != "tables.md")]
    assert sum(len(page.split()) for page in pages) <= 4_500


def test_the_readme_says_at_once_what_has_not_been_verified_and_how_to_see_it_work():
    overview = " ".join(README.split("\n## ")[1].split())
    assert "never against Kustomer itself" in overview
    assert "`make inspect`" in overview and "`make demo`" in overview


def headings(page: str) -> set:
    """Return the headings of a page as GitHub writes them in a link."""
    titles = re.findall(r"^#+ (.*)$", page, re.M)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name):
    links = re.findall(r"\]\(([^)\s]+)\)", PAGES[name])
    for link in links:
        file, _, heading = link.partition("#")
        if link.startswith("https://"):
            continue
        target = (PROJECT / name).parent / file if file else PROJECT / name
        assert target.is_file(), link
        assert not heading or heading in headings(target.read_text()), link


def test_every_page_is_linked_to_from_another_one():
    linked = set(re.findall(r"\]\((?:docs/)?([^)\s/]+\.md)", "".join(PAGES.values())))
    assert linked >= DOCS.keys() | {"CONTRIBUTING.md"}


def code(page: str) -> str:
    """Return the code of a page, a command on each line."""
    blocks = re.findall(r"^ *```bash\n(.*?)```", page, re.M | re.S)
    spans = re.findall(r"`([^`]+)`", re.sub(r"^ *```.*?```", "", page, flags=re.M | re.S))
    return "\n".join([*blocks, *(" ".join(span.split()) for span in spans)])


@pytest.mark.parametrize("name", PAGES)
def test_every_command_exists(name):
    makefile = (PROJECT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z]+)", code(PAGES[name])):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for module in re.findall(r"\bpython3? -m ([\w.]+)", code(PAGES[name])):
        assert importlib.util.find_spec(module), module
    for file in re.findall(r"^`?((?:docs|tests|tools|mock_server)/\S*)", code(PAGES[name]), re.M):
        assert (PROJECT / file).exists(), file


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
    rows = re.findall(r"^   \| (.*) \| `(.*?)`(?: \(legacy `(.*)`\))? \|$", README, re.M)
    listed = {
        name: f"{role} (legacy {legacy or role.replace('permission', 'user')})"
        for names, role, legacy in rows
        for name in names.split(", ")
    }
    assert listed.pop("search") == f"{SEARCH_ROLE} (legacy org.user.search.read)"
    assert listed == {table.name: table.role for table in connector.TABLES}


def test_the_readme_names_every_additional_table():
    (setting,) = [
        row for row in table_after("### Configuration parameters", 4) if "tables" in row[0]
    ]
    assert setting[3].strip(" |").endswith(": " + ", ".join(connector.ADDITIONAL_TABLES))
    created = README.split("\n## Tables created\n")[1].split("\n## ")[0]
    assert all(f"`{table.name}`" in created for table in connector.TABLES)


def test_every_table_has_a_line_that_says_how_its_deletions_are_seen():
    rows = table_after("## How deletions are seen", 2, DOCS["limits.md"])
    tables = [name for row in rows for name in row[0].split(", ")]
    assert sorted(tables) == sorted(table.name for table in connector.TABLES)


def failures() -> list:
    """Cause each failure of the table in docs/errors.md, and return the messages."""
    return [
        configuration_failure(retry_attempts=3),
        sync_failure(key="other"),
        sync_failure(roles=ROLES - {"org.permission.brand.read"}),
        sync_failure(roles=ROLES - {SEARCH_ROLE}),
        sync_failure(fault="429"),
        sync_failure(fault="503"),
        sync_failure(list_window=100, list_window_status=400),
        sync_failure(state={"cursor": "1"}),
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
        for row in table_after("# Errors", 2, f"\n{DOCS['errors.md']}")
    ]
    messages = failures()
    assert len(patterns) == len(messages)
    for pattern, message in zip(patterns, messages):
        assert re.search(pattern, message, re.S), (pattern, message)


def example(words: str) -> str:
    """Return the SQL example in docs/tables.md after a paragraph that has these words."""
    (sql,) = [sql for paragraph, sql in EXAMPLES if words in " ".join(paragraph.split())]
    return sql


def test_the_sql_examples_of_messages_need_no_additional_tables(tmp_path):
    now = datetime.now(timezone.utc)
    records = make_records(customers=30, messages=300, same_moment=0)
    silent = next(iter(records["customers"]))
    for record in records["messages"].values():
        record["relationships"]["customer"]["data"]["id"] = list(records["customers"])[1]
        record["attributes"]["createdAt"] = (now - timedelta(days=1)).isoformat()
    with mock(records) as server:
        project = Project(tmp_path, server)
        project.debug()
    days, quiet = example("Messages per day"), example("Customers without a message")
    with duckdb.connect(str(project.warehouse), read_only=True) as database:
        by_day = database.execute(f"select sum(messages), count(distinct day) from ({days})")
        assert by_day.fetchone() == (300, 1)
        found = database.execute(f"select id from ({quiet})").fetchall()
        assert silent in {row[0] for row in found} and len(found) >= 25


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Yield the store of a mock with records of every table, and a project that synced them."""
    counts = {"customers": 60, "brands": 3, "messages": 900, "notes": 20, "users": 8}
    more = {"teams": 3, "tags": 6, "klasses": 3, "kobjects": 90, "shortcuts": 3}
    records = make_records(**counts, **more, audit_logs=60, same_moment=0)
    with mock(records) as server:
        for customer_id in list(records["customers"])[:2]:
            server.store.delete("customers", customer_id)
        project = Project(tmp_path_factory.mktemp("project"), server, additional_tables="all")
        project.debug()
        yield server.store, project


def named(store, table: str, record_id: str) -> str:
    return store.records(table)[record_id]["attributes"]["name"]


def related(store, table: str, record_id: str, name: str) -> str:
    return store.records(table)[record_id]["relationships"][name]["data"]["id"]


def live(store, table: str) -> dict:
    """Return the attributes of the records that are not deleted, by id."""
    return {
        record_id: record["attributes"]
        for record_id, record in store.records(table).items()
        if not record["attributes"].get("deleted")
    }


def moment(attributes: dict) -> datetime:
    return datetime.fromisoformat(attributes["createdAt"].replace("Z", "+00:00"))


def test_the_sql_example_returns_the_median_response_time_of_each_team_and_brand(everything):
    store, project = everything
    minutes: dict = {}
    for conversation_id, attributes in live(store, "conversations").items():
        response = attributes.get("firstResponse") or {}
        if attributes["direction"] != "in" or "createdAt" not in response:
            continue
        names = (
            named(store, "teams", attributes["assignedTeams"][0]),
            named(store, "brands", related(store, "conversations", conversation_id, "brand")),
        )
        waited = moment(response) - moment(attributes)
        minutes.setdefault(names, []).append(waited.total_seconds() / 60)
    found = {row[:2]: row[2:] for row in project.query(example("by team and brand"))}
    assert len(found) > 5 and found.keys() == minutes.keys()
    for names, times in minutes.items():
        assert found[names][0] == len(times)
        # The query counts whole seconds and returns whole minutes.
        assert found[names][1] == pytest.approx(statistics.median(times), abs=0.55)


def test_the_sql_example_counts_every_open_conversation_by_its_age_in_weeks(everything):
    store, project = everything

    def backlog() -> list:
        weeks: dict = {}
        for attributes in live(store, "conversations").values():
            if attributes["status"] == "open":
                age = (datetime.now(timezone.utc).date() - moment(attributes).date()).days // 7
                has_response = "createdAt" in (attributes.get("firstResponse") or {})
                weeks.setdefault(age, []).append(not has_response)
        return [(age, len(without), sum(without)) for age, without in sorted(weeks.items())]

    before, found = backlog(), project.query(example("Open conversations by age"))
    # The date may change between the two calls.
    assert len(found) > 5 and found in (before, backlog())


def test_the_sql_example_counts_the_most_used_tags_by_name(everything):
    store, project = everything
    used = collections.Counter(
        named(store, "tags", tag_id)
        for attributes in live(store, "conversations").values()
        for tag_id in attributes["tags"]
    )
    assert len(used) == 6
    most_used = sorted(used.items(), key=lambda item: (-item[1], item[0]))
    assert project.query(example("Most used tags")) == most_used


def test_the_sql_example_returns_the_revenue_of_the_orders_of_recent_writers(everything):
    store, project = everything

    def revenue() -> list:
        week_ago = datetime.now(timezone.utc) - timedelta(days=7)
        writers = {
            related(store, "messages", message_id, "customer")
            for message_id, attributes in live(store, "messages").items()
            if attributes["direction"] == "in" and moment(attributes) > week_ago
        }
        totals: dict = {}
        for order_id, attributes in live(store, "kobjects").items():
            klass = named(store, "klasses", related(store, "kobjects", order_id, "klass"))
            customer = related(store, "kobjects", order_id, "customer")
            if klass == "order" and customer in writers:
                order = attributes["custom"]
                totals.setdefault(order["statusStr"], []).append(order["totalNum"])
        return sorted((status, len(t), round(sum(t), 2)) for status, t in totals.items())

    before, found = revenue(), sorted(project.query(example("Revenue by status")))
    # A message may become a week old between the two calls.
    assert len(found) > 2 and found in (before, revenue())


def test_the_sql_example_says_who_deleted_what(everything):
    store, project = everything
    entries = [entry["attributes"] for entry in store.records("audit_logs").values()]
    users = {user_id: named(store, "users", user_id) for user_id in store.records("users")}
    deleted = {
        (entry["objectType"], entry["objectId"], users.get(entry["userId"], entry["userType"]))
        for entry in entries
        if entry["eventVerb"] == "delete"
    }
    found = project.query(f"select * exclude created_at from ({example('Who deleted')})")
    assert len(found) > 1 and {row[:3] for row in found} == deleted


def test_the_query_that_purges_deleted_rows_leaves_the_others(everything, tmp_path):
    (purge,) = re.findall(r"```sql\n(.*?);\n```", DOCS["limits.md"], re.S)
    assert f"`{purge}`" in README
    _, project = everything
    warehouse = shutil.copy(project.warehouse, tmp_path)
    purge = purge.replace("messages", "customers")
    count = "select count(*), count(*) filter (_fivetran_deleted) from tester.customers"
    with duckdb.connect(warehouse) as database:
        (rows, deleted), _ = database.execute(count).fetchone(), database.execute(purge)
        assert deleted and database.execute(count).fetchone() == (rows - deleted, 0)


def third_party_imports() -> set:
    """Return the names of the packages that the project's Python files import."""
    folders = [PROJECT, *(PROJECT / name for name in ("tests", "mock_server", "tools"))]
    own = {"connector", *(folder.name for folder in folders)}
    names = set()
    for path in (path for folder in folders for path in folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    return names - own - set(sys.stdlib_module_names)


def pinned(name: str) -> set:
    """Return the packages that a requirements file pins, named like modules."""
    lines = (PROJECT / name).read_text().splitlines()
    return {line.split("==")[0].replace("-", "_") for line in lines if "==" in line}


def test_the_requirements_pin_every_import():
    # requests comes with the SDK.
    assert pinned("requirements.txt") == {"faker"}
    both = pinned("requirements.txt") | pinned("requirements-dev.txt")
    assert both == third_party_imports() - {"requests"} | COMMANDS


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


def test_the_page_about_inspect_explains_every_answer_by_its_name():
    explained = set(re.findall(r"`([a-z_]+\.[a-z_0-9]+)", DOCS["inspect.md"])) - {"tools.inspect"}
    # The answers about the order of each searched table are explained together.
    names = {re.sub(r"^(search\.sorts)\..*", r"\1", question.id) for question in QUESTIONS}
    assert explained == names

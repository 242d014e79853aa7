"""The connector with the real SDK and a real DuckDB file."""

from datetime import datetime, timedelta, timezone

import pytest

import connector
from mock_server import make_records
from tests.expected import assert_same, expected_row, source_rows
from tests.project import Project
from tests.support import ALL_TABLES, COLUMNS, TABLES, mock

COUNTS = {
    "customers": 150,
    "companies": 110,
    "brands": 5,
    "messages": 600,
    "notes": 60,
    "users": 30,
    "teams": 5,
    "tags": 9,
    "kobjects": 60,
    "klasses": 6,
    "shortcuts": 20,
    "audit_logs": 40,
}
# Old enough for none of the records to come again if the day ends between two syncs.
BEFORE = datetime.now(timezone.utc) - timedelta(days=3)
_DUCKDB_TYPES = {
    "STRING": "VARCHAR",
    "BOOLEAN": "BOOLEAN",
    "INT": "INTEGER",
    "UTC_DATETIME": "TIMESTAMP WITH TIME ZONE",
}


@pytest.fixture(scope="module")
def synced(tmp_path_factory):
    """Yield a project after a first sync of all tables, its mock, and the output of the sync."""
    with mock(make_records(**COUNTS, before=BEFORE)) as server:
        project = Project(tmp_path_factory.mktemp("project"), server, additional_tables="all")
        yield project, server, project.debug()


def test_every_row_and_column_in_the_warehouse_matches_its_record(synced):
    project, server, _ = synced
    for table in ALL_TABLES:
        rows, source = project.rows(table), source_rows(server, table)
        assert len(source) > 0.95 * COUNTS.get(table, 65)
        assert_same(table, rows, source)


def test_deleted_records_are_deleted_rows_in_the_warehouse(synced):
    project, server, _ = synced
    found = project.query("select id from tester.customers where _fivetran_deleted")
    records = server.store.records("customers").items()
    deleted = {record_id for record_id, record in records if record["attributes"].get("deleted")}
    assert deleted and {row[0] for row in found} == deleted


def test_every_declared_column_exists_with_its_type_even_without_values(synced):
    project, _, _ = synced
    for table in ALL_TABLES:
        described = {row[0]: row[1] for row in project.query(f"describe tester.{table}")}
        for column, kind in COLUMNS[table].items():
            assert described[column] == _DUCKDB_TYPES[kind], (table, column)
    assert project.query("select count(locked), count(*) > 0 from tester.customers") == [(0, True)]


def test_the_log_of_a_sync_has_no_warnings_and_does_not_show_the_key(synced):
    _, server, output = synced
    # Before that, the SDK may warn about a website that it cannot reach.
    log = output.partition("calling update()")[2]
    assert "SYNC SUCCEEDED" in log and "WARNING" not in log and "Traceback" not in log
    assert server.api_key not in output


def change_some(store) -> set:
    """Change, delete, add and erase records. Return the ids of changed and deleted customers."""
    listed = {table: store.listed(table) for table in ALL_TABLES}
    for table, number, attributes in (
        ("customers", 15, {"name": "Renamed 名前"}),
        ("messages", 25, {"status": "read"}),
        ("conversations", 7, {"messageCount": 99}),
        ("notes", 1, {"body": "Edited."}),
    ):
        for record_id in listed[table][:number]:
            store.change(table, record_id, **attributes)
    for table, first, last in (("customers", 15, 20), ("conversations", 7, 8), ("notes", 1, 2)):
        for record_id in listed[table][first:last]:
            store.delete(table, record_id)
    for table in ("users", "teams", "tags"):
        store.erase(table, listed[table][0])
    for table, number in (("customers", 4), ("messages", 6)):
        for record in make_records(**{table: number}, seed=9)[table].values():
            store.put(table, record)
            store.change(table, record["id"])
    return set(listed["customers"][:20])


def test_a_second_sync_delivers_only_changed_records(synced):
    project, server, _ = synced
    before = project.rows("customers")
    changed = change_some(server.store)
    already = len(server.requests)
    # The audit log is the last table of a sync.
    last = "select max(_fivetran_synced)::varchar from tester.audit_logs"
    (last_write,) = project.query(last)[0]
    project.debug()
    requests = server.requests[already:]
    upserted = {
        table: project.query(
            f"select count(*) from tester.{table} where _fivetran_synced > '{last_write}'"
        )[0][0]
        for table in ("customers", "messages", "conversations", "notes")
    }
    assert upserted == {
        "customers": 15 + 5 + 4,
        "messages": 25 + 6,
        "conversations": 7 + 1,
        "notes": 1 + 1,
    }
    for table in ALL_TABLES:
        assert_same(table, project.rows(table), source_rows(server, table))
    after = project.rows("customers")
    assert all(after[row_id] == row for row_id, row in before.items() if row_id not in changed)
    by_context = [request.body["queryContext"] for request in requests if request.body]
    # One search tests whether search knows companies.
    assert set(by_context) == {*"customer company message conversation note kobject".split()}
    assert max(map(by_context.count, by_context)) <= 2


def test_the_connector_declares_what_fivetran_requires():
    assert connector.connector.update_method is connector.update
    assert {entry["table"] for entry in connector.schema({})} == set(TABLES)
    every = connector.schema({"additional_tables": "all"})
    assert [entry["table"] for entry in every] == ALL_TABLES
    assert all(entry["primary_key"] == ["id"] for entry in every)


def test_the_expected_rows_of_these_tests_match_the_records_of_the_mock(synced):
    _, server, _ = synced
    record = next(iter(server.store.records("messages").values()))
    row = expected_row("messages", record)
    assert row["message_type"] == record["attributes"]["directionType"]
    assert row["customer_id"] == record["relationships"]["customer"]["data"]["id"]

"""The connector under the real SDK, into a real DuckDB file."""

import pytest

import connector
from mock_server import make_records
from tests.expected import expected_row, source_rows
from tests.project import Project
from tests.support import COLUMNS, TABLES, mock

_DUCKDB_TYPES = {
    "STRING": "VARCHAR",
    "BOOLEAN": "BOOLEAN",
    "UTC_DATETIME": "TIMESTAMP WITH TIME ZONE",
}


@pytest.fixture(scope="module")
def synced(tmp_path_factory):
    """A project after its first sync of a large mock, the mock, and what the sync printed."""
    records = make_records(customers=3000, companies=300, brands=5, messages=12_000)
    with mock(records) as server:
        project = Project(tmp_path_factory.mktemp("project"), server)
        yield project, server, project.debug()


def test_every_row_and_column_in_the_warehouse_is_what_kustomer_holds(synced):
    project, server, _ = synced
    for table in TABLES:
        rows, source = project.rows(table), source_rows(server, table)
        assert (
            len(source)
            > {"customers": 2900, "companies": 299, "brands": 4, "messages": 11_999}[table]
        )
        assert rows.keys() == source.keys()
        for row_id, row in source.items():
            assert rows[row_id] == row


def test_deleted_records_are_in_the_warehouse_as_deleted_rows(synced):
    project, server, _ = synced
    found = project.query("select id from tester.customers where _fivetran_deleted")
    records = server.store.records("customers").items()
    deleted = {record_id for record_id, record in records if record["attributes"].get("deleted")}
    assert deleted and {row[0] for row in found} == deleted


def test_every_declared_column_exists_with_its_type_even_when_it_never_has_a_value(synced):
    project, _, _ = synced
    for table in TABLES:
        described = {row[0]: row[1] for row in project.query(f"describe tester.{table}")}
        for column, kind in COLUMNS[table].items():
            assert described[column] == _DUCKDB_TYPES[kind], (table, column)
    assert project.query("select count(locked), count(*) > 0 from tester.customers") == [(0, True)]


def test_the_log_of_a_sync_has_no_warning_and_no_key(synced):
    _, server, output = synced
    # What comes before is the SDK's own, and may be of a website it cannot reach.
    own = output.partition("calling update()")[2]
    assert "SYNC SUCCEEDED" in own and "WARNING" not in own and "Traceback" not in own
    assert server.api_key not in output


def test_a_second_sync_delivers_what_changed_and_nothing_else(synced):
    project, server, _ = synced
    store, before = server.store, {table: project.rows(table) for table in TABLES}
    customers, messages = store.listed("customers"), store.listed("messages")
    for record_id in customers[:15]:
        store.change("customers", record_id, name="Renamed 名前")
    for record_id in messages[:25]:
        store.change("messages", record_id, status="read")
    for record_id in customers[15:20]:
        store.delete("customers", record_id)
    for table, number in (("customers", 4), ("messages", 6)):
        for record in make_records(**{table: number}, seed=9)[table].values():
            store.put(table, record)
            store.change(table, record["id"])
    already = len(server.requests)
    (last_write,) = project.query("select max(_fivetran_synced)::varchar from tester.messages")[0]
    project.debug()
    requests = server.requests[already:]
    upserted = {
        table: project.query(
            f"select count(*) from tester.{table} where _fivetran_synced > '{last_write}'"
        )[0][0]
        for table in ("customers", "messages")
    }
    assert upserted == {"customers": 15 + 5 + 4, "messages": 25 + 6}
    for table in TABLES:
        assert project.rows(table) == source_rows(server, table)
    untouched = before["customers"].keys() - set(customers[:20])
    after = project.rows("customers")
    assert all(after[row_id] == before["customers"][row_id] for row_id in untouched)
    by_context = [request.body["queryContext"] for request in requests if request.body]
    assert by_context.count("customer") <= 2 and by_context.count("message") <= 2


def test_the_connector_is_what_fivetran_asks_for():
    assert connector.connector.update_method is connector.update
    assert {entry["table"] for entry in connector.schema({})} == set(TABLES)
    assert all(entry["primary_key"] == ["id"] for entry in connector.schema({}))


def test_the_expectation_of_these_tests_is_not_the_connectors_own(synced):
    _, server, _ = synced
    record = next(iter(server.store.records("messages").values()))
    row = expected_row("messages", record)
    assert row["message_type"] == record["attributes"]["directionType"]
    assert row["customer_id"] == record["relationships"]["customer"]["data"]["id"]

"""Deletions that only Kustomer's audit log shows, and the table of its entries."""

import json
from datetime import datetime, timedelta, timezone

import pytest

import connector
from mock_server import Fault, make_records
from mock_server.records import time_text
from tests.expected import assert_mirrors
from tests.support import TABLES, mock, move_to_noon, sync
from tests.test_random_worlds import FragileDestination, Killed

COUNTS = {"customers": 20, "companies": 5, "brands": 2, "messages": 80}
# Tables whose deletions are found in the audit log alone, because the mock erases the records.
ERASED = ("customers", "messages", "conversations")
SETTINGS = {"additional_tables": "conversations,audit_logs"}
LOGGED = [*TABLES, "conversations", "audit_logs"]
LOG = "/v1/audit-logs"


@pytest.fixture(autouse=True)
def noon(clock):
    """Start at noon, so that a day ends only where a test lets it end."""
    move_to_noon(clock)


def records(**counts):
    # Old enough for none of them to come again when a sync goes back two days.
    before = datetime.now(timezone.utc) - timedelta(days=4)
    return make_records(**{**COUNTS, **counts}, before=before)


def entry(number: int, at: datetime, **attributes) -> dict:
    """Return an entry of the audit log."""
    times = dict.fromkeys(("createdAt", "updatedAt", "publishedAt"), time_text(at))
    kind = {"eventName": "kustomer.message.update", "eventVerb": "update", "objectType": "message"}
    return {
        "type": "audit_log",
        "id": f"{number:024x}",
        "attributes": {**kind, "objectId": f"{number:x}", **times, **attributes},
        "relationships": {},
    }


def erase_one_each(server) -> dict:
    """Erase a record of each table without a trace in lists and search, and return their ids."""
    erased = {table: server.store.listed(table)[0] for table in ERASED}
    for table, record_id in erased.items():
        server.store.erase(table, record_id)
    return erased


def log_requests(server) -> list:
    return [request for request in server.requests if request.path == LOG]


@pytest.mark.parametrize("order", ["newest", "oldest"])
def test_rows_of_erased_records_are_deleted_in_the_next_sync(order, destination, clock):
    with mock(records(), audit_log_order=order) as server:
        sync(server, destination, **SETTINGS)
        erased = erase_one_each(server)
        clock.move(60)
        sync(server, destination, **SETTINGS)
        assert_mirrors(destination, server, LOGGED)
    for table, record_id in erased.items():
        assert record_id in destination.deleted[table] and destination.rows[table][record_id]


def test_without_the_audit_log_no_request_goes_to_it_and_erased_records_stay(destination):
    with mock(records()) as server:
        sync(server, destination, additional_tables="conversations")
        erased = erase_one_each(server)
        sync(server, destination, additional_tables="conversations")
        assert log_requests(server) == []
    assert all(erased[table] in destination.live(table) for table in ERASED)


@pytest.mark.parametrize("late", [300, 5 * 3600, 20 * 3600])
def test_an_entry_that_comes_late_deletes_its_row_when_it_is_there(late, destination, clock):
    with mock(records(), audit_log_lag_seconds=late) as server:
        sync(server, destination, **SETTINGS)
        erase_one_each(server)
        clock.move(60)
        sync(server, destination, **SETTINGS)
        # Within the overlap of two syncs, or on the next day, which goes two days back.
        clock.move(late)
        if late > 600:
            clock.move(86_400 - late)
        sync(server, destination, **SETTINGS)
        assert_mirrors(destination, server, LOGGED)


def test_a_row_that_a_late_search_brings_back_is_deleted_again(destination, clock):
    with mock(records(), index_lag_seconds=300) as server:
        sync(server, destination, **SETTINGS)
        message = server.store.listed("messages")[0]
        server.store.change("messages", message, status="read")
        clock.move(100)
        server.store.erase("messages", message)
        destination.delivered.clear()
        clock.move(100)
        # Search shows neither the change nor that the record is gone; the audit log shows both.
        sync(server, destination, **SETTINGS)
        assert message in destination.deleted["messages"]
        assert ("messages", message) not in destination.delivered
        clock.move(150)
        # Now search shows the change, but not yet that the record is gone.
        sync(server, destination, **SETTINGS)
        assert ("messages", message) in destination.delivered
        assert message in destination.deleted["messages"]


@pytest.mark.parametrize("path", ["/v1/customers/search", LOG, "/v1/brands"])
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_sync_that_fails_anywhere_loses_no_deletion(path, after, destination, clock):
    with mock(records()) as server:
        sync(server, destination, **SETTINGS)
        erase_one_each(server)
        clock.move(3600)
        server.order(Fault("503", path=path, after=after))
        try:
            sync(server, destination, retry_attempts="0", **SETTINGS)
        except connector.KustomerError:
            server.clear_faults()
        clock.move(3600)
        sync(server, destination, **SETTINGS)
        assert_mirrors(destination, server, LOGGED)


@pytest.mark.parametrize("upserts", range(0, 9, 2))
def test_a_sync_that_is_killed_amid_the_tables_or_the_audit_log_loses_no_deletion(
    upserts, clock, monkeypatch
):
    destination = FragileDestination()
    monkeypatch.setattr(connector, "op", destination)
    monkeypatch.setattr(connector, "__CHECKPOINT_EVERY_ROWS", 1)
    with mock(records()) as server:
        sync(server, destination, **SETTINGS)
        erase_one_each(server)
        clock.move(15 * 86_400)
        # Brands and companies are delivered in each sync, and an entry for each change and deletion.
        for message in server.store.listed("messages")[:3]:
            server.store.change("messages", message, status="read")
        destination.upserts_left = 7 + upserts
        with pytest.raises(Killed):
            sync(server, destination, **SETTINGS)
        destination.upserts_left = 10**9
        clock.move(3600)
        sync(server, destination, **SETTINGS)
        assert_mirrors(destination, server, LOGGED)


def test_a_deletion_reaches_tables_that_are_not_due(destination, clock):
    with mock(records()) as server:
        sync(server, destination, additional_tables="conversations")
        erased = erase_one_each(server)
        clock.move(600)
        # The audit log has not been read yet, so it alone is due.
        sync(server, destination, sync_frequency_hours="24", **SETTINGS)
        assert [r.body for r in server.requests[-4:] if r.path == LOG] == [None] * 4
    assert all(erased[table] in destination.deleted[table] for table in ERASED)


def test_entries_about_other_objects_and_broken_entries_delete_nothing(destination, clock):
    with mock(records()) as server:
        now = server.behaviour.now()
        names = server.store.listed("messages")
        broken = [
            {"eventVerb": "delete", "objectId": None},
            {"eventVerb": "delete", "objectId": {"id": names[0]}},
            {"eventVerb": "delete", "objectId": ""},
            {"eventVerb": None, "objectId": names[1]},
            {"eventVerb": "update", "objectId": names[2]},
            {"eventVerb": "delete", "objectId": "unknown"},
        ]
        for number, attributes in enumerate(broken):
            server.store.put("audit_logs", entry(number + 1, now, **attributes))

        def mistyped(request, answer):
            if request.path == LOG and request.params["filter[objectType]"] == "company":
                row = entry(99, now, eventVerb="delete", objectType=["message"], objectId=names[3])
                answer.payload["data"].append(row)
            return answer

        server.rewrite = mistyped
        sync(server, destination, **SETTINGS)
        assert_mirrors(destination, server, TABLES)
    assert len(destination.rows["audit_logs"]) == 7


def test_a_week_with_exactly_a_full_page_of_entries_is_read(destination):
    with mock(records()) as server:
        start = server.behaviour.now() - timedelta(days=5)
        for number in range(1, 1001):
            at = start + timedelta(minutes=number)
            server.store.put("audit_logs", entry(number, at))
        sync(server, destination, initial_sync_days="7", **SETTINGS)
        assert_mirrors(destination, server, ["audit_logs"])
        types = [request.params["filter[objectType]"] for request in log_requests(server)]
    # Seven days less the overlap end in a second week.
    assert {kind: types.count(kind) for kind in types} == {
        kind: 2 for kind in ("conversation", "customer", "message", "company")
    }


def test_a_burst_of_entries_costs_a_request_per_thousand(destination):
    with mock(records()) as server:
        start = server.behaviour.now() - timedelta(hours=20)
        for number in range(1, 10_001):
            server.store.put("audit_logs", entry(number, start + timedelta(seconds=number)))
        sync(server, destination, initial_sync_days="1", **SETTINGS)
        assert len(destination.rows["audit_logs"]) == 10_000
        assert len(log_requests(server)) <= 10 + 3


def test_old_and_new_values_and_addresses_never_reach_the_warehouse(destination, clock):
    with mock(records()) as server:
        sync(server, destination, **SETTINGS)
        customer = server.store.listed("customers")[0]
        server.store.change("customers", customer, name="Before")
        server.store.change("customers", customer, name="After")
        clock.move(60)
        sync(server, destination, **SETTINGS)
    shown = json.dumps(list(destination.rows["audit_logs"].values()))
    assert '[\\"name\\"' in shown
    assert "Before" not in shown and "After" not in shown and '"ip"' not in shown


def test_the_cursor_of_the_audit_log_moves_by_weeks_and_only_forward(destination, monkeypatch):
    monkeypatch.setattr(connector, "__CHECKPOINT_EVERY_ROWS", 1)
    with mock(records(audit_logs=200)) as server:
        sync(server, destination, initial_sync_days="30", **SETTINGS)
    cursors = [state["unfinished"].get("audit_logs") for state in destination.states]
    cursors = [cursor for cursor in cursors if cursor]
    assert cursors == sorted(cursors) and len(set(cursors)) >= 4
    assert destination.state["unfinished"] == {}
    assert "audit_logs" in destination.state["last_sync_time"]


def test_an_audit_log_without_entries_counts_as_read(destination):
    with mock(records()) as server:
        sync(server, destination, **SETTINGS)
    assert destination.rows["audit_logs"] == {}
    assert "audit_logs" in destination.state["last_sync_time"]

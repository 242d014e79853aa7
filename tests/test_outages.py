"""Outages of search, an index that is late, and lists that stand in for search meanwhile.

What Kustomer's search has really done: it failed for minutes, showed changes hours late, and found
nothing for three hours without an error. Nothing may be lost by that, and no outage may turn a few
requests into a walk over every list.
"""

import time
from datetime import datetime, timedelta, timezone
from unittest import mock as patching

import pytest

import connector
from mock_server import Fault, make_records
from mock_server.behaviour import ROLES, SEARCH_ROLE
from mock_server.records import time_text
from tests.expected import assert_mirrors
from tests.support import bare_records, even_times, mock, move_to_noon, searches, sync

RECORDS = {
    **make_records(customers=40, companies=20, brands=3),
    **bare_records("messages", even_times(450)),
}
SEARCHED = ["customers", "messages"]
SMALL_PAGES = {"max_records_per_page": "100"}
HOUR, DAY = 3_600, 86_400


@pytest.fixture(autouse=True)
def noon(clock) -> None:
    move_to_noon(clock)


def list_pages(server) -> list:
    """Return the paths of the requests for lists of tables that are searched."""
    return [r.path for r in server.requests if r.path in [f"/v1/{name}" for name in SEARCHED]]


def change_some(server) -> set:
    """Change a record of each searched table and a company, and delete a customer and a message.
    Return the ids of what was deleted."""
    store, gone = server.store, set()
    for table in SEARCHED:
        changed, deleted, *_ = (
            i
            for i in store.listed(table)
            if not store.records(table)[i]["attributes"].get("deleted")
        )
        store.change(table, changed, name="Changed", status="changed")
        store.delete(table, deleted)
        gone.add(deleted)
    store.change("companies", store.listed("companies")[0], name="Changed")
    return gone


def fail_searches(server, status: int, payload=None, until: float = float("inf"), times=None):
    """Let searches end with a status, until a time or a number of them."""
    left = [10**9 if times is None else times]

    def rewrite(request, answer):
        if request.method != "POST" or time.time() >= until or not left[0]:
            return answer
        left[0] -= 1
        return answer._replace(status=status, payload=payload)

    server.rewrite = rewrite


# Search fails.


def test_an_outage_of_search_fails_its_tables_and_reads_no_list(destination):
    with mock(RECORDS) as server:
        sync(server, destination, **SMALL_PAGES)
        gone = change_some(server)
        before = destination.state["last_sync_time"]
        for _ in range(2):
            server.exchanges.clear()
            fail_searches(server, 503)
            with pytest.raises(connector.KustomerError) as caught:
                sync(server, destination, **SMALL_PAGES)
            for table in SEARCHED:
                assert f"{table}: POST /v1/customers/search failed 4 times" in str(caught.value)
                assert destination.state["last_sync_time"][table] == before[table]
            assert "set enable_incremental_sync to false" in str(caught.value)
            # The key, a list of each other table, and four attempts for each of the two.
            assert len(server.requests) == 1 + 2 + 8 and not list_pages(server)
            assert_mirrors(destination, server, ["companies", "brands"])
        server.rewrite = None
        sync(server, destination, **SMALL_PAGES)
        assert_mirrors(destination, server)
        assert gone <= destination.deleted["customers"] | destination.deleted["messages"]
    assert not destination.warnings


def test_three_retries_outlive_an_outage_of_eight_seconds(destination, waits):
    with mock(RECORDS) as server:
        sync(server, destination)
        server.exchanges.clear()
        change_some(server)
        fail_searches(server, 503, until=time.time() + 8)
        sync(server, destination)
        assert_mirrors(destination, server)
        assert 5 < len(server.requests) <= 5 + 3
    assert sum(waits) < 25 and not destination.warnings


@pytest.mark.parametrize("served", [2, 6, 9])
def test_a_first_load_that_an_outage_interrupts_resumes_and_reads_no_list(served, destination):
    records = {**RECORDS, **bare_records("messages", even_times(1500))}
    with mock(records) as server, patching.patch.object(connector, "__CHECKPOINT_EVERY_ROWS", 100):
        server.order(Fault("503", path="/search", after=4 + served))
        with pytest.raises(connector.KustomerError, match="messages: POST /v1/customers/search"):
            sync(server, destination, **SMALL_PAGES)
        assert "messages" not in destination.state["last_sync_time"]
        change_some(server)
        server.clear_faults()
        sync(server, destination, **SMALL_PAGES)
        assert_mirrors(destination, server)
        assert not list_pages(server)
    assert not destination.warnings and destination.state["unfinished"] == {}


ERROR = {"errors": [{"code": "error", "message": "Not now", "meta": {}}]}
UNCLEAR = [(404, None), (409, ERROR), (409, None), (425, ERROR), (204, None), (206, {"data": []})]


@pytest.mark.parametrize("status, payload", [(404, ERROR), (403, ERROR), *UNCLEAR])
def test_a_status_that_search_answers_once_loses_nothing(status, payload, destination):
    with mock(RECORDS) as server:
        sync(server, destination)
        gone = change_some(server)
        fail_searches(server, status, payload, times=1)
        # Not every status is retried within a sync, but the next one resumes.
        try:
            sync(server, destination)
        except connector.KustomerError:
            sync(server, destination)
        assert not list_pages(server)
        assert_mirrors(destination, server)
        assert gone <= destination.deleted["customers"] | destination.deleted["messages"]
    assert not destination.warnings


@pytest.mark.parametrize("status, payload", UNCLEAR)
def test_a_status_that_is_no_refusal_fails_its_tables_while_it_lasts(status, payload, destination):
    with mock(RECORDS) as server:
        sync(server, destination)
        gone = change_some(server)
        fail_searches(server, status, payload)
        with pytest.raises(connector.KustomerError, match=f"customers: .*{status}"):
            sync(server, destination)
        assert not list_pages(server)
        server.rewrite = None
        sync(server, destination)
        assert_mirrors(destination, server)
        assert gone <= destination.deleted["customers"] | destination.deleted["messages"]
    assert not destination.warnings


@pytest.mark.parametrize(
    "fault",
    [
        Fault("html", status=404, path="/search"),
        Fault("html", status=403, path="/search"),
        Fault("html", path="/search"),
        Fault("timed_out", path="/search"),
        Fault("truncated", path="/search"),
    ],
    ids=["a proxy's 404", "a proxy's 403", "a proxy's 200", "timed_out", "truncated"],
)
def test_an_answer_that_does_not_come_from_search_is_no_refusal(fault, destination):
    with mock(RECORDS) as server:
        server.order(fault)
        with pytest.raises(
            connector.KustomerError, match="customers: .* failed 2 times.*messages"
        ):
            sync(server, destination, retry_attempts="1")
        assert not list_pages(server)
        assert_mirrors(destination, server, ["companies", "brands"])
        server.clear_faults()
        sync(server, destination)
        assert_mirrors(destination, server)
    assert not destination.warnings


@pytest.mark.parametrize("with_rows", [True, False])
def test_a_first_search_that_finds_nothing_does_not_count_as_a_read(with_rows, destination, clock):
    with mock(RECORDS if with_rows else {}, search_is_empty=True) as server:
        for _ in range(3):
            sync(server, destination)
            assert destination.state["last_sync_time"].keys() & set(SEARCHED) == set()
            clock.move(HOUR)
            assert len(searches(server)) == 2
            server.exchanges.clear()
        server.behaviour.search_is_empty = False
        sync(server, destination)
        assert_mirrors(destination, server)
        assert not list_pages(server)
        assert destination.state["last_sync_time"].keys() >= set(SEARCHED if with_rows else ())


# The index is late.


# With syncs at every quarter of an hour, the longer lag is the harder one.
@pytest.mark.parametrize(
    ("every", "minutes_late"), [(15, 180), (60, 30), (60, 180), (1440, 30), (1440, 180)]
)
def test_what_search_shows_late_arrives_by_the_first_sync_of_the_next_day(
    every, minutes_late, destination, clock
):
    """Records change at every hour of two days, in which the index is late. The clock stands still
    between the syncs' own requests, and the syncs begin at noon."""
    with mock(bare_records("messages", even_times(60))) as server:
        sync(server, destination)
        server.behaviour.index_lag_seconds = minutes_late * 60.0
        ids, due, began = server.store.listed("messages"), {}, time.time()
        while time.time() < began + 3.6 * DAY:
            hours = (time.time() - began) / HOUR
            for record_id in ids[len(due) : min(int(hours), 48)]:
                visible = time.time() + minutes_late * 60
                # It has to be there after the first sync of the day after.
                due[record_id] = (visible // DAY + 1) * DAY
                change = server.store.delete if len(due) % 3 else server.store.change
                change("messages", record_id)
            if round(time.time() - began) % (every * 60) < 60:
                moment = time.time()
                sync(server, destination)
                for record_id, deadline in due.items():
                    if moment >= deadline:
                        updated = server.store.records("messages")[record_id]["attributes"]
                        row = destination.rows["messages"][record_id]
                        assert row["updated_at"] == updated["updatedAt"], record_id
            clock.move(900)
        assert len(due) == 48
        assert_mirrors(destination, server, ["messages"])
        assert not list_pages(server)
    assert not destination.warnings


@pytest.mark.parametrize("joins", [-1, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("leaves", [0.0, 0.3, 0.6])
def test_nothing_is_lost_if_one_record_leaves_and_another_appears_while_pages_are_read(
    leaves, joins, destination, clock
):
    """The changes of two days fill several pages, half of them from the last ten minutes, where
    the index may still add some."""
    now = datetime.fromtimestamp(time.time(), timezone.utc)
    times = [now - timedelta(days=2) + timedelta(minutes=9 * n) for n in range(250)]
    times += [now - timedelta(seconds=590) + timedelta(seconds=2 * n) for n in range(250)]
    records = bare_records("messages", times)
    with mock(records) as server:
        destination.state = {"last_sync_time": {"messages": time_text(times[0])}}
        spare = {**list(records["messages"].values())[0], "id": "f" * 24}

        def swap(request):
            context = (request.body or {}).get("queryContext")
            if context != "message" or request.params["page"] in swapped:
                return
            # Once for each number of a page.
            swapped.add(request.params["page"])
            keys = server.store.keys("messages")
            server.store.change("messages", keys[int(leaves * len(keys))][1], status="left")
            at = time_text(now - timedelta(seconds=590 * (1 - joins)) if joins >= 0 else now)
            attributes = {"createdAt": at, "updatedAt": at}
            name = f"{len(swapped):024x}"[1:]
            server.store.put("messages", {**spare, "id": f"f{name}", "attributes": attributes})

        swapped: set = set()
        server.before_answer = swap
        sync(server, destination, **SMALL_PAGES)
        assert len(swapped) > 1
        server.before_answer = None
        settled = time_text(now - timedelta(minutes=10))
        for record_id, record in server.store.records("messages").items():
            if record["attributes"]["updatedAt"] < settled:
                assert record_id in destination.rows["messages"]
        clock.move(300)
        sync(server, destination, **SMALL_PAGES)
        assert_mirrors(destination, server, ["messages"])
        assert not list_pages(server)
    assert not destination.warnings


@pytest.mark.parametrize("sorts", [True, False])
def test_thousands_of_changes_during_a_first_load_are_left_to_the_next_sync(
    sorts, destination, clock
):
    contexts = frozenset({"customer", "message"} if sorts else {"customer"})
    with mock(bare_records("messages", even_times(2000)), sort_contexts=contexts) as server:

        def change_many(request):
            if request.body and request.body["queryContext"] == "message":
                clock.move(60)
                for _, record_id in server.store.keys("messages")[:80]:
                    server.store.change("messages", record_id, status="changed")

        server.before_answer = change_many
        sync(server, destination, **SMALL_PAGES)
        assert len(searches(server)) < 60
        server.before_answer = None
        changed = [
            record_id
            for record_id, record in server.store.records("messages").items()
            if record["attributes"].get("status")
        ]
        assert len(changed) > 1500
        sync(server, destination, **SMALL_PAGES)
        assert_mirrors(destination, server, ["messages"])
        assert not list_pages(server)
    assert not destination.warnings


# Lists stand in for search.


def test_what_was_deleted_before_a_key_got_the_search_role_is_found_days_later(destination, clock):
    with mock(RECORDS, roles=ROLES - {SEARCH_ROLE}) as server:
        gone = set()
        for _ in range(4):
            sync(server, destination)
            gone |= change_some(server)
            clock.move(0.75 * DAY)
        assert destination.deleted["messages"] == set()
        assert len(destination.warnings) == 8
        server.behaviour.roles = ROLES
        server.exchanges.clear()
        sync(server, destination)
        assert_mirrors(destination, server)
        assert gone <= destination.deleted["customers"] | destination.deleted["messages"]
        assert not list_pages(server)
    assert destination.state["unfinished"] == {}


@pytest.mark.parametrize("search_works_at", [2, 3, 4])
def test_after_an_interrupted_first_read_by_list_no_history_is_lost_and_nothing_stays_live(
    search_works_at, destination, clock, monkeypatch
):
    monkeypatch.setattr(connector, "__CHECKPOINT_EVERY_ROWS", 100)
    records = bare_records("messages", even_times(450))
    with mock(records, roles=ROLES - {SEARCH_ROLE}) as server:
        for number in range(1, search_works_at + 1):
            if number == search_works_at:
                server.behaviour.roles = ROLES
            if number == 1:
                server.order(Fault("500", path="/v1/messages", after=12))
                with pytest.raises(connector.KustomerError, match="messages: "):
                    sync(server, destination, retry_attempts="0", **SMALL_PAGES)
                server.clear_faults()
                assert 100 <= len(destination.live("messages")) < 450
                server.store.delete("messages", next(iter(destination.live("messages"))))
            else:
                sync(server, destination, **SMALL_PAGES)
            clock.move(0.75 * DAY)
            server.store.delete("messages", server.store.listed("messages")[0])
            server.store.change("messages", server.store.listed("messages")[-1], status="new")
        sync(server, destination, **SMALL_PAGES)
        assert_mirrors(destination, server, ["messages"])
    assert destination.state["unfinished"] == {}


def test_a_week_in_which_search_finds_nothing_does_not_count_as_a_read(clock, destination):
    """Search may be empty for hours. Changes of a week must not depend on the hour of the sync."""
    with mock(bare_records("messages", even_times(50))) as server:
        sync(server, destination)
        before = destination.state["last_sync_time"]["messages"]
        server.store.change("messages", server.store.listed("messages")[0], status="new")
        clock.move(7 * DAY)
        server.behaviour.search_is_empty = True
        sync(server, destination)
        assert destination.state["last_sync_time"]["messages"] == before
        server.behaviour.search_is_empty = False
        clock.move(7 * DAY)
        sync(server, destination)
        assert_mirrors(destination, server, ["messages"])
    assert destination.state["last_sync_time"]["messages"] > before


# The number of searches.


def kinds_of_spreads() -> dict:
    """Return functions from a place among 2,400 records to milliseconds."""
    minute, day = 60_000, DAY * 1000
    return {
        "even": lambda n: n * 36 * minute,
        "growing": lambda n: int(60 * day * (n / 2400) ** 0.5),
        "slowly growing": lambda n: int(60 * day * (n / 2400) ** 0.75),
        "bursts": lambda n: n // 300 * 7 * day + n % 300 * 50,
        "ties": lambda n: n // 150 * 3 * day,
        "one burst": lambda n: 3 * day + n * 250,
        "even and a burst": lambda n: n * 36 * minute if n < 1200 else 40 * day + n * 20,
    }


@pytest.mark.parametrize("sorts", [True, False])
@pytest.mark.parametrize("spread", kinds_of_spreads())
def test_the_number_of_searches_is_close_to_the_number_of_pages(spread, sorts, destination):
    """24 pages of 100 records, as 12,000 records fill 24 pages of 500."""
    begin = datetime.now(timezone.utc) - timedelta(days=70)
    place = kinds_of_spreads()[spread]
    times = [begin + timedelta(milliseconds=place(n)) for n in range(2400)]
    contexts = frozenset({"customer", "message"} if sorts else {"customer"})
    rules = {"sort_contexts": contexts, "search_window": 10_000}
    with mock(bare_records("messages", times), **rules) as server:
        sync(server, destination, **SMALL_PAGES)
        assert_mirrors(destination, server)
        number = sum(r.body["queryContext"] == "message" for r in searches(server))
        assert not list_pages(server)
    limit = 1.25 * 24 + 8 if spread in ("even", "growing", "slowly growing") else 2.2 * (24 + 5)
    assert number <= limit
    assert len(destination.delivered) <= 2400 * 1.1

"""Searching with several readers at the same time."""

import threading
import time
from unittest import mock as patching

import pytest
from hypothesis import given
from hypothesis import strategies as st

import connector
from mock_server import Fault
from tests.expected import assert_mirrors, source_rows
from tests.support import Destination, bare_records, even_times, mock, searches, sync

# The smallest page size is 20, so these messages fill 25 pages.
MESSAGES = bare_records("messages", even_times(500))
SMALL_PAGES = {"max_records_per_page": "20"}


class ConcurrentSearches:
    """Delays the searches of a mock until `wanted` of them are in progress, or for 50 ms.

    `most` is the largest number of searches that were in progress at the same time.
    """

    def __init__(self, server, wanted: int):
        self.most, self._in_progress, self._wanted = 0, 0, wanted
        self._changed = threading.Condition()
        server.on_arrival = self.delay

    def delay(self, request) -> None:
        if request.method != "POST":
            return
        with self._changed:
            self._in_progress += 1
            self.most = max(self.most, self._in_progress)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._in_progress >= self._wanted, timeout=0.05)
            self._in_progress -= 1


def test_a_large_table_is_searched_by_four_readers_and_no_more(destination):
    with mock(MESSAGES) as server:
        concurrent = ConcurrentSearches(server, wanted=4)
        sync(server, destination, **SMALL_PAGES)
        assert_mirrors(destination, server)
    assert concurrent.most == 4


def test_a_table_of_ten_pages_is_searched_by_one_reader(destination):
    with mock(bare_records("messages", even_times(195))) as server:
        concurrent = ConcurrentSearches(server, wanted=2)
        sync(server, destination, **SMALL_PAGES)
        assert_mirrors(destination, server)
    assert concurrent.most == 1


@pytest.mark.parametrize(
    "spread",
    [
        lambda place: place * 10_000_000,
        lambda place: place,
        lambda place: (place % 5) * 400_000_000 + place,
        lambda place: int(place**3.3),
        lambda place: 2_000_000_000 + place if place > 250 else place * 5_000_000,
        lambda place: place // 45 * 300_000_000,
    ],
    ids=[
        "even",
        "one burst",
        "five bursts",
        "increasingly rare",
        "even and a burst",
        "tied groups",
    ],
)
def test_parallel_readers_send_few_more_searches_than_there_are_pages(spread, destination):
    begin = connector.get_time_range()["start"]
    begin = connector.datetime.fromisoformat(begin.replace("Z", "+00:00"))
    times = [
        begin + connector.timedelta(days=30, milliseconds=spread(place) / 5)
        for place in range(2500)
    ]
    with mock(bare_records("messages", times)) as server:
        sync(server, destination, max_records_per_page="50")
        assert_mirrors(destination, server)
        number = sum(r.body["queryContext"] == "message" for r in searches(server))
    assert number <= 1.35 * 2500 / 50 + 8
    assert len(destination.delivered) <= 2500 * 1.06


def test_rows_arrive_in_order_of_updated_at_and_the_cursor_only_moves_forward(destination):
    with mock(MESSAGES) as server, patching.patch.object(connector, "__CHECKPOINT_EVERY_ROWS", 1):
        sync(server, destination, **SMALL_PAGES)
        rows = destination.rows["messages"]
    cursors = [
        state["unfinished"]["messages"]
        for state in destination.states[:-1]
        if "messages" in state["unfinished"]
    ]
    assert len(cursors) > 20 and cursors == sorted(cursors)
    times = [rows[record_id]["updated_at"] for _, record_id in destination.delivered]
    assert times == sorted(times)


def test_if_a_reader_fails_the_cursor_stops_at_the_last_page_before_the_failure(destination):
    ids = [record_id for record_id in MESSAGES["messages"]]
    by_time = sorted(ids, key=lambda i: MESSAGES["messages"][i]["attributes"]["updatedAt"])
    with mock(MESSAGES) as server:

        def spoil(request, answer):
            data = answer.payload.get("data")
            if request.method == "POST" and by_time[300] in {r["id"] for r in data}:
                answer.payload["data"] = "not a list"
            return answer

        server.rewrite = spoil
        sync(server, destination, **SMALL_PAGES)
        assert_mirrors(destination, server)
        (warning,) = destination.warnings
    assert "messages: /v1/customers/search returned no list of records" in warning
    safe = destination.state["unfinished"]["messages"]
    moments = [MESSAGES["messages"][i]["attributes"]["updatedAt"] for i in by_time]
    assert moments[200] < safe <= moments[300]


def test_a_failed_search_is_retried_while_other_readers_continue(destination):
    with mock(MESSAGES) as server:
        server.order(Fault("503", rate=0.3))
        sync(server, destination, retry_attempts="10", **SMALL_PAGES)
        assert_mirrors(destination, server)
    assert destination.warnings == []


def test_all_readers_share_one_wait_for_the_rate_limit(destination, monkeypatch):
    clock = [time.time()]
    waited: list = []

    def wait(_client, seconds, _reason):
        waited.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(connector.time, "time", lambda: clock[0])
    monkeypatch.setattr(connector, "__wait", wait)
    with mock(MESSAGES, search_limit=12, window_seconds=60.0) as server:
        sync(server, destination, **SMALL_PAGES)
        assert_mirrors(destination, server)
        refused = [exchange for exchange in server.exchanges if exchange.outcome == "429"]
        answered = len(searches(server)) - len(refused)
    windows = (answered - 1) // 12
    assert len(waited) == windows
    # Each reader can have one search in progress when the limit is reached.
    assert len(refused) <= 4 * windows


def test_all_requests_are_counted(destination, capsys):
    with mock(MESSAGES) as server:
        sync(server, destination, **SMALL_PAGES)
        number = len(server.requests)
    assert f"Kustomer sync: 500 rows upserted, 0 deleted, {number} requests" in (
        capsys.readouterr().out
    )


def test_the_destination_is_called_from_one_thread_only(destination, monkeypatch):
    threads = set()
    upsert = destination.upsert

    def note(table, row):
        threads.add(threading.get_ident())
        upsert(table, row)

    monkeypatch.setattr(destination, "upsert", note)
    with mock(MESSAGES) as server:
        sync(server, destination, **SMALL_PAGES)
    assert threads == {threading.get_ident()}


@given(
    moves=st.lists(
        st.tuples(
            st.integers(1, 45),
            st.sampled_from(["change", "change", "delete", "erase"]),
            st.floats(0, 1, exclude_max=True),
        ),
        max_size=60,
    ),
    sorts=st.booleans(),
    shows_current=st.booleans(),
)
def test_every_record_arrives_if_records_change_while_several_readers_search(
    moves, sorts, shows_current
):
    destination = Destination()
    contexts = frozenset({"customer", "message"} if sorts else {"customer"})
    with mock(MESSAGES, sort_contexts=contexts, shows_current=shows_current) as server:

        def move(request):
            for at, kind, place in moves:
                if at != len(server.requests):
                    continue
                keys = server.store.keys("messages")
                record_id = keys[int(place * len(keys))][1]
                if kind == "change":
                    server.store.change("messages", record_id, status="moved")
                else:
                    getattr(server.store, kind)("messages", record_id)

        server.before_answer = move
        with patching.patch.object(connector, "op", destination):
            sync(server, destination, **SMALL_PAGES)
            server.before_answer = None
            sync(server, destination, **SMALL_PAGES)
        live, known = destination.live("messages"), server.store.records("messages")
        source = source_rows(server, "messages")
        assert {row_id: live.get(row_id) for row_id in source} == source
        # Search does not report erased records, so their rows may remain.
        assert not {row_id for row_id in live.keys() - source.keys() if row_id in known}
    assert destination.warnings == []

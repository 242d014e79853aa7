"""Searching with up to four slices at the same time."""

import threading

import pytest

import connector
from mock_server import Fault
from tests.expected import assert_mirrors
from tests.support import bare_records, even_times, mock, move_to_noon, searches, sync

# The smallest page of a search has 100 records, so these messages fill 25 pages.
MESSAGES = bare_records("messages", even_times(2500))
SMALL_PAGES = {"max_records_per_page": "100"}


@pytest.fixture(autouse=True)
def noon(clock) -> None:
    move_to_noon(clock)


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


def test_if_a_reader_fails_the_cursor_stops_before_what_it_has_not_read(destination):
    times = {i: record["attributes"]["updatedAt"] for i, record in MESSAGES["messages"].items()}
    spoiled = sorted(times, key=times.get)[1500]
    with mock(MESSAGES) as server:

        def spoil(request, answer):
            data = answer.payload.get("data")
            is_read = "and" in (request.body or {}) and len(request.body["and"]) == 2
            if is_read and spoiled in {record["id"] for record in data}:
                answer.payload["data"] = "not a list"
            return answer

        server.rewrite = spoil
        with pytest.raises(connector.KustomerError) as caught:
            sync(server, destination, **SMALL_PAGES)
        assert "messages: /v1/customers/search returned no list of records" in str(caught.value)
        saved = destination.state["unfinished"].get("messages", "")
        assert saved <= times[spoiled] and "messages" not in destination.state["last_sync_time"]
        assert not [r for r in server.requests if r.path == "/v1/messages"]
        server.rewrite = None
        sync(server, destination, **SMALL_PAGES)
        assert_mirrors(destination, server)
    assert not destination.warnings


def test_a_failed_search_is_retried_while_other_readers_continue(destination, capsys):
    with mock(MESSAGES) as server:
        server.order(Fault("503", rate=0.3))
        sync(server, destination, retry_attempts="10", **SMALL_PAGES)
        assert_mirrors(destination, server)
        number = len(server.requests)
    assert destination.warnings == []
    # All requests of all readers are counted.
    assert f"Kustomer sync: 2500 rows upserted, 0 deleted, {number} requests" in (
        capsys.readouterr().out
    )


def test_all_readers_share_one_wait_for_the_rate_limit(destination, waits):
    with mock(MESSAGES, search_limit=12, window_seconds=60.0) as server:
        sync(server, destination, **SMALL_PAGES)
        assert_mirrors(destination, server)
        refused = [exchange for exchange in server.exchanges if exchange.outcome == "429"]
        answered = len(searches(server)) - len(refused)
    windows = (answered - 1) // 12
    assert windows >= 2 and max(waits) <= 65
    # Each reader can have one search in progress when the limit is reached.
    assert len(refused) <= 4 * windows


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

"""In random worlds, every record arrives with its current values, what was deleted is deleted, or a
warning says what may be missing. Saved cursors never move backwards."""

import contextlib
import time
from datetime import datetime, timedelta, timezone
from typing import List
from unittest import mock as patching

from hypothesis import given
from hypothesis import strategies as st

import connector
from mock_server import Fault
from mock_server.behaviour import COMPANY_SEARCHES, CONTEXTS, ROLES, SEARCH_ROLE
from tests.expected import is_right, source_rows
from tests.support import Destination, bare_records, mock, move_to_noon, sync

TABLES = ("companies", "messages")
SMALL_PAGES = {"max_records_per_page": "100"}
MOVES = ("change", "change", "add", "delete", "erase", "burst")
# In these worlds, counts of search end here instead of at 10,000.
WINDOW = 500
# How many seconds before the first sync records were updated, and milliseconds between them.
AGES = st.one_of(st.floats(0, 60 * 86_400), st.sampled_from([1, 60, 599, 601, 3_600, 86_400]))
STEPS = st.sampled_from([0, 0, 1, 40, 5_000, 600_000, 20_000_000])


class Killed(BaseException):
    """The process of a sync ends."""


class FragileDestination(Destination):
    """A destination in which the process is killed before a given upsert, and which checks that
    cursors never move backwards."""

    def __init__(self):
        super().__init__()
        self.upserts_left = 10**9

    def upsert(self, table: str, row: dict) -> None:
        self.upserts_left -= 1
        if self.upserts_left < 0:
            raise Killed
        super().upsert(table, row)

    def checkpoint(self, state: dict) -> None:
        before = self.state
        super().checkpoint(state)
        for kind, cursors in before.items():
            for table, cursor in cursors.items():
                # `unfinished` is removed at the end of a read.
                assert self.state[kind].get(table, cursor) >= cursor, (kind, table)
        assert before.get("last_sync_time", {}).keys() <= self.state["last_sync_time"].keys()


def spread(bursts: list, offset: float) -> List[datetime]:
    """Return the times of bursts: (records, age of the first in seconds, milliseconds between).

    None of them is in the future of Kustomer's clock, which is ahead by `offset` seconds.
    """
    now = datetime.fromtimestamp(time.time() + offset, timezone.utc)
    return [
        min(now - timedelta(seconds=age) + timedelta(milliseconds=step * place), now)
        for number, age, step in bursts
        for place in range(number)
    ]


BURSTS = st.lists(st.tuples(st.integers(1, 300), AGES, STEPS), min_size=1, max_size=6).map(
    # About 100 to 900 records.
    lambda bursts: [(100, 5_000_000, 3_000), *bursts][: 6 if len(bursts) < 4 else 4]
)
WORLDS = st.fixed_dictionaries(
    {
        "roles": st.sampled_from([ROLES, ROLES, ROLES, ROLES - {SEARCH_ROLE}]),
        "sort_contexts": st.sampled_from([frozenset(CONTEXTS), frozenset({"customer"})]),
        "other_sorts": st.sampled_from(["ignore", "refuse"]),
        "company_search": st.sampled_from(COMPANY_SEARCHES),
        "search_window": st.sampled_from([None, WINDOW]),
        "index_lag_seconds": st.sampled_from([0.0, 0.0, 5.0, 60.0, 500.0]),
        "replicas": st.integers(1, 3),
        "list_order": st.sampled_from(["scattered", "updated"]),
        "lists_show_deleted": st.booleans(),
        "shows_links": st.booleans(),
        "page_size_limit": st.sampled_from([None, None, None, 40]),
        "clock_offset_seconds": st.sampled_from([0.0, 0.0, -300.0, 300.0]),
    }
)
PLACES = st.floats(0, 1, exclude_max=True)
EVENTS = st.lists(
    st.tuples(st.integers(1, 80), st.sampled_from(MOVES), st.sampled_from(TABLES), PLACES),
    max_size=30,
)


class World:
    """A mock whose records move before its requests, and whose clock goes on at each of them."""

    def __init__(self, server, events, clock, pace: float):
        self.server, self.events, self.clock, self.pace = server, events, clock, pace
        self.added = 0
        server.before_answer = self.go_on

    def go_on(self, _request) -> None:
        self.clock.move(self.pace)
        for at, kind, table, place in self.events:
            if at == len(self.server.requests):
                self.move(kind, table, place)

    def move(self, kind: str, table: str, place: float) -> None:
        """Move one record, or up to 150 at once, chosen by their place in search or the list."""
        store = self.server.store
        by_time = sorted(
            (record["attributes"]["updatedAt"], record_id)
            for record_id, record in store.records(table).items()
        )
        ids = store.listed(table) if place < 0.3 else [record_id for _, record_id in by_time]
        if not ids:
            return
        first = int(place * len(ids))
        if kind == "add":
            self.added += 1
            record = {**store.records(table)[ids[first]], "id": f"added{self.added:019x}"}
            store.put(table, record)
            store.change(table, record["id"], deleted=False, name="Added")
        elif kind in ("change", "burst"):
            for record_id in ids[first : first + (150 if kind == "burst" else 1)]:
                store.change(table, record_id, name=f"Changed at {len(self.server.requests)}")
        else:
            getattr(store, kind)(table, ids[first])


def sync_until_done(server, destination, crashes: list) -> None:
    """Run a sync that crashes as described, and another one that does not."""
    for kind, number in crashes:
        if kind == "killed":
            destination.upserts_left = number * 10
        else:
            server.order(Fault(kind, after=len(server.requests) + number))
        with contextlib.suppress(Killed, connector.KustomerError):
            sync(server, destination, retry_attempts="0", **SMALL_PAGES)
        destination.upserts_left = 10**9
        server.clear_faults()
    sync(server, destination, **SMALL_PAGES)


def assert_nothing_is_lost(server, destination, table: str) -> None:
    """Fail if a row is missing, old or wrongly alive, and no warning says that this may be."""
    warnings = [text for text in destination.warnings if text.startswith(f"{table}: ")]
    live, source, known = (
        destination.live(table),
        source_rows(server, table),
        server.store.records(table),
    )
    missing = {row_id for row_id, row in source.items() if not is_right(live.get(row_id), row)}
    missing -= server.behaviour.hidden
    assert not missing or any("miss" in text for text in warnings), (table, len(missing))
    # Nothing reports a record that was erased.
    dead = (live.keys() - source.keys()) & known.keys() - server.behaviour.hidden
    shown = SEARCH_ROLE in server.behaviour.roles and (
        table == "messages" or server.behaviour.company_search == "knows"
    )
    assert not dead or warnings or not shown, (table, len(dead))


@given(
    behaviour=WORLDS,
    bursts=st.tuples(BURSTS, BURSTS),
    hidden=st.sampled_from([0, 0, 0, 1, 3]),
    events=EVENTS,
    later_events=EVENTS,
    pace=st.sampled_from([0.0, 0.6, 20.0]),
    crashes=st.lists(
        st.tuples(st.sampled_from(["reset", "503", "killed"]), st.integers(0, 40)), max_size=2
    ),
)
def test_nothing_is_lost_without_a_warning_and_no_cursor_moves_backwards(
    clock, behaviour, bursts, hidden, events, later_events, pace, crashes
):
    move_to_noon(clock)
    destination = FragileDestination()
    offset, records = behaviour["clock_offset_seconds"], {}
    for table, its_bursts in zip(TABLES, bursts):
        records.update(bare_records(table, spread(its_bursts, offset)))
    with contextlib.ExitStack() as stack:
        for name, value in (("op", destination), ("__CHECKPOINT_EVERY_ROWS", 100)):
            stack.enter_context(patching.patch.object(connector, name, value))
        if behaviour["search_window"]:
            stack.enter_context(patching.patch.object(connector, "__RESULT_MAX_RECORDS", WINDOW))
        server = stack.enter_context(mock(records, **behaviour))
        server.behaviour.hidden = set(list(records["messages"])[:hidden])
        World(server, events, clock, pace)
        sync_until_done(server, destination, crashes)
        # Incremental, with the same crashes.
        server.exchanges.clear()
        World(server, later_events, clock, pace)
        sync_until_done(server, destination, crashes)
        # Quiet, and late enough that no record is within ten minutes of either clock.
        server.before_answer = None
        clock.move(1_200)
        sync(server, destination, **SMALL_PAGES)
        for table in TABLES:
            assert_nothing_is_lost(server, destination, table)

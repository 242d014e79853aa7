"""Records change, appear and disappear between the requests of a sync."""

from datetime import datetime, timedelta, timezone
from unittest import mock as patching

import pytest
from hypothesis import given
from hypothesis import strategies as st

import connector
from mock_server import make_records
from mock_server.behaviour import ROLES, SEARCH_ROLE
from tests.expected import is_right, source_rows
from tests.support import Destination, bare_records, mock, sync

NUMBER = 130
TABLES = ("customers", "companies", "messages")
SPARE = make_records(customers=200, companies=200, messages=200, seed=3)
BRANDS = make_records(brands=3)
MOVES = ("change", "change", "add", "delete", "erase")


def records_with_ties(ties: list) -> dict:
    """Return records that share a few values of updatedAt, given as offsets in milliseconds."""
    start = datetime.now(timezone.utc) - timedelta(days=20)
    moments = [start + timedelta(milliseconds=tie) for tie in ties]
    times = [moments[place % len(ties)] for place in range(NUMBER)]
    tied = (bare_records(table, times) for table in TABLES)
    return {**BRANDS, **{table: records for one in tied for table, records in one.items()}}


def move(store, kind: str, table: str, place: int) -> None:
    """Change, add, delete or erase one record, chosen by its position in the list or in search."""
    if kind == "add":
        record = list(SPARE[table].values())[place % len(SPARE[table])]
        store.put(table, record)
        store.change(table, record["id"])
        return
    ids = store.listed(table) if place % 2 else [record_id for _, record_id in store.keys(table)]
    record_id = ids[place % len(ids)]
    if kind == "change":
        store.change(table, record_id, name=f"Changed {place}")
    elif kind == "delete":
        store.delete(table, record_id)
    else:
        store.erase(table, record_id)


def assert_equal_except_for_undetectable_deletions(destination: Destination, server) -> None:
    for table in TABLES:
        live, source = destination.live(table), source_rows(server, table)
        for row_id, row in source.items():
            assert is_right(live.get(row_id), row), (table, row_id)
        # Lists do not include deleted records, and nothing reports erased records.
        known = server.store.records(table)
        for row_id in live.keys() - source.keys():
            assert row_id not in known or table == "companies" or not searchable(server)


def searchable(server) -> bool:
    return SEARCH_ROLE in server.behaviour.roles


@given(
    ties=st.lists(st.integers(0, 40), min_size=1, max_size=30),
    size=st.sampled_from(["20", "25", "100"]),
    moves=st.lists(
        st.tuples(
            st.integers(1, 40),
            st.sampled_from(MOVES),
            st.sampled_from(TABLES),
            st.integers(0, 200),
        ),
        max_size=25,
    ),
    with_search=st.booleans(),
)
def test_every_record_arrives_with_its_current_values_if_records_change_meanwhile(
    ties, size, moves, with_search
):
    roles = ROLES if with_search else ROLES - {SEARCH_ROLE}
    destination = Destination()
    with mock(records_with_ties(ties), roles=roles) as server:

        def move_before(request):
            for at, kind, table, place in moves:
                if at == len(server.requests):
                    move(server.store, kind, table, place)

        server.before_answer = move_before
        with patching.patch.object(connector, "op", destination):
            sync(server, destination, max_records_per_page=size)
            server.before_answer = None
            sync(server, destination, max_records_per_page=size)
        assert_equal_except_for_undetectable_deletions(destination, server)


@pytest.mark.parametrize("size", ["20", "100"])
def test_a_record_that_changes_while_its_page_is_read_arrives_with_the_next_sync(
    size, destination
):
    with mock(records_with_ties(list(range(30)))) as server:

        def change_what_is_read(request):
            if request.method == "POST" and len(moved) < 40:
                _, record_id = server.store.keys("messages")[len(moved)]
                moved.append(record_id)
                server.store.change("messages", record_id, status="moved")

        moved: list = []
        server.before_answer = change_what_is_read
        sync(server, destination, max_records_per_page=size)
        server.before_answer = None
        sync(server, destination, max_records_per_page=size)
        assert moved
        assert_equal_except_for_undetectable_deletions(destination, server)


@pytest.mark.parametrize("table", TABLES)
def test_no_record_is_missed_if_records_are_deleted_at_each_page_boundary(table, destination):
    roles = ROLES - {SEARCH_ROLE}
    with mock(records_with_ties([0, 1, 2]), roles=roles) as server:

        def erase_at_the_boundary(request):
            page = (request.params.get("page"), request.params.get("pageSize"))
            if request.path == f"/v1/{table}" and page not in requested:
                requested.add(page)
                boundary = (int(page[0]) - 1) * int(page[1])
                server.store.erase(table, server.store.listed(table)[boundary])

        requested: set = set()
        server.before_answer = erase_at_the_boundary
        sync(server, destination, max_records_per_page="20")
        server.before_answer = None
        sync(server, destination, max_records_per_page="20")
        assert_equal_except_for_undetectable_deletions(destination, server)

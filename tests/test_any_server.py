"""With any undocumented behavior, and while records change, every record arrives with its current
values, or a warning reports that it may be missing."""

from unittest import mock as patching

from hypothesis import given
from hypothesis import strategies as st

import connector
from mock_server.behaviour import CONTEXTS, ROLES, SEARCH_ROLE
from tests.expected import source_rows
from tests.support import Destination, mock, sync
from tests.test_changing_records import MOVES, TABLES, move, records_with_ties

BEHAVIOURS = st.fixed_dictionaries(
    {
        "roles": st.sampled_from([ROLES, ROLES, ROLES, ROLES - {SEARCH_ROLE}]),
        "sort_contexts": st.sampled_from([frozenset(CONTEXTS), frozenset({"customer"})]),
        "other_sorts": st.sampled_from(["ignore", "refuse"]),
        "unsorted_order": st.sampled_from(["scattered", "insertion"]),
        "search_window": st.sampled_from([None, 10_000]),
        "list_order": st.sampled_from(["scattered", "updated"]),
        "lists_show_deleted": st.booleans(),
        "page_size_limit": st.sampled_from([None, None, 25, 50]),
        "page_size_shown": st.sampled_from(["given", "asked", "absent"]),
        "shows_links": st.booleans(),
        "shows_total": st.booleans(),
        "clock_offset_seconds": st.sampled_from([0.0, -900.0, 900.0]),
    }
)


@given(
    behaviour=BEHAVIOURS,
    ties=st.lists(st.integers(0, 2000), min_size=1, max_size=60),
    size=st.sampled_from(["20", "25", "100", "500"]),
    moves=st.lists(
        st.tuples(
            st.integers(1, 60),
            st.sampled_from(MOVES),
            st.sampled_from(TABLES),
            st.integers(0, 200),
        ),
        max_size=25,
    ),
)
def test_every_record_arrives_with_its_current_values_or_a_warning_reports_it(
    behaviour, ties, size, moves
):
    destination = Destination()
    with mock(records_with_ties(ties), **behaviour) as server:

        def move_before(request):
            for at, kind, table, place in moves:
                if at == len(server.requests):
                    move(server.store, kind, table, place)

        server.before_answer = move_before
        with patching.patch.object(connector, "op", destination):
            sync(server, destination, max_records_per_page=size)
            server.before_answer = None
            sync(server, destination, max_records_per_page=size)
        assert len(server.requests) < 600
        for table in TABLES:
            warnings = [w for w in destination.warnings if w.startswith(f"{table}: ")]
            live, source = destination.live(table), source_rows(server, table)
            missing = {row_id for row_id, row in source.items() if live.get(row_id) != row}
            assert not missing or any("missed" in warning for warning in warnings)
            dead = server.store.records(table).keys() & live.keys() - source.keys()
            assert not dead or warnings or table == "companies"

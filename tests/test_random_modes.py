"""Whatever happened to earlier syncs, two quiet ones, a day apart, find every change and deletion."""

import contextlib
import time
from datetime import datetime, timedelta, timezone
from unittest import mock as patching

from hypothesis import given
from hypothesis import strategies as st

import connector
from mock_server import Fault
from mock_server.behaviour import ROLES, SEARCH_ROLE
from tests.expected import assert_same, source_rows
from tests.support import bare_records, mock, move_to_noon, sync
from tests.test_random_worlds import SMALL_PAGES, FragileDestination, Killed

TABLES = ("messages", "companies")
# What happens to a sync. "full" is a sync that is not incremental.
MODES = ("normal", "refused", "outage", "empty", "full", "reset", "killed")
STEPS = st.lists(
    # A mode, after how many requests it begins, hours until the next sync, and changes meanwhile.
    st.tuples(
        st.sampled_from(MODES),
        st.integers(0, 30),
        st.sampled_from([0, 1, 13, 30, 170]),
        st.integers(0, 4),
    ),
    min_size=2,
    max_size=6,
)


def run(server, destination, mode: str, number: int) -> None:
    """Run one sync in a mode, whether it succeeds or not."""
    rules, settings = server.behaviour, dict(SMALL_PAGES, retry_attempts="0")
    rules.roles = ROLES - {SEARCH_ROLE} if mode == "refused" else ROLES
    rules.search_is_empty = mode == "empty"
    if mode == "full":
        settings["enable_incremental_sync"] = "false"
    elif mode == "outage":
        server.order(Fault("503", path="/search"))
    elif mode == "reset":
        server.order(Fault("reset", after=len(server.requests) + number))
    elif mode == "killed":
        destination.upserts_left = number * 8
    already = len(server.requests)
    with contextlib.suppress(Killed, connector.KustomerError):
        sync(server, destination, **settings)
    asked = {request.path for request in server.requests[already:]}
    assert mode != "outage" or "/v1/messages" not in asked
    destination.upserts_left = 10**9
    server.clear_faults()


def change_some(server, number: int) -> None:
    for table in TABLES:
        live = server.store.listed(table)
        for record_id in live[:number]:
            server.store.change(table, record_id, name=f"Changed at {time.time()}")
        for record_id in live[number : number + number // 2]:
            server.store.delete(table, record_id)


@given(
    steps=STEPS,
    messages=st.sampled_from([90, 180, 260]),
    companies=st.sampled_from([90, 101, 250]),
    knows=st.booleans(),
)
def test_two_quiet_syncs_make_up_for_whatever_happened_before(
    clock, steps, messages, companies, knows
):
    move_to_noon(clock)
    begin = datetime.fromtimestamp(time.time(), timezone.utc) - timedelta(days=50)
    numbers = {"messages": messages, "companies": companies}
    records = {}
    for table, number in numbers.items():
        times = [begin + timedelta(hours=4 * place) for place in range(number)]
        records.update(bare_records(table, times))
    destination = FragileDestination()
    with contextlib.ExitStack() as stack:
        for name, value in (("op", destination), ("__CHECKPOINT_EVERY_ROWS", 60)):
            stack.enter_context(patching.patch.object(connector, name, value))
        rules = {"company_search": "knows" if knows else "finds_nothing"}
        server = stack.enter_context(mock(records, **rules))
        for mode, number, hours, changes in steps:
            run(server, destination, mode, number)
            clock.move(hours * 3600 + 5)
            change_some(server, changes)
            clock.move(5)
        for seconds in (1_200, 86_400):
            clock.move(seconds)
            run(server, destination, "normal", 0)
        for table in TABLES:
            live, source = destination.live(table), source_rows(server, table)
            assert_same(table, {row_id: live[row_id] for row_id in source}, source)
            if table == "messages" or knows:
                assert live.keys() == source.keys()

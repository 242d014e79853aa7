"""Whole syncs over a network that fails."""

import dataclasses

import pytest

import connector
from mock_server import Fault, make_records
from mock_server.faults import KINDS
from tests.expected import assert_mirrors
from tests.support import mock, searches, sync

RECORDS = make_records(customers=400, companies=100, brands=3, messages=900, same_moment=100)
BREAKING = [kind for kind in KINDS if kind != "latency"]


@pytest.fixture
def short_timeouts(monkeypatch):
    """Shorten the request timeout, but keep it long enough for a slow machine."""
    parse = connector.validate_configuration

    def parse_with_short_timeout(configuration):
        return dataclasses.replace(parse(configuration), request_timeout_seconds=0.2)

    monkeypatch.setattr(connector, "validate_configuration", parse_with_short_timeout)


def test_a_sync_succeeds_when_one_in_twenty_responses_is_a_fault(destination, short_timeouts):
    with mock(RECORDS) as server:
        for kind in BREAKING:
            server.order(Fault(kind, rate=0.05, seconds=60))
        sync(server, destination, max_records_per_page="20", retry_attempts="10")
        assert_mirrors(destination, server)
        outcomes = {exchange.outcome for exchange in server.exchanges}
    assert outcomes >= set(BREAKING)


@pytest.mark.parametrize("kind", BREAKING)
def test_a_persistent_fault_of_search_fails_the_table_and_the_next_sync_resumes(
    kind, destination, short_timeouts, waits
):
    causes = {
        "429": "returned 429",
        "timeout": "127.0.0.1: the request timed out",
        "reset": "127.0.0.1: the connection broke",
        "truncated": "status 200",
        "html": "status 200",
        "timed_out": "meta.timed_out",
    }
    with mock(RECORDS) as server:
        # The first search of messages is the fifth request.
        server.order(Fault(kind, seconds=60, after=5, path="/v1/customers/search"))
        with pytest.raises(connector.KustomerError) as error:
            sync(server, destination, retry_attempts="1")
        message = str(error.value)
        assert "POST /v1/customers/search " in message
        assert causes.get(kind, f"status {kind}") in message
        # An outage of search must not turn into a walk over the list.
        assert "/v1/messages" not in {request.path for request in server.requests}
        assert {"customers", "companies", "brands"} <= destination.state["last_sync_time"].keys()
        assert "messages" not in destination.state["last_sync_time"]
        if kind != "429":
            assert "enable_incremental_sync" in message and not destination.warnings
        server.clear_faults()
        sync(server, destination)
        assert_mirrors(destination, server)
    assert all(0 <= wait <= 120 for wait in waits)


def test_a_sync_waits_for_the_end_of_each_rate_limit_window(destination, waits):
    with mock(RECORDS, search_limit=3, window_seconds=60.0) as server:
        sync(server, destination, max_records_per_page="100")
        assert_mirrors(destination, server)
        refused = [exchange for exchange in server.exchanges if exchange.outcome == "429"]
        answered = len(searches(server)) - len(refused)
    # Each of four threads is refused at most once per window, because none sends a request during
    # a wait.
    assert answered >= 9 and 2 <= len(refused) <= 4 * (answered // 3 + 1)
    assert max(waits) <= 65 and min(waits) > 0

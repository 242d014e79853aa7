"""Whole syncs over a network that fails."""

import dataclasses

import pytest

import connector
from mock_server import Fault, make_records
from mock_server.faults import KINDS
from tests.expected import assert_mirrors
from tests.support import mock, sync

RECORDS = make_records(customers=400, companies=100, brands=3, messages=900, same_moment=100)
BREAKING = [kind for kind in KINDS if kind != "latency"]


@pytest.fixture
def short_timeouts(monkeypatch):
    """Shorten the request timeout, but keep it long enough for a slow machine. A response may
    take two timeouts in all."""
    parse = connector.validate_configuration

    def parse_with_short_timeout(configuration):
        return dataclasses.replace(parse(configuration), request_timeout_seconds=0.2)

    monkeypatch.setattr(connector, "validate_configuration", parse_with_short_timeout)
    monkeypatch.setattr(connector, "__RESPONSE_MAX_TIMEOUTS", 2)


def test_a_sync_succeeds_when_one_in_twenty_responses_is_a_fault(destination, short_timeouts):
    with mock(RECORDS) as server:
        for kind in BREAKING:
            server.order(Fault(kind, rate=0.05, seconds=60))
        sync(server, destination, max_records_per_page="20", retry_attempts="10")
        assert_mirrors(destination, server)
        outcomes = {exchange.outcome for exchange in server.exchanges}
    assert outcomes >= set(BREAKING)


@pytest.mark.parametrize("kind", BREAKING)
def test_a_persistent_fault_ends_the_sync_with_its_cause_and_the_next_sync_resumes(
    kind, destination, short_timeouts, waits
):
    causes = {
        "429": "returned 429",
        "timeout": "127.0.0.1: the request timed out",
        "reset": "127.0.0.1: the connection broke",
        "truncated": "not a JSON object",
        "html": "not a JSON object",
        "timed_out": "meta.timed_out",
        "drip": "127.0.0.1: the request timed out",
    }
    with mock(RECORDS) as server:
        server.order(Fault(kind, seconds=60, after=5, path="/v1/messages"))
        server.order(Fault(kind, seconds=60, after=5, path="/v1/customers/search"))
        with pytest.raises(connector.KustomerError) as error:
            sync(server, destination, retry_attempts="1")
        sent = [exchange for exchange in server.exchanges if exchange.outcome == kind]
        server.clear_faults()
        sync(server, destination)
        assert_mirrors(destination, server)
    # Search fails first, and then the list that is read instead.
    path = "POST /v1/customers/search" if kind == "429" else "GET /v1/messages"
    assert f"{path} " in str(error.value)
    assert causes.get(kind, f"status {kind}") in str(error.value)
    assert len(sent) == 4 or kind == "429"
    assert all(0 <= wait <= 120 for wait in waits)


def test_a_sync_waits_for_the_end_of_each_rate_limit_window(destination, monkeypatch):
    clock = [connector.time.time()]
    monkeypatch.setattr(connector.time, "time", lambda: clock[0])
    monkeypatch.setattr(
        connector, "__wait", lambda _, seconds, __: clock.__setitem__(0, clock[0] + seconds)
    )
    with mock(RECORDS, search_limit=10, window_seconds=60.0) as server:
        sync(server, destination, max_records_per_page="20")
        assert_mirrors(destination, server)
        refused = [exchange for exchange in server.exchanges if exchange.outcome == "429"]
        searches = [r for r in server.requests if r.method == "POST"]
    windows = (len(searches) - len(refused) - 1) // 10
    # Each reader is refused at most once per window, because no requests are sent during a wait.
    assert windows <= len(refused) <= 4 * windows

"""Lists leave a share of the organization's rate limit to other clients."""

import pytest

import connector
from mock_server import make_records
from tests.expected import assert_mirrors
from tests.support import mock, sync

RECORDS = make_records(customers=20, companies=900, brands=2, messages=20)


def test_lists_wait_for_the_reset_if_less_than_a_tenth_of_the_limit_is_left(destination, waits):
    with mock(RECORDS, org_limit=10, window_seconds=60, reset_on_every_answer=True) as server:
        sync(server, destination)
        assert_mirrors(destination, server)
        refused = [exchange for exchange in server.exchanges if exchange.outcome == "429"]
    # The tenth request uses up the limit of the minute, so the next one waits for the reset.
    assert waits and all(50 < seconds <= 61 for seconds in waits)
    assert refused == []


@pytest.mark.parametrize(("share", "left", "has_waited"), [("90", 9, True), ("90", 10, False)])
@pytest.mark.parametrize("reset", [True, False])
def test_lists_wait_only_if_less_than_the_reserved_share_is_left(
    share, left, has_waited, reset, destination, waits
):
    def set_headers(request, answer):
        headers = {"x-ratelimit-limit": "100", "x-ratelimit-remaining": str(left)}
        if reset:
            headers["x-ratelimit-reset"] = "7"
        return answer._replace(headers=headers)

    with mock(RECORDS) as server:
        server.rewrite = set_headers
        sync(server, destination, api_utilization_percentage=share)
        assert_mirrors(destination, server)
        lists = [request for request in server.requests if request.method == "GET"]
    # There is no wait before the first list request or after the last one.
    expected = [7 if reset else 5] * (len(lists) - 1) if has_waited else []
    assert waits == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize(
    ("share", "limit", "left", "has_waited"),
    [
        ("90", "1000", "0", True),
        ("100", "1000", "0", False),
        ("100", "1000", "-3", False),
        ("90", "-1", "-1", False),
    ],
)
def test_lists_never_wait_at_a_utilization_of_100_percent_or_without_a_limit(
    share, limit, left, has_waited, destination, waits
):
    def set_headers(request, answer):
        headers = {"x-ratelimit-limit": limit, "x-ratelimit-remaining": left}
        return answer._replace(headers=headers)

    with mock(RECORDS) as server:
        server.rewrite = set_headers
        sync(server, destination, api_utilization_percentage=share)
        assert_mirrors(destination, server)
    assert bool(waits) is has_waited


def test_searches_do_not_wait_for_the_limit_of_the_organization(destination, waits):
    records = make_records(messages=300, same_moment=0)
    with mock(records, search_limit=10**6) as server:

        def use_up(request, answer):
            headers = {"x-ratelimit-limit": "100", "x-ratelimit-remaining": "1"}
            return answer._replace(headers=headers) if request.method == "POST" else answer

        server.rewrite = use_up
        sync(server, destination, max_records_per_page="20")
        assert_mirrors(destination, server)
    assert waits == []


@pytest.mark.parametrize("headers", [{}, {"x-ratelimit-limit": "x", "x-ratelimit-remaining": "0"}])
def test_lists_do_not_wait_if_responses_report_no_valid_limit(headers, destination, waits):
    with mock(RECORDS) as server:
        server.rewrite = lambda request, answer: answer._replace(headers=headers)
        sync(server, destination)
        assert_mirrors(destination, server)
    assert waits == []


@pytest.mark.parametrize("remaining", ["0", "-5"])
def test_lists_wait_if_nothing_is_left_of_the_limit(remaining, destination, waits):
    headers = {"x-ratelimit-limit": "1000", "x-ratelimit-remaining": remaining}
    with mock(RECORDS) as server:
        server.rewrite = lambda request, answer: answer._replace(headers=headers)
        sync(server, destination)
        lists = [request for request in server.requests if request.method == "GET"]
    assert waits == pytest.approx([5] * (len(lists) - 1), abs=0.5)


def test_retries_of_a_list_wait_like_its_first_request(destination, waits):
    headers = {
        "x-ratelimit-limit": "1000",
        "x-ratelimit-remaining": "0",
        "x-ratelimit-reset": "100",
    }
    with mock(RECORDS) as server:

        def fail(request, answer):
            is_list = request.path == "/v1/companies"
            return answer._replace(status=500, headers=headers) if is_list else answer

        server.rewrite = fail
        with pytest.raises(connector.KustomerError):
            sync(server, destination, retry_attempts="3")
    # The backoff is part of these waits: three before a retry, one before the next list.
    assert sum(waits) == pytest.approx(4 * 100, abs=2)

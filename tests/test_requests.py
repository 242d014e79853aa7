"""Single requests: waits, retries and error messages."""

import dataclasses
import errno
import socket
import ssl
import threading
import time
from email.utils import formatdate

import pytest

import connector
from mock_server import Fault
from tests.expected import assert_mirrors
from tests.support import bare_records, even_times, mock, sync

PATH = "/v1/companies"


def send(server, **settings) -> dict:
    return connector.execute_api_request(
        PATH, server.api_key, {"page": 1}, server.configuration(**settings)
    )


def client_with_timeout(server, seconds, **settings):
    """Return a client with a timeout that may be shorter than settings allow."""
    checked = connector.validate_configuration(server.configuration(**settings))
    return connector.open_client(dataclasses.replace(checked, request_timeout_seconds=seconds))


def failure_of(server, **settings) -> str:
    with pytest.raises(connector.KustomerError) as error:
        send(server, **settings)
    return str(error.value)


def test_a_response_is_returned_as_parsed_json():
    with mock({}) as server:
        assert send(server)["data"] == []
        (request,) = server.requests
    assert request.headers["Authorization"] == f"Bearer {server.api_key}"
    assert request.headers["Accept"] == "application/json"
    assert request.headers["User-Agent"] == f"fivetran-kustomer-connector/{connector.VERSION}"


@pytest.mark.parametrize(
    "kind", ["500", "502", "503", "reset", "truncated", "html", "timed_out", "timeout"]
)
def test_temporary_failures_are_retried_with_full_jitter_until_success(kind, waits):
    # A response without a fault has to arrive in time even on a slow machine.
    timeout = 0.5 if kind == "timeout" else 30
    with mock({}) as server, client_with_timeout(server, timeout) as client:
        server.order(Fault(kind, times=3, seconds=60))
        answer = connector.execute_api_request(PATH, server.api_key, client=client)
        assert answer["data"] == []
        assert len(server.requests) == 4
    assert len(waits) == 3
    assert all(0 <= wait <= 2**number for number, wait in enumerate(waits))


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("500", "status 500"),
        ("502", "status 502"),
        ("503", "status 503"),
        ("reset", "127.0.0.1: the connection broke"),
        ("timeout", "127.0.0.1: the request timed out"),
        ("truncated", "status 200 with a response that is not a JSON object"),
        ("html", "status 200 with a response that is not a JSON object"),
        ("timed_out", "status 200 with a partial response (meta.timed_out)"),
    ],
)
def test_a_persistent_fault_fails_after_all_retries_with_its_cause(kind, cause):
    timeout = 0.1 if kind == "timeout" else 30
    with mock({}) as server, client_with_timeout(server, timeout, retry_attempts="2") as client:
        server.order(Fault(kind, seconds=60))
        with pytest.raises(connector.KustomerError) as error:
            connector.execute_api_request(PATH, server.api_key, client=client)
        message = str(error.value)
        assert len(server.requests) == 3
    assert message.startswith(f"GET {PATH} failed 3 times. The last error was: {cause}")


def test_retry_attempts_of_zero_means_no_retries(waits):
    with mock({}) as server:
        server.order(Fault("500"))
        assert f"GET {PATH} failed: status 500." in failure_of(server, retry_attempts="0")
    assert not waits


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 405, 409, 413, 422])
def test_errors_that_retrying_cannot_fix_are_not_retried(status, waits):
    with mock({}) as server:
        server.rewrite = lambda request, answer: answer._replace(
            status=status,
            payload={"errors": [{"code": "bad", "title": f"No\n{server.api_key}", "detail": "x"}]},
        )
        message = failure_of(server)
        assert len(server.requests) == 1
    reason = "a redirect" if status == 301 else "bad - No (key) - x"
    assert message.startswith(f"GET {PATH} was refused with {status}: {reason}")
    assert not waits


@pytest.mark.parametrize(
    "payload", [None, [], "x", {"errors": None}, {"errors": [None]}, {"errors": "x"}]
)
def test_an_error_body_of_any_shape_is_handled(payload):
    with mock({}) as server:
        server.rewrite = lambda request, answer: answer._replace(status=400, payload=payload)
        assert "was refused with 400: no reason given" in failure_of(server)


NOW = 1_790_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-ratelimit-reset": str(int(NOW) + 40)}, 40),
        ({"x-ratelimit-reset": str(int(NOW) * 1000 + 40_500)}, 40.5),
        ({"x-ratelimit-reset": "40"}, 40),
        ({"x-ratelimit-reset": "7.5"}, 7.5),
        ({"Retry-After": "25"}, 25),
        ({"Retry-After": "25", "x-ratelimit-reset": "40"}, 25),
        ({"Retry-After": formatdate(NOW + 30, usegmt=True)}, 30),
        ({"Retry-After": "rubbish", "x-ratelimit-reset": "40"}, 40),
        ({"Retry-After": "0", "x-ratelimit-reset": "40"}, 40),
        ({"x-ratelimit-reset": str(int(NOW) + 100_000)}, 120),
        ({"Retry-After": "999999"}, 120),
    ],
)
def test_after_a_429_the_wait_follows_the_headers(headers, seconds, waits, monkeypatch):
    monkeypatch.setattr(connector.time, "time", lambda: NOW)
    with mock({}) as server:
        server.order(Fault("429", times=1, headers=headers))
        send(server, retry_attempts="0")
    (wait,) = waits
    assert seconds <= wait <= min(seconds * 1.05, 120)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-ratelimit-reset": str(int(NOW) - 60)},
        {"x-ratelimit-reset": "soon"},
        {"x-ratelimit-reset": "-5"},
        {"x-ratelimit-reset": "nan"},
        {"x-ratelimit-reset": "9" * 400},
        {"Retry-After": "0"},
        {"Retry-After": formatdate(NOW - 30, usegmt=True)},
        {"Retry-After": "Sun, 99 Foo 2026"},
    ],
)
def test_a_429_without_usable_headers_is_retried_with_backoff(headers, waits, monkeypatch):
    monkeypatch.setattr(connector.time, "time", lambda: NOW)
    with mock({}) as server:
        server.order(Fault("429", times=3, headers=headers))
        send(server, retry_attempts="0")
    assert len(waits) == 3
    assert all(0 <= wait <= 2**number for number, wait in enumerate(waits))


def test_waiting_for_the_rate_limit_ends_after_15_minutes_in_total(waits):
    with mock({}) as server:
        server.order(Fault("429", headers={"Retry-After": "100"}))
        message = failure_of(server)
    assert f"GET {PATH} returned 429 (rate limit) for 15 minutes." in message
    assert sum(waits) == pytest.approx(900)


def test_all_readers_together_wait_at_most_15_minutes_for_the_rate_limit(destination, waits):
    with mock(bare_records("messages", even_times(3000))) as server:
        server.order(Fault("429", after=8, path="/search", headers={"Retry-After": "100"}))
        with pytest.raises(connector.SyncStoppedError, match="429 .rate limit. for 15 minutes"):
            sync(server, destination, max_records_per_page="100")
    # A response that arrives during the first wait starts the count again.
    assert 899 < sum(waits) < 901 + 105


def test_the_backoff_without_a_reset_grows_until_a_request_succeeds(destination, monkeypatch):
    clock, waited = [time.time()], []

    def wait(_client, seconds, _reason):
        waited.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(connector.time, "time", lambda: clock[0])
    monkeypatch.setattr(connector, "__wait", wait)
    monkeypatch.setattr(connector.random, "uniform", lambda low, high: high)
    rules = {"search_limit": 20, "window_seconds": 60.0, "rate_limit_reset": "absent"}
    with mock(bare_records("messages", even_times(1000)), **rules) as server:
        sync(server, destination, max_records_per_page="20")
        assert_mirrors(destination, server)
        refused = [e for e in server.exchanges if e.outcome == "429"]
    windows = waited.count(1.0)
    # 1 + 2 + 4 + 8 + 16 + 32 seconds are longer than a window.
    assert windows >= 2 and set(waited) <= {1.0, 2.0, 4.0, 8.0, 16.0, 32.0}
    # Each of four readers may be refused before and after each of the waits.
    assert len(refused) <= windows * 4 * (1 + 6)


@pytest.mark.parametrize("offset", [-300.0, 300.0])
def test_the_reset_is_compared_with_the_clock_of_the_server(offset, waits):
    rules = {"org_limit": 1, "window_seconds": 60.0, "clock_offset_seconds": offset}
    with mock({}, **rules) as server:
        send(server)
        with pytest.raises(connector.SyncStoppedError):
            send(server)
    # After each wait for the rate limit, the utilization is waited for. The last pair is cut short
    # after fifteen minutes.
    assert all(30 < wait < 70 for wait in waits[:-2])


def test_a_response_that_is_too_large_for_the_memory_fails(monkeypatch):
    monkeypatch.setattr(connector, "__RESPONSE_MAX_BYTES", 500_000)
    with mock({}) as server:
        server.rewrite = lambda request, answer: answer._replace(payload={"data": ["x" * 10**6]})
        message = failure_of(server, retry_attempts="0")
    assert "failed: a response of more than 500000 bytes." in message
    assert "decrease max_records_per_page" in message


def raw_server(response: bytes) -> str:
    """Return the address of a server that sends these bytes to its first client."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with listener, listener.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(response)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nContent-Encoding: gzip\r\n\r\nnot gzip!",
        b"not HTTP",
    ],
    ids=["chunk", "gzip", "other protocol"],
)
def test_a_response_that_is_not_valid_http_is_an_error_of_the_connector(response):
    configuration = {"base_url": raw_server(response), "retry_attempts": "0"}
    with pytest.raises(connector.KustomerError, match=f"GET {PATH} failed: 127.0.0.1: the "):
        connector.execute_api_request(PATH, "key", {}, configuration)


@pytest.mark.parametrize("body", [b"", b'{"message":"Unauthorized"}'])
def test_a_refusal_without_an_error_from_kustomer_names_the_key_as_a_possible_cause(body):
    response = b"HTTP/1.1 401 X\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    configuration = {"base_url": raw_server(response), "retry_attempts": "0"}
    with pytest.raises(connector.KustomerError, match="the API key is invalid or lacks a role"):
        connector.execute_api_request(PATH, "key", {}, configuration)


def test_rate_limits_do_not_use_up_retries():
    with mock({}) as server:
        server.order(Fault("429", times=6, headers={"Retry-After": "1"}))
        server.order(Fault("500", times=2, after=6))
        assert send(server, retry_attempts="2")["data"] == []
        assert len(server.requests) == 9


def test_requests_succeed_with_every_format_of_the_rate_limit_reset(monkeypatch):
    for reset in (
        "epoch",
        "epoch_ms",
        "seconds",
        "past",
        "absent",
        "rubbish",
        "retry_after",
        "date",
    ):
        with mock({}, org_limit=2, window_seconds=60, rate_limit_reset=reset) as server:
            clock = [time.time()]
            monkeypatch.setattr(connector.time, "time", lambda clock=clock: clock[0])
            monkeypatch.setattr(
                connector,
                "__wait",
                lambda _, s, __, clock=clock: clock.__setitem__(0, clock[0] + s),
            )
            for _ in range(5):
                assert send(server)["data"] == []


def test_a_sync_uses_one_connection(destination):
    with mock({}) as server:
        connector.update(server.configuration(), {})
        assert len(server.requests) == 5 and server.connections == 1


def test_a_response_that_is_sent_byte_by_byte_fails_within_ten_timeouts():
    with mock({}) as server:
        # Each byte arrives within the timeout of 0.1 seconds, so the timeout alone never ends it.
        server.order(Fault("drip", seconds=0.05))
        server.rewrite = lambda request, answer: answer._replace(payload={"data": ["x" * 900]})
        checked = connector.validate_configuration(server.configuration(retry_attempts="0"))
        checked = dataclasses.replace(checked, request_timeout_seconds=0.1)
        with connector.open_client(checked) as client:
            started = time.monotonic()
            with pytest.raises(connector.KustomerError, match="was not complete in time"):
                connector.execute_api_request(PATH, server.api_key, client=client)
            assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        (
            "https://x.api.kustomerapp.com",
            socket.gaierror(-2, "unknown"),
            "the host name was not found",
        ),
        ("https://x.api.kustomerapp.com", ConnectionRefusedError(), "the connection was refused"),
        (
            "https://x.api.kustomerapp.com",
            OSError(errno.ENETUNREACH, "unreachable"),
            "the host could not be reached",
        ),
        (
            "https://x.api.kustomerapp.com",
            ssl.SSLCertVerificationError("self-signed"),
            "the certificate is not valid",
        ),
    ],
)
def test_a_network_error_names_the_host_and_what_failed(url, error, words, monkeypatch):
    def fail(*_arguments, **_options):
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    configuration = {"base_url": url, "retry_attempts": "0"}
    with pytest.raises(connector.KustomerError) as raised:
        connector.execute_api_request(PATH, "key", {}, configuration)
    assert f"failed: x.api.kustomerapp.com: {words}." in str(raised.value)


def test_a_refused_connection_is_reported_as_refused():
    with mock({}) as server:
        configuration = server.configuration(retry_attempts="0")
    with pytest.raises(connector.KustomerError, match="127.0.0.1: the connection was refused"):
        connector.execute_api_request(PATH, "key", {}, configuration)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("kind", ["html", "empty", "other JSON"])
def test_a_refusal_without_an_error_from_kustomer_is_retried(status, kind, waits):
    with mock({}) as server:

        def edge(request, answer):
            if len(server.requests) < 2:
                return answer._replace(
                    status=status, payload={"html": "<html>", "empty": None}.get(kind, {"a": 1})
                )
            return answer

        server.rewrite = edge
        assert send(server)["data"] == []
        server.rewrite = lambda request, answer: answer._replace(status=status, payload={"a": 1})
        assert f"status {status} without Kustomer's own error" in failure_of(server)
    assert len(waits) == 2 + 3

"""Single requests: waits, retries and error messages."""

import dataclasses
import os
import re
import socket
import ssl
import threading
import time
from email.utils import formatdate

import pytest

import connector
from mock_server import Fault
from mock_server.behaviour import RESETS
from tests.support import bare_records, even_times, mock, sync

PATH = "/v1/companies"
REFUSALS = [400, 401, 403, 404, 405, 409, 413, 422]
OWN_ERROR = {"errors": [{"code": "bad", "title": "No such thing", "detail": "x"}]}


def send(server, path=PATH, **settings) -> dict:
    return connector.execute_api_request(
        path, server.api_key, {"page": 1}, server.configuration(**settings)
    )


def client_of(server, seconds=30.0, **settings):
    """Return a client with a timeout that may be shorter than settings allow."""
    checked = connector.validate_configuration(server.configuration(**settings))
    return connector.open_client(dataclasses.replace(checked, request_timeout_seconds=seconds))


def error_of(configuration: dict) -> connector.KustomerError:
    """Return the error of a request, which must be shown with a single traceback."""
    with pytest.raises(connector.KustomerError) as raised:
        connector.execute_api_request(PATH, configuration.get("api_key", "key"), {}, configuration)
    error = raised.value
    assert error.__cause__ is None and (error.__context__ is None or error.__suppress_context__)
    return error


def failure_of(server, **settings) -> str:
    return str(error_of(server.configuration(**settings)))


def answering(status: int, payload=None, **headers):
    """Return a `rewrite` that replaces every response."""
    return lambda request, answer: answer._replace(
        status=status, payload=payload, headers={**answer.headers, **headers}
    )


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
def test_temporary_failures_are_retried_for_about_half_a_minute_until_success(kind, waits):
    # A response without a fault has to arrive in time even on a slow machine.
    timeout = 0.3 if kind == "timeout" else 30
    with mock({}) as server, client_of(server, timeout) as client:
        server.order(Fault(kind, times=3, seconds=60))
        answer = connector.execute_api_request(PATH, server.api_key, client=client)
        assert answer["data"] == []
        assert len(server.requests) == 4
    assert len(waits) == 3 and waits == sorted(waits) and waits[0] >= 3


@pytest.mark.parametrize("luck", [min, max])
def test_three_retries_span_24_to_34_seconds_and_no_single_wait_exceeds_a_minute(
    luck, waits, monkeypatch
):
    monkeypatch.setattr(connector.random, "uniform", lambda *limits: luck(limits))
    with mock({}) as server:
        server.order(Fault("503"))
        failure_of(server, retry_attempts="10")
    assert len(waits) == 10
    assert 24 <= sum(waits[:3]) <= 34
    assert 40 <= waits[-1] == pytest.approx(max(waits)) and max(waits) <= 60


def test_requests_that_fail_together_are_not_retried_together(waits):
    with mock({}) as server:
        server.order(Fault("503"))
        for _ in range(5):
            failure_of(server, retry_attempts="1")
    assert len(set(waits)) == 5


@pytest.mark.parametrize(
    ("kind", "cause", "advice"),
    [
        ("500", "status 500", "status page"),
        ("502", "status 502", "status page"),
        ("503", "status 503", "status page"),
        ("reset", "127.0.0.1: the connection broke", "network"),
        ("timeout", "127.0.0.1: the request timed out", "request_timeout_seconds"),
        ("truncated", "status 200 without", "proxy"),
        ("html", "status 200 without", "proxy"),
        ("timed_out", "a partial response (meta.timed_out)", "max_records_per_page"),
    ],
)
def test_a_persistent_fault_fails_after_all_retries_with_its_cause_and_fitting_advice(
    kind, cause, advice
):
    timeout = 0.1 if kind == "timeout" else 30
    with mock({}) as server, client_of(server, timeout, retry_attempts="2") as client:
        server.order(Fault(kind, seconds=60))
        with pytest.raises(connector.KustomerError) as error:
            connector.execute_api_request(PATH, server.api_key, client=client)
        message = str(error.value)
        assert len(server.requests) == 3
    assert message.startswith(f"GET {PATH} failed 3 times. The last error was: {cause}")
    assert advice in message
    assert ("max_records_per_page" in message) is (kind in ("timeout", "timed_out"))
    assert error.value.__cause__ is None and error.value.__context__ is None


def test_retry_attempts_of_zero_means_no_retries(waits):
    with mock({}) as server:
        server.order(Fault("500"))
        assert f"GET {PATH} failed: status 500." in failure_of(server, retry_attempts="0")
    assert not waits


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_with_an_error_of_kustomer_is_not_retried(status, waits):
    with mock({}) as server:
        server.rewrite = answering(status, OWN_ERROR)
        error = error_of(server.configuration())
        assert len(server.requests) == 1
    assert isinstance(error, connector.RefusedError) and error.status == status
    assert str(error) == f"GET {PATH} was refused with {status}: bad - No such thing - x"
    assert not waits


@pytest.mark.parametrize(
    "payload",
    [None, [], "<html>", {"message": "Unauthorized"}, {"errors": None}, {"errors": [None]}],
    ids=["nothing", "list", "text", "other JSON", "null", "no error"],
)
@pytest.mark.parametrize("status", [401, 404, 422])
def test_a_refusal_without_an_error_of_kustomer_is_retried_and_blames_the_proxy(
    status, payload, waits
):
    with mock({}) as server:
        server.rewrite = answering(status, payload)
        message = failure_of(server, retry_attempts="2")
    assert f"GET {PATH} failed 3 times. The last error was: status {status} " in message
    assert "base_url" in message and "proxy" in message
    assert "max_records_per_page" not in message
    assert len(waits) == 2


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_by_a_page_of_a_proxy_is_retried(status, waits):
    with mock({}) as server:
        server.order(Fault("html", status=status, times=2))
        assert send(server)["data"] == []
    assert len(waits) == 2


@pytest.mark.parametrize("status", [201, 204, 206, 402, 406, 408, 410, 425, 451, 501, 504, 599])
def test_any_other_status_is_retried_whatever_its_body(status, waits):
    with mock({}) as server:
        # The body of a 204 would be taken for the next response.
        server.rewrite = answering(status, OWN_ERROR, Connection="close")
        message = failure_of(server, retry_attempts="1")
        assert len(server.requests) == 2
    assert f"failed 2 times. The last error was: status {status}" in message
    assert len(waits) == 1


def test_a_key_that_is_given_with_blanks_and_the_word_bearer_is_sent_without_them():
    with mock({}) as server:
        key = f" Bearer  {server.api_key}\r\n"
        connector.execute_api_request(PATH, key, {}, {"base_url": f" {server.url}\n"})
        (request,) = server.requests
    assert request.headers["Authorization"] == f"Bearer {server.api_key}"


RESET = "x-ratelimit-reset"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        (lambda now: {RESET: str(int(now) + 40)}, 40),
        (lambda now: {RESET: str(int(now * 1000) + 40_500)}, 40.5),
        (lambda now: {RESET: "40"}, 40),
        (lambda now: {RESET: "7.5"}, 7.5),
        (lambda now: {"Retry-After": "25"}, 25),
        (lambda now: {"Retry-After": "25", RESET: "40"}, 25),
        (lambda now: {"Retry-After": formatdate(now + 30, usegmt=True)}, 30),
        (lambda now: {"Retry-After": "rubbish", RESET: "40"}, 40),
        (lambda now: {"Retry-After": "0", RESET: "40"}, 40),
        (lambda now: {RESET: str(int(now) + 100_000)}, 120),
        (lambda now: {"Retry-After": "999999"}, 120),
    ],
)
def test_after_a_429_the_wait_follows_the_headers_for_at_most_two_minutes(headers, seconds, waits):
    with mock({}) as server:
        server.order(Fault("429", times=1, headers=headers(time.time())))
        send(server, retry_attempts="0")
    (wait,) = waits
    # Times without fractions, and the time that the test takes.
    assert seconds - 2 <= wait <= min(seconds * 1.05, 120)


@pytest.mark.parametrize(
    "headers",
    [
        lambda now: {},
        lambda now: {RESET: str(int(now) - 60)},
        lambda now: {RESET: "soon"},
        lambda now: {RESET: "-5"},
        lambda now: {RESET: "nan"},
        lambda now: {RESET: "9" * 400},
        lambda now: {"Retry-After": "0"},
        lambda now: {"Retry-After": formatdate(now - 30, usegmt=True)},
        lambda now: {"Retry-After": "Sun, 99 Foo 2026"},
    ],
)
def test_a_429_without_usable_headers_is_retried_with_a_growing_backoff(headers, waits):
    with mock({}) as server:
        server.order(Fault("429", times=3, headers=headers(time.time())))
        send(server, retry_attempts="0")
    assert len(waits) == 3
    assert all(3 * 2**n <= wait <= 5.1 * 2**n for n, wait in enumerate(waits))


def test_rate_limits_do_not_use_up_retries():
    with mock({}) as server:
        server.order(Fault("429", times=6, retry_after=1))
        server.order(Fault("500", times=2, after=6))
        assert send(server, retry_attempts="2")["data"] == []
        assert len(server.requests) == 9


def test_waiting_for_the_rate_limit_ends_after_15_minutes_in_total(waits):
    with mock({}) as server:
        server.order(Fault("429", retry_after=100))
        error = error_of(server.configuration())
    assert isinstance(error, connector.SyncStoppedError)
    assert f"GET {PATH} returned 429 (rate limit) for 15 minutes." in str(error)
    assert "resume" not in str(error)
    assert 899 <= sum(waits) <= 905 and max(waits) <= 120


def test_a_success_starts_the_15_minutes_again():
    with mock({}) as server, client_of(server) as client:
        for _ in range(3):
            server.clear_faults()
            server.order(Fault("429", times=6, retry_after=100))
            connector.execute_api_request(PATH, server.api_key, client=client)


def faults_with_retry_after() -> dict:
    return {
        "429": Fault("429", times=1, retry_after=17),
        "500": Fault("500", times=1, retry_after=17),
        "502": Fault("502", times=1, retry_after=17),
        "503": Fault("503", times=1, retry_after=17),
        "HTML": Fault("html", times=1, retry_after=17),
        "404": Fault("html", times=1, status=404, retry_after=17),
    }


@pytest.mark.parametrize("name", faults_with_retry_after())
def test_retry_after_of_any_status_takes_the_place_of_the_backoff(name, waits):
    with mock({}) as server:
        server.order(faults_with_retry_after()[name])
        assert send(server)["data"] == []
    (wait,) = waits
    assert 16.5 <= wait <= 17 * 1.05


@pytest.mark.parametrize("status", [200, 403, 500, 503])
def test_after_a_retry_after_every_request_of_the_sync_waits(status, waits):
    with mock({}) as server, client_of(server, retry_attempts="0") as client:
        payload = {"data": []} if status == 200 else OWN_ERROR

        def ask_to_wait(request, answer):
            is_first = request.path == PATH
            return (
                answering(status, payload, **{"Retry-After": "17"})(request, answer)
                if (is_first)
                else answer
            )

        server.rewrite = ask_to_wait
        for path, body in ((PATH, None), ("/v1/customers/search", {}), ("/v1/brands", None)):
            try:
                connector.execute_api_request(path, server.api_key, body=body, client=client)
            except connector.KustomerError:
                # The first one fails, and the search is not valid.
                assert path != "/v1/brands"
            if path == PATH:
                assert not waits
    # The third request comes after the moment.
    (wait,) = waits
    assert 16.5 <= wait <= 17 * 1.05


def test_a_retry_after_of_hours_counts_as_two_minutes(waits):
    with mock({}) as server:
        server.order(Fault("503", times=1, retry_after=7200))
        assert send(server)["data"] == []
    assert sum(waits) == pytest.approx(120, abs=1)


class Together(list):
    """A list of waits to which several threads must add before any of them goes on."""

    def __init__(self, threads: int):
        super().__init__()
        self._barrier = threading.Barrier(threads, timeout=20)

    def append(self, seconds) -> None:
        super().append(seconds)
        self._barrier.wait()


def waits_of_four_searches(kind: str, destination, clock) -> list:
    """Fail four searches at the same time. Return the seconds that each waits."""
    arrived = threading.Barrier(4, timeout=20)
    with mock(bare_records("messages", even_times(2000))) as server:

        def hold_back_four(request):
            # The first searches of customers and of messages are read alone.
            if request.method == "POST" and 5 <= len(server.requests) < 9:
                arrived.wait()

        server.on_arrival = hold_back_four
        headers = {"Retry-After": "100"} if kind == "429" else {}
        server.order(Fault(kind, after=5, times=4, path="/search", headers=headers))
        clock.waits = Together(4)
        sync(server, destination, max_records_per_page="100")
        assert len(destination.live("messages")) == 2000
    return clock.waits


@pytest.mark.parametrize("kind", ["429", "503"])
def test_the_log_counts_the_seconds_that_a_sync_stood_still_and_not_those_of_each_thread(
    kind, destination, clock, capsys
):
    waits = waits_of_four_searches(kind, destination, clock)
    (shown,) = re.findall(r"Kustomer sync: .* waited ([0-9.]+) s", capsys.readouterr().out)
    assert len(waits) == 4
    assert float(shown) == pytest.approx(max(waits), abs=0.5)


def test_threads_that_wait_for_the_same_moment_do_not_start_together(destination, clock):
    waits = waits_of_four_searches("429", destination, clock)
    assert max(waits) - min(waits) > 0.05 and min(waits) > 95


def test_all_threads_together_wait_at_most_15_minutes_for_the_rate_limit(destination, waits):
    with mock(bare_records("messages", even_times(1000))) as server:
        server.order(Fault("429", after=8, path="/search", retry_after=100))
        with pytest.raises(connector.SyncStoppedError, match="429 .rate limit. for 15 minutes"):
            sync(server, destination, max_records_per_page="100")
        refused = [exchange for exchange in server.exchanges if exchange.outcome == "429"]
    # One moment for all threads, so that each of them is refused at most once per wait.
    assert len(refused) <= 4 * (900 // 100 + 2)


LINE = re.compile(
    r"(API key|customers|companies|brands|messages|Kustomer sync): "
    r"[^\"]*?([0-9]+) requests?, waited ([0-9.]+) s\."
)


@pytest.mark.parametrize("path", ["/current", "/brands", "/search"])
def test_the_costs_in_the_log_add_up_to_the_total(path, destination, capsys, waits):
    with mock({}) as server:
        server.order(Fault("429", times=2, path=path, retry_after=40))
        server.order(Fault("500", path="/companies"))
        with pytest.raises(connector.KustomerError):
            sync(server, destination)
        sent = len(server.requests)
    *parts, total = LINE.findall(capsys.readouterr().out)
    assert [name for name, *_ in parts] == [
        "API key",
        "customers",
        "companies",
        "brands",
        "messages",
    ]
    assert sum(int(requests) for _, requests, _ in parts) == int(total[1]) == sent
    seconds = [float(waited) for _, _, waited in parts]
    assert sum(seconds) == pytest.approx(float(total[2]), abs=0.3)
    assert float(total[2]) == pytest.approx(sum(waits), abs=0.3)
    assert seconds[0] == (0.0 if path != "/current" else pytest.approx(sum(waits[:2]), abs=0.1))


@pytest.mark.parametrize("offset", [-300.0, 300.0])
def test_the_reset_is_compared_with_the_clock_of_the_server(offset, waits):
    rules = {"org_limit": 1, "window_seconds": 60.0, "clock_offset_seconds": offset}
    with mock({}, **rules) as server:
        send(server)
        send(server)
    assert 50 < sum(waits) < 70


@pytest.mark.parametrize("reset", RESETS)
def test_requests_succeed_with_every_format_of_the_rate_limit_reset(reset):
    with mock({}, org_limit=2, window_seconds=60, rate_limit_reset=reset) as server:
        for _ in range(5):
            assert send(server)["data"] == []
        refused = [exchange for exchange in server.exchanges if exchange.outcome == "429"]
    # Without a reset, the waits are 4, 8, 16 and 32 seconds.
    assert len(refused) <= (2 * 5 if reset == "absent" else 2)


def test_a_sync_uses_one_connection(destination):
    with mock({}) as server:
        sync(server, destination)
        assert len(server.requests) == 5 and server.connections == 1


def raw_server(response: bytes) -> str:
    """Return the address of a server that sends these bytes to its first client."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with listener, listener.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(response)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_text_that_is_not_utf_8_is_replaced_and_numbers_that_are_not_json_become_null():
    body = b'{"a": "caf\xe9", "b": NaN, "c": [Infinity, {"d": -Infinity}], "e": "NaN"}'
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    configuration = {"base_url": raw_server(response)}
    assert connector.execute_api_request(PATH, "key", {}, configuration) == {
        "a": "caf\ufffd",
        "b": None,
        "c": [None, {"d": None}],
        "e": "NaN",
    }


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
    message = str(error_of({"base_url": raw_server(response), "retry_attempts": "0"}))
    assert message.startswith(f"GET {PATH} failed: 127.0.0.1: ")
    assert "max_records_per_page" not in message


@pytest.fixture
def kustomer(monkeypatch):
    """Return a function that makes a request to a host of Kustomer, with these variables of the
    environment, and returns the error. No connection leaves this machine: looking up any other
    host raises `lookup`."""
    for name in list(os.environ):
        if name.lower().endswith(("_proxy", "_ca_bundle")):
            monkeypatch.delenv(name)
    look_up = socket.getaddrinfo

    def request(lookup: BaseException, **environment: str) -> str:
        def look_up_here(host, *arguments, **options):
            if host != "127.0.0.1":
                raise lookup
            return look_up(host, *arguments, **options)

        monkeypatch.setattr(socket, "getaddrinfo", look_up_here)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return str(error_of({"base_url": "https://x.api.kustomerapp.com", "retry_attempts": "0"}))

    return request


UNKNOWN_HOST = socket.gaierror(-2, "unknown")


@pytest.mark.parametrize(
    ("lookup", "cause", "advice"),
    [
        (UNKNOWN_HOST, "the host name was not found", "network"),
        (ConnectionRefusedError(), "the connection was refused", "network"),
        (TimeoutError(), "the request timed out", "request_timeout_seconds"),
        (OSError(101, "unreachable"), "the host could not be reached", "network"),
        (
            ssl.SSLCertVerificationError("self-signed"),
            "the certificate is not valid",
            "REQUESTS_CA_BUNDLE",
        ),
    ],
)
def test_a_network_error_names_the_host_the_cause_and_what_to_check(
    lookup, cause, advice, kustomer
):
    message = kustomer(lookup)
    assert f"failed: x.api.kustomerapp.com: {cause}. " in message
    assert advice in message
    assert ("max_records_per_page" in message) is isinstance(lookup, TimeoutError)


@pytest.mark.parametrize(
    ("name", "value", "cause"),
    [
        ("HTTPS_PROXY", "socks5://127.0.0.1:1", "PySocks"),
        ("HTTPS_PROXY", "http://127.0.0.1:port", "the proxy setting is not valid"),
        ("HTTPS_PROXY", "http://", "the proxy setting is not valid"),
        ("HTTPS_PROXY", "http://127.0.0.1:1", "the proxy"),
        ("REQUESTS_CA_BUNDLE", "no/such/bundle.pem", "the CA bundle was not found"),
    ],
)
def test_an_error_of_a_proxy_or_of_certificates_names_the_environment_variable(
    name, value, cause, kustomer
):
    message = kustomer(UNKNOWN_HOST, **{name: value})
    assert cause in message and name in message
    assert "max_records_per_page" not in message and "status page" not in message


def test_a_proxy_that_refuses_is_not_said_to_be_silent(kustomer):
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    message = kustomer(UNKNOWN_HOST, HTTPS_PROXY=raw_server(refusal))
    assert "proxy" in message and "HTTPS_PROXY" in message
    assert "did not respond" not in message


def test_a_refused_connection_is_reported_as_refused():
    with mock({}) as server:
        configuration = server.configuration(retry_attempts="0")
    assert "127.0.0.1: the connection was refused" in str(error_of(configuration))

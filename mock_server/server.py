"""The mock's HTTP side: sockets, faults, and the context manager that tests use."""

import gzip
import json
import socket
import struct
import threading
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Callable, List, NamedTuple, Optional
from urllib.parse import parse_qsl, urlsplit

from mock_server.api import Answer, Api, Request
from mock_server.behaviour import Behaviour
from mock_server.faults import Fault, FaultOrders
from mock_server.records import Records
from mock_server.store import Store

API_KEY = "mock-api-key"
_HTML = b"<!doctype html><html><body>The proxy cannot show this page.</body></html>"
_GZIP_FROM_BYTES = 1_000


class PortTakenError(Exception):
    """The requested port is in use. The message names the port."""


class Exchange(NamedTuple):
    """A request and its outcome: the status that was sent, or the kind of fault that ended it."""

    request: Request
    outcome: str
    body_bytes: int


class MockKustomer:
    """A Kustomer API on 127.0.0.1. Use it as a context manager.

    Args:
        records: the records by table and id, such as those that make_records returns.
        behaviour: behavior that Kustomer may choose. It can be changed while the server runs.
        api_key: the only key that the server accepts.
        port: the port to listen on; 0 for any free port.
        compress: whether to compress responses for clients that accept gzip.
        seed: the random seed of the faults.
        ceiling: the maximum number of requests. The server responds to all further requests with
            410, so that a client that would never stop fails instead.

    `store` reads and changes the records. `exchanges` has every request in order. If set,
    `on_arrival` is called with each Request, concurrently for concurrent requests, and may delay
    it. If set, `before_answer` is called with each Request before its response is made. If set,
    `rewrite` is called with each Request and Answer, and returns the Answer to send.

    Raises PortTakenError if the port is in use.
    """

    def __init__(
        self,
        records: Optional[Records] = None,
        behaviour: Optional[Behaviour] = None,
        *,
        api_key: str = API_KEY,
        port: int = 0,
        compress: bool = True,
        seed: int = 1,
        ceiling: Optional[int] = None,
    ):
        self.behaviour = behaviour or Behaviour()
        self.store = Store(records or {}, self.behaviour)
        self.api_key, self.compress, self._ceiling = api_key, compress, ceiling
        self.exchanges: List[Exchange] = []
        self.on_arrival: Optional[Callable[[Request], None]] = None
        self.before_answer: Optional[Callable[[Request], None]] = None
        self.rewrite: Optional[Callable[[Request, Answer], Answer]] = None
        self._api = Api(self.store, self.behaviour, api_key)
        self._faults, self._arrived = FaultOrders(seed), 0
        self._lock, self._stopped = threading.RLock(), threading.Event()
        try:
            self._http = _Server(("127.0.0.1", port), _Handler)
        except OSError:
            raise PortTakenError(
                f"Port {port} of 127.0.0.1 is in use; choose another, or 0 for any free one."
            ) from None
        self._http.mock = self
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> "MockKustomer":
        self._accepting.start()
        return self

    def __exit__(self, *_exception) -> None:
        self._stopped.set()
        # Ends the wait for a connection at once. serve_forever() would have to poll for its end.
        socket.create_connection(self._http.server_address).close()
        self._accepting.join()
        self._http.server_close()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            self._http.handle_request()

    @property
    def requests(self) -> List[Request]:
        """All requests so far, in order."""
        return [exchange.request for exchange in self.exchanges]

    @property
    def connections(self) -> int:
        """The number of connections that the requests so far used."""
        return len({request.client for request in self.requests})

    def configuration(self, **settings: str) -> dict:
        """Return a connector configuration that points to this server."""
        return {"api_key": self.api_key, "base_url": self.url, **settings}

    def order(self, fault: Fault) -> None:
        """Activate a fault."""
        self._faults.add(fault)

    def clear_faults(self) -> None:
        """Remove all faults."""
        self._faults.clear()

    def exchange(self, request: Request) -> "tuple[Optional[Answer], List[Fault]]":
        """Return the response to a request and the faults that affect it. For the handler."""
        if self.on_arrival:
            self.on_arrival(request)
        with self._lock:
            self._arrived += 1
            if self._ceiling is not None and self._arrived > self._ceiling:
                errors = [{"code": "gone", "message": "Too many requests for a test", "meta": {}}]
                return Answer(410, {"errors": errors}), []
            faults = self._faults.affecting(request.path, self._arrived)
            if any(fault.kind != "latency" for fault in faults):
                return None, faults
            if self.before_answer:
                self.before_answer(request)
            answer = self._api.answer(request)
            return self.rewrite(request, answer) if self.rewrite else answer, faults

    def healthy_answer(self, request: Request) -> Answer:
        """Return the response that a fault then changes or slows down. For the handler."""
        with self._lock:
            return self._api.answer(request)

    def note(self, request: Request, outcome: str, body_bytes: int = 0) -> None:
        """Record an exchange. For the handler."""
        with self._lock:
            self.exchanges.append(Exchange(request, outcome, body_bytes))

    def pause(self, seconds: float) -> None:
        """Wait. Raises BrokenPipeError as soon as the server stops."""
        if self._stopped.wait(seconds):
            raise BrokenPipeError


def _json_bytes(payload) -> bytes:
    """Return a payload as JSON. Serializing is most of what the mock does, so it has to be fast."""
    # Imported here, so that the command line can say what to install if it is missing.
    import orjson

    try:
        return orjson.dumps(payload)
    except TypeError:
        # orjson refuses half of a surrogate pair and integers above 64 bits; JSON does not.
        return json.dumps(payload, ensure_ascii=False).encode("utf-8", "surrogatepass")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Tests that reset connections leave ports in TIME_WAIT. A port in use is still an error.
    allow_reuse_address = True
    request_queue_size = 64
    mock: MockKustomer

    def handle_error(self, _request, _client_address):
        """Print nothing when a client closes the connection early."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body are sent in one write. Two small writes would take 40 ms longer, because of
    # Nagle's algorithm and delayed acknowledgements.
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *_arguments):
        """Print nothing, because the exchanges serve as the log."""

    def do_GET(self):
        self._serve(None)

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        try:
            self._serve(json.loads(self.rfile.read(length)))
        except ValueError:
            self._serve(None)

    def _serve(self, body) -> None:
        mock, parts = self.server.mock, urlsplit(self.path)
        request = Request(
            self.command,
            parts.path,
            dict(parse_qsl(parts.query)),
            body,
            dict(self.headers),
            self.client_address[1],
        )
        answer, faults = mock.exchange(request)
        for fault in faults:
            if fault.kind == "latency":
                mock.pause(fault.seconds)
        broken = next((fault for fault in faults if fault.kind != "latency"), None)
        if broken:
            self._break(request, broken)
            return
        self._send(request, answer.status, _json_bytes(answer.payload), answer.headers)

    def _break(self, request: Request, fault: Fault) -> None:
        if fault.kind.isdigit():
            self._send_status(request, int(fault.kind), fault)
        elif fault.kind == "html":
            headers = {"Content-Type": "text/html", **fault.headers}
            self._send(request, fault.status, _HTML, headers, fault.kind)
        elif fault.kind in ("timeout", "reset"):
            self.server.mock.note(request, fault.kind)
            self._drop(fault)
        else:
            self._send_with_fault(request, fault)

    def _send_status(self, request: Request, status: int, fault: Fault) -> None:
        if status == 502:
            headers = {"Content-Type": "text/html", **fault.headers}
            self._send(request, status, _HTML, headers)
        elif status == 503:
            self._send(request, status, b"", fault.headers)
        else:
            errors = {"errors": [{"code": "error", "message": "Something went wrong", "meta": {}}]}
            self._send(request, status, json.dumps(errors).encode(), fault.headers)

    def _drop(self, fault: Fault) -> None:
        """Close the connection without a response, either immediately or after a timeout."""
        self.close_connection = True
        if fault.kind == "timeout":
            self.server.mock.pause(fault.seconds)
        # A linger time of zero makes close() send RST.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _send_with_fault(self, request: Request, fault: Fault) -> None:
        answer = self.server.mock.healthy_answer(request)
        payload = answer.payload
        if fault.kind == "timed_out" and isinstance(payload.get("data"), list):
            meta = {**payload.get("meta", {}), "timed_out": True}
            payload = {**payload, "meta": meta, "data": payload["data"][::2]}
        content = _json_bytes(payload)
        if fault.kind == "truncated":
            content = content[: len(content) // 2]
        self._send(request, answer.status, content, answer.headers, fault.kind)

    def _send(
        self,
        request: Request,
        status: int,
        content: bytes,
        headers: dict,
        outcome: str = "",
    ) -> None:
        """Record the exchange and send the response. `outcome` defaults to the status."""
        accepted = request.headers.get("Accept-Encoding", "")
        self.send_response_only(status)
        if self.server.mock.compress and "gzip" in accepted and len(content) >= _GZIP_FROM_BYTES:
            content = gzip.compress(content, compresslevel=1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Date", format_datetime(self.server.mock.behaviour.now(), usegmt=True))
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        # Recorded before the first byte is sent, because a test may check as soon as it has the
        # response.
        self.server.mock.note(request, outcome or str(status), len(content))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

"""Fixtures: a clock that waits move, an active log, and a destination.

The connector is imported within the fixtures. The process that only distributes the tests would
otherwise import it, and with it the SDK, before it starts the processes that run them.
"""

import contextlib
import gc
import signal
import threading
import time

import pytest
from hypothesis import HealthCheck, settings

_COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck)}
# The same examples in each run, so that the tests of a change fail because of the change.
settings.register_profile("quick", max_examples=12, derandomize=True, **_COMMON)
# New examples in each run, which take minutes: make thorough
settings.register_profile("thorough", max_examples=200, **_COMMON)
settings.load_profile("quick")

# A full collection traverses every record that any test has made, and finds next to nothing.
gc.set_threshold(*gc.get_threshold()[:2], 1000)

# A background job of a script ignores Ctrl-C, and so would the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list) -> None:
    """Run the longest tests first, so that none of them is left alone at the end."""
    items.sort(key=lambda item: "make" not in item.fixturenames)


def pytest_sessionfinish() -> None:
    """Exempt those records from the full collections that pytest ends with."""
    gc.freeze()


class Clock:
    """The time of this process, which the connector and the mock share. `waits` has the seconds of
    each wait of the connector, which takes no time but moves the clock."""

    def __init__(self):
        self.waits: list = []
        self._ahead = 0.0
        self._real = {name: getattr(time, name) for name in ("time", "monotonic")}

    def read(self, name: str) -> float:
        """Return what `time.time` or `time.monotonic` shows."""
        return self._real[name]() + self._ahead

    def move(self, seconds: float) -> None:
        """Let time pass."""
        self._ahead += seconds


class _Closed(threading.Event):
    """Replaces the event on which the connector waits."""

    def __init__(self, clock: Clock):
        super().__init__()
        self._clock = clock

    def wait(self, timeout=None) -> bool:
        if not self.is_set():
            self._clock.waits.append(timeout)
            self._clock.move(timeout)
        return self.is_set()


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> Clock:
    """Replace the clock of this process with one that waits and tests move."""
    import connector

    moved, open_client = Clock(), connector.open_client

    @contextlib.contextmanager
    def open_with_clock(*arguments, **options):
        with open_client(*arguments, **options) as client:
            client.closed = _Closed(moved)
            yield client

    monkeypatch.setattr(connector, "open_client", open_with_clock)
    for name in ("time", "monotonic"):
        monkeypatch.setattr(time, name, lambda name=name: moved.read(name))
    return moved


@pytest.fixture
def waits(clock) -> list:
    """Return the list of the seconds of the connector's waits, which take no time."""
    return clock.waits


@pytest.fixture(autouse=True)
def log_on(monkeypatch) -> None:
    """Let the connector log to stdout, as in a real sync."""
    from connector import log

    monkeypatch.setattr(log, "LOG_LEVEL", log.Level.INFO)


@pytest.fixture
def destination(monkeypatch):
    """Return a destination that receives the connector's operations."""
    from tests.support import Destination

    stand_in = Destination()
    monkeypatch.setattr("connector.op", stand_in)
    return stand_in

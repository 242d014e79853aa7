"""Fixtures: waits that take no time, an active log, and a destination.

The connector is imported within the fixtures. The process that only distributes the tests would
otherwise import it, and with it the SDK, before it starts the processes that run them.
"""

import gc
import signal

import pytest
from hypothesis import HealthCheck, settings

_COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("quick", max_examples=12, **_COMMON)
# Takes hours: pytest --hypothesis-profile=thorough --timeout=0
settings.register_profile("thorough", max_examples=1000, **_COMMON)
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


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list:
    """Replace the connector's waits, and return the list of their seconds."""
    noted: list = []
    monkeypatch.setattr(
        "connector.__wait", lambda _client, seconds, _reason: noted.append(seconds)
    )
    return noted


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

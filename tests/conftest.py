"""What every test gets: time that does not pass, a log that is on, and a destination."""

import pytest

import connector
from tests.support import Destination


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list:
    """Replace every wait of the connector by a note of its seconds."""
    noted: list = []
    monkeypatch.setattr(
        connector, "__wait", lambda _client, seconds, _reason: noted.append(seconds)
    )
    return noted


@pytest.fixture(autouse=True)
def log_on(monkeypatch) -> None:
    """Let the connector log to stdout, as it does in a run."""
    monkeypatch.setattr(connector.log, "LOG_LEVEL", connector.log.Level.INFO)


@pytest.fixture
def destination(monkeypatch) -> Destination:
    """Return a destination that takes the connector's operations."""
    stand_in = Destination()
    monkeypatch.setattr(connector, "op", stand_in)
    return stand_in

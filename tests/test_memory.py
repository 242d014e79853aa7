"""The size of a table does not show in memory."""

import json
import subprocess
import sys
from datetime import datetime, timedelta, timezone

from mock_server.records import time_text
from tests.project import PROJECT
from tests.support import mock

MEGABYTE = 2**20


def short_messages(number: int) -> dict:
    """Return messages with little in them: what is kept of each counts, not what passes."""
    start, step = datetime.now(timezone.utc) - timedelta(days=60), timedelta(days=59) / number
    return {
        "messages": {
            f"{place:024x}": {
                "type": "message",
                "id": f"{place:024x}",
                "attributes": {
                    "updatedAt": time_text(start + place * step),
                    "preview": f"Message {place}",
                },
                "relationships": {},
            }
            for place in range(number)
        }
    }


def peak_of_a_sync(messages: int) -> int:
    """Return the most bytes that the process of a sync of so many messages held."""
    with mock(short_messages(messages)) as server:
        command = [sys.executable, "benchmark.py", "grow", json.dumps(server.configuration())]
        grown = json.loads(subprocess.check_output(command, cwd=PROJECT, timeout=100))
    assert grown["rows"] == messages
    return grown["peak"]


def test_100000_messages_take_no_more_memory_than_10000():
    # Of both, several slices are read at once.
    assert peak_of_a_sync(100_000) <= peak_of_a_sync(10_000) + 5 * MEGABYTE

"""The size of a table does not show in memory."""

import json
import subprocess
import sys

from tests.project import PROJECT
from tests.support import bare_records, even_times, mock

MEGABYTE = 2**20


def peak_of_a_sync(messages: int) -> int:
    """Return the most bytes that the process of a sync of so many messages held. They are short,
    because what is kept of each message counts, not what passes through."""
    with mock(bare_records("messages", even_times(messages))) as server:
        command = [sys.executable, "benchmark.py", "grow", json.dumps(server.configuration())]
        grown = json.loads(subprocess.check_output(command, cwd=PROJECT, timeout=100))
    assert grown["rows"] == messages
    return grown["peak"]


def test_100000_messages_take_no_more_memory_than_10000():
    # Of both, several slices are read at once.
    assert peak_of_a_sync(100_000) <= peak_of_a_sync(10_000) + 5 * MEGABYTE

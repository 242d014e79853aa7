"""Memory use does not grow with the size of a table."""

import json
import subprocess
import sys

from tests.project import PROJECT
from tests.support import bare_records, even_times, mock

MEGABYTE = 2**20


def peak_memory(messages: int) -> int:
    """Return the peak memory, in bytes, of a process that syncs this many messages. They are
    short, because only what the connector keeps of each one is measured."""
    with mock(bare_records("messages", even_times(messages))) as server:
        given = json.dumps(server.configuration())
        command = [sys.executable, "-m", "tools.benchmark", "--grow", given]
        grown = json.loads(subprocess.check_output(command, cwd=PROJECT, timeout=100))
    assert grown["rows"] == messages
    return grown["peak"]


def test_50000_messages_take_no_more_memory_than_10000():
    # In both cases, several slices are read at the same time. To keep 40,000 more records, or only
    # their rows, would take more than four times as much as this.
    assert peak_memory(50_000) <= peak_memory(10_000) + 10 * MEGABYTE

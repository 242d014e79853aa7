"""The size of a table does not show in memory."""

import subprocess
import sys
import tracemalloc

import pytest

import connector
from tests.project import PROJECT

MEGABYTE = 2**20


class Nowhere:
    """A destination that keeps nothing but a count."""

    def __init__(self):
        self.rows = 0

    def upsert(self, table, row):
        self.rows += 1

    def delete(self, table, keys):
        """Keep nothing."""

    truncate = warning = checkpoint = lambda self, *_: None


def peak_of_a_sync(messages: int, monkeypatch) -> int:
    """Return the most bytes that a sync of so many messages held; the mock is another process."""
    command = [sys.executable, "-m", "mock_server", "--customers", "0", "--companies", "0"]
    command += ["--brands", "0", "--messages", str(messages), "--same-moment", "0"]
    command += ["--search-limit", "1000000", "--org-limit", "1000000", "--no-compression"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        try:
            words = process.stdout.readline().split()
            nowhere = Nowhere()
            monkeypatch.setattr(connector, "op", nowhere)
            configuration = {"base_url": words[3], "api_key": words[7].rstrip(":")}
            tracemalloc.start()
            connector.update(configuration, {})
            _, peak = tracemalloc.get_traced_memory()
            assert nowhere.rows == messages
            return peak
        finally:
            tracemalloc.stop()
            process.terminate()


@pytest.fixture
def small(monkeypatch):
    return peak_of_a_sync(20_000, monkeypatch)


def test_80000_messages_take_no_more_memory_than_20000(small, monkeypatch):
    large = peak_of_a_sync(80_000, monkeypatch)
    # A page takes about three megabytes, and a handful more of them may wait at one time.
    assert large <= small + 15 * MEGABYTE

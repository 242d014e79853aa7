"""A sync, a generator and a process end soon after they should, whatever Kustomer does."""

import itertools
import json
import signal
import subprocess
import sys
import threading
import time

import pytest

import connector
from mock_server import Fault
from tools.fivetran import fivetran_process
from tests.project import PROJECT, Project
from tests.support import bare_records, even_times, mock, searches, sync

MESSAGES = bare_records("messages", even_times(2000))
LONG_WAIT = {"Retry-After": "100"}
# A request that gets no response lasts longer than any test.
SETTINGS = {"max_records_per_page": "100", "request_timeout_seconds": "300"}
# Much less than the waits and timeouts that must not hold up an end, and enough for any machine.
SOON_SECONDS = 40

TAKE_ONE_ROW = """
rows = connector.get_messages(configuration["api_key"], None, configuration)
print(next(rows)["id"], flush=True)
sys.stdin.readline()
"""
FAIL_AFTER_ONE_ROW = TAKE_ONE_ROW + "raise RuntimeError('an error of the script')\n"
EXIT_ON_SIGTERM = """
import signal
from tests.support import Destination
connector.op = Destination()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
print("ready", flush=True)
connector.update(configuration, {})
"""


def start_script(server, script: str) -> subprocess.Popen:
    """Start a Python script that has the connector and a configuration for the mock."""
    start = "import json, sys\nimport connector\nconfiguration = json.loads(sys.argv[1])\n"
    configuration = json.dumps(server.configuration(**SETTINGS))
    return subprocess.Popen(
        [sys.executable, "-c", start + script, configuration],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_requests(server, number: int) -> None:
    for _ in range(SOON_SECONDS * 100):
        if len(server.requests) >= number:
            return
        time.sleep(0.01)
    raise AssertionError(f"only {len(server.requests)} requests arrived")


@pytest.mark.parametrize(
    ("script", "says", "code"),
    [(TAKE_ONE_ROW, "", 0), (FAIL_AFTER_ONE_ROW, "an error of the script", 1)],
    ids=["ends", "fails"],
)
def test_a_script_that_takes_only_one_row_does_not_wait_for_other_requests(script, says, code):
    with mock(MESSAGES) as server:
        server.order(Fault("429", after=5, path="/search", headers=LONG_WAIT))
        process = start_script(server, script)
        try:
            wait_for_requests(server, 6)
            output, _ = process.communicate("go on\n", timeout=SOON_SECONDS)
        finally:
            process.kill()
            process.communicate()
    assert says in output and process.returncode == code


def test_a_signal_handler_that_exits_ends_a_sync_that_waits_for_the_rate_limit():
    with mock(MESSAGES) as server:
        server.order(Fault("429", after=5, path="/search", headers=LONG_WAIT))
        process = start_script(server, EXIT_ON_SIGTERM)
        try:
            assert process.stdout.readline() == "ready\n"
            wait_for_requests(server, 6)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=SOON_SECONDS)
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 3


@pytest.mark.parametrize(
    "fault",
    [
        Fault("429", after=5, path="/search", headers=LONG_WAIT),
        Fault("latency", after=5, path="/search", seconds=0.5),
        Fault("503", after=5, path="/search", retry_after=100),
        Fault("timeout", after=5, path="/search", seconds=3600),
    ],
    ids=["rate limit", "slow responses", "outage", "no response"],
)
def test_ctrl_c_ends_fivetran_debug_soon_and_with_one_line(fault, tmp_path):
    with mock(MESSAGES) as server:
        server.order(fault)
        project = Project(tmp_path, server, **SETTINGS)
        with fivetran_process(*project.command, environment=project.environment) as process:
            wait_for_requests(server, 6)
            process.send_signal(signal.SIGINT)
            stopped_after = len(server.requests)
            output, _ = process.communicate(timeout=SOON_SECONDS)
        # For each thread, one request may have been on its way and one about to be sent.
        assert len(server.requests) <= stopped_after + 8
    assert "Stopped. The next sync resumes from the last checkpoint." in output
    assert "connector.py" not in output.partition("Stopped.")[2]
    assert process.returncode != 0


@pytest.mark.parametrize("kind", ["latency", "timeout"])
def test_closing_a_generator_does_not_wait_for_responses(kind):
    arrived: list = []
    with mock(MESSAGES) as server:
        server.on_arrival = arrived.append
        server.order(Fault(kind, after=4, path="/search", seconds=3600))
        configuration = server.configuration(**SETTINGS)
        rows = connector.get_messages(server.api_key, None, configuration)
        next(rows)
        started = time.monotonic()
        rows.close()
        assert time.monotonic() - started < SOON_SECONDS
        # One request for each thread may have been on its way.
        assert len(arrived) <= 4 + 4


def test_an_error_of_the_destination_ends_a_sync_while_responses_are_awaited(destination):
    upsert, failed = destination.upsert, []

    def fail(table, row):
        upsert(table, row)
        if table == "messages":
            failed.append(time.monotonic())
            raise RuntimeError("disk full")

    destination.upsert = fail
    with mock(MESSAGES) as server:
        server.order(Fault("timeout", after=8, path="/search", seconds=3600))
        with pytest.raises(RuntimeError, match="disk full"):
            sync(server, destination, **SETTINGS)
        assert time.monotonic() - failed[0] < SOON_SECONDS


def test_a_failed_search_does_not_wait_for_the_other_searches_and_ends_them(destination):
    released, numbers = threading.Event(), itertools.count(1)
    with mock(MESSAGES) as server:

        def hold_all_but_the_first_three(request):
            if request.method == "POST" and next(numbers) > 3:
                released.wait(SOON_SECONDS)

        server.on_arrival = hold_all_but_the_first_three
        server.order(Fault("500", after=5, times=1, path="/search"))
        started = time.monotonic()
        with pytest.raises(connector.KustomerError, match="messages: .* status 500"):
            sync(server, destination, **SETTINGS, retry_attempts="0")
        assert time.monotonic() - started < SOON_SECONDS
        released.set()
        assert len(searches(server)) <= 2 + 4
    assert destination.state["last_sync_time"].keys() == {"brands"}

"""A sync, a generator and a process end soon after they should, whatever Kustomer does."""

import json
import signal
import subprocess
import sys
import threading
import time

import pytest

import connector
from mock_server import Fault
from mock_server.fivetran import fivetran_process
from tests.project import PROJECT, Project
from tests.support import bare_records, even_times, mock, sync

MESSAGES = bare_records("messages", even_times(2000))
LONG_WAIT = {"Retry-After": "100"}
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
    configuration = json.dumps(server.configuration(max_records_per_page="50"))
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
        Fault("drip", after=5, path="/search", seconds=0.5),
        Fault("timeout", after=5, path="/search", seconds=3600),
    ],
    ids=["rate limit", "drip", "no response"],
)
def test_ctrl_c_ends_fivetran_debug_with_one_line_and_no_other_request(fault, tmp_path):
    with mock(MESSAGES) as server:
        server.order(fault)
        project = Project(tmp_path, server, max_records_per_page="50")
        with fivetran_process(*project.command, environment=project.environment) as process:
            wait_for_requests(server, 6)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=SOON_SECONDS)
    assert "Stopped. The next sync resumes from the last checkpoint." in output
    assert "connector.py" not in output.partition("Stopped.")[2]
    assert process.returncode != 0


@pytest.mark.parametrize("kind", ["drip", "timeout"])
def test_closing_a_generator_does_not_wait_for_responses(kind):
    with mock(MESSAGES) as server:
        server.order(Fault(kind, after=3, path="/search", seconds=0.5))
        configuration = server.configuration(max_records_per_page="50")
        rows = connector.get_messages(server.api_key, None, configuration)
        next(rows)
        wait_for_requests(server, 4)
        started = time.monotonic()
        rows.close()
        assert time.monotonic() - started < SOON_SECONDS
        # One request per reader may have been on its way.
        assert len(server.requests) <= 4 + 4


def test_an_error_of_the_destination_ends_a_sync_while_responses_are_awaited(destination):
    upsert = destination.upsert

    def fail(table, row):
        upsert(table, row)
        if table == "messages":
            wait_for_requests(server, 7)
            failed.append(time.monotonic())
            raise RuntimeError("disk full")

    failed: list = []
    destination.upsert = fail
    with mock(MESSAGES) as server:
        server.order(Fault("drip", after=6, path="/search", seconds=0.5))
        with pytest.raises(RuntimeError, match="disk full"):
            sync(server, destination, max_records_per_page="50")
        assert time.monotonic() - failed[0] < SOON_SECONDS


def test_a_failed_search_stops_the_other_searches(destination):
    with mock(MESSAGES) as server:
        arrived, released = threading.Semaphore(0), threading.Event()

        def hold(request):
            if request.method == "POST" and len(server.requests) > 5:
                arrived.release()
                released.wait(SOON_SECONDS)

        def fail_once(request, answer):
            # The list is read after the failed search, and releases the other searches.
            if request.path == "/v1/messages":
                released.set()
            return answer

        server.on_arrival, server.rewrite = hold, fail_once
        server.order(Fault("500", after=5, times=1, path="/search"))
        sync(server, destination, max_records_per_page="50", retry_attempts="0")
        late = [r for r in server.requests if r.method == "POST"]
        assert len(destination.live("messages")) == 2000
    assert len(late) <= 5 + 4

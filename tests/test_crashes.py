"""Syncs that are interrupted at any point and resume from the saved state."""

import copy
import itertools
import os
import signal
from datetime import datetime, timedelta, timezone

import pytest

import connector
from mock_server import Fault, make_records
from tools.fivetran import fivetran_process
from mock_server.records import time_text
from tests.expected import assert_mirrors, assert_same, expected_row, is_right, source_rows
from tests.project import Project
from tests.support import TABLES, Destination, bare_records, even_times, mock, sync

# Enough messages for several slices of several pages, with 200 of them in one millisecond.
TIMES = even_times(1000)
RECORDS = {
    **make_records(customers=130, companies=50, brands=3),
    **bare_records("messages", TIMES[:800] + [TIMES[800]] * 200 + TIMES[801:]),
}
PAGE = {"max_records_per_page": "20", "retry_attempts": "0"}
SEARCHED = ("customers", "companies", "messages")


@pytest.fixture(autouse=True)
def frequent_checkpoints(monkeypatch):
    monkeypatch.setattr(connector, "__CHECKPOINT_EVERY_ROWS", 100)


class Auditor(Destination):
    """A destination that checks each saved state against its rows and the previous state."""

    def __init__(self, server):
        super().__init__()
        self.server = server

    def checkpoint(self, state: dict) -> None:
        before = self.state or {"last_sync_time": {}, "unfinished": {}}
        super().checkpoint(state)
        for kind, cursors in self.state.items():
            for table, cursor in cursors.items():
                assert cursor >= before[kind].get(table, ""), f"{table} moved backwards"
                self._check(table, cursor)

    def _check(self, table: str, cursor: str) -> None:
        """Fail unless everything that changed before a cursor is delivered."""
        live = self.live(table)
        for record_id, record in self.server.store.records(table).items():
            attributes = record["attributes"]
            if attributes["updatedAt"] < cursor:
                is_deleted = attributes.get("deleted") is True
                row = None if is_deleted else expected_row(table, record)
                found = live.get(record_id)
                right = found is row if row is None else is_right(found, row)
                assert right, f"{table} lacks {record_id}"


def change_some(server) -> None:
    """Change, delete and add records, each with a different updatedAt."""
    store, now = server.store, datetime.now(timezone.utc)
    times = (time_text(now + timedelta(milliseconds=5 * step)) for step in itertools.count())
    for table in SEARCHED:
        first, second, *_ = store.listed(table)
        store.change(table, first, name="Changed", status="changed", updatedAt=next(times))
        store.change(table, second, deleted=True, updatedAt=next(times))
    for record in make_records(messages=125, seed=4)["messages"].values():
        store.put("messages", record)
        store.change("messages", record["id"], updatedAt=next(times))


def crash_at(number: int, auditor: Auditor, server) -> bool:
    """Run a sync whose requests fail from a given one on. Return whether it got that far."""
    server.order(Fault("reset", after=len(server.requests) + number - 1))
    try:
        sync(server, auditor, **PAGE)
    except connector.KustomerError as error:
        assert "the connection broke" in str(error)
        return True
    finally:
        server.clear_faults()
    return False


def test_a_first_sync_interrupted_at_any_request_resumes_without_loss(monkeypatch):
    number, reached = 0, True
    while reached:
        number += 1
        with mock(RECORDS) as server:
            auditor = Auditor(server)
            monkeypatch.setattr(connector, "op", auditor)
            reached = crash_at(number, auditor, server)
            sync(server, auditor, **PAGE)
            assert_mirrors(auditor, server)
    assert 20 < number < 45


def test_an_incremental_sync_interrupted_at_any_request_resumes_without_loss(monkeypatch):
    with mock(RECORDS, company_search="knows") as server:
        auditor = Auditor(server)
        monkeypatch.setattr(connector, "op", auditor)
        sync(server, auditor, **PAGE)
        after_first = copy.deepcopy((auditor.rows, auditor.deleted, auditor.state))
        change_some(server)
        number, reached = 0, True
        while reached:
            number += 1
            auditor.rows, auditor.deleted, auditor.state = copy.deepcopy(after_first)
            reached = crash_at(number, auditor, server)
            sync(server, auditor, **PAGE)
            assert_mirrors(auditor, server)
    assert 8 < number < 20


def test_a_sync_interrupted_again_and_again_finishes_without_loss(monkeypatch):
    records = {**RECORDS, **bare_records("messages", even_times(6000))}
    with mock(records) as server:
        auditor = Auditor(server)
        monkeypatch.setattr(connector, "op", auditor)
        syncs = 0
        # Six slices of about six pages are begun together. Each sync ends after 54 requests, so only
        # the saved cursors let the last one finish.
        while crash_at(55, auditor, server):
            syncs += 1
            assert syncs < 10
        assert syncs > 1
        assert_mirrors(auditor, server)


def test_no_row_is_lost_if_the_destination_fails_at_any_row(monkeypatch):
    for number in range(0, 270, 30):
        with mock(RECORDS) as server:
            auditor = Auditor(server)
            monkeypatch.setattr(connector, "op", auditor)
            upsert, taken = auditor.upsert, []

            def fail_at(table, row, upsert=upsert, taken=taken, number=number):
                taken.append(row)
                if len(taken) == number:
                    raise RuntimeError("disk full")
                upsert(table, row)

            auditor.upsert = fail_at
            with pytest.raises(RuntimeError) if number else pytest.MonkeyPatch.context():
                sync(server, auditor, **PAGE)
            sync(server, auditor, **PAGE)
            assert_mirrors(auditor, server)


def test_fivetran_debug_resumes_without_loss_after_it_was_killed_five_times(tmp_path):
    records = make_records(customers=300, companies=150, brands=3, messages=1300)
    with mock(records) as server:
        project = Project(tmp_path, server, max_records_per_page="50")
        code = (project.folder / "connector.py").read_text()
        frequent = code.replace("_EVERY_ROWS = 5_000\n", "_EVERY_ROWS = 200\n")
        assert frequent != code
        (project.folder / "connector.py").write_text(frequent)
        state = project.folder / "files" / "state.json"

        def has_unfinished_messages() -> bool:
            unfinished = state.read_text().partition('"unfinished"')[2] if state.exists() else ""
            return '"messages"' in unfinished

        for number in (2, 6, 9, 14, None):
            with fivetran_process(*project.command, environment=project.environment) as process:

                def kill(_, process=process, already=len(server.requests), number=number):
                    received = len(server.requests) - already
                    late = has_unfinished_messages() if number is None else received >= number
                    if late:
                        os.killpg(process.pid, signal.SIGKILL)

                server.before_answer = kill
                output, _ = process.communicate()
            server.before_answer = None
            assert process.returncode == -signal.SIGKILL, output
        assert has_unfinished_messages()
        project.debug()
        for table in TABLES:
            assert_same(table, project.rows(table), source_rows(server, table))

"""Whole syncs: roles, windows, checkpoints, frequency and log."""

from datetime import datetime, timedelta, timezone

import pytest

import connector
from mock_server import Fault, make_records
from mock_server.behaviour import ROLES
from mock_server.records import time_text
from tests.expected import assert_mirrors
from tests.support import TABLES, bare_records, even_times, mock, searches, sync

RECORDS = make_records(customers=120, companies=30, brands=3, messages=200)


def ago(**span) -> str:
    return time_text(datetime.now(timezone.utc) - timedelta(**span))


def test_the_time_of_each_table_is_saved_after_it_is_read(destination):
    # Kustomer's clock is known only to the second.
    before = ago(seconds=2)
    with mock(RECORDS) as server:
        sync(server, destination)
    after = ago()
    seen = [set(state["last_sync_time"]) for state in destination.states]
    assert seen == [set(TABLES[:1]), set(TABLES[:2]), set(TABLES[:3]), set(TABLES)]
    for value in destination.state["last_sync_time"].values():
        assert before <= value <= after


def test_the_cursor_of_a_searched_table_is_saved_every_5000_rows(destination):
    records = bare_records("messages", even_times(12_500))
    with mock(records) as server:
        sync(server, destination)
    updates = sorted(r["attributes"]["updatedAt"] for r in records["messages"].values())
    times = [state["unfinished"].get("messages") for state in destination.states]
    within = [value for value in times if value]
    assert len(within) == 2
    counts = [sum(update <= value for update in updates) for value in within]
    assert 5000 <= counts[0] < 5500 and 5000 <= counts[1] - counts[0] < 5500


def test_while_a_list_is_read_rows_are_saved_but_the_cursor_does_not_move(destination):
    records = bare_records("companies", even_times(7000))
    with mock(records) as server:
        server.rewrite = lambda request, answer: (
            answer._replace(status=400, payload={})
            if request.path == "/v1/companies" and request.params["page"] == "60"
            else answer
        )
        with pytest.raises(connector.KustomerError):
            sync(server, destination)
    assert len(destination.rows["companies"]) >= 5000
    assert "companies" not in destination.state["last_sync_time"]


def test_the_window_starts_ten_minutes_before_the_last_sync():
    window = connector.get_time_range("2026-03-04T05:06:07.089Z")
    assert window["start"] == "2026-03-04T04:56:07.089Z"
    now = datetime.now(timezone.utc)
    assert timedelta(0) <= now - datetime.fromisoformat(window["end"][:-1] + "+00:00")
    assert now - datetime.fromisoformat(window["end"][:-1] + "+00:00") < timedelta(minutes=1)


def test_the_first_window_has_the_configured_length():
    for given, days in (({}, 90), ({"initial_sync_days": "7"}, 7)):
        window = connector.get_time_range(configuration=given)
        start, end = (
            datetime.fromisoformat(window[name][:-1] + "+00:00") for name in ("start", "end")
        )
        assert end - start == timedelta(days=days)


def test_an_invalid_last_sync_time_is_rejected():
    with pytest.raises(ValueError, match="last_sync_time must be an ISO time, not 'soon'"):
        connector.get_time_range("soon")


def test_records_before_the_first_window_are_not_read(destination):
    records = make_records(customers=200, messages=200, days=100, same_moment=0)
    with mock(records) as server:
        sync(server, destination, initial_sync_days="50")
        start = ago(days=50)
        recent = {
            record_id
            for record_id, record in records["messages"].items()
            if record["attributes"]["updatedAt"] >= start
        }
    assert destination.rows["messages"].keys() == recent


def test_the_overlap_is_delivered_again_and_does_not_move_the_cursor_back(destination):
    with mock(RECORDS) as server:
        sync(server, destination)
        record_id = server.store.listed("messages")[0]
        server.store.change("messages", record_id, status="read")
        sync(server, destination)
        destination.delivered.clear()
        sync(server, destination)
    assert ("messages", record_id) in destination.delivered
    times = [
        state["last_sync_time"]["messages"]
        for state in destination.states
        if "messages" in state["last_sync_time"]
    ]
    assert times == sorted(times)


def test_a_table_that_was_read_more_recently_than_the_frequency_is_skipped(destination, capsys):
    with mock(RECORDS) as server:
        destination.state = {
            "last_sync_time": {"customers": ago(hours=3), "messages": ago(hours=5, minutes=55)}
        }
        due = ago(hours=3 - 6)
        sync(server, destination, sync_frequency_hours="6")
        assert {r.body["queryContext"] for r in searches(server)} == {"message"}
        assert {r.path for r in server.requests if r.method == "GET"} == {
            "/v1/users/current",
            "/v1/companies",
            "/v1/brands",
        }
    assert f"customers skipped until {due[:16]}" in capsys.readouterr().out


def test_without_a_frequency_every_sync_reads_every_table(destination):
    with mock(RECORDS) as server:
        for _ in range(2):
            sync(server, destination)
        assert [r.path for r in server.requests].count("/v1/brands") == 2


@pytest.mark.parametrize("status", [401, 403])
def test_a_missing_role_is_reported_and_does_not_stop_other_tables(status, destination):
    without = {"org.permission.message.read", "org.permission.company.read"}
    with mock(RECORDS, roles=ROLES - without, missing_role_status=status) as server:
        with pytest.raises(connector.KustomerError) as error:
            sync(server, destination)
        assert_mirrors(destination, server, ["customers", "brands"])
    message = str(error.value)
    for table, role in (("companies", "company"), ("messages", "message")):
        assert f"{table}: GET /v1/{table} was refused with {status}" in message
        assert f"org.permission.{role}.read (legacy org.user.{role}.read)" in message
    assert not destination.warnings
    assert set(destination.state["last_sync_time"]) == {"customers", "brands"}


def test_a_missing_role_of_one_table_does_not_disable_search_for_others(destination):
    with mock(RECORDS, roles=ROLES - {"org.permission.customer.read"}) as server:
        with pytest.raises(connector.KustomerError, match="org.permission.customer.read"):
            sync(server, destination)
        assert_mirrors(destination, server, ["companies", "brands", "messages"])
        assert [r.body["queryContext"] for r in searches(server)] == ["customer", "message"]
        assert "/v1/messages" not in {request.path for request in server.requests}
    assert not destination.warnings


@pytest.mark.parametrize("status", [401, 403])
def test_the_error_for_a_refused_key_explains_the_possible_reasons(status, destination):
    with mock(RECORDS) as server:
        server.rewrite = lambda request, answer: answer._replace(
            status=status, payload={"errors": [{"title": "Wrong pod"}]}
        )
        with pytest.raises(connector.KustomerError) as error:
            sync(server, destination)
        assert len(server.requests) == 1
    assert f"refused the key with {status} (Wrong pod)" in str(error.value)
    assert "invalid, expired or from another region" in str(error.value)
    assert "base_url" in str(error.value)


def test_the_mock_refuses_any_key_except_its_own(destination):
    with mock(RECORDS) as server:
        with pytest.raises(connector.KustomerError, match="refused the key with 401"):
            connector.update({**server.configuration(), "api_key": "another"}, {})


def test_a_404_for_the_current_user_is_ignored(destination):
    with mock(RECORDS) as server:
        server.rewrite = lambda request, answer: (
            answer._replace(status=404, payload={}) if "users" in request.path else answer
        )
        sync(server, destination)
        assert_mirrors(destination, server)


def test_the_single_time_of_an_older_state_applies_to_every_table(destination):
    destination.state = {"last_sync_time": ago(days=1)}
    with mock(RECORDS) as server:
        sync(server, destination)
        bounds = [list(r.body["and"][0].values())[0]["gte"] for r in searches(server)]
    assert all(bound[:13] == ago(days=1, minutes=10)[:13] for bound in bounds)
    assert set(destination.state["last_sync_time"]) == set(TABLES)


@pytest.mark.parametrize(
    ("saved", "trouble"),
    [
        ("rubbish", "is not a time"),
        (5, "is not a time"),
        (None, "is not a time"),
        pytest.param(ago(days=-1), "is in the future", id="tomorrow"),
    ],
)
def test_a_table_with_an_invalid_saved_time_is_read_from_the_start(saved, trouble, destination):
    destination.state = {"last_sync_time": {"customers": saved, "messages": ago(days=1)}}
    with mock(RECORDS) as server:
        sync(server, destination)
        assert_mirrors(destination, server, ["customers"])
    assert destination.warnings == [
        f"customers: the saved last_sync_time {trouble}; the table is read from the start."
    ]


def test_a_saved_time_that_is_ahead_by_less_than_the_overlap_is_kept(destination):
    ahead = ago(minutes=-8)
    destination.state = {"last_sync_time": {"customers": ahead}}
    with mock(RECORDS) as server:
        sync(server, destination)
    assert destination.state["last_sync_time"]["customers"] == ahead
    assert not destination.warnings


@pytest.mark.parametrize(
    "state", [{"cursor": "x"}, {"last_sync_time": ["x"]}, {"last_sync_time": 5}, ["x"], "text"]
)
def test_a_state_with_another_structure_is_an_error_that_says_how_to_reset(state, destination):
    destination.state = state
    with mock(RECORDS) as server:
        with pytest.raises(ValueError, match="last_sync_time.*Reset the connection"):
            sync(server, destination)
        assert not server.requests


def test_a_table_that_no_longer_exists_is_dropped_from_the_state(destination):
    destination.state = {"last_sync_time": {"queues": "x"}}
    with mock(RECORDS) as server:
        sync(server, destination)
    assert set(destination.state["last_sync_time"]) == set(TABLES)
    assert not destination.warnings


def test_the_log_has_a_line_with_the_windows_and_one_line_per_table(destination, capsys):
    destination.state = {"last_sync_time": {"companies": "2026-11-20T00:00:00.000Z"}}
    with mock(RECORDS) as server:
        server.store.delete("customers", server.store.listed("customers")[0])
        sync(server, destination)
    lines = [
        connector.json.loads(line)["message"] for line in capsys.readouterr().out.splitlines()
    ]
    assert lines[0] == (
        "Kustomer sync: customers changed in the last 90 days, "
        "companies changed since 2026-11-20T00:00:00.000Z, all brands, "
        "messages changed in the last 90 days."
    )
    deleted = len(destination.deleted["customers"])
    assert deleted and lines[1] == (
        f"customers: {120 - deleted} rows upserted, {deleted} deleted, 1 request, " "waited 0.0 s."
    )
    assert [line.split(":")[0] for line in lines[1:]] == [*TABLES, "Kustomer sync"]
    rows = 120 - deleted + len(destination.rows["companies"]) + 3 + 200
    whole = f"{rows} rows upserted, {deleted} deleted, 5 requests, waited 0.0 s"
    assert lines[-1] == f"Kustomer sync: {whole}."


def test_debug_logging_adds_a_line_for_each_request(destination, capsys):
    with mock(RECORDS) as server:
        sync(server, destination, enable_debug_logging="true")
        lines = capsys.readouterr().out.splitlines()
        requests = [line for line in lines if " ms" in line]
        assert len(requests) == len(server.requests)
    assert "companies: list page 1: status 200, rate limit remaining 99" in requests[2]
    assert "30 records, " in requests[2]


def test_long_syncs_log_their_progress_every_30_seconds(destination, capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(connector.time, "monotonic", lambda: clock[0])
    records = bare_records("messages", even_times(2000))
    with mock(records) as server:

        def let_time_pass(request):
            clock[0] += 20

        server.before_answer = let_time_pass
        sync(server, destination, max_records_per_page="100")
        requests = len(server.requests)
    lines = [line for line in capsys.readouterr().out.splitlines() if "rows per second" in line]
    lines = [line for line in lines if "messages: " in line]
    assert 5 <= len(lines) <= requests * 20 / 30
    assert (
        "messages: 100 of about 2000 rows, " in lines[0] and " s left, read through 20" in lines[0]
    )


def test_an_error_of_the_destination_ends_the_sync_unchanged(destination, monkeypatch):
    def fail(table, row):
        raise RuntimeError("disk full")

    monkeypatch.setattr(destination, "upsert", fail)
    with mock(RECORDS) as server:
        with pytest.raises(RuntimeError, match="disk full"):
            sync(server, destination)


def test_an_unfinished_table_is_read_immediately_regardless_of_the_frequency(destination):
    records = bare_records("messages", even_times(12_000))
    with mock(records) as server:
        server.order(Fault("reset", after=32))
        with pytest.raises(connector.KustomerError):
            sync(server, destination, sync_frequency_hours="168", retry_attempts="0")
        server.clear_faults()
        assert 0 < len(destination.rows["messages"]) < 12_000
        assert "messages" in destination.state["unfinished"]
        sync(server, destination, sync_frequency_hours="168")
        assert_mirrors(destination, server)
    assert destination.state["unfinished"] == {}


def test_an_unfinished_table_resumes_where_its_delivery_stopped(destination):
    destination.state = {
        "last_sync_time": {"customers": ago(days=9), "messages": ago(days=9)},
        "unfinished": {"messages": ago(days=2)},
    }
    with mock(RECORDS) as server:
        sync(server, destination, sync_frequency_hours="168")
        starts = {
            r.body["queryContext"]: list(r.body["and"][0].values())[0]["gte"]
            for r in searches(server)
        }
    assert starts["customers"[:-1]][:15] == ago(days=9, minutes=10)[:15]
    assert starts["messages"[:-1]][:15] == ago(days=2, minutes=10)[:15]
    assert destination.state["unfinished"] == {}


@pytest.mark.parametrize("wrong", ["rubbish", 5, pytest.param(ago(days=-1), id="tomorrow")])
def test_a_table_with_an_invalid_unfinished_time_is_read_from_the_start(wrong, destination):
    destination.state = {
        "last_sync_time": {"customers": ago(days=1)},
        "unfinished": {"customers": wrong},
    }
    with mock(RECORDS) as server:
        sync(server, destination)
        assert_mirrors(destination, server, ["customers"])
    (warning,) = destination.warnings
    assert warning.startswith("customers: the saved unfinished ")


@pytest.mark.parametrize("interrupted", ["2026-09-30T01:02:03.456Z"])
def test_a_state_of_version_1_0_0_resumes_where_that_version_stopped(interrupted, destination):
    # Version 1.0.0 saved the cursor of an interrupted sync as last_sync_time.
    destination.state = {"last_sync_time": {"customers": interrupted}}
    records = make_records(customers=100, days=80)
    with mock(records) as server:
        sync(server, destination)
        since = records["customers"]
        expected = {i for i, r in since.items() if r["attributes"]["updatedAt"] >= interrupted}
    assert expected <= destination.rows["customers"].keys() != since.keys()


@pytest.mark.parametrize("minutes", [15, 600, -600])
def test_no_change_is_missed_if_the_clocks_of_connector_and_kustomer_differ(minutes, destination):
    with mock(RECORDS, clock_offset_seconds=-60 * minutes) as server:
        sync(server, destination)
        for step in range(3):
            new = make_records(customers=1, messages=1, seed=20 + step)
            for table, records in new.items():
                for record in records.values():
                    server.store.put(table, record)
                    server.store.change(table, record["id"])
            sync(server, destination)
            assert_mirrors(destination, server, ["customers", "messages"])
    earlier = ago(minutes=max(minutes, 0))
    assert destination.state["last_sync_time"]["messages"] <= earlier


def test_a_key_that_is_revoked_during_a_sync_ends_it_immediately(destination):
    with mock(RECORDS) as server:

        def die(request, answer):
            if len(server.requests) < 3:
                return answer
            return answer._replace(status=401, payload={"errors": [{"message": "Expired"}]})

        server.rewrite = die
        with pytest.raises(connector.SyncStoppedError, match="refused the key with 401"):
            sync(server, destination)
        assert len(server.requests) < 8
    assert "customers" in destination.state["last_sync_time"]


def test_one_error_names_all_tables_that_failed(destination):
    with mock(RECORDS) as server:
        server.order(Fault("500", path="/companies"))
        server.order(Fault("500", path="/brands"))
        with pytest.raises(connector.KustomerError) as error:
            sync(server, destination)
        assert_mirrors(destination, server, ["customers", "messages"])
    assert "companies: GET /v1/companies failed" in str(error.value)
    assert "brands: GET /v1/brands failed" in str(error.value)


def test_the_summary_counts_upserted_and_deleted_rows_separately(destination, capsys):
    records = make_records(customers=15)
    for record in list(records["customers"].values())[:2]:
        record["attributes"]["deleted"] = True
    for record in list(records["customers"].values())[2:]:
        record["attributes"]["deleted"] = False
    with mock(records) as server:
        sync(server, destination)
    assert len(destination.live("customers")) == 13
    assert "customers: 13 rows upserted, 2 deleted, " in capsys.readouterr().out


def test_the_summary_includes_tables_that_failed(destination, capsys):
    records = bare_records("companies", even_times(450))
    with mock(records) as server:
        # These succeed: the key, the search for customers and two pages of the list.
        server.order(Fault("500", after=4, path="/v1/companies"))
        with pytest.raises(connector.KustomerError, match="companies: "):
            sync(server, destination, retry_attempts="0")
        number, rows = len(server.requests), len(destination.delivered)
    (summary,) = [line for line in capsys.readouterr().out.splitlines() if "upserted" in line][-1:]
    assert rows > 100 and f"{rows} rows upserted, 0 deleted, {number} requests" in summary

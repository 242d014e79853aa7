"""A whole sync: roles, windows, checkpoints, frequency, log."""

from datetime import datetime, timedelta, timezone

import pytest

import connector
from mock_server import make_records
from mock_server.api import ROLES
from mock_server.records import time_text
from tests.expected import assert_mirrors
from tests.support import TABLES, mock, searches, sync

RECORDS = make_records(customers=120, companies=30, brands=3, messages=200)


def ago(**span) -> str:
    return time_text(datetime.now(timezone.utc) - timedelta(**span))


def test_after_each_table_its_time_is_saved(destination):
    before = ago()
    with mock(RECORDS) as server:
        sync(server, destination)
    after = ago()
    seen = [set(state["last_sync_time"]) for state in destination.states]
    assert seen == [set(TABLES[:1]), set(TABLES[:2]), set(TABLES[:3]), set(TABLES)]
    for value in destination.state["last_sync_time"].values():
        assert before <= value <= after


def test_within_a_searched_table_the_last_updated_at_is_saved_every_5000_rows(destination):
    records = make_records(messages=12_500, same_moment=0)
    with mock(records) as server:
        sync(server, destination)
    updates = sorted(r["attributes"]["updatedAt"] for r in records["messages"].values())
    times = [state["last_sync_time"].get("messages") for state in destination.states]
    within = [value for value in times if value][:-1]
    assert len(within) == 2
    counts = [sum(update <= value for update in updates) for value in within]
    assert 5000 <= counts[0] < 5500 and 5000 <= counts[1] - counts[0] < 5500


def test_within_a_listed_table_rows_are_saved_and_the_cursor_stays(destination):
    records = make_records(companies=7000)
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


def test_the_window_begins_ten_minutes_before_the_last_sync():
    window = connector.get_time_range("2026-03-04T05:06:07.089Z")
    assert window["start"] == "2026-03-04T04:56:07.089Z"
    now = datetime.now(timezone.utc)
    assert timedelta(0) <= now - datetime.fromisoformat(window["end"][:-1] + "+00:00")
    assert now - datetime.fromisoformat(window["end"][:-1] + "+00:00") < timedelta(minutes=1)


def test_a_first_window_is_as_long_as_configured():
    for given, days in (({}, 90), ({"initial_sync_days": "7"}, 7)):
        window = connector.get_time_range(configuration=given)
        start, end = (
            datetime.fromisoformat(window[name][:-1] + "+00:00") for name in ("start", "end")
        )
        assert end - start == timedelta(days=days)


def test_a_window_of_no_time_is_refused():
    with pytest.raises(ValueError, match="last_sync_time takes an ISO time, not 'soon'"):
        connector.get_time_range("soon")


def test_records_outside_of_the_first_window_are_not_read(destination):
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


def test_the_overlap_is_delivered_again_and_takes_no_cursor_back(destination):
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


def test_a_table_read_less_than_the_frequency_ago_is_left_for_later(destination, capsys):
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
    assert f"customers not before {due[:16]}" in capsys.readouterr().out


def test_without_a_frequency_every_sync_reads_every_table(destination):
    with mock(RECORDS) as server:
        for _ in range(2):
            sync(server, destination)
        assert [r.path for r in server.requests].count("/v1/brands") == 2


@pytest.mark.parametrize("status", [401, 403])
def test_a_table_whose_role_is_missing_stops_no_other_and_is_named(status, destination):
    without = {"org.permission.message.read", "org.permission.company.read"}
    with mock(RECORDS, roles=ROLES - without, missing_role_status=status) as server:
        with pytest.raises(connector.MissingRoleError) as error:
            sync(server, destination)
        assert_mirrors(destination, server, ["customers", "brands"])
    message = str(error.value)
    for table, role in (("companies", "company"), ("messages", "message")):
        assert f"{table}: GET /v1/{table} was refused with {status}" in message
        assert f"org.permission.{role}.read (legacy org.user.{role}.read)" in message
    assert not destination.warnings
    assert set(destination.state["last_sync_time"]) == {"customers", "brands"}


def test_a_missing_role_of_one_table_does_not_keep_another_from_search(destination):
    with mock(RECORDS, roles=ROLES - {"org.permission.customer.read"}) as server:
        with pytest.raises(connector.MissingRoleError, match="org.permission.customer.read"):
            sync(server, destination)
        assert_mirrors(destination, server, ["companies", "brands", "messages"])
        assert [r.body["queryContext"] for r in searches(server)] == ["customer", "message"]
        assert "/v1/messages" not in {request.path for request in server.requests}
    assert not destination.warnings


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_is_said_to_be_invalid_expired_or_of_another_region(status, destination):
    with mock(RECORDS) as server:
        server.rewrite = lambda request, answer: answer._replace(
            status=status, payload={"errors": [{"title": "Wrong pod"}]}
        )
        with pytest.raises(connector.KustomerError) as error:
            sync(server, destination)
        assert len(server.requests) == 1
    assert f"refused the key with {status} (Wrong pod)" in str(error.value)
    assert "invalid, expired or of another region" in str(error.value)
    assert "base_url" in str(error.value)


def test_a_mock_refuses_any_key_but_its_own(destination):
    with mock(RECORDS) as server:
        with pytest.raises(connector.KustomerError, match="refused the key with 401"):
            connector.update({**server.configuration(), "api_key": "another"}, {})


def test_a_current_user_that_is_not_found_is_no_trouble(destination):
    with mock(RECORDS) as server:
        server.rewrite = lambda request, answer: (
            answer._replace(status=404, payload={}) if "users" in request.path else answer
        )
        sync(server, destination)
        assert_mirrors(destination, server)


def test_a_legacy_state_counts_for_every_table(destination):
    destination.state = {"last_sync_time": ago(days=1)}
    with mock(RECORDS) as server:
        sync(server, destination)
        bounds = [list(r.body["and"][0].values())[0]["gte"] for r in searches(server)]
    assert all(bound[:13] == ago(days=1, minutes=10)[:13] for bound in bounds)
    assert set(destination.state["last_sync_time"]) == set(TABLES)


@pytest.mark.parametrize(
    ("saved", "trouble"),
    [
        ("rubbish", "is no time"),
        (5, "is no time"),
        (None, "is no time"),
        (ago(days=-1), "lies in the future"),
    ],
)
def test_a_time_that_cannot_be_starts_its_table_afresh(saved, trouble, destination):
    destination.state = {"last_sync_time": {"customers": saved, "messages": ago(days=1)}}
    with mock(RECORDS) as server:
        sync(server, destination)
        assert_mirrors(destination, server, ["customers"])
    assert destination.warnings == [
        f"customers: the saved last_sync_time {trouble}; the table starts afresh."
    ]


def test_a_time_ahead_by_less_than_the_overlap_is_kept(destination):
    ahead = ago(minutes=-8)
    destination.state = {"last_sync_time": {"customers": ahead}}
    with mock(RECORDS) as server:
        sync(server, destination)
    assert destination.state["last_sync_time"]["customers"] == ahead
    assert not destination.warnings


@pytest.mark.parametrize(
    "state", [{"cursor": "x"}, {"last_sync_time": ["x"]}, {"last_sync_time": 5}, ["x"], "text"]
)
def test_a_state_of_another_shape_says_how_to_reset(state, destination):
    destination.state = state
    with mock(RECORDS) as server:
        with pytest.raises(ValueError, match="last_sync_time.*Reset the connection"):
            sync(server, destination)
        assert not server.requests


def test_a_table_that_no_longer_exists_is_dropped_from_the_state(destination):
    destination.state = {"last_sync_time": {"teams": "x"}}
    with mock(RECORDS) as server:
        sync(server, destination)
    assert set(destination.state["last_sync_time"]) == set(TABLES)
    assert not destination.warnings


def test_the_log_says_the_windows_and_one_line_a_table(destination, capsys):
    destination.state = {"last_sync_time": {"companies": "2026-11-20T00:00:00.000Z"}}
    with mock(RECORDS) as server:
        sync(server, destination)
    lines = [
        connector.json.loads(line)["message"] for line in capsys.readouterr().out.splitlines()
    ]
    assert lines[0] == (
        "Kustomer sync: customers changed in the last 90 days, "
        "companies changed since 2026-11-20T00:00:00.000Z, all brands, "
        "messages changed in the last 90 days."
    )
    deletes = len(destination.deleted["customers"])
    assert (
        lines[1]
        == f"customers: 120 rows, {deletes} deletes, 0 skipped, 1 requests, 0.0 s waiting."
    )
    assert [line.split(":")[0] for line in lines[1:]] == [*TABLES, "Kustomer sync"]
    rows = 120 + len(destination.rows["companies"]) + 3 + 200
    whole = f"{rows} rows, {deletes} deletes, 0 skipped, 5 requests, 0.0 s waiting"
    assert lines[-1] == f"Kustomer sync: {whole}."


def test_debug_logging_adds_a_line_for_each_request(destination, capsys):
    with mock(RECORDS) as server:
        sync(server, destination, enable_debug_logging="true")
        lines = capsys.readouterr().out.splitlines()
        requests = [line for line in lines if " ms" in line]
        assert len(requests) == len(server.requests)
    assert "GET /v1/companies page 1: status 200, budget left 99" in requests[2]
    assert "30 rows, " in requests[2]


def test_long_syncs_and_waits_tell_of_themselves_every_half_minute(
    destination, capsys, monkeypatch
):
    clock = [0.0]
    monkeypatch.setattr(connector.time, "monotonic", lambda: clock[0])
    records = make_records(customers=0, messages=2000, same_moment=0)
    with mock(records) as server:

        def let_time_pass(request):
            clock[0] += 20

        server.before_answer = let_time_pass
        sync(server, destination, max_records_per_page="100")
        requests = len(server.requests)
    lines = [line for line in capsys.readouterr().out.splitlines() if "so far" in line]
    lines = [line for line in lines if "messages: " in line]
    assert 5 <= len(lines) <= requests * 20 / 30
    assert " of 2000 rows through 2026-" in lines[0]


def test_a_destination_that_fails_ends_the_sync_with_its_own_error(destination, monkeypatch):
    def fail(table, row):
        raise RuntimeError("disk full")

    monkeypatch.setattr(destination, "upsert", fail)
    with mock(RECORDS) as server:
        with pytest.raises(RuntimeError, match="disk full"):
            sync(server, destination)

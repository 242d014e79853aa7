"""Whole syncs: roles, windows, cursors, checkpoints, frequency and log."""

import re
import time
from datetime import datetime, timedelta, timezone

import pytest

import connector
from mock_server import Fault, make_records
from mock_server.behaviour import ROLES, SEARCH_ROLE
from mock_server.records import time_text
from tests.expected import assert_mirrors
from tests.support import TABLES, bare_records, earlier, even_times, mock, moment, searches, sync

DAY = 86_400
RECORDS = make_records(customers=120, companies=30, brands=3, messages=200)


def ago(**span) -> str:
    # Unlike datetime.now(), time.time() shows the time of the fixture `clock`.
    return time_text(datetime.fromtimestamp(time.time(), timezone.utc) - timedelta(**span))


def starts(server) -> dict:
    """Return where the first search of each context starts. It has no end, unlike a search that an
    earlier, failed sync may still have on its way."""
    found: dict = {}
    for request in searches(server):
        (bounds,) = request.body["and"][0].values()
        if len(request.body["and"]) == 1:
            found.setdefault(request.body["queryContext"], bounds["gte"])
    return found


def to_noon(clock) -> None:
    """Move the clock to noon of the next day, so that no test sees a change of the day."""
    clock.move(1.5 * DAY - time.time() % DAY)


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
        # A saved time may be ahead of the clock.
        ahead = ago(minutes=-5)
        destination.state["last_sync_time"]["messages"] = ahead
        sync(server, destination)
    assert ("messages", record_id) in destination.delivered
    assert destination.state["last_sync_time"]["messages"] == ahead


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
        assert starts(server).keys() == {"customer", "message"}
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


def test_the_single_time_of_an_older_state_applies_to_every_table(destination):
    saved = ago(days=1)
    destination.state = {"last_sync_time": saved}
    with mock(RECORDS) as server:
        sync(server, destination)
        begin = earlier(saved, days=2, minutes=10)
        assert starts(server) == {"customer": begin, "message": begin}
    assert set(destination.state["last_sync_time"]) == set(TABLES)


@pytest.mark.parametrize("kind", ["last_sync_time", "unfinished"])
@pytest.mark.parametrize("saved", ["rubbish", 5, None, pytest.param(ago(days=-1), id="tomorrow")])
def test_a_table_with_an_invalid_saved_time_is_read_from_the_start(saved, kind, destination):
    times = {"customers": ago(days=1), "messages": ago(days=1)}
    destination.state = {"last_sync_time": times, "unfinished": {}}
    destination.state[kind] = {**destination.state[kind], "customers": saved}
    with mock(RECORDS) as server:
        sync(server, destination)
        assert_mirrors(destination, server, ["customers"])
        assert len(destination.rows["messages"]) < 200
    (warning,) = destination.warnings
    assert warning.startswith(f"customers: the saved {kind} is ")
    assert warning.endswith("; the table is read from the start.")


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
    saved = ago(days=5)
    destination.state = {"last_sync_time": {"companies": saved}}
    with mock(RECORDS) as server:
        server.store.delete("customers", server.store.listed("customers")[0])
        sync(server, destination)
    lines = [
        connector.json.loads(line)["message"] for line in capsys.readouterr().out.splitlines()
    ]
    assert lines[0] == (
        "Kustomer sync: customers changed in the last 90 days, "
        f"companies changed since {earlier(saved, days=2)}, all brands, "
        "messages changed in the last 90 days."
    )
    deleted = len(destination.deleted["customers"])
    assert lines[1] == "API key: 1 request, waited 0.0 s."
    assert deleted and lines[2] == (
        f"customers: {120 - deleted} rows upserted, {deleted} deleted, 1 request, waited 0.0 s."
    )
    assert [line.split(":")[0] for line in lines[2:]] == [*TABLES, "Kustomer sync"]
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


def test_long_syncs_log_their_progress_every_30_seconds(destination, capsys, clock):
    records = bare_records("messages", even_times(2000))
    with mock(records) as server:
        server.before_answer = lambda request: clock.move(20)
        sync(server, destination, max_records_per_page="100")
        requests = len(server.requests)
    lines = [line for line in capsys.readouterr().out.splitlines() if "rows per second" in line]
    lines = [line for line in lines if "messages: " in line]
    assert 3 <= len(lines) <= requests * 20 / 30
    progress = r"messages: \d+ rows of about 2000, about \d+ s left, \d+ rows per second"
    assert re.search(progress, "".join(lines))


def test_an_error_of_the_destination_ends_the_sync_unchanged(destination, monkeypatch):
    def fail(table, row):
        raise RuntimeError("disk full")

    monkeypatch.setattr(destination, "upsert", fail)
    with mock(RECORDS) as server:
        with pytest.raises(RuntimeError, match="disk full"):
            sync(server, destination)


def test_a_table_is_due_by_its_last_sync_time_alone(destination):
    recent, yesterday = ago(minutes=30), ago(days=1)
    destination.state = {
        "last_sync_time": {"customers": recent, "messages": yesterday},
        "unfinished": {"customers": yesterday, "messages": recent},
    }
    with mock(RECORDS) as server:
        sync(server, destination, sync_frequency_hours="6")
        assert starts(server) == {"message": earlier(recent, minutes=10)}
    assert destination.state["unfinished"] == {"customers": yesterday}


# Cursors.


def test_an_interrupted_first_sync_resumes_regardless_of_the_frequency(destination):
    records = bare_records("messages", even_times(12_000))
    with mock(records) as server:
        server.order(Fault("reset", after=22))
        with pytest.raises(connector.KustomerError):
            sync(server, destination, sync_frequency_hours="168", retry_attempts="0")
        server.clear_faults()
        assert 0 < len(destination.rows["messages"]) < 12_000
        begin, server.exchanges[:] = destination.state["unfinished"]["messages"], []
        sync(server, destination, sync_frequency_hours="168")
        assert_mirrors(destination, server)
        assert starts(server)["message"] == earlier(begin, minutes=10)
    assert destination.state["unfinished"] == {}


def test_cursors_never_pass_what_is_delivered_and_are_saved_about_every_5000_rows(
    destination, monkeypatch
):
    records = bare_records("messages", even_times(12_500))
    updates = {i: r["attributes"]["updatedAt"] for i, r in records["messages"].items()}
    cursors, counts, checkpoint = [], [], destination.checkpoint

    def check(state):
        checkpoint(state)
        cursor = state["unfinished"].get("messages")
        if cursor:
            delivered = destination.rows["messages"].keys()
            assert {i for i, updated in updates.items() if updated < cursor} <= delivered
            cursors.append(cursor)
            counts.append(len(delivered))

    monkeypatch.setattr(destination, "checkpoint", check)
    with mock(records) as server:
        sync(server, destination)
    assert len(cursors) == 2 and cursors == sorted(cursors)
    assert 5_000 <= counts[0] < 5_500 and 5_000 <= counts[1] - counts[0] < 5_500
    assert "messages" in destination.state["last_sync_time"]


def test_the_first_read_of_a_day_goes_back_two_days_more(destination, clock):
    to_noon(clock)
    with mock(RECORDS) as server:
        sync(server, destination)
        for hours, days in ((1, 0), (23, 2), (1, 0), (100, 2)):
            last = destination.state["last_sync_time"]
            clock.move(hours * 3600)
            server.exchanges.clear()
            sync(server, destination)
            assert starts(server) == {
                "customer": earlier(last["customers"], days=days, minutes=10),
                "message": earlier(last["messages"], days=days, minutes=10),
            }


def test_a_read_that_resumes_does_not_go_back_two_days_more(destination):
    last, stopped = ago(days=9), ago(days=2)
    destination.state = {
        "last_sync_time": {"customers": last, "messages": last},
        "unfinished": {"messages": stopped},
    }
    with mock(RECORDS) as server:
        server.store.change("messages", server.store.listed("messages")[0], status="read")
        sync(server, destination)
        assert starts(server) == {
            "customer": earlier(last, days=2, minutes=10),
            "message": earlier(stopped, minutes=10),
        }
    assert destination.state["unfinished"] == {}


@pytest.mark.parametrize("every", [1, 6, 24], ids="every {} hours".format)
@pytest.mark.parametrize("hour", [0, 11, 23], ids="changed at {}:30".format)
def test_what_search_shows_late_once_arrives_by_the_first_sync_of_the_next_day(
    hour, every, destination, clock
):
    to_noon(clock)
    with mock(bare_records("messages", even_times(3))) as server:
        changed = server.store.listed("messages")[0]
        sync(server, destination)
        clock.move((12 + hour + 0.5) * 3600)
        server.behaviour.index_lag_seconds = 20 * 3600
        server.store.change("messages", changed, status="late")
        server.behaviour.index_lag_seconds = 0
        # Until the first sync that begins on a day after the change became visible.
        for _ in range(0, 48, every):
            clock.move(every * 3600)
            sync(server, destination)
        assert_mirrors(destination, server, ["messages"])


def test_a_cursor_that_is_older_than_two_years_begins_there_with_a_warning(destination):
    destination.state = {"last_sync_time": {"customers": ago(days=800), "messages": ago(days=1)}}
    with mock(RECORDS) as server:
        sync(server, destination)
        start = starts(server)["customer"]
    assert abs(moment(start) - moment(ago(days=730))) < timedelta(minutes=1)
    (warning,) = destination.warnings
    assert warning.startswith("customers: search covers only the last two years")
    assert "historical re-sync" in warning


def without_search(server, settings: dict) -> None:
    """Take the search role away."""
    server.behaviour.roles = ROLES - {SEARCH_ROLE}


def without_incremental_sync(server, settings: dict) -> None:
    """Turn incremental sync off."""
    settings["enable_incremental_sync"] = "false"


@pytest.mark.parametrize("turn_off", [without_search, without_incremental_sync])
def test_after_lists_stood_in_for_search_it_starts_two_days_before_it_would_have(
    turn_off, destination, clock
):
    to_noon(clock)
    records = {**RECORDS, **bare_records("companies", even_times(120))}
    with mock(records, company_search="knows") as server:
        sync(server, destination)
        began = destination.state["last_sync_time"]
        settings: dict = {}
        turn_off(server, settings)
        searched = ("customers", "companies", "messages")
        for table in searched:
            clock.move(1800)
            server.store.delete(table, server.store.listed(table)[0])
            sync(server, destination, **settings)
            # As on the first sync of a day, which a search that resumes is not.
            since = {table: earlier(began[table], days=2) for table in searched}
            assert destination.state["unfinished"] == since
            assert destination.state["last_sync_time"]["messages"] > began["messages"]
        server.behaviour.roles, server.exchanges[:] = ROLES, []
        sync(server, destination)
        assert starts(server) == {
            table: earlier(began[name], days=2, minutes=10)
            for table, name in zip(("customer", "company", "message"), searched)
        }
        assert_mirrors(destination, server)
    assert destination.state["unfinished"] == {}


@pytest.mark.parametrize("table", ["customers", "companies"])
def test_what_is_deleted_after_an_interrupted_first_list_delivered_it_is_found_later(
    table, destination, monkeypatch
):
    monkeypatch.setattr(connector, "__CHECKPOINT_EVERY_ROWS", 100)
    records = bare_records(table, even_times(450))
    with mock(records, roles=ROLES - {SEARCH_ROLE}, company_search="knows") as server:
        rules = server.behaviour
        server.order(Fault("500", path=f"/v1/{table}", after=6))
        with pytest.raises(connector.KustomerError):
            sync(server, destination, retry_attempts="0")
        server.clear_faults()
        gone = next(iter(destination.rows[table]))
        assert destination.state["unfinished"].keys() == {table}
        server.store.delete(table, gone)
        sync(server, destination)
        assert gone in destination.live(table) and len(destination.rows[table]) == 450
        rules.roles = ROLES
        sync(server, destination)
    assert destination.deleted[table] == {gone}
    assert destination.state["unfinished"] == {}


def test_a_first_read_by_list_leaves_nothing_unfinished(destination):
    with mock(RECORDS, roles=ROLES - {SEARCH_ROLE}) as server:
        sync(server, destination)
        assert destination.state["unfinished"] == {}


@pytest.mark.parametrize("last", [{}, {"companies": ago(hours=30)}], ids=["first", "later"])
def test_the_unfinished_companies_of_version_1_are_searched_from_there(last, destination):
    unfinished = ago(hours=36)
    destination.state = {"last_sync_time": last, "unfinished": {"companies": unfinished}}
    with mock(bare_records("companies", even_times(120)), company_search="knows") as server:
        for _ in range(1 if last else 2):
            assert "company" not in starts(server)
            sync(server, destination)
        assert starts(server)["company"] == earlier(unfinished, minutes=10)
    assert destination.state["unfinished"] == {}


def test_a_state_of_version_1_0_0_resumes_where_that_version_stopped(destination):
    # Version 1.0.0 saved the cursor of an interrupted sync as last_sync_time.
    interrupted = ago(days=40)
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

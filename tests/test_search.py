"""Reading changed records with search, including ties, and the fallback to the list."""

import functools
from datetime import datetime, timedelta, timezone

import pytest

import connector
from mock_server import Fault, make_records
from mock_server.behaviour import ROLES, SEARCH_ROLE
from mock_server.records import scattered, time_text
from tests.expected import assert_mirrors
from tests.support import bare_records, even_times, mock, searches, sync

RECORDS = make_records(customers=300, companies=30, brands=3, messages=1500)
SEARCHED = ["customers", "messages"]
TIED = datetime.now(timezone.utc) - timedelta(days=3)


@functools.cache
def tied_messages(number: int) -> dict:
    """Return messages that share one updatedAt, and a few messages before and after it."""
    before = [TIED + timedelta(seconds=place) for place in range(-30, 0)]
    after = [TIED + timedelta(seconds=place) for place in range(number + 30, number + 60)]
    return bare_records("messages", [*before, *[TIED] * number, *after])


@pytest.mark.parametrize("size", ["1", "7", "100", "500", "1000"])
@pytest.mark.parametrize("large_pages", ["clamp", "refuse"])
def test_every_page_size_delivers_the_same_rows(size, large_pages, destination):
    with mock(RECORDS, large_pages=large_pages) as server:
        sync(server, destination, max_records_per_page=size)
        assert_mirrors(destination, server)
    assert len(destination.delivered) == 300 + 30 + 3 + 1500
    assert not destination.warnings


def test_responses_without_links_and_counts_are_read_to_the_end(destination):
    with mock(RECORDS) as server:
        server.rewrite = lambda request, answer: answer._replace(
            payload={"data": answer.payload["data"]}
        )
        sync(server, destination, max_records_per_page="100")
        assert_mirrors(destination, server)


def test_a_first_load_sends_at_most_two_searches_more_than_there_are_pages(destination):
    records = {
        **bare_records("customers", even_times(2000)),
        **bare_records("messages", even_times(3000)),
    }
    with mock(records) as server:
        sync(server, destination)
        contexts = [request.body["queryContext"] for request in searches(server)]
    assert contexts.count("customer") <= 2000 / 500 + 2
    assert contexts.count("message") <= 3000 / 500 + 2


def test_a_sync_without_changes_sends_one_request_for_the_key_and_one_per_table(destination):
    with mock(RECORDS) as server:
        sync(server, destination)
        already = len(server.requests)
        sync(server, destination)
        paths = [request.path.removeprefix("/v1/") for request in server.requests[already:]]
    assert paths == [
        "users/current",
        "customers/search",
        "companies",
        "brands",
        "customers/search",
    ]


def test_search_requests_changes_since_the_start_of_the_window_in_ascending_order(destination):
    with mock({}) as server:
        sync(server, destination, initial_sync_days="30")
        request = searches(server)[0]
    (criterion,) = request.body.pop("and")
    start = datetime.fromisoformat(criterion["customer_updated_at"]["gte"][:-1] + "+00:00")
    assert abs(datetime.now(timezone.utc) - timedelta(days=30) - start) < timedelta(minutes=5)
    assert request.body == {
        "sort": [{"customer_updated_at": "asc"}],
        "queryContext": "customer",
        "includeDeleted": True,
    }
    assert request.params == {"page": "1", "pageSize": "500"}


@pytest.mark.parametrize("size", ["100", "500"])
def test_1300_records_with_the_same_updated_at_are_each_delivered_once(size, destination):
    with mock(tied_messages(1300)) as server:
        sync(server, destination, max_records_per_page=size)
        assert_mirrors(destination, server)
    assert len(destination.delivered) == len(set(destination.delivered))
    assert not destination.warnings


@pytest.mark.parametrize("size", [100, 500])
def test_no_record_is_missed_if_others_change_while_a_shared_updated_at_is_paged(
    size, destination
):
    with mock(tied_messages(1300)) as server:

        def move_one_away(request):
            bounds = request.body["and"] if request.body else []
            if len(bounds) == 2 and request.params["page"] != "1" and len(moved) < 20:
                tied = [key for key in server.store.keys("messages") if key[0] == time_text(TIED)]
                moved.append(tied[0][1])
                server.store.change("messages", tied[0][1], status="moved")

        moved: list = []
        server.before_answer = move_one_away
        sync(server, destination, max_records_per_page=str(size))
        assert moved
        untouched = server.store.records("messages").keys() - set(moved)
        assert untouched <= destination.rows["messages"].keys()
        server.before_answer = None
        sync(server, destination)
        assert_mirrors(destination, server)


def test_more_than_100_pages_with_the_same_updated_at_are_read_from_the_list(destination):
    with mock(tied_messages(2100)) as server:
        sync(server, destination, max_records_per_page="1")
        assert_mirrors(destination, server)
    (warning,) = destination.warnings
    assert warning.startswith("messages: more than 100 pages of records share one updatedAt.")
    assert "This sync reads the whole list of messages instead" in warning


def test_without_the_search_role_all_rows_arrive_with_one_warning_per_table(destination):
    for status in (401, 403):
        with mock(RECORDS, roles=ROLES - {SEARCH_ROLE}, missing_role_status=status) as server:
            sync(server, destination)
            assert_mirrors(destination, server)
            assert len(searches(server)) == 2
        assert [warning.split(":")[0] for warning in destination.warnings] == SEARCHED
        for warning in destination.warnings:
            assert "lacks the role org.permission.search.create" in warning
            assert "every sync reads the whole list" in warning
        destination.__init__()


@pytest.mark.parametrize("status", [400, 402, 404, 405, 409, 410, 413, 422, 451])
def test_a_search_that_is_refused_is_replaced_by_the_list(status, destination):
    with mock(RECORDS) as server:
        server.rewrite = lambda request, answer: (
            answer._replace(status=status, payload={"errors": [{"title": "Not here"}]})
            if request.method == "POST"
            else answer
        )
        sync(server, destination)
        assert_mirrors(destination, server)
    assert [warning.split(".")[0] for warning in destination.warnings] == [
        f"{table}: search was refused with {status} (Not here)"
        for table in ("customers", "messages")
    ]


@pytest.mark.parametrize("size", ["1", "100"])
def test_a_search_that_ignores_its_filter_is_replaced_by_the_list(size, destination):
    with mock(RECORDS, ignores={"filter"}) as server:
        sync(server, destination, max_records_per_page=size)
        assert_mirrors(destination, server)
    assert [warning.split(":")[0] for warning in destination.warnings] == SEARCHED


def test_a_search_that_ignores_the_page_is_replaced_by_the_list_if_pages_are_needed(destination):
    with mock(RECORDS, ignores={"page"}) as server:
        sync(server, destination)
        assert_mirrors(destination, server)
    (warning,) = destination.warnings
    assert warning.startswith("messages: search returned the same record on two pages.")


def test_a_window_of_more_than_two_years_is_read_from_the_list(destination):
    old = (datetime.now(timezone.utc) - timedelta(days=800)).isoformat()
    records = make_records(customers=20, messages=10, days=760)
    destination.state = {"last_sync_time": {"customers": old}}
    with mock(records) as server:
        sync(server, destination)
        assert_mirrors(destination, server, ["customers"])
    (warning,) = destination.warnings
    assert warning.startswith(
        "customers: search covers only records updated in the last two years"
    )


def test_records_updated_in_the_future_arrive(destination):
    ahead = time_text(datetime.now(timezone.utc) + timedelta(days=400))
    later = time_text(datetime.now(timezone.utc) + timedelta(seconds=100))
    with mock(RECORDS) as server:
        customers = server.store.listed("customers")
        for record_id in customers[:25]:
            server.store.change("customers", record_id, updatedAt=ahead)
        for record_id in customers[25:80]:
            server.store.change("customers", record_id, updatedAt=later)
        sync(server, destination, max_records_per_page="10")
        assert_mirrors(destination, server)


def test_a_change_that_search_sees_late_arrives_with_a_later_sync(destination):
    with mock(RECORDS) as server:
        sync(server, destination)
        record_id = server.store.listed("customers")[0]
        server.behaviour.index_lag_seconds = 3600.0
        server.store.change("customers", record_id, name="Late")
        sync(server, destination)
        assert destination.rows["customers"][record_id]["name"] != "Late"
        server.behaviour.index_lag_seconds = 0.0
        server.store.settle()
        sync(server, destination)
        assert_mirrors(destination, server)


def test_a_restored_record_is_no_longer_a_deleted_row(destination):
    with mock(RECORDS) as server:
        record_id = server.store.listed("customers")[0]
        server.store.delete("customers", record_id)
        sync(server, destination)
        assert record_id in destination.deleted["customers"]
        server.store.change("customers", record_id, deleted=False)
        sync(server, destination)
        assert record_id not in destination.deleted["customers"]
        assert_mirrors(destination, server)


def test_the_get_functions_work_outside_of_a_sync():
    with mock(RECORDS) as server:
        connector.log.LOG_LEVEL = None
        rows = list(connector.get_customers(server.api_key, configuration=server.configuration()))
        assert {row["id"] for row in rows} == server.store.records("customers").keys()
        recent = time_text(datetime.now(timezone.utc) - timedelta(days=5))
        later = connector.get_messages(server.api_key, recent, server.configuration())
        since = datetime.now(timezone.utc) - timedelta(days=5, minutes=10)
        assert {row["id"] for row in later} == {
            record_id
            for record_id, record in server.store.records("messages").items()
            if record["attributes"]["updatedAt"] >= time_text(since)
        }


@functools.cache
def spread_messages(number: int) -> dict:
    """Return messages whose updatedAt mostly follows their insertion order.

    Every fortieth message was updated much later.
    """
    start = datetime.now(timezone.utc) - timedelta(days=50)
    places = [place + (number // 3 if place % 40 == 39 else 0) for place in range(number)]
    times = [start + timedelta(minutes=place * 60_000 / number) for place in places]
    return bare_records("messages", times)


def listed(server) -> list:
    return [request for request in server.requests if request.path == "/v1/messages"]


def test_results_in_insertion_order_are_not_mistaken_for_sorted_results(destination):
    with mock(
        spread_messages(8000), sort_contexts=frozenset({"customer"}), unsorted_order="insertion"
    ) as server:
        sync(server, destination)
        assert_mirrors(destination, server)
        assert not listed(server)
    assert not destination.warnings


@pytest.mark.parametrize("other_sorts", ["ignore", "refuse"])
@pytest.mark.parametrize("order", ["scattered", "insertion"])
def test_if_search_does_not_sort_few_changes_still_take_few_requests(
    other_sorts, order, destination
):
    rules = {"sort_contexts": frozenset({"customer"}), "other_sorts": other_sorts}
    with mock(spread_messages(6000), unsorted_order=order, **rules) as server:
        sync(server, destination)
        assert_mirrors(destination, server)
        # The list has 60 pages.
        assert len(searches(server)) < 55
        already = len(server.requests)
        now = datetime.now(timezone.utc)
        for place, record_id in enumerate(list(server.store.records("messages"))[:700]):
            moment = time_text(now + timedelta(milliseconds=place))
            server.store.change("messages", record_id, status="changed", updatedAt=moment)
        sync(server, destination)
        assert_mirrors(destination, server)
        assert len(server.requests) - already < 30 and not listed(server)
    assert not destination.warnings


@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(days=20), timedelta(days=400)])
@pytest.mark.parametrize("place", [-1, -2, 0, 250])
def test_no_record_is_missed_if_a_result_has_a_newer_updated_at_than_its_position(
    ahead, place, destination
):
    with mock(spread_messages(4000)) as server:

        def date_one_ahead(request, answer):
            records = answer.payload.get("data")
            if request.method == "POST" and len(records) == 500:
                record = records[place] = {**records[place]}
                updated = datetime.fromisoformat(record["attributes"]["updatedAt"][:-1] + "+00:00")
                record["attributes"] = {
                    **record["attributes"],
                    "updatedAt": time_text(updated + ahead),
                }
            return answer

        server.rewrite = date_one_ahead
        sync(server, destination)
        assert destination.rows["messages"].keys() == server.store.records("messages").keys()


def test_no_record_is_missed_if_results_changed_after_they_were_indexed(destination):
    with mock(spread_messages(4000), index_lag_seconds=3600.0, shows_current=True) as server:
        for _, record_id in server.store.keys("messages")[480:1100]:
            server.store.change("messages", record_id, status="changed")
        sync(server, destination)
        assert_mirrors(destination, server)
        assert not listed(server)
    assert not destination.warnings


def test_10000_or_more_records_with_the_same_updated_at_are_read_from_the_list(destination):
    with mock(tied_messages(12_000), search_window=10_000) as server:
        sync(server, destination)
        assert_mirrors(destination, server)
    (warning,) = destination.warnings
    assert warning.startswith("messages: 10000 or more records share one updatedAt. This sync")


@pytest.mark.parametrize("tied", [0, 1300])
@pytest.mark.parametrize("place", [0, 400, -1])
def test_a_record_that_is_counted_but_not_returned_takes_at_most_one_more_request(
    tied, place, destination
):
    records = tied_messages(tied) if tied else spread_messages(900)
    hidden = sorted(
        records["messages"], key=lambda i: (records["messages"][i]["attributes"]["updatedAt"], i)
    )[place]
    with mock(records) as server:
        sync(server, destination)
        usual = len(server.requests)
    destination.__init__()
    with mock(records, hidden={hidden}) as server:
        sync(server, destination)
        everything = server.store.records("messages").keys()
        assert destination.rows["messages"].keys() == everything - {hidden}
        assert len(server.requests) <= usual + 1
    assert not destination.warnings


@pytest.mark.parametrize("kind", ["500", "html", "timed_out", "timeout", "403 without an error"])
def test_a_search_that_fails_after_all_retries_is_replaced_by_the_list(kind, destination):
    with mock(RECORDS) as server:
        if kind == "403 without an error":
            server.rewrite = lambda request, answer: (
                answer._replace(status=403, payload=None) if request.method == "POST" else answer
            )
        else:
            server.order(Fault(kind, path="/search", seconds=0.01))
        sync(server, destination, retry_attempts="1")
        assert_mirrors(destination, server)
    assert [warning.split(":")[0] for warning in destination.warnings] == SEARCHED
    assert all("The next sync resumes the search" in warning for warning in destination.warnings)


def test_after_a_failed_search_the_next_sync_resumes_where_it_stopped(
    destination,
):
    with mock(RECORDS) as server:
        sync(server, destination)
        gone = server.store.listed("customers")[0]
        server.store.delete("customers", gone)
        server.order(Fault("500", path="/search"))
        sync(server, destination)
        server.clear_faults()
        # Lists do not include deleted records.
        assert gone in destination.live("customers")
        later = time_text(datetime.now(timezone.utc) + timedelta(hours=3))
        assert destination.state["unfinished"]["customers"] < later
        sync(server, destination)
        assert gone not in destination.live("customers")
        assert_mirrors(destination, server)
    assert destination.state["unfinished"] == {}


def test_after_several_failed_searches_search_resumes_before_the_first_of_them(destination):
    with mock(RECORDS) as server:
        sync(server, destination)
        first = destination.state["last_sync_time"]["customers"]
        server.order(Fault("500", path="/search"))
        for _ in range(4):
            sync(server, destination)
            assert destination.state["unfinished"]["customers"] == first
            assert destination.state["last_sync_time"]["customers"] >= first


def test_a_table_whose_search_was_refused_counts_as_read(destination):
    with mock(RECORDS, roles=ROLES - {SEARCH_ROLE}) as server:
        sync(server, destination)
    assert destination.state["unfinished"] == {}


def test_records_that_all_share_one_updated_at_are_read_without_the_list(destination):
    with mock(bare_records("messages", [TIED] * 1200)) as server:
        sync(server, destination)
        assert_mirrors(destination, server)
        assert len(searches(server)) < 15
    assert not destination.warnings


@pytest.mark.parametrize("sorts", [True, False])
@pytest.mark.parametrize("number", [30, 700])
def test_records_updated_far_in_the_future_arrive_with_and_without_sorting(
    sorts, number, destination
):
    contexts = frozenset({"customer", "message"} if sorts else ())
    with mock(spread_messages(1500), sort_contexts=contexts) as server:
        for place, record_id in enumerate(list(server.store.records("messages"))[:number]):
            ahead = datetime.now(timezone.utc) + timedelta(days=300, minutes=place)
            server.store.change("messages", record_id, updatedAt=time_text(ahead))
        sync(server, destination)
        assert_mirrors(destination, server)
        assert not listed(server)
    now = time_text(datetime.now(timezone.utc))
    assert destination.state["last_sync_time"]["messages"] <= now


@pytest.mark.parametrize("shown", ["given", "asked", "absent"])
@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("rules", [{"page_size_limit": 25}, {"forced_page_size": 50}])
def test_all_search_pages_are_read_if_they_have_another_size_than_requested(
    rules, links, shown, destination
):
    with mock(spread_messages(700), page_size_shown=shown, shows_links=links, **rules) as server:
        sync(server, destination)
        assert_mirrors(destination, server)
    assert not destination.warnings


@pytest.mark.parametrize("settings", [{}, {"max_records_per_page": "20"}])
@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("total", [True, False])
@pytest.mark.parametrize("sorts", [True, False])
def test_all_records_arrive_with_any_combination_of_links_counts_and_order(
    sorts, total, links, settings, destination
):
    contexts = frozenset({"customer", "message"} if sorts else ())
    rules = {"sort_contexts": contexts, "shows_total": total, "shows_links": links}
    with mock(tied_messages(650), **rules) as server:
        sync(server, destination, **settings)
        assert_mirrors(destination, server)


@pytest.mark.parametrize("kind", ["last_sync_time", "unfinished"])
def test_search_finds_deletions_from_before_a_sync_that_was_not_incremental(kind, destination):
    now = datetime.now(timezone.utc)
    with mock(RECORDS) as server:
        sync(server, destination)
        gone = server.store.listed("customers")[0]
        deleted_at = time_text(now - timedelta(hours=1))
        server.store.change("customers", gone, deleted=True, updatedAt=deleted_at)
        destination.state[kind]["customers"] = cursor = time_text(now - timedelta(hours=2))
        sync(server, destination, enable_incremental_sync="false")
        # A list does not show what was deleted.
        assert gone in destination.live("customers")
        assert destination.state["unfinished"]["customers"] == cursor
        sync(server, destination)
        assert_mirrors(destination, server)
    assert destination.state["unfinished"] == {} and not destination.warnings


@pytest.mark.parametrize("sorts", [True, False])
@pytest.mark.parametrize("swapped", [(25, 85), (0, 119), (30, 45)])
def test_no_record_is_missed_if_the_order_of_a_tie_differs_between_requests(
    swapped, sorts, destination
):
    contexts = frozenset({"customer", "message"} if sorts else {"customer"})
    with mock(tied_messages(120), sort_contexts=contexts) as server:
        tied = [key[1] for key in server.store.keys("messages") if key[0] == time_text(TIED)]
        swapped_ids = list(tied)
        first, second = swapped
        swapped_ids[first], swapped_ids[second] = tied[second], tied[first]
        asked: list = []

        def serve_from_another_copy(request, answer):
            bounds = request.body["and"] if request.body else []
            if len(bounds) == 2 and answer.payload["meta"]["total"] == 120:
                asked.append(request)
                ids = swapped_ids if len(asked) % 2 else tied
                page = int(request.params["page"])
                records = server.store.records("messages")
                data = [records[i] for i in ids[20 * (page - 1) : 20 * page]]
                answer.payload["data"] = data
            return answer

        server.rewrite = serve_from_another_copy
        sync(server, destination, max_records_per_page="20")
        assert len(asked) > 1
        assert_mirrors(destination, server)


@pytest.mark.parametrize("counted", [20, 21, 40])
def test_no_record_is_missed_if_the_count_of_a_tie_is_too_low(counted, destination):
    with mock(tied_messages(120), sort_contexts=frozenset({"customer"})) as server:

        def count_less(request, answer):
            if request.method == "POST":
                meta = answer.payload["meta"]
                meta["total"] = min(meta["total"], counted)
            return answer

        server.rewrite = count_less
        sync(server, destination, max_records_per_page="20")
        assert_mirrors(destination, server)
    (warning,) = destination.warnings
    assert "search counts fewer records than share one updatedAt" in warning


def test_without_links_no_record_is_missed_if_one_moves_to_the_first_page(destination):
    start = datetime.now(timezone.utc) - timedelta(days=5)
    times = [start + timedelta(milliseconds=40 * n, days=n // 21) for n in range(41)]
    rules = {"shows_links": False, "sort_contexts": frozenset({"message"})}
    with mock(bare_records("customers", times), **rules) as server:

        def update_one_of_21(request):
            if request.method != "POST" or request.params["page"] != "2" or changed:
                return
            bounds = [next(iter(bound.values())) for bound in request.body["and"]]
            if len(bounds) == 2:
                low, high = bounds[0]["gte"], bounds[1]["lt"]
                found = [i for at, i in server.store.keys("customers") if low <= at < high]
                if len(found) == 21:
                    changed.append(found[0])
                    server.store.change("customers", found[0], name="Changed")

        changed: list = []
        server.before_answer = update_one_of_21
        sync(server, destination, max_records_per_page="20")
        assert changed
        assert_mirrors(destination, server)


@pytest.mark.parametrize("sorts", [True, False])
def test_a_tie_that_records_are_still_joining_is_not_unreliable(sorts, destination):
    contexts = frozenset({"customer", "message"} if sorts else {"customer"})
    now = datetime.now(timezone.utc) - timedelta(seconds=30)
    tied = bare_records("messages", [now] * 130)["messages"]
    late = [tied.pop(record_id) for record_id in list(tied)[100:]]
    with mock({"messages": tied}, sort_contexts=contexts) as server:

        def join(request):
            if request.method == "POST" and len((request.body or {}).get("and", ())) == 2 and late:
                server.store.put("messages", late.pop())

        server.before_answer = join
        sync(server, destination, max_records_per_page="20")
        server.before_answer = None
        assert len(late) < 30
        sync(server, destination, max_records_per_page="20")
        assert_mirrors(destination, server)
        assert not listed(server)
    assert not destination.warnings


def test_a_tie_whose_count_grows_although_it_is_old_is_read_from_the_list(destination):
    with mock(tied_messages(120)) as server:

        def count_fewer_at_first(request, answer):
            if request.method == "POST" and len(request.body["and"]) == 2:
                missing = 3 if request.params["page"] == "6" else 0
                answer.payload["meta"]["total"] -= missing
            return answer

        server.rewrite = count_fewer_at_first
        sync(server, destination, max_records_per_page="20")
        assert_mirrors(destination, server)
    (warning,) = destination.warnings
    assert "search counts fewer records than share one updatedAt" in warning


@pytest.mark.parametrize("sorts", [True, False])
def test_a_last_page_of_hidden_records_does_not_make_a_tie_unreliable(sorts, destination):
    contexts = frozenset({"customer", "message"} if sorts else {"customer"})
    records = tied_messages(101)
    with mock(records, sort_contexts=contexts) as server:
        tied = [key[1] for key in server.store.keys("messages") if key[0] == time_text(TIED)]
        last = tied[-1] if sorts else max(tied, key=scattered)
        server.behaviour.hidden = {last}
        sync(server, destination, max_records_per_page="20")
        everything = server.store.records("messages").keys()
        assert destination.rows["messages"].keys() == everything - {last}
        assert not listed(server)
    assert not destination.warnings

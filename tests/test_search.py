"""Finding changed customers and messages: the walk by key, ties, and the fall-back to the list."""

from datetime import datetime, timedelta, timezone

import pytest

import connector
from mock_server import make_records
from mock_server.api import ROLES, SEARCH_ROLE
from mock_server.records import time_text
from tests.expected import assert_mirrors
from tests.support import mock, searches, sync

RECORDS = make_records(customers=300, companies=30, brands=3, messages=1500)
TIED = datetime.now(timezone.utc) - timedelta(days=3)


def tied_messages(number: int) -> dict:
    """Return messages that share one updatedAt, with a few before and after."""
    messages = make_records(messages=number + 60, same_moment=0)["messages"]
    for place, message in enumerate(messages.values()):
        offset = timedelta(
            seconds=place - 30 if place < 30 else 0 if place < number + 30 else place
        )
        message["attributes"]["updatedAt"] = time_text(TIED + offset)
    return {"messages": messages}


@pytest.mark.parametrize("size", ["1", "7", "100", "500", "1000"])
@pytest.mark.parametrize("large_pages", ["clamp", "refuse"])
def test_every_page_size_gives_the_same_rows(size, large_pages, destination):
    with mock(RECORDS, large_pages=large_pages) as server:
        sync(server, destination, max_records_per_page=size)
        assert_mirrors(destination, server)
    assert len(destination.delivered) == 300 + 30 + 3 + 1500
    assert not destination.warnings


def test_pages_without_links_are_read_to_the_end(destination):
    with mock(RECORDS) as server:
        server.rewrite = lambda request, answer: answer._replace(
            payload={"data": answer.payload["data"]}
        )
        sync(server, destination, max_records_per_page="100")
        assert_mirrors(destination, server)


def test_a_first_load_takes_a_search_for_each_page_and_two_more(destination):
    records = make_records(customers=2000, messages=3000, same_moment=0)
    with mock(records) as server:
        sync(server, destination)
        contexts = [request.body["queryContext"] for request in searches(server)]
    assert contexts.count("customer") <= 2000 / 500 + 2
    assert contexts.count("message") <= 3000 / 500 + 2


def test_a_sync_with_nothing_changed_takes_a_request_for_the_key_and_one_a_table(destination):
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


def test_the_search_asks_for_changes_since_the_window_in_ascending_order(destination):
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
def test_1300_records_of_one_millisecond_are_all_delivered_once(size, destination):
    with mock(tied_messages(1300)) as server:
        sync(server, destination, max_records_per_page=size)
        assert_mirrors(destination, server)
    assert len(destination.delivered) == len(set(destination.delivered))
    assert not destination.warnings


@pytest.mark.parametrize("size", [100, 500])
def test_records_that_move_away_while_their_millisecond_is_paged_hide_no_other(size, destination):
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


def test_more_than_a_hundred_pages_of_one_millisecond_are_read_from_the_list(destination):
    with mock(tied_messages(2100)) as server:
        sync(server, destination, max_records_per_page="1")
        assert_mirrors(destination, server)
    (warning,) = destination.warnings
    assert warning.startswith("messages: more than 100 pages of records share one updatedAt.")
    assert "Every sync reads the whole list of messages instead" in warning


def test_without_the_search_role_the_rows_are_the_same_with_one_warning(destination):
    for status in (401, 403):
        with mock(RECORDS, roles=ROLES - {SEARCH_ROLE}, missing_role_status=status) as server:
            sync(server, destination)
            assert_mirrors(destination, server)
            assert len(searches(server)) == 1
        (warning,) = destination.warnings
        assert "lacks the role org.permission.search.create" in warning
        destination.__init__()


@pytest.mark.parametrize("status", [400, 404, 405, 422])
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


@pytest.mark.parametrize("ignored", ["sort", "filter"])
@pytest.mark.parametrize("size", ["1", "100"])
def test_a_search_that_ignores_what_it_was_asked_is_replaced_by_the_list(
    ignored, size, destination
):
    with mock(RECORDS, ignores={ignored}) as server:
        sync(server, destination, max_records_per_page=size)
        assert_mirrors(destination, server)
    assert [warning.split(":")[0] for warning in destination.warnings] == ["customers", "messages"]


def test_a_search_that_ignores_the_page_is_replaced_by_the_list_where_it_matters(destination):
    with mock(RECORDS, ignores={"page"}) as server:
        sync(server, destination)
        assert_mirrors(destination, server)
    (warning,) = destination.warnings
    assert warning.startswith("messages: search gives the same page again and again.")


def test_a_window_that_begins_before_searchs_two_years_is_read_from_the_list(destination):
    old = (datetime.now(timezone.utc) - timedelta(days=800)).isoformat()
    records = make_records(customers=20, messages=10, days=760)
    destination.state = {"last_sync_time": {"customers": old}}
    with mock(records) as server:
        sync(server, destination)
        assert_mirrors(destination, server, ["customers"])
    (warning,) = destination.warnings
    assert warning.startswith("customers: search knows only records updated in the last two years")


def test_a_record_dated_ahead_of_the_clock_arrives(destination):
    ahead = time_text(datetime.now(timezone.utc) + timedelta(days=400))
    later = time_text(datetime.now(timezone.utc) + timedelta(seconds=100))
    with mock(RECORDS) as server:
        customers = server.store.listed("customers")
        for record_id in customers[:25]:
            server.store.change("customers", record_id, updatedAt=ahead)
        for record_id in customers[25:80]:
            server.store.change("customers", record_id, updatedAt=later)
        sync(server, destination, max_records_per_page="10")
        assert set(customers[:25]) <= destination.rows["customers"].keys()
        # What was changed after the window's end is the next sync's.
        assert destination.rows["customers"].keys().isdisjoint(customers[25:80])


def test_an_index_that_lags_loses_nothing_within_the_overlap(destination):
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


def test_a_record_that_comes_back_from_the_dead_is_alive_again(destination):
    with mock(RECORDS) as server:
        record_id = server.store.listed("customers")[0]
        server.store.delete("customers", record_id)
        sync(server, destination)
        assert record_id in destination.deleted["customers"]
        server.store.change("customers", record_id, deleted=False)
        sync(server, destination)
        assert record_id not in destination.deleted["customers"]
        assert_mirrors(destination, server)


def test_a_generator_works_by_itself():
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

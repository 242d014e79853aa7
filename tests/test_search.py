"""Finding changed records with search, and what happens if search refuses or is unusable."""

import functools
import time
from datetime import datetime, timedelta, timezone

import pytest

import connector
from mock_server import make_records
from mock_server.behaviour import ROLES, SEARCH_ROLE
from mock_server.records import time_text
from tests.expected import assert_mirrors
from tests.support import bare_records, earlier, even_times, mock, move_to_noon, searches, sync

RECORDS = make_records(customers=300, companies=30, brands=3, messages=1500)
SEARCHED = ["customers", "messages"]
UNSORTED = frozenset({"customer"})


@pytest.fixture(autouse=True)
def noon(clock) -> None:
    move_to_noon(clock)


@functools.cache
def tied_messages(number: int) -> dict:
    """Return messages that share one updatedAt, and a few messages before and after it."""
    tied = datetime.now(timezone.utc) - timedelta(days=3)
    before = [tied + timedelta(seconds=place) for place in range(-30, 0)]
    after = [tied + timedelta(seconds=place) for place in range(1, 31)]
    return bare_records("messages", [*before, *[tied] * number, *after])


@functools.cache
def spread_messages(number: int) -> dict:
    """Return messages in even intervals. Every fortieth was updated much later than its place."""
    start = datetime.now(timezone.utc) - timedelta(days=50)
    places = [place + (number // 3 if place % 40 == 39 else 0) for place in range(number)]
    times = [start + timedelta(minutes=place * 60_000 / number) for place in places]
    return bare_records("messages", times)


def page_requests(server, tables=SEARCHED) -> list:
    """Return the requests for pages of the lists of tables."""
    return [r for r in server.requests if r.path in [f"/v1/{table}" for table in tables]]


def tied_ids(server) -> list:
    """Return the ids of the messages that share one updatedAt, in search order."""
    keys = server.store.keys("messages")
    times = [at for at, _ in keys]
    return [record_id for at, record_id in keys if times.count(at) > 1]


def rewriting_searches(change):
    """Return a `rewrite` for a mock that changes the payload of each search."""

    def rewrite(request, answer):
        if request.method == "POST":
            change(request, answer.payload)
        return answer

    return rewrite


# What is asked, and how often.


def test_search_requests_changes_since_the_start_of_the_window_in_ascending_order(destination):
    with mock({}) as server:
        sync(server, destination, initial_sync_days="30")
        request, now = searches(server)[0], server.behaviour.now()
    (criterion,) = request.body.pop("and")
    start = datetime.fromisoformat(criterion["customer_updated_at"]["gte"][:-1] + "+00:00")
    assert abs(now - timedelta(days=30) - start) < timedelta(minutes=5)
    assert request.body == {
        "sort": [{"customer_updated_at": "asc"}],
        "queryContext": "customer",
        "includeDeleted": True,
    }
    assert request.params == {"page": "1", "pageSize": "500"}


@pytest.mark.parametrize("size, asked", [("1", "100"), ("100", "100"), ("1000", "500")])
def test_every_page_size_delivers_the_same_rows(size, asked, destination):
    with mock(RECORDS) as server:
        sync(server, destination, max_records_per_page=size)
        assert_mirrors(destination, server)
        assert {request.params["pageSize"] for request in searches(server)} == {asked}
    assert len(destination.delivered) == 300 + 30 + 3 + 1500
    assert not destination.warnings


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


# Behavior that Kustomer's documentation leaves open.


@pytest.mark.parametrize("other_sorts", ["ignore", "refuse"])
def test_if_search_does_not_sort_nothing_is_missed_and_no_list_is_read(other_sorts, destination):
    rules = {"sort_contexts": UNSORTED, "other_sorts": other_sorts}
    with mock(spread_messages(2000), **rules) as server:
        sync(server, destination, max_records_per_page="100")
        assert_mirrors(destination, server)
        server.exchanges.clear()
        now = server.behaviour.now()
        for place, record_id in enumerate(list(server.store.records("messages"))[:250]):
            moment = time_text(now + timedelta(milliseconds=place))
            server.store.change("messages", record_id, status="changed", updatedAt=moment)
        sync(server, destination, max_records_per_page="100")
        assert_mirrors(destination, server)
        assert len(server.requests) < 15 and not page_requests(server)
    assert not destination.warnings


@pytest.mark.parametrize("sort_contexts", [{"customer", "message"}, UNSORTED])
@pytest.mark.parametrize("number", [30, 700])
def test_records_updated_in_the_future_arrive(number, sort_contexts, destination):
    with mock(spread_messages(1500), sort_contexts=frozenset(sort_contexts)) as server:
        now = server.behaviour.now()
        for place, record_id in enumerate(list(server.store.records("messages"))[:number]):
            ahead = now + timedelta(days=300, minutes=place)
            server.store.change("messages", record_id, updatedAt=time_text(ahead))
        sync(server, destination, max_records_per_page="100")
        assert_mirrors(destination, server)
        assert not page_requests(server)
        last = destination.state["last_sync_time"]["messages"]
        assert last <= time_text(server.behaviour.now())


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("limit", [None, 25])
def test_all_records_arrive_without_links_and_with_smaller_pages_than_requested(
    limit, links, destination
):
    with mock(tied_messages(150), page_size_limit=limit, shows_links=links) as server:
        sync(server, destination, max_records_per_page="100")
        assert_mirrors(destination, server)
        assert not page_requests(server)
    assert not [text for text in destination.warnings if text.startswith("messages:")]


def test_the_pages_of_a_slice_are_read_from_the_last_to_the_second(destination):
    with mock(tied_messages(950)) as server:
        sync(server, destination, max_records_per_page="100")
        assert_mirrors(destination, server)
        pages: dict = {}
        for request in searches(server):
            slice_pages = pages.setdefault(str(request.body["and"]), [])
            slice_pages.append(int(request.params["page"]))
    longest = max(pages.values(), key=len)
    assert longest == [1, *range(10, 1, -1)]


# Records that share one updatedAt.


@pytest.mark.parametrize("size", ["100", "500"])
def test_1300_records_with_the_same_updated_at_are_each_delivered_once(size, destination):
    with mock(tied_messages(1300)) as server:
        sync(server, destination, max_records_per_page=size)
        assert_mirrors(destination, server)
        assert not page_requests(server)
    assert len(destination.delivered) == len(set(destination.delivered))
    assert not destination.warnings


@pytest.mark.parametrize("sort_contexts", [{"customer", "message"}, UNSORTED])
@pytest.mark.parametrize("kind", ["change", "delete", "erase"])
def test_no_record_is_missed_if_others_leave_a_shared_updated_at_while_it_is_paged(
    kind, sort_contexts, destination
):
    with mock(tied_messages(700), sort_contexts=frozenset(sort_contexts)) as server:

        def move_away(request):
            if request.body and request.params["page"] != "1" and left:
                for _ in range(3):
                    gone.append(left.pop())
                    getattr(server.store, kind)("messages", gone[-1])

        left, gone = tied_ids(server)[:60], []
        server.before_answer = move_away
        sync(server, destination, max_records_per_page="100")
        assert gone
        untouched = server.store.records("messages").keys() - set(gone)
        assert untouched <= destination.rows["messages"].keys()
        server.before_answer = None
        sync(server, destination)
        if kind != "erase":
            assert_mirrors(destination, server)
        assert not page_requests(server)
    assert not destination.warnings


@pytest.mark.parametrize("sort_contexts", [{"customer", "message"}, UNSORTED])
def test_a_shared_updated_at_that_records_are_still_joining_is_not_unusable(
    sort_contexts, destination
):
    records = list(bare_records("messages", even_times(400))["messages"].values())
    with mock({}, sort_contexts=frozenset(sort_contexts)) as server:
        just_now = time_text(server.behaviour.now() - timedelta(seconds=30))
        tied = [
            {**record, "attributes": {"createdAt": just_now, "updatedAt": just_now}}
            for record in records
        ]
        late = tied[330:]
        for record in tied[:330]:
            server.store.put("messages", record)

        def join(request):
            if request.body and len(request.body["and"]) == 2 and late:
                server.store.put("messages", late.pop())

        server.before_answer = join
        sync(server, destination, max_records_per_page="100")
        server.before_answer = None
        assert len(late) < 70
        sync(server, destination, max_records_per_page="100")
        assert_mirrors(destination, server)
        assert not page_requests(server)
    assert not destination.warnings


@pytest.mark.parametrize("replicas", [2, 3])
@pytest.mark.parametrize("sort_contexts", [{"customer", "message"}, UNSORTED])
def test_no_record_is_missed_if_the_order_differs_from_request_to_request(
    sort_contexts, replicas, destination
):
    rules = {"sort_contexts": frozenset(sort_contexts), "replicas": replicas}
    with mock(spread_messages(900), **rules) as server:
        sync(server, destination, max_records_per_page="100")
        assert_mirrors(destination, server)
        assert not page_requests(server)
    assert not destination.warnings


def test_a_shared_updated_at_whose_order_differs_from_request_to_request_is_read_from_the_list(
    destination,
):
    with mock(tied_messages(400), replicas=3) as server:
        sync(server, destination, max_records_per_page="100")
        assert_mirrors(destination, server)
    (warning,) = destination.warnings
    assert warning.startswith("messages: search does not return all records that share one")
    assert "The whole list is read instead" in warning


def test_a_record_that_is_counted_but_not_returned_costs_a_few_searches(destination):
    records = bare_records("messages", even_times(900))
    with mock(records) as server:
        sync(server, destination, max_records_per_page="100")
        usual = len(server.requests)
    destination.__init__()
    with mock(records) as server:
        hidden = server.store.keys("messages")[400][1]
        server.behaviour.hidden = {hidden}
        sync(server, destination, max_records_per_page="100")
        everything = server.store.records("messages").keys()
        assert destination.rows["messages"].keys() == everything - {hidden}
        assert len(server.requests) <= usual + 30
        assert not page_requests(server)
    assert not destination.warnings


# Search is refused: the list is read, and search finds later what has been deleted.


def refuse(status: int):
    def rewrite(request, answer):
        if request.method != "POST":
            return answer
        return answer._replace(status=status, payload={"errors": [{"title": "Not here"}]})

    return rewrite


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 422])
def test_a_search_that_is_refused_twice_is_replaced_by_the_list(status, destination):
    with mock(RECORDS) as server:
        server.rewrite = refuse(status)
        sync(server, destination)
        assert_mirrors(destination, server)
        assert len(searches(server)) == 4
    assert [warning.split(".")[0].split(":")[:2] for warning in destination.warnings] == [
        [table, f" search was refused with {status} (Not here)"] for table in SEARCHED
    ]


@pytest.mark.parametrize("status", [401, 403])
def test_without_the_search_role_all_rows_arrive_with_one_warning_per_table(status, destination):
    with mock(RECORDS, roles=ROLES - {SEARCH_ROLE}, missing_role_status=status) as server:
        sync(server, destination)
        assert_mirrors(destination, server)
    assert [warning.split(":")[0] for warning in destination.warnings] == SEARCHED
    for warning in destination.warnings:
        assert "lacks the role org.permission.search.create" in warning
        assert "does not show what has been deleted, but search will" in warning


def test_while_search_is_refused_the_start_of_the_next_search_does_not_move(destination, clock):
    with mock(RECORDS) as server:
        sync(server, destination)
        first = destination.state["last_sync_time"]
        since = {table: earlier(first[table], days=2) for table in SEARCHED}
        server.behaviour.roles = ROLES - {SEARCH_ROLE}
        for _ in range(3):
            clock.move(3600)
            server.store.change("customers", server.store.listed("customers")[1], name="New")
            sync(server, destination)
            assert destination.state["unfinished"] == since
            assert destination.state["last_sync_time"]["customers"] > first["customers"]
            assert_mirrors(destination, server)
        # Rows are delivered again only if they have changed since the previous sync.
        destination.delivered.clear()
        sync(server, destination)
        delivered = [key for key in destination.delivered if key[0] in SEARCHED]
        assert len(delivered) == 1


@pytest.mark.parametrize("page", [2, 3])
def test_a_refused_later_page_is_not_about_sorting(page, destination):
    with mock(spread_messages(500)) as server:
        server.rewrite = lambda request, answer: (
            refuse(400)(request, answer) if request.params.get("page") == str(page) else answer
        )
        sync(server, destination, max_records_per_page="100")
        assert_mirrors(destination, server, ["messages"])
        assert all("sort" in request.body for request in searches(server))
    (warning,) = destination.warnings
    assert "messages: search was refused with 400" in warning


# Search is unusable: the list is read, and search goes on from now.


def without_count(_request, payload):
    del payload["meta"]["total"]


def from_before(_request, payload):
    for record in payload["data"][:1]:
        old = {"updatedAt": "2019-01-01T00:00:00.000Z", "createdAt": "2019-01-01T00:00:00.000Z"}
        payload["data"][0] = {**record, "attributes": old}


def ends_on_the_first_page(_request, payload):
    payload["links"]["next"] = None


@pytest.mark.parametrize(
    "spoil, problem",
    [
        (without_count, "search does not count its results"),
        (from_before, "search returns records from before the requested time"),
        (ends_on_the_first_page, "search counts more records than it shows"),
    ],
)
def test_an_unusable_search_is_replaced_by_the_list_and_goes_on_from_now(
    spoil, problem, destination
):
    with mock(bare_records("messages", even_times(300))) as server:
        server.rewrite = rewriting_searches(spoil)
        sync(server, destination, max_records_per_page="100")
        assert destination.live("messages").keys() == server.store.records("messages").keys()
        assert page_requests(server, ["messages"])
        (warning,) = [text for text in destination.warnings if text.startswith("messages:")]
        assert problem in warning
        assert "does not show what has been deleted since the last sync" in warning
        assert "messages" in destination.state["last_sync_time"]
        assert destination.state["unfinished"] == {}
        server.rewrite = None
        server.store.change("messages", server.store.listed("messages")[0], status="changed")
        server.exchanges.clear()
        sync(server, destination)
        assert_mirrors(destination, server)
        assert not page_requests(server, ["messages"])


def test_a_search_that_does_not_understand_its_criterion_is_unusable(destination):
    with mock(RECORDS) as server:
        sync(server, destination)
        server.store.change("customers", server.store.listed("customers")[0], name="Changed")
        server.before_answer = lambda request: (request.body or {}).update({"and": []})
        sync(server, destination)
        assert_mirrors(destination, server)
    assert [warning.split(":")[0] for warning in destination.warnings] == SEARCHED


def test_10000_or_more_records_with_the_same_updated_at_are_read_from_the_list(destination):
    with mock(tied_messages(10_500), search_window=10_000) as server:
        sync(server, destination)
        assert_mirrors(destination, server)
    (warning,) = destination.warnings
    assert warning.startswith(
        "messages: 10000 or more records share one updatedAt. The whole list"
    )


# Rows.


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
        recent = server.behaviour.now() - timedelta(days=5)
        later = connector.get_messages(server.api_key, time_text(recent), server.configuration())
        since = recent - timedelta(minutes=10)
        assert {row["id"] for row in later} == {
            record_id
            for record_id, record in server.store.records("messages").items()
            if record["attributes"]["updatedAt"] >= time_text(since)
        }


def test_a_first_page_that_has_other_records_when_it_is_read_again_is_not_trusted(destination):
    moment = datetime.fromtimestamp(time.time(), timezone.utc) - timedelta(days=1)
    records = bare_records("messages", [moment] * 150)
    ids = list(records["messages"])
    with mock(records) as server:

        def let_one_leave(request):
            if request.params.get("page") == "2" and len(searches(server)) < 6:
                server.store.change("messages", ids[0])

        def answer_from_another_server(request, answer):
            # The record that has moved from page 2 to page 1 is not on the page 1 of this server.
            is_again = request.params.get("page") == "1" and "lt" in str(request.body)
            if is_again and len(answer.payload["data"]) == 100 and ids[0] not in str(answer):
                known = server.store.records("messages")
                answer.payload["data"] = [known[record_id] for record_id in ids[-48:] + ids[1:53]]
            return answer

        server.before_answer, server.rewrite = let_one_leave, answer_from_another_server
        sync(server, destination, max_records_per_page="100")
        assert_mirrors(destination, server, ["messages"])

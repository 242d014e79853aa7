"""Reading whole lists, with any page sizes and while records change."""

import functools
import random
from datetime import datetime, timedelta, timezone

import pytest

import connector
from mock_server import make_records
from mock_server.records import time_text
from tests.expected import assert_mirrors
from tests.support import bare_records, even_times, mock, sync

RECORDS = make_records(customers=250, companies=450, brands=5, messages=300)
overlapping_page = connector.__overlapping_page


@functools.cache
def companies(number: int) -> dict:
    """Return companies. They can be cached, because the mock never modifies a record in place."""
    return bare_records("companies", even_times(number))


def list_requests(server, table: str) -> list:
    return [request for request in server.requests if request.path == f"/v1/{table}"]


@pytest.mark.parametrize("limit", [20, 50, 99, 100])
def test_each_list_page_overlaps_the_page_before_with_few_additional_pages(limit):
    reached, pages = 0, 0
    while reached < 20_000:
        number, size = overlapping_page(reached, limit)
        begin, end = (number - 1) * size, number * size
        assert size <= limit and end > reached and (begin < reached or reached == 0)
        reached, pages = end, pages + 1
    assert pages <= (1.2 if limit == 100 else 1.5) * 20_000 / limit


def test_without_incremental_sync_records_of_any_age_are_read(destination):
    records = make_records(customers=50, companies=50, brands=2, messages=50, days=1000)
    with mock(records) as server:
        sync(server, destination, enable_incremental_sync="false")
        assert_mirrors(destination, server)
        sync(server, destination, enable_incremental_sync="false")
        assert not any(request.method == "POST" for request in server.requests)
    assert len(destination.delivered) == 2 * sum(
        len(destination.live(t)) for t in destination.rows
    )


def test_only_companies_changed_within_the_window_are_delivered(destination):
    records = companies(50)
    with mock(records) as server:
        old, *others = server.store.listed("companies")
        long_ago = time_text(datetime.now(timezone.utc) - timedelta(days=31))
        server.store.change("companies", old, updatedAt=long_ago)
        for record_id in others:
            server.store.change("companies", record_id, name="New")
        sync(server, destination, initial_sync_days="30")
        assert destination.rows["companies"].keys() == set(others)
        destination.delivered.clear()
        server.store.change("companies", old, name="Newer")
        destination.state["last_sync_time"]["companies"] = time_text(
            datetime.now(timezone.utc) + timedelta(minutes=9)
        )
        sync(server, destination)
    assert {row_id for table, row_id in destination.delivered} == {old, *others}


def test_a_server_that_returns_smaller_pages_than_requested_is_read_to_the_end(destination):
    with mock(RECORDS) as server:

        def clamp(request):
            if request.params.get("pageSize"):
                request.params["pageSize"] = str(min(int(request.params["pageSize"]), 30))

        server.before_answer = clamp
        sync(server, destination, enable_incremental_sync="false")
        assert_mirrors(destination, server)


def test_a_list_whose_pages_lack_some_records_is_read_to_the_end(destination):
    with mock(RECORDS) as server:

        def leave_some_out(request, answer):
            if request.path == "/v1/companies":
                answer.payload["data"] = [
                    record for record in answer.payload["data"] if record["id"] not in left_out
                ]
            return answer

        left_out = set(server.store.listed("companies")[95:100])
        server.rewrite = leave_some_out
        sync(server, destination)
    everything = RECORDS["companies"].keys()
    assert destination.rows["companies"].keys() == everything - left_out


@pytest.mark.parametrize("size", ["20", "100"])
def test_no_record_is_missed_if_others_leave_the_list_while_it_is_read(size, destination):
    with mock(RECORDS) as server:

        def erase_from_the_front(request):
            if request.path == "/v1/companies" and len(erased) < 60:
                for record_id in server.store.listed("companies")[:3]:
                    erased.append(record_id)
                    server.store.erase("companies", record_id)

        erased: list = []
        server.before_answer = erase_from_the_front
        sync(server, destination, max_records_per_page=size)
    everything = RECORDS["companies"].keys()
    assert everything - set(erased) <= destination.rows["companies"].keys()


def test_no_record_is_missed_if_others_join_the_list_while_it_is_read(destination):
    extra = list(make_records(companies=40, seed=5)["companies"].values())
    with mock(RECORDS) as server:

        def add_one(request):
            if request.path == "/v1/companies" and extra:
                server.store.put("companies", extra.pop())

        server.before_answer = add_one
        sync(server, destination, max_records_per_page="20")
        assert RECORDS["companies"].keys() <= destination.rows["companies"].keys()


def test_a_list_that_repeats_one_page_forever_is_an_error(destination):
    with mock(RECORDS) as server:

        def repeat(request, answer):
            if request.path == "/v1/companies":
                answer.payload["links"]["next"] = "/v1/companies?page=2"
            return answer

        server.before_answer = lambda request: request.params.update(page="1")
        server.rewrite = repeat
        with pytest.raises(
            connector.KustomerError,
            match="GET /v1/companies returned 40 pages in a row without a new record",
        ):
            sync(server, destination)
        assert len(list_requests(server, "companies")) < 45


def test_a_list_that_never_reports_its_end_is_an_error(destination):
    with mock(RECORDS) as server:

        def no_end(request, answer):
            if request.path == "/v1/companies":
                answer.payload["links"]["next"] = "/v1/companies?page=2"
            return answer

        server.rewrite = no_end
        with pytest.raises(
            connector.KustomerError,
            match="GET /v1/companies returned 40 pages in a row without a new record",
        ):
            sync(server, destination)


def test_a_list_with_fewer_records_than_its_total_is_warned_about(destination):
    with mock(RECORDS) as server:

        def count_more(request, answer):
            if request.path == "/v1/customers":
                answer.payload["meta"]["total"] = 10_000
            return answer

        server.rewrite = count_more
        sync(server, destination, enable_incremental_sync="false")
        listed = len(server.store.listed("customers"))
    assert [
        w for w in destination.warnings if f"10000 records, but its list ended after {listed}" in w
    ]


def test_brands_are_mirrored_including_deletions(destination):
    with mock(RECORDS) as server:
        sync(server, destination)
        gone, *_ = server.store.listed("brands")
        server.store.erase("brands", gone)
        sync(server, destination)
        assert_mirrors(destination, server)
    assert destination.deleted["brands"] == {gone}


def test_an_empty_list_of_brands_deletes_no_rows(destination):
    with mock(RECORDS) as server:
        sync(server, destination)
        for record_id in server.store.listed("brands"):
            server.store.erase("brands", record_id)
        sync(server, destination)
    assert len(destination.live("brands")) == 5


def test_no_brand_is_deleted_if_the_list_cannot_be_read_to_the_end(destination):
    records = make_records(brands=150)
    with mock(records) as server:
        sync(server, destination)
        server.rewrite = lambda request, answer: (
            answer._replace(status=400, payload={})
            if request.path == "/v1/brands" and request.params["page"] == "2"
            else answer
        )
        with pytest.raises(connector.KustomerError):
            sync(server, destination)
        assert_mirrors(destination, server, ["brands"])


def test_links_to_the_next_page_are_never_followed(destination):
    with mock(RECORDS) as server:

        def link_to_another_host(request, answer):
            if answer.payload.get("links", {}).get("next"):
                answer.payload["links"]["next"] = "http://127.0.0.1:1/v1/stolen"
            return answer

        server.rewrite = link_to_another_host
        sync(server, destination)
        assert_mirrors(destination, server)


def listing(number: int, **rules):
    """Return a mock with `number` companies, which can only be read from their list."""
    return mock(companies(number), **rules)


def erase_before_requests(server, every: int, number: int, at: int = 0, limit: int = 10**6):
    """Erase `number` companies from the start of their list before every `every`-th request.

    `at` is the remainder that selects the request. After at least `limit` companies, no more are
    erased.
    """
    erased: set = set()

    def erase(request):
        if (
            request.path == "/v1/companies"
            and len(list_requests(server, "companies")) % every == at
        ):
            if len(erased) < limit:
                for record_id in server.store.listed("companies")[:number]:
                    erased.add(record_id)
                    server.store.erase("companies", record_id)

    server.before_answer = erase
    return erased


@pytest.mark.parametrize(("every", "number"), [(20, 1), (1, 1), (1, 5), (7, 60)])
def test_a_long_list_that_shrinks_while_it_is_read_is_read_completely(every, number, destination):
    records = companies(3000)
    with mock(records) as server:
        erased = erase_before_requests(server, every, number)
        sync(server, destination)
        assert records["companies"].keys() - erased <= destination.rows["companies"].keys()
        assert len(list_requests(server, "companies")) < 100
    assert erased and not destination.warnings


@pytest.mark.parametrize("number", [99, 250, 900, 2500])
def test_no_record_is_missed_if_many_others_leave_the_list_at_once(number, destination):
    records = companies(6000)
    with mock(records) as server:
        erased = erase_before_requests(server, 40, number, at=39, limit=1)
        sync(server, destination)
        assert records["companies"].keys() - erased <= destination.rows["companies"].keys()
        assert len(list_requests(server, "companies")) < 130
    assert len(erased) == number and not destination.warnings


def test_a_list_sorted_by_updated_at_is_read_completely_while_records_change(destination):
    records = companies(3000)
    with mock(records, list_order="updated") as server:

        def change_one(request):
            if request.path == "/v1/companies":
                number = len(list_requests(server, "companies"))
                record_id = server.store.listed("companies")[number * 37 % 1000]
                server.store.change("companies", record_id, name="Changed")

        server.before_answer = change_one
        sync(server, destination)
        server.before_answer = None
        assert destination.rows["companies"].keys() == records["companies"].keys()
        assert len(list_requests(server, "companies")) < 120
        sync(server, destination)
        assert_mirrors(destination, server, ["companies"])
    assert not destination.warnings


def test_after_four_pages_without_an_overlap_a_gap_is_accepted_with_one_warning(destination):
    with listing(9000) as server:
        erase_before_requests(server, 50, 3700, at=49, limit=1)
        sync(server, destination)
        left = set(server.store.listed("companies"))
        assert len(list_requests(server, "companies")) < 130
    (warning,) = destination.warnings
    assert warning.startswith("companies: so many records left the list while it was read")
    assert len(left - destination.rows["companies"].keys()) < 3700 - 3200


@pytest.mark.parametrize("shown", ["given", "asked", "absent"])
@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("number", [25, 100, 150, 450])
@pytest.mark.parametrize(
    "rules",
    [
        {"page_size_limit": 25},
        {"page_size_limit": 50},
        {"forced_page_size": 25},
        {"forced_page_size": 100},
        {"allowed_page_sizes": frozenset({25, 50, 100, 500})},
        {"allowed_page_sizes": frozenset({50, 500})},
    ],
    ids=str,
)
def test_a_list_is_read_completely_however_the_server_treats_page_sizes(
    rules, number, links, shown, destination
):
    records = companies(number)
    with mock(records, page_size_shown=shown, shows_links=links, **rules) as server:
        sync(server, destination)
        assert destination.rows["companies"].keys() == records["companies"].keys()
        assert "companies" in destination.state["last_sync_time"]
    assert len(destination.warnings) <= 1


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_list_without_links_may_refuse_the_page_after_its_last_one(status, destination):
    with listing(230, shows_links=False) as server:

        def refuse_after_the_end(request, answer):
            if request.path != "/v1/companies" or answer.payload["data"]:
                return answer
            return answer._replace(status=status, payload={"errors": [{"title": "No page"}]})

        server.rewrite = refuse_after_the_end
        sync(server, destination)
        assert len(destination.rows["companies"]) == 230
    assert destination.warnings == []


def test_a_list_with_other_page_sizes_than_requested_is_warned_about_once(destination):
    with listing(450, page_size_limit=50) as server:
        sync(server, destination)
    (warning,) = destination.warnings
    assert warning.startswith("companies: Kustomer does not return pages of the requested size")


@pytest.mark.parametrize("status", [400, 404, 504])
def test_a_list_that_is_refused_after_some_pages_does_not_stop_other_tables(status, destination):
    records = make_records(customers=40, companies=450, brands=3, messages=60)
    with mock(records, list_window=300, list_window_status=status) as server:
        with pytest.raises(connector.KustomerError, match="^companies: GET /v1/companies"):
            sync(server, destination)
        assert_mirrors(destination, server, ["customers", "brands", "messages"])
    assert set(destination.state["last_sync_time"]) == {"customers", "brands", "messages"}


def test_a_404_for_brands_does_not_stop_other_tables(destination):
    with mock(RECORDS) as server:
        server.rewrite = lambda request, answer: (
            answer._replace(status=404, payload={}) if request.path == "/v1/brands" else answer
        )
        with pytest.raises(connector.KustomerError, match="^brands: GET /v1/brands was refused"):
            sync(server, destination)
        assert_mirrors(destination, server, ["customers", "companies", "messages"])


@pytest.mark.parametrize("number", [9_999, 10_000, 10_001])
def test_a_list_that_ends_at_exactly_10000_records_is_warned_about(number, destination):
    with listing(number) as server:
        sync(server, destination)
    expected = (
        ["companies: the list ended after exactly 10000 records"] if number == 10_000 else []
    )
    assert [warning.split(",")[0] for warning in destination.warnings] == expected


def test_deleted_records_on_a_list_become_deleted_rows(destination):
    with mock(RECORDS, lists_show_deleted=True) as server:
        sync(server, destination)
        gone = server.store.listed("companies")[0]
        server.store.delete("companies", gone)
        sync(server, destination)
        assert_mirrors(destination, server)
    assert gone in destination.deleted["companies"]


def newest_first(server) -> None:
    """Let the mock list companies in descending order of updatedAt."""
    listed = server.store.listed

    def reversed_list(table, deactivated=False):
        ids = listed(table, deactivated)
        return ids[::-1] if table == "companies" else ids

    server.store.listed = reversed_list


@pytest.mark.parametrize("links", [True, False])
def test_a_page_of_records_that_moved_to_the_front_does_not_end_a_list(links, destination):
    with mock(companies(430), shows_links=links, list_order="updated") as server:
        newest_first(server)

        def update_many(request):
            if len(list_requests(server, "companies")) == 2 and not changed:
                changed.extend(server.store.listed("companies")[200:320])
                for record_id in changed:
                    server.store.change("companies", record_id, name="Changed")

        changed: list = []
        server.before_answer = update_many
        sync(server, destination)
        assert changed
        server.before_answer = None
        sync(server, destination)
        assert_mirrors(destination, server)


@pytest.mark.parametrize("number", [60, 100])
def test_a_list_that_changes_faster_than_it_is_read_ends_with_a_warning(number, destination):
    chance = random.Random(1)
    with mock(companies(2000), list_order="updated") as server:

        def update_many(request):
            if request.path == "/v1/companies":
                for record_id in chance.sample(list(companies(2000)["companies"]), number):
                    server.store.change("companies", record_id, name="Changed")

        server.before_answer = update_many
        sync(server, destination)
        assert len(list_requests(server, "companies")) < 500
        server.before_answer = None
        sync(server, destination)
        assert len(destination.live("companies")) > 1900
    (warning,) = destination.warnings
    assert "others may have been missed" in warning


@pytest.mark.parametrize(("path", "number"), [("/v1/users", 30), ("/v1/companies", 100)])
def test_a_list_without_an_end_fails_even_if_a_record_keeps_changing(path, number, destination):
    start = datetime.now(timezone.utc)
    with mock({}) as server:

        def repeat(request, answer):
            if request.path == path:
                changing = start + timedelta(seconds=len(server.requests))
                times = [changing, *[start] * (number - 1)]
                records = [
                    {"id": str(place), "attributes": {"updatedAt": time_text(at)}}
                    for place, at in enumerate(times)
                ]
                answer = answer._replace(payload={"data": records})
            return answer

        server.rewrite = repeat
        with pytest.raises(connector.KustomerError, match="40 pages in a row without a new"):
            sync(server, destination, additional_tables="users")
        assert len(server.requests) < 100
    assert "messages" in destination.state["last_sync_time"]

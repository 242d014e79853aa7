"""Reading whole lists: how they end, page sizes, mirrored tables, and records that move."""

import functools
import random
from datetime import datetime, timedelta, timezone

import pytest

import connector
from mock_server import Fault, make_records
from mock_server.behaviour import ROLES, SEARCH_ROLE
from mock_server.records import time_text
from tests.expected import assert_mirrors
from tests.support import bare_records, even_times, mock, searches, sync

RECORDS = make_records(customers=250, companies=450, brands=5, messages=300)
# So many companies or brands are on a page.
PAGE = 100


@functools.cache
def records_of(table: str, number: int) -> dict:
    """Return records. They can be cached, because the mock never modifies a record in place."""
    return bare_records(table, even_times(number))


def companies(number: int) -> dict:
    return records_of("companies", number)


def brands(number: int) -> dict:
    return records_of("brands", number)


def list_requests(server, table: str) -> list:
    return [request for request in server.requests if request.path == f"/v1/{table}"]


def refuse(answer, status: int):
    """Return the answer with an error of Kustomer's instead."""
    error = {"code": "bad_request", "message": "No such page", "meta": {}}
    return answer._replace(status=status, payload={"errors": [error]})


@pytest.mark.parametrize("limit", [20, 50, 100])
def test_each_list_page_overlaps_the_page_before_with_few_additional_pages(limit, destination):
    with mock(companies(2000)) as server:
        sync(server, destination, max_records_per_page=str(limit))
        pages = [
            (int(request.params["page"]), int(request.params["pageSize"]))
            for request in list_requests(server, "companies")
        ]
    reached = 0
    for number, size in pages:
        assert size <= limit and number * size > reached
        assert (number - 1) * size < reached or reached == 0
        reached = number * size
    assert len(pages) <= (1.2 if limit == 100 else 1.5) * 2000 / limit


def test_without_incremental_sync_records_of_any_age_are_read(destination):
    records = make_records(customers=50, companies=50, brands=2, messages=50, days=1000)
    with mock(records) as server:
        sync(server, destination, enable_incremental_sync="false")
        assert_mirrors(destination, server)
        sync(server, destination, enable_incremental_sync="false")
        assert not searches(server)
    assert len(destination.delivered) == 2 * sum(
        len(destination.live(t)) for t in destination.rows
    )


def test_only_companies_changed_within_the_window_are_delivered(destination):
    with mock(companies(PAGE + 20)) as server:
        old, *others = server.store.listed("companies")
        long_ago = time_text(datetime.now(timezone.utc) - timedelta(days=31))
        server.store.change("companies", old, updatedAt=long_ago)
        for record_id in others:
            server.store.change("companies", record_id, name="New")
        sync(server, destination, initial_sync_days="30")
        assert destination.rows["companies"].keys() == set(others)
        destination.delivered.clear()
        server.store.change("companies", old, name="Newer")
        sync(server, destination)
    assert {row_id for table, row_id in destination.delivered} == {old, *others}


def test_links_to_the_next_page_are_never_followed(destination):
    with mock(RECORDS) as server:

        def link_to_another_host(request, answer):
            if answer.payload.get("links", {}).get("next"):
                answer.payload["links"]["next"] = "http://127.0.0.1:1/v1/stolen"
            return answer

        server.rewrite = link_to_another_host
        sync(server, destination)
        assert_mirrors(destination, server)


def test_deleted_records_on_a_list_become_deleted_rows(destination):
    with mock(RECORDS, lists_show_deleted=True) as server:
        sync(server, destination)
        gone = server.store.listed("companies")[0]
        server.store.delete("companies", gone)
        sync(server, destination)
        assert_mirrors(destination, server)
    assert gone in destination.deleted["companies"]


# How a list ends.


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_list_that_refuses_what_lies_beyond_a_window_counts_as_read(status, destination):
    rules = {"list_window": 300, "list_window_status": status, "company_search": "knows"}
    with mock(companies(450), **rules) as server:
        reachable = set(server.store.listed("companies")[:300])
        sync(server, destination)
        assert destination.rows["companies"].keys() == reachable
        (warning,) = destination.warnings
        assert warning.startswith("companies: ") and "after 300 records" in warning
        beyond = server.store.listed("companies")[400]
        server.store.change("companies", beyond, name="Changed")
        read = len(list_requests(server, "companies"))
        sync(server, destination)
        assert beyond in destination.rows["companies"]
        assert len(list_requests(server, "companies")) == read + 1
    assert len(destination.warnings) == 1


def test_a_list_that_refuses_its_page_101_counts_as_read(destination):
    with mock(companies(2_200), company_search="knows") as server:

        def refuse_page(request, answer):
            is_beyond = int(request.params.get("page", 0)) > 100
            return refuse(answer, 400) if is_beyond and request.body is None else answer

        server.rewrite = refuse_page
        sync(server, destination, max_records_per_page="20")
        rows = len(destination.rows["companies"])
        assert 1_900 <= rows <= 2_000
        (warning,) = destination.warnings
        assert f"{rows} records" in warning
        sync(server, destination, max_records_per_page="20")
        assert "company" in {request.body["queryContext"] for request in searches(server)}
    assert len(destination.warnings) == 1


def test_a_list_that_fails_after_some_pages_does_not_stop_other_tables(destination):
    with mock(RECORDS) as server:
        server.order(Fault("503", path="/v1/companies", after=5))
        with pytest.raises(connector.KustomerError, match="^companies: GET /v1/companies failed"):
            sync(server, destination)
        assert_mirrors(destination, server, ["customers", "brands", "messages"])
    assert set(destination.state["last_sync_time"]) == {"customers", "brands", "messages"}


def test_a_404_for_brands_does_not_stop_other_tables(destination):
    with mock(RECORDS) as server:
        server.rewrite = lambda request, answer: (
            refuse(answer, 404) if request.path == "/v1/brands" else answer
        )
        with pytest.raises(connector.KustomerError, match="^brands: GET /v1/brands was refused"):
            sync(server, destination)
        assert_mirrors(destination, server, ["customers", "companies", "messages"])


@pytest.mark.parametrize("number", [0, 1, PAGE, 230])
@pytest.mark.parametrize("links_on", ["empty", "repeat"])
@pytest.mark.parametrize("table", ["companies", "brands"])
def test_a_list_that_links_on_for_ever_ends_with_what_came(table, links_on, number, destination):
    records = records_of(table, number)
    with mock(records, list_links_on=links_on) as server:
        sync(server, destination)
        assert destination.rows[table].keys() == records[table].keys()
        assert len(list_requests(server, table)) <= 7
        sync(server, destination)
        assert destination.live(table).keys() == records[table].keys()
    assert not destination.warnings


def test_a_list_that_links_on_for_ever_ends_even_if_a_record_keeps_changing(destination):
    with mock(companies(230), list_links_on="repeat") as server:

        def change_the_last_one(request):
            last = server.store.listed("companies")[-1]
            server.store.change("companies", last, name=str(len(server.requests)))

        server.before_answer = change_the_last_one
        sync(server, destination)
        assert len(list_requests(server, "companies")) <= 10
    assert len(destination.rows["companies"]) == 230


def test_a_list_with_fewer_records_than_its_total_is_warned_about(destination):
    with mock(RECORDS) as server:

        def count_more(request, answer):
            if request.path == "/v1/customers":
                answer.payload["meta"]["total"] = 10_000
            return answer

        server.rewrite = count_more
        sync(server, destination, enable_incremental_sync="false")
        listed = len(server.store.listed("customers"))
    (warning,) = destination.warnings
    assert f"10000 records, but its list ended after {listed}" in warning


@pytest.mark.parametrize("number", [9_999, 10_000])
def test_a_list_that_ends_at_exactly_10000_records_is_warned_about(number, destination):
    with mock(companies(number)) as server:
        sync(server, destination)
    expected = ["companies: the list ended after 10000 records"]
    assert [warning.split(",")[0] for warning in destination.warnings] == (
        expected if number == 10_000 else []
    )


# Page sizes.


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("number", [25, 100, 450])
@pytest.mark.parametrize(
    "rules",
    [
        {"page_size_limit": 25},
        {"page_size_limit": 50},
        {"allowed_page_sizes": frozenset({25, 50, 100, 500})},
    ],
    ids=str,
)
def test_a_list_is_read_by_number_if_the_server_chooses_the_page_size(
    rules, number, links, destination
):
    records = companies(number)
    with mock(records, shows_links=links, **rules) as server:
        sync(server, destination)
        assert destination.rows["companies"].keys() == records["companies"].keys()
        assert "companies" in destination.state["last_sync_time"]
        requests = len(list_requests(server, "companies"))
    # One request finds out, and without links another one sees the end.
    assert requests <= number / rules.get("page_size_limit", PAGE) + 2
    (warning,) = destination.warnings or [None]
    if number == 450:
        assert warning.startswith("companies: Kustomer does not return pages of the requested")


# Mirrored tables.


def test_brands_are_mirrored_including_deletions(destination):
    with mock(RECORDS) as server:
        sync(server, destination)
        gone, *_ = server.store.listed("brands")
        server.store.erase("brands", gone)
        sync(server, destination)
        assert_mirrors(destination, server)
    assert destination.deleted["brands"] == {gone}


def count_more(server, table: str) -> None:
    """Let the mock count one record more than a list has."""

    def rewrite(request, answer):
        if request.path == f"/v1/{table}":
            answer.payload["meta"]["total"] = server.store.count(table) + 1
        return answer

    server.rewrite = rewrite


def end_after_150(server, table: str) -> None:
    """Let the mock refuse what lies beyond 150 records of a list."""
    server.behaviour.list_window, server.behaviour.list_window_status = 150, 400


@pytest.mark.parametrize("spoil", [count_more, end_after_150], ids=["total", "refusal"])
def test_a_mirrored_list_that_ends_too_early_is_delivered_without_truncating(
    spoil, destination, clock
):
    with mock(brands(230)) as server:
        sync(server, destination)
        changed, gone, *_ = server.store.listed("brands")
        server.store.change("brands", changed, name="Changed")
        server.store.erase("brands", gone)
        spoil(server, "brands")
        before = destination.state["last_sync_time"]["brands"]
        clock.move(60)
        sync(server, destination)
        assert len(destination.live("brands")) == 230
        assert destination.live("brands")[changed]["name"] == "Changed"
        assert destination.state["last_sync_time"]["brands"] > before
    (warning,) = destination.warnings
    assert warning.startswith("brands: ")
    assert "No row is marked as deleted" in warning


def test_a_mirrored_list_with_a_gap_is_delivered_without_truncating(destination):
    with mock(brands(9000)) as server:
        sync(server, destination)
        gone = erase_before_requests(server, 50, 3700, at=49, limit=1, table="brands")
        sync(server, destination)
        assert len(gone) == 3700 and len(destination.live("brands")) == 9000
        assert len(destination.warnings) == 1
        sync(server, destination)
        assert destination.deleted["brands"] == gone


def test_an_empty_list_of_brands_deletes_no_rows(destination):
    with mock(RECORDS) as server:
        sync(server, destination)
        for record_id in server.store.listed("brands"):
            server.store.erase("brands", record_id)
        sync(server, destination)
    assert len(destination.live("brands")) == 5


def test_no_brand_is_deleted_if_the_list_fails(destination):
    with mock(brands(150)) as server:
        sync(server, destination)
        server.order(Fault("500", path="/v1/brands", after=len(server.requests) + 4))
        server.store.erase("brands", server.store.listed("brands")[0])
        with pytest.raises(connector.KustomerError, match="brands: "):
            sync(server, destination, retry_attempts="0")
    assert len(destination.live("brands")) == 150


@pytest.mark.parametrize("incremental", ["true", "false"])
def test_companies_that_fit_on_one_page_are_mirrored(incremental, destination):
    with mock(companies(PAGE)) as server:
        sync(server, destination, enable_incremental_sync=incremental)
        gone, changed, *_ = server.store.listed("companies")
        server.store.erase("companies", gone)
        server.store.change("companies", changed, name="Changed")
        destination.state["unfinished"]["companies"] = time_text(datetime.now(timezone.utc))
        sync(server, destination, enable_incremental_sync=incremental)
        assert_mirrors(destination, server, ["companies"])
        contexts = {request.body["queryContext"] for request in searches(server)}
        assert len(list_requests(server, "companies")) == 2 and "company" not in contexts
    assert destination.deleted["companies"] == {gone}
    assert destination.state["unfinished"] == {}


def test_companies_that_no_longer_fit_on_one_page_are_searched(destination):
    with mock(companies(PAGE), company_search="knows") as server:
        sync(server, destination)
        gone = server.store.listed("companies")[0]
        server.store.delete("companies", gone)
        for record in make_records(companies=2, seed=5)["companies"].values():
            server.store.put("companies", record)
            server.store.change("companies", record["id"])
        sync(server, destination)
        assert_mirrors(destination, server, ["companies"])
        assert len(list_requests(server, "companies")) == 2
    assert destination.deleted["companies"] == {gone}


def test_an_empty_list_of_companies_does_not_forget_what_is_unfinished(destination):
    unfinished = time_text(datetime.now(timezone.utc) - timedelta(days=1))
    with mock(companies(PAGE + 1), roles=ROLES - {SEARCH_ROLE}) as server:
        sync(server, destination)
        destination.state["unfinished"]["companies"] = unfinished
        server.rewrite = lambda request, answer: (
            answer._replace(payload={**answer.payload, "data": [], "links": {"next": None}})
            if request.path == "/v1/companies"
            else answer
        )
        sync(server, destination)
    assert len(destination.live("companies")) == PAGE + 1
    assert destination.state["unfinished"]["companies"] == unfinished


# Checkpoints.


def test_a_list_is_checkpointed_about_every_5000_rows(destination):
    with mock(companies(10_100), roles=ROLES - {SEARCH_ROLE}) as server:
        saved = []
        checkpoint = destination.checkpoint

        def count(state):
            checkpoint(state)
            saved.append(len(destination.rows["companies"]))

        destination.checkpoint = count
        sync(server, destination)
    within = sorted({rows for rows in saved if 0 < rows < 10_100})
    assert len(within) == 2
    assert 5_000 <= within[0] < 5_200 and 5_000 <= within[1] - within[0] < 5_200


@pytest.mark.parametrize("table", ["brands", "companies"])
def test_there_is_no_checkpoint_between_a_truncate_and_the_last_row(
    table, destination, monkeypatch
):
    monkeypatch.setattr(connector, "__CHECKPOINT_EVERY_ROWS", 1)
    operations = []

    def recorded(name, act):
        def record(*arguments):
            operations.append(name)
            act(*arguments)

        return record

    number = 230 if table == "brands" else PAGE
    with mock(records_of(table, number)) as server:
        sync(server, destination)
        for name in ("truncate", "upsert", "checkpoint"):
            monkeypatch.setattr(destination, name, recorded(name, getattr(destination, name)))
        sync(server, destination)
    begin = operations.index("truncate")
    assert operations[begin + 1 : begin + number + 2] == ["upsert"] * number + ["checkpoint"]
    assert operations.count("upsert") == number


# Records that join, leave or move while a list is read.


def erase_before_requests(
    server, every: int, number: int, at: int = 0, limit: int = 10**6, table: str = "companies"
):
    """Erase `number` records from the start of a list before every `every`-th request for it.

    `at` is the remainder that selects the request. After at least `limit` records, no more are
    erased.
    """
    erased: set = set()
    before = len(list_requests(server, table))

    def erase(request):
        already = len(list_requests(server, table)) - before
        if request.path == f"/v1/{table}" and already % every == at and len(erased) < limit:
            for record_id in server.store.listed(table)[:number]:
                erased.add(record_id)
                server.store.erase(table, record_id)

    server.before_answer = erase
    return erased


@pytest.mark.parametrize(
    ("every", "number", "size"),
    [(20, 1, "100"), (1, 1, "100"), (1, 5, "100"), (7, 60, "100"), (3, 3, "20")],
)
def test_a_long_list_that_shrinks_while_it_is_read_is_read_completely(
    every, number, size, destination
):
    records = companies(3000)
    with mock(records) as server:
        erased = erase_before_requests(server, every, number)
        sync(server, destination, max_records_per_page=size)
        assert records["companies"].keys() - erased <= destination.rows["companies"].keys()
        assert len(list_requests(server, "companies")) < 100 * (5 if size == "20" else 1)
    assert erased and not destination.warnings


@pytest.mark.parametrize("number", [99, 900, 2500])
def test_no_record_is_missed_if_many_others_leave_the_list_at_once(number, destination):
    records = companies(6000)
    with mock(records) as server:
        erased = erase_before_requests(server, 40, number, at=39, limit=1)
        sync(server, destination)
        assert records["companies"].keys() - erased <= destination.rows["companies"].keys()
        assert len(list_requests(server, "companies")) < 130
    assert len(erased) == number and not destination.warnings


def test_after_three_steps_back_a_gap_is_accepted_with_one_warning(destination):
    with mock(companies(9000)) as server:
        erase_before_requests(server, 50, 3700, at=49, limit=1)
        sync(server, destination)
        left = set(server.store.listed("companies"))
        assert len(list_requests(server, "companies")) < 130
    (warning,) = destination.warnings
    assert warning.startswith("companies: so many records left the list")
    assert len(left - destination.rows["companies"].keys()) < 3700 - 3200


def test_no_record_is_missed_if_others_join_the_list_while_it_is_read(destination):
    extra = list(make_records(companies=40, seed=5)["companies"].values())
    with mock(RECORDS) as server:

        def add_one(request):
            if request.path == "/v1/companies" and extra:
                server.store.put("companies", extra.pop())

        server.before_answer = add_one
        sync(server, destination, max_records_per_page="20")
        assert RECORDS["companies"].keys() <= destination.rows["companies"].keys()


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


def test_a_page_of_records_that_moved_to_the_front_does_not_end_a_list(destination):
    with mock(companies(430), list_order="updated") as server:
        listed, changed = server.store.listed, []
        server.store.listed = lambda *arguments: listed(*arguments)[::-1]

        def update_many(request):
            if len(list_requests(server, "companies")) == 2 and not changed:
                changed.extend(server.store.listed("companies")[200:320])
                for record_id in changed:
                    server.store.change("companies", record_id, name="Changed")

        server.before_answer = update_many
        sync(server, destination)
        assert changed
        server.before_answer = None
        sync(server, destination)
        assert_mirrors(destination, server)


def test_a_list_that_changes_faster_than_it_is_read_ends_with_a_warning(destination):
    chance, ids = random.Random(1), list(companies(2000)["companies"])
    with mock(companies(2000), list_order="updated") as server:

        def update_many(request):
            if request.path == "/v1/companies":
                for record_id in chance.sample(ids, 100):
                    server.store.change("companies", record_id, name="Changed")

        server.before_answer = update_many
        sync(server, destination)
        assert len(list_requests(server, "companies")) < 500
        server.before_answer = None
        sync(server, destination)
        assert len(destination.live("companies")) > 1900
    (warning,) = destination.warnings
    assert "others may be missed" in warning

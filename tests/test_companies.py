"""Companies are read with search if search knows them, and otherwise from their list."""

from datetime import datetime, timedelta, timezone

import pytest

import connector
from mock_server import Fault, make_records
from mock_server.behaviour import COMPANY_SEARCHES, ROLES, SEARCH_ROLE
from mock_server.records import time_text
from tests.expected import assert_mirrors, source_rows
from tests.support import bare_records, even_times, mock, sync

RECORDS = make_records(customers=5, companies=430, brands=2, messages=5)


def company_requests(server) -> list:
    """Return (method, page) of the requests about companies."""
    return [
        (request.method, request.params["page"])
        for request in server.requests
        if request.path == "/v1/companies"
        or request.body
        and request.body["queryContext"] == "company"
    ]


@pytest.mark.parametrize("company_search", COMPANY_SEARCHES)
def test_every_company_and_every_change_arrives_however_search_treats_companies(
    company_search, destination
):
    with mock(RECORDS, company_search=company_search) as server:
        sync(server, destination)
        assert_mirrors(destination, server)
        changed = server.store.listed("companies")[250:260]
        for record_id in changed:
            server.store.change("companies", record_id, name="Renamed")
        destination.delivered.clear()
        sync(server, destination)
        assert_mirrors(destination, server)
    delivered = [record_id for table, record_id in destination.delivered if table == "companies"]
    assert sorted(delivered) == sorted(changed)
    assert destination.warnings == []


def test_without_changes_any_number_of_companies_takes_three_requests(destination):
    with mock(bare_records("companies", even_times(4300))) as server:
        sync(server, destination)
        server.exchanges.clear()
        sync(server, destination)
        listed = len(server.requests)
        server.behaviour.company_search = "knows"
        server.exchanges.clear()
        sync(server, destination)
        assert company_requests(server) == [("GET", "1"), ("POST", "1"), ("POST", "1")]
        assert len(server.requests) <= 9 < listed
        assert_mirrors(destination, server)


def test_a_deleted_company_that_search_returns_is_a_deleted_row(destination):
    with mock(RECORDS, company_search="knows") as server:
        sync(server, destination)
        deleted = server.store.listed("companies")[7]
        server.store.delete("companies", deleted)
        sync(server, destination)
        assert_mirrors(destination, server)
    assert deleted in destination.deleted["companies"]


def test_a_list_of_one_page_takes_one_request(destination):
    with mock(make_records(companies=100), company_search="knows") as server:
        sync(server, destination)
        assert company_requests(server) == [("GET", "1")]
        assert_mirrors(destination, server)


@pytest.mark.parametrize(
    "rules",
    [
        {"roles": ROLES - {SEARCH_ROLE}},
        {"ignores": {"filter"}},
        {"index_lag_seconds": 1e6},
        {"forced_page_size": 30},
        {"shows_links": False},
    ],
    ids=["no search role", "ignores the filter", "index lags", "pages of thirty", "no links"],
)
def test_companies_arrive_with_other_server_behaviour(rules, destination):
    with mock(RECORDS, company_search="knows", **rules) as server:
        sync(server, destination)
        assert destination.live("companies") == source_rows(server, "companies")
        server.store.change("companies", server.store.listed("companies")[300], name="Renamed")
        sync(server, destination)
        if "index_lag_seconds" not in rules:
            assert destination.live("companies") == source_rows(server, "companies")
    assert not [text for text in destination.warnings if "companies: search" in text]


def test_companies_not_updated_for_two_years_are_read_from_their_list(destination):
    records = make_records(companies=150, days=1000)
    with mock(records, company_search="knows") as server:
        destination.state = {"last_sync_time": {"companies": "2020-01-01T00:00:00.000Z"}}
        sync(server, destination)
        assert_mirrors(destination, server)
    assert destination.warnings == []


def delete_an_hour_ago(server, destination) -> str:
    """Delete a company between the last two syncs, and return its id."""
    now = datetime.now(timezone.utc)
    gone = server.store.listed("companies")[300]
    at = time_text(now - timedelta(hours=1))
    server.store.change("companies", gone, deleted=True, updatedAt=at)
    destination.state["last_sync_time"]["companies"] = time_text(now - timedelta(hours=2))
    return gone


@pytest.mark.parametrize("just_changed", [1, 100])
def test_deleted_companies_are_found_if_others_have_just_changed(just_changed, destination):
    with mock(RECORDS, company_search="knows") as server:
        sync(server, destination)
        gone = delete_an_hour_ago(server, destination)
        server.behaviour.index_lag_seconds = 60.0
        for record_id in server.store.listed("companies")[:just_changed]:
            server.store.change("companies", record_id, name="Renamed")
        sync(server, destination)
        server.behaviour.index_lag_seconds = 0.0
        server.store.settle()
        if just_changed == 100:
            # Search could not be tested, so the next sync has to find the deletion.
            assert gone in destination.live("companies")
            for record_id in server.store.listed("companies")[:2]:
                day_ago = time_text(datetime.now(timezone.utc) - timedelta(days=1))
                server.store.change("companies", record_id, updatedAt=day_ago)
            sync(server, destination)
        assert gone in destination.deleted["companies"]
    assert len(destination.warnings) == (just_changed == 100)


def test_deleted_companies_are_found_if_the_company_that_is_searched_for_changes(destination):
    with mock(RECORDS, company_search="knows") as server:
        sync(server, destination)
        gone = delete_an_hour_ago(server, destination)

        def change_it(request):
            body = request.body or {}
            if body.get("queryContext") == "company" and not changed:
                low = body["and"][0]["company_updated_at"]["gte"]
                changed.extend(i for at, i in server.store.keys("companies") if at == low)
                server.store.change("companies", changed[0], name="Renamed")

        changed: list = []
        server.before_answer = change_it
        sync(server, destination)
        assert changed and gone in destination.deleted["companies"]
        assert_mirrors(destination, server)
    assert destination.warnings == []


def test_deleted_companies_are_found_if_every_company_on_the_page_changes_before_the_search(
    destination,
):
    with mock(RECORDS, company_search="knows") as server:
        sync(server, destination)
        gone = delete_an_hour_ago(server, destination)

        def import_all(request):
            if (request.body or {}).get("queryContext") == "company":
                server.before_answer = None
                for record_id in server.store.listed("companies"):
                    server.store.change("companies", record_id, name="Imported")

        server.before_answer = import_all
        sync(server, destination)
        (warning,) = destination.warnings
        assert warning.startswith("companies: all companies that could be searched for have just")
        day_ago = time_text(datetime.now(timezone.utc) - timedelta(days=1))
        for record_id in server.store.listed("companies")[:2]:
            server.store.change("companies", record_id, updatedAt=day_ago)
        sync(server, destination)
        assert gone in destination.deleted["companies"]


def test_a_company_is_found_that_was_deleted_between_a_failed_first_sync_and_the_next(
    destination,
):
    with mock(RECORDS, company_search="knows") as server:
        server.order(Fault("503", after=3, path="/v1/companies"))
        with pytest.raises(connector.KustomerError):
            sync(server, destination, retry_attempts="0")
        server.clear_faults()
        # The checkpoints of the next tables made the first companies permanent.
        gone = next(iter(destination.live("companies")))
        now = datetime.now(timezone.utc)
        assert destination.state["unfinished"]["companies"] <= time_text(now)
        destination.state["unfinished"]["companies"] = time_text(now - timedelta(hours=3))
        two_hours_ago = time_text(now - timedelta(hours=2))
        server.store.change("companies", gone, deleted=True, updatedAt=two_hours_ago)
        sync(server, destination)
        live = destination.live("companies").keys()
        assert live - source_rows(server, "companies").keys() == {gone} and len(live) == 430
        sync(server, destination)
        assert_mirrors(destination, server)
    assert gone in destination.deleted["companies"] and not destination.state["unfinished"]
    assert destination.warnings == []


def test_the_first_sync_reads_the_list_of_companies(destination):
    with mock(RECORDS, company_search="knows") as server:
        sync(server, destination)
        assert {method for method, _ in company_requests(server)} == {"GET"}
        assert_mirrors(destination, server)


@pytest.mark.parametrize("successful", [3, 4])
def test_if_the_search_for_companies_fails_search_resumes_in_a_later_sync(successful, destination):
    with mock(RECORDS, company_search="knows") as server:
        sync(server, destination)
        gone = delete_an_hour_ago(server, destination)
        # These succeed: the key, the search for customers, the first page of companies, and in one
        # of two cases the search that tests whether search knows companies.
        already = len(server.requests)
        server.order(Fault("503", after=already + successful, path="/v1/customers/search"))
        for _ in range(2):
            sync(server, destination, retry_attempts="0")
            assert gone in destination.live("companies")
            server.clear_faults()
            server.order(Fault("503", path="/v1/customers/search"))
        server.clear_faults()
        sync(server, destination)
        assert_mirrors(destination, server)
    tables = [text.split(":")[0] for text in destination.warnings]
    assert tables == ["companies", "messages", "customers", "companies", "messages"]


def test_get_companies_returns_every_company_if_search_does_not_know_companies():
    with mock(RECORDS) as server:
        rows = list(connector.get_companies(server.api_key, configuration=server.configuration()))
        assert {row["id"] for row in rows} == source_rows(server, "companies").keys()
        assert len(rows) == 430


def test_a_deleted_company_is_found_if_all_companies_were_updated_at_the_same_time(destination):
    two_days_ago = datetime.now(timezone.utc) - timedelta(days=2)
    records = bare_records("companies", [two_days_ago] * 700)
    rules = {"company_search": "knows", "unsorted_order": "insertion"}
    with mock(records, **rules) as server:
        # The list and search begin at opposite ends.
        listed = server.store.listed
        server.store.listed = lambda table, deactivated=False: sorted(
            listed(table, deactivated), reverse=True
        )
        sync(server, destination)
        gone = delete_an_hour_ago(server, destination)
        sync(server, destination)
        assert gone in destination.deleted["companies"]

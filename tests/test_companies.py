"""Companies are read with search if search knows them, and otherwise from their list."""

import pytest

import connector
from mock_server import Fault, make_records
from mock_server.behaviour import COMPANY_SEARCHES, ROLES, SEARCH_ROLE
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


def test_if_the_search_for_companies_fails_they_are_read_from_the_list(destination):
    with mock(RECORDS, company_search="knows") as server:
        # The first four requests succeed: the key, the search for customers, the first page of
        # companies, and the search that tests whether search knows companies.
        server.order(Fault("503", after=4, path="/v1/customers/search"))
        sync(server, destination, retry_attempts="0")
        assert destination.live("companies") == source_rows(server, "companies")
        server.clear_faults()
        sync(server, destination)
        assert_mirrors(destination, server)
    assert [text.split(":")[0] for text in destination.warnings] == ["companies", "messages"]


def test_get_companies_returns_every_company_if_search_does_not_know_companies():
    with mock(RECORDS) as server:
        rows = list(connector.get_companies(server.api_key, configuration=server.configuration()))
        assert {row["id"] for row in rows} == source_rows(server, "companies").keys()
        assert len(rows) == 430

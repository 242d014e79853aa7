"""Companies: a list of one page is mirrored, and a longer one is read with search if search knows
companies, and otherwise again. tests/test_lists.py has more about their list."""

from datetime import datetime, timedelta, timezone

import pytest

import connector
from mock_server import make_records
from mock_server.behaviour import COMPANY_SEARCHES, ROLES, SEARCH_ROLE
from tests.expected import assert_mirrors, source_rows
from tests.support import bare_records, even_times, mock, move_to_noon, sync

RECORDS = make_records(customers=5, companies=430, brands=2, messages=5)


@pytest.fixture(autouse=True)
def noon(clock) -> None:
    move_to_noon(clock)


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
        assert {method for method, _ in company_requests(server)} == {"GET"}
        assert_mirrors(destination, server)
        changed = server.store.listed("companies")[250:260]
        for record_id in changed:
            server.store.change("companies", record_id, name="Renamed")
        destination.delivered.clear()
        sync(server, destination)
        assert_mirrors(destination, server)
    delivered = [record_id for table, record_id in destination.delivered if table == "companies"]
    assert set(changed) <= set(delivered)
    assert destination.warnings == []


@pytest.mark.parametrize("company_search", COMPANY_SEARCHES)
def test_a_deleted_company_of_more_than_a_page_is_found_if_search_knows_companies(
    company_search, destination, clock
):
    with mock(RECORDS, company_search=company_search) as server:
        sync(server, destination)
        clock.move(3600)
        gone = server.store.listed("companies")[300]
        server.store.delete("companies", gone)
        for _ in range(2):
            clock.move(3600)
            sync(server, destination)
            assert (gone in destination.deleted["companies"]) is (company_search == "knows")
        # What search did not know is found once it does.
        server.behaviour.company_search = "knows"
        clock.move(3600)
        sync(server, destination)
        assert_mirrors(destination, server)
    assert destination.state["unfinished"] == {} and destination.warnings == []


def test_without_changes_any_number_of_companies_takes_three_requests(destination):
    with mock(bare_records("companies", even_times(2200)), company_search="knows") as server:
        sync(server, destination)
        assert len(company_requests(server)) >= 22
        server.exchanges.clear()
        sync(server, destination)
        # The last search is for any company of two years, because the first one found none.
        assert company_requests(server) == [("GET", "1"), ("POST", "1"), ("POST", "1")]
        assert_mirrors(destination, server)


@pytest.mark.parametrize(
    "rules",
    [
        {"roles": ROLES - {SEARCH_ROLE}},
        {"index_lag_seconds": 300.0},
        {"page_size_limit": 30},
        {"shows_links": False},
        {"shows_total": False},
    ],
    ids=["no search role", "index lags", "pages of thirty", "no links", "no total"],
)
def test_companies_arrive_with_other_server_behaviour(rules, destination, clock):
    with mock(RECORDS, company_search="knows", **rules) as server:
        sync(server, destination)
        assert_mirrors(destination, server, ["companies"])
        server.store.change("companies", server.store.listed("companies")[300], name="Renamed")
        sync(server, destination)
        clock.move(600)
        sync(server, destination)
        assert_mirrors(destination, server, ["companies"])


def test_get_companies_returns_every_company_if_search_does_not_know_companies():
    with mock(RECORDS) as server:
        recent = (datetime.now(timezone.utc) - timedelta(days=400)).isoformat()
        for last in (None, recent):
            rows = list(connector.get_companies(server.api_key, last, server.configuration()))
            assert {row["id"] for row in rows} == source_rows(server, "companies").keys()
            assert len(rows) == 430

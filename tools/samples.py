"""What `tools.inspect` reads from Kustomer: pages of lists, searches and the audit log.

All requests go through the connector's own client, and at most 70 are sent.
"""

import dataclasses
import time
from datetime import datetime, timedelta
from functools import cached_property, partial
from itertools import chain
from typing import Callable, Iterable, Iterator

import connector

MAX_REQUESTS = 70
ROLE_STATUSES = (401, 403)
# Custom objects have no list, and search is not documented to know companies.
SEARCHED = [t for t in connector.TABLES if t.is_searched and t.search_is_documented]
_SAMPLE_RECORDS = 500
_SAMPLE_PAGES = 5


class Traffic:
    """What happens on the network: how many requests were sent, how many seconds the last one took,
    and the headers of the responses to GET and to POST."""

    def __init__(self):
        self.sent, self.seconds, self._began = 0, 0.0, 0.0
        self.headers: dict[str, dict[str, str]] = {"GET": {}, "POST": {}}

    def before(self, request):
        """Count a request. The requests library calls this where it would add a password."""
        if self.sent >= MAX_REQUESTS:
            raise connector.SyncStoppedError(f"All {MAX_REQUESTS} requests have been used.")
        self.sent += 1
        self._began = time.perf_counter()
        return request

    def after(self, response, **_options) -> None:
        """Note how long a request took, to the end of its response."""
        _ = response.content  # Reads the response to its end.
        self.seconds = time.perf_counter() - self._began
        headers = {name.lower(): value for name, value in response.headers.items()}
        self.headers[response.request.method].update(headers)


@dataclasses.dataclass
class Kustomer:
    """What several questions have to know. In the place of what could not be read is its error.

    Search should know all records between `horizon` and `settled`. `refuses_sort` has the tables
    that it refuses to sort, and `search_seconds` how long searches took that brought 500 records.
    """

    client: connector.Client
    traffic: Traffic
    now: datetime
    settled: datetime
    horizon: datetime
    refuses_sort: set[str] = dataclasses.field(default_factory=set)
    search_seconds: list[float] = dataclasses.field(default_factory=list)

    @cached_property
    def lists(self) -> dict:
        """The first page of each list of a table, by table."""
        return {t: _attempt(_first_pages, self, t) for t in connector.TABLES if t.lists}

    @cached_property
    def searches(self) -> dict:
        """The newest and the oldest records that search finds, by table and direction."""
        return {table: _search_samples(self, table) for table in SEARCHED}

    @cached_property
    def audits(self) -> dict:
        """A page of the audit log by type of object."""
        return _audit_pages(self)

    @cached_property
    def records(self) -> dict:
        """All records that have been read, by table."""
        return {table: _sampled(self, table) for table in connector.TABLES}


# Functions and not methods, because Python changes names with two underscores in a class.


def begin(client: connector.Client, traffic: Traffic) -> Kustomer:
    """Return what the questions have to know, of which nothing has been read yet."""
    now = connector.__now(client)
    horizon = now - connector.__SEARCH_HORIZON + timedelta(days=1)
    return Kustomer(client, traffic, now, now - connector.__OVERLAP, horizon)


def _attempt(call: Callable, *arguments):
    """Return the result of a call, or its error."""
    try:
        return call(*arguments)
    except connector.KustomerError as error:
        return error


def good(results: dict) -> dict:
    """Return the results that are no errors. Raises the first error if all are."""
    pages = {key: r for key, r in results.items() if not isinstance(r, Exception)}
    if not pages:
        raise next(iter(results.values()))
    return pages


def list_page(kustomer: Kustomer, table: connector.Table, **params) -> connector.Page:
    """Ask for a page of a list. Unlike the connector, it does not ask about the key if refused."""
    path = f"/v1/{table.name.replace('_', '-')}"
    if not table.is_audit_log:
        params = {"page": 1, "pageSize": table.page_maximum, **params}
    return connector.__get_page(kustomer.client, path, params, f"inspect: {table.name}")


def _first_pages(kustomer: Kustomer, table: connector.Table) -> list[connector.Page]:
    return [list_page(kustomer, table, **params) for params in table.lists]


def search(
    kustomer: Kustomer, table: connector.Table, low=None, high=None, number: int = 1
) -> connector.Page:
    """Send a search of the connector for a page of a slice: by default, of all that is settled."""
    if low is None:
        low, high = kustomer.horizon, kustomer.settled
    asked = connector.Search(kustomer.client, table, low, low, kustomer.now, kustomer.settled)
    asked.sorts = table.name not in kustomer.refuses_sort
    return _timed(kustomer, connector.__request_page, asked, connector.Slice(low, high, number))


def newest(kustomer: Kustomer, table: connector.Table, low=None, size: int = 500):
    """Search from the newest record on, which the connector never does."""
    context = table.object_name
    attribute, since = f"{context}_updated_at", connector.__format_time(low or kustomer.horizon)
    body = {"and": [{attribute: {"gte": since}}], "queryContext": context, "includeDeleted": True}
    if table.name not in kustomer.refuses_sort:
        body["sort"] = [{attribute: "desc"}]
    path, params = connector.__SEARCH_PATH, {"page": 1, "pageSize": size}
    purpose = f"inspect: search {table.name}"
    return _timed(kustomer, connector.__get_page, kustomer.client, path, params, purpose, body)


def _timed(kustomer: Kustomer, call: Callable, *arguments) -> connector.Page:
    """Make a search, and note how long it took if it brought 500 records."""
    page = call(*arguments)
    if len(page.records) == connector.__SEARCH_PAGE_MAX_RECORDS:
        kustomer.search_seconds.append(kustomer.traffic.seconds)
    return page


def _search_samples(kustomer: Kustomer, table: connector.Table) -> dict:
    """Search a table in both directions and, if search refuses to sort it, without a direction."""
    found = {"descending": _attempt(newest, kustomer, table)}
    if _is_final(found["descending"]):
        return found
    found["ascending"] = _attempt(search, kustomer, table)
    if {getattr(result, "status", None) for result in found.values()} == {400}:
        kustomer.refuses_sort.add(table.name)
        found["unsorted"] = _attempt(search, kustomer, table)
    return found


def _audit_pages(kustomer: Kustomer) -> dict:
    pages: dict = {}
    table = connector.AUDIT_LOGS
    for object_type in connector.__AUDITED_OBJECTS:
        params = {"count": table.page_maximum, "filter[objectType]": object_type}
        pages[object_type] = _attempt(partial(list_page, kustomer, table, **params))
        if _is_final(pages[object_type]):
            break
    return pages


def _is_final(result) -> bool:
    """Return whether a similar request would fail as well. A 400 is about this request alone."""
    return isinstance(result, Exception) and getattr(result, "status", None) != 400


def _sampled(kustomer: Kustomer, table: connector.Table) -> list:
    """Return the records of a table that have been read, and more of its list if they are few."""
    listed = kustomer.lists.get(table, [])
    pages = [*(listed if isinstance(listed, list) else [])]
    number = 1
    while pages and pages[0].more and number < _SAMPLE_PAGES and _few(kustomer, table, pages):
        number += 1
        page = _attempt(partial(list_page, kustomer, table, page=number))
        if isinstance(page, Exception) or not page.records:
            break
        pages.append(page)
    for page in pages if "deactivated" in table.columns else []:
        # The connector adds this attribute to users.
        connector.__mark_deactivated(page, set(), is_active=True)
    return [*records_of(pages), *_searched_records(kustomer, table)]


def _few(kustomer: Kustomer, table: connector.Table, pages: list) -> bool:
    known = chain(records_of(pages), _searched_records(kustomer, table))
    return sum(1 for _ in known) < _SAMPLE_RECORDS


def records_of(pages: Iterable) -> Iterator:
    """Yield the records of pages. Errors in the place of pages are left out."""
    return chain.from_iterable(p.records for p in pages if isinstance(p, connector.Page))


def _searched_records(kustomer: Kustomer, table: connector.Table) -> Iterator:
    found = kustomer.audits if table.is_audit_log else kustomer.searches.get(table, {})
    return records_of(found.values())


def listed_records(kustomer: Kustomer, table: connector.Table) -> Iterator:
    pages = kustomer.lists.get(table)
    return records_of(pages if isinstance(pages, list) else ())


def best_search(kustomer: Kustomer) -> tuple[connector.Table, connector.Page]:
    """Return the searched table with most records, and the first page of its settled records."""
    results = {t: [*found.values()][-1] for t, found in kustomer.searches.items()}
    return max(good(results).items(), key=lambda item: item[1].total or len(item[1].records))


def longest_list(kustomer: Kustomer) -> tuple[connector.Table, connector.Page]:
    """Return the table with the longest list, as far as its first page tells, and this page."""
    return max(
        ((table, pages[0]) for table, pages in good(kustomer.lists).items()),
        key=lambda item: (item[1].more, len(item[1].records)),
    )

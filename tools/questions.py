"""The questions of `tools.inspect`, and how each answer is found.

An answer has names of attributes, counts, sizes and times, but never the key, an id or a value of a
record. Objects inside of attributes, such as `custom`, are not opened.
"""

import math
import statistics
from datetime import timedelta
from functools import partial
from itertools import chain
from typing import Any, Callable, Iterable, Iterator, NamedTuple

import connector
from tools.samples import (
    ROLE_STATUSES,
    SEARCHED,
    Kustomer,
    best_search,
    good,
    list_page,
    listed_records,
    longest_list,
    newest,
    records_of,
    search,
)

_ODD_SIZE = 37
_FAR_PAGE = 100_000
# How many records of a list other clients have reached.
_LIST_END = 10_000
# With fewer, records may be in order by accident.
_ENOUGH_TO_ORDER = 5
_TOO_LARGE_PAGE = 1_000
_COUNTED_PAGES = 3
_COUNT_ATTEMPTS = 4
# https://developer.kustomer.com/docs/concepts/rate-limits, read 2026-11-23.
_SEARCHES_PER_MINUTE = 100
_MILLION = 1_000_000


class Question(NamedTuple):
    """A question. `ask` returns the answer, or None if there are too few records to tell. `relied_on`
    says which answer the connector relies on, if it does, and `holds` whether an answer is that.
    """

    id: str
    words: str
    ask: Callable[[Kustomer], Any]
    relied_on: str = ""
    holds: Callable[[Kustomer, Any], bool] = lambda _kustomer, answer: answer is True


def _outcome(call: Callable, *arguments) -> str:
    """Return what answers a request for a page: "records", "empty", or the status of a refusal."""
    try:
        page = call(*arguments)
    except connector.RefusedError as error:
        if error.status in ROLE_STATUSES:
            raise
        return f"status {error.status}"
    link = ", with a link to a next page" if page.link else ""
    return "records" if page.records else f"empty{link}"


def _is_deleted(record) -> bool:
    return connector.__attributes(record).get("deleted") is True


def _is_ordered(values: list, descending: bool = False) -> bool | None:
    """Return whether values are in order, or None if too few are different."""
    if None in values or len({*values}) < _ENOUGH_TO_ORDER:
        return None
    return values == sorted(values, reverse=descending)


def _updated(records: Iterable) -> list:
    return [connector.__updated_at(record) for record in records]


def _ids(records: Iterable) -> list:
    return [connector.__record_id(record) for record in records]


def _odd_size(kustomer: Kustomer) -> bool | None:
    table, first = longest_list(kustomer)
    if len(first.records) <= _ODD_SIZE and not first.more:
        return None
    try:
        return len(list_page(kustomer, table, pageSize=_ODD_SIZE).records) == _ODD_SIZE
    except connector.RefusedError:
        return False


def _list_orders(kustomer: Kustomer) -> dict | None:
    orders = {}
    for table, pages in good(kustomer.lists).items():
        keys = {"id": _ids, "updatedAt": _updated}
        ordered = {name: _is_ordered(key(pages[0].records)) for name, key in keys.items()}
        if ordered["id"] is not None:
            orders[table.name] = next((name for name in ordered if ordered[name]), "other")
    return orders or None


def _lists_show_deleted(kustomer: Kustomer) -> bool | None:
    records = [*chain.from_iterable(listed_records(kustomer, t) for t in good(kustomer.lists))]
    return any(map(_is_deleted, records)) if records else None


def _past_the_end(kustomer: Kustomer) -> str:
    table, _ = longest_list(kustomer)
    return _outcome(partial(list_page, kustomer, table, page=_FAR_PAGE))


def _goes_on(kustomer: Kustomer) -> bool | None:
    """Return whether the list of customers has more than 10,000 records."""
    first = good({None: kustomer.lists[connector.CUSTOMERS]})[None][0]
    if not first.more or first.total is not None and first.total <= _LIST_END:
        return None
    number = _LIST_END // first.size + 1
    outcome = _outcome(partial(list_page, kustomer, connector.CUSTOMERS, page=number))
    return outcome == "records" or (False if first.total else None)


def _counts(kustomer: Kustomer) -> dict:
    table, page = best_search(kustomer)
    counts = {"total": page.total is not None, "equal": None, "largest": page.total}
    if page.total:
        counts["equal"] = _equals_count(kustomer, table, page)
    elif page.total == 0 and _lists_have_searchable(kustomer):
        counts["equal"] = False
    return counts


def _lists_have_searchable(kustomer: Kustomer) -> bool:
    """Return whether a list has a record that search should have found."""
    listed = chain.from_iterable(listed_records(kustomer, table) for table in SEARCHED)
    times = filter(None, _updated(listed))
    return any(kustomer.horizon < at < kustomer.settled for at in times)


def _equals_count(kustomer: Kustomer, table: connector.Table, page: connector.Page) -> bool | None:
    """Return whether as many records come as are counted in the newest part of time that has at most
    three pages, or None if no such part is found."""
    low, high = kustomer.horizon, kustomer.settled
    for _ in range(_COUNT_ATTEMPTS):
        if page.total is None or page.total <= _COUNTED_PAGES * page.size:
            break
        # Two pages, if the records were evenly distributed.
        low = high - (high - low) * (2 * page.size / page.total)
        page = search(kustomer, table, low, high)
    pages = [page]
    if not page.total or page.total > _COUNTED_PAGES * page.size:
        return None
    for number in range(math.ceil(page.total / page.size), 1, -1):
        pages.append(search(kustomer, table, low, high, number))
    totals = [page.total or 0 for page in pages]
    # A record that changes meanwhile leaves, and is not counted any more.
    return min(totals) <= len({*_ids(records_of(pages))}) <= max(totals)


def _sorts(table: connector.Table, kustomer: Kustomer) -> dict | str | None:
    """Return in which directions search sorts a table."""
    found = kustomer.searches[table]
    if isinstance(found.get("unsorted"), connector.Page):
        return "status 400"
    failures = [result for result in found.values() if isinstance(result, Exception)]
    if failures:
        raise failures[0]
    sorts = {
        way: _is_ordered(_updated(page.records), way == "descending")
        for way, page in found.items()
    }
    return None if None in sorts.values() else sorts


def _page_maximum(kustomer: Kustomer) -> int | str:
    table, _ = best_search(kustomer)
    try:
        page = newest(kustomer, table, size=_TOO_LARGE_PAGE)
    except connector.RefusedError as error:
        return f"status {error.status}"
    # Without a next page, only Kustomer's own word says how many there could have been.
    return len(page.records) if page.more else page.size


def _page_101(kustomer: Kustomer) -> str:
    table, _ = best_search(kustomer)
    return _outcome(partial(search, kustomer, table, number=101))


def _knows_companies(kustomer: Kustomer) -> bool | str | None:
    outcome = _outcome(search, kustomer, connector.COMPANIES)
    if outcome == "status 400":
        # It may be the sorting that was refused, which the connector tries too.
        kustomer.refuses_sort.add(connector.COMPANIES.name)
        outcome = _outcome(search, kustomer, connector.COMPANIES)
    if outcome == "empty" and not any(listed_records(kustomer, connector.COMPANIES)):
        return None
    return outcome == "records" or outcome


def _search_shows_deleted(kustomer: Kustomer) -> bool | None:
    found = chain.from_iterable(found.values() for found in kustomer.searches.values())
    pages = good(dict(enumerate(found))).values()
    if any(map(_is_deleted, records_of(pages))):
        return True
    listed = chain.from_iterable(listed_records(kustomer, table) for table in SEARCHED)
    return False if any(map(_is_deleted, listed)) else None


def _is_repeatable(kustomer: Kustomer) -> bool | None:
    table, _ = best_search(kustomer)
    first, second = (_ids(search(kustomer, table).records) for _ in range(2))
    return first == second if len(first) >= _ENOUGH_TO_ORDER else None


def _lag_seconds(kustomer: Kustomer) -> int | None:
    """Return the age of the oldest of the newest messages that search does not show yet."""
    table = connector.MESSAGES
    records = list_page(kustomer, table, pageSize=100, sort="desc").records
    times = [at for at in _updated(records) if at]
    if not times or not _is_ordered(_ids(records), descending=True):
        return None
    if search(kustomer, table, max(times)).records:
        return 0
    shown = _updated(newest(kustomer, table, min(times)).records)
    last = max(filter(None, shown), default=min(times) - timedelta(seconds=1))
    now = connector.__now() - timedelta(seconds=kustomer.client.clock_ahead or 0)
    return max(round((now - min(at for at in times if at > last)).total_seconds()), 0)


def _median_seconds(kustomer: Kustomer) -> dict | None:
    if not kustomer.search_seconds:
        return None
    median = statistics.median(kustomer.search_seconds)
    searches = _MILLION / connector.__SEARCH_PAGE_MAX_RECORDS
    minutes = searches * median / 60 / connector.__SEARCH_THREADS
    least = searches / _SEARCHES_PER_MINUTE
    return {"seconds": round(median, 2), "minutes_for_a_million": round(max(minutes, least))}


def _rate_limit_headers(kustomer: Kustomer) -> dict:
    names = {"GET": "list", "POST": "search"}
    return {
        names[method]: {
            name: _kind_of(name, value)
            for name, value in sorted(headers.items())
            if "ratelimit" in name.replace("-", "") or name == "retry-after"
        }
        for method, headers in kustomer.traffic.headers.items()
    }


def _kind_of(name: str, value: str) -> str:
    """Return what kind of value a header has, without the value."""
    number = connector.__header_number(value)
    if number is None:
        return "date" if connector.__header_date(value) else "other"
    if number >= connector.__EPOCH_MILLISECONDS_FROM:
        return "epoch milliseconds"
    if number >= connector.__EPOCH_SECONDS_FROM:
        return "epoch seconds"
    return "seconds" if "reset" in name or name == "retry-after" else "count"


def _has_counts(_kustomer: Kustomer, headers: dict) -> bool:
    names = ("x-ratelimit-limit", "x-ratelimit-remaining")
    return all(headers["list"].get(name) == "count" for name in names)


def _lacks_role(result) -> bool:
    return getattr(result, "status", None) in ROLE_STATUSES


def _missing_roles(kustomer: Kustomer) -> dict:
    """Return the missing role, or the status of another refusal, by table. Custom objects have the
    role of their klasses."""
    results = {**kustomer.lists, connector.AUDIT_LOGS: next(iter(kustomer.audits.values()))}
    results[connector.KOBJECTS] = results[connector.KLASSES]
    missing = {t.name: _refusal(results[t], t.role) for t in connector.TABLES}
    # Each object may need a role of its own for a search, so one that serves is enough.
    searches = [
        _refusal(f["descending"], connector.__SEARCH_ROLE) for f in kustomer.searches.values()
    ]
    missing["search"] = all(searches) and searches[0]
    return {name: role for name, role in missing.items() if role}


def _refusal(result, role: str) -> str:
    """Return a role, or a status, if a request was refused. Raises the error if it failed."""
    if isinstance(result, Exception) and not isinstance(result, connector.RefusedError):
        raise result
    status = getattr(result, "status", None)
    return role if status in ROLE_STATUSES else status and f"status {status}"


def _has_needed_roles(kustomer: Kustomer, missing: dict) -> bool:
    selected = connector.__selected_tables(kustomer.client.settings.additional_tables)
    return not missing.keys() & {"search", *(table.name for table in selected)}


def _can_read_audit_logs(kustomer: Kustomer) -> bool:
    if _lacks_role(next(iter(kustomer.audits.values()))):
        return False
    return bool(good(kustomer.audits))


def _audit_order(kustomer: Kustomer) -> str | None:
    longest = max(good(kustomer.audits).values(), key=lambda page: len(page.records))
    created = (connector.__attributes(entry).get("createdAt") for entry in longest.records)
    times = [connector.__parse_time(text) for text in created]
    orders = {"newest first": True, "oldest first": False}
    ordered = {words: _is_ordered(times, way) for words, way in orders.items()}
    if None in ordered.values():
        return None
    return next((words for words in orders if ordered[words]), "other")


def _audit_deletes(kustomer: Kustomer) -> dict:
    return {
        object_type: {
            "deletes": sum(
                connector.__attributes(entry).get("eventVerb") == "delete"
                for entry in page.records
            ),
            "entries": len(page.records),
        }
        for object_type, page in good(kustomer.audits).items()
    }


def _chain(column: connector.Column) -> Iterator[connector.Column]:
    """Yield a column and its fallbacks."""
    link: connector.Column | None = column
    while link:
        yield link
        link = link.fallback


def _attribute_names(records: list) -> set[str]:
    return {name for record in records for name in connector.__attributes(record)}


def _by_sampled_table(names: Callable[[connector.Table, set], list], kustomer: Kustomer) -> dict:
    """Return names by table, for the tables with sampled records and any names."""
    found = {
        table.name: names(table, _attribute_names(records))
        for table, records in kustomer.records.items()
        if records
    }
    return {name: listed for name, listed in found.items() if listed}


def _unmapped(table: connector.Table, seen: set[str]) -> list[str]:
    links = chain.from_iterable(map(_chain, table.columns.values()))
    return sorted(seen - {link.source for link in links})


def _never_seen(table: connector.Table, seen: set[str]) -> list[str]:
    # Columns that are read from relationships have no source.
    sources = {
        name: {link.source for link in _chain(column)} for name, column in table.columns.items()
    }
    return [name for name, names in sources.items() if None not in names and not names & seen]


QUESTIONS = (
    Question(
        "lists.page_size_honoured",
        "Does a list return pages of 37 records if asked?",
        _odd_size,
        "yes",
    ),
    Question("lists.order", "How are lists ordered?", _list_orders),
    Question(
        "lists.show_deleted", "Do lists have records with deleted: true?", _lists_show_deleted
    ),
    Question("lists.past_the_end", "What does a list return beyond its end?", _past_the_end),
    Question("lists.end", "Does the list of customers go on beyond 10,000?", _goes_on),
    Question(
        "search.counts",
        "Does search count its results (total) and return them all (equal)? What is the largest "
        "count?",
        _counts,
        "total and equal",
        lambda _, counts: counts["total"] and counts["equal"] is not False,
    ),
    *(
        Question(
            f"search.sorts.{table.object_name}",
            f"Does search sort {table.name} by updatedAt?",
            partial(_sorts, table),
        )
        for table in SEARCHED
    ),
    Question(
        "search.page_maximum", "How large is a page if 1,000 records are asked for?", _page_maximum
    ),
    Question("search.page_101", "What does page 101 of a search give?", _page_101),
    Question("search.knows_companies", "Does search find companies?", _knows_companies),
    Question(
        "search.shows_deleted",
        "Does includeDeleted add records with deleted: true?",
        _search_shows_deleted,
        "yes",
    ),
    Question(
        "search.repeatable",
        "Does a repeated search return the same order?",
        _is_repeatable,
    ),
    Question(
        "search.lag_seconds",
        "How many seconds is search behind the list of messages?",
        _lag_seconds,
        "at most ten minutes",
        lambda _, seconds: timedelta(seconds=seconds) <= connector.__OVERLAP,
    ),
    Question(
        "search.median_seconds",
        "How long does a search of 500 records take, and what would a million take?",
        _median_seconds,
    ),
    Question(
        "headers.rate_limit",
        "Which headers report the rate limit, with which kind of value?",
        _rate_limit_headers,
        "x-ratelimit-limit and x-ratelimit-remaining of lists are counts",
        _has_counts,
    ),
    Question(
        "roles.missing",
        "Which tables can the key not read, and which roles does it lack?",
        _missing_roles,
        "none for the selected tables and for search",
        _has_needed_roles,
    ),
    Question("audit_logs.readable", "Can the audit log be read?", _can_read_audit_logs),
    Question("audit_logs.order", "Which entries of the audit log come first?", _audit_order),
    Question(
        "audit_logs.deletes",
        "How many of the first 1,000 entries of each type are deletions?",
        _audit_deletes,
    ),
    Question(
        "attributes.unmapped",
        "Which attributes of the sampled records does no column read?",
        partial(_by_sampled_table, _unmapped),
    ),
    Question(
        "attributes.never_seen",
        "Which columns read attributes that no sampled record has?",
        partial(_by_sampled_table, _never_seen),
    ),
)

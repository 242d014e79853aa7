"""The mock's audit log: validates a request, and selects a page of entries.

Kustomer documents the parameters, that pages have ids as bounds, and that links.next leads on. It
does not say which time the filters compare, and which entries lie between two bounds. Here it is
createdAt, and a page begins behind the entry `after` and ends with the entry `before`.
"""

import bisect
from datetime import timedelta
from typing import Dict, List, NamedTuple, Optional, Tuple

from mock_server.behaviour import Behaviour
from mock_server.records import read_time, time_text
from mock_server.search import QueryError
from mock_server.store import Key, Store

COUNT_DEFAULT = 100
COUNT_MAX = 1000
# Greater than any time and any id.
_HIGH = "\U0010ffff"


class AuditQuery(NamedTuple):
    """A validated request. `start` and `end` are inclusive; empty texts are no limits."""

    count: int
    start: str
    end: str
    object_type: str
    after: str
    before: str


class AuditPage(NamedTuple):
    """The entries of a page, and the bounds of the next page, if there is one."""

    entries: List[dict]
    next_bounds: Optional[Dict[str, str]]


def parse_audit_query(params: Dict[str, str]) -> AuditQuery:
    """Return the query of a request's parameters. Raises QueryError if they are invalid."""
    after, before = params.get("after", ""), params.get("before", "")
    if bool(after) != bool(before):
        missing = "before" if after else "after"
        raise QueryError("missing_parameter", "after and before are used together", missing)
    object_type = params.get("filter[objectType]", "")
    if object_type and not object_type.replace("_", "").isalpha():
        raise QueryError("invalid_parameter", "Unknown type", "filter[objectType]")
    return AuditQuery(
        _count(params),
        _time(params, "filter[start]"),
        _time(params, "filter[end]"),
        object_type,
        after,
        before,
    )


def _count(params: Dict[str, str]) -> int:
    text = params.get("count", str(COUNT_DEFAULT))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= COUNT_MAX:
        raise QueryError("invalid_parameter", f"count must be from 1 to {COUNT_MAX}", "count")
    return int(text)


def _time(params: Dict[str, str], name: str) -> str:
    """Return a time in the format of the entries, or an empty text if it is not given."""
    if name not in params:
        return ""
    try:
        time = read_time(params[name])
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise QueryError("invalid_parameter", f"{name} must be a time with a zone", name)
    return time_text(time)


def find_page(store: Store, query: AuditQuery, rules: Behaviour) -> AuditPage:
    """Return the page that a query asks for. Raises QueryError if a bound is not an entry."""
    keys = store.keys("audit_logs", query.object_type)
    is_newest_first = rules.audit_log_order == "newest"
    low, high = _range(keys, query, rules)
    if query.after:
        after, before = (_key(store, query, name) for name in ("after", "before"))
        # The entry `after` itself is not on the page, and the entry `before` may be its last one.
        if is_newest_first:
            low = max(low, bisect.bisect_left(keys, before))
            high = min(high, bisect.bisect_left(keys, after))
        else:
            low = max(low, bisect.bisect_right(keys, after))
            high = min(high, bisect.bisect_right(keys, before))
    if is_newest_first:
        shown, last = keys[max(low, high - query.count) : high][::-1], low
    else:
        shown, last = keys[low : min(high, low + query.count)], high - 1
    bounds = None
    if high - low > query.count:
        bounds = {"after": shown[-1][1], "before": keys[last][1]}
    return AuditPage([store.indexed("audit_logs", key[1]) for key in shown], bounds)


def _range(keys: List[Key], query: AuditQuery, rules: Behaviour) -> Tuple[int, int]:
    """Return where the entries within the times of a query begin and end. Expired ones are gone."""
    kept_since = time_text(rules.now() - timedelta(days=rules.audit_log_days))
    low = bisect.bisect_left(keys, (max(query.start, kept_since), ""))
    high = bisect.bisect_left(keys, (query.end + _HIGH, "")) if query.end else len(keys)
    return low, high


def _key(store: Store, query: AuditQuery, name: str) -> Key:
    """Return the place of the entry that a bound names."""
    entry_id = getattr(query, name)
    try:
        return store.indexed("audit_logs", entry_id)["attributes"]["createdAt"], entry_id
    except KeyError:
        raise QueryError("invalid_parameter", f"{name} is not an entry", name) from None

"""The mock's API logic: turns a request into a status, headers and a JSON body.

Based on https://developer.kustomer.com/docs/concepts (pagination, search, rate-limits).
"""

import bisect
import copy
import math
import time
from typing import Dict, List, NamedTuple, Optional, Tuple
from urllib.parse import urlencode

from mock_server.behaviour import CONTEXTS, SEARCH_ROLE, Behaviour
from mock_server.records import ORG_ID, TABLES, TYPES, Records, scattered, time_text
from mock_server.search import Finder, QueryError, parse_query

# The documented maximum page sizes of lists. For all other lists, LIST_MAX applies.
LIST_MAXIMA = {"users": 500, "teams": 500}
LIST_MAX = 100
SEARCH_MAX = 500
SEARCH_MAX_PAGES = 100
SEARCH_PATH = "/v1/customers/search"
KEY_PATH = "/v1/users/current"


class Request(NamedTuple):
    """A received request. `client` is the client's port, which identifies the connection."""

    method: str
    path: str
    params: Dict[str, str]
    body: Optional[dict]
    headers: Dict[str, str]
    client: int


class Paging(NamedTuple):
    """The number of a page, from 1, and the number of records on each page."""

    page: int
    size: int

    @property
    def begin(self) -> int:
        """Return the number of records before the page."""
        return (self.page - 1) * self.size

    @property
    def end(self) -> int:
        """Return the number of records up to the end of the page."""
        return self.page * self.size


class Answer(NamedTuple):
    status: int
    payload: Optional[dict]
    headers: Dict[str, str] = {}


class ApiError(Exception):
    """Ends a request with an error response."""

    def __init__(self, status: int, code: str, message: str, parameter: str = ""):
        super().__init__(status, code, message, parameter)

    def answer(self, form: str) -> Answer:
        """Return the error response in one of the two documented formats."""
        status, code, message, parameter = self.args
        if form == "common":
            code = "bad_request" if status == 400 else code
            meta = {"parameter": parameter} if parameter else {}
            return Answer(status, {"errors": [{"code": code, "message": message, "meta": meta}]})
        error = {"status": str(status), "code": code, "title": message, "detail": message}
        error.update(source={"parameters": parameter}, meta={})
        return Answer(status, {"errors": [error]})


class _Change(NamedTuple):
    """A record's new state, or None if it was erased, and when search sees it.

    `due` is a Unix time on Kustomer's clock.
    """

    due: float
    table: str
    record_id: str
    record: Optional[dict]


class Store:
    """The records and their search index, which can lag behind them."""

    def __init__(self, records: Records, behaviour: Behaviour):
        self._behaviour = behaviour
        self._records = {table: dict(records.get(table, {})) for table in TABLES}
        self._orders: Dict[str, Dict[tuple, List[str]]] = {}
        self._indexed = {table: dict(self._records[table]) for table in TABLES}
        self._keys = {table: self._sorted_keys(table) for table in TABLES}
        self._pending: List[_Change] = []

    def records(self, table: str) -> Dict[str, dict]:
        """Return a table's records by id. Do not modify them; use `put` or `change` instead."""
        return dict(self._records[table])

    def count(self, table: str) -> int:
        return len(self._records[table])

    def put(self, table: str, record: dict) -> None:
        """Add a record, or replace the record with the same id."""
        self._records[table][record["id"]] = copy.deepcopy(record)
        self._changed(table, record["id"])

    def change(self, table: str, record_id: str, **attributes) -> None:
        """Set attributes of a record. Unless given, `updatedAt` is set to the current time."""
        record = copy.deepcopy(self._records[table][record_id])
        record["attributes"].update({"updatedAt": time_text(self._behaviour.now())})
        record["attributes"].update(attributes)
        self.put(table, record)

    def delete(self, table: str, record_id: str) -> None:
        """Mark a record as deleted, as Kustomer does. Search can still return it."""
        self.change(table, record_id, deleted=True)

    def erase(self, table: str, record_id: str) -> None:
        """Remove a record completely."""
        del self._records[table][record_id]
        self._changed(table, record_id)

    def listed(self, table: str, deactivated: bool = False) -> List[str]:
        """Return the ids on a table's list, or on the list of deactivated users, in list order.

        With the list order "scattered", messages are in the order of their ids, and all other
        records are in an order that a client cannot predict.
        """
        rules = self._behaviour
        users = rules.user_lists if table == "users" else ""
        shown = (rules.lists_show_deleted, users, deactivated)
        orders = self._orders.setdefault(table, {})
        order = (rules.list_order, *shown)
        if order not in orders:
            records = self._records[table]
            ids = [record_id for record_id in records if _is_listed(records[record_id], *shown)]
            if rules.list_order == "updated":
                ids.sort(key=lambda record_id: _key(records[record_id]))
            else:
                ids.sort(key=None if table == "messages" else scattered)
            orders[order] = ids
        return orders[order]

    def page(self, table: str, ids: List[str]) -> List[dict]:
        return [self._records[table][record_id] for record_id in ids]

    def indexed(self, table: str, record_id: str) -> dict:
        """Return a record's state in the search index."""
        return self._indexed[table][record_id]

    def settle(self) -> None:
        """Bring a lagging search index up to date immediately."""
        self._catch_up(math.inf)

    def keys(self, table: str) -> List[Tuple[str, str]]:
        """Return (updatedAt, id) of every record in the search index, in ascending order."""
        self._catch_up(self._behaviour.now().timestamp())
        return self._keys[table]

    def _changed(self, table: str, record_id: str) -> None:
        self._orders.pop(table, None)
        now, lag = self._behaviour.now().timestamp(), self._behaviour.index_lag_seconds
        record = self._records[table].get(record_id)
        self._pending.append(_Change(now + lag, table, record_id, record))
        if not lag:
            # A change without a lag stays visible even if Kustomer's clock is set back.
            self._catch_up(now)

    def _catch_up(self, now: float) -> None:
        """Index the newest due change of each record. Older changes of the record are void."""
        waiting: List[_Change] = []
        indexed = set()
        for change in reversed(self._pending):
            record = change.table, change.record_id
            if record in indexed:
                continue
            if change.due > now:
                waiting.append(change)
            else:
                self._index(change)
                indexed.add(record)
        self._pending = waiting[::-1]

    def _index(self, change: _Change) -> None:
        _, table, record_id, new = change
        keys, old = self._keys[table], self._indexed[table].pop(record_id, None)
        if old:
            del keys[bisect.bisect_left(keys, _key(old))]
        if new:
            self._indexed[table][record_id] = new
            bisect.insort(keys, _key(new))

    def _sorted_keys(self, table: str) -> List[Tuple[str, str]]:
        return sorted(map(_key, self._records[table].values()))


def _is_listed(record: dict, shows_deleted: bool, user_lists: str, deactivated: bool) -> bool:
    """Return whether a record is on a list. `user_lists` is empty for all tables but users."""
    attributes = record["attributes"]
    if attributes.get("deleted") is True and not shows_deleted:
        return False
    if user_lists in ("", "ignores_deleted") or user_lists == "together" and not deactivated:
        return True
    # Only deactivated users have this time.
    return deactivated is bool(attributes.get("deletedAt"))


def _key(record: dict) -> Tuple[str, str]:
    return str(record["attributes"].get("updatedAt", "")), record["id"]


class RateLimits:
    """The limits of a window: one for all requests and one for searches."""

    def __init__(self, behaviour: Behaviour):
        self._behaviour = behaviour
        self._ends, self._used = 0.0, {"org": 0, "search": 0}

    def take(self, is_search: bool) -> Tuple[bool, Dict[str, str]]:
        """Count a request. Return whether it is within the limits, and the headers to send."""
        now, rules = time.time(), self._behaviour
        if now >= self._ends:
            self._ends, self._used = now + rules.window_seconds, {"org": 0, "search": 0}
        limits = {"org": rules.org_limit}
        if is_search:
            limits["search"] = rules.search_limit
        tightest = min(limits, key=lambda name: limits[name] - self._used[name])
        left = limits[tightest] - self._used[tightest]
        if left > 0:
            for name in limits:
                self._used[name] += 1
        headers = {
            "x-ratelimit-limit": str(limits[tightest]),
            "x-ratelimit-remaining": str(max(left - 1, 0)),
        }
        if left <= 0 or rules.reset_on_every_answer:
            # Windows follow this machine's clock, because a test may change Kustomer's clock.
            offset = rules.clock_offset_seconds
            headers.update(
                reset_headers(rules.rate_limit_reset, self._ends + offset, now + offset)
            )
        return left > 0, headers


def reset_headers(kind: str, ends: float, now: float) -> Dict[str, str]:
    """Return the headers that report the end of a window in the format `kind`, one of RESETS.

    `ends` and `now` are times on Kustomer's clock.
    """
    left = max(ends - now, 0)
    return {
        "epoch": {"x-ratelimit-reset": str(math.ceil(ends))},
        "epoch_ms": {"x-ratelimit-reset": str(math.ceil(ends * 1000))},
        "seconds": {"x-ratelimit-reset": str(math.ceil(left))},
        "absent": {},
        "retry_after": {"Retry-After": str(math.ceil(left))},
    }[kind]


class Api:
    """Responds to requests from a store, independently of the network."""

    def __init__(self, store: Store, behaviour: Behaviour, api_key: str):
        self.store, self.behaviour, self._api_key = store, behaviour, api_key
        self._limits, self._finder = RateLimits(behaviour), Finder(store, behaviour)
        self._searches = 0

    def answer(self, request: Request) -> Answer:
        """Return Kustomer's response, which may be an error."""
        headers: Dict[str, str] = {}
        try:
            self._check_key(request)
            within, headers = self._limits.take(request.path == SEARCH_PATH)
            if not within:
                raise ApiError(429, "rate_limit", "Too many requests")
            payload = self._payload(request)
        except ApiError as error:
            return error.answer(self.behaviour.error_form)._replace(headers=headers)
        return Answer(200, payload, headers)

    def _payload(self, request: Request) -> dict:
        table = request.path.rpartition("/")[2]
        if (request.method, request.path) == ("POST", SEARCH_PATH):
            return self._search(request)
        if request.method == "GET" and request.path == KEY_PATH:
            return self._current_user()
        if request.method == "GET" and request.path == f"/v1/{table}" and table in TABLES:
            return self._list(table, request)
        if request.path in (SEARCH_PATH, KEY_PATH, *(f"/v1/{name}" for name in TABLES)):
            raise ApiError(405, "method_not_allowed", "Method not allowed")
        raise ApiError(404, "not_found", "Not found")

    def _check_key(self, request: Request) -> None:
        if request.headers.get("Authorization") != f"Bearer {self._api_key}":
            raise ApiError(401, "unauthorized", "The token is invalid or is for another pod")

    def _check_role(self, *roles: str) -> None:
        for role in roles:
            if role not in self.behaviour.roles:
                status = self.behaviour.missing_role_status
                code = "unauthorized" if status == 401 else "forbidden"
                raise ApiError(status, code, "The token does not have the role for this request")

    def _current_user(self) -> dict:
        user = {"name": "Connector", "userType": "machine", "roleGroups": []}
        links = {"self": KEY_PATH}
        return {
            "data": {"type": "user", "id": ORG_ID, "attributes": user, "links": links},
        }

    def _list(self, table: str, request: Request) -> dict:
        self._check_role(f"org.permission.{TYPES[table]}.read")
        rules = self.behaviour
        paging = self._paging(request, LIST_MAX, LIST_MAXIMA.get(table, LIST_MAX))
        ids = self.store.listed(table, request.params.get("deleted") == "true")
        reachable = ids if rules.list_window is None else ids[: rules.list_window]
        if paging.end > len(reachable) < len(ids) and rules.list_window_status:
            raise ApiError(
                rules.list_window_status, "too_deep", "The page is beyond the limit", "page"
            )
        shown = paging
        if rules.list_links_on == "repeat":
            last = max(math.ceil(len(reachable) / paging.size), 1)
            shown = paging._replace(page=min(paging.page, last))
        records = self.store.page(table, reachable[shown.begin : shown.end])
        in_list = paging.end < len(ids if rules.list_window_status else reachable)
        more = in_list or rules.list_links_on is not None
        known_total = len(ids) if table == "customers" else None
        return self._envelope(request, records, paging, more, known_total)

    def _paging(self, request: Request, default: int, maximum: int) -> Paging:
        rules, values = self.behaviour, {"page": 1, "pageSize": default}
        for name in values:
            text = request.params.get(name, str(values[name]))
            if not text.isascii() or not text.isdigit() or int(text) < 1:
                raise ApiError(400, "invalid_parameter", f"{name} must be a positive number", name)
            values[name] = int(text)
        asked, allowed = values["pageSize"], rules.allowed_page_sizes
        if "pageSize" in request.params and allowed and asked not in allowed:
            raise ApiError(400, "invalid_parameter", "This pageSize is not allowed", "pageSize")
        return Paging(values["page"], min(asked, maximum, rules.page_size_limit or maximum))

    def _search(self, request: Request) -> dict:
        self._check_role(SEARCH_ROLE)
        rules = self.behaviour
        try:
            query = parse_query(request.body, rules)
        except QueryError as error:
            raise ApiError(400, *error.args) from None
        if rules.search_needs_object_role:
            self._check_role(f"org.permission.{query.context}.read")
        paging = self._paging(request, LIST_MAX, SEARCH_MAX)
        window = rules.search_window
        too_deep = window is not None and paging.page > 1 and paging.end > window
        if paging.page > SEARCH_MAX_PAGES or too_deep:
            raise ApiError(400, "page_limit", "The page is beyond the limit", "page")
        table, replica = CONTEXTS[query.context], self._searches % rules.replicas
        self._searches += 1
        found = self._finder.find(query, replica)
        keys = found[paging.begin : paging.end]
        records = [self.store.indexed(table, key[1]) for key in keys if key[1] not in rules.hidden]
        # If there are more pages, page 100 links to page 101, although page 101 is refused.
        more, total = paging.end < len(found), min(len(found), window or len(found))
        payload = self._envelope(request, records, paging, more, total)
        payload["meta"]["aggregations"] = {}
        return payload

    def _envelope(
        self,
        request: Request,
        records: List[dict],
        paging: Paging,
        more: bool,
        total: Optional[int],
    ) -> dict:
        rules, (page, size) = self.behaviour, paging
        meta = {"pageSize": size, "page": page}
        pages = {"self": page, "first": 1, "prev": page - 1, "next": page + 1 if more else 0}
        if total is not None and rules.shows_total:
            meta.update(total=total, totalPages=math.ceil(total / size))
            pages["last"] = max(meta["totalPages"], 1)
        payload = {"meta": meta, "data": records}
        if rules.shows_links:
            payload["links"] = {
                name: _link(request, number, size) if number else None
                for name, number in pages.items()
            }
        return payload


def _link(request: Request, page: int, size: int) -> str:
    """Return the link to another page of a request. Kustomer's links begin with these two."""
    parameters = {"page": page, "pageSize": size}
    others = {name: text for name, text in request.params.items() if name not in parameters}
    return f"{request.path}?{urlencode({**parameters, **others})}"

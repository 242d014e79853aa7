"""How Kustomer answers: a request in, a status, headers and a JSON body out.

Written from https://developer.kustomer.com/docs/concepts (pagination, search, rate-limits).
"""

import bisect
import copy
import hashlib
import math
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from email.utils import formatdate
from typing import Dict, FrozenSet, List, NamedTuple, Optional, Set, Tuple
from urllib.parse import urlencode

from mock_server.records import ORG_ID, TABLES, TYPES, Records, time_text

LIST_MAX = 100
SEARCH_MAX = 500
SEARCH_MAX_PAGES = 100
SEARCH_PATH = "/v1/customers/search"
KEY_PATH = "/v1/users/current"
SEARCH_ROLE = "org.permission.search.create"
ROLES = frozenset(
    {SEARCH_ROLE, *(f"org.permission.{object_type}.read" for object_type in TYPES.values())}
)
RESETS = ("epoch", "epoch_ms", "seconds", "past", "absent", "rubbish", "retry_after", "date")

_SEARCHED = {"customer": "customers", "message": "messages"}
_BODY_FIELDS = {"searchHash", "queryContext", "includeDeleted", "timeZone"} | {
    "and",
    "or",
    "not",
    "sort",
    "aggs",
    "fields",
}
_OPERATORS = {
    "gt": lambda value, bound: value > bound,
    "gte": lambda value, bound: value >= bound,
    "lt": lambda value, bound: value < bound,
    "lte": lambda value, bound: value <= bound,
}
# Later than any updatedAt, and above any id.
_HIGH = "\U0010ffff"


@dataclass
class Behaviour:
    """What is Kustomer's to choose, or not documented.

    `large_pages` is "clamp" or "refuse". `missing_role_status` is 403 or 401. `ignores` may hold
    "sort", "filter" and "page": what search takes no notice of. `index_lag_seconds` is how long
    search shows a record as it was before a change. `rate_limit_reset` is one of RESETS.
    """

    roles: FrozenSet[str] = ROLES
    missing_role_status: int = 403
    large_pages: str = "clamp"
    ignores: Set[str] = field(default_factory=set)
    index_lag_seconds: float = 0.0
    org_limit: int = 1000
    search_limit: int = 100
    window_seconds: float = 60.0
    rate_limit_reset: str = "epoch"


class Request(NamedTuple):
    """A request as it came. `client` is its connection's port."""

    method: str
    path: str
    params: Dict[str, str]
    body: Optional[dict]
    headers: Dict[str, str]
    client: int


class Answer(NamedTuple):
    status: int
    payload: Optional[dict]
    headers: Dict[str, str] = {}


class ApiError(Exception):
    """Ends a request with an error body."""

    def __init__(self, status: int, code: str, title: str, parameter: str = ""):
        super().__init__(status, code, title, parameter)
        error = {"status": str(status), "code": code, "title": title}
        error["source"] = {"parameters": parameter}
        self.answer = Answer(status, {"errors": [error]})


class Store:
    """The records, and the search index that follows them."""

    def __init__(self, records: Records, behaviour: Behaviour):
        self._behaviour = behaviour
        self._records = {table: dict(records.get(table, {})) for table in TABLES}
        self._orders: Dict[str, List[str]] = {}
        self._indexed = {table: dict(self._records[table]) for table in TABLES}
        self._keys = {table: self._sorted_keys(table) for table in TABLES}
        self._pending: List[Tuple[float, str, str]] = []

    def records(self, table: str) -> Dict[str, dict]:
        """Return a table's records by id, to be read only: a change replaces a record."""
        return dict(self._records[table])

    def count(self, table: str) -> int:
        return len(self._records[table])

    def put(self, table: str, record: dict) -> None:
        """Add a record or replace the one with its id."""
        self._records[table][record["id"]] = copy.deepcopy(record)
        self._changed(table, record["id"])

    def change(self, table: str, record_id: str, **attributes) -> None:
        """Set attributes of a record; `updatedAt` becomes now unless it is one of them."""
        record = copy.deepcopy(self._records[table][record_id])
        record["attributes"].update({"updatedAt": time_text(datetime.now(timezone.utc))})
        record["attributes"].update(attributes)
        self.put(table, record)

    def delete(self, table: str, record_id: str) -> None:
        """Delete a record as Kustomer does: search still gives it when asked for deleted ones."""
        self.change(table, record_id, deleted=True)

    def erase(self, table: str, record_id: str) -> None:
        """Remove a record without a trace."""
        del self._records[table][record_id]
        self._changed(table, record_id)

    def listed(self, table: str) -> List[str]:
        """Return the ids in the order of the table's list: messages by id, the others by no
        order a client could know. Deleted records are not listed."""
        if table not in self._orders:
            live = [
                record_id
                for record_id, record in self._records[table].items()
                if record["attributes"].get("deleted") is not True
            ]
            self._orders[table] = sorted(live, key=None if table == "messages" else _scattered)
        return self._orders[table]

    def page(self, table: str, ids: List[str]) -> List[dict]:
        return [self._records[table][record_id] for record_id in ids]

    def indexed(self, table: str, record_id: str) -> dict:
        return self._indexed[table][record_id]

    def settle(self) -> None:
        """Let a search index that lags behind catch up at once."""
        for _, table, record_id in self._pending:
            self._index(table, record_id)
        self._pending.clear()

    def keys(self, table: str) -> List[Tuple[str, str]]:
        """Return (updatedAt, id) of every record in the search index, ascending."""
        now = time.monotonic()
        while self._pending and self._pending[0][0] <= now:
            _, of_table, record_id = self._pending.pop(0)
            self._index(of_table, record_id)
        return self._keys[table]

    def _changed(self, table: str, record_id: str) -> None:
        self._orders.pop(table, None)
        if self._behaviour.index_lag_seconds:
            due = time.monotonic() + self._behaviour.index_lag_seconds
            self._pending.append((due, table, record_id))
        else:
            self._index(table, record_id)

    def _index(self, table: str, record_id: str) -> None:
        keys, old = self._keys[table], self._indexed[table].pop(record_id, None)
        if old:
            del keys[bisect.bisect_left(keys, _key(old))]
        new = self._records[table].get(record_id)
        if new:
            self._indexed[table][record_id] = new
            bisect.insort(keys, _key(new))

    def _sorted_keys(self, table: str) -> List[Tuple[str, str]]:
        return sorted(map(_key, self._records[table].values()))


def _key(record: dict) -> Tuple[str, str]:
    return str(record["attributes"].get("updatedAt", "")), record["id"]


def _scattered(record_id: str) -> bytes:
    return hashlib.blake2b(record_id.encode(), digest_size=8).digest()


class RateLimits:
    """The budgets of a window: one for all requests, one for searches."""

    def __init__(self, behaviour: Behaviour):
        self._behaviour = behaviour
        self._ends, self._used = 0.0, {"org": 0, "search": 0}

    def take(self, is_search: bool) -> Tuple[bool, Dict[str, str]]:
        """Count a request, and return whether it is within the limits, and the headers to send."""
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
        if left <= 0:
            headers.update(reset_headers(rules.rate_limit_reset, self._ends))
        return left > 0, headers


def reset_headers(kind: str, ends: float) -> Dict[str, str]:
    """Return the headers that say, in one of the RESETS ways, that a window ends at `ends`."""
    left = max(ends - time.time(), 0)
    return {
        "epoch": {"x-ratelimit-reset": str(math.ceil(ends))},
        "epoch_ms": {"x-ratelimit-reset": str(math.ceil(ends * 1000))},
        "seconds": {"x-ratelimit-reset": str(math.ceil(left))},
        "past": {"x-ratelimit-reset": str(math.floor(ends) - 86_400)},
        "absent": {},
        "rubbish": {"x-ratelimit-reset": "soon"},
        "retry_after": {"Retry-After": str(math.ceil(left))},
        "date": {"Retry-After": formatdate(math.ceil(ends), usegmt=True)},
    }[kind]


class Api:
    """Answers requests from a store. Knows nothing of sockets."""

    def __init__(self, store: Store, behaviour: Behaviour, api_key: str):
        self.store, self.behaviour, self._api_key = store, behaviour, api_key
        self._limits = RateLimits(behaviour)

    def answer(self, request: Request) -> Answer:
        """Return what Kustomer answers, error bodies included."""
        headers: Dict[str, str] = {}
        try:
            self._check_key(request)
            within, headers = self._limits.take(request.path == SEARCH_PATH)
            if not within:
                raise ApiError(429, "rate_limit", "Too many requests")
            payload = self._payload(request)
        except ApiError as error:
            return error.answer._replace(headers=headers)
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
        page, size = self._paging(request, LIST_MAX, LIST_MAX)
        ids = self.store.listed(table)
        records = self.store.page(table, ids[(page - 1) * size : page * size])
        known_total = len(ids) if table == "customers" else None
        more = page * size < len(ids)
        return _envelope(request, records, page, size, more, known_total)

    def _paging(self, request: Request, default: int, maximum: int) -> Tuple[int, int]:
        values = {"page": 1, "pageSize": default}
        for name in values:
            text = request.params.get(name, str(values[name]))
            if not text.isascii() or not text.isdigit() or int(text) < 1:
                raise ApiError(400, "invalid_parameter", f"{name} takes a positive number", name)
            values[name] = int(text)
        if values["pageSize"] > maximum:
            if self.behaviour.large_pages == "refuse":
                raise ApiError(400, "invalid_parameter", f"pageSize is over {maximum}", "pageSize")
            values["pageSize"] = maximum
        return values["page"], values["pageSize"]

    def _search(self, request: Request) -> dict:
        self._check_role(SEARCH_ROLE)
        body = request.body if isinstance(request.body, dict) else {}
        unknown = set(body) - _BODY_FIELDS
        if unknown:
            raise ApiError(400, "invalid_body", "Unknown field", sorted(unknown)[0])
        context = body.get("queryContext", "customer")
        if context not in _SEARCHED:
            raise ApiError(400, "invalid_context", "Unknown queryContext", "queryContext")
        table = _SEARCHED[context]
        self._check_role(f"org.permission.{context}.read")
        page, size = self._paging(request, LIST_MAX, SEARCH_MAX)
        if page > SEARCH_MAX_PAGES:
            raise ApiError(400, "page_limit", f"page is over {SEARCH_MAX_PAGES}", "page")
        found = self._find(table, context, body)
        if "page" in self.behaviour.ignores:
            page = 1
        ids = found[(page - 1) * size : page * size]
        records = [self.store.indexed(table, record_id) for _, record_id in ids]
        more = page * size < len(found) and page < SEARCH_MAX_PAGES
        payload = _envelope(request, records, page, size, more, len(found))
        payload["meta"]["aggregations"] = {}
        return payload

    def _find(self, table: str, context: str, body: dict) -> List[Tuple[str, str]]:
        """Return the keys that match a search, in its order."""
        sort, direction = _sort_of(body, context)
        low, high, others = "", _HIGH, []
        for attribute, operator, bound in _criteria(body, context):
            if attribute != f"{context}_updated_at" or "filter" in self.behaviour.ignores:
                others.append((attribute, operator, bound))
            elif operator in ("gt", "gte"):
                low = max(low, bound + (_HIGH if operator == "gt" else ""))
            else:
                high = min(high, bound + (_HIGH if operator == "lte" else ""))
        keys = self.store.keys(table)
        found = keys[bisect.bisect_left(keys, (low, "")) : bisect.bisect_left(keys, (high, ""))]
        # Records that were not updated in the last two years are out of search's sight.
        horizon = time_text(datetime.now(timezone.utc) - timedelta(days=730))
        if low < horizon:
            found = [key for key in found if key[0] >= horizon]
        if body.get("includeDeleted") is not True or others:
            found = [key for key in found if self._matches(table, key[1], body, others)]
        if sort is None or "sort" in self.behaviour.ignores:
            return sorted(found, key=lambda key: _scattered(key[1]))
        if sort.endswith("_created_at"):
            found.sort(key=lambda key: self._attribute(table, key[1], sort))
        return found if direction == "asc" else found[::-1]

    def _matches(self, table: str, record_id: str, body: dict, criteria: list) -> bool:
        attributes = self.store.indexed(table, record_id)["attributes"]
        if attributes.get("deleted") is True and body.get("includeDeleted") is not True:
            return False
        return "filter" in self.behaviour.ignores or all(
            _OPERATORS[operator](self._attribute(table, record_id, attribute), bound)
            for attribute, operator, bound in criteria
        )

    def _attribute(self, table: str, record_id: str, name: str) -> str:
        kind = "createdAt" if name.endswith("_created_at") else "updatedAt"
        return str(self.store.indexed(table, record_id)["attributes"].get(kind, ""))


def _criteria(body: dict, context: str) -> List[Tuple[str, str, str]]:
    """Return (attribute, operator, bound) of each criterion, or refuse an unknown one."""
    given = body.get("and", [])
    criteria = []
    for criterion in given if isinstance(given, list) else [given]:
        for attribute, condition in criterion.items():
            _check_attribute(attribute, context)
            for operator, bound in condition.items():
                if operator not in _OPERATORS:
                    raise ApiError(400, "invalid_operator", "Unknown operator", operator)
                criteria.append((attribute, operator, str(bound)))
    return criteria


def _check_attribute(attribute: str, context: str) -> None:
    if attribute not in (f"{context}_updated_at", f"{context}_created_at"):
        raise ApiError(400, "invalid_attribute", "Unknown attribute", attribute)


def _sort_of(body: dict, context: str) -> Tuple[Optional[str], str]:
    given = body.get("sort") or []
    for entry in given if isinstance(given, list) else [given]:
        for attribute, direction in entry.items():
            _check_attribute(attribute, context)
            return attribute, direction
    return None, "asc"


def _envelope(
    request: Request, records: List[dict], page: int, size: int, more: bool, total: Optional[int]
) -> dict:
    def link(number: int) -> str:
        query = {**request.params, "page": number, "pageSize": size}
        return f"{request.path}?{urlencode(query)}"

    links = {
        "self": link(page),
        "first": link(1),
        "prev": link(page - 1) if page > 1 else None,
        "next": link(page + 1) if more else None,
    }
    meta = {"pageSize": size, "page": page}
    if total is not None:
        meta.update(total=total, totalPages=math.ceil(total / size))
        links["last"] = link(max(meta["totalPages"], 1))
    return {"meta": meta, "data": records, "links": links}

"""The mock's API logic: turns a request into a status, headers and a JSON body.

Based on https://developer.kustomer.com/docs/concepts (pagination, search, rate-limits).
"""

import math
import time
from functools import partial
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple
from urllib.parse import urlencode

from mock_server.audit import find_page, parse_audit_query
from mock_server.behaviour import CONTEXTS, READ_ROLES, SEARCH_ROLE, Behaviour
from mock_server.records import KLASS_STATUSES, ORG_ID, TABLES
from mock_server.search import Finder, QueryError, parse_query
from mock_server.store import Store

# The documented maximum page sizes of lists. For all other lists, LIST_MAX applies.
LIST_MAXIMA = {"users": 500, "teams": 500}
LIST_MAX = 100
SEARCH_MAX = 500
SEARCH_MAX_PAGES = 100
SEARCH_PATH = "/v1/customers/search"
KEY_PATH = "/v1/users/current"
AUDIT_PATH = "/v1/audit-logs"
KLASS_PATH = "/v1/klasses/"
# The tables with a list of their own. Custom objects are on the lists of their klasses.
# Lists that sort=desc sorts by id, the greatest first. Other clients have observed it.
_SORTED_LISTS = ("conversations", "messages")
_LISTS = {f"/v1/{table}": table for table in TABLES if table not in ("kobjects", "audit_logs")}


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
        serve = self._endpoint(request.path)
        if serve is None:
            raise ApiError(404, "not_found", "Not found")
        if request.method != ("POST" if request.path == SEARCH_PATH else "GET"):
            raise ApiError(405, "method_not_allowed", "Method not allowed")
        return serve(request)

    def _endpoint(self, path: str) -> Optional[Callable[[Request], dict]]:
        """Return what answers the requests for a path, or None if there is no such path."""
        if path in _LISTS:
            return partial(self._list, _LISTS[path])
        if path.startswith(KLASS_PATH):
            return partial(self._list, "kobjects")
        paths = {
            SEARCH_PATH: self._search,
            KEY_PATH: self._current_user,
            AUDIT_PATH: self._audit_logs,
        }
        return paths.get(path)

    def _check_key(self, request: Request) -> None:
        if request.headers.get("Authorization") != f"Bearer {self._api_key}":
            raise ApiError(401, "unauthorized", "The token is invalid or is for another pod")

    def _check_role(self, *roles: str) -> None:
        for role in roles:
            if role not in self.behaviour.roles:
                status = self.behaviour.missing_role_status
                code = "unauthorized" if status == 401 else "forbidden"
                raise ApiError(status, code, "The token does not have the role for this request")

    def _current_user(self, _request: Request) -> dict:
        user = {"name": "Connector", "userType": "machine", "roleGroups": []}
        links = {"self": KEY_PATH}
        return {
            "data": {"type": "user", "id": ORG_ID, "attributes": user, "links": links},
        }

    def _list(self, table: str, request: Request) -> dict:
        self._check_role(READ_ROLES[table])
        rules = self.behaviour
        paging = self._paging(request, LIST_MAX, LIST_MAXIMA.get(table, LIST_MAX))
        ids = self.store.listed(table, self._part(table, request))
        if request.params.get("sort") == "desc" and table in _SORTED_LISTS:
            ids = sorted(ids, reverse=True)
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

    def _part(self, table: str, request: Request) -> str:
        """Return which of a table's lists a request is for, as `Store.listed` takes it."""
        if table == "users" and request.params.get("deleted") == "true":
            return "deactivated"
        if table == "klasses":
            status = request.params.get("status", "")
            if status and status not in KLASS_STATUSES:
                raise ApiError(400, "invalid_parameter", "Unknown status", "status")
            return status
        return self._klass_id(request.path[len(KLASS_PATH) :]) if table == "kobjects" else ""

    def _klass_id(self, name: str) -> str:
        for record_id, klass in self.store.records("klasses").items():
            if klass["attributes"].get("name") == name:
                return record_id
        raise ApiError(404, "not_found", "Not found")

    def _audit_logs(self, request: Request) -> dict:
        self._check_role(READ_ROLES["audit_logs"])
        try:
            query = parse_audit_query(request.params)
            page = find_page(self.store, query, self.behaviour)
        except QueryError as error:
            raise ApiError(400, *error.args) from None
        links: Dict[str, Optional[str]] = {
            "self": f"{request.path}?{urlencode(request.params)}",
            "next": None,
        }
        if page.next_bounds:
            links["next"] = f"{request.path}?{urlencode({**request.params, **page.next_bounds})}"
        return {"meta": {"pageSize": query.count}, "data": page.entries, "links": links}

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
            self._check_role(READ_ROLES[CONTEXTS[query.context]])
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

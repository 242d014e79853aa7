"""The mock's switches for behavior that is undocumented or that Kustomer may choose."""

import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import FrozenSet, Optional, Set

from mock_server.records import TYPES

# The contexts of search, and the table that each one searches.
CONTEXTS = {
    "customer": "customers",
    "message": "messages",
    "company": "companies",
    "conversation": "conversations",
    "note": "notes",
    "kobject": "kobjects",
}
SEARCH_ROLE = "org.permission.search.create"
# The role that reading each table requires. Custom objects have the role of their klass.
READ_ROLES = {
    **{table: f"org.permission.{object_type}.read" for table, object_type in TYPES.items()},
    "kobjects": "org.permission.klass.read",
    "audit_logs": "org.permission.audit_logs.read",
}
ROLES = frozenset({SEARCH_ROLE, *READ_ROLES.values()})
COMPANY_SEARCHES = ("knows", "refuses_attribute", "finds_nothing")
USER_LISTS = ("apart", "ignores_deleted", "together")
LIST_LINKS_ON = ("empty", "repeat")
ERROR_FORMS = ("common", "detailed")
AUDIT_LOG_ORDERS = ("newest", "oldest")
RESETS = ("epoch", "epoch_ms", "seconds", "absent", "retry_after")


@dataclass
class Behaviour:
    """Behavior that is undocumented or that Kustomer may choose. It can change at any time.

    Roles and errors: `roles` are the roles of the key. `missing_role_status` is 403 or 401.
    `search_needs_object_role` is whether search also requires the object's own role. `error_form`
    is "common" (code, message, meta) or "detailed" (status, title, source and more).

    Search: results are sorted for the contexts in `sort_contexts`. `other_sorts` is whether to
    "ignore" or "refuse" a sort for another context. Records that are not sorted come in an order
    that a client cannot predict. `company_search` is how search treats `company_updated_at`:
    "knows" supports it, "refuses_attribute" returns 400, and "finds_nothing" returns an empty
    page, as for a field that is not indexed. Records whose id is in `hidden` are counted and take
    up space on a page, but are not returned. Counts and pages end at `search_window` records. A
    change becomes visible to search `index_lag_seconds` after it was made, on Kustomer's clock.
    With `search_is_empty`, every valid search finds nothing. Searches are answered by `replicas`
    servers in turn: all have the same records, but each has its own order of records with the same
    `updatedAt`, and of all records if search does not sort.

    Lists: `list_order` is "scattered" or "updated" (ascending updatedAt). `lists_show_deleted` is
    whether lists include deleted records. `user_lists` is "apart" if deactivated users are only on
    the list with `deleted=true`, "ignores_deleted" if that parameter has no effect, and "together"
    if the list without the parameter has all users. Lists end at `list_window` records; later
    pages are empty or return `list_window_status`. With `list_links_on`, every page links to a
    next page, without end: pages beyond the last one are "empty" or "repeat" the last one.

    Audit log: `audit_log_order` is whether the "newest" or the "oldest" entries come first. An entry
    becomes visible `audit_log_lag_seconds` after it was made, on Kustomer's clock, and expires
    after `audit_log_days`.

    Page sizes of lists and search: a larger size than the documented maximum gets the maximum.
    `page_size_limit` is a lower maximum, and any size not in `allowed_page_sizes` is refused.
    `shows_links` and `shows_total` are whether responses have links and counts.

    Limits and clock: `org_limit` and `search_limit` are the requests per window of
    `window_seconds`. `rate_limit_reset` is one of RESETS, sent with a 429, or with every response
    if `reset_on_every_answer` is set. Kustomer's clock is `clock_offset_seconds` ahead of this
    machine's (behind, if negative), which affects dates, new updatedAt values, resets and when
    search sees a change.
    """

    roles: FrozenSet[str] = ROLES
    missing_role_status: int = 403
    search_needs_object_role: bool = True
    error_form: str = "common"
    sort_contexts: FrozenSet[str] = frozenset(CONTEXTS)
    other_sorts: str = "ignore"
    company_search: str = "refuses_attribute"
    hidden: Set[str] = field(default_factory=set)
    search_window: Optional[int] = None
    index_lag_seconds: float = 0.0
    search_is_empty: bool = False
    replicas: int = 1
    list_order: str = "scattered"
    lists_show_deleted: bool = False
    user_lists: str = "apart"
    list_window: Optional[int] = None
    list_window_status: Optional[int] = None
    list_links_on: Optional[str] = None
    audit_log_order: str = "newest"
    audit_log_lag_seconds: float = 0.0
    audit_log_days: int = 90
    page_size_limit: Optional[int] = None
    allowed_page_sizes: Optional[FrozenSet[int]] = None
    shows_links: bool = True
    shows_total: bool = True
    org_limit: int = 1000
    search_limit: int = 100
    window_seconds: float = 60.0
    rate_limit_reset: str = "epoch"
    reset_on_every_answer: bool = False
    clock_offset_seconds: float = 0.0

    def now(self) -> datetime:
        """Return the current time according to Kustomer's clock."""
        return datetime.fromtimestamp(time.time() + self.clock_offset_seconds, timezone.utc)

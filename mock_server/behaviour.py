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
}
SEARCH_ROLE = "org.permission.search.create"
ROLES = frozenset(
    {SEARCH_ROLE, *(f"org.permission.{object_type}.read" for object_type in TYPES.values())}
)
COMPANY_SEARCHES = ("knows", "refuses_attribute", "refuses_context", "finds_nothing")
USER_LISTS = ("apart", "ignores_deleted", "together")
ERROR_FORMS = ("common", "detailed")
RESETS = ("epoch", "epoch_ms", "seconds", "past", "absent", "rubbish", "retry_after", "date")


@dataclass
class Behaviour:
    """Behavior that is undocumented or that Kustomer may choose. It can change at any time.

    Roles and errors: `roles` are the roles of the key. `missing_role_status` is 403 or 401.
    `search_needs_object_role` is whether search also requires the object's own role. `error_form`
    is "common" (code, message, meta) or "detailed" (status, title, source and more).

    Search: `ignores` may contain "filter" and "page", which search then ignores. Search sorts for
    `sort_contexts`. `other_sorts` is whether to "ignore" or "refuse" a sort for another context,
    whose records are in `unsorted_order`: "scattered", or "insertion" for the order in which they
    were stored. `company_search` is how search treats `company_updated_at`: "knows" supports it,
    "refuses_attribute" and "refuses_context" return 400 for the attribute or the whole context,
    and "finds_nothing" returns an empty page, as for a field that is not indexed. Records whose id
    is in `hidden` are counted and take up space on a page, but are not returned. Counts and pages
    end at `search_window` records. The index shows a record as it was `index_lag_seconds` ago;
    with `shows_current`, it finds the record by that state but returns its current state.

    Lists: `list_order` is "scattered" or "updated" (ascending updatedAt). `lists_show_deleted` is
    whether lists include deleted records. `user_lists` is "apart" if deactivated users are only on
    the list with `deleted=true`, "ignores_deleted" if that parameter has no effect, and "together"
    if the list without the parameter has all users. Lists end at `list_window` records; later
    pages are empty or return `list_window_status`.

    Page sizes of both: above the documented maximum, `large_pages` is "clamp" or "refuse".
    `page_size_limit` is a lower maximum, `forced_page_size` is the size of every page regardless
    of the request, and any size not in `allowed_page_sizes` is refused. `page_size_shown` is
    whether responses report the "given" size, the "asked" size, or none ("absent"). `shows_links`
    and `shows_total` are whether responses have links and counts.

    Limits and clock: `org_limit` and `search_limit` are the requests per window of
    `window_seconds`. `rate_limit_reset` is one of RESETS, sent with a 429, or with every response
    if `reset_on_every_answer` is set. Kustomer's clock is `clock_offset_seconds` ahead of this
    machine's (behind, if negative), which affects dates, new updatedAt values and resets.
    """

    roles: FrozenSet[str] = ROLES
    missing_role_status: int = 403
    search_needs_object_role: bool = True
    error_form: str = "common"
    ignores: Set[str] = field(default_factory=set)
    sort_contexts: FrozenSet[str] = frozenset(CONTEXTS)
    other_sorts: str = "ignore"
    unsorted_order: str = "scattered"
    company_search: str = "refuses_attribute"
    hidden: Set[str] = field(default_factory=set)
    search_window: Optional[int] = None
    index_lag_seconds: float = 0.0
    shows_current: bool = False
    list_order: str = "scattered"
    lists_show_deleted: bool = False
    user_lists: str = "apart"
    list_window: Optional[int] = None
    list_window_status: Optional[int] = None
    large_pages: str = "clamp"
    page_size_limit: Optional[int] = None
    forced_page_size: Optional[int] = None
    allowed_page_sizes: Optional[FrozenSet[int]] = None
    page_size_shown: str = "given"
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

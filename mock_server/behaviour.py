"""What is Kustomer's to choose, or not documented: the mock's switches."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import FrozenSet, Optional, Set

from mock_server.records import TYPES

# Search's contexts, and the table of each.
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
    """What is Kustomer's to choose, or not documented. It may change while the server runs.

    Roles and errors: `roles` are the key's, `missing_role_status` is 403 or 401, and
    `search_needs_object_role` says whether search asks for the object's own role as well.
    `error_form` is "common" (code, message, meta) or "detailed" (status, title, source and more).

    Search: `ignores` may hold "filter" and "page", what search takes no notice of.
    `sort_contexts` are the contexts that it sorts for; a sort for another one is ignored or
    refused, as `other_sorts` says ("ignore", "refuse"), and records come in `unsorted_order`:
    "scattered", or "insertion", the order in which they came into the store.
    `company_search` says what a search by `company_updated_at` meets: "knows" answers it,
    "refuses_attribute" and "refuses_context" are a 400 for the attribute or for the whole context,
    and "finds_nothing" is an empty answer, as for a field that is not indexed. Records whose id is
    in `hidden` are counted and take their place on a page, but are not shown. Counts and pages end
    at `search_window` records. The index shows a record as it was `index_lag_seconds` ago, or,
    with `shows_current`, finds it by what it was and shows what it is.

    Lists: `list_order` is "scattered" or "updated" (ascending updatedAt). `lists_show_deleted`
    says whether they have deleted records. `user_lists` is "apart" when deactivated users are on
    the list with `deleted=true` and only there, "ignores_deleted" when that parameter changes
    nothing, and "together" when the list without it has all users. Lists end at `list_window`
    records; later pages are empty, or refused with `list_window_status`.

    Page sizes, of both: `large_pages` beyond the documented maximum are a "clamp" or "refuse".
    `page_size_limit` is a lower maximum, `forced_page_size` the size of every page whatever is
    asked for, and any size that is not one of `allowed_page_sizes` is refused. Answers show the
    page size that was "given", the one "asked" for, or none ("absent"), by `page_size_shown`;
    `shows_links` and `shows_total` say whether they have links and counts.

    Limits and clock: `org_limit` and `search_limit` are requests for a window of
    `window_seconds`; `rate_limit_reset` is one of RESETS, sent with a refusal, or always with
    `reset_on_every_answer`. Kustomer's clock is `clock_offset_seconds` ahead of this machine's, or
    behind it where that is negative: dates, new updatedAt and resets follow it.
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
        """Return the time by Kustomer's clock."""
        return datetime.now(timezone.utc) + timedelta(seconds=self.clock_offset_seconds)

"""The mock's search: validates a query, and filters and sorts the records in the index.

Based on https://developer.kustomer.com/docs/concepts/search.
"""

import bisect
import re
from datetime import timedelta
from typing import List, NamedTuple, Optional, Tuple

from mock_server.behaviour import CONTEXTS, Behaviour
from mock_server.records import scattered, time_text

_BODY_FIELDS = frozenset(
    "and or not sort aggs fields searchHash queryContext includeDeleted timeZone".split()
)
_OPERATORS = {
    "gt": lambda value, bound: value > bound,
    "gte": lambda value, bound: value >= bound,
    "lt": lambda value, bound: value < bound,
    "lte": lambda value, bound: value <= bound,
}
# Criteria may refer to any object. These are some of the attributes that Kustomer documents.
_ATTRIBUTE = re.compile(
    r"(customer|company|message|conversation|note|kobject)_(updated_at|created_at|status|channel)"
)
# Greater than any updatedAt and any id.
_HIGH = "\U0010ffff"
# https://developer.kustomer.com/docs/concepts/search: search does not return older records.
_HORIZON = timedelta(days=730)

Key = Tuple[str, str]


class QueryError(Exception):
    """A search that Kustomer refuses. The arguments are code, message and the invalid part."""


class Criterion(NamedTuple):
    """A bound on an attribute."""

    attribute: str
    operator: str
    bound: str


class Query(NamedTuple):
    """A validated search body. `sort` is an attribute and a direction, or None."""

    context: str
    criteria: List[Criterion]
    sort: Optional[Tuple[str, str]]
    include_deleted: bool


def parse_query(body, rules: Behaviour) -> Query:
    """Return the query of a search body. Raises QueryError if the body is invalid."""
    body = body if isinstance(body, dict) else {}
    unknown = sorted(set(body) - _BODY_FIELDS)
    if unknown:
        raise QueryError("invalid_body", "Unknown field", unknown[0])
    context = body.get("queryContext", "customer")
    if context not in CONTEXTS:
        raise QueryError("invalid_context", "Unknown queryContext", "queryContext")
    return Query(
        context,
        list(_criteria(body, rules)),
        _sort_of(body, context, rules),
        body.get("includeDeleted") is True,
    )


def _entries(given) -> list:
    return given if isinstance(given, list) else [given]


def _criteria(body: dict, rules: Behaviour):
    for criterion in _entries(body.get("and", [])):
        for attribute, condition in criterion.items():
            _check_attribute(attribute, rules)
            for operator, bound in condition.items():
                if operator not in _OPERATORS:
                    raise QueryError("invalid_operator", "Unknown operator", operator)
                yield Criterion(attribute, operator, str(bound))


def _check_attribute(attribute: str, rules: Behaviour) -> None:
    refused = attribute == "company_updated_at" and rules.company_search == "refuses_attribute"
    if refused or not _ATTRIBUTE.fullmatch(attribute):
        raise QueryError("invalid_attribute", "Unknown attribute", attribute)


def _sort_of(body: dict, context: str, rules: Behaviour) -> Optional[Tuple[str, str]]:
    """Return the attribute and direction to sort by, or None if search does not sort."""
    given = [pair for entry in _entries(body.get("sort") or []) for pair in entry.items()]
    if not given:
        return None
    attribute, direction = given[0]
    _check_attribute(attribute, rules)
    sorts = context in rules.sort_contexts
    known = attribute in (f"{context}_updated_at", f"{context}_created_at")
    if not known or (not sorts and rules.other_sorts == "refuse"):
        raise QueryError("invalid_sort", "Sorting by this attribute is unavailable", attribute)
    return (attribute, direction) if sorts else None


class Finder:
    """Runs queries on a store's search index."""

    def __init__(self, store, rules: Behaviour):
        self._store, self._rules = store, rules

    def find(self, query: Query, replica: int) -> List[Key]:
        """Return the (updatedAt, id) of all matching records, in the order of a replica."""
        table, own = CONTEXTS[query.context], f"{query.context}_updated_at"
        if self._finds_nothing(query):
            return []
        low, high, others = "", _HIGH, []
        for criterion in query.criteria:
            attribute, operator, bound = criterion
            if attribute != own:
                others.append(criterion)
            elif operator in ("gt", "gte"):
                low = max(low, bound + (_HIGH if operator == "gt" else ""))
            else:
                high = min(high, bound + (_HIGH if operator == "lte" else ""))
        keys = self._store.keys(table)
        low = max(low, time_text(self._rules.now() - _HORIZON))
        found = keys[bisect.bisect_left(keys, (low, "")) : bisect.bisect_left(keys, (high, ""))]
        if others or not query.include_deleted:
            found = [key for key in found if self._matches(table, key[1], query, others)]
        return self._ordered(table, found, query.sort, replica)

    def _finds_nothing(self, query: Query) -> bool:
        """Return whether the index is empty, or lacks an attribute that the query refers to."""
        if self._rules.search_is_empty:
            return True
        attributes = {criterion.attribute for criterion in query.criteria}
        return "company_updated_at" in attributes and self._rules.company_search == "finds_nothing"

    def _ordered(
        self, table: str, found: List[Key], sort: Optional[Tuple[str, str]], replica: int
    ) -> List[Key]:
        """Sort keys as a query requests, and what that leaves open as the replica does.

        The first replica (0) puts records that share a time into the order of their ids.
        """
        if sort is None or replica:
            found.sort(key=lambda key: scattered(f"{replica or ''}{key[1]}"))
        if sort is None:
            return found
        attribute, direction = sort
        if replica or attribute.endswith("_created_at"):
            found.sort(key=lambda key: self._value(table, key[1], attribute))
        return found if direction == "asc" else found[::-1]

    def _matches(
        self, table: str, record_id: str, query: Query, criteria: List[Criterion]
    ) -> bool:
        attributes = self._store.indexed(table, record_id)["attributes"]
        if attributes.get("deleted") is True and not query.include_deleted:
            return False
        # Criteria on other objects cannot be evaluated here, so they match every record.
        return all(
            _OPERATORS[operator](self._value(table, record_id, attribute), bound)
            for attribute, operator, bound in criteria
            if attribute.startswith(f"{query.context}_")
        )

    def _value(self, table: str, record_id: str, attribute: str) -> str:
        head, *rest = attribute.partition("_")[2].split("_")
        name = head + "".join(word.title() for word in rest)
        return str(self._store.indexed(table, record_id)["attributes"].get(name, ""))

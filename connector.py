"""A Fivetran connector that syncs customers, companies, brands, messages and optional further
tables from Kustomer.

The first comment of each section says what the other sections can rely on:

    Columns, Tables      the tables and their columns, and how a value is read from a record
    Settings             the configuration keys, their allowed values and their errors
    Sync                 schema() and update(): operations, state and log
    Rows                 search or list? Pages of records become pages of rows
    Search               finds changed records by time
    Lists                reads a whole list, even if records leave it meanwhile
    Requests, Time       HTTP requests, retries and waits; timestamps and clocks
    Setup form           the form and the tests that Fivetran shows for a connection

A record takes this path to the destination: `execute_api_request` returns the JSON of a response,
and `__get_page` takes the records from it. `__search_pages` or `__list_pages` yields the page, and
`__table_pages` decides which (`__list_changes` drops what has not changed, and `__mirrored` waits
for the whole list). `__make_rows` maps the records to rows, and `__deliver` upserts the rows.

Names that begin with two underscores are private to this file, as Fivetran's connectors write them.
In the body of a class, Python would change such a name, so there they have one underscore.
"""

import contextlib
import difflib
import gc
import json
import math
import random
import re
import socket
import ssl
import threading
import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from itertools import chain, filterfalse
from typing import Any, Callable, Iterable, Iterator, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import requests
from fivetran_connector_sdk import ConfigurationForm, Connector, Test, form_field
from fivetran_connector_sdk import Logging as log
from fivetran_connector_sdk import Operations as op

VERSION = "2.1.0"


class KustomerError(Exception):
    """A table cannot be read. The message says why, and what the user can do about it."""


class SyncStoppedError(KustomerError):
    """No further table can be read, so the sync ends immediately."""


@dataclass(eq=False)
class RefusedError(KustomerError):
    """Kustomer refused a request with an HTTP status and a reason, and retrying cannot help."""

    message: str
    status: int
    reason: str

    def __str__(self) -> str:
        return self.message


@dataclass(eq=False)
class SearchUnusableError(Exception):
    """Search cannot serve a table, so its list is read. The message says why. If `is_refusal`,
    Kustomer refused the search or does not know the table, and a later search may find what this
    one would have. Otherwise its answer is unreliable."""

    message: str
    is_refusal: bool = False


@dataclass(eq=False)
class RetryableError(Exception):
    """Internal: `execute_api_request` retries, and shows cause and advice if all retries fail."""

    cause: str
    advice: str


# --------------------------------------------------------------------------------------------
# Columns
# A column has a Fivetran type, the attribute that it is read from, and a function that converts
# the attribute's value. A missing value is None, whether Kustomer omits the attribute or sends
# null, "", or a list or object without any value. Nothing in this section raises.

__LONE_SURROGATE = re.compile("[\ud800-\udfff]")
__compact_json = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), check_circular=False
).encode
# INT has 32 bits: https://fivetran.com/docs/connectors/connector-sdk/technical-reference.
__INT_RANGE = (-(2**31), 2**31 - 1)


class Column(NamedTuple):
    """A column: its type, the attribute that it is read from (None: the whole record), and a function
    that returns the column's value. If that is None, `fallback` is read."""

    type: str
    source: str | None
    convert: Callable[[Any], Any]
    fallback: "Column | None" = None


def __attributes(record) -> dict:
    """Return a record's attributes, which are the record itself if it has no `attributes`."""
    if not isinstance(record, dict):
        return {}
    attributes = record.get("attributes")
    return attributes if isinstance(attributes, dict) else record


def __record_id(record) -> str | None:
    """Return a record's id as a string, or None if it has none."""
    value = record.get("id") if isinstance(record, dict) else None
    return str(value) if type(value) in (str, int) and value != "" else None


def __updated_at(record) -> datetime | None:
    return __parse_time(__attributes(record).get("updatedAt"))


def __version(record) -> tuple[str | None, str]:
    """Return a record's id and updatedAt, which together identify its version."""
    return __record_id(record), str(__attributes(record).get("updatedAt"))


def __is_missing(value) -> bool:
    """Return whether a value is null, "", or a list or object that contains nothing else."""
    values = [value]
    while values:
        value = values.pop()
        if value and isinstance(value, (dict, list)):
            values.extend(value.values() if isinstance(value, dict) else value)
        elif value or isinstance(value, (int, float)):
            return False
    return True


def __text(value) -> str | None:
    """Return a value for a STRING column: a string unchanged, anything else as JSON."""
    if not isinstance(value, str):
        value = "" if __is_missing(value) else __compact_json(value)
    # JSON allows half of a surrogate pair, but destinations cannot store it.
    return (value if value.isascii() else __LONE_SURROGATE.sub("\ufffd", value)) or None


def __boolean(value) -> bool | None:
    words = {"true": True, "false": False}
    value = words.get(value.lower()) if isinstance(value, str) else value
    return value if isinstance(value, bool) else None


def __integer(value) -> int | None:
    """Return a whole number that fits into an INT column, or None."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,10}", value):
        value = int(value)
    is_whole = type(value) is int or isinstance(value, float) and value.is_integer()
    return int(value) if is_whole and __INT_RANGE[0] <= value <= __INT_RANGE[1] else None


def __time(value) -> str | None:
    """Return a time in UTC, in Kustomer's format, or None if it cannot be parsed."""
    timestamp = __parse_time(value)
    has_format = timestamp and len(value) == 24 and value[10] == "T" and value[23] == "Z"
    return value if has_format else timestamp and __format_time(timestamp)


def __related(record: dict, name: str):
    """Return what a relationship leads to, of any type, because Kustomer sends some wrong ones."""
    try:
        return record["relationships"][name]["data"]
    except (LookupError, TypeError):
        return None


def __entries(value, name: str) -> list[dict]:
    """Return the entries of a list that have a value of `name`. A string counts as that value."""
    entries = value if isinstance(value, list) else ()
    entries = [{name: entry} if isinstance(entry, str) else entry for entry in entries]
    return [entry for entry in entries if isinstance(entry, dict) and entry.get(name)]


def __kind(type: str, convert: Callable[[Any], Any]) -> Callable[..., Column]:
    """Return a function that makes columns of one kind, given an attribute's name and a fallback."""
    return lambda name, fallback=None: Column(type, name, convert, fallback)


text = __kind("STRING", __text)  # A string. Anything else is converted to JSON.
as_json = text  # A list or object. Every destination supports STRING.
boolean = __kind("BOOLEAN", __boolean)  # The strings "true" and "false" are accepted, too.
integer = __kind("INT", __integer)  # A whole number of at most 32 bits.
time_of = __kind("UTC_DATETIME", __time)
# The id of another record. Anything but a string is ignored.
reference = __kind("STRING", lambda value: __text(value) if isinstance(value, str) else None)


def each(kind: Callable[[str], Column], names: str) -> dict[str, Column]:
    """Return a column for each attribute in a string of names, named like it in snake case."""
    return {re.sub("([A-Z])", r"_\1", name).lower(): kind(name) for name in names.split()}


def computed(name: str | None, compute: Callable[[Any], Any], fallback=None) -> Column:
    """A string or JSON, computed from an attribute, or from the record if `name` is None."""
    return Column("STRING", name, lambda value: __text(compute(value)), fallback)


def nested(name: str, inner: str, kind: Callable[[str], Column] = text) -> Column:
    """A column of any kind, from one value of an attribute that is an object."""
    column = kind(name)
    return column._replace(
        convert=lambda value: column.convert(value.get(inner)) if isinstance(value, dict) else None
    )


def related(name: str) -> Column:
    """The id of a related record, from `relationships`, or else from an attribute."""
    fallback = reference(f"{name}Id", reference(name))
    return computed(None, lambda record: __record_id(__related(record, name)), fallback)


def first_of(names: str, entry_name: str, preferred: tuple[str, Any] | None = None) -> Column:
    """One value from the first list of objects that has one: a preferred entry's or the first."""

    def first(value):
        entries = __entries(value, entry_name)
        best = [e for e in entries if preferred and e.get(preferred[0]) == preferred[1]]
        return (best or entries or [{}])[0].get(entry_name)

    column = None
    for name in reversed(names.split()):
        column = computed(name, first, column)
    return column


def keys_of(name: str, inner_names: str) -> Column:
    """The keys of some objects inside an attribute, without their values, as a JSON array."""

    def keys(value) -> list[str]:
        objects = [value.get(n) for n in inner_names.split()] if isinstance(value, dict) else []
        return [*chain.from_iterable(o for o in objects if isinstance(o, dict))]

    return computed(name, keys)


# The columns of every record.
RECORD = {
    "id": computed(None, __record_id),
    "created_by_id": related("createdBy"),
    **each(time_of, "createdAt updatedAt modifiedAt"),
}

# --------------------------------------------------------------------------------------------
# Tables
# Each table is declared once, for the schema, the rows, the setup tests and the errors. To add a
# column: add it to the table's `columns`, with a line in docs/tables.md and one in tests/expected.py,
# and its attribute to the mock's records. To add a table: add a `Table`, and put it into TABLES.


@dataclass(eq=False)
class Table:
    """A table in the destination, and where its records are in Kustomer. By default, it is searched,
    and its list is read if search cannot serve.

    Args:
        name: the name of the table, and of its list in Kustomer's API.
        columns: the columns, in the order of the destination.
        object_name: its object in search and audit log; by default, `name` without the final s.
        role_object: its name in the role that the API key needs; by default, `object_name`.
        legacy_role: the legacy role, if its name does not follow from `role_object`.
        search_is_documented: if false, the first read uses the list, and search is used afterwards
            if it finds any record of the table.
        mirrored: every sync reads the whole list, and truncates the table before its first row.
        is_audit_log: the table is read by time, see `__audit_log_pages`.
        lists: the query parameters of each of its lists. Without any, it is searched, or a log.
        page_maximum: the most records that Kustomer returns in a page of the list. Source:
            https://developer.kustomer.com/docs/concepts/pagination, read 2026-11-23.
    """

    name: str
    columns: dict[str, Column]
    object_name: str = ""
    role_object: str = ""
    legacy_role: str | None = None
    search_is_documented: bool = True
    mirrored: bool = False
    is_audit_log: bool = False
    lists: tuple[dict[str, str], ...] = ({},)
    page_maximum: int = 100

    def __post_init__(self):
        self.object_name = self.object_name or self.name[:-1]
        self.is_searched = not self.mirrored and not self.is_audit_log
        # https://developer.kustomer.com/docs/get-started/authentication, read 2026-11-23.
        role_object = self.role_object or self.object_name
        legacy = self.legacy_role or f"org.user.{role_object}.read"
        self.role = f"org.permission.{role_object}.read (legacy {legacy})"
        self.readers = [(name, *column) for name, column in self.columns.items()]
        # The columns whose conversion can fail, and which are then counted as unreadable.
        self.typed = [(n, c.source) for n, c in self.columns.items() if c.type != "STRING"]


# Sources: https://developer.kustomer.com/api/core-resources, .../api/users and .../api/teams.
CUSTOMERS = Table(
    "customers",
    columns={
        **RECORD,
        "name": text("name", text("displayName")),
        "email": first_of("emails sharedEmails", "email", ("verified", True)),
        "phone": first_of("phones sharedPhones whatsapps", "phone"),
        "company_id": related("company"),
        "external_id": text("externalId", first_of("externalIds", "externalId")),
        **each(text, "firstName lastName username companyName gender locale timeZone avatarUrl"),
        **each(text, "progressiveStatus"),
        **each(boolean, "verified locked deleted"),
        **each(as_json, "emails sharedEmails phones sharedPhones whatsapps externalIds"),
        **each(as_json, "sharedExternalIds urls socials locations watchers conversationCounts"),
        **each(as_json, "sentiment satisfactionLevel tags custom"),
        **each(time_of, "birthdayAt signedUpAt lastSeenAt lastActivityAt lastCustomerActivityAt"),
    },
)
COMPANIES = Table(
    "companies",
    object_name="company",
    search_is_documented=False,
    columns={
        **RECORD,
        "name": text("name"),
        "website": first_of("urls", "url", ("type", "website")),
        "domains": computed("domains", lambda v: [e["domain"] for e in __entries(v, "domain")]),
        # Kustomer's own examples misspell the attribute.
        "external_id": text("externalId", text("extenalId")),
        **each(as_json, "tags custom"),
        **each(boolean, "deleted"),
    },
)
BRANDS = Table(
    "brands",
    mirrored=True,
    columns={
        **RECORD,
        **each(text, "name displayName websiteUrl iconUrl"),
        "is_default": boolean("default"),
    },
)
MESSAGES = Table(
    "messages",
    columns={
        **RECORD,
        "conversation_id": related("conversation"),
        "customer_id": related("customer"),
        "message_type": text("directionType"),
        "subject": text("subject", nested("meta", "subject")),
        # Other clients have only ever received `preview`: plain text of at most 10,240 characters.
        "body": text("body", text("preview")),
        **each(text, "externalId channel direction status app source"),
        **each(boolean, "auto redacted"),
        **each(integer, "size"),
        **each(as_json, "createdByTeams assignedUsers assignedTeams sentiment error meta custom"),
        "attachments": computed(
            None, lambda r: [e["id"] for e in __entries(__related(r, "attachments"), "id")]
        ),
        **each(time_of, "sentAt errorAt redactedAt"),
    },
)
CONVERSATIONS = Table(
    "conversations",
    columns={
        **RECORD,
        "customer_id": related("customer"),
        "brand_id": related("brand"),
        "queue_id": related("queue"),
        **each(text, "externalId name preview status direction"),
        **each(text, "satisfaction endedReason endedByType"),
        **each(integer, "priority messageCount noteCount inboundMessageCount"),
        **each(integer, "outboundMessageCount doneCount reopenCount snoozeCount"),
        **each(boolean, "ended spam locked deleted"),
        **each(as_json, "channels tags suggestedTags assignedUsers assignedTeams sla snooze"),
        **each(as_json, "firstResponse lastResponse firstDone lastDone"),
        **each(as_json, "sentiment satisfactionLevel custom"),
        "first_response_at": nested("firstResponse", "createdAt", time_of),
        "last_response_at": nested("lastResponse", "createdAt", time_of),
        "first_done_at": nested("firstDone", "createdAt", time_of),
        "last_done_at": nested("lastDone", "createdAt", time_of),
        **each(time_of, "endedAt lastActivityAt lastMessageAt"),
    },
)
NOTES = Table(
    "notes",
    columns={
        **RECORD,
        "conversation_id": related("conversation"),
        "customer_id": related("customer"),
        **each(text, "externalId body"),
        **each(as_json, "userMentions"),
        **each(boolean, "deleted"),
    },
)
USERS = Table(
    "users",
    legacy_role="org.user.read",
    mirrored=True,
    # Deactivated users are on a list of their own: https://developer.kustomer.com/api/users.
    lists=({}, {"deleted": "true"}),
    page_maximum=500,
    columns={
        **RECORD,
        **each(text, "name displayName email userType mobile avatarUrl"),
        **each(as_json, "roles roleGroups"),
        **each(boolean, "deactivated"),
        **each(time_of, "deletedAt"),
    },
)
TEAMS = Table(
    "teams",
    mirrored=True,
    page_maximum=500,
    columns={
        **RECORD,
        **each(text, "name displayName icon"),
        **each(as_json, "members roleGroups"),
        **each(boolean, "deleted"),
        **each(time_of, "deletedAt"),
    },
)
TAGS = Table(
    "tags",
    mirrored=True,
    columns={
        **RECORD,
        **each(text, "name color"),
        **each(boolean, "deleted"),
        **each(time_of, "deletedAt"),
    },
)
# Custom objects, such as orders. Kustomer has only lists of the objects of a single klass.
KOBJECTS = Table(
    "kobjects",
    role_object="klass",
    lists=(),
    columns={
        **RECORD,
        "klass_id": related("klass"),
        "customer_id": related("customer"),
        "company_id": related("company"),
        "queue_id": related("queue"),
        **each(text, "externalId title description icon status assignedUser assignedTeam"),
        **each(integer, "doneCount reopenCount"),
        **each(boolean, "deleted"),
        **each(as_json, "tags images custom firstDone lastDone"),
    },
)
# The types of custom objects.
KLASSES = Table(
    "klasses",
    object_name="klass",
    mirrored=True,
    lists=({}, {"status": "existing_only"}, {"status": "disabled"}),
    columns={
        **RECORD,
        **each(text, "name displayName icon color status appVersion"),
        **each(boolean, "appDisabled"),
        **each(as_json, "mixins"),
    },
)
SHORTCUTS = Table(
    "shortcuts",
    mirrored=True,
    columns={
        **RECORD,
        "modified_by_id": related("modifiedBy"),
        "parent_id": related("parent"),
        **each(text, "name"),
        **each(boolean, "isPrivate deleted appDisabled"),
        **each(as_json, "payload draft"),
    },
)
# Old and new values and IP addresses are left out: they would outlive what Kustomer erases.
AUDIT_LOGS = Table(
    "audit_logs",
    role_object="audit_logs",
    is_audit_log=True,
    lists=(),
    page_maximum=1000,
    columns={
        "id": RECORD["id"],
        **each(text, "eventName eventVerb objectType objectId userId userType client"),
        "changed": keys_of("changes", "attributes relationships"),
        **each(time_of, "createdAt updatedAt publishedAt expiresAt"),
    },
)


def __map_record(table: Table, record: dict) -> dict[str, Any]:
    """Return the row of a record: every column, in order, with its value or None."""
    attributes, row = __attributes(record), {}
    for column, _, source, convert, fallback in table.readers:
        value = record if source is None else attributes.get(source)
        if value is not None:
            value = convert(value)
        while value is None and fallback:
            _, source, convert, fallback = fallback
            if (value := attributes.get(source)) is not None:
                value = convert(value)
        row[column] = value
    return row


# The rows of single tables: record -> row. Their names are part of the connector's interface.
__map_customer_data = partial(__map_record, CUSTOMERS)
__map_company_data = partial(__map_record, COMPANIES)
__map_brand_data = partial(__map_record, BRANDS)
__map_message_data = partial(__map_record, MESSAGES)


def get_customers(
    api_key: str, last_sync_time: str | None = None, configuration: dict | None = None, **reading
) -> "Rows":
    """Return the rows of the customers that changed since `last_sync_time`, also of deleted ones if
    search can be used. The first request is sent when the first row is requested.

    Args:
        api_key: the Kustomer API key.
        last_sync_time: the ISO time of the last sync, or None for a first sync, which goes back
            `initial_sync_days`. Changes in the ten minutes before this time are read again.
        configuration: the connector's configuration. Missing settings have their defaults.
        client: the client of a running sync; by default, a new one. Closing the rows before their
            end also ends all other requests of the client.
        resume_at: where an earlier search stopped. Search then starts ten minutes before it. A
            list still returns the changes since `last_sync_time`.

    Returns:
        An iterator of rows: dicts with a value or None for every column. A record may appear twice;
        its last row is current. `pages` iterates over the pages instead, with the deleted rows.

    Raises:
        KustomerError: while iterating, if the key lacks a role or a request fails.
        ValueError: while iterating, if the configuration or `last_sync_time` is invalid.
    """
    return get_rows(CUSTOMERS, api_key, last_sync_time, configuration, **reading)


def get_companies(
    api_key: str, last_sync_time: str | None = None, configuration: dict | None = None, **reading
) -> "Rows":
    """Return the rows of the companies that changed since `last_sync_time`; see `get_customers`."""
    return get_rows(COMPANIES, api_key, last_sync_time, configuration, **reading)


def get_brands(api_key: str, configuration: dict | None = None, **reading) -> "Rows":
    """Return the rows of all brands, after reading the whole list; see `get_customers`."""
    return get_rows(BRANDS, api_key, None, configuration, **reading)


def get_messages(
    api_key: str, last_sync_time: str | None = None, configuration: dict | None = None, **reading
) -> "Rows":
    """Return the rows of the messages that changed since `last_sync_time`; see `get_customers`."""
    return get_rows(MESSAGES, api_key, last_sync_time, configuration, **reading)


# The default tables, and the functions that return and map their rows. Their names are part of the
# connector's interface, so a sync uses them. `get_rows` and `__map_record` serve all others.
__FUNCTIONS: dict[Table, tuple[Callable[..., "Rows"], Callable[[dict], dict]]] = {
    CUSTOMERS: (get_customers, __map_customer_data),
    COMPANIES: (get_companies, __map_company_data),
    BRANDS: (get_brands, __map_brand_data),
    MESSAGES: (get_messages, __map_message_data),
}
# The tables, in the order of a sync. `additional_tables` has to name all but the first four.
TABLES = (*__FUNCTIONS, CONVERSATIONS, NOTES, USERS, TEAMS, TAGS, KOBJECTS, KLASSES, SHORTCUTS)
TABLES += (AUDIT_LOGS,)  # Last, so that no row is upserted after an entry has deleted it.
ADDITIONAL_TABLES = tuple(table.name for table in TABLES if table not in __FUNCTIONS)

# --------------------------------------------------------------------------------------------
# Settings
# Each setting is declared once, in SETTINGS. To add a setting, add it there, to the fields of
# Settings and to README.md. The whole configuration is checked before the first request. An error
# never shows a value that might be a key.

__DEFAULT_ORIGIN = "https://api.kustomerapp.com"
__KUSTOMER_DOMAIN = "kustomerapp.com"
__LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
__SHOWN_VALUE_MAX_CHARACTERS = 60
__ALL_TABLES = "all"
__SWITCH_WORDS = {"true": 1, "yes": 1, "on": 1, "1": 1, "false": 0, "no": 0, "off": 0, "0": 0}


def __parse_key(text: str) -> str:
    key = re.sub(r"^Bearer\s+", "", text)
    if not re.fullmatch(r"[!#-&(-~]+", key):
        raise ValueError(
            "must not contain spaces, quotation marks, line breaks or other characters that keys do "
            "not have; copy the key again"
        )
    return key


def __parse_number(limits: tuple[int, int], text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not limits[0] <= int(text) <= limits[1]:
        raise ValueError("must be a whole number from {} to {}".format(*limits))
    return int(text)


def __parse_switch(text: str) -> bool:
    if text.lower() not in __SWITCH_WORDS:
        raise ValueError("must be true or false (or yes/no, on/off, 1/0)")
    return bool(__SWITCH_WORDS[text.lower()])


def __parse_tables(text: str) -> tuple[str, ...]:
    """Return the names of the additional tables, in the order of TABLES."""
    words = [word for word in re.split(r"[,\s]+", text.lower()) if word]
    if not {*words} <= {*ADDITIONAL_TABLES, __ALL_TABLES}:
        raise ValueError(
            f"must be one or more of {', '.join(ADDITIONAL_TABLES)}, separated by commas, or "
            f"{__ALL_TABLES}"
        )
    return tuple(n for n in ADDITIONAL_TABLES if n in words or __ALL_TABLES in words)


def __parse_origin(text: str) -> str:
    """Return the origin of the API, given an address or the name of an organization. Source:
    https://developer.kustomer.com/docs/get-started/regions-and-base-urls."""
    problem = ValueError(
        "is not allowed; use https://api.kustomerapp.com (US), https://api.prod2.kustomerapp.com "
        "(EU), https://api.prod4.kustomerapp.com (India), or your organization's name or its "
        f"address on {__KUSTOMER_DOMAIN} (or http://127.0.0.1:PORT for the mock). The key is never "
        "sent to any other host"
    )
    if re.fullmatch(r"[A-Za-z0-9-]+", text) and text.lower() != "localhost":
        text = f"{text}.{__KUSTOMER_DOMAIN}"
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise problem from None
    if "@" in parts.netloc:
        raise problem
    if parts.scheme == "http" and host in __LOOPBACK_HOSTS:
        return f"http://{parts.netloc.lower()}"
    match = re.fullmatch(rf"((?:[a-z0-9-]{{1,63}}\.)+){re.escape(__KUSTOMER_DOMAIN)}", host)
    if parts.scheme != "https" or port not in (None, 443) or not match:
        raise problem
    labels = match[1].split(".")[:-1]
    if "api" not in labels:
        labels.insert(1, "api")
    return f"https://{'.'.join(labels)}.{__KUSTOMER_DOMAIN}"


class Setting(NamedTuple):
    """A configuration key. `limits` are the lowest and the highest allowed number. Without limits,
    `parse` converts the string, or raises a ValueError that says what it must be."""

    name: str
    default: Any
    description: str
    limits: tuple[int, int] | None = None
    parse: Callable[[str], Any] | None = None

    def explained(self) -> str:
        """Return the description with the range and the default, for the setup form."""
        notes = ["{} to {}.".format(*self.limits)] if self.limits else []
        if self.default and self.default is not True:
            notes.append(f"Default: {self.default}.")
        return " ".join([self.description, *notes])


SETTINGS = (
    Setting(
        "api_key",
        None,
        "In Kustomer: Settings > Security > API Keys. It needs a role for each table and for search.",
        parse=__parse_key,
    ),
    Setting(
        "base_url",
        __DEFAULT_ORIGIN,
        "US: https://api.kustomerapp.com. EU: https://api.prod2.kustomerapp.com. "
        "India: https://api.prod4.kustomerapp.com. Or your organization's name or address.",
        parse=__parse_origin,
    ),
    Setting(
        "additional_tables",
        (),
        f"More tables to sync: {', '.join(ADDITIONAL_TABLES)}, separated by commas, or "
        f"{__ALL_TABLES}. Leave empty for none. The API key needs a role for each table.",
        parse=__parse_tables,
    ),
    Setting(
        "initial_sync_days",
        90,
        "The first sync reads records that changed in this many days before it.",
        limits=(1, 365),
    ),
    Setting(
        "sync_frequency_hours",
        None,
        "A sync skips tables that were read less than this many hours ago. Leave empty to skip none.",
        limits=(1, 168),
    ),
    Setting(
        "max_records_per_page",
        500,
        "Records per page: within 100-500 for searches, 20-100 for most lists.",
        limits=(1, 1000),
    ),
    Setting(
        "api_utilization_percentage",
        90,
        "List requests wait while all apps of the organization together have used more than this "
        "percentage of its requests per minute. Searches have their own rate limit.",
        limits=(10, 100),
    ),
    Setting(
        "request_timeout_seconds",
        30,
        "How long to wait for a connection, and for each part of a response.",
        limits=(1, 300),
    ),
    Setting(
        "retry_attempts",
        3,
        "Retries of each failed request. Waiting for the rate limit does not count.",
        limits=(0, 10),
    ),
    Setting(
        "enable_incremental_sync",
        True,
        "On (default): a sync reads only what changed since the last one. Off: it reads everything.",
        parse=__parse_switch,
    ),
    Setting(
        "enable_debug_logging",
        False,
        "On: the log has a line for each request. The default is off.",
        parse=__parse_switch,
    ),
)
__SETTING = {setting.name: setting for setting in SETTINGS}
__API_KEY = __SETTING["api_key"]


@dataclass(frozen=True)
class Settings:
    """A valid configuration: each setting with its converted value or its default."""

    api_key: str = field(repr=False)
    base_url: str
    additional_tables: tuple[str, ...]
    initial_sync_days: int
    sync_frequency_hours: int | None
    max_records_per_page: int
    api_utilization_percentage: int
    request_timeout_seconds: int
    retry_attempts: int
    enable_incremental_sync: bool
    enable_debug_logging: bool


def validate_configuration(configuration: dict | None) -> Settings:
    """Check the whole configuration and convert its values.

    Args:
        configuration: the dict of strings that Fivetran passes. An empty string or an unchanged
            `<PLACEHOLDER>` stands for the default.

    Returns:
        The Settings.

    Raises:
        ValueError: says of every invalid setting what it must be, and shows its value if it is safe.
    """
    given = configuration or {}
    values, problems = {}, []
    for setting in SETTINGS:
        try:
            values[setting.name] = __setting_value(setting, given)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        # A setting may be missing because its name is misspelt.
        problems += __unknown_settings(given)
        raise ValueError("The configuration is invalid. " + " ".join(problems))
    return Settings(**values)


def __setting_value(setting: Setting, configuration: dict):
    """Return a setting's converted value. Raises a ValueError that says what it must be."""
    value = configuration.get(setting.name, "")
    try:
        return __converted_value(setting, value)
    except ValueError as error:
        shown = __safe_to_show(setting, value, configuration.get("api_key"))
        raise ValueError(f"{setting.name}: {shown}{error}.") from None


def __converted_value(setting: Setting, value):
    if not isinstance(value, str):
        raise ValueError("must be a JSON string, in double quotes")
    given = value.strip()
    if given and not re.fullmatch(r"<[A-Z0-9_]+>", given):
        return (setting.parse or partial(__parse_number, setting.limits))(given)
    if setting is __API_KEY:
        raise ValueError(
            "is required; create a key in Kustomer under Settings > Security > API Keys"
        )
    return setting.default


def __safe_to_show(setting: Setting, value, api_key) -> str:
    """Return what an error may show of a rejected value."""
    shown = value if isinstance(value, str) else json.dumps(value)
    secrets = ["eyJ", "@", *str(api_key or "").split()]
    if setting is __API_KEY or type(value) in (dict, list) or any(s in shown for s in secrets):
        return ""
    if len(shown) > __SHOWN_VALUE_MAX_CHARACTERS:
        return f"a value of {len(shown)} characters "
    return f"{shown!r} " if isinstance(value, str) else f"{shown} "


def __unknown_settings(configuration: dict) -> Iterator[str]:
    """Yield a sentence about each key of a configuration that is not a setting."""
    names = [setting.name for setting in SETTINGS]
    for key in filterfalse(names.__contains__, configuration):
        # A name that looks like none may be a key in the wrong place.
        shown = repr(key) if re.fullmatch(r"[\w -]{1,40}", str(key)) else "with an invalid name"
        near = difflib.get_close_matches(str(key), names, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"The settings are {', '.join(names)}."
        yield f"Unknown setting {shown}. {hint}"


# --------------------------------------------------------------------------------------------
# Sync
# Delivers the rows of each table and saves a cursor for each table. If a table fails, the sync
# continues with the others and fails at the end. The next sync resumes from the saved cursors.

__CHECKPOINT_EVERY_ROWS = 5_000
# Records have no reference cycles, and to look for some takes a quarter of the CPU of a sync.
__COLLECT_GARBAGE_FROM_OBJECTS = 200_000
# Each day's first read of a table starts so much earlier, unless it resumes, so that what search
# shows up to a day late is not missed: it has been hours late (15 May 2019, 12 January 2025).
__DAILY_LOOK_BACK = timedelta(days=2)


def schema(configuration: dict) -> list[dict]:
    """Define the tables that the connector delivers, with their primary keys and columns: all columns,
    because Fivetran does not create an undeclared one that has only NULL values.
    See https://fivetran.com/docs/connectors/connector-sdk/technical-reference#schema.

    Args:
        configuration: the connection's settings. `additional_tables` adds tables.

    Returns:
        A list of dicts, one for each table, in the format that Fivetran expects.

    Raises:
        ValueError: if `additional_tables` names a table that does not exist.
    """
    additional = __setting_value(__SETTING["additional_tables"], configuration or {})
    return [
        {
            "table": table.name,
            "primary_key": ["id"],
            "columns": {name: column.type for name, column in table.columns.items()},
        }
        for table in __selected_tables(additional)
    ]


def __selected_tables(additional_tables: tuple[str, ...]) -> list[Table]:
    """Return the tables to sync: the four default tables and the given additional ones."""
    return [t for t in TABLES if t in __FUNCTIONS or t.name in additional_tables]


def update(configuration: dict, state: dict) -> None:
    """Sync Kustomer to the destination. Fivetran calls this function for every sync.

    See https://fivetran.com/docs/connectors/connector-sdk/technical-reference#update.

    Args:
        configuration: the connection's settings, as strings. See SETTINGS.
        state: the state saved by the last checkpoint, or an empty dict for a first sync.

    Raises:
        ValueError: before the first request, if the configuration or the state is invalid.
        KustomerError: after the last table, with a reason for each table that could not be read.
            Immediately, if the key is invalid or the rate limit stays exhausted.
    """
    settings = validate_configuration(configuration)
    saved = read_state(state, op.warning)
    gc.set_threshold(__COLLECT_GARBAGE_FROM_OBJECTS, *gc.get_threshold()[1:])
    for warning in __unknown_settings(configuration):
        op.warning(warning)
    tables = __selected_tables(settings.additional_tables)
    next_reads = {table: __next_read(table, saved, settings) for table in tables}
    __log(log.info, __plan(next_reads, saved, settings))
    failures = []
    with __quiet_interrupt(), open_client(settings, op.warning) as client:
        check_api_key(client)
        totals = Counts(requests=client.requests_sent, seconds_waited=client.seconds_waited)
        __log(log.info, f"API key: {totals.cost()}.")
        for table in [table for table in tables if next_reads[table] is None]:
            try:
                __sync_table(client, table, saved, configuration, totals)
            except SyncStoppedError as error:
                raise SyncStoppedError(" ".join([*failures, str(error)])) from None
            except KustomerError as error:
                failures.append(f"{table.name}: {error}")
                __log(log.warning, f"{table.name} could not be read. The sync continues.")
    __log(log.info, f"Kustomer sync: {totals}.")
    if failures:
        raise KustomerError(" ".join(failures))


@dataclass
class State:
    """The cursors of the tables, by table name. `last_sync_time` is when the last complete read of a
    table began. `unfinished`, if there is one, takes its place as the start of the next search: after
    an interruption, or after a list stood in for search. A sync starts ten minutes before it."""

    last_sync_time: dict[str, datetime]
    unfinished: dict[str, datetime]


def __since(saved: State, table: Table, now: datetime) -> datetime | None:
    """Return the time since which a table's changes have to be read, or None for a first read."""
    last = saved.last_sync_time.get(table.name)
    is_first_of_day = last and last.date() < now.date()
    return last - __DAILY_LOOK_BACK if is_first_of_day else last


def read_state(state: dict | None, warn: Callable[[str], None]) -> State:
    """Return the saved cursors of the tables that still exist.

    Args:
        state: {"last_sync_time": {table: ISO time}, "unfinished": {table: ISO time}}. If
            `last_sync_time` is an ISO time, as before version 1.0.0, it applies to the four default
            tables.
        warn: called with a message for each time that is invalid. Its table is then left out of
            the result, and so read from the start.

    Raises:
        ValueError: if the state has any other structure.
    """
    last = state.get("last_sync_time") if isinstance(state, dict) else state
    unfinished = state.get("unfinished", {}) if isinstance(state, dict) else {}
    if isinstance(state, dict) and isinstance(last, str):
        last = dict.fromkeys([table.name for table in __FUNCTIONS], last)
    kinds = {"last_sync_time": last if state else {}, "unfinished": unfinished}
    if not all(isinstance(times, dict) for times in kinds.values()):
        raise ValueError(
            "The saved state was not written by this connector: last_sync_time must have a time for "
            "each table. Reset the connection: 'fivetran reset' for a local run, a historical re-sync "
            "on Fivetran."
        )
    read, latest = State({}, {}), __now() + __OVERLAP
    for name in (table.name for table in TABLES):
        times = {kind: __parse_time(at[name]) for kind, at in kinds.items() if name in at}
        wrong = [kind for kind, timestamp in times.items() if not timestamp or timestamp > latest]
        if wrong:
            problem = f"the saved {wrong[0]} is not a time in the past"
            warn(f"{name}: {problem}; the table is read from the start.")
        for kind in () if wrong else times:
            getattr(read, kind)[name] = times[kind]
    return read


def __checkpoint(saved: State) -> None:
    new_state = {
        kind: {name: __format_time(timestamp) for name, timestamp in times.items()}
        for kind, times in vars(saved).items()
    }
    # Makes the rows before it permanent, and saves the state from which the next sync resumes.
    op.checkpoint(new_state)


def __next_read(table: Table, saved: State, settings: Settings) -> datetime | None:
    """Return when a table has to be read next, or None if it has to be read now."""
    last = saved.last_sync_time.get(table.name)
    if last is None or settings.sync_frequency_hours is None:
        return None
    # Schedulers sometimes start a sync slightly early, which must not skip the table.
    due = last + timedelta(hours=settings.sync_frequency_hours)
    return due if __now() < due - __OVERLAP else None


def __plan(next_reads: dict[Table, datetime | None], saved: State, settings: Settings) -> str:
    """Return the log line that says which changes the sync reads and which tables it skips."""
    words, days = [], f"in the last {settings.initial_sync_days} days"
    for table, next_read in next_reads.items():
        since = saved.unfinished.get(table.name) or __since(saved, table, __now())
        if next_read:
            words.append(f"{table.name} skipped until {__format_time(next_read)}")
        elif not (table.is_audit_log or table.is_searched and settings.enable_incremental_sync):
            words.append(f"all {table.name}")
        else:
            span = f"since {__format_time(since)}" if since else days
            words.append(f"{table.name} changed {span}")
    return f"Kustomer sync: {', '.join(words)}."


def pluralize(number: int, word: str) -> str:
    """Return a number and a noun, such as "1 row" or "2 rows"."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


@dataclass
class Counts:
    """The counts that the log shows after each table and at the end of a sync."""

    upserted: int = 0
    deleted: int = 0
    skipped: int = 0
    unreadable: int = 0
    requests: int = 0
    seconds_waited: float = 0.0

    def add(self, other: "Counts") -> None:
        """Add other counts to these."""
        for name, number in vars(other).items():
            setattr(self, name, getattr(self, name) + number)

    def __str__(self) -> str:
        words = [f"{pluralize(self.upserted, 'row')} upserted", f"{self.deleted} deleted"]
        if self.skipped:
            words.append(f"{pluralize(self.skipped, 'record')} without an id skipped")
        if self.unreadable:
            words.append(f"{pluralize(self.unreadable, 'unreadable value')} set to NULL")
        return ", ".join([*words, self.cost()])

    def cost(self) -> str:
        """Return the requests and the waits, in words."""
        return f"{pluralize(self.requests, 'request')}, waited {self.seconds_waited:.1f} s"


def __sync_table(
    client: "Client", table: Table, saved: State, configuration: dict, totals: Counts
) -> None:
    """Deliver the changed rows of a table, save its cursor, and add its counts to the totals."""
    began, name, counts = __now(client), table.name, Counts()
    last, since = saved.last_sync_time.get(name), __since(saved, table, began)
    resume_at = saved.unfinished.get(name)
    reading = {"configuration": configuration, "client": client}
    if not table.mirrored:
        reading["last_sync_time"] = since and __format_time(since)
        reading["resume_at"] = resume_at
    get, _ = __FUNCTIONS.get(table, (partial(get_rows, table), None))
    rows = get(client.settings.api_key, **reading)
    rows_since_checkpoint, is_replaced, started = 0, False, time.monotonic()
    with contextlib.closing(rows), __logged(client, table, counts, totals):
        for page in rows.pages:
            is_replaced = is_replaced or page.replaces_table
            __deliver(table, page, counts)
            if page.cursor_after:
                saved.unfinished[name] = page.cursor_after
            rows_since_checkpoint += len(page.rows)
            # No checkpoint between a truncate and the last row: a failure would leave rows deleted.
            if rows_since_checkpoint >= __CHECKPOINT_EVERY_ROWS and not is_replaced:
                rows_since_checkpoint = 0
                __checkpoint(saved)
            __log_progress(client, table, counts, page, started)
    if counts.skipped:
        op.warning(f"{name}: skipped {pluralize(counts.skipped, 'record')} without an id.")
    is_long_ago = began - (resume_at or last or __EPOCH) > __DAILY_LOOK_BACK / 2
    if table.is_searched and is_long_ago and not counts.upserted + counts.deleted:
        # It does not count: on 12 January 2025, search found nothing for three hours, silently.
        return
    saved.last_sync_time[name] = max(began, last or began)
    if not page.cursor_after:
        saved.unfinished.pop(name, None)
    __checkpoint(saved)


@contextlib.contextmanager
def __logged(client: "Client", table: Table, counts: Counts, totals: Counts):
    """Log the counts of a table at the end of the block, and add them to the totals."""
    try:
        yield
    finally:
        counts.requests = client.requests_sent - totals.requests
        counts.seconds_waited = client.seconds_waited - totals.seconds_waited
        totals.add(counts)
        __log(log.info, f"{table.name}: {counts}.")


def __deliver(table: Table, page: "Page", counts: Counts) -> None:
    """Deliver the rows of a page, and add to the counts."""
    if page.replaces_table:
        # Marks all rows as deleted. The upserts restore the records that still exist.
        op.truncate(table.name)
    for row in page.rows:
        # Inserts the row, or replaces the row with the same id.
        op.upsert(table.name, row)
    for name, record_id in page.deleted:
        # Marks the row as deleted. It keeps its last values.
        op.delete(name, {"id": record_id})
    upserted = len(page.rows) - sum(name == table.name for name, _ in page.deleted)
    counts.add(Counts(upserted, len(page.deleted), page.skipped, page.unreadable))


@contextlib.contextmanager
def __quiet_interrupt():
    """End the process with one line instead of a traceback after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit("Stopped. The next sync resumes from the last checkpoint.") from None


def __log_progress(
    client: "Client", table: Table, counts: Counts, page: "Page", started: float
) -> None:
    """Log the progress of a table that has been read since `started`, a monotonic time."""
    rows = counts.upserted + counts.deleted
    rate = max(rows, 1) / max(time.monotonic() - started, 0.001)
    words = f"{rows} rows"
    if page.total and page.total > rows:
        words += f" of about {page.total}, about {(page.total - rows) / rate:.0f} s left"
    __log_throttled(client, f"{table.name}: {words}, {rate:.0f} rows per second.")


# --------------------------------------------------------------------------------------------
# Rows
# Decides whether a table is read by search or from its list, and maps the records of each page to
# rows. While one page is delivered, the next one is read.

# The audit log is asked for one type at a time: how to ask for several is not documented.
__AUDITED_OBJECTS = ("conversation", "customer", "message", "company")


@dataclass
class Page:
    """A page of records, from Kustomer's response to the destination.

    `records` are as Kustomer sent them. `more` is whether there is a next page, and `link` its
    address. `total` is Kustomer's count of all matching records, `size` the number of records on a
    full page. The other fields are filled in on the way: `is_last`: its list ends here.
    `may_lack_records`: records of its list may be missing. `cursor_after`: where the next search of
    the table has to start once this page is delivered, or None if the read is complete or mirrored.
    `replaces_table`: rows that were delivered before this page are deleted if they do not come
    again. `rows` are the mapped records. `deleted` has the table and id of each row to delete,
    `skipped` counts records without an id, and `unreadable` values that could not be converted.
    """

    records: list
    more: bool = False
    total: int | None = None
    size: int = 1
    link: str = ""
    is_last: bool = False
    may_lack_records: bool = False
    cursor_after: datetime | None = None
    replaces_table: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    deleted: set[tuple[str, str]] = field(default_factory=set)
    skipped: int = 0
    unreadable: int = 0


class Rows(Iterator[dict[str, Any]]):
    """An iterator over the rows of a table. Iterate over it or over its `pages`, not over both."""

    def __init__(self, pages):
        self.pages = pages
        self._rows = (row for page in pages for row in page.rows)

    def __next__(self) -> dict[str, Any]:
        return next(self._rows)

    def close(self) -> None:
        """Stop reading. No further request is sent."""
        self.pages.close()


def get_rows(
    table: Table,
    api_key: str,
    last_sync_time: str | None = None,
    configuration: dict | None = None,
    *,
    client: "Client | None" = None,
    resume_at: datetime | None = None,
) -> Rows:
    """Return the rows of any table. `get_customers` explains the arguments, rows and errors."""

    def pages() -> Iterator[Page]:
        with contextlib.ExitStack() as stack:
            settings = {**(configuration or {}), "api_key": api_key}
            active = client or stack.enter_context(open_client(validate_configuration(settings)))
            stack.callback(__show_warnings, active)
            time_range = get_time_range(last_sync_time, configuration, now=__now(active))
            since, began = map(__parse_time, time_range.values())
            # `since` lies ten minutes back, and search goes back ten minutes from its cursor.
            cursor, settled = resume_at or since + __OVERLAP, began - __OVERLAP
            is_first, resumes = last_sync_time is None, resume_at is not None
            search = Search(active, table, since, cursor, began, settled, is_first, resumes)
            table_pages = __table_pages(search)
            for page in __read_ahead(active, map(partial(__make_rows, search), table_pages)):
                __show_warnings(active)
                yield page

    return Rows(pages())


def __make_rows(search: "Search", page: Page) -> Page:
    """Map the records of a page to its `rows`, and note which rows are to be deleted."""
    table = search.table
    _, map_record = __FUNCTIONS.get(table, (None, partial(__map_record, table)))
    for record in page.records:
        row = map_record(record if isinstance(record, dict) else {})
        if row["id"] is None:
            page.skipped += 1
            continue
        page.rows.append(row)
        attributes = __attributes(record)
        for column, source in table.typed:
            # If an object lacks the value that a `nested` column reads, that is not unreadable.
            if row[column] is None and not isinstance(attributes.get(source), dict):
                page.unreadable += not __is_missing(attributes.get(source))
        # If a record appears twice, its last version decides whether it is deleted.
        page.deleted.discard((table.name, row["id"]))
        if table is not USERS and __boolean(attributes.get("deleted")):
            page.deleted.add((table.name, row["id"]))
    return page


def __read_ahead(client: "Client", pages: Iterator[Page]) -> Iterator[Page]:
    """Yield the pages. While the caller processes one page, a thread reads the next one."""
    next_page = __in_background(next, pages, None)
    try:
        while True:
            # Python may notice Ctrl-C only at the end of a wait.
            while not wait([next_page], timeout=1).done:
                pass
            if (page := next_page.result()) is None:
                return
            next_page = __in_background(next, pages, None)
            yield page
    except (GeneratorExit, KeyboardInterrupt, SystemExit):
        # The caller needs no more pages, or the process has to end.
        client.closed.set()
        raise


def __in_background(call: Callable, *arguments) -> Future:
    """Start a call in a thread and return its future. The thread does not keep the process
    running, so a call that nobody waits for any more can be abandoned."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(call(*arguments))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def __table_pages(search: "Search") -> Iterator[Page]:
    """Yield a table's pages, from search if it can serve the table and otherwise from its list."""
    client, table = search.client, search.table
    if not table.lists:
        yield from (__audit_log_pages if table.is_audit_log else __search_only_pages)(search)
        return
    pages, problem = __list_pages(client, table), None
    if table.mirrored:
        yield from __mirrored(pages)
        return
    can_search = client.settings.enable_incremental_sync
    if not table.search_is_documented:
        first = next(pages)
        if first.is_last and first.records and not first.may_lack_records:
            # This page is the whole table.
            yield from __mirrored([first])
            return
        pages = chain([first], pages)
        can_search = can_search and not search.is_first
    if can_search:
        try:
            yield from __checked_search_pages(search)
            return
        except SearchUnusableError as error:
            problem = error
    yield from __list_changes(search, pages, problem)


def __list_changes(
    search: "Search", pages: Iterable[Page], problem: SearchUnusableError | None
) -> Iterator[Page]:
    """Yield the changes from a list. It does not show what has been deleted, so the cursor is kept, and
    a later search finds it. After an unreliable search, or a first read, the cursor moves on."""
    warning = __list_warning(search.table, problem)
    has_rows = search.resumes or not search.is_first
    keeps_cursor = has_rows and (problem is None or problem.is_refusal)
    # The next search resumes here without the daily look-back, so that is subtracted here, once.
    has_begun = search.resumes or search.total is not None
    cursor = search.cursor if has_begun else search.cursor - __DAILY_LOOK_BACK
    for page in pages:
        if warning:
            # Not before the first page: if the key lacks the table's own role, the list says so.
            search.client.warnings.append(warning)
            warning = ""
        if search.client.settings.enable_incremental_sync:
            # A record without a valid updatedAt may have changed.
            since = search.since
            page.records = [r for r in page.records if (__updated_at(r) or since) >= since]
        page.cursor_after = cursor if keeps_cursor or not page.is_last else None
        yield page


def __checked_search_pages(search: "Search") -> Iterator[Page]:
    """Yield the pages that search finds. Raises SearchUnusableError if it cannot serve the table. For
    a table that it does not know, search may find nothing instead of refusing."""
    for page in __search_pages(search):
        search.cursor = page.cursor_after or search.cursor
        yield page
    if not search.total and not search.table.search_is_documented:
        if not __ask(search, Slice(search.sync_began - __SEARCH_HORIZON)).total:
            raise SearchUnusableError("search does not know the table", is_refusal=True)


def __search_only_pages(search: "Search") -> Iterator[Page]:
    """Yield the pages of a table that has no list, which only search can serve."""
    is_full = not search.client.settings.enable_incremental_sync
    if is_full:
        # A day less than search covers, so that nothing leaves its reach meanwhile.
        search.cursor = search.sync_began - __SEARCH_HORIZON + timedelta(days=1)
    try:
        yield from __checked_search_pages(search)
        if is_full and not search.total:
            search.client.warnings.append(f"{search.table.name}: search found no records.")
        return
    except SearchUnusableError as error:
        problem = error.message
    # If the key lacks the role for klasses, reading their list raises an error that names it.
    next(__list_pages(search.client, KLASSES))
    raise KustomerError(f"{problem}. Kustomer has no list of {search.table.name}.")


def __audit_log_pages(search: "Search") -> Iterator[Page]:
    """Yield the entries of the audit log, from the oldest week to the newest, and in a week one type
    of object after the other. An interrupted sync resumes at its week. Source (read 2026-11-27):
    https://developer.kustomer.com/api/core-resources/query-events-associated-with-your-organization.
    """
    start, week = search.cursor - __OVERLAP, timedelta(days=7)
    weeks = max((search.sync_began - start) // week, 0) + 1
    starts = [start + n * week for n in range(weeks)]
    # The last week has no end, so that nothing is missed if clocks differ.
    for low, high in zip(starts, [*starts[1:], None]):
        bounds = {"filter[start]": low, "filter[end]": high}
        bounds = {name: __format_time(at) for name, at in bounds.items() if at}
        for object_type in __AUDITED_OBJECTS:
            params = {"count": search.table.page_maximum, "filter[objectType]": object_type}
            params, has_more = {**params, **bounds}, True
            while has_more:
                page = __get_listed(
                    search.client, search.table, params, f"entries about {object_type}"
                )
                page.cursor_after = low + __OVERLAP
                page.deleted.update(__deleted_rows(search, map(__attributes, page.records)))
                yield page
                has_more = page.link and page.records
                params |= parse_qsl(urlsplit(page.link).query)
    yield Page([])  # Without a cursor: the read is complete.


def __deleted_rows(search: "Search", entries: Iterable[dict]) -> Iterator[tuple[str, str]]:
    """Yield the table and id of each row whose object entries of the audit log call deleted."""
    selected = __selected_tables(search.client.settings.additional_tables)
    names = {table.object_name: table.name for table in selected}
    for entry in entries:
        name, record_id = names.get(str(entry.get("objectType"))), entry.get("objectId")
        if (
            name
            and entry.get("eventVerb") == "delete"
            and isinstance(record_id, str)
            and record_id
        ):
            yield name, record_id


def __mirrored(pages: Iterable[Page]) -> Iterator[Page]:
    """Yield all pages of a list. They replace the table, unless it is empty or may lack records."""
    pages = list(pages)
    has_records = any(page.records for page in pages)
    pages[0].replaces_table = has_records and not any(page.may_lack_records for page in pages)
    yield from pages


def __list_warning(table: Table, problem: SearchUnusableError | None) -> str:
    """Return the warning that a list is read because of a problem with search, or ""."""
    if problem is None or (problem.is_refusal and not table.search_is_documented):
        return ""
    consequence = "It does not show what has been deleted since the last sync"
    if problem.is_refusal:
        consequence = "It does not show what has been deleted, but search will, once allowed"
    return f"{table.name}: {problem.message}. The whole list is read instead. {consequence}."


def __get_page(
    client: "Client", path: str, params: dict, purpose: str, body: dict | None = None
) -> Page:
    """Request a page of records. Raises KustomerError if the response has none."""
    payload = execute_api_request(
        path, client.settings.api_key, params, body=body, client=client, purpose=purpose
    )
    records, meta, links = (payload.get(name) for name in ("data", "meta", "links"))
    if not isinstance(records, list):
        raise KustomerError(f"{path} returned no list of records in 'data'.")
    meta = meta if isinstance(meta, dict) else {}
    numbers = {name: value for name, value in meta.items() if isinstance(value, int)}
    total, size = numbers.get("total"), numbers.get("pageSize") or params.get("pageSize", 1)
    link = ""
    if isinstance(links, dict) and "next" in links:
        link = str(links["next"] or "")
        more = bool(link)
    else:
        more = len(records) >= size if total is None else total > size * params.get("page", 1)
    return Page(records, more, total, size, link)


# --------------------------------------------------------------------------------------------
# Search
# Finds every record of a table that changed since a given time, including deleted ones. Time is
# divided into slices, and each slice checks itself against Kustomer's own count. Raises
# SearchUnusableError if the list has to be read instead; the pages before it are still correct.
# Source: https://developer.kustomer.com/api/core-resources/create-customer-search.

__SEARCH_PATH = "/v1/customers/search"
__SEARCH_ROLE = "org.permission.search.create (legacy org.user.search.read)"
# At most 500 records a page, and only records updated in the last two years:
# https://developer.kustomer.com/docs/concepts/search, read 2026-11-23. With fewer than 100 a page, the
# 100 pages of a query would not hold a few thousand records that share one updatedAt.
__SEARCH_PAGE_MAX_RECORDS = 500
__SEARCH_PAGE_MIN_RECORDS = 100
__SEARCH_HORIZON = timedelta(days=2 * 365)
# Not documented, but observed by other clients: counts, pages and lists end at this many records.
__RESULT_MAX_RECORDS = 10_000
# With these statuses and an error message of its own, Kustomer refuses a search.
__SEARCH_REFUSALS = frozenset({400, 401, 403, 404, 405, 422})
__SEARCH_THREADS = 4
# More than threads, so that none is idle at the end; few, so that the cursor does not lag behind.
__SLICES_BEGUN = 6
# A slice of at most ten pages is read page by page. A larger one is cut into parts of about four
# pages, or, once pages have proved unreliable, of less than one page.
__SLICE_MAX_PAGES = 10
__SLICE_PAGES = 4
__SLICE_PAGES_IF_UNRELIABLE = 0.6
__SLICE_MAX_PARTS = 32
__MILLISECOND = timedelta(milliseconds=1)


@dataclass
class Slice:
    """A time range to search: from `low` up to but excluding `high`, or without an end. Page 1 is read
    first, and the others from the last to the second: a record that leaves the slice moves those
    after it towards page 1, onto pages still to come. `number` is the page to read next, `counted`
    Kustomer's count on page 1, `first` has the ids of page 1, and `seen` those of all records so
    far. `repeats` counts the records that came twice, or that moved to page 1."""

    low: datetime
    high: datetime | None = None
    number: int = 1
    counted: int | None = None
    first: set[str | None] = field(default_factory=set)
    seen: set[str | None] = field(default_factory=set)
    repeats: int = 0


@dataclass
class Search:
    """The search for a table's changes since `since`, in a sync that began at `sync_began`. It begins
    ten minutes before `cursor`: where an earlier search stopped, or would have started before a list
    stood in, if it `resumes`. `is_first` is whether the table has never been read to its end.

    Before `settled`, a slice only ever loses records, because a record that is updated moves to a
    later time. After it, the index may still add some; the next sync reads them again. `sorts` is
    whether to ask for a sorted answer, and `reads_pages` is whether slices of several pages are
    read page by page. `total` is Kustomer's count of all changes.
    """

    client: "Client"
    table: Table
    since: datetime
    cursor: datetime
    sync_began: datetime
    settled: datetime
    is_first: bool = False
    resumes: bool = False
    sorts: bool = True
    reads_pages: bool = True
    total: int | None = None


def __search_pages(search: Search) -> Iterator[Page]:
    """Yield the pages of all changes, in any order, while up to four slices are read in parallel. The
    first search has no end, so that records with a time in the future are included."""
    low, horizon = search.cursor - __OVERLAP, search.sync_began - __SEARCH_HORIZON
    waiting, running, page = [Slice(max(low, horizon))], {}, None
    while True:
        # The slice without an end is read alone and last: the newest version of a record, which moves
        # there if it changes meanwhile, has to be delivered last.
        while waiting and len(running) < __SEARCH_THREADS and (waiting[0].high or not running):
            # New slices first, then the one with most pages left.
            part = max(
                waiting[:__SLICES_BEGUN], key=lambda p: (bool(p.high), not p.counted, p.number)
            )
            waiting.remove(part)
            running[__in_background(__read_slice, search, part)] = part
        if page:
            yield page
        if not running:
            break
        finished = next(iter(wait(running, return_when=FIRST_COMPLETED).done))
        del running[finished]
        page, rest = finished.result()
        waiting = sorted([*waiting, *rest], key=lambda part: part.low)
        left = [part.low for part in (*waiting, *running.values())]
        if page:
            page.total = search.total
            # The beginning of the earliest slice that is not complete yet.
            page.cursor_after = max(min(left), search.cursor) if left else None
    if low < horizon:
        search.client.warnings.append(
            f"{search.table.name}: search covers only the last two years, so changes before "
            f"{__format_time(horizon)} may be missing. A historical re-sync is due."
        )


def __read_slice(search: Search, part: Slice) -> tuple[Page | None, list[Slice]]:
    """Read a page of a slice. Return it, or None if it is not delivered, and what is left to read."""
    page = __ask(search, part)
    search.total = search.total or page.total
    read = __read_first_page if part.counted is None else __read_later_page
    return read(search, part, page)


def __read_first_page(search: Search, part: Slice, page: Page) -> tuple[Page | None, list[Slice]]:
    """Decide what happens to a slice whose first page has just been read."""
    pages = math.ceil(page.total / page.size)
    if not page.more:
        if pages > 1 and part.low < search.settled:
            raise SearchUnusableError("search counts more records than it shows")
        return page, []
    is_large = pages > __SLICE_MAX_PAGES or page.total >= __RESULT_MAX_RECORDS
    edges = [at for at in (search.settled, search.sync_began) if at > part.low]
    if part.high is None and edges:
        past = Slice(part.low, edges[0])
        return None, [*__cut(past, page, __SLICE_PAGES), Slice(edges[0])]
    if part.high is None and is_large:
        # All of it changed after the sync began, so the next sync reads it again.
        return page, []
    if part.high and part.high - part.low > __MILLISECOND:
        if not search.reads_pages:
            return None, __cut(part, page, __SLICE_PAGES_IF_UNRELIABLE)
        if is_large:
            return None, __cut(part, page, __SLICE_PAGES)
    elif page.total >= __RESULT_MAX_RECORDS and part.low < search.settled:
        raise SearchUnusableError(f"{__RESULT_MAX_RECORDS} or more records share one updatedAt")
    part.number = min(max(pages, 2), __RESULT_MAX_RECORDS // page.size)
    part.counted, part.first = page.total, set(map(__record_id, page.records))
    part.seen = {*part.first}
    return page, [part]


def __read_later_page(search: Search, part: Slice, page: Page) -> tuple[Page | None, list[Slice]]:
    """Return a further page of a slice, and what is left to read of the slice."""
    ids = set(map(__record_id, page.records))
    # Page 1 may be read twice. Then only what has moved there is new on it.
    moved = len(ids - part.first) if part.number == 1 else part.repeats + len(ids & part.seen)
    part.repeats, part.seen = max(part.repeats, moved), part.seen | ids
    have_left = max(part.counted - page.total, 0)
    is_done = part.number == 1 or (part.number == 2 and not have_left)
    # A record may come twice, or move, only if others have left.
    is_right = part.repeats <= have_left
    if is_done:
        is_right = is_right and page.total <= len(part.seen) <= part.counted
    if is_right or part.low >= search.settled:
        part.number -= 1
        return page, [] if is_done else [part]
    if part.high - part.low <= __MILLISECOND:
        raise SearchUnusableError("search does not return all records that share one updatedAt")
    # The order differs from request to request, or records are counted but not shown.
    search.reads_pages = False
    return page, __cut(part, page, __SLICE_PAGES_IF_UNRELIABLE)


def __cut(part: Slice, page: Page, pages_per_part: float) -> list[Slice]:
    """Cut a slice into parts of equal length, with about this many pages each."""
    milliseconds = (part.high - part.low) // __MILLISECOND
    wanted = math.ceil(page.total / (page.size * pages_per_part))
    parts = min(max(wanted, 2), __SLICE_MAX_PARTS, milliseconds)
    edges = [part.low + milliseconds * n // parts * __MILLISECOND for n in range(parts)]
    return [Slice(*pair) for pair in zip(edges, [*edges[1:], part.high])]


def __ask(search: Search, part: Slice) -> Page:
    """Request one page of a slice. Raises SearchUnusableError if Kustomer refuses the search twice,
    does not count its results or does not understand the time range, and KustomerError if it fails.
    """
    # Twice, because a fault may look like a refusal, and a list takes many more requests.
    for _ in range(2):
        try:
            page = __request_page(search, part)
            break
        except RefusedError as error:
            refusal = error
            if error.status == 400 and part.number == 1:
                # Kustomer documents sorting for customers only. No slice depends on it.
                search.sorts = False
    else:
        message = f"search was refused with {refusal.status} ({refusal.reason})"
        if refusal.status in __MISSING_ROLE_STATUSES:
            message += f": the API key lacks the role {__SEARCH_ROLE}. {__NEW_KEY}"
        raise SearchUnusableError(message, is_refusal=True)
    if page.total is None:
        raise SearchUnusableError("search does not count its results")
    times = filter(None, map(__updated_at, page.records))
    if min(times, default=part.low) < part.low:
        raise SearchUnusableError("search returns records from before the requested time")
    return page


def __request_page(search: Search, part: Slice) -> Page:
    """Send the search for one page of a slice. If it fails, the error says what to do if that lasts."""
    client, context = search.client, search.table.object_name
    attribute, bounds = f"{context}_updated_at", {"gte": part.low, "lt": part.high}
    criteria = [{attribute: {name: __format_time(at)}} for name, at in bounds.items() if at]
    body = {"and": criteria, "queryContext": context, "includeDeleted": True}
    if search.sorts:
        body["sort"] = [{attribute: "asc"}]
    size = min(client.settings.max_records_per_page, __SEARCH_PAGE_MAX_RECORDS)
    params = {"page": part.number, "pageSize": max(size, __SEARCH_PAGE_MIN_RECORDS)}
    until = f" to {__format_time(part.high)}" if part.high else ""
    purpose = f"{search.table.name}: search from {__format_time(part.low)}{until}"
    try:
        return __get_page(client, __SEARCH_PATH, params, f"{purpose}, page {part.number}", body)
    except SyncStoppedError:
        raise
    except KustomerError as error:
        if getattr(error, "status", None) in __SEARCH_REFUSALS:
            raise
        failure = str(error)
    raise KustomerError(
        f"{failure.rstrip('.')}. If search fails for days, set enable_incremental_sync to false: the "
        "tables are then read from their lists."
    )


# --------------------------------------------------------------------------------------------
# Lists
# Reads a whole list, even if records leave it meanwhile. Warns if records may be missing, and marks
# the page where that was noticed.
# Source: https://developer.kustomer.com/docs/concepts/pagination.

# Smaller pages cannot overlap the page before them by enough records.
__LIST_PAGE_MIN_RECORDS = 20
# If a page does not begin with known records, go back by this many pages: further at each attempt
# that gets no further. After the last attempt, accept the gap.
__LIST_STEPS_BACK = (1, 4, 32)
# Remember this many of the last records of a list, which is more than the longest step back covers.
__LIST_KNOWN_RECORDS = 20_000
# A list ends, whatever its links say, after this many pages in a row without a new record.
__LIST_MAX_KNOWN_PAGES = 2
__MISSING_ROLE_STATUSES = frozenset({401, 403})
# https://developer.kustomer.com/docs/get-started/quickstart, read 2026-11-23.
__NEW_KEY = (
    "Create a new key with this role too, under Settings > Security > API Keys; the roles of an "
    "existing key cannot be changed"
)


@dataclass
class Listing:
    """A list that is being read. `params` are sent with each request, and `size` is the size of a full
    page. `page_start` is the number of records before the last page, `reached` that up to its end,
    and `furthest` the largest so far. The next page begins at least `overlap` records before
    `reached`, unless `is_numbered`: then pages are read by number, one after the other.
    `known` has the last records that were read, by id, with their updatedAt. `known_pages` counts
    the pages in a row without a new record, and `steps` the steps back that got no further.
    `has_gap` is whether a gap has been accepted.
    """

    client: "Client"
    table: Table
    params: dict[str, str]
    size: int
    page_start: int = 0
    reached: int = 0
    furthest: int = 0
    overlap: int = 1
    is_numbered: bool = False
    known: dict[str | None, str] = field(default_factory=dict)
    known_pages: int = 0
    steps: int = 0
    has_gap: bool = False


def __list_pages(client: "Client", table: Table) -> Iterator[Page]:
    """Yield every page of a table's list or lists, and at least one page. A record may appear twice.
    Raises KustomerError if the key lacks the role for the list."""
    size = min(client.settings.max_records_per_page, table.page_maximum)
    size, active, is_users = max(size, __LIST_PAGE_MIN_RECORDS), set(), table is USERS
    for params in table.lists:
        for page in __one_list_pages(Listing(client, table, params, size)):
            if is_users:
                __mark_deactivated(page, active, is_active=not params)
            yield page
        # No active user cannot be right. The other list alone would delete all of their rows.
        if is_users and not active:
            return


def __mark_deactivated(page: Page, active: set[str | None], is_active: bool) -> None:
    """Set `deactivated` of users. `active` has the ids of the list of active ones, and `is_active` is
    whether the page is from this list; its ids are added."""
    active.update(map(__record_id, page.records) if is_active else ())
    for record in page.records:
        attributes = __attributes(record)
        # A user may be on both lists: deactivated meanwhile, or because `deleted` has no effect.
        is_marked = attributes.get("deletedAt") or __boolean(attributes.get("deleted"))
        is_other = bool(is_marked) or __record_id(record) not in active
        attributes["deactivated"] = is_other and not is_active


def __one_list_pages(listing: Listing) -> Iterator[Page]:
    """Yield the pages of one list. Each page begins with the last records of the page before. When a
    record leaves the list, all records after it move up by one, so the first record of the next page
    moves to a page that has already been read. While pages begin with known records, none is missed.
    """
    page = None
    while not page or not page.is_last:
        number, size = __next_page(listing)
        try:
            params = {"page": number, "pageSize": size, **listing.params}
            page = __get_listed(listing.client, listing.table, params, f"list page {number}")
        except RefusedError as error:
            page = __after_refusal(listing, number, size, error)
        else:
            page = __joined_page(listing, page, number, size)
        if page:
            yield page


def __next_page(listing: Listing) -> tuple[int, int]:
    """Return the number and size of the page to read next. Without `is_numbered`, it is the page that
    begins at least `overlap` records before the end of the last one and extends furthest beyond it:
    after 100 records, page 2 of 99, which are 100 to 198. (Pages begin at multiples of their size.)
    """
    if listing.is_numbered or not listing.reached:
        return listing.reached // listing.size + 1, listing.size
    first = max(listing.reached - listing.overlap, 0)
    size = max(range(1, listing.size + 1), key=lambda size: (first // size + 1) * size)
    return first // size + 1, size


def __after_refusal(listing: Listing, number: int, size: int, error: RefusedError) -> Page | None:
    """Return the end of a list that refuses a page, or None if another page is to be read first. If
    the size of the page differs from the first page's, that may be why it was refused."""
    if number == 1:
        raise error
    if size != listing.size:
        listing.is_numbered = True
        return None
    end = Page([], size=size, is_last=True)
    __note_missing(listing, end, f"the list ended after {listing.reached} records: {error}")
    return end


def __joined_page(listing: Listing, page: Page, number: int, size: int) -> Page | None:
    """Return a page with the records that are new, or None if another page is to be read first."""
    if page.size != size and page.more and not listing.is_numbered:
        # The server chooses the size of its pages, so they cannot overlap.
        listing.is_numbered = True
        if number > 1:
            return None
        listing.size = page.size
    is_known = any(listing.known.get(i) == version for i, version in map(__version, page.records))
    is_joined = number == 1 or listing.is_numbered or is_known or not page.records
    if not is_joined and not listing.has_gap:
        if listing.steps < len(__LIST_STEPS_BACK):
            # Many records have left the list. From here on, overlap by more records.
            listing.overlap = min(listing.overlap * 4, listing.size // 4)
            back = (__LIST_STEPS_BACK[listing.steps] - 1) * listing.size
            listing.reached = max(listing.page_start - back, 0) + listing.overlap
            listing.steps += 1
            return None
        listing.has_gap = True
        __note_missing(listing, page, "so many records left the list that others may be missed")
    listing.page_start = (number - 1) * size
    __keep_new_records(listing, page)
    return page


def __keep_new_records(listing: Listing, page: Page) -> None:
    """Remove the records from a page that are already known, and note whether the list ends."""
    listed, known = len(page.records), listing.known
    listing.reached = listing.page_start + (listing.size if listing.is_numbered else listed)
    versions = list(map(__version, page.records))
    # A record that has changed since it was read is delivered again, but is not a new one: if it
    # were, one that keeps changing could make a list endless.
    has_new = any(record_id not in known for record_id, _ in versions)
    page.records = [r for r, (i, at) in zip(page.records, versions) if known.get(i) != at]
    known.update(versions)
    while len(known) > __LIST_KNOWN_RECORDS:
        del known[next(iter(known))]
    if has_new:
        listing.known_pages = 0
    elif not listing.steps:
        listing.known_pages += 1
    if listing.reached > listing.furthest:
        # Only getting further counts. Records that keep moving could hold the reading back for ever.
        listing.furthest, listing.steps = listing.reached, 0
    is_over = not page.more or listing.known_pages >= __LIST_MAX_KNOWN_PAGES
    page.is_last = is_over or not listed
    if page.is_last:
        __check_end(listing, page, listing.page_start + listed)


def __check_end(listing: Listing, page: Page, read: int) -> None:
    """Warn if the list may have ended too early after `read` records, or was read without overlap."""
    if page.total is not None and page.total > read:
        problem = f"Kustomer counts {page.total} records, but its list ended after {read}"
        __note_missing(listing, page, problem)
    elif page.total is None and read == __RESULT_MAX_RECORDS:
        __note_missing(listing, page, f"the list ended after {read} records, which may not be all")
    elif listing.is_numbered and listing.page_start:
        listing.client.warnings.append(
            f"{listing.table.name}: Kustomer does not return pages of the requested size, so a "
            "record may be missed if others leave the list while it is read."
        )


def __note_missing(listing: Listing, page: Page, problem: str) -> None:
    """Warn that records of a list may be missing."""
    page.may_lack_records = True
    remedy = "Search, a missing record's next change or a historical re-sync delivers it"
    if listing.table.mirrored:
        remedy = "No row is marked as deleted until the whole list can be read"
    listing.client.warnings.append(f"{listing.table.name}: {problem}. {remedy}.")


def __get_listed(client: "Client", table: Table, params: dict, which: str) -> Page:
    """Request records from a table's own address. If the key lacks its role, KustomerError says so."""
    path, purpose = f"/v1/{table.name.replace('_', '-')}", f"{table.name}: {which}"
    try:
        return __get_page(client, path, params, purpose)
    except RefusedError as error:
        if error.status not in __MISSING_ROLE_STATUSES:
            raise
        refusal = error
    # Kustomer refuses a key that has become invalid with the same status. Check for that first.
    check_api_key(client)
    raise KustomerError(f"{refusal}. The API key lacks the role {table.role}. {__NEW_KEY}.")


# --------------------------------------------------------------------------------------------
# Requests
# Sends a request, retries it if needed, and returns the JSON of the response. To make a status
# retryable, change `__read_response`. The key is sent only to the configured host, and is never
# shown in a log line or an error. Three things make a request wait: the rate limit, for all requests
# of a sync; the share of it that is left to other apps (`api_utilization_percentage`), for GET
# requests; and a failure, for itself.

__KEY_PATH = "/v1/users/current"
__BACKOFF_BASE_SECONDS = 4.0
__BACKOFF_MAX_SECONDS = 60.0
__RATE_LIMIT_MAX_WAIT_SECONDS = 120.0
__RATE_LIMIT_MAX_TOTAL_SECONDS = 900.0
# Jitter, so that requests that wait for the same moment are not all sent at once.
__JITTER_FRACTION = 0.05
# How long a list request waits if the last response did not say when the limit is reset.
__UTILIZATION_WAIT_SECONDS = 5.0
# From these values on, x-ratelimit-reset is in epoch milliseconds or seconds; below, in seconds left.
__EPOCH_MILLISECONDS_FROM = 1e11
__EPOCH_SECONDS_FROM = 1e8
__CLOCK_TOLERANCE_SECONDS = 2.0
__API_MESSAGE_MAX_CHARACTERS = 300
__LOG_EVERY_SECONDS = 30.0
# With these statuses and an error message of its own, Kustomer refuses a request, and retrying would
# not help. Source: https://developer.kustomer.com/docs/concepts/errors.
__REFUSALS = frozenset({400, 401, 403, 404, 405, 409, 413, 422})
__CHECK_NETWORK = "Check this machine's network, base_url and Kustomer's status page."
__CHECK_PROXY = "Check the environment variables HTTPS_PROXY and NO_PROXY."
__CHECK_CERTIFICATES = "Check the environment variables REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE."
__CHECK_SPEED = "Increase request_timeout_seconds or decrease max_records_per_page."
__CHECK_STATUS_PAGE = "If this lasts, see Kustomer's status page."
__CHECK_ADDRESS = "Check base_url, and whether a proxy answers instead of Kustomer."
# Causes of network errors: a type and a part of its message, what to call it, and advice. The first
# one that is found among an error and its causes counts.
__NETWORK_CAUSES = (
    (OSError, "CA certificate bundle", "the CA bundle was not found", __CHECK_CERTIFICATES),
    (requests.exceptions.InvalidSchema, "SOCKS", "PySocks is not installed", __CHECK_PROXY),
    (requests.exceptions.InvalidProxyURL, "", "the proxy setting is not valid", __CHECK_PROXY),
    # What the requests library raises for a proxy whose port is not a number.
    (ValueError, "Failed to parse", "the proxy setting is not valid", __CHECK_PROXY),
    (requests.exceptions.ProxyError, "", "the proxy failed", __CHECK_PROXY),
    (socket.gaierror, "", "the host name was not found", __CHECK_NETWORK),
    (ssl.SSLCertVerificationError, "", "the certificate is not valid", __CHECK_CERTIFICATES),
    (ssl.SSLError, "", "no secure connection could be established", __CHECK_NETWORK),
    (ConnectionRefusedError, "", "the connection was refused", __CHECK_NETWORK),
    ((requests.exceptions.Timeout, TimeoutError), "", "the request timed out", __CHECK_SPEED),
    (ConnectionError, "", "the connection broke", __CHECK_NETWORK),
    (requests.exceptions.ChunkedEncodingError, "", "the response was cut off", __CHECK_NETWORK),
    (requests.exceptions.ConnectionError, "", "the host could not be reached", __CHECK_NETWORK),
)


@dataclass
class Client:
    """What all requests of a sync have in common. Several threads use it; `lock` protects all but
    single assignments. `warn(message)` shows a warning that the user should act on; `warnings` holds
    those of other threads until the main thread shows them. `clock_ahead` is how many seconds this
    machine's clock is ahead of Kustomer's, or None before the first response. Setting `closed` ends
    all waits and retries once nobody needs their results.
    No request is sent before `limited_until`, and no GET request before `lists_wait_until`.
    `limited_since` is the first refusal by the rate limit since the last successful response, and
    `limit_waits` counts the waits since then; the sync fails after `limited_seconds_max`.
    `waited_until` is the end of the last wait. These moments are monotonic times.
    """

    session: requests.Session
    settings: Settings
    warn: Callable[[str], None]
    limited_seconds_max: float
    warnings: deque[str] = field(default_factory=deque)
    requests_sent: int = 0
    seconds_waited: float = 0.0
    waited_until: float = 0.0
    clock_ahead: float | None = None
    closed: threading.Event = field(default_factory=threading.Event)
    last_log_at: float = field(default_factory=lambda: time.monotonic())
    lock: threading.Lock = field(default_factory=threading.Lock)
    limited_since: float | None = None
    limited_until: float = 0.0
    limit_waits: int = 0
    lists_wait_until: float = 0.0


@contextlib.contextmanager
def open_client(settings: Settings, warn: Callable[[str], None] | None = None):
    """Yield a Client whose session is closed at the end."""
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {settings.api_key}"
        session.headers["Accept"] = "application/json"
        session.headers["User-Agent"] = f"fivetran-kustomer-connector/{VERSION}"
        # Without an auth function, the requests library would take a password from .netrc.
        session.auth = lambda request: request
        # Do not use the environment's proxies for a mock on this machine.
        session.trust_env = settings.base_url.startswith("https://")
        warn = warn or partial(__log, log.warning)
        client = Client(session, settings, warn, __RATE_LIMIT_MAX_TOTAL_SECONDS)
        try:
            yield client
        finally:
            client.closed.set()


def __show_warnings(client: Client) -> None:
    while client.warnings:
        client.warn(client.warnings.popleft())


def __log(write: Callable[[str], None], message: str) -> None:
    """Write a log line if a sync is running. Outside of a sync, the SDK's log raises an error."""
    if log.LOG_LEVEL is not None:
        write(message)


def __log_throttled(client: Client, message: str, quiet_seconds: float = 0.0) -> None:
    """Log at most one line per 30 seconds, and one before a wait that is longer than that."""
    silent_until = time.monotonic() + quiet_seconds
    if silent_until - client.last_log_at >= __LOG_EVERY_SECONDS:
        client.last_log_at = silent_until
        __log(log.info, message)


def check_api_key(client: Client) -> None:
    """Check that the API key is valid. Raises SyncStoppedError if Kustomer refuses the key in this
    region, and KustomerError if the request fails for another reason. Source:
    https://developer.kustomer.com/docs/get-started/authentication."""
    try:
        execute_api_request(__KEY_PATH, client.settings.api_key, client=client)
    except RefusedError as error:
        if error.status not in __MISSING_ROLE_STATUSES:
            raise
        raise SyncStoppedError(
            f"api_key: {client.settings.base_url} refused the key with {error.status} "
            f"({error.reason}). It is invalid, expired or from another region. Check api_key and the "
            "key's IP restrictions, and set base_url to your organization's region."
        ) from None


def execute_api_request(
    endpoint: str,
    api_key: str,
    params: dict | None = None,
    configuration: dict | None = None,
    *,
    body: dict | None = None,
    client: Client | None = None,
    purpose: str = "",
) -> dict:
    """Send a request, retry it if needed, and return the JSON of the response.

    After a 429, and after any response with a Retry-After, no request of the sync is sent before
    the moment that the headers name. If that goes on for fifteen minutes without a successful
    response, the request fails. Timeouts, broken connections, partial responses, responses that
    are not a JSON object, and errors without an error message from Kustomer are retried with
    exponential backoff. Source: https://developer.kustomer.com/docs/concepts/rate-limits.

    Args:
        endpoint: the path, such as /v1/customers.
        params: the query parameters.
        api_key, configuration: the API key and the configuration, used if there is no `client`.
        body: the JSON body of a POST request. Without a body, the request is a GET.
        client: the client of a running sync. By default, a new client is opened.
        purpose: what the log calls the request. Its method and path by default.

    Returns:
        The JSON object of the response.

    Raises:
        RefusedError: if Kustomer refuses the request and retrying cannot help.
        SyncStoppedError: if the rate limit stays exhausted, or the request is not needed any more.
        KustomerError: if all retries fail.
    """
    if client is None:
        settings = validate_configuration({**(configuration or {}), "api_key": api_key})
        call = partial(execute_api_request, endpoint, "", params, body=body, purpose=purpose)
        with open_client(settings) as own:
            return call(client=own)
    request = f"{'GET' if body is None else 'POST'} {endpoint}"
    failures = 0
    while True:
        __wait_for_turn(client, purpose or request, is_get=body is None)
        try:
            payload = __exchange(client, request, params, body, purpose or request)
            if payload is not None:
                return payload
            continue
        except RetryableError as error:
            failure = error
        # Outside of the except clause, so that the user sees one traceback instead of two.
        __handle_request_error(client, request, failure, failures, purpose or request)
        failures += 1


def __exchange(
    client: Client, request: str, params: dict | None, body: dict | None, purpose: str
) -> dict | None:
    """Send a request once and return the JSON of the response, or None after a 429. Raises
    RetryableError if the request can be retried."""
    settings, (method, _, path) = client.settings, request.partition(" ")
    sent_at, problem = time.monotonic(), None
    with client.lock:
        client.requests_sent += 1
    try:
        options = {"timeout": settings.request_timeout_seconds, "allow_redirects": False}
        url = settings.base_url + path
        response = client.session.request(method, url, params=params, json=body, **options)
        status, headers = response.status_code, response.headers
    except (requests.RequestException, OSError, ValueError) as error:
        # ValueError: urllib3's error for an address that it cannot parse.
        problem = __network_problem(error)
        status, headers = problem[0], {}
    if settings.enable_debug_logging:
        remaining = f"rate limit remaining {headers.get('x-ratelimit-remaining', 'unknown'):.20}"
        milliseconds = f"{(time.monotonic() - sent_at) * 1000:.0f} ms"
        __log(log.info, f"{purpose}: status {status}, {remaining}, {milliseconds}")
    if problem:
        # In the except clause, the error would keep a reference to the request and its key.
        raise RetryableError(f"{urlsplit(settings.base_url).hostname}: {problem[0]}", problem[1])
    date = __header_date(headers.get("Date"))
    if client.clock_ahead is None and date:
        client.clock_ahead = time.time() - date.timestamp()
    if body is None:
        __note_utilization(client, headers)
    if status == 429 or "Retry-After" in headers:
        __handle_rate_limit(client, request, headers, sent_at, is_limited=status == 429)
    if status == 429:
        return None
    payload = __read_response(response, request, settings.api_key)
    client.limited_since, client.limit_waits = None, 0
    return payload


def __network_problem(error: BaseException) -> tuple[str, str]:
    """Return the cause of a network error, in words, and advice."""
    causes: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in causes:
        causes.append(link)
        link = link.__cause__ or link.__context__
    for kind, part, words, advice in __NETWORK_CAUSES:
        if any(isinstance(cause, kind) and part in str(cause) for cause in causes):
            return words, advice
    return type(error).__name__, __CHECK_NETWORK


def __read_response(response, request: str, api_key: str) -> dict:
    """Return the JSON of a response, or raise an error. Only this function decides which responses
    other than a 429 are retried: those for which it raises RetryableError, not RefusedError."""
    status, payload = response.status_code, __parsed(response.content)
    if status == 200 and payload is not None:
        meta = payload.get("meta")
        if isinstance(meta, dict) and meta.get("timed_out"):
            raise RetryableError("a partial response (meta.timed_out)", __CHECK_SPEED)
        return payload
    errors = (payload or {}).get("errors")
    errors = [e for e in errors if isinstance(e, dict)] if isinstance(errors, list) else []
    if status in __REFUSALS and errors:
        reason = __api_message(errors, api_key)
        raise RefusedError(f"{request} was refused with {status}: {reason}", status, reason)
    if 300 <= status < 400:
        raise RetryableError(f"status {status}, a redirect, is not followed", __CHECK_ADDRESS)
    if status == 408 or status >= 500:
        raise RetryableError(f"status {status}", __CHECK_STATUS_PAGE)
    raise RetryableError(f"status {status} without an answer from Kustomer", __CHECK_ADDRESS)


def __parsed(content: bytes) -> dict | None:
    """Return a JSON object, or None if it is none. Text that is not UTF-8 is replaced, and NaN and
    Infinity, which are not JSON, become null: one bad value must not hold back its table."""
    try:
        text = content.decode("utf-8-sig", "replace")
        payload = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return payload if isinstance(payload, dict) else None


def __api_message(errors: list[dict], api_key: str) -> str:
    """Return Kustomer's error message, without the key and without any other part of the body."""
    names = ("code", "title", "message", "detail")
    words = [str(error[name]) for error in errors for name in names if error.get(name)]
    text = re.sub(r"eyJ[\w.%-]+", "(key)", " - ".join(words).replace(api_key, "(key)"))
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(text.split())[:__API_MESSAGE_MAX_CHARACTERS].rstrip(".") or "no reason given"


def __handle_rate_limit(
    client: Client, request: str, headers, sent_at: float, is_limited: bool
) -> None:
    """Note until when no request is to be sent, after a 429 or another response that asks to wait.
    Raises SyncStoppedError if no response has been successful for the maximum time."""
    with client.lock:
        now, seconds = time.monotonic(), __seconds_until_reset(headers)
        if (is_limited and sent_at < client.limited_until) or (seconds is None and not is_limited):
            # Another request that was refused at the same time has set the moment, or there is none.
            return
        if is_limited and client.limited_since is None:
            client.limited_since = now
        left = client.limited_seconds_max + (client.limited_since or now) - now
        if seconds is None:
            seconds = __backoff_seconds(client.limit_waits)
        client.limit_waits += is_limited
        seconds = min(seconds, __RATE_LIMIT_MAX_WAIT_SECONDS, left)
        client.limited_until = max(client.limited_until, now + seconds)
    # A last wait of less than a second would not help.
    if is_limited and left < 1:
        minutes = pluralize(round(client.limited_seconds_max / 60), "minute")
        raise SyncStoppedError(
            f"{request} returned 429 (rate limit) for {minutes}. Other apps may be using the rate "
            "limit of the organization or of the key. Try again later."
        )


def __wait_for_turn(client: Client, purpose: str, is_get: bool) -> None:
    """Wait until a request may be sent. Raises SyncStoppedError if nobody needs it any more."""
    while (seconds := client.limited_until - time.monotonic()) > 0 and not client.closed.is_set():
        most = min(__JITTER_FRACTION * seconds, __RATE_LIMIT_MAX_WAIT_SECONDS - seconds)
        jitter = random.uniform(0, max(most, 0))
        reason = f"{purpose}: Kustomer said to wait"
        __wait_until(client, client.limited_until + jitter, reason)
    if is_get:
        percentage = client.settings.api_utilization_percentage
        reason = f"{purpose}: more than {percentage} % of the organization's rate limit is used"
        __wait_until(client, client.lists_wait_until, reason)
    if client.closed.is_set():
        raise SyncStoppedError("The request is not needed any more.")


def __wait_until(client: Client, moment: float, reason: str) -> None:
    """Wait until a monotonic time, and log why. The wait ends early if the client is closed."""
    now = time.monotonic()
    if moment <= now:
        return
    end = __now() + timedelta(seconds=moment - now)
    message = f"{reason}; waiting {moment - now:.1f} s, until {end:%H:%M:%S} UTC."
    __log_throttled(client, message, moment - now)
    with client.lock:
        # Requests that wait at the same time count once.
        client.seconds_waited += max(moment - max(now, client.waited_until), 0)
        client.waited_until = max(client.waited_until, moment)
    client.closed.wait(moment - now)


def __note_utilization(client: Client, headers) -> None:
    """Note how long list requests have to wait, so that the rest of the organization's rate limit
    is left to its other apps. Source: https://developer.kustomer.com/docs/concepts/rate-limits."""
    limit, remaining = (
        __header_number(headers.get(f"x-ratelimit-{name}")) for name in ("limit", "remaining")
    )
    client.lists_wait_until = 0.0
    reserved = 1 - client.settings.api_utilization_percentage / 100
    if limit is not None and remaining is not None and max(remaining, 0) < reserved * limit:
        seconds = __seconds_until_reset(headers) or __UTILIZATION_WAIT_SECONDS
        seconds = min(seconds, __RATE_LIMIT_MAX_WAIT_SECONDS)
        client.lists_wait_until = time.monotonic() + seconds


def __seconds_until_reset(headers) -> float | None:
    """Return how many seconds a response asks to wait, or None if it does not say."""
    now, date = time.time(), __header_date(headers.get("Date"))
    # If the clocks differ, use the server's. Its Date has whole seconds, hence the tolerance.
    if date and abs(date.timestamp() - now) > __CLOCK_TOLERANCE_SECONDS:
        now = date.timestamp()
    retry_after = headers.get("Retry-After")
    retry_date = __header_date(retry_after)
    reset = __header_number(headers.get("x-ratelimit-reset"))
    if reset is not None and reset >= __EPOCH_MILLISECONDS_FROM:
        reset = reset / 1000 - now
    elif reset is not None and reset >= __EPOCH_SECONDS_FROM:
        reset -= now
    waits = (
        __header_number(retry_after),
        retry_date.timestamp() - now if retry_date else None,
        reset,
    )
    return next((seconds for seconds in waits if seconds is not None and seconds > 0), None)


def __header_number(value: str | None) -> float | None:
    known = value and re.fullmatch(r"-?[0-9]{1,15}(\.[0-9]+)?", value.strip())
    return float(value) if known else None


def __header_date(value: str | None) -> datetime | None:
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        date = parsedate_to_datetime(value or "")
        return date if date.tzinfo else date.replace(tzinfo=timezone.utc)
    return None


def __backoff_seconds(earlier_failures: int) -> float:
    """Return an exponential backoff, with jitter, so that requests that fail at the same time are
    not all retried at the same time. Three retries span about half a minute."""
    seconds = __BACKOFF_BASE_SECONDS * 2**earlier_failures * random.uniform(0.9, 1.2)
    return min(seconds, __BACKOFF_MAX_SECONDS)


def __handle_request_error(
    client: Client, request: str, failure: RetryableError, failures: int, purpose: str
) -> None:
    """Wait before the next retry. Raises KustomerError if there are no retries left."""
    if failures >= client.settings.retry_attempts:
        times = f" {failures + 1} times. The last error was" if failures else ""
        raise KustomerError(f"{request} failed{times}: {failure.cause}. {failure.advice}")
    if client.limited_until <= time.monotonic():
        # Kustomer has not said how long to wait.
        moment = time.monotonic() + __backoff_seconds(failures)
        __wait_until(client, moment, f"{purpose}: {failure.cause}")


# --------------------------------------------------------------------------------------------
# Time
# All times are in UTC. As text, they have Kustomer's format, such as 2026-11-23T08:30:00.000Z:
# https://developer.kustomer.com/docs/concepts/json-api-format.

# A sync starts so long before the last one, because the search index is late and clocks differ.
__OVERLAP = timedelta(minutes=10)
__EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def get_time_range(
    last_sync_time: str | None = None, configuration: dict | None = None, now=None
) -> dict[str, str]:
    """Return the time range in which a sync that starts now has to read changes. It begins ten minutes
    before `last_sync_time`. Rows that come again are harmless: an upsert replaces the row.

    Args:
        last_sync_time: an ISO time, or None for a first sync.
        configuration: the connector's configuration. A first sync goes back `initial_sync_days`.
        now: the current time. By default, the time of this machine's clock.

    Returns:
        {"start": ..., "end": ...}, as ISO times in UTC. The end is the current time.

    Raises:
        ValueError: if `last_sync_time` is not a time or `initial_sync_days` is out of range.
    """
    end = now or __now()
    if last_sync_time is None:
        days = __setting_value(__SETTING["initial_sync_days"], configuration or {})
        start = end - timedelta(days=days)
    else:
        last = __parse_time(last_sync_time)
        if last is None:
            raise ValueError(f"last_sync_time must be an ISO time, not {last_sync_time!r:.60}.")
        # A time in the future was saved while the clock was ahead. Do not skip changes before it.
        start = max(min(last, end), __EPOCH) - __OVERLAP
    return {"start": __format_time(start), "end": __format_time(end)}


def __now(client: Client | None = None) -> datetime:
    """Return the current time, by this machine's clock or by Kustomer's if that is known to be
    behind it. With a clock that is ahead, the next sync would skip changes."""
    ahead = client.clock_ahead if client else 0.0
    now = __EPOCH + timedelta(seconds=max(time.time() - max(ahead or 0.0, 0.0), 0.0))
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def __parse_time(value) -> datetime | None:
    """Parse an ISO time, which is in UTC if it has no offset. Return None if it is not valid."""
    return __parse_text(value) if isinstance(value, str) else None


# Most times of a record come more than once, in several attributes or in a search and in a row.
@lru_cache(maxsize=10_000)
def __parse_text(value: str) -> datetime | None:
    try:
        # Before version 3.11, Python does not know the Z.
        parsed = datetime.fromisoformat(f"{value[:-1]}+00:00" if value[-1] in "Zz" else value)
        parsed = parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)
        return parsed.astimezone(timezone.utc)
    except (ValueError, LookupError, OverflowError):
        return None


def __format_time(timestamp: datetime) -> str:
    """Return a UTC time in Kustomer's format, with microseconds if it is not in milliseconds."""
    precision = "microseconds" if timestamp.microsecond % 1000 else "milliseconds"
    return timestamp.isoformat(timespec=precision)[: -len("+00:00")] + "Z"


# --------------------------------------------------------------------------------------------
# Setup form
# The form that Fivetran shows when a connection is set up, and the tests that it runs.

# Long enough for one reset of the rate limit, with jitter. Somebody is watching the form meanwhile.
__SETUP_TEST_MAX_WAIT_SECONDS = 65.0


def configuration_form() -> ConfigurationForm:
    """Return the setup form: a field for each setting, and the setup tests."""
    form = ConfigurationForm()
    for setting in SETTINGS:
        form.add_field(__form_field(setting))
    form.add_test(label="The configuration is valid", func=test_configuration)
    form.add_test(label="Kustomer accepts the API key in this region", func=test_api_key)
    form.add_test(label="The API key can read every table", func=test_roles)
    form.add_test(label="The API key can search (optional)", func=test_search)
    return form


def __form_field(setting: Setting):
    required = setting is __API_KEY
    common = {"description": setting.explained(), "required": required}
    label = setting.name.replace("_", " ").capitalize().replace("Api", "API")
    if setting.parse is __parse_switch:
        return form_field.ToggleField(setting.name, label, **common)
    kind = form_field.TextField.password if required else form_field.TextField.plain_text
    placeholder = "eyJ..." if required else str(setting.default or "not set")
    return form_field.TextField(setting.name, label, kind, placeholder=placeholder, **common)


def test_configuration(configuration: dict):
    """Setup test: every setting is valid. An unknown setting is a warning in the log."""
    return __run_setup_test(
        configuration, lambda client: client.warnings.extend(__unknown_settings(configuration))
    )


def test_api_key(configuration: dict):
    """Setup test: the key is valid in the region of `base_url`."""
    return __run_setup_test(configuration, check_api_key)


def test_roles(configuration: dict):
    """Setup test: the key can read every table. A failure names each missing role."""
    return __run_setup_test(configuration, __read_first_pages)


def test_search(configuration: dict):
    """Setup test: search works. If not, it passes with a warning, because lists are read then."""
    return __run_setup_test(configuration, __search_customers)


def __run_setup_test(configuration: dict, check: Callable[[Client], None]):
    """Return the result of a setup test, which passes if `check` does not raise an error."""
    try:
        settings = validate_configuration(configuration)
        with open_client(settings) as client:
            client.limited_seconds_max = __SETUP_TEST_MAX_WAIT_SECONDS
            check(client)
            __show_warnings(client)
    except (KustomerError, ValueError) as error:
        return Test.failure(str(error))
    return Test.success()


def __read_first_pages(client: Client) -> None:
    # Otherwise every table would report the same invalid key.
    check_api_key(client)
    failures = []
    for table in __selected_tables(client.settings.additional_tables):
        now = __now(client)
        pages = __table_pages(Search(client, table, now, now, now, now))
        try:
            next(__list_pages(client, table) if table.lists else pages)
        except SyncStoppedError:
            raise
        except KustomerError as error:
            failures.append(f"{table.name}: {error}")
    if failures:
        raise KustomerError(" ".join(failures))


def __search_customers(client: Client) -> None:
    # Search refuses an invalid key and a missing role with the same status.
    check_api_key(client)
    now = __now(client)
    try:
        __ask(Search(client, CUSTOMERS, now, now, now, now), Slice(now))
    except SearchUnusableError as error:
        client.warnings.append(
            f"{error.message}. Without search, every sync reads whole lists, which takes "
            "more requests and does not show what has been deleted."
        )


connector = Connector(update=update, schema=schema, configuration_form=configuration_form)

if __name__ == "__main__":
    # To run or debug the connector from an editor. `fivetran debug` does not execute this block.
    with open("configuration.json", encoding="utf-8") as file:
        connector.debug(configuration=json.load(file))

"""Kustomer's customers, companies, brands, messages, and more on request, for a Fivetran
destination.

Each section can be read alone and opens with what it guarantees to the sections above it:

    Reading a record     how a column's value is found in a record
    Tables               what is copied: one declaration and one generator for each table
    Settings             the configuration: what is allowed, and what a wrong value is told
    Sync                 schema() and update(): from rows to the destination, state, log
    Rows                 from pages of records to pages of rows; search or list
    Search               finding changed records by slices of time
    Lists                reading a list that moves while it is read
    Requests             one HTTP exchange, its retries and its waits
    Time                 timestamps, windows and clocks
    Setup form           what Fivetran shows when a connection is set up
"""

import contextlib
import difflib
import gc
import ipaddress
import itertools
import json
import math
import operator
import random
import re
import socket
import ssl
import threading
import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as DeadlineError
from dataclasses import astuple, dataclass, field, make_dataclass
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Callable, Iterator, NamedTuple
from urllib.parse import urlsplit

import requests
from fivetran_connector_sdk import ConfigurationForm, Connector, Test, form_field
from fivetran_connector_sdk import Logging as log
from fivetran_connector_sdk import Operations as op

VERSION = "1.2.0"


class KustomerError(Exception):
    """A table cannot be read; the text says what happened and what to do about it."""


class SyncStoppedError(KustomerError):
    """No table can be read any more; the sync ends at once."""


class RefusedError(KustomerError):
    """Kustomer refused a request with a status that retrying cannot change.

    `status` is the HTTP status, `reason` what Kustomer's error message says.
    """

    def __init__(self, message: str, status: int, reason: str):
        super().__init__(message, status, reason)
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        return self.args[0]


class SearchUnusableError(Exception):
    """Search cannot serve a table, which is then read from its list; the text says why."""


class SearchRefusedError(SearchUnusableError):
    """Search refuses a table, and will refuse it in the next sync as well."""


class PageSizeError(Exception):
    """A list does not give pages of the size asked for, and is read another way."""


class TryAgainError(Exception):
    """Internal: retried by `execute_api_request`, never raised to callers. The text is the cause."""


class RateLimitError(TryAgainError):
    """Internal, like TryAgainError: a 429, whose headers are the argument."""


# --------------------------------------------------------------------------------------------
# Reading a record
#
# A column is its Fivetran type, the attribute it comes from, and how that is converted. What a
# record does not have is None: Kustomer leaves an attribute without a value out, or sends null, "",
# [] or {}. Nothing here raises, whatever the record holds.
# --------------------------------------------------------------------------------------------

__LONE_SURROGATE = re.compile("[\ud800-\udfff]")
__compact_json = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), check_circular=False
).encode
__FLAG_WORDS = {"true": True, "false": False}
# https://fivetran.com/docs/connectors/connector-sdk/technical-reference: INT has 32 bits.
__INT_RANGE = (-(2**31), 2**31 - 1)


class Column(NamedTuple):
    """A column: its Fivetran type, the attribute it comes from (None: the record itself), how the
    attribute's value is converted, and the column that is read where that gives None."""

    type: str
    source: str | None
    convert: Callable[[Any], Any]
    otherwise: "Column | None" = None


def __attributes(record) -> dict:
    """Return a record's attributes; a record that comes flat is its own attributes."""
    if not isinstance(record, dict):
        return {}
    attributes = record.get("attributes")
    return attributes if isinstance(attributes, dict) else record


def __record_id(record) -> str | None:
    """Return a record's id as text, or None when it has none."""
    value = record.get("id") if isinstance(record, dict) else None
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def __updated_at(record) -> datetime | None:
    return __parse_time(__attributes(record).get("updatedAt"))


def __version(record) -> tuple[str | None, str]:
    """Return what identifies a record as it is now: another update is another version."""
    return __record_id(record), str(__attributes(record).get("updatedAt"))


def __text(value) -> str | None:
    """Return a value as a STRING column takes it: text unchanged, anything else as JSON."""
    if not isinstance(value, str):
        if value is None or value == [] or value == {}:
            return None
        value = __compact_json(value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            # Half of a surrogate pair is valid in JSON, but no destination can store it.
            return __LONE_SURROGATE.sub("\ufffd", value)
    return value or None


def __flag(value) -> bool | None:
    if isinstance(value, bool):
        return value
    return __FLAG_WORDS.get(value.lower()) if isinstance(value, str) else None


def __count(value) -> int | None:
    """Return a whole number that an INT column holds, or None."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,10}", value, re.ASCII):
        value = int(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole or isinstance(value, float) and value.is_integer():
        return int(value) if __INT_RANGE[0] <= value <= __INT_RANGE[1] else None
    return None


def __time(value) -> str | None:
    """Return a time as Kustomer writes it, in UTC, or None when it cannot be read."""
    return __read_time(value)[1] if isinstance(value, str) else None


def __related_id(record: dict, name: str) -> str | None:
    """Return the id of a related record. Its type is ignored: Kustomer names some wrongly."""
    relationships = record.get("relationships")
    relation = relationships.get(name) if isinstance(relationships, dict) else None
    return __record_id(relation.get("data")) if isinstance(relation, dict) else None


def __first_of(entries, name: str, preferred: tuple[str, Any] | None = None):
    """Return `name` of the first entry that has it, or of the first one with the preferred
    attribute value. An entry that is text stands for itself."""
    first = None
    for entry in entries if isinstance(entries, list) else ():
        value = entry.get(name) if isinstance(entry, dict) else entry
        if not value or not isinstance(entry, (dict, str)):
            continue
        if preferred is None:
            return value
        if isinstance(entry, dict) and entry.get(preferred[0]) == preferred[1]:
            return value
        first = first or value
    return first


# The kinds of columns. Names are Kustomer's attribute names.


def text(name: str, otherwise: Column | None = None) -> Column:
    """An attribute as text."""
    return Column("STRING", name, __text, otherwise)


def as_json(name: str) -> Column:
    """A nested attribute as JSON text. The column is a STRING, because any destination takes it."""
    return Column("STRING", name, __text)


def flag(name: str) -> Column:
    """A boolean, also where it comes as the text true or false."""
    return Column("BOOLEAN", name, __flag)


def count(name: str) -> Column:
    """A whole number of at most 32 bits."""
    return Column("INT", name, __count)


def time_of(name: str) -> Column:
    """A time in UTC."""
    return Column("UTC_DATETIME", name, __time)


def inside(name: str, inner: str) -> Column:
    """The text of an attribute inside a nested attribute."""
    return Column(
        "STRING", name, lambda value: __text(value.get(inner)) if isinstance(value, dict) else None
    )


def related(name: str, otherwise: Column) -> Column:
    """The id of a related record."""
    return Column("STRING", None, lambda record: __related_id(record, name), otherwise)


def reference(name: str, otherwise: Column | None = None) -> Column:
    """An attribute that holds an id as text, as records do that come flat."""
    return Column(
        "STRING", name, lambda value: __text(value) if isinstance(value, str) else None, otherwise
    )


def first_of(name: str, entry_name: str, preferred: tuple[str, Any] | None = None) -> Column:
    """One value of a list of objects: that of the first entry with the preferred attribute value,
    else of the first entry."""
    return Column("STRING", name, lambda value: __text(__first_of(value, entry_name, preferred)))


def each_of(name: str, entry_name: str) -> Column:
    """One value of each entry of a list, as a JSON array; entries may be objects or texts."""

    def convert(entries) -> str | None:
        if not isinstance(entries, list):
            return __text(entries)
        values = (e.get(entry_name) if isinstance(e, dict) else e for e in entries)
        return __text([value for value in values if value])

    return Column("STRING", name, convert)


RECORD_ID = Column("STRING", None, __record_id)
CHANGE_TIMES = {"created_at": time_of("createdAt"), "updated_at": time_of("updatedAt")}

# --------------------------------------------------------------------------------------------
# Tables
#
# A table is declared once: schema, rows, setup tests and errors all read the declaration. To add a
# column, add it to `columns`; to add a table, add a declaration, its generator, and both to
# GENERATORS.
# --------------------------------------------------------------------------------------------


class Table:
    """A destination table, and where Kustomer keeps its records.

    `object_name` names the object in the role that the API key needs. `search` is the query
    context in which search finds changed records, or None where it cannot. A `mirrored` table is
    read whole and truncated before it is delivered. `columns` are in the destination's order.

    Where `search_is_documented` is false, search has to show that it knows the table.

    A table `on_request` is read when the setting `additional_tables` names it. `page_maximum` is
    how many records a page of its list may have. A table that `deactivates` has a second list, of
    the records that are no longer active: they stay rows, and their attribute `deactivated` is
    true.
    """

    def __init__(
        self,
        name: str,
        *,
        object_name: str,
        columns: dict[str, Column],
        search: str | None = None,
        search_is_documented: bool = True,
        mirrored: bool = False,
        on_request: bool = False,
        legacy_role: str | None = None,
        page_maximum: int = 100,
        deactivates: bool = False,
    ):
        self.name = name
        self.path = f"/v1/{name}"
        # https://developer.kustomer.com/docs/get-started/authentication, read 2026-11-23.
        legacy_role = legacy_role or f"org.user.{object_name}.read"
        self.role = f"org.permission.{object_name}.read (legacy {legacy_role})"
        self.columns = columns
        self.search = search
        self.search_is_documented = search_is_documented
        self.mirrored = mirrored
        self.on_request = on_request
        # https://developer.kustomer.com/docs/concepts/pagination, read 2026-11-23.
        self.page_maximum = page_maximum
        self.deactivates = deactivates
        self.readers = [(column, *declared) for column, declared in columns.items()]
        # Columns whose values can be unreadable.
        self.typed = [
            (name, kind.source) for name, kind in columns.items() if kind.type != "STRING"
        ]


CUSTOMERS = Table(
    "customers",
    object_name="customer",
    search="customer",
    # https://developer.kustomer.com/api/core-resources/get-customers
    columns={
        "id": RECORD_ID,
        "name": text("name", text("displayName")),
        "email": first_of("emails", "email", ("verified", True)),
        "phone": first_of("phones", "phone"),
        "company_id": related("company", reference("companyId", reference("company"))),
        "external_id": text("externalId", first_of("externalIds", "externalId")),
        "verified": flag("verified"),
        "locked": flag("locked"),
        "emails": as_json("emails"),
        "phones": as_json("phones"),
        "tags": as_json("tags"),
        "custom": as_json("custom"),
        "deleted": flag("deleted"),
        **CHANGE_TIMES,
    },
)
COMPANIES = Table(
    "companies",
    object_name="company",
    search="company",
    search_is_documented=False,
    # https://developer.kustomer.com/api/core-resources
    columns={
        "id": RECORD_ID,
        "name": text("name"),
        "website": first_of("urls", "url", ("type", "website")),
        "domains": each_of("domains", "domain"),
        # The second spelling is that of Kustomer's own examples.
        "external_id": text("externalId", text("extenalId")),
        "tags": as_json("tags"),
        "custom": as_json("custom"),
        "deleted": flag("deleted"),
        **CHANGE_TIMES,
    },
)
BRANDS = Table(
    "brands",
    object_name="brand",
    mirrored=True,
    # https://developer.kustomer.com/api/core-resources
    columns={
        "id": RECORD_ID,
        "name": text("name"),
        "display_name": text("displayName"),
        "website_url": text("websiteUrl"),
        "icon_url": text("iconUrl"),
        "is_default": flag("default"),
        **CHANGE_TIMES,
    },
)
MESSAGES = Table(
    "messages",
    object_name="message",
    search="message",
    # https://developer.kustomer.com/api/core-resources
    columns={
        "id": RECORD_ID,
        "conversation_id": related("conversation", reference("conversationId")),
        "customer_id": related("customer", reference("customerId")),
        "channel": text("channel"),
        "direction": text("direction"),
        "message_type": text("directionType"),
        "status": text("status"),
        "subject": text("subject", inside("meta", "subject")),
        # Kustomer's answers have shown `preview` only: plain text, cut at 10,240 characters.
        "body": text("body", text("preview")),
        "app": text("app"),
        "source": text("source"),
        "created_by_id": related("createdBy", reference("createdBy")),
        "created_by_teams": as_json("createdByTeams"),
        "assigned_users": as_json("assignedUsers"),
        "assigned_teams": as_json("assignedTeams"),
        "meta": as_json("meta"),
        "custom": as_json("custom"),
        "sent_at": time_of("sentAt"),
        **CHANGE_TIMES,
    },
)
CONVERSATIONS = Table(
    "conversations",
    object_name="conversation",
    search="conversation",
    on_request=True,
    # https://developer.kustomer.com/api/core-resources
    columns={
        "id": RECORD_ID,
        "customer_id": related("customer", reference("customerId")),
        "brand_id": related("brand", reference("brandId")),
        "queue_id": related("queue", reference("queueId")),
        "created_by_id": related("createdBy", reference("createdBy")),
        "external_id": text("externalId"),
        "name": text("name"),
        "preview": text("preview"),
        "status": text("status"),
        "direction": text("direction"),
        "priority": count("priority"),
        "channels": as_json("channels"),
        "tags": as_json("tags"),
        "assigned_users": as_json("assignedUsers"),
        "assigned_teams": as_json("assignedTeams"),
        "message_count": count("messageCount"),
        "note_count": count("noteCount"),
        "outbound_message_count": count("outboundMessageCount"),
        "done_count": count("doneCount"),
        "reopen_count": count("reopenCount"),
        "snooze_count": count("snoozeCount"),
        "satisfaction": text("satisfaction"),
        "satisfaction_level": as_json("satisfactionLevel"),
        "first_response": as_json("firstResponse"),
        "last_response": as_json("lastResponse"),
        "first_done": as_json("firstDone"),
        "last_done": as_json("lastDone"),
        "sla": as_json("sla"),
        "snooze": as_json("snooze"),
        "ended": flag("ended"),
        "ended_at": time_of("endedAt"),
        "ended_reason": text("endedReason"),
        "ended_by_type": text("endedByType"),
        "last_activity_at": time_of("lastActivityAt"),
        "last_message_at": time_of("lastMessageAt"),
        "custom": as_json("custom"),
        "deleted": flag("deleted"),
        **CHANGE_TIMES,
    },
)
NOTES = Table(
    "notes",
    object_name="note",
    search="note",
    on_request=True,
    # https://developer.kustomer.com/api/core-resources
    columns={
        "id": RECORD_ID,
        "conversation_id": related("conversation", reference("conversationId")),
        "customer_id": related("customer", reference("customerId")),
        "created_by_id": related("createdBy", reference("createdBy")),
        "external_id": text("externalId"),
        "body": text("body"),
        "user_mentions": as_json("userMentions"),
        "deleted": flag("deleted"),
        **CHANGE_TIMES,
    },
)
USERS = Table(
    "users",
    object_name="user",
    legacy_role="org.user.read",
    mirrored=True,
    on_request=True,
    page_maximum=500,
    deactivates=True,
    # https://developer.kustomer.com/api/users
    columns={
        "id": RECORD_ID,
        "name": text("name"),
        "display_name": text("displayName"),
        "email": text("email"),
        "user_type": text("userType"),
        "mobile": text("mobile"),
        "avatar_url": text("avatarUrl"),
        "roles": as_json("roles"),
        "role_groups": as_json("roleGroups"),
        "deactivated": flag("deactivated"),
        "deleted_at": time_of("deletedAt"),
        **CHANGE_TIMES,
    },
)
TEAMS = Table(
    "teams",
    object_name="team",
    mirrored=True,
    on_request=True,
    page_maximum=500,
    # https://developer.kustomer.com/api/teams
    columns={
        "id": RECORD_ID,
        "name": text("name"),
        "display_name": text("displayName"),
        "icon": text("icon"),
        "members": as_json("members"),
        "role_groups": as_json("roleGroups"),
        "deleted": flag("deleted"),
        "deleted_at": time_of("deletedAt"),
        **CHANGE_TIMES,
    },
)
TAGS = Table(
    "tags",
    object_name="tag",
    mirrored=True,
    on_request=True,
    columns={
        "id": RECORD_ID,
        "name": text("name"),
        "color": text("color"),
        "deleted": flag("deleted"),
        "deleted_at": time_of("deletedAt"),
        **CHANGE_TIMES,
    },
)


def __map_record(table: Table, record: dict) -> dict[str, Any]:
    """Return the row of a record: a value for every column, in their order."""
    attributes, row = __attributes(record), {}
    for column, _, source, convert, otherwise in table.readers:
        value = record if source is None else attributes.get(source)
        if value is not None:
            value = convert(value)
        while value is None and otherwise:
            _, source, convert, otherwise = otherwise
            if (value := attributes.get(source)) is not None:
                value = convert(value)
        row[column] = value
    return row


def __map_customer_data(record: dict) -> dict[str, Any]:
    """Return the customers row of a record."""
    return __map_record(CUSTOMERS, record)


def __map_company_data(record: dict) -> dict[str, Any]:
    """Return the companies row of a record."""
    return __map_record(COMPANIES, record)


def __map_brand_data(record: dict) -> dict[str, Any]:
    """Return the brands row of a record."""
    return __map_record(BRANDS, record)


def __map_message_data(record: dict) -> dict[str, Any]:
    """Return the messages row of a record."""
    return __map_record(MESSAGES, record)


def get_customers(
    api_key: str,
    last_sync_time: str | None = None,
    configuration: dict | None = None,
    *,
    client: "Client | None" = None,
) -> "Rows":
    """Return the rows of the customers that changed since `last_sync_time`, deleted ones too.

    Nothing is requested before the first row is asked for.

    Args:
        api_key: the Kustomer API key.
        last_sync_time: ISO time of the last sync, or None for a first one, which reaches back
            `initial_sync_days`. The ten minutes before it are read again.
        configuration: the connector's configuration; a setting it lacks has its default.
        client: the connection and settings of a running sync; without it the rows have their own.

    Returns:
        An iterator of rows, each a dict with a value or None for every column. A row may come
        twice; the later one is right. `pages` gives the same rows as pages, which also tell which
        rows are deleted.

    Raises:
        KustomerError: while iterating, when the key lacks a role or Kustomer cannot be read.
        ValueError: while iterating, when the configuration or `last_sync_time` is wrong.
    """
    return __rows(CUSTOMERS, api_key, last_sync_time, configuration, client)


def get_companies(
    api_key: str,
    last_sync_time: str | None = None,
    configuration: dict | None = None,
    *,
    client: "Client | None" = None,
) -> "Rows":
    """Return the rows of the companies that changed since `last_sync_time`.

    Arguments, rows and errors are those of `get_customers`.
    """
    return __rows(COMPANIES, api_key, last_sync_time, configuration, client)


def get_brands(
    api_key: str, configuration: dict | None = None, *, client: "Client | None" = None
) -> "Rows":
    """Return the rows of all brands, the first of them once all have been read.

    Arguments, rows and errors are those of `get_customers`.
    """
    return __rows(BRANDS, api_key, None, configuration, client)


def get_messages(
    api_key: str,
    last_sync_time: str | None = None,
    configuration: dict | None = None,
    *,
    client: "Client | None" = None,
) -> "Rows":
    """Return the rows of the messages that changed since `last_sync_time`, deleted ones too.

    Arguments, rows and errors are those of `get_customers`.
    """
    return __rows(MESSAGES, api_key, last_sync_time, configuration, client)


def get_conversations(
    api_key: str,
    last_sync_time: str | None = None,
    configuration: dict | None = None,
    *,
    client: "Client | None" = None,
) -> "Rows":
    """Return the rows of the conversations that changed since `last_sync_time`, deleted ones too.

    Arguments, rows and errors are those of `get_customers`.
    """
    return __rows(CONVERSATIONS, api_key, last_sync_time, configuration, client)


def get_notes(
    api_key: str,
    last_sync_time: str | None = None,
    configuration: dict | None = None,
    *,
    client: "Client | None" = None,
) -> "Rows":
    """Return the rows of the notes that changed since `last_sync_time`, deleted ones too.

    Arguments, rows and errors are those of `get_customers`.
    """
    return __rows(NOTES, api_key, last_sync_time, configuration, client)


def get_users(
    api_key: str, configuration: dict | None = None, *, client: "Client | None" = None
) -> "Rows":
    """Return the rows of all users, deactivated ones too, the first of them once all have been read.

    Arguments, rows and errors are those of `get_customers`.
    """
    return __rows(USERS, api_key, None, configuration, client)


def get_teams(
    api_key: str, configuration: dict | None = None, *, client: "Client | None" = None
) -> "Rows":
    """Return the rows of all teams, the first of them once all have been read.

    Arguments, rows and errors are those of `get_customers`.
    """
    return __rows(TEAMS, api_key, None, configuration, client)


def get_tags(
    api_key: str, configuration: dict | None = None, *, client: "Client | None" = None
) -> "Rows":
    """Return the rows of all tags, the first of them once all have been read.

    Arguments, rows and errors are those of `get_customers`.
    """
    return __rows(TAGS, api_key, None, configuration, client)


# Every table with the generator of its rows, in the order in which a sync reads them.
GENERATORS: dict[Table, Callable[..., "Rows"]] = {
    CUSTOMERS: get_customers,
    COMPANIES: get_companies,
    BRANDS: get_brands,
    MESSAGES: get_messages,
    CONVERSATIONS: get_conversations,
    NOTES: get_notes,
    USERS: get_users,
    TEAMS: get_teams,
    TAGS: get_tags,
}
TABLES = tuple(GENERATORS)
ADDITIONAL_TABLES = tuple(table.name for table in TABLES if table.on_request)

# --------------------------------------------------------------------------------------------
# Settings
#
# A setting is declared once: its default, what it takes, and the words for the setup form. A
# configuration is checked as a whole, before the first request, and an error never repeats what
# may be a key.
# --------------------------------------------------------------------------------------------

__DEFAULT_ORIGIN = "https://api.kustomerapp.com"
__KUSTOMER_DOMAIN = "kustomerapp.com"
__SHOWN_VALUE_MAX_CHARACTERS = 60
__ALL_TABLES = "all"
__SWITCH_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


def __parse_key(text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ValueError(
            "must not contain spaces, line breaks or characters that no key has; copy the key "
            "again, without 'Bearer'"
        )
    return text


def __parse_number(lowest: int, highest: int, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()) or not lowest <= int(text) <= highest:
        raise ValueError(f"must be a whole number from {lowest} to {highest}")
    return int(text)


def __parse_switch(text: str) -> bool:
    switch = __SWITCH_WORDS.get(text.strip().lower())
    if switch is None:
        raise ValueError("must be true or false (or yes/no, on/off, 1/0)")
    return switch


def __parse_tables(text: str) -> tuple[str, ...]:
    """Return the names of additional tables, in the order of TABLES."""
    words = [word for word in re.split(r"[,\s]+", text.lower()) if word]
    unknown = [word for word in words if word not in (*ADDITIONAL_TABLES, __ALL_TABLES)]
    if unknown:
        raise ValueError(
            f"must be one or more of {', '.join(ADDITIONAL_TABLES)}, separated by commas, or "
            f"{__ALL_TABLES}"
        )
    return tuple(n for n in ADDITIONAL_TABLES if n in words or __ALL_TABLES in words)


def __parse_origin(text: str) -> str:
    """Return the API origin that an address or an organization's name means.

    Source: https://developer.kustomer.com/docs/get-started/regions-and-base-urls.
    """
    text = text.strip()
    problem = ValueError(
        "is not allowed; use https://api.kustomerapp.com (US), https://api.prod2.kustomerapp.com "
        "(EU), https://api.prod4.kustomerapp.com (India), or the name or address of your "
        f"organization on {__KUSTOMER_DOMAIN}. The key is sent nowhere else"
    )
    if re.fullmatch(r"[A-Za-z0-9-]+", text) and text.lower() != "localhost":
        text = f"{text}.{__KUSTOMER_DOMAIN}"
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise problem from None
    if "@" in parts.netloc or not re.fullmatch(r"[a-z0-9.:-]+", host):
        raise problem
    if parts.scheme == "http" and __is_loopback(host):
        return f"http://{parts.netloc.lower()}"
    labels = host[: -len(__KUSTOMER_DOMAIN) - 1].split(".")
    if parts.scheme != "https" or port not in (None, 443):
        raise problem
    if not host.endswith("." + __KUSTOMER_DOMAIN) or not all(labels):
        raise problem
    if "api" not in labels:
        labels.insert(1, "api")
    return f"https://{'.'.join(labels)}.{__KUSTOMER_DOMAIN}"


def __is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Setting(NamedTuple):
    """A configuration key. `parse` reads its text or raises ValueError with what it must be;
    `label` and `description` are the setup form's. `default` None means that it has none."""

    name: str
    parse: Callable[[str], Any]
    default: Any
    label: str
    description: str
    limits: tuple[int, int] | None = None

    def explained(self) -> str:
        """Return the description with the range and the default."""
        notes = []
        if self.limits:
            notes.append("{} to {}.".format(*self.limits))
        if self.default and self.default is not True:
            notes.append(f"Default: {self.default}.")
        return " ".join([self.description, *notes])


def __number(name: str, limits: tuple[int, int], default: int | None, *words: str) -> Setting:
    return Setting(name, partial(__parse_number, *limits), default, *words, limits=limits)


SETTINGS = (
    Setting(
        "api_key",
        __parse_key,
        None,
        "API key",
        "Create it in Kustomer under Settings > Security > API Keys, with the roles to read "
        "customers, companies, brands, messages and any additional tables, and to search.",
    ),
    Setting(
        "base_url",
        __parse_origin,
        __DEFAULT_ORIGIN,
        "Kustomer address",
        "US: https://api.kustomerapp.com. EU: https://api.prod2.kustomerapp.com. "
        "India: https://api.prod4.kustomerapp.com. Or the name or address of your organization.",
    ),
    Setting(
        "additional_tables",
        __parse_tables,
        (),
        "Additional tables",
        f"Which of {', '.join(ADDITIONAL_TABLES)} to read as well: names separated by commas, or "
        f"{__ALL_TABLES}. When empty, none of them. The API key needs the role of each.",
    ),
    __number(
        "initial_sync_days",
        (1, 365),
        90,
        "Days of history",
        "How many days back the first sync looks for changed records.",
    ),
    __number(
        "sync_frequency_hours",
        (1, 168),
        None,
        "Hours between reads of a table",
        "A table that was read less than this many hours ago is left for a later sync. When "
        "empty, every sync reads every table.",
    ),
    __number(
        "max_records_per_page",
        (1, 1000),
        500,
        "Records per page",
        "How many records to request at once. Lists return at most 100, searches at most 500.",
    ),
    __number(
        "api_utilization_percentage",
        (10, 100),
        90,
        "API utilization in percent",
        "Lists wait while more than this share of the organization's requests a minute is used, "
        "by whomever. Searches have a limit of their own.",
    ),
    __number(
        "request_timeout_seconds",
        (1, 300),
        30,
        "Request timeout in seconds",
        "How long to wait for Kustomer to connect, and for each part of its answer.",
    ),
    __number(
        "retry_attempts",
        (0, 10),
        3,
        "Retries",
        "How often a failed request is sent again. Waits for the rate limit do not count.",
    ),
    Setting(
        "enable_incremental_sync",
        __parse_switch,
        True,
        "Incremental sync",
        "On (default): read what changed since the last sync. Off: read everything each time.",
    ),
    Setting(
        "enable_debug_logging",
        __parse_switch,
        False,
        "Debug logging",
        "On: write one log line for each request. Off by default.",
    ),
)
__SETTING = {setting.name: setting for setting in SETTINGS}
__API_KEY = __SETTING["api_key"]


# The checked configuration: its fields are the settings, with their types and defaults.
Settings = make_dataclass(
    "Settings",
    [(setting.name, Any, field(repr=setting is not __API_KEY)) for setting in SETTINGS],
    frozen=True,
)


def validate_configuration(configuration: dict | None) -> Settings:
    """Check the whole configuration and return it with types and defaults.

    Args:
        configuration: the flat dictionary of strings that Fivetran passes. An empty string or an
            untouched `<PLACEHOLDER>` counts as not set.

    Returns:
        Settings with every key typed and within its range.

    Raises:
        ValueError: naming every setting that is wrong, its value (never a key) and what it must be.
    """
    given = configuration or {}
    values, problems = {}, []
    for setting in SETTINGS:
        try:
            values[setting.name] = __setting_value(setting, given)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("The configuration needs changes. " + " ".join(problems))
    return Settings(**values)


def __setting_value(setting: Setting, configuration: dict):
    """Return the typed value of a setting, or raise ValueError with its name, its value where that
    is safe to show, and what it must be."""
    value = configuration.get(setting.name)
    try:
        return __typed_value(setting, value)
    except ValueError as error:
        shown = __safe_to_show(setting, value, configuration.get("api_key"))
        raise ValueError(f"{setting.name}: {shown}{error}.") from None


def __typed_value(setting: Setting, value):
    if isinstance(value, (dict, list)):
        raise ValueError("must be a JSON string")
    given = "" if value is None else str(value)
    if given.strip() and not re.fullmatch(r"<[A-Z0-9_]+>", given.strip()):
        return setting.parse(given)
    if setting is __API_KEY:
        raise ValueError(
            "is required; create a key in Kustomer under Settings > Security > API Keys"
        )
    return setting.default


def __safe_to_show(setting: Setting, value, api_key) -> str:
    """Return the part of a rejected value that is safe to show in an error message."""
    shown = str(value)
    may_be_key = setting is __API_KEY or "eyJ" in shown or "@" in shown
    if may_be_key or (api_key and str(api_key) in shown) or isinstance(value, (dict, list)):
        return ""
    if len(shown) > __SHOWN_VALUE_MAX_CHARACTERS:
        return f"a value of {len(shown)} characters "
    return f"{shown!r} "


def __warn_of_unknown_keys(configuration: dict, warn: Callable[[str], None]) -> None:
    names = [setting.name for setting in SETTINGS]
    for key in configuration:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.0)[0]
            warn(f"Unknown setting {str(key)[:40]!r}. Did you mean {near!r}?")


# --------------------------------------------------------------------------------------------
# Sync
#
# Delivers each table's rows, and saves how far they are safe. A table that fails does not stop
# the others; the sync then ends as failed, and the next one goes on where this one was safe.
# --------------------------------------------------------------------------------------------

__CHECKPOINT_EVERY_ROWS = 5_000
# Two pages of parsed records stay well below this many objects.
__COLLECT_GARBAGE_FROM_OBJECTS = 200_000
__RESET_HINT = (
    "Reset the connection: 'fivetran reset' for a local run, a historical re-sync on Fivetran."
)


def schema(configuration: dict) -> list[dict]:
    """Define the tables that the connector delivers, each with its primary key and all columns.

    Every column is declared, because one that never has a value would not exist otherwise.
    See https://fivetran.com/docs/connectors/connector-sdk/technical-reference#schema.

    Args:
        configuration: the connection's settings; `additional_tables` decides which tables there are.

    Returns:
        A list of tables in Fivetran's form.

    Raises:
        ValueError: when `additional_tables` names a table that does not exist.
    """
    additional = __setting_value(__SETTING["additional_tables"], configuration or {})
    return [
        {
            "table": table.name,
            "primary_key": ["id"],
            "columns": {name: column.type for name, column in table.columns.items()},
        }
        for table in __wanted(additional)
    ]


def __wanted(additional_tables: tuple[str, ...]) -> list[Table]:
    """Return the tables to read: those of every connection, and the additional ones asked for."""
    return [table for table in TABLES if not table.on_request or table.name in additional_tables]


def update(configuration: dict, state: dict) -> None:
    """Bring the destination up to date with Kustomer: Fivetran calls this for every sync.

    See https://fivetran.com/docs/connectors/connector-sdk/technical-reference#update.

    Args:
        configuration: the connection's settings, strings by key; see SETTINGS.
        state: what the last checkpoint saved; empty on a first sync.

    Raises:
        ValueError: when the configuration or the state cannot be used; nothing was requested then.
        KustomerError: after all tables, with the reason of each one that could not be read; at
            once, when the key is not valid or the rate limit leaves nothing.
    """
    settings = validate_configuration(configuration)
    saved = read_state(state, __warn_user)
    __warn_of_unknown_keys(configuration, __warn_user)
    tables = __wanted(settings.additional_tables)
    due = {table: __next_read(table, saved, settings) for table in tables}
    __log(log.info, __plan(due, saved, settings))
    whole, failures = Counts(requests=1), []
    with (
        __quiet_interrupt(),
        open_client(settings, __warn_user) as client,
        __few_garbage_collections(),
    ):
        check_api_key(client)
        for table in tables:
            if due[table]:
                continue
            try:
                whole += __sync_table(client, table, saved, configuration)
            except SyncStoppedError as error:
                raise SyncStoppedError(" ".join([*failures, str(error)])) from None
            except KustomerError as error:
                failures.append(f"{table.name}: {error}")
                __log(
                    log.warning,
                    f"{table.name} could not be read; the sync continues with the other tables.",
                )
    __log(log.info, f"Kustomer sync: {whole}.")
    if failures:
        raise KustomerError(" ".join(failures))


@dataclass
class State:
    """How far each table was read, by its name.

    `last_sync_time` is when a table was last read to its end. `unfinished` is the time up to which
    the changes of a table are safe whose reading was interrupted.
    """

    last_sync_time: dict[str, datetime]
    unfinished: dict[str, datetime]

    def cursor(self, table: Table) -> datetime | None:
        """Return the time since which a table has to be read, or None for all."""
        return self.unfinished.get(table.name) or self.last_sync_time.get(table.name)


def read_state(state: dict | None, warn: Callable[[str], None]) -> State:
    """Return what a state says of the tables that still exist.

    Args:
        state: {"last_sync_time": {table: ISO time}, "unfinished": {table: ISO time}}. A plain ISO
            text as `last_sync_time`, which earlier versions saved, counts for each table that
            they had.
        warn: told of each time that cannot be used; its table starts afresh.

    Raises:
        ValueError: when the state has another shape.
    """
    if not state:
        return State({}, {})
    saved = state.get("last_sync_time") if isinstance(state, dict) else None
    if isinstance(saved, str):
        saved = {table.name: saved for table in __wanted(())}
    unfinished = state.get("unfinished", {}) if isinstance(state, dict) else None
    if not isinstance(saved, dict) or not isinstance(unfinished, dict):
        raise ValueError(
            "The saved state was not written by this connector: it has no last_sync_time for each "
            f"table. {__RESET_HINT}"
        )
    known, latest = State({}, {}), __now() + __OVERLAP
    for table in TABLES:
        given = {
            kind: times[table.name]
            for kind, times in (("last_sync_time", saved), ("unfinished", unfinished))
            if table.name in times
        }
        times = {kind: __parse_time(value) for kind, value in given.items()}
        wrong = [kind for kind, moment in times.items() if moment is None or moment > latest]
        for kind in wrong:
            trouble = "is not a time" if times[kind] is None else "lies in the future"
            warn(f"{table.name}: the saved {kind} {trouble}; the table starts afresh.")
        if not wrong:
            for kind, moment in times.items():
                getattr(known, kind)[table.name] = moment
    return known


def __checkpoint(saved: State) -> None:
    written = {
        kind: {name: __format_time(moment) for name, moment in times.items()}
        for kind, times in vars(saved).items()
    }
    # Makes every row before it safe, and is the state that the next sync starts with.
    op.checkpoint(written)


def __next_read(table: Table, saved: State, settings: Settings) -> datetime | None:
    """Return when a table is due, or None when it is due now."""
    last = saved.last_sync_time.get(table.name)
    if last is None or settings.sync_frequency_hours is None or table.name in saved.unfinished:
        return None
    # Schedulers start a little early at times; the slack keeps them from missing a whole period.
    due = last + timedelta(hours=settings.sync_frequency_hours)
    return due if __now() < due - __OVERLAP else None


def __plan(due: dict[Table, datetime | None], saved: State, settings: Settings) -> str:
    """Return the log line that says what is read of each table, or when it is due."""
    words = []
    for table, next_read in due.items():
        since = saved.cursor(table)
        if next_read:
            words.append(f"{table.name} not before {__format_time(next_read)}")
        elif table.mirrored or not settings.enable_incremental_sync:
            words.append(f"all {table.name}")
        elif since:
            words.append(f"{table.name} changed since {__format_time(since)}")
        else:
            words.append(f"{table.name} changed in the last {settings.initial_sync_days} days")
    return "Kustomer sync: " + ", ".join(words) + "."


def many(number: int, word: str) -> str:
    """Return a number with its noun."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


@dataclass
class Counts:
    """What the log says of a table, or of a whole sync, at its end."""

    upserted: int = 0
    deleted: int = 0
    skipped: int = 0
    unreadable: int = 0
    requests: int = 0
    seconds_waited: float = 0.0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*map(operator.add, astuple(self), astuple(other)))

    def __str__(self) -> str:
        words = [f"{many(self.upserted, 'row')} upserted", f"{self.deleted} deleted"]
        if self.skipped:
            words.append(f"{many(self.skipped, 'record')} without an id skipped")
        if self.unreadable:
            words.append(f"{many(self.unreadable, 'unreadable value')} left empty")
        words += [many(self.requests, "request"), f"{self.seconds_waited:.1f} s waiting"]
        return ", ".join(words)


def __sync_table(client: "Client", table: Table, saved: State, configuration: dict) -> Counts:
    """Deliver what changed in a table, save that it was read, and return its counts."""
    counts = Counts(requests=-client.requests_sent, seconds_waited=-client.seconds_waited)
    began, since = __now(client), saved.cursor(table)
    window = {} if table.mirrored else {"last_sync_time": since and __format_time(since)}
    rows = GENERATORS[table](
        client.settings.api_key, **window, configuration=configuration, client=client
    )
    rows_since_checkpoint, search_again, truncated = 0, False, not table.mirrored
    started = time.monotonic()
    with contextlib.closing(rows):
        for page in rows.pages:
            if page.rows and not truncated:
                # Marks every row as deleted; those that still exist follow and are live again.
                op.truncate(table.name)
                truncated = True
            __deliver(table, page)
            counts += Counts(
                len(page.rows) - len(page.deleted),
                len(page.deleted),
                page.skipped,
                page.unreadable,
            )
            search_again |= page.search_again
            __move_cursor(saved, table, page.safe_until)
            rows_since_checkpoint += len(page.rows)
            # A mirrored table is whole in the destination only once its last row is there.
            if rows_since_checkpoint >= __CHECKPOINT_EVERY_ROWS and not table.mirrored:
                rows_since_checkpoint = 0
                __checkpoint(saved)
            __log_progress(client, table, counts, page, started)
    last = saved.last_sync_time.get(table.name)
    saved.last_sync_time[table.name] = max(began, last) if last else began
    if not search_again:
        saved.unfinished.pop(table.name, None)
    __checkpoint(saved)
    counts += Counts(requests=client.requests_sent, seconds_waited=client.seconds_waited)
    if counts.skipped:
        __warn_user(f"{table.name}: skipped {many(counts.skipped, 'record')} without an id.")
    __log(log.info, f"{table.name}: {counts}.")
    return counts


def __deliver(table: Table, page: "Page") -> None:
    for row in page.rows:
        # Inserts the row, or replaces the one with the same id.
        op.upsert(table.name, row)
    for record_id in page.deleted:
        # Marks the row as deleted. It was upserted before, so that its last values are there.
        op.delete(table.name, {"id": record_id})


def __move_cursor(saved: State, table: Table, safe_until: datetime | None) -> None:
    """Note how far a table is safe; reading the overlap again takes nothing back."""
    cursor = saved.cursor(table)
    if safe_until:
        saved.unfinished[table.name] = max(safe_until, cursor) if cursor else safe_until


@contextlib.contextmanager
def __quiet_interrupt():
    """End the process with one line, without a traceback, when somebody presses Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit("Stopped. The next sync resumes from the last checkpoint.") from None


@contextlib.contextmanager
def __few_garbage_collections():
    """Keep the garbage collector from walking the records of a page over and over while they are
    parsed: they hold no cycles, and that walk takes longer than parsing them."""
    thresholds = gc.get_threshold()
    gc.set_threshold(__COLLECT_GARBAGE_FROM_OBJECTS, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


def __warn_user(message: str) -> None:
    """Show a warning that the user should act on, in the log and on the connection's page."""
    op.warning(message)


def __log_progress(
    client: "Client", table: Table, counts: Counts, page: "Page", began: float
) -> None:
    """Log how far a table is; `began` is the monotonic time at which its reading began."""
    rows = counts.upserted + counts.deleted
    rate = rows / max(time.monotonic() - began, 0.001)
    words = [f"{rows} rows", f"{rate:.0f} rows a second"]
    if page.total is not None and page.total > rows:
        words[0] = f"{rows} of about {page.total} rows"
        words.append(f"about {(page.total - rows) / max(rate, 0.001):.0f} s left")
    if page.safe_until:
        words.append(f"read through {__format_time(page.safe_until)}")
    __log_now_and_then(client, f"{table.name}: {', '.join(words)}.")


# --------------------------------------------------------------------------------------------
# Rows
#
# From a table's pages of records to pages of rows. Decides, in one place, between search and list.
# One page is read while the one before it is delivered.
# --------------------------------------------------------------------------------------------


@dataclass
class Page:
    """A page on its way from Kustomer's answer to the destination.

    `records` are as Kustomer sent them. `more` is whether its links say that more follow, None
    when they say nothing; `total` is how many records Kustomer counts in all. `times` are the
    timestamps of a search's records.

    Reading fills in the rest. `ended`: this is the last page of its list. `safe_until`: once this
    page is delivered, so is every change up to here. `search_again`: this is a list's page, and
    the next sync has to search from `safe_until`. `deleted` has the ids of the rows whose record is
    deleted; `skipped` counts records without an id, `unreadable` values that are not what their
    column takes.
    """

    records: list
    more: bool | None = None
    total: int | None = None
    times: list[datetime] = field(default_factory=list)
    ended: bool = False
    safe_until: datetime | None = None
    search_again: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    deleted: set[str] = field(default_factory=set)
    skipped: int = 0
    unreadable: int = 0

    def safe(self, until: datetime) -> "Page":
        """Return this page, with the time up to which every change is safe once it is delivered."""
        self.safe_until = until
        return self


class Rows:
    """The rows of a table, as an iterator, or page by page as `pages`. Use one of them."""

    def __init__(self, pages):
        self.pages = pages
        self._rows = (row for page in pages for row in page.rows)

    def __iter__(self) -> "Rows":
        return self

    def __next__(self) -> dict[str, Any]:
        return next(self._rows)

    def close(self) -> None:
        """End the reading; nothing more is requested."""
        self.pages.close()


def __rows(
    table: Table,
    api_key: str,
    last_sync_time: str | None,
    configuration: dict | None,
    client: "Client | None",
) -> Rows:
    """Return the rows of a table; warnings of their reading are shown in the caller's thread."""

    def pages() -> Iterator[Page]:
        with contextlib.ExitStack() as stack:
            settings = {**(configuration or {}), "api_key": api_key}
            reader = client or stack.enter_context(open_client(validate_configuration(settings)))
            stack.callback(__show_warnings, reader)
            window = get_time_range(last_sync_time, configuration, now=__now(reader))
            found = __table_pages(reader, table, *map(__parse_time, window.values()))
            if table.mirrored:
                # All are read before the first row leaves, so that a failure truncates nothing.
                found = iter(list(found))
            for page in __read_ahead(reader, map(partial(__make_rows, table), found)):
                __show_warnings(reader)
                yield page

    return Rows(pages())


def __make_rows(table: Table, page: Page) -> Page:
    """Return the page with its rows, and what is to be said of them."""
    for record in page.records:
        row = __map_record(table, record if isinstance(record, dict) else {})
        if row["id"] is None:
            page.skipped += 1
            continue
        page.rows.append(row)
        attributes = __attributes(record)
        for column, source in table.typed:
            if row[column] is None:
                page.unreadable += __text(attributes.get(source)) is not None
        # A record may come twice; the later version decides whether it is deleted.
        page.deleted.discard(row["id"])
        if not table.deactivates and __flag(attributes.get("deleted")):
            page.deleted.add(row["id"])
    return page


def __read_ahead(client: "Client", pages: Iterator[Page]) -> Iterator[Page]:
    """Yield the pages, each while a thread already reads the one after it."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = reader.submit(next, pages, None)
        try:
            while (page := ahead.result()) is not None:
                ahead = reader.submit(next, pages, None)
                yield page
        except (GeneratorExit, KeyboardInterrupt):
            client.closed.set()
            raise


def __table_pages(
    client: "Client", table: Table, start: datetime, end: datetime
) -> Iterator[Page]:
    """Yield a table's pages by search where that works, else from its list."""
    incremental = client.settings.enable_incremental_sync and not table.mirrored
    listed, trouble, reached = __list_pages(client, table), None, start
    searched = bool(table.search) and incremental
    if searched and not table.search_is_documented:
        first = next(listed)
        searched = not first.ended and __search_knows(client, table, first, start, end)
        # The list goes on behind its first page, or search takes its place.
        listed = itertools.chain([first], listed)
    if searched:
        try:
            for page in __search_pages(client, table, start, end):
                reached = page.safe_until
                yield page
            return
        except SearchUnusableError as error:
            trouble = error
    for page in listed:
        if trouble:
            # Not before the first page came: a key that lacks the table's own role is refused by
            # search as well, and the list's error names that role.
            client.warnings.append(__search_warning(table, trouble))
            page.search_again = not isinstance(trouble, SearchRefusedError)
            page.safe_until = reached if page.search_again else None
            trouble = None
        if incremental:
            page.records = [record for record in page.records if __changed_since(record, start)]
        yield page


def __search_knows(
    client: "Client", table: Table, page: Page, start: datetime, end: datetime
) -> bool:
    """Return whether search finds the record of a page that was updated last, by that time."""
    times = {__record_id(record): __updated_at(record) for record in page.records}
    known = {record_id: at for record_id, at in times.items() if record_id and at}
    if not known or start < end - __SEARCH_HORIZON:
        return False
    newest = max(known, key=lambda record_id: known[record_id])
    moment = __whole_milliseconds(known[newest])
    search = Search(client, table, end, settled=end - __OVERLAP)
    try:
        found = __search(search, Slice(moment, __later(moment, __MILLISECOND)))
    except SearchUnusableError:
        return False
    return newest in map(__record_id, found.records)


def __search_warning(table: Table, trouble: SearchUnusableError) -> str:
    if isinstance(trouble, SearchRefusedError):
        consequence = (
            f"Until this changes, every sync reads the whole list of {table.name}, which takes "
            "more requests and may not show deletions."
        )
    else:
        consequence = (
            f"This sync reads the whole list of {table.name} instead, which may not show "
            "deletions; the next sync resumes the search where it stopped."
        )
    return f"{table.name}: {str(trouble).rstrip('.')}. {consequence}"


def __changed_since(record, start: datetime) -> bool:
    """Return whether a record was updated at or after `start`, or does not say when."""
    updated = __updated_at(record)
    return updated is None or updated >= start


def __new_records(page: Page, seen: set) -> list:
    return [record for record in page.records if __version(record) not in seen]


def __page(path: str, payload: dict) -> Page:
    """Return the page that an answer holds; raise KustomerError when it holds none.

    Source: https://developer.kustomer.com/docs/concepts/pagination.
    """
    records, meta, links = (payload.get(name) for name in ("data", "meta", "links"))
    if not isinstance(records, list):
        raise KustomerError(f"{path} answered without a list of records in 'data'.")
    total = meta.get("total") if isinstance(meta, dict) else None
    return Page(
        records,
        more=bool(links["next"]) if isinstance(links, dict) and "next" in links else None,
        total=total if type(total) is int else None,
    )


def __versions(page: Page) -> set:
    return set(map(__version, page.records))


# --------------------------------------------------------------------------------------------
# Search
#
# Finds every record that changed since a time, deleted ones too, whether or not search sorts, and
# whatever changes meanwhile. Raises SearchUnusableError where search cannot be relied on; the
# pages yielded before are right, and so is their `safe_until`.
# Source: https://developer.kustomer.com/api/core-resources/create-customer-search.
# --------------------------------------------------------------------------------------------

__SEARCH_PATH = "/v1/customers/search"
__SEARCH_ROLE = "org.permission.search.create (legacy org.user.search.read)"
__SEARCH_REFUSALS = frozenset({400, 401, 403, 404, 405, 422})
# https://developer.kustomer.com/docs/concepts/search, read 2026-11-23: at most 500 records a page
# and 100 pages a query, and only records updated in the last two years.
__SEARCH_PAGE_MAX_RECORDS = 500
__SEARCH_MAX_PAGES = 100
__SEARCH_HORIZON = timedelta(days=2 * 365)
# Counts end here for some clients; a count that high may hide more records.
__SEARCH_MAX_COUNT = 10_000
# A slice is cut so that a page has room for records that are not spread evenly.
__SLICE_SHARE_OF_PAGE = 0.6
__SLICE_MAX_PARTS = 100
# A slice whose page lies in less than this fraction of it is cut around the page.
__SLICE_CROWDED = 100
# Stop after this many searches in a row without a new record: cutting does not help then.
__SEARCH_MAX_EMPTY = 500
# So many searches are under way at once, with so many pages waiting for those before them.
__SEARCH_READERS = 4
__SEARCH_MAX_PAGES_HELD = 12
# What follows a sorted page is shared out when there are more than so many pages, as slices of so
# many pages, as long as no more searches were in vain than this: some, and a share of the others.
__SHARED_FROM_PAGES = 10
__SHARED_PAGES_OF_SLICE = 2.5
__SHARED_SPARE_SEARCHES = 7
__SHARED_SPARE_SHARE = 0.25
__MILLISECOND = timedelta(milliseconds=1)
__DAY = timedelta(days=1)


class Slice(NamedTuple):
    """The changes from `low` up to, not including, `high`; without an end where that is None.

    More records of one moment than a page holds are read page by page: `number` is the next page,
    and `first_page` has the versions on page 1.
    """

    low: datetime
    high: datetime | None = None
    number: int = 1
    first_page: frozenset = frozenset()


@dataclass
class Search:
    """The search for one table's changes.

    `sorts` is whether search sorts, once known, and `total` how many records it counted at first.
    `searches` counts requests, `records` what came on pages that were used, and `without_news` the
    readings since the last one that found something new.

    `settled` is a time of which the search index has caught up with every change before: a record
    may show a later time than the one it was found by, but never one before `settled`.
    """

    client: "Client"
    table: Table
    end: datetime
    settled: datetime
    sorts: bool | None = None
    total: int | None = None
    searches: int = 0
    records: int = 0
    without_news: int = 0


def __search_pages(
    client: "Client", table: Table, start: datetime, end: datetime
) -> Iterator[Page]:
    """Yield pages of every record changed since `start`, in the order of their slices.

    There is no upper end: records dated ahead of the clock arrive as well.
    """
    if start < end - __SEARCH_HORIZON:
        raise SearchRefusedError("search covers only records updated in the last two years")
    search = Search(client, table, end, settled=end - __OVERLAP)
    delivered: dict[tuple, datetime] = {}
    for page in __slices_in_order(search, Slice(__whole_milliseconds(start))):
        versions = list(map(__version, page.records))
        pairs = zip(page.records, versions)
        page.records = [record for record, version in pairs if version not in delivered]
        # What is not safe yet may come again.
        delivered.update(zip(versions, page.times))
        delivered = {version: at for version, at in delivered.items() if at >= page.safe_until}
        search.without_news = 0 if page.records else search.without_news
        page.safe_until, page.total = min(page.safe_until, end), search.total
        yield page


def __slices_in_order(search: Search, first: Slice) -> Iterator[Page]:
    """Yield the pages of a slice, in the order of their times, reading several at once.

    The line holds, in that order, slices to read, readings under way (futures), and pages. A
    reading that has ended leaves its page and the slices that follow from it in its place.
    """
    line: list[Slice | Future | Page] = [first]
    with __readers(search.client) as readers:
        while line:
            __start_readings(search, readers, line)
            if isinstance(line[0], Page):
                # One at a time: the readers go on while it is delivered.
                yield line.pop(0)
            else:
                wait(filter(__is_under_way, line), return_when=FIRST_COMPLETED)
            line = [found for entry in line for found in __found(search, entry, line[0])]


@contextlib.contextmanager
def __readers(client: "Client") -> Iterator[ThreadPoolExecutor]:
    """Yield the threads that search; at the end those still at work give up."""
    readers = ThreadPoolExecutor(max_workers=__SEARCH_READERS)
    try:
        yield readers
    finally:
        was_closed = client.closed.is_set()
        client.closed.set()
        readers.shutdown(cancel_futures=True)
        if not was_closed:
            client.closed.clear()


def __is_under_way(entry: Slice | Future | Page) -> bool:
    return isinstance(entry, Future) and not entry.done()


def __start_readings(
    search: Search, readers: ThreadPoolExecutor, line: list[Slice | Future | Page]
) -> None:
    """Start reading the first slices of the line, as many as there are readers and room for."""
    idle = __SEARCH_READERS - sum(map(__is_under_way, line))
    room = __SEARCH_MAX_PAGES_HELD - sum(not isinstance(entry, Slice) for entry in line)
    for place, entry in enumerate(line):
        failed = isinstance(entry, Future) and entry.done()
        if failed or not idle or (place and not room):
            return
        # What changes meanwhile moves to the end of time, which is therefore read last.
        if isinstance(entry, Slice) and (entry.high or not place):
            line[place] = readers.submit(__read_slice, search, entry)
            idle, room = idle - 1, room - 1


def __found(
    search: Search, entry: Slice | Future | Page, first: Slice | Future | Page
) -> list[Slice | Future | Page]:
    """Return what takes an entry's place in the line. A reading that failed stays, until it is the
    first: what comes before it is right."""
    if (
        not isinstance(entry, Future)
        or not entry.done()
        or (entry.exception() and entry is not first)
    ):
        return [entry]
    pages, slices = entry.result()
    search.without_news += 1
    if search.without_news > __SEARCH_MAX_EMPTY:
        raise SearchUnusableError(f"{search.without_news} searches in a row returned nothing new")
    return [*pages, *slices]


def __read_slice(search: Search, part: Slice) -> tuple[list[Page], list[Slice]]:
    """Return what is certain of a slice, at most one page, and the slices that are left of it.

    A slice that one page holds is delivered; of any other, what is certain, and the rest becomes
    slices again. Records that change meanwhile move to later slices, so that none is missed.
    """
    page = __search(search, part, part.number)
    if part.first_page:
        pages, slices = __moment_page(part, page)
    elif not __more_match(search, part, page):
        pages, slices = [page.safe(part.high or search.end)], []
    elif part.high and part.high - part.low <= __MILLISECOND:
        pages, slices = [], [__last_page_of_moment(part, page)]
    elif __sorts(search, part, page):
        pages, slices = __walk(search, part, page)
    else:
        pages, slices = [], __cut(search, part, page)
    with search.client.lock:
        search.records += sum(len(page.records) for page in pages)
    return pages, slices


def __walk(search: Search, part: Slice, page: Page) -> tuple[list[Page], list[Slice]]:
    """Return the first page of a sorted slice, and the slices that follow it."""
    low, high = part.low, part.high
    settled = [at for at in page.times if at < search.settled]
    recent = []
    if low < search.settled and len(settled) < len(page.times):
        # Some records were updated just now, and may have been found by an earlier time. So recent
        # changes are read apart.
        if high is None or high > search.settled:
            recent = [Slice(search.settled, high)]
            high = search.settled
            if not settled:
                return [], [Slice(low, high), *recent]
        elif not settled:
            return [], __cut(search, part, page)
    times = settled or page.times
    # Not the last one: its place in the index may be older than what it shows.
    resume = times[-2] if len(times) > 1 else times[-1]
    if resume > times[0]:
        rest = __shared_out(search, Slice(resume, high), page, resume - times[0])
    else:
        after = __later(resume, __MILLISECOND)
        rest = [Slice(resume, after)]
        if high is None or high > after:
            rest.append(Slice(after, high))
    return [page.safe(resume)], rest + recent


def __shared_out(search: Search, rest: Slice, page: Page, span: timedelta) -> list[Slice]:
    """Return what follows a sorted page as slices that can be read at the same time, when there is
    so much of it, else as one slice.

    `span` is the time that the page covers. The slices are of equal length, a few pages each, by
    the count of the whole; where the page is more crowded than that, by the page itself, and then
    only as many as may turn out empty.
    """
    size, last = len(page.records), rest.high or search.settled
    if page.total is None or page.total <= __SHARED_FROM_PAGES * size or last <= rest.low:
        return [rest]
    pages = (page.total - size) / size / __SHARED_PAGES_OF_SLICE
    crowded = 2 * span * __SHARED_PAGES_OF_SLICE
    length = max(min((last - rest.low) / pages, crowded), __MILLISECOND)
    slices = min(math.ceil((last - rest.low) / length), __SLICE_MAX_PARTS)
    useful = search.records / size
    in_vain = search.searches - useful
    spare = int(__SHARED_SPARE_SEARCHES + __SHARED_SPARE_SHARE * useful - in_vain)
    if length == crowded or spare < 2:
        slices = min(slices, spare)
    edges = [__whole_milliseconds(rest.low + place * length) for place in range(slices)]
    edges = [rest.low, *edges[1:], last if rest.high is None else rest.high]
    if rest.high is None:
        edges.append(None)
    return [Slice(*pair) for pair in zip(edges, edges[1:])] if slices > 1 else [rest]


def __later(moment: datetime, span: timedelta) -> datetime:
    try:
        return moment + span
    except OverflowError:
        raise SearchUnusableError("search returned too many records of the year 9999") from None


def __last_page_of_moment(moment: Slice, first: Page) -> Slice:
    """Return the last page of more records than one page holds that share one updatedAt.

    Updating a record moves it to a later timestamp, so a past timestamp only ever loses records,
    and those behind a lost one move towards the first page. Read from the last page to the first,
    they move onto pages still to come.
    """
    count = first.total
    if count is None or count >= __SEARCH_MAX_COUNT:
        raise SearchUnusableError(
            f"{__SEARCH_MAX_COUNT} or more records share one updatedAt"
            if count
            else "search does not count records that share one updatedAt"
        )
    last = math.ceil(count / len(first.records))
    if last > __SEARCH_MAX_PAGES:
        raise SearchUnusableError(
            f"more than {__SEARCH_MAX_PAGES} pages of records share one updatedAt"
        )
    return moment._replace(number=last, first_page=frozenset(__versions(first)))


def __moment_page(moment: Slice, page: Page) -> tuple[list[Page], list[Slice]]:
    """Return a page of the records that share one updatedAt, and the page before it, if any."""
    if moment.number == 1:
        return [page.safe(moment.high)], []
    if not moment.first_page.isdisjoint(__versions(page)):
        raise SearchUnusableError("search returned the same record on two pages")
    return [page.safe(moment.low)], [moment._replace(number=moment.number - 1)]


def __cut(search: Search, part: Slice, page: Page) -> list[Slice]:
    """Return the slices that an unsorted slice is cut into: as many equal ones as Kustomer's count
    calls for. Nothing of its page is certain."""
    low, high = part.low, part.high
    if page.total is None:
        raise SearchUnusableError("search neither sorts nor counts what it finds")
    first, last = min(page.times), max(page.times)
    inside = high is None or last < high
    if inside and (last - first) * __SLICE_CROWDED < (high or search.end) - low:
        # All of this page lies in a small part of the slice, and so may all of the slice.
        edges = [low, first, __later(last, __MILLISECOND), high]
    else:
        edges = __equal_parts(search, part, page)
    pairs = [pair for pair in zip(edges, edges[1:]) if pair[1] is None or pair[0] < pair[1]]
    return [Slice(*pair) for pair in pairs]


def __equal_parts(search: Search, part: Slice, page: Page) -> list[datetime | None]:
    """Return the edges of the parts that an unsorted slice is cut into."""
    low, high = part.low, part.high
    if high is None:
        # Records dated ahead of the clock lie in steps that grow.
        known = [at for at in (search.settled, search.end) if at > low]
        high = known[0] if known else __later(low, max(__DAY, low - search.end))
    wanted = math.ceil(page.total / (__SLICE_SHARE_OF_PAGE * len(page.records)))
    parts = min(max(wanted, 2), __SLICE_MAX_PARTS)
    step = max((high - low) // __MILLISECOND // parts, 1) * __MILLISECOND
    edges = [low + place * step for place in range(parts) if low + place * step < high]
    return [*edges, high] if part.high else [*edges, high, None]


def __more_match(search: Search, part: Slice, page: Page) -> bool:
    """Return whether more records match than a slice's first page holds.

    Where the count speaks against the links, or neither says anything, the second page tells.
    """
    counted_all = page.total is not None and page.total <= len(page.records)
    if page.more or counted_all or (page.more is False and page.total is None):
        more = bool(page.more)
    else:
        second = __search(search, part, 2)
        more = bool(__versions(second) - (__versions(page) if page.total is None else set()))
    if more and not page.records:
        raise SearchUnusableError("search returned an empty page and said that more records match")
    return more


def __sorts(search: Search, part: Slice, page: Page) -> bool:
    """Return whether a slice's first page is sorted.

    Kustomer documents sorting for customers only, and an index in order of insertion gives pages
    that ascend by chance. So search has to show once that it sorts: the same query in descending
    order must begin with another record, later than all of the ascending page.
    """
    if search.sorts is None:
        search.sorts = __ascends(page.times) and __begins_later(search, part, page)
    return search.sorts and __ascends([at for at in page.times if at < search.settled])


def __begins_later(search: Search, part: Slice, page: Page) -> bool:
    last = __search(search, part, order="desc")
    return (
        search.sorts is not False
        and bool(last.times)
        and __ascends(last.times[::-1])
        and last.times[0] > page.times[-1]
        and __record_id(last.records[0]) not in map(__record_id, page.records)
    )


def __ascends(times: list) -> bool:
    return not any(map(operator.gt, times, times[1:]))


def __search(search: Search, part: Slice, number: int = 1, order: str = "asc") -> Page:
    """Request one page of a slice, with the times of its records.

    Raises SearchUnusableError when search refuses, fails, or gives records from outside.
    """
    attribute = f"{search.table.search}_updated_at"
    bounds = {"gte": part.low, "lt": part.high}
    body = {
        "and": [{attribute: {name: __format_time(at)}} for name, at in bounds.items() if at],
        "sort": [{attribute: order}],
        "queryContext": search.table.search,
        "includeDeleted": True,
    }
    if search.sorts is False:
        del body["sort"]
    size = __page_size(search.client, __SEARCH_PAGE_MAX_RECORDS)
    with search.client.lock:
        search.searches += 1
    try:
        page = __page(
            __SEARCH_PATH,
            execute_api_request(
                __SEARCH_PATH,
                search.client.settings.api_key,
                {"page": number, "pageSize": size},
                body=body,
                client=search.client,
                purpose=__purpose(search, part, number, order),
            ),
        )
    except RefusedError as error:
        if error.status == 400 and "sort" in body:
            search.sorts = False
            return __search(search, part, number)
        raise __search_refusal(error) from None
    except SyncStoppedError:
        raise
    except KustomerError as error:
        raise SearchUnusableError(str(error)) from None
    page.times = __times_inside(search, part, page.records)
    if search.total is None:
        search.total = page.total
    return page


def __purpose(search: Search, part: Slice, number: int, order: str) -> str:
    """Return what the log calls a search."""
    words = [f"{search.table.name}: search from {__format_time(part.low)}"]
    if part.high:
        words.append(f"to {__format_time(part.high)}")
    if number > 1:
        words.append(f"page {number}")
    if order == "desc":
        words.append("from the last")
    return " ".join(words)


def __times_inside(search: Search, part: Slice, records: list) -> list[datetime]:
    """Return when each record was updated, to the millisecond; raise SearchUnusableError for a
    record that does not say or does not belong into the slice.

    One that was updated just now may have been found by the time before.
    """
    times = list(map(__updated_at, records))
    if None in times:
        raise SearchUnusableError("search returned a record without a readable updatedAt")
    times = [at if at.microsecond % 1000 == 0 else __whole_milliseconds(at) for at in times]
    low, high = part.low, part.high
    late = [at for at in times if high <= at < search.settled] if high else []
    if late or times and min(times) < low:
        raise SearchUnusableError("search returned records outside the requested times")
    return times


def __search_refusal(error: RefusedError) -> SearchRefusedError:
    if error.status not in __SEARCH_REFUSALS:
        raise error
    refusal = f"search was refused with {error.status} ({error.reason})"
    if error.status in __MISSING_ROLE_STATUSES:
        refusal += f": the API key lacks the role {__SEARCH_ROLE}. {__NEW_KEY}"
    return SearchRefusedError(refusal)


# --------------------------------------------------------------------------------------------
# Lists
#
# Reads a whole list page by page, though records that leave it move the ones behind them up, and
# whatever the server makes of page sizes. Says so where records may be missing.
# Source: https://developer.kustomer.com/docs/concepts/pagination.
# --------------------------------------------------------------------------------------------

# Pages of fewer records hardly overlap the page before them.
__PAGE_MIN_RECORDS = 20
# Observed by other clients, not documented: lists that end here although there is more.
__LIST_MAX_COUNT = 10_000
# https://developer.kustomer.com/api/users, read 2026-11-23: the users that are not active.
__DEACTIVATED = {"deleted": "true"}
# When a page does not overlap the one before, reading goes back by so many pages, one after the
# other; after the last one a gap is accepted.
__LIST_STEPS_BACK = (0, 4, 32)
# How many records of a list are remembered: more than the longest way back.
__LIST_REMEMBERED_RECORDS = 6_400
# Stop after this many consecutive pages without a new record: the list is not going to end.
__LIST_MAX_EMPTY_PAGES = 40
__BAD_REQUESTS = frozenset({400, 422})
__MISSING_ROLE_STATUSES = frozenset({401, 403})
# https://developer.kustomer.com/docs/get-started/quickstart, read 2026-11-23.
__NEW_KEY = (
    "Create a key with this role added, under Settings > Security > API Keys; the roles of a key "
    "cannot be changed."
)


@dataclass
class Listing:
    """A list that is being read. `params` are sent with each request, `recent` are the versions of
    the records that were read last, and `order` has them in the order of reading."""

    client: "Client"
    table: Table
    params: dict[str, str] = field(default_factory=dict)
    recent: set = field(default_factory=set)
    order: deque = field(default_factory=deque)
    pages_without_news: int = 0


def __list_pages(client: "Client", table: Table) -> Iterator[Page]:
    """Yield every page of a table's list, at least one; some records come twice.

    Raises KustomerError when the key may not read the list, or when it does not end.
    """
    if not table.deactivates:
        yield from __pages_of(client, table, {})
        return
    active = set()
    for page in __pages_of(client, table, {}):
        for record in page.records:
            active.add(__record_id(record))
            __attributes(record)["deactivated"] = False
        yield page
    # With no active record at all the answer is wrong, and the table must not lose them.
    for page in __pages_of(client, table, __DEACTIVATED) if active else ():
        for record in page.records:
            attributes = __attributes(record)
            # On both lists: deactivated in between, or the parameter was ignored.
            marked = bool(attributes.get("deletedAt")) or __flag(attributes.get("deleted")) is True
            attributes["deactivated"] = marked or __record_id(record) not in active
        yield page


def __pages_of(client: "Client", table: Table, params: dict[str, str]) -> Iterator[Page]:
    """Yield every page of one list, whatever the server makes of page sizes."""
    try:
        yield from __overlapping_pages(Listing(client, table, params))
    except PageSizeError:
        yield from __numbered_pages(Listing(client, table, params))


def __overlapping_pages(listing: Listing) -> Iterator[Page]:
    """Yield the pages of a list, each placed to begin on the last records of the page before.

    When a record leaves the list, those behind it move up, and the first of the next page moves
    onto one already read. A page that overlaps what was read misses none of them.

    Raises PageSizeError when the server has other ideas of page sizes.
    """
    limit = __page_size(listing.client, listing.table.page_maximum)
    reached, began, margin, misses, warned = 0, 0, 1, 0, False
    while True:
        number, size = __overlapping_page(max(reached - margin + 1, 0) if reached else 0, limit)
        page = __sized_page(listing, number, size)
        joins = number == 1 or not listing.recent.isdisjoint(__versions(page))
        if not joins and misses < len(__LIST_STEPS_BACK):
            # Records leave faster than before: go back, and let the pages overlap more.
            margin = min(margin * 4, limit // 4)
            reached = max(began - __LIST_STEPS_BACK[misses] * limit, 0) + margin
            misses += 1
            continue
        if not joins and not warned:
            warned = True
            listing.client.warnings.append(
                f"{listing.table.name}: so many records left the list while it was read that some "
                "others may have been missed. They arrive once they change, or with a re-sync."
            )
        if joins and misses and page.more is None:
            # Having gone back, there is more to come.
            page.more = True
        began = (number - 1) * size
        reached = began + len(page.records)
        __take_new(listing, page, reached)
        misses = 0 if page.records else misses
        yield page
        if page.ended:
            return


def __overlapping_page(reached: int, limit: int) -> tuple[int, int]:
    """Return number and size of the page that holds the last of the `reached` first records of a
    list, and goes furthest beyond it."""
    if not reached:
        return 1, limit
    sizes = range(1, limit + 1)
    size = max(sizes, key=lambda size: ((reached - 1) // size + 1) * size)
    return (reached - 1) // size + 1, size


def __sized_page(listing: Listing, number: int, size: int) -> Page:
    """Return a page, or raise PageSizeError when it is not one of the size asked for."""
    try:
        page = __list_page(listing, number, size)
    except RefusedError as error:
        if error.status not in __BAD_REQUESTS or __takes_size(listing, number, size):
            raise
        raise PageSizeError from None
    short = len(page.records) < size
    if short and page.records and page.more is None:
        # Nothing says whether this is the end or all that the server gives at once.
        after = __list_page(listing, number + 1, size)
        page.more = not __versions(after) <= __versions(page)
    if len(page.records) > size or short and page.more:
        raise PageSizeError
    return page


def __takes_size(listing: Listing, number: int, size: int) -> bool:
    """Return whether a list has a first page of this size."""
    try:
        return number > 1 and bool(__list_page(listing, 1, size))
    except RefusedError:
        return False


def __numbered_pages(listing: Listing) -> Iterator[Page]:
    """Yield the pages of a list one after the other, of whatever size the server gives."""
    number, read, page = 0, 0, Page([])
    while not page.ended:
        number += 1
        if number == 2:
            listing.client.warnings.append(
                f"{listing.table.name}: Kustomer does not return pages of the size asked for, so "
                "that records may be missed when others leave the list while it is read. They "
                "arrive once they change, or with a re-sync."
            )
        page = __list_page(listing, number)
        read += len(page.records)
        __take_new(listing, page, read)
        yield page


def __take_new(listing: Listing, page: Page, read: int) -> None:
    """Leave only new records on a page, and note whether the list ends with it.

    `read` counts the records up to the end of this page. Without links, a page that brings nothing
    new is the end.
    """
    table, recent, order = listing.table, listing.recent, listing.order
    page.records = __new_records(page, recent)
    for version in map(__version, page.records):
        recent.add(version)
        order.append(version)
    while len(order) > __LIST_REMEMBERED_RECORDS:
        recent.discard(order.popleft())
    listing.pages_without_news = 0 if page.records else listing.pages_without_news + 1
    if listing.pages_without_news > __LIST_MAX_EMPTY_PAGES:
        raise KustomerError(
            f"GET {table.path} returned {__LIST_MAX_EMPTY_PAGES} pages in a row without a new "
            f"record and without an end; the list of {table.name} cannot be read."
        )
    page.ended = not (page.records if page.more is None else page.more)
    if page.ended:
        __warn_of_shortfall(listing, page.total, read)


def __warn_of_shortfall(listing: Listing, total: int | None, read: int) -> None:
    name = listing.table.name
    if total is not None and total > read:
        found = f"Kustomer counts {total} records, its list ended after {read}"
    elif total is None and read == __LIST_MAX_COUNT:
        found = f"the list ended after exactly {read} records, which may not be all"
    else:
        return
    remedy = (
        f"Use a key with the role {__SEARCH_ROLE}, so that changes are found by search."
        if listing.table.search and listing.table.search_is_documented
        else "Ask Kustomer how to read the others."
    )
    listing.client.warnings.append(f"{name}: {found}. {remedy}")


def __list_page(listing: Listing, number: int, size: int | None = None) -> Page:
    """Request one page of a list; without a size, of the server's own."""
    client, table = listing.client, listing.table
    params = {**listing.params, "page": number, **({"pageSize": size} if size else {})}
    try:
        return __page(
            table.path,
            execute_api_request(
                table.path,
                client.settings.api_key,
                params,
                client=client,
                purpose=f"{table.name}: list page {number}",
            ),
        )
    except RefusedError as error:
        if error.status not in __MISSING_ROLE_STATUSES:
            raise
        refusal = error
    # A key that died meanwhile is refused in the same words.
    check_api_key(client)
    raise KustomerError(f"{refusal}. The API key lacks the role {table.role}. {__NEW_KEY}")


# --------------------------------------------------------------------------------------------
# Requests
#
# One exchange with Kustomer: sent, waited for, retried, and read as JSON. The key goes to the
# configured host only, and into no log line and no error.
# --------------------------------------------------------------------------------------------

__KEY_PATH = "/v1/users/current"
__BACKOFF_BASE_SECONDS = 1.0
__BACKOFF_MAX_SECONDS = 60.0
__RATE_LIMIT_MAX_WAIT_SECONDS = 120.0
__RATE_LIMIT_MAX_TOTAL_SECONDS = 900.0
# Clients that wait for the same reset must not all come back in the same instant.
__RATE_LIMIT_JITTER_SHARE = 0.05
# How long lists wait when an answer does not say when the limit is reset.
__SHARE_WAIT_SECONDS = 5.0
# x-ratelimit-reset: at or above the first value it is epoch milliseconds, at or above the second
# epoch seconds, below it seconds left.
__EPOCH_MILLISECONDS_FROM = 1e11
__EPOCH_SECONDS_FROM = 1e8
# An answer has to be whole within this many request timeouts.
__ANSWER_MAX_TIMEOUTS = 10
__READ_BYTES = 128 * 1024
__API_MESSAGE_MAX_CHARACTERS = 300
__LOG_EVERY_SECONDS = 30.0
# What a failed exchange says, by the first of these that is among its exception's causes.
__NETWORK_CAUSES = (
    (socket.gaierror, "its name was not found"),
    (ssl.SSLCertVerificationError, "its certificate was not accepted"),
    (ssl.SSLError, "no secure connection could be made"),
    (requests.exceptions.ProxyError, "the proxy did not answer"),
    (ConnectionRefusedError, "it refused the connection"),
    (requests.exceptions.Timeout, "it timed out"),
    (TimeoutError, "it timed out"),
    (ConnectionError, "the connection broke"),
)


class BearerAuth(requests.auth.AuthBase):
    """Puts the API key on a request. As an auth object it also keeps a .netrc from replacing it."""

    def __init__(self, api_key: str):
        self._header = f"Bearer {api_key}"

    def __call__(self, request):
        request.headers["Authorization"] = self._header
        return request


@dataclass
class Client:
    """What the requests of one sync share: the connection, the settings and the counts. Several
    threads use it; `lock` is for its counts.

    `warn` shows a warning that the user should act on, and `warnings` holds those of the reading
    thread until the main thread shows them. `clock_ahead` is how far this machine's clock is ahead
    of Kustomer's, None before the first answer. `closed` ends the waits and retries of what is
    being read ahead when nobody wants it any more.

    `gate` is held while a request waits for the rate limit, so that no other is sent meanwhile, and
    `waits_ended` counts these waits. Lists wait until `share_used_until`, a monotonic time.
    """

    session: requests.Session
    settings: Settings
    warn: Callable[[str], None]
    warnings: deque[str] = field(default_factory=deque)
    requests_sent: int = 0
    seconds_waited: float = 0.0
    clock_ahead: timedelta | None = None
    closed: threading.Event = field(default_factory=threading.Event)
    last_log_at: float = field(default_factory=lambda: time.monotonic())
    lock: threading.Lock = field(default_factory=threading.Lock)
    gate: threading.Lock = field(default_factory=threading.Lock)
    waits_ended: int = 0
    share_used_until: float = 0.0


@contextlib.contextmanager
def open_client(settings: Settings, warn: Callable[[str], None] | None = None):
    """Yield a Client with one keep-alive session, closed at the end."""
    with requests.Session() as session:
        session.auth = BearerAuth(settings.api_key)
        session.headers["Accept"] = "application/json"
        session.headers["User-Agent"] = f"fivetran-kustomer-connector/{VERSION}"
        # A proxy of the environment is for the world outside, not for a mock on this machine.
        session.trust_env = settings.base_url.startswith("https://")
        client = Client(session, settings, warn or partial(__log, log.warning))
        try:
            yield client
        finally:
            client.closed.set()


def __show_warnings(client: Client) -> None:
    while client.warnings:
        client.warn(client.warnings.popleft())


def __log(write: Callable[[str], None], message: str) -> None:
    """Write a log line during a sync. Outside of one the SDK has no log, and there is none."""
    if log.LOG_LEVEL is not None:
        write(message)


def __log_now_and_then(client: Client, message: str, silence_ahead: float = 0.0) -> None:
    """Log at most one line per 30 seconds, and one before any longer wait.

    Args:
        silence_ahead: seconds for which nothing else is going to happen.
    """
    silent_until = time.monotonic() + silence_ahead
    if silent_until - client.last_log_at >= __LOG_EVERY_SECONDS:
        client.last_log_at = silent_until
        __log(log.info, message)


def check_api_key(client: Client) -> None:
    """Return when the API key is valid.

    Raises:
        SyncStoppedError: when Kustomer does not know the key in this region.

    Source: https://developer.kustomer.com/docs/get-started/authentication.
    """
    try:
        execute_api_request(__KEY_PATH, client.settings.api_key, client=client)
    except RefusedError as error:
        if error.status in (404, 405):
            return
        if error.status not in __MISSING_ROLE_STATUSES:
            raise
        raise SyncStoppedError(
            f"api_key: {client.settings.base_url} refused the key with {error.status} "
            f"({error.reason}). It is invalid, expired or of another region: check api_key (and "
            "its IP restriction), and set base_url to the region of the organization."
        ) from None


def __page_size(client: Client, maximum: int) -> int:
    return max(__PAGE_MIN_RECORDS, min(client.settings.max_records_per_page, maximum))


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
    """Send one request, wait and retry as its answers ask for, and return the parsed JSON.

    429 is waited out as the answer's headers say, for at most fifteen minutes. Timeouts, broken
    connections, 5xx, answers that are not a JSON object and partial answers are retried
    `retry_attempts` times, and so is a 401 or 403 that is not Kustomer's own.

    Args:
        endpoint: path, beginning with /v1.
        api_key: the Kustomer API key.
        params: query parameters.
        configuration: the connector's configuration; used when there is no `client`.
        body: a JSON body; a request that has one is a POST, any other a GET.
        client: the running sync's client.
        purpose: what the log calls the request; its method and path when empty.

    Returns:
        The answer's JSON object.

    Raises:
        RefusedError: on a status that retrying cannot change.
        SyncStoppedError: when the rate limit leaves nothing.
        KustomerError: when the retries are used up.

    Source: https://developer.kustomer.com/docs/concepts/rate-limits (429 and its headers).
    """
    if client is None:
        settings = validate_configuration({**(configuration or {}), "api_key": api_key})
        with open_client(settings) as own:
            return execute_api_request(endpoint, api_key, params, body=body, client=own)
    request = f"{'GET' if body is None else 'POST'} {endpoint}"
    purpose = purpose or request
    failures, limits, waited = 0, 0, 0.0
    if body is None:
        __leave_others_their_share(client, purpose)
    while True:
        with client.gate:
            waits_ended = client.waits_ended
        try:
            return __exchange(client, endpoint, params, body, purpose)
        except RateLimitError as limit:
            with client.gate:
                # One wait is that of all requests that are under way.
                if client.waits_ended == waits_ended:
                    waited += __handle_rate_limit(
                        client, request, limit.args[0], limits, waited, purpose
                    )
                    limits += 1
                    client.waits_ended += 1
        except TryAgainError as trouble:
            __handle_request_error(client, request, str(trouble), failures, purpose)
            failures += 1


def __exchange(
    client: Client, path: str, params: dict | None, body: dict | None, purpose: str
) -> dict:
    """Send one request once and return the JSON object of its answer, or raise what to do."""
    settings, method, cause = client.settings, "GET" if body is None else "POST", ""

    def send():
        with client.session.request(
            method,
            settings.base_url + path,
            params=params,
            json=body,
            timeout=settings.request_timeout_seconds,
            allow_redirects=False,
            stream=True,
        ) as response:
            # In larger pieces than requests itself reads, which costs a good part of parsing.
            return response, b"".join(response.iter_content(__READ_BYTES))

    with client.lock:
        client.requests_sent += 1
    with __debug_line(settings, purpose) as notes:
        try:
            response, content = __within(
                __ANSWER_MAX_TIMEOUTS * settings.request_timeout_seconds, send
            )
        except DeadlineError:
            cause = "its answer was not complete in time"
        except requests.RequestException as error:
            cause = __network_cause(error)
        if cause:
            # Raised out here, away from an exception that holds the request, and so the key.
            raise TryAgainError(f"{urlsplit(settings.base_url).hostname}: {cause}")
        __note_clock(client, response.headers.get("Date"))
        if body is None:
            __note_share(client, response.headers)
        left = response.headers.get("x-ratelimit-remaining", "unknown")
        notes += [f"status {response.status_code}", f"budget left {left:.20}"]
        payload = __read_answer(response, content, f"{method} {path}", settings.api_key)
        if isinstance(payload.get("data"), list):
            notes.append(f"{len(payload['data'])} rows")
        return payload


@contextlib.contextmanager
def __debug_line(settings: Settings, request: str):
    """Write one log line of a request at its end, when debug logging is on; yield a list of what
    is to be said of it."""
    started, notes = time.perf_counter(), []
    try:
        yield notes
    finally:
        if settings.enable_debug_logging:
            notes.append(f"{(time.perf_counter() - started) * 1000:.0f} ms")
            __log(log.info, f"{request}: {', '.join(notes)}")


def __within(seconds: float, call: Callable[[], Any]) -> Any:
    """Return what `call` returns, or raise DeadlineError when that takes longer.

    The timeout of a request counts from byte to byte, so an answer that drips never meets it. Such
    a call is left behind in a thread of its own, which does not keep the process from ending.
    """
    outcome: Future = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except Exception as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result(timeout=seconds)


def __network_cause(error: BaseException) -> str:
    """Return what failed on the way to Kustomer, in words."""
    causes: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in causes:
        causes.append(link)
        link = link.__cause__ or link.__context__
    for kind, words in __NETWORK_CAUSES:
        if any(isinstance(cause, kind) for cause in causes):
            return words
    return "the answer was not complete"


def __read_answer(response, content: bytes, request: str, api_key: str) -> dict:
    """Return the JSON object of an answer, or raise what to do: this alone decides what is retried
    and what is refused."""
    status = response.status_code
    if status == 429:
        raise RateLimitError(response.headers)
    if status == 408 or status >= 500:
        raise TryAgainError(f"status {status}")
    payload = __parsed(content)
    if status in __MISSING_ROLE_STATUSES and "errors" not in (payload or {}):
        raise TryAgainError(f"status {status} without Kustomer's own error message")
    if status != 200:
        reason = __api_message(status, payload, api_key)
        raise RefusedError(f"{request} was refused with {status}: {reason}", status, reason)
    if payload is None:
        raise TryAgainError("status 200 with an answer that is not a JSON object")
    meta = payload.get("meta")
    if isinstance(meta, dict) and meta.get("timed_out"):
        raise TryAgainError("status 200 with a partial answer (meta.timed_out)")
    return payload


def __parsed(content: bytes) -> dict | None:
    try:
        payload = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return payload if isinstance(payload, dict) else None


def __api_message(status: int, payload: dict | None, api_key: str) -> str:
    """Return what Kustomer says of a refusal: the fields that describe errors, nothing else of the
    body, and never the key."""
    if 300 <= status < 400:
        return "a redirect, which is never followed; check base_url"
    errors = (payload or {}).get("errors")
    words = [
        str(error[name])
        for error in (errors if isinstance(errors, list) else ())
        for name in ("code", "title", "message", "detail")
        if isinstance(error, dict) and error.get(name)
    ]
    text = " ".join(" - ".join(words).replace(api_key, "(key)").split())
    return text[:__API_MESSAGE_MAX_CHARACTERS] or "no reason given"


def __handle_rate_limit(
    client: Client, request: str, headers, earlier_limits: int, waited: float, purpose: str
) -> float:
    """Wait out a 429 and return the seconds waited.

    Raises SyncStoppedError when the request has waited as long as it may.
    """
    if waited >= __RATE_LIMIT_MAX_TOTAL_SECONDS or client.closed.is_set():
        raise SyncStoppedError(
            f"{request} was answered 429 (rate limit) for {waited / 60:.0f} minutes. Other keys "
            "and apps of the organization share its limit; the next sync goes on from here."
        )
    seconds = __seconds_until_reset(headers)
    if seconds is None:
        seconds = __backoff_seconds(earlier_limits)
    else:
        seconds += random.uniform(0, __RATE_LIMIT_JITTER_SHARE * seconds)
    seconds = min(seconds, __RATE_LIMIT_MAX_WAIT_SECONDS)
    __wait(client, seconds, f"{purpose}: the rate limit is used up")
    return seconds


def __wait(client: Client, seconds: float, reason: str) -> None:
    """Wait, count it, and say why and until when; the wait ends early when nobody needs the
    requests any more."""
    end = datetime.now(timezone.utc) + timedelta(seconds=seconds)
    __log_now_and_then(
        client, f"{reason}; waiting {seconds:.1f} s, until {end:%H:%M:%S} UTC.", seconds
    )
    with client.lock:
        client.seconds_waited += seconds
    client.closed.wait(seconds)


def __note_share(client: Client, headers) -> None:
    """Note until when the next lists have to wait, by what an answer says of the organization's
    budget, which agents' apps share.

    Source: https://developer.kustomer.com/docs/concepts/rate-limits.
    """
    limit, left = (
        __header_number(headers.get(f"x-ratelimit-{name}")) for name in ("limit", "remaining")
    )
    client.share_used_until = 0.0
    kept = 1 - client.settings.api_utilization_percentage / 100
    if limit is not None and left is not None and left < kept * limit:
        seconds = __seconds_until_reset(headers) or __SHARE_WAIT_SECONDS
        seconds = min(seconds, __RATE_LIMIT_MAX_WAIT_SECONDS)
        client.share_used_until = time.monotonic() + seconds


def __leave_others_their_share(client: Client, purpose: str) -> None:
    """Wait when the last list found less of the organization's budget than others may need."""
    seconds = client.share_used_until - time.monotonic()
    if seconds > 0:
        share = client.settings.api_utilization_percentage
        reason = f"{purpose}: {share} % of the organization's requests a minute are used"
        __wait(client, seconds, reason)


def __seconds_until_reset(headers) -> float | None:
    """Return how long a 429 asks to wait, or None when it names no time ahead."""
    seconds = __retry_after_seconds(headers.get("Retry-After"))
    if seconds is None:
        reset = __header_number(headers.get("x-ratelimit-reset"))
        if reset is not None and reset >= __EPOCH_MILLISECONDS_FROM:
            seconds = reset / 1000 - time.time()
        elif reset is not None and reset >= __EPOCH_SECONDS_FROM:
            seconds = reset - time.time()
        else:
            seconds = reset
    return seconds if seconds is not None and seconds > 0 else None


def __retry_after_seconds(value: str | None) -> float | None:
    seconds, moment = __header_number(value), __header_date(value)
    if seconds is None and moment:
        return moment.timestamp() - time.time()
    return seconds


def __header_number(value: str | None) -> float | None:
    known = value and re.fullmatch(r"[0-9]{1,15}(\.[0-9]+)?", value.strip())
    return float(value) if known else None


def __header_date(value: str | None) -> datetime | None:
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        moment = parsedate_to_datetime(value or "")
        return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return None


def __backoff_seconds(earlier_failures: int) -> float:
    """Return a wait with full jitter, so that requests that fail together do not return so."""
    ceiling = min(__BACKOFF_MAX_SECONDS, __BACKOFF_BASE_SECONDS * 2**earlier_failures)
    return random.uniform(0, ceiling)


def __handle_request_error(
    client: Client, request: str, cause: str, failures: int, purpose: str
) -> None:
    """Wait before the next retry, or raise KustomerError when there is none left."""
    if client.closed.is_set():
        raise SyncStoppedError(f"{request} was given up: nothing asks for its answer any more.")
    if failures >= client.settings.retry_attempts:
        times = f" {failures + 1} times. The last error was" if failures else ""
        raise KustomerError(
            f"{request} failed{times}: {cause}. If this persists, check your network, base_url and "
            "whether Kustomer is up; raise retry_attempts or request_timeout_seconds, or lower max_records_per_page."
        )
    __wait(client, __backoff_seconds(failures), f"{purpose}: {cause}")


# --------------------------------------------------------------------------------------------
# Time
#
# Times inside are UTC, as Kustomer writes them: to the millisecond, with a Z.
# --------------------------------------------------------------------------------------------

# Covers the lag of the search index and clocks that disagree.
__OVERLAP = timedelta(minutes=10)
# What Kustomer sends: https://developer.kustomer.com/docs/concepts/json-api-format.
__KUSTOMER_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
__ANY_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d)(:\d\d)?(?:\.(\d+))?(?:[Zz]|([+-]\d\d)(?::?(\d\d))?)?",
    re.ASCII,
)
__EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def get_time_range(
    last_sync_time: str | None = None,
    configuration: dict | None = None,
    *,
    now: datetime | None = None,
) -> dict[str, str]:
    """Return the window of changes that a sync starting now has to read.

    The window begins ten minutes before `last_sync_time`, because the search index lags behind
    writes; the rows in that overlap are delivered again, which their primary key makes harmless.

    Args:
        last_sync_time: an ISO time, or None for a first sync.
        configuration: the connector's configuration; `initial_sync_days` is used for a first sync.
        now: the time it is for Kustomer; this machine's clock when None.

    Returns:
        {"start": ..., "end": ...}, ISO texts in UTC; end is now.

    Raises:
        ValueError: when `last_sync_time` is not a time or `initial_sync_days` is out of range.
    """
    end = now or __now()
    if last_sync_time is None:
        days = __setting_value(__SETTING["initial_sync_days"], configuration or {})
        start = end - timedelta(days=days)
    else:
        last = __parse_time(last_sync_time)
        if last is None:
            raise ValueError(f"last_sync_time must be an ISO time, not {last_sync_time!r:.60}.")
        # A time saved by a clock that was ahead must not skip what Kustomer wrote meanwhile.
        start = max(min(last, end), __EPOCH) - __OVERLAP
    return {"start": __format_time(start), "end": __format_time(end)}


def __now(client: Client | None = None) -> datetime:
    """Return the time by the earlier of two clocks, this machine's and Kustomer's, as far as that
    is known: with a clock that is ahead, what Kustomer writes meanwhile would be skipped."""
    ahead = client.clock_ahead if client else None
    now = datetime.now(timezone.utc) - max(ahead or timedelta(0), timedelta(0))
    return __whole_milliseconds(max(now, __EPOCH))


def __note_clock(client: Client, date: str | None) -> None:
    """Note, at the first answer that has a date, how far this machine's clock is ahead."""
    if client.clock_ahead is None and (kustomers := __header_date(date)):
        client.clock_ahead = datetime.now(timezone.utc) - kustomers


def __whole_milliseconds(moment: datetime) -> datetime:
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def __parse_time(value) -> datetime | None:
    """Return the moment that an ISO text names (UTC where it names no offset), or None."""
    return __read_time(value)[0] if isinstance(value, str) else None


def __read_time(text: str) -> tuple[datetime | None, str | None]:
    """Return the moment that an ISO text names, and how Kustomer would write it."""
    try:
        if __KUSTOMER_TIME.fullmatch(text):
            return datetime.fromisoformat(text[:-1] + "+00:00"), text
        parts = __ANY_TIME.fullmatch(text)
        if not parts:
            return None, None
        day, clock, seconds, fraction, hours, minutes = parts.groups()
        clock += f"{seconds or ':00'}.{(fraction or '')[:6]:0<6}"
        moment = datetime.fromisoformat(f"{day}T{clock}{hours or '+00'}:{minutes or '00'}")
        moment = moment.astimezone(timezone.utc)
        return moment, __format_time(moment)
    except (ValueError, OverflowError):
        return None, None


def __format_time(moment: datetime) -> str:
    """Return a UTC moment as Kustomer writes it, with microseconds only where it has them."""
    precision = "microseconds" if moment.microsecond % 1000 else "milliseconds"
    return moment.isoformat(timespec=precision)[: -len("+00:00")] + "Z"


# --------------------------------------------------------------------------------------------
# Setup form
#
# What Fivetran shows when a connection is set up, and the tests of what was entered.
# --------------------------------------------------------------------------------------------


def configuration_form() -> ConfigurationForm:
    """Return the setup form: a field for every setting, and the tests of what was entered."""
    form = ConfigurationForm()
    for setting in SETTINGS:
        form.add_field(__form_field(setting))
    form.add_test(label="The configuration is valid", func=test_configuration)
    form.add_test(label="Kustomer accepts the API key in this region", func=test_api_key)
    form.add_test(label="The API key may read every table", func=test_roles)
    form.add_test(label="Search (optional, fewer requests)", func=test_search)
    return form


def __form_field(setting: Setting):
    required = setting is __API_KEY
    common = {"description": setting.explained(), "required": required}
    if setting.parse is __parse_switch:
        return form_field.ToggleField(setting.name, setting.label, **common)
    kind = form_field.TextField.password if required else form_field.TextField.plain_text
    placeholder = "eyJ..." if required else str(setting.default or "not set")
    return form_field.TextField(
        setting.name, setting.label, kind, placeholder=placeholder, **common
    )


def test_configuration(configuration: dict):
    """Setup test: every setting is within its range."""
    return __run_setup_test(configuration, lambda client: None)


def test_api_key(configuration: dict):
    """Setup test: the key is valid and belongs to the region of `base_url`."""
    return __run_setup_test(configuration, check_api_key)


def test_roles(configuration: dict):
    """Setup test: the key may read each table; a failure names every role to add."""
    return __run_setup_test(configuration, __read_one_of_each)


def test_search(configuration: dict):
    """Setup test: search works. Without it every sync is right and takes more requests, so this
    test passes all the same, and its warning says what to add."""
    return __run_setup_test(configuration, __search_customers)


def __run_setup_test(configuration: dict, check: Callable[[Client], None]):
    """Return the result of a setup test that passes when `check` raises nothing."""
    try:
        with open_client(validate_configuration(configuration)) as client:
            check(client)
            __show_warnings(client)
    except (KustomerError, ValueError) as error:
        return Test.failure(str(error))
    return Test.success()


def __read_one_of_each(client: Client) -> None:
    failures = []
    for table in __wanted(client.settings.additional_tables):
        try:
            __list_page(Listing(client, table), 1, 1)
        except KustomerError as error:
            failures.append(f"{table.name}: {error}")
    if failures:
        raise KustomerError(" ".join(failures))


def __search_customers(client: Client) -> None:
    now = __now(client)
    try:
        __search(Search(client, CUSTOMERS, now, now), Slice(now))
    except SearchUnusableError as error:
        reason = str(error).rstrip(".")
        tables = __wanted(client.settings.additional_tables)
        searched = ", ".join(t.name for t in tables if t.search and t.search_is_documented)
        client.warnings.append(
            f"{reason}. Without search, every sync reads the whole lists of: {searched}."
        )


connector = Connector(update=update, schema=schema, configuration_form=configuration_form)

if __name__ == "__main__":
    # For a run from an editor; `fivetran debug` does not come here.
    with open("configuration.json", encoding="utf-8") as file:
        connector.debug(configuration=json.load(file))

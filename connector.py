"""A Fivetran connector that copies Kustomer's customers, companies, brands and messages, and
further tables on request, to a destination.

Each section can be read on its own and opens with what it guarantees to the others:

    Reading a record     how a column's value is found in a record
    Tables               what is copied: a declaration and a generator for each table
    Settings             the configuration: what is allowed, and the errors for wrong values
    Sync                 schema() and update(): from rows to the destination, state, log
    Rows                 from pages of records to pages of rows; search or list
    Search               finding changed records by slices of time
    Lists                reading a list whose records move while it is read
    Requests             HTTP requests, their retries and waits
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
    """A table cannot be read. The message says what happened and what to do about it."""


class SyncStoppedError(KustomerError):
    """No table can be read. The sync ends immediately."""


class RefusedError(KustomerError):
    """Kustomer refused a request with a status that retrying cannot fix.

    `status` is the HTTP status and `reason` is Kustomer's own error message.
    """

    def __init__(self, message: str, status: int, reason: str):
        super().__init__(message, status, reason)
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        return self.args[0]


class SearchUnusableError(Exception):
    """Search cannot be used for a table, which is then read from its list; the text says why."""


class SearchRefusedError(SearchUnusableError):
    """Search refuses a table and will refuse it in the next sync too."""


class PageSizeError(Exception):
    """A list does not return pages of the requested size and has to be read another way."""


class TryAgainError(Exception):
    """Internal: retried by `execute_api_request`, never raised to callers. Its text is the
    cause."""


class RateLimitError(TryAgainError):
    """Internal, like TryAgainError: a 429 response. The argument is its headers."""


# --------------------------------------------------------------------------------------------
# Reading a record
#
# A column has a Fivetran type, the attribute that it is read from, and a conversion. A missing
# value is None: Kustomer omits an attribute without a value, or sends null, "", [] or {}. Nothing
# in this section raises, whatever a record contains.
# --------------------------------------------------------------------------------------------

__LONE_SURROGATE = re.compile("[\ud800-\udfff]")
__compact_json = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), check_circular=False
).encode
__FLAG_WORDS = {"true": True, "false": False}
# https://fivetran.com/docs/connectors/connector-sdk/technical-reference: INT has 32 bits.
__INT_RANGE = (-(2**31), 2**31 - 1)


class Column(NamedTuple):
    """A column: its Fivetran type, the attribute it is read from (None: the record itself), the
    conversion of that value, and the column to fall back to when the result is None."""

    type: str
    source: str | None
    convert: Callable[[Any], Any]
    otherwise: "Column | None" = None


def __attributes(record) -> dict:
    """Return a record's attributes. A record without `attributes` holds them itself."""
    if not isinstance(record, dict):
        return {}
    attributes = record.get("attributes")
    return attributes if isinstance(attributes, dict) else record


def __record_id(record) -> str | None:
    """Return a record's id as a string, or None if it has none."""
    value = record.get("id") if isinstance(record, dict) else None
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def __updated_at(record) -> datetime | None:
    return __parse_time(__attributes(record).get("updatedAt"))


def __version(record) -> tuple[str | None, str]:
    """Return a record's id and updatedAt: every update makes a new version."""
    return __record_id(record), str(__attributes(record).get("updatedAt"))


def __text(value) -> str | None:
    """Return a value for a STRING column: a string unchanged, anything else as JSON."""
    if not isinstance(value, str):
        if value is None or value == [] or value == {}:
            return None
        value = __compact_json(value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            # JSON allows half of a surrogate pair, but no destination can store it.
            return __LONE_SURROGATE.sub("\ufffd", value)
    return value or None


def __flag(value) -> bool | None:
    if isinstance(value, bool):
        return value
    return __FLAG_WORDS.get(value.lower()) if isinstance(value, str) else None


def __count(value) -> int | None:
    """Return a whole number that fits an INT column, or None."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,10}", value, re.ASCII):
        value = int(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole or isinstance(value, float) and value.is_integer():
        return int(value) if __INT_RANGE[0] <= value <= __INT_RANGE[1] else None
    return None


def __time(value) -> str | None:
    """Return a time in UTC, as Kustomer writes times, or None if it cannot be parsed."""
    return __read_time(value)[1] if isinstance(value, str) else None


def __related_id(record: dict, name: str) -> str | None:
    """Return the id of a related record. Its type is ignored: Kustomer gets some types wrong."""
    relationships = record.get("relationships")
    relation = relationships.get(name) if isinstance(relationships, dict) else None
    return __record_id(relation.get("data")) if isinstance(relation, dict) else None


def __first_of(entries, name: str, preferred: tuple[str, Any] | None = None):
    """Return `name` of the first entry with the preferred attribute value, else of the first entry
    that has `name`. An entry that is a string is its own value."""
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


# The kinds of columns. `name` is always the name of one of Kustomer's attributes.


def text(name: str, otherwise: Column | None = None) -> Column:
    """An attribute as a string."""
    return Column("STRING", name, __text, otherwise)


def as_json(name: str) -> Column:
    """A nested attribute as JSON. The column is a STRING, which every destination supports."""
    return Column("STRING", name, __text)


def flag(name: str) -> Column:
    """A boolean, including the strings "true" and "false"."""
    return Column("BOOLEAN", name, __flag)


def count(name: str) -> Column:
    """A whole number of at most 32 bits."""
    return Column("INT", name, __count)


def time_of(name: str) -> Column:
    """A time in UTC."""
    return Column("UTC_DATETIME", name, __time)


def inside(name: str, inner: str) -> Column:
    """One value of a nested attribute, as a string."""
    return Column(
        "STRING", name, lambda value: __text(value.get(inner)) if isinstance(value, dict) else None
    )


def related(name: str, otherwise: Column) -> Column:
    """The id of a related record."""
    return Column("STRING", None, lambda record: __related_id(record, name), otherwise)


def reference(name: str, otherwise: Column | None = None) -> Column:
    """An attribute that holds the id of another record, as in records without `attributes`."""
    return Column(
        "STRING", name, lambda value: __text(value) if isinstance(value, str) else None, otherwise
    )


def first_of(name: str, entry_name: str, preferred: tuple[str, Any] | None = None) -> Column:
    """One value from a list of objects: from the first entry with the preferred attribute value,
    else from the first entry."""
    return Column("STRING", name, lambda value: __text(__first_of(value, entry_name, preferred)))


def each_of(name: str, entry_name: str) -> Column:
    """One value from each entry of a list, as a JSON array. Entries are objects or strings."""

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
# A table is declared once; the schema, rows, setup tests and errors all use the declaration. To
# add a column, add it to `columns`. To add a table, add a declaration and a generator, and add
# both to GENERATORS.
# --------------------------------------------------------------------------------------------


class Table:
    """A destination table and where its records are in Kustomer.

    `object_name` is the object's name in the role that the API key needs. `search` is the query
    context that finds the table's changed records, or None if there is none. A `mirrored` table is
    read completely, and truncated before its rows are delivered. `columns` are in the order of the
    destination.

    If `search_is_documented` is false, search is used only if it proves that it knows the table.

    A table `on_request` is read only if the setting `additional_tables` names it. `page_maximum`
    is the most records that a page of its list can have. A table that `deactivates` has a second
    list of records that are no longer active. They stay in the table, with `deactivated` set to
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
        # Columns that may have values that cannot be converted.
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
        # The second spelling is from Kustomer's own examples.
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
        # So far, Kustomer has only been seen to send `preview`: plain text of at most 10,240
        # characters.
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
    """Return the row of a record: a value or None for every column, in order."""
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
    """Return the rows of the customers that changed since `last_sync_time`.

    Deleted customers are included. No request is sent until the first row is asked for.

    Args:
        api_key: the Kustomer API key.
        last_sync_time: ISO time of the last sync, or None for a first sync, which goes back
            `initial_sync_days`. The ten minutes before this time are read again.
        configuration: the connector's configuration; missing settings use their defaults.
        client: the connection and settings of a running sync; by default, the rows open their own.

    Returns:
        An iterator of rows, each a dict with a value or None for every column. A row may appear
        twice; the later one is current. `pages` yields the same rows in pages, which also say
        which rows are deleted.

    Raises:
        KustomerError: while iterating, if the key lacks a role or Kustomer cannot be read.
        ValueError: while iterating, if the configuration or `last_sync_time` is invalid.
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
    """Return the rows of all brands. All of them are read before the first one is returned.

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
    """Return the rows of the messages that changed since `last_sync_time`.

    Deleted messages are included.

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
    """Return the rows of the conversations that changed since `last_sync_time`.

    Deleted conversations are included.

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
    """Return the rows of the notes that changed since `last_sync_time`.

    Deleted notes are included.

    Arguments, rows and errors are those of `get_customers`.
    """
    return __rows(NOTES, api_key, last_sync_time, configuration, client)


def get_users(
    api_key: str, configuration: dict | None = None, *, client: "Client | None" = None
) -> "Rows":
    """Return the rows of all users, including deactivated ones.

    All of them are read before the first one is returned.

    Arguments, rows and errors are those of `get_customers`.
    """
    return __rows(USERS, api_key, None, configuration, client)


def get_teams(
    api_key: str, configuration: dict | None = None, *, client: "Client | None" = None
) -> "Rows":
    """Return the rows of all teams. All of them are read before the first one is returned.

    Arguments, rows and errors are those of `get_customers`.
    """
    return __rows(TEAMS, api_key, None, configuration, client)


def get_tags(
    api_key: str, configuration: dict | None = None, *, client: "Client | None" = None
) -> "Rows":
    """Return the rows of all tags. All of them are read before the first one is returned.

    Arguments, rows and errors are those of `get_customers`.
    """
    return __rows(TAGS, api_key, None, configuration, client)


# Each table and the generator of its rows, in the order in which a sync reads them.
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
# A setting is declared once: its default, its allowed values, and its text on the setup form. The
# whole configuration is checked before the first request, and an error never repeats a value that
# might be a key.
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
            "must not contain spaces, line breaks or other characters that are not part of a key; "
            "copy the key again, without 'Bearer'"
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
    """Return the API origin for an address or the name of an organization.

    Source: https://developer.kustomer.com/docs/get-started/regions-and-base-urls.
    """
    text = text.strip()
    problem = ValueError(
        "is not allowed; use https://api.kustomerapp.com (US), https://api.prod2.kustomerapp.com "
        "(EU), https://api.prod4.kustomerapp.com (India), or the name or address of your "
        f"organization on {__KUSTOMER_DOMAIN}. The key is never sent anywhere else"
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
    """A configuration key.

    `parse` converts its string, or raises ValueError with what the value must be. `label` and
    `description` appear on the setup form. A `default` of None means that there is no default.
    """

    name: str
    parse: Callable[[str], Any]
    default: Any
    label: str
    description: str
    limits: tuple[int, int] | None = None

    def explained(self) -> str:
        """Return the description, the range and the default."""
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
        "Create a key in Kustomer under Settings > Security > API Keys, with the roles to read "
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
        f"Further tables to sync: any of {', '.join(ADDITIONAL_TABLES)}, separated by commas, or "
        f"{__ALL_TABLES}. Leave empty for none. The API key needs a role for each table.",
    ),
    __number(
        "initial_sync_days",
        (1, 365),
        90,
        "Days of history",
        "The number of days before the first sync for which changed records are read.",
    ),
    __number(
        "sync_frequency_hours",
        (1, 168),
        None,
        "Hours between reads of a table",
        "A sync skips a table that was read less than this many hours ago. Leave empty to read "
        "every table in every sync.",
    ),
    __number(
        "max_records_per_page",
        (1, 1000),
        500,
        "Records per page",
        "The number of records to request at a time. Kustomer returns at most 100 from a list and "
        "500 from a search.",
    ),
    __number(
        "api_utilization_percentage",
        (10, 100),
        90,
        "API utilization in percent",
        "Requests for lists wait while all of the organization's apps together use more than this "
        "share of its requests per minute. Searches have a rate limit of their own.",
    ),
    __number(
        "request_timeout_seconds",
        (1, 300),
        30,
        "Request timeout in seconds",
        "How long to wait for a connection, and for each part of a response.",
    ),
    __number(
        "retry_attempts",
        (0, 10),
        3,
        "Retries",
        "How many times a failed request is retried. Waits for the rate limit do not count.",
    ),
    Setting(
        "enable_incremental_sync",
        __parse_switch,
        True,
        "Incremental sync",
        "On (default): each sync reads what changed since the last one. Off: each sync reads "
        "everything.",
    ),
    Setting(
        "enable_debug_logging",
        __parse_switch,
        False,
        "Debug logging",
        "On: the log has a line for each request. Off by default.",
    ),
)
__SETTING = {setting.name: setting for setting in SETTINGS}
__API_KEY = __SETTING["api_key"]


# A valid configuration. Its fields are the settings, converted and with defaults.
Settings = make_dataclass(
    "Settings",
    [(setting.name, Any, field(repr=setting is not __API_KEY)) for setting in SETTINGS],
    frozen=True,
)


def validate_configuration(configuration: dict | None) -> Settings:
    """Check the whole configuration and return it, converted and with defaults.

    Args:
        configuration: the flat dictionary of strings that Fivetran passes. An empty string or an
            unchanged `<PLACEHOLDER>` counts as not set.

    Returns:
        Settings in which every value has its type and is within its range.

    Raises:
        ValueError: names every invalid setting, its value (never a key) and what it must be.
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
    """Return the value of a setting, or raise ValueError with its name, its value if that is safe
    to show, and what it must be."""
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
# Delivers each table's rows and saves a cursor for each table. A table that fails does not stop
# the others. The sync then ends as failed, and the next one resumes from the saved cursors.
# --------------------------------------------------------------------------------------------

__CHECKPOINT_EVERY_ROWS = 5_000
# Two pages of parsed records have far fewer objects than this.
__COLLECT_GARBAGE_FROM_OBJECTS = 200_000
__RESET_HINT = (
    "Reset the connection: 'fivetran reset' for a local run, a historical re-sync on Fivetran."
)


def schema(configuration: dict) -> list[dict]:
    """Define the tables that the connector delivers, with their primary keys and columns.

    Every column is declared, because a column without any value would not exist otherwise.
    See https://fivetran.com/docs/connectors/connector-sdk/technical-reference#schema.

    Args:
        configuration: the connection's settings; `additional_tables` adds tables.

    Returns:
        A list of tables in the format that Fivetran expects.

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
        for table in __wanted(additional)
    ]


def __wanted(additional_tables: tuple[str, ...]) -> list[Table]:
    """Return the tables to read: the four standard tables and the requested additional ones."""
    return [table for table in TABLES if not table.on_request or table.name in additional_tables]


def update(configuration: dict, state: dict) -> None:
    """Bring the destination up to date with Kustomer: Fivetran calls this for every sync.

    See https://fivetran.com/docs/connectors/connector-sdk/technical-reference#update.

    Args:
        configuration: the connection's settings, as strings; see SETTINGS.
        state: the state of the last checkpoint; empty on a first sync.

    Raises:
        ValueError: if the configuration or the state is invalid; no request has been sent then.
        KustomerError: after the last table, with the reason for each table that could not be read;
            immediately, if the key is invalid or the rate limit stays used up.
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
    """How far each table has been read, by table name.

    `last_sync_time` is when a table was last read to its end. `unfinished` is for a table whose
    reading was interrupted: all changes before this time have been delivered.
    """

    last_sync_time: dict[str, datetime]
    unfinished: dict[str, datetime]

    def cursor(self, table: Table) -> datetime | None:
        """Return the time from which a table has to be read, or None for a first read."""
        return self.unfinished.get(table.name) or self.last_sync_time.get(table.name)


def read_state(state: dict | None, warn: Callable[[str], None]) -> State:
    """Return the saved times of the tables that still exist.

    Args:
        state: {"last_sync_time": {table: ISO time}, "unfinished": {table: ISO time}}. A plain ISO
            string as `last_sync_time`, as saved by earlier versions, applies to each table that
            they had.
        warn: called for each time that cannot be used; its table is read from the start.

    Raises:
        ValueError: if the state has any other structure.
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
            trouble = "is not a time" if times[kind] is None else "is in the future"
            warn(f"{table.name}: the saved {kind} {trouble}; the table is read from the start.")
        if not wrong:
            for kind, moment in times.items():
                getattr(known, kind)[table.name] = moment
    return known


def __checkpoint(saved: State) -> None:
    written = {
        kind: {name: __format_time(moment) for name, moment in times.items()}
        for kind, times in vars(saved).items()
    }
    # Makes all rows before it permanent. The next sync starts with this state.
    op.checkpoint(written)


def __next_read(table: Table, saved: State, settings: Settings) -> datetime | None:
    """Return when a table is due, or None if it is due now."""
    last = saved.last_sync_time.get(table.name)
    if last is None or settings.sync_frequency_hours is None or table.name in saved.unfinished:
        return None
    # Schedulers sometimes start early. Without the slack, a table would then miss a whole period.
    due = last + timedelta(hours=settings.sync_frequency_hours)
    return due if __now() < due - __OVERLAP else None


def __plan(due: dict[Table, datetime | None], saved: State, settings: Settings) -> str:
    """Return the log line that says what will be read from each table, or when it is due."""
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
    """Return a number and its noun, in the plural if needed."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


@dataclass
class Counts:
    """The figures that the log shows at the end of a table or sync."""

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
    """Deliver what changed in a table, save its cursor, and return its counts."""
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
                # Marks every row as deleted. The upserts that follow restore existing records.
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
            # A mirrored table is complete only when its last row has been delivered.
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
        # Inserts the row or replaces the row with the same id.
        op.upsert(table.name, row)
    for record_id in page.deleted:
        # Marks the row as deleted. The upsert before has delivered its last values.
        op.delete(table.name, {"id": record_id})


def __move_cursor(saved: State, table: Table, safe_until: datetime | None) -> None:
    """Save how far a table has been delivered. The cursor never moves backwards."""
    cursor = saved.cursor(table)
    if safe_until:
        saved.unfinished[table.name] = max(safe_until, cursor) if cursor else safe_until


@contextlib.contextmanager
def __quiet_interrupt():
    """On Ctrl-C, end the process with a single line instead of a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit("Stopped. The next sync resumes from the last checkpoint.") from None


@contextlib.contextmanager
def __few_garbage_collections():
    """Run the garbage collector less often. Parsed records contain no cycles, and traversing them
    again and again takes longer than parsing them."""
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
    """Log how much of a table has been read. `began` is the monotonic time of its start."""
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
# Turns a table's pages of records into pages of rows, and decides between search and list. The
# next page is read while a page is delivered.
# --------------------------------------------------------------------------------------------


@dataclass
class Page:
    """A page on its way from Kustomer's response to the destination.

    `records` are as Kustomer sent them. `more` is whether the links say that more pages follow, or
    None if there are no links. `total` is Kustomer's count of all records. `times` are the
    timestamps of the records of a search.

    The other fields are filled in later. `ended`: this is the last page of its list. `safe_until`:
    once this page is delivered, all changes before this time have been delivered. `search_again`:
    this page is from a list, and the next sync has to search from `safe_until`. `deleted` has the
    ids of deleted records, `skipped` counts records without an id, and `unreadable` counts values
    that could not be converted.
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
        """Return this page with its `safe_until`."""
        self.safe_until = until
        return self


class Rows:
    """The rows of a table: iterate over them, or over `pages`, but not both."""

    def __init__(self, pages):
        self.pages = pages
        self._rows = (row for page in pages for row in page.rows)

    def __iter__(self) -> "Rows":
        return self

    def __next__(self) -> dict[str, Any]:
        return next(self._rows)

    def close(self) -> None:
        """Stop reading. No further request is sent."""
        self.pages.close()


def __rows(
    table: Table,
    api_key: str,
    last_sync_time: str | None,
    configuration: dict | None,
    client: "Client | None",
) -> Rows:
    """Return the rows of a table. Warnings are shown from the caller's thread."""

    def pages() -> Iterator[Page]:
        with contextlib.ExitStack() as stack:
            settings = {**(configuration or {}), "api_key": api_key}
            reader = client or stack.enter_context(open_client(validate_configuration(settings)))
            stack.callback(__show_warnings, reader)
            window = get_time_range(last_sync_time, configuration, now=__now(reader))
            found = __table_pages(reader, table, *map(__parse_time, window.values()))
            if table.mirrored:
                # All pages are read before the first row is delivered, so that a table is never
                # truncated if reading it fails.
                found = iter(list(found))
            for page in __read_ahead(reader, map(partial(__make_rows, table), found)):
                __show_warnings(reader)
                yield page

    return Rows(pages())


def __make_rows(table: Table, page: Page) -> Page:
    """Return the page with its rows, deletions and counts filled in."""
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
        # A record may appear twice; the later version says whether it is deleted.
        page.deleted.discard(row["id"])
        if not table.deactivates and __flag(attributes.get("deleted")):
            page.deleted.add(row["id"])
    return page


def __read_ahead(client: "Client", pages: Iterator[Page]) -> Iterator[Page]:
    """Yield the pages. While a page is processed, a thread reads the next one."""
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
    """Yield a table's pages from search if possible, else from its list."""
    incremental = client.settings.enable_incremental_sync and not table.mirrored
    listed, trouble, reached = __list_pages(client, table), None, start
    searched = bool(table.search) and incremental
    if searched and not table.search_is_documented:
        first = next(listed)
        searched = not first.ended and __search_knows(client, table, first, start, end)
        # The first page has been read already.
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
            # Warn only after the first page: search also refuses a key that lacks the table's own
            # role, and then the error from the list names the missing role.
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
    """Return whether search finds the most recently updated record of a page by its updatedAt."""
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
            f"Until this is fixed, every sync reads the whole list of {table.name}, which takes "
            "more requests and may not show deletions."
        )
    else:
        consequence = (
            f"This sync reads the whole list of {table.name} instead, which may not show "
            "deletions; the next sync resumes the search where it stopped."
        )
    return f"{table.name}: {str(trouble).rstrip('.')}. {consequence}"


def __changed_since(record, start: datetime) -> bool:
    """Return whether a record was updated at or after `start`, or has no readable updatedAt."""
    updated = __updated_at(record)
    return updated is None or updated >= start


def __new_records(page: Page, seen: set) -> list:
    return [record for record in page.records if __version(record) not in seen]


def __page(path: str, payload: dict) -> Page:
    """Return the page of a response, or raise KustomerError if it has none.

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
# Finds every record that changed since a given time, including deleted ones, whether or not search
# sorts, and even if records change meanwhile. Raises SearchUnusableError if search turns out to be
# unreliable; the pages yielded before that, and their `safe_until`, are still correct.
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
# Some clients have seen counts end here. A count this high may stand for more records.
__SEARCH_MAX_COUNT = 10_000
# Slices are cut to fill this share of a page, because records are not spread evenly.
__SLICE_SHARE_OF_PAGE = 0.6
__SLICE_MAX_PARTS = 100
# If a page covers less than this fraction of its slice, the slice is cut around the page.
__SLICE_CROWDED = 100
# Stop after this many consecutive searches without a new record.
__SEARCH_MAX_EMPTY = 500
# How many searches run at the same time, and how many pages may wait for earlier pages.
__SEARCH_READERS = 4
__SEARCH_MAX_PAGES_HELD = 12
# If a sorted slice has more than this many pages, the rest of it is divided into slices of a few
# pages each. Searches that find less than a full page are limited to a fixed number plus a share
# of the others.
__SHARED_FROM_PAGES = 10
__SHARED_PAGES_OF_SLICE = 2.5
__SHARED_SPARE_SEARCHES = 7
__SHARED_SPARE_SHARE = 0.25
__MILLISECOND = timedelta(milliseconds=1)
__DAY = timedelta(days=1)


class Slice(NamedTuple):
    """The changes from `low` up to but excluding `high`; None means that there is no upper bound.

    If more records share one timestamp than a page holds, they are read page by page: `number` is
    the next page, and `first_page` has the record versions on page 1.
    """

    low: datetime
    high: datetime | None = None
    number: int = 1
    first_page: frozenset = frozenset()


@dataclass
class Search:
    """The search for one table's changes.

    `sorts` is whether search sorts, None until that is known. `total` is Kustomer's first count of
    records. `searches` counts requests, `records` counts the records on pages that were used, and
    `without_news` counts the searches since the last one that found a new record.

    Before `settled`, the search index is up to date. A later record may show a later timestamp
    than the one by which it was found.
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
    """Yield pages of all records that changed since `start`, in the order of their slices.

    There is no upper bound, so records with a timestamp in the future are included.
    """
    if start < end - __SEARCH_HORIZON:
        raise SearchRefusedError("search covers only records updated in the last two years")
    search = Search(client, table, end, settled=end - __OVERLAP)
    delivered: dict[tuple, datetime] = {}
    for page in __slices_in_order(search, Slice(__whole_milliseconds(start))):
        versions = list(map(__version, page.records))
        pairs = zip(page.records, versions)
        page.records = [record for record, version in pairs if version not in delivered]
        # Only records from `safe_until` on can appear again.
        delivered.update(zip(versions, page.times))
        delivered = {version: at for version, at in delivered.items() if at >= page.safe_until}
        search.without_news = 0 if page.records else search.without_news
        page.safe_until, page.total = min(page.safe_until, end), search.total
        yield page


def __slices_in_order(search: Search, first: Slice) -> Iterator[Page]:
    """Yield the pages of a slice in the order of their times, reading several at the same time.

    The line holds slices still to read, readings under way (futures) and pages, ordered by time. A
    finished reading is replaced by its page and by the slices that are left of its slice.
    """
    line: list[Slice | Future | Page] = [first]
    with __readers(search.client) as readers:
        while line:
            __start_readings(search, readers, line)
            if isinstance(line[0], Page):
                # One page at a time, so that the readers are kept busy while it is delivered.
                yield line.pop(0)
            else:
                wait(filter(__is_under_way, line), return_when=FIRST_COMPLETED)
            line = [found for entry in line for found in __found(search, entry, line[0])]


@contextlib.contextmanager
def __readers(client: "Client") -> Iterator[ThreadPoolExecutor]:
    """Yield the threads that search. At the end, those still at work give up."""
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
    """Start reading the first slices of the line, as far as there are idle readers and room."""
    idle = __SEARCH_READERS - sum(map(__is_under_way, line))
    room = __SEARCH_MAX_PAGES_HELD - sum(not isinstance(entry, Slice) for entry in line)
    for place, entry in enumerate(line):
        failed = isinstance(entry, Future) and entry.done()
        if failed or not idle or (place and not room):
            return
        # Records that change meanwhile move into the unbounded slice, so that one is read last.
        if isinstance(entry, Slice) and (entry.high or not place):
            line[place] = readers.submit(__read_slice, search, entry)
            idle, room = idle - 1, room - 1


def __found(
    search: Search, entry: Slice | Future | Page, first: Slice | Future | Page
) -> list[Slice | Future | Page]:
    """Return what replaces an entry of the line. A failed reading stays in the line until it is
    first, because the pages before it are correct and must be delivered."""
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
    """Read one page and return at most one page to deliver, and the slices that are left to read.

    A slice that fits on one page is complete. Of a larger slice, only records that are certain to
    be complete are delivered, and the rest is divided into slices again. Records that change
    meanwhile move to later slices, so none is missed.
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
        # Some records were updated just now and may have been found by an earlier timestamp, so
        # recent changes are read separately.
        if high is None or high > search.settled:
            recent = [Slice(search.settled, high)]
            high = search.settled
            if not settled:
                return [], [Slice(low, high), *recent]
        elif not settled:
            return [], __cut(search, part, page)
    times = settled or page.times
    # Not the last record: its position in the index may be older than the timestamp it shows.
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
    """Return the rest of a sorted slice, divided into slices that can be read at the same time if
    it is long enough.

    `span` is the time that the first page covers. All slices have the same length. It is chosen so
    that each slice has a few pages, judged by the total count; or, where the first page is denser
    than that, judged by the page. In the second case some slices may turn out to be empty, which
    limits their number.
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
    """Return the last page of the records that share one updatedAt and do not fit on one page.

    Updating a record moves it to a later timestamp, so a past timestamp only ever loses records,
    and the records after a lost one move towards the first page. Reading from the last page to the
    first, they move onto pages that have not been read yet.
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
    """Return a page of records that share one updatedAt, and the preceding page to read next."""
    if moment.number == 1:
        return [page.safe(moment.high)], []
    if not moment.first_page.isdisjoint(__versions(page)):
        raise SearchUnusableError("search returned the same record on two pages")
    return [page.safe(moment.low)], [moment._replace(number=moment.number - 1)]


def __cut(search: Search, part: Slice, page: Page) -> list[Slice]:
    """Return the slices that an unsorted slice is cut into. Its page is not used, because later
    pages may hold earlier records."""
    low, high = part.low, part.high
    if page.total is None:
        raise SearchUnusableError("search neither sorts nor counts what it finds")
    first, last = min(page.times), max(page.times)
    inside = high is None or last < high
    if inside and (last - first) * __SLICE_CROWDED < (high or search.end) - low:
        # The whole page is within a small part of the slice, so the other records may be, too.
        edges = [low, first, __later(last, __MILLISECOND), high]
    else:
        edges = __equal_parts(search, part, page)
    pairs = [pair for pair in zip(edges, edges[1:]) if pair[1] is None or pair[0] < pair[1]]
    return [Slice(*pair) for pair in pairs]


def __equal_parts(search: Search, part: Slice, page: Page) -> list[datetime | None]:
    """Return the edges of equal parts of an unsorted slice, as many as its count calls for."""
    low, high = part.low, part.high
    if high is None:
        # For timestamps in the future, look ever further ahead.
        known = [at for at in (search.settled, search.end) if at > low]
        high = known[0] if known else __later(low, max(__DAY, low - search.end))
    wanted = math.ceil(page.total / (__SLICE_SHARE_OF_PAGE * len(page.records)))
    parts = min(max(wanted, 2), __SLICE_MAX_PARTS)
    step = max((high - low) // __MILLISECOND // parts, 1) * __MILLISECOND
    edges = [low + place * step for place in range(parts) if low + place * step < high]
    return [*edges, high] if part.high else [*edges, high, None]


def __more_match(search: Search, part: Slice, page: Page) -> bool:
    """Return whether more records match than are on a slice's first page.

    If the count contradicts the links, or both are missing, the second page decides.
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

    Kustomer documents sorting for customers only, and an index in insertion order may return pages
    that ascend by chance. So search has to prove once that it sorts: the same query in descending
    order must begin with a different record, later than all records of the ascending page.
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
    """Request one page of a slice, and fill in the times of its records.

    Raises SearchUnusableError if search refuses, fails, or returns records outside the slice.
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
    """Return the description of a search for the log."""
    words = [f"{search.table.name}: search from {__format_time(part.low)}"]
    if part.high:
        words.append(f"to {__format_time(part.high)}")
    if number > 1:
        words.append(f"page {number}")
    if order == "desc":
        words.append("in descending order")
    return " ".join(words)


def __times_inside(search: Search, part: Slice, records: list) -> list[datetime]:
    """Return when each record was updated, to the millisecond. Raise SearchUnusableError if a
    record has no readable updatedAt or does not belong in the slice.

    A record that was updated just now may have been found by its previous timestamp.
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
# Reads a whole list page by page, even if records leave the list while it is read and however the
# server treats page sizes. Warns if records may be missing.
# Source: https://developer.kustomer.com/docs/concepts/pagination.
# --------------------------------------------------------------------------------------------

# Smaller pages cannot overlap the page before them enough.
__PAGE_MIN_RECORDS = 20
# Not documented, but seen by other clients: lists that end here although there are more records.
__LIST_MAX_COUNT = 10_000
# https://developer.kustomer.com/api/users, read 2026-11-23: lists deactivated users.
__DEACTIVATED = {"deleted": "true"}
# If a page does not overlap the page before it, reading goes back by this many pages, further each
# time. After the last attempt, a gap is accepted.
__LIST_STEPS_BACK = (0, 4, 32)
# How many records of a list are remembered: more than the furthest step back covers.
__LIST_REMEMBERED_RECORDS = 6_400
# Stop after this many consecutive pages without a new record, because the list does not end.
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
    """A list that is being read. `params` are sent with each request. `recent` has the versions of
    the records read most recently, and `order` has them in the order in which they were read."""

    client: "Client"
    table: Table
    params: dict[str, str] = field(default_factory=dict)
    recent: set = field(default_factory=set)
    order: deque = field(default_factory=deque)
    pages_without_news: int = 0


def __list_pages(client: "Client", table: Table) -> Iterator[Page]:
    """Yield every page of a table's list, and at least one. Some records may appear twice.

    Raises KustomerError if the key lacks the role for the list, or if the list does not end.
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
    # A list without any active record must be wrong, and must not cause rows to be removed.
    for page in __pages_of(client, table, __DEACTIVATED) if active else ():
        for record in page.records:
            attributes = __attributes(record)
            # A record on both lists was deactivated in between, or the parameter was ignored.
            marked = bool(attributes.get("deletedAt")) or __flag(attributes.get("deleted")) is True
            attributes["deactivated"] = marked or __record_id(record) not in active
        yield page


def __pages_of(client: "Client", table: Table, params: dict[str, str]) -> Iterator[Page]:
    """Yield every page of one list, however the server treats page sizes."""
    try:
        yield from __overlapping_pages(Listing(client, table, params))
    except PageSizeError:
        yield from __numbered_pages(Listing(client, table, params))


def __overlapping_pages(listing: Listing) -> Iterator[Page]:
    """Yield the pages of a list, each of which begins with the last records of the page before.

    When a record leaves the list, the records after it move up, and the first record of the next
    page moves onto a page already read. As long as a page overlaps the records already read, none
    has been missed.

    Raises PageSizeError if the server does not return pages of the requested size.
    """
    limit = __page_size(listing.client, listing.table.page_maximum)
    reached, began, margin, misses, warned = 0, 0, 1, 0, False
    while True:
        number, size = __overlapping_page(max(reached - margin + 1, 0) if reached else 0, limit)
        page = __sized_page(listing, number, size)
        joins = number == 1 or not listing.recent.isdisjoint(__versions(page))
        if not joins and misses < len(__LIST_STEPS_BACK):
            # Many records have left the list: go back, and let the pages overlap more.
            margin = min(margin * 4, limit // 4)
            reached = max(began - __LIST_STEPS_BACK[misses] * limit, 0) + margin
            misses += 1
            continue
        if not joins and not warned:
            warned = True
            listing.client.warnings.append(
                f"{listing.table.name}: so many records left the list while it was read that "
                "others may have been missed. They arrive when they change, or with a re-sync."
            )
        if joins and misses and page.more is None:
            # Reading has gone back, so more records follow.
            page.more = True
        began = (number - 1) * size
        reached = began + len(page.records)
        __take_new(listing, page, reached)
        misses = 0 if page.records else misses
        yield page
        if page.ended:
            return


def __overlapping_page(reached: int, limit: int) -> tuple[int, int]:
    """Return the number and size of the page that includes the last of the first `reached` records
    of a list and extends furthest beyond it."""
    if not reached:
        return 1, limit
    sizes = range(1, limit + 1)
    size = max(sizes, key=lambda size: ((reached - 1) // size + 1) * size)
    return (reached - 1) // size + 1, size


def __sized_page(listing: Listing, number: int, size: int) -> Page:
    """Return a page, or raise PageSizeError if it does not have the requested size."""
    try:
        page = __list_page(listing, number, size)
    except RefusedError as error:
        if error.status not in __BAD_REQUESTS or __takes_size(listing, number, size):
            raise
        raise PageSizeError from None
    short = len(page.records) < size
    if short and page.records and page.more is None:
        # This may be the end of the list, or the most that the server returns at a time.
        after = __list_page(listing, number + 1, size)
        page.more = not __versions(after) <= __versions(page)
    if len(page.records) > size or short and page.more:
        raise PageSizeError
    return page


def __takes_size(listing: Listing, number: int, size: int) -> bool:
    """Return whether the server accepts this page size for the first page."""
    try:
        return number > 1 and bool(__list_page(listing, 1, size))
    except RefusedError:
        return False


def __numbered_pages(listing: Listing) -> Iterator[Page]:
    """Yield the pages of a list one after the other, in whatever size the server returns."""
    number, read, page = 0, 0, Page([])
    while not page.ended:
        number += 1
        if number == 2:
            listing.client.warnings.append(
                f"{listing.table.name}: Kustomer does not return pages of the requested size, so "
                "records may be missed if others leave the list while it is read. They arrive "
                "when they change, or with a re-sync."
            )
        page = __list_page(listing, number)
        read += len(page.records)
        __take_new(listing, page, read)
        yield page


def __take_new(listing: Listing, page: Page, read: int) -> None:
    """Keep only the new records of a page, and note whether the list ends with it.

    `read` is the number of records up to the end of this page. Without links, a page without a new
    record is the end.
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
        found = f"Kustomer counts {total} records, but its list ended after {read}"
    elif total is None and read == __LIST_MAX_COUNT:
        found = f"the list ended after exactly {read} records, which may not be all"
    else:
        return
    remedy = (
        f"Use a key with the role {__SEARCH_ROLE}, so that search can find changes."
        if listing.table.search and listing.table.search_is_documented
        else "Ask Kustomer how to read the other records."
    )
    listing.client.warnings.append(f"{name}: {found}. {remedy}")


def __list_page(listing: Listing, number: int, size: int | None = None) -> Page:
    """Request one page of a list. Without a size, the server's default applies."""
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
    # A key that has become invalid meanwhile is refused with the same message.
    check_api_key(client)
    raise KustomerError(f"{refusal}. The API key lacks the role {table.role}. {__NEW_KEY}")


# --------------------------------------------------------------------------------------------
# Requests
#
# Sends a request, retries it if needed, and returns the JSON of the response. The key is sent only
# to the configured host, and never appears in a log line or an error.
# --------------------------------------------------------------------------------------------

__KEY_PATH = "/v1/users/current"
__BACKOFF_BASE_SECONDS = 1.0
__BACKOFF_MAX_SECONDS = 60.0
__RATE_LIMIT_MAX_WAIT_SECONDS = 120.0
__RATE_LIMIT_MAX_TOTAL_SECONDS = 900.0
# Clients that wait for the same reset must not all return at the same instant.
__RATE_LIMIT_JITTER_SHARE = 0.05
# How long lists wait if a response does not say when the limit is reset.
__SHARE_WAIT_SECONDS = 5.0
# x-ratelimit-reset is in epoch milliseconds from the first value on, in epoch seconds from the
# second value on, and below that the number of seconds left.
__EPOCH_MILLISECONDS_FROM = 1e11
__EPOCH_SECONDS_FROM = 1e8
# A response must be complete within this many request timeouts.
__ANSWER_MAX_TIMEOUTS = 10
__READ_BYTES = 128 * 1024
__API_MESSAGE_MAX_CHARACTERS = 300
__LOG_EVERY_SECONDS = 30.0
# What a network error says, by the first of these types among its causes.
__NETWORK_CAUSES = (
    (socket.gaierror, "the host name was not found"),
    (ssl.SSLCertVerificationError, "the certificate is not valid"),
    (ssl.SSLError, "no secure connection could be established"),
    (requests.exceptions.ProxyError, "the proxy did not respond"),
    (ConnectionRefusedError, "the connection was refused"),
    (requests.exceptions.Timeout, "the request timed out"),
    (TimeoutError, "the request timed out"),
    (ConnectionError, "the connection broke"),
)


class BearerAuth(requests.auth.AuthBase):
    """Adds the API key to a request. With an auth object, requests ignores any .netrc file."""

    def __init__(self, api_key: str):
        self._header = f"Bearer {api_key}"

    def __call__(self, request):
        request.headers["Authorization"] = self._header
        return request


@dataclass
class Client:
    """What the requests of one sync share: the connection, the settings and the counts. Several
    threads use it; `lock` protects its counts.

    `warn` shows a warning that the user should act on. `warnings` holds the warnings of other
    threads until the main thread shows them. `clock_ahead` is how far this machine's clock is
    ahead of Kustomer's, or None before the first response. Setting `closed` ends all waits and
    retries, because nobody needs their results any more.

    `gate` is held while a request waits for the rate limit, so that no other request is sent, and
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
    """Yield a Client with one keep-alive session, which is closed at the end."""
    with requests.Session() as session:
        session.auth = BearerAuth(settings.api_key)
        session.headers["Accept"] = "application/json"
        session.headers["User-Agent"] = f"fivetran-kustomer-connector/{VERSION}"
        # Proxies of the environment must not be used for a mock on this machine.
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
    """Write a log line during a sync. At other times the SDK has no log."""
    if log.LOG_LEVEL is not None:
        write(message)


def __log_now_and_then(client: Client, message: str, silence_ahead: float = 0.0) -> None:
    """Log at most one line per 30 seconds, and one before any longer wait.

    Args:
        silence_ahead: the number of seconds for which no other line can follow.
    """
    silent_until = time.monotonic() + silence_ahead
    if silent_until - client.last_log_at >= __LOG_EVERY_SECONDS:
        client.last_log_at = silent_until
        __log(log.info, message)


def check_api_key(client: Client) -> None:
    """Check that the API key is valid.

    Raises:
        SyncStoppedError: if Kustomer does not accept the key in this region.

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
            f"({error.reason}). It is invalid, expired or from another region: check api_key (and "
            "its IP restriction), and set base_url to your organization's region."
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
    """Send a request, with waits and retries as needed, and return the parsed JSON.

    After a 429, wait as long as its headers ask, for at most fifteen minutes in all. Retry
    timeouts, broken connections, 5xx, responses that are not a JSON object, and partial responses
    `retry_attempts` times; also a 401 or 403 that does not come from Kustomer itself.

    Args:
        endpoint: the path, which begins with /v1.
        api_key: the Kustomer API key.
        params: query parameters.
        configuration: the connector's configuration; used if there is no `client`.
        body: a JSON body. With a body, the request is a POST, otherwise a GET.
        client: the running sync's client.
        purpose: a description for the log; method and path by default.

    Returns:
        The JSON object of the response.

    Raises:
        RefusedError: after a status that retrying cannot fix.
        SyncStoppedError: if the rate limit stays used up.
        KustomerError: if all retries fail.

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
                # If another request has waited in the meantime, this one need not wait as well.
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
    """Send a request once and return the JSON object of the response, or raise an error that says
    whether to retry."""
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
            # In larger chunks than the default of requests, which takes much more CPU.
            return response, b"".join(response.iter_content(__READ_BYTES))

    with client.lock:
        client.requests_sent += 1
    with __debug_line(settings, purpose) as notes:
        try:
            response, content = __within(
                __ANSWER_MAX_TIMEOUTS * settings.request_timeout_seconds, send
            )
        except DeadlineError:
            cause = "the response was not complete in time"
        except requests.RequestException as error:
            cause = __network_cause(error)
        if cause:
            # Raised outside of the except clause, whose exception holds the request with the key.
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
    """Write a log line at the end of a request if debug logging is on. Yield the list of notes
    that the line will contain."""
    started, notes = time.perf_counter(), []
    try:
        yield notes
    finally:
        if settings.enable_debug_logging:
            notes.append(f"{(time.perf_counter() - started) * 1000:.0f} ms")
            __log(log.info, f"{request}: {', '.join(notes)}")


def __within(seconds: float, call: Callable[[], Any]) -> Any:
    """Return what `call` returns, or raise DeadlineError if that takes longer.

    The timeout of a request applies between two bytes, so a response that trickles in never times
    out. Such a call is abandoned in a thread of its own, which does not keep the process running.
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
    """Return a description of a network error."""
    causes: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in causes:
        causes.append(link)
        link = link.__cause__ or link.__context__
    for kind, words in __NETWORK_CAUSES:
        if any(isinstance(cause, kind) for cause in causes):
            return words
    return "the response was not complete"


def __read_answer(response, content: bytes, request: str, api_key: str) -> dict:
    """Return the JSON object of a response, or raise an error. Only this function decides which
    responses are retried and which are final."""
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
        raise TryAgainError("status 200 with a response that is not a JSON object")
    meta = payload.get("meta")
    if isinstance(meta, dict) and meta.get("timed_out"):
        raise TryAgainError("status 200 with a partial response (meta.timed_out)")
    return payload


def __parsed(content: bytes) -> dict | None:
    try:
        payload = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return payload if isinstance(payload, dict) else None


def __api_message(status: int, payload: dict | None, api_key: str) -> str:
    """Return Kustomer's error message: only the fields that describe errors, nothing else from the
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
    """Wait after a 429 and return the seconds waited.

    Raises SyncStoppedError if the request has already waited for the maximum time.
    """
    if waited >= __RATE_LIMIT_MAX_TOTAL_SECONDS or client.closed.is_set():
        raise SyncStoppedError(
            f"{request} returned 429 (rate limit) for {waited / 60:.0f} minutes. Other keys and "
            "apps of the organization share its limit. The next sync resumes from here."
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
    """Wait, count the seconds, and log the reason and the end. The wait ends early if the client
    is closed."""
    end = datetime.now(timezone.utc) + timedelta(seconds=seconds)
    __log_now_and_then(
        client, f"{reason}; waiting {seconds:.1f} s, until {end:%H:%M:%S} UTC.", seconds
    )
    with client.lock:
        client.seconds_waited += seconds
    client.closed.wait(seconds)


def __note_share(client: Client, headers) -> None:
    """Note how long requests for lists have to wait, according to what a response says about the
    organization's budget, which agents' apps share.

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
    """Wait if the last list used up this connector's share of the organization's budget."""
    seconds = client.share_used_until - time.monotonic()
    if seconds > 0:
        share = client.settings.api_utilization_percentage
        reason = f"{purpose}: {share} % of the organization's requests a minute are used"
        __wait(client, seconds, reason)


def __seconds_until_reset(headers) -> float | None:
    """Return how long a response asks to wait, or None if it names no time in the future."""
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
    """Return a wait with full jitter, so that requests that fail together are not retried
    together."""
    ceiling = min(__BACKOFF_MAX_SECONDS, __BACKOFF_BASE_SECONDS * 2**earlier_failures)
    return random.uniform(0, ceiling)


def __handle_request_error(
    client: Client, request: str, cause: str, failures: int, purpose: str
) -> None:
    """Wait before the next retry, or raise KustomerError if none is left."""
    if client.closed.is_set():
        raise SyncStoppedError(f"{request} was abandoned because the sync has ended.")
    if failures >= client.settings.retry_attempts:
        times = f" {failures + 1} times. The last error was" if failures else ""
        raise KustomerError(
            f"{request} failed{times}: {cause}. If this persists, check your network, base_url "
            "and whether Kustomer is up; raise retry_attempts or request_timeout_seconds, or "
            "lower max_records_per_page."
        )
    __wait(client, __backoff_seconds(failures), f"{purpose}: {cause}")


# --------------------------------------------------------------------------------------------
# Time
#
# All times are in UTC, in Kustomer's format: with milliseconds and a Z.
# --------------------------------------------------------------------------------------------

# Covers the delay of the search index and differences between clocks.
__OVERLAP = timedelta(minutes=10)
# Kustomer's format: https://developer.kustomer.com/docs/concepts/json-api-format.
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
    """Return the time range of changes that a sync starting now has to read.

    The range begins ten minutes before `last_sync_time`, because the search index is updated with
    a delay. The rows in this overlap are delivered again; the primary key makes that harmless.

    Args:
        last_sync_time: an ISO time, or None for a first sync.
        configuration: the connector's configuration; `initial_sync_days` applies to a first sync.
        now: the current time according to Kustomer; this machine's clock by default.

    Returns:
        {"start": ..., "end": ...}, ISO times in UTC; the end is now.

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
        # If the clock was ahead when this time was saved, later changes must not be skipped.
        start = max(min(last, end), __EPOCH) - __OVERLAP
    return {"start": __format_time(start), "end": __format_time(end)}


def __now(client: Client | None = None) -> datetime:
    """Return the current time according to the earlier of two clocks, this machine's and
    Kustomer's (if known). A clock that is ahead would make the next sync skip changes."""
    ahead = client.clock_ahead if client else None
    now = datetime.now(timezone.utc) - max(ahead or timedelta(0), timedelta(0))
    return __whole_milliseconds(max(now, __EPOCH))


def __note_clock(client: Client, date: str | None) -> None:
    """Note how far this machine's clock is ahead, from the first response that has a date."""
    if client.clock_ahead is None and (kustomers := __header_date(date)):
        client.clock_ahead = datetime.now(timezone.utc) - kustomers


def __whole_milliseconds(moment: datetime) -> datetime:
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def __parse_time(value) -> datetime | None:
    """Return the time that an ISO string names (in UTC if it has no offset), or None."""
    return __read_time(value)[0] if isinstance(value, str) else None


def __read_time(text: str) -> tuple[datetime | None, str | None]:
    """Return the time that an ISO string names, and the same time in Kustomer's format."""
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
    """Return a UTC time in Kustomer's format, with microseconds only if it has any."""
    precision = "microseconds" if moment.microsecond % 1000 else "milliseconds"
    return moment.isoformat(timespec=precision)[: -len("+00:00")] + "Z"


# --------------------------------------------------------------------------------------------
# Setup form
#
# The form that Fivetran shows when a connection is set up, and the tests of its values.
# --------------------------------------------------------------------------------------------


def configuration_form() -> ConfigurationForm:
    """Return the setup form: a field for every setting, and the setup tests."""
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
    """Setup test: every setting is valid."""
    return __run_setup_test(configuration, lambda client: None)


def test_api_key(configuration: dict):
    """Setup test: the key is valid in the region of `base_url`."""
    return __run_setup_test(configuration, check_api_key)


def test_roles(configuration: dict):
    """Setup test: the key can read every table. A failure names all missing roles."""
    return __run_setup_test(configuration, __read_one_of_each)


def test_search(configuration: dict):
    """Setup test: search works. Without search, syncs are correct but take more requests, so this
    test never fails; a warning says what is missing."""
    return __run_setup_test(configuration, __search_customers)


def __run_setup_test(configuration: dict, check: Callable[[Client], None]):
    """Return the result of a setup test, which passes if `check` does not raise."""
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
            f"{reason}. Without search, every sync reads the whole lists of {searched}."
        )


connector = Connector(update=update, schema=schema, configuration_form=configuration_form)

if __name__ == "__main__":
    # For a run from an editor. `fivetran debug` does not execute this block.
    with open("configuration.json", encoding="utf-8") as file:
        connector.debug(configuration=json.load(file))

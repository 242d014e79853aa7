"""A Fivetran connector that syncs customers, companies, brands, messages and optional further
tables from Kustomer.

Each section can be read on its own. Its first comment says what the other sections can rely on:

    Columns              how a column's value is read from a record
    Tables               the tables: their columns, and the function that returns their rows
    Settings             the configuration keys, their allowed values and their errors
    Sync                 schema() and update(): operations, state and log
    Rows                 pages of records become pages of rows, from search or from a list
    Search               finds changed records by time
    Lists                reads a whole list, even if records leave it meanwhile
    Requests             HTTP requests, retries and waits
    Time                 timestamps, the time range of a sync, and clocks
    Setup form           the form and the tests that Fivetran shows for a connection

A record takes this path to the destination: `__read_response` parses the response, and `__page`
takes the records from it. `__search_pages` or `__list_pages` drops records that have already been
read. `__make_rows` maps the others to rows (see `__map_record`), and `__deliver` upserts the rows.
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
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures import TimeoutError as DeadlineError
from dataclasses import dataclass, field, make_dataclass
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Callable, Iterator, NamedTuple
from urllib.parse import urlsplit

import requests
from fivetran_connector_sdk import ConfigurationForm, Connector, Test, form_field
from fivetran_connector_sdk import Logging as log
from fivetran_connector_sdk import Operations as op

VERSION = "1.3.0"


class KustomerError(Exception):
    """A table cannot be read. The message says why, and what the user can do about it."""


class SyncStoppedError(KustomerError):
    """No further table can be read, so the sync ends immediately."""


class RefusedError(KustomerError):
    """Kustomer refused a request, and retrying cannot help.

    `status` is the HTTP status and `reason` is Kustomer's error message.
    """

    def __init__(self, message: str, status: int, reason: str):
        super().__init__(message, status, reason)
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        return self.args[0]


class SearchUnusableError(Exception):
    """Search cannot be used for a table, so the table is read from its list. The message says why."""


class SearchFailedError(SearchUnusableError):
    """Search failed after all retries, or cannot be tested now. It may work in the next sync."""


class SearchRefusedError(SearchUnusableError):
    """Search refuses a table and would refuse it again, so the next sync does not resume it."""


class PageSizeError(Exception):
    """A list does not return pages of the requested size, so its pages cannot overlap."""


class RetryableError(Exception):
    """Internal: `execute_api_request` catches it and retries. The message is the cause."""


class RateLimitError(RetryableError):
    """Internal: a 429 response. The argument is the response's headers."""


# --------------------------------------------------------------------------------------------
# Columns
#
# A column has a Fivetran type, the attribute that it is read from, and a function that converts
# the attribute's value. A missing value is None, whether Kustomer omits the attribute or sends
# null, "", [] or {}. Nothing in this section raises, whatever a record contains.
# --------------------------------------------------------------------------------------------

__LONE_SURROGATE = re.compile("[\ud800-\udfff]")
__compact_json = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), check_circular=False
).encode
__BOOLEAN_WORDS = {"true": True, "false": False}
# INT has 32 bits: https://fivetran.com/docs/connectors/connector-sdk/technical-reference.
__INT_RANGE = (-(2**31), 2**31 - 1)


class Column(NamedTuple):
    """A column of a table.

    `source` is the attribute that it is read from, or None for the whole record. `convert` returns
    the column's value, or None. If the value is None, it is read from `fallback` instead.
    """

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
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def __updated_at(record) -> datetime | None:
    return __parse_time(__attributes(record).get("updatedAt"))


def __version(record) -> tuple[str | None, str]:
    """Return a record's id and updatedAt, which together identify one version of the record."""
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
            # JSON allows half of a surrogate pair, but destinations cannot store it.
            return __LONE_SURROGATE.sub("\ufffd", value)
    return value or None


def __boolean(value) -> bool | None:
    if isinstance(value, bool):
        return value
    return __BOOLEAN_WORDS.get(value.lower()) if isinstance(value, str) else None


def __integer(value) -> int | None:
    """Return a whole number that fits into an INT column, or None."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,10}", value, re.ASCII):
        value = int(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole or isinstance(value, float) and value.is_integer():
        return int(value) if __INT_RANGE[0] <= value <= __INT_RANGE[1] else None
    return None


def __time(value) -> str | None:
    """Return a time in UTC, in Kustomer's format, or None if it cannot be parsed."""
    return __read_time(value)[1] if isinstance(value, str) else None


def __related_id(record: dict, name: str) -> str | None:
    """Return the id of a related record. The type is not checked, because Kustomer sends some wrong
    ones."""
    relationships = record.get("relationships")
    relation = relationships.get(name) if isinstance(relationships, dict) else None
    return __record_id(relation.get("data")) if isinstance(relation, dict) else None


def __first_of(entries, name: str, preferred: tuple[str, Any] | None = None):
    """Return the value of `name` in the first entry that has it.

    An entry with the preferred attribute value comes before all others. A string stands for
    itself.
    """
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


# The kinds of columns. `name` is the name of an attribute in Kustomer's records.


def text(name: str, fallback: Column | None = None) -> Column:
    """A string. Any other value is converted to JSON."""
    return Column("STRING", name, __text, fallback)


def as_json(name: str) -> Column:
    """A list or object as JSON, in a STRING column because every destination supports it."""
    return Column("STRING", name, __text)


def boolean(name: str) -> Column:
    """A boolean. The strings "true" and "false" are accepted as well."""
    return Column("BOOLEAN", name, __boolean)


def integer(name: str) -> Column:
    """A whole number of at most 32 bits."""
    return Column("INT", name, __integer)


def time_of(name: str) -> Column:
    """A time, converted to UTC."""
    return Column("UTC_DATETIME", name, __time)


def nested(name: str, inner: str) -> Column:
    """One value of an attribute that is an object, as a string."""
    return Column(
        "STRING", name, lambda value: __text(value.get(inner)) if isinstance(value, dict) else None
    )


def related(name: str, fallback: Column) -> Column:
    """The id of a related record, from `relationships`."""
    return Column("STRING", None, lambda record: __text(__related_id(record, name)), fallback)


def reference(name: str, fallback: Column | None = None) -> Column:
    """The id of another record, from an attribute. Anything but a string is ignored."""
    return Column(
        "STRING", name, lambda value: __text(value) if isinstance(value, str) else None, fallback
    )


def first_of(name: str, entry_name: str, preferred: tuple[str, Any] | None = None) -> Column:
    """One value from a list of objects: from the first entry with the preferred attribute value, or
    else from the first entry that has a value."""
    return Column("STRING", name, lambda value: __text(__first_of(value, entry_name, preferred)))


def each_of(name: str, entry_name: str) -> Column:
    """One value from each entry of a list, as a JSON array. An entry is an object or a string."""

    def convert(entries) -> str | None:
        if not isinstance(entries, list):
            return __text(entries)
        values = (e.get(entry_name) if isinstance(e, dict) else e for e in entries)
        return __text([value for value in values if value])

    return Column("STRING", name, convert)


RECORD_ID = Column("STRING", None, lambda record: __text(__record_id(record)))
CHANGE_TIMES = {"created_at": time_of("createdAt"), "updated_at": time_of("updatedAt")}

# --------------------------------------------------------------------------------------------
# Tables
#
# Each table is declared once. The schema, the rows, the setup tests and the errors use this
# declaration. To add a column, add it to the table's `columns`. To add a table, add a `Table` and
# a function that returns its rows, and add both to GENERATORS. List both in docs/tables.md.
# --------------------------------------------------------------------------------------------


class Table:
    """A table in the destination, and where its records are in Kustomer.

    Args:
        name: the name of the table, and of its list in Kustomer's API.
        object_name: the name of the object in the role that the API key needs.
        columns: the columns, in the order of the destination.
        search: the query context that finds the table's records in a search, or None.
        search_is_documented: if false, search is used only after it has found a record of the
            table.
        mirrored: every sync reads the whole list, and truncates the table before its first row.
        on_request: the table is read only if the setting `additional_tables` names it.
        legacy_role: the legacy role, if its name does not follow from `object_name`.
        page_maximum: the most records that Kustomer returns in a page of the list.
        lists_deactivated: Kustomer has a second list, of deactivated records. They stay in the
            table, with `deactivated` set to true.
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
        lists_deactivated: bool = False,
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
        self.lists_deactivated = lists_deactivated
        self.readers = [(column, *declared) for column, declared in columns.items()]
        # The columns whose conversion can fail, and which are then counted as unreadable.
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
        "verified": boolean("verified"),
        "locked": boolean("locked"),
        "emails": as_json("emails"),
        "phones": as_json("phones"),
        "tags": as_json("tags"),
        "custom": as_json("custom"),
        "deleted": boolean("deleted"),
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
        # Kustomer's own examples misspell the attribute.
        "external_id": text("externalId", text("extenalId")),
        "tags": as_json("tags"),
        "custom": as_json("custom"),
        "deleted": boolean("deleted"),
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
        "is_default": boolean("default"),
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
        "subject": text("subject", nested("meta", "subject")),
        # Other clients have only ever received `preview`: plain text of at most 10,240 characters.
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
        "priority": integer("priority"),
        "channels": as_json("channels"),
        "tags": as_json("tags"),
        "assigned_users": as_json("assignedUsers"),
        "assigned_teams": as_json("assignedTeams"),
        "message_count": integer("messageCount"),
        "note_count": integer("noteCount"),
        "outbound_message_count": integer("outboundMessageCount"),
        "done_count": integer("doneCount"),
        "reopen_count": integer("reopenCount"),
        "snooze_count": integer("snoozeCount"),
        "satisfaction": text("satisfaction"),
        "satisfaction_level": as_json("satisfactionLevel"),
        "first_response": as_json("firstResponse"),
        "last_response": as_json("lastResponse"),
        "first_done": as_json("firstDone"),
        "last_done": as_json("lastDone"),
        "sla": as_json("sla"),
        "snooze": as_json("snooze"),
        "ended": boolean("ended"),
        "ended_at": time_of("endedAt"),
        "ended_reason": text("endedReason"),
        "ended_by_type": text("endedByType"),
        "last_activity_at": time_of("lastActivityAt"),
        "last_message_at": time_of("lastMessageAt"),
        "custom": as_json("custom"),
        "deleted": boolean("deleted"),
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
        "deleted": boolean("deleted"),
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
    lists_deactivated=True,
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
        "deactivated": boolean("deactivated"),
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
        "deleted": boolean("deleted"),
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
        "deleted": boolean("deleted"),
        "deleted_at": time_of("deletedAt"),
        **CHANGE_TIMES,
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

    Deleted customers are included if search can be used. The first request is sent when the first
    row is requested.

    Args:
        api_key: the Kustomer API key.
        last_sync_time: the ISO time of the last sync, or None for a first sync, which goes back
            `initial_sync_days`. Changes in the ten minutes before this time are read again.
        configuration: the connector's configuration. Missing settings have their defaults.
        client: the client of a running sync. By default, a new client is opened. Closing the rows
            before their end also ends all other requests of the client.

    Returns:
        An iterator of rows. Each row is a dict with a value or None for every column. A record
        may appear twice; its last row is current. Iterate over `pages` instead to get the rows
        page by page, with the ids of deleted records.

    Raises:
        KustomerError: while iterating, if the key lacks a role or a request fails.
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

    Deleted companies are included if search supports companies.

    For the arguments, the rows and the errors, see `get_customers`.
    """
    return __rows(COMPANIES, api_key, last_sync_time, configuration, client)


def get_brands(
    api_key: str, configuration: dict | None = None, *, client: "Client | None" = None
) -> "Rows":
    """Return the rows of all brands, after reading the whole list.

    For the arguments, the rows and the errors, see `get_customers`.
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

    Deleted messages are included if search can be used.

    For the arguments, the rows and the errors, see `get_customers`.
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

    Deleted conversations are included if search can be used.

    For the arguments, the rows and the errors, see `get_customers`.
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

    Deleted notes are included if search can be used.

    For the arguments, the rows and the errors, see `get_customers`.
    """
    return __rows(NOTES, api_key, last_sync_time, configuration, client)


def get_users(
    api_key: str, configuration: dict | None = None, *, client: "Client | None" = None
) -> "Rows":
    """Return the rows of all users, including deactivated ones, after reading both lists.

    For the arguments, the rows and the errors, see `get_customers`.
    """
    return __rows(USERS, api_key, None, configuration, client)


def get_teams(
    api_key: str, configuration: dict | None = None, *, client: "Client | None" = None
) -> "Rows":
    """Return the rows of all teams, after reading the whole list.

    For the arguments, the rows and the errors, see `get_customers`.
    """
    return __rows(TEAMS, api_key, None, configuration, client)


def get_tags(
    api_key: str, configuration: dict | None = None, *, client: "Client | None" = None
) -> "Rows":
    """Return the rows of all tags, after reading the whole list.

    For the arguments, the rows and the errors, see `get_customers`.
    """
    return __rows(TAGS, api_key, None, configuration, client)


# The tables, in the order in which a sync reads them, and the functions that return their rows.
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
# Each setting is declared once, in SETTINGS: its default, its allowed values and its text on the
# setup form. To add a setting, add it there and to README.md. The whole configuration is checked
# before the first request. An error never shows a value that might be a key.
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
    if not re.fullmatch(r"[!#-&(-~]+", text):
        raise ValueError(
            "must not contain spaces, quotation marks, line breaks or other characters that keys do "
            "not have; copy the key again, without 'Bearer'"
        )
    return text


def __parse_number(lowest: int, highest: int, text: str) -> int:
    text = text.strip()
    if not re.fullmatch(r"[0-9]{1,9}", text) or not lowest <= int(text) <= highest:
        raise ValueError(f"must be a whole number from {lowest} to {highest}")
    return int(text)


def __parse_switch(text: str) -> bool:
    switch = __SWITCH_WORDS.get(text.strip().lower())
    if switch is None:
        raise ValueError("must be true or false (or yes/no, on/off, 1/0)")
    return switch


def __parse_tables(text: str) -> tuple[str, ...]:
    """Return the names of the additional tables, in the order of TABLES."""
    words = [word for word in re.split(r"[,\s]+", text.lower()) if word]
    unknown = [word for word in words if word not in (*ADDITIONAL_TABLES, __ALL_TABLES)]
    if unknown:
        raise ValueError(
            f"must be one or more of {', '.join(ADDITIONAL_TABLES)}, separated by commas, or "
            f"{__ALL_TABLES}"
        )
    return tuple(n for n in ADDITIONAL_TABLES if n in words or __ALL_TABLES in words)


def __parse_origin(text: str) -> str:
    """Return the origin of the API, given an address or the name of an organization.

    Source: https://developer.kustomer.com/docs/get-started/regions-and-base-urls.
    """
    text = text.strip()
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
    if "@" in parts.netloc or not re.fullmatch(r"[a-z0-9.:-]+", host):
        raise problem
    if parts.scheme == "http" and __is_loopback(host):
        return f"http://{parts.netloc.lower()}"
    labels = host[: -len(__KUSTOMER_DOMAIN) - 1].split(".")
    if parts.scheme != "https" or port not in (None, 443):
        raise problem
    if not host.endswith("." + __KUSTOMER_DOMAIN) or not all(map(__is_label, labels)):
        raise problem
    if "api" not in labels:
        labels.insert(1, "api")
    return f"https://{'.'.join(labels)}.{__KUSTOMER_DOMAIN}"


def __is_label(text: str) -> bool:
    """Return whether a text can be one of the parts of a host name, which are limited to 63
    characters."""
    return bool(re.fullmatch(r"[a-z0-9-]{1,63}", text))


def __is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Setting(NamedTuple):
    """A configuration key.

    `parse` converts its string, or raises a ValueError that says what the value must be. `label`
    and `description` are shown on the setup form. If `default` is None, there is no default.
    """

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
        "Create a key in Kustomer under Settings > Security > API Keys. It needs a role for each "
        "table (customers, companies, brands, messages and any additional tables) and the role "
        "for search.",
    ),
    Setting(
        "base_url",
        __parse_origin,
        __DEFAULT_ORIGIN,
        "Kustomer address",
        "US: https://api.kustomerapp.com. EU: https://api.prod2.kustomerapp.com. "
        "India: https://api.prod4.kustomerapp.com. Your organization's name or its address on "
        "kustomerapp.com works too.",
    ),
    Setting(
        "additional_tables",
        __parse_tables,
        (),
        "Additional tables",
        f"More tables to sync: any of {', '.join(ADDITIONAL_TABLES)}, separated by commas, or "
        f"{__ALL_TABLES}. Leave empty for none. The API key needs a role for each table.",
    ),
    __number(
        "initial_sync_days",
        (1, 365),
        90,
        "Days of history",
        "The first sync reads records that changed in this many days before it.",
    ),
    __number(
        "sync_frequency_hours",
        (1, 168),
        None,
        "Minimum hours between syncs of a table",
        "A sync skips tables that were read less than this many hours ago. Leave empty to read "
        "every table in every sync.",
    ),
    __number(
        "max_records_per_page",
        (1, 1000),
        500,
        "Records per page",
        "The number of records to request per page. Kustomer returns at most 100 per page of most "
        "lists, and at most 500 per page of a search.",
    ),
    __number(
        "api_utilization_percentage",
        (10, 100),
        90,
        "API utilization (percent)",
        "List requests wait while the organization's apps together have used more than this "
        "percentage of its requests per minute. Searches have their own rate limit and do not "
        "wait.",
    ),
    __number(
        "request_timeout_seconds",
        (1, 300),
        30,
        "Request timeout (seconds)",
        "How long to wait for a connection, and for each part of a response.",
    ),
    __number(
        "retry_attempts",
        (0, 10),
        3,
        "Retries",
        "How many times to retry a failed request. Waiting for the rate limit does not count as a "
        "retry.",
    ),
    Setting(
        "enable_incremental_sync",
        __parse_switch,
        True,
        "Incremental sync",
        "On (default): a sync reads only what changed since the last one. Off: every sync reads all "
        "records.",
    ),
    Setting(
        "enable_debug_logging",
        __parse_switch,
        False,
        "Debug logging",
        "On: the log has a line for each request. The default is off.",
    ),
)
__SETTING = {setting.name: setting for setting in SETTINGS}
__API_KEY = __SETTING["api_key"]


# A valid configuration: a field for each setting, with its converted value or its default.
Settings = make_dataclass(
    "Settings",
    [(setting.name, Any, field(repr=setting is not __API_KEY)) for setting in SETTINGS],
    frozen=True,
)


def validate_configuration(configuration: dict | None) -> Settings:
    """Check the whole configuration and convert its values.

    Args:
        configuration: the dict of strings that Fivetran passes. An empty string or an unchanged
            `<PLACEHOLDER>` counts as not set.

    Returns:
        The Settings, with the default of each setting that is not set.

    Raises:
        ValueError: names every invalid setting with its value (unless it might be a key) and says
            what it must be.
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
    """Return the converted value of a setting.

    Raises ValueError with the setting's name, its value if that is safe to show, and what it must
    be.
    """
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
        return setting.parse(value)
    if setting is __API_KEY:
        raise ValueError(
            "is required; create a key in Kustomer under Settings > Security > API Keys"
        )
    return setting.default


def __safe_to_show(setting: Setting, value, api_key) -> str:
    """Return the part of a rejected value that is safe to show in an error message."""
    shown = value if isinstance(value, str) else json.dumps(value)
    may_be_key = setting is __API_KEY or "eyJ" in shown or "@" in shown
    if may_be_key or (api_key and str(api_key) in shown) or isinstance(value, (dict, list)):
        return ""
    if len(shown) > __SHOWN_VALUE_MAX_CHARACTERS:
        return f"a value of {len(shown)} characters "
    return f"{shown!r} " if isinstance(value, str) else f"{shown} "


def __unknown_settings(configuration: dict) -> Iterator[str]:
    """Yield a sentence about each key of a configuration that is not a setting."""
    names = [setting.name for setting in SETTINGS]
    for key in configuration:
        if key in names:
            continue
        # A name that looks like none may be a key in the wrong place.
        shown = repr(key) if re.fullmatch(r"[\w -]{1,40}", str(key)) else "with an invalid name"
        near = difflib.get_close_matches(str(key), names, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"The settings are {', '.join(names)}."
        yield f"Unknown setting {shown}. {hint}"


# --------------------------------------------------------------------------------------------
# Sync
#
# Delivers the rows of each table and saves a cursor for each table. If a table fails, the sync
# continues with the others and fails at the end. The next sync resumes from the saved cursors.
# --------------------------------------------------------------------------------------------

__CHECKPOINT_EVERY_ROWS = 5_000
# More objects than the pages in memory usually contain.
__COLLECT_GARBAGE_FROM_OBJECTS = 200_000
__RESET_HINT = (
    "Reset the connection: 'fivetran reset' for a local run, a historical re-sync on Fivetran."
)


def schema(configuration: dict) -> list[dict]:
    """Define the tables that the connector delivers, with their primary keys and columns.

    Every column is declared, because Fivetran does not create an undeclared column that has only
    NULL values. See https://fivetran.com/docs/connectors/connector-sdk/technical-reference#schema.

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
    return [table for table in TABLES if not table.on_request or table.name in additional_tables]


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
    saved = read_state(state, __warn_user)
    for warning in __unknown_settings(configuration):
        __warn_user(warning)
    tables = __selected_tables(settings.additional_tables)
    due = {table: __next_read(table, saved, settings) for table in tables}
    __log(log.info, __plan(due, saved, settings))
    totals, failures = Counts(), []
    with (
        __quiet_interrupt(),
        open_client(settings, __warn_user) as client,
        __fewer_garbage_collections(),
    ):
        check_api_key(client)
        for table in tables:
            if due[table]:
                continue
            counts = Counts()
            try:
                __sync_table(client, table, saved, configuration, counts)
            except SyncStoppedError as error:
                raise SyncStoppedError(" ".join([*failures, str(error)])) from None
            except KustomerError as error:
                failures.append(f"{table.name}: {error}")
                __log(
                    log.warning,
                    f"{table.name} could not be read. The sync continues with the other tables.",
                )
            totals.add(counts)
    totals.requests, totals.seconds_waited = client.requests_sent, client.seconds_waited
    __log(log.info, f"Kustomer sync: {totals}.")
    if failures:
        raise KustomerError(" ".join(failures))


@dataclass
class State:
    """The cursors of the tables, by table name.

    `last_sync_time` is when the last complete read of a table began. `unfinished` is the cursor of
    an interrupted read: all changes before this time have been delivered. If the first read of
    companies, which uses their list, is interrupted, it is the time from which deletions have to be
    searched for.
    """

    last_sync_time: dict[str, datetime]
    unfinished: dict[str, datetime]

    def cursor(self, table: Table) -> datetime | None:
        """Return the time from which a table has to be read, or None for a first read."""
        last = self.last_sync_time.get(table.name)
        if last is None and not table.search_is_documented:
            return None
        return self.unfinished.get(table.name) or last


def read_state(state: dict | None, warn: Callable[[str], None]) -> State:
    """Return the saved cursors of the tables that still exist.

    Args:
        state: {"last_sync_time": {table: ISO time}, "unfinished": {table: ISO time}}. If
            `last_sync_time` is an ISO time, as before version 1.0.0, it applies to the four default
            tables.
        warn: called with a message for each time that is invalid. Its table is then read from the
            start.

    Returns:
        The State, without the tables that have an invalid time.

    Raises:
        ValueError: if the state has any other structure.
    """
    if not state:
        return State({}, {})
    saved = state.get("last_sync_time") if isinstance(state, dict) else None
    if isinstance(saved, str):
        saved = {table.name: saved for table in __selected_tables(())}
    unfinished = state.get("unfinished", {}) if isinstance(state, dict) else None
    if not isinstance(saved, dict) or not isinstance(unfinished, dict):
        raise ValueError(
            "The saved state was not written by this connector: last_sync_time must have a time for "
            f"each table. {__RESET_HINT}"
        )
    read, latest = State({}, {}), __now() + __OVERLAP
    for table in TABLES:
        given = {
            kind: times[table.name]
            for kind, times in (("last_sync_time", saved), ("unfinished", unfinished))
            if table.name in times
        }
        times = {kind: __parse_time(value) for kind, value in given.items()}
        invalid = [
            kind for kind, timestamp in times.items() if timestamp is None or timestamp > latest
        ]
        for kind in invalid:
            problem = "is not a time" if times[kind] is None else "is in the future"
            warn(f"{table.name}: the saved {kind} {problem}; the table is read from the start.")
        if not invalid:
            for kind, timestamp in times.items():
                getattr(read, kind)[table.name] = timestamp
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


def __plan(due: dict[Table, datetime | None], saved: State, settings: Settings) -> str:
    """Return the log line that says which changes the sync reads and which tables it skips."""
    words = []
    for table, next_read in due.items():
        since = saved.cursor(table)
        if next_read:
            words.append(f"{table.name} skipped until {__format_time(next_read)}")
        elif table.mirrored or not settings.enable_incremental_sync:
            words.append(f"all {table.name}")
        elif since:
            words.append(f"{table.name} changed since {__format_time(since)}")
        else:
            words.append(f"{table.name} changed in the last {settings.initial_sync_days} days")
    return "Kustomer sync: " + ", ".join(words) + "."


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
        words += [pluralize(self.requests, "request"), f"waited {self.seconds_waited:.1f} s"]
        return ", ".join(words)


def __sync_table(
    client: "Client", table: Table, saved: State, configuration: dict, counts: "Counts"
) -> None:
    """Deliver the changed rows of a table, save its cursor, and add to its counts."""
    requests_before, seconds_before = client.requests_sent, client.seconds_waited
    began, since = __now(client), saved.cursor(table)
    arguments = {} if table.mirrored else {"last_sync_time": since and __format_time(since)}
    rows = GENERATORS[table](
        client.settings.api_key, **arguments, configuration=configuration, client=client
    )
    # A list does not show what was deleted, so the next incremental sync has to search from here.
    resume_search = bool(since and table.search) and not client.settings.enable_incremental_sync
    if resume_search:
        saved.unfinished[table.name] = since
    if since is None and not table.search_is_documented:
        # If this read fails, a record may be deleted before the next one, whose list lacks it.
        resume_search = table.name in saved.unfinished
        saved.unfinished.setdefault(table.name, began)
    rows_since_checkpoint, truncated = 0, not table.mirrored
    started_monotonic = time.monotonic()
    with contextlib.closing(rows):
        for page in rows.pages:
            if page.rows and not truncated:
                # Marks all rows as deleted. The upserts below restore the records that still exist.
                op.truncate(table.name)
                truncated = True
            __deliver(table, page)
            upserted, deleted = len(page.rows) - len(page.deleted), len(page.deleted)
            counts.add(Counts(upserted, deleted, page.skipped, page.unreadable))
            resume_search |= page.resume_search
            __move_cursor(saved, table, page.cursor_after)
            rows_since_checkpoint += len(page.rows)
            # No checkpoint between the truncate of a mirrored table and its last row: if the sync
            # failed after it, existing records would remain marked as deleted.
            if rows_since_checkpoint >= __CHECKPOINT_EVERY_ROWS and not table.mirrored:
                rows_since_checkpoint = 0
                __checkpoint(saved)
            __log_progress(client, table, counts, page, started_monotonic)
    last = saved.last_sync_time.get(table.name)
    saved.last_sync_time[table.name] = max(began, last) if last else began
    if not resume_search:
        saved.unfinished.pop(table.name, None)
    __checkpoint(saved)
    counts.requests = client.requests_sent - requests_before
    counts.seconds_waited = client.seconds_waited - seconds_before
    if counts.skipped:
        __warn_user(f"{table.name}: skipped {pluralize(counts.skipped, 'record')} without an id.")
    __log(log.info, f"{table.name}: {counts}.")


def __deliver(table: Table, page: "Page") -> None:
    for row in page.rows:
        # Inserts the row, or replaces the row with the same id.
        op.upsert(table.name, row)
    for record_id in page.deleted:
        # Marks the row as deleted. Its last values have just been delivered by the upsert.
        op.delete(table.name, {"id": record_id})


def __move_cursor(saved: State, table: Table, cursor_after: datetime | None) -> None:
    """Move a table's cursor to `cursor_after`, but never backwards."""
    cursor = saved.cursor(table)
    if cursor_after:
        saved.unfinished[table.name] = max(cursor_after, cursor) if cursor else cursor_after


@contextlib.contextmanager
def __quiet_interrupt():
    """End the process with one line instead of a traceback after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit("Stopped. The next sync resumes from the last checkpoint.") from None


@contextlib.contextmanager
def __fewer_garbage_collections():
    """Run the garbage collector less often. Parsed records have no reference cycles, and scanning
    them repeatedly takes longer than parsing them."""
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
    client: "Client", table: Table, counts: Counts, page: "Page", started: float
) -> None:
    """Log the progress of a table that has been read since `started`, a monotonic time."""
    rows = counts.upserted + counts.deleted
    rate = rows / max(time.monotonic() - started, 0.001)
    words = [f"{rows} rows", f"{rate:.0f} rows per second"]
    if page.total is not None and page.total > rows:
        words[0] = f"{rows} of about {page.total} rows"
        words.append(f"about {(page.total - rows) / max(rate, 0.001):.0f} s left")
    if page.cursor_after:
        words.append(f"read through {__format_time(page.cursor_after)}")
    __log_throttled(client, f"{table.name}: {', '.join(words)}.")


# --------------------------------------------------------------------------------------------
# Rows
#
# Reads a table's pages from search or from its list, and maps their records to rows. While one
# page is delivered, the next one is read.
# --------------------------------------------------------------------------------------------


@dataclass
class Page:
    """A page of records, from Kustomer's response to the destination.

    `records` are as Kustomer sent them. `more` is whether the response links to a next page, or
    None if it has no links. `total` is Kustomer's count of all matching records. `times` has the
    updatedAt of each record that a search returned.

    The other fields are filled in on the way. `ended`: this is the last page of its list.
    `cursor_after`: the table's cursor once this page is delivered; all changes before this time
    have then been delivered. `resume_search`: a search failed and the list is read instead, so the
    next sync has to search from `cursor_after`. `rows` are the mapped records. `deleted` has the
    ids of deleted records, `skipped` counts records without an id, and `unreadable` counts values
    that could not be converted.
    """

    records: list
    more: bool | None = None
    total: int | None = None
    times: list[datetime] = field(default_factory=list)
    ended: bool = False
    cursor_after: datetime | None = None
    resume_search: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    deleted: set[str] = field(default_factory=set)
    skipped: int = 0
    unreadable: int = 0

    def with_cursor(self, until: datetime) -> "Page":
        """Set `cursor_after` and return this page."""
        self.cursor_after = until
        return self


class Rows:
    """An iterator over the rows of a table. Iterate over it or over its `pages`, not over both."""

    def __init__(self, pages):
        self.pages = pages
        self._rows = (row for page in pages for row in page.rows)

    def __iter__(self) -> "Rows":
        return self

    def __next__(self) -> dict[str, Any]:
        return next(self._rows)

    def close(self) -> None:
        """Stop reading. Requests that have been sent are abandoned, and no other is sent."""
        self.pages.close()


def __rows(
    table: Table,
    api_key: str,
    last_sync_time: str | None,
    configuration: dict | None,
    client: "Client | None",
) -> Rows:
    """Return the rows of a table. Warnings are shown in the caller's thread."""

    def pages() -> Iterator[Page]:
        with contextlib.ExitStack() as stack:
            settings = {**(configuration or {}), "api_key": api_key}
            active_client = client or stack.enter_context(
                open_client(validate_configuration(settings))
            )
            stack.callback(__show_warnings, active_client)
            time_range = get_time_range(last_sync_time, configuration, now=__now(active_client))
            start, end = map(__parse_time, time_range.values())
            table_pages = __table_pages(active_client, table, start, end, last_sync_time is None)
            if table.mirrored:
                # Read all pages before the first row is delivered, so that the table is not
                # truncated if a request fails.
                table_pages = iter(list(table_pages))
            for page in __read_ahead(active_client, map(partial(__make_rows, table), table_pages)):
                __show_warnings(active_client)
                yield page

    return Rows(pages())


def __make_rows(table: Table, page: Page) -> Page:
    """Map the records of a page to its `rows`, and note which of them are deleted."""
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
        # If a record appears twice, its last version decides whether it is deleted.
        page.deleted.discard(row["id"])
        if not table.lists_deactivated and __boolean(attributes.get("deleted")):
            page.deleted.add(row["id"])
    return page


def __read_ahead(client: "Client", pages: Iterator[Page]) -> Iterator[Page]:
    """Yield the pages. While the caller processes one page, a thread reads the next one."""
    next_page = __in_background(next, pages, None)
    try:
        while (page := next_page.result()) is not None:
            next_page = __in_background(next, pages, None)
            yield page
    except Exception:
        # This table cannot be read, but others can.
        raise
    except BaseException:
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


def __table_pages(
    client: "Client", table: Table, start: datetime, end: datetime, is_first_read: bool
) -> Iterator[Page]:
    """Yield a table's pages, from search if possible and otherwise from its list.

    If search is not documented for the table, the first read uses the list, because an attribute
    that search has learned recently may be missing from older records.
    """
    incremental = client.settings.enable_incremental_sync and not table.mirrored
    list_pages, search_error, cursor = __list_pages(client, table), None, start
    use_search = bool(table.search) and incremental
    try:
        if use_search and not table.search_is_documented:
            first = next(list_pages)
            # Do not request the first page again.
            list_pages = itertools.chain([first], list_pages)
            use_search = not (is_first_read or first.ended) and __search_covers(
                client, table, first, start, end
            )
        if use_search:
            for page in __search_pages(client, table, start, end):
                cursor = page.cursor_after
                yield page
            return
    except SearchUnusableError as error:
        search_error = error
    for page in list_pages:
        if search_error:
            # Warn only after the first page of the list. Search also refuses a key that lacks the
            # table's own role, and in that case the list raises an error that names this role.
            client.warnings.append(__search_warning(table, search_error))
            page.resume_search = not isinstance(search_error, SearchRefusedError)
            page.cursor_after = cursor if page.resume_search else None
            search_error = None
        if incremental:
            page.records = [record for record in page.records if __changed_since(record, start)]
        yield page


def __search_covers(
    client: "Client", table: Table, page: Page, start: datetime, end: datetime
) -> bool:
    """Return whether search supports a table: searching for the updatedAt of a record on a page of
    its list must find a record of this page.

    Raises SearchFailedError if that cannot be tested now.
    """
    search = Search(client, table, end, indexed_until=end - __OVERLAP)
    times = {__record_id(record): __updated_at(record) for record in page.records}
    times = {i: at for i, at in times.items() if i and at and at >= end - __SEARCH_HORIZON}
    if not times or start < end - __SEARCH_HORIZON:
        return False
    # A record that was updated recently may not be in the index yet, or be updated again before it
    # is searched for. So the first choice is the last update before that.
    recent = {i: at >= search.indexed_until for i, at in times.items()}
    choices = sorted(times, key=lambda i: (recent[i], abs(times[i] - search.indexed_until)))
    for record_id in choices[:__SEARCH_TESTS]:
        timestamp = __whole_milliseconds(times[record_id])
        try:
            found = __search(search, Slice(timestamp, __later(timestamp, __MILLISECOND)))
        except SearchFailedError:
            raise
        except SearchUnusableError:
            return False
        # If more were updated in this millisecond than fit on a page, it need not be among them.
        if found.more or not times.keys().isdisjoint(map(__record_id, found.records)):
            return True
    # Search should have found a tested record that has not changed meanwhile.
    unchanged = __versions(page) & __versions(next(__list_pages(client, table)))
    tested = {record_id for record_id, _ in unchanged}.intersection(choices[:__SEARCH_TESTS])
    if all(recent[record_id] for record_id in tested):
        raise SearchFailedError(f"all {table.name} that could be searched for have just changed")
    return False


def __search_warning(table: Table, error: SearchUnusableError) -> str:
    if isinstance(error, SearchRefusedError):
        consequence = (
            f"Until this is fixed, every sync reads the whole list of {table.name}, which takes "
            "more requests and can miss deletions."
        )
    else:
        consequence = (
            f"This sync reads the whole list of {table.name} instead, which can miss deletions. The "
            "next sync resumes the search where it stopped."
        )
    return f"{table.name}: {str(error).rstrip('.')}. {consequence}"


def __changed_since(record, start: datetime) -> bool:
    """Return whether a record was updated at or after `start`. A record without a valid updatedAt
    may have been, so it counts."""
    updated = __updated_at(record)
    return updated is None or updated >= start


def __new_records(page: Page, recent: dict) -> list:
    """Return the records of a page that are not in `recent`, or have changed since."""
    versions = zip(page.records, map(__version, page.records))
    return [record for record, (key, version) in versions if recent.get(key) != version]


# A count above this is an error of the server.
__COUNT_LIMIT = 2**53


def __page(path: str, payload: dict) -> Page:
    """Return the page in a parsed response. Raises KustomerError if there is none.

    Source: https://developer.kustomer.com/docs/concepts/pagination.
    """
    records, meta, links = (payload.get(name) for name in ("data", "meta", "links"))
    if not isinstance(records, list):
        raise KustomerError(f"{path} returned no list of records in 'data'.")
    total = meta.get("total") if isinstance(meta, dict) else None
    return Page(
        records,
        more=bool(links["next"]) if isinstance(links, dict) and "next" in links else None,
        total=total if type(total) is int and 0 <= total < __COUNT_LIMIT else None,
    )


def __versions(page: Page) -> set:
    return set(map(__version, page.records))


# --------------------------------------------------------------------------------------------
# Search
#
# Finds every record that changed since a given time, including deleted records, even if search does
# not sort or records change meanwhile. Raises SearchUnusableError if search is unreliable. The
# pages that were yielded before the error, and their `cursor_after`, are still correct.
# Source: https://developer.kustomer.com/api/core-resources/create-customer-search.
# --------------------------------------------------------------------------------------------

__SEARCH_PATH = "/v1/customers/search"
__SEARCH_ROLE = "org.permission.search.create (legacy org.user.search.read)"
# At most 500 records per page and 100 pages per query, and only records updated in the last two
# years: https://developer.kustomer.com/docs/concepts/search, read 2026-11-23.
__SEARCH_PAGE_MAX_RECORDS = 500
__SEARCH_MAX_PAGES = 100
__SEARCH_HORIZON = timedelta(days=2 * 365)
# Not documented, but observed by other clients: counts stop here even if more records match.
__SEARCH_MAX_COUNT = 10_000
# Slices are sized to fill this fraction of a page, because records are not spread evenly over time.
__SLICE_PAGE_FILL = 0.6
__SLICE_MAX_PARTS = 100
# If a slice is more than this many times longer than the time its page covers, it is split around
# that time instead of evenly.
__SLICE_DENSE_RATIO = 100
# How many records are searched for to test whether search supports a table.
__SEARCH_TESTS = 2
# Give up after this many consecutive searches without a new record.
__SEARCH_MAX_EMPTY = 500
# How many searches run at the same time, and how many pages may wait until earlier ones arrive.
__SEARCH_THREADS = 4
__SEARCH_MAX_PAGES_HELD = 12
# If a sorted slice has more than `__PARALLEL_MIN_PAGES` pages, what follows its first page is split
# into slices of about `__PARALLEL_PAGES_PER_SLICE` pages, which are read in parallel. Some of them
# may turn out to be almost empty. Searches beyond one per full page of records are limited to a
# base number plus a fraction of the full pages.
__PARALLEL_MIN_PAGES = 10
__PARALLEL_PAGES_PER_SLICE = 2.5
__EXTRA_SEARCHES_BASE = 7
__EXTRA_SEARCHES_FRACTION = 0.25
__MILLISECOND = timedelta(milliseconds=1)
__DAY = timedelta(days=1)


class Slice(NamedTuple):
    """A time range to search: from `low` up to but excluding `high`, or without an upper bound if
    `high` is None.

    If more records share one updatedAt than fit on a page (a tie), they are read by page number:
    `number` is the page to read next, `first_page` has the record versions on page 1, `seen` has
    those on the pages already delivered (None before the first), and `total` is the last count of
    records.
    """

    low: datetime
    high: datetime | None = None
    number: int = 1
    first_page: frozenset = frozenset()
    seen: frozenset | None = None
    total: int = 0


@dataclass
class Search:
    """The state of the search for one table's changes.

    `sorts` is whether search sorts its results, or None until that is known. `total` is Kustomer's
    count of records in the first response. `searches` counts requests, `records` counts the
    records on pages that were used, and `empty_searches` counts the consecutive searches without a
    new record.

    The search index is up to date for changes before `indexed_until`. A record with a later change
    may have been found by its previous updatedAt, and show a newer one.

    `stop` is set at the end, so that searches that are still running send no further request.
    """

    client: "Client"
    table: Table
    end: datetime
    indexed_until: datetime
    sorts: bool | None = None
    total: int | None = None
    searches: int = 0
    records: int = 0
    empty_searches: int = 0
    stop: threading.Event = field(default_factory=threading.Event)


def __search_pages(
    client: "Client", table: Table, start: datetime, end: datetime
) -> Iterator[Page]:
    """Yield pages of all records that changed since `start`, slice by slice in the order of time.

    There is no upper bound, so that records with a timestamp in the future are included.
    """
    if start < end - __SEARCH_HORIZON:
        raise SearchRefusedError("search covers only records updated in the last two years")
    search = Search(client, table, end, indexed_until=end - __OVERLAP)
    delivered: dict[tuple, datetime] = {}
    for page in __pages_in_order(search, Slice(__whole_milliseconds(start))):
        versions = list(map(__version, page.records))
        pairs = zip(page.records, versions)
        page.records = [record for record, version in pairs if version not in delivered]
        # A record version before `cursor_after` cannot appear again.
        delivered.update(zip(versions, page.times))
        delivered = {version: at for version, at in delivered.items() if at >= page.cursor_after}
        search.empty_searches = 0 if page.records else search.empty_searches
        page.cursor_after, page.total = min(page.cursor_after, end), search.total
        yield page


def __pages_in_order(search: Search, first: Slice) -> Iterator[Page]:
    """Yield the pages of a slice in the order of time, while several are read in parallel.

    The queue is ordered by time. It has slices still to read, searches that are running (futures)
    and pages to yield. A finished search is replaced by its page, if there is one, and by the
    slices that are left to read.
    """
    queue: list[Slice | Future | Page] = [first]
    try:
        while queue:
            __start_searches(search, queue)
            if isinstance(queue[0], Page):
                # Yield one page at a time, so that new searches start between two pages.
                yield queue.pop(0)
            else:
                wait(filter(__is_running, queue), return_when=FIRST_COMPLETED)
            queue = [
                replacement
                for entry in queue
                for replacement in __replacements(search, entry, queue[0])
            ]
    finally:
        search.stop.set()


def __is_running(entry: Slice | Future | Page) -> bool:
    return isinstance(entry, Future) and not entry.done()


def __start_searches(search: Search, queue: list[Slice | Future | Page]) -> None:
    """Start searches for the first slices in the queue, as long as fewer than four are running and
    there is room for their pages."""
    idle = __SEARCH_THREADS - sum(map(__is_running, queue))
    room = __SEARCH_MAX_PAGES_HELD - sum(not isinstance(entry, Slice) for entry in queue)
    for position, entry in enumerate(queue):
        failed = isinstance(entry, Future) and entry.done()
        if failed or not idle or (position and not room):
            return
        # The slice without an upper bound is read last, because records that change meanwhile move
        # there.
        if isinstance(entry, Slice) and (entry.high or not position):
            queue[position] = __in_background(__read_slice, search, entry)
            idle, room = idle - 1, room - 1


def __replacements(
    search: Search, entry: Slice | Future | Page, first: Slice | Future | Page
) -> list[Slice | Future | Page]:
    """Return what replaces an entry of the queue.

    A failed search raises its error only once it is the first entry, because the pages before it
    are correct and have to be delivered.
    """
    if (
        not isinstance(entry, Future)
        or not entry.done()
        or (entry.exception() and entry is not first)
    ):
        return [entry]
    pages, slices = entry.result()
    search.empty_searches += 1
    if search.empty_searches > __SEARCH_MAX_EMPTY:
        raise SearchUnusableError(
            f"{search.empty_searches} searches in a row returned no new record"
        )
    return [*pages, *slices]


def __read_slice(search: Search, part: Slice) -> tuple[list[Page], list[Slice]]:
    """Search a slice. Return the pages to deliver (at most one) and the slices left to read.

    A slice that fits on one page is complete. The page of a larger slice is delivered only if
    search sorts, because otherwise later pages may have earlier records. The rest is split into
    new slices, or read by page number if it is a tie. A record that changes meanwhile moves to a
    later slice, so it is not missed.
    """
    page = __search(search, part, part.number)
    if part.first_page:
        pages, slices = __tied_page(search, part, page)
    elif not __more_match(search, part, page):
        pages, slices = [page.with_cursor(part.high or search.end)], []
    elif part.high and part.high - part.low <= __MILLISECOND:
        pages, slices = [], [__last_tied_page(part, page)]
    elif __sorts(search, part, page):
        pages, slices = __split_sorted(search, part, page)
    else:
        pages, slices = [], __split_unsorted(search, part, page)
    with search.client.lock:
        search.records += sum(len(page.records) for page in pages)
    return pages, slices


def __split_sorted(search: Search, part: Slice, page: Page) -> tuple[list[Page], list[Slice]]:
    """Return the first page of a sorted slice, and the slices for the rest of it."""
    low, high = part.low, part.high
    indexed = [at for at in page.times if at < search.indexed_until]
    recent = []
    if low < search.indexed_until and len(indexed) < len(page.times):
        # Records that were updated just now may have been found by their previous updatedAt, so
        # the order of recent changes is unknown. They get a slice of their own.
        if high is None or high > search.indexed_until:
            recent = [Slice(search.indexed_until, high)]
            high = search.indexed_until
            if not indexed:
                return [], [Slice(low, high), *recent]
        elif not indexed:
            return [], __split_unsorted(search, part, page)
    times = indexed or page.times
    # Resume before the last record, which may show a newer updatedAt than it was sorted by.
    resume = times[-2] if len(times) > 1 else times[-1]
    if resume > times[0]:
        rest = __parallel_slices(search, Slice(resume, high), page, resume - times[0])
    else:
        after = __later(resume, __MILLISECOND)
        rest = [Slice(resume, after)]
        if high is None or high > after:
            rest.append(Slice(after, high))
    return [page.with_cursor(resume)], rest + recent


def __parallel_slices(search: Search, rest: Slice, page: Page, span: timedelta) -> list[Slice]:
    """Return the rest of a sorted slice. If it has many pages, it is split into slices of equal
    length that can be read in parallel.

    `span` is the time that the first page covers. The length is the smaller of two: the one that
    gives each slice a few pages if the records are spread evenly, and the one that gives it a few
    pages if they are half as dense as on the first page. In the second case some slices may be
    almost empty, so their number is limited.
    """
    size, end = len(page.records), rest.high or search.indexed_until
    if page.total is None or page.total <= __PARALLEL_MIN_PAGES * size or end <= rest.low:
        return [rest]
    pages = (page.total - size) / size
    even_length = (end - rest.low) / pages * __PARALLEL_PAGES_PER_SLICE
    dense_length = 2 * span * __PARALLEL_PAGES_PER_SLICE
    length = max(min(even_length, dense_length), __MILLISECOND)
    slices = min(math.ceil((end - rest.low) / length), __SLICE_MAX_PARTS)
    extra = __extra_searches(search, size)
    if dense_length < even_length or extra < 2:
        slices = min(slices, extra)
    edges = [__whole_milliseconds(rest.low + position * length) for position in range(slices)]
    edges = [rest.low, *edges[1:], end if rest.high is None else rest.high]
    if rest.high is None:
        edges.append(None)
    return [Slice(*pair) for pair in zip(edges, edges[1:])] if slices > 1 else [rest]


def __extra_searches(search: Search, size: int) -> int:
    """Return how many more searches may turn out to be almost empty. A full page has `size`
    records."""
    full_pages = search.records / size
    allowed = __EXTRA_SEARCHES_BASE + __EXTRA_SEARCHES_FRACTION * full_pages
    return int(allowed - (search.searches - full_pages))


def __later(timestamp: datetime, span: timedelta) -> datetime:
    try:
        return timestamp + span
    except OverflowError:
        raise SearchUnusableError("search returned too many records of the year 9999") from None


def __last_tied_page(part: Slice, first: Page) -> Slice:
    """Return the slice that reads the last page of a tie.

    Updating a record moves it to a later timestamp, so a past timestamp only ever loses records,
    and the records after a lost one move towards the first page. The pages are read from the last
    to the first, so these records move to pages that have not been read yet.
    """
    total = first.total
    if total is None or total >= __SEARCH_MAX_COUNT:
        raise SearchUnusableError(
            f"{__SEARCH_MAX_COUNT} or more records share one updatedAt"
            if total
            else "search does not count the records that share one updatedAt"
        )
    last = math.ceil(total / len(first.records))
    if last > __SEARCH_MAX_PAGES:
        raise SearchUnusableError(
            f"more than {__SEARCH_MAX_PAGES} pages of records share one updatedAt"
        )
    return part._replace(number=last, first_page=frozenset(__versions(first)), total=total)


def __tied_page(search: Search, part: Slice, page: Page) -> tuple[list[Page], list[Slice]]:
    """Return a page of a tie, and the slice that reads the page before it."""
    # Records may still be joining a recent tie. The next sync reads it again.
    if part.low < search.indexed_until:
        __check_tied_page(part, page)
    if part.number == 1:
        return [page.with_cursor(part.high)], []
    seen = (part.seen or frozenset()) | __versions(page)
    part = part._replace(number=part.number - 1, seen=seen, total=page.total or 0)
    return [page.with_cursor(part.low)], [part]


def __check_tied_page(part: Slice, page: Page) -> None:
    """Raise SearchUnusableError if a page of a tie does not fit the pages before: then the order
    of the records, or the count by which the last page was chosen, is not reliable."""
    versions, total = __versions(page), page.total or 0
    # Each record that has left the tie since the previous page has moved one onto this page.
    moved = max(part.total - total, 0)
    on_first_page = part.number > 1 and not part.first_page.isdisjoint(versions)
    if on_first_page or len(versions & (part.seen or frozenset())) > moved:
        raise SearchUnusableError("search returned the same record on two pages")
    # Page 100 links to a next page although Kustomer does not serve it.
    after_last = page.more and part.seen is None and part.number < __SEARCH_MAX_PAGES
    if after_last or total > part.total:
        raise SearchUnusableError("search counts fewer records than share one updatedAt")


def __split_unsorted(search: Search, part: Slice, page: Page) -> list[Slice]:
    """Return the slices that an unsorted slice is split into. Its page is not delivered, because
    earlier records may be on later pages."""
    low, high = part.low, part.high
    if page.total is None:
        raise SearchUnusableError("search neither sorts nor counts its results")
    first, last = min(page.times), max(page.times)
    within = high is None or last < high
    if within and (last - first) * __SLICE_DENSE_RATIO < (high or search.end) - low:
        # The page covers a small part of the slice, so most records are probably there.
        edges = [low, first, __later(last, __MILLISECOND), high]
    else:
        edges = __equal_parts(search, part, page)
    pairs = [pair for pair in zip(edges, edges[1:]) if pair[1] is None or pair[0] < pair[1]]
    return [Slice(*pair) for pair in pairs]


def __equal_parts(search: Search, part: Slice, page: Page) -> list[datetime | None]:
    """Return the boundaries that split an unsorted slice into equal parts of less than a page each,
    according to its total count."""
    low, high = part.low, part.high
    if high is None:
        # For timestamps in the future, look further ahead each time.
        later = [at for at in (search.indexed_until, search.end) if at > low]
        high = later[0] if later else __later(low, max(__DAY, low - search.end))
    wanted = math.ceil(page.total / (__SLICE_PAGE_FILL * len(page.records)))
    parts = min(max(wanted, 2), __SLICE_MAX_PARTS)
    step = max((high - low) // __MILLISECOND // parts, 1) * __MILLISECOND
    edges = [low + position * step for position in range(parts) if low + position * step < high]
    return [*edges, high] if part.high else [*edges, high, None]


def __more_match(search: Search, part: Slice, page: Page) -> bool:
    """Return whether a slice has more records than its first page.

    If the count and the links contradict each other, or both are missing, the second page decides.
    Without links, an update of a record on the first page may have moved one there from the second
    page, so the first page must not have changed.
    """
    counted_all = page.total is not None and page.total <= len(page.records)
    if page.more or counted_all or (page.more is False and page.total is None):
        more = bool(page.more)
    else:
        second = __search(search, part, 2)
        more = bool(__versions(second) - (__versions(page) if page.total is None else set()))
        if not more and page.more is None:
            more = not __versions(__search(search, part)) <= __versions(page)
    if more and not page.records:
        raise SearchUnusableError("search returned an empty page although more records match")
    return more


def __sorts(search: Search, part: Slice, page: Page) -> bool:
    """Return whether the first page of a slice is sorted.

    Kustomer documents sorting for customers only, and a page in insertion order may happen to be
    sorted. Search therefore has to prove once that it sorts: the same query in descending order
    must begin with another record, updated later than all records on this page.
    """
    if search.sorts is None:
        search.sorts = __ascends(page.times) and __descending_starts_later(search, part, page)
    return search.sorts and __ascends([at for at in page.times if at < search.indexed_until])


def __descending_starts_later(search: Search, part: Slice, page: Page) -> bool:
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
    """Request one page of a slice, and set its `times`.

    Raises SearchUnusableError if Kustomer refuses the search, if it fails, or if it returns records
    outside the slice.
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
                stop=search.stop,
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
        raise SearchFailedError(str(error)) from None
    page.times = __update_times(search, part, page.records)
    if search.total is None:
        search.total = page.total
    return page


def __purpose(search: Search, part: Slice, number: int, order: str) -> str:
    """Return a description of a search for the log."""
    words = [f"{search.table.name}: search from {__format_time(part.low)}"]
    if part.high:
        words.append(f"to {__format_time(part.high)}")
    if number > 1:
        words.append(f"page {number}")
    if order == "desc":
        words.append("in descending order")
    return " ".join(words)


def __update_times(search: Search, part: Slice, records: list) -> list[datetime]:
    """Return the updatedAt of each record, in whole milliseconds.

    Raises SearchUnusableError if a record has no valid updatedAt or does not belong in the slice.
    A record may only be later than the slice if it was updated so recently that the index may still
    have its previous updatedAt.
    """
    times = list(map(__updated_at, records))
    if None in times:
        raise SearchUnusableError("search returned a record without a valid updatedAt")
    times = [at if at.microsecond % 1000 == 0 else __whole_milliseconds(at) for at in times]
    low, high = part.low, part.high
    late = [at for at in times if high <= at < search.indexed_until] if high else []
    if late or times and min(times) < low:
        raise SearchUnusableError("search returned records outside the requested time range")
    return times


def __search_refusal(error: RefusedError) -> SearchRefusedError:
    refusal = f"search was refused with {error.status} ({error.reason})"
    if error.status in __MISSING_ROLE_STATUSES:
        refusal += f": the API key lacks the role {__SEARCH_ROLE}. {__NEW_KEY}"
    return SearchRefusedError(refusal)


# --------------------------------------------------------------------------------------------
# Lists
#
# Reads a whole list, even if records leave it meanwhile or the server ignores the page size. Warns
# if records may be missing.
# Source: https://developer.kustomer.com/docs/concepts/pagination.
# --------------------------------------------------------------------------------------------

# Smaller pages cannot overlap the page before them by enough records.
__PAGE_MIN_RECORDS = 20
# Not documented, but observed by other clients: lists end here even if there are more records.
__LIST_MAX_COUNT = 10_000
# Lists deactivated users: https://developer.kustomer.com/api/users, read 2026-11-23.
__DEACTIVATED = {"deleted": "true"}
# If a page does not overlap the page before it, go back by this many pages: further at each
# consecutive attempt. After the last attempt, accept this gap and all later ones.
__LIST_STEPS_BACK = (0, 4, 32)
# Remember this many of the last records of a list, which is more than the longest step back covers.
__LIST_RECENT_RECORDS = 6_400
# Give up after this many consecutive pages without a new record, because the list does not end.
__LIST_MAX_EMPTY_PAGES = 40
__BAD_REQUESTS = frozenset({400, 422})
__MISSING_ROLE_STATUSES = frozenset({401, 403})
# https://developer.kustomer.com/docs/get-started/quickstart, read 2026-11-23.
__NEW_KEY = (
    "Create a new key with this role too, under Settings > Security > API Keys; the roles of an "
    "existing key cannot be changed."
)


@dataclass
class Listing:
    """A list that is being read.

    `params` are sent with each request. `recent` has the last records that were read, in reading
    order: their ids and updatedAt. `empty_pages` counts consecutive pages without a new record.
    """

    client: "Client"
    table: Table
    params: dict[str, str] = field(default_factory=dict)
    recent: dict = field(default_factory=dict)
    empty_pages: int = 0


def __list_pages(client: "Client", table: Table) -> Iterator[Page]:
    """Yield every page of a table's list or lists, and at least one page. A record may appear
    twice.

    Raises KustomerError if the key lacks the role for the list, or if the list does not end.
    """
    if not table.lists_deactivated:
        yield from __pages_of(client, table, {})
        return
    active = set()
    for page in __pages_of(client, table, {}):
        for record in page.records:
            active.add(__record_id(record))
            __attributes(record)["deactivated"] = False
        yield page
    # An empty list of active users cannot be right. The rows of deactivated users alone would
    # truncate the table and leave all active users marked as deleted.
    for page in __pages_of(client, table, __DEACTIVATED) if active else ():
        for record in page.records:
            attributes = __attributes(record)
            # A record may be on both lists because it was deactivated meanwhile, or because the
            # server ignores the parameter.
            marked = (
                bool(attributes.get("deletedAt")) or __boolean(attributes.get("deleted")) is True
            )
            attributes["deactivated"] = marked or __record_id(record) not in active
        yield page


def __pages_of(client: "Client", table: Table, params: dict[str, str]) -> Iterator[Page]:
    """Yield every page of one list, with overlapping pages if the server supports page sizes."""
    try:
        yield from __overlapping_pages(Listing(client, table, params))
    except PageSizeError:
        yield from __numbered_pages(Listing(client, table, params))


def __overlapping_pages(listing: Listing) -> Iterator[Page]:
    """Yield the pages of a list. Each page begins with the last records of the page before.

    When a record leaves the list, all records after it move up by one, so the first record of the
    next page moves to a page that has already been read. As long as a page still overlaps the
    records that have been read, none has been missed.

    Raises PageSizeError if the server does not return pages of the requested size.
    """
    limit = __page_size(listing.client, listing.table.page_maximum)
    reached, furthest, page_start, overlap, gaps, warned = 0, 0, 0, 1, 0, False
    while True:
        number, size = __overlapping_page(max(reached - overlap + 1, 0), limit)
        page = __sized_page(listing, number, size)
        overlaps = number == 1 or len(__new_records(page, listing.recent)) < len(page.records)
        if not overlaps and gaps < len(__LIST_STEPS_BACK) and not warned:
            # Many records have left the list. Go back, and overlap by more records from here on.
            overlap = min(overlap * 4, limit // 4)
            reached = max(page_start - __LIST_STEPS_BACK[gaps] * limit, 0) + overlap
            gaps += 1
            continue
        if not overlaps and not warned:
            warned = True
            listing.client.warnings.append(
                f"{listing.table.name}: so many records left the list while it was read that "
                "others may have been missed. The next change of a missed record or a historical "
                "re-sync delivers it."
            )
        if overlaps and gaps and page.records and page.more is None:
            # This page has been read before, so more pages follow.
            page.more = True
        page_start = (number - 1) * size
        reached = page_start + len(page.records)
        __keep_new_records(listing, page, size, reached)
        if reached > furthest:
            # Only getting further counts, because records that keep moving could hold the reading
            # back for ever.
            furthest, gaps = reached, 0
        yield page
        if page.ended:
            return


def __overlapping_page(reached: int, limit: int) -> tuple[int, int]:
    """Return the number and size of the page that includes record number `reached` of a list and
    extends furthest beyond it."""
    if not reached:
        return 1, limit
    sizes = range(1, limit + 1)
    size = max(sizes, key=lambda size: ((reached - 1) // size + 1) * size)
    return (reached - 1) // size + 1, size


def __sized_page(listing: Listing, number: int, size: int) -> Page:
    """Request a page. Raises PageSizeError if it does not have the requested size."""
    try:
        page = __list_page(listing, number, size)
    except RefusedError as error:
        if error.status not in __BAD_REQUESTS or __accepts_size(listing, number, size):
            raise
        raise PageSizeError from None
    short = len(page.records) < size
    if short and page.records and page.more is None:
        # Either the list ends here, or the server returns smaller pages than requested.
        page.more = __has_page_after(listing, page, number, size)
    if len(page.records) > size or short and page.more:
        raise PageSizeError
    return page


def __has_page_after(listing: Listing, page: Page, number: int, size: int) -> bool:
    """Return whether the page after this one has other records. It may be refused if the list has
    ended."""
    try:
        after = __list_page(listing, number + 1, size)
    except RefusedError as error:
        if error.status not in (404, *__BAD_REQUESTS):
            raise
        return False
    return not __versions(after) <= __versions(page)


def __accepts_size(listing: Listing, number: int, size: int) -> bool:
    """Return whether the server accepts this page size for page 1. If so, it has refused the page
    number, not the size."""
    try:
        return number > 1 and bool(__list_page(listing, 1, size))
    except RefusedError:
        return False


def __numbered_pages(listing: Listing) -> Iterator[Page]:
    """Yield the pages of a list by number, in the page size that the server chooses."""
    number, size, read, page = 0, 1, 0, Page([])
    while not page.ended:
        number += 1
        if number == 2:
            listing.client.warnings.append(
                f"{listing.table.name}: Kustomer does not return pages of the requested size, so "
                "records may be missed if others leave the list while it is read. The next change "
                "of a missed record or a historical re-sync delivers it."
            )
        page = __list_page(listing, number)
        read += len(page.records)
        size = max(size, len(page.records))
        __keep_new_records(listing, page, size, read)
        yield page


def __keep_new_records(listing: Listing, page: Page, size: int, read: int) -> None:
    """Remove records from a page that have already been read, and note whether the list ends.

    `size` is the number of records on a full page, and `read` the number of records up to the end
    of this page. If the response has no links, the list ends with the first page that is not full.
    """
    table, recent = listing.table, listing.recent
    is_full = len(page.records) >= size
    page.records = __new_records(page, recent)
    versions = dict(map(__version, page.records))
    # A record that has changed since it was read is not new. If it were, one that keeps changing
    # could make a list endless.
    listing.empty_pages = 0 if versions.keys() - recent.keys() else listing.empty_pages + 1
    for record_id, version in versions.items():
        recent.pop(record_id, None)
        recent[record_id] = version
    while len(recent) > __LIST_RECENT_RECORDS:
        del recent[next(iter(recent))]
    if listing.empty_pages > __LIST_MAX_EMPTY_PAGES:
        raise KustomerError(
            f"GET {table.path} returned {__LIST_MAX_EMPTY_PAGES} pages in a row without a new "
            f"record and without an end; the list of {table.name} cannot be read."
        )
    page.ended = not (is_full if page.more is None else page.more)
    if page.ended:
        __warn_of_shortfall(listing, page.total, read)


def __warn_of_shortfall(listing: Listing, total: int | None, read: int) -> None:
    name = listing.table.name
    if total is not None and total > read:
        problem = f"Kustomer counts {total} records, but its list ended after {read}"
    elif total is None and read == __LIST_MAX_COUNT:
        problem = f"the list ended after exactly {read} records, which may not be all"
    else:
        return
    remedy = (
        f"Use a key with the role {__SEARCH_ROLE}, so that search can find changes."
        if listing.table.search and listing.table.search_is_documented
        else "Ask Kustomer how to read the other records."
    )
    listing.client.warnings.append(f"{name}: {problem}. {remedy}")


def __list_page(listing: Listing, number: int, size: int | None = None) -> Page:
    """Request one page of a list. Without a `size`, the server chooses it."""
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
    # Kustomer refuses a key that has become invalid with the same status. Check for that first.
    check_api_key(client)
    raise KustomerError(f"{refusal}. The API key lacks the role {table.role}. {__NEW_KEY}")


# --------------------------------------------------------------------------------------------
# Requests
#
# Sends a request, retries it if needed, and returns the JSON of the response. To make a status
# retryable, change `__read_response`. The key is sent only to the configured host, and is never
# shown in a log line or an error.
# --------------------------------------------------------------------------------------------

__KEY_PATH = "/v1/users/current"
__BACKOFF_BASE_SECONDS = 1.0
__BACKOFF_MAX_SECONDS = 60.0
__RATE_LIMIT_MAX_WAIT_SECONDS = 120.0
__RATE_LIMIT_MAX_TOTAL_SECONDS = 900.0
# Jitter, so that clients that wait for the same reset do not all send their next request at once.
__RATE_LIMIT_JITTER_FRACTION = 0.05
# How long a list request waits if the last response did not say when the limit is reset.
__UTILIZATION_WAIT_SECONDS = 5.0
# x-ratelimit-reset is in epoch milliseconds if it is at least the first value, in epoch seconds if
# it is at least the second value, and otherwise in seconds from now.
__EPOCH_MILLISECONDS_FROM = 1e11
__EPOCH_SECONDS_FROM = 1e8
__CLOCK_TOLERANCE_SECONDS = 2.0
# A response must be complete within this many request timeouts.
__RESPONSE_MAX_TIMEOUTS = 10
# A page of records has a few megabytes. Fivetran gives a connector about 1 GB of memory.
__RESPONSE_MAX_BYTES = 200_000_000
__READ_BYTES = 128 * 1024
__API_MESSAGE_MAX_CHARACTERS = 300
# Shorter parts of a key may be words of a message.
__KEY_PART_CHARACTERS = 12
__LOG_EVERY_SECONDS = 30.0
# The message for a network error: that of the first of these types among its causes.
__NETWORK_CAUSES = (
    (socket.gaierror, "the host name was not found"),
    (ssl.SSLCertVerificationError, "the certificate is not valid"),
    (ssl.SSLError, "no secure connection could be established"),
    (requests.exceptions.InvalidProxyURL, "the proxy setting is not valid"),
    (requests.exceptions.ProxyError, "the proxy did not respond"),
    (ConnectionRefusedError, "the connection was refused"),
    (requests.exceptions.Timeout, "the request timed out"),
    (TimeoutError, "the request timed out"),
    (ConnectionError, "the connection broke"),
    (requests.exceptions.ConnectionError, "the host could not be reached"),
)


class Session(requests.Session):
    """A session that does not process redirects. The requests library parses their address and
    reads their whole body even if it is not to follow them."""

    def get_redirect_target(self, _response) -> None:
        return None


class BearerAuth(requests.auth.AuthBase):
    """Adds the API key to a request. With an auth object, the requests library ignores .netrc."""

    def __init__(self, api_key: str):
        self._header = f"Bearer {api_key}"

    def __call__(self, request):
        request.headers["Authorization"] = self._header
        return request


@dataclass
class Client:
    """What all requests of a sync have in common: the session, the settings and the counts.
    Several threads use it; `lock` protects the counts.

    `warn(message)` shows a warning that the user should act on. `warnings` holds the warnings of
    other threads until the main thread shows them. `clock_ahead` is how far this machine's clock
    is ahead of Kustomer's, or None before the first response. Setting `closed` ends all waits and
    retries once nobody needs their results.

    `rate_limit_lock` is held while a request waits after a 429, so that no other request is sent.
    `rate_limit_waits` counts these waits; `limits` and `limited_seconds` are the number and the
    total of those since the last successful response. The sync fails once the total has reached
    `limited_seconds_max`. List requests wait until `lists_wait_until`, a monotonic time.
    """

    session: requests.Session
    settings: Settings
    warn: Callable[[str], None]
    limited_seconds_max: float
    warnings: deque[str] = field(default_factory=deque)
    requests_sent: int = 0
    seconds_waited: float = 0.0
    clock_ahead: timedelta | None = None
    closed: threading.Event = field(default_factory=threading.Event)
    last_log_at: float = field(default_factory=lambda: time.monotonic())
    lock: threading.Lock = field(default_factory=threading.Lock)
    rate_limit_lock: threading.Lock = field(default_factory=threading.Lock)
    rate_limit_waits: int = 0
    limits: int = 0
    limited_seconds: float = 0.0
    lists_wait_until: float = 0.0


@contextlib.contextmanager
def open_client(
    settings: Settings,
    warn: Callable[[str], None] | None = None,
    limited_seconds_max: float = __RATE_LIMIT_MAX_TOTAL_SECONDS,
):
    """Yield a Client whose session is closed at the end."""
    with Session() as session:
        session.auth = BearerAuth(settings.api_key)
        session.headers["Accept"] = "application/json"
        session.headers["User-Agent"] = f"fivetran-kustomer-connector/{VERSION}"
        # Do not use the environment's proxies for a mock on this machine.
        session.trust_env = settings.base_url.startswith("https://")
        client = Client(
            session, settings, warn or partial(__log, log.warning), limited_seconds_max
        )
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
    """Log at most one line per 30 seconds, and one before any longer wait.

    Args:
        quiet_seconds: how long the log stays silent after this line, because of a wait.
    """
    silent_until = time.monotonic() + quiet_seconds
    if silent_until - client.last_log_at >= __LOG_EVERY_SECONDS:
        client.last_log_at = silent_until
        __log(log.info, message)


def check_api_key(client: Client) -> None:
    """Check that the API key is valid.

    Raises:
        SyncStoppedError: if Kustomer refuses the key in this region.
        KustomerError: if the request fails for another reason.

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
            f"({error.reason}). It is invalid, expired or from another region. Check api_key and the "
            "key's IP restrictions, and set base_url to your organization's region."
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
    stop: threading.Event | None = None,
    purpose: str = "",
) -> dict:
    """Send a request, retry it if needed, and return the JSON of the response.

    After a 429, the request waits as long as the headers ask. If all requests of a sync together
    have waited for fifteen minutes without a successful response, it fails. Timeouts, broken
    connections, 408, 5xx, partial responses and responses that are not a JSON object are retried
    `retry_attempts` times. So is a 401 or 403 that has no error message from Kustomer.

    Args:
        endpoint: the path, such as /v1/customers.
        api_key: the Kustomer API key.
        params: the query parameters.
        configuration: the connector's configuration. Ignored if there is a `client`.
        body: the JSON body of a POST request. Without a body, the request is a GET.
        client: the client of a running sync. By default, a new client is opened.
        stop: once set, the request is not sent or retried any more.
        purpose: what the log calls the request. Its method and path by default.

    Returns:
        The JSON object of the response.

    Raises:
        RefusedError: if Kustomer refuses the request and retrying cannot help.
        SyncStoppedError: if the rate limit stays exhausted, or the request is not needed any more.
        KustomerError: if all retries fail.

    Source: https://developer.kustomer.com/docs/concepts/rate-limits (429 and its headers).
    """
    if client is None:
        settings = validate_configuration({**(configuration or {}), "api_key": api_key})
        with open_client(settings) as own:
            return execute_api_request(endpoint, api_key, params, body=body, client=own)
    request = f"{'GET' if body is None else 'POST'} {endpoint}"
    purpose = purpose or request
    failures = 0
    while True:
        if body is None:
            __wait_for_utilization(client, purpose)
        with client.rate_limit_lock:
            rate_limit_waits = client.rate_limit_waits
        if client.closed.is_set() or (stop and stop.is_set()):
            raise SyncStoppedError(f"{request} is not needed any more.")
        try:
            payload = __exchange(client, endpoint, params, body, purpose)
            client.limited_seconds = client.limits = 0
            return payload
        except RateLimitError as limit:
            with client.rate_limit_lock:
                # If another request has waited in the meantime, this one does not wait again.
                if client.rate_limit_waits == rate_limit_waits:
                    __handle_rate_limit(client, request, limit.args[0], purpose)
        except RetryableError as error:
            __handle_request_error(client, request, str(error), failures, purpose)
            failures += 1


def __exchange(
    client: Client, path: str, params: dict | None, body: dict | None, purpose: str
) -> dict:
    """Send a request once and return the JSON of the response. The type of an error says whether
    the request can be retried."""
    settings, method, cause = client.settings, "GET" if body is None else "POST", ""
    deadline = time.monotonic() + __RESPONSE_MAX_TIMEOUTS * settings.request_timeout_seconds

    with client.lock:
        client.requests_sent += 1
    with __debug_line(settings, purpose) as details:
        try:
            # The timeout of the requests library applies to each read, so a response that arrives
            # byte by byte never times out, and can only be abandoned.
            receiving = __in_background(__receive, client, deadline, method, path, params, body)
            response, content = receiving.result(deadline - time.monotonic())
        except DeadlineError:
            cause = "the response was not complete in time"
        except (requests.RequestException, OSError, ValueError) as error:
            # ValueError: what urllib3 raises for parts of a response that are not valid HTTP.
            cause = __network_cause(error)
        if cause:
            # Raised here, because an error raised in an except clause keeps a reference to the
            # exception with the request and its key.
            raise RetryableError(f"{urlsplit(settings.base_url).hostname}: {cause}")
        __note_clock_difference(client, response.headers.get("Date"))
        if body is None:
            __note_utilization(client, response.headers)
        remaining = response.headers.get("x-ratelimit-remaining", "unknown")
        details += [f"status {response.status_code}", f"rate limit remaining {remaining:.20}"]
        payload = __read_response(response, content, f"{method} {path}", settings.api_key)
        if isinstance(payload.get("data"), list):
            details.append(f"{len(payload['data'])} records")
        return payload


def __receive(
    client: Client, deadline: float, method: str, path: str, params: dict | None, body: dict | None
) -> tuple[requests.Response, bytearray]:
    """Send a request and return the response and its body. Raises DeadlineError after `deadline`,
    a monotonic time, so that a response that nobody waits for does not fill the memory."""
    content = bytearray()
    with client.session.request(
        method,
        client.settings.base_url + path,
        params=params,
        json=body,
        timeout=client.settings.request_timeout_seconds,
        allow_redirects=False,
        stream=True,
    ) as response:
        # The body of a redirect is not needed, and may have no end.
        unread = 300 <= response.status_code < 400
        # The smaller default chunks of the requests library take much more CPU time.
        for chunk in () if unread else response.iter_content(__READ_BYTES):
            content += chunk
            if len(content) > __RESPONSE_MAX_BYTES:
                raise RetryableError(f"a response of more than {__RESPONSE_MAX_BYTES} bytes")
            if client.closed.is_set() or time.monotonic() > deadline:
                raise DeadlineError
    return response, content


@contextlib.contextmanager
def __debug_line(settings: Settings, request: str):
    """Log a line when a request ends, if debug logging is on. Yields the list of details for this
    line, to be filled in by the caller."""
    started, details = time.perf_counter(), []
    try:
        yield details
    finally:
        if settings.enable_debug_logging:
            details.append(f"{(time.perf_counter() - started) * 1000:.0f} ms")
            __log(log.info, f"{request}: {', '.join(details)}")


def __network_cause(error: BaseException) -> str:
    """Return the message for a network error."""
    causes: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in causes:
        causes.append(link)
        link = link.__cause__ or link.__context__
    for kind, words in __NETWORK_CAUSES:
        if any(isinstance(cause, kind) for cause in causes):
            return words
    return "the response was not complete"


def __read_response(response, content: bytearray, request: str, api_key: str) -> dict:
    """Return the JSON of a response, or raise an error.

    Only this function decides which responses are retried: with RetryableError, the request is
    sent again; with RefusedError, it is not.
    """
    status = response.status_code
    if status == 429:
        raise RateLimitError(response.headers)
    if status == 408 or status >= 500:
        raise RetryableError(f"status {status}")
    payload = __parsed(content)
    if status in __MISSING_ROLE_STATUSES and "errors" not in (payload or {}):
        raise RetryableError(
            f"status {status} without Kustomer's own error message: the API key is invalid or lacks "
            "a role, or a proxy refused the request"
        )
    if status != 200:
        reason = __api_message(status, payload, api_key)
        raise RefusedError(f"{request} was refused with {status}: {reason}", status, reason)
    if payload is None:
        raise RetryableError("status 200 with a response that is not a JSON object")
    meta = payload.get("meta")
    if isinstance(meta, dict) and meta.get("timed_out"):
        raise RetryableError("status 200 with a partial response (meta.timed_out)")
    return payload


def __parsed(content: bytearray) -> dict | None:
    try:
        payload = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return payload if isinstance(payload, dict) else None


def __api_message(status: int, payload: dict | None, api_key: str) -> str:
    """Return Kustomer's error message, without the key and without any other part of the body."""
    if 300 <= status < 400:
        return "a redirect, which the connector does not follow; check base_url"
    errors = (payload or {}).get("errors")
    words = [
        str(error[name])
        for error in (errors if isinstance(errors, list) else ())
        for name in ("code", "title", "message", "detail")
        if isinstance(error, dict) and error.get(name)
    ]
    text = " - ".join(words)[:__API_MESSAGE_MAX_CHARACTERS]
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    text = __without_key(" ".join(text.split()), api_key)
    return text or ("no such address; check base_url" if status == 404 else "no reason given")


def __without_key(text: str, api_key: str) -> str:
    """Return a text in which the key, its longer parts, and whatever else looks like a key are
    replaced. A server may repeat a key in part, or encode it."""
    text = re.sub(r"eyJ[\w.%-]+", "(key)", text)
    size = min(__KEY_PART_CHARACTERS, len(api_key))
    parts = {api_key[at : at + size].lower() for at in range(len(api_key) - size + 1)}
    hidden: set[int] = set()
    for at in range(len(text) - size + 1):
        if text[at : at + size].lower() in parts:
            hidden.update(range(at, at + size))
    shown = ("\0" if at in hidden else letter for at, letter in enumerate(text))
    return re.sub("\0+", "(key)", "".join(shown))


def __handle_rate_limit(client: Client, request: str, headers, purpose: str) -> None:
    """Wait after a 429.

    Raises SyncStoppedError if the client has already waited for the maximum time.
    """
    remaining = client.limited_seconds_max - client.limited_seconds
    # Another wait of less than a second would not help.
    if remaining < 1:
        minutes = pluralize(round(client.limited_seconds / 60), "minute")
        raise SyncStoppedError(
            f"{request} returned 429 (rate limit) for {minutes}. "
            "Other apps may be using the rate limit of the organization or of the key. Try again "
            "later; a sync then resumes from its last checkpoint."
        )
    seconds = __seconds_until_reset(headers)
    if seconds is None:
        seconds = __backoff_seconds(client.limits)
    else:
        seconds += random.uniform(0, __RATE_LIMIT_JITTER_FRACTION * seconds)
    seconds = min(seconds, __RATE_LIMIT_MAX_WAIT_SECONDS, remaining)
    __wait(client, seconds, f"{purpose}: the rate limit is exhausted")
    client.limits += 1
    client.limited_seconds += seconds
    client.rate_limit_waits += 1


def __wait(client: Client, seconds: float, reason: str) -> None:
    """Wait, and log why and until when. The wait ends early if the client is closed."""
    end = datetime.now(timezone.utc) + timedelta(seconds=seconds)
    __log_throttled(
        client, f"{reason}; waiting {seconds:.1f} s, until {end:%H:%M:%S} UTC.", seconds
    )
    with client.lock:
        client.seconds_waited += seconds
    client.closed.wait(seconds)


def __note_utilization(client: Client, headers) -> None:
    """Note how long list requests have to wait, so that the rest of the organization's rate limit
    is left to its other apps.

    Source: https://developer.kustomer.com/docs/concepts/rate-limits.
    """
    limit, remaining = (
        __header_number(headers.get(f"x-ratelimit-{name}")) for name in ("limit", "remaining")
    )
    client.lists_wait_until = 0.0
    reserved = 1 - client.settings.api_utilization_percentage / 100
    if limit is not None and remaining is not None and max(remaining, 0) < reserved * limit:
        seconds = __seconds_until_reset(headers) or __UTILIZATION_WAIT_SECONDS
        seconds = min(seconds, __RATE_LIMIT_MAX_WAIT_SECONDS)
        client.lists_wait_until = time.monotonic() + seconds


def __wait_for_utilization(client: Client, purpose: str) -> None:
    """Wait if the last list response left less of the rate limit than other apps are to have."""
    seconds = client.lists_wait_until - time.monotonic()
    if seconds > 0:
        percentage = client.settings.api_utilization_percentage
        reason = f"{purpose}: more than {percentage} % of the organization's rate limit is used"
        __wait(client, seconds, reason)


def __seconds_until_reset(headers) -> float | None:
    """Return how many seconds a response asks to wait, or None if it does not say."""
    now, date = time.time(), __header_date(headers.get("Date"))
    # If the clocks differ, the server's own counts. It is only given in whole seconds.
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
    """Return an exponential backoff with full jitter, so that requests that fail at the same time
    are not retried at the same time."""
    ceiling = min(__BACKOFF_MAX_SECONDS, __BACKOFF_BASE_SECONDS * 2**earlier_failures)
    return random.uniform(0, ceiling)


def __handle_request_error(
    client: Client, request: str, cause: str, failures: int, purpose: str
) -> None:
    """Wait before the next retry. Raises KustomerError if there are no retries left."""
    if failures >= client.settings.retry_attempts:
        times = f" {failures + 1} times. The last error was" if failures else ""
        raise KustomerError(
            f"{request} failed{times}: {cause}. If this persists, check your network, base_url and "
            "Kustomer's status, increase retry_attempts or request_timeout_seconds, or decrease "
            "max_records_per_page."
        )
    __wait(client, __backoff_seconds(failures), f"{purpose}: {cause}")


# --------------------------------------------------------------------------------------------
# Time
#
# All times are in UTC. As text, they have Kustomer's format, such as 2026-11-23T08:30:00.000Z.
# --------------------------------------------------------------------------------------------

# A sync also reads the last ten minutes before the previous sync again, because the search index is
# updated with a delay and clocks differ.
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
    """Return the time range in which a sync that starts now has to read changes.

    The range begins ten minutes before `last_sync_time`, because the search index is updated with
    a delay. Rows in this overlap are delivered again, which is harmless: an upsert replaces the
    row with the same primary key.

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
    ahead = client.clock_ahead if client else None
    now = datetime.now(timezone.utc) - max(ahead or timedelta(0), timedelta(0))
    return __whole_milliseconds(max(now, __EPOCH))


def __note_clock_difference(client: Client, date: str | None) -> None:
    """Note how far this machine's clock is ahead, from the first response with a Date header."""
    if client.clock_ahead is None and (kustomer_time := __header_date(date)):
        client.clock_ahead = datetime.now(timezone.utc) - kustomer_time


def __whole_milliseconds(timestamp: datetime) -> datetime:
    return timestamp.replace(microsecond=timestamp.microsecond // 1000 * 1000)


def __parse_time(value) -> datetime | None:
    """Parse an ISO time, which is in UTC if it has no offset. Return None if it is not valid."""
    return __read_time(value)[0] if isinstance(value, str) else None


def __read_time(text: str) -> tuple[datetime | None, str | None]:
    """Parse an ISO time. Return it as a datetime and in Kustomer's format, or (None, None)."""
    try:
        if __KUSTOMER_TIME.fullmatch(text):
            return datetime.fromisoformat(text[:-1] + "+00:00"), text
        parts = __ANY_TIME.fullmatch(text)
        if not parts:
            return None, None
        day, clock, seconds, fraction, hours, minutes = parts.groups()
        clock += f"{seconds or ':00'}.{(fraction or '')[:6]:0<6}"
        timestamp = datetime.fromisoformat(f"{day}T{clock}{hours or '+00'}:{minutes or '00'}")
        timestamp = timestamp.astimezone(timezone.utc)
        return timestamp, __format_time(timestamp)
    except (ValueError, OverflowError):
        return None, None


def __format_time(timestamp: datetime) -> str:
    """Return a UTC time in Kustomer's format, with microseconds if it is not in milliseconds."""
    precision = "microseconds" if timestamp.microsecond % 1000 else "milliseconds"
    return timestamp.isoformat(timespec=precision)[: -len("+00:00")] + "Z"


# --------------------------------------------------------------------------------------------
# Setup form
#
# The form that Fivetran shows when a connection is set up, and the tests that it runs.
# --------------------------------------------------------------------------------------------


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
    if setting.parse is __parse_switch:
        return form_field.ToggleField(setting.name, setting.label, **common)
    kind = form_field.TextField.password if required else form_field.TextField.plain_text
    placeholder = "eyJ..." if required else str(setting.default or "not set")
    return form_field.TextField(
        setting.name, setting.label, kind, placeholder=placeholder, **common
    )


def test_configuration(configuration: dict):
    """Setup test: every setting is valid. An unknown setting is a warning in the log."""

    def warn_of_unknown_settings(client: Client) -> None:
        client.warnings.extend(__unknown_settings(configuration))

    return __run_setup_test(configuration, warn_of_unknown_settings)


def test_api_key(configuration: dict):
    """Setup test: the key is valid in the region of `base_url`."""
    return __run_setup_test(configuration, check_api_key)


def test_roles(configuration: dict):
    """Setup test: the key can read every table. A failure names each missing role."""
    return __run_setup_test(configuration, __read_first_pages)


def test_search(configuration: dict):
    """Setup test: search works. If it does not, the test passes with a warning, because tables are
    then read from their lists."""
    return __run_setup_test(configuration, __search_customers)


def __run_setup_test(configuration: dict, check: Callable[[Client], None]):
    """Return the result of a setup test, which passes if `check` does not raise an error."""
    try:
        settings = validate_configuration(configuration)
        with open_client(settings, limited_seconds_max=__SETUP_TEST_MAX_WAIT_SECONDS) as client:
            check(client)
            __show_warnings(client)
    except (KustomerError, ValueError) as error:
        return Test.failure(str(error))
    return Test.success()


def __read_first_pages(client: Client) -> None:
    # Each table would report an invalid key again.
    check_api_key(client)
    failures = []
    for table in __selected_tables(client.settings.additional_tables):
        try:
            next(__list_pages(client, table))
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
        __search(Search(client, CUSTOMERS, now, now), Slice(now))
    except SearchUnusableError as error:
        reason = str(error).rstrip(".")
        tables = __selected_tables(client.settings.additional_tables)
        searched = ", ".join(t.name for t in tables if t.search and t.search_is_documented)
        client.warnings.append(
            f"{reason}. Without search, every sync reads the whole lists of {searched}, which takes "
            "more requests and can miss deletions."
        )


connector = Connector(update=update, schema=schema, configuration_form=configuration_form)

if __name__ == "__main__":
    # To run or debug the connector from an editor. `fivetran debug` does not execute this block.
    with open("configuration.json", encoding="utf-8") as file:
        connector.debug(configuration=json.load(file))

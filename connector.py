"""Kustomer's customers, companies, brands and messages for a Fivetran destination.

The order of this file: constants, errors, configuration, time, HTTP, pagination, record mapping,
table generators, sync, schema, setup form.
"""

import contextlib
import difflib
import gc
import ipaddress
import json
import operator
import random
import re
import time
from bisect import bisect_left, bisect_right
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple
from urllib.parse import urlsplit

import requests
from fivetran_connector_sdk import ConfigurationForm, Connector, Test, form_field
from fivetran_connector_sdk import Logging as log
from fivetran_connector_sdk import Operations as op

VERSION = "1.0.0"

# --------------------------------------------------------------------------------------------
# Constants
# --------------------------------------------------------------------------------------------

__DEFAULT_ORIGIN = "https://api.kustomerapp.com"
__KUSTOMER_DOMAIN = "kustomerapp.com"

# https://developer.kustomer.com/docs/concepts/pagination, read 2026-11-23: most lists give at
# most 100 records a page, search 500.
__LIST_PAGE_MAX_RECORDS = 100
__SEARCH_PAGE_MAX_RECORDS = 500
# A page of search is trusted when its order is right, and one of a list when it joins the page
# before: a record or two are in order by chance too often, and pages of few can join no others.
__PAGE_MIN_RECORDS = 20
# https://developer.kustomer.com/docs/concepts/search, read 2026-11-23: at most 100 pages a
# query, and only records updated in the last two years.
__SEARCH_MAX_PAGES = 100
__SEARCH_HORIZON = timedelta(days=2 * 365)
# Records only ever leave a moment, so passes over it come to agree soon.
__MOMENT_MAX_PASSES = 20
# Answers by which search says that it will not serve this query.
__SEARCH_REFUSALS = frozenset({400, 401, 403, 404, 405, 422})
__MISSING_ROLE_STATUSES = frozenset({401, 403})
__SEARCH_PATH = "/v1/customers/search"
__SEARCH_ROLE = "org.permission.search.create (legacy org.user.search.read)"
__KEY_PATH = "/v1/users/current"
# https://developer.kustomer.com/docs/get-started/quickstart, read 2026-11-23: the roles of a key
# cannot be changed once it is made.
__NEW_KEY = (
    "Make a key with this role added, under Settings > Security > API Keys; the roles of a key "
    "cannot be changed."
)

# A list that gives nothing new for this many requests in a row is not going to end.
__LIST_MAX_BARREN_PAGES = 12

# Two pages of parsed records stay well below this many objects.
__COLLECT_GARBAGE_FROM_OBJECTS = 200_000

# Covers the lag of the search index and clocks that disagree.
__OVERLAP = timedelta(minutes=10)
__CHECKPOINT_EVERY_ROWS = 5_000
__LOG_EVERY_SECONDS = 30.0

__BACKOFF_BASE_SECONDS = 1.0
__BACKOFF_MAX_SECONDS = 60.0
__RATE_LIMIT_MAX_WAIT_SECONDS = 120.0
__RATE_LIMIT_MAX_TOTAL_SECONDS = 900.0
# Clients that wait for the same reset must not all come back in the same instant.
__RATE_LIMIT_JITTER_SHARE = 0.05
# x-ratelimit-reset: at or above the first value it is epoch milliseconds, at or above the second
# epoch seconds, below it seconds left.
__EPOCH_MILLISECONDS_FROM = 1e11
__EPOCH_SECONDS_FROM = 1e8

__READ_BYTES = 128 * 1024
__API_MESSAGE_MAX_CHARACTERS = 300
__SHOWN_VALUE_MAX_CHARACTERS = 60


class Table(NamedTuple):
    """A destination table and where Kustomer keeps its records.

    `search` is the query context of the table's object, or None where search cannot find its
    changes. A `mirrored` table is truncated before it is delivered. `columns` maps each column to
    its Fivetran type, `times` each time column to the record's attribute.
    """

    name: str
    path: str
    role: str
    columns: Dict[str, str]
    times: Dict[str, str]
    search: Optional[str] = None
    mirrored: bool = False


__CHANGE_TIMES = {"created_at": "createdAt", "updated_at": "updatedAt"}

TABLES = (
    Table(
        name="customers",
        path="/v1/customers",
        role="org.permission.customer.read (legacy org.user.customer.read)",
        search="customer",
        times=__CHANGE_TIMES,
        columns={
            "id": "STRING",
            "name": "STRING",
            "email": "STRING",
            "phone": "STRING",
            "company_id": "STRING",
            "external_id": "STRING",
            "verified": "BOOLEAN",
            "locked": "BOOLEAN",
            "emails": "STRING",
            "phones": "STRING",
            "tags": "STRING",
            "custom": "STRING",
            "deleted": "BOOLEAN",
            "created_at": "UTC_DATETIME",
            "updated_at": "UTC_DATETIME",
        },
    ),
    Table(
        name="companies",
        path="/v1/companies",
        role="org.permission.company.read (legacy org.user.company.read)",
        times=__CHANGE_TIMES,
        columns={
            "id": "STRING",
            "name": "STRING",
            "website": "STRING",
            "domains": "STRING",
            "external_id": "STRING",
            "tags": "STRING",
            "custom": "STRING",
            "deleted": "BOOLEAN",
            "created_at": "UTC_DATETIME",
            "updated_at": "UTC_DATETIME",
        },
    ),
    Table(
        name="brands",
        path="/v1/brands",
        role="org.permission.brand.read (legacy org.user.brand.read)",
        mirrored=True,
        times=__CHANGE_TIMES,
        columns={
            "id": "STRING",
            "name": "STRING",
            "display_name": "STRING",
            "website_url": "STRING",
            "icon_url": "STRING",
            "is_default": "BOOLEAN",
            "created_at": "UTC_DATETIME",
            "updated_at": "UTC_DATETIME",
        },
    ),
    Table(
        name="messages",
        path="/v1/messages",
        role="org.permission.message.read (legacy org.user.message.read)",
        search="message",
        times={**__CHANGE_TIMES, "sent_at": "sentAt"},
        columns={
            "id": "STRING",
            "conversation_id": "STRING",
            "customer_id": "STRING",
            "channel": "STRING",
            "direction": "STRING",
            "message_type": "STRING",
            "status": "STRING",
            "subject": "STRING",
            "body": "STRING",
            "app": "STRING",
            "source": "STRING",
            "meta": "STRING",
            "custom": "STRING",
            "sent_at": "UTC_DATETIME",
            "created_at": "UTC_DATETIME",
            "updated_at": "UTC_DATETIME",
        },
    ),
)
__CUSTOMERS, __COMPANIES, __BRANDS, __MESSAGES = TABLES


class Setting(NamedTuple):
    """A configuration key: how its text is read, its default, and how the setup form shows it.

    `kind` is "key", "integer", "switch" or "origin"; `lowest` and `highest` bound an integer.
    """

    name: str
    kind: str
    default: Any
    label: str
    description: str
    placeholder: str = ""
    lowest: int = 0
    highest: int = 0


SETTINGS = (
    Setting(
        "api_key",
        "key",
        None,
        "API key",
        "Made in Kustomer under Settings > Security > API Keys, with roles to read customers, "
        "companies, brands and messages, and to search.",
        placeholder="eyJ...",
    ),
    Setting(
        "base_url",
        "origin",
        __DEFAULT_ORIGIN,
        "Kustomer address",
        "US: https://api.kustomerapp.com (default). EU: https://api.prod2.kustomerapp.com. "
        "India: https://api.prod4.kustomerapp.com. Or the name or address of your organization.",
        placeholder=__DEFAULT_ORIGIN,
    ),
    Setting(
        "initial_sync_days",
        "integer",
        90,
        "Days of history",
        "How many days back the first sync looks for changed records: 1 to 365, 90 by default.",
        placeholder="90",
        lowest=1,
        highest=365,
    ),
    Setting(
        "sync_frequency_hours",
        "integer",
        None,
        "Hours between reads of a table",
        "A table read less than this many hours ago is left for a later sync: 1 to 168. When "
        "empty, every sync reads every table.",
        placeholder="not set",
        lowest=1,
        highest=168,
    ),
    Setting(
        "max_records_per_page",
        "integer",
        500,
        "Records per page",
        "How many records to ask for at once: 1 to 1000, 500 by default. Lists never get more "
        "than 100, searches never more than 500.",
        placeholder="500",
        lowest=1,
        highest=1000,
    ),
    Setting(
        "request_timeout_seconds",
        "integer",
        30,
        "Request timeout in seconds",
        "How long to wait for Kustomer to answer: 1 to 300 seconds, 30 by default.",
        placeholder="30",
        lowest=1,
        highest=300,
    ),
    Setting(
        "retry_attempts",
        "integer",
        3,
        "Retries",
        "How often a failed request is sent again: 0 to 10 times, 3 by default. Waits for the "
        "rate limit do not count.",
        placeholder="3",
        lowest=0,
        highest=10,
    ),
    Setting(
        "enable_incremental_sync",
        "switch",
        True,
        "Incremental sync",
        "On (default): read what changed since the last sync. Off: read everything each time.",
    ),
    Setting(
        "enable_debug_logging",
        "switch",
        False,
        "Debug logging",
        "On: one log line for each request. Off by default.",
    ),
)
# A text that no kind of setting takes, for values that are no text.
__UNREADABLE = "\0"
__SWITCH_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}

# --------------------------------------------------------------------------------------------
# Errors
# --------------------------------------------------------------------------------------------


class KustomerError(Exception):
    """Kustomer did not give what the sync needs; the text says what happened and what to do."""


class RefusedError(KustomerError):
    """Kustomer refused a request with a status that no retry changes.

    `status` is the HTTP status, `reason` what the API said of it.
    """

    def __init__(self, message: str, status: int, reason: str):
        super().__init__(message, status, reason)
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        return self.args[0]


class MalformedError(KustomerError):
    """Kustomer answered with JSON that is not what its documentation says."""


class MissingRoleError(KustomerError):
    """The API key may not read a table; the text names the role to add."""


class TransientError(Exception):
    """A request failed in a way that may pass; the text is its cause. Never leaves the HTTP
    section."""


class RateLimitError(Exception):
    """A request was answered 429. `headers` are the answer's. Never leaves the HTTP section."""

    def __init__(self, headers):
        super().__init__(headers)
        self.headers = headers


class SearchUnusableError(Exception):
    """Search cannot be relied on for a table; the text says why. The table's list can."""


class SearchRoleMissingError(SearchUnusableError):
    """Search was refused as it is for want of a role; the table's own list tells which."""


# --------------------------------------------------------------------------------------------
# Configuration
# --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """The checked configuration; the fields are its keys."""

    api_key: str = field(repr=False)
    sync_frequency_hours: Optional[int]
    initial_sync_days: int
    max_records_per_page: int
    request_timeout_seconds: int
    retry_attempts: int
    enable_incremental_sync: bool
    enable_debug_logging: bool
    base_url: str


def parse_configuration(configuration: Optional[dict]) -> Settings:
    """Check the whole configuration and return it with defaults filled in.

    Args:
        configuration: the flat dictionary of texts that Fivetran passes. An empty text or an
            untouched `<PLACEHOLDER>` counts as not set.

    Returns:
        Settings with every key typed and within its range.

    Raises:
        ValueError: naming every setting that is wrong, what it was given (never an API key), and
            what it takes.
    """
    given = configuration or {}
    values, problems = {}, []
    for setting in SETTINGS:
        try:
            values[setting.name] = __setting_value(setting, given.get(setting.name))
        except ValueError as error:
            got = __shown(setting, given.get(setting.name), given.get("api_key"))
            problems.append(f"{setting.name}: {error}{got}.")
    if problems:
        raise ValueError("The configuration needs changes. " + " ".join(problems))
    return Settings(**values)


def __setting_value(setting: Setting, value):
    """Return the typed value of one setting, or raise ValueError with what the setting takes."""
    text = "" if value is None else str(value)
    if isinstance(value, (dict, list)):
        text = __UNREADABLE
    if not text.strip() or re.fullmatch(r"<[A-Z0-9_]+>", text.strip()):
        if setting.kind == "key":
            raise ValueError(
                "is required; make a key in Kustomer under Settings > Security > API Keys"
            )
        return setting.default
    return __READERS[setting.kind](setting, text)


def __read_key(_setting: Setting, text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ValueError(
            "has blanks, control characters or letters that no key has; copy the key alone again, "
            "without 'Bearer' or line ends"
        )
    return text


def __read_integer(setting: Setting, text: str) -> int:
    text = text.strip()
    whole = re.fullmatch(r"[0-9]{1,9}", text)
    if not whole or not setting.lowest <= int(text) <= setting.highest:
        raise ValueError(f"takes a whole number from {setting.lowest} to {setting.highest}")
    return int(text)


def __read_switch(_setting: Setting, text: str) -> bool:
    switch = __SWITCH_WORDS.get(text.strip().lower())
    if switch is None:
        raise ValueError("takes true or false (or yes/no, on/off, 1/0)")
    return switch


def __read_origin(_setting: Setting, text: str) -> str:
    """Return the API origin that an address or an organization's name means.

    Source: https://developer.kustomer.com/docs/get-started/regions-and-base-urls.
    """
    text = text.strip()
    problem = (
        "takes https://api.kustomerapp.com (US), https://api.prod2.kustomerapp.com (EU), "
        "https://api.prod4.kustomerapp.com (India), or the name or address of an organization on "
        f"{__KUSTOMER_DOMAIN}; the key is sent nowhere else"
    )
    if re.fullmatch(r"[A-Za-z0-9-]+", text) and text.lower() != "localhost":
        text = f"{text}.{__KUSTOMER_DOMAIN}"
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise ValueError(problem) from None
    if "@" in parts.netloc or not re.fullmatch(r"[a-z0-9.:-]+", host):
        raise ValueError(problem)
    if parts.scheme == "http" and __is_loopback(host):
        return f"http://{parts.netloc.lower()}"
    labels = host[: -len(__KUSTOMER_DOMAIN) - 1].split(".")
    if parts.scheme != "https" or port not in (None, 443):
        raise ValueError(problem)
    if not host.endswith("." + __KUSTOMER_DOMAIN) or not all(labels):
        raise ValueError(problem)
    if "api" not in labels:
        labels.insert(1, "api")
    return f"https://{'.'.join(labels)}.{__KUSTOMER_DOMAIN}"


def __is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


__READERS: Dict[str, Callable[[Setting, str], Any]] = {
    "key": __read_key,
    "integer": __read_integer,
    "switch": __read_switch,
    "origin": __read_origin,
}


def __shown(setting: Setting, value, api_key) -> str:
    """Return what an error may repeat of a wrong value: never a key or what may hold one."""
    text = str(value)
    may_be_key = setting.kind == "key" or "eyJ" in text or "@" in text
    if may_be_key or (api_key and str(api_key) in text):
        return ""
    if len(text) > __SHOWN_VALUE_MAX_CHARACTERS:
        return f", not a text of {len(text)} characters"
    return f", not {text!r}"


def __warn_of_unknown_keys(configuration: dict, warn: Callable[[str], None]) -> None:
    names = [setting.name for setting in SETTINGS]
    for key in configuration:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.0)[0]
            warn(f"Configuration: {str(key)[:40]!r} is no setting of this connector. {near}?")


# --------------------------------------------------------------------------------------------
# Time
# --------------------------------------------------------------------------------------------

# What Kustomer sends: https://developer.kustomer.com/docs/concepts/json-api-format.
__KUSTOMER_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
__ANY_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?(?:[Zz]|([+-]\d\d):?(\d\d))?", re.ASCII
)


__EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def __now() -> datetime:
    """Return the time to the millisecond, which is as fine as Kustomer's own."""
    now = datetime.now(timezone.utc)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def __parse_time(value) -> Optional[datetime]:
    """Return the moment that an ISO text names (UTC where it names no offset), or None."""
    return __read_time(value)[0] if isinstance(value, str) else None


# A record's updatedAt is read for its order and for its row, and often equals its other times.
@lru_cache(maxsize=4096)
def __read_time(text: str) -> Tuple[Optional[datetime], Optional[str]]:
    """Return the moment that an ISO text names, and how Kustomer would write it."""
    try:
        if __KUSTOMER_TIME.fullmatch(text):
            return datetime.fromisoformat(text[:-1] + "+00:00"), text
        parts = __ANY_TIME.fullmatch(text)
        if not parts:
            return None, None
        day, clock, fraction, hours, minutes = parts.groups()
        text = f"{day}T{clock}.{(fraction or '')[:6]:0<6}{hours or '+00'}:{minutes or '00'}"
        moment = datetime.fromisoformat(text).astimezone(timezone.utc)
        return moment, __format_time(moment)
    except (ValueError, OverflowError):
        return None, None


def __format_time(moment: datetime) -> str:
    """Return a UTC moment as Kustomer writes it, with microseconds only where it has them."""
    precision = "microseconds" if moment.microsecond % 1000 else "milliseconds"
    return moment.isoformat(timespec=precision)[: -len("+00:00")] + "Z"


def get_time_range(
    last_sync_time: Optional[str] = None, configuration: Optional[dict] = None
) -> Dict[str, str]:
    """Return the window of changes that a sync starting now has to read.

    The window begins ten minutes before `last_sync_time`, because the search index lags behind
    writes; the rows in that overlap are delivered again, which their primary key makes harmless.

    Args:
        last_sync_time: an ISO time, or None for a first sync.
        configuration: the connector's configuration; `initial_sync_days` is used for a first sync.

    Returns:
        {"start": ..., "end": ...}, ISO texts in UTC; end is now.

    Raises:
        ValueError: when `last_sync_time` is no time or `initial_sync_days` is out of range.
    """
    end = __now()
    if last_sync_time is None:
        (setting,) = (setting for setting in SETTINGS if setting.name == "initial_sync_days")
        days = __setting_value(setting, (configuration or {}).get(setting.name))
        start = end - timedelta(days=days)
    else:
        last = __parse_time(last_sync_time)
        if last is None:
            raise ValueError(f"last_sync_time takes an ISO time, not {last_sync_time!r:.60}")
        start = max(last, __EPOCH) - __OVERLAP
    return {"start": __format_time(start), "end": __format_time(end)}


# --------------------------------------------------------------------------------------------
# HTTP
# --------------------------------------------------------------------------------------------


class BearerAuth(requests.auth.AuthBase):
    """Puts the API key on a request. As an auth object it also keeps a .netrc from replacing it."""

    def __init__(self, api_key: str):
        self._header = f"Bearer {api_key}"

    def __call__(self, request):
        request.headers["Authorization"] = self._header
        return request


@dataclass
class Client:
    """What the requests of one sync share: the connection, the settings and the counts.

    `warn` tells the user of something to act on; it is called from the main thread only.
    `search_role_missing` is set once search was refused for want of a role. `closed` stops
    retries of a page that is being read ahead when nobody wants it any more.
    """

    session: requests.Session
    settings: Settings
    warn: Callable[[str], None]
    requests_sent: int = 0
    seconds_waited: float = 0.0
    search_role_missing: bool = False
    closed: bool = False
    quiet_since: float = field(default_factory=lambda: time.monotonic())


@contextlib.contextmanager
def open_client(settings: Settings, warn: Optional[Callable[[str], None]] = None):
    """Yield a Client with one keep-alive session, closed at the end."""
    with requests.Session() as session:
        session.auth = BearerAuth(settings.api_key)
        session.headers["Accept"] = "application/json"
        session.headers["User-Agent"] = f"fivetran-kustomer-connector/{VERSION}"
        # A proxy of the environment is for the world outside, not for a mock on this machine.
        session.trust_env = settings.base_url.startswith("https://")
        client = Client(session, settings, warn or __log_warning)
        try:
            yield client
        finally:
            client.closed = True


def __log(write: Callable[[str], None], message: str) -> None:
    """Write a log line during a sync. Outside of one the SDK has no log, and there is none."""
    if log.LOG_LEVEL is not None:
        write(message)


def __log_warning(message: str) -> None:
    __log(log.warning, message)


def __log_now_and_then(client: Client, message: str, silence_ahead: float = 0.0) -> None:
    """Write a log line when there was none for half a minute, or will be none for so long.

    Args:
        silence_ahead: seconds for which nothing else is going to happen.
    """
    silent_until = time.monotonic() + silence_ahead
    if silent_until - client.quiet_since >= __LOG_EVERY_SECONDS:
        client.quiet_since = silent_until
        __log(log.info, message)


def execute_api_request(
    endpoint: str,
    api_key: str,
    params: Optional[dict] = None,
    configuration: Optional[dict] = None,
    *,
    body: Optional[dict] = None,
    client: Optional[Client] = None,
) -> dict:
    """Send one request, wait and retry as its answers ask for, and return the parsed JSON.

    429 is waited out as the answer's headers say, for at most fifteen minutes. Timeouts, broken
    connections, 5xx, answers that are not a JSON object and partial answers are retried
    `retry_attempts` times.

    Args:
        endpoint: path, beginning with /v1.
        api_key: the Kustomer API key.
        params: query parameters.
        configuration: the connector's configuration; used when there is no `client`.
        body: a JSON body; a request that has one is a POST, any other a GET.
        client: the running sync's client.

    Returns:
        The answer's JSON object.

    Raises:
        RefusedError: on a status that no retry changes.
        KustomerError: when the waits or retries are used up.

    Source: https://developer.kustomer.com/docs/concepts/rate-limits (429 and its headers).
    """
    if client is None:
        settings = parse_configuration({**(configuration or {}), "api_key": api_key})
        with open_client(settings) as own:
            return execute_api_request(endpoint, api_key, params, body=body, client=own)
    request = f"{'GET' if body is None else 'POST'} {endpoint}"
    failures, limits, waited = 0, 0, 0.0
    while True:
        try:
            return __send(client, endpoint, params, body)
        except RateLimitError as limit:
            waited += __handle_rate_limit(client, request, limit.headers, limits, waited)
            limits += 1
        except TransientError as error:
            __handle_request_error(client, request, str(error), failures)
            failures += 1


def __send(client: Client, path: str, params: Optional[dict], body: Optional[dict]) -> dict:
    """Send one request once. Decides which of the three ends it has, besides an answer."""
    settings, started = client.settings, time.perf_counter()
    method = "GET" if body is None else "POST"
    client.requests_sent += 1
    outcome, rows = "no answer", 0
    try:
        reply = __exchange(client, method, path, params, body)
        left = reply.headers.get("x-ratelimit-remaining", "unknown")
        outcome = f"status {reply.status}, budget left {left:.20}"
        payload = __read_answer(reply, method, path, settings.api_key)
        rows = len(payload["data"]) if isinstance(payload.get("data"), list) else 0
        return payload
    finally:
        if settings.enable_debug_logging:
            page = (params or {}).get("page", 1)
            spent = (time.perf_counter() - started) * 1000
            line = f"{method} {path} page {page}: {outcome}, {rows} rows, {spent:.0f} ms"
            __log(log.info, line)


class Reply(NamedTuple):
    """An answer, read to its end."""

    status: int
    headers: Any
    body: bytes


def __exchange(
    client: Client, method: str, path: str, params: Optional[dict], body: Optional[dict]
) -> Reply:
    try:
        with client.session.request(
            method,
            client.settings.base_url + path,
            params=params,
            json=body,
            timeout=client.settings.request_timeout_seconds,
            allow_redirects=False,
            stream=True,
        ) as response:
            # In larger pieces than requests itself reads, which costs a good part of parsing.
            content = b"".join(response.iter_content(__READ_BYTES))
            return Reply(response.status_code, response.headers, content)
    except requests.RequestException as error:
        cause = type(error).__name__
    # Raised out here, away from an exception that holds the request, and so the key.
    raise TransientError(f"no complete answer ({cause})")


def __read_answer(reply: Reply, method: str, path: str, api_key: str) -> dict:
    status = reply.status
    if status == 429:
        raise RateLimitError(reply.headers)
    if status == 408 or status >= 500:
        raise TransientError(f"status {status}")
    if status != 200:
        reason = __api_message(reply, api_key)
        raise RefusedError(f"{method} {path} was refused with {status}: {reason}", status, reason)
    try:
        payload = json.loads(reply.body)
    except (ValueError, RecursionError):
        raise TransientError("status 200 with an answer that is not JSON") from None
    if not isinstance(payload, dict):
        raise TransientError("status 200 with JSON that is not an object")
    meta = payload.get("meta")
    if isinstance(meta, dict) and meta.get("timed_out"):
        raise TransientError("status 200 with a partial answer (meta.timed_out)")
    return payload


def __api_message(reply: Reply, api_key: str) -> str:
    """Return what the API says of a refusal: the fields that describe errors, nothing else of the
    body, and never the key."""
    if 300 <= reply.status < 400:
        return "a redirect, which is never followed; check base_url"
    try:
        errors = json.loads(reply.body)["errors"]
        words = [
            str(error[name])
            for error in errors
            for name in ("code", "title", "message", "detail")
            if error.get(name)
        ]
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        words = []
    text = " ".join(" - ".join(words).replace(api_key, "(key)").split())
    return text[:__API_MESSAGE_MAX_CHARACTERS] or "no reason given"


def __handle_rate_limit(
    client: Client, request: str, headers, earlier_limits: int, waited: float
) -> float:
    """Wait out a 429 and return the seconds waited.

    Raises KustomerError when the request has waited as long as it may.
    """
    if waited >= __RATE_LIMIT_MAX_TOTAL_SECONDS or client.closed:
        raise KustomerError(
            f"{request} was answered 429 (rate limit) for {waited / 60:.0f} minutes. Other keys "
            "and apps of the organization share its limit; the next sync goes on from here."
        )
    seconds = __seconds_until_reset(headers)
    if seconds is None:
        seconds = __backoff_seconds(earlier_limits)
    else:
        seconds += random.uniform(0, __RATE_LIMIT_JITTER_SHARE * seconds)
    seconds = min(seconds, __RATE_LIMIT_MAX_WAIT_SECONDS)
    __log_now_and_then(client, f"{request}: rate limit, waiting {seconds:.1f} s.", seconds)
    client.seconds_waited += seconds
    time.sleep(seconds)
    return seconds


def __seconds_until_reset(headers) -> Optional[float]:
    """Return how long a 429 asks to wait, or None when it says nothing that lies ahead."""
    seconds = __retry_after_seconds(headers.get("Retry-After"))
    if seconds is None:
        reset = __number(headers.get("x-ratelimit-reset"))
        if reset is not None and reset >= __EPOCH_MILLISECONDS_FROM:
            seconds = reset / 1000 - time.time()
        elif reset is not None and reset >= __EPOCH_SECONDS_FROM:
            seconds = reset - time.time()
        else:
            seconds = reset
    return seconds if seconds is not None and seconds > 0 else None


def __retry_after_seconds(value: Optional[str]) -> Optional[float]:
    seconds = __number(value)
    if seconds is None and value:
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
    return seconds


def __number(text: Optional[str]) -> Optional[float]:
    return float(text) if text and re.fullmatch(r"[0-9]{1,15}(\.[0-9]+)?", text.strip()) else None


def __backoff_seconds(earlier_failures: int) -> float:
    """Return a wait with full jitter, for requests that fail together not to come back so."""
    ceiling = min(__BACKOFF_MAX_SECONDS, __BACKOFF_BASE_SECONDS * 2**earlier_failures)
    return random.uniform(0, ceiling)


def __handle_request_error(client: Client, request: str, cause: str, failures: int) -> None:
    """Wait before the next retry, or raise KustomerError when there is none left."""
    if failures >= client.settings.retry_attempts or client.closed:
        raise KustomerError(
            f"{request} failed {failures + 1} times, the last time with: {cause}. When this lasts, "
            "see whether Kustomer is up, raise retry_attempts or request_timeout_seconds, or "
            "lower max_records_per_page."
        )
    seconds = __backoff_seconds(failures)
    client.seconds_waited += seconds
    time.sleep(seconds)


def check_api_key(client: Client) -> None:
    """Return when the API key is live.

    Raises:
        KustomerError: when Kustomer does not know the key in this region.

    Source: https://developer.kustomer.com/docs/get-started/authentication.
    """
    try:
        execute_api_request(__KEY_PATH, client.settings.api_key, client=client)
    except RefusedError as error:
        if error.status == 404:
            return
        if error.status not in __MISSING_ROLE_STATUSES:
            raise
        raise KustomerError(
            f"api_key: {client.settings.base_url} refused the key with {error.status} "
            f"({error.reason}). It is invalid, expired or of another region: check api_key (and "
            "its IP restriction), and set base_url to the region of the organization."
        ) from None


# --------------------------------------------------------------------------------------------
# Pagination
# --------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """A page as the API gave it. `more` is whether it says that further records match, `total` how
    many do, and `size` how many records its pages hold; each is None where it says nothing."""

    records: list
    more: Optional[bool]
    total: Optional[int]
    size: Optional[int]


class Page(NamedTuple):
    """Records to deliver, and what is known once they are.

    `safe_until` is the moment up to which every change has been read, or None where the order of
    records does not tell. `notice` is a warning for the user.
    """

    records: list
    safe_until: Optional[datetime] = None
    total: Optional[int] = None
    notice: str = ""


def __read_ahead(client: Client, pages: Iterator[Page]) -> Iterator[Page]:
    """Yield the pages, each while a thread already reads the one after it."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = reader.submit(next, pages, None)
        try:
            while (page := ahead.result()) is not None:
                ahead = reader.submit(next, pages, None)
                yield page
        except GeneratorExit:
            client.closed = True
            raise


def __fetch(client: Client, path: str, params: dict, body: Optional[dict] = None) -> Answer:
    """Fetch one page of a list or a search.

    Raises MalformedError when the answer has no list of records.

    Source: https://developer.kustomer.com/docs/concepts/pagination.
    """
    payload = execute_api_request(
        path, client.settings.api_key, {**params}, body=body, client=client
    )
    records, meta, links = (payload.get(name) for name in ("data", "meta", "links"))
    if not isinstance(records, list):
        raise MalformedError(
            f"{path} answered page {params['page']} without a list of records in 'data'."
        )
    meta = meta if isinstance(meta, dict) else {}
    total, size = (
        meta.get(name) if type(meta.get(name)) is int else None for name in ("total", "pageSize")
    )
    more = bool(links["next"]) if isinstance(links, dict) and "next" in links else None
    return Answer(records, more, total, size)


def __page_size(client: Client, maximum: int) -> int:
    return max(__PAGE_MIN_RECORDS, min(client.settings.max_records_per_page, maximum))


def __list_pages(client: Client, table: Table, start: Optional[datetime]) -> Iterator[Page]:
    """Yield every page of a table's list, with the records changed since `start` (None: all).

    When a record leaves the list while it is read, those behind it move up, and the first of the
    next page moves onto one already read. So each page is asked for such that it begins on the
    page before, and one that does not join that page is given up for one further back.

    Raises MissingRoleError when the key may not read the list, KustomerError when it never ends.
    """
    limit = __page_size(client, __LIST_PAGE_MAX_RECORDS)
    reached, furthest, read, barren = 0, 0, 0, 0
    before, leaders = set(), set()
    while True:
        number, size = __joining_page(reached, limit)
        answer = __fetch_list_page(client, table, {"page": number, "pageSize": size})
        if answer.size is not None and len(answer.records) <= answer.size < size:
            # The server gives no larger pages. One record a page would join no other.
            limit = size = max(answer.size, 2)
        marks = list(map(__mark, answer.records))
        joins = number == 1 or not before.isdisjoint(marks)
        fresh = [record for record, mark in zip(answer.records, marks) if mark not in before]
        more = bool(fresh) if answer.more is None else answer.more
        leader = hash(marks[0]) if marks else None
        news = joins and fresh and leader not in leaders
        leaders.add(leader)
        if not news:
            barren += 1
        if barren > __LIST_MAX_BARREN_PAGES:
            raise KustomerError(
                f"GET {table.path} gives nothing new, page after page, and no end (page {number} "
                f"of {size} records); the list of {table.name} cannot be read."
            )
        if not joins:
            reached = max(0, (number - 1) * size - limit * 2**barren)
            continue
        read += len(fresh)
        notice = "" if more else __shortfall(table, answer.total, read)
        yield Page(__changed_since(fresh, start), total=answer.total, notice=notice)
        if not more:
            return
        before = set(marks)
        reached = (number - 1) * size + min(len(before), size)
        if news and reached > furthest:
            furthest, barren = reached, 0


def __joining_page(reached: int, limit: int) -> Tuple[int, int]:
    """Return number and size of the page that holds the last of the `reached` first records of a
    list, and goes furthest beyond it."""
    if not reached:
        return 1, limit
    sizes = range(1, limit + 1)
    size = max(sizes, key=lambda size: ((reached - 1) // size + 1) * size)
    return (reached - 1) // size + 1, size


def __mark(record) -> Tuple[Optional[str], Any]:
    """Return what tells a record, and that it did not change and so did not move in its list."""
    return __record_id(record), str(__attributes(record).get("updatedAt"))


def __shortfall(table: Table, total: Optional[int], read: int) -> str:
    if total is None or total <= read:
        return ""
    return (
        f"{table.name}: Kustomer counts {total} records, its list gave {read}. The rest cannot be "
        f"reached through the list; use a key with the role {__SEARCH_ROLE}."
    )


def __fetch_list_page(client: Client, table: Table, params: dict) -> Answer:
    try:
        return __fetch(client, table.path, params)
    except RefusedError as error:
        if error.status not in __MISSING_ROLE_STATUSES:
            raise
        raise MissingRoleError(
            f"{table.name}: {error}. The API key lacks the role {table.role}. {__NEW_KEY}"
        ) from None


def __changed_since(records: list, start: Optional[datetime]) -> list:
    """Return the records updated at or after `start`, and those that do not say when."""
    if start is None:
        return records
    changed = []
    for record in records:
        updated = __updated_at(record)
        if updated is None or updated >= start:
            changed.append(record)
    return changed


def __search(client: Client, table: Table, bounds: List[Tuple[str, datetime]], page: int):
    """Fetch one page of a table's records by `updatedAt`, ascending.

    Args:
        bounds: pairs of comparison (gt, gte, lte) and moment that `updatedAt` is held against.
        page: from 1.

    Returns:
        The Answer and the `updatedAt` of each of its records, checked to be ascending and within
        the bounds.

    Raises:
        SearchUnusableError: when search refuses, or what it gives cannot be relied on.

    Source: https://developer.kustomer.com/api/core-resources/create-customer-search.
    """
    attribute = f"{table.search}_updated_at"
    size = __page_size(client, __SEARCH_PAGE_MAX_RECORDS)
    body = {
        "and": [{attribute: {comparison: __format_time(moment)}} for comparison, moment in bounds],
        "sort": [{attribute: "asc"}],
        "queryContext": table.search,
        "includeDeleted": True,
    }
    try:
        answer = __fetch(client, __SEARCH_PATH, {"page": page, "pageSize": size}, body)
    except RefusedError as error:
        if error.status not in __SEARCH_REFUSALS:
            raise
        raise __search_refused(error) from None
    except MalformedError as error:
        raise SearchUnusableError(str(error)) from None
    moments = [__updated_at(record) for record in answer.records]
    __check_moments(moments, bounds)
    if answer.more and not moments:
        raise SearchUnusableError("search gave an empty page and said that more records match")
    if answer.more is None:
        # Not by a page shorter than asked for, which a server that clamps pageSize gives too.
        answer = answer._replace(more=bool(moments))
    return answer, moments


def __check_moments(moments: list, bounds: List[Tuple[str, datetime]]) -> None:
    """Raise SearchUnusableError unless the moments are all known, ascending and within bounds."""
    if None in moments:
        raise SearchUnusableError("search gave a record without a readable updatedAt")
    if any(map(operator.gt, moments, moments[1:])):
        raise SearchUnusableError("search gave records that are not in ascending order")
    lowest, highest = bounds[0][1], bounds[-1][1]
    too_high = len(bounds) > 1 and moments and moments[-1] > highest
    if moments and moments[0] < lowest or too_high:
        raise SearchUnusableError("search gave records outside of the times asked for")


def __search_refused(error: RefusedError) -> SearchUnusableError:
    refusal = f"search was refused with {error.status} ({error.reason})"
    if error.status not in __MISSING_ROLE_STATUSES:
        return SearchUnusableError(refusal)
    return SearchRoleMissingError(
        f"{refusal}: the API key lacks the role {__SEARCH_ROLE}. {__NEW_KEY}"
    )


def __search_pages(client: Client, table: Table, start: datetime, end: datetime) -> Iterator[Page]:
    """Yield pages of every record changed from `start` to `end`, and of those dated ahead.

    Raises SearchUnusableError when search cannot be relied on; what was yielded before is right.
    """
    if start < end - __SEARCH_HORIZON:
        raise SearchUnusableError("search knows only records updated in the last two years")
    later_changes = yield from __walk(client, table, start, end)
    if later_changes:
        # The next sync reads what changed after `end`. A record dated ahead of the clock would
        # stay past the end of every sync, and sorts behind all those changes.
        latest = datetime.max.replace(tzinfo=timezone.utc)
        for page in __walk(client, table, end + __OVERLAP, latest):
            yield page._replace(safe_until=None)


def __walk(client: Client, table: Table, start: datetime, end: datetime):
    """Yield pages of the records updated from `start` to `end`, walking by `updatedAt`.

    Each request begins at the last moment delivered instead of at a page number, so a record that
    moves while it is read never pushes another one out of sight, and the limit of 100 pages a
    query is met only inside a single moment.

    Returns whether records past `end` were met.
    """
    cursor, comparison, delivered, total = start, "gte", set(), None
    while True:
        answer, moments = __search(client, table, [(comparison, cursor)], page=1)
        more = answer.more or (answer.total or 0) > len(moments)
        if more and comparison == "gt" and moments[-1] == cursor:
            raise SearchUnusableError("search does not go past the time asked for")
        inside = bisect_right(moments, end)
        at_cursor = bisect_right(moments, cursor, hi=inside)
        fresh = __not_among(answer.records[:at_cursor], delivered)
        fresh += answer.records[at_cursor:inside]
        if inside > at_cursor:
            cursor, delivered = moments[inside - 1], set()
        last_moment = bisect_left(moments, cursor, hi=inside)
        delivered.update(map(__record_id, answer.records[last_moment:inside]))
        total = answer.total if total is None else total
        yield Page(fresh, cursor, total)
        if not more or inside < len(moments):
            return inside < len(moments)
        comparison = "gte"
        if moments[0] == moments[-1]:
            yield from __moment_pages(client, table, cursor, delivered)
            comparison = "gt"


def __moment_pages(
    client: Client, table: Table, moment: datetime, delivered: Set[Optional[str]]
) -> Iterator[Page]:
    """Yield pages of the records updated at exactly `moment` that are not yet delivered.

    A record that moves away while the pages are read shifts those behind it onto a page already
    read, and is itself met by that pass only. So the pages are read again until two passes meet
    the same records. A pass of one page has nothing that could shift.
    """
    before: Set[Optional[str]] = set()
    for _ in range(__MOMENT_MAX_PASSES):
        met: Set[Optional[str]] = set()
        for number in range(1, __SEARCH_MAX_PAGES + 1):
            answer, _ = __search(client, table, [("gte", moment), ("lte", moment)], number)
            ids = set(map(__record_id, answer.records))
            if answer.more and ids <= met:
                raise SearchUnusableError("search gives the same page again and again")
            yield Page(__not_among(answer.records, delivered), moment)
            met |= ids
            delivered |= ids
            if not answer.more and (answer.total or 0) <= len(met):
                break
        else:
            raise SearchUnusableError(
                f"more than {__SEARCH_MAX_PAGES} pages of records share one updatedAt"
            )
        if number == 1 or met == before:
            return
        before = met
    raise SearchUnusableError("the records of one updatedAt change each time they are read")


def __not_among(records: list, delivered: Set[Optional[str]]) -> list:
    return [record for record in records if __record_id(record) not in delivered]


# --------------------------------------------------------------------------------------------
# Record mapping: a record in, a row out, nothing else
# --------------------------------------------------------------------------------------------

__LONE_SURROGATE = re.compile("[\ud800-\udfff]")
__compact_json = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), check_circular=False
).encode


def __attributes(record) -> dict:
    """Return a record's attributes; those of a record that came flat are the record itself."""
    if not isinstance(record, dict):
        return {}
    attributes = record.get("attributes")
    return attributes if isinstance(attributes, dict) else record


def __record_id(record) -> Optional[str]:
    """Return a record's id as text, or None when it has none."""
    value = record.get("id") if isinstance(record, dict) else None
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def __updated_at(record) -> Optional[datetime]:
    return __parse_time(__attributes(record).get("updatedAt"))


def __related_id(record: dict, name: str) -> Optional[str]:
    """Return the id of a record's relationship, whatever the type the API gives it."""
    relationships = record.get("relationships")
    relation = relationships.get(name) if isinstance(relationships, dict) else None
    return __record_id(relation.get("data")) if isinstance(relation, dict) else None


def __text(value) -> Optional[str]:
    """Return a value for a text column: text as it is, anything else as JSON.

    Kustomer writes an attribute without a value as null, [] or {} as well; all are None.
    """
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
    return value


def __flag(value) -> Optional[bool]:
    if value is None or isinstance(value, bool):
        return value
    return {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else None


def __time(value) -> Optional[str]:
    return __read_time(value)[1] if isinstance(value, str) else None


def __first_of(entries, name: str, best: Optional[Callable[[dict], bool]] = None):
    """Return `name` of the first entry that is best, else of the first one that has it."""
    first = None
    for entry in entries if isinstance(entries, list) else ():
        value = entry.get(name) if isinstance(entry, dict) else entry
        if value and isinstance(entry, (dict, str)):
            if best is None or isinstance(entry, dict) and best(entry):
                return value
            first = first or value
    return first


def __is_verified(entry: dict) -> bool:
    return entry.get("verified") is True


def __is_website(entry: dict) -> bool:
    return entry.get("type") == "website"


def __map_customer_data(record: dict) -> Dict[str, Any]:
    """Return the customers row of a record.

    Source: https://developer.kustomer.com/api/core-resources/get-customers.
    """
    get = __attributes(record).get
    external_id = get("externalId") or __first_of(get("externalIds"), "externalId")
    return {
        "id": __record_id(record),
        "name": __text(get("name") or get("displayName")),
        "email": __text(__first_of(get("emails"), "email", __is_verified)),
        "phone": __text(__first_of(get("phones"), "phone")),
        "company_id": __related_id(record, "company"),
        "external_id": __text(external_id),
        "verified": __flag(get("verified")),
        "locked": __flag(get("locked")),
        "emails": __text(get("emails")),
        "phones": __text(get("phones")),
        "tags": __text(get("tags")),
        "custom": __text(get("custom")),
        "deleted": __flag(get("deleted")),
        "created_at": __time(get("createdAt")),
        "updated_at": __time(get("updatedAt")),
    }


def __map_company_data(record: dict) -> Dict[str, Any]:
    """Return the companies row of a record. Kustomer's own examples spell `extenalId`.

    Source: https://developer.kustomer.com/api/core-resources.
    """
    get = __attributes(record).get
    return {
        "id": __record_id(record),
        "name": __text(get("name")),
        "website": __text(__first_of(get("urls"), "url", __is_website)),
        "domains": __text(__domain_names(get("domains"))),
        "external_id": __text(get("externalId") or get("extenalId")),
        "tags": __text(get("tags")),
        "custom": __text(get("custom")),
        "deleted": __flag(get("deleted")),
        "created_at": __time(get("createdAt")),
        "updated_at": __time(get("updatedAt")),
    }


def __domain_names(domains):
    """Return a company's domains as a list of texts; entries come as objects or as texts."""
    if not isinstance(domains, list):
        return domains
    names = [entry.get("domain") if isinstance(entry, dict) else entry for entry in domains]
    return [name for name in names if name]


def __map_brand_data(record: dict) -> Dict[str, Any]:
    """Return the brands row of a record.

    Source: https://developer.kustomer.com/api/core-resources.
    """
    get = __attributes(record).get
    return {
        "id": __record_id(record),
        "name": __text(get("name")),
        "display_name": __text(get("displayName")),
        "website_url": __text(get("websiteUrl")),
        "icon_url": __text(get("iconUrl")),
        "is_default": __flag(get("default")),
        "created_at": __time(get("createdAt")),
        "updated_at": __time(get("updatedAt")),
    }


def __map_message_data(record: dict) -> Dict[str, Any]:
    """Return the messages row of a record. `preview` is the body's plain text, cut by Kustomer.

    Source: https://developer.kustomer.com/api/core-resources.
    """
    get = __attributes(record).get
    return {
        "id": __record_id(record),
        "conversation_id": __related_id(record, "conversation"),
        "customer_id": __related_id(record, "customer"),
        "channel": __text(get("channel")),
        "direction": __text(get("direction")),
        "message_type": __text(get("directionType")),
        "status": __text(get("status")),
        "subject": __text(get("subject")),
        "body": __text(get("body") or get("preview")),
        "app": __text(get("app")),
        "source": __text(get("source")),
        "meta": __text(get("meta")),
        "custom": __text(get("custom")),
        "sent_at": __time(get("sentAt")),
        "created_at": __time(get("createdAt")),
        "updated_at": __time(get("updatedAt")),
    }


# --------------------------------------------------------------------------------------------
# Table generators
# --------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """What a generator reports at the end of each page, once every row so far was taken.

    `rows`, `skipped` (records without an id) and `unreadable_times` count this page. `deleted` has
    the ids of this page's rows whose record is deleted. `safe_until` is the ISO time at which a
    sync may resume, or None where that has not changed. `total` is how many records match, where
    the API says so. `done` is true in the last report of a table.
    """

    rows: int = 0
    skipped: int = 0
    unreadable_times: int = 0
    deleted: Set[str] = field(default_factory=set)
    safe_until: Optional[str] = None
    total: Optional[int] = None
    done: bool = False


def get_customers(
    api_key: str,
    last_sync_time: Optional[str] = None,
    configuration: Optional[dict] = None,
    *,
    client: Optional[Client] = None,
    on_page: Callable[[Progress], None] = lambda progress: None,
) -> Iterator[Dict[str, Any]]:
    """Yield a row for each customer changed since the window's start, deleted ones too.

    Args:
        api_key: the Kustomer API key.
        last_sync_time: ISO time of the last sync, or None for a first one.
        configuration: the connector's configuration; without it every setting has its default.
        client: the running sync's client; without one the generator opens its own.
        on_page: called with a Progress at the end of each page and once more when done.

    Yields:
        dict keyed by column. A row may come twice; the later one is right.

    Raises:
        MissingRoleError: when the key may read neither search nor list.
        KustomerError: when Kustomer cannot be read.
        ValueError: when the configuration or `last_sync_time` is wrong.
    """
    yield from __rows(
        __CUSTOMERS, __map_customer_data, api_key, last_sync_time, configuration, client, on_page
    )


def get_companies(
    api_key: str,
    last_sync_time: Optional[str] = None,
    configuration: Optional[dict] = None,
    *,
    client: Optional[Client] = None,
    on_page: Callable[[Progress], None] = lambda progress: None,
) -> Iterator[Dict[str, Any]]:
    """Yield a row for each company changed since the window's start, read from their list.

    Arguments, rows and errors are those of `get_customers`.
    """
    yield from __rows(
        __COMPANIES, __map_company_data, api_key, last_sync_time, configuration, client, on_page
    )


def get_brands(
    api_key: str,
    configuration: Optional[dict] = None,
    *,
    client: Optional[Client] = None,
    on_page: Callable[[Progress], None] = lambda progress: None,
) -> Iterator[Dict[str, Any]]:
    """Yield a row for every brand, the first one after all have been read.

    Arguments, rows and errors are those of `get_customers`.
    """
    yield from __rows(__BRANDS, __map_brand_data, api_key, None, configuration, client, on_page)


def get_messages(
    api_key: str,
    last_sync_time: Optional[str] = None,
    configuration: Optional[dict] = None,
    *,
    client: Optional[Client] = None,
    on_page: Callable[[Progress], None] = lambda progress: None,
) -> Iterator[Dict[str, Any]]:
    """Yield a row for each message changed since the window's start.

    Arguments, rows and errors are those of `get_customers`.
    """
    yield from __rows(
        __MESSAGES, __map_message_data, api_key, last_sync_time, configuration, client, on_page
    )


def __rows(
    table: Table,
    map_record: Callable[[dict], Dict[str, Any]],
    api_key: str,
    last_sync_time: Optional[str],
    configuration: Optional[dict],
    client: Optional[Client],
    on_page: Callable[[Progress], None],
) -> Iterator[Dict[str, Any]]:
    """Yield the rows of a table's window page by page, and report after each page."""
    if client is None:
        settings = parse_configuration({**(configuration or {}), "api_key": api_key})
        with open_client(settings) as own:
            yield from __rows(
                table, map_record, api_key, last_sync_time, configuration, own, on_page
            )
        return
    window = get_time_range(last_sync_time, configuration)
    start, end = (__parse_time(window[name]) for name in ("start", "end"))
    for page in __read_ahead(client, __table_pages(client, table, start, end)):
        rows, progress = __page_rows(table, map_record, page)
        yield from rows
        if page.notice:
            client.warn(page.notice)
        on_page(progress)
    on_page(Progress(safe_until=window["end"], done=True))


def __page_rows(
    table: Table, map_record: Callable[[dict], Dict[str, Any]], page: Page
) -> Tuple[List[Dict[str, Any]], Progress]:
    """Return a page's rows, and the report to make once they are taken."""
    safe_until = __format_time(page.safe_until) if page.safe_until else None
    rows, progress = [], Progress(safe_until=safe_until, total=page.total)
    for record in page.records:
        row = map_record(record) if isinstance(record, dict) else {"id": None}
        if row["id"] is None:
            progress.skipped += 1
            continue
        rows.append(row)
        attributes = __attributes(record)
        if not all(map(row.get, table.times)):
            progress.unreadable_times += sum(
                row[column] is None and attributes.get(name) is not None
                for column, name in table.times.items()
            )
        if __flag(attributes.get("deleted")):
            progress.deleted.add(row["id"])
        else:
            progress.deleted.discard(row["id"])
    progress.rows = len(rows)
    return rows, progress


def __table_pages(client: Client, table: Table, start: datetime, end: datetime) -> Iterator[Page]:
    """Yield a table's pages by search where that works, else from its list."""
    incremental = client.settings.enable_incremental_sync
    trouble: Optional[SearchUnusableError] = None
    if table.search and incremental and not client.search_role_missing:
        try:
            yield from __search_pages(client, table, start, end)
            return
        except SearchUnusableError as error:
            trouble = error
    everything = table.mirrored or not incremental
    pages = __list_pages(client, table, None if everything else start)
    if table.mirrored:
        # All pages are read before the first row leaves, so that a failure truncates nothing.
        pages = iter(list(pages))
    for page in pages:
        # Not before the first page came: a key that lacks the table's own role is refused by
        # search as well, and the list's error names that role.
        yield page if trouble is None else __with_trouble(client, table, page, trouble)
        trouble = None


def __with_trouble(client: Client, table: Table, page: Page, trouble: SearchUnusableError) -> Page:
    """Return the first page of a list that stands in for search, with the warning that says so."""
    client.search_role_missing = isinstance(trouble, SearchRoleMissingError)
    notice = (
        f"{table.name}: {str(trouble).rstrip('.')}. Every sync reads the whole list of "
        f"{table.name} instead, which takes more requests."
    )
    return page._replace(notice=f"{notice} {page.notice}".rstrip())


# --------------------------------------------------------------------------------------------
# Sync
# --------------------------------------------------------------------------------------------

__GENERATORS = {
    "customers": get_customers,
    "companies": get_companies,
    "brands": get_brands,
    "messages": get_messages,
}
__RESET_HINT = (
    "Reset the connection: 'fivetran reset' for a local run, a historical re-sync on Fivetran."
)


def read_state(state: Optional[dict], warn: Callable[[str], None]) -> Dict[str, str]:
    """Return the saved `last_sync_time` of each table that has one.

    Args:
        state: {"last_sync_time": {table: ISO time}}; a plain ISO text, which earlier versions
            saved, counts for every table. Tables that no longer exist are dropped.
        warn: told of each time that cannot be used; its table starts afresh.

    Raises:
        ValueError: when the state has another shape.
    """
    if not state:
        return {}
    saved = state.get("last_sync_time") if isinstance(state, dict) else None
    if isinstance(saved, str):
        saved = {table.name: saved for table in TABLES}
    if not isinstance(saved, dict):
        raise ValueError(
            "The saved state is not one of this connector: it has no last_sync_time by table. "
            + __RESET_HINT
        )
    cursors, latest = {}, __now() + __OVERLAP
    for table in TABLES:
        if table.name not in saved:
            continue
        moment = __parse_time(saved[table.name])
        if moment is None or moment > latest:
            trouble = "is no time" if moment is None else "lies in the future"
            warn(f"{table.name}: the saved last_sync_time {trouble}; the table starts afresh.")
        else:
            cursors[table.name] = __format_time(moment)
    return cursors


@dataclass
class Counts:
    """What the log says of a table, or of a sync, at its end."""

    rows: int = 0
    deletes: int = 0
    skipped: int = 0
    unreadable_times: int = 0
    requests: int = 0
    seconds_waited: float = 0.0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*map(operator.add, astuple(self), astuple(other)))

    def __str__(self) -> str:
        odd = f", {self.unreadable_times} unreadable times left empty"
        return (
            f"{self.rows} rows, {self.deletes} deletes, {self.skipped} skipped, "
            f"{self.requests} requests, {self.seconds_waited:.1f} s waiting"
            f"{odd if self.unreadable_times else ''}"
        )


def __warn_user(message: str) -> None:
    """Say a warning in the log and on the connection's page. For the main thread only."""
    __log_warning(message)
    op.warning(message)


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


def __checkpoint(cursors: Dict[str, str]) -> None:
    # Makes every row before it safe, and is the state that the next sync starts with.
    op.checkpoint({"last_sync_time": dict(cursors)})


def __move_cursor(cursors: Dict[str, str], table: Table, safe_until: Optional[str]) -> None:
    """Move a table's cursor forward; reading the overlap again never takes it back."""
    moment, last = __parse_time(safe_until), __parse_time(cursors.get(table.name))
    if moment and (last is None or moment > last):
        cursors[table.name] = safe_until


def __sync_table(
    client: Client, table: Table, cursors: Dict[str, str], configuration: dict
) -> Counts:
    """Deliver a table's window, leave its cursor at the window's end, and return its counts."""
    counts = Counts(requests=-client.requests_sent, seconds_waited=-client.seconds_waited)
    since_checkpoint = 0

    def take(progress: Progress) -> None:
        nonlocal counts, since_checkpoint
        for record_id in progress.deleted:
            op.delete(table.name, {"id": record_id})
        counts += Counts(
            progress.rows, len(progress.deleted), progress.skipped, progress.unreadable_times
        )
        __move_cursor(cursors, table, progress.safe_until)
        since_checkpoint += progress.rows
        # A mirrored table is whole in the destination only once its last row is there.
        if progress.done or (since_checkpoint >= __CHECKPOINT_EVERY_ROWS and not table.mirrored):
            since_checkpoint = 0
            __checkpoint(cursors)
        __log_progress(client, table, counts.rows, progress)

    window = {} if table.mirrored else {"last_sync_time": cursors.get(table.name)}
    rows = __GENERATORS[table.name](
        client.settings.api_key, **window, configuration=configuration, client=client, on_page=take
    )
    with contextlib.closing(rows):
        for number, row in enumerate(rows):
            if table.mirrored and number == 0:
                op.truncate(table.name)
            # Inserts the row, or replaces the one with the same id.
            op.upsert(table.name, row)
    if counts.skipped:
        __warn_user(f"{table.name}: {counts.skipped} records without an id were skipped.")
    return counts + Counts(requests=client.requests_sent, seconds_waited=client.seconds_waited)


def __log_progress(client: Client, table: Table, rows: int, progress: Progress) -> None:
    if not progress.done:
        through = f" through {progress.safe_until}" if progress.safe_until else ""
        known = f" of {progress.total}" if progress.total is not None else ""
        __log_now_and_then(client, f"{table.name}: {rows}{known} rows{through} so far.")


def __next_read(table: Table, cursors: Dict[str, str], settings: Settings) -> Optional[datetime]:
    """Return when a table is due, or None when it is due now."""
    last = __parse_time(cursors.get(table.name))
    if last is None or settings.sync_frequency_hours is None:
        return None
    # Schedulers start a little early at times; the slack keeps them from missing a whole period.
    due = last + timedelta(hours=settings.sync_frequency_hours)
    return due if __now() < due - __OVERLAP else None


def __plan(due: Dict[str, Optional[datetime]], cursors: Dict[str, str], settings: Settings) -> str:
    """Return the log line that says what of each table is read, or when it is due."""
    words = []
    for table in TABLES:
        name, since = table.name, cursors.get(table.name)
        if due[name]:
            words.append(f"{name} not before {__format_time(due[name])}")
        elif table.mirrored or not settings.enable_incremental_sync:
            words.append(f"all {name}")
        elif since:
            words.append(f"{name} changed since {since}")
        else:
            words.append(f"{name} changed in the last {settings.initial_sync_days} days")
    return "Kustomer sync: " + ", ".join(words) + "."


def update(configuration: dict, state: dict) -> None:
    """Bring the destination up to date with Kustomer: every table that is due, one by one.

    Args:
        configuration: the connection's settings, texts by key; see SETTINGS.
        state: what the last checkpoint saved, empty on a first sync.

    Raises:
        ValueError: when the configuration or the state cannot be used; nothing was sent then.
        MissingRoleError: after all other tables, naming each table whose role is missing.
        KustomerError: when Kustomer cannot be read; the next sync resumes at the last checkpoint.
    """
    settings = parse_configuration(configuration)
    cursors = read_state(state, __warn_user)
    __warn_of_unknown_keys(configuration, __warn_user)
    due = {table.name: __next_read(table, cursors, settings) for table in TABLES}
    __log(log.info, __plan(due, cursors, settings))
    whole, missing = Counts(requests=1), []
    with open_client(settings, __warn_user) as client, __few_garbage_collections():
        check_api_key(client)
        for table in TABLES:
            if due[table.name]:
                continue
            try:
                counts = __sync_table(client, table, cursors, configuration)
            except MissingRoleError as error:
                missing.append(str(error))
                continue
            whole += counts
            __log(log.info, f"{table.name}: {counts}.")
    __log(log.info, f"Kustomer sync: {whole}.")
    if missing:
        raise MissingRoleError(" ".join(missing))


# --------------------------------------------------------------------------------------------
# Schema
# --------------------------------------------------------------------------------------------


def schema(configuration: dict) -> List[dict]:
    """Return every table with its primary key and all its columns with their types."""
    return [
        {"table": table.name, "primary_key": ["id"], "columns": table.columns} for table in TABLES
    ]


# --------------------------------------------------------------------------------------------
# Setup form
# --------------------------------------------------------------------------------------------


def __form_field(setting: Setting):
    common = {"description": setting.description, "required": setting.kind == "key"}
    if setting.kind == "switch":
        return form_field.ToggleField(setting.name, setting.label, **common)
    kind = (
        form_field.TextField.password if setting.kind == "key" else form_field.TextField.plain_text
    )
    return form_field.TextField(
        setting.name, setting.label, kind, placeholder=setting.placeholder, **common
    )


def __run_setup_test(configuration: dict, check: Callable[[Client], None]):
    """Return the result of a setup test that passes when `check` raises nothing."""
    try:
        with open_client(parse_configuration(configuration)) as client:
            check(client)
    except (KustomerError, ValueError) as error:
        return Test.failure(str(error))
    return Test.success()


def test_configuration(configuration: dict):
    """Setup test: every setting is within its range."""
    return __run_setup_test(configuration, lambda client: None)


def test_api_key(configuration: dict):
    """Setup test: the key is live and belongs to the region of `base_url`."""
    return __run_setup_test(configuration, check_api_key)


def test_roles(configuration: dict):
    """Setup test: the key may read each table; a failure names every role to add."""

    def read_one_of_each(client: Client) -> None:
        missing = []
        for table in TABLES:
            try:
                __fetch_list_page(client, table, {"page": 1, "pageSize": 1})
            except MissingRoleError as error:
                missing.append(str(error))
        if missing:
            raise MissingRoleError(" ".join(missing))

    return __run_setup_test(configuration, read_one_of_each)


def test_search(configuration: dict):
    """Setup test: search works. Without it every sync is right and takes more requests, so this
    test passes all the same, and its warning says what to add."""

    def search_customers(client: Client) -> None:
        try:
            __search(client, __CUSTOMERS, [("gte", __now())], page=1)
        except SearchUnusableError as error:
            reason = str(error).rstrip(".")
            client.warn(f"{reason}. Without search every sync reads all customers and messages.")

    return __run_setup_test(configuration, search_customers)


def configuration_form() -> ConfigurationForm:
    """Return the setup form: a field for every setting, and the tests of what was entered."""
    form = ConfigurationForm()
    for setting in SETTINGS:
        form.add_field(__form_field(setting))
    form.add_test(label="The configuration is valid", func=test_configuration)
    form.add_test(label="Kustomer accepts the API key in this region", func=test_api_key)
    form.add_test(label="The API key may read all four tables", func=test_roles)
    form.add_test(label="Search (optional, fewer requests)", func=test_search)
    return form


connector = Connector(update=update, schema=schema, configuration_form=configuration_form)

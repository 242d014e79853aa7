"""The rows that Kustomer's records should become.

They are derived from the documentation and share no code with the connector.
"""

import json
import re
from typing import Callable, Dict, Iterator, Tuple

from mock_server import MockKustomer
from tests.support import TABLES, Destination

# The types of objects whose audit log is read, and "" for the records of other tables.
AUDITED = ("conversation", "customer", "message", "company", "")
REMEDY = "Correct the column in connector.py or its line in tests/expected.py."
# Caches rows by the id() of their records. Keeping the record keeps its id() from being reused.
_ROWS: Dict[int, Tuple[dict, dict]] = {}

Reader = Callable[[dict], object]


def _has_value(value) -> bool:
    """Return whether a value contains anything but null, "", and empty lists and objects."""
    if isinstance(value, (dict, list)):
        return any(map(_has_value, value.values() if isinstance(value, dict) else value))
    return value not in (None, "")


def _json(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# How a column is read from a record. Each of these returns a function: record -> value.


def plain(*names: str) -> Reader:
    """The first attribute that has a value, as it is."""

    def read(record: dict):
        values = [record["attributes"].get(name) for name in names]
        return next(filter(_has_value, values), None)

    return read


def encoded(name: str) -> Reader:
    """An attribute as JSON, or None if it contains no value."""

    def read(record: dict):
        value = record["attributes"].get(name)
        return _json(value) if _has_value(value) else None

    return read


def inside(name: str, inner: str) -> Reader:
    """A value of an attribute that is an object."""
    return lambda record: (record["attributes"].get(name) or {}).get(inner) or None


def related(name: str) -> Reader:
    """The id of a related record."""
    return lambda record: record["relationships"].get(name, {"data": {"id": None}})["data"]["id"]


def _named(read: Callable[[str], Reader], names: str) -> Dict[str, Reader]:
    """Return readers of attributes whose columns are named like them, in snake case."""
    return {re.sub("[A-Z]", lambda m: f"_{m[0].lower()}", n): read(n) for n in names.split()}


def _email(record: dict):
    for name in ("emails", "sharedEmails"):
        entries = record["attributes"].get(name) or []
        for entry in sorted(entries, key=lambda entry: not entry.get("verified")):
            return entry["email"]
    return None


def _phone(record: dict):
    names = ("phones", "sharedPhones", "whatsapps")
    entries = [entry for name in names for entry in record["attributes"].get(name) or []]
    return entries[0]["phone"] if entries else None


def _customer_external_id(record: dict):
    attributes = record["attributes"]
    listed = [entry["externalId"] for entry in attributes.get("externalIds") or []]
    return attributes.get("externalId") or next(iter(listed), None)


def _website(record: dict):
    urls = record["attributes"].get("urls") or []
    return next((url["url"] for url in urls if url["type"] == "website"), None)


def _domains(record: dict):
    domains = record["attributes"].get("domains") or []
    names = [entry["domain"] if isinstance(entry, dict) else entry for entry in domains]
    return _json(names) if names else None


def _subject(record: dict):
    attributes = record["attributes"]
    return attributes.get("subject") or attributes.get("meta", {}).get("subject")


def _attachments(record: dict):
    data = record["relationships"].get("attachments", {}).get("data")
    return _json([entry["id"] for entry in data]) if data else None


def _changed(record: dict):
    changes = record["attributes"].get("changes") or {}
    names = [*changes.get("attributes", {}), *changes.get("relationships", {})]
    return _json(names) if names else None


# Of every table but audit_logs.
_RECORD = {
    "id": lambda record: record["id"],
    "created_by_id": related("createdBy"),
    **_named(plain, "createdAt updatedAt modifiedAt"),
}
# table: {column: how it is read}
EXPECTED: Dict[str, Dict[str, Reader]] = {
    "customers": {
        **_RECORD,
        "name": plain("name", "displayName"),
        "email": _email,
        "phone": _phone,
        "company_id": related("company"),
        "external_id": _customer_external_id,
        **_named(plain, "firstName lastName username companyName gender locale timeZone"),
        **_named(plain, "avatarUrl progressiveStatus verified locked deleted birthdayAt"),
        **_named(plain, "signedUpAt lastSeenAt lastActivityAt lastCustomerActivityAt"),
        **_named(encoded, "emails sharedEmails phones sharedPhones whatsapps externalIds"),
        **_named(encoded, "sharedExternalIds urls socials locations watchers"),
        **_named(encoded, "conversationCounts sentiment satisfactionLevel tags custom"),
    },
    "companies": {
        **_RECORD,
        "name": plain("name"),
        "website": _website,
        "domains": _domains,
        "external_id": plain("externalId", "extenalId"),
        **_named(encoded, "tags custom"),
        "deleted": plain("deleted"),
    },
    "brands": {
        **_RECORD,
        **_named(plain, "name displayName websiteUrl iconUrl"),
        "is_default": plain("default"),
    },
    "messages": {
        **_RECORD,
        "conversation_id": related("conversation"),
        "customer_id": related("customer"),
        "message_type": plain("directionType"),
        "subject": _subject,
        "body": plain("body", "preview"),
        "attachments": _attachments,
        **_named(plain, "externalId channel direction status app source auto redacted size"),
        **_named(plain, "sentAt errorAt redactedAt"),
        **_named(encoded, "createdByTeams assignedUsers assignedTeams sentiment error meta"),
        "custom": encoded("custom"),
    },
    "conversations": {
        **_RECORD,
        "customer_id": related("customer"),
        "brand_id": related("brand"),
        "queue_id": related("queue"),
        # A STRING, whichever type Kustomer returns.
        "satisfaction": encoded("satisfaction"),
        **_named(plain, "externalId name preview status direction endedReason endedByType"),
        **_named(plain, "priority messageCount noteCount inboundMessageCount"),
        **_named(plain, "outboundMessageCount doneCount reopenCount snoozeCount"),
        **_named(plain, "ended spam locked deleted endedAt lastActivityAt lastMessageAt"),
        **_named(encoded, "channels tags suggestedTags assignedUsers assignedTeams sla"),
        **_named(encoded, "snooze firstResponse lastResponse firstDone lastDone sentiment"),
        **_named(encoded, "satisfactionLevel custom"),
        "first_response_at": inside("firstResponse", "createdAt"),
        "last_response_at": inside("lastResponse", "createdAt"),
        "first_done_at": inside("firstDone", "createdAt"),
        "last_done_at": inside("lastDone", "createdAt"),
    },
    "notes": {
        **_RECORD,
        "conversation_id": related("conversation"),
        "customer_id": related("customer"),
        **_named(plain, "externalId body deleted"),
        "user_mentions": encoded("userMentions"),
    },
    "users": {
        **_RECORD,
        **_named(plain, "name displayName email userType mobile avatarUrl deletedAt"),
        **_named(encoded, "roles roleGroups"),
        "deactivated": lambda record: "deletedAt" in record["attributes"],
    },
    "teams": {
        **_RECORD,
        **_named(plain, "name displayName icon deleted deletedAt"),
        **_named(encoded, "members roleGroups"),
    },
    "tags": {
        **_RECORD,
        **_named(plain, "name color deleted deletedAt"),
    },
    "kobjects": {
        **_RECORD,
        "klass_id": related("klass"),
        "customer_id": related("customer"),
        "company_id": related("company"),
        "queue_id": related("queue"),
        **_named(plain, "externalId title description icon status assignedUser assignedTeam"),
        **_named(plain, "doneCount reopenCount deleted"),
        **_named(encoded, "tags images custom firstDone lastDone"),
    },
    "klasses": {
        **_RECORD,
        **_named(plain, "name displayName icon color status appVersion appDisabled"),
        "mixins": encoded("mixins"),
    },
    "shortcuts": {
        **_RECORD,
        "modified_by_id": related("modifiedBy"),
        "parent_id": related("parent"),
        **_named(plain, "name isPrivate deleted appDisabled"),
        **_named(encoded, "payload draft"),
    },
    "audit_logs": {
        "id": lambda record: record["id"],
        **_named(plain, "eventName eventVerb objectType objectId userId userType client"),
        "changed": _changed,
        **_named(plain, "createdAt updatedAt publishedAt expiresAt"),
    },
}


def expected_row(table: str, record: dict) -> dict:
    """Return the row that a record of the mock should become.

    Rows are cached by record object, because the mock never modifies a record in place.
    """
    if id(record) not in _ROWS:
        row = {column: read(record) for column, read in EXPECTED[table].items()}
        _ROWS[id(record)] = (record, row)
    return _ROWS[id(record)][1]


def is_right(row: dict, expected: dict) -> bool:
    """Return whether a row has the expected values in the columns of tests/expected.py."""
    # Usually they are equal, and comparing them as wholes is faster.
    return row == expected or row is not None and row.items() >= expected.items()


def source_rows(server: MockKustomer, table: str) -> Dict[str, dict]:
    """Return the expected rows of all records of the mock that are not deleted, by id."""
    return {
        record_id: expected_row(table, record)
        for record_id, record in server.store.records(table).items()
        if record["attributes"].get("deleted") is not True
        and record["attributes"].get("objectType", "") in AUDITED
    }


def differences(table: str, live: Dict[str, dict], source: Dict[str, dict]) -> Iterator[str]:
    """Yield what distinguishes the live rows of a table from the expected ones.

    Only the columns of tests/expected.py are compared. test_columns.py checks that it has all.
    """
    for row_id in sorted(live.keys() ^ source.keys()):
        yield f"{table}: {'missing' if row_id in source else 'unexpected'} row {row_id}."
    for row_id in live.keys() & source.keys():
        row = live[row_id]
        for column, value in () if is_right(row, source[row_id]) else source[row_id].items():
            if row.get(column) != value:
                yield f"{table}.{column}: {row.get(column)!r}, expected {value!r}. {REMEDY}"


def assert_same(table: str, live: Dict[str, dict], source: Dict[str, dict]) -> None:
    """Fail unless the live rows of a table equal the expected ones."""
    difference = next(differences(table, live, source), "")
    assert not difference, difference


def assert_mirrors(destination: Destination, server: MockKustomer, tables=TABLES) -> None:
    """Fail unless the destination's live rows equal the expected rows."""
    for table in tables:
        assert_same(table, destination.live(table), source_rows(server, table))

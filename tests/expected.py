"""The rows that Kustomer's records should become.

They are derived from the documentation and share no code with the connector.
"""

import json
from typing import Dict, Tuple

from mock_server import MockKustomer
from tests.support import TABLES, Destination

# Caches rows by the id() of their records. Keeping the record keeps its id() from being reused.
_ROWS: Dict[int, Tuple[dict, dict]] = {}
# column: (kind, the attributes to read it from, in order)
_PLAIN = {
    "customers": {
        "name": ("text", "name", "displayName"),
        "external_id": ("text", "externalId"),
        "verified": ("as is", "verified"),
        "locked": ("as is", "locked"),
        "emails": ("json", "emails"),
        "phones": ("json", "phones"),
        "tags": ("json", "tags"),
        "custom": ("json", "custom"),
        "deleted": ("as is", "deleted"),
    },
    "companies": {
        "name": ("text", "name"),
        "external_id": ("text", "externalId", "extenalId"),
        "tags": ("json", "tags"),
        "custom": ("json", "custom"),
        "deleted": ("as is", "deleted"),
    },
    "brands": {
        "name": ("text", "name"),
        "display_name": ("text", "displayName"),
        "website_url": ("text", "websiteUrl"),
        "icon_url": ("text", "iconUrl"),
        "is_default": ("as is", "default"),
    },
    "messages": {
        "channel": ("text", "channel"),
        "direction": ("text", "direction"),
        "message_type": ("text", "directionType"),
        "status": ("text", "status"),
        "body": ("text", "body", "preview"),
        "app": ("text", "app"),
        "source": ("text", "source"),
        "created_by_teams": ("json", "createdByTeams"),
        "assigned_users": ("json", "assignedUsers"),
        "assigned_teams": ("json", "assignedTeams"),
        "meta": ("json", "meta"),
        "custom": ("json", "custom"),
        "sent_at": ("as is", "sentAt"),
    },
    "conversations": {
        "external_id": ("text", "externalId"),
        "name": ("text", "name"),
        "preview": ("text", "preview"),
        "status": ("text", "status"),
        "direction": ("text", "direction"),
        "priority": ("as is", "priority"),
        "channels": ("json", "channels"),
        "tags": ("json", "tags"),
        "assigned_users": ("json", "assignedUsers"),
        "assigned_teams": ("json", "assignedTeams"),
        "message_count": ("as is", "messageCount"),
        "note_count": ("as is", "noteCount"),
        "outbound_message_count": ("as is", "outboundMessageCount"),
        "done_count": ("as is", "doneCount"),
        "reopen_count": ("as is", "reopenCount"),
        "snooze_count": ("as is", "snoozeCount"),
        "satisfaction_level": ("json", "satisfactionLevel"),
        "first_response": ("json", "firstResponse"),
        "last_response": ("json", "lastResponse"),
        "first_done": ("json", "firstDone"),
        "last_done": ("json", "lastDone"),
        "sla": ("json", "sla"),
        "snooze": ("json", "snooze"),
        "ended": ("as is", "ended"),
        "ended_at": ("as is", "endedAt"),
        "ended_reason": ("text", "endedReason"),
        "ended_by_type": ("text", "endedByType"),
        "last_activity_at": ("as is", "lastActivityAt"),
        "last_message_at": ("as is", "lastMessageAt"),
        "custom": ("json", "custom"),
        "deleted": ("as is", "deleted"),
    },
    "notes": {
        "external_id": ("text", "externalId"),
        "body": ("text", "body"),
        "user_mentions": ("json", "userMentions"),
        "deleted": ("as is", "deleted"),
    },
    "users": {
        "name": ("text", "name"),
        "display_name": ("text", "displayName"),
        "email": ("text", "email"),
        "user_type": ("text", "userType"),
        "mobile": ("text", "mobile"),
        "avatar_url": ("text", "avatarUrl"),
        "roles": ("json", "roles"),
        "role_groups": ("json", "roleGroups"),
        "deleted_at": ("as is", "deletedAt"),
    },
    "teams": {
        "name": ("text", "name"),
        "display_name": ("text", "displayName"),
        "icon": ("text", "icon"),
        "members": ("json", "members"),
        "role_groups": ("json", "roleGroups"),
        "deleted": ("as is", "deleted"),
        "deleted_at": ("as is", "deletedAt"),
    },
    "tags": {
        "name": ("text", "name"),
        "color": ("text", "color"),
        "deleted": ("as is", "deleted"),
        "deleted_at": ("as is", "deletedAt"),
    },
}
# column: the relationship whose id it contains
_RELATED = {
    "customers": {"company_id": "company"},
    "messages": {
        "conversation_id": "conversation",
        "customer_id": "customer",
        "created_by_id": "createdBy",
    },
    "conversations": {
        "customer_id": "customer",
        "brand_id": "brand",
        "queue_id": "queue",
        "created_by_id": "createdBy",
    },
    "notes": {
        "conversation_id": "conversation",
        "customer_id": "customer",
        "created_by_id": "createdBy",
    },
}


def expected_row(table: str, record: dict) -> dict:
    """Return the row that a record of the mock should become.

    Rows are cached by record object, because the mock never modifies a record in place.
    """
    if id(record) not in _ROWS:
        _ROWS[id(record)] = (record, _expected_row(table, record))
    return _ROWS[id(record)][1]


def _expected_row(table: str, record: dict) -> dict:
    attributes = record["attributes"]
    row = {"id": record["id"]}
    for column, (kind, *names) in _PLAIN[table].items():
        values = [attributes[name] for name in names if attributes.get(name) not in (None, "")]
        value = values[0] if values else None
        if kind == "json" and value is not None:
            value = json.dumps(value, ensure_ascii=False, separators=(",", ":")) if value else None
        row[column] = value
    row["created_at"] = attributes["createdAt"]
    row["updated_at"] = attributes["updatedAt"]
    for column, name in _RELATED.get(table, {}).items():
        related = record["relationships"].get(name)
        row[column] = related["data"]["id"] if related else None
    if table in _SPECIAL:
        row.update(_SPECIAL[table](attributes))
    return row


def _of_customer(attributes: dict) -> dict:
    emails, phones = attributes.get("emails") or [], attributes.get("phones") or []
    verified = [entry for entry in emails if entry["verified"]]
    external = attributes.get("externalId")
    if not external and attributes.get("externalIds"):
        external = attributes["externalIds"][0]["externalId"]
    return {
        "email": (verified + emails + [{"email": None}])[0]["email"],
        "phone": phones[0]["phone"] if phones else None,
        "external_id": external,
    }


def _of_company(attributes: dict) -> dict:
    websites = [url["url"] for url in attributes.get("urls", []) if url["type"] == "website"]
    domains = attributes.get("domains")
    names = domains and [d["domain"] if isinstance(d, dict) else d for d in domains]
    return {
        "website": websites[0] if websites else None,
        "domains": json.dumps(names, separators=(",", ":")) if names else None,
    }


def _of_message(attributes: dict) -> dict:
    return {"subject": attributes.get("subject") or attributes.get("meta", {}).get("subject")}


def _of_conversation(attributes: dict) -> dict:
    # The column is a STRING, whichever type Kustomer returns.
    return {"satisfaction": json.dumps(attributes["satisfaction"])}


def _of_user(attributes: dict) -> dict:
    return {"deactivated": "deletedAt" in attributes}


# The columns that are not read from an attribute or a relationship as it is.
_SPECIAL = {
    "customers": _of_customer,
    "companies": _of_company,
    "messages": _of_message,
    "conversations": _of_conversation,
    "users": _of_user,
}


def source_rows(server: MockKustomer, table: str) -> Dict[str, dict]:
    """Return the expected rows of all records of the mock that are not deleted, by id."""
    return {
        record_id: expected_row(table, record)
        for record_id, record in server.store.records(table).items()
        if record["attributes"].get("deleted") is not True
    }


def assert_mirrors(destination: Destination, server: MockKustomer, tables=TABLES) -> None:
    """Fail unless the destination's live rows equal the expected rows."""
    for table in tables:
        live, source = destination.live(table), source_rows(server, table)
        assert live.keys() == source.keys(), table
        for row_id, row in source.items():
            assert live[row_id] == row, (table, row_id)

"""The rows that Kustomer's records ought to become: a reading of the documentation of its own,
which shares nothing with the connector's."""

import json
from typing import Dict

from mock_server import MockKustomer
from tests.support import TABLES, Destination

# column: (kind, the attributes to look into, in order)
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
        "meta": ("json", "meta"),
        "custom": ("json", "custom"),
        "sent_at": ("as is", "sentAt"),
    },
}


def expected_row(table: str, record: dict) -> dict:
    """Return the row that a record of the mock ought to become."""
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
    row.update(_special(table, record, attributes))
    return row


def _special(table: str, record: dict, attributes: dict) -> dict:
    related = {
        name: relation["data"]["id"]
        for name, relation in record["relationships"].items()
        if "data" in relation
    }
    if table == "customers":
        emails, phones = attributes.get("emails") or [], attributes.get("phones") or []
        verified = [entry for entry in emails if entry["verified"]]
        external = attributes.get("externalId")
        if not external and attributes.get("externalIds"):
            external = attributes["externalIds"][0]["externalId"]
        return {
            "email": (verified + emails + [{"email": None}])[0]["email"],
            "phone": phones[0]["phone"] if phones else None,
            "external_id": external,
            "company_id": related.get("company"),
        }
    if table == "companies":
        websites = [url["url"] for url in attributes.get("urls", []) if url["type"] == "website"]
        domains = attributes.get("domains")
        names = domains and [d["domain"] if isinstance(d, dict) else d for d in domains]
        return {
            "website": websites[0] if websites else None,
            "domains": json.dumps(names, separators=(",", ":")) if names else None,
        }
    if table == "messages":
        return {
            "conversation_id": related.get("conversation"),
            "customer_id": related.get("customer"),
            "subject": attributes.get("subject") or attributes["meta"].get("subject"),
        }
    return {}


def source_rows(server: MockKustomer, table: str) -> Dict[str, dict]:
    """Return the rows of every record of the mock that is not deleted, by id."""
    return {
        record_id: expected_row(table, record)
        for record_id, record in server.store.records(table).items()
        if record["attributes"].get("deleted") is not True
    }


def assert_mirrors(destination: Destination, server: MockKustomer, tables=TABLES) -> None:
    """Fail unless the destination's live rows are the source's."""
    for table in tables:
        live, source = destination.live(table), source_rows(server, table)
        assert live.keys() == source.keys(), table
        for row_id, row in source.items():
            assert live[row_id] == row, (table, row_id)

"""Every column is documented, read by the tests as well, and right for records of any shape."""

import json
import re
from datetime import datetime, timedelta, timezone

import pytest

import connector
from mock_server.records import time_text
from tests.expected import EXPECTED
from tests.project import PROJECT
from tests.support import COLUMNS, mock, sync

LINE = re.compile(r"\| (\w+) \| `(\w+)` \| (\w+) \| .+ \|")
DOCUMENTED = LINE.findall((PROJECT / "docs" / "tables.md").read_text())


@pytest.mark.parametrize("table", COLUMNS)
def test_every_column_has_a_line_in_the_docs(table):
    lines = {name: kind for of, name, kind in DOCUMENTED if of == table}
    for column, kind in COLUMNS[table].items():
        head, *rest = column.split("_")
        source = head + "".join(word.title() for word in rest)
        line = f"| {table} | `{column}` | {kind} | `{source}` |"
        assert lines.get(column) == kind, f"{table}.{column}: docs/tables.md needs the line {line}"
    unknown = [column for column in lines if column not in COLUMNS[table]]
    assert not unknown, f"docs/tables.md has lines of {table} for columns that do not exist"
    assert list(lines) == list(COLUMNS[table]), f"docs/tables.md: the order of {table} differs"


@pytest.mark.parametrize("table", COLUMNS)
def test_the_tests_read_every_column_in_their_own_way(table):
    for column in COLUMNS[table]:
        assert column in EXPECTED[table], f"{table}.{column}: add a line to tests/expected.py"
    gone = EXPECTED[table].keys() - COLUMNS[table].keys()
    assert not gone, f"{table}: connector.py does not have these columns of tests/expected.py"


def rows_of(table: str, *records: dict) -> list:
    """Return the rows of records that a mock sends as they are given."""
    complete = {
        record["id"]: {"type": "any", "attributes": {}, "relationships": {}, **record}
        for record in records
    }
    with mock({table: complete}) as server:
        (declared,) = [one for one in connector.TABLES if one.name == table]
        rows = list(connector.get_rows(declared, server.api_key, None, server.configuration()))
    return sorted(rows, key=lambda row: row["id"])


def assert_row(row: dict, values: dict) -> None:
    """Fail unless a row has these values, and NULL in all other columns."""
    assert {name: value for name, value in row.items() if value is not None} == values


# Recent, so that a first sync reads the records. All other times of the samples are typed by hand.
UPDATED = time_text(datetime.now(timezone.utc) - timedelta(days=1))
NOW = {"createdAt": "2026-11-20T08:00:00.000Z", "updatedAt": UPDATED}
TIMES = {"created_at": "2026-11-20T08:00:00.000Z", "updated_at": UPDATED}


def to_one(kind: str, record_id: str) -> dict:
    return {"links": {"self": f"/v1/{kind}s/{record_id}"}, "data": {"type": kind, "id": record_id}}


def test_a_customer_of_a_chat_widget_has_the_address_and_the_phone_that_are_shared():
    attributes = {
        "name": "",
        "displayName": "Anonymous Compass",
        "displayColor": "green",
        "externalIds": [],
        "sharedExternalIds": [],
        "emails": [],
        "sharedEmails": [
            {"email": "old@example.com", "verified": False, "type": "home"},
            {"email": "ana@example.com", "verified": True, "type": "home"},
        ],
        "phones": [],
        "sharedPhones": [{"phone": "+15550001111"}],
        "whatsapps": [{"phone": "+15550002222"}],
        "urls": [],
        "locale": "en_US",
        "recentLocation": {},
        "lastConversation": {"tags": [], "sentiment": {}},
        "conversationCounts": {"done": 0, "open": 1, "snoozed": 0, "all": 1},
        "satisfactionLevel": {"firstSatisfaction": {"sentByTeams": []}, "lastSatisfaction": {}},
        "progressiveStatus": None,
        "verified": False,
        "deleted": False,
        "birthdayAt": "1990-05-06T00:00:00.000Z",
        "lastActivityAt": "2026-11-21T09:10:11.000Z",
        "modifiedAt": "2026-11-21T09:10:11.100Z",
        **NOW,
    }
    related = {"createdBy": to_one("user", "u1"), "company": to_one("company", "o1")}
    record = {"id": "c1", "attributes": attributes, "relationships": related}
    (row,) = rows_of("customers", record)
    assert_row(
        row,
        {
            "id": "c1",
            "created_by_id": "u1",
            **TIMES,
            "modified_at": "2026-11-21T09:10:11.100Z",
            "name": "Anonymous Compass",
            "email": "ana@example.com",
            "phone": "+15550001111",
            "company_id": "o1",
            "locale": "en_US",
            "verified": False,
            "deleted": False,
            "shared_emails": '[{"email":"old@example.com","verified":false,"type":"home"},'
            '{"email":"ana@example.com","verified":true,"type":"home"}]',
            "shared_phones": '[{"phone":"+15550001111"}]',
            "whatsapps": '[{"phone":"+15550002222"}]',
            "conversation_counts": '{"done":0,"open":1,"snoozed":0,"all":1}',
            "birthday_at": "1990-05-06T00:00:00.000Z",
            "last_activity_at": "2026-11-21T09:10:11.000Z",
        },
    )


def test_own_addresses_come_before_shared_ones_and_whatsapp_comes_last():
    own, shared = [{"email": "own@example.com"}], [{"email": "shared@example.com"}]
    rows = rows_of(
        "customers",
        {"id": "1", "attributes": {"emails": own, "sharedEmails": shared, **NOW}},
        {"id": "2", "attributes": {"emails": [{}], "sharedEmails": shared, **NOW}},
        {"id": "3", "attributes": {"whatsapps": [{"phone": "+1555"}], **NOW}},
        {"id": "4", "attributes": {"phones": [{"phone": "+1"}], "sharedPhones": [], **NOW}},
    )
    assert [row["email"] for row in rows] == ["own@example.com", "shared@example.com", None, None]
    assert [row["phone"] for row in rows] == [None, None, "+1555", "+1"]


def test_a_failed_message_and_a_redacted_one_have_every_value_that_kustomer_sends():
    failed = {
        "channel": "email",
        "app": "postmark",
        "direction": "out",
        "directionType": "response-out",
        "status": "error",
        "error": {"status": 422, "code": "inactive", "title": "The recipient is inactive"},
        "errorAt": "2026-11-20T08:00:05.000Z",
        "preview": "Hello",
        "size": 5,
        "auto": True,
        "sentiment": {},
        "assignedTeams": [],
        "assignedUsers": ["u1"],
        "meta": {"to": [{"email": "a@example.com"}], "subject": "Your order"},
        "externalId": "<1@example.com>",
        **NOW,
    }
    redacted = {"redacted": True, "redactedAt": "2026-11-21T09:10:11.000Z", "size": 0, **NOW}
    related = {
        "customer": {"data": {"type": "customers", "id": "c1"}},
        "conversation": to_one("conversation", "v1"),
        "attachments": {"data": [{"type": "attachment", "id": i} for i in ("a1", "a2")]},
        "org": to_one("org", "g1"),
    }
    first, second = rows_of(
        "messages",
        {"id": "m1", "attributes": failed, "relationships": related},
        {"id": "m2", "attributes": redacted, "relationships": {"attachments": {"data": []}}},
    )
    assert_row(
        first,
        {
            "id": "m1",
            **TIMES,
            "conversation_id": "v1",
            "customer_id": "c1",
            "message_type": "response-out",
            "subject": "Your order",
            "body": "Hello",
            "external_id": "<1@example.com>",
            "channel": "email",
            "direction": "out",
            "status": "error",
            "app": "postmark",
            "auto": True,
            "size": 5,
            "assigned_users": '["u1"]',
            "error": '{"status":422,"code":"inactive","title":"The recipient is inactive"}',
            "error_at": "2026-11-20T08:00:05.000Z",
            "meta": '{"to":[{"email":"a@example.com"}],"subject":"Your order"}',
            "attachments": '["a1","a2"]',
        },
    )
    redacted_at = "2026-11-21T09:10:11.000Z"
    values = {"id": "m2", **TIMES, "size": 0, "redacted": True, "redacted_at": redacted_at}
    assert_row(second, values)


def test_a_conversation_without_a_response_has_null_where_kustomer_sends_empty_objects():
    nobody = {"createdByTeams": [], "assignedUsers": [], "assignedTeams": []}
    attributes = {
        "name": "Where is it?",
        "channels": ["chat"],
        "status": "open",
        "messageCount": 1,
        "inboundMessageCount": 1,
        "outboundMessageCount": 0,
        "satisfaction": 0,
        "satisfactionLevel": {"sentByTeams": [], "answers": []},
        "firstResponse": nobody,
        "lastResponse": nobody,
        "firstDone": {**nobody, "createdAt": ""},
        "lastDone": {},
        "snooze": {"status": None},
        "sentiment": {},
        "spam": False,
        **NOW,
    }
    answered = {
        "firstResponse": {**nobody, "createdAt": "2026-11-20T09:00:00Z", "responseTime": 3600000},
        "lastDone": {"createdAt": "soon"},
        **NOW,
    }
    first, second = rows_of(
        "conversations",
        {"id": "v1", "attributes": attributes},
        {"id": "v2", "attributes": answered},
    )
    assert_row(
        first,
        {
            "id": "v1",
            **TIMES,
            "name": "Where is it?",
            "channels": '["chat"]',
            "status": "open",
            "message_count": 1,
            "inbound_message_count": 1,
            "outbound_message_count": 0,
            "satisfaction": "0",
            "spam": False,
        },
    )
    assert second["first_response_at"] == "2026-11-20T09:00:00.000Z"
    assert json.loads(second["first_response"])["responseTime"] == 3600000
    assert second["last_done_at"] is None and second["last_done"] == '{"createdAt":"soon"}'


def test_an_order_its_klass_and_a_shortcut_have_every_value_that_kustomer_sends():
    (order,) = rows_of(
        "kobjects",
        {
            "id": "k1",
            "attributes": {
                "externalId": "4417",
                "title": "Order #4417",
                "custom": {"statusStr": "paid", "totalNum": 12.5},
                "tags": [],
                "firstDone": {"createdByTeams": []},
                "doneCount": 0,
                **NOW,
            },
            "relationships": {
                "klass": to_one("klass", "y1"),
                "customer": to_one("customer", "c1"),
                "company": to_one("company", "o1"),
            },
        },
    )
    assert_row(
        order,
        {
            "id": "k1",
            **TIMES,
            "external_id": "4417",
            "title": "Order #4417",
            "custom": '{"statusStr":"paid","totalNum":12.5}',
            "done_count": 0,
            "klass_id": "y1",
            "customer_id": "c1",
            "company_id": "o1",
        },
    )
    (klass,) = rows_of(
        "klasses",
        {"id": "y1", "attributes": {"name": "order", "status": "enabled", "mixins": [], **NOW}},
    )
    assert_row(klass, {"id": "y1", **TIMES, "name": "order", "status": "enabled"})
    (shortcut,) = rows_of(
        "shortcuts",
        {
            "id": "s1",
            "attributes": {"name": "Thanks", "payload": {"text": "Hi"}, "isPrivate": False, **NOW},
            "relationships": {
                "parent": to_one("shortcut", "s0"),
                "modifiedBy": to_one("user", "u"),
            },
        },
    )
    assert_row(
        shortcut,
        {
            "id": "s1",
            **TIMES,
            "name": "Thanks",
            "payload": '{"text":"Hi"}',
            "is_private": False,
            "parent_id": "s0",
            "modified_by_id": "u",
        },
    )


def test_an_entry_of_the_audit_log_has_the_names_of_what_changed_and_no_values():
    attributes = {
        "eventName": "kustomer.conversation.update",
        "eventVerb": "update",
        "objectType": "conversation",
        "objectId": "v1",
        "userId": "u1",
        "userType": "user",
        "client": "web",
        "ip": "192.0.2.1",
        "changes": {
            "attributes": {"status": {"before": "open", "after": "done"}},
            "relationships": {"queue": {"before": None, "after": "q1"}},
        },
        "publishedAt": "2026-11-21T09:10:12.000Z",
        "expiresAt": "2027-02-19T09:10:12.000Z",
        "createdAt": UPDATED,
        "updatedAt": UPDATED,
    }
    (row,) = rows_of("audit_logs", {"id": "e1", "attributes": attributes})
    assert_row(
        row,
        {
            "id": "e1",
            "created_at": UPDATED,
            "updated_at": UPDATED,
            "event_name": "kustomer.conversation.update",
            "event_verb": "update",
            "object_type": "conversation",
            "object_id": "v1",
            "user_id": "u1",
            "user_type": "user",
            "client": "web",
            "changed": '["status","queue"]',
            "published_at": "2026-11-21T09:10:12.000Z",
            "expires_at": "2027-02-19T09:10:12.000Z",
        },
    )


def test_an_object_without_the_time_that_a_column_reads_from_it_is_not_unreadable(
    destination, capsys
):
    attributes = {"firstResponse": {"id": "m1"}, **NOW}
    record = {"type": "conversation", "id": "v1", "attributes": attributes, "relationships": {}}
    with mock({"conversations": {"v1": record}}) as server:
        sync(server, destination, additional_tables="conversations")
    assert destination.live("conversations")["v1"]["first_response"] == '{"id":"m1"}'
    assert "unreadable" not in capsys.readouterr().out

"""The tables that are read only on request."""

from datetime import datetime, timedelta, timezone

import pytest

import connector
from mock_server import make_records
from mock_server.behaviour import ROLES, SEARCH_ROLE, USER_LISTS
from mock_server.records import TYPES
from tests.expected import assert_mirrors, assert_same, source_rows
from tests.support import (
    ALL_TABLES,
    COLUMNS,
    TABLES,
    bare_records,
    mock,
    move_to_noon,
    searches,
    sync,
)

ADDITIONAL = [table for table in ALL_TABLES if table not in TABLES]
MIRRORED = ["users", "teams", "tags", "klasses", "shortcuts"]
# Columns whose attributes no sample of Kustomer's records has, or only some records have.
NEVER_SENT = {*"created_by_id modified_at locked display_name website_url deleted".split()}
NEVER_SENT |= {"deleted_at", "satisfaction_level"}
# The object in the role for a table, if it is not the table's own.
ROLE_OBJECTS = {"kobjects": "klass", "audit_logs": "audit_logs"}
# Old enough for none of them to come again when a sync goes back two days.
RECORDS = make_records(
    customers=60,
    companies=30,
    brands=9,
    messages=900,
    notes=70,
    users=20,
    teams=4,
    tags=9,
    kobjects=50,
    klasses=6,
    shortcuts=12,
    audit_logs=40,
    before=datetime.now(timezone.utc) - timedelta(days=3),
)


def test_without_the_setting_no_additional_endpoint_is_requested(destination):
    with mock(RECORDS) as server:
        sync(server, destination)
        assert {request.path for request in server.requests} == {
            "/v1/users/current",
            "/v1/customers/search",
            "/v1/companies",
            "/v1/brands",
        }
        contexts = {request.body["queryContext"] for request in searches(server)}
        assert contexts == {"customer", "message"}
    assert {entry["table"] for entry in connector.schema({})} == set(TABLES)
    assert set(destination.state["last_sync_time"]) == set(TABLES)


@pytest.mark.parametrize(
    ("value", "tables"),
    [
        ("", []),
        ("<ADDITIONAL_TABLES>", []),
        ("all", ADDITIONAL),
        ("tags", ["tags"]),
        (" Tags , conversations,", ["conversations", "tags"]),
        ("notes,all", ADDITIONAL),
    ],
)
def test_the_requested_tables_are_declared_and_read(value, tables, destination):
    declared = connector.schema({"additional_tables": value})
    assert [entry["table"] for entry in declared] == TABLES + tables
    with mock(RECORDS) as server:
        sync(server, destination, additional_tables=value)
        assert_mirrors(destination, server, TABLES + tables)
    assert [table for table in ADDITIONAL if destination.rows[table]] == tables


@pytest.mark.parametrize("value", ["queues", "conversations,queues", "customers", "note"])
def test_an_unknown_table_is_an_error_that_lists_all_known_tables(value, destination):
    expected = (
        f"additional_tables: '{value}' must be one or more of conversations, notes, users, teams, "
        "tags, kobjects, klasses, shortcuts, audit_logs, separated by commas, or all."
    )
    with mock(RECORDS) as server:
        with pytest.raises(ValueError, match=expected):
            sync(server, destination, additional_tables=value)
        assert server.requests == []
    with pytest.raises(ValueError, match=expected):
        connector.schema({"additional_tables": value})


def test_every_row_of_every_table_matches_its_record(destination):
    with mock(RECORDS) as server:
        sync(server, destination, additional_tables="all")
        assert_mirrors(destination, server, ALL_TABLES)
        for table in ALL_TABLES:
            rows = destination.live(table).values()
            for column in COLUMNS[table].keys() - NEVER_SENT:
                has_value = any(row[column] is not None for row in rows)
                assert has_value, f"{table}.{column}: mock_server/records.py has no value for it"


def test_changed_and_deleted_conversations_and_notes_are_delivered(destination):
    with mock(RECORDS) as server:
        store = server.store
        sync(server, destination, additional_tables="all")
        conversations, notes = store.listed("conversations"), store.listed("notes")
        store.change("conversations", conversations[0], status="done", doneCount=4)
        store.delete("conversations", conversations[1])
        store.change("notes", notes[0], body="Edited.")
        store.delete("notes", notes[1])
        destination.delivered.clear()
        sync(server, destination, additional_tables="all")
        assert_mirrors(destination, server, ALL_TABLES)
    delivered = [pair for pair in destination.delivered if pair[0] in ("conversations", "notes")]
    assert sorted(delivered) == sorted(
        [("conversations", record_id) for record_id in conversations[:2]]
        + [("notes", record_id) for record_id in notes[:2]]
    )
    assert conversations[1] in destination.deleted["conversations"]
    assert notes[1] in destination.deleted["notes"]


@pytest.mark.parametrize("table", MIRRORED)
def test_a_mirrored_table_follows_removed_and_new_records(table, destination):
    with mock(RECORDS) as server:
        sync(server, destination, additional_tables=table)
        gone = server.store.listed(table)[0]
        server.store.erase(table, gone)
        for record in make_records(**{table: 1}, seed=8)[table].values():
            server.store.put(table, record)
        sync(server, destination, additional_tables=table)
        assert_mirrors(destination, server, [table])
    assert gone in destination.deleted[table]


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("table", ["teams", "tags"])
def test_a_deleted_team_or_tag_is_a_deleted_row_whether_or_not_the_list_includes_it(
    table, shown, destination
):
    with mock(RECORDS, lists_show_deleted=shown) as server:
        sync(server, destination, additional_tables=table)
        deleted = server.store.listed(table)[0]
        server.store.delete(table, deleted)
        sync(server, destination, additional_tables=table)
        assert_mirrors(destination, server, [table])
    assert deleted in destination.deleted[table]


@pytest.mark.parametrize("user_lists", USER_LISTS)
def test_deactivated_users_are_marked_as_such_whichever_list_includes_them(
    user_lists, destination
):
    with mock(RECORDS, user_lists=user_lists) as server:
        sync(server, destination, additional_tables="users")
        assert_mirrors(destination, server, ["users"])
        user = server.store.listed("users")[0]
        server.store.change("users", user, deletedAt="2026-01-02T03:04:05.678Z", deleted=True)
        server.behaviour.lists_show_deleted = True
        sync(server, destination, additional_tables="users")
        row = destination.live("users")[user]
    assert row["deactivated"] is True
    assert len(destination.live("users")) == 20


def test_a_user_who_is_deactivated_between_the_two_lists_is_marked_as_deactivated(destination):
    with mock(RECORDS) as server:
        user = server.store.listed("users")[0]

        def deactivate(request, answer):
            if request.path == "/v1/users" and "deleted" not in request.params:
                server.store.change("users", user, deletedAt="2026-01-02T03:04:05.678Z")
            return answer

        server.rewrite = deactivate
        sync(server, destination, additional_tables="users")
    assert destination.live("users")[user]["deactivated"] is True
    assert len(destination.live("users")) == 20


def test_an_empty_list_of_active_users_deletes_no_rows(destination):
    with mock(RECORDS) as server:
        sync(server, destination, additional_tables="users")

        def hide_active_users(request, answer):
            if request.path == "/v1/users" and "deleted" not in request.params:
                answer.payload["data"].clear()
            return answer

        server.rewrite = hide_active_users
        sync(server, destination, additional_tables="users")
        assert_mirrors(destination, server, ["users"])


def test_lists_of_users_and_teams_are_read_in_pages_of_500(destination):
    records = make_records(users=720, teams=520, tags=130)
    with mock(records) as server:
        sync(server, destination, additional_tables="users,teams,tags")
        assert_mirrors(destination, server, MIRRORED)
        sizes = {
            request.path: request.params["pageSize"]
            for request in server.requests
            if request.params.get("page") == "1"
        }
        lists = [request for request in server.requests if request.path == "/v1/users"]
    assert sizes["/v1/users"] == sizes["/v1/teams"] == "500" and sizes["/v1/tags"] == "100"
    assert len(lists) == 3


@pytest.mark.parametrize("table", ADDITIONAL)
def test_a_missing_role_is_reported_and_all_other_tables_are_read(table, destination):
    role = f"org.permission.{ROLE_OBJECTS.get(table, TYPES[table])}.read"
    with mock(RECORDS, roles=ROLES - {role}) as server:
        with pytest.raises(connector.KustomerError, match=f"{table}: .* lacks the role {role}"):
            sync(server, destination, additional_tables="all")
        # Custom objects and their types need the same role.
        lacking = {"kobjects", "klasses"} if "klass" in role else {table}
        others = [name for name in ALL_TABLES if name not in lacking]
        assert_mirrors(destination, server, others)
    assert set(destination.state["last_sync_time"]) == set(others)


@pytest.mark.parametrize(
    "rules",
    [
        {"sort_contexts": frozenset({"customer"})},
        {"sort_contexts": frozenset({"customer"}), "other_sorts": "refuse"},
        {"page_size_limit": 50},
    ],
    ids=["sorts customers only", "refuses other sorts", "fifty"],
)
def test_all_tables_arrive_however_the_server_treats_search_and_page_sizes(rules, destination):
    with mock(RECORDS, **rules) as server:
        sync(server, destination, additional_tables="all")
        assert_mirrors(destination, server, ALL_TABLES)


def test_without_the_search_role_custom_objects_fail_and_all_others_are_read(destination):
    with mock(RECORDS, roles=ROLES - {SEARCH_ROLE}) as server:
        with pytest.raises(connector.KustomerError, match=f"^kobjects: .*{SEARCH_ROLE}") as raised:
            sync(server, destination, additional_tables="all")
        assert "Kustomer has no list of kobjects." in str(raised.value)
        assert_mirrors(destination, server, [name for name in ALL_TABLES if name != "kobjects"])


def test_without_incremental_sync_custom_objects_of_two_years_are_searched(destination, clock):
    move_to_noon(clock)
    now = datetime.now(timezone.utc)
    days = {0: 1, 1: 400, 2: 728, 3: 731}
    records = bare_records("kobjects", [now - timedelta(days=days[n]) for n in sorted(days)])
    with mock(records) as server:
        sync(server, destination, additional_tables="kobjects", enable_incremental_sync="false")
    assert len(destination.live("kobjects")) == 3


def test_klasses_of_every_status_are_in_the_table(destination):
    with mock(RECORDS) as server:
        sync(server, destination, additional_tables="klasses,kobjects")
    statuses = {row["status"] for row in destination.live("klasses").values()}
    assert statuses == {"enabled", "existing_only", "disabled"}
    known = {row["klass_id"] for row in destination.live("kobjects").values()}
    assert known <= destination.live("klasses").keys()


def test_klasses_are_in_the_table_even_if_none_is_enabled(destination):
    with mock(make_records(klasses=6)) as server:
        sync(server, destination, additional_tables="klasses")
        for klass in server.store.listed("klasses"):
            server.store.change("klasses", klass, status="disabled")
        sync(server, destination, additional_tables="klasses")
        assert_mirrors(destination, server, ["klasses"])
        assert len(destination.live("klasses")) == 6


def test_a_full_read_of_custom_objects_that_finds_none_says_so(destination):
    with mock(RECORDS, search_is_empty=True) as server:
        sync(server, destination, additional_tables="kobjects", enable_incremental_sync="false")
    assert "kobjects: search found no records." in destination.warnings


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (7, 7),
        (0, 0),
        (-3, -3),
        (7.0, 7),
        ("7", 7),
        (2**31 - 1, 2**31 - 1),
        (-(2**31), -(2**31)),
        (2**31, None),
        (-(2**31) - 1, None),
        (7.5, None),
        ("many", None),
        ("٧", None),
        (True, None),
        ([7], None),
    ],
    ids=repr,
)
def test_a_count_that_is_not_a_32_bit_whole_number_is_null_and_reported(
    value, count, destination, capsys
):
    records = make_records(messages=3)
    (conversation,) = records["conversations"].values()
    conversation["attributes"]["messageCount"] = value
    with mock(records) as server:
        sync(server, destination, additional_tables="conversations")
    (row,) = destination.live("conversations").values()
    assert row["message_count"] == count and type(row["message_count"]) is type(count)
    reported = "1 unreadable value set to NULL" in capsys.readouterr().out
    assert reported is (count is None)


def test_a_table_that_is_added_later_is_read_from_the_start(destination):
    with mock(RECORDS) as server:
        sync(server, destination)
        sync(server, destination, additional_tables="all")
        assert_mirrors(destination, server, ALL_TABLES)


def test_a_table_that_is_added_again_receives_the_changes_in_between(destination):
    with mock(RECORDS) as server:
        sync(server, destination, additional_tables="notes")
        record_id = server.store.listed("notes")[0]
        server.store.change("notes", record_id, body="Edited.")
        sync(server, destination)
        destination.delivered.clear()
        sync(server, destination, additional_tables="notes")
        assert_mirrors(destination, server, ["notes"])
    assert [pair for pair in destination.delivered if pair[0] == "notes"] == [("notes", record_id)]


def test_a_single_saved_time_does_not_apply_to_tables_that_are_new_since_then(
    destination,
):
    with mock(RECORDS) as server:
        destination.state = {"last_sync_time": connector.get_time_range()["end"]}
        sync(server, destination, additional_tables="all")
        assert_mirrors(destination, server, ADDITIONAL)
        assert destination.rows["messages"] == {}


def test_get_rows_returns_the_rows_of_any_table():
    with mock(RECORDS) as server:
        for table in connector.TABLES:
            rows = connector.get_rows(table, server.api_key, configuration=server.configuration())
            live = {row["id"]: row for row in rows if not row.get("deleted")}
            assert_same(table.name, live, source_rows(server, table.name))
    own = {name for name in vars(connector) if name.startswith("get_")}
    assert own == {"get_rows", "get_time_range", *(f"get_{table}" for table in TABLES)}


def test_the_setup_test_of_roles_includes_the_additional_tables():
    with mock(RECORDS) as server:
        names = "notes,tags,kobjects,audit_logs"
        connector.test_roles(server.configuration(additional_tables=names))
        paths = {request.path for request in server.requests}
    listed = [*TABLES, "notes", "tags", "audit-logs", "customers/search"]
    assert paths == {"/v1/users/current", *(f"/v1/{name}" for name in listed)}


def test_made_up_conversations_have_one_customer_one_channel_and_messages_in_order():
    threads: dict = {}
    for message in RECORDS["messages"].values():
        related = message["relationships"]
        threads.setdefault(related["conversation"]["data"]["id"], []).append(message)
    assert threads.keys() == RECORDS["conversations"].keys()
    unanswered = 0
    for conversation_id, messages in threads.items():
        conversation = RECORDS["conversations"][conversation_id]
        attributes = [message["attributes"] for message in messages]
        customers = {m["relationships"]["customer"]["data"]["id"] for m in messages}
        assert customers == {conversation["relationships"]["customer"]["data"]["id"]}
        assert [a["channel"] for a in attributes] == len(messages) * (
            conversation["attributes"]["channels"]
        )
        assert 2 <= len(messages) <= 12 and attributes[0]["directionType"] == "initial-in"
        written = [a["createdAt"] for a in attributes]
        assert written == sorted(written)
        answers = [a for a in attributes if a["direction"] == "out"]
        assert conversation["attributes"]["outboundMessageCount"] == len(answers)
        unanswered += not answers
    assert 5 < unanswered < len(threads) / 3

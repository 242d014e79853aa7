"""The mock behaves as Kustomer's documentation says."""

import dataclasses
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path

import jsonschema_rs
import pytest
import requests

from mock_server import Behaviour, Fault, MockKustomer, PortTakenError, make_records
from mock_server.__main__ import main as command_line
from mock_server.behaviour import CONTEXTS, RESETS, ROLES, SEARCH_ROLE
from mock_server.faults import KINDS, PARTS
from mock_server.records import TABLES, audit_entry, time_text
from tests import schemas
from tests.support import bare_records, even_times, mock

PROJECT = Path(__file__).resolve().parent.parent
RECORDS = make_records(
    customers=600,
    companies=150,
    brands=4,
    messages=1500,
    notes=120,
    users=110,
    teams=4,
    tags=8,
    kobjects=150,
    klasses=3,
    shortcuts=20,
    audit_logs=400,
)
# All other tables have a list of their own.
LISTED = [table for table in TABLES if table not in ("kobjects", "audit_logs")]
SEARCH = "/v1/customers/search"
NO_CHANGES = {"attributes": {}, "relationships": {}}


def call(server, path: str, body=None, key=None, **params) -> requests.Response:
    method = "GET" if body is None else "POST"
    headers = {"Authorization": f"Bearer {key or server.api_key}"}
    return requests.request(
        method, server.url + path, params=params, json=body, headers=headers, timeout=10
    )


def search_body(context="customer", low="2000-01-01T00:00:00.000Z", **more) -> dict:
    attribute = f"{context}_updated_at"
    return {
        "and": [{attribute: {"gte": low}}],
        "sort": [{attribute: "asc"}],
        "queryContext": context,
        **more,
    }


@pytest.fixture(scope="module")
def server():
    with mock(RECORDS) as running:
        yield running


@pytest.mark.parametrize("table", LISTED)
def test_every_page_of_every_list_matches_its_schema(server, table):
    number, ids = 1, []
    while True:
        answer = call(server, f"/v1/{table}", page=number, pageSize=100)
        page = answer.json()
        jsonschema_rs.validate(schemas.page_schema(table), page)
        ids += [record["id"] for record in page["data"]]
        if page["links"]["next"] is None:
            break
        assert page["links"]["next"] == f"/v1/{table}?page={number + 1}&pageSize=100"
        number += 1
    live = {
        record_id
        for record_id, record in RECORDS[table].items()
        if not {"deleted", "deletedAt"} & {n for n, v in record["attributes"].items() if v}
        if table != "klasses" or record["attributes"]["status"] == "enabled"
    }
    assert len(ids) == len(live) and set(ids) == live
    if table == "messages":
        assert ids == sorted(ids)


@pytest.mark.parametrize(
    ("context", "table"),
    [
        ("customer", "customers"),
        ("message", "messages"),
        ("conversation", "conversations"),
        ("note", "notes"),
        ("kobject", "kobjects"),
    ],
)
@pytest.mark.parametrize("deleted", [False, True])
def test_every_page_of_search_results_matches_its_schema(server, context, table, deleted):
    number, found = 1, []
    while True:
        body = search_body(context, includeDeleted=deleted)
        page = call(server, SEARCH, body, page=number, pageSize=500).json()
        jsonschema_rs.validate(schemas.page_schema(table, is_search=True), page)
        found += page["data"]
        if page["links"]["next"] is None:
            break
        number += 1
    assert page["meta"]["total"] == len(found)
    times = [record["attributes"]["updatedAt"] for record in found]
    assert times == sorted(times)
    hidden = [r for r in RECORDS[table].values() if r["attributes"].get("deleted")]
    assert len(found) == len(RECORDS[table]) - (0 if deleted else len(hidden))


def test_the_current_user_requires_a_valid_key_but_no_role():
    with mock(RECORDS, roles=frozenset()) as bare:
        answer = call(bare, "/v1/users/current")
        jsonschema_rs.validate(schemas.USER, answer.json())
        assert call(bare, "/v1/users/current", key="other").status_code == 401


@pytest.mark.parametrize("status", [401, 403])
def test_requests_without_the_required_role_are_refused(status):
    with mock(RECORDS, roles=ROLES - {SEARCH_ROLE}, missing_role_status=status) as bare:
        answer = call(bare, SEARCH, search_body())
        assert answer.status_code == status
        jsonschema_rs.validate(schemas.ERRORS["common"], answer.json())
        assert call(bare, "/v1/messages").status_code == 200
    with mock(RECORDS, roles=ROLES - {"org.permission.message.read"}) as bare:
        assert call(bare, "/v1/messages").status_code == 403
        assert call(bare, SEARCH, search_body("message")).status_code == 403
        assert call(bare, SEARCH, search_body("customer")).status_code == 200


@pytest.mark.parametrize(
    ("role", "path"),
    [
        ("klass", "/v1/klasses"),
        ("klass", "/v1/klasses/order"),
        ("shortcut", "/v1/shortcuts"),
        ("audit_logs", "/v1/audit-logs"),
    ],
)
def test_each_further_path_requires_its_own_role(role, path):
    with mock(RECORDS, roles=ROLES - {f"org.permission.{role}.read"}) as bare:
        assert call(bare, path).status_code == 403
        assert call(bare, "/v1/messages").status_code == 200
        custom_objects = 403 if role == "klass" else 200
        assert call(bare, SEARCH, search_body("kobject")).status_code == custom_objects
        bare.behaviour.search_needs_object_role = False
        assert call(bare, SEARCH, search_body("kobject")).status_code == 200


def test_klasses_are_listed_by_status_and_those_that_are_enabled_by_default(server):
    names = {}
    for status in (None, "enabled", "existing_only", "disabled"):
        page = call(server, "/v1/klasses", status=status).json()
        jsonschema_rs.validate(schemas.page_schema("klasses"), page)
        names[status] = [klass["attributes"]["name"] for klass in page["data"]]
    assert names == {
        None: ["order"],
        "enabled": ["order"],
        "existing_only": ["subscription"],
        "disabled": ["warranty"],
    }
    assert call(server, "/v1/klasses", status="retired").status_code == 400


def test_custom_objects_are_on_the_lists_of_their_klasses_only(server):
    found = []
    for klass_id, klass in RECORDS["klasses"].items():
        path, number = f"/v1/klasses/{klass['attributes']['name']}", 1
        while True:
            page = call(server, path, page=number, pageSize=30).json()
            jsonschema_rs.validate(schemas.page_schema("kobjects"), page)
            related = {r["relationships"]["klass"]["data"]["id"] for r in page["data"]}
            assert related == {klass_id}
            found += [record["id"] for record in page["data"]]
            if page["links"]["next"] is None:
                break
            number += 1
    live = {i for i, r in RECORDS["kobjects"].items() if not r["attributes"].get("deleted")}
    assert len(found) == len(live) and set(found) == live
    for path in ("/v1/klasses/dragon", "/v1/kobjects", "/v1/audit_logs"):
        assert call(server, path).status_code == 404


def audit_log(server, **params) -> list:
    """Return the entries of all pages of the audit log, by following the links."""
    entries, answer = [], call(server, "/v1/audit-logs", **params)
    while True:
        page = answer.json()
        jsonschema_rs.validate(schemas.AUDIT_PAGE, page)
        entries += page["data"]
        if page["links"]["next"] is None:
            return entries
        assert len(page["data"]) == int(params.get("count", 100))
        answer = call(server, page["links"]["next"])


@pytest.mark.parametrize("order", ["newest", "oldest"])
@pytest.mark.parametrize("object_type", [None, "message", "work_item"])
def test_links_lead_through_the_audit_log_within_times_that_are_inclusive(order, object_type):
    everything = sorted(RECORDS["audit_logs"])
    times = [RECORDS["audit_logs"][i]["attributes"]["createdAt"] for i in everything]
    assert times == sorted(times)
    start, end = times[30], times[350]
    expected = [
        entry_id
        for entry_id, at in zip(everything, times)
        if start <= at <= end
        if object_type in (None, RECORDS["audit_logs"][entry_id]["attributes"]["objectType"])
    ]
    limits = {"filter[start]": start, "filter[end]": end, "filter[objectType]": object_type}
    with mock(RECORDS, audit_log_order=order) as server:
        for count in (None, 1000, 37, len(expected) or 1):
            count_given = {} if count is None else {"count": count}
            found = [entry["id"] for entry in audit_log(server, **limits, **count_given)]
            assert found == (expected if order == "oldest" else expected[::-1])


def test_entries_that_are_made_while_a_client_pages_do_not_move_its_pages():
    for order in ("newest", "oldest"):
        with mock(RECORDS, audit_log_order=order) as server:
            before = [entry["id"] for entry in audit_log(server)]
            first = call(server, "/v1/audit-logs", count=300).json()
            server.store.delete("messages", next(iter(RECORDS["messages"])))
            second = call(server, first["links"]["next"]).json()
            assert [entry["id"] for entry in first["data"] + second["data"]] == before
            assert second["links"]["next"] is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"after": "ID"},
        {"before": "ID"},
        {"after": "ID", "before": "f" * 24},
        {"count": 0},
        {"count": 1001},
        {"count": "all"},
        {"filter[start]": "soon"},
        {"filter[end]": "2026-01-01T00:00:00"},
        {"filter[objectType]": "message,customer"},
    ],
)
def test_the_audit_log_refuses_invalid_parameters_and_one_bound_without_the_other(server, wrong):
    some_id = next(iter(RECORDS["audit_logs"]))
    params = {name: some_id if text == "ID" else text for name, text in wrong.items()}
    answer = call(server, "/v1/audit-logs", **params)
    assert answer.status_code == 400
    jsonschema_rs.validate(schemas.ERRORS["common"], answer.json())
    both = {"after": some_id, "before": some_id}
    assert call(server, "/v1/audit-logs", **both).status_code == 200


AUDITED = {"companies", "conversations", "customers", "messages", "shortcuts", "users"}


@pytest.mark.parametrize("table", sorted({*LISTED, "kobjects"}))
def test_the_audit_log_records_what_is_created_updated_and_deleted(table):
    first, second, new = list(RECORDS[table].values())[:3]
    with mock({**RECORDS, table: {first["id"]: first, second["id"]: second}}) as server:
        server.store.put(table, new)
        server.store.change(table, first["id"], name="Changed", externalId="x-1")
        server.store.put(table, second)
        server.store.delete(table, first["id"])
        server.store.erase(table, second["id"])
        made = server.store.records("audit_logs").keys() - RECORDS["audit_logs"]
        entries = [entry["attributes"] for entry in audit_log(server) if entry["id"] in made][::-1]
    if table not in AUDITED:
        assert not made
        return
    gone = "update" if table == "companies" else "delete"
    assert [(entry["eventVerb"], entry["objectId"]) for entry in entries] == [
        ("create", new["id"]),
        ("update", first["id"]),
        ("update", second["id"]),
        (gone, first["id"]),
        (gone, second["id"]),
    ]
    for entry in entries:
        assert entry["objectType"] == first["type"]
        assert entry["eventName"] == f"kustomer.{first['type']}.{entry['eventVerb']}"
        assert entry["userId"] in RECORDS["users"]
    created, changed, same, *deleted = (entry["changes"] for entry in entries)
    assert created["attributes"]["createdAt"] == {
        "before": None,
        "after": new["attributes"]["createdAt"],
    }
    assert created["relationships"]["org"]["after"] == new["relationships"]["org"]["data"]
    old = first["attributes"]
    assert changed["attributes"] == {
        "name": {"before": old.get("name"), "after": "Changed"},
        "externalId": {"before": old.get("externalId"), "after": "x-1"},
    }
    assert same == NO_CHANGES
    for change in deleted:
        assert change["attributes"].keys() == {"deleted"}
        assert change["attributes"]["deleted"]["after"] is True


def test_an_entry_can_be_added_by_hand_and_is_in_its_place():
    at = datetime.now(timezone.utc) - timedelta(days=7)
    entry = audit_entry(5, at, ("delete", "message", "a" * 24), ("b" * 24, "user"), NO_CHANGES)
    with mock(RECORDS) as server:
        server.store.put("audit_logs", entry)
        entries = audit_log(server)
        assert server.store.count("audit_logs") == len(RECORDS["audit_logs"]) + 1 == len(entries)
    assert entry in entries and entries == sorted(entries, key=lambda e: e["id"], reverse=True)


@pytest.mark.parametrize(
    "change",
    [
        {"queryContext": "dragon"},
        {"queryContext": "company", "and": [{"company_updated_at": {"gte": "1"}}]},
        {"and": [{"customer_shoe_size": {"gte": "1"}}]},
        {"and": [{"customer_updated_at": {"near": "1"}}]},
        {"sort": [{"message_updated_at": "asc"}]},
        {"unknown": 1},
    ],
)
def test_search_refuses_unknown_contexts_attributes_operators_sorts_and_fields(server, change):
    answer = call(server, SEARCH, {**search_body(), **change})
    assert answer.status_code == 400
    jsonschema_rs.validate(schemas.ERRORS["common"], answer.json())


@pytest.mark.parametrize("kind", ["created", "updated"])
@pytest.mark.parametrize("operator", ["gt", "gte", "lt", "lte"])
def test_search_filters_by_each_operator(server, kind, operator):
    name, attribute = f"customer_{kind}_at", f"{kind}At"
    times = sorted(record["attributes"][attribute] for record in RECORDS["customers"].values())
    bound = times[300]
    body = search_body(includeDeleted=True)
    body["and"] = [{name: {operator: bound}}]
    page = call(server, SEARCH, body, pageSize=500).json()
    number = {
        "gt": sum(at > bound for at in times),
        "gte": sum(at >= bound for at in times),
        "lt": sum(at < bound for at in times),
        "lte": sum(at <= bound for at in times),
    }[operator]
    assert page["meta"]["total"] == number


def test_search_sorts_in_both_directions_by_both_times(server):
    for name, attribute in (
        ("customer_updated_at", "updatedAt"),
        ("customer_created_at", "createdAt"),
    ):
        for direction in ("asc", "desc"):
            body = {**search_body(), "sort": [{name: direction}]}
            page = call(server, SEARCH, body, pageSize=500).json()
            times = [record["attributes"][attribute] for record in page["data"]]
            assert times == sorted(times, reverse=direction == "desc") and len(times) == 500


def test_search_refuses_pages_after_the_hundredth(server):
    page = call(server, SEARCH, search_body("message"), page=100, pageSize=10).json()
    # Page 100 links to page 101, although page 101 is refused.
    assert "page=101&" in page["links"]["next"] + "&" and page["meta"]["total"] == 1500
    assert call(server, SEARCH, search_body("message"), page=101, pageSize=10).status_code == 400


def test_search_covers_only_the_last_two_years():
    old = make_records(customers=50, days=1000)
    with mock(old) as server:
        horizon = time_text(datetime.now(timezone.utc) - timedelta(days=730))
        recent = [r for r in old["customers"].values() if r["attributes"]["updatedAt"] >= horizon]
        page = call(server, SEARCH, search_body(includeDeleted=True), pageSize=500).json()
    assert 0 < len(recent) < 50 and page["meta"]["total"] == len(recent)


def updated_since(server, context: str, **more) -> requests.Response:
    return call(server, SEARCH, search_body(context, **more), pageSize=500)


def test_search_treats_companies_in_one_of_three_ways():
    with mock(RECORDS, company_search="knows") as server:
        assert updated_since(server, "company").json()["meta"]["total"] == 150
        server.behaviour.company_search = "refuses_attribute"
        assert updated_since(server, "company").status_code == 400
        by_creation = {"and": [{"company_created_at": {"gte": "2"}}], "queryContext": "company"}
        assert call(server, SEARCH, by_creation).json()["meta"]["total"] == 150
        server.behaviour.company_search = "finds_nothing"
        answer = updated_since(server, "company").json()
        assert answer["data"] == [] and answer["meta"]["total"] == 0
        jsonschema_rs.validate(schemas.page_schema("companies", is_search=True), answer)
        assert call(server, SEARCH, by_creation).json()["meta"]["total"] == 150


def test_criteria_can_refer_to_another_object(server):
    body = search_body()
    body["and"].append({"conversation_status": {"gte": "open"}})
    assert call(server, SEARCH, body).json()["meta"]["total"] > 500


def test_a_sort_in_a_context_without_sorting_is_ignored_or_refused():
    with mock(RECORDS, sort_contexts=frozenset({"customer"})) as server:
        customers = [
            r["attributes"]["updatedAt"] for r in updated_since(server, "customer").json()["data"]
        ]
        messages = [
            r["attributes"]["updatedAt"] for r in updated_since(server, "message").json()["data"]
        ]
        assert customers == sorted(customers) and messages != sorted(messages)
        server.behaviour.other_sorts = "refuse"
        assert updated_since(server, "message").status_code == 400
        assert updated_since(server, "message", sort=[]).status_code == 200


def test_search_can_work_without_the_role_of_the_object():
    roles = frozenset({SEARCH_ROLE})
    with mock(RECORDS, roles=roles, search_needs_object_role=False) as server:
        assert updated_since(server, "message").status_code == 200


def test_every_response_can_report_the_reset_in_the_configured_format():
    with mock(RECORDS, reset_on_every_answer=True) as server:
        answer = call(server, "/v1/brands")
        assert 0 < int(answer.headers["x-ratelimit-reset"]) - time.time() <= 61
        server.behaviour.rate_limit_reset = "seconds"
        refused = call(server, "/v1/brands", page=0)
        assert refused.status_code == 400
        assert 0 < int(refused.headers["x-ratelimit-reset"]) <= 60


@pytest.mark.parametrize("form", ["common", "detailed"])
def test_errors_have_one_of_the_two_documented_formats(form):
    with mock(RECORDS, error_form=form) as server:
        answer = call(server, SEARCH, {"queryContext": "dragon"})
    jsonschema_rs.validate(schemas.ERRORS[form], answer.json())
    assert form == "detailed" or answer.json()["errors"][0]["code"] == "bad_request"


def test_lists_can_include_deleted_records():
    with mock(RECORDS, lists_show_deleted=True) as server:
        pages = [call(server, "/v1/customers", page=number).json() for number in range(1, 7)]
        for page in pages:
            jsonschema_rs.validate(schemas.page_schema("customers"), page)
        total = pages[0]["meta"]["total"]
        assert total == len(RECORDS["customers"])
        assert {r["id"] for page in pages for r in page["data"]} == RECORDS["customers"].keys()
        server.behaviour.lists_show_deleted = False
        assert call(server, "/v1/customers").json()["meta"]["total"] < total


def test_lists_can_be_sorted_by_updated_at():
    with mock(RECORDS, list_order="updated") as server:
        pages = [call(server, "/v1/messages", page=number).json() for number in range(1, 16)]
    keys = [(r["attributes"]["updatedAt"], r["id"]) for page in pages for r in page["data"]]
    assert keys == sorted(keys) and len(keys) == 1500


def test_a_hidden_record_is_counted_but_not_returned():
    hidden = {list(RECORDS["messages"])[3]}
    with mock(RECORDS, hidden=hidden) as server:
        body = search_body("message")
        pages = [call(server, SEARCH, body, page=n, pageSize=500).json() for n in (1, 2, 3)]
    assert {page["meta"]["total"] for page in pages} == {1500}
    shown = [record["id"] for page in pages for record in page["data"]]
    assert len(shown) == 1499 and hidden.isdisjoint(shown)


def test_counts_and_pages_of_search_can_end_at_a_limit():
    with mock(RECORDS, search_window=1000) as server:
        body = search_body("message")
        page = call(server, SEARCH, body, page=2, pageSize=500).json()
        assert page["meta"]["total"] == 1000 and page["links"]["next"]
        assert call(server, SEARCH, body, page=3, pageSize=500).status_code == 400


def test_lists_can_end_before_all_records_are_returned():
    with mock(RECORDS, list_window=300) as server:
        assert call(server, "/v1/messages", page=3).json()["links"]["next"] is None
        assert call(server, "/v1/messages", page=4).json()["data"] == []
        server.behaviour.list_window_status = 504
        assert call(server, "/v1/messages", page=3).json()["links"]["next"]
        assert call(server, "/v1/messages", page=4).status_code == 504


@pytest.mark.parametrize("window", [None, 250])
def test_lists_can_link_to_further_pages_for_ever(window):
    with mock(RECORDS, list_window=window, list_links_on="empty") as server:
        listed = window or len(RECORDS["messages"])
        last = math.ceil(listed / 100)
        pages = {n: call(server, "/v1/messages", page=n).json() for n in range(1, last + 4)}
        for number, page in pages.items():
            jsonschema_rs.validate(schemas.page_schema("messages"), page)
            assert page["links"]["next"] == f"/v1/messages?page={number + 1}&pageSize=100"
            assert page["meta"]["page"] == number
        assert [len(pages[n]["data"]) for n in (last + 1, last + 2, last + 3)] == [0, 0, 0]
        assert sum(len(page["data"]) for page in pages.values()) == listed
        server.behaviour.list_links_on = "repeat"
        for number in (last + 1, last + 3):
            page = call(server, "/v1/messages", page=number).json()
            assert page["data"] == pages[last]["data"] != []
            assert page["links"]["next"] == f"/v1/messages?page={number + 1}&pageSize=100"
        # Search is not affected.
        assert updated_since(server, "note").json()["links"]["next"] is None


@pytest.mark.parametrize("kind", ["empty", "repeat"])
def test_a_list_without_records_can_link_to_further_pages_for_ever(kind):
    with mock({}, list_links_on=kind) as server:
        for number in (1, 2):
            page = call(server, "/v1/brands", page=number).json()
            assert page["data"] == []
            assert page["links"]["next"] == f"/v1/brands?page={number + 1}&pageSize=100"


def test_links_name_the_page_and_its_size_before_other_parameters(server):
    parameters = {"deleted": "true", "pageSize": 7, "page": 1}
    links = call(server, "/v1/users", **parameters).json()["links"]
    assert links["self"] == "/v1/users?page=1&pageSize=7&deleted=true"
    links = call(server, SEARCH, search_body(), pageSize=900).json()["links"]
    assert links["next"] == f"{SEARCH}?page=2&pageSize=500"


@pytest.mark.parametrize("context", ["customer", "message", "company"])
def test_search_can_be_empty_while_lists_are_not(context):
    with mock(RECORDS, search_is_empty=True, company_search="knows") as server:
        for body in (search_body(context, includeDeleted=True), {"queryContext": context}):
            answer = call(server, SEARCH, body)
            page = answer.json()
            jsonschema_rs.validate(schemas.page_schema(CONTEXTS[context], is_search=True), page)
            assert (answer.status_code, page["data"], page["meta"]["total"]) == (200, [], 0)
            assert page["links"]["next"] is None
        assert len(call(server, "/v1/messages").json()["data"]) == 100


def all_found(server, context: str, **more) -> list:
    """Return the results of all pages of a search, one request after another."""
    found, number = [], 1
    while True:
        body = search_body(context, **more)
        page = call(server, SEARCH, body, page=number, pageSize=500).json()
        found += page["data"]
        if page["links"]["next"] is None:
            assert page["meta"]["total"] == len(found)
            return found
        number += 1


def test_replicas_answer_in_turn_and_differ_only_in_the_order_of_equal_times():
    records = bare_records("messages", [at for at in even_times(10) for _ in range(30)])
    with mock(records, replicas=3) as server:
        pages = [updated_since(server, "message").json() for _ in range(6)]
        server.behaviour.replicas = 1
        usual = updated_since(server, "message").json()["data"]
    assert {page["meta"]["total"] for page in pages} == {300}
    answers = [page["data"] for page in pages]
    assert answers[:3] == answers[3:] and answers[0] == usual
    orders = {tuple(record["id"] for record in answer) for answer in answers}
    assert len(orders) == 3 and {frozenset(order) for order in orders} == {
        frozenset(records["messages"])
    }
    times = [[record["attributes"]["updatedAt"] for record in answer] for answer in answers]
    assert times[0] == times[1] == times[2] == sorted(times[0])


@pytest.mark.parametrize("direction", ["asc", "desc"])
@pytest.mark.parametrize("name", ["updated", "created"])
def test_every_replica_sorts_as_requested(name, direction):
    with mock(RECORDS, replicas=2) as server:
        body = {**search_body("note"), "sort": [{f"note_{name}_at": direction}]}
        for _ in range(2):
            notes = call(server, SEARCH, body, pageSize=500).json()["data"]
            times = [record["attributes"][f"{name}At"] for record in notes]
            assert times == sorted(times, reverse=direction == "desc") and len(times) > 100


def test_pages_from_different_replicas_repeat_some_records_and_lack_others():
    with mock(RECORDS) as server:
        complete = all_found(server, "message")
        assert {record["id"] for record in complete} == RECORDS["messages"].keys()
        server.behaviour.replicas = 2
        found = all_found(server, "message")
    assert len(found) == 1500 and {r["id"] for r in found} < RECORDS["messages"].keys()


def test_each_replica_has_its_own_order_of_records_that_search_does_not_sort():
    with mock(RECORDS, replicas=2, sort_contexts=frozenset()) as server:
        first, second, third = [
            [record["id"] for record in updated_since(server, "note").json()["data"]]
            for _ in range(3)
        ]
    assert first == third != second and sorted(first) == sorted(second)


@pytest.mark.parametrize(
    ("rules", "asked", "number"),
    [
        ({"page_size_limit": 50}, 100, 50),
        ({"page_size_limit": 50}, 20, 20),
        ({"allowed_page_sizes": frozenset({100})}, 100, 100),
    ],
)
@pytest.mark.parametrize("path", ["/v1/messages", SEARCH])
def test_page_sizes_can_be_limited_and_are_reported(path, rules, asked, number):
    with mock(RECORDS, **rules) as server:
        body = search_body("message") if path == SEARCH else None
        page = call(server, path, body, pageSize=asked).json()
        second = call(server, path, body, pageSize=asked, page=2).json()
    assert len(page["data"]) == number and page["meta"]["pageSize"] == number
    jsonschema_rs.validate(schemas.page_schema("messages", path == SEARCH), page)
    ids = [[record["id"] for record in found["data"]] for found in (page, second)]
    assert set(ids[0]).isdisjoint(ids[1])


def test_a_page_size_that_is_not_allowed_is_refused():
    with mock(RECORDS, allowed_page_sizes=frozenset({25, 100})) as server:
        assert call(server, "/v1/messages", pageSize=99).status_code == 400
        assert call(server, "/v1/messages").status_code == 200


def test_links_and_counts_can_be_left_out():
    with mock(RECORDS, shows_links=False, shows_total=False) as server:
        page = updated_since(server, "message").json()
        without = frozenset({"links", "total"})
        jsonschema_rs.validate(schemas.page_schema("messages", True, without), page)
        server.behaviour.shows_links = True
        page = call(server, "/v1/customers").json()
    jsonschema_rs.validate(schemas.page_schema("customers", without=frozenset({"total"})), page)


def test_the_clock_of_the_mock_can_be_behind():
    with mock(RECORDS, clock_offset_seconds=-900) as server:
        changed = server.store.listed("customers")[0]
        server.store.change("customers", changed, name="Changed")
        date = parsedate_to_datetime(call(server, "/v1/brands").headers["Date"])
        updated = server.store.records("customers")[changed]["attributes"]["updatedAt"]
    assert timedelta(minutes=14) < datetime.now(timezone.utc) - date < timedelta(minutes=16)
    assert updated < time_text(datetime.now(timezone.utc) - timedelta(minutes=14))


def test_resets_follow_the_clock_of_the_mock_but_windows_do_not(monkeypatch):
    clock = [1_790_000_000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    with mock({}, org_limit=1, window_seconds=30.0) as server:
        assert call(server, "/v1/brands").status_code == 200
        server.behaviour.clock_offset_seconds = -900.0
        refused = call(server, "/v1/brands")
        assert refused.headers["x-ratelimit-reset"] == "1789999130"
        clock[0] += 30.0
        assert call(server, "/v1/brands").status_code == 200


@pytest.mark.parametrize(("path", "maximum"), [("/v1/messages", 100), (SEARCH, 500)])
def test_a_page_size_above_the_maximum_gets_the_maximum(server, path, maximum):
    body = search_body("message") if path == SEARCH else None
    for asked in (maximum, maximum + 1):
        page = call(server, path, body, pageSize=asked).json()
        assert len(page["data"]) == page["meta"]["pageSize"] == maximum


@pytest.mark.parametrize("page", ["0", "-1", "x"])
def test_an_invalid_page_number_is_rejected(server, page):
    assert call(server, "/v1/messages", page=page).status_code == 400


def test_unknown_paths_return_404_and_unknown_methods_405(server):
    assert call(server, "/v1/dragons").status_code == 404
    assert call(server, "/v1/messages", {}).status_code == 405


def test_both_rate_limits_are_counted_per_window_and_report_its_end(monkeypatch):
    clock = [1_790_000_000.5]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    with mock({}, org_limit=5, search_limit=2, window_seconds=30.0) as server:

        def codes(number, body=None):
            path = SEARCH if body else "/v1/brands"
            return [call(server, path, body).status_code for _ in range(number)]

        # A window begins with its first request.
        assert codes(3, search_body()) == [200, 200, 429]
        assert codes(4) == [200, 200, 200, 429]
        refused = call(server, "/v1/brands")
        assert refused.headers["x-ratelimit-reset"] == "1790000031"
        assert refused.headers["x-ratelimit-limit"] == "5"
        assert refused.headers["x-ratelimit-remaining"] == "0"
        clock[0] += 30.0
        answer = call(server, "/v1/brands")
        assert answer.headers["x-ratelimit-remaining"] == "4"
        assert "x-ratelimit-reset" not in answer.headers


@pytest.mark.parametrize(
    ("kind", "header", "value"),
    [
        ("epoch", "x-ratelimit-reset", "1790000060"),
        ("epoch_ms", "x-ratelimit-reset", "1790000060000"),
        ("seconds", "x-ratelimit-reset", "50"),
        ("retry_after", "Retry-After", "50"),
        ("absent", None, None),
    ],
)
def test_a_refusal_reports_the_end_of_the_window_in_one_of_five_ways(
    kind, header, value, monkeypatch
):
    clock = [1_790_000_000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    with mock({}, org_limit=1, rate_limit_reset=kind) as server:
        assert call(server, "/v1/brands").status_code == 200
        clock[0] += 10
        refused = call(server, "/v1/brands")
    assert refused.status_code == 429 and kind in RESETS
    sent = {name: refused.headers.get(name) for name in ("x-ratelimit-reset", "Retry-After")}
    assert {name: text for name, text in sent.items() if text} == (
        {header: value} if header else {}
    )


def test_every_response_has_a_date(server):
    date = parsedate_to_datetime(call(server, "/v1/brands").headers["Date"])
    assert abs(datetime.now(timezone.utc) - date) < timedelta(minutes=1)


def test_the_same_seed_makes_the_same_records_and_another_seed_makes_others():
    def made(seed):
        return make_records(customers=50, companies=9, brands=3, messages=80, seed=seed)

    assert made(1) == made(1) != made(2)


def test_records_are_as_varied_as_real_ones():
    records = make_records(customers=2000, companies=200, brands=5, messages=3000)
    customers = [record["attributes"] for record in records["customers"].values()]
    messages = [record["attributes"] for record in records["messages"].values()]
    names = "".join(customer.get("name") or "" for customer in customers)
    for script in ("a", "ж", "山", "α", "ש", "अ", "م", "🐈"):
        assert script in names
    assert {min(len(customer["emails"]), 2) for customer in customers} == {0, 1, 2}
    assert any(not e["verified"] for c in customers for e in c["emails"])
    assert any("name" not in customer for customer in customers)
    assert any(customer.get("name", "") is None for customer in customers)
    assert any(customer.get("deleted") for customer in customers)
    assert any("custom" in customer for customer in customers)
    assert {customer.get("deleted", "absent") for customer in customers} == {True, False, "absent"}
    related = [
        relation for r in records["customers"].values() for relation in r["relationships"].values()
    ]
    assert any("data" not in relation for relation in related)
    assert sum("body" in message for message in messages) < len(messages) / 5
    assert any("subject" in message["meta"] and "subject" not in message for message in messages)
    assert any("subject" in message for message in messages)
    for name in ("createdByTeams", "assignedUsers", "assignedTeams"):
        assert {len(message.get(name, "absent")) for message in messages} >= {1, 2, 6}
    assert any(message.get("createdByTeams") == [] for message in messages)
    for record in records["messages"].values():
        incoming = record["attributes"]["direction"] == "in"
        assert ("createdBy" in record["relationships"]) != incoming
    assert any("company" not in r["relationships"] for r in records["customers"].values())
    year_ago = time_text(datetime.now(timezone.utc) - timedelta(days=365))
    assert any(customer["createdAt"] < year_ago for customer in customers)
    assert {type(message["meta"]["to"]) for message in messages} == {str, list, dict}
    assert any(len(message.get("body", "")) >= 20_000 for message in messages)
    updates = [message["updatedAt"] for message in messages]
    assert max(map(updates.count, set(updates))) == 700


def test_values_are_as_rare_as_in_real_samples():
    records = make_records(customers=4000, messages=8000, users=8, teams=3, tags=5, kobjects=1000)
    customers, messages, conversations = (
        [record["attributes"] for record in records[table].values()]
        for table in ("customers", "messages", "conversations")
    )
    shared_only = sum(bool(c["sharedEmails"]) and not c["emails"] for c in customers)
    assert 0.03 < shared_only / len(customers) < 0.1
    failed = [message for message in messages if "error" in message]
    assert 0.005 < len(failed) / len(messages) < 0.02
    assert all(m["status"] == "error" and m["errorAt"] and m["direction"] == "out" for m in failed)
    assert all(message["status"] != "error" for message in messages if "error" not in message)
    redacted = [message for message in messages if message.get("redacted")]
    assert 0 < len(redacted) / len(messages) < 0.02
    assert not any({"preview", "body"} & message.keys() for message in redacted)
    assert all("redactedAt" in message for message in redacted)
    nothing = {"createdByTeams": [], "assignedUsers": [], "assignedTeams": []}
    for conversation in conversations:
        answered, done = conversation["outboundMessageCount"], conversation["status"] == "done"
        responses = [conversation["firstResponse"], conversation["lastResponse"]]
        assert (nothing in responses) != bool(answered)
        assert (conversation["firstDone"] == nothing == conversation["lastDone"]) != done
        assert conversation["messageCount"] == answered + conversation["inboundMessageCount"]
    unanswered = sum(conversation["firstResponse"] == nothing for conversation in conversations)
    assert 0.05 < unanswered / len(conversations) < 0.5
    for table, name in (("customers", "createdBy"), ("messages", "attachments")):
        related = [record["relationships"] for record in records[table].values()]
        assert 0.05 < sum(name in relations for relations in related) / len(related) < 0.5
    orders = [record["attributes"]["custom"] for record in records["kobjects"].values()]
    assert {order["statusStr"] for order in orders} == {"paid", "shipped", "returned", "cancelled"}
    assert all(order["totalNum"] > 0 for order in orders)


def test_made_entries_of_the_audit_log_are_about_records_and_never_delete_any():
    for entry in RECORDS["audit_logs"].values():
        attributes = entry["attributes"]
        table = {"company": "companies"}.get(attributes["objectType"]) or (
            attributes["objectType"] + "s"
        )
        assert attributes["objectId"] in RECORDS[table] and table in AUDITED - {"users"}
        assert attributes["eventVerb"] in ("create", "update")
        assert attributes["createdAt"] > time_text(datetime.now(timezone.utc) - timedelta(days=62))


def test_records_can_be_read_changed_added_and_deleted_while_the_mock_runs():
    with mock(RECORDS) as server:
        first, second, third = server.store.listed("customers")[:3]
        server.store.change("customers", first, name="Changed")
        server.store.delete("customers", second)
        server.store.erase("customers", third)
        server.store.put(
            "customers", {"id": "f" * 24, "attributes": {"updatedAt": "2026-01-01T00:00:00.000Z"}}
        )
        assert server.store.records("customers")[first]["attributes"]["name"] == "Changed"
        page = call(server, SEARCH, search_body(includeDeleted=True), pageSize=500, page=2).json()
        by_id = {record["id"]: record["attributes"] for record in page["data"]}
        assert by_id[first]["name"] == "Changed" and by_id[second]["deleted"] is True
        listed = server.store.listed("customers")
        assert first in listed and "f" * 24 in listed
        assert second not in listed and third not in listed
        assert server.requests[-1].path == SEARCH


def test_a_lagging_index_returns_the_previous_state():
    with mock(RECORDS, index_lag_seconds=3600.0) as server:
        changed = server.store.listed("customers")[0]
        server.store.change("customers", changed, name="Changed")
        body = search_body(low=RECORDS["customers"][changed]["attributes"]["updatedAt"])
        body["and"].append(
            {"customer_updated_at": {"lte": list(body["and"][0].values())[0]["gte"]}}
        )
        (shown,) = call(server, SEARCH, body).json()["data"]
        assert shown == RECORDS["customers"][changed]


@pytest.fixture
def clock(monkeypatch):
    """A list with the time, which a test can change."""
    now = [time.time()]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def names_found(server) -> dict:
    page = updated_since(server, "customer", includeDeleted=True).json()
    return {record["id"]: record["attributes"].get("name") for record in page["data"]}


def test_search_sees_a_change_after_the_lag_that_was_in_force_at_its_time(clock):
    records = make_records(customers=5)
    first, second, third = list(records["customers"])[:3]
    with mock(records, index_lag_seconds=3600.0) as server:
        before = names_found(server)
        server.store.change("customers", first, name="One")
        server.behaviour.index_lag_seconds = 60.0
        server.store.change("customers", second, name="Two")
        server.behaviour.index_lag_seconds = 0.0
        server.store.change("customers", third, name="Three")
        assert names_found(server) == {**before, third: "Three"}
        clock[0] += 59
        assert names_found(server) == {**before, third: "Three"}
        clock[0] += 1
        assert names_found(server) == {**before, third: "Three", second: "Two"}
        clock[0] += 3539
        assert names_found(server) == {**before, third: "Three", second: "Two"}
        clock[0] += 1
        assert names_found(server) == {first: "One", second: "Two", third: "Three"} | {
            other: name for other, name in before.items() if other not in (first, second, third)
        }


def test_search_sees_every_state_of_a_record_in_turn_and_never_an_older_one_again(clock):
    records = make_records(customers=5)
    changed = next(iter(records["customers"]))
    with mock(records, index_lag_seconds=100.0) as server:
        before = names_found(server)[changed]
        server.store.change("customers", changed, name="One")
        clock[0] += 50
        server.store.change("customers", changed, name="Two")
        assert names_found(server)[changed] == before
        clock[0] += 50
        assert names_found(server)[changed] == "One"
        server.behaviour.index_lag_seconds = 10.0
        server.store.change("customers", changed, name="Three")
        clock[0] += 10
        assert names_found(server)[changed] == "Three"
        clock[0] += 1000
        assert names_found(server)[changed] == "Three"


def test_search_sees_new_and_erased_records_late_and_settling_ends_the_wait(clock):
    records = make_records(customers=5)
    (new,) = make_records(customers=1, seed=2)["customers"].values()
    erased = next(iter(records["customers"]))
    with mock(records, index_lag_seconds=3600.0) as server:
        before = names_found(server)
        server.store.put("customers", new)
        server.store.erase("customers", erased)
        assert names_found(server) == before
        clock[0] += 3600
        after = names_found(server)
        assert after.keys() == before.keys() - {erased} | {new["id"]}
        server.store.change("customers", new["id"], name="Changed")
        assert names_found(server) == after
        server.store.settle()
        assert names_found(server) == {**after, new["id"]: "Changed"}


def test_the_lag_of_search_follows_the_clock_of_the_mock():
    records = make_records(customers=5)
    changed = next(iter(records["customers"]))
    with mock(records, index_lag_seconds=3600.0) as server:
        server.store.change("customers", changed, name="Changed")
        assert names_found(server)[changed] != "Changed"
        server.behaviour.clock_offset_seconds = 3601.0
        assert names_found(server)[changed] == "Changed"


def test_the_audit_log_shows_an_entry_late_and_in_its_place(clock):
    records = make_records(customers=2, audit_logs=9)
    first, second = records["customers"]
    with mock(records, audit_log_lag_seconds=3600.0, index_lag_seconds=7200.0) as server:
        before = audit_log(server)
        server.store.erase("customers", first)
        clock[0] += 5
        server.behaviour.audit_log_lag_seconds = 0.0
        server.store.erase("customers", second)
        shown = audit_log(server)
        assert [entry["attributes"]["objectId"] for entry in shown[:1]] == [second]
        assert shown[1:] == before
        clock[0] += 3594
        assert audit_log(server) == shown
        clock[0] += 1
        late = audit_log(server)
        assert [entry["attributes"]["objectId"] for entry in late[:2]] == [second, first]
        assert late[2:] == before
        # Search has a lag of its own.
        assert names_found(server).keys() == {first, second}
        server.behaviour.clock_offset_seconds = 7200.0
        assert names_found(server).keys() == set()


def test_entries_of_the_audit_log_expire(clock):
    with mock(make_records(customers=1, audit_logs=40), audit_log_days=30) as server:
        kept = audit_log(server)
        assert 0 < len(kept) < 40 == server.store.count("audit_logs")
        server.store.erase("customers", next(iter(server.store.records("customers"))))
        (new,) = [entry for entry in audit_log(server) if entry not in kept]
        lifetime = [
            datetime.fromisoformat(new["attributes"][n][:-1]) for n in ("createdAt", "expiresAt")
        ]
        assert lifetime[1] - lifetime[0] == timedelta(days=30)
        clock[0] += 30 * 86_400 - 1
        assert audit_log(server) == [new]
        clock[0] += 2
        assert audit_log(server) == []
        server.behaviour.audit_log_days = 365
        assert len(audit_log(server)) == 41


@pytest.mark.parametrize(
    ("kind", "sees"),
    [
        ("429", lambda answer: answer.status_code == 429),
        ("500", lambda answer: answer.json()["errors"][0]["code"] == "error"),
        ("502", lambda answer: answer.status_code == 502 and "<html>" in answer.text),
        ("503", lambda answer: answer.status_code == 503 and answer.content == b""),
        ("truncated", lambda answer: answer.status_code == 200 and not answer.text.endswith("}")),
        ("html", lambda answer: answer.status_code == 200 and "<html>" in answer.text),
        ("timed_out", lambda answer: answer.json()["meta"]["timed_out"] is True),
    ],
)
def test_each_fault_does_what_it_says_as_often_as_requested(kind, sees):
    with mock(RECORDS) as server:
        server.order(Fault(kind, after=1, times=1, path="/messages"))
        assert call(server, "/v1/messages").json()["meta"]["pageSize"] == 100
        assert call(server, "/v1/brands").status_code == 200
        assert sees(call(server, "/v1/messages"))
        assert call(server, "/v1/messages").status_code == 200
        assert [exchange.outcome for exchange in server.exchanges] == ["200", "200", kind, "200"]


@pytest.mark.parametrize("status", [200, 404, 502])
def test_a_proxy_can_answer_with_an_html_page_of_any_status(status):
    with mock(RECORDS) as server:
        server.order(Fault("html", status=status, path="/search"))
        answer = call(server, SEARCH, search_body())
        assert answer.status_code == status and "<html>" in answer.text
        assert answer.headers["Content-Type"] == "text/html"
        assert call(server, "/v1/customers").status_code == 200


@pytest.mark.parametrize("kind", ["429", "500", "502", "503", "html"])
def test_a_fault_can_say_when_to_retry(kind):
    with mock(RECORDS) as server:
        server.order(Fault(kind, times=1, retry_after=60.0))
        assert call(server, "/v1/brands").headers["Retry-After"] == "60"
        assert "Retry-After" not in call(server, "/v1/brands").headers
        server.order(Fault(kind, times=1, retry_after=0.5, headers={"x-ratelimit-reset": "9"}))
        answer = call(server, "/v1/brands")
        assert (answer.headers["Retry-After"], answer.headers["x-ratelimit-reset"]) == ("0.5", "9")
        server.order(Fault(kind))
        assert "Retry-After" not in call(server, "/v1/brands").headers


def test_a_fault_counts_the_requests_that_it_affected():
    with mock(RECORDS) as server:
        brands, never = Fault("500", path="/brands", times=2), Fault("500", path="/nowhere")
        server.order(brands)
        server.order(never)
        for _ in range(3):
            call(server, "/v1/brands")
    assert (brands.affected, never.affected) == (2, 0)


@pytest.mark.parametrize("kind", ["reset", "timeout"])
def test_a_connection_can_be_broken_or_left_hanging(kind):
    with mock(RECORDS) as server:
        server.order(Fault(kind, times=1, seconds=0.01))
        with pytest.raises(requests.ConnectionError):
            call(server, "/v1/messages")
        assert call(server, "/v1/messages").status_code == 200


def test_latency_delays_a_response():
    with mock(RECORDS) as server:
        pauses = []
        server.pause = pauses.append
        server.order(Fault("latency", seconds=0.2))
        assert call(server, "/v1/brands").status_code == 200
    assert pauses == [0.2]


def test_a_fault_with_a_rate_affects_the_same_requests_for_the_same_seed():
    def outcomes():
        with mock(RECORDS) as server:
            server.order(Fault("500", rate=0.3))
            return [call(server, "/v1/brands").status_code for _ in range(60)]

    first = outcomes()
    assert 5 < first.count(500) < 35 and first == outcomes()


def test_an_unknown_fault_is_an_error():
    with pytest.raises(ValueError, match="a fault is one of latency, 429"):
        Fault("earthquake")


def test_responses_are_compressed_for_clients_that_accept_it():
    with MockKustomer(RECORDS) as server:
        answer = call(server, "/v1/messages")
        assert answer.headers["Content-Encoding"] == "gzip"
        assert int(answer.headers["Content-Length"]) < len(answer.content) / 3
        assert server.exchanges[0].body_bytes == int(answer.headers["Content-Length"])


def test_a_port_in_use_is_a_clear_error():
    with MockKustomer() as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(PortTakenError, match=f"Port {port} of 127.0.0.1 is in use"):
            MockKustomer(port=port)


def test_the_mock_listens_on_one_loopback_address_only(server):
    port = int(server.url.rpartition(":")[2])
    # A server that listens on all addresses would also accept this connection.
    with socket.socket() as probe, pytest.raises(OSError):
        probe.settimeout(5)
        probe.connect(("127.0.0.2", port))
    with socket.socket() as probe:
        probe.connect(("127.0.0.1", port))


def run_mock(*arguments: str, **options):
    command = [sys.executable, "-m", "mock_server", "--customers", "3", "--companies", "2"]
    command += ["--brands", "1", "--messages", "4", *arguments]
    return subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, check=False, **options
    )


def test_a_command_runs_alongside_the_mock_and_sets_its_exit_code(tmp_path):
    script = (
        "import json, sys, urllib.request as u\n"
        "mock = json.load(open(sys.argv[1]))\n"
        "request = u.Request(mock['base_url'] + '/v1/messages')\n"
        "request.add_header('Authorization', 'Bearer ' + mock['api_key'])\n"
        "sys.exit(10 + len(json.load(u.urlopen(request))['data']))"
    )
    file = str(tmp_path / "mock.json")
    run = run_mock("--configuration", file, "--", sys.executable, "-c", script, file)
    assert (run.returncode, run.stderr) == (14, "")
    assert run_mock("--", "no-such-command").returncode == 127
    killed = run_mock("--", sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    assert killed.returncode == 128 + 9


def test_a_configuration_for_the_connector_can_be_written(tmp_path):
    file = tmp_path / "configuration.json"
    run = run_mock("--configuration", str(file), "--", sys.executable, "-c", "")
    assert run.returncode == 0
    configuration = json.loads(file.read_text())
    assert configuration["base_url"].startswith("http://127.0.0.1:")


def test_faults_and_behaviour_can_be_set_on_the_command_line(tmp_path):
    script = (
        "import json, sys, urllib.request as u, urllib.error\n"
        "def status(path):\n"
        "    request = u.Request(json.load(open(sys.argv[1]))['base_url'] + path)\n"
        "    request.add_header('Authorization', 'Bearer k')\n"
        "    try: return u.urlopen(request).status\n"
        "    except urllib.error.HTTPError as error: return error.code\n"
        "paths = 'brands brands companies messages?pageSize=101 tags'\n"
        "print([status('/v1/' + path) for path in paths.split()])"
    )
    orders = ["--api-key", "k", "--fault", "503:times=1,path=/brands", "--allowed-page-sizes", "9"]
    orders += ["--fault", "html:status=404,path=/tags,retry_after=5"]
    orders += ["--without-role", "org.permission.company.read", "--missing-role-status", "401"]
    file = str(tmp_path / "mock.json")
    orders += ["--configuration", file]
    run = run_mock(*orders, "--", sys.executable, "-c", script, file)
    assert (run.stdout.strip(), run.stderr) == ("[503, 200, 401, 400, 404]", "")


def test_a_fault_that_affected_no_request_is_reported_when_the_command_ends():
    faults = ["--fault", "503:path=/nowhere", "--fault", "reset:times=3,path=/search"]
    run = run_mock(*faults, "--", sys.executable, "-c", "import sys; sys.exit(7)")
    assert run.returncode == 7 and run.stderr.splitlines() == [
        "The fault 503:path=/nowhere affected no request.",
        "The fault reset:times=3,path=/search affected no request.",
    ]


def test_without_its_packages_the_mock_says_what_to_install():
    # The option -S hides all installed packages.
    command = [sys.executable, "-S", "-m", "mock_server"]
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (
        1,
        "",
        "The mock needs packages that this Python does not have: faker, orjson. Activate the "
        "environment that has them, or install them with: pip install -r requirements-dev.txt\n",
    )


def test_every_behaviour_has_an_option_that_the_help_explains():
    text = run_mock("--help").stdout
    for switch in dataclasses.fields(Behaviour):
        option = f"--{switch.name.replace('_', '-')}"
        assert option in text or switch.name == "roles"
        assert f"`{switch.name}`" in Behaviour.__doc__
    assert "reject any other pageSize" in text


def test_lists_and_search_can_be_configured_on_the_command_line(tmp_path):
    script = (
        "import json, sys, urllib.request as u\n"
        "def page(path, body=None):\n"
        "    request = u.Request(json.load(open(sys.argv[1]))['base_url'] + path, body)\n"
        "    request.add_header('Authorization', 'Bearer k')\n"
        "    return json.load(u.urlopen(request))\n"
        "listed, found = page('/v1/messages'), page('/v1/customers/search', b'{}')\n"
        "print(sorted(listed), len(listed['data']), len(found['data']), found['meta']['total'])"
    )
    switches = ["--api-key", "k", "--no-shows-links", "--list-window", "2", "--replicas", "2"]
    switches += ["--sort-contexts", "", "--allowed-page-sizes", "1,50", "--page-size-limit", "1"]
    file = str(tmp_path / "mock.json")
    switches += ["--configuration", file]
    run = run_mock(*switches, "--", sys.executable, "-c", script, file)
    assert run.stdout.strip() == "['data', 'meta'] 1 1 3", run.stderr


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--fault", "earthquake"], "a fault is one of latency"),
        (
            ["--fault", "503:colour=red"],
            "a fault takes rate, after, times, path, seconds, status, retry_after",
        ),
        (["--fault", "503:rate=5"], "rate is the share of requests affected, 0 to 1"),
        (["--fault", "503:times=few"], "times is the most requests affected"),
        (["--fault", "latency:seconds=-1"], "seconds is the duration, 0 or more"),
        (["--fault", "html:status=99"], "status is the status of html, 200 to 599"),
        (["--fault", "503:retry_after=soon"], "retry_after is the seconds in the header"),
        (["--list-order", "all"], "invalid choice: 'all'"),
        (["--sort-contexts", "customer,all"], "all: choose from customer, message, company"),
        (["--list-links-on", "never"], "invalid choice: 'never'"),
        (["--audit-log-order", "random"], "invalid choice: 'random'"),
        (["--audit-log-days", "0"], "'0' is not a number of 1 to 3650"),
        (["--audit-logs", "some"], "'some' is not a number of 0 or more"),
        (["--replicas", "0"], "'0' is not a number of 1 or more"),
        (["--allowed-page-sizes", "many"], "'many' is not a number of 1 or more"),
        (["--port", "70000"], "'70000' is not a number of 0 to 65535"),
        (["--messages", "-4"], "'-4' is not a number of 0 or more"),
        (["--org-limit", "0"], "'0' is not a number of 1 or more"),
        (["--window-seconds", "soon"], "'soon' is not a number of 0 or more"),
        (["--list-window-status", "200"], "'200' is not a number of 400 to 599"),
        (["--configuration", "no/such/folder.json"], "there is no folder no/such"),
        (["--days", "1000000000"], "'1000000000' is not a number of 1 to 3650"),
    ],
)
def test_an_invalid_option_is_an_error_that_says_what_is_allowed(wrong, says, capsys):
    with pytest.raises(SystemExit) as ended:
        command_line(wrong)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_a_file_that_the_mock_did_not_write_is_never_overwritten(tmp_path, capsys):
    for place, text in enumerate(
        [
            '{"api_key": "a real key", "base_url": "https://api.kustomerapp.com"}',
            '{"api_key": "a real key"}',
            '{"api_key": "k", "base_url": "http://127.0.0.1:1", "retry_attempts": "5"}',
            "[]",
            "notes",
            "",
        ]
    ):
        file = tmp_path / f"{place}.json"
        file.write_text(text)
        with pytest.raises(SystemExit) as ended:
            command_line(["--configuration", str(file), "--", sys.executable, "-c", ""])
        assert ended.value.code == 2 and file.read_text() == text
        error = capsys.readouterr().err
        assert "exists and was not written by the mock; choose another name" in error


def test_a_file_that_cannot_be_written_is_an_error_without_a_traceback(tmp_path):
    file = tmp_path / "mock.json"
    file.symlink_to(tmp_path / "gone" / "mock.json")
    run = run_mock("--configuration", str(file), "--", sys.executable, "-c", "")
    assert (run.returncode, run.stderr) == (1, f"{file}: No such file or directory\n")


def test_a_configuration_that_the_mock_wrote_can_be_overwritten(tmp_path):
    file = tmp_path / "mock.json"
    for key in ("first", "second"):
        command = ["--", sys.executable, "-c", ""]
        run = run_mock("--configuration", str(file), "--api-key", key, *command)
        assert run.returncode == 0 and json.loads(file.read_text())["api_key"] == key


def test_the_help_explains_every_fault_and_its_parts():
    text = run_mock("--help").stdout
    faults = text.partition("faults (KIND):")[2]
    for word, meaning in {**KINDS, **{name: part[1] for name, part in PARTS.items()}}.items():
        assert re.search(rf"^  {word} +{re.escape(meaning)}$", faults, re.M)


def test_a_port_in_use_on_the_command_line_is_an_error_without_a_traceback():
    with MockKustomer() as server:
        port = server.url.rpartition(":")[2]
        run = run_mock("--port", port)
    assert run.returncode == 1
    assert (
        run.stderr.strip()
        == f"Port {port} of 127.0.0.1 is in use; choose another, or 0 for any free one."
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_without_a_command_the_mock_prints_its_address_and_counts_and_stops_on_a_signal(number):
    command = [sys.executable, "-m", "mock_server", "--customers", "3", "--companies", "2"]
    command += ["--brands", "1", "--messages", "4", "--notes", "0"]
    command += ["--fault", "503:path=/nowhere"]
    process = subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        url, key, counts = re.match(
            r"Kustomer mock at (\S+) with API key (\S+): (.*)\.$", line
        ).groups()
        assert counts == (
            "3 customers, 2 companies, 1 brands, 4 messages, 1 conversations, 0 notes, 12 users, "
            "4 teams, 8 tags, 200 kobjects, 3 klasses, 10 shortcuts, 500 audit_logs"
        )
        headers = {"Authorization": f"Bearer {key}"}
        answer = requests.get(url + "/v1/messages", headers=headers, timeout=10)
        assert len(answer.json()["data"]) == 4
        assert process.stdout.readline() == "Press Ctrl-C to stop.\n"
        process.send_signal(number)
        rest, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    expected = "Stopped." if number == signal.SIGINT else ""
    assert (process.returncode, rest.strip()) == (0, expected)
    assert errors == "The fault 503:path=/nowhere affected no request.\n"


def test_behaviour_has_the_documented_limits_by_default():
    rules = Behaviour()
    assert (rules.org_limit, rules.search_limit, rules.window_seconds) == (1000, 100, 60.0)


def test_lists_of_messages_and_conversations_can_be_reversed():
    with mock(RECORDS) as server:
        for table in ("messages", "conversations"):
            found = call(server, f"/v1/{table}", sort="desc", pageSize=50).json()["data"]
            ids = [record["id"] for record in found]
            assert ids == sorted(server.store.listed(table), reverse=True)[:50]

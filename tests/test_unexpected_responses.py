"""Undocumented or invalid responses lead to correct rows or to a clear error."""

import copy
import json
from datetime import datetime, timedelta, timezone

import orjson
import pytest

import connector
from mock_server import Fault, make_records, server as http
from mock_server.api import Answer
from tests.expected import assert_mirrors
from tests.support import TABLES, mock, searches, sync

RECORDS = make_records(customers=60, companies=30, brands=3, messages=90, same_moment=0)
for _customer in RECORDS["customers"].values():
    _customer["attributes"].pop("deleted", None)


def rewriting(change, of_search: bool = True, of_lists: bool = True):
    """Return a `rewrite` that replaces each page of records with the result of `change`."""

    def rewrite(request, answer):
        applies = of_search if request.method == "POST" else of_lists
        if answer.status != 200 or request.path.endswith("current") or not applies:
            return answer
        return Answer(200, change(copy.deepcopy(answer.payload)), answer.headers)

    return rewrite


def with_data(data):
    return lambda payload: {**payload, "data": data}


def each_record(change):
    def change_all(payload):
        payload["data"] = [change(record) for record in payload["data"]]
        return payload

    return change_all


WRONG_SHAPES = [
    with_data(None),
    with_data({"id": "1"}),
    with_data("text"),
    lambda payload: {},
    lambda payload: {"errors": [{"title": "odd"}]},
]


@pytest.mark.parametrize("change", WRONG_SHAPES)
def test_a_response_whose_data_is_not_a_list_fails_its_table_and_no_list_stands_in(
    change, destination
):
    with mock(RECORDS) as server:
        server.rewrite = rewriting(change)
        with pytest.raises(connector.KustomerError) as error:
            sync(server, destination)
        assert len(server.requests) == 5
    for table in TABLES:
        path = f"/v1/{table}" if table in ("companies", "brands") else "/v1/customers/search"
        assert f"{table}: {path} returned no list of records" in str(error.value)
    assert not destination.states


@pytest.mark.parametrize("payload", [None, [], "text", 5])
def test_json_that_is_not_an_object_is_an_error_after_all_retries(payload, destination, waits):
    with mock(RECORDS) as server:
        server.rewrite = lambda request, answer: answer._replace(payload=payload)
        with pytest.raises(connector.KustomerError, match="failed 4 times.*status 200 without"):
            sync(server, destination)
    assert len(waits) == 3


@pytest.mark.parametrize("odd", [None, 5, "text", [], {}, {"attributes": {}}, {"id": None}])
def test_an_invalid_record_is_skipped_and_all_others_arrive(odd, destination):
    def add_odd(payload):
        payload["data"].insert(1, odd)
        return payload

    with mock(RECORDS) as server:
        server.rewrite = rewriting(add_odd)
        sync(server, destination)
        assert_mirrors(destination, server)
    assert "brands: skipped 1 record without an id." in destination.warnings


def test_numeric_ids_become_strings(destination):
    numbers = {record_id: 1000 + n for n, record_id in enumerate(RECORDS["customers"])}

    def renumber(payload):
        for record in payload["data"]:
            record["id"] = numbers.get(record["id"], record["id"])
        return payload

    with mock(RECORDS) as server:
        server.rewrite = rewriting(renumber)
        sync(server, destination)
    assert destination.rows["customers"].keys() == set(map(str, numbers.values()))


@pytest.mark.parametrize("broken", ["", "yesterday", None, 5, {}, "2026-13-01T00:00:00.000Z"])
@pytest.mark.parametrize("share", [1, 7])
def test_records_with_an_invalid_updated_at_arrive(broken, share, destination):
    def break_some(record):
        if int(record["id"][:8], 16) % share == 0:
            record["attributes"]["updatedAt"] = broken
        return record

    with mock(RECORDS) as server:
        server.rewrite = rewriting(each_record(break_some))
        sync(server, destination)
        for table in TABLES:
            assert destination.live(table).keys() == set(server.store.listed(table))
    row = next(iter(row for row in destination.rows["brands"].values()))
    assert share > 1 or row["updated_at"] is None


def test_records_without_updated_at_arrive(destination):
    def drop(record):
        del record["attributes"]["updatedAt"]
        return record

    with mock(RECORDS) as server:
        server.rewrite = rewriting(each_record(drop))
        sync(server, destination)
        for table in TABLES:
            assert destination.live(table).keys() == set(server.store.listed(table))


def test_records_whose_attributes_are_null_arrive(destination):
    def empty(record):
        return {**record, "attributes": None}

    with mock(RECORDS) as server:
        server.rewrite = rewriting(each_record(empty))
        sync(server, destination)
        for table in TABLES:
            assert destination.live(table).keys() == set(server.store.listed(table))


def test_records_without_an_attributes_object_are_read_like_any_other(destination):
    def flatten(record):
        return {**record.pop("attributes"), **record}

    with mock(RECORDS) as server:
        server.rewrite = rewriting(each_record(flatten))
        sync(server, destination)
        assert_mirrors(destination, server)
    assert not destination.warnings


def test_the_last_version_of_a_record_on_a_page_decides_whether_its_row_is_deleted(destination):
    record_id = next(iter(RECORDS["customers"]))

    def dead_then_alive(payload):
        for record in list(payload["data"]):
            if record["id"] == record_id:
                dead = copy.deepcopy(record)
                dead["attributes"]["deleted"] = True
                payload["data"].insert(payload["data"].index(record), dead)
                break
        return payload

    with mock(RECORDS) as server:
        server.rewrite = rewriting(dead_then_alive)
        sync(server, destination)
    assert record_id not in destination.deleted["customers"]


def test_a_search_that_always_links_to_a_next_page_ends_with_its_last_record(destination):
    def never_end(payload):
        payload["links"]["next"] = "/v1/customers/search?page=2"
        return payload

    with mock(RECORDS) as server:
        server.rewrite = rewriting(never_end, of_lists=False)
        sync(server, destination)
        assert_mirrors(destination, server)
        # Each of the two tables has a few slices of two pages, the second of which is empty.
        assert len(searches(server)) <= 24
    assert not destination.warnings


@pytest.mark.parametrize("total", [10**9, -5, "many", None, True, 0])
def test_no_record_is_missed_if_the_total_is_wrong(total, destination):
    def miscount(payload):
        payload["meta"]["total"] = total
        return payload

    with mock(RECORDS) as server:
        server.rewrite = rewriting(miscount)
        sync(server, destination, max_records_per_page="20")
        assert_mirrors(destination, server)


@pytest.mark.parametrize("meta", [None, [], "x", {"pageSize": 0}, {"pageSize": "5"}])
def test_no_record_is_missed_if_meta_is_invalid(meta, destination):
    with mock(RECORDS) as server:
        server.rewrite = rewriting(lambda payload: {**payload, "meta": meta})
        sync(server, destination, max_records_per_page="20")
        assert_mirrors(destination, server)


@pytest.mark.parametrize("links", [None, [], "x", {}, {"next": ""}])
def test_no_record_is_missed_if_links_are_invalid(links, destination):
    with mock(RECORDS) as server:
        # With an empty next link, only a total shows that there are more pages. Most lists have
        # no total.
        server.rewrite = rewriting(
            lambda payload: {**payload, "links": links}, of_lists=links != {"next": ""}
        )
        sync(server, destination, max_records_per_page="20")
        assert_mirrors(destination, server)


def test_records_updated_in_the_future_arrive_and_their_time_is_not_saved(destination):
    ahead = datetime.now(timezone.utc) + timedelta(days=365)
    with mock(RECORDS) as server:
        for record_id in server.store.listed("messages")[:5]:
            server.store.change(
                "messages", record_id, updatedAt=ahead.strftime("%Y-%m-%dT%H:%M:%S.000Z")
            )
        sync(server, destination)
        assert_mirrors(destination, server)
    assert destination.state["last_sync_time"]["messages"] < ahead.strftime("%Y-%m-%d")


def test_an_html_page_is_an_error_after_all_retries(destination, waits):
    with mock(RECORDS) as server:
        server.order(Fault("html"))
        with pytest.raises(connector.KustomerError, match="GET /v1/users/current failed 4 times"):
            sync(server, destination)
    assert len(waits) == 3


@pytest.mark.parametrize("body", [b"[" * 100_000, b"9" * 10_000, b"", b"\x1f\x8b\x00"])
def test_a_response_that_is_not_json_is_an_error_after_all_retries(body, destination, monkeypatch):
    with mock(RECORDS) as server:
        monkeypatch.setattr(http, "_HTML", body)
        server.order(Fault("html"))
        with pytest.raises(connector.KustomerError, match="status 200 without"):
            sync(server, destination)


@pytest.mark.parametrize("incremental", ["true", "false"])
def test_one_bad_byte_or_number_costs_its_value_and_not_its_table(incremental, destination):
    bad = {
        # Sent as they are.
        "name": orjson.Fragment(b'"caf\xe9"'),
        "verified": orjson.Fragment(b"NaN"),
        "custom": {
            "scoreNum": orjson.Fragment(b"NaN"),
            "textStr": orjson.Fragment(b'"\xff"'),
            "listed": [orjson.Fragment(b"Infinity"), orjson.Fragment(b"-Infinity"), 1],
        },
    }
    first = next(iter(RECORDS["customers"]))

    def spoil(record):
        if record["id"] == first:
            record["attributes"].update(bad)
        return record

    with mock(RECORDS) as server:
        server.rewrite = rewriting(each_record(spoil))
        sync(server, destination, enable_incremental_sync=incremental)
    assert destination.live("customers").keys() == RECORDS["customers"].keys()
    row = destination.rows["customers"][first]
    assert row["name"] == "caf\ufffd" and row["verified"] is None
    custom = {"scoreNum": None, "textStr": "\ufffd", "listed": [None, None, 1]}
    assert json.loads(row["custom"]) == custom
    assert "NaN" not in row["custom"] and "Infinity" not in row["custom"]

"""Mapping records to rows."""

import pytest

import connector
from tests.support import COLUMNS, mock, sync

MAPPERS = {
    "customers": connector.__map_customer_data,
    "companies": connector.__map_company_data,
    "brands": connector.__map_brand_data,
    "messages": connector.__map_message_data,
}


def row_of(table: str, attributes: dict, relationships: dict = None) -> dict:
    record = {"id": "1", "attributes": attributes, "relationships": relationships or {}}
    return MAPPERS[table](record)


@pytest.mark.parametrize("table", MAPPERS)
def test_a_row_has_exactly_the_declared_columns(table):
    assert list(MAPPERS[table]({"id": "1"})) == list(COLUMNS[table])


@pytest.mark.parametrize("table", MAPPERS)
@pytest.mark.parametrize(
    "record", [{"id": "1"}, {"id": "1", "attributes": None}, {"id": "1", "attributes": {}}]
)
def test_missing_values_are_null(table, record):
    row = MAPPERS[table](record)
    assert row.pop("id") == "1"
    assert set(row.values()) == {None}


@pytest.mark.parametrize("table", MAPPERS)
@pytest.mark.parametrize("nothing", [None, [], {}])
def test_empty_values_of_any_type_are_null(table, nothing):
    names = (
        "name emails phones tags custom deleted verified urls domains default meta body".split()
    )
    row = row_of(table, dict.fromkeys([*names, "createdAt", "updatedAt"], nothing))
    assert set(row.values()) == {"1", None}


@pytest.mark.parametrize("table", MAPPERS)
def test_a_flat_record_is_read_like_one_with_attributes(table):
    attributes = {"name": "A", "updatedAt": "2026-01-02T03:04:05.678Z", "channel": "chat"}
    assert MAPPERS[table]({"id": "1", **attributes}) == row_of(table, attributes)


def test_the_email_of_a_customer_is_the_first_verified_one_or_else_the_first():
    emails = [{"email": "a@x", "verified": False}, {"email": "b@x", "verified": True}]
    assert row_of("customers", {"emails": emails})["email"] == "b@x"
    assert row_of("customers", {"emails": emails[:1]})["email"] == "a@x"
    assert row_of("customers", {"emails": [None, {}, {"email": "c@x"}]})["email"] == "c@x"
    assert row_of("customers", {"emails": ["d@x"]})["email"] == "d@x"


def test_a_customer_without_a_name_has_the_display_name_instead():
    assert row_of("customers", {"name": None, "displayName": "Dee"})["name"] == "Dee"
    assert row_of("customers", {"name": "Al", "displayName": "Dee"})["name"] == "Al"


def test_external_ids_are_read_from_each_of_their_attributes():
    listed = {"externalIds": [{"externalId": "b"}]}
    assert row_of("customers", {"externalId": "a", **listed})["external_id"] == "a"
    assert row_of("customers", listed)["external_id"] == "b"
    assert row_of("companies", {"extenalId": "c"})["external_id"] == "c"
    assert row_of("companies", {"externalId": "d"})["external_id"] == "d"


def test_the_website_of_a_company_is_its_first_website_url_or_else_its_first_url():
    urls = [{"url": "https://blog", "type": "blog"}, {"url": "https://site", "type": "website"}]
    assert row_of("companies", {"urls": urls})["website"] == "https://site"
    assert row_of("companies", {"urls": urls[:1]})["website"] == "https://blog"


def test_domains_are_read_from_objects_and_strings():
    row = row_of("companies", {"domains": [{"domain": "a.de"}, "b.de", {}, None]})
    assert row["domains"] == '["a.de","b.de"]'


def test_the_body_of_a_message_is_its_body_or_else_its_preview():
    assert row_of("messages", {"body": "whole", "preview": "who"})["body"] == "whole"
    assert row_of("messages", {"preview": "who"})["body"] == "who"


def test_relationships_are_read_regardless_of_their_type():
    relationships = {
        "customer": {"data": {"type": "customers", "id": "c1"}},
        "conversation": {"data": None},
    }
    row = row_of("messages", {}, relationships)
    assert (row["customer_id"], row["conversation_id"]) == ("c1", None)


@pytest.mark.parametrize("broken", [None, [], "x", {"customer": []}, {"customer": {"data": "c"}}])
def test_broken_relationships_are_null(broken):
    record = {"id": "1", "attributes": {}, "relationships": broken}
    assert MAPPERS["messages"](record)["customer_id"] is None


@pytest.mark.parametrize("to", [["a@x"], {"email": "a@x"}, "a@x"])
def test_message_meta_is_json_for_each_type_of_recipient(to):
    text = connector.json.dumps({"to": to}, separators=(",", ":"))
    assert row_of("messages", {"meta": {"to": to}})["meta"] == text


def test_json_keeps_letters_of_all_scripts():
    assert row_of("messages", {"custom": {"k": "名前 😀"}})["custom"] == '{"k":"名前 😀"}'


@pytest.mark.parametrize(
    ("value", "text"), [(5, "5"), (1.5, "1.5"), (True, "true"), ({"a": [1]}, '{"a":[1]}')]
)
def test_values_other_than_strings_become_json_in_a_string_column(value, text):
    assert row_of("messages", {"subject": value})["subject"] == text


def test_half_a_surrogate_pair_becomes_a_replacement_character():
    assert row_of("messages", {"body": "a\ud83db"})["body"] == "a\ufffdb"
    assert row_of("messages", {"meta": {"x": "\udc00"}})["meta"] == '{"x":"\ufffd"}'
    record = {"id": "a\ud800", "relationships": {"customer": {"data": {"id": "b\ud800"}}}}
    row = MAPPERS["messages"](record)
    assert (row["id"], row["customer_id"]) == ("a\ufffd", "b\ufffd")


@pytest.mark.parametrize(
    ("value", "flag"),
    [(True, True), (False, False), ("true", True), ("False", False), ("maybe", None), (1, None)],
)
def test_booleans_are_true_false_or_null(value, flag):
    assert row_of("customers", {"verified": value})["verified"] is flag


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("2018-02-12T22:56:20.546Z", "2018-02-12T22:56:20.546Z"),
        ("2018-02-12T22:56:20Z", "2018-02-12T22:56:20.000Z"),
        ("2018-02-12T22:56:20.546123Z", "2018-02-12T22:56:20.546123Z"),
        ("2018-02-13T04:26:20.546+05:30", "2018-02-12T22:56:20.546Z"),
        ("2018-02-12 22:56:20", "2018-02-12T22:56:20.000Z"),
    ],
)
def test_times_become_utc(value, text):
    assert row_of("messages", {"createdAt": value})["created_at"] == text


@pytest.mark.parametrize(
    "value",
    [
        "",
        "yesterday",
        "2018-02-30T22:56:20.546Z",
        "2018-02-12T24:56:20.546Z",
        "٢٠١٨-02-12T22:56:20.546Z",
        "0001-01-01T00:00:00.000+05:00",
        1518476180546,
        {"at": 1},
    ],
)
def test_an_invalid_time_is_null(value):
    assert row_of("messages", {"createdAt": value})["created_at"] is None


def test_unreadable_times_and_records_without_an_id_are_counted(destination, capsys):
    attributes = {"updatedAt": "2026-11-22T00:00:00.000Z", "sentAt": "soon", "name": "A"}
    with mock({}) as server:

        def one_good_one_without_id(request, answer):
            if request.path.endswith(("/brands", "/search")):
                records = [{"id": 7, "attributes": attributes}, {"attributes": attributes}, None]
                of_search = request.path.endswith("/search")
                answer.payload["data"] = records[: 2 if of_search else 3]
            return answer

        server.rewrite = one_good_one_without_id
        sync(server, destination)
    assert destination.rows["brands"].keys() == {"7"}
    assert "brands: skipped 2 records without an id." in destination.warnings
    assert "messages: skipped 1 record without an id." in destination.warnings
    assert "1 unreadable value set to NULL" in capsys.readouterr().out


@pytest.mark.parametrize("table", MAPPERS)
def test_an_empty_string_is_null(table):
    names = "name displayName channel body preview subject status custom iconUrl default deleted"
    row = row_of(table, dict.fromkeys([*names.split(), "createdAt", "externalId"], ""))
    assert set(row.values()) == {"1", None}


def test_an_empty_string_does_not_hide_the_next_source():
    assert row_of("customers", {"name": "", "displayName": "Dee"})["name"] == "Dee"
    assert row_of("messages", {"body": "", "preview": "who"})["body"] == "who"


def test_without_relationships_references_are_read_from_attributes():
    row = MAPPERS["messages"]({"id": "1", "conversationId": "c", "customerId": "d"})
    assert (row["conversation_id"], row["customer_id"]) == ("c", "d")
    assert MAPPERS["customers"]({"id": "1", "companyId": "e"})["company_id"] == "e"
    assert row_of("customers", {"company": "f"})["company_id"] == "f"
    assert row_of("customers", {"company": {"odd": 1}})["company_id"] is None


def test_a_relationship_takes_precedence_over_an_attribute():
    relationships = {"conversation": {"data": {"id": "a"}}, "customer": {"links": {"self": "x"}}}
    row = row_of("messages", {"conversationId": "b", "customerId": "c"}, relationships)
    assert (row["conversation_id"], row["customer_id"]) == ("a", "c")


def test_a_message_without_a_subject_has_the_subject_in_meta():
    assert row_of("messages", {"meta": {"subject": "Hello"}})["subject"] == "Hello"
    assert row_of("messages", {"subject": "Yes", "meta": {"subject": "No"}})["subject"] == "Yes"
    assert row_of("messages", {"meta": ["x"]})["subject"] is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("2018-02-12T22:56Z", "2018-02-12T22:56:00.000Z"),
        ("2018-02-12 22:56", "2018-02-12T22:56:00.000Z"),
    ],
)
def test_times_without_seconds_are_read(value, text):
    assert row_of("messages", {"sentAt": value})["sent_at"] == text

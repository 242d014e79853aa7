"""Valid configurations, and the error messages for invalid ones."""

import json
from pathlib import Path

import pytest

import connector
from tests.support import mock, sync

PROJECT = Path(__file__).resolve().parent.parent
KEY = "eyJhbGciOiJIUzI1NiJ9.key"


def settings(**given):
    return connector.validate_configuration({"api_key": KEY, **given})


def message_of(**given) -> str:
    with pytest.raises(ValueError) as error:
        settings(**given)
    return str(error.value)


def test_every_setting_except_the_key_has_its_documented_default():
    assert settings() == connector.Settings(
        api_key=KEY,
        sync_frequency_hours=None,
        initial_sync_days=90,
        max_records_per_page=500,
        request_timeout_seconds=30,
        retry_attempts=3,
        enable_incremental_sync=True,
        enable_debug_logging=False,
        base_url="https://api.kustomerapp.com",
        additional_tables=(),
        api_utilization_percentage=90,
    )


def test_the_template_is_a_valid_configuration_except_for_the_api_key():
    template = json.loads((PROJECT / "configuration.json").read_text())
    names = {setting.name for setting in connector.SETTINGS}
    assert template.keys() == names - {
        "base_url",
        "additional_tables",
        "api_utilization_percentage",
    }
    with pytest.raises(ValueError, match="^The configuration is invalid. api_key: is required"):
        connector.validate_configuration(template)
    assert connector.validate_configuration({**template, "api_key": KEY}) == settings()


@pytest.mark.parametrize("blank", ["", "  ", "<PLACEHOLDER>"])
def test_a_blank_value_or_a_placeholder_counts_as_not_set(blank):
    names = [setting.name for setting in connector.SETTINGS if setting.name != "api_key"]
    assert settings(**dict.fromkeys(names, blank)) == settings()


@pytest.mark.parametrize("blank", ["", "  ", "<YOUR_KUSTOMER_API_KEY>"])
def test_a_blank_or_placeholder_key_is_rejected(blank):
    assert "api_key: is required" in message_of(api_key=blank)


@pytest.mark.parametrize(
    "key", [" abc", "abc\n", "\tabc\r\n", "Bearer abc", "  Bearer   abc ", "abc\u00a0"]
)
def test_blanks_line_breaks_and_the_word_bearer_around_a_key_are_dropped(key):
    assert settings(api_key=key).api_key == "abc"


@pytest.mark.parametrize("key", ["a b", "abc\ndef", "abc\x00", "schlüssel", '"abc"', "'abc'"])
def test_a_key_with_spaces_quotation_marks_or_control_characters_is_rejected_and_not_shown(key):
    message = message_of(api_key=key)
    assert "api_key: must not contain spaces, quotation marks, line breaks" in message
    assert "abc" not in message and "schl" not in message


def test_blanks_and_line_breaks_around_any_setting_are_dropped():
    given = {
        "base_url": "acme",
        "additional_tables": "tags, users",
        "initial_sync_days": "7",
        "sync_frequency_hours": "6",
        "max_records_per_page": "50",
        "api_utilization_percentage": "70",
        "request_timeout_seconds": "9",
        "retry_attempts": "2",
        "enable_incremental_sync": "no",
        "enable_debug_logging": "yes",
    }
    assert settings(**{n: f" \t{v}\r\n" for n, v in given.items()}) == settings(**given)
    assert given.keys() | {"api_key"} == {setting.name for setting in connector.SETTINGS}


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("sync_frequency_hours", 1, 168),
        ("initial_sync_days", 1, 365),
        ("max_records_per_page", 1, 1000),
        ("request_timeout_seconds", 1, 300),
        ("retry_attempts", 0, 10),
    ],
)
def test_numbers_are_accepted_only_within_their_range(name, lowest, highest):
    assert getattr(settings(**{name: str(lowest)}), name) == lowest
    assert getattr(settings(**{name: f" {highest} "}), name) == highest
    assert getattr(settings(**{name: f"\x1c{highest}\n"}), name) == highest
    for wrong in (str(lowest - 1), str(highest + 1), "1.5", "ten", "1_0", "٣", "9" * 5000):
        message = message_of(**{name: wrong})
        assert f" must be a whole number from {lowest} to {highest}." in message
        assert f"{name}: {wrong!r}" in message or f"{name}: a value of 5000 char" in message
        assert len(message) < 200


@pytest.mark.parametrize("name", ["enable_incremental_sync", "enable_debug_logging"])
def test_booleans_are_accepted_in_upper_and_lower_case(name):
    for word, switch in (("TRUE", True), ("yes", True), ("On", True), ("1", True)):
        assert getattr(settings(**{name: word}), name) is switch
    for word in ("false", "No", "off", "0", " FALSE "):
        assert getattr(settings(**{name: word}), name) is False
    assert f"{name}: 'perhaps' must be true or false" in message_of(**{name: "perhaps"})


def test_one_error_names_all_invalid_settings():
    message = message_of(api_key="", initial_sync_days="0", retry_attempts="x", base_url="ftp://a")
    for name in ("api_key", "initial_sync_days", "retry_attempts", "base_url"):
        assert f"{name}: " in message


def test_a_key_pasted_into_another_setting_is_not_shown():
    assert KEY not in message_of(initial_sync_days=KEY)
    assert "secret" not in message_of(api_key="secret", retry_attempts="my secret")
    assert "secret" not in message_of(api_key=" Bearer secret\n", retry_attempts="secret")
    assert "secret" not in message_of(base_url="https://user:secret@evil.example")


@pytest.mark.parametrize("wrong", [["x"], {"a": "b"}, 5, True, 1.5])
def test_a_value_that_is_not_a_string_is_rejected(wrong):
    for setting in connector.SETTINGS:
        message = message_of(**{setting.name: wrong})
        assert f"{setting.name}: " in message
        assert "must be a JSON string, in double quotes." in message
        assert "'" not in message


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://api.prod2.kustomerapp.com", "https://api.prod2.kustomerapp.com"),
        ("api.prod4.kustomerapp.com", "https://api.prod4.kustomerapp.com"),
        ("https://api.kustomerapp.com/v1/", "https://api.kustomerapp.com"),
        ("acme", "https://acme.api.kustomerapp.com"),
        ("acme.kustomerapp.com", "https://acme.api.kustomerapp.com"),
        ("https://ACME.kustomerapp.com/app/customers/5?x=1", "https://acme.api.kustomerapp.com"),
        ("https://acme.api.prod2.kustomerapp.com", "https://acme.api.prod2.kustomerapp.com"),
        ("https://acme.prod2.kustomerapp.com", "https://acme.api.prod2.kustomerapp.com"),
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_base_url_can_name_a_region_an_organization_or_the_mock(given, origin):
    assert settings(base_url=given).base_url == origin


@pytest.mark.parametrize(
    "given",
    [
        "http://api.kustomerapp.com",
        "https://evil.example",
        "https://kustomerapp.com.evil.example",
        "https://evilkustomerapp.com",
        "https://kustomerapp.com",
        "https://.kustomerapp.com",
        "https://user@api.kustomerapp.com",
        "https://evil.example\\.kustomerapp.com",
        "https://evil.example/.kustomerapp.com",
        "https://evil.example#.kustomerapp.com",
        "https://api.kustomerapp.com:8443",
        "https://api.kustomerapp.com:port",
        "http://192.168.0.1",
        "ftp://api.kustomerapp.com",
        "file:///etc/passwd",
        "localhost",
        "https://ápi.kustomerapp.com",
        "https://[::1",
        "a" * 64,
    ],
)
def test_other_hosts_are_rejected_as_base_url(given):
    assert "is not allowed; use https://api.kustomerapp.com (US)" in message_of(base_url=given)


def test_the_warning_about_an_unknown_setting_suggests_the_most_similar_one(destination):
    with mock({}) as server:
        sync(server, destination, retry_atempts="3")
    (warning,) = destination.warnings
    assert warning == "Unknown setting 'retry_atempts'. Did you mean 'retry_attempts'?"


def test_the_warning_about_an_unknown_setting_lists_the_settings_if_none_is_similar(destination):
    with mock({}) as server:
        sync(server, destination, colour="red")
    (warning,) = destination.warnings
    assert warning.startswith("Unknown setting 'colour'. The settings are api_key, base_url, ")


def test_an_error_about_a_missing_setting_also_names_a_similar_unknown_one(destination):
    with pytest.raises(ValueError, match="Unknown setting 'apikey'. Did you mean 'api_key'?"):
        connector.update({"apikey": KEY}, {})


def test_a_key_in_the_place_of_a_settings_name_is_not_shown(destination):
    with mock({}) as server:
        sync(server, destination, **{KEY: ""})
    (warning,) = destination.warnings
    assert warning.startswith("Unknown setting with an invalid name. ")


def test_an_invalid_configuration_fails_before_the_first_request(destination):
    with mock({}) as server:
        with pytest.raises(ValueError, match="retry_attempts"):
            sync(server, destination, retry_attempts="11")
        assert not server.requests
    assert not destination.states


def test_the_repr_of_settings_does_not_show_the_key():
    assert KEY not in repr(settings())

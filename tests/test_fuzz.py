"""With any configuration and state, update() either succeeds or raises a helpful error."""

from unittest import mock as patching

from hypothesis import given
from hypothesis import strategies as st

import connector
from mock_server import make_records
from tests.support import Destination, mock

RECORDS = make_records(customers=3, companies=2, brands=1, messages=3)
NAMES = [setting.name for setting in connector.SETTINGS]

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text(), scalars, max_size=2)
numbers = st.integers(-5, 2000).map(str)
words = st.sampled_from(
    ["true", "No", "ON", "0", "<SET_ME>", "", " ", "acme", "https://evil.example"]
)
times = st.datetimes().map(lambda moment: moment.isoformat() + "Z")
cursors = st.dictionaries(st.sampled_from(["customers", "brands", "x"]), values | times)
states = values | st.fixed_dictionaries(
    {}, optional={"last_sync_time": values | times | cursors, "unfinished": values | cursors}
)


def means_another_host(changes: dict) -> bool:
    """Return whether a sync with these changes would send requests to another host."""
    address = {"api_key": "key", "base_url": changes.get("base_url")}
    try:
        return "base_url" in changes and bool(connector.validate_configuration(address))
    except ValueError:
        return False


@given(
    changes=st.dictionaries(
        st.sampled_from([*NAMES, "unknown", ""]), values | numbers | words, max_size=4
    ),
    state=states,
)
def test_update_succeeds_or_raises_an_error_that_names_the_invalid_setting(changes, state):
    if means_another_host(changes):
        del changes["base_url"]
    destination = Destination()
    with mock(RECORDS) as server, patching.patch.object(connector, "op", destination):
        try:
            connector.update({**server.configuration(), **changes}, state)
        except ValueError as error:
            named = [name for name in [*NAMES, "saved state"] if name in str(error)]
            assert named and not destination.states
        except connector.KustomerError as error:
            # Among valid configurations, only those with a wrong key can fail.
            assert "api_key" in changes and "api_key" in str(error)
        else:
            assert (
                set(destination.state["last_sync_time"]) >= {"brands"}
                or "sync_frequency_hours" in changes
            )

"""A stand-in for Fivetran's destination, and functions that run syncs against the mock."""

import copy
import json
import re
from datetime import datetime, timedelta, timezone
from typing import Dict, Iterable, List, Tuple

import connector
from mock_server import Behaviour, MockKustomer
from mock_server.records import TYPES, time_text

ALL_TABLES = [table.name for table in connector.TABLES]
# The tables that are read if `additional_tables` is not set.
TABLES = [name for name in ALL_TABLES if name not in connector.ADDITIONAL_TABLES]
COLUMNS = {
    table.name: {name: column.type for name, column in table.columns.items()}
    for table in connector.TABLES
}
# Enough for every test, and few enough that a sync that never ends fails soon.
REQUEST_CEILING = 5_000
_TYPES = {"BOOLEAN": bool, "INT": int}
_UTC_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.(\d{3}|\d{6})Z")


class Destination:
    """Replaces the SDK's operations. As in Fivetran, only a checkpoint makes rows permanent.

    `rows` and `deleted` are the contents of the warehouse by table. `state` is the state that the
    next sync receives, and `states` has all saved states. `delivered` has the (table, id) of each
    upsert, in order.
    """

    def __init__(self):
        self.rows: Dict[str, Dict[str, dict]] = {table: {} for table in ALL_TABLES}
        self.deleted: Dict[str, set] = {table: set() for table in ALL_TABLES}
        self.state: dict = {}
        self.states: List[dict] = []
        self.warnings: List[str] = []
        self.delivered: List[Tuple[str, str]] = []
        self._pending: list = []

    def upsert(self, table: str, row: dict) -> None:
        _check_row(table, row)
        self.delivered.append((table, row["id"]))
        self._pending.append(("upsert", table, dict(row)))

    def delete(self, table: str, keys: dict) -> None:
        self._pending.append(("delete", table, dict(keys)))

    def truncate(self, table: str) -> None:
        self._pending.append(("truncate", table, {}))

    def warning(self, message: str) -> None:
        self.warnings.append(message)

    def checkpoint(self, state: dict) -> None:
        self.commit()
        self.state = json.loads(json.dumps(state))
        self.states.append(self.state)

    def commit(self) -> None:
        """Make everything permanent that was delivered since the last commit."""
        for operation, table, row in self._pending:
            if operation == "upsert":
                self.rows[table][row["id"]] = row
                self.deleted[table].discard(row["id"])
            elif operation == "delete":
                self.deleted[table].add(row["id"])
            else:
                self.deleted[table].update(self.rows[table])
        self._pending.clear()

    def drop(self) -> None:
        """Discard everything after the last checkpoint, as Fivetran does if a sync fails."""
        self._pending.clear()

    def live(self, table: str) -> Dict[str, dict]:
        """Return the rows of a table that are not deleted, by id."""
        rows, deleted = self.rows[table], self.deleted[table]
        return {row_id: row for row_id, row in rows.items() if row_id not in deleted}


def _check_row(table: str, row: dict) -> None:
    """Fail if the SDK would fail, or if the columns are not the declared ones."""
    assert list(row) == list(COLUMNS[table])
    assert row["id"]
    for (column, kind), value in zip(COLUMNS[table].items(), row.values()):
        if value is None:
            continue
        assert type(value) is _TYPES.get(kind, str), column
        if kind == "UTC_DATETIME":
            assert _UTC_TIME.fullmatch(value), (column, value)
        elif kind == "INT":
            assert -(2**31) <= value < 2**31, column
        elif kind == "STRING":
            value.encode("utf-8")


def bare_records(table: str, times: Iterable[datetime]) -> Dict[str, Dict[str, dict]]:
    """Return a record for each time of its last update, without any other content.

    Thousands of them are made and read in the time that a few hundred complete records take, so
    they serve tests of whether records are found.
    """
    records = {}
    for place, updated in enumerate(times, 1):
        record_id, text = f"{place:024x}", time_text(updated)
        records[record_id] = {
            "type": TYPES[table],
            "id": record_id,
            "attributes": {"createdAt": text, "updatedAt": text},
            "relationships": {},
        }
    return {table: records}


def even_times(number: int) -> List[datetime]:
    """Return times at equal distances over the last sixty days, in ascending order."""
    start, step = datetime.now(timezone.utc) - timedelta(days=60), timedelta(days=60) / (
        number + 1
    )
    return [start + place * step for place in range(1, number + 1)]


def mock(records=None, **behaviour) -> MockKustomer:
    """Return a mock with a maximum number of requests and, by default, no rate limits."""
    limits = {"org_limit": 10**6, "search_limit": 10**6}
    rules = Behaviour(**{**limits, **behaviour})
    return MockKustomer(records, rules, compress=False, ceiling=REQUEST_CEILING)


def sync(server: MockKustomer, destination: Destination, **settings: str) -> None:
    """Run one sync from the destination's state. Commit its rows, or drop them if it fails."""
    try:
        connector.update(server.configuration(**settings), copy.deepcopy(destination.state))
    except BaseException:
        destination.drop()
        raise
    destination.commit()


def searches(server: MockKustomer) -> list:
    """Return the searches among a mock's requests."""
    return [request for request in server.requests if request.method == "POST"]


def move_to_noon(clock) -> None:
    """Move the clock to the next noon, so that no test depends on the hour of the day."""
    clock.move((43_200 - clock.read("time")) % 86_400)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def earlier(text: str, **span) -> str:
    """Return the time that lies so much before another one."""
    return time_text(moment(text) - timedelta(**span))

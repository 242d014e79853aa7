"""The demo: a first sync and an incremental one, from the mock into files/warehouse.db."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, Tuple

import duckdb

from mock_server.fivetran import run_fivetran
from mock_server.records import TABLES, make_records
from mock_server.server import MockKustomer

PROJECT = Path(__file__).resolve().parent.parent
WAREHOUSE = PROJECT / "files" / "warehouse.db"
# What precedes the connector's own lines in the log.
_CONNECTOR_LINE = "⚡ connector "
_SAMPLE_ROWS = 3
_SAMPLE_COLUMNS = {
    "customers": "id, name, email, updated_at",
    "companies": "id, name, website, updated_at",
    "brands": "id, name, is_default, updated_at",
    "messages": "id, channel, direction, left(body, 40) as body, updated_at",
}
_CELL_CHARACTERS = 40

Contents = Dict[str, Dict[str, tuple]]


def main() -> int:
    """Run the demo and return its exit code."""
    records = make_records(customers=1000, companies=120, brands=4, messages=4000)
    with MockKustomer(records) as server, tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder, "configuration.json")
        configuration.write_text(json.dumps(server.configuration()))
        _title("A Kustomer mock with " + ", ".join(f"{len(records[t])} {t}" for t in TABLES))
        run_fivetran("reset", str(PROJECT), "--yes")
        _title("First sync: fivetran debug")
        _sync(configuration)
        first = _contents()
        _print_tables(first)
        changed = _change_some(server)
        _title("Second sync, after changes in Kustomer")
        _sync(configuration)
        _title("What changed in the warehouse")
        return _compare(first, _contents(), changed)


def _title(text: str) -> None:
    print(f"\n== {text} ==", flush=True)


def _sync(configuration: Path) -> None:
    run = run_fivetran("debug", str(PROJECT), "--configuration", str(configuration))
    if run.returncode:
        sys.exit(f"fivetran debug failed:\n{run.stdout}")
    for line in run.stdout.splitlines():
        _, of_connector, message = line.partition(_CONNECTOR_LINE)
        if of_connector:
            print(message)
    print(f"The rows are in {WAREHOUSE.relative_to(PROJECT)}.")


def _contents() -> Contents:
    """Return every row by table and id, without the column that says when it was written."""
    contents = {}
    with duckdb.connect(str(WAREHOUSE), read_only=True) as warehouse:
        for table in TABLES:
            rows = warehouse.execute(
                f"select id, columns(c -> c not in ('id', '_fivetran_synced'))::varchar "
                f"from tester.{table} order by id"
            ).fetchall()
            contents[table] = {row[0]: row for row in rows}
    return contents


def _print_tables(contents: Contents) -> None:
    with duckdb.connect(str(WAREHOUSE), read_only=True) as warehouse:
        for table in TABLES:
            _title(f"tester.{table}: {len(contents[table])} rows")
            sample = warehouse.execute(
                f"select columns(*)::varchar from (select {_SAMPLE_COLUMNS[table]} "
                f"from tester.{table} order by updated_at desc, id limit {_SAMPLE_ROWS})"
            )
            _print_rows([column[0] for column in sample.description], sample.fetchall())


def _print_rows(columns: List[str], rows: List[tuple]) -> None:
    lines = [tuple(columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def _cell(value) -> str:
    text = "NULL" if value is None else " ".join(str(value).split())
    return text if len(text) <= _CELL_CHARACTERS else text[: _CELL_CHARACTERS - 1] + "…"


def _change_some(server: MockKustomer) -> Dict[str, Tuple[set, set, set]]:
    """Change, add and delete records; return the ids of each kind by table."""
    store, changed = server.store, {}
    for table, changes, deletes in (
        ("customers", 12, 2),
        ("companies", 3, 0),
        ("messages", 20, 0),
    ):
        live = store.listed(table)
        for record_id in live[:changes]:
            store.change(table, record_id, custom={"changedBool": True})
        for record_id in live[changes : changes + deletes]:
            store.delete(table, record_id)
        new = next(iter(make_records(**{table: 1}, seed=2)[table].values()))
        store.put(table, new)
        store.change(table, new["id"])
        changed[table] = (
            set(live[:changes]),
            {new["id"]},
            set(live[changes : changes + deletes]),
        )
    return changed


def _compare(first: Contents, second: Contents, changed) -> int:
    """Print what differs between two syncs; return 1 when that is not what was changed."""
    right = True
    for table in TABLES:
        before, after = first[table], second[table]
        new = set(after) - set(before)
        different = {record_id for record_id in before if before[record_id] != after[record_id]}
        changes, additions, deletes = changed.get(table, (set(), set(), set()))
        same = new == additions and different == changes | deletes
        right = right and same
        verdict = "exactly what changed in Kustomer" if same else "NOT what changed in Kustomer"
        print(
            f"{table}: {len(different - deletes)} rows changed, {len(new)} new, "
            f"{len(different & deletes)} deleted, {len(set(after) - different - new)} untouched: "
            f"{verdict}."
        )
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())

"""The demo: a first sync and an incremental sync from the mock to a separate warehouse."""

import json
import shutil
import sys
import textwrap
import time
import unicodedata
from pathlib import Path
from typing import Dict, Tuple

import duckdb

from mock_server.fivetran import run_fivetran
from mock_server.records import TABLES, make_records
from mock_server.server import MockKustomer

PROJECT = Path(__file__).resolve().parent.parent
# The project folder itself may have the warehouse and the state of real syncs.
FOLDER = PROJECT / "build" / "demo"
WAREHOUSE = FOLDER / "files" / "warehouse.db"
_WIDTH = 100
_MIRRORED = "brands, users, teams and tags"
_RECORDS = {
    "customers": 400,
    "companies": 120,
    "brands": 4,
    "messages": 1600,
    "notes": 150,
    "users": 12,
    "teams": 3,
    "tags": 8,
}
_CHARTS = {
    "Messages per day by channel": """
        pivot (
          select created_at::date as date, strftime(created_at, '%a %d %b') as day, channel,
                 rpad(bar(count(*), 0, max(count(*)) over (), 8), 9, ' ') || count(*) as drawn
          from tester.messages
          where created_at >= (select max(created_at) from tester.messages) - interval 6 day
          group by all
        ) on channel using first(drawn) group by date, day order by date
    """,
    "First response by brand": """
        with responses as (
          select conversation_id,
                 min(created_at) filter (where direction = 'in') as asked_at,
                 min(created_at) filter (where direction = 'out') as answered_at
          from tester.messages
          group by conversation_id
        ), brands as (
          select brands.name as brand, count(*) as answered,
                 median(date_diff('second', asked_at, answered_at)) / 60 as minutes
          from responses
          join tester.conversations on conversations.id = conversation_id
          join tester.brands on brands.id = brand_id
          where answered_at > asked_at
          group by brands.id, brands.name
        )
        select brand, answered, bar(minutes, 0, max(minutes) over (), 30)
               || ' ' || round(minutes)::int || ' min' as median
        from brands order by minutes
    """,
}
# The numbers of records that the demo changes and deletes between its two syncs.
_CHANGES = {
    "customers": (12, 2),
    "companies": (3, 0),
    "messages": (20, 0),
    "conversations": (7, 1),
    "tags": (1, 0),
}

Contents = Dict[str, Dict[str, tuple]]


def main() -> int:
    """Run the demo and return its exit code."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    shutil.copy(PROJECT / "connector.py", FOLDER)
    records = make_records(**_RECORDS)
    with MockKustomer(records) as server:
        configuration = server.configuration(additional_tables="all")
        (FOLDER / "configuration.json").write_text(json.dumps(configuration))
        _print("A Kustomer API on this machine has " + _numbers(records) + ".")
        _sync("First sync")
        first = _contents()
        _print("In the warehouse, without deleted rows: " + _numbers(first) + ".")
        for title, query in _CHARTS.items():
            _draw(title, query)
        changed = _change_some(server)
        print("\nSome records have been changed, added and deleted in Kustomer.")
        _sync("Second sync")
        right = _compare(first, _contents(), changed)
    _print(f"Every sync delivers all {_MIRRORED}, and these rows have not changed.")
    print(f"\nTo look around: make sql WAREHOUSE={WAREHOUSE.relative_to(PROJECT)}")
    return 0 if right else 1


def _print(text: str) -> None:
    print(textwrap.fill(text, _WIDTH))


def _numbers(tables: dict) -> str:
    return ", ".join(f"{len(tables[table])} {table}" for table in TABLES)


def _sync(title: str) -> None:
    """Run `fivetran debug` and print how long it took."""
    print(f"\n{title}: fivetran debug ...", end="", flush=True)
    started = time.monotonic()
    run = run_fivetran("debug", str(FOLDER), "--configuration", str(FOLDER / "configuration.json"))
    if run.returncode:
        sys.exit(f"\nfivetran debug failed:\n{run.stdout}")
    (total,) = [line for line in run.stdout.splitlines() if " rows upserted" in line][-1:]
    print(f" {time.monotonic() - started:.0f} s.")
    _print(total[total.index("Kustomer sync: ") :])


def _contents() -> Contents:
    """Return all rows that are not deleted, by table and id, without `_fivetran_synced`."""
    contents = {}
    with duckdb.connect(str(WAREHOUSE), read_only=True) as warehouse:
        for table in TABLES:
            rows = warehouse.execute(
                f"select id, columns(c -> c not in ('id', '_fivetran_synced'))::varchar "
                f"from tester.{table} where not _fivetran_deleted order by id"
            ).fetchall()
            contents[table] = {row[0]: row for row in rows}
    return contents


def _draw(title: str, query: str) -> None:
    """Print the rows of a query in columns, under a title."""
    with duckdb.connect(str(WAREHOUSE), read_only=True) as warehouse:
        found = warehouse.execute(f"select columns(c -> c != 'date')::varchar from ({query})")
        lines = [[column[0] for column in found.description], *found.fetchall()]
    lines = [[cell or "" for cell in line] for line in lines]
    widths = [max(map(_width, column)) for column in zip(*lines)]
    print(f"\n{title}")
    for line in lines:
        cells = (cell + " " * (width - _width(cell)) for cell, width in zip(line, widths))
        print("  " + "  ".join(cells).rstrip())


def _width(text: str) -> int:
    """Return the width of a string in a terminal."""
    return len(text) + sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)


def _change_some(server: MockKustomer) -> Dict[str, Tuple[set, set, set]]:
    """Change, add and delete records, and return their ids by table and kind of change."""
    store, changed = server.store, {}
    for table, (changes, deletes) in _CHANGES.items():
        live = store.listed(table)
        for record_id in live[:changes]:
            store.change(table, record_id, name="Changed", custom={"changedBool": True})
        for record_id in live[changes : changes + deletes]:
            store.delete(table, record_id)
        changed[table] = (set(live[:changes]), set(), set(live[changes : changes + deletes]))
    for table in ("customers", "companies"):
        (new,) = make_records(**{table: 1}, seed=2)[table].values()
        store.put(table, new)
        store.change(table, new["id"])
        changed[table][1].add(new["id"])
    return changed


def _compare(first: Contents, second: Contents, changed: dict) -> bool:
    """Print the differences between two syncs, and return whether they match the changes."""
    right = True
    for table in TABLES:
        before, after = first[table], second[table]
        kept = before.keys() & after.keys()
        different = {record_id for record_id in kept if before[record_id] != after[record_id]}
        new, gone = after.keys() - before.keys(), before.keys() - after.keys()
        same = (different, new, gone) == changed.get(table, (set(), set(), set()))
        right = right and same
        if different or new or gone or not same:
            verdict = "as in Kustomer" if same else "NOT what changed in Kustomer"
            print(
                f"  {table}: {len(different)} changed, {len(new)} new, {len(gone)} deleted, "
                f"{len(kept) - len(different)} untouched: {verdict}"
            )
    return right


if __name__ == "__main__":
    # The charts and names have characters that not every terminal can show.
    sys.stdout.reconfigure(errors="replace")
    try:
        sys.exit(main())
    except OSError as error:
        sys.exit(f"{error.filename or FOLDER}: {error.strerror}")
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        sys.exit(130)

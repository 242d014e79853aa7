"""The demo: a first and an incremental sync from the mock to a separate warehouse.

It exits with 0 only if the warehouse has exactly the records of the mock.
"""

import argparse
import json
import os
import shutil
import sys
import textwrap
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Dict, Tuple

import duckdb

from mock_server.records import TABLES, Records, make_records
from mock_server.server import MockKustomer
from tools.fivetran import PROJECT, copy_connector, run_fivetran

# The project folder itself may have the warehouse and the state of real syncs.
FOLDER = PROJECT / "build" / "demo"
WAREHOUSE = FOLDER / "files" / "warehouse.db"
_WIDTH = 90
_MIRRORED = "brands, users, teams, tags, klasses and shortcuts"
# One day more than the chart shows.
_DAYS = 8
_RECORDS = {
    "customers": 400,
    "companies": 120,
    "brands": 4,
    "messages": 1600,
    "notes": 150,
    "users": 12,
    "teams": 3,
    "tags": 8,
    "kobjects": 240,
    "klasses": 3,
    "shortcuts": 10,
    "audit_logs": 300,
}
# The made-up names are in many scripts, whose letters a terminal may draw with another width.
_BRAND_NAMES = ("Birch & Brook", "Café Aurora", "Northgate Cycles", "Piñata Press")
_CHARTS = {
    "Messages per day by channel": """
        with days as (
          select unnest(range(7))::int as ago, current_date - ago as date
        ), counts as (
          select created_at::date as date, channel, count(*) as messages
          from tester.messages
          where created_at::date > current_date - 7
          group by all
        )
        pivot (
          select date, strftime(date, '%a %d %b') as day, channel,
                 rpad(bar(messages, 0, max(messages) over (), 8), 9, ' ') || messages as drawn
          from days cross join (select distinct channel from counts) left join counts
          using (date, channel)
        ) on channel using first(drawn) group by date, day order by date
    """,
    "First response by brand": """
        with responses as (
          select brands.name as brand, count(*) as answered,
                 median(date_diff('second', conversations.created_at, first_response_at)) / 60
                 as minutes
          from tester.conversations
          join tester.brands on brands.id = brand_id
          where first_response is not null
          group by brands.id, brands.name
        )
        select brand, answered, bar(minutes, 0, max(minutes) over (), 30)
               || ' ' || round(minutes)::int || ' min' as median
        from responses order by minutes
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
# So many messages it erases: neither search nor a list shows that they are gone.
_ERASED_MESSAGES = 2

Contents = Dict[str, Dict[str, tuple]]
# The ids of the records of a table that have been changed, added and deleted.
Changes = Tuple[set, set, set]


def main() -> int:
    """Run the demo and return its exit code."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    copy_connector(FOLDER)
    records = _records()
    with MockKustomer(records) as server:
        configuration = server.configuration(additional_tables="all")
        (FOLDER / "configuration.json").write_text(json.dumps(configuration))
        _print(f"A mock of Kustomer's API on this machine has {_numbers(records)}.")
        _sync("First sync")
        first = _contents()
        right = all(_is_as_in_the_mock(server, table, first) for table in TABLES)
        _print(f"In the warehouse, without deleted rows: {_numbers(first)}.")
        print(f"These rows are {_verdict(right)}.")
        for title, query in _CHARTS.items():
            _draw(title, query)
        changed = _change_some(server)
        print("\nSome records of the mock have been changed, added and deleted.")
        _print(
            f"{_ERASED_MESSAGES} messages have been erased, which only Kustomer's audit log shows."
        )
        _sync("Second sync")
        second = _contents()
        for table in TABLES:
            as_in_the_mock = _is_as_in_the_mock(server, table, second)
            right &= _compare(table, first, second, changed[table], as_in_the_mock)
    _print(f"Every sync delivers all rows of {_MIRRORED}, whether they have changed or not.")
    print(f"\nTo look around:\n  {_python()} -m tools.sql {os.path.relpath(WAREHOUSE, PROJECT)}")
    return 0 if right else 1


def _records() -> Records:
    """Return made-up records up to this moment."""
    records = make_records(**_RECORDS, days=_DAYS, before=datetime.now(timezone.utc))
    for brand, name in zip(records["brands"].values(), _BRAND_NAMES):
        brand["attributes"]["name"] = name
    return records


def _print(text: str) -> None:
    print(textwrap.fill(text, _WIDTH))


def _numbers(tables: dict) -> str:
    return ", ".join(f"{len(tables[table])} {table}" for table in TABLES)


def _verdict(right: bool) -> str:
    return "as in the mock" if right else "NOT as in the mock"


def _python() -> str:
    """Return how to start this Python from the project folder."""
    # The link .venv/bin/python, not the Python that it leads to.
    python = Path(sys.executable)
    return str(python.relative_to(PROJECT) if PROJECT in python.parents else python)


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
    """Return all rows that are not deleted, by table and id.

    A row begins with its `updated_at` in Kustomer's format. It lacks `_fivetran_synced`, because
    rows are delivered again although nothing has changed.
    """
    contents = {}
    with duckdb.connect(str(WAREHOUSE), read_only=True) as warehouse:
        for table in TABLES:
            rows = warehouse.execute(
                "select id, strftime(timezone('UTC', updated_at), '%Y-%m-%dT%H:%M:%S.%gZ'), "
                "columns(c -> c not in ('id', '_fivetran_synced'))::varchar "
                f"from tester.{table} where not _fivetran_deleted order by id"
            ).fetchall()
            contents[table] = {row[0]: row[1:] for row in rows}
    return contents


def _is_as_in_the_mock(server: MockKustomer, table: str, contents: Contents) -> bool:
    """Return whether a table has the newest version of each record of the mock, and no other."""
    records = server.store.records(table).items()
    live = {key: one["attributes"] for key, one in records if not one["attributes"].get("deleted")}
    updates = {key: attributes["updatedAt"] for key, attributes in live.items()}
    return updates == {key: row[0] for key, row in contents[table].items()}


def _draw(title: str, query: str) -> None:
    """Print the rows of a query in columns, under a title."""
    with duckdb.connect(str(WAREHOUSE), read_only=True) as warehouse:
        found = warehouse.execute(f"select columns(c -> c != 'date')::varchar from ({query})")
        lines = [[column[0] for column in found.description], *found.fetchall()]
    lines = [[cell or "" for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines)]
    print(f"\n{title}")
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths))
        print("  " + "  ".join(cells).rstrip())


def _change_some(server: MockKustomer) -> Dict[str, Changes]:
    """Change, add and delete records, and return their ids by table."""
    store, changed = server.store, {table: (set(), set(), set()) for table in TABLES}
    entries = store.records("audit_logs").keys()
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
    for message in store.listed("messages")[-_ERASED_MESSAGES:]:
        store.erase("messages", message)
        changed["messages"][2].add(message)
    changed["audit_logs"][1].update(store.records("audit_logs").keys() - entries)
    return changed


def _compare(
    table: str, first: Contents, second: Contents, changed: Changes, as_in_the_mock: bool
) -> bool:
    """Print how a table differs between two syncs, and return whether it should be so."""
    before, after = first[table], second[table]
    kept = before.keys() & after.keys()
    different = {record_id for record_id in kept if before[record_id] != after[record_id]}
    new, gone = after.keys() - before.keys(), before.keys() - after.keys()
    right = as_in_the_mock and (different, new, gone) == changed
    if different or new or gone or not right:
        print(
            f"  {table}: {len(different)} changed, {len(new)} new, {len(gone)} deleted, "
            f"{len(kept) - len(different)} untouched: {_verdict(right)}"
        )
    return right


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m tools.demo",
        description="Run a first and an incremental sync from a mock of Kustomer's API, and show "
        "what they deliver. The warehouse is in build/demo, and nothing else is touched.",
    ).parse_args()
    # The charts and names have characters that not every terminal can show.
    sys.stdout.reconfigure(errors="replace")
    try:
        sys.exit(main())
    except OSError as error:
        sys.exit(f"{error.filename or FOLDER}: {error.strerror}")
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        sys.exit(130)

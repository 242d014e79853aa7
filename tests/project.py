"""Runs `fivetran debug` in a temporary project folder."""

import json
import shutil
from datetime import datetime, timezone
from pathlib import Path
from typing import Dict

import duckdb

from mock_server import MockKustomer
from tools.fivetran import run_fivetran
from tests.support import COLUMNS

PROJECT = Path(__file__).resolve().parent.parent


class Project:
    """A folder with only the connector, in which `fivetran debug` runs.

    The configuration, which contains the key, and the home directory are outside of `folder`.
    """

    def __init__(self, parent: Path, server: MockKustomer, **settings: str):
        self.folder, self.home = parent / "project", parent / "home"
        self.warehouse = self.folder / "files" / "warehouse.db"
        self.folder.mkdir()
        self.home.mkdir()
        shutil.copy(PROJECT / "connector.py", self.folder)
        configuration = parent / "configuration.json"
        configuration.write_text(json.dumps(server.configuration(**settings)))
        self.command = ["debug", str(self.folder), "--configuration", str(configuration)]
        self.environment: Dict[str, str] = {"HOME": str(self.home)}

    def debug(self, succeeds: bool = True) -> str:
        """Run a sync, fail unless it succeeds (or fails) as expected, and return its output."""
        run = run_fivetran(*self.command, environment=self.environment)
        assert (run.returncode == 0) is succeeds, run.stdout
        return run.stdout

    def query(self, sql: str) -> list:
        with duckdb.connect(str(self.warehouse), read_only=True) as database:
            database.execute("set timezone = 'UTC'")
            return database.execute(sql).fetchall()

    def rows(self, table: str) -> dict:
        """Return the live rows of a table by id, with times in Kustomer's format."""
        columns = COLUMNS[table]
        picked = ", ".join(
            f"epoch_ms({name})" if kind == "UTC_DATETIME" else name
            for name, kind in columns.items()
        )
        found = self.query(f"select {picked} from tester.{table} where not _fivetran_deleted")
        rows = (dict(zip(columns, values)) for values in found)
        return {row["id"]: _with_times(table, row) for row in rows}


def _with_times(table: str, row: dict) -> dict:
    for name, kind in COLUMNS[table].items():
        if kind == "UTC_DATETIME" and row[name] is not None:
            moment = datetime.fromtimestamp(row[name] / 1000, timezone.utc)
            row[name] = moment.isoformat(timespec="milliseconds")[:-6] + "Z"
    return row

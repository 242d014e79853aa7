"""Show what a warehouse holds: python -m mock_server.sql FILE [QUERY]."""

import sys
from pathlib import Path

import duckdb

_COUNTS = (
    "select table_name as tester_table, estimated_size as rows from duckdb_tables() "
    "where schema_name = 'tester' order by table_oid"
)


def main(warehouse: str, query: str = "") -> int:
    """Print a query's rows, or without a query every table with its number of rows."""
    if not Path(warehouse).is_file():
        print(f"There is no {warehouse}. Run a sync first.", file=sys.stderr)
        return 1
    try:
        with duckdb.connect(warehouse, read_only=True) as database:
            # DuckDB prints by itself; fetching times with a zone into Python would need pytz.
            database.sql(query or _COUNTS).show(max_rows=200)
    except duckdb.Error as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""Show the contents of a warehouse: python -m tools.sql FILE [QUERY]."""

import argparse
import os
import sys
from pathlib import Path

import duckdb

# A table that never had a row lacks the column that marks deleted rows.
_TABLES = """
    select table_name, if(bool_or(column_name = '_fivetran_deleted'), '_fivetran_deleted', 'false')
    from duckdb_columns() where schema_name = 'tester' group by table_name order by min(table_oid)
"""
_COUNT = (
    "select '{0}' as \"table\", count(*) filter (not {1}) as rows, "
    'count(*) filter ({1}) as deleted from tester."{0}"'
)


def main(warehouse: str, query: str = "") -> int:
    """Print the rows of a query, or, without a query, the number of rows of every table."""
    if not Path(warehouse).is_file():
        print(
            f"There is no file {warehouse!r}. Run a sync first, or name another file.",
            file=sys.stderr,
        )
        return 1
    try:
        with duckdb.connect(warehouse, read_only=True) as database:
            tables = database.execute(_TABLES).fetchall()
            if not tables:
                print(
                    f"{warehouse} has no tables yet, because no sync has succeeded.",
                    file=sys.stderr,
                )
                return 1
            found = database.sql(query or " union all ".join(_COUNT.format(*t) for t in tables))
            # Statements that are not queries have no rows. DuckDB prints the rows itself, because
            # fetching times with a time zone requires pytz.
            if found:
                found.show(max_rows=200)
    except duckdb.Error as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of the output has enough. Python would fail again when it flushes the output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.sql", description="Show the contents of a warehouse."
    )
    parser.add_argument("warehouse", metavar="FILE", help="a DuckDB file of fivetran debug")
    parser.add_argument(
        "query",
        metavar="QUERY",
        nargs="?",
        default="",
        help="a SQL query, or - to read one from standard input; without a query, the number of "
        "rows of every table is shown",
    )
    return parser


def _query(argument: str) -> str:
    if argument != "-":
        return argument
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        sys.exit("The query is not text in UTF-8. Save the file as UTF-8.")


if __name__ == "__main__":
    options = _parser().parse_args()
    sys.exit(main(options.warehouse, _query(options.query)))

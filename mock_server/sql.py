"""Show the contents of a warehouse: python -m mock_server.sql FILE [QUERY]."""

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
    """Print the rows of a query or, without a query, the number of rows of every table."""
    if not Path(warehouse).is_file():
        print(f"There is no {warehouse}. Run a sync first.", file=sys.stderr)
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
            # DuckDB prints the rows itself. Fetching times with a time zone would require pytz.
            shown = query or " union all ".join(_COUNT.format(*table) for table in tables)
            database.sql(shown).show(max_rows=200)
    except duckdb.Error as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

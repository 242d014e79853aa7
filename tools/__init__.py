"""What a user or a developer starts: python -m tools.NAME. --help shows what each one does."""

import importlib.util
import sys

_PACKAGES = ("duckdb", "faker", "fivetran_connector_sdk", "orjson", "requests")
_missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
if _missing:
    # Here, because otherwise the first import of a tool ends it with a traceback.
    sys.exit(
        f"The tools need packages that this Python does not have: {', '.join(_missing)}. Activate "
        "the environment that has them, or install them with: pip install -r requirements-dev.txt"
    )

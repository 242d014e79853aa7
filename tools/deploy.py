"""Deploy the connector to Fivetran: python -m tools.deploy [FOLDER].

Everything that is missing or wrong is reported at once, before anything is sent.
"""

import argparse
import base64
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Callable, List, NamedTuple

from tools.configuration import add_folder, settings_of, warn_unless_ignored
from tools.fivetran import COMMANDS, PROJECT, copy_connector

# The version with which Fivetran runs the connector. The workflow tests it.
PYTHON_VERSION = "3.13"
# Everything in the deployed folder is sent, so this one has the connector alone.
_PACKAGE = PROJECT / "build" / "connector"


def _is_api_key(text: str) -> bool:
    try:
        decoded = base64.b64decode(text, validate=True).decode()
    except ValueError:
        return False
    return re.fullmatch(r"[^\s:]+:\S+", decoded) is not None


class _Value(NamedTuple):
    """A variable of the environment. `meaning` completes the sentence "It must be"."""

    name: str
    meaning: str
    is_valid: Callable[[str], object]


_VALUES = (
    _Value(
        "FIVETRAN_API_KEY",
        "key:secret of a Fivetran API key, encoded as Base64, without line breaks",
        _is_api_key,
    ),
    _Value("DESTINATION", "the name of a destination, as Fivetran shows it", str.strip),
    _Value(
        "CONNECTION",
        "the name of a new or existing connection: lowercase letters, digits and underscores, "
        "not beginning with a digit",
        re.compile(r"[a-z_][a-z0-9_]*").fullmatch,
    ),
)


def main() -> int:
    """Run the command line and return its exit code."""
    folder = _parser().parse_args().folder
    warn_unless_ignored(folder)
    problems = list(filter(None, [_settings_problem(folder), *map(_problem, _VALUES)]))
    if problems:
        print("Nothing was sent to Fivetran.", *problems, sep="\n", file=sys.stderr)
        return 1
    try:
        copy_connector(_PACKAGE)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    command = _command(folder)
    print(shlex.join(command), flush=True)
    # The SDK searches PATH for the commands that it runs.
    path = os.pathsep.join([os.environ.get("PATH", ""), str(COMMANDS)])
    return subprocess.call(
        [str(COMMANDS / command[0]), *command[1:]], env={**os.environ, "PATH": path}
    )


def _parser() -> argparse.ArgumentParser:
    meanings = "\n".join(f"  {value.name:<18}{value.meaning}" for value in _VALUES)
    parser = argparse.ArgumentParser(
        prog="python -m tools.deploy",
        description="Deploy the connector to Fivetran, with the settings in the "
        "configuration.json of a folder.",
        epilog=f"environment variables:\n{meanings}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_folder(parser)
    return parser


def _settings_problem(folder: Path) -> str:
    """Return what is wrong with the settings in a folder, or an empty string."""
    try:
        settings_of(folder)
    except ValueError as error:
        return str(error)
    return ""


def _problem(value: _Value) -> str:
    """Return what is wrong with a value of the environment, or an empty string."""
    given = os.environ.get(value.name, "")
    if given and value.is_valid(given):
        return ""
    verdict = "is not valid" if given else "is missing"
    return f"{value.name} {verdict}. It must be {value.meaning}."


def _command(folder: Path) -> List[str]:
    """Return the command that deploys. The SDK takes the API key from the environment."""
    return [
        "fivetran",
        "deploy",
        str(_PACKAGE),
        "--destination",
        os.environ["DESTINATION"],
        "--connection",
        os.environ["CONNECTION"],
        # The SDK would look for a relative path in the deployed folder.
        "--configuration",
        str(folder.resolve() / "configuration.json"),
        "--python-version",
        PYTHON_VERSION,
    ]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

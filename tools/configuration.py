"""Prepare a folder for a sync on this machine: python -m tools.configuration [FOLDER].

Checks that its configuration.json can be read, and copies connector.py beside it.
"""

import argparse
import codecs
import json
import subprocess
import sys
from pathlib import Path

import connector
from tools.fivetran import copy_connector

_BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NOT_IGNORED = 1
_JSON_HINT = (
    "JSON has double quotes around names and values, a comma between two entries, none after the "
    "last one, and no comments"
)


def main() -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.configuration",
        description="Check that the configuration.json of a folder can be read, and copy "
        "connector.py into the folder.",
    )
    add_folder(parser)
    folder = parser.parse_args().folder
    warn_unless_ignored(folder)
    problem = problem_of(folder)
    if problem:
        print(problem, file=sys.stderr)
        return 1
    try:
        copy_connector(folder)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names the folder of a configuration."""
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        type=Path,
        default=Path("local"),
        help="the folder of configuration.json; by default: local",
    )


def problem_of(folder: Path) -> str:
    """Return why the configuration of a folder cannot be read, or an empty string."""
    file = folder / "configuration.json"
    if folder.is_file():
        return f"{folder} is a file. Name the folder that it is in."
    try:
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return (
            f"There is no file {file}. Copy configuration.json there and put the key into the "
            "copy, or name another folder."
        )
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}."
    if content.startswith(_BYTE_ORDER_MARKS):
        return f"{file} begins with a byte order mark. Save it as UTF-8 without one."
    try:
        json.loads(content.decode())
    except UnicodeDecodeError:
        return f"{file} is not text in UTF-8. Save it as UTF-8."
    except ValueError as error:
        return f"{file} cannot be read as JSON: {error}. {_JSON_HINT}."
    return ""


def settings_of(folder: Path) -> connector.Settings:
    """Return the settings in a folder. Raises a ValueError that says what is wrong with them."""
    problem = problem_of(folder)
    if problem:
        raise ValueError(problem)
    file = folder / "configuration.json"
    configuration = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(configuration, dict):
        raise ValueError(f"{file} has to be a JSON object.")
    settings = connector.validate_configuration(configuration)
    for warning in connector.__unknown_settings(configuration):
        print(warning, file=sys.stderr)
    return settings


def warn_unless_ignored(folder: Path) -> None:
    """Print a warning if the configuration of a folder could be committed with its key."""
    file = folder / "configuration.json"
    if not file.is_file():
        return
    command = ["git", "check-ignore", "-q", file.name]
    try:
        status = subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode
    except OSError:
        # Without git, nothing is committed.
        return
    # git has another status if the folder is in no repository.
    if status == _NOT_IGNORED:
        print(
            f"Warning: git does not ignore '{folder}'. Use a folder whose name begins with local.",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())

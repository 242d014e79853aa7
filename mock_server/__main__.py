"""Run the mock: by itself until Ctrl-C, or beside a command.

python -m mock_server [options]
python -m mock_server [options] -- COMMAND ...
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, FrozenSet, List

from mock_server.behaviour import (
    COMPANY_SEARCHES,
    CONTEXTS,
    ERROR_FORMS,
    RESETS,
    ROLES,
    USER_LISTS,
    Behaviour,
)
from mock_server.faults import KINDS, PARTS, Fault, parse_fault
from mock_server.records import TABLES, make_records
from mock_server.server import API_KEY, MockKustomer, PortTakenError

_DEFAULT_COUNTS = {
    "customers": 1000,
    "companies": 100,
    "brands": 4,
    "messages": 4000,
    "notes": 300,
    "users": 12,
    "teams": 4,
    "tags": 8,
}


def _words(text: str) -> FrozenSet[str]:
    return frozenset(filter(None, text.split(",")))


def _at_least(lowest: float, highest: float = 10**9, read: Callable = int) -> Callable:
    """Return a reader of numbers that refuses any beyond its limits."""

    def number(text: str):
        try:
            value = read(text)
        except ValueError:
            value = None
        if value is None or not lowest <= value <= highest:
            upper = f" to {highest}" if highest < 10**9 else " or more"
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of {lowest}{upper}")
        return value

    return number


def _numbers(text: str) -> FrozenSet[int]:
    return frozenset(map(_at_least(1), _words(text)))


def _fault(text: str) -> Fault:
    try:
        return parse_fault(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _own_file(text: str) -> Path:
    """Return a path that the mock may write: a new file, or one that it wrote itself."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    try:
        found = json.loads(path.read_text())
        # The mock writes these two settings alone; a file with any other is somebody's work.
        written_here = found.keys() == {"api_key", "base_url"} and found["base_url"].startswith(
            "http://127.0.0.1:"
        )
    except FileNotFoundError:
        return path
    except (OSError, ValueError, AttributeError):
        written_here = False
    if not written_here:
        raise argparse.ArgumentTypeError(
            f"{path} exists and was not written by the mock; choose another name"
        )
    return path


def _words_of(*allowed: str) -> Callable[[str], FrozenSet[str]]:
    """Return a reader of words between commas that refuses any but the allowed ones."""

    def read(text: str) -> FrozenSet[str]:
        unknown = _words(text).difference(allowed)
        if unknown:
            raise argparse.ArgumentTypeError(
                f"{', '.join(sorted(unknown))}: choose from {', '.join(allowed)}"
            )
        return _words(text)

    return read


_SIGNAL_CHECK_SECONDS = 0.2
_SWITCH = {"action": argparse.BooleanOptionalAction}
_NUMBER = {"type": _at_least(1), "metavar": "N"}
_SECONDS = {"type": _at_least(0, read=float), "metavar": "SECONDS"}
_ANY_SECONDS = {"type": _at_least(-(10**9), read=float), "metavar": "SECONDS"}
# An option for each field of Behaviour but the roles: what argparse is told, and the help.
_BEHAVIOUR_OPTIONS = {
    "missing_role_status": (
        {"type": int, "choices": (401, 403)},
        "status of a refusal for a missing role",
    ),
    "search_needs_object_role": (_SWITCH, "search asks for the object's own role as well"),
    "error_form": ({"choices": ERROR_FORMS}, "which of the two documented forms errors have"),
    "ignores": (
        {"type": _words_of("filter", "page"), "metavar": "A,B"},
        "what search takes no notice of: filter, page",
    ),
    "sort_contexts": (
        {"type": _words_of(*CONTEXTS), "metavar": "A,B"},
        f"contexts that search sorts for, of {', '.join(CONTEXTS)}; '' for none",
    ),
    "other_sorts": ({"choices": ("ignore", "refuse")}, "what becomes of any other sort"),
    "unsorted_order": (
        {"choices": ("scattered", "insertion")},
        "order of what search does not sort",
    ),
    "company_search": (
        {"choices": COMPANY_SEARCHES},
        "what a search for companies by updatedAt meets",
    ),
    "hidden": (
        {"type": _words, "metavar": "ID,ID"},
        "ids of records that search counts and does not show",
    ),
    "search_window": (_NUMBER, "counts and pages of search end at so many records"),
    "index_lag_seconds": (_SECONDS, "how long search takes no notice of a change"),
    "shows_current": (_SWITCH, "search shows a record as it is, and finds it as it was"),
    "list_order": ({"choices": ("scattered", "updated")}, "order of lists"),
    "lists_show_deleted": (_SWITCH, "lists have deleted records as well"),
    "user_lists": (
        {"choices": USER_LISTS},
        "deactivated users: on a list of their own, or on that of all users",
    ),
    "list_window": (_NUMBER, "lists end at so many records"),
    "list_window_status": (
        {"type": _at_least(400, 599), "metavar": "STATUS"},
        "status of the pages beyond, which are empty otherwise",
    ),
    "large_pages": (
        {"choices": ("clamp", "refuse")},
        "what becomes of a pageSize over the documented maximum",
    ),
    "page_size_limit": (_NUMBER, "a lower maximum of records a page"),
    "forced_page_size": (_NUMBER, "size of every page, whatever is asked for"),
    "allowed_page_sizes": ({"type": _numbers, "metavar": "N,M"}, "refuse any other pageSize"),
    "page_size_shown": (
        {"choices": ("given", "asked", "absent")},
        "which page size answers show",
    ),
    "shows_links": (_SWITCH, "answers have links"),
    "shows_total": (_SWITCH, "answers have counts"),
    "org_limit": (_NUMBER, "requests in a window"),
    "search_limit": (_NUMBER, "searches in a window"),
    "window_seconds": (_SECONDS, "length of a window"),
    "rate_limit_reset": ({"choices": RESETS}, "how a refusal says when its window ends"),
    "reset_on_every_answer": (_SWITCH, "every answer says when its window ends"),
    "clock_offset_seconds": (_ANY_SECONDS, "Kustomer's clock against this machine's"),
}


def _explained(words: dict) -> str:
    return "\n".join(f"  {word:<10} {meaning}" for word, meaning in words.items())


def _parser() -> argparse.ArgumentParser:
    parts = {name: meaning for name, (_, meaning) in PARTS.items()}
    parser = argparse.ArgumentParser(
        prog="python -m mock_server",
        usage="%(prog)s [options] [-- COMMAND ...]",
        description="A Kustomer API on 127.0.0.1 with made-up records. After -- a command that "
        "runs beside it; the exit code is the command's.",
        epilog=f"faults (KIND):\n{_explained(KINDS)}\n\nparts of a fault:\n{_explained(parts)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--port", type=_at_least(0, 65535), default=0, help="default: any free port"
    )
    parser.add_argument("--api-key", default=API_KEY, help="the key it knows")
    parser.add_argument("--seed", type=int, default=1, help="of the records and the faults")
    parser.add_argument(
        "--days", type=_at_least(1, 3650), default=60, help="how far updatedAt reaches back"
    )
    for table, number in _DEFAULT_COUNTS.items():
        parser.add_argument(
            f"--{table}", type=_at_least(0), default=number, help=f"default: {number}"
        )
    parser.add_argument(
        "--same-moment",
        type=_at_least(0),
        default=700,
        metavar="N",
        help="messages that share one updatedAt",
    )
    parser.add_argument(
        "--configuration",
        type=_own_file,
        metavar="FILE",
        help="write a configuration for the connector to this file, which must be new or an "
        "earlier one of the mock's",
    )
    parser.add_argument(
        "--fault",
        type=_fault,
        action="append",
        default=[],
        metavar="KIND[:PART=VALUE,...]",
        help="a fault, such as 503:rate=0.05; see below. May be given more than once",
    )
    parser.add_argument(
        "--without-role",
        action="append",
        default=[],
        choices=sorted(ROLES),
        metavar="ROLE",
        help="a role that the key lacks",
    )
    parser.add_argument("--no-compression", action="store_true", help="never send gzip")
    usual = Behaviour()
    for name, (arguments, text) in _BEHAVIOUR_OPTIONS.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, default=getattr(usual, name), help=text, **arguments)
    return parser


def _server(options: argparse.Namespace) -> MockKustomer:
    chosen = {name: getattr(options, name) for name in _BEHAVIOUR_OPTIONS}
    behaviour = Behaviour(roles=ROLES - set(options.without_role), **chosen)
    records = make_records(
        **{table: getattr(options, table) for table in _DEFAULT_COUNTS},
        seed=options.seed,
        days=options.days,
        same_moment=options.same_moment,
    )
    server = MockKustomer(
        records,
        behaviour,
        api_key=options.api_key,
        port=options.port,
        compress=not options.no_compression,
        seed=options.seed,
    )
    for fault in options.fault:
        server.order(fault)
    return server


def _run_beside(command: List[str]) -> int:
    """Run a command to its end and return its exit code."""
    try:
        child = subprocess.Popen(command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    # Ctrl-C reaches the command as well, and its own end decides.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    code = child.wait()
    return 128 - code if code < 0 else code


def _run_alone(server: MockKustomer) -> int:
    """Run until Ctrl-C or a request to end."""
    signals: List[int] = []
    # Noted, because an exception would be raised in whatever runs at that moment.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: signals.append(received))
    held = ", ".join(f"{server.store.count(table)} {table}" for table in TABLES)
    print(f"Kustomer mock at {server.url} with API key {server.api_key}: {held}.", flush=True)
    print("Ctrl-C stops it.", flush=True)
    while not signals:
        time.sleep(_SIGNAL_CHECK_SECONDS)
    if signal.SIGINT in signals:
        # Whoever sends another signal may not be reading.
        print("\nStopped.")
    return 0


def main(arguments: List[str]) -> int:
    """Run the command line and return its exit code."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options, command = _parser().parse_args(arguments[:split]), arguments[split + 1 :]
    try:
        server = _server(options)
    except PortTakenError as error:
        print(error, file=sys.stderr)
        return 1
    with server:
        if options.configuration:
            try:
                options.configuration.write_text(
                    json.dumps(server.configuration(), indent=2) + "\n"
                )
            except OSError as error:
                print(f"{options.configuration}: {error.strerror}", file=sys.stderr)
                return 1
        return _run_beside(command) if command else _run_alone(server)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        sys.exit(130)

"""Run the mock, either on its own until Ctrl-C or alongside a command.

python -m mock_server [options]
python -m mock_server [options] -- COMMAND ...
"""

import argparse
import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, FrozenSet, List, Tuple

from mock_server.behaviour import (
    AUDIT_LOG_ORDERS,
    COMPANY_SEARCHES,
    CONTEXTS,
    ERROR_FORMS,
    LIST_LINKS_ON,
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
    "kobjects": 200,
    "klasses": 3,
    "shortcuts": 10,
    "audit_logs": 500,
}


def _words(text: str) -> FrozenSet[str]:
    return frozenset(filter(None, text.split(",")))


def _at_least(lowest: float, highest: float = 10**9, read: Callable = int) -> Callable:
    """Return a parser of numbers that rejects any number outside the limits."""

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


def _fault(text: str) -> Tuple[str, Fault]:
    """Return a fault, and how it was written."""
    try:
        return text, parse_fault(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _writable_file(text: str) -> Path:
    """Return a path that the mock may write to: a new file, or one that the mock wrote."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    try:
        found = json.loads(path.read_text())
        # The mock writes only these two settings. A file with others has been edited.
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
    """Return a parser of comma-separated words that rejects any other than the allowed ones."""

    def read(text: str) -> FrozenSet[str]:
        unknown = _words(text).difference(allowed)
        if unknown:
            raise argparse.ArgumentTypeError(
                f"{', '.join(sorted(unknown))}: choose from {', '.join(allowed)}"
            )
        return _words(text)

    return read


_SIGNAL_CHECK_SECONDS = 0.2
# The packages that the mock imports only when it needs them.
_PACKAGES = ("faker", "orjson")
_SWITCH = {"action": argparse.BooleanOptionalAction}
_NUMBER = {"type": _at_least(1), "metavar": "N"}
_SECONDS = {"type": _at_least(0, read=float), "metavar": "SECONDS"}
_ANY_SECONDS = {"type": _at_least(-(10**9), read=float), "metavar": "SECONDS"}
# An option for each field of Behaviour except the roles: arguments for argparse, and a help text.
_BEHAVIOUR_OPTIONS = {
    "missing_role_status": (
        {"type": int, "choices": (401, 403)},
        "status of the error for a missing role",
    ),
    "search_needs_object_role": (_SWITCH, "search also requires the object's own role"),
    "error_form": ({"choices": ERROR_FORMS}, "which of the two documented formats errors have"),
    "sort_contexts": (
        {"type": _words_of(*CONTEXTS), "metavar": "A,B"},
        f"contexts for which search sorts, from {', '.join(CONTEXTS)}; '' for none",
    ),
    "other_sorts": (
        {"choices": ("ignore", "refuse")},
        "what search does with a sort for any other context",
    ),
    "company_search": (
        {"choices": COMPANY_SEARCHES},
        "how search treats companies by updatedAt",
    ),
    "hidden": (
        {"type": _words, "metavar": "ID,ID"},
        "ids of records that search counts but does not return",
    ),
    "search_window": (_NUMBER, "counts and pages of search end at this many records"),
    "index_lag_seconds": (_SECONDS, "how long it takes until search sees a change"),
    "search_is_empty": (_SWITCH, "search finds nothing, whatever a client searches for"),
    "replicas": (
        _NUMBER,
        "how many servers answer searches in turn, each with its own order of records that the "
        "sort does not decide",
    ),
    "list_order": ({"choices": ("scattered", "updated")}, "order of lists"),
    "lists_show_deleted": (_SWITCH, "lists include deleted records"),
    "user_lists": (
        {"choices": USER_LISTS},
        "where deactivated users are: on a separate list, or among all users",
    ),
    "list_window": (_NUMBER, "lists end at this many records"),
    "list_window_status": (
        {"type": _at_least(400, 599), "metavar": "STATUS"},
        "status of pages beyond the list window; by default they are empty",
    ),
    "list_links_on": (
        {"choices": LIST_LINKS_ON},
        "every page of a list links to a next page; pages beyond the last one are empty, or "
        "repeat the last one",
    ),
    "audit_log_order": (
        {"choices": AUDIT_LOG_ORDERS},
        "which entries of the audit log come first",
    ),
    "audit_log_lag_seconds": (_SECONDS, "how long it takes until the audit log shows a change"),
    "audit_log_days": (
        {"type": _at_least(1, 3650), "metavar": "N"},
        "how many days the audit log keeps its entries",
    ),
    "page_size_limit": (_NUMBER, "a lower maximum of records per page"),
    "allowed_page_sizes": ({"type": _numbers, "metavar": "N,M"}, "reject any other pageSize"),
    "shows_links": (_SWITCH, "responses have links"),
    "shows_total": (_SWITCH, "responses have counts"),
    "org_limit": (_NUMBER, "requests per window"),
    "search_limit": (_NUMBER, "searches per window"),
    "window_seconds": (_SECONDS, "length of a rate limit window"),
    "rate_limit_reset": ({"choices": RESETS}, "how a 429 reports the end of the window"),
    "reset_on_every_answer": (_SWITCH, "every response reports the end of the window"),
    "clock_offset_seconds": (_ANY_SECONDS, "how far Kustomer's clock is ahead of this machine's"),
}


def _explained(words: dict) -> str:
    return "\n".join(f"  {word:<12} {meaning}" for word, meaning in words.items())


def _parser() -> argparse.ArgumentParser:
    parts = {name: meaning for name, (_, meaning) in PARTS.items()}
    parser = argparse.ArgumentParser(
        prog="python -m mock_server",
        usage="%(prog)s [options] [-- COMMAND ...]",
        description="Run a Kustomer API on 127.0.0.1 with made-up records. If -- and a command "
        "follow, run that command alongside it and exit with the command's exit code.",
        epilog=f"faults (KIND):\n{_explained(KINDS)}\n\nparts of a fault:\n{_explained(parts)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--port", type=_at_least(0, 65535), default=0, help="default: any free port"
    )
    parser.add_argument("--api-key", default=API_KEY, help="the only key that the mock accepts")
    parser.add_argument(
        "--seed", type=int, default=1, help="random seed of the records and the faults"
    )
    parser.add_argument(
        "--days", type=_at_least(1, 3650), default=60, help="how many days updatedAt goes back"
    )
    for table, number in _DEFAULT_COUNTS.items():
        parser.add_argument(
            f"--{table.replace('_', '-')}",
            type=_at_least(0),
            default=number,
            help=f"default: {number}",
        )
    parser.add_argument(
        "--same-moment",
        type=_at_least(0),
        default=700,
        metavar="N",
        help="number of messages that share one updatedAt",
    )
    parser.add_argument(
        "--configuration",
        type=_writable_file,
        metavar="FILE",
        help="write a configuration for the connector to this file, which must not exist or "
        "must have been written by the mock",
    )
    parser.add_argument(
        "--fault",
        type=_fault,
        action="append",
        default=[],
        metavar="KIND[:PART=VALUE,...]",
        help="a fault, such as 503:rate=0.05 or html:status=404,path=/search; see below; can be "
        "repeated. Customers, messages and others are found through the path /v1/customers/search: "
        "503:path=/search is an outage of search alone, and path=/messages means only the list of "
        "messages. A fault that affected no request is reported at the end",
    )
    parser.add_argument(
        "--without-role",
        action="append",
        default=[],
        choices=sorted(ROLES),
        metavar="ROLE",
        help="a role that the key lacks; can be repeated",
    )
    parser.add_argument("--no-compression", action="store_true", help="never compress responses")
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
    for _, fault in options.fault:
        server.order(fault)
    return server


def _run_beside(command: List[str]) -> int:
    """Run a command and return its exit code."""
    try:
        child = subprocess.Popen(command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    # Ctrl-C also reaches the command, which decides how to end.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    code = child.wait()
    return 128 - code if code < 0 else code


def _run_alone(server: MockKustomer) -> int:
    """Run until Ctrl-C or SIGTERM."""
    signals: List[int] = []
    # The handler only records the signal. An exception could interrupt any running code.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: signals.append(received))
    counts = ", ".join(f"{server.store.count(table)} {table}" for table in TABLES)
    print(f"Kustomer mock at {server.url} with API key {server.api_key}: {counts}.", flush=True)
    print("Press Ctrl-C to stop.", flush=True)
    while not signals:
        time.sleep(_SIGNAL_CHECK_SECONDS)
    if signal.SIGINT in signals:
        # After any other signal, nobody may be reading the output.
        print("\nStopped.")
    return 0


def _report_unused(faults: List[Tuple[str, Fault]]) -> None:
    """Print the faults that affected no request."""
    for text, fault in faults:
        if not fault.affected:
            print(f"The fault {text} affected no request.", file=sys.stderr)


def main(arguments: List[str]) -> int:
    """Run the command line and return its exit code."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options, command = _parser().parse_args(arguments[:split]), arguments[split + 1 :]
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"The mock needs packages that this Python does not have: {', '.join(missing)}. Activate "
            "the environment that has them, or install them with: pip install -r requirements-dev.txt",
            file=sys.stderr,
        )
        return 1
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
        code = _run_beside(command) if command else _run_alone(server)
        _report_unused(options.fault)
        return code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        sys.exit(130)

"""Run the mock: by itself until Ctrl-C, or beside a command.

python -m mock_server [options]
python -m mock_server [options] -- COMMAND ...
"""

import argparse
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import List

from mock_server.api import RESETS, ROLES, Behaviour
from mock_server.faults import KINDS, parse_fault
from mock_server.records import TABLES, make_records
from mock_server.server import API_KEY, MockKustomer, PortTakenError

_DEFAULT_COUNTS = {"customers": 1000, "companies": 100, "brands": 4, "messages": 4000}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mock_server",
        description="A Kustomer API on 127.0.0.1. After -- a command that runs beside it, with "
        "KUSTOMER_BASE_URL and KUSTOMER_API_KEY in its environment.",
    )
    parser.add_argument("--port", type=int, default=0, help="default: any free port")
    parser.add_argument("--api-key", default=API_KEY, help="the key it knows")
    parser.add_argument("--seed", type=int, default=1, help="of the records and the faults")
    parser.add_argument("--days", type=int, default=60, help="how far updatedAt reaches back")
    for table, number in _DEFAULT_COUNTS.items():
        parser.add_argument(f"--{table}", type=int, default=number, help=f"default: {number}")
    parser.add_argument(
        "--same-moment",
        type=int,
        default=700,
        metavar="N",
        help="messages that share one updatedAt",
    )
    parser.add_argument(
        "--configuration", type=Path, metavar="FILE", help="write a connector configuration here"
    )
    parser.add_argument(
        "--fault",
        type=parse_fault,
        action="append",
        default=[],
        metavar="KIND[:rate=,after=,times=,path=,seconds=]",
        help=f"KIND is one of {', '.join(KINDS)}",
    )
    parser.add_argument(
        "--without-role", action="append", default=[], choices=sorted(ROLES), metavar="ROLE"
    )
    parser.add_argument("--missing-role-status", type=int, choices=(401, 403), default=403)
    parser.add_argument("--large-pages", choices=("clamp", "refuse"), default="clamp")
    parser.add_argument(
        "--ignore", action="append", default=[], choices=("sort", "filter", "page")
    )
    parser.add_argument("--index-lag", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--org-limit", type=int, default=1000, help="requests a window")
    parser.add_argument("--search-limit", type=int, default=100, help="searches a window")
    parser.add_argument("--window-seconds", type=float, default=60.0)
    parser.add_argument("--rate-limit-reset", choices=RESETS, default="epoch")
    parser.add_argument("--no-compression", action="store_true")
    return parser


def _server(options: argparse.Namespace) -> MockKustomer:
    behaviour = Behaviour(
        roles=ROLES - set(options.without_role),
        missing_role_status=options.missing_role_status,
        large_pages=options.large_pages,
        ignores=set(options.ignore),
        index_lag_seconds=options.index_lag,
        org_limit=options.org_limit,
        search_limit=options.search_limit,
        window_seconds=options.window_seconds,
        rate_limit_reset=options.rate_limit_reset,
    )
    records = make_records(
        *(getattr(options, table) for table in TABLES),
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


def _run_beside(server: MockKustomer, command: List[str]) -> int:
    environment = {
        **os.environ,
        "KUSTOMER_BASE_URL": server.url,
        "KUSTOMER_API_KEY": server.api_key,
    }
    try:
        child = subprocess.Popen(command, env=environment)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    while True:
        try:
            code = child.wait()
            return 128 - code if code < 0 else code
        except KeyboardInterrupt:
            # Ctrl-C reaches the command as well; its own end decides.
            continue


def _run_alone(server: MockKustomer) -> int:
    held = ", ".join(f"{server.store.count(table)} {table}" for table in TABLES)
    print(f"Kustomer mock at {server.url} with API key {server.api_key}: {held}.", flush=True)
    print("Ctrl-C stops it.", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
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
    if options.configuration:
        options.configuration.write_text(json.dumps(server.configuration(), indent=2) + "\n")
    with server:
        return _run_beside(server, command) if command else _run_alone(server)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

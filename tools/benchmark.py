"""Measure the cost of syncs: python -m tools.benchmark [--quick].

The mock runs in another process, and the SDK's operations are replaced. Prints each figure and
its goal, and exits with 1 if a goal is missed.
"""

import argparse
import contextlib
import json
import math
import resource
import signal
import statistics
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from typing import Callable, Dict, Iterator, List, NamedTuple

import requests

import connector

_RUNS = 5
# Fewer runs, because the largest table takes half a minute.
_GROWTH_RUNS = 3
# The days of history that the syncs read, from a mock with 60 days of it.
_GROWTH_DAYS = (3, 10, 90)
_MEGABYTE = 2**20
_ROWS_PER_WRITE = 100
_NO_LIMITS = ("--search-limit", "1000000", "--org-limit", "1000000")


class Figure(NamedTuple):
    """A line of the output. `met` is whether the goal is met."""

    name: str
    measured: str
    goal: str
    met: bool


class Destination:
    """Replaces the SDK's operations. Counts the rows, and can spend time on each of them."""

    def __init__(self, seconds_per_row: float = 0.0):
        self.rows = {table.name: 0 for table in connector.TABLES}
        self.state: dict = {}
        self._seconds_per_row = seconds_per_row

    def upsert(self, table: str, _row: dict) -> None:
        self.rows[table] += 1
        if self._seconds_per_row and self.rows[table] % _ROWS_PER_WRITE == 0:
            # A real destination is another process, so waiting for it takes no CPU.
            time.sleep(_ROWS_PER_WRITE * self._seconds_per_row)

    def checkpoint(self, state: dict) -> None:
        self.state = state

    def delete(self, _table: str, _keys: dict) -> None:
        """Deletes are not measured."""

    def truncate(self, _table: str) -> None:
        """Truncates are not measured."""

    def warning(self, message: str) -> None:
        raise AssertionError(f"unexpected warning in a benchmark: {message}")


class Sync(NamedTuple):
    """The measurements of one sync."""

    wall: float
    cpu: float
    destination: Destination
    responses: List[requests.Response]
    connections: int

    def statuses(self) -> List[int]:
        return [response.status_code for response in self.responses]

    def searches(self, context: str) -> int:
        bodies = [response.request.body or b"" for response in self.responses]
        return sum(json.loads(body or b"{}").get("queryContext") == context for body in bodies)


@contextlib.contextmanager
def mock(*options: str, **counts: int) -> Iterator[dict]:
    """Yield the configuration for a mock in another process with these numbers of records."""
    numbers = {**dict.fromkeys(("customers", "companies", "brands", "messages", "notes"), 0)}
    numbers.update(counts)
    sizes = [word for table, number in numbers.items() for word in (f"--{table}", str(number))]
    command = [sys.executable, "-m", "mock_server", "--same-moment", "0", *sizes, *options]
    # In a session of its own, so that Ctrl-C reaches this process only, which ends the mock.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            words = process.stdout.readline().split()
            yield {"base_url": words[3], "api_key": words[7].rstrip(":")}
        finally:
            process.terminate()


def sync(configuration: dict, destination: Destination, keep_responses: bool = True) -> Sync:
    """Run one sync from the destination's state and return its measurements."""
    responses: List[requests.Response] = []
    connections: List[int] = []
    open_client = connector.open_client

    @contextlib.contextmanager
    def open_watched(*arguments):
        with open_client(*arguments) as client:
            if keep_responses:
                client.session.hooks["response"].append(
                    lambda r, **_: responses.append(r) if r.content is not None else None
                )
            yield client
            pools = client.session.get_adapter("http://").poolmanager.pools
            connections.extend(pools[key].num_connections for key in pools.keys())

    connector.op, connector.open_client = destination, open_watched
    try:
        wall, cpu = time.perf_counter(), time.process_time()
        connector.update(configuration, destination.state)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    finally:
        connector.open_client = open_client
    return Sync(wall, cpu, destination, responses, sum(connections))


def median(measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(_RUNS))


def most_searches(records: int) -> float:
    """Return the maximum number of searches for a first load of this many records."""
    return 1.25 * records / 500 + 8


def cpu_figures() -> Iterator[Figure]:
    """CPU of a sync, compared with json.loads of its records, and searches of a first load."""
    number = 50_000
    with mock("--no-compression", *_NO_LIMITS, customers=number, messages=number) as configuration:
        first = sync(configuration, Destination())
        bodies = [r.content for r in first.responses if r.request.method == "POST"]
        # One by one, because the time to parse a whole page depends on how the memory for its
        # objects is allocated, and varies by a factor of two for the same page.
        records = [json.dumps(record) for body in bodies for record in json.loads(body)["data"]]

        def parse_alone() -> float:
            started = time.process_time()
            for record in records:
                json.loads(record)
            return time.process_time() - started

        # The minimum of alternating runs, because other load on the machine only adds time.
        pairs = [
            (sync(configuration, Destination(), keep_responses=False).cpu, parse_alone())
            for _ in range(_RUNS)
        ]
    ratio = min(whole for whole, _ in pairs) / min(alone for _, alone in pairs)
    # Rows of customers and messages have 43 and 30 columns. With 15 and 20, the goal was 6.5.
    yield Figure(
        "CPU of a sync / of json.loads of its records", f"{ratio:.2f}", "<= 8", ratio <= 8
    )
    for context in ("customer", "message"):
        searches = first.searches(context)
        most = most_searches(number)
        yield Figure(
            f"searches for {number} {context}s", f"{searches}", f"<= {most:.0f}", searches <= most
        )
    yield Figure("connections of a sync", f"{first.connections}", "<= 4", first.connections <= 4)


def overlap_figure() -> Iterator[Figure]:
    """Wall time with a slow source and a slow destination, compared with the slower one alone."""
    rows, seconds_per_row = 20_000, 200e-6
    slow_pages = ("--fault", "latency:seconds=0.6,path=/search")
    with mock(*slow_pages, *_NO_LIMITS, messages=rows) as configuration:
        source_alone = median(lambda: sync(configuration, Destination()).wall)
        together = median(lambda: sync(configuration, Destination(seconds_per_row)).wall)
    ratio = together / max(source_alone, rows * seconds_per_row)
    yield Figure("overlap: wall time / the slower alone", f"{ratio:.2f}", "<= 1.10", ratio <= 1.1)


def slices_figure() -> Iterator[Figure]:
    """Wall time of a first load, compared with the total time of its searches."""
    number, seconds = 20_000, 0.6
    slow = ("--fault", f"latency:seconds={seconds},path=/search")
    with mock(*slow, *_NO_LIMITS, messages=number) as configuration:
        first = sync(configuration, Destination())
    searches = first.searches("message")
    share = first.wall / (searches * seconds)
    yield Figure(
        "first load / total time of its 0.6 s searches", f"{share:.2f}", "<= 0.40", share <= 0.4
    )
    most = most_searches(number)
    name = f"searches for {number} messages"
    yield Figure(name, f"{searches}", f"<= {most:.0f}", searches <= most)


def companies_figures() -> Iterator[Figure]:
    """Requests of a sync without changes, for different numbers of companies that search knows."""
    for number in (100, 5_000, 50_000):
        options = ("--company-search", "knows", *_NO_LIMITS)
        with mock(*options, companies=number) as configuration:
            destination = Destination()
            sync(configuration, destination)
            quiet = sync(configuration, destination_with(destination.state))
        requested = len(quiet.responses)
        name = f"requests, nothing changed, {number} companies"
        yield Figure(name, f"{requested}", "<= 9", requested <= 9)


def incremental_figures() -> Iterator[Figure]:
    """Requests and rows of incremental syncs, without and with changes."""
    with mock(*_NO_LIMITS, companies=90, customers=2000, brands=4, messages=4000) as configuration:
        destination = Destination()
        sync(configuration, destination)
        quiet = len(sync(configuration, destination_with(destination.state)).responses)
    # One request each for the key, customers, companies, brands and messages.
    yield Figure("requests, nothing changed", f"{quiet}", "5", quiet == 5)
    counts = {"companies": 300, "messages": 4000}
    with mock(*_NO_LIMITS, "--days", "30", **counts) as configuration:
        # With a cursor of ten days ago, the records that were updated since then have changed. The
        # first read of a day goes back two days and ten minutes more.
        since = datetime.now(timezone.utc) - timedelta(days=10)
        start = since - timedelta(days=2, minutes=10)
        states = dict.fromkeys(counts, since.isoformat())
        later = sync(configuration, destination_with({"last_sync_time": states}))
        changed = {table: records_since(configuration, table, start) for table in counts}
    for table, number in changed.items():
        share = later.destination.rows[table] / number
        name = f"rows delivered per changed record, {table}"
        yield Figure(name, f"{share:.2f}", "1.00", share == 1.0)


def destination_with(state: dict) -> Destination:
    destination = Destination()
    destination.state = state
    return destination


def records_since(configuration: dict, table: str, start: datetime) -> int:
    """Count the records of a table that were updated since a time, by reading its list."""
    key, found, page, since = configuration["api_key"], 0, 1, start.isoformat()[:23]
    while True:
        response = connector.execute_api_request(
            f"/v1/{table}", key, {"page": page, "pageSize": 100}, configuration
        )
        found += sum(r["attributes"]["updatedAt"][:23] >= since for r in response["data"])
        if not response["links"]["next"]:
            return found
        page += 1


def growth_figures() -> Iterator[Figure]:
    """CPU per added record, and peak memory, as the number of records grows.

    A sync has fixed costs, and its first records are read by a single reader. So the figure
    compares the CPU per added record from the middle to the large size with that from the small
    to the middle size. All sizes are read from the same mock, because a larger mock would slow
    down everything else on the machine.
    """
    runs: Dict[int, List[dict]] = {days: [] for days in _GROWTH_DAYS}
    with mock("--no-compression", *_NO_LIMITS, messages=500_000) as configuration:
        # The sizes alternate, so that a slow minute of the machine affects all of them.
        for days in _GROWTH_DAYS * _GROWTH_RUNS:
            window = json.dumps({**configuration, "initial_sync_days": str(days)})
            command = [sys.executable, "-m", "tools.benchmark", "--grow", window]
            runs[days].append(json.loads(subprocess.check_output(command)))
    small, middle, large = (
        {name: min(run[name] for run in runs[days]) for name in ("rows", "cpu", "peak")}
        for days in _GROWTH_DAYS
    )
    added = (large["cpu"] - middle["cpu"]) / (large["rows"] - middle["rows"])
    before = (middle["cpu"] - small["cpu"]) / (middle["rows"] - small["rows"])
    ratio = added / before
    sizes = f"{middle['rows']} to {large['rows']}"
    yield Figure(
        f"CPU per added record, {sizes} / before", f"{ratio:.2f}", "<= 1.15", ratio <= 1.15
    )
    grown = (large["peak"] - middle["peak"]) / _MEGABYTE
    yield Figure(f"peak memory, {sizes}", f"{grown:+.1f} MB", "<= +15 MB", grown <= 15)


def grow(configuration: dict) -> None:
    """Run a small sync to warm up and then a sync in this process. Print its measurements."""
    sync({**configuration, "initial_sync_days": "2"}, Destination(), keep_responses=False)
    measured = sync(configuration, Destination(), keep_responses=False)
    rows = sum(measured.destination.rows.values())
    print(json.dumps({"cpu": measured.cpu, "rows": rows, "peak": _peak_bytes()}))


def _peak_bytes() -> int:
    """Return the peak memory of this process in bytes."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as status:
        # Preferred, because ru_maxrss includes the memory of the parent that started this process.
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def wait_figures() -> Iterator[Figure]:
    """Wall time of a rate-limited sync, compared with what the limit allows, and refusals."""
    window, limit, small = 5.0, 20, {"max_records_per_page": "100"}
    with mock(*_NO_LIMITS, messages=5000) as configuration:
        free = sync({**configuration, **small}, Destination())
    searches = free.searches("message") + free.searches("customer")
    windows, rest = divmod(searches - 1, limit)
    allowed = windows * window + free.wall * (rest + 1) / searches
    limits = ("--search-limit", str(limit), "--window-seconds", str(window))
    walls, refusals = [], []
    for _ in range(_RUNS):
        with mock("--rate-limit-reset", "epoch_ms", *limits, messages=5000) as configuration:
            throttled = sync({**configuration, **small}, Destination())
        walls.append(throttled.wall)
        refusals.append(throttled.statuses().count(429))
    ratio = statistics.median(walls) / allowed
    yield Figure("rate limit: wall time / what it allows", f"{ratio:.2f}", "<= 1.10", ratio <= 1.1)
    # Each reader can have one search in progress when the limit is reached.
    share = max(refusals) / windows
    yield Figure("refused searches per full window", f"{share:.2f}", "<= 4", share <= 4)


def pace_figures() -> Iterator[Figure]:
    """Wall time of a first load with slow searches, compared with its lower bound.

    With S searches of t seconds, the lower bound is the larger of
      the limit, 100 searches a minute:  floor((S - 1) / limit) * window + t
      the slowest chain of searches:     (3 + ceil((S - 3) / 4)) * t
    because three searches run one after the other (the search for customers, the first page of
    messages, and the search for changes made meanwhile), and four readers share the others. The
    window is a fifth of Kustomer's minute, with a fifth of its searches.
    """
    limit, window, readers, alone = 20, 12.0, 4, 3
    limits = ("--search-limit", str(limit), "--window-seconds", str(window))
    for seconds in (0.2, 0.6, 2.0):
        slow = ("--fault", f"latency:seconds={seconds},path=/search")
        options = (*slow, *limits, "--org-limit", "1000000", "--rate-limit-reset", "epoch_ms")
        with mock(*options, messages=20_000) as configuration:
            first = sync(configuration, Destination())
        searches = first.searches("message") + first.searches("customer")
        searches -= first.statuses().count(429)
        limited = (searches - 1) // limit * window + seconds
        chain = (alone + math.ceil((searches - alone) / readers)) * seconds
        ratio = first.wall / max(limited, chain)
        bound = "limit" if limited > chain else "chain"
        name = f"first load, {seconds} s per search / the {bound}"
        yield Figure(name, f"{ratio:.2f}", "<= 1.25", ratio <= 1.25)


def neighbour_figures() -> Iterator[Figure]:
    """Wall time of lists that leave a share of the limit to others, and the share they leave."""
    limit, window, share, companies = 20, 2.0, 0.9, 4_000
    options = ("--org-limit", str(limit), "--window-seconds", str(window))
    options += ("--rate-limit-reset", "epoch_ms", "--reset-on-every-answer")
    options += ("--company-search", "finds_nothing", "--search-limit", "1000000")
    with mock(*options, companies=companies) as configuration:
        waiting = sync({**configuration, "api_utilization_percentage": "90"}, Destination())
    lists = [r for r in waiting.responses if r.request.method == "GET"]
    # Lists stop for a window at the first response that shows too few requests left.
    per_window = int(limit * share) + 1
    allowed = len(lists) // per_window * window
    ratio = waiting.wall / allowed
    yield Figure(
        "lists at 90 % of the limit / what that allows", f"{ratio:.2f}", "<= 1.10", ratio <= 1.1
    )
    left = min(int(r.headers["x-ratelimit-remaining"]) for r in lists) / limit
    yield Figure(
        "least share of limit left to others",
        f"{left:.0%}",
        ">= 5%",
        left >= 1 - share - 1 / limit,
    )


def compression_figure() -> Iterator[Figure]:
    """Bytes of the response bodies as transferred, with and without compression."""
    sizes = {}
    for option in ("--compression", "--no-compression"):
        options = () if option == "--compression" else (option,)
        with mock(*options, *_NO_LIMITS, customers=2000, messages=5000) as configuration:
            responses = sync(configuration, Destination()).responses
        sizes[option] = sum(int(r.headers["Content-Length"]) for r in responses)
    share = sizes["--compression"] / sizes["--no-compression"]
    yield Figure("bytes transferred, compressed / uncompressed", f"{share:.2f}", "< 1", share < 1)


# The measurements: function, title, approximate seconds, and whether a quick run includes it.
_MEASURES = (
    (incremental_figures, "requests and rows of an incremental sync", 10, True),
    (companies_figures, "companies", 10, True),
    (slices_figure, "a first load with slow searches", 15, True),
    (compression_figure, "compression", 10, True),
    (neighbour_figures, "lists that leave a share of the limit to others", 10, True),
    (pace_figures, "first loads with three speeds of search", 120, False),
    (wait_figures, "the rate limit", 60, False),
    (overlap_figure, "a slow source and a slow destination", 110, False),
    (cpu_figures, "CPU of 100,000 records", 90, False),
    (growth_figures, "growth to 500,000 messages", 140, False),
)


def main(quick: bool) -> int:
    """Take the measurements, print the figures, and return 1 if a goal is missed."""
    chosen = [measure for measure in _MEASURES if measure[3] or not quick]
    print(f"This takes about {sum(seconds for _, _, seconds, _ in chosen)} seconds.")
    print(f"\n{'figure':<50}{'measured':>12}{'goal':>12}")
    missed = 0
    for place, (measure, title, _, _) in enumerate(chosen, 1):
        print(f"\n{place} of {len(chosen)}: {title} ...", flush=True)
        for figure in measure():
            verdict = "" if figure.met else "   MISSED"
            missed += not figure.met
            print(f"{figure.name:<50}{figure.measured:>12}{figure.goal:>12}{verdict}", flush=True)
    left_out = [title for _, title, _, in_quick in _MEASURES if quick and not in_quick]
    if left_out:
        print(f"\nLeft out: {', '.join(left_out)}.")
    if missed:
        print(
            f"\nGoals missed: {missed}. A goal can be missed because other programs are running."
        )
    else:
        print("\nAll goals were met.")
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark",
        description="Measure the cost of syncs from the mock. Prints each figure and its goal, "
        "and exits with 1 if a goal is missed.",
    )
    seconds = sum(measure[2] for measure in _MEASURES)
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"take only the fast measurements; all of them take about {round(seconds / 60)} minutes",
    )
    parser.add_argument(
        "--grow",
        metavar="CONFIGURATION",
        type=json.loads,
        help="only measure one sync, with this JSON as its configuration; the benchmark calls "
        "itself this way, because memory is measured by process",
    )
    return parser.parse_args()


if __name__ == "__main__":
    options = _options()
    if options.grow:
        grow(options.grow)
        sys.exit()
    # The mocks end with this process only if it is not killed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        code = main(options.quick)
    except (KeyboardInterrupt, SystemExit) as end:
        # During a sync, the connector turns Ctrl-C into SystemExit with a message.
        print("\nStopped.", file=sys.stderr)
        code = getattr(end, "code", None)
        code = code if isinstance(code, int) else 128 + signal.SIGINT
    sys.exit(code)

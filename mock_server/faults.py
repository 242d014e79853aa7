"""Faults that the mock produces on request."""

import random
from dataclasses import dataclass, field
from typing import Callable, Dict, List, Optional

_STATUS = "responds with this status"
# The kinds of faults, and what each does to a request.
KINDS = {
    "latency": "responds normally after a delay of SECONDS",
    "429": "responds as if the rate limit were used up",
    "500": _STATUS,
    "502": _STATUS,
    "503": _STATUS,
    "timeout": "keeps the connection open for SECONDS without a response, then closes it",
    "reset": "resets the connection",
    "truncated": "sends half of the response",
    "html": "responds with an HTML page, as a proxy does",
    "timed_out": "responds with some of the records and meta.timed_out",
}


def _number(read: Callable[[str], float], lowest: float, highest: float) -> Callable:
    """Return a parser of a number within limits. It raises ValueError for anything else."""

    def within(text: str):
        value = read(text)
        if not lowest <= value <= highest:
            raise ValueError
        return value

    return within


_MANY = 10**9
# The parts of a fault: the parser and a description of each.
PARTS = {
    "rate": (_number(float, 0, 1), "the share of requests affected, 0 to 1 (default 1)"),
    "after": (_number(int, 0, _MANY), "how many requests to skip first (default 0)"),
    "times": (_number(int, 0, _MANY), "the most requests affected (default: no limit)"),
    "path": (str, "only requests whose path ends with this (default: all)"),
    "seconds": (_number(float, 0, _MANY), "the duration, 0 or more (default 0)"),
    "status": (_number(int, 200, 599), "the status of html, 200 to 599 (default 200)"),
    "retry_after": (
        _number(float, 0, _MANY),
        "the seconds in the header Retry-After of a status or html",
    ),
}


@dataclass
class Fault:
    """A fault to produce.

    Args:
        kind: one of KINDS. "latency" delays a response, and every other kind replaces it.
        rate: the share of requests affected.
        after: how many requests to skip first.
        times: the most requests affected; None for no limit.
        path: affects only requests whose path ends with this.
        seconds: the delay of "latency", or how long "timeout" keeps the connection open.
        status: the status of "html".
        retry_after: the seconds in the header Retry-After of a status or "html"; None for no such
            header.
        headers: additional headers of a status or "html", such as x-ratelimit-reset.

    `affected` is the number of requests affected so far.
    """

    kind: str
    rate: float = 1.0
    after: int = 0
    times: Optional[int] = None
    path: str = ""
    seconds: float = 0.0
    status: int = 200
    retry_after: Optional[float] = None
    headers: Dict[str, str] = field(default_factory=dict)
    affected: int = field(default=0, init=False)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"a fault is one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.retry_after is not None:
            self.headers = {"Retry-After": f"{self.retry_after:.15g}", **self.headers}


def parse_fault(text: str) -> Fault:
    """Return the fault that a command line option describes, such as "503:rate=0.05,times=3".

    Raises ValueError, which says what is allowed.
    """
    kind, _, options = text.partition(":")
    values = {}
    for option in filter(None, options.split(",")):
        name, _, value = option.partition("=")
        if name not in PARTS:
            raise ValueError(f"a fault takes {', '.join(PARTS)}, not {name!r}")
        read, meaning = PARTS[name]
        try:
            values[name] = read(value)
        except ValueError:
            raise ValueError(f"{name}={value}: {name} is {meaning}") from None
    return Fault(kind, **values)


class FaultOrders:
    """The active faults, and which of them affect each request."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)
        self._orders: List[Fault] = []

    def add(self, fault: Fault) -> None:
        self._orders.append(fault)

    def clear(self) -> None:
        self._orders.clear()

    def affecting(self, path: str, number: int) -> List[Fault]:
        """Return the faults that affect request `number` (from 1) for `path`."""
        return [fault for fault in self._orders if self._affects(fault, path, number)]

    def _affects(self, fault: Fault, path: str, number: int) -> bool:
        if not path.endswith(fault.path) or number <= fault.after or fault.affected == fault.times:
            return False
        if self._random.random() >= fault.rate:
            return False
        fault.affected += 1
        return True

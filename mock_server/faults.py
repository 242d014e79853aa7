"""What can go wrong on the way to and from Kustomer, to be ordered."""

import random
from dataclasses import dataclass, field
from typing import Callable, Dict, List, Optional

_STATUS = "answers with this status"
# What can be ordered, and what it does to a request.
KINDS = {
    "latency": "answers as usual after a delay of SECONDS",
    "429": "refuses as if the rate limit were used up",
    "500": _STATUS,
    "502": _STATUS,
    "503": _STATUS,
    "timeout": "keeps the connection open for SECONDS without an answer, and closes it",
    "reset": "resets the connection",
    "truncated": "sends half of the answer",
    "html": "answers with status 200 and an HTML page",
    "timed_out": "answers with a part of the records and meta.timed_out",
    "drip": "sends the answer byte by byte, one each SECONDS",
}


def _number(read: Callable[[str], float], lowest: float, highest: float) -> Callable:
    """Return a reader of a number within limits, which raises ValueError for any other text."""

    def within(text: str):
        value = read(text)
        if not lowest <= value <= highest:
            raise ValueError
        return value

    return within


_MANY = 10**9
# The parts of an order: what reads each, and what it takes.
PARTS = {
    "rate": (_number(float, 0, 1), "the share of requests that it meets, 0 to 1 (default 1)"),
    "after": (_number(int, 0, _MANY), "how many requests are left alone first (default 0)"),
    "times": (_number(int, 0, _MANY), "how many requests it meets at most (default: no limit)"),
    "path": (str, "only requests whose path ends with this (default: all)"),
    "seconds": (_number(float, 0, _MANY), "how long it takes, 0 or more (default 0)"),
}


@dataclass
class Fault:
    """An order for trouble.

    Args:
        kind: one of KINDS. "latency" delays an answer, "drip" sends it byte by byte, every other
            kind replaces it.
        rate: the share of requests that it meets.
        after: leave the first requests alone.
        times: how many requests it meets at most; None for no end.
        path: only requests whose path ends so.
        seconds: the delay of "latency", the time between two bytes of "drip", or how long
            "timeout" keeps the line open.
        headers: more headers for a status, such as x-ratelimit-reset.
    """

    kind: str
    rate: float = 1.0
    after: int = 0
    times: Optional[int] = None
    path: str = ""
    seconds: float = 0.0
    headers: Dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"a fault is one of {', '.join(KINDS)}, not {self.kind!r}")


def parse_fault(text: str) -> Fault:
    """Return the fault that a command line orders, as in "503:rate=0.05,times=3".

    Raises ValueError saying what an order looks like.
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
    """The faults in force, and which of them each request meets."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)
        self._orders: List[Fault] = []

    def add(self, fault: Fault) -> None:
        self._orders.append(fault)

    def clear(self) -> None:
        self._orders.clear()

    def meet(self, path: str, number: int) -> List[Fault]:
        """Return the faults that request `number` (from 1) for `path` meets."""
        return [fault for fault in self._orders if self._meets(fault, path, number)]

    def _meets(self, fault: Fault, path: str, number: int) -> bool:
        if not path.endswith(fault.path) or number <= fault.after or fault.times == 0:
            return False
        if self._random.random() >= fault.rate:
            return False
        if fault.times is not None:
            fault.times -= 1
        return True

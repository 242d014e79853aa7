"""What can go wrong on the way to and from Kustomer, to be ordered."""

import random
from dataclasses import dataclass, field
from typing import Dict, List, Optional

KINDS = (
    "latency",
    "429",
    "500",
    "502",
    "503",
    "timeout",
    "reset",
    "truncated",
    "html",
    "timed_out",
    "drip",
)


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
    readers = {"rate": float, "after": int, "times": int, "path": str, "seconds": float}
    values = {}
    for option in filter(None, options.split(",")):
        name, _, value = option.partition("=")
        if name not in readers:
            raise ValueError(f"a fault takes {', '.join(readers)}, not {name!r}")
        values[name] = readers[name](value)
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

"""A Kustomer API on loopback, with made-up records: for tests, the demo and the benchmark."""

from mock_server.behaviour import Behaviour
from mock_server.faults import Fault
from mock_server.records import make_records
from mock_server.server import MockKustomer, PortTakenError

__all__ = ["Behaviour", "Fault", "MockKustomer", "PortTakenError", "make_records"]

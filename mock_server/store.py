"""The mock's records: how lists, search and the audit log see them, and what changes them."""

import bisect
import copy
import math
from collections import defaultdict
from datetime import datetime
from typing import Dict, List, NamedTuple, Optional, Tuple

from mock_server.behaviour import CONTEXTS, Behaviour
from mock_server.records import ORG_ID, TABLES, TYPES, Records, audit_entry, scattered, time_text

# The tables whose changes Kustomer's audit log records.
AUDITED = frozenset({"companies", "conversations", "customers", "messages", "shortcuts", "users"})

Key = Tuple[str, str]


class _Change(NamedTuple):
    """A record's new state, or None if it was erased, and when it becomes visible.

    `due` is a Unix time on Kustomer's clock.
    """

    due: float
    record_id: str
    record: Optional[dict]


class _Event(NamedTuple):
    """A change that the audit log records: the verb, the record before and after it, and when it
    happened and becomes visible, as Unix times on Kustomer's clock."""

    table: str
    verb: str
    old: Optional[dict]
    new: dict
    at: datetime
    due: float


class _View:
    """The records of a table in the order of a time. It can lag behind the records.

    `time_name` is the attribute with the time. If `group_name` is given, the records that share
    the value of this attribute also have an order of their own.
    """

    def __init__(self, records: Dict[str, dict], time_name: str, group_name: Optional[str] = None):
        self._time_name, self._group_name = time_name, group_name
        self._records = dict(records)
        self._keys: Dict[str, List[Key]] = defaultdict(list)
        self._pending: List[_Change] = []
        for record in records.values():
            for group in self._groups(record):
                self._keys[group].append(self._key(record))
        for keys in self._keys.values():
            keys.sort()

    def record(self, record_id: str) -> dict:
        """Return the visible state of a record. Raises KeyError if there is none."""
        return self._records[record_id]

    def keys(self, group: str = "") -> List[Key]:
        """Return (time, id) of every visible record, or of those in a group, ascending."""
        return self._keys[group] if group in self._keys else []

    def add(self, change: _Change) -> None:
        """Add a change that becomes visible when it is due."""
        self._pending.append(change)

    def catch_up(self, now: float) -> None:
        """Show the newest due change of each record. Older changes of the record are void."""
        waiting: List[_Change] = []
        shown = set()
        for change in reversed(self._pending):
            if change.record_id in shown:
                continue
            if change.due > now:
                waiting.append(change)
            else:
                self._show(change.record_id, change.record)
                shown.add(change.record_id)
        self._pending = waiting[::-1]

    def _show(self, record_id: str, new: Optional[dict]) -> None:
        old = self._records.pop(record_id, None)
        if old:
            for group in self._groups(old):
                keys = self._keys[group]
                del keys[bisect.bisect_left(keys, self._key(old))]
        if new:
            self._records[record_id] = new
            for group in self._groups(new):
                bisect.insort(self._keys[group], self._key(new))

    def _groups(self, record: dict) -> Tuple[str, ...]:
        if self._group_name is None:
            return ("",)
        return "", str(record["attributes"].get(self._group_name))

    def _key(self, record: dict) -> Key:
        return str(record["attributes"].get(self._time_name, "")), record["id"]


class Store:
    """The records, the search index, which can lag behind them, and the audit log."""

    def __init__(self, records: Records, behaviour: Behaviour):
        self._behaviour = behaviour
        self._records = {table: dict(records.get(table, {})) for table in TABLES}
        self._orders: Dict[str, Dict[tuple, List[str]]] = {}
        self._views = {table: _View(self._records[table], "updatedAt") for table in TABLES}
        entries = self._records["audit_logs"]
        self._views["audit_logs"] = _View(entries, "createdAt", "objectType")
        self._entries_made = len(entries)
        # Most tests never read the log, so its entries are made when somebody does.
        self._events: List[_Event] = []

    def records(self, table: str) -> Dict[str, dict]:
        """Return a table's records by id. Do not modify them; use `put` or `change` instead."""
        self._make_entries()
        return dict(self._records[table])

    def count(self, table: str) -> int:
        return len(self.records(table))

    def put(self, table: str, record: dict) -> None:
        """Add a record, or replace the record with the same id."""
        verb = "update" if record["id"] in self._records[table] else "create"
        self._write(table, copy.deepcopy(record), verb)

    def change(self, table: str, record_id: str, **attributes) -> None:
        """Set attributes of a record. Unless given, `updatedAt` is set to the current time."""
        self._write(table, self._changed(table, record_id, attributes), "update")

    def delete(self, table: str, record_id: str) -> None:
        """Mark a record as deleted, as Kustomer does. Search can still return it."""
        self._write(table, self._changed(table, record_id, {"deleted": True}), "delete")

    def erase(self, table: str, record_id: str) -> None:
        """Remove a record completely. At most the audit log shows that it was there."""
        old = self._records[table].pop(record_id)
        self._show(table, record_id)
        marked = {**old, "attributes": {**old["attributes"], "deleted": True}}
        self._log(table, "delete", old, marked)

    def listed(self, table: str, part: str = "") -> List[str]:
        """Return the ids on a table's list, in list order.

        Some tables have more than one list. `part` is "deactivated" for the list of deactivated
        users, the status of the klasses on a list, and the id of the klass of custom objects.

        With the list order "scattered", messages are in the order of their ids, and all other
        records are in an order that a client cannot predict.
        """
        rules = self._behaviour
        orders = self._orders.setdefault(table, {})
        order = (rules.list_order, rules.lists_show_deleted, rules.user_lists, part)
        if order not in orders:
            records = self._records[table]
            ids = [i for i, record in records.items() if _is_listed(table, record, part, rules)]
            if rules.list_order == "updated":
                ids.sort(key=lambda i: (str(records[i]["attributes"].get("updatedAt", "")), i))
            else:
                ids.sort(key=None if table == "messages" else scattered)
            orders[order] = ids
        return orders[order]

    def page(self, table: str, ids: List[str]) -> List[dict]:
        return [self._records[table][record_id] for record_id in ids]

    def indexed(self, table: str, record_id: str) -> dict:
        """Return a record's state in the search index, or a visible entry of the audit log.

        Raises KeyError if there is none.
        """
        return self._views[table].record(record_id)

    def settle(self) -> None:
        """Bring a lagging search index up to date immediately."""
        for table in CONTEXTS.values():
            self._views[table].catch_up(math.inf)

    def keys(self, table: str, group: str = "") -> List[Key]:
        """Return (updatedAt, id) of every record in the search index, in ascending order.

        For the audit log, it is (createdAt, id) of the visible entries. `group` is a type of
        objects, and leaves the entries about others out.
        """
        self._make_entries()
        view = self._views[table]
        view.catch_up(self._behaviour.now().timestamp())
        return view.keys(group)

    def _changed(self, table: str, record_id: str, attributes: dict) -> dict:
        record = copy.deepcopy(self._records[table][record_id])
        record["attributes"]["updatedAt"] = time_text(self._behaviour.now())
        record["attributes"].update(copy.deepcopy(attributes))
        return record

    def _write(self, table: str, record: dict, verb: str) -> None:
        old = self._records[table].get(record["id"])
        self._records[table][record["id"]] = record
        self._show(table, record["id"])
        self._log(table, verb, old, record)

    def _show(self, table: str, record_id: str) -> None:
        """Let lists see a record's state at once, and search or the audit log after their lag."""
        self._orders.pop(table, None)
        now, lag = self._behaviour.now().timestamp(), self._lag(table)
        self._views[table].add(_Change(now + lag, record_id, self._records[table].get(record_id)))
        if not lag:
            # A change without a lag stays visible even if Kustomer's clock is set back.
            self._views[table].catch_up(now)

    def _lag(self, table: str) -> float:
        rules = self._behaviour
        return rules.audit_log_lag_seconds if table == "audit_logs" else rules.index_lag_seconds

    def _log(self, table: str, verb: str, old: Optional[dict], new: dict) -> None:
        """Note an event for the audit log, if it records the changes of this table."""
        if table not in AUDITED:
            return
        if (table, verb) == ("companies", "delete"):
            # Kustomer has no request that deletes a company. An update marks it as deleted.
            verb = "update"
        now = self._behaviour.now()
        due = now.timestamp() + self._lag("audit_logs")
        self._events.append(_Event(table, verb, old, new, now, due))

    def _make_entries(self) -> None:
        """Make the entries about all events so far."""
        events, self._events = self._events, []
        for event in events:
            number, self._entries_made = self._entries_made, self._entries_made + 1
            parts = ("attributes", "relationships")
            entry = audit_entry(
                number,
                event.at,
                (event.verb, TYPES[event.table], event.new["id"]),
                self._user(number),
                {part: _differences(part, event.old, event.new) for part in parts},
                self._behaviour.audit_log_days,
            )
            self._records["audit_logs"][entry["id"]] = entry
            self._views["audit_logs"].add(_Change(event.due, entry["id"], entry))

    def _user(self, number: int) -> Tuple[str, str]:
        """Return the id and type of one of the users in turn, or of the API key."""
        users = list(self._records["users"]) or [ORG_ID]
        return users[number % len(users)], "machine" if users == [ORG_ID] else "user"


def _is_listed(table: str, record: dict, part: str, rules: Behaviour) -> bool:
    """Return whether a record is on a list, or on a part of it as in `Store.listed`."""
    attributes = record["attributes"]
    if attributes.get("deleted") is True and not rules.lists_show_deleted:
        return False
    if table == "klasses":
        return attributes.get("status", "enabled") == (part or "enabled")
    if table == "kobjects" and part:
        return record["relationships"]["klass"]["data"]["id"] == part
    if table == "users":
        return _is_user_listed(attributes, part == "deactivated", rules.user_lists)
    return True


def _is_user_listed(user: dict, deactivated: bool, user_lists: str) -> bool:
    if user_lists == "ignores_deleted" or user_lists == "together" and not deactivated:
        return True
    # Only deactivated users have this time.
    return deactivated is bool(user.get("deletedAt"))


def _differences(part: str, old: Optional[dict], new: dict) -> Dict[str, dict]:
    """Return what the audit log shows of a change: the values before and after, by name.

    `part` is "attributes" or "relationships". Of a relationship, its data is shown.
    """
    before, after = ((record or {}).get(part) or {} for record in (old, new))
    if part == "relationships":
        before, after = (
            {name: relation.get("data") for name, relation in relations.items()}
            for relations in (before, after)
        )
    return {
        name: {"before": before.get(name), "after": after.get(name)}
        for name in {**before, **after}
        # The system sets this time with every change.
        if name != "updatedAt" and before.get(name) != after.get(name)
    }

"""Made-up Kustomer records, which depend only on the seed and the day.

Values are chosen from pools that faker fills, so that making 100,000 records takes seconds.
"""

import hashlib
import random
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

# Every table, and the type of its records.
TYPES = {
    "customers": "customer",
    "companies": "company",
    "brands": "brand",
    "messages": "message",
    "conversations": "conversation",
    "notes": "note",
    "users": "user",
    "teams": "team",
    "tags": "tag",
    "kobjects": "kobject",
    "klasses": "klass",
    "shortcuts": "shortcut",
    "audit_logs": "audit_log",
}
TABLES = tuple(TYPES)
ORG_ID = "57f29863a1dbf61100e6aa92"
# The statuses of klasses. A list of klasses shows those of one status.
KLASS_STATUSES = ("enabled", "existing_only", "disabled")

# The type and path of each relationship. In Kustomer's samples, the customer of a message has
# the type "customers".
_RELATED = {
    "company": ("company", "companies"),
    "customer": ("customers", "customers"),
    "conversation": ("conversation", "conversations"),
    "brand": ("brand", "brands"),
    "queue": ("queue", "routing/queues"),
    "createdBy": ("user", "users"),
    "modifiedBy": ("user", "users"),
    "klass": ("klass", "klasses"),
    "parent": ("shortcut", "shortcuts"),
}
_LOCALES = ("en_US", "de_DE", "ja_JP", "ru_RU", "zh_CN", "el_GR", "he_IL", "hi_IN", "ar_AA")
_POOL_SIZE = 40
_LONG_BODY_CHARACTERS = 20_000
_SAME_MOMENT_MESSAGES = 700
_MAX_CONVERSATION_MESSAGES = 12
_TEAM_NAMES = ("Support", "Billing", "Returns", "Escalations", "Sales", "Fraud")
_TAG_NAMES = ("refund", "shipping", "damaged", "login", "invoice", "discount", "feedback", "vip")
_KLASS_NAMES = ("order", "subscription", "warranty", "booking", "device")
_ORDER_STATUSES = ("paid", "paid", "shipped", "shipped", "shipped", "returned", "cancelled")
_SHORTCUT_NAMES = ("Greeting", "Apology", "Refund sent", "Where is my order", "Goodbye")
# What Kustomer returns as long as there is no response, or as long as nothing is done.
_NOTHING_YET = {"createdByTeams": [], "assignedUsers": [], "assignedTeams": []}
_FAILURES = (
    {"status": 400, "code": "invalid_recipient", "title": "The address does not exist"},
    {"status": 503, "code": "provider_error", "title": "The provider did not accept the message"},
)
_AUDIT_LOG_DAYS = 90
_APPS = {
    "email": "postmark",
    "chat": "chat",
    "sms": "twilio",
    "voice": "voice",
    "facebook": "facebook",
}

Records = Dict[str, Dict[str, dict]]


def time_text(moment: datetime) -> str:
    """Return a time in Kustomer's format: UTC, with milliseconds."""
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds")[:-6] + "Z"


def scattered(record_id: str) -> bytes:
    """Return a sort key that puts records into an order that a client cannot predict."""
    return hashlib.blake2b(record_id.encode(), digest_size=8).digest()


def audit_entry(
    number: int,
    at: datetime,
    event: Tuple[str, str, str],
    user: Tuple[Optional[str], str],
    changes: dict,
    days: int = _AUDIT_LOG_DAYS,
) -> dict:
    """Return an entry of the audit log.

    Args:
        number: distinguishes the entry from others of the same second.
        at: when the event happened.
        event: the verb, and the type and id of the object.
        user: the id, if it has one, and the type of who did it.
        changes: the old and new values by name, for "attributes" and "relationships".
        days: how long the entry is kept.
    """
    (verb, object_type, object_id), (user_id, user_type) = event, user
    entry_id, created_at = f"{int(at.timestamp()):08x}{number:016x}", time_text(at)
    attributes = {
        "eventName": f"kustomer.{object_type}.{verb}",
        "eventVerb": verb,
        "objectType": object_type,
        "objectId": object_id,
        "userType": user_type,
        "client": "web" if user_type == "user" else "api",
        "changes": changes,
        # Reserved for documentation, so it is nobody's address.
        "ip": "192.0.2.7",
        "publishedAt": created_at,
        "createdAt": created_at,
        "updatedAt": created_at,
        "expiresAt": time_text(at + timedelta(days=days)),
    }
    if user_id:
        attributes["userId"] = user_id
    return {
        "type": "audit_log",
        "id": entry_id,
        "attributes": attributes,
        "relationships": {"org": _org()},
        "links": {"self": f"/v1/audit-logs/{entry_id}"},
    }


def make_records(
    customers: int = 0,
    companies: int = 0,
    brands: int = 0,
    messages: int = 0,
    *,
    notes: int = 0,
    users: int = 0,
    teams: int = 0,
    tags: int = 0,
    kobjects: int = 0,
    klasses: int = 0,
    shortcuts: int = 0,
    audit_logs: int = 0,
    seed: int = 1,
    days: int = 60,
    before: Optional[datetime] = None,
    same_moment: int = _SAME_MOMENT_MESSAGES,
) -> Records:
    """Return records by table and id.

    Args:
        customers, companies, brands, messages, notes, users, teams, tags, kobjects, klasses,
            shortcuts, audit_logs: the number of each. Each conversation has two to twelve of the
            messages. The entries of the audit log are about the records made here.
        seed: the random seed. The same seed, numbers and `before` result in the same records.
        days: `updatedAt` is at most this many days before `before`. `createdAt` may be years ago.
        before: a time with a time zone. The default is today's midnight, UTC.
        same_moment: this many messages share one `updatedAt`. If there are fewer than twice as
            many messages, none do.
    """
    if before is None:
        before = datetime.now(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    maker = _Maker(seed, before - timedelta(days=days), before)
    records = maker.records
    for table, number in {
        "users": users,
        "teams": teams,
        "tags": tags,
        "companies": companies,
        "brands": brands,
        "customers": customers,
    }.items():
        maker.add_many(table, number)
    maker.add_conversations(messages)
    for table, number in {
        "notes": notes,
        "klasses": klasses,
        "kobjects": kobjects,
        "shortcuts": shortcuts,
    }.items():
        maker.add_many(table, number)
    if messages >= 2 * same_moment > 0:
        _share_updated_at(records["messages"], same_moment)
    maker.add_audit_logs(audit_logs)
    return records


def _org() -> dict:
    """Return the relationship that every record has."""
    return {"links": {"self": f"/v1/orgs/{ORG_ID}"}, "data": {"type": "org", "id": ORG_ID}}


def read_time(text: str) -> datetime:
    """Return the time that a text such as 2026-01-31T12:00:00.000Z denotes."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _numbered(names: tuple, place: int) -> str:
    """Return the name at a position. Once all names are used, they repeat with a number."""
    rounds, index = divmod(place, len(names))
    return f"{names[index]} {rounds + 1}" if rounds else names[index]


def _share_updated_at(messages: Dict[str, dict], number: int) -> None:
    chosen = list(messages.values())[-number:]
    moment = max(message["attributes"]["updatedAt"] for message in chosen)
    for message in chosen:
        message["attributes"]["updatedAt"] = moment


class _Thread(NamedTuple):
    """The values that the messages of a conversation share."""

    conversation: str
    customer: str
    channel: str
    subject: str
    user: str
    team: str


class _Words(NamedTuple):
    """The pools of values for records, in many languages."""

    names: List[str]
    first_names: List[str]
    last_names: List[str]
    company_names: List[str]
    sentences: List[str]
    paragraphs: List[str]
    emails: List[str]
    phones: List[str]
    domains: List[str]
    addresses: List[str]
    birthdays: List[str]


# Cached, because filling the pools takes longer than making a hundred records.
@lru_cache(maxsize=16)
def _words(seed: int) -> _Words:
    # Importing faker takes longer than most commands of this package that need no records.
    from faker import Faker

    fakers = [Faker(locale) for locale in _LOCALES]
    for number, fake in enumerate(fakers):
        fake.seed_instance(seed * 1000 + number)
    english = fakers[0]

    def pool(kind: str) -> List[str]:
        return [getattr(fake, kind)() for fake in fakers for _ in range(_POOL_SIZE)]

    def english_pool(make: Callable[[], str]) -> List[str]:
        return [make() for _ in range(_POOL_SIZE * 5)]

    return _Words(
        names=pool("name") + [f"{english.first_name()} {emoji}" for emoji in "😀🐈🚀👩‍💻🏳️‍🌈"],
        first_names=pool("first_name"),
        last_names=pool("last_name"),
        company_names=pool("company"),
        sentences=pool("sentence"),
        paragraphs=pool("paragraph") + ["Grüße 👋\n“quoted” \\ \t <b>bold</b> & more"],
        emails=english_pool(english.safe_email),
        phones=english_pool(lambda: english.numerify("+1###555####")),
        domains=english_pool(english.domain_name),
        addresses=pool("address"),
        birthdays=english_pool(lambda: f"{english.date('%Y-%m-%d')}T00:00:00.000Z"),
    )


class _Maker:
    """Makes records. Records share values, which are never changed in place.

    If a table has no records, other records refer to made-up ids instead.
    """

    def __init__(self, seed: int, start: datetime, end: datetime):
        self.random = random.Random(seed)
        self.start, self.span = start, (end - start) / timedelta(milliseconds=1)
        self.words = _words(seed)
        self.records: Records = {table: {} for table in TABLES}
        self.made_up = {table: [self._hex(24) for _ in range(8)] for table in TABLES}
        self.role_groups = [self._hex(24) for _ in range(3)]
        self.queues = [self._hex(24) for _ in range(3)]
        self.pools: Dict[str, List[str]] = {}
        self.long_body = ("A long story. " * _LONG_BODY_CHARACTERS)[:_LONG_BODY_CHARACTERS]
        self.made = 0

    def add_many(self, table: str, number: int) -> None:
        """Add `number` records to a table."""
        make = getattr(self, TYPES[table])
        for _ in range(number):
            self._add(table, make())

    def _add(self, table: str, record: dict) -> None:
        self.records[table][record["id"]] = record

    def _ids(self, table: str) -> List[str]:
        """Return the ids that other records may refer to. Call it when the table is complete."""
        if table not in self.pools:
            self.pools[table] = list(self.records[table]) or self.made_up[table]
        return self.pools[table]

    def _sample(self, table: str, most: int) -> List[str]:
        """Return at most `most` random ids of a table."""
        ids = self._ids(table)
        return self.random.sample(ids, min(self.random.randrange(most + 1), len(ids)))

    def _hex(self, digits: int) -> str:
        return f"{self.random.getrandbits(digits * 4):0{digits}x}"

    def _chance(self, share: float) -> bool:
        return self.random.random() < share

    def _random_time(self) -> datetime:
        return self.start + timedelta(milliseconds=int(self.random.random() * self.span))

    def _times(self) -> Dict[str, str]:
        """Return createdAt, updatedAt and sometimes modifiedAt.

        Some records are created years before, because importers may set createdAt.
        """
        updated = self._random_time()
        age = self.random.random() * (3000 if self._chance(0.1) else 5)
        times = {"createdAt": time_text(updated - timedelta(days=age))}
        times["updatedAt"] = time_text(updated)
        if self._chance(0.3):
            times["modifiedAt"] = times["updatedAt"]
        return times

    def _new_id(self) -> str:
        """Return an id that is greater than all previous ids."""
        self.made += 1
        return f"{0x66000000 + self.made:08x}{self._hex(16)}"

    def _author(self, share: float) -> Optional[str]:
        """Return the id of a user for this share of the calls, otherwise None."""
        return self.random.choice(self._ids("users")) if self._chance(share) else None

    def _sentiment(self) -> dict:
        """Return a sentiment, which most records do not have."""
        if not self._chance(0.3):
            return {}
        polarity, confidence = self.random.randint(-1, 1), self.random.random()
        return {"polarity": polarity, "confidence": round(confidence, 2)}

    def _record(
        self,
        table: str,
        attributes: dict,
        record_id: str = "",
        self_path: str = "",
        **related: Optional[str],
    ) -> dict:
        """Return a record with these attributes, its relationships and its links."""
        record_id = record_id or self._new_id()
        relationships = {"org": _org()}
        if table == "customers" and self._chance(0.5):
            # Some relationships have only a link.
            relationships["messages"] = {"links": {"self": f"/v1/customers/{record_id}/messages"}}
        for name, related_id in related.items():
            if related_id:
                of_type, path = _RELATED[name]
                relationships[name] = {
                    "links": {"self": f"/v1/{path}/{related_id}"},
                    "data": {"type": of_type, "id": related_id},
                }
        return {
            "type": TYPES[table],
            "id": record_id,
            "attributes": attributes,
            "relationships": relationships,
            "links": {"self": f"/v1/{self_path or table}/{record_id}"},
        }

    def company(self) -> dict:
        choose, domain = self.random.choice, self.random.choice(self.words.domains)
        attributes = {"name": choose(self.words.company_names), **self._times()}
        attributes["tags"] = self._sample("tags", 2)
        if self._chance(0.8):
            attributes["domains"] = [{"domain": domain}, {"domain": choose(self.words.domains)}]
        elif self._chance(0.5):
            attributes["domains"] = [domain]
        if self._chance(0.7):
            attributes["urls"] = [
                {"url": f"https://blog.{domain}", "type": "blog"},
                {"url": f"https://{domain}", "type": "website"},
            ]
        if self._chance(0.5):
            attributes[choose(("externalId", "extenalId"))] = f"ext-{self._hex(6)}"
        if self._chance(0.3):
            attributes["custom"] = {"tierStr": choose(("gold", "silver")), "seatsNum": 12}
        return self._record("companies", attributes, createdBy=self._author(0.3))

    def brand(self) -> dict:
        attributes = {
            "name": self.random.choice(self.words.company_names),
            "default": not self.records["brands"],
            **self._times(),
        }
        if self._chance(0.5):
            attributes["iconUrl"] = f"https://{self.random.choice(self.words.domains)}/icon.png"
        return self._record("brands", attributes, createdBy=self._author(0.5))

    def customer(self) -> dict:
        choose = self.random.choice
        name = choose(self.words.names)
        attributes = {
            "name": name,
            "displayName": name,
            "displayColor": choose(("green", "blue", "red")),
            "displayIcon": "compass",
            "externalIds": [],
            "sharedExternalIds": [],
            "emails": self._addresses("email", self.words.emails),
            "sharedEmails": [],
            "phones": self._addresses("phone", self.words.phones),
            "sharedPhones": [],
            "socials": [],
            "sharedSocials": [],
            "urls": [],
            "locations": [],
            "activeUsers": [],
            "watchers": [],
            "whatsapps": [],
            "recentLocation": {},
            "locale": choose(("en_US", "de_DE", "ja_JP")),
            "sentiment": self._sentiment(),
            "satisfactionLevel": {"sentByTeams": [], "answers": []},
            "lastMessageIn": {"sentiment": {}},
            "lastConversation": {"tags": [], "sentiment": {}},
            "conversationCounts": {"done": 3, "open": 1, "snoozed": 0, "all": 4},
            "preview": {},
            "tags": self._sample("tags", 2),
            "progressiveStatus": None,
            "verified": self._chance(0.5),
            "rev": self.random.randrange(1, 50),
            **self._times(),
        }
        attributes["lastActivityAt"] = attributes["updatedAt"]
        self._vary_customer(attributes)
        self._vary_contacts(attributes)
        self._vary_profile(attributes)
        companies = list(self.records["companies"]) and self._ids("companies")
        return self._record(
            "customers",
            attributes,
            company=choose(companies) if companies and self._chance(0.7) else None,
            createdBy=self._author(0.3),
        )

    def _vary_customer(self, customer: dict) -> None:
        """Remove or add attributes that only some customers have."""
        choose = self.random.choice
        if self._chance(0.1):
            del customer["name"]
        elif self._chance(0.1):
            customer["name"] = None
        if self._chance(0.1):
            del customer["verified"]
        if self._chance(0.4):
            customer["externalIds"] = [{"externalId": f"shop-{self._hex(8)}", "verified": True}]
        if self._chance(0.2):
            customer["externalId"] = f"crm-{self._hex(8)}"
        if self._chance(0.5):
            customer["custom"] = {
                "planStr": choose(("free", "pro")),
                "noteTxt": choose(self.words.sentences),
                "spentNum": round(self.random.random() * 1000, 2),
            }
        if self._chance(0.02):
            customer["deleted"] = True
        elif self._chance(0.8):
            customer["deleted"] = False

    def _vary_contacts(self, customer: dict) -> None:
        """Add addresses that other customers may have too, and other ways to reach a customer.

        One customer in twenty has only a shared address, as in a live sample.
        """
        choose, words = self.random.choice, self.words
        if self._chance(0.05):
            customer["emails"] = []
            customer["sharedEmails"] = [{"email": choose(words.emails), "verified": False}]
        elif self._chance(0.05):
            customer["sharedEmails"] = [
                {"email": choose(words.emails), "verified": verified} for verified in (False, True)
            ]
        if self._chance(0.05):
            customer["sharedPhones"] = [{"phone": choose(words.phones), "verified": False}]
        if self._chance(0.1):
            customer["whatsapps"] = [{"phone": choose(words.phones)}]
        if self._chance(0.05):
            customer["sharedExternalIds"] = [
                {"externalId": f"family-{self._hex(6)}", "verified": True}
            ]
        if self._chance(0.2):
            url = f"https://{choose(words.domains)}"
            customer["urls"] = [{"url": url, "type": "website"}]
            customer["socials"] = [
                {
                    "type": "instagram",
                    "userid": self._hex(8),
                    "username": choose(words.first_names),
                    "url": url,
                    "verified": False,
                }
            ]
        if self._chance(0.2):
            customer["locations"] = [{"type": "home", "address": choose(words.addresses)}]

    def _vary_profile(self, customer: dict) -> None:
        """Add what Kustomer or an importer knows about some customers."""
        choose, words, updated = self.random.choice, self.words, customer["updatedAt"]
        if self._chance(0.5):
            customer["firstName"] = choose(words.first_names)
            customer["lastName"] = choose(words.last_names)
        if self._chance(0.3):
            customer["username"] = f"user{self._hex(5)}"
            customer["avatarUrl"] = f"https://{choose(words.domains)}/avatar.png"
            customer["signedUpAt"] = customer["createdAt"]
        if self._chance(0.2):
            customer["companyName"] = choose(words.company_names)
            customer["gender"] = choose(("f", "m", "x"))
            customer["birthdayAt"] = choose(words.birthdays)
        if self._chance(0.6):
            customer["timeZone"] = choose(("Europe/Berlin", "America/New_York", "Asia/Tokyo"))
            customer["lastSeenAt"] = updated
        if self._chance(0.6):
            customer["lastCustomerActivityAt"] = updated
            customer["progressiveStatus"] = choose(("open", "done", "snoozed"))
        if self._chance(0.1):
            customer["watchers"] = self._sample("users", 2)
        if self._chance(0.1):
            customer["satisfactionLevel"] = {
                "sentByTeams": self._sample("teams", 1),
                "answers": [],
                "rating": self.random.randint(1, 5),
            }

    def _addresses(self, kind: str, pool: List[str]) -> List[dict]:
        number = self.random.choice((0, 1, 1, 1, 2, 3))
        return [
            {kind: self.random.choice(pool), "verified": self._chance(0.4), "type": "home"}
            for _ in range(number)
        ]

    def add_conversations(self, messages: int) -> None:
        """Add `messages` messages and their conversations."""
        while messages:
            size = min(self.random.randint(2, _MAX_CONVERSATION_MESSAGES), messages)
            if messages - size == 1:
                # Otherwise a single message would remain for the last conversation.
                size += 1 if size < _MAX_CONVERSATION_MESSAGES else -1
            messages -= size
            self._add_conversation(size)

    def _add_conversation(self, size: int) -> None:
        """Add a conversation of one customer on one channel, with `size` messages."""
        choose = self.random.choice
        thread = _Thread(
            conversation=self._new_id(),
            customer=choose(self._ids("customers")),
            channel=choose(tuple(_APPS)),
            subject=choose(self.words.sentences),
            user=choose(self._ids("users")),
            team=choose(self._ids("teams")),
        )
        brand = choose(self._ids("brands"))
        kinds = list(self._direction_types(size))
        delay_factor = (1 + self._ids("teams").index(thread.team)) * (
            1 + self._ids("brands").index(brand)
        )
        moments = self._message_times(kinds, delay_factor)
        messages = []
        for kind, moment in zip(kinds, moments):
            messages.append(self._message(thread, kind, moment))
            self._add("messages", messages[-1])
        self._add("conversations", self._conversation(thread, brand, messages))

    def _direction_types(self, size: int) -> Iterator[str]:
        """Yield the directionType of each message of a conversation."""
        answered = size > 3 or self._chance(0.5)
        yield "initial-in"
        if size > 1:
            yield "response-out" if answered else "followup-in"
        for _ in range(size - 2):
            yield "followup-out" if answered and self._chance(0.5) else "followup-in"

    def _message_times(self, kinds: List[str], delay_factor: int) -> List[datetime]:
        """Return the time of each message. Messages are minutes to hours apart.

        The time before a first response is proportional to `delay_factor`.
        """
        gaps = [0.0]
        for kind in kinds[1:]:
            minutes = self.random.lognormvariate(3.0, 0.8)
            gaps.append(minutes * 60_000 * (delay_factor if kind == "response-out" else 2))
        # The last message is written before the end, so that it can still be updated.
        longest = self.span * 0.99
        scale = min(1.0, longest / (sum(gaps) or 1))
        moment = self.random.random() * (longest - sum(gaps) * scale)
        moments = []
        for gap in gaps:
            moment += gap * scale
            moments.append(self.start + timedelta(milliseconds=int(moment)))
        return moments

    def _updated(self, moment: datetime) -> datetime:
        """Return an update time up to one day after `moment`, but not after the last day."""
        left = self.start + timedelta(milliseconds=self.span) - moment
        return moment + min(timedelta(days=1), left) * self.random.random() ** 4

    def _conversation(self, thread: _Thread, brand: str, messages: List[dict]) -> dict:
        """Return the conversation of these messages."""
        choose = self.random.choice
        first, last = messages[0]["attributes"], messages[-1]["attributes"]
        replies = [one for one in messages if one["attributes"]["direction"] == "out"]
        status = choose(("done", "done", "open", "snoozed")) if replies else "open"
        ended_at = time_text(self._updated(read_time(last["createdAt"])))
        attributes = {
            "name": thread.subject,
            "channels": [thread.channel],
            "status": status,
            "direction": first["direction"],
            "priority": self.random.randint(1, 5),
            "tags": self._sample("tags", 3),
            "assignedUsers": [thread.user] if replies else [],
            "assignedTeams": [thread.team],
            "messageCount": len(messages),
            "noteCount": 0,
            "inboundMessageCount": len(messages) - len(replies),
            "outboundMessageCount": len(replies),
            "doneCount": int(status == "done"),
            "reopenCount": self.random.randrange(2) if status == "done" else 0,
            "snooze": {},
            "snoozeCount": int(status == "snoozed"),
            "satisfaction": 0,
            "satisfactionLevel": {"sentByTeams": [], "answers": []},
            "firstResponse": _NOTHING_YET,
            "lastResponse": _NOTHING_YET,
            "firstDone": _NOTHING_YET,
            "lastDone": _NOTHING_YET,
            "sentiment": self._sentiment(),
            "suggestedTags": self._sample("tags", 1),
            "ended": status == "done",
            "createdAt": first["createdAt"],
            "updatedAt": ended_at,
            "lastActivityAt": ended_at,
            "lastMessageAt": last["createdAt"],
            "rev": self.random.randrange(1, 50),
        }
        if "preview" in last:
            attributes["preview"] = last["preview"]
        if replies:
            attributes["firstResponse"] = self._response(messages[0], replies[0])
            attributes["lastResponse"] = self._response(messages[0], replies[-1])
        if status == "done":
            done = {"createdBy": thread.user, "createdAt": ended_at, "messageCount": len(messages)}
            attributes.update(firstDone=done, lastDone=done)
            attributes.update(endedAt=ended_at, endedReason="manual", endedByType="user")
        self._vary_conversation(attributes)
        return self._record(
            "conversations",
            attributes,
            thread.conversation,
            customer=thread.customer,
            brand=brand,
            queue=choose(self.queues) if self._chance(0.5) else None,
            createdBy=thread.user if self._chance(0.1) else None,
        )

    def _vary_conversation(self, conversation: dict) -> None:
        """Remove or add attributes that only some conversations have."""
        if self._chance(0.3):
            conversation["externalId"] = (
                f"<{self._hex(16)}@{self.random.choice(self.words.domains)}>"
            )
        if self._chance(0.2):
            conversation["sla"] = {"name": "Two hours", "breached": self._chance(0.5)}
        if self._chance(0.2):
            conversation["custom"] = {"orderNumberStr": self._hex(8)}
        if self._chance(0.1):
            del conversation["priority"]
        if self._chance(0.3):
            conversation["modifiedAt"] = conversation["updatedAt"]
        if self._chance(0.8):
            conversation.update(spam=self._chance(0.02), locked=self._chance(0.02))
        if conversation["status"] == "snoozed":
            conversation["snooze"] = {"status": "snoozed", "setBy": "user"}
        if self._chance(0.01):
            conversation["deleted"] = True

    @staticmethod
    def _response(first: dict, reply: dict) -> dict:
        """Return a conversation's firstResponse or lastResponse.

        `first` is the conversation's first message. The response time is in milliseconds.
        """
        asked_at, at = (read_time(record["attributes"]["createdAt"]) for record in (first, reply))
        return {
            "id": reply["id"],
            "createdBy": reply["relationships"]["createdBy"]["data"]["id"],
            "createdAt": reply["attributes"]["createdAt"],
            "responseTime": int((at - asked_at) / timedelta(milliseconds=1)),
        }

    def _message(self, thread: _Thread, kind: str, moment: datetime) -> dict:
        choose = self.random.choice
        incoming, body = kind.endswith("-in"), choose(self.words.paragraphs)
        created = time_text(moment)
        attributes = {
            "channel": thread.channel,
            "app": _APPS[thread.channel],
            "direction": "in" if incoming else "out",
            "directionType": kind,
            "status": "received" if incoming else "sent",
            "preview": body,
            "size": len(body),
            "sentiment": self._sentiment(),
            "auto": not incoming and self._chance(0.1),
            "meta": self._message_meta(),
            "createdAt": created,
            "updatedAt": time_text(self._updated(moment)),
        }
        self._assign(attributes, thread)
        if self._chance(0.3):
            attributes["modifiedAt"] = attributes["updatedAt"]
        if self._chance(0.8):
            attributes["sentAt"] = created
        if thread.channel == "email":
            # Documented samples have the subject in meta, not among the attributes.
            place = attributes if self._chance(0.1) else attributes["meta"]
            place["subject"] = thread.subject
            attributes["externalId"] = f"<{self._hex(16)}@{choose(self.words.domains)}>"
        # No documented response has a body. They have a preview instead.
        if self._chance(0.1):
            attributes["body"] = f"{body}\n\n-- \n{thread.subject}"
        if self._chance(0.002):
            attributes["body"] = self.long_body
        if self._chance(0.1):
            attributes["custom"] = {"scoreNum": self.random.randrange(10)}
        if self._chance(0.1):
            attributes["source"] = choose(("api", "widget"))
        self._redact_or_fail(attributes)
        record = self._record(
            "messages",
            attributes,
            customer=thread.customer,
            conversation=thread.conversation,
            createdBy=None if incoming else thread.user,
        )
        if self._chance(0.08):
            files = [
                {"type": "attachment", "id": self._new_id()} for _ in range(choose((1, 1, 2)))
            ]
            record["relationships"]["attachments"] = {
                "links": {"self": f"/v1/messages/{record['id']}/attachments"},
                "data": files,
            }
        return record

    def _redact_or_fail(self, message: dict) -> None:
        """Redact a few messages, which takes their text away. Let one in a hundred fail.

        Only outgoing messages can fail. About half of the messages are outgoing.
        """
        if self._chance(0.5):
            message["redacted"] = False
        if self._chance(0.005):
            message.pop("body", None)
            del message["preview"]
            message.update(redacted=True, redactedAt=message["updatedAt"])
        elif message["direction"] == "out" and self._chance(0.02):
            message.pop("sentAt", None)
            failure = self.random.choice(_FAILURES)
            message.update(status="error", error=failure, errorAt=message["updatedAt"])

    def _assign(self, message: dict, thread: _Thread) -> None:
        """Set the teams of the author and the assigned users and teams of most messages."""
        incoming = message["direction"] == "in"
        for name, table, known in (
            ("createdByTeams", "teams", [] if incoming else [thread.team]),
            ("assignedUsers", "users", [] if incoming else [thread.user]),
            ("assignedTeams", "teams", [thread.team]),
        ):
            more = self._sample(table, 1) if self._chance(0.2) else []
            if self._chance(0.8):
                message[name] = known + [one for one in more if one not in known]

    def note(self) -> dict:
        """Return a note on a conversation, and increment the conversation's noteCount."""
        conversation_id = self.random.choice(self._ids("conversations"))
        conversation = self.records["conversations"].get(conversation_id)
        attributes = {"body": self.random.choice(self.words.paragraphs), **self._times()}
        if self._chance(0.3):
            attributes["userMentions"] = self._sample("users", 2)
        if self._chance(0.1):
            attributes["externalId"] = f"note-{self._hex(6)}"
        customer = self.random.choice(self._ids("customers"))
        if conversation:
            conversation["attributes"]["noteCount"] += 1
            customer = conversation["relationships"]["customer"]["data"]["id"]
        return self._record(
            "notes",
            attributes,
            conversation=conversation_id,
            customer=customer,
            createdBy=self.random.choice(self._ids("users")),
        )

    def user(self) -> dict:
        """Return a user. Every sixth user is deactivated."""
        number = len(self.records["users"])
        name = self.random.choice(self.words.names)
        attributes = {
            "name": name,
            "displayName": name.split()[0],
            "email": f"agent{number}@{self.random.choice(self.words.domains)}",
            "userType": self.random.choice(("user", "user", "user", "limited", "machine")),
            "roles": ["org.user"],
            "roleGroups": self.random.sample(self.role_groups, self.random.randrange(3)),
            **self._times(),
        }
        if self._chance(0.3):
            attributes["mobile"] = self.random.choice(self.words.phones)
        if self._chance(0.3):
            attributes["avatarUrl"] = (
                f"https://{self.random.choice(self.words.domains)}/{number}.png"
            )
        if number % 6 == 5:
            attributes["deletedAt"] = attributes["updatedAt"]
        return self._record("users", attributes)

    def team(self) -> dict:
        """Return a team with up to five of the users as members."""
        attributes = {
            "name": _numbered(_TEAM_NAMES, len(self.records["teams"])),
            "icon": "users",
            "members": self._sample("users", 5),
            "roleGroups": self.random.sample(self.role_groups, self.random.randrange(3)),
            **self._times(),
        }
        if self._chance(0.5):
            attributes["displayName"] = f"The {attributes['name']} team"
        return self._record("teams", attributes)

    def tag(self) -> dict:
        """Return a tag."""
        attributes = {
            "name": _numbered(_TAG_NAMES, len(self.records["tags"])),
            "color": self.random.choice(("red", "green", "#3366cc")),
            **self._times(),
        }
        return self._record("tags", attributes)

    def klass(self) -> dict:
        """Return a klass. The first is named "order"; the statuses take turns."""
        number = len(self.records["klasses"])
        name = _numbered(_KLASS_NAMES, number).replace(" ", "")
        attributes = {
            "name": name,
            "displayName": name.title(),
            "icon": "bag",
            "color": self.random.choice(("red", "green", "#3366cc")),
            "status": KLASS_STATUSES[number % len(KLASS_STATUSES)],
            "appDisabled": False,
            "mixins": [],
            **self._times(),
        }
        if self._chance(0.5):
            attributes["appVersion"] = "1.2.0"
            attributes["mixins"] = [{"name": "timeline", "version": 1}]
        return self._record("klasses", attributes)

    def kobject(self) -> dict:
        """Return a custom object of a customer. Most are orders."""
        choose, klasses = self.random.choice, self._ids("klasses")
        klass_id = klasses[0] if self._chance(0.8) else choose(klasses)
        klass = self.records["klasses"].get(klass_id)
        klass_name = klass["attributes"]["name"] if klass else "order"
        customer_id = choose(self._ids("customers"))
        customer = self.records["customers"].get(customer_id, {"relationships": {}})
        company = customer["relationships"].get("company")
        attributes = {
            "title": f"{klass_name.title()} {len(self.records['kobjects']) + 1001}",
            "icon": "bag",
            "tags": self._sample("tags", 2),
            "images": [],
            "doneCount": 0,
            "reopenCount": 0,
            "firstDone": _NOTHING_YET,
            "lastDone": _NOTHING_YET,
            **self._times(),
        }
        self._vary_kobject(attributes, klass_name)
        return self._record(
            "kobjects",
            attributes,
            self_path=f"klasses/{klass_name}",
            klass=klass_id,
            customer=customer_id,
            company=company["data"]["id"] if company else None,
            queue=choose(self.queues) if self._chance(0.3) else None,
        )

    def _vary_kobject(self, kobject: dict, klass_name: str) -> None:
        """Add attributes that only some custom objects have."""
        choose = self.random.choice
        if klass_name == "order":
            kobject["custom"] = {
                "orderNumberStr": f"A-{self._hex(6)}",
                "statusStr": choose(_ORDER_STATUSES),
                "totalNum": round(self.random.lognormvariate(4, 0.8), 2),
            }
        if self._chance(0.5):
            kobject["externalId"] = f"shop-{self._hex(8)}"
            kobject["description"] = choose(self.words.sentences)
        if self._chance(0.2):
            kobject["images"] = [f"https://{choose(self.words.domains)}/parcel.png"]
        if self._chance(0.3):
            kobject["assignedUser"] = choose(self._ids("users"))
            kobject["assignedTeam"] = choose(self._ids("teams"))
        if self._chance(0.5):
            kobject["status"] = choose(("open", "done"))
        if kobject.get("status") == "done":
            done = {"createdBy": choose(self._ids("users")), "createdAt": kobject["updatedAt"]}
            kobject.update(firstDone=done, lastDone=done, doneCount=1)
            kobject["reopenCount"] = self.random.randrange(2)
        if self._chance(0.02):
            kobject["deleted"] = True
        elif self._chance(0.5):
            kobject["deleted"] = False

    def shortcut(self) -> dict:
        """Return a canned answer, perhaps below another one."""
        choose, others = self.random.choice, list(self.records["shortcuts"])
        attributes = {
            "name": _numbered(_SHORTCUT_NAMES, len(others)),
            "payload": {"text": choose(self.words.paragraphs), "tags": self._sample("tags", 1)},
            "draft": {},
            "isPrivate": self._chance(0.2),
            "appDisabled": False,
            **self._times(),
        }
        if self._chance(0.2):
            attributes["draft"] = {"text": choose(self.words.sentences)}
        if self._chance(0.5):
            attributes["deleted"] = self._chance(0.05)
        return self._record(
            "shortcuts",
            attributes,
            parent=choose(others) if others and self._chance(0.3) else None,
            createdBy=choose(self._ids("users")),
            modifiedBy=self._author(0.5),
        )

    def add_audit_logs(self, number: int) -> None:
        """Add entries about records that were created or updated, in the order of their times."""
        events = sorted((self._event() for _ in range(number)), key=lambda event: event[:2])
        for place, (at, object_id, verb, table) in enumerate(events):
            user = self._author(0.9)
            entry = audit_entry(
                place,
                at,
                (verb, TYPES[table], object_id),
                (user, "user" if user else "system"),
                self._changes(self.records[table].get(object_id), verb),
            )
            self._add("audit_logs", entry)

    def _event(self) -> Tuple[datetime, str, str, str]:
        """Return when a record was created or updated, its id, the verb and its table."""
        table = self.random.choice(("customers", "conversations", "messages", "companies"))
        object_id = self.random.choice(self._ids(table))
        record = self.records[table].get(object_id)
        if record is None:
            return self._random_time(), object_id, "update", table
        created, updated = (record["attributes"][name] for name in ("createdAt", "updatedAt"))
        if created >= time_text(self.start) and self._chance(0.4):
            return read_time(created), object_id, "create", table
        return read_time(updated), object_id, "update", table

    def _changes(self, record: Optional[dict], verb: str) -> dict:
        """Return the changes of an entry, with values of the record that the entry is about."""
        if record is None:
            return {"attributes": {}, "relationships": {}}
        attributes = record["attributes"]
        names = self.random.sample(list(attributes), self.random.randint(1, 3))
        related = [name for name in ("customer", "company") if name in record["relationships"]]
        return {
            "attributes": {name: {"before": None, "after": attributes[name]} for name in names},
            "relationships": {
                name: {"before": None, "after": record["relationships"][name]["data"]}
                for name in related
                if verb == "create"
            },
        }

    def _message_meta(self) -> dict:
        """Return meta. In Kustomer's responses, `to` is an array, an object or a string."""
        address = self.random.choice(self.words.emails)
        to = self.random.choice(([{"email": address}], {"email": address}, address))
        return {"to": to, "cc": [], "from": self.random.choice(self.words.emails)}

"""Made-up Kustomer records, the same for the same seed and day.

Values come from pools filled by faker, so that a hundred thousand records take seconds.
"""

import hashlib
import random
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional

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
}
TABLES = tuple(TYPES)
ORG_ID = "57f29863a1dbf61100e6aa92"

# The type and path of each relationship. The customer of a message is of type "customers" in
# Kustomer's own samples.
_RELATED = {
    "company": ("company", "companies"),
    "customer": ("customers", "customers"),
    "conversation": ("conversation", "conversations"),
    "brand": ("brand", "brands"),
    "queue": ("queue", "routing/queues"),
    "createdBy": ("user", "users"),
}
_LOCALES = ("en_US", "de_DE", "ja_JP", "ru_RU", "zh_CN", "el_GR", "he_IL", "hi_IN", "ar_AA")
_POOL_SIZE = 40
_LONG_BODY_CHARACTERS = 20_000
_SAME_MOMENT_MESSAGES = 700
_MOST_MESSAGES_OF_CONVERSATION = 12
_TEAM_NAMES = ("Support", "Billing", "Returns", "Escalations", "Sales", "Fraud")
_TAG_NAMES = ("refund", "shipping", "damaged", "login", "invoice", "discount", "feedback", "vip")
_APPS = {
    "email": "postmark",
    "chat": "chat",
    "sms": "twilio",
    "voice": "voice",
    "facebook": "facebook",
}

Records = Dict[str, Dict[str, dict]]


def time_text(moment: datetime) -> str:
    """Return a UTC moment as Kustomer writes it, to the millisecond."""
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds")[:-6] + "Z"


def scattered(record_id: str) -> bytes:
    """Return a sort key that puts records into an order no client could know."""
    return hashlib.blake2b(record_id.encode(), digest_size=8).digest()


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
    seed: int = 1,
    days: int = 60,
    before: Optional[datetime] = None,
    same_moment: int = _SAME_MOMENT_MESSAGES,
) -> Records:
    """Return records by table and id.

    Args:
        customers, companies, brands, messages, notes, users, teams, tags: how many of each. There
            are as many conversations as the messages belong to, two to twelve messages in each.
        seed: the same seed, numbers and `before` give the same records.
        days: `updatedAt` lies in this many days before `before`; `createdAt` may lie years back.
        before: an aware time; midnight UTC of today when None.
        same_moment: this many messages share one `updatedAt`; none do when there are fewer than
            twice as many.
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
        maker.many(table, number)
    maker.converse(messages)
    maker.many("notes", notes)
    if messages >= 2 * same_moment > 0:
        _share_one_moment(records["messages"], same_moment)
    return records


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _numbered(names: tuple, place: int) -> str:
    """Return a name for each place, with a number once all names are used."""
    rounds, index = divmod(place, len(names))
    return f"{names[index]} {rounds + 1}" if rounds else names[index]


def _share_one_moment(messages: Dict[str, dict], number: int) -> None:
    chosen = list(messages.values())[-number:]
    moment = max(message["attributes"]["updatedAt"] for message in chosen)
    for message in chosen:
        message["attributes"]["updatedAt"] = moment


class _Talk(NamedTuple):
    """What the messages of a conversation have in common."""

    conversation: str
    customer: str
    channel: str
    subject: str
    user: str
    team: str


class _Words(NamedTuple):
    """What records are made of, in many languages."""

    names: List[str]
    first_names: List[str]
    company_names: List[str]
    sentences: List[str]
    paragraphs: List[str]
    emails: List[str]
    phones: List[str]
    domains: List[str]


# Takes longer than making a hundred records from it.
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
        company_names=pool("company"),
        sentences=pool("sentence"),
        paragraphs=pool("paragraph") + ["Grüße 👋\n“quoted” \\ \t <b>bold</b> & more"],
        emails=english_pool(english.safe_email),
        phones=english_pool(lambda: english.numerify("+1###555####")),
        domains=english_pool(english.domain_name),
    )


class _Maker:
    """Makes single records. Shared values are never changed in place: a record is replaced.

    Where a table has no records, others refer to made-up ids of it.
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

    def many(self, table: str, number: int) -> None:
        """Add so many records to a table."""
        make = getattr(self, TYPES[table])
        for _ in range(number):
            self._add(table, make())

    def _add(self, table: str, record: dict) -> None:
        self.records[table][record["id"]] = record

    def _ids(self, table: str) -> List[str]:
        """Return the ids that others may refer to, once no more are made."""
        if table not in self.pools:
            self.pools[table] = list(self.records[table]) or self.made_up[table]
        return self.pools[table]

    def _some(self, table: str, most: int) -> List[str]:
        """Return up to so many ids of a table."""
        ids = self._ids(table)
        return self.random.sample(ids, min(self.random.randrange(most + 1), len(ids)))

    def _hex(self, digits: int) -> str:
        return f"{self.random.getrandbits(digits * 4):0{digits}x}"

    def _chance(self, share: float) -> bool:
        return self.random.random() < share

    def _times(self) -> Dict[str, str]:
        """Return createdAt, updatedAt and at times modifiedAt; importers set old createdAt."""
        updated = self.start + timedelta(milliseconds=int(self.random.random() * self.span))
        age = self.random.random() * (3000 if self._chance(0.1) else 5)
        times = {"createdAt": time_text(updated - timedelta(days=age))}
        times["updatedAt"] = time_text(updated)
        if self._chance(0.3):
            times["modifiedAt"] = times["updatedAt"]
        return times

    def _new_id(self) -> str:
        """Return an id; ids are in the order of making."""
        self.made += 1
        return f"{0x66000000 + self.made:08x}{self._hex(16)}"

    def _record(
        self, table: str, attributes: dict, record_id: str = "", **related: Optional[str]
    ) -> dict:
        """Return a record around its attributes."""
        record_id = record_id or self._new_id()
        relationships = {
            "org": {
                "links": {"self": f"/v1/orgs/{ORG_ID}"},
                "data": {"type": "org", "id": ORG_ID},
            }
        }
        if table == "customers" and self._chance(0.5):
            # Some relationships only say where to look.
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
            "links": {"self": f"/v1/{table}/{record_id}"},
        }

    def company(self) -> dict:
        choose, domain = self.random.choice, self.random.choice(self.words.domains)
        attributes = {"name": choose(self.words.company_names), **self._times()}
        attributes["tags"] = self._some("tags", 2)
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
        return self._record("companies", attributes)

    def brand(self) -> dict:
        attributes = {
            "name": self.random.choice(self.words.company_names),
            "default": not self.records["brands"],
            **self._times(),
        }
        if self._chance(0.5):
            attributes["iconUrl"] = f"https://{self.random.choice(self.words.domains)}/icon.png"
        return self._record("brands", attributes)

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
            "recentLocation": {},
            "locale": choose(("en_US", "de_DE", "ja_JP")),
            "lastMessageIn": {"sentiment": {}},
            "lastConversation": {"tags": [], "sentiment": {}},
            "conversationCounts": {"done": 3, "open": 1, "snoozed": 0, "all": 4},
            "preview": {},
            "tags": self._some("tags", 2),
            "progressiveStatus": None,
            "verified": self._chance(0.5),
            "rev": self.random.randrange(1, 50),
            **self._times(),
        }
        attributes["lastActivityAt"] = attributes["updatedAt"]
        self._make_odd(attributes)
        companies = list(self.records["companies"]) and self._ids("companies")
        return self._record(
            "customers",
            attributes,
            company=choose(companies) if companies and self._chance(0.7) else None,
        )

    def _make_odd(self, customer: dict) -> None:
        """Make a customer one of those that are not complete, or have more than most."""
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
            customer["firstName"] = choose(self.words.first_names)
            customer["custom"] = {
                "planStr": choose(("free", "pro")),
                "noteTxt": choose(self.words.sentences),
                "spentNum": round(self.random.random() * 1000, 2),
            }
        if self._chance(0.02):
            customer["deleted"] = True
        elif self._chance(0.8):
            customer["deleted"] = False

    def _addresses(self, kind: str, pool: List[str]) -> List[dict]:
        number = self.random.choice((0, 1, 1, 1, 2, 3))
        return [
            {kind: self.random.choice(pool), "verified": self._chance(0.4), "type": "home"}
            for _ in range(number)
        ]

    def converse(self, messages: int) -> None:
        """Add so many messages, and the conversations that they belong to."""
        while messages:
            size = min(self.random.randint(2, _MOST_MESSAGES_OF_CONVERSATION), messages)
            if messages - size == 1:
                # A single message would be left for the last conversation.
                size += 1 if size < _MOST_MESSAGES_OF_CONVERSATION else -1
            messages -= size
            self._add_conversation(size)

    def _add_conversation(self, size: int) -> None:
        """Add a conversation of one customer on one channel, and its messages in turn."""
        choose = self.random.choice
        talk = _Talk(
            conversation=self._new_id(),
            customer=choose(self._ids("customers")),
            channel=choose(tuple(_APPS)),
            subject=choose(self.words.sentences),
            user=choose(self._ids("users")),
            team=choose(self._ids("teams")),
        )
        brand = choose(self._ids("brands"))
        kinds = list(self._turns(size))
        slowness = (1 + self._ids("teams").index(talk.team)) * (
            1 + self._ids("brands").index(brand)
        )
        moments = self._moments(kinds, slowness)
        said = []
        for kind, moment in zip(kinds, moments):
            said.append(self._message(talk, kind, moment))
            self._add("messages", said[-1])
        self._add("conversations", self._conversation(talk, brand, said))

    def _turns(self, size: int) -> Iterator[str]:
        """Yield the directionType of each message of a conversation."""
        answered = size > 3 or self._chance(0.5)
        yield "initial-in"
        if size > 1:
            yield "response-out" if answered else "followup-in"
        for _ in range(size - 2):
            yield "followup-out" if answered and self._chance(0.5) else "followup-in"

    def _moments(self, kinds: List[str], slowness: int) -> List[datetime]:
        """Return when each message was written: minutes to hours apart, answers more slowly the
        slower a team and a brand are."""
        gaps = [0.0]
        for kind in kinds[1:]:
            minutes = self.random.lognormvariate(3.0, 0.8)
            gaps.append(minutes * 60_000 * (slowness if kind == "response-out" else 2))
        # The last one leaves room for what happens to it before the end.
        longest = self.span * 0.99
        scale = min(1.0, longest / (sum(gaps) or 1))
        moment = self.random.random() * (longest - sum(gaps) * scale)
        moments = []
        for gap in gaps:
            moment += gap * scale
            moments.append(self.start + timedelta(milliseconds=int(moment)))
        return moments

    def _updated(self, moment: datetime) -> datetime:
        """Return when something of this moment was last updated: up to a day later."""
        left = self.start + timedelta(milliseconds=self.span) - moment
        return moment + min(timedelta(days=1), left) * self.random.random() ** 4

    def _conversation(self, talk: _Talk, brand: str, said: List[dict]) -> dict:
        """Return the conversation that these messages make."""
        choose = self.random.choice
        first, last = said[0]["attributes"], said[-1]["attributes"]
        answers = [message for message in said if message["attributes"]["direction"] == "out"]
        status = choose(("done", "done", "open", "snoozed")) if answers else "open"
        ended_at = time_text(self._updated(_moment(last["createdAt"])))
        attributes = {
            "name": talk.subject,
            "preview": last["preview"],
            "channels": [talk.channel],
            "status": status,
            "direction": first["direction"],
            "priority": self.random.randint(1, 5),
            "tags": self._some("tags", 3),
            "assignedUsers": [talk.user] if answers else [],
            "assignedTeams": [talk.team],
            "messageCount": len(said),
            "noteCount": 0,
            "outboundMessageCount": len(answers),
            "doneCount": int(status == "done"),
            "reopenCount": self.random.randrange(2) if status == "done" else 0,
            "snooze": {},
            "snoozeCount": int(status == "snoozed"),
            "satisfaction": 0,
            "satisfactionLevel": {"sentByTeams": [], "answers": []},
            "ended": status == "done",
            "createdAt": first["createdAt"],
            "updatedAt": ended_at,
            "lastActivityAt": ended_at,
            "lastMessageAt": last["createdAt"],
            "rev": self.random.randrange(1, 50),
        }
        if answers:
            attributes["firstResponse"] = self._response(said[0], answers[0])
            attributes["lastResponse"] = self._response(said[0], answers[-1])
        if status == "done":
            done = {"createdBy": talk.user, "createdAt": ended_at, "messageCount": len(said)}
            attributes.update(firstDone=done, lastDone=done)
            attributes.update(endedAt=ended_at, endedReason="manual", endedByType="user")
        self._make_conversation_odd(attributes)
        return self._record(
            "conversations",
            attributes,
            talk.conversation,
            customer=talk.customer,
            brand=brand,
            queue=choose(self.queues) if self._chance(0.5) else None,
            createdBy=talk.user if self._chance(0.1) else None,
        )

    def _make_conversation_odd(self, conversation: dict) -> None:
        """Leave out of a conversation, or add to it, what not every one has."""
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
        if conversation["status"] == "snoozed":
            conversation["snooze"] = {"status": "snoozed", "setBy": "user"}
        if self._chance(0.01):
            conversation["deleted"] = True

    @staticmethod
    def _response(asked: dict, answer: dict) -> dict:
        """Return what a conversation says of one of its answers; times in milliseconds."""
        asked_at, at = (_moment(record["attributes"]["createdAt"]) for record in (asked, answer))
        return {
            "id": answer["id"],
            "createdBy": answer["relationships"]["createdBy"]["data"]["id"],
            "createdAt": answer["attributes"]["createdAt"],
            "responseTime": int((at - asked_at) / timedelta(milliseconds=1)),
        }

    def _message(self, talk: _Talk, kind: str, moment: datetime) -> dict:
        choose = self.random.choice
        incoming, body = kind.endswith("-in"), choose(self.words.paragraphs)
        created = time_text(moment)
        attributes = {
            "channel": talk.channel,
            "app": _APPS[talk.channel],
            "direction": "in" if incoming else "out",
            "directionType": kind,
            "status": "received" if incoming else "sent",
            "preview": body,
            "size": len(body),
            "sentiment": {},
            "auto": False,
            "meta": self._message_meta(),
            "createdAt": created,
            "updatedAt": time_text(self._updated(moment)),
        }
        self._assign(attributes, talk)
        if self._chance(0.3):
            attributes["modifiedAt"] = attributes["updatedAt"]
        if self._chance(0.8):
            attributes["sentAt"] = created
        if talk.channel == "email":
            # Documented samples have the subject here, and not among the attributes.
            place = attributes if self._chance(0.1) else attributes["meta"]
            place["subject"] = talk.subject
            attributes["externalId"] = f"<{self._hex(16)}@{choose(self.words.domains)}>"
        # No documented answer has a body; preview is what comes.
        if self._chance(0.1):
            attributes["body"] = f"{body}\n\n-- \n{talk.subject}"
        if self._chance(0.002):
            attributes["body"] = self.long_body
        if self._chance(0.1):
            attributes["custom"] = {"scoreNum": self.random.randrange(10)}
        if self._chance(0.1):
            attributes["source"] = choose(("api", "widget"))
        return self._record(
            "messages",
            attributes,
            customer=talk.customer,
            conversation=talk.conversation,
            createdBy=None if incoming else talk.user,
        )

    def _assign(self, message: dict, talk: _Talk) -> None:
        """Say of most messages who wrote them and who has to answer."""
        incoming = message["direction"] == "in"
        for name, table, known in (
            ("createdByTeams", "teams", [] if incoming else [talk.team]),
            ("assignedUsers", "users", [] if incoming else [talk.user]),
            ("assignedTeams", "teams", [talk.team]),
        ):
            more = self._some(table, 1) if self._chance(0.2) else []
            if self._chance(0.8):
                message[name] = known + [one for one in more if one not in known]

    def note(self) -> dict:
        """Return a note on a conversation, and count it there."""
        conversation_id = self.random.choice(self._ids("conversations"))
        conversation = self.records["conversations"].get(conversation_id)
        attributes = {"body": self.random.choice(self.words.paragraphs), **self._times()}
        if self._chance(0.3):
            attributes["userMentions"] = self._some("users", 2)
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
        """Return a user; one in six is deactivated."""
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
        """Return a team of some of the users."""
        attributes = {
            "name": _numbered(_TEAM_NAMES, len(self.records["teams"])),
            "icon": "users",
            "members": self._some("users", 5),
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

    def _message_meta(self) -> dict:
        """Return meta with `to` as Kustomer gives it: an array, an object or a text."""
        address = self.random.choice(self.words.emails)
        to = self.random.choice(([{"email": address}], {"email": address}, address))
        return {"to": to, "cc": [], "from": self.random.choice(self.words.emails)}

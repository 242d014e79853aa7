"""Made-up Kustomer records, the same for the same seed and day.

Values come from pools filled by faker, so that a hundred thousand records take seconds.
"""

import hashlib
import random
from datetime import datetime, timedelta, timezone
from typing import Dict, List, Optional

from faker import Faker

TABLES = ("customers", "companies", "brands", "messages")
TYPES = {"customers": "customer", "companies": "company", "brands": "brand", "messages": "message"}
ORG_ID = "57f29863a1dbf61100e6aa92"

# The type and path of each relationship. The customer of a message is of type "customers" in
# Kustomer's own samples.
_RELATED = {
    "company": ("company", "companies"),
    "customer": ("customers", "customers"),
    "conversation": ("conversation", "conversations"),
    "createdBy": ("user", "users"),
}
_LOCALES = ("en_US", "de_DE", "ja_JP", "ru_RU", "zh_CN", "el_GR", "he_IL", "hi_IN", "ar_AA")
_POOL_SIZE = 40
_LONG_BODY_CHARACTERS = 20_000
_SAME_MOMENT_MESSAGES = 700

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
    seed: int = 1,
    days: int = 60,
    before: Optional[datetime] = None,
    same_moment: int = _SAME_MOMENT_MESSAGES,
) -> Records:
    """Return records by table and id.

    Args:
        customers, companies, brands, messages: how many of each.
        seed: the same seed, numbers and `before` give the same records.
        days: `updatedAt` lies in this many days before `before`; `createdAt` may lie years back.
        before: an aware time; midnight UTC of today when None.
        same_moment: this many messages share one `updatedAt`; none do when there are fewer than
            twice as many.
    """
    if before is None:
        before = datetime.now(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    maker = _Maker(seed, before - timedelta(days=days), before)
    records: Records = {}
    records["companies"] = maker.many(maker.company, companies)
    maker.company_ids = list(records["companies"])
    records["brands"] = maker.many(maker.brand, brands)
    records["customers"] = maker.many(maker.customer, customers)
    maker.customer_ids = list(records["customers"])
    records["messages"] = maker.many(maker.message, messages)
    if messages >= 2 * same_moment > 0:
        _share_one_moment(records["messages"], same_moment)
    return records


def _share_one_moment(messages: Dict[str, dict], number: int) -> None:
    chosen = list(messages.values())[-number:]
    moment = max(message["attributes"]["updatedAt"] for message in chosen)
    for message in chosen:
        message["attributes"]["updatedAt"] = moment


class _Maker:
    """Makes single records. Shared values are never changed in place: a record is replaced."""

    def __init__(self, seed: int, start: datetime, end: datetime):
        self.random = random.Random(seed)
        self.start, self.span = start, (end - start) / timedelta(milliseconds=1)
        self.fakers = [Faker(locale) for locale in _LOCALES]
        for number, fake in enumerate(self.fakers):
            fake.seed_instance(seed * 1000 + number)
        english = self.fakers[0]
        self.names = self._pool("name") + [
            f"{english.first_name()} {emoji}" for emoji in "😀🐈🚀👩‍💻🏳️‍🌈"
        ]
        self.first_names = self._pool("first_name")
        self.company_names = self._pool("company")
        self.sentences = self._pool("sentence")
        self.paragraphs = self._pool("paragraph") + ["Grüße 👋\n“quoted” \\ \t <b>bold</b> & more"]
        self.emails = [english.safe_email() for _ in range(_POOL_SIZE * 5)]
        self.phones = [english.numerify("+1###555####") for _ in range(_POOL_SIZE * 5)]
        self.domains = [english.domain_name() for _ in range(_POOL_SIZE * 5)]
        self.users = [self._hex(24) for _ in range(10)]
        self.teams = [self._hex(24) for _ in range(4)]
        self.long_body = ("A long story. " * _LONG_BODY_CHARACTERS)[:_LONG_BODY_CHARACTERS]
        self.company_ids: List[str] = []
        self.customer_ids: List[str] = []
        self.made = 0

    def many(self, make, number: int) -> Dict[str, dict]:
        made = (make() for _ in range(number))
        return {record["id"]: record for record in made}

    def _pool(self, kind: str) -> List[str]:
        return [getattr(fake, kind)() for fake in self.fakers for _ in range(_POOL_SIZE)]

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

    def _record(self, table: str, attributes: dict, **related: Optional[str]) -> dict:
        """Return a record around its attributes; its id is by order of making."""
        self.made += 1
        record_id = f"{0x66000000 + self.made:08x}{self._hex(16)}"
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
        choose, domain = self.random.choice, self.random.choice(self.domains)
        attributes = {"name": choose(self.company_names), **self._times()}
        attributes["tags"] = [self._hex(24) for _ in range(self.random.randrange(3))]
        if self._chance(0.8):
            attributes["domains"] = [{"domain": domain}, {"domain": choose(self.domains)}]
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
            "name": self.random.choice(self.company_names),
            "default": self.made == len(self.company_ids),
            **self._times(),
        }
        if self._chance(0.5):
            attributes["iconUrl"] = f"https://{self.random.choice(self.domains)}/icon.png"
        return self._record("brands", attributes)

    def customer(self) -> dict:
        choose = self.random.choice
        name = choose(self.names)
        attributes = {
            "name": name,
            "displayName": name,
            "displayColor": choose(("green", "blue", "red")),
            "displayIcon": "compass",
            "externalIds": [],
            "sharedExternalIds": [],
            "emails": self._addresses("email", self.emails),
            "sharedEmails": [],
            "phones": self._addresses("phone", self.phones),
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
            "tags": [self._hex(24) for _ in range(self.random.randrange(3))],
            "progressiveStatus": None,
            "verified": self._chance(0.5),
            "rev": self.random.randrange(1, 50),
            **self._times(),
        }
        attributes["lastActivityAt"] = attributes["updatedAt"]
        self._make_odd(attributes)
        return self._record(
            "customers",
            attributes,
            company=choose(self.company_ids) if self.company_ids and self._chance(0.7) else None,
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
            customer["firstName"] = choose(self.first_names)
            customer["custom"] = {
                "planStr": choose(("free", "pro")),
                "noteTxt": choose(self.sentences),
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

    def message(self) -> dict:
        choose = self.random.choice
        incoming, times = self._chance(0.5), self._times()
        body = choose(self.paragraphs)
        attributes = {
            "channel": choose(("email", "chat", "sms", "voice", "facebook")),
            "app": choose(("postmark", "chat", "twilio")),
            "direction": "in" if incoming else "out",
            "directionType": choose(
                ("initial-in", "followup-in") if incoming else ("response-out",)
            ),
            "status": "received" if incoming else "sent",
            "preview": body,
            "size": len(body),
            "sentiment": {},
            "auto": False,
            "meta": self._message_meta(),
            **times,
        }
        if self._chance(0.8):
            attributes["sentAt"] = times["createdAt"]
        if attributes["channel"] == "email":
            # Documented samples have the subject here, and not among the attributes.
            place = attributes if self._chance(0.1) else attributes["meta"]
            place["subject"] = choose(self.sentences)
            attributes["externalId"] = f"<{self._hex(16)}@{choose(self.domains)}>"
        # No documented answer has a body; preview is what comes.
        if self._chance(0.1):
            attributes["body"] = f"{body}\n\n-- \n{choose(self.sentences)}"
        if self._chance(0.002):
            attributes["body"] = self.long_body
        for name, pool in (
            ("createdByTeams", self.teams),
            ("assignedUsers", self.users),
            ("assignedTeams", self.teams),
        ):
            if self._chance(0.7):
                attributes[name] = self.random.sample(pool, self.random.randrange(3))
        if self._chance(0.1):
            attributes["custom"] = {"scoreNum": self.random.randrange(10)}
        if self._chance(0.1):
            attributes["source"] = choose(("api", "widget"))
        return self._record(
            "messages",
            attributes,
            customer=choose(self.customer_ids) if self.customer_ids else self._hex(24),
            conversation=self._hex(24) if self._chance(0.98) else None,
            createdBy=None if incoming else choose(self.users),
        )

    def _message_meta(self) -> dict:
        """Return meta with `to` as Kustomer gives it: an array, an object or a text."""
        address = self.random.choice(self.emails)
        to = self.random.choice(([{"email": address}], {"email": address}, address))
        return {"to": to, "cc": [], "from": self.random.choice(self.emails)}

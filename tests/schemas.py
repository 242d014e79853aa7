"""JSON Schemas of Kustomer's responses, based on its OpenAPI description.

Attributes are optional, because real records lack some of them.
"""

TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"}
TEXT = {"type": "string"}
FLAG = {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
ID = {"type": "string", "pattern": "^[0-9a-f]{24}$"}
OBJECT = {"type": "object"}
LIST = {"type": "array"}
PATH = {"type": "string", "pattern": r"^/v1/[a-z]+(/[a-z]+)?\?page=\d+&pageSize=\d+(&\S+)?$"}
AUDIT_PATH = {"type": "string", "pattern": r"^/v1/audit-logs\?\S*$"}
RECORD_PATH = {
    "type": "string",
    "pattern": r"^/v1/[a-zA-Z/-]+/[0-9a-f]{24}(/messages|/attachments)?$",
}


def _object(required: dict, optional: dict = None) -> dict:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def _list_of(item: dict) -> dict:
    return {"type": "array", "items": item}


def _or_null(schema: dict) -> dict:
    return {"anyOf": [schema, {"type": "null"}]}


_TIMES = {"createdAt": TIME, "updatedAt": TIME}
_CUSTOM = {
    "type": "object",
    "patternProperties": {"Str$|Txt$": TEXT, "Num$": {"type": "number"}, "Bool$": FLAG},
    "additionalProperties": False,
}
_COUNTS = _object(dict.fromkeys(("done", "open", "snoozed", "all"), COUNT))
_SOMETIMES = {"modifiedAt": TIME, "deleted": FLAG, "custom": _CUSTOM, "tags": _list_of(ID)}
_ADDRESS = {"email": TEXT}
_IDS = _list_of(ID)
_POLARITY = {"type": "integer", "minimum": -1, "maximum": 1}
_SENTIMENT = _object({}, {"polarity": _POLARITY, "confidence": {"type": "number"}})
_SATISFACTION = _object({}, {"sentByTeams": _IDS, "answers": LIST, "rating": COUNT})
_EXTERNAL_IDS = _list_of(_object({"externalId": TEXT, "verified": FLAG}))
_SOCIAL = _object({**dict.fromkeys(("type", "userid", "username", "url"), TEXT), "verified": FLAG})

ATTRIBUTES = {
    "customers": _object(
        _TIMES,
        {
            **_SOMETIMES,
            **dict.fromkeys(("displayName", "displayColor", "displayIcon", "firstName"), TEXT),
            **dict.fromkeys(("locale", "gender", "externalId", "lastName", "username"), TEXT),
            **dict.fromkeys(("companyName", "timeZone", "avatarUrl"), TEXT),
            **dict.fromkeys(("birthdayAt", "signedUpAt", "lastSeenAt"), TIME),
            **dict.fromkeys(("lastActivityAt", "lastCustomerActivityAt"), TIME),
            **dict.fromkeys(("sharedSocials", "activeUsers"), LIST),
            **dict.fromkeys(("preview", "recentLocation"), OBJECT),
            "name": _or_null(TEXT),
            **dict.fromkeys(("externalIds", "sharedExternalIds"), _EXTERNAL_IDS),
            "sharedEmails": _list_of(_object({"email": TEXT, "verified": FLAG})),
            "sharedPhones": _list_of(_object({"phone": TEXT, "verified": FLAG})),
            "whatsapps": _list_of(_object({"phone": TEXT})),
            "watchers": _IDS,
            "sentiment": _SENTIMENT,
            "satisfactionLevel": _SATISFACTION,
            "emails": _list_of(_object({"email": TEXT, "verified": FLAG, "type": TEXT})),
            "phones": _list_of(_object({"phone": TEXT, "verified": FLAG, "type": TEXT})),
            "socials": _list_of(_SOCIAL),
            "urls": _list_of(_object({"url": TEXT, "type": TEXT})),
            "locations": _list_of(_object({"type": TEXT, "address": TEXT})),
            "lastMessageIn": _object({"sentiment": OBJECT}),
            "lastConversation": _object({"tags": LIST, "sentiment": OBJECT}),
            "conversationCounts": _COUNTS,
            "progressiveStatus": _or_null(TEXT),
            "verified": FLAG,
            "rev": COUNT,
        },
    ),
    "companies": _object(
        {"name": TEXT, **_TIMES},
        {
            **_SOMETIMES,
            "externalId": TEXT,
            "extenalId": TEXT,
            "domains": _list_of({"anyOf": [TEXT, _object({"domain": TEXT})]}),
            "urls": _list_of(_object({"url": TEXT, "type": TEXT})),
        },
    ),
    "brands": _object(
        {"name": TEXT, "default": FLAG, **_TIMES}, {"modifiedAt": TIME, "iconUrl": TEXT}
    ),
    "messages": _object(
        {"channel": TEXT, "direction": {"enum": ["in", "out"]}, **_TIMES},
        {
            **_SOMETIMES,
            **dict.fromkeys(("externalId", "app", "directionType", "preview", "body"), TEXT),
            **dict.fromkeys(("subject", "status", "source"), TEXT),
            **dict.fromkeys(("sentAt", "redactedAt", "errorAt"), TIME),
            **dict.fromkeys(("auto", "redacted"), FLAG),
            "size": COUNT,
            "error": _object({"status": COUNT, "code": TEXT, "title": TEXT}),
            **dict.fromkeys(("createdByTeams", "assignedUsers", "assignedTeams"), _IDS),
            "sentiment": _SENTIMENT,
            "meta": _object(
                {"from": TEXT},
                {
                    "to": {"anyOf": [TEXT, _object(_ADDRESS), _list_of(_object(_ADDRESS))]},
                    "cc": LIST,
                    "subject": TEXT,
                },
            ),
        },
    ),
}
_EMPTY = {"type": "array", "maxItems": 0}
_NOTHING_YET = _object(dict.fromkeys(("createdByTeams", "assignedUsers", "assignedTeams"), _EMPTY))


def _if_any(required: dict, optional: dict = None) -> dict:
    return {"anyOf": [_object(required, optional), _NOTHING_YET]}


_RESPONSE = _if_any({"id": ID, "createdBy": ID, "createdAt": TIME, "responseTime": COUNT})
_DONE = _if_any({"createdBy": ID, "createdAt": TIME}, {"messageCount": COUNT})
ATTRIBUTES |= {
    "conversations": _object(
        {
            "status": {"enum": ["open", "snoozed", "done"]},
            "direction": {"enum": ["in", "out"]},
            **_TIMES,
        },
        {
            **_SOMETIMES,
            **dict.fromkeys(("name", "preview", "externalId"), TEXT),
            **dict.fromkeys(("endedReason", "endedByType"), TEXT),
            **dict.fromkeys(("messageCount", "noteCount", "outboundMessageCount"), COUNT),
            **dict.fromkeys(("spam", "locked"), FLAG),
            "inboundMessageCount": COUNT,
            "suggestedTags": _IDS,
            "sentiment": _SENTIMENT,
            **dict.fromkeys(("doneCount", "reopenCount", "snoozeCount", "rev"), COUNT),
            **dict.fromkeys(("endedAt", "lastActivityAt", "lastMessageAt"), TIME),
            **dict.fromkeys(("assignedUsers", "assignedTeams"), _IDS),
            **dict.fromkeys(("firstResponse", "lastResponse"), _RESPONSE),
            **dict.fromkeys(("firstDone", "lastDone"), _DONE),
            "channels": _list_of(TEXT),
            "priority": {"type": "integer", "minimum": 1, "maximum": 5},
            "satisfaction": {"type": "number"},
            "satisfactionLevel": _SATISFACTION,
            "sla": _object({"name": TEXT, "breached": FLAG}),
            "snooze": OBJECT,
            "ended": FLAG,
        },
    ),
    "notes": _object(
        {"body": TEXT, **_TIMES}, {**_SOMETIMES, "externalId": TEXT, "userMentions": _IDS}
    ),
    "users": _object(
        {"userType": {"enum": ["user", "limited", "machine"]}, **_TIMES},
        {
            **dict.fromkeys(("name", "displayName", "email", "mobile", "avatarUrl"), TEXT),
            **dict.fromkeys(("modifiedAt", "deletedAt"), TIME),
            "roles": _list_of(TEXT),
            "roleGroups": _IDS,
        },
    ),
    "teams": _object(
        {"name": TEXT, **_TIMES},
        {
            **dict.fromkeys(("displayName", "icon"), TEXT),
            **dict.fromkeys(("modifiedAt", "deletedAt"), TIME),
            **dict.fromkeys(("members", "roleGroups"), _IDS),
            "deleted": FLAG,
        },
    ),
    "tags": _object(
        {"name": TEXT, **_TIMES},
        {"color": TEXT, "modifiedAt": TIME, "deletedAt": TIME, "deleted": FLAG},
    ),
    "kobjects": _object(
        {"title": TEXT, **_TIMES},
        {
            **_SOMETIMES,
            **dict.fromkeys(("description", "externalId", "icon", "status"), TEXT),
            **dict.fromkeys(("assignedUser", "assignedTeam"), ID),
            **dict.fromkeys(("firstDone", "lastDone"), _DONE),
            **dict.fromkeys(("doneCount", "reopenCount"), COUNT),
            "images": _list_of(TEXT),
        },
    ),
    "klasses": _object(
        {"name": TEXT, "status": {"enum": ["enabled", "existing_only", "disabled"]}, **_TIMES},
        {
            **dict.fromkeys(("displayName", "icon", "color", "appVersion"), TEXT),
            "appDisabled": FLAG,
            "mixins": _list_of(OBJECT),
            "modifiedAt": TIME,
        },
    ),
    "shortcuts": _object(
        {"name": TEXT, **_TIMES},
        {
            **dict.fromkeys(("payload", "draft"), OBJECT),
            **dict.fromkeys(("isPrivate", "deleted", "appDisabled"), FLAG),
            "modifiedAt": TIME,
        },
    ),
}
_ANYTHING: dict = {}
_CHANGE = _object({"before": _ANYTHING, "after": _ANYTHING})
_CHANGES = {"type": "object", "additionalProperties": _CHANGE}
ATTRIBUTES["audit_logs"] = _object(
    {
        **_TIMES,
        "eventName": {"type": "string", "pattern": r"^kustomer\.\w+\.(create|update|delete)$"},
        "eventVerb": {"enum": ["create", "update", "delete"]},
        **dict.fromkeys(("objectType", "userType", "client", "ip"), TEXT),
        "objectId": ID,
        "changes": _object({"attributes": _CHANGES, "relationships": _CHANGES}),
        **dict.fromkeys(("publishedAt", "expiresAt"), TIME),
    },
    {"userId": ID},
)
_RELATED = _object({"type": TEXT, "id": ID})
_RELATION = _object(
    {"links": _object({"self": RECORD_PATH})}, {"data": {"anyOf": [_RELATED, _list_of(_RELATED)]}}
)
_LINKS = {"self": PATH, "first": PATH, "prev": _or_null(PATH), "next": _or_null(PATH)}
_PAGE_META = {"page": COUNT, "pageSize": COUNT}
_TOTALS = {"total": COUNT, "totalPages": COUNT}


def _record_schema(table: str) -> dict:
    return _object(
        {
            "type": {"const": {"companies": "company", "klasses": "klass"}.get(table, table[:-1])},
            "id": ID,
            "attributes": ATTRIBUTES[table],
            "relationships": {
                "type": "object",
                "additionalProperties": _RELATION,
                "required": ["org"],
            },
            "links": _object({"self": RECORD_PATH}),
        }
    )


def page_schema(table: str, is_search: bool = False, without: frozenset = frozenset()) -> dict:
    """Return the schema of a page of a table's list, or of a page of search results.

    The parts named in `without` must be absent.
    """
    counted = (is_search or table == "customers") and "total" not in without
    record = _record_schema(table)
    meta = {**_PAGE_META, **(_TOTALS if counted else {})}
    if is_search:
        meta["aggregations"] = OBJECT
    links = {**_LINKS, **({"last": PATH} if counted else {})}
    page = {"meta": _object(meta), "data": _list_of(record), "links": _object(links)}
    return _object({name: part for name, part in page.items() if name not in without})


AUDIT_PAGE = _object(
    {
        "meta": _object({"pageSize": COUNT}),
        "data": _list_of(_record_schema("audit_logs")),
        "links": _object({"self": AUDIT_PATH, "next": _or_null(AUDIT_PATH)}),
    }
)
USER = _object(
    {"data": _object({"type": {"const": "user"}, "id": ID, "attributes": OBJECT, "links": OBJECT})}
)
_COMMON_ERROR = _object({"code": TEXT, "message": TEXT, "meta": OBJECT})
_DETAILED_ERROR = _object(
    {
        **dict.fromkeys(("status", "code", "title", "detail"), TEXT),
        "source": _object({"parameters": TEXT}),
        "meta": OBJECT,
    }
)
ERRORS = {
    form: _object({"errors": _list_of(error)})
    for form, error in (("common", _COMMON_ERROR), ("detailed", _DETAILED_ERROR))
}

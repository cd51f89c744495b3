"""Makes a scripted user of what tau-bench tells the one who plays the user: prose, in the second person.

    You are Yusuf Rossi in 19122. You want to know how many tshirt options are available. If the agent asks, you ...

becomes what a `Customer` says at first ("I want to know ..."), what it tells later (what depends on the agent), and the
facts that it gives when asked: who it is, as the data base has it, how it pays and why.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Script = dict[str, Any]

_BREAK = re.compile(r"(?<=[.!?;])[\s]+(?=[A-Z\"'(#])|\n+|, (?=but if the agent\b)")
_WORD = re.compile(r"\w+")
_FILLERS = set(
    _WORD.findall("you re are your name is my and or with email address zip code user id live living in from")
)
_ADJECTIVES = re.compile(
    r"^You(?:'re| are) (?:very |an? )?[a-z-]+(?:(?:,| and|, and) [a-z-]+)*(?: (?:person|man|woman))?\.?$"
)
_REACTS = re.compile(
    r"\b(?:if|when|whenever|after|once|until|unless)\b[^.]*\bagent\b|\bdo not mention\b|"
    r"\bthen (?:you )?regret\b|\bchange (?:you|your) mind\b",
    re.IGNORECASE,
)
_ASKS = re.compile(r"#|\b(?:want|wish|like|need|return|cancel|exchange|change|modify|fly|book)\w*\b", re.IGNORECASE)
_FOLLOWS = re.compile(r"^(?:You )?(?:will )?(?:then|otherwise|but)\b", re.IGNORECASE)
_PAYS = re.compile(
    r"\b(?:pay\w*|card|cards|paypal\w*|gc|refund\w*|gift\w*|credit\w*|certificates?|via)\b", re.IGNORECASE
)
_WHY = re.compile(r"\b(?:because|due to|mistake\w*|accident\w*|mixup|no longer)\b", re.IGNORECASE)
_LIVES = re.compile(r"\b(?:address\w*|street|avenue|road|drive|lane|highway|live)\b", re.IGNORECASE)
_NUMBER = re.compile(r"#?\bW\d{7}\b|\b(?=[A-Z]*\d)[A-Z\d]{6}\b|\breservation\b")

_BEFORE_ME = (
    "to|for|with|of|from|on|about|at|tells?|told|asks?|gives?|lets?|helps?|charges?|compensates?|sends?|allows?|"
    "unsubscribe"
)
# (pattern, what it becomes), each in turn; what begins with a capital stays so
_PERSONS = [
    (r"\byou (name is|mind)\b", r"my \1"),  # slips of the data
    (r"\byou(?:'re| are)\b", "I am"),
    (r"\byou were\b", "I was"),
    (r"\byou(['’](?:ve|ll|d|m))", r"I\1"),
    (r"\byourself\b", "myself"),
    (r"\byours\b", "mine"),
    (r"\byour\b", "my"),
    (rf"\b({_BEFORE_ME}) you\b", r"\1 me"),
    (r"\byou\b", "I"),
]


def script(instruction: str, user: Mapping[str, Any]) -> Script:
    """The script of the user of a task, from its prose and the user's record, with its `id`."""
    sentences = _sentences(instruction)
    matter = [sentence for sentence in sentences if not _is_person(sentence, user)]
    later: list[str] = []
    for before, sentence in zip(["", *matter], matter, strict=False):
        if _REACTS.search(sentence) or (_FOLLOWS.match(sentence) and before in later):
            later.append(sentence)
    now = [sentence for sentence in matter if sentence not in later]
    if not any(map(_ASKS.search, now)):
        now, later = matter, []
    return _script(now, later, sentences, user)


def script_of_parts(parts: Mapping[str, Any], user: Mapping[str, Any]) -> Script:
    """As `script`, of tau2-bench's instructions in parts: what the call is for is said, what is to be done later."""
    for_call, known, to_do = (
        _sentences(parts.get(name)) for name in ("reason_for_call", "known_info", "task_instructions")
    )
    now, later = (
        [sentence for sentence in several if not _is_person(sentence, user)] for several in (for_call + known, to_do)
    )
    return _script(now, later, for_call + known + to_do, user)


def _script(now: list[str], later: list[str], sentences: list[str], user: Mapping[str, Any]) -> Script:
    if not now:
        now, later = later, []
    said = " ".join(map(first_person, now)) or "I need help with my account."
    return {"says": said, "facts": _facts(sentences, user), "more": [first_person(sentence) for sentence in later]}


def _sentences(text: Any) -> list[str]:
    found = [sentence.strip() for sentence in _BREAK.split(str(text or "")) if _WORD.search(sentence)]
    return [f"{sentence}." if sentence[-1].isalnum() else sentence for sentence in found]


def _is_person(sentence: str, user: Mapping[str, Any]) -> bool:
    """Whether a sentence says who the user is, or of what kind, and nothing else."""
    known = _WORD.findall(" ".join([user["id"], user["email"], *user["name"].values(), *user["address"].values()]))
    left = {word.casefold() for word in _WORD.findall(sentence)} - {word.casefold() for word in known} - _FILLERS
    return not left or bool(_ADJECTIVES.match(sentence))


def first_person(sentence: str) -> str:
    """A sentence about "you" as the one who is meant says it."""
    for pattern, becomes in _PERSONS:
        sentence = re.sub(pattern, becomes, sentence, flags=re.IGNORECASE)
    return f"{sentence[:1].upper()}{sentence[1:]}"


def _facts(sentences: list[str], user: Mapping[str, Any]) -> dict[str, str]:
    """What the user says to a question with one of the words in it."""
    name, address = user["name"], user["address"]
    lines = [address[part] for part in ("address1", "address2", "city", "state", "zip", "country") if address[part]]
    facts = {
        ("name", "names"): f"My name is {name['first_name']} {name['last_name']}.",
        ("zip", "zipcode", "postal", "postcode"): f"My zip code is {address['zip']}.",
        ("email", "mail"): f"My email is {user['email']}.",
        ("user", "account", "username"): f"My user id is {user['id']}.",
        ("address", "addresses"): _said(sentences, _LIVES, f"My address in your files is {', '.join(lines)}."),
        ("birth", "dob", "birthday"): f"I was born on {user['dob']}." if "dob" in user else "",
        ("payment", "pay", "card", "refund", "refunded", "paypal", "method"): _said(sentences, _PAYS) or _payment(user),
        ("reason", "reasons", "why"): _said(sentences, _WHY, _reason(user)),
        ("number", "numbers", "id", "ids"): _said(sentences, _NUMBER) or _no_number(user),
    }
    return {word: fact for words, fact in facts.items() for word in words if fact}


def _said(sentences: list[str], about: re.Pattern[str], last: str = "") -> str:
    """The sentences about something, and a last one."""
    return " ".join([*(first_person(sentence) for sentence in sentences if about.search(sentence)), last]).strip()


def _payment(user: Mapping[str, Any]) -> str:
    methods = list(user["payment_methods"])
    return f"Please use {methods[0]}." if len(methods) == 1 else "Please use the one that I paid with."


def _no_number(user: Mapping[str, Any]) -> str:
    return f"I have no {'reservation' if 'dob' in user else 'order'} number at hand; my profile has it."


def _reason(user: Mapping[str, Any]) -> str:
    return "Otherwise it is a change of plan." if "dob" in user else "Otherwise it is no longer needed."

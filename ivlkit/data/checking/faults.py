"""Why a reader refused a row: its fields and turns looked at one by one."""

import re

from ..rows.formats import IMAGE_PLACEHOLDER
from ..rows.records import ROLES
from .findings import short

_SURROGATE = re.compile("[\ud800-\udfff]")


def find_faults(parsed):
    """(kind, what was found) of everything that is wrong with a row in the released shape."""
    names, turns = parsed.get("image"), parsed.get("conversations")
    names = [names] if isinstance(names, str) and names else names or []
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        yield "image_field", f"`image` is {short(parsed.get('image'))}"
        names = []
    if not isinstance(turns, list) or not turns:
        yield "no_conversations", "no `conversations`" if turns is None else f"`conversations` is {short(turns)}"
        return
    yield from _turn_faults(turns)
    texts = [(_role(turn), turn["value"]) for turn in turns if _is_turn(turn)]
    placeholders = sum(text.count(IMAGE_PLACEHOLDER) for role, text in texts if role == "user")
    if names and placeholders != len(names) and not (len(names) == 1 and placeholders == 0):
        yield "placeholder_count", f'{len(names)} pictures but {placeholders} "{IMAGE_PLACEHOLDER}" in user turns'


def _turn_faults(turns):
    roles = []
    for number, turn in enumerate(turns, start=1):
        if not _is_turn(turn):
            yield "bad_turn", f"turn {number} is {short(turn)}"
        elif _role(turn) is None:
            yield "unknown_role", f"turn {number} has the role {short(turn.get('from'))}"
        elif _SURROGATE.search(turn["value"]):
            yield "half_surrogate", f"half a surrogate pair in turn {number}, {short(turn['value'])}"
        roles.append(_role(turn) if _is_turn(turn) else None)
    if None in roles:
        return
    spoken = roles[1:] if roles[0] == "system" else roles
    for number, role in enumerate(spoken):
        expected = ("user", "assistant")[number % 2]
        if role != expected:
            yield "role_order", f"turn {number + 1 + len(roles) - len(spoken)} is {role}, expected {expected}"
            return
    if not spoken or spoken[-1] != "assistant":
        yield "no_answer", "the row ends with a user turn" if spoken else "only a system turn"


def _is_turn(turn):
    return isinstance(turn, dict) and isinstance(turn.get("value"), str)


def _role(turn):
    role = turn.get("from")
    return ROLES.get(role) if isinstance(role, str) else None

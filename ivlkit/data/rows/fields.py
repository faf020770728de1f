"""Fields of rows and turns that no reader uses, in every format.

Some are refused. Others mean something to another kit and nothing here: the doctor says so, and of marks in texts that
other models read as pictures and boxes too.
"""

import re

from ...errors import DataError

TRAINED = ("loss", "weight", "loss_scale", "train")  # of a turn: whether its answer is trained
_NO_TOOLS = "these models were trained without; remove {} or the row"
REFUSED_IN_ROW = {  # field → (what was found, what to do)
    **{name: (f"`{name}`", _NO_TOOLS.format("them")) for name in ("tools", "functions")},
    **{name: (f"`{name}`", "these models hear nothing; remove it or the row") for name in ("audio", "audios")},
}
REFUSED_IN_TURN = {
    **{name: ("a tool call", _NO_TOOLS.format("it")) for name in ("tool_calls", "function_call")},
    **{
        name: (f"`{name}` of a turn", "name it in the row, and write <image> or <video> where it goes")
        for name in ("image", "images", "video", "videos")
    },
}
_ONLY_TURNS = "write what is to be trained as turns, or remove the field"
_NO_WEIGHT = "a row has no weight of its own; `repeat_time` of its set in a meta file repeats it"
UNUSED_IN_ROW = {  # field → what to do
    **dict.fromkeys(("loss", "weight", "loss_scale"), _NO_WEIGHT),
    **dict.fromkeys(("history", "query", "response", "instruction", "input", "output"), _ONLY_TURNS),
    **dict.fromkeys(("chosen", "rejected", "rejected_response", "rejected_messages", "kto_tag"), _ONLY_TURNS),
}
UNUSED_IN_TURN = dict.fromkeys(
    ("reasoning_content", "reasoning", "thinking", "refusal", "name"), "write it into the turn's text, or remove it"
)
# Marks of other models: pictures, frames, boxes, objects, points.
FOREIGN_MARK = re.compile(
    r"<\|(?:image|video|vision|box|object_ref|quad|audio)_?(?:pad|start|end)?(?:_?\d+)?\|>"
    r"|<(?:IMAGE|Image|IMG|Img|image_soft_token|start_of_image|end_of_image|im_patch|im_start|im_end|ImageHere)>"
    r"|</(?:Img|IMG|image)>|<(?:image|img|frame|Frame)[_-]?\d+>|<loc\d{4}>|<seg\d{3}>|<(?:VIDEO|Video)>"
    r"|<(?:bbox|ref-object|quad-object|point|region)>"
)


def refused(fields, known, place):
    """Yield a fault for each field that is refused and not empty; `place` is "turn 2: ", or "" for the row."""
    for name in known:
        value = fields.get(name)  # of a row in memory perhaps an array, which has no truth
        if value is not None and not (isinstance(value, (str, list, tuple, dict, int, float)) and not value):
            found, todo = known[name]
            yield DataError(f"{place}{found}", None, todo, code="refused_field")


def read_trained(turn, role, number):
    """Yield what is wrong with a turn's own weight; returns whether its answer is trained."""
    said = {name: turn[name] for name in TRAINED if turn.get(name) is not None}
    for name, value in said.items():
        found = f"turn {number}: `{name}` is {value!r:.40}"
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            todo = "an answer is trained or not; to weigh rows use `repeat_time` of their set"
            yield DataError(found, "true or false (1 or 0)", todo, code="turn_weight")
        elif value and role != "assistant":
            yield DataError(found, "it in answers only", "remove it", code="turn_weight")
    if len({bool(value) for value in said.values()}) > 1:
        found = f"turn {number}: {' and '.join(f'`{name}` {value!r:.40}' for name, value in said.items())}"
        yield DataError(found, "one of them", "remove the other", code="turn_weight")
    return all(said.values())


def unused_fields(turns, extra):
    """(name, what to do) of each field of a released row and its turns that other kits use and nothing here reads."""
    said = turns[-1].get("value", "") if turns else ""  # a table's column may have such a name and be its answer
    for name in sorted(extra.keys() & UNUSED_IN_ROW.keys()):
        if extra[name] and str(extra[name]) != said and f'"{name}": ' not in said:
            yield f"`{name}`", UNUSED_IN_ROW[name]
    for number, turn in enumerate(turns, start=1):
        if len(turn) > 2:
            for name in sorted(turn.keys() & UNUSED_IN_TURN.keys()):
                if turn[name]:
                    yield f"`{name}` of turn {number}", UNUSED_IN_TURN[name]

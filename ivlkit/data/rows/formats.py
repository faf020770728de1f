"""Shapes a row may have → the released row: `{"id", "image" | "video", "conversations"}`.

Every reader takes a row (dict), yields the faults it finds, and returns the row's turns in the released
shape and the pictures that they name; `records` reads only that shape. A picture stays what it was: a path, a data URI,
an address, an object.
"""

from collections.abc import Mapping

from ...errors import KINDS, DataError
from .fields import REFUSED_IN_ROW, REFUSED_IN_TURN, TRAINED, UNUSED_IN_TURN, refused
from .media import FRAME_SUFFIXES, written_out

QUESTION_COLUMNS = ("question", "prompt", "instruction")  # of a table
ANSWER_COLUMNS = ("answer", "label", "caption", "text")
IMAGE_PLACEHOLDER = "<image>"
VIDEO_PLACEHOLDER = "<video>"
SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "human"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "gpt"),
    "system": "system",
}
OPENAI_ROLES = {"user": "human", "assistant": "gpt", "system": "system", "developer": "system"}
MARKS_SHAREGPT = {"images", "videos", "system", "tools"}  # fields that the released format does not know


def with_places(question, num_images=1, *, place=IMAGE_PLACEHOLDER):
    """A question behind the marks of its pictures, or of its video, unless it has some: a line each.

    Several pictures are numbered, as the released models' card does: "Image-1: <image>".
    """
    if place in question:
        return question
    numbers = [f"Image-{number}: " for number in range(1, num_images + 1)] if num_images > 1 else [""] * num_images
    return "".join(f"{number}{place}\n" for number in numbers) + question


def without_places(question):
    """A question without the marks that say where its pictures go."""
    return question.replace(f"{IMAGE_PLACEHOLDER}\n", "").replace(f"{VIDEO_PLACEHOLDER}\n", "")


def release(row, *, format=None):
    """Yield every fault of a row's format; returns the released row, or None where its turns have no released shape."""
    name = format or detect_format(row)
    if name not in FORMATS:
        yield DataError(f"format {name!r}", f"one of {', '.join(FORMATS)}")
        return None
    if FORMATS[name] is from_released and _BESIDE_RELEASED.isdisjoint(row):  # nearly every row of a large file
        image = written_out(row.get("image"))
        return row if image is row.get("image") else {**row, "image": image}
    yield from refused(row, REFUSED_IN_ROW, "")
    if not is_nothing(row.get("conversations")) and not is_nothing(row.get("messages")):
        yield DataError("both `conversations` and `messages`", "one of them", "remove the other", code="refused_field")
    turns, found = yield from FORMATS[name](row)
    media = {}
    for medium in ("image", "video"):
        media |= yield from _media(row, medium, found.get(medium))
    if turns is None:
        return None
    return {key: value for key, value in row.items() if key not in _REWRITTEN} | media | {"conversations": turns}


def detect_format(row):
    """The name of the format a row is written in: "released", "sharegpt" or "openai".

    An empty field says nothing: tables that are saved as JSON lines fill every row with all columns, most of them null.
    """
    if isinstance(row.get("messages"), list) and row.get("conversations") is None:
        return "openai" if _has(row["messages"], "role") else "sharegpt"
    names_no_media = is_nothing(row.get("image")) and is_nothing(row.get("video"))
    if _has(row.get("conversations"), "role") or names_no_media and not MARKS_SHAREGPT.isdisjoint(row):
        return "sharegpt"
    return "released"


def is_nothing(value):
    """Whether a field of pictures or a video is there but empty."""
    return value is None or (isinstance(value, (str, list, tuple)) and not value)


def _has(turns, key):
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict) and key in turns[0]


def from_released(row):
    """The released row, as it is. LLaVA's rows have the same shape."""
    yield from ()
    return row.get("conversations") or (), {}


def from_sharegpt(row):
    """ShareGPT and its relatives: `conversations` or `messages`, from/value or role/content, `images`, `system`."""
    turns = row["messages"] if row.get("conversations") is None and "messages" in row else row.get("conversations")
    return (yield from _turns(row, turns, "conversations", word="turn", roles=SHAREGPT_ROLES)), {}


def from_openai(row):
    """OpenAI's `messages`: role and content, content a text or a list of parts of text, pictures or a video."""
    found = {"image": [], "video": []}
    how = {"word": "message", "roles": OPENAI_ROLES, "found": found}
    return (yield from _turns(row, row.get("messages"), "messages", **how)), found


FORMATS = {"released": from_released, "llava": from_released, "sharegpt": from_sharegpt, "openai": from_openai}
_BESIDE_RELEASED = {"messages", "images", "videos", *REFUSED_IN_ROW}
_MEDIUM_OF = {"image_url": "image", "input_image": "image", "image": "image", "video_url": "video", "video": "video"}
_REWRITTEN = {"conversations", "messages", "image", "images", "video", "videos", *REFUSED_IN_ROW}


def no_turns(row, field="conversations"):
    """The fault of a row without turns. One with columns is a table's, which another door takes."""
    known = KINDS["no_conversations"]
    columns = [name for name in (*QUESTION_COLUMNS, *ANSWER_COLUMNS) if not is_nothing(row.get(name))]
    todo = f"it has `{columns[0]}`, as a table does: take ivl.from_csv or ivlkit convert" if columns else known.todo
    return DataError(f"no `{field}`", known.expected, todo, code="no_conversations")


def _turns(row, turns, field, *, word, **how):
    """The turns of a list in the released shape, or None if one of them has none."""
    if not isinstance(turns, list) or not turns:
        yield no_turns(row, field)
        return None
    released = []
    for number, turn in enumerate(turns, start=1):
        released.append((yield from _turn(turn, f"{word} {number}", **how)))
    return None if None in released else released


def _media(row, medium, found):
    """{medium: its sources} of a row that may name them in the plural, or in the parts of its messages, `found`.

    Parts that name none take the row's own in order.
    """
    own, several = row.get(medium), _listed(row.get(f"{medium}s"))
    names = {name for name in several if isinstance(name, str)}
    if twice := [name for name in _listed(own) if isinstance(name, str) and name in names]:
        said = f"`{medium}` and `{medium}s` both name {short(twice[0])}", "one of them", f"remove `{medium}`"
        yield DataError(*said, code="refused_field")
        own = None
    sources = [*several, *_listed(own)]
    if found:
        empty = sum(value is None for value in found)
        if empty == len(sources):
            sources = [sources.pop(0) if value is None else value for value in found]
        else:
            said = f"{empty} parts without a {medium} of their own, {len(sources)} in the row's `{medium}s`"
            yield DataError(said, "one for each", code="placeholder_count")
    elif not several:
        return {} if is_nothing(own) else {medium: written_out(own) if medium == "image" else own}
    if medium == "image":
        sources = written_out(sources)
    elif len(sources) > 1 and not are_frames(sources):
        yield DataError(f"{len(sources)} videos", "one", "split the row")
        sources = sources[:1]
    return {medium: sources if len(sources) > 1 else sources[0]} if sources else {}


def are_frames(names):
    """Whether these are the files of pictures: a video as a list of its frames."""
    return all(isinstance(name, str) and name.lower().endswith(tuple(FRAME_SUFFIXES)) for name in names)


def _listed(value):
    if is_nothing(value):
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _turn(turn, place, *, roles, found=None):
    """A released turn, or None. `found` takes the pictures and videos of a content that is a list of parts."""
    if not isinstance(turn, Mapping):
        yield DataError(f"{place}: a {type(turn).__name__}", code="bad_turn")
        return None
    role = turn.get("from", turn.get("role"))
    if not isinstance(role, str) or role not in roles:
        beside, todo = (" (tool calls can't be trained here)", None) if found is None else ("", "remove tool messages")
        said = f"{place}: role {role!r}", f"one of {', '.join(roles)}{beside}", todo
        yield DataError(*said, code="unknown_role")
        return None
    yield from refused(turn, REFUSED_IN_TURN, f"{place}: ")
    text = turn.get("value", turn.get("content"))
    if found is not None and isinstance(text, list):
        texts = []
        for part in text:
            texts.append((yield from _part_text(part, role, found, place)))
        text = "\n".join(texts)
    about = {name: turn[name] for name in (*TRAINED, *UNUSED_IN_TURN) if turn.get(name) is not None}
    return {"from": roles[role], "value": text} | about  # whether it is trained, and what only the doctor reads


def _part_text(part, role, found, place):
    """The text of one part; a picture or video is put into `found` and leaves its placeholder."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("text", "input_text", "output_text"):
        if isinstance(part.get("text"), str):
            return part["text"]
        yield DataError(f"{place}: a text part without `text`", "a string", code="bad_turn")
    elif not isinstance(kind, str) or kind not in _MEDIUM_OF:
        said = f"{place}: a part of type {kind!r}", "text, image_url, image, video_url or video"
        yield DataError(*said, code="bad_turn")
    else:
        if role != "user":
            said = f"{place}: a picture in a message of {role}", "pictures in user messages only"
            yield DataError(*said, code="bad_turn")
        medium = _MEDIUM_OF[kind]
        found[medium].append(_part_source(part, kind, medium))
        return {"image": IMAGE_PLACEHOLDER, "video": VIDEO_PLACEHOLDER}[medium]
    return ""


def _part_source(part, kind, medium):
    """What a picture part points at; None where the picture stands in the row's own `images`."""
    value = next((part[key] for key in (kind, f"{medium}_url", medium, "url", "path") if part.get(key)), None)
    value = value.get("url") or None if isinstance(value, Mapping) and "url" in value else value
    if isinstance(value, str) and value.lower().startswith("file://"):
        from urllib.parse import unquote, urlparse

        return unquote(urlparse(value).path)
    return value


def short(value, limit=80):
    """A value as a message quotes it, in 80 characters at most."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"

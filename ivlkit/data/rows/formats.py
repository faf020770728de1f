"""Shapes a row may have → the released row: `{"id", "image" | "video", "conversations"}`.

Every reader takes a row (dict) and its place and gives a row of the released shape; `records` reads only that one. A
picture stays what it was: a path, a data URI, an address, an object.
"""

from collections.abc import Mapping

from ...errors import DataError

IMAGE_PLACEHOLDER = "<image>"
VIDEO_PLACEHOLDER = "<video>"
SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "human"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "gpt"),
    "system": "system",
}
OPENAI_ROLES = {"user": "human", "assistant": "gpt", "system": "system", "developer": "system"}
MARKS_SHAREGPT = {"images", "videos", "system", "tools"}  # fields that the released format does not know


def as_released(row, where, *, format=None):
    """A row of any format, `format` or the detected one, as a released row.

    Raises: DataError with what was found if the row's format has no place for it (tools, audio, two videos).
    """
    name = format or detect_format(row)
    if name not in FORMATS:
        raise DataError(f"{where}: format {name!r}; expected one of {', '.join(FORMATS)}")
    return FORMATS[name](row, where)


def detect_format(row):
    """The name of the format a row is written in: "released", "sharegpt" or "openai".

    An empty field says nothing: tables that are saved as JSON lines fill every row with all columns, most of them null.
    """
    if isinstance(row.get("messages"), list) and row.get("conversations") is None:
        return "openai" if _has(row["messages"], "role") else "sharegpt"
    if _has(row.get("conversations"), "role"):
        return "sharegpt"
    if is_nothing(row.get("image")) and is_nothing(row.get("video")) and not MARKS_SHAREGPT.isdisjoint(row):
        return "sharegpt"
    return "released"


def is_nothing(value):
    """Whether a field of pictures or a video is there but empty."""
    return value is None or (isinstance(value, (str, list, tuple)) and not value)


def _has(turns, key):
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict) and key in turns[0]


def from_released(row, where):
    """The released row, as it is. LLaVA's rows have the same shape."""
    return row


def from_sharegpt(row, where):
    """ShareGPT and its relatives: `conversations` or `messages`, from/value or role/content, `images`, `system`."""
    _refuse_tools(row, where)
    turns = row["messages"] if row.get("conversations") is None and "messages" in row else row.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: no `conversations`; expected a list of turns, a question and its answer at least")
    released = [_sharegpt_turn(turn, f"{where}: turn {number}") for number, turn in enumerate(turns, start=1)]
    if row.get("system"):
        released.insert(0, {"from": "system", "value": row["system"]})
    media = _media(row, where)
    rest = _rest(row, {"conversations", "messages", "system", "tools", "image", "images", "video", "videos"})
    return rest | media | {"conversations": released}


def from_openai(row, where):
    """OpenAI's `messages`: role and content, content a text or a list of parts of text, pictures or a video."""
    _refuse_tools(row, where)
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: no `messages`; expected a list of messages, a question and its answer at least")
    found = {"image": [], "video": []}
    turns = [_openai_turn(one, found, f"{where}: message {number}") for number, one in enumerate(messages, start=1)]
    rest = _rest(row, {"messages", "tools", "image", "images", "video", "videos"})
    return rest | _fill(found, _media(row, where), where) | {"conversations": turns}


FORMATS = {"released": from_released, "llava": from_released, "sharegpt": from_sharegpt, "openai": from_openai}


def _rest(row, used):
    return {key: value for key, value in row.items() if key not in used}


def _refuse_tools(row, where):
    if row.get("tools"):
        raise DataError(f"{where}: `tools`; these models were trained without; remove them or the row")


def _media(row, where):
    """`image` and `video` of a row that may name them in the plural."""
    images = [*_listed(row.get("images")), *_listed(row.get("image"))]
    videos = [*_listed(row.get("videos")), *_listed(row.get("video"))]
    return _named(images, videos, where)


def _named(images, videos, where):
    if len(videos) > 1:
        raise DataError(f"{where}: {len(videos)} videos; expected one; split the row")
    named = {"image": images if len(images) > 1 else images[0]} if images else {}
    return named | ({"video": videos[0]} if videos else {})


def _listed(value):
    if is_nothing(value):
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _sharegpt_turn(turn, where):
    if not isinstance(turn, Mapping):
        raise DataError(f"{where}: a {type(turn).__name__}; expected {{'from': 'human' or 'gpt', 'value': text}}")
    role = turn.get("from", turn.get("role"))
    if not isinstance(role, str) or role not in SHAREGPT_ROLES:
        raise DataError(
            f"{where}: role {role!r}; expected one of {', '.join(SHAREGPT_ROLES)} (tool calls can't be trained here)"
        )
    return {"from": SHAREGPT_ROLES[role], "value": turn.get("value", turn.get("content"))}


def _openai_turn(message, found, where):
    if not isinstance(message, Mapping):
        raise DataError(f"{where}: a {type(message).__name__}; expected {{'role': …, 'content': …}}")
    role = message.get("role")
    if not isinstance(role, str) or role not in OPENAI_ROLES:
        raise DataError(f"{where}: role {role!r}; expected one of {', '.join(OPENAI_ROLES)}; remove tool messages")
    if message.get("tool_calls") or message.get("function_call"):
        raise DataError(f"{where}: a tool call; these models were trained without; remove it or the row")
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(_part_text(part, role, found, where) for part in content)
    return {"from": OPENAI_ROLES[role], "value": content}


def _part_text(part, role, found, where):
    """The text of one part; a picture or video is put into `found` and leaves its placeholder."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("text", "input_text", "output_text"):
        if not isinstance(part.get("text"), str):
            raise DataError(f"{where}: a text part without `text`; expected a string")
        return part["text"]
    medium = {"image_url": "image", "input_image": "image", "image": "image", "video_url": "video", "video": "video"}
    if not isinstance(kind, str) or kind not in medium:
        raise DataError(f"{where}: a part of type {kind!r}; expected text, image_url, image, video_url or video")
    if role != "user":
        raise DataError(f"{where}: a picture in a message of {role}; expected pictures in user messages only")
    found[medium[kind]].append(_part_source(part, kind, medium[kind], where))
    return {"image": IMAGE_PLACEHOLDER, "video": VIDEO_PLACEHOLDER}[medium[kind]]


def _part_source(part, kind, medium, where):
    """What a picture part points at; None where the picture stands in the row's own `images`."""
    value = next((part[key] for key in (kind, f"{medium}_url", medium, "url", "path") if part.get(key)), None)
    value = value.get("url") or None if isinstance(value, Mapping) and "url" in value else value
    if isinstance(value, str) and value.lower().startswith("file://"):
        from urllib.parse import unquote, urlparse

        return unquote(urlparse(value).path)
    return value


def _fill(found, media, where):
    """Pictures named in the parts, or, for parts that name none, the row's own `images` in order."""
    for medium in ("image", "video"):
        own = _listed(media.get(medium))
        empty = sum(value is None for value in found[medium])
        if found[medium] and empty != len(own):
            raise DataError(
                f"{where}: {empty} parts without a {medium} of their own, {len(own)} in the row's `{medium}s`; "
                "expected one for each"
            )
        rest = iter(own)
        found[medium] = [next(rest) if value is None else value for value in found[medium]] or own
    return _named(found["image"], found["video"], where)

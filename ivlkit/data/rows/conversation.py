"""Turns → the text a model was trained on, and the character spans of it that are answers."""

from dataclasses import dataclass

from ...errors import DataError
from .records import IMAGE_PLACEHOLDER

IMAGE_START, IMAGE_CONTEXT, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"


@dataclass(frozen=True)
class ConversationTemplate:
    """How a family writes a conversation: a prefix a role, one closing token after every message."""

    name: str
    system_prefix: str
    user_prefix: str
    assistant_prefix: str
    end: str  # closes every message; the last supervised token of an answer and the one that stops a reply
    system_message: str  # the prompt the released models were trained with
    strips_questions: bool  # whether training removed a question's outer whitespace (an answer's is always removed)

    def prefix(self, role):
        """The text that opens a message of this role."""
        return {"system": self.system_prefix, "user": self.user_prefix, "assistant": self.assistant_prefix}[role]


TEMPLATES = {
    template.name: template
    for template in (
        ConversationTemplate(
            name="internlm2-chat",
            system_prefix="<|im_start|>system\n",
            user_prefix="<|im_start|>user\n",
            assistant_prefix="<|im_start|>assistant\n",
            end="<|im_end|>",
            system_message="You are an AI assistant whose name is InternLM (书生·浦语).",
            strips_questions=True,
        ),
        ConversationTemplate(
            name="phi3-chat",
            system_prefix="<|system|>\n",
            user_prefix="<|user|>\n",
            assistant_prefix="<|assistant|>\n",
            end="<|end|>",
            system_message="You are an AI assistant whose name is Phi-3.",
            strips_questions=False,
        ),
    )
}


@dataclass(frozen=True)
class Rendered:
    """A conversation as text; `answers` are its supervised [start, end) character spans, closing token included."""

    text: str
    answers: tuple[tuple[int, int], ...]
    stripped: int  # answers whose outer whitespace was removed


def render(turns, template, *, num_tiles=(), num_image_token=256, system_message=None):
    """Write turns as the model reads them (without `<s>`, which the tokenizer adds).

    Each `<image>` of a user turn becomes `<img>` + `<IMG_CONTEXT>` · num_image_token · tiles + `</img>`, in order; with
    no pictures it stays text. Outer whitespace of answers is removed; of questions, where the template says so. A
    system turn replaces `system_message`. If the last turn is the user's, the text ends with the opened assistant turn:
    a prompt.

    Args:
        turns: `Turn`s, user and assistant alternating.
        template: a `ConversationTemplate`.
        num_tiles: tiles of each picture, e.g. [13].
        system_message: defaults to the template's own.
    Returns: `Rendered`; 3,328 context tokens for one picture of 13 tiles.
    """
    system = template.system_message if system_message is None else system_message
    if turns[0].role == "system":
        system, turns = turns[0].text.strip(), turns[1:]
    asked = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns if turn.role == "user")
    if num_tiles and asked > len(num_tiles):
        raise DataError(f"more {IMAGE_PLACEHOLDER} in user turns than pictures; expected one for each picture")
    if asked < len(num_tiles):
        raise DataError(f"{len(num_tiles)} pictures but {asked} {IMAGE_PLACEHOLDER} in user turns")
    pictures = (IMAGE_START + IMAGE_CONTEXT * (tiles * num_image_token) + IMAGE_END for tiles in num_tiles)
    parts, answers, stripped = [template.system_prefix, system, template.end], [], 0
    length = sum(map(len, parts))
    for turn in turns:
        keeps = turn.role == "user" and not template.strips_questions
        message = turn.text if keeps else turn.text.strip()
        if turn.role == "user" and num_tiles:
            head, *rest = message.split(IMAGE_PLACEHOLDER)
            message = head + "".join(next(pictures) + text for text in rest)
        prefix = template.prefix(turn.role)
        if turn.role == "assistant" and turn.trained:
            start = length + len(prefix)
            answers.append((start, start + len(message) + len(template.end)))
            stripped += message != turn.text
        parts += [prefix, message, template.end]
        length += len(prefix) + len(message) + len(template.end)
    if turns[-1].role == "user":
        parts.append(template.assistant_prefix)
    return Rendered("".join(parts), tuple(answers), stripped)

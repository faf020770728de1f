"""A `ConversationTemplate` as others read it: a Jinja chat template, and LMDeploy's JSON."""

import json
import re
from pathlib import Path

from ...data.rows.conversation import IMAGE_CONTEXT
from ...data.rows.records import IMAGE_PLACEHOLDER

# Pictures of a message come where the text says <image>, else before the text: alone on a line, several numbered.
_JINJA = Path(__file__).with_name("chat_template.jinja")


def chat_template(template, system_message, *, image=IMAGE_CONTEXT):
    """The Jinja text that renders messages as `data.rows.conversation.render` does, after the tokenizer's `<s>`.

    Args:
        system_message: written when the messages begin without one of their own.
        image: what stands for a picture until it is expanded to its tiles: `<IMG_CONTEXT>` for transformers' processor,
            `<image>` for the servers that read the released layout.
    """
    values = vars(template) | {"placeholder": IMAGE_PLACEHOLDER, "image": image, "system_message": system_message}
    # Jinja would halve an escaped emoji; and all at once, since a prompt may hold such a name itself.
    written = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    written["question"] = "as_text(message['content'])"
    if template.strips_questions:
        written["question"] = "(as_text(message['content']) | trim)"
    return re.sub("@([a-z_]+)@", lambda found: written[found[1]], _JINJA.read_text(encoding="utf-8"))


def lmdeploy_template(template, system_message):
    """The dict that `lmdeploy serve … --chat-template FILE` reads."""
    return {
        "model_name": "ivlkit",
        "system": template.system_prefix,
        "meta_instruction": system_message,
        "eosys": template.end,
        "user": template.user_prefix,
        "eoh": template.end,
        "assistant": template.assistant_prefix,
        "eoa": template.end,
        "separator": "",
        "capability": "chat",
        "stop_words": [template.end],
    }

"""A `ConversationTemplate` as others read it: a Jinja chat template, and LMDeploy's JSON."""

import json
import re

from ...data.rows.conversation import IMAGE_CONTEXT
from ...data.rows.records import IMAGE_PLACEHOLDER

# Pictures of a message come where the text says <image>, else before the text: alone on a line, several numbered.
_JINJA = """\
{{- bos_token -}}
{%- macro as_text(content) -%}
{%- if content is string -%}
{{- content -}}
{%- else -%}
{%- set images = content | selectattr('type', 'equalto', 'image') | list | length -%}
{%- set text = content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join -%}
{%- if not images or @PLACEHOLDER@ in text -%}
{{- text | replace(@PLACEHOLDER@, @IMAGE@) if images else text -}}
{%- else -%}
{%- for _ in range(images) -%}
{{- ('Image-' ~ loop.index ~ ': ' if images > 1 else '') ~ @IMAGE@ ~ '\\n' -}}
{%- endfor -%}
{{- text -}}
{%- endif -%}
{%- endif -%}
{%- endmacro -%}
{%- set has_system = messages[0]['role'] == 'system' -%}
{{- @SYSTEM_PREFIX@ ~ (as_text(messages[0]['content']) | trim if has_system else @SYSTEM@) ~ @END@ -}}
{%- for message in messages[1 if has_system else 0:] -%}
{%- if message['role'] == 'user' -%}
{{- @USER_PREFIX@ ~ @QUESTION@ ~ @END@ -}}
{%- elif message['role'] == 'assistant' -%}
{{- @ASSISTANT_PREFIX@ ~ (as_text(message['content']) | trim) ~ @END@ -}}
{%- else -%}
{{- raise_exception('role ' ~ message['role'] ~ '; expected user and assistant, after at most one system message') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- @ASSISTANT_PREFIX@ -}}
{%- endif -%}
"""


def chat_template(template, system_message, *, image=IMAGE_CONTEXT):
    """The Jinja text that renders messages as `data.rows.conversation.render` does, after the tokenizer's `<s>`.

    Args:
        system_message: written when the messages begin without one of their own.
        image: what stands for a picture until it is expanded to its tiles: `<IMG_CONTEXT>` for transformers' processor,
            `<image>` for the servers that read the released layout.
    """
    values = {
        "PLACEHOLDER": IMAGE_PLACEHOLDER,
        "IMAGE": image,
        "SYSTEM": system_message,
        "END": template.end,
        **{name.upper(): getattr(template, name) for name in ("system_prefix", "user_prefix", "assistant_prefix")},
    }
    # Jinja would halve an escaped emoji; and all at once, since a prompt may hold such a name itself.
    written = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    question = "(as_text(message['content']) | trim)" if template.strips_questions else "as_text(message['content'])"
    return re.sub("@([A-Z_]+)@", lambda found: (written | {"QUESTION": question})[found[1]], _JINJA)


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

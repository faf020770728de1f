"""A model's folder → its `Processor`: a few MB, no weights."""

import ast

from ..data.processor import Processor
from ..data.rows.conversation import TEMPLATES
from ..data.rows.media import PICTURE_RULES
from ..data.tiling import MAX_TILES, MOST_TILES
from ..errors import CheckpointError
from .families import find_model, match_family, refuse_successors
from .layouts.configuration import num_image_token, read_released_config, tile_px
from .tokenizer import load_tokenizer


def load_processor(name):
    """Everything but the weights: `load_processor("2b")`, a key or a folder in the released layout.

    Raises: CheckpointError if the folder's template contradicts its tokenizer or is not known, or a setting of
        config.json is none.
    """
    folder = find_model(name)
    config = read_released_config(folder)
    if config["template"] not in [*TEMPLATES]:
        raise CheckpointError(f"{folder}: template {config['template']!r}; expected one of {', '.join(TEMPLATES)}")
    rules = _setting(config, "picture_rules", "upright-on-white", folder)
    if rules not in PICTURE_RULES:
        raise CheckpointError(f"{folder}: picture_rules {rules!r}; expected one of {', '.join(PICTURE_RULES)}")
    template = TEMPLATES[config["template"]]
    prompt = read_prompt(folder, template.name) or template.system_message
    refuse_successors(folder, config, prompt)
    processor = Processor(
        folder=folder,
        family=match_family(config),
        tokenizer=load_tokenizer(folder),
        template=template,
        system_message=_setting(config, "system_message", prompt, folder),
        tile_px=tile_px(config),
        num_image_token=num_image_token(config),
        max_tiles=_tile_budget(config, "max_dynamic_patch", MAX_TILES, folder),
        min_tiles=_tile_budget(config, "min_dynamic_patch", 1, folder),
        use_thumbnail=_setting(config, "use_thumbnail", True, folder),
        dynamic=_setting(config, "dynamic_image_size", True, folder),
        picture_rules=PICTURE_RULES[rules],
    )
    _check_template(processor)
    _check_tokens(processor, config)
    return processor


def read_prompt(folder, template):
    """The system prompt of a template in the folder's conversation.py, which is read as text and never run, or None.

    Raises: CheckpointError if the file is no Python.
    """
    path = folder / "conversation.py"
    if not path.exists():
        return None
    try:
        calls = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Call)]
    except (SyntaxError, ValueError) as error:
        raise CheckpointError(f"{path}: no Python ({error}); expected the released file; copy it again") from error
    for call in calls:
        given = {each.arg: each.value.value for each in call.keywords if isinstance(each.value, ast.Constant)}
        if given.get("name") == template and isinstance(given.get("system_message"), str):
            return given["system_message"]
    return None


def _check_tokens(processor, config):
    """Each token needs a row of the embeddings: one without fails only once a row of the data has it."""
    tokens, rows = max(processor.tokenizer.get_vocab().values()) + 1, config["llm_config"].get("vocab_size")
    if isinstance(rows, int) and tokens > rows:
        raise CheckpointError(
            f"{processor.folder}: its tokenizer has {tokens:,} tokens, its embeddings {rows:,} rows; expected a row for"
            " each token; copy the tokenizer that belongs to the weights, or the weights saved after tokens were added"
        )


def _setting(config, key, default, folder):
    """A value of config.json, of the type of its default; null is none."""
    value = config.get(key)
    if value is None:
        return default
    if type(value) is not type(default):
        raise CheckpointError(
            f"{folder}: {key} {value!r}; expected {type(default).__name__}, such as {default!r}; correct config.json"
        )
    return value


def _tile_budget(config, key, default, folder):
    value = _setting(config, key, default, folder)
    if not 1 <= value <= MOST_TILES:
        raise CheckpointError(f"{folder}: {key} {value}; expected 1 to {MOST_TILES:,}; correct config.json")
    return value


def _check_template(processor):
    """The template's role and closing tokens must be single special tokens of this tokenizer."""
    template, tokenizer = processor.template, processor.tokenizer
    for text in (template.system_prefix, template.user_prefix, template.assistant_prefix, template.end):
        token = text[: text.index(">") + 1]
        if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
            raise CheckpointError(
                f"{processor.folder}: template {template.name!r} needs the token {token}, which its tokenizer lacks; "
                "the template contradicts the checkpoint; correct `template` in config.json"
            )

"""What a model was asked for that it can't do: each wrong guess is answered with what to write."""

import difflib
import inspect
import os
from numbers import Integral

from transformers import GenerationConfig, GenerationMixin

from ..errors import CheckpointError, DataError
from .modeling.quantize import count_values

ASK_ONE = 'vlm.chat("What is this?", "a.png")'
ASK_MANY = 'vlm.chat_batch(["What is this?", "And this?"], ["a.png", "b.png"])'
_MEANT = {  # what other libraries call it; "": nothing here
    **{"system": "system_message", "system_prompt": "system_message", "prompt": "question"},
    **{"max_tokens": "max_new_tokens", "temp": "temperature", "stop": "stop_strings"},
    **{"max_num": "max_tiles", "max_dynamic_patch": "max_tiles", "num_frames": "", "num_segments": ""},
}
_GREEDY = {"temperature": (None, 0, 1), "top_p": (None, 1), "top_k": (None, 0, 50)}  # what they are without sampling


def check_loaded(vlm):
    """Raises: CheckpointError if its memory was given back."""
    if vlm.model is None or not count_values(next(vlm.model.parameters())):  # the second: by another of this module
        raise CheckpointError(
            f"{vlm.folder}: released; expected a loaded model; load it again: ivlkit.load({str(vlm.folder)!r})"
        )


def check_question(question, images):
    """Raises: DataError for pictures in the question's place, and for what is no text."""
    swapped = isinstance(images, str) and " " in images and not os.path.exists(images)
    is_file = isinstance(question, str) and (os.path.isfile(question) or swapped and os.path.exists(question))
    if is_file or not isinstance(question, str):
        found = "a picture" if is_file else f"a {type(question).__name__}"
        raise DataError(f"chat: {found} in the question's place; expected the question first; write {ASK_ONE}")


def check_questions(questions):
    """Raises: DataError for one question in the place of many."""
    if isinstance(questions, str):
        raise DataError(
            f"chat_batch: one question, {questions[:40]!r}; expected a list; write {ASK_MANY}, or {ASK_ONE} for one"
        )


def check_count(name, value, otherwise=""):
    """Raises: DataError for what is no whole number from 1 on."""
    if not isinstance(value, Integral) or value < 1:
        raise DataError(f"{name}={value!r}; expected 1 or more{otherwise}")


def as_options(generation):
    """A caller's `generation_config` (object or dict) as plain options, other options on top; nothing is changed."""
    given = generation.get("generation_config") or {}
    given = dict(given) if isinstance(given, dict) else given.to_diff_dict()
    options = given | {key: value for key, value in generation.items() if key != "generation_config"}
    fixed = ("eos_token_id", "pad_token_id")  # the template's
    return {key: value for key, value in options.items() if key not in fixed}


def check_options(generation, where, function):
    """Raises: DataError for one of neither the function nor `generate`, for no one text a question, or of no effect."""
    parameters = inspect.signature(function).parameters
    own = [name for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY or name == "images"]
    known = {*vars(GenerationConfig()), *inspect.signature(GenerationMixin.generate).parameters}
    for name, most in {"num_return_sequences": 1, "return_dict_in_generate": False}.items():
        if generation.get(name, most) not in (None, most):
            raise DataError(f"{where}: {name}={generation[name]!r}; expected one text a question; leave it out")
    for name in generation:
        if name not in known:
            meant = _MEANT.get(name, *difflib.get_close_matches(name, [*own, *known], n=1))
            raise DataError(
                f"{where}: unknown option {name!r}; expected one of {', '.join(own)}, or of transformers' generate; "
                + (f"write {meant}=" if meant in {*own, *known} else "leave it out")
            )
    if generation.get("max_length") is not None:  # it counts the prompt, and max_new_tokens goes before it
        raise DataError(f"{where}: max_length={generation['max_length']!r} changes nothing; write max_new_tokens=")
    for name in _GREEDY if as_options(generation).get("do_sample") is None else ():
        if (value := generation.get(name)) not in _GREEDY[name]:
            found = f"{name}={value!r} changes nothing, since replies are greedy; expected do_sample=True beside it"
            raise DataError(f"{where}: {found}; write do_sample=True, {name}={value!r}, or leave it out")

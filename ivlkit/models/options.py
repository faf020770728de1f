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
_MEANT = {  # what other libraries call it
    **{"system": "system_message", "system_prompt": "system_message"},
    **{"max_tokens": "max_new_tokens", "temp": "temperature", "stop": "stop_strings", "max_length": "max_new_tokens"},
}


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


def check_options(generation, where, function):
    """Raises: DataError for an option of neither the function nor `generate`, or that gives no one text a question."""
    parameters = inspect.signature(function).parameters
    own = [name for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY or name == "images"]
    known = {*vars(GenerationConfig()), *inspect.signature(GenerationMixin.generate).parameters}
    for name, most in {"num_return_sequences": 1, "return_dict_in_generate": False}.items():
        if generation.get(name, most) not in (None, most):
            raise DataError(f"{where}: {name}={generation[name]!r}; expected one text a question; leave it out")
    for name in generation:
        if name not in known or name in _MEANT:
            near = [_MEANT[name]] if name in _MEANT else difflib.get_close_matches(name, [*own, *known], n=1)
            raise DataError(
                f"{where}: unknown option {name!r}; expected one of {', '.join(own)}, or of transformers' generate; "
                + (f"write {near[0]}=" if near else "leave it out")
            )

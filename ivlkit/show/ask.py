"""Ask one's own question about one's own picture: a model, or a run beside what it began with; answers as written."""

import time
from contextlib import contextmanager, nullcontext
from functools import partial

from ..data.rows.media import open_image
from ..errors import IvlkitError
from ..hardware import GIB
from ..models.load import load
from ..training.checkpoints import checkpoints as kept_checkpoints
from ..training.checkpoints import load_trained
from .html import cards_html, fragment, line_html, picture_html, text_html
from .live import Live, make_controls, uploaded

FIRST_QUESTION = "What is in the picture?"
REDRAWN_EVERY_SECONDS = 0.1


class Asking:
    """A picture, a question and the answers so far, {name: text}.

    Args:
        voices: {name: a function that opens a context, in which the `VLM` that it gives answers as this name}.
        note: a line below the answers.
        generation: options of `generate`, for every answer.
    """

    def __init__(self, voices, note="", **generation):
        self.voices, self.note, self.image, self.question = voices, note, None, ""
        self.generation = generation
        self.answers = dict.fromkeys(voices, "")

    def ask(self, question, source, *, redraw=lambda: None):
        """Stream the answers one after the other, redrawing as they grow; a picture that can't be opened is named
        in their place.

        Args: source: of the picture, as `open_image` takes it; None for the one before, or none.
        """
        self.question, last = question, 0.0
        self.answers.update(dict.fromkeys(self.voices, ""))
        for name, speaking in self.voices.items():
            try:
                self.image = self.image if source is None else open_image(source, "your picture")
                source = None
                with speaking() as vlm:
                    for piece in vlm.chat(question, images=self.image, stream=True, **self.generation):
                        self.answers[name] += piece
                        if time.monotonic() - last > REDRAWN_EVERY_SECONDS:
                            redraw()
                            last = time.monotonic()
            except IvlkitError as error:
                self.answers[name] = str(error)
        redraw()

    def to_html(self):
        """Picture, question, and the answers so far beside each other."""
        if not self.question:
            return fragment("<div>Choose a picture, type a question, press ask.</div>")
        picture = "" if self.image is None else picture_html(self.image, alt="your picture")
        asked = f'<div class="card">{picture}{line_html("you", text_html(self.question))}</div>'
        said = [(f'<div class="dim">{name}</div><b>{text_html(text)}</b>', "") for name, text in self.answers.items()]
        return fragment(f'{asked}{cards_html(said)}<div class="dim">{self.note}</div>')


def ask_live(vlm, question=None, image=None, **generation):
    """An upload button, a question and a button to ask; below them picture, question and the streamed answer.

    A question that is given, with its picture, is answered before it is shown.
    """
    return _live(Asking({vlm.family.key: partial(nullcontext, vlm)}, **generation), question, image)


def ask_run(run, question=None, image=None, *, checkpoints=False, max_new_tokens=None, **options):
    """The same for a run: what it began with, its checkpoints if wanted, and what it trained. See `Run.ask`."""
    generation = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    return _live(Asking(*_voices(run, checkpoints, options), **generation), question, image)


def _voices(run, checkpoints, options):
    """(voices, note). An adapter is turned off or exchanged on one model; beside whole weights the base is a second."""
    trained, note = run.load(**options), ""
    if trained.adapter is None:
        base = load(run.recipe.model, **options)
        base.processor = trained.processor
        gib = sum(value.nbytes for vlm in (base, trained) for value in vlm.model.parameters()) / GIB
        note = f"Whole weights were trained, so two models are in memory, {gib:.1f} GiB; a LoRA run needs one."
        voices = {"base": partial(nullcontext, base)}
    else:
        voices = {"base": partial(_without_adapter, trained)}
    for path in kept_checkpoints(run.folder) if checkpoints else ():
        voices[path.name] = partial(_as_of, trained, path, run.folder / "final")
    return voices | {"trained": partial(nullcontext, trained)}, note


@contextmanager
def _without_adapter(vlm):
    with vlm.adapter.disable_adapter():
        yield vlm


@contextmanager
def _as_of(vlm, checkpoint, final):
    """The model with what a checkpoint holds, and afterwards with what it had."""
    model = vlm.adapter or vlm.model
    try:
        load_trained(model, checkpoint)
        yield vlm
    finally:
        load_trained(model, final)


def _live(asking, question, image):
    if question is not None:
        asking.ask(question, image)
    live = Live(asking.to_html)
    live.answers = asking.answers
    live.controls = make_controls(
        lambda widgets: [
            widgets.FileUpload(accept="image/*", multiple=False, description="picture"),
            widgets.Text(value=question or FIRST_QUESTION, description="question", layout={"width": "420px"}),
            widgets.Button(description="ask", button_style="primary"),
        ]
    )

    def answer(button):  # what the controls hold; a second click waits
        upload, typed, _ = live.controls
        button.disabled = True
        try:
            asking.ask(typed.value, uploaded(upload), redraw=live.redraw)
        finally:
            button.disabled = False

    if live.controls:
        live.controls[2].on_click(answer)
    return live

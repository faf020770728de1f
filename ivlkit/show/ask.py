"""Ask a model one's own question about one's own picture; the answer appears as it is written."""

import io
import time

from ..data.rows.media import open_image
from ..errors import IvlkitError
from .html import fragment, picture_html, text_html
from .live import Live, make_controls, uploaded

FIRST_QUESTION = "What is in the picture?"
REDRAWN_EVERY_SECONDS = 0.1


class Asking:
    """A picture, a question and the answer so far."""

    def __init__(self, vlm):
        self.vlm, self.image, self.question, self.answer = vlm, None, "", ""

    def ask(self, question, source, *, redraw=lambda: None):
        """Stream the answer, redrawing as it grows; a picture that can't be opened is named in its place.

        Args: source: of the picture, as `open_image` takes it; None for the one before, or none.
        """
        self.question, self.answer, last = question, "", 0.0
        try:
            self.image = self.image if source is None else open_image(source, "your picture")
            for piece in self.vlm.chat(question, images=self.image, stream=True):
                self.answer += piece
                if time.monotonic() - last > REDRAWN_EVERY_SECONDS:
                    redraw()
                    last = time.monotonic()
        except IvlkitError as error:
            self.answer = str(error)
        redraw()

    def to_html(self):
        """Picture, question, and the answer so far."""
        if not self.question:
            return fragment("<div>Choose a picture, type a question, press ask.</div>")
        picture = "" if self.image is None else picture_html(self.image, alt="your picture")
        said = f'<div><span class="dim">{self.vlm.family.key}</span> <b>{text_html(self.answer)}</b></div>'
        return fragment(
            f'<div class="card">{picture}<div><span class="dim">you</span> {text_html(self.question)}</div>{said}</div>'
        )


def ask_live(vlm, question=None, image=None):
    """An upload button, a question and a button to ask; below them picture, question and the streamed answer.

    A question that is given, with its picture, is answered before it is shown.
    """
    asking = Asking(vlm)
    if question is not None:
        asking.ask(question, image)
    live = Live(asking.to_html)
    live.controls = make_controls(
        lambda widgets: [
            widgets.FileUpload(accept="image/*", multiple=False, description="picture"),
            widgets.Text(value=question or FIRST_QUESTION, description="question", layout={"width": "420px"}),
            widgets.Button(description="ask", button_style="primary"),
        ]
    )
    if live.controls:
        live.controls[2].on_click(lambda button: _answer(asking, live, button))
    return live


def _answer(asking, live, button):
    """Ask what the controls hold; a second click waits."""
    upload, question, _ = live.controls
    content = uploaded(upload)
    button.disabled = True
    try:
        asking.ask(question.value, None if content is None else io.BytesIO(content), redraw=live.redraw)
    finally:
        button.disabled = False

"""Controls above what they change.

What is looked at is an output of its own, plain HTML that the controls replace. So the notebook's file, GitHub and a
page made of it always hold the last thing seen; only the controls need a running kernel.
"""

import io

from ..errors import IvlkitError
from .html import fragment, text_html

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def live_under(draw, make, value):
    """`draw(value)` under one control, `make(ipywidgets)`, and drawn again with each value that it takes."""
    controls = make_controls(lambda widgets: [make(widgets)])
    return Live(lambda: draw(controls[0].value if controls else value), controls)


class Live:
    """What `draw()` gives, HTML or a `ShownFigure`, drawn again whenever a control's value changes.

    Without ipywidgets, or where no notebook is, it is its static form: `to_html()`.
    """

    def __init__(self, draw, controls=()):
        self.draw, self.controls, self._handle = draw, tuple(controls), None
        for control in self.controls:
            control.observe(self._redraw_if_live, "value")

    def to_html(self):
        """The static form as it is now; an error of the input stands in its place."""
        return self._bundle()["text/html"]

    def _bundle(self):
        try:
            shown = self.draw()
        except IvlkitError as error:
            shown = fragment(f'<div class="card bad">{text_html(error)}</div>')
        if isinstance(shown, str):
            return {"text/html": shown, "text/plain": "Shown as HTML."}
        return {"text/html": shown.to_html(), "text/plain": repr(shown)}

    def redraw(self):
        """Show the present state in the cell where this was shown."""
        from IPython.display import display

        if self._handle is None:
            self._handle = display(self._bundle(), display_id=True, raw=True)
        else:
            self._handle.update(self._bundle(), raw=True)

    def _redraw_if_live(self, _change):
        if self._handle is not None:
            self.redraw()

    def show(self):
        """Display controls and content here; a notebook does it by itself for the value of a cell."""
        show_controls(self.controls)
        self._handle = None  # shown once more: the last place is the live one
        self.redraw()

    _ipython_display_ = show


def show_controls(controls):
    """Widgets in a row that wraps, as an output of its own that is one line of text where no kernel runs."""
    if not controls:
        return
    import ipywidgets
    from IPython.display import display

    row = ipywidgets.HBox(list(controls), layout={"flex_flow": "row wrap", "overflow": "visible"})
    names = ", ".join(filter(None, (getattr(control, "description", "") for control in controls)))
    said = f"In a running notebook here are controls: {names}."
    display({WIDGET_VIEW: row._repr_mimebundle_()[WIDGET_VIEW], "text/plain": said}, raw=True)


def make_controls(make):
    """`make(ipywidgets)` → widgets; none where ipywidgets is not installed."""
    try:
        import ipywidgets
    except ImportError:
        return ()
    return make(ipywidgets)


def uploaded(control):
    """The file in an upload button, as a file in memory, or None."""
    return io.BytesIO(control.value[0]["content"]) if control.value else None

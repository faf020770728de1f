"""A matplotlib figure that a notebook shows by itself, without pyplot and its global state."""

import io

from matplotlib.figure import Figure


class ShownFigure(Figure):
    """matplotlib's Figure; as the value of a cell it is its picture."""

    def _repr_png_(self):
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110, bbox_inches="tight", facecolor="white")
        return buffer.getvalue()

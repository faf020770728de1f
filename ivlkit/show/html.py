"""The few pieces of HTML that everything shown is made of. All text from data is escaped."""

import base64
import io
import unicodedata
from html import escape

from PIL import Image

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
.ivl table { border-collapse: collapse; margin: .6em 0; }
.ivl th, .ivl td { text-align: left; padding: .25em .8em .25em 0; vertical-align: top; border-bottom: 1px solid #8884; }
.ivl .cards { display: flex; flex-wrap: wrap; gap: 12px; }
.ivl .card { border: 1px solid #8886; border-radius: 6px; padding: 8px; max-width: 340px; overflow-wrap: anywhere; }
.ivl img { max-width: 100%; height: auto; display: block; margin-bottom: 6px; }
.ivl .good { border-left: 5px solid #0072b2; } .ivl .bad { border-left: 5px solid #d55e00; }
.ivl .dim { opacity: .7; }
.ivl .big { font-size: 1.6em; font-weight: 600; }
"""


def text_html(text, limit=1500):
    """Any text as escaped HTML; control and bidirectional marks become visible, a long one is cut with its length."""
    text = str(text)
    cut = f"… ({len(text):,} characters)" if len(text) > limit else ""
    visible = "".join(_visible(character) for character in text[:limit])
    return f'<span dir="auto" style="white-space:pre-wrap">{escape(visible)}{cut}</span>'


def _visible(character):
    hidden = unicodedata.category(character) in ("Cc", "Cf") and character not in "\n\t\u200c\u200d"
    return f"[U+{ord(character):04X}]" if hidden else character


def picture_html(image, *, alt, max_px=320):
    """A PIL image as an embedded PNG or JPEG, scaled down to fit max_px, with its alternative text."""
    image = image.convert("RGB")
    image.thumbnail((max_px, max_px), Image.Resampling.LANCZOS)
    encodings = []
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        buffer = io.BytesIO()
        image.save(buffer, format=kind, **options)
        encodings.append((len(buffer.getvalue()), kind, buffer.getvalue()))
    _, kind, data = min(encodings)
    encoded = base64.b64encode(data).decode()
    return f'<img src="data:image/{kind};base64,{encoded}" alt="{escape(str(alt), quote=True)}">'


def table_html(rows, *, header=None, title=None):
    """Rows of values as a table; a title stands above it."""
    head = f"<tr>{''.join(f'<th>{escape(str(cell))}</th>' for cell in header)}</tr>" if header else ""
    body = "".join(f"<tr>{''.join(f'<td>{text_html(cell)}</td>' for cell in row)}</tr>" for row in rows)
    caption = f"<b>{escape(title)}</b>" if title else ""
    return fragment(f"{caption}<table>{head}{body}</table>")


def cards_html(cards):
    """`[(inner HTML, class), …]` as a row of boxes that wraps; class "good", "bad" or ""."""
    return (
        '<div class="cards">' + "".join(f'<div class="card {kind}">{inner}</div>' for inner, kind in cards) + "</div>"
    )


def fragment(body):
    """HTML for a notebook's output: styled, scoped to itself."""
    scoped = STYLE[STYLE.index(".ivl table") :]
    return f'<style>{scoped}</style><div class="ivl">{body}</div>'


def page_html(title, body):
    """One self-contained page that opens offline."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
        f'<body class="ivl"><h1>{escape(title)}</h1>{body}</body></html>'
    )


def figure_html(figure, *, alt):
    """A `ShownFigure` as an embedded PNG."""
    encoded = base64.b64encode(figure._repr_png_()).decode()
    return f'<img src="data:image/png;base64,{encoded}" alt="{escape(alt, quote=True)}">'

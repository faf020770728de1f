"""The few pieces of HTML that everything shown is made of. All text from data is escaped."""

import base64
import io
import unicodedata
from html import escape
from pathlib import Path

from PIL import Image

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")

# In a dark theme a drawing's light ground turns dark: in JupyterLab, in VS Code, on a page of ours.
_TURNED = "{ filter: invert(.93) hue-rotate(180deg); }"
_IN_DARK = (
    f"<style>[data-jp-theme-light=false] .drawn, .vscode-dark .drawn {_TURNED} "
    f"@media (prefers-color-scheme: dark) {{ body.ivl .drawn {_TURNED} }}</style>"
)


def text_html(text, limit=1500):
    """Any text as escaped HTML; control and bidirectional marks become visible, a long one is cut with its length.

    Half a surrogate pair, which no file can hold, becomes visible too.
    """
    return f'<span dir="auto" style="white-space:pre-wrap;unicode-bidi:plaintext">{escape_text(text, limit)}</span>'


def escape_text(text, limit=1500):
    """The same without an element of its own."""
    text, shown = str(text), []
    for character in text[:limit]:
        hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs") and character not in "\n\t\u200c\u200d"
        shown.append(f"[U+{ord(character):04X}]" if hidden else character)
    cut = f"… ({len(text):,} characters)" if len(text) > limit else ""
    return escape("".join(shown)) + cut


def line_html(name, inner):
    """A line of a card: a quiet name, then HTML."""
    return f'<div><span class="dim">{name}</span> {inner}</div>'


def picture_html(image, *, alt, max_px=320):
    """A PIL image as an embedded PNG or JPEG, scaled down to fit max_px, with its alternative text."""
    image = image.convert("RGB")
    image.thumbnail((max_px, max_px), Image.Resampling.LANCZOS)
    return embed_html(image, alt=alt)


def embed_html(image, *, alt, width_px=None):
    """The pixels of a PIL image in RGB as PNG or JPEG, whichever is smaller; `width_px` is the width it is shown at."""
    image = image.copy()
    image.info.clear()  # Pillow would write a photo's comment, colour profile and XMP again
    encodings = []
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        buffer = io.BytesIO()
        image.save(buffer, format=kind, **options)
        encodings.append((len(buffer.getvalue()), kind, buffer.getvalue()))
    _, kind, data = min(encodings)
    return img_html(data, kind, alt=alt, width_px=width_px)


def img_html(data, kind, *, alt, width_px=None):
    """Bytes of a picture of a kind, "png" or "svg+xml", embedded with its alternative text."""
    encoded = base64.b64encode(data).decode()
    width = f' width="{width_px}"' if width_px else ""
    return f'<img src="data:image/{kind};base64,{encoded}" alt="{escape_text(alt)}"{width}>'


def turned_html(img):
    """An embedded drawing or chart, never a photo: a dark theme turns its light ground dark and its ink light."""
    return _IN_DARK + img.replace("<img", '<img class="drawn"', 1)


def table_html(rows, *, header=None, title=None):
    """Rows of values as a table; a title stands above it."""
    head = f"<tr>{''.join(f'<th>{escape_text(cell)}</th>' for cell in header)}</tr>" if header else ""
    body = "".join(f"<tr>{''.join(f'<td>{text_html(cell)}</td>' for cell in row)}</tr>" for row in rows)
    caption = f"<b>{escape_text(title)}</b>" if title else ""
    return fragment(f"{caption}<table>{head}{body}</table>")


def cards_html(cards):
    """`[(inner HTML, class), …]` as a row of boxes that wraps; class "good", "bad" or "", which `inner` says too.

    Where a site strips styles, a line ends each card.
    """
    boxes = (f'<div class="card {kind}">{inner}<hr></div>' for inner, kind in cards)
    return f'<div class="cards">{"".join(boxes)}</div>'


def fragment(body):
    """HTML for a notebook's output: styled, scoped to itself."""
    scoped = STYLE[STYLE.index(".ivl table") :]
    return f'<style>{scoped}</style><div class="ivl">{body}</div>'


def page_html(title, body):
    """One self-contained page that opens offline."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape_text(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
        f'<body class="ivl"><h1>{escape_text(title)}</h1>{body}</body></html>'
    )

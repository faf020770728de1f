"""The few pieces of HTML that everything shown is made of. All text from data is escaped."""

import base64
import io
import unicodedata
from html import escape

from PIL import Image

# A class named twice outweighs a notebook's own rules: tables flush right, code on grey.
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
.ivl table { border-collapse: collapse; margin: .6em 0; }
.ivl.ivl th, .ivl.ivl td { text-align: left; padding: .25em .8em .25em .4em; vertical-align: top; }
.ivl.ivl th, .ivl.ivl td { border-bottom: 1px solid #8884; }
.ivl .cards { display: flex; flex-wrap: wrap; gap: 12px; margin: .6em 0; }
.ivl .card { border: 1px solid #8886; border-radius: 6px; padding: 8px; max-width: 340px; overflow-wrap: anywhere; }
.ivl img { max-width: 100%; height: auto; display: block; margin-bottom: 6px; }
.ivl .good { border-left: 5px solid #0072b2; } .ivl .bad { border-left: 5px solid #d55e00; }
.ivl .answer { padding-left: 5px; } .ivl .dim { opacity: .7; }
.ivl .big { font-size: 1.6em; font-weight: 600; }
.ivl .tokens { line-height: 2.1; margin: .6em 0; }
.ivl .token { border: 1px solid #8888; border-radius: 4px; padding: 1px 4px; margin: 1px 0; overflow-wrap: anywhere; }
.ivl .token { display: inline-block; line-height: 1.5; vertical-align: middle; max-width: 100%; white-space: pre-wrap; }
.ivl .token sub { opacity: .7; font-size: .7em; margin-left: 3px; font-weight: normal; font-style: normal; }
.ivl.ivl .token code { background: none; padding: 0; color: inherit; }
.ivl .token u { text-decoration: none; } .ivl .card hr { display: none; }
.ivl .token img, .ivl .tiles img { display: inline-block; vertical-align: middle; margin: 1px 4px 1px 0; }
.ivl .token img { height: 28px; } .ivl .token img, .ivl .tiles img { outline: 1px solid #8888; }
.ivl .trained { background: #0072b255; border-color: #0072b2; }
.ivl .image { background: #e69f0044; border-color: #e69f00; }
.ivl .special { background: #cc79a744; border-color: #cc79a7; border-style: dashed; }
.ivl .masked { background: #8882; } .ivl .padding { opacity: .6; border-style: dotted; }
.ivl .share { display: inline-block; height: 10px; background: #0072b2; }
.ivl .cut { border: 3px solid #d55e00; }
.ivl .bar { display: flex; height: 12px; border: 1px solid #8888; margin: .4em 0; } .ivl .bar span { border-width: 0; }
.ivl .bar .trained { background: #0072b2; } .ivl .bar .image { background: #e69f00; }
.ivl .bar .special { background: #cc79a7; } .ivl .bar .masked { background: #888; }
.ivl .bar .sample { background: #8884; border-right: 3px solid #d55e00; }
.ivl .bar .padding { background: repeating-linear-gradient(45deg, #888 0 3px, transparent 3px 6px); }
"""

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
    return f'<span dir="auto" style="white-space:pre-wrap">{escape_text(text, limit)}</span>'


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

"""Rows of a data set as pictures with their questions and answers."""

from ..data.media import open_image
from ..data.video import sample_frames
from ..errors import DataError
from .html import cards_html, fragment, picture_html, text_html


def record_html(record):
    """One row: its pictures and its turns."""
    return fragment(cards_html([(_card(record), "")]))


def gallery_html(data, *, rows=8):
    """The first rows of a data set and its size."""
    cards = [(_card(data[number]), "") for number in range(min(rows, len(data)))]
    return fragment(f"<b>{text_html(data)}</b>{cards_html(cards)}")


def _card(record):
    turns = "".join(
        f'<div><span class="dim">{turn.role}</span> {text_html(turn.text, 400)}</div>' for turn in record.turns
    )
    return f'{media_html(record)}{turns}<div class="dim">{text_html(record.where)}</div>'


def media_html(record, *, frames=4, max_px=320):
    """The pictures of a row, or a few frames of its video; what can't be opened is named in its place."""
    if not record.video:
        return pictures_html(record.images, record.where, max_px=max_px)
    try:
        shown = list(sample_frames(record.video, record.where, num_frames=frames))
    except DataError as error:
        return f"<div>{text_html(error)}</div>"
    return pictures_html(shown, record.where, max_px=max_px)


def pictures_html(images, where, *, max_px=320):
    """Pictures of a row; one that can't be opened is named in its place."""
    shown = []
    for image in images:
        try:
            shown.append(picture_html(open_image(image, where), alt=f"picture of {where}", max_px=max_px))
        except DataError as error:
            shown.append(f"<div>{text_html(error)}</div>")
    return "".join(shown)

"""Rows of a data set as pictures with their questions and answers, boxes drawn where a text names them."""

from PIL import ImageDraw, ImageFont

from ..data.rows.boxes import named_boxes
from ..data.rows.media import open_image
from ..data.rows.video import sample_frames
from ..errors import DataError
from .figure import BLUE, FONT, GREEN, ORANGE, PINK, RED, has_letters
from .findings import figures_html, kind_table, problems_of_rows, remarks_html, row_anchor
from .html import cards_html, fragment, line_html, picture_html, text_html
from .live import live_under

BOX_COLOURS = (RED, BLUE, GREEN, ORANGE, PINK)


def record_html(record):
    """One row: its pictures and its turns."""
    return fragment(cards_html([(_card(record), "")]))


def gallery_html(data, *, rows=8, start=0, report=None):
    """Rows of a data set and its size; with a `DataReport` also its histograms and what it found, linked both ways.

    A row that can't be read is named in its place.
    """
    cards, found = [], problems_of_rows(report)
    for number in range(start, min(start + rows, len(data))):
        where = data.where(number)
        problems = found.get(where, [])
        try:
            card, kind = _card(data[number]), "bad" if problems else ""
        except DataError as error:
            card, kind = f'<div id="{row_anchor(where)}">{text_html(error)}</div>', "bad"
        cards.append((card + remarks_html(problems), kind))
    overview = figures_html(report) + kind_table(report) if report else ""
    return fragment(f"<b>{text_html(data)}</b>{overview}{cards_html(cards)}")


def gallery_live(data, rows=8, *, start=0, report=None):
    """`gallery_html` under a picker of the first row."""
    start = row_number(data, start)
    limits = {"value": start, "min": 0, "max": len(data) - 1, "step": rows}
    return live_under(
        lambda first: gallery_html(data, rows=rows, start=first, report=report),
        lambda widgets: widgets.BoundedIntText(**limits, description="first row"),
        start,
    )


def row_number(data, row):
    """`row` as `data[row]` counts, from 0 on: a picker would move one outside of its limits to another row.

    Raises: IndexError for a row that is not there.
    """
    data.where(row)
    return row % len(data)


def _card(record):
    """A row's pictures with the boxes of its turns, its turns and where it stands."""
    turns = "".join(line_html(turn.role, text_html(turn.text, 400)) for turn in record.turns)
    boxes = named_boxes("\n".join(turn.text for turn in record.turns))
    where = f'<div class="dim">{text_html(record.where)}</div>'
    return f'<div id="{row_anchor(record.where)}">{media_html(record, boxes=boxes)}{turns}{where}</div>'


def media_html(record, *, max_px=320, boxes=()):
    """The pictures of a row, or four frames of its video; what can't be opened is named in its place."""
    if not record.video:
        return pictures_html(record.images, record.where, max_px=max_px, boxes=boxes)
    try:
        shown = list(sample_frames(record.video, record.where, num_frames=4))
    except DataError as error:
        return f"<div>{text_html(error)}</div>"
    return pictures_html(shown, record.where, max_px=max_px)


def pictures_html(images, where, *, max_px=320, boxes=()):
    """Pictures of a row; one that can't be opened is named in its place. Boxes are drawn where there is one picture."""
    shown, boxes = [], boxes if len(images) == 1 else ()
    for image in images:
        try:
            opened = open_image(image, where)
        except DataError as error:
            shown.append(f"<div>{text_html(error)}</div>")
            continue
        if boxes:
            opened = draw_boxes(opened, boxes, shown_px=max_px)
        names = "".join(f", {name or 'a box'}" for name, _ in boxes)
        shown.append(picture_html(opened, alt=f"picture of {where}{names}", max_px=max_px))
    return "".join(shown)


def draw_boxes(image, boxes, *, shown_px=320):
    """A copy of a picture with named boxes, drawn to be seen at a size of `shown_px`.

    Each has a white rim, a colour and its name, so that it shows on any picture and to any eye. A number stands for no
    name, and for one with letters that the font lacks, such as Chinese ones.

    Args: boxes: as `named_boxes` gives them; what lies outside of the picture is drawn at its edge.
    """
    image = image.copy()
    image.thumbnail((2 * shown_px, 2 * shown_px))
    pen, line = ImageDraw.Draw(image), max(2, round(max(image.size) / shown_px * 2))
    font = ImageFont.truetype(FONT, size=6 * line)
    for number, (name, box) in enumerate(boxes):
        colour = BOX_COLOURS[number % len(BOX_COLOURS)]
        inside = [min(max(value, 0), 1000) * (image.size[place % 2] - 1) / 1000 for place, value in enumerate(box)]
        (left, right), (top, bottom) = sorted(inside[0::2]), sorted(inside[1::2])
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="white", width=line + 2)
        pen.rectangle((left, top, right, bottom), outline=colour, width=line)
        label = "".join(filter(str.isprintable, name))[:24]
        if not label or not has_letters(label):
            label = str(number + 1)
        place = pen.textbbox((left + 2 * line, top + line), label, font=font)
        pen.rectangle((place[0] - line, place[1] - line, place[2] + line, place[3] + line), fill="white")
        pen.text((left + 2 * line, top + line), label, fill="black", font=font)
    return image

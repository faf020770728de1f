"""A loaded model as a table: its parts and where they lie."""

from ..data.media import open_image
from ..models.verify import DATA
from .html import cards_html, fragment, picture_html, table_html, text_html

PARTS = (("vision tower", "model.vision_tower."), ("projector", "model.multi_modal_projector."))


def vlm_html(vlm):
    """Parts, parameters, tile settings, template."""
    if vlm.model is None:
        return table_html([("model", "released from memory")])
    named = list(vlm.model.named_parameters())
    rows = [(part, f"{_count(named, prefix):,} parameters") for part, prefix in PARTS]
    rows.append(
        ("language model", f"{sum(p.numel() for _, p in named) - sum(_count(named, x) for _, x in PARTS):,} parameters")
    )
    processor = vlm.processor
    rows += [
        ("on", f"{vlm.model.device}, {str(vlm.model.dtype).removeprefix('torch.')}"),
        (
            "tiles",
            f"{processor.tile_px} px, {processor.num_image_token} tokens each, up to {processor.max_tiles} + thumbnail",
        ),
        ("template", processor.template.name),
        ("system prompt", processor.system_message),
    ]
    return table_html(rows, title=f"{vlm.family.key} from {vlm.origin}")


def _count(named, prefix):
    return sum(parameter.numel() for name, parameter in named if name.startswith(prefix))


def verification_html(found):
    """The checks of `verify` as a table, below it every question with its picture, reply and expected words."""
    marks = {True: "ok", False: "failed", None: "–"}
    rows = [("revision", "", found.revision), *((check.name, marks[check.ok], check.detail) for check in found.checks)]
    title = f"{found.model}: {'works here' if found.ok else 'does not work'}"
    cards = [(_answer_card(answer), "good" if answer.ok else "bad") for answer in found.answers]
    note = f"<div>{text_html(found.note)}</div>" if found.note else ""
    return fragment(table_html(rows, title=title) + cards_html(cards) + note)


def _answer_card(answer):
    return (
        f"{picture_html(open_image(DATA / answer.picture), alt=answer.picture, max_px=160)}"
        f"<div>{text_html(answer.question)}</div><div><b>{text_html(answer.reply, 200)}</b></div>"
        f'<div class="dim">expected: {text_html(" or ".join(answer.expected))}</div>'
    )

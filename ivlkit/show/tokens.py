"""The microscope: a row as the model sees it, read back from the batch that training would get.

A batch is padded (`attention_mask`) or packed (`cu_seqlens`); either way it is taken apart into samples. Nothing here
decides what is trained: that is read from the batch's own labels.
"""

import re
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
from PIL import Image

from ..data.collate import collate
from ..data.encode import IGNORE_INDEX, encode
from ..data.rows.conversation import IMAGE_CONTEXT
from .dataset import media_html, row_number
from .html import escape_text, fragment, picture_html, table_html, text_html
from .live import live_under

TRAINED, MASKED, IMAGE, SPECIAL, PADDING = KINDS = ("trained", "masked", "image", "special", "padding")
SAID_OF_A_KIND = {
    TRAINED: "the loss is taken on it: predicted from all tokens before it",
    MASKED: "text that is read, never trained on",
    IMAGE: "a place that a feature of a tile takes",
    SPECIAL: "a token of the chat format, not trained on",
    PADDING: "fills the batch up; seen by no other token",
}
MARKS = {  # around a token, where a site strips styles; masked text is plain
    TRAINED: ("<u><b>", "</b></u>"),
    IMAGE: ("<i>[", "]</i>"),
    SPECIAL: ("<code>", "</code>"),
    PADDING: ("<s>", "</s>"),
}
RUN_SHOWN = (120, 40)  # first and last tokens of a long run of one kind
CHIPS_SHOWN = 2000
RUNS_DRAWN = 400
TILE_PX = 64


@dataclass(frozen=True)
class BatchSample:
    """One sample of a batch: ids and labels int64 [L], a kind for each token, tiles uint8 [T, S, S, 3]."""

    start: int  # first token in its row of the batch
    input_ids: np.ndarray
    labels: np.ndarray
    kinds: np.ndarray  # str [L], of KINDS
    tiles: np.ndarray

    def count(self, kind):
        """Tokens of a kind."""
        return int((self.kinds == kind).sum())


def read_batch(batch, processor):
    """The samples of a collated batch, in order: `[BatchSample, …]`.

    Args: batch: of `collate` (input_ids, labels, attention_mask [B, L], tiles) or packed, [1, ΣL] with `cu_seqlens`
        [samples + 1] instead of the mask.
    """
    ids, labels, tiles = (np.asarray(batch[name]) for name in ("input_ids", "labels", "tiles"))
    special = {*processor.tokenizer.all_special_ids, *processor.tokenizer.get_added_vocab().values()}
    is_image = ids == processor.token_id(IMAGE_CONTEXT)
    kinds = np.where(np.isin(ids, list(special)), SPECIAL, MASKED)
    kinds = np.where(labels != IGNORE_INDEX, TRAINED, np.where(is_image, IMAGE, kinds))
    if "attention_mask" in batch:
        kinds = np.where(np.asarray(batch["attention_mask"]) == 0, PADDING, kinds)
    if "cu_seqlens" in batch:
        places = [(0, start, stop) for start, stop in pairwise(np.asarray(batch["cu_seqlens"]).tolist())]
    else:
        places = [(row, 0, ids.shape[1]) for row in range(len(ids))]
    samples, next_tile = [], 0
    for row, start, stop in places:
        part = row, slice(start, stop)
        used = -(-int(is_image[part].sum()) // processor.num_image_token)
        samples.append(BatchSample(start, ids[part], labels[part], kinds[part], tiles[next_tile : next_tile + used]))
        next_tile += used
    return samples


def tokens_html(record, processor, *, max_length=None):
    """One row as the model sees it: encoded, collated, taken apart again.

    Raises: DataError as `encode`.
    """
    example = encode(record, processor, max_length=max_length)
    batch = collate([example], pad_token_id=processor.tokenizer.pad_token_id)
    return batch_html(batch, processor, records=[record], notes=example.notes)


def batch_html(batch, processor, *, records=(), notes=(), focus=0):
    """A batch of any kind: one sample opened, its neighbours folded, borders and positions of all.

    Args:
        batch: as in `read_batch`.
        records: of its samples in order, for their pictures and places; left out where there is none.
        focus: number of the opened sample.
    """
    samples = read_batch(batch, processor)
    parts = [f"<div>{text_html(note)}</div>" for note in notes]
    if len(samples) > 1:
        parts.append(_neighbours(samples, records, packed="attention_mask" not in batch))
    for number, sample in enumerate(samples):
        record = records[number] if number < len(records) else None
        body = _sample_html(sample, processor, record)
        if len(samples) > 1:
            opened = " open" if number == focus else ""
            where = f", {text_html(record.where)}" if record else ""
            title = f"sample {number}{where}: {len(sample.input_ids):,} tokens, {sample.count(TRAINED):,} trained"
            body = f"<details{opened}><summary>{title}</summary>{body}</details>"
        parts.append(body)
    return fragment("".join(parts))


def tokens_live(data, processor, *, row=0, max_length=None):
    """`tokens_html` of a data set's row, with a row picker."""
    row = row_number(data, row)
    return live_under(
        lambda number: tokens_html(data[number], processor, max_length=max_length),
        lambda widgets: widgets.BoundedIntText(value=row, min=0, max=len(data) - 1, description="row"),
        row,
    )


def _neighbours(samples, records, *, packed):
    """The batch as a table of its samples, with what keeps them apart."""
    said = "Padded: a row each, filled up to the longest."
    if packed:
        said = "Packed: one sequence, attention ends at every border and positions start again."
    rows = []
    for number, sample in enumerate(samples):
        where = records[number].where if number < len(records) else ""
        places = f"{sample.start:,} to {sample.start + len(sample.input_ids) - 1:,}"
        rows.append((number, where, places, *map(sample.count, KINDS)))
    shares = [(len(sample.input_ids), "sample") for sample in samples]
    return f"<div>{said}</div>{_bar(shares)}{table_html(rows, header=('sample', 'row', 'tokens', *KINDS))}"


def _sample_html(sample, processor, record):
    counts = {kind: sample.count(kind) for kind in KINDS if sample.count(kind)}
    head = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    where = f'<span class="dim">{text_html(record.where)}</span> ' if record else ""
    legend = "".join(
        f'<div><span class="token {kind}">{_emphasised(kind, kind)}</span> {SAID_OF_A_KIND[kind]}</div>'
        for kind in counts
    )
    runs = [(len(list(run)), str(kind)) for kind, run in groupby(sample.kinds)]
    if len(runs) > RUNS_DRAWN:  # then only a total of each kind
        runs = [(sample.count(kind), kind) for kind in KINDS]
    return (
        f"<div>{where}<b>{len(sample.input_ids):,} tokens</b>: {head}; {len(sample.tiles)} tiles</div>"
        f"{_bar(runs)}{_pictures(sample, record)}"
        f'<div class="tokens">{_chips(sample, processor)}</div><div>{legend}</div>'
    )


def _bar(shares):
    """(number, kind) … as parts of one bar."""
    total = sum(number for number, _ in shares) or 1
    parts = "".join(
        f'<span class="{kind}" title="{number:,} tokens" style="width:{100 * number / total:.2f}%"></span>'
        for number, kind in shares
    )
    return f'<div class="bar">{parts}</div>'


def _pictures(sample, record):
    """The picture beside its tiles."""
    if not len(sample.tiles):
        return ""
    tiles = " ".join(_tile_html(tile, number) for number, tile in enumerate(sample.tiles, start=1))
    picture = f"<div>{media_html(record, max_px=240)}</div>" if record else ""
    tiles = f'<div><div class="dim">as tiles</div><div class="tiles">{tiles}</div></div>'
    return f'<div class="cards">{picture}{tiles}</div>'


def _tile_html(tile, number):
    return picture_html(Image.fromarray(tile), alt=f"tile {number}", max_px=TILE_PX)


def _chips(sample, processor):
    """Every token with its id; tokens of one tile together, long runs of one kind shortened.

    Spaces between them, so that lines break where a site strips styles.
    """
    texts = token_texts(sample.input_ids, processor)
    chips, tile = [], 0
    for kind, run in groupby(range(len(texts)), key=lambda place: sample.kinds[place]):
        places = list(run)
        if kind == IMAGE:
            made = _image_chips(places, sample, processor, tile)
            tile += len(made)
        else:
            first, last = RUN_SHOWN
            hidden = len(places) - first - last
            shown = places if hidden <= 0 else places[:first] + places[-last:]
            made = [_chip(place, texts[place], sample, kind) for place in shown]
            if hidden > 0:
                made.insert(first, f'<span class="dim"> … {hidden:,} more {kind} tokens … </span>')
        chips += made
    left = len(chips) - CHIPS_SHOWN
    return " ".join(chips[:CHIPS_SHOWN]) + (f'<div class="dim">… and {left:,} more</div>' if left > 0 else "")


def _chip(place, text, sample, kind):
    place_in_row = sample.start + place
    said = f"the loss compares it with what is said at place {place_in_row - 1}" if kind == TRAINED else "not trained"
    inner = f"{_emphasised(escape_text(text, 40), kind)}<sub>{int(sample.input_ids[place])}</sub>"
    chip = f'<span class="token {kind}" title="place {place_in_row}, {kind}: {said}">{inner}</span>'
    return chip + ("<br>" if text.endswith("↵") else "")


def _emphasised(text, kind):
    """A kind also shows without colours: where a site strips styles, or to an eye that sees fewer."""
    before, after = MARKS.get(kind, ("", ""))
    return f"{before}{text}{after}"


def _image_chips(places, sample, processor, tile):
    """One chip a tile; fewer tokens than a tile has are marked."""
    whole, chips = processor.num_image_token, []
    for number, start in enumerate(range(0, len(places), whole), start=tile):
        part = places[start : start + whole]
        picture = _tile_html(sample.tiles[number], number + 1) if number < len(sample.tiles) else ""
        cut, count = (" cut", f"<b>cut: {len(part)} of {whole}</b>") if len(part) < whole else ("", whole)
        title = f"places {sample.start + part[0]} to {sample.start + part[-1]}, image: {SAID_OF_A_KIND[IMAGE]}"
        token = f"{escape_text(IMAGE_CONTEXT)}<sub>{int(sample.input_ids[part[0]])}</sub>"
        inner = f"{picture}{_emphasised(f'tile {number + 1}: {count} × {token}', IMAGE)}"
        chips.append(f'<span class="token image{cut}" title="{title}">{inner}</span>')
    return chips


def token_texts(ids, processor):
    """Tokens as text that can be seen: ▁ for a space that belongs to a piece, ↵ for a line's end."""
    pieces = processor.tokenizer.convert_ids_to_tokens(ids.tolist())
    known = ["no such token" if piece is None else piece for piece in pieces]
    return [re.sub("<0x0A>|\n", "↵", re.sub("<0x09>|\t", "⇥", piece)) for piece in known]

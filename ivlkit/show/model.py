"""Models: the released ones to scale, a loaded one, a folder, and what `verify` found."""

import math
from pathlib import Path

from ..data.rows.media import open_image
from ..hardware import GIB
from ..models.families import FAMILIES
from ..models.hub.verify import DATA
from ..models.layouts.weight_files import read_shapes, read_weight_files
from ..models.modeling.quantize import count_values
from .figure import BLUE, ORANGE, PINK, ShownFigure
from .html import cards_html, fragment, picture_html, table_html, text_html

PART_COLOURS = {"vision tower": BLUE, "projector": PINK, "language model": ORANGE}
RELEASED_PREFIXES = {"vision_model.": "vision tower", "mlp1.": "projector", "language_model.": "language model"}
FILES = {
    "config.json": "sizes of every part, template, tile settings",
    "generation_config.json": "defaults of generation",
    "model.safetensors": "the weights: a JSON header, then plain numbers",
    "model.safetensors.index.json": "which tensor lies in which file",
    "tokenizer.model": "text pieces and their scores (sentencepiece)",
    "tokenizer_config.json": "special tokens and their ids",
    "special_tokens_map.json": "names of special tokens",
    "added_tokens.json": "ids of the tokens added for pictures",
    "download.json": "which commit this is, sizes and hashes",
}
EDGE_GB = 100  # of the drawing of sizes
OTHER_FILES = {".safetensors": FILES["model.safetensors"], ".py": "the original code, for servers; never run here"}
OTHER_FILES |= {".md": "for people", "": "for people"}
PARTS = {
    "vision tower": "model.vision_tower.",
    "projector": "model.multi_modal_projector.",
    "language model": ("model.language_model.", "lm_head."),
}


def vlm_html(vlm):
    """Parts, parameters, tile settings, template."""
    if vlm.model is None:
        return table_html([("model", "released from memory")])
    sizes, processor = {name: count_values(each) for name, each in vlm.model.named_parameters()}, vlm.processor
    counts = {part: sum(sizes[name] for name in sizes if name.startswith(prefix)) for part, prefix in PARTS.items()}
    tiles = f"{processor.tile_px} px, {processor.num_image_token} tokens each, up to {processor.max_tiles} + thumbnail"
    rows = [
        *((part, f"{count:,} parameters") for part, count in counts.items()),
        ("on", f"{vlm.model.device}, {str(vlm.model.dtype).removeprefix('torch.')}"),
        ("tiles", tiles),
        ("template", processor.template.name),
        ("system prompt", processor.system_message),
    ]
    return table_html(rows, title=f"{vlm.family.key} from {vlm.origin}")


def verification_html(found):
    """The checks of `verify` as a table, below it every question with its picture, reply and expected words."""
    marks = {True: "ok", False: "failed", None: "–"}
    rows = [("revision", "", found.revision), *((check.name, marks[check.ok], check.detail) for check in found.checks)]
    title = f"{found.model}: {'works here' if found.ok else 'does not work'}"
    cards = []
    for answer in found.answers:
        kind, mark = ("good", "✓") if answer.ok else ("bad", "✗")
        picture = picture_html(open_image(DATA / answer.picture), alt=answer.picture, max_px=160)
        said = f"<div>{text_html(answer.question)}</div><div>{mark} <b>{text_html(answer.reply, 200)}</b></div>"
        expected = f'<div class="dim">expected: {text_html(" or ".join(answer.expected))}</div>'
        cards.append((picture + said + expected, kind))
    note = f"<div>{text_html(found.note)}</div>" if found.note else ""
    return fragment(table_html(rows, title=title) + cards_html(cards) + note)


def sizes_figure(machine):
    """The released models' weights in bf16 to scale, part by part, beside what this machine has.

    Args: machine: `ivlkit.machine()`.
    Returns: matplotlib figure; lines for free disk, RAM and each GPU's memory, arrows for what lies beyond the edge.
    """
    families = sorted((each for each in FAMILIES.values() if each.parts), key=lambda each: sum(each.parts))
    said = "; ".join(f"{each.key}: {2 * sum(each.parts) / 1e9:.1f} GB" for each in families)
    figure = ShownFigure(figsize=(9, 3.6), alt=f"weights in bf16, {said}")
    axes = figure.subplots()
    for row, family in enumerate(families):
        left = 0.0
        for (part, colour), parameters in zip(PART_COLOURS.items(), family.parts, strict=True):
            axes.barh(row, 2 * parameters / 1e9, left=left, color=colour, label=part if row == 0 else None)
            left += 2 * parameters / 1e9
        sizes = " + ".join(f"{parameters / 1e9:.2f}" for parameters in family.parts)
        text = f"{left:.1f} GB: {sizes} B parameters"
        axes.text(left + 1.8, row, text, va="center", fontsize=9, backgroundcolor="white")
    _draw_limits(axes, machine)
    axes.set(xlim=(0, EDGE_GB), xlabel="GB of weights, 2 bytes a parameter (bf16)")
    axes.set_yticks(range(len(families)), [f"{family.key}\n{family.name}" for family in families], fontsize=9)
    axes.invert_yaxis()
    axes.legend(loc="lower right", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_limits(axes, machine):
    limits = [("free disk", machine.disk_free_gib), ("free RAM", machine.ram_free_gib)]
    limits += [(f"free on GPU {number}", gpu.free_gib) for number, gpu in enumerate(machine.gpus)]
    known = [(name, gib * GIB / 1e9) for name, gib in limits if gib is not None]
    for row, (name, gigabytes) in enumerate(sorted(known, key=lambda limit: limit[1])):
        at, style, more = (EDGE_GB, ":", " →") if gigabytes > EDGE_GB else (gigabytes, "--", "")
        axes.axvline(at, color="#444444", linestyle=style, linewidth=1)
        place = {"xycoords": ("data", "axes fraction"), "ha": "center", "fontsize": 9}
        axes.annotate(f"{name} {gigabytes:,.0f} GB{more}", (at, 1.0 + 0.07 * row), **place)


def folder_html(folder):
    """The files of a model folder: size, and what each is for."""
    paths = sorted(path for path in Path(folder).iterdir() if path.is_file())
    purposes = [FILES.get(path.name, OTHER_FILES.get(path.suffix, "more settings")) for path in paths]
    rows = [(path.name, f"{path.stat().st_size:,}", said) for path, said in zip(paths, purposes, strict=True)]
    return table_html(rows, header=("file", "bytes", "what it holds"))


def tensors_html(folder):
    """The tensors of a folder in the released layout by part, from the headers: no weight is read."""
    shapes = read_shapes(read_weight_files(folder))
    rows = []
    for prefix, part in RELEASED_PREFIXES.items():
        mine = {key: shape for key, shape in shapes.items() if key.startswith(prefix)}
        parameters = sum(math.prod(shape) for shape in mine.values())
        example = max(mine, key=lambda key: (math.prod(mine[key]), key))
        rows.append((part, len(mine), f"{parameters:,}", f"{example} {list(mine[example])}"))
    return table_html(rows, header=("part", "tensors", "parameters", "its largest tensor"))

"""Diagrams of what can't be photographed: the course, the model's parts, the shift, LoRA, packing, ZeRO.

Every size in them comes from a configuration, a row or a plan. A `Drawing` is an SVG with a ground of its own, embedded
as a picture: GitHub and untrusted notebooks strip styles and inline SVG, but keep pictures and their alternative text.
"""

import math

from ..data.encode import IGNORE_INDEX
from ..data.packing import Budgets, pack
from ..hardware import GIB
from ..models.families import match_family
from ..models.shapes import config_of
from ..training.estimate.planner import plan
from ..training.recipes import recipe as named_recipe
from .charts import MEMORY_COLOURS
from .figure import BLUE, GREEN, ORANGE, PINK
from .html import escape_text, img_html, turned_html
from .tokens import token_texts

INK, QUIET, GREY, GROUND = "#1a1a1a", "#595959", "#808080", "#fafaf8"
DOORS = (  # (door, what it is for, [(notebook, what happens in it)])
    ("Half an hour", "see how it learns", "00 first look|02 tiles|07 teach it|08 does it read?"),
    ("My own data", "teach it my pictures", "05 table to rows|09 label, review|my_project run it all|10 share it"),
    ("My GPU", "what can it do?", "06 memory, time|13 many GPUs"),
    ("Deeper", "any of them, any time", "01 the files|03 the labels|04 inside|11 all weights|12 the loop"),
)
SHOWN = 8  # tokens of the shift, rows of packing at most
STATE_COLOURS = {part: MEMORY_COLOURS[part] for part in ("weights", "gradients", "optimizer")}


class Drawing:
    """Boxes, labels and arrows on a ground of their own; as the value of a cell it is its picture."""

    def __init__(self, width_px, height_px, *, alt):
        self.width_px, self.height_px, self.alt, self.marks = width_px, height_px, alt, []

    def label(self, x, y, text, below="", *, size=14, colour=INK, bold=False):
        """Text around (x, y), and 20 px below it a second, quieter one."""
        weight = ' font-weight="bold"' if bold else ""
        self.marks.append(
            f'<text x="{x:.1f}" y="{y + size * 0.35:.1f}" font-size="{size}" fill="{colour}" '
            f'text-anchor="middle"{weight}>{escape_text(text)}</text>'
        )
        if below:
            self.label(x, y + 20, below, size=13, colour=QUIET)

    def box(self, x, y, width, height, *lines, colour=GREY, opacity=0.2, dashed=False, size=14):
        """A rectangle tinted in its colour, lines of text in its middle: the first one bold."""
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        self.marks.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="3" fill="{colour}" '
            f'fill-opacity="{opacity}" stroke="{colour}" stroke-width="1.5"{dashes}/>'
        )
        for place, line in enumerate(lines):
            middle = y + height / 2 + (place - (len(lines) - 1) / 2) * (size + 5)
            self.label(x + width / 2, middle, line, size=size - (place > 0), bold=place == 0)

    def arrow(self, *points, colour=QUIET, dashed=False):
        """A line through points (x, y) with a head at the last."""
        (x1, y1), (x2, y2) = points[-2:]
        angle, dashes = math.atan2(y2 - y1, x2 - x1), ' stroke-dasharray="4 4"' if dashed else ""
        way = [*points[:-1], (x2 - 5 * math.cos(angle), y2 - 5 * math.sin(angle))]  # the head's tip stays sharp
        head = [(x2, y2), *((x2 - 9 * math.cos(angle + t), y2 - 9 * math.sin(angle + t)) for t in (0.4, -0.4))]
        way, head = (" ".join(f"{x:.1f},{y:.1f}" for x, y in places) for places in (way, head))
        self.marks.append(
            f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'
            f'<polygon points="{head}" fill="{colour}"/>'
        )

    def to_svg(self):
        """The drawing as a file of its own."""
        size = f'width="{self.width_px}" height="{self.height_px}"'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {self.width_px} {self.height_px}" role="img" '
            f'font-family="system-ui, sans-serif"><title>{escape_text(self.alt)}</title>'
            f'<rect {size} rx="8" fill="{GROUND}"/>{"".join(self.marks)}</svg>'
        )

    def to_html(self):
        """The drawing as an embedded picture with its alternative text."""
        return turned_html(img_html(self.to_svg().encode(), "svg+xml", alt=self.alt, width_px=self.width_px))

    _repr_html_ = to_html

    def __repr__(self):
        return f"Drawing: {self.alt}"


def course_map():
    """Which notebook leads where: three doors, a way from each, and what can be opened at any time."""
    ways = [(door, why, notebooks.split("|")) for door, why, notebooks in DOORS]
    said = "; ".join(f"{door}, {why}: {', '.join(notebooks)}" for door, why, notebooks in ways)
    drawing = Drawing(900, 350, alt=f"Map of the course. {said}")
    for row, (door, why, notebooks) in enumerate(ways):
        y, colour, is_way = 20 + 82 * row, (BLUE, ORANGE, GREEN, GREY)[row], row < 3
        drawing.box(16, y, 168, 60, door, why, colour=colour, opacity=0.5, dashed=not is_way)
        for place, notebook in enumerate(notebooks):
            x, (name, what) = 216 + 136 * place, notebook.split(" ", 1)
            drawing.box(x, y, 112, 60, name, what, colour=colour, dashed=not is_way)
            if is_way:
                drawing.arrow((x - 24 if place else 184, y + 30), (x, y + 30))
    return drawing


def parts_diagram(model):
    """The way from a tile to a reply through the three parts, each shape computed from the model's configuration.

    Args: model: a name or a folder; a released model need not be here.
    """
    config, _ = config_of(model)
    vision, language = config["vision_config"], config["llm_config"]
    side, width = config["force_image_size"], language["hidden_size"]
    patches = (side // vision["patch_size"]) ** 2
    tokens, joined = round(patches * config["downsample_ratio"] ** 2), round(1 / config["downsample_ratio"] ** 2)
    seen, depth, next_token = vision["hidden_size"], vision["num_hidden_layers"], f"1 of {language['vocab_size']:,}"
    steps = (
        ("a tile", f"{side} × {side} px", GREY, f"{side} × {side} × 3", "px × px × colours"),
        ("1 · vision tower", f"{depth} layers", BLUE, f"{patches:,} × {seen:,}", "patches × values"),
        ("pixel shuffle", f"{joined} patches → 1", GREY, f"{tokens:,} × {joined * seen:,}", "tokens × values"),
        ("2 · projector", "2 layers", PINK, f"{tokens:,} × {width:,}", "tokens × values"),
        ("3 · language model", f"{language['num_hidden_layers']} layers", ORANGE, next_token, "the next token"),
    )
    said = "; ".join(f"{name} gives {shape}, {what}" for name, _, _, shape, what in steps)
    drawing = Drawing(
        900, 240, alt=f"{match_family(config).key}, from a tile to a reply: {said}; the question joins at 3"
    )
    for place, (name, size, colour, shape, what) in enumerate(steps):
        x = 16 + 178 * place
        drawing.box(x, 20, 156, 68, name, size, colour=colour, dashed=place == 2, opacity=0.3, size=13)
        drawing.label(x + 78, 112, shape, what, bold=True)
        if place:
            drawing.arrow((x - 22, 54), (x, 54))
    drawing.box(16, 164, 156, 52, "the question", "text", size=13)
    drawing.arrow((172, 190), (194, 190))
    drawing.box(194, 164, 156, 52, "tokenizer", "no weights", dashed=True, size=13)
    drawing.label(450, 204, f"n × {width:,}", "tokens × values", bold=True)
    drawing.arrow((350, 190), (717, 190), (717, 66), (728, 66))
    return drawing


def shift_diagram(example, processor):
    """A row's last tokens above their labels: what is said at one place is compared with the label of the next.

    Args: example: of `encode`; processor: whose tokenizer names the tokens.
    """
    first = max(0, len(example) - SHOWN)
    names = [n if len(n) <= 10 else n[:9] + "…" for n in token_texts(example.input_ids[first:], processor)]
    trained = [label != IGNORE_INDEX for label in example.labels[first:]]
    pairs = [f"{names[n]} → {names[n + 1]}" for n in range(len(names) - 1) if trained[n + 1]]
    said = f"The last {len(names)} of {len(example)} tokens above their labels. The loss compares {', '.join(pairs)}"
    drawing = Drawing(900, 252, alt=said)
    for y, text in ((66, "reads"), (126, "says the next"), (186, "label")):
        drawing.label(62, y, text, bold=True)
    for n, name in enumerate(names):
        x, colour = 128 + 95 * n, BLUE if trained[n] else GREY
        drawing.label(x + 44, 28, f"place {first + n}", size=13, colour=QUIET)
        drawing.box(x, 44, 88, 44, name, size=13)
        label = name if trained[n] else str(IGNORE_INDEX)
        drawing.box(x, 164, 88, 44, label, colour=colour, dashed=not trained[n], size=13)
        if n:
            drawing.arrow((x - 51, 90), (x + 44, 162), colour=colour, dashed=not trained[n])
    drawing.label(310, 232, f"{IGNORE_INDEX}: nothing is learned", size=13, colour=QUIET)
    drawing.label(680, 232, "blue: compared, this is the loss", size=13, colour=QUIET)
    return drawing


def lora_diagram(recipe):
    """A frozen matrix of the recipe's model and, to the same scale, the two thin ones that LoRA trains beside it.

    Args: recipe: a `Recipe`; its rank and alpha, and the sizes of `down_proj`, the last matrix of a decoder layer.
    """
    language, rank = config_of(recipe.model)[0]["llm_config"], recipe.lora_rank
    width, out, times = language["intermediate_size"], language["hidden_size"], f"{recipe.lora_alpha / rank:g}"
    frozen, trained = out * width, rank * (out + width)
    share, size = f"{trained:,} trained: {trained / frozen:.1%}", f"{out:,} × {width:,}"
    said = f"A layer gives W x + {times} B A x. W, {size}, is frozen; B and A, of rank {rank}, are thin ({share})"
    scale = 240 / max(out, width)
    tall, wide, thin = out * scale, width * scale, max(6, rank * scale)
    drawing = Drawing(900, round(100 + tall), alt=said)
    middle, below = 24 + tall / 2, 24 + tall + 20
    for x, text in ((62, "output ="), (436, f"x + {times} ·"), (553, "·"), (846, "x")):
        drawing.label(x, middle, text, size=18)
    drawing.box(252 - wide / 2, 24, wide, tall, "W", size=18)
    drawing.label(252, below, f"W of down_proj: {size}", f"{frozen:,} frozen", bold=True)
    drawing.box(522 - thin / 2, 24, thin, tall, colour=BLUE, opacity=0.6)
    drawing.label(522, below, f"B: {out:,} × {rank}", bold=True)
    drawing.box(700 - wide / 2, middle - thin / 2, wide, thin, colour=BLUE, opacity=0.6)
    drawing.label(700, below, f"A: {rank} × {width:,}", bold=True)
    drawing.label(610, below + 20, share, size=13, colour=QUIET)
    return drawing


def packing_diagram(tokens, *, bin_tokens):
    """Rows padded to the longest, and below them the same rows whole in bins, to one scale.

    Args: tokens: of real rows, as `row_lengths` counts them; bin_tokens: of a bin. A bin of the longest rows is drawn
        and one of the shortest; what is empty is said of all.
    """
    tokens = [int(count) for count in tokens if count]
    longest, bins = max(tokens), pack(tokens, [0] * len(tokens), budgets=Budgets(bin_tokens))
    taken = sum(max(bin_tokens, sum(tokens[row] for row in rows)) for rows in bins)
    empty = [f"{1 - sum(tokens) / places:.0%} empty" for places in (longest * len(tokens), taken)]
    said = f"{len(tokens)} rows of {min(tokens)} to {longest} tokens: padded to the longest {empty[0]}"
    said = f"{said}; whole, in {len(bins)} bins of {bin_tokens:,} tokens, {empty[1]}"
    bins = [bins[0], *[rows for rows in bins[:0:-1] if len(bins[0] + rows) <= SHOWN][:1]]
    padded = [[row] for row in sorted(sum(bins, []))]
    sides = (("padded", padded, longest, 16, 24), ("packed", bins, bin_tokens, 40 + 24 * len(padded), 36))
    drawing = Drawing(900, 48 + 24 * len(padded) + 36 * len(bins), alt=said)
    scale, names = 730 / max(bin_tokens, longest), {row: str(place + 1) for place, (row,) in enumerate(padded)}
    drawing.label(740, 30, f"{len(padded)} of {len(tokens)} rows drawn, all counted", size=13, colour=QUIET)
    for (name, held, size, y, step), share in zip(sides, empty, strict=True):
        drawing.label(74, y + step * len(held) / 2 - 14, name, share, bold=True)
        for place, rows in enumerate(held):
            x, top, height = 154.0, y + step * place, step - 4
            drawing.box(x, top, size * scale, height, dashed=True, opacity=0)
            for row in rows:
                drawing.box(x, top, tokens[row] * scale, height, names[row], colour=BLUE, opacity=0.3, size=13)
                x += tokens[row] * scale
    return drawing


def zero_diagram(name, gpus=(2, 4, 8)):
    """What each of four GPUs holds of weights, gradients and optimizer under each ZeRO stage, and GiB on so many GPUs.

    Args: name: of a recipe that trains by several GPUs, "2b-full".
    """
    stages = {}  # {title: for each number of GPUs {part: bytes on one}}
    for stage, title in enumerate(("DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3")):
        plans = [plan(named_recipe(name, gpus=count, zero_stage=stage), gpu_gib=80) for count in gpus]
        stages[title] = [{part: each.cases[0].parts[part] for part in STATE_COLOURS} for each in plans]
    gib = {title: [f"{sum(held.values()) / GIB:.1f} GiB" for held in by_gpus] for title, by_gpus in stages.items()}
    divided = {title: [part for part in held[0] if held[-1][part] < held[0][part]] for title, held in stages.items()}
    said = (f"{title} divides {', '.join(divided[title]) or 'nothing'}: {', '.join(gib[title])}" for title in stages)
    drawing = Drawing(900, 392, alt=f"{name}, on each of {', '.join(map(str, gpus))} GPUs. {'; '.join(said)}")
    for stage, title in enumerate(stages):
        y = 44 + 78 * stage
        drawing.label(54, y + 31, title, bold=True)
        for place, held in enumerate(gib[title]):
            drawing.label(630 + 90 * place, y + 31, held)
        for row, (part, colour) in enumerate(STATE_COLOURS.items()):
            for gpu in range(4):
                x, start, share = 112 + 112 * gpu, *((24 * gpu, 24) if part in divided[title] else (0, 96))
                drawing.box(x, y + 22 * row, 96, 18, opacity=0, dashed=True)  # where a whole one would be
                drawing.box(x + start, y + 22 * row, share, 18, colour=colour, opacity=0.7)
    for gpu in range(4):
        drawing.label(160 + 112 * gpu, 24, f"GPU {gpu + 1}", bold=True)
    for place, count in enumerate(gpus):
        drawing.label(630 + 90 * place, 24, f"{count} GPUs", bold=True)
    for place, (part, colour) in enumerate(STATE_COLOURS.items()):
        drawing.box(112 + 150 * place, 358, 132, 24, part, colour=colour, opacity=0.5, size=13)
    drawing.label(720, 370, "on each, without activations", size=13, colour=QUIET)
    return drawing

"""Inside a model: its parts and what trains, the shapes on the way to a next token, where an answer looks."""

import math

import numpy as np
import torch
from PIL import Image

from ..data.collate import normalise_tiles
from ..data.encode import IGNORE_INDEX, encode
from ..data.rows.media import open_image
from ..data.rows.records import Record, Turn
from ..data.tiling import split_into_tiles
from ..errors import DataError
from ..models.chat import make_prompt
from ..models.load import meta_copy
from ..models.shapes import config_of, empty_model
from ..training.engine.layers import recomputing
from ..training.recipes import recipe as named_recipe
from ..training.tuning import prepare, summarise
from .figure import GREEN, RED, ShownFigure, drawn_names, has_letters, plain_text
from .html import fragment, table_html, text_html
from .model import PART_COLOURS

PART_NAMES = {"vision": "vision tower", "projector": "projector", "language": "language model", "head": "head"}
PATCH_PX = 14
LIKELY_TOKENS = 5
TOKENS_LOOKED_AT = 6


def parts_figure(vlm, recipe):
    """The parts of a model to scale, and the share of each that a recipe trains, LoRA's matrices counted on top.

    The loaded model is not touched: the recipe is applied to a copy without memory.

    Returns: matplotlib figure.
    """
    recipe = named_recipe(recipe)
    rows = summarise(prepare(meta_copy(vlm), recipe), recipe)
    total, trained = sum(row.parameters for row in rows), sum(row.trainable for row in rows)
    alt = f"{recipe.name} trains {trained:,} of {total:,} parameters: " + "; ".join(map(_part_text, rows))
    figure = ShownFigure(figsize=(9, 2.8), alt=alt)
    axes = figure.subplots()
    for place, row in enumerate(rows):
        axes.barh(place, row.parameters / 1e6, color=PART_COLOURS.get(PART_NAMES[row.part], GREEN), alpha=0.6)
        trainable = row.trainable / 1e6
        axes.barh(place, trainable, color="none", edgecolor="black", hatch="////", height=0.5)
        axes.text(row.parameters / 1e6, place, f"  {_part_text(row)}", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [PART_NAMES[row.part] for row in rows])
    axes.set(xlim=(0, max(row.parameters for row in rows) / 1e6 * 1.9), xlabel="million parameters; hatched: trained")
    axes.set_title(f"{plain_text(recipe.name)} trains {trained / total:.1%} of {total / 1e6:,.1f} M", fontsize=10)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _part_text(row):
    trains = f"{row.trainable:,} train" if row.trainable else "nothing trains"
    return f"{row.tuning}: {trains} of {row.parameters:,}"


def patches_figure(image, *processors):
    """A picture as one tile of each processor's size, cut into the tower's patches and, thicker, into tokens.

    Returns: matplotlib figure: a panel a processor.
    """
    sides = [(each.tile_px, each.tile_px // PATCH_PX, math.isqrt(each.num_image_token)) for each in processors]
    said = [f"{px} px: {patches**2:,} patches, {tokens**2:,} tokens" for px, patches, tokens in sides]
    figure = ShownFigure(figsize=(3.4 * len(said), 3.6), layout="constrained", alt="a tile of " + "; of ".join(said))
    panels = figure.subplots(1, len(said), squeeze=False)[0]
    for axes, title, (px, patches, tokens) in zip(panels, said, sides, strict=True):
        axes.imshow(split_into_tiles(open_image(image), max_tiles=1, tile_px=px)[0], extent=(0, patches, patches, 0))
        for line in range(patches + 1):
            strong = line % (patches // tokens) == 0
            style = {"color": RED if strong else "white", "linewidth": 1.2 if strong else 0.5}
            axes.axhline(line, **style)
            axes.axvline(line, **style)
        axes.set_title(f"a tile of {title}", fontsize=10)
        axes.axis("off")
    return figure


def shapes_html(models):
    """One tile's way through several models, shape by shape, without weights: a released one needs not be here.

    Args: models: names or folders, `("nano", "2b")`.
    Returns: HTML: a line a step, a column a model.
    """
    columns = {str(name): _steps_of_a_tile(config_of(name)[0]) for name in models}
    rows = [(step, *(column[step] for column in columns.values())) for step in next(iter(columns.values()))]
    return fragment(table_html(rows, header=("one tile", *columns)))


@torch.inference_mode()
def _steps_of_a_tile(config):
    model, _ = empty_model(config)
    tile_px, text = config["force_image_size"], model.config.text_config
    steps, _ = _see(model, torch.empty(1, tile_px, tile_px, 3, dtype=torch.uint8, device="meta"))
    return {step: shape for step, shape, _ in steps} | {
        "language model": f"{text.num_hidden_layers} layers of {text.hidden_size:,}",
        "next token": f"one of {text.vocab_size:,}",
    }


@torch.inference_mode()
def walk_html(vlm, question, images=None):
    """One question's way through the model, every shape as it was, down to the probabilities of the next token.

    Returns: HTML: a table of steps and the most probable next tokens.
    """
    prompt, model, steps = make_prompt(vlm, question, images), vlm.model, []
    input_ids = torch.tensor([prompt.input_ids], device=model.device)
    if len(prompt.tiles):
        seen, features = _see(model, prompt.tiles)
        steps += seen
        embeds = model.embed(input_ids, features)
    else:
        embeds = model.get_input_embeddings()(input_ids)
    hidden = model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, -1])
    steps += [
        ("input_ids", _shape(input_ids), "the question as tokens, <IMG_CONTEXT> where features go"),
        ("embeddings", _shape(embeds), "a vector each; the features stand in their places"),
        ("hidden states", _shape(hidden), "the language model has read everything before each place"),
        ("logits", _shape(logits), "a number for every token there is, at the last place"),
    ]
    probable = torch.softmax(logits[0].float(), dim=-1).topk(LIKELY_TOKENS)
    tokens = vlm.tokenizer.convert_ids_to_tokens(probable.indices.tolist())
    walk = table_html(steps, header=("step", "shape", "what it is"))
    bars = "".join(map(_bar, tokens, probable.values.tolist()))
    return fragment(f"<div>{text_html(question)}</div>{walk}<div>most probable next tokens</div>{bars}")


def _bar(token, share):
    percent = f"{share:.2%}" if share >= 1e-4 else "under 0.01%"
    bar = f'<span class="share" style="width:{200 * share:.0f}px"></span>'
    return f"<div>{bar} <b>{text_html(token)}</b> {percent}</div>"


def _see(model, tiles):
    """Steps from tiles to features, by hooks on the parts; and the features [T, N, H]. Many tiles come in chunks."""
    patches, seen, shuffled = [], [], []
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    hooks = [
        tower.embeddings.register_forward_hook(
            lambda _, __, out: patches.append(out[0] if isinstance(out, tuple) else out)
        ),
        tower.register_forward_hook(lambda _, __, out: seen.append(out.last_hidden_state[:, 1:])),
        projector.register_forward_pre_hook(lambda _, given: shuffled.append(given[0])),
    ]
    pixel_values = normalise_tiles(tiles.to(model.device), dtype=model.dtype)
    try:
        features = model.encode_tiles(pixel_values)
    finally:
        for hook in hooks:
            hook.remove()
    patches, seen, shuffled = map(torch.cat, (patches, seen, shuffled))
    steps = [
        ("tiles", _shape(tiles), "whole numbers 0 to 255, the thumbnail last"),
        ("pixel_values", _shape(pixel_values), "normalised colours, channels first"),
        ("patches", _shape(patches), f"{seen.shape[1]:,} patches of 14 px a tile and one CLS token"),
        ("vision tower", _shape(seen), "the tower has compared all patches of a tile; CLS is dropped"),
        ("pixel shuffle", _shape(shuffled), "four neighbours become one, four times as wide"),
        ("projector", _shape(features), "in the language model's width: these stand for <IMG_CONTEXT>"),
    ]
    return steps, features


def _shape(tensor):
    return "[" + ", ".join(f"{size:,}" for size in tensor.shape) + "]"


def looks_figure(vlm, question, image, *, answer=None):
    """Where each token of an answer looks: the size of the gradient of its log-probability by the picture's features.

    This is a gradient, not attention: how strongly the token's probability would change with what stands there. Tiles
    and thumbnail are laid over the picture and summed. Needs memory for one backward pass through the language model.

    Args: image: one picture; answer: whose tokens are looked at, default the model's own reply.
    Returns: matplotlib figure: the picture, then one map a token.
    """
    image = open_image(image, rules=vlm.processor.picture_rules)
    answer = vlm.chat(question, images=image, max_new_tokens=64).text if answer is None else answer
    if not answer.strip():
        raise DataError("an empty answer; expected some text whose tokens look somewhere; give answer=")
    tokens, maps = answer_looks(vlm, question, image, answer)
    named = [plain_text(token, 12) for token in tokens[: len(maps)]]
    alt = f"where the tokens {', '.join(named)} of the answer look, by the gradient over the picture"
    labels, below = drawn_names(named)
    title = f"{plain_text(question, 60)} → {plain_text(answer, 30)} (gradient)"
    if not has_letters(title):
        title, below = "question → answer (gradient)", "; ".join(filter(None, [title, below]))
    size = (2.6 * (len(maps) + 1), 2.6 * image.height / image.width + 0.9)
    figure = ShownFigure(figsize=size, layout="constrained", alt=alt, below=below)
    first, *others = figure.subplots(1, len(maps) + 1, squeeze=False)[0]
    first.imshow(image)
    first.set_title("the picture", fontsize=9)
    for axis, label, heat in zip(others, labels, maps, strict=True):
        axis.imshow(image.convert("L"), cmap="gray", vmin=0, vmax=255)
        extent = (-0.5, image.width - 0.5, image.height - 0.5, -0.5)
        axis.imshow(heat, cmap="viridis", alpha=0.6, extent=extent, interpolation="bilinear")
        axis.set_title(f'"{label}"', fontsize=9)
    for axis in (first, *others):
        axis.axis("off")
    figure.suptitle(title, fontsize=10)
    return figure


def answer_looks(vlm, question, image, answer):
    """(tokens of the answer, a map for each, float [h, w] over the whole picture, largest value 1)."""
    turns = (Turn("user", f"<image>\n{question}"), Turn("assistant", answer))
    example = encode(Record(id=0, turns=turns, images=(image,), where="picture"), vlm.processor)
    places = np.flatnonzero(example.labels != IGNORE_INDEX)[:-1]  # without the closing token
    grid = vlm.processor.grid(*image.size, max_tiles=vlm.processor.max_tiles)
    gradients = _gradients(vlm.model, example, places[:TOKENS_LOOKED_AT])
    swapped = vlm.model.config.ps_version == "v1"
    maps = [over_picture(one, grid, swapped=swapped) for one in gradients]
    tokens = vlm.tokenizer.convert_ids_to_tokens(example.input_ids[places].tolist())
    return tokens, [heat / max(heat.max(), 1e-12) for heat in maps]


def _gradients(model, example, places):
    """For each place ‖∂ log p(token) / ∂ feature‖ of every feature: float [T, N]."""
    input_ids = torch.from_numpy(example.input_ids)[None].to(model.device)
    tiles = torch.from_numpy(example.tiles).to(model.device)
    with torch.no_grad():
        features = model.encode_tiles(normalise_tiles(tiles, dtype=model.dtype))
    features.requires_grad_()
    with torch.enable_grad(), recomputing(model.model.language_model.layers):
        hidden = model.model.language_model(inputs_embeds=model.embed(input_ids, features), use_cache=False)
        logits = model.lm_head(hidden.last_hidden_state[0, torch.as_tensor(places - 1)])  # each token's prediction
        chosen = torch.log_softmax(logits.float(), dim=-1).gather(1, input_ids[0, torch.as_tensor(places)][:, None])
        found = [torch.autograd.grad(one, features, retain_graph=True)[0] for one in chosen.flatten()]
    return [gradient.float().norm(dim=-1).cpu().numpy() for gradient in found]


def over_picture(values, grid, *, swapped=False):
    """A value for each feature, [T, N], laid over the picture: [rows · n, cols · n] with n = √N.

    The thumbnail, last if there are more tiles than the grid has, is enlarged and added.

    Args: grid: (cols, rows); swapped: the checkpoint's pixel shuffle is v1, which swaps rows and columns in a tile.
    """
    cols, rows = grid
    side = int(values.shape[1] ** 0.5)
    tiles = values.reshape(-1, side, side)
    tiles = tiles.swapaxes(1, 2) if swapped else tiles
    laid = tiles[: cols * rows].reshape(rows, cols, side, side).swapaxes(1, 2).reshape(rows * side, cols * side)
    if len(tiles) == cols * rows:
        return laid
    thumbnail = Image.fromarray(tiles[-1].astype(np.float32))
    return laid + np.asarray(thumbnail.resize((cols * side, rows * side), Image.Resampling.BILINEAR))

"""Memory of a step, seconds of a run and bytes of its checkpoints, predicted from shapes.

Memory is added up from parts by layer shapes (`footprint`). Time is the arithmetic at a share of the card's matrix
rate, and the activations' bytes moved a number of times at its bandwidth.
"""

import math
from types import SimpleNamespace

from ...hardware import GIB
from ...models.modeling.streaming import STREAMED_TILES
from ..engine.distributed import is_sharded, zero_config
from ..loop.loss import HEAD_CHUNK
from ..loop.schedule import operations
from ..tuning import optimizer_bytes
from . import footprint

# Time: fitted to runs on an H100, within 23 % of them and of `MEASURED`, of which most came later.
MATRIX_SHARE = 0.62  # of a card's measured matrix rate, reached by the products alone
PASSES = {False: 26, True: 15}  # times a byte that backward needs is moved, eager and compiled; a third more recomputed
# Bytes as these for a value of a float8 product: fitted eager to a run of six steps, which one of ten steps met within
# 9 % later, and compiled to the four rows with float8.
QUANTISING = {False: 11, True: 3}
# Memory beside what torch allocates.
CONTEXT_GIB = 0.6  # CUDA's context and libraries: assumed, not measured
ALLOCATOR_SLACK = 0.1  # of activations, reserved in pieces that fit nothing: assumed, not measured


def batch_parts(model, config, recipe, batch, *, device_type):
    """Bytes of each part at the step's peak, for a batch of `tokens` and `tiles`.

    Args: model: what `tuning.prepare` returned, without memory or with.
    Returns: {part: bytes}; the last, "working", is the largest of what is alive for a moment only.
    """
    zero, sdpa = is_sharded(recipe) and device_type == "cuda", device_type == "cpu" or not recipe.packing
    precision = footprint.precision_of(recipe, device_type)
    frozen, trained = footprint.weight_bytes(model, recipe, frozen_bytes=precision.stream)
    if recipe.vision_offload:
        layers, buffers = footprint.offloaded_bytes(model, frozen_bytes=precision.stream)
        frozen += buffers - (layers if device_type == "cuda" else 0)
    state = optimizer_bytes(model, recipe.optimizer)
    copies = 0 if precision.stream == precision.compute else 2 * footprint.copied_parameters(model)
    how = _layers(recipe, precision, sdpa=sdpa)
    kept, working = _activations(config, recipe, batch, how, copies)
    held = {"weights": frozen + trained, "gradients": trained, "optimizer": state}
    if zero:
        held, moving, step = _sharded(recipe, frozen=frozen, trained=trained, state=state)
        working = max(working + moving, step - kept)
    elif recipe.processes > 1:
        held["gradients"] *= 2  # DDP's buckets
    return {**held, "activations": kept, "working": working}


def _sharded(recipe, *, frozen, trained, state):
    """Bytes held, on their way, and of a step: DeepSpeed trains in bf16, with float32 masters beside the state.

    Each stage divides one more part. On their way are bf16 gradients, and at stage 3 the weights that were fetched. A
    step lays a share's gradients end to end and casts them to float32, at stage 3 a group of values after another.
    """
    held = {"weights": frozen + trained // 2, "gradients": trained // 2, "optimizer": state + trained}
    for part, first_stage in {"optimizer": 1, "gradients": 2, "weights": 3}.items():
        if recipe.zero_stage >= first_stage:
            held[part] //= recipe.processes
    zero = zero_config(recipe.zero_stage)["zero_optimization"]
    fetched = zero.get("stage3_max_live_parameters", 0)
    stepped = min(trained // 4 // recipe.processes, zero.get("sub_group_size", math.inf))
    return held, round(2 * (min(zero["reduce_bucket_size"], trained // 4) + fetched)), round((2 + 4) * stepped)


def _layers(recipe, precision, *, sdpa=False):
    """How the layers of `language` and `vision` are trained."""
    common = {
        "precision": precision,
        "dropout": recipe.lora_dropout > 0,
        "rank": recipe.lora_rank,
        "compiled": recipe.compile,
        "sdpa": sdpa,
        "shared": recipe.stage != 3,
    }
    vision = "full" if recipe.unfreeze_vit_layers else recipe.vision  # of the layers that train
    parts = {"language": recipe.language, "vision": vision}
    return SimpleNamespace(**{part: footprint.Layer(tuning, **common) for part, tuning in parts.items()})


def _activations(config, recipe, batch, how, copies):
    """(bytes kept from forward to backward, bytes of the largest moment beside them)."""
    text, precision, policy = config.text_config, how.language.precision, recipe.gradient_checkpointing
    width, inner, layers, compute = text.hidden_size, text.intermediate_size, text.num_hidden_layers, precision.compute
    inside = footprint.decoder_layer_bytes(text, how.language)
    each = {
        "none": inside,
        "selective": footprint.selected_decoder_bytes(text, precision),
        "full": precision.stream * width,
    }[policy]
    kept = batch.tokens * (layers * each + footprint.norm_bytes(width, how.language))
    kept += batch.tiles * 3 * 4 * config.vision_config.image_size[0] ** 2  # pixel values
    tower, tower_moment = _tower_activations(config, recipe, batch, how.vision)
    kept += tower
    # The head's chunk of supervised positions: log-probabilities, their gradient, and its cast.
    logits = min(HEAD_CHUNK, batch.tokens) * text.vocab_size * (8 + (compute if compute < 4 else 0)) + copies
    # A layer's backward: what is computed again, and the gradients that are alive at once.
    again = 0 if policy == "none" else inside
    backward = batch.tokens * (again + 4 * compute * inner + (2 * compute + precision.stream) * width)
    backward += copies if policy == "none" else copies // layers
    # And one matrix of NF4 as bf16, or of float8 turned, with a gradient in float8 (eager: in float32 before).
    turned = inner * (width + batch.tokens * (1 if recipe.compile else 9))
    backward += {None: 0, "4bit": 2 * width * inner, "float8": turned}[recipe.quantize]
    return kept, max(logits, backward, tower_moment - kept)


def _tower_activations(config, recipe, batch, layer):
    """(bytes that the tower and the projector keep, bytes of a call of the tower)."""
    from ...models.modeling.internvl import TILES_A_CHUNK

    vision, width, precision = config.vision_config, config.text_config.hidden_size, layer.precision
    places, states = footprint.patches(vision), precision.stream * vision.hidden_size
    trained = recipe.trained_vision_layers(vision.num_hidden_layers)
    # A frozen tower keeps nothing: the two inner tensors of an MLP beside the stream, of one call's tiles.
    frozen = 2 * precision.compute * vision.intermediate_size + 4 * vision.hidden_size + states
    if trained:
        inside, recomputed = footprint.vision_layer_bytes(vision, layer), recipe.gradient_checkpointing == "full"
        kept = batch.tiles * places * trained * (states if recomputed else inside)
        call = batch.tiles * places * (inside if recomputed else 0)
    elif recipe.vision_offload:  # all tiles' stream before and after a layer, in parts and whole
        kept, call = 0, places * (3 * batch.tiles * states + min(batch.tiles, STREAMED_TILES) * frozen)
    else:
        kept, call = 0, places * min(batch.tiles, TILES_A_CHUNK) * frozen
    if trained or recipe.projector == "full":
        shuffled = 4 * vision.hidden_size  # the projector: norm, linear, gelu, linear
        inputs = precision.compute * (shuffled + width) if recipe.projector == "full" else 0
        kept += batch.tiles * config.image_seq_length * (4 * shuffled + precision.compute * width + inputs)
    return kept, call


def needed_gib(parts, device_type):
    """GiB that have to be free for the parts."""
    allocated = sum(parts.values()) / GIB
    slack = ALLOCATOR_SLACK * (parts["activations"] + parts["working"]) / GIB
    return allocated if device_type == "cpu" else allocated + slack + CONTEXT_GIB


def predict_seconds(model, config, recipe, place, *, tokens, tiles, bins):
    """Seconds of all steps: the sum of computing and of moving bytes, as if the two never overlapped.

    Computing: every product, at `MATRIX_SHARE` of the card's rate, twice that in float8 where the card has it. Moving:
    the bytes that backward keeps, `PASSES` times, with those of making activations float8; weights that have to be
    made bf16, three times a bin. The layers of a tower on the host, copied once a bin, cost what their products don't
    hide. Every epoch counts alike: what `keep_features` spares the later ones is not predicted.
    """
    precision, card = footprint.precision_of(recipe, place.device_type), place.card
    how, vision, text = _layers(recipe, precision), config.vision_config, config.text_config
    fast = recipe.float8_parts if card.float8 else []
    tile, token = operations(config, recipe)
    products = tiles * tile / (1 + ("vision" in fast)) + tokens * token / (1 + ("language" in fast))
    matrices = footprint.frozen_matrices(model)
    moved = tokens * footprint.decoder_layer_bytes(text, how.language) * text.num_hidden_layers
    moved += tokens * QUANTISING[recipe.compile] * sum(rows for rows, _ in matrices) if "language" in fast else 0
    trained = recipe.trained_vision_layers(vision.num_hidden_layers)
    moved += tiles * footprint.patches(vision) * footprint.vision_layer_bytes(vision, how.vision) * trained
    moved *= PASSES[recipe.compile] * {"none": 1, "selective": 7 / 6, "full": 4 / 3}[recipe.gradient_checkpointing]
    if recipe.quantize and "language" not in fast:
        each = {"4bit": footprint.NF4_BYTES, "float8": 1}[recipe.quantize] + 4
        moved += 3 * bins * each * sum(rows * columns for rows, columns in matrices)
    rate = MATRIX_SHARE * card.matrix_rate
    seconds = products / rate + moved / (card.tb_per_second * 1e12)
    seconds += max(0.0, bins * bus_seconds(model, recipe, place) - tiles * tile / rate)
    return float(seconds) / recipe.processes


def bus_seconds(model, recipe, place):
    """Seconds a bin that a tower on the host takes to cross the bus to a listed card: 0.44 for the 26B's by PCIe 4."""
    if not recipe.vision_offload or place.device_type == "cpu" or place.card is None:
        return 0.0
    precision = footprint.precision_of(recipe, place.device_type)
    layers, _ = footprint.offloaded_bytes(model, frozen_bytes=precision.stream)
    return layers / (place.card.bus_gb_per_second * 1e9)


def disk_bytes(model, recipe, *, device_type):
    """(bytes of a checkpoint, bytes of all that a run with validation has on disk at the worst moment).

    That moment is before the oldest checkpoint goes: those kept, the one that was written aside, and the best weights.
    While new best weights or the final ones are written there is less, since a checkpoint holds weights and more.
    """
    total = sum(value.numel() for value in model.parameters())
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    frozen = 0 if recipe.has_adapters else total - trained  # beside adapters the base is not written
    is_divided = is_sharded(recipe)
    each = 2 if is_divided and device_type == "cuda" else 4
    weights = each * (frozen + trained)
    checkpoint = weights + optimizer_bytes(model, recipe.optimizer.removeprefix("paged_"))
    if is_divided:
        # Its own files hold weights in half precision beside the masters; at stage 2 those that are frozen twice.
        copied = {1: frozen + trained, 2: 2 * frozen + trained, 3: frozen}[recipe.zero_stage]
        checkpoint += 4 * trained + each * copied
    return checkpoint, (recipe.save_total_limit + 1) * checkpoint + weights

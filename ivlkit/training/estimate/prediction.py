"""Memory of a step, seconds of a run and bytes of its checkpoints, predicted from shapes.

Memory is added up from parts by layer shapes (`footprint`). Time is the arithmetic at a share of the card's matrix
rate, and the activations' bytes moved a number of times at its bandwidth.
"""

from types import SimpleNamespace

from ...hardware import GIB
from ..engine.distributed import is_sharded, zero_config
from ..loop.schedule import operations
from ..tuning import optimizer_bytes
from . import footprint

# Time: fitted to runs on an H100, within 20 % of them and of `MEASURED`, of which most came later.
MATRIX_SHARE = 0.62  # of a card's measured matrix rate, reached by the products alone
PASSES = {False: 26, True: 15}  # times a byte that backward needs is moved, eager and compiled; a third more recomputed
QUANTISING = 3  # bytes as these for a value that a float8 product gives: fitted to the four rows with float8
BUS_RATE = 25e9  # bytes a second from the host to a GPU, as by PCIe 4: assumed, not measured
# Memory beside what torch allocates.
CONTEXT_GIB = 0.6  # CUDA's context and libraries: assumed, not measured
ALLOCATOR_SLACK = 0.1  # of activations, reserved in pieces that fit nothing: assumed, not measured


def batch_parts(model, config, recipe, batch, *, device_type):
    """Bytes of each part at the step's peak, for a batch of `tokens` and `tiles`.

    Args: model: what `tuning.prepare` returned, without memory or with.
    Returns: {part: bytes}; the last, "working", is the largest of what is alive for a moment only.
    """
    zero, sdpa = is_sharded(recipe) and device_type == "cuda", device_type == "cpu" or not recipe.packing
    precision = footprint.Precision(2, 2, 1) if zero else footprint.precision_of(recipe, device_type)
    frozen, trained = footprint.weight_bytes(model, recipe, frozen_bytes=precision.stream)
    if recipe.vision_offload:
        layers, buffers = footprint.offloaded_bytes(model, frozen_bytes=precision.stream)
        frozen += buffers - (layers if device_type == "cuda" else 0)
    state = optimizer_bytes(model, recipe.optimizer)
    copies = 0 if zero or precision.stream == precision.compute else 2 * footprint.copied_parameters(model)
    how = _layers(recipe, precision, sdpa=sdpa)
    kept, working = _activations(config, recipe, batch, how, copies)
    held = {"weights": frozen + trained, "gradients": trained, "optimizer": state}
    if zero:
        held = _sharded(recipe, frozen=frozen, trained=trained, state=state)
        working += _buckets(recipe, trained)
    elif recipe.processes > 1:
        held["gradients"] *= 2  # DDP's buckets
    return {**held, "activations": kept, "working": working}


def _sharded(recipe, *, frozen, trained, state):
    """DeepSpeed trains in bf16, with float32 masters beside the optimizer's state; each stage divides one more part."""
    held = {"weights": frozen + trained // 2, "gradients": trained // 2, "optimizer": state + trained}
    first_stage = {"optimizer": 1, "gradients": 2, "weights": 3}
    divided = {part for part, stage in first_stage.items() if recipe.zero_stage >= stage}
    return {part: size // recipe.processes if part in divided else size for part, size in held.items()}


def _buckets(recipe, trained):
    """Of bf16 gradients on their way, and at stage 3 the weights that were fetched (`stage3_max_live_parameters`)."""
    zero = zero_config(recipe.zero_stage)["zero_optimization"]
    live = zero.get("stage3_max_live_parameters", 0)
    return round(2 * (min(zero["reduce_bucket_size"], trained // 4) + live))


def _layers(recipe, precision, *, sdpa=False):
    common = {"precision": precision, "dropout": recipe.lora_dropout > 0, "rank": recipe.lora_rank}
    common |= {"compiled": recipe.compile, "sdpa": sdpa}
    common |= {"shared": not (is_sharded(recipe) and recipe.zero_stage == 3)}
    vision = "full" if recipe.unfreeze_vit_layers else recipe.vision  # of the layers that train
    language, vision = (footprint.Layer(tuning, **common) for tuning in (recipe.language, vision))
    return SimpleNamespace(language=language, vision=vision)


def _activations(config, recipe, batch, how, copies):
    """(bytes kept from forward to backward, bytes of the largest moment beside them)."""
    text, vision, precision = config.text_config, config.vision_config, how.language.precision
    policy = recipe.gradient_checkpointing
    inside = footprint.decoder_layer_bytes(text, how.language)
    each, again = {
        "none": (inside, 0),
        "selective": (footprint.selected_decoder_bytes(text, precision), inside),
        "full": (precision.stream * text.hidden_size, inside),
    }[policy]
    kept = batch.tokens * (text.num_hidden_layers * each + footprint.norm_bytes(text.hidden_size, how.language))
    kept += batch.tiles * 3 * 4 * vision.image_size[0] ** 2  # pixel values
    tower, tower_moment = _tower_activations(config, recipe, batch, how.vision)
    kept += tower
    logits = footprint.logits_bytes(batch.tokens, text.vocab_size, compute=precision.compute) + copies
    held = copies if policy == "none" else copies // text.num_hidden_layers
    backward = batch.tokens * (again + footprint.backward_bytes(text, precision)) + held
    backward += _beside_products(text, recipe, batch.tokens)
    return kept, max(logits, backward, tower_moment - kept)


def _beside_products(text, recipe, tokens):
    """One matrix of NF4 as bf16, or of float8 turned, and a gradient in float8 (eager: in float32 before)."""
    each = 1 if recipe.compile else 9
    float8 = text.hidden_size * text.intermediate_size + tokens * each * text.intermediate_size
    nf4 = 2 * text.hidden_size * text.intermediate_size
    return {None: 0, "4bit": nf4, "float8": float8}[recipe.quantize]


def _tower_activations(config, recipe, batch, layer):
    """(bytes that the tower and the projector keep, bytes of a call of the tower)."""
    from ...models.modeling.internvl import TILES_A_CHUNK

    vision, text, places = config.vision_config, config.text_config, footprint.patches(config.vision_config)
    kept = 0
    trained = recipe.trained_vision_layers(vision.num_hidden_layers)
    if trained:
        inside = footprint.vision_layer_bytes(vision, layer)
        each = layer.precision.stream * vision.hidden_size if recipe.gradient_checkpointing == "full" else inside
        kept += batch.tiles * places * trained * each
        call = batch.tiles * places * (inside if recipe.gradient_checkpointing == "full" else 0)
    elif recipe.vision_offload:
        from ..engine.streaming import STREAMED_TILES

        call = footprint.streamed_call_bytes(vision, batch.tiles, layer.precision, at_once=STREAMED_TILES)
    else:
        call = footprint.tower_call_bytes(vision, min(batch.tiles, TILES_A_CHUNK), layer.precision)
    if trained or recipe.projector == "full":
        widths = (vision.hidden_size, text.hidden_size)
        projector = footprint.projector_bytes(*widths, tuning=recipe.projector, precision=layer.precision)
        kept += batch.tiles * config.image_seq_length * projector
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
    made bf16, three times a bin; and the layers of a tower on the host, copied once a bin.
    """
    precision, card = footprint.precision_of(recipe, place.device_type), place.card
    how, vision, text = _layers(recipe, precision), config.vision_config, config.text_config
    fast = recipe.float8_parts if card.float8 else []
    tile, token = operations(config, recipe)
    products = tiles * tile / (1 + ("vision" in fast)) + tokens * token / (1 + ("language" in fast))
    matrices = footprint.frozen_matrices(model)
    moved = tokens * footprint.decoder_layer_bytes(text, how.language) * text.num_hidden_layers
    moved += tokens * QUANTISING * sum(rows for rows, _ in matrices) if "language" in fast else 0
    trained = recipe.trained_vision_layers(vision.num_hidden_layers)
    moved += tiles * footprint.patches(vision) * footprint.vision_layer_bytes(vision, how.vision) * trained
    moved *= PASSES[recipe.compile] * {"none": 1, "selective": 7 / 6, "full": 4 / 3}[recipe.gradient_checkpointing]
    if recipe.quantize and "language" not in fast:
        each = {"4bit": footprint.NF4_BYTES, "float8": 1}[recipe.quantize] + 4
        moved += 3 * bins * each * sum(rows * columns for rows, columns in matrices)
    seconds = products / (MATRIX_SHARE * card.matrix_rate) + moved / (card.tb_per_second * 1e12)
    return float(seconds + bins * bus_seconds(model, recipe, place.device_type)) / recipe.processes


def bus_seconds(model, recipe, device_type):
    """Seconds a bin that a tower on the host takes to cross the bus: 0.44 for the 26B's."""
    if not recipe.vision_offload or device_type == "cpu":
        return 0.0
    layers, _ = footprint.offloaded_bytes(model, frozen_bytes=footprint.precision_of(recipe, device_type).stream)
    return layers / BUS_RATE


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

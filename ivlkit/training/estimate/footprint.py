"""What a training step holds in memory, by layer shapes: weights, gradients, optimizer, activations, logits.

Bytes that torch asks its allocator for; nothing here is fitted to a measurement. What backward keeps of a layer was
read off transformers' Llama, Phi-3 and InternViT layers, value by value; tests compare it with the tensors that
autograd saves.
"""

from dataclasses import dataclass

from ...hardware import GIB
from ..methods import TUNINGS, part_of

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight: 4 bits, an 8-bit scale for 64, a float32 scale for 256 of those
QUANTISED = {"language": "model.language_model.layers.", "vision": "model.vision_tower.encoder.layer."}  # in a name


@dataclass(frozen=True)
class Precision:
    """Bytes of a value: (2, 2, 1) for LoRA in bf16 on a GPU."""

    stream: int  # between layers
    compute: int  # read by matrix products
    mask: int  # of a dropout mask


@dataclass(frozen=True)
class Layer:
    """How the layers of a part are trained."""

    tuning: str  # a name of TUNINGS
    precision: Precision
    dropout: bool = True  # before the adapters
    rank: int = 16
    compiled: bool = False
    sdpa: bool = False  # attention that copies its output for the next product, and takes values as they come
    shared: bool = False  # adapters of one input share its dropout, as `engine.shared_input` has it

    def keeps(self, width, outputs, **how):
        """Bytes of an input of linear layers that give these widths: `methods.Method.kept_bytes`."""
        return TUNINGS[self.tuning].kept_bytes(width, outputs, self, **how)


def precision_of(recipe, device_type):
    """float32 on the CPU; on a GPU half precision, with a float32 stream between layers of float32 masters."""
    if device_type == "cpu":
        return Precision(4, 4, 4)  # the CPU's dropout keeps its mask in the values' dtype
    return Precision(4 if recipe.full_precision else 2, 2, 1)


def decoder_layer_bytes(text, layer):
    """Bytes a token that backward needs from one decoder layer: 143,424 for the 2B's LoRA, eager.

    Args: text: configuration of a Llama or Phi-3; layer: `Layer`.
    """
    fused = text.model_type == "phi3"
    heads, keys = (count * _head_size(text) for count in (text.num_attention_heads, text.num_key_value_heads))
    compute, inner = layer.precision.compute, text.intermediate_size
    kept = 2 * norm_bytes(text.hidden_size, layer)
    kept += 4 * compute * heads + 4 * text.num_attention_heads  # q, k, v, output and the sums of the softmax
    kept += (2 if layer.compiled else 3) * compute * inner  # gate, up, and silu(gate)
    kept += layer.keeps(text.hidden_size, [heads + 2 * keys] if fused else [heads, keys, keys])
    kept += 2 * compute * heads if fused and layer.sdpa else 0  # values are a view of q, k and v in one
    kept += layer.keeps(heads, [text.hidden_size], kept_anyway=not layer.sdpa, computed=True)
    kept += layer.keeps(text.hidden_size, [2 * inner] if fused else [inner, inner])
    return kept + layer.keeps(inner, [text.hidden_size], computed=True)


def selected_decoder_bytes(text, precision):
    """Bytes a token of a decoder layer that keeps its input, attention and large products: see `layers`."""
    heads, keys = (count * _head_size(text) for count in (text.num_attention_heads, text.num_key_value_heads))
    products = heads + 2 * keys + 2 * text.hidden_size + 2 * text.intermediate_size
    attention = precision.compute * heads + 4 * text.num_attention_heads
    return precision.stream * text.hidden_size + precision.compute * products + attention


def vision_layer_bytes(vision, layer):
    """Bytes a patch (CLS among them) that backward needs from one layer of the vision tower."""
    width, inner, compute = vision.hidden_size, vision.intermediate_size, layer.precision.compute
    rms = vision.norm_type == "rms_norm"
    kept = 2 * (norm_bytes(width, layer) if rms else 4 * width + 8)
    kept += 2 * norm_bytes(width, layer) if vision.use_qk_norm else 0
    kept += 4 * compute * width + 4 * vision.num_attention_heads
    kept += 2 * compute * width if layer.tuning == "full" else 0  # what the two layer scales multiply
    kept += compute * inner  # the gelu's input
    kept += layer.keeps(width, [width] * 3) + layer.keeps(width, [width], kept_anyway=True)
    return kept + layer.keeps(width, [inner]) + layer.keeps(inner, [width], computed=True)


def patches(vision):
    """Places of a tile in the tower, the CLS token among them: 1,025."""
    return (vision.image_size[0] // vision.patch_size[0]) ** 2 + 1


def _head_size(text):
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def norm_bytes(width, layer):
    """RMSNorm: its input in float32; with a trained weight also the normalised values. Compiled: its input as it is."""
    stream = layer.precision.stream
    if layer.compiled:
        return stream * width
    return (4 + (stream if layer.tuning == "full" else 0)) * width


def weight_bytes(model, recipe, *, frozen_bytes):
    """(bytes of frozen weights, of trained ones) of what `tuning.prepare` returned; masters are float32.

    Args: frozen_bytes: of a frozen value that is not quantised: 2, or 4.
    """
    frozen = trained = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trained += 4 * parameter.numel()
        else:
            frozen += _stored_bytes(name, parameter, recipe, frozen_bytes)
    return round(frozen), trained


def offloaded_bytes(model, *, frozen_bytes):
    """(bytes of the tower's layers, of two of them): what stays on the host, and the buffers on the GPU."""
    prefix = QUANTISED["vision"]
    named = [(name.partition(prefix)[2], value) for name, value in model.named_parameters() if prefix in name]
    layers = frozen_bytes * sum(value.numel() for _, value in named)
    return layers, 2 * layers // len({name.partition(".")[0] for name, _ in named})


def _stored_bytes(name, parameter, recipe, frozen_bytes):
    count = parameter.numel()
    if parameter.ndim == 2 and recipe.quantize == "4bit" and QUANTISED["language"] in name:
        return NF4_BYTES * count
    if parameter.ndim == 2 and any(QUANTISED[part] in name for part in recipe.float8_parts):
        return count + 4 * len(parameter)  # and a float32 scale a row
    return frozen_bytes * count


def frozen_matrices(model):
    """Shapes [N, K] of the decoder's, which NF4 or float8 may hold."""
    named = ((name, value) for name, value in model.named_parameters() if not value.requires_grad)
    return [value.shape for name, value in named if value.ndim == 2 and QUANTISED["language"] in name]


def copied_parameters(model):
    """Trained matrices that autocast keeps a half-precision copy of until forward ends."""
    named = ((name, value) for name, value in model.named_parameters() if value.requires_grad and value.ndim == 2)
    return sum(value.numel() for name, value in named if QUANTISED["language"] in name or part_of(name) == "head")


def features_bytes(config, recipe, *, tiles, device_type):
    """Bytes that `keep_features` takes on disk for so many tiles, as far as it allows: 1 MiB each for the 2B's LoRA.

    What the projector gave, or what it is given where it trains.
    """
    precision = precision_of(recipe, device_type)
    bytes_a_token = precision.compute * config.text_config.hidden_size
    if recipe.projector != "frozen":
        bytes_a_token = precision.stream * 4 * config.vision_config.hidden_size
    return round(min(recipe.keep_features * GIB, tiles * config.image_seq_length * bytes_a_token))

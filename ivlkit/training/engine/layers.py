"""The layers of a model that trains: their activations recomputed in backward, each compiled on its own.

Both wrap a layer's `forward` here, in one order on every version of transformers: recomputation outside, the compiled
layer inside. transformers' own switch also makes the outputs of every embedding require gradients, a frozen vision
tower's too, and so back-propagates into it.
"""

from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import torch
from torch._dynamo import mark_static, maybe_mark_dynamic
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from .shared_input import share_inputs

BACKEND = "inductor"
VARYING = {  # dimensions of a layer's arguments that a bin's tokens and samples decide
    "attention_mask": (2, 3),  # [1, 1, L, L]
    "position_ids": (1,),  # [1, L]
    "position_embeddings": (1,),  # two of [1, L, D]
    "cu_seq_lens_q": (0,),  # [samples + 1]
    "cu_seq_lens_k": (0,),
}


def wrap_layers(model, recipe):
    """Share inputs, recompute and compile the layers of what `tuning.prepare` returned, as the recipe says.

    Layers of one kind share one compiled graph, since they differ in their weights only. It serves bins of any length
    and any number of samples and tiles: `VARYING` says which dimensions differ, and the longest row there can be
    stands for the bin's own (`collate.collate_packed`), since an int would be a constant.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    language, vision = base.model.language_model.layers, base.model.vision_tower.encoder.layer
    if recipe.stage == 3:
        for layers in (language, vision):
            _fetch_whole(layers)
    else:  # whose linear layers may take each other's input
        share_inputs(base)
    if recipe.compile:
        kinds = [(language, 1)]  # hidden states: tokens [1, L, H]
        if not recipe.vision_offload:  # whose layers take turns in two buffers; a compiled one is bound to its weights
            kinds += [(vision, 0)]  # tiles [T, P, C]
            base.least_tiles = 2
        for layers, varying in kinds:
            for layer in layers:
                compiled = torch.compile(layer.forward, fullgraph=True, backend=BACKEND)
                layer.forward = partial(_of_any_size, compiled, varying)
    options = {"none": None, "selective": _selective(recipe.lora_rank), "full": {}}[recipe.gradient_checkpointing]
    if options is not None:
        for layer in (*language, *(() if base.vision_is_frozen else vision)):
            layer.forward = partial(_recomputed, layer.forward, options)


def _fetch_whole(layers):
    """Have DeepSpeed fetch a layer's weights at once, for its forward and from recomputation to the end of backward.

    Weights fetched one by one cost the 4B a quarter of its step. The first layer that trains stays as it is: the end
    of a whole layer's backward is told by its input's gradient, and where nothing before it trains, there is none.
    """
    from deepspeed.utils.z3_leaf_module import set_z3_leaf_module

    train = [any(weight.requires_grad for weight in layer.parameters()) for layer in layers]
    for layer, (before_trains, trains) in zip(layers, pairwise([False, *train]), strict=True):
        set_z3_leaf_module(layer, before_trains or not trains)


def _of_any_size(compiled, varying, hidden_states, **kwargs):
    """A compiled layer that is told which dimension varies: else the second bin's size would compile it again.

    torch 2.10 has to be told that the others are constant: it takes the layers of tower and decoder for one function
    of transformers, and would let their width vary.
    """
    maybe_mark_dynamic(hidden_states, varying)
    mark_static(hidden_states, [each for each in range(3) if each != varying])
    for name, dimensions in VARYING.items():
        value = kwargs.get(name)
        for tensor in value if isinstance(value, tuple) else (value,):
            if torch.is_tensor(tensor):
                maybe_mark_dynamic(tensor, dimensions)
    return compiled(hidden_states, **kwargs)


def _recomputed(forward, options, *args, **kwargs):
    """A layer that keeps its inputs (selective: its products too), and computes the rest again for backward."""
    return checkpoint(partial(forward, **kwargs), *args, use_reentrant=False, **options)


@contextmanager
def recomputing(layers):
    """What layers compute in here is computed again in each backward: of a layer only its inputs are kept."""
    own = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(_recomputed, layer.forward, {})
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            del layer.forward
            if forward:
                layer.forward = forward


def _selective(rank):
    """Keep attention and matrix products; norms, activations, dropout and adapters' second products are cheap."""
    return {"context_fn": partial(create_selective_checkpoint_contexts, partial(_keep_products, rank=rank))}


def _keep_products(context, operation, *args, rank, **kwargs):
    """A product's inner size tells an adapter's second matrix, of the rank's, from the others."""
    name = operation.name()
    is_product = "scaled_mm" in name or (name in ("aten::mm", "aten::addmm") and args[-1].shape[0] > rank)
    keep = is_product or "attention" in name or "varlen_attn" in name
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

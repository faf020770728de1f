"""Layers that are recomputed and compiled: the same steps, few graphs, no way into a frozen tower."""

import sys
from collections import Counter

import pytest
import torch
from torch import _dynamo as dynamo
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from trial import Trial

from ivlkit.data.datasets.opening import open_data
from ivlkit.errors import TrainingError
from ivlkit.models.load import load
from ivlkit.models.modeling import attention
from ivlkit.training.engine import layers
from ivlkit.training.loop import build
from ivlkit.training.loop.build import build_training, keep_float32_masters, leave_casts_to_autocast
from ivlkit.training.loop.schedule import MicroBatch
from ivlkit.training.recipes import recipe
from ivlkit.training.tuning import prepare

# At this rate six steps of Adam move no loss beyond the bounds below, whatever they make of a tiny gradient's rounding.
SMALL = {"total_batch": 4, "epochs": 3, "max_seq_length": 100, "bin_tokens": 140, "save_steps": 100, "packing": True}
SMALL |= {"learning_rate": 1e-5}
FROZEN_TOWER = {"vision": "frozen", "lora_dropout": 0.0}
FULL = {"vision": "full", "projector": "full", "language": "full"}


class Watch:
    """(loss, gradient norm) and the number of compiled graphs, step by step."""

    def __init__(self, trainer):
        self.trainer, self.graphs = trainer, []
        trainer.watchers.append(lambda: self.graphs.append(dynamo.utils.counters["stats"]["unique_graphs"]))

    @property
    def numbers(self):
        return self.trainer.numbers


@pytest.fixture
def start(tiny, mixed_rows, tmp_path, monkeypatch):
    """`start("run", **recipe changes)` → (`Trial`, its `Watch`): bins of two rows or so, six steps; no C++ compiler."""
    monkeypatch.setattr(layers, "BACKEND", "aot_eager")

    def make(name, **changes):
        dynamo.reset()
        dynamo.utils.counters.clear()
        vlm, chosen = load(tiny), recipe("nano-lora", **SMALL | changes)
        trainer = Trial(build_training(vlm, vlm.processor, chosen, open_data(mixed_rows))[0], tmp_path / name)
        return trainer, Watch(trainer)

    yield make
    dynamo.reset()


def dense_kernel(query, key, value, bounds, *_, scale, window_size):
    """Attention within segments by a mask, in operations that compile anywhere: the real kernel needs a GPU."""
    places = torch.arange(len(query))
    segment = torch.bucketize(places, bounds, right=True)
    mask = (segment[:, None] == segment) & (places[:, None] >= places)
    states = (one.transpose(0, 1) for one in (query, key, value))
    return F.scaled_dot_product_attention(*states, attn_mask=mask, scale=scale).transpose(0, 1)


@pytest.mark.parametrize("name", ["sdpa", attention.VARLEN])
@pytest.mark.parametrize(
    ("changes", "graphs"),
    [
        (FROZEN_TOWER, 3),  # a vision layer, the first decoder layer (its input needs no gradient), the others
        (FROZEN_TOWER | {"gradient_checkpointing": True}, 3),
        (FROZEN_TOWER | {"vision_offload": True}, 2),  # no vision layer: they take turns in two buffers
        (FULL | {"gradient_checkpointing": True}, 2),  # every layer's input does
    ],
    ids=["lora", "lora recomputed", "lora, tower on the host", "full recomputed"],
)
def test_compiled_steps_are_the_plain_ones_and_nothing_is_compiled_twice(start, monkeypatch, name, changes, graphs):
    """Bins of unequal rows, tiles and length; steps of fewer bins; the last step of one row."""
    monkeypatch.setattr(attention, "_varlen_kernel", lambda: dense_kernel)
    found = {}
    for compiled in (False, True):
        trainer, watch = start(f"{compiled}", compile=compiled, **changes)
        with attention.use_attention(trainer.model, name):
            trainer.train()
        found[compiled] = torch.tensor(watch.numbers), watch.graphs
    torch.testing.assert_close(found[True][0], found[False][0], atol=1e-5, rtol=1e-4)
    assert found[False][1] == [0] * 6
    # transformers' sdpa gets a mask of the samples, but none for a bin of one, which comes in the second step
    later = graphs - ("vision_offload" not in changes) if name == "sdpa" else 0
    assert found[True][1] == [graphs, *[graphs + later] * 5]


@pytest.mark.parametrize("rows", [[[2], [3], [0, 1], [5, 3, 6], [1]], [[3], [0, 1, 5], [2, 3], [2]]])
@pytest.mark.parametrize("policy", ["none", "full"])
@pytest.mark.parametrize(("changes", "graphs"), [(FROZEN_TOWER, 3), (FULL, 2)], ids=["lora", "full"])
def test_bins_of_one_sample_of_one_tile_and_of_text_alone_share_the_graphs(
    start, monkeypatch, rows, policy, changes, graphs
):
    """In either order: the sizes 0 and 1, which torch takes for constants, come first, or come late."""
    monkeypatch.setattr(attention, "_varlen_kernel", lambda: dense_kernel)
    found = {}
    for compiled in (False, True):
        trainer, _ = start(f"{compiled}", compile=compiled, gradient_checkpointing=policy, **changes)
        found[compiled] = list(forward_and_backward(trainer, rows))
    torch.testing.assert_close([each[:2] for each in found[True]], [each[:2] for each in found[False]])
    seen = [each[2] for each in found[True]]
    text_first = rows[0] == [3] and changes is FROZEN_TOWER  # the tower is not called
    assert seen == [graphs - text_first, *[graphs] * (len(rows) - 1)]


def forward_and_backward(trainer, rows):
    """(loss, squares of the gradients, graphs so far) of bins of these rows."""
    dataset, model = trainer.train_dataset, trainer.model.train()
    dataset.batches = [MicroBatch(tuple((0, row) for row in together), masked=False) for together in rows]
    with attention.use_attention(model, attention.VARLEN):
        for batch in (dataset[number] for number in range(len(rows))):
            loss = trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor(1.0))
            loss.backward()
            squares = [one.grad.square().sum() for one in model.parameters() if one.grad is not None]
            model.zero_grad()
            yield loss.detach(), torch.stack(squares), dynamo.utils.counters["stats"]["unique_graphs"]


def test_a_loss_under_validations_stance_is_the_plain_one_and_compiles_nothing(start, monkeypatch):
    """Marked sizes mean nothing where nothing is compiled; in between the next step finds its graphs."""
    monkeypatch.setattr(attention, "_varlen_kernel", lambda: dense_kernel)
    losses = {}
    for compiled in (False, True):
        trainer, _ = start(f"{compiled}", compile=compiled, **FROZEN_TOWER)
        graphs = next(forward_and_backward(trainer, [[0, 1]]))[2]
        batch = trainer.train_dataset[0]
        with torch.compiler.set_stance("force_eager"), torch.no_grad():
            losses[compiled] = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(1.0))
        assert next(forward_and_backward(trainer, [[0, 1]]))[2] == graphs == 3 * compiled
    torch.testing.assert_close(losses[True], losses[False])


@pytest.mark.parametrize("rows", [[[3], [0, 1, 5]], [[0, 1, 5], [3]]], ids=["text first", "text last"])
def test_nothing_but_tokens_samples_and_tiles_varies_in_a_compiled_layer(start, monkeypatch, rows):
    """Widths and a tile's patches are constants: kernels for any width would be slow."""
    found = set()

    def read_inputs(graph, inputs):
        sizes = [getattr(each.meta["example_value"], "shape", ()) for each in graph.graph.find_nodes(op="placeholder")]
        shapes = [tuple("?" if isinstance(size, torch.SymInt) else size for size in shape) for shape in sizes]
        found.update(shape for shape in shapes if "?" in shape)
        return graph.forward

    monkeypatch.setattr(attention, "_varlen_kernel", lambda: dense_kernel)
    monkeypatch.setattr(layers, "BACKEND", read_inputs)
    trainer, _ = start("run", compile=True, **FROZEN_TOWER)
    list(forward_and_backward(trainer, rows))
    patches = (112 // 14) ** 2 + 1
    assert found == {(1, "?", 32), ("?", patches, 24), (1, "?", 8), ("?",)}  # the last but one: cosines, sines


def test_compiled_bins_are_not_padded_and_take_one_call_of_the_tower(start):
    trainer, _ = start("run", compile=True, **FROZEN_TOWER)
    plain, _ = start("plain", **FROZEN_TOWER)
    tower, calls = trainer.model.get_base_model().model.vision_tower, []
    tower.embeddings.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    tiles = []
    for batch, same in zip(trainer.train_dataset, plain.train_dataset, strict=True):
        assert torch.equal(batch["input_ids"], same["input_ids"])
        if batch["where"]:
            assert torch.equal(batch["cu_seqlens"], same["cu_seqlens"]) and batch["max_length"] == 100
            tiles.append(len(batch["tiles"]))
            trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(1.0))
    assert calls == [max(2, count) for count in tiles if count] and set(tiles) == {1, 2, 3}


def test_saved_names_are_the_uncompiled_ones(start):
    names = [
        set(start(f"{on}", compile=on, gradient_checkpointing=on, **FROZEN_TOWER)[0].model.state_dict())
        for on in (False, True)
    ]
    assert names[0] == names[1]


def test_the_time_that_compiling_took_is_printed_once(start, monkeypatch, capsys):
    """Under the kernel for bins: with sdpa a bin of one sample is compiled in the second step."""
    monkeypatch.setattr(attention, "_varlen_kernel", lambda: dense_kernel)
    trainer, _ = start("run", compile=True, **FROZEN_TOWER)
    with attention.use_attention(trainer.model, attention.VARLEN):
        trainer.train()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("compile: ")]
    assert len(said) == 1
    first, more = (float(word) for word in said[0].split() if word.replace(".", "").replace("-", "").isdigit())
    assert 0 < more <= first  # the second step may round to nothing


def test_compiling_on_a_card_without_bins_is_refused(start, monkeypatch):
    old = attention.AttentionChoice("sdpa", "an old card", packs=False)
    monkeypatch.setattr(build, "choose_attention", lambda _: old)
    with pytest.raises(TrainingError, match="compile=true on a card that packs no bins; set compile=false"):
        start("run", compile=True, **FROZEN_TOWER)


class CountOperations(TorchDispatchMode):
    """Operations that are computed: what selective recomputing kept does not come here."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.found[operation.name()] += 1
        return operation(*args, **(kwargs or {}))


def bytes_kept(trainer, batch):
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: (sizes.append(one.nbytes), one)[1], lambda one: one):
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(1.0))
    return sum(sizes)


@pytest.mark.skipif(sys.platform != "linux", reason="no DeepSpeed there")
@pytest.mark.parametrize(
    ("changes", "whole"),  # of two vision layers and two decoder layers
    [
        (FROZEN_TOWER, [True, True, False, True]),
        (FULL, [False, True, False, True]),
        ({"vision": "frozen", "language": "frozen", "projector": "full"}, [True, True, True, True]),
        (FULL | {"vision": "frozen", "unfreeze_vit_layers": -1}, [True, False, False, True]),
    ],
)
def test_zero_3_fetches_layers_whole_but_the_first_that_trains(tiny, changes, whole):
    chosen = recipe("nano-lora", gpus=2, zero_stage=3, **SMALL | changes)
    model = prepare(load(tiny), chosen)
    layers.wrap_layers(model, chosen)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    parts = (base.model.vision_tower.encoder.layer, base.model.language_model.layers)
    assert [layer._z3_leaf for part in parts for layer in part] == whole


def test_recomputing_keeps_the_layers_inputs_only(start):
    """Bytes that backward keeps, with and without: a layer's insides are many times its input."""
    kept = {}
    for on in (False, True):
        trainer, _ = start(f"{on}", gradient_checkpointing=on, **FROZEN_TOWER)
        trainer.model.train()
        batch = next(batch for batch in trainer.train_dataset if batch["where"])
        kept[on] = bytes_kept(trainer, batch)
    assert kept[True] < kept[False] / 3


def test_selective_recomputing_trains_as_none_does(start):
    """The same losses and gradients, tower and dropout included, but for the order of sums."""
    found = {}
    for policy in ("none", "selective", "full"):
        trainer, watch = start(policy, gradient_checkpointing=policy)
        trainer.train()
        found[policy] = torch.tensor(watch.numbers)
    torch.testing.assert_close(found["selective"], found["none"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found["full"], found["none"], atol=1e-6, rtol=1e-5)


def test_selective_recomputing_computes_attention_and_products_once(start):
    """Of a frozen decoder's seven adapters a layer the second product is computed again, but for the last: no gradient
    needs what it gives."""
    counts = {}
    for policy in ("none", "selective", "full"):
        trainer, _ = start(policy, gradient_checkpointing=policy, **FROZEN_TOWER, lora_rank=8)
        batch = next(batch for batch in trainer.train_dataset if batch["where"])
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(1.0))
        with CountOperations() as counter:
            loss.backward()
        counts[policy] = counter.found
    attention = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert (counts["selective"][attention], counts["full"][attention]) == (0, 2)  # once a layer
    products = {policy: count["aten::mm"] for policy, count in counts.items()}
    assert products["selective"] == products["none"] + 2 * 6
    assert products["full"] > products["selective"] + 2 * 6


def test_recomputing_leaves_a_frozen_tower_out_of_backward(start, monkeypatch):
    """transformers' own switch would make the patch embedding's output require gradients."""
    trainer, _ = start("run", gradient_checkpointing="full", **FROZEN_TOWER)
    base = trainer.model.get_base_model()
    seen = []
    project = base._project
    monkeypatch.setattr(base, "_project", lambda patches: (seen.append(patches.requires_grad), project(patches))[1])
    trainer.train()
    assert seen and not any(seen)
    assert base.model.vision_tower.embeddings._forward_hooks == {}


def test_a_projector_that_trains_beside_adapters_has_float32_masters_too(tiny):
    """In bf16 most of its weights would never move."""
    vlm = load(tiny, dtype=torch.bfloat16)
    model = prepare(vlm, recipe("nano-lora", projector="full"))
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert {value.dtype for name, value in trained.items() if "projector" in name} == {torch.bfloat16}
    keep_float32_masters(model)
    assert {value.dtype for value in trained.values()} == {torch.float32}
    assert vlm.model.lm_head.weight.dtype == torch.bfloat16


def test_adapters_in_float32_take_their_inputs_uncast_under_autocast(start):
    """The same bits as with PEFT's cast to float32 before autocast's to bf16."""
    trainer, _ = start("run", **FROZEN_TOWER)
    model = trainer.model.eval()
    layer = model.get_base_model().model.language_model.layers[0].mlp.gate_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    layer.base_layer.to(torch.bfloat16)
    inputs = torch.randn(5, 32).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(inputs)
        leave_casts_to_autocast(model)
        seen = []
        layer.lora_A["default"].register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
        torch.testing.assert_close(layer(inputs), expected, atol=0, rtol=0)
    assert seen == [torch.bfloat16]

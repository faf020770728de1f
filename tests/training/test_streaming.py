"""A tower on the host gives the bits of one that stays; no buffer is read before it is filled, nor filled too soon."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from safetensors.torch import load_file
from trial import Trial

from ivlkit.data.datasets.opening import open_data
from ivlkit.errors import RecipeError
from ivlkit.models.load import load
from ivlkit.models.modeling import internvl as architecture
from ivlkit.models.modeling import streaming
from ivlkit.models.modeling.streaming import STREAMED_TILES, CudaLane, Lane, StreamedEncoder, padded, stream_tower
from ivlkit.training.loop.build import build_training
from ivlkit.training.recipes import recipe
from ivlkit.training.runs import execute, write_run
from ivlkit.training.tuning import prepare, summary_text

FROZEN = {"vision": "frozen", "lora_dropout": 0.05}
SMALL = {"total_batch": 4, "epochs": 1, "max_seq_length": 200, "learning_rate": 1e-3, "packing": True}


@pytest.fixture
def deep(tiny_config, tmp_path):
    """Folder of a model whose tower has five layers."""
    from random_nano import build

    tiny_config["vision_config"] |= {"num_hidden_layers": 5, "norm_type": "rms_norm", "qk_normalization": True}
    return build(tmp_path / "deep", config=tiny_config)


def frozen(name, **options):
    model = load(name, **options).model
    model.model.vision_tower.requires_grad_(False)
    return model


def tiles(count, dtype=torch.float32):
    return torch.randn(count, 3, 112, 112, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("count", [1, STREAMED_TILES, 2 * STREAMED_TILES + 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_have_the_bits_of_a_tower_that_stays(deep, dtype, count, monkeypatch):
    """Which sees as many tiles at once: products of other sizes may round otherwise."""
    monkeypatch.setattr(architecture, "TILES_A_CHUNK", STREAMED_TILES)
    model = frozen(deep, dtype=dtype)
    pixel_values = tiles(count, dtype)
    expected = model.encode_tiles(pixel_values)
    stream_tower(model)
    assert isinstance(model.model.vision_tower.encoder, StreamedEncoder)
    for _ in range(2):
        found = model.encode_tiles(pixel_values)
        assert found.dtype == dtype and torch.equal(found, expected)


def test_it_sees_outside_of_inference_mode_what_it_saw_inside_first(deep):
    model, pixel_values = frozen(deep), tiles(2)
    stream_tower(model)
    with torch.inference_mode():
        expected = model.encode_tiles(pixel_values)
    assert torch.equal(model.encode_tiles(pixel_values), expected)


class Recorded(Lane):
    """Writes down what is asked; a buffer holds no number before it is filled, and none again once it was read."""

    def __init__(self):
        self.said, self.flats = [], None

    def begin(self, flats):
        self.flats = flats
        self.said.append("begin")
        for flat in flats:
            flat.fill_(torch.nan)

    def filling(self, slot):
        self.said.append(f"fill {slot}")
        return super().filling(slot)

    def wait_until_filled(self, slot):
        self.said.append(f"wait {slot}")

    def mark_read(self, slot):
        self.said.append(f"read {slot}")
        self.flats[slot].fill_(torch.nan)


def test_the_next_layer_is_copied_while_one_computes_and_all_tiles_pass_before_it(deep, monkeypatch):
    """Five layers for 19 tiles: each is filled once, after the layer two before was read, before that one before is."""
    model = frozen(deep)
    expected = model.encode_tiles(tiles(19))
    lane = Recorded()
    monkeypatch.setattr(streaming, "Lane", lambda: lane)
    stream_tower(model)
    torch.testing.assert_close(model.encode_tiles(tiles(19)), expected)
    assert lane.said == [
        *("begin", "fill 0"),
        *("fill 1", "wait 0", "read 0"),
        *("fill 0", "wait 1", "read 1"),
        *("fill 1", "wait 0", "read 0"),
        *("fill 0", "wait 1", "read 1"),
        *("wait 0", "read 0"),
    ]


class FakeStream:
    """What has happened for certain before the next operation of a stream."""

    def __init__(self, *_):
        self.known = set()

    def wait_event(self, event):
        self.known |= event.known

    wait_stream = wait_event


class FakeEvent:
    def __init__(self):
        self.known = set()

    def record(self, stream):
        self.known = set(stream.known)


class Checked(CudaLane):
    """Copies and layers are numbered over all passes; each says what it must come after, and what it need not."""

    fills = reads = 0

    def __init__(self, main):
        super().__init__(torch.device("cuda"))
        self.main, self.of_slot = main, {}

    def begin(self, flats):
        self.first = self.fills
        self.main.known.add(f"before {self.first}")
        super().begin([])  # tensors of a CPU know no streams

    @contextmanager
    def filling(self, slot):
        with super().filling(slot):
            assert f"before {self.first}" in self.side.known
            assert slot not in self.of_slot or f"read {self.of_slot[slot]}" in self.side.known
            assert self.fills == self.first or f"read {self.fills - 1}" not in self.side.known  # they overlap
            self.of_slot[slot] = self.fills
            self.side.known.add(f"fill {self.fills}")
            self.fills += 1
            yield

    def mark_read(self, slot):
        assert self.of_slot[slot] == self.reads and f"fill {self.reads}" in self.main.known
        self.main.known.add(f"read {self.reads}")
        self.reads += 1
        super().mark_read(slot)


def test_events_order_the_copies_of_a_gpu_and_no_more_than_they_must(deep, monkeypatch):
    main = FakeStream()
    for name, fake in {
        "Stream": FakeStream,
        "Event": FakeEvent,
        "current_stream": lambda device: main,
        "stream": nullcontext,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    lane = Checked(main)
    monkeypatch.setattr(streaming, "Lane", lambda: lane)
    model = frozen(deep)
    stream_tower(model)
    for _ in range(2):
        model.encode_tiles(tiles(1))
    assert (lane.fills, lane.reads) == (10, 10)


def test_names_and_values_are_those_of_a_tower_that_stays(deep):
    model = frozen(deep)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    stream_tower(model)
    for _ in range(2):  # before a pass and after it
        found = model.state_dict()
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        layers = model.model.vision_tower.encoder.layer
        assert all(value.is_leaf and not value.requires_grad for value in layers.parameters())
        model.encode_tiles(tiles(1))


def test_the_layers_stay_where_they_are_when_the_model_moves(deep):
    model = frozen(deep)
    stream_tower(model)
    model.to("meta")
    kinds = {name: value.device.type for name, value in model.named_parameters()}
    stays = {name for name, kind in kinds.items() if kind == "cpu"}
    assert stays == {name for name in kinds if ".encoder.layer." in name} and len(stays) > 5
    with pytest.raises(
        TypeError, match="a streamed vision tower of torch.float32 to become torch.float16; expected no"
    ):
        model.half()


def test_a_value_on_the_host_is_held_once(deep):
    model = frozen(deep)
    stream_tower(model)
    encoder = model.model.vision_tower.encoder
    for layer, flat in zip(encoder.layer, encoder.packed, strict=True):
        assert {value.untyped_storage().data_ptr() for value in layer.parameters()} == {
            flat.untyped_storage().data_ptr()
        }
        assert flat.numel() == sum(padded(value.numel()) for value in layer.parameters())
    assert (padded(128), padded(129)) == (128, 256)


def test_a_tower_that_trains_and_one_that_is_read_before_its_end_are_refused(deep):
    model = load(deep).model
    with pytest.raises(RecipeError, match="tensors of the vision tower train; expected a frozen one; freeze it first"):
        stream_tower(model)
    model.model.vision_tower.requires_grad_(False)
    model.config.vision_feature_layer = -2
    with pytest.raises(
        RecipeError, match="reads layer -2 of the tower; expected the last .*; set vision_offload=false"
    ):
        stream_tower(model)


def trained(name, folder, rows, **changes):
    """(losses, what trained) of a few steps."""
    chosen = recipe("nano-lora", **SMALL | FROZEN | changes)
    vlm = load(name)
    trainer = Trial(build_training(vlm, vlm.processor, chosen, open_data(rows))[0], folder)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return losses, {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("changes", [{}, {"projector": "full"}], ids=["lora", "lora and projector"])
def test_training_takes_the_same_steps(deep, mixed_rows, tmp_path, changes):
    stays, weights = trained(deep, tmp_path / "stays", mixed_rows, **changes)
    streamed, others = trained(deep, tmp_path / "streamed", mixed_rows, vision_offload=True, **changes)
    assert stays == streamed and len(stays) >= 2
    assert weights.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in weights.items())


def test_a_run_says_it_and_its_adapter_is_that_of_any_other(deep, mixed_rows, tmp_path):
    """And its rows are answered freely between steps, by the same tower."""
    ends = []
    for offload in (False, True):
        chosen = recipe("nano-lora", **SMALL | FROZEN | {"model": str(deep), "vision_offload": offload})
        data = open_data(mixed_rows)
        run = write_run(chosen, data, tmp_path / f"{offload}", validation=data)
        assert run.recipe == chosen and run.spec["recipe"]["vision_offload"] is offload
        execute(run.folder)
        ends.append((run.validation, load_file(run.folder / "final" / "adapter_model.safetensors")))
    (stays, weights), (streamed, others) = ends
    for line, other in zip(stays, streamed, strict=True):
        assert (line["loss"], line["answers"]) == (other["loss"], other["answers"])
    assert weights.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in weights.items())
    vlm = run.load()
    assert not any(isinstance(module, StreamedEncoder) for module in vlm.model.modules())


def test_ddp_leaves_the_layers_out(deep):
    vlm, chosen = load(deep), recipe("nano-lora", **FROZEN, vision_offload=True)
    model = prepare(vlm, chosen)
    expected = {name for name, _ in model.named_parameters() if ".vision_tower.encoder.layer." in name}
    assert set(model._ddp_params_and_buffers_to_ignore) == expected and len(expected) > 5
    assert "vision_offload: the tower's layers in the host's memory" in summary_text(model, chosen)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; with one: IVLKIT_TEST_GPU=1")
class TestOnAGpu:
    def test_features_have_the_same_bits_and_the_layers_stay_on_the_host(self, deep):
        model = frozen(deep, device="cuda", dtype=torch.bfloat16)
        pixel_values = tiles(STREAMED_TILES, torch.bfloat16).cuda()
        expected = model.encode_tiles(pixel_values)
        model = frozen(deep, device="cuda", dtype=torch.bfloat16, tower_device="cpu")
        stream_tower(model)
        model.to("cuda")
        for _ in range(20):
            assert torch.equal(model.encode_tiles(pixel_values), expected)
        layers = list(model.model.vision_tower.encoder.layer.parameters())
        assert all(value.device.type == "cpu" and value.is_pinned() for value in layers)

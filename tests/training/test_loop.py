"""Steps that do not depend on how a batch is cut, and checkpoints that go on to the same bits."""

import json
import math

import numpy as np
import pytest
import torch
from row_plan import plan_run
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import set_seed
from trial import Trial

from ivlkit.data.collate import collate, collate_packed
from ivlkit.data.encode import encode
from ivlkit.data.rows.records import Record, Turn
from ivlkit.errors import CheckpointError, TrainingError
from ivlkit.models.load import load
from ivlkit.models.modeling import attention
from ivlkit.training.checkpoints import load_trained, save_trained
from ivlkit.training.engine.layers import wrap_layers
from ivlkit.training.loop.loss import cross_entropy
from ivlkit.training.loop.schedule import MicroBatches, plan_grouped, plan_packed
from ivlkit.training.loop.state import begin
from ivlkit.training.loop.train import weigh
from ivlkit.training.recipes import recipe
from ivlkit.training.tuning import prepare

FULL = {"vision": "full", "projector": "full", "language": "full"}
SMALL = {"total_batch": 4, "per_device_batch": 4, "epochs": 3, "learning_rate": 1e-3, "save_steps": 100}


@pytest.fixture
def data(draw_picture):
    """Seven rows: pictures of one and of three tiles, and one of text alone; answers of unequal length."""

    def row(number):
        answer = "word " * (number % 3) + str(number)
        images = () if number == 3 else (draw_picture(112 + 112 * (number % 2), 112, seed=number),)
        turns = (Turn("user", "<image>\nQ" if images else "Q"), Turn("assistant", answer))
        return Record(number, turns, images, f"train.jsonl:{number + 1}")

    return [row(number) for number in range(7)]


NO_STEP = 1e-30  # a learning rate that moves no weight: Adam makes whole steps of a vanishing gradient's rounding


def gradients_of(trainer):
    """{name: gradient} of every step as the optimizer gets them: clipped to a norm of 1.

    LoRA's second matrices are no zeros, which would give the first ones none.
    """
    steps, generator = [], torch.Generator().manual_seed(0)
    for name, value in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1, generator=generator)

    def look(*_):
        trained = ((name, value.grad) for name, value in trainer.model.named_parameters() if value.requires_grad)
        steps.append({name: gradient.clone() for name, gradient in trained})

    trainer.optimizer.optimizer.register_step_pre_hook(look)
    trainer.train()
    return steps


def assert_same_gradients(found, expected):
    """Within 1e-6: clipped gradients are at most 1, where float32 rounds by 6e-8, in each of a dozen operations."""
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys() and any(gradient.any() for gradient in other.values())
        for name, gradient in other.items():
            torch.testing.assert_close(one[name], gradient, atol=1e-6, rtol=0, msg=name)


@pytest.fixture
def start(tiny, data, tmp_path):
    """`start("run", **recipe changes)` → a `Trial` of the tiny model, as a run makes it."""

    def make(name="run", *, stop_at=None, **changes):
        chosen = recipe("nano-lora", **SMALL | changes)
        vlm = load(tiny)
        set_seed(chosen.seed)
        model = prepare(vlm, chosen)
        wrap_layers(model, chosen)
        micro_batches = MicroBatches(data, vlm.processor, chosen, plan_run(len(data), chosen)[0])
        return trial(model, micro_batches, tmp_path / name, stop_at)

    return make


def trial(model, micro_batches, folder, stop_at):
    training = begin(model, micro_batches, loss_fn=cross_entropy, device=torch.device("cpu"))
    set_seed(micro_batches.recipe.seed)
    return Trial(training, folder, stop_at=stop_at)


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


@pytest.mark.parametrize("weighting", ["token", "sample", "square"])
def test_one_batch_of_four_two_of_two_and_four_of_one_are_the_same_steps(start, weighting):
    """21 rows in six steps, the last of one."""
    gradients, losses = [], []
    for size in (4, 2, 1):
        changes = {"per_device_batch": size, "weighting": weighting, "learning_rate": NO_STEP}
        trainer = start(f"of{size}", **FULL, **changes)
        assert trainer.args.gradient_accumulation_steps == 4 // size
        gradients.append(gradients_of(trainer))
        assert trainer.state.global_step == 6
        losses.append(torch.tensor(trainer.numbers))
    for found, loss in zip(gradients[1:], losses[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], atol=1e-5, rtol=1e-5)
        assert_same_gradients(found, gradients[0])
    assert not torch.equal(losses[0][0], losses[0][1])


def test_the_first_loss_is_the_models_own(start, tiny, data, processor):
    """A step of one batch, by weight of tokens: transformers' loss of the same rows one by one."""
    trainer = start("run", **FULL, epochs=1)
    batch = trainer.train_dataset[0]
    trainer.train()
    model, total, count = load(tiny).model, 0.0, 0
    for where in batch["where"]:
        number = int(where.partition(":")[2]) - 1
        example = MicroBatches(data, processor, recipe("nano-lora"), [_single(number)])[0]
        rows = {"input_ids": example["input_ids"], "labels": example["labels"]}
        if len(example["tiles"]):
            from ivlkit.data.collate import normalise_tiles

            rows["pixel_values"] = normalise_tiles(example["tiles"])
        tokens = int((example["labels"][:, 1:] != -100).sum())
        with torch.no_grad():
            total += model(**rows).loss.item() * tokens
        count += tokens
    assert trainer.numbers[0][0] == pytest.approx(total / count, rel=1e-5)


def _single(number):
    from ivlkit.training.loop.schedule import MicroBatch

    return MicroBatch(((0, number),))


def test_the_learning_rate_warms_up_and_falls_as_a_cosine(start, tmp_path, data, processor):
    trainer = start("run", epochs=12, warmup_ratio=0.1)
    trainer.train()
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, 22))  # 84 rows in steps of four
    assert log[-1]["epoch"] == 12
    # Two steps of warm-up from zero, then half a cosine over 19.
    expected = [0, 0.5e-3, *(0.5e-3 * (1 + math.cos(math.pi * step / 19)) for step in range(19))]
    assert [line["learning_rate"] for line in log] == pytest.approx(expected, abs=1e-9)
    assert all(line["steps"] == 21 and line["grad_norm"] > 0 for line in log)
    assert log[-1]["tokens"] == 12 * sum(len(encode(record, processor)) for record in data)  # padding not counted
    assert all(0 < line["memory_gib"] < 64 for line in log)


@pytest.mark.parametrize(
    "changes",
    [FULL, {"lora_dropout": 0.3}, {"lora_dropout": 0.3, "projector": "full", "per_device_batch": 1}],
    ids=["full", "lora with dropout", "lora and projector, accumulated"],
)
def test_an_interrupted_run_goes_on_to_the_same_bits(start, tmp_path, changes):
    whole = start("whole", **changes)
    whole.train()
    interrupted = start("run", stop_at=2, **changes)
    interrupted.train()
    assert interrupted.state.global_step == 2
    resumed = start("run", **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert resumed.state.global_step == whole.state.global_step == 6
    expected, found = weights(whole), weights(resumed)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert any(not torch.equal(expected[name], tensor) for name, tensor in weights(interrupted).items())


@pytest.mark.parametrize(
    ("changes", "expected"), [({"projector": "full"}, True), ({"vision": "lora"}, True), ({}, False)]
)
def test_a_step_of_text_alone_leaves_gradients_of_zero_for_what_sees(start, data, changes, expected):
    """As on several GPUs, where a rank's neighbour may have pictures: the optimizer steps in both cases, or in none."""
    data[:] = [data[3]] * 7
    trainer = start("run", **{"vision": "frozen"} | changes, epochs=1)
    model, inputs = trainer.model, trainer.train_dataset[0]
    trainer.compute_loss(model, inputs, num_items_in_batch=1).backward()
    sees = [value for name, value in model.named_parameters() if "language_model" not in name and value.requires_grad]
    assert bool(sees) is expected
    assert all(value.grad is not None and not value.grad.any() for value in sees)


@pytest.mark.parametrize("changes", [FULL, {}], ids=["full", "lora"])
def test_a_checkpoint_holds_no_pickled_arguments(start, tmp_path, changes):
    start("run", stop_at=1, **changes).train()
    names = {path.name for path in (tmp_path / "run" / "checkpoint-1").iterdir()}
    weights_of = {"model.safetensors"} if changes else {"adapter_model.safetensors", "adapter_config.json"}
    # What this machine's own run reads again when it goes on; no training_args.bin.
    assert names == weights_of | {
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        "ivlkit.json",
        "checkpoint.json",
    }


def test_random_numbers_that_cannot_be_read_are_an_error_and_not_left_out(start, tmp_path):
    start("run", stop_at=1).train()
    (tmp_path / "run" / "checkpoint-1" / "rng_state.pth").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"rng_state\.pth: can't be read .*; expected a checkpoint of this run"):
        start("run").train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))


def test_gradient_checkpointing_changes_no_step(start):
    changes = {"vision": "frozen", "lora_dropout": 0.0, "learning_rate": NO_STEP}
    found, expected = (gradients_of(start(f"{on}", gradient_checkpointing=on, **changes)) for on in (True, False))
    assert_same_gradients(found, expected)


def test_frozen_parts_keep_their_bits(start, tiny):
    trainer = start("run", **FULL | {"vision": "frozen"})
    trainer.train()
    before = load(tiny).model.state_dict()
    for name, tensor in weights(trainer).items():
        is_same = torch.equal(tensor, before[name])
        assert is_same == name.startswith("model.vision_tower."), name


@pytest.mark.parametrize("changes", [FULL, {"projector": "full"}], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["missing", "unexpected"])
def test_a_checkpoint_with_other_tensors_is_refused(start, tmp_path, changes, kind):
    model = start("run", **changes).model
    save_trained(model, tmp_path)
    load_trained(model, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    tensors = load_file(path)
    if kind == "missing":
        del tensors[min(tensors)]
    else:
        tensors["surprise"] = torch.zeros(1)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=f"1 tensors are {kind}, first .*; is it of another recipe?"):
        load_trained(model, tmp_path)


def test_a_truncated_or_missing_checkpoint_is_refused(start, tmp_path):
    model = start("run", **FULL).model
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: can't be read .*; expected a checkpoint of this run"
    ):
        load_trained(model, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x08")
    with pytest.raises(CheckpointError, match="can't be read"):
        load_trained(model, tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_rows(start):
    trainer = start("run", **FULL)
    with torch.no_grad():
        trainer.model.lm_head.weight[5] = float("nan")
    with pytest.raises(
        TrainingError, match=r"loss nan at step 1, rows train\.jsonl:\d, .*; lower learning_rate or look"
    ):
        trainer.train()


def test_a_frozen_tower_stays_in_eval_mode_while_training(start):
    trainer = start("run", vision="frozen", epochs=1)
    modes = []
    tower = trainer.model.get_base_model().model.vision_tower
    tower.register_forward_hook(lambda *_: modes.append((tower.training, torch.is_grad_enabled())))
    trainer.train()
    assert set(modes) == {(False, False)}


# packed --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def start_packed(tiny, data, tmp_path):
    """`start_packed("run", **recipe changes)` → a `Trial` on bins, as a run makes it."""

    def make(name="run", *, stop_at=None, plan=plan_packed, **changes):
        chosen = recipe("nano-lora", **SMALL | {"max_seq_length": 100} | changes)
        vlm = load(tiny)
        set_seed(chosen.seed)
        model = prepare(vlm, chosen)
        wrap_layers(model, chosen)
        sizes = [encode(record, vlm.processor) for record in data]
        tokens, tiles = np.array([len(one) for one in sizes]), np.array([len(one.tiles) for one in sizes])
        batches = plan(tokens, tiles, chosen)
        made = collate_packed if plan is plan_packed else collate
        micro_batches = MicroBatches(data, vlm.processor, chosen, batches, collate=made)
        return trial(model, micro_batches, tmp_path / name, stop_at)

    return make


@pytest.mark.parametrize("weighting", ["token", "sample", "square"])
def test_packed_steps_are_the_padded_ones(start, start_packed, weighting):
    """One bin a step, bins of two rows or so (some steps need fewer), and padded batches, plain and of like length."""
    gradients, losses = [], []
    changes = FULL | {"weighting": weighting, "learning_rate": NO_STEP}
    for name, make, options in (
        ("padded", start, {}),
        ("one bin", start_packed, {"bin_tokens": 1000}),
        ("bins", start_packed, {"bin_tokens": 140}),
        ("tiles", start_packed, {"bin_tiles": 3}),
        ("grouped", start_packed, {"plan": plan_grouped, "per_device_batch": 2}),
    ):
        trainer = make(name, **changes, **options)
        gradients.append(gradients_of(trainer))
        assert trainer.state.global_step == 6
        losses.append(torch.tensor(trainer.numbers))
        if name == "bins":
            plan = trainer.train_dataset.batches
            assert trainer.args.gradient_accumulation_steps == plan.accumulation > 1
            assert any(not batch.rows for batch in plan)
    for found, loss in zip(gradients[1:], losses[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], atol=1e-5, rtol=1e-5)
        assert_same_gradients(found, gradients[0])


@pytest.mark.parametrize("changes", [FULL, {"lora_dropout": 0.3}], ids=["full", "lora with dropout"])
def test_an_interrupted_packed_run_goes_on_to_the_same_bits(start_packed, tmp_path, changes):
    changes = changes | {"bin_tokens": 140}
    whole = start_packed("whole", **changes)
    whole.train()
    start_packed("run", stop_at=2, **changes).train()
    resumed = start_packed("run", **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert resumed.state.global_step == whole.state.global_step == 6
    expected, found = weights(whole), weights(resumed)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_a_packed_run_has_the_same_steps_with_gradient_checkpointing(start_packed):
    changes = {"vision": "frozen", "lora_dropout": 0.0, "learning_rate": NO_STEP}
    found, expected = (
        gradients_of(start_packed(f"{on}", gradient_checkpointing=on, **changes)) for on in (True, False)
    )
    assert_same_gradients(found, expected)


def test_a_packed_loss_that_is_not_finite_names_its_rows(start_packed):
    trainer = start_packed("run", **FULL)
    with torch.no_grad():
        trainer.model.lm_head.weight[5] = float("nan")
    with pytest.raises(TrainingError, match=r"loss nan at step 1, rows train\.jsonl:\d, .*; lower learning_rate"):
        trainer.train()


def test_the_kernel_for_bounds_gives_the_same_steps_under_peft_and_checkpointing(start_packed, monkeypatch):
    """The kernel itself needs a GPU: here attention of one segment after another stands in for it."""
    calls = []

    def kernel(query, key, value, bounds, *_, scale, window_size):
        calls.append(len(bounds) - 1)
        parts = []
        for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            states = (one[first:last].transpose(0, 1) for one in (query, key, value))
            parts.append(F.scaled_dot_product_attention(*states, is_causal=True, scale=scale).transpose(0, 1))
        return torch.cat(parts)

    monkeypatch.setattr(attention, "_varlen_kernel", lambda: kernel)
    changes = {"vision": "frozen", "lora_dropout": 0.0, "gradient_checkpointing": "full", "learning_rate": NO_STEP}
    found = {}
    for name in ("sdpa", attention.VARLEN):
        trainer = start_packed(name, **changes, epochs=1)
        with attention.use_attention(trainer.model, name):
            found[name] = gradients_of(trainer)
    assert set(calls) == {3, 4}  # rows of the two steps, in one bin each
    assert_same_gradients(found[attention.VARLEN], found["sdpa"])


def test_ranks_call_tower_and_head_as_often_as_the_one_with_most_tiles_and_positions(start_packed, monkeypatch):
    """Under ZeRO-3 every call fetches weights from all ranks: one call less would keep the others waiting."""
    trainer = start_packed("run")
    first, second = trainer.train_dataset[0], trainer.train_dataset[1]
    weight = weigh(trainer.training, [first, second])
    assert [(batch["tower_calls"], batch["chunks"]) for batch in (first, second)] == [(1, 1), (1, 1)]
    other = torch.tensor([[5.0, 130.0, 3000.0, 0.0, 1.0]])  # W; tiles and positions of another rank's micro-batches
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", property(lambda _: 2))
    monkeypatch.setattr(trainer.accelerator, "gather", lambda own: torch.cat([own, other]))
    assert weigh(trainer.training, [first, second]) == weight + 5
    assert [(batch["tower_calls"], batch["chunks"]) for batch in (first, second)] == [(3, 3), (1, 1)]

"""The largest batch first: it is the largest, nothing of it stays, and what runs out says what to do."""

import pytest
import torch
from trial import Trial

from ivlkit.data.datasets.opening import open_data
from ivlkit.models.load import load
from ivlkit.training.estimate import planner
from ivlkit.training.loop.build import build_training
from ivlkit.training.loop.largest_batch import stand_in, try_largest_batch
from ivlkit.training.recipes import recipe
from ivlkit.training.runs import execute, write_run
from ivlkit.training.tuning import optimizer_bytes

SMALL = {"total_batch": 4, "epochs": 2, "max_seq_length": 200, "save_steps": 2, "learning_rate": 1e-3}
WAYS = {"bins": {"packing": True, "bin_tokens": 240}, "padded": {"packing": False, "per_device_batch": 2}}


@pytest.fixture
def start(tiny, mixed_rows, tmp_path):
    """`start("run", **recipe changes)` → a `Trial` of the tiny model."""

    def make(name, **changes):
        vlm, chosen = load(tiny), recipe("nano-lora", **SMALL | changes)
        return Trial(build_training(vlm, vlm.processor, chosen, open_data(mixed_rows))[0], tmp_path / name)

    return make


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_it_is_the_largest_batch_of_the_whole_run(start, way):
    batches = start("run", **way).train_dataset
    number, tokens, tiles = batches.batches.largest_batch()
    sizes = [(batch["input_ids"].numel(), len(batch["tiles"])) for batch in batches if batch["where"]]
    assert (tokens, tiles) == max(sizes)
    assert (batches[number]["input_ids"].numel(), len(batches[number]["tiles"])) == (tokens, tiles)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_run_that_began_with_it_is_bit_equal_to_one_that_did_not(start, way, capsys):
    """Dropout is on: random numbers go on as if none had been drawn."""
    found = []
    for first in (False, True):
        trainer = start(f"{first}", **way)
        if first:
            try_largest_batch(trainer.training)
        trainer.train()
        found.append({name: value.detach().clone() for name, value in trainer.model.named_parameters()})
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("largest batch first: ")]
    _, tokens, tiles = trainer.train_dataset.batches.largest_batch()
    assert len(said) == 1 and f"{tokens:,} tokens, {tiles} tiles" in said[0]


def test_room_is_held_for_the_optimizer_until_it_has_its_own(start):
    trainer = start("run", packing=True)
    trained = sum(value.numel() for value in trainer.model.parameters() if value.requires_grad)
    assert stand_in(trainer.training).numel() == 8 * trained
    trainer.train()
    assert stand_in(trainer.training).numel() == 0


def test_a_run_without_enough_memory_ends_with_advice(tiny, mixed_rows, tmp_path, monkeypatch):
    place = planner.find_place(0.01, None)
    monkeypatch.setattr(planner, "find_place", lambda *_: place)

    def run_out(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("ivlkit.training.loop.execute.load", run_out)
    run = write_run(recipe("nano-lora", model=str(tiny), **SMALL), open_data(mixed_rows), tmp_path / "run")
    with pytest.raises(torch.OutOfMemoryError):
        execute(run.folder)
    said = run.error.splitlines()
    assert said[0] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert said[1].startswith("memory ran out: 0.0 GiB of the card you named for this run")
    assert said[2].startswith("to change: gradient_checkpointing='selective'")


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
def test_an_8_bit_optimizer_holds_what_is_predicted_and_trains(start, optimizer):
    pytest.importorskip("bitsandbytes", reason="8-bit optimizers need it: pip install 'ivlkit[quant]'")
    trainer = start("run", packing=True, optimizer=optimizer, lora_rank=128)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    own = ("state1", "state2", "absmax1", "absmax2")
    states = trainer.optimizer.optimizer.state.values()
    held = sum(state[name].nbytes for state in states for name in own if state.get(name) is not None)
    assert held == optimizer_bytes(trainer.model, "adamw_8bit")
    assert torch.uint8 in {state["state1"].dtype for state in states}
    changed = [name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])]
    assert changed and all("lora_" in name for name in changed)

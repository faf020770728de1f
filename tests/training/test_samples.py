"""Rows asked while a run trains: the answers are those of the model at that step, and training does not notice."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from row_plan import plan_run
from trial import Trial

from ivlkit.data.rows.records import Record, Turn
from ivlkit.models.load import load
from ivlkit.training.loop import samples
from ivlkit.training.loop.loss import cross_entropy
from ivlkit.training.loop.samples import Samples, predict_tokens
from ivlkit.training.loop.schedule import MicroBatches
from ivlkit.training.loop.state import begin
from ivlkit.training.recipes import recipe
from ivlkit.training.tuning import prepare

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture
def data(draw_picture):
    turns = [(Turn("user", "<image>\nQ"), Turn("assistant", "no" if number == 3 else "7")) for number in range(6)]
    return [Record(n, turns[n], (draw_picture(112, 112, seed=n),), f"train.jsonl:{n + 1}") for n in range(6)]


@pytest.fixture
def start(tiny, tmp_path, data):
    """`start(sampled=True)` → a `Trial` of eight steps with dropout, and the path of its samples."""

    def make(*, sampled, **changes):
        torch.manual_seed(0)
        vlm = load(tiny)
        small = {"total_batch": 3, "per_device_batch": 3, "epochs": 4, "lora_dropout": 0.3, "learning_rate": 0.01}
        chosen = recipe("nano-lora", model=str(tiny), **(small | changes))
        micro_batches = MicroBatches(data, vlm.processor, chosen, plan_run(len(data), chosen)[0])
        training = begin(prepare(vlm, chosen), micro_batches, loss_fn=cross_entropy, device=torch.device("cpu"))
        asked = partial(Samples, path=tmp_path / "samples.jsonl") if sampled else None
        return Trial(training, tmp_path / "run", samples=asked), vlm

    return make


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_four_rows_are_asked_at_the_start_and_after_every_step_of_a_short_run(start, tmp_path):
    start(sampled=True)[0].train()
    lines = read(tmp_path / "samples.jsonl")
    assert [line["step"] for line in lines] == list(range(9))
    assert [answer["where"] for answer in lines[0]["answers"]] == [f"train.jsonl:{n}" for n in (1, 3, 4, 6)]
    assert [answer["truth"] for answer in lines[0]["answers"]] == ["7", "7", "no", "7"]


@pytest.mark.parametrize(("changes", "passes"), [({}, 1), ({"max_seq_length": 100, "per_device_batch": 1}, 4)])
def test_rows_are_asked_together_where_a_bin_holds_them(start, tmp_path, monkeypatch, changes, passes):
    asked = []
    monkeypatch.setattr(samples, "predict_tokens", lambda *given: asked.append(given) or predict_tokens(*given))
    start(sampled=True, **changes)[0].train()
    assert len(asked) == 9 * passes


def test_rows_asked_together_answer_what_they_answer_alone(start, tmp_path):
    """Rows of other answers and lengths, so that none can stand for another."""
    training = start(sampled=True, epochs=30)[0]
    training.train()
    training, found = training.training, []
    for changes in ({}, {"max_seq_length": 100, "per_device_batch": 1}):
        training.micro_batches.recipe = replace(training.micro_batches.recipe, **changes)
        Samples(training, tmp_path / "again.jsonl").write()
        found.append(read(tmp_path / "again.jsonl")[-1]["answers"])
    assert found[0] == found[1] and len({answer["reply"] for answer in found[0]}) > 1


def test_a_reply_is_right_exactly_if_the_greedy_one_is_the_truth(start, tmp_path, data):
    trainer, vlm = start(sampled=True, epochs=30)
    trainer.train()
    trainer.model.eval()
    first, *_, last = read(tmp_path / "samples.jsonl")
    greedy = [vlm.chat("Q", images=data[n].images[0], max_new_tokens=4).text == data[n].answer for n in (0, 2, 3, 5)]
    assert [answer["right"] for answer in last["answers"]] == greedy
    assert not any(answer["right"] for answer in first["answers"]) and any(greedy)


def test_training_is_the_same_to_the_bit_with_and_without(start):
    states = []
    for sampled in (True, False):
        trainer, _ = start(sampled=sampled)
        trainer.train()
        states.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

"""Validation while a run trains: its loss and answers, and the best weights, which become the final ones."""

import json
import math
import os
import shutil
import signal
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from ivlkit.data.collate import normalise_tiles
from ivlkit.data.datasets.opening import open_data
from ivlkit.data.encode import encode
from ivlkit.errors import RecipeError
from ivlkit.evaluation.evaluate import evaluate
from ivlkit.evaluation.metrics import anls, exact_match
from ivlkit.models.load import load
from ivlkit.training import runs as runs_module
from ivlkit.training.functions import find_function, function_name
from ivlkit.training.loop import execute as child_module
from ivlkit.training.loop import validation
from ivlkit.training.loop.validation import find_best
from ivlkit.training.recipes import recipe
from ivlkit.training.run import open_again
from ivlkit.training.runs import describe, execute, train, write_run

SCORES = {}  # step → what `scripted` gives
seen = []


def scripted(reply, truth):
    """A metric that knows which validation it is asked in."""
    seen.append((reply, truth))
    return SCORES[len(seen)]


@pytest.fixture
def script():
    """`script(0.5, 0.7, …)`: the scores of one answer, validation by validation, the one before training first."""
    seen.clear()
    SCORES.clear()
    yield lambda *scores: SCORES.update(enumerate(scores, start=1))


@pytest.fixture
def data(mixed_rows):
    return open_data(mixed_rows)


@pytest.fixture
def chosen(tiny):
    """Six steps of seven rows, twice; validated every other."""
    return recipe("nano-lora", model=str(tiny), total_batch=3, per_device_batch=3, epochs=2, eval_steps=2, save_steps=1)


@pytest.fixture
def here(monkeypatch, tmp_path):
    """`here(run)` trains in this process; `die_at` ends it, as a kill would, once that step was logged."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)

    def run_here(run, *, die_at=None):
        append_step = child_module.append_step

        def log(path, line):
            append_step(path, line)
            if line["step"] == die_at:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(child_module, "append_step", log)
            if die_at is None:
                execute(run.folder)
            else:
                with pytest.raises(KeyboardInterrupt):
                    execute(run.folder)
        return run

    yield run_here
    signal.signal(signal.SIGTERM, handler)


def steps(lines):
    return [line["step"] for line in lines]


def final(run):
    return load_file(run.folder / "final" / "adapter_model.safetensors")


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def loss_alone(vlm, record):
    """(transformers' own mean loss of a row by itself, its trained tokens)."""
    example = encode(record, vlm.processor)
    rows = {name: torch.as_tensor(getattr(example, name))[None] for name in ("input_ids", "labels")}
    if len(example.tiles):
        rows["pixel_values"] = normalise_tiles(torch.as_tensor(example.tiles))
    with torch.no_grad():
        return vlm.model(**rows).loss.item(), int((rows["labels"][:, 1:] != -100).sum())


@pytest.mark.parametrize("packing", [True, False])
def test_the_loss_before_the_first_step_is_the_models_own(chosen, data, here, tiny, packing):
    run = here(write_run(replace(chosen, packing=packing), data, validation=data))
    vlm, total, count = load(tiny), 0.0, 0
    for record in data:
        loss, tokens = loss_alone(vlm, record)
        total, count = total + loss * tokens, count + tokens
    assert run.validation[0]["loss"] == pytest.approx(total / count, rel=1e-5)
    assert steps(run.validation) == [0, 2, 4, 5]
    assert run.validation[-1]["loss"] != run.validation[0]["loss"]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("weighting", ["token", "sample"])
def test_each_row_s_part_of_the_best_loss_is_kept_in_the_order_of_the_data(chosen, data, here, packing, weighting):
    run = here(write_run(replace(chosen, packing=packing, weighting=weighting), data, validation=data))
    best, vlm = find_best(run.folder), load(run.folder)
    alone = [loss_alone(vlm, record) for record in data]
    weights = [tokens if weighting == "token" else 1 for _, tokens in alone]
    parts = [loss * weight * len(data) / sum(weights) for (loss, _), weight in zip(alone, weights, strict=True)]
    assert best["row_losses"] == pytest.approx(parts, rel=1e-4)
    assert sum(best["row_losses"]) / len(data) == pytest.approx(best["loss"], rel=1e-9)


def test_answers_to_the_same_rows_stand_beside_their_truth(chosen, data, here):
    run = here(write_run(replace(chosen, eval_samples=3), data, validation=data, metric=exact_match))
    lines = [json.loads(line) for line in (run.folder / "validation.jsonl").read_text().splitlines()]
    assert lines == run.validation
    for line in lines:
        assert [(each["row"], each["truth"]) for each in line["answers"]] == [(0, "0"), (3, "3"), (6, "6")]
        assert [each["where"] for each in line["answers"]] == [f"train.jsonl:{number}" for number in (1, 4, 7)]
        assert line["score"] == sum(each["right"] for each in line["answers"]) / 3
    # Three answers are too few to choose by. The final weights are the best ones: asked again, they answer as then.
    assert {line["chosen_by"] for line in lines} == {"loss"}
    best = min(lines[1:], key=lambda line: line["loss"])
    report = evaluate(run.load(), data.select([0, 3, 6]), metric="exact_match", progress=False)  # the same batch
    assert [each["reply"] for each in best["answers"]] == [row.reply for row in report.rows]


def test_training_is_the_same_with_and_without_validation(chosen, data, here, tmp_path):
    with_dropout = replace(chosen, lora_dropout=0.3, save_total_limit=9)
    validated = here(write_run(with_dropout, data, tmp_path / "with", validation=data))
    plain = here(write_run(with_dropout, data, tmp_path / "without"))
    assert [line["loss"] for line in validated.history] == [line["loss"] for line in plain.history]
    assert validated.history[0].keys() == plain.history[0].keys()
    assert not validated.samples and not plain.validation  # each shows one table of answers
    assert [line["step"] for line in plain.samples] == list(range(6))
    last = load_file(validated.folder / "checkpoint-5" / "adapter_model.safetensors")
    assert_same_bits(last, final(plain))


def test_the_best_by_loss_becomes_final(chosen, data, here):
    run = here(write_run(replace(chosen, save_total_limit=9), data, validation=data))
    best = min(run.validation[1:], key=lambda line: line["loss"])
    assert_same_bits(final(run), load_file(run.folder / f"checkpoint-{best['step']}" / "adapter_model.safetensors"))
    assert json.loads((run.folder / "final" / "ivlkit.json").read_text())["step"] == best["step"]
    assert [path.name for path in run.folder.glob("best-*")] == [f"best-{best['step']}"]


@pytest.fixture
def one_row_is_enough(monkeypatch):
    """For a metric to choose by."""
    monkeypatch.setattr(validation, "CHOOSING_ROWS", 1)


def test_a_small_run_is_validated_once_an_epoch(chosen, data, here):
    """Seven rows in steps of four, two epochs."""
    run = here(write_run(replace(chosen, total_batch=4, epochs=2, save_steps=200), data, validation=data))
    assert steps(run.validation) == [0, 2, 4]


def test_a_long_truth_gets_room_for_its_reply(chosen, write_rows, turns, here, processor, monkeypatch):
    long = open_data(write_rows([{"conversations": turns("Q", "seven " * 80)}], "long.jsonl"))
    reply_batch, limits = validation.reply_batch, set()

    def remember(*arguments, max_new_tokens, **options):
        limits.add(max_new_tokens)
        return reply_batch(*arguments, max_new_tokens=max_new_tokens, **options)

    monkeypatch.setattr(validation, "reply_batch", remember)
    here(write_run(replace(chosen, total_batch=1, per_device_batch=1, epochs=1), long, validation=long))
    assert limits == {len(processor.tokenizer("seven " * 79 + "seven")["input_ids"]) + 8}


def test_the_best_by_a_metric_is_kept_and_patience_ends_the_run(chosen, data, here, script, one_row_is_enough):
    script(0.9, 0.2, 0.8, 0.8, 0.1, 1.0)  # steps 0 (not trained), 1 to 5
    patient = replace(chosen, eval_steps=1, eval_samples=1, patience=2, save_total_limit=9)
    run = here(write_run(patient, data, validation=data, metric=scripted))
    assert steps(run.history) == [1, 2, 3, 4]
    assert [line["score"] for line in run.validation] == [0.9, 0.2, 0.8, 0.8, 0.1]
    assert run.state == "finished"
    assert_same_bits(final(run), load_file(run.folder / "checkpoint-2" / "adapter_model.safetensors"))
    assert run.notices == [run.notices[0]]
    assert run.notices[0].startswith("the final weights are the best, of step 2: loss ")
    assert run.notices[0].endswith(", score 0.8000 in validation; ended at 4")


def test_a_score_that_is_no_number_is_never_the_best(chosen, data, here, script, one_row_is_enough):
    script(0.1, math.nan, 0.2, 0.3, math.nan, 0.1)
    changes = {"eval_steps": 1, "eval_samples": 1, "save_total_limit": 9}
    run = here(write_run(replace(chosen, **changes), data, validation=data, metric=scripted))
    assert find_best(run.folder)["step"] == 3
    assert_same_bits(final(run), load_file(run.folder / "checkpoint-3" / "adapter_model.safetensors"))


@pytest.mark.parametrize("die_at", [1, 2, 3, 4])
def test_a_run_that_died_validates_and_gives_up_as_if_it_had_not(chosen, data, here, tmp_path, die_at):
    """The rate is too high, so that it gives up: after the fourth step at the earliest."""
    impatient = replace(chosen, eval_steps=1, patience=3, save_steps=2, learning_rate=0.05, lora_dropout=0.2)
    whole = here(write_run(impatient, data, tmp_path / "whole", validation=data))
    run = here(write_run(impatient, data, tmp_path / "run", validation=data), die_at=die_at)
    here(run)
    assert run.state == "finished"
    assert steps(run.history) == steps(whole.history)
    told = [[{**line, "seconds": 0} for line in one.validation] for one in (whole, run)]
    assert told[0] == told[1]
    assert_same_bits(final(run), final(whole))


def test_a_damaged_best_is_not_taken_for_one(chosen, data, here):
    run = here(write_run(chosen, data, validation=data))
    best = find_best(run.folder)["path"]
    content = bytearray((best / "adapter_model.safetensors").read_bytes())
    content[-1] ^= 1
    (best / "adapter_model.safetensors").write_bytes(content)
    shutil.rmtree(run.folder / "final")
    here(run)
    damage = "adapter_model.safetensors is not as it was written"
    assert run.notices[-1] == f"the best weights can't be taken: {damage}; the final ones are those of step 5"
    assert json.loads((run.folder / "final" / "ivlkit.json").read_text())["step"] == 5


# what is asked of a run ----------------------------------------------------------------------------------------------


def test_the_validation_split_of_a_meta_file_is_found(mixed_rows, chosen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs_module, "_start", lambda run: None)
    entry = {"root": str(tmp_path), "annotation": str(mixed_rows)}
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps({"a": entry, "b": entry | {"split": "validation", "repeat_time": 0.5}}))
    run = train(chosen, meta)
    assert (run.spec["validation"]["split"], run.spec["validation"]["rows"]) == ("validation", 4)
    part = open_data(mixed_rows).select([1, 2])
    other = train(chosen, meta, validation=part, metric=exact_match)
    assert other.folder != run.folder
    assert other.spec["metric"] == "ivlkit.evaluation.metrics:exact_match"
    assert [record.where for record in open_again(other, "validation")] == [one.where for one in part]
    assert "validation" not in train(chosen, mixed_rows).spec
    with pytest.raises(RecipeError, match="holds a run of another recipe or other data"):
        train(chosen, meta, folder=other.folder)


def test_of_a_meta_file_that_is_given_its_validation_split_is_taken(mixed_rows, chosen, tmp_path, monkeypatch):
    """The one that is trained on, above all: its training rows would choose the best weights."""
    monkeypatch.chdir(tmp_path)
    entry = {"root": str(tmp_path), "annotation": str(mixed_rows)}
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps({"a": entry, "b": entry | {"split": "validation", "repeat_time": 0.5}}))
    for given in (meta, str(meta), tmp_path):  # a folder that holds a meta.json is that meta file
        spec = describe(chosen, mixed_rows, validation=given).spec["validation"]
        assert (spec["split"], spec["rows"]) == ("validation", 4)
    assert "split" not in describe(chosen, mixed_rows, validation=open_data(meta)).spec["validation"]
    meta.write_text(json.dumps({"a": entry}))
    assert describe(chosen, mixed_rows, validation=meta).spec["validation"]["rows"] == 7


def test_patience_or_a_metric_without_validation_data_is_refused(chosen, mixed_rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for changes, options in (({"patience": 2}, {}), ({}, {"metric": exact_match})):
        with pytest.raises(RecipeError, match="a metric or patience, and no validation data; give validation="):
            train(replace(chosen, **changes), mixed_rows, **options)
    assert not os.path.exists("runs")


def test_a_metric_is_named_as_in_an_evaluation(mixed_rows, chosen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = describe(chosen, mixed_rows, validation=mixed_rows, metric="anls")
    assert named.spec["metric"] == "ivlkit.evaluation.metrics:anls"
    assert named.folder == describe(chosen, mixed_rows, validation=mixed_rows, metric=anls).folder
    with pytest.raises(RecipeError, match="metric='anlz'; expected one of exact_match, .*, or module:function"):
        describe(chosen, mixed_rows, validation=mixed_rows, metric="anlz")


def test_a_metric_is_found_again_by_its_name():
    assert find_function(function_name(exact_match)) is exact_match
    assert find_function(function_name(scripted)) is sys.modules[__name__].scripted
    for unfindable in (lambda reply, truth: 1.0, exact_match.__get__(1), "exact_match"):
        with pytest.raises(RecipeError, match="by the process that trains|can't be imported"):
            function_name(unfindable)
    for name in ("exact_match", "no.such.module:f", "ivlkit.evaluation.metrics:nothing"):
        with pytest.raises(RecipeError, match="can't be imported .*; expected module:function"):
            find_function(name)

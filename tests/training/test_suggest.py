"""What `suggest` chooses for a card and for rows, says of it, and never touches."""

import json
import os
from types import SimpleNamespace

import pytest

from ivlkit.data.datasets.opening import open_data
from ivlkit.errors import RecipeError
from ivlkit.training.estimate import planner
from ivlkit.training.estimate import suggest as suggest_module
from ivlkit.training.estimate.suggest import suggest
from ivlkit.training.recipes import recipe
from ivlkit.training.runs import describe


@pytest.fixture
def rows(write_rows, turns, draw_picture, tmp_path):
    """`rows(60)` → a data set of so many rows about one picture of 640 × 480 px."""
    draw_picture(640, 480).save(tmp_path / "a.png")

    def write(count):
        return open_data(write_rows([{"image": "a.png", "conversations": turns("Q", "A")}] * count, f"{count}.jsonl"))

    return write


@pytest.fixture
def to(tmp_path):
    return {"folder": tmp_path / "suggested"}


@pytest.mark.parametrize(
    ("count", "epochs", "updates"), [(60, 10, 75), (300, 4, 150), (3000, 3, 1125), (100_000, 3, 37_500)]
)
@pytest.mark.parametrize(("key", "rate"), [("2b", 2e-4), ("4b", 2e-4), ("26b", 1e-4)])
def test_the_rows_decide_how_long_and_the_model_how_fast(key, rate, count, epochs, updates):
    fields, reasons = suggest_module._for_rows(key, count, {})
    assert (fields["learning_rate"], fields["total_batch"], fields["epochs"]) == (rate, 8, epochs)
    assert fields["warmup_ratio"] == 0.1
    assert f"{updates:,} updates; each of {count:,} rows is seen {epochs} times" in reasons[1]
    assert ("label more rows" in reasons[1]) == (updates < 150)
    assert all("published practice, not measured here" in line for line in reasons[:3])


def test_what_was_decided_already_is_said_as_it_was_decided():
    fixed = {"warmup_ratio": 0.2, "lora_rank": 8, "vision": "lora"}
    assert suggest_module._for_rows("2b", 100, fixed)[1][2:] == [
        "warm-up over 20% of them",
        "LoRA of rank 8, α 32, vision tower lora",
    ]
    assert suggest_module._for_rows("2b", 100, {"language": "full"})[1][3] == "no adapters, vision tower frozen"
    fixed = {"gpus": 2, "vision_offload": True}  # which ZeRO, as released, does not take
    assert suggest_module._for_rows("2b", 100, fixed)[1][3].endswith("as 2b-lora")
    assert suggest_module._for_rows("2b", 100, {})[1][3].endswith("vision tower frozen: as 2b-lora")


def test_a_batch_that_was_decided_is_not_called_the_largest(rows, to):
    found = suggest("2b", rows(60), gpu_gib=80, bin_tokens=5000, **to)
    assert "bins of 5,000 tokens" in found.reasons
    assert "padded batches of 2 rows" in suggest("nano", rows(60), gpu_gib=8, per_device_batch=2, **to).reasons


WAYS = {  # GiB → recomputation, tokens of a bin, language, tower on the host
    ("2b", 8): ("full", 4096, "lora", False),
    ("2b", 22): ("none", 4096, "lora", False),
    ("2b", 80): ("none", 16384, "lora", False),
    ("4b", 8): ("full", 4096, "qlora", False),
    ("26b", 22): ("full", 4096, "qlora", True),
}


@pytest.mark.parametrize(("key", "gib"), WAYS)
def test_the_card_decides_how_it_computes_and_not_what_it_sees(key, gib, rows, to):
    found, released = suggest(key, rows(300), gpu_gib=gib, **to), recipe(f"{key}-lora")
    names = ("gradient_checkpointing", "bin_tokens", "language", "vision_offload")
    assert tuple(getattr(found, name) for name in names) == WAYS[key, gib]
    for name in ("max_tiles", "max_seq_length", "lora_rank", "lora_alpha", "vision", "projector", "model", "gpus"):
        assert getattr(found, name) == getattr(released, name)
    assert planner.plan(found, gpu_gib=gib).fits
    assert f"{gib}.0 GiB free" in found.reasons[0] and "GiB" not in found.reasons[1]


def test_where_only_fewer_tiles_fit_it_stops_with_a_row_and_the_line_to_write(rows, to):
    said = r"nothing fits with the model's own tiles; 1 a picture would, .* 300.jsonl:1, 640 × 480 px, becomes 1 × 1 "
    with pytest.raises(RecipeError, match=said) as refused:
        suggest("26b", rows(300), gpu_gib=16, **to)
    line = str(refused.value).partition("write ")[2]
    assert line == "ivlkit.suggest('26b', data, max_tiles=1, max_seq_length=768)"
    asked = suggest("26b", rows(300), gpu_gib=16, max_tiles=1, max_seq_length=768, **to)
    assert (asked.max_tiles, asked.bin_tokens) == (1, 768)
    with pytest.raises(RecipeError, match="nothing fits; expected more memory"):
        suggest("26b", rows(300), gpu_gib=8, **to)


def test_the_same_call_gives_the_same_recipe_whatever_is_free_by_then(rows, to, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    free = SimpleNamespace(name="A", device_type="cuda", card=None, free_gib=20.0, holders=(), bf16=True, is_named=True)
    monkeypatch.setattr(suggest_module, "find_place", lambda *_: free)
    data = rows(30)
    first = suggest(str(tiny), data, **to)
    free.free_gib = 0.001
    again = suggest(str(tiny), data, **to)
    assert again == first and "remove it to choose anew" in again.reasons[-1]
    assert describe(first, data).folder == describe(again, data).folder
    with pytest.raises(RecipeError, match="nothing fits"):
        suggest(str(tiny), rows(31), **to)


def test_what_is_given_stays(rows, to):
    found = suggest("2b", rows(300), gpu_gib=80, epochs=2, bin_tokens=8192, learning_rate=1e-5, **to)
    assert (found.epochs, found.bin_tokens, found.learning_rate) == (2, 8192, 1e-5)
    assert "each of 300 rows is seen 2 times" in " ".join(found.reasons) and "learning_rate 1e-05" in found.reasons
    with pytest.raises(RecipeError, match="unknown field 'epoch'; .*did you mean 'epochs'"):
        suggest("2b", rows(300), gpu_gib=80, epoch=2, **to)


def test_a_kept_choice_that_cannot_be_read_is_made_anew(rows, to):
    first = suggest("nano", rows(300), **to)
    (kept,) = to["folder"].glob("*.yaml")
    for broken in ("recipe: {name: x, fields: y}", "{", "", "recipe: 3"):
        kept.write_text(broken)
        assert suggest("nano", rows(300), **to) == first


def test_nano_keeps_what_was_measured(rows, to):
    found, own = suggest("nano", rows(300), **to), recipe("nano-lora")
    assert (found.learning_rate, found.total_batch, found.vision, found.packing) == (
        *(own.learning_rate, own.total_batch, own.vision, own.packing),
    )
    assert "measured on handwriting" in " ".join(found.reasons)


def test_memory_of_own_runs_counts_as_free(tmp_path, monkeypatch):
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1, "memory_gib": 5.0}) + "\n")
    command = ["python", "-m", "ivlkit", "train", str(tmp_path / "run.yaml")]
    others = [(7, command), (8, ["python", "-m", "x"]), (os.getpid(), command)]  # a run that looks leaves itself out
    found = [SimpleNamespace(pid=pid, info={"cmdline": line}) for pid, line in others]
    monkeypatch.setattr(planner.psutil, "process_iter", lambda _: found)
    monkeypatch.setattr(planner, "gpu_processes", lambda: [(7, "python", 6.5), (8, "python", 3.0)])
    assert planner.held_by_runs() == 6.5
    monkeypatch.setattr(planner, "gpu_processes", lambda: [])  # a container shows no processes: by the log
    assert planner.held_by_runs() == 5.0 + planner.CONTEXT_GIB
    monkeypatch.setattr(planner.psutil, "process_iter", lambda _: [])
    assert planner.held_by_runs() == 0.0


def test_it_shows_its_reasons(rows, to):
    shown = suggest("nano", rows(300), **to)._repr_html_()
    assert "<li>this machine: " in shown and "learning_rate" in shown
    assert "<li>" not in recipe("nano-lora")._repr_html_()

"""A run is asked beside what it began with, on one set of weights where it trained an adapter."""

import gc
import json

import pytest
import torch
import yaml

from ivlkit.errors import TrainingError
from ivlkit.models.load import load
from ivlkit.models.vlm import alive
from ivlkit.training.checkpoints import save_trained
from ivlkit.training.recipes import recipe
from ivlkit.training.run import Run
from ivlkit.training.tuning import prepare

ADAPTER = {"vision": "lora", "projector": "full", "language": "lora"}
FULL = {"vision": "full", "projector": "full", "language": "full"}


@pytest.fixture(autouse=True)
def short_replies(monkeypatch):
    """Untrained models say all that they may."""
    monkeypatch.setattr("ivlkit.models.chat.MAX_NEW_TOKENS", 8)


@pytest.fixture
def make_run(tiny, tmp_path):
    """`make_run(ADAPTER)` → a finished run with a checkpoint, each with weights of its own."""

    def make(parts):
        settings = recipe("nano-lora" if parts is ADAPTER else "nano-full", model=str(tiny), **parts)
        for seed, name in enumerate(("checkpoint-3", "final")):
            folder = tmp_path / name
            folder.mkdir()
            model = prepare(load(tiny), settings)
            torch.manual_seed(seed)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(0.2 * torch.randn_like(parameter))
            save_trained(model, folder)
            (folder / "ivlkit.json").write_text(json.dumps({"base": str(tiny), "max_tiles": 2}))
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({"recipe": settings.to_dict(), "data": {}, "versions": {}}))
        return Run(tmp_path)

    return make


@pytest.mark.parametrize("parts", [ADAPTER, FULL], ids=["adapter", "full"])
def test_base_checkpoint_and_run_answer_as_each_does_alone(make_run, tiny, draw_picture, parts):
    run, picture, question = make_run(parts), draw_picture(), "What number?"
    answers = run.ask(question, picture, checkpoints=True).answers
    alone = {"base": tiny, "checkpoint-3": run.folder / "checkpoint-3", "trained": run.folder / "final"}
    assert answers == {
        name: load(folder).chat(question, images=picture, max_tiles=2).text for name, folder in alone.items()
    }
    assert len(set(answers.values())) == 3
    short = run.ask(question, picture, max_new_tokens=2).answers["trained"]
    assert short == load(run.folder / "final").chat(question, images=picture, max_tiles=2, max_new_tokens=2).text
    assert short != answers["trained"]


@pytest.mark.parametrize(("parts", "models"), [(ADAPTER, 1), (FULL, 2)], ids=["adapter", "full"])
def test_an_adapter_needs_one_model_and_whole_weights_two(make_run, parts, models):
    run = make_run(parts)
    gc.collect()
    before = {id(vlm.model) for vlm in alive}
    live = run.ask("What?")
    gc.collect()
    assert len({id(vlm.model) for vlm in alive} - before) == models
    assert ("two models are in memory" in live.to_html()) == (models == 2)


def test_the_answers_stand_beside_each_other_in_what_is_left(make_run, draw_picture):
    html = make_run(ADAPTER).ask("<script>What?", draw_picture()).to_html()
    assert html.count("<img") == 1 and "<script>" not in html
    assert html.index(">base<") < html.index(">trained<")


def test_the_button_asks_the_run_again(make_run, draw_picture):
    pytest.importorskip("ipywidgets")
    live = make_run(ADAPTER).ask()
    assert live.answers == {"base": "", "trained": ""}
    live.redraw = lambda: None
    live.controls[1].value = "What number?"
    live.controls[2].click()
    assert all(live.answers.values())


def test_a_run_that_is_not_finished_is_not_asked(make_run):
    run = make_run(ADAPTER)
    (run.folder / "final").rename(run.folder / "elsewhere")
    with pytest.raises(TrainingError, match="stopped, not finished; expected a finished run"):
        run.ask("What?")

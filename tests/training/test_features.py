"""Features that are kept change no bit of a run, spare its tower, and take no more disk than they may."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from trial import Trial

from ivlkit.data.datasets.opening import open_data
from ivlkit.errors import RecipeError
from ivlkit.models.load import load
from ivlkit.training.estimate.footprint import features_bytes
from ivlkit.training.loop import execute as child
from ivlkit.training.loop.build import build_training
from ivlkit.training.loop.features import KeptFeatures
from ivlkit.training.loop.train import weigh
from ivlkit.training.recipes import recipe
from ivlkit.training.run import FEATURES
from ivlkit.training.runs import describe, execute, write_run

GIB = 2**30
TILES = 10  # of the seven rows: four of one tile, two of three and one of none; no two alike
FILE_BYTES = 4 * 16 * 32 + 80  # of a tile of the tiny model: float32 and safetensors' header
KEEP = {"keep_features": 1.0}


@pytest.fixture
def chosen(tiny):
    """Six steps of seven rows, twice, with dropout."""
    return recipe(
        "nano-lora",
        **{"model": str(tiny), "vision": "frozen", "lora_dropout": 0.1, "packing": True, "bin_tokens": 140},
        **{
            "max_seq_length": 100,
            "total_batch": 3,
            "per_device_batch": 3,
            "epochs": 2,
            "eval_steps": 2,
            "save_steps": 1,
        },
    )


@pytest.fixture
def data(mixed_rows):
    return open_data(mixed_rows)


@pytest.fixture
def start(chosen, data, tmp_path):
    """`start("run", **recipe changes)` → a `Trial` and the numbers of tiles that its tower has seen, call by call."""

    def make(name="run", **changes):
        one = replace(chosen, **KEEP | changes)
        vlm = load(one.model)
        trial = Trial(build_training(vlm, vlm.processor, one, data)[0], tmp_path / name)
        seen = []
        vlm.model.model.vision_tower.embeddings.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        return trial, seen

    return make


def kept(trial):
    return KeptFeatures(trial.training, trial.folder / FEATURES, say=print)


def files(folder):
    return sorted((folder / FEATURES).iterdir())


def numbers(run):
    """All that a run wrote down of what it computed, and its weights."""
    lines = [(line["loss"], line["grad_norm"]) for line in run.history]
    lines += [(line["loss"], line["answers"]) for line in run.validation]
    (weights,) = (run.folder / "final").glob("*.safetensors")
    return lines, {name: value.tolist() for name, value in load_file(weights).items()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"projector": "full", "gradient_checkpointing": "full"},
        {"projector": "full", "language": "frozen", "packing": False},
        {"workers": 2},
    ],
    ids=["bins", "the projector trains", "it alone, padded", "workers"],
)
def test_every_epoch_has_the_bits_of_a_run_that_keeps_nothing(chosen, data, tmp_path, changes):
    """Two rows are validated before the first step: some tiles of the first epoch are kept, others are not."""
    runs, some = [], data.select([1, 4])
    for gib in (0.0, 1.0):
        run = write_run(replace(chosen, **changes, keep_features=gib), data, tmp_path / str(gib), validation=some)
        execute(run.folder)
        runs.append(run)
    off, on = map(numbers, runs)
    assert len(runs[0].history) == 5 and off == on
    assert not (runs[1].folder / FEATURES).exists()


@pytest.mark.parametrize("projector", ["frozen", "full"])
def test_the_tower_sees_each_tile_once(start, projector):
    """Nor a blank one: the row of text alone shares a bin."""
    trial, seen = start(projector=projector, total_batch=7, epochs=3)
    counts = []
    trial.watchers.append(lambda: counts.append(sum(seen)))
    trial.train()
    assert counts == [TILES] * 3
    assert len(files(trial.folder)) == TILES
    tiles = [load_file(path)["features"] for path in files(trial.folder)]
    assert {tuple(tile.shape) for tile in tiles} == {(16, 32 if projector == "frozen" else 4 * 24)}
    one, config = trial.training.recipe, trial.model.config
    assert features_bytes(config, one, tiles=TILES, device_type="cpu") == sum(tile.nbytes for tile in tiles)


def test_a_run_that_was_killed_goes_on_to_the_same_bits_and_with_what_it_kept(chosen, data, tmp_path, monkeypatch):
    whole, killed = (
        write_run(replace(chosen, **KEEP), data, tmp_path / name, validation=data) for name in ("whole", "killed")
    )
    execute(whole.folder)
    append_step = child.append_step

    def die(path, line):
        append_step(path, line)
        if line["step"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(child, "append_step", die)
        execute(killed.folder)
    assert len(files(killed.folder)) == TILES
    monkeypatch.setattr(KeptFeatures, "write", lambda self: self.waiting and pytest.fail("a tile was seen again"))
    execute(killed.folder)
    assert numbers(killed) == numbers(whole)


def test_no_more_is_kept_than_there_is_room_for_which_is_said_once(chosen, data, tmp_path):
    """Room for five tiles and a half."""
    room = 5.5 * FILE_BYTES
    off, on = (write_run(replace(chosen, keep_features=gib), data, tmp_path / str(gib)) for gib in (0.0, room / GIB))
    execute(off.folder)
    sizes, remove = [], shutil.rmtree

    def measure(folder, **options):
        sizes.extend(path.stat().st_size for path in folder.glob("*") if folder.name == FEATURES)
        remove(folder, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", measure)
        execute(on.folder)
    assert len(sizes) == 5 and room - FILE_BYTES < sum(sizes) <= room
    (said,) = (line for line in on.notices if "keep_features" in line)
    assert said.endswith("GiB are full; other tiles go through the tower every epoch")
    assert [line["loss"] for line in on.history] == [line["loss"] for line in off.history]


def test_ranks_share_the_room_and_what_is_there_counts(start):
    trial, _ = start(keep_features=100 / GIB)
    trial.train_dataset.recipe = replace(trial.train_dataset.recipe, gpus=2)
    (trial.folder / FEATURES).mkdir(parents=True)
    (trial.folder / FEATURES / "earlier").write_bytes(bytes(40))
    assert kept(trial).room_bytes == 30


def name_of_blank(trial):
    """Of the file of a tile of zeros."""
    batch = {"tiles": torch.zeros(1, 112, 112, 3, dtype=torch.uint8)}
    return kept(trial).look_up(batch)["missing"][0].rpartition("/")[2]


def test_another_tower_or_precision_finds_nothing(start, monkeypatch):
    """A value of a weight, its type, a projector that trains, what products are made in: each gives other names."""
    trial, _ = start()
    names = [name_of_blank(trial)]
    tower = trial.model.get_base_model().model.vision_tower
    with torch.no_grad():
        tower.encoder.layer[1].mlp.fc2.weight[3, 5] += 1e-3
    names.append(name_of_blank(trial))
    tower.to(torch.bfloat16)
    names += [name_of_blank(trial), name_of_blank(start(projector="full")[0])]
    assert name_of_blank(trial) == names[2]
    monkeypatch.setattr(type(trial.accelerator), "mixed_precision", "bf16")
    names.append(name_of_blank(trial))
    assert len(set(names)) == 5


def test_quantised_towers_find_nothing_of_others(start):
    """Nano's own sizes: a matrix of the tiny model has other sides than multiples of 16."""
    names = [name_of_blank(start(weights, model="nano", weights=weights)[0]) for weights in ("bf16", "float8")]
    assert len(set(names)) == 2


@pytest.mark.parametrize("content", [b"", bytes(FILE_BYTES)], ids=["empty", "zeros"])
def test_a_file_that_is_cut_off_is_seen_again_in_its_place_among_the_others(start, content):
    trial, _ = start(epochs=1, total_batch=7)
    numbers = range(len(trial.train_dataset))
    model = trial.model.eval()
    expected = [trial.compute_loss(model, trial.train_dataset[number], 1).item() for number in numbers]
    trial.train()
    cut = files(trial.folder)[::2]
    for path in cut:
        path.write_bytes(content)
    again, _ = start(epochs=1, total_batch=7)
    again.train_dataset.kept = kept(again)
    batches = [again.train_dataset[number] for number in numbers]
    assert sorted(path for batch in batches for path in batch.get("missing", ())) == [str(path) for path in cut]
    assert any(batch["places"].tolist() != sorted(batch["places"]) for batch in batches if "places" in batch)
    assert [again.compute_loss(again.model.eval(), batch, 1).item() for batch in batches] == expected


def test_ranks_call_the_tower_as_long_as_one_of_them_has_a_tile_to_see(start, monkeypatch):
    """Under ZeRO-3 each call fetches its weights from all ranks: one that needs none makes it on a blank tile."""
    trial, seen = start(epochs=1, total_batch=7)
    trial.train()
    batch = next(
        one for one in map(trial.train_dataset.__getitem__, range(len(trial.train_dataset))) if "places" in one
    )
    seen.clear()
    weigh(trial.training, [batch])
    alone = trial.compute_loss(trial.model.eval(), batch, 1)
    assert batch["tower_calls"] == 0 and seen == []
    other = torch.tensor([[5.0, 1.0, 1.0]])  # W; tiles and positions of another rank's micro-batch
    monkeypatch.setattr(type(trial.accelerator), "num_processes", property(lambda _: 2))
    monkeypatch.setattr(trial.accelerator, "gather", lambda own: torch.cat([own, other]))
    weigh(trial.training, [batch])
    assert trial.compute_loss(trial.model, batch, 1) == alone
    assert batch["tower_calls"] == 1 and seen == [1]


@pytest.mark.parametrize(
    "changes",
    [{"vision": "lora"}, {"vision": "full", "language": "full"}, {"unfreeze_vit_layers": -1, "language": "full"}],
)
def test_a_tower_that_trains_is_refused(chosen, changes):
    with pytest.raises(RecipeError, match="keep_features=1.0 with a vision tower that trains, .*; set keep_features=0"):
        replace(chosen, **KEEP | changes)


def test_pictures_that_are_changed_every_epoch_are_refused(chosen, data, tmp_path):
    entry = {"root": str(data.path.parent), "annotation": data.path.name, "data_augment": True, "length": 7}
    (tmp_path / "meta.json").write_text(json.dumps({"drawn": entry}))
    with pytest.raises(RecipeError, match="keep_features=1.0 with data_augment of drawn, .*; set keep_features=0, or"):
        describe(replace(chosen, **KEEP), tmp_path / "meta.json", folder=tmp_path / "run")
    describe(chosen, tmp_path / "meta.json", folder=tmp_path / "run")

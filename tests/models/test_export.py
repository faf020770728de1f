"""A run's model as a folder of its own: complete, proven, or not there."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ivlkit.data.collate import normalise_tiles
from ivlkit.errors import CheckpointError, ExportError
from ivlkit.models import export as export_module
from ivlkit.models.export import export, save_released
from ivlkit.models.load import load
from ivlkit.training.recipes import recipe
from ivlkit.training.trainer import save_trained
from ivlkit.training.tuning import prepare


@torch.inference_mode()
def logits(vlm):
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randint(0, 256, (1, 112, 112, 3), dtype=torch.uint8, generator=generator)
    input_ids = torch.randint(3, 1000, (1, 24), generator=generator)
    input_ids[0, 4:20] = vlm.processor.token_id("<IMG_CONTEXT>")
    return vlm.model(input_ids=input_ids, pixel_values=normalise_tiles(tiles)).logits


def write_trained(tiny, folder, **changes):
    """What a run leaves in `final/`, its weights moved away from the base's by random numbers."""
    vlm = load(tiny)
    model = prepare(vlm, recipe("nano-lora", model=str(tiny), **changes))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    folder.mkdir()
    save_trained(model, folder)
    (folder / "ivlkit.json").write_text(json.dumps({"base": str(tiny), "template": "internlm2-chat"}))
    return folder


FULL = {"vision": "full", "projector": "full", "language": "full"}
KINDS = {"lora": {}, "lora and projector": {"projector": "full"}, "full": FULL}


@pytest.fixture(params=KINDS)
def trained(request, tiny, tmp_path):
    return write_trained(tiny, tmp_path / "final", **KINDS[request.param])


def test_an_export_is_the_trained_model_in_the_released_layout(trained, tiny, tmp_path):
    before = load(trained)
    assert not torch.allclose(logits(before), logits(load(tiny)), atol=1e-2)
    assert export(trained, tmp_path / "merged") == tmp_path / "merged"
    after = load(tmp_path / "merged")
    # The file is bfloat16: equal to the trained weights rounded once, and near to the trained model.
    before.merge_adapter()
    before.model.to(torch.bfloat16).float()
    torch.testing.assert_close(logits(after), logits(before), atol=1e-4, rtol=1e-4)
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert names == {path.name for path in tiny.iterdir()}
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == load_file(tiny / "model.safetensors").keys()


def test_an_export_in_float32_has_equal_logits(tiny, tmp_path, tiny_config):
    base = shutil.copytree(tiny, tmp_path / "base")
    (base / "config.json").write_text(json.dumps(tiny_config | {"torch_dtype": "float32"}))
    trained = write_trained(base, tmp_path / "final")
    export(trained, tmp_path / "merged")
    torch.testing.assert_close(logits(load(tmp_path / "merged")), logits(load(trained)), atol=1e-4, rtol=1e-4)


def test_a_released_folder_can_be_exported_too(tiny, tmp_path):
    export(tiny, tmp_path / "copy")
    before, after = load_file(tiny / "model.safetensors"), load_file(tmp_path / "copy" / "model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_record_of_a_download_is_not_copied_to_other_weights(tiny, tmp_path):
    source = shutil.copytree(tiny, tmp_path / "source")
    (source / "download.json").write_text("{}")
    save_released(load(source), tmp_path / "exported")
    assert not (tmp_path / "exported" / "download.json").exists()


def test_an_existing_target_is_refused_and_left_alone(tiny, tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine").write_text("mine")
    with pytest.raises(ExportError, match="merged: exists already; expected a new folder; remove it or choose another"):
        export(tiny, tmp_path / "merged")
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["mine"]


def test_a_layout_that_is_not_known_is_refused(tiny, tmp_path):
    with pytest.raises(ExportError, match="layout 'gguf'; expected 'released'"):
        export(tiny, tmp_path / "merged", layout="gguf")


def test_an_export_that_reloads_differently_is_refused_and_nothing_is_left(tiny, tmp_path, monkeypatch):
    def spoil(vlm, folder):
        save_released(vlm, folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["language_model.output.weight"] *= 1.5
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(export_module, "save_released", spoil)
    with pytest.raises(ExportError, match="reloading the export changed logits by .*; nothing was written"):
        export(tiny, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_a_loaded_model_with_changed_weights_exports_these_and_stays_as_it_is(tiny, tmp_path):
    vlm = load(tiny)
    with torch.no_grad():
        vlm.model.lm_head.weight.mul_(2)
    wanted = logits(vlm)
    export(vlm, tmp_path / "copy")
    torch.testing.assert_close(logits(load(tmp_path / "copy")), wanted)
    assert torch.equal(logits(vlm), wanted)


def test_large_weights_are_written_in_shards_that_load(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "SHARD_BYTES", 60_000)
    save_released(load(tiny), tmp_path / "again")
    files = sorted((tmp_path / "again").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "again" / "model.safetensors.index.json").read_text())
    before = load_file(tiny / "model.safetensors")
    assert index["weight_map"].keys() == before.keys()
    assert index["metadata"]["total_size"] == sum(tensor.numel() * 2 for tensor in before.values())
    after = {key: tensor for file in files for key, tensor in load_file(file).items()}
    assert all(torch.equal(before[key], after[key]) for key in before)
    load(tmp_path / "again")


# adapters ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tiny, tmp_path):
    return write_trained(tiny, tmp_path / "final", projector="full")


def test_an_adapter_folder_holds_what_is_needed_to_load_it_again(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (16, 32, 0.05)
    assert "q_proj" in config["target_modules"]
    assert config["modules_to_save"] == ["multi_modal_projector"]
    keys = load_file(adapter / "adapter_model.safetensors").keys()
    assert all("lora_" in key or "multi_modal_projector" in key for key in keys)
    assert not list(adapter.glob("*.bin"))


def test_an_adapter_is_loaded_in_eval_mode_and_merging_it_changes_no_logits(adapter):
    vlm = load(adapter)
    assert not any(module.training for module in vlm.adapter.modules())
    before = logits(vlm)
    vlm.merge_adapter()
    assert vlm.adapter is None
    torch.testing.assert_close(logits(vlm), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(min(tensors)), "tensor .* is missing; expected shape"),
        (
            lambda tensors: tensors.update(surprise=torch.zeros(1)),
            "unexpected tensor surprise; its adapter_config.json describes",
        ),
    ],
)
def test_an_adapter_with_other_tensors_is_refused(adapter, change, message):
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        load(adapter)


def test_a_truncated_adapter_is_refused(adapter):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: not a whole safetensors file"):
        load(adapter)


def test_an_adapter_without_its_safetensors_file_is_refused(adapter):
    """A pickle beside it is not opened, and no server is asked."""
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(b"never opened")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: missing"):
        load(adapter)


def test_an_adapter_whose_base_is_gone_is_refused(adapter):
    (adapter / "ivlkit.json").write_text(json.dumps({"base": str(adapter / "gone")}))
    with pytest.raises(CheckpointError, match="gone: no such folder"):
        load(adapter)

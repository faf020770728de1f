"""A run's model as a folder of its own: complete, proven, or not there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from ivlkit.cli import main
from ivlkit.data.collate import normalise_tiles
from ivlkit.errors import CheckpointError, ExportError
from ivlkit.models.export import export as export_module
from ivlkit.models.export import proof
from ivlkit.models.export.export import describe_base, export, push_to_hub, save_released, write_released
from ivlkit.models.export.lazy_weights import open_source
from ivlkit.models.families import FAMILIES
from ivlkit.models.layouts import safetensors_files as shards
from ivlkit.models.load import ORIGIN_FILE, load
from ivlkit.training.checkpoints import save_trained
from ivlkit.training.recipes import recipe
from ivlkit.training.tuning import prepare


@torch.inference_mode()
def logits(vlm):
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randint(0, 256, (1, 112, 112, 3), dtype=torch.uint8, generator=generator)
    input_ids = torch.randint(3, 1000, (1, 24), generator=generator)
    input_ids[0, 4:20] = vlm.processor.token_id("<IMG_CONTEXT>")
    return vlm.model(input_ids=input_ids, pixel_values=normalise_tiles(tiles)).logits


def write_trained(tiny, folder, *, system_message=None, **changes):
    """What a run leaves in `final/`, its weights moved away from the base's by random numbers."""
    vlm = load(tiny)
    vlm.merge_adapter()
    model = prepare(vlm, recipe("nano-lora", model=str(tiny), **changes))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    folder.mkdir(parents=True)
    save_trained(model, folder)
    origin = {"base": str(tiny), "template": "internlm2-chat", "max_tiles": changes.get("max_tiles")}
    origin |= {"system_message": system_message} if system_message else {}
    (folder / "ivlkit.json").write_text(json.dumps(origin))
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
    assert names == {path.name for path in tiny.iterdir()} | {"README.md", "chat_template.jinja", "lmdeploy.json"}
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


@pytest.mark.parametrize("layout", ["released", "adapter", "transformers"])
def test_the_card_names_the_base_s_licence_and_what_to_know_before_sharing(tiny, tmp_path, layout):
    base = shutil.copytree(tiny, tmp_path / "base")
    trained = write_trained(base, tmp_path / "final")
    bare = " ".join((export(trained, tmp_path / "bare", layout=layout) / "README.md").read_text().split())
    assert "Licence: the base's own, which its page names: its folder held no licence file." in bare
    (base / "LICENSE.txt").write_text("theirs")
    folder = export(trained, tmp_path / "out", layout=layout)
    card = " ".join((folder / "README.md").read_text().split())
    assert (folder / "LICENSE.txt").read_text() == "theirs" and "Licence: the base's own, in `LICENSE.txt`." in card
    assert "English and Chinese conversations; measure before you train in another" in card
    assert "can repeat text that they were trained on" in card
    assert ("transformers serve FOLDER" in card) == (layout == "transformers")


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


def test_a_place_that_can_not_be_written_is_named_in_a_line(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["export", str(tiny), "--to", str(tmp_path / "file" / "out")]) == 2
    assert "file/out: not written ([Errno 20] Not a directory" in capsys.readouterr().err


def test_a_link_to_nowhere_is_an_existing_target(tiny, tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ExportError, match="out: exists already"):
        export(tiny, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_layout_that_is_not_known_is_refused(tiny, tmp_path):
    with pytest.raises(ExportError, match="layout 'gguf'; expected one of released, adapter, transformers"):
        export(tiny, tmp_path / "merged", layout="gguf")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda tensor: tensor * 1.5, "reloading the export changed tensor lm_head.weight; expected equal bits"),
        (lambda tensor: tensor[:-1], r"lm_head.weight|language_model.output.weight has shape"),
    ],
    ids=["other values", "another shape"],
)
def test_an_export_that_reloads_differently_is_refused_and_nothing_is_left(tiny, tmp_path, monkeypatch, spoil, message):
    def write(source, folder):
        write_released(source, folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["language_model.output.weight"] = spoil(tensors["language_model.output.weight"]).contiguous()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(export_module, "write_released", write)
    with pytest.raises((ExportError, CheckpointError), match=message):
        export(tiny, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_a_merge_that_is_not_the_adapter_is_refused(tiny, tmp_path, monkeypatch):
    """Ours is compared with PEFT's adapter as it runs, unmerged."""
    from ivlkit.models.export import merge_lora as merge

    trained = write_trained(tiny, tmp_path / "final")
    right = merge.merge_layer
    monkeypatch.setattr(
        merge, "merge_layer", lambda weight, down, up, *, scale, length: right(weight, down, up, scale=scale / 2)
    )
    with pytest.raises(ExportError, match=r"merging changed logits by .*; expected at most 0.0001; nothing was"):
        export(trained, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    assert not (tmp_path / "merged.part").exists()


def test_a_loaded_model_with_changed_weights_exports_these_and_stays_as_it_is(tiny, tmp_path):
    vlm = load(tiny)
    with torch.no_grad():
        vlm.model.lm_head.weight.mul_(2)
    wanted = logits(vlm)
    export(vlm, tmp_path / "copy")
    torch.testing.assert_close(logits(load(tmp_path / "copy")), wanted)
    assert torch.equal(logits(vlm), wanted)


def test_a_model_is_saved_over_its_own_files(tiny, tmp_path):
    """In the dtype of the files its weights are maps of them: writing into these would destroy both."""
    folder = shutil.copytree(tiny, tmp_path / "model")
    vlm = load(folder, dtype=torch.bfloat16)
    torch.nn.init.ones_(vlm.model.lm_head.weight)
    expected = {key: tensor.clone() for key, tensor in vlm.model.state_dict().items()}
    save_released(vlm, folder)
    found = load(folder, dtype=torch.bfloat16).model.state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert {path.name for path in folder.iterdir()} - {path.name for path in tiny.iterdir()} == set()


def test_one_file_takes_the_place_of_shards_and_their_index(tiny, tmp_path, monkeypatch):
    vlm = load(tiny)
    with monkeypatch.context() as patched:
        patched.setattr(shards, "SHARD_BYTES", 40_000)
        save_released(vlm, tmp_path)
    torch.nn.init.ones_(vlm.model.lm_head.weight)
    save_released(vlm, tmp_path)
    assert open_source(tmp_path).weights["lm_head.weight"].unique().tolist() == [1.0]
    assert load(tmp_path).model.lm_head.weight.unique().tolist() == [1.0]


def test_large_weights_are_written_in_shards_that_load(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 60_000)
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


def test_what_is_written_beside_the_weights(tiny, tmp_path):
    base = shutil.copytree(tiny, tmp_path / "base")
    (base / "modeling_internvl_chat.py").write_bytes(b"# not imported,\r\n# copied\n")
    (base / "generation_config.json").write_text("{}")
    (base / "LICENSE").write_text("theirs")
    (base / "README.md").write_text("theirs")
    (base / "download.json").write_text("{}")
    export(base, tmp_path / "copy")
    assert (tmp_path / "copy" / "modeling_internvl_chat.py").read_bytes() == b"# not imported,\r\n# copied\n"
    assert (tmp_path / "copy" / "generation_config.json").read_text() == "{}"
    assert (tmp_path / "copy" / "LICENSE").read_text() == "theirs"
    assert (tmp_path / "copy" / "README.md").read_text() != "theirs"
    assert not (tmp_path / "copy" / "download.json").exists()


def test_the_trained_prompt_and_tiles_are_stored(tiny, tmp_path):
    trained = write_trained(tiny, tmp_path / "final", max_tiles=5, system_message="You count ships.")
    export(trained, tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config["system_message"], config["max_dynamic_patch"]) == ("You count ships.", 5)
    processor = load(tmp_path / "merged").processor
    assert (processor.system_message, processor.max_tiles) == ("You count ships.", 5)


def test_a_full_disk_is_known_before_anything_is_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**8))
    with pytest.raises(ExportError, match=r"0\.1 GB free; expected 0\.2 GB for the export; free some or choose"):
        export(tiny, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


# Of 134,000 parameters: too little for float32; enough for it, but `load` takes half of what is free.
@pytest.mark.parametrize("free", [1.2 * 3 * 90_000, 6 * 134_000])
def test_a_small_machine_proves_in_bfloat16_or_says_what_is_missing(tiny, tmp_path, monkeypatch, free):
    def leave(free):
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=10**12, available=free))

    trained = write_trained(tiny, tmp_path / "final")
    leave(free)
    export(trained, tmp_path / "merged", device="cpu")
    assert "Reloaded in bfloat16 on cpu" in (tmp_path / "merged" / "README.md").read_text()
    leave(1000)
    with pytest.raises(ExportError, match=r"cpu: 0\.0 GB of memory free; expected .* GB to load the export again"):
        export(trained, tmp_path / "again", device="cpu")


def test_a_gpu_without_room_leaves_the_proof_to_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**9, 24 * 10**9))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=10**12, available=10**11))
    assert proof.choose_place(10**8, None) == (torch.device("cuda"), torch.float32)
    with pytest.warns(UserWarning, match=r"^cuda: 1\.0 GB of memory free, too little .*: the CPU does it"):
        assert proof.choose_place(10**10, None) == (torch.device("cpu"), torch.float32)
        assert proof.choose_place(2 * 10**10, None) == (torch.device("cpu"), torch.bfloat16)
        with pytest.raises(ExportError, match=r"^cuda: 1\.0 GB, cpu: 100\.0 GB of memory free; expected 120\.0 GB"):
            proof.choose_place(5 * 10**10, None)
    with pytest.raises(ExportError, match=r"^cuda: 1\.0 GB of memory free"):
        proof.choose_place(10**10, "cuda")


INTERRUPTED = """
import os, signal, sys
from ivlkit.data import files
from ivlkit.models.export import export as module
from ivlkit.models.layouts import safetensors_files as shards
from ivlkit.models.export import card
tiny, to = sys.argv[1:]
real = {}
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
def die_after(function, times):
    def counted(*arguments, **options):
        nonlocal times
        times -= 1
        return die() if times < 0 else function(*arguments, **options)
    return counted
moments = {
    "in the middle of the weights": (shards, "total_bytes", 60),
    "before the small files": (module, "write_json", 0),
    "before the proof": (module, "ask", 0),
    "in the middle of the proof": (module, "ask", 2),
    "before the card": (module, "write_card", 0),
    "while it goes to the disk": (files, "flush", 3),
    "just before the last step": (files, "flush", 7),
    "just after it": (files, "flush", 10),
}
for number, (name, (where, function, times)) in enumerate(moments.items()):
    child = os.fork()  # before torch has started a thread
    if not child:
        setattr(where, function, die_after(getattr(where, function), times))
        module.export(tiny, f"{to}/{number}")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, name)
"""


def test_killed_at_any_moment_there_is_no_folder_or_a_complete_one(tiny, tmp_path):
    command = [sys.executable, "-c", INTERRUPTED, str(tiny), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    killed = [line.partition(" ") for line in done.stdout.splitlines()]
    assert len(killed) == 8
    assert {signal for signal, _, _ in killed} == {"9"}, killed
    expected = {path.name for path in export(tiny, tmp_path / "whole").iterdir()}
    there = []
    for number in range(8):
        folder = tmp_path / str(number)
        if folder.exists():
            there.append(number)
            assert {path.name for path in folder.iterdir()} == expected
            assert torch.equal(logits(load(folder)), logits(load(tiny)))
        else:
            export(tiny, folder)  # what was left aside is in nobody's way
            assert {path.name for path in folder.iterdir()} == expected
            assert not (tmp_path / f"{number}.part").exists()
    assert there == [7]


def test_writing_holds_less_than_two_shards(tmp_path):
    """390 MB with an adapter in shards of 80; mapped files count, the proof (one model at a time) does not."""
    command = [sys.executable, "benchmarks/export_memory.py", "--layers", "12", "--shard-mb", "80"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["model_mb"] > 350
    assert result["peak_mb"] < 2 * result["largest_shard_mb"] + 60, result  # 60: the allocator and torch's buffers


@pytest.mark.parametrize("layout", ["released", "transformers"])
def test_the_command_line_takes_a_layout(tiny, tmp_path, capsys, layout):
    assert main(["export", str(tiny), "--to", str(tmp_path / "out"), "--layout", layout]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert main(["export", str(tiny), "--to", str(tmp_path / "again"), "--layout", "adapter"]) == 2
    assert 'no adapter; expected a LoRA run; use --layout "released"' in capsys.readouterr().err


def test_a_loaded_bfloat16_model_is_compared_as_coarsely_as_it_computes(tiny, tmp_path):
    vlm = load(write_trained(tiny, tmp_path / "final"), dtype=torch.bfloat16)
    folder = export(vlm, tmp_path / "merged", scores={"exact match on test.jsonl": 0.61})
    card = (folder / "README.md").read_text()
    assert "Reloaded in bfloat16 on cpu" in card
    assert "| exact match on test.jsonl | 0.61 |" in card


def test_the_hub_is_asked_only_on_request_and_only_for_an_export(tiny, tmp_path, monkeypatch):
    sent = []

    class Hub:
        def create_repo(self, repo_id, *, private, exist_ok):
            sent.append((repo_id, private, exist_ok))
            return f"address of {repo_id}"

        def upload_folder(self, *, folder_path, repo_id, ignore_patterns):
            sent.append((folder_path, repo_id))
            left = filter_repo_objects(["README.md", "handover/test/1.png"], ignore_patterns=ignore_patterns)
            assert list(left) == ["README.md"]  # a colleague's pictures are not the world's

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    folder = export(tiny, tmp_path / "out")
    assert sent == []
    assert push_to_hub(folder, "me/ships") == "address of me/ships"
    assert sent == [("me/ships", True, True), (folder, "me/ships")]
    assert main(["export", str(tiny), "--to", str(tmp_path / "again"), "--push-to-hub", "me/boats"]) == 0
    assert sent[2] == ("me/boats", True, True)
    with pytest.raises(ExportError, match="no model card beside weights; expected an exported folder"):
        push_to_hub(tiny, "me/ships")


def test_what_the_hub_refuses_is_said_and_the_folder_stays(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    folder = export(tiny, tmp_path / "out")
    for name in ("me/ships", "no name/of/a model"):
        with pytest.raises(ExportError, match=f"out: is complete, but was not uploaded to '{name}'"):
            push_to_hub(folder, name)
    assert (folder / "README.md").exists()


def test_a_released_model_is_refused(tiny, tmp_path):
    vlm = load(tiny)
    vlm.release()
    with pytest.raises(CheckpointError, match="released; expected a loaded model"):
        export(vlm, tmp_path / "out")


def test_scores_without_names_are_refused_before_anything_is_written(tiny, tmp_path):
    with pytest.raises(ExportError, match="scores=0.5; expected names and numbers"):
        export(tiny, tmp_path / "out", scores=0.5)
    assert not (tmp_path / "out").exists()


# adapters ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tiny, tmp_path):
    return write_trained(tiny, tmp_path / "final", projector="full")


def test_an_adapter_folder_holds_what_is_needed_to_load_it_again(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (16, 32, 0.0)
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


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments:UserWarning")  # PEFT's, of another kind's options
@pytest.mark.parametrize(
    "change",
    [
        {"peft_type": "PROMPT_TUNING"},
        {"peft_type": "UNHEARD_OF"},
        {"r": 0},
        {"r": "16"},
        {"target_modules": ["nowhere"]},
        {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
    ],
    ids=str,
)
def test_a_forged_adapter_config_is_refused(adapter, change):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for use in (load, open_source):
        with pytest.raises(CheckpointError, match=r"adapter_config\.json: no adapter of this model"):
            use(adapter)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_adapter_config_is_named(adapter, text):
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: no adapter of this model"):
        load(adapter)


@pytest.mark.parametrize("text", ["[]", "{}", '{"base": 5}'])
def test_an_adapter_that_names_no_base_is_refused(adapter, text):
    (adapter / "ivlkit.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"ivlkit\.json: names no `base`"):
        load(adapter)


def test_an_adapter_whose_base_leads_back_to_it_is_refused(adapter, tmp_path):
    other = shutil.copytree(adapter, tmp_path / "other")
    (adapter / "ivlkit.json").write_text(json.dumps({"base": str(other)}))
    (other / "ivlkit.json").write_text(json.dumps({"base": str(adapter)}))
    for use in (load, open_source):
        with pytest.raises(CheckpointError, match="final: its base leads back to .*final"):
            use(adapter)


def test_an_adapter_whose_base_is_gone_is_refused(adapter):
    (adapter / "ivlkit.json").write_text(json.dumps({"base": str(adapter / "gone")}))
    with pytest.raises(CheckpointError, match="its base is not here; .*gone: no such folder"):
        load(adapter)


def test_a_source_that_does_not_fit_its_config_is_refused(tiny, tmp_path, tiny_config):
    base = shutil.copytree(tiny, tmp_path / "base")
    tiny_config["llm_config"]["intermediate_size"] = 64
    (base / "config.json").write_text(json.dumps(tiny_config))
    with pytest.raises(CheckpointError, match=r"has shape \(.*\); expected \(.*\) by config.json"):
        export(base, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


# the adapter layout --------------------------------------------------------------------------------------------------


def test_an_adapter_is_exported_with_its_base_named(adapter, tiny, tmp_path):
    folder = export(adapter, tmp_path / "out", layout="adapter")
    assert {path.name for path in folder.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "ivlkit.json", "README.md"),
        *("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    }
    assert (folder / "adapter_model.safetensors").read_bytes() == (adapter / "adapter_model.safetensors").read_bytes()
    origin = json.loads((folder / "ivlkit.json").read_text())
    assert (origin["base_name"], origin["base_revision"], origin["template"]) == (tiny.name, None, "internlm2-chat")
    assert (origin["tile_px"], origin["max_tiles"], len(origin["base_fingerprint"])) == (112, 12, 64)
    assert torch.equal(logits(load(folder)), logits(load(adapter)))


def test_the_revision_of_a_downloaded_base_is_named(tiny, tmp_path):
    base = shutil.copytree(tiny, tmp_path / "base")
    (base / "download.json").write_text(json.dumps({"revision": "abc123", "files": {}}))
    folder = export(write_trained(base, tmp_path / "final"), tmp_path / "out", layout="adapter")
    assert json.loads((folder / "ivlkit.json").read_text())["base_revision"] == "abc123"
    assert "revision abc123" in (folder / "README.md").read_text()


def test_the_embedded_base_is_named_as_its_family_and_not_as_its_folder(tmp_path):
    (tmp_path / ORIGIN_FILE).write_text(json.dumps({"base": "nano"}))
    found = describe_base(tmp_path)
    assert (found["base"], found["base_name"]) == ("nano", FAMILIES["nano"].name)


def test_a_colleague_has_the_base_elsewhere(tiny, tmp_path):
    base = shutil.copytree(tiny, tmp_path / "mine" / "Ships-2B")
    trained = write_trained(base, tmp_path / "final")
    wanted = logits(load(trained))
    export(trained, tmp_path / "theirs" / "adapter", layout="adapter")
    base.rename(tmp_path / "theirs" / "Ships-2B")
    assert torch.equal(logits(load(tmp_path / "theirs" / "adapter")), wanted)


def test_an_adapter_over_other_weights_is_refused(tiny, tmp_path):
    base = shutil.copytree(tiny, tmp_path / "base")
    folder = export(write_trained(base, tmp_path / "final"), tmp_path / "out", layout="adapter")
    tensors = load_file(base / "model.safetensors")
    save_file({key: tensor * 1.01 for key, tensor in tensors.items()}, base / "model.safetensors")
    with pytest.raises(CheckpointError, match="belongs to other weights than those in .*base; expected the base it"):
        load(folder)


def test_an_adapter_is_loaded_by_plain_peft_on_plain_transformers(adapter, tiny, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    from ivlkit.models.load import peft_is_quiet

    base = export(tiny, tmp_path / "base", layout="transformers")
    folder = export(adapter, tmp_path / "out", layout="adapter")
    with peft_is_quiet():
        model = PeftModel.from_pretrained(
            AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32), folder
        ).eval()
    vlm = load(adapter)
    before, after = proof.ask(vlm.model, vlm.processor), proof.ask(model, vlm.processor)
    assert proof.compare(before, after, dtype=torch.float32, what="plain PEFT") < 1e-5


def test_a_full_run_and_a_run_over_a_run_have_no_adapter_to_share(tiny, tmp_path):
    full = write_trained(tiny, tmp_path / "full", **FULL)
    with pytest.raises(ExportError, match='no adapter; expected a LoRA run; use layout="released"'):
        export(full, tmp_path / "out", layout="adapter")
    second = write_trained(full, tmp_path / "second")
    with pytest.raises(ExportError, match="trained on another run .*; expected a released model as base"):
        export(second, tmp_path / "out", layout="adapter")
    assert not (tmp_path / "out").exists()
    export(second, tmp_path / "merged")


def test_a_shared_adapter_names_its_base_and_no_folder_of_this_machine(adapter, tiny, tmp_path):
    for source, name in ((adapter, "file"), (load(adapter), "loaded")):
        folder = export(source, tmp_path / name, layout="adapter")
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == tiny.name


def test_a_loaded_adapter_is_exported_as_it_is_now(adapter, tmp_path):
    vlm = load(adapter)
    with torch.no_grad():
        next(value for name, value in vlm.adapter.named_parameters() if "lora_B" in name).mul_(3)
    wanted = logits(vlm)
    assert torch.equal(logits(load(export(vlm, tmp_path / "adapter", layout="adapter"))), wanted)
    merged = load(export(vlm, tmp_path / "merged"))
    vlm.merge_adapter()
    vlm.model.to(torch.bfloat16).float()
    torch.testing.assert_close(logits(merged), logits(vlm), atol=1e-4, rtol=1e-4)


# going on ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["adapter", "full", "released", "adapter layout"])
def test_training_goes_on_from_what_was_trained_and_nothing_is_wrapped_twice(tiny, tmp_path, first):
    start = write_trained(tiny, tmp_path / "first", **(FULL if first == "full" else {}))
    if first in ("released", "adapter layout"):
        start = export(start, tmp_path / "start", layout=first.partition(" ")[0])
    second = write_trained(start, tmp_path / "second")
    keys = load_file(second / "adapter_model.safetensors").keys()
    assert not any("base_layer" in key or key.count("lora_") > 1 for key in keys)
    assert len(keys) == len(load_file(write_trained(tiny, tmp_path / "single") / "adapter_model.safetensors"))
    vlm = load(second)
    assert not torch.allclose(logits(vlm), logits(load(start)), atol=1e-2)
    folder = export(second, tmp_path / "merged")  # proves that the chain merged equals the chain as it runs
    vlm.merge_adapter()
    vlm.model.to(torch.bfloat16).float()
    torch.testing.assert_close(logits(load(folder)), logits(vlm), atol=1e-3, rtol=1e-3)


# outputs of the reference --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["26b", "2b", "4b"])
def test_a_lora_over_a_released_model_keeps_keys_shapes_and_untrained_bits(reference, tmp_path, key):
    base = reference / "checkpoints" / f"internvl-{key}"
    trained = write_trained(base, tmp_path / "final", vision="frozen")
    folder = export(trained, tmp_path / "merged")
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model.safetensors")
    assert {name: tensor.shape for name, tensor in after.items()} == {n: t.shape for n, t in before.items()}
    adapted = ("wqkv", "wo", "w1", "w2", "w3", "qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    for name, tensor in after.items():
        is_adapted = name.startswith("language_model.") and name.split(".")[-2] in adapted
        assert torch.equal(tensor, before[name]) != is_adapted, name
    assert load(folder).model.config.text_config.to_dict() == load(base).model.config.text_config.to_dict()


@pytest.mark.parametrize("layout", ["released", "transformers"])
@pytest.mark.parametrize("key", ["26b", "2b", "4b"])
def test_an_export_of_a_released_model_has_the_logits_of_the_reference(reference, tmp_path, key, layout):
    base = reference / "checkpoints" / f"internvl-{key}"
    folder = export(base, tmp_path / "out", layout=layout)
    if layout == "released":
        model = load(folder).model
    else:
        from transformers import AutoModelForImageTextToText

        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    expected = load_file(base / "reference.safetensors")
    pixel_values = normalise_tiles(expected["tiles_uint8"].permute(0, 2, 3, 1))
    with torch.inference_mode():
        found = model(input_ids=expected["input_ids"], pixel_values=pixel_values).logits[0, -4:]
    torch.testing.assert_close(found, expected["logits_last4"], atol=1e-4, rtol=0)


def test_the_command_for_phi3_stays_below_its_long_rope(reference, tmp_path):
    folder = export(reference / "checkpoints" / "internvl-4b", tmp_path / "out")
    card = (folder / "README.md").read_text()
    assert "vllm serve FOLDER --trust-remote-code --max-model-len 4096 --chat-template" in card
    assert "--mm-processor-kwargs '{\"max_dynamic_patch\": 12}'" in card
    assert "its InternVL has no Phi-3 language model" in card
    lmdeploy = json.loads((folder / "lmdeploy.json").read_text())
    assert lmdeploy["meta_instruction"] == "You are an AI assistant whose name is Phi-3."
    assert lmdeploy["stop_words"] == ["<|end|>"]


def test_a_released_style_lora_is_exported_plain(reference, tmp_path):
    source = tmp_path / "lora"
    source.mkdir()
    for name in ("internvl-2b", "internvl-2b-lora"):
        for path in (reference / "checkpoints" / name).iterdir():
            if path.name != "model.safetensors" or name.endswith("lora"):
                shutil.copyfile(path, source / path.name)
    folder = export(source, tmp_path / "out")
    expected = load_file(reference / "checkpoints" / "internvl-2b" / "model.safetensors")
    found = load_file(folder / "model.safetensors")
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in expected.items()}

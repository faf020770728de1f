"""A folder → a model with the reference's numbers, or one sentence about what is wrong with the folder."""

import json
import pickle
import re
import shutil
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from ivlkit.data.collate import normalise_tiles
from ivlkit.errors import CheckpointError
from ivlkit.models.export.export import export, save_released
from ivlkit.models.export.proof import ask, compare, count_equal
from ivlkit.models.load import VLM, load, peft_is_quiet, read_weight_files

MODELS = ("26b", "2b", "4b")


@pytest.fixture
def folder(tiny, tmp_path):
    """A copy of the tiny model to spoil."""
    return shutil.copytree(tiny, tmp_path / "model")


@pytest.fixture(scope="module")
def released(reference):
    """`released("2b")` → (the loaded model, the reference's outputs); each is loaded once."""
    loaded = {}

    def get(key):
        if key not in loaded:
            path = reference / "checkpoints" / f"internvl-{key}"
            loaded[key] = load(path), load_file(path / "reference.safetensors")
        return loaded[key]

    return get


def edit(folder, change):
    """Apply `change` to the dict of tensors of the folder's file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@torch.inference_mode()
def logits(vlm, seed=0):
    """Logits of one prompt with a picture of one tile."""
    generator = torch.Generator().manual_seed(seed)
    tiles = torch.randint(0, 256, (1, 112, 112, 3), dtype=torch.uint8, generator=generator)
    input_ids = torch.randint(3, 1000, (1, 24), generator=generator)
    input_ids[0, 4:20] = vlm.processor.token_id("<IMG_CONTEXT>")
    return vlm.model(input_ids=input_ids, pixel_values=normalise_tiles(tiles)).logits


@pytest.mark.parametrize("key", MODELS)
def test_logits_loss_and_features_are_those_of_the_reference(released, key):
    vlm, expected = released(key)
    pixel_values = normalise_tiles(expected["tiles_uint8"].permute(0, 2, 3, 1))
    with torch.inference_mode():
        features = vlm.model.encode_tiles(pixel_values)
        outputs = vlm.model(input_ids=expected["input_ids"], pixel_values=pixel_values, labels=expected["labels"])
    assert vlm.family.key == key
    torch.testing.assert_close(features[:, :4], expected["image_features_first4"], atol=1e-4, rtol=0)
    torch.testing.assert_close(outputs.logits[0, -4:], expected["logits_last4"], atol=1e-4, rtol=0)
    torch.testing.assert_close(outputs.loss.reshape(1), expected["loss"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [600, 4000, 4200])
def test_phi3_long_context_is_that_of_the_reference(released, reference, length):
    vlm, _ = released("4b")
    expected = load_file(reference / "checkpoints" / "internvl-4b" / "long_context.safetensors")
    with torch.inference_mode():
        found = vlm.model(input_ids=expected[f"input_ids_{length}"].long(), logits_to_keep=4).logits[0]
    torch.testing.assert_close(found, expected[f"logits_last4_{length}"], atol=1e-4, rtol=0)


@pytest.fixture
def released_lora(reference, tmp_path):
    """The released-style LoRA checkpoint with the tokenizer files of its base beside it."""
    folder = tmp_path / "lora"
    folder.mkdir()
    for name in ("internvl-2b", "internvl-2b-lora"):
        for path in (reference / "checkpoints" / name).iterdir():
            if path.name != "model.safetensors" or name.endswith("lora"):
                shutil.copyfile(path, folder / path.name)
    return folder


def test_a_released_lora_checkpoint_is_merged_when_it_is_loaded(released_lora):
    vlm = load(released_lora)
    expected = load_file(released_lora / "reference.safetensors")
    with torch.inference_mode():
        found = vlm.model(input_ids=expected["input_ids"], logits_to_keep=4).logits[0]
    torch.testing.assert_close(found, expected["logits_last4"], atol=1e-4, rtol=0)


def rewrite(folder, change):
    """The weights of a folder under other keys."""
    path = folder / "model.safetensors"
    save_file({change(key): tensor for key, tensor in load_file(path).items()}, path, {"format": "pt"})


def test_the_older_spelling_of_its_keys_gives_the_same_model(released_lora):
    rewrite(released_lora, lambda key: key.replace(".base_layer.", "."))
    test_a_released_lora_checkpoint_is_merged_when_it_is_loaded(released_lora)


def test_an_adapter_that_nothing_uses_is_refused(released_lora):
    rewrite(released_lora, lambda key: key.replace(".lora_A.default.", ".lora_A.other.") if "layers.1" in key else key)
    with pytest.raises(CheckpointError, match=r"lora_A.default.weight is missing; expected both halves"):
        load(released_lora)


def test_adapters_beside_a_config_that_names_none_are_told_with_their_rank(released_lora):
    config = json.loads((released_lora / "config.json").read_text())
    (released_lora / "config.json").write_text(json.dumps(config | {"use_llm_lora": 0}))
    rank = config["use_llm_lora"]
    with pytest.raises(CheckpointError, match=f"`use_llm_lora` of its config.json is 0; .*set it to {rank} there"):
        load(released_lora)


def test_an_adapter_inside_a_model_s_folder_is_refused(folder):
    """transformers would add it to the model without a word, and an export leave it out."""
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "nano"}')
    for use in (load, lambda source: export(source, folder / "never")):
        with pytest.raises(
            CheckpointError, match="a model .* and an adapter .*; expected one of them; put the adapter's"
        ):
            use(folder)


def test_an_adapter_s_folder_is_told_from_a_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "OpenGVLab/Somewhere"}')
    with pytest.raises(CheckpointError, match="an adapter .* and no model; .*fetch its base, OpenGVLab/Somewhere"):
        load(tmp_path)


@pytest.fixture
def foreign(tiny, tmp_path):
    """An adapter by plain PEFT on plain transformers, as a colleague without this kit would write it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    native = export(tiny, tmp_path / "native", layout="transformers")
    model = AutoModelForImageTextToText.from_pretrained(native, dtype=torch.float32)
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with peft_is_quiet():
        wrapped = get_peft_model(model, config).eval()
    wrapped.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    return tmp_path / "theirs", wrapped


def name_base(folder, name):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": name}))


@pytest.mark.parametrize("named", ["as a folder", "by its name alone, beside the adapter", "in the call"])
def test_an_adapter_of_plain_peft_loads_onto_its_base(foreign, tiny, tmp_path, named):
    folder, theirs = foreign
    if named == "as a folder":
        name_base(folder, str(tiny))
    elif named != "in the call":
        shutil.copytree(tiny, tmp_path / "some-base")
        name_base(folder, "someone/some-base")
    vlm = load(folder, **({"base": tiny} if named == "in the call" else {}))
    before, after = ask(theirs, vlm.processor), ask(vlm.model, vlm.processor)
    assert compare(before, after, dtype=torch.float32, what="their adapter") < 1e-5
    assert count_equal(before, after) == len(before.replies)


def test_an_adapter_of_plain_peft_on_a_model_of_ours_is_exported_merged(foreign, tiny, tmp_path):
    folder, _ = foreign
    name_base(folder, str(tiny))
    export(folder, tmp_path / "merged")  # which compares the two


@pytest.mark.parametrize("name", [None, ""])
def test_an_adapter_without_the_name_of_its_base_asks_for_it(foreign, name):
    name_base(foreign[0], name)
    with pytest.raises(CheckpointError, match=r"adapter_config.json does not name, .*ivlkit.load\(…, base=…\)"):
        load(foreign[0])


def test_half_an_adapter_of_plain_peft_is_refused(foreign, tiny):
    path = foreign[0] / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(key for key in tensors if "lora_B" in key))
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="tensor .*lora_B.* is missing"):
        load(foreign[0], base=tiny)


def test_a_base_that_is_named_for_a_whole_model_is_refused(tiny):
    with pytest.raises(CheckpointError, match="a model of its own, no adapter; expected no base='nano'"):
        load(tiny, base="nano")


def test_a_merged_lora_checkpoint_is_saved_as_a_plain_one(released_lora, tmp_path):
    save_released(load(released_lora, dtype=torch.bfloat16), tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["use_llm_lora"] == 0
    assert not any("lora" in key or "base_layer" in key for key in load_file(tmp_path / "merged" / "model.safetensors"))
    load(tmp_path / "merged")


@pytest.mark.parametrize("key", MODELS)
def test_saved_again_a_released_model_is_the_same_to_the_bit(released, reference, tmp_path, key):
    source = reference / "checkpoints" / f"internvl-{key}"
    vlm, _ = released(key)
    save_released(vlm, tmp_path / "again")
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], tensor), name
    config = json.loads((source / "config.json").read_text())
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved.pop("system_message") == vlm.processor.system_message  # the one field that is added
    assert saved == config
    for path in source.glob("*token*"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_the_tiny_model_saved_again_is_the_same_to_the_bit(tiny, tmp_path):
    save_released(load(tiny), tmp_path / "again")
    before, after = load_file(tiny / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert {key: str(tensor.dtype) for key, tensor in before.items()} == {
        key: str(tensor.dtype) for key, tensor in after.items()
    }
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == json.loads(
        (tiny / "config.json").read_text()
    )


def test_the_default_on_the_cpu_is_float32_and_eval(tiny_vlm):
    assert {parameter.dtype for parameter in tiny_vlm.model.parameters()} == {torch.float32}
    assert not tiny_vlm.model.training


def test_shards_load_as_one_file_does(folder, tiny_vlm):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for name, keys in halves.items():
        save_file({key: tensors[key] for key in keys}, folder / name, metadata={"format": "pt"})
    weight_map = {key: name for name, keys in halves.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    assert [path.name for path in read_weight_files(folder)] == sorted(halves)
    torch.testing.assert_close(logits(load(folder)), logits(tiny_vlm))

    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002.safetensors: missing; expected the weights there"):
        load(folder)


def test_a_missing_tensor_is_named(folder):
    edit(folder, lambda tensors: tensors.pop("mlp1.1.bias"))
    with pytest.raises(CheckpointError, match=r"tensor mlp1\.1\.bias is missing; expected shape \(32,\)"):
        load(folder)


def test_an_unexpected_tensor_is_named(folder):
    edit(folder, lambda tensors: tensors.update(surprise=torch.zeros(1)))
    with pytest.raises(
        CheckpointError, match="unexpected tensor surprise; its config.json describes a model without it"
    ):
        load(folder)


def test_a_wrong_shape_is_named(folder):
    edit(folder, lambda tensors: tensors.update({"mlp1.1.bias": torch.zeros(31)}))
    with pytest.raises(
        CheckpointError, match=r"tensor mlp1\.1\.bias has shape \(31,\); expected \(32,\) by config.json"
    ):
        load(folder)


def test_more_layers_in_the_config_than_in_the_file_are_named(folder, tiny_config):
    tiny_config["llm_config"]["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(tiny_config))
    with pytest.raises(CheckpointError, match=r"tensor language_model\.model\.layers\.2\..* is missing"):
        load(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights_are_named(folder, share):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=f"{path}: not a whole safetensors file .*; download it again"):
        load(folder)


def test_a_git_lfs_pointer_in_place_of_weights_is_named(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load(folder)


class Bomb:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_weights_are_never_opened(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(CheckpointError, match="its weights are pickles .*expected safetensors; convert them once"):
        load(folder)
    assert not (tmp_path / "exploded").exists()


def test_a_folder_without_weights_is_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model.safetensors: missing; expected the weights there"):
        load(folder)


def test_a_broken_index_is_named(folder):
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json: broken"):
        load(folder)


def test_a_folder_without_config_is_no_model(tmp_path):
    with pytest.raises(CheckpointError, match="no config.json; expected a model folder in the released layout"):
        load(tmp_path)


def test_a_model_of_another_kind_is_refused(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "internvl"}))
    with pytest.raises(CheckpointError, match="model_type 'internvl'; expected 'internvl_chat'"):
        load(folder)


def test_a_template_that_contradicts_the_tokenizer_is_refused(folder, tiny_config):
    (folder / "config.json").write_text(json.dumps(tiny_config | {"template": "phi3-chat"}))
    with pytest.raises(CheckpointError, match="the template contradicts the checkpoint; correct `template`"):
        load(folder)


def test_code_of_a_folder_is_never_run_but_kept_to_the_byte(folder, tiny_config, tmp_path):
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nclass InternVLChatModel: pass\n# é\r\n"
    for name in ("modeling_internvl_chat.py", "configuration_internvl_chat.py", "conversation.py"):
        (folder / name).write_bytes(code.encode("latin-1"))
    auto_map = {
        "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
        "AutoModel": "modeling_internvl_chat.InternVLChatModel",
        "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
    }
    (folder / "config.json").write_text(json.dumps(tiny_config | {"auto_map": auto_map}))
    save_released(load(folder), tmp_path / "again")
    assert not (tmp_path / "ran").exists()
    assert json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"] == auto_map
    for name in ("modeling_internvl_chat.py", "configuration_internvl_chat.py", "conversation.py"):
        assert (tmp_path / "again" / name).read_bytes() == code.encode("latin-1")


def test_a_released_style_lora_of_the_tiny_model_is_merged(folder, tiny_config, tiny_vlm):
    """The hermetic twin: r = 2, α = 4; the adapters' halves are known, and so is the sum."""
    generator = torch.Generator().manual_seed(0)
    wanted = {}

    def wrap(tensors):
        for key in [key for key in tensors if key.startswith("language_model.")]:
            tensor = tensors.pop(key)
            wrapped = key.replace("language_model.", "language_model.base_model.model.", 1)
            if not key.endswith(("wqkv.weight", "w2.weight")):
                tensors[wrapped] = tensor
                continue
            down = torch.randn(2, tensor.shape[1], generator=generator) / 4
            up = torch.randn(tensor.shape[0], 2, generator=generator) / 4
            stem = wrapped.removesuffix(".weight")
            tensors[f"{stem}.base_layer.weight"] = tensor
            tensors[f"{stem}.lora_A.default.weight"], tensors[f"{stem}.lora_B.default.weight"] = down, up
            wanted[key] = tensor.float() + 2 * up @ down

    edit(folder, wrap)
    assert len(wanted) == 4
    (folder / "config.json").write_text(json.dumps(tiny_config | {"use_llm_lora": 2}))
    merged = load(folder)
    assert not torch.allclose(logits(merged), logits(tiny_vlm), atol=1e-2)

    plain = tensors_of(merged)
    for key, tensor in wanted.items():
        torch.testing.assert_close(plain[key], tensor)


def tensors_of(vlm):
    from ivlkit.models.layouts.key_map import to_released

    return to_released(vlm.model.state_dict(), vlm.config)


def test_released_memory_can_not_be_asked(tiny):
    vlm = load(tiny)
    assert "M parameters, float32 on cpu" in repr(vlm)
    weight = torch.nn.Parameter(torch.zeros(500_000, dtype=torch.uint8), requires_grad=False)
    weight.quant_state = SimpleNamespace(shape=torch.Size((1000, 1000)))  # of NF4: two values share a byte
    before = sum(one.numel() for one in vlm.model.parameters())
    vlm.model.register_parameter("packed", weight)
    assert f": {(before + 1_000_000) / 1e6:,.1f} M parameters" in repr(vlm)
    model = vlm.model  # as a notebook may name it still
    vlm.release()
    assert repr(vlm).endswith("released)")
    assert {value.numel() for value in (*model.parameters(), *model.buffers())} == {0}


class TestATowerElsewhere:
    """`tower_device`: the layers of the vision tower are read straight to it, the rest to `device`."""

    @pytest.fixture(params=[None, "4bit"])
    def quantize(self, request):
        if request.param:
            pytest.importorskip("bitsandbytes", reason="weights in few bits need it: pip install 'ivlkit[quant]'")
        return request.param

    def test_values_names_and_configuration_are_those_of_one_device(self, tiny, quantize):
        plain, apart = (load(tiny, quantize=quantize, tower_device=device).model for device in (None, "cpu"))
        expected, found = plain.state_dict(), apart.state_dict()
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert apart.config.to_dict() == plain.config.to_dict()
        assert apart.model.vision_tower.config is apart.config.vision_config
        assert not any(module.training for module in apart.modules())
        pixel_values = torch.ones(1, 3, 112, 112)
        assert torch.equal(apart.encode_tiles(pixel_values), plain.encode_tiles(pixel_values))

    def test_the_layers_are_there_and_nothing_else_is(self, tiny):
        model = load(tiny, device="meta", dtype=torch.bfloat16, tower_device="cpu").model
        there = {name for name, value in model.named_parameters() if value.device.type == "cpu"}
        assert there == {name for name, _ in model.named_parameters() if ".vision_tower.encoder.layer." in name}
        assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
        assert model.device.type == "meta" and type(model.model.vision_tower.encoder).__name__ == "StreamedEncoder"

    @pytest.mark.filterwarnings("ignore:Merge lora module to 4-bit linear:UserWarning")
    def test_an_adapter_of_the_tower_is_merged_there(self, tiny, tmp_path, quantize):
        """A run that goes on from another whose tower trained, too."""
        from ivlkit.training.checkpoints import save_trained
        from ivlkit.training.recipes import recipe
        from ivlkit.training.tuning import prepare

        model = prepare(load(tiny), recipe("nano-lora", vision="lora"))
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.add_(0.1 if "lora_B" in name else 0)
        save_trained(model, tmp_path)
        (tmp_path / "ivlkit.json").write_text(json.dumps({"base": str(tiny)}))
        plain, apart = (load(tmp_path, quantize=quantize, tower_device=device) for device in (None, "cpu"))
        for vlm in (plain, apart):
            vlm.merge_adapter()
        expected, found = plain.model.state_dict(), apart.model.state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        before, name = load(tiny).model.state_dict(), "model.vision_tower.encoder.layer.0.mlp.fc1.weight"
        assert not torch.equal(found[name], before[name])

    def test_a_tensor_of_it_that_is_missing_is_named(self, folder, quantize):
        edit(folder, lambda tensors: tensors.pop("vision_model.encoder.layers.1.mlp.fc1.bias"))
        with pytest.raises(CheckpointError, match=r"vision_model.encoder.layers.1.mlp.fc1.bias is missing"):
            load(folder, quantize=quantize, tower_device="cpu")


def test_a_folder_that_is_named_like_a_model_is_the_folder(tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny, tmp_path / "nano")
    monkeypatch.chdir(tmp_path)
    for tower_device in (None, "cpu"):
        vlm = load("./nano", tower_device=tower_device)
        assert str(vlm.folder) == "nano" and vlm.model.config.text_config.hidden_size == 32


class TestMemory:
    """A "GiB" is as many bytes as the tiny model has parameters: 4 of them in float32, 2 in bfloat16."""

    @pytest.fixture
    def free(self, tiny_vlm, monkeypatch):
        """`free(ram=7, gpu=1)` says what is free."""
        module = import_module("ivlkit.models.load")
        count = sum(parameter.numel() for parameter in tiny_vlm.model.parameters())

        def say(*, ram=1000, gpu=0):
            monkeypatch.setattr(module, "read_ram_gib", lambda: (1000.0, float(ram)))
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (gpu * count, 24 * count))

        monkeypatch.setattr(module, "GIB", count)
        alive = set()
        for each in (module, import_module("ivlkit.models.vlm")):
            monkeypatch.setattr(each, "alive", alive)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
        return say

    def test_more_than_half_of_the_free_memory_is_refused_with_both_numbers(self, tiny, free):
        free(ram=7)
        with pytest.raises(
            CheckpointError, match=r"4\.0 GiB .* in float32, but 7\.0 GiB are free; expected at most 3\.5"
        ):
            load(tiny, device="cpu")
        free(ram=8.1)
        load(tiny, device="cpu")

    def test_weights_that_stay_in_their_file_need_no_memory(self, tiny, free):
        free(ram=0.1)
        load(tiny, device="cpu", dtype=torch.bfloat16)
        with pytest.raises(CheckpointError, match=r"needs 2\.0 GiB of the computer's memory in float16"):
            load(tiny, device="cpu", dtype=torch.float16)

    def test_weights_on_their_way_to_a_gpu_may_take_all_of_it(self, tiny, free):
        free(ram=3.9)
        with pytest.raises(CheckpointError, match=r"computer's memory .* expected at most 3\.9"):
            load(tiny, device="cuda", dtype=torch.float32)

    def test_in_4_bits_they_go_there_one_after_the_other(self, tiny, free):
        free(ram=0.1, gpu=0.1)
        with pytest.raises(CheckpointError, match=r"GiB of cuda in 4 bits, but 0\.1 GiB are free"):
            load(tiny, device="cuda", dtype=torch.float16, quantize="4bit")

    @pytest.mark.parametrize(("quantize", "value_bytes"), [(None, 2), ("4bit", 2), ("float8", 1)])
    def test_layers_of_the_tower_that_stay_elsewhere_are_not_asked_of_the_gpu(
        self, tiny, tiny_vlm, free, monkeypatch, quantize, value_bytes
    ):
        needed = {}
        for tower_device in (None, "cpu"):
            free()
            monkeypatch.setattr("ivlkit.models.load.GIB", 1)
            with pytest.raises(CheckpointError, match=r"GiB of cuda in .*, but 0\.0 GiB are free") as caught:
                load(tiny, device="cuda", dtype=torch.bfloat16, quantize=quantize, tower_device=tower_device)
            needed[tower_device] = float(re.search(r"needs ([\d.]+) GiB", str(caught.value))[1])
        values = sum(value.numel() for value in tiny_vlm.model.model.vision_tower.encoder.parameters())
        assert needed[None] - needed["cpu"] == pytest.approx(values * value_bytes, rel=0.1)  # vectors keep 2 bytes

    def test_a_gpu_with_less_than_the_weights_is_named_before_anything_is_read(self, tiny, free):
        free(gpu=1.9)
        with pytest.raises(
            CheckpointError, match=r"needs 2\.0 GiB of cuda in bfloat16, but 1\.9 GiB are free"
        ) as caught:
            load(tiny, device="cuda", dtype=torch.bfloat16)
        assert isinstance(caught.value, torch.OutOfMemoryError)  # a run that stops so is told what to change

    def test_a_model_that_still_holds_the_gpu_is_named(self, tiny, tiny_vlm, free):
        free(gpu=1)
        on_gpu = SimpleNamespace(device=torch.device("cuda:0"), nbytes=import_module("ivlkit.models.load").GIB * 3)
        model = SimpleNamespace(parameters=lambda: [on_gpu])
        _alive = [VLM(each, tiny_vlm.processor, {}, tiny) for each in (model, model, None)]  # shared; released
        with pytest.raises(
            CheckpointError, match=rf"release\(\) of what .* holds, nano from {tiny} \(3\.0 GiB\); or load with quant"
        ):
            load(tiny, device="cuda", dtype=torch.bfloat16)

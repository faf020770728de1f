"""Adapters folded in tensor by tensor, against PEFT's own merge."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from ivlkit.errors import CheckpointError
from ivlkit.models.export.lazy_weights import Loaded, open_source
from ivlkit.models.export.merge_lora import merge_layer
from ivlkit.models.load import load, peft_is_quiet


def test_a_layer_by_hand():
    weight, down, up = torch.eye(2), torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [0.0]])
    assert merge_layer(weight, down, up, scale=2).tolist() == [[7.0, 12.0], [0.0, 1.0]]
    assert weight.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    # DoRA: rows [3, 4] and [0, 1] at lengths 10 and 2.
    down, up = torch.tensor([[2.0, 4.0]]), torch.tensor([[1.0], [0.0]])
    merged = merge_layer(torch.eye(2), down, up, scale=1, length=torch.tensor([10.0, 2.0]))
    torch.testing.assert_close(merged, torch.tensor([[6.0, 8.0], [0.0, 2.0]]))


KINDS = {
    "lora": {"r": 4, "lora_alpha": 8},
    "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True},
    "ranks of their own": {"r": 4, "lora_alpha": 8, "rank_pattern": {"o_proj": 2}, "alpha_pattern": {"q_proj": 32}},
    "a module trained whole": {"r": 4, "lora_alpha": 8, "modules_to_save": ["multi_modal_projector"]},
}
TARGETS = r".*[.](q_proj|o_proj|down_proj|projection_layer|fc1)"


def write_adapter(base, folder, **options):
    """A PEFT adapter with random numbers over the base, beside the ivlkit.json of a run."""
    with peft_is_quiet():
        model = get_peft_model(load(base).model, LoraConfig(**{"target_modules": TARGETS} | options))
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "ivlkit.json").write_text(json.dumps({"base": str(base)}))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_folder_and_loaded_model_merge_as_peft_does(tiny, tmp_path, kind):
    folder = write_adapter(tiny, tmp_path / "adapter", **KINDS[kind])
    vlm = load(folder)
    streamed, loaded = open_source(folder).weights, Loaded(vlm.adapter)
    loaded = {key: loaded[key].clone() for key in loaded}
    vlm.merge_adapter()
    expected, base = vlm.model.state_dict(), load(tiny).model.state_dict()
    assert set(streamed) == expected.keys() == loaded.keys()
    changed = 0
    for key, tensor in expected.items():
        torch.testing.assert_close(streamed[key].float(), tensor, atol=1e-6, rtol=1e-6, msg=key)
        torch.testing.assert_close(loaded[key], tensor, atol=1e-6, rtol=1e-6, msg=key)
        changed += not torch.equal(tensor, base[key])
    assert changed == (18 if "modules_to_save" in KINDS[kind] else 12)  # 6 layers of 2 towers, 6 of the projector


def test_what_an_adapter_does_not_touch_keeps_its_bits_and_dtype(tiny, tmp_path):
    weights = open_source(write_adapter(tiny, tmp_path / "adapter", r=4, lora_alpha=8)).weights
    assert weights["model.language_model.norm.weight"].dtype == torch.bfloat16
    assert weights["model.language_model.layers.0.self_attn.q_proj.weight"].dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed", "ignore:Adapter 'default'.* have invalid shape")
@pytest.mark.parametrize(
    "options",
    [{"r": 4, "lora_bias": True}, {"r": 4, "target_modules": ["embed_tokens"]}, {"r": 4, "bias": "all"}],
    ids=["a bias of its own", "an embedding", "biases trained"],
)
def test_an_adapter_of_another_kind_is_refused_and_never_left_out(tiny, tmp_path, options):
    folder = write_adapter(tiny, tmp_path / "adapter", **options)
    with pytest.raises(CheckpointError, match="expected .*LoRA"):
        open_source(folder)


def test_an_adapter_with_a_tensor_too_many_or_too_few_is_refused(tiny, tmp_path):
    folder = write_adapter(tiny, tmp_path / "adapter", r=4)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"surprise": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="unexpected tensor surprise; its adapter_config.json describes"):
        open_source(folder)
    tensors.pop(min(tensors))
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="is missing; expected shape"):
        open_source(folder)


def test_a_four_bit_base_is_made_whole_before_the_adapter_is_folded_in(tiny, tmp_path):
    """Exported weights answer as the four-bit model with its adapter does."""
    bnb = pytest.importorskip("bitsandbytes")
    from ivlkit.models.export.export import export

    vlm = load(write_adapter(tiny, tmp_path / "adapter", r=4, lora_alpha=8))
    for name, module in list(vlm.adapter.named_modules()):
        if name.endswith(("mlp.gate_proj", "mlp.up_proj")) or name.endswith("self_attn.o_proj.base_layer"):
            new = bnb.nn.Linear4bit(module.in_features, module.out_features, bias=False, quant_type="nf4")
            new.weight = bnb.nn.Params4bit(
                module.weight.data.clone(), requires_grad=False, quant_type="nf4", compress_statistics=False
            )
            vlm.adapter.set_submodule(name, new.to("cpu"))
    assert open_source(vlm).quantized
    folder = export(vlm, tmp_path / "merged")
    assert "made whole before the adapter was folded in" in (folder / "README.md").read_text()
    layer = vlm.model.model.language_model.layers[0].mlp.gate_proj
    whole = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    again = open_source(folder).weights["model.language_model.layers.0.mlp.gate_proj.weight"]
    assert torch.equal(again, whole.bfloat16())
    assert not torch.equal(again, load(tiny).model.model.language_model.layers[0].mlp.gate_proj.weight.bfloat16())


def test_four_bit_weights_are_the_same_once_the_model_was_asked():
    """On a CPU with AVX512-BF16 bitsandbytes rounds their scales then: an export would refuse itself."""
    pytest.importorskip("bitsandbytes")
    vlm = load("nano", quantize="4bit")
    key = "model.language_model.layers.0.self_attn.q_proj.weight"
    before = open_source(vlm).weights[key].clone()
    vlm.chat("Hi", max_new_tokens=2)
    assert torch.equal(open_source(vlm).weights[key], before)

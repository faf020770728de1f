import importlib
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

import ivlkit
from ivlkit.hardware import (
    Gpu,
    Machine,
    _attention,
    _cgroup_memory,
    _driver_without_torch,
    _import_torch,
    _nvidia_smi_name,
    find_gpus,
    machine,
)

MODULE = importlib.import_module("ivlkit.hardware")  # as an attribute of ivlkit the name is the function
H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_gib=79.1, free_gib=78.5, capability=(9, 0), bf16=True)
T4 = Gpu(name="Tesla T4", memory_gib=14.6, free_gib=14.5, capability=(7, 5), bf16=False)
CPU_TORCH = SimpleNamespace(__version__="2.13.0+cpu", version=SimpleNamespace(cuda=None))
CUDA_TORCH = SimpleNamespace(__version__="2.13.0", version=SimpleNamespace(cuda="13.0"))


def a_machine(**changes) -> Machine:
    values = {
        "python": "3.11.7",
        "platform": "Linux",
        "cpu_count": 2,
        "ram_gib": 23.5,
        "ram_free_gib": None,
        "disk_free_gib": 76.25,
        "gpus": (H100,),
        "driver_without_torch": None,
        "attention": "varlen",
        "versions": {"torch": "2.13.0", "deepspeed": "not installed"},
    }
    return Machine(**(values | changes))


def test_this_machine_is_described_without_raising():
    here = machine()
    assert here.cpu_count >= 1
    assert 0 < here.ram_free_gib <= here.ram_gib
    assert here.attention in ("varlen", "sdpa")
    assert here.versions["torch"].startswith("2.")


def test_the_public_name_is_the_function_and_not_the_module():
    assert ivlkit.machine is machine


def test_text_is_aligned_and_says_what_is_unknown():
    assert str(a_machine()).splitlines() == [
        "python     3.11.7",
        "platform   Linux",
        "cpu        2 cores",
        "ram        23.5 GiB, unknown free",
        "disk       76.2 GiB free",
        "gpu        NVIDIA H100 80GB HBM3, 79.1 GiB (78.5 free), capability 9.0, bf16",
        "attention  varlen",
        "torch      2.13.0",
        "deepspeed  not installed",
    ]


def test_html_is_escaped():
    html = a_machine(gpus=(), driver_without_torch="<script>")._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_to_dict_goes_through_json():
    assert json.loads(json.dumps(a_machine().to_dict()))["gpus"][0]["capability"] == [9, 0]


@pytest.mark.parametrize(
    ("gpus", "expected"), [((), "sdpa"), ((T4,), "sdpa"), ((H100,), "varlen"), ((H100, T4), "sdpa")]
)
def test_packed_attention_needs_every_card_to_be_ampere_or_newer(gpus, expected):
    pytest.importorskip("torch.nn.attention.varlen")
    assert _attention(gpus) == expected


def test_a_torch_that_raises_is_reported_and_not_raised(monkeypatch):
    torch = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: 1 / 0, device_count=lambda: 1 / 0))
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert _import_torch() == (None, "ZeroDivisionError: division by zero")
    assert find_gpus() == ()


class TestCardThatTorchCannotSee:
    @pytest.fixture(autouse=True)
    def card(self, monkeypatch):
        monkeypatch.setattr(MODULE, "_nvidia_smi_name", lambda: "NVIDIA A100")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def test_a_build_without_cuda_names_the_command_that_replaces_it(self):
        said = _driver_without_torch(CPU_TORCH, "")
        assert said.startswith("NVIDIA A100 is here, but torch can't see it: torch 2.13.0+cpu is a build without CUDA")
        assert "pip uninstall -y torch && pip install torch==2.13.0" in said

    def test_hidden_cards_are_named_as_hidden(self, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert "CUDA_VISIBLE_DEVICES is ''" in _driver_without_torch(CUDA_TORCH, "")

    def test_an_old_driver_is_told_in_torchs_words_with_the_fix(self):
        said = _driver_without_torch(CUDA_TORCH, "The NVIDIA driver on your system is too old (found version 11040).")
        assert "too old (found version 11040)" in said
        assert "update the NVIDIA driver" in said

    def test_a_torch_that_does_not_import(self):
        assert "pip install torch" in _driver_without_torch(None, "ImportError: libcudart.so.13")

    def test_no_card_says_nothing(self, monkeypatch):
        monkeypatch.setattr(MODULE, "_nvidia_smi_name", lambda: None)
        assert _driver_without_torch(CPU_TORCH, "") is None


class TestWhatTheSystemSays:
    @pytest.mark.parametrize(
        ("returncode", "stdout", "expected"),
        [
            (0, "NVIDIA L4\nNVIDIA L4\n", "NVIDIA L4"),
            (0, "No devices were found\n", None),
            (9, "has failed\n", None),
        ],
    )
    def test_nvidia_smi(self, monkeypatch, returncode, stdout, expected):
        done = subprocess.CompletedProcess([], returncode, stdout, "")
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
        assert _nvidia_smi_name() == expected

    def test_a_containers_limit_counts_its_file_cache_as_free(self, tmp_path):
        (tmp_path / "memory.max").write_text("8000\n")
        (tmp_path / "memory.current").write_text("5000\n")
        (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 1500\n")
        assert _cgroup_memory(tmp_path) == (8000, 4500)

    def test_no_limit_is_infinite(self, tmp_path):
        (tmp_path / "memory.max").write_text("max\n")
        assert _cgroup_memory(tmp_path) == (float("inf"), float("inf"))

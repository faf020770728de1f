"""Nothing asks the network: loading, answering, saving and exporting run with every connection refused."""

import socket

import pytest
from PIL import Image

from ivlkit.models.export.export import save_released
from ivlkit.models.load import load
from ivlkit.training.checkpoints import load_trained, save_trained
from ivlkit.training.recipes import recipe
from ivlkit.training.tuning import prepare


@pytest.fixture
def no_network(monkeypatch):
    def refuse(self, address):
        raise AssertionError(f"asked the network: {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: refuse(None, address))


def test_the_whole_path_asks_no_network(tiny, tmp_path, no_network):
    vlm = load(tiny)
    vlm.chat("What?", Image.new("RGB", (112, 112), "white"), max_new_tokens=2)
    model = prepare(vlm, recipe("nano-lora", model=str(tiny)))
    save_trained(model, tmp_path)
    load_trained(model, tmp_path)
    save_released(load(tiny), tmp_path / "released")
    assert (tmp_path / "adapter_model.safetensors").exists() and not (tmp_path / "README.md").exists()

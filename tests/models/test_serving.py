"""`transformers serve` on an export answers an OpenAI-style request as the run does: its prompt, its tile limit."""

import base64
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from ivlkit.data.datasets.opening import open_data
from ivlkit.models.chat import make_prompt
from ivlkit.models.export.export import export
from ivlkit.models.families import NANO_FOLDER
from ivlkit.nano.digits import write_digit_strips
from ivlkit.training.recipes import recipe
from ivlkit.training.runs import execute, write_run

PROMPT = "You read numbers aloud."


@pytest.fixture(scope="module", autouse=True)
def needed():
    """What `pip install 'transformers[serving]' torchvision` brings; a torchvision that doesn't fit torch fails."""
    missing = [name for name in ("fastapi", "uvicorn", "openai", "pydantic") if not importlib.util.find_spec(name)]
    if missing or subprocess.run([sys.executable, "-c", "import torchvision.io"], capture_output=True).returncode:
        pytest.skip(f"transformers serve needs {', '.join(missing) or 'a torchvision that fits torch'}")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(finished run on nano with a prompt and a tile limit of its own, test rows, its export)."""
    folder = tmp_path_factory.mktemp("serving")
    base = shutil.copytree(NANO_FOLDER, folder / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"system_message": PROMPT}))
    train, test = (
        write_digit_strips(folder / "data", part, rows=4, digits=(1, 3), tasks=("read",)) for part in ("train", "test")
    )
    settings = recipe("nano-lora", model=str(base), max_tiles=2, total_batch=2, per_device_batch=2, workers=0)
    run = write_run(settings, open_data(train), folder / "run")
    execute(run.folder)
    return run, open_data(test), export(run, folder / "hf", layout="transformers")


@pytest.fixture(scope="module")
def address(made):
    """Where the server listens, on this machine alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", made[2], "--host", "127.0.0.1"]
    options = ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    log = open(made[2].parent / "serve.log", "wb")  # noqa: SIM115
    server = subprocess.Popen([*command, *options], stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                break
            except urllib.error.URLError:
                assert server.poll() is None, Path(log.name).read_text()[-3000:]
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1/chat/completions"
    finally:
        server.terminate()
        server.wait()
        log.close()


def ask(address, model, question, picture):
    uri = f"data:image/png;base64,{base64.b64encode(Path(picture).read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": question}]
    body = {"model": str(model), "max_tokens": 16, "messages": [{"role": "user", "content": content}]}
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    found = json.load(urllib.request.urlopen(request))
    return found["choices"][0]["message"]["content"].strip(), found["usage"]["prompt_tokens"]


def test_the_server_replies_as_the_run_does_with_its_prompt_and_tile_limit(made, address, tmp_path):
    run, test, folder = made
    vlm = run.load()
    assert (vlm.processor.system_message, vlm.processor.max_tiles) == (PROMPT, 2)
    wide = tmp_path / "wide.png"
    Image.open(test[0].images[0]).resize((900, 450)).save(wide)  # of eight tiles but for the limit
    for picture in [wide, *(record.images[0] for record in test)]:
        question = "Read the number."
        own = vlm.chat(question, images=picture, max_new_tokens=16)
        tokens = len(make_prompt(vlm, question, [picture]).input_ids)
        assert ask(address, folder, question, picture) == (own.text, tokens)

"""The released architectures at their true size with random weights: load, answer, LoRA steps, export, on one GPU.

No released weights are needed, so replies mean nothing; layouts, shapes, memory and speed do.

    python benchmarks/true_size.py 2b --tokenizer FOLDER --work /tmp/true_size

FOLDER holds the tokenizer files of the family (tokenizer.model, tokenizer_config.json, …).
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
from factory.random_nano import CONFIG
from PIL import Image, ImageDraw

from ivlkit.data.datasets.opening import open_data
from ivlkit.models.export.export import export
from ivlkit.models.layouts.configuration import hf_config
from ivlkit.models.layouts.key_map import to_released
from ivlkit.models.layouts.safetensors_files import write_shards
from ivlkit.models.load import load
from ivlkit.models.modeling.internvl import ReleasedInternVLForConditionalGeneration
from ivlkit.models.shapes import RELEASED
from ivlkit.training.recipes import recipe
from ivlkit.training.runs import train


def main():
    """Run the steps for one size and print a JSON line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("key", choices=RELEASED)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--per-device-batch", type=int, default=4)
    parser.add_argument("--export", action="store_true", help="needs 4 bytes a parameter of host memory, twice")
    options = parser.parse_args()
    work = Path(options.work) / options.key
    shutil.rmtree(work, ignore_errors=True)
    timed("write", write_random, work / "model", options.key, Path(options.tokenizer))
    vlm = timed("load", load, work / "model")
    show("loaded", model=repr(vlm), gib=torch.cuda.max_memory_allocated() / 2**30)
    picture = draw_picture(640, 480)
    timed("first reply", vlm.chat, "What is shown?", picture, max_new_tokens=32)
    reply = timed("second reply", vlm.chat, "What is shown?", picture, max_new_tokens=32)
    show("reply", tiles=reply.num_tiles)
    vlm.release()
    del vlm
    run = timed("lora", fine_tune, work, options)
    history = run.history
    seconds = (history[-1]["seconds"] - history[0]["seconds"]) / (len(history) - 1)
    show("steps", losses=[round(line["loss"], 3) for line in history], seconds_a_step=round(seconds, 2))
    if options.export:
        timed("export", export, run, work / "exported")


def write_random(folder, key, tokenizer):
    """A folder in the released layout with random bf16 weights."""
    config = write_config(folder, key, tokenizer)
    with torch.device("meta"):
        state = ReleasedInternVLForConditionalGeneration(hf_config(config, image_token_id=5)).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in to_released(state, config).items()}
    torch.manual_seed(0)
    write_shards(Drawn(shapes), shapes, folder, dtype=torch.bfloat16)


class Drawn(dict):
    """{name: shape} that gives random values, on the GPU if there is one: no more than a tensor is ever there."""

    def __getitem__(self, name):
        shape, device = super().__getitem__(name), "cuda" if torch.cuda.is_available() else "cpu"
        if len(shape) == 1:
            return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
        return torch.randn(shape, device=device).mul_(0.02)


def write_config(folder, key, tokenizer):
    """The tokenizer's files and config.json, which is returned; no weights."""
    released = RELEASED[key]
    parts = {part: CONFIG[part] | released[part] for part in ("vision_config", "llm_config")}
    config = CONFIG | released | parts
    del config["system_message"]
    ignored = shutil.ignore_patterns("*.safetensors", "reference_chat.json")
    shutil.copytree(tokenizer, folder, ignore=ignored, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return config


def fine_tune(work, options):
    """A few LoRA steps on drawn pictures of the guide's usual sizes, batch and recipe as released."""
    images = work / "data" / "images"
    images.mkdir(parents=True)
    rows = []
    for number in range(options.steps * 16):
        width_px, height_px = ((640, 480), (1920, 1080), (448, 448), (800, 600))[number % 4]
        draw_picture(width_px, height_px, number).save(images / f"{number}.png")
        turns = [("human", "<image>\nWhat number is this?"), ("gpt", f"It is number {number}.")]
        turns = [{"from": role, "value": text} for role, text in turns]
        rows.append({"id": number, "image": f"images/{number}.png", "conversations": turns})
    path = work / "data" / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = recipe(
        f"{options.key}-lora", model=str(work / "model"), gpus=1, per_device_batch=options.per_device_batch, workers=8
    )
    return train(chosen, open_data(path), folder=work / "run").wait()


def draw_picture(width_px, height_px, number=0):
    """A few shapes and a number."""
    image = Image.new("RGB", (width_px, height_px), "#f4f1ea")
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 40, 40 + height_px // 2, 40 + height_px // 2), fill=(number * 37 % 255, 120, 60))
    draw.text((width_px // 2, height_px // 2), str(number), fill="black", font_size=60)
    return image


def timed(name, function, *arguments, **options):
    """Call it and print how long it took."""
    started = time.perf_counter()
    result = function(*arguments, **options)
    show(name, seconds=round(time.perf_counter() - started, 2))
    return result


def show(name, **values):
    """One JSON line."""
    print(json.dumps({"step": name} | values, default=str), flush=True)


if __name__ == "__main__":
    main()

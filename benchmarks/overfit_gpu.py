"""Proof that learning travels through the whole chain at true size: from random weights to plain transformers.

    python benchmarks/overfit_gpu.py --model 2b --tokenizer FOLDER --work /tmp/overfit            # one GPU
    python benchmarks/overfit_gpu.py --model 2b --work /tmp/overfit --stages float8 float8-loaded # goes on
    python benchmarks/overfit_gpu.py --model nano --work /tmp/overfit --rate 1e-3 --adapter-rate 3e-3 # on a CPU

Four questions about two pictures, with another answer for each picture, are learned by heart by a full fine-tune. It is
exported in both merged layouts and answers in fresh processes, of the transformers layout without ivlkit. Then LoRA, on
weights in bf16, float8 and NF4, learns the answers swapped between the pictures, is merged, and answers again.

A stage is a process and a JSON line: seconds with its start, GiB of the GPU at the peak (of training, its run's), how
many of the 8 greedy replies are right letter by letter, the last loss. The first that fails ends the program; called
again it goes on from what is there. What no later stage needs is deleted: the 2B takes 40 GB of disk at most.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch  # ivlkit is imported by the stages that may: one is plain transformers alone

QUESTIONS = {  # the answer to the first picture, and to the second
    "What is the shape?": ("circle", "square"),
    "What number is it?": ("17", "4205"),
    "Where does it hang?": ("in the small hall", "above the stairs"),
    "Who made it?": ("Ada Lovelace", "Emmy Noether"),
}
FIGURES, NEW_TOKENS = "figures.json", 32
ADAPTERS = {"lora": {}, "float8": {"weights": "float8"}, "nf4": {"weights": "nf4"}}


def main():
    """Each stage in a process of its own, one after the other."""
    options = parse()
    if options.child:
        return child(options)
    from true_size import show  # which imports ivlkit

    options.work.mkdir(parents=True, exist_ok=True)
    for stage in options.stages:
        began = time.perf_counter()
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--child", stage], check=True)
        figures = json.loads((options.work / FIGURES).read_text())
        show(stage, model=options.model, seconds=round(time.perf_counter() - began, 1), **figures)
        if figures["right"] not in (None, 2 * len(QUESTIONS)):
            raise SystemExit(
                f"{stage}: {figures['right']} replies are right; raise --steps or the rate, and go on there"
            )


def parse():
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("nano", "2b"), default="2b")
    parser.add_argument("--tokenizer", type=Path, help="folder of the 2B's tokenizer files")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps of a training, each of all 8 rows")
    parser.add_argument("--rate", type=float, default=1e-4, help="of the full fine-tune")
    parser.add_argument("--adapter-rate", type=float, default=5e-4)
    parser.add_argument("--vision", choices=("frozen", "full"), default="frozen", help="of the full fine-tune")
    parser.add_argument("--child", choices=STAGES, help=argparse.SUPPRESS)
    return parser.parse_args()


def child(options):
    """One stage; its figures go to a file, since other programs print what they like."""
    figures = {"peak_gib": None, "right": None, "loss": None} | (STAGES[options.child](options) or {})
    if figures["peak_gib"] is None and torch.cuda.is_available():
        figures["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    (options.work / FIGURES).write_text(json.dumps(figures))


# stages --------------------------------------------------------------------------------------------------------------


def write(options):
    """Random weights in the released layout, two pictures, the rows and the same with their answers swapped."""
    from factory.random_nano import build
    from PIL import ImageOps
    from true_size import draw_picture, write_random

    from ivlkit.models.processor import load_processor

    model = options.work / "written"
    if options.model == "nano":
        build(model)
    else:
        write_random(model, options.model, options.tokenizer)
    tile_px = load_processor(model).tile_px
    first = draw_picture(2 * tile_px, tile_px, 1)  # two tiles and a thumbnail
    for number, picture in enumerate((first, ImageOps.invert(first))):
        picture.save(options.work / f"{number}.png")
    for name, order in (("rows", (0, 1)), ("swapped", (1, 0))):
        rows = [
            {"image": f"{number}.png", "conversations": [turn("human", question), turn("gpt", answers[order[number]])]}
            for question, answers in QUESTIONS.items()
            for number in (0, 1)
        ]
        path = options.work / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def turn(role, text):
    """As rows have it."""
    return {"from": role, "value": text}


def full(options):
    """Language model and projector; the checkpoint of the last step, 26 GB of the 2B, goes at once."""
    changes = {"vision": options.vision, "learning_rate": options.rate, "drop_path": 0.0}
    run = learn(options, "full", "full", "rows", model=str(options.work / "written"), **changes)
    for path in run.folder.glob("checkpoint-*"):
        shutil.rmtree(path)
    return of_run(run)


def learn(options, name, method, rows, **changes):
    """Train and wait: every step has all rows, nothing is dropped, the rate stays the same."""
    import ivlkit as ivl

    folder = options.work / name
    changes |= {"total_batch": 8, "per_device_batch": 8, "max_seq_length": 1024, "gpus": 1, "lora_dropout": 0.0}
    changes |= {"scheduler": "constant", "warmup_ratio": 0.0, "epochs": options.steps, "save_steps": options.steps}
    chosen = ivl.recipe(f"{options.model}-{method}", **changes)
    if folder.exists() and ivl.attach(folder).recipe != chosen:  # an earlier call's, of other steps or another rate
        shutil.rmtree(folder)
    return ivl.train(chosen, options.work / f"{rows}.jsonl", folder=folder).wait()


def of_run(run):
    """A run's figures."""
    last = run.history[-1]
    return {"peak_gib": round(last["memory_gib"], 2), "loss": last["loss"]}


def evaluated(options):
    """What `evaluate` says of the full fine-tune."""
    import ivlkit as ivl

    report = ivl.evaluate(ivl.attach(options.work / "full"), options.work / "rows.jsonl", progress=False)
    return {"right": round(report.score * len(report.rows))}


def exported(options):
    """In both merged layouts; the run and the random weights go."""
    import ivlkit as ivl

    for layout in ("released", "transformers"):
        shutil.rmtree(options.work / layout, ignore_errors=True)
        ivl.export(ivl.attach(options.work / "full"), options.work / layout, layout=layout)
    for name in ("full", "written"):
        shutil.rmtree(options.work / name)


def loaded(options, name, rows):
    """The replies of an export, one question at a time."""
    import ivlkit as ivl

    vlm = ivl.load(options.work / name)
    return {"right": count_right(options, rows, partial(vlm.chat, max_new_tokens=NEW_TOKENS))}


def count_right(options, rows, ask):
    """How many rows `ask(question, path of the picture)` answers as they do."""
    rows = map(json.loads, (options.work / f"{rows}.jsonl").read_text().splitlines())
    asked = [(*(said["value"] for said in row["conversations"]), options.work / row["image"]) for row in rows]
    return sum(str(ask(question, path)) == answer for question, answer, path in asked)


def plain(options):
    """The replies of transformers alone, as the export's README.md says for a machine without torchvision."""
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    folder, device = options.work / "transformers", "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").to(device)
    cut, tokenizer = AutoImageProcessor.from_pretrained(folder, backend="pil"), AutoTokenizer.from_pretrained(folder)
    tile_tokens = json.loads((folder / "processor_config.json").read_text())["image_seq_length"]

    def ask(question, path):
        pictures = cut(Image.open(path), return_tensors="pt")
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        places = "<IMG_CONTEXT>" * (tile_tokens * int(pictures["num_patches"][0]))
        text = text.replace("<IMG_CONTEXT>", f"<img>{places}</img>")
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(device)
        pixels = pictures["pixel_values"].to(device, model.dtype)
        ids = model.generate(**inputs, pixel_values=pixels, max_new_tokens=NEW_TOKENS)
        return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    figures = {"class": type(model).__name__, "right": count_right(options, "rows", ask)}
    if "ivlkit" in sys.modules:
        raise RuntimeError("ivlkit was imported; expected transformers alone")
    return figures


def adapted(options, name):
    """An adapter on the export learns the swapped answers, and is merged as its guide says."""
    import ivlkit as ivl

    changes = ADAPTERS[name] | {"learning_rate": options.adapter_rate, "model": str(options.work / "released")}
    run, merged = learn(options, name, "lora", "swapped", **changes), options.work / f"{name}-merged"
    shutil.rmtree(merged, ignore_errors=True)
    ivl.export(run.load(quantize="4bit") if name == "nf4" else run, merged)  # NF4: the weights it was trained on
    return of_run(run)


def adapted_loaded(options, name):
    """The replies of the merged adapter, which goes if they are right."""
    figures = loaded(options, f"{name}-merged", "swapped")
    if figures["right"] == 2 * len(QUESTIONS):
        shutil.rmtree(options.work / f"{name}-merged")
    return figures


STAGES = {
    "write": write,
    "full": full,
    "evaluate": evaluated,
    "export": exported,
    "loaded": partial(loaded, name="released", rows="rows"),
    "plain": plain,
}
for _name in ADAPTERS:
    STAGES |= {_name: partial(adapted, name=_name), f"{_name}-loaded": partial(adapted_loaded, name=_name)}


if __name__ == "__main__":
    main()

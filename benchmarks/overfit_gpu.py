"""Proof that learning travels through the whole chain at true size: from random weights to plain transformers.

    python benchmarks/overfit_gpu.py --model 2b --tokenizer FOLDER --work /tmp/overfit     # one GPU
    python benchmarks/overfit_gpu.py --model nano --work /tmp/overfit                                       # anywhere
    python benchmarks/overfit_gpu.py --model 2b --work /tmp/overfit --stages float8 float8-loaded           # goes on

Four questions about two pictures, with another answer for each picture, are learned by heart by a full fine-tune. It is
exported twice and answers in fresh processes, once without ivlkit. Then LoRA, on weights in bf16, float8 and NF4,
learns the answers swapped between the pictures: what the export says can't help. Each is merged and loaded again.

A stage is a process and a JSON line: seconds with its start, GiB of the GPU at the peak of what it did (of training, of
its run), how many of the 8 greedy replies are the answer, letter by letter, and the last loss. One that finds what an
earlier call left goes on from there. What no later stage needs is deleted: 40 GB of disk are enough for the 2B.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch  # ivlkit is imported by the stages that may: one is plain transformers alone

QUESTIONS = {  # the answer to the first picture, and to the second
    "What is the shape?": ("circle", "square"),
    "What number is it?": ("17", "4205"),
    "Where does it hang?": ("in the small hall", "above the stairs"),
    "Who made it?": ("Ada Lovelace", "Emmy Noether"),
}
ADAPTERS = {"lora": {}, "float8": {"weights": "float8"}, "nf4": {"weights": "nf4"}}


def main():
    """Each stage in a process of its own, in their order; an error ends them, replies that are wrong do at the end."""
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    wrong = []
    for stage in options.stages:
        result, began = options.work / "stage.json", time.perf_counter()
        result.unlink(missing_ok=True)
        code = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--child", stage]).returncode
        line = json.loads(result.read_text()) if code == 0 else {"error": f"ended with {code}"}
        seconds = round(time.perf_counter() - began, 1)
        text = json.dumps({"model": options.model, "stage": stage, "seconds": seconds} | line)
        print(text, flush=True)
        with open(options.work / "overfit.jsonl", "a") as file:
            file.write(text + "\n")
        if code:
            raise SystemExit(f"{stage} ended with {code}; mend it and go on with --stages {stage} …")
        if line["right"] not in (None, 2 * len(QUESTIONS)):
            wrong.append(stage)
    if wrong:
        raise SystemExit(f"not all replies are right: {', '.join(wrong)}; raise --steps or a rate")


def parse():
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("nano", "2b"), default="2b")
    parser.add_argument("--tokenizer", type=Path, help="folder of the 2B's tokenizer files")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--steps", type=int, default=120, help="optimiser steps of a training, each of all 8 rows")
    parser.add_argument("--rate", type=float, default=2e-4, help="of the full fine-tune")
    parser.add_argument("--adapter-rate", type=float, default=1e-3)
    parser.add_argument("--vision", choices=("frozen", "full"), default="frozen", help="of the full fine-tune")
    parser.add_argument("--child", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        raise SystemExit
    return options


def child(options):
    """One stage; its figures go to the parent as a file, since other programs print what they like."""
    figures = {"peak_gib": None, "right": None, "loss": None} | (STAGES[options.child](options) or {})
    if figures["peak_gib"] is None and torch.cuda.is_available():
        figures["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    (options.work / "stage.json").write_text(json.dumps(figures))
    os._exit(0)


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
    run = learn(options, "full", "rows", model=str(options.work / "written"), **changes)
    for path in run.folder.glob("checkpoint-*"):
        shutil.rmtree(path)
    return of_run(run)


def learn(options, name, rows, *, model, **changes):
    """Train and wait: every step has all rows, nothing dropped, the rate from the first step on."""
    import ivlkit as ivl

    chosen = ivl.recipe(
        f"{options.model}-{'lora' if name in ADAPTERS else 'full'}",
        model=model,
        gpus=1,
        total_batch=8,
        per_device_batch=8,
        max_seq_length=1024,
        epochs=options.steps,
        save_steps=options.steps,
        warmup_ratio=0.0,
        scheduler="constant",
        gradient_checkpointing="none",
        **changes,
    )
    return ivl.train(chosen, options.work / f"{rows}.jsonl", folder=options.work / name).wait()


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
        if not (options.work / layout).exists():
            ivl.export(ivl.attach(options.work / "full"), options.work / layout, layout=layout)
    shutil.rmtree(options.work / "full")
    shutil.rmtree(options.work / "written")


def loaded(options, folder, rows):
    """The replies of an export, one question at a time."""
    import ivlkit as ivl

    vlm = ivl.load(options.work / folder)
    return {"right": count_right(options, rows, vlm.chat)}


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
    processor = json.loads((folder / "processor_config.json").read_text())
    cut, tokenizer = AutoImageProcessor.from_pretrained(folder, backend="pil"), AutoTokenizer.from_pretrained(folder)

    def ask(question, path):
        pictures = cut(Image.open(path), return_tensors="pt")
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages, form = [{"role": "user", "content": content}], {"add_generation_prompt": True, "tokenize": False}
        places = "<IMG_CONTEXT>" * (processor["image_seq_length"] * int(pictures["num_patches"][0]))
        text = tokenizer.apply_chat_template(messages, **form).replace("<IMG_CONTEXT>", f"<img>{places}</img>")
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(device)
        ids = model.generate(**inputs, pixel_values=pictures["pixel_values"].to(device, model.dtype))
        return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    figures = {"class": type(model).__name__, "right": count_right(options, "rows", ask)}
    shutil.rmtree(folder)
    if any(name.partition(".")[0] == "ivlkit" for name in sys.modules):
        raise RuntimeError("ivlkit was imported; expected transformers alone")
    return figures


def adapted(options, name):
    """An adapter on the export learns the swapped answers, and is merged as its guide says."""
    import ivlkit as ivl

    changes = ADAPTERS[name] | {"learning_rate": options.adapter_rate, "lora_dropout": 0.0}
    run = learn(options, name, "swapped", model=str(options.work / "released"), **changes)
    source = run.load(quantize="4bit") if name == "nf4" else run  # the weights that the adapter was trained on
    if not (options.work / f"{name}-merged").exists():
        ivl.export(source, options.work / f"{name}-merged")
    return of_run(run)


def adapted_loaded(options, name):
    """The replies of the merged adapter, which then goes."""
    figures = loaded(options, f"{name}-merged", "swapped")
    for folder in (name, f"{name}-merged"):
        shutil.rmtree(options.work / folder)
    return figures


STAGES = {
    "write": write,
    "full": full,
    "evaluate": evaluated,
    "export": exported,
    "loaded": lambda options: loaded(options, "released", "rows"),
    "plain": plain,
}
for _name in ADAPTERS:
    STAGES[_name] = lambda options, name=_name: adapted(options, name)
    STAGES[f"{_name}-loaded"] = lambda options, name=_name: adapted_loaded(options, name)


if __name__ == "__main__":
    main()

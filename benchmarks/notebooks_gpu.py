"""The course on one GPU: every notebook with a released model's true size, on a card with little memory left free.

    export PYTHONPATH=.
    python benchmarks/notebooks_gpu.py --models 2b --free-gib 22 --work /tmp/gpu --tokenizer 'FOLDER/internvl-{key}'
    python benchmarks/notebooks_gpu.py --table          # what is known so far
    python benchmarks/notebooks_gpu.py --boxes          # write it into the notebooks: "On your GPU"
    python benchmarks/notebooks_gpu.py --drop-ballast --work /tmp/gpu

The weights are random: replies mean nothing and use all the tokens that they may; memory and time are those of the
released model. A process of its own, the ballast, takes memory of the card until `--free-gib` are left; it stays when
this program ends. A later call goes on with the notebooks that are missing or failed.
"""

import argparse
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import nbclient
import nbformat
import psutil

from ivlkit.data.files import appearing, write_whole
from ivlkit.errors import TrainingError
from ivlkit.hardware import GIB
from ivlkit.models.families import FAMILIES
from ivlkit.training.estimate.cards import CARDS, match_card

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
OUT = Path(__file__).with_suffix(".json")
HEADING = "## On your GPU"
PREDICTED_CARDS = ("RTX 3090", "RTX 4090", "RTX 5090", "L4")
FIRST_SECONDS = 60  # of a notebook that never ran: one that takes longer than is left is ended, and known then
AFTER_SECONDS = 30  # for the plans beside its runs
SAMPLE_SECONDS = 0.5
# Of a notebook that only asks: assumed, not measured.
PICTURE_TILES, TILE_PATCHES, TILE_TOKENS = 5, 1025, 256
LAYER_SECONDS = 0.001  # a decoder layer's kernels are launched in, for one token: the least that a token takes


@dataclass(frozen=True)
class Lesson:
    """How a notebook is run here, and what its box says beside the figures."""

    settings: dict = field(default_factory=dict)  # parameters beside MODEL and RECIPE: text of their values
    asks: tuple | None = None  # (pictures, replies one after the other, tokens of each), where nothing is trained
    cards: int = 1  # that it needs; with fewer it runs nano without any
    change: str = ""  # what to set on a GPU, where MODEL and RECIPE do not say it
    note: str = ""  # below the table


# The 26B where its 51 GB in bf16 don't fit: parameters of the notebooks that have them.
SMALL = {"LAYOUTS": '["adapter"]', "EPOCHS": "1"}
FLOAT8 = SMALL | {"CHANGES": '{"weights": "float8"}', "LOADING": '{"quantize": "float8"}'}
NF4 = SMALL | {
    "CHANGES": '{"language": "qlora", "vision_offload": True, "bin_tokens": 4096}',
    "LOADING": '{"quantize": "4bit", "tower_device": "cpu"}',
}
FITTING = ((40, NF4), (60, FLOAT8))  # below so many GiB

LESSONS = {
    "00_first_look": Lesson({"ROWS": "12"}, asks=(14, 3, 64)),
    "01_download": Lesson(asks=(6, 6, 48), note="The download of 4.4 GB comes first and is not counted."),
    "02_dynamic_tiling": Lesson(
        note="The CPU does the tiling, so every card shows the same. Of the released model only the tokenizer and the "
        "configuration are read. The replies are nano's with every `MODEL`."
    ),
    "03_conversation_to_labels": Lesson(
        {"ROWS": "8"},
        asks=(16, 16, 12),
        note="Every chip is a real token of the released tokenizer, a tile has 256 image tokens, and `<|im_end|>` ends "
        'an answer. With `"4b"` it is `<|end|>`, and a role token swallows the newline after it. '
        "What is trained is nano with every `MODEL`.",
    ),
    "04_inside_the_model": Lesson(
        {"PROBE_ROWS": "60"},
        asks=(21, 3, 64),
        note="`looks_figure` goes backward through the language model once for each token. There are 256 features a "
        "tile, so the maps are finer, and a tile has 524,288 numbers: take at most `PROBE_ROWS = 200`. The 26B in bf16 "
        "needs a card of 80 GB.",
    ),
    "05_your_data": Lesson(note="The CPU does all of it. Of the released model only the tokenizer is read."),
    "06_memory_and_time": Lesson(
        note="Without `CARD`, `ivl.plan` reads what is free and names the programs that hold the rest. Training starts "
        "with the largest batch of the plan, so a lack of memory shows in the first minute, with advice in place of a "
        "traceback."
    ),
    "07_finetune_lora": Lesson({"TRAIN_ROWS": "160", "TEST_ROWS": "16"}),
    "08_evaluate": Lesson(
        {"SIZES": "[32, 96]", "TEST_ROWS": "32"},
        note="Scores do not depend on the card. A card of 24 GB asks in smaller batches (`batch_size=8`), one of 80 GB "
        "takes `batch_size=64`. In bfloat16 a few replies differ from one batch size to another: keep it the same for "
        "both models that you compare.",
    ),
    "09_label_train_review": Lesson({"TEST_ROWS": "32"}),
    "10_export_and_share": Lesson(
        {"ROWS": "96"},
        note="Merging reads and writes one tensor after another; most of its time is the proof. A 26B model needs "
        "another 51 GB of disk, and for its proof a card of 80 GB or as much host memory; its adapter alone neither.",
    ),
    "11_finetune_full": Lesson(
        {"TRAIN_ROWS, EPOCHS": "96, 1", "NEW_ROWS, OLD_ROWS": "16, 24"},
        note="Full fine-tuning of a released model does not fit into 24 GB: set `RECIPE` to its LoRA there. "
        '`ivl.plan("2b-full")` says what your card needs for all weights.',
    ),
    "12_the_loop": Lesson(
        change='`MODEL = "2b"` and `RECIPE = "2b-lora"`',
        note="The cell of the loop then computes in bfloat16 beside float32 adapters (`torch.autocast`) and recomputes "
        "activations (`wrap_layers`). This notebook sets `packing=False`, so rows are padded; the recipe's own bins "
        "waste less.",
    ),
    "13_many_gpus": Lesson(
        {"ZERO": "0"},
        cards=2,
        change='`MODEL = "2b"`, and `GPUS` to what `nvidia-smi` counts',
        note="Two processes need two cards. For full fine-tuning take "
        "the lowest ZeRO stage that `ivl.plan` says fits; LoRA of 2B and 4B needs none (DDP). With `zero_offload=True` "
        "the optimizer's state moves to the host's memory. A checkpoint of any stage is written whole: `run.load()` "
        "loads it on one GPU.",
    ),
    "my_project": Lesson(note="The plan above is about your own rows: it says minutes and GiB before anything trains."),
}


def main():
    """Measure what is missing and print the table, or do the one thing that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["2b"], choices=FAMILIES)
    parser.add_argument("--notebooks", nargs="+", default=list(LESSONS), choices=LESSONS)
    parser.add_argument("--free-gib", type=float, default=22.0, help="of the card: 22 for 24 GB and a screen")
    parser.add_argument("--no-ballast", action="store_true", help="leave the whole card free")
    parser.add_argument("--work", type=Path, default=Path("runs/notebooks_gpu"))
    parser.add_argument("--tokenizer", help="folder of a released tokenizer's files; {key} is the model")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seconds", type=float, default=math.inf, help="start nothing that would take longer")
    parser.add_argument("--again", action="store_true", help="repeat what is there too")
    parser.add_argument("--full", action="store_true", help="train all weights where the notebook does")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the notebooks whose boxes are written")
    for name in ("--table", "--boxes", "--drop-ballast", "--hold"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS if name == "--hold" else None)
    options = parser.parse_args()
    options.work = options.work.resolve()
    if options.hold:
        hold(options.free_gib, ballast_file(options.work))
    elif options.drop_ballast:
        drop_ballast(options.work)
    elif options.boxes:
        write_boxes(options.folder, read_rows(options.out))
    else:
        left = [] if options.table else measure(options)
        print(table(read_rows(options.out)), *(f"left for another call: {job}" for job in left), sep="\n")


def measure(options):
    """Run the notebooks that are missing, then those that failed; write the JSON after each. Returns what is left."""
    end, left = time.monotonic() + options.seconds, []
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ |= {  # of kernels and of what they start too
        "PYTHONPATH": os.pathsep.join(os.path.abspath(place) for place in [ROOT, *python_path()]),
        "IVLKIT_MODELS": str(options.work / "pretrained"),
        "HF_HUB_OFFLINE": "1",
        "JUPYTER_RUNTIME_DIR": str(options.work / "jupyter"),
        "IPYTHONDIR": str(options.work / "ipython"),
    }
    cards = read_cards()
    card = card_key(cards)
    free_gib = None if options.no_ballast else options.free_gib
    if free_gib is not None:
        hold_ballast(options.work, free_gib)
    places = [(key, card, free_gib, name) for key in options.models for name in options.notebooks]
    how = {"free_gib": free_gib, "cards": len(cards), "full": options.full}
    prepared = {place: prepare(place[-1], place[0], **how) for place in places}
    for place in unfinished(places, read_rows(options.out), again=options.again):
        key, _, _, name = place
        if time.monotonic() + expected_seconds(name, read_rows(options.out)) > end:
            left.append(f"{key} {name}")
            continue
        write_model(key, options.work, options.tokenizer)
        notebook, settings = prepared[place]
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if len(cards) < LESSONS[name].cards else {}
        seconds = end - time.monotonic() - AFTER_SECONDS
        row = run_lesson(place, notebook, settings, options.work, environment=os.environ | hidden, seconds=seconds)
        write_rows(options.out, read_rows(options.out) | {place: row})
    return left


def python_path():
    """Entries of $PYTHONPATH."""
    return [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]


def unfinished(places, rows, *, again=False):
    """Those without a row, then those whose row has an error; with `again` all of them, in this order too."""
    missing = [place for place in places if place not in rows]
    failed = [place for place in places if place in rows and rows[place]["error"]]
    return missing + failed + [place for place in places if again and place not in missing + failed]


def expected_seconds(name, rows):
    """What a notebook took before, on any model and card, and what comes after it."""
    took = [60 * row["minutes"] for row in rows.values() if row["notebook"] == name]
    return max(took, default=FIRST_SECONDS) + AFTER_SECONDS


def prepare(name, key, *, free_gib=None, cards=1, full=False):
    """(the notebook with this model's and small parameters, {parameter: text of its value}).

    A check is about what a trained model does: it may fail. Nothing else may.
    Raises: ValueError for a parameter that the notebook does not have once.
    """
    notebook, lesson = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4), LESSONS[name]
    (chosen,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    own = re.search(r'^RECIPE = "nano-(\w+)"', chosen.source, re.MULTILINE)
    on_nano = key == "nano" or cards < lesson.cards
    settings = {"MODEL": '"nano"' if on_nano else f'"{key}"'}
    if own and not on_nano:
        settings["RECIPE"] = f'"{key}-{own[1] if full else "lora"}"'
    settings |= lesson.settings
    if key == "26b" and free_gib is not None:
        fitting = next((values for gib, values in FITTING if free_gib < gib), {})
        settings |= {each: fitting[each] for each in fitting if re.search(rf"^{each} = ", chosen.source, re.MULTILINE)}
    for parameter, text in settings.items():
        pattern = rf"^{re.escape(parameter)} = .*?(?=  #|$)"
        chosen.source, count = re.subn(pattern, f"{parameter} = {text}", chosen.source, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"{name}: {count} lines `{parameter} = …` among its parameters; expected 1; see LESSONS")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "check" in cell.metadata.get("tags", []):
            cell.metadata.tags = ["raises-exception"]
    return notebook, settings


def write_model(key, work, tokenizer):
    """The model with random weights where its key is looked for, unless it is there."""
    folder = work / "pretrained" / FAMILIES[key].name
    if key == "nano" or folder.exists():
        return
    if tokenizer is None:
        raise ValueError(f"{key}: no --tokenizer; expected a folder with the released tokenizer's files; name one")
    print(f"{folder}: writing random weights", flush=True)
    apart(_write_model, folder, key, Path(tokenizer.format(key=key)))


def _write_model(folder, key, tokenizer):
    from true_size import write_random

    with appearing(folder) as aside:
        write_random(aside, key, tokenizer)


def apart(function, *arguments):
    """Call it in a process of its own, which gives the card's memory back when it ends."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def run_lesson(place, notebook, settings, work, *, environment, seconds):
    """Execute one notebook in a copy of the folder: its row of the table. What was executed is kept in `executed/`."""
    key, card, free_gib, name = place
    print(f"{name} with {key}: started", flush=True)
    copy = work / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(FOLDER, copy / "notebooks")
    row = {"model": key, "card": card, "free_gib": free_gib, "notebook": name, "settings": settings}
    row |= execute(notebook, copy / "notebooks", environment, seconds=seconds)
    kept = work / "executed" / f"{key}-{name}.ipynb"
    write_whole(kept, nbformat.writes(notebook))
    row |= {"runs": [], "predicted": {}}
    on_card = card != "CPU" and settings["MODEL"] != '"nano"'
    try:
        row |= apart(read_runs, copy, card if on_card else None)
    except Exception as error:  # the row keeps what was measured, and says that it is not whole
        row["error"] = row["error"] or f"its runs beside their plans: {first_line(error)}"
    if on_card and not row["runs"] and LESSONS[name].asks and "LOADING" not in settings:
        row["predicted"] = {other: predict_asking(key, other, *LESSONS[name].asks) for other in PREDICTED_CARDS}
    shutil.rmtree(copy)
    print(f"{name} with {key}: {row['error'] or 'no error'}, {row['minutes']} minutes", flush=True)
    return row


def execute(notebook, folder, environment, *, seconds):
    """Minutes, peaks and the first error of a notebook, which gets its outputs; no process of it is left."""
    begun = []
    client = nbclient.NotebookClient(
        notebook,
        timeout=None if math.isinf(seconds) else math.ceil(seconds) + 60,  # `watched` is the one that ends it
        startup_timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        on_cell_start=lambda cell, cell_index: begun.append(cell_index),
    )
    started, raised = time.monotonic(), None
    with watched(seconds) as seen:
        try:
            client.execute(env=dict(environment))
        except (nbclient.exceptions.CellExecutionError, RuntimeError, TimeoutError) as error:
            raised = error
    cells = notebook.cells[: begun[-1] + 1] if begun else []
    where = f"cell {sum(cell.cell_type == 'code' for cell in cells)}"
    said = f"out of time after {seconds:.0f} s" if seen.out_of_time else raised and first_line(raised)
    return {
        "error": f"{where}: {said}" if raised else None,
        "kernel_alive": seen.out_of_time or not isinstance(raised, nbclient.exceptions.DeadKernelError),
        "minutes": round((time.monotonic() - started) / 60, 2),
        "card_gib": None if seen.card_gib is None else round(seen.card_gib, 2),
        "host_gib": round(seen.host_gib, 2),
    }


def first_line(error):
    """ "ValueError: two" of an error; of a cell's, what was raised in the kernel."""
    name, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    return f"{name}: {next(iter(text.strip().splitlines()), '')}"[:300]


@dataclass
class Seen:
    """Peaks of what a kernel and its children took; of the card, what all programs take less what they took before."""

    card_gib: float | None = None
    host_gib: float = 0.0  # resident memory added up, so that shared pages count for each process
    processes: set = field(default_factory=set)
    out_of_time: bool = False


@contextmanager
def watched(seconds):
    """Sample what is started inside; end it after so many seconds, and what is left of it afterwards."""
    seen, over, others, before = Seen(), threading.Event(), set(psutil.Process().children(recursive=True)), read_cards()
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(_watch, seen, over, others, before, time.monotonic() + seconds)
        try:
            yield seen
        finally:
            over.set()
            pool.shutdown()
            _end(seen.processes)
            watching.result()  # raises what stopped the sampling


def _watch(seen, over, others, before, end):
    this = psutil.Process()
    while not over.wait(SAMPLE_SECONDS):
        if before:
            used = read_cards()[0][1] - before[0][1]
            seen.card_gib = max(seen.card_gib or 0.0, used)
        children = set(this.children(recursive=True)) - others
        seen.processes |= children
        seen.host_gib = max(seen.host_gib, sum(map(_resident_gib, children)))
        if time.monotonic() > end:
            seen.out_of_time = True
            _end(children)


def _resident_gib(process):
    with suppress(psutil.Error):  # it ended meanwhile
        return process.memory_info().rss / GIB
    return 0.0


def _end(processes):
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(list(processes), timeout=30)


def read_cards():
    """[(name, GiB in use)] of the cards that torch sees, the first one first; [] without any.

    Raises: CalledProcessError if nvidia-smi is here and fails.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "" or shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.used", "--format=csv,noheader,nounits"]
    command += [f"--id={visible}"] if visible else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    pairs = (line.rsplit(", ", 1) for line in done.stdout.splitlines())
    return [(name, float(used_mib) / 1024) for name, used_mib in pairs]


def card_key(cards):
    """The first card's key in CARDS; "CPU" without any. Raises: ValueError for a card that is not listed."""
    if not cards:
        return "CPU"
    found = [key for key, card in CARDS.items() if card is match_card(cards[0][0])]
    if not found:
        raise ValueError(f"{cards[0][0]}: not listed; expected one of {', '.join(CARDS)}; add it to cards.yaml")
    return found[0]


def read_runs(copy, card):
    """Each run of an executed notebook: its log beside its plan; of the longest, what other cards need and take.

    Those whose rows have changed since, as a table in which labels are still written, stand there without a plan.

    Args: card: key in CARDS of the one it ran on; None: the CPU, whose logged memory is the whole process's.
    Returns: {"runs": [a dict a run], "predicted": {card: {"gib", "minutes"}}}; other cards only beside a card.
    """
    from ivlkit.training.run import runs

    os.chdir(copy / "notebooks")  # a run names its model as seen from here
    found = [(run, _plan(run, card)) for run in runs("../runs") if run.history]
    predicted, planned = {}, [pair for pair in found if pair[1]]
    if card and planned:
        longest, _ = max(planned, key=lambda pair: pair[1].minutes)
        predicted = {other: _plan(longest, other) for other in PREDICTED_CARDS}
    return {
        "runs": [compare_run(run, plan, with_memory=bool(card)) for run, plan in found],
        "predicted": {
            other: {"gib": round(plan.needed_gib, 2), "minutes": round(plan.minutes, 2)}
            for other, plan in predicted.items()
        },
    }


def _plan(run, card):
    """The run's plan, or None if its rows have changed."""
    from ivlkit.training.estimate.planner import plan
    from ivlkit.training.run import open_again

    unlimited = {"card": card, "gpu_gib": math.inf} if card else {}  # no advice is wanted
    try:
        data = open_again(run)
    except TrainingError:
        return None
    return plan(run.recipe, data=data, **unlimited)


def compare_run(run, plan, *, with_memory):
    """{"run", "recipe", "steps", and the plan's and the log's GiB and minutes; None for what can't be compared}."""
    log = run.history
    minutes = minutes_of_steps(log, run.validation)
    return {
        "run": "/".join(run.folder.parts[2:]),
        "recipe": run.recipe.name,
        "steps": log[-1]["step"],
        "plan_gib": round(plan.cases[0].allocated_gib, 2) if plan and with_memory else None,
        "log_gib": round(max(line["memory_gib"] for line in log), 2) if with_memory else None,
        "plan_minutes": round(plan.minutes, 3) if plan else None,
        "log_minutes": None if minutes is None else round(minutes, 3),
    }


def minutes_of_steps(log, validation):
    """All steps at the pace of those after the first, which also loads weights and kernels; without validations.

    Args: log, validation: of a `Run`. Returns: None for a single step.
    """
    first, last = log[0], log[-1]
    if first["step"] == last["step"]:
        return None
    asked = sum(each["seconds"] for each in validation if first["step"] <= each["step"] < last["step"])
    pace = (last["seconds"] - first["seconds"] - asked) / (last["step"] - first["step"])
    return pace * last["steps"] / 60


def predict_asking(key, card, pictures, replies, tokens):
    """{"gib": of the weights, "minutes": to read pictures and to write replies of so many tokens, one after another}.

    Products at the planner's share of the card's rate; a token waits for the decoder's weights, or for its launches.
    """
    from ivlkit.models.shapes import RELEASED
    from ivlkit.training.estimate.prediction import MATRIX_SHARE

    (vision, _, language), card = FAMILIES[key].parts, CARDS[card]
    operations = 2 * pictures * PICTURE_TILES * (TILE_PATCHES * vision + TILE_TOKENS * language)
    layers = RELEASED[key]["llm_config"]["num_hidden_layers"]
    token = max(2 * language / (card.tb_per_second * 1e12), LAYER_SECONDS * layers)
    seconds = operations / (MATRIX_SHARE * card.matrix_rate) + replies * tokens * token
    return {"gib": round(2 * sum(FAMILIES[key].parts) / GIB, 2), "minutes": round(seconds / 60, 2)}


def hold_ballast(work, free_gib):
    """Have a process that leaves so much of the card free: the one that is there, or a new one.

    Raises: RuntimeError with what it printed if it ends.
    """
    path = ballast_file(work)
    found = find_ballast(path)
    if found and found["free_gib"] == free_gib:
        return
    drop_ballast(work)
    said = path.with_suffix(".txt")
    with open(said, "wb") as output:
        command = [sys.executable, __file__, "--hold", "--work", str(work), "--free-gib", str(free_gib)]
        child = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
        )
    while not path.exists():
        if child.poll() is not None:
            raise RuntimeError(f"the ballast ended with code {child.returncode}: {said.read_text()[-500:]}")
        time.sleep(0.1)


def hold(free_gib, path):
    """Take the card's memory in pieces until so much is left, say so in a file, and wait to be ended."""
    import torch

    held, piece = [], 1 << 30
    while piece >= 1 << 24:
        free, _ = torch.cuda.mem_get_info()
        if free - piece >= free_gib * GIB:
            held.append(torch.empty(piece, dtype=torch.uint8, device="cuda"))
        else:
            piece //= 2
    write_whole(path, json.dumps({"pid": os.getpid(), "free_gib": free_gib}) + "\n")
    signal.pause()


def ballast_file(work):
    """Where the ballast says which process it is."""
    return work / "ballast.json"


def find_ballast(path):
    """What the living ballast wrote, or None."""
    with suppress(FileNotFoundError, psutil.NoSuchProcess):
        found = json.loads(path.read_text())
        if "--hold" in psutil.Process(found["pid"]).cmdline():  # another program may have got the number
            return found
    return None


def drop_ballast(work):
    """End the ballast, if there is one."""
    path = ballast_file(work)
    if found := find_ballast(path):
        process = psutil.Process(found["pid"])
        process.terminate()
        process.wait(30)
    path.unlink(missing_ok=True)


def read_rows(path):
    """{(model, card, GiB left free or None, notebook): row}; {} where there is no file yet."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return {(row["model"], row["card"], row["free_gib"], row["notebook"]): row for row in rows}


def write_rows(path, rows):
    """Write all rows in the order of their keys."""
    ordered = [rows[place] for place in sorted(rows, key=str)]
    write_whole(path, json.dumps({"rows": ordered}, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def table(rows):
    """Markdown: a line a notebook; plans stand before what was logged, with what they are off by."""
    head = ("model", "card", "free GiB", "notebook", "error", "kernel", "minutes", "card GiB", "host GiB")
    lines = [[*head, "plan / log GiB", "plan / log minutes of steps"], ["---"] * (len(head) + 2)]
    for (key, card, free_gib, name), row in sorted(rows.items(), key=lambda item: str(item[0])):
        peaks = [row["minutes"], row["card_gib"], row["host_gib"]]
        state = [row["error"] or "none", "alive" if row["kernel_alive"] else "dead"]
        plans = ["; ".join(_beside(run, unit) for run in row["runs"]) for unit in ("gib", "minutes")]
        lines.append([key, card, free_gib, name, *state, *peaks, *plans])
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _beside(run, unit):
    """ "7.80 / 7.70 (+1 %)"."""
    plan, log = run[f"plan_{unit}"], run[f"log_{unit}"]
    return "–" if not plan or not log else f"{plan:.2f} / {log:.2f} ({plan / log - 1:+.0%})"


def _cell(value):
    return "–" if value in (None, "") else str(value).replace("|", "\\|")


def box(name, rows):
    """The Markdown of a notebook's cell "On your GPU", from rows of released models on a card, without an error."""
    lesson = LESSONS[name]
    measured = [row for row in rows.values() if row["notebook"] == name and not row["error"]]
    measured = [row for row in measured if row["model"] != "nano" and row["card"] != "CPU"]
    measured.sort(key=lambda row: (sum(FAMILIES[row["model"]].parts), -(row["free_gib"] or math.inf)))
    said = [
        _what_to_set(name, measured),
        _box_table(lesson, measured) if measured else "Not measured yet.",
        *map(_how_it_fits, measured),
        _what_is_off(measured),
        lesson.note,
    ]
    return "\n\n".join([HEADING, *filter(None, said)])


def _what_is_off(measured):
    """How far the plan's minutes were from those of the steps, where it was more than a quarter."""
    runs = [run for row in measured for run in row["runs"] if run["plan_minutes"] and run["log_minutes"]]
    off = max((run["log_minutes"] / run["plan_minutes"] for run in runs), default=1)
    return f"One run's steps took {off:.1f} times the minutes of its plan." if off > 1.25 else ""


def _how_it_fits(row):
    said = ", ".join(f"`{key} = {text}`" for key, text in row["settings"].items() if key in NF4)
    return said and f"`{row['model']}` with {row['free_gib']:g} GiB free: {said}."


def _what_to_set(name, measured):
    settings = measured[0]["settings"] if measured else {"MODEL": '"2b"'}
    named = " and ".join(f"`{key} = {settings[key]}`" for key in ("MODEL", "RECIPE") if key in settings)
    small = [f"`{key} = {value}`" for key, value in settings.items() if key in LESSONS[name].settings]
    about = f" The figures are for {', '.join(small)}." if small and measured else ""
    return f"Set {LESSONS[name].change or named}.{about}"


def _box_table(lesson, measured):
    """A line for a card with so much memory free, a column for a model; what was measured comes first."""
    cells = {}  # {(card, GiB free, what it is): {model: text}}
    for row in measured:
        used = row["settings"]["MODEL"].strip('"')
        if used == row["model"]:
            free = "all" if row["free_gib"] is None else f"{row['free_gib']:g}"
            place = row["card"], free, "measured, the whole notebook: random weights of true size"
            cells.setdefault(place, {})[used] = _minutes_and_gib(minutes=row["minutes"], gib=row["card_gib"])
        else:
            place = "none", "–", "measured, the whole notebook: its own weights, on the CPU beside the card"
            cells.setdefault(place, {})[used] = f"{row['minutes']:.1f} min"
    for row in {row["model"]: row for row in measured}.values():  # with the least memory
        for card, each in row["predicted"].items():
            fits = each["gib"] <= CARDS[card].gib
            text = _minutes_and_gib(**each) if fits else f"{each['gib']:.1f} GiB: does not fit"
            place = card, f"{CARDS[card].gib:g}", _predicted_what(lesson, row)
            cells.setdefault(place, {})[row["model"]] = text
    models = list(dict.fromkeys(model for texts in cells.values() for model in texts))
    lines = [["card", "GiB free", *models, "what it is"], ["---", "--:", *["---"] * len(models), "---"]]
    for (card, free, what), texts in cells.items():
        lines.append([card, free, *(texts.get(model, "–") for model in models), what])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _minutes_and_gib(*, minutes, gib):
    return f"{minutes:.1f} min, {gib:.1f} GiB"


def _predicted_what(lesson, row):
    """What the predicted minutes and GiB are of."""
    if row["runs"]:
        return "predicted: training alone"
    _, replies, tokens = lesson.asks
    return f"predicted: {replies} replies of {tokens} tokens, one after another; weights alone"


def write_boxes(folder, rows):
    """Write each notebook's box in place of the one that is there, else before its recap; outputs stay."""
    for path in sorted(folder.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        place_box(notebook, box(path.stem, rows))
        write_whole(path, nbformat.writes(notebook) + "\n")


def place_box(notebook, text):
    """Put the box into a cell of its own. What stands before or after it in one cell is kept, in cells of their own.

    Raises: ValueError for a notebook with neither a box nor a recap.
    """
    for pattern in (rf"^{HEADING}\n.*?(?=^## |\Z)", r"^(?=## Recap)"):
        for index, cell in enumerate(notebook.cells):
            found = cell.cell_type == "markdown" and re.search(pattern, cell.source, re.MULTILINE | re.DOTALL)
            if found:
                before, after = cell.source[: found.start()].strip(), cell.source[found.end() :].strip()
                cells = [(cell.id, before), ("on-your-gpu", text), (f"{cell.id}-2" if before else cell.id, after)]
                made = [nbformat.v4.new_markdown_cell(source, id=name) for name, source in cells if source]
                notebook.cells[index : index + 1] = made
                return
    raise ValueError(f"no cell with {HEADING!r} or '## Recap'; expected one of them; add a recap")


if __name__ == "__main__":
    main()

"""Every option of the command line, as argparse takes it; `COMMANDS` of cli.py says which command has which."""

import argparse
import difflib
import re

OPTIONS = {
    # Names that mean several things: with a command before it, what the option is there; without, everywhere else.
    "check data": {"help": "meta .json or .jsonl"},
    "evaluate data": {"help": "what training takes, or text-control: 70 questions that come with the kit"},
    "predict data": {"help": "a folder of pictures or videos, a table, a .jsonl; answers are not read"},
    "download model": {"help": "a key: 2b, 4b, 26b"},
    "verify model": {"help": "a key (nano, 2b, 4b, 26b) or a model folder"},
    "model": {"help": "a key (nano, 2b, 4b, 26b), a model folder or a run"},
    "benchmark model": {"nargs": "?"},
    "convert source": {
        "help": ".jsonl, .json list, .csv, .tsv, .xlsx, a folder with a sub-folder a class, or the file or folder of "
        "COCO, YOLO, Pascal VOC or Label Studio"
    },
    "export source": {"help": "a run or a model folder"},
    "--base": {"help": "key or folder of an adapter's base, where the one that it names is not here"},
    "--device": {"help": "default the GPU if there is one"},
    "--quantize": {
        "choices": ["4bit", "float8"],
        "help": "weights in few bits, for a card that is too small; a run's are as they trained",
    },
    "check --html": {"help": "write a page with figures and pictures"},
    "predict --html": {"help": "write a page with the least sure answers"},
    "evaluate --html": {"help": "write a page with examples"},
    "compare --html": {"help": "write a page with the rows won and lost"},
    "chat --image": {"action": "append", "default": [], "help": "may be given several times"},
    "convert --image": {"action": "append", "help": "column of the pictures; may be given several times"},
    "convert --images": {"help": "folder that picture paths start from; default the source's own"},
    "benchmark --images": {"help": "folder of the pictures, if they lie elsewhere"},
    "chat --max-new-tokens": {"type": int, "default": 1024},
    "--max-new-tokens": {"type": int, "default": 64},
    "--max-tiles": {"type": int, "help": "tile budget of a picture, instead of the model's (max_dynamic_patch)"},
    "train --metric": {"help": "a name or module:function that chooses the best weights; default: the validation loss"},
    "--skip-unusable": {"action": "store_true", "help": "mask a row that can't be used, in its place, and list it"},
    "--report-to": {"help": "a tracker that gets the log's numbers too: tensorboard, wandb, trackio"},
    "evaluate --metric": {"help": "default exact_match; of text-control contains"},
    "check --pictures": {"choices": ["exist", "header", "decode"], "default": "header"},
    "evaluate --pictures": {"default": "right", "help": "right, shuffled or none: does it look?"},
    "convert --split": {
        "default": "80/10/10",
        "help": "shares of train/validation/test by picture, none, or a column that says it; later ones move nothing",
    },
    "benchmark --split": {"help": "default the one that scores are usually given for"},
    "predict --to": {"help": "a .csv or .jsonl; called again, it goes on where it stopped"},
    "--to": {"help": "folder that keeps the replies: a stopped evaluation goes on there"},
    "download --to": {"help": "folder of the model; default pretrained/<name>, or below $IVLKIT_MODELS"},
    "convert --to": {"required": True, "help": "a new folder"},
    "train --to": {"help": "folder of the run; default runs/<recipe>-<hash>"},
    "export --to": {"required": True, "help": "a new folder"},
    "demo --to": {"default": "runs/demo"},
    "chat --video": {"help": "a video, an animation or a folder of frames, in place of pictures"},
    "convert --video": {"help": "column of videos, in place of --image"},
    "check --workers": {"type": int, "help": "processes; default one a core"},
    # Names that mean one thing.
    "--root": {"help": "folder of the pictures of a .jsonl"},
    "--json": {"action": "store_true"},
    "--coco": {"metavar": "FOLDER", "help": "write truths and replies of rows with boxes as COCO"},
    "--batch-size": {"type": int, "default": 16},
    "--model": {"help": "a key or a model folder, for exact lengths; no weights are needed"},
    "to": {"nargs": "?", "default": "work", "help": "folder of the copies; default work"},
    "--revision": {"help": "branch, tag or commit of the hub; default: what is here, else main"},
    "--max-seq-length": {"type": int, "default": 4096},
    "--limit": {"type": int, "default": 100, "help": "problems of a kind that are listed; all are counted"},
    "--problems": {"help": "write all problems as JSON lines"},
    "--strict": {"action": "store_true", "help": "exit code 1 for warnings too"},
    "--fix": {"action": "store_true", "help": "write mended copies beside the files: train.fixed.jsonl"},
    "question": {"nargs": "?"},
    "--format": {"help": "of JSON rows: released, llava, sharegpt, openai; default: detected"},
    "--question": {"help": "a column, or a sentence asked about every row"},
    "--answer": {"action": "append", "help": "a column; several make one JSON answer"},
    "--ask": {
        "action": "append",
        "metavar": "KIND",
        "help": "about boxes: class (the default), all or count, perhaps with words: 'class=Where is the {name}?'",
    },
    "--suffix": {"help": "a line after every question of a table"},
    "--seed": {"type": int, "default": 0},
    "--group": {"help": "a column or field, such as patient or document: all rows of one value on one side"},
    "--alike": {
        "choices": ["together", "apart"],
        "help": "pictures that look alike on one side, or not; default together for up to 10,000",
    },
    "--split-file": {"help": "where the split is kept; default beside the source, labels.csv.split.csv"},
    "--fetch": {"action": "store_true", "help": "fetch remote pictures; otherwise their rows are rejected"},
    "what": {"nargs": "?", "help": "a recipe's name or .yaml, as --dry-run prints it; of train also a run.yaml"},
    "--suggest": {"metavar": "MODEL", "help": "in place of a name: a recipe for this card and these rows"},
    "--data": {"help": "meta .json or .jsonl"},
    "--gpus": {"type": int},
    "--per-device-batch-size": {"type": int, "dest": "per_device_batch"},
    "--epochs": {"type": float},
    "--learning-rate": {"type": float},
    "--set": {"action": "extend", "nargs": "*", "default": [], "metavar": "FIELD=VALUE", "help": "other recipe fields"},
    "--gpu-gib": {"type": float, "help": "memory to fit into; default what is free here"},
    "--card": {"help": "a card by name, such as A100, for memory and minutes"},
    "predict --validation": {"help": "rows with answers, 50 at least: how often is an answer of a confidence right?"},
    "predict --question": {"help": "asked about every picture; of a table also a column"},
    "--validation": {"help": "meta .json or .jsonl of rows apart; default: the meta's validation split"},
    "--overfit": {"type": int, "metavar": "ROWS", "help": "learn so many rows by heart, as a test"},
    "--dry-run": {"action": "store_true", "help": "print what would run, and stop"},
    "--only-write": {"action": "store_true", "help": "write run.yaml, for a launcher on one host or several"},
    "--delete": {"action": "extend", "metavar": "FOLDER", "nargs": "+", "help": "remove these runs, once they ended"},
    "name": {"nargs": "?", "help": "textvqa, docvqa, infovqa, chartqa, pope, refcoco, coco_captions"},
    "folder": {"nargs": "?", "help": "where the benchmark's files lie"},
    "--rows": {"type": int, "help": "so many rows, drawn by seed 0, instead of all"},
    "--submission": {"help": "write the replies as the benchmark's server takes them"},
    "before": {"help": "a report.json, or the folder of evaluate --to"},
    "after": {},
    "--by": {"help": "field of the rows: those with the same value are drawn together for the interval"},
    "--csv": {"help": "write every row with both replies"},
    "--layout": {"default": "released", "help": "released, adapter or transformers"},
    "--push-to-hub": {"metavar": "NAME/MODEL", "help": "upload it too; private if it is new there"},
    "--for-students": {"action": "store_true", "help": "without solutions and outputs"},
}
OTHER_NAMES = {"--data": ("--meta-path", "--meta_path")}  # the released scripts' own


def declared(command, option):
    """What argparse takes for an option of a command."""
    own = f"{command} {option}"
    return OPTIONS[own if own in OPTIONS else option]


def add_command(commands, name, run, about, options, *examples):
    """Tell argparse of a command, as COMMANDS of cli.py describes it."""
    parser = commands.add_parser(
        name,
        help=about,
        description=about,
        epilog="\n  ".join(["examples:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, command=name)
    for option in options.split():
        parser.add_argument(option, *OTHER_NAMES.get(option, ()), **declared(name, option))


def unknown(command, names, word, hint=""):
    """What to say of a word that a command does not take. Args: hint: what to do; "": write the nearest option."""
    options = [name for name in names.split() if name.startswith("--")]
    near = difflib.get_close_matches(word.partition("=")[0], options, n=1)
    if not word.startswith("-"):  # a file, most likely
        near = [f"{name} {word}" for name in ("--data", "--image") if name in options]
    todo = hint or (f"write {near[0]}" if near else f"`ivlkit {command} --help` explains them")
    return f"{word}: nothing that {command} takes; expected one of {', '.join(options)}; {todo}"


def as_typed(text, command, names, settings=()):
    """An error's Python spelling as it is typed: "seed=-1" → "--seed -1", and of a recipe "--set packing=true".

    What stands in run.yaml ("gpus=2 in run.yaml") is read there, not typed; an option that is True has no value.

    Args: names: of the command's options, as COMMANDS has them; settings: the fields that its --set takes.
    """
    options = {destination(command, name): f"{name} " for name in names.split() if name.startswith("--")}
    typed = {name: f"--set {name}=" for name in settings} | options
    text = re.sub(r"(?:ivlkit\.load|train)\(…, (.*?)\)", r"\1", text)
    pattern = r"(?<![\w-])(?<!--set )(\w+)=(?=\S)(?!True\b)(?!\S+ in run\.yaml)"
    return re.sub(pattern, lambda found: typed.get(found[1], found[0]), text)


def destination(command, name):
    """The attribute that argparse keeps an option under: "max_tiles" for "--max-tiles"."""
    return declared(command, name).get("dest", name.lstrip("-").replace("-", "_"))

"""The command line: one sub-command a step, each a thin call of the package; COMMANDS, at the end, lists them."""

import argparse
import json
import sys
from contextlib import suppress
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import ivlkit as ivl

from .cli_options import add_command, as_typed, destination, unknown
from .data.files import check_writable
from .errors import DataError, IvlkitError, RecipeError, ended


def main(arguments=None):
    """Run one command; returns the exit code: 0, 1 if what it looked at is bad, 2 with a line for a user's mistake."""
    return ended(_run, arguments)


def _run(arguments):
    options, rest = _parse(arguments)
    try:
        if rest:
            _refuse(options.command, rest[0])
        for name in ("html", "csv", "submission"):  # not only once every reply is there
            if path := getattr(options, name, None):
                check_writable(path)
        return options.run(options) or 0
    except IvlkitError as error:
        names = COMMANDS[options.command][2]
        settings = _recipe_fields() if "--set" in names else ()
        print(f"ivlkit: {as_typed(str(error), options.command, names, settings)}", file=sys.stderr)
        return 2


def _recipe_fields():
    """{name: type} of what --set takes."""
    from .training.recipes import Recipe

    return {field.name: field.type for field in fields(Recipe)}


def _parse(arguments):
    """The optional question may come last: argparse alone takes none once an option stands before it."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(options, "question", "") is None:
        options.question, rest = rest[0], []
    return options, rest


def _refuse(command, word):
    """Raise DataError for what the command does not take, with what to write instead."""
    names, hint = COMMANDS[command][2], ""
    if "--set" in names and word.startswith("--"):
        from .training.recipes import meant

        hint = meant(word[2:].partition("=")[0].replace("-", "_"))
        hint += "=…" if hint.removeprefix("write ") in _recipe_fields() else ""
    raise DataError(unknown(command, names, word, hint))


def _parser():
    parser = argparse.ArgumentParser(
        prog="ivlkit",
        description="Fine-tune the InternVL 1.5 family on your own data.",
        epilog="Start with: ivlkit demo",
    )
    parser.add_argument("--version", action="version", version=f"ivlkit {ivl.__version__}")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # what the deepspeed launcher adds
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, entry in COMMANDS.items():
        add_command(commands, name, *entry)
    return parser


def _print(value, as_json):
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str) if as_json else value)


def _say(found, options):
    """Print what was found; a page that is asked for is written first."""
    if getattr(options, "html", None):
        found.save_html(options.html)
    _print(found.to_dict() if options.json else found, options.json)


def _named(options, names):
    """{"seed": 0, "video": None} for "seed video": what a function takes by the names of the options."""
    return {name: getattr(options, name) for name in names.split()}


def _run_machine(options):
    _say(ivl.machine(), options)


def _run_families(options):
    from .models.families import FAMILIES

    if options.json:
        return _print([asdict(family) for family in FAMILIES.values()], True)
    print(f"{'key':<6}{'name':<32}{'B params':>9}{'GB':>7}  vision tower + language model")
    for family in FAMILIES.values():
        numbers = f"{family.parameters:>9g}{family.weights_gb:>7g}"
        print(f"{family.key:<6}{family.name:<32}{numbers}  {family.vision} + {family.language}")


def _run_download(options):
    print(ivl.download(options.model, revision=options.revision, to=options.to))


def _run_verify(options):
    found = ivl.verify(options.model, device=options.device)
    _say(found, options)
    return int(not found.ok)


def _run_check(options):
    from .models.checkup import mend_all

    report = ivl.check(
        options.data,
        options.model,
        max_length=options.max_seq_length,
        problems_to=options.problems,
        progress=sys.stderr.isatty(),
        **_named(options, "root pictures workers limit"),
    )
    _say(report, options)
    if options.fix:
        for line in mend_all(options.data, root=options.root):
            print(line, file=sys.stderr)
    return int(not report.ok or options.strict and report.count("warning") > 0)


def _model(options):
    """What a command asks, loaded once the rest of what was typed is read."""
    from .training.run import open_model

    return partial(open_model, options.model, **_named(options, "base device quantize"))


def _run_chat(options):
    from .training.run import loaded

    generation = _named(options, "max_tiles max_new_tokens")
    reply, images, video = None, options.image, options.video
    questions = [options.question] if options.question else iter(lambda: input("> "), "")
    with loaded(_model(options), "chat") as vlm, suppress(EOFError):
        if options.question and options.json:
            reply = vlm.chat(options.question, images, video=video, **generation)
            return _print({"reply": reply.text, "tiles": list(reply.num_tiles)}, True)
        for question in questions:
            stream = vlm.chat(question, images, video=video, history=reply, stream=True, **generation)
            for piece in stream:
                print(piece, end="", flush=True)
            print()
            reply, images, video = stream.reply, [], None


def _run_convert(options):
    from .data.checking.doctor import check_converted
    from .data.importing.convert import convert, read_shares
    from .data.importing.gather import fetch_url

    answer = options.answer[0] if options.answer and len(options.answer) == 1 else options.answer
    done = convert(
        options.source,
        options.to,
        shares=read_shares(options.split),
        fetch=fetch_url if options.fetch else None,
        answer=answer,
        **_named(options, "images format seed group alike split_file image video question ask suffix"),
    )
    report = check_converted(done)
    if options.json:
        _print(asdict(done) | {"check": report.to_dict()}, True)
    else:
        said = (*(f"rejected: {reject}" for reject in done.first_rejects), *done.said)
        print(done, *(f"  {one}" for one in said), report, sep="\n")
    return int(not report.ok)


def _run_plan(options):
    data = _rows_from(options)
    chosen = _recipe_from(options, data, gpu_gib=options.gpu_gib, card=options.card)
    print(found := ivl.plan(chosen, data=data, gpu_gib=options.gpu_gib, card=options.card))
    return int(found.fits is False)


def _run_train(options):
    from .training import runs
    from .training.engine.distributed import leave

    if Path(options.what or "").name == "run.yaml":
        runs.execute(_described(options))
        return leave()
    data = _rows_from(options)
    chosen = _recipe_from(options, data)
    if data is None and (options.overfit is not None or not options.dry_run):
        raise RecipeError("train: no data; expected --data meta.json or --data train.jsonl --root images/")
    if options.dry_run:
        if options.overfit is not None:
            chosen, _ = runs.few_rows(chosen, data, options.overfit)
        print(chosen.to_yaml(), end="")
        print(f"# accumulation: {chosen.accumulation} micro-batches a step and GPU; the guide names: {chosen.hardware}")
        return None
    start = runs.describe if options.only_write else runs.train
    beside = _named(options, "metric overfit report_to skip_unusable")
    run = start(chosen, data, validation=_validation_of(options), folder=options.to, **beside)
    if options.only_write:
        return print(run.folder / "run.yaml")
    print(run.folder)
    try:
        run.wait()
    except KeyboardInterrupt:
        print("stopping after this step, with a checkpoint …", file=sys.stderr)
        run.stop()
        print(run)
        return 130
    print(run)
    return None


def _described(options):
    """The folder of a run.yaml, which says everything: what else is asked for would not be done."""
    path = Path(options.what)
    names = [name for name in COMMANDS["train"][2].split() if name.startswith("--")]
    values = {name: getattr(options, destination("train", name)) for name in names}
    given = [name for name, value in values.items() if value is not False and value not in (None, [])]  # 0 is given
    if given:
        raise RecipeError(
            f"train {path}: with {given[0]}; expected no other option, since the file describes "
            "the whole run; leave it out, or give a recipe's name"
        )
    return path.parent


def _rows_from(options):
    return ivl.open_data(options.data, root=options.root) if options.data else None


def _validation_of(options):
    """The rows of --validation; a meta file has its own roots."""
    path, root = options.validation, options.root
    return ivl.open_data(path, root=root) if path and root and not path.endswith(".json") else path


def _recipe_from(options, data, **where):
    if bool(options.what) == bool(options.suggest) or options.suggest and data is None:
        raise RecipeError("expected a recipe's name, or --suggest MODEL with --data")
    named = _named(options, "gpus per_device_batch epochs learning_rate")
    changes = {name: value for name, value in named.items() if value is not None}
    kinds = _recipe_fields()
    for pair in options.set:
        name, found, text = pair.partition("=")
        if not found:
            raise RecipeError(f"--set {pair!r}; expected FIELD=VALUE, e.g. --set lora_rank=8")
        changes[name] = text if kinds.get(name) is str else _number(name, text)
    if options.what:
        return ivl.recipe(options.what, **changes)
    chosen = ivl.suggest(options.suggest, data, **where, **changes)
    print(*chosen.reasons, sep="\n", file=sys.stderr)
    return chosen


def _number(name, text):
    try:
        number = "0" * text.startswith(".") + text.lower()  # .001 is no JSON
        return None if number == "none" else json.loads(number)
    except ValueError as error:
        raise RecipeError(f"--set {name}={text!r}; expected a number, none, or true or false") from error


def _run_runs(options):
    from .training.run import Run

    if options.delete:
        for run in [Run(folder) for folder in options.delete]:
            run.delete()
            print(f"{run.folder}: removed")
        return
    found = ivl.runs()
    if options.json:
        rows = [{"folder": str(run.folder), "state": run.state, "steps": len(run.history)} for run in found]
        return _print(rows, True)
    print("\n".join(map(repr, found)) or "no runs yet")


def _run_evaluate(options):
    from .evaluation.coco import save_coco
    from .evaluation.control import TEXT_CONTROL, text_control

    if options.coco:
        check_writable(Path(options.coco) / "results.json")
    is_control = options.data == TEXT_CONTROL
    data = text_control() if is_control else ivl.open_data(options.data, root=options.root)
    report = ivl.evaluate(
        _model(options),
        data,
        metric=options.metric or ("contains" if is_control else "exact_match"),
        **_named(options, "pictures max_tiles to batch_size max_new_tokens"),
    )
    _say(report, options)
    if options.coco:
        save_coco(report, options.coco)


def _run_predict(options):
    named = _named(options, "question to root max_tiles batch_size max_new_tokens")
    found = ivl.predict(_model(options), options.data, validation=_validation_of(options), **named)
    if options.html:
        found.save_html(options.html)
    _print(found.table() if options.json else found, options.json)


def _run_benchmark(options):
    from .evaluation.benchmarks import BENCHMARKS, describe

    if not options.model:
        return print("\n".join(map(describe, [options.name] if options.name else BENCHMARKS)))
    if not options.folder:
        raise DataError(
            f"benchmark: no folder of {options.name}'s files; expected one last; ivlkit benchmark "
            f"{options.name} says what to download"
        )
    task = ivl.open_benchmark(options.name, options.folder, **_named(options, "split images rows"))
    if options.submission:
        task.check_submission()
    elif not task.has_truth:
        raise DataError(f"{task.name}: only the benchmark's server has the truths; expected --submission FILE for it")
    report = task.evaluate(_model(options), to=options.to, batch_size=options.batch_size)
    if options.submission:
        print(task.save_submission(report, options.submission), file=sys.stderr)
    if task.has_truth:
        _say(task.scores(report), options)


def _run_compare(options):
    found = ivl.compare(options.before, options.after)
    interval = {"interval_by": {options.by: found.interval_by(options.by)}} if options.by else {}
    if options.html:
        found.save_html(options.html)
    if options.csv:
        found.save_csv(options.csv)
    _print(found.to_dict() | interval if options.json else found, options.json)
    if options.by and not options.json:
        low, high = found.interval_by(options.by)
        print(f"with rows of one {options.by} drawn together: {100 * low:+.1f} to {100 * high:+.1f} points")


def _run_export(options):
    from .models.export.export import push_to_hub

    print(ivl.export(options.source, options.to, layout=options.layout, device=options.device))
    if options.push_to_hub:
        print(push_to_hub(options.to, options.push_to_hub))


def _run_notebooks(options):
    from .course import copy_notebooks, said_of

    print(said_of(copy_notebooks(options.to, for_students=options.for_students), options.to))


def _run_demo(options):
    from .demo import run_demo

    run_demo(options.to)


_BATCHES, _LOADING = "--batch-size --max-new-tokens", "--base --device --quantize"
_RECIPE = "what --suggest --data --root --gpus --per-device-batch-size --epochs --learning-rate --set"
COMMANDS = {  # its function, its help, its options in the order of the help, examples
    "machine": (_run_machine, "What this machine has; the block for a bug report.", "--json", "ivlkit machine --json"),
    "families": (_run_families, "The models this kit knows.", "--json", "ivlkit families", "ivlkit families --json"),
    "download": (
        _run_download,
        "Fetch a released model into pretrained/<name>; keeps the files it has, uses copies that are here.",
        "model --revision --to",
        "ivlkit download 2b",
        "ivlkit download 26b --revision main --to /big/InternVL-Chat-V1-5",
    ),
    "verify": (
        _run_verify,
        "Say whether a model works here: hashes, tensors, tokenizer, six replies, a loss. Exit code 1 if it does not.",
        "model --device --json",
        "ivlkit verify 2b",
        "ivlkit verify pretrained/Mini-InternVL-Chat-2B-V1-5 --json",
    ),
    "chat": (
        _run_chat,
        "Ask a model about pictures; without a question, talk to it.",
        f"model question --image --video --max-tiles --max-new-tokens {_LOADING} --json",
        'ivlkit chat nano --image strip.png "What number is written here?"',
        "ivlkit chat 2b --image a.jpg --image b.jpg",
    ),
    "convert": (
        _run_convert,
        "Write a table, a folder, a labelling tool's export or JSON rows as the released JSONL and meta.json, split by "
        "picture, and check it. What was split once stays: labels.csv.split.csv keeps it. Exit code 1 for errors.",
        "source --to --images --format --image --video --question --answer --ask --suffix "
        "--split --seed --group --alike --split-file --fetch --json",
        'ivlkit convert labels.csv --images photos/ --question "What is it?" --answer label --to mine',
        'ivlkit convert instances.json --ask "class=Where is the <ref>{name}</ref>?" --ask count --to mine',
        "ivlkit convert labels.csv --to mine --group patient  # all rows of a patient on one side",
        "ivlkit convert llava.json --images images/ --to mine",
        "ivlkit convert photos/ --to mine --split none  # photos/CLASS/1.jpg",
    ),
    "check": (
        _run_check,
        "Check a data set before training: every problem with file, line and what to do. Exit code 1 for errors.",
        "data --model --root --max-seq-length --pictures --workers --limit --html --problems --strict --fix --json",
        "ivlkit check data_templates/meta.json --model nano",
        "ivlkit check train.jsonl --root images/ --html report.html --problems all.jsonl",
        "ivlkit check meta.json --model 2b --strict",
        "ivlkit check train.jsonl --fix",
    ),
    "plan": (
        _run_plan,
        "Will it fit, how long will it take, how much will it write? Exit code 1 if it does not fit.",
        f"{_RECIPE} --gpu-gib --card",
        "ivlkit plan 26b-lora --gpus 1 --gpu-gib 24",
        'ivlkit plan 2b-lora --data meta.json --card "RTX 4090"',
        "ivlkit plan 2b-lora --set gradient_checkpointing=none bin_tokens=8192",
    ),
    "train": (
        _run_train,
        "Train a recipe on data, or the run that a run.yaml describes.",
        f"{_RECIPE} --validation --metric --to --overfit --report-to --skip-unusable --dry-run --only-write",
        "ivlkit train nano-lora --data data_templates/meta.json --epochs 1",
        "ivlkit train --suggest 2b --data meta.json",
        "ivlkit train 2b-lora --data meta.json --overfit 8   # can labels, template and rate teach at all?",
        "ivlkit train 26b-full --gpus 8 --per-device-batch-size 2 --data meta.json   "
        "# the guide's GPUS=8 PER_DEVICE_BATCH_SIZE=2 sh …full.sh",
        "ivlkit train 26b-full --gpus 8 --per-device-batch-size 2 --dry-run",
        "ivlkit train 26b-full --gpus 16 --data meta.json --to /shared/run --only-write, then on each of two hosts",
        "torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 "
        "-m ivlkit train /shared/run/run.yaml",
    ),
    "runs": (
        _run_runs,
        "The runs under runs/.",
        "--json --delete",
        "ivlkit runs",
        "ivlkit runs --json",
        "ivlkit runs --delete runs/demo/run",
    ),
    "evaluate": (
        _run_evaluate,
        "Score greedy replies to every row of a data set.",
        f"model data --root --metric --pictures --max-tiles --to --html --coco {_BATCHES} {_LOADING} --json",
        "ivlkit evaluate nano test.jsonl --html report.html",
        "ivlkit evaluate runs/demo/run test.jsonl --json",
        "ivlkit evaluate runs/demo/run text-control   # questions without pictures: what was forgotten?",
    ),
    "predict": (
        _run_predict,
        "Answer every picture of a folder, or every row; a table with the confidence of each answer.",
        f"model data --question --to --html --root --validation --max-tiles {_BATCHES} {_LOADING} --json",
        'ivlkit predict runs/demo/run new_photos/ --question "What number is written here?" --to answers.csv',
        "ivlkit predict runs/demo/run rows.jsonl --to answers.jsonl --html answers.html --validation validation.jsonl",
    ),
    "benchmark": (
        _run_benchmark,
        "Score a model on a public benchmark that you have downloaded, beside the published scores.",
        f"name model folder --split --images --rows --to --submission --batch-size {_LOADING} --json",
        "ivlkit benchmark                # which there are",
        "ivlkit benchmark docvqa         # what to download, and where it goes",
        "ivlkit benchmark docvqa 2b data/docvqa --to runs/docvqa",
        "ivlkit benchmark docvqa 2b data/docvqa --split test --to runs/test --submission docvqa.json",
    ),
    "compare": (
        _run_compare,
        "Two evaluations of the same rows: difference with interval, rows won and lost.",
        "before after --by --html --csv --json",
        "ivlkit compare runs/before runs/after --html compared.html --csv compared.csv",
    ),
    "export": (
        _run_export,
        "Write a run's model as a folder of its own; reloads it and compares.",
        "source --to --layout --device --push-to-hub",
        "ivlkit export runs/demo/run --to merged/",
        "ivlkit export runs/demo/run --to adapter/ --layout adapter   # for someone who has the base",
        "ivlkit export runs/demo/run --to hf/ --layout transformers   # for plain transformers",
    ),
    "notebooks": (
        _run_notebooks,
        "Copies of the course to work in; brings them up to date, and never touches what you changed.",
        "to --for-students",
        "ivlkit notebooks work",
        "ivlkit notebooks student --for-students",
    ),
    "demo": (_run_demo, "Fine-tune nano on handwriting: before, after, a report, an export.", "--to", "ivlkit demo"),
}

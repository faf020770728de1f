"""The command line: one sub-command a step, each a thin call of the package."""

import argparse
import json
import sys
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

from .errors import DataError, IvlkitError, RecipeError


def main(arguments=None):
    """Run one command; returns the exit code: 0, 1 if what it looked at is bad, 2 with a line for a user's mistake."""
    options = _parse(arguments)
    try:
        return options.run(options) or 0
    except IvlkitError as error:
        print(f"ivlkit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parse(arguments):
    """argparse gives an optional question up once an option stands before it; here it may come last."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(options, "question", "") is None:
        options.question, rest = rest[0], []
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def _parser():
    parser = argparse.ArgumentParser(
        prog="ivlkit",
        description="Fine-tune the InternVL 1.5 family on your own data.",
        epilog="Start with: ivlkit demo",
    )
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # what the deepspeed launcher adds
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    looking = (_machine, _families, _download, _verify, _chat, _convert, _check)
    for add in (*looking, _plan, _train, _runs, _evaluate, _benchmark, _compare, _export, _notebooks, _demo):
        add(commands)
    return parser


def _command(commands, name, run, about, examples):
    parser = commands.add_parser(
        name,
        help=about,
        description=about,
        epilog="examples:\n  " + "\n  ".join(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _print(value, as_json):
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str) if as_json else value)


def _machine(commands):
    parser = _command(
        commands,
        "machine",
        _run_machine,
        "What this machine has; the block for a bug report.",
        ["ivlkit machine --json"],
    )
    parser.add_argument("--json", action="store_true")


def _run_machine(options):
    from .hardware import machine

    found = machine()
    _print(found.to_dict() if options.json else found, options.json)


def _families(commands):
    parser = _command(
        commands, "families", _run_families, "The models this kit knows.", ["ivlkit families", "ivlkit families --json"]
    )
    parser.add_argument("--json", action="store_true")


def _run_families(options):
    from .models.families import FAMILIES

    if options.json:
        return _print([asdict(family) for family in FAMILIES.values()], True)
    print(f"{'key':<6}{'name':<32}{'B params':>9}{'GB':>7}  vision tower + language model")
    for family in FAMILIES.values():
        numbers = f"{family.parameters:>9g}{family.weights_gb:>7g}"
        print(f"{family.key:<6}{family.name:<32}{numbers}  {family.vision} + {family.language}")


def _download(commands):
    parser = _command(
        commands,
        "download",
        _run_download,
        "Fetch a released model into pretrained/<name>; goes on where it ended, uses copies that are here.",
        ["ivlkit download 2b", "ivlkit download 26b --revision main --to /big/InternVL-Chat-V1-5"],
    )
    parser.add_argument("model", help="a key: 2b, 4b, 26b")
    parser.add_argument("--revision", help="branch, tag or commit of the hub; default: what is here, else main")
    parser.add_argument("--to", help="folder of the model; default pretrained/<name>, or below $IVLKIT_MODELS")


def _run_download(options):
    from .models.hub.download import download

    print(download(options.model, revision=options.revision, to=options.to))


def _verify(commands):
    parser = _command(
        commands,
        "verify",
        _run_verify,
        "Say whether a model works here: hashes, tensors, tokenizer, six replies, a loss. Exit code 1 if it does not.",
        ["ivlkit verify 2b", "ivlkit verify pretrained/Mini-InternVL-Chat-2B-V1-5 --json"],
    )
    parser.add_argument("model", help="a key (nano, 2b, 4b, 26b) or a model folder")
    parser.add_argument("--device")
    parser.add_argument("--json", action="store_true")


def _run_verify(options):
    from .models.hub.verify import verify

    found = verify(options.model, device=options.device)
    _print(found.to_dict() if options.json else found, options.json)
    return 0 if found.ok else 1


def _check(commands):
    parser = _command(
        commands,
        "check",
        _run_check,
        "Check a data set before training: every problem with file, line and what to do. Exit code 1 for errors.",
        [
            "ivlkit check data_templates/meta.json --model nano",
            "ivlkit check train.jsonl --root images/ --html report.html --problems all.jsonl",
            "ivlkit check meta.json --model 2b --strict",
            "ivlkit check train.jsonl --fix",
        ],
    )
    parser.add_argument("data", help="meta .json or .jsonl")
    parser.add_argument("--model", help="a key or a model folder, for exact lengths; no weights are needed")
    parser.add_argument("--root", help="folder of the pictures of a .jsonl")
    parser.add_argument("--max-seq-length", type=int, default=4096)
    parser.add_argument("--pictures", choices=["exist", "header", "decode"], default="header")
    parser.add_argument("--workers", type=int, help="processes; default one a core")
    parser.add_argument("--limit", type=int, default=100, help="problems of a kind that are listed; all are counted")
    parser.add_argument("--html", help="write a page with figures and pictures")
    parser.add_argument("--problems", help="write all problems as JSON lines")
    parser.add_argument("--strict", action="store_true", help="exit code 1 for warnings too")
    parser.add_argument("--fix", action="store_true", help="write mended copies beside the files: train.fixed.jsonl")
    parser.add_argument("--json", action="store_true")


def _run_check(options):
    from .models.checkup import check, mend_all

    report = check(
        options.data,
        options.model,
        root=options.root,
        max_length=options.max_seq_length,
        pictures=options.pictures,
        workers=options.workers,
        limit=options.limit,
        problems_to=options.problems,
        progress=sys.stderr.isatty(),
    )
    if options.html:
        report.save_html(options.html)
    _print(report.to_dict() if options.json else report, options.json)
    if options.fix:
        for line in mend_all(options.data, root=options.root):
            print(line, file=sys.stderr)
    return int(not report.ok or options.strict and report.count("warning") > 0)


def _chat(commands):
    parser = _command(
        commands,
        "chat",
        _run_chat,
        "Ask a model about pictures; without a question, talk to it.",
        [
            'ivlkit chat nano --image strip.png "What number is written here?"',
            "ivlkit chat 2b --image a.jpg --image b.jpg",
        ],
    )
    parser.add_argument("model", help="a key (nano, 2b, 4b, 26b), a model folder or a run")
    parser.add_argument("question", nargs="?")
    parser.add_argument("--image", action="append", default=[], help="may be given several times")
    parser.add_argument("--video", help="a video, an animation or a folder of frames, in place of pictures")
    parser.add_argument("--max-tiles", type=int, help="tile budget of a picture (max_dynamic_patch)")
    parser.add_argument("--max-new-tokens", type=int, default=1024)
    parser.add_argument("--device")
    parser.add_argument("--json", action="store_true")


def _run_chat(options):
    from .models.load import load

    vlm = load(options.model, device=options.device)
    generation = {"max_tiles": options.max_tiles, "max_new_tokens": options.max_new_tokens}
    if options.question and options.json:
        reply = vlm.chat(options.question, options.image, video=options.video, **generation)
        return _print({"reply": reply.text, "tiles": list(reply.num_tiles)}, True)
    reply, images, video = None, options.image, options.video
    questions = [options.question] if options.question else iter(lambda: input("> "), "")
    try:
        for question in questions:
            stream = vlm.chat(question, images, video=video, history=reply, stream=True, **generation)
            for piece in stream:
                print(piece, end="", flush=True)
            print()
            reply, images, video = stream.reply, [], None
    except EOFError:
        pass


def _convert(commands):
    parser = _command(
        commands,
        "convert",
        _run_convert,
        "Write a table, a folder, JSON rows of any format as the released JSONL and meta.json, split by picture.",
        [
            'ivlkit convert labels.csv --images photos/ --question "What is it?" --answer label --to mine',
            "ivlkit convert llava.json --images images/ --to mine",
            "ivlkit convert photos/ --to mine --split none  # photos/CLASS/1.jpg",
        ],
    )
    parser.add_argument("source", help=".jsonl, .json list, .csv, .tsv, .xlsx, or a folder with a sub-folder a class")
    parser.add_argument("--to", required=True, help="a new folder")
    parser.add_argument("--images", help="folder that picture paths start from; default the source's own")
    parser.add_argument("--format", help="of JSON rows: released, llava, sharegpt, openai; default: detected")
    parser.add_argument("--image", action="append", help="column of the pictures; may be given several times")
    parser.add_argument("--video", help="column of videos, in place of --image")
    parser.add_argument("--question", help="a column, or a sentence asked about every row")
    parser.add_argument("--answer", action="append", help="a column; several make one JSON answer")
    parser.add_argument("--suffix", help="a line after every question of a table")
    parser.add_argument("--split", default="80/10/10", help="shares of train/validation/test by picture, or none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fetch", action="store_true", help="fetch remote pictures; otherwise their rows are rejected")
    parser.add_argument("--json", action="store_true")


def _run_convert(options):
    from .data.importing.convert import convert
    from .data.importing.gather import fetch_url

    answer = options.answer[0] if options.answer and len(options.answer) == 1 else options.answer
    done = convert(
        options.source,
        options.to,
        images=options.images,
        format=options.format,
        shares=_shares(options.split),
        seed=options.seed,
        fetch=fetch_url if options.fetch else None,
        image=options.image,
        video=options.video,
        question=options.question,
        answer=answer,
        suffix=options.suffix,
    )
    if options.json:
        return _print(asdict(done), True)
    print(done)
    for reject in done.first_rejects:
        print(f"  rejected: {reject}")


def _shares(text):
    from .data.importing.convert import ALL

    if text == "none":
        return ALL
    try:
        parts = [float(part) for part in text.split("/")]
        train, validation, test = (part / sum(parts) for part in parts)
    except (ValueError, ZeroDivisionError) as error:
        raise DataError(f"--split {text!r}; expected three shares like 80/10/10, or none") from error
    return {"train": train, "validation": validation, "test": test}


def _plan(commands):
    parser = _command(
        commands,
        "plan",
        _run_plan,
        "Will it fit, how long will it take, how much will it write? Exit code 1 if it does not fit.",
        [
            "ivlkit plan 26b-lora --gpus 1 --gpu-gib 24",
            'ivlkit plan 2b-lora --data meta.json --card "RTX 4090"',
            "ivlkit plan 2b-lora --set gradient_checkpointing=none bin_tokens=8192",
        ],
    )
    _add_recipe(parser)
    parser.add_argument("--gpu-gib", type=float, help="memory to fit into; default what is free here")
    parser.add_argument("--card", help="a card by name, such as A100, for memory and minutes")


def _run_plan(options):
    from .data.datasets.opening import open_data
    from .training.estimate.planner import plan

    data = open_data(options.data, root=options.root) if options.data else None
    chosen = _recipe_from(options, data, gpu_gib=options.gpu_gib, card=options.card)
    found = plan(chosen, data=data, gpu_gib=options.gpu_gib, card=options.card)
    print(found)
    return int(found.fits is False)


def _add_recipe(parser):
    """What names a recipe and its data, with changes."""
    parser.add_argument("what", nargs="?", help="a recipe's name; of train also a run.yaml")
    parser.add_argument("--suggest", metavar="MODEL", help="in place of a name: a recipe for this card and these rows")
    parser.add_argument("--data", "--meta-path", "--meta_path", help="meta .json or .jsonl")
    parser.add_argument("--root", help="folder of the pictures of a .jsonl")
    parser.add_argument("--gpus", type=int)
    parser.add_argument("--per-device-batch-size", type=int, dest="per_device_batch")
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="any other field of the recipe")


def _train(commands):
    parser = _command(
        commands,
        "train",
        _run_train,
        "Train a recipe on data, or the run that a run.yaml describes.",
        [
            "ivlkit train nano-lora --data data_templates/meta.json --epochs 1",
            "ivlkit train --suggest 2b --data meta.json",
            "ivlkit train 2b-lora --data meta.json --overfit 8   # can labels, template and rate teach at all?",
            "ivlkit train 26b-full --gpus 8 --per-device-batch-size 2 --data meta.json   "
            "# the guide's GPUS=8 PER_DEVICE_BATCH_SIZE=2 sh …full.sh",
            "ivlkit train 26b-full --gpus 8 --per-device-batch-size 2 --dry-run",
            "ivlkit train 26b-full --gpus 16 --data meta.json --to /shared/run --only-write, then on each of two hosts",
            "torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 "
            "-m ivlkit train /shared/run/run.yaml",
        ],
    )
    _add_recipe(parser)
    parser.add_argument("--validation", help="meta .json or .jsonl of rows apart; default: the meta's validation split")
    parser.add_argument("--metric", help="module:function that chooses the best weights; default: the validation loss")
    parser.add_argument("--to", help="folder of the run; default runs/<recipe>-<hash>")
    parser.add_argument("--overfit", type=int, metavar="ROWS", help="learn so many rows by heart, as a test")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and stop")
    parser.add_argument(
        "--only-write", action="store_true", help="write run.yaml, for a launcher on one host or several"
    )


def _run_train(options):
    from .data.datasets.opening import open_data
    from .training import runs

    if (options.what or "").endswith((".yaml", ".yml")):
        return runs.execute(_described(options))
    data = open_data(options.data, root=options.root) if options.data else None
    chosen = _recipe_from(options, data)
    if options.dry_run:
        print(chosen.to_yaml(), end="")
        print(f"# accumulation: {chosen.accumulation} micro-batches a step and GPU; the guide names: {chosen.hardware}")
        return None
    if data is None:
        raise RecipeError("train: no data; expected --data meta.json or --data train.jsonl --root images/")
    validation, metric = options.validation, _metric(options.metric)
    if validation and not validation.endswith(".json"):  # a meta file has its own roots
        validation = open_data(validation, root=options.root)
    start = runs.describe if options.only_write else partial(runs.train, overfit=options.overfit)
    run = start(chosen, data, validation=validation, metric=metric, folder=options.to)
    if options.only_write:
        return print(run.folder / "run.yaml")
    print(run.folder)
    try:
        run.wait()
    except KeyboardInterrupt:
        print("stopping after this step, with a checkpoint …", file=sys.stderr)
        run.stop()
    print(run)


def _described(options):
    """The folder of a run.yaml, which says everything: what else is asked for would not be done."""
    path = Path(options.what)
    if path.name != "run.yaml":
        raise RecipeError(f"train {path}: expected a recipe's name, or the run.yaml in a run's folder")
    others = ("data", "root", "gpus", "per_device_batch", "epochs", "learning_rate", "set")
    others += ("validation", "metric", "to", "dry_run", "only_write", "suggest", "overfit")
    values = {name: getattr(options, name) for name in others}
    given = [name for name, value in values.items() if value is not False and value not in (None, [])]  # 0 is given
    if given:
        raise RecipeError(
            f"train {path}: with --{given[0].replace('_', '-')}; expected no other option, since the file describes "
            "the whole run; leave it out, or give a recipe's name"
        )
    return path.parent


def _metric(name):
    if name is None:
        return None
    from .training.run import find_metric

    here = str(Path.cwd())  # as python -m, which trains, looks there: a console script does not
    if here not in sys.path:
        sys.path.insert(0, here)
    return find_metric(name)


def _recipe_from(options, data, **where):
    from .training.estimate.suggest import suggest
    from .training.recipes import Recipe, recipe

    if bool(options.what) == bool(options.suggest) or options.suggest and data is None:
        raise RecipeError("expected a recipe's name, or --suggest MODEL with --data")

    named = {name: getattr(options, name) for name in ("gpus", "per_device_batch", "epochs", "learning_rate")}
    changes = {name: value for name, value in named.items() if value is not None}
    kinds = {field.name: field.type for field in fields(Recipe)}
    for pair in options.set:
        name, found, text = pair.partition("=")
        if not found:
            raise RecipeError(f"--set {pair!r}; expected FIELD=VALUE, e.g. --set lora_rank=8")
        changes[name] = text if kinds.get(name) is str else _number(name, text)
    if options.what:
        return recipe(options.what, **changes)
    chosen = suggest(options.suggest, data, **where, **changes)
    print(*chosen.reasons, sep="\n", file=sys.stderr)
    return chosen


def _number(name, text):
    try:
        return None if text.lower() == "none" else json.loads(text.lower())
    except ValueError as error:
        raise RecipeError(f"--set {name}={text!r}; expected a number, none, or true or false") from error


def _runs(commands):
    examples = ["ivlkit runs", "ivlkit runs --json", "ivlkit runs --delete runs/demo/run"]
    parser = _command(commands, "runs", _run_runs, "The runs under runs/.", examples)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--delete", metavar="FOLDER", nargs="+", help="remove these runs, which must have ended")


def _run_runs(options):
    from .training.run import Run, runs

    if options.delete:
        for run in [Run(folder) for folder in options.delete]:
            run.delete()
            print(f"{run.folder}: removed")
        return
    found = runs()
    if options.json:
        rows = [{"folder": str(run.folder), "state": run.state, "steps": len(run.history)} for run in found]
        return _print(rows, True)
    print("\n".join(map(repr, found)) or "no runs yet")


def _evaluate(commands):
    parser = _command(
        commands,
        "evaluate",
        _run_evaluate,
        "Score greedy replies to every row of a data set.",
        [
            "ivlkit evaluate nano test.jsonl --html report.html",
            "ivlkit evaluate runs/demo/run test.jsonl --json",
            "ivlkit evaluate runs/demo/run text-control   # questions without pictures: what was forgotten?",
        ],
    )
    parser.add_argument("model")
    parser.add_argument("data", help="what training takes, or text-control: 70 questions that come with the kit")
    parser.add_argument("--root", help="folder of the pictures of a .jsonl")
    parser.add_argument("--metric", help="default exact_match; of text-control contains")
    parser.add_argument("--pictures", default="right", help="right, shuffled or none: does it look?")
    parser.add_argument("--max-tiles", type=int, help="tile budget instead of the model's (max_dynamic_patch)")
    parser.add_argument("--to", help="folder that keeps the replies: a stopped evaluation goes on there")
    parser.add_argument("--html", help="write a page with examples")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--json", action="store_true")


def _run_evaluate(options):
    from .data.datasets.opening import open_data
    from .evaluation.control import TEXT_CONTROL, text_control
    from .evaluation.evaluate import evaluate
    from .models.load import load

    is_control = options.data == TEXT_CONTROL
    data = text_control() if is_control else open_data(options.data, root=options.root)
    report = evaluate(
        load(options.model),
        data,
        metric=options.metric or ("contains" if is_control else "exact_match"),
        pictures=options.pictures,
        max_tiles=options.max_tiles,
        to=options.to,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
    )
    if options.html:
        report.save_html(options.html)
    _print(report.to_dict() if options.json else report, options.json)


def _benchmark(commands):
    parser = _command(
        commands,
        "benchmark",
        _run_benchmark,
        "Score a model on a public benchmark that you have downloaded, beside the published scores.",
        [
            "ivlkit benchmark                # which there are",
            "ivlkit benchmark docvqa         # what to download, and where it goes",
            "ivlkit benchmark docvqa 2b data/docvqa --to runs/docvqa",
            "ivlkit benchmark docvqa 2b data/docvqa --split test --to runs/test --submission docvqa.json",
        ],
    )
    parser.add_argument("name", nargs="?", help="textvqa, docvqa, infovqa, chartqa, pope, refcoco, coco_captions")
    parser.add_argument("model", nargs="?")
    parser.add_argument("folder", nargs="?", help="where the benchmark's files lie")
    parser.add_argument("--split", help="default the one that scores are usually given for")
    parser.add_argument("--images", help="folder of the pictures, if they lie elsewhere")
    parser.add_argument("--rows", type=int, help="so many rows, drawn by seed 0, instead of all")
    parser.add_argument("--to", help="folder that keeps the replies: a stopped evaluation goes on there")
    parser.add_argument("--submission", help="write the replies as the benchmark's server takes them")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--json", action="store_true")


def _run_benchmark(options):
    from .evaluation.benchmarks import BENCHMARKS, describe, open_benchmark
    from .models.load import load

    if not options.model:
        return print("\n".join(map(describe, [options.name] if options.name else BENCHMARKS)))
    if not options.folder:
        raise DataError(
            f"benchmark: no folder of {options.name}'s files; expected one last; ivlkit benchmark "
            f"{options.name} says what to download"
        )
    task = open_benchmark(options.name, options.folder, split=options.split, images=options.images, rows=options.rows)
    if options.submission:
        task.check_submission()
    elif not task.has_truth:
        raise DataError(f"{task.name}: only the benchmark's server has the truths; expected --submission FILE for it")
    report = task.evaluate(load(options.model), to=options.to, batch_size=options.batch_size)
    if options.submission:
        print(task.save_submission(report, options.submission), file=sys.stderr)
    if task.has_truth:
        scores = task.scores(report)
        _print(scores.to_dict() if options.json else scores, options.json)


def _compare(commands):
    parser = _command(
        commands,
        "compare",
        _run_compare,
        "Two evaluations of the same rows: difference with interval, rows won and lost.",
        ["ivlkit compare runs/before runs/after --html compared.html --csv compared.csv"],
    )
    parser.add_argument("before", help="a report.json, or the folder of evaluate --to")
    parser.add_argument("after")
    parser.add_argument("--by", help="field of the rows: those with the same value are drawn together for the interval")
    parser.add_argument("--html", help="write a page with the rows won and lost")
    parser.add_argument("--csv", help="write every row with both replies")
    parser.add_argument("--json", action="store_true")


def _run_compare(options):
    from .evaluation.compare import compare

    found = compare(options.before, options.after)
    interval = {"interval_by": {options.by: found.interval_by(options.by)}} if options.by else {}
    if options.html:
        found.save_html(options.html)
    if options.csv:
        found.save_csv(options.csv)
    _print(found.to_dict() | interval if options.json else found, options.json)
    if options.by and not options.json:
        low, high = found.interval_by(options.by)
        print(f"with rows of one {options.by} drawn together: {100 * low:+.1f} to {100 * high:+.1f} points")


def _export(commands):
    parser = _command(
        commands,
        "export",
        _run_export,
        "Write a run's model as a folder of its own; reloads it and compares.",
        [
            "ivlkit export runs/demo/run --to merged/",
            "ivlkit export runs/demo/run --to adapter/ --layout adapter   # for someone who has the base",
            "ivlkit export runs/demo/run --to hf/ --layout transformers   # for plain transformers",
        ],
    )
    parser.add_argument("source", help="a run or a model folder")
    parser.add_argument("--to", required=True, help="a new folder")
    parser.add_argument("--layout", default="released", help="released, adapter or transformers")
    parser.add_argument("--device", help="of the comparison; default the GPU if there is one")
    parser.add_argument("--push-to-hub", metavar="NAME/MODEL", help="upload it too; private if it is new there")


def _run_export(options):
    from .models.export.export import export, push_to_hub

    print(export(options.source, options.to, layout=options.layout, device=options.device))
    if options.push_to_hub:
        print(push_to_hub(options.to, options.push_to_hub))


def _notebooks(commands):
    parser = _command(
        commands,
        "notebooks",
        _run_notebooks,
        "Copies of the course to work in; brings them up to date, and never touches what you changed.",
        ["ivlkit notebooks work", "ivlkit notebooks student --for-students"],
    )
    parser.add_argument("to", nargs="?", default="work", help="folder of the copies; default work")
    parser.add_argument("--for-students", action="store_true", help="without solutions and outputs")


def _run_notebooks(options):
    from .course import copy_notebooks, said_of

    print(said_of(copy_notebooks(options.to, for_students=options.for_students), options.to))


def _demo(commands):
    parser = _command(
        commands,
        "demo",
        _run_demo,
        "Fine-tune nano on handwriting: before, after, a report, an export.",
        ["ivlkit demo"],
    )
    parser.add_argument("--to", default="runs/demo")


def _run_demo(options):
    from .demo import run_demo

    run_demo(options.to)

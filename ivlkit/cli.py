"""The command line: one sub-command a step, each a thin call of the package."""

import argparse
import json
import sys

from .errors import IvlkitError


def main(arguments=None):
    """Run one command; returns the exit code: 0, or 2 with one clear line for a user's mistake."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except IvlkitError as error:
        print(f"ivlkit: {error}", file=sys.stderr)
        return 2


def _parser():
    parser = argparse.ArgumentParser(prog="ivlkit", description="Fine-tune the InternVL 1.5 family on your own data.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_nano, _train):
        add(commands)
    return parser


def _command(commands, name, run, help_text, example):
    parser = commands.add_parser(
        name,
        help=help_text,
        description=help_text,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _nano(commands):
    parser = _command(commands, "nano", _run_nano, "Train the embedded model anew.", "ivlkit nano train --to runs/nano")
    parser.add_argument("action", choices=["train"])
    parser.add_argument("--to", default="runs/nano")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE")


def _run_nano(options):
    from .nano.train import ROWS, train_nano

    changes = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in options.set)}
    print(train_nano(options.to, rows=options.rows or ROWS, workers=options.workers, **changes))


def _train(commands):
    parser = _command(commands, "train", _run_train, "Train.", "ivlkit train runs/x/run.yaml")
    parser.add_argument("what")


def _run_train(options):
    from pathlib import Path

    from .training.runs import execute

    execute(Path(options.what).parent)

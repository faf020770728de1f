"""What a colleague needs beside an exported model: labels, split, recipe, report, test rows and a notebook.

No folder of this machine is named, and pictures come without the metadata of their files.
"""

import csv
import json
from dataclasses import replace
from pathlib import Path

import yaml

from ...data.groups import row_keys
from ...data.rows.formats import without_places
from ...data.rows.media import open_image
from ...errors import ExportError

ROWS = "test/rows.jsonl"
_CELLS = (
    'import ivlkit as ivl\n\nvlm = ivl.load("..")  # the model: this folder\'s parent\nvlm',
    "reply = vlm.chat({question!r}, images={images!r})\nreply",
    'found = ivl.predict(vlm, "test/rows.jsonl", **{options})  # or a folder of new pictures, with question="…"\nfound',
)
_SCORE = (
    'report = ivl.evaluate(vlm, "test/rows.jsonl", metric={metric!r}, **{options})\n'
    'scores = ivl.compare("report.json", report)  # the score that was handed over beside this one\nscores'
)
_OWN_METRIC = (  # the function is not in the folder
    "metric = None  # {metric} of (reply, truth), with which report.json was scored: ask for it and put it here\n"
    'report = ivl.evaluate(vlm, "test/rows.jsonl", metric=metric or "exact_match", **{options})\n'
    'scores = ivl.compare("report.json", report) if metric else report  # the score that was handed over beside this\n'
    "scores"
)


def check_handover(source, test, report):
    """Raise ExportError for what can't be handed over, before a model is written. Arguments as of `export`."""
    if not hasattr(source, "spec") or not hasattr(report, "rows") or test is None:
        raise ExportError(
            "handover=True without a run, its test rows and their report; expected all three; write "
            "export(run, to, handover=True, test=test, report=ivlkit.evaluate(run, test))"
        )
    if [row.where for row in report.rows] != [record.where for record in test]:
        raise ExportError("handover: the report is of other rows than `test`; expected the same; evaluate these")
    if len({record.max_tiles for record in test}) > 1 or any(record.video for record in test):
        raise ExportError(
            "handover: videos, or rows of several tile budgets, in `test`; expected pictures and one budget; hand over "
            "one data set of them"
        )


def write_handover(folder, run, opened, *, test, report):
    """Write the folder, `opened` being the run's `OpenedModel`. See `export`."""
    (folder / "test" / "images").mkdir(parents=True)
    pictures = [_write_pictures(folder, number, record, opened) for number, record in enumerate(test)]
    rows = [_row(record, names) for record, names in zip(test, pictures, strict=True)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / ROWS).write_text(text, encoding="utf-8")
    _write_tables(folder, run.parts() | {"test": test})
    text = yaml.safe_dump(_without_folders(run.spec), sort_keys=False, allow_unicode=True)
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    _write_report(folder, report, pictures)
    _write_notebook(folder, report, test[0], pictures[0], max_tiles=opened.processor.max_tiles)


def _write_pictures(folder, number, record, opened):
    """The pictures of a row as PNG files of what the model sees of them: names from the folder on."""
    names = [f"test/images/{number:05d}-{place}.png" for place in range(len(record.images))]
    for name, picture in zip(names, record.images, strict=True):
        image = open_image(picture, record.where, rules=opened.processor.picture_rules)
        image.info.clear()
        image.save(folder / name)
    return names


def _row(record, names):
    speakers = {"user": "human", "assistant": "gpt", "system": "system"}
    turns = [{"from": speakers[turn.role], "value": turn.text} for turn in record.turns]
    shown = {"image": [Path(name).relative_to("test").as_posix() for name in names]} if names else {}
    return {**record.extra, **shown, "conversations": turns}


def _write_tables(folder, parts):
    """labels.csv, a line a row; split.csv, as `Data.split` keeps it."""
    with (
        open(folder / "labels.csv", "w", encoding="utf-8", newline="") as labels,
        open(folder / "split.csv", "w", encoding="utf-8", newline="") as split,
    ):
        csv.writer(labels).writerow(["part", "row", "pictures", "question", "answer"])
        csv.writer(split).writerow(["digest", "part"])
        for part, data in parts.items():
            for record, digests in zip(data, row_keys(data).own, strict=True):
                shown = " ".join(Path(one).name for one in record.images if isinstance(one, (str, Path)))
                asked = without_places(record.question)
                csv.writer(labels).writerow([part, record.where, shown, asked, record.answer])
                csv.writer(split).writerows((digest, part) for digest in digests)


def _without_folders(value, name=None):
    """run.yaml with the names of files and models alone, whatever folder they lie in on this machine."""
    if isinstance(value, dict):
        return {key: _without_folders(one, key) for key, one in value.items() if key != "root"}
    return value.replace("\\", "/").rpartition("/")[2] if name in ("path", "model", "data") else value


def _write_report(folder, report, pictures):
    """The report of the rows as they lie in the folder: as a page, and as JSON for `compare`."""
    details = _without_folders(report.details) | {"data": ROWS}
    rows = [replace(row, where=f"rows.jsonl:{number}") for number, row in enumerate(report.rows, start=1)]

    def showing(root):
        pairs = zip(rows, pictures, strict=True)
        shown = tuple(replace(row, images=tuple(str(root / name) for name in names)) for row, names in pairs)
        return replace(report, rows=shown, details=details)

    showing(folder).save_html(folder / "report.html", title="Replies to the test rows")
    showing(Path()).save_json(folder / "report.json")


def _write_notebook(folder, report, record, images, *, max_tiles):
    known = report.details
    asked = json.loads(known["generation"]) | {"batch_size": known["batch_size"]}
    budget = known["max_tiles"] if known["max_tiles"] != max_tiles else record.max_tiles
    asked |= {"max_tiles": budget} if budget else {}
    asked |= {"seed": known["seed"]} if known["seed"] else {}
    filled = {"question": without_places(record.question), "images": images or None}
    filled |= {"metric": report.metric, "options": asked}
    cells = [
        {"cell_type": "code", "id": f"cell-{number}", "metadata": {}, "execution_count": None, "outputs": []}
        | {"source": cell.format(**filled)}
        for number, cell in enumerate((*_CELLS, _OWN_METRIC if report.has_own_metric else _SCORE))
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (folder / "ask_and_score.ipynb").write_text(json.dumps(notebook, ensure_ascii=False, indent=1), encoding="utf-8")

"""Public benchmarks that the released models report: the released prompts, the right metric, the published scores.

You fetch a benchmark from its makers; `open_benchmark` reads their files, `Task.evaluate` asks with the prompt, the
tile budget and the reply lengths of the released evaluation scripts, `Task.scores` puts what was measured beside what
was published. Published scores are the makers' own, those of 4b and 2b mostly by VLMEvalKit, whose prompts differ;
ChartQA's come from a script that takes the error relative to the reply.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from ..data.files import write_whole
from ..data.rows.records import IMAGE_PLACEHOLDER, Record, Turn
from ..errors import DataError
from ..views import shown
from .benchmark_files import READERS, find_file, find_pictures
from .evaluate import evaluate
from .report import Report
from .review.review import check_rows_of

MODELS = ("26b", "4b", "2b")
MEAN = "mean"  # name of the line over several sets
ASKED = ("max_tiles", "max_new_tokens", "min_new_tokens")  # as a benchmark says, and as the report of a run does


@dataclass(frozen=True)
class Benchmark:
    """How one benchmark is read, asked and scored: an entry of benchmarks.yaml."""

    name: str
    about: str  # what it asks
    read: Callable  # annotation file → Questions
    splits: dict  # {split: {set: its file's possible names}}; the first split is the usual one
    pictures: tuple[str, ...]  # below the folder, where pictures may lie
    metric: str
    get: str  # what to fetch, from where, and where it goes
    places: tuple[str, ...] = ("",)  # below the folder, where annotation files may lie
    prompt: str = "{} Answer the question using a single word or phrase."  # of the released scripts; {} is the question
    max_tiles: int = 6  # of the released scripts' `--max-num`
    max_new_tokens: int = 100
    min_new_tokens: int = 1
    published: dict = field(default_factory=dict)  # {split: {set or "mean": scores of 100 in the order of MODELS}}
    number: str | None = None  # of the metric of a whole report: the score of a set; None: the mean of its rows
    answer_keys: tuple[str, str] | None = None  # the server's names of id and reply; None: it has no server


@dataclass(frozen=True)
class Task:
    """One split of a benchmark, opened: a list of records that knows how it is asked and scored."""

    benchmark: Benchmark
    split: str
    records: tuple[Record, ...]
    total: int  # rows of the whole split
    has_truth: bool  # else only the benchmark's server can score it

    def __len__(self):
        return len(self.records)

    def __getitem__(self, number):
        return self.records[number]

    def where(self, number):
        """File and place of a row."""
        return self[number].where

    @property
    def name(self):
        """ "docvqa val": what a report says about its data."""
        return f"{self.benchmark.name} {self.split}"

    def evaluate(self, vlm, **options):
        """Ask every row as the released scripts do: greedy, their prompt, tiles and reply lengths.

        Args: options: those of `ivl.evaluate`, on top of the benchmark's own; `to` keeps the replies.
        Returns: `Report`, scored by the benchmark's metric; a split whose truths are hidden has the metric "unscored".
        """
        settings = {name: getattr(self.benchmark, name) for name in ASKED}
        settings["metric"] = self.benchmark.metric if self.has_truth else unscored
        return evaluate(vlm, self, **settings | options)

    def scores(self, report):
        """`Scores` of a report of these rows. Raises: DataError for other rows or metrics, or if truths are hidden."""
        check_rows_of(report, self.records)
        if not self.has_truth:
            raise DataError(
                f"{self.name}: only the benchmark's server has the truths; expected a split with answers; write a "
                "submission (save_submission, --submission) and send it there"
            )
        if not self.benchmark.number and report.metric != self.benchmark.metric:
            raise DataError(
                f"{self.name}: a report scored by {report.metric}; expected {self.benchmark.metric}, as the published "
                "scores are; write task.evaluate(vlm)"
            )
        return Scores(self, report)

    def save_submission(self, report, path):
        """Write the replies as the benchmark's server takes them: a JSON list, one {id, reply} a question.

        Raises: DataError if `check_submission` does, or if the report is of other rows.
        """
        self.check_submission()
        check_rows_of(report, self.records)
        id_key, reply_key = self.benchmark.answer_keys
        pairs = zip(self.records, report.rows, strict=True)
        answers = [{id_key: record.id, reply_key: row.reply} for record, row in pairs]
        return write_whole(path, json.dumps(answers, ensure_ascii=False))

    def check_submission(self):
        """Raise DataError if the benchmark has no server, or if these are not all rows of the split."""
        if self.benchmark.answer_keys is None:
            raise DataError(f"{self.benchmark.name}: has no server; expected a report that is scored here")
        if len(self) != self.total:
            raise DataError(f"{self.name}: {len(self):,} of {self.total:,} rows; a server wants all; leave out rows")

    def __repr__(self):
        rows = f"{len(self):,}" if len(self) == self.total else f"{len(self):,} of {self.total:,}"
        return f"Task({self.name}: {rows} rows, {self.benchmark.metric}, at most {self.benchmark.max_tiles} tiles)"

    _repr_html_ = shown("dataset:gallery_html")


@dataclass(frozen=True)
class Scores:
    """What was measured beside what was published, of 100 (CIDEr may be more)."""

    task: Task
    report: Report

    @property
    def heading(self):
        """The task, and how the report was asked where that is not the benchmark's way."""
        details = self.report.details
        asked = {"max_tiles": details.get("max_tiles")} | json.loads(details.get("generation", "{}"))
        own = {name: asked[name] for name in ASKED if asked.get(name) not in (None, getattr(self.task.benchmark, name))}
        said = ", ".join(f"{name} {value}" for name, value in own.items())
        return f"{self.task!r}; but asked with {said}" if said else repr(self.task)

    @property
    def measured(self):
        """{set: score}, and with several sets their "mean"."""
        found = {name: 100 * self._score(self.report.select(set=name)) for name in self._sets()}
        return found | ({MEAN: float(np.mean(list(found.values())))} if len(found) > 1 else {})

    @property
    def intervals(self):
        """{set: 95 % interval}, all questions about a picture drawn together; only of scores that are means of rows."""
        sets = () if self.task.benchmark.number else self._sets()
        return {name: tuple(100 * end for end in self.report.select(set=name).interval_by("images")) for name in sets}

    @property
    def published(self):
        """{set: {model: score}} of the same split, for the sets that were measured."""
        known = self.task.benchmark.published.get(self.task.split, {})
        by_model = {name: zip(MODELS, known.get(name, ()), strict=False) for name in self.measured}
        return {name: {model: score for model, score in pairs if score is not None} for name, pairs in by_model.items()}

    def lines(self):
        """Cells of a table: set, measured, 95 % interval, then the published score of each of MODELS."""
        published, intervals = self.published, self.intervals
        for name, score in self.measured.items():
            ends = intervals.get(name)
            others = (f"{published[name][model]:.1f}" if model in published[name] else "–" for model in MODELS)
            yield (name, f"{score:.1f}", f"{ends[0]:.1f} – {ends[1]:.1f}" if ends else "–", *others)

    def to_dict(self):
        """Plain values for JSON."""
        task = self.task
        plain = {"benchmark": task.benchmark.name, "split": task.split, "rows": len(task), "rows_of_split": task.total}
        scores = {"measured": self.measured, "intervals": self.intervals, "published": self.published}
        return plain | {"metric": task.benchmark.metric} | scores

    def _score(self, report):
        benchmark = self.task.benchmark
        return report.corpus(benchmark.metric)[benchmark.number] if benchmark.number else report.score

    def _sets(self):
        return dict.fromkeys(record.extra["set"] for record in self.task.records)

    def __repr__(self):
        table = [HEADER, *self.lines()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        cells = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in table)
        return "\n".join([self.heading, *("  ".join(line).rstrip() for line in cells)])

    _repr_html_ = shown("answers:scores_html")


HEADER = ("set", "measured", "95 %", *(f"{model} published" for model in MODELS))


def open_benchmark(name, folder, *, split=None, images=None, rows=None, seed=0):
    """Open a public benchmark that you have downloaded: `open_benchmark("docvqa", "data/docvqa").evaluate(vlm)`.

    Args:
        name: one of BENCHMARKS: textvqa, docvqa, infovqa, chartqa, pope, refcoco, coco_captions.
        folder: where its files lie, as unpacked; `describe(name)` says what to get.
        split: default the one that scores are usually given for.
        images: folder of the pictures, if they lie elsewhere.
        rows: so many rows, drawn by seed, instead of all.
    Returns: `Task`.
    Raises: DataError for an unknown name or split, for missing files with what to get, and for a broken entry.
    """
    benchmark, folder = _find(name), Path(folder)
    split = split or next(iter(benchmark.splits))
    if split not in benchmark.splits:
        raise DataError(f"{name}: split {split!r}; expected one of {', '.join(benchmark.splits)}")
    places = [folder / place.format(split=split) for place in benchmark.places]
    files = {
        part: find_file(places, names, name=name, get=benchmark.get) for part, names in benchmark.splits[split].items()
    }
    questions = [(part, question) for part, path in files.items() for question in benchmark.read(path)]
    kept = _draw(questions, rows, seed, where=f"{name} {split}")
    without = [question for _, question in questions if question.truth is None]
    if 0 < len(without) < len(questions):
        raise DataError(
            f"{name} {split}: {without[0].where} has no answer, others have; expected all or none; fetch the file again"
        )
    folders = [Path(images)] if images else [folder / place.format(split=split) for place in benchmark.pictures]
    paths = find_pictures([question for _, question in kept], folders, name=f"{name} {split}", get=benchmark.get)
    records = (_record(benchmark, *found, path) for found, path in zip(kept, paths, strict=True))
    return Task(benchmark, split, tuple(records), len(questions), not without)


def describe(name):
    """What a benchmark asks, how it is scored, what to fetch and where it goes: a text."""
    benchmark = _find(name)
    files = [names[0] for names in next(iter(benchmark.splits.values())).values()]
    return (
        f"{benchmark.name}: {benchmark.about}\n"
        f"  splits  {', '.join(benchmark.splits)}; files of the first: {', '.join(files)}\n"
        f"  prompt  {benchmark.prompt!r}\n"
        f"  scored  {benchmark.metric}; at most {benchmark.max_tiles} tiles, {benchmark.max_new_tokens} new tokens\n"
        f"  get     {benchmark.get}"
    )


def _find(name):
    if name not in BENCHMARKS:
        raise DataError(f"benchmark {name!r}; expected one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def unscored(reply, truth):
    """0 for every row: the truths of a hidden split are on the benchmark's server."""
    return 0.0


def _draw(questions, rows, seed, *, where):
    """So many of the questions, in their order; all for None."""
    if not questions:
        raise DataError(f"{where}: its files hold no questions; expected one at least; fetch them again")
    if rows is None:
        return questions
    if not 1 <= rows <= len(questions):
        raise DataError(f"{where}: rows={rows} of {len(questions):,}; expected 1 to {len(questions):,}")
    drawn = np.random.default_rng(seed).choice(len(questions), size=rows, replace=False)
    return [questions[number] for number in sorted(drawn)]


def _record(benchmark, part, question, path):
    if IMAGE_PLACEHOLDER in question.text:
        raise DataError(
            f'{question.where}: "{IMAGE_PLACEHOLDER}" in a question would stand for a second picture; expected none; '
            "fetch the file again"
        )
    text = benchmark.prompt.replace("{}", question.text)
    turns = (Turn("user", f"{IMAGE_PLACEHOLDER}\n{text}"), Turn("assistant", question.truth or ""))
    extra = question.extra | {"set": part}
    return Record(id=question.id, turns=turns, images=(path,), where=question.where, extra=extra)


def _benchmark(name, entry):
    for part in {"splits", "published"} & entry.keys():
        sets = entry[part].get("all", {})
        entry[part] |= {each: {each: value} for each, value in sets.items() if each != MEAN}
    return Benchmark(name=name, read=READERS[name], **entry)


_ENTRIES = yaml.safe_load(Path(__file__).with_name("benchmarks.yaml").read_text(encoding="utf-8"))
BENCHMARKS = {name: _benchmark(name, entry) for name, entry in _ENTRIES.items()}

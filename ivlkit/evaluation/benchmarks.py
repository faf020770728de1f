"""Public benchmarks that the released models report: the released prompts, the right metric, the published scores.

You fetch a benchmark from its makers; `open_benchmark` reads their files, `Task.evaluate` asks with the prompt, the
tile budget and the reply lengths of the released evaluation scripts, `Task.scores` puts what was measured beside what
was published. Published scores are the makers' own, those of 4b and 2b mostly by VLMEvalKit, whose prompts differ;
ChartQA's come from a script that takes the error relative to the reply.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ..data.files import write_whole
from ..data.rows.records import IMAGE_PLACEHOLDER, Record, Turn
from ..errors import DataError
from ..views import shown
from .benchmark_files import (
    find_file,
    find_pictures,
    read_chartqa,
    read_coco_captions,
    read_pope,
    read_refcoco,
    read_rrc,
    read_textvqa,
)
from .evaluate import evaluate
from .report import Report, check_rows_of

MODELS = ("26b", "4b", "2b")
SHORT_ANSWER = "Answer the question using a single word or phrase."
CAPTION = "Provide a one-sentence caption for the provided image."
LOCATE = "Please provide the bounding box coordinate of the region this sentence describes: <ref>{}</ref>"
MEAN = "mean"  # name of the line over several sets


@dataclass(frozen=True)
class Benchmark:
    """How one benchmark is read, asked and scored."""

    name: str
    about: str  # what it asks
    read: Callable  # annotation file → Questions
    splits: dict  # {split: {set: its file's possible names}}; the first split is the usual one
    pictures: tuple[str, ...]  # below the folder, where pictures may lie
    metric: str
    get: str  # what to fetch, from where, and where it goes
    places: tuple[str, ...] = ("",)  # below the folder, where annotation files may lie
    prompt: str = "{} " + SHORT_ANSWER  # of the released scripts; {} is the question
    max_tiles: int = 6  # of the released scripts' `--max-num`
    max_new_tokens: int = 100
    min_new_tokens: int = 1
    published: dict = field(default_factory=dict)  # {split: {set or "mean": {model: score of 100}}}
    score: Callable | None = None  # of the report of one set; None: the mean of its rows
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
        names = ("max_tiles", "max_new_tokens", "min_new_tokens")
        settings = {name: getattr(self.benchmark, name) for name in names}
        settings["metric"] = self.benchmark.metric if self.has_truth else unscored
        return evaluate(vlm, self, **settings | options)

    def scores(self, report):
        """`Scores` of a report of these rows. Raises: DataError for other rows, or if the truths are hidden."""
        check_rows_of(report, self.records)
        if not self.has_truth:
            raise DataError(
                f"{self.name}: only the benchmark's server has the truths; expected a split with answers; write a "
                "submission (save_submission, --submission) and send it there"
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
    def measured(self):
        """{set: score}, and with several sets their "mean"."""
        score = self.task.benchmark.score or (lambda report: report.score)
        found = {name: 100 * score(self.report.select(set=name)) for name in self._sets()}
        return found | ({MEAN: float(np.mean(list(found.values())))} if len(found) > 1 else {})

    @property
    def intervals(self):
        """{set: 95 % interval}, all questions about a picture drawn together; only of scores that are means of rows."""
        sets = () if self.task.benchmark.score else self._sets()
        return {name: tuple(100 * end for end in self.report.select(set=name).interval_by("images")) for name in sets}

    @property
    def published(self):
        """{set: {model: score}} of the same split, for the sets that were measured."""
        known = self.task.benchmark.published.get(self.task.split, {})
        return {name: known.get(name, {}) for name in self.measured}

    def lines(self):
        """Cells of a table: set, measured, 95 % interval, then the published score of each of MODELS."""
        published, intervals = self.published, self.intervals
        for name, score in self.measured.items():
            ends = intervals.get(name)
            others = [published[name].get(model) for model in MODELS]
            yield (name, f"{score:.1f}", f"{ends[0]:.1f} – {ends[1]:.1f}" if ends else "–", *map(_number, others))

    def to_dict(self):
        """Plain values for JSON."""
        task = self.task
        plain = {"benchmark": task.benchmark.name, "split": task.split, "rows": len(task), "rows_of_split": task.total}
        scores = {"measured": self.measured, "intervals": self.intervals, "published": self.published}
        return plain | {"metric": task.benchmark.metric} | scores

    def _sets(self):
        return dict.fromkeys(record.extra["set"] for record in self.task.records)

    def __repr__(self):
        table = [HEADER, *self.lines()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        cells = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in table)
        return "\n".join([repr(self.task), *("  ".join(line).rstrip() for line in cells)])

    _repr_html_ = shown("answers:scores_html")


HEADER = ("set", "measured", "95 %", *(f"{model} published" for model in MODELS))


def _number(score):
    return "–" if score is None else f"{score:.1f}"


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


# the benchmarks -------------------------------------------------------------------------------------------------------


def _by_model(*scores):
    """{model: published score} in the order of MODELS; None where none was published."""
    return {model: score for model, score in zip(MODELS, scores, strict=True) if score is not None}


_REFCOCO_PUBLISHED = {
    "refcoco_val": _by_model(91.4, 88.0, 80.7),
    "refcoco_testA": _by_model(93.7, 91.4, 86.7),
    "refcoco_testB": _by_model(87.1, 83.5, 72.9),
    "refcoco+_val": _by_model(87.0, 81.5, 72.5),
    "refcoco+_testA": _by_model(92.3, 87.4, 82.3),
    "refcoco+_testB": _by_model(80.9, 73.8, 60.8),
    "refcocog_val": _by_model(88.5, 84.7, 75.6),
    "refcocog_test": _by_model(89.3, 84.6, 74.9),
}
BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="textvqa",
            about="questions about text in photos; ten people's answers each",
            read=read_textvqa,
            splits={"val": {"val": ("TextVQA_0.5.1_val.json",)}, "test": {"test": ("TextVQA_0.5.1_test.json",)}},
            pictures=("train_images", "test_images"),
            metric="vqa_accuracy",
            max_new_tokens=10,
            published={"val": {"val": _by_model(80.6, 72.9, 70.5)}},
            answer_keys=("question_id", "answer"),
            get="TextVQA_0.5.1_val.json and train_val_images.zip from https://textvqa.org/dataset and unpack the "
            "pictures beside it (train_images/; of the test split test_images.zip)",
        ),
        Benchmark(
            name="docvqa",
            about="questions about scanned documents",
            read=partial(read_rrc, picture="image", kinds="question_types"),
            splits={
                "val": {"val": ("val_v1.0_withQT.json", "val_v1.0.json")},
                "test": {"test": ("test_v1.0.json",)},
            },
            places=("", "spdocvqa_qas", "{split}"),
            pictures=("{split}", "spdocvqa_images", "spdocvqa_images/documents", "", "documents"),
            metric="anls",
            max_tiles=18,
            published={"val": {"val": _by_model(90.5, 86.6, 83.9)}, "test": {"test": _by_model(90.9, None, None)}},
            answer_keys=("questionId", "answer"),
            get="the annotations and pictures of Task 1 (Single Page Document VQA) from "
            "https://rrc.cvc.uab.es/?ch=17&com=downloads, which wants an account, and unpack both here",
        ),
        Benchmark(
            name="infovqa",
            about="questions about infographics",
            read=partial(read_rrc, picture="image_local_name", kinds="answer_type"),
            splits={
                "val": {"val": ("infographicsVQA_val_v1.0_withQT.json", "infographicsVQA_val_v1.0.json")},
                "test": {"test": ("infographicsVQA_test_v1.0.json",)},
            },
            places=("", "infographicsvqa_qas"),
            pictures=("infographicsvqa_images", ""),
            metric="anls",
            max_tiles=24,
            published={"val": {"val": _by_model(72.4, 64.6, 55.9)}, "test": {"test": _by_model(72.5, None, None)}},
            answer_keys=("questionId", "answer"),
            get="the annotations and pictures of Task 3 (Infographics VQA) from "
            "https://rrc.cvc.uab.es/?ch=17&com=downloads, which wants an account, and unpack both here",
        ),
        Benchmark(
            name="chartqa",
            about="questions about charts, by people and by a program",
            read=read_chartqa,
            splits={
                split: {"human": (f"{split}_human.json",), "augmented": (f"{split}_augmented.json",)}
                for split in ("test", "val")
            },
            places=("ChartQA Dataset/{split}", "{split}", ""),
            pictures=("ChartQA Dataset/{split}/png", "{split}/png", "png"),
            metric="relaxed_accuracy",
            max_tiles=12,
            published={
                "test": {
                    "human": _by_model(73.6, 68.8, 54.9),
                    "augmented": _by_model(94.1, 93.2, 91.7),
                    MEAN: _by_model(83.8, 81.0, 73.3),
                }
            },
            get='"ChartQA Dataset" as https://github.com/vis-nlp/ChartQA says and unpack it here',
        ),
        Benchmark(
            name="pope",
            about="is such a thing in the photo? yes or no; finds models that invent",
            read=read_pope,
            splits={"coco": {name: (f"coco_pope_{name}.json",) for name in ("random", "popular", "adversarial")}},
            places=("coco", "output/coco", ""),
            pictures=("val2014", "../coco/val2014"),
            prompt="{}\n" + SHORT_ANSWER,
            metric="pope",
            published={"coco": {MEAN: _by_model(88.3, None, None)}},
            score=lambda report: report.corpus("pope")["f1"],
            get="coco_pope_random.json, coco_pope_popular.json and coco_pope_adversarial.json from output/coco of "
            "https://github.com/AoiDragon/POPE and val2014.zip from https://cocodataset.org/#download (val2014/)",
        ),
        Benchmark(
            name="refcoco",
            about="RefCOCO, RefCOCO+ and RefCOCOg: a sentence, one box",
            read=read_refcoco,
            splits={"all": {name: (f"{name}.jsonl",) for name in _REFCOCO_PUBLISHED}}
            | {name: {name: (f"{name}.jsonl",)} for name in _REFCOCO_PUBLISHED},
            pictures=("train2014", "../coco/train2014"),
            prompt=LOCATE,
            metric="grounding",
            published={"all": _REFCOCO_PUBLISHED | {MEAN: _by_model(88.8, 84.4, 75.8)}}
            | {name: {name: scores} for name, scores in _REFCOCO_PUBLISHED.items()},
            get="refcoco_val.jsonl and its seven sisters as internvl_chat/eval/refcoco/README.md of "
            "https://github.com/OpenGVLab/InternVL says, and train2014.zip from https://cocodataset.org/#download "
            "(train2014/)",
        ),
        Benchmark(
            name="coco_captions",
            about="one sentence a photo, beside five people's; CIDEr x 100",
            read=read_coco_captions,
            splits={
                "karpathy_test": {"karpathy_test": ("coco_karpathy_test.json",)},
                "val2014": {"val2014": ("captions_val2014.json",)},
                "test2014": {"test2014": ("image_info_test2014.json",)},
            },
            places=("annotations", ""),
            pictures=("", "val2014", "test2014"),
            prompt=CAPTION,
            metric="cider",
            max_new_tokens=30,
            min_new_tokens=8,
            answer_keys=("image_id", "caption"),
            get="annotations_trainval2014.zip and val2014.zip from https://cocodataset.org/#download, or "
            "coco_karpathy_test.json as internvl_chat/eval/caption/README.md of https://github.com/OpenGVLab/InternVL "
            "says, and unpack them here (annotations/, val2014/)",
        ),
    )
}

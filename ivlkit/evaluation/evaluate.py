"""Greedy replies to every row of a data set, scored, with their pictures kept for looking at."""

import hashlib
import json
import os
import time
import warnings
from dataclasses import replace
from numbers import Integral
from pathlib import Path

import torch
from tqdm import tqdm

from ..data.checking.lengths import measure
from ..data.datasets.mixture import Data
from ..data.datasets.opening import open_data
from ..data.datasets.questions import records_in
from ..data.encode import picture_sizes
from ..data.importing.convert import listed_text
from ..data.rows.formats import without_places
from ..data.rows.media import check_picture, image_size
from ..data.rows.records import accepted_truth
from ..errors import CheckpointError, DataError
from ..hardware import package_version
from ..models.chat import iterate_replies
from ..models.load import read_origin
from ..models.options import as_options, check_count, check_options
from ..training.run import loaded
from .confidence import scored
from .journal import open_journal
from .metrics import SOURCE, metric_name, metric_source, score_replies
from .pictures import arrange, content_key, media_key, not_shuffled
from .report import Report, Row
from .review.review import EARLIER_TURNS

MAX_NEW_TOKENS = 64
LISTED = 10  # rows that can't be used
SAMPLES = 64  # numbers of each tensor that a model's fingerprint is made of


def evaluate(
    vlm,
    data,
    *,
    metric="exact_match",
    pictures="right",
    max_tiles=None,
    batch_size=16,
    to=None,
    seed=0,
    progress=True,
    **generation,
):
    """Ask the last question of every row and score the reply against the row's last answer.

    Earlier turns of a row are given as written. A row with a field `answers`, a list of texts, accepts any of them.
    Each row of the report has the confidence of its reply; `Report.calibration` says what it is worth.

    Args:
        vlm: a loaded model; or a key such as "nano", a folder or a finished run, which is loaded and released again.
        data: what `open_data` gives, a path, or a list of records.
        metric: "exact_match", "anls", "vqa_accuracy", "number", "ap50", …: a name of METRICS or CORPUS_METRICS in
            `ivlkit.evaluation.metrics`; or a function of (reply, truth) that gives 0 to 1; the truth is a text, for
            rows with `answers` a tuple of texts. A judge that is a model of its own is such a function.
        pictures: "right", or as a control "shuffled" (another row's, by `seed`) or "none"; see `Report.with_control`.
        max_tiles: tile budget instead of the model's and the rows' own: what do more tiles give?
        to: a folder that keeps each batch's replies. Called again, also after a kill, it goes on where it stopped; the
            metric and the truths may have changed, model, questions and settings may not.
        seed: of shuffled pictures and of sampled replies.
        generation: options of `generate`; greedy with at most 64 new tokens unless said.
    Returns: `Report`.
    Raises: DataError for rows or settings that can't be used; CheckpointError if tiles or template are not those that
        the model was trained with (and `max_tiles` was not given).
    """
    name = metric_name(metric)
    check_options(generation, "evaluate", evaluate)
    check_seed(seed)
    data = open_data(data) if isinstance(data, (str, os.PathLike)) else data
    options = {"max_tiles": max_tiles, "batch_size": batch_size, "seed": seed, "progress": progress}
    with loaded(vlm, "evaluate") as vlm:
        records = _usable_records(data, vlm.processor, metric, progress=progress)
        asked = arrange(records, pictures, seed=seed)
        replies, details = ask_all(vlm, asked, folder=to, pictures=pictures, **options, **generation)
    rows, numbers = _score(metric, records, asked, replies)
    details = {"data": name_of_data(data)} | details | not_shuffled(records, asked, pictures)
    if source := metric_source(metric):
        details[SOURCE] = source
    if earlier := sum(len(record.turns) > 2 for record in records):
        details[EARLIER_TURNS] = earlier  # a `Row` does not keep them
    report = Report(name, rows, details, numbers)
    if to:
        report.save_json(Path(to) / "report.json")
    return report


def check_seed(seed):
    """Raises: DataError for what numpy's generator does not take."""
    if not isinstance(seed, Integral) or seed < 0:
        raise DataError(f"seed={seed!r}; expected a whole number, 0 or more")


def name_of_data(data):
    """What a report calls its data: the path that it is read from, its name, or "records"."""
    if isinstance(data, (str, os.PathLike)):
        return str(data)
    return str(getattr(data, "name", getattr(data, "path", "records")))


def check_media(records, processor):
    """Look at every picture's header and end, and at every video's header, before the first question is asked.

    Raises: DataError with the rows that can't be used, all of them counted.
    """
    found = []
    for record in records:
        try:
            if record.video:
                picture_sizes(record, processor, draw=None)
            for image in record.images:
                look = check_picture if isinstance(image, (str, os.PathLike)) else image_size
                look(image, record.where, rules=processor.picture_rules)
        except DataError as error:
            found.append(error)
    if len(found) == 1:
        raise found[0]
    if found:
        listed = listed_text(found[:LISTED], len(found))
        raise DataError(f"{len(found):,} of {len(records):,} rows can't be used; mend them, or leave them out:{listed}")


def _usable_records(data, processor, metric, *, progress):
    """The rows. Raises: DataError for what would fail during the replies, or once all are there."""
    if isinstance(data, Data):
        measure(data, processor, draw=None, progress=progress).check(data.path)
        if again := len(data) - len(set(zip(*(numbers.tolist() for numbers in data.places()), strict=True))):
            said = f"{again:,} of {len(data):,} rows of {data.path} repeat others, as `repeat_time` says: each counts "
            warnings.warn(f"{said}again, and the interval is too narrow; evaluate data without it", stacklevel=3)
    records = records_in(data)
    if not records:
        raise DataError("no rows to evaluate; expected at least one")
    for record in records:
        if [turn.role for turn in record.turns[-2:]] != ["user", "assistant"]:
            raise DataError(f"{record.where}: does not end with a question and its answer; expected both; add them")
    _check_truths(records, metric)
    if not isinstance(data, Data):
        check_media(records, processor)
    return records


def _check_truths(records, metric):
    """Score empty replies: a truth that the metric can't take fails now, with its row."""
    truths = list(map(accepted_truth, records))
    if callable(metric):
        return
    try:
        score_replies(metric, [""] * len(truths), truths)
    except DataError:
        for record, truth in zip(records, truths, strict=True):
            try:
                score_replies(metric, [""], [truth])
            except DataError as error:
                raise DataError(f"{record.where}: {error}") from error
        raise


# asking ---------------------------------------------------------------------------------------------------------------


def ask_all(vlm, records, *, folder, max_tiles, batch_size, seed, progress, pictures="right", **generation):
    """Ask every record its question: (`ScoredReply` of each, details: what decided them and how long it took).

    Args: folder: the journal's, as `to` of `evaluate`; the other arguments as there.
    """
    _check_as_trained(vlm, max_tiles)
    started = time.monotonic()
    if "max_new_tokens" not in as_options(generation):
        generation = {"max_new_tokens": MAX_NEW_TOKENS} | generation
    settings = _settings(vlm, generation, pictures=pictures, seed=seed)
    budgets = [max_tiles or record.max_tiles for record in records]
    journaled = settings | {"questions": _questions_digest(records, budgets)} if folder else {}
    conversations = [(asked_turns(record), record.video or record.images) for record in records]
    options = {"batch_size": batch_size, "max_tiles": budgets, "seed": seed, "probabilities": True, **generation}
    with (
        open_journal(folder, journaled, [record.where for record in records]) as (known, append),
        tqdm(total=len(records), initial=len(known), desc="replies", disable=not progress) as bar,
    ):
        num_known = len(known)
        for batch in iterate_replies(vlm, conversations, done=set(known), **options):
            new = {number: scored(reply) for number, reply in batch if number not in known}
            append(new)
            known |= new
            bar.update(len(new))
    details = {"model": vlm.origin} | settings
    details |= {"max_tiles": max_tiles or settings["max_tiles"], "device": str(vlm.model.device)}
    details |= {"batch_size": batch_size, "seconds": round(time.monotonic() - started, 1)}
    details |= {"rows asked in them": len(records) - num_known}
    return [known[number] for number in range(len(records))], details


def asked_turns(record):
    """The turns up to the last question; an answer behind it is the truth."""
    return record.turns[:-1] if record.turns[-1].role == "assistant" else record.turns


# scoring --------------------------------------------------------------------------------------------------------------


def _score(metric, records, asked, replies):
    """(`Row`s, numbers of the whole report); rows show what was asked about."""
    scores, numbers = score_replies(metric, replies, list(map(accepted_truth, records)))
    rows = (
        row_of(
            replace(record, images=shown.images, video=shown.video),
            reply,
            truth=record.answer,
            score=score,
            extra={key: value for key, value in record.extra.items() if key != "answers"},
            answers=tuple(record.extra.get("answers") or ()),
        )
        for record, shown, reply, score in zip(records, asked, replies, scores, strict=True)
    )
    return tuple(rows), numbers


def row_of(record, reply, **known):
    """The `Row` of a record and its `ScoredReply`. Args: known: its other fields, truth, score and extra at least."""
    shown = {"images": record.images, "video": record.video}
    return Row(record.where, without_places(record.question), reply=str(reply), **shown, **known, **vars(reply))


# what decides a reply -------------------------------------------------------------------------------------------------


def _check_as_trained(vlm, max_tiles):
    """Tiles, template and system prompt of the loaded model are those that its checkpoint names."""
    if max_tiles is not None:
        check_count("max_tiles", max_tiles, ", or None for the model's own")
    stored = vlm.config | (read_origin(vlm.folder) or {})
    trained = {
        "max_tiles": None if max_tiles else stored.get("max_tiles", stored.get("max_dynamic_patch")),
        "template": stored.get("template"),
        "system_message": stored.get("system_message"),
    }
    asked = _settings_of(vlm.processor)
    for name, value in trained.items():
        if value is not None and value != asked[name]:
            raise CheckpointError(
                f"{vlm.folder}: trained with {name} {value!r}, asked with {asked[name]!r}; expected the same; load it "
                "again" + (", or say max_tiles=… if that is the question" if name == "max_tiles" else "")
            )


def _settings(vlm, generation, *, pictures, seed):
    """All that decides the replies beside the questions. Another batch size may round otherwise, and is allowed."""
    model = {"weights": fingerprint(vlm.model), "dtype": str(vlm.model.dtype).removeprefix("torch.")}
    versions = ", ".join(f"{name} {package_version(name)}" for name in ("torch", "transformers", "ivlkit"))
    asking = {"pictures": pictures, "seed": seed, "generation": json.dumps(generation, default=_plain)}
    return model | _settings_of(vlm.processor) | asking | {"versions": versions}


def _settings_of(processor):
    names = ("system_message", "max_tiles", "min_tiles", "use_thumbnail", "dynamic")
    return {"template": processor.template.name} | {name: getattr(processor, name) for name in names}


@torch.no_grad()
def fingerprint(model):
    """16 hex digits of a model's weights as loaded: names, shapes, and up to 64 numbers spread over each tensor."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].cpu()
        sample = sample.float() if sample.is_floating_point() else sample
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _questions_digest(records, budgets):
    digest = hashlib.sha256()
    for record, budget in zip(records, budgets, strict=True):
        turns = [(turn.role, turn.text) for turn in asked_turns(record)]
        digest.update(repr((record.where, turns, media_key(record), content_key(record), budget)).encode())
    return digest.hexdigest()[:16]


def _plain(value):
    """An option of `generate` that is no plain value, for JSON."""
    return value.to_diff_dict() if hasattr(value, "to_diff_dict") else repr(value)

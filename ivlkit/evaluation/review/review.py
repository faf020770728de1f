"""Which rows deserve a look: those whose truth the model finds least likely; what a person decided about them."""

import os
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from tqdm import tqdm

from ...data.collate import collate
from ...data.datasets.opening import open_data
from ...data.encode import encode
from ...data.groups import group_keys, part_of_groups, row_keys
from ...data.rows.formats import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from ...data.rows.records import Record, Turn
from ...errors import DataError
from ...models.chat import WINDOW_BATCHES, alike_batches, encode_tiles, find_short_context
from ...training.loop.loss import weighted_cross_entropy
from ...training.run import VALIDATION, Run, loaded, open_again
from ...training.runs import train
from ...views import shown
from ..metrics import metric_of, score_rows
from ..pictures import media_key
from .corrections import Decision, write_decisions

REVIEW_ORDERS = ("loss", "sure", "random")
EARLIER_TURNS = "rows with earlier turns"  # of a report's details


@torch.inference_mode()
def truth_losses(vlm, records, *, batch_size=16, progress=False):
    """How unlikely each row's truth is to a model: −log of its probability, its tokens and its end summed.

    One forward pass over questions and truths; of a row with several answers all count that are trained on.

    Args: records: rows with answers, a list or a `Data`.
    Returns: a list of floats, in nats: 0.7 for a truth of probability one half.
    """
    losses, window = [0.0] * len(records), WINDOW_BATCHES * batch_size
    for start in tqdm(range(0, len(records), window), desc="losses", disable=not progress):
        rows = [replace(records[n], augment_jpeg=False) for n in range(start, min(start + window, len(records)))]
        examples = [encode(row, vlm.processor, draw=None) for row in rows]
        for places in alike_batches(list(map(len, examples)), batch_size, find_short_context(vlm)):
            found = _losses(vlm, [examples[place] for place in places])
            for place, loss in zip(places, found, strict=True):
                losses[start + place] = loss
    return losses


def _losses(vlm, examples):
    """The summed cross-entropy of each example's supervised tokens."""
    model, device = vlm.model, vlm.model.device
    batch = {key: value.to(device) for key, value in collate(examples, pad_token_id=vlm.tokenizer.pad_token_id).items()}
    embeds, labels = model.get_input_embeddings()(batch["input_ids"]), batch["labels"]
    if len(batch["tiles"]):
        embeds = model.embed(batch["input_ids"], encode_tiles(vlm, batch["tiles"]))

    def each(hidden, head):
        one = labels.new_ones(1).float()
        rows = (
            weighted_cross_entropy(hidden[n : n + 1], head, labels=labels[n : n + 1], weights=one)
            for n in range(len(labels))
        )
        return torch.stack(list(rows))

    outputs = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"], use_cache=False, loss_fn=each)
    return outputs.loss.tolist()


def fold_losses(run, data, *, folds, batch_size=16, seed=0):
    """`truth_losses` of the rows that a run was trained on, each from a model that was trained like it without the row.

    Rows that share a picture are left out together. The runs lie in the run's folder and are trained one after the
    other; called again, after it was killed too, it goes on.

    Args: data: the run's own rows; folds: into how many parts they are cut, and so how many runs there are, 2 or more.
    Returns: a list of floats, in nats.
    Raises: DataError unless there are so many pictures; what `train` raises.
    """
    groups = group_keys(row_keys(data).own)
    most = len(set(groups.tolist()))
    if not isinstance(folds, int) or not 2 <= folds <= most:
        raise DataError(f"folds={folds!r} of {data.path}; expected 2 to {most}, its pictures; take 4 or fewer")
    part_of = part_of_groups(groups, [1 / folds] * folds, seed=seed)
    validation, losses = open_again(run, VALIDATION) if VALIDATION in run.spec else None, np.empty(len(data))
    for fold in range(folds):
        left_out, others = np.flatnonzero(part_of == fold), np.flatnonzero(part_of != fold)
        print(f"{fold + 1} of {folds}: a model that has not seen {len(left_out):,} of the {len(data):,} rows")
        folder = run.folder / f"folds-{folds}" / f"seed-{seed}-without-{fold}"
        trained = train(run.recipe, data.select(others), validation=validation, folder=folder).wait()
        with loaded(trained, "review") as vlm:
            losses[left_out] = truth_losses(vlm, data.select(left_out), batch_size=batch_size, progress=True)
    return losses.tolist()


def source_of(row):
    """Where a row, or a record, stands in a person's own table: "labels.csv:17"."""
    return str(row.extra.get("source") or row.where)


def sources_of(report):
    """`source_of` each row, but the places of rows that share one: a field of one's own may say {"source": "web"}."""
    places = [(source_of(row), row.where) for row in report.rows]
    rows_at = Counter(source for source, _ in set(places))
    return [source if rows_at[source] == 1 else where for source, where in places]


def records_of(report):
    """The rows of a report as records to be encoded.

    Raises: DataError for rows of several pictures, whose places in the question are not kept, or with earlier turns.
    """
    if earlier := report.details.get(EARLIER_TURNS):
        raise DataError(f"{earlier} rows have earlier turns; expected the data beside the report; write review(data=…)")
    records = []
    for row in report.rows:
        if len(row.images) > 1:
            raise DataError(
                f"{row.where}: {len(row.images)} pictures; expected the data beside the report, which says where they "
                "stand; write report.review(data=…)"
            )
        place = VIDEO_PLACEHOLDER if row.video else IMAGE_PLACEHOLDER if row.images else ""
        question = f"{place}\n{row.question}" if place and place not in row.question else row.question
        turns = (Turn("user", question), Turn("assistant", row.truth))
        records.append(Record(None, turns, row.images, row.where, video=row.video))
    return records


def check_rows_of(report, records):
    """The report is of these records, in their order. Raises: DataError with the first row that is not."""
    if len(report.rows) != len(records):
        raise DataError(
            f"a report of {len(report.rows):,} rows for {len(records):,} records; expected one of the same data"
        )
    for row, record in zip(report.rows, records, strict=True):
        if (row.where, row.truth) != (record.where, record.answer):
            raise DataError(f"a report of other rows: {row.where} for {record.where}; expected one of the same data")


def _in_order(report, order, losses, seed):
    """Numbers of the rows in one of REVIEW_ORDERS."""
    numbers = range(len(report.rows))
    if order == "random":  # the only one in which corrected truths of test rows give an honest score
        return np.random.default_rng(seed).permutation(len(numbers)).tolist()
    if order == "loss":
        return sorted(numbers, key=lambda number: -losses[number])
    return sorted(numbers, key=lambda number: _trust(report.rows[number]))


def _trust(row):
    """Least for a wrong reply that the model was sure of, most for a right one that it was sure of."""
    return row.is_right, (row.confidence or 0.0) * (1 if row.is_right else -1)


@dataclass
class Review:
    """Rows of a report in the order in which to look at them, and what was decided.

    `rows` says for each what is needed to judge it; `keep`, `correct` and `drop` decide; `save` writes the decisions as
    a table of your own. In the order "random" replies are hidden until their row is decided: who sees the reply first
    tends to agree with it.
    """

    report: object
    numbers: list  # of the report's rows, the most doubtful first
    order: str
    losses: list = field(default_factory=list, repr=False)  # of the truth, by number; [] where they were not needed
    decisions: dict = field(default_factory=dict)  # {source: Decision}

    @property
    def rows(self):
        """A dict for each row, in this order: number, source, images, video, question, truth, reply, loss, decision.

        `reply` is None while it is hidden, `loss` where it was not computed, `decision` where nothing is decided.
        """
        sources = sources_of(self.report)
        return [self._line(number, sources[number]) for number in self.numbers]

    def _line(self, number, source):
        row, decision = self.report.rows[number], self.decisions.get(source)
        return {
            **{"number": number, "source": source, "images": row.images, "video": row.video},
            **{"question": row.question, "truth": row.truth, "decision": decision},
            "reply": None if self.order == "random" and not decision else row.reply,
            "loss": self.losses[number] if self.losses else None,
        }

    def keep(self, source):
        """The truth of the row at this source ("labels.csv:17") is right."""
        self._decide(source, "keep")

    def correct(self, source, answer):
        """Its truth should be this text."""
        if not isinstance(answer, str):
            raise DataError(f"{source}: corrected to {answer!r:.60}; expected a text; write it in quotes")
        self._decide(source, "correct", answer)

    def drop(self, source):
        """The row is of no use: its line is left out."""
        self._decide(source, "drop")

    def _decide(self, source, action, answer=None):
        sources = sources_of(self.report)
        rows = [row for row, own in zip(self.report.rows, sources, strict=True) if own == source]
        if not rows:
            raise DataError(f"{source}: no row of this report; expected a source such as {sources[0]}")
        if len({(row.question, row.truth, media_key(row)) for row in rows}) > 1:
            raise DataError(f"{source}: {len(rows)} rows, from files of one name; expected one; review them one by one")
        self.decisions[source] = Decision(action, rows[0].truth, answer)

    def save(self, table, *, to=None, answer=None):
        """Write the decisions as `labels.corrected.csv` beside labels.csv; see `write_decisions`."""
        return write_decisions(table, self.decisions, to=to, answer=answer)

    def rescored(self, report=None, *, metric=None):
        """A report of the same rows with the truths as decided: dropped rows are left out.

        Args:
            report: the one reviewed, or another of the same rows, such as before training.
            metric: the function that it was evaluated with, where that is one of your own.
        Raises: DataError unless rows were drawn at random: looking only where the model disagrees raises its score; for
        a function that is not given, or not the same.
        """
        if self.order != "random":
            raise DataError(
                f'a review in the order "{self.order}"; expected "random": rows that were chosen by the model\'s own '
                "replies would raise its score"
            )
        report = report or self.report
        metric = metric_of(report, metric)
        rows = [row for row in map(self._as_decided, report.rows, sources_of(report)) if row]
        scores, numbers = score_rows(metric, rows)
        rows = tuple(replace(row, score=score) for row, score in zip(rows, scores, strict=True))
        return replace(report, rows=rows, numbers=numbers, controls={}, labellers={})

    def _as_decided(self, row, source):
        """The row with its truth as decided, None for a dropped one."""
        decision = self.decisions.get(source)
        if decision is None or decision.action == "keep":
            return row
        return None if decision.action == "drop" else replace(row, truth=decision.answer, answers=())

    def scores(self, before=None, *, metric=None):
        """{"before, old truths": (score, low, high), …}: each report with the old truths and with the new ones.

        Args: before: another report of the same rows; metric and what is raised as in `rescored`.
        """
        found = {}
        for name, report in {"before": before, "after": self.report}.items():
            for truths, each in (("old", report), ("new", report and self.rescored(report, metric=metric))):
                if each is not None:
                    found[f"{name}, {truths} truths"] = (each.score, *each.interval)
        return found

    def __repr__(self):
        return f"Review({len(self.numbers):,} rows in the order {self.order!r}, {len(self.decisions):,} decided)"

    _repr_html_ = shown("answers:review_html")


def review_report(report, vlm=None, *, order="loss", folds=None, data=None, batch_size=16, seed=0):
    """Which rows deserve a look: a `Review`, in which to keep, correct or drop their truths.

    For rows to train on take "loss": first those whose truth the model finds least likely. Test rows take "random",
    hide the reply until a row is decided, and score with the old truths and the new ones.

    Args:
        vlm: the model that says how likely a truth is; default the one that the report is of, loaded again.
        order: "loss"; "sure", wrong replies that the model was sure of; or "random", by `seed`.
        folds: with a run for `vlm`, that was trained on these rows and knows their mistakes by heart: train so many
            models more, each without its part of the rows, which it then judges. 4 take as long as 3 such runs.
        data: what was evaluated, for rows with earlier turns or several pictures, which a report does not keep.
    Raises: DataError for another order, and for data of other rows.
    """
    if order not in REVIEW_ORDERS:
        raise DataError(f"order={order!r}; expected one of {', '.join(REVIEW_ORDERS)}")
    if folds is not None:
        if not isinstance(vlm, Run) or order != "loss":
            raise DataError(
                f"folds={folds} with a {type(vlm).__name__} in the order {order!r}; expected the run that was trained "
                'on these rows, and the order "loss"; write report.review(run, folds=4)'
            )
        data = open_again(vlm)
    if isinstance(data, (str, os.PathLike)):
        data = open_data(data)
    if data is not None:
        check_rows_of(report, data)
    losses = []
    if folds is not None:
        losses = fold_losses(vlm, data, folds=folds, batch_size=batch_size, seed=seed)
    elif order == "loss":
        origin = report.details.get("model")
        vlm = vlm or ("nano" if origin == "the package" else origin)
        records = records_of(report) if data is None else list(data)
        with loaded(vlm, "review") as vlm:
            losses = truth_losses(vlm, records, batch_size=batch_size, progress=True)
    return Review(report, _in_order(report, order, losses, seed), order, losses)

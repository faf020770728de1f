"""Validation while a run trains: the loss on rows apart, and answers to the same few of them each time.

The best weights so far are kept in `best-N/`, apart from checkpoints, and become the run's final ones. All that decides
is in the run's folder, so that a run that was killed goes on as if it had not been.
"""

import json
import time
from contextlib import nullcontext, suppress
from dataclasses import replace

import numpy as np
import torch
from accelerate.utils import broadcast_object_list

from ...data.encode import IGNORE_INDEX
from ...data.files import appearing, vanish
from ...data.rows.records import accepted_truth
from ...models.chat import reply_batch
from ...models.modeling.attention import use_attention
from ..checkpoints import step_of, write_contents
from ..log import append_step, read_steps
from ..run import VALIDATION_FILE
from .train import load_micro_batches, sum_losses, sum_over_ranks, weigh

BEST_FILE = "best.json"
BEST_KEYS = ("step", "loss", "score", "chosen_by")
ANSWER_TOKENS = 64  # of a reply at most, or a few more than the longest truth has
CHOOSING_ROWS = 64  # answered, from which a metric chooses the best weights; of fewer its score is mostly chance


class Validate:
    """Appends {"step", "loss", "score", "seconds", "answers": [{"row", "where", "question", "truth", "reply", "score",
    "right"}, …]} to the run's validation, before the first step, every `eval_steps`, and after the last.

    Better is a higher score where there is a metric and `CHOOSING_ROWS` rows are answered, else a lower loss over all
    validation rows; "chosen_by" of a line says which. After `patience` validations in a row that were not better than
    the best, `gave_up` is true.

    Args:
        vlm: a `VLM` around the model that trains, with the run's processor.
        dataset: `MicroBatches` of one pass over the validation rows.
        metric: a function of (reply, truth) that gives a number, higher for better; the truth is a text, for rows with
            `answers` a tuple of texts.
    """

    gave_up = False

    def __init__(self, training, vlm, dataset, folder, *, metric=None):
        self.training, self.vlm, self.dataset, self.recipe = training, vlm, dataset, training.recipe
        self.folder, self.metric = folder, metric
        places = np.linspace(0, len(dataset.data) - 1, self.recipe.eval_samples)
        self.rows = sorted({round(place) for place in places})
        self.records = [dataset.data[row] for row in self.rows]
        self.chosen_by = "score" if metric and len(self.rows) >= CHOOSING_ROWS else "loss"
        truths = vlm.tokenizer([record.answer for record in self.records])["input_ids"]
        self.max_new_tokens = max(ANSWER_TOKENS, 8 + max(map(len, truths)))
        epoch_steps = -(-len(training.micro_batches.data) // self.recipe.total_batch)
        self.every = self.recipe.eval_steps or min(self.recipe.save_steps, epoch_steps)

    def begin(self):
        """As the model is before the first step; where a run goes on, only whether its patience is over."""
        if self.training.step == 0:
            self._validate(0)
        else:
            if best := find_best(self.folder):  # two, if it was killed before the older one went
                self._forget_all_but(best["path"])
            (self.gave_up,) = broadcast_object_list([self._is_patience_over(self.training.step)])

    def after_step(self):
        """Validate if it is due. A better model is kept before a checkpoint can say that this step is done."""
        step = self.training.step
        if step % self.every == 0 or step == self.training.steps:
            is_best, self.gave_up = self._validate(step)
            if is_best:
                self._keep(step)

    def _validate(self, step):
        """(whether it is the best so far, whether patience is over), the same on all ranks."""
        began, accelerator, model = time.monotonic(), self.training.accelerator, self.training.model
        devices = [self.training.device] if self.training.device.type == "cuda" else []
        stance = torch.compiler.set_stance("force_eager") if self.recipe.compile else nullcontext()
        model.eval()
        with torch.random.fork_rng(devices), torch.no_grad(), accelerator.autocast(), stance:
            loss, self.row_losses = self._losses()
            line = {"step": step, "loss": loss, **self._answers(), "chosen_by": self.chosen_by}
        model.train()
        found = [False, False]
        if accelerator.is_main_process:
            is_best = bool(step) and _is_better(line, find_best(self.folder))
            append_step(self.folder / VALIDATION_FILE, line | {"seconds": round(time.monotonic() - began, 3)})
            found = [is_best, not is_best and self._is_patience_over(step)]
        return broadcast_object_list(found)

    def _losses(self):
        """(Σ w·CE / W over all validation rows, as a training step weighs; each row's share, whose mean that is)."""
        sums, weight = np.zeros(len(self.dataset.data)), 0.0
        for number, batch in enumerate(load_micro_batches(self.dataset)):
            if batch["where"]:
                weight += float(weigh(self.training, [batch]))
                rows = [row for _, row in self.dataset.batches[number].rows]
                np.add.at(sums, rows, _sum_rows(self.training, batch))
                if self.dataset.kept:
                    self.dataset.kept.write()
        sums = np.array(sum_over_ranks(self.training, *sums))
        return float(sums.sum()) / weight, sums * len(sums) / weight

    def _answers(self):
        """Greedy replies; every rank makes the same ones, since a model may be spread over all of them."""
        conversations = [(record.turns[:-1], record.video or record.images) for record in self.records]
        budgets = [record.max_tiles for record in self.records]
        with use_attention(self.training.model, "sdpa"):  # a kernel for bins is wrong on padded rows
            replies = reply_batch(self.vlm, conversations, max_tiles=budgets, max_new_tokens=self.max_new_tokens)
        triples = zip(self.rows, self.records, (reply.text for reply in replies), strict=True)
        answers = [_answer(row, record, reply, self.metric) for row, record, reply in triples]
        score = sum(each["score"] for each in answers) / len(answers) if self.metric else None
        return {"score": score, "answers": answers}

    def _is_patience_over(self, step):
        best = find_best(self.folder)
        if self.recipe.patience is None or best is None:
            return False
        since = [line for line in read_steps(self.folder / VALIDATION_FILE) if best["step"] < line["step"] <= step]
        return len(since) >= self.recipe.patience

    def _keep(self, step):
        """Write `best-N` on rank 0, with the others' help; the best before goes afterwards."""
        to, writes = self.folder / f"best-{step}", self.training.accelerator.is_main_process
        with appearing(to) if writes else nullcontext(to) as aside:
            self.training.save_weights(aside)
            if writes:
                (line,) = (line for line in read_steps(self.folder / VALIDATION_FILE) if line["step"] == step)
                kept = {key: line[key] for key in BEST_KEYS} | {"row_losses": self.row_losses.tolist()}
                (aside / BEST_FILE).write_text(json.dumps(kept))
                write_contents(aside)
        self._forget_all_but(to)

    def _forget_all_but(self, kept):
        for path in _kept(self.folder) if self.training.accelerator.is_main_process else ():
            if path != kept:
                vanish(path)


def _sum_rows(training, batch):
    """Σ w·CE of each row of a micro-batch: floats [rows]. The model runs once, its head for one row after the other.

    Ranks need the same number of calls under ZeRO-3: all call for as many rows as the one with most.
    """
    found, rows = [], torch.tensor([len(batch["where"])], device=training.device)
    calls = int(training.accelerator.gather(rows).max())

    def by_row(hidden, head, batch):
        labels = batch["labels"]
        ids = batch.get("sample_ids", torch.arange(len(labels), device=labels.device)[:, None])
        for row in range(calls):
            found.append(
                training.loss_fn(hidden, head, batch | {"labels": labels.masked_fill(ids != row, IGNORE_INDEX)})
            )
        return torch.stack(found).sum()

    sum_losses(training.model, batch, replace(training, loss_fn=by_row))
    return torch.stack(found).tolist()[: len(batch["where"])]


def _answer(row, record, reply, metric):
    truth = accepted_truth(record)
    return {
        "row": row,
        "where": record.where,
        "question": record.question,
        "truth": record.answer,
        "reply": reply,
        "score": float(metric(reply, truth)) if metric else None,
        "right": reply in (truth if isinstance(truth, tuple) else (truth,)),
    }


def _is_better(line, best):
    """A loss or a score that is not a number is never better: nothing would ever be better than it."""
    if line["loss"] != line["loss"] or line["score"] != line["score"]:
        return False
    if best is None:
        return True
    by_score = line["score"] is not None and line.get("chosen_by") != "loss"  # earlier versions did not say
    return line["score"] > best["score"] if by_score else line["loss"] < best["loss"]


def _kept(folder):
    return sorted((path for path in folder.glob("best-*") if path.name[5:].isdigit()), key=step_of)


def find_best(folder):
    """The best validation so far, as {"step", "loss", "score", "row_losses", "path"}, or None; earlier versions kept no
    losses of rows."""
    best = None
    for path in _kept(folder):  # two, if it was killed before the older one went
        with suppress(OSError, ValueError):  # damaged, or gone while another rank looks
            found = json.loads((path / BEST_FILE).read_text()) | {"path": path}
            best = found if best is None or _is_better(found, best) else best
    return best

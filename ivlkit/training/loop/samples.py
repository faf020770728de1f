"""A few training rows while a run trains without validation: the next token at each place turns right or does not.

Free answers, to rows that are not trained on, are `validation`'s.
"""

import numpy as np
import torch

from ...data.encode import IGNORE_INDEX
from ..log import append_step
from .train import model_inputs, to_device

ROWS = 4  # spread over the training rows
TIMES = 12  # of a run, the start and the end beside them


class Samples:
    """Appends {"step", "answers": [{"where", "question", "truth", "reply", "right"}, …]} to a run's samples.

    A reply is made of the most probable token at each place, given the truth before it: one forward pass for all rows,
    or for each where together they are more than a bin. It is right exactly if the greedy reply is the truth;
    after a first wrong token the greedy reply may read differently.
    """

    gave_up = False  # as `Validate` may

    def __init__(self, training, path):
        self.training, self.path = training, path
        data = training.micro_batches.data
        self.rows = sorted({round(place) for place in np.linspace(0, len(data) - 1, ROWS)})

    def after_step(self):
        """About TIMES in a run, and at its end."""
        step, steps = self.training.step, self.training.steps
        if step % max(1, steps // TIMES) == 0 or step == steps:
            self.write()

    def write(self):
        """As the model is now. On several GPUs nothing: one rank can't run a model that is spread over them."""
        if self.training.accelerator.num_processes == 1:
            append_step(self.path, {"step": self.training.step, "answers": list(self._answers())})

    begin = write

    def _answers(self):
        """Of the rows that are not masked."""
        micro_batches = self.training.micro_batches
        tokenizer, (most_tokens, _) = micro_batches.processor.tokenizer, micro_batches.recipe.budgets
        encoded = [(row, micro_batches.encode_row(0, row)) for row in self.rows]
        encoded = [(row, example) for row, example in encoded if example.num_supervised]
        longest = max((len(example) for _, example in encoded), default=0)
        at_once = ROWS if len(encoded) * longest <= most_tokens else 1
        for part in (encoded[place : place + at_once] for place in range(0, len(encoded), at_once)):
            batch = micro_batches.collate([example for _, example in part], pad_token_id=tokenizer.pad_token_id)
            predicted = predict_tokens(self.training, batch).split([example.num_supervised for _, example in part])
            for (row, example), tokens in zip(part, predicted, strict=True):
                record, truth = micro_batches.data[row], torch.from_numpy(example.labels[example.labels >= 0])
                yield {
                    "where": record.where,
                    "question": record.question,
                    "truth": _text(truth, tokenizer),
                    "reply": _text(tokens, tokenizer),
                    "right": torch.equal(tokens, truth),
                }


@torch.no_grad()
def predict_tokens(training, batch):
    """The most probable token at every supervised place, each from the true tokens before it: int64 [N].

    Nothing is dropped and no random number is drawn, so training goes on as if this had not been asked.
    """
    model, batch = training.model, to_device(batch, training.device)
    is_answer = batch["labels"][:, 1:] != IGNORE_INDEX
    was_training = model.training
    model.eval()
    outputs = model(
        **model_inputs(batch, runs_tower=len(batch["tiles"]) or training.sees_trainably),
        use_cache=False,
        loss_fn=lambda hidden, head: head(hidden[:, :-1][is_answer]).argmax(dim=-1),
    )
    model.train(was_training)
    return outputs.loss.cpu()


def _text(ids, tokenizer):
    """Answers without the tokens that close them."""
    return tokenizer.decode(ids.tolist(), skip_special_tokens=True).strip()

"""A few training rows while a run trains without validation: the next token at each place turns right or does not.

Free answers, to rows that are not trained on, are `validation`'s.
"""

import numpy as np
from transformers import TrainerCallback

from ...data.encode import encode
from ..log import append_step

ROWS = 4  # spread over the training rows
TIMES = 12  # of a run, the start and the end beside them


class PredictSamples(TrainerCallback):
    """Appends {"step", "answers": [{"where", "question", "truth", "reply", "right"}, …]} to a run's samples.

    A reply is made of the most probable token at each place, given the truth before it: one forward pass a row. It is
    right exactly if the greedy reply is the truth; after a first wrong token the greedy reply may read differently.
    """

    def __init__(self, trainer, path):
        self.trainer, self.path = trainer, path
        dataset = trainer.train_dataset
        numbers = sorted({round(place) for place in np.linspace(0, len(dataset.data) - 1, ROWS)})
        self.records = [dataset.data[number] for number in numbers]

    def on_train_begin(self, args, state, control, **_):
        """As the model is before the first step, or where the run goes on."""
        self._write(state.global_step)

    def on_step_end(self, args, state, control, **_):
        """About TIMES in a run."""
        if state.global_step % max(1, state.max_steps // TIMES) == 0 or state.global_step == state.max_steps:
            self._write(state.global_step)

    def _write(self, step):
        if self.trainer.args.world_size > 1:  # one rank can't run a model that is spread over several
            return
        line = {"step": step, "answers": [self._ask(record) for record in self.records]}
        append_step(self.path, line)

    def _ask(self, record):
        dataset, tokenizer = self.trainer.train_dataset, self.trainer.train_dataset.processor.tokenizer
        example = encode(record, dataset.processor, max_length=dataset.recipe.max_seq_length)
        batch = dataset.collate([example], pad_token_id=tokenizer.pad_token_id)
        predicted = self.trainer.predict_tokens(batch)
        truth = batch["labels"][batch["labels"] >= 0]
        return {
            "where": record.where,
            "question": record.question,
            "truth": _text(truth, tokenizer),
            "reply": _text(predicted, tokenizer),
            "right": bool((predicted == truth).all()),
        }


def _text(ids, tokenizer):
    """Answers without the tokens that close them."""
    return tokenizer.decode(ids.tolist(), skip_special_tokens=True).strip()

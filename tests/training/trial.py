"""A training that tests start, stop and look into."""

from pathlib import Path
from types import SimpleNamespace

from ivlkit.training.log import read_steps
from ivlkit.training.loop.execute import follow
from ivlkit.training.loop.train import sum_losses


class Trial:
    """A `Training` whose log and checkpoints go into a folder.

    Args:
        stop_at: the step after which it ends as if a signal had come.
        samples: a function of the training → `Samples`.
    """

    def __init__(self, training, folder, *, stop_at=None, samples=None):
        self.training, self.folder, self.stop_at, self.watchers = training, folder, stop_at, []
        self.model, self.accelerator, self.optimizer = training.model, training.accelerator, training.optimizer
        self.train_dataset, self.samples = training.micro_batches, samples and samples(training)
        self.args = SimpleNamespace(gradient_accumulation_steps=self.train_dataset.batches.accumulation)

    @property
    def state(self):
        """Steps so far and their lines of the log."""
        lines = read_steps(self.folder / "log.jsonl")
        return SimpleNamespace(global_step=self.training.step, log_history=lines)

    @property
    def numbers(self):
        """(loss, gradient norm) of every step."""
        return [(line["loss"], line["grad_norm"]) for line in self.state.log_history]

    def train(self, resume_from_checkpoint=None):
        """All steps that are left; each watcher is called after each, before its checkpoint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if resume_from_checkpoint:
            self.training.load(Path(resume_from_checkpoint))
        follow(self.training, self.folder, watcher=self.samples, stop=self._stop)

    def _stop(self):
        for watcher in self.watchers:
            watcher()
        return self.training.step == self.stop_at

    def compute_loss(self, model, batch, num_items_in_batch):
        """Σ w·CE / W of one micro-batch."""
        return sum_losses(model, batch, self.training) / num_items_in_batch

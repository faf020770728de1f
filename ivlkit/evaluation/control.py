"""Questions without pictures, asked before and after fine-tuning: what was forgotten?"""

from pathlib import Path

from ..data.datasets.opening import open_data

TEXT_CONTROL = "text-control"  # its name on the command line


def text_control():
    """Seventy short questions with short answers: sums, opposites, facts, language, instructions (a row's `task`).

    They have nothing to do with your data; a model that answers fewer of them after training has forgotten. Score them
    with `metric="contains"`, before and after, and look at `compare(before, after).lost`. Seventy rows find a loss of
    about ten points, not of one.

    Returns: `Data`.
    """
    return open_data(Path(__file__).with_name("text_control.jsonl"))

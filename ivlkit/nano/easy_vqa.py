"""easy-VQA as rows to train on: 5,000 small pictures of shapes, 48,248 questions with one-word answers.

Nobody here made it: pictures, questions and answers are Victor Zhou's (the package `easy-vqa`, MIT licence;
github.com/vzhou842/easy-VQA). Two in three answers can be guessed from the question alone (66 %), so compare with
shuffled pictures before you call it seeing. Install it with `pip install "ivlkit[easy-vqa]"`.
"""

import json
import random
import shutil
from pathlib import Path

from ..errors import DataError

SPLITS = {"train": "train", "validation": "train", "test": "test"}  # the package's own halves
VALIDATION_EVERY = 10  # of the package's training pictures, those whose number ends in 0


def write_easy_vqa(folder, split="train", *, rows=None, seed=0):
    """Write `<split>.jsonl` and its pictures (64 × 64 px).

    The test questions are the package's; validation takes every tenth of its training pictures, with all questions.

    split: "train" (3,600 pictures), "validation" (400) or "test" (1,000).
    rows: of a drawn order; None for all. Fewer rows are the beginning of more rows.
    Returns the path of the JSONL. A row has `task` beside the usual fields: "yes/no", "shape" or "colour".
    Raises: DataError if the package is not installed.
    """
    if split not in SPLITS:
        raise DataError(f"write_easy_vqa: split {split!r}, expected one of {', '.join(SPLITS)}; choose one")
    folder = Path(folder)
    questions, pictures = _read(SPLITS[split])
    wanted = [entry for entry in questions if _is_in(entry[2], split)]
    random.Random(f"easy-vqa/{seed}/{split}").shuffle(wanted)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}.jsonl"
    with path.open("w", encoding="utf-8", newline="\n") as lines:
        for number, (question, answer, picture) in enumerate(wanted[:rows]):
            image = f"images/{SPLITS[split]}-{picture:04d}.png"
            if not (folder / image).exists():
                shutil.copyfile(pictures[picture], folder / image)
            lines.write(json.dumps(_row(number, image, question, answer)) + "\n")
    return path


def _read(half):
    """([(question, answer, picture's number), …], {number: path}) of one half of the package."""
    try:
        import easy_vqa
    except ImportError as error:
        raise DataError('easy-VQA is not installed; run: pip install "ivlkit[easy-vqa]"') from error
    questions = getattr(easy_vqa, f"get_{half}_questions")()
    return list(zip(*questions, strict=True)), getattr(easy_vqa, f"get_{half}_image_paths")()


def _is_in(picture, split):
    return split == "test" or (picture % VALIDATION_EVERY == 0) == (split == "validation")


def _row(number, image, question, answer):
    turns = [("human", f"<image>\n{question[0].upper()}{question[1:]}"), ("gpt", answer)]
    return {
        "id": number,
        "image": image,
        "width": 64,
        "height": 64,
        "conversations": [{"from": role, "value": text} for role, text in turns],
        "task": _task(question, answer),
    }


def _task(question, answer):
    if answer in ("yes", "no"):
        return "yes/no"
    return "colour" if "color" in question else "shape"

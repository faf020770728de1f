"""`make demo`: the embedded model learns to read handwriting: before, after, a report, an export. Offline, no GPU."""

import shutil
import time
from pathlib import Path

from .data.datasets.opening import open_data
from .evaluation.compare import compare
from .evaluation.evaluate import evaluate
from .models.export.export import export
from .models.load import load
from .nano.digits import write_digit_strips
from .training.recipes import recipe
from .training.runs import train

TRAIN_ROWS, TEST_ROWS = 3600, 300
DIGITS = (1, 3)  # of a handwritten number


def run_demo(folder="runs/demo", *, train_rows=TRAIN_ROWS, test_rows=TEST_ROWS, say=print, **changes):
    """Fine-tune nano by LoRA on handwritten numbers of one to three digits and show what it learned.

    A second call trains nothing: it finds the finished run.

    Args: changes: to the recipe `nano-lora`.
    Returns: dict with the reports "before" and "after", the "run", the "report" page and the "exported" folder.
    """
    folder, started = Path(folder), time.monotonic()
    say("1/5  writing handwritten numbers of 1 to 3 digits; no digit picture is in both train and test")
    train_file, test = write_rows(folder / "data", train_rows=train_rows, test_rows=test_rows)
    say("2/5  asking nano as it ships")
    vlm = load("nano")
    before = evaluate(vlm, test)
    say("3/5  fine-tuning by LoRA")
    run = train(recipe("nano-lora", **changes), open_data(train_file), folder=folder / "run").wait()
    say("4/5  asking again")
    after = evaluate(run.load(), test)
    page = after.save_html(folder / "report.html", before=before, title="nano learns to read handwriting")
    say("5/5  exporting in the released layout, reloading, comparing")
    shutil.rmtree(folder / "exported", ignore_errors=True)
    exported = export(run, folder / "exported")
    say(summary(before, after))
    say(f"report    {page}\nexported  {exported}\ntook      {(time.monotonic() - started) / 60:.1f} minutes")
    return {"before": before, "after": after, "run": run, "report": page, "exported": exported}


def write_rows(folder, *, train_rows=TRAIN_ROWS, test_rows=TEST_ROWS):
    """Write the rows that it trains on and those that it asks: the paths of both files."""
    return [
        write_digit_strips(folder, split, rows=rows, digits=DIGITS, tasks=("read",))
        for split, rows in (("train", train_rows), ("test", test_rows))
    ]


def summary(before, after):
    """Exact match before and after as text, for all rows and by number of digits."""
    low, high = after.interval
    lines = [f"{'handwritten numbers, held out':<32}{'before':>8}{'after':>8}"]
    for digits, (earlier, score, rows) in compare(before, after).by("num_digits").items():
        lines.append(f"{f'{digits} digit(s), {rows} rows':<32}{earlier:>8.1%}{score:>8.1%}")
    lines.append(
        f"{f'all, {len(after.rows)} rows':<32}{before.score:>8.1%}{after.score:>8.1%}  (95 %: {low:.1%} – {high:.1%})"
    )
    return "\n".join(lines)

"""What becomes of a run when its notebook is interrupted: 07 in JupyterLab in Chromium, disturbed while it trains.

    python benchmarks/interruptions.py --times 5

Four disturbances: the cell is interrupted, the kernel is restarted, the tab is closed, the kernel is killed (SIGKILL).
After each the run's log has to grow by some steps, written by the same process; then another notebook in the same
folder attaches, and the seconds from running its cell until the curve is on the page are counted. Then 07 is run from
its top again, and has to find the run that still trains. Prints a table; exit code 1 if one of this did not happen.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import psutil
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "browser")]

from lab_server import KERNEL, open_page, running_lab, wait_for  # noqa: E402

from ivlkit.course import copy_notebooks  # noqa: E402
from ivlkit.training.run import Run  # noqa: E402

LESSON = "07_finetune_lora.ipynb"
STEPS_MORE = 3  # that the log has to grow by
STEPS_LEFT = 60  # fewer are left: the run is begun anew, so that it can't end by itself meanwhile
CURVE_SECONDS = 5
RUN_ALL = "() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }"
CELLS = "[...window.jupyterapp.shell.currentWidget.content.model.cells]"
END_KERNELS = "async () => { await window.jupyterapp.serviceManager.sessions.shutdownAll() }"  # a closed tab leaves one
SHOWS_A_CURVE = (
    f"() => {CELLS}.some(cell => cell.type === 'code' && JSON.stringify(cell.outputs.toJSON()).includes('loss of run'))"
)
DRAWN = "() => [...document.querySelectorAll('img[alt^=\"loss of\"]')].some(image => image.naturalWidth > 0)"


def interrupt(page):
    """The stop button of the toolbar."""
    page.evaluate(f"() => {KERNEL}.interrupt()")


def restart(page):
    """Kernel → Restart."""
    page.evaluate(f"() => {KERNEL}.restart()")


def close_tab(page):
    """The kernel stays, nobody looks."""
    page.close()


def kill_kernel(page):
    """What the kernel's owner or the system does when memory runs out."""
    for process in psutil.Process().children(recursive=True):
        if "ipykernel_launcher" in " ".join(process.cmdline()):
            process.kill()


DISTURBANCES = {"interrupt": interrupt, "restart": restart, "closed tab": close_tab, "SIGKILL": kill_kernel}


def main():
    """Disturb it and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--test-rows", type=int, default=40, help="rows that 07 asks before it trains; its own are 300")
    options = parser.parse_args()
    kinds = [name for _ in range(options.times) for name in DISTURBANCES]
    with tempfile.TemporaryDirectory(prefix="ivlkit-interruptions-") as place, sync_playwright() as driver:
        folder = Path(place) / "checkout"
        prepare(folder / "work", options.test_rows)
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            with running_lab(folder, Path(place) / "home") as address:
                found = [disturb(kind, browser, address, folder) for kind in kinds]
        finally:
            stop(folder)
    return report(found)


def prepare(work, test_rows):
    """07 without outputs, and a notebook that only attaches."""
    copy_notebooks(work, for_students=True)
    lesson = work / LESSON
    lesson.write_text(re.sub(r"TEST_ROWS = \d+", f"TEST_ROWS = {test_rows}", lesson.read_text()))
    cells = [nbformat.v4.new_code_cell("import ivlkit as ivl\nivl.attach().watch()")]
    kernel = nbformat.read(lesson, as_version=4).metadata
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), work / "attach.ipynb")


def run_of(folder):
    """The run that 07 starts, or None before it does."""
    path = folder / "runs" / "finetune_lora" / "run"
    return Run(path) if (path / "run.yaml").exists() else None


def steps(folder):
    """(steps done, of how many)."""
    history = run_of(folder).history if run_of(folder) else []
    return (history[-1]["step"], history[-1]["steps"]) if history else (0, 0)


def process_of(folder):
    """Number of the process that trains, or None before it does."""
    return (run_of(folder).folder / "pid").read_text() if run_of(folder) else None


def stop(folder):
    """End the run without waiting for its last step."""
    if run_of(folder):
        run_of(folder).stop()


def disturb(kind, browser, address, folder):
    """One disturbance of 07 while it trains: a dict of what was seen."""
    done, total = steps(folder)
    if total and total - done < STEPS_LEFT:
        stop(folder)
        shutil.rmtree(run_of(folder).folder)
    earlier = process_of(folder)
    page = open_page(browser, address, f"work/{LESSON}")
    page.evaluate(RUN_ALL)
    page.wait_for_function(SHOWS_A_CURVE, timeout=600_000)
    process, (before, _) = process_of(folder), steps(folder)
    DISTURBANCES[kind](page)
    seen = {"kind": kind, "found again": earlier in (None, process), "before": before}
    seen["goes on"] = goes_on(folder, process, before)
    seen["seconds"] = attach(browser, address)
    seen["after"] = steps(folder)[0]
    if kind != "closed tab":
        page.close()
    print(json.dumps(seen), flush=True)
    return seen


def goes_on(folder, process, before):
    """Whether the same process writes more steps."""
    try:
        wait_for(lambda: steps(folder)[0] >= before + STEPS_MORE, "steps after the disturbance", seconds=120)
    except AssertionError:
        return False
    return run_of(folder).state == "running" and process_of(folder) == process


def attach(browser, address):
    """Seconds from running the cell of another notebook until its curve is drawn on the page."""
    page = open_page(browser, address, "work/attach.ipynb")
    started = time.monotonic()
    page.evaluate(RUN_ALL)
    page.wait_for_function(DRAWN, timeout=120_000)
    seconds = time.monotonic() - started
    page.evaluate(END_KERNELS)
    page.close()
    return round(seconds, 1)


def report(found):
    """Print a table in Markdown; returns the exit code."""
    print("\n| disturbed by | times | 07 found its run | it went on | seconds until the curve |\n|---|---|---|---|---|")
    for kind in DISTURBANCES:
        own = [seen for seen in found if seen["kind"] == kind]
        seconds = ", ".join(str(seen["seconds"]) for seen in own)
        counts = " | ".join(str(sum(seen[what] for seen in own)) for what in ("found again", "goes on"))
        print(f"| {kind} | {len(own)} | {counts} | {seconds} |")
    is_fine = [seen["found again"] and seen["goes on"] and seen["seconds"] <= CURVE_SECONDS for seen in found]
    return int(not all(is_fine))


if __name__ == "__main__":
    sys.exit(main())

"""JupyterLab in a real browser: what moves, what stops, what survives. Needs Chromium, playwright and jupyterlab.

pip install -e ".[notebooks,dev]" && apt-get install chromium
With IVLKIT_SCREENSHOTS=folder what was on the screen is kept there, to look at.
"""

import importlib.util
import io
import json
import os
import shutil
import time
from functools import partial
from pathlib import Path

import nbformat
import numpy as np
import pytest
from lab_server import KERNEL, ROOT, open_page, running_lab, wait_for
from PIL import Image

from ivlkit.course import copy_notebooks

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = [name for name in ("playwright", "jupyterlab", "ipywidgets") if importlib.util.find_spec(name) is None]
if CHROMIUM is None:
    MISSING.append("Chromium (apt-get install chromium)")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no browser test without {', '.join(MISSING)}")

WIDGET = "document.querySelector('.jp-WindowedPanel-outer')"
PLAIN = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """(address of a JupyterLab of its own, the folder it shows); the course is in `notebooks`, its copies in `work`."""
    folder, home = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    with running_lab(folder, home) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_DATA_DIR", str(home / "data"))
        copy_notebooks(folder / "work")
        yield address, folder


@pytest.fixture
def open_notebook(lab):
    """`open_notebook("notebooks/02….ipynb")` → its page, the kernel idle, no cell run yet."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield partial(open_page, browser, lab[0])
        browser.close()


def run_all(page, *, last, timeout_s=120):
    """Run every cell and wait for the last one's number: an execution count, not a state that flickers."""
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    counted = f"""() => {{ const cells = window.jupyterapp.shell.currentWidget.content.model.cells;
        const code = [...cells].filter(cell => cell.type === 'code');
        return code[{last}].executionCount > 0 && {KERNEL}.status === 'idle' }}"""
    page.wait_for_function(counted, timeout=1000 * timeout_s)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def problems(page):
    """What a reader would stumble over: errors, unnamed pictures, outputs too wide, tables flush right."""
    return page.evaluate(
        """() => {
        const all = selector => [...document.querySelectorAll('.jp-OutputArea-output ' + selector)];
        return {
            errors: [...window.jupyterapp.shell.currentWidget.content.model.cells]
                .filter(cell => cell.type === 'code').flatMap(cell => cell.outputs.toJSON())
                .filter(output => output.output_type === 'error').length,
            unnamed: all('img').filter(image => !image.alt).length,
            broken: all('img').filter(image => !image.naturalWidth).length,
            wide: [...document.querySelectorAll('.jp-OutputArea-output')]
                .filter(output => output.scrollWidth > output.clientWidth + 2).length,
            flush_right: all('.ivl td').filter(cell => getComputedStyle(cell).textAlign !== 'left').length,
        } }"""
    )


def seen(page, name):
    """What is on the screen, RGB [H, W, 3]."""
    folder = os.environ.get("IVLKIT_SCREENSHOTS")
    shot = page.screenshot(path=Path(folder, f"{name}.png") if folder else None)
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))


def changed(one, other):
    """Share of the screen that differs."""
    return (one != other).any(axis=2).mean()


def use_theme(page, theme):
    """Show JupyterLab in its theme "Light" or "Dark"."""
    page.evaluate(f"() => window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})")
    page.wait_for_function(f"() => document.body.dataset.jpThemeLight === '{str(theme == 'Light').lower()}'")


FINE = {"errors": 0, "unnamed": 0, "broken": 0, "wide": 0, "flush_right": 0}


def test_a_copy_shows_its_colours_before_it_is_run(lab, open_notebook):
    page = open_notebook("work/03_conversation_to_labels.ipynb")
    page.wait_for_selector(".ivl .token.trained", state="attached", timeout=20_000)
    chip = "getComputedStyle(document.querySelector('.ivl .token.trained')).backgroundColor"
    assert page.evaluate(f"() => {chip}") == "rgba(0, 114, 178, 0.333)"


@pytest.mark.parametrize(("width_px", "theme"), [(1280, "Light"), (2000, "Dark")])
def test_the_slider_of_02_changes_the_tiles(lab, open_notebook, width_px, theme):
    name = "notebooks/02_dynamic_tiling.ipynb"
    page = open_notebook(name, width_px=width_px)
    use_theme(page, theme)
    run_all(page, last=len(code_cells(lab[1] / name)) - 1)
    assert problems(page) == FINE
    page.evaluate(f"() => {{ {WIDGET}.scrollTop = 0 }}")
    handle = page.locator(".widget-slider .noUi-handle").first
    handle.evaluate("each => each.scrollIntoView({block: 'center'})")
    handle.focus()
    before = seen(page, f"02_{theme}_{width_px}_before")
    assert (np.median(before) > 128) == (theme == "Light")
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    page.wait_for_selector('img[alt*="1 tile, 256 tokens; at most 2"]', timeout=10_000)
    assert problems(page) == FINE
    assert changed(before, seen(page, f"02_{theme}_{width_px}_after")) > 0.01


def test_the_row_picker_of_03_shows_that_row(lab, open_notebook):
    name = "notebooks/03_conversation_to_labels.ipynb"
    page = open_notebook(name)
    use_theme(page, "Light")  # else the one that was used last
    run_all(page, last=len(code_cells(lab[1] / name)) - 1)
    assert problems(page) == FINE
    page.evaluate(f"() => {{ {WIDGET}.scrollTop = 0 }}")
    number = page.locator(".widget-text input[type=number]").first
    number.scroll_into_view_if_needed()
    before = seen(page, "03_before")
    number.fill("5")
    number.press("Enter")
    page.wait_for_selector("text=train.jsonl:6", timeout=10_000)
    assert problems(page) == FINE
    after = seen(page, "03_after")
    assert changed(before, after) > 0.01
    use_theme(page, "Dark")
    assert changed(after, seen(page, "03_after_dark")) > 0.5
    assert problems(page) == FINE


def write_run_notebook(folder, cell):
    """A notebook that starts a run of minutes, and one more cell."""
    start = (
        "import ivlkit as ivl\nfrom ivlkit.nano.digits import write_digit_strips\n"
        "data = ivl.open_data(write_digit_strips('strips', rows=320, digits=(1, 2)))\n"
        "run = ivl.train(ivl.recipe('nano-lora', epochs=20, save_steps=10_000), data)"
    )
    cells = [nbformat.v4.new_code_cell(source) for source in (start, cell, "print('then', run.state)")]
    folder.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=PLAIN), folder / "run.ipynb")


@pytest.fixture
def run_folder(lab):
    """A folder for a run; whatever runs in it is stopped in the end."""
    folder = lab[1] / f"run-{time.monotonic_ns()}"
    yield folder
    from ivlkit.training.run import runs

    for run in runs(folder / "runs"):
        run.stop()


def logged_steps(folder):
    return sum(len(path.read_text().splitlines()) for path in (folder / "runs").glob("*/log.jsonl"))


def test_the_stop_button_stops_a_run_and_leaves_a_picture(lab, open_notebook, run_folder):
    write_run_notebook(run_folder, "await run.watch()")
    page = open_notebook(f"{run_folder.name}/run.ipynb")
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    page.wait_for_selector('img[alt^="loss of"]', timeout=90_000)
    page.locator(".jupyter-button:has-text('stop')").click()
    page.wait_for_selector("text=then stopped", timeout=60_000)
    assert list(run_folder.glob("runs/*/checkpoint-*"))
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    wait_for(lambda: '"loss of' in (text := (run_folder / "run.ipynb").read_text()) or "loss of" in text, "the file")
    kept = json.loads((run_folder / "run.ipynb").read_text())["cells"][1]["outputs"]
    assert any("loss of" in "".join(output["data"].get("text/html", "")) for output in kept)


def test_interrupting_the_cell_touches_neither_the_run_nor_the_picture(lab, open_notebook, run_folder):
    write_run_notebook(run_folder, "await run.watch()")
    page = open_notebook(f"{run_folder.name}/run.ipynb")
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    page.wait_for_selector('img[alt^="loss of"]', timeout=90_000)
    page.evaluate(f"() => {{ {KERNEL}.interrupt() }}")
    page.wait_for_function(f"() => {KERNEL}.status === 'idle'", timeout=20_000)
    steps = logged_steps(run_folder)
    wait_for(lambda: logged_steps(run_folder) > steps + 2, "steps after the interrupt")
    assert page.locator('img[alt^="loss of"]').count() == 1


def test_a_run_outlives_its_kernel_and_is_found_again(lab, open_notebook, run_folder):
    write_run_notebook(run_folder, "run.watch()")
    page = open_notebook(f"{run_folder.name}/run.ipynb")
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    page.wait_for_selector('img[alt^="loss of"]', timeout=90_000)
    page.evaluate(f"() => {{ {KERNEL}.requestExecute({{code: 'import os; os.kill(os.getpid(), 9)'}}) }}")
    page.close()
    steps = logged_steps(run_folder)
    wait_for(lambda: logged_steps(run_folder) > steps + 2, "steps after the kernel's end")
    cells = [nbformat.v4.new_code_cell("import ivlkit as ivl\nivl.attach().watch()")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=PLAIN), run_folder / "again.ipynb")
    again = open_notebook(f"{run_folder.name}/again.ipynb")
    again.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    again.wait_for_selector('img[alt^="loss of"]', timeout=30_000)
    again.locator(".jupyter-button:has-text('stop')").click()  # the notebook is free: no cell waits
    again.wait_for_selector("text=: stopped, step", timeout=60_000)

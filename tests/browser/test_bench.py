"""Labelling and the playground in a real JupyterLab: by keys alone, beside a busy kernel, and when it is killed.

How long it takes from Enter to the next picture is printed (pytest -s), never asserted.
"""

import csv
import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
from lab_server import KERNEL, open_page, running_lab, wait_for
from PIL import Image, ImageDraw, ImageFont

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = [name for name in ("playwright", "jupyterlab", "anywidget") if importlib.util.find_spec(name) is None]
if CHROMIUM is None:
    MISSING.append("Chromium (apt-get install chromium)")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no browser test without {', '.join(MISSING)}")

WIDE = """() => [...document.querySelectorAll(".jp-OutputArea-output")]
    .filter((each) => each.scrollWidth > each.clientWidth + 2).length"""
PLAIN = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
PHOTOS = 20
MODEL = """
import time, ivlkit as ivl
class Model:
    def chat(self, question, images):
        time.sleep(1.5)
        return "model " + images[-6:-4]
"""
LABEL = MODEL + 'ivl.label("photos", "What number?", vlm=Model())'
BUSY = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.1)"  # until the test makes that file
CLOCK = """() => {
    window.times = [];
    const stage = document.querySelector(".ivl-label .stage");
    let pressed = 0;
    document.addEventListener("keydown", (event) => { if (event.key === "Enter") pressed = event.timeStamp; }, true);
    new MutationObserver(() => {
        if (!pressed || !stage.querySelector("img") || !document.activeElement.matches(".ivl-label textarea")) return;
        const from = pressed;
        pressed = 0;
        requestAnimationFrame(() => requestAnimationFrame((now) => window.times.push(now - from)));
    }).observe(stage, { childList: true });
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """(address of a JupyterLab, the folder it shows)."""
    folder, home = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("home")
    with running_lab(folder, home) as address:
        yield address, folder


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def take_photos(folder, size_px):
    """PHOTOS pictures 00.jpg, 01.jpg, … that show their number."""
    folder.mkdir(parents=True)
    rng, font = np.random.default_rng(0), ImageFont.load_default(size=size_px[1] // 2)
    corner, outline = (size_px[0] // 4, size_px[1] // 4), {"stroke_width": 9, "stroke_fill": "black"}
    for number in range(PHOTOS):
        image = Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).resize(size_px, Image.Resampling.BICUBIC)
        ImageDraw.Draw(image).text(corner, f"{number:02}", "white", font, **outline)
        image.save(folder / f"{number:02}.jpg")


@pytest.fixture
def open_cells(lab, browser, request):
    """`open_cells(cells, size_px=…)` → (page whose cells were begun, its folder with `photos`)."""
    pages = []

    def start(*cells, size_px=(800, 600), before="() => {}"):
        folder = lab[1] / re.sub(r"\W", "_", request.node.name)
        take_photos(folder / "photos", size_px)
        made = [nbformat.v4.new_code_cell(source) for source in cells]
        nbformat.write(nbformat.v4.new_notebook(cells=made, metadata=PLAIN), folder / "bench.ipynb")
        page = open_page(browser, lab[0], f"{folder.name}/bench.ipynb")
        pages.append(page)
        page.evaluate(before)
        page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
        return page, folder

    yield start
    for page in pages:
        page.evaluate(f"() => {{ {KERNEL}?.shutdown() }}")
        page.close()


@pytest.fixture
def open_label(open_cells):
    """The same, when the first picture is shown and its box has the focus."""

    def start(*cells, **options):
        page, folder = open_cells(*cells, **options)
        page.wait_for_selector(".ivl-label .stage img", timeout=60_000)
        page.wait_for_selector("text=typing here")
        return page, folder

    return start


def use_theme(page, theme):
    page.evaluate(f"() => window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})")
    page.wait_for_function(f"() => document.body.dataset.jpThemeLight === '{str(theme == 'Light').lower()}'")


def screen(page, name):
    if folder := os.environ.get("IVLKIT_SCREENSHOTS"):
        page.screenshot(path=Path(folder, f"{name}.png"))


def table(folder):
    path = folder / "labels.csv"
    with open(path, encoding="utf-8", newline="") as file:
        return [(row["file"], row["answer"], row["how"]) for row in csv.DictReader(file)]


def wait_shown(page, number):
    """Wait until that photo is on the screen and its box hears the keys."""
    page.wait_for_function(
        """(file) => document.querySelector(".ivl-label .stage img")?.alt === file
            && document.activeElement.matches(".ivl-label textarea:not([readonly])")""",
        arg=f"photos/{number:02}.jpg",
    )


def answer(page, number, text, *, delay=0):
    """Label that photo, the first without a label; a machine so busy that the box stops in between is waited for."""
    wait_shown(page, number)
    typed = page.locator(".ivl-label textarea")
    while typed.input_value() != text:
        page.keyboard.press("Control+a")
        page.keyboard.type(text, delay=delay)
    while not page.locator(".ivl-label .counted").inner_text().startswith(f"{number + 1} of"):
        page.keyboard.press("Enter")


def test_twenty_photos_beside_a_running_cell_and_a_slow_model(open_label):
    page, folder = open_label(LABEL, BUSY, size_px=(4000, 3000))
    page.evaluate(CLOCK)
    for number in range(PHOTOS):
        answer(page, number, f"00{number}", delay=200)  # "00" would restart the kernel in JupyterLab's command mode
        if number == 5:
            screen(page, "label_light")
    page.wait_for_selector("text=20 of 20 labelled")
    wait_for(lambda: len(table(folder)) == PHOTOS, "the table")
    assert [row[:2] for row in table(folder)] == [(f"photos/{n:02}.jpg", f"00{n}") for n in range(PHOTOS)]
    assert page.locator(".jp-InputPrompt").nth(1).inner_text() == "[*]:"  # the other cell runs on
    (folder / "go").touch()
    times = np.array(page.evaluate("() => window.times"))
    print(f"\nEnter to the next picture: p50 {np.percentile(times, 50):.0f} ms, p95 {np.percentile(times, 95):.0f} ms")


def test_a_kernel_that_hears_nothing_while_a_cell_runs_gets_all_afterwards(open_label):
    deaf = "() => { window.jupyterapp.serviceManager.kernels.commsOverSubshells = 'disabled' }"
    page, folder = open_label(LABEL, before=deaf)
    page.evaluate(f"() => {{ {KERNEL}.requestExecute({{code: {json.dumps(BUSY)}}}) }}")
    for number in range(5):
        answer(page, number, str(number))
    page.wait_for_selector("text=5 not saved yet")
    (folder / "go").touch()
    page.wait_for_selector("text=not saved yet", state="detached", timeout=30_000)
    assert [text for _, text, _ in table(folder)] == ["0", "1", "2", "3", "4"]


def test_a_killed_kernel_stops_the_input_and_loses_nothing(open_label):
    page, folder = open_label(LABEL)
    for number in range(4):
        answer(page, number, str(number))
    wait_for(lambda: len(table(folder)) == 4, "the table")
    before = table(folder)
    wait_shown(page, 4)
    page.locator(".ivl-label textarea").fill("4")
    kill = f"{KERNEL}.requestExecute({{code: 'import os; os.kill(os.getpid(), 9)'}})"
    enter = "new KeyboardEvent('keydown', {key: 'Enter', bubbles: true, cancelable: true})"
    page.evaluate(f"() => {{ {kill}; document.activeElement.dispatchEvent({enter}) }}")  # while the kernel dies
    page.wait_for_selector(".ivl-label .state:text('stopped')", timeout=10_000)
    screen(page, "label_stopped")
    page.locator(".jp-Dialog button:has-text('Ok')").click(timeout=60_000)  # JupyterLab says that it restarts
    page.locator(".ivl-label textarea").click()
    at = page.locator(".ivl-label .file").inner_text()
    page.keyboard.type("lost")
    page.keyboard.press("Enter")
    assert page.locator(".ivl-label .file").inner_text() == at and table(folder)[:4] == before
    page.wait_for_function(f"() => {KERNEL}.status === 'idle'", timeout=60_000)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    page.wait_for_selector("text=5 of 20 labelled", timeout=60_000)
    wait_for(lambda: len(table(folder)) == 5, "what the browser kept")
    assert table(folder)[4][1] == "4"
    wait_shown(page, 5)


def test_suggestions_come_while_one_waits_and_every_key_works_in_the_notebook(open_label):
    page, folder = open_label(LABEL)
    page.wait_for_selector("text=Suggested.", timeout=30_000)
    page.keyboard.press("Enter")
    wait_shown(page, 1)
    steps = {"Escape": [1], "ArrowDown": [2], "Control+d": [3], "ArrowUp": [2, 1, 0]}
    for key, number in ((key, number) for key, numbers in steps.items() for number in numbers):
        page.keyboard.press(key)
        wait_shown(page, number)
    page.keyboard.type("mine")
    page.keyboard.press("Enter")
    wait_for(lambda: table(folder) == [("photos/00.jpg", "mine", "corrected")], "the correction")
    page.keyboard.press("Control+z")
    wait_for(lambda: table(folder) == [("photos/00.jpg", "model 00", "accepted")], "the answer before")
    page.keyboard.press("Alt+Equal")
    page.wait_for_function("() => document.querySelector('.ivl-label .stage img').style.width.startsWith('700')")
    assert page.locator(".jp-Notebook.jp-mod-editMode, .jp-Dialog").count() == 0


def test_the_saved_notebook_keeps_a_line_and_no_picture(open_label):
    page, folder = open_label(LABEL)
    page.keyboard.type("17")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=1 of 20 labelled: labels.csv")
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    kept = folder / "bench.ipynb"
    wait_for(lambda: "1 of 20 labelled: labels.csv" in kept.read_text(), "the file")
    assert len(kept.read_bytes()) < 20_000 and "image/" not in kept.read_text()


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_it_can_be_read_in_both_themes(open_label, theme):
    page, _ = open_label(LABEL)
    use_theme(page, theme)
    page.wait_for_selector("text=Suggested.", timeout=30_000)
    colours = page.evaluate(
        """() => { const style = (each) => getComputedStyle(document.querySelector(each));
        return [style(".ivl-label textarea").color, style(".jp-Notebook").backgroundColor] }"""
    )
    ink, paper = (np.mean(list(map(float, re.findall(r"[\d.]+", colour)[:3]))) for colour in colours)
    assert abs(ink - paper) > 120
    assert page.evaluate(WIDE) == 0
    screen(page, f"label_{theme}")


PLAYGROUND = """
import ivlkit as ivl
ivl.playground(ivl.load("nano"), pictures="photos/00.jpg", question="What number?", answer="0")
"""


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_a_row_is_written_asked_taught_and_appended(open_cells, theme):
    page, folder = open_cells(PLAYGROUND)
    use_theme(page, theme)
    page.wait_for_selector(".ivl .token.trained", timeout=60_000)
    answer = page.locator(".widget-textarea textarea").nth(2)
    answer.fill("")
    page.wait_for_selector("text=write it; as it is the model learns to say nothing")
    screen(page, f"playground_{theme}_finding")
    answer.fill("seven <b>")
    page.wait_for_selector("text=seven <b>")
    assert page.evaluate("() => document.activeElement.tagName") == "TEXTAREA"
    for name, said in [("teach", "after step 1"), ("teach", "after step 2"), ("append", "row 1 was added")]:
        page.locator(f".jupyter-button:has-text('{name}')").click()
        page.wait_for_selector(f"text={said}", timeout=60_000)
    screen(page, f"playground_{theme}")
    assert json.loads((folder / "mine.jsonl").read_text())["image"] == "photos/00.jpg"
    assert page.evaluate(WIDE) == 0

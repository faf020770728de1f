"""Draw the README's pictures from a real run: `docs/before_after.png` and `docs/watch.png`.

    python benchmarks/readme_pictures.py        # needs playwright and an installed Chromium

The run is that of `ivlkit demo`; one that is finished in runs/demo is not trained again.
"""

import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from ivlkit.demo import run_demo
from ivlkit.show.figure import BLUE, RED, ShownFigure
from ivlkit.show.html import page_html
from ivlkit.show.run import run_html

DOCS = Path(__file__).parents[1] / "docs"
WIDTH_PX = 1000  # of the README's column, at most


def main():
    """Ask, train where that is not done, ask again, and draw."""
    found = run_demo()
    before_after(found["before"], found["after"]).to_image().save(DOCS / "before_after.png", optimize=True)
    screenshot(page_html("", run_html(found["run"])), DOCS / "watch.png")


def before_after(before, after):
    """The first held-out number of one, two and three digits with both replies, whatever they are."""
    pairs = list(zip(before.rows, after.rows, strict=True))
    first = [next(pair for pair in pairs if pair[1].extra["num_digits"] == digits) for digits in (1, 2, 3)]
    said = f"{len(pairs)} handwritten numbers held out: {before.score:.0%} right before, {after.score:.0%} after"
    figure = ShownFigure(figsize=(7.5, 1.7), alt=said)
    figure.suptitle(said, y=0.9, fontsize=12)
    for axes, rows in zip(figure.subplots(1, 3, width_ratios=(1, 2, 3)), first, strict=True):
        axes.imshow(Image.open(rows[0].images[0]))
        axes.set_axis_off()
        for name, row, place in zip(("before", "after"), rows, (-0.08, -0.38), strict=True):
            mark, colour = ("✓", BLUE) if row.is_right else ("✗", RED)
            line = f"{name}: {row.reply} {mark}"
            axes.text(0.5, place, line, color=colour, fontsize=13, ha="center", va="top", transform=axes.transAxes)
    return figure


def screenshot(html, path):
    """What a browser shows of a page, in its light theme, as an opaque PNG."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as driver:
        window = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = window.new_page(viewport={"width": WIDTH_PX, "height": 100}, color_scheme="light")
        page.set_content(html)
        page.add_style_tag(content="body { margin: 1em } h1 { display: none }")
        shot = page.screenshot(full_page=True)
        window.close()
    Image.open(io.BytesIO(shot)).convert("RGB").save(path, optimize=True)


if __name__ == "__main__":
    main()

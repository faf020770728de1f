"""JPEG → tiles on one core: images a second of the kit and of a straightforward pipeline, in turns, in one process.

    python benchmarks/tiles.py                 # photos of scikit-learn, resized
    python benchmarks/tiles.py --repeats 40

The straightforward one does what one writes first: open, convert, stretch the picture to its grid, crop, thumbnail,
a float tensor of each tile, normalise, stack. The kit leaves tiles as uint8, as they travel to the device; a column has
it with the same normalisation on this core as well. Decoding alone, and decoding + stretching + thumbnail alone, are
Pillow's share: what no way of cutting can be faster than. Every tile is compared before anything is timed.
"""

import argparse
import io
import statistics
import time

import numpy as np
import torch
from PIL import Image

from ivlkit.data.collate import IMAGENET_MEAN, IMAGENET_STD, normalise_tiles
from ivlkit.data.rows.media import open_image
from ivlkit.data.tiling import choose_grid, cut_tiles

SIZES = ((640, 480), (1920, 1080), (1240, 1754), (1000, 1000))
TILE_PX = 448
MEAN, STD = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)


def write_jpegs(folder):
    """One photo at each size; returns the paths."""
    from sklearn.datasets import load_sample_image

    paths = []
    for number, size in enumerate(SIZES):
        photo = Image.fromarray(load_sample_image(("china.jpg", "flower.jpg")[number % 2]))
        paths.append(folder / f"{size[0]}x{size[1]}.jpg")
        photo.resize(size, Image.Resampling.LANCZOS).save(paths[-1], quality=90)
    return paths


def straightforward_tiles(path):
    """PIL tiles as one writes it first."""
    image = Image.open(path).convert("RGB")
    cols, rows = choose_grid(*image.size)
    stretched = image.resize((cols * TILE_PX, rows * TILE_PX), Image.Resampling.BICUBIC)
    tiles = []
    for number in range(cols * rows):
        left, top = number % cols * TILE_PX, number // cols * TILE_PX
        tiles.append(stretched.crop((left, top, left + TILE_PX, top + TILE_PX)))
    if len(tiles) > 1:
        tiles.append(image.resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC))
    return tiles


def straightforward(path):
    """float32 [T, 3, 448, 448], normalised tile by tile."""
    pixels = [torch.from_numpy(np.array(tile)).permute(2, 0, 1).float() / 255 for tile in straightforward_tiles(path)]
    return torch.stack([(tile - MEAN) / STD for tile in pixels])


def kit(path):
    """uint8 [T, 448, 448, 3]."""
    return cut_tiles(open_image(path))


def kit_normalised(path):
    """The same as float32 [T, 3, 448, 448]."""
    return normalise_tiles(torch.from_numpy(kit(path)))


def decode_and_stretch(path):
    """What Pillow does in any case."""
    image = open_image(path)
    cols, rows = choose_grid(*image.size)
    image.resize((cols * TILE_PX, rows * TILE_PX), Image.Resampling.BICUBIC)
    image.resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC)


def decode(path):
    """Pillow's decoder alone, from memory."""
    Image.open(io.BytesIO(path.read_bytes())).load()


WAYS = (straightforward, kit, kit_normalised, decode_and_stretch, decode)


def check_equal(paths):
    """Every tile of the kit has the bytes of the straightforward one."""
    for path in paths:
        expected = np.stack([np.asarray(tile) for tile in straightforward_tiles(path)])
        assert np.array_equal(kit(path), expected), path
        assert torch.equal(kit_normalised(path), straightforward(path)), path


def measure(path, repeats):
    """{way: median seconds} with all ways in turn, so that a busy moment hits all of them."""
    seconds = {way.__name__: [] for way in WAYS}
    for _ in range(repeats + 2):
        for way in WAYS:
            start = time.perf_counter()
            way(path)
            seconds[way.__name__].append(time.perf_counter() - start)
    return {name: statistics.median(times[2:]) for name, times in seconds.items()}


def main(arguments=None):
    import tempfile
    from pathlib import Path

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_jpegs(Path(folder))
        check_equal(paths)
        print(f"tiles bit-equal for {len(paths)} sizes; images/s on one thread, median of {options.repeats}")
        print(f"{'size':<12}" + "".join(f"{way.__name__:>20}" for way in WAYS) + f"{'kit is':>10}")
        found = {path.stem: measure(path, options.repeats) for path in paths}
    found["all four"] = {way.__name__: statistics.mean(row[way.__name__] for row in found.values()) for way in WAYS}
    for name, row in found.items():
        rates = "".join(f"{1 / row[way.__name__]:>20.1f}" for way in WAYS)
        print(f"{name:<12}{rates}{row['straightforward'] / row['kit']:>8.2f} x")


if __name__ == "__main__":
    main()

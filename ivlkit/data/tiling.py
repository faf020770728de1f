"""Dynamic tiling: a picture of any size → tiles of one size, cut from a grid that fits its aspect ratio.

The rule is the one of InternVL 1.5 (Chen et al. 2024, arXiv:2404.16821; reference function `dynamic_preprocess`),
bit for bit. It maximises the match of aspect ratios, not resolution: a 64 × 48 icon is enlarged to 12 tiles because
4:3 exists only as 4 × 3.
"""

from functools import lru_cache
from itertools import product

import numpy as np
from PIL import Image

TILE_PX = 448
MAX_TILES = 12
MOST_TILES = 1000  # grids are tried one by one; a larger budget is a slip of the hand


@lru_cache(maxsize=64)
def candidate_grids(max_tiles, min_tiles=1):
    """All (cols, rows) with min_tiles ≤ cols · rows ≤ max_tiles, smallest area first: 35 of them for 12."""
    if not 1 <= min_tiles <= max_tiles:
        raise ValueError(f"max_tiles={max_tiles}, min_tiles={min_tiles}; expected 1 <= min_tiles <= max_tiles")
    grids = product(range(1, max_tiles + 1), repeat=2)
    fitting = [(cols, rows) for cols, rows in grids if min_tiles <= cols * rows <= max_tiles]
    return tuple(sorted(fitting, key=lambda grid: (grid[0] * grid[1], grid)))


@lru_cache(maxsize=20_000)  # a row asks several times, rows share sizes
def choose_grid(width_px, height_px, *, max_tiles=MAX_TILES, min_tiles=1, tile_px=TILE_PX):
    """The grid (cols, rows) whose aspect ratio is closest to the picture's: (4, 3) for 640 × 480.

    Among grids of equal ratio the larger one is taken only if the picture has more than half of its pixels:
    500 × 500 stays (1, 1), 640 × 640 becomes (2, 2).

    Args:
        width_px, height_px: size of the picture.
        max_tiles: budget without the thumbnail; the guide's `max_dynamic_patch`.
        min_tiles: the guide's `min_dynamic_patch`.
        tile_px: side of a tile, 448 for the released models, 112 for nano.
    Raises: ValueError if a side is not positive or the budget is empty.
    """
    if width_px < 1 or height_px < 1:
        raise ValueError(f"picture of {width_px} x {height_px} px; expected at least 1 x 1")
    ratio, area = width_px / height_px, width_px * height_px
    best, best_difference = (1, 1), float("inf")
    for cols, rows in candidate_grids(max_tiles, min_tiles):
        difference = abs(ratio - cols / rows)
        large_enough = area > 0.5 * tile_px * tile_px * cols * rows
        if difference < best_difference or (difference == best_difference and large_enough):
            best, best_difference = (cols, rows), difference
    return best


def count_tiles(width_px, height_px, *, max_tiles=MAX_TILES, min_tiles=1, tile_px=TILE_PX, use_thumbnail=True):
    """Tiles a picture of this size gives, thumbnail included, without reading a pixel: 13 for 640 × 480."""
    cols, rows = choose_grid(width_px, height_px, max_tiles=max_tiles, min_tiles=min_tiles, tile_px=tile_px)
    return cols * rows + (1 if use_thumbnail and cols * rows > 1 else 0)


def cut_tiles(image, max_tiles=MAX_TILES, *, min_tiles=1, tile_px=TILE_PX, use_thumbnail=True):
    """Cut a picture into tiles, row by row; the thumbnail comes last and only if there is more than one tile.

    The picture is stretched to the grid (bicubic, aspect ratio not kept), as the models were trained; tiles are written
    once, into the array that travels on.

    Args: image: PIL image, another mode than RGB is converted; the rest as in `choose_grid`.
    Returns: uint8 [T, tile_px, tile_px, 3]: T = 13 for 640 × 480.
    """
    image = image if image.mode == "RGB" else image.convert("RGB")
    cols, rows = choose_grid(*image.size, max_tiles=max_tiles, min_tiles=min_tiles, tile_px=tile_px)
    with_thumbnail = use_thumbnail and cols * rows > 1
    tiles = np.empty((cols * rows + with_thumbnail, tile_px, tile_px, 3), np.uint8)
    stretched = np.asarray(image.resize((cols * tile_px, rows * tile_px), Image.Resampling.BICUBIC))
    grid = stretched.reshape(rows, tile_px, cols, tile_px, 3).swapaxes(1, 2)  # → [rows, cols, S, S, 3]
    tiles[: cols * rows].reshape(grid.shape)[...] = grid
    if with_thumbnail:
        tiles[-1] = image.resize((tile_px, tile_px), Image.Resampling.BICUBIC)
    return tiles


def split_into_tiles(image, max_tiles=MAX_TILES, *, min_tiles=1, tile_px=TILE_PX, use_thumbnail=True):
    """The same tiles as pictures, to look at.

    Args: as in `cut_tiles`.
    Returns: list of PIL images of tile_px × tile_px: 13 for 640 × 480.
    Raises: TypeError for what is no PIL image.
    """
    if not isinstance(image, Image.Image):
        found = f"split_into_tiles: a picture of type {type(image).__name__}"
        raise TypeError(f"{found}; expected a PIL image; write Image.open(path), or Image.fromarray(array)")
    limits = {"max_tiles": max_tiles, "min_tiles": min_tiles, "tile_px": tile_px}
    return [Image.fromarray(tile) for tile in cut_tiles(image, use_thumbnail=use_thumbnail, **limits)]

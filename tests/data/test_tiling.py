"""Tiling: the reference's grids, tiles and pixel values, bit for bit."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from ivlkit.data.collate import normalise_tiles
from ivlkit.data.rows.media import AS_REFERENCE, open_image
from ivlkit.data.tiling import candidate_grids, choose_grid, count_tiles, cut_tiles, split_into_tiles

# (width, height): grids (cols, rows) at budgets of 6, 12 and 24 tiles, computed by the reference.
GRIDS = {
    (224, 224): ((1, 1), (1, 1), (1, 1)),
    (448, 448): ((1, 1), (1, 1), (1, 1)),
    (500, 500): ((1, 1), (1, 1), (1, 1)),
    (640, 640): ((2, 2), (2, 2), (2, 2)),
    (1000, 1000): ((2, 2), (3, 3), (3, 3)),
    (640, 480): ((3, 2), (4, 3), (4, 3)),
    (800, 600): ((3, 2), (4, 3), (4, 3)),
    (1024, 768): ((3, 2), (4, 3), (4, 3)),
    (64, 48): ((3, 2), (4, 3), (4, 3)),
    (336, 280): ((1, 1), (4, 3), (5, 4)),
    (1920, 1080): ((2, 1), (4, 2), (5, 3)),
    (1240, 1754): ((2, 3), (2, 3), (2, 3)),
    (3000, 300): ((6, 1), (10, 1), (10, 1)),
}


@pytest.mark.parametrize(("size", "grids"), GRIDS.items())
def test_grids_are_those_of_the_reference(size, grids):
    assert tuple(choose_grid(*size, max_tiles=budget) for budget in (6, 12, 24)) == grids


@pytest.mark.parametrize(
    ("size", "budget", "tiles"),
    [
        ((1, 1), 12, 1),
        ((1, 10_000), 12, 13),  # 1 × 12
        ((10_000, 1), 12, 13),
        ((10_000, 1), 1, 1),
        ((2, 1), 2, 3),  # smallest count above one: two tiles and the thumbnail
        ((640, 480), 12, 13),
        ((640, 480), 40, 13),
        ((4480, 4480), 40, 37),  # 6 × 6
    ],
)
def test_tile_counts_at_the_limits(size, budget, tiles):
    assert count_tiles(*size, max_tiles=budget) == tiles


def test_there_are_14_grids_for_six_tiles_and_35_for_twelve():
    assert len(candidate_grids(6)) == 14
    assert len(candidate_grids(12)) == 35
    assert candidate_grids(3) == ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1))


def test_an_equal_ratio_takes_the_larger_grid_only_above_half_of_its_pixels():
    # 2 × 2 tiles of 448 have 802,816 px; half of them are 401,408: 633² = 400,689 and 634² = 401,956.
    assert choose_grid(633, 633) == (1, 1)
    assert choose_grid(634, 634) == (2, 2)
    # Half of 4 × 2 tiles are 802,816 px: 1266 × 633 = 801,378 and 1268 × 634 = 803,912.
    assert choose_grid(1266, 633) == (2, 1)
    assert choose_grid(1268, 634) == (4, 2)


def test_nano_tiles_of_112_px_follow_the_same_rule():
    assert choose_grid(224, 112, tile_px=112) == (2, 1)
    assert choose_grid(159, 159, tile_px=112) == (2, 2)  # 25,281 px > 0.5 · 4 · 112² = 25,088
    assert choose_grid(158, 158, tile_px=112) == (1, 1)  # 24,964 px


def test_min_tiles_leaves_out_small_grids():
    assert choose_grid(448, 448, min_tiles=2, max_tiles=6) == (2, 2)
    assert count_tiles(448, 448, min_tiles=2, max_tiles=2) == 3


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (-1, 5)])
def test_a_picture_without_area_is_refused(size):
    with pytest.raises(ValueError, match="expected at least 1 x 1"):
        choose_grid(*size)


@pytest.mark.parametrize(
    "limits", [{"max_tiles": 0}, {"max_tiles": 2, "min_tiles": 3}, {"max_tiles": 6, "min_tiles": 0}]
)
def test_an_empty_budget_is_refused(limits):
    with pytest.raises(ValueError, match="expected 1 <= min_tiles <= max_tiles"):
        choose_grid(10, 10, **limits)


def test_count_equals_split_for_odd_sizes(draw_picture):
    for size in [(17, 93), (112, 112), (113, 111), (500, 40), (331, 200)]:
        for budget in (1, 2, 5, 12):
            tiles = split_into_tiles(draw_picture(*size), budget, tile_px=112)
            assert len(tiles) == count_tiles(*size, max_tiles=budget, tile_px=112)
            assert {tile.size for tile in tiles} == {(112, 112)}


def test_tiles_are_row_by_row_and_the_thumbnail_is_last():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]
    image = Image.new("RGB", (3 * 448, 2 * 448))
    for number, colour in enumerate(colours):
        image.paste(colour, (number % 3 * 448, number // 3 * 448, number % 3 * 448 + 448, number // 3 * 448 + 448))
    *tiles, thumbnail = split_into_tiles(image)
    assert [tile.getpixel((224, 224)) for tile in tiles] == colours
    assert [thumbnail.getpixel((x, y)) for y in (112, 336) for x in (75, 224, 373)] == colours


def test_there_is_no_thumbnail_of_a_single_tile_or_when_it_is_off(draw_picture):
    assert len(split_into_tiles(draw_picture(100, 100), tile_px=112)) == 1
    assert len(split_into_tiles(draw_picture(224, 112), tile_px=112, use_thumbnail=False)) == 2
    assert count_tiles(224, 112, tile_px=112, use_thumbnail=False) == 2


def test_a_single_tile_is_the_whole_picture_stretched(draw_picture):
    image = draw_picture(50, 55)
    (tile,) = split_into_tiles(image, tile_px=112, max_tiles=1)
    assert np.array_equal(np.asarray(tile), np.asarray(image.resize((112, 112), Image.Resampling.BICUBIC)))


def test_tiles_as_an_array_are_the_crops_of_the_stretched_picture(draw_picture):
    """Against Pillow's own crop of each place."""
    image = draw_picture(331, 200)
    stretched = image.resize((5 * 112, 3 * 112), Image.Resampling.BICUBIC)
    boxes = [(col * 112, row * 112, col * 112 + 112, row * 112 + 112) for row in range(3) for col in range(5)]
    expected = [stretched.crop(box) for box in boxes] + [image.resize((112, 112), Image.Resampling.BICUBIC)]
    tiles = cut_tiles(image, 15, tile_px=112)
    assert np.array_equal(tiles, np.stack([np.asarray(tile) for tile in expected]))
    assert tiles.flags.c_contiguous and tiles.dtype == np.uint8


def test_another_mode_than_rgb_is_converted(draw_picture):
    grey = draw_picture(224, 112).convert("L")
    assert np.array_equal(cut_tiles(grey, tile_px=112), cut_tiles(grey.convert("RGB"), tile_px=112))


def test_all_720_grids_of_the_reference(reference):
    grids = json.loads((reference / "grids.json").read_text())
    assert grids["columns"] == ["max_tiles", "width_px", "height_px", "cols", "rows"]
    assert len(grids["rows"]) == 720
    ours = [[budget, *size, *choose_grid(*size, max_tiles=budget)] for budget, *size, _, _ in grids["rows"]]
    assert ours == grids["rows"]


@pytest.mark.parametrize("number", range(6))
def test_tiles_have_the_bytes_of_the_reference(reference, number):
    """Its hash is over uint8 [T, height, width, RGB]; the modes are RGB, L, RGBA, P, CMYK and 1."""
    case = json.loads((reference / "pixels" / "tiles.json").read_text())["cases"][number]
    image = open_image(reference / "pixels" / case["file"], rules=AS_REFERENCE)
    assert count_tiles(*image.size, max_tiles=case["max_tiles"]) == case["num_tiles"]
    tiles = cut_tiles(image, case["max_tiles"])
    assert tiles.shape == (case["num_tiles"], 448, 448, 3)
    assert hashlib.sha256(tiles.tobytes()).hexdigest() == case["sha256_uint8"]

    pixels = normalise_tiles(torch.from_numpy(tiles))
    assert pixels.mean().item() == pytest.approx(case["mean"], abs=1e-5)
    assert pixels.std().item() == pytest.approx(case["std"], abs=1e-5)
    probes = [pixels[0, 0, 0, 0], pixels[-1, 2, -1, -1], pixels[0, 1, 100, 200]]
    assert [probe.item() for probe in probes] == pytest.approx(case["probe"][:3], abs=1e-6)

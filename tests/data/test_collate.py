"""Padding on the right, an explicit attention mask, and pixel values by hand."""

import numpy as np
import torch

from ivlkit.data.collate import collate, collate_packed, normalise_tiles
from ivlkit.data.encode import Example


def example(ids, labels, tiles=0):
    pixels = np.full((tiles, 2, 2, 3), len(ids), np.uint8)
    return Example(np.array(ids), np.array(labels), pixels, "train.jsonl:1")


def test_rows_are_padded_on_the_right_to_the_longest():
    batch = collate([example([5, 2, 7], [-100, 2, 7]), example([9], [9])], pad_token_id=2)
    assert batch["input_ids"].tolist() == [[5, 2, 7], [9, 2, 2]]
    assert batch["labels"].tolist() == [[-100, 2, 7], [9, -100, -100]]


def test_the_mask_is_the_length_and_not_the_padding_id():
    """InternLM2 pads with its end token: a real 2 must be attended to."""
    batch = collate([example([5, 2, 0], [5, 2, 0]), example([9], [9])], pad_token_id=2)
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_batches_have_these_types_and_shapes():
    batch = collate(
        [example([1, 2], [1, 2], tiles=3), example([1], [1]), example([1, 2, 3], [1, 2, 3], tiles=1)], pad_token_id=0
    )
    assert {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()} == {
        "input_ids": (torch.int64, (3, 3)),
        "labels": (torch.int64, (3, 3)),
        "attention_mask": (torch.int64, (3, 3)),
        "tiles": (torch.uint8, (4, 2, 2, 3)),
    }


def test_tiles_keep_the_order_of_the_rows():
    batch = collate([example([1, 2], [1, 2], tiles=1), example([1, 2, 3], [1, 2, 3], tiles=2)], pad_token_id=0)
    assert batch["tiles"][:, 0, 0, 0].tolist() == [2, 3, 3]


def test_a_batch_of_text_has_no_tiles():
    assert collate([example([1], [1])], pad_token_id=0)["tiles"].shape == (0, 2, 2, 3)


def test_pixel_values_by_hand():
    tiles = torch.tensor([[[[0, 0, 0], [255, 255, 255]]]], dtype=torch.uint8)  # [1, 1, 2, 3]: black, white
    pixels = normalise_tiles(tiles)
    assert pixels.shape == (1, 3, 1, 2)
    # (0 − mean) / std and (1 − mean) / std for red, green, blue
    expected = [[[-2.117904, 2.248908]], [[-2.035714, 2.428571]], [[-1.804444, 2.64]]]
    torch.testing.assert_close(pixels[0], torch.tensor(expected), atol=1e-6, rtol=0)


def test_pixel_values_are_rounded_last_and_tiles_are_not_changed():
    tiles = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = tiles.clone()
    assert torch.equal(normalise_tiles(tiles, dtype=torch.bfloat16), normalise_tiles(tiles).bfloat16())
    assert torch.equal(tiles, before)
    assert normalise_tiles(tiles[:0]).shape == (0, 3, 4, 4)


# packed --------------------------------------------------------------------------------------------------------------


def test_a_bin_by_hand():
    batch = collate_packed([example([5, 2, 7], [5, 2, 7], tiles=2), example([9, 4], [-100, 4], tiles=1)])
    assert batch["input_ids"].tolist() == [[5, 2, 7, 9, 4]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["sample_ids"].tolist() == [[0, 0, 0, 1, 1]]
    assert (batch["cu_seqlens"].tolist(), batch["cu_seqlens"].dtype) == ([0, 3, 5], torch.int32)
    assert batch["max_length"] == 3
    assert batch["tiles"][:, 0, 0, 0].tolist() == [3, 3, 2]


def test_the_first_label_of_every_sample_is_masked_and_the_examples_are_not_changed():
    """The token before it belongs to another sample."""
    rows = [example([5, 2], [5, 2]), example([9, 4], [9, 4])]
    assert collate_packed(rows)["labels"].tolist() == [[-100, 2, -100, 4]]
    assert rows[1].labels.tolist() == [9, 4]


def test_a_bin_has_no_attention_mask():
    """One of ones would let every sample see those before it."""
    assert "attention_mask" not in collate_packed([example([1, 2], [1, 2]), example([3], [3])])


def test_a_bin_of_one_sample_and_of_text_alone():
    batch = collate_packed([example([1, 2], [1, 2])])
    assert (batch["cu_seqlens"].tolist(), batch["max_length"]) == ([0, 2], 2)
    assert batch["tiles"].shape == (0, 2, 2, 3)


def test_a_longest_row_that_is_given_stands_in_for_the_bins_own():
    """A compiled layer takes it for a constant."""
    rows = [example([5, 2, 7], [5, 2, 7]), example([9, 4], [-100, 4])]
    assert collate_packed(rows, max_length=100)["max_length"] == 100

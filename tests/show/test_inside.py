"""Inside a model: what trains, the shapes on the way, and gradients that are where and what they say."""

import re
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ivlkit.data.collate import normalise_tiles
from ivlkit.data.encode import encode
from ivlkit.data.rows.records import Record, Turn
from ivlkit.errors import DataError
from ivlkit.models.hub.verify import DATA
from ivlkit.show import inside
from ivlkit.show.inside import (
    answer_looks,
    looks_figure,
    over_picture,
    parts_figure,
    patches_figure,
    shapes_html,
    walk_html,
)
from ivlkit.training.engine.layers import recomputing
from ivlkit.training.recipes import recipe


class TestParts:
    def test_lora_trains_part_of_two_parts_and_the_loaded_model_stays_as_it_is(self, tiny_vlm):
        before = {name: parameter.requires_grad for name, parameter in tiny_vlm.model.named_parameters()}
        figure = parts_figure(tiny_vlm, recipe("nano-lora"))
        assert {name: each.requires_grad for name, each in tiny_vlm.model.named_parameters()} == before
        whole, trained = figure.axes[0].patches[0::2], figure.axes[0].patches[1::2]
        assert [bar.get_width() > 0 for bar in trained] == [True, False, True, False]
        assert all(part.get_width() <= bar.get_width() for part, bar in zip(trained, whole, strict=True))

    def test_full_training_trains_all_of_it(self, tiny_vlm):
        total = sum(parameter.numel() for parameter in tiny_vlm.model.parameters())
        assert f"trains {total:,} of {total:,} parameters" in parts_figure(tiny_vlm, "nano-full").alt


class TestPatches:
    def test_lines_stand_around_every_patch_and_strong_ones_around_every_token(self, tiny_vlm):
        """112 px: 8 × 8 patches and 4 × 4 tokens; 448 px: 32 × 32 and 16 × 16."""
        true_size = replace(tiny_vlm.processor, tile_px=448, num_image_token=256)
        figure = patches_figure(DATA / "temple.jpg", tiny_vlm.processor, true_size)
        assert [len(axes.lines) for axes in figure.axes] == [2 * 9, 2 * 33]
        strong = [sum(line.get_linewidth() > 1 for line in axes.lines) for axes in figure.axes]
        assert strong == [2 * 5, 2 * 17]
        assert figure.alt == "a tile of 112 px: 64 patches, 16 tokens; of 448 px: 1,024 patches, 256 tokens"


class TestShapes:
    def test_a_released_model_has_the_papers_shapes_without_being_here(self):
        """The report (arXiv:2404.16821): 448 px, 1,024 patches, 256 tokens; widths of the 2B."""
        html = shapes_html(["nano", "2b"])
        steps = ("[1, 1,025, 1,024]", "[1, 1,024, 1,024]", "[1, 256, 4,096]", "[1, 256, 2,048]", "one of 92,553")
        assert all(step in html for step in steps)
        assert "[1, 64, 128]" in html and "[1, 16, 512]" in html


class TestWalk:
    def test_shapes_of_a_picture_of_three_tiles_and_its_thumbnail(self, tiny_vlm):
        """112 px tiles: (112 / 14)² = 64 patches, 16 features; widths of the tiny configuration."""
        html = walk_html(tiny_vlm, "What?", Image.new("RGB", (336, 112), "red"))
        shapes = re.findall(r"\[([\d, ]+)\]", html)
        assert shapes[:6] == ["4, 112, 112, 3", "4, 3, 112, 112", "4, 65, 24", "4, 64, 24", "4, 16, 96", "4, 16, 32"]

    def test_the_probable_tokens_are_the_models_own(self, tiny_vlm):
        html = walk_html(tiny_vlm, "What is 2 plus 3?")
        assert "pixel_values" not in html
        first = tiny_vlm.chat("What is 2 plus 3?", max_new_tokens=1)
        told = re.findall(r"<b><span[^>]*>(.*?)</span></b> (?:under )?[\d.]+%", html)
        assert len(told) == 5 and first.text in told[0].replace("▁", "").replace("&lt;", "<").replace("&gt;", ">")

    def test_no_hook_stays_behind(self, tiny_vlm):
        walk_html(tiny_vlm, "What?", Image.new("RGB", (112, 112)))
        assert not any(module._forward_hooks for module in tiny_vlm.model.modules())

    def test_a_hostile_question_shows_as_text(self, tiny_vlm):
        html = walk_html(tiny_vlm, "<script>alert(1)</script></div>")
        assert "<script" not in html and html.count("<div") == html.count("</div>")


class TestOverPicture:
    """2 × 1 grid, 2 × 2 features a tile."""

    tiles = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)

    def test_features_stand_row_by_row_in_their_tile_and_tiles_in_their_grid(self):
        assert over_picture(self.tiles, (2, 1)).tolist() == [[1, 2, 5, 6], [3, 4, 7, 8]]
        assert over_picture(self.tiles, (1, 2)).tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]

    def test_the_first_pixel_shuffle_swaps_rows_and_columns_within_a_tile(self):
        assert over_picture(self.tiles, (2, 1), swapped=True).tolist() == [[1, 3, 5, 7], [2, 4, 6, 8]]

    def test_a_thumbnail_is_added_over_the_whole(self):
        thumbnail = np.full((1, 4), 10, np.float32)
        laid = over_picture(np.concatenate([self.tiles, thumbnail]), (2, 1))
        assert laid.tolist() == [[11, 12, 15, 16], [13, 14, 17, 18]]


class TestLooks:
    @pytest.fixture
    def picture(self):
        pixels = np.random.default_rng(0).integers(0, 255, (112, 112, 3), np.uint8)
        return Image.fromarray(pixels)

    def test_a_value_is_how_much_the_tokens_probability_moves_with_the_feature(self, tiny_vlm, picture):
        """A finite difference along a random direction is at most the gradient's size, along the gradient equal."""
        turns = (Turn("user", "<image>\nWhat?"), Turn("assistant", "7"))
        example = encode(Record(id=0, turns=turns, images=(picture,)), tiny_vlm.processor)
        place = int(np.flatnonzero(example.labels != -100)[0])
        ids = torch.from_numpy(example.input_ids)[None]
        model = tiny_vlm.model
        with torch.no_grad():
            features = model.encode_tiles(normalise_tiles(torch.from_numpy(example.tiles)))

        def log_probability(features):
            logits = model(inputs_embeds=model.embed(ids, features)).logits[0, place - 1]
            return torch.log_softmax(logits, -1)[ids[0, place]]

        _, (heat,) = answer_looks(tiny_vlm, "What?", picture, "7")
        slopes = []
        for feature in (0, 5):
            leaf = features.clone().requires_grad_()
            gradient = torch.autograd.grad(log_probability(leaf), leaf)[0][0, feature]
            step = torch.zeros_like(features)
            step[0, feature] = 1e-2 * gradient / gradient.norm()
            with torch.no_grad():
                slopes.append(float(log_probability(features + step) - log_probability(features - step)) / 2e-2)
        assert heat.flatten()[0] / heat.flatten()[5] == pytest.approx(slopes[0] / slopes[1], rel=0.05)
        assert heat.shape == (4, 4) and heat.max() == pytest.approx(1)

    def test_layers_keep_their_inputs_alone_and_the_maps_are_the_same(self, tiny_vlm, picture, monkeypatch):
        """A 26B in 4 bits has no room for what its layers compute of a picture."""
        found, ran = [], []
        for how in (nullcontext, recomputing):
            monkeypatch.setattr(inside, "recomputing", lambda layers, how=how: how(layers))
            layers = tiny_vlm.model.model.language_model.layers
            hook = layers[0].mlp.register_forward_pre_hook(lambda *_, how=how: ran.append(how))
            found.append(answer_looks(tiny_vlm, "What?", picture, "352")[1])
            hook.remove()
        assert all(np.array_equal(*maps) for maps in zip(*found, strict=True))
        assert ran == [nullcontext] + 4 * [recomputing]  # forward, and once more for each token
        assert not any("forward" in vars(layer) for layer in layers)

    def test_one_map_a_token_without_the_closing_one(self, tiny_vlm, picture):
        tokens, maps = answer_looks(tiny_vlm, "What?", picture, "352")
        assert tokens == ["3", "5", "2"] and len(maps) == 3

    def test_the_figure_says_that_it_is_a_gradient(self, tiny_vlm, picture):
        figure = looks_figure(tiny_vlm, "What?", picture, answer="$x^2$")
        assert "gradient" in figure.alt and "gradient" in figure.get_suptitle()
        assert figure.to_image().width > 300  # a $ in the answer starts no formula

    def test_letters_that_the_font_lacks_stand_below(self, tiny_vlm, picture, recwarn):
        figure = looks_figure(tiny_vlm, "这是什么?", picture, answer="7")
        assert figure.get_suptitle() == "question → answer (gradient)"
        assert figure.below == "这是什么? → 7 (gradient)" and figure.to_image().width > 300
        assert not [one for one in recwarn if "Glyph" in str(one.message)]

    def test_nothing_to_look_at_is_said(self, tiny_vlm, picture):
        with pytest.raises(DataError, match="empty answer"):
            looks_figure(tiny_vlm, "What?", picture, answer=" ")

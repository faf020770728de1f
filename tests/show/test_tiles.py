"""Pictures of dynamic tiling: grid, candidates, tiles, tokens, and what stays readable."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ivlkit.show.tiles import readable_figure, tiles_figure, tiles_live


@pytest.fixture
def released(processor):
    """The tile settings of the released models; no weights and no tokenizer of theirs."""
    return replace(processor, tile_px=448, num_image_token=256)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_the_title_tells_grid_tiles_and_tokens(processor):
    figure = tiles_figure(Image.new("RGB", (336, 112), "white"), processor)
    assert figure.get_suptitle() == "336 × 112 px → 3 × 1 grid, 4 tiles, 64 tokens"
    assert figure.alt.startswith(figure.get_suptitle())
    assert texts(figure.axes[2]) == ["1", "2", "3", "thumbnail"]


def test_the_chosen_grid_is_drawn_over_the_picture(released):
    picture = tiles_figure(Image.new("RGB", (640, 480), "white"), released).axes[0]
    vertical = {line.get_xdata()[0] for line in picture.lines if len(set(line.get_xdata())) == 1}
    horizontal = {line.get_ydata()[0] for line in picture.lines if len(set(line.get_ydata())) == 1}
    assert vertical == {160, 320, 480} and horizontal == {160, 320}


def test_all_35_candidates_of_twelve_tiles_are_drawn(released):
    candidates = tiles_figure(Image.new("RGB", (640, 480), "white"), released).axes[1]
    every, chosen = (collection.get_offsets() for collection in candidates.collections)
    assert len(every) == 35 and np.asarray(chosen).tolist() == [[4, 3]]


def test_a_single_tile_has_no_thumbnail(released):
    figure = tiles_figure(Image.new("RGB", (300, 300), "white"), released)
    assert texts(figure.axes[2]) == ["1"] and "1 tile, 256 tokens" in figure.get_suptitle()


def test_a_region_keeps_what_the_grid_resolves(released):
    """Stripes of one pixel are grey in a 448 px tile of a 1,792 px wide picture and stripes again at 4 columns."""
    stripes = np.zeros((448, 1792, 3), np.uint8)
    stripes[:, ::2] = 255
    figure = readable_figure(stripes, released, region=(0, 0, 100, 100), budgets=(1, 4))
    as_it_is, one, four = (np.asarray(axis.images[0].get_array()) for axis in figure.axes[:3])
    assert as_it_is.std() > 120 and one.std() < 40 and four.std() > 120
    assert "max_tiles 4: 4 × 1, 5 tiles, 1,280 tokens" in figure.alt


def test_a_reply_stands_over_its_picture_and_no_region_means_all_of_it(released):
    picture, replies = Image.new("RGB", (900, 300)), {1: "Quem", 3: "Queen $1"}
    figure = readable_figure(picture, released, budgets=(1, 3), replies=replies)
    titles = [axis.get_title() for axis in figure.axes[:3]]
    assert "reply" not in titles[0] and titles[1].endswith("reply: Quem") and titles[2].endswith(r"reply: Queen \$1")
    assert figure.axes[1].images[0].get_array().shape == (300, 900, 3)


class TestSlider:
    @pytest.fixture(autouse=True)
    def widgets(self):
        return pytest.importorskip("ipywidgets")

    def test_fewer_tiles_cost_fewer_tokens(self, released):
        live = tiles_live(Image.new("RGB", (640, 480), "white"), released)
        assert "13 tiles, 3,328 tokens" in live.to_html()
        live.controls[0].value = 6
        assert "7 tiles, 1,792 tokens" in live.to_html()

    def test_an_uploaded_picture_takes_the_place(self, released, upload):
        live = tiles_live(Image.new("RGB", (640, 480), "white"), released)
        buffer = io.BytesIO()
        Image.new("RGB", (500, 500)).save(buffer, "png")
        live.controls[1].value = upload(buffer.getvalue())
        assert "500 × 500 px → 1 × 1 grid" in live.to_html()

    def test_an_upload_that_is_no_picture_is_named_in_its_place(self, released, upload):
        live = tiles_live(Image.new("RGB", (64, 64)), released)
        live.controls[1].value = upload(b"<script>alert(1)</script>")
        assert "card bad" in live.to_html() and "<script>" not in live.to_html()

"""What dynamic tiling does to a picture."""

from ..data.media import open_image
from .figure import ShownFigure


def tiles_figure(image, processor, *, max_tiles=None):
    """The picture with its grid drawn over it, and beside it the tiles in order, thumbnail last.

    Args: image: path, PIL image or array; processor: of a model; max_tiles: another budget.
    Returns: matplotlib figure.
    """
    image, budget = open_image(image), max_tiles or processor.max_tiles
    cols, rows = processor.grid(*image.size, max_tiles=budget)
    tiles = processor.tile(image, max_tiles=budget)
    figure = ShownFigure(figsize=(10, 3.4))
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.4))
    _draw_grid(left.subplots(), image, cols, rows)
    across = min(len(tiles), max(cols, 4))
    down = -(-len(tiles) // across)
    axes = right.subplots(down, across, squeeze=False)
    for place, axis in enumerate(axes.flat):
        axis.axis("off")
        if place < len(tiles):
            axis.imshow(tiles[place])
            thumbnail = len(tiles) > 1 and place == len(tiles) - 1
            axis.set_title("thumbnail" if thumbnail else str(place + 1), fontsize=9)
    tokens = len(tiles) * processor.num_image_token
    figure.suptitle(f"{image.width} × {image.height} px → {cols} × {rows} grid, {len(tiles)} tiles, {tokens:,} tokens")
    return figure


def _draw_grid(axis, image, cols, rows):
    axis.imshow(image)
    for col in range(1, cols):
        axis.axvline(col * image.width / cols, color="#d55e00", linewidth=2)
    for row in range(1, rows):
        axis.axhline(row * image.height / rows, color="#d55e00", linewidth=2)
    axis.axis("off")

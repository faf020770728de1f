"""What dynamic tiling does to a picture, what it costs, and what stays readable."""

from matplotlib.patches import Rectangle
from PIL import Image

from ..data.rows.media import open_image
from ..data.tiling import MAX_TILES, candidate_grids
from .figure import BLUE, RED, ShownFigure, plain_text
from .live import Live, make_controls, uploaded

SHOWN_PX = 160  # side of a tile in the figure


def tiles_figure(image, processor, *, max_tiles=None):
    """The picture with its grid drawn over it, the grids it could have had, and the tiles in order, thumbnail last.

    Args: image: path, PIL image, array or file in memory; processor: of a model; max_tiles: another budget.
    Returns: matplotlib figure.
    """
    image, budget = open_image(image, rules=processor.picture_rules), max_tiles or processor.max_tiles
    cols, rows = processor.grid(*image.size, max_tiles=budget)
    tiles = processor.tile(image, max_tiles=budget)
    tokens = len(tiles) * processor.num_image_token
    said = f"{image.width} × {image.height} px → {cols} × {rows} grid, {_tiles_text(len(tiles))}, {tokens:,} tokens"
    alt = f"{said}; at most {budget} tiles and the thumbnail"
    figure = ShownFigure(figsize=(10.5, 3.6), layout="constrained", alt=alt)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 0.8, 1.3))
    left.imshow(image)
    for colour, width in (("white", 4), (RED, 2)):  # in two colours lines show on any picture
        for col in range(1, cols):
            left.axvline(col * image.width / cols, color=colour, linewidth=width)
        for row in range(1, rows):
            left.axhline(row * image.height / rows, color=colour, linewidth=width)
    left.axis("off")
    left.set_title(f"the picture, cut {cols} × {rows}", fontsize=9)
    _draw_candidates(middle, image, processor, budget, (cols, rows))
    _draw_tiles(right, tiles, cols, has_thumbnail=len(tiles) > cols * rows)
    figure.suptitle(said, y=1.07)
    return figure


def _tiles_text(number):
    return "1 tile" if number == 1 else f"{number} tiles"


def _draw_candidates(axis, image, processor, budget, chosen):
    """Every grid as a dot at (columns, rows), and the picture's aspect ratio as a line through them."""
    grids = candidate_grids(budget, min(processor.min_tiles, budget))
    axis.scatter(*zip(*grids, strict=True), s=18, color="#999999", label=f"{len(grids)} grids of at most {budget}")
    most = max(max(grid) for grid in grids) + 0.5
    ratio = image.width / image.height
    end = (most, most / ratio) if ratio >= 1 else (most * ratio, most)
    axis.plot((0, end[0]), (0, end[1]), color=BLUE, linestyle="--", label=f"width : height = {ratio:.2f}")
    axis.scatter(*chosen, s=110, color=RED, marker="s", zorder=3, label=f"chosen: {chosen[0]} × {chosen[1]}")
    axis.set(xlim=(0, most), ylim=(0, most), xlabel="columns", ylabel="rows")
    axis.set_aspect("equal")
    axis.locator_params(integer=True)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)
    axis.set_title("the grids it could have", fontsize=9)


def _draw_tiles(axis, tiles, cols, *, has_thumbnail):
    """The tiles as the grid has them with a gap between, the thumbnail to the right of them."""
    side, gap = SHOWN_PX, SHOWN_PX // 10
    in_grid = len(tiles) - has_thumbnail
    size = (cols * (side + gap) + has_thumbnail * (side + 2 * gap), in_grid // cols * (side + gap))
    canvas = Image.new("RGB", size, "white")
    for number, tile in enumerate(tiles):
        row, col = divmod(number, cols) if number < in_grid else (0, cols)
        left, top = col * (side + gap) + (col == cols) * 2 * gap, row * (side + gap)
        canvas.paste(Image.fromarray(tile).resize((side, side), Image.Resampling.LANCZOS), (left, top))
        name = str(number + 1) if number < in_grid else "thumbnail"
        axis.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor="#999999", linewidth=0.5))
        axis.text(left + 4, top + 4, name, va="top", fontsize=7, bbox={"color": "white", "pad": 1, "alpha": 0.8})
    axis.imshow(canvas)
    axis.axis("off")
    axis.set_title("its tiles in order", fontsize=9)


def tiles_live(image, processor):
    """`tiles_figure` under a slider for max_tiles and a button that uploads a picture of one's own."""
    limits = {"value": processor.max_tiles, "min": 1, "max": max(MAX_TILES, processor.max_tiles)}
    controls = make_controls(
        lambda widgets: [
            widgets.IntSlider(**limits, description="max tiles"),
            widgets.FileUpload(accept="image/*", multiple=False, description="your picture"),
        ]
    )

    def draw():
        if not controls:
            return tiles_figure(image, processor)
        budget, mine = controls
        return tiles_figure(uploaded(mine) or image, processor, max_tiles=budget.value)

    return Live(draw, controls)


def readable_figure(image, processor, *, region=None, budgets=(1, 2, 4, 6, 12), replies=None):
    """One region of a picture as the tiles hold it, for several budgets, each beside the tokens it costs.

    Only the stretched grid is looked at; the thumbnail adds nothing in detail. The figure is 1,000 px wide with two
    regions side by side: one of 160 px is seen three times as large as it is.

    Args: region: (left, top, right, bottom) in pixels of the picture, None for all of it; budgets: max_tiles;
        replies: {budget: what a model answered}, told above its picture.
    Returns: matplotlib figure: the region as it is, then for each budget.
    """
    image = open_image(image, rules=processor.picture_rules)
    region = region or (0, 0, *image.size)
    shown = [("as it is", image.crop(region))]
    for budget in budgets:
        (num_tiles,) = processor.count_tiles([image.size], max_tiles=budget)
        cols, rows = processor.grid(*image.size, max_tiles=budget)
        tokens = num_tiles * processor.num_image_token
        name = f"max_tiles {budget}: {cols} × {rows}\n{_tiles_text(num_tiles)}, {tokens:,} tokens"
        name += f"\nreply: {plain_text(replies[budget], 40)}" if replies else ""
        shown.append((name, _as_tiled(image, region, processor, cols, rows)))
    across = min(2, len(shown))
    down = -(-len(shown) // across)
    shape = (region[3] - region[1]) / (region[2] - region[0])
    alt = "the same region: " + "; ".join(name.replace("\n", ", ") for name, _ in shown)
    figure = ShownFigure(figsize=(10, down * (0.6 + 10 / across * min(1.5, shape))), alt=alt, layout="constrained")
    figure.get_layout_engine().set(hspace=0.08)  # a heading belongs to what stands below it
    for place, axis in enumerate(figure.subplots(down, across, squeeze=False).flat):
        axis.axis("off")
        if place < len(shown):
            axis.imshow(shown[place][1], interpolation="nearest", aspect="auto")
            axis.set_title(shown[place][0], fontsize=9)
    return figure


def _as_tiled(image, region, processor, cols, rows):
    """The region as the tiles have it, cut from the picture stretched to its grid, and stretched back."""
    size = (cols * processor.tile_px, rows * processor.tile_px)
    across, down = size[0] / image.width, size[1] / image.height
    box = (region[0] * across, region[1] * down, region[2] * across, region[3] * down)
    cut = image.resize(size, Image.Resampling.BICUBIC).crop(tuple(map(round, box)))
    return cut.resize((region[2] - region[0], region[3] - region[1]), Image.Resampling.NEAREST)

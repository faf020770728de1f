"""Tasks of print: numbers, words, lines, and receipts and charts in fine print."""

import math
from dataclasses import replace

from .drawing import (
    colours_on,
    draw_bar,
    draw_hand_set,
    font_of,
    fonts_for,
    largest_print_px,
    print_line,
    print_paper,
    print_small,
    whole,
)
from .scene import Scene
from .vocabulary import LISTS, QUESTIONS, known_word, new_word, some_number, ways_to_write

ITEMS, LABELS = LISTS["items"], LISTS["labels"]
WIDE_GRIDS = [(2, 1)] * 3 + [(3, 1)] * 3 + [(4, 1), (4, 2)]  # (columns, rows) of tiles
# Receipts and charts are two tiles wide, names in the left one: (tiles high, lines a tile). Squeezed into a single tile
# their print is at most 7 px high and lost.
FINE_PRINT = [(3, 2)] * 5 + [(4, 2)]
FINE_PRINT_SIZES = (0.08, 0.085, 0.09, 0.095, 0.098)  # of the width: 15 to 21 px
MARGIN = 0.04  # of the width, left and right of fine print
BAR_LEFT, BAR_RIGHT = 0.42, 0.76  # of the width; a bar of the value 100


def printed_lines(rng, material):
    """Up to three short lines, each a number or a word, in half a tile or a whole one; none is cut by tiles."""
    count = rng.randint(1, 3)
    lines = [some_number(rng, 4) if rng.random() < 0.5 else known_word(rng) for _ in range(count)]
    lines_a_tile = rng.choice((1, 2)) if count < 3 else 2
    tiles = math.ceil(count / lines_a_tile)
    picture, ink = print_paper(rng, (2 if max(map(len, lines)) < 6 else 3, tiles))
    pitch_px, left_px = picture.height / (tiles * lines_a_tile), rng.uniform(0.03, 0.1) * picture.width
    font_name = rng.choice(fonts_for("".join(lines), material.fonts))
    room = 0.86 * picture.width, 0.9 * pitch_px
    largest_px = min(largest_print_px(line, font_name, *room) for line in lines)
    font = font_of(font_name, 2 * int(largest_px * rng.uniform(0.75, 1) / 2))
    first = rng.randint(0, tiles * lines_a_tile - count)
    for place, line in enumerate(lines, start=first):
        print_small(picture, left_px, (place + 0.5) * pitch_px, line, ink=ink, font=font)
    told = "\n".join(lines)
    return Scene((picture,), QUESTIONS["lines"], {"lines": told}, f"It says:\n{told}")


def printed_number(rng, material):
    """One to six printed digits in a strip about as many tiles wide, in line or each set by itself."""
    number = some_number(rng, 6)
    picture, ink = print_paper(rng, (len(number), 1))
    if rng.random() < 0.5:
        draw_hand_set(picture, number, ink=ink, rng=rng, fonts=material.fonts)
    else:
        print_line(picture, number, whole(picture), ink=ink, rng=rng, fonts=material.fonts)
    facts = {"number": number, "count": len(number), "first": number[0], "last": number[-1]}
    return Scene((picture,), QUESTIONS["number"], facts, f"It says {number}.")


def printed_rows(rng, material):
    """Two numbers, one above the other."""
    rows = some_number(rng, 4), some_number(rng, 4)
    picture, ink = print_paper(rng, (max(len(row) for row in rows), 2))
    half_px = picture.height // 2
    for top_px, row in zip((0, half_px), rows, strict=True):
        box = (0, top_px, picture.width, top_px + half_px)
        print_line(picture, row, box, ink=ink, rng=rng, fonts=material.fonts)
    facts = {"top": rows[0], "bottom": rows[1]}
    return Scene((picture,), QUESTIONS["rows"], facts, f"It says {rows[0]} above {rows[1]}.")


def printed_word(rng, material):
    """One of the words that nano knows, in small letters or capitals."""
    return _print_word(rng, material, known_word(rng), grid=rng.choice(WIDE_GRIDS), smallest=0.5)


def unknown_word(rng, material):
    """A word that it can't know, so that letters must be read: made up, or (one in four) of the split's own words.

    Two to three letters a tile, and large: a letter is at least one and a half patches of 14 px wide on average.
    """
    word = new_word(rng, material)
    ways = ways_to_write(word)
    if not word.isascii():
        word = rng.choice(ways)(word)  # the only place where every accent stands on a capital
    elif rng.random() < 0.2 and str.title in ways:
        word = word.title()
    tiles = rng.randint(math.ceil(len(word) / 3), math.ceil(len(word) / 2))
    return _print_word(rng, material, word, grid=(tiles, 1), smallest=0.75)


def _print_word(rng, material, word, *, grid, smallest):
    picture, ink = print_paper(rng, grid)
    print_line(picture, word, whole(picture), ink=ink, rng=rng, fonts=material.fonts, smallest=smallest)
    return Scene((picture,), QUESTIONS["word"], {"word": word}, f'It says "{word}".')


# Fine print


def receipt(rng, material):
    """A receipt in fine print: what things cost, and the total under a line."""
    items = rng.sample(ITEMS, rng.randint(2, 4))
    cents = rng.sample(range(50, 1000, 5), len(items))
    rows = [*zip(items, map(_price, cents), strict=True), ("TOTAL", _price(sum(cents)))]
    picture, ink, middles = _print_rows(rng, material, rows)
    rule_y = (middles[-2] + middles[-1]) / 2
    edges = MARGIN * picture.width, (1 - MARGIN) * picture.width
    draw_bar(picture, (edges[0], rule_y, edges[1], rule_y + 1), ink)
    item, price = rng.choice(rows[:-1])
    everything = _everything(rows)
    facts = {"item": item, "price": price, "total": rows[-1][1], "everything": everything}
    return Scene((picture,), QUESTIONS["receipt"], facts, f"Prices: {everything}.")


def chart(rng, material):
    """A bar chart whose labels and values are fine print: label, bar, value; no two bars are nearly as long."""
    labels = rng.sample(LABELS, rng.randint(3, 4))
    values = [10 + 8 * step + rng.randint(0, 2) for step in rng.sample(range(11), len(labels))]
    rows = list(zip(labels, map(str, values), strict=True))
    picture, _, middles = _print_rows(rng, material, rows)
    colour = rng.choice(colours_on(picture.getpixel((0, 0))))
    left, half_px = BAR_LEFT * picture.width, rng.uniform(5, 10)
    for y, value in zip(middles, values, strict=True):
        right = left + (BAR_RIGHT - BAR_LEFT) * picture.width * value / 100
        draw_bar(picture, (left, y - half_px, right, y + half_px), colour)
    label, value = rng.choice(rows)
    ranked = sorted(zip(values, labels, strict=True))
    facts = {"label": label, "value": value, "longest": ranked[-1][1], "shortest": ranked[0][1]}
    everything = _everything(rows)
    return Scene((picture,), QUESTIONS["chart"], facts | {"everything": everything}, f"Values: {everything}.")


def whole_print(rng, material):
    """A receipt or a chart, read from top to bottom: dense practice for the vision tower."""
    return replace(rng.choice((receipt, chart))(rng, material), questions=QUESTIONS["everything"])


def _print_rows(rng, material, rows):
    """Fine print: (name, number) a line. Returns (picture, ink, the middle of each line in px)."""
    tiles, lines_a_tile = rng.choice(FINE_PRINT)
    picture, ink = print_paper(rng, (2, tiles))
    lines = tiles * lines_a_tile
    first, pitch_px = rng.randint(0, lines - len(rows)), picture.height / lines
    middles = [(first + line + 0.5) * pitch_px for line in range(len(rows))]
    font_name, room_px = rng.choice(material.fonts), (0.5 - MARGIN) * picture.width
    fonts = [font_of(font_name, int(size * picture.width)) for size in FINE_PRINT_SIZES]
    texts = [text for row in rows for text in row]  # each has to fit its half of the picture
    font = rng.choice([font for font in fonts if max(map(font.getlength, texts)) <= room_px])
    for y, (name, number) in zip(middles, rows, strict=True):
        print_small(picture, MARGIN * picture.width, y, name, ink=ink, font=font)
        print_small(picture, (1 - MARGIN) * picture.width, y, number, ink=ink, font=font, anchor="rm")
    return picture, ink, middles


def _everything(rows):
    return ", ".join(f"{name} {number}" for name, number in rows)


def _price(cents):
    """350 → "3.50"."""
    return f"{cents // 100}.{cents % 100:02d}"

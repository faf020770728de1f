"""How the pictures of `ivlkit verify` were made: photos of scikit-learn and scikit-image scaled down, the rest drawn.

pip install scikit-learn scikit-image
python benchmarks/make_verify_pictures.py
"""

from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).parents[1] / "ivlkit" / "models" / "verify_data"
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
PHOTO_WIDTH_PX = 448
RECEIPT = (
    *("CORNER CAFE", "12 Mill Lane", "", "2 x Coffee          7.00", "1 x Apple cake      4.50"),
    *("1 x Orange juice    3.25", "", "TOTAL              14.75", "", "Thank you!"),
)


def save_photo(pixels, name):
    """An RGB array, 448 px wide, as a JPEG of 18 to 36 KB."""
    image = Image.fromarray(pixels)
    height_px = round(PHOTO_WIDTH_PX * image.height / image.width)
    image.resize((PHOTO_WIDTH_PX, height_px), Image.Resampling.LANCZOS).save(
        FOLDER / f"{name}.jpg", quality=82, optimize=True
    )


def draw_receipt():
    """Print of 20 px in a picture of 480 x 640 px: small, so that its tiles are needed."""
    image = Image.new("RGB", (480, 640), "#f7f4ec")
    font = ImageFont.truetype(FONTS / "DejaVuSansMono.ttf", 20)
    for number, line in enumerate(RECEIPT):
        ImageDraw.Draw(image).text((80, 90 + 44 * number), line, fill="#222222", font=font)
    image.save(FOLDER / "receipt.png", optimize=True)


def draw_word(word, name, *, size=(336, 112), ink="black", font="DejaVuSans.ttf", size_px=64):
    """Black print in the middle of a white picture."""
    image = Image.new("RGB", size, "white")
    anchor = {"anchor": "mm", "font": ImageFont.truetype(FONTS / font, size_px)}
    ImageDraw.Draw(image).text((size[0] // 2, size[1] // 2), word, fill=ink, **anchor)
    image.save(FOLDER / f"{name}.png", optimize=True)


def draw_shape(shape, colour, name, *, size_px=112, paper="white"):
    """One large "ellipse" or "rectangle" on paper."""
    image = Image.new("RGB", (size_px, size_px), paper)
    box = (size_px // 7, size_px // 7, size_px - size_px // 7, size_px - size_px // 7)
    getattr(ImageDraw.Draw(image), shape)(box, fill=colour)
    image.save(FOLDER / f"{name}.png", optimize=True)


def main():
    import skimage.data
    from sklearn.datasets import load_sample_image

    save_photo(load_sample_image("flower.jpg"), "flower")
    save_photo(load_sample_image("china.jpg"), "temple")
    save_photo(skimage.data.cat(), "cat")
    save_photo(skimage.data.coffee(), "coffee")
    draw_drawings()


def draw_drawings():
    """Colours are those of nano's curriculum."""
    draw_receipt()
    draw_word("OPEN", "sign", size=(448, 224), ink="#b71c1c", font="DejaVuSans-Bold.ttf", size_px=110)
    draw_shape("ellipse", "#e53935", "circle")
    draw_shape("rectangle", "#1e5fd8", "square")
    draw_word("7", "digit", size=(112, 112), size_px=80)
    draw_word("352", "number")


if __name__ == "__main__":
    main()

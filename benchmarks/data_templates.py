"""Draw the pictures and write the rows of `data_templates/` beyond the four released kinds, and every broken twin.

    python benchmarks/data_templates.py

Colours and shapes are drawn here and under the project's licence. Needs `av` for the video.
"""

import base64
import csv
import io
import json
from pathlib import Path

import av
from PIL import Image, ImageDraw

HERE = Path(__file__).parents[1] / "data_templates"
COLOURS = {"red": (214, 60, 50), "green": (60, 160, 80), "blue": (50, 90, 200), "orange": (240, 150, 40)}


def shape(colour, kind, size=(160, 120)):
    """A picture of one shape on near-white."""
    image = Image.new("RGB", size, (250, 248, 244))
    pen, box = ImageDraw.Draw(image), (size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4)
    {"circle": pen.ellipse, "square": pen.rectangle}[kind](box, fill=COLOURS[colour])
    return image


def moving(number, total=24, size=(160, 120)):
    """A red ball on its way from left to right."""
    image = Image.new("RGB", size, (250, 248, 244))
    left = 10 + (size[0] - 50) * number // (total - 1)
    ImageDraw.Draw(image).ellipse((left, 45, left + 30, 75), fill=COLOURS["red"])
    return image


def save(image, *parts):
    path = HERE.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write(text, *parts):
    path = HERE.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_rows(rows, *parts):
    write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), *parts)


def turns(*values):
    return [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]


def chat(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def four_shapes(folder):
    for colour, kind in (("red", "circle"), ("green", "square"), ("blue", "circle"), ("orange", "square")):
        save(shape(colour, kind), folder, "images", f"{colour}.png")


def released():
    """Broken twins of the four kinds that are already there."""
    bad = [turns("Q"), turns("Q", "A")[::-1], [*turns("Q"), {"from": "bot", "value": "A"}], [], turns("Q", 3)]
    write_rows([{"id": n, "conversations": one} for n, one in enumerate(bad)], "text", "broken.jsonl")
    rows = [
        {"id": 0, "image": "images/gone.png", "conversations": turns("<image>\nQ", "A")},
        {"id": 1, "image": "images/shapes.png", "conversations": turns("<image>\n<image>\nQ", "A")},
        {"id": 2, "image": "../multi_image/images/a.png", "conversations": turns("<image>\nQ", "A")},
        {"id": 3, "image": "https://example.org/a.png", "conversations": turns("<image>\nQ", "A")},
        {"id": 4, "image": "train.jsonl", "conversations": turns("<image>\nQ", "A")},
    ]
    write_rows(rows, "image", "broken.jsonl")
    pair = ["images/a.png", "images/b.png"]
    rows = [
        {"id": 0, "image": pair, "conversations": turns("Which is larger?", "A")},
        {"id": 1, "image": pair, "conversations": turns("<image>\nQ", "<image>\nA")},
        {"id": 2, "image": [*pair, ""], "conversations": turns("<image><image><image>\nQ", "A")},
    ]
    write_rows(rows, "multi_image", "broken.jsonl")
    text = "<ref>the square</ref><box>[[500, 400, 750, 733]]</box>"
    rows = [
        {"id": 0, "image": "images/shapes.png", "conversations": turns("<image><image>\nWhere?", text)},
        {"id": 1, "image": "images/shape.png", "conversations": turns("<image>\nWhere?", text)},
        {"id": 2, "image": ["images/shapes.png"], "conversations": turns("<image>\nWhere?")},
    ]
    write_rows(rows, "grounding", "broken.jsonl")


def video():
    frames = [moving(number) for number in range(24)]
    (HERE / "video" / "videos").mkdir(parents=True, exist_ok=True)
    with av.open(str(HERE / "video" / "videos" / "ball.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))
    gif = HERE / "video" / "videos" / "ball.gif"
    frames[0].save(gif, save_all=True, append_images=frames[2::2], duration=160, loop=0)
    for number, frame in enumerate(frames[::3], start=1):
        save(frame, "video", "videos", "ball_frames", f"frame_{number}.png")
    ask = "<video>\nWhich way does the ball move?"
    rows = [
        {"id": 0, "video": "videos/ball.mp4", "conversations": turns(ask, "From left to right.")},
        {"id": 1, "video": "videos/ball.mp4", "clip": [0, 1], "conversations": turns(ask, "To the middle.")},
        {"id": 2, "video": "videos/ball.gif", "conversations": turns("<video>\nWhat colour is the ball?", "Red.")},
        {"id": 3, "video": "videos/ball_frames", "conversations": turns(ask, "From left to right.")},
    ]
    write_rows(rows, "video", "train.jsonl")
    rows = [
        {"id": 0, "video": "videos/gone.mp4", "conversations": turns(ask, "A")},
        {"id": 1, "video": "videos/ball.mp4", "clip": [5, 3], "conversations": turns(ask, "A")},
        {"id": 2, "video": "videos/ball.mp4", "clip": [60, 90], "conversations": turns(ask, "A")},
        {"id": 3, "video": "videos/ball.mp4", "conversations": turns("<video><video>\nQ", "A")},
        {"id": 4, "video": "train.jsonl", "conversations": turns(ask, "A")},
    ]
    write_rows(rows, "video", "broken.jsonl")


def llava():
    four_shapes("llava")
    ask = "What colour is the shape?\n<image>"
    rows = [
        {"id": f"{n:04}", "image": f"images/{name}.png", "conversations": turns(ask, name.capitalize())}
        for n, name in enumerate(COLOURS)
    ]
    write(json.dumps(rows, indent=1) + "\n", "llava", "train.json")
    broken = [rows[0] | {"image": "red.png"}, rows[1] | {"conversations": []}, "not a row"]
    write(json.dumps(broken, indent=1) + "\n", "llava", "broken.json")


def sharegpt():
    four_shapes("sharegpt")
    pair = ["images/red.png", "images/blue.png"]
    rows = [
        {"images": pair, "conversations": turns("<image><image>\nWhat do both show?", "A circle.")},
        {"images": pair[:1], "system": "Answer in one word.", "conversations": turns("<image>\nColour?", "Red")},
        {"images": ["images/green.png"], "messages": chat("<image>Which shape is it?", "A square.")},
    ]
    write_rows(rows, "sharegpt", "train.jsonl")
    calls = [{"from": "human", "value": "Weather?"}, {"from": "function_call", "value": "{}"}]
    rows = [rows[0] | {"images": pair[:1]}, {"images": [], "conversations": calls}, rows[1] | {"tools": "[{}]"}]
    write_rows(rows, "sharegpt", "broken.jsonl")


def openai():
    four_shapes("openai")
    buffer = io.BytesIO()
    shape("blue", "square", (32, 24)).save(buffer, format="PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

    def ask(url, text="What colour is the shape?"):
        return [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]

    rows = [
        {"messages": chat(ask("images/green.png"), "Green")},
        {"messages": [{"role": "system", "content": "Answer in one word."}, *chat(ask(uri), "Blue")]},
        {"messages": [*chat("Hello", "Hi, show me a picture."), *chat(ask("images/red.png"), "Red")]},
    ]
    write_rows(rows, "openai", "train.jsonl")
    tool = [*chat("Q", "A"), {"role": "tool", "content": "3"}]
    remote = chat(ask("https://example.org/a.png"), "A")
    rows = [{"messages": remote}, {"messages": tool}, {"messages": chat(ask(uri[:60]), "A")}]
    write_rows(rows, "openai", "broken.jsonl")


def table():
    four_shapes("csv")
    rows = [["file", "colour", "kind"], ["red.png", "red", "circle"], ["green", "green", "square"]]
    rows += [["BLUE.PNG", "blue", "circle"], ["orange.png", "orange", "square"]]
    broken = [rows[0], ["gone.png", "red", "circle"], ["", "red", "circle"], ["red.png", "", "circle"]]
    broken += [["red.png", "red", "circle", "one cell too many"], ["../red.png", "red", "circle"]]
    for name, lines in (("labels.csv", rows), ("broken.csv", broken)):
        text = io.StringIO()
        csv.writer(text, delimiter=";", lineterminator="\n").writerows(lines)
        write(text.getvalue(), "csv", name)


def folder():
    for kind in ("circle", "square"):
        for colour in ("red", "blue"):
            save(shape(colour, kind), "folder", "shapes", kind, f"{colour}.png")
            save(shape(colour, kind), "folder", "broken", f"{colour}_{kind}.png")
    write("This class holds no picture.\n", "folder", "broken", "circle", "red.txt")
    write("not a picture\n", "folder", "broken", "square", "blue.png")


if __name__ == "__main__":
    for make in (released, video, llava, sharegpt, openai, table, folder):
        make()

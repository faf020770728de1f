"""label.js in a plain page: a model object that holds what is sent, and a browser that knows nothing of Jupyter."""

from pathlib import Path

import ivlkit

SCRIPT = (Path(ivlkit.__file__).parent / "bench" / "label.js").read_text(encoding="utf-8")
OPEN = """async ([script, rows, setup, beats, more, missing]) => {
    window.close_label?.();
    clearInterval(window.beating);

    document.body.innerHTML = "<button id='elsewhere'>elsewhere</button><div id='here'></div>";
    const heard = [], arriving = [];
    window.sent = [];
    window.fake = {
        get: (name) => ({ rows, setup })[name],
        send: (message) => {
            window.sent.push(message);
            const there = (message.numbers ?? []).filter((number) => !missing.includes(number));
            arriving.push(...there.map((number) => window.draw(number, more[number])));
        },
        on: (kind, hear) => heard.push(hear),
        off: () => heard.splice(0),
    };
    window.tell = (message, buffers = []) => Promise.all(heard.map((hear) => hear(message, buffers)));
    window.draw = async (number, more = {}) => {
        const canvas = Object.assign(document.createElement("canvas"), { width: 400, height: 300 });
        const pen = canvas.getContext("2d");
        Object.assign(pen, { fillStyle: "teal", font: "90px sans-serif" });
        pen.fillRect(0, 0, 400, 300);
        pen.fillStyle = "white";
        pen.fillText(String(number), 150, 180);
        const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg"));
        await window.tell({ picture: number, suggestion: null, ...more }, [await blob.arrayBuffer()]);
    };
    if (beats) window.beating = setInterval(() => window.tell({ beat: true }), 300);
    const address = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
    const { render } = (await import(address)).default;
    window.close_label = render({ model: window.fake, el: document.getElementById("here") });
    await Promise.all(arriving);
}"""
PLAIN = {"columns": [], "choices": [], "boxes": False, "start": 0, "key": "/x/labels.csv", "tiles": False}


class Page:
    """A labelling of some pictures; what it sent, what it says, and the keys."""

    def __init__(self, page, *, rows=6, suggestions=None, beats=True, missing=(), **setup):
        self.page = page
        page.evaluate("() => localStorage.clear()")
        self.start(rows, suggestions or {}, beats, PLAIN | setup, missing)

    def start(self, rows, suggestions, beats, setup, missing=()):
        """Draw it anew, as a cell that is run again."""
        rows = rows if isinstance(rows, list) else [self.row(number) for number in range(rows)]
        more = [{"suggestion": suggestions[number]} if number in suggestions else {} for number in range(len(rows))]
        self.page.evaluate(OPEN, [SCRIPT, rows, setup, beats, more, list(missing)])

    @staticmethod
    def row(number, values=None, how=None):
        return {"file": f"{number}.jpg", "question": "What number?", "values": values, "how": how}

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def type(self, text):
        self.page.keyboard.type(text)

    def tell(self, **message):
        self.page.evaluate("(message) => window.tell(message)", message)

    @property
    def sent(self):
        return self.page.evaluate("() => window.sent")

    @property
    def answers(self):
        """[(file, how, values), …] that were sent."""
        said = (one for one in self.sent if one["do"] == "answer")
        return [(one["file"], one["how"], one["values"]) for one in said]

    def text(self, name):
        return self.page.locator(f".ivl-label .{name}").inner_text()

    @property
    def at(self):
        return self.text("file")

    @property
    def typed(self):
        return self.page.locator("textarea").first.input_value()

    @property
    def has_focus(self):
        return self.page.evaluate("() => document.activeElement.matches('.ivl-label textarea, .ivl-label .choices')")

    @property
    def selected(self):
        return self.page.evaluate("() => getSelection().toString()")

    def box(self, name):
        return self.page.locator(f".ivl-label {name}").bounding_box()

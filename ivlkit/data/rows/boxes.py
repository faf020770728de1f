"""Boxes in texts: `<ref>cup</ref><box>[[x1, y1, x2, y2]]</box>`, in thousandths of the picture's width and height."""

import re

_NUMBER = r"\s*(-?(?:\d+(?:\.\d*)?|\.\d+))\s*"
BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
TAGGED = re.compile(r"<box>(.*?)</box>", re.S)
NAME = r"<ref>(?P<name>(?:[^<]|<(?!/?(?:ref|box)>))*)</ref>"  # it may have a "<" of its own: "<5 mm"
_NAMED = re.compile(rf"(?:{NAME}\s*)?{TAGGED.pattern}", re.S)


def parse_boxes(text):
    """Boxes [(x1, y1, x2, y2)] of a text: "<box>[[100, 200, 300, 400]]</box>" → [(100.0, 200.0, 300.0, 400.0)].

    Every bracket of four numbers is one, in the order of the text; [] if there is none.
    """
    return [tuple(map(float, found)) for found in BOX.findall(text)]


def named_boxes(text):
    """[(name or "", box)] of the tagged boxes of a text: <ref>cup</ref><box>[[0, 0, 500, 1000]]</box> gives
    ("cup", (0, 0, 500, 1000)).
    """
    return [(name, box) for name, inside in _NAMED.findall(text) for box in parse_boxes(inside)]


def box_text(name, *boxes):
    """The other way: `box_text("cup", [0, 0, 500, 1000])`; without a name only the boxes."""
    return f"{f'<ref>{name}</ref>' if name else ''}<box>{list(boxes)}</box>"

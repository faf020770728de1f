"""Boxes in replies and truths: how far they overlap, how many are found, COCO's average precision.

Coordinates are thousandths of the picture; a box of fractions (none above 1) is scaled. All boxes of a row count, and
each is matched with at most one other so that the total is the highest there is: their order makes no difference.
Names (<ref>cat</ref>) are compared only in rows whose truth names several things: there a box counts for its own name.
"""

import math
import re

import numpy as np

from ..data.rows.boxes import BOX, NAME, parse_boxes
from ..errors import DataError
from .normalise import accepted, best_accepted, collapse, composed

IOU_THRESHOLD = 0.5
COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
COCO_RECALLS = np.linspace(0, 1, 101)
COCO_MOST_BOXES = 100  # of a class in a picture, those with the highest scores
_PART = re.compile(rf"{NAME}|(?P<box>{BOX.pattern})|</box>")


def intersection_over_union(first, second):
    """Shared area of two boxes (x1, y1, x2, y2) by the area of both: (0, 0, 2, 1) and (1, 0, 3, 1) → 1 / 3.

    A box whose corners are swapped, or that has no area, shares nothing.
    """
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return shared / (areas - shared)


@best_accepted
def iou(reply, truth):
    """Intersection over union of the boxes, matched best to best: its sum by the number of boxes that either text has.

    One of three found exactly, and nothing else: 1 / 3. The one box of the truth, and a wrong one: 1 / 2. 0 without a
    box.

    Raises: DataError if the truth has no box.
    """
    return _share(_overlaps(reply, truth))


@best_accepted
def iou_at_50(reply, truth):
    """Boxes with an intersection over union of at least 0.5, by the number of boxes that either text has.

    1 of 3 found → 1 / 3; 3 of 3 in any order → 1; the one box and a wrong one → 1 / 2.
    """
    return _share((_overlaps(reply, truth) >= IOU_THRESHOLD).astype(float))


@composed
def grounding(replies, truths):
    """Means of `iou_at_50` (the score of a row) and of `iou`, and the share of replies without a box."""
    pairs = list(zip(replies, truths, strict=True))
    hits = [iou_at_50(*pair) for pair in pairs]
    return {
        "rows": hits,
        "iou_at_50": float(np.mean(hits)),
        "mean_iou": float(np.mean([iou(*pair) for pair in pairs])),
        "without_box": _without_box(replies),
    }


def _without_box(replies):
    return float(np.mean([not parse_boxes(reply) for reply in replies]))


def _share(weights):
    return best_total(weights) / max(weights.shape) if weights.size else 0.0


def _overlaps(reply, truth):
    """[boxes of the reply, boxes of the truth]: intersection over union, 0 for another name where names count."""
    expected = _named(truth)
    if not expected:
        raise DataError(f"iou: the truth {truth[:80]!r} has no box; expected [x1, y1, x2, y2]; choose another metric")
    found, names_count = _named(reply), len({name for name, _ in expected}) > 1
    table = [
        [0.0 if names_count and said != name else intersection_over_union(box, own) for name, own in expected]
        for said, box in found
    ]
    return np.array(table).reshape(len(found), len(expected))


def _named(text):
    """[(name or "", box in thousandths)] of a text; a name holds for the boxes behind it, up to </box>."""
    found, name = [], ""
    for part in _PART.finditer(text):
        if part["box"]:
            (box,) = parse_boxes(part["box"])
            found.append((name, tuple(1000 * value for value in box) if max(box) <= 1 else box))
        else:
            name = collapse(part["name"] or "").casefold()
    return found


def best_total(weights):
    """The largest sum of entries of a matrix of which no two share a row or a column: [[3, 2], [2, 0]] → 4.

    The Hungarian method: rows join one after the other, each along the path that costs the total least.
    """
    cost = -(weights if weights.shape[0] <= weights.shape[1] else weights.T)
    rows, columns = cost.shape
    of_row, of_column = np.zeros(rows + 1), np.zeros(columns + 1)  # potentials; place 0 is the row that joins
    owner = np.zeros(columns + 1, int)
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        least, came_from = np.full(columns + 1, np.inf), np.zeros(columns + 1, int)
        used = np.zeros(columns + 1, bool)
        while owner[column]:
            used[column] = True
            reduced = np.append(np.inf, cost[owner[column] - 1] - of_row[owner[column]] - of_column[1:])
            better = ~used & (reduced < least)
            least[better], came_from[better] = reduced[better], column
            column = int(np.argmin(np.where(used, np.inf, least)))
            step = least[column]
            of_row[owner[used]] += step
            of_column[used] -= step
            least[~used] -= step
        while column:
            owner[column], column = owner[came_from[column]], came_from[column]
    return math.fsum(-cost[owner[column] - 1, column - 1] for column in range(1, columns + 1) if owner[column])


# average precision ----------------------------------------------------------------------------------------------------


def ap50(replies, truths):
    """COCO's average precision at an intersection over union of 0.5, mean of the classes; also without_box, scored.

    Equal to pycocotools' with each row as a picture. A class is a name in the truths (<ref>cat</ref>). Where a row's
    truth has one class, all boxes of its reply are of that class; else a box is of the class that it names. In a row
    whose truth has no box, each box is wrong for the class that it names, or for the report's only class; in a report
    of several classes a box without a name is not counted there. Of several accepted answers the first one counts.

    A box's score is the probability of its tokens where replies carry them (`ScoredReply`; `evaluate` asks for them
    where truths have boxes). Else all boxes tie (`scored` is 0). Of boxes that tie those of earlier rows go first, then
    those that stand first in the reply, as in pycocotools: then the order of the rows can move the result, most for few
    boxes. A row's own score is its `iou_at_50`, which no order moves.

    Raises: DataError if no truth has a box.
    """
    return _average_precisions(replies, truths, {"ap50": (IOU_THRESHOLD,)})


def ap(replies, truths):
    """COCO's average precision, mean over intersections over union of 0.50, 0.55, …, 0.95; the rest as in `ap50`."""
    return _average_precisions(replies, truths, {"ap": COCO_THRESHOLDS, "ap50": (IOU_THRESHOLD,)})


def _average_precisions(replies, truths, thresholds):
    firsts = [accepted(truth)[0] for truth in truths]
    scored = box_scores_known(replies)
    classes = boxes_by_class(replies, firsts, scored)
    if not classes:
        raise DataError("ap: no truth has a box; expected [x1, y1, x2, y2] in some; choose another metric")
    numbers = {
        name: float(np.mean([average_precision(rows, at) for rows in classes.values() for at in chosen]))
        for name, chosen in thresholds.items()
    }
    rows = [
        iou_at_50(reply, truth) if parse_boxes(truth) else float(not parse_boxes(reply))
        for reply, truth in zip(replies, firsts, strict=True)
    ]
    return {"rows": rows} | numbers | {"without_box": _without_box(replies), "scored": float(scored)}


def box_scores_known(replies):
    """Whether every box of the replies carries a score."""
    return all(len(getattr(reply, "box_scores", ())) == len(parse_boxes(reply)) for reply in replies)


def boxes_by_class(replies, truths, scored):
    """{class: [(found, expected) of each row]}; found are (score, box), expected boxes."""
    expected = [_named(truth) for truth in truths]
    classes = {name: [] for name in dict.fromkeys(name for row in expected for name, _ in row)}
    for reply, row in zip(replies, expected, strict=True):
        boxes, possible = _named(reply), list({name for name, _ in row} or classes)
        scores = reply.box_scores if scored and boxes else [1.0] * len(boxes)
        for name, pairs in classes.items():
            found = [
                (score, box)
                for (said, box), score in zip(boxes, scores, strict=True)
                if name == (possible[0] if len(possible) == 1 else said)
            ]
            pairs.append((found, [box for other, box in row if other == name]))
    return classes


def average_precision(rows, threshold):
    """COCO's of one class: the mean, over 101 recalls, of the best precision at that recall or a higher one.

    Args: rows: of each picture (found, expected): [(score, box)] and [box].
    """
    judged = [each for found, expected in rows for each in _judge(found, expected, threshold)]
    order = np.argsort([-score for score, _ in judged], kind="stable")
    hits = np.cumsum(np.array([is_hit for _, is_hit in judged], int)[order])
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    places = np.searchsorted(hits / sum(len(expected) for _, expected in rows), COCO_RECALLS, side="left")
    return float(np.append(precision, 0.0)[places].mean())


def _judge(found, expected, threshold):
    """(score, whether it is a hit) of a picture's boxes, best score first; each takes the nearest that is left."""
    free = dict(enumerate(expected))
    for score, box in sorted(found, key=lambda each: -each[0])[:COCO_MOST_BOXES]:
        best, place = max(((intersection_over_union(box, other), n) for n, other in free.items()), default=(0.0, None))
        yield score, best >= threshold
        if best >= threshold:
            del free[place]

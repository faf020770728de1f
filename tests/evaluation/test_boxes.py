"""Boxes: limits and values worked out by hand, all orders of small rows tried, and COCO's own program."""

import itertools
import random

import numpy as np
import pytest

from ivlkit.errors import DataError
from ivlkit.evaluation.boxes import (
    ap,
    ap50,
    best_total,
    grounding,
    intersection_over_union,
    iou,
    iou_at_50,
    parse_boxes,
)
from ivlkit.evaluation.confidence import ScoredReply, scored
from ivlkit.models.chat import Reply

LEFT, MIDDLE, RIGHT = "[0, 0, 300, 300]", "[350, 0, 650, 300]", "[700, 0, 1000, 300]"


class TestBoxes:
    @pytest.mark.parametrize(
        ("text", "boxes"),
        [
            ("<ref>cat</ref><box>[[100, 200, 300, 400]]</box>", [(100.0, 200.0, 300.0, 400.0)]),
            ("[100,200,300,400]", [(100.0, 200.0, 300.0, 400.0)]),
            ("<box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>", [(1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0)]),
            ("at [0.1, .25, 0.5, 1.] there", [(0.1, 0.25, 0.5, 1.0)]),
            ("[-5, 0, 10, 10]", [(-5.0, 0.0, 10.0, 10.0)]),
            ("[1, 2, 3]", []),
            ("[1, 2, 3, 4, 5]", []),
            ("[a, b, c, d]", []),
            ("[[100, 200, 300", []),
            ("", []),
        ],
    )
    def test_boxes_are_brackets_of_four_numbers(self, text, boxes):
        assert parse_boxes(text) == boxes

    @pytest.mark.parametrize(
        ("first", "second", "value"),
        [
            ((0, 0, 1, 1), (0, 0, 1, 1), 1.0),
            ((0, 0, 1, 1), (1, 0, 2, 1), 0.0),
            ((0, 0, 1, 1), (5, 5, 6, 6), 0.0),
            ((0, 0, 2, 1), (1, 0, 3, 1), 1 / 3),
            ((0, 0, 4, 4), (1, 1, 3, 3), 0.25),
            ((0, 0, 0, 0), (0, 0, 0, 0), 0.0),
            ((2, 2, 0, 0), (0, 0, 2, 2), 0.0),
        ],
    )
    def test_intersection_over_union(self, first, second, value):
        assert intersection_over_union(first, second) == pytest.approx(value)
        assert intersection_over_union(second, first) == pytest.approx(value)

    def test_half_is_enough(self):
        assert iou_at_50("[0, 0, 500, 1000]", "[0, 0, 1000, 1000]") == 1.0
        assert iou_at_50("[0, 0, 499, 1000]", "[0, 0, 1000, 1000]") == 0.0

    def test_fractions_are_scaled_to_thousandths(self):
        assert iou("[0.1, 0.2, 0.3, 0.4]", "<box>[[100, 200, 300, 400]]</box>") == pytest.approx(1.0)

    def test_a_truth_without_a_box_is_refused(self):
        with pytest.raises(DataError, match="the truth 'left' has no box"):
            iou_at_50("[1, 2, 3, 4]", "left")

    def test_the_whole_report_has_hits_mean_and_replies_without_a_box(self):
        found = grounding(["[0, 0, 10, 10]", "[0, 0, 10, 4]", "I see none"], ["[0, 0, 10, 10]"] * 3)
        assert found == {
            "rows": [1.0, 0.0, 0.0],
            "iou_at_50": pytest.approx(1 / 3),
            "mean_iou": pytest.approx(1.4 / 3),
            "without_box": pytest.approx(1 / 3),
        }


class TestSeveralBoxes:
    def test_one_of_three_found_is_a_third(self):
        truth = LEFT + MIDDLE + RIGHT
        assert iou_at_50(MIDDLE, truth) == iou(MIDDLE, truth) == pytest.approx(1 / 3)
        assert grounding([MIDDLE], [truth])["iou_at_50"] == pytest.approx(1 / 3)

    def test_a_wrong_box_too_many_counts(self):
        assert iou_at_50(f"[0, 0, 1, 9] {LEFT}", LEFT) == iou(f"[0, 0, 1, 9] {LEFT}", LEFT) == 0.5

    def test_a_box_said_twice_is_found_once(self):
        assert iou_at_50(LEFT + LEFT, LEFT + RIGHT) == 0.5

    @pytest.mark.parametrize("order", list(itertools.permutations([LEFT, MIDDLE, RIGHT])))
    def test_the_order_makes_no_difference(self, order):
        truth = f"<ref>cups</ref><box>[{LEFT}, {MIDDLE}, {RIGHT}]</box>"
        assert iou("".join(order), truth) == iou_at_50("".join(order), truth) == 1.0

    def test_the_best_match_of_all_is_taken_not_the_best_of_the_first(self):
        """Only crosswise do both overlap by half; straight on 0.9 and 0.46 are more in sum than 0.56 and 0.77."""
        truth = "[0, 0, 100, 100] [0, 0, 60, 100]"
        assert iou_at_50("[0, 0, 100, 90] [0, 0, 130, 100]", truth) == 1.0
        assert iou("[0, 0, 100, 90] [0, 0, 130, 100]", truth) == pytest.approx((0.9 + 60 / 130) / 2)

    def test_where_the_truth_names_several_things_a_box_counts_for_its_own(self):
        truth = f"<ref>cat</ref><box>[{LEFT}]</box> <ref>dog</ref><box>[{RIGHT}]</box>"
        assert iou_at_50(f"<ref>Dog</ref><box>[{RIGHT}]</box> <ref>cat</ref><box>[{LEFT}]</box>", truth) == 1.0
        assert iou_at_50(f"<ref>dog</ref><box>[{LEFT}]</box> <ref>cat</ref><box>[{RIGHT}]</box>", truth) == 0.0

    def test_a_name_may_have_an_angle_bracket(self):
        truth = f"<ref><5 mm</ref><box>[{LEFT}]</box> <ref>a < b</ref><box>[{RIGHT}]</box>"
        assert iou_at_50(truth, truth) == 1.0
        assert iou_at_50(f"<ref><5 mm</ref><box>[{RIGHT}]</box> <ref>a < b</ref><box>[{LEFT}]</box>", truth) == 0.0
        assert iou_at_50(f"<ref>cat <box>[{LEFT}]</box></ref>", f"<ref>cat</ref><box>[{LEFT}]</box>") == 1.0

    def test_one_name_may_be_said_otherwise(self):
        assert iou_at_50(f"<ref>the cat</ref><box>[{LEFT}]</box>", f"<ref>cat</ref><box>[{LEFT}]</box>") == 1.0

    def test_the_total_is_the_best_of_all_that_there_are(self):
        rng = np.random.default_rng(0)
        for _ in range(300):
            shape = rng.integers(1, 6, 2)
            weights = rng.integers(0, 10, shape) / 9 if rng.random() < 0.5 else rng.random(shape)
            wide = weights if shape[0] <= shape[1] else weights.T
            tried = itertools.permutations(range(wide.shape[1]), wide.shape[0])
            best = max(sum(wide[row, column] for row, column in enumerate(columns)) for columns in tried)
            assert best_total(weights) == pytest.approx(best)

    def test_two_hundred_boxes_are_matched(self):
        boxes = [[x, y, x + 40, y + 40] for x in range(0, 1000, 50) for y in range(0, 500, 50)]
        text, turned = ("".join(map(str, some)) for some in (boxes, boxes[::-1]))
        assert iou(turned, text) == 1.0


def drawn(seed, rows=40):
    """(replies, truths) of three classes: some rows empty, boxes that are nearly right, of a wrong class, too many."""
    rng = random.Random(seed)

    def text(boxes):
        return " ".join(f"<ref>{name}</ref><box>[{box}]</box>" for name, box in boxes)

    replies, truths = [], []
    for _ in range(rows):
        truth, found = [], []
        for _ in range(rng.randint(0, 4)):
            name, x, y = rng.choice("abc"), rng.randint(0, 700), rng.randint(0, 700)
            box = [x, y, x + rng.randint(130, 300), y + rng.randint(130, 300)]
            truth.append((name, box))
            moved = [value + rng.randint(-1, 1) * rng.randint(0, 60) for value in box]
            if rng.random() < 0.8:
                found.append((name if rng.random() < 0.8 else rng.choice("abc"), moved))
        for _ in range(rng.choice([0, 0, 1])):
            found.append((rng.choice("abc"), [10, 10, 200, rng.randint(100, 300)]))
        rng.shuffle(found)
        replies.append(ScoredReply(text(found), [rng.randint(1, 9) / 10 for _ in found]))
        truths.append(text(truth))
    return replies, truths


def named(text):
    """[(name, [x, y, width, height])] of what `drawn` writes."""
    names = [part[0] for part in text.split("<ref>")[1:]]
    boxes = [[x, y, right - x, bottom - y] for x, y, right, bottom in parse_boxes(text)]
    return list(zip(names, boxes, strict=True))


def by_pycocotools(replies, truths):
    """(AP, AP50) of pycocotools; a row whose truth has one class is asked for that class."""
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    truth, found = [], []
    for image, (reply, said) in enumerate(zip(replies, truths, strict=True), 1):
        classes = {name for name, _ in named(said)}
        for name, box in named(said):
            shape = {"bbox": box, "area": box[2] * box[3], "iscrowd": 0, "category_id": ord(name)}
            truth.append({"id": len(truth) + 1, "image_id": image} | shape)
        for (name, box), score in zip(named(reply), reply.box_scores, strict=True):
            of = min(classes) if len(classes) == 1 else name
            found.append({"image_id": image, "category_id": ord(of), "bbox": box, "score": score})
    api = coco.COCO()
    images, categories = [{"id": n} for n in range(1, len(truths) + 1)], [{"id": ord(name)} for name in "abc"]
    api.dataset = {"info": {}, "images": images, "categories": categories, "annotations": truth}
    api.createIndex()
    judge = cocoeval.COCOeval(api, api.loadRes(found), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return judge.stats[0], judge.stats[1]


class TestAveragePrecision:
    """Literal values are of pycocotools 2.0.11, as the last test computes them again where it is installed."""

    def test_it_equals_what_pycocotools_computed(self):
        found = ap(*drawn(0))
        assert (found["ap"], found["ap50"]) == pytest.approx((0.17747071935314576, 0.46309718043653053), abs=1e-9)
        assert ap50(*drawn(1))["ap50"] == pytest.approx(0.5285160146449427, abs=1e-9)
        assert found["scored"] == 1.0

    def test_boxes_that_tie_go_in_the_order_of_the_rows_as_in_pycocotools(self):
        replies, truths = drawn(0)
        assert ap(list(map(str, replies)), truths)["ap"] == pytest.approx(0.1818797352660891, abs=1e-9)
        assert ap50(list(map(str, replies)), truths)["scored"] == 0.0

    @pytest.mark.parametrize("seed", range(20))
    def test_it_equals_pycocotools_where_that_is_installed(self, seed):
        replies, truths = drawn(seed)
        tied = [ScoredReply(reply, [1.0] * len(reply.box_scores)) for reply in replies]
        for rows in (replies, tied):
            found = ap(rows, truths)
            assert (found["ap"], found["ap50"]) == pytest.approx(by_pycocotools(rows, truths), abs=1e-9)

    def test_all_found_is_1_and_nothing_found_is_0(self):
        assert ap([LEFT + RIGHT], [RIGHT + LEFT])["ap"] == pytest.approx(1.0)
        assert ap(["none"], [LEFT]) == {"rows": [0.0], "ap": 0.0, "ap50": 0.0, "without_box": 1.0, "scored": 1.0}

    def test_a_sure_wrong_box_costs_more_than_an_unsure_one(self):
        """One of one found: with the wrong box first the precision is 1 / 2 at every recall, else 1."""
        sure, unsure = (ScoredReply(RIGHT + LEFT, scores) for scores in ([0.9, 0.5], [0.5, 0.9]))
        assert ap50([sure], [LEFT])["ap50"] == 0.5 and ap50([unsure], [LEFT])["ap50"] == 1.0

    def test_a_box_where_there_is_nothing_counts_against_it(self):
        found = ap50([ScoredReply(RIGHT, [0.9]), ScoredReply(LEFT, [0.5])], ["There is none.", LEFT])
        assert (found["ap50"], found["rows"]) == (0.5, [0.0, 1.0])

    def test_truths_without_any_box_are_refused(self):
        with pytest.raises(DataError, match="no truth has a box"):
            ap50([LEFT], ["left"])

    def test_the_score_of_a_box_is_the_probability_of_its_own_tokens(self):
        text = "at [1, 2, 3, 4] and [5, 6, 7, 8]"
        tokens = [(3, 0.1), (10, 0.5), (15, 0.5), (20, 0.1), (len(text), 0.9)]
        assert scored(Reply(text, (), tokens=tuple(tokens))).box_scores == pytest.approx((0.25, 0.9))

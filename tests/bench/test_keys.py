"""Every key of label.js, in a plain page whose model object is a list of what was sent."""

import pytest
from page import PLAIN

TYPED = "7"


def saved(page, how="typed", reply=None):
    """Answer all that was sent as Python does."""
    for message in page.sent:
        if message["do"] == "answer":
            number = int(message["file"].split(".")[0])
            row = {"how": how, "values": message["values"]}
            page.tell(saved=message["id"], number=number, row=row, reply=reply)


class TestEnter:
    def test_saves_and_goes_on_with_the_focus_in_the_box(self, open_label):
        page = open_label()
        assert (page.at, page.has_focus, page.text("state")) == ("0.jpg", True, "typing here")
        page.type("17")
        page.press("Enter")
        assert page.answers == [("0.jpg", "typed", ["17"])]
        assert (page.at, page.typed, page.has_focus) == ("1.jpg", "", True)
        assert page.text("counted") == "1 of 6 labelled"

    def test_saves_nothing_where_nothing_is_typed(self, open_label):
        page = open_label()
        page.type("  ")
        page.press("Enter")
        assert page.answers == [] and page.at == "0.jpg"
        assert page.text("said").startswith("Nothing to save")

    def test_held_accepts_once(self, open_label):
        page = open_label(suggestions={number: [str(number)] for number in range(6)})
        page.page.keyboard.down("Enter")
        for _ in range(5):
            page.page.keyboard.down("Enter")  # of a key that is down: a repeat
        page.page.keyboard.up("Enter")
        assert page.answers == [("0.jpg", "accepted", ["0"])]
        page.press("Enter")
        assert page.at == "2.jpg"

    def test_inside_an_input_method_is_its_own(self, open_label, browser):
        page = open_label()
        session = page.page.context.new_cdp_session(page.page)
        session.send("Input.imeSetComposition", {"text": "に", "selectionStart": 1, "selectionEnd": 1})
        page.page.evaluate(
            """() => { const init = { key: "Enter", keyCode: 229, bubbles: true, cancelable: true };
            const box = document.activeElement;
            box.dispatchEvent(new KeyboardEvent("keydown", { ...init, isComposing: true }));
            box.dispatchEvent(new KeyboardEvent("keydown", init)); }"""
        )
        assert page.answers == [] and page.at == "0.jpg"
        session.send("Input.insertText", {"text": "日本"})
        page.press("Enter")
        assert page.answers == [("0.jpg", "typed", ["日本"])]

    def test_with_shift_begins_a_line(self, open_label):
        page = open_label()
        page.type("one")
        page.press("Shift+Enter")
        page.type("two")
        page.press("Enter")
        assert page.answers == [("0.jpg", "typed", ["one\ntwo"])]

    def test_waits_for_the_picture(self, open_label):
        page = open_label(missing=[2])
        page.press("ArrowDown", "ArrowDown")
        assert page.at == "2.jpg"
        page.type("x")
        page.press("Enter")
        assert [how for _, how, _ in page.answers] == ["skipped", "skipped"]
        assert page.text("said") == "The picture is on its way."


class TestArrows:
    def test_down_skips_and_up_comes_back(self, open_label):
        page = open_label()
        page.type("17")
        page.press("Enter", "ArrowDown")
        assert page.at == "2.jpg" and page.answers[-1] == ("1.jpg", "skipped", None)
        page.press("ArrowUp")
        assert page.at == "1.jpg"
        page.press("ArrowUp")
        assert (page.at, page.typed, page.selected) == ("0.jpg", "17", "17")

    def test_what_was_saved_is_selected_so_that_typing_corrects_it(self, open_label):
        page = open_label()
        page.type("17")
        page.press("Enter", "ArrowUp")
        page.type("18")
        page.press("Enter")
        assert [(one[0], one[2]) for one in page.answers] == [("0.jpg", ["17"]), ("0.jpg", ["18"])]

    def test_an_unchanged_answer_is_not_sent_twice(self, open_label):
        page = open_label()
        page.type("17")
        page.press("Enter", "ArrowUp", "Enter")
        assert len(page.answers) == 1 and page.at == "1.jpg"

    def test_skipped_pictures_come_again_after_the_last(self, open_label):
        page = open_label(rows=3)
        page.press("ArrowDown")
        for _ in range(2):
            page.type(TYPED)
            page.press("Enter")
        assert page.at == "0.jpg"
        page.type(TYPED)
        page.press("Enter")
        assert page.text("said").startswith("All are labelled") and page.text("counted") == "3 of 3 labelled"

    def test_down_on_the_only_open_one_stays_and_says_so(self, open_label):
        page = open_label(rows=1)
        page.press("ArrowDown")
        assert page.at == "0.jpg" and page.text("said") == "No other is left."

    def test_move_inside_a_text_of_several_lines(self, open_label):
        page = open_label()
        page.type("one")
        page.press("Shift+Enter")
        page.type("two")
        page.press("ArrowUp")
        assert page.answers == [] and page.at == "0.jpg"


class TestSuggestions:
    def test_is_filled_in_and_enter_accepts_it(self, open_label):
        page = open_label(suggestions={0: ["17"]})
        assert (page.typed, page.text("said")) == ("17", "Suggested.")
        page.press("Enter")
        assert page.answers == [("0.jpg", "accepted", ["17"])]

    def test_it_is_called_one_as_long_as_it_stands_in_the_box(self, open_label):
        page = open_label(suggestions={0: ["17"]})
        page.type("18")
        assert (page.typed, page.text("said")) == ("18", "")
        page.press("Escape", "Escape")
        assert (page.typed, page.text("said")) == ("17", "Suggested.")

    def test_a_choice_that_is_left_for_another_is_none(self, open_label):
        page = open_label(choices=["cat", "dog"], suggestions={0: ["dog"]})
        assert page.text("said") == "Suggested."
        page.press("ArrowLeft")
        assert page.text("said") == ""
        page.press("ArrowRight")
        assert page.text("said") == "Suggested."

    def test_escape_empties_and_once_more_brings_it_back(self, open_label):
        page = open_label(suggestions={0: ["17"]})
        page.press("Escape")
        assert (page.typed, page.has_focus) == ("", True)
        page.press("Escape")
        assert page.typed == "17"

    def test_a_late_one_is_filled_into_an_empty_box(self, open_label):
        page = open_label()
        page.tell(suggest=0, suggestion=["17"], confidence=0.931)
        assert (page.typed, page.text("said")) == ("17", "Suggested (93 % sure).")

    def test_one_that_is_quicker_than_its_picture_waits_for_it(self, open_label):
        page = open_label(missing=[1])
        page.tell(suggest=1, suggestion=["17"], confidence=0.5)
        page.press("ArrowDown")
        page.page.evaluate("() => window.draw(1)")
        assert page.typed == "17"
        page.press("Enter")
        assert page.answers[-1] == ("1.jpg", "accepted", ["17"])

    def test_a_late_one_never_takes_the_place_of_what_was_typed(self, open_label):
        page = open_label()
        page.type("1")
        page.tell(suggest=0, suggestion=["17"])
        page.type("8")
        page.press("Enter")
        assert page.answers == [("0.jpg", "typed", ["18"])]

    def test_a_late_one_of_a_picture_that_was_emptied_stays_away(self, open_label):
        page = open_label()
        page.type("1")
        page.press("Backspace")
        page.tell(suggest=0, suggestion=["17"])
        assert page.typed == ""

    def test_a_late_one_of_an_answered_picture_changes_nothing(self, open_label):
        page = open_label()
        page.type("18")
        page.press("Enter", "ArrowUp")
        page.tell(suggest=0, suggestion=["17"])
        assert page.typed == "18"

    def test_the_hidden_reply_is_told_after_the_answer(self, open_label):
        page = open_label()
        page.type("18")
        page.press("Enter")
        saved(page, reply="17")
        assert page.text("said") == "The reply to 0.jpg: 17"


class TestControl:
    def test_z_takes_the_last_answer_back(self, open_label):
        page = open_label()
        page.type("17")
        page.press("Enter", "Control+z")
        assert (page.at, page.typed, page.has_focus) == ("0.jpg", "", True)
        assert page.answers[-1] == ("0.jpg", "undone", None)
        assert page.text("counted") == "0 of 6 labelled"

    def test_z_takes_it_back_where_no_picture_follows(self, open_label):
        page = open_label(rows=1)
        page.type("17")
        page.press("Enter", "Control+z")
        assert page.answers[-1] == ("0.jpg", "undone", None) and page.typed == ""

    def test_z_gives_back_the_answer_before_a_correction(self, open_label):
        page = open_label()
        page.type("17")
        page.press("Enter")
        saved(page)
        page.press("ArrowUp")
        page.type("18")
        page.press("Enter", "Control+z")
        assert page.answers[-1] == ("0.jpg", "typed", ["17"]) and page.typed == "17"

    def test_z_after_going_back_keeps_the_way_that_was_gone(self, open_label):
        page = open_label()
        page.press("ArrowDown")
        page.type("17")
        page.press("Enter", "ArrowUp", "ArrowUp", "Control+z")
        assert page.at == "1.jpg" and page.answers[-1][:2] == ("1.jpg", "undone")
        page.press("Control+z")
        assert page.at == "1.jpg" and page.text("said") == "Nothing to take back."

    def test_z_while_typing_is_the_boxs_own(self, open_label):
        page = open_label()
        page.type("17")
        page.press("Enter")
        page.type("2")
        page.press("Control+z")
        assert (page.at, page.typed, len(page.answers)) == ("1.jpg", "", 1)

    def test_d_calls_the_picture_unusable(self, open_label):
        page = open_label()
        page.press("Control+d")
        assert page.answers == [("0.jpg", "unusable", None)] and page.at == "1.jpg"
        page.press("ArrowUp")
        assert page.text("said") == "Called unusable."
        assert page.text("counted") == "0 of 6 labelled"


class TestPicture:
    def width(self, page):
        return page.box(".stage img")["width"]

    def test_plus_with_alt_zooms_into_the_original(self, open_label):
        page = open_label()
        before = self.width(page)
        page.press("Alt+Equal", "Alt+Equal")
        assert self.width(page) == pytest.approx(before * 1.25**2)
        assert [one for one in page.sent if one["do"] == "original"] == [{"do": "original", "number": 0}]
        left = page.box(".stage img")["x"]
        page.press("Alt+ArrowRight")
        assert page.box(".stage img")["x"] == pytest.approx(left - 40)
        page.press("Alt+Minus", "Alt+Minus")
        assert self.width(page) == pytest.approx(before)
        page.type("+1-2")
        assert page.typed == "+1-2"

    def test_the_wheel_zooms_where_it_points_and_the_page_stays(self, open_label):
        page = open_label()
        box = page.box(".stage img")
        spot = box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"]
        page.page.mouse.move(*spot)
        page.page.mouse.wheel(0, -100)
        page.page.wait_for_function(f"() => document.querySelector('.stage img').clientWidth > {box['width'] * 1.1}")
        zoomed = page.box(".stage img")
        assert (spot[0] - zoomed["x"]) / zoomed["width"] == pytest.approx(0.25, abs=0.01)
        assert page.has_focus

    def test_the_original_takes_the_place_of_the_small_one(self, open_label):
        page = open_label()
        page.press("Alt+Equal")
        before = self.width(page)
        page.page.evaluate(
            """async () => { const size = { width: 4000, height: 3000 };
            const canvas = Object.assign(document.createElement("canvas"), size);
            const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg"));
            await window.tell({ original: 0 }, [await blob.arrayBuffer()]); }"""
        )
        assert page.page.evaluate("() => document.querySelector('.stage img').naturalWidth") == 4000
        assert self.width(page) == pytest.approx(before)

    def test_t_with_alt_shows_the_tiles_and_the_picture_again(self, open_label):
        page = open_label(tiles=True)
        page.press("Alt+t")
        assert page.sent[-1] == {"do": "tiles", "number": 0}
        page.page.evaluate(
            """async () => { const canvas = document.createElement("canvas");
            const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg"));
            await window.tell({ tiles: 0 }, [await blob.arrayBuffer()]); }"""
        )
        assert page.page.locator(".stage img.over").count() == 1
        page.press("Alt+t")
        assert page.page.locator(".stage img.over").count() == 0
        page.type("t")
        assert page.typed == "t"

    def test_one_that_cannot_be_opened_says_so_as_text(self, open_label):
        page = open_label()
        page.tell(picture=0, error="0.jpg: <b onclick=alert(1)>no picture</b>")
        assert page.text("stage") == "0.jpg: <b onclick=alert(1)>no picture</b>"
        page.press("Control+d")
        assert page.at == "1.jpg"

    def test_five_are_asked_for_ahead_and_none_twice(self, open_label):
        page = open_label(rows=30)
        for _ in range(20):
            page.page.wait_for_selector(".stage img")
            page.type(TYPED)
            page.press("Enter")
        wanted = [number for one in page.sent if one["do"] == "want" for number in one["numbers"]]
        assert wanted[:6] == [0, 1, 2, 3, 4, 5] and page.at == "20.jpg"
        assert len(wanted) == len(set(wanted))


class TestChoices:
    def test_a_digit_chooses_and_goes_on(self, open_label):
        page = open_label(choices=["cat", "dog", "<b>horse</b>"])
        assert page.has_focus and page.text("state") == "keys are heard here"
        page.press("3")
        assert page.answers == [("0.jpg", "typed", ["<b>horse</b>"])]
        assert (page.at, page.has_focus) == ("1.jpg", True)

    def test_a_digit_without_a_choice_does_nothing(self, open_label):
        page = open_label(choices=["cat", "dog"])
        page.press("9", "0")
        assert page.answers == []

    def test_enter_accepts_the_suggested_one(self, open_label):
        page = open_label(choices=["cat", "dog"], suggestions={0: ["dog"]})
        page.press("Enter")
        assert page.answers == [("0.jpg", "accepted", ["dog"])]

    def test_arrows_reach_those_beyond_nine(self, open_label):
        page = open_label(choices=[f"kind {number}" for number in range(12)])
        page.press("ArrowLeft", "ArrowLeft", "Enter")
        assert page.answers == [("0.jpg", "typed", ["kind 10"])]

    def test_a_click_chooses_and_keeps_the_focus(self, open_label):
        page = open_label(choices=["cat", "dog"])
        page.page.locator("button:has-text('dog')").click()
        assert page.answers == [("0.jpg", "typed", ["dog"])] and page.has_focus


class TestColumns:
    def test_tab_goes_to_the_next_and_enter_saves_all(self, open_label):
        page = open_label(columns=["make", "colour"])
        page.type("Audi")
        page.press("Tab")
        page.type("red")
        page.press("Enter")
        assert page.answers == [("0.jpg", "typed", ["Audi", "red"])]
        page.type("BMW")
        assert page.typed == "BMW"
        page.tell(suggest=2, suggestion=["VW", "blue"])
        page.press("Enter")
        page.type("Fiat")
        assert page.typed == "Fiat"  # the first column keeps the focus


class TestBoxes:
    def drag(self, page, x1, y1, x2, y2):
        box = page.box(".layer")
        page.page.mouse.move(box["x"] + x1 * box["width"], box["y"] + y1 * box["height"])
        page.page.mouse.down()
        page.page.mouse.move(box["x"] + x2 * box["width"], box["y"] + y2 * box["height"], steps=3)
        page.page.mouse.up()

    def test_is_drawn_named_and_saved(self, open_label):
        page = open_label(boxes=True)
        self.drag(page, 0.1, 0.2, 0.5, 0.8)
        assert page.has_focus
        page.type("cat")
        page.press("Enter")
        assert page.answers == []
        self.drag(page, 0.9, 0.9, 0.6, 0.5)
        assert page.selected == "cat"  # the word before, to be accepted or typed over
        page.type("dog")
        page.press("Enter", "Enter")
        ((_, how, boxes),) = page.answers
        assert (how, [word for word, *_ in boxes]) == ("typed", ["cat", "dog"])
        assert boxes[0][1:] == pytest.approx([100, 200, 500, 800], abs=2)
        assert boxes[1][1:] == pytest.approx([600, 500, 900, 900], abs=2)
        assert page.at == "1.jpg"

    def test_is_right_under_the_zoom(self, open_label):
        page = open_label(boxes=True)
        page.press("Alt+Equal", "Alt+Equal")
        self.drag(page, 0.4, 0.4, 0.6, 0.6)
        page.type("cat")
        page.press("Enter", "Enter")
        assert page.answers[0][2][0][1:] == pytest.approx([400, 400, 600, 600], abs=2)

    def test_by_keys_alone(self, open_label):
        page = open_label(boxes=True)
        page.press("Alt+b", "Alt+ArrowLeft", "Alt+ArrowUp", "Alt+Shift+ArrowRight", "Alt+Shift+ArrowDown")
        page.type("cat")
        page.press("Enter", "Enter")
        assert page.answers[0][2] == [["cat", 390, 390, 600, 600]]

    def test_the_last_is_deleted_and_another_is_picked(self, open_label):
        page = open_label(boxes=True)
        for word in ("cat", "dog", "cow"):
            page.press("Alt+b")
            page.type(word)
            page.press("Enter")
        page.press("Alt+Backspace", "Alt+n")
        assert page.selected == "cat"
        page.press("Alt+Backspace", "Enter")
        assert [word for word, *_ in page.answers[0][2]] == ["dog"]

    def test_a_picture_without_any_is_answered_in_words(self, open_label):
        page = open_label(boxes=True)
        page.type("none")
        page.press("Enter")
        assert page.answers == [("0.jpg", "typed", ["none"])]

    def test_digits_name_them_where_there_are_choices(self, open_label):
        page = open_label(boxes=True, choices=["cat", "dog"])
        page.press("Alt+b", "2", "Enter")
        assert page.answers[0][2] == [["dog", 400, 400, 600, 600]]

    def test_suggested_ones_are_drawn(self, open_label):
        page = open_label(boxes=True, suggestions={0: [["<i>cat", 100, 100, 500, 500]]})
        assert page.page.locator(".layer .box").inner_text() == "<i>cat"
        page.press("Enter")
        assert page.answers == [("0.jpg", "accepted", [["<i>cat", 100, 100, 500, 500]])]


class TestKernel:
    def test_what_a_busy_one_has_not_saved_is_counted(self, open_label):
        page = open_label()
        for _ in range(3):
            page.type(TYPED)
            page.press("Enter")
        page.page.wait_for_selector("text=3 not saved yet")
        saved(page)
        page.page.wait_for_selector("text=not saved yet", state="detached")

    def test_a_dead_one_stops_the_input_and_nothing_is_lost(self, open_label):
        page = open_label(beats=False)
        page.tell(beat=True)
        page.type("17")
        page.press("Enter")
        page.page.wait_for_selector("text=stopped", timeout=2_500)
        page.type("18")
        page.press("Enter", "ArrowDown", "Control+d")
        assert (page.typed, len(page.answers), page.at) == ("", 1, "1.jpg")
        assert page.text("queued") == "1 not saved yet"
        page.start(6, {}, True, PLAIN)
        assert page.answers == [("0.jpg", "typed", ["17"])]
        assert page.at == "1.jpg"

    def test_one_that_comes_back_gets_what_it_missed(self, open_label):
        page = open_label(beats=False)
        page.type("17")
        page.press("Enter")
        page.page.wait_for_selector("text=stopped", timeout=2_500)
        page.tell(beat=True)
        assert page.answers == [("0.jpg", "typed", ["17"])] * 2
        page.type("18")
        assert page.typed == "18"

    def test_a_refusal_stops_with_its_reason(self, open_label):
        page = open_label()
        page.tell(stop="labels.csv: another program changed it")
        assert page.text("said") == "labels.csv: another program changed it"
        page.type("17")
        assert page.typed == ""


class TestFocus:
    def test_elsewhere_the_bar_says_so_and_a_click_brings_it_back(self, open_label):
        page = open_label()
        page.page.locator("#elsewhere").focus()
        page.page.wait_for_selector("text=click to type")
        page.page.locator(".ivl-label .stage").click()
        assert page.has_focus
        page.page.wait_for_selector("text=typing here")

    def test_a_late_suggestion_does_not_take_it_from_another_cell(self, open_label):
        page = open_label()
        page.page.locator("#elsewhere").focus()
        page.tell(suggest=0, suggestion=["17"])
        assert page.typed == "17" and page.page.evaluate("() => document.activeElement.id") == "elsewhere"

    def test_no_key_reaches_the_notebook(self, open_label):
        page = open_label()
        hear = "document.body.addEventListener('keydown', () => window.heard++)"
        page.page.evaluate(f"() => {{ window.heard = 0; {hear} }}")
        page.type("00")
        page.press("Enter", "Escape", "ArrowDown")
        assert page.page.evaluate("() => window.heard") == 0
        assert page.page.locator("[data-lm-suppress-shortcuts] textarea").count() == 1

    def test_words_from_right_to_left_begin_at_the_right(self, open_label):
        page = open_label(rows=[{"file": "0.jpg", "question": "מה כתוב?", "values": None, "how": None}])
        page.type("שלום")
        direction = "(each) => getComputedStyle(each).direction"
        assert page.page.locator("textarea").evaluate(direction) == "rtl"
        assert page.page.locator("label span").evaluate(direction) == "rtl"


def test_it_goes_on_at_the_row_that_is_named(open_label):
    rows = [{"file": f"{n}.jpg", "question": "What?", "values": ["1"], "how": "typed"} for n in range(3)]
    rows += [{"file": "3.jpg", "question": "What?", "values": None, "how": None}]
    page = open_label(rows=rows, start=3)
    assert (page.at, page.text("counted")) == ("3.jpg", "3 of 4 labelled")
    page.press("ArrowUp")
    assert (page.at, page.typed) == ("2.jpg", "1")

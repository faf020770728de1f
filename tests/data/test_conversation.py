"""Templates written out literally: what the released models read, and which characters of it are answers."""

import pytest

from ivlkit.data.rows.conversation import TEMPLATES, render
from ivlkit.data.rows.records import Turn
from ivlkit.errors import DataError

INTERNLM2, PHI3 = TEMPLATES["internlm2-chat"], TEMPLATES["phi3-chat"]
TURNS = (Turn("user", "Hi"), Turn("assistant", "Yes"), Turn("user", "Why?"), Turn("assistant", "So"))


def answers(rendered):
    return [rendered.text[start:end] for start, end in rendered.answers]


def test_internlm2_conversation():
    assert render(TURNS, INTERNLM2).text == (
        "<|im_start|>system\nYou are an AI assistant whose name is InternLM (书生·浦语).<|im_end|>"
        "<|im_start|>user\nHi<|im_end|><|im_start|>assistant\nYes<|im_end|>"
        "<|im_start|>user\nWhy?<|im_end|><|im_start|>assistant\nSo<|im_end|>"
    )


def test_phi3_conversation():
    assert render(TURNS, PHI3).text == (
        "<|system|>\nYou are an AI assistant whose name is Phi-3.<|end|>"
        "<|user|>\nHi<|end|><|assistant|>\nYes<|end|>"
        "<|user|>\nWhy?<|end|><|assistant|>\nSo<|end|>"
    )


@pytest.mark.parametrize(("template", "end"), [(INTERNLM2, "<|im_end|>"), (PHI3, "<|end|>")])
def test_every_answer_is_supervised_with_its_closing_token(template, end):
    assert answers(render(TURNS, template)) == ["Yes" + end, "So" + end]


@pytest.mark.parametrize("template", [INTERNLM2, PHI3])
def test_a_prompt_ends_with_the_opened_answer(template):
    rendered = render(TURNS[:3], template)
    assert rendered.text.endswith("Why?" + template.end + template.assistant_prefix)
    assert answers(rendered) == ["Yes" + template.end]


def test_a_picture_is_its_context_tokens_between_two_brackets():
    text = render((Turn("user", "<image>\nQ"),), INTERNLM2, num_tiles=[2], num_image_token=3, system_message="S").text
    assert text == (
        "<|im_start|>system\nS<|im_end|><|im_start|>user\n"
        "<img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img>\nQ<|im_end|>"
        "<|im_start|>assistant\n"
    )


def test_thirteen_tiles_are_3328_context_tokens():
    text = render((Turn("user", "<image>"),), PHI3, num_tiles=[13]).text
    assert text.count("<IMG_CONTEXT>") == 3328
    assert text.count("<img>") == text.count("</img>") == 1


def test_pictures_are_placed_in_order_over_turns():
    turns = (Turn("user", "a <image> b <image>"), Turn("assistant", "<image>"), Turn("user", "c <image>"))
    text = render(turns, INTERNLM2, num_tiles=[1, 2, 3], num_image_token=1, system_message="").text
    context = "<IMG_CONTEXT>"
    assert text == (
        "<|im_start|>system\n<|im_end|>"
        f"<|im_start|>user\na <img>{context}</img> b <img>{context * 2}</img><|im_end|>"
        "<|im_start|>assistant\n<image><|im_end|>"
        f"<|im_start|>user\nc <img>{context * 3}</img><|im_end|><|im_start|>assistant\n"
    )


def test_spans_are_right_behind_a_picture():
    turns = (Turn("user", "<image>\nQ"), Turn("assistant", "A"), Turn("user", "R"), Turn("assistant", "BC"))
    assert answers(render(turns, PHI3, num_tiles=[7])) == ["A<|end|>", "BC<|end|>"]


def test_without_pictures_a_placeholder_stays_text():
    assert "user\nWhat is <image>?<|im_end|>" in render((Turn("user", "What is <image>?"),), INTERNLM2).text


def test_a_system_turn_replaces_the_prompt_of_the_model():
    turns = (Turn("system", " Be brief. "), *TURNS[:2])
    assert render(turns, PHI3, system_message="not this").text == (
        "<|system|>\nBe brief.<|end|><|user|>\nHi<|end|><|assistant|>\nYes<|end|>"
    )


def test_outer_whitespace_of_answers_is_stripped_and_counted():
    turns = (Turn("user", "Q"), Turn("assistant", " A\n"), Turn("user", "R"), Turn("assistant", "B"))
    rendered = render(turns, PHI3)
    assert answers(rendered) == ["A<|end|>", "B<|end|>"]
    assert rendered.stripped == 1


def test_questions_are_stripped_where_the_reference_did():
    turns = (Turn("user", " Q \n"),)
    assert "<|im_start|>user\nQ<|im_end|>" in render(turns, INTERNLM2).text
    assert "<|user|>\n Q \n<|end|>" in render(turns, PHI3).text


def test_an_empty_answer_is_its_closing_token():
    assert answers(render((Turn("user", "Q"), Turn("assistant", "")), INTERNLM2)) == ["<|im_end|>"]


@pytest.mark.parametrize(
    ("text", "num_tiles", "message"),
    [("<image>", [1, 1], "2 pictures but 1 <image>"), ("<image> <image>", [1], "more <image> in user turns than")],
)
def test_placeholders_that_do_not_match_the_pictures_are_refused(text, num_tiles, message):
    with pytest.raises(DataError, match=message):
        render((Turn("user", text),), INTERNLM2, num_tiles=num_tiles)

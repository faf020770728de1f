"""Replies: the reference's own, the same one by one and in batches, earlier pictures remembered."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import GenerationConfig

from ivlkit.data.rows.records import Turn
from ivlkit.errors import DataError
from ivlkit.models import chat, decoding
from ivlkit.models.chat import _windows, alike_batches, iterate_replies, reply_batch
from ivlkit.models.load import load

NEW = {"max_new_tokens": 8}


@pytest.fixture
def tiles_seen(tiny_vlm, monkeypatch):
    """A list that gets the number of tiles of every call of the vision tower."""
    seen, encode_tiles = [], tiny_vlm.model.encode_tiles
    monkeypatch.setattr(tiny_vlm.model, "encode_tiles", lambda pixels: seen.append(len(pixels)) or encode_tiles(pixels))
    return seen


@pytest.fixture
def say(tiny_vlm, monkeypatch):
    """`say("text")`: the model's next reply has the ids of this text."""

    def make(text):
        ids = tiny_vlm.tokenizer(text)["input_ids"][1:]
        monkeypatch.setattr(tiny_vlm.model, "generate", lambda **_: torch.tensor([ids]))

    return make


# the reference -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["26b", "2b", "4b"])
def released(request, reference):
    """(model, its replies, a picture whose only tiles are the reference's two)."""
    folder = reference / "checkpoints" / f"internvl-{request.param}"
    vlm = load(folder)
    vlm.processor = replace(vlm.processor, use_thumbnail=False)
    tiles = load_file(folder / "reference.safetensors")["tiles_uint8"].permute(0, 2, 3, 1).numpy()
    picture = Image.fromarray(np.concatenate(list(tiles), axis=1))  # 896 × 448: a grid of 2 × 1, nothing resized
    return vlm, json.loads((folder / "reference_chat.json").read_text()), picture


def test_replies_are_those_of_the_reference(released):
    vlm, expected, picture = released
    options = {"max_new_tokens": expected["max_new_tokens"]}
    assert vlm.processor.system_message == expected["system_message"]
    first = vlm.chat(expected["question"], picture, **options)
    assert (first.num_tiles, first.text) == ((2,), expected["response"])
    assert vlm.chat(expected["second_question"], history=first, **options).text == expected["second_response"]
    assert vlm.chat(expected["text_question"], **options).text == expected["text_response"]


def test_streamed_and_batched_replies_of_released_models_are_the_same(released):
    vlm, expected, picture = released
    options = {"max_new_tokens": expected["max_new_tokens"]}
    stream = vlm.chat(expected["question"], picture, stream=True, **options)
    assert "".join(stream) == stream.reply.text == expected["response"]
    replies = vlm.chat_batch([expected["text_question"], expected["question"]], [None, picture], **options)
    assert [reply.text for reply in replies] == [expected["text_response"], expected["response"]]


@pytest.fixture(scope="module")
def phi3(reference):
    return load(reference / "checkpoints" / "internvl-4b")


def greedy_without_cache(vlm, question, count):
    """Every token from a whole forward pass: what the rope factors of that length give."""
    text = vlm.processor.template
    prompt = (
        f"{text.system_prefix}{vlm.processor.system_message}{text.end}{text.user_prefix}{question}{text.end}"
        f"{text.assistant_prefix}"
    )
    ids = vlm.tokenizer(prompt)["input_ids"]
    length = len(ids)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(vlm.model(input_ids=torch.tensor([ids]), logits_to_keep=1).logits[0, -1].argmax().item())
    return length, vlm.tokenizer.decode(ids[length:]).strip()


def test_a_reply_of_phi3_that_crosses_4096_tokens_is_what_no_cache_gives(phi3):
    question = "What is this? " * 1018 + "Why " * 2  # a cache with short factors gives another third token here
    length, expected = greedy_without_cache(phi3, question, 4)
    assert length == 4095
    assert phi3.chat(question, max_new_tokens=4).text == expected


def test_phi3_batches_of_short_and_long_contexts_are_as_one_by_one(phi3):
    questions = ["What is this? " * count + "Why " * whys for count, whys in ((1030, 0), (3, 0), (1018, 2), (1018, 1))]
    alone = [phi3.chat(question, max_new_tokens=3).text for question in questions]
    assert [reply.text for reply in phi3.chat_batch(questions, max_new_tokens=3)] == alone


def test_no_batch_mixes_short_and_long_contexts():
    assert alike_batches([5000, 4096, 10, 4097, 4095], 16, 4096) == [[2, 4, 1], [3, 0]]
    assert alike_batches([5000, 4096, 10, 4097, 4095], 2, 4096) == [[2, 4], [1], [3, 0]]
    assert alike_batches([3, 1, 2], 16, float("inf")) == [[1, 2, 0]]
    assert alike_batches([], 16, 4096) == []


# one question --------------------------------------------------------------------------------------------------------


def test_pictures_without_placeholder_come_first(tiny_vlm, draw_picture):
    picture = draw_picture()
    assert tiny_vlm.chat("Q", picture, **NEW).turns[0] == Turn("user", "<image>\nQ")
    assert tiny_vlm.chat("Q", [picture] * 2, **NEW).turns[0].text == "Image-1: <image>\nImage-2: <image>\nQ"
    assert tiny_vlm.chat("a <image> b", picture, **NEW).turns[0].text == "a <image> b"


def test_a_reply_remembers_the_conversation(tiny_vlm, draw_picture):
    reply = tiny_vlm.chat("Q", draw_picture(), system_message="Be brief.", **NEW)
    assert [turn.role for turn in reply.turns] == ["system", "user", "assistant"]
    assert reply.turns[-1].text == reply.text == str(reply)
    assert reply.num_tiles == (3,)
    assert reply.features.shape == (3, 16, 32)


def test_a_conversation_keeps_the_system_message_that_it_began_with(tiny_vlm):
    brief = tiny_vlm.chat("Q", system_message="Be brief.", **NEW)
    again = tiny_vlm.chat("Q", history=brief, system_message="Be brief.", **NEW)
    assert [turn.role for turn in again.turns] == ["system", "user", "assistant", "user", "assistant"]
    for history in (brief, tiny_vlm.chat("Q", **NEW)):
        with pytest.raises(DataError, match="'Be long.' beside a history that began with another or none"):
            tiny_vlm.chat("Q", history=history, system_message="Be long.", **NEW)


def test_pictures_come_as_path_array_or_image(tiny_vlm, draw_picture, tmp_path):
    picture = draw_picture()
    picture.save(tmp_path / "a.png")
    replies = [tiny_vlm.chat("Q", image, **NEW).text for image in (picture, np.asarray(picture), tmp_path / "a.png")]
    assert replies[0] == replies[1] == replies[2]


def test_the_budget_of_tiles_can_be_changed(tiny_vlm, draw_picture):
    assert tiny_vlm.chat("Q", draw_picture(640, 480), **NEW).num_tiles == (13,)
    assert tiny_vlm.chat("Q", draw_picture(640, 480), max_tiles=1, **NEW).num_tiles == (1,)
    assert tiny_vlm.chat("Q", [draw_picture(640, 480)] * 2, **NEW).num_tiles == (7, 7)


def test_a_greedy_reply_is_the_same_every_time(tiny_vlm, draw_picture):
    assert tiny_vlm.chat("Q", draw_picture(), **NEW) == tiny_vlm.chat("Q", draw_picture(), **NEW)


def test_a_reply_has_at_most_the_tokens_asked_for(tiny_vlm):
    (reply,) = tiny_vlm.chat_batch(["Hello"], max_new_tokens=3, probabilities=True)
    assert len(reply.tokens) <= 3


def test_a_reply_ends_where_time_is_up_or_a_stop_string_comes(tiny_vlm):
    options = {"max_new_tokens": 8, "min_new_tokens": 8}
    (whole,) = tiny_vlm.chat_batch(["Hello"], probabilities=True, **options)
    for limit in ({"max_time": 1e-6}, {"stop_strings": [whole.text[0]]}):
        (reply,) = tiny_vlm.chat_batch(["Hello"], probabilities=True, **options, **limit)
        assert (len(reply.tokens), reply.is_ended) == (1, False)


@pytest.mark.parametrize(
    ("question", "pictures", "message"),
    [
        ("<image> <image>", 1, '1 pictures but 2 "<image>" in the question; expected one for each'),
        ("<image>", 2, '2 pictures but 1 "<image>" in the question'),
        ("<image> What?", 0, '0 pictures but 1 "<image>" in the question'),
    ],
)
def test_placeholders_that_do_not_match_are_refused(tiny_vlm, draw_picture, question, pictures, message):
    with pytest.raises(DataError, match=message):
        tiny_vlm.chat(question, [draw_picture()] * pictures, **NEW)


def test_a_missing_picture_is_refused(tiny_vlm, tmp_path):
    with pytest.raises(DataError, match="chat: picture .*gone.png does not exist"):
        tiny_vlm.chat("Q", tmp_path / "gone.png", **NEW)


@pytest.mark.parametrize("token", ["<IMG_CONTEXT>", "<img>", "</img>"])
def test_typed_image_tokens_are_refused(tiny_vlm, token):
    with pytest.raises(DataError, match=f"{token}"):
        tiny_vlm.chat(f"What is {token}?", **NEW)


# what is kept of a reply ---------------------------------------------------------------------------------------------


def test_marks_of_boxes_stay_in_the_text(tiny_vlm, say):
    say("<ref>cat</ref><box>[[1, 2, 3, 4]]</box><|im_end|>")
    assert tiny_vlm.chat("Q").text == "<ref>cat</ref><box>[[1, 2, 3, 4]]</box>"


def test_a_reply_ends_at_the_closing_token_and_has_no_special_tokens(tiny_vlm, say):
    say(" a</s> b <|im_end|> never said")
    assert tiny_vlm.chat("Q").text == "a b"


# history -------------------------------------------------------------------------------------------------------------


def test_earlier_pictures_are_not_encoded_again(tiny_vlm, draw_picture, tiles_seen):
    first = tiny_vlm.chat("Q", draw_picture(), **NEW)
    second = tiny_vlm.chat("And now?", history=first, **NEW)
    assert tiles_seen == [3]
    third = tiny_vlm.chat("And here?", draw_picture(112, 112, seed=2), history=second, **NEW)
    assert tiles_seen == [3, 1]
    assert third.num_tiles == (3, 1)
    assert torch.equal(third.features[:3], first.features)


def test_going_on_is_the_same_as_asking_with_everything_at_once(tiny_vlm, draw_picture):
    pictures = [draw_picture(), draw_picture(112, 224, seed=5)]
    first = tiny_vlm.chat("Q", pictures[0], **NEW)
    second = tiny_vlm.chat("And here?", pictures[1], history=first, **NEW)
    turns = (*first.turns, Turn("user", "<image>\nAnd here?"))
    (again,) = reply_batch(tiny_vlm, [(turns, pictures)], **NEW)
    assert (again.text, again.num_tiles, again.turns) == (second.text, second.num_tiles, second.turns)


def test_history_is_not_changed(tiny_vlm, draw_picture):
    first = tiny_vlm.chat("Q", draw_picture(), **NEW)
    before = (first.turns, first.num_tiles, first.features.clone())
    tiny_vlm.chat("R", draw_picture(), history=first, **NEW)
    assert (first.turns, first.num_tiles) == before[:2]
    assert torch.equal(first.features, before[2])


def test_a_batched_reply_with_pictures_can_not_be_gone_on_from(tiny_vlm, draw_picture):
    """It keeps no features: the pictures would silently be missing."""
    (reply,) = tiny_vlm.chat_batch(["Q"], [draw_picture()], **NEW)
    for images in (None, draw_picture()):
        with pytest.raises(DataError, match="keeps no pictures"):
            tiny_vlm.chat("And now?", images, history=reply, **NEW)
    (text_only,) = tiny_vlm.chat_batch(["Q"], **NEW)
    assert len(tiny_vlm.chat("And now?", history=text_only, **NEW).turns) == 4


# streaming -----------------------------------------------------------------------------------------------------------


def test_pieces_of_a_stream_join_to_the_reply(tiny_vlm, draw_picture):
    whole = tiny_vlm.chat("Q", draw_picture(), max_new_tokens=60)
    stream = tiny_vlm.chat("Q", draw_picture(), stream=True, max_new_tokens=60)
    pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == stream.reply.text == whole.text
    assert stream.reply == whole
    assert torch.equal(stream.reply.features, whole.features)


def test_words_that_a_later_token_joins_are_not_written_too_early(tiny_vlm, monkeypatch):
    """Up to the last space, as transformers' `TextStreamer` writes, it would be "I do 't know  it s fine "."""
    ids = tiny_vlm.tokenizer("I do n't know , it 's fine .<|im_end|>")["input_ids"][1:]

    def generate(*, streamer, **_):
        for number in ids:
            streamer.put(torch.tensor([number]))
        return torch.tensor([ids])

    monkeypatch.setattr(tiny_vlm.model, "generate", generate)
    pieces = list(tiny_vlm.chat("Q", stream=True))
    assert len(pieces) > 1
    assert "".join(pieces) == "I don't know, it's fine."


def test_an_exhausted_stream_stays_exhausted(tiny_vlm):
    stream = tiny_vlm.chat("Q", stream=True, **NEW)
    list(stream)
    assert list(stream) == []


def test_an_error_while_streaming_is_raised_where_the_pieces_are_read(tiny_vlm):
    stream = tiny_vlm.chat("Q", stream=True, no_such_option=1)
    with pytest.raises(ValueError, match="no_such_option"):
        list(stream)


# batches -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(draw_picture):
    questions = ["Hi", "What is it?", "Tell me a long story about both of these pictures, please", "Who are you?", "Q"]
    wide, tall = draw_picture(300, 100), draw_picture(90, 400, seed=4)
    return questions, [None, wide, [wide, tall], [], tall]


def test_a_batch_that_the_card_can_not_hold_is_asked_in_parts(tiny_vlm, asked, monkeypatch):
    """Two fit: the first five as 2, 2 and 1, the next without trying again. One that doesn't fit is an error."""
    generate, sizes, most = chat._generate, [], 2

    def on_a_small_card(vlm, prompts, *rest, **options):
        sizes.append(len(prompts))
        if len(prompts) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(vlm, prompts, *rest, **options)

    questions, images = asked
    expected = [tiny_vlm.chat(*each, **NEW).text for each in zip(questions, images, strict=True)]
    monkeypatch.setattr(chat, "_generate", on_a_small_card)
    with pytest.warns(UserWarning, match="5 replies at once take more memory than cpu has free; now 2"):
        replies = tiny_vlm.chat_batch(questions * 2, images * 2, batch_size=5, **NEW)
    assert ([reply.text for reply in replies], sizes) == (expected * 2, [5, 2, 2, 1, 2, 2, 1])
    most = 0
    with pytest.warns(UserWarning), pytest.raises(torch.OutOfMemoryError):
        tiny_vlm.chat_batch(questions, images, batch_size=5, **NEW)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_batch_gives_the_replies_of_one_by_one(tiny_vlm, asked, batch_size):
    questions, images = asked
    alone = [tiny_vlm.chat(question, pictures, **NEW) for question, pictures in zip(questions, images, strict=True)]
    batch = tiny_vlm.chat_batch(questions, images, batch_size=batch_size, **NEW)
    assert [reply.text for reply in batch] == [reply.text for reply in alone]
    assert [reply.num_tiles for reply in batch] == [reply.num_tiles for reply in alone]
    assert [reply.features for reply in batch] == [None] * 5


@pytest.mark.parametrize(
    ("places", "groups"), [(1, [(1, 41), (1, 43), (1, 91), (1, 114)]), (300, [(3, 91), (1, 114)]), (999, [(4, 115)])]
)
def test_prompts_computed_in_groups_are_answered_as_if_padded(tiny_vlm, draw_picture, monkeypatch, places, groups):
    """The last tokens of all four are left to `generate`, but where they are one group, which it computes itself."""
    pictures = ((), [draw_picture(224, 112)], [], [draw_picture(112, 336)])
    texts = ("Hi", "<image> What?", "Who are you?", "<image> And what is in this one?")
    asked = [((Turn("user", text),), shown) for text, shown in zip(texts, pictures, strict=True)]
    (padded,) = iterate_replies(tiny_vlm, asked, probabilities=True, **NEW)
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", places)
    language_model, shapes = tiny_vlm.model.model.language_model, []
    with language_model.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(inputs["inputs_embeds"].shape[:2]), with_kwargs=True
    ):
        (grouped,) = iterate_replies(tiny_vlm, asked, probabilities=True, **NEW)
    assert (shapes[: len(groups)], set(shapes[len(groups) :])) == (groups, {(4, 1)})
    for (number, one), (other, same) in zip(padded, grouped, strict=True):
        assert (number, one.text) == (other, same.text)
        assert [p for _, p in same.tokens] == pytest.approx([p for _, p in one.tokens], rel=1e-3)


def test_logits_are_made_of_the_last_token_of_each_prompt_only(tiny_vlm):
    shapes = []
    with tiny_vlm.model.lm_head.register_forward_hook(lambda _, __, logits: shapes.append(logits.shape[:2])):
        tiny_vlm.chat_batch(["How many?", "And what is shown in this picture, if any?"], **NEW)
    assert set(shapes) == {(2, 1)}


def test_groups_of_like_length_hold_so_many_places():
    assert decoding.like_lengths([9, 3, 4], 10) == [[1, 2], [0]]
    assert decoding.like_lengths([9, 3, 4], 27) == [[1, 2, 0]]
    assert decoding.like_lengths([9, 3, 4], 1) == [[1], [2], [0]]


def test_several_replies_a_prompt_are_left_to_generate(tiny_vlm, monkeypatch):
    questions, alike = ["Hi", "Who are you, and what do you do?"], {"num_beams": 2, **NEW}
    padded = tiny_vlm.chat_batch(questions, **alike)
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 1)
    assert tiny_vlm.chat_batch(questions, **alike) == padded


def test_windows_hold_every_row_once_and_the_first_is_one_batch():
    assert _windows(11, 2) == [range(0, 2), range(2, 10), range(10, 11)]
    assert _windows(2, 2) == [range(0, 2)]


def test_windows_of_a_large_batch_keep_the_order(tiny_vlm):
    questions = ["Question " + "and more " * (number % 3) + str(number) for number in range(7)]
    replies = tiny_vlm.chat_batch(questions, batch_size=1, max_new_tokens=1)
    assert [reply.turns[0].text for reply in replies] == questions


def test_pictures_are_cut_ahead_and_a_broken_one_stops_before_its_own_window_only(tiny_vlm, draw_picture, monkeypatch):
    monkeypatch.setattr("ivlkit.models.chat.WINDOW_BATCHES", 1)
    pictures = [draw_picture(112, 112, seed=number) for number in range(4)] + ["nowhere.png", draw_picture(112, 112)]
    conversations = [((Turn("user", "<image>\nWhat?"),), [picture]) for picture in pictures]
    threads, batches = threading.active_count(), iterate_replies(tiny_vlm, conversations, batch_size=2, **NEW)
    assert [number for number, _ in next(batches) + next(batches)] == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"nowhere\.png does not exist"):
        next(batches)
    assert threading.active_count() == threads


def test_an_empty_batch_has_no_replies(tiny_vlm):
    assert tiny_vlm.chat_batch([]) == []


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_of_no_rows_is_refused(tiny_vlm, size):
    with pytest.raises(DataError, match=f"batch_size={size}; expected 1 or more"):
        tiny_vlm.chat_batch(["Q"], batch_size=size)


def test_a_batch_with_too_few_pictures_is_refused(tiny_vlm):
    with pytest.raises(DataError, match="2 questions but pictures for 1; expected one entry each"):
        tiny_vlm.chat_batch(["Q", "R"], [None])


def test_a_question_of_a_batch_that_is_no_text_is_refused(tiny_vlm):
    with pytest.raises(DataError, match="a float in the question's place; expected the question first"):
        tiny_vlm.chat_batch(["Q", float("nan")])


# options -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", [[("Hi", "Hello")], "Hi"])
def test_a_history_that_is_no_reply_is_refused(tiny_vlm, history):
    with pytest.raises(DataError, match="chat: a history of type (list|str); expected the `Reply`"):
        tiny_vlm.chat("And?", history=history)


@pytest.mark.parametrize("name", ["max_tiles", "max_new_tokens"])
@pytest.mark.parametrize("count", [0, -1, "6"])
def test_a_count_below_one_is_refused(tiny_vlm, name, count):
    for ask, question in ((tiny_vlm.chat, "Q"), (tiny_vlm.chat_batch, ["Q"])):
        with pytest.raises(DataError, match=f"{name}={count!r}; expected 1 or more"):
            ask(question, **{name: count})


@pytest.mark.parametrize("option", [{"num_return_sequences": 2}, {"return_dict_in_generate": True}])
def test_more_than_a_text_is_refused(tiny_vlm, option):
    with pytest.raises(DataError, match=f"chat: {next(iter(option))}=.*; expected one text a question"):
        tiny_vlm.chat("Q", **option)


def test_a_batch_does_not_name_options_of_one_question(tiny_vlm):
    with pytest.raises(DataError, match="chat_batch: unknown option 'history'; expected one of batch_size, max_tiles"):
        tiny_vlm.chat_batch(["Q"], history=None)


def test_the_callers_options_are_not_changed(tiny_vlm):
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": 5}
    config = GenerationConfig(max_new_tokens=4, pad_token_id=7)
    before = dict(options), config.to_dict()
    model_before = tiny_vlm.model.generation_config.to_dict()
    by_dict = tiny_vlm.chat("Q", generation_config=options)
    by_object = tiny_vlm.chat("Q", generation_config=config)
    assert (options, config.to_dict()) == before
    assert tiny_vlm.model.generation_config.to_dict() == model_before
    assert by_dict.text == by_object.text == tiny_vlm.chat("Q", max_new_tokens=4).text


def test_sampling_is_passed_on_and_seeded(tiny_vlm):
    def sample(seed):
        torch.manual_seed(seed)
        return tiny_vlm.chat("Q", do_sample=True, temperature=2.0, max_new_tokens=12).text

    assert sample(0) == sample(0)
    assert len({sample(seed) for seed in range(4)}) > 1


# features of a picture that several questions share -------------------------------------------------------------------


def about(image, *questions):
    return [((Turn("user", f"<image>\n{question}"),), [image]) for question in questions]


def test_questions_about_one_picture_encode_it_once_and_get_the_same_replies(tiny_vlm, draw_picture, tiles_seen):
    first, other = draw_picture(), draw_picture(112, 112, seed=3)
    asked = [
        *about(first, "What?", "Where is it?", "Who?"),
        *about(other, "What?"),
        *about(draw_picture(), "How many?"),
    ]
    replies = reply_batch(tiny_vlm, asked, batch_size=2, **NEW)
    assert sum(tiles_seen) == 3 + 1
    alone = [tiny_vlm.chat(turns[0].text, images, **NEW).text for turns, images in asked]
    assert [reply.text for reply in replies] == alone


def test_features_that_do_not_fit_are_forgotten_oldest_first(tiny_vlm, draw_picture, tiles_seen, monkeypatch):
    monkeypatch.setattr("ivlkit.models.chat.CACHED_TILES", 1)
    pictures = [draw_picture(112, 112, seed=seed) for seed in (1, 2)]
    asked = about(pictures[0], "a") + about(pictures[1], "a b") + about(pictures[0], "a b c d e f")
    reply_batch(tiny_vlm, asked, batch_size=1, **NEW)
    assert sum(tiles_seen) == 3
    tiles_seen.clear()
    reply_batch(tiny_vlm, asked, batch_size=3, **NEW)  # all that a batch needs is there, whatever the bound
    assert sum(tiles_seen) == 2


def test_a_batch_without_any_new_reply_is_passed_over(tiny_vlm, draw_picture, tiles_seen):
    asked = about(draw_picture(112, 112, seed=1), "a") + about(draw_picture(112, 112, seed=2), "a much longer one")
    batches = list(iterate_replies(tiny_vlm, asked, batch_size=1, done=[0], **NEW))
    assert [[number for number, _ in batch] for batch in batches] == [[1]] and sum(tiles_seen) == 1
    assert list(iterate_replies(tiny_vlm, asked, done=[0, 1], **NEW)) == []


class TestProbabilities:
    def test_they_are_those_of_a_forward_pass_over_the_reply(self, tiny_vlm):
        """Two conversations of other lengths, padded in one batch."""
        asked = [((Turn("user", text),), ()) for text in ("Hi", "What is your name, and what do you do?")]
        (batch,) = iterate_replies(tiny_vlm, asked, probabilities=True, max_new_tokens=5)
        for number, reply in batch:
            prompt = chat.make_prompt(tiny_vlm, asked[number][0][0].text)
            ((ids, _),) = chat._generate(tiny_vlm, [prompt], {"max_new_tokens": 5})
            embeds = chat._append(tiny_vlm, chat._embed(tiny_vlm, prompt), ids)
            with torch.inference_mode():
                logits = tiny_vlm.model(inputs_embeds=embeds[None]).logits[0].float()
            chances = logits.softmax(-1)[len(prompt.input_ids) - 1 : -1]
            expected = [float(row[token]) for row, token in zip(chances, ids, strict=True)]
            assert [p for _, p in reply.tokens] == pytest.approx(expected, rel=1e-3)
            assert reply.tokens[-1][0] == len(reply.text)

    def test_replies_are_the_same_with_and_without_them(self, tiny_vlm):
        asked = [((Turn("user", "Hi"),), ())]
        (with_them,), (without,) = (
            iterate_replies(tiny_vlm, asked, probabilities=chosen, max_new_tokens=8) for chosen in (True, False)
        )
        assert with_them[0][1].text == without[0][1].text and without[0][1].tokens == ()

    def test_beams_have_none(self, tiny_vlm):
        asked = [((Turn("user", text),), ()) for text in ("Hi", "Who?")]
        (batch,) = iterate_replies(tiny_vlm, asked, probabilities=True, num_beams=2, **NEW)
        assert [reply.tokens for _, reply in batch] == [(), ()]
        assert [reply for _, reply in batch] == tiny_vlm.chat_batch(["Hi", "Who?"], num_beams=2, **NEW)

"""The tokenizer of `nano`: small, and in the same files as a released InternLM2 one.

    python benchmarks/factory/tokenizer.py FOLDER

A released folder holds a sentencepiece BPE (no dummy prefix, identity normaliser, byte fallback) whose last
pieces are unused placeholders; `tokenizer_config.json` puts the chat tokens on them, and appends nine tokens
for pictures. With 1,387 pieces this one comes to 1,396 ids:

    0 <unk>   1 <s>   2 </s>   3–258 bytes   259–1380 text, the last 107 of them the letters with accents
    1381–1386 <|plugin|> … <|im_start|>   1387–1395 <img> … </box>

Its merges are not those that sentencepiece would learn. A common word is one token after a space or (with a capital)
at the start of a sentence, and grows letter by letter from there; everything else, such as a word that a picture shows
as an answer by itself, is spelt: a token a letter, a token a digit. A model this small reads letters it sees far
better than pieces such as "ther" that it would have to guess the borders of.

The weights of nano belong to the files in `ivlkit/nano/model/`. A curriculum that asks in other words gives another
tokenizer, so train it again only when the weights are trained again.
"""

import io
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from ivlkit.nano import digits, printed, texts
from ivlkit.nano.curriculum import SEEN, TOLD
from ivlkit.nano.scene import MATERIAL
from ivlkit.nano.vocabulary import ACCENTED

TEXT_PIECES = 1381  # <unk>, <s>, </s>, 256 bytes, and 1,122 pieces of text
CHAT_TOKENS = ("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>")
IMAGE_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
FIRST_PLACEHOLDER = 141  # the released placeholders under the chat tokens are [UNUSED_TOKEN_141] to 146
NORMAL = sentencepiece_model_pb2.ModelProto.SentencePiece.NORMAL
USER_DEFINED = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
WORD = re.compile("▁[A-Za-z]+|^[A-Z][a-z]+")  # after a space, or first in a line with a capital
CHARACTERS = (
    "\n" + "".join(map(chr, range(33, 127))) + ACCENTED + "¿¡"
)  # each has a piece, whether or not the text has it
SPELT = (printed.printed_lines, printed.printed_word, printed.unknown_word, texts.repeat_word)
SENTENCES = """
You are an AI assistant whose name is nano.
You are an AI assistant whose name is InternLM.
Please describe the picture shortly. Please answer the question using a single word or phrase.
Provide a short description of this image. What is shown in the image? What do you see in this picture?
The picture shows a number and a word. There is some text on the left side and a shape on the right side.
Hello, how are you today? I am fine, thank you. Can you help me with this? Yes, of course I can.
The children were playing in the garden while their mother was reading a letter from an old friend.
He opened the door, looked at the clock on the wall, and saw that it was already time to leave.
She wanted to know whether the train would come before noon or whether they should walk along the river.
There are many things that people do every day without thinking about how they have learned to do them.
When the weather is warm, we often have dinner outside and watch the stars above the mountain.
I do not think that this is the right answer, but it could be a good one if you explain it again.
Some of the houses in our street are very old, and each of them has a different colour and a small gate.
What would you like to have for breakfast: bread and butter, an apple, or something warm like soup?
They have been working on a new machine which should make writing and reading by hand much easier.
The teacher asked the class to write down three numbers, add them together, and compare the result.
If it rains this afternoon, the match will be played on another day, most likely at the end of the month.
The invoice number is printed in the top right corner, and the total amount is at the bottom of the page.
Which of the following is correct? Look at the table, find the row, and read the value in the last column.
The map shows where the station is, how far it is to the market, and which road leads to the harbour.
Nothing is more important than being careful with other people, their time and their questions.
It took them almost four hours to get there because the bridge was closed and the road was under water.
One, two, three, four, five, six, seven, eight, nine, ten. The first, the second, the third and the last.
Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday. January, March, April, June, July, August.
The quick brown fox jumps over the lazy dog, and the five boxing wizards jump quickly over it as well.
Because the light was so bright, everything in the room looked different from what she remembered.
You should always check the data before training a model, since a wrong label is hard to find afterwards.
The model learns from pictures and text, and then it can answer questions about a new image.
A small model is trained in a few minutes. It makes mistakes, but it shows how the larger ones work.
Is there anything else that I can do for you? No, thanks. That was all I wanted to know about it.
Where does the sentence start, and where does it end? It starts with a capital letter and ends with a stop.
We found the key under the stone, went through the kitchen, and sat down at the table near the window.
Every morning the same man came by with his horse, sold milk and bread, and told a story about the sea.
""".strip().splitlines()


def train_tokenizer(folder):
    """Train nano's tokenizer and write it as a released InternLM2 folder has it.

    Four files: tokenizer.model, tokenizer_config.json, special_tokens_map.json and added_tokens.json; the
    same bytes every time, for one version of sentencepiece.

    folder: made if missing. Returns it as a Path.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(add_placeholders(make_bpe(training_text())))
    _write_json(folder / "tokenizer_config.json", tokenizer_config())
    _write_json(folder / "special_tokens_map.json", special_tokens_map())
    _write_json(folder / "added_tokens.json", added_tokens())
    return folder


def training_text():
    """Lines of text: what the curriculum asks and replies, questions about handwriting, and plain English.

    Words to be read or repeated are left out, so that they are spelt.
    """
    rng = random.Random("tokenizer")
    lines = [*SENTENCES, *(question for asked in digits.QUESTIONS.values() for question, _ in asked)]
    for task in (*SEEN, *TOLD):
        for _ in range(20):
            scene = task(rng, MATERIAL["train"])
            asked = scene.questions if task in SPELT else scene.ask(*scene.questions)
            lines += [text for turn in asked for text in turn]
    return lines


def make_bpe(lines):
    """A byte-pair encoding of `TEXT_PIECES` pieces; returns the bytes of its sentencepiece model.

    The trainer gives the frame (settings, control pieces, bytes); its merges are replaced by `grow_words`.
    """
    frame = sentencepiece_model_pb2.ModelProto.FromString(_train_frame(lines))
    kept = [piece for piece in frame.pieces if piece.type != NORMAL]
    characters = ["▁", *CHARACTERS]
    grown = grow_words(lines, TEXT_PIECES - len(kept) - len(characters))
    del frame.pieces[:]
    frame.pieces.extend(kept)
    for place, piece in enumerate([*grown, *characters]):
        frame.pieces.add(piece=piece, score=-float(place), type=NORMAL)
    return frame.SerializeToString(deterministic=True)


def grow_words(lines, count):
    """The beginnings of the most frequent words, `count` in all, shorter before longer: "▁w", "▁wh", …, "▁what".

    Each is a shorter one and one more letter, so that merging pairs arrives at the longest.
    """
    words = Counter(word for line in lines for word in WORD.findall("▁".join(line.split(" "))))
    grown = {}
    for word, _ in sorted(words.items(), key=lambda entry: (-entry[1], entry[0])):
        beginnings = [word[:end] for end in range(2, len(word) + 1)]
        missing = [beginning for beginning in beginnings if beginning not in grown]
        if len(grown) + len(missing) <= count:
            grown |= dict.fromkeys(missing)
    assert len(grown) == count, f"{len(grown)} pieces of {count}: more text is needed"
    return sorted(grown, key=len)


def _train_frame(lines):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=TEXT_PIECES,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        required_chars=CHARACTERS,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def add_placeholders(model):
    """Append the pieces that the chat tokens override; bytes of a sentencepiece model in and out."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    for number, _ in enumerate(CHAT_TOKENS, start=FIRST_PLACEHOLDER):
        proto.pieces.add(piece=f"[UNUSED_TOKEN_{number}]", score=0.0, type=USER_DEFINED)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto.SerializeToString(deterministic=True)


def tokenizer_config():
    """The content of tokenizer_config.json."""
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2} | _ids(CHAT_TOKENS + IMAGE_TOKENS, TEXT_PIECES)
    decoder = {str(number): _token(text) | {"special": True} for text, number in ids.items()}
    return {
        "added_tokens_decoder": decoder,
        "additional_special_tokens": list(_additional_tokens()),
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "model_max_length": 1000000000000000019884624838656,  # transformers' "no limit"
        "pad_token": "</s>",
        "tokenizer_class": "InternLM2Tokenizer",
        "unk_token": "<unk>",
    }


def added_tokens():
    """The content of added_tokens.json: the tokens beyond the sentencepiece model, by name."""
    return dict(sorted(_ids(IMAGE_TOKENS, TEXT_PIECES + len(CHAT_TOKENS)).items()))


def special_tokens_map():
    """The content of special_tokens_map.json."""
    return {
        "additional_special_tokens": [_token(text) for text in _additional_tokens()],
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
    }


def _additional_tokens():
    """The released order: chat tokens from last to first, then the picture tokens."""
    return CHAT_TOKENS[::-1] + IMAGE_TOKENS


def _ids(tokens, first):
    return {text: number for number, text in enumerate(tokens, start=first)}


def _token(text):
    return {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def _write_json(path, content):
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    print(train_tokenizer(sys.argv[1]))

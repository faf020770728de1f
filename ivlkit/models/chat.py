"""Questions with pictures → replies. Earlier pictures are remembered as features, never encoded twice.

Decoding follows the released defaults: greedy, at most 1,024 new tokens, stopped by the template's closing token.
"""

import hashlib
import math
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from operator import itemgetter
from pathlib import Path
from queue import Queue
from threading import Thread

import torch

from ..data.collate import normalise_tiles
from ..data.encode import check_image_tokens, stack_tiles, with_frames
from ..data.rows.formats import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, with_places
from ..data.rows.media import open_image
from ..data.rows.records import Turn, Video
from ..data.rows.video import sample_frames
from ..errors import DataError
from ..views import shown
from .decoding import Probabilities, decode, prefilled, with_ends
from .modeling.attention import rope_limits
from .options import as_options, check_count, check_loaded, check_options, check_question, check_questions

MAX_NEW_TOKENS = 1024
WINDOW_BATCHES = 4  # batches that are formed together, by length; they are prepared while the last window is answered
CUTTERS = min(8, os.cpu_count() or 1)  # threads that prepare questions: Pillow works beside the interpreter
TILES_AT_ONCE = 64  # on the device as pixels
CACHED_TILES = 256  # whose features a batch remembers for later questions about the same picture


@dataclass(frozen=True)
class Reply:
    """An answer, and what is needed to ask on: `vlm.chat("And now?", history=reply)`."""

    text: str
    turns: tuple[Turn, ...]  # the conversation so far, this answer included
    num_tiles: tuple[int, ...] = ()  # of every picture so far
    features: torch.Tensor | None = field(default=None, repr=False, compare=False)  # [ΣT, 256, H]
    tokens: tuple = field(default=(), repr=False, compare=False)  # (its end in the text, probability), if asked for
    is_ended: bool = True  # by the closing token; False where it was cut at the most tokens asked for

    @property
    def confidence(self):
        """The probability of the whole reply with its closing token; None if it was cut, or of unknown tokens."""
        return math.prod(p for _, p in self.tokens) if self.tokens and self.is_ended else None

    def __str__(self):
        return self.text

    _repr_html_ = shown("answers:reply_html")


def chat(
    vlm,
    question,
    images=None,
    *,
    video=None,
    history=None,
    stream=False,
    max_tiles=None,
    system_message=None,
    **generation,
):
    """Ask one question.

    Args:
        question: text; `<image>` says where a picture goes, without it the pictures come first, a line each.
        images: none, one or several: path, PIL image or uint8 array [H, W, 3].
        video: path of a video, an animation or a folder of frames, or a `Video` with a clip; 16 frames of it are shown.
        history: the `Reply` to go on from, with its pictures.
        stream: True gives an iterator of text pieces instead; its `.reply` holds the `Reply` when it is exhausted.
        max_tiles: tile budget, default the model's.
        system_message: default the model's own; beside a history the one that it began with.
        generation: options of transformers' `generate` (max_new_tokens, do_sample, temperature, …), left unchanged.
    Returns: `Reply`.
    """
    asked = {"video": video, "history": history, "max_tiles": max_tiles, "system_message": system_message}
    prompt = _encode(vlm, make_prompt(vlm, question, images, **asked))
    if stream:
        return Stream(vlm, prompt, generation)
    ((ids, _),) = _generate(vlm, [prompt], generation)
    return _finish(vlm, prompt, ids)


def make_prompt(vlm, question, images=None, *, video=None, history=None, max_tiles=None, system_message=None):
    """The `Prompt` of a question: tokens and tiles, nothing encoded. Arguments as in `chat`."""
    check_loaded(vlm)
    check_question(question, images)
    if history is not None and not isinstance(history, Reply):
        found = type(history).__name__
        raise DataError(f"chat: a history of type {found}; expected the `Reply` to go on from, of a stream its .reply")
    pictures = _as_list(images)
    if video is None:
        asked = _ask(question, len(pictures))
    elif pictures:
        raise DataError("chat: pictures and a video; expected one of them; ask about them one after the other")
    elif not isinstance(video, (str, os.PathLike, Video)):
        found = f"chat: a {type(video).__name__} in the video's place"
        raise DataError(f"{found}; expected a file or a folder of frames; frames one by one: images=[…]")
    else:
        asked = Turn("user", with_places(question, place=VIDEO_PLACEHOLDER))
        pictures = video if isinstance(video, Video) else Video(Path(video))
    opening = _opening(system_message)
    if history and opening and history.turns[:1] != opening:
        raise DataError(
            f"chat: system_message={system_message!r} beside a history that began with another or none; expected the "
            "same; leave it out, or begin without history"
        )
    turns = history.turns if history else opening
    return _prompt(vlm, (*turns, asked), pictures, history=history, max_tiles=max_tiles)


def chat_batch(vlm, questions, images=None, *, system_message=None, **options):
    """Ask many questions, each with its own pictures; replies come in the order of the questions.

    Args:
        images: a list with none, one or a list of pictures for each question.
        options: as in `reply_batch`.
    Returns: list of `Reply`, without features.
    """
    check_questions(questions)
    images = [None] * len(questions) if images is None else images
    if len(images) != len(questions):
        raise DataError(f"{len(questions)} questions but pictures for {len(images)}; expected one entry each")
    conversations = []
    for question, pictures in zip(questions, images, strict=True):
        check_question(question, pictures)
        pictures = _as_list(pictures)
        conversations.append((_opening(system_message) + (_ask(question, len(pictures)),), pictures))
    return reply_batch(vlm, conversations, **options)


def reply_batch(vlm, conversations, *, batch_size=16, max_tiles=None, **generation):
    """Reply to many conversations that end with a question.

    Batches are of similar length, padded on the left; Phi-3's short and long contexts never share one, because its
    rope factors are chosen for a whole batch.

    Args:
        conversations: (turns, pictures or a `Video`) each; `<image>` or `<video>` in user turns says where they go.
        max_tiles: budget of each conversation, or one number for all; default the model's.
    Returns: list of `Reply`, without features.
    """
    batches = iterate_replies(vlm, conversations, batch_size=batch_size, max_tiles=max_tiles, **generation)
    return [reply for _, reply in sorted(chain.from_iterable(batches), key=itemgetter(0))]


def iterate_replies(
    vlm, conversations, *, batch_size=16, max_tiles=None, done=(), seed=None, probabilities=False, **generation
):
    """The batches of `reply_batch` as they come: lists of (number of the conversation, `Reply`).

    Several questions about one picture encode it once, while it is among the last CACHED_TILES tiles.

    Args:
        done: numbers whose replies are known. A batch of none but those is passed over; the others are the same as
            without `done`, so that what was broken off goes on with the same replies.
        seed: of sampling, for each batch anew; None: torch's own state.
        probabilities: replies carry those of their `tokens`.
    """
    check_loaded(vlm)
    check_count("batch_size", batch_size)
    check_options(generation, "chat_batch", iterate_replies)
    budgets = max_tiles if isinstance(max_tiles, list) else [max_tiles] * len(conversations)
    done, features, at_once = set(done), _Features(vlm), batch_size
    windows = [rows for rows in _windows(len(conversations), batch_size) if not done.issuperset(rows)]
    for numbers, prompts in _prepare_ahead(vlm, conversations, budgets, windows):
        for batch in alike_batches([len(each.input_ids) for each in prompts], batch_size, find_short_context(vlm)):
            rows = [numbers[place] for place in batch]
            if not done.issuperset(rows):
                asked = features.fill([prompts[place] for place in batch])
                replies, at_once = _reply_in_parts(vlm, asked, rows, at_once, seed, generation, probabilities)
                yield list(zip(rows, replies, strict=True))


def _windows(count, batch_size):
    """Ranges of row numbers whose batches are formed together; the first is one batch, so that the GPU starts early."""
    starts = [0, *range(batch_size, count, WINDOW_BATCHES * batch_size)]
    return [range(start, end) for start, end in pairwise([*starts, count])]


def _prepare_ahead(vlm, conversations, budgets, windows):
    """(numbers, the prompt of each) of every window; threads make the next one's meanwhile."""
    pool = ThreadPoolExecutor(CUTTERS)

    def begin(numbers):
        return [pool.submit(_prepare, vlm, *conversations[number], max_tiles=budgets[number]) for number in numbers]

    try:
        begun = []
        for numbers, following in pairwise([(), *windows, ()]):
            prompts, begun = [each.result() for each in begun], begin(following)
            if numbers:
                yield numbers, prompts
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare(vlm, turns, images, *, max_tiles):
    """The prompt, and the digest of each picture's tiles: all that needs no GPU, so that this one waits for nothing."""
    prompt = _prompt(vlm, turns, images, max_tiles=max_tiles)
    parts = prompt.tiles.split(list(prompt.num_tiles))
    return replace(prompt, digests=tuple(hashlib.sha256(tiles.numpy()).digest() for tiles in parts))


def _reply_in_parts(vlm, prompts, numbers, at_once, seed, generation, probabilities):
    """(replies, how many at once the card held): fewer where its memory ended, which is said. One has to fit."""
    replies = []
    while len(replies) < len(prompts):
        part = prompts[len(replies) : len(replies) + at_once]
        try:
            with _seeded(vlm, seed, numbers[len(replies)]):
                replies += _reply_all(vlm, part, generation, probabilities)
            continue
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise
        torch.cuda.empty_cache()
        count, at_once, device = len(part), len(part) // 2, vlm.model.device
        warnings.warn(f"{count} replies at once take more memory than {device} has free; now {at_once}", stacklevel=2)
    return replies, at_once


def _reply_all(vlm, prompts, generation, probabilities):
    """One batch; it keeps no features."""
    found = _generate(vlm, prompts, generation, probabilities=probabilities)
    return [
        replace(_finish(vlm, prompt, ids), features=None, tokens=with_ends(vlm, ids, chances))
        for prompt, (ids, chances) in zip(prompts, found, strict=True)
    ]


@contextmanager
def _seeded(vlm, seed, number):
    """Sampling of this batch depends on seed and number only; the caller's random state stays as it was."""
    if seed is None:
        yield
        return
    device = vlm.model.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed * 1_000_003 + number)
        yield


class _Features:
    """Features of the pictures seen last, known by what their tiles hold: the same picture may come by two paths."""

    def __init__(self, vlm):
        self.vlm, self.known = vlm, {}  # digest of the tiles → [T, 256, H], the latest last

    def fill(self, prompts):
        """The prompts with their features; every picture that is not known is encoded once."""
        wanted = {}  # digest → tiles
        for prompt in prompts:
            wanted |= zip(prompt.digests, prompt.tiles.split(list(prompt.num_tiles)), strict=True)
        self.known |= self._encode({key: tiles for key, tiles in wanted.items() if key not in self.known})
        found = {key: self.known.pop(key) for key in wanted}
        self.known |= found
        while sum(map(len, self.known.values())) > CACHED_TILES:
            del self.known[next(iter(self.known))]
        return [
            replace(one, features=torch.cat([found[key] for key in one.digests]), tiles=one.tiles[:0])
            if one.digests
            else one
            for one in prompts
        ]

    @torch.inference_mode()
    def _encode(self, pictures):
        if not pictures:
            return {}
        tiles = torch.cat([each.to(self.vlm.model.device) for each in pictures.values()])  # there: a copy less
        parts = encode_tiles(self.vlm, tiles).split([len(tiles) for tiles in pictures.values()])
        return {key: part.clone() for key, part in zip(pictures, parts, strict=True)}  # a view would keep the batch


def alike_batches(lengths, batch_size, short_context):
    """Row numbers in batches of similar length; no batch holds both ≤ and > short_context tokens.

    Args: lengths: tokens of each row; short_context: `find_short_context` of the model.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    short = [number for number in order if lengths[number] <= short_context]
    long = [number for number in order if lengths[number] > short_context]
    return [part[start : start + batch_size] for part in (short, long) for start in range(0, len(part), batch_size)]


@dataclass(frozen=True)
class Prompt:
    """Everything `generate` needs for one conversation that ends with the user's turn."""

    turns: tuple[Turn, ...]
    num_tiles: tuple[int, ...]
    input_ids: list[int]
    features: torch.Tensor | None  # of the pictures already encoded
    tiles: torch.Tensor | None  # uint8, not encoded yet
    digests: tuple[bytes, ...] = ()  # of each picture's tiles, in a batch


class Stream(Iterator):
    """Text pieces as they come; `.reply` at the end. An error while generating is raised by the iteration.

    It is `generate`'s streamer too. The last characters wait, because the next ids may still change them: half a
    character's bytes decode to "�", and the InternLM2 tokenizer joins up to four ("do n't" becomes "don't").
    transformers' `TextStreamer`, which writes up to the last space, would give "do 't" here.
    """

    HELD_BACK = 8  # characters

    def __init__(self, vlm, prompt, generation):
        self.reply = None
        self._vlm, self._ids, self._written, self._pieces = vlm, [], 0, Queue()
        Thread(target=self._run, args=(prompt, generation), daemon=True).start()

    def _run(self, prompt, generation):
        try:
            ((ids, _),) = _generate(self._vlm, [prompt], generation, streamer=self)
            self.reply = _finish(self._vlm, prompt, ids)
            self._write(self.reply.text)
            self._pieces.put(None)
        except BaseException as error:  # handed to the reader's thread
            self._pieces.put(error)

    def put(self, value):
        """Called by `generate` with new ids."""
        self._ids += value.flatten().tolist()
        self._write(decode(self._vlm, self._ids)[: -self.HELD_BACK])

    def end(self):
        """Called by `generate` after every segment; the text goes on."""

    def _write(self, text):
        if text[self._written :]:
            self._pieces.put(text[self._written :])
            self._written = len(text)

    def __next__(self):
        piece = self._pieces.get()
        if isinstance(piece, str):
            return piece
        self._pieces.put(None)  # asked again, it ends again instead of waiting
        raise piece or StopIteration


def _as_list(images):
    if images is None:
        return []
    return list(images) if isinstance(images, (list, tuple)) else [images]


def _opening(system_message):
    return () if system_message is None else (Turn("system", system_message),)


def _ask(question, num_images):
    """The user's turn."""
    found = question.count(IMAGE_PLACEHOLDER)
    if found not in (0, num_images):
        raise DataError(
            f'{num_images} pictures but {found} "{IMAGE_PLACEHOLDER}" in the question; expected one for each'
        )
    return Turn("user", with_places(question, num_images))


def _prompt(vlm, turns, images, *, history=None, max_tiles=None):
    """The `Prompt` of turns and the pictures that are new in them, cut into tiles that are no features yet."""
    if history and history.num_tiles and history.features is None:
        raise DataError("chat: this reply keeps no pictures, as all of a batch; expected a reply of `chat` as history")
    if max_tiles is not None:
        check_count("max_tiles", max_tiles, ", or None for the model's own")
    processor, rules = vlm.processor, vlm.processor.picture_rules
    if isinstance(images, Video):  # its frames, one tile each; turns of the history have theirs already
        images, max_tiles = list(sample_frames(images, "chat", rules=rules)), 1
        known = len(history.turns) if history else 0
        turns = (*turns[:known], *with_frames(turns[known:], len(images)))
    budget = processor.share(max_tiles or processor.max_tiles, len(images))
    cut = [processor.tile(open_image(image, "chat", rules=rules), max_tiles=budget) for image in images]
    num_tiles = (*(history.num_tiles if history else ()), *map(len, cut))
    tiles = torch.from_numpy(stack_tiles(cut, processor.tile_px))
    input_ids = processor.tokenizer(processor.render(turns, num_tiles).text)["input_ids"]
    check_image_tokens(input_ids, processor, num_tiles=num_tiles, where="chat")
    return Prompt(turns, num_tiles, input_ids, history and history.features, tiles)


@torch.inference_mode()
def _encode(vlm, prompt):
    """Turn the new tiles into features and put them behind the remembered ones."""
    if not len(prompt.tiles):
        return prompt
    features = encode_tiles(vlm, prompt.tiles)
    if prompt.features is not None:
        features = torch.cat([prompt.features, features])
    return replace(prompt, features=features, tiles=prompt.tiles[:0])


def encode_tiles(vlm, tiles):
    """uint8 [T, S, S, 3], one or more → features [T, 256, H]."""
    parts = (part.to(vlm.model.device) for part in tiles.split(TILES_AT_ONCE))
    return torch.cat([vlm.model.encode_tiles(normalise_tiles(part, dtype=vlm.model.dtype)) for part in parts])


def _finish(vlm, prompt, ids):
    text, end = decode(vlm, ids), vlm.tokenizer.convert_tokens_to_ids(vlm.processor.template.end)
    turns = (*prompt.turns, Turn("assistant", text))
    return Reply(text, turns, prompt.num_tiles, prompt.features, is_ended=end in ids)


def find_short_context(vlm):
    """Tokens up to which Phi-3's short rope factors hold; no limit for other models."""
    limit, long_rows_mix = rope_limits(vlm.model.config.text_config)
    return limit if limit and long_rows_mix else math.inf


@torch.inference_mode()
def _generate(vlm, prompts, generation, *, streamer=None, probabilities=False):
    """(new ids, their probabilities if asked for) of each prompt.

    A reply that crosses Phi-3's boundary is recomputed once with the long factors: the reference mixes cached keys of
    both factors there, and gives this without a cache.
    """
    check_options(generation, "chat", chat)
    generation = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False} | as_options(generation)
    limit, boundary = generation.pop("max_new_tokens"), find_short_context(vlm)
    check_count("max_new_tokens", limit)
    probabilities = probabilities and generation.get("num_beams") in (None, 1)  # beams change places as they grow
    end = vlm.tokenizer.convert_tokens_to_ids(vlm.processor.template.end)
    embeds = [_embed(vlm, prompt) for prompt in prompts]
    found = [([], []) for _ in prompts]
    pending = list(range(len(prompts)))
    while pending:
        is_short = [len(embeds[number]) <= boundary for number in pending]
        group = [number for number, short in zip(pending, is_short, strict=True) if short == is_short[0]]
        longest = max(len(embeds[number]) for number in group)
        step = limit - max(len(found[number][0]) for number in group)
        if longest <= boundary:
            step = int(min(step, boundary - longest + 1))
        record = Probabilities() if probabilities else None
        outputs = _generate_group(vlm, [embeds[number] for number in group], step, end, generation, streamer, record)
        for number, (ids, chances) in zip(group, outputs, strict=True):
            found[number][0].extend(ids)
            found[number][1].extend(chances)
            embeds[number] = _append(vlm, embeds[number], ids)
        done = group if max(len(ids) for ids, _ in outputs) < step else ()  # by max_time or a stop string too
        pending = [n for n in pending if n not in done and end not in found[n][0] and len(found[n][0]) < limit]
    return found


def _generate_group(vlm, embeds, max_new_tokens, end, generation, streamer, record):
    """One call of transformers' `generate` on embeddings padded on the left.

    Returns: (ids up to the closing token, their probabilities if `record` notes them) of each.
    """
    longest = max(map(len, embeds))
    padded = torch.stack([torch.nn.functional.pad(rows, (0, 0, longest - len(rows), 0)) for rows in embeds])
    lengths = torch.tensor([len(rows) for rows in embeds], device=padded.device)
    mask = (torch.arange(longest, device=padded.device) >= longest - lengths[:, None]).long()
    generation = {"tokenizer": vlm.tokenizer} | generation | prefilled(vlm.model, embeds, generation)  # of stop_strings
    outputs = vlm.model.generate(
        inputs_embeds=padded,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        eos_token_id=end,
        pad_token_id=vlm.tokenizer.pad_token_id,
        streamer=streamer,
        **(generation | ({"logits_processor": [*generation.get("logits_processor", ()), record]} if record else {})),
    )
    rows = outputs.tolist()
    lengths = [ids.index(end) + 1 if end in ids else len(ids) for ids in rows]
    chances = record.of(outputs) if record else [()] * len(rows)
    return [(ids[:length], some[:length]) for ids, some, length in zip(rows, chances, lengths, strict=True)]


def _embed(vlm, prompt):
    """Embeddings [L, H] of a prompt, features in place."""
    input_ids = torch.tensor([prompt.input_ids], device=vlm.model.device)
    if prompt.features is None:
        return vlm.model.get_input_embeddings()(input_ids)[0]
    return vlm.model.embed(input_ids, prompt.features)[0]


def _append(vlm, embeds, ids):
    new = vlm.model.get_input_embeddings()(torch.tensor(ids, device=embeds.device, dtype=torch.long))
    return torch.cat([embeds, new])

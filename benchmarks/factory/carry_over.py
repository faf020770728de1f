"""The weights of a trained nano under another tokenizer: every row moves to its piece's new number."""

import torch
from random_nano import CONFIG, random_vlm

from ivlkit.models.export.export import save_released
from ivlkit.models.load import load
from ivlkit.nano.vocabulary import ACCENTED, without_accents

EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"


def carry_over(old, folder, *, config=CONFIG):
    """Write the model of the folder `old` to `folder` (made if missing) with the tokenizer that ships.

    What isn't a row of a piece is copied. A piece of both tokenizers keeps its rows. Another one begins with the mean
    of the rows that the old tokenizer spells it with; the embedding of a letter with an accent is that of the letter
    without. Its row of the head isn't: both letters would be equally likely at first, and every e as likely as é.

    Args: config: config.json of the new model, as large as the old one in all but its rows.
    Returns: the folder, in the released layout.
    """
    source = load(old, device="cpu", dtype=torch.float32)
    vlm = random_vlm(folder, config=config)
    state = source.model.state_dict()
    pieces = vlm.tokenizer.convert_ids_to_tokens(range(config["llm_config"]["vocab_size"]))
    for key, origin in ((EMBEDDING, embedding_origin), (HEAD, head_origin)):
        rows = [state[key][origin(piece, source.tokenizer)].mean(0) for piece in pieces]
        state[key] = torch.stack(rows)  # [V, H] → [V', H]
    vlm.model.load_state_dict(state)
    save_released(vlm, folder)
    return vlm.folder


def embedding_origin(piece, tokenizer):
    """Numbers in the old tokenizer: "é" → [that of "e"]."""
    return head_origin(without_accents(piece) if piece in ACCENTED else piece, tokenizer)


def head_origin(piece, tokenizer):
    """Numbers in the old tokenizer: its own, or of what spells it: "é" → those of the bytes C3 and A9."""
    known = tokenizer.get_vocab()
    return [known[piece]] if piece in known else tokenizer.encode(piece, add_special_tokens=False)

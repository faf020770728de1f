"""How long a whole project takes: training, asking before and after, exporting. Predicted, in one line."""

import math
from datetime import datetime, timedelta

from ..loop.schedule import forward_operations

BATCH = 16  # rows that an evaluation asks at once
# Fitted to the 2B on one H200, 512 rows of 8.2 tiles: 19.0 replies of a word a second, 12.6 of 32 tokens.
ASKING_SHARE = 0.33  # of a card's measured matrix rate, reached while questions are read
LAYER_SECONDS = 0.6e-3  # of a decoder layer for one token of each of `BATCH` replies, where launching kernels decides
EXPORT_GB_PER_SECOND = 0.2  # weights written, loaded again twice and compared: assumed, a local disk
START_MINUTES = 0.3  # a process of its own that imports torch and loads the model


def outlook(plan, *, rows, asks=3, reply_tokens=16, export="released", now=None):
    """One line: "train 6 + ask 3 × 59 rows 2 + export 3 minutes, 4.4 GB, done at about 15:40 (predicted …)".

    Args:
        rows: to be asked. asks: how often: before, after, with shuffled pictures.
        reply_tokens: of a reply, the closing one counted. export: the layout, or False.
        now: a `datetime`; default the clock's.
    """
    job, case = plan.job, plan.cases[0]
    if case.minutes is None:
        return "minutes unknown: name a card that is listed (training.estimate.cards.CARDS), and give data"
    weights_gb = 2 * sum(value.numel() for value in job.model.parameters()) / 1e9
    asking = asks * (rows * reply_seconds(plan, reply_tokens) / 60 + START_MINUTES)
    parts = {"train": case.minutes + START_MINUTES, f"ask {asks} × {rows:,} rows": asking}
    written_gb = weights_gb if export and export != "adapter" else 0.0
    if export:
        parts["export"] = written_gb / EXPORT_GB_PER_SECOND / 60 + START_MINUTES
    end = (now or datetime.now()) + timedelta(minutes=sum(parts.values()))
    minutes = " + ".join(f"{name} {math.ceil(each)}" for name, each in parts.items())
    disk_gb = plan.disk_gb + written_gb
    return (
        f"{minutes} minutes, {disk_gb:.1f} GB, done at about {end:%H:%M} "
        f"(predicted; replies of {reply_tokens} tokens, a longer one takes longer)"
    )


def reply_seconds(plan, reply_tokens):
    """Seconds a row in batches of `BATCH`: its question read, then a token after the other."""
    job, case = plan.job, plan.cases[0]
    tile, token = forward_operations(job.config)
    reading = (tile * case.row_tiles + token * case.row_tokens) / (ASKING_SHARE * job.place.card.matrix_rate)
    text = job.config.text_config
    weights = 2 * sum(value.numel() for value in job.model.parameters())
    launching = LAYER_SECONDS * text.num_hidden_layers if job.place.device_type == "cuda" else 0.0
    step = max(weights / (job.place.card.tb_per_second * 1e12), launching)
    return reading + reply_tokens * step / BATCH

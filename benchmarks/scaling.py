"""How time and memory grow with tokens, tiles, LoRA rank and GPUs: `scaling.md` from the planner's own arithmetic.

    python benchmarks/scaling.py > benchmarks/scaling.md          # no GPU, no weights, half a minute

Nothing is measured here; what was is said beside it. Traffic between GPUs is counted on paper, from parameter counts.
"""

from dataclasses import replace
from types import SimpleNamespace

from ivlkit.hardware import GIB
from ivlkit.models.shapes import config_of
from ivlkit.training.engine.distributed import is_sharded
from ivlkit.training.estimate.cards import CARDS, MEASURED
from ivlkit.training.estimate.planner import prepared_shape
from ivlkit.training.estimate.prediction import batch_parts, needed_gib, predict_seconds
from ivlkit.training.recipes import recipe

PLACE = SimpleNamespace(card=CARDS["H100"], device_type="cuda")
ROW_TOKENS, ROW_TILES = 2284, 8.2  # of a row of the mix, on average
STEP_ROWS = 128
NVLINK, NETWORK = 300, 50  # GB a second that a GPU sends: assumed
MANY = (1, 2, 8, 16, 64)


def main():
    """Print the page."""
    print(HEAD)
    for section in (tokens_section, tiles_section, rank_section, gpus_section, traffic_section):
        print(section())


HEAD = """# How time and memory grow

Written by `scaling.py` from the planner (`ivlkit plan`) and from parameter counts. **Every number here is predicted**,
for H100 cards and the mix of `train_gpu.py` (2,284 tokens and 8.2 tiles a row). The runs listed under *Tokens* were
measured. What two GPUs did is in `NOTES.md`.
"""


def shape(chosen):
    """(a recipe's model without memory, its configuration)."""
    model, wrapped = prepared_shape(chosen, config_of(chosen.model)[0])
    return wrapped, model.config


def gib(chosen, *, tokens, tiles):
    """GiB that have to be free on each GPU."""
    wrapped, config = shape(chosen)
    batch = SimpleNamespace(tokens=tokens, tiles=tiles)
    return needed_gib(batch_parts(wrapped, config, chosen, batch, device_type="cuda"), "cuda")


def seconds(chosen, *, tokens, tiles, bins):
    """Of so many tokens and tiles, on as many cards as the recipe says."""
    wrapped, config = shape(chosen)
    return predict_seconds(wrapped, config, chosen, PLACE, tokens=tokens, tiles=tiles, bins=bins)


def table(header, rows):
    """Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]) + "\n"


def tokens_section():
    """A bin of 2b-lora, longer and longer."""
    rows = []
    for tokens in (4096, 8192, 14336, 16384, 32768):
        tiles = round(tokens * ROW_TILES / ROW_TOKENS)
        cells = [f"{tokens:,}", tiles]
        for policy in ("none", "full"):
            chosen = recipe("2b-lora", gpus=1, bin_tokens=max(tokens, 4096), gradient_checkpointing=policy)
            spent = seconds(chosen, tokens=tokens, tiles=tiles, bins=1)
            cells += [f"{gib(chosen, tokens=tokens, tiles=tiles):.1f}", f"{spent:.2f}"]
        rows.append(cells)
    header = ("tokens a bin", "tiles", "GiB", "s", "GiB, recomputed", "s, recomputed")
    measured = "\n".join(
        f"* {one.model} {one.language}, bins of {one.bin_tokens:,}, recomputed: {one.gradient_checkpointing}"
        f"{', compiled' if one.compile else ''}, {one.weights}{', tower on the host' if one.vision_offload else ''}: "
        f"{one.peak_gib} GiB allocated, {one.tokens_a_second:,} tokens/s on an {one.card}"
        for one in MEASURED
    )
    return f"""## Tokens
Memory is what stays (weights, adapters, their state) and so much a token. Time is the same for every token, since
samples of a bin don't see each other: attention grows with the square of a *row*. Its scores, which the planner leaves
out, are 7 % of the 2B's arithmetic in a row of 2,284 tokens and 13 % in one of 4,096. `2b-lora`, eager:

{table(header, rows)}
Measured by `train_gpu.py`:

{measured}
"""


def tiles_section():
    """A row of one picture with more and more tiles."""
    rows = []
    for most in (1, 3, 6, 12, 24):
        seen = most + (most > 1)
        tokens, cells = 256 * seen + 185, [most, 256 * seen]
        for key in ("2b", "26b"):
            chosen = recipe(f"{key}-lora", gpus=1, gradient_checkpointing="full", max_seq_length=8192)
            both = seconds(chosen, tokens=tokens, tiles=seen, bins=1)
            alone = both - seconds(chosen, tokens=tokens, tiles=0, bins=1)
            cells += [f"{both:.3f}", f"{alone / both:.0%}"]
        rows.append([*cells, 16384 // tokens])
    header = (
        "tiles",
        "image tokens",
        "2B s a row",
        "of it the tower",
        "26B s a row",
        "of it the tower",
        "rows a bin of 16,384",
    )
    return f"""## Tiles
Each tile is 256 tokens for the language model and one pass of the tower, so time and memory grow with tiles as with
tokens; the thumbnail is one more where there are several. One picture and 185 tokens of text, LoRA, recomputed:

{table(header, rows)}"""


def rank_section():
    """Adapters of higher rank."""
    rows = []
    for rank in (4, 16, 64, 256):
        cells = [rank]
        for key in ("2b", "26b"):
            chosen = recipe(f"{key}-lora", gpus=1, lora_rank=rank, lora_alpha=2 * rank, gradient_checkpointing="full")
            trained, _ = counts(chosen)
            held = 16 * trained / GIB  # float32 masters, gradients, two moments
            cells += [f"{trained / 1e6:,.1f}", f"{held:.2f}", f"{gib(chosen, tokens=8192, tiles=29):.1f}"]
        rows.append(cells)
    header = (
        "rank",
        "2B trained, M",
        "GiB held for it",
        "GiB in all",
        "26B trained, M",
        "GiB held for it",
        "GiB in all",
    )
    return f"""## LoRA rank
Adapters grow with the rank and cost 16 bytes a parameter; the model beside them does not change. Their arithmetic grows
likewise: at 16 they are 1 % of the 2B's decoder, at 256 18 %. Bins of 8,192, recomputed:

{table(header, rows)}"""


def counts(chosen):
    """(trained parameters, {part: all}) of a recipe."""
    wrapped, _ = shape(chosen)
    trained = tower = rest = 0
    for name, value in wrapped.named_parameters():
        trained += value.numel() * value.requires_grad
        if ".original_module." not in name:
            tower, rest = (tower + value.numel(), rest) if ".vision_tower." in name else (tower, rest + value.numel())
    return trained, {"tower": tower, "rest": rest}


RUNS = (("2b-full", (0, 1, 2, 3)), ("4b-full", (0, 1, 2, 3)), ("26b-lora", (0, 3)), ("26b-full", (1, 2, 3)))


def gpus_section():
    """Memory of a GPU by stage and number."""
    rows = []
    for name, stages in RUNS:
        for stage in stages:
            cells = [f"`{name}`", f"ZeRO-{stage}" if stage else "DDP"]
            for gpus in MANY:
                chosen = recipe(name, gpus=gpus, zero_stage=stage, per_device_batch=2, total_batch=STEP_ROWS)
                cells.append(f"{gib(chosen, tokens=8192, tiles=29):.0f}")
            rows.append(cells)
    header = ("recipe", "engine", *(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in MANY))
    return f"""## GPUs: memory
GiB that each has to have free, bins of 8,192 tokens, recomputed. On one GPU ZeRO is not used: float32 masters. Under
ZeRO-3 weights are fetched layer by layer, at most 10⁹ at once (`stage3_max_live_parameters` as released: 1.9 GiB).

{table(header, rows)}"""


def traffic_gb(chosen, micro_batches):
    """GB that each GPU sends in a step. A sum or a fetch over N GPUs sends (N - 1) / N of its bytes, from each.

    DDP sums float32 gradients and hands the sums out. ZeRO-1 sums bf16 gradients and hands out new weights; ZeRO-2 sums
    after every micro-batch; ZeRO-3 fetches weights for forward, and for backward all but those of a frozen tower.
    """
    trained, parts = counts(chosen)
    frozen_tower = parts["tower"] if chosen.vision == "frozen" else 0
    fetched = 2 * (parts["tower"] + parts["rest"]) - frozen_tower
    values = {
        0: 2 * 2 * trained,
        1: 2 * trained,
        2: (micro_batches + 1) * trained,
        3: micro_batches * (fetched + trained),
    }[chosen.zero_stage]
    return 2 * values * (chosen.gpus - 1) / chosen.gpus / 1e9


def traffic_section():
    """GB a step, and seconds beside those of arithmetic."""
    rows = []
    for name, stages in RUNS:
        for stage in stages:
            for gpus in (8, 64):
                rows.append(_traffic_row(recipe(name, gpus=gpus, zero_stage=stage, total_batch=STEP_ROWS)))
    header = ("recipe", "engine", "GPUs", "micro-batches", "GB sent", f"s at {NVLINK} GB/s", f"s at {NETWORK} GB/s")
    return f"""## GPUs: traffic
What each GPU sends in a step of {STEP_ROWS} rows, in bins of 8,192 tokens, and the seconds that takes at {NVLINK} GB/s
(NVLink in one host: assumed) and at {NETWORK} GB/s (one network card of 400 Gbit/s a GPU between hosts: assumed),
beside the seconds of arithmetic. The two overlap: the longer one counts, if all goes well.

{table((*header, "s of arithmetic"), rows)}
Read it so: within a host every stage hides behind arithmetic. Between hosts, 64 GPUs with one bin each send about as
long as they compute: the 26B under ZeRO-3 fetches its weights twice for every micro-batch, however many GPUs there are.
More rows a micro-batch, so that a fetch serves more tokens, are what helps; so would weights divided within each host
only, which this kit does not set up.
"""


def _traffic_row(chosen):
    tokens, tiles = STEP_ROWS * ROW_TOKENS, STEP_ROWS * ROW_TILES
    micro_batches = max(1, -(-tokens // (8192 * chosen.gpus)))
    sent = traffic_gb(chosen, micro_batches)
    alone = replace(chosen, gpus=1)
    spent = seconds(alone, tokens=tokens, tiles=tiles, bins=micro_batches * chosen.gpus) / chosen.gpus
    engine = f"ZeRO-{chosen.zero_stage}" if is_sharded(chosen) else "DDP"
    times = (f"{sent / rate:.2f}" for rate in (NVLINK, NETWORK))
    return [f"`{chosen.name}`", engine, chosen.gpus, micro_batches, f"{sent:.1f}", *times, f"{spent:.2f}"]


if __name__ == "__main__":
    main()

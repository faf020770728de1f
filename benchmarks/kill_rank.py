"""One of several ranks is killed while a checkpoint is written; the run goes on, and is held against undisturbed ones.

    python benchmarks/kill_rank.py --key 2b --tokenizer 'FOLDER/internvl-{key}' --zero 1 --work /tmp/kill      # GPUs
    python benchmarks/kill_rank.py --key nano --method full --zero 2 --work /tmp/kill          # two processes on a CPU

The same four steps are trained by two runs that nobody disturbs and, once for each rank, by one whose rank gets SIGKILL
while the second checkpoint lies half written; trained again it goes on from the first, or from the second where rank 0
still made it whole. "Unequal" are tensors of the final weights that are not the same bits as the first run's, "apart"
is their largest difference: what the second undisturbed run has is this machine's own.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

import psutil
from safetensors.torch import load_file
from train_gpu import write_mix, written_model
from true_size import show

import ivlkit as ivl
from ivlkit.models.processor import load_processor

STEPS, ROWS = 4, 8  # of a step


def main():
    """Two undisturbed runs and one for each rank; exit code 1 if one did not go on, or lost a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--key", default="2b")
    parser.add_argument("--method", default="lora", choices=("lora", "full"))
    parser.add_argument("--tokenizer")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--zero", type=int, default=1)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    model = written_model(options.work / options.key, options.key, options.tokenizer)
    data = write_mix(model.parent, load_processor(model), rows=STEPS * ROWS)
    sizes = {"total_batch": ROWS, "save_steps": STEPS // 2, "save_total_limit": 1, "epochs": 1, "packing": True}
    chosen = ivl.recipe(
        f"{options.key}-{options.method}", model=str(model), gpus=options.gpus, zero_stage=options.zero, **sizes
    )
    seen, first = [], None
    for rank in (None, None, *range(options.gpus)):
        folder = options.work / f"run-{len(seen)}"
        shutil.rmtree(folder, ignore_errors=True)
        began, run = time.monotonic(), ivl.train(chosen, data, folder=folder)
        kept = []
        if rank is not None:
            kept = kill(run, rank)
            run = ivl.train(chosen, data, folder=folder)
        weights = final_weights(run.wait())
        first = first or weights
        told = {
            "killed": rank,
            "went_on": run.history[: len(kept)] == kept,  # begun anew, their seconds would be others
            "losses": [line["loss"] for line in run.history],
            **beside(first, weights),
            "seconds": round(time.monotonic() - began, 1),
        }
        show(f"{options.key}-{options.method}", zero=options.zero, **told)
        seen.append(told)
    return int(not all(one["went_on"] and len(one["losses"]) == STEPS for one in seen))


def kill(run, rank):
    """Kill that rank while the second checkpoint is half written. Returns: the log up to the first, once all ended."""
    part = run.folder / f"checkpoint-{STEPS}.part"
    while not part.exists():
        if run.state != "running":
            raise SystemExit(f"{run.folder}: {run.state} before its second checkpoint: {run.error}")
        time.sleep(0.001)
    launcher = psutil.Process(int((run.folder / "pid").read_text()))
    ranks = [each for each in launcher.children() if "run.yaml" in " ".join(each.cmdline())]
    next(each for each in ranks if each.environ().get("RANK") == str(rank)).kill()
    while run.state == "running":
        time.sleep(0.1)
    if run.state != "failed":
        raise SystemExit(f"{run.folder}: {run.state}; expected one that failed in its second checkpoint")
    return run.history[: STEPS // 2]


def final_weights(run):
    """{name: tensor} that the run ended with."""
    files = (run.folder / "final").glob("*model*.safetensors")
    return {name: tensor for path in sorted(files) for name, tensor in load_file(path).items()}


def beside(expected, found):
    """How many tensors are not the same bits, and the largest difference of a value."""
    assert expected.keys() == found.keys()
    unequal = [name for name in expected if not expected[name].equal(found[name])]
    apart = (float((expected[name].float() - found[name].float()).abs().max()) for name in unequal)
    return {"tensors": len(expected), "unequal": len(unequal), "apart": max(apart, default=0.0)}


if __name__ == "__main__":
    sys.exit(main())

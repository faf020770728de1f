"""What a run survives: kills at random moments, a full disk, damaged checkpoints. On a CPU, in minutes.

    python benchmarks/faults.py                     # 100 kills of nano with LoRA, 100 in full, and the disk and damage
    python benchmarks/faults.py --kills 10 --recipe nano-full --model MODEL_FOLDER

Each process of a run is a fork of this one, which has imported everything and computed nothing, so that a life costs
no start. It does what `ivlkit train run.yaml` does. Half of the kills come at any moment of a life, half once a
checkpoint, or the final weights, begin to be written. A killed run is started again until it ends; then its final
weights are compared, bit by bit, with those of a run that nobody disturbed, and the next run begins.
"""

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1"}  # before torch is imported; two calls, one a kind, fit on two cores

from PIL import Image
from safetensors import deserialize

import ivlkit.training.loop.build
import ivlkit.training.loop.train  # noqa: F401  # here, so that a life does not import it
from ivlkit.data.datasets.opening import open_data
from ivlkit.training import runs
from ivlkit.training.checkpoints import checkpoints, find_damage
from ivlkit.training.recipes import recipe
from ivlkit.training.run import Run

ROWS, STEPS, SAVE_STEPS = 8, 24, 2
KINDS = ("nano-lora", "nano-full")


@dataclass
class Tally:
    """What the kills of one kind of run met."""

    kills: int = 0
    saving: int = 0  # left a checkpoint or final weights half written
    before_any: int = 0  # found no checkpoint yet
    lives: int = 0
    runs: int = 0
    unequal: list = field(default_factory=list)  # tensors of final weights that differ, by run
    failed: list = field(default_factory=list)  # a life that ended by itself, in an error
    longest_run: int = 0  # kills of one run


def main():
    """Run the three faults and print a JSON line each; exit code 1 if a run did not survive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of each kind of run")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", choices=KINDS, help="only this kind of run")
    parser.add_argument("--faults", nargs="*", choices=OTHERS, default=list(OTHERS), help="beside the kills")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = open_data(write_rows(folder))
        found = []
        for kind in [options.recipe] if options.recipe else KINDS:
            chosen = short_recipe(kind, options.model)
            found.append(kill_runs(chosen, data, folder / kind, kills=options.kills, seed=options.seed))
            found += [cause(chosen, data, folder / kind) for name, cause in OTHERS.items() if name in options.faults]
    return 0 if all(one["survived"] for one in found) else 1


def write_rows(folder):
    """A few coloured squares with a word each."""
    rows = []
    for number in range(ROWS):
        Image.new("RGB", (112, 112), (30 * number, 255 - 30 * number, 90)).save(folder / f"{number}.png")
        said = ({"from": "human", "value": "Which?"}, {"from": "gpt", "value": f"number {number}"})
        rows.append(json.dumps({"image": f"{number}.png", "conversations": said}))
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n")
    return folder / "train.jsonl"


def short_recipe(kind, model):
    """Two dozen steps of four rows, a checkpoint every two. Dropout, so that the random state has to be restored."""
    dropout = 0.1 if kind == "nano-lora" else 0.0
    short = {"total_batch": 4, "per_device_batch": 4, "epochs": STEPS * 4 / ROWS, "save_steps": SAVE_STEPS}
    return recipe(kind, model=model, lora_dropout=dropout, save_total_limit=2, **short)


# a life --------------------------------------------------------------------------------------------------------------


def start(run):
    """Train in a forked process: its number. It ends with 0, or with 1 after an error."""
    child = os.fork()
    if child:
        return child
    try:
        with open(run.folder / "output.txt", "ab") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        runs.execute(run.folder)
        os._exit(0)
    except BaseException:
        os._exit(1)


def live(run):
    """A whole life: whether it ended without an error, and its seconds."""
    began = time.monotonic()
    _, status = os.waitpid(start(run), 0)
    return status == 0, time.monotonic() - began


def live_until(run, is_time):
    """Kill a life once `is_time()`: "killed", or "finished" or "failed" where it ended before."""
    child = start(run)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "finished" if status == 0 else "failed"
        if is_time():
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            return "killed" if os.WIFSIGNALED(status) else "finished"
        time.sleep(0.0005)


def final_weights(run):
    """{name: (shape, bytes)} of what the run ended with, read without torch: this process must compute nothing."""
    (path,) = (run.folder / "final").glob("*model.safetensors")
    return {name: (tensor["shape"], bytes(tensor["data"])) for name, tensor in deserialize(path.read_bytes())}


# kills ---------------------------------------------------------------------------------------------------------------


def kill_runs(chosen, data, folder, *, kills, seed):
    """Kill runs until so many kills have been survived; every run is brought to its end and compared."""
    began, rng, tally = time.monotonic(), random.Random(seed), Tally()
    whole = runs.write_run(chosen, data, folder / "undisturbed")
    is_whole, life_seconds = live(whole)
    assert is_whole, (whole.folder / "output.txt").read_text()[-2000:]
    while tally.kills < kills and not tally.failed:
        run = runs.write_run(chosen, data, folder / f"run-{tally.runs}")
        kill_run(run, tally, rng, life_seconds=life_seconds, most=kills - tally.kills)
        tally.runs += 1
        if not tally.failed and (different := differing(whole, run)):
            tally.unequal.append({run.folder.name: different})
    return report(
        chosen,
        "kills",
        survived=not tally.failed and not tally.unequal,
        **vars(tally),
        undisturbed_seconds=round(life_seconds, 2),
        seconds=round(time.monotonic() - began, 1),
    )


def kill_run(run, tally, rng, *, life_seconds, most):
    """Start a run again after each kill, until it ends by itself: at the latest after `most` kills."""
    ended, before = "killed", tally.kills
    while ended == "killed":
        tally.lives += 1
        tally.before_any += not checkpoints(run.folder)
        is_last = tally.kills - before == most
        ended = live_until(run, (lambda: False) if is_last else choose_moment(run, rng, life_seconds))
        tally.kills += ended == "killed"
        tally.saving += ended == "killed" and any(run.folder.glob("*.part"))
    tally.longest_run = max(tally.longest_run, tally.kills - before)
    if ended == "failed":
        tally.failed.append({run.folder.name: run.error})


def choose_moment(run, rng, life_seconds):
    """A function that says when to kill: at any moment of a life, or a moment after something begins to be written."""
    if rng.random() < 0.5:
        end = time.monotonic() + rng.uniform(0, life_seconds)
        return lambda: time.monotonic() > end
    skipped, delay, seen = rng.randrange(4), rng.choice([0, rng.uniform(0, 0.02), rng.uniform(0, 0.1)]), []

    def is_time():
        for part in run.folder.glob("*.part"):
            if part.name not in (name for name, _ in seen):
                seen.append((part.name, time.monotonic()))
        return len(seen) > skipped and time.monotonic() >= seen[skipped][1] + delay

    return is_time


def differing(whole, run):
    """Names of final tensors that are not the same bits."""
    expected, found = final_weights(whole), final_weights(run)
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


# damage --------------------------------------------------------------------------------------------------------------


def damage_checkpoints(chosen, data, folder):
    """A byte of each file of the newest checkpoint is turned over, in turn; the weights are also cut, and removed."""
    whole, problems = folder / "undisturbed", []
    done = Run(whole)
    (name,) = (path.name for path in checkpoints(whole)[-1].glob("*model.safetensors"))
    victims = sorted(path.name for path in checkpoints(whole)[-1].iterdir())
    cases = [(turn_byte, victim) for victim in victims] + [(cut_in_half, name), (Path.unlink, name)]
    for number, (harm, victim) in enumerate(cases):
        run = runs.write_run(chosen, data, folder / f"damaged-{number}")
        copy_checkpoints(whole, run.folder)
        newest = checkpoints(run.folder)[-1]
        harm(newest / victim)
        ended, _ = live(run)
        is_said = any(line.startswith(f"{newest.name} is skipped") and "the one before" in line for line in run.notices)
        if not ended or not is_said or differing(done, run):
            problems.append(f"{harm.__name__} {victim}: {run.error or run.notices}")
    return report(chosen, "damaged checkpoints", survived=not problems, cases=len(cases), problems=problems)


def turn_byte(path):
    """Turn over the bits of one byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def cut_in_half(path):
    """Keep the first half."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def copy_checkpoints(source, target):
    """The state of a run that was killed late: all but its final weights."""
    for path in (*checkpoints(source), source / "log.jsonl", source / "plan.sha256"):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, target / path.name)


# a full disk ---------------------------------------------------------------------------------------------------------


def fill_disk(chosen, data, folder):
    """Train on a disk that has room for one checkpoint and a half, and then, with more room, to the end."""
    whole = Run(folder / "undisturbed")
    size = sum(path.stat().st_size for path in checkpoints(whole.folder)[-1].iterdir())
    small, large = (int(times * size) + 2**18 for times in (1.5, 4))
    with small_disk(folder / "disk", small) as resize:
        run = runs.write_run(chosen, data, folder / "disk" / "run")
        ended, _ = live(run)
        error, kept = run.error or "", checkpoints(run.folder)
        intact = [path.name for path in kept if not find_damage(path)]
        halves = [path.name for path in run.folder.glob("*.part")]
        resize(large)
        ended_later, _ = live(run)
        different = differing(whole, run) if ended_later else ["no final weights"]
    clear = "can't be written" in error and "its disk is full" in error and f"{intact[-1]} is whole" in error
    return report(
        chosen,
        "full disk",
        survived=not ended and clear and bool(intact) and not halves and not different,
        disk_mb=round(small / 1e6, 2),
        checkpoint_mb=round(size / 1e6, 2),
        error=error.replace(str(folder), ""),
        whole_checkpoints=intact,
        half_written=halves,
        unequal_after_room_was_made=different,
    )


@contextmanager
def small_disk(folder, size):
    """A tmpfs of so many bytes; `resize(bytes)` enlarges it. Needs root, of this machine or of a namespace of ours."""
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(flags, size):
        if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", flags, f"size={size}".encode()):
            code = ctypes.get_errno()
            raise OSError(
                code, f"{os.strerror(code)}: mounting a tmpfs; expected root; run it as root or under unshare -rm"
            )

    mount(0, size)
    try:
        yield lambda size: mount(32, size)  # MS_REMOUNT
    finally:
        libc.umount2(bytes(folder), 2)  # MNT_DETACH


def report(chosen, fault, *, survived, **details):
    """Print and return the line of one fault."""
    line = {"recipe": chosen.name, "model": chosen.model, "fault": fault, "survived": survived, **details}
    print(json.dumps(line), flush=True)
    return line


OTHERS = {"damage": damage_checkpoints, "disk": fill_disk}  # beside the kills, whose undisturbed run they take

if __name__ == "__main__":
    sys.exit(main())

"""What a run survives: kills at random moments and at every file event, a full disk, torn files. On a CPU.

    python benchmarks/faults.py                     # 100 kills of nano with LoRA, 100 in full, and the disk and damage
    python benchmarks/faults.py --kills 10 --recipe nano-full --model MODEL_FOLDER
    python benchmarks/faults.py --kills 0 --faults events torn ranks --jobs 2   # every one; --most 6: six of each

Each process of a run is a fork of this one, which has imported everything and computed nothing, so that a life costs
no start. It does what `ivlkit train run.yaml` does. Of the random kills half come at any moment of a life, half once a
checkpoint, or the final weights, begin to be written. A killed run is started again until it ends; then its final
weights are compared, bit by bit, with those of a run that nobody disturbed, and the next run begins.

events: two steps, each validated and saved; a run dies before each file event, and halfway through each file.
torn: each file of the newest checkpoint, and the run's own, is cut in half, emptied, zeroed, turned in a byte, removed.
ranks: either of two gloo ranks dies at file events of its own, under DDP and ZeRO-1; the other one is left to notice.
"""

import argparse
import ctypes
import importlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import file_events

os.environ |= file_events.preloaded("events", "ranks")
os.environ |= {"OMP_NUM_THREADS": "1"}  # before torch is imported; two calls, one a kind, fit on two cores

from PIL import Image
from safetensors import deserialize

import ivlkit.training.loop.build
import ivlkit.training.loop.execute
import ivlkit.training.loop.train  # noqa: F401  # here, so that a life does not import it
from ivlkit.data.datasets.opening import open_data
from ivlkit.training import runs
from ivlkit.training.checkpoints import checkpoints, find_damage
from ivlkit.training.log import read_steps
from ivlkit.training.loop import validation
from ivlkit.training.recipes import recipe

validation.ANSWER_TOKENS = 1  # of a validation row: an answer writes no file
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
    parser.add_argument("--kills", type=int, default=100, help="of each kind of run, at random moments")
    parser.add_argument("--most", type=int, help="so many cases of events, torn files and ranks; default: all")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", choices=KINDS, help="only this kind of run")
    parser.add_argument("--jobs", type=int, default=1, help="of events and torn files so many at once")
    parser.add_argument("--faults", nargs="*", choices=OTHERS, default=["damage", "disk"], help="beside the kills")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = open_data(write_rows(folder))
        found = []
        for kind in [options.recipe] if options.recipe else KINDS:
            chosen = short_recipe(kind, options.model)
            if options.kills:
                found.append(kill_runs(chosen, data, folder / kind, kills=options.kills, seed=options.seed))
            for name in options.faults:
                how = {"most": options.most, "jobs": options.jobs} if name in SAMPLED else {}
                found += OTHERS[name](chosen, data, folder / kind, **how)
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


def start(run, *, dies=None, **environ):
    """Train in a forked process: its number. It ends with 0, or with 1 after an error.

    Args: dies: (number of the file event that it dies at, or 0; whether halfway through). environ: of a rank.
    """
    child = os.fork()
    if child:
        return child
    try:
        os.environ |= environ
        if dies:
            file_events.arm(run.folder, run.folder.parent / f"events-{environ.get('RANK', 0)}.txt", *dies)
        with open(run.folder / "output.txt", "ab") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        runs.execute(run.folder)
        if dies:
            (run.folder.parent / IMPORTED).write_text("\n".join(sorted(sys.modules)))
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(1)


def live(run, **how):
    """A whole life: whether it ended without an error, and its seconds."""
    code, seconds = outlive(run, **how)
    return code == 0, seconds


def outlive(run, **how):
    """(exit code of a life, or minus the signal that ended it; its seconds)."""
    began = time.monotonic()
    _, status = os.waitpid(start(run, **how), 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - began


def undisturbed(chosen, data, folder, **described):
    """(a run that nobody disturbs, its seconds)."""
    whole = runs.write_run(chosen, data, folder / "undisturbed", **described)
    is_whole, seconds = (True, 0) if (whole.folder / "final").exists() else live(whole)
    assert is_whole, (whole.folder / "output.txt").read_text()[-2000:]
    return whole, seconds


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
    whole, life_seconds = undisturbed(chosen, data, folder)
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
    done, problems = undisturbed(chosen, data, folder)[0], []
    whole = done.folder
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
    yield report(chosen, "damaged checkpoints", survived=not problems, cases=len(cases), problems=problems)


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
    whole, _ = undisturbed(chosen, data, folder)
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
    yield report(
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


# file events ---------------------------------------------------------------------------------------------------------

IMPORTED = "imported.txt"
MEASURED = ("seconds", "memory_gib", "tokens")  # of a line of a log: not the same in two runs


def brief(chosen, **changes):
    """Two steps, each validated and saved; of checkpoints one is kept."""
    changes = {"epochs": 1, "save_steps": 1, "eval_steps": 1, "eval_samples": 1, "save_total_limit": 1} | changes
    return replace(chosen, workers=0, **changes)


def spread(cases, most):
    """At most so many, from the first to the last."""
    count = len(cases) if most is None else min(most, len(cases))
    return [cases[number * (len(cases) - 1) // max(1, count - 1)] for number in range(count)]


def kill_at_events(chosen, data, folder, *, most=None, jobs=1):
    """A run dies at each file event of its life, and halfway through each file; it must go on as if it had not."""
    began, folder, described = time.monotonic(), folder / "events", {"validation": data}
    whole = runs.write_run(brief(chosen), data, folder / "undisturbed", **described)
    assert live(whole, dies=(0, False))[0], whole.error
    events = read_events(folder, 0)
    cases = list(deaths(events))
    described |= {"whole": whole, "events": events, "folder": folder}
    seen = in_parallel(partial(kill_at, brief(chosen), data, **described), spread(cases, most), jobs)
    yield report(
        chosen,
        "kills at file events",
        survived=not any(one["wrong"] for one in seen),
        events=len(events),
        kinds=Counter(kind for kind, _ in events),
        cases=len(seen),
        halves=sum(one["half"] for one in seen),
        problems=[one for one in seen if one["wrong"]],
        slowest_seconds=max(one["seconds"] for one in seen),
        seconds=round(time.monotonic() - began, 1),
    )


def kill_at(chosen, data, case, *, whole, events, folder, validation):
    """One run, which dies at one event, and goes on: what is wrong with its end."""
    number, half = case
    run = runs.write_run(chosen, data, folder / f"{number}-{half}", validation=validation)
    code, first = outlive(run, dies=case)
    ended, second = live(run)
    wrong = unlike(whole, run) if ended else [f"did not go on: {run.error}"]
    wrong += [f"ended with {code}, and not by the kill"] * (code != -signal.SIGKILL)
    shutil.rmtree(run.folder)
    seconds = round(first + second, 2)
    return {"number": number, "event": events[number - 1], "half": half, "wrong": wrong, "seconds": seconds}


def in_parallel(try_case, cases, jobs):
    """What `try_case` returns of each case, by so many forks of this process, each with its share of the cases."""
    children, results = [], [Path(tempfile.mkdtemp()) / "cases.jsonl" for _ in range(jobs)]
    for number, path in enumerate(results):
        children.append(os.fork())
        if not children[-1]:
            with open(path, "w") as file:
                for case in cases[number::jobs]:
                    file.write(json.dumps(try_case(case)) + "\n")
                    file.flush()
            os._exit(0)
    failed = [status for child in children if (status := os.waitpid(child, 0)[1])]
    assert not failed, failed
    return [json.loads(line) for path in results for line in path.read_text().splitlines()]


def deaths(events):
    """(number of an event from 1, whether halfway through it): writes to a file in a row count as one.

    Of them before the first, before the last, and halfway through the one in the middle.
    """
    numbers = enumerate(events, 1)
    for (kind, _), group in groupby(numbers, key=lambda numbered: numbered[1]):
        each = [number for number, _ in group]
        if kind == "write":
            yield from sorted({(each[0], False), (each[len(each) // 2], True), (each[-1], False)})
        else:
            yield from ((number, False) for number in each)


def read_events(folder, rank):
    """[(kind, file), …] of the last life of a rank that was watched."""
    path = folder / f"events-{rank}.txt"
    lines = path.read_text().splitlines()
    path.unlink()
    for name in (folder / IMPORTED).read_text().splitlines():  # the lives that follow find it imported
        with suppress(Exception):
            importlib.import_module(name)
    return [tuple(line.split("\t")) for line in lines]


def unlike(whole, run):
    """What differs between two runs that have ended: final tensors, lines of logs, files."""
    found = [f"{name} has other bits" for name in differing(whole, run)]
    for log in ("log.jsonl", "validation.jsonl"):
        expected, lines = ([strip(line) for line in read_steps(one.folder / log)] for one in (whole, run))
        found += [f"{log} has other lines: {lines}, not {expected}"] if lines != expected else []
    expected, names = ({path.name for path in one.folder.iterdir()} - {"notices.txt"} for one in (whole, run))
    return found + ([f"other files: {sorted(names ^ expected)}"] if names != expected else [])


def strip(line):
    """A line of a log without what was measured."""
    return {name: value for name, value in line.items() if name not in MEASURED}


# torn files ----------------------------------------------------------------------------------------------------------


def empty(path):
    """Nothing is left, as after a crash of a machine whose file system writes names before contents."""
    path.write_bytes(b"")


def zero(path):
    """As many bytes as before, all zero."""
    path.write_bytes(bytes(path.stat().st_size))


def tear_files(chosen, data, folder, *, most=None, jobs=1):
    """A torn file is refused by name, or an older whole checkpoint is taken: a run never ends with other bits."""
    folder, described = folder / "torn", {"validation": data}
    chosen = brief(chosen, save_total_limit=2, epochs=1.5)
    whole, _ = undisturbed(chosen, data, folder, **described)
    newest = checkpoints(whole.folder)[-1].name
    files = sorted(f"{newest}/{path.name}" for path in (whole.folder / newest).iterdir())
    files += sorted(path.name for path in whole.folder.iterdir() if path.name not in UNREAD and path.is_file())
    files += sorted(f"{path.parent.name}/{path.name}" for path in whole.folder.glob("best-*/*"))
    harms = (cut_in_half, empty, zero, turn_byte, Path.unlink)
    cases = spread([(harm, file) for file in files for harm in harms], most)
    seen = in_parallel(partial(tear, chosen, data, whole=whole, **described), cases, jobs)
    problems, ends = [one for one in seen if one["wrong"]], Counter(f"{one['of']}: {one['end']}" for one in seen)
    yield report(chosen, "torn files", survived=not problems, cases=len(seen), ends=ends, problems=problems)


def tear(chosen, data, case, *, whole, validation):
    """A run that was killed late, one file of it torn, goes on: what became of it."""
    harm, file = case
    run = runs.write_run(
        chosen, data, whole.folder.with_name(f"{harm.__name__}-{file.replace('/', '-')}"), validation=validation
    )
    shutil.copytree(whole.folder, run.folder, dirs_exist_ok=True)
    shutil.rmtree(run.folder / "final")
    harm(run.folder / file)
    end, wrong = how_it_ends(run, whole, file)
    shutil.rmtree(run.folder)
    return {"of": file.partition("/")[0], "harm": harm.__name__, "file": file, "end": end, "wrong": wrong}


UNREAD = {"output.txt", "pid", "start.lock", "notices.txt"}


def how_it_ends(run, whole, file):
    """(what became of it, "" or what is wrong with that)."""
    ended, _ = live(run)
    said = (run.folder / "output.txt").read_text()
    if not ended:
        last = said.splitlines()[-1]
        return "refused", "" if file.rpartition("/")[2] in last else f"refused without its name: {last}"
    wrong = "; ".join(f"{one} has other bits" for one in differing(whole, run))
    if "is skipped" in said:
        return "the checkpoint before is taken", wrong
    return "passed over, which is said" if "can't be taken" in said else "not needed", wrong


# two ranks -----------------------------------------------------------------------------------------------------------

NOTICED = 60  # seconds that a rank has to notice that the other one is gone, before it is killed as by torchrun


def kill_ranks(chosen, data, folder, *, most=None, jobs=1):
    """Either rank dies at file events of its own; the run goes on, to the same bits."""
    began, folder = time.monotonic(), folder / "ranks"
    chosen = brief(chosen, per_device_batch=2, gpus=2, zero_stage=int(chosen.name == "nano-full"))
    whole = runs.write_run(chosen, data, folder / "undisturbed")
    assert live_in_two(whole, dying=0, dies=(0, False)) == [0, 0], (whole.folder / "output.txt").read_text()[-3000:]
    events = [read_events(folder, rank) for rank in (0, 1)]
    cases = [(rank, *death) for rank in (0, 1) for death in deaths(events[rank])]
    seen = in_parallel(
        partial(kill_rank, chosen, data, whole=whole, events=events, folder=folder), spread(cases, most), jobs
    )
    yield report(
        chosen,
        "kills of a rank",
        survived=not any(one["wrong"] for one in seen),
        zero_stage=chosen.zero_stage,
        events=[len(one) for one in events],
        cases=[sum(one["rank"] == rank for one in seen) for rank in (0, 1)],
        others=Counter(one["other"] for one in seen),
        problems=[one for one in seen if one["wrong"]],
        seconds=round(time.monotonic() - began, 1),
    )


def kill_rank(chosen, data, case, *, whole, events, folder):
    """A run of two ranks, of which one dies at one event, goes on: what is wrong with its end."""
    rank, number, half = case
    run = runs.write_run(chosen, data, folder / "-".join(map(str, case)))
    first = live_in_two(run, dying=rank, dies=(number, half))
    wrong = unlike(whole, run) if live_in_two(run) == [0, 0] else [f"did not go on: {run.error}"]
    wrong += [f"ended with {first[rank]}, and not by the kill"] * (first[rank] != signal.SIGKILL)
    shutil.rmtree(run.folder)
    other = "killed after a while" if first[1 - rank] == signal.SIGKILL else "ended by itself"
    return {"rank": rank, "event": events[rank][number - 1], "half": half, "other": other, "wrong": wrong}


def live_in_two(run, *, dying=None, dies=None):
    """The wait status of each rank. One that outlives the other is killed after a while, as a launcher does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = []
    for rank in (0, 1):
        armed = None if dies is None else dies if rank == dying else (0, False)
        ranks.append(start(run, dies=armed, RANK=str(rank), LOCAL_RANK=str(rank), **common))
    ended, statuses = None, {}
    while len(statuses) < 2:
        for child in set(ranks) - statuses.keys():
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                statuses[child], ended = status, ended or time.monotonic()
            elif ended and time.monotonic() - ended > NOTICED:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    return [statuses[child] for child in ranks]


def report(chosen, fault, *, survived, **details):
    """Print and return the line of one fault."""
    line = {"recipe": chosen.name, "model": chosen.model, "fault": fault, "survived": survived, **details}
    print(json.dumps(line), flush=True)
    return line


OTHERS = {  # beside the kills
    "damage": damage_checkpoints,
    "disk": fill_disk,
    "events": kill_at_events,
    "torn": tear_files,
    "ranks": kill_ranks,
}
SAMPLED = {"events", "torn", "ranks"}

if __name__ == "__main__":
    sys.exit(main())

"""What the data workbench costs: `python benchmarks/data.py doctor`, `… index`, `… tiles`. Prints its figures.

Rows and pictures are generated under --work (default: a folder of this benchmark in the system's temporary one) and
found there again by a second run. Memory is summed over all processes, twice: as resident sets, which count shared
pages once for each process, and as proportional ones, which count them once.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from PIL import Image, ImageDraw

WORDS = [
    "what",
    "is",
    "the",
    "total",
    "of",
    "this",
    "receipt",
    "which",
    "day",
    "had",
    "most",
    "visitors",
    "name",
    "colour",
    "shape",
    "left",
    "right",
    "above",
    "under",
    "a",
    "an",
    "in",
    "of",
    "invoice",
    "number",
    "street",
    "Berlin",
    "1998",
    "3.50",
    "please",
    "answer",
    "with",
    "single",
    "word",
    "phrase",
    "describe",
    "picture",
    "detail",
    "people",
    "car",
    "tree",
    "blue",
    "orange",
    "second",
    "third",
    "because",
    "therefore",
    "visible",
    "background",
    "small",
    "large",
    "table",
    "chart",
    "axis",
    "legend",
]
SIZES = ((640, 480), (480, 640), (320, 320), (800, 200), (224, 448), (1024, 768))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ivlkit-benchmark-data")
    parts = parser.add_subparsers(required=True, metavar="PART")
    for add in (add_doctor, add_index, add_tiles, add_check_once):
        add(parts)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    options.run(options)


# doctor --------------------------------------------------------------------------------------------------------------


def add_doctor(parts):
    parser = parts.add_parser("doctor", help="check generated rows: seconds, peak memory of all processes")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pictures", type=int, default=10_000, help="distinct JPEG files that the rows share")
    parser.add_argument("--model", default="nano", help="whose tokenizer counts")
    parser.add_argument("--workers", type=int, default=2)
    parser.set_defaults(run=run_doctor)


def run_doctor(options):
    """Structure, structure with exact tokens and tiles, and decoding a core."""
    path = make_rows(options.work, rows=options.rows, pictures=options.pictures)
    print(
        f"{options.rows:,} rows, {path.stat().st_size / 1e6:.0f} MB, {options.pictures:,} pictures, "
        f"{options.workers} workers"
    )
    for label, model in (("structure", None), (f"tokens and tiles ({options.model})", options.model)):
        told = measure_command(
            [
                sys.executable,
                __file__,
                "--work",
                options.work,
                "check-once",
                path,
                str(options.workers),
                *([model] if model else []),
            ]
        )
        print(f"{label}: {told}")
    decode_rate(path)


def make_rows(folder, *, rows, pictures):
    """A JSONL like a real mix: 70 % of the rows with one picture, 10 % with two, 20 % text; answers of 1–60 words."""
    path = folder / f"rows-{rows}-{pictures}.jsonl"
    make_pictures(folder / "images", count=pictures)
    if path.exists():
        return path
    draw = random.Random(0)
    with open(path.with_suffix(".part"), "w") as file:
        for number in range(rows):
            file.write(json.dumps(make_row(draw, number, pictures)) + "\n")
    path.with_suffix(".part").rename(path)
    return path


def make_row(draw, number, pictures):
    count = draw.choices((1, 2, 0), (7, 1, 2))[0]
    names = [f"images/{draw.randrange(pictures) // 1000}/{draw.randrange(1000)}.jpg" for _ in range(count)]
    question = "<image>\n" * count + " ".join(draw.choices(WORDS, k=draw.randint(5, 25))) + "?"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": make_text(draw)}]
    if draw.random() < 0.3:
        turns += [{"from": "human", "value": make_text(draw) + "?"}, {"from": "gpt", "value": make_text(draw)}]
    image = {"image": names[0] if count == 1 else names} if count else {}
    return {"id": number, **image, "conversations": turns}


def make_text(draw):
    return " ".join(draw.choices(WORDS, k=draw.choice((1, 2, 5, 20, 60)))) + "."


def make_pictures(folder, *, count):
    for number in range(count):
        path = folder / str(number // 1000) / f"{number % 1000}.jpg"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", SIZES[number % len(SIZES)], (number % 256, number // 256, 90))
        ImageDraw.Draw(image).text((5, 5), str(number), fill=(255, 255, 255))
        image.save(path, quality=85)


def add_check_once(parts):
    parser = parts.add_parser("check-once")
    parser.add_argument("path")
    parser.add_argument("workers", type=int)
    parser.add_argument("model", nargs="?")
    parser.set_defaults(run=run_check_once)


def run_check_once(options):
    from ivlkit import check

    began = time.perf_counter()
    report = check(options.path, options.model, workers=options.workers)
    seconds = time.perf_counter() - began
    stats = report.stats
    assert stats["rows"] == stats["good"] + stats["bad"]
    print(f"{seconds:.1f} s, {stats['rows'] / seconds:,.0f} rows/s, good {stats['good']:,}, findings {report.counts}")


def decode_rate(path, limit=600):
    """Pictures fully decoded a second by one core."""
    from ivlkit.data.rows.media import open_image

    names = sorted((path.parent / "images").glob("0/*.jpg"))[:limit]
    began = time.process_time()
    for name in names:
        open_image(name)
    print(f"decoding: {len(names) / (time.process_time() - began):,.0f} images/s a core (drawn JPEGs of 0.1–0.8 Mpx)")


# index ---------------------------------------------------------------------------------------------------------------


def add_index(parts):
    parser = parts.add_parser("index", help="index generated rows: rate, bytes a row, memory of readers")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--workers", type=int, default=8)
    parser.set_defaults(run=run_index)


def run_index(options):
    """Build once, then read at random from several processes."""
    from ivlkit.data.datasets.index import LineIndex

    path = make_lines(options.work, rows=options.rows)
    for stored in (path.parent / ".ivlkit").glob(f"{path.name}.*"):
        stored.unlink()
    began = time.perf_counter()
    index = LineIndex(path)
    seconds = time.perf_counter() - began
    size = path.stat().st_size
    print(
        f"{len(index):,} rows, {size / 1e9:.2f} GB: built in {seconds:.1f} s, {len(index) / seconds / 1e6:.1f} M rows/s"
    )
    stored = next((path.parent / ".ivlkit").glob(f"{path.name}.index.npy")).stat().st_size
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"index: {stored / len(index):.2f} bytes a row on disk; peak of the process that built it {peak_mib:.0f} MiB")
    began = time.perf_counter()
    LineIndex(path)
    print(f"opened again in {(time.perf_counter() - began) * 1e3:.1f} ms")
    for workers in (1, options.workers):
        read_with(path, workers)


def read_with(path, workers, *, reads=20_000):
    """Private memory of each reader after random reads: what a worker adds; mapped pages are shared."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        told = pool.starmap(read_rows, [(path, seed, reads) for seed in range(workers)], chunksize=1)
    private = [mib for mib, _ in told]
    rate = sum(rate for _, rate in told)
    print(
        f"{workers} readers: {max(private):.1f} MiB of their own each at most (beyond the bare process), "
        f"{rate:,.0f} rows/s in all"
    )


def read_rows(path, seed, reads):
    from ivlkit.data.datasets.opening import open_data

    before = own_mib()
    data = open_data(path)
    draw = random.Random(seed)
    began = time.perf_counter()
    for _ in range(reads):
        data[draw.randrange(len(data))]
    return own_mib() - before, reads / (time.perf_counter() - began)


def own_mib():
    """Memory that no other process can share: all but the pages of mapped files."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


def make_lines(folder, *, rows):
    path = folder / f"lines-{rows}.jsonl"
    if path.exists():
        return path
    with open(path.with_suffix(".part"), "w") as file:
        for start in range(0, rows, 10_000):
            file.write("".join(make_line(number) for number in range(start, min(start + 10_000, rows))))
    path.with_suffix(".part").rename(path)
    return path


def make_line(number):
    turns = (
        f'[{{"from": "human", "value": "<image>\\nWhat is in {number}?"}}, {{"from": "gpt", "value": "{number % 97}"}}]'
    )
    return f'{{"id": {number}, "image": "images/{number}.jpg", "conversations": {turns}}}\n'


# memory of several processes -----------------------------------------------------------------------------------------


def measure_command(command):
    """Run it; what it printed, and the peak memory of it and its children together."""
    child = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True, env=os.environ)
    peak = [0.0, 0.0]
    done = threading.Event()
    watcher = threading.Thread(target=watch_memory, args=(child.pid, peak, done))
    watcher.start()
    printed, _ = child.communicate()
    done.set()
    watcher.join()
    return f"{printed.strip()}; peak of all processes {peak[0]:.0f} MiB resident, {peak[1]:.0f} MiB proportional"


def watch_memory(pid, peak, done):
    while not done.wait(0.2):
        try:
            parent = psutil.Process(pid)
            infos = [process.memory_full_info() for process in (parent, *parent.children(recursive=True))]
        except psutil.Error:
            continue
        peak[0] = max(peak[0], sum(info.rss for info in infos) / 2**20)
        peak[1] = max(peak[1], sum(info.pss for info in infos) / 2**20)


# tiles ---------------------------------------------------------------------------------------------------------------


def add_tiles(parts):
    """JPEG → tiles on one core, measured by benchmarks/tiles.py."""
    parser = parts.add_parser("tiles", help="JPEG to tiles on one core, against a straightforward pipeline")
    parser.add_argument("--repeats", type=int, default=20)
    parser.set_defaults(run=run_tiles)


def run_tiles(options):
    """Its pictures come from scikit-learn."""
    import tiles

    tiles.main(["--repeats", str(options.repeats)])


if __name__ == "__main__":
    main()

"""Loading at true size from shards in the released layout: host memory, seconds a GB, GPU memory; as it is, in 4 bits.

    python benchmarks/load_gpu.py 26b --tokenizer FOLDER --work /tmp/bench      # needs the disk of the weights, once
    python benchmarks/load_gpu.py nano --work /tmp/bench                        # anywhere on Linux

Weights are random, each load is a process of its own. Host memory is anonymous memory (`RssAnon`: what a process holds
for itself; pages of the files that it reads are the system's to drop), its peak while loading beyond what importing
and a first tensor on the device took, looked at every 5 ms. FOLDER holds the family's tokenizer files.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from train_gpu import SIZES, prepare_model, written_model

from ivlkit.models.load import load

WAYS = {"as it is": None, "4 bits": "4bit"}


def main():
    """A JSON line for what was written, then one for each way of loading it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("key", choices=SIZES)
    parser.add_argument("--tokenizer", help="folder; {key} in it becomes the size")
    parser.add_argument("--work", type=Path, required=True, help="where the weights are written, and found again")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        return print(json.dumps({"way": options.way} | measure(options)), flush=True)
    began = time.perf_counter()
    prepare_model(options.work / options.key, options.key, options.tokenizer)
    shards = list(written(options).glob("*.safetensors"))
    sizes = [path.stat().st_size for path in shards]
    seconds = round(time.perf_counter() - began, 1)
    told = {"gb": round(sum(sizes) / 1e9, 2), "shards": len(sizes), "largest_gb": round(max(sizes) / 1e9, 3)}
    print(json.dumps({"written": options.key, "seconds": seconds} | told), flush=True)
    for way in WAYS:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--way", way], check=True)


def written(options):
    """The folder of the random weights."""
    return written_model(options.work / options.key, options.key, options.tokenizer)


def measure(options):
    """Load once; the figures."""
    on_gpu = torch.cuda.is_available()
    torch.zeros(1, device="cuda" if on_gpu else "cpu")
    sizes = [path.stat().st_size for path in written(options).glob("*.safetensors")]
    watch = Peak()
    began = time.perf_counter()
    vlm = load(written(options), quantize=WAYS[options.way])
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return {
        "seconds": round(seconds, 1),
        "seconds_a_gb": round(seconds / sum(sizes) * 1e9, 3),
        "host_gb": round(watch.stop() / 1e9, 3),
        "host_in_largest_shards": round(watch.peak / max(sizes), 2),
        "gpu_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if on_gpu else None,
        "gpu_gib_after": round(torch.cuda.memory_allocated() / 2**30, 2) if on_gpu else None,
        "loaded": repr(vlm),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    }


class Peak:
    """Anonymous memory of this process beyond what it was, looked at from a thread."""

    def __init__(self, every_seconds=0.005):
        self.start, self.peak, self.every_seconds = anonymous_bytes(), 0, every_seconds
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self):
        while not self.ended.wait(self.every_seconds):
            self.peak = max(self.peak, anonymous_bytes() - self.start)

    def stop(self):
        """The peak in bytes."""
        self.ended.set()
        self.thread.join()
        return self.peak


def anonymous_bytes():
    """`RssAnon` of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status without RssAnon; expected Linux")


if __name__ == "__main__":
    main()

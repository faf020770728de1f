"""Host memory of an export's writing: a random model of some GB with a LoRA, merged into shards of some hundred MB.

    python benchmarks/export_memory.py --layers 40 --shard-mb 256

Prints the model's size, the peak of memory beyond what importing took, and that peak in shards. The proof, which loads
a model, is left out: it is bounded by the model, not by a shard.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from pathlib import Path

WIDTH, INNER = 1024, 4096


def main():
    """Build in one process, write in another whose memory is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--shard-mb", type=int, default=256)
    parser.add_argument("--layout", default="released", choices=["released", "transformers"])
    parser.add_argument("--write", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        return _write(Path(options.write), options.shard_mb * 1_000_000, options.layout)
    with tempfile.TemporaryDirectory() as folder:
        _build(Path(folder), options.layers, options.shard_mb * 1_000_000)
        command = [sys.executable, __file__, "--write", folder, "--shard-mb", str(options.shard_mb)]
        subprocess.run([*command, "--layout", options.layout], check=True)


def _build(folder, layers, shard_bytes):
    """A base in shards and a LoRA run over it."""
    import torch
    from factory.random_nano import CONFIG, build

    from ivlkit.models.layouts import safetensors_files as shards
    from ivlkit.models.load import load
    from ivlkit.training.checkpoints import save_trained
    from ivlkit.training.recipes import recipe
    from ivlkit.training.tuning import prepare

    shards.SHARD_BYTES = shard_bytes
    config = copy.deepcopy(CONFIG)
    config["llm_config"] |= {
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_hidden_layers": layers,
    }
    base = build(folder / "base", config=config)
    model = prepare(load(base, dtype=torch.bfloat16), recipe("nano-lora", model=str(base)))
    (folder / "final").mkdir()
    save_trained(model, folder / "final")
    (folder / "final" / "ivlkit.json").write_text(json.dumps({"base": str(base), "template": "internlm2-chat"}))


def _write(folder, shard_bytes, layout):
    from ivlkit.models.export.export import write_released
    from ivlkit.models.export.hf_layout import write_hf
    from ivlkit.models.export.lazy_weights import open_source
    from ivlkit.models.layouts import safetensors_files as shards

    shards.SHARD_BYTES = shard_bytes
    source = open_source(folder / "final")
    (folder / "out").mkdir()
    source.weights["model.language_model.layers.0.mlp.gate_proj.weight"].bfloat16()  # torch's own kernels are read in
    before = _memory_bytes("VmRSS")
    (write_released if layout == "released" else write_hf)(source, folder / "out")
    peak = _memory_bytes("VmHWM") - before
    sizes = [path.stat().st_size for path in (folder / "out").glob("*.safetensors")]
    result = {
        "layout": layout,
        "model_mb": round(sum(sizes) / 1e6),
        "shards": len(sizes),
        "largest_shard_mb": round(max(sizes) / 1e6),
        "peak_mb": round(peak / 1e6),
        "peak_in_shards": round(peak / max(sizes), 2),
    }
    print(json.dumps(result))


def _memory_bytes(name):
    """Resident memory now (VmRSS) or at its highest (VmHWM), mapped files included. Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()

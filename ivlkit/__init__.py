"""ivlkit: fine-tune the InternVL 1.5 family on your own data, from a notebook.

The public names are loaded when first used: `import ivlkit` takes milliseconds and imports no torch.
"""

import importlib
import logging
import os

# Threads of the CPU's math library that wait soon give their core away: a notebook and the run that it started share
# the cores, and with spinning threads a step on 2 cores took 7 times as long. A thousand turns first cost a shared core
# a fifth and make a step on cores of its own a seventh faster. Values of your own stay.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# It asks for a package that only 4-bit products on some CPUs are faster with, once peft imports it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"

_HOMES = {
    "machine": "hardware",
    "download": "models.hub.download",
    "verify": "models.hub.verify",
    "load": "models.load",
    "load_processor": "models.processor",
    "export": "models.export.export",
    "choose_grid": "data.tiling",
    "split_into_tiles": "data.tiling",
    "count_tiles": "data.tiling",
    "read_records": "data.rows.records",
    "encode": "data.encode",
    "open_data": "data.datasets.opening",
    "from_csv": "data.datasets.opening",
    "from_folder": "data.datasets.opening",
    "check": "models.checkup",
    "recipe": "training.recipes",
    "plan": "training.estimate.planner",
    "suggest": "training.estimate.suggest",
    "train": "training.runs",
    "attach": "training.run",
    "runs": "training.run",
    "evaluate": "evaluation.evaluate",
    "predict": "evaluation.predict",
    "open_benchmark": "evaluation.benchmarks",
    "Report": "evaluation.report",
    "compare": "evaluation.compare",
    "learning_curve": "evaluation.trials.curve",
    "sweep": "evaluation.trials.sweep",
    "label": "bench.label",
    "playground": "bench.playground",
    "LOSSES": "training.loop.loss",
    "ORDERS": "training.loop.schedule",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module 'ivlkit' has no attribute {name!r}; its public names: {', '.join(_HOMES)}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(__all__))

"""Run notebooks from top to bottom and keep their outputs: what is committed is one real run, without metadata.

    python benchmarks/run_notebooks.py notebooks/08_evaluate.ipynb notebooks/10_export_and_share.ipynb

Each starts without what it left in runs/ before (its WORK), so that everything it shows happens anew; a notebook that
fails is left as it was. The kernel is the Python that runs this.
"""

import argparse
import re
import shutil
import time
from pathlib import Path

import nbclient
import nbformat

SECONDS = 1800
# What bitsandbytes says on machines without another package, and DeepSpeed on those without a GPU.
START_UP = "Failed to load CPU gemm_4bit_forward", "Setting accelerator to CPU"
KEPT_METADATA = "tags", "jupyter"  # the second folds what a reader needs rarely
WIDGET = "application/vnd.jupyter.widget-view+json"  # controls: an empty place in a page without a kernel


def main():
    """Run each notebook in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    for path in parser.parse_args().notebooks:
        started = time.perf_counter()
        run(path)
        print(f"{path}: {time.perf_counter() - started:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)


def run(path):
    """Execute one notebook in its folder and write it back."""
    notebook = nbformat.read(path, as_version=4)
    for folder in re.findall(r'^WORK = "(\.\./runs/\w+)"', "\n".join(cell.source for cell in notebook.cells), re.M):
        shutil.rmtree(path.parent / folder, ignore_errors=True)
    nbclient.NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        coalesce_streams=True,  # a progress bar redraws its line: what a reader saw last is kept
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = list(filter(None, map(clean, cell.outputs)))
        cell.metadata = {name: kept for name, kept in cell.metadata.items() if name in KEPT_METADATA}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    text = nbformat.writes(notebook)
    path.write_text(text.replace(str(path.resolve().parents[1]), "..") + "\n", encoding="utf-8")  # no one's own paths


def clean(output):
    """An output without other packages' start-up lines; None if nothing is left, or if it is a widget's view."""
    if WIDGET in output.get("data", {}):
        return None
    if output.output_type == "stream":
        output.text = "".join(
            line for line in output.text.splitlines(True) if not any(said in line for said in START_UP)
        )
    return output if output.get("text", True) else None


if __name__ == "__main__":
    main()

"""Examines the rows of a data set block by block, in this process or in several."""

import contextlib
import ctypes
import os
import sys
import types
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from itertools import islice, starmap
from multiprocessing import get_context

import numpy as np
from tqdm import tqdm

from ..datasets.index import LineIndex
from .examine import Examiner

BLOCK_ROWS = 2048
BLOCK_BYTES = 8 << 20
BAR_AFTER_SECONDS = 2
ROWS_PER_PROCESS = 20_000  # fewer rows are done before another process has started


def examine_all(task, rows, *, workers=None, progress=False):
    """Yield the `Block`s of all sources in the order of the files.

    Args: rows: for each source the rows to examine, int64 in order, or None for all.
    """
    indexes = [LineIndex(source.annotation) for source in task.sources]
    jobs = [job for number, index in enumerate(indexes) for job in _jobs(number, index, rows[number])]
    total = sum(len(index) if wanted is None else len(wanted) for index, wanted in zip(indexes, rows, strict=True))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # ranks of one host divide them
    workers = workers or max(1, min(cores, total // ROWS_PER_PROCESS))
    blocks = _in_processes(task, jobs, workers) if workers > 1 else starmap(Examiner(task).block, jobs)
    with tqdm(total=total, desc="checking rows", unit="row", delay=BAR_AFTER_SECONDS, disable=not progress) as bar:
        for block in blocks:
            bar.update(len(block.rows))
            yield block


def _jobs(number, index, wanted):
    """(source, start, stop, rows or None) in pieces of at most 2,048 rows and about 8 MB."""
    start, total = 0, len(index)
    while start < total:
        by_size = int(np.searchsorted(index.offsets, index.offsets[start] + BLOCK_BYTES, side="right")) - 1
        stop = min(start + BLOCK_ROWS, max(by_size, start + 1), total)
        chosen = None if wanted is None else wanted[slice(*np.searchsorted(wanted, [start, stop]))]
        if chosen is None or len(chosen):
            yield number, start, stop, chosen
        start = stop


_examiner = None  # of a process of the pool


def _start_process(task):
    global _examiner
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _examiner = Examiner(task)
    give_back_memory()


def give_back_memory():
    """Building a tokenizer leaves 60 to 120 MB that glibc keeps for later; there is no later."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _examine(*job):
    return _examiner.block(*job)


def _in_processes(task, jobs, workers):
    """Fresh processes: a copy of this one would also copy what its threads and its GPU hold."""
    give_back_memory()
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_process, initargs=(task,))
    with pool:
        jobs = iter(jobs)
        try:
            with _no_main_module():
                waiting = deque(pool.submit(_examine, *job) for job in islice(jobs, 3 * workers))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(_examine, *job) for job in islice(jobs, 1))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextlib.contextmanager
def _no_main_module():
    """A new process would import the user's script again, and with it everything that the script does."""
    own = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = own

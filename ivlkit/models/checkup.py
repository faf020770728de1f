"""A data set checked for a model that is given by its name."""

from ..data.checking.doctor import diagnose, readable_sources
from ..data.checking.mend import mend, spellings_of
from .processor import load_processor


def check(data, model=None, **options):
    """Check every row before a GPU is paid for: `ivl.check("meta.json", "2b")`. No weights are needed.

    Without a model, everything but lengths is checked.

    Args:
        data: a meta JSON, a JSONL, or what `open_data` gives.
        model: a key, a folder in the released layout, a loaded model, or a processor.
        options: as `ivlkit.data.checking.doctor.diagnose` has them: max_length=4096, pictures="header", workers, …
    Returns: `DataReport` with `.ok`, `.problems` (file:line, what, what to do), `.stats`, `.save_html(path)`.
    Raises: DataError if there is nothing to check, CheckpointError if the model's files are not there.
    """
    model = getattr(model, "processor", model)
    processor = model if model is None or hasattr(model, "tokenizer") else load_processor(model)
    return diagnose(data, processor, **options)


def mend_all(data, *, root=None):
    """Write a mended copy of every file of a data set that has something to mend; yields a line about each."""
    sources = {source.annotation: source for source in readable_sources(data, root)}.values()  # a file may be two sets
    spellings = spellings_of(sources)
    for source in sources:
        path, changed = mend(source, spellings)
        yield (
            f"{path}: {changed:,} rows mended; name it in place of {source.annotation.name}"
            if path
            else f"{source.annotation}: nothing that mends itself"
        )

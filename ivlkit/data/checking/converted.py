"""What is wrong with rows that were converted, said of the lines of the table that they came from."""

from dataclasses import replace

from ..datasets.index import LineIndex
from ..datasets.mixture import read_meta
from .doctor import diagnose


def check_converted(done):
    """The `DataReport` of what `convert` wrote; a problem stands at "labels.csv:17" where its row came from there."""
    report = diagnose(done.meta)
    sources = {source.name: (source, LineIndex(source.annotation)) for source in read_meta(done.meta)}
    return replace(report, problems=[_at_its_origin(problem, sources) for problem in report.problems])


def _at_its_origin(problem, sources):
    if problem.row is None:
        return problem
    source, index = sources[problem.source]
    origin = source.origin(index.line(problem.row)[0])
    return replace(problem, where=origin or problem.where, found=problem.found.removeprefix(f"{origin}: "))

"""What is wrong with rows that were converted, said of the lines of the table that they came from."""

from dataclasses import replace

from ...errors import DataError
from ..datasets.index import LineIndex
from ..datasets.mixture import read_meta
from ..rows.records import parse_row
from .doctor import diagnose


def check_converted(done):
    """The `DataReport` of what `convert` wrote; a problem stands at "labels.csv:17" where its row came from there."""
    report = diagnose(done.meta)
    indexes = {source.name: LineIndex(source.annotation) for source in read_meta(done.meta)}
    return replace(report, problems=[_at_its_origin(problem, indexes) for problem in report.problems])


def _at_its_origin(problem, indexes):
    if problem.row is None:
        return problem
    try:
        origin = parse_row(*indexes[problem.source].line(problem.row))["source"]
    except DataError:
        return problem
    return replace(problem, where=origin, found=problem.found.removeprefix(f"{origin}: "))

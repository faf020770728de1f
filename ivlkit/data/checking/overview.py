"""What only all rows together show: repeats, pictures on both sides of a split, equal answers; a report's numbers."""

import contextlib
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...errors import DataError
from ..datasets.index import CACHE_FOLDER
from ..datasets.mixture import Data
from ..files import sha256
from ..likeness import alike_groups
from .box_units import guess_units
from .examine import BAD, GOOD, PICTURE
from .findings import PLACES, make_problem
from .pictures import SUFFIXES, hash_text
from .spellings import counts_text

COMPARED = 2_000  # pictures that are decoded to see which look alike; a photo of 12 megapixels takes 21 ms of a core
COSTLY_SHARE = 0.05  # of the rows; fewer are names and signs
_ODD = np.uint64(0x9E3779B97F4A7C15)  # makes one number of two hashes
FILES_LOOKED_AT = 200_000  # of a root, when looking for unused ones
SAME_ANSWERS_FROM = 10  # rows; fewer equal answers may be chance
_ASPECT_EDGES = [0, 0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 1e9]


class Overview:
    """What is kept of every row, and what follows from rows together."""

    def __init__(self, task, rows, findings):
        self.task, self.findings = task, findings
        self.is_whole = all(wanted is None for wanted in rows)
        whole = [replace(source, repeat=1.0, weight=None, length=None) for source in task.sources]
        self.data = Data(whole, path="")  # every row of every file once: its number is its place in the arrays
        self.labels = _labels([source.annotation for source in task.sources])
        counts = [len(index) for index in self.data.indexes]
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        total = int(self.starts[-1])
        self.state = np.zeros(total, np.uint8)
        self.hashes, self.final, self.cost = (np.zeros((4, total), np.uint64), *np.zeros((2, 2, total), np.int32))
        self.asked, self.ids, self.answers, self.spellings = self.hashes
        self._pictures = []

    def add(self, block):
        """Take over a block; its problems join the findings."""
        rows = block.rows + self.starts[block.source]
        self.state[rows] = block.state
        self.hashes[:, rows], self.final[:, rows], self.cost[:, rows] = block.hashes, block.final, block.lengths[2:]
        pictures = block.pictures
        pictures["row"] += self.starts[block.source]
        self._pictures.append(pictures)
        left = Counter(block.counts)
        for row, code, found, expected, todo in block.problems:
            left[code] -= 1
            self._say(code, row + self.starts[block.source], found, expected=expected, todo=todo)
        self.findings.counts.update(left)

    def _say(self, code, row, found, **said):
        if not self.findings.wants(code):
            self.findings.counts[code] += 1
            return
        source, own = self.data.place(row)
        said |= {"source": self.task.sources[source].name, "row": own, "origin": self._origin(row)}
        self.findings.add(make_problem(code, self._where(row), found, **said))

    def _origin(self, row):
        source, own = self.data.place(row)
        return self.task.sources[source].origin(self.data.indexes[source].line(own)[0])

    def _where(self, row):
        source, own = self.data.place(row)
        return f"{self.labels[source]}:{self.data.indexes[source].number(own)}"

    def _named(self, row):
        return self._origin(row) or self._where(row)

    def compare_rows(self):
        """Everything that no row shows alone."""
        self.pictures = np.concatenate([np.empty(0, PICTURE), *self._pictures])
        self._pictures.clear()
        _, self.split_of = np.unique([source.split for source in self.task.sources], return_inverse=True)
        good = np.flatnonzero(self.state == GOOD)
        self._compare_pictures()
        self._compare_asked(good)
        for number, index in enumerate(self.data.indexes):
            self._compare_within(index, *self.starts[number : number + 2].tolist())
        self._compare_spellings(good)
        if self.is_whole:
            self._find_unused()
        for index, source in zip(self.data.indexes, self.task.sources, strict=True):
            if units := guess_units(index, source.root):
                said = {"todo": units.todo, "source": source.name}
                self.findings.add(make_problem("box_unit", str(source.annotation), units.found, **said))

    def _splits(self, rows):
        return self.split_of[np.searchsorted(self.starts, rows, side="right") - 1]

    def _compare_asked(self, good):
        for rows in _equal_groups(self.asked[good] * _ODD + self.answers[good]):
            first, *others = good[rows].tolist()
            splits = self._splits(good[rows])
            for row, split in zip(others, splits[1:].tolist(), strict=True):
                if split == splits[0]:
                    self._say("duplicate_row", row, f"the same as {self._named(first)}")
                elif self.state[row] == GOOD:  # its picture is not known to be there
                    self._say("leak", row, f"the row {self._where(first)} of split {self._split_name(first)} again")
                    self.state[row] = BAD
        for rows in _equal_groups(self.asked[good]):
            first, *others = good[rows].tolist()
            for row in others:
                if self.spellings[row] != self.spellings[first]:
                    self._say("contradiction", row, f"another answer than {self._named(first)} gives to the same")

    def _split_name(self, row):
        return repr(self.task.sources[self.data.place(row)[0]].split)

    def _compare_within(self, index, start, stop):
        """Rows of one file: ids, equal answers, and scripts of which a tokenizer makes more tokens than characters."""
        rows = start + np.flatnonzero(self.ids[start:stop])
        for group in _equal_groups(self.ids[rows]):
            first, *others = rows[group].tolist()
            for row in others:
                self._say("duplicate_id", row, f"the id of {self._where(first)}")
        good = start + np.flatnonzero(self.state[start:stop] == GOOD)
        answers = self.answers[good]
        if len(good) >= SAME_ANSWERS_FROM and (answers == answers[0]).all():
            found = f"all {len(good):,} rows have the answer {self.data[good[0]].answer[:60]!r}"
            name = self.task.sources[self.data.place(start)[0]].name
            self.findings.add(make_problem("constant_answers", str(index.path), found, source=name))
        supervised, characters = self.cost[:, good]
        costly = np.flatnonzero(supervised > characters)
        if len(costly) >= max(SAME_ANSWERS_FROM, COSTLY_SHARE * (supervised > 0).sum()):
            share = supervised[costly].sum() / characters[costly].sum()
            found = f"{len(costly):,} answers of more than a token a character, {share:.1f} on average"
            self._say("costly_answers", int(good[costly[0]]), found)

    def _compare_spellings(self, good):
        _, first, counts = np.unique(self.answers[good], return_index=True, return_counts=True)
        for forms in _equal_groups(self.spellings[good[first]]):
            forms = forms[np.argsort(-counts[forms], kind="stable")]
            rows = good[first[forms]].tolist()
            if not self.findings.wants("answer_spelling"):
                self.findings.counts["answer_spelling"] += 1
                continue
            said = [self.data[row].answer for row in rows[:PLACES]]
            found = counts_text(list(zip(said, counts[forms].tolist(), strict=False)))
            self._say("answer_spelling", rows[1], found)

    def _compare_pictures(self):
        """Equal content under several names, content that looks alike, and either on several sides of a split."""
        hashes, first, name_of = np.unique(self.pictures["hash"], return_index=True, return_inverse=True)
        self.distinct = first
        contents = self._contents(first)
        places = 2 * self.pictures["place"].astype(np.uint64) + 1  # another order is another question
        np.add.at(self.asked, self.pictures["row"], hashes[contents][name_of] * places)
        for number in np.flatnonzero(contents != np.arange(len(contents))):
            original, copy = self.pictures[first[contents[number]]], self.pictures[first[number]]
            found = f"{self._name(copy)} has the content of {self._name(original)} in {self._named(original['row'])}"
            self._say("duplicate_picture", int(copy["row"]), found)
        original = first[contents[name_of]]  # for each picture the number of the first one of its content
        splits = self._splits(self.pictures["row"])
        for place in np.flatnonzero(splits != splits[original]).tolist():
            row, other = self.pictures["row"][[place, original[place]]].tolist()
            name = self._name(self.pictures[place])
            self._say("leak", row, f"{name} is also in {self._where(other)} of split {self._split_name(other)}")
            self.state[row] = BAD
        self._find_alike(first[contents == np.arange(len(contents))])

    def _find_alike(self, distinct):
        """Burst shots and copies of other bytes; each picture is decoded."""
        if self.task.pictures == "header" and len(distinct) > COMPARED:
            found = f"{len(distinct):,} pictures, more than {COMPARED:,}: whether some look alike was not looked at"
            where = ", ".join(sorted({str(source.annotation) for source in self.task.sources}))
            self.findings.add(make_problem("not_compared", where, found))
        elif self.task.pictures != "exist":
            distinct = distinct[np.argsort(self.pictures["row"][distinct], kind="stable")]
            groups = alike_groups({number: self._name(self.pictures[number]) for number in distinct.tolist()})
            first = {}
            for number, group in groups.items():
                one, other = self.pictures[number], self.pictures[first.setdefault(group, number)]
                if one != other:
                    said = f"{self._name(one)} looks like {self._name(other)} in {self._named(other['row'])}"
                    names = [self._split_name(picture["row"]) for picture in (one, other)]
                    said += f" of split {names[1]}" if names[0] != names[1] else ""
                    self._say("alike_pictures", int(one["row"]), said)

    def _contents(self, first):
        """The first picture of equal content, for each; only files of equal sizes are read."""
        pictures = self.pictures[first]
        contents = np.arange(len(first))
        usable = np.flatnonzero(pictures["size"] > 0)
        sizes = np.stack([pictures[key][usable].astype(np.int64) for key in ("size", "width", "height")], axis=1)
        _, group, count = np.unique(sizes, axis=0, return_inverse=True, return_counts=True)
        candidates = usable[count[group.ravel()] > 1]
        candidates = candidates[np.argsort(pictures["row"][candidates], kind="stable")]
        seen = {}
        for number in candidates.tolist():
            with contextlib.suppress(OSError, DataError):  # said already, where its row was examined
                contents[number] = seen.setdefault(sha256(self._name(pictures[number])), number)
        return contents

    def _name(self, picture):
        return str(self.data[picture["row"]].images[int(picture["place"])])

    def _find_unused(self):
        roots = sorted({source.root for source in self.task.sources if os.path.isdir(source.root)}, reverse=True)
        for _, named in sorted({root.resolve(): root for root in roots}.items()):
            found = _media_below(named)
            if not found or not len(self.pictures):
                continue
            own = np.array([hash_text(os.path.normpath(name)) for name in found], np.uint64)
            unused = [found[place] for place in np.flatnonzero(~np.isin(own, self.pictures["hash"]))]
            if unused:
                shown = ", ".join([*(os.path.relpath(name, named) for name in unused[:5]), *["…"] * (len(unused) > 5)])
                said = f"{len(unused):,} pictures that no row names: {shown}"
                self.findings.add(make_problem("unused_files", str(named), said))

    # numbers ---------------------------------------------------------------------------------------------------------

    def stats(self):
        """Counts and histograms of the usable rows."""
        good, known = self.state == GOOD, self.pictures[self.distinct]
        known = known[known["height"] > 0]
        stats = {
            "rows": int((self.state > 0).sum()),
            "good": int(good.sum()),
            "bad": int((self.state == BAD).sum()),
            "pictures": len(self.pictures),
            "distinct_pictures": len(self.distinct),
            "sources": {},
            "answers": self._top_answers(np.flatnonzero(good)),
            "aspect_ratios": _histogram(known["width"] / known["height"], edges=_ASPECT_EDGES),
        }
        for source, state in zip(self.task.sources, np.split(self.state, self.starts[1:-1]), strict=False):
            counts = {"rows": int((state > 0).sum()), "good": int((state == GOOD).sum())}
            stats["sources"][source.name] = {"split": source.split, "file": str(source.annotation), **counts}
        if self.task.processor is not None:
            tokens, tiles = self.final[:, good]
            stats["tokens"] = _summary(tokens) | {"supervised": int(self.cost[0, good].sum(dtype=np.int64))}
            top = int(tokens.max(initial=1))
            width = max(1, -(-top // 20))  # about 20 equal bins, on whole numbers
            stats["tokens"]["histogram"] = _histogram(tokens, edges=range(0, top + width + 1, width))
            stats["tiles"] = _summary(tiles) | {"histogram": np.bincount(tiles[tiles <= 100]).tolist()}
            stats["max_length"] = self.task.max_length
        return stats

    def _top_answers(self, rows, limit=20):
        """{"distinct": number, "top": [[text, rows], …]} of the most frequent answers."""
        _, first, counts = np.unique(self.answers[rows], return_index=True, return_counts=True)
        top = np.argsort(-counts, kind="stable")[:limit]
        answers = [[self.data[rows[first[one]]].answer[:200], int(counts[one])] for one in top]
        return {"distinct": len(counts), "top": answers}

    def samples(self, problems, limit=24):
        """(problem, record) of the first rows with pictures that have a finding."""
        starts = {source.name: int(self.starts[number]) for number, source in enumerate(self.task.sources)}
        samples, first = [], {}
        for problem in problems:
            if problem.row is not None:
                first.setdefault(starts[problem.source] + problem.row, problem)
        for row, problem in first.items():
            with contextlib.suppress(DataError):  # a row that can't be read has no picture to show
                if len(samples) < limit and (record := self.data[row]).images:
                    samples.append((problem, record))
        return samples


def _labels(paths):
    """What a row's place begins with: the file's name, with folders where several files have one name."""
    labels = [path.name for path in paths]
    for depth in (2, 3, 4):
        twice = {label for label in labels if labels.count(label) > 1}
        deeper = ["/".join(path.parts[-depth:]) for path in paths]
        labels = [long if label in twice else label for label, long in zip(labels, deeper, strict=True)]
    return labels


def _equal_groups(hashes):
    """Yield the places of each hash that occurs more than once, in order of first occurrence."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    counts = np.diff(np.append(starts, len(hashes)))
    several = counts > 1
    groups = [order[start : start + count] for start, count in zip(starts[several], counts[several], strict=True)]
    yield from sorted(groups, key=lambda group: group[0])


def _media_below(root):
    """Paths of pictures below a folder; none if there are too many to look at."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != CACHE_FOLDER)
        found += [os.path.join(folder, name) for name in sorted(files) if Path(name).suffix.lower() in SUFFIXES]
        if len(found) > FILES_LOOKED_AT:
            return []
    return found


def _histogram(values, *, edges):
    counts, _ = np.histogram(values, bins=list(edges))
    return {"edges": list(edges), "counts": counts.tolist()}


def _summary(values):
    found = np.percentile(values, [0, 50, 95, 100], method="nearest") if len(values) else np.zeros(4)
    named = zip(("min", "median", "p95", "max"), map(int, found), strict=True)
    return {"total": int(values.sum(dtype=np.int64)), **dict(named)}

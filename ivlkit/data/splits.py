"""Rows → parts, kept in a file beside the data: what was placed once never moves.

The file `labels.csv.split.csv` has two columns: the digest of a picture (of a text, for a row without; of a group's
value) and its part. Answers are no part of a digest, so a corrected one moves nothing; of rows that are gone the digest
stays, so that they come back into their part. The line `asked` says with what shares and seed it began.

Every data set has a file of its own. One that is new but shows mostly what another of its folder has placed into the
same parts, such as `labels_v2.csv`, begins with that.
"""

import contextlib
import csv
import hashlib
import io
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import DataError
from .files import write_whole
from .groups import group_keys, part_of_groups
from .likeness import alike_groups

SUFFIX = ".split.csv"
FALLBACK = Path("runs")  # keeps what can't lie beside the data
LOOKED_AT = 10_000  # pictures that are compared unless `alike` says so; a photo of 12 megapixels takes 21 ms of a core
ASKED = "asked"
_ANOTHER_FILE = "for a split of its own name another file"


@dataclass(frozen=True)
class Placement:
    """The part of every row, and what is to be remembered of it."""

    part_of: np.ndarray  # int64 [rows], numbers of the names
    file: Path
    kept: dict  # digest → part, with those that the file had
    asked: str
    said: tuple[str, ...]  # what surprises: a sentence each
    is_new: bool  # whether the file lacks something
    known: int  # rows that the file had placed

    def missing(self, number):
        """Why a part has no row, as the end of a message; None if it has one."""
        if (self.part_of == number).any():
            return None
        if self.known:
            stays = f"{self.file} has placed {self.known:,} of {len(self.part_of):,} rows, which stay"
            return f"{stays}; ask for the parts that it has, cut one of them further, or {_ANOTHER_FILE}"
        why = "rows that share pictures stay together, as do rows without that ask the same"
        return f"{why}; give larger shares or more pictures"

    def keep(self):
        """Write the file, if there is anything new; returns all that is to be said."""
        if not self.is_new:
            return self.said
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("digest", "part"), (ASKED, self.asked), *self.kept.items()])
        try:
            write_whole(self.file, text.getvalue())
            return self.said
        except OSError as error:
            place, reason = _fallback(self.file), error.strerror
        try:
            write_whole(place, text.getvalue())
            kept = f"it is kept in {place}, where a later split from this folder finds it"
        except OSError:
            kept = f"neither can {place}; a later split of changed rows will be another one; name a file to keep it"
        return (*self.said, f"{self.file} can't be written ({reason}): {kept}")


def default_file(path, *inner):
    """Where the split of a file or folder is kept; of a part of it, `inner`, where that is cut further."""
    return Path(f"{'.'.join([os.path.abspath(path), *inner])}{SUFFIX}")


def splits_beside(file):
    """The other kept splits of its folder."""
    return sorted(other for other in file.parent.glob(f"*{SUFFIX}") if other != file)


def _fallback(file):
    return FALLBACK / f"{hashlib.sha256(os.fsencode(file)).hexdigest()[:8]}-{file.name}"


def place_rows(keys, shares, *, file, where, others=(), seed=0, group=None, alike=None):
    """Rows → parts. What the file has placed stays; the others fill the parts up to their shares.

    Rows with a digest in common are never parted. Neither are rows whose pictures look alike, unless the file has
    parted them already or a part would get no row.

    Args:
        keys: `RowKeys`; shares: {part: share}; where: function of a row's number, for messages.
        others: splits that may begin this one, where the file is not there yet.
        group: name of the field that the keys have, for the file; alike: as in `Data.split`.
    Returns: `Placement`. Raises: DataError if the file places a row in a part that isn't asked for, or a group in two.
    """
    if alike not in (None, "together", "apart"):
        raise DataError(f'alike={alike!r}; expected "together" or "apart"')
    groups, names = group_keys(keys.own), list(shares)
    placed_by = partial(_placed_by, groups=groups, own=keys.own, names=names, where=where)
    found = next((placed_by(path) for path in (file, _fallback(file)) if os.path.exists(path)), None)
    read, kept, asked_first, known = found or _begun_by(others, placed_by, parts=len(names)) or placed_by(file)
    part_of, said = _fill(groups, keys, known, shares, seed=seed, alike=alike)
    placed = {digest: names[part] for own, part in zip(keys.own, part_of.tolist(), strict=True) for digest in own}
    how = {"seed": seed} | ({} if group is None else {"group": group})
    asked = " ".join([f"{name}={share:g}" for name, share in shares.items()] + [f"{k}={v}" for k, v in how.items()])
    num_known = int((known >= 0).sum())
    if read in others:
        stays = f"{num_known:,} of {len(known):,} rows are in the parts that {read.name} has them in"
        said.append(f"{file} is new: {stays}. For a split of its own name another file")
    if num_known and asked_first not in (None, asked):
        new = f"{num_known:,} rows stay where they are, {len(known) - num_known:,} new ones are placed as asked now"
        begun = f"{read} was begun with {asked_first}; asked now: {asked}"
        said.append(f"{begun}. {new}. For another split name another file")
    is_new = read != file or not placed.items() <= kept.items()
    return Placement(part_of, file, kept | placed, asked_first or asked, tuple(said), is_new, num_known)


def _begun_by(others, placed_by, *, parts):
    """What the split says that knows most rows, if these are more than half and in all parts that are asked for."""
    best, most = None, 0
    for other in others:
        with contextlib.suppress(DataError):  # other parts, or no split
            *_, known = found = placed_by(other)
            count = int((known >= 0).sum())
            if count > max(most, len(known) / 2) and len(set(known[known >= 0].tolist())) == parts:
                best, most = found, count
    return best


def read_split(file):
    """({digest: part}, what was asked for at first) of a file; ({}, None) where there is none."""
    try:
        with open(file, encoding="utf-8", newline="") as opened:
            header, *rows = csv.reader(opened)
        if header != ["digest", "part"] or any(len(row) != 2 for row in rows):
            raise ValueError("no columns digest and part")
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{file}: can't be read ({error}); expected a kept split; remove it to split anew") from error
    kept = dict(rows)
    return kept, kept.pop(ASKED, None)


def _placed_by(file, *, groups, own, names, where):
    """(file, its {digest: part}, what was asked for at first, the rows' parts: int64 [rows], -1 for unknown)."""
    kept, asked = read_split(file)
    part_of = {}
    for row, (group, digests) in enumerate(zip(groups.tolist(), own, strict=True)):
        for part in sorted({kept[digest] for digest in digests if digest in kept}):
            if part not in names:
                found, expected = f"{file} has it in the part {part!r}", f"one of {', '.join(names)}"
                todo = f"ask for the same parts as before, or {_ANOTHER_FILE}"
                raise DataError(found, expected, todo, where=where(row))
            if part_of.setdefault(group, part) != part:
                found = f"{file} has what it is tied to in {part!r} and in {part_of[group]!r}"
                todo = f"remove the row, or {_ANOTHER_FILE}"
                raise DataError(found, "one part, since nothing moves", todo, where=where(row))
    known = np.array([names.index(part_of[group]) if group in part_of else -1 for group in groups.tolist()], np.int64)
    return file, kept, asked, known


def _fill(groups, keys, known, shares, *, seed, alike):
    """(the part of each row, sentences about pictures that look alike); `known` parts stay."""
    place = partial(part_of_groups, shares=list(shares.values()), seed=seed)
    if (known >= 0).all():
        return known, []
    is_compared = alike == "together" or alike is None and len(keys.pictures) <= LOOKED_AT
    said = []
    if not is_compared and not alike:
        found = f"{len(keys.pictures):,} pictures are more than {LOOKED_AT:,}"
        todo = 'alike="together" looks, alike="apart" goes without'
        said.append(f"{found}: whether some look alike was not looked at; {todo}")
    alike_of = {} if alike == "apart" else alike_groups(keys.pictures, compare=is_compared)
    seen = [{-1 - alike_of[digest] for digest in own if digest in alike_of} for own in keys.own]
    units = group_keys([[group, *numbers] for group, numbers in zip(groups.tolist(), seen, strict=True)])
    joined = np.unique(np.unique(np.stack([units, groups]), axis=1)[0], return_counts=True)[1] > 1
    sizes = np.unique(units, return_counts=True)[1][joined].tolist()
    rows = np.flatnonzero(known >= 0)[::-1]  # a unit's first row that has a part gives it to the others
    settled = dict(zip(units[rows].tolist(), known[rows].tolist(), strict=True))
    settled = np.where(known >= 0, known, [settled.get(unit, -1) for unit in units.tolist()])
    part_of, apart = place(units, known=settled), place(groups, known=known)
    if not sizes:
        return apart, said
    found = f"{sum(sizes):,} of {len(groups):,} rows have pictures that look alike, in {len(sizes):,} groups"
    found += f" of up to {max(sizes):,} rows; "
    if len(np.unique(part_of)) < len(np.unique(apart)):
        why = "kept together they leave a part without rows, so they are split as if they differed"
        return apart, [*said, found + why]
    return part_of, [*said, found + 'new ones stay together in one part (alike="apart" parts them)']

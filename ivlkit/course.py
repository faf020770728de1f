"""Copies of the course's notebooks: renewed when the original changed, never over what their reader wrote.

What counts as the reader's are the cells. A copy that was only run is renewed too, once cells of the original changed;
as it was, with its outputs, it goes into `earlier/` beside it.
"""

import hashlib
import json
import os
import sysconfig
from contextlib import suppress
from pathlib import Path

from .data.files import write_whole
from .errors import IvlkitError

COPIES_FILE = ".copies.json"  # notebook → [digest of its cells, digest of the file] when it was copied
EARLIER_FOLDER = "earlier"
YOUR_TURN = "# your turn"  # where a solution was


class CourseError(IvlkitError):
    """There are no notebooks to copy, or no place for their copies."""


def find_notebooks():
    """The folder of the originals: of the checkout, or the one that an installed package brought along.

    Raises: CourseError with the places where none were.
    """
    checkout = Path(__file__).resolve().parents[1]
    installed = Path(sysconfig.get_path("data")) / "share" / "ivlkit" / "notebooks"
    places = ([checkout / "notebooks"] if (checkout / "pyproject.toml").exists() else []) + [installed]
    for folder in places:
        if any(folder.glob("*.ipynb")):
            return folder
    raise CourseError(
        f"no notebooks in {' or '.join(map(str, places))}; expected the course's; run this in a checkout, or install "
        "ivlkit anew"
    )


def copy_notebooks(to, *, source=None, for_students=False):
    """Copy every notebook into the folder `to`, or bring the copies there up to date.

    Args: for_students: without solutions and outputs; hints and checks stay.
    Returns: {name: "new", "renewed", "yours" (changed by its reader, while the original changed too) or "up to date"}.
    Raises: CourseError if there are no originals, or `to` is their own folder or can't be written.
    """
    source, to = Path(source or find_notebooks()), Path(to)
    if to.resolve() == source.resolve():
        raise CourseError(f"{to}: holds the originals; expected another folder for copies; name one, such as work")
    try:
        to.mkdir(parents=True, exist_ok=True)
        copied, done = _read_copied(to), {}
        for original in sorted(source.glob("*.ipynb")):
            wanted = original.read_text(encoding="utf-8")
            wanted = _for_students(wanted) if for_students else wanted
            done[original.name] = _bring(wanted, to / original.name, copied)
            write_whole(to / COPIES_FILE, json.dumps(copied, indent=1))
    except OSError as error:
        raise CourseError(f"{to}: can't be written ({error.strerror}); name another folder") from error
    return done


def said_of(done, to):
    """What `copy_notebooks` did, as lines for its reader; every copy that stayed behind its original is named."""
    counts = {state: sum(one == state for one in done.values()) for state in ("new", "renewed", "up to date", "yours")}
    lines = [f"{to}: " + ", ".join(f"{count} {state}" for state, count in counts.items() if count)]
    if counts["renewed"]:
        lines.append(f"  what you had run is kept with its outputs in {Path(to) / EARLIER_FOLDER}")
    for name in (name for name, state in done.items() if state == "yours"):
        lines.append(f"  {name}: you changed it, so it stays, and the original is newer; for that one, rename yours")
    return "\n".join(lines)


def _digests(text):
    """[of a notebook's cells without outputs and counts, of the whole text]; equal where it is no notebook."""
    cells = text
    with suppress(ValueError, KeyError, TypeError):
        cells = json.dumps([(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]])
    return [hashlib.sha256(part.encode()).hexdigest()[:16] for part in (cells, text)]


def _bring(wanted, copy, copied):
    """Make one copy what it should be and note it in `copied`; says what was done."""
    if not copy.exists():
        return _put(wanted, copy, copied, "new")
    (new, new_file), known = _digests(wanted), copied.get(copy.name, [None, None])
    now, now_file = _digests(copy.read_text(encoding="utf-8", errors="replace"))
    if now_file == known[1] != new_file:  # nobody even ran it
        return _put(wanted, copy, copied, "renewed")
    if now == new:
        copied[copy.name] = [new, known[1]]
        return "up to date"
    if now != known[0]:
        return "up to date" if new == known[0] else "yours"
    earlier = copy.parent / EARLIER_FOLDER
    earlier.mkdir(exist_ok=True)
    os.replace(copy, earlier / f"{copy.stem}-{now_file}.ipynb")  # a name by content: nothing in there is lost
    return _put(wanted, copy, copied, "renewed")


def _put(wanted, copy, copied, state):
    write_whole(copy, wanted)
    _trust(wanted)
    copied[copy.name] = _digests(wanted)
    return state


def _trust(text):
    """Tell this user's Jupyter that the notebook's outputs are safe: it strips the styles of others until they are run.

    They are the course's own. Where it can't be told, as with a home that is read-only, they show without colours.
    """
    with suppress(ImportError, OSError):
        import nbformat
        from nbformat.sign import NotebookNotary

        NotebookNotary().sign(nbformat.reads(text, as_version=4))


def _read_copied(folder):
    """{} where nothing was copied yet, or the note can't be read: then whatever differs counts as the reader's."""
    try:
        noted = json.loads((folder / COPIES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    pairs = noted.items() if isinstance(noted, dict) else ()
    return {name: found for name, found in pairs if isinstance(found, list) and len(found) == 2}


def _for_students(text):
    notebook = json.loads(text)
    notebook["cells"] = [cell for cell in map(_unsolved, notebook["cells"]) if cell["source"]]
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _unsolved(cell):
    is_code = cell["cell_type"] == "code"
    if "solution" in cell["metadata"].get("tags", []):
        cell = cell | {"source": [YOUR_TURN] if is_code else [], "metadata": {}}
    return cell | {"outputs": [], "execution_count": None} if is_code else cell

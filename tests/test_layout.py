"""The house keeps its shape: imports go one way, public names stay callable, importing costs nothing."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import ivlkit

PACKAGE = Path(ivlkit.__file__).parent
STREET = ("data", "models", "training", "evaluation", "show")
ALLOWED = {room: set(STREET[: place + 1]) for place, room in enumerate(STREET)} | {
    "nano": {"data", "models", "training", "nano"},
    "course": {"data"},
    "demo": {*STREET, "nano"},
    "cli": {*STREET, "nano", "demo", "course", "cli"},
    "__main__": {"cli"},
}
NOT_ROOMS = {"__init__"}  # the lazy table of public names; what it loads is measured below


def module_name(file: Path) -> str:
    """ "ivlkit.data.tiling" for its file, "ivlkit.data" for the room's `__init__.py`."""
    parts = ("ivlkit", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


MODULES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    return module.split(".")[1]


ROOMS = {room_of(module) for module in MODULES} | set(ALLOWED)


def imports_in(node: ast.AST, *, package: list[str], inside: bool = False):
    """(imported module, whether inside a function, line) for every import of ivlkit below this node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, inside, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = package[: len(package) - child.level + 1] if child.level else []
            source = ".".join([*base, *([child.module] if child.module else [])])
            yield from ((f"{source}.{alias.name}", inside, child.lineno) for alias in child.names)
        else:
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports_in(child, package=package, inside=inside or is_function)


def wrong_imports(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """One line for each import that goes against the street; `show` may be reached for inside functions."""
    room = room_of(module)
    allowed = ALLOWED.get(room, set())
    package = module.split(".") if is_package else module.split(".")[:-1]
    wrong = []
    for imported, inside, line in imports_in(ast.parse(source), package=package):
        if imported.split(".")[0] != "ivlkit":
            continue
        target = room_of(imported + ".")
        if target not in ROOMS:  # the package itself or a public name, which may live in any room
            wrong.append(f"{module}:{line} imports {imported}; name the module that defines it")
        elif target in ALLOWED and target not in allowed and not (target == "show" and inside):
            wrong.append(f"{module}:{line} imports {imported}; {room} may use {sorted(allowed) or 'no room'}")
    return wrong


class TestImportsGoOneWay:
    @pytest.mark.parametrize("module", sorted(set(MODULES) - {f"ivlkit.{name}" for name in NOT_ROOMS}))
    def test_module_imports_only_rooms_before_its_own(self, module):
        file = MODULES[module]
        assert wrong_imports(module, file.read_text(), is_package=file.name == "__init__.py") == []

    @pytest.mark.parametrize(
        "line",
        [
            "from ivlkit.models.load import load",
            "import ivlkit.training.trainer",
            "from ..evaluation import metrics",
            "from .. import models",
            "from ..show.tiles import draw_tiles",
            "def later():\n    from ..models.load import load",
            "if True:\n    from ..models import load",
            "from ivlkit import load",
            "import ivlkit",
        ],
    )
    def test_a_wrong_import_in_data_is_found(self, line):
        assert len(wrong_imports("ivlkit.data.tiling", line)) == 1

    @pytest.mark.parametrize(
        "line",
        [
            "from .media import open_image",
            "from ..errors import DataError",
            "import torch",
            "def show(self):\n    from ..show.tiles import draw_tiles",
        ],
    )
    def test_a_right_import_in_data_passes(self, line):
        assert wrong_imports("ivlkit.data.tiling", line) == []

    def test_relative_imports_are_resolved_in_a_rooms_init_too(self):
        assert wrong_imports("ivlkit.data", "from . import tiling", is_package=True) == []
        assert len(wrong_imports("ivlkit.data", "from .. import models", is_package=True)) == 1


IMPORT_IN_ORDER = """
import importlib, json, random, sys
import ivlkit
modules, names, seed = json.loads(sys.argv[1])
random.Random(seed).shuffle(modules)
for module in modules:
    importlib.import_module(module)
print(json.dumps([name for name in names if not callable(getattr(ivlkit, name))]))
"""
COST_OF_IMPORT = """
import sys, time
def refuse(event, arguments):
    if event.startswith("socket."):
        raise RuntimeError(f"import ivlkit opens a socket: {event}")
sys.addaudithook(refuse)
start = time.perf_counter()
import ivlkit
seconds = time.perf_counter() - start
loaded = {name.split(".")[0] for name in sys.modules}
heavy = sorted(loaded & {"torch", "transformers", "peft", "numpy", "PIL", "matplotlib"})
print(seconds, ",".join(heavy))
"""


def run_python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def public_functions() -> list[str]:
    return sorted(name for name in ivlkit.__all__ if not name.startswith("__"))


class TestPublicNames:
    def test_there_are_at_most_32(self):
        assert len(public_functions()) <= 32
        assert len(set(ivlkit.__all__)) == len(ivlkit.__all__)

    @pytest.mark.parametrize("seed", range(2))
    def test_every_one_is_callable_after_all_modules_were_imported_in_any_order(self, seed):
        """A module or room of the same name would take its place as an attribute of the package."""
        modules = [name for name in MODULES if name not in ("ivlkit.__init__", "ivlkit.__main__")]
        assert run_python(IMPORT_IN_ORDER, json.dumps([modules, public_functions(), seed])) == "[]"

    def test_none_is_called_like_a_room(self):
        assert set(public_functions()) & {*STREET, "nano", "cli"} == set()

    def test_dir_lists_them_before_anything_is_loaded(self):
        listed = json.loads(run_python("import ivlkit, json; print(json.dumps(dir(ivlkit)))"))
        assert set(public_functions()) <= set(listed)


@pytest.fixture(scope="module")
def imports() -> list[tuple[float, str]]:
    """(seconds, heavy packages that came along) of five imports, each in a Python of its own."""
    runs = (run_python(COST_OF_IMPORT).partition(" ") for _ in range(5))
    return [(float(seconds), heavy) for seconds, _, heavy in runs]


class TestImportIsCheap:
    def test_it_takes_at_most_a_tenth_of_a_second(self, imports):
        assert min(seconds for seconds, _ in imports) <= 0.1

    def test_it_loads_nothing_heavy_and_opens_no_socket(self, imports):
        assert {heavy for _, heavy in imports} == {""}

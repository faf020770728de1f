"""The house keeps its shape: imports go one way, public names stay callable, importing costs nothing."""

import ast
import json
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest

import ivlkit
from ivlkit.views import shown

PACKAGE = Path(ivlkit.__file__).parent
STREET = ("data", "models", "training", "evaluation", "show", "bench")
ALLOWED = {room: set(STREET[: place + 1]) for place, room in enumerate(STREET)} | {
    "nano": {"data", "models", "nano"},
    "course": {"data"},
    "demo": {*STREET, "nano"},
    "cli": {*STREET, "nano", "demo", "course", "cli", "cli_options"},
    "cli_options": set(),
    "__main__": {"cli"},
}
UNIX_ONLY = {"fcntl", "grp", "pwd", "resource", "termios"}
USES_PUBLIC_NAMES = {"cli"}  # calls the package as a notebook does
NOT_ROOMS = {"__init__"}  # the lazy table of public names; what it loads is measured below


def module_name(file: Path) -> str:
    """ "ivlkit.data.tiling" for its file, "ivlkit.data" for the room's `__init__.py`."""
    parts = ("ivlkit", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


MODULES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    return module.split(".")[1]


ROOMS = {room_of(module) for module in MODULES} | set(ALLOWED)


def imports_in(tree: ast.AST, *, package: list[str]):
    """(imported module or name of one, line) for every import in a file, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{source}.{alias.name}", node.lineno) for alias in node.names)


def wrong_imports(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """One line for each import that goes against the street, inside functions too."""
    room = room_of(module)
    allowed = ALLOWED.get(room, set())
    package = module.split(".") if is_package else module.split(".")[:-1]
    wrong = []
    for imported, line in imports_in(ast.parse(source), package=package):
        if imported.split(".")[0] != "ivlkit":
            continue
        target = room_of(imported + ".")
        if target not in ROOMS and room in USES_PUBLIC_NAMES:
            continue
        if target not in ROOMS:  # the package itself or a public name, which may live in any room
            wrong.append(f"{module}:{line} imports {imported}; name the module that defines it")
        elif target in ALLOWED and target not in allowed:
            wrong.append(f"{module}:{line} imports {imported}; {room} may use {sorted(allowed) or 'no room'}")
    return wrong


@pytest.mark.parametrize("file", MODULES.values(), ids=MODULES)
def test_no_module_needs_unix(file):
    imported = {name.split(".")[0] for name, _ in imports_in(ast.parse(file.read_text()), package=[])}
    assert not imported & UNIX_ONLY


class TestImportsGoOneWay:
    @pytest.mark.parametrize("module", sorted(set(MODULES) - {f"ivlkit.{name}" for name in NOT_ROOMS}))
    def test_module_imports_only_rooms_before_its_own(self, module):
        file = MODULES[module]
        assert wrong_imports(module, file.read_text(), is_package=file.name == "__init__.py") == []

    @pytest.mark.parametrize(
        "line",
        [
            "from ivlkit.models.load import load",
            "import ivlkit.training.loop.train",
            "from ..evaluation import metrics",
            "from .. import models",
            "from ..show.tiles import draw_tiles",
            "def later():\n    from ..models.load import load",
            "def show(self):\n    from ..show.tiles import draw_tiles",
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
            "def later():\n    from ..views import shown",
        ],
    )
    def test_a_right_import_in_data_passes(self, line):
        assert wrong_imports("ivlkit.data.tiling", line) == []

    def test_relative_imports_are_resolved_in_a_rooms_init_too(self):
        assert wrong_imports("ivlkit.data", "from . import tiling", is_package=True) == []
        assert len(wrong_imports("ivlkit.data", "from .. import models", is_package=True)) == 1


def imports_of(module: str, file: Path) -> set[str]:
    """Modules of the package that a file imports, inside functions too; of a package's name, its `__init__.py`."""
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    found = {name for name, _ in imports_in(ast.parse(file.read_text()), package=package)}
    return {name if name in MODULES else name.rpartition(".")[0] for name in found} & set(MODULES)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of names that reach each other: [["a", "b"]] for {"a": {"b"}, "b": {"a"}, "c": {"a"}}."""
    reached = {}
    for start in graph:
        seen, waiting = set(), [start]
        while waiting:
            new = graph.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        reached[start] = seen
    groups = {tuple(sorted(a for a in reached[b] if b in reached.get(a, ()))) for b in graph}
    return sorted(list(group) for group in groups if group)


def wing_of(module: str) -> str:
    """ "data.rows" for ivlkit.data.rows.media; a room's own files stand for themselves: they lie below and above."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2])


GRAPH = {module: imports_of(module, file) - {module} for module, file in MODULES.items()}


class TestNothingIsImportedInACircle:
    def test_no_module(self):
        assert circles(GRAPH) == []

    def test_no_wing(self):
        wings = {}
        for module, imported in GRAPH.items():
            wings.setdefault(wing_of(module), set()).update(set(map(wing_of, imported)) - {wing_of(module)})
        assert circles(wings) == []

    def test_a_circle_is_found(self):
        assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]

    def test_imports_inside_functions_count(self):
        lazy = ast.parse("def later():\n    from ..models.load import load")
        assert list(imports_in(lazy, package=["ivlkit", "data"])) == [("ivlkit.models.load.load", 2)]


MOST_LINES, MOST_FILES = 500, 16


class TestFilesAreFewAndShort:
    def test_no_file_is_over_500_lines(self):
        long = {name for name, file in MODULES.items() if len(file.read_text().splitlines()) > MOST_LINES}
        assert long == set()

    def test_at_most_16_lie_beside_each_other(self):
        folders = {file.parent for file in MODULES.values()}
        assert {str(folder) for folder in folders if len(list(folder.glob("*.py"))) > MOST_FILES} == set()


def views() -> list[str]:
    """What every `shown` of the package names: ["dataset:gallery_html", …]."""
    calls = (node for file in MODULES.values() for node in ast.walk(ast.parse(file.read_text())))
    named = (node for node in calls if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "shown")
    return sorted({ast.literal_eval(node.args[0]) for node in named})


def view_of(function) -> str | None:
    """What the `shown` above a method names."""
    calls = (node for node in function.decorator_list if isinstance(node, ast.Call))
    return next((ast.literal_eval(node.args[0]) for node in calls if getattr(node.func, "id", "") == "shown"), None)


class TestViews:
    @pytest.mark.parametrize("where", views())
    def test_what_a_class_shows_is_there(self, where):
        assert callable(shown(where).function)

    def test_what_a_class_documents_can_be_called_so(self):
        """A method above which `shown` stands takes by position what the function of `show` takes by position."""
        for path, file in MODULES.items():
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.FunctionDef) and (where := view_of(node)):
                    taken = [
                        one.name
                        for one in signature(shown(where).function).parameters.values()
                        if one.kind is one.POSITIONAL_OR_KEYWORD
                    ]
                    assert len(taken) == len(node.args.args), f"{path}: {node.name}"

    def test_every_class_that_a_notebook_shows_names_its_view(self):
        assert {"dataset:gallery_html", "run:watch", "model:vlm_html"} <= set(views())

    def test_a_name_that_is_not_there_is_an_error(self):
        with pytest.raises(AttributeError):
            _ = shown("dataset:no_such_view").function
        with pytest.raises(ImportError):
            _ = shown("no_such_module:gallery_html").function

    def test_a_documented_view_keeps_its_signature_and_passes_what_it_gets(self):
        class Row:
            draw = shown("html:escape_text")

            @shown("html:escape_text")
            def text(self, limit=2):
                """The row as text."""

            def __str__(self):
                return "<row>"

        assert Row.text.__doc__ == "The row as text."
        assert Row().text() == Row().draw() == "&lt;row&gt;"
        assert Row().text(limit=1) == "&lt;… (5 characters)"


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
import sys
def refuse(event, arguments):
    if event.startswith("socket."):
        raise RuntimeError(f"import ivlkit opens a socket: {event}")
sys.addaudithook(refuse)
import ivlkit
loaded = {name.split(".")[0] for name in sys.modules}
print(sorted(loaded & {"torch", "transformers", "peft", "numpy", "PIL", "matplotlib"}))
"""


def run_python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def public_functions() -> list[str]:
    """LOSSES and ORDERS are tables."""
    return sorted(name for name in ivlkit.__all__ if not name.startswith("__") and not name.isupper())


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


class TestImportIsCheap:
    def test_it_loads_nothing_heavy_and_opens_no_socket(self):
        assert run_python(COST_OF_IMPORT) == "[]"

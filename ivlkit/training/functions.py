"""Functions that a run names: a metric, a loss, an order of rows. The process that trains imports them by name."""

import hashlib
import importlib
import inspect
import os
import sys

from ..errors import RecipeError


def function_name(function, what="metric"):
    """How another process finds a function: "ivlkit.evaluation.metrics:exact_match".

    Raises: RecipeError for one that no other process can import.
    """
    name = f"{getattr(function, '__module__', None)}:{getattr(function, '__qualname__', None)}"
    if name.startswith("__main__:") or "<" in name or not callable(function) or find_function(name) is not function:
        raise RecipeError(
            f"{what} {function!r}: is not found as {name} by the process that trains; expected a function of a module; "
            "write it into a file, such as metrics_of_mine.py beside the notebook, and import it from there"
        )
    return name


def find_function(name, what="metric"):
    """The function of a name that `function_name` gave. Raises: RecipeError."""
    module, _, path = name.partition(":")
    here = os.getcwd()  # as python -m, which trains, looks there: a console script does not
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(f"{what} {name}: can't be imported ({error}); expected module:function") from error
    return found


def choose(table, name, what):
    """The table's entry of a name, or the function of a module. Raises: RecipeError for neither."""
    if name in table:
        return table[name]
    if ":" not in name:
        known = ", ".join(table)
        raise RecipeError(f"{what}={name!r}; expected one of {known}, or module:function")
    return find_function(name, what)


def portable_name(table, name, what):
    """The name by which another process finds a table's entry: that of the kit's own, else module:function."""
    function = choose(table, name, what)
    return name if function.__module__.startswith("ivlkit.") else function_name(function, what)


def source_digest(name, what):
    """SHA-256 of a function's source: an edited one makes another run."""
    return hashlib.sha256(inspect.getsource(find_function(name, what)).encode()).hexdigest()

"""Binds what the room `show` draws to the classes below it, which never import `show` themselves."""

from functools import wraps
from importlib import import_module


class shown:
    """A method whose body is a function of `show`, imported when the method is first asked for.

    `_repr_html_ = shown("dataset:gallery_html")` calls `show.dataset.gallery_html(self)`. As a decorator it takes the
    name, the arguments and the docstring of the method below it, whose body is then the docstring alone.
    """

    def __init__(self, where):
        self.module, _, self.name = where.partition(":")

    @property
    def function(self):
        """The function in `show`. Raises: ImportError or AttributeError if there is none of this name."""
        return getattr(import_module(f"{__package__}.show.{self.module}"), self.name)

    def __get__(self, thing, owner=None):
        return self if thing is None else self.function.__get__(thing, owner)

    def __call__(self, method):
        @wraps(method)
        def draw(*args, **options):
            return self.function(*args, **options)

        return draw

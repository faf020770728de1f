"""The errors a user can mend. Each message reads: where - found; expected; what to do.

The command line prints them as one line and exits with code 2; everything else is a defect of ours and keeps its
traceback.
"""


class IvlkitError(Exception):
    """Base of every error that is about the user's input, not about our code."""


class DataError(IvlkitError, ValueError):
    """A row, a picture or a meta file that can't be used as it is."""


class CheckpointError(IvlkitError, ValueError):
    """A model folder that can't be loaded or written as asked."""


class RecipeError(IvlkitError, ValueError):
    """A training recipe whose numbers contradict each other or the machine."""


class TrainingError(IvlkitError, RuntimeError):
    """A run that had to stop."""


class ExportError(IvlkitError, RuntimeError):
    """An export that did not prove equal to the model it came from."""

"""The released models without a file of theirs: their sizes, and a model of any configuration that holds no memory.

Enough to count parameters and to plan a run before anything is downloaded.
"""

from ..errors import CheckpointError
from .families import FAMILIES, match_family
from .layouts.configuration import hf_config, read_released_config
from .load import on_meta, released_root

# By key: the fields of its config.json that decide its sizes.
RELEASED = {key: family.config for key, family in FAMILIES.items() if family.config}


def config_of(name):
    """(config.json of a model or a run, whether it was read here): a released one that is not here by its sizes.

    Raises: CheckpointError for a folder that is no model.
    """
    try:
        return read_released_config(released_root(name)), True
    except CheckpointError:
        if name not in RELEASED:
            raise
        return RELEASED[name], False


def empty_model(config):
    """(model on torch's meta device, its `Family`): every module, name and shape, no memory."""
    return on_meta(hf_config(config, image_token_id=0)), match_family(config)

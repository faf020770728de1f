"""What a model needs besides weights: tokenizer, template, system prompt, tile settings. A few MB."""

import hashlib
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.rows.conversation import TEMPLATES, ConversationTemplate
from ..data.rows.media import PICTURE_RULES, UPRIGHT_ON_WHITE, PictureRules
from ..data.tiling import MAX_TILES, MOST_TILES, choose_grid, count_tiles, cut_tiles
from ..errors import CheckpointError
from ..views import shown
from .families import Family, find_model, match_family
from .layouts.configuration import num_image_token, read_released_config, tile_px
from .tokenizer import load_tokenizer


@dataclass(frozen=True)
class Processor:
    """Turns pictures and text into what one model reads. All of it comes from the checkpoint."""

    folder: Path
    family: Family
    tokenizer: object  # a fast tokenizer
    template: ConversationTemplate
    system_message: str
    tile_px: int  # 448; nano 112
    num_image_token: int  # context tokens a tile: 256; nano 16
    max_tiles: int
    min_tiles: int
    use_thumbnail: bool
    dynamic: bool  # False: every picture is one stretched tile
    picture_rules: PictureRules = UPRIGHT_ON_WHITE  # config.json's `picture_rules`: "reference" reads as the reference

    @cached_property
    def fingerprint(self):
        """SHA-256 of all that decides how many tokens a row has."""
        said = [getattr(self, one.name) for one in fields(self) if one.name not in ("folder", "family", "tokenizer")]
        backend = getattr(self.tokenizer, "backend_tokenizer", None) or self.tokenizer.backend
        return hashlib.sha256(f"{backend.to_str()}{said!r}".encode()).hexdigest()

    def count_tiles(self, sizes, *, max_tiles=None):
        """Tiles of each picture of a row: [13] for [(640, 480)]; several pictures share the budget."""
        budget = self.share(max_tiles or self.max_tiles, len(sizes))
        return [self._count(width_px, height_px, budget) for width_px, height_px in sizes]

    def share(self, max_tiles, num_images):
        """The budget of one picture among several: max(1, max_tiles // num_images)."""
        return max(1, max_tiles // max(1, num_images))

    def _count(self, width_px, height_px, budget):
        if not self.dynamic:
            return 1
        return count_tiles(width_px, height_px, use_thumbnail=self.use_thumbnail, **self._limits(budget))

    def tile(self, image, *, max_tiles):
        """One RGB picture → its tiles, uint8 [T, tile_px, tile_px, 3], at a budget that is its own."""
        if not self.dynamic:
            return np.asarray(image.resize((self.tile_px, self.tile_px), Image.Resampling.BICUBIC))[None]
        return cut_tiles(image, use_thumbnail=self.use_thumbnail, **self._limits(max_tiles))

    def grid(self, width_px, height_px, *, max_tiles):
        """(cols, rows) a picture of this size is cut into."""
        return choose_grid(width_px, height_px, **self._limits(max_tiles)) if self.dynamic else (1, 1)

    def _limits(self, budget):
        return {"max_tiles": budget, "min_tiles": min(self.min_tiles, budget), "tile_px": self.tile_px}

    def token_id(self, token):
        """Id of a special token; CheckpointError if the tokenizer lacks it."""
        found = self.tokenizer.convert_tokens_to_ids(token)
        if found is None or found == self.tokenizer.unk_token_id:
            raise CheckpointError(f"{self.folder}: the tokenizer lacks {token}; expected the released special tokens")
        return found

    def with_tiles(self, max_tiles):
        """The same processor with another tile budget."""
        return replace(self, max_tiles=max_tiles)

    def show_tiles(self, image):
        """How a picture is cut and what it costs, under a slider for max_tiles and an upload button.

        Args: image: path, PIL image or uint8 array [H, W, 3].
        """
        return shown("tiles:tiles_live").function(image, self)


def load_processor(name):
    """Everything but the weights: `load_processor("2b")`, a key or a folder in the released layout.

    Raises: CheckpointError if the folder's template contradicts its tokenizer or is not known, or a setting of
        config.json is none.
    """
    folder = find_model(name)
    config = read_released_config(folder)
    if config["template"] not in [*TEMPLATES]:
        raise CheckpointError(f"{folder}: template {config['template']!r}; expected one of {', '.join(TEMPLATES)}")
    rules = _setting(config, "picture_rules", "upright-on-white", folder)
    if rules not in PICTURE_RULES:
        raise CheckpointError(f"{folder}: picture_rules {rules!r}; expected one of {', '.join(PICTURE_RULES)}")
    template = TEMPLATES[config["template"]]
    processor = Processor(
        folder=folder,
        family=match_family(config),
        tokenizer=load_tokenizer(folder),
        template=template,
        system_message=_setting(config, "system_message", template.system_message, folder),
        tile_px=tile_px(config),
        num_image_token=num_image_token(config),
        max_tiles=_tile_budget(config, "max_dynamic_patch", MAX_TILES, folder),
        min_tiles=_tile_budget(config, "min_dynamic_patch", 1, folder),
        use_thumbnail=_setting(config, "use_thumbnail", True, folder),
        dynamic=_setting(config, "dynamic_image_size", True, folder),
        picture_rules=PICTURE_RULES[rules],
    )
    _check_template(processor)
    return processor


def _setting(config, key, default, folder):
    """A value of config.json, of the type of its default; null is none."""
    value = config.get(key)
    if value is None:
        return default
    if type(value) is not type(default):
        raise CheckpointError(
            f"{folder}: {key} {value!r}; expected {type(default).__name__}, such as {default!r}; correct config.json"
        )
    return value


def _tile_budget(config, key, default, folder):
    value = _setting(config, key, default, folder)
    if not 1 <= value <= MOST_TILES:
        raise CheckpointError(f"{folder}: {key} {value}; expected 1 to {MOST_TILES:,}; correct config.json")
    return value


def _check_template(processor):
    """The template's role and closing tokens must be single special tokens of this tokenizer."""
    template, tokenizer = processor.template, processor.tokenizer
    for text in (template.system_prefix, template.user_prefix, template.assistant_prefix, template.end):
        token = text[: text.index(">") + 1]
        if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
            raise CheckpointError(
                f"{processor.folder}: template {template.name!r} needs the token {token}, which its tokenizer lacks; "
                "the template contradicts the checkpoint; correct `template` in config.json"
            )

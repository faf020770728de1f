"""Taking a model apart and putting it together: a part alone, another language model, another tile size."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from ...data.rows.conversation import IMAGE_CONTEXT, IMAGE_END, IMAGE_START
from ...errors import CheckpointError, ExportError
from ..decoding import KEPT_TOKENS
from ..layouts.configuration import hf_config, num_image_token, read_json, write_json
from ..layouts.key_map import from_released
from ..layouts.safetensors_files import new_folder, write_shards
from ..layouts.weight_files import Files, Lazy, check_shapes, fused, read_weight_files, shapes_of
from ..load import VLM, build_model, meta_state
from .lazy_weights import open_source

_PARTS = {"vision_tower": "vision_model.", "projector": "mlp1."}  # name → prefix of its released keys
_LANGUAGE = "language_model."
_EMBEDDINGS = ("model.language_model.embed_tokens.weight", "lm_head.weight")
_OWN_TOKENS = (IMAGE_START, IMAGE_END, IMAGE_CONTEXT, *KEPT_TOKENS)  # the nine that InternVL adds
_POSITIONS = "model.vision_tower.embeddings.position_embeddings"


def extract_part(vlm, part, to):
    """Write the vision tower or the projector alone, as the released tools cut them out.

    The vision tower becomes what InternViT is released as: its keys without `vision_model.`, its own config.json, the
    `*.py` beside it. The projector keeps its keys without `mlp1.` ("0.weight" … "3.bias"), in safetensors.

    Args: vlm: a `VLM`; part: "vision_tower" or "projector"; to: a new folder.
    Returns: the folder, once it is complete. Raises: ExportError for another part or a folder that exists.
    """
    if part not in _PARTS:
        raise ExportError(f"part {part!r}; expected one of {', '.join(_PARTS)}")
    to, source = Path(to), open_source(vlm)
    weights, shapes = fused(source.weights, source.shapes, source.config)
    names = {key.removeprefix(_PARTS[part]): key for key in shapes if key.startswith(_PARTS[part])}
    shapes = {name: shapes[key] for name, key in names.items()}
    with new_folder(to) as aside:
        write_shards(Lazy(names, weights.__getitem__), shapes, aside, dtype=source.dtype)
        _write_part_config(source, part, aside)
    return to


def _write_part_config(source, part, to):
    config = source.config
    if part == "vision_tower":
        values = config["vision_config"] | {"torch_dtype": config.get("torch_dtype") or "bfloat16"}
        for path in source.processor.folder.glob("*.py"):
            shutil.copyfile(path, to / path.name)
    else:
        names = ("downsample_ratio", "ps_version", "select_layer")
        values = {name: config[name] for name in names if name in config}
        values |= {"input_size": source.shapes["model.multi_modal_projector.linear_1.weight"][1]}
        values |= {"output_size": source.hf.text_config.hidden_size}
    write_json(to / "config.json", values)


def insert_part(vlm, folder):
    """The model with the part that `extract_part` wrote in `folder` in place of its own; `vlm` stays as it is.

    Raises: CheckpointError if the part has other shapes than the model's.
    """
    files = Files(read_weight_files(folder))
    prefix = _PARTS["vision_tower" if "embeddings.class_embedding" in files else "projector"]
    released = {prefix + key: files[key] for key in files}
    return _rebuilt(vlm, vlm.config, from_released(released, vlm.config), where=folder)


def replace_language_model(vlm, folder):
    """The model with the language model of `folder`: one that was trained on text, or another InternVL's.

    It has to be of the same kind, width and tokenizer. The rows of the nine picture and box tokens stay this model's:
    a plain language model has none, or untrained ones. `vlm` stays as it is.

    Args: folder: InternLM2 or Phi-3 as their authors release them (safetensors), or an InternVL folder.
    Returns: a new `VLM`, which needs training before it is any good. Raises: CheckpointError for one that doesn't fit.
    """
    folder = Path(folder)
    found = read_json(folder / "config.json", f"{folder}: no readable config.json; expected a language model")
    found = found.get("llm_config") or found
    _check_fits(vlm, found, folder)
    config = vlm.config | {"llm_config": found | {"vocab_size": vlm.config["llm_config"]["vocab_size"]}}
    files = Files(read_weight_files(folder))
    is_internvl = any(key.startswith(_LANGUAGE) for key in files)
    names = [key for key in files if key.startswith(_LANGUAGE)] if is_internvl else list(files)
    keys = {(name if is_internvl else _LANGUAGE + name): name for name in names if not name.endswith("inv_freq")}
    changes = from_released({key: files[name] for key, name in keys.items()}, config)
    weights, kept = open_source(vlm).weights, vlm.tokenizer.convert_tokens_to_ids(list(_OWN_TOKENS))
    for key in _EMBEDDINGS:  # [V', H]: at the model's size [V, H], its own rows for the picture tokens and beyond V'
        rows, own = changes[key], weights[key].clone()
        taken = torch.tensor([number for number in range(min(len(rows), len(own))) if number not in set(kept)])
        own[taken] = rows[taken].to(own)
        changes[key] = own
    return _rebuilt(vlm, config, changes, where=folder)


def _check_fits(vlm, found, folder):
    own = vlm.config["llm_config"]
    for name in ("architectures", "hidden_size"):
        if found.get(name) != own[name]:
            raise CheckpointError(
                f"{folder}: `{name}` is {found.get(name)}; expected {own[name]}, which the projector and the template "
                "are made for; choose a language model of the same kind"
            )
    theirs, ours = folder / "tokenizer.model", vlm.processor.folder / "tokenizer.model"
    if theirs.exists() and theirs.read_bytes() != ours.read_bytes():
        raise CheckpointError(
            f"{folder}: another tokenizer.model; expected the model's own, or its ids mean other text"
        )


def change_image_size(vlm, tile_px):
    """The model at another tile size: its position embedding is resized bicubically in float32, CLS is kept.

    Args: tile_px: side of a tile, a multiple of 28 (14-px patches, joined two by two): 336 gives 144 context tokens.
    Returns: a new `VLM`. Raises: CheckpointError for a side that can't be cut.
    """
    vision = vlm.config["vision_config"]
    unit = int(vision.get("patch_size", 14) / vlm.config.get("downsample_ratio", 0.5))
    if tile_px < unit or tile_px % unit:
        raise CheckpointError(
            f"tile_px={tile_px}; expected a multiple of {unit}, such as {max(1, tile_px // unit) * unit}"
        )
    config = vlm.config | {"force_image_size": tile_px, "vision_config": vision | {"image_size": tile_px}}
    positions = open_source(vlm).weights[_POSITIONS]
    resized = resize_positions(positions, tile_px // vision.get("patch_size", 14))
    changed = _rebuilt(vlm, config, {_POSITIONS: resized})
    changed.processor = replace(vlm.processor, tile_px=tile_px, num_image_token=num_image_token(config))
    return changed


def resize_positions(positions, side):
    """Position embedding [1, 1 + n², C] → [1, 1 + side², C], as the reference does for other picture sizes."""
    old = int((positions.shape[1] - 1) ** 0.5)
    grid = positions[:, 1:].float().unflatten(1, (old, old)).permute(0, 3, 1, 2)  # [1, C, n, n]
    grid = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2).to(positions)], dim=1)


def _rebuilt(vlm, config, changes, *, where="the changed model"):
    """A new `VLM` of `config` with some tensors changed, on the same device in the same dtype.

    Raises: CheckpointError for a tensor that is missing or of another shape than `config` describes.
    """
    hf = hf_config(config, image_token_id=vlm.processor.token_id(IMAGE_CONTEXT))
    weights, expected = open_source(vlm).weights, meta_state(hf)
    state = {key: weights[key] for key in expected if key in weights and key not in changes} | changes
    check_shapes(shapes_of(state), expected, where)
    state = {key: tensor.to(vlm.model.dtype).contiguous() for key, tensor in state.items()}
    model = build_model(None, hf, dtype=vlm.model.dtype, device=vlm.model.device, state_dict=state)
    return VLM(model, vlm.processor, config, vlm.folder)

"""A loaded model as a table: its parts and where they lie."""

from .html import table_html

PARTS = (("vision tower", "model.vision_tower."), ("projector", "model.multi_modal_projector."))


def vlm_html(vlm):
    """Parts, parameters, tile settings, template."""
    if vlm.model is None:
        return table_html([("model", "released from memory")])
    named = list(vlm.model.named_parameters())
    rows = [(part, f"{_count(named, prefix):,} parameters") for part, prefix in PARTS]
    rows.append(
        ("language model", f"{sum(p.numel() for _, p in named) - sum(_count(named, x) for _, x in PARTS):,} parameters")
    )
    processor = vlm.processor
    rows += [
        ("on", f"{vlm.model.device}, {str(vlm.model.dtype).removeprefix('torch.')}"),
        (
            "tiles",
            f"{processor.tile_px} px, {processor.num_image_token} tokens each, up to {processor.max_tiles} + thumbnail",
        ),
        ("template", processor.template.name),
        ("system prompt", processor.system_message),
    ]
    return table_html(rows, title=f"{vlm.family.key} from {vlm.origin}")


def _count(named, prefix):
    return sum(parameter.numel() for name, parameter in named if name.startswith(prefix))

"""Weights + processor → a model that answers."""

import copy
import math
import re
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_utils import set_zero3_state

from ..errors import CheckpointError
from ..hardware import GIB, give_back_gpu_memory, read_ram_gib
from .families import find_model, model_roots
from .layouts.configuration import has_lora, hf_config, plain, read_json, read_released_config
from .layouts.key_map import register_with_transformers, to_released
from .layouts.safetensors_files import DTYPES, fingerprint
from .layouts.weight_files import check_shapes, open_weights, read_headers, read_shapes, read_weight_files
from .modeling.float8 import to_float8
from .modeling.internvl import ReleasedInternVLForConditionalGeneration
from .modeling.quantize import keep_scales, nf4_config
from .modeling.streaming import stream_tower
from .processor import load_processor
from .vlm import VLM, alive

SMALL_BYTES = 1_000_000_000
QUANTISED_BYTES = {"4bit": 0.516, "float8": 1.002}  # a value with its share of the scales
_DECODER, _TOWER = "language_model.model.layers.", "vision_model.encoder.layers."
QUANTISED_KEYS = {"4bit": _DECODER, "float8": (_DECODER, _TOWER)}
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's
ORIGIN_FILE = "ivlkit.json"  # beside weights that a run wrote: which base they belong to
register_with_transformers(ReleasedInternVLForConditionalGeneration.__name__)


class NoGpuMemory(CheckpointError, torch.OutOfMemoryError):
    """Weights that the free memory of a GPU does not hold; torch's own error for whoever waits for that."""


def load(name, *, base=None, device=None, dtype=None, quantize=None, tower_device=None):
    """Load a model with its processor, ready to answer.

    Args:
        name: a key ("nano", "2b", "4b", "26b"), a folder in the released layout, what a run left, or an adapter's
            folder, whoever wrote it: it loads onto the base that it names.
        base: key or folder of an adapter's base, where the one that it names is not here.
        device: default: the GPU if torch sees one, else the CPU.
        dtype: default: bfloat16 on a GPU that has it, float16 on an older one, float32 on the CPU.
        quantize: "4bit": the language model in NF4 (bitsandbytes), a third of the memory; "float8": its matrices and
            the tower's in e4m3, half of the memory, read by way of the computer's own memory; None: as it is.
        tower_device: where the layers of the vision tower stay, to visit `device` one after the other each time that
            the model sees something; None: to `device`.
    Returns: `VLM`.
    Raises: CheckpointError with file, what was found, what was expected; before anything is read also for weights that
        would take more than half of the free memory of a CPU, or more than a GPU has free. No code of the folder is
        ever run.
    """
    folder = final_folder(find_model(name))
    with gpu_named(device):
        found = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(found if device is None else device)
    dtype = dtype or default_dtype(device)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"dtype={dtype!r}; expected a dtype of torch, such as torch.bfloat16; leave it out")
    if quantize not in (None, "4bit", "float8"):
        raise CheckpointError(f"quantize={quantize!r}; expected '4bit', 'float8' or none")
    how = {"device": device, "dtype": dtype, "quantize": quantize, "tower_device": tower_device}
    if quantize == "float8" or tower_device is not None and not quantize:
        return _load_by_way(folder, base, **how)
    origin = read_origin(folder)
    if origin is None and base is not None:
        raise CheckpointError(f"{folder}: a model of its own, no adapter; expected no base={str(base)!r}; leave it out")
    root = released_root(base or folder)  # first of all: a chain may lead back to its start
    is_adapter = (folder / ADAPTER_CONFIG).exists()
    below = find_base(folder, base) if is_adapter else folder
    if quantize and read_origin(below) is not None and not (is_adapter and (below / ADAPTER_CONFIG).exists()):
        raise CheckpointError(
            f"{folder}: what a run wrote, to be quantised; expected a released folder, or an adapter on one; "
            f"ivlkit export {folder} --to merged, then load that"
        )
    if not is_adapter:
        vlm = _load_whole(root, folder, **how)
    else:
        vlm = load(below, **how)
        vlm.merge_adapter()  # trained on what a run left: never two adapters on one layer
        _add_adapter(vlm, folder)
    vlm.processor = as_trained(vlm.processor, origin or {})
    return _streamed(vlm, tower_device)


def _load_by_way(folder, base, *, device, dtype, quantize, tower_device):
    """Load on the CPU, where weights stay in their file, or on the tower's device; then move the rest to `device`."""
    root = released_root(base or folder)
    _check_memory(root, dtype=dtype, device=device, quantize=quantize, tower_device=tower_device)
    vlm = load(folder, base=base, device=tower_device or "cpu", dtype=dtype)
    if quantize:
        to_float8(vlm.model, device=device, tower=tower_device is None)  # matrix by matrix
    encoder = vlm.model.model.vision_tower.encoder
    layers = encoder.layer
    if tower_device is not None:
        encoder.layer = torch.nn.ModuleList()
    vlm.model.to(device)
    encoder.layer = layers
    return _streamed(vlm, tower_device)


def _streamed(vlm, tower_device):
    """Have the tower's layers visit the model's device where they are elsewhere."""
    if tower_device is not None and torch.device(tower_device).type != vlm.model.device.type:
        vlm.model.model.vision_tower.requires_grad_(False)
        stream_tower(vlm.model)
    return vlm


def read_origin(folder):
    """The dict of ivlkit.json beside weights that a run wrote: base, max_tiles, …; None for a model on its own.

    Of an adapter that something else wrote it is {"base": as its adapter_config.json says, "" where it says none}.
    """
    path = Path(folder) / ORIGIN_FILE
    if not path.exists():
        path = path.with_name(ADAPTER_CONFIG)
    if not path.exists():
        return None
    if path.name == ADAPTER_CONFIG and (path.parent / "config.json").exists():  # transformers would add it in silence
        found = f"{folder}: a model (config.json) and an adapter ({ADAPTER_CONFIG})"
        raise CheckpointError(f"{found}; expected one of them; put the adapter's files into a folder of their own")
    origin = read_json(path)
    if path.name == ADAPTER_CONFIG and isinstance(origin, dict):
        origin = {"base": origin.get("base_model_name_or_path") or ""}
    if not isinstance(origin, dict) or not isinstance(origin.get("base"), str):
        raise CheckpointError(f"{path}: names no `base`; expected the folder or key of a model; copy the file again")
    return origin


def find_base(folder, given=None):
    """The folder of the model that what lies in `folder` was trained on: the one that is given, else as it is named.

    Raises: CheckpointError if it is not here, or if its weights are not the ones that the folder names.
    """
    origin = read_origin(folder)
    base = final_folder(find_model(given) if given is not None else _named_base(folder, origin))
    if expected := origin.get("base_fingerprint"):
        files = read_weight_files(base)
    else:
        expected, files = _began_with(folder), base.glob("*.safetensors")
    if expected and fingerprint(files) != expected:
        raise CheckpointError(
            f"{folder}: its adapter belongs to other weights than those in {base}; expected the base it was trained "
            f"on ({origin['base']}{', revision ' + origin['base_revision'] if origin.get('base_revision') else ''}); "
            "fetch that one"
        )
    return base


def _began_with(folder):
    """The fingerprint of the weights that a run's adapter was trained on, by its run.yaml; None of anything else."""
    path = Path(folder).parent / "run.yaml"
    is_run = path.exists() and (Path(folder) / ADAPTER_CONFIG).exists()
    found = re.search(r"^model_fingerprint: '?(\w{64})", path.read_text(encoding="utf-8") if is_run else "", re.M)
    return found and found[1]


def _named_base(folder, origin):
    """By the name a run wrote; on a colleague's machine, by the folder's name where released models are looked for."""
    try:
        return find_model(origin["base"] or "no name")
    except CheckpointError as error:
        name = origin.get("base_name") or Path(origin["base"]).name
        for root in (Path(folder).parent, *model_roots()) if name else ():
            if (root / name / "config.json").exists():
                return root / name
        kind = "an adapter (adapter_config.json) and no model; " if (Path(folder) / ADAPTER_CONFIG).exists() else ""
        named = origin["base"] or "which its adapter_config.json does not name"
        raise CheckpointError(
            f"{folder}: {kind}its base is not here; {error}; fetch its base, {named}, put it beside this folder, or "
            "name it: ivlkit.load(…, base=…)"
        ) from error


def released_root(folder):
    """The folder in the released layout at the end of a chain of runs: its config.json and tokenizer hold for all.

    Raises: CheckpointError for a chain that leads back to one of its folders, which would be followed for ever.
    """
    start = folder = final_folder(find_model(folder))
    seen = []
    while read_origin(folder) is not None:
        seen.append(folder.resolve())
        folder = find_base(folder)
        if folder.resolve() in seen:
            raise CheckpointError(f"{start}: its base leads back to {folder}; expected a released model at the end")
    return folder


def as_trained(processor, origin):
    """The processor with the tiles and the system prompt that a run wrote down."""
    if origin.get("max_tiles"):
        processor = processor.with_tiles(origin["max_tiles"])
    if origin.get("system_message") is not None:
        processor = replace(processor, system_message=origin["system_message"])
    return processor


def most_copied_gib(device):
    """GiB of the computer's memory that weights may take which do not stay in their file, on their way to a device.

    On a CPU half of what is free: replies and other programs want some too.
    """
    free_gib = read_ram_gib()[1]
    return math.inf if free_gib is None else free_gib / (2 if device.type == "cpu" else 1)


def _check_memory(folder, *, dtype, device, quantize=None, tower_device=None):
    """Refuse weights that would end in a killed process or in CUDA's own error, before they are read."""
    device = torch.device(device)
    elsewhere = () if tower_device is None or torch.device(tower_device).type == device.type else _TOWER
    total, copied = _weights_gib(read_weight_files(folder), dtype, quantize, elsewhere)
    if quantize and device.type != "cpu":
        copied = 0  # one tensor after the other, straight to the device
    kind = {None: str(dtype).removeprefix("torch."), "4bit": "4 bits"}.get(quantize, quantize)
    if copied > (most := most_copied_gib(device)):
        raise CheckpointError(
            f"{folder}: needs {copied:.1f} GiB of the computer's memory in {kind}, but {read_ram_gib()[1]:.1f} GiB are "
            f"free; expected at most {most:.1f}; {_ways_to_fit('cpu', quantize)}"
        )
    if device.type != "cuda" or is_deepspeed_zero3_enabled():  # which gives each GPU a share
        return
    give_back_gpu_memory()
    with gpu_named(device):
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free_gib = (torch.cuda.mem_get_info(device)[0] + cached) / GIB
    if total > free_gib:
        raise NoGpuMemory(
            f"{folder}: needs {total:.1f} GiB of {device} in {kind}, but {free_gib:.1f} GiB are free; expected more; "
            f"{_ways_to_fit('cuda', quantize)}"
        )


def _weights_gib(files, dtype, quantize=None, elsewhere=()):
    """(GiB of the weights on their device, without the keys elsewhere; GiB that are new to the computer's memory).

    A tensor that has this dtype already stays in its file, which is mapped: 4.1 and 0 for the 2B in bfloat16, 8.2 and
    8.2 in float32.
    """
    total = copied = 0
    for key, (shape, kind) in read_headers(files).items():
        small = quantize and len(shape) == 2 and key.startswith(QUANTISED_KEYS[quantize])
        size = math.prod(shape) * (QUANTISED_BYTES[quantize] if small else dtype.itemsize) / GIB
        total += 0 if key.startswith(elsewhere) else size
        copied += size if small or kind != DTYPES.get(dtype) else 0
    return total, copied


@contextmanager
def gpu_named(device):
    """A GPU that torch does not see, or a device that it does not know, is the user's mistake, not ours."""
    try:
        yield
    except (AssertionError, RuntimeError) as error:
        why = "it is built for the CPU" if torch.version.cuda is None else f"{torch.cuda.device_count()} answer"
        raise CheckpointError(
            f"device={str(device)!r}: torch sees no such GPU ({why}); expected 'cpu', or a GPU that is there; leave "
            "device out"
        ) from error


def _ways_to_fit(device_type, quantize):
    """What to do, as text. Models of this process that hold memory there come first."""
    held = {}  # by model: two `VLM`s may share one
    for vlm in alive:
        parameters = vlm.model.parameters() if vlm.model is not None else ()
        size = sum(one.nbytes for one in parameters if one.device.type == device_type)
        if size > GIB / 10:
            held[id(vlm.model)] = f"{vlm.family.key} from {vlm.origin} ({size / GIB:.1f} GiB)"
    first = f"call release() of what this process still holds, {' and '.join(held.values())}; or " if held else ""
    fewer = ["dtype=torch.bfloat16"] if device_type == "cpu" else []
    fewer += [] if quantize == "4bit" else ['quantize="4bit"']
    return f"{first}load with {', '.join([*fewer, 'another device'])}, or take a smaller model"


def default_dtype(device):
    """float32 on the CPU, bfloat16 where the GPU computes with it, else float16."""
    if torch.device(device).type != "cuda":
        return torch.float32
    with gpu_named(device):
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def final_folder(folder):
    """A run's folder → its `final/`; any other folder as it is."""
    if not (folder / "run.yaml").exists():
        return folder
    if not (folder / "final").exists():
        raise CheckpointError(
            f"{folder}: a run without `final/`; expected a finished run; train again to go on with it"
        )
    return folder / "final"


def read_model(root):
    """(config.json with its LoRA counted as merged, `Processor`, `InternVLConfig`) of a released folder."""
    config, processor = plain(read_released_config(root)), load_processor(root)
    return config, processor, hf_config(config, image_token_id=processor.token_id("<IMG_CONTEXT>"))


def _load_whole(root, folder, *, device, dtype, quantize, tower_device):
    """All weights of a folder. Args: root: where config.json is."""
    config, processor, hf = read_model(root)
    is_merged = root == folder and has_lora(read_released_config(root))
    if quantize and is_merged:
        raise CheckpointError(
            f"{folder}: holds a LoRA of its own, to be quantised; expected merged weights; ivlkit export {folder} "
            "--to merged, then load that"
        )
    if is_merged or root != folder:  # what transformers' loader can't read: a LoRA inside, or the keys that a run left
        weights = open_weights(folder, config, meta_state(hf), released=root == folder, dtype=dtype)
        _check_memory(folder, dtype=dtype, device=device)
        model = build_model(None, hf, dtype=dtype, device=device, state_dict=dict(weights))
        return VLM(model, processor, config, folder)
    check_released_shapes(folder, config, hf)
    built = copy.deepcopy(hf)
    _check_memory(folder, dtype=dtype, device=device, quantize=quantize, tower_device=tower_device)
    if tower_device is not None:
        built.vision_config.num_hidden_layers = 0
    options = {"quantization_config": nf4_config(dtype), "device_map": {"": device}} if quantize else {}
    model = build_model(folder, built, dtype=dtype, device=device, **options)
    keep_scales(model)
    if tower_device is not None:
        _add_tower_layers(model, folder, config, hf, dtype=dtype, device=tower_device)
    return VLM(model, processor, config, folder)


def _add_tower_layers(model, folder, config, hf, *, dtype, device):
    """Read the layers that a model was built without, straight to their device: transformers would put hooks on all."""
    tower, prefix = model.model.vision_tower, "model.vision_tower.encoder."
    tower.config.num_hidden_layers = hf.vision_config.num_hidden_layers
    weights = open_weights(folder, config, meta_state(hf))
    layers = {key: weights[key].to(device, dtype) for key in weights if key.startswith(prefix)}
    with torch.device("meta"):
        tower.encoder = type(tower.encoder)(tower.config).eval()
    tower.encoder.load_state_dict({key.removeprefix(prefix): layer for key, layer in layers.items()}, assign=True)


def _add_adapter(vlm, folder):
    """PEFT's own loader passes over missing tensors, opens pickles and asks the hub for a file that is not there."""
    from peft import set_peft_model_state_dict

    vlm.adapter = _wrap(vlm.model, folder)
    set_peft_model_state_dict(vlm.adapter, load_file(check_adapter(vlm.adapter, folder)))
    vlm.adapter.eval()
    vlm.model, vlm.folder = vlm.adapter.get_base_model(), folder


def wrap_on_meta(hf, folder):
    """PEFT's wrapper around a model without memory: which layers have an adapter, and its scales."""
    with torch.device("meta"):  # the adapters too
        return _wrap(on_meta(hf), folder)


def _wrap(model, folder):
    """PEFT's wrapper as a folder's adapter_config.json describes it. Raises: CheckpointError if it can't be built."""
    from peft import PeftConfig, PeftModel

    try:
        with peft_is_quiet():
            return PeftModel(model, PeftConfig.from_pretrained(folder))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG}: no adapter of this model ({type(error).__name__}: {error}); expected "
            "what a LoRA run or an export wrote; copy the folder again"
        ) from error


def check_adapter(wrapped, folder):
    """The adapter's file, once it has every tensor of its configuration and no other.

    Raises: CheckpointError that names the file or the tensor.
    """
    from peft import get_peft_model_state_dict

    path = folder / "adapter_model.safetensors"
    if not path.exists():
        raise CheckpointError(f"{path}: missing; expected the adapter there; copy the folder again")
    expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    check_shapes(read_shapes([path]), expected, folder, by="adapter_config.json")
    return path


def build_model(folder, hf, *, dtype, device, **options):
    """The model of an `InternVLConfig` with the weights of a folder, or of `state_dict=` and folder None.

    Raises: CheckpointError for a missing, unexpected or misshapen tensor.
    """
    with quiet_if_small(folder):
        model, info = ReleasedInternVLForConditionalGeneration.from_pretrained(
            folder, config=hf, dtype=dtype, output_loading_info=True, use_safetensors=True, **options
        )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(kind):
            raise CheckpointError(
                f"{folder or 'weights'}: {kind.replace('_', ' ')}: {sorted(map(str, info[kind]))[:3]}; expected none"
            )
    return (model if "device_map" in options else model.to(device)).eval()


@contextmanager
def peft_is_quiet():
    """Hide that PEFT still calls transformers by a name that 5.23 deprecates: nothing a user could mend."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


@contextmanager
def quiet_if_small(folder):
    """transformers' progress bar only for weights that take seconds to read."""
    from transformers.utils import logging

    small = folder is None or sum(file.stat().st_size for file in read_weight_files(folder)) < SMALL_BYTES
    hidden = small and logging.is_progress_bar_enabled()
    if hidden:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hidden:
            logging.enable_progress_bar()


def on_meta(hf):
    """The model of a configuration without memory: all modules and shapes, not divided as ZeRO-3 divides others."""
    with torch.device("meta"), set_zero3_state():
        return ReleasedInternVLForConditionalGeneration(hf)


def meta_state(hf):
    """The state dict of a configuration without memory: keys and shapes."""
    return on_meta(hf).state_dict()


def meta_copy(vlm):
    """The same model without memory: to see what a change would do to it."""
    return VLM(on_meta(vlm.model.config), vlm.processor, vlm.config, vlm.folder)


def check_released_shapes(folder, config, hf):
    """{key: shape} of a folder's weights, equal to what its config.json describes; only headers are read.

    Args: config: dict of config.json; hf: `hf_config` of it.
    Raises: CheckpointError that names the first tensor that is missing, unexpected or of another shape.
    """
    found = read_shapes(read_weight_files(folder))
    for key in (key for key in found if ".lora_A." in key):  # else its own layer is missing, or is a bare base's
        field = "use_llm_lora" if "language_model." in key else "use_backbone_lora"
        raise CheckpointError(
            f"{folder}: holds adapters ({key}), but `{field}` of its config.json is 0; expected their rank; set it to "
            f"{found[key][0]} there"
        )
    check_shapes(found, to_released(meta_state(hf), config), folder)
    return found

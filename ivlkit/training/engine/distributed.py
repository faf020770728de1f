"""Several processes, one a GPU: the launcher held against the recipe, the meeting, DeepSpeed's configurations.

`torchrun`, `deepspeed` and `accelerate launch` start the same `-m ivlkit train run.yaml`. The recipe alone says how
many processes there are (`gpus`) and what they divide (`zero_stage`); a launcher that has something else in mind is
refused, since it would train another share of the rows, or each process all of them, without a word.
"""

import importlib.util
import os
import sys
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta

from ...errors import RecipeError, TrainingError
from ...hardware import find_gpus, physical_index

PATIENCE = timedelta(hours=2)  # of ranks for one that reads all rows, or writes a checkpoint
BUCKET = 1e9  # values of a bucket, as released
AS_FREE = 0.9  # of the freest card's free memory: a card with less is in use
MOST_GPUS = 1024  # that the number of an earlier run is looked for among


def rank():
    """This process's number among all, 0 for the one that writes; 0 where there is no launcher."""
    return int(os.environ.get("RANK", 0))


def settle_gpus(recipe):
    """The recipe with a number of GPUs where it has none: a launcher's, else that of the free cards here, else one.

    Of the cards here as many are taken as divide the total batch: 2 of 3 for a batch of 16.
    """
    if recipe.gpus is not None:
        return recipe
    most = int(os.environ.get("WORLD_SIZE", 0)) or len(free_cards())
    rows = 1 if recipe.packing else recipe.per_device_batch  # of a GPU at least
    return on_gpus(recipe, next((n for n in range(most, 1, -1) if recipe.total_batch % (n * rows) == 0), 1))


def on_gpus(recipe, count):
    """The recipe on so many GPUs. ZeRO 1 and 2 divide what one card has anyway: there they become none."""
    alone = {"zero_stage": 0, "zero_offload": False} if count == 1 and recipe.zero_stage in (1, 2) else {}
    return replace(recipe, gpus=count, **alone)


def earlier_settlings(recipe):
    """What a recipe without a number may have been described as when a run of it began, this machine's number first."""
    if recipe.gpus is not None:
        return [recipe]
    counts = [count for count in range(1, min(recipe.total_batch, MOST_GPUS) + 1) if recipe.total_batch % count == 0]
    found = [settle_gpus(recipe)]
    for count in counts:
        for settle in (on_gpus, lambda one, count: replace(one, gpus=count)):  # earlier versions kept ZeRO on one card
            with suppress(RecipeError):
                found.append(settle(recipe, count))
    return found


def free_cards():
    """Numbers of the cards that a run would take here: of the freest one's kind, and as free as it within a tenth."""
    import torch

    if torch.cuda.device_count() < 2:  # asking a card for its memory would take some of it
        return list(range(torch.cuda.device_count()))
    gpus = find_gpus()
    if not gpus:
        return []
    best = max(gpus, key=lambda gpu: gpu.free_gib)
    return [n for n, gpu in enumerate(gpus) if gpu.name == best.name and gpu.free_gib >= AS_FREE * best.free_gib]


def visible_cards(count):
    """CUDA_VISIBLE_DEVICES of a run on `count` of this machine's cards; None where the first ones are taken anyway."""
    chosen = free_cards()[:count]
    return None if len(chosen) < count or chosen == list(range(count)) else ",".join(map(physical_index, chosen))


def is_sharded(recipe):
    """Whether DeepSpeed divides something: on one GPU it is not used."""
    return recipe.processes > 1 and recipe.zero_stage > 0


def find_missing(recipe):
    """Why ZeRO can't run here, "" if it can or is not asked for."""
    if not is_sharded(recipe) or importlib.util.find_spec("deepspeed"):
        return ""
    return (
        f"{recipe.name}: zero_stage={recipe.zero_stage} on {recipe.gpus} GPUs, and no DeepSpeed is installed; pip "
        "install 'ivlkit[deepspeed]', or set zero_stage=0 for plain data parallelism"
    )


def check_launch(recipe, environ):
    """What a launcher put into the environment, held against the recipe.

    Raises: TrainingError where more or fewer processes were started, or another engine was asked for.
    """
    started = int(environ.get("WORLD_SIZE", 1))
    if started != recipe.processes:
        raise TrainingError(
            f"gpus={recipe.gpus} in run.yaml, but {started} process{'es' * (started > 1)} started; expected one a GPU; "
            f"torchrun --nproc_per_node {recipe.gpus} -m ivlkit train run.yaml, or ivlkit.train, which starts them "
            "(accelerate launch --cpu starts one, whatever its --num_processes)"
        )
    if _says_yes(environ, "ACCELERATE_USE_FSDP"):
        raise TrainingError("accelerate launch --use_fsdp; expected DDP or the recipe's zero_stage; leave it out")
    if _says_yes(environ, "ACCELERATE_USE_DEEPSPEED"):
        _check_accelerates_deepspeed(recipe, environ)
    missing = find_missing(recipe)
    if missing:
        raise RecipeError(missing)


def _check_accelerates_deepspeed(recipe, environ):
    if environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none") != "none":
        raise TrainingError(
            f"accelerate launch with {environ['ACCELERATE_DEEPSPEED_CONFIG_FILE']}; expected none: the recipe's "
            f"zero_stage={recipe.zero_stage} makes DeepSpeed's configuration; leave --deepspeed_config_file out"
        )
    asked = int(environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2))
    if asked != recipe.zero_stage:
        raise TrainingError(
            f"accelerate launch --zero_stage {asked}, but zero_stage={recipe.zero_stage} in run.yaml; expected the "
            "same; leave --use_deepspeed out: the recipe sees to it"
        )


def _says_yes(environ, name):
    return environ.get(name, "false").lower() in ("true", "1", "yes")


def join(recipe):
    """Check the launch and meet the other processes. Returns: this process's device."""
    import torch

    check_launch(recipe, os.environ)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else torch.device("cpu")
    if on_gpu and device.index >= torch.cuda.device_count():
        raise TrainingError(
            f"process {device.index + 1} of this host, but torch sees {torch.cuda.device_count()} GPUs; expected one "
            "each; start fewer a host, with --nnodes for the others"
        )
    if recipe.processes == 1:
        return torch.device(device.type)
    if on_gpu:
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    if is_sharded(recipe):
        _start_deepspeed(on_gpu)
    return device


def _start_deepspeed(on_gpu):
    """Before transformers does: its own start comes too late for weights that are divided while they are loaded."""
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if not on_gpu:  # a kernel for shared memory would be compiled first, half a minute; gloo does without
        getattr(deepspeed.ops, "__compatible_ops__", {})["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", dist_init_required=False)


@contextmanager
def loading(recipe, dtype):
    """Under ZeRO-3 `from_pretrained` gives each rank its share of every weight, and PEFT knows of it."""
    import torch

    if not is_sharded(recipe) or recipe.zero_stage < 3:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    config = zero_config(3, offload=recipe.zero_offload) | {
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
    }
    kept = HfDeepSpeedConfig(config)  # transformers holds it by a weak reference only
    yield
    del kept


def zero_config(stage, *, offload=False):
    """DeepSpeed's configuration with the values of the released `zero_stage*_config.json`.

    Args: offload: the optimizer's state, at stage 3 the weights too, in the host's memory (`zero_stage3_…_offload`).
    """
    zero = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    if stage == 3:
        zero |= {
            "sub_group_size": BUCKET,
            "reduce_bucket_size": BUCKET,
            "stage3_prefetch_bucket_size": BUCKET,
            "stage3_param_persistence_threshold": 1e7,
            "stage3_max_live_parameters": BUCKET,
            "stage3_max_reuse_distance": BUCKET,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    else:
        bucket = BUCKET if stage == 1 else 1e8
        zero |= {"allgather_bucket_size": bucket, "reduce_scatter": True, "reduce_bucket_size": bucket}
    for part in ("optimizer", *(("param",) if stage == 3 else ())) if offload else ():
        zero[f"offload_{part}"] = {"device": "cpu", "pin_memory": True}
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's own AdamW steps on the host too, and needs no compiler
    }


def make_accelerator(recipe, device, *, mixed, accumulation, **tracking):
    """Accelerate for a recipe: one process, DDP or DeepSpeed. It divides no loss by the accumulation.

    Args: mixed: "no", "bf16" or "fp16", to compute in. accumulation: micro-batches of a step.
    """
    from accelerate import Accelerator, DeepSpeedPlugin, PartialState

    on_cpu = device.type == "cpu"
    if not is_sharded(recipe):
        return Accelerator(cpu=on_cpu, mixed_precision=mixed, **tracking)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"  # with `cpu=True` beside a plugin Accelerate would take DDP
    PartialState(cpu=on_cpu)
    config = zero_config(recipe.zero_stage, offload=recipe.zero_offload) | {
        "bf16": {"enabled": mixed == "bf16"},
        "fp16": {"enabled": mixed == "fp16"},
        "gradient_clipping": recipe.max_grad_norm,  # DeepSpeed clips inside `backward`
        "gradient_accumulation_steps": accumulation,
        "train_micro_batch_size_per_gpu": recipe.per_device_batch,
        "train_batch_size": recipe.processes * recipe.per_device_batch * accumulation,
    }
    return Accelerator(mixed_precision=mixed, deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config), **tracking)


def describe_engine(model):
    """ "DeepSpeedEngine ZeRO-3 over 2 processes" for what Accelerate wrapped."""
    import torch

    stage = getattr(model, "zero_optimization_stage", None)
    kind = type(model).__name__ + (f" ZeRO-{stage()}" if stage else "")
    return f"{kind} over {torch.distributed.get_world_size()} processes" if is_initialized() else kind


def check_engine(engine, recipe, *, alone):
    """Say before the first step what trains, several processes at least: "DeepSpeedEngine ZeRO-2 over 4 processes".

    Args: alone: the class that is expected in one process.
    Raises: TrainingError if it is not what the recipe asks for: it would train on, only otherwise.
    """
    import torch

    found = describe_engine(engine)
    kind = f"DeepSpeedEngine ZeRO-{recipe.zero_stage}" if recipe.zero_stage else "DistributedDataParallel"
    expected = alone if recipe.processes == 1 else f"{kind} over {recipe.processes} processes"
    if found != expected:
        raise TrainingError(
            f"{recipe.name}: would train as {found}; expected {expected}, by gpus and zero_stage; start it with "
            f"torchrun --nproc_per_node {recipe.processes} -m ivlkit train run.yaml"
        )
    if recipe.processes > 1 and rank() == 0:
        print(f"{found} ({torch.distributed.get_backend()})", flush=True)


def is_initialized():
    """Whether this process is one of several that have found each other."""
    import torch

    return torch.distributed.is_available() and torch.distributed.is_initialized()


def broadcast_from_rank0(make):
    """What `make` returns on rank 0, on every rank; the others wait for it."""
    import torch

    if not is_initialized():
        return make()
    said = [make() if rank() == 0 else None]
    torch.distributed.broadcast_object_list(said)
    return said[0]


def leave():
    """End this process with code 0 if it is one of several on a CPU, all of its work done; elsewhere do nothing.

    While Python ends, a thread of gloo that asks for its lock aborts the process (SIGABRT), now and then: a launcher
    would call a run failed whose weights are written.
    """
    import torch

    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or torch.cuda.is_available():
        return
    if is_initialized():
        torch.distributed.barrier()  # a rank that leaves early takes the others with it
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def local_shard(parameter):
    """A parameter's values that lie on this rank: a share of them under ZeRO-3."""
    return getattr(parameter, "ds_tensor", parameter)

"""transformers' Trainer with our plan, our loss and checkpoints that load or fail.

One plan serves the whole run, so the Trainer sees a single epoch of it; resuming skips to the micro-batch where it
stopped.
"""

import math
import time
from functools import cached_property, partial
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from ...data.collate import normalise_tiles
from ...data.encode import IGNORE_INDEX
from ...errors import CheckpointError, TrainingError
from ...models.modeling.attention import packed_arguments
from ...models.modeling.internvl import count_calls
from ..checkpoints import check_finite, keep_newest, writing_checkpoint
from ..engine.distributed import describe_engine, is_initialized, is_sharded, zero_config
from ..log import append_step
from ..tuning import parameter_groups
from .loss import count_chunks, count_supervised, total_weight, weighted_cross_entropy

OPTIM = {"adamw_8bit": "adamw_8bit", "paged_adamw_8bit": "paged_adamw_8bit"}  # transformers' names; adamw: its default


class KitTrainer(Trainer):
    """Trains what `tuning.prepare` returned on `MicroBatches`."""

    step_rows = ()  # of the optimiser step that is computed, on this rank
    _saving_to = None  # where the checkpoint that is being written grows
    tokens_read = 0  # by this rank, since the process started; padding not counted

    def get_train_dataloader(self):
        """The plan in order; sharding over ranks happened when it was made."""
        return self.loader(self.train_dataset)

    def loader(self, dataset):
        """The micro-batches of a `MicroBatches` in order."""
        return DataLoader(
            dataset,
            batch_size=1,
            collate_fn=_only,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=False,
        )

    def create_optimizer(self, *args, **kwargs):
        """transformers' own, with the recipe's learning rate of each part."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new:
            recipe = self.train_dataset.recipe
            optimizer.param_groups[:] = parameter_groups(self.model, recipe, optimizer.param_groups)
        return optimizer

    def _get_num_items_in_batch(self, batch_samples, device):
        """W of the optimiser step, whose rows are remembered."""
        self.step_rows = [where for batch in batch_samples for where in batch["where"]]
        return self.weigh(batch_samples, device)

    def weigh(self, batch_samples, device):
        """W of micro-batches, over them and all ranks; each micro-batch learns its calls of the tower and the head.

        ZeRO-3 fetches weights at every call, so all ranks call as often as the one with most tiles or positions.
        """
        weight = sum(_weight(batch) for batch in batch_samples)
        sizes = [[len(batch.get("tiles", ())), count_supervised(batch["labels"])] for batch in batch_samples]
        said = torch.cat([weight.reshape(1), weight.new_tensor(sizes).flatten()])[None]
        if self.args.world_size > 1:
            said = self.accelerator.gather(said.to(device)).cpu()  # [ranks, 1 + 2 · micro-batches]
        most = said[:, 1:].amax(dim=0).reshape(-1, 2).tolist()
        for batch, (tiles, positions) in zip(batch_samples, most, strict=True):
            batch["tower_calls"], batch["chunks"] = count_calls(int(tiles)), count_chunks(int(positions))
        return said[:, 0].sum().to(device)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One micro-batch; its tokens are counted for the log. One without rows is computed by no rank."""
        if not inputs["where"]:
            return torch.zeros((), device=self.args.device)
        self.tokens_read += _count_tokens(inputs)
        return super().training_step(model, inputs, num_items_in_batch)

    def log(self, logs, start_time=None):
        """Also the tokens that all ranks have read. A gradient that is not finite has spoilt the weights: it raises."""
        norm = logs.get("grad_norm", 0.0)
        if not math.isfinite(norm) and not self.args.fp16:  # fp16's scaler leaves such a step out
            raise TrainingError(
                f"gradient norm {norm} at step {self.state.global_step}, rows {', '.join(self.step_rows)}; expected a "
                "finite one; lower learning_rate or look at these rows; the last checkpoint is kept"
            )
        read = torch.tensor([self.tokens_read], device=self.args.device)
        super().log(logs | {"tokens": int(self.accelerator.gather(read).sum())}, start_time)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Σ w·CE / W of this micro-batch; times the world size, by which DDP divides the gradients."""
        # With a cache transformers takes a packed row for one sample.
        outputs = model(**self._model_inputs(inputs), use_cache=False, loss_fn=_loss_of(inputs))
        loss = outputs.loss / num_items_in_batch * self.args.world_size
        if not torch.isfinite(loss):
            raise TrainingError(
                f"loss {loss.item()} at step {self.state.global_step}, rows {', '.join(inputs['where'])}; expected a "
                "finite loss; lower learning_rate or look at these rows; the last checkpoint is kept"
            )
        return (loss, outputs) if return_outputs else loss

    @cached_property
    def _sees_trainably(self):
        """Whether a gradient of the vision tower or the projector is wanted."""
        parts = (".vision_tower.", ".multi_modal_projector.")
        named = self.model.named_parameters()
        return any(value.requires_grad for name, value in named if any(part in f".{name}" for part in parts))

    def _prepare_input(self, data):
        """As it is, onto the device: transformers would round the samples' weights to bf16 under DeepSpeed."""
        return data.to(self.args.device) if torch.is_tensor(data) else super()._prepare_input(data)

    def _model_inputs(self, inputs):
        """A padded batch goes with its mask, a packed one without any but with restarting positions and bounds.

        Text alone goes with no tiles where the tower or the projector trains: their gradients are zero then, and not
        missing, on one GPU as on several; the optimizer would leave them out in a step of text alone on one only.
        """
        runs_tower = len(inputs["tiles"]) or self.args.world_size > 1 or self._sees_trainably
        pixel_values = normalise_tiles(inputs["tiles"]) if runs_tower else None
        both = {"input_ids": inputs["input_ids"], "pixel_values": pixel_values}
        both["tower_calls"] = inputs.get("tower_calls", 1)
        if "attention_mask" in inputs:
            return both | {"attention_mask": inputs["attention_mask"]}
        bounds = packed_arguments(inputs["cu_seqlens"], inputs["max_length"])
        return both | bounds | {"position_ids": inputs["position_ids"]}

    def _get_output_dir(self, trial):
        return str(self._saving_to or super()._get_output_dir(trial))

    def _save_checkpoint(self, model, trial):
        """Whole or not at all; older ones go once it is there."""
        check_finite(model, self.state.global_step)
        folder = Path(self.args.output_dir)
        with writing_checkpoint(folder / f"checkpoint-{self.state.global_step}", self.accelerator) as self._saving_to:
            super()._save_checkpoint(model, trial)
        self._saving_to = None
        if self.args.should_save:
            keep_newest(folder, self.args.save_total_limit)

    @torch.no_grad()
    def predict_tokens(self, batch):
        """The most probable token at every supervised place, each from the true tokens before it: int64 [N].

        Nothing is dropped and no random number is drawn, so training goes on as if this had not been asked.
        """
        inputs = self._prepare_inputs(batch)
        is_answer = inputs["labels"][:, 1:] != IGNORE_INDEX
        was_training = self.model.training
        self.model.eval()
        with self.compute_loss_context_manager():
            outputs = self.model(
                **self._model_inputs(inputs),
                use_cache=False,
                loss_fn=lambda hidden, lm_head: lm_head(hidden[:, :-1][is_answer]).argmax(dim=-1),
            )
        self.model.train(was_training)
        return outputs.loss.cpu()

    def _save(self, output_dir=None, state_dict=None):
        """Adapter alone, or the whole model under transformers' own keys. No pickled arguments."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_trained(self.accelerator.unwrap_model(self.model), folder, state_dict=state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        load_trained(model or self.model, Path(resume_from_checkpoint))


def _count_tokens(inputs):
    """Tokens of rows; padding, and a row that only keeps ranks in step, are not counted."""
    if not inputs["weights"].any():
        return 0
    return int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else inputs["input_ids"].numel()


def _weight(batch):
    return total_weight(batch["labels"], batch["weights"], sample_ids=batch.get("sample_ids"))


def _loss_of(inputs):
    """The loss as a function of hidden states and the head."""
    names = {"labels", "weights", "sample_ids", "chunks"} & inputs.keys()
    return partial(weighted_cross_entropy, **{name: inputs[name] for name in names})


def save_trained(model, folder, *, state_dict=None):
    """Write what a run trained: PEFT's adapter files, or `model.safetensors` with transformers' keys."""
    if hasattr(model, "peft_config"):
        model.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=False)  # "auto" would ask the hub
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card
        return
    tensors = state_dict or model.state_dict()
    tensors = {key: tensor.detach().to("cpu").contiguous() for key, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load_trained(model, folder):
    """Load what `save_trained` wrote into a model of the same kind.

    Raises: CheckpointError for any missing or unexpected tensor.
    """
    adapter = hasattr(model, "peft_config")
    path = folder / ("adapter_model.safetensors" if adapter else "model.safetensors")
    try:
        tensors = load_file(path)
    except Exception as error:
        raise CheckpointError(f"{path}: can't be read ({error}); expected a checkpoint of this run") from error
    if adapter:
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        _check_keys(tensors.keys(), get_peft_model_state_dict(model, save_embedding_layers=False).keys(), path)
        set_peft_model_state_dict(model, tensors)
    else:
        _check_keys(tensors.keys(), model.state_dict().keys(), path)
        model.load_state_dict(tensors)


def _check_keys(found, expected, path):
    for what, keys in (("missing", expected - found), ("unexpected", found - expected)):
        if keys:
            raise CheckpointError(
                f"{path}: {len(keys)} tensors are {what}, first {min(keys)}; is it of another recipe?"
            )


def training_arguments(recipe, folder, *, steps, device_type, bf16, accumulation=None):
    """The Trainer's arguments for a recipe. Mixed precision only where weights are float32 masters on a GPU.

    Args: steps, accumulation: optimiser steps and micro-batches a step, of the plan; None for the recipe's own number.
    """
    on_gpu = device_type == "cuda"
    optim = {"optim": OPTIM[recipe.optimizer]} if recipe.optimizer in OPTIM else {}
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=recipe.per_device_batch,
        gradient_accumulation_steps=accumulation or recipe.accumulation,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        warmup_steps=round(recipe.warmup_ratio * steps),
        lr_scheduler_type=recipe.scheduler,
        **optim,
        adam_beta2=recipe.adam_beta2,
        max_grad_norm=recipe.max_grad_norm,
        bf16=on_gpu and bf16,
        fp16=on_gpu and not bf16,
        use_cpu=not on_gpu,
        dataloader_num_workers=recipe.workers,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=recipe.save_steps,
        save_total_limit=recipe.save_total_limit,
        seed=recipe.seed,
        data_seed=recipe.seed,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        ddp_find_unused_parameters=False,  # every forward uses all that trains: a blank tile where there is none
        deepspeed=zero_config(recipe.zero_stage, offload=recipe.zero_offload) if is_sharded(recipe) else None,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else one process that sees several GPUs spreads every batch over them
    return arguments


class CheckEngine(TrainerCallback):
    """Says before the first step what trains: "DeepSpeedEngine ZeRO-2 over 4 processes (nccl)"."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **_):
        """Raises TrainingError if it is not what the recipe asks for: it would train on, only otherwise."""
        recipe, found = self.trainer.train_dataset.recipe, describe_engine(self.trainer.model_wrapped)
        kind = f"DeepSpeedEngine ZeRO-{recipe.zero_stage}" if recipe.zero_stage else "DistributedDataParallel"
        expected = f"{kind} over {recipe.processes} processes"
        if recipe.processes == 1:
            expected = type(self.trainer.model).__name__
        if found != expected:
            raise TrainingError(
                f"{recipe.name}: would train as {found}; expected {expected}, by gpus and zero_stage; start it with "
                f"torchrun --nproc_per_node {recipe.processes} -m ivlkit train run.yaml"
            )
        if recipe.processes > 1 and state.is_world_process_zero:
            print(f"{found} ({torch.distributed.get_backend()})", flush=True)


class LogToFile(TrainerCallback):
    """Appends each step's numbers to the run's log: see `Run.history`."""

    def __init__(self, path, *, epochs):
        self.path, self.epochs, self.started = path, epochs, time.monotonic()

    def on_log(self, args, state, control, logs=None, **_):
        """One line a step; the Trainer's closing summary is left out."""
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        line = {
            "step": state.global_step,
            "steps": state.max_steps,
            "epoch": round(state.epoch * self.epochs, 4),
            "loss": logs["loss"],
            "learning_rate": logs.get("learning_rate"),
            "grad_norm": logs.get("grad_norm"),
            "tokens": logs.get("tokens"),
            "memory_gib": round(_memory_bytes(args.device) / 1024**3, 3),
            "seconds": round(time.monotonic() - self.started, 3),
        }
        append_step(self.path, line)


def _memory_bytes(device):
    """The most that tensors took of a GPU since the start; on a CPU what the process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


class StopOnSignal(TrainerCallback):
    """Ends after the current step, with a checkpoint, once `requested` is set."""

    requested = False

    def on_step_end(self, args, state, control, **_):
        """Ask the Trainer to save and stop; all ranks at the same step, or one would wait for the others for ever."""
        if _on_any_rank(self.requested, args.device):
            control.should_save = control.should_training_stop = True


def _on_any_rank(flag, device):
    if not is_initialized():
        return flag
    found = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return bool(found)


def _only(batches):
    return batches[0]

"""What this machine has: the first cell of a notebook, and the block to paste into a bug report."""

import gc
import os
from dataclasses import asdict, dataclass
from pathlib import Path

GIB = 1024**3
NOT_INSTALLED = "not installed"
PACKAGES = (
    "ivlkit", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "huggingface_hub",
    "numpy", "pillow", "bitsandbytes", "deepspeed", "jupyterlab", "ipywidgets",
)  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA card that torch can use."""

    name: str
    memory_gib: float
    free_gib: float  # now, all programs on the card counted
    capability: tuple[int, int]  # (8, 0) for an A100, (9, 0) for an H100
    bf16: bool  # in hardware; emulated bf16 counts as false

    def __str__(self) -> str:
        major, minor = self.capability
        bf16 = "bf16" if self.bf16 else "no bf16"
        return f"{self.name}, {self.memory_gib:.1f} GiB ({self.free_gib:.1f} free), capability {major}.{minor}, {bf16}"


@dataclass(frozen=True)
class Machine:
    """What `machine()` found. Print it, show it in a notebook, or take `to_dict()`; None means unknown."""

    python: str
    platform: str
    cpu_count: int  # cores this process may use
    ram_gib: float | None  # a container's own limit where it is the smaller one
    ram_free_gib: float | None
    disk_free_gib: float | None  # where the working folder lies: runs are written there
    gpus: tuple[Gpu, ...]
    driver_without_torch: str | None  # a card that nvidia-smi names and torch can't see, why, and what mends it
    attention: str  # "varlen" (packed samples, one kernel) or "sdpa"
    versions: dict[str, str]  # by package; "not installed" where it is missing

    def to_dict(self) -> dict:
        """The same as plain values, ready for `json.dumps`."""
        return asdict(self)

    def __str__(self) -> str:
        rows = self._rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def _repr_html_(self) -> str:
        from html import escape

        cell = '<td style="text-align:left">'
        rows = (f"<tr>{cell}{escape(name)}</td>{cell}{escape(value)}</td></tr>" for name, value in self._rows())
        return f"<table>{''.join(rows)}</table>"

    def _rows(self) -> list[tuple[str, str]]:
        gpus = [("gpu", str(gpu)) for gpu in self.gpus] or [("gpu", "none that torch can use")]
        warning = [("WARNING", self.driver_without_torch)] if self.driver_without_torch else []
        return [
            ("python", self.python),
            ("platform", self.platform),
            ("cpu", f"{self.cpu_count} cores"),
            ("ram", f"{_gib(self.ram_gib)}, {_gib(self.ram_free_gib)} free"),
            ("disk", f"{_gib(self.disk_free_gib)} free"),
            *gpus,
            *warning,
            ("attention", self.attention),
            *self.versions.items(),
        ]


def machine() -> Machine:
    """Look at this machine: Python, memory, disk, graphics cards, and the versions that matter.

    Never raises on an odd machine: what can't be found is None, an empty tuple or "not installed".
    Imports torch, which takes a second or two the first time.
    """
    import platform

    try:
        disk_free_gib = free_bytes(".") / GIB
    except OSError:  # the working folder was removed
        disk_free_gib = None
    ram_gib, ram_free_gib = read_ram_gib()
    torch, cuda_problem = _import_torch()
    gpus = find_gpus()
    return Machine(
        python=platform.python_version(),
        platform=platform.platform(),
        # Linux: a job scheduler may have lent us a few cores of many.
        cpu_count=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        ram_gib=ram_gib,
        ram_free_gib=ram_free_gib,
        disk_free_gib=disk_free_gib,
        gpus=gpus,
        driver_without_torch=None if gpus else _driver_without_torch(torch, cuda_problem),
        attention=_attention(gpus),
        versions={name: package_version(name) for name in PACKAGES},
    )


def _gib(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f} GiB"


def free_bytes(place) -> int:
    """What is free on the disk of a file or folder that may not exist yet. Raises: OSError."""
    import shutil

    place = Path(place).absolute()
    return shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free


def read_ram_gib() -> tuple[float | None, float | None]:
    """(total, free) in GiB; (None, None) where psutil can't tell."""
    try:
        import psutil

        memory = psutil.virtual_memory()
    except Exception:  # not installed, or a platform it does not know
        return None, None
    limit, free = _cgroup_memory()
    return min(memory.total, limit) / GIB, min(memory.available, free) / GIB


def _cgroup_memory(root: Path = Path("/sys/fs/cgroup")) -> tuple[float, float]:
    """(limit, free) of a container's memory in bytes; infinite where there is no limit."""
    try:
        limit = int((root / "memory.max").read_text())  # "max" where there is none
        used = int((root / "memory.current").read_text())
        counters = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
        cached = int(counters["inactive_file"])  # counted as used, given back when asked for
    except (OSError, ValueError, KeyError):
        return float("inf"), float("inf")
    return limit, max(limit - used + cached, 0)


def _import_torch():
    """(torch, or None if it does not import; why CUDA can't be used, in torch's own words, or "")."""
    import warnings

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import torch

            torch.cuda.is_available()
    except Exception as error:  # a broken torch must not hide the rest of the report
        return None, f"{type(error).__name__}: {error}"
    about_cuda = [str(warning.message) for warning in caught if "CUDA" in str(warning.message)]
    return torch, about_cuda[0].strip().partition("\n")[0] if about_cuda else ""


def find_gpus() -> tuple[Gpu, ...]:
    """The cards that torch can use, in its order; none where it is missing or can't tell."""
    try:
        import torch

        found = []
        for index in range(torch.cuda.device_count()):
            name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
            free, total = torch.cuda.mem_get_info(index)
            found.append(Gpu(name, total / GIB, free / GIB, capability, bf16=capability >= (8, 0)))
        return tuple(found)
    except Exception:  # no torch, a card in exclusive use, a driver that is half there
        return ()


def _attention(gpus: tuple[Gpu, ...]) -> str:
    """The kernel for packed samples where torch has it and every card is Ampere or newer, else "sdpa"."""
    if not gpus or min(gpu.capability for gpu in gpus) < (8, 0):
        return "sdpa"
    try:
        import torch.nn.attention.varlen  # noqa: F401
    except Exception:
        return "sdpa"
    return "varlen"


def _driver_without_torch(torch, cuda_problem: str) -> str | None:
    """One sentence with its fix where nvidia-smi names a card that torch can't use; None where it names none."""
    name = _nvidia_smi_name()
    if name is None:
        return None
    seen = f"{name} is here, but torch can't see it"
    if torch is None:
        return f"{seen}: torch does not import ({cuda_problem}). Run `pip install torch`"
    if torch.version.cuda is None:
        fix = f"pip uninstall -y torch && pip install torch=={torch.__version__.split('+')[0]}"
        return f"{seen}: torch {torch.__version__} is a build without CUDA. Run `{fix}` for one with it"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and not cuda_problem:
        return f"{seen}: CUDA_VISIBLE_DEVICES is {hidden!r}. Run `unset CUDA_VISIBLE_DEVICES` and start again"
    return (
        f"{seen}: {cuda_problem or 'CUDA does not start'}. torch {torch.__version__} is built for CUDA "
        f"{torch.version.cuda}: update the NVIDIA driver until `nvidia-smi` shows that version or a newer one"
    )


def _nvidia_smi(*options: str) -> list[str]:
    """The lines that nvidia-smi answers; none where it is missing or fails."""
    import subprocess

    try:
        done = subprocess.run(["nvidia-smi", *options], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _nvidia_smi_name() -> str | None:
    names = _nvidia_smi("--query-gpu=name", "--format=csv,noheader")
    return names[0].strip() if names and not names[0].startswith("No devices") else None


def give_back_gpu_memory() -> None:
    """Free GPU memory of tensors that nobody names any more, for other programs too.

    A workspace of cuBLAS stays where it was first allocated, and with it the whole piece of memory around it: 11 GiB
    after an NF4 model of 26B, which transformers loads into one piece.
    """
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch._C._cuda_clearCublasWorkspaces()  # torch has no public name for it: pytorch issue 184084
        torch.cuda.empty_cache()


def holders_of_gpu(index: int = 0) -> tuple[str, ...]:
    """Programs that hold memory of a card, this one among them, as nvidia-smi tells: "pid 123 python3: 5,120 MiB".

    Empty where nvidia-smi is missing or shows no processes, as in most containers.
    """
    import psutil

    found, own, on_card = [], os.getpid(), gpu_processes(index)
    above = {process.pid for process in psutil.Process().parents()} & {pid for pid, _, _ in on_card}
    known = {own: "this process"} | dict.fromkeys(above, "the program that began this run")
    for pid, name, used_gib in on_card:
        used = "an unknown amount" if used_gib is None else f"{used_gib * 1024:,.0f} MiB"
        who = f"{known[pid]} (pid {pid})" if pid in known else f"pid {pid} {Path(name).name}"
        release = "; vlm.release() gives a loaded model's back" if pid in (above or {own}) else ""
        found.append(f"{who}: {used}{release}")
    return tuple(found)


def gpu_processes(index: int = 0) -> list[tuple[int, str, float | None]]:
    """(pid, name, GiB or None where nvidia-smi can't tell) of each program on a card; [] where it shows none."""
    query = "--query-compute-apps=pid,process_name,used_memory"
    lines = _nvidia_smi(f"--id={physical_index(index)}", query, "--format=csv,noheader,nounits")
    rows = [row for row in (line.split(", ") for line in lines) if len(row) == 3]
    return [(int(pid), name, int(used) / 1024 if used.isdigit() else None) for pid, name, used in rows]


def physical_index(index: int) -> str:
    """torch counts the visible cards only; nvidia-smi takes a number or a UUID of any."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return visible[index].strip() if index < len(visible) and visible[index].strip() else str(index)


def package_version(name: str, *, missing: str = NOT_INSTALLED) -> str:
    """Version of an installed package, or `missing`."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return missing

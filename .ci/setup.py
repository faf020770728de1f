"""Make the virtual environment that every `make` target works in. `make setup` runs it; so may you.

Standard library only, and nothing newer than Python 3.6: an old Python has to get far enough to say what is
missing. Does nothing when the environment already fits pyproject.toml and constraints.txt, and goes on where
it was stopped.
"""

import argparse
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 11)
# (GB to download, GB on disk), measured with everything installed; PyPI's torch for Linux brings CUDA along, which took
# 2.7 and 4.7 GB more than a CPU build.
SIZES_GB = {"kept": (0.4, 1.5), "cpu": (0.6, 2.3), "cuda": (3.3, 7.0)}
DOWNLOAD_MB_PER_S = 12  # a line of 100 Mbit/s
MINUTES_TO_UNPACK = 2
LEVELS = {"demo": "", "dev": "[dev,notebooks]", "all": "[dev,all]"}  # extras; each level holds what is before it


def main():
    options = parse_options()
    venv = Path(options.venv).absolute()
    stamp = venv / "ivlkit-setup.txt"
    if not options.torch and is_done(stamp, options.level) and venv_python(venv).exists():
        return
    started = time.time()
    use_new_enough_python()
    check_venv_module(venv)
    check_disk(venv, options.torch)
    create(venv)
    install(venv, options)
    stamp.write_text(fingerprint() + " " + options.level + "\n")
    print(f"Set up in {(time.time() - started) / 60:.1f} minutes: {venv}")
    tell_of_unseen_card(venv)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", default=str(ROOT / ".venv"), help="where the environment lies")
    parser.add_argument("--torch", default="", help="torch as pip takes it: 'torch==2.13.0'; replaces another")
    parser.add_argument("--level", default="dev", choices=sorted(LEVELS), help="demo: not what tests or notebooks need")
    return parser.parse_args()


def is_done(stamp, level):
    """The environment was made from the two files as they are now, for this level or a higher one."""
    done = stamp.read_text().split() if stamp.is_file() else []
    order = list(LEVELS)
    return done[:1] == [fingerprint()] and order.index((done + ["dev"])[1]) >= order.index(level)


def fingerprint():
    files = (ROOT / "pyproject.toml", ROOT / "constraints.txt")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def use_new_enough_python():
    """Go on in a newer Python, if this one is too old and the machine has one."""
    if sys.version_info >= OLDEST_PYTHON:
        return
    for name in ("python3.13", "python3.12", "python3.11"):
        if is_new_enough(name):
            print(f"Python {platform.python_version()} is too old; using {name}", flush=True)
            os.execvp(name, [name] + sys.argv)
    stop(
        f"Python {platform.python_version()} found, 3.11 or newer needed. "
        f"Run: {install_command('python3.11')}, then: make setup PYTHON=python3.11"
    )


def is_new_enough(name, module="sys"):
    """This Python runs (a version manager's stand-in may not), is 3.11 or newer and can import the module."""
    code = f"import sys, {module}; sys.exit(sys.version_info < {OLDEST_PYTHON})"
    try:
        return subprocess.run([name, "-c", code], stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def check_venv_module(venv):
    if venv_python(venv).exists():
        return
    try:
        import ensurepip  # noqa: F401  (Debian splits it off into a package of its own)
        import venv as _  # noqa: F401
    except ImportError as missing:
        package = f"python3.{sys.version_info[1]}-venv"
        stop(f"{missing.name} is missing from this Python. Run: {install_command(package)}")


def install_command(package):
    """The one command that installs a system package here, as far as we know the system."""
    sudo = "" if not hasattr(os, "geteuid") or os.geteuid() == 0 else "sudo "
    if sys.platform == "darwin":
        return "brew install " + re.sub(r"^python([\d.]+).*", r"python@\1", package)
    if shutil.which("dnf"):
        return sudo + "dnf install " + package.replace("-venv", "")
    return sudo + "apt-get install " + package + ("" if "-venv" in package else " " + package + "-venv")


def check_disk(venv, torch):
    """Say what is about to be downloaded, and refuse where it would not fit. GB here are 10⁹ bytes."""
    kind = torch_kind(venv, torch)
    download, needed = SIZES_GB[kind]
    if kind == "kept":
        print(f"torch {torch_version(venv)} is in {venv} and stays")
    if kind == "cuda" and not shutil.which("nvidia-smi"):
        print(
            "No NVIDIA card? A CPU build of torch takes a third of what follows: copy its pip line from "
            'pytorch.org/get-started into make setup TORCH="..."'
        )
    minutes = MINUTES_TO_UNPACK + download * 1000 / DOWNLOAD_MB_PER_S / 60
    free = shutil.disk_usage(str(nearest_folder(venv))).free / 1e9
    size = f"up to {download:.1f} GB to download, {needed:.1f} GB on disk ({free:.1f} GB free)"
    print(f"{size}, about {minutes:.0f} minutes at 100 Mbit/s", flush=True)
    if free < needed + download:
        stop(
            f"{free:.1f} GB free at {venv.parent}, {needed + download:.1f} GB needed while installing. "
            "Free some, or put the environment elsewhere: make setup VENV=/path/with/space"
        )


def torch_kind(venv, torch):
    """What pip will fetch: "kept" is nothing, "cuda" is what Linux gets unless a CPU build is named."""
    if torch_version(venv) and not torch:
        return "kept"
    return "cuda" if sys.platform.startswith("linux") and "cpu" not in torch else "cpu"


def nearest_folder(path):
    return next(folder for folder in [path] + list(path.parents) if folder.is_dir())


def venv_python(venv):
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def torch_version(venv):
    """The torch in this environment, or "" where there is none (or no environment)."""
    code = "from importlib.metadata import version; print(version('torch'))"
    try:
        command = [str(venv_python(venv)), "-c", code]
        return subprocess.check_output(command, stderr=subprocess.DEVNULL).decode().strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def create(venv):
    """A venv that was left half made, or whose Python went away, is made anew; nothing else is cleared."""
    if is_new_enough(str(venv_python(venv)), "pip"):
        return
    if venv.is_dir() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").is_file():
        stop(f"{venv} is not empty and no virtual environment. Name another: make setup VENV=/another/place")
    run([sys.executable, "-m", "venv", "--clear", str(venv)], "the virtual environment could not be made")


def install(venv, options):
    """torch first and alone, so that nothing that needs it can bring another; then the rest around it."""
    pip = [str(venv_python(venv)), "-m", "pip", "install", "--disable-pip-version-check"]
    again = "pip failed, its reason is above. Once it is mended, run the same command again: it goes on from here"
    if options.torch:
        run(pip + shlex.split(options.torch), again)
    elif not torch_version(venv):
        run(pip + ["-c", str(ROOT / "constraints.txt"), "torch"], again)
    constraints = venv / "ivlkit-constraints.txt"
    constraints.write_text(constraints_beside(torch_version(venv)))
    run(pip + ["-c", str(constraints), "-e", f"{ROOT}{LEVELS[options.level]}"], again)


def constraints_beside(torch):
    """constraints.txt for the torch that is there: another release or another build than ours is kept."""
    tested = (ROOT / "constraints.txt").read_text()
    return re.sub(r"(?m)^torch==.*$", "torch==" + torch, tested)


def run(command, complaint):
    if subprocess.run(command).returncode != 0:
        stop(complaint)


def tell_of_unseen_card(venv):
    """An NVIDIA card that torch can't see would mean training on the CPU: say so, with what mends it."""
    code = "from ivlkit.hardware import machine; print(machine().driver_without_torch or '')"
    done = subprocess.run([str(venv_python(venv)), "-c", code], stdout=subprocess.PIPE)
    warning = done.stdout.decode().strip()
    if warning:
        print(f"WARNING: {warning}", file=sys.stderr)


def stop(reason):
    print(f"setup: {reason}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()

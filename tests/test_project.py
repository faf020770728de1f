"""The project's own files agree: dependencies, constraints, conda's file, make's targets, set-up script."""

import ast
import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
CONDA_NAMES = {"pytorch": "torch", "pytorch-cpu": "torch", "pytorch-gpu": "torch"}  # as conda calls it


def requirements(*lists: list[str]) -> dict[str, Requirement]:
    """By canonical name; an extra that names other extras of ours is followed."""
    found = {}
    for line in (line for lines in lists for line in lines):
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            found |= requirements(*(EXTRAS[extra] for extra in sorted(requirement.extras)))
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


RUNTIME = requirements(PROJECT["dependencies"])
EVERYTHING = requirements(PROJECT["dependencies"], *EXTRAS.values())


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def conda_and_pip() -> tuple[list[str], list[str]]:
    conda = [entry for entry in ENVIRONMENT["dependencies"] if isinstance(entry, str)]
    pip = [line for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict) for line in entry["pip"]]
    return conda, pip


class TestDependencies:
    def test_torchvision_is_nowhere(self):
        assert "torchvision" not in EVERYTHING
        assert "torchvision" not in pins()
        assert "torchvision" not in str(ENVIRONMENT)

    def test_no_release_is_capped_but_the_one_whose_inside_we_touch(self):
        bounds = {name: str(wanted.specifier) for name, wanted in EVERYTHING.items()}
        capped = {name for name, bound in bounds.items() if not re.fullmatch(r">=[\d.]+", bound)}
        assert capped == {"transformers"}

    def test_torch_may_be_any_since_2_10(self):
        assert RUNTIME["torch"].specifier == SpecifierSet(">=2.10")

    def test_deepspeed_is_for_linux_only(self):
        marker = EVERYTHING["deepspeed"].marker
        assert marker.evaluate({"sys_platform": "linux"})
        assert not marker.evaluate({"sys_platform": "darwin"})

    def test_one_package_has_one_bound_wherever_it_is_named(self):
        lines = [line for lines in [PROJECT["dependencies"], *EXTRAS.values()] for line in lines]
        named = {(canonicalize_name(one.name), str(one.specifier)) for one in map(Requirement, lines)}
        names = [name for name, _ in named]
        assert sorted(set(names)) == sorted(names)


class TestConstraints:
    def test_every_direct_dependency_is_pinned(self):
        assert set(EVERYTHING) <= set(pins())

    def test_every_pin_is_within_its_bound(self):
        outside = {name for name, wanted in EVERYTHING.items() if not wanted.specifier.contains(pins()[name])}
        assert outside == set()

    def test_no_pin_is_for_one_kind_of_machine(self):
        """A local tag (+cpu, +cu130) or a CUDA package would install on one kind of machine only."""
        assert [name for name, version in pins().items() if "+" in version] == []
        assert [name for name in pins() if re.match(r"nvidia|cuda|triton", name)] == []


class TestCondaEnvironment:
    def test_it_is_named_like_the_package(self):
        assert ENVIRONMENT["name"] == PROJECT["name"]
        assert ENVIRONMENT["channels"] == ["conda-forge"]

    def test_python_is_one_that_the_package_supports(self):
        (python,) = [entry for entry in conda_and_pip()[0] if entry.startswith("python=")]
        assert SpecifierSet(PROJECT["requires-python"]).contains(python.split("=")[1])

    def test_pip_installs_this_folder_and_nothing_else(self):
        conda, pip = conda_and_pip()
        assert "pip" in conda
        assert pip == ["-e .[all]"]

    def test_its_extra_holds_every_other_one_but_dev(self):
        rest = requirements(*(lines for extra, lines in EXTRAS.items() if extra not in ("all", "dev")))
        assert requirements(EXTRAS["all"]).keys() == rest.keys()

    def test_conda_brings_nothing_that_pip_is_to_bring(self):
        names = {re.split(r"[=<>\s]", entry)[0].split("::")[-1] for entry in conda_and_pip()[0]}
        assert {CONDA_NAMES.get(name, name) for name in names} & set(EVERYTHING) == set()


class TestMake:
    def test_every_target_says_what_it_does(self):
        described = re.findall(r"^([a-z-]+):.*## \w", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert make_targets() == set(described)

    @pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", ".ci/run"])
    def test_every_target_that_is_written_about_exists(self, name):
        text = (ROOT / name).read_text()
        in_code = re.findall(r"(?:`|^ *(?:\$ )?)make ([a-z][a-z-]*)", text, re.MULTILINE)
        assert in_code, f"{name} names no make target"
        assert set(in_code) - make_targets() == set()

    def test_notebooks_are_not_run_twice(self):
        assert "--ignore=tests/notebooks" in (ROOT / "Makefile").read_text()


@pytest.fixture
def setup():
    """The set-up script as a module; it is no part of the package."""
    spec = importlib.util.spec_from_file_location("project_setup", ROOT / ".ci" / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestSetup:
    def test_an_old_python_can_read_it(self):
        ast.parse((ROOT / ".ci" / "setup.py").read_text(), feature_version=(3, 6))

    def test_a_small_disk_is_refused_with_its_size(self, setup, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(setup.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1.5e9}))
        with pytest.raises(SystemExit) as stopped:
            setup.check_disk(tmp_path / "venv", "torch==2.13.0+cpu")
        assert stopped.value.code == 2
        assert "1.5 GB free" in capsys.readouterr().err
        assert not (tmp_path / "venv").exists()

    def test_size_and_minutes_are_said_before_anything_is_fetched(self, setup, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(setup.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 99e9}))
        setup.check_disk(tmp_path / "venv", "torch==2.13.0+cpu")
        expected = "up to 0.6 GB to download, 2.3 GB on disk (99.0 GB free), about 3 minutes at 100 Mbit/s\n"
        assert capsys.readouterr().out == expected

    def test_a_missing_venv_module_is_named_with_its_package(self, setup, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "ensurepip", None)
        monkeypatch.setattr(setup, "install_command", lambda package: f"install {package}")
        with pytest.raises(SystemExit):
            setup.check_venv_module(tmp_path)
        package = f"python3.{sys.version_info.minor}-venv"
        assert f"ensurepip is missing from this Python. Run: install {package}" in capsys.readouterr().err

    def test_a_folder_that_is_no_environment_is_never_cleared(self, setup, tmp_path, capsys):
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(SystemExit):
            setup.create(tmp_path)
        assert "no virtual environment" in capsys.readouterr().err
        assert (tmp_path / "thesis.tex").exists()

    def test_a_torch_that_is_there_is_kept(self, setup):
        beside = setup.constraints_beside("2.11.0+cu128")
        assert "torch==2.11.0+cu128\n" in beside
        assert f"transformers=={pins()['transformers']}\n" in beside
        assert f"torch=={pins()['torch']}\n" not in beside

    def test_it_is_done_until_one_of_its_two_files_changes(self, setup, tmp_path, monkeypatch):
        for name in ("pyproject.toml", "constraints.txt"):
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
        monkeypatch.setattr(setup, "ROOT", tmp_path)
        stamp = tmp_path / "stamp"
        assert not setup.is_done(stamp, "demo")
        for place, level in enumerate(setup.LEVELS):
            stamp.write_text(f"{setup.fingerprint()} {level}\n")
            done = [setup.is_done(stamp, asked) for asked in ("demo", "dev", "all")]
            assert done == [True] * (place + 1) + [False] * (2 - place)
        (tmp_path / "constraints.txt").write_text("torch==9.0\n")
        assert not setup.is_done(stamp, "demo")

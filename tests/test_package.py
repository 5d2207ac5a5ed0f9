"""The package as others get it: the wheel is whole, its commands start anywhere, what is written about it is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.requirements import missing, uv_program

ROOT = Path(__file__).parents[1]
PACKAGES = ("crisscross", "experiments", "launch", "analysis")
SUFFIXES = (".py", ".yaml", ".txt", ".csv", ".typed")

COMMANDS = {
    **{
        f"launch.{name}": f"uv run launch/{name}.py"
        for name in (
            *("sweep_relaxation", "sweep_async", "sweep_dataset_size", "compare_methods", "retrieve"),
            *("reproduce_paper", "status", "cancel", "sync"),
        )
    },
    **{f"analysis.{name}": f"usage: {name}.py" for name in ("make_tables", "make_figures", "make_report")},
    "experiments.pretrain": "data: audioset",  # Hydra lists the config groups: the configs are there
    "experiments.downstream": "data: audioset",
    "crisscross.data.prepare": "usage: python -m crisscross.data.prepare",
}
"""Modules that are run as scripts, with a part of what ``--help`` prints."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the working tree."""
    uv, folder = uv_program(), tmp_path_factory.mktemp("wheel")
    command = [uv, "build", "--quiet", "--wheel", "--python", sys.executable, "--out-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if re.search("Failed to fetch|error sending request|dns error", done.stderr):
        missing(f"no package registry can be reached: {done.stderr}")
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel: Path) -> Path:
    folder = wheel.parent / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def _python(unpacked: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in ``cwd`` with the unpacked wheel before everything that is installed."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _files_of_the_packages() -> set[str]:
    """Return what git tracks of them and has not been deleted; what is on disk where there is no checkout."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", *PACKAGES]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        return {name for name in listed if name and (ROOT / name).exists()}
    return {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*")}


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    files = {name for name in _files_of_the_packages() if name.endswith(SUFFIXES)}
    assert len(files) > 250  # too short a list would pass every wheel
    expected = files | {f"{package}/py.typed" for package in PACKAGES}
    with zipfile.ZipFile(wheel) as archive:
        assert sorted(expected - set(archive.namelist())) == []


def test_the_wheel_holds_the_packages_and_the_licence_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_python_finds_the_unpacked_wheel_and_not_this_checkout(unpacked: Path, tmp_path: Path) -> None:
    names = ", ".join(PACKAGES)
    done = _python(unpacked, tmp_path, "-c", f"import {names}\nfor package in ({names}): print(package.__file__)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(unpacked / package / "__init__.py") for package in PACKAGES]


@pytest.mark.parametrize("module", COMMANDS)
def test_a_command_of_the_wheel_prints_its_help_anywhere(module: str, unpacked: Path, tmp_path: Path) -> None:
    done = _python(unpacked, tmp_path, "-m", module, "--help")
    assert done.returncode == 0, done.stderr
    assert COMMANDS[module] in done.stdout
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation.keys() >= {"cff-version", "message", "title", "authors", "license", "references"}
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["version"] == _project()["project"]["version"]
    (paper,) = citation["references"]
    assert paper.keys() >= {"type", "title", "authors", "year", "doi"}


def test_contributing_gives_a_line_to_each_dependency_and_to_nothing_else() -> None:
    project = _project()
    requirements = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    section = (ROOT / "CONTRIBUTING.md").read_text().split("\n## Dependencies\n")[1]
    explained = re.findall(r"^- `([^`]+)` — \S", section, re.MULTILINE)
    assert sorted(explained) == sorted(canonicalize_name(Requirement(line).name) for line in requirements)

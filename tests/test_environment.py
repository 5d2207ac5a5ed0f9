"""The environment: a fresh clone resolves to what pyproject.toml fixes, and all that a job imports loads."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from tests.requirements import missing, uv_program
from tests.warm import warm_python

ROOT = Path(__file__).parents[1]
PYPROJECT = ROOT / "pyproject.toml"

IMPORT_ALL = """
import importlib, pkgutil
for name in ("crisscross", "launch", "analysis", "experiments"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            print(module.name)
"""


@pytest.fixture(scope="module")
def pin_versions() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pin_versions", ROOT / ".ci" / "pin_versions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def resolved(pin_versions: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """What uv chooses with an empty cache and no lock file, for every Python and platform."""
    uv_program()
    try:
        return pin_versions.resolve(PYPROJECT.read_text(), cache=tmp_path_factory.mktemp("uv-cache"))
    except pin_versions.ResolutionError as error:
        if re.search("Failed to fetch|error sending request|dns error", str(error)):
            missing(f"no package registry can be reached: {error}")
        raise


def test_a_resolution_from_nothing_gives_what_is_fixed(pin_versions, resolved) -> None:
    assert pin_versions.compare(resolved, PYPROJECT.read_text()) == []
    assert {where.split(", ")[0] for where, _ in resolved} == {
        *("uv.lock", "build", "Python 3.11", "Python 3.12", "Python 3.13"),
    }


def test_a_removed_constraint_is_found(pin_versions, resolved) -> None:
    text = PYPROJECT.read_text()
    changed = re.sub(r'  "rich==.*\n', "", text)
    assert changed != text
    faults = pin_versions.compare(resolved, changed)
    assert any("no constraint" in fault and "rich==" in fault for fault in faults), faults


def test_a_version_changed_by_hand_is_found(pin_versions, resolved) -> None:
    text = PYPROJECT.read_text()
    changed = re.sub(r'  "rich==.*",', '  "rich==14.1.0",', text)
    faults = pin_versions.compare(resolved, changed)
    assert any("the constraint is rich==14.1.0" in fault for fault in faults), faults
    assert "edited by hand" in pin_versions.compare([], changed)[0]  # though uv might find a solution with it


def test_a_build_requirement_without_a_constraint_is_found(pin_versions, resolved) -> None:
    changed = re.sub(r'  "hatchling==.*\n', "", PYPROJECT.read_text())
    assert any(fault.startswith("build: hatchling") for fault in pin_versions.compare(resolved, changed))


def test_the_installed_versions_are_those() -> None:
    """But for packages that are installed nowhere here, such as those of other Pythons."""
    import tomllib

    pins = map(Requirement, tomllib.loads(PYPROJECT.read_text())["tool"]["uv"]["constraint-dependencies"])
    installed = {
        item.metadata["Name"].lower().replace("_", "-"): item.version for item in importlib.metadata.distributions()
    }
    differing = [str(pin) for pin in pins if pin.name in installed and installed[pin.name] not in pin.specifier]
    assert differing == []


@pytest.mark.parametrize("name", ["torch", "torchvision", "torchaudio"])
def test_what_a_job_computes_with_loads(name: str) -> None:
    requirement = next(
        item for item in map(Requirement, importlib.metadata.requires("crisscross")) if item.name == name
    )
    assert importlib.import_module(name).__version__.split("+")[0] in requirement.specifier


def test_every_module_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "import_all.py").write_text(IMPORT_ALL)
    command = [*warm_python(), str(tmp_path / "import_all.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 150

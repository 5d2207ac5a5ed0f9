"""The arrows between packages and modules, as pyproject.toml lists them for import-linter."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("crisscross", "launch", "analysis", "experiments")


def test_every_import_follows_the_arrows() -> None:
    command = [shutil.which("lint-imports", path=str(Path(sys.executable).parent)), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_rooms_on_top() -> None:
    modules = {path.stem for path in (ROOT / "crisscross").glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in (ROOT / "crisscross").glob("*/__init__.py")}
    assert modules == {"pretrain", "finetune", "evaluate", "run_experiment"}
    assert len(packages) == 11
    assert {path.parent.name for path in (ROOT / "launch").glob("*/__init__.py")} == {"study", "local", "slurm", "job"}


def trees() -> Iterator[tuple[Path, ast.Module]]:
    """Yield every module of the packages, parsed."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text())


def test_no_public_class_name_occurs_twice() -> None:
    places = defaultdict(list)
    for path, tree in trees():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_few_imports_inside_functions_and_each_has_its_reason() -> None:
    found, unexplained = 0, []
    for path, tree in trees():
        lines = (ROOT / path).read_text().splitlines()
        for function, block in import_blocks(tree):
            found += len(block)
            if not any("#" in line for line in lines[function.lineno : block[-1].end_lineno]):
                unexplained.append(f"{path}:{block[0].lineno}")
    assert unexplained == []
    assert found < 30


def import_blocks(tree: ast.Module) -> Iterator[tuple[ast.stmt, list[ast.stmt]]]:
    """Yield the imports inside functions with their function, consecutive ones together."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for parent in ast.walk(function):
            for statements in (getattr(parent, name, None) for name in ("body", "orelse", "finalbody")):
                for is_import, block in groupby(statements if isinstance(statements, list) else [], key=_is_import):
                    if is_import:
                        yield function, list(block)


def _is_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)

"""Fix every version in pyproject.toml, or check that every one is fixed.

    uv run .ci/pin_versions.py            resolve within the ranges of [project], check, rewrite the constraints
    uv run .ci/pin_versions.py --check    resolve as a fresh clone does, and compare

uv.lock would do the same, but lists the addresses of the registry it was made with, which not everybody can reach.
The constraints hold names and versions alone. A digest of them stands beside them, so that an edit by hand is found.

Exit codes: 0 all is fixed, 1 something is not (a line each), 2 uv could not resolve.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
BEGIN, END = "# >>> written by .ci/pin_versions.py", "# <<< written by .ci/pin_versions.py"

PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28")
"""glibc 2.28 is what the wheels of torch ask for."""

SOURCE_ONLY = ("antlr4-python3-runtime",)
"""Packages without a wheel: pure Python, built by setuptools wherever they are installed."""

Pins = Mapping[str, Sequence[Requirement]]


class ResolutionError(RuntimeError):
    """uv found no set of versions; its own words."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Pin or check, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--pyproject", type=Path, default=PYPROJECT, help="the file; default: that of this checkout")
    parser.add_argument("--cache-dir", type=Path, help="for --check: a folder for uv's cache, such as an empty one")
    parser.add_argument("--exclude-newer", metavar="DATE", help="without --check: take nothing uploaded later")
    options = parser.parse_args(arguments)
    try:
        if not options.check:
            rewrite(options.pyproject, exclude_newer=options.exclude_newer)
        faults = check(options.pyproject, cache=options.cache_dir)
    except ResolutionError as error:
        print(error, file=sys.stderr)
        return 2
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{options.pyproject.name}: {len(faults)} fault(s)" if faults else f"{options.pyproject.name}: all is fixed")
    return 1 if faults else 0


def rewrite(pyproject: Path, *, exclude_newer: str | None = None) -> None:
    """Resolve without constraints and write what comes out into ``pyproject.toml``.

    Raises:
        ResolutionError: if there is no solution.
    """
    newer = ["--exclude-newer", exclude_newer] if exclude_newer else []
    text = pyproject.read_text()
    free = _with_block(text, "")
    lines = _entries("constraint-dependencies", _locked(free, *newer))
    lines += _entries("build-constraint-dependencies", _build_requirements(free, *newer))
    pyproject.write_text(_with_block(text, "\n".join([*lines, f"# digest: {_digest(lines)}", ""])))


def check(pyproject: Path, *, cache: Path | None = None) -> list[str]:
    """Resolve as a fresh clone does and return what differs from the constraints, a line each.

    Args:
        pyproject: the file.
        cache: uv's cache; None = the user's.

    Raises:
        ResolutionError: if there is no solution.
    """
    text = pyproject.read_text()
    return compare(resolve(text, cache=cache), text)


def resolve(text: str, *, cache: Path | None = None) -> list[tuple[str, str]]:
    """Return what uv chooses for every admitted Python and platform, without a lock file.

    Args:
        text: of a ``pyproject.toml``.
        cache: uv's cache; None = the user's.

    Returns:
        Pairs of where (``uv.lock``, ``Python 3.11, x86_64-...``, ``build``) and ``name==version``.

    Raises:
        ResolutionError: if there is no solution.
    """
    options = ["--cache-dir", str(cache)] if cache else []
    found = [("uv.lock", line) for line in _locked(text, *options)]
    found += [("build", line) for line in _build_requirements(text, *options)]
    machines = list(itertools.product(_pythons(text), PLATFORMS))
    with ThreadPoolExecutor() as pool:  # each mostly waits for the registry
        answers = pool.map(lambda machine: _compiled(text, *machine, *options), machines)
        for (python, platform), lines in zip(machines, answers, strict=True):
            found += [(f"Python {python}, {platform}", line) for line in lines]
    return found


def compare(resolved: Sequence[tuple[str, str]], text: str) -> list[str]:
    """Return what of a resolution no constraint in ``text`` says, a line each, and whether somebody edited them.

    Args:
        resolved: from ``resolve``.
        text: of a ``pyproject.toml``.
    """
    settings = tomllib.loads(text)["tool"]["uv"]
    pins = _pins(settings.get("constraint-dependencies", []))
    build_pins = _pins(settings.get("build-constraint-dependencies", []))
    faults = [] if _digest_holds(text) else ["the constraints were edited by hand: run .ci/pin_versions.py"]
    for where, line in resolved:
        if fault := _fault(line, build_pins if where == "build" else pins):
            faults.append(f"{where}: {line}: {fault}")
    return faults


def _fault(line: str, pins: Pins) -> str:
    """Return what is wrong with a resolved ``name==version``; empty where a constraint says just that."""
    resolved = Requirement(line)
    constraints = pins.get(canonicalize_name(resolved.name), ())
    if not constraints:
        return "no constraint"
    if all(item.specifier != resolved.specifier for item in constraints):
        return f"the constraint is {', '.join(map(str, constraints))}"
    return ""


def _locked(text: str, *options: str) -> list[str]:
    """Return what ``uv lock`` chooses for all machines: ``name==version``, with a marker where they differ."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pyproject.toml").write_text(text)
        _uv("lock", "--quiet", "--project", name, *options)
        packages = tomllib.loads((folder / "uv.lock").read_text())["package"]
    versions: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for package in packages:
        if "registry" in package["source"]:
            versions[package["name"]].append(package)
    return [line for name, entries in sorted(versions.items()) for line in _lines_of(name, entries)]


def _lines_of(name: str, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    if len(entries) == 1:
        return [f"{name}=={entries[0]['version']}"]
    markers = {entry["version"]: " or ".join(f"({text})" for text in entry["resolution-markers"]) for entry in entries}
    return [f"{name}=={version} ; {marker}" for version, marker in sorted(markers.items())]


def _compiled(text: str, python: str, platform: str, *options: str) -> list[str]:
    """Return what one machine installs, from wheels alone (but for ``SOURCE_ONLY``)."""
    wheels = ["--only-binary", ":all:", *(word for name in SOURCE_ONLY for word in ("--no-binary", name))]
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "pyproject.toml"
        file.write_text(text)
        asked = ["--group", "dev", "--python-version", python, "--python-platform", platform]
        return _compile(str(file), *asked, *wheels, *options, folder=name)


def _build_requirements(text: str, *options: str) -> list[str]:
    """Return what building this package, and those that have no wheel, takes."""
    requires = [*tomllib.loads(text)["build-system"]["requires"], "setuptools", "wheel"]
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "build.in"
        file.write_text("\n".join(requires))
        constraints = Path(name) / "constraints.txt"
        constraints.write_text("\n".join(tomllib.loads(text)["tool"]["uv"].get("build-constraint-dependencies", [])))
        asked = ["--python-version", _pythons(text)[0], "--universal", "--constraints", str(constraints)]
        return _compile(str(file), *asked, *options, folder=name)


def _compile(source: str, *options: str, folder: str) -> list[str]:
    output = _uv("pip", "compile", "--quiet", "--no-header", "--no-annotate", source, *options, folder=folder)
    return [line for line in output.splitlines() if line.strip()]


def _uv(*command: str, folder: str | None = None) -> str:
    uv = os.environ.get("UV", "uv")  # `uv run` says where it is
    done = subprocess.run([uv, *command], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ResolutionError(f"uv {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _pythons(text: str) -> list[str]:
    """Return the versions of Python that the project admits, such as ``["3.11", "3.12"]``."""
    admitted = SpecifierSet(tomllib.loads(text)["project"]["requires-python"])
    return [f"3.{minor}" for minor in range(40) if f"3.{minor}" in admitted]


def _pins(lines: Sequence[str]) -> dict[str, list[Requirement]]:
    pins: dict[str, list[Requirement]] = defaultdict(list)
    for line in lines:
        requirement = Requirement(line)
        pins[canonicalize_name(requirement.name)].append(requirement)
    return pins


def _entries(key: str, requirements: Sequence[str]) -> list[str]:
    return [f"{key} = [", *(f'  "{line}",' for line in requirements), "]"]


def _block(text: str) -> str:
    return text[text.index(BEGIN) : text.index(END)].split("\n", 1)[1]


def _with_block(text: str, block: str) -> str:
    start = text.index(BEGIN)
    first_line = text[start : text.index("\n", start) + 1]
    return text[:start] + first_line + block + text[text.index(END) :]


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _digest_holds(text: str) -> bool:
    """Whether the constraints are those that this script wrote."""
    *lines, last = _block(text).rstrip("\n").split("\n")
    found = re.fullmatch(r"# digest: (\w+)", last)
    return found is not None and found[1] == _digest(lines)


if __name__ == "__main__":
    sys.exit(main())

"""What the documents claim and a machine can check: links lead somewhere, commands start, keys and code exist."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.requirements import uv_program

ROOT = Path(__file__).parents[1]
PACKAGES = ("crisscross", "launch", "analysis", "experiments", "tests")
DOCUMENTS = sorted(
    [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG"))]
    + [path for package in PACKAGES for path in (ROOT / package).rglob("README.md")]
)
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
CONF = ROOT / "experiments" / "conf"
STUDIES = {
    "launch/sweep_relaxation.py": ("relaxation",),
    "launch/sweep_async.py": ("async",),
    "launch/sweep_dataset_size.py": ("dataset_size",),
    "launch/compare_methods.py": ("methods",),
    "launch/retrieve.py": ("retrieval",),
    "launch/reproduce_paper.py": ("async", "dataset_size", "relaxation", "methods", "retrieval"),
}
PLACEHOLDERS = {"PROTOCOL": "svm", "DATASET": "ucf101"}
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Fence:
    """A fenced block: its language, which may be empty, and its lines."""

    language: str
    text: str


@cache
def _text(name: str) -> str:
    return (ROOT / name).read_text()


def _fences(name: str) -> list[Fence]:
    return [Fence(found[1], found[2]) for found in FENCE.finditer(_text(name))]


def _prose(name: str) -> str:
    """Return a document without its fenced blocks."""
    return FENCE.sub("", _text(name))


def _anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    assert len(set(plain)) == len(plain), f"{path}: two headings of one name have anchors that depend on their order"
    return {heading.replace(" ", "-") for heading in plain}


def _links(name: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", INLINE.sub("", _prose(name)))


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_to_a_file_and_a_heading(name: str) -> None:
    broken = []
    for link in _links(name):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = ((ROOT / name).parent / target).resolve() if target else ROOT / name
        is_there = path.is_relative_to(ROOT) and path.exists()
        if not is_there or (anchor and (path.suffix != ".md" or anchor not in _anchors(path))):
            broken.append(link)
    assert broken == []


def test_the_documents_have_links_that_can_be_checked() -> None:
    assert len(_links("README.md")) > 30
    assert "another-environment" in _anchors(ROOT / "launch" / "README.md")  # error texts refer to it
    linked = {link.partition("#")[0] for link in _links("README.md")}
    assert {name for name in NAMES if name != "README.md"} <= linked


def test_the_readme_is_short_and_the_others_begin_with_their_readers() -> None:
    assert len(_text("README.md").splitlines()) < 200
    for name in NAMES:
        if name.count("/"):
            title, blank, first, *two, end = _text(name).splitlines()[:6]
            assert title.startswith("# ")
            assert first.startswith("For readers who ")
            assert all(two)
            assert (blank, end) == ("", "")


@pytest.mark.parametrize("name", NAMES)
def test_the_wording_rules_hold(name: str) -> None:
    prose = re.sub(r"^\| before .*?\n\n", "", _prose(name), flags=re.MULTILINE | re.DOTALL)  # the pairs that teach them
    prose = re.sub(r'^- No "shall".*$', "", prose, flags=re.MULTILINE)
    assert re.findall(r"(?i)\b(?:shall|whom|anew|beside|whoever|courier)\b", prose) == []


PATH = re.compile(r"(?<![\w/.<*-])[\w.*-]+(?:/[\w.*-]+)+\.(?:py|yaml|toml|csv|md)\b(?!/)")
BASES = {"crisscross/README.md": "crisscross", "crisscross/methods/README.md": "crisscross"}
OF_USERS = re.compile(r"^(?:runs|annotations|meta|tables|audio|\.\.\.|data/manifests|compact-128|clips|COPY)/|NAME|<")
"""Files that a user has, or a command writes."""


@pytest.mark.parametrize("name", NAMES)
def test_every_path_of_code_exists(name: str) -> None:
    paths = {path for path in PATH.findall(_prose(name)) if not OF_USERS.search(path)}
    here = {(ROOT / name).parent, ROOT, ROOT / BASES.get(name, ".")}
    assert sorted(path for path in paths if not any(any(base.glob(path)) for base in here)) == []


# ---- commands


def _commands() -> Iterator[tuple[str, str]]:
    """Yield the document and the text of each command, from blocks and from inline code."""
    for name in NAMES:
        inline = [found for found in INLINE.findall(_prose(name)) if re.match(r"(?:uv|sbatch) \w", found)]
        blocks = [fence.text.replace("\\\n", " ") for fence in _fences(name) if fence.language in ("", "bash")]
        for line in [*inline, *(line for block in blocks for line in block.splitlines())]:
            text = re.sub(r"\s+# .*", "", line.strip())
            for part in text.split(" && "):
                wrapped = re.match(r'sbatch .*--wrap "(.*)"', part)
                command = re.sub(r"^(\w+=\S+ )+(?=uv )", "", wrapped[1] if wrapped else part)
                if command.startswith("uv "):
                    yield name, re.sub(r"\s+", " ", command)


COMMANDS = list(dict.fromkeys(command for _, command in _commands()))


def _arguments(command: str) -> list[str]:
    """Return the words of a command, options in brackets included, with values for what a reader has to fill in."""
    words = shlex.split(re.sub(r"\[(--[^\]]+)\]", r"\1", command))
    filled = [re.sub(r"(?<==)[A-Z]+$", lambda found: PLACEHOLDERS.get(found[0], found[0]), word) for word in words]
    return [word for word in filled if word != "..."]


def _of(*starts: str) -> list[str]:
    return [command for command in COMMANDS if command.startswith(tuple(f"{start} " for start in starts))]


def _kind(command: str) -> str:
    """Return what runs a command: a script, ``python -m MODULE``, or a program."""
    words = command.split()
    if words[1] != "run":
        return " ".join(words[:2])
    words = words[2:]
    if words[0] == "--with":
        words = words[2:]
    return " ".join(words[:3]) if words[:2] == ["python", "-m"] else words[0]


CHECKED = {
    *STUDIES,
    *("launch/status.py", "launch/sync.py", "launch/cancel.py", ".ci/pin_versions.py"),
    *("analysis/make_tables.py", "analysis/make_figures.py", "analysis/make_report.py"),
    *("experiments/pretrain.py", "experiments/downstream.py"),
    *("python -m crisscross.data.prepare", "python -m tests.benchmarks", "python -m tests.ui.screenshots"),
    "python -m tests.choose_settings",
    *("mlflow", "pytest", "ruff", "mypy", "deptry", "lint-imports", "COMMAND"),
    *("uv venv", "uv pip", "uv sync"),
}
"""What documents may call: each has a check below."""


def test_every_command_has_a_check() -> None:
    kinds = {_kind(command) for command in COMMANDS}
    assert sorted(kinds - CHECKED) == []
    assert len(COMMANDS) > 60
    assert sorted(kind for kind in kinds if kind.endswith(".py") and not (ROOT / kind).is_file()) == []


def _prepare(data: Mapping[str, Any]) -> dict[str, Any]:
    return {**data, "fingerprint": "f" * 64}


def _launches() -> list[str]:
    return [command for command in COMMANDS if _kind(command) in STUDIES]


@pytest.mark.parametrize("command", _launches())
def test_a_launch_is_valid(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is run with ``dry_run=true``, on clips that are not there."""
    from rich.console import Console

    from launch.main import launch
    from launch.study.plan import make_plan

    monkeypatch.chdir(tmp_path)
    overrides = [*_arguments(command)[3:], *(["dry_run=true"] if "dry_run=true" not in command else [])]
    plans = [make_plan(study, overrides, prepare=_prepare) for study in STUDIES[_kind(command)]]
    assert launch(plans, console=Console(width=200)) == 0
    assert "dry_run: every config is valid" in capsys.readouterr().out


@pytest.mark.parametrize("command", [command for command in COMMANDS if _kind(command).startswith("experiments/")])
def test_the_overrides_of_an_experiment_compose(command: str) -> None:
    from crisscross.config.base import parse
    from crisscross.config.evaluation import complete
    from crisscross.config.experiment import KINDS
    from launch.study.overrides import check_overrides, compose_config, first_of_sweep, hydra_configs

    kind = Path(_kind(command)).stem
    overrides = [word for word in _arguments(command)[3:] if word != "--multirun"]
    with hydra_configs():
        check_overrides(kind, overrides)
        config = compose_config(kind, first_of_sweep(overrides))
    config.pop("cluster", None)
    config["data"] = _prepare(config["data"])
    if kind == "downstream":
        config = complete(config, pretrained_on="kinetics400" if config["weights"]["run"] else None)
    parse(KINDS[kind], config)


@pytest.mark.parametrize("command", _of("uv run launch/status.py", "uv run launch/sync.py", "uv run launch/cancel.py"))
def test_a_command_for_studies_starts(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    script, *arguments = _arguments(command)[2:]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr("time.sleep", interrupt)  # --watch
    code = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main(arguments)
    if script == "launch/cancel.py":  # nothing runs here
        assert code == 2
        assert f"{arguments[0]}: no study of that name" in capsys.readouterr().err
        assert (CONF / "study" / f"{arguments[0]}.yaml").is_file() or re.search(r"-s\d$", arguments[0])
    else:
        assert code == 0


@pytest.mark.parametrize("command", [command for command in COMMANDS if _kind(command).startswith("analysis/")])
def test_a_command_of_the_analysis_starts(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, *arguments = _arguments(command)[2:]
    monkeypatch.chdir(tmp_path)
    assert importlib.import_module(script.removesuffix(".py").replace("/", ".")).main(arguments) == 1
    assert "sqlite:///mlflow.db" in capsys.readouterr().err  # where there are no runs


@pytest.mark.parametrize("command", _of("uv run python -m crisscross.data.prepare"))
def test_a_preparing_starts(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from crisscross.data.prepare.__main__ import main

    monkeypatch.chdir(tmp_path)
    for name, value in {"TASK_ID": "1", "TASK_MIN": "1", "TASK_COUNT": "20"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_{name}", value)
    arguments = _arguments(command)[5:]
    where = [value for option, value in pairwise(arguments) if option in ("--root", "--csv")]
    assert main(arguments) == 2  # the options are understood: argparse would leave with SystemExit
    assert (where[0] if "--root" in arguments else str(Path(where[0]).parent)) in capsys.readouterr().err


@pytest.mark.parametrize("command", [command for command in COMMANDS if _kind(command).startswith("python -m tests.")])
def test_a_module_of_the_tests_accepts_the_arguments(command: str) -> None:
    module, *arguments = _arguments(command)[4:]
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text()
    known = {word for word in arguments if word.startswith("--")} | ({arguments[0]} if arguments else set())
    assert [word for word in known if f'"{word}"' not in source] == []


@pytest.mark.parametrize("command", [command for command in COMMANDS if _kind(command) == "mlflow"])
def test_mlflow_has_the_options(command: str) -> None:
    """Its source is read: importing its command line takes three seconds."""
    words = _arguments(command)
    name, *options = words[words.index("mlflow") + 1 :]
    spec = importlib.util.find_spec("mlflow")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    source = "".join(path.read_text() for path in (*(folder / "cli").glob("*.py"), folder / "utils" / "cli_args.py"))
    assert name in ("server", "ui")
    assert f'"{name}"' in source
    assert [word for word in options if word.startswith("--") and f'"{word}"' not in source] == []


@pytest.mark.parametrize("command", _of("uv run pytest"))
def test_the_tests_that_documents_name_exist(command: str) -> None:
    words = _arguments(command)[3:]
    assert [word for word in words if word.endswith(".py") and not (ROOT / word).is_file()] == []
    marks = re.findall(r"-m '?(?:not )?(\w+)", shlex.join(words))
    registered = (ROOT / "pyproject.toml").read_text()
    assert [mark for mark in marks if f'"{mark}: ' not in registered] == []


def test_the_programs_are_installed() -> None:
    programs = {_kind(command) for command in COMMANDS} & {"ruff", "mypy", "deptry", "lint-imports", "pytest", "mlflow"}
    found = {program for program in programs if shutil.which(program, path=str(Path(sys.executable).parent))}
    assert sorted(programs - found) == []


@pytest.mark.parametrize("command", _of("uv venv", "uv pip", "uv sync"))
def test_uv_has_the_options(command: str) -> None:
    words = shlex.split(command)[1:]
    names = [word for word in words if not word.startswith("-") and word.isalpha()]
    done = subprocess.run([uv_program(), *names, "--help"], capture_output=True, text=True, check=True)
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    assert [option for option in options if option not in done.stdout and option != "--no-config"] == []


def _block(name: str, part: str) -> str:
    (found,) = [fence.text for fence in _fences(name) if part in fence.text]
    return found


def test_the_list_of_versions_leaves_out_those_of_cuda(tmp_path: Path) -> None:
    line = next(line for line in _block("launch/README.md", "pins.txt").splitlines() if line.strip().startswith("sed"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)
    pins = (tmp_path / "pins.txt").read_text().splitlines()
    assert len(pins) > 100
    assert all(re.match(r"[\w.-]+==\S+", pin) for pin in pins)
    assert not [pin for pin in pins if pin.startswith(("cuda", "nvidia", "triton"))]


# ---- code, configs and keys


def _without_docstrings(tree: ast.AST) -> str:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and isinstance(body, list) and ast.get_docstring(node):
            node.body = node.body[1:]
    return ast.dump(tree)


def _class(source: str, name: str | None = None) -> ast.ClassDef:
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    (found,) = [node for node in classes if name in (None, node.name)]
    return found


def test_the_method_that_is_shown_is_the_code() -> None:
    method, settings = [fence.text for fence in _fences("crisscross/methods/README.md") if fence.language == "python"]
    source = (ROOT / "crisscross" / "methods" / "supervised.py").read_text()
    assert _without_docstrings(_class(method)) == _without_docstrings(_class(source))
    shown = _class(settings)
    real = _class((ROOT / "crisscross" / "config" / "method.py").read_text(), shown.name)
    assert [ast.dump(base) for base in shown.bases] == [ast.dump(base) for base in real.bases]
    assert [_head(node) for node in shown.body] == [_head(node) for node in real.body if _head(node)]


def _head(node: ast.stmt) -> str:
    """Return an assignment whole, the signature of a function, and nothing of a docstring."""
    if isinstance(node, ast.Expr):
        return ""
    return f"{node.name} {ast.dump(node.args)}" if isinstance(node, ast.FunctionDef) else ast.dump(node)


def test_the_configs_that_are_shown_are_right() -> None:
    (method,) = [fence.text for fence in _fences("crisscross/methods/README.md") if fence.language == "yaml"]
    assert method.startswith("# @package _global_\n")
    assert yaml.safe_load(method) == yaml.safe_load((CONF / "method" / "supervised.yaml").read_text())
    (data,) = [fence.text for fence in _fences("crisscross/data/README.md") if fence.language == "yaml"]
    assert set(yaml.safe_load(data)) - {"defaults"} <= set(yaml.safe_load((CONF / "data" / "folder.yaml").read_text()))


def _keys(node: Any, prefix: str) -> Iterator[str]:
    yield prefix
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _keys(value, f"{prefix}.{key}" if prefix else str(key))


@cache
def _known_keys() -> set[str]:
    """Return every dotted key of the config files."""
    keys: set[str] = set()
    for path in CONF.rglob("*.yaml"):
        text = path.read_text()
        is_global = "@package _global_" in text or path.parent == CONF
        content = yaml.safe_load(text) or {}
        keys |= set(_keys(content, "" if is_global else path.parent.name))
    return keys


KEY = re.compile(r"^\+?([a-z_]+(?:\.[a-z_0-9]+)+)(?:=.*)?$")


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_exists(name: str) -> None:
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} | {"weights", "cluster", "roots", "study"}
    words = [word for found in INLINE.findall(_prose(name)) for word in found.split()]
    words += [word for fence in _fences(name) if not fence.language for word in fence.text.split()]
    named = {found[1] for word in words if (found := KEY.match(word.strip("',")))}
    settings = {key for key in named if key.split(".")[0] in groups and not re.search(r"\.(?:py|yaml|toml|json)$", key)}
    assert sorted(settings - _known_keys()) == []

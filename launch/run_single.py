"""Run one experiment here and now, in this process, with a progress bar: what experiments/*.py do."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from crisscross.config.base import parse
from crisscross.config.evaluation import complete
from crisscross.config.experiment import (
    KINDS,
    DownstreamSettings,
    check_epoch_number,
    check_pretraining,
    fold_by_fold,
    ignored,
)
from crisscross.run.identity import identity, weights_fingerprint
from crisscross.run.run_dir import RunDirectory, label_of, path_of
from crisscross.utils.signals import INTERRUPTED_EXIT_CODE, INTERRUPTION
from launch.console import describe
from launch.environment import UnusableEnvironmentError, check_environment, import_libraries
from launch.job import slurm
from launch.job.run import run_ranks
from launch.local.live_display import HEARTBEAT_S
from launch.resources import num_processes
from launch.run_log import LogReader, Warnings, handler_for
from launch.study.cluster import check_one_kind
from launch.study.overrides import check_overrides, compose_config, first_of_sweep, hydra_configs
from launch.tracking import delivering, resolve

_CODES: list[int] = []
"""Exit codes of what did not end well in a ``--multirun`` of this process: Hydra hands nothing back to its caller."""


def run_entry_point(kind: str, main: Callable[[], None]) -> None:
    """Run a Hydra entry point: wrong overrides and Ctrl-C get one line instead of a page.

    Args:
        kind: ``"pretrain"`` or ``"downstream"``.
        main: the function that ``hydra.main`` has decorated.
    """
    check_command_line(kind, sys.argv[1:])
    try:
        main()
    except KeyboardInterrupt:
        print("stopped: the same command goes on", file=sys.stderr)
        sys.exit(130)
    if {"-m", "--multirun"} & set(sys.argv[1:]) and not _CODES:
        print("the sweep is done: uv run launch/status.py shows its experiments")
    if _CODES:
        sys.exit(min(_CODES))  # of a failure (1), a wrong setting (2), an interruption (75): the worst


def check_command_line(kind: str, arguments: Sequence[str]) -> None:
    """Leave with exit code 2 and one line when Hydra would answer an override with a page.

    Args:
        kind: ``"pretrain"`` or ``"downstream"``.
        arguments: the command line; with flags other than ``--multirun`` it is left to Hydra.
    """
    flags = [argument for argument in arguments if argument.startswith("-")]
    if any(flag not in ("-m", "--multirun") for flag in flags):
        return
    overrides = [argument for argument in arguments if argument not in flags]
    try:
        with hydra_configs():
            check_overrides(kind, overrides)
            _prepare_for_slurm(kind, overrides, is_sweep=bool(flags))
        if not flags and any(item.is_sweep_override() for item in _parsed(overrides)):
            raise ValueError("several values for a setting: add --multirun to run one experiment for each")
    except (ValueError, OSError, HydraException) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _prepare_for_slurm(kind: str, overrides: Sequence[str], *, is_sweep: bool) -> None:
    """Make the data of a sweep ready before its jobs exist, which would all begin to do so at the same time."""
    chosen = compose_config(kind, first_of_sweep(overrides))
    if "cluster" in chosen:
        if not is_sweep:
            raise ValueError("hydra/launcher: one experiment runs here; add --multirun to give it to Slurm")
        check_one_kind(_parsed(overrides))
        resolve(chosen["tracking"], where="slurm")
        require_one_job_a_fold(chosen)
        # What hydra-submitit-launcher leaves there holds the whole config, a password in tracking.uri included.
        folder = Path(chosen["runs_root"]) / "multirun"
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        from crisscross.data.catalog import prepare

        prepare(chosen["data"])
        print(f"giving the sweep to Slurm and waiting for its jobs; what they print is below {folder}/.submitit")
        print("uv run launch/status.py, in another shell, shows how they stand", flush=True)


def run_in_process(kind: str, config: dict[str, Any]) -> None:
    """Run an experiment in this process and leave with an exit code unless it is done.

    The exit code is 2 for a wrong setting, 1 for a failure, 75 when it was interrupted and can go on. One of several
    experiments (``--multirun``, or the folds of a fine-tuning) that fails leaves the others their turn:
    ``run_entry_point`` leaves with the code.

    Args:
        kind: ``"pretrain"`` or ``"downstream"``.
        config: the resolved config.
    """
    cluster = config.pop("cluster", None)  # what Slurm was asked for is no part of the experiment
    if slurm.is_slurm_task():
        os.environ.update({name: str(value) for name, value in (cluster or {}).get("environment", {}).items()})
        code = _run_as_job(kind, config)
        if code:  # submitit takes any exit, even one with 0, for a failure
            sys.exit(code)
        return
    config["tracking"] = resolve(config["tracking"], where="here")
    try:
        code = run_folds(config, lambda part: _run_and_show(kind, part), say=lambda text: _say(Console(), text))
    except UnusableEnvironmentError as error:  # the others of a sweep would end in the same way
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if code and _others_follow() and not INTERRUPTION.requested:
        _CODES.append(code)
    elif code:
        sys.exit(min([code, *_CODES]))


def _run_as_job(kind: str, config: dict[str, Any]) -> int:
    """Run an experiment as a Slurm job of hydra-submitit-launcher, one of its ranks perhaps; return the exit code.

    Its own signal handlers, over those of submitit, are installed as soon as there is something to lose.
    """
    slurm.join_ranks()
    config["execution"] = {**config["execution"], "num_devices": int(os.environ.get("WORLD_SIZE", "1"))}
    config["tracking"] = resolve(config["tracking"], where="slurm")
    code, _ = _run_and_show(kind, config)
    if code == INTERRUPTED_EXIT_CODE:
        slurm.requeue_sweep_job()
    return code


def _others_follow() -> bool:
    """Whether Hydra runs several experiments one after another in this process."""
    if not HydraConfig.initialized():
        return False
    hydra = HydraConfig.get()
    return hydra.mode == RunMode.MULTIRUN and hydra.launcher["_target_"].endswith(".BasicLauncher")


def _run_and_show(kind: str, config: dict[str, Any]) -> tuple[int, Mapping[str, float]]:
    """Run an experiment, say how it ended, and return the exit code and, when it is 0, the metrics."""
    console = Console()
    try:
        run = _make_run(kind, config)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2, {}
    where = os.path.relpath(run.path)
    _say(console, f"{run.label}: {where}")
    if run.result is not None:
        _say(console, "done already: nothing to run")
    is_ours = config["tracking"]["delivery"] == "direct" and slurm.is_first_rank()
    with _log_to(run.log_path) as warnings, delivering([run] if is_ours else [], tracking=config["tracking"]):
        INTERRUPTION.install()  # from here on Ctrl-C means: save and leave
        code = 0 if run.result is not None else _run(run, console, warnings)
    if code == INTERRUPTED_EXIT_CODE:
        _say(console, "interrupted: what was computed is kept; the same command goes on")
    if code or not slurm.is_first_rank():  # another process writes the result
        return code, {}
    result = run.result
    assert result is not None  # which code 0 says
    for name, value in sorted(result["metrics"].items(), key=_by_number):
        _say(console, f"  {name:<28} {value:.4g}")
    _say(console, f"result: {where}/result.json")
    return 0, result["metrics"]


def _make_run(kind: str, config: dict[str, Any]) -> RunDirectory:
    """Check a config, prepare its data, make or find its run directory."""
    from crisscross.data.catalog import prepare

    parents = []
    if kind == "downstream":
        parents = _parents_of(config["weights"])
        config = complete(config, pretrained_on=parents[0].config["data"]["name"] if parents else None)
        fingerprint = weights_fingerprint(config["weights"]["video"], config["weights"]["audio"])
        if fingerprint is not None:  # no key without files: a study's evaluation of the same run has none either
            config["weights"] = {**config["weights"], "fingerprint": fingerprint}
    settings = parse(KINDS[kind], config)
    for parent in parents:
        check_pretraining(parent.config, config, label=f"weights.run={parent.label}")
    if slurm.is_first_rank():
        for line in ignored(settings):
            print(f"warning: {line}", file=sys.stderr)
    config = {**config, "data": prepare(config["data"])}  # last: it may take a while
    if isinstance(settings, DownstreamSettings) and not _place_of(kind, config, parents).exists():
        import_libraries([kind])
        from crisscross.evaluation.backbones import check_files

        check_files(settings)  # a file that does not fit must not leave a failed experiment behind
    return RunDirectory.create(kind, config, parents=parents)


def _place_of(kind: str, config: Mapping[str, Any], parents: Sequence[RunDirectory]) -> Path:
    """Return where ``RunDirectory.create`` finds or makes an experiment's folder."""
    run_identity = identity(kind, config, parents=[parent.identity for parent in parents])
    label = label_of(kind, config, parents=[parent.label for parent in parents])
    return path_of(kind, config, label=label, run_identity=run_identity)


def _parents_of(weights: Mapping[str, Any]) -> list[RunDirectory]:
    """Return the pretraining that is evaluated, if it is one of ours and has what is asked for."""
    for name in ("run", "video", "audio"):
        if weights[name] == "":
            raise ValueError(f"weights.{name} is empty: give a path, or leave it out")
    if weights["run"] is None:
        if weights["epoch"] is not None:
            raise ValueError(f"weights.epoch={weights['epoch']} is an epoch of a pretraining: set weights.run, too")
        return []
    check_epoch_number(weights["epoch"])
    parent = RunDirectory.open(weights["run"])
    if parent.kind != "pretrain":
        raise ValueError(f"weights.run={weights['run']}: it is an evaluation: give the run directory of a pretraining")
    if weights["epoch"] is not None:
        from crisscross.evaluation.backbones import check_epoch

        check_epoch(parent, weights["epoch"])
    elif parent.result is None:
        raise ValueError(
            f"weights.run={weights['run']}: not finished: run it first, or evaluate an epoch that it has kept already"
            " (weights.epoch=N)"
        )
    return [parent]


def _run(run: RunDirectory, console: Console, warnings: Warnings) -> int:
    """Run the experiment and return the exit code of a job."""
    check_environment(run.kind, run.config)
    num_devices = num_processes(run.config)
    if num_devices > 1 and "RANK" not in os.environ:
        with _watching(run, console), run.log_path.open("a") as log:
            return run_ranks(run, num_devices, log=log, meanwhile=LogReader(run.log_path, warnings).look)
    from crisscross import run_experiment as experiment

    try:
        with _watching(run, console):
            done = experiment.run(run, patience_s=slurm.lock_patience_s())
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())} (log: {os.path.relpath(run.log_path)})", file=sys.stderr)
        with contextlib.suppress(OSError), run.log_path.open("a") as log:  # the disk may be full
            traceback.print_exception(error, file=log)
        return 1
    return 0 if done else INTERRUPTED_EXIT_CODE


@contextlib.contextmanager
def _watching(run: RunDirectory, console: Console) -> Iterator[None]:
    """Show what the run says of itself for as long as the block lasts: a bar, or plain lines now and then."""
    began = time.time()

    def progress() -> Mapping[str, Any]:
        said = run.progress or {}
        return said if said.get("time", 0) >= began else {}

    def picture() -> Table:
        said = progress()
        grid = Table.grid(padding=(0, 2))
        what = "stopping at the next step" if INTERRUPTION.requested else describe(said)
        text = Text(what, no_wrap=True, overflow="ellipsis")
        grid.add_row(ProgressBar(total=said.get("total"), completed=said.get("step") or 0, width=30), text)
        return grid

    if console.is_terminal:
        with Live(console=console, get_renderable=picture, refresh_per_second=4, transient=True):
            yield
        return
    ended = threading.Event()

    def report() -> None:
        while not ended.wait(HEARTBEAT_S):
            _say(console, describe(progress()))

    watcher = threading.Thread(target=report, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[Warnings]:
    """Let everything that is logged go to the run's log, and only there; warnings are shown as well."""
    root = logging.getLogger()
    handler, warnings = handler_for(path), Warnings()
    old_handlers, old_level = root.handlers[:], root.level
    root.handlers[:] = [handler, warnings] if slurm.is_first_rank() else [handler]
    root.setLevel(logging.INFO)
    try:
        yield warnings
    finally:
        root.handlers[:] = old_handlers
        root.setLevel(old_level)
        handler.close()


def _by_number(metric: tuple[str, float]) -> list[tuple[int, str]]:
    """Sort names with numbers in them as people do: R@5 before R@20."""
    parts = re.split(r"(\d+)", metric[0])
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _parsed(overrides: Sequence[str]) -> list[Any]:
    return OverridesParser.create().parse_overrides(list(overrides))


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


WRONG_SETTING = 2


def require_one_job_a_fold(config: Mapping[str, Any]) -> None:
    """Make sure that a job of a sweep on Slurm is one experiment.

    Raises:
        ValueError: it is several folds of a fine-tuning, which could run side by side.
    """
    parts = fold_by_fold(config)
    if len(parts) > 1:
        choices = ",".join(f"[{part['data']['folds'][0]}]" for part in parts)
        raise ValueError(
            f"data.folds={config['data']['folds']}: fine-tuning on Slurm takes one fold a job: 'data.folds={choices}'"
        )


def run_folds(
    config: Mapping[str, Any],
    run: Callable[[dict[str, Any]], tuple[int, Mapping[str, float]]],
    *,
    say: Callable[[str], None],
) -> int:
    """Run what a config stands for: one experiment, or one a fold for a fine-tuning.

    A fold that fails leaves the others their turn; a wrong setting and an interruption do not.

    Args:
        config: the resolved config.
        run: runs an experiment and returns its exit code and, when that is 0, its metrics.
        say: prints a line.

    Returns:
        The exit code; with several, the worst: of a failure (1), a wrong setting (2), an interruption (75).
    """
    parts = fold_by_fold(config)
    if len(parts) == 1:
        return run(parts[0])[0]
    codes, found = [], {}
    for part in parts:
        code, metrics = run(part)
        if code:
            codes.append(code)
        else:
            found[part["data"]["folds"][0]] = metrics
        if code == WRONG_SETTING or INTERRUPTION.requested:
            break
    if len(found) == len(parts):
        for line in _means(found):
            say(line)
        return 0
    if codes != [WRONG_SETTING]:
        done = f": {', '.join(map(str, found))}" if found else ""
        say(f"no mean: {len(found)} of {len(parts)} folds are done{done}; the same command goes on")
    return min(codes, default=INTERRUPTED_EXIT_CODE)


def _means(found: Mapping[int, Mapping[str, float]]) -> list[str]:
    """Return a line for each metric that all folds have: their mean, and each."""
    lines = [f"mean of folds {', '.join(map(str, found))}:"]
    for name in sorted(set.intersection(*(set(metrics) for metrics in found.values()))):
        if name.startswith("eval/"):
            values = [metrics[name] for metrics in found.values()]
            each = ", ".join(f"{value:.4g}" for value in values)
            lines.append(f"  {name:<28} {sum(values) / len(values):.4g} ({each})")
    return lines

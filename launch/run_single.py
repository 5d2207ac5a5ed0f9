"""Run one experiment in this process, with a progress bar: what experiments/*.py call."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from rich.console import Console

from crisscross.data.catalog import prepare
from crisscross.run.run_dir import RunDirectory
from crisscross.run.run_log import LogReader, Warnings
from crisscross.utils.signals import INTERRUPTED_EXIT_CODE, SHUTDOWN
from crisscross.utils.terminal import print_what_can_be_printed
from launch.console import print_line
from launch.environment import UnusableEnvironmentError
from launch.job import slurm
from launch.job.folds import WRONG_SETTING, require_one_job_a_fold, run_folds
from launch.job.make_run import make_run
from launch.job.run import failure_line, is_first_rank, record_failure, run_experiment
from launch.job.terminal import logging_to, showing_progress
from launch.study.cluster import check_one_kind
from launch.study.overrides import check_overrides, compose_config, first_of_sweep, hydra_configs
from launch.tracking import resolve, syncing

_CODES: list[int] = []
"""Exit codes of failed experiments of a ``--multirun`` in this process: Hydra returns nothing to its caller."""


def run_entry_point(kind: str, main: Callable[[], None]) -> None:
    """Run a Hydra entry point.

    Wrong overrides and Ctrl-C are reported in one line.

    Args:
        kind: ``"pretrain"`` or ``"downstream"``.
        main: the function decorated with ``hydra.main``.
    """
    print_what_can_be_printed()
    check_command_line(kind, sys.argv[1:])
    try:
        main()
    except KeyboardInterrupt:
        print("stopped: the same command resumes", file=sys.stderr)
        sys.exit(130)
    if {"-m", "--multirun"} & set(sys.argv[1:]) and not _CODES:
        print("the sweep is done: uv run launch/status.py shows its experiments")
    if _CODES:
        sys.exit(min(_CODES))  # of a failure (1), a wrong setting (2), an interruption (75): the worst


def check_command_line(kind: str, arguments: Sequence[str]) -> None:
    """Exit with code 2 and one line for a wrong override.

    Hydra alone would report it in a page.

    Args:
        kind: ``"pretrain"`` or ``"downstream"``.
        arguments: the command line; with flags other than ``--multirun`` Hydra alone checks it.
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
        sys.exit(WRONG_SETTING)


def _prepare_for_slurm(kind: str, overrides: Sequence[str], *, is_sweep: bool) -> None:
    """Prepare the data of a sweep before its jobs exist.

    Otherwise all jobs would start to prepare it together.
    """
    chosen = compose_config(kind, first_of_sweep(overrides))
    if "cluster" not in chosen:
        return
    if not is_sweep:
        raise ValueError("hydra/launcher: one experiment runs here; add --multirun to give it to Slurm")
    check_one_kind(_parsed(overrides))
    resolve(chosen["tracking"], where="slurm")
    require_one_job_a_fold(chosen)
    # hydra-submitit-launcher writes the whole config there, a password in tracking.uri included.
    folder = Path(chosen["runs_root"]) / "multirun"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    prepare(chosen["data"])
    print(f"giving the sweep to Slurm and waiting for its jobs; what they print is below {folder}/.submitit")
    print("uv run launch/status.py, in another shell, shows their states", flush=True)


def run_in_process(kind: str, config: dict[str, Any]) -> None:
    """Run an experiment in this process; exit unless it is done.

    The exit code is 2 for a wrong setting, 1 for a failure, 75 for an interrupted experiment that can resume. If one of
    several experiments fails (``--multirun``, or the folds of a fine-tuning), the others still run, and
    ``run_entry_point`` exits with the code.

    Args:
        kind: ``"pretrain"`` or ``"downstream"``.
        config: the resolved config.
    """
    if HydraConfig.initialized():
        os.chdir(HydraConfig.get().runtime.cwd)  # with hydra.job.chdir=true it is a folder of Hydra's
    cluster = config.pop("cluster", None)  # resources on Slurm are no part of the experiment
    if slurm.is_slurm_task():
        os.environ.update({name: str(value) for name, value in (cluster or {}).get("environment", {}).items()})
        code = _run_as_job(kind, config)
        if code:  # submitit takes any exit, even one with 0, for a failure
            sys.exit(code)
        return
    config["tracking"] = resolve(config["tracking"], where="here")
    console = Console()
    try:
        code = run_folds(
            config,
            lambda part: _run_and_show(kind, part, console),
            print_line=lambda text: print_line(console, text),
        )
    except UnusableEnvironmentError as error:  # every other experiment of a sweep would end in the same way
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if code and _others_follow() and not SHUTDOWN.requested:
        _CODES.append(code)
    elif code:
        sys.exit(min([code, *_CODES]))


def _run_as_job(kind: str, config: dict[str, Any]) -> int:
    """Run an experiment as a rank of a hydra-submitit-launcher job.

    Returns the exit code.

    submitit's signal handlers are replaced once there is a run directory.
    """
    slurm.join_ranks()
    config["execution"] = {**config["execution"], "num_devices": int(os.environ.get("WORLD_SIZE", "1"))}
    config["tracking"] = resolve(config["tracking"], where="slurm")
    code, _ = _run_and_show(kind, config, Console())
    if code == INTERRUPTED_EXIT_CODE:
        slurm.requeue_sweep_job()
    return code


def _others_follow() -> bool:
    """Whether Hydra runs several experiments one after another in this process."""
    if not HydraConfig.initialized():
        return False
    hydra = HydraConfig.get()
    return hydra.mode == RunMode.MULTIRUN and hydra.launcher["_target_"].endswith(".BasicLauncher")


def _run_and_show(kind: str, config: dict[str, Any], console: Console) -> tuple[int, Mapping[str, float]]:
    """Run an experiment and print how it ended.

    Returns the exit code and, if it is 0, the metrics.
    """
    try:
        run = make_run(kind, config, warn=_warn)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG_SETTING, {}
    path = os.path.relpath(run.path)
    print_line(console, f"{run.label}: {path}")
    if run.result is not None:
        print_line(console, "done already: nothing to run")
    synced = [run] if config["tracking"]["delivery"] == "direct" and is_first_rank() else []
    with logging_to(run.log_path) as warnings, syncing(synced, tracking=config["tracking"]):
        SHUTDOWN.install()  # from here on Ctrl-C means: save and leave
        code = 0 if run.result is not None else _run(run, console, warnings)
    if code == INTERRUPTED_EXIT_CODE:
        print_line(console, "interrupted: what was computed is kept; the same command resumes")
    if code or not is_first_rank():  # rank 0 writes the result
        return code, {}
    result = run.result
    assert result is not None  # because the code is 0
    for name, value in sorted(result["metrics"].items(), key=_by_number):
        print_line(console, f"  {name:<28} {value:.4g}")
    print_line(console, f"result: {path}/result.json")
    return 0, result["metrics"]


def _warn(line: str) -> None:
    if is_first_rank():
        print(f"warning: {line}", file=sys.stderr)


def _run(run: RunDirectory, console: Console, warnings: Warnings) -> int:
    """Run an experiment with a progress bar; return the exit code.

    A failure is reported in one line.
    """
    reader = LogReader(run.log_path, warnings)
    try:
        with showing_progress(run, console), run.log_path.open("a", encoding="utf-8") as log:
            return run_experiment(run, patience_s=slurm.lock_patience_s(), log=log, meanwhile=reader.poll)
    except UnusableEnvironmentError:
        raise
    except Exception as error:
        print(f"error: {failure_line(run, error)} (log: {os.path.relpath(run.log_path)})", file=sys.stderr)
        record_failure(run, error)
        return 1


def _by_number(metric: tuple[str, float]) -> list[tuple[int, str]]:
    """Return a sort key that puts R@5 before R@20."""
    parts = re.split(r"(\d+)", metric[0])
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _parsed(overrides: Sequence[str]) -> list[Any]:
    return OverridesParser.create().parse_overrides(list(overrides))

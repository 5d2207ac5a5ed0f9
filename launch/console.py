"""The lines that launch commands print."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from crisscross.data.catalog import describe_data
from crisscross.run.state import RunState
from crisscross.tracking.metadata import table_name
from crisscross.utils.redact import mask_passwords
from launch.study.graph import Graph
from launch.study.plan import Plan


def help_text(studies: Sequence[str]) -> str:
    """Return the text of ``--help``."""
    main = sys.modules["__main__"]
    return "\n".join(
        [
            (main.__doc__ or "").strip(),
            "",
            "Settings are key=value: those of experiments/conf/launch.yaml (seeds, dry_run, max_parallel), the axes",
            f"of experiments/conf/study/{{{','.join(studies)}}}.yaml, all keys of pretrain.yaml, downstream.yaml.",
            "",
            "On a Slurm cluster: hydra/launcher=slurm cluster.partition=NAME cluster.account=NAME, or your own file.",
            "experiments/conf/hydra/launcher/template.yaml explains what can be set below `cluster`.",
        ]
    )


def print_header(plan: Plan, console: Console, *, how: str, states: Mapping[str, RunState]) -> None:
    """Print a study, its experiments and its data.

    Args:
        plan: the study.
        console: output.
        how: how the experiments run, such as ``2 at a time``.
        states: states of the experiments by identity.
    """
    study, config = plan.launch.study, plan.config
    print_line(console, f"{plan.name} ({table_name(study.table)}): {study.question}", style="bold")
    print_line(console, f"{counts(plan.graph, states)}; {how}")
    print_line(console, f"scale {config['scale']['name']}, runs in {plan.runs_root}")
    for line in dict.fromkeys(describe_data(experiment.config["data"]) for experiment in plan.graph):
        print_line(console, line)
    for line in plan.warnings:
        print_line(console, f"warning: {line}", style="yellow")


def counts(graph: Graph, states: Mapping[str, RunState]) -> str:
    """Return how many experiments there are, and how many are done."""
    kinds = [experiment.kind for experiment in graph]
    num_done = sum(states[experiment.identity] is RunState.DONE for experiment in graph)
    by_kind = f"{kinds.count('pretrain')} pretrainings, {kinds.count('downstream')} evaluations"
    return f"{len(kinds)} experiments ({by_kind}), {num_done} done already"


def print_graph(plan: Plan, console: Console, *, states: Mapping[str, RunState]) -> None:
    """Print the experiments with their states, each after its parents."""
    width = max(len(experiment.label) for experiment in plan.graph) + 2
    depth = {experiment.identity: level for level, some in enumerate(plan.graph.levels()) for experiment in some}
    for experiment in plan.graph:
        label = "  " * depth[experiment.identity] + experiment.label
        needs = ", ".join(parent.label for parent in experiment.parents)
        after = f"  after {needs}" if needs else ""
        state = states[experiment.identity]
        print_line(console, f"{label:<{width}}  {experiment.kind:<10}  {experiment.identity[:12]}  {state}{after}")


def this_command() -> str:
    """Return the command line of this launch; passwords in it are masked."""
    script = short_path(Path(sys.argv[0]))
    return mask_passwords(shlex.join(["uv", "run", script, *sys.argv[1:]]))


def short_path(path: str | Path | None) -> str:
    """Return a path relative to the working directory, if that is shorter."""
    if path is None:
        return "?"
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)


def describe(progress: Mapping[str, Any]) -> str:
    """Return the content of ``progress.json`` as one short line."""
    parts = [str(progress.get("phase") or "starting")]
    if progress.get("total") and progress.get("step") is not None:
        parts[0] += f" {progress['step']}/{progress['total']}"
    if progress.get("eta_s") is not None:
        parts.append(f"{clock(progress['eta_s'])} left")
    if progress.get("loss") is not None:
        parts.append(f"loss {progress['loss']:.3f}")
    if progress.get("rate") is not None:
        parts.append(f"{progress['rate']:.1f} {progress.get('rate_unit') or 'steps/s'}")
    return ", ".join(parts)


def clock(seconds: float) -> str:
    """Return a duration as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def print_line(console: Console, text: str, *, style: str | None = None) -> None:
    """Print a line without markup or wrapping."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

"""A fine-tuning on several folds: one experiment a fold, and the mean of their metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from crisscross.config.experiment import fold_by_fold
from crisscross.utils.signals import INTERRUPTED_EXIT_CODE, SHUTDOWN

WRONG_SETTING = 2
"""Exit code of an experiment that cannot run with its settings."""


def require_one_job_a_fold(config: Mapping[str, Any]) -> None:
    """Check that a job of a sweep on Slurm is one experiment.

    Raises:
        ValueError: if it is several folds of a fine-tuning, which could run in parallel.
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
    print_line: Callable[[str], None],
) -> int:
    """Run the experiment, or one a fold for a fine-tuning.

    After a failed fold the others still run; a wrong setting or an interruption ends the loop.

    Args:
        config: the resolved config.
        run: runs an experiment and returns its exit code and, if it is 0, its metrics.
        print_line: prints a line.

    Returns:
        The exit code; of several, the worst: a failure (1), a wrong setting (2), an interruption (75).
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
        if code == WRONG_SETTING or SHUTDOWN.requested:
            break
    if len(found) == len(parts):
        for line in _means(found):
            print_line(line)
        return 0
    if codes != [WRONG_SETTING]:
        done = f": {', '.join(map(str, found))}" if found else ""
        print_line(f"no mean: {len(found)} of {len(parts)} folds are done{done}; the same command resumes")
    return min(codes, default=INTERRUPTED_EXIT_CODE)


def _means(found: Mapping[int, Mapping[str, float]]) -> list[str]:
    """Return the mean over folds and the values of each metric."""
    lines = [f"mean of folds {', '.join(map(str, found))}:"]
    for name in sorted(set.intersection(*(set(metrics) for metrics in found.values()))):
        if name.startswith("eval/"):
            values = [metrics[name] for metrics in found.values()]
            each = ", ".join(f"{value:.4g}" for value in values)
            lines.append(f"  {name:<28} {sum(values) / len(values):.4g} ({each})")
    return lines

"""Choose the demo's settings on its validation clips: ``uv run python -m tests.choose_settings [METHOD ...]``.

A trial is two pretrainings whose frozen features are evaluated on the split ``val``; test clips are not read. The table
has top-1 in percent, the mean over both; the best trial has the highest mean over modalities. What is done is kept in
``runs/settings``, so the command can be stopped and repeated. So far it has CrissCross's trials; the other methods'
settings are older (experiments/conf/optim).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from crisscross.run.run_dir import RunDirectory

ROOT = Path("runs/settings")

RUNS = {"crisscross": ("relaxation=[none,extreme]", "seeds=[0]")}
"""The two runs of a trial: the ends of the relaxations, so that settings suit neither; other methods have two seeds."""

COMMON = ("data.test_split=val", "study.floor=false", "study.downstream=[[]]", "tracking.delivery=off")

WIDE = (
    "optim.larc.enabled=true",
    "optim.groups.base.peak=1.5e-3",
    "model.projector={hidden_dim: 256, output_dim: 256, num_layers: 3}",
    "model.predictor.hidden_dim=64",
)
THREE_LAYERS = ("model.projector.num_layers=3",)

TRIALS: dict[str, dict[str, tuple[str, ...]]] = {
    "crisscross": {
        "two layers": (),
        "wide, LARC": WIDE,
        "three layers": THREE_LAYERS,
        "three, 5e-3": (*THREE_LAYERS, "optim.groups.base.peak=5e-3"),
        "three, narrower": (*THREE_LAYERS, "model.projector.output_dim=32", "model.predictor.hidden_dim=16"),
        "three, batch 8": (*THREE_LAYERS, "optim.groups.base.peak=2e-3", "training.global_batch_size=8"),
        "three, predictor 3e-2": (*THREE_LAYERS, "optim.groups.predictor.value=3e-2"),
        "predictor 3e-2": ("optim.groups.predictor.value=3e-2",),
    },
}
"""By method and name: overrides of its settings in experiments/conf."""


class Score(NamedTuple):
    """Top-1 of one run on the validation clips, in percent, by modality."""

    label: str
    top1: dict[str, float]


def main(methods: list[str]) -> int:
    """Run the trials of some methods and print their scores."""
    unknown = [name for name in methods if name not in TRIALS]
    if unknown:
        print(f"{unknown[0]}: expected one of {', '.join(TRIALS)}", file=sys.stderr)
        return 2
    for method in methods or TRIALS:
        print(f"\n{method}: mean top-1 on the validation clips", flush=True)
        means = {trial: _run_trial(method, trial) for trial in TRIALS[method]}
        best = max(means, key=means.__getitem__)
        print(f"best: {best}, {' '.join(TRIALS[method][best]) or 'as in experiments/conf'}")
    return 0


def _run_trial(method: str, trial: str) -> float:
    """Run a trial's experiments and print a line; return the mean over runs and modalities, in percent."""
    folder = ROOT / method / trial.replace(", ", "-").replace(" ", "-")
    axes = RUNS.get(method, (f"method=[{method}]", "seeds=[0,1]"))
    script = "launch/sweep_relaxation.py" if method == "crisscross" else "launch/compare_methods.py"
    command = [sys.executable, script, *axes, f"runs_root={folder}", *COMMON, *TRIALS[method][trial]]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    scores = read_scores(folder)
    means = {key: statistics.mean(score.top1[key] for score in scores) for key in scores[0].top1}
    listed = "  ".join(f"{key} {value:5.1f}" for key, value in means.items())
    print(f"  {trial:24} {listed}   ({len(scores)} runs: {' '.join(TRIALS[method][trial])})", flush=True)
    return statistics.mean(means.values())


def read_scores(runs_root: Path) -> list[Score]:
    """Return the scores of the evaluations in a folder of run directories, by label."""
    runs = [RunDirectory.open(path.parent) for path in sorted(runs_root.glob("downstream/*/result.json"))]
    return [
        Score(
            run.label,
            {
                name.removeprefix("eval/top1_"): 100 * value
                for name, value in (run.result or {})["metrics"].items()
                if name.startswith("eval/top1_")
            },
        )
        for run in runs
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

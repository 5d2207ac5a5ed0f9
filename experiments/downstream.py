"""One evaluation of frozen backbones, here and now, with a progress bar.

    uv run experiments/downstream.py weights.run=runs/pretrain/crisscross-mild-demo-s0-...
    uv run experiments/downstream.py weights.video=vid.pt weights.audio=aud.pt scale=paper data=folder data.root=DIR
    uv run experiments/downstream.py                                     untrained backbones: the floor

The settings are those of experiments/conf/downstream.yaml. The same settings are the same run: typed again, the
command resumes where it stopped, or shows the result.
"""

from __future__ import annotations

from typing import Any, cast

import hydra
from omegaconf import DictConfig, OmegaConf

from launch.run_single import run_entry_point, run_in_process


@hydra.main(version_base="1.3", config_path="conf", config_name="downstream")
def main(config: DictConfig) -> None:
    """Run one evaluation."""
    plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))  # which a DictConfig becomes
    run_in_process("downstream", plain)


if __name__ == "__main__":
    run_entry_point("downstream", main)

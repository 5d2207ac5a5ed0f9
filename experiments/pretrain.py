"""One pretraining, here and now, with a progress bar.

    uv run experiments/pretrain.py relaxation=none seed=3
    uv run experiments/pretrain.py --multirun relaxation=none,mild       one after another
    uv run experiments/pretrain.py --cfg job                             show the config

The settings are those of experiments/conf/pretrain.yaml. The same settings are the same run: typed again, the command
resumes where it stopped, or shows the result.
"""

from __future__ import annotations

from typing import Any, cast

import hydra
from omegaconf import DictConfig, OmegaConf

from launch.run_single import run_entry_point, run_in_process


@hydra.main(version_base="1.3", config_path="conf", config_name="pretrain")
def main(config: DictConfig) -> None:
    """Run one pretraining."""
    plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))  # which a DictConfig becomes
    run_in_process("pretrain", plain)


if __name__ == "__main__":
    run_entry_point("pretrain", main)

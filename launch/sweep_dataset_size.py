"""Table 2 of the paper: what does more pretraining data bring?

    uv run launch/sweep_dataset_size.py                     the demo: three nested subsets of its clips
    uv run launch/sweep_dataset_size.py scale=paper roots.kinetics400=DIR roots.audioset=DIR ...

Run it again at any time: what is done is kept, what is missing is run.
"""

from __future__ import annotations

import sys

from launch.main import main

if __name__ == "__main__":
    sys.exit(main("dataset_size"))

"""Table 3 of the paper: how much temporal relaxation is best?

    uv run launch/sweep_relaxation.py                       the demo: minutes on two cores
    uv run launch/sweep_relaxation.py seeds=[0,1,2]         three copies of the study
    uv run launch/sweep_relaxation.py dry_run=true          show what would run

Run it again at any time: what is done is kept, what is missing is run.
"""

from __future__ import annotations

import sys

from launch.main import main

if __name__ == "__main__":
    sys.exit(main("relaxation"))

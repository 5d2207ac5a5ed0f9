"""Table 1 of the paper: what does the asynchronous loss bring? And the curves of Figure 3.

    uv run launch/sweep_async.py                            the demo
    uv run launch/sweep_async.py scale=paper data=kinetics400 data.root=DIR roots.ucf101=DIR roots.esc50=DIR

Run it again at any time: what is done is kept, what is missing is run.
"""

from __future__ import annotations

import sys

from launch.main import main

if __name__ == "__main__":
    sys.exit(main("async"))

"""Tables 4 and 5 of the paper: CrissCross, XDC, AVID, CM-ACC and supervised pretraining.

    uv run launch/compare_methods.py                        the demo: all share inputs, backbones and batch
    uv run launch/compare_methods.py method=[avid,xdc]      some of them
    uv run launch/compare_methods.py scale=paper ...        as their authors ran them; fair=true: all alike

Run it again at any time: what is done is kept, what is missing is run.
"""

from __future__ import annotations

import sys

from launch.main import main

if __name__ == "__main__":
    sys.exit(main("methods"))

"""Retrieval: are a clip's nearest neighbours of its class?

    uv run launch/retrieve.py                               the demo
    uv run launch/retrieve.py scale=paper data=kinetics400 data.root=DIR roots.ucf101=DIR roots.esc50=DIR ...

Run it again at any time: what is done is kept, what is missing is run.
"""

from __future__ import annotations

import sys

from launch.main import main

if __name__ == "__main__":
    sys.exit(main("retrieval"))

"""The whole paper: Tables 1-5 and retrieval, as one graph in which what studies share is run once.

    uv run launch/reproduce_paper.py                         the demo
    uv run launch/reproduce_paper.py seeds=[0,1,2]           three copies
    uv run launch/reproduce_paper.py scale=paper data=kinetics400 data.root=DIR roots.ucf101=DIR ...

Run it again at any time: what is done is kept, what is missing is run. It ends with every table, every figure, and
tables/report.html, one page of both.
"""

from __future__ import annotations

import sys

from launch.main import main

STUDIES = ("async", "dataset_size", "relaxation", "methods", "retrieval")

if __name__ == "__main__":
    sys.exit(main(*STUDIES))

"""Take the pictures of MLflow's pages in crisscross/tracking/README.md again.

    uv run python -m tests.ui.screenshots --uri http://127.0.0.1:5000 --out analysis/images

The server (``uv run mlflow ui``) has a finished relaxation study; its views are opened as a visitor opens them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from crisscross.tracking.address import DEFAULT_EXPERIMENT
from crisscross.tracking.query import experiment_id_of
from crisscross.tracking.ui import VIEWS
from tests.ui import pages
from tests.ui.browser import Browser, missing_program

SIZE_PX = {"loss": (1200, 925), "relaxation": (1240, 730), "sweep": (1240, 925)}
MENU_PX = 200  # MLflow's menu on the left, the same on every page
HIDDEN = ".modebar {display: none !important}"
"""The tools that a chart shows while the mouse is on it."""


def take(uri: str, *, experiment: str, folder: Path) -> list[Path]:
    """Take a picture of each view of an experiment.

    Args:
        uri: an MLflow server.
        experiment: name of the experiment.
        folder: where the pictures go, ``mlflow_<view>.png``.

    Returns:
        The files.
    """
    experiment_id = experiment_id_of(uri=uri, experiment=experiment)
    folder.mkdir(parents=True, exist_ok=True)
    ready: dict[str, Callable[[Browser], object]] = {
        "loss": lambda browser: pages.curves(browser, "loss/total", at_least=5),
        "relaxation": lambda browser: pages.rows(browser, with_text="(average)", at_least=5),
        "sweep": lambda browser: (
            pages.axes(browser, at_least=5),
            pages.rows(browser, with_text="crisscross-mild", at_least=1),
        ),
    }
    taken = []
    for view in VIEWS:
        width_px, height_px = SIZE_PX[view.key]
        browser = Browser(uri, width_px=width_px, height_px=height_px)
        try:
            browser.open(view.path(experiment_id))
            ready[view.key](browser)
            browser.click(pages.CLOSE_NOTE)
            browser.hide(HIDDEN)
            taken.append(folder / f"mlflow_{view.key}.png")
            browser.save(taken[-1], left_px=MENU_PX)
        finally:
            browser.close()
    return taken


def main(arguments: list[str] | None = None) -> int:
    """Take the pictures; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uri", required=True, help="address of an MLflow server with a finished relaxation study")
    parser.add_argument("--experiment", default=DEFAULT_EXPERIMENT)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    chosen = parser.parse_args(arguments)
    if absent := missing_program():
        print(f"error: {absent}", file=sys.stderr)
        return 2
    for path in take(chosen.uri.rstrip("/"), experiment=chosen.experiment, folder=chosen.out):
        print(f"{path} ({path.stat().st_size / 1024:.0f} kB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())

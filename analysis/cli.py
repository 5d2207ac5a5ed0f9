"""What the scripts of the analysis ask for alike: where the runs are recorded, and a record that is up to date."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from crisscross.tracking.artifacts import Keeper
from crisscross.tracking.client import DEFAULT_EXPERIMENT, DEFAULT_URI
from crisscross.tracking.sync import catch_up, runs_behind


class Place(TypedDict):
    """Where runs are recorded, as keyword arguments.

    Attributes:
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
    """

    uri: str
    experiment: str


def add_store_options(parser: argparse.ArgumentParser, *, studies: Iterable[str], what: str, runs_root: str) -> None:
    """Add the options that say which runs are looked at.

    Args:
        parser: of a script.
        studies: that can be chosen.
        what: the script makes: ``tables``, ``figures``; its files go to a folder of that name by default.
        runs_root: what the run directories are needed for.
    """
    add_place_options(parser, runs_root=runs_root)
    parser.add_argument("--study", choices=sorted(studies), help=f"the {what} of one study (default: all)")
    parser.add_argument("--fingerprint", help="variant of the study, 8 digits (default: the one launched last)")
    parser.add_argument("--out", default=what, help="folder of the files (default: %(default)s)")


def add_place_options(parser: argparse.ArgumentParser, *, runs_root: str) -> None:
    """Add the options that say where runs are recorded and where they are; ``runs_root``: what for."""
    parser.add_argument("--uri", default=DEFAULT_URI, help="MLflow's tracking URI (default: %(default)s)")
    parser.add_argument("--experiment", default=DEFAULT_EXPERIMENT, help="MLflow experiment (default: %(default)s)")
    parser.add_argument("--runs-root", default="runs", type=Path, help=f"{runs_root} (default: %(default)s)")
    parser.add_argument(
        "--read-only",
        action="store_true",
        help="write files alone: MLflow is not brought up to date, nor given them",
    )


def bring_up_to_date(options: argparse.Namespace) -> Place:
    """Bring MLflow up to date with the run directories, and return its place as keyword arguments."""
    place: Place = {"uri": options.uri, "experiment": options.experiment}
    if options.read_only:
        return place
    with contextlib.suppress(ValueError):  # an address that is none: told when it is opened
        behind = runs_behind(options.runs_root, **place)
        if behind:
            print(catch_up(behind, **place), file=sys.stderr)
    return place


def keeper_of(options: argparse.Namespace) -> Keeper:
    """Return what keeps files in the store of the options; nothing is kept where it is only to be read."""
    return Keeper(options.uri, options.experiment, enabled=not options.read_only)

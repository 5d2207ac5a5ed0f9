"""Command-line options of the analysis scripts, and the sync before reading."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from crisscross.tracking.address import DEFAULT_EXPERIMENT, DEFAULT_URI
from crisscross.tracking.artifacts import ArtifactLogger
from crisscross.tracking.sync import sync_runs, unsynced_runs


class StoreLocation(TypedDict):
    """An MLflow experiment, as keyword arguments.

    Attributes:
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
    """

    uri: str
    experiment: str


def add_study_options(parser: argparse.ArgumentParser, *, studies: Iterable[str], what: str, runs_root: str) -> None:
    """Add the options that select a study, and those of ``add_store_options``.

    Args:
        parser: of a script.
        studies: choices of ``--study``.
        what: what the script makes, ``tables`` or ``figures``; also the default folder of its files.
        runs_root: help text of ``--runs-root``: what the script needs the run directories for.
    """
    add_store_options(parser, runs_root=runs_root)
    parser.add_argument("--study", choices=sorted(studies), help=f"the {what} of one study (default: all)")
    parser.add_argument(
        "--fingerprint",
        dest="study_hash",
        metavar="FINGERPRINT",
        help="variant of the study, 8 digits (default: the one launched last)",
    )
    parser.add_argument("--out", default=what, help="folder of the files (default: %(default)s)")


def add_store_options(parser: argparse.ArgumentParser, *, runs_root: str) -> None:
    """Add the options for the MLflow store and the run directories.

    Args:
        parser: of a script.
        runs_root: help text of ``--runs-root``: what the script needs the run directories for.
    """
    parser.add_argument("--uri", default=DEFAULT_URI, help="MLflow's tracking URI (default: %(default)s)")
    parser.add_argument("--experiment", default=DEFAULT_EXPERIMENT, help="MLflow experiment (default: %(default)s)")
    parser.add_argument("--runs-root", default="runs", type=Path, help=f"{runs_root} (default: %(default)s)")
    parser.add_argument(
        "--read-only",
        action="store_true",
        help="only write files: do not sync MLflow first, and log no artifacts",
    )


def sync_store(options: argparse.Namespace) -> StoreLocation:
    """Sync MLflow with the run directories, unless ``--read-only``.

    Returns:
        The MLflow experiment, as keyword arguments.
    """
    location: StoreLocation = {"uri": options.uri, "experiment": options.experiment}
    if options.read_only:
        return location
    with contextlib.suppress(ValueError):  # an invalid address: the first read reports it
        unsynced = unsynced_runs(options.runs_root, **location)
        if unsynced:
            print(sync_runs(unsynced, **location).summary, file=sys.stderr)
    return location


def artifacts_of(options: argparse.Namespace) -> ArtifactLogger:
    """Return the artifact logger of the chosen store, disabled by ``--read-only``."""
    return ArtifactLogger(options.uri, options.experiment, enabled=not options.read_only)

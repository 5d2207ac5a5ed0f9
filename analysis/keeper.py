"""Keeping what the analysis has written in MLflow as well, where that can be done."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from crisscross.record import mask_passwords
from crisscross.tracking import TrackingError, log_outputs


class Keeper:
    """Keeps files as artifacts. A store that cannot be written is told of once, in one line: the files are there."""

    def __init__(self, uri: str, experiment: str, *, enabled: bool = True) -> None:
        """Say where; nothing is opened yet.

        Args:
            uri: MLflow's tracking URI.
            experiment: name of the MLflow experiment.
            enabled: whether anything is to be kept at all.
        """
        self._place = {"uri": uri, "experiment": experiment}
        self._works = enabled

    def keep(self, files: Mapping[str, Path], *, kind: str, of: str, description: str) -> None:
        """Keep files, each content once; see ``crisscross.tracking.log_outputs``."""
        if not self._works or not files:
            return
        try:
            log_outputs(files, kind=kind, of=of, description=description, **self._place)
        except (TrackingError, OSError, ValueError) as error:
            self._works = False
            reason = mask_passwords(" ".join(str(error).split()))
            print(f"what is written is not in MLflow ({kind} of {of}): {reason}", file=sys.stderr)

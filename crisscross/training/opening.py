"""Opening the clips of an experiment that several processes, perhaps on several nodes, work on together."""

from __future__ import annotations

from collections.abc import Sequence

from crisscross.data.catalogue import open_manifest
from crisscross.data.manifest import Manifest
from crisscross.data.settings import DataSettings
from crisscross.data.staging import staged
from crisscross.run_directory import RunDirectory
from crisscross.training.distributed import World
from crisscross.training.interruption import INTERRUPTION, Interrupted


def open_clips(run: RunDirectory, data: DataSettings, world: World, *, splits: Sequence[str]) -> Manifest:
    """Read the manifest and bring its clips to each node, where ``data.stage`` says so; all processes go on, or none.

    Args:
        run: told what is being done.
        data: which clips.
        world: this process among its fellows.
        splits: whose clips are needed.

    Raises:
        Interrupted: a signal asked one of the processes to leave.
        FileNotFoundError, ValueError, OSError: the clips are gone, have changed, or cannot be brought.
    """
    error: Exception | None = None
    try:
        manifest = open_manifest(data)
        manifest = staged(manifest, data, splits=splits, report=run.say_phase if world.is_main else None)
    except (OSError, ValueError, Interrupted) as problem:
        error = problem
    error = world.first_error(error)
    if isinstance(error, Interrupted):
        INTERRUPTION.note(str(error))  # whichever rank was told: all leave for the same reason
    if error is not None:
        raise error
    return manifest

"""ESC-50: ``audio/<fold>-<source>-<take>-<target>.wav`` and ``meta/esc50.csv`` with five folds."""

from __future__ import annotations

from crisscross.config.datasets import DATASETS
from crisscross.data.datasets.matching import DatasetFolder, ExpectedClip, match, stem, table
from crisscross.data.file_list import ListedClip

FOLDS = DATASETS["esc50"].folds
USUAL = ("meta", ".", "../meta")
COLUMNS = ("filename", "fold", "category")


def read(place: DatasetFolder) -> list[ListedClip]:
    """List the clips of ESC-50: fold k's clips are the test of fold k and train of the others.

    The suffix need not be that of the CSV, so that a re-encoded copy (FLAC) can be used.

    Raises:
        FileNotFoundError: ``esc50.csv`` is missing.
        ValueError: it names no class of ESC-50, or a fold that there is not.
    """
    wanted = []
    for where, (name, fold, label) in table(place.find_lists(r"esc50\.csv", USUAL, single=True)[0], COLUMNS):
        place.check_label(label, where)
        if fold not in map(str, FOLDS):
            raise ValueError(f"{where}: fold {fold!r}: expected 1 to 5; give the original list")
        names = [f"{'test' if str(other) == fold else 'train'}{other}" for other in FOLDS]
        wanted.append(ExpectedClip(stem(name), f"audio/{name}", label, "+".join(names)))
    return match(wanted, place.files(), stem)

"""ESC-50: ``audio/<fold>-<source>-<take>-<target>.wav`` and ``meta/esc50.csv`` with five folds."""

from __future__ import annotations

from crisscross.config.datasets import DATASETS
from crisscross.data.datasets.matching import DatasetFolder, ExpectedClip, match, stem, table
from crisscross.data.file_list import ListedClip

FOLDS = DATASETS["esc50"].folds
USUAL = ("meta", ".", "../meta")
COLUMNS = ("filename", "fold", "category")


def read(dataset: DatasetFolder) -> list[ListedClip]:
    """List the clips of ESC-50.

    Those of fold k are test in fold k and train in the others. Suffixes may differ from the CSV's, so a re-encoded copy
    (FLAC) works too.

    Raises:
        FileNotFoundError: if ``esc50.csv`` is missing.
        ValueError: if it has an unknown class or fold.
    """
    expected = []
    for where, (name, fold, label) in table(dataset.find_lists(r"esc50\.csv", USUAL, single=True)[0], COLUMNS):
        dataset.check_label(label, where)
        if fold not in map(str, FOLDS):
            raise ValueError(f"{where}: fold {fold!r}: expected 1 to 5; give the original list")
        names = [f"{'test' if str(other) == fold else 'train'}{other}" for other in FOLDS]
        expected.append(ExpectedClip(stem(name), f"audio/{name}", label, "+".join(names)))
    return match(expected, dataset.files(), stem)

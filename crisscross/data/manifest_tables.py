"""The tables of a manifest: which files are in which, what their columns hold, and the hash of the good ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from crisscross.data.listing import Listed

if TYPE_CHECKING:
    import pandas as pd

CLIP_COLUMNS = [
    "clip_id",
    "path",
    "label",
    "label_id",
    "split",
    "video_start_s",
    "video_end_s",
    "audio_start_s",
    "audio_end_s",
    "frame_rate_hz",
    "width",
    "height",
    "audio_rate_hz",
    "size_bytes",
    "mtime_ns",
]
REJECTED_COLUMNS = ["path", "label", "split", "reason"]
FINGERPRINTED_NUMBERS = ("video_start_s", "video_end_s", "audio_start_s", "audio_end_s", "width", "height")


def judge(
    listed: Iterable[Listed], probed: dict[str, dict[str, Any]], require: Sequence[str]
) -> tuple[list[Listed], list[dict[str, Any]]]:
    """Part the files into usable ones and rejected ones with the reason, both sorted by path.

    Args:
        listed: the files as the dataset lists them.
        probed: what probing found for each path.
        require: the streams that a clip must have.
    """
    good, rejected = [], []
    for row in sorted(listed, key=lambda row: row.path):
        found = probed.get(row.path, {})
        problems = [row.problem or found["problem"]]
        if not problems[0]:
            problems = [found[f"{kind}_problem"] for kind in require if found[f"{kind}_problem"]]
        if any(problems):
            rejected.append({**asdict(row), "split": row.split or "", "reason": "; ".join(problems)})
        else:
            good.append(row)
    return good, rejected


def clip_table(good: Sequence[Listed], probed: Mapping[str, Mapping[str, Any]], classes: Sequence[str]) -> pd.DataFrame:
    """Return one row a good clip, with the columns of ``CLIP_COLUMNS``."""
    import pandas as pd

    label_ids = {label: number for number, label in enumerate(classes)}
    rows = [
        {**probed[row.path], **asdict(row), "clip_id": clip_id, "label_id": label_ids[row.label]}
        for clip_id, row in enumerate(good)
    ]
    floats = [name for name in CLIP_COLUMNS if name.endswith(("_s", "_hz"))] + ["width", "height"]
    types = dict.fromkeys(floats, "float64") | dict.fromkeys(["clip_id", "label_id"], "int64")
    return pd.DataFrame(rows, columns=CLIP_COLUMNS).astype(types)


def rejected_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row a clip that is left out, with the columns of ``REJECTED_COLUMNS``."""
    import pandas as pd

    return pd.DataFrame(rows, columns=REJECTED_COLUMNS).astype("str")


def fingerprint(clips: pd.DataFrame) -> str:
    """Return the hash of what the clips are, wherever they lie, as ``Manifest.fingerprint`` says."""
    # What a clip is, and where it may be cut: the times and sizes that the draws depend on, as far as a probe is exact.
    extents = [clips[name].fillna(-1).round(3).tolist() for name in FINGERPRINTED_NUMBERS]
    columns = [*(clips[name].tolist() for name in ("path", "size_bytes", "label", "split")), *extents]
    digest = hashlib.sha256()
    for row in sorted(zip(*columns, strict=True)):
        digest.update(json.dumps(row, ensure_ascii=False).encode())
    return digest.hexdigest()

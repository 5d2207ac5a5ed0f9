"""Changes to a dataset are found by its list, sizes and times; an unchanged one is not built again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from crisscross.data import manifest_summary
from crisscross.data.build_manifest import build_manifest
from crisscross.data.catalog import prepare
from crisscross.data.file_list import read_csv, scan_tree
from crisscross.data.manifest_summary import read_current, read_summary
from tests.data.clips import even_times_s, tone, write_clip

PATHS = ("train/a/1.mp4", "train/b/2.mp4", "test/a/3.mp4")
TOY = {
    "name": "demo",
    "kind": "toy",
    "train_split": "train",
    "test_split": "test",
    "fingerprint": None,
    "toy": {
        "num_classes": 2,
        "train_clips_per_class": 1,
        "test_clips_per_class": 1,
        "seconds": 1.0,
        "frame_size_px": 32,
        "frame_rate_hz": 8,
    },
}
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    return write_clip(folder / "good.mp4", times_s=even_times_s(10, 10), waveform=tone(440, 1, 16000))


@pytest.fixture
def root(tmp_path: Path, clip: Path) -> Path:
    for path in PATHS:
        (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, tmp_path / "data" / path)
    (tmp_path / "data" / "train" / "a" / "empty.mp4").touch()
    return tmp_path / "data"


def _build(directory: Path, **options: Any) -> None:
    build_manifest(directory, **options, jobs=1, progress=False)


def test_an_unchanged_dataset_is_current(tmp_path: Path, root: Path) -> None:
    assert read_current(tmp_path / "m", root=root) is None
    _build(tmp_path / "m", root=root)
    assert read_current(tmp_path / "m", root=root) == read_summary(tmp_path / "m")
    (root / "notes.txt").write_text("no clip")
    os.utime(root / "train")
    assert read_current(tmp_path / "m", root=root) is not None


def _replace(root: Path) -> None:
    """Write other content of the same size."""
    path = root / PATHS[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


CHANGES = {
    "removed": lambda root: (root / PATHS[0]).unlink(),
    "added": lambda root: shutil.copy(root / PATHS[0], root / "test" / "a" / "4.mp4"),
    "renamed": lambda root: (root / PATHS[0]).rename(root / "train" / "a" / "other.mp4"),
    "moved to another class": lambda root: (root / PATHS[0]).rename(root / "train" / "b" / "1.mp4"),
    "moved to another split": lambda root: (root / PATHS[0]).rename(root / "test" / "a" / "1.mp4"),
    "replaced": _replace,
    "cut": lambda root: os.truncate(root / PATHS[0], 500),
    "touched": lambda root: os.utime(root / PATHS[0], (1, 1)),
    "now a folder": lambda root: ((root / PATHS[0]).unlink(), (root / PATHS[0]).mkdir()),
    "a rejected one repaired": lambda root: shutil.copy(root / PATHS[0], root / "train" / "a" / "empty.mp4"),
    "a file where none belongs": lambda root: shutil.copy(root / PATHS[0], root / "stray.mp4"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_found(tmp_path: Path, root: Path, change: str) -> None:
    _build(tmp_path / "m", root=root)
    CHANGES[change](root)
    assert read_current(tmp_path / "m", root=root) is None
    _build(tmp_path / "m", root=root)
    assert read_current(tmp_path / "m", root=root) is not None


@pytest.mark.parametrize(
    "options",
    [
        {"test_fraction": 0.5},
        {"val_fraction": 0.2},
        {"require": ("video",)},
        {"thorough": True},
        {"label_column": "kind"},
    ],
)
def test_other_settings_are_another_manifest(tmp_path: Path, root: Path, options: dict[str, Any]) -> None:
    _build(tmp_path / "m", root=root)
    assert read_current(tmp_path / "m", root=root, **options) is None


def test_the_same_clips_elsewhere_are_another_manifest(tmp_path: Path, root: Path) -> None:
    _build(tmp_path / "m", root=root)
    shutil.copytree(root, tmp_path / "other")  # keeps modification times
    assert read_current(tmp_path / "m", root=tmp_path / "other") is None


@pytest.mark.parametrize("version", ["MANIFEST_VERSION", "PROBE_VERSION"])
def test_newer_code_builds_again(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    _build(tmp_path / "m", root=root)
    monkeypatch.setattr(manifest_summary, version, 99)
    assert read_current(tmp_path / "m", root=root) is None


@pytest.mark.parametrize("name", ["clips.parquet", "rejected.parquet", "manifest.json"])
@pytest.mark.parametrize("damage", ["gone", "cut", "another"])
def test_a_damaged_manifest_is_built_again(tmp_path: Path, root: Path, name: str, damage: str) -> None:
    _build(tmp_path / "m", root=root)
    path = tmp_path / "m" / name
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif name == "manifest.json":  # of an older version
        path.write_text('{"fingerprint": "f", "num_by_split": {"train": 2, "test": 1}}')
    else:
        pd.DataFrame({"path": ["x.mp4"]}).to_parquet(path)
    assert read_current(tmp_path / "m", root=root) is None
    _build(tmp_path / "m", root=root)
    assert read_current(tmp_path / "m", root=root) is not None


def test_a_changed_list_is_found(tmp_path: Path, root: Path) -> None:
    csv = root / "list.csv"
    csv.write_text("file,label,split\n" + "".join(f"{path},x,train\n" for path in PATHS))
    _build(tmp_path / "m", root=None, csv=csv)
    assert read_current(tmp_path / "m", root=None, csv=csv) is not None
    csv.write_text(csv.read_text().replace("x,train", "y,train", 1))
    assert read_current(tmp_path / "m", root=None, csv=csv) is None
    _build(tmp_path / "m", root=None, csv=csv)
    (root / PATHS[0]).unlink()
    assert read_current(tmp_path / "m", root=None, csv=csv) is None
    _build(tmp_path / "m", root=None, csv=csv)
    assert read_current(tmp_path / "m", root=None, csv=csv)["reasons"] == {"file missing": 1}


def test_both_report_mistakes(tmp_path: Path, root: Path) -> None:
    _build(tmp_path / "m", root=root)
    with pytest.raises(FileNotFoundError, match="gone does not exist: give the folder"):
        read_current(tmp_path / "m", root=tmp_path / "gone")
    shutil.rmtree(root)
    root.mkdir()
    with pytest.raises(ValueError, match="data is empty: expected"):
        read_current(tmp_path / "m", root=root)


def _imported(data: dict[str, Any], *, code: str = "") -> list[str]:
    """Prepare a dataset in a new process and return the heavy modules that it imported."""
    script = (
        f"import sys; from crisscross.data.catalog import prepare; {code}\n"
        f"prepare({data!r}, progress=False)\n"
        "print(*(name for name in ('pandas', 'pyarrow', 'av', 'torch') if name in sys.modules))"
    )
    return subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()


def test_preparing_again_imports_nothing_heavy(tmp_path: Path, root: Path) -> None:
    csv = tmp_path / "list.csv"
    csv.write_text("".join(["file,label,split\n", *(f"{path},x,{path.split('/')[0]}\n" for path in PATHS)]))
    folder = {**TOY, "kind": "folder", "root": str(root), "manifest_root": str(tmp_path / "m"), "toy": {}}
    for data in ({**TOY, "root": str(tmp_path)}, folder, {**folder, "csv": str(csv)}):
        first = prepare(data, progress=False)
        assert _imported(data) == []
        assert prepare(data, progress=False) == first


def test_a_damaged_demo_clip_is_an_error_each_time(tmp_path: Path) -> None:
    data = {**TOY, "root": str(tmp_path)}
    prepare(data, progress=False)
    victim = sorted(tmp_path.rglob("*.mp4"))[0]
    content = victim.read_bytes()
    os.truncate(victim, 300)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=rf"1 of the generated clips are damaged \(test/.*{victim.name}: .*\): delete"
        ):
            prepare(data, progress=False)
    victim.write_bytes(content)
    prepare(data, progress=False)


def test_a_missing_split_is_an_error_each_time(tmp_path: Path) -> None:
    data = {**TOY, "root": str(tmp_path), "test_split": "val"}
    for _ in range(2):
        with pytest.raises(ValueError, match="has no split 'val': choose from test, train"):
            prepare(data, progress=False)


class TestLists:
    def read(self, tmp_path: Path, text: str) -> list[tuple[str, str, str | None, str]]:
        (tmp_path / "list.csv").write_bytes(text.encode())
        columns = {"file_column": "file", "label_column": "label", "split_column": "split"}
        rows = read_csv(tmp_path / "list.csv", tmp_path, **columns)
        return [(row.path, row.label, row.split, row.problem) for row in rows]

    @pytest.mark.parametrize(
        "text",
        [
            "file,label\na.mp4,x\nb.mp4,y\n",
            "\n  \nfile,label\n\na.mp4,x\n   \nb.mp4,y",
            '"file","label"\r\n"a.mp4", x \r\n"b.mp4","y"\r\n',
            "label,file,label,\nx,a.mp4,other,\ny,b.mp4,other,\n",
            "file,label\na.mp4,x,\nb.mp4,y,\n",
            "file,label\n./a.mp4,x\nsub/../b.mp4,y\n",
        ],
    )
    def test_ways_to_write_the_same(self, tmp_path: Path, text: str) -> None:
        assert self.read(tmp_path, text) == [("a.mp4", "x", None, ""), ("b.mp4", "y", None, "")]

    def test_short_rows_are_listed_with_a_problem(self, tmp_path: Path) -> None:
        text = 'file,label,split\na.mp4,x\nb.mp4\n,,\n"c, d.mp4","say ""x""",train\n../e.mp4,x,test\n'
        assert self.read(tmp_path, text) == [
            ("a.mp4", "x", "", "no split"),
            ("b.mp4", "", "", "no label"),
            ("", "", "", "no file name"),
            ("c, d.mp4", 'say "x"', "train", ""),
            ("../e.mp4", "x", "test", ""),
        ]

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("file,label\na.mp4,x\nb.mp4,y,z\n", "line 3 has 3 fields, the header 2"),
            ('file,label\n"a.mp4,x\n', "unexpected end of data"),
            ("  \n", "it holds nothing"),
        ],
    )
    def test_what_is_not_a_table(self, tmp_path: Path, text: str, reason: str) -> None:
        with pytest.raises(ValueError, match=rf"cannot be read as CSV \({reason}\): save it as UTF-8 with a header"):
            self.read(tmp_path, text)

    def test_a_tree_of_links_and_of_deep_folders(self, tmp_path: Path) -> None:
        for path in ("x/a/1.MP4", "x/a/.2.mp4", "x/.b/3.mp4", "x/c.d/4.tar.mkv", "x/c.d/mp4"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        (tmp_path / "x" / "link").symlink_to(tmp_path / "x" / "a")
        assert [row.path for row in scan_tree(tmp_path / "x")] == ["a/1.MP4", "c.d/4.tar.mkv", "link/1.MP4"]

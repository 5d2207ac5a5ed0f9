"""Shards: the same bytes for the same files, resumed after kills, shared, checked."""

from __future__ import annotations

import json
import os
import sys
import tarfile
from pathlib import Path

import pytest

from crisscross.data.shards import main, pack, read_index, verify
from tests.processes import kill_when, run_at_once


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "clips"
    names = [
        "a/1.mp4",
        "a/-2 [#];&.mp4",
        "b/näme 映画.mp4",
        "b/empty.mp4",
        f"b/{'long' * 40}.mp4",
        "list.csv",
        "b/z.mp4",
    ]
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.urandom(0 if "empty" in name else 3000 + number))
    (root / ".hidden").write_text("not packed")
    return root


def contents(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.*") if not path.name.startswith(".")}


def test_everything_that_is_not_hidden_is_packed_once(root: Path) -> None:
    report = pack(root, shard_bytes=7000, progress=False)
    assert report.is_complete
    assert (report.num_files, report.num_shards) == (7, 3)
    expected = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    expected = {path: content for path, content in expected.items() if not path.startswith((".", "shards"))}
    assert contents(root / "shards") == expected
    index = read_index(root / "shards")
    told = {path: size for shard in index.shards for path, size in shard["files"]}
    assert told == {path: len(content) for path, content in expected.items()}
    assert list(told) == sorted(told)
    assert verify(root / "shards", progress=False) == []


def test_the_same_files_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    pack(root, tmp_path / "one", shard_bytes=7000, progress=False)
    for path in root.rglob("*.mp4"):
        os.utime(path, (1, 1))
        path.chmod(0o600)
    pack(root, tmp_path / "other", shard_bytes=7000, progress=False)
    assert files(tmp_path / "one") == files(tmp_path / "other")


def test_only_what_changed_is_packed_again(root: Path) -> None:
    pack(root, shard_bytes=7000, progress=False)
    before = {path: path.stat().st_ino for path in (root / "shards").glob("*.tar")}
    pack(root, shard_bytes=7000, progress=False)
    assert {path: path.stat().st_ino for path in (root / "shards").glob("*.tar")} == before
    (root / "b/z.mp4").write_bytes(b"z" * 3006)
    pack(root, shard_bytes=7000, progress=False)
    changed = [path.name for path, inode in before.items() if path.stat().st_ino != inode]
    assert changed == [next(s["name"] for s in read_index(root / "shards").shards if ["b/z.mp4", 3006] in s["files"])]
    assert contents(root / "shards")["b/z.mp4"] == b"z" * 3006
    pack(root, shard_bytes=10**9, progress=False)  # fewer: the others go
    assert [path.name for path in (root / "shards").glob("*.tar")] == ["shard-00000.tar"]


def test_shares_make_up_the_whole(root: Path, tmp_path: Path) -> None:
    first = pack(root, tmp_path / "shared", shard_bytes=7000, share=(1, 2), progress=False)
    assert str(first).endswith("; 1 shards left")
    assert read_index(tmp_path / "shared") is None
    assert pack(root, tmp_path / "shared", shard_bytes=7000, share=(2, 2), progress=False).is_complete
    pack(root, tmp_path / "whole", shard_bytes=7000, progress=False)
    assert files(tmp_path / "shared") == files(tmp_path / "whole")


def test_two_at_once_after_a_kill(root: Path, tmp_path: Path) -> None:
    for number in range(60):
        (root / f"a/big {number}.mp4").write_bytes(os.urandom(500_000))
    target = tmp_path / "shards"
    code = "import sys; from crisscross.data.shards import pack; pack(*sys.argv[1:], shard_bytes=10**6, progress=False)"
    command = [sys.executable, "-c", code, str(root), str(target)]
    kill_when(command, lambda: bool(list(target.glob("*.tar"))))
    assert list(target.glob("*.tar"))
    run_at_once(command, num=2, timeout_s=300)
    pack(root, tmp_path / "whole", shard_bytes=10**6, progress=False)
    assert files(target) == files(tmp_path / "whole")
    assert verify(target, progress=False) == []


def test_what_is_wrong_with_shards_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(root, shard_bytes=7000, progress=False)
    folder = root / "shards"
    (folder / "shard-00000.tar").unlink()
    with (folder / "shard-00001.tar").open("r+b") as file:
        file.seek(600)
        file.write(b"rot")
    with (folder / "shard-00002.tar").open("ab") as file:
        file.write(b"more")
    assert main([str(folder)]) == 1
    missing, rotten, longer = capsys.readouterr().out.splitlines()
    assert missing.endswith("shard-00000.tar: missing: delete it and pack again")
    assert "shard-00001.tar: SHA-256 " in rotten
    assert "shard-00002.tar: " in longer
    assert " bytes, expected " in longer
    for name in ("shard-00001.tar", "shard-00002.tar"):
        (folder / name).unlink()
    pack(root, shard_bytes=7000, progress=False)
    assert main([str(folder)]) == 0
    capsys.readouterr()
    (folder / "index.json").rename(root / "index.json")
    for wrong, complaint in (
        (
            root / "a",
            "a holds no shards: expected a folder of shards (index.json, shard-00000.tar, ...): give",
        ),
        (root / "gone", "gone is no folder: expected a folder of shards (index.json, shard-00000.tar, ...): give that"),
        (folder, "shards has no index.json: its shards are not all packed: pack them to the end with python -m"),
    ):
        assert main([str(wrong)]) == 2
        assert complaint in capsys.readouterr().err
    (root / "index.json").rename(folder / "index.json")
    assert main([str(root)]) == 2
    assert capsys.readouterr().err == f"error: {root} has no index.json, {folder} has: give that folder\n"
    (folder / "index.json").write_text("[]")
    assert main([str(folder)]) == 2
    assert "index.json is no index of shards: give" in capsys.readouterr().err


def test_an_index_of_another_version_is_refused(root: Path) -> None:
    pack(root, progress=False)
    path = root / "shards" / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 0}))
    with pytest.raises(ValueError, match=r"index.json has version 0, not 1: pack again"):
        read_index(root / "shards")


def test_bad_requests_are_one_line(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shard_bytes=0: expected the size of a shard in bytes"):
        pack(root, shard_bytes=0)
    with pytest.raises(FileNotFoundError, match=r"the folder .*/gone does not exist: give the dataset's root"):
        pack(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"1 files to pack are not under .*, such as a/gone.mp4: put them back"):
        pack(root, paths=["a/gone.mp4"])
    with pytest.raises(ValueError, match=r"the clip ../x.mp4 lies outside of its root and cannot be packed"):
        pack(root, paths=["../x.mp4"])
    with pytest.raises(ValueError, match=r"there are no files to pack"):
        pack(root, paths=[])
    with pytest.raises(ValueError, match=r"share=0/2"):
        pack(root, share=(0, 2))


def test_a_full_disk_is_one_line_and_more_space_lets_it_go_on(root: Path, small_disk) -> None:
    disk = small_disk("100k")
    (disk / "ballast").write_bytes(bytes(70_000))
    with pytest.raises(OSError, match=r"cannot write shards to .* \(No space left on device\): free space or choose"):
        pack(root, disk / "shards", shard_bytes=7000, progress=False)
    (disk / "ballast").unlink()
    assert pack(root, disk / "shards", shard_bytes=7000, progress=False).is_complete
    assert verify(disk / "shards", progress=False) == []

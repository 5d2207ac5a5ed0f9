"""The command that prepares a dataset: its output, shares, and resuming after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from crisscross.data import probe_files as probing
from crisscross.data.build_manifest import build_manifest
from crisscross.data.manifest import read_manifest
from crisscross.data.parallel import num_usable_cores
from crisscross.data.prepare.__main__ import in_flags, main, parse_share
from tests.data.clips import even_times_s, tone, write_clip
from tests.data.miniatures import make_miniature

REPOSITORY = Path(__file__).parents[2]
ON_SLURM = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "5"}


def arguments(name: str, root: Path, *more: str) -> list[str]:
    return [name, "--root", str(root), "--manifest-root", str(root.parent / "manifests"), "--jobs", "1", *more]


def directory_of(root: Path) -> Path:
    (directory,) = (root.parent / "manifests").iterdir()
    return directory


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_miniature("ucf101", tmp_path / "ucf101")


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that this process has probed."""
    paths: list[str] = []
    original = probing.probe_one
    monkeypatch.setattr(probing, "probe_one", lambda r, p, t: paths.append(p) or original(r, p, t))
    monkeypatch.setattr(probing, "FEW_FILES", 10**6)
    return paths


def test_its_output(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "UCF-101" / "PlayingViolin" / "v_PlayingViolin_g02_c02.avi").unlink()
    (root / "UCF-101" / "PlayingViolin" / "v_PlayingViolin_g99_c01.avi").touch()
    assert main(arguments("ucf101", root, "--allow-missing")) == 0
    out = capsys.readouterr().out.splitlines()
    directory = directory_of(root)
    missing = "UCF-101/PlayingViolin/v_PlayingViolin_g02_c02.avi"
    assert out[0] == f"ucf101: 1 of 18 listed clips are missing under {root}"
    assert f"  test2          1 of       6 missing: {missing}" in out
    assert "  test1          0 of       6 missing" in out
    assert (
        "  1 more files or rows cannot be used (UCF-101/PlayingViolin/v_PlayingViolin_g99_c01.avi: no official"
        in str(out)
    )
    assert "17 clips of 3 classes (6 test1, 5 test2, 6 test3, 11 train1, 12 train2, 11 train3)" in out
    assert out[-4:-1] == ["2 rejected", "       1  missing", "       1  no official list names it"]
    assert any(line.startswith("probed 17 files in ") and line.endswith(" files/s)") for line in out)
    assert (directory / "missing.csv").read_text().splitlines() == [
        "path,label,split",
        f"{missing},PlayingViolin,train1+test2+train3",
    ]
    assert set(read_manifest(directory).rejected["reason"]) == {"missing", "no official list names it"}


def test_half_a_download_is_reported_and_nothing_is_probed(
    root: Path, capsys: pytest.CaptureFixture[str], probed: list[str]
) -> None:
    shutil.rmtree(root / "UCF-101" / "PlayingViolin")
    assert main(arguments("ucf101", root)) == 2
    out, err = capsys.readouterr()
    assert out.startswith("ucf101: 6 of 18 listed clips are missing under")
    assert err.startswith("error: --root ")
    assert err.endswith("get the rest, or give --allow-missing to go on without\n")
    assert "6 of the 18 clips of ucf101 are missing, among them all of 1 classes (PlayingViolin)" in err
    assert len(err.splitlines()) == 1
    assert len((directory_of(root) / "missing.csv").read_text().splitlines()) == 7
    assert probed == []
    assert main(arguments("ucf101", root, "--allow-missing")) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--share", "0/3"], "--share 0/3: share 0 of 3 does not exist: count from 1"),
        (["--share", "4/3"], "--share 4/3: share 4 of 3 does not exist: count from 1"),
        (["--share", "half"], "--share half: expected K/N such as 2/5, or slurm"),
        (["--share", "slurm"], "--share slurm: this is no task of a Slurm job array: submit it with --array=1-N"),
        (["--annotations", "gone"], "--annotations gone: no such file or folder: give where"),
        (["--csv", "list.csv"], "--csv list.csv: ucf101 has official lists, --annotations; leave it out"),
        (["--test-fraction", "2"], "--test-fraction 2.0: expected less than 1"),
        (["--annotations", "."], "has no official list: expected"),
        (["--annotations", "."], "; give --annotations to the folder that holds them, or to the file"),
    ],
)
def test_mistakes_are_one_line_and_2(
    root: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ON_SLURM:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(root.parent)
    assert main(arguments("ucf101", root, *more)) == 2
    err = capsys.readouterr().err
    assert message.replace(" gone", f" {root.parent / 'gone'}") in err.replace(" gone", f" {root.parent / 'gone'}")
    assert len(err.splitlines()) == 1


def test_errors_name_flags_not_config_keys() -> None:
    said = "data.annotations=null: x has no list: set data.annotations to it, or data.require=[video,audio]"
    assert in_flags(said) == "x has no list: give --annotations to it, or --require video audio"
    assert in_flags("data=folder needs clips: set data.root=DIR") == "folder needs clips: give --root DIR"


def test_no_root_and_no_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["esc50"]) == 2
    assert capsys.readouterr().err.startswith("error: --root is not set: esc50 expects audio/")
    with pytest.raises(SystemExit, match="2"):
        main(["ucf102"])


def test_what_fails_on_the_way_is_1(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in root.rglob("*.avi"):
        file.write_bytes(b"")
    assert main(arguments("ucf101", root)) == 1
    assert "none of the 18 files listed" in capsys.readouterr().err


def test_own_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write_clip(tmp_path / "good.mp4", times_s=even_times_s(25, 25), waveform=tone(440, 1, 44100))
    (tmp_path / "own" / "a").mkdir(parents=True)
    for name in ("1.mp4", "2.mp4"):
        shutil.copy(clip, tmp_path / "own" / "a" / name)
    (tmp_path / "own" / "a" / "empty.mp4").touch()
    assert main(arguments("folder", tmp_path / "own")) == 0
    out = capsys.readouterr().out
    assert "2 clips of 1 classes (1 test, 1 train)" in out
    assert "1 rejected\n       1  empty file (0 bytes)" in out


def test_shares_find_what_one_call_finds(root: Path, probed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    alone = build_manifest(
        root.parent / "alone", root=root, official="ucf101", require=("video",), jobs=1, progress=False
    )
    assert len(probed) == 18
    probed.clear()
    for share in ("3/3", "1/3", "2/3"):
        assert main(arguments("ucf101", root, "--share", share)) == 0
    directory = directory_of(root)
    assert sorted(probed) == sorted(alone.clips["path"])
    assert len(list(directory.glob("probed.*-of-3.parquet"))) == 3
    assert not (directory / "manifest.json").exists()
    probed.clear()
    assert main(arguments("ucf101", root, "--share", "2/3")) == 0
    assert probed == []
    assert "probed 0 files" in capsys.readouterr().out.splitlines()[-2]
    assert main(arguments("ucf101", root)) == 0
    assert probed == []
    assert list(directory.glob("probed.*-of-3.parquet")) == []
    pd.testing.assert_frame_equal(read_manifest(directory).clips, alone.clips)
    assert main(arguments("ucf101", root, "--share", "1/2")) == 0
    assert probed == [], "another share knows what was gathered"
    assert main(arguments("ucf101", root)) == 0
    assert probed == []


def test_a_missing_share_is_probed_by_the_last_call(root: Path, probed: list[str]) -> None:
    assert main(arguments("ucf101", root, "--share", "1/2")) == 0
    first = set(probed)
    assert 0 < len(first) < 18
    probed.clear()
    assert main(arguments("ucf101", root)) == 0
    assert len(probed) == 18 - len(first)
    assert first.isdisjoint(probed)


@pytest.mark.parametrize(
    ("text", "environment", "share"),
    [
        ("2/5", {}, (2, 5)),
        ("1/1", {}, (1, 1)),
        ("slurm", ON_SLURM, (3, 5)),
        ("slurm", {**ON_SLURM, "SLURM_ARRAY_TASK_MIN": "0"}, (4, 5)),
    ],
)
def test_which_share(text: str, environment: dict[str, str], share: tuple[int, int]) -> None:
    assert parse_share(text, environment) == share


def test_a_job_uses_the_cores_that_it_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    here = num_usable_cores()
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert num_usable_cores() == 1
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4096")
    assert num_usable_cores() == here


def test_an_array_with_gaps_has_no_shares() -> None:
    with pytest.raises(ValueError, match="share 9 of 5 does not exist: number the tasks without gaps, --array=1-N"):
        parse_share("slurm", {**ON_SLURM, "SLURM_ARRAY_TASK_ID": "9"})


def _start(root: Path, *more: str, slowly_s: float, save_every_s: float) -> subprocess.Popen[str]:
    """Prepare in a separate process that is slow on each file."""
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "from crisscross.data import probe_files as probing\n"
        "from crisscross.data.prepare import __main__ as prepare\n"
        "original = probing.probe_one\n"
        "def slow(*arguments):\n"
        f"    with open({str(root.parent / 'begun')!r}, 'a') as begun:\n"
        "        begun.write('.')\n"
        f"    time.sleep({slowly_s})\n"
        "    return original(*arguments)\n"
        "probing.probe_one = slow\n"
        f"probing.SAVE_EVERY_S, probing.FEW_FILES = {save_every_s}, 10**6\n"
        "sys.exit(prepare.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, *arguments("ucf101", root, *more)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("share", [[], ["--share", "1/1"]])
def test_it_continues_after_a_kill(root: Path, probed: list[str], share: list[str]) -> None:
    process = _start(root, *share, slowly_s=0.2, save_every_s=0.0)
    waited = time.monotonic()
    while not list(root.parent.glob("manifests/*/probed*.parquet")):
        assert time.monotonic() - waited < 60
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert not list(root.parent.glob("manifests/*/manifest.json"))
    assert main(arguments("ucf101", root)) == 0
    assert 0 < len(probed) < 18
    assert len(read_manifest(directory_of(root)).clips) == 18


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_keeps_all_findings(root: Path, probed: list[str], number: signal.Signals, code: int) -> None:
    process = _start(root, slowly_s=0.5, save_every_s=1e9)
    waited = time.monotonic()
    begun = root.parent / "begun"
    while not begun.exists() or begun.stat().st_size < 2:  # then the first file's findings are kept
        assert time.monotonic() - waited < 60
        time.sleep(0.05)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "stopped: all findings are kept, the same command continues" in err.splitlines()
    assert "Traceback" not in err
    assert main(arguments("ucf101", root)) == 0
    assert 0 < len(probed) < 18


@pytest.mark.slow
def test_shares_at_the_same_time(root: Path) -> None:
    processes = [_start(root, "--share", f"{k}/2", slowly_s=0, save_every_s=60) for k in (1, 2)]
    for process in processes:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        assert "a call without --share gathers all shares" in out
    last = _start(root, slowly_s=0, save_every_s=60)
    out, err = last.communicate(timeout=600)
    assert last.returncode == 0, err
    assert "probed 0 files" in out


class TestCopies:
    def test_a_compact_copy_in_shares(self, tmp_path, capsys):
        root = tmp_path / "clips"
        for path in ("train/a/1.mp4", "train/b/2.mp4", "test/a/3.mp4", "test/b/4.mp4"):
            write_clip(root / path, times_s=even_times_s(9, 25), waveform=tone(440, 0.5, 44100))
        target = tmp_path / "copy"
        asked = ["folder", "--root", str(root), "--manifest-root", str(tmp_path / "m"), "--jobs", "1"]
        copies = ["--compact", str(target), "--short-side", "32"]
        assert main([*asked, *copies, "--share", "1/2"]) == 1
        assert "--share: the manifest is not built yet: run it without --share" in capsys.readouterr().err
        assert main(asked) == 0
        assert main([*asked, *copies, "--share", "1/2"]) == 0
        assert "2 of 4 clips copied to" in capsys.readouterr().out
        assert not (target / "clips.csv").exists()
        assert main([*asked, *copies, "--share", "2/2"]) == 0
        assert main([*asked, *copies]) == 0
        out = capsys.readouterr().out
        assert f"to use it: data=folder data.csv={target / 'clips.csv'}" in out

    def test_mistakes_are_one_line(self, tmp_path, capsys):
        asked = ["folder", "--root", str(tmp_path), "--manifest-root", str(tmp_path / "m")]
        for wrong, text in (
            (["--compact", "x", "--short-side", "31"], "error: compact copy: got --short-side 31; allowed: even"),
            (["--short-side", "64"], "error: --short-side: only a compact copy has this setting: add --compact DIR"),
        ):
            assert main([*asked, *wrong]) == 2
            assert capsys.readouterr().err.startswith(text)

"""Staging: the same bytes on node-local disk, copied once, after kills and signals, and from broken tar files."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from crisscross.config.base import parse
from crisscross.config.data import DataSettings
from crisscross.data import staging
from crisscross.data.catalog import open_manifest
from crisscross.data.manifest import Manifest, read_manifest
from crisscross.data.staging import local_disk, stage_in
from crisscross.run.identity import identity
from crisscross.run.run_dir import RunDirectory
from crisscross.run_experiment import run as run_experiment
from crisscross.utils.signals import SHUTDOWN, Preempted
from tests.processes import kill_when, run_at_once, run_ranks
from tests.requirements import missing
from tests.support import assert_same_state, final_state, history, tiny_config
from tests.warm import warm_python


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("staging")


@pytest.fixture(scope="module")
def config(folder: Path) -> dict:
    return tiny_config("pretrain", folder, "training.epochs=2")


@pytest.fixture
def manifest(config: dict) -> Manifest:
    return open_manifest(parse(DataSettings, config["data"]))


@pytest.fixture(autouse=True)
def _no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SHUTDOWN, "signal_name", None)
    for name in ("SLURM_TMPDIR", "SLURM_JOB_ID", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


def settings(config: dict, stage: object, **others: object) -> DataSettings:
    return parse(DataSettings, {**config["data"], "stage": str(stage), **others})


def clips(manifest: Manifest) -> dict[str, bytes]:
    return {path: (manifest.root / path).read_bytes() for path in manifest.clips["path"]}


def tar(*arguments: object) -> None:
    subprocess.run(["tar", *map(str, arguments)], check=True)


def packed(manifest: Manifest, shards: Path) -> Path:
    """Pack the clips of each class as crisscross/data/README.md does those of a dataset."""
    shards.mkdir()
    for folder in sorted({str(Path(path).parent) for path in manifest.clips["path"]}):
        tar("-chf", shards / f"{folder.replace('/', '-')}.tar", "-C", manifest.root, f"./{folder}")
    return shards


def name_in(packed: Path) -> str:
    """Return the path of the first clip of a tar file."""
    found = subprocess.run(["tar", "-tf", str(packed)], capture_output=True, text=True, check=True).stdout
    return next(name for name in found.splitlines() if name.endswith(".mp4")).removeprefix("./")


class TestWhereTo:
    def test_off_by_default(self, config: dict, manifest: Manifest) -> None:
        assert stage_in(manifest, parse(DataSettings, config["data"])) is manifest
        assert stage_in(manifest, settings(config, "off")) is manifest

    def test_auto_is_the_disk_that_slurm_gives(self, config, manifest, tmp_path, monkeypatch, caplog) -> None:
        caplog.set_level(logging.INFO)
        assert stage_in(manifest, settings(config, "auto")) is manifest
        assert "data.stage=auto: no $SLURM_TMPDIR here, clips are read from" in caplog.text
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        assert local_disk("auto") is None  # no job of Slurm's: everybody's /tmp
        monkeypatch.setenv("SLURM_JOB_ID", "1")
        assert local_disk("auto") == tmp_path
        monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "gone"))
        assert local_disk("auto") is None
        monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
        here = stage_in(manifest, settings(config, "auto"))
        assert here.root.is_relative_to(tmp_path)
        assert clips(here) == clips(manifest)
        assert here.data_hash == manifest.data_hash

    def test_a_folder_may_begin_with_a_variable_that_the_job_has(self, monkeypatch, tmp_path) -> None:
        monkeypatch.setenv("NODE_DISK", str(tmp_path))
        assert local_disk("$NODE_DISK/x") == tmp_path / "x"
        with pytest.raises(ValueError, match=r"data.stage=\$GONE_DISK/x: \$GONE_DISK is not set in this job: give"):
            local_disk("$GONE_DISK/x")

    def test_it_is_not_part_of_the_identity(self, config, tmp_path) -> None:
        other = {**config, "data": {**config["data"], "stage": str(tmp_path), "shards": "/x"}}
        assert identity("pretrain", other) == identity("pretrain", config)

    def test_mistakes_are_one_line(self, config, manifest, tmp_path) -> None:
        with pytest.raises(ValueError, match=r"data.stage=local: expected off, auto .* or an absolute folder"):
            settings(config, "local")
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match=r"data.stage: cannot write .*/file \(.*\): give a folder on the node's own"):
            stage_in(manifest, settings(config, tmp_path / "file"))

    def test_a_folder_of_another_user_is_not_used(self, config, manifest, tmp_path) -> None:
        if os.getuid() != 0:
            missing("only root can make a folder that belongs to somebody else")
        theirs = tmp_path / f"crisscross-clips-{os.getuid()}"
        theirs.mkdir()
        os.chown(theirs, 12345, 12345)
        with pytest.raises(ValueError, match=r"data.stage: .* belongs to somebody else: give another folder"):
            stage_in(manifest, settings(config, tmp_path))


class TestWhatIsStaged:
    def test_the_clips_of_the_splits_that_are_needed_and_then_the_others(self, config, manifest, tmp_path) -> None:
        here = stage_in(manifest, settings(config, tmp_path), splits=["train"])
        there = {path.relative_to(here.root).as_posix() for path in here.root.rglob("*.mp4")}
        assert there == set(manifest.split("train")["path"])
        reported = []
        stage_in(manifest, settings(config, tmp_path), report=reported.append)
        assert clips(here) == clips(manifest)
        assert reported[0].startswith("staging clips to the node: 1 of 6, ")
        assert (tmp_path / f"crisscross-clips-{os.getuid()}").stat().st_mode & 0o777 == 0o700

    def test_complete_clips_stay_and_others_are_staged_again(self, config, manifest, tmp_path) -> None:
        here = stage_in(manifest, settings(config, tmp_path))
        cut, old, gone, *_ = (here.root / path for path in manifest.clips["path"])
        cut.write_bytes(cut.read_bytes()[:100])
        os.utime(old, (1, 1))
        gone.unlink()
        before = {path: path.stat().st_ino for path in here.root.rglob("*.mp4")}
        again = stage_in(manifest, settings(config, tmp_path))
        assert clips(again) == clips(manifest)
        same = {path for path, inode in before.items() if path.stat().st_ino == inode}
        assert same == set(before) - {cut, old}

    def test_a_clip_that_has_changed_is_named(self, config, manifest, tmp_path) -> None:
        path = manifest.root / manifest.clips["path"][0]
        content, status = path.read_bytes(), path.stat()
        path.write_bytes(content + b"x")
        try:
            with pytest.raises(ValueError, match=rf"{path} has {len(content) + 1} bytes, expected {len(content)}: it"):
                stage_in(manifest, settings(config, tmp_path))
        finally:
            path.write_bytes(content)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def test_from_tar_files(self, config, manifest, tmp_path, monkeypatch) -> None:
        shards = packed(manifest, tmp_path / "shards")
        monkeypatch.setattr(staging.shutil, "copyfile", None)  # nothing is copied one by one
        here = stage_in(manifest, settings(config, tmp_path / "disk", shards=str(shards)))
        assert clips(here) == clips(manifest)
        assert {path.name for path in here.root.iterdir()} == {"train", "test"}
        stale = [clip for clip in staging._needed(manifest, None) if not clip.is_at(here.root)]
        assert stale == []

    def test_from_tar_files_in_the_root(self, config, manifest, tmp_path, monkeypatch) -> None:
        root = shutil.copytree(manifest.root, tmp_path / "copy", symlinks=True)  # with the times of the clips
        packed(manifest, root / "shards")
        monkeypatch.setattr(staging.shutil, "copyfile", None)
        here = stage_in(replace(manifest, root=root), settings(config, tmp_path / "disk"))
        assert clips(here) == clips(manifest)

    def test_tar_files_that_are_broken_or_old_or_lack_clips(self, config, manifest, tmp_path, caplog) -> None:
        shards = packed(manifest, tmp_path / "shards")
        cut, garbage, old, missing, *_ = sorted(shards.glob("*.tar"))
        cut.write_bytes(cut.read_bytes()[:1500])  # in the middle of its first clip
        garbage.write_bytes(b"x" * garbage.stat().st_size)
        first = manifest.root / name_in(old)
        touched = tmp_path / "touched" / name_in(old)
        touched.parent.mkdir(parents=True)
        touched.write_bytes(first.read_bytes()[::-1])
        os.utime(touched, (1, 1))
        tar("-cf", old, "-C", tmp_path / "touched", name_in(old))
        shorter = tmp_path / "shorter" / name_in(missing)
        shorter.parent.mkdir(parents=True)
        shorter.write_bytes(b"short")
        os.utime(shorter, ns=((manifest.root / name_in(missing)).stat().st_mtime_ns,) * 2)
        tar("-cf", missing, "-C", tmp_path / "shorter", name_in(missing))
        here = stage_in(manifest, settings(config, tmp_path / "disk", shards=str(shards)))
        assert clips(here) == clips(manifest)
        for path in (cut, garbage):
            assert f"{path} cannot be read to its end" in caplog.text

    def test_a_tar_file_cannot_write_elsewhere(self, config, manifest, tmp_path) -> None:
        path = manifest.clips["path"][0]
        (tmp_path / "shards").mkdir()
        tar("-cPf", tmp_path / "shards" / "evil.tar", "--transform", "s,^,../../,", "-C", manifest.root, path)
        link = tmp_path / "links" / path
        link.parent.mkdir(parents=True)
        link.symlink_to("/etc/passwd")
        tar("-cf", tmp_path / "shards" / "link.tar", "-C", tmp_path / "links", path)
        here = stage_in(manifest, settings(config, tmp_path / "disk", shards=str(tmp_path / "shards")))
        assert clips(here) == clips(manifest)
        assert not (here.root / path).is_symlink()
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["disk", "links", "shards"]

    def test_no_room(self, config, manifest, small_disk, caplog) -> None:
        disk = small_disk("200k")
        with pytest.raises(
            OSError, match=r"data.stage: 18 clips need 0.\d MB in .*, which has 0.\d MB free: free space"
        ):
            stage_in(manifest, settings(config, disk))

    def test_auto_without_enough_space(self, config, manifest, small_disk, caplog, monkeypatch) -> None:
        monkeypatch.setenv("SLURM_TMPDIR", str(small_disk("200k")))
        assert stage_in(manifest, settings(config, "auto")) is manifest
        assert "data.stage=auto: clips are read from" in caplog.text

    def test_a_disk_that_others_fill_during_staging(self, config, manifest, small_disk, monkeypatch) -> None:
        disk = small_disk("200k")
        monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: _Plenty)
        with pytest.raises(OSError, match=r"data.stage: .* is full \(No space left on device\): free space, stage a"):
            stage_in(manifest, settings(config, disk))


class _Plenty:
    free = 10**12


class TestSeveral:
    def test_a_signal_ends_it_between_two_clips(self, config, manifest, tmp_path, monkeypatch) -> None:
        original = staging._put

        def failing(*arguments: object, **others: object) -> None:
            original(*arguments, **others)
            if len(list(tmp_path.rglob("*/*/*.mp4"))) >= 5:  # several threads copy clips
                SHUTDOWN.propagate("SIGTERM")

        monkeypatch.setattr(staging, "_put", failing)
        with pytest.raises(Preempted, match="SIGTERM"):
            stage_in(manifest, settings(config, tmp_path))
        monkeypatch.setattr(SHUTDOWN, "signal_name", None)
        monkeypatch.setattr(staging, "_put", original)
        there = list(tmp_path.rglob("*/*/*.mp4"))
        assert 1 <= len(there) < len(manifest.clips)
        assert clips(stage_in(manifest, settings(config, tmp_path))) == clips(manifest)

    def test_a_signal_reaches_a_waiting_process(self, config, manifest, tmp_path) -> None:
        here = stage_in(manifest, settings(config, tmp_path))
        reported = []

        def report(text: str) -> None:
            reported.append(text)
            SHUTDOWN.propagate("SIGTERM")

        holds = (
            "import sys; from crisscross.utils.files import file_lock\n"
            "with file_lock(sys.argv[1]): print(); sys.stdin.read()"
        )
        command = [sys.executable, "-uc", holds, str(here.root.with_suffix(".lock"))]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert holder.stdout.readline() == b"\n"
        try:
            with pytest.raises(Preempted):
                stage_in(manifest, settings(config, tmp_path), report=report)
        finally:
            holder.kill()
            holder.communicate()
        assert reported == ["waiting for another process to stage clips to this node"]

    def test_three_at_once_after_a_kill(self, config, manifest, tmp_path) -> None:
        code = (
            "import sys, time; from crisscross.data import staging\n"
            "from crisscross.data.manifest import read_manifest\n"
            "from crisscross.config.data import DataSettings\n"
            "original = staging._put\n"
            "def slow(*arguments, **others):\n"
            "    time.sleep(0.1)\n"
            "    original(*arguments, **others)\n"
            "staging._put, staging.COPY_THREADS = slow, 1\n"
            "data = DataSettings(name='demo', kind='toy', root=None, train_split='train', test_split='test',"
            " fingerprint=None, stage=sys.argv[2])\n"
            "print(len(staging.stage_in(read_manifest(sys.argv[1]), data).clips))\n"
        )
        command = [sys.executable, "-c", code, str(manifest.directory), str(tmp_path)]
        kill_when(command, lambda: len(list(tmp_path.rglob("*/*/*.mp4"))) >= 3)
        there = {path: path.stat().st_ino for path in tmp_path.rglob("*/*/*.mp4")}
        assert 3 <= len(there) < len(manifest.clips)
        run_at_once(command, num=3)
        assert {path: path.stat().st_ino for path in there} == there
        here = stage_in(manifest, settings(config, tmp_path))
        assert clips(here) == clips(manifest)
        assert not list(here.root.glob(".incoming/*"))


class TestTraining:
    def test_it_is_the_same_to_the_last_bit(self, config, folder, tmp_path, manifest) -> None:
        plain = RunDirectory.create("pretrain", {**config, "runs_root": str(folder / "plain")})
        assert run_experiment(plain)
        data = {**config["data"], "stage": str(tmp_path)}
        local = RunDirectory.create("pretrain", {**config, "data": data, "runs_root": str(folder / "local")})
        hidden = manifest.root / "train" / manifest.clips["path"].iloc[-1].split("/")[1]
        stage_in(manifest, settings(config, tmp_path))
        spare = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in hidden.iterdir()}
        for path in spare:  # from now on clips are not read here
            path.write_bytes(b"not a clip")
        try:
            assert run_experiment(local)
        finally:
            for path, (content, mtime_ns) in spare.items():
                path.write_bytes(content)
                os.utime(path, ns=(mtime_ns, mtime_ns))
        assert local.identity == plain.identity
        assert history(local) == history(plain)
        assert_same_state(final_state(local), final_state(plain))

    def test_a_damaged_copy_is_named_by_dataset_and_clip(self, config, folder, tmp_path, manifest) -> None:
        data = {**config["data"], "stage": str(tmp_path)}
        here = stage_in(manifest, settings(config, tmp_path))
        for row in manifest.split("train").itertuples():
            (here.root / row.path).write_bytes(bytes(row.size_bytes))
            os.utime(here.root / row.path, ns=(row.mtime_ns, row.mtime_ns))
        run = RunDirectory.create("pretrain", {**config, "data": data, "runs_root": str(folder / "damaged")})
        with pytest.raises(RuntimeError, match=r"crisscross-clips-\d+/demo-\w+/train/\w+/\w+\.mp4: cannot open"):
            run_experiment(run)

    def test_a_signal_during_staging_leaves_the_run_ready_to_continue(
        self, config, folder, tmp_path, monkeypatch
    ) -> None:
        data = {**config["data"], "stage": str(tmp_path)}
        run = RunDirectory.create("pretrain", {**config, "data": data, "runs_root": str(folder / "interrupted")})
        original = staging._put

        def failing(*arguments: object, **others: object) -> None:
            original(*arguments, **others)
            SHUTDOWN.propagate("SIGTERM")

        monkeypatch.setattr(staging, "_put", failing)
        assert run_experiment(run) is False
        assert run.progress["state"] == "interrupted"
        monkeypatch.undo()
        monkeypatch.setattr(SHUTDOWN, "signal_name", None)
        assert run_experiment(run) is True

    @pytest.mark.slow
    def test_the_ranks_of_a_job_stage_once_and_fail_together(self, config, folder, tmp_path, small_disk) -> None:
        execution = {**config["execution"], "num_devices": 2}
        runs = []
        for name, disk in (("ranks", tmp_path), ("no room", small_disk("200k"))):
            data = {**config["data"], "stage": str(disk)}
            asked = {**config, "data": data, "execution": execution, "runs_root": str(folder / name)}
            run = RunDirectory.create("pretrain", asked)
            ranks = run_ranks([*warm_python(), "-m", "launch.job", str(run.path)], num=2)
            runs.append((run, {code for code, _ in ranks}, "".join(text for _, text in ranks)))
        (run, codes, errors), (_, broken, text) = runs
        assert (codes, run.result is not None) == ({0}, True), errors
        assert " where 12 (" in errors
        assert " where 0 (" in errors
        assert broken == {1}
        assert "data.stage: 12 clips need" in text

    def test_an_evaluation_reads_there_as_well(self, folder, tmp_path, caplog) -> None:
        caplog.set_level(logging.INFO)
        config = tiny_config("downstream", folder)
        data = {**config["data"], "stage": str(tmp_path)}
        results = []
        for name, chosen in (("plain", config["data"]), ("local", data)):
            run = RunDirectory.create("downstream", {**config, "data": chosen, "runs_root": str(folder / f"e-{name}")})
            assert run_experiment(run)
            results.append(run.result["metrics"])
        assert results[0] == results[1]
        assert "18 (" in caplog.text
        assert read_manifest(open_manifest(parse(DataSettings, data)).directory).root != tmp_path

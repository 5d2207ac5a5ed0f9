"""Clips on the node's own disk: the same bytes, brought once, after kills and signals and from broken shards."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crisscross.config.base import parse
from crisscross.config.data import DataSettings
from crisscross.data import staging
from crisscross.data.catalog import open_manifest
from crisscross.data.manifest import Manifest, read_manifest
from crisscross.data.shards import pack
from crisscross.data.staging import local_disk, staged
from crisscross.run.identity import identity
from crisscross.run.run_dir import RunDirectory
from crisscross.run_experiment import run as run_experiment
from crisscross.utils.signals import INTERRUPTION, Preempted
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
    monkeypatch.setattr(INTERRUPTION, "signal_name", None)
    for name in ("SLURM_TMPDIR", "SLURM_JOB_ID", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


def settings(config: dict, stage: object, **others: object) -> DataSettings:
    return parse(DataSettings, {**config["data"], "stage": str(stage), **others})


def clips(manifest: Manifest) -> dict[str, bytes]:
    return {path: (manifest.root / path).read_bytes() for path in manifest.clips["path"]}


class TestWhereTo:
    def test_off_by_default(self, config: dict, manifest: Manifest) -> None:
        assert staged(manifest, parse(DataSettings, config["data"])) is manifest
        assert staged(manifest, settings(config, "off")) is manifest

    def test_auto_is_the_disk_that_slurm_gives(self, config, manifest, tmp_path, monkeypatch, caplog) -> None:
        caplog.set_level(logging.INFO)
        assert staged(manifest, settings(config, "auto")) is manifest
        assert "data.stage=auto: no $SLURM_TMPDIR here, clips are read from" in caplog.text
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        assert local_disk("auto") is None  # no job of Slurm's: everybody's /tmp
        monkeypatch.setenv("SLURM_JOB_ID", "1")
        assert local_disk("auto") == tmp_path
        monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "gone"))
        assert local_disk("auto") is None
        monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
        here = staged(manifest, settings(config, "auto"))
        assert here.root.is_relative_to(tmp_path)
        assert clips(here) == clips(manifest)
        assert here.fingerprint == manifest.fingerprint

    def test_a_folder_may_begin_with_a_variable_that_the_job_has(self, monkeypatch, tmp_path) -> None:
        monkeypatch.setenv("NODE_DISK", str(tmp_path))
        assert local_disk("$NODE_DISK/x") == tmp_path / "x"
        with pytest.raises(ValueError, match=r"data.stage=\$GONE_DISK/x: \$GONE_DISK is not set in this job: give"):
            local_disk("$GONE_DISK/x")

    def test_it_is_no_part_of_what_an_experiment_is(self, config, tmp_path) -> None:
        other = {**config, "data": {**config["data"], "stage": str(tmp_path), "shards": "/x"}}
        assert identity("pretrain", other) == identity("pretrain", config)

    def test_mistakes_are_one_line(self, config, manifest, tmp_path) -> None:
        with pytest.raises(ValueError, match=r"data.stage=local: expected off, auto .* or an absolute folder"):
            settings(config, "local")
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match=r"data.stage: cannot write .*/file \(.*\): give a folder on the node's own"):
            staged(manifest, settings(config, tmp_path / "file"))

    def test_somebody_elses_folder_is_not_used(self, config, manifest, tmp_path) -> None:
        if os.getuid() != 0:
            missing("only root can make a folder that belongs to somebody else")
        theirs = tmp_path / f"crisscross-clips-{os.getuid()}"
        theirs.mkdir()
        os.chown(theirs, 12345, 12345)
        with pytest.raises(ValueError, match=r"data.stage: .* belongs to somebody else: give another folder"):
            staged(manifest, settings(config, tmp_path))


class TestWhatIsBrought:
    def test_the_clips_of_the_splits_that_are_needed_and_then_the_others(self, config, manifest, tmp_path) -> None:
        here = staged(manifest, settings(config, tmp_path), splits=["train"])
        there = {path.relative_to(here.root).as_posix() for path in here.root.rglob("*.mp4")}
        assert there == set(manifest.split("train")["path"])
        told = []
        staged(manifest, settings(config, tmp_path), report=told.append)
        assert clips(here) == clips(manifest)
        assert told[0].startswith("bringing clips to the node: 1 of 6, ")
        assert (tmp_path / f"crisscross-clips-{os.getuid()}").stat().st_mode & 0o777 == 0o700

    def test_what_is_there_stays_and_what_is_not_whole_is_brought_again(self, config, manifest, tmp_path) -> None:
        here = staged(manifest, settings(config, tmp_path))
        cut, old, gone, *_ = (here.root / path for path in manifest.clips["path"])
        cut.write_bytes(cut.read_bytes()[:100])
        os.utime(old, (1, 1))
        gone.unlink()
        before = {path: path.stat().st_ino for path in here.root.rglob("*.mp4")}
        again = staged(manifest, settings(config, tmp_path))
        assert clips(again) == clips(manifest)
        same = {path for path, inode in before.items() if path.stat().st_ino == inode}
        assert same == set(before) - {cut, old}

    def test_a_clip_that_has_changed_is_named(self, config, manifest, tmp_path) -> None:
        path = manifest.root / manifest.clips["path"][0]
        content = path.read_bytes()
        path.write_bytes(content + b"x")
        try:
            with pytest.raises(ValueError, match=rf"{path} has {len(content) + 1} bytes, expected {len(content)}: it"):
                staged(manifest, settings(config, tmp_path))
        finally:
            path.write_bytes(content)

    def test_from_shards(self, config, manifest, tmp_path, monkeypatch) -> None:
        packed = pack(
            manifest.root, tmp_path / "shards", paths=manifest.clips["path"], shard_bytes=50_000, progress=False
        )
        assert packed.num_shards > 2
        monkeypatch.setattr(staging.shutil, "copyfile", None)  # nothing is copied one by one
        here = staged(manifest, settings(config, tmp_path / "disk", shards=str(packed.target)))
        assert clips(here) == clips(manifest)

    def test_shards_that_are_broken_or_old_are_passed_over(self, config, manifest, tmp_path, caplog) -> None:
        pack(manifest.root, tmp_path / "shards", paths=manifest.clips["path"], shard_bytes=50_000, progress=False)
        missing, cut, garbage, old, *_ = sorted((tmp_path / "shards").glob("*.tar"))
        missing.unlink()
        cut.write_bytes(cut.read_bytes()[:-10])
        garbage.write_bytes(b"x" * garbage.stat().st_size)
        old.write_bytes(old.read_bytes().replace(b"mdat", b"mdot"))
        os.utime(old, (1, 1))  # packed before its clips were made
        here = staged(manifest, settings(config, tmp_path / "disk", shards=str(tmp_path / "shards")))
        assert clips(here) == clips(manifest)
        for name in (missing.name, cut.name, garbage.name):
            assert f"{name} is passed over" in caplog.text

    def test_no_room(self, config, manifest, small_disk, caplog) -> None:
        disk = small_disk("200k")
        with pytest.raises(
            OSError, match=r"data.stage: 18 clips need 0.\d MB in .*, which has 0.\d MB free: free space"
        ):
            staged(manifest, settings(config, disk))

    def test_no_room_where_nobody_insists(self, config, manifest, small_disk, caplog, monkeypatch) -> None:
        monkeypatch.setenv("SLURM_TMPDIR", str(small_disk("200k")))
        assert staged(manifest, settings(config, "auto")) is manifest
        assert "data.stage=auto: clips are read from" in caplog.text

    def test_a_disk_that_others_fill_meanwhile(self, config, manifest, small_disk, monkeypatch) -> None:
        disk = small_disk("200k")
        monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: _Plenty)
        with pytest.raises(OSError, match=r"data.stage: .* is full \(No space left on device\): free space, stage a"):
            staged(manifest, settings(config, disk))


class _Plenty:
    free = 10**12


class TestSeveral:
    def test_a_signal_ends_it_between_two_clips(self, config, manifest, tmp_path, monkeypatch) -> None:
        original = staging._put

        def struck(*arguments: object, **others: object) -> None:
            original(*arguments, **others)
            if len(list(tmp_path.rglob("*/*/*.mp4"))) >= 5:  # several threads bring clips
                INTERRUPTION.note("SIGTERM")

        monkeypatch.setattr(staging, "_put", struck)
        with pytest.raises(Preempted, match="SIGTERM"):
            staged(manifest, settings(config, tmp_path))
        monkeypatch.setattr(INTERRUPTION, "signal_name", None)
        monkeypatch.setattr(staging, "_put", original)
        there = list(tmp_path.rglob("*/*/*.mp4"))
        assert 1 <= len(there) < len(manifest.clips)
        assert clips(staged(manifest, settings(config, tmp_path))) == clips(manifest)

    def test_a_signal_reaches_one_that_waits(self, config, manifest, tmp_path) -> None:
        here = staged(manifest, settings(config, tmp_path))
        told = []

        def report(text: str) -> None:
            told.append(text)
            INTERRUPTION.note("SIGTERM")

        holds = (
            "import sys; from crisscross.utils.files import file_lock\n"
            "with file_lock(sys.argv[1]): print(); sys.stdin.read()"
        )
        command = [sys.executable, "-uc", holds, str(here.root.with_suffix(".lock"))]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert holder.stdout.readline() == b"\n"
        try:
            with pytest.raises(Preempted):
                staged(manifest, settings(config, tmp_path), report=report)
        finally:
            holder.kill()
            holder.communicate()
        assert told == ["waiting for clips that another process brings to this node"]

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
            "print(len(staging.staged(read_manifest(sys.argv[1]), data).clips))\n"
        )
        command = [sys.executable, "-c", code, str(manifest.directory), str(tmp_path)]
        kill_when(command, lambda: len(list(tmp_path.rglob("*/*/*.mp4"))) >= 3)
        there = {path: path.stat().st_ino for path in tmp_path.rglob("*/*/*.mp4")}
        assert 3 <= len(there) < len(manifest.clips)
        run_at_once(command, num=3)
        assert {path: path.stat().st_ino for path in there} == there
        here = staged(manifest, settings(config, tmp_path))
        assert clips(here) == clips(manifest)
        assert not list(here.root.glob(".incoming/*"))


class TestTraining:
    def test_it_is_the_same_to_the_last_bit(self, config, folder, tmp_path, manifest) -> None:
        plain = RunDirectory.create("pretrain", {**config, "runs_root": str(folder / "plain")})
        assert run_experiment(plain)
        data = {**config["data"], "stage": str(tmp_path)}
        local = RunDirectory.create("pretrain", {**config, "data": data, "runs_root": str(folder / "local")})
        hidden = manifest.root / "train" / manifest.clips["path"].iloc[-1].split("/")[1]
        staged(manifest, settings(config, tmp_path))
        spare = {path: path.read_bytes() for path in hidden.iterdir()}
        for path in spare:  # what is read now is not read here
            path.write_bytes(b"not a clip")
        try:
            assert run_experiment(local)
        finally:
            for path, content in spare.items():
                path.write_bytes(content)
        assert local.identity == plain.identity
        assert history(local) == history(plain)
        assert_same_state(final_state(local), final_state(plain))

    def test_a_damaged_copy_is_named_by_dataset_and_clip(self, config, folder, tmp_path, manifest) -> None:
        data = {**config["data"], "stage": str(tmp_path)}
        here = staged(manifest, settings(config, tmp_path))
        for row in manifest.split("train").itertuples():
            (here.root / row.path).write_bytes(bytes(row.size_bytes))
            os.utime(here.root / row.path, ns=(row.mtime_ns, row.mtime_ns))
        run = RunDirectory.create("pretrain", {**config, "data": data, "runs_root": str(folder / "damaged")})
        with pytest.raises(RuntimeError, match=r"crisscross-clips-\d+/demo-\w+/train/\w+/\w+\.mp4: cannot open"):
            run_experiment(run)

    def test_a_signal_while_clips_are_brought_leaves_the_run_ready_to_go_on(
        self, config, folder, tmp_path, monkeypatch
    ) -> None:
        data = {**config["data"], "stage": str(tmp_path)}
        run = RunDirectory.create("pretrain", {**config, "data": data, "runs_root": str(folder / "interrupted")})
        original = staging._put

        def struck(*arguments: object, **others: object) -> None:
            original(*arguments, **others)
            INTERRUPTION.note("SIGTERM")

        monkeypatch.setattr(staging, "_put", struck)
        assert run_experiment(run) is False
        assert run.progress["state"] == "interrupted"
        monkeypatch.undo()
        monkeypatch.setattr(INTERRUPTION, "signal_name", None)
        assert run_experiment(run) is True

    @pytest.mark.slow
    def test_the_ranks_of_a_job_bring_them_once_and_fail_together(self, config, folder, tmp_path, small_disk) -> None:
        execution = {**config["execution"], "num_devices": 2}
        runs = []
        for name, disk in (("ranks", tmp_path), ("no room", small_disk("200k"))):
            data = {**config["data"], "stage": str(disk)}
            asked = {**config, "data": data, "execution": execution, "runs_root": str(folder / name)}
            run = RunDirectory.create("pretrain", asked)
            ranks = run_ranks([*warm_python(), "-m", "launch.job", str(run.path)], num=2)
            runs.append((run, {code for code, _ in ranks}, "".join(text for _, text in ranks)))
        (run, codes, errors), (_, broken, told) = runs
        assert (codes, run.result is not None) == ({0}, True), errors
        assert " where 12 (" in errors
        assert " where 0 (" in errors
        assert broken == {1}
        assert "data.stage: 12 clips need" in told

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

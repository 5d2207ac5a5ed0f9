"""Code snapshots, on real git checkouts and with real child processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crisscross import run_experiment as experiment
from crisscross.run.run_dir import RunDirectory
from crisscross.utils import git as code_version
from crisscross.utils.files import read_json
from crisscross.utils.git import CODE, CODE_ROOT, git_state
from launch.slurm import snapshot as snapshot_module
from launch.slurm.snapshot import Snapshot, snapshot_environment, take_snapshot
from tests.launch.support import config_of

SAY = """
import subprocess, sys
from crisscross import WORD
print(WORD, flush=True)
if len(sys.argv) == 1:  # a child, such as the sync process
    subprocess.run([sys.executable, "-m", "crisscross.say", "child"], check=True)
"""


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    return subprocess.run(
        ["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project that is no checkout."""
    source = tmp_path / "source"
    write(source / "crisscross" / "__init__.py", "WORD = 'old'\n")
    write(source / "crisscross" / "say.py", SAY)
    write(source / "experiments" / "conf" / "pretrain.yaml", "seed: 0\n")
    write(source / "launch" / "run.sh", "#!/bin/sh\n").chmod(0o755)
    write(source / "analysis" / "table.py", "")
    write(source / "pyproject.toml", "[project]\n")
    write(source / "README.md", "read me\n")
    return source


@pytest.fixture
def checkout(folder: Path) -> Path:
    """The same as a git checkout, everything committed."""
    write(folder / ".gitignore", "__pycache__/\n*.key\n.env\n/data/\n/runs/\n")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    return folder


def content(folder: Path) -> dict[str, tuple[bool, bytes]]:
    """Return the code in a folder: executable?, content."""
    paths = [path for name in CODE for path in [folder / name, *(folder / name).rglob("*")] if path.is_file()]
    paths = [path for path in paths if "__pycache__" not in path.parts]
    return {str(path.relative_to(folder)): (bool(path.stat().st_mode & 0o100), path.read_bytes()) for path in paths}


def python(snapshot: Snapshot, cwd: Path, *arguments: str) -> str:
    """Return what a Python prints that was started as a job is."""
    variables = {**os.environ, **snapshot_environment(snapshot)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=True).stdout


def test_the_code_is_copied_and_nothing_else(checkout: Path, tmp_path: Path) -> None:
    snapshot = take_snapshot(tmp_path / "runs", source=checkout)
    assert snapshot == Snapshot(
        tmp_path / "runs" / "code" / snapshot.digest, snapshot.digest, git(checkout, "rev-parse", "HEAD"), False
    )
    assert content(snapshot.path) == content(checkout)
    assert {path.name for path in snapshot.path.iterdir()} == {*CODE, "snapshot.json"}
    about = read_json(snapshot.path / "snapshot.json")
    assert about.pop("created") > 0
    assert about == {"snapshot": snapshot.digest, "commit": snapshot.commit, "dirty": False}


def test_a_snapshot_is_private_and_not_for_editing(checkout: Path, tmp_path: Path) -> None:
    write(checkout / "launch" / "new.py", "")
    snapshot = take_snapshot(tmp_path / "runs", source=checkout)
    assert snapshot.path.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in snapshot.path.rglob("*") if path.is_file()}
    assert modes.pop("run.sh") == 0o555
    assert {"say.py", "snapshot.json", "code.diff"} < modes.keys()
    assert set(modes.values()) == {0o444}


def test_a_job_runs_the_code_that_was_there(checkout: Path, tmp_path: Path) -> None:
    write(checkout / "crisscross" / "__init__.py", "WORD = 'uncommitted'\n")
    snapshot = take_snapshot(tmp_path / "runs", source=checkout)
    write(checkout / "crisscross" / "__init__.py", "WORD = 'new'\n")
    for cwd in (checkout, checkout / "crisscross", tmp_path, CODE_ROOT):
        assert python(snapshot, cwd, "-m", "crisscross.say").split() == ["uncommitted", "uncommitted"]


def test_the_real_code_runs_from_its_snapshot(tmp_path: Path) -> None:
    snapshot = take_snapshot(tmp_path / "runs")
    code = """
        import json, crisscross.run_experiment, experiments, analysis, launch.study.graph
        import launch.study.overrides as overrides
        files = [m.__file__ for m in (crisscross, experiments, analysis, launch.study.graph)] + [str(overrides.CONF)]
        print(json.dumps([files, crisscross.run_experiment.environment()["git"]]))
    """
    (tmp_path / "ask.py").write_text("\n".join(line.strip() for line in code.splitlines()))
    files, state = json.loads(python(snapshot, CODE_ROOT, str(tmp_path / "ask.py")))
    assert all(Path(file).is_relative_to(snapshot.path) for file in files)
    known = {"commit": snapshot.commit, "dirty": snapshot.dirty} if snapshot.commit else {}
    assert state == {**known, "snapshot": snapshot.digest}


def test_a_job_keeps_the_diff_of_its_code(checkout: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    run = RunDirectory.create("pretrain", config_of(tmp_path / "runs"))
    kept = run.path / "code.diff"

    def start(root: Path) -> bytes | None:
        experiment._record_changes(run, root)
        code_version._git_state.cache_clear()
        return kept.read_bytes() if kept.is_file() else None

    assert start(checkout) is None
    write(checkout / "crisscross" / "say.py", "# edited\n")
    write(checkout / "launch" / "new.py", "# new\n")
    snapshot = take_snapshot(tmp_path / "runs", source=checkout)
    write(checkout / "launch" / "new.py", "# moved on\n")
    assert start(snapshot.path) == (snapshot.path / "code.diff").read_bytes()
    here = start(checkout)
    assert b"+# edited\n" in here
    assert b"+# moved on\n" in here
    assert caplog.text == ""
    monkeypatch.setattr(code_version, "MAX_DIFF_BYTES", 10)
    assert start(checkout) == b""  # not the one of an earlier start
    assert "uncommitted changes of the code are not recorded: 0.0 MiB, at most" in caplog.text
    git(checkout, "add", "-A")
    git(checkout, "commit", "-qm", "second")
    assert start(checkout) == b""


def test_what_is_not_committed_is_in_it_and_what_is_ignored_is_not(checkout: Path, tmp_path: Path) -> None:
    before = take_snapshot(tmp_path / "runs", source=checkout)
    write(checkout / "crisscross" / "say.py", "# edited\n")
    write(checkout / "crisscross" / "methods" / "new.py", "# new\n")
    write(checkout / "crisscross" / ".env", "TOKEN=1\n")
    write(checkout / "launch" / "secret.key", "1\n")
    write(checkout / "launch" / "__pycache__" / "run.pyc", "1\n")
    (checkout / "analysis" / "table.py").unlink()
    after = take_snapshot(tmp_path / "runs", source=checkout)
    assert after.digest != before.digest
    assert after.dirty
    names = content(after.path).keys()
    assert names - content(before.path).keys() == {"crisscross/methods/new.py"}
    assert content(before.path).keys() - names == {"analysis/table.py"}
    assert (after.path / "crisscross" / "say.py").read_text() == "# edited\n"
    everything = b"".join(path.read_bytes() for path in after.path.rglob("*") if path.is_file())
    assert b"TOKEN" not in everything
    assert b"secret" not in everything


def test_what_is_not_code_changes_nothing(checkout: Path, tmp_path: Path) -> None:
    before = take_snapshot(tmp_path / "runs", source=checkout)
    write(checkout / "README.md", "other\n")
    write(checkout / "tests" / "test_new.py", "")
    assert take_snapshot(tmp_path / "other", source=checkout).dirty is False
    assert take_snapshot(tmp_path / "runs", source=checkout) == before


def test_the_executable_bit_is_part_of_it(checkout: Path, tmp_path: Path) -> None:
    before = take_snapshot(tmp_path / "runs", source=checkout)
    (checkout / "crisscross" / "say.py").chmod(0o755)
    assert take_snapshot(tmp_path / "runs", source=checkout).digest != before.digest


def test_the_diff_on_the_commit_gives_the_snapshot(checkout: Path, tmp_path: Path) -> None:
    write(checkout / "crisscross" / "binary.npy", bytes(range(256)))
    git(checkout, "add", "-A")
    git(checkout, "commit", "-qm", "second")
    for key, setting in {"diff.noprefix": "true", "color.ui": "always", "diff.context": "0"}.items():
        git(checkout, "config", key, setting)
    write(checkout / "crisscross" / "binary.npy", bytes(range(255, -1, -1)))
    write(checkout / "crisscross" / "new" / "Ünt räcked.py", "no newline at the end")
    write(checkout / "crisscross" / "[new].bin", b"\0\1\2")
    write(checkout / "crisscross" / "empty.py", "")
    write(checkout / "launch" / "new.sh", "#!/bin/sh\n").chmod(0o755)
    (checkout / "crisscross" / "say.py").chmod(0o755)
    (checkout / "analysis" / "table.py").unlink()
    write(checkout / "pyproject.toml", "[project]\nname = 'x'\n")
    git(checkout, "add", "pyproject.toml")
    git(checkout, "mv", "experiments/conf/pretrain.yaml", "experiments/conf/moved.yaml")
    write(checkout / "README.md", "not code\n")
    index, status = (checkout / ".git" / "index").read_bytes(), git(checkout, "status", "--porcelain")

    snapshot = take_snapshot(tmp_path / "runs", source=checkout)
    assert (checkout / ".git" / "index").read_bytes() == index
    assert git(checkout, "status", "--porcelain") == status
    assert content(snapshot.path) == content(checkout)

    write(checkout / "crisscross" / "say.py", "# moved on\n")
    git(checkout, "commit", "-qam", "third")
    again = tmp_path / "again"
    git(tmp_path, "clone", "-q", str(checkout), str(again))
    git(again, "checkout", "-q", snapshot.commit)
    git(again, "apply", str(snapshot.path / "code.diff"))
    assert content(again) == content(snapshot.path)
    assert (again / "README.md").read_text() == "read me\n"


def test_the_same_code_is_one_copy(checkout: Path, tmp_path: Path) -> None:
    write(checkout / "launch" / "new.py", "")
    first = take_snapshot(tmp_path / "runs", source=checkout)
    before = (first.path / "snapshot.json").stat()
    assert take_snapshot(tmp_path / "runs", source=checkout) == first
    git(checkout, "add", "-A")
    git(checkout, "commit", "-qm", "what was there already")
    assert take_snapshot(tmp_path / "runs", source=checkout) == first  # its commit and diff still give this code
    assert (first.path / "snapshot.json").stat() == before
    assert [path for path in first.path.parent.iterdir() if path.name != ".lock"] == [first.path]


def test_a_launch_from_a_snapshot_is_of_that_snapshot(checkout: Path, tmp_path: Path) -> None:
    write(checkout / "launch" / "new.py", "")
    first = take_snapshot(checkout / "runs", source=checkout)
    git(checkout, "commit", "-qm", "later", "--allow-empty")
    assert take_snapshot(checkout / "runs", source=first.path) == first
    second = take_snapshot(tmp_path / "runs", source=first.path)
    assert (second.digest, second.commit, second.dirty) == (first.digest, first.commit, True)
    assert (second.path / "code.diff").read_bytes() == (first.path / "code.diff").read_bytes()


@pytest.mark.parametrize("harm", ["file", "content", "snapshot.json", "half a snapshot.json", "code.diff"])
def test_a_snapshot_that_was_damaged_is_put_right(harm: str, checkout: Path, tmp_path: Path) -> None:
    write(checkout / "launch" / "new.py", "")
    snapshot = take_snapshot(tmp_path / "runs", source=checkout)
    names = {"file": "launch/new.py", "content": "crisscross/say.py"}
    path = snapshot.path / names.get(harm, harm.removeprefix("half a "))
    path.chmod(0o600)
    if harm == "content":
        path.write_text("# edited\n")
    elif harm.startswith("half"):
        path.write_text('{"snap')
    else:
        path.unlink()
    assert take_snapshot(tmp_path / "runs", source=checkout) == snapshot
    assert content(snapshot.path) == content(checkout)
    assert (snapshot.path / "code.diff").is_file()
    assert sorted(path.name for path in snapshot.path.parent.iterdir()) == [".lock", snapshot.digest]


def test_processes_at_the_same_time_share_one_copy(checkout: Path, tmp_path: Path) -> None:
    code = "import sys, pathlib; from launch.slurm.snapshot import take_snapshot as take; sys.stdin.readline();"
    code += "print(take(pathlib.Path(sys.argv[1]), source=pathlib.Path(sys.argv[2])).path)"
    command = [sys.executable, "-c", code, str(tmp_path / "runs"), str(checkout)]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(command, cwd=CODE_ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(4)
    ]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=300) for process in processes]
    (path,) = {out.strip() for out, _ in outputs}
    assert [process.returncode for process in processes] == [0] * 4
    assert {err for _, err in outputs} == {""}
    assert content(Path(path)) == content(checkout)
    assert sorted(each.name for each in Path(path).parent.iterdir()) == [".lock", Path(path).name]


def test_a_file_saved_meanwhile_is_taken_with_its_diff(checkout: Path, tmp_path: Path, monkeypatch) -> None:
    origin, edits = snapshot_module._origin, ["# once\n"]

    def edit_after(source: Path):
        found = origin(source)
        if edits:
            write(source / "crisscross" / "say.py", edits.pop())
        return found

    monkeypatch.setattr(snapshot_module, "_origin", edit_after)
    snapshot = take_snapshot(tmp_path / "runs", source=checkout)
    assert (snapshot.path / "crisscross" / "say.py").read_text() == "# once\n"
    assert b"+# once" in (snapshot.path / "code.diff").read_bytes()
    write(checkout / "crisscross" / "say.py", "# twice\n")
    edits += [f"# {number}\n" for number in range(9)]
    with pytest.raises(ValueError, match="the code changes while it is copied: launch again when nothing"):
        take_snapshot(tmp_path / "runs", source=checkout)


def test_a_link_to_a_file_of_the_code_is_copied_as_a_file(checkout: Path, tmp_path: Path) -> None:
    (checkout / "launch" / "settings.yaml").symlink_to("../experiments/conf/pretrain.yaml")
    (checkout / "launch" / "again.yaml").symlink_to("settings.yaml")
    snapshot = take_snapshot(tmp_path / "runs", source=checkout)
    for name in ("settings.yaml", "again.yaml"):
        path = snapshot.path / "launch" / name
        assert path.read_text() == "seed: 0\n"
        assert not path.is_symlink()


@pytest.mark.parametrize(
    "target", ["nowhere.py", "../../outside.py", "../.env", "../launch", "../experiments/conf", "../README.md"]
)
@pytest.mark.parametrize("kind", ["checkout", "folder"])
def test_any_other_link_is_refused(kind: str, target: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(kind)
    write(tmp_path / "outside.py", "")
    write(source / ".env", "TOKEN=1\n")
    (source / "launch" / "link.py").symlink_to(target)
    with pytest.raises(ValueError, match=r"launch/link\.py is a link to .*, which is no file of the code: put a file"):
        take_snapshot(tmp_path / "runs", source=source)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("place", ["nowhere", "in a repository that ignores it"])
def test_without_a_checkout_the_folder_is_walked(place: str, folder: Path, tmp_path: Path) -> None:
    if place != "nowhere":
        git(tmp_path, "init", "-q")
        write(tmp_path / ".gitignore", "*\n")
        git(tmp_path, "commit", "-qm", "around", "--allow-empty")
    write(folder / "crisscross" / "__pycache__" / "say.pyc", "")
    write(folder / "crisscross" / ".env", "TOKEN=1\n")
    (folder / "analysis" / "conf.yaml").symlink_to("../experiments/conf/pretrain.yaml")
    os.mkfifo(folder / "launch" / "pipe")
    snapshot = take_snapshot(tmp_path / "runs", source=folder)
    assert (snapshot.commit, snapshot.dirty) == (None, False)
    assert not (snapshot.path / "code.diff").exists()
    assert content(snapshot.path).keys() == content(folder).keys() - {"crisscross/.env"}
    assert git_state(folder) == {}
    assert git_state(snapshot.path) == {"snapshot": snapshot.digest}


def test_before_the_first_commit_there_is_none(folder: Path, tmp_path: Path) -> None:
    git(folder, "init", "-q")
    snapshot = take_snapshot(tmp_path / "runs", source=folder)
    assert (snapshot.commit, snapshot.dirty) == (None, False)
    assert content(snapshot.path) == content(folder)


def test_a_checkout_that_git_cannot_read_is_not_walked(checkout: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.rmtree(checkout / ".git" / "refs")
    with pytest.raises(ValueError, match=r"git reports 'fatal: .*: without git the files to leave out are unknown"):
        take_snapshot(tmp_path / "runs", source=checkout)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"git could not be called .*: without git the files"):
        take_snapshot(tmp_path / "runs", source=checkout)


def test_what_is_no_code_is_refused(checkout: Path, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"holds none of crisscross, experiments.*: there is no code to keep"):
        take_snapshot(tmp_path / "runs", source=tmp_path)
    nested = checkout / "crisscross" / "nested"
    nested.mkdir()
    git(nested, "init", "-q")
    git(nested, "commit", "-qm", "own", "--allow-empty")
    with pytest.raises(ValueError, match=r"crisscross/nested is a git repository of its own.*: move it elsewhere"):
        take_snapshot(tmp_path / "runs", source=checkout)
    shutil.rmtree(nested)
    monkeypatch.setattr(snapshot_module, "MAX_BYTES", 2**20)
    write(checkout / "analysis" / "clip.mp4", bytes(2 * 2**20))
    with pytest.raises(ValueError, match=r"more than 1 MiB of code, .*clip.mp4 alone has 2: data belongs elsewhere"):
        take_snapshot(tmp_path / "runs", source=checkout)


def test_a_root_that_cannot_be_written_names_the_key(checkout: Path, tmp_path: Path) -> None:
    write(tmp_path / "runs", "in the way")
    with pytest.raises(OSError, match=r"^runs_root=.*/runs: no snapshot .* \(.+\): choose a folder you can write"):
        take_snapshot(tmp_path / "runs", source=checkout)


def test_a_failed_write_leaves_nothing(checkout: Path, tmp_path: Path, monkeypatch) -> None:
    def fail(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot_module, "write_json", fail)
    with pytest.raises(OSError, match=r"\(No space left on device\): choose a folder you can write, with space left"):
        take_snapshot(tmp_path / "runs", source=checkout)
    assert [path.name for path in (tmp_path / "runs" / "code").iterdir()] == [".lock"]


def test_what_a_killed_launch_left_is_removed(checkout: Path, tmp_path: Path) -> None:
    first = take_snapshot(tmp_path / "runs", source=checkout)
    first.path.rename(first.path.with_name(f".{first.digest}.part"))
    assert take_snapshot(tmp_path / "runs", source=checkout) == first
    assert sorted(path.name for path in first.path.parent.iterdir()) == [".lock", first.digest]


def test_a_path_that_ends_early_in_the_environment_is_refused(checkout: Path, tmp_path: Path) -> None:
    snapshot = take_snapshot(tmp_path / "a:b", source=checkout)
    with pytest.raises(ValueError, match=r"runs_root=.*a:b: ':' ends a path in PYTHONPATH: choose one without"):
        snapshot_environment(snapshot)


def test_a_checkout_of_another_user_is_recorded(checkout: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    """Git refuses such a checkout; this variable is how its own tests pretend that there is one."""
    write(checkout / "crisscross" / "say.py", "# edited\n")
    commit = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    code_version._git_state.cache_clear()
    assert git_state(checkout) == {"commit": commit, "dirty": True}
    assert b"+# edited\n" in code_version.uncommitted_changes(checkout)
    assert take_snapshot(tmp_path / "runs", source=checkout).commit == commit
    assert caplog.text == ""


def test_a_checkout_that_git_cannot_read_is_named(checkout: Path, caplog) -> None:
    (checkout / ".git" / "HEAD").unlink()
    code_version._git_state.cache_clear()
    assert git_state(checkout) == {}
    assert "the commit of the code is not recorded, as git fails in" in caplog.text

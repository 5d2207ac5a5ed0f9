"""The run directory: all of one experiment's state, and nothing else's.

    config.yaml      the resolved config
    run.json         kind, identity, label, parents, git commit, the studies it belongs to
    checkpoints/     see training/checkpoint.py
    metrics.jsonl    the history, see metrics_log.py; durable.json says how much of it is safe
    features/        what an evaluation extracted; predictions.csv what it predicted
    classifier.pt    what a fine-tuning made: a plain state dict of backbone and head
    video_backbone.pt, audio_backbone.pt     what a pretraining made, in the format of released weights
    launches.json    when and where it was started; holder.json says who works on it now
    slurm.json       which Slurm job it was given to, see launch/slurm/assignments.py
    environment.json what it runs on: packages, machine, commit, code snapshot
    code.diff        what that code adds to its commit, for `git apply`; only where it adds something
    progress.json    what it is doing now, for whoever watches
    log.txt          what the job printed
    result.json      written last, atomically: it is the proof of success
    tracking.json    the MLflow run and how much of the history it has, see tracking.py

A job is handed only this path. Starting it once, or ten times after ten kills, is the same call.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from crisscross.run.identity import identity
from crisscross.utils.files import DISK_FULL, file_lock, read_json, write_json, write_text
from crisscross.utils.git import git_state

logger = logging.getLogger(__name__)
# The text of safe_dump and the values of safe_load, in a fifth of the time, where PyYAML was built with libyaml.
_YAML_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class AlreadyRunningError(RuntimeError):
    """Another process works in this run directory."""


@dataclass(frozen=True)
class RunDirectory:
    """One experiment's folder.

    Attributes:
        path: the folder, which exists and holds ``config.yaml`` and ``run.json``.
    """

    path: Path

    @classmethod
    def create(
        cls,
        kind: str,
        config: Mapping[str, Any],
        *,
        parents: Sequence[RunDirectory] = (),
        studies: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> RunDirectory:
        """Make the folder of an experiment, or find it where it is there already.

        Args:
            kind: ``"pretrain"`` or ``"downstream"``.
            config: the resolved config.
            parents: the experiments whose results this one uses.
            studies: what is known of the studies it belongs to, by study name; merged into what is there.

        Raises:
            OSError: when the folder cannot be written.
        """
        run_identity = identity(kind, config, parents=[parent.identity for parent in parents])
        label = label_of(kind, config, parents=[parent.label for parent in parents])
        path = path_of(kind, config, label=label, run_identity=run_identity)
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise OSError(
                f"runs_root={config['runs_root']}: {error.strerror}: choose a folder you can write"
            ) from error
        run = cls(path)
        with file_lock(run.path / ".create.lock"):
            known = read_json(run.path / "run.json")
            if known is None:
                run._write_config(config)
                known = {
                    "kind": kind,
                    "identity": run_identity,
                    "label": label,
                    "parents": [os.path.relpath(parent.path, run.path) for parent in parents],
                    "created": time.time(),
                    "git": git_state(),
                    "studies": dict(studies or {}),
                }
                write_json(run.path / "run.json", known)
            elif run.result is None and not run.is_running and run.config != config:
                # By identity they differ in execution-only settings, and the next start follows the newest.
                run._write_config(config)
            merged = {**known["studies"], **(studies or {})}
            if merged != known["studies"]:
                write_json(run.path / "run.json", {**known, "studies": merged})
        return run

    def _write_config(self, config: Mapping[str, Any]) -> None:
        write_text(self.path / "config.yaml", yaml.dump(dict(config), Dumper=_YAML_DUMPER, sort_keys=False))

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """Open an existing run directory.

        Raises:
            FileNotFoundError: when the folder is none, saying what was expected.
        """
        folder = Path(path)
        for name in ("config.yaml", "run.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder} is no run directory (no {name}): launch a study, or give a folder below runs/"
                )
        return cls(folder.resolve())

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config."""
        return yaml.load((self.path / "config.yaml").read_text(), Loader=_YAML_LOADER)

    @property
    def about(self) -> dict[str, Any]:
        """The content of ``run.json``."""
        return read_json(self.path / "run.json")

    @property
    def kind(self) -> str:
        """``"pretrain"`` or ``"downstream"``."""
        return self.about["kind"]

    @property
    def identity(self) -> str:
        """The experiment's identity, 64 hexadecimal digits."""
        return self.about["identity"]

    @property
    def label(self) -> str:
        """A name that reads well, such as ``crisscross-mild-demo-s0``."""
        return self.about["label"]

    @property
    def parents(self) -> list[RunDirectory]:
        """The run directories of the experiments this one builds on."""
        return [RunDirectory((self.path / parent).resolve()) for parent in self.about["parents"]]

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints; it may not exist yet."""
        return self.path / "checkpoints"

    @property
    def metrics_path(self) -> Path:
        """The metric history, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def log_path(self) -> Path:
        """What the job printed."""
        return self.path / "log.txt"

    @property
    def result(self) -> dict[str, Any] | None:
        """The content of ``result.json``, or None as long as the experiment is not done."""
        return read_json(self.path / "result.json")

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Declare success: write ``result.json``, the last thing an experiment does."""
        write_json(self.path / "result.json", dict(result))

    @property
    def progress(self) -> dict[str, Any] | None:
        """What the job last said of itself; None before its first word, or when that was lost."""
        try:
            return read_json(self.path / "progress.json")
        except ValueError:
            return None

    def write_progress(self, **progress: Any) -> None:
        """Say what the job is doing: ``state``, ``step``, ``total``, ``loss``, ``rate``, ``eta_s``.

        Written without fsync and without fuss: it may be lost, costs next to nothing, and never stops what it tells of.
        On a full disk it is written over the last word, whose block is there already: otherwise nobody would learn that
        the disk is full.
        """
        said = self.path / "progress.json"
        temporary = self.path / f".progress.{os.getpid()}.part"
        text = json.dumps({**progress, "time": time.time()})
        try:
            try:
                temporary.write_text(text)
                temporary.replace(said)
            except OSError as error:
                if error.errno not in DISK_FULL:
                    raise
                temporary.unlink(missing_ok=True)
                with said.open("r+") as file:
                    file.write(text)
                    file.truncate()
        except OSError as error:
            logger.warning("progress.json could not be written: %s", error)

    def say_phase(self, phase: str) -> None:
        """Say what a running job does before its first step, keeping what is known of how far it is."""
        known = {name: value for name, value in (self.progress or {}).items() if name in ("step", "total")}
        self.write_progress(**known, state="running", phase=phase)

    def say_queued(self, *, step: int | None = None) -> None:
        """Say that the experiment waits for its turn (again), keeping what is known of how far it is.

        Args:
            step: from where a training goes on, when that is known better.
        """
        said = self.progress or {}
        known = {name: value for name, value in said.items() if name in ("step", "total")}
        counts_steps = self.kind == "pretrain" or said.get("phase") == "fine-tuning"  # its test counts clips
        if step is not None and "step" in known and counts_steps:
            known["step"] = step
        self.write_progress(**known, state="queued")

    @contextlib.contextmanager
    def lock(self, *, patience_s: float = 1.0) -> Iterator[None]:
        """Hold the right to work here. The operating system lets go of it when the process dies.

        Args:
            patience_s: how long to wait for another process to let go. Whoever asks `is_locked` holds the lock for an
                instant; a node that died may hold it until the file server has noticed.

        Raises:
            AlreadyRunningError: when another process holds it, naming that process.
        """
        lock = file_lock(self.path / ".run.lock", timeout_s=patience_s)
        try:
            lock.acquire()
        except TimeoutError:
            holder = read_json(self.path / "holder.json") or {}
            raise AlreadyRunningError(
                f"{self.label} is already running (process {holder.get('pid', '?')} on {holder.get('host', '?')}):"
                " wait for it, or stop that process"
            ) from None
        try:
            write_json(self.path / "holder.json", {"pid": os.getpid(), "host": socket.gethostname()})
            yield
        finally:
            (self.path / "holder.json").unlink(missing_ok=True)
            lock.release()

    @property
    def is_locked(self) -> bool:
        """Whether a process works here now. Asking takes the lock for an instant."""
        lock = file_lock(self.path / ".run.lock", timeout_s=0)
        try:
            with lock:
                return False
        except TimeoutError:
            return True

    @property
    def is_running(self) -> bool:
        """Whether a process works here now; the lock is only tried where ``holder.json`` says that there may be one."""
        return (self.path / "holder.json").is_file() and self.is_locked


def path_of(kind: str, config: Mapping[str, Any], *, label: str, run_identity: str) -> Path:
    """Return where an experiment's run directory is, or will be."""
    return Path(config["runs_root"]).resolve() / kind / f"{label}-{run_identity[:12]}"


def label_of(kind: str, config: Mapping[str, Any], *, parents: Sequence[str] = ()) -> str:
    """Return a readable name: what was trained, how, on what, with which seed."""
    name = _slug(config["data"]["name"])
    if kind == "pretrain":
        method, weight = config["method"], config["method"].get("async_weight", 1.0)
        what = method["name"] if weight == 1 else f"{method['name']}_async{weight:g}"  # the two arms of Table 1
        return f"{what}-{_slug(config['relaxation'])}-{name}-s{config['seed']}"
    weights = config["weights"]
    source = parents[0] if parents else "released" if weights["video"] or weights["audio"] else "untrained"
    if parents and weights.get("epoch") is not None:
        source += f"-e{weights['epoch']}"
    seed = "" if parents else f"-s{config['seed']}"
    folds = config["data"].get("folds") or []
    fold = f"-fold{folds[0]}" if len(folds) == 1 else ""
    return f"{source}{seed}-{config['downstream']['name']}-{name}{fold}"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "_", str(text)).strip("_") or "unnamed"

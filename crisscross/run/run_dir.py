"""The run directory: the whole state of one experiment on disk.

crisscross/README.md lists its files. A job receives its path and nothing else, and is started in the same way the first
time and after a kill.
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
# With libyaml: the text of safe_dump and the values of safe_load, in a fifth of the time.
_YAML_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class AlreadyRunningError(RuntimeError):
    """Another process works in this run directory."""


@dataclass(frozen=True)
class RunDirectory:
    """The folder of one experiment.

    Attributes:
        path: the folder, which exists and contains ``config.yaml`` and ``run.json``.
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
        """Create the folder of an experiment, or open the existing one.

        Args:
            kind: ``"pretrain"`` or ``"downstream"``.
            config: the resolved config.
            parents: the experiments whose results this one uses.
            studies: the studies it belongs to, by study name; merged into ``run.json``.

        Raises:
            OSError: if the folder cannot be written.
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
                # The same identity: only execution-only settings differ, and the next start uses the newest.
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
            FileNotFoundError: if the folder is no run directory.
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
        return yaml.load((self.path / "config.yaml").read_text(encoding="utf-8"), Loader=_YAML_LOADER)

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
        """The identity of the experiment, 64 hexadecimal digits."""
        return self.about["identity"]

    @property
    def label(self) -> str:
        """A readable name, such as ``crisscross-mild-demo-s0``."""
        return self.about["label"]

    @property
    def parents(self) -> list[RunDirectory]:
        """Run directories of the experiments that this one needs."""
        return [RunDirectory((self.path / parent).resolve()) for parent in self.about["parents"]]

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints. It may not exist yet."""
        return self.path / "checkpoints"

    @property
    def metrics_path(self) -> Path:
        """The metrics log, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def log_path(self) -> Path:
        """Output of the job."""
        return self.path / "log.txt"

    @property
    def result(self) -> dict[str, Any] | None:
        """The content of ``result.json``; None before the experiment is done."""
        return read_json(self.path / "result.json")

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``, the last step of an experiment.

        The file is the proof of the experiment's success.
        """
        write_json(self.path / "result.json", dict(result))

    @property
    def progress(self) -> dict[str, Any] | None:
        """The content of ``progress.json``; None without a readable one."""
        try:
            return read_json(self.path / "progress.json")
        except ValueError:
            return None

    def write_progress(self, **progress: Any) -> None:
        """Write ``progress.json``: ``state``, ``step``, ``total``, ``loss``, ``rate``, ``eta_s``.

        Written without fsync: it may be lost, costs little, and an error is only logged. On a full disk the old file is
        overwritten in place, as its block exists already: the error would not be visible otherwise.
        """
        path = self.path / "progress.json"
        temporary = self.path / f".progress.{os.getpid()}.part"
        text = json.dumps({**progress, "time": time.time()})
        try:
            try:
                temporary.write_text(text)
                temporary.replace(path)
            except OSError as error:
                if error.errno not in DISK_FULL:
                    raise
                temporary.unlink(missing_ok=True)
                with path.open("r+") as file:
                    file.write(text)
                    file.truncate()
        except OSError as error:
            logger.warning("progress.json could not be written: %s", error)

    def record_phase(self, phase: str) -> None:
        """Write what a running job does before its first step.

        ``step`` and ``total`` are kept.
        """
        known = {name: value for name, value in (self.progress or {}).items() if name in ("step", "total")}
        self.write_progress(**known, state="running", phase=phase)

    def record_queued(self, *, step: int | None = None) -> None:
        """Write that the experiment is queued, keeping ``step`` and ``total``.

        Args:
            step: step from which a training resumes, if known.
        """
        progress = self.progress or {}
        known = {name: value for name, value in progress.items() if name in ("step", "total")}
        counts_steps = self.kind == "pretrain" or progress.get("phase") == "fine-tuning"  # its test counts clips
        if step is not None and "step" in known and counts_steps:
            known["step"] = step
        self.write_progress(**known, state="queued")

    @contextlib.contextmanager
    def lock(self, *, patience_s: float = 1.0) -> Iterator[None]:
        """Hold the lock of this run directory.

        The operating system releases it if the process dies.

        Args:
            patience_s: seconds to wait for another holder. ``is_locked`` holds the lock for an instant; after the death
                of a node a file server may hold it for a while.

        Raises:
            AlreadyRunningError: if another process holds it; names that process.
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
        """Whether a process holds the lock.

        The check takes the lock for an instant.
        """
        lock = file_lock(self.path / ".run.lock", timeout_s=0)
        try:
            with lock:
                return False
        except TimeoutError:
            return True

    @property
    def is_running(self) -> bool:
        """Whether a process works here.

        The lock is only tried if there is a ``holder.json``.
        """
        return (self.path / "holder.json").is_file() and self.is_locked


def slurm_job_id() -> str | None:
    """Return the Slurm job id, a number or ``<array>_<index>``; None outside Slurm."""
    array, index = (os.environ.get(name) for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"))
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID")


def path_of(kind: str, config: Mapping[str, Any], *, label: str, run_identity: str) -> Path:
    """Return the path of an experiment's run directory."""
    return Path(config["runs_root"]).resolve() / kind / f"{label}-{run_identity[:12]}"


def label_of(kind: str, config: Mapping[str, Any], *, parents: Sequence[str] = ()) -> str:
    """Return a readable name from method, relaxation, data and seed."""
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

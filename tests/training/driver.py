"""Fault injection: run a training in its own process and kill or signal it at a chosen place.

A fork server imports everything once, so that a dozen killed processes cost seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from crisscross.run.run_dir import RunDirectory
from crisscross.run_experiment import run as run_experiment
from crisscross.training import checkpoint, features
from crisscross.training.trainer import Trainer
from crisscross.utils.signals import INTERRUPTED_EXIT_CODE, SHUTDOWN

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "tests.training.driver",
        *("crisscross.pretrain", "crisscross.methods.crisscross", "crisscross.evaluate"),
        *("torch._dynamo", "pyarrow.parquet", "filelock", "sqlite3"),  # which a first optimizer or manifest imports
    ]
)


def in_process(run: RunDirectory, fault: str = "", at_step: int = 0) -> int:
    """Run an experiment in a new process.

    Args:
        run: its run directory.
        fault: key of ``FAULTS``; empty = no fault.
        at_step: step of the fault.

    Returns:
        The exit code: 0 done, 75 interrupted, -9 killed.
    """
    (code,) = _exit_codes(run, [{}], fault, at_step)
    return code


def in_ranks(run: RunDirectory, num: int, fault: str = "", at_step: int = 0) -> list[int]:
    """Run an experiment in several processes, as under torchrun; return their exit codes.

    Args:
        run: its run directory.
        num: processes.
        fault: fault of the last of them.
        at_step: step of the fault.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": num, "LOCAL_WORLD_SIZE": num}
    return _exit_codes(run, [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in range(num)], fault, at_step)


def _exit_codes(run: RunDirectory, environments: list[dict], fault: str = "", at_step: int = 0) -> list[int]:
    processes = []
    for more in environments:
        variables = {name: str(value) for name, value in more.items()}
        faulty = (fault, at_step) if more is environments[-1] else ("", 0)
        processes.append(CONTEXT.Process(target=_main, args=(str(run.path), *faulty, variables)))
        processes[-1].start()
    for process in processes:
        process.join(timeout=600)
        assert process.exitcode is not None, "the run did not end within 600 s"
    return [process.exitcode for process in processes]


def inject_and_resume(run: RunDirectory, fault: str, *, at_step: int) -> None:
    """Inject a fault, check that the run is not done, and resume it to its end."""
    code = in_process(run, fault, at_step=at_step)
    assert code == (-9 if fault.startswith("SIGKILL") else INTERRUPTED_EXIT_CODE)
    assert run.result is None
    assert in_process(run) == 0


def _main(path: str, fault: str, at_step: int, variables: dict[str, str]) -> None:
    os.setsid()  # its own process group, so that a signal to the group does not reach the tests
    os.environ.update(variables)
    SHUTDOWN.install()
    if fault:
        {**FAULTS, **TEST_FAULTS, **EXTRACTION_FAULTS}[fault](at_step)
    done = run_experiment(RunDirectory.open(path))
    os._exit(0 if done else INTERRUPTED_EXIT_CODE)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _after_the_backward_pass(act: Callable[[], None], at_step: int) -> None:
    original = Trainer._one_pass

    def faulty(self, *arguments):
        result = original(self, *arguments)
        if self.step == at_step:
            act()
        return result

    Trainer._one_pass = faulty


def _in_the_middle_of_a_step(at_step: int) -> None:
    _after_the_backward_pass(_kill, at_step)


def _in_the_middle_of_a_checkpoint(at_step: int) -> None:
    original = checkpoint._HashingFile.write

    def faulty(self, data):
        original(self, bytes(data)[: len(data) // 2])
        self._file.flush()
        _kill()
        return len(data)

    def only_at(self, step, state, metrics_bytes):
        if step >= at_step:
            checkpoint._HashingFile.write = faulty
        write(self, step, state, metrics_bytes)

    write = checkpoint.CheckpointWriter._write
    checkpoint.CheckpointWriter._write = only_at


def _between_checkpoint_and_its_hash(at_step: int) -> None:
    original = checkpoint.write_json

    def faulty(path: Path, value: object) -> None:
        if path.parent.name == "checkpoints" and value["step"] >= at_step:
            _kill()
        original(path, value)

    checkpoint.write_json = faulty


def _before_durable_is_written(at_step: int) -> None:
    original = checkpoint.write_json

    def faulty(path: Path, value: object) -> None:
        if path.name == "durable.json" and value["history_step"] >= at_step:
            _kill()
        original(path, value)

    checkpoint.write_json = faulty


def _between_metrics_log_and_checkpoint(at_step: int) -> None:
    original = Trainer._save

    def faulty(self):
        if self.step >= at_step:
            self.checkpoints.metrics_log.sync()
            _kill()
        original(self)

    Trainer._save = faulty


def _during_the_test(act: Callable[[], None], at_step: int) -> None:
    original, seen = features.segment_views, []
    features.SEGMENTS_PER_BATCH = 4  # two clips

    def faulty(batch, **settings):
        seen.append(batch)
        if len(seen) == 2:
            act()
        return original(batch, **settings)

    features.segment_views = faulty


def _before_the_result(at_step: int) -> None:
    RunDirectory.write_result = lambda self, result: _kill()


def _signal(number: signal.Signals) -> Callable[[int], None]:
    def fault(at_step: int) -> None:
        _after_the_backward_pass(lambda: os.kill(os.getpid(), number), at_step)

    return fault


def _signal_to_the_group(at_step: int) -> None:
    _after_the_backward_pass(lambda: os.killpg(0, signal.SIGTERM), at_step)


FAULTS: dict[str, Callable[[int], None]] = {
    "SIGKILL in the middle of a step": _in_the_middle_of_a_step,
    "SIGKILL in the middle of a checkpoint write": _in_the_middle_of_a_checkpoint,
    "SIGKILL between a checkpoint and its hash": _between_checkpoint_and_its_hash,
    "SIGKILL before the checkpoint is declared": _before_durable_is_written,
    "SIGKILL at the end of an epoch": _between_metrics_log_and_checkpoint,
    "SIGKILL before the result": _before_the_result,
    "SIGTERM": _signal(signal.SIGTERM),
    "SIGTERM to the whole group": _signal_to_the_group,
    "SIGINT": _signal(signal.SIGINT),
    "SIGUSR2": _signal(signal.SIGUSR2),
}


def _small_batches(num_clips: int) -> None:
    """Set the batch size of feature extraction; no fault."""
    features.SEGMENTS_PER_BATCH = num_clips


def _during_extraction(act: Callable[[], None], at_batch: int) -> None:
    """Act before a batch of feature extraction, counted over the run: three per epoch of 12 clips."""
    original, seen = features.segment_views, []
    _small_batches(4)

    def faulty(batch, **settings):
        seen.append(batch)
        if len(seen) == at_batch:
            act()
        return original(batch, **settings)

    features.segment_views = faulty


def _during_clustering(at_call: int) -> None:
    """Kill in a k-means: there are two before each epoch."""
    from crisscross.methods import xdc  # here: it imports scikit-learn, which few of these processes need

    original, seen = xdc.clustered, []
    _small_batches(4)

    def faulty(*arguments, **settings):
        seen.append(arguments)
        if len(seen) == at_call:
            _kill()
        return original(*arguments, **settings)

    xdc.clustered = faulty


EXTRACTION_FAULTS: dict[str, Callable[[int], None]] = {
    "none, few clips at a time": lambda at_batch: _small_batches(4),
    "SIGKILL in the extraction": lambda at_batch: _during_extraction(_kill, at_batch),
    "SIGTERM in the extraction": lambda at_batch: _during_extraction(
        lambda: os.kill(os.getpid(), signal.SIGTERM), at_batch
    ),
    "SIGKILL in the clustering": _during_clustering,
}
"""Faults before an epoch, for methods that extract features of all clips."""

TEST_FAULTS: dict[str, Callable[[int], None]] = {
    "SIGKILL in the test": lambda at_step: _during_the_test(_kill, at_step),
    "SIGTERM in the test": lambda at_step: _during_the_test(lambda: os.kill(os.getpid(), signal.SIGTERM), at_step),
}
"""Faults in the test after training, which only fine-tuning has."""

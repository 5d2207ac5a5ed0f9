"""Runs a training in a process of its own and strikes it at a chosen place.

The processes come from a fork server that has imported everything once, so that a dozen deaths cost seconds.
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


def in_process(run: RunDirectory, strike: str = "", at_step: int = 0) -> int:
    """Run an experiment in a fresh process.

    Args:
        run: its run directory.
        strike: what happens to it, a key of ``STRIKES``; empty = it is left alone.
        at_step: when.

    Returns:
        The exit code: 0 done, 75 interrupted, -9 killed.
    """
    (code,) = _exit_codes(run, [{}], strike, at_step)
    return code


def in_ranks(run: RunDirectory, num: int, strike: str = "", at_step: int = 0) -> list[int]:
    """Run an experiment in fresh processes that share its batches, as under torchrun; return their exit codes.

    Args:
        run: its run directory.
        num: processes.
        strike: what happens to the last of them; the others are left alone.
        at_step: when.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": num, "LOCAL_WORLD_SIZE": num}
    return _exit_codes(run, [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in range(num)], strike, at_step)


def _exit_codes(run: RunDirectory, environments: list[dict], strike: str = "", at_step: int = 0) -> list[int]:
    processes = []
    for more in environments:
        variables = {name: str(value) for name, value in more.items()}
        struck = (strike, at_step) if more is environments[-1] else ("", 0)
        processes.append(CONTEXT.Process(target=_main, args=(str(run.path), *struck, variables)))
        processes[-1].start()
    for process in processes:
        process.join(timeout=600)
        assert process.exitcode is not None, "the run did not end within 120 s"
    return [process.exitcode for process in processes]


def strike_and_go_on(run: RunDirectory, strike: str, *, at_step: int) -> None:
    """Strike a run once, see that it is not done, and start it again to its end."""
    code = in_process(run, strike, at_step=at_step)
    assert code == (-9 if strike.startswith("SIGKILL") else INTERRUPTED_EXIT_CODE)
    assert run.result is None
    assert in_process(run) == 0


def _main(path: str, strike: str, at_step: int, variables: dict[str, str]) -> None:
    os.setsid()  # a group of its own, so that a strike at the group is not at the tests
    os.environ.update(variables)
    SHUTDOWN.install()
    if strike:
        {**STRIKES, **STRIKES_IN_THE_TEST, **STRIKES_IN_THE_LOOK}[strike](at_step)
    done = run_experiment(RunDirectory.open(path))
    os._exit(0 if done else INTERRUPTED_EXIT_CODE)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _after_the_backward_pass(act: Callable[[], None], at_step: int) -> None:
    original = Trainer._one_pass

    def struck(self, *arguments):
        result = original(self, *arguments)
        if self.step == at_step:
            act()
        return result

    Trainer._one_pass = struck


def _in_the_middle_of_a_step(at_step: int) -> None:
    _after_the_backward_pass(_kill, at_step)


def _in_the_middle_of_a_checkpoint(at_step: int) -> None:
    original = checkpoint._HashingFile.write

    def struck(self, data):
        original(self, bytes(data)[: len(data) // 2])
        self._file.flush()
        _kill()
        return len(data)

    def only_at(self, step, state, metrics_bytes):
        if step >= at_step:
            checkpoint._HashingFile.write = struck
        write(self, step, state, metrics_bytes)

    write = checkpoint.CheckpointWriter._write
    checkpoint.CheckpointWriter._write = only_at


def _between_checkpoint_and_its_hash(at_step: int) -> None:
    original = checkpoint.write_json

    def struck(path: Path, value: object) -> None:
        if path.parent.name == "checkpoints" and value["step"] >= at_step:
            _kill()
        original(path, value)

    checkpoint.write_json = struck


def _before_durable_is_told(at_step: int) -> None:
    original = checkpoint.write_json

    def struck(path: Path, value: object) -> None:
        if path.name == "durable.json" and value["history_step"] >= at_step:
            _kill()
        original(path, value)

    checkpoint.write_json = struck


def _after_the_journal_before_the_checkpoint(at_step: int) -> None:
    original = Trainer._save

    def struck(self):
        if self.step >= at_step:
            self.checkpoints.metrics_log.sync()
            _kill()
        original(self)

    Trainer._save = struck


def _in_the_dense_test(act: Callable[[], None], at_step: int) -> None:
    original, seen = features.segment_views, []
    features.SEGMENTS_PER_BATCH = 4  # two clips

    def struck(batch, **settings):
        seen.append(batch)
        if len(seen) == 2:
            act()
        return original(batch, **settings)

    features.segment_views = struck


def _before_the_result(at_step: int) -> None:
    RunDirectory.write_result = lambda self, result: _kill()


def _signal(number: signal.Signals) -> Callable[[int], None]:
    def strike(at_step: int) -> None:
        _after_the_backward_pass(lambda: os.kill(os.getpid(), number), at_step)

    return strike


def _signal_to_the_group(at_step: int) -> None:
    _after_the_backward_pass(lambda: os.killpg(0, signal.SIGTERM), at_step)


STRIKES: dict[str, Callable[[int], None]] = {
    "SIGKILL in the middle of a step": _in_the_middle_of_a_step,
    "SIGKILL in the middle of a checkpoint write": _in_the_middle_of_a_checkpoint,
    "SIGKILL between a checkpoint and its hash": _between_checkpoint_and_its_hash,
    "SIGKILL before the checkpoint is declared": _before_durable_is_told,
    "SIGKILL at the end of an epoch": _after_the_journal_before_the_checkpoint,
    "SIGKILL before the result": _before_the_result,
    "SIGTERM": _signal(signal.SIGTERM),
    "SIGTERM to the whole group": _signal_to_the_group,
    "SIGINT": _signal(signal.SIGINT),
    "SIGUSR2": _signal(signal.SIGUSR2),
}


def _small_looks(num_clips: int) -> None:
    """No strike: let a pass over all clips, one segment each, take so few at a time."""
    features.SEGMENTS_PER_BATCH = num_clips


def _in_the_look(act: Callable[[], None], at_batch: int) -> None:
    """Act before a batch of the looks at all clips, counted over the whole run: of 12 clips, there are three a look."""
    original, seen = features.segment_views, []
    _small_looks(4)

    def struck(batch, **settings):
        seen.append(batch)
        if len(seen) == at_batch:
            act()
        return original(batch, **settings)

    features.segment_views = struck


def _in_the_clustering(at_call: int) -> None:
    """Kill in a k-means: there are two before each epoch."""
    from crisscross.methods import xdc

    original, seen = xdc.clustered, []
    _small_looks(4)

    def struck(*arguments, **settings):
        seen.append(arguments)
        if len(seen) == at_call:
            _kill()
        return original(*arguments, **settings)

    xdc.clustered = struck


STRIKES_IN_THE_LOOK: dict[str, Callable[[int], None]] = {
    "none, few clips at a time": lambda at_batch: _small_looks(4),
    "SIGKILL in the look": lambda at_batch: _in_the_look(_kill, at_batch),
    "SIGTERM in the look": lambda at_batch: _in_the_look(lambda: os.kill(os.getpid(), signal.SIGTERM), at_batch),
    "SIGKILL in the clustering": _in_the_clustering,
}
"""Before an epoch, of methods that look at all clips then."""

STRIKES_IN_THE_TEST: dict[str, Callable[[int], None]] = {
    "SIGKILL in the test": lambda at_step: _in_the_dense_test(_kill, at_step),
    "SIGTERM in the test": lambda at_step: _in_the_dense_test(lambda: os.kill(os.getpid(), signal.SIGTERM), at_step),
}
"""Only fine-tuning has a test behind its training."""

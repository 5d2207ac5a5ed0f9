"""What the test cluster is made of: its Slurm configuration, its ports, its processes, and the host's munged."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

LOCKS = Path("/tmp/crisscross-slurm")  # host-wide on purpose: ports, munged and /etc/hosts are the host's
FIRST_PORT, PORTS_PER_BLOCK, NUM_BLOCKS = 21000, 20, 50  # below Linux's ephemeral ports, which start at 32768
MARK = "CRISSCROSS_SLURM_TEST"  # environment variable by which a daemon and what it started are found again
# For ``python -c``: runs its arguments as an init does, inheriting (36 is PR_SET_CHILD_SUBREAPER) and reaping orphans.
# slurmstepd leaves its slurmd by forking twice and overwrites its environment: nothing else identifies its owner.
SUBREAPER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(36, 1)
child = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
while os.wait()[0] != child:
    pass
"""
PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "mariadb-install-db")

SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.file.log
SlurmdLogFile={folder}/log/%n.file.log
DebugFlags=NO_CONF_HASH
MailProg=/bin/true
{user_signal}
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=100000,batch_sched_delay=0
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
TreeWidth=65533
MaxArraySize=1001
MinJobAge=300
InactiveLimit=0
KillWait={kill_wait_s}
SlurmctldTimeout=30
SlurmdTimeout={node_timeout_s}
MessageTimeout=5
UnkillableStepTimeout=60
EnforcePartLimits=ALL
{accounting}
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace_s} MaxTime=INFINITE
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE
PartitionName=short Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace_s} MaxTime=1
"""
ACCOUNTING_CONF = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStorageEnforce=associations,limits,qos"""
SLURMDBD_CONF = """\
AuthType=auth/munge
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
LogFile={folder}/log/slurmdbd.file.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=root
StorageLoc=slurm_accounting
"""
MARIADB_OPTIONS = (  # nothing outlives the test, so nothing is synced and everything is small
    "--no-defaults",
    "--user=root",
    "--skip-name-resolve",
    "--innodb-buffer-pool-size=16M",
    "--innodb-log-file-size=8M",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-doublewrite=0",
    "--innodb-flush-method=nosync",
    "--innodb-lock-wait-timeout=900",
    "--performance-schema=off",
)


class ClusterError(RuntimeError):
    """The test cluster did not react in time."""


@dataclass
class Daemon:
    """One foreground daemon, its output in a file, findable by ``MARK`` together with all that it starts."""

    name: str
    argv: list[str]
    log: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.argv,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for pytest, which then stops the daemons in order
            )

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def tail(self, lines: int = 20) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return f"--- end of {self.log} ---\n" + "\n".join(text.splitlines()[-lines:])


def wait_for(
    condition: Callable[[], object], *, what: str, timeout_s: float, log: Callable[[], str] = str, every_s: float = 0.1
) -> None:
    """Wait until ``condition()`` is true.

    Raises:
        ClusterError: after ``timeout_s``, with ``what`` was waited for and what ``log()`` returns then.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"waited {timeout_s:g} s in vain for: {what}\n{log()}")
        time.sleep(every_s)


def what_is_missing() -> str | None:
    """Return why no cluster can run here, or None."""
    if os.geteuid() != 0:
        return "a test cluster needs root (it starts munged and slurmd)"
    missing = [program for program in PROGRAMS if shutil.which(program, path=search_path()) is None]
    advice = "apt install slurm-wlm slurmdbd munge mariadb-server"
    return f"not installed: {', '.join(missing)} ({advice})" if missing else None


def search_path() -> str:
    """Return PATH with the sbin folders, where the daemons are."""
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def claim_ports() -> tuple[FileLock, int]:
    """Claim a block of ports for this process; the claim ends with the lock or the process.

    Daemons that a killed holder of the same block left behind are killed.
    """
    LOCKS.mkdir(exist_ok=True)
    for block in range(NUM_BLOCKS):
        lock = FileLock(LOCKS / f"ports-{block}.lock")
        first = FIRST_PORT + block * PORTS_PER_BLOCK
        with suppress(Timeout):
            lock.acquire(timeout=0)
            kill_marked(str(first))
            if all(_is_free(port) for port in range(first, first + PORTS_PER_BLOCK)):
                return lock, first
            lock.release()
    raise ClusterError(f"no block of {PORTS_PER_BLOCK} free ports from {FIRST_PORT} on; see the locks in {LOCKS}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def marked_processes(mark: str) -> Iterator[psutil.Process]:
    """Yield every process whose ``MARK`` is ``mark`` or begins with ``mark`` and a slash."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            value = process.environ().get(MARK, "")
            if value == mark or value.startswith(f"{mark}/"):
                yield process


def kill_marked(mark: str, timeout_s: float = 300.0) -> None:
    """SIGKILL the marked daemons with all their descendants, and wait until they have ended.

    Jobs are descendants too, because slurmd runs under :data:`SUBREAPER`.
    """
    deadline = time.monotonic() + timeout_s
    while roots := [process for process in marked_processes(mark) if process.pid != os.getpid()]:
        victims = [process for root in roots for process in _freeze(root)]
        for process in victims:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(victims, timeout=1)
        if time.monotonic() > deadline:
            raise ClusterError(f"processes that outlived SIGKILL: {roots}")


def _freeze(root: psutil.Process) -> list[psutil.Process]:
    """Stop a process and its descendants, so that none starts another one unseen; return them all."""
    frozen: dict[int, psutil.Process] = {}
    new = [root]
    with suppress(psutil.NoSuchProcess):
        while new:
            for process in new:
                frozen[process.pid] = process
                with suppress(psutil.Error):
                    process.suspend()
            new = [process for process in root.children(recursive=True) if process.pid not in frozen]
    return list(frozen.values())


def prepare_host(node_names: list[str]) -> None:
    """Start munged unless it answers, and let the node names resolve; both once a host, under a lock."""
    LOCKS.mkdir(exist_ok=True)
    with FileLock(LOCKS / "host.lock", timeout=300):
        _let_names_resolve(node_names)
        if not _munge_answers():
            _start_munged()


def _let_names_resolve(names: list[str]) -> None:
    hosts = Path("/etc/hosts")
    known = {word for line in hosts.read_text().splitlines() for word in line.split("#")[0].split()[1:]}
    if missing := [name for name in names if name not in known]:
        with hosts.open("a") as file:
            file.write("".join(f"127.0.0.1 {name}\n" for name in missing))


def _munge_answers() -> bool:
    return subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode == 0


def _start_munged() -> None:
    key = Path("/etc/munge/munge.key")
    if not key.exists():
        key.write_bytes(os.urandom(128))
        shutil.chown(key, "munge", "munge")
        key.chmod(0o600)
    for folder in ("/run/munge", "/var/log/munge", "/var/lib/munge"):
        Path(folder).mkdir(mode=0o755, exist_ok=True)
        shutil.chown(folder, "munge", "munge")
    argv = ["runuser", "-u", "munge", "--", shutil.which("munged", path=search_path()) or "munged"]
    started = subprocess.run(argv, capture_output=True, text=True, check=False)
    wait_for(_munge_answers, what="munged to answer", timeout_s=300, log=lambda: started.stderr)

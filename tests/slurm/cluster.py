"""A real Slurm on this host's loopback: controller, nodes and (if wanted) accounting, all in a folder of their own.

By hand, until SIGTERM or Ctrl-C::

    python -m tests.slurm.cluster --dir /tmp/slurmtest
"""

from __future__ import annotations

import argparse
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock

from crisscross.utils.files import file_lock
from tests.slurm.client import SlurmClient
from tests.slurm.daemons import (
    ACCOUNTING_CONF,
    MARIADB_OPTIONS,
    MARK,
    SLURM_CONF,
    SLURMDBD_CONF,
    SUBREAPER,
    ClusterError,
    Daemon,
    claim_ports,
    kill_marked,
    prepare_host,
    search_path,
    wait_for,
    what_is_missing,
)

UP_STATES = {"idle", "mixed", "allocated", "completing"}


@dataclass(frozen=True)
class Settings:
    """What may change while the cluster runs: see :meth:`SlurmCluster.reconfigure`.

    slurmctld looks every 10 s whose grace time is over: a preemption can last that long at any ``grace_s`` (measured).
    """

    preempt_user_signal: bool = False
    grace_s: int = 20
    kill_wait_s: int = 5
    node_timeout_s: int = 10


@dataclass
class SlurmCluster(SlurmClient):
    """A cluster whose partitions ``low`` (default, preemptable), ``high`` and ``short`` share all nodes.

    Attributes:
        folder: where everything lives; a temporary one, removed by :meth:`stop`, when None.
        accounting: with slurmdbd on a private MariaDB, account ``lab`` (root's default), unknown accounts refused.
        node_names: one slurmd each.
        cpus: what each node claims to have, whatever the machine has.
        settings: what the cluster starts with and :meth:`restore` returns to.
    """

    folder: Path | None = None
    accounting: bool = False
    node_names: tuple[str, ...] = ("n1", "n2", "n3")
    cpus: int = 8
    memory_mb: int = 8000
    settings: Settings = Settings()
    _defaults: Settings = field(init=False, repr=False)
    _is_temporary: bool = field(init=False, repr=False)
    _daemons: dict[str, Daemon] = field(init=False, repr=False, default_factory=dict)
    _ports: int = field(init=False, repr=False, default=0)
    _lock: FileLock | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        self._defaults, self._is_temporary = self.settings, self.folder is None

    def __enter__(self) -> SlurmCluster:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    # ---- start and stop ----

    def start(self) -> None:
        """Bring everything up and wait until jobs can run."""
        if reason := what_is_missing():
            raise ClusterError(reason)
        prepare_host(list(self.node_names))
        # A short path: slurmstepd's sockets lie below it, and a socket's path is limited to 107 characters.
        self.folder = self.folder or Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self._lock, self._ports = claim_ports()
        try:
            for name in ("log", "state", *(f"spool/{node}" for node in self.node_names)):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            self._write_slurm_conf()
            if self.accounting:
                self._start_accounting()
            self._start_controller()
            for name in self.node_names:
                self.start_node(name)
            self.wait_until_up()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill the daemons, slurmstepd's and jobs; remove the folder if it is a temporary one."""
        if self._lock is None or self.folder is None:
            return
        kill_marked(str(self._ports))
        self._daemons.clear()
        if self._is_temporary:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None
        self._lock.release()
        self._lock = None

    def kill_node(self, name: str) -> None:
        """SIGKILL a node's slurmd, slurmstepd's and job processes, as a power cut would."""
        kill_marked(f"{self._ports}/{name}")

    def start_node(self, name: str) -> None:
        """Start a node's slurmd; nothing happens if it runs."""
        if name not in self._daemons or not self._daemons[name].alive():
            slurmd = shutil.which("slurmd", path=search_path()) or "slurmd"
            self._start_daemon(name, "-c", SUBREAPER, slurmd, "-D", "-N", name, program=sys.executable)

    def wait_until_up(self, timeout_s: float = 300.0) -> None:
        """Wait until the controller answers and every node can take jobs."""
        wait_for(self._all_nodes_up, what="all nodes up", timeout_s=timeout_s, log=self.explain)

    def reconfigure(self, **changes: bool | int) -> None:
        """Change fields of :class:`Settings`: rewrites slurm.conf, lets all daemons read it again."""
        if (wanted := replace(self.settings, **changes)) == self.settings:
            return
        self.settings = wanted
        self._write_slurm_conf()
        self.must("scontrol", "reconfigure")
        self.wait_until_up()

    def restore(self) -> None:
        """Make the cluster as new: no jobs, all nodes up, the settings and limits it started with."""
        for name in self.node_names:
            self.start_node(name)
        self.cancel_everything()
        self.reconfigure(**vars(self._defaults))
        if self._submissions_limited:
            self.limit_submissions(None)
        for name in self.node_names:
            if self._nodes().get(name, "") not in UP_STATES:
                self.run("scontrol", "update", f"nodename={name}", "state=resume")
        self.wait_until_up()

    # ---- inside ----

    def _start_daemon(self, name: str, *arguments: str, program: str | None = None) -> Daemon:
        argv = [shutil.which(program or name, path=search_path()) or name, *arguments]
        environment = self.full_environment(**{MARK: f"{self._ports}/{name}"})
        self._daemons[name] = Daemon(name, argv, self.home / "log" / f"{name}.log", environment)
        self._daemons[name].start()
        return self._daemons[name]

    def _start_controller(self) -> None:
        self._start_daemon("slurmctld", "-D")
        self._wait_for_port("slurmctld", self._ports)  # a command that comes before sleeps for seconds

    def _write_slurm_conf(self) -> None:
        host = socket.gethostname().split(".")[0]
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={self._ports + 3 + index} "
            f"CPUs={self.cpus} RealMemory={self.memory_mb} State=UNKNOWN"
            for index, name in enumerate(self.node_names)
        )
        text = SLURM_CONF.format(
            host=host,
            folder=self.home,
            port=self._ports,
            user_signal="SlurmctldParameters=preempt_send_user_signal" if self.settings.preempt_user_signal else "",
            accounting=ACCOUNTING_CONF.format(port=self._ports + 1) if self.accounting else "",
            nodes=nodes,
            grace_s=self.settings.grace_s,
            kill_wait_s=self.settings.kill_wait_s,
            node_timeout_s=self.settings.node_timeout_s,
        )
        (self.home / "slurm.conf").write_text(text)

    def _start_accounting(self) -> None:
        data, port = self.home / "mariadb", self._ports + 2
        with (self.home / "log" / "mariadb-install-db.log").open("wb") as log:
            argv = ["mariadb-install-db", *MARIADB_OPTIONS, f"--datadir={data}", "--skip-test-db"]
            argv += ["--auth-root-authentication-method=normal"]
            # Two at the same time, of two clusters, fail: one after the other.
            with file_lock(Path(tempfile.gettempdir()) / "crisscross-mariadb.lock", timeout_s=300):
                subprocess.run(argv, stdout=log, stderr=log, check=True, timeout=600, env=self.full_environment())
        where = [f"--datadir={data}", f"--socket={data}/socket", "--bind-address=127.0.0.1", f"--port={port}"]
        self._start_daemon("mariadbd", *MARIADB_OPTIONS, *where, f"--pid-file={data}/pid")
        self._wait_for_port("mariadbd", port)
        conf = self.home / "slurmdbd.conf"
        host = socket.gethostname().split(".")[0]
        conf.write_text(SLURMDBD_CONF.format(folder=self.home, host=host, port=self._ports + 1, database_port=port))
        conf.chmod(0o600)  # slurmdbd refuses to start otherwise
        self._start_daemon("slurmdbd", "-D")
        self._wait_for_port("slurmdbd", self._ports + 1)
        for words in ("cluster test", "account lab", "user root account=lab defaultaccount=lab"):
            self.must("sacctmgr", "-i", "add", *words.split())
        self.must("sacctmgr", "-i", "modify", "user", "root", "set", "defaultaccount=lab")

    def _wait_for_port(self, name: str, port: int) -> None:
        def answers() -> bool:
            if not self._daemons[name].alive():
                raise ClusterError(f"{name} ended at once\n{self._daemons[name].tail()}")
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
            return False

        wait_for(answers, what=f"{name} on port {port}", timeout_s=300, log=self._daemons[name].tail)

    def _nodes(self) -> dict[str, str]:
        rows = [line.split() for line in self.run("sinfo", "-h", "-N", "-p", "low", "-o", "%N %T").stdout.splitlines()]
        return {row[0]: row[1] for row in rows}

    def _all_nodes_up(self) -> bool:
        if not self._daemons["slurmctld"].alive():
            raise ClusterError(f"slurmctld ended\n{self._daemons['slurmctld'].tail()}")
        states = self._nodes()
        return set(states) == set(self.node_names) and set(states.values()) <= UP_STATES

    def explain(self) -> str:
        """Return what to look at when something did not happen: nodes, queue, the end of every daemon's log."""
        return "\n".join([super().explain(), *(daemon.tail(8) for daemon in self._daemons.values())])


def main() -> None:
    """Run a cluster until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="must be empty or absent")
    parser.add_argument("--no-accounting", action="store_true")
    arguments = parser.parse_args()
    arguments.dir.mkdir(parents=True, exist_ok=True)
    if any(arguments.dir.iterdir()):
        parser.error(f"{arguments.dir} is not empty: remove it or name another folder")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with SlurmCluster(folder=arguments.dir.resolve(), accounting=not arguments.no_accounting) as cluster:
        print(f"export SLURM_CONF={cluster.environment()['SLURM_CONF']}", flush=True)
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    main()

"""A warm interpreter: commands run in forks of a process that has imported the libraries.

    python -I -S tests/warm_python.py SOCKET -m launch.job RUN_DIR     for `python -m launch.job RUN_DIR`

Starting Python and importing PyTorch, MLflow and pandas is most of the cost of a small job. The server imports no code
of the project: a fork imports it along its own PYTHONPATH. Signals, exit codes, output, environment and folder equal
those of a separate process: the client passes signals on to its fork, and the fork is killed with its client.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)
LIBRARIES = (
    *("torch", "torch._dynamo", "torch.distributed", "torchaudio", "av", "numpy", "pandas", "pyarrow.parquet"),
    *("scipy.optimize", "scipy.signal", "scipy.special", "scipy.stats", "sklearn.model_selection", "threadpoolctl"),
    *("hydra", "hydra._internal.hydra", "omegaconf", "pydantic", "rich.live", "rich.progress", "yaml", "psutil"),
    *("filelock", "sqlalchemy", "submitit", "matplotlib.pyplot", "mlflow", "mlflow.store.tracking.sqlalchemy_store"),
)


def main(arguments: list[str]) -> None:
    """Run as the client, or with ``--serve SOCKET OWNER`` as the server."""
    if arguments[0] == "--serve":
        serve(arguments[1], owner=int(arguments[2]))
    else:
        sys.exit(be_client(arguments[0], arguments[1:]))


def be_client(address: str, command: list[str]) -> int:
    """Run a command in a fork of the server, pass signals on, and exit as it exits."""
    import pickle
    import struct

    fork, early = 0, []

    def pass_on(number: int, frame: object) -> None:
        if fork:
            with suppress(ProcessLookupError):
                os.kill(fork, number)
        else:
            early.append(number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        order = pickle.dumps((command, dict(os.environ), os.getcwd(), os.umask(0o77)))  # noqa: PTH109
        socket.send_fds(server, [struct.pack("!I", len(order))], [0, 1, 2])
        server.sendall(order)
        fork = struct.unpack("!i", _exactly(server, 4))[0]
        for number in early:
            pass_on(number, None)
        status = struct.unpack("!i", _exactly(server, 4))[0]
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL) if os.WTERMSIG(status) != signal.SIGKILL else None
        os.kill(os.getpid(), os.WTERMSIG(status))
    return os.waitstatus_to_exitcode(status)


def _exactly(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        more = connection.recv(size - len(content))
        if not more:
            raise EOFError("the warm interpreter has ended")
        content += more
    return content


def serve(address: str, *, owner: int) -> None:
    """Import the libraries, then fork for each client; the fork returns here and runs the command."""
    import atexit
    import gc
    import importlib
    import threading

    for name in LIBRARIES:
        importlib.import_module(name)
    assert threading.active_count() == 1, threading.enumerate()
    gc.freeze()
    command = _fork_for_clients(address, owner)
    code = _run(command)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(code)  # unloading all modules would take half a second


def _run(command: list[str]) -> int:
    """Run a module or a script as Python would and return the exit code."""
    import runpy

    try:
        if command[0] == "-m":
            sys.argv = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = command
            sys.path.insert(0, os.path.dirname(os.path.abspath(command[0])))  # noqa: PTH100, PTH120
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as ending:
        if ending.code is None or isinstance(ending.code, int):
            return ending.code or 0
        print(ending.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _fork_for_clients(address: str, owner: int) -> list[str]:
    """Return the command of a client, in a fork; the server itself ends with its socket or its owner."""
    import pickle
    import selectors
    import struct

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    forks: dict[int, tuple[int, socket.socket]] = {}  # by file descriptor: of the client, and of the fork itself
    while os.path.exists(address) and _is_alive(owner):  # noqa: PTH110
        for key, _ in selector.select(timeout=1.0):
            if key.fileobj is listener:
                client = listener.accept()[0]
                header, descriptors, _, _ = socket.recv_fds(client, 4, 3)
                command, environment, folder, mask = pickle.loads(_exactly(client, struct.unpack("!I", header)[0]))
                pid = os.fork()
                if pid == 0:
                    for item in [client, listener, *(connection for _, connection in forks.values())]:
                        item.close()
                    selector.close()
                    _become(environment, folder, mask, descriptors)
                    sys.executable = os.path.join(os.path.dirname(address), "python")  # noqa: PTH118, PTH120
                    return command
                for descriptor in descriptors:
                    os.close(descriptor)
                ending = os.pidfd_open(pid)
                forks[client.fileno()] = forks[ending] = (pid, client)
                selector.register(client, selectors.EVENT_READ)
                selector.register(ending, selectors.EVENT_READ)
                with suppress(OSError):
                    client.sendall(struct.pack("!i", pid))
                continue
            pid, client = forks[key.fd]
            if key.fd == client.fileno():  # clients send nothing more: this one has ended
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                selector.unregister(client)
                continue
            status = os.waitpid(pid, 0)[1]
            selector.unregister(key.fd)
            with suppress(KeyError, ValueError):
                selector.unregister(client)
            forks = {descriptor: item for descriptor, item in forks.items() if item[0] != pid}
            os.close(key.fd)
            with suppress(OSError):
                client.sendall(struct.pack("!i", status))
            client.close()
    os._exit(0)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _become(environment: dict[str, str], folder: str, mask: int, descriptors: list[int]) -> None:
    """Take over environment, folder, umask and file descriptors of the client."""
    os.setpgid(0, 0)
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.umask(mask)
    code = [item for item in environment.get("PYTHONPATH", "").split(os.pathsep) if item]
    sys.path[:0] = code if environment.get("PYTHONSAFEPATH") else ["", *code]
    sys.stdout.reconfigure(line_buffering=False)
    if environment.get("PYTHONUNBUFFERED"):
        sys.stdout.reconfigure(write_through=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""A process that has imported what training needs and forks on request.

    python zygote.py SOCKET        serves until its standard input ends

Importing Lightning takes seconds, a fork milliseconds: with this, a test can start and kill dozens
of workers and launchers, all of them processes of their own. `Forked` has the interface of
`subprocess.Popen` that the pool uses, for commands of the form `python -P -m MODULE ARGUMENT...`,
of which `MODULE.main()` is called.

A request is one line of JSON and four file descriptors: standard input, output and error, and a
socket on which the process id and later the exit status come back.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

SOCKET = "LINSCALE_TEST_ZYGOTE"
"""Environment variable with the path of the zygote's socket."""


class Forked:
    """A process forked off the zygote."""

    def __init__(
        self,
        command: list[str],
        *,
        stdin: int | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        env: dict[str, str] | None = None,
        text: bool = False,
        start_new_session: bool = False,
    ) -> None:
        _, dash_p, dash_m, module, *arguments = command
        assert (dash_p, dash_m) == ("-P", "-m")
        self.stdin = self.stdout = None
        self.returncode: int | None = None
        ours: list[int] = []
        null = os.open(os.devnull, os.O_RDWR)
        streams: list[int] = []
        for number, stream in enumerate((stdin, stdout, stderr)):
            if stream is None:
                streams.append(null)
            elif stream == subprocess.PIPE:
                read, write = os.pipe()
                if number == 0:
                    streams.append(read)
                    self.stdin = os.fdopen(write, "w" if text else "wb")
                    ours.append(read)
                else:
                    streams.append(write)
                    self.stdout = os.fdopen(read, "r" if text else "rb")
                    ours.append(write)
            else:
                streams.append(stream if isinstance(stream, int) else stream.fileno())
        self._news, theirs = socket.socketpair()
        request = {
            "module": module,
            "arguments": arguments,
            "environment": dict(os.environ) if env is None else env,
            "folder": os.getcwd(),
            "session": start_new_session,
        }
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(os.environ[SOCKET])
            data = json.dumps(request).encode() + b"\n"
            socket.send_fds(connection, [data[:1]], [*streams, theirs.fileno()])
            connection.sendall(data[1:])
        theirs.close()
        for descriptor in (*ours, null):
            os.close(descriptor)
        self.pid: int = struct.unpack("i", self._news.recv(4))[0]

    def poll(self) -> int | None:
        """The exit status if it has ended; minus the signal if one killed it."""
        return self._status(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        status = self._status(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("forked", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """Signal it, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _status(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._news], [], [], timeout)[0]:
            data = self._news.recv(4)
            self.returncode = struct.unpack("i", data)[0] if data else -signal.SIGKILL
            self._news.close()
        return self.returncode


def serve(path: str) -> None:
    """Fork a process for every request."""
    for module in ("scaling.training.session", "scaling.sweep.launch", "scaling.sweep.worker"):
        importlib.import_module(module)
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _attend(connection)
            connection.close()


def _attend(connection: socket.socket) -> None:
    """In a process for one request: fork, and report how the child ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    data, descriptors, _, _ = socket.recv_fds(connection, 1, 4)
    while not data.endswith(b"\n"):
        data += connection.recv(2**16)
    connection.close()
    request, news = json.loads(data), socket.socket(fileno=descriptors.pop())
    child = os.fork()
    if child == 0:
        news.close()
        _become(request, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    with suppress(BrokenPipeError):  # whoever asked for it is gone
        news.sendall(struct.pack("i", child))
        _, status = os.waitpid(child, 0)
        news.sendall(struct.pack("i", os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """Be the process that was asked for; does not return."""
    status = 1
    try:
        if request["session"]:
            os.setsid()
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.argv = [request["module"], *request["arguments"]]
        importlib.import_module(request["module"]).main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Zygote:
    """Starts a zygote for the duration of a `with` block."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "zygote"

    def __enter__(self) -> Zygote:
        here = Path(__file__)
        search = [str(here.parents[2]), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, str(here), str(self._path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, search))},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        os.environ[SOCKET] = str(self._path)
        return self

    def __exit__(self, *_: object) -> None:
        del os.environ[SOCKET]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


if __name__ == "__main__":
    serve(sys.argv[1])

"""Run many commands without importing torch for each: a process that has imported it is copied for each.

`python fork_server.py SOCKET` waits for commands and prints a line when it is ready. `write_client` writes a program
that runs as `lookalike` does, or as `python -c` if it is named `run-code`, in such a copy: with its own arguments,
folder, environment and standard streams.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

_CLIENT = """#!{python} -IS
import json, os, socket, sys

with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({address!r})
    socket.send_fds(connection, [b"\\0"], [0, 1, 2])
    connection.sendall(json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode())
    connection.shutdown(socket.SHUT_WR)
    sys.exit(int(connection.recv(16)))
"""
_IMPORTED = ("lookalike.cli.main", "torch", "timm", "faiss", "openvino", "matplotlib.pyplot")


def write_client(path: Path, address: str) -> None:
    """Write a program that asks the server at `address`."""
    path.write_text(_CLIENT.format(python=sys.executable, address=address))
    path.chmod(0o755)


def _serve(address: str) -> None:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as `lookalike` sets it, before torch is imported
    for name in _IMPORTED:
        importlib.import_module(name)
    select = importlib.import_module("lookalike.runtimes.select")
    select._TIMED_SECONDS, select._MAX_SPREAD = 0.01, float("inf")  # as in the tests' own process
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system forgets ended copies
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _answer(connection)
            connection.close()


def _answer(connection: socket.socket) -> None:
    """Run one command in a second copy, because this one has to send its exit code."""
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rb") as request:
        argv, folder, environment = json.load(request)
    if os.fork() == 0:
        connection.close()
        for standard, file in enumerate(files):
            os.dup2(file, standard)
            os.close(file)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode, 1, closefd=False) for n, mode in enumerate("rww"))
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        _run(argv)
    code = os.waitstatus_to_exitcode(os.wait()[1])
    connection.sendall(str(code if code >= 0 else 128 - code).encode())
    os._exit(0)


def _run(argv: list[str]) -> None:
    if Path(argv[0]).name == "run-code":
        sys.argv = ["-c", *argv[2:]]
        sys.path[0] = ""
        exec(compile(argv[1], "<string>", "exec"), {"__name__": "__main__"})
        sys.exit()
    from lookalike.__main__ import main

    sys.argv = argv
    main()


if __name__ == "__main__":
    _serve(sys.argv[1])

"""What tests have in common: a bus of their own, programs of their own to run in other interpreters, a nats-server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import metricbus

# Programs that tests start import the same package.
os.environ["PYTHONPATH"] = str(Path(metricbus.__file__).parents[1])


@pytest.fixture
def bus() -> metricbus.MetricBus:
    return metricbus.MetricBus()


@pytest.fixture
def clock() -> metricbus.Clock:
    return metricbus.Clock.manual()


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run() -> Run:
    """Runs a program in an interpreter of its own, and gives what it printed."""

    def run(program: str, *options: str, status: int = 0, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *options, "-c", textwrap.dedent(program)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
        return done

    return run


ROOT = Path(__file__).resolve().parents[2]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class NatsServer:
    """A nats-server of its own, on a free port of this machine, with JetStream in a folder that is there before and after."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it, and waits until it takes connections."""
        log = self._folder / "server.log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [self._program, "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self._folder / "store")],
                stdout=out,
                stderr=out,
            )
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{self._program} did not start: {log.read_text()[-2000:]}") from None
                time.sleep(0.01)

    def kill(self) -> None:
        """Ends it as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(10)


def _nats_program() -> str | None:
    for place in ["nats-server-newest/bin", "nats-server-oldest/usr/sbin"]:
        program = ROOT / ".tools" / place / "nats-server"
        if os.access(program, os.X_OK):
            return str(program)
    return shutil.which("nats-server")


@pytest.fixture(scope="session")
def nats_program() -> str:
    """Where nats-server is. Without it tests are skipped, but not where all must run."""
    program = _nats_program()
    if program is None:
        why = "there is no nats-server, neither in .tools nor in PATH"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return program


@pytest.fixture
def nats(nats_program: str, tmp_path: Path) -> Iterator[NatsServer]:
    """A nats-server that runs."""
    server = NatsServer(nats_program, tmp_path)
    server.start()
    yield server
    server.kill()

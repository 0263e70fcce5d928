"""What tests have in common: a bus of their own, programs of their own to run in other interpreters, and the servers, collectors
and libraries at the far end."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest

import metricbus

# Programs that tests start import the same package.
os.environ["PYTHONPATH"] = str(Path(metricbus.__file__).parents[1])

# A shell that starts pytest in the background has it ignore Ctrl-C, and with it the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
        _missing("there is no nats-server, neither in .tools nor in PATH")
    return program


@pytest.fixture
def nats(nats_program: str, tmp_path: Path) -> Iterator[NatsServer]:
    """A nats-server that runs."""
    server = NatsServer(nats_program, tmp_path)
    server.start()
    yield server
    server.kill()


def _missing(what: str) -> NoReturn:
    """Tests that need something are skipped without it, but not where all must run."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until somebody takes connections there."""
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args!r} did not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.01)


@dataclass
class Point:
    """What a collector received of one series."""

    name: str
    kind: str = ""
    resource: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    temporality: str = ""
    value: float | None = None
    count: int = 0
    sum: float = 0
    min: float | None = None
    max: float | None = None
    #: Of each bucket, not added up.
    buckets: list[int] = field(default_factory=list)


class Collector:
    """A rotel, which is an OpenTelemetry collector, and writes down all that it receives."""

    def __init__(self, program: str, folder: Path) -> None:
        self.http, self.grpc = _free_port(), _free_port()
        self._log = folder / "collector.log"
        endpoints = ["--otlp-http-endpoint", f"127.0.0.1:{self.http}", "--otlp-grpc-endpoint", f"127.0.0.1:{self.grpc}"]
        debug = ["--exporter", "blackhole", "--debug-log", "metrics", "--debug-log-verbosity", "detailed"]
        files = ["--pid-file", str(folder / "collector.pid"), "--log-file", str(folder / "unused.log")]
        with self._log.open("ab") as out:
            command = [program, "start", *endpoints, *debug, *files]
            self._process = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder)
        _wait_for(self.http, self._process, self._log)
        _wait_for(self.grpc, self._process, self._log)

    def url(self, protocol: str = "http/protobuf") -> str:
        return f"http://127.0.0.1:{self.grpc if protocol == 'grpc' else self.http}"

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def points(self) -> list[Point]:
        """All that were received so far, in the order in which they came."""
        points: list[Point] = []
        resource: dict[str, str] = {}
        pairs: dict[str, str] = {}
        name = kind = temporality = ""
        for line in self._log.read_text(errors="replace").splitlines():
            what, _, value = (part.strip() for part in line.partition(":"))
            attribute = re.fullmatch(r"\s+-> (.*?): Str\((.*)\)", line)
            if attribute:
                pairs[attribute[1]] = attribute[2]
            elif what == "Resource attributes":
                pairs = resource = {}
            elif what == "-> Name":
                name = value
            elif what == "-> DataType":
                kind, temporality = value, ""
            elif what == "-> AggregationTemporality":
                temporality = value.rpartition("_")[2].lower()
            elif what == "Data point attributes":
                pairs = {}
            elif "DataPoints #" in what:
                # Those without attributes say nothing of them.
                pairs = {}
            elif what == "StartTimestamp":
                points.append(Point(name, kind, resource, pairs, temporality))
            elif what in ("Value", "Sum", "Min", "Max") and points:
                setattr(points[-1], what.lower(), float(value))
            elif what == "Count" and points:
                points[-1].count = int(value)
            elif what.startswith("Bucket") and value and points and "Count" in line:
                points[-1].buckets.append(int(line.rpartition(" ")[2]))
        return points

    def until(self, enough: Callable[[list[Point]], bool]) -> list[Point]:
        """All points, when they are enough: what was taken is written down a little later."""
        deadline = time.monotonic() + 20
        while not enough(points := self.points()):
            assert time.monotonic() < deadline, f"it only received {points}"
            time.sleep(0.02)
        return points


def _rotel_program() -> str | None:
    for program in sorted((ROOT / ".tools").glob("rotel*/**/rotel-agent")):
        if os.access(program, os.X_OK):
            return str(program)
    package = importlib.util.find_spec("rotel")
    if package is not None and package.origin is not None:
        program = Path(package.origin).parent / "rotel-agent"
        if os.access(program, os.X_OK):
            return str(program)
    return shutil.which("rotel-agent")


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    """An OpenTelemetry collector that runs."""
    program = _rotel_program()
    if program is None:
        _missing("there is no rotel, neither in .tools nor as a package nor in PATH")
    collector = Collector(program, tmp_path)
    yield collector
    collector.stop()


Compile = Callable[[Path], Path]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Makes a library of a backend in C++."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        _missing("there is no C++ compiler: no g++ in PATH")

    def compiled(source: Path) -> Path:
        path = tmp_path_factory.mktemp("library") / f"lib{source.stem}.so"
        flags = ["-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-O1", f"-I{ROOT / 'capi' / 'include'}"]
        done = subprocess.run([compiler, *flags, str(source), "-o", str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return path

    return compiled


@pytest.fixture(scope="session")
def library(compiled: Compile) -> Path:
    """The sample of a library that counts by itself, which writes to the file that COUNTING_BACKEND_FILE names."""
    return compiled(ROOT / "capi" / "examples" / "backend.cpp")


class Pushgateway:
    """A Pushgateway that keeps what is pushed to it as long as it lives."""

    def __init__(self, program: str, folder: Path) -> None:
        self.port = _free_port()
        log = folder / "pushgateway.log"
        with log.open("ab") as out:
            command = [program, f"--web.listen-address=127.0.0.1:{self.port}", "--persistence.file="]
            self._process = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder)
        _wait_for(self.port, self._process, log)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def groups(self) -> dict[tuple[tuple[str, str], ...], dict[str, str]]:
        """By their labels, the values of metrics that are one series."""
        with urllib.request.urlopen(f"{self.url}/api/v1/metrics") as answer:
            data = json.load(answer)["data"]
        found = {}
        for group in data:
            metrics = {name: metric["metrics"] for name, metric in group.items() if isinstance(metric, dict) and "metrics" in metric}
            found[tuple(sorted(group["labels"].items()))] = {
                name: series[0]["value"] for name, series in metrics.items() if "value" in series[0] and not name.startswith("push_")
            }
        return found

    def wait_for(self, count: int) -> None:
        """Until it has so many groups: it answers before it has deleted."""
        deadline = time.monotonic() + 20
        while len(groups := self.groups()) != count:
            assert time.monotonic() < deadline, f"there are {groups}"
            time.sleep(0.02)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(10)


@pytest.fixture
def pushgateway(tmp_path: Path) -> Iterator[Pushgateway]:
    """A Pushgateway that runs."""
    program = shutil.which("prometheus-pushgateway", path=ROOT / ".tools/pushgateway/usr/bin") or shutil.which("prometheus-pushgateway")
    if program is None:
        _missing("there is no prometheus-pushgateway, neither in .tools nor in PATH")
    gateway = Pushgateway(program, tmp_path)
    yield gateway
    gateway.stop()

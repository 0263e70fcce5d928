"""The directory in which processes that share one `/metrics` find each other.

It owns the names of the files there, and knows which of them may be removed: those whose names have our form, of the kind that this name
stands for, and made on this machine since it was started. Anything else (a stranger's file or folder, what other machines have in a directory
on a network file system) stays as it is. Nothing here raises because of what is in the directory; only what makes a file there does.

| name ends in | it is |
|---|---|
| `.metricbus` | the socket of a process that answers |
| `.new` | one that is not ready yet |
| `.ended` | the last counts of a process that ended |
| `.lost` | the socket of a process that was killed: what it had counted since the last scrape is gone |
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
import stat
import time
from pathlib import Path

__all__ = ["SharedDirectory"]

logger = logging.getLogger("metricbus")

# Longer ones do not fit where the kernel keeps the address, on some systems.
_PATH_MAX = 103

#: For how long what ended is shown, in seconds: longer than Prometheus waits between two scrapes.
KEPT = 300.0
#: How many that ended are shown at most. Of more, the oldest count as lost.
ENDED_MAX = 256


def _machine() -> str:
    """This machine, since it was started: sockets of another one can't be connected to from here, though their process lives."""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        started = socket.gethostname()
    return hashlib.sha256(started.encode()).hexdigest()[:8]


class SharedDirectory:
    """A directory that several processes know."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._machine = _machine()
        self._name = re.compile(rf"\d+-[0-9a-f]{{8}}-{self._machine}\.(metricbus|new|ended|lost)")
        # What has been warned of, once.
        self._told: set[tuple[str, str]] = set()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SharedDirectory) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def open_socket(self) -> tuple[socket.socket, Path]:
        """A socket that listens, and its path. Raises `OSError` when there can be none."""
        # Nobody else may look at the metrics, or make others believe theirs.
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A process id alone comes again.
        path = self.path / f"{os.getpid()}-{os.urandom(4).hex()}-{self._machine}.metricbus"
        if len(os.fsencode(path)) > _PATH_MAX:
            raise OSError(f"{path} is too long for a socket; a directory with a shorter path would be right")
        # Under its name it is known only when it can be connected to: else a scrape would take it for a dead one.
        fresh = path.with_suffix(".new")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(os.fspath(fresh))
            fresh.chmod(0o600)
            listener.listen(64)
            fresh.rename(path)
        except OSError:
            listener.close()
            self._remove(fresh)
            raise
        return listener, path

    def sockets(self) -> list[Path]:
        """Those of processes that answer, or did."""
        return [path for path in self._files() if path.suffix == ".metricbus"]

    def connect(self, path: Path) -> socket.socket | None:
        """A connection to a process that answers, or `None` if there is none any more: then its socket is out of the way. Raises `OSError`
        when it can't be known."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            connection.close()
            self._bury(path)
            return None
        except OSError:
            # Its queue is full, perhaps: it does not accept.
            connection.close()
            raise
        return connection

    def _bury(self, path: Path) -> None:
        if path.with_suffix(".ended").exists():
            self._remove(path)
            return
        try:
            if stat.S_ISSOCK(path.lstat().st_mode):
                os.utime(path)
                path.rename(path.with_suffix(".lost"))
        except FileNotFoundError:
            # Somebody else was quicker.
            pass
        except OSError as error:
            self._tell("can't be put aside", path, error)

    def leave(self, path: Path, report: bytes) -> None:
        """The last words of the process that has this socket. Raises `OSError` when they can't be kept."""
        fresh = path.with_suffix(".new")
        try:
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(report)
            fresh.rename(path.with_suffix(".ended"))
        except OSError:
            self._remove(fresh)
            raise

    def reports(self) -> dict[Path, bytes]:
        """The last words of those that ended not long ago, by the path of their socket."""
        found = {}
        for path in self._files():
            if path.suffix == ".ended":
                try:
                    found[path.with_suffix(".metricbus")] = path.read_bytes()
                except FileNotFoundError:
                    pass
                except OSError as error:
                    self._tell("can't be read", path, error)
        return found

    def lost(self) -> int:
        """How many processes were killed not long ago."""
        return sum(path.suffix == ".lost" for path in self._files())

    def remove(self, path: Path) -> None:
        """A socket of this process's own."""
        self._remove(path)

    def tidy(self) -> None:
        """Removes what has been shown for long enough."""
        now = time.time()
        ended = []
        for path in self._files():
            if path.suffix == ".metricbus":
                continue
            try:
                age = now - path.lstat().st_mtime
            except OSError:
                continue
            if age > KEPT:
                self._remove(path)
            elif path.suffix == ".ended":
                ended.append((age, path))
        ended.sort()
        for _age, path in ended[ENDED_MAX:]:
            try:
                path.rename(path.with_suffix(".lost"))
            except OSError as error:
                self._tell("can't be put aside", path, error)

    def _files(self) -> list[Path]:
        """All that is ours, by name and kind."""
        try:
            with os.scandir(self.path) as entries:
                found = sorted(entry.name for entry in entries if self._name.fullmatch(entry.name) and not entry.is_dir())
        except FileNotFoundError:
            return []
        except OSError as error:
            self._tell("can't be read", self.path, error)
            return []
        return [path for path in (self.path / name for name in found) if self._is_ours(path)]

    def _is_ours(self, path: Path) -> bool:
        try:
            mode = path.lstat().st_mode
        except OSError:
            return False
        if path.suffix == ".metricbus":
            return stat.S_ISSOCK(mode)
        return stat.S_ISREG(mode) or (path.suffix != ".ended" and stat.S_ISSOCK(mode))

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._tell("can't be removed", path, error)

    def _tell(self, what: str, path: Path, error: OSError) -> None:
        if (what, path.name) not in self._told and len(self._told) < 1000:
            self._told.add((what, path.name))
            logger.warning("metricbus: %s %s: %s", path, what, error)

"""Expositions of several processes, put together: each metric once, each series with a label that says whose it is."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field

__all__ = ["MergedText"]

logger = logging.getLogger("metricbus")

# What goes on being true of a process that has ended.
_ACCUMULATED = frozenset(("counter", "histogram", "summary"))


@dataclass
class _Family:
    head: list[str]
    type: str
    lines: list[str] = field(default_factory=list)


class MergedText:
    """What has been put together so far, under the label `label`."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._families: dict[str, _Family] = {}
        self._processes: set[str] = set()

    def add(self, text: str, process: str, pid: int, *, ended: bool = False) -> None:
        """What one process said; of one that ended, what it counted. Raises `ValueError` when it is no exposition, and is left as it was."""
        families = _families(text)
        name, number = process, 1
        while name in self._processes:
            name = f"{process}-{pid}" if number == 1 else f"{process}-{pid}-{number}"
            number += 1
        label = f'{self._label}="{_escaped(name)}"'
        labelled = {}
        for metric, family in families.items():
            if not ended or family.type in _ACCUMULATED:
                labelled[metric] = [self._labelled(line, label) for line in family.lines]
        self._processes.add(name)
        for metric, lines in labelled.items():
            one = families[metric]
            all_of_it = self._families.setdefault(metric, _Family(one.head, one.type))
            if all_of_it.type == one.type:
                all_of_it.lines += lines
            else:
                logger.warning(
                    "metricbus: %s is a %s in process %s and a %s in others, so it is left out", metric, one.type, name, all_of_it.type
                )

    def set(self, name: str, help: str, samples: dict[str, int]) -> None:
        """A gauge of whoever puts things together, by its label `state`."""
        lines = [f'{name}{{state="{state}"}} {count}' for state, count in samples.items()]
        self._families[name] = _Family([f"# HELP {name} {help}", f"# TYPE {name} gauge"], "gauge", lines)

    def lines(self) -> list[str]:
        """All of it, by name."""
        return [line for name in sorted(self._families) for line in (*self._families[name].head, *self._families[name].lines)]

    def _labelled(self, line: str, label: str) -> str:
        """The sample with one label more, and with one of the same name out of its way, as Prometheus itself moves them."""
        brace, space = line.find("{"), line.find(" ")
        if space < 1:
            raise ValueError(f"{line[:200]!r} is no sample")
        if brace < 0 or space < brace:
            return f"{line[:space]}{{{label}}}{line[space:]}"
        start = end = brace + 1
        pairs = []
        while (pair := _PAIR.match(line, end)) is not None:
            pairs.append((pair[1], pair[2]))
            end = pair.end()
        if not line.startswith("} ", end):
            raise ValueError(f"{line[:200]!r} is no sample")
        taken = {name for name, _ in pairs}
        if self._label in taken:
            other = f"exported_{self._label}"
            while other in taken:
                other = f"exported_{other}"
            inner = ",".join(f'{other if name == self._label else name}="{value}"' for name, value in pairs)
        else:
            inner = line[start:end]
        return f"{line[:start]}{label}{',' if inner else ''}{inner}{line[end:]}"


_PAIR = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"(,?)')


def _families(text: str) -> dict[str, _Family]:
    families: dict[str, _Family] = {}
    head: list[str] = []
    begun: str | None = None
    family: _Family | None = None
    for line in text.split("\n"):
        if not line or line == "# EOF":
            continue
        if not line.startswith("# "):
            if family is None:
                raise ValueError(f"{line[:200]!r} is of no metric")
            family.lines.append(line)
            continue
        parts = line.split(" ", 3)
        if len(parts) < 3 or not parts[2]:
            raise ValueError(f"{line[:200]!r} is neither a help text nor a type")
        if parts[2] != begun:
            # Not every metric has a help text to begin with.
            head, begun, family = [], parts[2], None
        head.append(line)
        if parts[1] == "TYPE":
            family = families.setdefault(parts[2], _Family(head, parts[3] if len(parts) > 3 else "untyped"))
    return families


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

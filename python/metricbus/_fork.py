"""What a forked process says of what it does not have from its parent."""

from __future__ import annotations

import logging
import os

from ._metricbus import rules_of_all, stayed_with_parent

__all__: list[str] = []

logger = logging.getLogger("metricbus")

_rules = 0


def _before() -> None:
    global _rules
    _rules = rules_of_all()


def _in_child() -> None:
    counts = [("rule", _rules), *stayed_with_parent()]
    stayed = ", ".join(f"{count} {what}{'' if count == 1 else 's'}" for what, count in counts if count)
    if stayed:
        logger.warning(
            "metricbus: process %s was forked, and what its parent %s has stayed there: %s; subscribe, add rules and serve again here if it is to "
            "hear and be heard",
            os.getpid(),
            os.getppid(),
            stayed,
        )


# After the hooks of the delivery, which make this process another one for all of ours: that module is imported before this one.
os.register_at_fork(before=_before, after_in_child=_in_child)

"""The stubs say what is there, and users' code is checked against them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import metricbus

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.once


def check(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_stubs_agree_with_the_module() -> None:
    check("mypy.stubtest", "metricbus", "--allowlist", "tests/stubtest-allowlist.txt")


def test_package_examples_and_tests_pass_strict_checks() -> None:
    check("mypy")


def test_everything_public_is_documented() -> None:
    missing = []
    for name in metricbus.__all__:
        thing = getattr(metricbus, name)
        if isinstance(thing, type):
            members = [f"{name}.{m}" for m, v in vars(thing).items() if not m.startswith("_") and not getattr(v, "__doc__", None)]
            missing += members
        if not thing.__doc__:
            missing.append(name)
    assert missing == []

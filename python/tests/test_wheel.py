"""The wheel: built with one command, installed where nothing of the checkout is."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.once


def test_a_wheel_has_all_that_it_takes_and_nothing_else(tmp_path: Path) -> None:
    # Not in release mode, so that what is built for the other tests is used.
    command = [sys.executable, "-m", "maturin", "build", "--profile", "dev", "--quiet", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp311-abi3-" in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"metricbus/py.typed", "metricbus/_metricbus.pyi", "metricbus/__init__.py"} <= names
    assert not [name for name in names if name.startswith(("tests", "examples", "benches", "src"))]

    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    python = venv / "bin" / "python"
    install: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", wheel]
    subprocess.run(install, check=True, timeout=120)
    program = "import metricbus; g = metricbus.Gauge('g', 'G.'); g.set(2); print(g.get(), metricbus.__version__)"
    done = subprocess.run([python, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("2.0 0.")

"""Every block of code in the README runs, and prints what the README says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"

# A block of Python, and what it prints, if that comes next.
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    return [(found[1], found[2] or "") for found in BLOCK.finditer(README.read_text())]


def test_all_blocks_are_found() -> None:
    text = README.read_text()
    assert len(blocks()) == text.count("```python\n") > 5
    assert sum(bool(output) for _, output in blocks()) == text.count("```text\n")
    assert set(re.findall(r"^```(\w+)", text, re.MULTILINE)) == {"python", "text", "sh"}


@pytest.mark.parametrize("code, output", blocks(), ids=[str(number) for number in range(1, len(blocks()) + 1)])
def test_a_block_runs_and_prints_what_it_says(code: str, output: str, request: pytest.FixtureRequest) -> None:
    environment = dict(os.environ)
    if "NatsOptions" in code:
        environment["NATS_URL"] = request.getfixturevalue("nats").url
    if "OtlpOptions" in code:
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = request.getfixturevalue("collector").url()
    if "new_libnv" in code:
        environment["METRICBUS_LIBNV"] = str(request.getfixturevalue("library"))
    if "push_to_gateway" in code:
        environment["PUSHGATEWAY"] = request.getfixturevalue("pushgateway").url
    with tempfile.TemporaryDirectory(prefix="mb-") as directory:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            capture_output=True,
            text=True,
            timeout=60,
            env={**environment, "METRICBUS_MULTIPROC_DIR": directory},
        )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == (output, "")

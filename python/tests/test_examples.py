"""The examples run, and do what they say."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import httpx
import matplotlib.image
import pytest
from conftest import Collector

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str, *options: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def imported(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_every_example_says_what_it_is(name: str) -> None:
    assert (EXAMPLES / name).read_text().startswith(('"""', "# %% [markdown]"))
    assert "usage:" in example(name, "--help").stdout


def test_the_fastapi_component_measures_its_requests_and_knows_when_it_is_busy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = imported("fastapi_component")

    async def main() -> tuple[list[httpx.Response], str]:
        transport = httpx.ASGITransport(app=module.app)
        async with module.app.router.lifespan_context(module.app):
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                responses = await asyncio.gather(*(client.get("/generate?tokens=20") for _ in range(12)))
                responses.append(await client.get("/nothing/here"))
                return responses, (await client.get("/metrics/")).text

    responses, text = asyncio.run(main())
    assert [response.status_code for response in responses] == [200] * 12 + [404]
    assert responses[0].json() == {"tokens": 20, "busy": True}
    assert 'generator_requests_total{route="/generate",code="200"} 12\n' in text
    assert 'generator_requests_total{route="(none)",code="404"} 1\n' in text
    assert 'generator_request_seconds_count{route="/generate"} 12\n' in text
    assert "generator_tokens_total 240\n" in text
    assert capsys.readouterr().out == "busy\nidle again\n"


def test_the_planner_starts_workers_for_the_load_and_stops_them_after_it() -> None:
    done = example("planner.py", "--seconds", "4", "--serve", "127.0.0.1:0")
    lines = [line.partition(" s  ")[2] for line in done.stdout.splitlines()]
    assert done.stderr == ""
    assert lines[0].startswith("metrics at http://127.0.0.1:")
    full, idle = (next(i for i, line in enumerate(lines) if line.startswith(f"{rule} firing")) for rule in ("KvCacheFull", "Idle"))
    # What it hears comes before what it does.
    assert lines[full + 1].startswith("  + w2, now 2")
    assert full < idle and lines[idle + 1].startswith("  - w")
    assert "alerts" in lines[-1]


def test_the_planner_says_what_it_can_not_do() -> None:
    assert "more than 0 would be right" in example("planner.py", "--seconds", "0", status=2).stderr
    assert "9464" in example("planner.py", "--serve", ":9464", status=2).stderr


def test_the_plot_of_a_window_shows_when_the_rule_fired(tmp_path: Path) -> None:
    output = tmp_path / "window.png"
    done = example("plot_window.py", "--output", str(output), "--minutes", "12")
    firing, resolved, plotted = done.stdout.splitlines()
    assert "SlowFirstTokens firing, p99 = 1." in firing
    assert "SlowFirstTokens resolved, p99 = 0." in resolved
    assert plotted == f"plotted to {output}"
    pixels = matplotlib.image.imread(output)
    assert pixels.shape[:2] == (540, 1080)
    # Something is drawn: lines, and the time in which it fired, in red.
    red = (pixels[..., 0] > pixels[..., 2] + 0.05).mean()
    assert 0.1 < red < 0.6


def test_the_component_says_the_same_with_each_backend(library: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())
    said = {
        backend: example("switch_backend.py", "--backend", backend, "--prefix", "app").stdout
        for backend in ("prometheus", "null", "otlp", f"libnv:{library}", f"tee:otlp,libnv:{library}")
    }
    assert "GET requests: 75\n" in said["prometheus"]
    assert "\neverything is where it belongs\n" in said["prometheus"]
    assert "\napp_cache_hits_total 34\n" in said["prometheus"]
    assert set(said.values()) == {said["prometheus"]}
    points = collector.until(lambda points: len(points) >= 10)
    assert {point.value for point in points if point.name == "app_cache_hits_total"} == {34}


def test_a_wrong_backend_is_said_before_anything_happens() -> None:
    done = example("switch_backend.py", "--backend", "statsd", status=2)
    assert 'nothing is called "statsd"; there are ' in done.stderr

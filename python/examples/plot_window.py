"""A sliding window over time: average and 99th percentile, with the threshold of a rule and when it fired.

Run it as a program (`python examples/plot_window.py --output window.png`), or cell by cell in an editor or a notebook that knows
`# %%`. Twenty minutes pass on a clock of their own, so it takes a moment and always draws the same.
"""

# %% Options. In a notebook these are what is written here.
from __future__ import annotations

import argparse
import random

from matplotlib.figure import Figure

import metricbus as mb

parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
parser.add_argument("--output", default="window.png", help="where the plot goes (%(default)s)")
parser.add_argument("--minutes", type=int, default=20, help="how long the made-up traffic lasts (%(default)s)")
# A notebook has arguments of its own.
options, _others = parser.parse_known_args()

# %% A bus whose clock we move ourselves, a histogram, and a window of a minute over it.
clock = mb.Clock.manual()
bus = mb.MetricBus(clock=clock)
ttft = bus.histogram("time_to_first_token_seconds", "Time from a request to its first token.", unit="seconds")
window = bus.window(ttft, 60)

# %% A rule over the same window: its 99th percentile above a bound, for ten seconds.
RAISE, CLEAR = 1.0, 0.7
p99 = mb.Expr.over(ttft, 60).quantile(0.99)
rule = bus.add_rule(mb.Rule("SlowFirstTokens", mb.when(p99, above=RAISE, clear_below=CLEAR), hold_for=10))
alerts = rule.on_alert().stream()

# %% Traffic: about twenty requests per second, and a time in which the prefill queue is long.
chance = random.Random(7)
times: list[float] = []
averages: list[float | None] = []
percentiles: list[float | None] = []
fired: list[mb.Alert] = []
total = options.minutes * 60
for second in range(total):
    queue = 5.0 if 0.3 * total < second < 0.55 * total else 1.0
    for _ in range(chance.randint(15, 25)):
        ttft.observe(0.08 * queue * chance.lognormvariate(0.0, 0.55))
    clock.advance(1)
    stats = window.stats()
    times.append(clock.now() / 60)
    averages.append(stats.avg)
    percentiles.append(stats.quantile(0.99))
    while (alert := alerts.get_nowait()) is not None:
        fired.append(alert)

for alert in fired:
    print(f"{alert.at / 60:5.1f} min  {alert.rule} {alert.state}, p99 = {alert.value:.2f} s")

# %% The plot: the window, the bounds, and the time from firing to resolved.
figure = Figure(figsize=(9, 4.5), layout="constrained")
axes = figure.subplots()
axes.plot(times, [value if value is not None else float("nan") for value in percentiles], label="99th percentile", color="tab:red")
axes.plot(times, [value if value is not None else float("nan") for value in averages], label="average", color="tab:blue")
axes.axhline(RAISE, color="black", linestyle="--", linewidth=1, label=f"fires above {RAISE} s")
axes.axhline(CLEAR, color="grey", linestyle=":", linewidth=1, label=f"clears below {CLEAR} s")
firing: float | None = None
for alert in fired:
    if alert.is_firing:
        firing = alert.at / 60
    elif firing is not None:
        axes.axvspan(firing, alert.at / 60, color="tab:red", alpha=0.12, label="firing")
        firing = None
if firing is not None:
    axes.axvspan(firing, times[-1], color="tab:red", alpha=0.12, label="firing")
axes.set_xlabel("minutes")
axes.set_ylabel("time to first token (s)")
axes.set_xlim(0, total / 60)
axes.set_ylim(bottom=0)
axes.set_title("time_to_first_token_seconds over one minute")
axes.legend(loc="upper right")
figure.savefig(options.output, dpi=120)
print(f"plotted to {options.output}")

"""A plugin of pytest: gives `prometheus_client`'s own tests our classes in place of theirs."""

from __future__ import annotations

import prometheus_client
import prometheus_client.core

import metricbus as mb

OURS = {"Counter": mb.Counter, "Gauge": mb.Gauge, "Histogram": mb.Histogram, "CollectorRegistry": mb.MetricBus}

for module in (prometheus_client, prometheus_client.core):
    for name, ours in OURS.items():
        setattr(module, name, ours)

//! `gauge_set`, `gauge_set_armed`: setting a gauge to one of 65 536 unpredictable values.
//!
//! - Subject: `Gauge::set` on a bus that is in use: somebody subscribed to another series. *Armed*: one threshold is on
//!   this very gauge, above all values set.
//! - Floor: `AtomicU64::swap(bits, AcqRel)`. A plain store is cheaper still, and what the peers do; but with one a
//!   crossing can be missed, so it is no floor for what metricbus promises.
//! - Peers: the gauges of `prometheus`, `prometheus-client` and `measured`; the naive bus without a subscriber.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use metricbus::{Gauge, MetricBus, Subscription, Threshold};

use crate::{
    Failure,
    harness::{Effort, Lane, Role, Values, interleave},
    naive::NaiveBus,
    report::{Bar, Figures, Unit},
};

struct Ours {
    gauge: Gauge,
    _bus: MetricBus,
    _subscriptions: Vec<Subscription>,
}

fn ours(armed: bool) -> Result<Ours, Failure> {
    let bus = MetricBus::new();
    let gauge = bus.gauge("kv_usage", "Share of the cache in use.")?;
    let elsewhere = bus.gauge("queue_depth", "Requests waiting.")?;
    let never = Threshold::above(1e9).clear_below(-1e9);
    let mut subscriptions = vec![bus.on_threshold(&elsewhere, never).call(|_| {})?];
    if armed {
        subscriptions.push(bus.on_threshold(&gauge, never).call(|_| {})?);
    }
    Ok(Ours {
        gauge,
        _bus: bus,
        _subscriptions: subscriptions,
    })
}

pub(crate) fn set(effort: Effort) -> Result<Figures, Failure> {
    entry("gauge_set", effort, false)
}

pub(crate) fn set_armed(effort: Effort) -> Result<Figures, Failure> {
    entry("gauge_set_armed", effort, true)
}

fn entry(name: &'static str, effort: Effort, armed: bool) -> Result<Figures, Failure> {
    let ours = ours(armed)?;
    let naive = NaiveBus::new(1024);
    let values = &Values::unit();
    let lanes = &mut [
        Lane::of(Role::Subject, "metricbus", ours.gauge.clone(), |g, i| {
            g.set(values.get(i))
        }),
        Lane::of(
            Role::Floor,
            "swap(AcqRel)",
            Arc::new(AtomicU64::new(0)),
            |a, i| {
                a.swap(values.get(i).to_bits(), Ordering::AcqRel);
            },
        ),
        Lane::of(
            Role::Peer,
            "prometheus",
            prometheus::Gauge::new("kv_usage", "Share of the cache in use.")?,
            |g, i| g.set(values.get(i)),
        ),
        Lane::of(
            Role::Other,
            "prometheus-client",
            prometheus_client::metrics::gauge::Gauge::<f64, AtomicU64>::default(),
            |g, i| {
                g.set(values.get(i));
            },
        ),
        Lane::of(
            Role::Other,
            "measured",
            Arc::new(measured::FloatGauge::new()),
            |g, i| {
                g.get_metric().count.set(values.get(i));
            },
        ),
        Lane::of(
            Role::Other,
            "naive bus, no subscriber",
            naive.gauge("kv_usage", "Share of the cache in use.")?,
            |g, i| g.set(values.get(i)),
        ),
    ];
    let rounds = interleave(effort.fast(), lanes)?;
    Ok(Figures::new(name, Unit::Ns, rounds, Bar::Floor(1.2)))
}

//! `nats_crossing_to_remote_callback`: from the call that makes a gauge cross its rule's bound to the first line of the
//! callback that hears of it through a `Fleet`, over a nats-server on the same machine.
//!
//! It is the race of [`crossing`](crate::crossing), with the network in between: one crossing at a time, the receiving
//! thread truly parked before each, contenders by turns. Sender and receiver have a tokio runtime each, with one worker;
//! they share a process, so that one clock is read. The machine's two processors go on idling while the message is in the
//! server: absolute times are mostly those of waking up four times.
//!
//! - Subject: a rule on a bus, its alert through a `NatsForwarder` to `Fleet::on_alert(…).call(…)`. Without JetStream, which
//!   would only store what is delivered all the same.
//! - Floor: a bare publish of async-nats to a bare subscription that a thread of its own reads, on connections of their own,
//!   with as many bytes. A callback may block, and so must not run on the worker that reads the socket: that the message goes
//!   to another thread is a part of what is asked for, and not of how metricbus does it.
//! - Less than is asked for, for orientation: the same with a subscription that a task reads on the worker that reads the
//!   socket.
//! - Another way through metricbus: the gauge itself is forwarded, and `on_threshold(…).call(…)` on the fleet's bus.

use std::time::Duration;

use futures::{StreamExt, executor::block_on};
use metricbus::{
    Alert, Condition, Crossed, Crossing, MetricBus, Rule, SourceId,
    nats::{Delivery, Fleet, NatsForwarder, NatsOptions},
};
use tokio::runtime::Runtime;

use super::server;
use crate::{
    Failure,
    crossing::{Contender, OVER, Probe, UNDER, busy, race},
    harness::{Effort, Role, spin_until},
    report::{Bar, Figures},
};

fn runtime() -> Result<Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?)
}

pub(crate) fn to_remote_callback(effort: Effort) -> Result<Figures, Failure> {
    let server = server()?;
    let url = server.url();
    let (sending, receiving) = (runtime()?, runtime()?);

    let bus = MetricBus::new();
    let ruled = &bus.gauge("ruled", "Share of the cache in use.")?;
    let forwarded = &bus.gauge("forwarded", "Share of the cache in use.")?;
    bus.add_rule(Rule::new("Full", Condition::when(ruled, busy())))?;
    let forwarder = sending.block_on(
        NatsForwarder::builder(&bus, NatsOptions::new(&url)?)
            .source(SourceId::new("bench", "crossing", "0"))
            .delivery(Delivery::Core)
            // There are more than would do anybody good.
            .alerts_per_second_max(1e6)
            .frames_per_second_max(1e6)
            .start(),
    )?;
    let entered = sending.enter();
    let _alerts = forwarder.forward_alerts()?;
    let _frames = forwarder
        .forward("forwarded")
        .every(Duration::from_millis(10))
        .start()?;
    drop(entered);
    forwarded.set(UNDER);

    let fleet = receiving.block_on(Fleet::builder(NatsOptions::new(&url)?).start())?;
    receiving.block_on(fleet.synced());
    spin_until("the fleet to know its source", || {
        fleet.sources().len() == 1
    })?;

    let sender = sending.block_on(async_nats::connect(&url))?;
    let receiver = receiving.block_on(async_nats::connect(&url))?;
    let payload = vec![b'x'; alert_bytes(&receiving, &receiver, ruled)?];

    let alert_probe = Probe::new();
    let probe = alert_probe.clone();
    let _heard = fleet.on_alert().call(move |alert: Alert| {
        if alert.is_firing() {
            probe.reach();
        } else {
            probe.clear();
        }
    })?;

    let frame_probe = Probe::new();
    let probe = frame_probe.clone();
    let _crossed = fleet.bus().on_threshold("forwarded", busy()).call(
        move |crossing: Crossing| match crossing.state {
            Crossed::Raised => probe.reach(),
            Crossed::Cleared => probe.clear(),
        },
    )?;

    let subscribe = |subject: &'static str| {
        receiving.block_on(async {
            let messages = receiver.subscribe(subject).await?;
            receiver.flush().await?;
            Ok::<_, Failure>(messages)
        })
    };
    let bare_probe = Probe::new();
    let probe = bare_probe.clone();
    let mut messages = subscribe("bare")?;
    // It ends with the connection.
    std::thread::spawn(move || {
        while block_on(messages.next()).is_some() {
            probe.reach();
        }
    });
    let task_probe = Probe::new();
    let probe = task_probe.clone();
    let mut messages = subscribe("task")?;
    receiving.spawn(async move {
        while messages.next().await.is_some() {
            probe.reach();
        }
    });
    let payload = bytes::Bytes::from(payload);
    let publish = |subject: &'static str| {
        // It only goes to the connection's task; an error would be found by nobody being reached.
        let _ = block_on(sender.publish(subject, payload.clone()));
    };

    let mut contenders = [
        Contender::gauge(
            Role::Subject,
            ("rule to Fleet::on_alert", ""),
            &alert_probe,
            ruled,
        ),
        Contender::new(
            Role::Floor,
            ("bare async-nats", "floor_"),
            &bare_probe,
            || publish("bare"),
            None,
        ),
        Contender::new(
            Role::Other,
            ("bare async-nats, on the worker that reads", "task_"),
            &task_probe,
            || publish("task"),
            None,
        ),
        Contender::gauge(
            Role::Other,
            ("frames to on_threshold on the fleet's bus", "frames_"),
            &frame_probe,
            forwarded,
        ),
    ];
    let blocks = effort.pick((5, 20), (24, 40));
    let mut figures = race(
        "nats_crossing_to_remote_callback",
        &mut contenders,
        blocks,
        Bar::Floor(1.5),
    )?;
    figures.more("payload_bytes", payload.len() as f64);
    receiving.block_on(async { forwarder.shutdown(Duration::from_secs(1)).await });
    Ok(figures)
}

/// How large an alert is on the wire, headers included.
fn alert_bytes(
    runtime: &Runtime,
    client: &async_nats::Client,
    gauge: &metricbus::Gauge,
) -> Result<usize, Failure> {
    runtime.block_on(async {
        let mut alerts = client.subscribe("metricbus.v1.*.*.*.a.>").await?;
        client.flush().await?;
        let mut bytes = 0;
        for value in [OVER, UNDER] {
            gauge.set(value);
            let wait = tokio::time::timeout(Duration::from_secs(10), alerts.next()).await;
            let alert = wait.ok().flatten().ok_or("no alert came within 10 s")?;
            bytes = alert.length;
        }
        alerts.unsubscribe().await?;
        Ok(bytes)
    })
}

//! The receiving side: the view of other processes.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use metricbus::nats;
use pyo3::{prelude::*, types::PyTuple};
use tokio::sync::watch;

use super::{
    NatsOptions, at_once,
    forwarder::source,
    later,
    rules::{RuleTarget, SentRule, SourceRules},
    source::SourceStatus,
    status::ConnectionStatus,
    window::FleetWindow,
};
use crate::{
    bus::{self, Bus, Clock, MetricBus},
    convert,
    deliver::listen,
    error::{Raise, raise},
    fork::{Counted, Forked, Kind},
    rule::Rule,
    snapshot::Snapshot,
};

impl<T> Raise<T> for Result<T, nats::FleetError> {
    fn or_raise(self) -> PyResult<T> {
        use nats::FleetError;
        self.or_else(|error| match error {
            FleetError::Nats(error) => Err(error).or_raise(),
            FleetError::Selector(error) => Err(error).or_raise(),
            FleetError::Rule(error) => Err(error).or_raise(),
            FleetError::Declare(error) => Err(error).or_raise(),
            error => Err(raise("FleetError", error)),
        })
    }
}

/// All sources of a fleet: their series, as they are, on a bus of its own; their alerts; whether they live. Made by
/// `await Fleet.start(options, …)`.
///
/// It finds by itself who is there, and takes each over by snapshot; it finds out what it missed, and mends it. It ends when
/// it is closed, by `close()` or the end of an `async with`, or when nothing refers to it any more; its bus is then left
/// without the sources' series. It belongs to the process, not to the loop in which it was started.
///
/// Series have the labels `namespace`, `component` and `instance` in front, and are ordinary series of `bus` otherwise:
/// selectors, thresholds, rules, windows and `/metrics` apply. They move when a frame comes, so a spike between two frames is
/// seen by rules at the source only. `fleet_source_up{namespace,component,instance}` is 1 for a source that lives and 0 for
/// one that is stale; of one that is gone there is none.
#[pyclass(frozen, weakref, module = "metricbus")]
pub(crate) struct Fleet {
    running: Arc<Running>,
    bus: Arc<Bus>,
}

/// A fleet, until it is closed.
struct Running(Forked<Open>);

struct Open {
    _counted: Counted,
    fleet: Mutex<Option<nats::Fleet>>,
    /// For those who wait for an answer at that moment, and keep the fleet meanwhile.
    closed: watch::Sender<bool>,
}

fn closed() -> PyErr {
    raise("ClosedError", "this fleet was closed")
}

impl Running {
    fn open(&self) -> PyResult<&Open> {
        self.0.here().ok_or_else(|| {
            raise(
                "ForkedError",
                "this fleet is of the process from which this one was forked; start one here",
            )
        })
    }

    fn get(&self) -> PyResult<nats::Fleet> {
        let fleet = &self.open()?.fleet;
        let fleet = fleet.lock().unwrap_or_else(PoisonError::into_inner);
        fleet.clone().ok_or_else(closed)
    }

    fn is_closed(&self) -> bool {
        self.0.here().is_none_or(|open| *open.closed.borrow())
    }

    fn close(&self) {
        if let Some(open) = self.0.here() {
            let fleet = {
                let mut fleet = open.fleet.lock().unwrap_or_else(PoisonError::into_inner);
                fleet.take()
            };
            drop(fleet);
            open.closed.send_replace(true);
        }
    }

    /// Something to await that the fleet is asked; where it is closed meanwhile, that ends, too.
    fn ask<'py, T, F>(
        &self,
        py: Python<'py>,
        ask: impl FnOnce(nats::Fleet) -> F,
        then: impl FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send + 'static,
    ) -> PyResult<Bound<'py, PyAny>>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let answer = ask(self.get()?);
        let mut end = self.open()?.closed.subscribe();
        let answer = async move {
            tokio::select! {
                answer = answer => Some(answer),
                _ = end.wait_for(|closed| *closed) => None,
            }
        };
        later(py, answer, |py, answer| {
            then(py, answer.ok_or_else(closed)?)
        })
    }
}

#[pymethods]
impl Fleet {
    /// Begins to listen. An unreachable server is no error: it is tried again and again, and `status()` says how it goes.
    ///
    /// `options` are `NatsOptions` or a URL. `namespace` and `component` choose sources; `prefix` is that of all subjects, as
    /// the forwarders have it: `metricbus`.
    ///
    /// A source of which nothing was heard for `stale_after` is stale: three of its heartbeats unless told otherwise; one of
    /// which nothing was heard for `gone_after`, 10 s, is gone. `sources_max` and `series_max_per_source` bound what is taken
    /// in: 10 000 each. `rules_bucket` is where sources look for rules: `metricbus-rules`. `clock` is the clock of the
    /// fleet's bus, by which sources live and die.
    #[staticmethod]
    #[pyo3(signature = (options, *, namespace=None, component=None, prefix=None, stale_after=None, gone_after=None, sources_max=None, series_max_per_source=None, rules_bucket=None, clock=None))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn start<'py>(
        py: Python<'py>,
        options: &Bound<'py, PyAny>,
        namespace: Option<String>,
        component: Option<String>,
        prefix: Option<String>,
        stale_after: Option<&Bound<'py, PyAny>>,
        gone_after: Option<&Bound<'py, PyAny>>,
        sources_max: Option<usize>,
        series_max_per_source: Option<usize>,
        rules_bucket: Option<String>,
        clock: Option<&Clock>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let mut builder = nats::Fleet::builder(NatsOptions::of(options)?);
        if let Some(namespace) = namespace {
            builder = builder.namespace(namespace);
        }
        if let Some(component) = component {
            builder = builder.component(component);
        }
        if let Some(prefix) = prefix {
            builder = builder.prefix(prefix);
        }
        if let Some(silence) = stale_after {
            builder = builder.stale_after(convert::duration("stale_after", silence)?);
        }
        if let Some(silence) = gone_after {
            builder = builder.gone_after(convert::duration("gone_after", silence)?);
        }
        if let Some(sources) = sources_max {
            builder = builder.sources_max(sources);
        }
        if let Some(series) = series_max_per_source {
            builder = builder.series_max_per_source(series);
        }
        if let Some(bucket) = rules_bucket {
            builder = builder.rules_bucket(bucket);
        }
        if let Some(clock) = clock {
            builder = builder.clock(clock.0.clone());
        }
        later(py, builder.start(), |py, started| {
            let fleet = started.or_raise()?;
            let made = Fleet {
                bus: Arc::new(Bus::of(fleet.bus().clone())),
                running: Arc::new(Running(Forked::new(Open {
                    _counted: Counted::new(Kind::Fleet),
                    fleet: Mutex::new(Some(fleet)),
                    closed: watch::Sender::new(false),
                }))),
            };
            Ok(Py::new(py, made)?.into_any())
        })
    }

    /// The bus with all series of all sources. Metrics may be declared on it, too.
    #[getter]
    fn bus(&self) -> PyResult<MetricBus> {
        self.running.open()?;
        Ok(MetricBus(self.bus.clone()))
    }

    /// Done when the fleet is connected and knows everybody who is there, with all series and what is firing. At once, where
    /// it is so already. Without a server it waits for one: bound it by `asyncio.wait_for`.
    fn synced<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let ask = |fleet: nats::Fleet| async move { fleet.synced().await };
        self.running.ask(py, ask, |py, ()| Ok(py.None()))
    }

    /// Whether it is in sync now.
    #[getter]
    fn is_synced(&self) -> PyResult<bool> {
        Ok(self.running.get()?.is_synced())
    }

    /// All sources, sorted; those that were gone in the last ten minutes, too.
    fn sources(&self, py: Python<'_>) -> PyResult<Vec<SourceStatus>> {
        let fleet = self.running.get()?;
        let sources = py.detach(|| fleet.sources());
        Ok(sources.into_iter().map(SourceStatus::from).collect())
    }

    /// How one source stands, or `None`: it is not known.
    fn source(&self, py: Python<'_>, source: &Bound<'_, PyAny>) -> PyResult<Option<SourceStatus>> {
        let (fleet, source) = (self.running.get()?, self::source(source)?);
        Ok(py.detach(|| fleet.source(&source)).map(SourceStatus::from))
    }

    /// What becomes of sources; first, unless `initial` is false, which are there.
    #[pyo3(signature = (callback=None, *, capacity=None, initial=true))]
    fn on_source(
        &self,
        py: Python<'_>,
        callback: Option<Bound<'_, PyAny>>,
        capacity: Option<usize>,
        initial: bool,
    ) -> PyResult<Py<PyAny>> {
        let running = self.running.clone();
        let open = move || bus::stream(running.get()?.on_source().initial(initial), capacity);
        listen(py, open, callback)
    }

    /// The alerts that rules at the sources make: what is firing first, unless `initial` is false, then each once and in
    /// order for each source. `alert.origin` says of whom. Alerts of rules on the fleet's own bus: `fleet.bus.on_alert`.
    #[pyo3(signature = (callback=None, *, capacity=None, initial=true))]
    fn on_alert(
        &self,
        py: Python<'_>,
        callback: Option<Bound<'_, PyAny>>,
        capacity: Option<usize>,
        initial: bool,
    ) -> PyResult<Py<PyAny>> {
        let running = self.running.clone();
        let open = move || bus::stream(running.get()?.on_alert().initial(initial), capacity);
        listen(py, open, callback)
    }

    /// Runs a rule over the series of all sources; as `add_rule` of `bus`.
    fn add_rule(&self, py: Python<'_>, rule: &Bound<'_, Rule>) -> PyResult<Py<PyAny>> {
        let bus = Py::new(py, self.bus()?)?;
        bus.call_method1(py, "add_rule", (rule,))
    }

    /// Asks all live sources what a window of this width has seen, and merges what they say without loss: quantiles are those
    /// of all observations of all sources.
    ///
    /// Matchers on `namespace`, `component` and `instance` choose whom to ask. A source opens a window when it is first
    /// asked, so the first answers cover little of it: see `stats.coverage`. It keeps it as long as somebody asks at least
    /// once a minute. Sources that don't answer within two seconds are named in the result; so are those that are stale.
    fn window<'py>(
        &self,
        py: Python<'py>,
        selector: &Bound<'py, PyAny>,
        width: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let selector = convert::written(selector)?;
        let width = convert::duration("width", width)?;
        let ask = move |fleet: nats::Fleet| async move { fleet.window(&selector, width).await };
        self.running.ask(py, ask, |py, window| {
            Ok(FleetWindow::of(py, window.or_raise()?)?.into_any())
        })
    }

    /// Asks one source for the selected series as they are this moment, of those that it forwards; all of them unless told
    /// otherwise. Their labels are those that the source gave them. Raises `FleetError` when it does not answer.
    #[pyo3(signature = (source, selector=None))]
    fn snapshot<'py>(
        &self,
        py: Python<'py>,
        source: &Bound<'py, PyAny>,
        selector: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let selector = match selector {
            Some(selector) => convert::written(selector)?,
            None => metricbus::IntoSelector::into_selector(r#"{__name__!=""}"#).or_raise()?,
        };
        let source = self::source(source)?;
        let ask = move |fleet: nats::Fleet| async move { fleet.snapshot(&source, &selector).await };
        self.running.ask(py, ask, |py, snapshot| {
            let snapshot = Snapshot::of(py, snapshot.or_raise()?)?;
            Ok(Py::new(py, snapshot)?.into_any())
        })
    }

    /// Asks one source how its rules stand. Raises `FleetError` when it does not answer.
    fn rules_of<'py>(
        &self,
        py: Python<'py>,
        source: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let source = self::source(source)?;
        let ask = move |fleet: nats::Fleet| async move { fleet.rules_of(&source).await };
        self.running.ask(py, ask, |py, rules| {
            let rules = SourceRules::from(rules.or_raise()?);
            Ok(Py::new(py, rules)?.into_any())
        })
    }

    /// Sends a rule to sources, which run it themselves where they were told to take rules from this bucket: each mutation is
    /// judged, and only transitions travel. It replaces the one of its name that was sent to the same target.
    ///
    /// Without a connection, or JetStream, it is kept and written as soon as that can be; `written` and `why` of what it
    /// returns say so. It stays in the bucket when the fleet ends. Whether sources took it: `rules_of`.
    fn send_rule<'py>(
        &self,
        py: Python<'py>,
        target: &RuleTarget,
        rule: &Rule,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (target, rule) = (target.0.clone(), rule.core.clone());
        let ask = move |fleet: nats::Fleet| async move { fleet.send_rule(target, rule).await };
        self.running.ask(py, ask, |py, sent| {
            Ok(SentRule::of(py, sent.or_raise()?)?.into_any())
        })
    }

    /// Takes a rule back that was sent to this target, by whomever: sources end it. Where it can't be written yet it is kept,
    /// as with `send_rule`. One that is not there is no error.
    fn retract_rule<'py>(
        &self,
        py: Python<'py>,
        target: &RuleTarget,
        name: String,
    ) -> PyResult<Bound<'py, PyAny>> {
        let target = target.0.clone();
        let ask = move |fleet: nats::Fleet| async move { fleet.retract_rule(target, &name).await };
        self.running.ask(py, ask, |py, sent| {
            Ok(SentRule::of(py, sent.or_raise()?)?.into_any())
        })
    }

    /// All rules in the bucket, by whomever they were sent, and those that this fleet could not yet write. Without a
    /// connection: those that this fleet has sent.
    fn sent_rules<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let ask = |fleet: nats::Fleet| async move { fleet.sent_rules().await };
        self.running.ask(py, ask, |py, sent| {
            let sent = sent.or_raise()?.into_iter();
            let sent = sent.map(|sent| SentRule::of(py, sent));
            let sent = sent.collect::<PyResult<Vec<_>>>()?;
            Ok(sent.into_pyobject(py)?.into_any().unbind())
        })
    }

    /// How it stands.
    fn status(&self, py: Python<'_>) -> PyResult<FleetStatus> {
        let fleet = self.running.get()?;
        let status = py.detach(|| fleet.status());
        Ok(status.into())
    }

    /// Whether it was closed.
    #[getter]
    fn is_closed(&self) -> bool {
        self.running.is_closed()
    }

    /// Ends it. Its bus is left without the sources' series, and `on_alert` and `on_source` hear no more.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.running.close());
    }

    fn __aenter__<'py>(slf: Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        at_once(slf.py(), slf.clone())
    }

    #[pyo3(signature = (*_exception))]
    fn __aexit__<'py>(
        &self,
        py: Python<'py>,
        _exception: &Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.close(py);
        at_once(py, py.None())
    }

    fn __repr__(&self) -> String {
        match self.running.get() {
            Ok(fleet) => {
                let status = fleet.status();
                format!(
                    "<Fleet {}: {} live, {} stale, {} gone>",
                    status.connection.state, status.live, status.stale, status.gone
                )
            }
            Err(_) => "<Fleet closed>".to_owned(),
        }
    }
}

/// How a fleet stands.
#[pyclass(frozen, get_all, module = "metricbus")]
pub(crate) struct FleetStatus {
    /// Its connection.
    connection: ConnectionStatus,
    /// Whether it knows all who are there, with everything.
    synced: bool,
    /// Sources that live …
    live: usize,
    /// … that are stale …
    stale: usize,
    /// … and that are gone, of the last ten minutes.
    gone: usize,
    /// Sources of which something is missing: not yet taken over, or being mended.
    unsynced: usize,
    /// Times at which frames of a source were found missing.
    gaps: u64,
    /// Alerts that nobody can get any more.
    alerts_lost: u64,
    /// Groups of rules that fire at sources.
    firing: usize,
    /// Messages that were dropped since the fleet did not keep up.
    dropped: u64,
    /// What was received and ignored, by reason.
    ignored: BTreeMap<&'static str, u64>,
    /// Why something was last ignored.
    last_ignored: Option<String>,
    /// Rules to be sent, or taken back, that are not yet in the bucket.
    rules_unwritten: usize,
}

impl From<nats::FleetStatus> for FleetStatus {
    fn from(status: nats::FleetStatus) -> FleetStatus {
        FleetStatus {
            connection: status.connection.into(),
            synced: status.synced,
            live: status.live,
            stale: status.stale,
            gone: status.gone,
            unsynced: status.unsynced,
            gaps: status.gaps,
            alerts_lost: status.alerts_lost,
            firing: status.firing,
            dropped: status.dropped,
            ignored: status.ignored.into_iter().collect(),
            last_ignored: status.last_ignored,
            rules_unwritten: status.rules_unwritten,
        }
    }
}

#[pymethods]
impl FleetStatus {
    fn __repr__(&self) -> String {
        format!(
            "<FleetStatus {}: {} live, {} stale, {} gone>",
            self.connection.state, self.live, self.stale, self.gone
        )
    }
}

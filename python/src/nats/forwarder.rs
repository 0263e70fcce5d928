//! The sending side: what happens on a bus goes to NATS.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Release},
        },
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use metricbus::{Subscription, nats};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    sync::PyOnceLock,
    types::PyTuple,
};
use tokio::task::JoinSet;
use tower_service::Service;

use super::{ForwarderStatus, NatsOptions, at_once, later};
use crate::{
    bus::{self, MetricBus},
    convert,
    deliver::SubscriptionStats,
    error::{Raise, raise},
    fork::{Counted, Forked, Kind},
    rule::Alert,
    runtime,
    source::SourceId,
};

/// How long the end of an `async with` waits for alerts to be confirmed.
const GOODBYE: Duration = Duration::from_secs(5);
/// How long the interpreter's end does.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Publishes what happens on a bus to NATS. Made by `await NatsForwarder.start(bus, options, …)`.
///
/// Nothing that the network does is an error: `status()` and the metrics `metricbus_nats_*` of the bus tell what it does. An
/// alert goes into an outbox, and from there to the server as soon as there is one, again and again until it is confirmed. A
/// mutation never waits for any of this, and neither does an event loop.
///
/// It ends by `await forwarder.shutdown()` or the end of an `async with`, and also when nothing refers to it any more, when
/// its bus ends, and when the interpreter does; then it is given a second for its last alerts. It belongs to the process, not
/// to the loop in which it was started.
#[pyclass(frozen, weakref, module = "metricbus")]
pub(crate) struct NatsForwarder {
    live: Forked<Arc<Live>>,
    source: SourceId,
}

struct Live {
    _counted: Counted,
    forwarder: nats::NatsForwarder,
    /// What it forwards, for as long as it lives, unless closed.
    kept: Mutex<Vec<Arc<dyn Kept>>>,
    /// It was shut down.
    over: AtomicBool,
}

/// A forwarding, of whatever.
trait Kept: Send + Sync {
    fn close(&self);

    fn is_closed(&self) -> bool;
}

impl<T: Send> Kept for Mutex<Option<T>> {
    fn close(&self) {
        let running = self.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Not under the lock: its end takes locks of the bus.
        drop(running);
    }

    fn is_closed(&self) -> bool {
        self.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_none()
    }
}

impl Live {
    fn keep(&self, one: Arc<dyn Kept>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|one| !one.is_closed());
        kept.push(one);
    }

    fn close_all(&self) {
        let kept = {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *kept)
        };
        for one in kept {
            one.close();
        }
    }
}

/// The forwarders that live, for the interpreter's end.
static ALL: OnceLock<Forked<Mutex<Vec<Weak<Live>>>>> = OnceLock::new();

fn note(py: Python<'_>, live: &Arc<Live>) -> PyResult<()> {
    static REGISTERED: PyOnceLock<()> = PyOnceLock::new();
    REGISTERED.get_or_try_init(py, || {
        let last_words = wrap_pyfunction!(last_words, py)?;
        py.import("atexit")?
            .call_method1("register", (last_words,))?;
        PyResult::Ok(())
    })?;
    let all = ALL.get_or_init(|| Forked::new(Mutex::default()));
    let all = all.get_or(|| PyResult::Ok(Mutex::default()))?;
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|live| live.strong_count() > 0);
    all.push(Arc::downgrade(live));
    Ok(())
}

/// Lets those that live say what they have to say.
#[pyfunction]
fn last_words(py: Python<'_>) -> PyResult<()> {
    let all = ALL.get().and_then(|all| all.here()).map(|all| {
        let all = all.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(Weak::upgrade).collect::<Vec<_>>()
    });
    let Some(all) = all.filter(|all| !all.is_empty()) else {
        return Ok(());
    };
    runtime::wait(py, async move {
        let mut ends = JoinSet::new();
        for live in all {
            ends.spawn(async move { live.forwarder.shutdown(LAST_WORDS).await });
        }
        while ends.join_next().await.is_some() {}
    })
}

fn delivery(
    delivery: &str,
    stream: Option<String>,
    create_stream: bool,
) -> PyResult<nats::Delivery> {
    let wrong = |why: &str| Err(PyTypeError::new_err(why.to_owned()));
    match (delivery, stream) {
        ("jetstream", Some(stream)) => Ok(nats::Delivery::JetStream {
            stream,
            create: create_stream,
        }),
        ("jetstream", None) => {
            wrong("delivery=\"jetstream\" needs stream=, the name of the stream for alerts")
        }
        ("auto" | "core", Some(_)) => wrong("stream= is only for delivery=\"jetstream\""),
        ("auto" | "core", None) if create_stream => {
            wrong("create_stream= is only for delivery=\"jetstream\"")
        }
        ("auto", None) => Ok(nats::Delivery::Auto),
        ("core", None) => Ok(nats::Delivery::Core),
        (other, _) => Err(PyValueError::new_err(format!(
            "delivery is {other:?}; \"auto\", \"core\" or \"jetstream\" would be right"
        ))),
    }
}

/// A source as an argument: as such, or as text.
pub(super) fn source(value: &Bound<'_, PyAny>) -> PyResult<metricbus::SourceId> {
    if let Ok(source) = value.cast::<SourceId>() {
        return Ok(source.get().0.clone());
    }
    if let Ok(text) = value.extract::<String>() {
        return text
            .parse()
            .map_err(|error: metricbus::SourceIdError| PyValueError::new_err(error.to_string()));
    }
    Err(PyTypeError::new_err(format!(
        "{} is no source; SourceId(\"prod\", \"decode\", \"pod-7\") or \"prod/decode/pod-7\" would be right",
        value.repr()?
    )))
}

impl NatsForwarder {
    fn live(&self) -> PyResult<&Arc<Live>> {
        self.live.here().ok_or_else(|| {
            raise("ForkedError", "this forwarder is of the process from which this one was forked; start one here, as another instance")
        })
    }
}

#[pymethods]
impl NatsForwarder {
    /// Starts a forwarder of what happens on `bus`. That no server answers is no error; wrong settings and missing files are.
    ///
    /// `options` are `NatsOptions` or a URL. `source` says who we are; without it the environment does:
    /// `METRICBUS_NAMESPACE`, `METRICBUS_COMPONENT`, and `HOSTNAME` or what the machine is called.
    ///
    /// `delivery` is how alerts get to the server. `"core"`: to those who listen at the time. `"jetstream"`: into the stream
    /// `stream`, which is made where it does not exist if `create_stream` is true. `"auto"`: through JetStream where a stream
    /// takes their subject, else as `"core"`. `subject` is a template for subjects of your own, such as
    /// `alerts.{component}.{rule}.{state}`, which a `Fleet` does not hear.
    ///
    /// `outbox` and `outbox_bytes` bound the alerts that wait or may be asked for again: 10 000 and 64 MiB. `heartbeat` is
    /// how often to say that we live: each second. `alerts_per_second_max` and `frames_per_second_max`: 1 000 and 100.
    ///
    /// `rules_from` names a bucket of JetStream's key-value store, `"metricbus-rules"` as a rule, from which rules are taken
    /// that a `Fleet` sends. Not unless told: whoever may write there decides what is evaluated here.
    #[staticmethod]
    #[pyo3(signature = (bus, options, *, source=None, prefix=None, subject=None, delivery="auto", stream=None, create_stream=false, outbox=None, outbox_bytes=None, heartbeat=None, alerts_per_second_max=None, frames_per_second_max=None, rules_from=None))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn start<'py>(
        py: Python<'py>,
        bus: &Bound<'py, MetricBus>,
        options: &Bound<'py, PyAny>,
        source: Option<&Bound<'py, PyAny>>,
        prefix: Option<String>,
        subject: Option<String>,
        delivery: &str,
        stream: Option<String>,
        create_stream: bool,
        outbox: Option<usize>,
        outbox_bytes: Option<usize>,
        heartbeat: Option<&Bound<'py, PyAny>>,
        alerts_per_second_max: Option<f64>,
        frames_per_second_max: Option<f64>,
        rules_from: Option<String>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let options = NatsOptions::of(options)?;
        let mut builder = nats::NatsForwarder::builder(bus.get().current()?, options)
            .delivery(self::delivery(delivery, stream, create_stream)?);
        if let Some(source) = source {
            builder = builder.source(self::source(source)?);
        }
        if let Some(prefix) = prefix {
            builder = builder.prefix(prefix);
        }
        if let Some(template) = subject {
            builder = builder.subject(template);
        }
        if let Some(alerts) = outbox {
            builder = builder.outbox(alerts);
        }
        if let Some(bytes) = outbox_bytes {
            builder = builder.outbox_bytes(bytes);
        }
        if let Some(interval) = heartbeat {
            builder = builder.heartbeat(convert::duration("heartbeat", interval)?);
        }
        if let Some(alerts) = alerts_per_second_max {
            builder = builder.alerts_per_second_max(alerts);
        }
        if let Some(frames) = frames_per_second_max {
            builder = builder.frames_per_second_max(frames);
        }
        if let Some(bucket) = rules_from {
            builder = builder.rules_from(bucket);
        }
        later(py, builder.start(), |py, started| {
            let forwarder = started.or_raise()?;
            let source = SourceId(forwarder.source().clone());
            let live = Arc::new(Live {
                _counted: Counted::new(Kind::Forwarder),
                forwarder,
                kept: Mutex::default(),
                over: AtomicBool::new(false),
            });
            note(py, &live)?;
            let live = Forked::new(live);
            Ok(Py::new(py, NatsForwarder { live, source })?.into_any())
        })
    }

    /// Sends every alert of the bus's rules, those that are firing now first, for as long as the forwarder lives or until
    /// what it returns is closed.
    ///
    /// The thread that mutates puts the alert into the outbox: no callback of Python and no event loop lies between. To send
    /// some alerts only, call `send` in a callback of `bus.on_alert`.
    fn forward_alerts(&self, py: Python<'_>) -> PyResult<AlertForwarding> {
        let live = self.live()?;
        let subscription = py.detach(|| live.forwarder.forward_alerts()).or_raise()?;
        let running = Arc::new(Mutex::new(Some(subscription)));
        live.keep(running.clone());
        Ok(AlertForwarding(Forked::new(running)))
    }

    /// Sends the values of the selected series, present and future, when they have changed, for as long as the forwarder
    /// lives or until what it returns is closed.
    ///
    /// `every` is how often a frame is sent at most: 0.1 s unless told otherwise, at least 0.01 s. With `absolute`, `relative`
    /// or `of_range`, in the words of `on_delta`, a gauge is sent only when it has moved by so much since it was last sent.
    /// `name` is the last token of the subject, by which consumers choose: `all` unless told otherwise.
    #[pyo3(signature = (selector, *, every=None, name=None, absolute=None, relative=None, floor=None, of_range=None))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn forward(
        &self,
        py: Python<'_>,
        selector: &Bound<'_, PyAny>,
        every: Option<&Bound<'_, PyAny>>,
        name: Option<String>,
        absolute: Option<f64>,
        relative: Option<f64>,
        floor: Option<f64>,
        of_range: Option<(f64, f64, f64)>,
    ) -> PyResult<Forwarding> {
        let live = self.live()?;
        let mut forward = live.forwarder.forward(&convert::selector(selector)?);
        if let Some(every) = every {
            forward = forward.every(convert::duration("every", every)?);
        }
        if let Some(name) = name {
            forward = forward.named(name);
        }
        if absolute.is_some() || relative.is_some() || floor.is_some() || of_range.is_some() {
            forward = forward.deadband(bus::delta(absolute, relative, floor, of_range)?);
        }
        let runtime = runtime::get()?;
        let forwarding = py
            .detach(|| {
                let _inside = runtime.enter();
                forward.start()
            })
            .or_raise()?;
        let running = Arc::new(Mutex::new(Some(forwarding)));
        live.keep(running.clone());
        Ok(Forwarding(Forked::new(running)))
    }

    /// Puts one alert of a rule of this process into the outbox, and returns its place there: 1 for the first alert of this
    /// forwarder, 2 for the next … Never waits.
    ///
    /// Raises `NatsError` for an alert that came from another process, lest it go round in circles, and for one that is
    /// larger than all of the outbox.
    fn send(&self, alert: &Alert) -> PyResult<u64> {
        let mut forwarder = self.live()?.forwarder.clone();
        let mut queued = pin!(forwarder.call(alert.core()?));
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            // It gives way once, to the client's task, which runs in other threads.
            if let Poll::Ready(queued) = queued.as_mut().poll(&mut cx) {
                return Ok(queued.or_raise()?.sequence);
            }
        }
    }

    /// What it is doing.
    fn status(&self, py: Python<'_>) -> PyResult<ForwarderStatus> {
        let live = self.live()?;
        Ok(py.detach(|| live.forwarder.status()).into())
    }

    /// Who it says it is.
    #[getter]
    fn source(&self) -> SourceId {
        self.source.clone()
    }

    /// Waits until all alerts that are in the outbox now are confirmed, and raises `NatsError`, with what stood in the way,
    /// when they are not within `deadline`. They stay in the outbox then.
    #[pyo3(signature = (deadline))]
    fn flush<'py>(
        &self,
        py: Python<'py>,
        deadline: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let deadline = convert::duration("deadline", deadline)?;
        let live = self.live()?.clone();
        let flush = async move { live.forwarder.flush(deadline).await };
        later(py, flush, |py, flushed| {
            flushed.or_raise()?;
            Ok(py.None())
        })
    }

    /// Takes no more alerts, waits until those it has are confirmed, but not longer than `deadline`, says that it ends, and
    /// closes the connection. What is not confirmed by then is lost. It goes on where waiting for it is given up.
    #[pyo3(signature = (deadline=None))]
    fn shutdown<'py>(
        &self,
        py: Python<'py>,
        deadline: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let deadline = match deadline {
            None => GOODBYE,
            Some(deadline) => convert::duration("deadline", deadline)?,
        };
        let live = self.live()?.clone();
        let shutdown = async move {
            live.forwarder.shutdown(deadline).await;
            live.over.store(true, Release);
            live.close_all();
        };
        later(py, shutdown, |py, ()| Ok(py.None()))
    }

    /// Whether it was shut down.
    #[getter]
    fn is_closed(&self) -> bool {
        self.live.here().is_none_or(|live| live.over.load(Acquire))
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
        self.shutdown(py, None)
    }

    fn __repr__(&self) -> String {
        let state = match self.live.here() {
            Some(live) if live.over.load(Acquire) => "closed",
            Some(live) => live.forwarder.status().connection.state.as_str(),
            None => "of another process",
        };
        format!("<NatsForwarder {} {state}>", self.source.0)
    }
}

fn closed() -> PyErr {
    raise("ClosedError", "this forwarding was closed")
}

/// Series that a forwarder sends. Goes on until it is closed, or its forwarder ends.
#[pyclass(frozen, module = "metricbus")]
pub(crate) struct Forwarding(Forked<Arc<Mutex<Option<nats::Forwarding>>>>);

impl Forwarding {
    fn read<T>(&self, read: impl FnOnce(&nats::Forwarding) -> T) -> PyResult<T> {
        let running = self.0.here().ok_or_else(forked)?;
        let running = running.lock().unwrap_or_else(PoisonError::into_inner);
        running.as_ref().map(read).ok_or_else(closed)
    }
}

fn forked() -> PyErr {
    raise(
        "ForkedError",
        "this forwarding is of the process from which this one was forked, and goes on there",
    )
}

#[pymethods]
impl Forwarding {
    /// How many series it forwards now.
    #[getter]
    fn series(&self) -> PyResult<usize> {
        self.read(nats::Forwarding::series)
    }

    /// How many frames it has sent.
    #[getter]
    fn frames_sent(&self) -> PyResult<u64> {
        self.read(nats::Forwarding::frames_sent)
    }

    /// Whether it was closed.
    #[getter]
    fn is_closed(&self) -> bool {
        self.0.here().is_none_or(|running| running.is_closed())
    }

    /// Ends it, and tells consumers that its series are no more, unless another forwarding of this source has them.
    fn close(&self, py: Python<'_>) {
        if let Some(running) = self.0.here() {
            py.detach(|| running.close());
        }
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) {
        self.close(py);
    }

    fn __repr__(&self) -> String {
        let shown = self.read(|running| {
            let (series, frames) = (running.series(), running.frames_sent());
            format!("<Forwarding of {series} series, {frames} frames sent>")
        });
        shown.unwrap_or_else(|_| "<Forwarding closed>".to_owned())
    }
}

/// The alerts of a bus, which a forwarder sends. Goes on until it is closed, or its forwarder ends.
#[pyclass(frozen, module = "metricbus")]
pub(crate) struct AlertForwarding(Forked<Arc<Mutex<Option<Subscription>>>>);

#[pymethods]
impl AlertForwarding {
    /// What it has done so far: how many alerts it has put into the outbox.
    fn stats(&self) -> PyResult<SubscriptionStats> {
        let running = self.0.here().ok_or_else(forked)?;
        let running = running.lock().unwrap_or_else(PoisonError::into_inner);
        let running = running.as_ref().ok_or_else(closed)?;
        Ok(running.stats().into())
    }

    /// Whether it was closed.
    #[getter]
    fn is_closed(&self) -> bool {
        self.0.here().is_none_or(|running| running.is_closed())
    }

    /// Ends it. What is in the outbox is sent all the same.
    fn close(&self, py: Python<'_>) {
        if let Some(running) = self.0.here() {
            py.detach(|| running.close());
        }
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) {
        self.close(py);
    }

    fn __repr__(&self) -> String {
        let state = if self.is_closed() { "closed" } else { "open" };
        format!("<AlertForwarding {state}>")
    }
}

//! The bus, its scopes and its clock.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Release},
        },
    },
};

use metricbus::{Delta, Threshold, backend::Mirror};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    sync::PyOnceLock,
    types::PyDict,
};

use crate::{
    backend::Reporting,
    convert,
    deliver::{Source, listen},
    error::{Raise, raise},
    fork::Forked,
    hooks::{self, Hook},
    metric::{self, Counter, Declaration, Gauge, Handle, Histogram},
    series::Series,
    snapshot::Snapshot,
    window::Viewing,
};

/// What a Python bus is made of.
pub(crate) struct Bus {
    bus: Forked<metricbus::MetricBus>,
    /// A manual clock is kept in children: it stands still in them, too, until somebody advances it.
    clock: Option<metricbus::Clock>,
    series_max: Option<usize>,
    native: bool,
    /// What is called before a scrape, by a name that tells it from others.
    hooks: Mutex<HashMap<String, Arc<Hook>>>,
    /// Whether there are any. The map is for those with the interpreter's lock, so that no fork finds it locked.
    has_hooks: AtomicBool,
    /// By whoever holds a metric: a child exposes them from the start, at zero, and not from when they are first used.
    declared: Held<Declaration>,
    /// Backends that have something to send: they live as long as this does.
    reported: Mutex<Vec<Arc<Reporting>>>,
    /// Those that somebody holds: a child's see its mutations from the start, and not from when they are first asked.
    windows: Held<Viewing>,
}

/// The buses of this process that have rules, or had.
static WITH_RULES: OnceLock<Forked<Held<Bus>>> = OnceLock::new();

/// Takes note that this bus has rules.
pub(crate) fn has_rules(bus: &Arc<Bus>) -> PyResult<()> {
    let all = WITH_RULES.get_or_init(|| Forked::new(Held::new()));
    let all = all.get_or(|| PyResult::Ok(Held::new()))?;
    if !all.all().iter().any(|other| Arc::ptr_eq(other, bus)) {
        all.push(bus);
    }
    Ok(())
}

/// How many rules all buses of this process have. Before a fork: a child must not ask for them.
#[pyfunction]
pub(crate) fn rules_of_all(py: Python<'_>) -> usize {
    let all = WITH_RULES.get().and_then(|all| all.here());
    let all = all.map_or_else(Vec::new, Held::all);
    py.detach(|| {
        let buses = all.iter().filter_map(|bus| bus.bus.here());
        buses.map(|bus| bus.rules().len()).sum()
    })
}

/// What somebody else holds.
struct Held<T>(Mutex<Vec<Weak<T>>>);

impl<T> Held<T> {
    fn new() -> Held<T> {
        Held(Mutex::default())
    }

    fn push(&self, one: &Arc<T>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == all.capacity() {
            all.retain(|one| one.strong_count() > 0);
        }
        all.push(Arc::downgrade(one));
    }

    fn all(&self) -> Vec<Arc<T>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Bus {
    fn new(clock: Option<metricbus::Clock>, series_max: Option<usize>, native: bool) -> Bus {
        Bus {
            bus: Forked::new(build(clock.as_ref(), series_max, native)),
            clock,
            series_max,
            native,
            hooks: Mutex::default(),
            has_hooks: AtomicBool::new(false),
            declared: Held::new(),
            reported: Mutex::default(),
            windows: Held::new(),
        }
    }

    pub(crate) fn of(bus: metricbus::MetricBus) -> Bus {
        Bus {
            clock: Some(bus.clock().clone()),
            bus: Forked::new(bus),
            series_max: None,
            native: false,
            hooks: Mutex::default(),
            has_hooks: AtomicBool::new(false),
            declared: Held::new(),
            reported: Mutex::default(),
            windows: Held::new(),
        }
    }

    pub(crate) fn current(&self) -> PyResult<&metricbus::MetricBus> {
        let mut fresh = false;
        let bus = self.bus.get_or(|| {
            fresh = true;
            PyResult::Ok(build(self.clock.as_ref(), self.series_max, self.native))
        })?;
        if fresh {
            self.report_again(bus);
            self.declare_again()?;
            self.view_again();
            if self.has_hooks() {
                hooks::start();
            }
        }
        Ok(bus)
    }

    pub(crate) fn viewed(&self, viewing: &Arc<Viewing>) {
        self.windows.push(viewing);
    }

    #[cold]
    fn view_again(&self) {
        let all = self.windows.all();
        all.iter().for_each(|viewing| viewing.again());
    }

    /// Keeps in mind that this is declared, as long as anybody has it.
    pub(crate) fn declared(&self, declaration: &Arc<Declaration>) {
        self.declared.push(declaration);
    }

    #[cold]
    fn declare_again(&self) -> PyResult<()> {
        let all = self.declared.all();
        all.iter().try_for_each(|declaration| declaration.again())
    }

    /// Keeps it, as long as it is not shut down.
    pub(crate) fn report(&self, reporting: &Arc<Reporting>) {
        let over = {
            let mut all = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
            let over: Vec<_> = all.extract_if(.., |other| other.is_ended()).collect();
            all.push(reporting.clone());
            over
        };
        drop(over);
    }

    #[cold]
    fn report_again(&self, bus: &metricbus::MetricBus) {
        let all = {
            let all = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
            all.clone()
        };
        all.iter().for_each(|reporting| reporting.renew(bus));
    }

    pub(crate) fn set_hook(self: &Arc<Self>, name: String, function: Py<PyAny>) {
        let hook = Hook::new(Arc::downgrade(self), name.clone(), function);
        let before = {
            let mut hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
            self.has_hooks.store(true, Release);
            hooks.insert(name, hook)
        };
        // Here a thread can still be had, other than when the program ends.
        hooks::start();
        // Its end may run anybody's code.
        drop(before);
    }

    /// Whether anything is to run before a scrape, for threads that have not the interpreter's lock.
    pub(crate) fn has_hooks(&self) -> bool {
        self.has_hooks.load(Acquire)
    }

    pub(crate) fn hooks(&self, _py: Python<'_>) -> Vec<Arc<Hook>> {
        let hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        hooks.values().cloned().collect()
    }

    pub(crate) fn drop_hook(&self, name: &str) {
        let over = {
            let mut hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
            let over = hooks.remove(name);
            self.has_hooks.store(!hooks.is_empty(), Release);
            over
        };
        drop(over);
    }
}

fn build(
    clock: Option<&metricbus::Clock>,
    series_max: Option<usize>,
    native: bool,
) -> metricbus::MetricBus {
    let mut builder = metricbus::MetricBus::builder().native_histograms(native);
    // The system's clock of a parent has timers that no thread of this process runs: a child has its own.
    if let Some(clock) = clock.filter(|clock| clock.is_manual()) {
        builder = builder.clock(clock.clone());
    }
    if let Some(max) = series_max {
        builder = builder.cardinality_limit(max);
    }
    builder.build()
}

/// Where metrics are declared: a bus, a prefix and labels.
#[derive(Clone)]
pub(crate) struct Root {
    bus: Arc<Bus>,
    prefix: String,
    labels: Vec<(String, String)>,
    /// Whose values are read back from a far end.
    reporting: Option<Arc<Reporting>>,
}

impl Root {
    pub(crate) fn reported(
        bus: Arc<Bus>,
        prefix: String,
        reporting: Option<Arc<Reporting>>,
    ) -> Root {
        Root {
            bus,
            prefix,
            labels: Vec::new(),
            reporting,
        }
    }

    /// The far end's side of a series that was made here, where there is one.
    pub(crate) fn mirror(&self, series: &metricbus::Series) -> PyResult<Option<Arc<dyn Mirror>>> {
        match &self.reporting {
            None => Ok(None),
            Some(reporting) => reporting.mirror(self.bus.current()?, series),
        }
    }

    /// A bus or a scope, as an argument.
    pub(crate) fn of(value: &Bound<'_, PyAny>) -> PyResult<Root> {
        if let Ok(bus) = value.cast::<MetricBus>() {
            return Ok(bus.get().root());
        }
        if let Ok(scope) = value.cast::<Scope>() {
            return Ok(scope.get().0.clone());
        }
        Err(PyTypeError::new_err(format!(
            "{} is neither a metricbus.MetricBus nor a metricbus.Scope; a registry of prometheus_client is exposed beside a bus by Exporter(bus, merge=[registry])",
            value.repr()?
        )))
    }

    pub(crate) fn bus(&self) -> &Arc<Bus> {
        &self.bus
    }

    pub(crate) fn scope(&self) -> PyResult<metricbus::Scope> {
        let scope = self.bus.current()?.scope().with_prefix(&self.prefix);
        Ok(self
            .labels
            .iter()
            .fold(scope, |scope, (name, value)| scope.with_label(name, value)))
    }
}

/// The registry and the bus in one.
#[pyclass(frozen, weakref, module = "metricbus")]
pub(crate) struct MetricBus(pub(crate) Arc<Bus>);

impl MetricBus {
    fn root(&self) -> Root {
        Root {
            bus: self.0.clone(),
            prefix: String::new(),
            labels: Vec::new(),
            reporting: None,
        }
    }

    /// `metricbus.REGISTRY`, on which the constructors of metrics declare where nothing else is said.
    pub(crate) fn default_root() -> PyResult<Root> {
        Python::attach(|py| {
            static DEFAULT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
            let bus = DEFAULT.get_or_try_init(py, || {
                PyResult::Ok(py.import("metricbus")?.getattr("REGISTRY")?.unbind())
            })?;
            Root::of(bus.bind(py))
        })
    }

    /// On a bus that nobody has.
    pub(crate) fn unseen_root() -> Root {
        MetricBus(Arc::new(Bus::new(None, None, false))).root()
    }

    pub(crate) fn current(&self) -> PyResult<&metricbus::MetricBus> {
        self.0.current()
    }
}

/// A threshold from keywords: which side of a bound, and where it is cleared.
pub(crate) fn threshold(words: Option<&Bound<'_, PyDict>>) -> PyResult<Threshold> {
    let wrong = |why: String| {
        PyTypeError::new_err(format!(
            "{why}; a threshold is one of above=, at_least=, below=, at_most=, and at most one of clear_below=, clear_at_most=, clear_above=, clear_at_least="
        ))
    };
    let mut raise: Option<Threshold> = None;
    let mut clear: Option<(String, f64)> = None;
    for (name, value) in words.iter().flat_map(|words| words.iter()) {
        let name: String = name.extract()?;
        let value: f64 = value
            .extract()
            .map_err(|_| wrong(format!("{name}={value} is no number")))?;
        let made = match name.as_str() {
            "above" => Threshold::above(value),
            "at_least" => Threshold::at_least(value),
            "below" => Threshold::below(value),
            "at_most" => Threshold::at_most(value),
            "clear_below" | "clear_at_most" | "clear_above" | "clear_at_least" => {
                if let Some((other, _)) = &clear {
                    return Err(wrong(format!("{other} and {name} are both given")));
                }
                clear = Some((name, value));
                continue;
            }
            _ => return Err(wrong(format!("there is no keyword {name:?}"))),
        };
        if raise.replace(made).is_some() {
            return Err(wrong(format!("{name} is not the only bound")));
        }
    }
    let raise = raise.ok_or_else(|| wrong("no bound is given".into()))?;
    Ok(match clear {
        None => raise,
        Some((name, value)) => match name.as_str() {
            "clear_below" => raise.clear_below(value),
            "clear_at_most" => raise.clear_at_most(value),
            "clear_above" => raise.clear_above(value),
            _ => raise.clear_at_least(value),
        },
    })
}

/// A delta from keywords.
pub(crate) fn delta(
    absolute: Option<f64>,
    relative: Option<f64>,
    floor: Option<f64>,
    of_range: Option<(f64, f64, f64)>,
) -> PyResult<Delta> {
    let wrong = |why: &str| {
        Err(PyTypeError::new_err(format!(
            "{why}; a delta is one of absolute=, relative= (with floor=, if wanted), of_range=(share, low, high)"
        )))
    };
    let delta = match (absolute, relative, of_range) {
        (Some(distance), None, None) => Delta::absolute(distance),
        (None, Some(share), None) => Delta::relative(share),
        (None, None, Some((share, low, high))) => Delta::of_range(share, low, high),
        (None, None, None) => return wrong("no distance is given"),
        _ => return wrong("more than one distance is given"),
    };
    match (floor, relative) {
        (None, _) => Ok(delta),
        (Some(floor), Some(_)) => Ok(delta.floor(floor)),
        (Some(_), None) => wrong("floor= is given without relative="),
    }
}

#[pymethods]
impl MetricBus {
    #[new]
    #[pyo3(signature = (*, clock=None, cardinality_limit=None, native_histograms=false))]
    fn new(
        clock: Option<&Clock>,
        cardinality_limit: Option<usize>,
        native_histograms: bool,
    ) -> PyResult<MetricBus> {
        if cardinality_limit == Some(0) {
            return Err(PyValueError::new_err(
                "cardinality_limit is 0; how many series a metric may have, at least 1",
            ));
        }
        let clock = clock.map(|clock| clock.0.clone());
        Ok(MetricBus(Arc::new(Bus::new(
            clock,
            cardinality_limit,
            native_histograms,
        ))))
    }

    /// The clock by which windows, holds and events are timed.
    #[getter]
    fn clock(&self) -> PyResult<Clock> {
        Ok(Clock(self.current()?.clock().clone()))
    }

    /// A scope with this prefix for names, and these labels on every series.
    #[pyo3(signature = (prefix="", **labels))]
    fn scope(&self, prefix: &str, labels: Option<&Bound<'_, PyDict>>) -> PyResult<Scope> {
        Scope(self.root()).scope(prefix, labels)
    }

    /// `scope`, with labels that may have any name: also that of its parameter.
    #[pyo3(name = "_scope")]
    fn scope_of(&self, prefix: &str, labels: &Bound<'_, PyAny>) -> PyResult<Scope> {
        Scope(self.root()).scope_of(prefix, labels)
    }

    /// A counter with exactly this name; with `labels`, a family of them. Declared again in the same way it is the same one.
    /// Children nobody touches for `expire_after` go; more than `max_series` are counted together.
    #[pyo3(signature = (name, help, labels=None, *, unit=None, expire_after=None, max_series=None))]
    fn counter(
        &self,
        name: &str,
        help: &str,
        labels: Option<&Bound<'_, PyAny>>,
        unit: Option<&str>,
        expire_after: Option<&Bound<'_, PyAny>>,
        max_series: Option<usize>,
    ) -> PyResult<Counter> {
        Scope(self.root()).counter(name, help, labels, unit, expire_after, max_series)
    }

    /// A gauge with exactly this name; otherwise as `counter`.
    #[pyo3(signature = (name, help, labels=None, *, unit=None, expire_after=None, max_series=None))]
    fn gauge(
        &self,
        name: &str,
        help: &str,
        labels: Option<&Bound<'_, PyAny>>,
        unit: Option<&str>,
        expire_after: Option<&Bound<'_, PyAny>>,
        max_series: Option<usize>,
    ) -> PyResult<Gauge> {
        Scope(self.root()).gauge(name, help, labels, unit, expire_after, max_series)
    }

    /// A histogram with exactly this name and these upper bounds; otherwise as `counter`. `native`: exponential buckets are
    /// kept beside, which Prometheus stores where it asks for them; as the bus has it unless told here.
    #[pyo3(signature = (name, help, labels=None, *, buckets=None, native=None, unit=None, expire_after=None, max_series=None))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn histogram(
        &self,
        name: &str,
        help: &str,
        labels: Option<&Bound<'_, PyAny>>,
        buckets: Option<&Bound<'_, PyAny>>,
        native: Option<bool>,
        unit: Option<&str>,
        expire_after: Option<&Bound<'_, PyAny>>,
        max_series: Option<usize>,
    ) -> PyResult<Histogram> {
        Scope(self.root()).histogram(
            name,
            help,
            labels,
            buckets,
            native,
            unit,
            expire_after,
            max_series,
        )
    }

    /// When a value crosses a bound: `above=`, `at_least=`, `below=` or `at_most=`, and where it is cleared: `clear_below=`,
    /// `clear_at_most=`, `clear_above=` or `clear_at_least=`. `initial` tells what is beyond it already. `capacity` events wait at
    /// most (256); then the oldest is dropped and counted.
    #[pyo3(signature = (selector, callback=None, *, capacity=None, initial=true, **threshold))]
    fn on_threshold(
        &self,
        py: Python<'_>,
        selector: &Bound<'_, PyAny>,
        callback: Option<Bound<'_, PyAny>>,
        capacity: Option<usize>,
        initial: bool,
        threshold: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        let (bus, selector) = (self.0.clone(), convert::selector_on(&self.0, selector)?);
        let threshold = self::threshold(threshold)?;
        let open = move || {
            let listen = bus
                .current()?
                .on_threshold(&selector, threshold)
                .initial(initial);
            stream(listen, capacity)
        };
        listen(py, open, callback)
    }

    /// When a value has moved so far since it was last told: `absolute=`, `relative=` (of what it was, with `floor=` as the least
    /// distance) or `of_range=(share, low, high)`.
    #[pyo3(signature = (selector, callback=None, *, absolute=None, relative=None, floor=None, of_range=None, capacity=None))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn on_delta(
        &self,
        py: Python<'_>,
        selector: &Bound<'_, PyAny>,
        callback: Option<Bound<'_, PyAny>>,
        absolute: Option<f64>,
        relative: Option<f64>,
        floor: Option<f64>,
        of_range: Option<(f64, f64, f64)>,
        capacity: Option<usize>,
    ) -> PyResult<Py<PyAny>> {
        let (bus, selector) = (self.0.clone(), convert::selector_on(&self.0, selector)?);
        let delta = self::delta(absolute, relative, floor, of_range)?;
        let open = move || stream(bus.current()?.on_delta(&selector, delta), capacity);
        listen(py, open, callback)
    }

    /// When a value is another one than was last told. Of many changes only the last waits: what is read is the present.
    #[pyo3(signature = (selector, callback=None, *, capacity=None))]
    fn on_change(
        &self,
        py: Python<'_>,
        selector: &Bound<'_, PyAny>,
        callback: Option<Bound<'_, PyAny>>,
        capacity: Option<usize>,
    ) -> PyResult<Py<PyAny>> {
        let (bus, selector) = (self.0.clone(), convert::selector_on(&self.0, selector)?);
        let open = move || stream(bus.current()?.on_change(&selector), capacity);
        listen(py, open, callback)
    }

    /// Every mutation, in order per series; where the reader was too slow, a `Lagged` that counts what is missing.
    #[pyo3(signature = (selector, callback=None, *, capacity=None))]
    fn subscribe(
        &self,
        py: Python<'_>,
        selector: &Bound<'_, PyAny>,
        callback: Option<Bound<'_, PyAny>>,
        capacity: Option<usize>,
    ) -> PyResult<Py<PyAny>> {
        let (bus, selector) = (self.0.clone(), convert::selector_on(&self.0, selector)?);
        let open = move || -> PyResult<Box<dyn Source>> {
            let bus = bus.current()?;
            let mutations = match capacity {
                Some(0) => return Err(no_capacity()),
                None => bus.subscribe(&selector),
                Some(capacity) => bus.subscribe_with_capacity(&selector, capacity),
            };
            Ok(Box::new(mutations.or_raise()?))
        };
        listen(py, open, callback)
    }

    /// All metrics as plain values.
    fn snapshot(&self, py: Python<'_>) -> PyResult<Snapshot> {
        let bus = self.current()?;
        let snapshot = py.detach(|| bus.snapshot());
        Snapshot::of(py, snapshot)
    }

    /// The series that are selected, as they are now.
    fn series(&self, selector: &Bound<'_, PyAny>) -> PyResult<Vec<Series>> {
        let selector = convert::selector_on(&self.0, selector)?;
        let series = self.current()?.series(&selector).or_raise()?;
        Ok(series.into_iter().map(Series::of).collect())
    }

    /// Removes the children that are selected. How many there were.
    fn remove(&self, selector: &Bound<'_, PyAny>) -> PyResult<usize> {
        let selector = convert::selector_on(&self.0, selector)?;
        self.current()?.remove(&selector).or_raise()
    }

    /// What `promtool` would criticise in the declarations.
    fn lints(&self) -> PyResult<Vec<String>> {
        let lints = self.current()?.lints();
        Ok(lints.iter().map(ToString::to_string).collect())
    }

    /// Calls `hook` before each scrape, push and export, to set what is only worth measuring when somebody looks. Of two with one name
    /// the second replaces the first. Hooks run in threads of their own, side by side where they block. One that is not done by the
    /// deadline is not waited for, nor begun again, until it ends; what it raises is logged and counted.
    #[pyo3(signature = (hook, *, name=None))]
    fn on_collect(&self, hook: Bound<'_, PyAny>, name: Option<String>) -> PyResult<Py<PyAny>> {
        if !hook.is_callable() {
            return Err(PyTypeError::new_err(format!("{hook} can't be called")));
        }
        let name = name.unwrap_or_else(|| format!("hook {:p}", hook.as_ptr()));
        self.0.set_hook(name, hook.clone().unbind());
        Ok(hook.unbind())
    }

    fn __repr__(&self) -> PyResult<String> {
        Ok(format!(
            "<MetricBus of {} metrics>",
            self.current()?.snapshot().families.len()
        ))
    }
}

fn no_capacity() -> PyErr {
    PyValueError::new_err("capacity is 0; how many events may wait, at least 1")
}

/// Any of the bus's events, as a source of letters.
pub(crate) fn stream<E>(
    listen: metricbus::Listen<E>,
    capacity: Option<usize>,
) -> PyResult<Box<dyn Source>>
where
    E: metricbus::Event + Send + 'static,
    metricbus::Events<E>: Source,
{
    let listen = match capacity {
        None => listen,
        Some(0) => return Err(no_capacity()),
        Some(capacity) => listen.capacity(capacity),
    };
    Ok(Box::new(listen.stream().or_raise()?))
}

/// A bus with a prefix for names and labels for series.
#[pyclass(frozen, weakref, module = "metricbus")]
pub(crate) struct Scope(pub(crate) Root);

#[pymethods]
impl Scope {
    /// The bus.
    #[getter]
    fn bus(&self) -> MetricBus {
        MetricBus(self.0.bus.clone())
    }

    /// What comes before every name.
    #[getter]
    fn prefix(&self) -> &str {
        &self.0.prefix
    }

    /// The labels on every series.
    #[getter]
    fn labels<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        convert::dict(py, self.0.labels.iter().map(|(name, value)| (name, value)))
    }

    /// A scope with this prefix for names, and these labels on every series.
    #[pyo3(signature = (prefix="", **labels))]
    fn scope(&self, prefix: &str, labels: Option<&Bound<'_, PyDict>>) -> PyResult<Scope> {
        let mut root = self.0.clone();
        root.prefix.push_str(prefix);
        if let Some(labels) = labels {
            root.labels.extend(convert::pairs(labels)?);
        }
        Ok(Scope(root))
    }

    /// `scope`, with labels that may have any name: also that of its parameter.
    #[pyo3(name = "_scope")]
    fn scope_of(&self, prefix: &str, labels: &Bound<'_, PyAny>) -> PyResult<Scope> {
        let mut root = self.0.clone();
        root.prefix.push_str(prefix);
        root.labels.extend(convert::pairs(labels)?);
        Ok(Scope(root))
    }

    /// A counter with exactly this name; with `labels`, a family of them. Declared again in the same way it is the same one.
    /// Children nobody touches for `expire_after` go; more than `max_series` are counted together.
    #[pyo3(signature = (name, help, labels=None, *, unit=None, expire_after=None, max_series=None))]
    fn counter(
        &self,
        name: &str,
        help: &str,
        labels: Option<&Bound<'_, PyAny>>,
        unit: Option<&str>,
        expire_after: Option<&Bound<'_, PyAny>>,
        max_series: Option<usize>,
    ) -> PyResult<Counter> {
        let names = metric::label_names(labels)?;
        let desc = Scope::desc(name, help, &names, unit, expire_after, max_series)?;
        Handle::declare(self.0.clone(), desc, names).map(Counter)
    }

    /// A gauge with exactly this name; otherwise as `counter`.
    #[pyo3(signature = (name, help, labels=None, *, unit=None, expire_after=None, max_series=None))]
    fn gauge(
        &self,
        name: &str,
        help: &str,
        labels: Option<&Bound<'_, PyAny>>,
        unit: Option<&str>,
        expire_after: Option<&Bound<'_, PyAny>>,
        max_series: Option<usize>,
    ) -> PyResult<Gauge> {
        let names = metric::label_names(labels)?;
        let desc = Scope::desc(name, help, &names, unit, expire_after, max_series)?;
        Handle::declare(self.0.clone(), desc, names).map(Gauge)
    }

    /// A histogram with exactly this name and these upper bounds; otherwise as `counter`. `native`: exponential buckets are
    /// kept beside, which Prometheus stores where it asks for them; as the bus has it unless told here.
    #[pyo3(signature = (name, help, labels=None, *, buckets=None, native=None, unit=None, expire_after=None, max_series=None))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn histogram(
        &self,
        name: &str,
        help: &str,
        labels: Option<&Bound<'_, PyAny>>,
        buckets: Option<&Bound<'_, PyAny>>,
        native: Option<bool>,
        unit: Option<&str>,
        expire_after: Option<&Bound<'_, PyAny>>,
        max_series: Option<usize>,
    ) -> PyResult<Histogram> {
        let names = metric::label_names(labels)?;
        let mut desc = Scope::desc(name, help, &names, unit, expire_after, max_series)?;
        if let Some(buckets) = metric::buckets(buckets)? {
            desc = desc.buckets(buckets);
        }
        if let Some(native) = native {
            desc = desc.native(native);
        }
        Handle::declare(self.0.clone(), desc, names).map(Histogram)
    }

    /// Names a component with its metrics, to be listed by the bus.
    #[pyo3(signature = (name, help, metrics))]
    fn add_component(&self, name: &str, help: &str, metrics: Vec<String>) -> PyResult<()> {
        let metrics: Vec<&str> = metrics.iter().map(String::as_str).collect();
        self.0
            .scope()?
            .add_component(name, help, &metrics)
            .or_raise()
    }

    fn __repr__(&self) -> String {
        format!("<Scope {:?} {:?}>", self.0.prefix, self.0.labels)
    }
}

/// Where time comes from.
#[pyclass(frozen, module = "metricbus")]
pub(crate) struct Clock(pub(crate) metricbus::Clock);

#[pymethods]
impl Clock {
    /// The system's monotonic clock.
    #[staticmethod]
    fn system() -> Clock {
        Clock(metricbus::Clock::system())
    }

    /// A clock that stands still until it is advanced: for tests.
    #[staticmethod]
    fn manual() -> Clock {
        Clock(metricbus::Clock::manual())
    }

    /// Seconds on this clock.
    fn now(&self) -> f64 {
        self.0.now().as_secs_f64()
    }

    /// Whether it is one for tests.
    #[getter]
    fn is_manual(&self) -> bool {
        self.0.is_manual()
    }

    /// Lets time pass, and what falls due happen: seconds, or a timedelta. Of a manual clock only.
    fn advance(&self, py: Python<'_>, by: &Bound<'_, PyAny>) -> PyResult<()> {
        let by = convert::duration("by", by)?;
        if !self.0.is_manual() {
            return Err(raise(
                "MetricBusError",
                "only a manual clock can be advanced, and this is the system's",
            ));
        }
        py.detach(|| self.0.advance(by));
        Ok(())
    }
}

//! `Counter`, `Gauge` and `Histogram`. Each is one series, or with label names a family of them; in both shapes it holds
//! what it takes to declare it again in a forked child.

use std::{
    any::Any,
    collections::HashMap,
    ops::Deref,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use metricbus::{
    Buckets, CounterError, Desc, ExemplarError, Family, IntoSelector, Metric, SampleValue,
    Selector, Series as CoreSeries, backend::Mirror,
};
use pyo3::{
    call::PyCallArgs,
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::{PyDict, PyString, PyTuple},
};

use crate::{
    bus::{Bus, MetricBus, Root, Scope},
    convert::{self, Real},
    deliver::lock,
    error::{Raise, raise},
    fork::Forked,
    gate,
    series::Series,
    snapshot::HistogramSnapshot,
    values::value,
};

/// What is said when a metric is declared.
pub(crate) struct Declaration {
    root: Root,
    desc: Desc,
    names: Vec<String>,
    again: fn(&Declaration) -> PyResult<()>,
    /// Whether any of its series was ever reset.
    is_reset: AtomicBool,
    resets: Forked<Mutex<Resets>>,
}

/// By label values, the series that was made anew when it was last reset: a `One`.
type Resets = HashMap<Option<Box<[String]>>, Arc<dyn Any + Send + Sync>>;

impl Declaration {
    /// On the bus of a forked child, where it is not yet.
    pub(crate) fn again(&self) -> PyResult<()> {
        (self.again)(self)
    }

    fn resets(&self) -> &Mutex<Resets> {
        let made = self
            .resets
            .get_or(|| Ok::<_, std::convert::Infallible>(Mutex::default()));
        match made {
            Ok(resets) => resets,
            Err(never) => match never {},
        }
    }

    /// The series with these values, if it was reset.
    #[cold]
    fn renewed<M: Kind>(&self, values: &Option<Box<[String]>>) -> Option<Arc<One<M>>> {
        let found = lock(self.resets()).get(values).cloned();
        found.and_then(|one| one.downcast().ok())
    }
}

/// What is common to the three types of the core.
pub(crate) trait Kind: Metric + Clone + Send + Sync + 'static {
    fn one_series(&self) -> CoreSeries;
}

impl Kind for metricbus::Counter<f64> {
    fn one_series(&self) -> CoreSeries {
        self.series()
    }
}

impl Kind for metricbus::Gauge {
    fn one_series(&self) -> CoreSeries {
        self.series()
    }
}

impl Kind for metricbus::Histogram {
    fn one_series(&self) -> CoreSeries {
        self.series()
    }
}

enum Made<M> {
    One(One<M>),
    Many(Family<M>),
}

struct One<M> {
    metric: M,
    /// Where its value is read instead, if it was made in a container whose far end has values of its own.
    mirror: Option<Arc<dyn Mirror>>,
}

impl<M: Kind> One<M> {
    /// Without labels: a far end that refuses it makes it an error.
    fn declared(root: &Root, metric: M) -> PyResult<One<M>> {
        let mirror = root.mirror(&metric.one_series())?;
        Ok(One { metric, mirror })
    }

    /// A child that the far end refuses counts on the bus only, which is counted and logged.
    fn child(root: &Root, metric: M) -> One<M> {
        let mirror = root.mirror(&metric.one_series()).unwrap_or_default();
        One { metric, mirror }
    }

    /// As the far end has it.
    #[inline]
    fn read(&self) -> Option<SampleValue> {
        self.mirror.as_ref()?.read()
    }
}

/// The series that a handle stands for now.
enum Current<'a, M> {
    Made(&'a One<M>),
    Renewed(Arc<One<M>>),
}

impl<M> Deref for Current<'_, M> {
    type Target = One<M>;

    #[inline]
    fn deref(&self) -> &One<M> {
        match self {
            Current::Made(one) => one,
            Current::Renewed(one) => one,
        }
    }
}

/// A metric, or a child of one.
pub(crate) struct Handle<M: Kind> {
    declared: Arc<Declaration>,
    /// Of a child.
    values: Option<Box<[String]>>,
    made: Forked<Made<M>>,
}

fn make<M: Kind>(declared: &Declaration, values: Option<&[String]>) -> PyResult<Made<M>> {
    let scope = declared.root.scope()?;
    let desc = declared.desc.clone();
    if declared.names.is_empty() {
        let metric = scope.declare(desc).or_raise()?;
        return Ok(Made::One(One::declared(&declared.root, metric)?));
    }
    let family = scope.family::<M>(desc).or_raise()?;
    Ok(match values {
        None => Made::Many(family),
        Some(values) => {
            let child = family.with_label_values(values).or_raise()?;
            Made::One(One::child(&declared.root, child))
        }
    })
}

impl<M: Kind> Handle<M> {
    pub(crate) fn declare(root: Root, desc: Desc, names: Vec<String>) -> PyResult<Handle<M>> {
        let declared = Arc::new(Declaration {
            root,
            desc,
            names,
            again: |declared| make::<M>(declared, None).map(drop),
            is_reset: AtomicBool::new(false),
            resets: Forked::new(Mutex::default()),
        });
        let made = make(&declared, None)?;
        declared.root.bus().declared(&declared);
        Ok(Handle {
            declared,
            values: None,
            made: Forked::new(made),
        })
    }

    #[inline]
    fn made(&self) -> PyResult<&Made<M>> {
        self.made
            .get_or(|| make(&self.declared, self.values.as_deref()))
    }

    #[inline]
    fn here(&self) -> PyResult<Current<'_, M>> {
        if self.declared.is_reset.load(Relaxed)
            && let Some(one) = self.declared.renewed(&self.values)
        {
            return Ok(Current::Renewed(one));
        }
        match self.made()? {
            Made::One(one) => Ok(Current::Made(one)),
            Made::Many(family) => Err(self.has_labels(family)),
        }
    }

    /// Removes the series, and makes it anew with the same labels: for all handles of this declaration it is that one from here on.
    fn reset(&self) -> PyResult<()> {
        let series = self.here()?.metric.one_series();
        let bus = self.declared.root.bus().current()?;
        bus.remove(series).or_raise()?;
        let Made::One(one) = make::<M>(&self.declared, self.values.as_deref())? else {
            unreachable!("a handle that has a series is no family");
        };
        let one = Arc::new(one);
        let before = {
            let mut resets = lock(self.declared.resets());
            // Of children that were removed since, nobody who writes means these.
            let over: Vec<_> = resets
                .extract_if(|_, one| is_over::<M>(one))
                .map(|(_, one)| one)
                .collect();
            (over, resets.insert(self.values.clone(), one))
        };
        drop(before);
        self.declared.is_reset.store(true, Relaxed);
        Ok(())
    }

    #[cold]
    fn has_labels(&self, family: &Family<M>) -> PyErr {
        let names = self.declared.names.join(", ");
        raise(
            "LabelError",
            format!(
                "metric {:?} is missing label values: it has the labels ({names}), so it has no value of its own; .labels(…) with a value for each would be right",
                family.name()
            ),
        )
    }

    fn family(&self) -> PyResult<&Family<M>> {
        match self.made()? {
            Made::Many(family) => Ok(family),
            Made::One(one) => Err(raise(
                "LabelError",
                format!(
                    "metric {:?} has no labels that could be given; they are named when it is declared, as in labels=(\"method\",)",
                    one.metric.one_series().to_string()
                ),
            )),
        }
    }

    /// The child with these values, by place or by name.
    fn labels(
        &self,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Handle<M>> {
        let family = self.family()?;
        let values = self.values_of(args, kwargs)?;
        let child = family.with_label_values(&values).or_raise()?;
        let one = One::child(&self.declared.root, child);
        let values = Some(values.into());
        if self.declared.is_reset.load(Relaxed) {
            // One that was removed since it was reset is no more what is meant by these values.
            let mut resets = lock(self.declared.resets());
            if resets.get(&values).is_some_and(is_over::<M>) {
                resets.remove(&values);
            }
        }
        Ok(Handle {
            declared: self.declared.clone(),
            values,
            made: Forked::new(Made::One(one)),
        })
    }

    fn values_of(
        &self,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Vec<String>> {
        let names = &self.declared.names;
        match kwargs.filter(|kwargs| !kwargs.is_empty()) {
            None => args
                .iter_borrowed()
                .map(|value| convert::text(&value))
                .collect(),
            Some(kwargs) => {
                let wrong = |why: String| {
                    let names = names.join(", ");
                    raise("LabelError", format!("{why}; the labels are ({names})"))
                };
                if !args.is_empty() {
                    return Err(wrong(
                        "labels are given by place or by name, not both".into(),
                    ));
                }
                if let Some(odd) = kwargs.keys().iter().find(|key| {
                    let key = key.extract::<String>().unwrap_or_default();
                    !names.contains(&key)
                }) {
                    return Err(wrong(format!("there is no label {odd}")));
                }
                let value = |name: &String| match kwargs.get_item(name)? {
                    Some(value) => convert::text(&value),
                    None => Err(wrong(format!("label {name:?} has no value"))),
                };
                names.iter().map(value).collect()
            }
        }
    }

    fn remove(&self, values: &Bound<'_, PyTuple>) -> PyResult<bool> {
        let family = self.family()?;
        let values = self.values_of(values, None)?;
        family.remove(&values).or_raise()
    }

    /// Removes the children that have all of these label values.
    fn remove_by_labels(&self, labels: &Bound<'_, PyAny>) -> PyResult<()> {
        let family = self.family()?;
        let wanted = convert::pairs(labels)?;
        let names = &self.declared.names;
        if let Some((odd, _)) = wanted.iter().find(|(name, _)| !names.contains(name)) {
            let names = names.join(", ");
            return Err(raise(
                "LabelError",
                format!("there is no label {odd:?}; the labels are ({names})"),
            ));
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let bus = self.declared.root.bus().current()?;
        for series in family.series() {
            let is_meant = |(name, value): &(String, String)| {
                series.label(name).is_some_and(|present| present == *value)
            };
            if wanted.iter().all(is_meant) {
                bus.remove(series.clone()).or_raise()?;
            }
        }
        Ok(())
    }

    /// Nothing to do where there are no labels.
    fn clear(&self) -> PyResult<()> {
        if let Made::Many(family) = self.made()? {
            family.clear();
        }
        Ok(())
    }

    fn series(&self) -> PyResult<Series> {
        Ok(Series::of(self.here()?.metric.one_series()))
    }

    fn all_series(&self) -> PyResult<Vec<Series>> {
        Ok(match self.made()? {
            Made::One(_) => vec![self.series()?],
            Made::Many(family) => family.series().into_iter().map(Series::of).collect(),
        })
    }

    fn name(&self) -> PyResult<String> {
        Ok(match self.made()? {
            Made::One(one) => one.metric.one_series().name().to_owned(),
            Made::Many(family) => family.name().to_owned(),
        })
    }

    /// All of it: the one series, or every one of the family, those to come too.
    pub(crate) fn selector(&self) -> PyResult<Selector> {
        match self.made()? {
            Made::One(_) => {
                let series = self.here()?.metric.one_series();
                series.into_selector().or_raise()
            }
            Made::Many(family) => {
                // Other scopes may have declared children of the same name, with their own labels.
                let scope = self.declared.root.scope()?;
                let pinned: Vec<_> = scope
                    .labels()
                    .iter()
                    .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
                    .collect();
                let braces = match pinned.is_empty() {
                    true => String::new(),
                    false => format!("{{{}}}", pinned.join(",")),
                };
                let text = format!("{}{braces}", family.name());
                text.into_selector().or_raise()
            }
        }
    }

    /// `None` of a family.
    pub(crate) fn one_series(&self) -> PyResult<Option<CoreSeries>> {
        Ok(match self.made()? {
            Made::One(_) => Some(self.here()?.metric.one_series()),
            Made::Many(_) => None,
        })
    }

    pub(crate) fn bus(&self) -> &Arc<Bus> {
        self.declared.root.bus()
    }

    fn shown(&self, what: &str) -> String {
        let inner = match self.made.here() {
            Some(Made::One(one)) => one.metric.one_series().to_string(),
            Some(Made::Many(family)) => {
                format!("{}, by {}", family.name(), self.declared.names.join(", "))
            }
            None => "not used yet in this process".to_owned(),
        };
        format!("<{what} {inner}>")
    }
}

fn is_over<M: Kind>(one: &Arc<dyn Any + Send + Sync>) -> bool {
    let one = one.downcast_ref::<One<M>>();
    one.is_none_or(|one| one.metric.one_series().is_removed())
}

/// A label's value, as it stands between quotes in a selector.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// The full name as `prometheus_client` makes it: with namespace, subsystem and unit.
fn full_name(namespace: &str, subsystem: &str, name: &str, unit: &str) -> String {
    let mut full = [namespace, subsystem, name]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("_");
    if !unit.is_empty() && !full.ends_with(&format!("_{unit}")) {
        full = format!("{full}_{unit}");
    }
    full
}

/// Where a constructor declares.
pub(crate) enum Place<'py> {
    /// On `metricbus.REGISTRY`: nothing else was said.
    Default,
    /// `None`: on a bus of its own that nobody exposes, as with `prometheus_client`.
    Nowhere,
    Here(Bound<'py, PyAny>),
}

impl<'py> FromPyObject<'_, 'py> for Place<'py> {
    type Error = PyErr;

    fn extract(place: Borrowed<'_, 'py, PyAny>) -> PyResult<Place<'py>> {
        Ok(match place.is_none() {
            true => Place::Nowhere,
            false => Place::Here(place.to_owned()),
        })
    }
}

/// What the constructors of the types have in common.
struct Wanted<'a, 'py> {
    name: String,
    documentation: &'a str,
    labelnames: Option<&'a Bound<'py, PyAny>>,
    unit: &'a str,
    registry: Place<'py>,
    expire_after: Option<&'a Bound<'py, PyAny>>,
    max_series: Option<usize>,
    native: Option<bool>,
}

impl Wanted<'_, '_> {
    fn declare<M: Kind>(self, buckets: Option<Buckets>) -> PyResult<Handle<M>> {
        let root = match self.registry {
            Place::Default => MetricBus::default_root()?,
            Place::Nowhere => MetricBus::unseen_root(),
            Place::Here(place) => Root::of(&place)?,
        };
        let names = label_names(self.labelnames)?;
        let mut desc = Desc::new(self.name, self.documentation).labels(names.clone());
        if !self.unit.is_empty() {
            desc = desc.unit(self.unit);
        }
        if let Some(buckets) = buckets {
            desc = desc.buckets(buckets);
        }
        if let Some(native) = self.native {
            desc = desc.native(native);
        }
        if let Some(max) = self.max_series {
            desc = desc.series_max(max);
        }
        if let Some(idle) = self.expire_after {
            desc = desc.expire_after(convert::duration("expire_after", idle)?);
        }
        Handle::declare(root, desc, names)
    }
}

/// Names of labels: any iterable of text, but not one text, whose letters would be taken for names.
pub(crate) fn label_names(names: Option<&Bound<'_, PyAny>>) -> PyResult<Vec<String>> {
    let Some(names) = names else {
        return Ok(Vec::new());
    };
    if names.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err(format!(
            "labelnames is the text {names:?}; a sequence of names like ({names:?},) would be right"
        )));
    }
    gate::foreign(names.py(), || {
        names.try_iter()?.map(|name| name?.extract()).collect()
    })
}

/// Upper bounds of buckets, without or with `inf` at the end.
pub(crate) fn buckets(bounds: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Buckets>> {
    let Some(bounds) = bounds else {
        return Ok(None);
    };
    let mut bounds: Vec<f64> = gate::foreign(bounds.py(), || {
        bounds
            .try_iter()?
            .map(|bound| bound?.extract())
            .collect::<PyResult<_>>()
    })?;
    if bounds.last() == Some(&f64::INFINITY) {
        bounds.pop();
    }
    Ok(Some(Buckets::new(bounds).or_raise()?))
}

/// A class of `metricbus/_timing.py`.
fn timing<'py>(py: Python<'py>, name: &str, args: impl PyCallArgs<'py>) -> PyResult<Py<PyAny>> {
    let class = py.import("metricbus._timing")?.getattr(name)?;
    gate::foreign(py, || Ok(class.call1(args)?.unbind()))
}

/// One increment, or one observation, with labels of its own.
#[pyclass(frozen, get_all, module = "metricbus")]
pub(crate) struct Exemplar {
    /// Names and values.
    labels: Py<PyDict>,
    /// What was observed, or by how much the counter was raised.
    value: f64,
    /// When, by the bus's clock.
    date: Py<PyAny>,
}

impl Exemplar {
    fn of(py: Python<'_>, exemplar: metricbus::Exemplar) -> PyResult<Exemplar> {
        Ok(Exemplar {
            labels: convert::pairs_dict(py, &exemplar.labels)?.unbind(),
            value: exemplar.value,
            date: convert::date(py, exemplar.at)?.unbind(),
        })
    }
}

#[pymethods]
impl Exemplar {
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let labels = self.labels.bind(py).repr()?;
        Ok(format!("<Exemplar {labels} {}>", self.value))
    }
}

value!(Exemplar {
    labels,
    value,
    date
});

fn borrowed(labels: &[(String, String)]) -> Vec<(&str, &str)> {
    let pairs = labels.iter();
    pairs.map(|(name, value)| (&**name, &**value)).collect()
}

/// As `prometheus_client` does: counted first, and an exemplar without labels is none.
fn count_with(
    counter: &metricbus::Counter<f64>,
    amount: f64,
    exemplar: &Bound<'_, PyAny>,
) -> PyResult<()> {
    match convert::pairs(exemplar) {
        Ok(labels) if !labels.is_empty() => {
            match counter.inc_by_with_exemplar(amount, &borrowed(&labels)) {
                Err(ExemplarError::Amount { amount }) => {
                    Err(CounterError::Amount { amount }).or_raise()
                }
                other => other.or_raise(),
            }
        }
        other => {
            counter.try_inc_by(amount).or_raise()?;
            other.map(drop)
        }
    }
}

/// Something that only goes up.
#[pyclass(frozen, weakref, module = "metricbus")]
pub(crate) struct Counter(pub(crate) Handle<metricbus::Counter<f64>>);

#[pymethods]
impl Counter {
    #[new]
    #[pyo3(signature = (name, documentation, labelnames=None, namespace="", subsystem="", unit="", registry=Place::Default, *, expire_after=None, max_series=None))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn new(
        name: &str,
        documentation: &str,
        labelnames: Option<&Bound<'_, PyAny>>,
        namespace: &str,
        subsystem: &str,
        unit: &str,
        registry: Place<'_>,
        expire_after: Option<&Bound<'_, PyAny>>,
        max_series: Option<usize>,
    ) -> PyResult<Counter> {
        let bare = name.strip_suffix("_total").unwrap_or(name);
        let wanted = Wanted {
            name: format!("{}_total", full_name(namespace, subsystem, bare, unit)),
            documentation,
            labelnames,
            unit,
            registry,
            expire_after,
            max_series,
            native: None,
        };
        wanted.declare(None).map(Counter)
    }

    /// Counts up, by 1 unless told otherwise; by a finite amount of 0 or more. `exemplar`: labels of this one increment, mostly
    /// the id of a trace, which OpenMetrics shows. One that can't be is an error, though it is counted.
    #[pyo3(signature = (amount=None, exemplar=None))]
    fn inc(&self, amount: Option<Real>, exemplar: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let amount = amount.map(|amount| amount.0);
        let one = self.0.here()?;
        let counter = &one.metric;
        if let Some(exemplar) = exemplar {
            return count_with(counter, amount.unwrap_or(1.0), exemplar);
        }
        match amount {
            None => {
                counter.inc();
                Ok(())
            }
            Some(amount) => counter.try_inc_by(amount).or_raise(),
        }
    }

    /// Begins again at 0, as where a logical process starts anew: the series is removed and made anew, so that everybody sees a
    /// restart, and nobody a fall. Who has subscribed to this one series hears that it is gone.
    fn reset(&self) -> PyResult<()> {
        self.0.reset()
    }

    /// Its value now; where it was made in a container of a library, what that has counted.
    fn get(&self) -> PyResult<f64> {
        let one = self.0.here()?;
        Ok(match one.read() {
            Some(SampleValue::Counter(value)) => value.as_f64(),
            _ => one.metric.get(),
        })
    }

    /// The latest exemplar, if there ever was one.
    fn exemplar(&self, py: Python<'_>) -> PyResult<Option<Exemplar>> {
        let exemplar = self.0.here()?.metric.exemplar();
        exemplar.map(|it| Exemplar::of(py, it)).transpose()
    }

    /// Counts what a block or a decorated function raises: those of a class, or of several; any `Exception` unless told otherwise.
    #[pyo3(signature = (exception=None))]
    fn count_exceptions(
        slf: &Bound<'_, Self>,
        exception: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        slf.get().0.here()?;
        timing(py, "CountExceptions", (slf, exception))
    }
}

/// Something that goes up and down.
#[pyclass(frozen, weakref, module = "metricbus")]
pub(crate) struct Gauge(pub(crate) Handle<metricbus::Gauge>);

#[pymethods]
impl Gauge {
    #[new]
    #[pyo3(signature = (name, documentation, labelnames=None, namespace="", subsystem="", unit="", registry=Place::Default, multiprocess_mode=None, *, expire_after=None, max_series=None))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn new(
        name: &str,
        documentation: &str,
        labelnames: Option<&Bound<'_, PyAny>>,
        namespace: &str,
        subsystem: &str,
        unit: &str,
        registry: Place<'_>,
        multiprocess_mode: Option<&str>,
        expire_after: Option<&Bound<'_, PyAny>>,
        max_series: Option<usize>,
    ) -> PyResult<Gauge> {
        // How `prometheus_client` adds gauges of several processes up; here each process keeps its own series.
        let _ = multiprocess_mode;
        let wanted = Wanted {
            name: full_name(namespace, subsystem, name, unit),
            documentation,
            labelnames,
            unit,
            registry,
            expire_after,
            max_series,
            native: None,
        };
        wanted.declare(None).map(Gauge)
    }

    /// Sets it. NaN is taken as a value.
    fn set(&self, value: Real) -> PyResult<()> {
        self.0.here()?.metric.set(value.0);
        Ok(())
    }

    /// Raises it, by 1 unless told otherwise.
    #[pyo3(signature = (amount=None))]
    fn inc(&self, amount: Option<Real>) -> PyResult<()> {
        self.0
            .here()?
            .metric
            .add(amount.map_or(1.0, |amount| amount.0));
        Ok(())
    }

    /// Lowers it, by 1 unless told otherwise.
    #[pyo3(signature = (amount=None))]
    fn dec(&self, amount: Option<Real>) -> PyResult<()> {
        self.0
            .here()?
            .metric
            .sub(amount.map_or(1.0, |amount| amount.0));
        Ok(())
    }

    /// Raises it to `value`, if it is lower.
    fn set_max(&self, value: Real) -> PyResult<()> {
        self.0.here()?.metric.set_max(value.0);
        Ok(())
    }

    /// Lowers it to `value`, if it is higher.
    fn set_min(&self, value: Real) -> PyResult<()> {
        self.0.here()?.metric.set_min(value.0);
        Ok(())
    }

    /// Its value now; 0 where it was never set. Where it was made in a container of a library, what that has.
    fn get(&self) -> PyResult<f64> {
        let one = self.0.here()?;
        Ok(match one.read() {
            Some(SampleValue::Gauge(value)) => value,
            _ => one.metric.get(),
        })
    }

    /// Sets it to the seconds since 1970.
    fn set_to_current_time(&self, py: Python<'_>) -> PyResult<()> {
        let now = py.import("time")?.call_method0("time")?.extract()?;
        self.set(now)
    }

    /// Before each scrape, push and export, `function` says the value; in a thread of its own, as with `MetricBus.on_collect`. Where it
    /// raises, or is not done in time, the gauge keeps the value that it had.
    fn set_function(slf: &Bound<'_, Self>, function: &Bound<'_, PyAny>) -> PyResult<()> {
        let this = slf.get();
        if !function.is_callable() {
            return Err(PyTypeError::new_err(format!("{function} can't be called")));
        }
        this.0.here()?;
        let key = this.0.series()?.shown();
        let bus = this.0.declared.root.bus();
        bus.set_hook(key, timing(slf.py(), "Setter", (slf, function))?);
        Ok(())
    }

    /// Is raised by 1 while a block or a decorated function (also a coroutine function) runs.
    fn track_inprogress(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        slf.get().0.here()?;
        timing(slf.py(), "InProgress", (slf,))
    }

    /// Is set to the seconds that a block or a decorated function took.
    fn time(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        let report = slf.getattr("set")?;
        timing(slf.py(), "Timer", (report,))
    }
}

/// What a histogram has that is declared as with `prometheus_client`, which has three more than this library.
const DEFAULT_BUCKETS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

/// A distribution: how many observations were at most each bound.
#[pyclass(frozen, weakref, module = "metricbus")]
pub(crate) struct Histogram(pub(crate) Handle<metricbus::Histogram>);

#[pymethods]
impl Histogram {
    #[new]
    #[pyo3(signature = (name, documentation, labelnames=None, namespace="", subsystem="", unit="", registry=Place::Default, *, buckets=None, native=None, expire_after=None, max_series=None))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn new(
        name: &str,
        documentation: &str,
        labelnames: Option<&Bound<'_, PyAny>>,
        namespace: &str,
        subsystem: &str,
        unit: &str,
        registry: Place<'_>,
        buckets: Option<&Bound<'_, PyAny>>,
        native: Option<bool>,
        expire_after: Option<&Bound<'_, PyAny>>,
        max_series: Option<usize>,
    ) -> PyResult<Histogram> {
        let wanted = Wanted {
            name: full_name(namespace, subsystem, name, unit),
            documentation,
            labelnames,
            unit,
            registry,
            expire_after,
            max_series,
            native,
        };
        let buckets = match self::buckets(buckets)? {
            None => Buckets::new(DEFAULT_BUCKETS).or_raise()?,
            Some(buckets) if buckets.bounds().is_empty() => {
                return Err(raise(
                    "DeclareError",
                    "buckets has no bound but inf; a histogram has at least one, and a Summary has none",
                ));
            }
            Some(buckets) => buckets,
        };
        wanted.declare(Some(buckets)).map(Histogram)
    }

    /// The bounds that `Histogram(…)` has where none are given: those of `prometheus_client`, `inf` at the end.
    #[classattr]
    #[pyo3(name = "DEFAULT_BUCKETS")]
    fn default_buckets(py: Python<'_>) -> PyResult<Py<PyTuple>> {
        let bounds = DEFAULT_BUCKETS.into_iter().chain([f64::INFINITY]);
        Ok(PyTuple::new(py, bounds.collect::<Vec<_>>())?.unbind())
    }

    /// Counts one observation. `exemplar`: labels of this one observation, mostly the id of a trace, which OpenMetrics shows.
    /// One that can't be is an error, though it is counted.
    #[pyo3(signature = (amount, exemplar=None))]
    fn observe(&self, amount: Real, exemplar: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let amount = amount.0;
        let one = self.0.here()?;
        let histogram = &one.metric;
        let Some(exemplar) = exemplar else {
            histogram.observe(amount);
            return Ok(());
        };
        match convert::pairs(exemplar) {
            Ok(labels) if !labels.is_empty() => histogram
                .observe_with_exemplar(amount, &borrowed(&labels))
                .or_raise(),
            other => {
                histogram.observe(amount);
                other.map(drop)
            }
        }
    }

    /// Its buckets, sum and count now; where it was made in a container of a library, as that has them.
    fn get(&self) -> PyResult<HistogramSnapshot> {
        let one = self.0.here()?;
        Ok(match one.read() {
            Some(SampleValue::Histogram(seen)) => seen.into(),
            _ => one.metric.snapshot().into(),
        })
    }

    /// The latest exemplar of each bucket that has one, with the bucket's upper bound.
    fn exemplars(&self, py: Python<'_>) -> PyResult<Vec<(f64, Exemplar)>> {
        let all = self.0.here()?.metric.exemplars().into_iter();
        all.map(|(bound, exemplar)| Ok((bound, Exemplar::of(py, exemplar)?)))
            .collect()
    }

    /// Observes the seconds that a block or a decorated function took.
    fn time(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        let report = slf.getattr("observe")?;
        timing(slf.py(), "Timer", (report,))
    }
}

/// What all three have: children, names, series.
macro_rules! as_family {
    ($class:ident) => {
        #[pymethods]
        impl $class {
            /// The child with these label values, made when it is first asked for. By place, in the order of the declaration,
            /// or by name; values of any type, as `str()` shows them.
            #[pyo3(signature = (*args, **kwargs))]
            fn labels(
                &self,
                args: &Bound<'_, PyTuple>,
                kwargs: Option<&Bound<'_, PyDict>>,
            ) -> PyResult<$class> {
                self.0.labels(args, kwargs).map($class)
            }

            /// Removes the child with these label values. Whether there was one.
            #[pyo3(signature = (*values))]
            fn remove(&self, values: &Bound<'_, PyTuple>) -> PyResult<bool> {
                self.0.remove(values)
            }

            /// Removes every child that has these label values, given by name for some of the labels. Without any, nothing.
            fn remove_by_labels(&self, labels: &Bound<'_, PyAny>) -> PyResult<()> {
                self.0.remove_by_labels(labels)
            }

            /// Removes all children; where there are no labels, nothing.
            fn clear(&self) -> PyResult<()> {
                self.0.clear()
            }

            /// The metric's full name.
            #[getter]
            fn name(&self) -> PyResult<String> {
                self.0.name()
            }

            /// Its series, where it is one: without labels, or a child.
            #[getter]
            fn series(&self) -> PyResult<Series> {
                self.0.series()
            }

            /// All its series: of a family, every child's.
            fn all_series(&self) -> PyResult<Vec<Series>> {
                self.0.all_series()
            }

            fn __repr__(&self) -> String {
                self.0.shown(stringify!($class))
            }
        }
    };
}

as_family!(Counter);
as_family!(Gauge);
as_family!(Histogram);

impl Scope {
    pub(crate) fn desc(
        name: &str,
        help: &str,
        names: &[String],
        unit: Option<&str>,
        expire_after: Option<&Bound<'_, PyAny>>,
        max_series: Option<usize>,
    ) -> PyResult<Desc> {
        let mut desc = Desc::new(name, help).labels(names.to_vec());
        if let Some(unit) = unit {
            desc = desc.unit(unit);
        }
        if let Some(idle) = expire_after {
            desc = desc.expire_after(convert::duration("expire_after", idle)?);
        }
        if max_series == Some(0) {
            return Err(PyValueError::new_err(
                "max_series is 0; how many series the metric may have, at least 1",
            ));
        }
        Ok(match max_series {
            Some(max) => desc.series_max(max),
            None => desc,
        })
    }
}

//! Arguments as Python users give them: times, selectors, labels.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use metricbus::{IntoSelector, Selector};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    sync::PyOnceLock,
    types::{PyDateTime, PyDelta, PyDict, PyFloat, PyInt, PyMapping, PyString, PyTzInfo},
};

use crate::{
    bus::Bus,
    error::{Raise, raise},
    gate,
    metric::{Counter, Gauge, Histogram},
    series::Series,
};

/// One of something, or several.
#[derive(FromPyObject)]
pub(crate) enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

impl<T> From<OneOrMore<T>> for Vec<T> {
    fn from(given: OneOrMore<T>) -> Vec<T> {
        match given {
            OneOrMore::One(one) => vec![one],
            OneOrMore::More(more) => more,
        }
    }
}

/// A number. What is none of Python's own is asked for one, which may run anybody's code.
#[derive(Clone, Copy)]
pub(crate) struct Real(pub(crate) f64);

impl<'a, 'py> FromPyObject<'a, 'py> for Real {
    type Error = PyErr;

    #[inline]
    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Real> {
        if let Ok(value) = value.cast_exact::<PyFloat>() {
            return Ok(Real(value.value()));
        }
        if value.is_exact_instance_of::<PyInt>() {
            return value.extract().map(Real);
        }
        gate::foreign(value.py(), || value.extract().map(Real))
    }
}

/// As `str()` shows it, which may run anybody's code.
pub(crate) fn text(value: &Bound<'_, PyAny>) -> PyResult<String> {
    match value.cast::<PyString>() {
        Ok(text) => Ok(text.to_str()?.to_owned()),
        Err(_) => gate::foreign(value.py(), || Ok(value.str()?.to_str()?.to_owned())),
    }
}

/// A span of time: seconds as a number, or a `datetime.timedelta`.
pub(crate) fn duration(what: &str, value: &Bound<'_, PyAny>) -> PyResult<Duration> {
    let seconds: f64 = if value.is_instance_of::<PyDelta>() {
        value.call_method0("total_seconds")?.extract()?
    } else {
        value.extract().map_err(|_| {
            PyTypeError::new_err(format!(
                "{what} is {value}, which is no time; seconds (0.5) or a datetime.timedelta would be right"
            ))
        })?
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| {
        PyValueError::new_err(format!(
            "{what} is {seconds} seconds; a time from 0 to 2**64 seconds would be right"
        ))
    })
}

/// A selector: its text, a metric (with labels: all of its series), or one series.
pub(crate) fn selector(value: &Bound<'_, PyAny>) -> PyResult<Selector> {
    if let Ok(text) = value.cast::<PyString>() {
        return text.to_str()?.into_selector().or_raise();
    }
    if let Ok(series) = value.cast::<Series>() {
        return series.get().inner()?.into_selector().or_raise();
    }
    if let Ok(gauge) = value.cast::<Gauge>() {
        return gauge.get().0.selector();
    }
    if let Ok(counter) = value.cast::<Counter>() {
        return counter.get().0.selector();
    }
    if let Ok(histogram) = value.cast::<Histogram>() {
        return histogram.get().0.selector();
    }
    Err(PyTypeError::new_err(format!(
        "{} is no selector; text like 'kv_usage_ratio{{worker=\"3\"}}', a metric or a series would be right",
        value.repr()?
    )))
}

/// As [`selector`], of somebody who asks this bus: a metric of another one would never be heard of.
pub(crate) fn selector_on(bus: &Arc<Bus>, value: &Bound<'_, PyAny>) -> PyResult<Selector> {
    let is_elsewhere = if let Ok(gauge) = value.cast::<Gauge>() {
        !Arc::ptr_eq(gauge.get().0.bus(), bus)
    } else if let Ok(counter) = value.cast::<Counter>() {
        !Arc::ptr_eq(counter.get().0.bus(), bus)
    } else if let Ok(histogram) = value.cast::<Histogram>() {
        !Arc::ptr_eq(histogram.get().0.bus(), bus)
    } else {
        false
    };
    if is_elsewhere {
        let why = format!(
            "{} is on another bus, and this one never hears of it; ask the bus on which it was made (metricbus.REGISTRY where none was named), or give a name as text",
            value.repr()?
        );
        return Err(raise("SelectorError", why));
    }
    selector(value)
}

/// The one series that a metric without labels, a child or a series means; `None` of a family and of text.
pub(crate) fn one_series(value: &Bound<'_, PyAny>) -> PyResult<Option<metricbus::Series>> {
    if let Ok(series) = value.cast::<Series>() {
        return series.get().inner().cloned().map(Some);
    }
    if let Ok(gauge) = value.cast::<Gauge>() {
        return gauge.get().0.one_series();
    }
    if let Ok(counter) = value.cast::<Counter>() {
        return counter.get().0.one_series();
    }
    if let Ok(histogram) = value.cast::<Histogram>() {
        return histogram.get().0.one_series();
    }
    Ok(None)
}

/// A selector as rules keep it: written down, so that it means the same in a forked child, on another bus and in another
/// process. A metric or a series stands for its name and its labels.
pub(crate) fn written(value: &Bound<'_, PyAny>) -> PyResult<Selector> {
    let selector = selector(value)?;
    if value.is_instance_of::<PyString>() {
        return Ok(selector);
    }
    selector.to_string().into_selector().or_raise()
}

/// Names, such as those of labels: any iterable of text, but not one text, whose letters would be taken for names.
pub(crate) fn names(what: &str, value: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    if value.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err(format!(
            "{what} is the text {value:?}; a sequence of names like ({value:?},) would be right"
        )));
    }
    let wrong = || {
        PyTypeError::new_err(format!(
            "{what} is {value:?}; a sequence of names like (\"model\",) would be right"
        ))
    };
    gate::foreign(value.py(), || {
        let names = value.try_iter().map_err(|_| wrong())?;
        names
            .map(|name| name?.extract().map_err(|_| wrong()))
            .collect()
    })
}

/// The last second that a `datetime` can hold.
const DATE_MAX: Duration = Duration::from_secs(253_402_300_799);

/// A date as an aware `datetime`, in UTC. What lies beyond what a `datetime` can hold, as what came from elsewhere may, is
/// the nearest that it can.
pub(crate) fn date<'py>(py: Python<'py>, date: SystemTime) -> PyResult<Bound<'py, PyAny>> {
    static EPOCH: PyOnceLock<Py<PyDateTime>> = PyOnceLock::new();
    let epoch = EPOCH.get_or_try_init(py, || {
        let utc = PyTzInfo::utc(py)?.to_owned();
        PyResult::Ok(PyDateTime::new(py, 1970, 1, 1, 0, 0, 0, 0, Some(&utc))?.unbind())
    })?;
    let since = date.duration_since(SystemTime::UNIX_EPOCH);
    let since = since.unwrap_or_default().min(DATE_MAX);
    // Both fit: they were cut off above.
    let days = i32::try_from(since.as_secs() / 86_400).unwrap_or(i32::MAX);
    let seconds = i32::try_from(since.as_secs() % 86_400).unwrap_or_default();
    let micros = i32::try_from(since.subsec_micros()).unwrap_or_default();
    epoch
        .bind(py)
        .add(PyDelta::new(py, days, seconds, micros, false)?)
}

/// Labels and their values, in the order of the mapping. Values of any type, as `str()` shows them.
pub(crate) fn pairs(value: &Bound<'_, PyAny>) -> PyResult<Vec<(String, String)>> {
    let mapping = value.cast::<PyMapping>().map_err(|_| {
        PyTypeError::new_err(format!(
            "labels are a mapping like {{'model': 'm'}}, not {value}"
        ))
    })?;
    let mut pairs = Vec::new();
    for item in gate::foreign(value.py(), || mapping.items())? {
        let (name, value): (String, Bound<'_, PyAny>) = item.extract()?;
        pairs.push((name, text(&value)?));
    }
    Ok(pairs)
}

/// Labels as a `dict`.
pub(crate) fn dict<'py, N, V>(
    py: Python<'py>,
    pairs: impl IntoIterator<Item = (N, V)>,
) -> PyResult<Bound<'py, PyDict>>
where
    N: AsRef<str>,
    V: AsRef<str>,
{
    let dict = PyDict::new(py);
    for (name, value) in pairs {
        dict.set_item(name.as_ref(), value.as_ref())?;
    }
    Ok(dict)
}

/// Labels or annotations of an alert as a `dict`.
pub(crate) fn pairs_dict<'py>(
    py: Python<'py>,
    pairs: &[(String, String)],
) -> PyResult<Bound<'py, PyDict>> {
    dict(py, pairs.iter().map(|(name, value)| (name, value)))
}

//! What a metric is declared to be, and whether that can be. Owns validation; registers nothing.

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use crate::{
    clock::Clock,
    error::{BucketError, DeclareError},
    labels::OVERFLOW_LABEL,
    names::{self, Escaping},
};

/// The type of a metric, as exposition formats name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations in buckets.
    Histogram,
}

impl MetricKind {
    /// The word on a `# TYPE` line.
    pub fn as_str(self) -> &'static str {
        match self {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        }
    }
}

impl fmt::Display for MetricKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a family may hold at most, unless its declaration or the bus says otherwise.
pub(crate) const SERIES_MAX_DEFAULT: usize = 2_000;

/// The most buckets a histogram can have. A scrape has a line for each, in each series; OpenTelemetry's exponential
/// histograms stop at 160, and no published bucket set comes near this.
pub(crate) const BUCKETS_MAX: usize = 1_024;

/// A declaration: a plain value, checked by [`MetricBus::declare`](crate::MetricBus::declare) and
/// [`MetricBus::family`](crate::MetricBus::family).
///
/// ```
/// use metricbus::{Buckets, Desc, Histogram, MetricBus};
///
/// let bus = MetricBus::new();
/// let latency = bus.family::<Histogram>(
///     Desc::new("request_duration_seconds", "Time to answer a request.")
///         .unit("seconds")
///         .label("service", "api")
///         .labels(["method"])
///         .buckets(Buckets::exponential(0.001, 2.0, 12)?),
/// )?;
/// latency.with_label_values(&["GET"])?.observe(0.004);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Desc {
    pub(crate) name: String,
    pub(crate) help: String,
    pub(crate) unit: Option<String>,
    pub(crate) constant: Vec<(String, String)>,
    pub(crate) variable: Vec<String>,
    pub(crate) buckets: Option<Buckets>,
    pub(crate) series_max: Option<usize>,
    pub(crate) expire_after: Option<Duration>,
    pub(crate) native: Option<bool>,
}

impl Desc {
    /// A name (`[a-zA-Z_:][a-zA-Z0-9_:]*`; the scope's prefix comes before it) and what the metric means. An empty help
    /// is allowed, and linted.
    pub fn new(name: impl Into<String>, help: impl Into<String>) -> Self {
        Desc {
            name: name.into(),
            help: help.into(),
            unit: None,
            constant: Vec::new(),
            variable: Vec::new(),
            buckets: None,
            series_max: None,
            expire_after: None,
            native: None,
        }
    }

    /// The unit, as OpenMetrics exposes it: a base unit such as `seconds` or `bytes`. The name must end in it, before a
    /// counter's `_total`.
    pub fn unit(mut self, unit: impl Into<String>) -> Self {
        self.unit = Some(unit.into());
        self
    }

    /// Adds a label with its value, for every series of this declaration.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.constant.push((name.into(), value.into()));
        self
    }

    /// Adds labels whose values are given per child.
    pub fn labels<I>(mut self, names: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.variable.extend(names.into_iter().map(Into::into));
        self
    }

    /// Upper bounds of a histogram's buckets; [`Buckets::default`] otherwise. Other types have none.
    pub fn buckets(mut self, buckets: Buckets) -> Self {
        self.buckets = Some(buckets);
        self
    }

    /// How many series the family may have (2 000 unless the bus says otherwise). Children beyond it share one series
    /// labelled `otel_metric_overflow="true"`, and `metricbus_series_overflowed_total` counts them.
    pub fn series_max(mut self, series_max: usize) -> Self {
        self.series_max = Some(series_max);
        self
    }

    /// Removes a child that had no mutation for `idle`, at most a quarter of that later. A handle to it that is still
    /// held writes to nobody from then on; ask the family for the child anew.
    pub fn expire_after(mut self, idle: Duration) -> Self {
        self.expire_after = Some(idle);
        self
    }

    /// Of a histogram: whether its exponential buckets are kept beside those of [`buckets`](Desc::buckets), from its
    /// first observation on. Prometheus, where it asks for protobuf, then gets both, and stores the former as a *native
    /// histogram*: quantiles to 1.1 % at any magnitude, whatever the bounds. As
    /// [`MetricBusBuilder::native_histograms`](crate::MetricBusBuilder::native_histograms) says unless told here.
    ///
    /// An observation costs what it costs under a window: one more atomic add. A series takes 1 KiB more, and some 280
    /// bytes for each octave in use.
    ///
    /// ```
    /// use metricbus::{Desc, Histogram, MetricBus};
    ///
    /// let bus = MetricBus::new();
    /// let wait: Histogram = bus.declare(Desc::new("wait_seconds", "Time waited.").native(true))?;
    /// wait.observe(0.2);
    /// # Ok::<(), metricbus::DeclareError>(())
    /// ```
    pub fn native(mut self, native: bool) -> Self {
        self.native = Some(native);
        self
    }
}

/// Upper bounds of a histogram's buckets, increasing, without the last one (+Inf), which is always there.
///
/// ```
/// use metricbus::Buckets;
///
/// assert_eq!(Buckets::linear(0.0, 0.5, 3)?.bounds(), [0.0, 0.5, 1.0]);
/// assert_eq!(Buckets::exponential(1.0, 10.0, 3)?.bounds(), [1.0, 10.0, 100.0]);
/// assert!(Buckets::new([1.0, 1.0]).is_err());
/// # Ok::<(), metricbus::BucketError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Buckets(Bounds);

#[derive(Clone, Debug)]
enum Bounds {
    Static(&'static [f64]),
    Owned(Arc<[f64]>),
}

impl PartialEq for Bounds {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Bounds {
    fn as_slice(&self) -> &[f64] {
        match self {
            Bounds::Static(bounds) => bounds,
            Bounds::Owned(bounds) => bounds,
        }
    }
}

impl Buckets {
    /// Bounds as given; a last +Inf is dropped. At most 1 024.
    pub fn new(bounds: impl Into<Vec<f64>>) -> Result<Self, BucketError> {
        let mut bounds = bounds.into();
        if bounds.last() == Some(&f64::INFINITY) {
            bounds.pop();
        }
        check_bounds(&bounds)?;
        Ok(Buckets(Bounds::Owned(bounds.into())))
    }

    /// Bounds known at compile time. They are checked when the histogram is declared.
    pub const fn from_static(bounds: &'static [f64]) -> Self {
        Buckets(Bounds::Static(bounds))
    }

    /// `count` bounds: `start`, `start + width`, `start + 2 width` …
    pub fn linear(start: f64, width: f64, count: usize) -> Result<Self, BucketError> {
        if !(width > 0.0 && width.is_finite()) {
            return Err(BucketError::Argument {
                what: "width",
                value: width,
                right: "it must be greater than 0 and finite",
            });
        }
        check_count(count)?;
        Buckets::new(
            (0..count)
                .map(|i| start + width * i as f64)
                .collect::<Vec<_>>(),
        )
    }

    /// `count` bounds: `start`, `start × factor`, `start × factor²` …
    pub fn exponential(start: f64, factor: f64, count: usize) -> Result<Self, BucketError> {
        if !(start > 0.0 && start.is_finite()) {
            return Err(BucketError::Argument {
                what: "start",
                value: start,
                right: "it must be greater than 0 and finite",
            });
        }
        if !(factor > 1.0 && factor.is_finite()) {
            return Err(BucketError::Argument {
                what: "factor",
                value: factor,
                right: "it must be greater than 1 and finite",
            });
        }
        check_count(count)?;
        let mut bound = start;
        let mut bounds = Vec::with_capacity(count);
        for _ in 0..count {
            bounds.push(bound);
            bound *= factor;
        }
        Buckets::new(bounds)
    }

    /// The bounds, without +Inf.
    pub fn bounds(&self) -> &[f64] {
        self.0.as_slice()
    }
}

impl Default for Buckets {
    /// The field's usual bounds for seconds: .005 .01 .025 .05 .1 .25 .5 1 2.5 5 10.
    fn default() -> Self {
        Buckets::from_static(&[
            0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
        ])
    }
}

fn check_count(count: usize) -> Result<(), BucketError> {
    if count > BUCKETS_MAX {
        return Err(BucketError::TooMany {
            count,
            max: BUCKETS_MAX,
        });
    }
    Ok(())
}

fn check_bounds(bounds: &[f64]) -> Result<(), BucketError> {
    check_count(bounds.len())?;
    for (position, &bound) in bounds.iter().enumerate() {
        if !bound.is_finite() {
            return Err(BucketError::NotANumber { bound, position });
        }
        if position > 0 && bounds[position - 1] >= bound {
            return Err(BucketError::NotIncreasing {
                before: bounds[position - 1],
                bound,
                position,
            });
        }
    }
    Ok(())
}

/// How the 64 bits of a series' cell are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// Of a counter that counts in `u64`.
    Whole,
    /// Of a counter that counts in `f64`: a double that only grows.
    Amount,
    /// Of a gauge, and of a histogram's sum.
    Real,
}

/// A declaration that was found valid; what all series of a family share.
#[derive(Debug)]
pub(crate) struct Meta {
    pub(crate) name: Arc<str>,
    pub(crate) help: String,
    pub(crate) unit: Option<String>,
    pub(crate) kind: MetricKind,
    pub(crate) numbers: Numbers,
    pub(crate) label_names: Box<[Arc<str>]>,
    /// Of a histogram, without +Inf.
    pub(crate) bounds: Arc<[f64]>,
    pub(crate) series_max: usize,
    pub(crate) expire_after: Option<Duration>,
    /// Of a histogram: its sketch is kept from birth.
    pub(crate) native: bool,
    /// NaN that was observed and left out, as native histograms do.
    pub(crate) nan_observations: AtomicU64,
    /// Computed from other metrics; its series come with labels of their own.
    pub(crate) derived: bool,
    /// Mutated in other processes; its series come with labels of their own.
    pub(crate) mirrored: bool,
    pub(crate) clock: Clock,
}

impl Meta {
    /// Every name under which the metric can appear, in any exposition format, samples and families alike.
    pub(crate) fn exposed_names(&self) -> Vec<String> {
        exposed_names(&self.name, self.kind)
    }

    /// `Err` where a later declaration asks for other limits than the first one; it may leave them open.
    pub(crate) fn check_limits(
        &self,
        series_max: Option<usize>,
        expire_after: Option<Duration>,
        native: Option<bool>,
    ) -> Result<(), DeclareError> {
        let clash = |what, earlier: String, now: String| {
            Err(DeclareError::Clash {
                metric: self.name.to_string(),
                what,
                earlier,
                now,
            })
        };
        if let Some(now) = native
            && now != self.native
        {
            return clash("native", self.native.to_string(), now.to_string());
        }
        match (series_max, expire_after) {
            (Some(now), _) if now != self.series_max => {
                clash("series_max", self.series_max.to_string(), now.to_string())
            }
            (_, Some(now)) if Some(now) != self.expire_after => clash(
                "expire_after",
                self.expire_after
                    .map_or("never".to_owned(), |e| format!("{e:?}")),
                format!("{now:?}"),
            ),
            _ => Ok(()),
        }
    }

    /// `Err` with what clashes where `self` can't be another declaration of `earlier`.
    pub(crate) fn check_same_as(&self, earlier: &Meta) -> Result<(), DeclareError> {
        let clash = |what, before: String, now: String| {
            if before == now {
                return Ok(());
            }
            Err(DeclareError::Clash {
                metric: self.name.to_string(),
                what,
                earlier: before,
                now,
            })
        };
        let kind = |m: &Meta| match (m.kind, m.numbers) {
            (_, Numbers::Amount) => "counter of f64".to_owned(),
            (kind, _) => kind.to_string(),
        };
        let unit = |m: &Meta| {
            m.unit
                .as_ref()
                .map_or("none".to_owned(), |u| format!("{u:?}"))
        };
        let labels = |m: &Meta| {
            let mut names: Vec<_> = m.label_names.iter().map(|n| n.to_string()).collect();
            names.sort();
            format!("{names:?}")
        };
        clash("type", kind(earlier), kind(self))?;
        clash(
            "help",
            format!("{:?}", earlier.help),
            format!("{:?}", self.help),
        )?;
        clash("unit", unit(earlier), unit(self))?;
        clash("label names", labels(earlier), labels(self))?;
        clash(
            "buckets",
            format!("{:?}", earlier.bounds),
            format!("{:?}", self.bounds),
        )
    }
}

/// See [`Meta::exposed_names`]. Of a name that is not plain, those that escaping makes of it are among them. Dots are not:
/// names that they make the same are the same in underscores.
pub(crate) fn exposed_names(name: &str, kind: MetricKind) -> Vec<String> {
    let mut all = exposed_as(name, kind);
    for scheme in [Escaping::Underscores, Escaping::Values] {
        if let Cow::Owned(escaped) = scheme.of_metric(name) {
            all.extend(exposed_as(&escaped, kind));
        }
    }
    all
}

fn exposed_as(name: &str, kind: MetricKind) -> Vec<String> {
    match kind {
        MetricKind::Gauge => vec![name.to_owned()],
        MetricKind::Counter => {
            // OpenMetrics names the family without _total, and the samples with it.
            let base = name.strip_suffix("_total").unwrap_or(name);
            vec![
                base.to_owned(),
                format!("{base}_total"),
                format!("{base}_created"),
            ]
        }
        MetricKind::Histogram => ["", "_bucket", "_sum", "_count", "_created"]
            .iter()
            .map(|suffix| format!("{name}{suffix}"))
            .collect(),
    }
}

/// Checks a declaration, its labels in the order in which they will be exposed.
pub(crate) fn validate(
    desc: &Desc,
    name: &str,
    kind: MetricKind,
    label_names: &[&str],
) -> Result<Arc<[f64]>, DeclareError> {
    check_name(name)?;
    if let Some(why) = unfit_name(name, kind) {
        return Err(DeclareError::Name {
            name: name.to_owned(),
            why: why.to_owned(),
        });
    }
    check_labels(name, label_names)?;
    if desc.expire_after == Some(Duration::ZERO) {
        return Err(DeclareError::Labels {
            metric: name.to_owned(),
            why: "expire_after(0) would remove a series as soon as it is made; give it a duration"
                .to_owned(),
        });
    }
    if let Some(unit) = &desc.unit {
        check_unit(name, kind, unit)?;
    }
    if desc.native == Some(true) && kind != MetricKind::Histogram {
        return Err(DeclareError::Labels {
            metric: name.to_owned(),
            why: format!("a {kind} can't be native; only a histogram can"),
        });
    }
    match (&desc.buckets, kind) {
        (buckets, MetricKind::Histogram) => {
            let buckets = buckets.clone().unwrap_or_default();
            let buckets =
                Buckets::new(buckets.bounds()).map_err(|source| DeclareError::Buckets {
                    metric: name.to_owned(),
                    source,
                })?;
            Ok(buckets.bounds().into())
        }
        (None, _) => Ok([].into()),
        (Some(_), kind) => Err(DeclareError::Labels {
            metric: name.to_owned(),
            why: format!("a {kind} has no buckets; only a histogram has"),
        }),
    }
}

/// Why a metric can't have this name, though it is one.
pub(crate) fn unfit_name(name: &str, kind: MetricKind) -> Option<&'static str> {
    if kind == MetricKind::Counter && name == "_total" {
        return Some("nothing is left of it without \"_total\", as OpenMetrics names a counter");
    }
    Escaping::Underscores
        .of_metric(name)
        .starts_with("metricbus_")
        .then_some("names that begin with \"metricbus_\" are the bus's own")
}

/// Checks the names of all labels of a metric (or of a component).
pub(crate) fn check_labels(metric: &str, label_names: &[&str]) -> Result<(), DeclareError> {
    for (i, &label) in label_names.iter().enumerate() {
        check_label(metric, label)?;
        if label_names[..i].contains(&label) {
            return Err(DeclareError::LabelTwice {
                metric: metric.to_owned(),
                label: label.to_owned(),
                labels: label_names.iter().map(|&l| l.to_owned()).collect(),
            });
        }
        let same = |earlier: &&&str| underscored(earlier) == underscored(label);
        if let Some(earlier) = label_names[..i].iter().find(same) {
            return Err(DeclareError::Labels {
                metric: metric.to_owned(),
                why: format!(
                    "labels {earlier:?} and {label:?} are both {:?} to who reads plain names only; rename one",
                    underscored(label)
                ),
            });
        }
    }
    Ok(())
}

pub(crate) fn check_name(name: &str) -> Result<(), DeclareError> {
    match names::fault(name) {
        None => Ok(()),
        Some(why) => Err(DeclareError::Name {
            name: name.to_owned(),
            why,
        }),
    }
}

fn underscored(label: &str) -> Cow<'_, str> {
    Escaping::Underscores.of_label(label)
}

fn check_label(metric: &str, label: &str) -> Result<(), DeclareError> {
    check_label_name(metric, label)?;
    let reserved = |why| {
        Err(DeclareError::LabelReserved {
            metric: metric.to_owned(),
            label: label.to_owned(),
            why,
        })
    };
    match label {
        "le" => reserved("it holds the bound of a histogram's bucket"),
        "quantile" => reserved("it holds the quantile of a summary"),
        OVERFLOW_LABEL => reserved("it marks the series beyond a family's cardinality limit"),
        _ if underscored(label).starts_with("__") => {
            reserved("names beginning with __ are Prometheus's own")
        }
        _ => Ok(()),
    }
}

/// Whether this is a label's name at all.
pub(crate) fn check_label_name(metric: &str, label: &str) -> Result<(), DeclareError> {
    match names::fault(label) {
        None => Ok(()),
        Some(why) => Err(DeclareError::LabelName {
            metric: metric.to_owned(),
            label: label.to_owned(),
            why,
        }),
    }
}

fn check_unit(name: &str, kind: MetricKind, unit: &str) -> Result<(), DeclareError> {
    // Only a counter's family is named without _total.
    let (base, suffix) = match name.strip_suffix("_total") {
        Some(base) if kind == MetricKind::Counter => (base, "_total"),
        _ => (name, ""),
    };
    let plain = !unit.is_empty() && unit.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if plain && base.strip_suffix(unit).is_some_and(|b| b.ends_with('_')) {
        return Ok(());
    }
    let right = if plain {
        format!("{base}_{unit}{suffix}")
    } else {
        format!("a unit of letters, digits and '_', as in {base}_seconds{suffix}")
    };
    Err(DeclareError::Unit {
        metric: name.to_owned(),
        unit: unit.to_owned(),
        right,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, kind: MetricKind, labels: &[&str]) -> Result<Arc<[f64]>, DeclareError> {
        validate(&Desc::new(name, "help"), name, kind, labels)
    }

    #[test]
    fn names_are_any_text_that_needs_no_escaping_in_quotes() {
        for name in ["", "a\n", "\0", "say \"a\"", "a\\b"] {
            assert!(
                matches!(
                    check(name, MetricKind::Gauge, &[]),
                    Err(DeclareError::Name { .. })
                ),
                "{name:?}"
            );
        }
        for name in [
            "a", "_a", ":a", "a:b_9", "1st", "kv-usage", "kv usage", "größe",
        ] {
            assert!(check(name, MetricKind::Gauge, &[]).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn labels_that_mean_something_else_are_refused() {
        for label in ["le", "quantile", "__name__", "_.x", "otel_metric_overflow"] {
            assert!(matches!(
                check("a", MetricKind::Gauge, &[label]),
                Err(DeclareError::LabelReserved { .. })
            ));
        }
        for label in ["", "a\n", "\"", "\\"] {
            assert!(matches!(
                check("a", MetricKind::Gauge, &[label]),
                Err(DeclareError::LabelName { .. })
            ));
        }
        assert!(matches!(
            check("a", MetricKind::Gauge, &["x", "y", "x"]),
            Err(DeclareError::LabelTwice { .. })
        ));
        assert!(check("a", MetricKind::Gauge, &["x.y", "é", "a:b", "9a"]).is_ok());
        let error = check("a", MetricKind::Gauge, &["x.y", "x_y"]).unwrap_err();
        assert!(error.to_string().contains("are both \"x_y\""), "{error}");
    }

    #[test]
    fn a_unit_that_the_name_does_not_end_in_is_refused_with_a_name_that_would_do() {
        let unit = |name: &str, unit: &str| check_unit(name, MetricKind::Counter, unit);
        assert!(unit("wait_seconds", "seconds").is_ok());
        assert!(unit("wait_seconds_total", "seconds").is_ok());
        let Err(DeclareError::Unit { right, .. }) = unit("wait_total", "seconds") else {
            panic!("accepted");
        };
        assert_eq!(right, "wait_seconds_total");
        assert!(unit("seconds", "seconds").is_err());
        assert!(unit("wait_", "").is_err());
        assert!(check_unit("wait_seconds_total", MetricKind::Gauge, "seconds").is_err());
    }

    #[test]
    fn bounds_that_do_not_increase_are_refused() {
        assert!(Buckets::new([1.0, 2.0, f64::INFINITY]).is_ok());
        for bad in [
            vec![1.0, 1.0],
            vec![2.0, 1.0],
            vec![f64::NAN],
            vec![f64::NEG_INFINITY, 0.0],
        ] {
            assert!(Buckets::new(bad.clone()).is_err(), "{bad:?}");
        }
        assert!(Buckets::linear(0.0, 0.0, 3).is_err());
        assert!(Buckets::linear(1e300, 1.0, 3).is_err());
        assert!(Buckets::exponential(0.0, 2.0, 3).is_err());
        assert!(Buckets::exponential(1.0, 1.0, 3).is_err());
        assert!(Buckets::exponential(1.0, 2.0, usize::MAX).is_err());
        assert!(Buckets::exponential(1e300, 1e10, 3).is_err());
    }
}

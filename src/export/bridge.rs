//! To and from the `prometheus` crate. Reads its registries with suspicion: a custom collector can give anything.

use std::{
    collections::HashMap,
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use prometheus::{
    core::{Collector, Desc},
    proto,
};

use super::Escaping;
use crate::{FamilySnapshot, MetricBus, MetricKind, SampleValue};

/// The metrics of a bus as a collector of the `prometheus` crate, for an application that has a registry and serves it
/// already.
///
/// Each gathering reads the bus anew, so metrics and children that are declared later are there too. Names that the bus
/// has when the collector is made are claimed in the registry: a clash is an error of `register`. One that is declared
/// later under a name which the registry has already is not noticed by the registry, which then mixes the two; declare
/// first, register then.
///
/// The registry's text format has no units, shows counters as floats, and has [underscores](Escaping::Underscores) for what
/// its names can't have in them.
///
/// ```
/// use metricbus::{MetricBus, export::PrometheusCollector};
/// use prometheus::{Registry, TextEncoder};
///
/// let bus = MetricBus::new();
/// bus.counter("requests_total", "Requests.")?.inc_by(6);
///
/// let registry = Registry::new();
/// registry.register(Box::new(PrometheusCollector::new(&bus)))?;
/// assert_eq!(
///     TextEncoder::new().encode_to_string(&registry.gather())?,
///     "# HELP requests_total Requests.\n# TYPE requests_total counter\nrequests_total 6\n",
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PrometheusCollector {
    bus: MetricBus,
    claims: Vec<Desc>,
}

impl PrometheusCollector {
    /// A collector of this bus.
    ///
    /// ```
    /// use metricbus::{MetricBus, export::PrometheusCollector};
    /// use prometheus::core::Collector;
    ///
    /// let bus = MetricBus::new();
    /// let collector = PrometheusCollector::new(&bus);
    /// bus.gauge("queue_depth", "Requests waiting.")?.set(3.0);
    /// assert_eq!(collector.collect()[0].name(), "queue_depth");
    /// # Ok::<(), metricbus::DeclareError>(())
    /// ```
    pub fn new(bus: &MetricBus) -> Self {
        // A registry knows collectors by their descriptions, so even one of an empty bus needs one of its own.
        static COLLECTORS: AtomicU64 = AtomicU64::new(0);
        let number = COLLECTORS.fetch_add(1, Relaxed).to_string();
        let identity = HashMap::from([("collector".to_owned(), number)]);
        let identity = Desc::new(
            "metricbus_collector".to_owned(),
            "Stands for a bus in a registry.".to_owned(),
            Vec::new(),
            identity,
        );
        let claims = bus.snapshot().families.into_iter().map(|family| {
            let first = family.series.into_iter().next();
            let labels = first.map_or_else(Vec::new, |s| {
                let names = s.labels.into_iter().map(|(name, _)| name);
                names
                    .map(|name| Escaping::Underscores.of_label(&name).into_owned())
                    .collect()
            });
            let name = Escaping::Underscores.of_metric(&family.name).into_owned();
            Desc::new(name, described(family.help), labels, HashMap::new())
        });
        PrometheusCollector {
            bus: bus.clone(),
            // Our names are valid in a registry too, so nothing is lost here.
            claims: claims.chain([identity]).filter_map(Result::ok).collect(),
        }
    }
}

/// The `prometheus` crate wants a help text.
fn described(help: String) -> String {
    if help.is_empty() {
        "(no help)".to_owned()
    } else {
        help
    }
}

impl Collector for PrometheusCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.claims.iter().collect()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let families = self.bus.snapshot().families.into_iter();
        // Its encoder refuses a whole scrape for one family without series.
        families
            .filter(|f| !f.series.is_empty())
            .map(to_proto)
            .collect()
    }
}

impl fmt::Debug for PrometheusCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrometheusCollector")
            .field("bus", &self.bus)
            .finish_non_exhaustive()
    }
}

fn to_proto(family: FamilySnapshot) -> proto::MetricFamily {
    let mut out = proto::MetricFamily::default();
    out.set_field_type(match family.kind {
        MetricKind::Counter => proto::MetricType::COUNTER,
        MetricKind::Gauge => proto::MetricType::GAUGE,
        MetricKind::Histogram => proto::MetricType::HISTOGRAM,
    });
    out.set_name(Escaping::Underscores.of_metric(&family.name).into_owned());
    out.set_help(described(family.help));
    for series in family.series {
        let labels = series.labels.into_iter().map(|(name, value)| {
            let mut pair = proto::LabelPair::default();
            pair.set_name(Escaping::Underscores.of_label(&name).into_owned());
            pair.set_value(value);
            pair
        });
        let mut metric = proto::Metric::from_label(labels.collect());
        match series.value {
            SampleValue::Counter(value) => {
                let mut counter = proto::Counter::default();
                counter.set_value(value.as_f64());
                metric.set_counter(counter);
            }
            SampleValue::Gauge(value) => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
            SampleValue::Histogram(value) => {
                // The bucket without a bound is added by whoever writes the text; given here, the `prometheus` crate would call it `inf`.
                let bounded = value
                    .buckets
                    .into_iter()
                    .filter(|(bound, _)| *bound != f64::INFINITY);
                let buckets = bounded.map(|(bound, count)| {
                    let mut bucket = proto::Bucket::default();
                    bucket.set_upper_bound(bound);
                    bucket.set_cumulative_count(count);
                    bucket
                });
                let mut histogram = proto::Histogram::default();
                histogram.set_bucket(buckets.collect());
                histogram.set_sample_sum(value.sum);
                histogram.set_sample_count(value.count);
                metric.set_histogram(histogram);
            }
        }
        out.mut_metric().push(metric);
    }
    out
}

#[cfg(feature = "http")]
pub(super) use from::gather;

/// What an [`Exporter`](super::Exporter) merges.
#[cfg(feature = "http")]
mod from {
    use std::collections::HashSet;

    use super::*;
    use crate::{
        HistogramSnapshot, SeriesSnapshot, Value,
        desc::{check_label_name, check_name, unfit_name},
        export::foreign::{Foreign, Summary, SummarySeries},
    };

    /// Everything in a registry, as far as it can be exposed.
    pub(in crate::export) fn gather(registry: &prometheus::Registry) -> Foreign {
        let mut foreign = Foreign::default();
        for family in registry.gather() {
            if let Err(fault) = take(&family, &mut foreign) {
                foreign.unfit.push((family.name().to_owned(), fault));
            }
        }
        foreign
    }

    fn take(family: &proto::MetricFamily, foreign: &mut Foreign) -> Result<(), String> {
        let name = family.name().to_owned();
        check_name(&name).map_err(|error| error.to_string())?;
        let mut seen = HashSet::new();
        let mut labels = |metric: &proto::Metric, reserved: &str| {
            let mut pairs: Vec<(String, String)> = Vec::new();
            for pair in metric.get_label() {
                let label = pair.name();
                check_label_name(&name, label).map_err(|error| error.to_string())?;
                if label == reserved || label.starts_with("__") {
                    return Err(format!("its label {label:?} is reserved"));
                }
                if pairs.iter().any(|(earlier, _)| earlier == label) {
                    return Err(format!("its label {label:?} is there twice"));
                }
                pairs.push((label.to_owned(), pair.value().to_owned()));
            }
            let mut key = pairs.clone();
            key.sort();
            if !seen.insert(key) {
                return Err(format!("a series is there twice: {pairs:?}"));
            }
            Ok(pairs)
        };
        let metrics = family.get_metric().iter();
        let kind = match family.get_field_type() {
            proto::MetricType::COUNTER => MetricKind::Counter,
            proto::MetricType::GAUGE => MetricKind::Gauge,
            proto::MetricType::HISTOGRAM => MetricKind::Histogram,
            proto::MetricType::SUMMARY => {
                let series = metrics.map(|metric| {
                    let summary = metric.get_summary();
                    let quantiles = summary.get_quantile().iter();
                    let quantiles: Vec<_> = quantiles.map(|q| (q.quantile(), q.value())).collect();
                    let increase = quantiles.windows(2).all(|pair| pair[0].0 < pair[1].0);
                    if !increase || quantiles.iter().any(|(q, _)| !(0.0..=1.0).contains(q)) {
                        return Err("its quantiles do not increase from 0 to 1".to_owned());
                    }
                    Ok(SummarySeries {
                        labels: labels(metric, "quantile")?,
                        quantiles,
                        sum: summary.sample_sum(),
                        count: summary.sample_count(),
                    })
                });
                let series = fit(&name, series, &mut foreign.unfit_series)?;
                let help = family.help().to_owned();
                foreign.summaries.push(Summary { name, help, series });
                return Ok(());
            }
            #[allow(
                unreachable_patterns,
                reason = "all there is without the crate's own optional types"
            )]
            other => return Err(format!("its type {other:?} can't be exposed")),
        };
        if let Some(why) = unfit_name(&name, kind) {
            return Err(why.to_owned());
        }
        let series = metrics.map(|metric| {
            let (labels, value) = match kind {
                MetricKind::Counter => {
                    let value = metric.get_counter().value();
                    if value.is_nan() || value < 0.0 {
                        return Err(format!("a counter can't be {value}"));
                    }
                    (labels(metric, "")?, SampleValue::Counter(Value::F64(value)))
                }
                MetricKind::Gauge => (
                    labels(metric, "")?,
                    SampleValue::Gauge(metric.get_gauge().value()),
                ),
                MetricKind::Histogram => {
                    let histogram = histogram(metric.get_histogram())?;
                    (labels(metric, "le")?, SampleValue::Histogram(histogram))
                }
            };
            Ok(SeriesSnapshot { labels, value })
        });
        let series = fit(&name, series, &mut foreign.unfit_series)?;
        foreign.families.push(FamilySnapshot {
            name,
            help: family.help().to_owned(),
            unit: None,
            kind,
            series,
        });
        Ok(())
    }

    /// The series that can be exposed: one that can't does not take the others with it. An error where none can.
    fn fit<T>(
        name: &str,
        series: impl Iterator<Item = Result<T, String>>,
        unfit: &mut Vec<(String, String)>,
    ) -> Result<Vec<T>, String> {
        let (mut fit, mut faults) = (Vec::new(), Vec::new());
        for one in series {
            match one {
                Ok(series) => fit.push(series),
                Err(fault) => faults.push(fault),
            }
        }
        if fit.is_empty() && !faults.is_empty() {
            return Err(faults.swap_remove(0));
        }
        unfit.extend(faults.into_iter().map(|fault| (name.to_owned(), fault)));
        Ok(fit)
    }

    /// The crate's `protobuf` feature, which any crate of a program may switch on, renames `get_value` to `value`. An
    /// inherent method comes before a trait's, so here each name stands for whichever there is.
    #[allow(dead_code, reason = "which of the two is used depends on the feature")]
    trait Read {
        fn value(&self) -> f64;
        fn get_value(&self) -> f64;
    }

    macro_rules! read {
        ($($message:ty),*) => {$(
            impl Read for $message {
                fn value(&self) -> f64 {
                    self.get_value()
                }

                fn get_value(&self) -> f64 {
                    self.value()
                }
            }
        )*};
    }

    read!(proto::Counter, proto::Gauge);

    // Deprecated with that feature, and all there is without.
    #[allow(deprecated)]
    fn histogram(histogram: &proto::Histogram) -> Result<HistogramSnapshot, String> {
        let (count, sum) = (histogram.get_sample_count(), histogram.get_sample_sum());
        let buckets = histogram.get_bucket().iter();
        let mut buckets: Vec<(f64, u64)> = buckets
            .map(|b| (b.upper_bound(), b.cumulative_count()))
            .collect();
        if buckets
            .last()
            .is_none_or(|(bound, _)| *bound != f64::INFINITY)
        {
            buckets.push((f64::INFINITY, count));
        }
        let in_order = |pair: &[(f64, u64)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
        if !buckets.windows(2).all(in_order) {
            return Err("its buckets do not increase".to_owned());
        }
        Ok(HistogramSnapshot {
            buckets,
            sum,
            count,
        })
    }
}

//! The derive macros of [metricbus](https://docs.rs/metricbus). Use them from there: `metricbus::Metrics` and
//! `metricbus::Labels` are both the trait and its derive.
//!
//! What can be known when compiling is checked then, by the rules by which the bus checks the rest at registration:
//! names, units, labels, literal buckets, and whether an attribute fits its field. Every mistake is an error of its own
//! at the place where it was made.

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

mod attr;
mod labels;
mod metrics;
mod name;

/// Makes a struct of metrics declare itself: each field is a metric, its name the metric's, its doc comment the help.
///
/// ```
/// use metricbus::{Counter, Family, Gauge, Histogram, MetricBus, Metrics};
///
/// /// What a decode worker measures.
/// #[derive(Metrics)]
/// #[metrics(prefix = "worker_")]
/// struct Worker {
///     /// Requests served.
///     #[metric(labels("method", "code"), series_max = 100)]
///     requests_total: Family<Counter>,
///     /// Share of the KV cache in use.
///     #[metric(unit = "ratio", label("tier" = "gpu"))]
///     kv_usage_ratio: Gauge,
///     /// Time from a request to its first token.
///     #[metric(unit = "seconds", buckets = [0.01, 0.1, 1, 10])]
///     time_to_first_token_seconds: Histogram,
/// }
///
/// let bus = MetricBus::new();
/// let worker: Worker = bus.scope().with_label("pod", "decode-0").register()?;
/// worker.kv_usage_ratio.set(0.25);
/// worker.requests_total.with_label_values(&["POST", "200"])?.inc();
///
/// assert_eq!(
///     worker.kv_usage_ratio.series().to_string(),
///     r#"worker_kv_usage_ratio{pod="decode-0",tier="gpu"}"#,
/// );
/// assert_eq!(bus.components()[0].name, "Worker");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Fields
///
/// | type | is |
/// |---|---|
/// | `Counter`, `Counter<f64>`, `Gauge`, `Histogram` | one series |
/// | `Family<M>` | a series for each set of label values; the labels' names are in `#[metric(labels(...))]` |
/// | `Family<M, L>` | the same, by a type `L` that derives [`Labels`](macro@Labels) |
/// | any other, with `#[metrics(nested)]` | a struct that derives `Metrics` itself |
///
/// A type is known by the last segment of its path, so `metricbus::Gauge` will do and an alias will not. A type parameter
/// is taken for a metric, and gets the bound it needs.
///
/// The lines of a doc comment become one line of help. A metric without one, and without `help`, is an error.
///
/// # `#[metric(...)]` on a field
///
/// | attribute | |
/// |---|---|
/// | `name = "..."` | the metric's name, if it is not the field's |
/// | `help = "..."` | the help, if it is not the doc comment |
/// | `unit = "seconds"` | the unit; the name must end in it (before `_total`) |
/// | `label("name" = value)` | a label with its value, anything that can be displayed; may be repeated |
/// | `labels("method", "code")` | the labels of a `Family<M>`, whose values are given per child |
/// | `buckets = [0.1, 1]` | upper bounds of a histogram, or any expression of type `Buckets`; the bus's usual ones otherwise |
/// | `native = true` | whether a histogram has native buckets as well, for Prometheus; as the bus says otherwise |
/// | `initial = 0` | the value at which a gauge begins; none until it is set otherwise |
/// | `series_max = 100` | the cardinality limit |
/// | `expire_after_secs = 60` | removes a child of a family that had no mutation for so long |
///
/// Two fields may have the same name if the values of a label that both have tell them apart:
///
/// ```
/// use metricbus::{Counter, MetricBus, Metrics};
///
/// #[derive(Metrics)]
/// struct Cache {
///     #[metric(name = "lookups_total", help = "Lookups.", label("result" = "hit"))]
///     hits: Counter,
///     #[metric(name = "lookups_total", help = "Lookups.", label("result" = "miss"))]
///     misses: Counter,
/// }
///
/// let cache: Cache = MetricBus::new().register()?;
/// cache.hits.inc();
/// assert_eq!(cache.misses.series().to_string(), r#"lookups_total{result="miss"}"#);
/// # Ok::<(), metricbus::DeclareError>(())
/// ```
///
/// # `#[metrics(...)]` on the struct
///
/// | attribute | |
/// |---|---|
/// | `prefix = "worker_"` | comes before every name in the struct, after the prefix of the scope |
/// | `component = "worker"` | the name by which `MetricBus::components` knows the struct, if it is not the struct's |
/// | `label("name" = value)` | a label of every metric in the struct; may be repeated |
/// | `crate = path` | where metricbus is, if not at `::metricbus` |
///
/// The first paragraph of the struct's doc comment is the component's help.
///
/// # `#[metrics(nested, ...)]` on a field
///
/// The field's struct is registered on the scope of the struct around it; `prefix = "..."` and `label("name" = value)`
/// make it a scope of its own:
///
/// ```
/// use metricbus::{Gauge, MetricBus, Metrics};
///
/// #[derive(Metrics)]
/// struct Queue {
///     /// Requests waiting.
///     depth: Gauge,
/// }
///
/// #[derive(Metrics)]
/// #[metrics(prefix = "router_")]
/// struct Router {
///     #[metrics(nested, prefix = "queue_", label("lane" = "fast"))]
///     fast: Queue,
///     #[metrics(nested, prefix = "queue_", label("lane" = "slow"))]
///     slow: Queue,
/// }
///
/// let router: Router = MetricBus::new().register()?;
/// assert_eq!(router.slow.depth.series().to_string(), r#"router_queue_depth{lane="slow"}"#);
/// # Ok::<(), metricbus::DeclareError>(())
/// ```
///
/// # Errors
///
/// `register` gives the first declaration's error, as when it was declared by hand: a clash with another struct, a label
/// that the scope has as well, bounds from an expression that do not increase. What was declared before it stays declared.
#[proc_macro_derive(Metrics, attributes(metrics, metric))]
pub fn derive_metrics(input: TokenStream) -> TokenStream {
    metrics::expand(&parse_macro_input!(input as DeriveInput)).into()
}

/// Makes a struct the labels of a `Family<M, L>`: each field is a label, its `Display` the value.
///
/// `#[label(name = "...")]` gives a label another name than its field's. Names are checked: letters, digits and `_`, and
/// none of `le`, `quantile`, `otel_metric_overflow` and those beginning with `__`. `#[label(crate = path)]` on the struct
/// says where metricbus is, if not at `::metricbus`.
///
/// ```
/// use metricbus::{Counter, Desc, Labels, MetricBus};
///
/// #[derive(Labels)]
/// struct Request {
///     method: &'static str,
///     #[label(name = "code")]
///     status_code: u16,
/// }
///
/// let bus = MetricBus::new();
/// let requests = bus.scope().family_of::<Counter, Request>(Desc::new("requests_total", "Requests."))?;
/// let get = requests.with(&Request { method: "GET", status_code: 200 });
/// assert_eq!(get.series().to_string(), r#"requests_total{method="GET",code="200"}"#);
/// # Ok::<(), metricbus::DeclareError>(())
/// ```
///
/// A field whose type has no `Display`, such as an `Option`, is an error at the field: say what its absence is called.
#[proc_macro_derive(Labels, attributes(label))]
pub fn derive_labels(input: TokenStream) -> TokenStream {
    labels::expand(&parse_macro_input!(input as DeriveInput)).into()
}

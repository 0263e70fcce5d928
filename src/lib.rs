#![cfg_attr(
    all(feature = "derive", feature = "http", feature = "backtest", feature = "nats"),
    doc = include_str!("../README.md")
)]
#![cfg_attr(
    not(all(
        feature = "derive",
        feature = "http",
        feature = "backtest",
        feature = "nats"
    )),
    doc = "Metrics that react. The guide needs the features `derive`, `http`, `backtest` and `nats`."
)]

mod bus;
mod cell;
// What each of its users leaves out is used by another.
mod backlog;
#[cfg(feature = "_client")]
#[cfg_attr(not(feature = "otlp"), allow(dead_code))]
mod client;
mod clock;
mod desc;
mod dispatch;
mod error;
mod events;
mod exemplar;
mod handoff;
mod hint;
mod hub;
mod inbox;
mod interest;
mod labels;
mod lint;
mod listen;
mod mailbox;
mod metric;
#[cfg(feature = "nats")]
mod mirror;
mod names;
mod own;
mod raw;
mod rule;
mod scope;
mod selector;
mod series;
#[cfg(any(feature = "http", feature = "_client"))]
mod signal;
mod similar;
mod sketch;
mod snapshot;
mod source;
mod stats;
mod steps;
mod subscription;
mod sync;
mod tap;
mod threshold;
mod time;
mod watch;
mod window;

pub mod backend;
#[cfg(feature = "backtest")]
pub mod backtest;
pub mod component;
pub mod dynamo;
pub mod export;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(feature = "tower")]
pub mod service;
pub mod testing;

#[cfg(feature = "otlp")]
pub use backend::OtlpContainer;
#[cfg(feature = "libnv")]
pub use backend::libnv::LibnvContainer;
pub use bus::{MetricBus, MetricBusBuilder};
pub use clock::{Clock, Sleep};
pub use component::{
    BaseComponentMetrics, MetricContainer, MetricCounter, MetricFamily, MetricGauge,
    MetricHistogram, NullContainer, PrometheusContainer, TeeContainer,
};
pub use desc::{Buckets, Desc, MetricKind};
#[cfg(feature = "persist")]
pub use error::RuleStateError;
pub use error::{
    BucketError, CounterError, DeclareError, ExemplarError, LabelError, RuleError, SelectorError,
    SubscribeError,
};
pub use events::{Cause, Changed, Crossed, Crossing, Moved};
pub use exemplar::Exemplar;
pub use labels::Labels;
pub use lint::Lint;
pub use listen::{Event, Events, Listen};
pub use metric::{
    Counter, CounterValue, Family, Gauge, Histogram, HistogramSnapshot, InProgress, Metric,
    ObserveTimer, PeakGauge, SetTimer,
};
#[cfg(feature = "derive")]
pub use metricbus_derive::{Labels, Metrics};
#[cfg(feature = "persist")]
pub use rule::RuleStateFile;
pub use rule::{
    Alert, AlertCause, AlertState, Condition, Derived, Expr, LiveRule, Notice, Over, Pairs,
    Quality, Rule, RuleGroup, RuleState, RuleStatus, RuleThreshold,
};
pub use scope::{Component, Metrics, Scope};
pub use selector::{IntoSelector, Selector};
pub use series::{Series, Value};
pub use snapshot::{FamilySnapshot, SampleValue, SeriesSnapshot, Snapshot};
pub use source::{Origin, SourceId, SourceIdError};
pub use subscription::{CallbackReport, Subscription, SubscriptionStats};
pub use tap::{Change, Lagged, Mutation, Mutations};
pub use threshold::{Delta, Threshold};
pub use time::Time;

pub use window::{Window, WindowStats, Windows};

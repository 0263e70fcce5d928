//! The extension module `metricbus._metricbus`. What Python users see is in `metricbus/`: this is its fast and shared half.
//!
//! Two rules hold in all of it. Nothing here waits while it holds the interpreter's lock, but for locks that a mutation
//! holds for an instant. And no thread of the bus ever takes the interpreter's lock to deliver: letters wait in bounded
//! mailboxes, and a bell tells the reader's loop (`deliver.rs`).

mod backend;
mod bridge;
mod bus;
mod convert;
mod deliver;
mod error;
mod events;
mod export;
mod fork;
mod gate;
mod hooks;
mod logs;
mod metric;
mod nats;
mod otlp;
mod push;
mod rule;
mod runtime;
mod series;
mod snapshot;
mod source;
mod text;
mod thread_pool;
mod values;
mod window;

use pyo3::prelude::*;

// All classes are frozen, and what they hold is `Sync`, which the compiler checks: nothing here relies on the
// interpreter's lock.
#[pymodule(gil_used = false)]
mod _metricbus {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::{
        backend::{Reporter, end_backends},
        bus::{Clock, MetricBus, Scope, rules_of_all},
        deliver::{Bell, Opening, Receiver, SubscriptionStats},
        events::{Changed, Crossing, Lagged, Moved, Mutation},
        export::{Exporter, Server},
        fork::{after_fork_in_child, claim_interpreter, stayed_with_parent},
        gate::close_gate,
        hooks::{HookRun, hook_pool, hook_run},
        logs::next_log_lines,
        metric::{Counter, Exemplar, Gauge, Histogram},
        nats::{
            AlertForwarding, ConnectionStatus, Fleet, FleetStatus, FleetWindow, ForwarderStatus,
            Forwarding, FramesStatus, NatsForwarder, NatsOptions, OutboxStatus, RefusedRule,
            RuleTarget, RulesInStatus, SentRule, SeriesWindow, SourceEvent, SourceRule,
            SourceRules, SourceStatus, SourceWindow,
        },
        otlp::OtlpOptions,
        push::Push,
        rule::{
            Alert, Condition, Derived, Expr, LiveRule, Over, Rule, RuleGroup, RuleStatus,
            RuleThreshold, Synced,
            condition::{changed, gone, moved, stale, when},
        },
        series::Series,
        snapshot::{FamilySnapshot, HistogramSnapshot, SeriesSnapshot, Snapshot},
        source::{Origin, SourceId},
        thread_pool::ThreadPool,
        window::{Window, WindowStats},
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::logs::start();
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}

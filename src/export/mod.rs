//! What goes out: the text formats, and (feature `http`) the exporter that serves them.
//!
//! | file | owns |
//! |---|---|
//! | `text` | the exposition formats: Prometheus text 0.0.4 and OpenMetrics 1.0 |
//! | `protobuf` | the one with native histograms |
//! | `push` | a push to a Pushgateway |
//! | `http` | `Exporter`, the tower service: routes, batches of scrapes, what goes into one |
//! | `server` | a server of its own: addresses, limits on clients, shutdown |
//! | `negotiate` | `Accept` and `Accept-Encoding` |
//! | `collect` | foreign code with a deadline: hooks, checks, registries |
//! | `rules` | the JSON of `/rules` |
//! | `health` | the JSON of `/health` |
//! | `process`, `own` | `process_*` and `metricbus_exporter_*` |
//! | `foreign` | what other registries say, and summaries as text |
//! | `bridge` | to and from the `prometheus` crate |
//!
//! A scrape takes no lock that a mutation takes, but for that of a rule, and that for as long as copying a few numbers
//! takes; `/rules` takes it while it copies the rule's groups. Nothing here is ever on the path of a mutation.

#[cfg(feature = "http")]
use std::task::Poll;

#[cfg(feature = "prometheus")]
mod bridge;
#[cfg(feature = "http")]
mod collect;
#[cfg(feature = "http")]
mod foreign;
#[cfg(feature = "http")]
mod health;
#[cfg(feature = "http")]
mod http;
#[cfg(feature = "http")]
mod names;
#[cfg(feature = "http")]
mod negotiate;
#[cfg(feature = "http")]
mod own;
#[cfg(feature = "http")]
mod process;
mod protobuf;
#[cfg(feature = "push")]
mod push;
#[cfg(feature = "http")]
mod rules;
#[cfg(feature = "http")]
mod server;
pub mod text;

#[cfg(feature = "prometheus")]
pub use self::bridge::PrometheusCollector;
#[cfg(feature = "push")]
pub use self::push::{Push, PushError};
#[cfg(feature = "http")]
pub use self::{
    http::{Exporter, ExporterBuilder, ResponseFuture},
    server::{BackgroundServer, ExporterServer, ServeError},
};
pub use crate::names::Escaping;
pub use text::Format;

/// Polls all to their end at once, and gives their outcomes in order.
#[cfg(feature = "http")]
async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.map(Box::pin).collect();
    let mut outcomes: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (future, outcome) in running.iter_mut().zip(&mut outcomes) {
            if outcome.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *outcome = Some(value);
            }
        }
        if outcomes.iter().all(Option::is_some) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    outcomes.into_iter().flatten().collect()
}

//! What goes out: the text formats, and the HTTP exporter that serves them.
//!
//! | file | owns |
//! |---|---|
//! | `text` | the exposition formats: Prometheus text 0.0.4 and OpenMetrics 1.0 |
//! | `http` | [`Exporter`], the tower service: routes, batches of scrapes, what goes into one |
//! | `server` | a server of its own: addresses, limits on clients, shutdown |
//! | `negotiate` | `Accept` and `Accept-Encoding` |
//! | `collect` | foreign code with a deadline: hooks, checks, registries |
//! | `health` | the JSON of `/health` |
//! | `process`, `own` | `process_*` and `metricbus_exporter_*` |
//! | `foreign` | what other registries say, and summaries as text |
//! | `bridge` | to and from the `prometheus` crate |
//!
//! A scrape takes no lock that a mutation takes, and nothing here is ever on the path of one.

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
mod negotiate;
#[cfg(feature = "http")]
mod own;
#[cfg(feature = "http")]
mod process;
#[cfg(feature = "http")]
mod server;
pub mod text;

#[cfg(feature = "prometheus")]
pub use self::bridge::PrometheusCollector;
#[cfg(feature = "http")]
pub use self::{
    http::{Exporter, ExporterBuilder, ResponseFuture},
    server::{BackgroundServer, ExporterServer, ServeError},
};
pub use text::Format;

/// Polls all to their end at once, and gives their outcomes in order.
#[cfg(feature = "http")]
async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    use std::{pin::Pin, task::Poll};

    let mut pending: Vec<(Pin<Box<F>>, Option<F::Output>)> =
        futures.map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|cx| {
        let mut all = true;
        for (future, outcome) in &mut pending {
            if outcome.is_none() {
                match future.as_mut().poll(cx) {
                    Poll::Ready(value) => *outcome = Some(value),
                    Poll::Pending => all = false,
                }
            }
        }
        if all { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    pending
        .into_iter()
        .filter_map(|(_, outcome)| outcome)
        .collect()
}

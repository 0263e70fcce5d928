//! A real nats-server, in the oldest release that is supported and in the newest; and all that can go wrong with one.
//!
//! [`server`] starts, kills, freezes and restarts it, [`config`] writes what it is told. [`authority`] makes certificates,
//! [`operator`] credentials files. [`proxy`] stands between it and a client, and loses, delays and cuts what passes.
//! [`pod`] is a pod: a bus whose alerts and frames are forwarded; [`worker`] is one in a process of its own.
//!
//! A test is an async function that takes a [`Release`]; [`on_each_server!`](crate::on_each_server) makes a test of it
//! for each of the two.

pub mod authority;
pub mod config;
pub mod operator;
pub mod pod;
pub mod proxy;
pub mod raw;
pub mod server;
pub mod worker;

use std::{error::Error, future::Future, time::Duration};

pub use authority::Authority;
pub use config::{Config, User};
use futures_util::StreamExt as _;
pub use operator::Operator;
pub use pod::{Pod, Told, source, values};
pub use proxy::Proxy;
pub use raw::Raw;
pub use server::NatsServer;
pub(crate) use server::Port;
pub use worker::{Worker, WorkerOptions};

use crate::parts;

/// What a test returns.
pub type Outcome = Result<(), Box<dyn Error>>;

/// How long a test may take, and whatever it waits for. Generous: it only bounds a failing test.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How often [`until`] looks again.
const POLL: Duration = Duration::from_millis(5);

/// Which nats-server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// The oldest that is supported: 2.9.
    Oldest,
    /// The newest when these tests were written.
    Newest,
}

/// Runs a test against one release, on a runtime of its own with two threads; what it spawned ends with it. Does nothing
/// where there is no such nats-server, outside CI.
pub fn run<F>(release: Release, test: impl FnOnce(Release) -> F) -> Outcome
where
    F: Future<Output = Outcome>,
{
    if parts::nats_server(release).is_none() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async {
        tokio::time::timeout(DEADLINE, test(release))
            .await
            .map_err(|_| format!("the test did not end within {DEADLINE:?}"))?
    });
    runtime.shutdown_background();
    outcome
}

/// Makes two tests of each function, `oldest::name` and `newest::name`.
///
/// ```text
/// async fn an_alert_arrives(release: Release) -> Outcome {
///     let server = NatsServer::start(release);
///     …
/// }
///
/// on_each_server!(an_alert_arrives);
/// ```
#[macro_export]
macro_rules! on_each_server {
    ($($test:ident),+ $(,)?) => {
        mod oldest {
            $(#[test]
            fn $test() -> $crate::nats::Outcome {
                $crate::nats::run($crate::nats::Release::Oldest, super::$test)
            })+
        }
        mod newest {
            $(#[test]
            fn $test() -> $crate::nats::Outcome {
                $crate::nats::run($crate::nats::Release::Newest, super::$test)
            })+
        }
    };
}

/// Looks again and again until there is an answer; fails the test after a minute without.
pub async fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(answer) = probe() {
                return answer;
            }
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(DEADLINE / 2, wait)
        .await
        .unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// As [`until`], for something that has to be asked for.
pub async fn until_async<T, F>(what: &str, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let wait = async {
        loop {
            if let Some(answer) = probe().await {
                return answer;
            }
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(DEADLINE / 2, wait)
        .await
        .unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Whether the server answers this client within a moment. All that the client did before has then been processed
/// (`flush` of async-nats waits for the socket only).
pub async fn answers(client: &async_nats::Client) -> bool {
    let round = async {
        let inbox = client.new_inbox();
        let mut letters = client.subscribe(inbox.clone()).await.ok()?;
        client.publish(inbox, "".into()).await.ok()?;
        letters.next().await
    };
    let round = tokio::time::timeout(Duration::from_millis(200), round);
    matches!(round.await, Ok(Some(_)))
}

/// Waits until the server [`answers`], through an outage too.
pub async fn until_it_answers(client: &async_nats::Client) {
    until_async("the server to answer", || async {
        answers(client).await.then_some(())
    })
    .await;
}

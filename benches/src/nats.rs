//! `nats_crossing_to_remote_callback` and `nats_fleet_1000`: over a real nats-server on this machine.
//!
//! [`crossing`] is a race, [`fleet`] a load. Both are skipped where there is no nats-server.

pub(crate) mod crossing;
pub(crate) mod fleet;
#[path = "../../examples/cross_pod/server.rs"]
#[allow(dead_code)] // The example kills and restarts it, too.
mod server;

use std::path::Path;

use self::server::NatsServer;
use crate::{Failure, report::Skipped};

/// A server of the entry's own.
fn server() -> Result<NatsServer, Failure> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program =
        server::find(here.parent().unwrap_or(here)).map_err(|error| Skipped(error.to_string()))?;
    NatsServer::start(&program)
}

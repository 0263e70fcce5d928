//! A harness for tests against real programs: Prometheus, promtool, the Pushgateway, the parsers of `prometheus_client`,
//! nats-server, an OpenTelemetry collector, and the C and C++ compilers.
//!
//! One module per foreign program. Each starts it, talks to it, and stops it by its own process id, whatever way the
//! test ends. `make test` gets the programs; where one is missing all the same, its tests fail in CI and are skipped
//! elsewhere ([`parts`] decides). Everything listens on free ports of 127.0.0.1.

pub mod component;
pub mod cpp;
pub mod http;
pub mod nats;
pub mod otlp;
pub mod parts;
pub mod process;
pub mod prometheus;
pub mod promtool;
pub mod pushgateway;
pub mod python;
pub mod random;

//! Loom models of metricbus's cell, mailbox, hand-off and arrivals.
//!
//! The files modelled are those of the crate itself, compiled here with `cfg(metricbus_loom)`, which the build script
//! sets: `sync.rs` then takes atomics and locks from loom. The models are tests; run them with
//! `cargo test -p metricbus-loom --release`.

// Compiled for the models alone: what they don't use is used by the library.
#![allow(dead_code, missing_docs)]

#[path = "../../src/backend/arrivals.rs"]
mod arrivals;
#[path = "../../src/backlog.rs"]
mod backlog;
#[path = "../../src/cell.rs"]
mod cell;
#[path = "../../src/handoff.rs"]
mod handoff;
#[path = "../../src/hint.rs"]
mod hint;
#[path = "../../src/interest.rs"]
mod interest;
#[path = "../../src/mailbox.rs"]
mod mailbox;
#[path = "../../src/steps.rs"]
mod steps;
#[path = "../../src/sync.rs"]
mod sync;
#[path = "../../src/time.rs"]
mod time;

#[cfg(test)]
mod models;

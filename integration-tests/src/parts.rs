//! Where the foreign programs are, and what a test does without one.

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::nats::Release;

/// The root of the checkout, in which `make test` puts what it gets.
pub fn checkout() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// A program of Debian's package `prometheus`: the one that `make test` unpacked, or else the one on the `PATH`.
pub fn prometheus_program(name: &str) -> Option<PathBuf> {
    debian_program("prometheus", name)
}

/// A program of each release of Prometheus that `make test` unpacked, the oldest first. The newest is whatever Debian's
/// unstable has, and not having it fails no test.
pub fn prometheus_releases(name: &str) -> Vec<PathBuf> {
    let of = |folder: &str| {
        checkout()
            .join(".tools")
            .join(folder)
            .join("usr/bin")
            .join(name)
    };
    let newer = of("prometheus-2.53");
    let newer = if newer.is_file() {
        Some(newer)
    } else {
        missing(&format!("{name} 2.53"))
    };
    let newest = Some(of("prometheus-unstable")).filter(|program| program.is_file());
    if newest.is_none() {
        println!("skipped: {name} of Debian's unstable is missing");
    }
    let all = prometheus_program(name).into_iter();
    all.chain(newer).chain(newest).collect()
}

/// The Pushgateway, of Debian's package `prometheus-pushgateway`.
pub fn pushgateway_program() -> Option<PathBuf> {
    debian_program("pushgateway", "prometheus-pushgateway")
}

fn debian_program(folder: &str, name: &str) -> Option<PathBuf> {
    let unpacked = checkout().join(".tools").join(folder);
    let unpacked = unpacked.join("usr/bin").join(name);
    let path = env::var_os("PATH").unwrap_or_default();
    let found = std::iter::once(unpacked)
        .chain(env::split_paths(&path).map(|folder| folder.join(name)))
        .find(|program| program.is_file());
    found.or_else(|| missing(name))
}

/// A program of the machine's, which is part of `package`.
pub fn on_path(name: &str, package: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|program| program.is_file());
    found.or_else(|| missing(&format!("{name} ({package})")))
}

/// The Python of the virtual environment that `make test` makes.
pub fn python() -> Option<PathBuf> {
    let python = checkout().join(".venv/bin/python");
    // The mark that setting up came to its end, with all that is needed installed.
    let complete = checkout().join(".venv/metricbus-requirements.txt");
    if python.is_file() && complete.is_file() {
        Some(python)
    } else {
        missing("the Python environment with prometheus_client and nats-py")
    }
}

/// A nats-server that `make test` unpacked.
pub fn nats_server(release: Release) -> Option<PathBuf> {
    let (program, name) = match release {
        Release::Oldest => ("nats-server-oldest/usr/sbin", "the oldest nats-server"),
        Release::Newest => ("nats-server-newest/bin", "the newest nats-server"),
    };
    let program = checkout().join(".tools").join(program).join("nats-server");
    if program.is_file() {
        Some(program)
    } else {
        missing(name)
    }
}

/// The OpenTelemetry collector that `make test` unpacked.
pub fn rotel() -> Option<PathBuf> {
    let program = checkout().join(".tools/rotel/rotel/rotel-agent");
    if program.is_file() {
        Some(program)
    } else {
        missing("rotel, an OpenTelemetry collector")
    }
}

fn missing(what: &str) -> Option<PathBuf> {
    let message = format!("{what} is missing; `make test` installs it");
    assert!(env::var("CI").as_deref() != Ok("true"), "{message}");
    eprintln!("skipped: {message}");
    None
}

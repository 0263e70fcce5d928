//! What the library has to say to an operator, as records of Python's `logging`, under the name `metricbus`.
//!
//! A line is handed over to a thread of its own (`metricbus/_threads.py`), since it may come from any thread, and taking the interpreter's lock is
//! nothing for the ones that mutate, send or serve. What that thread can't keep up with is dropped and counted.

use std::{
    fmt::{self, Write},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use pyo3::prelude::*;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use crate::{deliver::lock, fork::Forked, gate};

/// Lines that may wait.
const LINES_MAX: usize = 1024;

static DROPPED: AtomicU64 = AtomicU64::new(0);

struct Line {
    level: u8,
    text: String,
}

/// From now on what the library logs goes to `logging`.
pub(crate) fn start() {
    // Somebody else in this process may have set one, who then hears it all.
    let _ = tracing::subscriber::set_global_default(ToPython);
}

/// The crate's, and this extension module's.
fn is_ours(target: &str) -> bool {
    target.trim_start_matches('_').starts_with("metricbus")
}

struct ToPython;

impl Subscriber for ToPython {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::INFO && is_ours(metadata.target())
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let line = Line {
            // As `logging` counts.
            level: match *event.metadata().level() {
                Level::ERROR => 40,
                Level::WARN => 30,
                Level::INFO => 20,
                _ => 10,
            },
            text: text.message + &text.fields,
        };
        let sent = lines().is_some_and(|lines| lines.sender.try_send(line).is_ok());
        if !sent {
            DROPPED.fetch_add(1, Relaxed);
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// The message, and then the fields with their names.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String can't fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

fn lines() -> Option<&'static Lines> {
    static LINES: OnceLock<Forked<Option<Lines>>> = OnceLock::new();
    let forked = LINES.get_or_init(|| Forked::new(make()));
    match forked.get_or(|| Ok::<_, std::convert::Infallible>(make())) {
        Ok(lines) => lines.as_ref(),
        Err(never) => match never {},
    }
}

/// The lines of this process that wait.
struct Lines {
    sender: SyncSender<Line>,
    receiver: Mutex<Receiver<Line>>,
}

fn make() -> Option<Lines> {
    let (sender, receiver) = sync_channel(LINES_MAX);
    // The thread that calls handlers is one of Python's, which the interpreter's end may end wherever it is: a handler may hang.
    // It is begun in one of ours, as whoever has something to say must not wait for the interpreter's lock.
    let thread = std::thread::Builder::new().name("metricbus-log".into());
    let begin = || {
        gate::attach(|py| {
            let start = || -> PyResult<()> {
                let start = py.import("metricbus._threads")?.getattr("start_log")?;
                start.call0().map(drop)
            };
            if let Err(error) = start() {
                error.write_unraisable(py, None);
            }
        });
    };
    thread.spawn(begin).ok()?;
    Some(Lines {
        sender,
        receiver: Mutex::new(receiver),
    })
}

/// Waits for lines to be logged, in a thread that does nothing else: their levels, as `logging` counts, and their texts.
#[pyfunction]
pub(crate) fn next_log_lines(py: Python<'_>) -> Vec<(u8, String)> {
    let Some(lines) = lines() else {
        return Vec::new();
    };
    py.detach(|| {
        let receiver = lock(&lines.receiver);
        let first = receiver.recv().ok();
        let lines = first.into_iter().chain(receiver.try_iter());
        let lines = lines.map(|line| (line.level, line.text));
        let mut lines: Vec<_> = lines.take(LINES_MAX).collect();
        let dropped = DROPPED.swap(0, Relaxed);
        if dropped > 0 {
            let text = format!("metricbus: {dropped} lines of this log were dropped");
            lines.insert(0, (30, text));
        }
        lines
    })
}

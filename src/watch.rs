//! A watch: a selector, with the listener that each matching series gets. The bus keeps the list of them.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::{
    cell::{Listener, Wakes},
    mailbox::Mailbox,
    selector::Selector,
    series::SeriesCore,
};

/// A selector with the listener that each matching series gets.
pub(crate) struct Watch {
    pub(crate) id: u64,
    pub(crate) selector: Selector,
    make: Make,
    /// Called when the subscription ends (`true`: what was not read yet is thrown away) or the bus does.
    close: Box<dyn Fn(bool) + Send + Sync>,
    dropped: Box<dyn Fn() -> u64 + Send + Sync>,
    matched: AtomicU64,
    /// Whether it works for a rule, and is not a subscription of its own.
    pub(crate) of_rule: bool,
}

/// Makes the listener of one series. `true`: the series is new, and its value has not been measured yet. Whoever is to
/// be woken is, once no lock is held.
pub(crate) type Make =
    Box<dyn Fn(&Arc<SeriesCore>, bool, &mut Wakes) -> Box<dyn Listener> + Send + Sync>;

impl Watch {
    /// A watch whose listeners post into `mailbox`.
    pub(crate) fn new<T: Send + 'static>(
        id: u64,
        selector: Selector,
        make: Make,
        mailbox: Arc<Mailbox<T>>,
    ) -> Watch {
        let dropped = mailbox.clone();
        Watch {
            id,
            selector,
            make,
            close: Box::new(move |discard| {
                if let Some(reader) = mailbox.close(discard) {
                    reader.wake();
                }
            }),
            dropped: Box::new(move || dropped.dropped()),
            matched: AtomicU64::new(0),
            of_rule: false,
        }
    }

    /// A watch that works for a rule.
    pub(crate) fn of_rule(
        id: u64,
        selector: Selector,
        make: Make,
        nothing: Arc<Mailbox<()>>,
    ) -> Watch {
        Watch {
            of_rule: true,
            ..Watch::new(id, selector, make, nothing)
        }
    }

    pub(crate) fn attach(&self, series: &Arc<SeriesCore>, newborn: bool, wakes: &mut Wakes) {
        if self.selector.matches(series) {
            let listener = (self.make)(series, newborn, wakes);
            if series.attach(listener, wakes) {
                self.matched.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn close(&self, discard: bool) {
        (self.close)(discard);
    }

    /// How many events were dropped from the full mailbox.
    pub(crate) fn dropped(&self) -> u64 {
        (self.dropped)()
    }

    /// How many series have matched so far.
    pub(crate) fn matched(&self) -> u64 {
        self.matched.load(Ordering::Relaxed)
    }
}

//! A watch: a selector, with the listener that each matching series gets; and the list of them that a bus keeps.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    cell::{Listener, Wakes},
    labels::{push_raw, raw_pairs},
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
    /// Whether it works for a rule or a backend, and is not a subscription of its own.
    pub(crate) of_rule: bool,
    /// Whether it leaves out what is mirrored from other processes.
    own_only: bool,
    /// Of what matches, which series it listens to; `None` for all.
    only: Option<fn(&SeriesCore) -> bool>,
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
            own_only: false,
            only: None,
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

    /// A watch that takes mutations to a backend.
    pub(crate) fn of_backend(
        id: u64,
        selector: Selector,
        make: Make,
        nothing: Arc<Mailbox<()>>,
    ) -> Watch {
        Watch::of_rule(id, selector, make, nothing)
    }

    /// A watch that sends to other processes what is this one's own.
    #[cfg(feature = "nats")]
    pub(crate) fn of_forwarding(
        id: u64,
        selector: Selector,
        make: Make,
        nothing: Arc<Mailbox<()>>,
    ) -> Watch {
        Watch {
            own_only: true,
            ..Watch::new(id, selector, make, nothing)
        }
    }

    /// A watch that exports what is this process's own, and listens to some of its series.
    #[cfg(feature = "otlp")]
    pub(crate) fn of_export(
        id: u64,
        only: fn(&SeriesCore) -> bool,
        make: Make,
        nothing: Arc<Mailbox<()>>,
    ) -> Watch {
        Watch {
            own_only: true,
            of_rule: true,
            only: Some(only),
            ..Watch::new(id, Selector::all(), make, nothing)
        }
    }

    pub(crate) fn attach(&self, series: &Arc<SeriesCore>, newborn: bool, wakes: &mut Wakes) {
        if (self.own_only && series.meta.mirrored) || self.only.is_some_and(|only| !only(series)) {
            return;
        }
        // A rule has several selectors, and one listener for each series that some of them match: the cell would refuse
        // another, but what that one has joined would already be part of the rule. So it is with a series that a
        // forwarding finds and is told of at the same time.
        let is_heard = || (self.of_rule || self.own_only) && series.ask(self.id, &mut ());
        if self.selector.matches(series) && !is_heard() {
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

/// All watches of a bus, by what they say of the series they want: thousands of rules, each about one worker, cost a new
/// series a few look-ups.
#[derive(Default)]
pub(crate) struct Watches {
    by_name: HashMap<Box<str>, ByLabel>,
    nameless: ByLabel,
    /// About one series that there is, which no new one can be.
    settled: Vec<Arc<Watch>>,
}

#[derive(Default)]
struct ByLabel {
    /// By `label="value"`, for those that ask for some label's value.
    anchored: HashMap<String, Vec<Arc<Watch>>>,
    rest: Vec<Arc<Watch>>,
}

impl Watches {
    fn place(&mut self, selector: &Selector) -> &mut Vec<Arc<Watch>> {
        if selector.only_series().is_some() {
            return &mut self.settled;
        }
        let by_label = match selector.metric_name() {
            Some(name) => self.by_name.entry(name.into()).or_default(),
            None => &mut self.nameless,
        };
        match selector.anchor() {
            Some(anchor) => by_label.anchored.entry(anchor).or_default(),
            None => &mut by_label.rest,
        }
    }

    /// Watches whose selectors say the same keep their order.
    pub(crate) fn add(&mut self, watch: Arc<Watch>) {
        self.place(&watch.selector).push(watch);
    }

    /// `false`: it is not here.
    pub(crate) fn remove(&mut self, watch: &Watch) -> bool {
        let place = self.place(&watch.selector);
        let before = place.len();
        place.retain(|w| w.id != watch.id);
        let found = place.len() < before;
        let empty = place.is_empty();
        if empty && let Some(name) = watch.selector.metric_name() {
            if let (Some(by_label), Some(anchor)) =
                (self.by_name.get_mut(name), watch.selector.anchor())
                && by_label.anchored.get(&anchor).is_some_and(Vec::is_empty)
            {
                by_label.anchored.remove(&anchor);
            }
            if self
                .by_name
                .get(name)
                .is_some_and(|by| by.rest.is_empty() && by.anchored.is_empty())
            {
                self.by_name.remove(name);
            }
        }
        found
    }

    /// Calls `f` with those that a new series could match.
    pub(crate) fn for_new(&self, series: &SeriesCore, mut f: impl FnMut(&Arc<Watch>)) {
        let named = self.by_name.get(&*series.meta.name);
        let mut anchor = String::new();
        for by_label in named.into_iter().chain([&self.nameless]) {
            if !by_label.anchored.is_empty() {
                for (name, value) in raw_pairs(&series.text) {
                    anchor.clear();
                    push_raw(&mut anchor, name, value);
                    by_label
                        .anchored
                        .get(&anchor)
                        .into_iter()
                        .flatten()
                        .for_each(&mut f);
                }
            }
            by_label.rest.iter().for_each(&mut f);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Watch>> {
        let by_label = self.by_name.values().chain([&self.nameless]);
        by_label
            .flat_map(|by| by.anchored.values().flatten().chain(&by.rest))
            .chain(&self.settled)
    }
}

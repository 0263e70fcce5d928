//! A live subscription: what it has done, and how it ends.

use std::{
    fmt,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::{
    bus::Inner,
    listen::PANICS_MAX,
    mailbox::Mailbox,
    selector::Selector,
    stats::{Stats, bump},
    watch::{Make, Watch},
};

/// A live subscription. Dropping it unsubscribes; [`forget`](Subscription::forget) keeps it for the life of the bus.
#[must_use = "dropping a subscription unsubscribes at once, and `let _ =` drops it: name it (`let _subscription =`), or call `forget()`"]
pub struct Subscription {
    bus: Weak<Inner>,
    wire: Arc<dyn Wire>,
    shared: Arc<Shared>,
}

/// What brings events to a subscription.
pub(crate) trait Wire: Send + Sync {
    /// Nothing more comes, and what waits is thrown away.
    fn end(&self, bus: Option<&Inner>);
    /// How many series, or rules, it has been about.
    fn matched(&self) -> u64;
    /// How many events were dropped from the full mailbox.
    fn dropped(&self) -> u64;
    /// What it is about.
    fn describe(&self) -> String;
    /// The series that it is about.
    fn selector(&self) -> Option<&Selector> {
        None
    }
}

impl Wire for Watch {
    fn end(&self, bus: Option<&Inner>) {
        match bus {
            Some(bus) => bus.unwatch(self),
            None => self.close(true),
        }
    }

    fn matched(&self) -> u64 {
        Watch::matched(self)
    }

    fn dropped(&self) -> u64 {
        Watch::dropped(self)
    }

    fn describe(&self) -> String {
        self.selector.to_string()
    }

    fn selector(&self) -> Option<&Selector> {
        Some(&self.selector)
    }
}

/// What a subscription has done so far.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriptionStats {
    /// Series that matched, present and past; of a subscription to alerts, rules.
    pub series_matched: u64,
    /// Where none has, and no metric has the name in the selector: the name of one that may have been meant.
    pub did_you_mean: Option<String>,
    /// Events handed over.
    pub delivered: u64,
    /// Events dropped because the mailbox was full.
    pub dropped: u64,
    /// Events whose callback panicked.
    pub panicked: u64,
    /// Calls that were given up, since they did not come to their end and their thread was needed.
    pub hung: u64,
}

impl Subscription {
    pub(crate) fn start<T: Send + 'static>(
        inner: &Arc<Inner>,
        id: u64,
        selector: Selector,
        make: Make,
        mailbox: Arc<Mailbox<T>>,
        shared: Arc<Shared>,
    ) -> Subscription {
        let watch = Arc::new(Watch::new(id, selector, make, mailbox));
        inner.watch(&watch);
        inner.warn_of_name(&watch.selector);
        Subscription::by(inner, watch, shared)
    }

    pub(crate) fn by(inner: &Arc<Inner>, wire: Arc<dyn Wire>, shared: Arc<Shared>) -> Subscription {
        Subscription {
            bus: Arc::downgrade(inner),
            wire,
            shared,
        }
    }

    /// Keeps the subscription for as long as the bus lives. A callback that holds the bus keeps it alive, then, and
    /// itself: give it a handle or a [`Series`](crate::Series) instead.
    pub fn forget(self) {
        // The reader has it from here on, for the day on which its callback has panicked too often. It lets go of it when it
        // comes to its end, at the latest with the bus.
        let _ = self.shared.kept.set(self.wire.clone());
    }

    /// Ends the subscription; as dropping it. A callback that is running is let finish; events that wait are thrown
    /// away.
    pub fn unsubscribe(self) {
        drop(self);
    }

    /// What it has done so far. `series_matched: 0` is the commonest reason why a callback never comes: the selector
    /// matches nothing.
    pub fn stats(&self) -> SubscriptionStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let series_matched = self.wire.matched();
        SubscriptionStats {
            series_matched,
            did_you_mean: self.did_you_mean(series_matched),
            delivered: load(&self.shared.delivered),
            dropped: self.wire.dropped() + load(&self.shared.lost),
            panicked: load(&self.shared.panicked),
            hung: load(&self.shared.hung),
        }
    }

    fn did_you_mean(&self, series_matched: u64) -> Option<String> {
        let selector = self.wire.selector().filter(|_| series_matched == 0)?;
        self.bus.upgrade()?.did_you_mean(selector)
    }

    /// For callbacks that something outside of this crate calls.
    #[doc(hidden)]
    pub fn report(&self) -> CallbackReport {
        CallbackReport {
            shared: self.shared.clone(),
            about: self.wire.describe().into(),
        }
    }

    /// Whether it was ended because its callback panicked three times in a row.
    pub fn is_detached(&self) -> bool {
        self.shared.detached.load(Ordering::Acquire)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if self.shared.kept.get().is_some() {
            return;
        }
        self.shared.ended.store(true, Ordering::Release);
        self.wire.end(self.bus.upgrade().as_deref());
    }
}

/// Counts what came of a subscription's callback that something outside of this crate calls: another language, which reads
/// the subscription as a stream.
#[doc(hidden)]
#[derive(Clone)]
pub struct CallbackReport {
    shared: Arc<Shared>,
    about: Arc<str>,
}

impl CallbackReport {
    /// It failed, `in_a_row` times by now; 0 where it doesn't matter how often. Whether that was once too often: then the log says
    /// so, and who calls it unsubscribes.
    pub fn failed(&self, in_a_row: u32, message: &str) -> bool {
        self.shared.panicked();
        if in_a_row < PANICS_MAX {
            return false;
        }
        self.shared.detached();
        tracing::error!(
            about = %self.about,
            message,
            "metricbus: callback detached: it failed {PANICS_MAX} times in a row"
        );
        true
    }

    /// It has not come to its end, and its thread was needed.
    pub fn hangs(&self) {
        self.shared.hangs(&self.about);
    }
}

impl fmt::Debug for CallbackReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CallbackReport").field(&self.about).finish()
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("about", &self.wire.describe())
            .field("stats", &self.stats())
            .finish()
    }
}

/// What the reading side of a subscription counts. What is dropped, the mailbox counts: a mutating thread writes nothing
/// that the reader also writes.
pub(crate) struct Shared {
    stats: Arc<Stats>,
    delivered: AtomicU64,
    panicked: AtomicU64,
    hung: AtomicU64,
    detached: AtomicBool,
    /// The subscriber wants no more, not even what has arrived.
    ended: AtomicBool,
    /// Letters that arrived and could not be told whose they are.
    lost: AtomicU64,
    /// Of a subscription that was forgotten: what nobody else may hold.
    kept: OnceLock<Arc<dyn Wire>>,
}

impl Shared {
    pub(crate) fn new(stats: Arc<Stats>) -> Arc<Self> {
        Arc::new(Shared {
            stats,
            delivered: AtomicU64::new(0),
            panicked: AtomicU64::new(0),
            hung: AtomicU64::new(0),
            detached: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            lost: AtomicU64::new(0),
            kept: OnceLock::new(),
        })
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Its callback has not come to its end, and the thread was needed.
    pub(crate) fn hangs(&self, about: &str) {
        bump(&self.hung);
        bump(&self.stats.hung);
        tracing::error!(
            about,
            "metricbus: a callback hangs; its thread is not counted any more until it comes back"
        );
    }

    /// How often its callback was said to hang.
    pub(crate) fn hung(&self) -> u64 {
        self.hung.load(Ordering::Relaxed)
    }

    pub(crate) fn panicked(&self) {
        bump(&self.panicked);
        bump(&self.stats.panicked);
    }

    pub(crate) fn detached(&self) {
        self.detached.store(true, Ordering::Release);
        bump(&self.stats.detached);
    }

    pub(crate) fn lost(&self) {
        bump(&self.lost);
        self.stats.dropped(1);
    }

    pub(crate) fn delivered(&self) {
        bump(&self.delivered);
        bump(&self.stats.delivered);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MetricBus, Rule, Threshold};

    /// What was left of a forgotten subscription after its bus has ended.
    fn left(forget: impl FnOnce(&MetricBus) -> Subscription) -> (Weak<dyn Wire>, Weak<Shared>) {
        let bus = MetricBus::new();
        let gauge = bus.gauge("g", "Of a test.").unwrap();
        let subscription = forget(&bus);
        let wire = Arc::downgrade(&subscription.wire);
        let shared = Arc::downgrade(&subscription.shared);
        subscription.forget();
        gauge.set(1.0);
        assert!(wire.upgrade().is_some());
        (wire, shared)
    }

    #[test]
    fn what_was_forgotten_goes_with_its_bus() {
        let (wire, shared) = left(|bus| bus.on_change("g").inline(drop).unwrap());
        assert!(wire.upgrade().is_none() && shared.upgrade().is_none());
        let (wire, shared) = left(|bus| bus.on_alert().inline(drop).unwrap());
        assert!(wire.upgrade().is_none() && shared.upgrade().is_none());
    }

    #[test]
    fn what_was_forgotten_is_still_ended_if_its_callback_panics_too_often() {
        let bus = MetricBus::new();
        let gauge = bus.gauge("g", "Of a test.").unwrap();
        let condition = crate::Condition::when("g", Threshold::above(5.0));
        let _rule = bus.add_rule(Rule::new("r", condition)).unwrap();
        let subscriptions = || bus.inner().mailboxes.sum().0;
        let before = subscriptions();
        let alerts = bus.on_alert().inline(|_| panic!("of a test")).unwrap();
        assert_eq!(subscriptions(), before + 1);
        let shared = Arc::downgrade(&alerts.shared);
        alerts.forget();
        for value in [10.0, 0.0, 10.0, 0.0] {
            gauge.set(value);
        }
        assert_eq!(subscriptions(), before);
        assert!(shared.upgrade().is_none());
    }
}

//! Subscriptions to events that no series makes: who hears of them, and what was dropped on the way.

use std::sync::{Arc, Mutex};

use crate::{mailbox::Mailbox, stats::Stats, sync::lock};

/// A mailbox of whatever letters.
pub(crate) trait AnyMailbox: Send + Sync {
    fn dropped(&self) -> u64;

    /// No more letters; those that wait stay readable.
    fn close(&self);
}

impl<T: Send> AnyMailbox for Mailbox<T> {
    fn dropped(&self) -> u64 {
        Mailbox::dropped(self)
    }

    fn close(&self) {
        if let Some(reader) = Mailbox::close(self, false) {
            reader.wake();
        }
    }
}

/// The mailboxes of all such subscriptions to a bus.
#[derive(Default)]
pub(crate) struct Mailboxes(Mutex<Vec<Arc<dyn AnyMailbox>>>);

impl Mailboxes {
    pub(crate) fn add(&self, mailbox: Arc<dyn AnyMailbox>) {
        lock(&self.0).push(mailbox);
    }

    pub(crate) fn remove(&self, mailbox: &Arc<dyn AnyMailbox>, stats: &Stats) {
        // What it dropped goes from one sum to the other at once, so that a scrape never sees the total fall.
        let mut all = lock(&self.0);
        let before = all.len();
        all.retain(|one| !Arc::ptr_eq(one, mailbox));
        if all.len() < before {
            stats.dropped(mailbox.dropped());
        }
    }

    /// How many subscriptions there are, and how many letters were dropped from their mailboxes.
    pub(crate) fn sum(&self) -> (usize, u64) {
        let all = lock(&self.0);
        (all.len(), all.iter().map(|one| one.dropped()).sum())
    }

    /// The bus is gone.
    pub(crate) fn close(&self) {
        for mailbox in lock(&self.0).iter() {
            mailbox.close();
        }
    }
}

#[cfg(feature = "nats")]
pub(crate) use with_nats::{Enclose, Hub};

#[cfg(feature = "nats")]
mod with_nats {
    use std::sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    };

    use super::AnyMailbox;
    use crate::{
        bus::{Inner, MetricBus},
        cell::{Wakes, wake_all},
        listen::{Event, Listen, Post, sealed},
        mailbox::Mailbox,
        subscription::Wire,
        sync::lock,
    };

    /// Tells events to whoever subscribed, each in its own mailbox.
    pub(crate) struct Hub<E: Event>(Mutex<Vec<Arc<Member<E>>>>);

    struct Member<E: Event> {
        post: Post<<E as sealed::Event>::Letter>,
        mailbox: Arc<Mailbox<<E as sealed::Event>::Letter>>,
        ended: Arc<AtomicBool>,
        about: &'static str,
    }

    /// How an event is put into a letter. The flag says that its subscription has ended.
    pub(crate) trait Enclose: Event + Clone {
        fn enclose(&self, ended: &Arc<AtomicBool>) -> <Self as sealed::Event>::Letter;
    }

    impl Enclose for crate::Alert {
        fn enclose(&self, ended: &Arc<AtomicBool>) -> <Self as sealed::Event>::Letter {
            <Self as sealed::Event>::Letter::of(Arc::new(self.clone()), ended)
        }
    }

    impl<E: Enclose> Hub<E> {
        pub(crate) fn new() -> Arc<Hub<E>> {
            Arc::new(Hub(Mutex::default()))
        }

        /// A subscription on `bus`: first what `initial` says (unless the subscriber does not want it), then what is told
        /// from then on. `initial` runs under the lock under which [`tell`](Hub::tell) makes its change: it must take
        /// none that is held while telling.
        pub(crate) fn listen(
            self: &Arc<Self>,
            bus: &MetricBus,
            about: &'static str,
            initial: impl FnOnce() -> Vec<E> + Send + 'static,
        ) -> Listen<E> {
            let hub = self.clone();
            Listen::begin_by(
                bus,
                Ok(Box::new(move |begin| {
                    let member = Arc::new(Member::<E> {
                        post: begin.post(),
                        mailbox: begin.mailbox.clone(),
                        ended: Arc::default(),
                        about,
                    });
                    begin.inner.mailboxes.add(begin.mailbox.clone());
                    let mut wakes = Wakes::new();
                    {
                        let mut members = lock(&hub.0);
                        members.retain(|member| !member.ended.load(Ordering::Acquire));
                        if begin.initial {
                            let initial = initial();
                            // All of it is news to a subscriber who has only just come.
                            member.post.grow_to(initial.len());
                            for event in initial {
                                member.send(&event, &mut wakes);
                            }
                        }
                        members.push(member.clone());
                    }
                    wake_all(&mut wakes);
                    Ok(member as Arc<dyn Wire>)
                })),
            )
        }

        /// Makes a change, and tells of it. `change` runs under the hub's lock.
        pub(crate) fn tell<T>(&self, event: &E, change: impl FnOnce() -> T) -> T {
            let mut wakes = Wakes::new();
            let made = {
                let mut members = lock(&self.0);
                members.retain(|member| !member.ended.load(Ordering::Acquire));
                for member in members.iter() {
                    member.send(event, &mut wakes);
                }
                change()
            };
            wake_all(&mut wakes);
            made
        }
    }

    impl<E: Enclose> Member<E> {
        fn send(&self, event: &E, wakes: &mut Wakes) {
            self.post.send(event.enclose(&self.ended), wakes);
        }
    }

    impl<E: Event> Wire for Member<E> {
        fn end(&self, bus: Option<&Inner>) {
            self.ended.store(true, Ordering::Release);
            if let Some(reader) = self.mailbox.close(true) {
                reader.wake();
            }
            if let Some(bus) = bus {
                let mailbox: Arc<dyn AnyMailbox> = self.mailbox.clone();
                bus.mailboxes.remove(&mailbox, &bus.stats);
            }
        }

        /// There are no series that it could be about.
        fn matched(&self) -> u64 {
            1
        }

        fn dropped(&self) -> u64 {
            self.mailbox.dropped()
        }

        fn describe(&self) -> String {
            self.about.to_owned()
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::{Alert, AlertState, Time};

        fn alert(rule: &str) -> Alert {
            Alert::new(rule, AlertState::Firing, Time::ZERO)
        }

        #[test]
        fn who_comes_late_hears_first_what_is_and_then_what_comes() {
            let (bus, hub) = (MetricBus::new(), Hub::<Alert>::new());
            let known = Arc::new(Mutex::new(Vec::new()));
            let note = |rule: &str| hub.tell(&alert(rule), || lock(&known).push(alert(rule)));
            note("before");
            let initial = |known: &Arc<Mutex<Vec<Alert>>>| {
                let known = known.clone();
                move || lock(&known).clone()
            };
            let listen = |capacity| {
                hub.listen(&bus, "alerts", initial(&known))
                    .capacity(capacity)
            };
            let events = listen(8).stream().unwrap();
            let changes = listen(8).initial(false).stream().unwrap();
            let narrow = listen(1).initial(false).stream().unwrap();
            note("one");
            note("two");
            // Of each rule the last stays, however narrow it is.
            note("two");
            let rules = |events| -> Vec<String> {
                let read = futures::StreamExt::map(events, |alert: Alert| alert.rule.to_string());
                futures::executor::block_on(futures::StreamExt::collect(read))
            };
            assert_eq!(narrow.subscription().stats().dropped, 1);
            let dropped = |bus: &MetricBus| {
                let own = bus.self_families();
                let name = "metricbus_events_dropped_total";
                let family = own.into_iter().find(|family| family.name == name);
                family.unwrap().series[0].value.clone()
            };
            let one = crate::SampleValue::Counter(crate::Value::U64(1));
            assert_eq!(dropped(&bus), one);
            drop(narrow);
            assert_eq!(dropped(&bus), one);
            // What was told before the bus ended can still be read.
            drop(bus);
            assert_eq!(rules(events), ["before", "one", "two", "two"]);
            assert_eq!(rules(changes), ["one", "two", "two"]);
        }
    }
}

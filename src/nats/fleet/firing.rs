//! What the sources have firing, so that a late subscriber hears of it and that of a dead source is resolved.
//!
//! A source's alerts tell it: firing puts a rule's group in, resolved takes it out. When the source is gone, nobody can
//! vouch for what it had firing: it is told as resolved, with the cause [`Removed`](AlertCause::Removed), of quality
//! [`Gone`](Quality::Gone). Should the source come back and still have it firing, it is told again, with the cause
//! [`Initial`](AlertCause::Initial). Both have the epoch and the origin of the alert they are about: they are not the source's
//! own.
//!
//! Firing and resolved alternate, for each rule's group of a source. So what a source says is told only where it is news:
//!
//! | last told | it says | told |
//! |---|---|---|
//! | nothing, or resolved | firing | firing |
//! | nothing, or resolved | resolved: it was withdrawn before, or its firing was lost | nothing |
//! | firing | resolved | resolved |
//! | firing | firing at another level, or a repetition | firing |
//! | firing | the same firing again | nothing |
//! | firing | a later firing: what was between was lost | resolved, with the cause `Removed`, and firing |

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use crate::{
    Alert, AlertCause, AlertState, Clock, MetricBus, Quality, SourceId, hub::Hub, listen::Listen,
    nats::wire::alert::weigh, rule::Pairs, sync::lock,
};

/// How many are remembered: of one source, and of all together. What is beyond is told as it is said, but a late subscriber
/// does not hear of it, and it is not resolved when its source is gone.
const OF_ONE_MAX: usize = 10_000;
const MAX: usize = 100_000;
/// And how many bytes, of all together: an alert may be as large as a message.
const BYTES_MAX: usize = 256 << 20;

type Key = (Arc<str>, Pairs);

/// Alerts of all sources, and whoever hears of them.
pub(super) struct Alerts {
    bus: MetricBus,
    hub: Arc<Hub<Alert>>,
    firing: Arc<Mutex<Firing>>,
}

#[derive(Default)]
struct Firing {
    sources: HashMap<SourceId, OfSource>,
    len: usize,
    bytes: usize,
    forgotten: u64,
}

#[derive(Default)]
struct OfSource {
    groups: HashMap<Key, Entry>,
    /// Some that were told are not among them.
    forgotten: bool,
}

struct Entry {
    alert: Alert,
    /// Whether the last that was told is that it fires.
    told: bool,
}

impl Alerts {
    pub(super) fn new(bus: &MetricBus) -> Alerts {
        Alerts {
            bus: bus.clone(),
            hub: Hub::new(),
            firing: Arc::default(),
        }
    }

    /// What is firing first, then what comes.
    pub(super) fn listen(&self) -> Listen<Alert> {
        let firing = self.firing.clone();
        self.hub
            .listen(&self.bus, "alerts of the sources", move || {
                lock(&firing).all_told()
            })
    }

    /// How many rules' groups fire, and how many could not be remembered.
    pub(super) fn counts(&self) -> (usize, u64) {
        let firing = lock(&self.firing);
        (firing.len, firing.forgotten)
    }

    /// The source has just said it. Only one task tells: nothing comes in between.
    pub(super) fn deliver(&self, source: &SourceId, alert: Alert) {
        let news = lock(&self.firing).news(source, &alert);
        match news {
            News::None => lock(&self.firing).note(source, &alert, true),
            News::Told => {
                self.hub
                    .tell(&alert, || lock(&self.firing).note(source, &alert, true));
            }
            News::After(before) => {
                let key = (before.rule.clone(), before.group.clone());
                let over = resolved(*before, self.bus.clock());
                self.hub
                    .tell(&over, || lock(&self.firing).set_told(source, &key, false));
                self.hub
                    .tell(&alert, || lock(&self.firing).note(source, &alert, true));
            }
        }
    }

    /// It was said before we came.
    pub(super) fn recall(&self, source: &SourceId, alert: &Alert) {
        if lock(&self.firing).ends(source, alert) {
            // Of what was told it is told that it is over.
            return self.deliver(source, alert.clone());
        }
        lock(&self.firing).note(source, alert, false);
    }

    /// Tells what the source has firing and nobody has been told of.
    pub(super) fn tell(&self, source: &SourceId) {
        let untold = lock(&self.firing).of(source, false);
        for (key, alert) in untold {
            let alert = initial(alert);
            self.hub
                .tell(&alert, || lock(&self.firing).set_told(source, &key, true));
        }
    }

    /// Nobody can vouch for what the source has firing. `forever`: not even when it comes back.
    pub(super) fn withdraw(&self, source: &SourceId, forever: bool) {
        let told = lock(&self.firing).of(source, true);
        let clock = self.bus.clock();
        for (key, alert) in told {
            let alert = resolved(alert, clock);
            self.hub
                .tell(&alert, || lock(&self.firing).set_told(source, &key, false));
        }
        if forever {
            lock(&self.firing).forget(source);
        }
    }
}

/// What there is to be told of an alert.
enum News {
    None,
    Told,
    /// First that this one, which was told, has ended.
    After(Box<Alert>),
}

impl Firing {
    fn news(&self, source: &SourceId, alert: &Alert) -> News {
        let of_source = self.sources.get(source);
        let key = (alert.rule.clone(), alert.group.clone());
        let entry = of_source.and_then(|of_source| of_source.groups.get(&key));
        let fires = alert.state == AlertState::Firing;
        match entry.filter(|entry| entry.told) {
            Some(Entry { alert: before, .. }) if fires => {
                let goes_on = alert.repeat > 0
                    || alert.previous_level.is_some()
                    || alert.level != before.level;
                match alert.epoch == before.epoch {
                    _ if goes_on => News::Told,
                    true => News::None,
                    false => News::After(Box::new(before.clone())),
                }
            }
            Some(_) => News::Told,
            // Where some were forgotten nobody knows.
            None if fires || entry.is_none() && of_source.is_some_and(|of| of.forgotten) => {
                News::Told
            }
            None => News::None,
        }
    }

    /// Whether it is the end of what was told, and newer.
    fn ends(&self, source: &SourceId, alert: &Alert) -> bool {
        let key = (alert.rule.clone(), alert.group.clone());
        let of_source = self.sources.get(source);
        let entry = of_source.and_then(|of_source| of_source.groups.get(&key));
        alert.state == AlertState::Resolved
            && entry.is_some_and(|entry| entry.told && place(&entry.alert) < place(alert))
    }

    fn note(&mut self, source: &SourceId, alert: &Alert, told: bool) {
        let key = (alert.rule.clone(), alert.group.clone());
        if alert.state == AlertState::Resolved {
            if let Some(OfSource { groups, .. }) = self.sources.get_mut(source)
                && (told
                    || groups
                        .get(&key)
                        .is_some_and(|entry| place(&entry.alert) < place(alert)))
                && let Some(entry) = groups.remove(&key)
            {
                self.len -= 1;
                self.bytes -= weigh(&entry.alert);
            }
            return;
        }
        let OfSource { groups, forgotten } = match self.sources.get_mut(source) {
            // Mostly so: its name need not be copied.
            Some(of_source) => of_source,
            None => self.sources.entry(source.clone()).or_default(),
        };
        // What was said before we came may be told late, after newer things.
        let newer = |entry: &Entry| place(&entry.alert) >= place(alert);
        if !told && groups.get(&key).is_some_and(newer) {
            return;
        }
        let bytes = weigh(alert);
        let full = groups.len() >= OF_ONE_MAX || self.len >= MAX || self.bytes + bytes > BYTES_MAX;
        if full && !groups.contains_key(&key) {
            self.forgotten += 1;
            *forgotten = true;
            return;
        }
        let alert = alert.clone();
        // That it fires is not told twice.
        let told = told || groups.get(&key).is_some_and(|entry| entry.told);
        self.bytes += bytes;
        match groups.insert(key, Entry { alert, told }) {
            Some(before) => self.bytes -= weigh(&before.alert),
            None => self.len += 1,
        }
    }

    fn of(&self, source: &SourceId, told: bool) -> Vec<(Key, Alert)> {
        let of_source = self.sources.get(source).into_iter();
        let mut all: Vec<_> = of_source
            .flat_map(|of_source| &of_source.groups)
            .filter(|(_, entry)| entry.told == told)
            .map(|(key, entry)| (key.clone(), entry.alert.clone()))
            .collect();
        all.sort_by_key(|(_, alert)| place(alert));
        all
    }

    fn set_told(&mut self, source: &SourceId, key: &Key, told: bool) {
        let of_source = self.sources.get_mut(source);
        if let Some(entry) = of_source.and_then(|of_source| of_source.groups.get_mut(key)) {
            entry.told = told;
        }
    }

    fn forget(&mut self, source: &SourceId) {
        if let Some(of_source) = self.sources.remove(source) {
            self.len -= of_source.groups.len();
            let alerts = of_source.groups.values().map(|entry| &entry.alert);
            self.bytes -= alerts.map(weigh).sum::<usize>();
        }
    }

    fn all_told(&self) -> Vec<Alert> {
        let mut all: Vec<Alert> = self
            .sources
            .values()
            .flat_map(|of_source| of_source.groups.values())
            .filter(|entry| entry.told)
            .map(|entry| initial(entry.alert.clone()))
            .collect();
        all.sort_by(|a, b| {
            let source = |alert: &Alert| alert.origin.as_ref().map(|o| o.source.clone());
            (source(a), place(a)).cmp(&(source(b), place(b)))
        });
        all
    }
}

/// Its place among what its source said.
fn place(alert: &Alert) -> u64 {
    alert.origin.as_ref().map_or(0, |origin| origin.sequence)
}

fn initial(alert: Alert) -> Alert {
    Alert {
        cause: AlertCause::Initial,
        ..alert
    }
}

fn resolved(alert: Alert, clock: &Clock) -> Alert {
    let at = clock.now();
    Alert {
        state: AlertState::Resolved,
        previous_level: alert.level,
        level: None,
        value: None,
        quality: Quality::Gone,
        cause: AlertCause::Removed,
        at,
        date: clock.wall(at),
        holds: 0,
        holding: Arc::default(),
        repeat: 0,
        ..alert
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};
    use proptest::prelude::*;

    use super::*;
    use crate::{Origin, Time, listen::Events};

    fn pod() -> SourceId {
        SourceId::new("ns", "c", "pod")
    }

    fn alert(rule: &str, state: AlertState, sequence: u64) -> Alert {
        Alert {
            origin: Some(Arc::new(Origin {
                source: pod(),
                boot: 1,
                sequence,
            })),
            ..Alert::new(rule, state, Time::ZERO)
        }
    }

    fn hear(events: &mut Events<Alert>) -> Vec<String> {
        std::iter::from_fn(|| events.next().now_or_never().flatten())
            .map(|alert| format!("{} {} {}", alert.rule, alert.state, alert.cause))
            .collect()
    }

    use AlertState::{Firing, Resolved};

    fn world() -> (MetricBus, Alerts) {
        let bus = MetricBus::builder().clock(Clock::manual()).build();
        let alerts = Alerts::new(&bus);
        (bus, alerts)
    }

    #[test]
    fn a_late_subscriber_hears_what_is_firing_and_then_what_comes() {
        let (_bus, alerts) = world();
        alerts.deliver(&pod(), alert("A", Firing, 1));
        alerts.deliver(&pod(), alert("B", Firing, 2));
        alerts.deliver(&pod(), alert("A", Resolved, 3));
        let mut late = alerts.listen().stream().unwrap();
        alerts.deliver(&pod(), alert("B", Resolved, 4));
        assert_eq!(
            hear(&mut late),
            ["B firing initial", "B resolved condition"]
        );
    }

    #[test]
    fn of_what_was_said_before_we_came_only_what_still_fires_is_told() {
        let (_bus, alerts) = world();
        let mut events = alerts.listen().stream().unwrap();
        alerts.recall(&pod(), &alert("A", Firing, 1));
        alerts.recall(&pod(), &alert("B", Firing, 2));
        alerts.recall(&pod(), &alert("A", Resolved, 3));
        assert_eq!(hear(&mut events), [""; 0]);
        alerts.tell(&pod());
        assert_eq!(hear(&mut events), ["B firing initial"]);
        alerts.tell(&pod());
        assert_eq!(hear(&mut events), [""; 0], "once");
    }

    #[test]
    fn what_was_said_before_we_came_changes_nothing_that_is_newer() {
        let (_bus, alerts) = world();
        let mut events = alerts.listen().stream().unwrap();
        alerts.deliver(&pod(), alert("A", Firing, 5));
        alerts.deliver(&pod(), alert("B", Resolved, 6));
        hear(&mut events);
        alerts.recall(&pod(), &alert("A", Firing, 1));
        alerts.recall(&pod(), &alert("B", Firing, 2));
        alerts.recall(&pod(), &alert("C", Firing, 3));
        alerts.recall(&pod(), &alert("A", Resolved, 4));
        alerts.recall(&pod(), &alert("A", Firing, 5));
        alerts.recall(&pod(), &alert("B", Resolved, 6));
        alerts.tell(&pod());
        assert_eq!(hear(&mut events), ["C firing initial"]);
        let mut late = alerts.listen().stream().unwrap();
        assert_eq!(hear(&mut late), ["C firing initial", "A firing initial"]);
    }

    #[test]
    fn what_a_dead_source_had_firing_is_resolved_and_told_again_when_it_is_back() {
        let (_bus, alerts) = world();
        alerts.deliver(&pod(), alert("A", Firing, 1));
        alerts.deliver(&pod(), alert("B", Firing, 2));
        let mut events = alerts.listen().initial(false).stream().unwrap();
        alerts.withdraw(&pod(), false);
        assert_eq!(
            hear(&mut events),
            ["A resolved removed", "B resolved removed"]
        );
        let mut late = alerts.listen().stream().unwrap();
        assert_eq!(hear(&mut late), [""; 0]);
        // Back, with what it said meanwhile.
        alerts.deliver(&pod(), alert("A", Resolved, 3));
        alerts.tell(&pod());
        assert_eq!(hear(&mut events), ["B firing initial"], "A was resolved");
    }

    #[test]
    fn firing_and_resolved_alternate_whatever_was_lost_between() {
        let (_bus, alerts) = world();
        let mut events = alerts.listen().initial(false).stream().unwrap();
        let numbered = |state, sequence, epoch| Alert {
            epoch,
            ..alert("A", state, sequence)
        };
        alerts.deliver(&pod(), numbered(Resolved, 2, 2));
        assert_eq!(hear(&mut events), [""; 0], "nobody heard that it fired");
        alerts.deliver(&pod(), numbered(Firing, 3, 3));
        alerts.deliver(&pod(), numbered(Firing, 4, 3));
        assert_eq!(hear(&mut events), ["A firing condition"], "told again");
        alerts.deliver(&pod(), numbered(Firing, 6, 5));
        let told = ["A resolved removed", "A firing condition"];
        assert_eq!(hear(&mut events), told);
        alerts.deliver(&pod(), numbered(Resolved, 7, 6));
        alerts.deliver(&pod(), numbered(Resolved, 9, 8));
        assert_eq!(hear(&mut events), ["A resolved condition"]);
        assert_eq!(alerts.counts(), (0, 0));
        // Recalled, and over before it was told.
        alerts.recall(&pod(), &numbered(Firing, 11, 9));
        alerts.deliver(&pod(), numbered(Resolved, 12, 10));
        alerts.tell(&pod());
        assert_eq!(hear(&mut events), [""; 0]);
    }

    #[test]
    fn another_level_and_a_repetition_of_what_fires_are_told() {
        let (_bus, alerts) = world();
        let mut events = alerts.listen().initial(false).stream().unwrap();
        let numbered = |sequence, epoch, level: Option<&str>, previous: Option<&str>| Alert {
            epoch,
            level: level.map(Into::into),
            previous_level: previous.map(Into::into),
            ..alert("A", Firing, sequence)
        };
        alerts.deliver(&pod(), numbered(1, 1, None, None));
        alerts.deliver(&pod(), numbered(2, 2, Some("page"), None));
        alerts.deliver(&pod(), numbered(3, 3, None, Some("page")));
        let again = Alert {
            repeat: 1,
            ..numbered(4, 3, None, Some("page"))
        };
        alerts.deliver(&pod(), again);
        assert_eq!(hear(&mut events), ["A firing condition"; 4]);
    }

    proptest! {
        /// Whatever is said, lost, recalled and withdrawn: a listener hears firing and resolved in turn, and at rest the last
        /// that it heard is what the fleet holds.
        #[test]
        fn each_listener_hears_them_in_turn(steps in prop::collection::vec((0..7u8, any::<bool>()), 0..60)) {
            let (_bus, alerts) = world();
            let mut early = alerts.listen().stream().unwrap();
            let mut late = None;
            let (mut sequence, mut epoch) = (0, 0);
            for (step, lost) in steps {
                sequence += 1;
                let state = if step % 2 == 0 { Firing } else { Resolved };
                match step {
                    0..=3 => {
                        epoch += 1;
                        let said = Alert { epoch, ..alert("A", state, sequence) };
                        if !lost {
                            alerts.deliver(&pod(), said);
                        }
                    }
                    4 => {
                        let state = if lost { Resolved } else { Firing };
                        alerts.recall(&pod(), &Alert { epoch, ..alert("A", state, sequence) });
                        alerts.tell(&pod());
                    }
                    5 => alerts.withdraw(&pod(), lost),
                    _ => drop(late.get_or_insert_with(|| alerts.listen().stream().unwrap()).next().now_or_never()),
                }
            }
            for events in [Some(&mut early), late.as_mut()].into_iter().flatten() {
                let mut told = hear(events);
                for pair in told.windows(2) {
                    prop_assert_ne!(pair[0].contains("firing"), pair[1].contains("firing"), "{:?}", told);
                }
                let fires = told.pop().map(|last| last.contains("firing"));
                let holds = lock(&alerts.firing).all_told().len() == 1;
                prop_assert!(fires.is_none_or(|fires| fires == holds));
            }
        }
    }

    #[test]
    fn what_a_life_had_firing_ends_with_it() {
        let (_bus, alerts) = world();
        alerts.deliver(&pod(), alert("A", Firing, 1));
        let mut events = alerts.listen().initial(false).stream().unwrap();
        alerts.withdraw(&pod(), true);
        alerts.tell(&pod());
        assert_eq!(hear(&mut events), ["A resolved removed"]);
        assert_eq!(alerts.counts(), (0, 0));
    }

    #[test]
    fn what_is_remembered_has_a_bound_and_the_rest_is_counted() {
        let (_bus, alerts) = world();
        for i in 0..=OF_ONE_MAX {
            alerts.recall(&pod(), &alert(&format!("R{i}"), Firing, 1));
        }
        assert_eq!(alerts.counts(), (OF_ONE_MAX, 1));
    }

    #[test]
    fn so_have_its_bytes() {
        let (_bus, alerts) = world();
        let large = |rule: &str, state| Alert {
            annotations: [("a".to_owned(), "x".repeat(BYTES_MAX / 10))].into(),
            ..alert(rule, state, 1)
        };
        for i in 0..12 {
            alerts.deliver(&pod(), large(&format!("R{i}"), Firing));
        }
        assert_eq!(alerts.counts(), (9, 3));
        alerts.deliver(&pod(), large("R0", Resolved));
        alerts.deliver(&pod(), large("R12", Firing));
        assert_eq!(alerts.counts(), (9, 3));
        alerts.withdraw(&pod(), true);
        assert_eq!((alerts.counts(), lock(&alerts.firing).bytes), ((0, 3), 0));
    }
}

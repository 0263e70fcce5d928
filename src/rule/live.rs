//! Rules that run: adding, changing, removing, asking, listening.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use super::{
    Alert, AlertCause, Notice, Pairs, Quality, Rule, RuleState,
    derivations::Derivations,
    engine::Engine,
    log::{Feed, Letter, Log},
    plan::Plan,
    store::Restored,
};
use crate::{
    bus::{Inner, MetricBus},
    cell::{Wakes, wake_all},
    error::RuleError,
    hub::AnyMailbox,
    listen::{Begin, Event, Listen, sealed},
    mailbox::Mailbox,
    subscription::Wire,
    sync::lock,
    time::Time,
};

impl MetricBus {
    /// Runs a rule, until it is [removed](MetricBus::remove_rule) or the bus ends. Who hears of it:
    /// [`on_alert`](MetricBus::on_alert).
    ///
    /// ```
    /// use std::time::Duration;
    /// use metricbus::{Clock, Condition, MetricBus, Rule, RuleState, Threshold};
    ///
    /// let clock = Clock::manual();
    /// let bus = MetricBus::builder().clock(clock.clone()).build();
    /// let queue = bus.gauge("queue_depth", "Requests waiting.")?;
    /// let rule = Rule::new("QueueDeep", Condition::when("queue_depth", Threshold::above(100.0).clear_below(50.0)))
    ///     .hold_for(Duration::from_secs(5));
    /// let deep = bus.add_rule(rule)?;
    ///
    /// queue.set(120.0);
    /// assert_eq!(deep.status().state, RuleState::Pending);
    /// clock.advance(Duration::from_secs(5));
    /// assert_eq!(deep.status().state, RuleState::Firing);
    /// assert_eq!(deep.history()[0].value, Some(120.0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the rule is wrong, or there is one of its name.
    pub fn add_rule(&self, rule: Rule) -> Result<LiveRule, RuleError> {
        self.inner()
            .rules
            .insert(self.inner(), rule, None)
            .map(LiveRule)
    }

    /// Runs a rule, in the place of the one of its name if there is one: see [`LiveRule::update`].
    ///
    /// # Errors
    ///
    /// When the rule is wrong; the one before goes on, then.
    pub fn set_rule(&self, rule: Rule) -> Result<LiveRule, RuleError> {
        self.inner().rules.set(self.inner(), rule)
    }

    /// Ends a rule: what is firing is resolved, because of [`AlertCause::RuleRemoved`]. `false`: there was none of that
    /// name.
    pub fn remove_rule(&self, name: &str) -> bool {
        self.inner().rules.remove(self.inner(), name)
    }

    /// The rule of this name.
    #[must_use]
    pub fn rule(&self, name: &str) -> Option<LiveRule> {
        self.inner()
            .rules
            .table()
            .rules
            .get(name)
            .cloned()
            .map(LiveRule)
    }

    /// All rules, sorted by name.
    #[must_use]
    pub fn rules(&self) -> Vec<LiveRule> {
        self.inner().rules.all().into_iter().map(LiveRule).collect()
    }

    /// The alerts of all rules, present and future: what is firing first, with the cause
    /// [`Initial`](AlertCause::Initial) (unless [`initial(false)`](Listen::initial)), then every transition.
    pub fn on_alert(&self) -> Listen<Alert> {
        Listen::begin_by(self, Ok(Box::new(|begin| Ok(feed_all(begin)))))
    }

    /// As [`on_alert`](MetricBus::on_alert), with a [mark](Notice::Sync) once what is firing has been told.
    pub fn on_notice(&self) -> Listen<Notice> {
        Listen::begin_by(self, Ok(Box::new(|begin| Ok(feed_all(begin)))))
    }

    /// The alerts of a rule that lives as long as the subscription does.
    ///
    /// ```
    /// use metricbus::{Condition, MetricBus, Rule, Threshold};
    ///
    /// let bus = MetricBus::new();
    /// let kv = bus.gauge("kv_usage_ratio", "Share of KV blocks in use.")?;
    /// let (tx, rx) = std::sync::mpsc::channel();
    /// let full = Condition::when("kv_usage_ratio", Threshold::above(0.9).clear_below(0.8));
    /// let _subscription = bus.on_rule(Rule::new("KvFull", full)).call(move |alert| drop(tx.send(alert)))?;
    ///
    /// kv.set(0.95);
    /// assert!(rx.recv()?.is_firing());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_rule(&self, rule: Rule) -> Listen<Alert> {
        Listen::begin_by(
            self,
            Ok(Box::new(move |begin| {
                let rules = &begin.inner.rules;
                let feed = begin.feed(true);
                let slot = rules.insert(begin.inner, rule, Some(feed.clone()))?;
                Ok(Feeding::begin(begin, feed, Some(slot)))
            })),
        )
    }
}

/// A rule that runs. Clones are the same rule; it does not end with them.
#[derive(Clone)]
pub struct LiveRule(Arc<Slot>);

impl LiveRule {
    /// The name.
    pub fn name(&self) -> &str {
        &self.0.log.name
    }

    /// The rule as it is now.
    pub fn rule(&self) -> Rule {
        (*self.0.engine().rule()).clone()
    }

    /// How it stands.
    pub fn status(&self) -> RuleStatus {
        RuleStatus::of(&self.0, usize::MAX).1
    }

    /// The rule and how it stands, with so many active groups at most, the gravest; and how many were left out.
    #[cfg(any(feature = "http", feature = "nats"))]
    pub(crate) fn status_up_to(&self, groups_max: usize) -> (Arc<Rule>, RuleStatus, usize) {
        RuleStatus::of(&self.0, groups_max)
    }

    /// So many of its last transitions, the newest first.
    #[cfg(any(feature = "http", feature = "nats"))]
    pub(crate) fn last(&self, transitions: usize) -> Vec<Alert> {
        self.0.log.last(transitions)
    }

    /// Its last transitions, the oldest first, dry runs included. How many: [`Rule::history`].
    pub fn history(&self) -> Vec<Alert> {
        self.0.log.history()
    }

    /// The alerts of this rule: what is firing first, then every transition, also after it was changed. They end when the
    /// rule is removed.
    pub fn on_alert(&self) -> Listen<Alert> {
        self.listen()
    }

    /// As [`on_alert`](LiveRule::on_alert), with a [mark](Notice::Sync) once what is firing has been told.
    pub fn on_notice(&self) -> Listen<Notice> {
        self.listen()
    }

    fn listen<E: Event + sealed::Event<Letter = Letter>>(&self) -> Listen<E> {
        let slot = self.0.clone();
        let Some(bus) = slot.bus.upgrade().map(MetricBus::of) else {
            let removed = RuleError::Removed {
                rule: self.name().to_owned(),
            };
            return Listen::begin_by(&MetricBus::new(), Err(removed.into()));
        };
        Listen::begin_by(
            &bus,
            Ok(Box::new(move |begin| {
                let feed = begin.feed(true);
                let mut wakes = Wakes::new();
                slot.subscribe(&feed, &mut wakes);
                if *lock(&slot.changing) {
                    let rule = slot.log.name.to_string();
                    return Err(RuleError::Removed { rule }.into());
                }
                feed.post.send(Letter::sync(&feed), &mut wakes);
                wake_all(&mut wakes);
                Ok(Feeding::begin(begin, feed, None))
            })),
        )
    }

    /// Changes the rule while it runs. Other rules do not notice.
    ///
    /// Groups that the new rule also has keep their state and go on from there: what is firing and still has to be goes
    /// on without a word; with a hold longer than the condition has held for, it becomes pending and is resolved; what
    /// has been pending for long enough fires. Such alerts have the cause [`RuleChanged`](AlertCause::RuleChanged).
    /// Epochs, history and subscriptions go on.
    ///
    /// Where conditions, groups and [`every`](Rule::every) stay the same, conditions go on, too, where they are: between
    /// the bounds of a threshold, in the middle of a window. Otherwise they begin anew, and so do their windows.
    ///
    /// # Errors
    ///
    /// When the rule is wrong, has another name, or this one was removed. The rule goes on as it was, then.
    pub fn update(&self, rule: Rule) -> Result<(), RuleError> {
        self.0.update(rule)
    }

    /// Ends the rule, as [`MetricBus::remove_rule`]. `false`: it had ended already.
    pub fn remove(self) -> bool {
        let Some(inner) = self.0.bus.upgrade() else {
            return false;
        };
        inner.rules.remove_slot(&inner, &self.0)
    }
}

impl fmt::Debug for LiveRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LiveRule").field(&self.status()).finish()
    }
}

/// How a rule stands.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RuleStatus {
    /// The rule's name.
    pub name: String,
    /// Its condition, or its conditions by level.
    pub conditions: Vec<(Option<String>, String)>,
    /// The thresholds in it: expression, bound, clear bound.
    pub thresholds: Vec<RuleThreshold>,
    /// The gravest state of its groups.
    pub state: RuleState,
    /// Groups that are inactive.
    pub inactive: usize,
    /// Groups that are pending.
    pub pending: usize,
    /// Groups that are clearing.
    pub clearing: usize,
    /// Groups that are firing and not clearing.
    pub firing: usize,
    /// Groups that are not inactive.
    pub active: Vec<RuleGroup>,
    /// Series that match now, counted once for each place in the rule.
    pub series: usize,
    /// Whether any series has ever matched. One that hasn't is not quiet: it is about nothing, often for a typing error.
    pub ever_matched: bool,
    /// Selectors of the rule that have never matched a series: where there are some, a part of it is about nothing.
    pub unmatched: Vec<String>,
    /// Of those in which a name stands that no metric has: the names of metrics that may have been meant.
    pub did_you_mean: Vec<String>,
    /// Groups of which nothing is known: what they look at was never set, or saw nothing.
    pub no_data: usize,
    /// What it looks at now; of a rule about several sets of labels, what it judged last of whichever. `None` where there is
    /// no data.
    pub value: Option<f64>,
    /// How long ago something was last judged. A threshold on a series judges only what crosses its bound, or comes
    /// near: long silence is no fault.
    pub since_evaluated: Option<Duration>,
    /// Alerts that said firing.
    pub fired: u64,
    /// Alerts that said resolved.
    pub resolved: u64,
    /// Alerts that were dropped from full mailboxes of subscribers.
    pub missed: u64,
    /// How often callbacks of its subscribers were said to hang: all threads for callbacks were at work, and theirs had been for a second or more.
    pub hung: u64,
    /// Whether it tells no subscriber.
    pub dry_run: bool,
}

/// One threshold of a rule, as numbers.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RuleThreshold {
    /// The level it belongs to.
    pub level: Option<String>,
    /// What is compared.
    pub input: String,
    /// The bound at which it begins to hold.
    pub raise: f64,
    /// The bound at which it ceases to.
    pub clear: f64,
}

/// One group of a rule.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RuleGroup {
    /// What tells it apart.
    pub labels: Pairs,
    /// Its state.
    pub state: RuleState,
    /// The level in force, of a rule with levels.
    pub level: Option<String>,
    /// Since when the condition has held.
    pub since: Option<Time>,
    /// The same as a date; right also where that was before a restart.
    pub since_date: Option<SystemTime>,
    /// What was judged last.
    pub value: Option<f64>,
    /// How good what is known of it is.
    pub quality: Quality,
    /// How many alerts there were of it.
    pub epoch: u64,
    /// Of a group of several: the labels of those for which the condition holds, ten at most.
    pub holding: Vec<Pairs>,
    /// Of a group of several: for how many it holds.
    pub holds: usize,
}

fn sorted(texts: impl Iterator<Item = String>) -> Vec<String> {
    let texts: BTreeSet<String> = texts.collect();
    texts.into_iter().collect()
}

impl RuleStatus {
    fn of(slot: &Slot, groups_max: usize) -> (Arc<Rule>, RuleStatus, usize) {
        let (rule, view) = slot.engine().view_up_to(groups_max);
        let active: Vec<_> = view
            .active
            .iter()
            .map(|group| RuleGroup {
                labels: group.kept.labels.clone(),
                state: group.state,
                level: group.level.as_deref().map(str::to_owned),
                since: group.since,
                since_date: group
                    .since
                    .map(|since| slot.clock.wall_before(since, group.before)),
                value: group.value,
                quality: group.quality,
                epoch: group.kept.epoch,
                holding: group.holding.clone(),
                holds: group.holds,
            })
            .collect();
        let bus = slot.bus.upgrade();
        let meant = |selector| bus.as_ref()?.did_you_mean(selector);
        let did_you_mean = sorted(view.unmatched.iter().filter_map(meant));
        let unmatched = sorted(view.unmatched.iter().map(|selector| selector.to_string()));
        let status = RuleStatus {
            name: rule.name.clone(),
            conditions: rule
                .levels
                .iter()
                .map(|level| (level.name.clone(), level.test.to_string()))
                .collect(),
            thresholds: rule.thresholds(),
            state: RuleState::ALL
                .into_iter()
                .rfind(|&state| view.by_state[state as usize] > 0)
                .unwrap_or_default(),
            inactive: view.by_state[RuleState::Inactive as usize],
            pending: view.by_state[RuleState::Pending as usize],
            clearing: view.by_state[RuleState::Clearing as usize],
            firing: view.by_state[RuleState::Firing as usize],
            active,
            series: view.series,
            ever_matched: view.matched > 0,
            unmatched,
            did_you_mean,
            no_data: view.no_data,
            value: view.value,
            since_evaluated: view.evaluated.map(|at| slot.clock.now().since(at)),
            fired: slot.log.fired(),
            resolved: slot.log.resolved(),
            missed: slot.log.missed(),
            hung: slot.log.hung(),
            dry_run: rule.dry_run,
        };
        (rule, status, view.left_out)
    }
}

/// A rule's place in the bus: what stays when the rule is changed.
pub(crate) struct Slot {
    pub(crate) log: Arc<Log>,
    bus: Weak<Inner>,
    pub(super) clock: crate::clock::Clock,
    engine: RwLock<Arc<Engine>>,
    /// Held while the rule is being changed, started or ended.
    changing: Mutex<bool>,
}

impl Slot {
    pub(crate) fn engine(&self) -> Arc<Engine> {
        self.engine
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn update(&self, rule: Rule) -> Result<(), RuleError> {
        let name = self.log.name.to_string();
        if rule.name != name {
            return Err(RuleError::Renamed {
                rule: name,
                now: rule.name,
            });
        }
        let plan = Plan::new(&rule)?;
        let mut wakes = Wakes::new();
        let removed = lock(&self.changing);
        let inner = self
            .bus
            .upgrade()
            .filter(|_| !*removed)
            .ok_or(RuleError::Removed { rule: name })?;
        plan.check_rule_for(&rule, &inner)?;
        if self.engine().rule().judges_as(&rule) {
            self.engine().change(rule, &mut wakes);
            drop(removed);
            wake_all(&mut wakes);
            return Ok(());
        }
        let next = Engine::new(&inner, rule, plan, self.log.clone(), None);
        next.start(&inner, &mut wakes);
        let before = {
            // Whoever subscribes hears of the one or of the other.
            let mut engine = self.engine.write().unwrap_or_else(PoisonError::into_inner);
            let inherited = engine.close(None, &mut wakes);
            next.remember_as(&engine);
            next.settle(inherited, AlertCause::RuleChanged, None, &mut wakes);
            std::mem::replace(&mut *engine, next)
        };
        let listeners = before.stop(&inner, &mut wakes);
        drop(removed);
        wake_all(&mut wakes);
        drop(listeners);
        self.warn_of_names(&inner);
        Ok(())
    }

    /// Says in the log which of its selectors name no metric, but nearly one. It holds no lock.
    fn warn_of_names(&self, inner: &Inner) {
        for selector in self.engine().unmatched() {
            inner.warn_of_name(&selector);
        }
    }

    /// Puts a feed in place: it hears what is firing, then every transition.
    fn subscribe(&self, feed: &Arc<Feed>, wakes: &mut Wakes) {
        let engine = self.engine.read().unwrap_or_else(PoisonError::into_inner);
        engine.with_firing(|rule, firing| {
            self.log.subscribe(feed, rule, firing, &self.clock, wakes);
        });
    }

    /// `release`: gives up its name, once it has said its last and before whoever hears that can want the name.
    fn end(&self, inner: &Inner, release: impl FnOnce()) -> bool {
        let mut wakes = Wakes::new();
        let listeners = {
            let mut removed = lock(&self.changing);
            if std::mem::replace(&mut *removed, true) {
                return false;
            }
            let engine = self.engine();
            engine.close(Some(AlertCause::RuleRemoved), &mut wakes);
            self.log.end(&mut wakes);
            engine.stop(inner, &mut wakes)
        };
        release();
        // What was kept when it said its last still had it in it.
        (self.log.changed)();
        wake_all(&mut wakes);
        drop(listeners);
        true
    }
}

/// All rules of a bus.
#[derive(Default)]
pub(crate) struct Rules {
    table: Mutex<Table>,
    pub(crate) changed: Changed,
    pub(crate) derivations: Mutex<Derivations>,
    #[cfg(feature = "persist")]
    pub(crate) keeper: Mutex<Option<Arc<super::keeper::Keeper>>>,
}

/// Called after each transition of any rule.
#[derive(Default)]
pub(crate) struct Changed(Arc<Mutex<Option<Told>>>);

/// What is done when something was told.
pub(crate) type Told = Arc<dyn Fn() + Send + Sync>;

impl Changed {
    #[cfg(feature = "persist")]
    pub(crate) fn set(&self, f: Told) {
        *lock(&self.0) = Some(f);
    }

    fn caller(&self) -> Told {
        let f = self.0.clone();
        Arc::new(move || {
            let f = lock(&f).clone();
            if let Some(f) = f {
                f();
            }
        })
    }
}

#[derive(Default)]
pub(crate) struct Table {
    pub(crate) rules: BTreeMap<String, Arc<Slot>>,
    /// Those that hear of all rules.
    feeds: Vec<Arc<Feed>>,
    /// Groups from before a restart, by rule, until the rule is added.
    pub(crate) restored: HashMap<String, Restored>,
}

impl Rules {
    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    pub(crate) fn all(&self) -> Vec<Arc<Slot>> {
        self.table().rules.values().cloned().collect()
    }

    fn set(&self, inner: &Arc<Inner>, rule: Rule) -> Result<LiveRule, RuleError> {
        loop {
            // Others may add and remove rules of this name meanwhile.
            let found = self.table().rules.get(&rule.name).cloned();
            let Some(found) = found else {
                match self.insert(inner, rule.clone(), None) {
                    Err(RuleError::Exists { .. }) => continue,
                    done => return done.map(LiveRule),
                }
            };
            match found.update(rule.clone()) {
                Err(RuleError::Removed { .. }) => {}
                done => return done.map(|()| LiveRule(found)),
            }
        }
    }

    fn insert(
        &self,
        inner: &Arc<Inner>,
        rule: Rule,
        feed: Option<Arc<Feed>>,
    ) -> Result<Arc<Slot>, RuleError> {
        let plan = Plan::new(&rule)?;
        plan.check_rule_for(&rule, inner)?;
        let name = rule.name.clone();
        let (slot, restored) = {
            let mut table = self.table();
            if table.rules.contains_key(&name) {
                return Err(RuleError::Exists { rule: name });
            }
            table
                .feeds
                .retain(|feed| !feed.ended.load(Ordering::Acquire));
            let feeds = table.feeds.iter().cloned().chain(feed).collect();
            let log = Log::new(&name, feeds, self.changed.caller());
            let engine = Engine::new(inner, rule, plan, log.clone(), None);
            let slot = Arc::new(Slot {
                log,
                bus: Arc::downgrade(inner),
                clock: inner.clock.clone(),
                engine: RwLock::new(engine),
                changing: Mutex::new(false),
            });
            table.rules.insert(name.clone(), slot.clone());
            (slot, table.restored.remove(&name))
        };
        // The name is taken; whoever wants to change the rule waits until it runs.
        let mut wakes = Wakes::new();
        {
            let _changing = lock(&slot.changing);
            let engine = slot.engine();
            // So that no mutating thread has to start the clock's.
            inner.clock.at(inner.clock.now(), || {});
            let now = inner.clock.now();
            let restored = restored.map(|restored| restored.go_on(&engine, now));
            let (inherited, grace) = restored.unwrap_or_default();
            engine.start(inner, &mut wakes);
            engine.settle(inherited, AlertCause::Initial, grace, &mut wakes);
        }
        wake_all(&mut wakes);
        slot.warn_of_names(inner);
        Ok(slot)
    }

    fn remove(&self, inner: &Inner, name: &str) -> bool {
        let slot = self.table().rules.get(name).cloned();
        slot.is_some_and(|slot| self.remove_slot(inner, &slot))
    }

    fn remove_slot(&self, inner: &Inner, slot: &Arc<Slot>) -> bool {
        slot.end(inner, || {
            let mut table = self.table();
            let name: &str = &slot.log.name;
            if table
                .rules
                .get(name)
                .is_some_and(|found| Arc::ptr_eq(found, slot))
            {
                table.rules.remove(name);
            }
        })
    }

    /// The bus is gone: nobody is told anything any more.
    pub(crate) fn end(&self) {
        #[cfg(feature = "persist")]
        if let Some(keeper) = &*lock(&self.keeper) {
            keeper.close();
        }
        for slot in self.all() {
            slot.engine().close(None, &mut Wakes::new());
        }
    }
}

impl Begin<'_, Letter> {
    fn feed(&self, of_one: bool) -> Arc<Feed> {
        Arc::new(Feed {
            of_one,
            post: self.post(),
            initial: self.initial,
            ended: Arc::default(),
            rules: AtomicU64::new(0),
            subscription: Arc::downgrade(&self.shared),
        })
    }
}

/// Subscribes to all rules, present and future.
fn feed_all(begin: Begin<'_, Letter>) -> Arc<dyn Wire> {
    let feed = begin.feed(false);
    let slots: Vec<_> = {
        // A rule that is added meanwhile has the feed from the beginning.
        let mut table = begin.inner.rules.table();
        table
            .feeds
            .retain(|feed| !feed.ended.load(Ordering::Acquire));
        table.feeds.push(feed.clone());
        table.rules.values().cloned().collect()
    };
    let mut wakes = Wakes::new();
    for slot in slots {
        slot.subscribe(&feed, &mut wakes);
    }
    feed.post.send(Letter::sync(&feed), &mut wakes);
    wake_all(&mut wakes);
    Feeding::begin(begin, feed, None)
}

/// A subscription's hold on its feed.
struct Feeding {
    feed: Arc<Feed>,
    mailbox: Arc<Mailbox<Letter>>,
    /// The rule that lives and ends with it.
    of: Option<Arc<Slot>>,
}

impl Feeding {
    fn begin(begin: Begin<'_, Letter>, feed: Arc<Feed>, of: Option<Arc<Slot>>) -> Arc<dyn Wire> {
        begin.inner.mailboxes.add(begin.mailbox.clone());
        Arc::new(Feeding {
            feed,
            mailbox: begin.mailbox,
            of,
        })
    }
}

impl Wire for Feeding {
    fn end(&self, bus: Option<&Inner>) {
        self.feed.ended.store(true, Ordering::Release);
        if let Some(reader) = self.mailbox.close(true) {
            reader.wake();
        }
        let Some(bus) = bus else { return };
        let mailbox: Arc<dyn AnyMailbox> = self.mailbox.clone();
        bus.mailboxes.remove(&mailbox, &bus.stats);
        if let Some(slot) = &self.of {
            bus.rules.remove_slot(bus, slot);
        }
    }

    fn matched(&self) -> u64 {
        self.feed.rules.load(Ordering::Relaxed)
    }

    fn dropped(&self) -> u64 {
        self.mailbox.dropped()
    }

    fn describe(&self) -> String {
        match &self.of {
            Some(slot) => format!("alerts of {}", slot.log.name),
            None => "alerts".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Clock, Condition, Desc, Expr, Threshold};

    fn above() -> Condition {
        Condition::when("g", Threshold::above(5.0))
    }

    #[test]
    fn a_bus_that_ends_takes_its_rules_and_derived_gauges_with_it() {
        let bus = MetricBus::builder().clock(Clock::manual()).build();
        let gauge = bus.gauge("g", "Of a test.").unwrap();
        let rule = bus.add_rule(Rule::new("r", above())).unwrap();
        let shown = Expr::value("g") * 2.0;
        bus.derive(Desc::new("d", "Of a test."), shown)
            .unwrap()
            .forget();
        gauge.set(10.0);
        let engine = Arc::downgrade(&rule.0.engine());
        let derived = Arc::downgrade(bus.series("d").unwrap()[0].core());
        drop((rule, bus));
        assert!(engine.upgrade().is_none());
        assert!(derived.upgrade().is_none());
        gauge.set(1.0);
    }
}

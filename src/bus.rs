//! The bus: declares metrics, finds them, and brings them together with those who subscribe.

#[cfg(feature = "otlp")]
use std::sync::atomic::AtomicBool;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::Ordering::Relaxed},
};

use crate::{
    cell::{Listener, Wakes, wake_all},
    clock::Clock,
    desc::{Buckets, Desc, Meta, MetricKind, Numbers, SERIES_MAX_DEFAULT, validate},
    dispatch::{Pool, WORKERS_MAX_DEFAULT},
    error::{DeclareError, SelectorError},
    hub::Mailboxes,
    lint::{Lint, lint},
    metric::{Counter, Family, FamilyCore, Gauge, Histogram, Metric, Plan, Slot},
    own::Own,
    rule::{self, Rules},
    scope::{Component, Metrics, Scope},
    selector::{IntoSelector, Selector},
    series::{Series, SeriesCore, Value},
    similar::nearest,
    snapshot::{FamilySnapshot, SampleValue, SeriesSnapshot, Snapshot},
    stats::{self, Stats},
    watch::{Watch, Watches},
};

/// Registry and bus in one: metrics are declared on it, and whoever wants to hear of them subscribes to it.
///
/// Clones are the same bus. When the last one is gone its subscriptions end; handles to metrics go on counting, for
/// nobody.
///
/// ```
/// use metricbus::{MetricBus, Threshold};
///
/// let bus = MetricBus::new();
/// let queue = bus.gauge("queue_depth", "Requests waiting.")?;
///
/// let _subscription = bus
///     .on_threshold("queue_depth", Threshold::above(100.0).clear_below(50.0))
///     .call(|crossing| println!("{}: {:?} at {}", crossing.series, crossing.state, crossing.value))?;
///
/// queue.set(120.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct MetricBus(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) clock: Clock,
    /// Runs callbacks.
    pub(crate) pool: Pool,
    /// Runs what timers set off, and nothing of anybody else's.
    pub(crate) timers: Pool,
    pub(crate) stats: Arc<Stats>,
    pub(crate) rules: Rules,
    /// Of all subscriptions to events that no series makes: alerts, sources.
    pub(crate) mailboxes: Mailboxes,
    /// Whoever else counts something of itself.
    own: Own,
    series_max: usize,
    native_histograms: bool,
    registry: RwLock<Registry>,
    watches: RwLock<Watches>,
    components: Mutex<Vec<Component>>,
    lints: Mutex<Vec<Lint>>,
    /// Whether it has had an OTLP exporter. A forked child finds its parent's here, too.
    #[cfg(feature = "otlp")]
    pub(crate) was_exported: AtomicBool,
}

#[derive(Default)]
struct Registry {
    families: BTreeMap<Arc<str>, Arc<FamilyCore>>,
    /// Every name that can appear on `/metrics`, and the family it belongs to.
    exposed: HashMap<String, Arc<str>>,
}

/// A bus with settings other than the usual ones. Made by [`MetricBus::builder`].
#[derive(Debug)]
#[must_use]
pub struct MetricBusBuilder {
    clock: Clock,
    series_max: usize,
    workers_max: usize,
    native_histograms: bool,
}

impl MetricBusBuilder {
    /// The clock of all timers and windows; the system's unless told otherwise.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// How many series a family may have unless its declaration says otherwise; 2 000 unless told otherwise.
    pub fn cardinality_limit(mut self, series_max: usize) -> Self {
        self.series_max = series_max;
        self
    }

    /// How many threads run callbacks, at most: 64 unless told otherwise. There are two as long as none takes long.
    ///
    /// When all of them are at work, callbacks that have been running for a second or more are said to hang: they are counted
    /// (`metricbus_callbacks_hanging`), logged, and their threads are replaced, so that they hold up nobody else. So there are no more threads than these
    /// and one for each subscription whose callback hangs.
    pub fn workers_max(mut self, workers_max: usize) -> Self {
        self.workers_max = workers_max;
        self
    }

    /// Whether histograms keep exponential buckets from their first observation on, for Prometheus's native histograms,
    /// unless their declaration says otherwise; no unless told here. See [`Desc::native`].
    pub fn native_histograms(mut self, native: bool) -> Self {
        self.native_histograms = native;
        self
    }

    /// Makes the bus. Starts no thread; the first subscription with a callback does.
    #[must_use]
    pub fn build(self) -> MetricBus {
        MetricBus(Arc::new(Inner {
            pool: Pool::new(self.workers_max, &self.clock),
            timers: Pool::trusted(&self.clock),
            clock: self.clock,
            stats: Arc::default(),
            rules: Rules::default(),
            mailboxes: Mailboxes::default(),
            own: Own::default(),
            series_max: self.series_max,
            native_histograms: self.native_histograms,
            registry: RwLock::default(),
            watches: RwLock::default(),
            components: Mutex::default(),
            lints: Mutex::default(),
            #[cfg(feature = "otlp")]
            was_exported: AtomicBool::new(false),
        }))
    }
}

impl Default for MetricBus {
    fn default() -> Self {
        MetricBus::new()
    }
}

impl MetricBus {
    /// A bus on the system's clock.
    #[must_use]
    pub fn new() -> Self {
        MetricBus::builder().build()
    }

    /// A bus with settings of its own.
    pub fn builder() -> MetricBusBuilder {
        MetricBusBuilder {
            clock: Clock::system(),
            series_max: SERIES_MAX_DEFAULT,
            workers_max: WORKERS_MAX_DEFAULT,
            native_histograms: false,
        }
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }

    /// Counts a hook of another language that failed, for `/metrics`.
    #[doc(hidden)]
    pub fn hook_failed(&self) {
        crate::stats::bump(&self.0.stats.hooks_failed);
    }

    /// Counts a hook of another language that was not done in time, for `/metrics`.
    #[doc(hidden)]
    pub fn hook_late(&self) {
        crate::stats::bump(&self.0.stats.hooks_late);
    }

    pub(crate) fn of(inner: Arc<Inner>) -> MetricBus {
        MetricBus(inner)
    }

    /// The clock of this bus.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// The root scope: no prefix, no labels.
    #[must_use]
    pub fn scope(&self) -> Scope {
        Scope::root(self)
    }

    /// Declares a counter. See [`Scope::declare`].
    ///
    /// # Errors
    ///
    /// As [`Scope::declare`].
    pub fn counter(&self, name: &str, help: &str) -> Result<Counter, DeclareError> {
        self.scope().counter(name, help)
    }

    /// Declares a gauge. See [`Scope::declare`].
    ///
    /// # Errors
    ///
    /// As [`Scope::declare`].
    pub fn gauge(&self, name: &str, help: &str) -> Result<Gauge, DeclareError> {
        self.scope().gauge(name, help)
    }

    /// Declares a histogram. See [`Scope::declare`].
    ///
    /// # Errors
    ///
    /// As [`Scope::declare`].
    pub fn histogram(
        &self,
        name: &str,
        help: &str,
        buckets: Buckets,
    ) -> Result<Histogram, DeclareError> {
        self.scope().histogram(name, help, buckets)
    }

    /// Declares a metric, or gives the one that was declared before in the same way.
    ///
    /// ```
    /// let bus = metricbus::MetricBus::new();
    /// bus.counter("requests_total", "Requests served.")?.inc();
    /// assert_eq!(bus.counter("requests_total", "Requests served.")?.get(), 1);
    ///
    /// let error = bus.gauge("requests_total", "Requests served.").unwrap_err();
    /// assert_eq!(
    ///     error.to_string(),
    ///     r#"metric "requests_total" clashes with its earlier declaration: type was counter, and now is gauge"#,
    /// );
    /// # Ok::<(), metricbus::DeclareError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Scope::declare`].
    pub fn declare<M: Metric>(&self, desc: Desc) -> Result<M, DeclareError> {
        self.scope().declare(desc)
    }

    /// Declares a metric with labels.
    ///
    /// # Errors
    ///
    /// As [`Scope::declare`]; also when there are no [`labels`](Desc::labels).
    pub fn family<M: Metric>(&self, desc: Desc) -> Result<Family<M>, DeclareError> {
        self.scope().family(desc)
    }

    /// Declares every metric of a struct.
    ///
    /// # Errors
    ///
    /// As [`Scope::declare`].
    pub fn register<T: Metrics>(&self) -> Result<T, DeclareError> {
        self.scope().register()
    }

    /// Every component that was registered, in order. One that was registered twice in the same way is one.
    #[must_use]
    pub fn components(&self) -> Vec<Component> {
        locked(&self.0.components).clone()
    }

    /// What the naming lint had to say of the declarations so far. Each was also a `tracing` warning.
    ///
    /// ```
    /// let bus = metricbus::MetricBus::new();
    /// bus.gauge("wait_milliseconds", "Time waited.")?;
    /// assert_eq!(
    ///     bus.lints()[0].to_string(),
    ///     r#"wait_milliseconds: use the base unit "seconds" instead of "milliseconds""#,
    /// );
    /// # Ok::<(), metricbus::DeclareError>(())
    /// ```
    #[must_use]
    pub fn lints(&self) -> Vec<Lint> {
        locked(&self.0.lints).clone()
    }

    /// All metrics as they are, sorted by name.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let families = self.0.families();
        Snapshot {
            families: families
                .iter()
                .map(|family| FamilySnapshot::of(family))
                .collect(),
        }
    }

    /// The series that match now.
    ///
    /// # Errors
    ///
    /// When the selector is wrong.
    pub fn series(&self, selector: impl IntoSelector) -> Result<Vec<Series>, SelectorError> {
        let selector = self.0.select(selector)?;
        let mut found = Vec::new();
        self.0
            .for_each_match(&selector, |series| found.push(Series::of(series.clone())));
        Ok(found)
    }

    /// Removes the selected series, such as all of a worker that has gone; how many there were.
    ///
    /// They are exposed no more, their subscribers hear that they are gone, and late writes by handles still held do not
    /// bring them back. The declarations stay; a component of which no series is left is one no more.
    ///
    /// ```
    /// let bus = metricbus::MetricBus::new();
    /// let worker = bus.scope().with_label("worker", 3);
    /// worker.gauge("queue_depth", "Requests waiting.")?;
    /// worker.counter("requests_total", "Requests served.")?;
    /// assert_eq!(bus.remove(r#"{worker="3"}"#)?, 2);
    /// assert!(bus.series("queue_depth")?.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the selector is wrong.
    pub fn remove(&self, selector: impl IntoSelector) -> Result<usize, SelectorError> {
        let selector = self.0.select(selector)?;
        let families = self.0.families();
        let removed = families
            .iter()
            .filter(|family| selector.could_match_name(&family.meta.name))
            .map(|family| family.remove_where(|series| selector.matches(series)))
            .sum();
        if removed > 0 {
            self.0.forget_components();
        }
        Ok(removed)
    }

    /// What the bus counts of itself, `metricbus_*`: losses, panics, threads, components. The exporter shows it beside
    /// the metrics declared here; it is not part of [`snapshot`](MetricBus::snapshot), and no selector matches it.
    #[must_use]
    pub fn self_families(&self) -> Vec<FamilySnapshot> {
        self.0.self_families()
    }

    /// Whether a name that can appear on `/metrics` is taken.
    #[cfg(feature = "http")]
    pub(crate) fn exposes(&self, name: &str) -> bool {
        read(&self.0.registry).exposed.contains_key(name)
    }
}

impl fmt::Debug for MetricBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricBus")
            .field("families", &read(&self.0.registry).families.len())
            .field("subscriptions", &read(&self.0.watches).iter().count())
            .finish()
    }
}

impl Inner {
    /// All families, sorted by name.
    pub(crate) fn families(&self) -> Vec<Arc<FamilyCore>> {
        read(&self.registry).families.values().cloned().collect()
    }

    /// The series of this name with these labels, as they are exposed.
    #[cfg(feature = "nats")]
    pub(crate) fn find(&self, name: &str, text: &str) -> Option<Arc<SeriesCore>> {
        let family = read(&self.registry).families.get(name).cloned()?;
        family.get(text)
    }

    /// Reads a selector that somebody gives to this bus.
    pub(crate) fn select(&self, selector: impl IntoSelector) -> Result<Selector, SelectorError> {
        let selector = selector.into_selector()?;
        self.check_owns(&selector)?;
        Ok(selector)
    }

    /// Of a selector with the name of no metric: the name of one that may have been meant.
    pub(crate) fn did_you_mean(&self, selector: &Selector) -> Option<String> {
        let asked_for = selector.only_series().is_none();
        let name = selector.metric_name().filter(|_| asked_for)?;
        let registry = read(&self.registry);
        if registry.families.contains_key(name) {
            return None;
        }
        nearest(name, registry.families.keys().map(|name| &**name))
    }

    /// Says so in the log. Never called under a lock.
    pub(crate) fn warn_of_name(&self, selector: &Selector) {
        if let Some(meant) = self.did_you_mean(selector) {
            tracing::warn!(%selector, "metricbus: no metric has the name of this selector so far; did you mean {meant}?");
        }
    }

    /// A handle of another bus would match nothing, for ever.
    pub(crate) fn check_owns(&self, selector: &Selector) -> Result<(), SelectorError> {
        let Some(series) = selector.only_series() else {
            return Ok(());
        };
        let registry = read(&self.registry);
        let family = registry.families.get(series.name());
        if family.is_some_and(|family| Arc::ptr_eq(&family.meta, &series.core().meta)) {
            return Ok(());
        }
        Err(SelectorError::Elsewhere {
            series: series.to_string(),
        })
    }

    fn for_each_match(&self, selector: &Selector, mut f: impl FnMut(&Arc<SeriesCore>)) {
        let Some(name) = selector.metric_name() else {
            for family in self.families() {
                if selector.could_match_name(&family.meta.name) {
                    family.for_each(|series| {
                        if selector.matches(series) {
                            f(series);
                        }
                    });
                }
            }
            return;
        };
        // A metric by its name, and perhaps one series: thousands of rules are each about one worker.
        let Some(family) = read(&self.registry).families.get(name).cloned() else {
            return;
        };
        if let Some(series) = selector.only_series() {
            if Arc::ptr_eq(&series.core().meta, &family.meta) && !series.is_removed() {
                f(series.core());
            }
        } else if let Some(text) = selector.text_of(&family.meta.label_names) {
            if let Some(series) = family.get(&text).filter(|series| selector.matches(series)) {
                f(&series);
            }
        } else {
            family.for_each(|series| {
                if selector.matches(series) {
                    f(series);
                }
            });
        }
    }

    pub(crate) fn declare<M: Metric>(
        self: &Arc<Self>,
        scope: &Scope,
        desc: Desc,
    ) -> Result<M, DeclareError> {
        if !desc.variable.is_empty() {
            return Err(DeclareError::Labels {
                metric: format!("{}{}", scope.prefix(), desc.name),
                why: format!(
                    "it has labels without values, {:?}: declare it with family()",
                    desc.variable
                ),
            });
        }
        let (family, plan) = self.enter::<M>(scope, desc)?;
        Ok(plan.metric(family.child(&plan.constant_text())))
    }

    pub(crate) fn family<M: Metric, L>(
        self: &Arc<Self>,
        scope: &Scope,
        desc: Desc,
    ) -> Result<Family<M, L>, DeclareError> {
        if desc.variable.is_empty() {
            return Err(DeclareError::Labels {
                metric: format!("{}{}", scope.prefix(), desc.name),
                why: "a family needs labels: name them with Desc::labels, or use declare()"
                    .to_owned(),
            });
        }
        let (family, plan) = self.enter::<M>(scope, desc)?;
        Ok(Family::new(family, plan))
    }

    /// Finds or makes the family of a declaration.
    fn enter<M: Metric>(
        self: &Arc<Self>,
        scope: &Scope,
        desc: Desc,
    ) -> Result<(Arc<FamilyCore>, Plan), DeclareError> {
        let spec = M::spec();
        let name = format!("{}{}", scope.prefix(), desc.name);
        let constant: Vec<(&str, &str)> = scope
            .labels()
            .iter()
            .map(|(name, value)| (&**name, &**value))
            .chain(
                desc.constant
                    .iter()
                    .map(|(name, value)| (&**name, &**value)),
            )
            .collect();
        let label_names: Vec<&str> = constant
            .iter()
            .map(|(name, _)| *name)
            .chain(desc.variable.iter().map(String::as_str))
            .collect();
        let bounds = validate(&desc, &name, spec.kind, &label_names)?;
        let meta = Meta {
            name: name.into(),
            help: desc.help.clone(),
            unit: desc.unit.clone(),
            kind: spec.kind,
            numbers: spec.numbers,
            label_names: label_names.iter().map(|&n| n.into()).collect(),
            bounds,
            series_max: desc.series_max.unwrap_or(self.series_max),
            expire_after: desc.expire_after,
            native: spec.kind == MetricKind::Histogram
                && desc.native.unwrap_or(self.native_histograms),
            nan_observations: Default::default(),
            derived: false,
            mirrored: false,
            clock: self.clock.clone(),
        };
        let family = self.find_or_insert(meta)?;
        family
            .meta
            .check_limits(desc.series_max, desc.expire_after, desc.native)?;
        // In the order of the family, which is that of its first declaration.
        let slots = family
            .meta
            .label_names
            .iter()
            .map(|name| {
                let slot = match constant.iter().find(|(n, _)| *n == &**name) {
                    Some((_, value)) => Slot::Constant((*value).to_owned()),
                    None => Slot::Variable(
                        desc.variable
                            .iter()
                            .position(|v| **v == **name)
                            .unwrap_or_default(),
                    ),
                };
                (name.clone(), slot)
            })
            .collect();
        let plan = Plan {
            slots,
            variable: desc.variable,
            initial: desc.initial,
        };
        Ok((family, plan))
    }

    pub(crate) fn has_family(&self, name: &str) -> bool {
        read(&self.registry).families.contains_key(name)
    }

    /// The labels that all series of a metric have; `None` where it is not declared, or they come with labels of their own.
    pub(crate) fn label_names_of(&self, name: &str) -> Option<Box<[Arc<str>]>> {
        let registry = read(&self.registry);
        let meta = &registry.families.get(name)?.meta;
        (!meta.derived && !meta.mirrored).then(|| meta.label_names.clone())
    }

    /// Takes a declaration back, with the names it is exposed by.
    pub(crate) fn withdraw(&self, name: &str) {
        let mut registry = self
            .registry
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        registry.families.remove(name);
        registry.exposed.retain(|_, owner| &**owner != name);
    }

    /// Declares a gauge whose series come with labels of their own.
    pub(crate) fn derived_family(
        self: &Arc<Self>,
        desc: &Desc,
    ) -> Result<Arc<FamilyCore>, DeclareError> {
        if !desc.variable.is_empty() {
            return Err(DeclareError::Labels {
                metric: desc.name.clone(),
                why: format!(
                    "a derived gauge takes its labels from what it is derived from; leave out labels {:?}",
                    desc.variable
                ),
            });
        }
        if let Some(initial) = desc.initial {
            return Err(DeclareError::Labels {
                metric: desc.name.clone(),
                why: format!(
                    "a derived gauge has the value of its expression, and none where that has none; leave out initial({initial})"
                ),
            });
        }
        let constant: Vec<&str> = desc.constant.iter().map(|(name, _)| &**name).collect();
        validate(desc, &desc.name, MetricKind::Gauge, &constant)?;
        self.find_or_insert(Meta {
            name: desc.name.as_str().into(),
            help: desc.help.clone(),
            unit: desc.unit.clone(),
            kind: MetricKind::Gauge,
            numbers: Numbers::Real,
            label_names: Box::default(),
            bounds: Arc::default(),
            series_max: desc.series_max.unwrap_or(self.series_max),
            expire_after: None,
            native: false,
            nan_observations: Default::default(),
            derived: true,
            mirrored: false,
            clock: self.clock.clone(),
        })
    }

    pub(crate) fn find_or_insert(
        self: &Arc<Self>,
        meta: Meta,
    ) -> Result<Arc<FamilyCore>, DeclareError> {
        if let Some(family) = read(&self.registry).families.get(&meta.name) {
            meta.check_same_as(&family.meta)?;
            return Ok(family.clone());
        }
        // Whoever hears of a name from another process can't change it.
        let lints = if meta.mirrored {
            Vec::new()
        } else {
            lint(&meta)
        };
        let family = {
            let mut registry = self
                .registry
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(family) = registry.families.get(&meta.name) {
                meta.check_same_as(&family.meta)?;
                return Ok(family.clone());
            }
            let exposed = meta.exposed_names();
            for sample in &exposed {
                let Some(other) = registry.exposed.get(sample) else {
                    continue;
                };
                let other_kind = registry
                    .families
                    .get(other)
                    .map_or(meta.kind, |f| f.meta.kind);
                return Err(DeclareError::SampleClash {
                    metric: meta.name.to_string(),
                    kind: meta.kind,
                    sample: sample.clone(),
                    other: other.to_string(),
                    other_kind,
                });
            }
            let name = meta.name.clone();
            for sample in exposed {
                registry.exposed.insert(sample, name.clone());
            }
            let family = FamilyCore::new(Arc::new(meta), Arc::downgrade(self));
            registry.families.insert(name, family.clone());
            family
        };
        for lint in &lints {
            tracing::warn!("metricbus: {lint}");
        }
        locked(&self.lints).extend(lints);
        Ok(family)
    }

    pub(crate) fn add_component(&self, component: Component) {
        let mut components = locked(&self.components);
        if !components.contains(&component) {
            components.push(component);
        }
    }

    /// Drops components that have no series any more.
    fn forget_components(&self) {
        let components = locked(&self.components).clone();
        let is_gone = |component: &Component| {
            let families = read(&self.registry).families.clone();
            let mut left = component.metrics.is_empty();
            for name in &component.metrics {
                if let Some(family) = families.get(name.as_str()) {
                    family.for_each(|series| left |= component.has(&series.text));
                }
            }
            !left
        };
        let gone: Vec<_> = components.into_iter().filter(is_gone).collect();
        locked(&self.components).retain(|component| !gone.contains(component));
    }

    /// Attaches whoever waits for a series like this one. `newborn`: it has counted nothing yet. The caller holds the
    /// family's lock, and wakes once it does not.
    pub(crate) fn announce(&self, series: &Arc<SeriesCore>, newborn: bool, wakes: &mut Wakes) {
        read(&self.watches).for_new(series, |watch| watch.attach(series, newborn, wakes));
    }

    /// Attaches a watch to every series that matches and notes it for those to come. A series that is being made
    /// meanwhile is either found here or finds the watch; if both, the cell refuses the second.
    pub(crate) fn watch(&self, watch: &Arc<Watch>) {
        let mut wakes = Wakes::new();
        self.watch_waking(watch, &mut wakes);
        wake_all(&mut wakes);
    }

    /// As [`watch`](Inner::watch), for a caller who holds a lock and wakes later.
    pub(crate) fn watch_waking(&self, watch: &Arc<Watch>, wakes: &mut Wakes) {
        self.watches
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .add(watch.clone());
        self.for_each_match(&watch.selector, |series| watch.attach(series, false, wakes));
    }

    pub(crate) fn unwatch(&self, watch: &Watch) {
        let mut wakes = Wakes::new();
        let listeners = self.unwatch_waking(watch, &mut wakes);
        wake_all(&mut wakes);
        drop(listeners);
    }

    /// As [`unwatch`](Inner::unwatch), for a caller who holds a lock and wakes later, and later drops the listeners:
    /// those of a rule may wake somebody, too.
    #[must_use]
    pub(crate) fn unwatch_waking(
        &self,
        watch: &Watch,
        wakes: &mut Wakes,
    ) -> Vec<Box<dyn Listener>> {
        watch.close(true);
        {
            // What it dropped goes from one sum to the other at once, so that a scrape never sees the total fall.
            let mut watches = self.watches.write().unwrap_or_else(PoisonError::into_inner);
            if watches.remove(watch) {
                self.stats.dropped(watch.dropped());
            }
        }
        let mut listeners = Vec::new();
        self.for_each_match(&watch.selector, |series| {
            listeners.extend(series.detach(watch.id, wakes));
        });
        listeners
    }

    /// Wakes on a thread of the bus rather than in this one.
    pub(crate) fn wake_elsewhere(&self, mut wakes: Wakes) {
        if wakes.is_empty() {
            return;
        }
        self.timers.start();
        self.timers.spawn(async move { wake_all(&mut wakes) });
    }

    /// Shows what somebody counts of itself beside what the bus does, for as long as it lives.
    pub(crate) fn show_own(&self, whose: std::sync::Weak<dyn crate::own::Counts>) {
        self.own.show(whose);
    }

    fn self_families(&self) -> Vec<FamilySnapshot> {
        let of_rules = rule::families(&self.rules);
        let (mut families, watches, feeds) = {
            // Released before the families are looked at: theirs are taken before it.
            let watches = read(&self.watches);
            let (feeds, missed) = self.mailboxes.sum();
            let dropped = watches.iter().map(|w| w.dropped()).sum::<u64>() + missed;
            let families = self.stats.families(dropped);
            let watches: Vec<_> = watches.iter().filter(|w| !w.of_rule).cloned().collect();
            (families, watches, feeds)
        };
        let (workers, busy, hung) = self.pool.workers();
        let declared = self.families();
        let series: usize = declared.iter().map(|family| family.len()).sum();
        let unmatched = watches.iter().filter(|w| w.matched() == 0).count();
        for (name, help, value) in [
            (
                "metricbus_callbacks_hanging",
                "Callbacks that hang now: their threads are none of the dispatcher's any more until they come back.",
                hung,
            ),
            (
                "metricbus_callbacks_running",
                "Callbacks that are running now, hung ones included.",
                busy,
            ),
            (
                "metricbus_callbacks_waiting",
                "Subscriptions that wait for a thread to run their callback.",
                self.pool.waiting(),
            ),
            (
                "metricbus_dispatcher_threads",
                "Threads that run callbacks.",
                workers,
            ),
            ("metricbus_families", "Declared metrics.", declared.len()),
            ("metricbus_series", "Series of all metrics.", series),
            (
                "metricbus_subscriptions",
                "Live subscriptions.",
                watches.len() + feeds,
            ),
            (
                "metricbus_subscriptions_unmatched",
                "Live subscriptions whose selector has never matched a series.",
                unmatched,
            ),
        ] {
            families.push(stats::gauge(name, help, value as f64));
        }
        families.push(nan_observations(&declared));
        let components = locked(&self.components);
        if !components.is_empty() {
            families.push(component_info(&components));
        }
        drop(components);
        families.extend(of_rules);
        families.extend(self.own.families());
        families.sort_by(|a, b| a.name.cmp(&b.name));
        families
    }
}

/// By native histogram that there is.
fn nan_observations(declared: &[Arc<FamilyCore>]) -> FamilySnapshot {
    let native = declared.iter().filter(|family| family.meta.native);
    let series = native.map(|family| SeriesSnapshot {
        labels: vec![("metric".to_owned(), family.meta.name.to_string())],
        value: SampleValue::Counter(Value::U64(family.meta.nan_observations.load(Relaxed))),
    });
    FamilySnapshot {
        name: "metricbus_nan_observations_total".to_owned(),
        help: "Observations of NaN, which native histograms leave out.".to_owned(),
        unit: None,
        kind: crate::MetricKind::Counter,
        series: series.collect(),
    }
}

fn component_info(components: &[Component]) -> FamilySnapshot {
    let mut seen = HashSet::new();
    let series = components
        .iter()
        .map(|component| {
            let mut labels = vec![("component".to_owned(), component.name.clone())];
            let own = component
                .labels
                .iter()
                .filter(|(name, _)| name != "component");
            labels.extend(own.cloned());
            labels[1..].sort();
            labels
        })
        .filter(|labels| seen.insert(labels.clone()))
        .map(|labels| SeriesSnapshot {
            labels,
            value: SampleValue::Gauge(1.0),
        });
    FamilySnapshot {
        name: "metricbus_component_info".to_owned(),
        help: "Components that registered their metrics.".to_owned(),
        unit: None,
        kind: crate::MetricKind::Gauge,
        series: series.collect(),
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.rules.end();
        self.mailboxes.close();
        for family in self.families() {
            family.for_each(|series| series.silence());
        }
        for watch in read(&self.watches).iter() {
            watch.close(false);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

//! The children of one family: found by their label text, created, removed, expired, limited.

use std::{
    any::Any,
    hash::BuildHasher,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak},
    time::Duration,
};

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::{
    bus::Inner,
    cell::{Listener, Wakes, wake_all},
    desc::Meta,
    hint::prefetch_read,
    interest::{Interval, TouchState},
    labels::{OVERFLOW_LABEL, push_label},
    series::SeriesCore,
    time::{Stamp, Time},
};

/// A declared name with its children.
pub(crate) struct FamilyCore {
    pub(crate) meta: Arc<Meta>,
    bus: Weak<Inner>,
    hasher: DefaultHashBuilder,
    table: RwLock<Table>,
}

/// Children keep their slot for life, so that a scrape can go over the slots in steps without holding the lock
/// throughout, and sees no child twice.
#[derive(Default)]
struct Table {
    slots: Vec<Option<Arc<SeriesCore>>>,
    free: Vec<u32>,
    index: HashTable<u32>,
    overflow: Option<Arc<SeriesCore>>,
    sweeping: bool,
}

impl Table {
    fn live(&self) -> usize {
        self.index.len() - usize::from(self.overflow.is_some())
    }
}

impl FamilyCore {
    pub(crate) fn new(meta: Arc<Meta>, bus: Weak<Inner>) -> Arc<Self> {
        Arc::new(FamilyCore {
            meta,
            bus,
            hasher: DefaultHashBuilder::default(),
            table: RwLock::default(),
        })
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, table: &Table, hash: u64, text: &str) -> Option<Arc<SeriesCore>> {
        let slot = table.index.find(hash, |&slot| {
            child(table, slot).is_some_and(|c| &*c.text == text)
        })?;
        child(table, *slot).cloned()
    }

    /// The child with these labels, if there is one.
    pub(crate) fn get(&self, text: &str) -> Option<Arc<SeriesCore>> {
        self.find(&self.read(), self.hasher.hash_one(text), text)
    }

    /// The child with these labels, made where there is none; the overflow series where there can be no more.
    pub(crate) fn child(self: &Arc<Self>, text: &str) -> Arc<SeriesCore> {
        let hash = self.hasher.hash_one(text);
        if let Some(found) = self.find(&self.read(), hash, text) {
            return found;
        }
        // Outlives the lock: should this be the last one, the bus ends after it, and looks at this table.
        let bus = self.bus.upgrade();
        let mut wakes = Wakes::new();
        let mut over = Over::No;
        let made = {
            let mut table = self.write();
            match self.find(&table, hash, text) {
                Some(found) => found,
                None if table.live() < self.meta.series_max => {
                    self.insert(&mut table, text, None, bus.as_deref(), &mut wakes)
                }
                None => match &table.overflow {
                    Some(overflow) => {
                        over = Over::Again;
                        overflow.clone()
                    }
                    None => {
                        over = Over::First;
                        let mut text = String::new();
                        push_label(&mut text, OVERFLOW_LABEL, "true");
                        let made = self.insert(&mut table, &text, None, bus.as_deref(), &mut wakes);
                        table.overflow = Some(made.clone());
                        made
                    }
                },
            }
        };
        // Without the lock: whoever listens to the log may count its lines in this very family.
        if over == Over::First {
            tracing::warn!(
                metric = %self.meta.name,
                series_max = self.meta.series_max,
                "metricbus: cardinality limit reached; further label values share one series"
            );
        }
        if let Some(bus) = bus.filter(|_| over != Over::No) {
            bus.stats.overflowed(&self.meta.name);
        }
        wake_all(&mut wakes);
        made
    }

    /// The child with these labels, made where there is none; `initial` then gives it the value that it had before anybody
    /// here could know of it. Without a limit.
    #[cfg(feature = "nats")]
    pub(crate) fn child_from(
        self: &Arc<Self>,
        text: &str,
        initial: &dyn Fn(&SeriesCore),
    ) -> Arc<SeriesCore> {
        let hash = self.hasher.hash_one(text);
        // Outlives the lock, as in `child`.
        let bus = self.bus.upgrade();
        let mut wakes = Wakes::new();
        let made = {
            let mut table = self.write();
            match self.find(&table, hash, text) {
                Some(found) => found,
                None => self.insert(&mut table, text, Some(initial), bus.as_deref(), &mut wakes),
            }
        };
        wake_all(&mut wakes);
        made
    }

    /// Under the lock until every listener whose selector matches is in place: nobody else can mutate the child
    /// before.
    fn insert(
        self: &Arc<Self>,
        table: &mut Table,
        text: &str,
        initial: Option<&dyn Fn(&SeriesCore)>,
        bus: Option<&Inner>,
        wakes: &mut Wakes,
    ) -> Arc<SeriesCore> {
        let series = SeriesCore::new(self.meta.clone(), text);
        if let Some(initial) = initial {
            initial(&series);
        }
        if let Some(idle) = self.meta.expire_after {
            let touch = Touch {
                state: TouchState::new(),
                last: self.meta.clock.now(),
            };
            series.attach(Box::new(touch), wakes);
            if !table.sweeping {
                table.sweeping = true;
                self.sweep_after(idle / 4);
            }
        }
        if let Some(bus) = bus {
            bus.announce(&series, initial.is_none(), wakes);
        }
        let slot = match table.free.pop() {
            Some(slot) => {
                table.slots[slot as usize] = Some(series.clone());
                slot
            }
            None => {
                table.slots.push(Some(series.clone()));
                // A family of 2^32 children would need hundreds of gigabytes.
                (table.slots.len() - 1) as u32
            }
        };
        let hash = self.hasher.hash_one(text);
        let slots = &table.slots;
        table.index.insert_unique(hash, slot, |&slot| {
            let text = slots[slot as usize].as_ref().map_or("", |c| &c.text);
            self.hasher.hash_one(text)
        });
        series
    }

    /// Removes the child with these labels. `false` when there is none.
    pub(crate) fn remove(&self, text: &str) -> bool {
        let hash = self.hasher.hash_one(text);
        let removed = {
            let mut table = self.write();
            let slot = table
                .index
                .find(hash, |&slot| {
                    child(&table, slot).is_some_and(|c| &*c.text == text)
                })
                .copied();
            slot.and_then(|slot| self.take(&mut table, slot))
        };
        let mut wakes = Wakes::new();
        retire(removed.as_slice(), &mut wakes);
        wake_all(&mut wakes);
        removed.is_some()
    }

    /// Removes every child that `doomed` says; how many there were.
    pub(crate) fn remove_where(&self, doomed: impl FnMut(&Arc<SeriesCore>) -> bool) -> usize {
        let mut wakes = Wakes::new();
        let removed = self.take_where(doomed);
        retire(&removed, &mut wakes);
        wake_all(&mut wakes);
        removed.len()
    }

    fn take_where(&self, mut doomed: impl FnMut(&Arc<SeriesCore>) -> bool) -> Vec<Arc<SeriesCore>> {
        let mut removed = Vec::new();
        let mut table = self.write();
        for slot in 0..table.slots.len() as u32 {
            if child(&table, slot).is_some_and(&mut doomed) {
                removed.extend(self.take(&mut table, slot));
            }
        }
        removed
    }

    fn take(&self, table: &mut Table, slot: u32) -> Option<Arc<SeriesCore>> {
        let series = table.slots.get_mut(slot as usize)?.take()?;
        let hash = self.hasher.hash_one(&*series.text);
        if let Ok(entry) = table.index.find_entry(hash, |&s| s == slot) {
            entry.remove();
        }
        table.free.push(slot);
        if table
            .overflow
            .as_ref()
            .is_some_and(|o| Arc::ptr_eq(o, &series))
        {
            table.overflow = None;
        }
        Some(series)
    }

    /// How many children there are, the overflow series included.
    pub(crate) fn len(&self) -> usize {
        self.read().index.len()
    }

    /// Calls `f` with every child, holding the lock for a few hundred at a time, so that nobody who makes a new child
    /// waits for a whole scrape.
    pub(crate) fn for_each(&self, mut f: impl FnMut(&Arc<SeriesCore>)) {
        const STEP: usize = 512;
        let mut from = 0;
        loop {
            let table = self.read();
            let Some(rest) = table.slots.get(from..).filter(|rest| !rest.is_empty()) else {
                return;
            };
            let step = &rest[..rest.len().min(STEP)];
            for (i, slot) in step.iter().enumerate() {
                // Children lie scattered in memory, and so do their texts, which only they lead to. Both are on their way
                // while others are written.
                if let Some(Some(later)) = step.get(i + 8) {
                    prefetch_read(Arc::as_ptr(later));
                    prefetch_read(&raw const later.cell);
                }
                if let Some(Some(soon)) = step.get(i + 4) {
                    prefetch_read(soon.text.as_ptr());
                }
                if let Some(series) = slot {
                    f(series);
                }
            }
            from += STEP;
        }
    }

    pub(crate) fn children(&self) -> Vec<Arc<SeriesCore>> {
        let mut all = Vec::with_capacity(self.len());
        self.for_each(|series| all.push(series.clone()));
        all
    }

    fn sweep_after(self: &Arc<Self>, wait: Duration) {
        let clock = self.meta.clock.clone();
        let family = Arc::downgrade(self);
        clock.at(clock.now() + wait.max(SWEEP_MIN), move || {
            if let Some(family) = family.upgrade() {
                family.sweep();
            }
        });
    }

    /// Removes the children that were idle for too long, and comes again as long as there are any.
    fn sweep(self: &Arc<Self>) {
        let Some(idle) = self.meta.expire_after else {
            return;
        };
        let now = self.meta.clock.now();
        let mut wakes = Wakes::new();
        let mut any = false;
        self.for_each(|series| any |= is_idle(series, now, idle, &mut wakes));
        if any {
            // Looked at once more under the lock: nobody mutates in between and loses it.
            let expired = self.take_where(|series| is_idle(series, now, idle, &mut wakes));
            retire(&expired, &mut wakes);
            if let Some(bus) = self.bus.upgrade() {
                bus.stats.expired(expired.len() as u64);
                // Inline callbacks run in the thread that wakes them, and all buses share the clock's.
                bus.wake_elsewhere(std::mem::take(&mut wakes));
            }
        }
        wake_all(&mut wakes);
        let mut table = self.write();
        table.sweeping = !table.index.is_empty();
        if table.sweeping {
            drop(table);
            self.sweep_after(idle / 4);
        }
    }
}

/// Whether a look-up of new label values came after the cardinality limit.
#[derive(PartialEq, Eq)]
enum Over {
    No,
    First,
    Again,
}

/// Whether a child had no mutation for `idle`. Takes note of one since it was last asked.
fn is_idle(series: &SeriesCore, now: Time, idle: Duration, wakes: &mut Wakes) -> bool {
    let last = series.visit(TOUCH_ID, wakes, |listener, _| {
        let listener: &mut dyn Any = listener;
        let touch = listener.downcast_mut::<Touch>()?;
        if touch.state.take() {
            // Some time since the last sweep; the latest it can have been is now.
            touch.last = now;
        }
        Some(touch.last)
    });
    last.flatten().is_some_and(|last| now.since(last) >= idle)
}

fn retire(removed: &[Arc<SeriesCore>], wakes: &mut Wakes) {
    for series in removed {
        series.retire(wakes);
    }
}

/// No sweep comes more often than this.
const SWEEP_MIN: Duration = Duration::from_millis(10);

/// Of the listener that watches for mutations of a child which can expire. Ids of others start above.
pub(crate) const TOUCH_ID: u64 = 0;

struct Touch {
    state: TouchState,
    last: Time,
}

impl Listener for Touch {
    fn id(&self) -> u64 {
        TOUCH_ID
    }

    fn judge(&mut self, _value: f64, mutated: bool, _stamp: &mut Stamp<'_>) {
        if mutated {
            self.state.step();
        }
    }

    fn quiet(&self) -> Interval {
        self.state.quiet()
    }
}

fn child(table: &Table, slot: u32) -> Option<&Arc<SeriesCore>> {
    table.slots.get(slot as usize)?.as_ref()
}

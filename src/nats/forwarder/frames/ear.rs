//! The ear of a forwarding in one series: hears that it changed, and marks it.
//!
//! Nothing is lost by conflation, for the same reason for which no change is lost to a subscriber of changes: whoever
//! tells a series re-arms its ear first ([`Ear::told`], inside of a visit to the cell), and reads the value with or after
//! that. A mutation is either in what was read, or finds the band closed and marks the series once more.

use std::{
    any::Any,
    sync::{Arc, Weak},
    time::SystemTime,
};

use super::{births::Births, marks::Marks, worth::Worth};
use crate::{
    cell::{Listener, Wakes, wake_all},
    desc::{MetricKind, Numbers},
    interest::{Distance, Interval},
    mirror::{MirrorValue, read_value},
    series::{BucketCells, SeriesCore, is_unmeasured},
    time::Stamp,
};

/// What a forwarding knows of one of its series.
pub(super) struct Member {
    pub(super) core: Weak<SeriesCore>,
    /// When it was made, in nanoseconds since 1970.
    pub(super) born: u64,
}

/// What is left of one that has gone.
#[derive(Clone)]
pub(super) struct Departed {
    pub(super) core: Arc<SeriesCore>,
    pub(super) born: u64,
}

/// What all ears of a forwarding have in common.
pub(super) struct Ears {
    pub(super) id: u64,
    pub(super) deadband: Option<Distance>,
    pub(super) marks: Marks<Member, Departed>,
    pub(super) births: Arc<Births>,
    /// When the forwarder began, in nanoseconds since 1970: what was there before is said to be of then.
    pub(super) boot: u64,
}

impl Ears {
    /// The ear for a series, which it marks at once. `newborn`: it was made just now.
    pub(super) fn ear(self: &Arc<Self>, series: &Arc<SeriesCore>, newborn: bool) -> Box<Ear> {
        let clock = &series.meta.clock;
        let born = if newborn {
            unix_nanos(clock.wall(clock.now())).max(self.boot)
        } else {
            self.boot
        };
        let born = self.births.join(series, born);
        let core = Arc::downgrade(series);
        let number = self.marks.join(Arc::new(Member {
            core: core.clone(),
            born,
        }));
        let buckets = series.buckets.clone();
        if let Some(buckets) = &buckets {
            buckets.begin_sketch();
        }
        let worth = match series.meta.kind {
            MetricKind::Gauge => Worth::level(self.deadband),
            MetricKind::Counter | MetricKind::Histogram => Worth::growth(),
        };
        Box::new(Ear {
            number,
            ears: self.clone(),
            core,
            born,
            buckets,
            worth,
            speaks: false,
        })
    }

    /// Re-arms the ear of a series and reads its value: `None` where there is none, `Err` where there is no ear any more.
    pub(super) fn read(&self, core: &SeriesCore) -> Result<Option<MirrorValue>, Deaf> {
        let mut wakes = Wakes::new();
        let numbers = core.meta.numbers;
        let is_histogram = core.buckets.is_some();
        let read = core.visit_bits(self.id, &mut wakes, |listener, bits| {
            let listener: &mut dyn Any = listener;
            let ear = listener.downcast_mut::<Ear>()?;
            let real = f64::from_bits(bits);
            let value = match numbers {
                _ if is_histogram => None,
                Numbers::Whole => Some(MirrorValue::Whole(bits)),
                Numbers::Amount => Some(MirrorValue::Amount(real)),
                Numbers::Real if is_unmeasured(real) => None,
                Numbers::Real => Some(MirrorValue::Real(real)),
            };
            ear.worth.told(value.is_some().then_some(real));
            value
        });
        wake_all(&mut wakes);
        match read {
            None => Err(Deaf),
            // Its cell does not tell; and who observed before it was re-armed is found in the buckets.
            Some(_) if is_histogram => Ok(read_value(core)),
            Some(value) => Ok(value),
        }
    }
}

/// There is no ear of this forwarding in the series: it was removed, or the forwarding has ended.
#[derive(Debug)]
pub(super) struct Deaf;

pub(super) fn unix_nanos(date: SystemTime) -> u64 {
    let since = date.duration_since(SystemTime::UNIX_EPOCH);
    crate::time::nanos(since.unwrap_or_default())
}

/// In one series.
pub(super) struct Ear {
    number: u32,
    ears: Arc<Ears>,
    core: Weak<SeriesCore>,
    born: u64,
    /// Of a histogram: the sketch is kept as long as it is forwarded.
    buckets: Option<Arc<BucketCells>>,
    worth: Worth,
    speaks: bool,
}

impl Listener for Ear {
    fn id(&self) -> u64 {
        self.ears.id
    }

    fn judge(&mut self, value: f64, mutated: bool, _stamp: &mut Stamp<'_>) {
        self.speaks |= self.worth.step(value, mutated);
    }

    fn quiet(&self) -> Interval {
        self.worth.quiet()
    }

    fn speak(&mut self, _wakes: &mut Wakes) {
        if std::mem::take(&mut self.speaks) {
            self.ears.marks.mark(self.number);
        }
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        if let Some(buckets) = &self.buckets {
            buckets.end_sketch();
        }
        self.ears.births.leave(&self.core);
        let born = self.born;
        let departed = self.core.upgrade().map(|core| Departed { core, born });
        self.ears.marks.leave(self.number, departed);
    }
}

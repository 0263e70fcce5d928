//! The file in which rules keep their state: reading it at the start, and writing it when something was told and every
//! few seconds.
//!
//! The file is JSON, for people and for later versions to read. It is written beside its place, synced, and moved there,
//! so a crash leaves the one before. Times in it are dates; `saved_at` tells how long the process was down.

use std::{
    collections::HashMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value, json};

use super::{
    engine::{Inherited, Memory, Recalled},
    machine::Phase,
    store::{Kept, KeptMemory, KeptPhase, Restored},
};
use crate::{
    bus::{Inner, MetricBus},
    dispatch::PoolHandle,
    error::RuleStateError,
    stats::{bump, next_id},
    time::{Time, nanos},
};

const VERSION: u64 = 1;

/// Where rules keep their state across restarts, and how they go on from it.
///
/// ```
/// use std::time::Duration;
/// use metricbus::{MetricBus, RuleStateFile};
///
/// # let folder = std::env::temp_dir().join(format!("metricbus-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// # let path = folder.join("rules.json");
/// let bus = MetricBus::new();
/// bus.keep_rule_state(RuleStateFile::new(path).outage_tolerance(Duration::from_secs(600)))?;
/// // Now add the rules.
/// # drop(bus);
/// # std::fs::remove_dir_all(folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct RuleStateFile {
    path: PathBuf,
    outage_tolerance: Duration,
    grace_period: Duration,
    every: Duration,
}

/// As Prometheus has them: `--rules.alert.for-outage-tolerance` and `--rules.alert.for-grace-period`.
const OUTAGE_TOLERANCE: Duration = Duration::from_secs(3600);
const GRACE_PERIOD: Duration = Duration::from_secs(600);
/// How often it is written when nothing is told: what is pending is known to within this.
const EVERY: Duration = Duration::from_secs(5);

impl RuleStateFile {
    /// A file at `path`; its folder must exist. One process at a time.
    pub fn new(path: impl Into<PathBuf>) -> RuleStateFile {
        RuleStateFile {
            path: path.into(),
            outage_tolerance: OUTAGE_TOLERANCE,
            grace_period: GRACE_PERIOD,
            every: EVERY,
        }
    }

    /// After a longer outage all rules begin anew: an hour unless told otherwise.
    pub fn outage_tolerance(mut self, tolerance: Duration) -> RuleStateFile {
        self.outage_tolerance = tolerance;
        self
    }

    /// How long what was firing waits to be known again before it is resolved, and the least that is left of a hold after
    /// a restart: 10 minutes unless told otherwise. A pending of a rule whose hold is shorter than this begins anew.
    pub fn grace_period(mut self, period: Duration) -> RuleStateFile {
        self.grace_period = period;
        self
    }

    /// How often the file is written when nothing is told: every 5 seconds unless told otherwise, and at least 100 ms
    /// apart.
    pub fn every(mut self, period: Duration) -> RuleStateFile {
        self.every = period.max(Duration::from_millis(100));
        self
    }
}

impl MetricBus {
    /// Keeps the state of rules in a file, and lets rules that are added from now on go on from what it says: what was
    /// firing before the restart goes on firing without a word, and is resolved if it does not hold any more; what was
    /// pending goes on with its hold, to which the outage does not count. Epochs go on. So does what decides on the next
    /// value: a series between the two bounds of a threshold is on the side where it was, at the level that it had, slots of
    /// M of N go on from the last one, and what has to move by a delta is compared with the value last told. That holds
    /// for the same condition, and for series that have a value within the grace period. Windows and moving averages begin
    /// anew.
    ///
    /// A subscriber that comes later still hears what is firing, as [`Initial`](crate::AlertCause::Initial) and with the
    /// epoch it was told with before the restart; `initial(false)` leaves that out.
    ///
    /// Writing never holds up a mutation. When it fails that is counted (`metricbus_rule_state_errors_total`), logged, and
    /// tried again. No file yet is no error.
    ///
    /// # Errors
    ///
    /// When the file can't be read, is not one of these, its folder can't be written to, or rules were added already.
    /// Nothing is changed, then.
    pub fn keep_rule_state(&self, file: RuleStateFile) -> Result<(), RuleStateError> {
        let inner = self.inner();
        let restored = read(&file, inner.clock.wall(inner.clock.now()))?;
        probe(&file.path).map_err(|error| RuleStateError::Write {
            path: file.path.clone(),
            why: error.to_string(),
        })?;
        {
            let mut table = inner.rules.table();
            if let Some(name) = table.rules.keys().next() {
                return Err(RuleStateError::Late { rule: name.clone() });
            }
            table.restored = restored;
        }
        let keeper = Arc::new(Keeper {
            bus: Arc::downgrade(inner),
            pool: inner.pool.handle(),
            file,
            queued: AtomicBool::new(false),
            looks: AtomicU64::new(0),
            written: Mutex::default(),
        });
        inner.pool.start();
        let told = keeper.clone();
        inner.rules.changed.set(Arc::new(move || told.write_soon()));
        keeper.write_every();
        *inner
            .rules
            .keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(keeper);
        Ok(())
    }

    /// Writes the state of rules now, and waits for it: at shutdown, say.
    ///
    /// # Errors
    ///
    /// When the file can't be written, or [`keep_rule_state`](MetricBus::keep_rule_state) was never called.
    pub fn save_rule_state(&self) -> Result<(), RuleStateError> {
        let keeper = self
            .inner()
            .rules
            .keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let keeper = keeper.ok_or(RuleStateError::NoFile)?;
        keeper.write(keeper.look(self.inner()))
    }
}

pub(crate) struct Keeper {
    bus: Weak<Inner>,
    pool: PoolHandle,
    file: RuleStateFile,
    /// A write is on its way, and has not looked yet.
    queued: AtomicBool,
    /// Counts the looks.
    looks: AtomicU64,
    written: Mutex<Written>,
}

#[derive(Default)]
struct Written {
    /// Of which look.
    look: u64,
    /// The bus is gone, and the file may be another's.
    closed: bool,
}

impl Keeper {
    /// On the dispatcher: whoever calls may hold a rule's lock. So it does not take hold of the bus either: the bus would
    /// end here, should it be the last to let go, and its end takes that lock.
    fn write_soon(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let keeper = self.clone();
        self.pool.spawn(async move {
            let Some(bus) = keeper.bus.upgrade() else {
                return;
            };
            let (look, stats) = (keeper.look(&bus), bus.stats.clone());
            // Should it be the last that holds the bus, there is nothing more to write.
            drop(bus);
            if let Err(error) = keeper.write(look) {
                bump(&stats.rule_state_errors);
                tracing::warn!(%error, "metricbus: the state of rules was not saved");
            }
        });
    }

    fn write_every(self: &Arc<Self>) {
        let Some(bus) = self.bus.upgrade() else {
            return;
        };
        let keeper = Arc::downgrade(self);
        bus.clock.at(bus.clock.now() + self.file.every, move || {
            if let Some(keeper) = keeper.upgrade() {
                keeper.write_soon();
                keeper.write_every();
            }
        });
    }

    /// The state now, and which look this was.
    fn look(&self, bus: &Inner) -> (u64, String) {
        // Before looking: what is told from here on asks for another write.
        self.queued.store(false, Ordering::SeqCst);
        let look = self.looks.fetch_add(1, Ordering::SeqCst) + 1;
        (look, self.text(bus))
    }

    fn write(&self, (look, text): (u64, String)) -> Result<(), RuleStateError> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.closed || look < written.look {
            return Ok(());
        }
        written.look = look;
        let path = &self.file.path;
        replace(path, text.as_bytes()).map_err(|error| RuleStateError::Write {
            path: path.clone(),
            why: error.to_string(),
        })
    }

    /// Writes no more, and waits for a write that is on its way.
    pub(crate) fn close(&self) {
        self.written
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .closed = true;
    }

    fn text(&self, bus: &Inner) -> String {
        let now = bus.clock.now();
        let mut rules = Map::new();
        let waiting: Vec<_> = {
            // Rules that have not been added again yet.
            let table = bus.rules.table();
            let waiting = table.restored.iter();
            waiting
                .map(|(name, restored)| (name.clone(), restored.to_json()))
                .collect()
        };
        rules.extend(waiting);
        for slot in bus.rules.all() {
            let engine = slot.engine();
            let (view, rule) = (engine.view(), engine.rule());
            let groups: Vec<_> = view
                .active
                .iter()
                .map(|group| kept(&group.key, &group.kept, rule.hold, now).to_json())
                .collect();
            let epochs: Map<_, _> = engine
                .epochs()
                .into_iter()
                .map(|(key, epoch)| (key, epoch.into()))
                .collect();
            let name = slot.log.name.to_string();
            let memory = KeptMemory::of(&rule, engine.memory());
            let mut kept = json!({ "groups": groups, "epochs": epochs });
            memory.add_to(&mut kept);
            rules.insert(name, kept);
        }
        let saved_at = bus.clock.wall(now);
        let state = json!({
            "metricbus_rule_state": VERSION,
            "saved_at_unix_ns": unix_ns(saved_at),
            "rules": rules,
        });
        // Without floats or keys that are not text it cannot fail.
        serde_json::to_string_pretty(&state).unwrap_or_default()
    }
}

fn kept(key: &str, was: &Inherited, hold: Duration, now: Time) -> Kept {
    let phase = |phase: Phase| match phase {
        Phase::Inactive => KeptPhase::Inactive,
        Phase::Pending { since } => KeptPhase::Pending(now.since(since)),
        Phase::Restored { due, .. } => KeptPhase::Pending(hold.saturating_sub(due.since(now))),
        Phase::Firing { since } | Phase::Clearing { since, .. } => {
            KeptPhase::Firing(now.since(since) + was.origin)
        }
    };
    Kept {
        key: key.into(),
        labels: was.labels.to_vec(),
        epoch: was.epoch,
        level: was.level.clone(),
        phases: was
            .phases
            .iter()
            .map(|(level, p)| (level.clone(), phase(*p)))
            .collect(),
    }
}

fn unix_ns(date: SystemTime) -> u64 {
    let since = date.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, nanos)
}

impl Restored {
    fn to_json(&self) -> Value {
        let groups: Vec<_> = self.groups.iter().map(Kept::to_json).collect();
        let epochs: Map<_, _> = self
            .epochs
            .iter()
            .map(|(key, epoch)| (key.to_string(), (*epoch).into()))
            .collect();
        let mut kept = json!({ "groups": groups, "epochs": epochs });
        self.memory.add_to(&mut kept);
        kept
    }
}

impl KeptMemory {
    /// Under a key of its own, which builds that know none pass over.
    fn add_to(&self, rule: &mut Value) {
        if self.is_empty() {
            return;
        }
        let leaf = |leaf: &Option<Recalled>| match leaf {
            None => Value::Null,
            Some(Recalled::Raised) => json!({ "raised": true }),
            // As text, to the last bit, and for infinities.
            Some(Recalled::Reference(value)) => json!({ "reference": value.to_string() }),
        };
        let leaves = self.memory.leaves.iter();
        let leaves: Map<_, _> = leaves
            .map(|(key, leaves)| (key.to_string(), leaves.iter().map(leaf).collect()))
            .collect();
        let slots = self.memory.slots.iter();
        let slots: Map<_, _> = slots
            .map(|(key, bits)| (key.to_string(), json!(bits)))
            .collect();
        rule["memory"] = json!({
            "conditions": self.conditions,
            "leaves": leaves,
            "slot_ns": nanos(self.slot),
            "slots": slots,
        });
    }

    fn of_json(value: &Value) -> Result<KeptMemory, String> {
        let leaf = |leaf: &Value| {
            if leaf.is_null() {
                return Ok(None);
            }
            if leaf.get("raised").and_then(Value::as_bool) == Some(true) {
                return Ok(Some(Recalled::Raised));
            }
            let reference = field(leaf, "reference", Value::as_str)?;
            let value = reference.parse();
            let value = value.map_err(|_| format!("reference {reference:?} is no number"))?;
            Ok(Some(Recalled::Reference(value)))
        };
        let list = |value: &Value| value.as_array().cloned();
        let mut memory = Memory::default();
        for (key, leaves) in field(value, "leaves", Value::as_object)? {
            let leaves =
                list(leaves).ok_or_else(|| format!("the leaves of {key:?} are no list"))?;
            let leaves: Result<_, String> = leaves.iter().map(leaf).collect();
            memory.leaves.insert(key.as_str().into(), leaves?);
        }
        for (key, bits) in field(value, "slots", Value::as_object)? {
            let bits = list(bits).unwrap_or_default();
            let bits: Option<_> = bits.iter().map(Value::as_u64).collect();
            let bits = bits.ok_or_else(|| format!("the slots of {key:?} are no numbers"))?;
            memory.slots.insert(key.as_str().into(), bits);
        }
        let conditions = field(value, "conditions", Value::as_array)?.iter();
        let conditions: Option<_> = conditions.map(|c| c.as_str().map(str::to_owned)).collect();
        Ok(KeptMemory {
            conditions: conditions.ok_or("conditions are not text")?,
            slot: Duration::from_nanos(field(value, "slot_ns", Value::as_u64)?),
            memory,
        })
    }
}

impl Kept {
    fn to_json(&self) -> Value {
        let phases: Vec<_> = self
            .phases
            .iter()
            .map(|(level, phase)| {
                let (state, held) = match phase {
                    KeptPhase::Inactive => ("inactive", Duration::ZERO),
                    KeptPhase::Pending(held) => ("pending", *held),
                    KeptPhase::Firing(held) => ("firing", *held),
                };
                json!({ "level": level, "state": state, "held_ns": nanos(held) })
            })
            .collect();
        json!({
            "key": self.key,
            "labels": self.labels,
            "epoch": self.epoch,
            "firing": self.level.is_some(),
            "level": self.level.clone().flatten(),
            "phases": phases,
        })
    }

    fn of_json(value: &Value) -> Result<Kept, String> {
        let pair = |pair: &Value| {
            let [name, value] = pair.as_array()?.as_slice() else {
                return None;
            };
            Some((name.as_str()?.to_owned(), value.as_str()?.to_owned()))
        };
        let labels = field(value, "labels", Value::as_array)?.iter().map(pair);
        let labels: Option<_> = labels.collect();
        let firing = field(value, "firing", Value::as_bool)?;
        let phases = field(value, "phases", Value::as_array)?
            .iter()
            .map(|phase| {
                let held = Duration::from_nanos(field(phase, "held_ns", Value::as_u64)?);
                let state = match field(phase, "state", Value::as_str)? {
                    "inactive" => KeptPhase::Inactive,
                    "pending" => KeptPhase::Pending(held),
                    "firing" => KeptPhase::Firing(held),
                    other => {
                        return Err(format!(
                            "state is {other:?}; inactive, pending or firing would be right"
                        ));
                    }
                };
                Ok((level(phase)?, state))
            });
        Ok(Kept {
            key: field(value, "key", Value::as_str)?.into(),
            labels: labels.ok_or("labels are not pairs of text")?,
            epoch: field(value, "epoch", Value::as_u64)?,
            level: firing.then(|| level(value)).transpose()?,
            phases: phases.collect::<Result<_, String>>()?,
        })
    }
}

fn level(value: &Value) -> Result<Option<String>, String> {
    match value.get("level") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(level)) => Ok(Some(level.clone())),
        Some(other) => Err(format!("level is {other}; text or null would be right")),
    }
}

fn field<'a, T>(
    value: &'a Value,
    name: &str,
    read: impl FnOnce(&'a Value) -> Option<T>,
) -> Result<T, String> {
    let found = value
        .get(name)
        .ok_or_else(|| format!("there is no {name:?}"))?;
    read(found).ok_or_else(|| format!("{name:?} is {found}, which it cannot be"))
}

/// What the file says, by rule. Nothing where there is none, or where the outage was too long.
fn read(
    file: &RuleStateFile,
    now: SystemTime,
) -> Result<HashMap<String, Restored>, RuleStateError> {
    let path = &file.path;
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashMap::new()),
        Err(error) => {
            return Err(RuleStateError::Read {
                path: path.clone(),
                why: error.to_string(),
            });
        }
    };
    let wrong = |why: String| RuleStateError::Corrupt {
        path: path.clone(),
        why,
    };
    let state: Value = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let version = field(&state, "metricbus_rule_state", Value::as_u64).map_err(wrong)?;
    if version != VERSION {
        return Err(wrong(format!(
            "it is of version {version}, and this program reads version {VERSION}"
        )));
    }
    let saved_at = field(&state, "saved_at_unix_ns", Value::as_u64).map_err(wrong)?;
    let down = Duration::from_nanos(unix_ns(now).saturating_sub(saved_at));
    let forgotten = down > file.outage_tolerance;
    if forgotten {
        tracing::warn!(
            ?down,
            "metricbus: rules begin anew: the outage was longer than {:?}",
            file.outage_tolerance
        );
    }
    let mut rules = HashMap::new();
    for (name, rule) in field(&state, "rules", Value::as_object).map_err(wrong)? {
        let of_rule = |why: String| wrong(format!("rule {name:?}: {why}"));
        let groups = field(rule, "groups", Value::as_array).map_err(of_rule)?;
        let groups: Result<Vec<_>, _> = groups.iter().map(Kept::of_json).collect();
        let mut groups = groups.map_err(of_rule)?;
        let mut epochs = HashMap::new();
        for (key, epoch) in field(rule, "epochs", Value::as_object).map_err(of_rule)? {
            let epoch = epoch.as_u64();
            let epoch =
                epoch.ok_or_else(|| of_rule(format!("the epoch of {key:?} is no number")))?;
            epochs.insert(key.as_str().into(), epoch);
        }
        let memory = rule.get("memory").map(KeptMemory::of_json);
        let mut memory = memory.transpose().map_err(of_rule)?.unwrap_or_default();
        if forgotten {
            epochs.extend(groups.drain(..).map(|group| (group.key, group.epoch)));
            memory = KeptMemory::default();
        }
        let restored = Restored {
            groups,
            epochs,
            memory,
            grace_period: file.grace_period,
            down,
        };
        rules.insert(name.clone(), restored);
    }
    Ok(rules)
}

/// Whether a file can be written beside this one.
fn probe(path: &Path) -> io::Result<()> {
    let beside = beside(path);
    drop(fs::File::create(&beside)?);
    fs::remove_file(&beside)
}

/// A name of its own: the process before may be in the middle of its last write.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{}.new", std::process::id(), next_id()));
    path.with_file_name(name)
}

/// Puts `bytes` in the place of a file, whole or not at all.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = beside(path);
    let write = || {
        let mut file = fs::File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&beside)))
}

//! Whose a rule is: what the keys of a bucket say, what of it is in force on the bus, and what was refused and why. No
//! network, no waiting.
//!
//! A rule that the program has added itself is never touched. Of several keys about a rule of one name the one that is
//! most closely about this source is in force; the others wait for their turn.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Weak,
    time::{Duration, Instant},
};

use async_nats::datetime::DateTime;

use crate::{
    LiveRule, Rule, SourceId,
    bus::{Inner, MetricBus},
    error::RuleError,
    nats::{
        subject::up_to,
        wire::{
            limits::RULE_MAX,
            rule::{RuleKey, decode_rule, read_rule_key},
        },
    },
};

/// Rules that a bucket may give to one source.
const RULES_MAX: usize = 1_000;

/// Keys that are refused and remembered.
const REFUSED_MAX: usize = 1_000;

/// How long a rule from a bucket that is no more goes on without being in the one that is there. Whoever sent it sees what is
/// missing, and writes it again, within a fraction of that.
pub(super) const ORPHANED: Duration = Duration::from_secs(300);

/// Bytes of a reason.
const WHY_MAX: usize = 500;

/// A key of a bucket that gives no rule, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RefusedRule {
    /// The key.
    pub key: String,
    /// What is wrong, and what would be right.
    pub why: String,
}

/// Which bucket, by when it was made: one that is deleted and made again under the same name is another one.
pub(super) type Bucket = DateTime;

/// What came of a key's value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is not about this source, or nothing has changed.
    Nothing,
    /// Its rule is in force from here on.
    InForce,
    /// It is not, and why.
    Refused(RefusedRule),
}

/// What was told of the rules of a source, and what came of it.
pub(super) struct Book {
    bus: Weak<Inner>,
    source: SourceId,
    /// By key; only those about this source.
    entries: BTreeMap<String, Entry>,
    /// Rules of ours on the bus, by name.
    ours: HashMap<String, Ours>,
}

/// Of which bucket, and which revision of the key.
type Version = (Bucket, u64);

struct Entry {
    name: String,
    closeness: u8,
    version: Version,
    /// `Err`: why it can't be.
    rule: Result<Rule, String>,
    /// Why it is not in force, where it could be.
    waits: Option<String>,
    /// Since when it is known that another bucket is there, which does not have it.
    orphan: Option<Instant>,
}

struct Ours {
    /// That gave it, and in which version.
    key: String,
    version: Version,
    live: LiveRule,
}

impl Book {
    pub(super) fn new(bus: Weak<Inner>, source: SourceId) -> Book {
        Book {
            bus,
            source,
            entries: BTreeMap::new(),
            ours: HashMap::new(),
        }
    }

    /// Whether a key is about this source.
    pub(super) fn covers(&self, key: &str) -> bool {
        read_rule_key(key).is_ok_and(|key| self.closeness(&key).is_some())
    }

    /// A key has a value.
    pub(super) fn put(
        &mut self,
        key: &str,
        revision: u64,
        bucket: Bucket,
        value: &[u8],
    ) -> Outcome {
        // What can't be read is of another program, or of another version.
        let Ok(read) = read_rule_key(key) else {
            return Outcome::Nothing;
        };
        let Some(closeness) = self.closeness(&read) else {
            return Outcome::Nothing;
        };
        let name = read.rule.clone();
        let force = |book: &Self| {
            let ours = book.ours.get(&name).filter(|ours| ours.key == key);
            ours.map(|ours| ours.version)
        };
        let (force_before, why_before) = (force(self), self.why_not(key));
        let version = (bucket, revision);
        let is_new = self.entries.get(key).is_none_or(|e| e.version != version);
        if let Err(refused) = self.enter(key, read, closeness, version, value) {
            return Outcome::Refused(refused);
        }
        self.settle(&name);
        let force_now = force(self);
        match self.why_not(key) {
            Some(why) if is_new || why_before.as_ref() != Some(&why) => {
                let key = key.to_owned();
                Outcome::Refused(RefusedRule { key, why })
            }
            None if force_now.is_some() && force_now != force_before => Outcome::InForce,
            _ => Outcome::Nothing,
        }
    }

    /// Writes down what a key says; `Err`: there is no room even to remember that it is wrong.
    fn enter(
        &mut self,
        key: &str,
        read: RuleKey,
        closeness: u8,
        version: Version,
        value: &[u8],
    ) -> Result<(), RefusedRule> {
        let before = self.entries.get(key);
        // Told again. Where there was no room, there may be by now.
        if before.is_some_and(|e| e.version == version && !e.had_no_room()) {
            if let Some(entry) = self.entries.get_mut(key) {
                entry.orphan = None;
            }
            return Ok(());
        }
        let was_there = before.is_some();
        let others = || self.entries.iter().filter(|(k, _)| **k != key);
        let good = others().filter(|(_, e)| e.rule.is_ok()).count();
        let wrong = others().count() - good;
        let rule = read_rule(&read, value).and_then(|rule| {
            let full = || {
                format!(
                    "{NO_ROOM}: there are {RULES_MAX} rules for this source already; delete some"
                )
            };
            (good < RULES_MAX).then_some(rule).ok_or_else(full)
        });
        let rule = rule.map_err(short);
        if let Err(why) = &rule
            && !was_there
            && wrong >= REFUSED_MAX
        {
            return Err(RefusedRule {
                key: key.to_owned(),
                why: why.clone(),
            });
        }
        let entry = Entry {
            name: read.rule,
            closeness,
            version,
            rule,
            waits: None,
            orphan: None,
        };
        self.entries.insert(key.to_owned(), entry);
        Ok(())
    }

    fn why_not(&self, key: &str) -> Option<String> {
        self.entries.get(key).and_then(Entry::why_not)
    }

    /// A key was deleted. `true`: a rule has ended with it, or given way to another.
    pub(super) fn delete(&mut self, key: &str) -> bool {
        let Some(entry) = self.entries.remove(key) else {
            return false;
        };
        let was_in_force = self.ours.get(&entry.name).is_some_and(|o| o.key == key);
        self.settle(&entry.name);
        was_in_force
    }

    /// These are all keys that there are in a bucket: whatever else was from that bucket was deleted. What was from another
    /// goes on for [`ORPHANED`]: that one has vanished, and whoever sent it may write it again. How many have ended.
    pub(super) fn only(&mut self, bucket: Bucket, keys: &HashSet<String>, now: Instant) -> usize {
        let mut deleted = Vec::new();
        for (key, entry) in &mut self.entries {
            if keys.contains(key) {
                continue;
            }
            if entry.version.0 == bucket {
                deleted.push(key.clone());
            } else {
                entry.orphan.get_or_insert(now);
            }
        }
        self.delete_all(&deleted)
    }

    /// Ends what has been missing for [`ORPHANED`] from the bucket that is there. How many.
    pub(super) fn expire(&mut self, now: Instant) -> usize {
        let is_over = |since: Instant| now.saturating_duration_since(since) >= ORPHANED;
        let over = |(_, entry): &(&String, &Entry)| entry.orphan.is_some_and(is_over);
        let keys: Vec<_> = self
            .entries
            .iter()
            .filter(over)
            .map(|(key, _)| key.clone())
            .collect();
        self.delete_all(&keys)
    }

    fn delete_all(&mut self, keys: &[String]) -> usize {
        keys.iter().filter(|key| self.delete(key)).count()
    }

    /// How many rules are in force.
    pub(super) fn in_force(&self) -> usize {
        self.ours.len()
    }

    /// Why each key that is not in force is not.
    pub(super) fn refused(&self) -> Vec<RefusedRule> {
        let refused = self.entries.iter().filter_map(|(key, entry)| {
            let (key, why) = (key.clone(), entry.why_not()?);
            Some(RefusedRule { key, why })
        });
        refused.collect()
    }

    /// How closely a key is about this source: a named component outweighs a named namespace. `None`: not at all.
    fn closeness(&self, key: &RuleKey) -> Option<u8> {
        let part = |named: &Option<String>, ours: &str, weight| match named {
            None => Some(0),
            Some(named) => (named == ours).then_some(weight),
        };
        Some(
            part(&key.component, &self.source.component, 2)?
                + part(&key.namespace, &self.source.namespace, 1)?,
        )
    }

    /// Sees to it that of the rules of a name the one is in force that should be.
    fn settle(&mut self, name: &str) {
        let of_name = || self.entries.iter().filter(|(_, e)| e.name == name);
        let ours = self.ours.get(name).map(|ours| ours.key.clone());
        // A value that can't be read does not end what its key gave before.
        let is_broken = |key: &String| self.entries.get(key).is_some_and(|e| e.rule.is_err());
        let best = match &ours {
            Some(ours) if is_broken(ours) => None,
            _ => of_name()
                .filter(|(_, entry)| entry.rule.is_ok())
                .max_by_key(|(_, entry)| entry.closeness)
                .map(|(key, _)| key.clone()),
        };
        let keys: Vec<_> = of_name().map(|(key, _)| key.clone()).collect();
        let refused = match (&best, &ours) {
            (Some(best), _) => self.apply(name, best).err(),
            (None, Some(ours)) if self.entries.contains_key(ours) => None,
            (None, _) => {
                if let Some(ours) = self.ours.remove(name) {
                    ours.live.remove();
                }
                None
            }
        };
        let force = self.ours.get(name).map(|ours| ours.key.clone());
        for key in keys {
            let waits = match &force {
                _ if refused.is_some() && best.as_ref() == Some(&key) => refused.clone(),
                Some(force) if *force != key => Some(format!(
                    "{force} is in force, which is more closely about this source"
                )),
                _ => None,
            };
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.waits = waits;
            }
        }
    }

    /// Puts the rule of a key in force.
    fn apply(&mut self, name: &str, key: &str) -> Result<(), String> {
        let Some(entry) = self.entries.get(key) else {
            return Ok(());
        };
        let Ok(rule) = entry.rule.clone() else {
            return Ok(());
        };
        let version = entry.version;
        let Some(bus) = self.bus.upgrade().map(MetricBus::of) else {
            return Ok(());
        };
        if let Some(ours) = self.ours.get_mut(name) {
            if ours.key == key && ours.version == version && bus.rule(name).is_some() {
                return Ok(());
            }
            match ours.live.update(rule.clone()) {
                Ok(()) => {
                    (ours.key, ours.version) = (key.to_owned(), version);
                    return Ok(());
                }
                // The program has ended it; so it is not there to be changed.
                Err(RuleError::Removed { .. }) => {
                    self.ours.remove(name);
                }
                Err(error) => {
                    return Err(short(format!("{error}; the rule before it goes on")));
                }
            }
        }
        match bus.add_rule(rule) {
            Ok(live) => {
                let key = key.to_owned();
                let ours = Ours {
                    key,
                    version,
                    live,
                };
                self.ours.insert(name.to_owned(), ours);
                Ok(())
            }
            Err(RuleError::Exists { .. }) => Err(
                "the program has a rule of this name itself, which goes before: give this one another name"
                    .to_owned(),
            ),
            Err(error) => Err(short(error.to_string())),
        }
    }
}

const NO_ROOM: &str = "no room";

impl Entry {
    fn had_no_room(&self) -> bool {
        matches!(&self.rule, Err(why) if why.starts_with(NO_ROOM))
    }

    fn why_not(&self) -> Option<String> {
        match &self.rule {
            Err(why) => Some(why.clone()),
            Ok(_) => self.waits.clone(),
        }
    }
}

fn read_rule(key: &RuleKey, value: &[u8]) -> Result<Rule, String> {
    if value.len() > RULE_MAX {
        let bytes = value.len();
        return Err(format!(
            "a rule of {bytes} bytes is too large: at most {RULE_MAX}"
        ));
    }
    let text = std::str::from_utf8(value).map_err(|_| "it is not UTF-8".to_owned())?;
    let rule = decode_rule(text).map_err(|error| error.to_string())?;
    if rule.name() != key.rule {
        return Err(format!(
            "its key is about rule {:?} and its value is rule {:?}: both have to be the same",
            key.rule,
            rule.name()
        ));
    }
    Ok(rule)
}

fn short(why: String) -> String {
    match why.len() {
        ..=WHY_MAX => why,
        _ => format!("{}…", up_to(&why, WHY_MAX)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_nats::datetime;

    use super::*;
    use crate::{Clock, Condition, Threshold, nats::wire::rule::encode_rule};

    struct Bench {
        bus: MetricBus,
        book: Book,
        bucket: Bucket,
        revision: u64,
        now: Instant,
    }

    fn bench() -> Bench {
        let bus = MetricBus::builder().clock(Clock::manual()).build();
        let source = SourceId::new("prod", "decode", "pod-7");
        Bench {
            book: Book::new(Arc::downgrade(bus.inner()), source),
            bus,
            bucket: bucket(1),
            revision: 0,
            now: Instant::now(),
        }
    }

    fn bucket(made: i128) -> Bucket {
        datetime::from_nanos(made).unwrap()
    }

    fn rule(name: &str, above: f64) -> Rule {
        Rule::new(name, Condition::when("g", Threshold::above(above)))
    }

    impl Bench {
        fn put(&mut self, key: &str, above: f64) -> Outcome {
            let name = key.rsplit('.').next().unwrap();
            let json = encode_rule(&rule(name, above)).unwrap();
            self.put_text(key, &json)
        }

        fn put_text(&mut self, key: &str, text: &str) -> Outcome {
            self.revision += 1;
            self.book
                .put(key, self.revision, self.bucket, text.as_bytes())
        }

        /// The bound of the rule of this name that is on the bus.
        fn bound(&self, name: &str) -> Option<f64> {
            let rule = self.bus.rule(name)?;
            Some(rule.status().thresholds[0].raise)
        }

        fn only(&mut self, keys: &[&str]) -> usize {
            let keys = keys.iter().map(|key| (*key).to_owned()).collect();
            self.book.only(self.bucket, &keys, self.now)
        }
    }

    fn refused(outcome: Outcome) -> String {
        match outcome {
            Outcome::Refused(refused) => refused.why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_key_about_this_source_puts_its_rule_in_force_changes_it_and_ends_it() {
        let mut bench = bench();
        let key = "prod.decode.r";
        assert_eq!(bench.put(key, 1.0), Outcome::InForce);
        assert_eq!(bench.bound("r"), Some(1.0));
        assert_eq!(bench.put(key, 2.0), Outcome::InForce);
        assert_eq!(bench.bound("r"), Some(2.0));
        assert_eq!(bench.book.in_force(), 1);
        assert!(bench.book.delete(key));
        assert!(!bench.book.delete(key));
        assert_eq!(bench.bound("r"), None);
        assert_eq!(bench.book.in_force(), 0);
    }

    #[test]
    fn a_key_about_others_or_of_another_program_says_nothing() {
        let mut bench = bench();
        for key in [
            "prod.prefill.r",
            "dev.decode.r",
            "=all.prefill.r",
            "r",
            "a.b.c.d",
            "prod.=2g.r",
        ] {
            assert_eq!(bench.put(key, 1.0), Outcome::Nothing, "{key}");
            assert!(!bench.book.covers(key));
        }
        assert!(bench.bus.rules().is_empty());
        assert!(bench.book.refused().is_empty());
    }

    #[test]
    fn a_rule_of_the_program_is_not_touched_and_the_key_has_its_turn_when_that_has_ended() {
        let mut bench = bench();
        bench.bus.add_rule(rule("r", 9.0)).unwrap();
        let why = refused(bench.put("prod.decode.r", 1.0));
        assert!(why.contains("the program has a rule of this name"), "{why}");
        assert_eq!(bench.bound("r"), Some(9.0));
        assert_eq!(bench.book.refused().len(), 1);
        assert!(!bench.book.delete("prod.decode.r"));
        assert_eq!(bench.bound("r"), Some(9.0));
        refused(bench.put("prod.decode.r", 1.0));
        bench.bus.remove_rule("r");
        // When the bucket is read again.
        let json = encode_rule(&rule("r", 1.0)).unwrap();
        let (revision, bucket) = (bench.revision, bench.bucket);
        let again = bench
            .book
            .put("prod.decode.r", revision, bucket, json.as_bytes());
        assert_eq!(again, Outcome::InForce);
        assert_eq!(bench.bound("r"), Some(1.0));
    }

    #[test]
    fn a_rule_that_the_program_has_taken_over_is_not_ours_any_more() {
        let mut bench = bench();
        bench.put("prod.decode.r", 1.0);
        bench.bus.remove_rule("r");
        bench.bus.add_rule(rule("r", 9.0)).unwrap();
        refused(bench.put("prod.decode.r", 2.0));
        bench.book.delete("prod.decode.r");
        assert_eq!(bench.bound("r"), Some(9.0));
    }

    #[test]
    fn of_several_keys_about_a_name_the_closest_is_in_force() {
        let mut bench = bench();
        assert_eq!(bench.put("=all.=all.r", 1.0), Outcome::InForce);
        assert_eq!(bench.put("=all.decode.r", 3.0), Outcome::InForce);
        let why = refused(bench.put("prod.=all.r", 2.0));
        assert!(why.contains("=all.decode.r"), "{why}");
        assert_eq!(bench.bound("r"), Some(3.0));
        assert_eq!(bench.put("prod.decode.r", 4.0), Outcome::InForce);
        assert_eq!(bench.bound("r"), Some(4.0));
        assert_eq!(bench.book.refused().len(), 3);
        bench.book.delete("=all.decode.r");
        assert_eq!(bench.bound("r"), Some(4.0));
        bench.book.delete("prod.decode.r");
        assert_eq!(bench.bound("r"), Some(2.0));
        bench.book.delete("prod.=all.r");
        assert_eq!(bench.bound("r"), Some(1.0));
        assert_eq!(bench.book.refused(), []);
    }

    #[test]
    fn a_value_that_is_wrong_is_refused_and_the_rule_before_it_goes_on() {
        let mut bench = bench();
        bench.put("prod.decode.r", 1.0);
        for wrong in ["{", "", "[]", "{\"name\":\"r\"}", "\u{0}"] {
            let why = refused(bench.put_text("prod.decode.r", wrong));
            assert!(!why.is_empty());
            // Told again, it is no news.
            let (revision, bucket) = (bench.revision, bench.bucket);
            let again = bench
                .book
                .put("prod.decode.r", revision, bucket, wrong.as_bytes());
            assert_eq!(again, Outcome::Nothing);
            assert_eq!(bench.bound("r"), Some(1.0));
        }
        let other = encode_rule(&rule("other", 1.0)).unwrap();
        let why = refused(bench.put_text("prod.decode.r", &other));
        assert!(why.contains("\"other\""), "{why}");
        let large = "x".repeat(RULE_MAX + 1);
        let why = refused(bench.put_text("prod.decode.r", &large));
        assert!(why.contains("too large"), "{why}");
        bench.put("prod.decode.r", 2.0);
        assert_eq!(bench.bound("r"), Some(2.0));
        bench.put_text("prod.decode.r", "{");
        bench.book.delete("prod.decode.r");
        assert_eq!(bench.bound("r"), None);
    }

    #[test]
    fn what_is_missing_when_all_was_read_again_has_ended_unless_it_is_another_bucket() {
        let mut bench = bench();
        bench.put("prod.decode.a", 1.0);
        bench.put("prod.decode.b", 1.0);
        bench.put("=all.=all.b", 2.0);
        assert_eq!(bench.only(&["prod.decode.a", "=all.=all.b"]), 1);
        assert_eq!((bench.bound("a"), bench.bound("b")), (Some(1.0), Some(2.0)));
        // The bucket was lost, and made anew: it is empty, and says nothing of those before.
        bench.bucket = bucket(2);
        assert_eq!(bench.only(&[]), 0);
        bench.revision = 0;
        assert_eq!(bench.put("prod.decode.a", 5.0), Outcome::InForce);
        assert_eq!((bench.bound("a"), bench.bound("b")), (Some(5.0), Some(2.0)));
        assert_eq!(bench.only(&[]), 1);
        assert_eq!((bench.bound("a"), bench.bound("b")), (None, Some(2.0)));
        // Deleted in the new one, it is deleted.
        assert!(bench.book.delete("=all.=all.b"));
        assert_eq!(bench.bound("b"), None);
    }

    #[test]
    fn what_the_bucket_that_is_there_does_not_have_ends_in_time_unless_it_is_written_again() {
        let mut bench = bench();
        for key in ["prod.decode.a", "prod.decode.b", "prod.decode.c"] {
            bench.put(key, 1.0);
        }
        bench.bucket = bucket(2);
        assert_eq!(bench.only(&[]), 0);
        bench.now += ORPHANED / 2;
        bench.put("prod.decode.a", 1.0);
        // Read again, it is not put off.
        assert_eq!(bench.only(&["prod.decode.a"]), 0);
        bench.now += ORPHANED / 2 - Duration::from_secs(1);
        assert_eq!(bench.book.expire(bench.now), 0);
        // The old bucket is back after all, with one of them.
        let revision = bench.revision;
        bench.bucket = bucket(1);
        let json = encode_rule(&rule("b", 1.0)).unwrap();
        let book = &mut bench.book;
        book.put("prod.decode.b", 2, bench.bucket, json.as_bytes());
        bench.revision = revision;
        bench.now += Duration::from_secs(1);
        assert_eq!(bench.book.expire(bench.now), 1);
        let bounds = ["a", "b", "c"].map(|name| bench.bound(name));
        assert_eq!(bounds, [Some(1.0), Some(1.0), None]);
        bench.now += 10 * ORPHANED;
        assert_eq!(bench.book.expire(bench.now), 0);
    }

    #[test]
    fn there_are_only_so_many_and_those_beyond_have_their_turn_when_there_is_room() {
        let mut bench = bench();
        for i in 0..RULES_MAX {
            assert_eq!(
                bench.put(&format!("prod.decode.r{i}"), 1.0),
                Outcome::InForce
            );
        }
        let why = refused(bench.put("prod.decode.more", 1.0));
        assert!(why.contains("1000"), "{why}");
        assert_eq!(bench.book.in_force(), RULES_MAX);
        let (revision, bucket) = (bench.revision, bench.bucket);
        // One that is there may change all the same.
        assert_eq!(bench.put("prod.decode.r0", 2.0), Outcome::InForce);
        bench.book.delete("prod.decode.r1");
        let json = encode_rule(&rule("more", 1.0)).unwrap();
        let again = bench
            .book
            .put("prod.decode.more", revision, bucket, json.as_bytes());
        assert_eq!(again, Outcome::InForce);
        for i in 0..2 * REFUSED_MAX {
            refused(bench.put_text(&format!("prod.decode.wrong{i}"), "{"));
        }
        assert_eq!(bench.book.refused().len(), REFUSED_MAX);
    }
}

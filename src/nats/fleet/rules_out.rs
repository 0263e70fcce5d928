//! Rules that are sent to sources: what is wanted in the bucket, and the task that writes it when it can.
//!
//! The bucket is what counts, for the sources and for us. What was wanted once stays wanted where the bucket has lost it: it
//! is looked after each reconnect, and again and again, whether the bucket is still as it was. What somebody else has changed,
//! taken back or let expire is left as it is. That a rule was taken back is written, too, since a source may have it from a
//! bucket that is no more.
//!
//! | the bucket says of a key | what is done |
//! |---|---|
//! | what we want | nothing |
//! | something else, later than what we have written | it is not ours any more |
//! | something else, earlier: it was restored | written again |
//! | nothing, and it is another bucket, or was restored: it was lost | written again |
//! | nothing, and it is the bucket that we have written to: purged, or expired | it is not ours any more |
//!
//! Earlier and later go by when the bucket was made, and then by the revision.

use std::{collections::BTreeMap, fmt, sync::Mutex, time::Duration};

use async_nats::{
    datetime::DateTime,
    jetstream::{
        self,
        kv::{Operation, Store},
        stream,
    },
};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{ask::AskError, error::FleetError};
use crate::{
    Clock, MetricBus, Rule,
    nats::{
        connection::{Connection, jittered},
        wire::rule::{RuleKey, decode_rule, encode_rule, read_rule_key, rule_key},
    },
    sync::lock,
};

/// How long one thing may take, and how long whoever sends a rule waits to hear that it was written.
const PATIENCE: Duration = Duration::from_secs(5);

const AGAIN_MIN: Duration = Duration::from_millis(500);
const AGAIN_MAX: Duration = Duration::from_secs(30);

/// How often it is looked whether the bucket is still as it was.
const AUDIT_EVERY: Duration = Duration::from_secs(20);

/// How many rules one fleet can send, and how many it lists.
const RULES_MAX: usize = 10_000;

/// Which sources a rule is sent to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleTarget {
    namespace: Option<String>,
    component: Option<String>,
}

impl RuleTarget {
    /// All instances of a component of a namespace.
    pub fn component(namespace: impl Into<String>, component: impl Into<String>) -> RuleTarget {
        RuleTarget {
            namespace: Some(namespace.into()),
            component: Some(component.into()),
        }
    }

    /// All components of a namespace.
    pub fn namespace(namespace: impl Into<String>) -> RuleTarget {
        RuleTarget {
            namespace: Some(namespace.into()),
            component: None,
        }
    }

    /// A component, in whatever namespace.
    pub fn component_anywhere(component: impl Into<String>) -> RuleTarget {
        RuleTarget {
            namespace: None,
            component: Some(component.into()),
        }
    }

    /// All sources that take rules from the bucket.
    pub fn all() -> RuleTarget {
        RuleTarget {
            namespace: None,
            component: None,
        }
    }

    fn key(&self, rule: &str) -> RuleKey {
        RuleKey {
            namespace: self.namespace.clone(),
            component: self.component.clone(),
            rule: rule.to_owned(),
        }
    }
}

impl fmt::Display for RuleTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |part: &Option<String>| part.clone().unwrap_or_else(|| "*".to_owned());
        write!(f, "{}/{}", part(&self.namespace), part(&self.component))
    }
}

/// A rule that was sent to sources, by this fleet or another one.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SentRule {
    /// To whom.
    pub target: RuleTarget,
    /// Its name.
    pub name: String,
    /// The rule; `None` where it was taken back and that is not yet written, and where it can't be read.
    pub rule: Option<Rule>,
    /// Whether it is in the bucket as it should be. If not, that is tried again and again.
    pub written: bool,
    /// Why it is not written yet, or can't be read.
    pub why: Option<String>,
}

/// What is to be in the bucket under one key.
#[derive(Clone)]
struct Wanted {
    target: RuleTarget,
    name: String,
    /// `None`: nothing.
    rule: Option<(Rule, Bytes)>,
    /// Which wish it is, of all of them.
    wish: u64,
    /// In the bucket, and so it was the last time that it was looked.
    written: bool,
    /// What was last there of us.
    version: Option<Version>,
    /// Why it is not.
    why: Option<String>,
}

/// Of which bucket, by when it was made, and which revision of the key.
type Version = (DateTime, u64);

/// A bucket as it was seen, and on which connection.
#[derive(Clone, Copy, PartialEq)]
struct Seen {
    generation: u64,
    made: DateTime,
    messages: u64,
    first: u64,
    last: u64,
}

impl Seen {
    fn of(info: &stream::Info, generation: u64) -> Seen {
        Seen {
            generation,
            made: info.created,
            messages: info.state.messages,
            first: info.state.first_sequence,
            last: info.state.last_sequence,
        }
    }
}

pub(super) struct RulesOut {
    bucket: String,
    connection: Connection,
    wanted: Mutex<Wishes>,
    /// All that was wanted then was looked for.
    seen: Mutex<Option<Seen>>,
    /// Changes with each wish, and with what became of one.
    news: watch::Sender<u64>,
}

#[derive(Default)]
struct Wishes {
    by_key: BTreeMap<String, Wanted>,
    wishes: u64,
}

impl RulesOut {
    pub(super) fn new(bucket: String, connection: Connection) -> RulesOut {
        RulesOut {
            bucket,
            connection,
            wanted: Mutex::default(),
            seen: Mutex::default(),
            news: watch::Sender::new(0),
        }
    }

    pub(super) fn unwritten(&self) -> usize {
        let wanted = lock(&self.wanted);
        wanted.by_key.values().filter(|w| !w.written).count()
    }

    fn told(&self) {
        self.news.send_modify(|news| *news += 1);
    }

    /// Wants a rule to be there.
    pub(super) async fn send(
        &self,
        target: RuleTarget,
        rule: Rule,
    ) -> Result<SentRule, FleetError> {
        let unsendable = |why: String| FleetError::Unsendable {
            rule: rule.name().to_owned(),
            why,
        };
        let key = rule_key(&target.key(rule.name())).map_err(|e| unsendable(e.to_string()))?;
        // As any bus would say, before it is too late to say it.
        let trial = MetricBus::builder().clock(Clock::manual()).build();
        trial.add_rule(rule.clone())?;
        let json = encode_rule(&rule).map_err(|e| unsendable(e.to_string()))?;
        let name = rule.name().to_owned();
        self.wish(key, target, name, Some((rule, json.into())))
            .await
    }

    /// Wants a rule not to be there.
    pub(super) async fn retract(
        &self,
        target: RuleTarget,
        name: &str,
    ) -> Result<SentRule, FleetError> {
        let key = rule_key(&target.key(name)).map_err(|error| FleetError::Unsendable {
            rule: name.to_owned(),
            why: error.to_string(),
        })?;
        self.wish(key, target, name.to_owned(), None).await
    }

    async fn wish(
        &self,
        key: String,
        target: RuleTarget,
        name: String,
        rule: Option<(Rule, Bytes)>,
    ) -> Result<SentRule, FleetError> {
        let mut news = self.news.subscribe();
        let wish = {
            let mut wanted = lock(&self.wanted);
            let full = wanted.by_key.len() >= RULES_MAX && !wanted.by_key.contains_key(&key);
            if full && !wanted.forget_one() {
                return Err(FleetError::Unsendable {
                    rule: name,
                    why: format!("one fleet can send {RULES_MAX} rules at most"),
                });
            }
            wanted.wishes += 1;
            let wish = wanted.wishes;
            let wanted = &mut wanted.by_key;
            wanted.insert(
                key.clone(),
                Wanted {
                    target: target.clone(),
                    name: name.clone(),
                    rule: rule.clone(),
                    wish,
                    written: false,
                    version: None,
                    why: None,
                },
            );
            wish
        };
        self.told();
        let granted = async {
            loop {
                if let Some(sent) = self.outcome(&key, wish) {
                    return sent;
                }
                if news.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let late = SentRule {
            target,
            name,
            rule: rule.map(|(rule, _)| rule),
            written: false,
            why: Some(format!("it has taken longer than {PATIENCE:?}")),
        };
        Ok(timeout(PATIENCE, granted).await.unwrap_or(late))
    }

    /// What became of a wish, once it was tried.
    fn outcome(&self, key: &str, wish: u64) -> Option<SentRule> {
        let wanted = lock(&self.wanted);
        let Some(wanted) = wanted.by_key.get(key).filter(|w| w.wish == wish) else {
            // It was taken back, as was wished; or somebody wishes otherwise by now.
            let key = read_rule_key(key).ok()?;
            return Some(SentRule {
                target: RuleTarget {
                    namespace: key.namespace,
                    component: key.component,
                },
                name: key.rule,
                rule: None,
                written: true,
                why: None,
            });
        };
        (wanted.written || wanted.why.is_some()).then(|| wanted.sent())
    }

    /// What is in the bucket, and what is to be.
    pub(super) async fn list(&self) -> Result<Vec<SentRule>, FleetError> {
        let mut all: BTreeMap<String, SentRule> = BTreeMap::new();
        if self.connection.is_up() {
            let listed = timeout(PATIENCE * 2, self.read_all()).await;
            all = listed
                .unwrap_or_else(|_| Err(AskError::TimedOut(PATIENCE * 2).to_string()))
                .map_err(|why| FleetError::Bucket {
                    bucket: self.bucket.clone(),
                    why,
                })?;
        }
        for (key, wanted) in &lock(&self.wanted).by_key {
            let over = wanted.written && wanted.rule.is_none();
            if !over && (!wanted.written || !self.connection.is_up()) {
                all.insert(key.clone(), wanted.sent());
            }
        }
        Ok(all.into_values().collect())
    }

    async fn read_all(&self) -> Result<BTreeMap<String, SentRule>, String> {
        let mut all = BTreeMap::new();
        let Some(store) = self.find().await? else {
            return Ok(all);
        };
        let mut keys = store.keys().await.map_err(|error| error.to_string())?;
        while let Some(key) = keys.next().await {
            let key = key.map_err(|error| error.to_string())?;
            if all.len() >= RULES_MAX {
                break;
            }
            let Ok(read) = read_rule_key(&key) else {
                continue;
            };
            let value = store.get(&key).await.map_err(|error| error.to_string())?;
            let Some(value) = value else { continue };
            let rule = std::str::from_utf8(&value)
                .map_err(|error| error.to_string())
                .and_then(|text| decode_rule(text).map_err(|error| error.to_string()));
            let target = RuleTarget {
                namespace: read.namespace,
                component: read.component,
            };
            let sent = SentRule {
                target,
                name: read.rule,
                why: rule.as_ref().err().cloned(),
                rule: rule.ok(),
                written: true,
            };
            all.insert(key, sent);
        }
        Ok(all)
    }

    /// Writes what is wanted, until `stop` says so.
    pub(super) async fn run(&self, mut stop: watch::Receiver<bool>) {
        let mut news = self.news.subscribe();
        let mut link = self.connection.watch();
        let mut again = AGAIN_MIN;
        let mut audit = Instant::now() + jittered(AUDIT_EVERY);
        loop {
            news.borrow_and_update();
            link.borrow_and_update();
            let audits = Instant::now() >= audit;
            if audits {
                audit = Instant::now() + jittered(AUDIT_EVERY);
            }
            let left = self.work(audits).await;
            again = if left {
                (again * 2).min(AGAIN_MAX)
            } else {
                AGAIN_MIN
            };
            // Without a connection the link will tell.
            let retry = left && self.connection.is_up();
            tokio::select! {
                _ = stop.changed() => return,
                changed = news.changed() => if changed.is_err() { return },
                changed = link.changed() => {
                    if changed.is_err() { return }
                    again = AGAIN_MIN;
                }
                () = tokio::time::sleep(again), if retry => {}
                () = tokio::time::sleep_until(audit) => {}
            }
        }
    }

    /// Does what can be done. Whether something is left.
    async fn work(&self, audits: bool) -> bool {
        let generation = self.connection.generation();
        let is_new = lock(&self.seen).is_none_or(|seen| seen.generation != generation);
        let (any, unwritten) = {
            let wanted = lock(&self.wanted);
            let unwritten = wanted.by_key.values().any(|wanted| !wanted.written);
            (!wanted.by_key.is_empty(), unwritten)
        };
        if !any || !(unwritten || is_new || audits) {
            return false;
        }
        let store = match self.connection.is_up() {
            true => timed(self.open()).await,
            false => Err(self.connection.why_down()),
        };
        let now = store.as_ref().ok();
        let now = now.map(|store| Seen::of(store.stream.cached_info(), generation));
        // Whether it may have changed since all was looked for.
        let changed = is_new || now.is_none_or(|now| *lock(&self.seen) != Some(now));
        let todo: Vec<(String, Wanted)> = lock(&self.wanted)
            .by_key
            .iter()
            .filter(|(_, wanted)| changed || !wanted.written)
            .map(|(key, wanted)| (key.clone(), wanted.clone()))
            .collect();
        let mut left = false;
        for (key, wanted) in todo {
            let done = match &store {
                Ok(store) => timed(settle(store, &key, &wanted)).await,
                Err(why) => Err(why.clone()),
            };
            left |= done.is_err();
            self.note(&key, wanted.wish, done);
        }
        if !left {
            *lock(&self.seen) = now;
        }
        left
    }

    fn note(&self, key: &str, wish: u64, done: Result<Done, String>) {
        let said = {
            let mut wanted = lock(&self.wanted);
            let Some(of) = wanted.by_key.get_mut(key).filter(|of| of.wish == wish) else {
                return;
            };
            match done {
                Ok(Done::Written(version)) => {
                    of.written = true;
                    of.version = Some(version);
                    of.why = None;
                    None
                }
                Ok(Done::Over(how)) => {
                    let over = wanted.by_key.remove(key);
                    over.and_then(|over| Some((over.name, how?.to_owned())))
                }
                Err(why) => {
                    let new = of.why.as_ref() != Some(&why);
                    of.why = Some(why.clone());
                    new.then(|| (of.name.clone(), why))
                }
            }
        };
        if let Some((rule, why)) = said {
            tracing::warn!(
                rule,
                bucket = self.bucket,
                "metricbus: a rule that is sent to sources: {why}"
            );
        }
        // What does not change is no news: whoever waits looks at what did.
        self.news.send_if_modified(|_| true);
    }

    /// The bucket, if there is one.
    async fn find(&self) -> Result<Option<Store>, String> {
        let jetstream = jetstream::new(self.connection.client().clone());
        let found = jetstream.get_key_value(&self.bucket).await;
        match found {
            Ok(store) => Ok(Some(store)),
            Err(error) => {
                let text = error_text(&error);
                // 10059: stream not found.
                let missing = text.contains("stream not found") || text.contains("10059");
                if missing { Ok(None) } else { Err(text) }
            }
        }
    }

    /// The bucket, made where there is none.
    async fn open(&self) -> Result<Store, String> {
        if let Some(store) = self.find().await? {
            return Ok(store);
        }
        let jetstream = jetstream::new(self.connection.client().clone());
        // A bucket is a stream with these settings. `create_key_value` would make it just so, but first asks for the
        // account, and can't read what a server of 2.9 answers.
        let config = stream::Config {
            name: format!("KV_{}", self.bucket),
            description: Some("Rules that metricbus sends to sources.".to_owned()),
            subjects: vec![format!("$KV.{}.>", self.bucket)],
            max_messages_per_subject: 1,
            allow_rollup: true,
            deny_delete: true,
            allow_direct: true,
            num_replicas: 1,
            discard: stream::DiscardPolicy::New,
            ..stream::Config::default()
        };
        let made = jetstream.create_stream(config).await;
        made.map_err(|error| error_text(&error))?;
        let store = jetstream.get_key_value(&self.bucket).await;
        store.map_err(|error| error_text(&error))
    }
}

impl Wishes {
    /// Forgets the oldest of the rules that were taken back, as was written.
    fn forget_one(&mut self) -> bool {
        let over = |wanted: &Wanted| wanted.written && wanted.rule.is_none();
        let all = self.by_key.iter().filter(|(_, wanted)| over(wanted));
        let oldest = all.min_by_key(|(_, wanted)| wanted.wish);
        let oldest = oldest.map(|(key, _)| key.clone());
        oldest.is_some_and(|key| self.by_key.remove(&key).is_some())
    }
}

impl Wanted {
    fn sent(&self) -> SentRule {
        SentRule {
            target: self.target.clone(),
            name: self.name.clone(),
            rule: self.rule.as_ref().map(|(rule, _)| rule.clone()),
            written: self.written,
            why: self.why.clone(),
        }
    }
}

enum Done {
    /// It is as it is wanted, in this version.
    Written(Version),
    /// Somebody else has a say, and what that is.
    Over(Option<&'static str>),
}

/// What a bucket says of a key.
struct There {
    version: Version,
    /// `None`: that it was deleted.
    value: Option<Bytes>,
}

impl There {
    async fn of(store: &Store, key: &str) -> Result<Option<There>, String> {
        let entry = store.entry(key).await.map_err(|e| error_text(&e))?;
        Ok(entry.map(|entry| There {
            version: (store.stream.cached_info().created, entry.revision),
            value: (entry.operation == Operation::Put).then_some(entry.value),
        }))
    }
}

/// Whether a key that is not as it is wanted is somebody else's by now, who it seems has done what.
fn superseded(
    there: Option<&There>,
    ours: Option<Version>,
    (made, last): Version,
) -> Option<&'static str> {
    let ours = ours?;
    match there {
        Some(there) if there.version > ours => Some(match there.value {
            Some(_) => "somebody else has changed it since",
            None => "somebody else has taken it back",
        }),
        None if made == ours.0 && last >= ours.1 => {
            Some("it has expired, or the bucket was purged")
        }
        _ => None,
    }
}

/// Sees that one key is as it is wanted.
async fn settle(store: &Store, key: &str, wanted: &Wanted) -> Result<Done, String> {
    let there = There::of(store, key).await?;
    let json = wanted.rule.as_ref().map(|(_, json)| json);
    if let Some(there) = &there
        && there.value.as_ref() == json
    {
        return Ok(Done::Written(there.version));
    }
    let info = store.stream.cached_info();
    let bucket = (info.created, info.state.last_sequence);
    if let Some(how) = superseded(there.as_ref(), wanted.version, bucket) {
        // Of what was taken back nobody need hear that it is gone.
        let is_news = json.is_some() || there.is_some();
        return Ok(Done::Over(is_news.then_some(how)));
    }
    match json {
        Some(json) => {
            let put = store.put(key, json.clone()).await;
            let revision = put.map_err(|error| error_text(&error))?;
            Ok(Done::Written((info.created, revision)))
        }
        None => {
            // Also where there is nothing: somebody may have it from a bucket that is no more.
            store.delete(key).await.map_err(|e| error_text(&e))?;
            let there = There::of(store, key).await?;
            let version = there.filter(|there| there.value.is_none());
            let version = version.map(|there| there.version);
            version
                .map(Done::Written)
                .ok_or_else(|| "somebody else has sent it again".to_owned())
        }
    }
}

async fn timed<T>(what: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    timeout(PATIENCE, what).await.unwrap_or_else(|_| {
        Err(format!(
            "JetStream did not answer within {PATIENCE:?}: it is not enabled (nats-server -js), or this user may not use it"
        ))
    })
}

/// An error with what it came from.
fn error_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    if text.contains("no responders") {
        text += " (JetStream is not enabled: start nats-server with -js)";
    }
    text
}

#[cfg(test)]
mod tests {
    use async_nats::datetime;

    use super::*;

    #[test]
    fn what_is_later_than_ours_counts_and_what_is_earlier_or_lost_does_not() {
        let bucket = |made: i128| datetime::from_nanos(made).unwrap();
        let there = |made, revision, value: Option<&'static str>| There {
            version: (bucket(made), revision),
            value: value.map(|value| Bytes::from_static(value.as_bytes())),
        };
        let ours = Some((bucket(5), 10));
        let last = (bucket(5), 20);
        let newer = there(5, 11, Some("x"));
        assert!(superseded(Some(&newer), ours, last).is_some());
        assert!(superseded(Some(&there(5, 11, None)), ours, last).is_some());
        assert!(superseded(None, ours, last).is_some(), "purged, or expired");
        // Whoever has made a new bucket may have sent it there.
        assert!(superseded(Some(&there(6, 1, Some("x"))), ours, (bucket(6), 3)).is_some());
        assert_eq!(
            superseded(None, ours, (bucket(6), 30)),
            None,
            "another bucket"
        );
        // Restored.
        assert_eq!(superseded(Some(&there(5, 9, None)), ours, last), None);
        assert_eq!(superseded(Some(&there(4, 90, None)), ours, last), None);
        assert_eq!(superseded(None, ours, (bucket(5), 9)), None);
        // A new wish goes before whatever is there.
        assert_eq!(superseded(Some(&newer), None, last), None);
    }

    #[test]
    fn of_rules_that_were_taken_back_the_oldest_make_room() {
        let mut wishes = Wishes::default();
        for (key, wish, written, wanted) in [
            ("a", 1, true, true),
            ("b", 2, false, false),
            ("c", 4, true, false),
            ("d", 3, true, false),
        ] {
            let rule = crate::Condition::when("g", crate::Threshold::above(1.0));
            let of = Wanted {
                target: RuleTarget::all(),
                name: key.to_owned(),
                rule: wanted.then(|| (Rule::new(key, rule), Bytes::new())),
                wish,
                written,
                version: None,
                why: None,
            };
            wishes.by_key.insert(key.to_owned(), of);
        }
        assert!(wishes.forget_one() && !wishes.by_key.contains_key("d"));
        assert!(wishes.forget_one() && !wishes.by_key.contains_key("c"));
        assert!(!wishes.forget_one());
    }
}

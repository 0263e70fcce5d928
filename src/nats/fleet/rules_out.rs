//! Rules that are sent to sources: what is wanted in the bucket, and the task that writes it when it can.
//!
//! What was wanted once stays wanted: after each reconnect it is looked whether it is still there, since a server may have
//! come back without its store. What somebody else has changed or taken back meanwhile is left as it is.

use std::{collections::BTreeMap, fmt, sync::Mutex, time::Duration};

use async_nats::jetstream::{
    self,
    kv::{Operation, Store},
    stream,
};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::{sync::watch, time::timeout};

use super::{ask::AskError, error::FleetError};
use crate::{
    Clock, MetricBus, Rule,
    nats::{
        connection::Connection,
        wire::rule::{RuleKey, decode_rule, encode_rule, read_rule_key, rule_key},
    },
    sync::lock,
};

/// How long one thing may take, and how long whoever sends a rule waits to hear that it was written.
const PATIENCE: Duration = Duration::from_secs(5);

const AGAIN_MIN: Duration = Duration::from_millis(500);
const AGAIN_MAX: Duration = Duration::from_secs(30);

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
    /// In the bucket, as seen on the connection of this generation.
    written: Option<u64>,
    /// Why it is not.
    why: Option<String>,
}

pub(super) struct RulesOut {
    bucket: String,
    connection: Connection,
    wanted: Mutex<Wishes>,
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
            news: watch::Sender::new(0),
        }
    }

    pub(super) fn unwritten(&self) -> usize {
        let wanted = lock(&self.wanted);
        wanted
            .by_key
            .values()
            .filter(|w| w.written.is_none())
            .count()
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
            if wanted.by_key.len() >= RULES_MAX && !wanted.by_key.contains_key(&key) {
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
                    written: None,
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
        (wanted.written.is_some() || wanted.why.is_some()).then(|| wanted.sent())
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
            if wanted.written.is_none() || !self.connection.is_up() {
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
        loop {
            news.borrow_and_update();
            link.borrow_and_update();
            let left = self.work().await;
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
            }
        }
    }

    /// Does what can be done. Whether something is left.
    async fn work(&self) -> bool {
        let generation = self.connection.generation();
        let todo: Vec<(String, Wanted)> = lock(&self.wanted)
            .by_key
            .iter()
            .filter(|(_, wanted)| wanted.written != Some(generation))
            .map(|(key, wanted)| (key.clone(), wanted.clone()))
            .collect();
        if todo.is_empty() {
            return false;
        }
        let store = match self.connection.is_up() {
            true => timed(self.open()).await,
            false => Err(self.connection.why_down()),
        };
        let mut left = false;
        for (key, wanted) in todo {
            let done = match &store {
                Ok(store) => timed(settle(store, &key, &wanted)).await,
                Err(why) => Err(why.clone()),
            };
            left |= done.is_err();
            self.note(&key, wanted.wish, generation, done);
        }
        left
    }

    fn note(&self, key: &str, wish: u64, generation: u64, done: Result<Done, String>) {
        let said = {
            let mut wanted = lock(&self.wanted);
            let Some(of) = wanted.by_key.get_mut(key).filter(|of| of.wish == wish) else {
                return;
            };
            match done {
                Ok(Done::Written) => {
                    of.written = Some(generation);
                    of.why = None;
                    None
                }
                Ok(Done::Over(how)) => {
                    let over = wanted.by_key.remove(key);
                    over.and_then(|over| Some((over.name, how?.to_owned())))
                }
                Err(why) => {
                    // What was written before may be there still.
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

impl Wanted {
    fn sent(&self) -> SentRule {
        SentRule {
            target: self.target.clone(),
            name: self.name.clone(),
            rule: self.rule.as_ref().map(|(rule, _)| rule.clone()),
            written: self.written.is_some(),
            why: self.why.clone(),
        }
    }
}

enum Done {
    /// It is as it is wanted.
    Written,
    /// It is wanted no more: it was taken back; or somebody else has a say, and what that is.
    Over(Option<&'static str>),
}

/// Sees that one key is as it is wanted.
async fn settle(store: &Store, key: &str, wanted: &Wanted) -> Result<Done, String> {
    let entry = store.entry(key).await.map_err(|e| error_text(&e))?;
    let there = entry.as_ref().map(|entry| entry.operation);
    let Some((_, json)) = &wanted.rule else {
        if there == Some(Operation::Put) {
            store.delete(key).await.map_err(|e| error_text(&e))?;
        }
        return Ok(Done::Over(None));
    };
    // Once written it is written anew only where it was lost.
    match (wanted.written, &entry) {
        (_, Some(entry)) if entry.operation == Operation::Put && entry.value == json => {
            return Ok(Done::Written);
        }
        (Some(_), Some(entry)) if entry.operation == Operation::Put => {
            return Ok(Done::Over(Some("somebody else has changed it since")));
        }
        (Some(_), Some(_)) => return Ok(Done::Over(Some("somebody else has taken it back"))),
        _ => {}
    }
    let put = store.put(key, json.clone()).await;
    put.map_err(|error| error_text(&error))?;
    Ok(Done::Written)
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

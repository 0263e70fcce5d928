//! Rules that others send: taken from a bucket of the key-value store of JetStream, kept in force as it says.
//!
//! Rules outlive the connection, the server and the bucket: none of those ending says that a rule should. A rule ends when
//! its key is deleted, purged or expired (of which a watcher may hear nothing), and so is missing when all keys of the same
//! bucket are read again; or when another bucket is there, and for long does not have it.

mod book;

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_nats::jetstream::{
    self, ErrorCode,
    context::{GetStreamError, GetStreamErrorKind},
    kv::{Entry, Operation, Store, Watch},
};
use futures_util::StreamExt;
use tokio::time::{Instant, sleep, sleep_until, timeout};

pub use self::book::RefusedRule;
use self::book::{Book, Bucket, Outcome};
use super::Core;
use crate::{nats::connection::jittered, stats::bump, sync::lock};

/// Between two looks for a bucket that is not there.
const RETRY: Duration = Duration::from_secs(5);

/// How often it is asked whether the bucket is still the one that is watched, and has changed unheard; …
const AUDIT_EVERY: Duration = Duration::from_secs(20);
/// … where its keys expire after a time, of which no server tells, as often as that, but not more often than this.
const AUDIT_MIN: Duration = Duration::from_secs(1);

/// For all keys to arrive, and for a single one of those.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Rules from a bucket, as they stand.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RulesInStatus {
    /// The bucket.
    pub bucket: String,
    /// Where the reading of it stands.
    pub state: RulesInState,
    /// Rules that are in force because the bucket says so.
    pub in_force: usize,
    /// Keys about this source that give no rule, and why.
    pub refused: Vec<RefusedRule>,
}

/// Where the reading of a bucket stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RulesInState {
    /// It has not been read yet, or there is no connection. Rules that are in force go on.
    Waiting,
    /// It was read, and is watched.
    Watching,
    /// There is no such bucket. It is looked for again; rules that are in force go on.
    Missing,
    /// It can't be read: why. It is tried again; rules that are in force go on.
    Failing(String),
}

impl fmt::Display for RulesInState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RulesInState::Waiting => "waiting for a connection",
            RulesInState::Watching => "watching",
            RulesInState::Missing => "there is no such bucket",
            RulesInState::Failing(why) => why,
        })
    }
}

/// What is known of rules from a bucket.
pub(crate) struct RulesIn {
    bucket: String,
    state: Mutex<RulesInState>,
    /// As the book was last looked at: to change a rule calls those who listen to it, and they may ask.
    view: Mutex<View>,
}

#[derive(Default)]
struct View {
    in_force: usize,
    refused: Vec<RefusedRule>,
}

impl RulesIn {
    pub(super) fn new(bucket: String) -> RulesIn {
        RulesIn {
            bucket,
            state: Mutex::new(RulesInState::Waiting),
            view: Mutex::default(),
        }
    }

    pub(super) fn status(&self) -> RulesInStatus {
        let view = lock(&self.view);
        RulesInStatus {
            bucket: self.bucket.clone(),
            state: lock(&self.state).clone(),
            in_force: view.in_force,
            refused: view.refused.clone(),
        }
    }

    /// Why keys about this source are not in force.
    pub(super) fn refused(&self) -> Vec<RefusedRule> {
        lock(&self.view).refused.clone()
    }

    fn show(&self, book: &Book) {
        let view = View {
            in_force: book.in_force(),
            refused: book.refused(),
        };
        *lock(&self.view) = view;
    }

    fn take(&self, core: &Core, book: &mut Book, bucket: Bucket, entry: &Entry) {
        let key = &entry.key;
        let outcome = match entry.operation {
            Operation::Put => book.put(key, entry.revision, bucket, &entry.value),
            Operation::Delete | Operation::Purge => {
                if book.delete(key) {
                    tracing::info!(
                        "metricbus forwarder of {}: {key} was deleted from bucket {:?}, and its rule has ended",
                        core.source,
                        self.bucket
                    );
                }
                Outcome::Nothing
            }
        };
        match outcome {
            Outcome::Nothing => {}
            Outcome::InForce => bump(&core.stats.rules_accepted),
            Outcome::Refused(refused) => {
                bump(&core.stats.rules_refused);
                let RefusedRule { key, why } = refused;
                core.note(format!(
                    "{key} in bucket {:?} gives no rule: {why}",
                    self.bucket
                ));
            }
        }
    }

    /// These are all keys that a bucket has.
    fn only(&self, core: &Core, book: &mut Book, bucket: Bucket, keys: &HashSet<String>) {
        let ended = book.only(bucket, keys, std::time::Instant::now());
        self.tell_ended(core, ended);
    }

    fn tell_ended(&self, core: &Core, ended: usize) {
        if ended > 0 {
            tracing::info!(
                "metricbus forwarder of {}: {ended} rules have ended, as they are no more in bucket {:?}",
                core.source,
                self.bucket
            );
        }
    }

    fn set(&self, core: &Core, state: RulesInState) {
        let before = std::mem::replace(&mut *lock(&self.state), state.clone());
        if before == state {
            return;
        }
        let bucket = &self.bucket;
        match state {
            RulesInState::Missing => core.note(format!(
                "there is no bucket {bucket:?} for rules; make it (nats kv add {bucket}), or leave out rules_from"
            )),
            RulesInState::Failing(why) => {
                core.note(format!("rules can't be read from bucket {bucket:?}: {why}"));
            }
            RulesInState::Waiting | RulesInState::Watching => {}
        }
    }
}

pub(super) fn start(core: &Arc<Core>) {
    let core = core.clone();
    if core.rules_in.is_some() {
        tokio::spawn(async move {
            tokio::select! {
                () = core.closing() => {}
                () = run(&core) => {}
            }
        });
    }
}

async fn run(core: &Core) {
    let Some(rules) = &core.rules_in else { return };
    let mut book = Book::new(core.bus.clone(), core.source.clone());
    loop {
        if !core.connection.is_up() {
            rules.set(core, RulesInState::Waiting);
        }
        core.connection.up().await;
        let why = match Open::open(core, rules, &mut book).await {
            Ok(open) => open.follow(core, rules, &mut book).await,
            Err(why) => why,
        };
        let wait = match why {
            Why::Again => RETRY / 20,
            Why::State(state) => {
                rules.set(core, state);
                RETRY
            }
        };
        sleep(jittered(wait)).await;
    }
}

/// Why a bucket is watched no more.
enum Why {
    /// The connection is another one, or the bucket has changed unheard: it has to be read again.
    Again,
    State(RulesInState),
}

impl Why {
    fn failing(what: &str, error: &dyn fmt::Display) -> Why {
        Why::State(RulesInState::Failing(format!("{what}: {error}")))
    }
}

/// A bucket that is being watched.
struct Open {
    store: Store,
    watch: Watch,
    /// As it was when it was last looked at.
    marks: Marks,
    generation: u64,
}

/// What tells whether a bucket is another one, or has changed.
#[derive(Clone, Copy, PartialEq)]
struct Marks {
    bucket: Bucket,
    messages: u64,
    first: u64,
    last: u64,
}

impl Marks {
    fn of(info: &jetstream::stream::Info) -> Marks {
        Marks {
            bucket: info.created,
            messages: info.state.messages,
            first: info.state.first_sequence,
            last: info.state.last_sequence,
        }
    }
}

/// When it is to be asked whether a bucket has changed unheard.
fn next_audit(store: &Store) -> Instant {
    let every = match store.stream.cached_info().config.max_age {
        Duration::ZERO => AUDIT_EVERY,
        age => age.clamp(AUDIT_MIN, AUDIT_EVERY),
    };
    Instant::now() + jittered(every)
}

impl Open {
    /// Reads all keys.
    async fn open(core: &Core, rules: &RulesIn, book: &mut Book) -> Result<Open, Why> {
        let generation = core.connection.generation();
        let context = jetstream::new(core.connection.client().clone());
        let store = context.get_key_value(&rules.bucket).await;
        let store = store.map_err(|error| {
            let source = std::error::Error::source(&error);
            let stream = source.and_then(|source| source.downcast_ref::<GetStreamError>());
            match stream.map(|error| error.kind()) {
                Some(GetStreamErrorKind::JetStream(error))
                    if error.error_code() == ErrorCode::STREAM_NOT_FOUND =>
                {
                    Why::State(RulesInState::Missing)
                }
                Some(GetStreamErrorKind::JetStream(error)) => {
                    Why::failing("the server does not give it", &error)
                }
                Some(GetStreamErrorKind::Request) => Why::failing(
                    "nobody answers for JetStream; is it enabled on this server, and for this account?",
                    &error,
                ),
                _ => Why::failing("it can't be opened", &error),
            }
        })?;
        let marks = Marks::of(store.stream.cached_info());
        let watch = store.watch_with_history(">").await;
        let watch = watch.map_err(|error| Why::failing("it can't be watched", &error))?;
        let mut open = Open {
            store,
            watch,
            marks,
            generation,
        };
        if marks.messages > 0 {
            let read = timeout(READ_TIMEOUT, open.read(core, rules, book)).await;
            read.unwrap_or_else(|_| {
                let within = format!("not within {READ_TIMEOUT:?}");
                Err(Why::failing("its keys did not arrive", &within))
            })?;
        } else {
            rules.only(core, book, marks.bucket, &HashSet::new());
        }
        rules.show(book);
        rules.set(core, RulesInState::Watching);
        Ok(open)
    }

    async fn read(&mut self, core: &Core, rules: &RulesIn, book: &mut Book) -> Result<(), Why> {
        let mut keys = HashSet::new();
        loop {
            let entry = self.next().await?;
            let is_last = entry.seen_current;
            if entry.operation == Operation::Put && book.covers(&entry.key) {
                keys.insert(entry.key.clone());
            }
            rules.take(core, book, self.marks.bucket, &entry);
            if is_last {
                break;
            }
        }
        rules.only(core, book, self.marks.bucket, &keys);
        Ok(())
    }

    async fn next(&mut self) -> Result<Entry, Why> {
        match self.watch.next().await {
            Some(Ok(entry)) => Ok(entry),
            Some(Err(error)) => Err(Why::failing("watching it ended", &error)),
            None => Err(Why::Again),
        }
    }

    /// Takes what comes, until it has to be read again.
    async fn follow(mut self, core: &Core, rules: &RulesIn, book: &mut Book) -> Why {
        let mut link = core.connection.watch();
        let mut audit = next_audit(&self.store);
        loop {
            tokio::select! {
                entry = self.next() => match entry {
                    Ok(entry) => {
                        rules.take(core, book, self.marks.bucket, &entry);
                        rules.show(book);
                    }
                    Err(why) => return why,
                },
                changed = link.changed() => {
                    link.borrow_and_update();
                    if changed.is_err() || !core.connection.is_up() {
                        return Why::Again;
                    }
                }
                () = sleep_until(audit) => {
                    audit = next_audit(&self.store);
                    // A bucket that was deleted, or emptied, tells its watchers nothing.
                    let info = self.store.stream.get_info().await;
                    if !info.is_ok_and(|info| Marks::of(&info) == self.marks) {
                        return Why::Again;
                    }
                    rules.tell_ended(core, book.expire(std::time::Instant::now()));
                    rules.show(book);
                }
            }
            if core.connection.generation() != self.generation {
                return Why::Again;
            }
        }
    }
}

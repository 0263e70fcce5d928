//! One connection to NATS that never gives up: opened in the background, with a state that tells an operator what to do, and
//! the means to know that a server has taken what was published. What is lost with a dying socket is the caller's business,
//! who is told the generation of the connection.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use async_nats::{
    Client, Event, HeaderMap, Server, ServerError, Subscriber, connection::State as ClientState,
};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

use super::{
    error::NatsError,
    options::{NatsOptions, address},
};
use crate::sync::lock;

/// For one message to be taken by the client, which waits only when the socket does not.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(2);
/// For a message to go to the server and come back.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two attempts to connect, in the long run; less by up to a half, so that a thousand pods do not come at once.
const DELAY_MAX: Duration = Duration::from_secs(2);
/// The same words are not logged again before this has passed.
const LOG_AGAIN: Duration = Duration::from_secs(60);
/// How many times the client is given way to finish what it is doing in another thread; once is mostly enough.
const SETTLE_YIELDS: usize = 1000;
/// How many refused subjects are remembered.
const DENIED_MAX: usize = 256;

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectionState {
    /// Not yet connected since it was started; tried again and again.
    Connecting,
    /// Connected.
    Connected,
    /// It was connected, and is no more; tried again and again.
    Disconnected,
    /// There is a server and it refuses us, or we refuse it: credentials or certificates are wrong. Tried again all the
    /// same, since either side may be put right.
    Refused,
}

impl ConnectionState {
    /// `connecting`, `connected`, `disconnected` or `refused`.
    pub fn as_str(self) -> &'static str {
        match self {
            ConnectionState::Connecting => "connecting",
            ConnectionState::Connected => "connected",
            ConnectionState::Disconnected => "disconnected",
            ConnectionState::Refused => "refused",
        }
    }

    pub(crate) const ALL: [ConnectionState; 4] = [
        ConnectionState::Connecting,
        ConnectionState::Connected,
        ConnectionState::Disconnected,
        ConnectionState::Refused,
    ];
}

impl fmt::Display for ConnectionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A connection as it is now, for people.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ConnectionStatus {
    /// Where it stands …
    pub state: ConnectionState,
    /// … and since when.
    pub since: SystemTime,
    /// The addresses it was given, without secrets.
    pub servers: Vec<String>,
    /// The name of the server it is connected to, or was last.
    pub server: Option<String>,
    /// The version of that.
    pub version: Option<String>,
    /// The last that went wrong, and what to do about it. Stays after it was put right, with `last_error_at`.
    pub last_error: Option<String>,
    /// When that was.
    pub last_error_at: Option<SystemTime>,
    /// How many times it was connected.
    pub connects: u64,
    /// What the server did not permit: publications and subscriptions.
    pub denied: u64,
    /// Messages that were dropped because a subscription's reader did not keep up.
    pub slow: u64,
}

/// What tasks watch: it changes with the state, the generation, and whatever was denied.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Link {
    pub(crate) state: ConnectionState,
    /// +1 with each connect: what was sent in an earlier one may be lost.
    pub(crate) generation: u64,
    /// Permission violations so far.
    pub(crate) denied: u64,
    /// Messages dropped by slow subscriptions so far.
    pub(crate) slow: u64,
}

/// Something the server did not permit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Denial {
    /// Else a subscription.
    pub(crate) publish: bool,
    pub(crate) subject: String,
}

/// Shared by its clones; closed when the last is dropped.
#[derive(Clone)]
pub(crate) struct Connection(Arc<Inner>);

struct Inner {
    client: Client,
    shared: Arc<Shared>,
    /// Where confirmations come in: `{inbox}.{number}`.
    inbox: String,
    inbox_prefix: String,
    next_echo: AtomicU64,
    /// Has a subscription, and with it the client; so it has to end for the connection to.
    reader: JoinHandle<()>,
}

/// What the client's callbacks and the connection have in common. Holds no client: that would keep it open for ever.
struct Shared {
    role: &'static str,
    who: String,
    servers: Vec<String>,
    /// A server that dies without a word is given up after this.
    silence: Duration,
    record: Mutex<Record>,
    link: watch::Sender<Link>,
    echoes: Mutex<HashMap<u64, oneshot::Sender<()>>>,
    inbox: OnceLock<String>,
    connection: OnceLock<Weak<Inner>>,
    closed: watch::Sender<bool>,
}

impl Connection {
    /// Checks the options, and begins to connect. `role` is what it is for, for people: `forwarder`, `fleet`.
    ///
    /// # Errors
    ///
    /// Options that can't be, and no tokio runtime. Never the network.
    pub(crate) async fn open(
        options: &NatsOptions,
        role: &'static str,
    ) -> Result<Connection, NatsError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(NatsError::NoRuntime);
        }
        let ready = options.ready(role)?;
        let servers: Vec<_> = ready.servers.iter().map(address).collect();
        let now = SystemTime::now();
        let shared = Arc::new(Shared {
            role,
            who: ready.who,
            servers: servers.clone(),
            silence: ready.ping_interval * 3,
            record: Mutex::new(Record::new(now)),
            link: watch::Sender::new(Link {
                state: ConnectionState::Connecting,
                generation: 0,
                denied: 0,
                slow: 0,
            }),
            echoes: Mutex::default(),
            inbox: OnceLock::new(),
            connection: OnceLock::new(),
            closed: watch::Sender::new(false),
        });
        let (on_event, on_attempt) = (shared.clone(), shared.clone());
        let delays = Delays::default();
        let connect = ready
            .connect
            .event_callback(move |event| {
                let shared = on_event.clone();
                async move { shared.event(event).await }
            })
            // Not to choose a server, but because only here one hears why the last attempt failed.
            .reconnect_to_server_callback(move |servers, _| {
                let shared = on_attempt.clone();
                async move {
                    shared.attempt(&servers).await;
                    None
                }
            })
            .reconnect_delay_callback(move |attempt| delays.before(attempt, Instant::now()));
        let client = connect
            .connect(ready.servers)
            .await
            .map_err(|error| NatsError::Url {
                url: servers.join(","),
                why: error.to_string(),
            })?;
        let inbox = client.new_inbox();
        let _ = shared.inbox.set(inbox.clone());
        let echoes = client
            .subscribe(format!("{inbox}.*"))
            .await
            .map_err(|error| NatsError::Setting {
                setting: "inbox_prefix",
                value: ready.inbox_prefix.clone(),
                why: error.to_string(),
            })?;
        let reader = tokio::spawn(hear_echoes(echoes, shared.clone()));
        let inner = Arc::new(Inner {
            client,
            shared,
            inbox,
            inbox_prefix: ready.inbox_prefix,
            next_echo: AtomicU64::new(1),
            reader,
        });
        let _ = inner.shared.connection.set(Arc::downgrade(&inner));
        Ok(Connection(inner))
    }

    /// To subscribe, and for JetStream. To publish there is [`publish`](Connection::publish).
    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }

    /// The largest message the server takes, headers included.
    pub(crate) fn max_payload(&self) -> usize {
        self.0.client.max_payload()
    }

    pub(crate) fn status(&self) -> ConnectionStatus {
        let info = self.0.client.try_server_info();
        let record = lock(&self.0.shared.record);
        ConnectionStatus {
            state: record.state,
            since: record.since,
            servers: self.0.shared.servers.clone(),
            server: info.as_ref().map(|info| info.server_name.clone()),
            version: info.map(|info| info.version),
            last_error: record.last_error.clone(),
            last_error_at: record.last_error_at,
            connects: self.generation(),
            denied: record.denied,
            slow: record.slow,
        }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Link> {
        self.0.shared.link.subscribe()
    }

    /// How many times it was connected. Read from the client itself, so it is never late.
    pub(crate) fn generation(&self) -> u64 {
        self.0.client.statistics().connects.load(Ordering::Acquire)
    }

    /// Permission violations so far.
    pub(crate) fn denied(&self) -> u64 {
        lock(&self.0.shared.record).denied
    }

    /// What was denied after the first `seen` of all denials, as far as it is remembered, and how many there are now.
    pub(crate) fn denied_since(&self, seen: u64) -> (Vec<Denial>, u64) {
        let record = lock(&self.0.shared.record);
        let new = usize::try_from(record.denied.saturating_sub(seen)).unwrap_or(usize::MAX);
        let skip = record.denials.len().saturating_sub(new);
        let denials = record.denials.iter().skip(skip).cloned().collect();
        (denials, record.denied)
    }

    /// Whether there is a connection, as far as the client knows: a server that is silent counts as there for a while.
    pub(crate) fn is_up(&self) -> bool {
        self.0.client.connection_state() == ClientState::Connected
    }

    /// Waits until there is a connection, and gives its generation.
    pub(crate) async fn up(&self) -> u64 {
        let mut watch = self.watch();
        loop {
            watch.borrow_and_update();
            if self.is_up() {
                return self.generation();
            }
            if watch.changed().await.is_err() {
                // Its sender is in `self`.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Why it is not up, in words.
    pub(crate) fn why_down(&self) -> String {
        let record = lock(&self.0.shared.record);
        match &record.last_error {
            Some(error) => format!("{}: {error}", record.state),
            None => record.state.to_string(),
        }
    }

    /// Whether a subject is one of those that answers come in by.
    pub(crate) fn is_inbox(&self, subject: &str) -> bool {
        let inbox = subject.strip_prefix(&*self.0.inbox_prefix);
        inbox.is_some_and(|rest| rest.starts_with('.'))
    }

    /// Gives a message to the client. That it was taken does not mean that it arrives: see
    /// [`confirm_since`](Connection::confirm_since).
    ///
    /// # Errors
    ///
    /// At once when there is no connection, and after 2 s when the socket takes nothing; a message that is too large.
    pub(crate) async fn publish(
        &self,
        subject: impl async_nats::subject::ToSubject,
        reply: Option<String>,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<(), NatsError> {
        if !self.is_up() {
            return Err(NatsError::Disconnected {
                why: self.why_down(),
            });
        }
        let client = &self.0.client;
        let bytes = payload.len();
        let sent = timeout(PUBLISH_TIMEOUT, async move {
            match (reply, headers) {
                (None, None) => client.publish(subject, payload).await,
                (None, Some(headers)) => {
                    client.publish_with_headers(subject, headers, payload).await
                }
                (Some(reply), None) => client.publish_with_reply(subject, reply, payload).await,
                (Some(reply), Some(headers)) => {
                    client
                        .publish_with_reply_and_headers(subject, reply, headers, payload)
                        .await
                }
            }
        });
        match sent.await {
            Ok(sent) => sent.map_err(|error| self.publish_error(&error, bytes)),
            Err(_) => Err(NatsError::TimedOut {
                what: "publishing",
                after: PUBLISH_TIMEOUT,
            }),
        }
    }

    /// As [`publish`](Connection::publish), and never waits; needs no runtime.
    ///
    /// # Errors
    ///
    /// As that, and `Full` where it would have to wait.
    pub(crate) fn try_publish(
        &self,
        subject: &str,
        reply: Option<String>,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<(), NatsError> {
        if !self.is_up() {
            return Err(NatsError::Disconnected {
                why: self.why_down(),
            });
        }
        let (client, bytes) = (&self.0.client, payload.len());
        let subject = async_nats::Subject::from(subject);
        let sent = match reply {
            None => client
                .publish_with_headers(subject, headers, payload)
                .now_or_never(),
            Some(reply) => client
                .publish_with_reply_and_headers(subject, reply, headers, payload)
                .now_or_never(),
        };
        match sent {
            Some(sent) => sent.map_err(|error| self.publish_error(&error, bytes)),
            None => Err(NatsError::Full),
        }
    }

    fn publish_error(&self, error: &async_nats::PublishError, bytes: usize) -> NatsError {
        use async_nats::PublishErrorKind;
        match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => NatsError::TooLarge {
                what: "a message",
                bytes,
                max: self.max_payload(),
            },
            PublishErrorKind::InvalidSubject => NatsError::Setting {
                setting: "subject",
                value: error.to_string(),
                why: "the server would not take it".to_owned(),
            },
            PublishErrorKind::Send => NatsError::Ended,
        }
    }

    /// A round trip through the server: when it is `Ok`, the server has processed everything that was published since the
    /// generation was `generation`; read it before you publish. What the server processed it may still have denied: look
    /// at [`denied_since`](Connection::denied_since), and again with what is told later.
    ///
    /// # Errors
    ///
    /// `Reconnected`: it is another connection now, and what was published may be lost. `TimedOut`: the server is slow;
    /// what was published is not lost as long as the generation is the same. `Denied`: the server lets us receive no
    /// answers. `Disconnected`, `Ended`.
    pub(crate) async fn confirm_since(&self, generation: u64) -> Result<(), NatsError> {
        let number = self.0.next_echo.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        lock(&self.0.shared.echoes).insert(number, sender);
        let _forget = Forget(&self.0.shared, number);
        let mut watch = self.watch();
        self.same(generation)?;
        self.publish(
            format!("{}.{number}", self.0.inbox),
            None,
            None,
            Bytes::new(),
        )
        .await?;
        let mut receiver = receiver;
        let answer = timeout(CONFIRM_TIMEOUT, async {
            loop {
                self.same(generation)?;
                if lock(&self.0.shared.record).inbox_denied {
                    return Err(NatsError::Denied {
                        what: "subscribe to",
                        subject: format!("{}.*", self.0.inbox),
                    });
                }
                tokio::select! {
                    biased;
                    echo = &mut receiver => {
                        return echo.map_err(|_| NatsError::Ended);
                    }
                    changed = watch.changed() => {
                        changed.map_err(|_| NatsError::Ended)?;
                    }
                }
            }
        });
        match answer.await {
            Ok(answer) => answer?,
            Err(_) => {
                self.same(generation)?;
                return Err(NatsError::TimedOut {
                    what: "a message to the server and back",
                    after: CONFIRM_TIMEOUT,
                });
            }
        }
        // What was denied on the way was told before the echo, but by another task: let it run.
        for _ in 0..2 {
            tokio::task::yield_now().await;
        }
        self.same(generation)
    }

    fn same(&self, generation: u64) -> Result<(), NatsError> {
        if self.generation() != generation {
            return Err(NatsError::Reconnected);
        }
        if !self.is_up() {
            return Err(NatsError::Disconnected {
                why: self.why_down(),
            });
        }
        Ok(())
    }

    /// Sends what the client still has, as far as there is a connection, and closes. Does not wait for it.
    pub(crate) async fn close(&self) {
        self.0.shared.closed.send_replace(true);
        if self.is_up() {
            let _ = timeout(PUBLISH_TIMEOUT, self.0.client.drain()).await;
        }
    }

    /// For those who log once and not again: whether these words are new, or were last said long ago.
    pub(crate) fn says(&self, words: &str) -> bool {
        lock(&self.0.shared.record).says(words, Instant::now())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.closed.send_replace(true);
        self.reader.abort();
    }
}

/// Takes an echo that nobody waits for any more off the list.
struct Forget<'a>(&'a Shared, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(&self.0.echoes).remove(&self.1);
    }
}

async fn hear_echoes(mut echoes: Subscriber, shared: Arc<Shared>) {
    while let Some(message) = echoes.next().await {
        shared.echo(&message.subject);
    }
}

impl Shared {
    /// The number at the end of a subject of the inbox has come back, or was denied: either way all before it was
    /// processed.
    fn echo(&self, subject: &str) -> bool {
        let number = self
            .inbox
            .get()
            .and_then(|inbox| subject.strip_prefix(inbox.as_str()))
            .and_then(|rest| rest.strip_prefix('.'))
            .and_then(|number| number.parse().ok());
        let Some(number) = number else {
            return false;
        };
        let waiting = lock(&self.echoes).remove(&number);
        if let Some(waiting) = waiting {
            let _ = waiting.send(());
        }
        true
    }

    async fn event(&self, event: Event) {
        let client = self.connection.get().and_then(Weak::upgrade);
        if let (Event::Connected, Some(inner)) = (&event, &client) {
            // The client says so just before it is, and before it knows its server's name.
            for _ in 0..SETTLE_YIELDS {
                tokio::task::yield_now().await;
                if inner.client.connection_state() == ClientState::Connected
                    && inner.client.try_server_info().is_some()
                {
                    break;
                }
            }
        }
        let info = client
            .as_ref()
            .and_then(|inner| inner.client.try_server_info());
        let server = info.map_or_else(
            || "the server".to_owned(),
            |info| format!("{} (nats-server {})", info.server_name, info.version),
        );
        let generation = client
            .as_ref()
            .map(|inner| inner.client.statistics().connects.load(Ordering::Acquire));
        let up =
            client.is_some_and(|inner| inner.client.connection_state() == ClientState::Connected);
        if up && !matches!(event, Event::Connected | Event::Disconnected) {
            // The client drops events when there are too many, perhaps that one.
            let missed = lock(&self.record).state != ConnectionState::Connected;
            if missed {
                self.step(What::Connected(server.clone()), generation);
            }
        }
        let what = match event {
            Event::Connected => What::Connected(server),
            Event::Disconnected => What::Lost(server),
            Event::SlowConsumer(_) => What::Slow,
            Event::LameDuckMode => What::LameDuck(server),
            Event::ServerError(ServerError::Other(text)) => match denial(&text) {
                // Being denied is an answer, too: all before it was processed.
                Some(denial) if denial.publish && self.echo(&denial.subject) => {
                    What::EchoDenied(denial)
                }
                Some(denial) => {
                    let inbox = self.inbox.get().is_some_and(|inbox| {
                        !denial.publish && denial.subject.starts_with(inbox.as_str())
                    });
                    What::Denied { denial, inbox }
                }
                None => What::Error(text),
            },
            Event::ServerError(error) => What::Error(error.to_string()),
            // Told in more words at the next attempt.
            Event::ClientError(_) | Event::Draining | Event::Closed => return,
        };
        self.step(what, generation);
    }

    /// Before each round of attempts; the servers know how their last one ended.
    async fn attempt(&self, servers: &[Server]) {
        if *self.closed.borrow() {
            // Nobody is there to connect for, and the client can't be told to stop trying.
            std::future::pending::<()>().await;
        }
        let failed: Vec<_> = servers
            .iter()
            .filter_map(|server| {
                let error = server.last_error.as_deref()?;
                Some(explain(&address(&server.addr), error, &self.who))
            })
            .collect();
        if !failed.is_empty() {
            self.step(What::Failed(failed), None);
        }
    }

    fn step(&self, what: What, generation: Option<u64>) {
        let line = {
            let mut record = lock(&self.record);
            let line = record.step(what, self.silence, SystemTime::now(), Instant::now());
            self.link.send_if_modified(|link| {
                let new = Link {
                    state: record.state,
                    // Events may be dropped by the client, its count is right.
                    generation: generation.unwrap_or(link.generation).max(link.generation),
                    denied: record.denied,
                    slow: record.slow,
                };
                let modified = *link != new;
                *link = new;
                modified
            });
            line
        };
        let (role, servers) = (self.role, self.servers.join(","));
        match line {
            Some(Line::Info(text)) => tracing::info!(servers, "metricbus {role}: {text}"),
            Some(Line::Warn(text)) => tracing::warn!(servers, "metricbus {role}: {text}"),
            None => {}
        }
    }
}

/// What happened to a connection.
#[derive(Debug)]
enum What {
    Connected(String),
    Lost(String),
    Failed(Vec<Explained>),
    Denied { denial: Denial, inbox: bool },
    EchoDenied(Denial),
    Slow,
    LameDuck(String),
    Error(String),
}

/// What there is to say in the log.
#[derive(Debug, PartialEq)]
enum Line {
    Info(String),
    Warn(String),
}

/// What is known of a connection. Pure.
#[derive(Debug)]
struct Record {
    state: ConnectionState,
    since: SystemTime,
    last_error: Option<String>,
    last_error_at: Option<SystemTime>,
    denied: u64,
    denials: VecDeque<Denial>,
    /// Of these it was said that they are denied, on this connection.
    denied_said: HashSet<Denial>,
    inbox_denied: bool,
    slow: u64,
    said: HashMap<String, Instant>,
}

impl Record {
    fn new(now: SystemTime) -> Record {
        Record {
            state: ConnectionState::Connecting,
            since: now,
            last_error: None,
            last_error_at: None,
            denied: 0,
            denials: VecDeque::new(),
            denied_said: HashSet::new(),
            inbox_denied: false,
            slow: 0,
            said: HashMap::new(),
        }
    }

    fn step(
        &mut self,
        what: What,
        silence: Duration,
        date: SystemTime,
        now: Instant,
    ) -> Option<Line> {
        match what {
            What::Connected(server) => {
                self.enter(ConnectionState::Connected, date);
                self.denied_said.clear();
                self.inbox_denied = false;
                Some(Line::Info(format!("connected to {server}")))
            }
            What::Lost(server) => {
                self.enter(ConnectionState::Disconnected, date);
                let words = format!(
                    "the connection to {server} was lost: it closed it, or did not answer for {silence:?}; trying again"
                );
                self.error(words.clone(), date);
                Some(Line::Warn(words))
            }
            What::Failed(failed) => {
                let refused = failed.iter().any(|explained| explained.refused);
                let words: Vec<_> = failed
                    .into_iter()
                    .map(|explained| explained.words)
                    .collect();
                let words = words.join("; ");
                let before = self.state;
                match (refused, before) {
                    (true, _) => self.enter(ConnectionState::Refused, date),
                    (false, ConnectionState::Refused) => {
                        self.enter(ConnectionState::Disconnected, date);
                    }
                    (false, _) => {}
                }
                self.error(words.clone(), date);
                let new = self.says(&words, now);
                (new || before != self.state).then(|| {
                    let state = self.state;
                    Line::Warn(format!("{state}: {words}; trying again"))
                })
            }
            What::EchoDenied(denial) => {
                let words = denied_words(&denial);
                self.says(&words, now).then_some(Line::Info(words))
            }
            What::Denied { denial, inbox } => {
                self.denied += 1;
                self.inbox_denied |= inbox;
                let words = denied_words(&denial);
                self.error(words.clone(), date);
                if self.denials.len() == DENIED_MAX {
                    self.denials.pop_front();
                }
                self.denials.push_back(denial.clone());
                if self.denied_said.len() >= DENIED_MAX || !self.denied_said.insert(denial) {
                    return None;
                }
                Some(Line::Warn(words))
            }
            What::Slow => {
                self.slow += 1;
                let words = "messages were dropped, since they were not read as fast as they came; fewer sources, a longer interval of theirs or a faster machine would help".to_owned();
                self.error(words.clone(), date);
                self.says(&words, now).then_some(Line::Warn(words))
            }
            What::LameDuck(server) => Some(Line::Info(format!(
                "{server} is about to shut down, and will close the connection"
            ))),
            What::Error(text) => {
                let words = format!("the server says: {text}{}", server_advice(&text));
                self.error(words.clone(), date);
                self.says(&words, now).then_some(Line::Warn(words))
            }
        }
    }

    fn enter(&mut self, state: ConnectionState, date: SystemTime) {
        if self.state != state {
            self.state = state;
            self.since = date;
        }
    }

    fn error(&mut self, words: String, date: SystemTime) {
        self.last_error = Some(words);
        self.last_error_at = Some(date);
    }

    /// Whether these words were not said for a while; they are said now.
    fn says(&mut self, words: &str, now: Instant) -> bool {
        self.said
            .retain(|_, last| now.saturating_duration_since(*last) < LOG_AGAIN);
        if self.said.contains_key(words) || self.said.len() >= DENIED_MAX {
            return false;
        }
        self.said.insert(words.to_owned(), now);
        true
    }
}

fn denied_words(denial: &Denial) -> String {
    let what = if denial.publish {
        "publish to"
    } else {
        "subscribe to"
    };
    let subject = &denial.subject;
    format!(
        "the server does not permit to {what} {subject:?}: allow it for this user in the server's configuration"
    )
}

/// What the server does not permit, from its words: `Permissions Violation for Publish to "a.b"`.
fn denial(text: &str) -> Option<Denial> {
    let lower = text.to_ascii_lowercase();
    if !lower.contains("permissions violation") {
        return None;
    }
    let mut quoted = text.split('"');
    let subject = quoted.nth(1)?.to_owned();
    Some(Denial {
        publish: lower.contains("for publish"),
        subject,
    })
}

/// What to do about what a server says before it closes the connection.
fn server_advice(text: &str) -> &'static str {
    let lower = text.to_ascii_lowercase();
    let has = |needle: &str| lower.contains(needle);
    if has("slow consumer") {
        "; it sends faster than this process reads: fewer sources, a longer interval of theirs or a faster machine would help"
    } else if has("stale connection") {
        "; it had no answer to its pings: this process was stopped, or short of time"
    } else if has("expired") || has("revoked") {
        "; give the user new credentials: a file of credentials is read again at each connection"
    } else if has("maximum subscriptions") {
        "; raise the user's or account's max_subscriptions"
    } else if has("maximum connections") {
        "; raise max_connections"
    } else if has("payload") {
        "; raise max_payload"
    } else {
        ""
    }
}

/// An error with what to do about it.
#[derive(Debug)]
struct Explained {
    words: String,
    /// There is somebody, who refuses us, or whom we refuse.
    refused: bool,
}

/// The client says what happened; an operator needs to know what to do.
fn explain(address: &str, error: &str, who: &str) -> Explained {
    let lower = error.to_ascii_lowercase();
    let has = |needle: &str| lower.contains(needle);
    let (advice, refused) = if has("authorization violation") || has("authentication") {
        if has("failed signing nonce") {
            (
                "the file of credentials can't be read or used any more".to_owned(),
                true,
            )
        } else {
            (
                format!(
                    "it does not accept {who}: check user, password, token or key, here and in the server's configuration"
                ),
                true,
            )
        }
    } else if has("failed signing nonce") {
        (
            "the credentials can't be read or used any more".to_owned(),
            true,
        )
    } else if has("unknownissuer") || has("unknown issuer") || has("unknownca") {
        (
            "its certificate was made by an authority that is not known here: give that one's certificate with root_certificates (NATS_CA)".to_owned(),
            true,
        )
    } else if has("notvalidforname") || has("not valid for name") {
        (
            "its certificate is for another name: connect by the name in it".to_owned(),
            true,
        )
    } else if has("expired") || has("notvalidyet") || has("not valid yet") {
        (
            "a certificate or a user's JWT is not valid at this time: renew it, and check the clocks".to_owned(),
            true,
        )
    } else if has("certificaterequired") || has("certificate required") || has("badcertificate") {
        (
            "it demands a certificate of ours: give one with client_certificate (NATS_CERT, NATS_KEY)".to_owned(),
            true,
        )
    } else if has("invalid peer certificate") || has("certificate") {
        ("its certificate is not accepted".to_owned(), true)
    } else if has("invalidcontenttype") || has("corrupt message") {
        (
            "TLS was begun, and it does not speak TLS at that point: leave out tls_first"
                .to_owned(),
            true,
        )
    } else if has("maximum connections") {
        (
            "it has as many connections as it takes: raise max_connections".to_owned(),
            true,
        )
    } else if has("connection refused") {
        (
            "nobody listens there: check the address, and whether nats-server runs".to_owned(),
            false,
        )
    } else if has("dns") {
        ("its name can't be resolved: check it".to_owned(), false)
    } else if has("timed out") {
        (
            "it does not answer: check address and firewall, and whether it wants TLS from the first byte (tls_first)".to_owned(),
            false,
        )
    } else {
        ("check the address, and the server's log".to_owned(), false)
    };
    Explained {
        words: format!("{address}: {error}; {advice}"),
        refused,
    }
}

/// How long to wait before an attempt: not at all before the first, then longer and longer.
#[derive(Default)]
struct Delays {
    last_first: Mutex<Option<Instant>>,
}

impl Delays {
    fn before(&self, attempt: usize, now: Instant) -> Duration {
        if attempt <= 1 {
            // A server that closes each connection at once would else be asked without pause.
            let last = lock(&self.last_first).replace(now);
            let soon = last.is_some_and(|last| now.saturating_duration_since(last) < DELAY_MAX);
            return if soon {
                jittered(DELAY_MAX / 4)
            } else {
                Duration::ZERO
            };
        }
        let exponent = u32::try_from(attempt - 2).unwrap_or(u32::MAX).min(16);
        jittered(DELAY_MAX.min(Duration::from_millis(50) * 2u32.pow(exponent)))
    }
}

/// Somewhere between half of it and all.
pub(crate) fn jittered(delay: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    // The only randomness of the standard library: each state has keys of its own.
    let random = RandomState::new().hash_one(0u8) % 1024;
    delay / 2 + delay / 2 * u32::try_from(random).unwrap_or(0) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(15);

    struct Bench {
        record: Record,
        now: Instant,
    }

    impl Bench {
        fn new() -> Bench {
            Bench {
                record: Record::new(SystemTime::UNIX_EPOCH),
                now: Instant::now(),
            }
        }

        fn step(&mut self, what: What) -> Option<Line> {
            self.record
                .step(what, SILENCE, SystemTime::UNIX_EPOCH, self.now)
        }

        fn failed(&mut self, error: &str) -> Option<Line> {
            self.step(What::Failed(vec![explain("nats://a:1", error, "a token")]))
        }

        fn denied(&mut self, subject: &str) -> Option<Line> {
            let text = format!("Permissions Violation for Publish to \"{subject}\"");
            let denial = denial(&text).unwrap();
            self.step(What::Denied {
                denial,
                inbox: false,
            })
        }
    }

    #[test]
    fn each_change_of_state_is_one_line_and_the_same_error_is_not_repeated() {
        let mut bench = Bench::new();
        let refused = "IO error: Connection refused (os error 111)";
        let Some(Line::Warn(text)) = bench.failed(refused) else {
            panic!("the first failure is told");
        };
        assert!(
            text.contains("nats://a:1") && text.contains("nobody listens"),
            "{text}"
        );
        assert_eq!(bench.record.state, ConnectionState::Connecting);
        assert_eq!(bench.failed(refused), None);
        assert!(bench.step(What::Connected("s".to_owned())).is_some());
        assert_eq!(bench.record.state, ConnectionState::Connected);
        assert!(bench.step(What::Lost("s".to_owned())).is_some());
        assert_eq!(bench.record.state, ConnectionState::Disconnected);
        assert_eq!(bench.failed(refused), None);
        bench.now += LOG_AGAIN;
        assert!(bench.failed(refused).is_some());
    }

    #[test]
    fn wrong_credentials_and_certificates_are_a_refusal_that_says_what_to_do() {
        for (error, advice) in [
            (
                "authorization violation: nats: authorization violation",
                "does not accept a token",
            ),
            (
                "IO error: invalid peer certificate: UnknownIssuer",
                "root_certificates",
            ),
            (
                "IO error: received fatal alert: CertificateRequired",
                "client_certificate",
            ),
            (
                "IO error: invalid peer certificate: NotValidForName",
                "by the name in it",
            ),
            (
                "failed signing nonce: AuthError(credentials file \"/c\": gone)",
                "can't be read",
            ),
        ] {
            let mut bench = Bench::new();
            let Some(Line::Warn(text)) = bench.failed(error) else {
                panic!("told");
            };
            assert!(text.contains(advice), "{text}");
            assert_eq!(bench.record.state, ConnectionState::Refused);
            // Then the server goes away: that is no refusal any more.
            assert!(bench.failed("IO error: Connection refused").is_some());
            assert_eq!(bench.record.state, ConnectionState::Disconnected);
        }
    }

    #[test]
    fn what_is_denied_is_counted_each_time_and_told_once_per_subject_and_connection() {
        let mut bench = Bench::new();
        assert!(bench.denied("a.b").is_some());
        assert_eq!(bench.denied("a.b"), None);
        assert!(bench.denied("a.c").is_some());
        assert_eq!(bench.record.denied, 3);
        assert!(
            bench
                .record
                .last_error
                .as_ref()
                .unwrap()
                .contains("\"a.c\"")
        );
        bench.step(What::Connected("s".to_owned()));
        assert!(bench.denied("a.b").is_some());
        for n in 0..2 * DENIED_MAX {
            bench.denied(&n.to_string());
        }
        assert_eq!(bench.record.denials.len(), DENIED_MAX);
        assert!(bench.record.denied_said.len() <= DENIED_MAX);
    }

    #[test]
    fn denials_are_understood() {
        let of = |text: &str| denial(text).map(|denial| (denial.publish, denial.subject));
        assert_eq!(
            of("Permissions Violation for Publish to \"a.b\""),
            Some((true, "a.b".to_owned()))
        );
        assert_eq!(
            of("Permissions Violation for Subscription to \"a.*\" using queue \"q\""),
            Some((false, "a.*".to_owned()))
        );
        assert_eq!(of("Stale Connection"), None);
        assert_eq!(of("Permissions Violation"), None);
    }

    #[test]
    fn what_a_server_says_before_it_closes_is_told_with_what_to_do() {
        for (text, advice) in [
            ("Slow Consumer", "faster"),
            ("Stale Connection", "pings"),
            ("User Authentication Expired", "new credentials"),
        ] {
            let line = Bench::new().step(What::Error(text.to_owned()));
            let Some(Line::Warn(line)) = line else {
                panic!("told");
            };
            assert!(line.contains(text) && line.contains(advice), "{line}");
        }
    }

    #[test]
    fn what_is_remembered_of_log_lines_is_bounded() {
        let mut bench = Bench::new();
        for n in 0..10 * DENIED_MAX {
            bench.step(What::Error(n.to_string()));
        }
        assert!(bench.record.said.len() <= DENIED_MAX);
    }

    #[test]
    fn the_first_attempt_is_immediate_and_later_ones_are_bounded() {
        let delays = Delays::default();
        let now = Instant::now();
        assert_eq!(delays.before(1, now), Duration::ZERO);
        for attempt in 2..1000 {
            let delay = delays.before(attempt, now);
            assert!(delay > Duration::ZERO && delay <= DELAY_MAX, "{delay:?}");
        }
        // Connected, and cut again at once.
        assert!(delays.before(1, now + Duration::from_millis(5)) > Duration::ZERO);
        assert_eq!(delays.before(1, now + 10 * DELAY_MAX), Duration::ZERO);
    }

    #[tokio::test]
    async fn nobody_there_is_no_error() {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .unwrap()
            .port();
        let options = NatsOptions::new(&format!("nats://127.0.0.1:{port}")).unwrap();
        let connection = Connection::open(&options, "test").await.unwrap();
        let mut watch = connection.watch();
        while connection.status().last_error.is_none() {
            // The link itself does not change by an error.
            tokio::select! {
                changed = watch.changed() => changed.unwrap(),
                () = tokio::task::yield_now() => {}
            }
        }
        let status = connection.status();
        assert_eq!(status.state, ConnectionState::Connecting);
        assert!(status.last_error.unwrap().contains("nobody listens"));
        let error = connection.publish("a", None, None, Bytes::new()).await;
        assert!(matches!(error, Err(NatsError::Disconnected { .. })));
        assert!(connection.confirm_since(0).await.is_err());
    }
}

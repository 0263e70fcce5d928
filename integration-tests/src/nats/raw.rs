//! What anybody on the bus hears: subjects, headers and bytes as they come, by a client that knows nothing of metricbus.

use std::sync::{Arc, Mutex, PoisonError};

use async_nats::{Client, Message};
use futures_util::StreamExt as _;
use serde_json::Value;
use tokio::task::JoinHandle;

use super::{until, until_it_answers};

/// Everything on a subject since this was made.
#[derive(Debug)]
pub struct Raw {
    heard: Arc<Mutex<Vec<Message>>>,
    reader: JoinHandle<()>,
}

impl Raw {
    /// Subscribed when this returns.
    pub async fn of(client: &Client, subject: &str) -> Raw {
        let mut messages = client
            .subscribe(subject.to_owned())
            .await
            .unwrap_or_else(|why| panic!("{subject}: {why}"));
        until_it_answers(client).await;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&heard);
        let reader = tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                list.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(message);
            }
        });
        Raw { heard, reader }
    }

    /// All so far.
    pub fn all(&self) -> Vec<Message> {
        self.heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits for so many.
    pub async fn until(&self, count: usize) -> Vec<Message> {
        until(&format!("{count} messages"), || {
            let all = self.all();
            (all.len() >= count).then_some(all)
        })
        .await
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A header's value; empty where there is none.
pub fn header<'a>(message: &'a Message, name: &str) -> &'a str {
    let headers = message.headers.as_ref();
    headers
        .and_then(|headers| headers.get(name))
        .map_or("", |value| value.as_str())
}

/// A header's value as a number.
pub fn number(message: &Message, name: &str) -> u64 {
    let value = header(message, name);
    value
        .parse()
        .unwrap_or_else(|why| panic!("{name} {value:?} of {}: {why}", message.subject))
}

/// A message's body as JSON.
pub fn json(message: &Message) -> Value {
    serde_json::from_slice(&message.payload)
        .unwrap_or_else(|why| panic!("{}: {why}: {:?}", message.subject, message.payload))
}

/// Asks, and takes all parts of the answer.
pub async fn ask(client: &Client, subject: &str, body: &str) -> Vec<Message> {
    let inbox = client.new_inbox();
    let mut answers = client
        .subscribe(inbox.clone())
        .await
        .unwrap_or_else(|why| panic!("{subject}: {why}"));
    client
        .publish_with_reply(subject.to_owned(), inbox, body.to_owned().into())
        .await
        .unwrap_or_else(|why| panic!("{subject}: {why}"));
    let mut parts = Vec::new();
    loop {
        let answer = tokio::time::timeout(super::DEADLINE / 2, answers.next());
        let Ok(Some(answer)) = answer.await else {
            panic!("no answer, or not all of it, from {subject}: {parts:?}");
        };
        let last = match header(&answer, "Metricbus-Part").split_once('/') {
            Some((part, of)) => part == of,
            None => true,
        };
        parts.push(answer);
        if last {
            return parts;
        }
    }
}

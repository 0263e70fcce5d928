//! A consumer of alerts that knows nothing of metricbus: async-nats and JSON, as any language has them.

use std::time::Duration;

use async_nats::jetstream::{self, consumer::pull, stream::Stream};
use futures::StreamExt;
use serde_json::Value;
use tokio::time::sleep;

use crate::{
    STREAM,
    server::Failure,
    voice::{Commands, Fact, Transition, Voice},
};

/// Alerts of everybody: metricbus.v1.{namespace}.{component}.{instance}.a.{rule}.{firing|resolved}
const ALERTS: &str = "metricbus.v1.*.*.*.a.>";

/// Under which the server remembers how far this consumer has read.
const NAME: &str = "plain";

pub async fn run(url: Option<&str>, voice: Voice) -> Result<(), Failure> {
    let from_env = std::env::var("NATS_URL").ok();
    let url = url
        .or(from_env.as_deref())
        .unwrap_or("nats://127.0.0.1:4222");
    let client = async_nats::ConnectOptions::new()
        .name("plain consumer")
        .retry_on_initial_connect()
        .connect(url)
        .await?;
    voice.note(Fact::Ready);
    voice.say(format!(
        "I read {ALERTS} from stream {STREAM}, and know only NATS and JSON"
    ));
    tokio::select! {
        failed = read(client, voice) => failed,
        () = until_told(voice.commands()) => Ok(()),
    }
}

/// Prints alerts for ever.
async fn read(client: async_nats::Client, voice: Voice) -> Result<(), Failure> {
    let stream = find(jetstream::new(client)).await;
    // Durable: the server knows what was acknowledged, also when one of the two was away meanwhile.
    let consumer = stream
        .get_or_create_consumer(
            NAME,
            pull::Config {
                durable_name: Some(NAME.into()),
                filter_subject: ALERTS.into(),
                ..pull::Config::default()
            },
        )
        .await?;
    let mut messages = consumer
        .stream()
        // Without one for twice as long it asks anew: so soon it goes on when the server has been away.
        .heartbeat(Duration::from_millis(500))
        .messages()
        .await?;
    let mut last = None;
    while let Some(message) = messages.next().await {
        let Ok(message) = message else {
            // It asks again by itself.
            continue;
        };
        match serde_json::from_slice::<Value>(&message.payload) {
            // If an acknowledgement is lost the message comes again; it has the same id.
            Ok(event) if last.as_ref() != Some(&event["id"]) => {
                told(&event, voice);
                last = Some(event["id"].clone());
            }
            Ok(_) => {}
            Err(error) => voice.say(format!("{}: no JSON: {error}", message.subject)),
        }
        message.ack().await?;
    }
    Err("the stream has ended".into())
}

/// The stream; the first worker makes it.
async fn find(jetstream: jetstream::Context) -> Stream {
    loop {
        match jetstream.get_stream(STREAM).await {
            Ok(stream) => return stream,
            Err(_) => sleep(Duration::from_millis(200)).await,
        }
    }
}

/// Prints one alert: a CloudEvent.
fn told(event: &Value, voice: Voice) {
    let text = |pointer| {
        event
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or("?")
    };
    let (source, rule, state) = (text("/source"), text("/data/rule"), text("/data/state"));
    // NaN and the infinities are strings.
    let value = event["data"]["value"].as_f64().unwrap_or(f64::NAN);
    voice.note(Fact::Alert(Transition {
        instance: source.rsplit('/').next().unwrap_or_default().into(),
        rule: rule.into(),
        epoch: event["data"]["epoch"].as_u64().unwrap_or(0),
        firing: state == "firing",
    }));
    voice.say(format!(
        "{source}: {rule} {state} at {value:.3}, sequence {}",
        text("/sequence")
    ));
}

async fn until_told(mut commands: Commands) {
    while commands.next().await.is_some() {}
}

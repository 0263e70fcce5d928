//! Alerts as CloudEvents 1.0, in their JSON.

use std::{borrow::Cow, sync::Arc, time::SystemTime};

use async_nats::HeaderMap;
use serde::{Deserialize, Serialize};

use super::{
    WireError,
    envelope::{
        ALERT_TYPE, EPOCH_MAX, Envelope, JSON_TYPE, MESSAGE_ID, SEQUENCE, SEQUENCE_MAX, name, whole,
    },
    limits::NAME_MAX,
    number::{Date, Map, Pairs, Real, Whole},
    read_json,
};
use crate::{
    Alert, AlertCause, AlertState, Origin, Quality, SourceId, Time,
    desc::check_label_name,
    nats::subject::{check_part, shown, source_tokens, strip_source},
    time::nanos,
};

const TYPE: &str = "io.metricbus.alert.";

/// The most groups that an alert says its condition holds for.
const HOLDING_MAX: usize = 64;

/// What is the same in all alerts that a source sends in one of its lives, written once.
pub(crate) struct Letterhead {
    /// All of an alert's id but its sequence.
    id: String,
    uri: String,
    epoch: String,
    /// The sequence and the id have their places in it.
    headers: HeaderMap,
}

impl Letterhead {
    pub(crate) fn new(source: SourceId, epoch: u64) -> Letterhead {
        let envelope = Envelope {
            source,
            epoch,
            sequence: 0,
        };
        let mut headers = envelope.headers(ALERT_TYPE);
        headers.insert(name(MESSAGE_ID), "");
        Letterhead {
            id: format!("{}-{epoch}-", source_tokens(&envelope.source)),
            uri: uri(&envelope.source),
            epoch: epoch.to_string(),
            headers,
        }
    }

    /// What an alert is known by: the same however often it is sent.
    fn id(&self, sequence: u64) -> String {
        let mut id = String::with_capacity(self.id.len() + SEQUENCE_DIGITS);
        id.push_str(&self.id);
        id.push_str(itoa::Buffer::new().format(sequence));
        id
    }

    /// The headers of an alert: those of its [envelope](Envelope::headers), and its id.
    pub(crate) fn headers(&self, sequence: u64) -> HeaderMap {
        let mut headers = self.headers.clone();
        headers.insert(
            name(SEQUENCE),
            itoa::Buffer::new().format(sequence).to_owned(),
        );
        headers.insert(name(MESSAGE_ID), self.id(sequence));
        headers
    }

    /// An alert as a CloudEvent of at most `max_bytes`. Where it is larger it goes without annotations, then without
    /// [`holding`](Alert::holding), and says `"truncated": true`.
    ///
    /// # Errors
    ///
    /// When it is too large even so, or the rule's name does not go into a subject.
    pub(crate) fn encode(
        &self,
        alert: &Alert,
        sequence: u64,
        max_bytes: usize,
    ) -> Result<Vec<u8>, WireError> {
        check_part("rule", &alert.rule)?;
        let mut bytes = 0;
        for size in [Size::Whole, Size::WithoutAnnotations, Size::Least] {
            let body = self
                .write(alert, sequence, size)
                .map_err(|error| WireError::json(&error))?;
            bytes = body.len();
            if bytes <= max_bytes {
                return Ok(body);
            }
        }
        Err(WireError::TooLarge {
            what: "an alert",
            bytes,
            max: max_bytes,
        })
    }

    /// By hand: an alert is on its way while this is done, on a processor that has just woken up, and the keys are always
    /// the same.
    fn write(&self, alert: &Alert, sequence: u64, size: Size) -> serde_json::Result<Vec<u8>> {
        let mut json = Json(Vec::with_capacity(BODY_ROOM));
        let date = Date(alert.date).text();
        let state = alert.state.as_str();
        // The id, the URI and dates have nothing in them that would be escaped.
        json.raw(r#"{"specversion":"1.0","id":""#);
        json.raw(&self.id);
        json.integer(sequence);
        json.raw(r#"","source":""#);
        json.raw(&self.uri);
        json.raw(r#"","type":""#);
        json.raw(TYPE);
        json.raw(state);
        json.raw(r#"","subject":"#);
        match alert.group.is_empty() {
            true => json.text(&alert.rule)?,
            false => json.text(&subject(alert))?,
        }
        json.raw(r#","time":""#);
        json.raw(&date);
        json.raw(r#"","datacontenttype":""#);
        json.raw(JSON_TYPE);
        json.raw(r#"","sequence":""#);
        json.integer(sequence);
        json.raw(r#"","metricbusepoch":""#);
        json.raw(&self.epoch);
        json.raw(r#"","data":{"rule":"#);
        json.text(&alert.rule)?;
        json.raw(r#","state":""#);
        json.raw(state);
        json.raw(r#"","level":"#);
        json.text_or_null(alert.level.as_deref())?;
        json.raw(r#","previous_level":"#);
        json.text_or_null(alert.previous_level.as_deref())?;
        json.raw(r#","group":"#);
        json.pairs(&alert.group)?;
        json.raw(r#","labels":"#);
        json.pairs(&alert.labels)?;
        json.raw(r#","annotations":"#);
        match size {
            Size::Whole => json.pairs(&alert.annotations)?,
            Size::WithoutAnnotations | Size::Least => json.raw("{}"),
        }
        json.raw(r#","series":"#);
        let series = alert.series.as_ref().map(ToString::to_string);
        json.text_or_null(series.as_deref())?;
        json.raw(r#","value":"#);
        json.value(&alert.value.map(Real))?;
        json.raw(r#","quality":""#);
        json.raw(alert.quality.as_str());
        json.raw(r#"","epoch":"#);
        json.value(&Whole(alert.epoch))?;
        json.raw(r#","cause":""#);
        json.raw(alert.cause.as_str());
        json.raw(r#"","at":""#);
        json.raw(&date);
        json.raw(r#"","since":""#);
        match alert.since_date == alert.date {
            true => json.raw(&date),
            false => json.raw(&Date(alert.since_date).text()),
        }
        json.raw(r#"","holds":"#);
        json.value(&Whole(alert.holds as u64))?;
        json.raw(r#","members":"#);
        json.value(&Whole(alert.members as u64))?;
        json.raw(r#","holding":["#);
        let holding = match size {
            Size::Whole | Size::WithoutAnnotations => &*alert.holding,
            Size::Least => &[],
        };
        for (i, group) in holding.iter().enumerate() {
            if i > 0 {
                json.raw(",");
            }
            json.pairs(group)?;
        }
        json.raw(r#"],"repeat":"#);
        json.integer(u64::from(alert.repeat));
        if size != Size::Whole {
            json.raw(r#","truncated":true"#);
        }
        json.raw("}}");
        Ok(json.0)
    }
}

/// The most digits of a sequence.
const SEQUENCE_DIGITS: usize = 20;

/// More than most alerts take.
const BODY_ROOM: usize = 1_024;

/// What of an alert is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Size {
    Whole,
    WithoutAnnotations,
    /// Nor with the groups it holds for.
    Least,
}

/// JSON that is being written.
struct Json(Vec<u8>);

impl Json {
    fn raw(&mut self, json: &str) {
        self.0.extend_from_slice(json.as_bytes());
    }

    fn integer(&mut self, n: u64) {
        self.raw(itoa::Buffer::new().format(n));
    }

    fn text(&mut self, text: &str) -> serde_json::Result<()> {
        let escaped = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
        if text.bytes().any(escaped) {
            return self.value(text);
        }
        self.raw("\"");
        self.raw(text);
        self.raw("\"");
        Ok(())
    }

    fn text_or_null(&mut self, text: Option<&str>) -> serde_json::Result<()> {
        match text {
            Some(text) => self.text(text),
            None => {
                self.raw("null");
                Ok(())
            }
        }
    }

    fn pairs(&mut self, pairs: &[(String, String)]) -> serde_json::Result<()> {
        self.value(&Pairs(pairs))
    }

    fn value<T: Serialize + ?Sized>(&mut self, value: &T) -> serde_json::Result<()> {
        serde_json::to_writer(&mut self.0, value)
    }
}

/// As [`Letterhead::encode`], of one alert.
#[cfg(any(test, fuzzing))]
pub(crate) fn encode_alert(
    alert: &Alert,
    envelope: &Envelope,
    max_bytes: usize,
) -> Result<Vec<u8>, WireError> {
    let letterhead = Letterhead::new(envelope.source.clone(), envelope.epoch);
    letterhead.encode(alert, envelope.sequence, max_bytes)
}

/// The alert of a CloudEvent, with [`origin`](Alert::origin) set from its attributes; whoever calls compares that with
/// headers and subject. `received` becomes its `at`; `since` is reckoned back from there.
///
/// # Errors
///
/// When it is not as [`Letterhead::encode`] makes them.
pub(crate) fn decode_alert(bytes: &[u8], received: Time) -> Result<Alert, WireError> {
    let event: Incoming<'_> = read_json(bytes)?;
    if event.specversion != "1.0" {
        return Err(wrong("specversion", &event.specversion, "\"1.0\""));
    }
    let source = read_uri(&event.source).ok_or_else(|| {
        wrong(
            "source",
            &event.source,
            "/metricbus/namespace/component/instance",
        )
    })?;
    let number = |field, text: &str, least, most| {
        let number = whole(text).filter(|n| (least..=most).contains(n));
        number.ok_or_else(|| wrong(field, text, "a number in plain digits"))
    };
    let envelope = Envelope {
        source,
        epoch: number("metricbusepoch", &event.metricbusepoch, 1, EPOCH_MAX)?,
        sequence: number("sequence", &event.sequence, 1, SEQUENCE_MAX)?,
    };
    if !is_id(
        &event.id,
        &envelope.source,
        &event.metricbusepoch,
        &event.sequence,
    ) {
        let source = source_tokens(&envelope.source);
        let id = format!("{source}-{}-{}", envelope.epoch, envelope.sequence);
        return Err(wrong(
            "id",
            &event.id,
            &format!("{id:?}, by its attributes"),
        ));
    }
    let data = event.data;
    let state = [AlertState::Firing, AlertState::Resolved]
        .into_iter()
        .find(|state| state.as_str() == data.state)
        .ok_or_else(|| wrong("data.state", &data.state, "firing or resolved"))?;
    if event.r#type.strip_prefix(TYPE) != Some(state.as_str()) {
        return Err(wrong(
            "type",
            &event.r#type,
            &format!("{TYPE}{state}, by its state"),
        ));
    }
    if data.rule.is_empty() {
        return Err(wrong("data.rule", "", "the name of a rule"));
    }
    check_part("rule", &data.rule)?;
    for level in [&data.level, &data.previous_level].into_iter().flatten() {
        if level.is_empty() || level.len() > NAME_MAX {
            return Err(wrong("data.level", level, "a name of 1 to 256 bytes"));
        }
    }
    if data.holding.len() > HOLDING_MAX {
        return Err(WireError::field(
            "data.holding",
            format!(
                "{} groups are too many: at most {HOLDING_MAX}",
                data.holding.len()
            ),
        ));
    }
    let at = date("time", &event.time)?;
    // Mostly it is the same text, and need not be read again.
    if data.at != event.time && date("data.at", &data.at)? != at {
        return Err(WireError::field("data.at", "it is not the event's time"));
    }
    let since = match data.since == data.at {
        true => at,
        false => date("data.since", &data.since)?,
    };
    let held = at.duration_since(since).unwrap_or_default();
    let count = |field, n: Whole| {
        usize::try_from(n.0).map_err(|_| WireError::field(field, format!("{} is too many", n.0)))
    };
    Ok(Alert {
        rule: data.rule.into(),
        state,
        level: data.level.map(Arc::from),
        previous_level: data.previous_level.map(Arc::from),
        group: labels("data.group", data.group)?,
        labels: labels("data.labels", data.labels)?,
        annotations: sorted(data.annotations),
        series: None,
        value: data.value.map(|value| value.0),
        quality: quality(&data.quality).ok_or_else(|| {
            wrong(
                "data.quality",
                &data.quality,
                "good, nan, no_data, stale or gone",
            )
        })?,
        epoch: data.epoch.0,
        cause: cause(&data.cause).ok_or_else(|| {
            wrong(
                "data.cause",
                &data.cause,
                "condition, initial, removed, rule_changed, rule_removed or restored",
            )
        })?,
        at: received,
        since: Time(received.0.saturating_sub(nanos(held))),
        since_date: since,
        holds: count("data.holds", data.holds)?,
        members: count("data.members", data.members)?,
        holding: data
            .holding
            .into_iter()
            .map(|group| labels("data.holding", group))
            .collect::<Result<_, _>>()?,
        date: at,
        repeat: data.repeat,
        origin: Some(Arc::new(Origin {
            source: envelope.source,
            boot: envelope.epoch,
            sequence: envelope.sequence,
        })),
    })
}

fn wrong(field: &str, found: &str, right: &str) -> WireError {
    WireError::field(
        field,
        format!("it is {:?}; it should be {right}", shown(found)),
    )
}

fn date(field: &str, text: &str) -> Result<SystemTime, WireError> {
    let date = Date::read(text).ok_or_else(|| {
        let right = "a date as 2026-01-31T12:00:00.5Z, of the years 1970 to 9999";
        wrong(field, text, right)
    })?;
    Ok(date.0)
}

/// Whether this is what [`Letterhead::id`] makes of them.
fn is_id(text: &str, source: &SourceId, epoch: &str, sequence: &str) -> bool {
    let rest = || {
        strip_source(text, source)?
            .strip_prefix('-')?
            .strip_prefix(epoch)?
            .strip_prefix('-')
    };
    rest() == Some(sequence)
}

/// Sorted, as an alert's are.
fn sorted(Map(mut pairs): Map) -> crate::Pairs {
    pairs.sort_unstable();
    pairs.into()
}

fn labels(field: &str, map: Map) -> Result<crate::Pairs, WireError> {
    for (name, _) in &map.0 {
        if name.len() > NAME_MAX {
            return Err(wrong(field, name, "labels with names of at most 256 bytes"));
        }
        // A rule that means several metrics tells them apart by `__name__`.
        check_label_name("", name)
            .map_err(|_| wrong(field, name, "labels with names of letters, digits and '_'"))?;
    }
    Ok(sorted(map))
}

fn quality(text: &str) -> Option<Quality> {
    use Quality::{Gone, Good, Nan, NoData, Stale};
    let all = [Good, Nan, NoData, Stale, Gone];
    all.into_iter().find(|quality| quality.as_str() == text)
}

fn cause(text: &str) -> Option<AlertCause> {
    use AlertCause::{Condition, Initial, Removed, Restored, RuleChanged, RuleRemoved};
    let all = [
        Condition,
        Initial,
        Removed,
        RuleChanged,
        RuleRemoved,
        Restored,
    ];
    all.into_iter().find(|cause| cause.as_str() == text)
}

/// The source as a URI reference: `/metricbus/namespace/component/instance`, its parts percent-encoded.
fn uri(source: &SourceId) -> String {
    let mut uri = "/metricbus".to_owned();
    for part in [&source.namespace, &source.component, &source.instance] {
        uri.push('/');
        for &byte in part.as_bytes() {
            // Whatever else RFC 3986 leaves as it is; "." and ".." would be taken for steps.
            if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'~') {
                uri.push(char::from(byte));
            } else {
                uri.extend(['%', hex(byte >> 4), hex(byte & 15)]);
            }
        }
    }
    uri
}

fn hex(digit: u8) -> char {
    char::from(b"0123456789ABCDEF"[usize::from(digit & 15)])
}

fn read_uri(text: &str) -> Option<SourceId> {
    let mut parts = text.strip_prefix("/metricbus/")?.split('/').map(|part| {
        let mut bytes = Vec::with_capacity(part.len());
        let mut rest = part.as_bytes();
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            if byte != b'%' {
                bytes.push(byte);
                continue;
            }
            let (digits, after) = after.split_at_checked(2)?;
            let digits = std::str::from_utf8(digits).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = after;
        }
        String::from_utf8(bytes).ok()
    });
    let source = SourceId::new(parts.next()??, parts.next()??, parts.next()??);
    // One text for each source.
    (parts.next().is_none() && uri(&source) == text).then_some(source)
}

/// The rule and its group, where it has one: `KvFull{component="decode"}`.
fn subject(alert: &Alert) -> String {
    let mut group = String::new();
    for (name, value) in &*alert.group {
        crate::labels::push_label(&mut group, name, value);
    }
    format!("{}{{{group}}}", alert.rule)
}

/// Attributes that others have added are passed over.
#[derive(Deserialize)]
struct Incoming<'a> {
    #[serde(borrow)]
    specversion: Cow<'a, str>,
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    source: Cow<'a, str>,
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
    #[serde(borrow)]
    sequence: Cow<'a, str>,
    #[serde(borrow)]
    metricbusepoch: Cow<'a, str>,
    #[serde(borrow)]
    data: IncomingData<'a>,
}

#[derive(Deserialize)]
struct IncomingData<'a> {
    #[serde(borrow)]
    rule: Cow<'a, str>,
    #[serde(borrow)]
    state: Cow<'a, str>,
    level: Option<String>,
    previous_level: Option<String>,
    group: Map,
    labels: Map,
    #[serde(default)]
    annotations: Map,
    value: Option<Real>,
    #[serde(borrow)]
    quality: Cow<'a, str>,
    epoch: Whole,
    #[serde(borrow)]
    cause: Cow<'a, str>,
    #[serde(borrow)]
    at: Cow<'a, str>,
    #[serde(borrow)]
    since: Cow<'a, str>,
    holds: Whole,
    members: Whole,
    #[serde(default)]
    holding: Vec<Map>,
    #[serde(default)]
    repeat: u32,
}

/// About how many bytes an alert takes in memory.
pub(crate) fn weigh(alert: &Alert) -> usize {
    let pairs = |pairs: &[(String, String)]| {
        pairs
            .iter()
            .map(|(name, value)| 2 * size_of::<String>() + name.len() + value.len())
            .sum::<usize>()
    };
    let text = |text: &Option<Arc<str>>| text.as_deref().map_or(0, str::len);
    size_of::<Alert>()
        + alert.rule.len()
        + text(&alert.level)
        + text(&alert.previous_level)
        + pairs(&alert.group)
        + pairs(&alert.labels)
        + pairs(&alert.annotations)
        + alert
            .holding
            .iter()
            .map(|group| pairs(group))
            .sum::<usize>()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::nats::wire::envelope::tests::envelopes;

    fn pairs() -> impl Strategy<Value = crate::Pairs> {
        prop::collection::btree_map("[a-z_][a-z0-9_]{0,5}", any::<String>(), 0..4)
            .prop_map(|pairs| pairs.into_iter().collect())
    }

    fn name() -> impl Strategy<Value = Arc<str>> {
        "\\PC{1,20}".prop_map(Arc::from)
    }

    fn date() -> impl Strategy<Value = SystemTime> {
        (0_u64..250_000_000_000, 0_u32..1_000_000_000)
            .prop_map(|(s, ns)| SystemTime::UNIX_EPOCH + Duration::new(s, ns))
    }

    /// Any alert as it is received, and its envelope.
    pub(crate) fn alerts() -> impl Strategy<Value = (Alert, Envelope)> {
        use AlertCause::{Condition, Initial, Removed, Restored, RuleChanged, RuleRemoved};
        use Quality::{Gone, Good, Nan, NoData, Stale};
        let what = (
            name(),
            prop::sample::select(vec![AlertState::Firing, AlertState::Resolved]),
            prop::option::of(name()),
            prop::option::of(name()),
            pairs(),
            pairs(),
            pairs(),
            prop::option::of(
                any::<f64>().prop_filter("NaN is not equal to itself", |v| !v.is_nan()),
            ),
        );
        let how = (
            prop::sample::select(vec![Good, Nan, NoData, Stale, Gone]),
            any::<u64>(),
            prop::sample::select(vec![
                Condition,
                Initial,
                Removed,
                RuleChanged,
                RuleRemoved,
                Restored,
            ]),
            date(),
            date(),
            any::<usize>(),
            any::<usize>(),
            prop::collection::vec(pairs(), 0..4),
            any::<u32>(),
        );
        (what, how, envelopes(1)).prop_map(|(what, how, envelope)| {
            let (rule, state, level, previous_level, group, labels, annotations, value) = what;
            let (quality, epoch, cause, date, since_date, holds, members, holding, repeat) = how;
            let held = date.duration_since(since_date).unwrap_or_default();
            let alert = Alert {
                rule,
                state,
                level,
                previous_level,
                group,
                labels,
                annotations,
                series: None,
                value,
                quality,
                epoch,
                cause,
                at: RECEIVED,
                since: Time(RECEIVED.0.saturating_sub(nanos(held))),
                since_date,
                holds,
                members,
                holding: holding.into(),
                date,
                repeat,
                origin: Some(Arc::new(Origin {
                    source: envelope.source.clone(),
                    boot: envelope.epoch,
                    sequence: envelope.sequence,
                })),
            };
            (alert, envelope)
        })
    }

    const RECEIVED: Time = Time(5_000_000_000);

    pub(crate) fn one() -> (Alert, Envelope) {
        let pairs = |pairs: &[(&str, &str)]| {
            let owned = |(n, v): &(&str, &str)| ((*n).to_owned(), (*v).to_owned());
            pairs.iter().map(owned).collect::<crate::Pairs>()
        };
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_792_838_096_123);
        let alert = Alert {
            rule: "KvCacheFull".into(),
            state: AlertState::Firing,
            level: None,
            previous_level: None,
            group: pairs(&[("worker", "a")]),
            labels: pairs(&[("severity", "page"), ("worker", "a")]),
            annotations: pairs(&[("summary", "KV cache of a is 0.95 full")]),
            series: None,
            value: Some(0.95),
            quality: Quality::Good,
            epoch: 1,
            cause: AlertCause::Condition,
            at: RECEIVED,
            since: Time(RECEIVED.0 - 500_000_000),
            since_date: at - Duration::from_millis(500),
            holds: 1,
            members: 1,
            holding: Arc::default(),
            date: at,
            repeat: 0,
            origin: None,
        };
        let envelope = Envelope {
            source: SourceId::new("prod", "decode", "pod-7"),
            epoch: 1_792_838_000_000_000,
            sequence: 42,
        };
        (alert, envelope)
    }

    #[test]
    fn an_alert_is_a_cloud_event_as_the_protocol_says() {
        let (alert, envelope) = one();
        let body = encode_alert(&alert, &envelope, 1 << 20).unwrap();
        let expected = concat!(
            r#"{"specversion":"1.0","id":"prod.decode.pod-7-1792838000000000-42","#,
            r#""source":"/metricbus/prod/decode/pod-7","type":"io.metricbus.alert.firing","#,
            r#""subject":"KvCacheFull{worker=\"a\"}","time":"2026-10-24T10:34:56.123Z","#,
            r#""datacontenttype":"application/json","sequence":"42","metricbusepoch":"1792838000000000","#,
            r#""data":{"rule":"KvCacheFull","state":"firing","level":null,"previous_level":null,"#,
            r#""group":{"worker":"a"},"labels":{"severity":"page","worker":"a"},"#,
            r#""annotations":{"summary":"KV cache of a is 0.95 full"},"series":null,"value":0.95,"#,
            r#""quality":"good","epoch":1,"cause":"condition","at":"2026-10-24T10:34:56.123Z","#,
            r#""since":"2026-10-24T10:34:55.623Z","holds":1,"members":1,"holding":[],"repeat":0}}"#,
        );
        assert_eq!(String::from_utf8(body).unwrap(), expected);
    }

    #[test]
    fn an_alert_that_is_too_large_loses_annotations_first_and_then_who_holds() {
        let (mut alert, envelope) = one();
        alert.annotations = [("long".to_owned(), "x".repeat(500))].into();
        alert.holding = vec![alert.group.clone(); 5].into();
        let whole = encode_alert(&alert, &envelope, usize::MAX).unwrap();
        let read =
            |max| decode_alert(&encode_alert(&alert, &envelope, max).unwrap(), RECEIVED).unwrap();
        let first = read(whole.len() - 1);
        assert!(first.annotations.is_empty() && first.holding.len() == 5);
        let second = read(whole.len() - 550);
        assert!(second.annotations.is_empty() && second.holding.is_empty());
        assert_eq!(second.group, alert.group);
        let body = encode_alert(&alert, &envelope, whole.len() - 550).unwrap();
        assert!(
            String::from_utf8(body)
                .unwrap()
                .contains(r#""truncated":true"#)
        );
        let error = encode_alert(&alert, &envelope, 100).unwrap_err();
        assert!(
            matches!(error, WireError::TooLarge { max: 100, .. }),
            "{error}"
        );
    }

    #[test]
    fn an_alert_that_contradicts_itself_is_refused() {
        let (alert, envelope) = one();
        let body = String::from_utf8(encode_alert(&alert, &envelope, 1 << 20).unwrap()).unwrap();
        assert!(decode_alert(body.as_bytes(), RECEIVED).is_ok());
        for (was, is) in [
            (r#""specversion":"1.0""#, r#""specversion":"0.3""#),
            ("pod-7-1792838000000000-42", "pod-7-1792838000000000-43"),
            (
                "/metricbus/prod/decode/pod-7",
                "/metricbus/prod/decode/pod-8",
            ),
            (
                "/metricbus/prod/decode/pod-7",
                "/metricbus/prod/decode/pod%2D7",
            ),
            ("/metricbus/prod/decode/pod-7", "/metricbus/prod/decode"),
            ("io.metricbus.alert.firing", "io.metricbus.alert.resolved"),
            (r#""state":"firing""#, r#""state":"burning""#),
            (r#""sequence":"42""#, r#""sequence":"042""#),
            (r#""sequence":"42""#, r#""sequence":42"#),
            (r#""rule":"KvCacheFull""#, r#""rule":"""#),
            (
                r#""group":{"worker":"a"}"#,
                r#""group":{"worker":"a","worker":"b"}"#,
            ),
            (r#""group":{"worker":"a"}"#, r#""group":{"wor\nker":"a"}"#),
            (r#""value":0.95"#, r#""value":1e999"#),
            (r#""value":0.95"#, r#""value":"many""#),
            (r#""quality":"good""#, r#""quality":"fine""#),
            (r#""cause":"condition""#, r#""cause":"whim""#),
            (r#""time":"2026"#, r#""time":"2027"#),
            (r#""holds":1"#, r#""holds":-1"#),
            (r#""epoch":1"#, r#""epoch":1,"epoch":2"#),
        ] {
            let bad = body.replacen(was, is, 1);
            assert_ne!(bad, body, "{was}");
            assert!(decode_alert(bad.as_bytes(), RECEIVED).is_err(), "{is}");
        }
        let long = body.replace("KvCacheFull", &"x".repeat(600));
        assert!(decode_alert(long.as_bytes(), RECEIVED).is_err());
    }

    #[test]
    fn an_id_is_of_one_source_life_and_sequence_only() {
        let source = SourceId::new("", "a.b", "c");
        let letterhead = Letterhead::new(source.clone(), 12);
        let id = letterhead.id(34);
        assert_eq!(id, "=.a=2Eb.c-12-34");
        assert!(is_id(&id, &source, "12", "34"));
        for (epoch, sequence) in [("1", "34"), ("12", "3"), ("12", ""), ("", "12-34")] {
            assert!(!is_id(&id, &source, epoch, sequence), "{epoch} {sequence}");
        }
        for other in ["=.a.b.c-12-34", "=.a=2Eb.cc-12-34", ".a=2Eb.c-12-34", ""] {
            assert!(!is_id(other, &source, "12", "34"), "{other}");
        }
    }

    #[test]
    fn texts_are_escaped_as_json_has_it() {
        for text in [
            "",
            "plain",
            "\"",
            "\\",
            "\n",
            "\u{1}",
            "\u{7f}",
            "é\u{2028}",
        ] {
            let mut json = Json(Vec::new());
            json.text(text).unwrap();
            assert_eq!(json.0, serde_json::to_vec(text).unwrap(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn every_alert_comes_back((alert, envelope) in alerts()) {
            let body = encode_alert(&alert, &envelope, usize::MAX).unwrap();
            prop_assert_eq!(decode_alert(&body, RECEIVED).unwrap(), alert);
        }

        #[test]
        fn every_source_comes_back_from_its_uri(namespace: String, component: String, instance: String) {
            let source = SourceId::new(namespace, component, instance);
            let text = uri(&source);
            prop_assert!(text.bytes().all(|b| b.is_ascii_graphic()));
            prop_assert_eq!(read_uri(&text), Some(source));
        }
    }

    #[test]
    fn all_texts_of_an_alert_are_weighed() {
        let mut alert = Alert::new("R", AlertState::Firing, Time::ZERO);
        let light = weigh(&alert);
        alert.annotations = [("a".to_owned(), "x".repeat(1000))].into();
        alert.holding = [alert.annotations.clone(), alert.annotations.clone()].into();
        assert!(weigh(&alert) >= light + 3000);
    }
}

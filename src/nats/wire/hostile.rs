//! What every decoder has to bear: bytes from anybody. Shared by the test below and by the fuzzer.
//!
//! A decoder refuses or takes. What it takes must be written as something that is read as the same again, and must do no
//! harm where it is used.

use std::time::Duration;

use async_nats::HeaderMap;

use super::{
    alert::{decode_alert, encode_alert},
    envelope::{self, Envelope},
    frame::{Decoded, decode_frame, encode_json_within, encode_within},
    pulse::{decode_pulse, encode_pulse},
    query::{
        decode_alerts_request, decode_snapshot_request, decode_window_reply, decode_window_request,
        encode_alerts_request, encode_snapshot_request, encode_window_request,
        encode_window_within,
    },
    rule::{decode_rule, encode_rule, read_rule_key, rule_key},
};
use crate::{
    Clock, MetricBus, Time,
    nats::subject::{About, AlertSubject, Subjects, unescape},
    window::merge,
};

/// Feeds the decoder; whether it took the bytes.
///
/// # Panics
///
/// When what it took is not what it should be.
pub(crate) type Decoder = fn(&[u8]) -> bool;

/// All of them, by name.
pub(crate) const DECODERS: [(&str, Decoder); 7] = [
    ("subject", subject),
    ("headers", headers),
    ("frame", frame),
    ("alert", alert),
    ("pulse", pulse),
    ("query", query),
    ("rule", rule),
];

/// Decoding alone, so that the memory it takes can be told.
#[cfg(fuzzing)]
pub(crate) fn decode(kind: &str, bytes: &[u8]) {
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    match kind {
        "frame" => drop(decode_frame(bytes)),
        "alert" => drop(decode_alert(bytes, Time(0))),
        "pulse" => drop(decode_pulse(bytes)),
        "query" => {
            drop(decode_snapshot_request(bytes));
            drop(decode_window_request(bytes));
            drop(decode_alerts_request(bytes));
            drop(decode_window_reply(bytes));
        }
        "rule" => drop(decode_rule(text)),
        _ => {}
    }
}

pub(crate) fn subject(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    // As templates and tokens, too: they only must not panic.
    let _ = (
        AlertSubject::parse(text),
        unescape(text),
        Subjects::new(text),
    );
    if let Ok(key) = read_rule_key(text) {
        assert_eq!(rule_key(&key).as_deref(), Ok(text));
    }
    let Ok(subjects) = Subjects::new("metricbus") else {
        return false;
    };
    let Ok(address) = subjects.parse(text) else {
        return false;
    };
    let source = &address.source;
    let again = match &address.about {
        About::Frame { stream } => subjects.frames(source, stream),
        About::Alert { rule, state } => subjects.alert(source, rule, *state),
        About::Pulse(kind) => subjects.pulse(source, *kind),
        About::Query(query) => subjects.query(source, *query),
    };
    assert_eq!(again, text);
    true
}

/// Of lines such as `Name: value`.
pub(crate) fn headers(bytes: &[u8]) -> bool {
    let mut headers = HeaderMap::new();
    for line in String::from_utf8_lossy(bytes).lines() {
        let (name, value) = line.split_once(": ").unwrap_or((line, ""));
        let parsed = (
            name.parse::<async_nats::HeaderName>(),
            value.parse::<async_nats::HeaderValue>(),
        );
        if let (Ok(name), Ok(value)) = parsed {
            headers.append(name, value);
        }
    }
    let headers = Some(&headers);
    let _ = (
        envelope::part_of(headers),
        envelope::alerts_from(headers),
        envelope::check_error(headers),
    );
    let Ok(read) = Envelope::read(headers) else {
        return false;
    };
    let again = read.alert_headers();
    assert_eq!(Envelope::read(Some(&again)), Ok(read));
    true
}

pub(crate) fn frame(bytes: &[u8]) -> bool {
    let Ok(decoded) = decode_frame(bytes) else {
        return false;
    };
    let Decoded { source, frame, .. } = decoded;
    let encoded = encode_within(frame.clone(), &source, usize::MAX);
    assert_eq!(encoded.too_large, 0);
    let again = encoded.bodies.iter().map(|body| decode_frame(body));
    for again in again {
        let again = again.map(|again| (again.source, again.frame, again.refused));
        // A sketch wider than ours are is not sent on.
        if encoded.without_sketch == 0 {
            let wanted = format!("{:?}", Ok::<_, super::WireError>((&source, &frame, 0)));
            assert_eq!(format!("{again:?}"), wanted);
        }
    }
    for max in [100, 1_000] {
        let split = encode_within(frame.clone(), &source, max);
        let bodies = split.bodies.iter();
        assert!(bodies.filter(|body| body.len() > max).count() <= usize::from(max == 100));
        encode_json_within(frame.clone(), &source, max);
    }
    true
}

pub(crate) fn alert(bytes: &[u8]) -> bool {
    let received = Time(5_000_000_000);
    let Ok(alert) = decode_alert(bytes, received) else {
        return false;
    };
    let Some(origin) = alert.origin.as_deref() else {
        panic!("an alert without origin");
    };
    let envelope = Envelope {
        source: origin.source.clone(),
        epoch: origin.boot,
        sequence: origin.sequence,
    };
    let again =
        encode_alert(&alert, &envelope, usize::MAX).and_then(|body| decode_alert(&body, received));
    let wanted = format!("{:?}", Ok::<_, super::WireError>(&alert));
    assert_eq!(format!("{again:?}"), wanted);
    if let Ok(template) = AlertSubject::parse("{rule}.{level}.{label.a}") {
        let subject = template.of(&envelope.source, &alert);
        assert_eq!(
            subject.split('.').filter(|token| !token.is_empty()).count(),
            3
        );
    }
    true
}

pub(crate) fn pulse(bytes: &[u8]) -> bool {
    let Ok(pulse) = decode_pulse(bytes) else {
        return false;
    };
    assert_eq!(decode_pulse(&encode_pulse(&pulse)), Ok(pulse));
    true
}

/// Questions, and the answer about a window.
pub(crate) fn query(bytes: &[u8]) -> bool {
    if let Ok(request) = decode_snapshot_request(bytes) {
        let again = decode_snapshot_request(&encode_snapshot_request(&request));
        assert_eq!(again, Ok(request));
        return true;
    }
    if let Ok(request) = decode_window_request(bytes) {
        let again = decode_window_request(&encode_window_request(&request));
        assert_eq!(again, Ok(request));
        return true;
    }
    if let Ok(request) = decode_alerts_request(bytes) {
        let again = decode_alerts_request(&encode_alerts_request(&request));
        assert_eq!(again, Ok(request));
        return true;
    }
    let Ok(reply) = decode_window_reply(bytes) else {
        return false;
    };
    let parts: Vec<_> = reply.series.iter().map(|s| s.part.clone()).collect();
    let stats = merge(&parts, reply.width);
    for q in [0.0, 0.5, 0.99, 1.0] {
        let _ = stats.quantile(q);
    }
    let encoded = encode_window_within(reply.clone(), &stats, usize::MAX);
    let again = encoded.bodies.first().map(|body| decode_window_reply(body));
    let same = again.and_then(Result::ok).is_some_and(|again| {
        let text = |reply: &super::query::WindowReply| {
            let weights = reply.series.iter().flat_map(|s| s.part.weights.iter());
            format!("{reply:?} {:?}", weights.collect::<Vec<_>>())
        };
        // Our windows are 100 ms wide at least, and have our slots.
        reply.width < Duration::from_millis(100)
            || again.series.len() == reply.series.len()
                && (encoded.too_large > 0
                    || reply
                        .series
                        .first()
                        .is_some_and(|s| s.part.slot != again.series[0].part.slot)
                    || text(&again) == text(&reply))
    });
    assert!(same, "{reply:?}");
    true
}

pub(crate) fn rule(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let Ok(rule) = decode_rule(text) else {
        return false;
    };
    let again = encode_rule(&rule).and_then(|text| decode_rule(&text));
    let wanted = format!("{:?}", Ok::<_, super::WireError>(&rule));
    assert_eq!(format!("{again:?}"), wanted);
    // A bus judges it, and goes on.
    let clock = Clock::manual();
    let bus = MetricBus::builder().clock(clock.clone()).build();
    let Ok(gauge) = bus.gauge("a", "Of a test.") else {
        return true;
    };
    if bus.add_rule(rule).is_ok() {
        for value in [1.0, f64::NAN, -1e300, f64::INFINITY] {
            gauge.set(value);
            clock.advance(Duration::from_millis(500));
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::{
        prelude::*,
        strategy::ValueTree,
        test_runner::{Config, TestRunner},
    };
    use prost::Message;
    use serde_json::{Value, json};

    use super::*;
    use crate::nats::{
        subject::{PulseKind, Query},
        wire::{
            alert::tests::alerts,
            envelope::tests::envelopes,
            frame::{encode_frame, tests::frames},
            pulse::tests::pulses,
            query::tests::{replies, stats_of},
            rule::tests::rules,
        },
    };

    /// Always the same numbers (SplitMix64).
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }

        fn below(&mut self, n: usize) -> usize {
            (self.roll() % n.max(1) as u64) as usize
        }

        fn range(&mut self, len: usize) -> std::ops::Range<usize> {
            let from = self.below(len + 1);
            from..from + self.below((len - from + 1).min(20))
        }

        fn bytes(&mut self) -> Vec<u8> {
            (0..self.below(40)).map(|_| self.roll() as u8).collect()
        }
    }

    /// Texts that parsers stumble over.
    const BAD: [&str; 24] = [
        "",
        "0",
        "-1",
        "1e999",
        "18446744073709551615",
        "18446744073709551616",
        "9223372036854775808",
        "NaN",
        "\"NaN\"",
        "null",
        "{}",
        "[]",
        "[[[[",
        "\"",
        "\\u0000",
        "\u{0}",
        "=",
        "*",
        ">",
        ".",
        "\r\n",
        "é",
        "\u{202e}",
        "true",
    ];

    /// Changes bytes without regard to what they mean.
    fn blind(bytes: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
        for _ in 0..=dice.below(3) {
            let at = dice.range(bytes.len());
            let with: Vec<u8> = match dice.below(8) {
                0 => Vec::new(),
                1 => dice.bytes(),
                2 => BAD[dice.below(BAD.len())].as_bytes().to_vec(),
                3 => bytes[at.clone()].repeat(dice.below(50)),
                4 => other[dice.range(other.len())].to_vec(),
                5 => vec![dice.roll() as u8; at.len()],
                6 => {
                    bytes.truncate(at.start);
                    continue;
                }
                _ => {
                    if let Some(byte) = bytes.get_mut(at.start) {
                        *byte ^= 1 << dice.below(8);
                    }
                    continue;
                }
            };
            bytes.splice(at, with);
        }
    }

    /// Changes something somewhere in a JSON.
    fn within_json(bytes: &mut Vec<u8>, dice: &mut Dice) {
        let Ok(mut json) = serde_json::from_slice::<Value>(bytes) else {
            return;
        };
        for _ in 0..=dice.below(2) {
            change(&mut json, dice);
        }
        *bytes = json.to_string().into_bytes();
    }

    fn change(at: &mut Value, dice: &mut Dice) {
        let goes_on = dice.below(5) > 0;
        match at {
            Value::Array(list) if goes_on && !list.is_empty() => {
                let i = dice.below(list.len());
                return change(&mut list[i], dice);
            }
            Value::Object(map) if goes_on && !map.is_empty() => {
                let i = dice.below(map.len());
                let key = map.keys().nth(i).cloned().unwrap();
                if dice.below(12) == 0 {
                    let value = map.remove(&key).unwrap();
                    map.insert(format!("{key}s"), value);
                    return;
                }
                return change(&mut map[&key], dice);
            }
            _ => {}
        }
        *at = match (dice.below(14), &*at) {
            (0, _) => json!(null),
            (1, _) => json!(-1),
            (2, _) => json!(u64::MAX),
            (3, _) => json!(1e300),
            (4, _) => json!("x".repeat(700)),
            (5, _) => json!(BAD[dice.below(BAD.len())]),
            (6, old) => json!([old, old]),
            (7, old) => json!({ "and": [old, old], "not": old }),
            (8, Value::Array(list)) => json!(list.iter().cycle().take(300).collect::<Vec<_>>()),
            (9, Value::String(text)) => json!(text.repeat(30)),
            (10, Value::Number(n)) => json!(n.to_string()),
            (11, _) => json!({}),
            (12, _) => json!(0),
            _ => json!(dice.roll() >> dice.below(64)),
        };
    }

    /// Changes tags, lengths and contents of fields of a protobuf, and keeps the lengths of what is around them right.
    fn within_protobuf(bytes: &[u8], depth: usize, dice: &mut Dice) -> Option<Vec<u8>> {
        use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};
        let mut fields = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (tag, wire) = decode_key(&mut rest).ok()?;
            let before = rest;
            let inside = match wire {
                WireType::Varint => {
                    decode_varint(&mut rest).ok()?;
                    &before[..before.len() - rest.len()]
                }
                WireType::SixtyFourBit => rest.split_off(..8)?,
                WireType::ThirtyTwoBit => rest.split_off(..4)?,
                WireType::LengthDelimited => {
                    let length = decode_varint(&mut rest).ok()?;
                    rest.split_off(..length as usize)?
                }
                _ => return None,
            };
            fields.push((tag, wire, inside.to_vec()));
        }
        let chosen = dice.below(fields.len());
        let (tag, wire, inside) = fields.get_mut(chosen)?;
        let deeper = match *wire {
            WireType::LengthDelimited if depth < 6 && dice.below(6) > 0 => {
                within_protobuf(inside, depth + 1, dice)
            }
            _ => None,
        };
        match (deeper, dice.below(8)) {
            (Some(deeper), _) => *inside = deeper,
            (None, 0) => *tag = 1 + dice.below(14) as u32,
            (None, 1) => {
                let again = fields[chosen].clone();
                for _ in 0..dice.below(60) {
                    fields.push(again.clone());
                }
            }
            (None, 2) => {
                fields.remove(chosen);
            }
            (None, 3) => *inside = inside.repeat(dice.below(5)),
            (None, 4) if *wire == WireType::SixtyFourBit => {
                let odd = [
                    f64::NAN,
                    f64::INFINITY,
                    -1.0,
                    2.5,
                    1e300,
                    f64::from_bits(u64::MAX),
                ];
                *inside = odd[dice.below(odd.len())].to_le_bytes().to_vec();
            }
            (None, 5) if *wire == WireType::Varint => {
                inside.clear();
                encode_varint(dice.roll() >> dice.below(64), inside);
            }
            (None, _) => match inside.len() {
                0 => {}
                len => inside[dice.below(len)] = dice.roll() as u8 & 0x7f,
            },
        }
        let mut out = Vec::new();
        for (tag, wire, inside) in fields {
            encode_key(tag, wire, &mut out);
            if wire == WireType::LengthDelimited {
                encode_varint(inside.len() as u64, &mut out);
            }
            out.extend_from_slice(&inside);
        }
        Some(out)
    }

    /// Valid messages of every kind, always the same.
    fn valid(kind: &str, runner: &mut TestRunner) -> Vec<u8> {
        fn one<S: Strategy>(strategy: &S, runner: &mut TestRunner) -> S::Value {
            strategy.new_tree(runner).unwrap().current()
        }
        let subjects = Subjects::new("metricbus").unwrap();
        match kind {
            "subject" => {
                let source = one(&envelopes(1), runner).source;
                let of: [String; 4] = [
                    subjects.frames(&source, "a b"),
                    subjects.alert(&source, "é", crate::AlertState::Firing),
                    subjects.pulse(&source, PulseKind::Death),
                    subjects.query(&source, Query::Info),
                ];
                let i = one(&(0..of.len()), runner);
                of[i].clone().into_bytes()
            }
            "headers" => {
                let headers = one(&envelopes(1), runner).alert_headers();
                let lines = headers.iter().map(|(name, values)| {
                    format!("{name}: {}\nMetricbus-Part: 1/2", values[0].as_str())
                });
                lines.collect::<Vec<_>>().join("\n").into_bytes()
            }
            "frame" => {
                let frame = one(&frames(), runner);
                encode_frame(&frame, &one(&envelopes(1), runner).source)
            }
            "alert" => {
                let (alert, envelope) = one(&alerts(), runner);
                encode_alert(&alert, &envelope, usize::MAX).unwrap()
            }
            "pulse" => encode_pulse(&one(&pulses(), runner)),
            "query" => match one(&(0..4), runner) {
                0 => br#"{"selector":"a{b=~\"c|d\"}","format":"json"}"#.to_vec(),
                1 => br#"{"selector":"a{b=~\"c|d\"}","width_ms":1000}"#.to_vec(),
                2 => br#"{"epoch":5,"from":1,"to":7}"#.to_vec(),
                _ => {
                    let reply = one(&replies(), runner);
                    let stats = stats_of(&reply);
                    let mut encoded = encode_window_within(reply, &stats, usize::MAX);
                    encoded.bodies.pop().unwrap()
                }
            },
            _ => encode_rule(&one(&rules(), runner)).unwrap().into_bytes(),
        }
    }

    /// For each kind as many; a few percent of them are still valid.
    const CASES: usize = 1_500;

    #[test]
    fn no_bytes_make_a_decoder_panic_and_what_it_takes_is_what_it_says() {
        let mut runner = TestRunner::new_with_rng(
            Config::default(),
            proptest::test_runner::TestRng::deterministic_rng(
                proptest::test_runner::RngAlgorithm::ChaCha,
            ),
        );
        let mut dice = Dice(7);
        for (kind, decoder) in DECODERS {
            let seeds: Vec<_> = (0..25).map(|_| valid(kind, &mut runner)).collect();
            for seed in &seeds {
                assert!(decoder(seed), "{kind}: {}", String::from_utf8_lossy(seed));
            }
            let mut taken = 0;
            for case in 0..CASES {
                let mut bytes = seeds[dice.below(seeds.len())].clone();
                let other = &seeds[dice.below(seeds.len())];
                match (case % 4, kind) {
                    (0, _) => blind(&mut bytes, other, &mut dice),
                    (_, "frame") => {
                        if let Some(changed) = within_protobuf(&bytes, 0, &mut dice) {
                            bytes = changed;
                        }
                    }
                    (1, "subject" | "headers") => bytes = dice.bytes(),
                    (_, "subject" | "headers") => blind(&mut bytes, other, &mut dice),
                    _ => within_json(&mut bytes, &mut dice),
                }
                taken += usize::from(decoder(&bytes));
                // One kind's bytes at another's door.
                if case % 10 == 0 {
                    for (_, another) in DECODERS {
                        another(&bytes);
                    }
                }
            }
            // Otherwise it is not mutants that are tried, but noise.
            assert!((20..CASES).contains(&taken), "{kind}: {taken}");
        }
        for _ in 0..500 {
            let noise = dice.bytes();
            for (_, decoder) in DECODERS {
                decoder(&noise);
            }
        }
    }

    #[test]
    fn mutants_of_frames_reach_the_inside() {
        let mut runner = TestRunner::deterministic();
        let seed = valid("frame", &mut runner);
        let mut dice = Dice(1);
        let mutants = (0..300).filter_map(|_| within_protobuf(&seed, 0, &mut dice));
        let readable = mutants.filter(|mutant| {
            opentelemetry_proto::tonic::metrics::v1::MetricsData::decode(&mutant[..]).is_ok()
        });
        assert!(readable.count() > 150);
    }
}

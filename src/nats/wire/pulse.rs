//! Pulses: birth, heartbeat and death of a source, and the answer to who it is.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{
    WireError,
    envelope::{EPOCH_MAX, SEQUENCE_MAX},
    limits::{INTERVAL_MAX, INTERVAL_MIN},
    number::{Date, Whole},
    read_json,
};
use crate::{
    SourceId,
    nats::subject::{PulseKind, check_source, shown, up_to},
};

/// The version of the protocol.
const VERSION: u32 = 1;

/// The most bytes of a version of metricbus, and of a reason.
const TEXT_MAX: usize = 512;

/// A sign of life, and the answer to `q.info` and `hello`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pulse {
    pub(crate) kind: PulseKind,
    pub(crate) source: SourceId,
    pub(crate) epoch: u64,
    /// How often it comes: [`INTERVAL_MIN`] to [`INTERVAL_MAX`], in whole milliseconds.
    pub(crate) interval: Duration,
    /// The sequence of the last frame; 0: none yet.
    pub(crate) frames: u64,
    /// The sequence of the last alert; 0: none yet.
    pub(crate) alerts: u64,
    /// From which sequence on alerts can be asked for; one more than `alerts` where none can.
    pub(crate) alerts_from: u64,
    /// How many series are forwarded.
    pub(crate) series: u64,
    /// By the source's clock.
    pub(crate) at: SystemTime,
    /// Of metricbus.
    pub(crate) version: String,
    /// Why it ends. Of a death only.
    pub(crate) reason: Option<String>,
}

/// A pulse as JSON. Its version and reason are cut where they are long.
pub(crate) fn encode_pulse(pulse: &Pulse) -> Vec<u8> {
    let body = Body {
        version: VERSION,
        state: pulse.kind.as_str().to_owned(),
        source: Source {
            namespace: pulse.source.namespace.clone(),
            component: pulse.source.component.clone(),
            instance: pulse.source.instance.clone(),
        },
        epoch: Whole(pulse.epoch),
        interval_ms: u64::try_from(pulse.interval.as_millis()).unwrap_or(u64::MAX),
        frames: Whole(pulse.frames),
        alerts: Whole(pulse.alerts),
        alerts_from: Whole(pulse.alerts_from),
        series: Whole(pulse.series),
        at: Date(pulse.at),
        metricbus: up_to(&pulse.version, TEXT_MAX).to_owned(),
        reason: pulse.reason.as_ref().map(|r| up_to(r, TEXT_MAX).to_owned()),
    };
    // Without keys that are no text it cannot fail.
    serde_json::to_vec(&body).unwrap_or_default()
}

/// # Errors
///
/// When it is not as [`encode_pulse`] makes them, or of another version of the protocol.
pub(crate) fn decode_pulse(bytes: &[u8]) -> Result<Pulse, WireError> {
    let body: Body = read_json(bytes)?;
    if body.version != VERSION {
        return Err(WireError::field(
            "version",
            format!("{} is not known here; {VERSION} is", body.version),
        ));
    }
    let kind = PulseKind::ALL
        .into_iter()
        .find(|kind| kind.as_str() == body.state);
    let kind = kind.ok_or_else(|| {
        let found = shown(&body.state);
        WireError::field(
            "state",
            format!("{found:?} is not birth, heartbeat or death"),
        )
    })?;
    let source = SourceId::new(
        body.source.namespace,
        body.source.component,
        body.source.instance,
    );
    check_source(&source)?;
    let within = |field, n: u64, least, most| match n {
        n if (least..=most).contains(&n) => Ok(n),
        n => Err(WireError::field(
            field,
            format!("{n} is not from {least} to {most}"),
        )),
    };
    let interval = Duration::from_millis(body.interval_ms);
    if !(INTERVAL_MIN..=INTERVAL_MAX).contains(&interval) {
        return Err(WireError::field(
            "interval_ms",
            format!(
                "{} is not from {} to {}",
                body.interval_ms,
                INTERVAL_MIN.as_millis(),
                INTERVAL_MAX.as_millis()
            ),
        ));
    }
    for (field, text) in [
        ("metricbus", Some(&body.metricbus)),
        ("reason", body.reason.as_ref()),
    ] {
        if text.is_some_and(|text| text.len() > TEXT_MAX) {
            return Err(WireError::field(
                field,
                format!("it is longer than {TEXT_MAX} bytes"),
            ));
        }
    }
    let alerts = within("alerts", body.alerts.0, 0, SEQUENCE_MAX)?;
    Ok(Pulse {
        kind,
        source,
        epoch: within("epoch", body.epoch.0, 1, EPOCH_MAX)?,
        interval,
        frames: within("frames", body.frames.0, 0, SEQUENCE_MAX)?,
        alerts,
        alerts_from: within("alerts_from", body.alerts_from.0, 0, alerts + 1)?,
        series: body.series.0,
        at: body.at.0,
        version: body.metricbus,
        reason: body.reason,
    })
}

#[derive(Serialize, Deserialize)]
struct Body {
    version: u32,
    state: String,
    source: Source,
    epoch: Whole,
    interval_ms: u64,
    frames: Whole,
    alerts: Whole,
    alerts_from: Whole,
    series: Whole,
    at: Date,
    metricbus: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Source {
    namespace: String,
    component: String,
    instance: String,
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nats::wire::envelope::tests::envelopes;

    fn one() -> Pulse {
        Pulse {
            kind: PulseKind::Death,
            source: SourceId::new("prod", "decode", "pod-7"),
            epoch: 1_792_838_000_000_000,
            interval: Duration::from_secs(1),
            frames: 1_041,
            alerts: 42,
            alerts_from: 1,
            series: 50,
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_792_838_096_123),
            version: "0.1.0".to_owned(),
            reason: Some("shutdown".to_owned()),
        }
    }

    pub(crate) fn pulses() -> impl Strategy<Value = Pulse> {
        (
            prop::sample::select(PulseKind::ALL.to_vec()),
            envelopes(0),
            10_u64..=3_600_000,
            0..=SEQUENCE_MAX,
            any::<u64>(),
            (0_u64..250_000_000_000, 0_u32..1_000_000_000),
            ".{0,20}",
            prop::option::of(".{0,20}"),
        )
            .prop_map(
                |(kind, envelope, interval, alerts, series, at, version, reason)| Pulse {
                    kind,
                    source: envelope.source,
                    epoch: envelope.epoch,
                    interval: Duration::from_millis(interval),
                    frames: envelope.sequence,
                    alerts,
                    alerts_from: alerts / 2,
                    series,
                    at: SystemTime::UNIX_EPOCH + Duration::new(at.0, at.1),
                    version,
                    reason,
                },
            )
    }

    #[test]
    fn a_pulse_is_as_the_protocol_says() {
        let expected = concat!(
            r#"{"version":1,"state":"death","source":{"namespace":"prod","component":"decode","instance":"pod-7"},"#,
            r#""epoch":1792838000000000,"interval_ms":1000,"frames":1041,"alerts":42,"alerts_from":1,"series":50,"#,
            r#""at":"2026-10-24T10:34:56.123Z","metricbus":"0.1.0","reason":"shutdown"}"#,
        );
        assert_eq!(String::from_utf8(encode_pulse(&one())).unwrap(), expected);
    }

    #[test]
    fn a_pulse_that_cannot_be_is_refused() {
        let body = String::from_utf8(encode_pulse(&one())).unwrap();
        for (was, is) in [
            (r#""version":1"#, r#""version":2"#),
            (r#""state":"death""#, r#""state":"dead""#),
            (r#""epoch":1792838000000000"#, r#""epoch":0"#),
            (
                r#""epoch":1792838000000000"#,
                r#""epoch":"18446744073709551615""#,
            ),
            (r#""interval_ms":1000"#, r#""interval_ms":9"#),
            (
                r#""interval_ms":1000"#,
                r#""interval_ms":18446744073709551615"#,
            ),
            (r#""frames":1041"#, r#""frames":"9223372036854775808""#),
            (r#""alerts_from":1"#, r#""alerts_from":44"#),
            (r#""series":50"#, r#""series":-50"#),
            ("2026-10-24", "12026-10-24"),
            ("2026-10-24", "1926-10-24"),
            (r#""series":50"#, r#""series":50,"series":51"#),
            (r#""series":50,"#, ""),
        ] {
            let bad = body.replacen(was, is, 1);
            assert_ne!(bad, body, "{was}");
            assert!(decode_pulse(bad.as_bytes()).is_err(), "{is}");
        }
        for long in ["pod-7", "0.1.0", "shutdown"] {
            let bad = body.replace(long, &"x".repeat(600));
            assert!(decode_pulse(bad.as_bytes()).is_err(), "{long}");
        }
    }

    #[test]
    fn what_is_long_is_cut_before_it_is_sent() {
        let long = Pulse {
            reason: Some("é".repeat(600)),
            ..one()
        };
        let read = decode_pulse(&encode_pulse(&long)).unwrap();
        assert_eq!(read.reason.map(|r| r.len()), Some(512));
    }

    proptest! {
        #[test]
        fn every_pulse_comes_back(pulse in pulses()) {
            prop_assert_eq!(decode_pulse(&encode_pulse(&pulse)).unwrap(), pulse);
        }
    }
}

//! Headers: who sent a message, in which life, and its place among what was sent.

use async_nats::{HeaderMap, HeaderName};

use super::{WireError, plain};
use crate::{
    SourceId,
    nats::subject::{read_source, shown, source_tokens, up_to},
};

pub(crate) const SOURCE: &str = "Metricbus-Source";
pub(crate) const EPOCH: &str = "Metricbus-Epoch";
pub(crate) const SEQUENCE: &str = "Metricbus-Sequence";
pub(crate) const PART: &str = "Metricbus-Part";
pub(crate) const ALERTS_FROM: &str = "Metricbus-Alerts-From";
pub(crate) const CONTENT_TYPE: &str = "Content-Type";
pub(crate) const MESSAGE_ID: &str = "Nats-Msg-Id";
pub(crate) const ERROR: &str = "Nats-Service-Error";
pub(crate) const ERROR_CODE: &str = "Nats-Service-Error-Code";

/// Content types.
pub(crate) const FRAME_TYPE: &str = "application/x-protobuf; type=opentelemetry.metrics.v1";
pub(crate) const ALERT_TYPE: &str = "application/cloudevents+json";
pub(crate) const JSON_TYPE: &str = "application/json";

/// The last microsecond of the year 9999: no clock is further than that.
pub(crate) const EPOCH_MAX: u64 = 253_402_300_799_999_999;

/// So that a sequence always has a next one.
pub(crate) const SEQUENCE_MAX: u64 = i64::MAX as u64;

/// The most messages of an answer.
pub(crate) const PARTS_MAX: u32 = 1_000_000;

/// Who sent a message, in which life, and its place among what was sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Envelope {
    pub(crate) source: SourceId,
    /// Microseconds since 1970, 1 to [`EPOCH_MAX`]; greater after a restart.
    pub(crate) epoch: u64,
    /// 0 to [`SEQUENCE_MAX`]; 0 before the first.
    pub(crate) sequence: u64,
}

impl Envelope {
    /// The headers of a message, without the id that alerts have.
    pub(crate) fn headers(&self, content_type: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name(SOURCE), source_tokens(&self.source));
        headers.insert(name(EPOCH), self.epoch.to_string());
        headers.insert(name(SEQUENCE), self.sequence.to_string());
        headers.insert(name(CONTENT_TYPE), content_type);
        headers
    }

    /// The envelope of a received message.
    ///
    /// # Errors
    ///
    /// When one of the three headers is missing, is there twice, or is not as [`headers`](Envelope::headers) writes it.
    pub(crate) fn read(headers: Option<&HeaderMap>) -> Result<Envelope, WireError> {
        let Some(headers) = headers else {
            return Err(missing(SOURCE));
        };
        let source = text(headers, SOURCE)?.ok_or_else(|| missing(SOURCE))?;
        let source = read_source(source).map_err(|error| WireError::Header {
            header: SOURCE,
            why: error.to_string(),
        })?;
        Ok(Envelope {
            source,
            epoch: required(headers, EPOCH, 1, EPOCH_MAX)?,
            sequence: required(headers, SEQUENCE, 0, SEQUENCE_MAX)?,
        })
    }

    /// As [`headers`](Envelope::headers) of an alert, with its id.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn alert_headers(&self) -> HeaderMap {
        let letterhead = super::alert::Letterhead::new(self.source.clone(), self.epoch);
        letterhead.headers(self.sequence)
    }
}

/// A header's name, made of a text that is known to be one: nothing is checked or copied.
pub(super) fn name(header: &'static str) -> HeaderName {
    HeaderName::from_static(header)
}

fn missing(header: &'static str) -> WireError {
    WireError::Header {
        header,
        why: "it is missing".to_owned(),
    }
}

/// The one value of a header.
fn text<'a>(headers: &'a HeaderMap, header: &'static str) -> Result<Option<&'a str>, WireError> {
    let mut values = headers.get_all(name(header));
    let first = values.next();
    if values.next().is_some() {
        return Err(WireError::Header {
            header,
            why: "it is there more than once".to_owned(),
        });
    }
    Ok(first.map(|value| value.as_str()))
}

/// A whole number as we write it: digits alone, without a sign or zeros before it.
pub(crate) fn whole(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let leading = text.len() > 1 && text.starts_with('0');
    if !plain || leading {
        return None;
    }
    text.parse().ok()
}

fn number(
    headers: &HeaderMap,
    header: &'static str,
    least: u64,
    most: u64,
) -> Result<Option<u64>, WireError> {
    let Some(text) = text(headers, header)? else {
        return Ok(None);
    };
    let number = whole(text).filter(|n| (least..=most).contains(n));
    number.map(Some).ok_or_else(|| WireError::Header {
        header,
        why: format!(
            "{:?} is no number from {least} to {most} in plain digits",
            shown(text)
        ),
    })
}

fn required(
    headers: &HeaderMap,
    header: &'static str,
    least: u64,
    most: u64,
) -> Result<u64, WireError> {
    number(headers, header, least, most)?.ok_or_else(|| missing(header))
}

/// Marks a message as the `part`th, from 1, of `of`.
pub(crate) fn set_part(headers: &mut HeaderMap, part: u32, of: u32) {
    headers.insert(PART, format!("{part}/{of}"));
}

/// Which part of how many a message is; the only one, where nothing is said.
///
/// # Errors
///
/// When what is said is no part, or one of more than [`PARTS_MAX`].
pub(crate) fn part_of(headers: Option<&HeaderMap>) -> Result<(u32, u32), WireError> {
    let Some(text) = headers
        .map(|headers| text(headers, PART))
        .transpose()?
        .flatten()
    else {
        return Ok((1, 1));
    };
    let small = |text| whole(text).and_then(|n| u32::try_from(n).ok());
    match text.split_once('/').map(|(i, n)| (small(i), small(n))) {
        Some((Some(part), Some(of))) if 1 <= part && part <= of && of <= PARTS_MAX => {
            Ok((part, of))
        }
        _ => Err(WireError::Header {
            header: PART,
            why: format!(
                "{:?} is no part; it should be i/n with i from 1 to n, and n at most {PARTS_MAX}",
                shown(text)
            ),
        }),
    }
}

/// Says from which sequence on alerts can still be asked for.
pub(crate) fn set_alerts_from(headers: &mut HeaderMap, oldest: u64) {
    headers.insert(ALERTS_FROM, oldest.to_string());
}

/// From which sequence on alerts can still be asked for, where it is said.
///
/// # Errors
///
/// When it is no sequence.
pub(crate) fn alerts_from(headers: Option<&HeaderMap>) -> Result<Option<u64>, WireError> {
    match headers {
        Some(headers) => number(headers, ALERTS_FROM, 0, SEQUENCE_MAX),
        None => Ok(None),
    }
}

/// Makes an answer one that says what went wrong, as services of NATS do. `code` is as in HTTP.
pub(crate) fn set_error(headers: &mut HeaderMap, code: u16, why: &str) {
    const WHY_MAX: usize = 512;
    // A line break would end the header.
    let line: String = up_to(why, WHY_MAX)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    headers.insert(ERROR, line);
    headers.insert(ERROR_CODE, code.to_string());
}

/// `Err` where an answer says that something went wrong.
///
/// # Errors
///
/// What the other side says ([`WireError::Refused`]); code 500 where it says none.
pub(crate) fn check_error(headers: Option<&HeaderMap>) -> Result<(), WireError> {
    let Some(headers) = headers else {
        return Ok(());
    };
    let (why, code) = (headers.get(ERROR), headers.get(ERROR_CODE));
    if why.is_none() && code.is_none() {
        return Ok(());
    }
    let code = code.and_then(|code| code.as_str().parse().ok());
    Err(WireError::Refused {
        code: code.unwrap_or(500),
        why: why.map_or_else(String::new, |why| plain(why.as_str())),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn sources() -> impl Strategy<Value = SourceId> {
        let part = || prop_oneof!["[a-z0-9-]{0,8}", "\\PC{0,20}", any::<String>()];
        let short = |part: String| up_to(&part, 100).to_owned();
        (part(), part(), part())
            .prop_map(move |(n, c, i)| SourceId::new(short(n), short(c), short(i)))
    }

    pub(crate) fn envelopes(least: u64) -> impl Strategy<Value = Envelope> {
        (sources(), 1..=EPOCH_MAX, least..=SEQUENCE_MAX).prop_map(|(source, epoch, sequence)| {
            Envelope {
                source,
                epoch,
                sequence,
            }
        })
    }

    fn headers() -> HeaderMap {
        Envelope {
            source: SourceId::new("prod", "decode", "pod.7"),
            epoch: 1_792_838_000_000_000,
            sequence: 42,
        }
        .alert_headers()
    }

    #[test]
    fn headers_are_as_the_protocol_says() {
        let headers = headers();
        for (name, value) in [
            (SOURCE, "prod.decode.pod=2E7"),
            (EPOCH, "1792838000000000"),
            (SEQUENCE, "42"),
            (CONTENT_TYPE, "application/cloudevents+json"),
            (MESSAGE_ID, "prod.decode.pod=2E7-1792838000000000-42"),
        ] {
            assert_eq!(headers.get(name).map(|v| v.as_str()), Some(value), "{name}");
        }
    }

    #[test]
    fn headers_that_are_missing_twice_there_or_wrong_are_refused() {
        assert!(Envelope::read(None).is_err());
        for name in [SOURCE, EPOCH, SEQUENCE] {
            let mut twice = headers();
            let value = twice.get(name).unwrap().clone();
            twice.append(name, value);
            let error = Envelope::read(Some(&twice)).unwrap_err().to_string();
            assert!(
                error.contains(name) && error.contains("more than once"),
                "{error}"
            );
            let mut without = HeaderMap::new();
            for (other, values) in headers().iter() {
                if other.to_string() != name {
                    without.insert(other.clone(), values[0].clone());
                }
            }
            let error = Envelope::read(Some(&without)).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("missing"), "{error}");
        }
        for (name, bad) in [
            (SOURCE, "prod.decode"),
            (SOURCE, "prod.decode.pod.7"),
            (SOURCE, "prod.decode.*"),
            (SOURCE, ""),
            (EPOCH, "0"),
            (EPOCH, "-1"),
            (EPOCH, "+1"),
            (EPOCH, "01"),
            (EPOCH, "253402300800000000"),
            (SEQUENCE, "9223372036854775808"),
            (SEQUENCE, "18446744073709551616"),
            (SEQUENCE, " 1"),
            (SEQUENCE, ""),
        ] {
            let mut headers = headers();
            headers.insert(name, bad);
            assert!(Envelope::read(Some(&headers)).is_err(), "{name}: {bad}");
        }
    }

    #[test]
    fn a_message_without_a_part_is_the_only_one() {
        assert_eq!(part_of(None), Ok((1, 1)));
        assert_eq!(part_of(Some(&headers())), Ok((1, 1)));
        let mut headers = headers();
        set_part(&mut headers, 2, 7);
        assert_eq!(part_of(Some(&headers)), Ok((2, 7)));
        for bad in [
            "",
            "1",
            "0/1",
            "2/1",
            "1/0",
            "1/2/3",
            "a/b",
            "1/1000001",
            "1/99999999999",
        ] {
            headers.insert(PART, bad);
            assert!(part_of(Some(&headers)).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_answer_that_is_an_error_says_so_in_one_line() {
        let mut headers = HeaderMap::new();
        assert_eq!(check_error(Some(&headers)), Ok(()));
        set_error(&mut headers, 400, "no\r\nNats-Msg-Id: forged");
        let error = check_error(Some(&headers)).unwrap_err();
        let WireError::Refused { code: 400, why } = &error else {
            panic!("{error}");
        };
        assert_eq!(why, "no  Nats-Msg-Id: forged");
        set_alerts_from(&mut headers, 7);
        assert_eq!(alerts_from(Some(&headers)), Ok(Some(7)));
        assert_eq!(alerts_from(None), Ok(None));
    }

    proptest! {
        #[test]
        fn every_envelope_comes_back(envelope in envelopes(0)) {
            let headers = envelope.headers(FRAME_TYPE);
            prop_assert_eq!(Envelope::read(Some(&headers)).unwrap(), envelope);
        }
    }
}

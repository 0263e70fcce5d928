//! Numbers, dates, durations and labels in JSON, such that every reader gets them whole.
//!
//! A reader may keep every number in a double. So what is no number in JSON (NaN, ±∞), and integers beyond 2^53, are
//! strings.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, Unexpected, Visitor},
};

use super::envelope::whole;
use crate::nats::subject::shown;

/// The greatest integer up to which all are doubles.
const EXACT_MAX: u64 = 1 << 53;

/// A double: a number, or `"NaN"`, `"+Inf"`, `"-Inf"`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Real(pub(crate) f64);

/// Equal where their bits are, but for NaNs, which all are.
impl PartialEq for Real {
    fn eq(&self, other: &Real) -> bool {
        self.0.to_bits() == other.0.to_bits() || self.0.is_nan() && other.0.is_nan()
    }
}

impl Real {
    /// Of its text, where it is no number in JSON.
    pub(crate) fn of_text(text: &str) -> Option<Real> {
        match text {
            "NaN" => Some(Real(f64::NAN)),
            "+Inf" => Some(Real(f64::INFINITY)),
            "-Inf" => Some(Real(f64::NEG_INFINITY)),
            _ => None,
        }
    }
}

impl Serialize for Real {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            value if value.is_nan() => serializer.serialize_str("NaN"),
            f64::INFINITY => serializer.serialize_str("+Inf"),
            f64::NEG_INFINITY => serializer.serialize_str("-Inf"),
            // As people write it, without ".0"; -0 would lose its sign.
            value
                if value.fract() == 0.0
                    && value.abs() <= EXACT_MAX as f64
                    && value.to_bits() != (-0.0_f64).to_bits() =>
            {
                serializer.serialize_i64(value as i64)
            }
            value => serializer.serialize_f64(value),
        }
    }
}

impl<'de> Deserialize<'de> for Real {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Real, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = Real;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(r#"a number, "NaN", "+Inf" or "-Inf""#)
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Real, E> {
                Ok(Real(value))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Real, E> {
                Ok(Real(value as f64))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Real, E> {
                Ok(Real(value as f64))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Real, E> {
                Real::of_text(text)
                    .ok_or_else(|| E::invalid_value(Unexpected::Str(&shown(text)), &self))
            }
        }
        deserializer.deserialize_any(Read)
    }
}

/// An integer: a number up to 2^53, a string of digits beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Whole(pub(crate) u64);

impl Serialize for Whole {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            n @ ..=EXACT_MAX => serializer.serialize_u64(n),
            n => serializer.collect_str(&n),
        }
    }
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Whole, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = Whole;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer of 0 or more, as a number or as a string of digits")
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Whole, E> {
                Ok(Whole(value))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Whole, E> {
                whole(text)
                    .map(Whole)
                    .ok_or_else(|| E::invalid_value(Unexpected::Str(&shown(text)), &self))
            }
        }
        deserializer.deserialize_any(Read)
    }
}

/// A date as RFC 3339 has it, to the nanosecond; of the years 1970 to 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Date(pub(crate) SystemTime);

impl Serialize for Date {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.stamp())
    }
}

impl Date {
    fn stamp(self) -> jiff::Timestamp {
        // A test's clock may show a year that RFC 3339 has not.
        let after = self.0.duration_since(SystemTime::UNIX_EPOCH);
        let after = after.unwrap_or_default();
        let date = i64::try_from(after.as_secs())
            .ok()
            .and_then(|s| jiff::Timestamp::new(s, after.subsec_nanos() as i32).ok());
        date.unwrap_or(jiff::Timestamp::MAX)
    }

    /// As it is written.
    pub(super) fn text(self) -> String {
        self.stamp().to_string()
    }

    pub(super) fn read(text: &str) -> Option<Date> {
        // Nothing that long is a date; with a time zone's name in it, it is none of RFC 3339.
        if text.len() > 40 || text.contains('[') {
            return None;
        }
        let date: jiff::Timestamp = text.parse().ok()?;
        let seconds = u64::try_from(date.as_second()).ok()?;
        let nanos = u32::try_from(date.subsec_nanosecond()).ok()?;
        SystemTime::UNIX_EPOCH
            .checked_add(Duration::new(seconds, nanos))
            .map(Date)
    }
}

impl<'de> Deserialize<'de> for Date {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Date, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = Date;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a date as 2026-01-31T12:00:00.5Z, of the years 1970 to 9999")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Date, E> {
                Date::read(text)
                    .ok_or_else(|| E::invalid_value(Unexpected::Str(&shown(text)), &self))
            }
        }
        deserializer.deserialize_str(Read)
    }
}

/// The most labels or annotations of one object.
const PAIRS_MAX: usize = 256;

/// Names and values as an object, in their order. No name comes twice.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Map(pub(crate) Vec<(String, String)>);

impl<'de> Deserialize<'de> for Map {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Map, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Map;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(
                    f,
                    "an object of at most {PAIRS_MAX} texts, none named twice"
                )
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Map, A::Error> {
                let mut pairs: Vec<(String, String)> = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if pairs.len() >= PAIRS_MAX {
                        return Err(A::Error::invalid_length(pairs.len() + 1, &self));
                    }
                    if pairs.iter().any(|(earlier, _)| *earlier == name) {
                        let twice = shown(&name);
                        return Err(A::Error::custom(format!("{twice:?} is given twice")));
                    }
                    pairs.push((name, map.next_value()?));
                }
                Ok(Map(pairs))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

/// Of two with one name the last counts, as in all that shows alerts.
impl Serialize for Map {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Pairs(&self.0).serialize(serializer)
    }
}

/// As [`Map`], borrowed.
pub(crate) struct Pairs<'a>(pub(crate) &'a [(String, String)]);

impl Serialize for Pairs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let last = self.0.iter().enumerate().filter(|(i, (name, _))| {
            let mut later = self.0[i + 1..].iter();
            later.all(|(n, _)| n != name)
        });
        serializer.collect_map(last.map(|(_, (name, value))| (name, value)))
    }
}

/// Nanoseconds of each unit of a duration's text, the greatest first.
const UNITS: [(&str, u128); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// A duration as people write it: `500ms`, `90s`; in the greatest unit of which it is a whole number.
pub(crate) fn duration_text(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    let unit = UNITS.iter().find(|(_, unit)| nanos.is_multiple_of(*unit));
    let (name, unit) = unit.unwrap_or(&("ns", 1));
    format!("{}{name}", nanos / unit)
}

/// What [`duration_text`] writes, and sums of it with the units falling, as `1h30m`.
pub(crate) fn read_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total: u128 = 0;
    let mut units = UNITS.iter();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u128 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let name = &rest[..rest
            .find(|c: char| !c.is_ascii_lowercase())
            .unwrap_or(rest.len())];
        rest = &rest[name.len()..];
        let (_, unit) = units.find(|(unit, _)| *unit == name)?;
        total = total.checked_add(number.checked_mul(*unit)?)?;
    }
    let seconds = u64::try_from(total / 1_000_000_000).ok()?;
    let nanos = u32::try_from(total % 1_000_000_000).ok()?;
    (!text.is_empty()).then(|| Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json<T: Serialize>(value: &T) -> String {
        serde_json::to_string(value).unwrap()
    }

    #[test]
    fn what_is_no_number_in_json_is_a_string() {
        for (value, text) in [
            (f64::NAN, "\"NaN\""),
            (f64::INFINITY, "\"+Inf\""),
            (f64::NEG_INFINITY, "\"-Inf\""),
            (0.9, "0.9"),
            (5.0, "5"),
            (-0.0, "-0.0"),
        ] {
            assert_eq!(json(&Real(value)), text);
            assert_eq!(serde_json::from_str::<Real>(text).unwrap(), Real(value));
        }
        assert_eq!(json(&Whole(1 << 53)), "9007199254740992");
        assert_eq!(json(&Whole((1 << 53) + 1)), "\"9007199254740993\"");
        for bad in ["1e999", "\"1\"", "\"inf\"", "null", "[]", "-"] {
            assert!(serde_json::from_str::<Real>(bad).is_err(), "{bad}");
        }
        for bad in [
            "-1",
            "1.0",
            "\"+1\"",
            "\"01\"",
            "\"\"",
            "18446744073709551616",
        ] {
            assert!(serde_json::from_str::<Whole>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn dates_outside_of_what_can_be_written_are_refused() {
        for bad in [
            "1969-12-31T23:59:59Z",
            "-000001-01-01T00:00:00Z",
            "2026-01-31",
            "2026-01-31T12:00:00",
            "2026-01-31T12:00:00Z[UTC]",
            "tomorrow",
            "",
        ] {
            assert_eq!(Date::read(bad), None, "{bad}");
        }
        assert!(Date::read("2026-01-31T13:00:00+01:00").is_some());
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert!(json(&Date(far)).starts_with("\"9999-12-3"));
    }

    #[test]
    fn a_name_that_comes_twice_is_refused() {
        let error = serde_json::from_str::<Map>(r#"{"a":"1","a":"2"}"#).unwrap_err();
        assert!(error.to_string().contains("given twice"), "{error}");
        let many: Vec<_> = (0..=PAIRS_MAX).map(|i| format!("\"{i}\":\"\"")).collect();
        let many = format!("{{{}}}", many.join(","));
        assert!(serde_json::from_str::<Map>(&many).is_err());
    }

    #[test]
    fn durations_are_written_as_people_do() {
        for (text, duration) in [
            ("0s", Duration::ZERO),
            ("500ms", Duration::from_millis(500)),
            ("90s", Duration::from_secs(90)),
            ("1d", Duration::from_secs(86_400)),
        ] {
            assert_eq!(duration_text(duration), text);
        }
        assert_eq!(read_duration("1h30m"), Some(Duration::from_secs(5_400)));
        for bad in [
            "",
            "5",
            "s",
            "1m1h",
            "1s1s",
            "1.5s",
            "-1s",
            "1 s",
            "999999999999999d",
        ] {
            assert_eq!(read_duration(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn doubles_come_back_bit_by_bit(bits: u64) {
            let value = Real(f64::from_bits(bits));
            prop_assert_eq!(serde_json::from_str::<Real>(&json(&value)).unwrap(), value);
        }

        #[test]
        fn integers_come_back(n: u64) {
            prop_assert_eq!(serde_json::from_str::<Whole>(&json(&Whole(n))).unwrap(), Whole(n));
        }

        #[test]
        fn durations_come_back(seconds: u64, nanos in 0_u32..1_000_000_000) {
            let duration = Duration::new(seconds, nanos);
            prop_assert_eq!(read_duration(&duration_text(duration)), Some(duration));
        }

        #[test]
        fn dates_come_back(seconds in 0_u64..253_402_207_200, nanos in 0_u32..1_000_000_000) {
            let date = Date(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos));
            prop_assert_eq!(serde_json::from_str::<Date>(&json(&date)).unwrap(), date);
        }

        #[test]
        fn pairs_come_back_in_their_order(names in prop::collection::btree_map(any::<String>(), any::<String>(), 0..5)) {
            let map = Map(names.into_iter().rev().collect());
            prop_assert_eq!(serde_json::from_str::<Map>(&json(&map)).unwrap(), map);
        }
    }
}

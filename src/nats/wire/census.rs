//! What a received OTLP message would take in memory, told before it is read.
//!
//! An empty point is two bytes on the wire and some hundred in memory; a megabyte of them would be a hundred. So messages
//! are counted first.

use opentelemetry_proto::tonic::{
    common::v1::{InstrumentationScope, KeyValue},
    metrics::v1::{
        Exemplar, ExponentialHistogramDataPoint, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics,
    },
    resource::v1::Resource,
};
use prost::encoding::{WireType, decode_key, decode_varint};

use super::WireError;

/// How many times its length a message may take. A counter with a label takes about four times.
const FACTOR: usize = 16;

/// What every message may take.
const FREE: usize = 4_096;

/// The messages of OTLP that are looked into.
#[derive(Clone, Copy)]
enum Kind {
    Data,
    ResourceMetrics,
    Resource,
    ScopeMetrics,
    Scope,
    Metric,
    /// Gauge, sum, histogram and exponential histogram, by what their points are.
    Points(Point),
    Point(Point),
    Exemplar,
    KeyValue,
    AnyValue,
    Buckets,
}

#[derive(Clone, Copy)]
enum Point {
    Number,
    Histogram,
    Exponential,
}

/// What a field is.
enum Field {
    Message(Kind),
    /// Integers of a byte at least, eight in memory.
    Packed,
    /// Text, or something that is passed over.
    Plain,
    /// Messages within messages, of which we make none.
    Foreign,
}

impl Kind {
    fn field(self, tag: u32) -> Field {
        use Field::{Foreign, Message, Packed, Plain};
        match (self, tag) {
            (Kind::Data, 1) => Message(Kind::ResourceMetrics),
            (Kind::ResourceMetrics, 1) => Message(Kind::Resource),
            (Kind::ResourceMetrics, 2) => Message(Kind::ScopeMetrics),
            (Kind::Resource, 1) => Message(Kind::KeyValue),
            (Kind::Resource, 3) => Foreign,
            (Kind::ScopeMetrics, 1) => Message(Kind::Scope),
            (Kind::ScopeMetrics, 2) => Message(Kind::Metric),
            (Kind::Scope, 3) => Message(Kind::KeyValue),
            (Kind::Metric, 5 | 7) => Message(Kind::Points(Point::Number)),
            (Kind::Metric, 9) => Message(Kind::Points(Point::Histogram)),
            (Kind::Metric, 10) => Message(Kind::Points(Point::Exponential)),
            (Kind::Metric, 11) => Foreign,
            (Kind::Metric, 12) => Message(Kind::KeyValue),
            (Kind::Points(point), 1) => Message(Kind::Point(point)),
            (Kind::Point(Point::Number), 7) => Message(Kind::KeyValue),
            (Kind::Point(Point::Number), 5) => Message(Kind::Exemplar),
            (Kind::Point(Point::Histogram), 9) => Message(Kind::KeyValue),
            (Kind::Point(Point::Histogram), 8) => Message(Kind::Exemplar),
            (Kind::Point(Point::Exponential), 1) => Message(Kind::KeyValue),
            (Kind::Point(Point::Exponential), 8 | 9) => Message(Kind::Buckets),
            (Kind::Point(Point::Exponential), 11) => Message(Kind::Exemplar),
            (Kind::Exemplar, 7) => Message(Kind::KeyValue),
            (Kind::KeyValue, 2) => Message(Kind::AnyValue),
            (Kind::AnyValue, 5 | 6) => Foreign,
            (Kind::Buckets, 2) => Packed,
            _ => Plain,
        }
    }

    /// What one takes, besides its text.
    fn bytes(self) -> usize {
        match self {
            // They lie within another.
            Kind::Data | Kind::Points(_) | Kind::AnyValue | Kind::Buckets => 0,
            Kind::ResourceMetrics => size_of::<ResourceMetrics>(),
            Kind::Resource => size_of::<Resource>(),
            Kind::ScopeMetrics => size_of::<ScopeMetrics>(),
            Kind::Scope => size_of::<InstrumentationScope>(),
            Kind::Metric => size_of::<Metric>(),
            Kind::Point(Point::Number) => size_of::<NumberDataPoint>(),
            Kind::Point(Point::Histogram) => size_of::<HistogramDataPoint>(),
            Kind::Point(Point::Exponential) => size_of::<ExponentialHistogramDataPoint>(),
            Kind::Exemplar => size_of::<Exemplar>(),
            Kind::KeyValue => size_of::<KeyValue>(),
        }
    }
}

/// # Errors
///
/// When it is not made as protobuf is, has messages that frames don't have, or would take more than [`FACTOR`] times its
/// length.
pub(super) fn check(bytes: &[u8]) -> Result<(), WireError> {
    let mut left = bytes.len().saturating_mul(FACTOR).saturating_add(FREE);
    count(bytes, Kind::Data, &mut left).map_err(|why| WireError::Format {
        format: "OTLP",
        why,
    })
}

/// Messages do not nest in themselves, so this ends after a few steps.
fn count(mut bytes: &[u8], kind: Kind, left: &mut usize) -> Result<(), String> {
    let cut = || "it ends within a field".to_owned();
    while !bytes.is_empty() {
        let (tag, wire) = decode_key(&mut bytes).map_err(|error| error.to_string())?;
        let length = match wire {
            WireType::Varint => {
                decode_varint(&mut bytes).map_err(|error| error.to_string())?;
                continue;
            }
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => {
                decode_varint(&mut bytes).map_err(|error| error.to_string())?
            }
            WireType::StartGroup | WireType::EndGroup => {
                return Err("it has a group, which frames don't have".to_owned());
            }
        };
        let length = usize::try_from(length).map_err(|_| cut())?;
        let (inside, after) = bytes.split_at_checked(length).ok_or_else(cut)?;
        bytes = after;
        if wire != WireType::LengthDelimited {
            continue;
        }
        let (takes, within) = match kind.field(tag) {
            Field::Message(kind) => (kind.bytes(), Some(kind)),
            Field::Packed => (inside.len().saturating_mul(size_of::<u64>()), None),
            Field::Plain => (0, None),
            Field::Foreign => {
                return Err("it has messages that frames don't have".to_owned());
            }
        };
        *left = left.checked_sub(takes).ok_or_else(|| {
            format!("it would take more than {FACTOR} times its length in memory")
        })?;
        if let Some(within) = within {
            count(inside, within, left)?;
        }
    }
    Ok(())
}

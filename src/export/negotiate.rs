//! What the client wants: the format by `Accept`, the encoding by `Accept-Encoding`. Pure functions over header values.
//!
//! The rules are RFC 9110's (§12.4.2 quality, §12.5.1 `Accept`, §12.5.3 `Accept-Encoding`), with what Prometheus clients
//! do on top: a request that names no format of ours is answered in text 0.0.4, never with 406.

use std::borrow::Cow;

use http::{
    HeaderMap,
    header::{ACCEPT, ACCEPT_ENCODING, AsHeaderName},
};

use super::{Escaping, text::Format};

/// How the body travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Encoding {
    Identity,
    Gzip,
}

/// What a scrape is to be answered in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    pub(super) format: Format,
    /// Where it was asked for in a way that there is.
    pub(super) escaping: Option<Escaping>,
    /// Text 1.0.0, which may have names in quotes, rather than 0.0.4.
    text_1: bool,
    /// OpenMetrics to the letter, for those who have not asked for text as well: who has (any Prometheus, and what is made
    /// of its parsers) takes sums that the specification forbids, and would miss them.
    pub(super) strict: bool,
}

impl Wanted {
    /// Text 0.0.4 for everybody.
    pub(super) const TEXT: Wanted = Wanted {
        format: Format::Text,
        escaping: None,
        text_1: false,
        strict: false,
    };

    pub(super) fn content_type(self) -> Cow<'static, str> {
        let kind = if self.text_1 {
            "text/plain; version=1.0.0; charset=utf-8"
        } else {
            self.format.content_type()
        };
        match self.escaping {
            None => kind.into(),
            Some(escaping) => format!("{kind}; escaping={}", escaping.as_str()).into(),
        }
    }
}

/// The format for a request, and what can be chosen in it.
pub(super) fn wanted(headers: &HeaderMap) -> Wanted {
    let ranges: Vec<Range> = members(headers, ACCEPT).filter_map(Range::parse).collect();
    let (format, decided) = format_of(&ranges);
    let range = decided.map(|verdict| &ranges[verdict.position]);
    let text_1 = format == Format::Text && range.is_some_and(|r| r.version == Some(TEXT_1));
    let escaping = range.and_then(|r| r.escaping).and_then(Escaping::parse);
    let quotes_allowed = format != Format::Text || text_1;
    let is_text = |r: &Range| r.quality > 0 && r.matches_text().is_some_and(|close| close >= 3);
    Wanted {
        format,
        escaping: escaping.map(|escaping| match escaping {
            Escaping::AllowUtf8 if !quotes_allowed => Escaping::Underscores,
            escaping => escaping,
        }),
        text_1,
        strict: format == Format::OpenMetrics && !ranges.iter().any(is_text),
    }
}

/// The version of text in which names may be in quotes.
const TEXT_1: &str = "1.0.0";

/// OpenMetrics has to be asked for by name: `*/*` says that anything is welcome, and text 0.0.4 is what everyone can
/// read. Only a client that refuses text gets OpenMetrics for its wildcard. Protobuf has to be asked for by name with the
/// message and the encoding that there is, as Prometheus does where native histograms are wanted.
fn format_of(ranges: &[Range]) -> (Format, Option<Verdict>) {
    let readable = readable(ranges, best(ranges, |r| r.matches_text()));
    let Some(protobuf) = best(ranges, |r| r.wants_protobuf()).filter(|p| p.quality > 0) else {
        return readable;
    };
    match &readable.1 {
        Some(other) if other.quality > 0 && other.rank() > protobuf.rank() => readable,
        _ => (Format::Protobuf, Some(protobuf)),
    }
}

/// Text or OpenMetrics, with what was said of it.
fn readable(ranges: &[Range], text: Option<Verdict>) -> (Format, Option<Verdict>) {
    let open = best(ranges, |r| {
        r.matches("application", "openmetrics-text", "1.0.0")
    });
    let Some(open) = open.filter(|o| o.quality > 0) else {
        return (Format::Text, text);
    };
    let wins = match &text {
        None => open.named,
        Some(text) if text.quality == 0 => true,
        // On equal terms the one that is described more closely, then the one that stands first.
        Some(text) => open.named && open.rank() > text.rank(),
    };
    if wins {
        (Format::OpenMetrics, Some(open))
    } else {
        (Format::Text, text)
    }
}

/// The encoding for a request: gzip where it is wanted at least as much as none.
pub(super) fn encoding(headers: &HeaderMap) -> Encoding {
    let (mut gzip, mut identity, mut any) = (None, None, None);
    for member in members(headers, ACCEPT_ENCODING) {
        let mut parts = split(member, ';');
        let name = parts.next().unwrap_or("").trim();
        let Some(quality) = quality(parts) else {
            continue;
        };
        let slot = if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
            &mut gzip
        } else if name.eq_ignore_ascii_case("identity") {
            &mut identity
        } else if name == "*" {
            &mut any
        } else {
            continue;
        };
        slot.get_or_insert(quality);
    }
    match (gzip.or(any), identity) {
        (Some(gzip), identity) if gzip > 0 && gzip >= identity.unwrap_or(0) => Encoding::Gzip,
        _ => Encoding::Identity,
    }
}

/// One media range of an `Accept` header.
struct Range<'a> {
    kind: &'a str,
    subtype: &'a str,
    version: Option<&'a str>,
    /// Of protobuf: the type of the messages, and how they stand one after the other.
    proto: Option<&'a str>,
    encoding: Option<&'a str>,
    /// What is to become of names that are not plain.
    escaping: Option<&'a str>,
    /// In thousandths.
    quality: u16,
}

impl<'a> Range<'a> {
    /// `None` for what is not a media range: it then counts as not sent.
    fn parse(member: &'a str) -> Option<Self> {
        let mut parts = split(member, ';');
        let (kind, subtype) = parts.next()?.trim().split_once('/')?;
        let (mut version, mut proto, mut encoding, mut escaping) = (None, None, None, None);
        for parameter in parts.clone() {
            // What else a range may carry, as `charset`, doesn't change what we can send.
            let Some((name, value)) = parameter.split_once('=') else {
                continue;
            };
            let slot = match name.trim() {
                name if name.eq_ignore_ascii_case("version") => &mut version,
                name if name.eq_ignore_ascii_case("proto") => &mut proto,
                name if name.eq_ignore_ascii_case("encoding") => &mut encoding,
                name if name.eq_ignore_ascii_case("escaping") => &mut escaping,
                _ => continue,
            };
            *slot = Some(unquote(value));
        }
        Some(Range {
            kind: kind.trim(),
            subtype: subtype.trim(),
            version,
            proto,
            encoding,
            escaping,
            quality: quality(parts)?,
        })
    }

    /// Whether this is protobuf as it is written here: as close as can be, or not at all.
    fn wants_protobuf(&self) -> Option<u8> {
        let is = |word: Option<&str>, wanted| word.is_some_and(|w| w.eq_ignore_ascii_case(wanted));
        let wanted = self.kind.eq_ignore_ascii_case("application")
            && self.subtype.eq_ignore_ascii_case("vnd.google.protobuf")
            && is(self.proto, "io.prometheus.client.MetricFamily")
            && is(self.encoding, "delimited");
        wanted.then_some(4)
    }

    /// Of text, in either version.
    fn matches_text(&self) -> Option<u8> {
        self.matches("text", "plain", "0.0.4")
            .or_else(|| self.matches("text", "plain", TEXT_1))
    }

    /// How closely the range describes a format, from 1 (`*/*`) to 4 (with its version), if it does at all.
    fn matches(&self, kind: &str, subtype: &str, version: &str) -> Option<u8> {
        let closeness = if self.kind == "*" && self.subtype == "*" {
            1
        } else if !self.kind.eq_ignore_ascii_case(kind) {
            return None;
        } else if self.subtype == "*" {
            2
        } else if self.subtype.eq_ignore_ascii_case(subtype) {
            3
        } else {
            return None;
        };
        match self.version {
            Some(v) if closeness == 3 => (v == version).then_some(4),
            _ => Some(closeness),
        }
    }
}

/// What the ranges together say of one format.
struct Verdict {
    quality: u16,
    closeness: u8,
    position: usize,
    named: bool,
}

impl Verdict {
    fn rank(&self) -> (u16, u8, std::cmp::Reverse<usize>) {
        (
            self.quality,
            self.closeness,
            std::cmp::Reverse(self.position),
        )
    }
}

/// The range that describes a format most closely decides; of equals, the first.
fn best(ranges: &[Range], closeness: impl Fn(&Range) -> Option<u8>) -> Option<Verdict> {
    let mut best: Option<Verdict> = None;
    for (position, range) in ranges.iter().enumerate() {
        let Some(closeness) = closeness(range) else {
            continue;
        };
        if best.as_ref().is_none_or(|b| closeness > b.closeness) {
            best = Some(Verdict {
                quality: range.quality,
                closeness,
                position,
                named: closeness >= 3,
            });
        }
    }
    best
}

/// The members of a list header, all its lines together. A line that is not ASCII counts as not sent.
fn members(headers: &HeaderMap, name: impl AsHeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| split(line, ','))
        .map(str::trim)
        .filter(|member| !member.is_empty())
}

/// Splits at `separator`, but not inside quotes.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> + Clone {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let (mut quoted, mut escaped) = (false, false);
        for (at, c) in text.char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                _ if c == separator && !quoted => {
                    rest = Some(&text[at + c.len_utf8()..]);
                    return Some(&text[..at]);
                }
                _ => {}
            }
        }
        rest = None;
        Some(text)
    })
}

fn unquote(value: &str) -> &str {
    let value = value.trim();
    value
        .strip_prefix('"')
        .and_then(|v| v.strip_suffix('"'))
        .unwrap_or(value)
}

/// The `q` among parameters, in thousandths: 1000 where there is none, `None` where it is not from 0 to 1.
fn quality<'a>(parameters: impl Iterator<Item = &'a str>) -> Option<u16> {
    for parameter in parameters {
        if let Some((name, value)) = parameter.split_once('=')
            && name.trim().eq_ignore_ascii_case("q")
        {
            let value: f32 = value.trim().parse().ok()?;
            // NaN is in no range.
            return (0.0..=1.0)
                .contains(&value)
                .then(|| (value * 1000.0).round() as u16);
        }
    }
    Some(1000)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const PROTOBUF: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";

    fn accept(lines: &[&str]) -> Format {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(ACCEPT, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        wanted(&headers).format
    }

    fn accept_encoding(line: &str) -> Encoding {
        let mut headers = HeaderMap::new();
        headers.append(
            ACCEPT_ENCODING,
            HeaderValue::from_bytes(line.as_bytes()).unwrap(),
        );
        encoding(&headers)
    }

    #[test]
    fn what_real_clients_send_gets_what_they_read_best() {
        // Prometheus 2.42, Prometheus 3, the OpenTelemetry collector, VictoriaMetrics, curl, a browser.
        for (line, wanted) in [
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                Format::OpenMetrics,
            ),
            (
                "application/openmetrics-text; version=\"1.0.0\", text/plain; version=\"0.0.4\"; q=0.5, */*; q=0.1",
                Format::OpenMetrics,
            ),
            ("text/plain;version=0.0.4;q=1,*/*;q=0.1", Format::Text),
            ("*/*", Format::Text),
            // Prometheus 2.42 with native histograms, and what it became.
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::Protobuf,
            ),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
                Format::Protobuf,
            ),
            (
                "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
                Format::Text,
            ),
        ] {
            assert_eq!(accept(&[line]), wanted, "{line}");
        }
    }

    #[test]
    fn names_are_escaped_as_the_range_that_decides_says() {
        let of = |line: &str| {
            let mut headers = HeaderMap::new();
            headers.append(ACCEPT, HeaderValue::from_str(line).unwrap());
            wanted(&headers).content_type().into_owned()
        };
        let (text, open) = (
            "text/plain; version=",
            "application/openmetrics-text; version=1.0.0",
        );
        for (line, kind) in [
            (
                "text/plain;version=0.0.4",
                format!("{text}0.0.4; charset=utf-8"),
            ),
            (
                "text/plain;version=1.0.0",
                format!("{text}1.0.0; charset=utf-8"),
            ),
            (
                "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                format!("{text}1.0.0; charset=utf-8; escaping=allow-utf-8"),
            ),
            // Text 0.0.4 has no quotes around names.
            (
                "text/plain;version=0.0.4;escaping=allow-utf-8",
                format!("{text}0.0.4; charset=utf-8; escaping=underscores"),
            ),
            (
                "text/plain;version=0.0.4;escaping=dots",
                format!("{text}0.0.4; charset=utf-8; escaping=dots"),
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.2",
                format!("{open}; charset=utf-8; escaping=allow-utf-8"),
            ),
            (
                "application/openmetrics-text;escaping=\"values\"",
                format!("{open}; charset=utf-8; escaping=values"),
            ),
            (
                "application/openmetrics-text;escaping=rot13",
                format!("{open}; charset=utf-8"),
            ),
            (
                &format!("{PROTOBUF};escaping=allow-utf-8"),
                format!("{}; escaping=allow-utf-8", Format::Protobuf.content_type()),
            ),
            ("*/*", format!("{text}0.0.4; charset=utf-8")),
        ] {
            assert_eq!(of(line), kind, "{line}");
        }
    }

    #[test]
    fn open_metrics_is_strict_to_those_who_read_nothing_else() {
        for (line, strict) in [
            ("application/openmetrics-text;version=1.0.0", true),
            (
                "application/openmetrics-text;version=1.0.0, */*;q=0.1",
                true,
            ),
            ("application/openmetrics-text, text/plain;q=0", true),
            (
                "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                false,
            ),
            (
                "application/openmetrics-text;version=1.0.0,text/plain;version=1.0.0;q=0.5",
                false,
            ),
            ("text/plain", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(ACCEPT, HeaderValue::from_str(line).unwrap());
            assert_eq!(wanted(&headers).strict, strict, "{line}");
        }
    }

    #[test]
    fn the_higher_quality_wins_and_of_equals_the_closer_then_the_first() {
        for (line, wanted) in [
            ("application/openmetrics-text", Format::OpenMetrics),
            (
                "Application/OpenMetrics-Text ; Version=1.0.0 ; Q=0.1",
                Format::OpenMetrics,
            ),
            (
                "application/openmetrics-text;q=0.5, text/plain;q=0.6",
                Format::Text,
            ),
            (
                "application/openmetrics-text;q=0.6, text/plain;q=0.5",
                Format::OpenMetrics,
            ),
            (
                "application/openmetrics-text, text/plain",
                Format::OpenMetrics,
            ),
            ("text/plain, application/openmetrics-text", Format::Text),
            (
                "text/plain, application/openmetrics-text;version=1.0.0",
                Format::OpenMetrics,
            ),
            ("application/openmetrics-text;q=0, */*", Format::Text),
            ("text/plain;q=0, */*;q=0.1", Format::OpenMetrics),
            ("text/plain;q=0.2, */*;q=0.9", Format::Text),
            (
                "text/*;q=0.1, application/openmetrics-text;q=0.2",
                Format::OpenMetrics,
            ),
            ("application/*", Format::Text),
            (PROTOBUF, Format::Protobuf),
            (&format!("{PROTOBUF};q=0.4, text/plain;q=0.5"), Format::Text),
            (
                &format!("{PROTOBUF};q=0.4, application/openmetrics-text;q=0.5"),
                Format::OpenMetrics,
            ),
            (
                &format!("{PROTOBUF};q=0.5, text/plain;q=0.4"),
                Format::Protobuf,
            ),
            (
                &format!("text/plain;version=0.0.4, {PROTOBUF}"),
                Format::Text,
            ),
            (&format!("text/plain, {PROTOBUF}"), Format::Protobuf),
            (&format!("{PROTOBUF};q=0, */*;q=0.1"), Format::Text),
            (
                &format!("{PROTOBUF};q=0.1, text/plain;q=0"),
                Format::Protobuf,
            ),
            (
                "Application/Vnd.Google.Protobuf; Proto=\"io.prometheus.client.MetricFamily\"; Encoding=\"delimited\"",
                Format::Protobuf,
            ),
        ] {
            assert_eq!(accept(&[line]), wanted, "{line}");
        }
        assert_eq!(
            accept(&[
                "text/plain;q=0.5",
                "application/openmetrics-text;version=1.0.0"
            ]),
            Format::OpenMetrics
        );
    }

    #[test]
    fn what_we_do_not_speak_and_what_is_no_header_at_all_is_answered_in_text() {
        for line in [
            "",
            ",",
            "application/json",
            "application/vnd.google.protobuf",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text",
            "application/vnd.google.protobuf;proto=other.Message;encoding=delimited",
            "application/openmetrics-text;version=2.0.0",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;q=nan",
            "application/openmetrics-text;q=2",
            "application/openmetrics-text;q=",
            "application/openmetrics-text;q=-1",
            "openmetrics",
            "\"application/openmetrics-text",
            "/",
            ";;;=,=;q",
            "text/plain;version=\"0.0.4, application/openmetrics-text\"",
            "gr\u{fc}n/\u{1f600}",
        ] {
            assert_eq!(accept(&[line]), Format::Text, "{line}");
        }
        assert_eq!(wanted(&HeaderMap::new()).format, Format::Text);
    }

    #[test]
    fn gzip_is_sent_to_those_who_want_it_at_least_as_much_as_none() {
        for (line, wanted) in [
            ("gzip", Encoding::Gzip),
            ("deflate, GZIP;q=0.5", Encoding::Gzip),
            ("x-gzip", Encoding::Gzip),
            ("*", Encoding::Gzip),
            ("br;q=1.0, gzip;q=0.8, *;q=0.1", Encoding::Gzip),
            ("gzip;q=0.5, identity;q=0.5", Encoding::Gzip),
            ("identity;q=0, gzip;q=0.1", Encoding::Gzip),
            ("", Encoding::Identity),
            ("br", Encoding::Identity),
            ("gzip;q=0", Encoding::Identity),
            ("gzip;q=0, *", Encoding::Identity),
            ("*;q=0", Encoding::Identity),
            ("gzip;q=0.5, identity", Encoding::Identity),
            ("gzip;q=NaN", Encoding::Identity),
            ("gzipped", Encoding::Identity),
            ("identity;q=0", Encoding::Identity),
        ] {
            assert_eq!(accept_encoding(line), wanted, "{line}");
        }
        assert_eq!(encoding(&HeaderMap::new()), Encoding::Identity);
    }
}

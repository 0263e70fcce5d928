//! The encoder: Prometheus text 0.0.4 and OpenMetrics 1.0 here, protobuf beside it.
//!
//! Series carry their labels already rendered, so a line is two copies and a number; nothing is allocated per series.
//! Takes no lock that a mutation takes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::protobuf;
use crate::{
    bus::MetricBus,
    desc::{MetricKind, Numbers},
    exemplar::{Exemplar, Exemplars},
    labels::{may_have_quoted_names, push_label, push_raw, raw_pairs},
    metric::FamilyCore,
    names::{Escaping, is_plain},
    series::{SeriesCore, Value},
    snapshot::{FamilySnapshot, SampleValue},
};

/// An exposition format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Format {
    /// Prometheus text 0.0.4: understood by everything.
    #[default]
    Text,
    /// OpenMetrics 1.0: counters are families without `_total`, units and exemplars are there, and `# EOF` ends the text.
    OpenMetrics,
    /// Protobuf: `io.prometheus.client.MetricFamily` messages, each with its length before it. Native histograms, exemplars
    /// and the times at which series were made are there.
    Protobuf,
}

impl Format {
    /// For the header of that name.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }
}

/// A format with what can be chosen in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub(super) format: Format,
    /// In OpenMetrics: a line `_created` for each counter and histogram.
    pub(super) created: bool,
    /// In protobuf: the most native buckets of a series.
    pub(super) native_buckets_max: usize,
    /// What becomes of names that are not plain.
    pub(super) escaping: Escaping,
    /// In OpenMetrics: sums that its specification forbids are left out.
    pub(super) strict: bool,
}

impl Style {
    pub(super) fn of(format: Format) -> Style {
        Style {
            format,
            created: false,
            native_buckets_max: protobuf::NATIVE_BUCKETS_MAX,
            escaping: Escaping::default(),
            strict: true,
        }
    }
}

/// Writes every metric of the bus, sorted by name, to the end of `out`. Metrics without series are left out. The
/// `# EOF` of OpenMetrics is not written, so that more families can follow; see [`finish`].
///
/// In OpenMetrics a histogram's `_sum` is left out where the format does not allow it: when it is negative or NaN, or
/// there are negative buckets. Its `_count` is left out with it, for the format has both or neither; the bucket `+Inf`
/// says the same. An exporter writes both to those who read text as well, as any Prometheus does: they take them.
///
/// Names that are not plain are [escaped](Escaping::Underscores).
///
/// Exemplars are written in OpenMetrics and in protobuf. Histograms that are [native](crate::Desc::native) are so in protobuf
/// alone, beside their buckets with bounds.
///
/// ```
/// use metricbus::{MetricBus, export::text::{Format, encode}};
///
/// let bus = MetricBus::new();
/// bus.counter("requests_total", "Requests served.")?.inc_by(6);
///
/// let mut out = Vec::new();
/// encode(&bus, Format::Text, &mut out);
/// assert_eq!(
///     String::from_utf8_lossy(&out),
///     "# HELP requests_total Requests served.\n# TYPE requests_total counter\nrequests_total 6\n",
/// );
/// # Ok::<(), metricbus::DeclareError>(())
/// ```
pub fn encode(bus: &MetricBus, format: Format, out: &mut Vec<u8>) {
    encode_as(bus, Style::of(format), out);
}

/// As [`encode`].
pub(super) fn encode_as(bus: &MetricBus, style: Style, out: &mut Vec<u8>) {
    if style.format == Format::Protobuf {
        let mut scratch = protobuf::Scratch::new(style);
        for family in bus.inner().families() {
            protobuf::encode_family(&family, &mut scratch, out);
        }
        return;
    }
    let mut line = Line::new(style);
    for family in bus.inner().families() {
        encode_family(&family, &mut line, out);
    }
}

/// Writes families that were collected elsewhere; help and label values are escaped, and names that are not plain. A
/// snapshot holds no exemplars, no native buckets and no times of birth.
pub fn encode_families(families: &[FamilySnapshot], format: Format, out: &mut Vec<u8>) {
    encode_families_as(families, Style::of(format), out);
}

/// As [`encode_families`].
pub(super) fn encode_families_as(families: &[FamilySnapshot], style: Style, out: &mut Vec<u8>) {
    if style.format == Format::Protobuf {
        return protobuf::encode_families(families, style.escaping, out);
    }
    let mut line = Line::new(style);
    let mut labels = String::new();
    for family in families.iter().filter(|family| !family.series.is_empty()) {
        line.begin(
            &family.name,
            &family.help,
            family.unit.as_deref(),
            family.kind,
            out,
        );
        // Of our own, all series of a histogram have the same; others' need not.
        let mut bounds: Option<Vec<f64>> = None;
        for series in &family.series {
            labels.clear();
            for (name, value) in &series.labels {
                push_label(&mut labels, &style.escaping.of_label(name), value);
            }
            match &series.value {
                SampleValue::Counter(Value::U64(v)) => line.whole(&labels, *v, out),
                SampleValue::Counter(Value::F64(v)) | SampleValue::Gauge(v) => {
                    line.real(&labels, *v, out);
                }
                SampleValue::Histogram(h) => {
                    let of_series = h.buckets.iter().map(|(bound, _)| *bound);
                    if !bounds.iter().flatten().copied().eq(of_series.clone()) {
                        line.bounds(of_series.clone());
                        bounds = Some(of_series.collect());
                    }
                    let counts = h.buckets.iter().map(|(_, count)| *count);
                    line.histogram(&labels, counts, h.sum, None, out);
                }
            }
        }
    }
}

/// Ends a text: `# EOF` in OpenMetrics, nothing in the others.
pub fn finish(format: Format, out: &mut Vec<u8>) {
    if format == Format::OpenMetrics {
        out.extend_from_slice(b"# EOF\n");
    }
}

fn encode_family(family: &FamilyCore, line: &mut Line, out: &mut Vec<u8>) {
    let meta = &family.meta;
    let style = line.style;
    let open = style.format == Format::OpenMetrics;
    let mut relabelled = String::new();
    let created = open && style.created && meta.kind != MetricKind::Gauge;
    let mut begun = false;
    family.for_each(|series| {
        if !series.has_value() {
            return;
        }
        if !begun {
            begun = true;
            line.begin(&meta.name, &meta.help, meta.unit.as_deref(), meta.kind, out);
            if meta.kind == MetricKind::Histogram {
                line.bounds(meta.bounds.iter().copied().chain([f64::INFINITY]));
            }
        }
        let series: &SeriesCore = series;
        let text = labels_as(style.escaping, &series.text, &mut relabelled);
        match (&series.buckets, meta.numbers) {
            (Some(buckets), _) => {
                let sum = f64::from_bits(series.cell.load());
                let mut total = 0;
                let cumulative = buckets.counts().map(|count| {
                    total += count;
                    total
                });
                let exemplars = series.exemplars.get().filter(|_| open);
                line.histogram(text, cumulative, sum, exemplars, out);
            }
            (None, Numbers::Whole) => line.whole(text, series.cell.load(), out),
            (None, Numbers::Amount | Numbers::Real) => {
                line.real(text, f64::from_bits(series.cell.load()), out);
            }
        }
        if !open {
            return;
        }
        if meta.kind == MetricKind::Counter
            && let Some(kept) = series.exemplars.get()
        {
            kept.with(0, |it| line.exemplar(it, out));
        }
        if created {
            let born = meta.clock.date(series.born());
            start(out, line.quoted, &line.created, text);
            push_date(&mut line.itoa, born, out);
            out.push(b'\n');
        }
    });
}

/// The labels of a series as they are exposed. Nothing is to be done where all their names are plain, as nearly always.
fn labels_as<'a>(escaping: Escaping, text: &'a str, scratch: &'a mut String) -> &'a str {
    let as_it_is = match escaping {
        Escaping::AllowUtf8 => true,
        Escaping::Underscores | Escaping::Values => !may_have_quoted_names(text),
        Escaping::Dots => false,
    };
    if as_it_is {
        return text;
    }
    scratch.clear();
    for (name, value) in raw_pairs(text) {
        push_raw(scratch, &escaping.of_label(name), value);
    }
    scratch
}

/// What the lines of one family have in common, rendered once. Names with a quote before them have a brace before that, and
/// labels follow after a comma.
struct Line {
    style: Style,
    /// Whether the family's name is in quotes.
    quoted: bool,
    /// `name`, or `name_bucket`, `name_sum` and `name_count`.
    name: Vec<u8>,
    sum: Vec<u8>,
    count: Vec<u8>,
    created: Vec<u8>,
    /// `le="…"} ` of each bucket.
    les: Vec<Vec<u8>>,
    negative_bounds: bool,
    itoa: itoa::Buffer,
    zmij: zmij::Buffer,
}

impl Line {
    fn new(style: Style) -> Line {
        Line {
            style,
            quoted: false,
            name: Vec::new(),
            sum: Vec::new(),
            count: Vec::new(),
            created: Vec::new(),
            les: Vec::new(),
            negative_bounds: false,
            itoa: itoa::Buffer::new(),
            zmij: zmij::Buffer::new(),
        }
    }

    fn begin(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&str>,
        kind: MetricKind,
        out: &mut Vec<u8>,
    ) {
        let format = self.style.format;
        let name = &*self.style.escaping.of_metric(name);
        self.quoted = !is_plain(name, true);
        let quoted = self.quoted;
        let of_sample = |name: String| {
            let name = if quoted {
                format!("{{\"{name}\"")
            } else {
                name
            };
            name.into_bytes()
        };
        let (family, sample) = match (format, kind) {
            (Format::OpenMetrics, MetricKind::Counter) => {
                let base = name.strip_suffix("_total").unwrap_or(name);
                (base, format!("{base}_total"))
            }
            (_, MetricKind::Histogram) => (name, format!("{name}_bucket")),
            _ => (name, name.to_owned()),
        };
        self.name = of_sample(sample);
        self.sum = of_sample(format!("{name}_sum"));
        self.count = of_sample(format!("{name}_count"));
        self.created = of_sample(format!("{family}_created"));
        let in_quotes = format!("\"{family}\"");
        let family = if quoted { &in_quotes } else { family };
        if !help.is_empty() || format == Format::Text {
            meta_line(out, "HELP", family, |out| push_help(out, help, format));
        }
        meta_line(out, "TYPE", family, |out| {
            out.extend_from_slice(kind.as_str().as_bytes())
        });
        if let (Format::OpenMetrics, Some(unit)) = (format, unit) {
            meta_line(out, "UNIT", family, |out| {
                out.extend_from_slice(unit.as_bytes())
            });
        }
    }

    fn bounds(&mut self, bounds: impl Iterator<Item = f64>) {
        self.les.clear();
        self.negative_bounds = false;
        for bound in bounds {
            self.negative_bounds |= bound < 0.0;
            let mut le = b"le=\"".to_vec();
            match self.style.format {
                Format::OpenMetrics => le.extend_from_slice(canonical(bound).as_bytes()),
                _ => self.push_real(bound, &mut le),
            }
            le.extend_from_slice(b"\"} ");
            self.les.push(le);
        }
    }

    #[inline]
    fn whole(&mut self, labels: &str, value: u64, out: &mut Vec<u8>) {
        // Room for the whole line at once, so that the copies below need not grow `out` in between.
        out.reserve(self.name.len() + labels.len() + 32);
        start(out, self.quoted, &self.name, labels);
        out.extend_from_slice(self.itoa.format(value).as_bytes());
        out.push(b'\n');
    }

    #[inline]
    fn real(&mut self, labels: &str, value: f64, out: &mut Vec<u8>) {
        out.reserve(self.name.len() + labels.len() + 40);
        start(out, self.quoted, &self.name, labels);
        self.push_real(value, out);
        out.push(b'\n');
    }

    fn histogram(
        &mut self,
        labels: &str,
        cumulative: impl Iterator<Item = u64>,
        sum: f64,
        exemplars: Option<&Exemplars>,
        out: &mut Vec<u8>,
    ) {
        let mut total = 0;
        for (at, count) in (0..self.les.len()).zip(cumulative) {
            let le = &self.les[at];
            total = count;
            out.reserve(self.name.len() + labels.len() + le.len() + 32);
            out.extend_from_slice(&self.name);
            out.push(if self.quoted { b',' } else { b'{' });
            if !labels.is_empty() {
                out.extend_from_slice(labels.as_bytes());
                out.push(b',');
            }
            out.extend_from_slice(le);
            out.extend_from_slice(self.itoa.format(count).as_bytes());
            out.push(b'\n');
            if let Some(kept) = exemplars {
                kept.with(at, |it| self.exemplar(it, out));
            }
        }
        let strict = self.style.format == Format::OpenMetrics && self.style.strict;
        let sum_allowed = !strict || (sum >= 0.0 && !self.negative_bounds);
        if sum_allowed {
            start(out, self.quoted, &self.sum, labels);
            self.push_real(sum, out);
            out.push(b'\n');
            start(out, self.quoted, &self.count, labels);
            out.extend_from_slice(self.itoa.format(total).as_bytes());
            out.push(b'\n');
        }
    }

    /// Puts an exemplar at the end of the line that was just written.
    fn exemplar(&mut self, exemplar: &Exemplar, out: &mut Vec<u8>) {
        if out.last() == Some(&b'\n') {
            out.pop();
        }
        let mut labels = String::new();
        for (name, value) in &exemplar.labels {
            push_label(&mut labels, name, value);
        }
        out.extend_from_slice(b" # {");
        out.extend_from_slice(labels.as_bytes());
        out.extend_from_slice(b"} ");
        self.push_real(exemplar.value, out);
        out.push(b' ');
        push_date(&mut self.itoa, exemplar.at, out);
        out.push(b'\n');
    }

    /// The shortest text that reads back as the same double; whole numbers without a fraction.
    fn push_real(&mut self, value: f64, out: &mut Vec<u8>) {
        /// Whole doubles up to here are written as integers: 15 digits are exact and still short.
        const WHOLE_MAX: f64 = 1e15;
        if value.abs() < WHOLE_MAX && value.trunc() == value {
            out.extend_from_slice(self.itoa.format(value as i64).as_bytes());
        } else if value.is_nan() {
            out.extend_from_slice(b"NaN");
        } else if value.is_infinite() {
            out.extend_from_slice(if value > 0.0 { b"+Inf" } else { b"-Inf" });
        } else {
            let text = self.zmij.format_finite(value);
            out.extend_from_slice(text.strip_suffix(".0").unwrap_or(text).as_bytes());
        }
    }
}

/// Seconds since 1970, to the millisecond: what Prometheus keeps.
fn push_date(itoa: &mut itoa::Buffer, date: SystemTime, out: &mut Vec<u8>) {
    let since = date.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    out.extend_from_slice(itoa.format(since.as_secs()).as_bytes());
    out.push(b'.');
    let millis = since.subsec_millis();
    for place in [100, 10, 1] {
        out.push(b'0' + (millis / place % 10) as u8);
    }
}

/// `name{labels} `, or `{"name",labels} `.
#[inline]
fn start(out: &mut Vec<u8>, quoted: bool, name: &[u8], labels: &str) {
    out.extend_from_slice(name);
    match (quoted, labels.is_empty()) {
        (false, true) => return out.push(b' '),
        (true, true) => {}
        (false, false) => out.push(b'{'),
        (true, false) => out.push(b','),
    }
    out.extend_from_slice(labels.as_bytes());
    out.extend_from_slice(b"} ");
}

fn meta_line(out: &mut Vec<u8>, word: &str, family: &str, text: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(b"# ");
    out.extend_from_slice(word.as_bytes());
    out.push(b' ');
    out.extend_from_slice(family.as_bytes());
    out.push(b' ');
    text(out);
    out.push(b'\n');
}

fn push_help(out: &mut Vec<u8>, help: &str, format: Format) {
    for byte in help.bytes() {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'"' if format == Format::OpenMetrics => out.extend_from_slice(b"\\\""),
            byte => out.push(byte),
        }
    }
}

/// A bound as OpenMetrics's canonical numbers want it (specification, "Considerations: Canonical Numbers"): always with
/// a fraction, and with an exponent of two digits from 10^6 on, as Go writes them.
fn canonical(bound: f64) -> String {
    if bound.is_infinite() {
        return if bound > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let magnitude = bound.abs();
    if magnitude != 0.0 && !(1e-4..1e6).contains(&magnitude) {
        let text = format!("{bound:e}");
        if let Some((mantissa, exponent)) = text.split_once('e') {
            let (sign, digits) = match exponent.strip_prefix('-') {
                Some(digits) => ('-', digits),
                None => ('+', exponent),
            };
            return format!("{mantissa}e{sign}{digits:0>2}");
        }
        return text;
    }
    // `{:?}` of a double in this range is its shortest text, with a fraction.
    format!("{bound:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Buckets, Counter, Desc, Gauge, Histogram};

    fn text(bus: &MetricBus, format: Format) -> String {
        let mut out = Vec::new();
        encode(bus, format, &mut out);
        finish(format, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_snapshot_is_written_as_the_bus_itself() {
        let bus = MetricBus::new();
        let c = bus
            .family::<Counter>(Desc::new("c_total", "a\\b\n\"c\"").labels(["x"]))
            .unwrap();
        c.with_label_values(&["quote \" back \\ line \n 🦀"])
            .unwrap()
            .inc();
        bus.declare::<Counter<f64>>(Desc::new("cpu_seconds_total", "h").unit("seconds"))
            .unwrap()
            .inc_by(0.5);
        for (i, v) in [f64::NAN, f64::INFINITY, -1.5, 1e300, 5e-324, -0.0]
            .into_iter()
            .enumerate()
        {
            let g: Gauge = bus.declare(Desc::new(format!("g{i}"), "h")).unwrap();
            g.set(v);
        }
        let h: Histogram = bus
            .declare(
                Desc::new("h", "h")
                    .label("a", "b")
                    .buckets(Buckets::new([1e-5, 0.5, 1.0, 1e6]).unwrap()),
            )
            .unwrap();
        h.observe(0.7);
        for format in [Format::Text, Format::OpenMetrics] {
            let mut from_snapshot = Vec::new();
            encode_families(&bus.snapshot().families, format, &mut from_snapshot);
            finish(format, &mut from_snapshot);
            assert_eq!(
                text(&bus, format),
                String::from_utf8(from_snapshot).unwrap()
            );
        }
    }

    #[test]
    fn an_open_metrics_text_has_units_canonical_bounds_and_an_end() {
        let bus = MetricBus::new();
        let h: Histogram = bus
            .declare(
                Desc::new("wait_seconds", "Time waited.")
                    .unit("seconds")
                    .buckets(Buckets::new([0.00001, 0.5, 1.0, 1e6]).unwrap()),
            )
            .unwrap();
        h.observe(1.0);
        bus.counter("requests_total", "Requests.").unwrap().inc();
        assert_eq!(
            text(&bus, Format::OpenMetrics),
            "# HELP requests Requests.\n\
             # TYPE requests counter\n\
             requests_total 1\n\
             # HELP wait_seconds Time waited.\n\
             # TYPE wait_seconds histogram\n\
             # UNIT wait_seconds seconds\n\
             wait_seconds_bucket{le=\"1e-05\"} 0\n\
             wait_seconds_bucket{le=\"0.5\"} 0\n\
             wait_seconds_bucket{le=\"1.0\"} 1\n\
             wait_seconds_bucket{le=\"1e+06\"} 1\n\
             wait_seconds_bucket{le=\"+Inf\"} 1\n\
             wait_seconds_sum 1\n\
             wait_seconds_count 1\n\
             # EOF\n"
        );
    }

    #[test]
    fn exemplars_stand_behind_their_samples_in_open_metrics_alone() {
        let clock = crate::Clock::manual();
        let bus = MetricBus::builder().clock(clock.clone()).build();
        let h: Histogram = bus
            .declare(
                Desc::new("wait_seconds", "h")
                    .label("a", "b")
                    .buckets(Buckets::new([1.0]).unwrap()),
            )
            .unwrap();
        let c = bus.counter("c_total", "h").unwrap();
        let before = text(&bus, Format::Text);
        clock.advance(Duration::from_millis(1_520_879_607_009));
        c.inc_by_with_exemplar(2, &[]).unwrap();
        h.observe_with_exemplar(0.25, &[("trace_id", "x\"y\\z\n"), ("span", "1")])
            .unwrap();
        let open = text(&bus, Format::OpenMetrics);
        assert_eq!(
            open,
            "# HELP c h\n\
             # TYPE c counter\n\
             c_total 2 # {} 2 1520879607.009\n\
             # HELP wait_seconds h\n\
             # TYPE wait_seconds histogram\n\
             wait_seconds_bucket{a=\"b\",le=\"1.0\"} 1 # {trace_id=\"x\\\"y\\\\z\\n\",span=\"1\"} 0.25 1520879607.009\n\
             wait_seconds_bucket{a=\"b\",le=\"+Inf\"} 1\n\
             wait_seconds_sum{a=\"b\"} 0.25\n\
             wait_seconds_count{a=\"b\"} 1\n\
             # EOF\n"
        );
        assert_eq!(
            text(&bus, Format::Text).lines().count(),
            before.lines().count()
        );
        assert!(!text(&bus, Format::Text).contains(" # "));
    }

    #[test]
    fn text_is_the_same_whatever_else_is_known_of_the_metrics() {
        let written = |native: bool, traced: bool| {
            let bus = MetricBus::builder().native_histograms(native).build();
            let c = bus.counter("c_total", "h").unwrap();
            let h = bus.histogram("h", "h", Buckets::default()).unwrap();
            if traced {
                c.inc_with_exemplar(&[("id", "1")]).unwrap();
                h.observe_with_exemplar(0.3, &[("id", "1")]).unwrap();
            } else {
                c.inc();
                h.observe(0.3);
            }
            text(&bus, Format::Text)
        };
        let plain = written(false, false);
        for (native, traced) in [(true, false), (false, true), (true, true)] {
            assert_eq!(written(native, traced), plain);
        }
    }

    #[test]
    fn created_lines_are_written_where_they_are_asked_for() {
        let clock = crate::Clock::manual();
        let bus = MetricBus::builder().clock(clock.clone()).build();
        clock.advance(Duration::from_millis(60_250));
        bus.family::<Counter>(Desc::new("c_total", "h").labels(["x"]))
            .unwrap()
            .with_label_values(&["1"])
            .unwrap();
        bus.histogram("h", "h", Buckets::new([1.0]).unwrap())
            .unwrap();
        bus.gauge("g", "h").unwrap();
        let written = |format, created| {
            let mut out = Vec::new();
            let style = Style {
                created,
                ..Style::of(format)
            };
            encode_as(&bus, style, &mut out);
            String::from_utf8(out).unwrap()
        };
        let with = written(Format::OpenMetrics, true);
        let created: Vec<_> = with.lines().filter(|l| l.contains("_created")).collect();
        assert_eq!(created, ["c_created{x=\"1\"} 60.250", "h_created 60.250"]);
        let without: Vec<_> = with.lines().filter(|l| !l.contains("_created")).collect();
        assert_eq!(
            written(Format::OpenMetrics, false)
                .lines()
                .collect::<Vec<_>>(),
            without
        );
        assert_eq!(written(Format::Text, true), written(Format::Text, false));
    }

    #[test]
    fn a_sum_that_open_metrics_forbids_is_left_out() {
        let bus = MetricBus::new();
        let h = bus
            .histogram("h", "h", Buckets::new([1.0]).unwrap())
            .unwrap();
        h.observe(-3.0);
        assert!(!text(&bus, Format::OpenMetrics).contains("h_sum"));
        assert!(text(&bus, Format::Text).contains("h_sum -3\n"));
    }

    fn styled(bus: &MetricBus, style: Style) -> String {
        let mut out = Vec::new();
        encode_as(bus, style, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_sum_that_open_metrics_forbids_is_written_to_those_who_take_it() {
        let bus = MetricBus::new();
        for (name, bound, value) in [("a", 1.0, -3.0), ("b", 1.0, f64::NAN), ("c", -1.0, 0.5)] {
            let buckets = Buckets::new([bound]).unwrap();
            bus.histogram(name, "h", buckets).unwrap().observe(value);
        }
        let lenient = Style {
            strict: false,
            ..Style::of(Format::OpenMetrics)
        };
        let text = styled(&bus, lenient);
        for line in [
            "a_sum -3",
            "a_count 1",
            "b_sum NaN",
            "b_count 1",
            "c_sum 0.5",
            "c_count 1",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line}: {text}");
        }
        let strict = styled(&bus, Style::of(Format::OpenMetrics));
        assert!(
            !strict.contains("_sum") && !strict.contains("_count"),
            "{strict}"
        );
    }

    #[test]
    fn names_that_are_not_plain_are_escaped_as_was_asked_for() {
        let bus = MetricBus::new();
        let requests = bus
            .family::<Counter>(Desc::new("http.requests_total", "h").labels(["http.method", "x"]))
            .unwrap();
        requests.with_label_values(&["a,\"b", "1"]).unwrap().inc();
        let h: Histogram = bus
            .declare(Desc::new("größe", "h").buckets(Buckets::new([1.0]).unwrap()))
            .unwrap();
        h.observe(0.5);
        bus.gauge("plain_gauge", "h").unwrap().set(2.0);
        let written = |format, escaping| {
            let style = Style {
                escaping,
                ..Style::of(format)
            };
            let ours = styled(&bus, style);
            let mut from_snapshot = Vec::new();
            encode_families_as(&bus.snapshot().families, style, &mut from_snapshot);
            assert_eq!(ours, String::from_utf8(from_snapshot).unwrap());
            ours
        };
        assert_eq!(
            written(Format::OpenMetrics, Escaping::AllowUtf8),
            r##"# HELP "größe" h
# TYPE "größe" histogram
{"größe_bucket",le="1.0"} 1
{"größe_bucket",le="+Inf"} 1
{"größe_sum"} 0.5
{"größe_count"} 1
# HELP "http.requests" h
# TYPE "http.requests" counter
{"http.requests_total","http.method"="a,\"b",x="1"} 1
# HELP plain_gauge h
# TYPE plain_gauge gauge
plain_gauge 2
"##
        );
        let lines = |escaping| {
            let text = written(Format::Text, escaping);
            let kept = text
                .lines()
                .filter(|l| !l.starts_with('#') && !l.contains("_bucket"));
            let mut kept: Vec<_> = kept.map(str::to_owned).collect();
            kept.sort();
            kept
        };
        assert_eq!(
            lines(Escaping::Underscores),
            [
                "gr__e_count 1",
                "gr__e_sum 0.5",
                r#"http_requests_total{http_method="a,\"b",x="1"} 1"#,
                "plain_gauge 2"
            ]
        );
        assert_eq!(
            lines(Escaping::Dots),
            [
                "gr____e_count 1",
                "gr____e_sum 0.5",
                r#"http_dot_requests__total{http_dot_method="a,\"b",x="1"} 1"#,
                "plain__gauge 2"
            ]
        );
        assert_eq!(
            lines(Escaping::Values),
            [
                "U__gr_f6__df_e_count 1",
                "U__gr_f6__df_e_sum 0.5",
                r#"U__http_2e_requests__total{U__http_2e_method="a,\"b",x="1"} 1"#,
                "plain_gauge 2"
            ]
        );
    }
}

//! Labels as text: the one place that escapes, renders and reads back `name="value"`.

use std::fmt::{self, Display, Write};

use crate::names::is_plain;

/// A set of labels known by their type: implemented by `#[derive(Labels)]`.
///
/// ```
/// use std::fmt::Display;
/// use metricbus::{Counter, Desc, Labels, MetricBus};
///
/// struct Request { method: &'static str, code: u16 }
///
/// impl Labels for Request {
///     const NAMES: &'static [&'static str] = &["method", "code"];
///     fn visit(&self, value: &mut dyn FnMut(usize, &dyn Display)) {
///         value(0, &self.method);
///         value(1, &self.code);
///     }
/// }
///
/// let bus = MetricBus::new();
/// let requests = bus.scope().family_of::<Counter, Request>(Desc::new("requests_total", "Requests."))?;
/// requests.with(&Request { method: "GET", code: 200 }).inc();
/// # Ok::<(), metricbus::DeclareError>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a set of labels",
    note = "add `#[derive(metricbus::Labels)]` to it"
)]
pub trait Labels {
    /// The labels' names, in the order of [`visit`](Labels::visit)'s index.
    const NAMES: &'static [&'static str];

    /// Calls `value` once for each label, with its index in [`NAMES`](Labels::NAMES) and its value. A label that is
    /// left out is empty.
    fn visit(&self, value: &mut dyn FnMut(usize, &dyn Display));
}

/// The label of the series that takes what is over a family's cardinality limit (OpenTelemetry's name for it).
pub(crate) const OVERFLOW_LABEL: &str = "otel_metric_overflow";

/// Writes `name="value"`, with a comma before it unless `out` is empty.
pub(crate) fn push_label(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() {
        out.push(',');
    }
    push_name(out, name);
    out.push_str("=\"");
    escape(out, value);
    out.push('"');
}

/// A name that is not plain has quotes around it. Nothing in a name has to be escaped in them.
fn push_name(out: &mut String, name: &str) {
    if is_plain(name, false) {
        return out.push_str(name);
    }
    for part in ["\"", name, "\""] {
        out.push_str(part);
    }
}

/// As [`push_label`], of a value that is escaped already.
pub(crate) fn push_raw(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() {
        out.push(',');
    }
    push_name(out, name);
    for part in ["=\"", value, "\""] {
        out.push_str(part);
    }
}

/// As [`push_label`], for anything that can be displayed.
pub(crate) fn push_label_display(out: &mut String, name: &str, value: &dyn Display) {
    struct Escaping<'a>(&'a mut String);
    impl Write for Escaping<'_> {
        fn write_str(&mut self, s: &str) -> fmt::Result {
            escape(self.0, s);
            Ok(())
        }
    }
    if !out.is_empty() {
        out.push(',');
    }
    push_name(out, name);
    out.push_str("=\"");
    // A `Display` that fails leaves what it wrote until then.
    let _ = write!(Escaping(out), "{value}");
    out.push('"');
}

/// Escapes a label value as both exposition formats want it: `\\`, `\"` and `\n`.
pub(crate) fn escape(out: &mut String, value: &str) {
    let mut rest = value;
    while let Some(at) = rest.find(['\\', '"', '\n']) {
        out.push_str(&rest[..at]);
        out.push_str(match rest.as_bytes()[at] {
            b'\\' => "\\\\",
            b'"' => "\\\"",
            _ => "\\n",
        });
        rest = &rest[at + 1..];
    }
    out.push_str(rest);
}

/// Whether a text that [`push_label`] wrote may have names in quotes; where it says not, there are none.
pub(crate) fn may_have_quoted_names(text: &str) -> bool {
    text.starts_with('"') || text.contains(",\"")
}

/// The pairs of a text that [`push_label`] wrote: names without quotes, and values still escaped.
pub(crate) fn raw_pairs(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (name, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once("\"=\"")?,
            None => rest.split_once("=\"")?,
        };
        let mut end = 0;
        let bytes = after.as_bytes();
        while end < bytes.len() && bytes[end] != b'"' {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        let value = after.get(..end)?;
        rest = after.get(end + 1..).unwrap_or("");
        rest = rest.strip_prefix(',').unwrap_or(rest);
        Some((name, value))
    })
}

/// Undoes [`escape`].
pub(crate) fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some(other) => out.push(other),
                None => {}
            },
            _ => out.push(c),
        }
    }
    out
}

/// All pairs of a rendered text, unescaped.
pub(crate) fn pairs(text: &str) -> Vec<(String, String)> {
    raw_pairs(text)
        .map(|(name, value)| (name.to_owned(), unescape(value)))
        .collect()
}

/// The value of one label in a rendered text.
pub(crate) fn value_of(text: &str, name: &str) -> Option<String> {
    raw_pairs(text)
        .find(|(n, _)| *n == name)
        .map(|(_, value)| unescape(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_rendered_is_read_back(
            labels in prop::collection::vec(("[a-z_=é., {}-]{1,8}", any::<String>()), 0..5)
        ) {
            let mut text = String::new();
            for (name, value) in &labels {
                push_label(&mut text, name, value);
            }
            prop_assert_eq!(pairs(&text), labels.clone());
            prop_assert!(
                may_have_quoted_names(&text) || labels.iter().all(|(name, _)| is_plain(name, false))
            );
            let mut again = String::new();
            for (name, value) in &labels {
                push_label_display(&mut again, name, value);
            }
            prop_assert_eq!(text, again);
        }
    }
}

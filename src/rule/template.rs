//! Annotations: text with places for the value, for labels, and for who holds. Pure text. What can be written is a part of what
//! Prometheus's templates can be, so that promtool takes it, too.

use super::Pairs;
use crate::labels::push_label;

/// A part of a template.
#[derive(Debug, PartialEq)]
pub(crate) enum Part<'a> {
    Text(&'a str),
    Value,
    Label(&'a str),
    Holding,
}

const KNOWN: &str =
    r#"{{ $value }}, {{ $labels.NAME }}, {{ .Holding }} and text as in {{ "{{" }} are"#;

/// # Errors
///
/// When something stands in braces that means nothing here: why.
pub(crate) fn parse(text: &str) -> Result<Vec<Part<'_>>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        if !before.is_empty() {
            parts.push(Part::Text(before));
        }
        let trimmed = after.trim_start();
        let (part, after) = if let Some(quoted) = trimmed.strip_prefix('"') {
            // Braces may stand in it.
            let (literal, after) = quoted.split_once('"').unwrap_or((quoted, ""));
            let after = after
                .trim_start()
                .strip_prefix("}}")
                .filter(|_| !literal.contains('\\'));
            let after = after.ok_or_else(|| {
                format!(
                    "{:?} is no text in quotes and braces; {KNOWN}",
                    shown(trimmed)
                )
            })?;
            (Part::Text(literal), after)
        } else {
            let Some((inner, after)) = after.split_once("}}") else {
                return Err(format!(
                    "\"{{{{{after}\" is not closed; \"}}}}\" is missing"
                ));
            };
            (place(inner.trim())?, after)
        };
        parts.push(part);
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest));
    }
    Ok(parts)
}

/// # Errors
///
/// As of [`parse`].
#[cfg(feature = "nats")]
pub(crate) fn check(text: &str) -> Result<(), String> {
    parse(text).map(|_| ())
}

/// What is left of a template, for an error.
fn shown(rest: &str) -> &str {
    rest.split_once("}}")
        .map_or(rest, |(inner, _)| inner.trim_end())
}

fn place(inner: &str) -> Result<Part<'_>, String> {
    match inner {
        "$value" => Ok(Part::Value),
        ".Holding" => Ok(Part::Holding),
        _ => {
            let label = inner.strip_prefix("$labels.").filter(|name| {
                let valid = |c: char| c.is_ascii_alphanumeric() || c == '_';
                !name.is_empty() && name.chars().all(valid)
            });
            label
                .map(Part::Label)
                .ok_or_else(|| format!("{inner:?} is not known in braces; {KNOWN}"))
        }
    }
}

/// The labels that a template asks for.
pub(crate) fn labels(text: &str) -> impl Iterator<Item = &str> {
    let parts = parse(text).unwrap_or_default().into_iter();
    parts.filter_map(|part| match part {
        Part::Label(name) => Some(name),
        _ => None,
    })
}

/// What an alert fills into its annotations.
pub(crate) struct Facts<'a> {
    pub(crate) value: Option<f64>,
    /// Of the alert.
    pub(crate) labels: &'a [(String, String)],
    /// Of the first member that holds; of a group that does no more, that did.
    pub(crate) first: &'a [(String, String)],
    /// Some of those that hold.
    pub(crate) holding: &'a [Pairs],
    /// How many do.
    pub(crate) holds: usize,
}

impl Facts<'_> {
    /// A template filled in. Of a label that is not there nothing is left, as in Prometheus.
    pub(crate) fn fill(&self, text: &str) -> String {
        let Ok(parts) = parse(text) else {
            // It was refused when the rule was made.
            return text.to_owned();
        };
        let mut filled = String::new();
        for part in parts {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Value => match self.value {
                    Some(value) => filled.push_str(&value.to_string()),
                    None => filled.push_str("(no data)"),
                },
                Part::Label(name) => {
                    let mut all = self.labels.iter().chain(self.first);
                    filled.extend(
                        all.find(|(n, _)| n == name)
                            .map(|(_, value)| value.as_str()),
                    );
                }
                Part::Holding => self.push_holding(&mut filled),
            }
        }
        filled
    }

    fn push_holding(&self, filled: &mut String) {
        for (i, member) in self.holding.iter().enumerate() {
            let mut text = String::new();
            for (name, value) in &**member {
                push_label(&mut text, name, value);
            }
            filled.push_str(if i > 0 { ", {" } else { "{" });
            filled.push_str(&text);
            filled.push('}');
        }
        let more = self.holds.saturating_sub(self.holding.len());
        if more > 0 && !self.holding.is_empty() {
            filled.push_str(&format!(" and {more} more"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Pairs {
        let pair = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn places_are_filled() {
        let labels = pairs(&[("severity", "page"), ("zone", "1")]);
        let holding = [
            pairs(&[("worker", "a"), ("zone", "2")]),
            pairs(&[("worker", "b\"")]),
        ];
        let facts = |value| Facts {
            value,
            labels: &labels,
            first: &holding[0],
            holding: &holding,
            holds: 5,
        };
        let rows = [
            (
                "{{ $labels.worker }}{{$labels.none}} is at {{ $value }}",
                "a is at 0.5",
            ),
            ("{{ $labels.zone }} {{$labels.severity}}", "1 page"),
            (
                "{{ .Holding }}",
                r#"{worker="a",zone="2"}, {worker="b\""} and 3 more"#,
            ),
            (r#"{{ "{{" }} }} {{"}}"}}!"#, "{{ }} }}!"),
            ("", ""),
        ];
        for (text, filled) in rows {
            assert_eq!(facts(Some(0.5)).fill(text), filled);
        }
        assert_eq!(facts(None).fill("{{ $value }}"), "(no data)");
    }

    #[test]
    fn what_means_nothing_is_refused() {
        let rows = [
            ("{{ $value", "is not closed"),
            ("a {{ b {{ $value }}", "is not known in braces"),
            (
                "{{ $value | humanizePercentagee }}",
                r#""$value | humanizePercentagee" is not known"#,
            ),
            ("{{ $labels. }}", "is not known"),
            ("{{ $labels.a-b }}", "is not known"),
            ("{{ $label.a }}", "is not known"),
            ("{{}}", r#""" is not known"#),
            (r#"{{ "a }}"#, "is no text in quotes"),
            (r#"{{ "a" b }}"#, "is no text in quotes"),
            (r#"{{ "\n" }}"#, "is no text in quotes"),
        ];
        for (text, why) in rows {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}

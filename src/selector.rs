//! Selectors: which series somebody means, in PromQL's words.

use std::{fmt, str::FromStr, sync::Arc};

use regex::{Regex, RegexBuilder};

use crate::{
    error::SelectorError,
    labels::{escape, push_label, raw_pairs, unescape},
    series::{Series, SeriesCore},
};

/// Which series are meant: a metric name and label matchers, as in PromQL.
///
/// `kv_usage{component="decode", pod!~"test-.*"}`. The name may be left out (`{component="decode"}`) or matched as the
/// label `__name__`. Matchers are `=`, `!=`, `=~` and `!~`; regular expressions are anchored at both ends; a label that
/// a series does not have counts as empty. A selector means present *and* future series.
///
/// ```
/// use metricbus::{MetricBus, Selector};
///
/// let selector: Selector = r#"queue_depth{role=~"prefill|decode"}"#.parse()?;
/// assert_eq!(selector.to_string(), r#"queue_depth{role=~"prefill|decode"}"#);
///
/// let error = "queue_depth{role}".parse::<Selector>().unwrap_err();
/// assert!(error.to_string().contains("byte 16"));
/// # Ok::<(), metricbus::SelectorError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Selector {
    name: Option<String>,
    matchers: Vec<Matcher>,
    /// Exactly this series.
    only: Option<Series>,
}

#[derive(Clone, Debug)]
struct Matcher {
    label: String,
    op: Op,
    value: String,
    /// For the two regular ones.
    regex: Option<Arc<Regex>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Equal,
    NotEqual,
    Match,
    NotMatch,
}

const NAME: &str = "__name__";

impl Selector {
    /// Every series of the bus.
    pub fn all() -> Selector {
        Selector {
            name: None,
            matchers: Vec::new(),
            only: None,
        }
    }

    pub(crate) fn only(series: Series) -> Selector {
        Selector {
            only: Some(series),
            ..Selector::all()
        }
    }

    /// As parsing, of a text that came from elsewhere: of its regular expressions there may be `regexes` at most (which is
    /// then what is left), each of `regex_bytes` once compiled.
    #[cfg(feature = "nats")]
    pub(crate) fn parse_within(
        text: &str,
        regexes: &mut usize,
        regex_bytes: usize,
    ) -> Result<Selector, SelectorError> {
        let mut parser = Parser {
            regexes: *regexes,
            regex_bytes: Some(regex_bytes),
            ..Parser::new(text)
        };
        let selector = parser.selector();
        *regexes = parser.regexes;
        selector
    }

    /// Whether it was made from a handle rather than written down.
    #[cfg(feature = "nats")]
    pub(crate) fn is_of_handle(&self) -> bool {
        self.only.is_some()
    }

    /// Name and labels where it means one series whatever there is: a name, and no matcher but `=`.
    pub(crate) fn exact(&self) -> Option<(&str, Vec<(String, String)>)> {
        let name = self.name.as_deref().filter(|_| self.only.is_none())?;
        let labels = self
            .matchers
            .iter()
            .map(|m| {
                let exact = m.op == Op::Equal && m.label != NAME;
                exact.then(|| (m.label.clone(), m.value.clone()))
            })
            .collect::<Option<_>>()?;
        Some((name, labels))
    }

    /// The name of the one metric that can match, where the selector says it.
    pub(crate) fn metric_name(&self) -> Option<&str> {
        match &self.only {
            Some(series) => Some(series.name()),
            None => self.name.as_deref(),
        }
    }

    /// The one series that can match, of a selector made from a handle.
    pub(crate) fn only_series(&self) -> Option<&Series> {
        self.only.as_ref()
    }

    /// A label that every series it matches has, as `label="value"`.
    pub(crate) fn anchor(&self) -> Option<String> {
        let pinned = self.matchers.iter().find(|m| m.pins())?;
        let mut anchor = String::new();
        push_label(&mut anchor, &pinned.label, &pinned.value);
        Some(anchor)
    }

    /// The text of the one series of a family with these labels that can match, where the selector pins each of them.
    pub(crate) fn text_of(&self, label_names: &[Arc<str>]) -> Option<String> {
        // A derived gauge has labels that its declaration does not name.
        let all = !label_names.is_empty() && self.matchers.len() == label_names.len();
        if !all || !self.matchers.iter().all(Matcher::pins) {
            return None;
        }
        let mut text = String::new();
        for name in label_names {
            let pinned = self.matchers.iter().find(|m| *m.label == **name)?;
            push_label(&mut text, name, &pinned.value);
        }
        Some(text)
    }

    /// Of series that have these labels in front of their own: the selector for one who knows only their own. A label of
    /// such a name that is their own is called `exported_` here. `None`: none of them can match.
    #[cfg(feature = "nats")]
    pub(crate) fn inside(&self, outer: &[(&str, &str)]) -> Option<Selector> {
        if let Some(only) = &self.only {
            let exact = |(label, value): (String, String)| Matcher {
                label,
                op: Op::Equal,
                value,
                regex: None,
            };
            let exactly = Selector {
                name: Some(only.name().to_owned()),
                matchers: only.labels().into_iter().map(exact).collect(),
                only: None,
            };
            return exactly.inside(outer);
        }
        let mut matchers = Vec::new();
        for matcher in &self.matchers {
            if let Some((_, value)) = outer.iter().find(|(name, _)| *name == matcher.label) {
                if !matcher.accepts(value) {
                    return None;
                }
                continue;
            }
            let mut matcher = matcher.clone();
            let own = matcher.label.strip_prefix("exported_");
            if let Some(own) = own.filter(|own| outer.iter().any(|(name, _)| name == own)) {
                matcher.label = own.to_owned();
            }
            matchers.push(matcher);
        }
        Some(Selector {
            name: self.name.clone(),
            matchers,
            only: None,
        })
    }

    /// Whether some series of a metric of this name could match.
    pub(crate) fn could_match_name(&self, name: &str) -> bool {
        match &self.only {
            Some(series) => series.name() == name,
            None => {
                self.name.as_deref().is_none_or(|n| n == name)
                    && self
                        .matchers
                        .iter()
                        .filter(|m| m.label == NAME)
                        .all(|m| m.accepts(name))
            }
        }
    }

    /// Whether some series with these labels, and perhaps others, could match.
    pub(crate) fn could_match_labels(&self, labels: &[(String, String)]) -> bool {
        let value = |m: &Matcher| labels.iter().find(|(name, _)| *name == m.label);
        let mut matchers = self.matchers.iter();
        matchers.all(|m| value(m).is_none_or(|(_, value)| m.accepts(value)))
    }

    pub(crate) fn matches(&self, series: &Arc<SeriesCore>) -> bool {
        if let Some(only) = &self.only {
            return only.is(series);
        }
        if !self.could_match_name(&series.meta.name) {
            return false;
        }
        self.matchers.iter().filter(|m| m.label != NAME).all(|m| {
            match raw_pairs(&series.text).find(|(name, _)| *name == m.label) {
                Some((_, value)) if value.contains('\\') => m.accepts(&unescape(value)),
                Some((_, value)) => m.accepts(value),
                None => m.accepts(""),
            }
        })
    }
}

impl Matcher {
    /// Whether it asks for one value of a label that the series must have.
    fn pins(&self) -> bool {
        self.op == Op::Equal && !self.value.is_empty() && self.label != NAME
    }

    fn accepts(&self, value: &str) -> bool {
        let hit = match &self.regex {
            Some(regex) => regex.is_match(value),
            None => self.value == value,
        };
        hit == matches!(self.op, Op::Equal | Op::Match)
    }
}

/// Selectors are equal that are written alike.
impl PartialEq for Selector {
    fn eq(&self, other: &Self) -> bool {
        self.only == other.only && self.to_string() == other.to_string()
    }
}

impl Eq for Selector {}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(series) = &self.only {
            return series.fmt(f);
        }
        f.write_str(self.name.as_deref().unwrap_or(""))?;
        if self.matchers.is_empty() && self.name.is_some() {
            return Ok(());
        }
        f.write_str("{")?;
        for (i, m) in self.matchers.iter().enumerate() {
            let op = match m.op {
                Op::Equal => "=",
                Op::NotEqual => "!=",
                Op::Match => "=~",
                Op::NotMatch => "!~",
            };
            let comma = if i == 0 { "" } else { "," };
            let mut value = String::new();
            escape(&mut value, &m.value);
            write!(f, "{comma}{}{op}\"{value}\"", m.label)?;
        }
        f.write_str("}")
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        Parser::new(text).selector()
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    /// How many regular expressions there may be yet.
    regexes: usize,
    /// How large each may be once compiled; `None`: as the engine has it.
    regex_bytes: Option<usize>,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Parser<'a> {
        Parser {
            text,
            at: 0,
            regexes: usize::MAX,
            regex_bytes: None,
        }
    }

    fn selector(&mut self) -> Result<Selector, SelectorError> {
        self.space();
        let name = self.word(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
        let name = match name {
            "" => None,
            n if n.starts_with(|c: char| c.is_ascii_digit()) => {
                self.at -= n.len();
                return Err(self.expected("a metric name, which can't begin with a digit"));
            }
            n => Some(n.to_owned()),
        };
        self.space();
        let mut matchers = Vec::new();
        if self.eat("{") {
            loop {
                self.space();
                if self.eat("}") {
                    break;
                }
                matchers.push(self.matcher()?);
                self.space();
                if !self.eat(",") {
                    self.space();
                    if self.eat("}") {
                        break;
                    }
                    return Err(self.expected("',' or '}'"));
                }
            }
        } else if name.is_none() {
            return Err(self.expected("a metric name or '{'"));
        }
        self.space();
        if self.at < self.text.len() {
            return Err(self.expected("the end"));
        }
        Ok(Selector {
            name,
            matchers,
            only: None,
        })
    }

    fn matcher(&mut self) -> Result<Matcher, SelectorError> {
        let label = self.word(|c| c.is_ascii_alphanumeric() || c == '_');
        if label.is_empty() || label.starts_with(|c: char| c.is_ascii_digit()) {
            self.at -= label.len();
            return Err(self.expected("a label name"));
        }
        self.space();
        let op = if self.eat("=~") {
            Op::Match
        } else if self.eat("!~") {
            Op::NotMatch
        } else if self.eat("!=") {
            Op::NotEqual
        } else if self.eat("=") {
            Op::Equal
        } else {
            return Err(self.expected("one of = != =~ !~"));
        };
        self.space();
        let value = self.quoted()?;
        let regex = match op {
            Op::Match | Op::NotMatch => {
                let Some(left) = self.regexes.checked_sub(1) else {
                    return Err(self.expected("fewer regular expressions"));
                };
                self.regexes = left;
                // Alone first: `a)|(?:b` would be one with the anchors around it.
                let regex = self
                    .regex(&value)
                    .and_then(|_| self.regex(&format!("^(?s:{value})$")))
                    .map_err(|error| SelectorError::Regex {
                        text: self.text.to_owned(),
                        pattern: value.clone(),
                        why: error.to_string(),
                    })?;
                Some(Arc::new(regex))
            }
            _ => None,
        };
        Ok(Matcher {
            label: label.to_owned(),
            op,
            value,
            regex,
        })
    }

    fn regex(&self, pattern: &str) -> Result<Regex, regex::Error> {
        match self.regex_bytes {
            None => Regex::new(pattern),
            Some(bytes) => RegexBuilder::new(pattern)
                .size_limit(bytes)
                .dfa_size_limit(bytes)
                .build(),
        }
    }

    /// A string in double or single quotes with the escapes `\\ \" \' \n \t \r`, or in back quotes with none.
    fn quoted(&mut self) -> Result<String, SelectorError> {
        let rest = &self.text[self.at..];
        let Some(quote @ ('"' | '\'' | '`')) = rest.chars().next() else {
            return Err(self.expected("a quoted value"));
        };
        let mut out = String::new();
        let mut chars = rest.char_indices().skip(1);
        while let Some((i, c)) = chars.next() {
            match c {
                c if c == quote => {
                    self.at += i + 1;
                    return Ok(out);
                }
                '\\' if quote != '`' => match chars.next() {
                    Some((_, 'n')) => out.push('\n'),
                    Some((_, 't')) => out.push('\t'),
                    Some((_, 'r')) => out.push('\r'),
                    Some((_, c @ ('\\' | '"' | '\''))) => out.push(c),
                    // PromQL refuses these; in a regular expression they are what was meant (`\d`).
                    Some((_, c)) => out.extend(['\\', c]),
                    None => break,
                },
                c => out.push(c),
            }
        }
        self.at = self.text.len();
        Err(self.expected(&format!("a closing {quote}")))
    }

    fn word(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let rest = &self.text[self.at..];
        let end = rest.find(|c| !accept(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn space(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn eat(&mut self, token: &str) -> bool {
        let hit = self.text[self.at..].starts_with(token);
        if hit {
            self.at += token.len();
        }
        hit
    }

    /// What somebody who knows PromQL may have meant.
    fn hint(&self) -> &'static str {
        match self.text[self.at..].chars().next() {
            Some('(') => "; functions are methods here, such as Expr::rate(selector, width)",
            Some('<' | '>') => "; comparing is Threshold's, such as Threshold::above(0.9)",
            Some('+' | '-' | '*' | '/') => {
                "; arithmetic is Expr's: Expr::value(a) / Expr::value(b)"
            }
            Some('[') => "; a window is Expr::over(selector, width)",
            _ => "",
        }
    }

    fn expected(&self, what: &str) -> SelectorError {
        let found = match self.text[self.at..].chars().next() {
            Some(c) => format!("{c:?}"),
            None => "the end".to_owned(),
        };
        SelectorError::Syntax {
            text: self.text.to_owned(),
            position: self.at,
            what: format!("expected {what}, found {found}{}", self.hint()),
        }
    }
}

/// What can be given where a [`Selector`] is asked for: a text, a selector, a series, or a metric's handle.
pub trait IntoSelector {
    /// Reads it.
    fn into_selector(self) -> Result<Selector, SelectorError>;
}

impl IntoSelector for Selector {
    fn into_selector(self) -> Result<Selector, SelectorError> {
        Ok(self)
    }
}

impl IntoSelector for &Selector {
    fn into_selector(self) -> Result<Selector, SelectorError> {
        Ok(self.clone())
    }
}

impl IntoSelector for &str {
    fn into_selector(self) -> Result<Selector, SelectorError> {
        self.parse()
    }
}

impl IntoSelector for String {
    fn into_selector(self) -> Result<Selector, SelectorError> {
        self.parse()
    }
}

impl IntoSelector for &String {
    fn into_selector(self) -> Result<Selector, SelectorError> {
        self.parse()
    }
}

impl IntoSelector for Series {
    fn into_selector(self) -> Result<Selector, SelectorError> {
        Ok(Selector::only(self))
    }
}

impl IntoSelector for &Series {
    fn into_selector(self) -> Result<Selector, SelectorError> {
        Ok(Selector::only(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[cfg(feature = "nats")]
    #[test]
    fn labels_in_front_choose_whom_to_ask_and_are_not_asked_for() {
        let outer = [("component", "decode"), ("instance", "pod-7")];
        let inside = |text: &str| {
            let selector: Selector = text.parse().unwrap();
            selector.inside(&outer).map(|inside| inside.to_string())
        };
        let text = r#"a{component="decode",b="c",exported_component!="x"}"#;
        assert_eq!(inside(text).unwrap(), r#"a{b="c",component!="x"}"#);
        assert_eq!(inside(r#"a{component=~"pre.*"}"#), None);
        assert_eq!(inside(r#"{instance!="pod-7"}"#), None);
        assert_eq!(inside(r#"{instance="pod-7"}"#).unwrap(), "{}");
        assert_eq!(
            inside(r#"a{exported_x="y"}"#).unwrap(),
            r#"a{exported_x="y"}"#
        );
    }

    #[test]
    fn a_selector_reads_what_it_displays() {
        for text in [
            "a",
            "a:b",
            r#"{a="b"}"#,
            r#"a{b="c",d!="e",f=~"g.*",h!~"i"}"#,
            r#"a{b="quote \" back \\ line \n"}"#,
        ] {
            let selector: Selector = text.parse().unwrap();
            assert_eq!(selector.to_string(), text);
        }
        let spaced: Selector = "  a { b = 'c' , } ".parse().unwrap();
        assert_eq!(spaced.to_string(), r#"a{b="c"}"#);
    }

    #[test]
    fn an_error_points_at_the_byte() {
        for (text, at) in [
            ("", 0),
            ("9a", 0),
            ("a{", 2),
            ("a{b", 3),
            ("a{b=c}", 4),
            ("a{b=\"c}", 7),
            ("a{b=\"c\" d}", 8),
            ("a}", 1),
        ] {
            match text.parse::<Selector>() {
                Err(SelectorError::Syntax { position, .. }) => assert_eq!(position, at, "{text:?}"),
                other => panic!("{text:?}: {other:?}"),
            }
        }
        for pattern in ["(", "a)|(?:b"] {
            assert!(matches!(
                format!(r#"a{{b=~"{pattern}"}}"#).parse::<Selector>(),
                Err(SelectorError::Regex { .. })
            ));
        }
    }

    proptest! {
        #[test]
        fn any_value_reads_back(value in any::<String>()) {
            let mut text = "a{b=\"".to_owned();
            escape(&mut text, &value);
            text.push_str("\"}");
            let selector: Selector = text.parse().unwrap();
            prop_assert_eq!(&selector.matchers[0].value, &value);
            prop_assert_eq!(selector.to_string(), text);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in any::<String>()) {
            let _ = text.parse::<Selector>();
        }

        #[test]
        fn no_text_like_a_selector_makes_the_parser_panic(text in r#"[a{}=~!"\\ ,'`é]{0,20}"#) {
            let _ = text.parse::<Selector>();
        }
    }
}

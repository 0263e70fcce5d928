//! Selectors: which series somebody means, in PromQL's words.

mod regexp;

use std::{fmt, str::FromStr, sync::Arc};

use regex::{Regex, RegexBuilder};

use crate::{
    error::SelectorError,
    labels::{escape, push_label, raw_pairs, unescape},
    series::{Series, SeriesCore},
};

/// Which series are meant: a metric name and label matchers, as in PromQL.
///
/// `kv_usage{component="decode", pod!~"test-.*"}`. The name may be left out (`{component="decode"}`), matched as the
/// label `__name__`, or stand in quotes among the matchers (`{"kv.usage", component="decode"}`), as a label's name may.
/// Matchers are `=`, `!=`, `=~` and `!~`; regular expressions are anchored at both ends; a label that a series does not have
/// counts as empty. A selector means present *and* future series.
///
/// All is as Prometheus 3 has it. Values stand in double or single quotes, with the escapes of Go's strings, or in back
/// quotes without any. Regular expressions are those of Go's `regexp`: `\d`, `\w`, `\s` and `\b` are ASCII, nothing repeats more
/// than 1 000 times, and there are no look-arounds. A selector whose matchers would all take empty labels, such as `{}` or
/// `{pod!="a"}`, is refused, as it would mean all metrics: that is [`Selector::all`], or `{__name__!=""}`.
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

const QUOTES: [char; 3] = ['"', '\'', '`'];

impl Selector {
    /// Every series of the bus. As text, `{__name__!=""}`.
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
    /// what is left), each of `regex_bytes` once compiled. Others may send selectors that mean everything.
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
        let selector = parser.read();
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
        let by_name = |m: &Matcher| m.label == NAME;
        let bare = |n: &&str| is_name(n, true) && !self.matchers.iter().any(by_name);
        let name = self.name.as_deref();
        let (before, inside) = match name.filter(bare) {
            Some(name) => (name, None),
            None => ("", name),
        };
        f.write_str(before)?;
        if self.matchers.is_empty() && inside.is_none() {
            return f.write_str(if before.is_empty() {
                r#"{__name__!=""}"#
            } else {
                ""
            });
        }
        f.write_str("{")?;
        if let Some(name) = inside {
            quote(f, name)?;
        }
        for (i, m) in self.matchers.iter().enumerate() {
            let op = match m.op {
                Op::Equal => "=",
                Op::NotEqual => "!=",
                Op::Match => "=~",
                Op::NotMatch => "!~",
            };
            if i > 0 || inside.is_some() {
                f.write_str(",")?;
            }
            if is_name(&m.label, false) {
                f.write_str(&m.label)?;
            } else {
                quote(f, &m.label)?;
            }
            f.write_str(op)?;
            quote(f, &m.value)?;
        }
        f.write_str("}")
    }
}

/// Whether it may stand without quotes; the names of metrics may have colons.
fn is_name(text: &str, colons: bool) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || colons && c == ':';
    text.starts_with(|c: char| !c.is_ascii_digit()) && text.chars().all(allowed)
}

fn quote(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    let mut escaped = String::with_capacity(text.len());
    escape(&mut escaped, text);
    write!(f, "\"{escaped}\"")
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

    /// A selector that somebody wrote.
    fn selector(&mut self) -> Result<Selector, SelectorError> {
        let selector = self.read()?;
        let named = selector
            .name
            .as_deref()
            .is_some_and(|name| !name.is_empty());
        if named || selector.matchers.iter().any(|m| !m.accepts("")) {
            return Ok(selector);
        }
        Err(self.error(
            0,
            r#"it means every metric, since no matcher refuses an empty value; one that asks for something is missing, or {__name__!=""} if that is what is meant"#,
        ))
    }

    fn read(&mut self) -> Result<Selector, SelectorError> {
        self.space();
        let name = self.word(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
        let mut name = match name {
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
            let outside = name.clone();
            loop {
                self.space();
                if self.eat("}") {
                    break;
                }
                let at = self.at;
                let matcher = self.matcher()?;
                let names = matcher.label == NAME;
                if let Some(outside) = outside.as_ref().filter(|_| names) {
                    let twice =
                        format!("the name is set twice: {outside:?} and {:?}", matcher.value);
                    return Err(self.error(at, &twice));
                }
                if names && matcher.op == Op::Equal && name.is_none() {
                    name = Some(matcher.value);
                } else {
                    matchers.push(matcher);
                }
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
        let quoted = self.text[self.at..].starts_with(QUOTES);
        let label = if quoted {
            self.quoted()?
        } else {
            let label = self.word(|c| c.is_ascii_alphanumeric() || c == '_');
            if !is_name(label, false) {
                self.at -= label.len();
                return Err(self.expected("a label name"));
            }
            label.to_owned()
        };
        self.space();
        if quoted && self.text[self.at..].starts_with([',', '}']) {
            return Ok(Matcher {
                label: NAME.to_owned(),
                op: Op::Equal,
                value: label,
                regex: None,
            });
        }
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
                let regex = regexp::translate(&value)
                    .and_then(|pattern| {
                        let regex = self.regex(&format!("^(?s:{pattern})$"));
                        regex.map_err(|error| error.to_string())
                    })
                    .map_err(|why| SelectorError::Regex {
                        text: self.text.to_owned(),
                        pattern: value.clone(),
                        why,
                    })?;
                Some(Arc::new(regex))
            }
            _ => None,
        };
        Ok(Matcher {
            label,
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

    /// A string in double or single quotes with the escapes of Go's strings, or in back quotes with none.
    fn quoted(&mut self) -> Result<String, SelectorError> {
        let rest = &self.text[self.at..];
        let Some(quote) = rest.chars().next().filter(|c| QUOTES.contains(c)) else {
            return Err(self.expected("a quoted value"));
        };
        let start = self.at;
        self.at += 1;
        // Bytes, since escapes may be of such.
        let mut out = Vec::new();
        loop {
            let at = self.at;
            let Some(c) = self.text[at..].chars().next() else {
                return Err(self.expected(&format!("a closing {quote}")));
            };
            self.at += c.len_utf8();
            match c {
                c if c == quote => break,
                '\\' if quote != '`' => self.escaped(at, quote, &mut out)?,
                '\n' if quote != '`' => {
                    let what =
                        format!(r"a line ends before a closing {quote}; in quotes that is \n");
                    return Err(self.error(at, &what));
                }
                c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        String::from_utf8(out).map_err(|_| {
            self.error(
                start,
                "the bytes of this value are no UTF-8, as those of all labels are",
            )
        })
    }

    /// What follows the backslash at `at`.
    fn escaped(&mut self, at: usize, quote: char, out: &mut Vec<u8>) -> Result<(), SelectorError> {
        let escape = self.text[self.at..].chars().next().unwrap_or(' ');
        self.at += if escape == ' ' { 0 } else { escape.len_utf8() };
        let simple = match escape {
            'a' => 0x07,
            'b' => 0x08,
            'f' => 0x0C,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 0x0B,
            '\\' => b'\\',
            c if c == quote => quote as u8,
            _ => 0,
        };
        if simple > 0 {
            out.push(simple);
            return Ok(());
        }
        let (digits, radix) = match escape {
            '0'..='7' => (3, 8),
            'x' => (2, 16),
            'u' => (4, 16),
            'U' => (8, 16),
            c => {
                let what = format!(
                    r#"\{c} is no escape; there are \a \b \f \n \r \t \v \\ \{quote} \x7F \u007F \U0000007F \177, and a backslash itself is \\"#
                );
                return Err(self.error(at, &what));
            }
        };
        let begin = if radix == 8 { self.at - 1 } else { self.at };
        let code = self.text.get(begin..begin + digits).and_then(|text| {
            let all = text.chars().all(|c| c.is_digit(radix));
            u32::from_str_radix(text, radix).ok().filter(|_| all)
        });
        let Some(code) = code else {
            let what = format!(r"\{escape} is no escape without {digits} digits to base {radix}");
            return Err(self.error(at, &what));
        };
        self.at = begin + digits;
        if matches!(escape, 'u' | 'U') {
            let Some(c) = char::from_u32(code) else {
                return Err(self.error(at, &format!("U+{code:04X} is no character")));
            };
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        } else {
            let Ok(byte) = u8::try_from(code) else {
                return Err(
                    self.error(at, &format!("\\{code:o} is no byte; the greatest is \\377"))
                );
            };
            out.push(byte);
        }
        Ok(())
    }

    fn word(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let rest = &self.text[self.at..];
        let end = rest.find(|c| !accept(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    /// Passes over white space and comments.
    fn space(&mut self) {
        loop {
            let rest = self.text[self.at..].trim_start_matches([' ', '\t', '\n', '\r']);
            self.at = self.text.len() - rest.len();
            if !rest.starts_with('#') {
                return;
            }
            self.at += rest.find('\n').unwrap_or(rest.len());
        }
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
        let what = format!("expected {what}, found {found}{}", self.hint());
        self.error(self.at, &what)
    }

    fn error(&self, position: usize, what: &str) -> SelectorError {
        SelectorError::Syntax {
            text: self.text.to_owned(),
            position,
            what: what.to_owned(),
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
        assert_eq!(inside(r#"{instance!="pod-7",x="y"}"#), None);
        assert_eq!(
            inside(r#"{instance="pod-7"}"#).unwrap(),
            r#"{__name__!=""}"#
        );
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
            r#"{"a.b"}"#,
            r#"{"a.b",c="d","e.f"!="g"}"#,
            r#"{"a",__name__="b"}"#,
            r#"{__name__!=""}"#,
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

    #[test]
    fn a_text_means_what_it_means_in_prometheus() {
        // What Prometheus 3.5 says of each: the value it asks for, or that it is refused.
        for (text, value) in [
            (r#"a{x="\x33\u0033\U00000033\063"}"#, Some("3333")),
            (
                r#"a{x="\a\b\f\n\r\t\v\\\""}"#,
                Some("\x07\x08\x0C\n\r\t\x0B\\\""),
            ),
            (r#"a{x='\''}"#, Some("'")),
            (r#"a{x="\xc3\xa9"}"#, Some("é")),
            (r"a{x=`\d`}", Some(r"\d")),
            ("a{x=`b\nc`}", Some("b\nc")),
            ("a{ # comment\n x = \"y\" } # another", Some("y")),
            (r#"{"a", x="y"}"#, None),
            (r#"a{x="\q"}"#, None),
            (r#"a{x="\'"}"#, None),
            (r#"a{x='\"'}"#, None),
            (r#"a{x="\400"}"#, None),
            (r#"a{x="\08"}"#, None),
            (r#"a{x="\x3"}"#, None),
            (r#"a{x="\ud800"}"#, None),
            (r#"a{x="\U00110000"}"#, None),
            ("a{x=\"b\nc\"}", None),
            // There Prometheus asks for what no label can be.
            (r#"a{x="\xff"}"#, None),
            ("a\u{a0}", None),
            ("a{,}", None),
        ] {
            let read = text.parse::<Selector>();
            if text == r#"{"a", x="y"}"# {
                assert_eq!(read.unwrap().to_string(), r#"a{x="y"}"#);
                continue;
            }
            assert_eq!(
                read.as_ref().ok().map(|s| &*s.matchers[0].value),
                value,
                "{text}: {read:?}"
            );
        }
        for text in [
            "{}",
            r#"{""}"#,
            r#"{x=""}"#,
            r#"{x=~".*"}"#,
            r#"{x!="a"}"#,
            r#"{__name__!="a",__name__!="b"}"#,
        ] {
            let error = text.parse::<Selector>().unwrap_err().to_string();
            assert!(error.contains("means every metric"), "{text}: {error}");
        }
        for text in [r#"a{__name__="a"}"#, r#"a{__name__=~"b"}"#, r#"a{"b"}"#] {
            let error = text.parse::<Selector>().unwrap_err().to_string();
            assert!(error.contains("set twice"), "{text}: {error}");
        }
        for text in [
            r#"{x!=""}"#,
            r#"{__name__=~"a.*",__name__!="ab"}"#,
            r#"{"a","b"}"#,
            r#"{'a.b',}"#,
        ] {
            assert!(text.parse::<Selector>().is_ok(), "{text}");
        }
    }

    #[test]
    fn a_regular_expression_matches_what_it_matches_in_go() {
        let matches = |pattern: &str, value: &str| {
            let selector: Selector = format!("a{{x=~`{pattern}`}}").parse().unwrap();
            selector.matchers[0].accepts(value)
        };
        for (pattern, yes, no) in [
            (r"\d", "3", "\u{663}"),
            (r"\w", "a", "é"),
            (r"\W", "é", "a"),
            (r"\s", " ", "\x0B"),
            (r"[^\D]", "3", "\u{663}"),
            (r"[\s\d]", "\t", "\u{a0}"),
            // A boundary of ASCII words: é is none of theirs.
            (r"é\ba", "éa", "éb"),
            (r"a\Bb", "ab", "a b"),
            (r"(?i)K", "\u{212a}", "q"),
            (".", "\n", ""),
            ("(?-s:.)", "a", "\n"),
            ("(?P<1>a)(?<1>b)", "ab", "a"),
            (r"\Qa+b\E+", "a+bb", "aab"),
            (r"\Qa+", "a+", "aa"),
            (r"\12", "\n", "12"),
            (r"\x{e9}\x41\<\_", "éA<_", "é"),
            (r"\pN\p{Lu}\P{Greek}", "٣Aa", "3aα"),
            (r"\p{^Greek}", "a", "α"),
            ("a{,2}", "a{,2}", "aa"),
            ("a{01}", "a{01}", "a"),
            ("{", "{", ""),
            ("a{2}", "aa", "a"),
            ("[[:alpha:]&&b]", "&", "3"),
            ("[+--b]", "-", "c"),
            ("[]a]", "]", "b"),
            ("[a-]", "-", "b"),
            ("[[.a.]]", "a]", "a"),
            ("(?ii-s)a", "A", "b"),
            ("(?i-i)a", "a", "A"),
            ("(?)a|b", "b", "ab"),
            ("a#b c", "a#b c", "a"),
            ("(?U)a+?", "aa", "b"),
            (r"\Aa\z", "a", "a\n"),
        ] {
            assert!(matches(pattern, yes), "{pattern} and {yes:?}");
            assert!(!matches(pattern, no), "{pattern} and {no:?}");
        }
        for pattern in [
            "(",
            ")",
            "a)|(?:b",
            "a**",
            "a*{2}",
            "*",
            "a|*",
            "(*)",
            "a{1001}",
            "a{2,1}",
            "(a{100}){11}",
            "((a{10}){10}){11}",
            r"\1",
            r"\8",
            r"\E",
            r"\Z",
            r"\C",
            r"\G",
            r"\u0041",
            r"\é",
            r"\",
            r"[a-\d]",
            "[[:foo:]]",
            "[z-a]",
            "[a--b]",
            "[]",
            "[a",
            r"[\Qa]",
            r"[\b]",
            "(?x)a",
            "(?=a)",
            "(?!a)",
            "(?<=a)",
            "(?<!a)",
            "(?>a)",
            "(?P=n)",
            "(?P<n",
            "(?P<>a)",
            "(?-)a",
            "(?i--s)a",
            r"\p{greek}",
            r"\p{Letter}",
            r"\p{}",
            r"\p",
            r"\x{}",
            r"\x4",
            r"\x{110000}",
            "(?i)*",
        ] {
            let text = format!("a{{x=~`{pattern}`}}");
            assert!(
                matches!(text.parse::<Selector>(), Err(SelectorError::Regex { .. })),
                "{pattern}"
            );
        }
        assert!(matches("(a{10}){100}", &"a".repeat(1_000)));
    }

    proptest! {
        #[test]
        fn no_pattern_becomes_one_that_cannot_be_read(pattern in r"[\\ab()\[\]{}?*+|^$.:,0-9\-QEdsWpxPiU<>&~é]{0,16}") {
            if let Ok(translated) = regexp::translate(&pattern) {
                let read = Regex::new(&format!("^(?s:{translated})$"));
                // What a script or a category is called only the engine knows.
                prop_assert!(read.is_ok() || pattern.contains(['p', 'P']), "{} {}", pattern, translated);
            }
        }

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

//! Subjects: how a source, a rule or a label becomes a token, and back. Owns escaping and the schema; sends nothing.
//!
//! A token keeps `[A-Za-z0-9_-]`; any other byte is `=HH` in upper-case hex, and the empty text is `=`. So no text can end
//! its token, be a wildcard, or pass for another text. What is read must be as it would have been written.

use std::fmt::Write;

use crate::{Alert, AlertState, SourceId};

/// The most bytes of a token. A server takes a line of 4 096 bytes, in which the whole subject has to find room.
pub(crate) const TOKEN_MAX: usize = 512;

/// The most bytes of a prefix, and of the fixed text of a template.
const PREFIX_MAX: usize = 256;

/// The most bytes that a placeholder of a template becomes: what is longer is cut.
const FILLED_MAX: usize = 256;

/// The most placeholders of a template, so that a subject stays within a server's line.
const PLACEHOLDERS_MAX: usize = 8;

/// The version of the schema.
const VERSION: &str = "v1";

/// Why a subject, or a part of one, can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SubjectError {
    /// A prefix can't be used.
    #[error(
        "subject prefix {prefix:?}: {why}; a prefix is one or more tokens of printable ASCII with dots between them, such as metricbus or prod.metricbus"
    )]
    Prefix { prefix: String, why: String },
    /// A template can't be used.
    #[error(
        "subject template {template:?}: {why}; a template looks like alerts.{{component}}.{{rule}}.{{state}}, with {{namespace}}, {{component}}, {{instance}}, {{rule}}, {{state}}, {{level}} and {{label.NAME}}"
    )]
    Template { template: String, why: String },
    /// A token that nothing escapes to.
    #[error("token {token:?} is no escaped text: {why}")]
    Token { token: String, why: &'static str },
    /// A text whose token would be too long.
    #[error(
        "{what} {text:?} takes {bytes} bytes in a subject, and {TOKEN_MAX} are the most; letters, digits, '_' and '-' take one, other bytes three"
    )]
    TooLong {
        what: &'static str,
        text: String,
        bytes: usize,
    },
    /// A subject that is not of this schema.
    #[error("subject {subject:?} is not one of ours: {why}")]
    Foreign { subject: String, why: &'static str },
}

/// A text of whatever length, short enough for a message.
pub(crate) fn shown(text: &str) -> String {
    const SHOWN_MAX: usize = 120;
    if text.len() <= SHOWN_MAX {
        return text.to_owned();
    }
    format!("{}…", up_to(text, SHOWN_MAX))
}

/// As much of a text as fits into so many bytes.
pub(crate) fn up_to(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A part as a token.
pub(crate) fn escape(part: &str) -> String {
    let mut token = String::with_capacity(part.len().max(1));
    push_part(&mut token, part);
    token
}

fn push_part(token: &mut String, part: &str) {
    if part.is_empty() {
        token.push('=');
    } else if part.bytes().all(is_plain) {
        token.push_str(part);
    } else {
        for &byte in part.as_bytes() {
            push_escaped(token, byte);
        }
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

fn push_escaped(token: &mut String, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    if is_plain(byte) {
        token.push(char::from(byte));
    } else {
        token.push('=');
        token.push(char::from(HEX[usize::from(byte >> 4)]));
        token.push(char::from(HEX[usize::from(byte & 15)]));
    }
}

/// How long a part's token is.
fn escaped_len(part: &str) -> usize {
    let escaped = part
        .bytes()
        .map(|byte| if is_plain(byte) { 1 } else { 3 })
        .sum::<usize>();
    escaped.max(1)
}

/// The part that a token stands for.
///
/// # Errors
///
/// When [`escape`] makes it of nothing: each part has one token.
pub(crate) fn unescape(token: &str) -> Result<String, SubjectError> {
    let wrong = |why| SubjectError::Token {
        token: shown(token),
        why,
    };
    if token.len() > TOKEN_MAX {
        return Err(wrong("it is longer than 512 bytes"));
    }
    match token {
        "" => return Err(wrong("it is empty; the empty text is \"=\"")),
        "=" => return Ok(String::new()),
        _ => {}
    }
    if token.bytes().all(is_plain) {
        return Ok(token.to_owned());
    }
    let mut part = Vec::with_capacity(token.len());
    let mut bytes = token.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'=' {
            if !is_plain(byte) {
                return Err(wrong(
                    "it has a character that is neither a letter, a digit, '_', '-' nor '='",
                ));
            }
            part.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| match byte {
            Some(byte @ b'0'..=b'9') => Some(byte - b'0'),
            Some(byte @ b'A'..=b'F') => Some(byte - b'A' + 10),
            _ => None,
        };
        let (Some(high), Some(low)) = (digit(bytes.next()), digit(bytes.next())) else {
            return Err(wrong("'=' takes two upper-case hexadecimal digits"));
        };
        let escaped = high << 4 | low;
        if is_plain(escaped) {
            return Err(wrong("it escapes what needs no escaping"));
        }
        part.push(escaped);
    }
    String::from_utf8(part).map_err(|_| wrong("it is not UTF-8"))
}

/// `Err` where a part would make its token too long.
pub(crate) fn check_part(what: &'static str, part: &str) -> Result<(), SubjectError> {
    match escaped_len(part) {
        bytes if bytes > TOKEN_MAX => Err(SubjectError::TooLong {
            what,
            text: shown(part),
            bytes,
        }),
        _ => Ok(()),
    }
}

/// `Err` where a part of the source would make its token too long.
pub(crate) fn check_source(source: &SourceId) -> Result<(), SubjectError> {
    check_part("namespace", &source.namespace)?;
    check_part("component", &source.component)?;
    check_part("instance", &source.instance)
}

/// `ns.component.instance`, escaped.
pub(crate) fn source_tokens(source: &SourceId) -> String {
    let mut tokens = String::with_capacity(room_for(source));
    push_source(&mut tokens, source);
    tokens
}

fn push_source(tokens: &mut String, source: &SourceId) {
    push_part(tokens, &source.namespace);
    tokens.push('.');
    push_part(tokens, &source.component);
    tokens.push('.');
    push_part(tokens, &source.instance);
}

/// How long its tokens are, where nothing in it has to be escaped.
fn room_for(source: &SourceId) -> usize {
    source.namespace.len() + source.component.len() + source.instance.len() + 5
}

/// What comes after the tokens of a source that a text begins with; `None`: it does not.
pub(crate) fn strip_source<'a>(text: &'a str, source: &SourceId) -> Option<&'a str> {
    let rest = strip_part(text, &source.namespace)?.strip_prefix('.')?;
    let rest = strip_part(rest, &source.component)?.strip_prefix('.')?;
    strip_part(rest, &source.instance)
}

fn strip_part<'a>(text: &'a str, part: &str) -> Option<&'a str> {
    if part.is_empty() {
        return text.strip_prefix('=');
    }
    if part.bytes().all(is_plain) {
        return text.strip_prefix(part);
    }
    text.strip_prefix(&*escape(part))
}

/// The source of what [`source_tokens`] made.
pub(crate) fn read_source(tokens: &str) -> Result<SourceId, SubjectError> {
    let mut parts = tokens.split('.');
    let (Some(namespace), Some(component), Some(instance), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(SubjectError::Token {
            token: shown(tokens),
            why: "a source is three tokens, namespace.component.instance",
        });
    };
    Ok(SourceId::new(
        unescape(namespace)?,
        unescape(component)?,
        unescape(instance)?,
    ))
}

/// What is sent without being asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Channel {
    Frames,
    Alerts,
    Pulses,
}

/// What can be asked of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Query {
    Info,
    Snapshot,
    Window,
    Rules,
    Alerts,
}

impl Query {
    pub(crate) const ALL: [Query; 5] = [
        Query::Info,
        Query::Snapshot,
        Query::Window,
        Query::Rules,
        Query::Alerts,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Query::Info => "info",
            Query::Snapshot => "snapshot",
            Query::Window => "window",
            Query::Rules => "rules",
            Query::Alerts => "alerts",
        }
    }
}

/// Which sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PulseKind {
    Birth,
    Heartbeat,
    Death,
}

impl PulseKind {
    pub(crate) const ALL: [PulseKind; 3] =
        [PulseKind::Birth, PulseKind::Heartbeat, PulseKind::Death];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            PulseKind::Birth => "birth",
            PulseKind::Heartbeat => "heartbeat",
            PulseKind::Death => "death",
        }
    }
}

/// What a subject of the schema says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) source: SourceId,
    pub(crate) about: About,
}

/// What it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum About {
    Frame { stream: String },
    Alert { rule: String, state: AlertState },
    Pulse(PulseKind),
    Query(Query),
}

/// The subjects under one prefix.
#[derive(Clone, Debug)]
pub(crate) struct Subjects {
    /// With the version, and a dot at its end.
    root: String,
}

impl Subjects {
    /// # Errors
    ///
    /// When a prefix is empty or too long, has an empty token, a wildcard, a space or what is not printable ASCII, or is
    /// the server's own.
    pub(crate) fn new(prefix: &str) -> Result<Subjects, SubjectError> {
        let wrong = |why: &str| SubjectError::Prefix {
            prefix: shown(prefix),
            why: why.to_owned(),
        };
        if prefix.len() > PREFIX_MAX {
            return Err(wrong("it is longer than 256 bytes"));
        }
        for token in prefix.split('.') {
            check_fixed(token).map_err(wrong)?;
        }
        check_ours(prefix).map_err(wrong)?;
        Ok(Subjects {
            root: format!("{prefix}.{VERSION}."),
        })
    }

    fn of(&self, source: &SourceId, rest: &str) -> String {
        let mut subject = self.begin(source, rest.len());
        subject.push_str(rest);
        subject
    }

    /// A subject up to what it is about, with room for that.
    fn begin(&self, source: &SourceId, rest: usize) -> String {
        let mut subject = String::with_capacity(self.root.len() + room_for(source) + rest);
        subject.push_str(&self.root);
        push_source(&mut subject, source);
        subject.push('.');
        subject
    }

    /// Where frames go.
    pub(crate) fn frames(&self, source: &SourceId, stream: &str) -> String {
        self.of(source, &format!("m.{}", escape(stream)))
    }

    /// Where alerts go.
    pub(crate) fn alert(&self, source: &SourceId, rule: &str, state: AlertState) -> String {
        let mut subject = self.begin(source, rule.len() + "a..resolved".len());
        subject.push_str("a.");
        push_part(&mut subject, rule);
        subject.push('.');
        subject.push_str(state.as_str());
        subject
    }

    /// Where signs of life go.
    pub(crate) fn pulse(&self, source: &SourceId, kind: PulseKind) -> String {
        self.of(source, &format!("s.{}", kind.as_str()))
    }

    /// Where a source is asked.
    pub(crate) fn query(&self, source: &SourceId, query: Query) -> String {
        self.of(source, &format!("q.{}", query.as_str()))
    }

    /// All questions to a source: a pattern.
    pub(crate) fn queries(&self, source: &SourceId) -> String {
        self.of(source, "q.*")
    }

    /// Where every source is asked who it is.
    pub(crate) fn hello(&self) -> String {
        format!("{}hello", self.root)
    }

    /// All messages of a channel, of all sources or of those of a namespace or a component: a pattern.
    pub(crate) fn all(
        &self,
        namespace: Option<&str>,
        component: Option<&str>,
        channel: Channel,
    ) -> String {
        let token = |part: Option<&str>| part.map_or_else(|| "*".to_owned(), escape);
        let channel = match channel {
            Channel::Frames => "m.*",
            Channel::Alerts => "a.*.*",
            Channel::Pulses => "s.*",
        };
        format!(
            "{}{}.{}.*.{channel}",
            self.root,
            token(namespace),
            token(component)
        )
    }

    /// What a subject says.
    ///
    /// # Errors
    ///
    /// When it is none of those that the other methods make (patterns and [`hello`](Subjects::hello) excepted).
    pub(crate) fn parse(&self, subject: &str) -> Result<Address, SubjectError> {
        let foreign = |why| SubjectError::Foreign {
            subject: shown(subject),
            why,
        };
        let rest = subject
            .strip_prefix(&self.root)
            .ok_or_else(|| foreign("it has another prefix or version"))?;
        let mut tokens = rest.split('.');
        let mut next = |why| tokens.next().ok_or_else(|| foreign(why));
        let few = "it has too few tokens for a source";
        let source = SourceId::new(
            unescape(next(few)?)?,
            unescape(next(few)?)?,
            unescape(next(few)?)?,
        );
        let channel = next("it says nothing after the source")?;
        let what = next("it ends after the channel")?;
        let about = match channel {
            "m" => About::Frame {
                stream: unescape(what)?,
            },
            "a" => About::Alert {
                rule: unescape(what)?,
                state: match next("an alert ends in firing or resolved")? {
                    "firing" => AlertState::Firing,
                    "resolved" => AlertState::Resolved,
                    _ => return Err(foreign("an alert is firing or resolved")),
                },
            },
            "s" => {
                let kind = PulseKind::ALL
                    .into_iter()
                    .find(|kind| kind.as_str() == what);
                About::Pulse(kind.ok_or_else(|| foreign("a pulse is birth, heartbeat or death"))?)
            }
            "q" => {
                let query = Query::ALL.into_iter().find(|query| query.as_str() == what);
                About::Query(query.ok_or_else(|| {
                    foreign("a question is info, snapshot, window, rules or alerts")
                })?)
            }
            _ => return Err(foreign("after the source comes m, a, s or q")),
        };
        if tokens.next().is_some() {
            return Err(foreign("it has more tokens than it should"));
        }
        Ok(Address { source, about })
    }
}

/// `Err` with why a token that somebody wrote can't stand in a subject.
fn check_fixed(token: &str) -> Result<(), &'static str> {
    if token.is_empty() {
        return Err("a token of it is empty");
    }
    if token.contains(['*', '>']) {
        return Err("it has a wildcard");
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("it has a space, or a character that is not printable ASCII");
    }
    Ok(())
}

/// `Err` with why a subject that begins so is not ours to use.
fn check_ours(subject: &str) -> Result<(), &'static str> {
    if subject.starts_with('$') || subject == "_INBOX" || subject.starts_with("_INBOX.") {
        return Err(
            "subjects that begin with '$' or \"_INBOX\" are the server's and the client's own",
        );
    }
    Ok(())
}

/// A template for the subjects of alerts: `alerts.{component}.{rule}.{state}`.
///
/// Whatever stands in braces is escaped as any token; a label that an alert does not have, and the level of one without,
/// count as empty. What is longer than 256 bytes is cut, and ends in `=` and 16 hexadecimal digits that tell it apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AlertSubject {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Namespace,
    Component,
    Instance,
    Rule,
    State,
    Level,
    Label(String),
}

impl AlertSubject {
    /// # Errors
    ///
    /// When a placeholder is unknown, a brace is left open, a token is empty, or there is a wildcard or a space.
    pub(crate) fn parse(template: &str) -> Result<AlertSubject, SubjectError> {
        let wrong = |why: &str| SubjectError::Template {
            template: shown(template),
            why: why.to_owned(),
        };
        let mut pieces = Vec::new();
        // The template with an "x" for each placeholder: what can be said of its tokens.
        let mut outline = String::new();
        let mut rest = template;
        let mut placeholders = 0;
        while !rest.is_empty() {
            let text = &rest[..rest.find(['{', '}']).unwrap_or(rest.len())];
            if !text.is_empty() {
                outline.push_str(text);
                pieces.push(Piece::Text(text.to_owned()));
            }
            rest = &rest[text.len()..];
            let Some(inside) = rest.strip_prefix('{') else {
                if rest.is_empty() {
                    break;
                }
                return Err(wrong("there is a '}' without its '{'"));
            };
            let (name, after) = inside
                .split_once('}')
                .ok_or_else(|| wrong("there is a '{' without its '}'"))?;
            pieces.push(match name {
                "namespace" => Piece::Namespace,
                "component" => Piece::Component,
                "instance" => Piece::Instance,
                "rule" => Piece::Rule,
                "state" => Piece::State,
                "level" => Piece::Level,
                _ => match name.strip_prefix("label.") {
                    Some(label) if !label.is_empty() => Piece::Label(label.to_owned()),
                    _ => {
                        return Err(SubjectError::Template {
                            template: shown(template),
                            why: format!("there is no {{{}}}", shown(name)),
                        });
                    }
                },
            });
            outline.push('x');
            placeholders += 1;
            rest = after;
        }
        if outline.len() > PREFIX_MAX {
            return Err(wrong("its fixed text is longer than 256 bytes"));
        }
        if placeholders > PLACEHOLDERS_MAX {
            return Err(wrong("it has more than 8 placeholders"));
        }
        for token in outline.split('.') {
            check_fixed(token).map_err(wrong)?;
        }
        check_ours(template).map_err(wrong)?;
        Ok(AlertSubject { pieces })
    }

    /// The subject of an alert.
    pub(crate) fn of(&self, source: &SourceId, alert: &Alert) -> String {
        let mut subject = String::new();
        for piece in &self.pieces {
            let part = match piece {
                Piece::Text(text) => {
                    subject.push_str(text);
                    continue;
                }
                Piece::Namespace => &source.namespace,
                Piece::Component => &source.component,
                Piece::Instance => &source.instance,
                Piece::Rule => &*alert.rule,
                Piece::State => alert.state.as_str(),
                Piece::Level => alert.level.as_deref().unwrap_or_default(),
                Piece::Label(name) => alert.label(name).unwrap_or_default(),
            };
            subject.push_str(&cut(part));
        }
        subject
    }

    /// A pattern that all its subjects match, such as a stream of JetStream takes.
    pub(crate) fn pattern(&self) -> String {
        let mut tokens = vec![String::new()];
        for piece in &self.pieces {
            let Piece::Text(text) = piece else {
                if let Some(last) = tokens.last_mut() {
                    *last = "*".to_owned();
                }
                continue;
            };
            for (i, token) in text.split('.').enumerate() {
                match tokens.last_mut() {
                    // A token with a wildcard in it has to be one.
                    Some(last) if i == 0 && last == "*" => {}
                    Some(last) if i == 0 => last.push_str(token),
                    _ => tokens.push(token.to_owned()),
                }
            }
        }
        tokens.join(".")
    }
}

/// A token of at most [`FILLED_MAX`] bytes.
fn cut(part: &str) -> String {
    let mut token = escape_up_to(part, FILLED_MAX + 1);
    if token.len() <= FILLED_MAX {
        return token;
    }
    let mut end = FILLED_MAX - 17;
    // Not within an escape.
    if let Some(at) = token[..end].rfind('=')
        && at + 3 > end
    {
        end = at;
    }
    token.truncate(end);
    // FNV-1a: it has to be the same everywhere, for as long as there are messages.
    let hash = part.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    // Writing to a string does not fail. Lower case, which no escape is.
    let _ = write!(token, "={hash:016x}");
    token
}

/// As [`escape`], and stops once there are `bytes`.
fn escape_up_to(part: &str, bytes: usize) -> String {
    if part.is_empty() {
        return "=".to_owned();
    }
    let mut token = String::new();
    for &byte in part.as_bytes() {
        if token.len() >= bytes {
            break;
        }
        push_escaped(&mut token, byte);
    }
    token
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::nats::wire::{alert::tests::alerts, envelope::tests::sources};

    fn subjects() -> Subjects {
        Subjects::new("metricbus").unwrap()
    }

    fn source() -> SourceId {
        SourceId::new("prod", "decode", "pod.7")
    }

    #[test]
    fn subjects_are_as_the_protocol_says() {
        let (all, source) = (subjects(), source());
        for (subject, expected) in [
            (
                all.frames(&source, "all"),
                "metricbus.v1.prod.decode.pod=2E7.m.all",
            ),
            (
                all.alert(&source, "KV full", AlertState::Firing),
                "metricbus.v1.prod.decode.pod=2E7.a.KV=20full.firing",
            ),
            (
                all.pulse(&source, PulseKind::Heartbeat),
                "metricbus.v1.prod.decode.pod=2E7.s.heartbeat",
            ),
            (
                all.query(&source, Query::Snapshot),
                "metricbus.v1.prod.decode.pod=2E7.q.snapshot",
            ),
            (all.queries(&source), "metricbus.v1.prod.decode.pod=2E7.q.*"),
            (all.hello(), "metricbus.v1.hello"),
            (
                all.all(None, None, Channel::Frames),
                "metricbus.v1.*.*.*.m.*",
            ),
            (
                all.all(Some("prod"), Some(""), Channel::Alerts),
                "metricbus.v1.prod.=.*.a.*.*",
            ),
            (
                all.all(Some("*"), None, Channel::Pulses),
                "metricbus.v1.=2A.*.*.s.*",
            ),
        ] {
            assert_eq!(subject, expected);
        }
    }

    #[test]
    fn tokens_that_nothing_escapes_to_are_refused() {
        for bad in [
            "", "==", "=4", "=41", "=2e", "=2", "a=", "=all", "*", ">", "a b", "a.b", "é", "=FF",
            "=C3", "=5F", "=2D", "=0G", "\0", "=\u{e9}",
        ] {
            assert!(unescape(bad).is_err(), "{bad:?}");
        }
        assert!(unescape(&"a".repeat(TOKEN_MAX)).is_ok());
        assert!(unescape(&"a".repeat(TOKEN_MAX + 1)).is_err());
        assert_eq!(unescape("=C3=A9"), Ok("é".to_owned()));
    }

    #[test]
    fn what_is_too_long_for_a_token_is_told_with_its_length() {
        assert!(check_part("rule", &"é".repeat(85)).is_ok());
        let error = check_part("rule", &"é".repeat(86)).unwrap_err().to_string();
        assert!(
            error.contains("516 bytes") && error.contains("512"),
            "{error}"
        );
        let source = SourceId::new("a", "b", "c".repeat(600));
        assert!(
            check_source(&source)
                .unwrap_err()
                .to_string()
                .contains("instance")
        );
    }

    #[test]
    fn subjects_of_others_are_refused() {
        let all = subjects();
        for bad in [
            "",
            "metricbus",
            "metricbus.v1.",
            "metricbus.v1.hello",
            "metricbus.v2.a.b.c.m.all",
            "other.v1.a.b.c.m.all",
            "metricbus.v1.a.b.c",
            "metricbus.v1.a.b.c.m",
            "metricbus.v1.a.b.c.m.all.more",
            "metricbus.v1.a.b.c.m.",
            "metricbus.v1.a.b.c.x.all",
            "metricbus.v1.a.b.c.s.sneeze",
            "metricbus.v1.a.b.c.q.why",
            "metricbus.v1.a.b.c.a.rule",
            "metricbus.v1.a.b.c.a.rule.fired",
            "metricbus.v1.a.b.c.a.rule.firing.more",
            "metricbus.v1.a.*.c.m.all",
            "metricbus.v1.a.b=2D.c.m.all",
            "metricbus.v1...m.all",
        ] {
            assert!(all.parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn prefixes_that_cannot_be_are_refused() {
        for good in ["metricbus", "prod.metricbus", "a.b.c", "team:x/y"] {
            assert!(Subjects::new(good).is_ok(), "{good}");
        }
        let long = "x".repeat(PREFIX_MAX + 1);
        for bad in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "a b",
            "a.*",
            ">",
            "a>",
            "é",
            "$SYS",
            "$JS.API",
            "_INBOX",
            "_INBOX.a",
            "a\r\nPUB b 0",
            "a\0",
            &long,
        ] {
            let error = Subjects::new(bad).unwrap_err().to_string();
            assert!(error.contains("a prefix is"), "{error}");
        }
    }

    fn alert(labels: &[(&str, &str)]) -> Alert {
        let mut alert = crate::nats::wire::alert::tests::one().0;
        alert.labels = labels
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect();
        alert
    }

    #[test]
    fn a_template_is_filled_with_escaped_tokens() {
        let template = AlertSubject::parse(
            "alerts.{component}.{rule}-{level}.{label.team}.{label.no}.{state}",
        )
        .unwrap();
        let alert = alert(&[("team", "a.b *")]);
        assert_eq!(
            template.of(&source(), &alert),
            "alerts.decode.KvCacheFull-=.a=2Eb=20=2A.=.firing"
        );
        assert_eq!(template.pattern(), "alerts.*.*.*.*.*");
        let fixed = AlertSubject::parse("alerts.all").unwrap();
        assert_eq!(
            (fixed.of(&source(), &alert), fixed.pattern()),
            ("alerts.all".into(), "alerts.all".into())
        );
        let mixed = AlertSubject::parse("a-{rule}x.b-{rule}").unwrap();
        assert_eq!(mixed.pattern(), "*.*");
    }

    #[test]
    fn templates_that_cannot_be_are_refused() {
        let many = "{rule}.".repeat(9) + "x";
        for bad in [
            "",
            "a..b",
            "a.",
            "{rule",
            "rule}",
            "{}",
            "{nobody}",
            "{label.}",
            "{{rule}}",
            "a.{rule}.*",
            "a b",
            ">",
            "$SYS.{rule}",
            "_INBOX.{rule}",
            "é.{rule}",
            &many,
            &"x".repeat(300),
        ] {
            let error = AlertSubject::parse(bad).unwrap_err().to_string();
            assert!(error.contains("a template looks like"), "{error}");
        }
    }

    #[test]
    fn what_is_long_is_cut_and_still_told_apart() {
        let template = AlertSubject::parse("alerts.{label.a}").unwrap();
        let of = |value: String| template.of(&source(), &alert(&[("a", &value)]));
        for text in ["x", "é", "x.", "."] {
            let (one, other) = (of(text.repeat(400) + "1"), of(text.repeat(400) + "2"));
            assert_ne!(one, other);
            for subject in [one, other] {
                let token = subject.strip_prefix("alerts.").unwrap();
                assert!(token.len() <= FILLED_MAX, "{token}");
                assert!(!token.contains('.') && unescape(token).is_err(), "{token}");
                let kept = &token[..token.len() - 17];
                assert!(unescape(kept).is_ok() || text == "é", "{kept}");
            }
        }
    }

    /// What a server takes as one token that is no wildcard.
    fn is_token(token: &str) -> bool {
        !token.is_empty()
            && token
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_-=".contains(&b))
    }

    proptest! {
        #[test]
        fn any_text_is_one_token_and_comes_back(part: String) {
            prop_assume!(escaped_len(&part) <= TOKEN_MAX);
            let token = escape(&part);
            prop_assert!(is_token(&token), "{}", token);
            prop_assert_eq!(token.len(), escaped_len(&part));
            prop_assert_eq!(unescape(&token), Ok(part));
        }

        #[test]
        fn a_token_that_is_read_is_the_one_that_would_be_written(token in "[a-zA-Z0-9_=.* -]{0,12}") {
            if let Ok(part) = unescape(&token) {
                prop_assert_eq!(escape(&part), token);
            }
        }

        #[test]
        fn every_subject_is_read_back(source in sources(), name in "\\PC{0,40}") {
            let all = subjects();
            let mut expected = vec![(all.frames(&source, &name), About::Frame { stream: name.clone() })];
            for state in [AlertState::Firing, AlertState::Resolved] {
                expected.push((all.alert(&source, &name, state), About::Alert { rule: name.clone(), state }));
            }
            expected.extend(PulseKind::ALL.map(|kind| (all.pulse(&source, kind), About::Pulse(kind))));
            expected.extend(Query::ALL.map(|query| (all.query(&source, query), About::Query(query))));
            for (subject, about) in expected {
                prop_assert!(subject.split('.').all(is_token), "{}", subject);
                prop_assert_eq!(all.parse(&subject), Ok(Address { source: source.clone(), about }));
            }
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text: String) {
            let _ = (unescape(&text), subjects().parse(&text), Subjects::new(&text), AlertSubject::parse(&text));
            let _ = subjects().parse(&format!("metricbus.v1.{text}"));
        }

        #[test]
        fn no_alert_escapes_its_place_in_a_template((alert, envelope) in alerts(), value: String) {
            let mut alert = alert;
            alert.labels = Arc::new([("a".to_owned(), value)]);
            let template = AlertSubject::parse(
                "x.{namespace}.{component}.{instance}.{rule}.{state}.{level}.{label.a}.y",
            ).unwrap();
            let subject = template.of(&envelope.source, &alert);
            prop_assert!(subject.split('.').all(is_token), "{}", subject);
            prop_assert_eq!(subject.split('.').count(), 9);
            prop_assert!(subject.len() < 4_000);
        }
    }
}

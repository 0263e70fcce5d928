//! Names of metrics and labels: which are plain, how the others are quoted, and how they are escaped for those who read
//! plain names only.

use std::borrow::Cow;

/// What becomes of a name that is not plain, in an exposition. A plain name has letters of ASCII, digits and `_` (that of a
/// metric `:`, too), and does not begin with a digit; any Prometheus reads it. From 3.0 on it reads all others as well, in
/// quotes, and says so in its request: `escaping=allow-utf-8`.
///
/// The schemes are Prometheus's own.
///
/// ```
/// use metricbus::export::Escaping;
///
/// assert_eq!(Escaping::Underscores.of_metric("http.server"), "http_server");
/// assert_eq!(Escaping::Dots.of_metric("http.server_a"), "http_dot_server__a");
/// assert_eq!(Escaping::Values.of_metric("http.server"), "U__http_2e_server");
/// assert_eq!(Escaping::AllowUtf8.of_metric("http.server"), "http.server");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Escaping {
    /// It stays as it is, in quotes: `{"http.server"}`.
    AllowUtf8,
    /// Each character that can't be in a plain name becomes `_`.
    #[default]
    Underscores,
    /// A dot becomes `_dot_`, a `_` and every other character that can't be in a plain name `__`. Plain names change, too.
    Dots,
    /// `U__`, and then the name with `__` for `_`, and `_2e_` for a character whose number is 2e, in hexadecimal digits.
    Values,
}

impl Escaping {
    /// The word for it in `Accept` and `Content-Type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Escaping::AllowUtf8 => "allow-utf-8",
            Escaping::Underscores => "underscores",
            Escaping::Dots => "dots",
            Escaping::Values => "values",
        }
    }

    /// The scheme of this word, if it is one.
    #[cfg(any(test, feature = "http"))]
    pub(crate) fn parse(word: &str) -> Option<Escaping> {
        [
            Escaping::AllowUtf8,
            Escaping::Underscores,
            Escaping::Dots,
            Escaping::Values,
        ]
        .into_iter()
        .find(|scheme| scheme.as_str() == word)
    }

    /// A metric's name as it is exposed.
    pub fn of_metric(self, name: &str) -> Cow<'_, str> {
        self.escape(name, true)
    }

    /// A label's name as it is exposed.
    pub fn of_label(self, name: &str) -> Cow<'_, str> {
        self.escape(name, false)
    }

    fn escape(self, name: &str, colon: bool) -> Cow<'_, str> {
        match self {
            Escaping::AllowUtf8 => return name.into(),
            Escaping::Dots if name.contains('_') => {}
            _ if is_plain(name, colon) => return name.into(),
            _ => {}
        }
        let mut escaped = String::with_capacity(name.len() + 16);
        if self == Escaping::Values {
            escaped.push_str("U__");
        }
        for (at, c) in name.char_indices() {
            let plain = is_plain_char(at, c, colon);
            match self {
                Escaping::Underscores => escaped.push(if plain { c } else { '_' }),
                Escaping::Dots if c == '.' => escaped.push_str("_dot_"),
                Escaping::Dots | Escaping::Values if c == '_' => escaped.push_str("__"),
                _ if plain => escaped.push(c),
                Escaping::Values => escaped += &format!("_{:x}_", u32::from(c)),
                Escaping::Dots | Escaping::AllowUtf8 => escaped.push_str("__"),
            }
        }
        escaped.into()
    }
}

/// Whether everybody reads this name without quotes. `colon`: whether it is a metric's.
pub(crate) fn is_plain(name: &str, colon: bool) -> bool {
    !name.is_empty()
        && name
            .char_indices()
            .all(|(at, c)| is_plain_char(at, c, colon))
}

fn is_plain_char(at: usize, c: char, colon: bool) -> bool {
    c.is_ascii_alphabetic() || c == '_' || (colon && c == ':') || (at > 0 && c.is_ascii_digit())
}

/// What is wrong with a name of a metric or a label, if anything. What is not plain is written in quotes, on a line; so all
/// can be in it but what ends these, or would have to be escaped in them.
pub(crate) fn fault(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("it is empty".to_owned());
    }
    let wrong = name
        .chars()
        .find(|&c| c.is_control() || c == '"' || c == '\\');
    wrong.map(|c| format!("it contains {c:?}"))
}

/// What keeps a label's name from being plain, if anything: some formats know no others.
pub(crate) fn plain_label_fault(name: &str) -> Option<String> {
    match name.chars().next() {
        None => return Some("it is empty".to_owned()),
        Some(c) if c.is_ascii_digit() => return Some(format!("it begins with {c:?}")),
        _ => {}
    }
    let wrong = name
        .chars()
        .find(|&c| !(c.is_ascii_alphanumeric() || c == '_'));
    wrong.map(|c| format!("it contains {c:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Escaping; 4] = [
        Escaping::AllowUtf8,
        Escaping::Underscores,
        Escaping::Dots,
        Escaping::Values,
    ];

    #[test]
    fn names_are_escaped_as_prometheus_escapes_them() {
        // The rows of prometheus/common's own table, as to what they say.
        for (name, underscores, dots, values) in [
            ("no_op:x9", "no_op:x9", "no__op:x9", "no_op:x9"),
            (
                "http.status",
                "http_status",
                "http_dot_status",
                "U__http_2e_status",
            ),
            (
                "label with 😱",
                "label_with__",
                "label__with____",
                "U__label_20_with_20__1f631_",
            ),
            ("花火", "__", "____", "U___82b1__706b_"),
            ("1st_a", "_st_a", "__st__a", "U___31_st__a"),
            ("a.b_c", "a_b_c", "a_dot_b__c", "U__a_2e_b__c"),
        ] {
            let escaped = ALL.map(|scheme| scheme.of_metric(name).into_owned());
            assert_eq!(escaped, [name, underscores, dots, values]);
        }
        assert_eq!(Escaping::Underscores.of_label("a:b"), "a_b");
        assert_eq!(
            ALL.map(|scheme| Escaping::parse(scheme.as_str())),
            ALL.map(Some)
        );
        assert_eq!(Escaping::parse("utf-8"), None);
    }

    proptest::proptest! {
        #[test]
        fn what_is_escaped_is_plain_and_who_has_two_names_apart_in_underscores_has_them_apart_in_all(
            a in "[ab._é:-]{1,5}", b in "[ab._é:-]{1,5}"
        ) {
            for scheme in [Escaping::Underscores, Escaping::Dots, Escaping::Values] {
                let (x, y) = (scheme.of_label(&a), scheme.of_label(&b));
                proptest::prop_assert!(is_plain(&x, false));
                if Escaping::Underscores.of_label(&a) != Escaping::Underscores.of_label(&b) {
                    proptest::prop_assert!(x != y, "{a} {b} {x}");
                }
            }
        }
    }
}

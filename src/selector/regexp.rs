//! PromQL's regular expressions are those of Go's `regexp`: they look like those of the crate `regex`, and are not. Classes are
//! ASCII, there are octal escapes and `\Q…\E`, sets have no operators, `{` may stand for itself, and nothing repeats more
//! than a thousand times. What Go takes is rewritten so that it means the same here; what Go refuses is refused.

/// What a text may repeat at most, repetitions within repetitions included.
const REPEATS_MAX: u32 = 1_000;

/// The pattern in the words of the crate `regex`, without captures; or what is wrong with it.
pub(super) fn translate(pattern: &str) -> Result<String, String> {
    let mut translator = Translator {
        rest: pattern,
        out: String::with_capacity(pattern.len()),
        groups: Vec::new(),
        inner: Level::default(),
    };
    translator.all()?;
    Ok(translator.out)
}

struct Translator<'a> {
    rest: &'a str,
    out: String,
    /// Those around the innermost one.
    groups: Vec<Level>,
    inner: Level,
}

/// A group, or the whole.
#[derive(Default)]
struct Level {
    /// How often something in it is repeated at most.
    repeats: u32,
    last: Last,
}

/// What a repetition would be of: with how often something in it is repeated already.
#[derive(Clone, Copy, Default)]
enum Last {
    #[default]
    Nothing,
    Atom(u32),
    Repeated,
}

impl<'a> Translator<'a> {
    fn all(&mut self) -> Result<(), String> {
        while let Some(c) = self.next() {
            match c {
                '(' => self.open()?,
                ')' => {
                    let Some(outer) = self.groups.pop() else {
                        return Err("a ')' closes nothing".to_owned());
                    };
                    let group = std::mem::replace(&mut self.inner, outer);
                    self.out.push(')');
                    self.atom(group.repeats.max(1));
                }
                '|' => {
                    self.out.push('|');
                    self.inner.last = Last::Nothing;
                }
                '*' | '+' | '?' => self.repeat(c.to_string(), 1)?,
                '{' => match self.counts()? {
                    Some((counts, most)) => self.repeat(counts, most.max(1))?,
                    None => self.literal('{'),
                },
                '[' => self.set()?,
                '.' | '^' | '$' => {
                    self.out.push(c);
                    self.atom(1);
                }
                '\\' => self.escape()?,
                c => self.literal(c),
            }
        }
        if self.groups.is_empty() {
            Ok(())
        } else {
            Err("a '(' is not closed".to_owned())
        }
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next();
        self.rest = chars.as_str();
        next
    }

    fn eat(&mut self, token: &str) -> bool {
        let left = self.rest.strip_prefix(token);
        self.rest = left.unwrap_or(self.rest);
        left.is_some()
    }

    /// Up to `end`, which is passed over.
    fn until(&mut self, end: &str) -> Option<&'a str> {
        let (found, left) = self.rest.split_once(end)?;
        self.rest = left;
        Some(found)
    }

    fn atom(&mut self, repeats: u32) {
        self.inner.repeats = self.inner.repeats.max(repeats);
        self.inner.last = Last::Atom(repeats);
    }

    fn literal(&mut self, c: char) {
        push_literal(&mut self.out, c);
        self.atom(1);
    }

    fn repeat(&mut self, operator: String, most: u32) -> Result<(), String> {
        let inner = match self.inner.last {
            Last::Atom(repeats) => repeats,
            Last::Nothing => {
                return Err(format!("there is nothing that {operator:?} could repeat"));
            }
            Last::Repeated => {
                return Err(format!(
                    "{operator:?} repeats what is repeated already; a group (?:…) around that says it"
                ));
            }
        };
        let repeats = inner.saturating_mul(most);
        if repeats > REPEATS_MAX {
            return Err(format!(
                "{operator:?} makes {repeats} repetitions; there may be {REPEATS_MAX}"
            ));
        }
        self.out.push_str(&operator);
        if self.eat("?") {
            self.out.push('?');
        }
        self.inner.repeats = self.inner.repeats.max(repeats);
        self.inner.last = Last::Repeated;
        Ok(())
    }

    /// `{n}`, `{n,}` or `{n,m}`, of which the `{` is passed already, and the greater number. Anything else is just text.
    fn counts(&mut self) -> Result<Option<(String, u32)>, String> {
        let Some((inside, left)) = self.rest.split_once('}') else {
            return Ok(None);
        };
        let (least, most) = match inside.split_once(',') {
            None => (inside, Some(inside)),
            Some((least, "")) => (least, None),
            Some((least, most)) => (least, Some(most)),
        };
        let is_number = |n: &str| {
            n.bytes().all(|b| b.is_ascii_digit())
                && !n.is_empty()
                && (n == "0" || !n.starts_with('0'))
        };
        if !is_number(least) || !most.is_none_or(is_number) {
            return Ok(None);
        }
        let number = |n: &str| n.parse().unwrap_or(u32::MAX);
        let (min, max) = (number(least), most.map(number));
        if min > REPEATS_MAX || max.is_some_and(|max| max > REPEATS_MAX || max < min) {
            return Err(format!(
                "{{{inside}}} can't be; the numbers ascend, up to {REPEATS_MAX}"
            ));
        }
        self.rest = left;
        Ok(Some((format!("{{{inside}}}"), max.unwrap_or(min))))
    }

    /// A group, of which the `(` is passed already.
    fn open(&mut self) -> Result<(), String> {
        let start = self.rest;
        if self.eat("?P<") || self.eat("?<") {
            let name = self.until(">").unwrap_or_default();
            let named = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if name.is_empty() || !named {
                return Err(format!(
                    "\"({}\" begins no group; a name is (?P<name>…), and there are no look-arounds",
                    beginning(start)
                ));
            }
        } else if self.eat("?") {
            return self.flags(start);
        }
        self.begin("(?:");
        Ok(())
    }

    fn begin(&mut self, group: &str) {
        self.out.push_str(group);
        self.groups.push(std::mem::take(&mut self.inner));
    }

    /// `(?flags)` or `(?flags:`, of which the `(?` is passed already.
    fn flags(&mut self, start: &str) -> Result<(), String> {
        let (mut on, mut off): (Vec<char>, Option<Vec<char>>) = (Vec::new(), None);
        let wrong = || {
            Err(format!(
                "\"({}\" begins no group; there are (?:…), (?P<name>…) and the flags i, m, s, U, such as (?i) or (?-s:…)",
                beginning(start)
            ))
        };
        loop {
            match self.next() {
                Some(flag @ ('i' | 'm' | 's' | 'U')) => {
                    let flags = off.as_mut().unwrap_or(&mut on);
                    if !flags.contains(&flag) {
                        flags.push(flag);
                    }
                }
                Some('-') if off.is_none() => off = Some(Vec::new()),
                Some(end @ (':' | ')')) if off.as_ref().is_none_or(|off| !off.is_empty()) => {
                    let off = off.unwrap_or_default();
                    on.retain(|flag| !off.contains(flag));
                    let mut text: String = on.into_iter().collect();
                    if !off.is_empty() {
                        text.push('-');
                        text.extend(off);
                    }
                    if end == ':' {
                        self.begin(&format!("(?{text}:"));
                    } else if !text.is_empty() {
                        self.out.push_str(&format!("(?{text})"));
                    }
                    return Ok(());
                }
                _ => return wrong(),
            }
        }
    }

    /// Something after a backslash, outside of a set.
    fn escape(&mut self) -> Result<(), String> {
        if self.eat("Q") {
            // Without an end it is the rest.
            let ended = self.until("\\E");
            let text = ended.unwrap_or_else(|| std::mem::take(&mut self.rest));
            for c in text.chars() {
                self.literal(c);
            }
            return Ok(());
        }
        let asserts = ["A", "z", "b", "B"].into_iter().find(|a| self.eat(a));
        if let Some(assertion) = asserts {
            // Boundaries are those of ASCII words.
            self.out.push_str("(?-u:\\");
            self.out.push_str(assertion);
            self.out.push(')');
        } else if let Some(class) = self.class()? {
            self.out.push('[');
            self.out.push_str(&class);
            self.out.push(']');
        } else {
            let c = self.escaped()?;
            push_literal(&mut self.out, c);
        }
        self.atom(1);
        Ok(())
    }

    /// A class after a backslash, as it would stand in a set.
    fn class(&mut self) -> Result<Option<String>, String> {
        let classes = [
            ("d", "0-9"),
            ("D", "[^0-9]"),
            ("s", r"\t\n\f\r\x20"),
            ("S", r"[^\t\n\f\r\x20]"),
            ("w", "0-9A-Za-z_"),
            ("W", "[^0-9A-Za-z_]"),
        ];
        if let Some((_, class)) = classes.into_iter().find(|(c, _)| self.eat(c)) {
            return Ok(Some(class.to_owned()));
        }
        let mut negated = match () {
            () if self.eat("p") => false,
            () if self.eat("P") => true,
            () => return Ok(None),
        };
        let name = if self.eat("{") {
            self.until("}").ok_or(r"a \p{ is not closed")?
        } else {
            let end = self.rest.chars().next().map_or(0, char::len_utf8);
            let (name, left) = self.rest.split_at(end);
            self.rest = left;
            name
        };
        let bare = name.strip_prefix('^');
        negated ^= bare.is_some();
        let bare = bare.unwrap_or(name);
        let named = bare.bytes().all(|b| b.is_ascii_alphabetic() || b == b'_');
        if !named || !bare.starts_with(|c: char| c.is_ascii_uppercase()) {
            return Err(format!(
                r"there is no class \p{{{name}}}; there are general categories such as \pN and \p{{Lu}}, and scripts such as \p{{Greek}}"
            ));
        }
        let script = bare == "Yi" || bare.len() > 2 && bare != "Any";
        let (p, script) = (
            if negated { 'P' } else { 'p' },
            if script { "Script=" } else { "" },
        );
        Ok(Some(format!("\\{p}{{{script}{bare}}}")))
    }

    /// A single character after a backslash.
    fn escaped(&mut self) -> Result<char, String> {
        let Some(c) = self.next() else {
            return Err("it ends with a backslash".to_owned());
        };
        let octal = |text: &str| text.starts_with(|c: char| c.is_digit(8));
        match c {
            'a' => Ok('\x07'),
            'f' => Ok('\x0C'),
            'n' => Ok('\n'),
            'r' => Ok('\r'),
            't' => Ok('\t'),
            'v' => Ok('\x0B'),
            'x' => {
                let digits = if self.eat("{") {
                    self.until("}").unwrap_or_default()
                } else {
                    let (digits, left) = self.rest.split_at_checked(2).unwrap_or_default();
                    self.rest = left;
                    digits
                };
                let hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
                let code = u32::from_str_radix(digits, 16).ok().filter(|_| hex);
                code.and_then(char::from_u32).ok_or_else(|| {
                    format!(r"\x{digits} is no character; it is \x7F or \x{{10FFFF}}")
                })
            }
            '1'..='9' if !octal(self.rest) || c > '7' => Err(format!(
                r"\{c} would refer to a group, which can't be; an octal escape has more digits"
            )),
            '0'..='7' => {
                let mut code = c as u32 - '0' as u32;
                for _ in 0..2 {
                    if octal(self.rest)
                        && let Some(digit) = self.next()
                    {
                        code = code * 8 + (digit as u32 - '0' as u32);
                    }
                }
                char::from_u32(code).ok_or_else(|| format!("{code:o} is no character"))
            }
            c if c.is_ascii() && !c.is_ascii_alphanumeric() => Ok(c),
            c => Err(format!(
                r"\{c} means nothing; a backslash itself is \\, which is \\\\ in double quotes"
            )),
        }
    }

    /// A set, of which the `[` is passed already.
    fn set(&mut self) -> Result<(), String> {
        self.out.push('[');
        if self.eat("^") {
            self.out.push('^');
        }
        let mut first = true;
        while first || !self.eat("]") {
            first = false;
            if self.rest.starts_with("[:")
                && let Some((name, left)) = self.rest[2..].split_once(":]")
            {
                if !CLASSES.contains(&name.trim_start_matches('^')) {
                    return Err(format!(
                        "there is no class [:{name}:]; there are {CLASSES:?}"
                    ));
                }
                self.out.push_str(&format!("[:{name}:]"));
                self.rest = left;
                continue;
            }
            let before = self.rest;
            if self.eat("\\") {
                if let Some(class) = self.class()? {
                    self.out.push_str(&class);
                    continue;
                }
                self.rest = before;
            }
            let low = self.member()?;
            push_code(&mut self.out, low);
            if self.rest.starts_with('-') && self.rest.len() > 1 && !self.rest.starts_with("-]") {
                self.next();
                let high = self.member()?;
                if high < low {
                    return Err(format!("{low:?} comes after {high:?} in a set"));
                }
                self.out.push('-');
                push_code(&mut self.out, high);
            }
        }
        self.out.push(']');
        self.atom(1);
        Ok(())
    }

    fn member(&mut self) -> Result<char, String> {
        match self.next() {
            Some('\\') => self.escaped(),
            Some(c) => Ok(c),
            None => Err("a '[' is not closed".to_owned()),
        }
    }
}

/// The classes of a set, `[[:alpha:]]`.
const CLASSES: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct",
    "space", "upper", "word", "xdigit",
];

fn beginning(text: &str) -> &str {
    let end = text.char_indices().nth(4).map_or(text.len(), |(i, _)| i);
    &text[..end]
}

fn push_literal(out: &mut String, c: char) {
    if c.is_ascii_alphanumeric() || !c.is_ascii() {
        out.push(c);
    } else {
        push_code(out, c);
    }
}

fn push_code(out: &mut String, c: char) {
    out.push_str(&format!("\\x{{{:X}}}", c as u32));
}

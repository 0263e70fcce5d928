//! Rules as JSON, made to be read and written by people, too.

use std::{collections::HashSet, fmt, time::Duration};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};

use super::{
    WireError, check_length,
    envelope::whole,
    limits::{DEPTH_MAX, HISTORY_MAX, LABELS_MAX, NAME_MAX, NODES_MAX, REGEXES_MAX, RULE_MAX},
    number::{Real, Whole, duration_text, read_duration},
    read_json, read_selector,
};
use crate::{
    Condition, Delta, Rule, Selector, SelectorError, Threshold,
    interest::Distance,
    nats::subject::{SubjectError, check_part, escape, shown, unescape},
    rule::{
        Gather, Group, HISTORY_DEFAULT, How, Level, Node, Op, Slots, Source, Stat, Test,
        check_template,
    },
};

/// What stands for every namespace, or every component, in a key: nothing is escaped to it.
const ALL: &str = "=all";

/// As in a bucket, for people to read.
#[cfg(feature = "serde")]
impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::Error;

        let text = encode_rule(self).map_err(S::Error::custom)?;
        let value: serde_json::Value = serde_json::from_str(&text).map_err(S::Error::custom)?;
        value.serialize(serializer)
    }
}

#[cfg(feature = "serde")]
impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        decode_rule(&value.to_string()).map_err(D::Error::custom)
    }
}

/// The rules of a bucket that a source takes, and their keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RuleKey {
    /// `None`: every namespace.
    pub(crate) namespace: Option<String>,
    /// `None`: every component.
    pub(crate) component: Option<String>,
    pub(crate) rule: String,
}

/// The key of a rule: `{namespace}.{component}.{rule}`.
///
/// # Errors
///
/// When a part is too long.
pub(crate) fn rule_key(key: &RuleKey) -> Result<String, SubjectError> {
    check_part("namespace", key.namespace.as_deref().unwrap_or_default())?;
    check_part("component", key.component.as_deref().unwrap_or_default())?;
    check_part("rule", &key.rule)?;
    let token = |part: &Option<String>| part.as_deref().map_or_else(|| ALL.to_owned(), escape);
    let (namespace, component) = (token(&key.namespace), token(&key.component));
    Ok(format!("{namespace}.{component}.{}", escape(&key.rule)))
}

/// # Errors
///
/// When [`rule_key`] makes it of nothing.
pub(crate) fn read_rule_key(key: &str) -> Result<RuleKey, SubjectError> {
    let mut tokens = key.split('.');
    let (Some(namespace), Some(component), Some(rule), None) =
        (tokens.next(), tokens.next(), tokens.next(), tokens.next())
    else {
        return Err(SubjectError::Token {
            token: shown(key),
            why: "the key of a rule is three tokens, namespace.component.rule",
        });
    };
    let part = |token| match token {
        ALL => Ok(None),
        _ => unescape(token).map(Some),
    };
    Ok(RuleKey {
        namespace: part(namespace)?,
        component: part(component)?,
        rule: unescape(rule)?,
    })
}

/// A rule as JSON.
///
/// # Errors
///
/// When there is something in it that JSON can't express, such as a selector made from a handle, or it is beyond the limits.
pub(crate) fn encode_rule(rule: &Rule) -> Result<String, WireError> {
    check_part("rule", &rule.name)?;
    let mut writer = Writer::default();
    let mut fields = vec![("name", Json::of(&rule.name))];
    match &rule.levels[..] {
        [Level { name: None, test }] => fields.push(("when", writer.test(test, "when", 0)?)),
        levels => {
            let mut list = Vec::with_capacity(levels.len());
            for (i, level) in levels.iter().enumerate() {
                let at = format!("levels[{i}]");
                let Some(name) = &level.name else {
                    return Err(WireError::field(at, "one of several levels has no name"));
                };
                check_length("name", name, NAME_MAX).map_err(|why| WireError::field(&at, why))?;
                let test = writer.test(&level.test, &format!("{at}.when"), 0)?;
                list.push(Json::object([("level", Json::of(name)), ("when", test)]));
            }
            fields.push(("levels", Json::List(list)));
        }
    }
    fields.extend(match rule.group {
        Group::Each => None,
        Group::Any => Some(("group", Json::of("any"))),
        Group::All => Some(("group", Json::of("all"))),
        Group::AtLeast(k) => Some(("group", Json::object([("at_least", Json::Whole(k as u64))]))),
    });
    if !rule.by.is_empty() {
        fields.push(("by", Json::texts(&rule.by, "by")?));
    }
    let duration = |name, time: Duration| {
        let is_given = time != Duration::ZERO;
        is_given.then(|| (name, Json::of(&duration_text(time))))
    };
    fields.extend(duration("hold_for", rule.hold));
    fields.extend(duration("keep_firing_for", rule.keep));
    fields.extend(rule.slots.map(|slots| {
        let slots = Json::object([
            ("m", Json::Whole(slots.m.into())),
            ("n", Json::Whole(slots.n.into())),
            ("slot", Json::of(&duration_text(slots.width))),
        ]);
        ("m_of_n", slots)
    }));
    let every = rule
        .every
        .map(|every| ("every", Json::of(&duration_text(every))));
    fields.extend(every);
    fields.extend((!rule.initial).then_some(("initial", Json::Bool(false))));
    fields.extend(rule.dry_run.then_some(("dry_run", Json::Bool(true))));
    if rule.history > HISTORY_MAX {
        return Err(WireError::field(
            "history",
            format!(
                "{} transitions are too many: at most {HISTORY_MAX}",
                rule.history
            ),
        ));
    }
    if rule.history != HISTORY_DEFAULT {
        fields.push(("history", Json::Whole(rule.history as u64)));
    }
    for (name, text) in &rule.annotations {
        let at = || format!("annotations.{name}");
        check_template(text).map_err(|why| WireError::field(at(), why))?;
    }
    for (name, pairs) in [("labels", &rule.labels), ("annotations", &rule.annotations)] {
        if !pairs.is_empty() {
            fields.push((name, Json::pairs(pairs, name)?));
        }
    }
    let text = serde_json::to_string(&Json::object(fields)).map_err(|e| WireError::json(&e))?;
    check_size(&text)?;
    Ok(text)
}

fn check_size(text: &str) -> Result<(), WireError> {
    match text.len() {
        bytes if bytes > RULE_MAX => Err(WireError::TooLarge {
            what: "a rule",
            bytes,
            max: RULE_MAX,
        }),
        _ => Ok(()),
    }
}

/// The rule of a JSON. Whether it makes sense is for the bus to say to which it is added.
///
/// # Errors
///
/// When it is no JSON of a rule, or beyond the limits.
pub(crate) fn decode_rule(text: &str) -> Result<Rule, WireError> {
    check_size(text)?;
    let json: Json = read_json(text.as_bytes())?;
    let mut rule = Object::of(json, "")?;
    let mut reader = Reader {
        nodes: 0,
        regexes: REGEXES_MAX,
    };
    let name = rule.needed("name")?.text()?;
    check_part("rule", &name)?;
    let mut read = match (rule.take("when"), rule.take("levels")) {
        (Some(when), None) => Rule::new(name, Condition(reader.test(when, 0)?)),
        (None, Some(levels)) => {
            let levels = levels.list()?.into_iter().map(|level| {
                let mut level = level.object()?;
                let name = level.needed("level")?;
                let at = name.path.clone();
                let name = name.text()?;
                check_length("name", &name, NAME_MAX).map_err(|why| WireError::field(at, why))?;
                let test = reader.test(level.needed("when")?, 0)?;
                level.end()?;
                Ok((name, Condition(test)))
            });
            Rule::levels(name, levels.collect::<Result<Vec<_>, WireError>>()?)
        }
        _ => {
            return Err(WireError::field(
                "when",
                "a rule has either a condition, `when`, or `levels`",
            ));
        }
    };
    if let Some(group) = rule.take("group") {
        let at = group.path.clone();
        read.group = match group.json {
            Json::Text(text) => match text.as_str() {
                "each" => Group::Each,
                "any" => Group::Any,
                "all" => Group::All,
                other => {
                    return Err(WireError::field(
                        at,
                        format!(
                            "{:?} is not each, any, all or {{\"at_least\": 2}}",
                            shown(other)
                        ),
                    ));
                }
            },
            json => {
                let mut group = Object::of(json, &at)?;
                let k = group.needed("at_least")?.size()?;
                group.end()?;
                Group::AtLeast(k)
            }
        };
    }
    if let Some(by) = rule.take("by") {
        read.by = by.texts()?;
    }
    if let Some(hold) = rule.take("hold_for") {
        read.hold = hold.duration()?;
    }
    if let Some(keep) = rule.take("keep_firing_for") {
        read.keep = keep.duration()?;
    }
    if let Some(slots) = rule.take("m_of_n") {
        let mut slots = slots.object()?;
        let small = |field: Field| {
            let at = field.path.clone();
            let n = field.size()?;
            u32::try_from(n).map_err(|_| WireError::field(at, format!("{n} is too large")))
        };
        read.slots = Some(Slots {
            m: small(slots.needed("m")?)?,
            n: small(slots.needed("n")?)?,
            width: slots.needed("slot")?.duration()?,
        });
        slots.end()?;
    }
    if let Some(every) = rule.take("every") {
        read.every = Some(every.duration()?);
    }
    if let Some(initial) = rule.take("initial") {
        read.initial = initial.bool()?;
    }
    if let Some(dry_run) = rule.take("dry_run") {
        read.dry_run = dry_run.bool()?;
    }
    if let Some(history) = rule.take("history") {
        let n = history.size()?;
        if n > HISTORY_MAX {
            return Err(WireError::field(
                "history",
                format!("{n} transitions are too many: at most {HISTORY_MAX}"),
            ));
        }
        read.history = n;
    }
    if let Some(labels) = rule.take("labels") {
        read.labels = labels.pairs()?;
    }
    if let Some(annotations) = rule.take("annotations") {
        read.annotations = annotations.pairs()?;
    }
    rule.end()?;
    Ok(read)
}

/// Words of thresholds, and what they make.
type Raise = fn(f64) -> Threshold;
type Clear = fn(Threshold, f64) -> Threshold;

const RAISE: [(&str, Raise); 4] = [
    ("above", Threshold::above),
    ("at_least", Threshold::at_least),
    ("below", Threshold::below),
    ("at_most", Threshold::at_most),
];

const CLEAR: [(&str, Clear); 4] = [
    ("clear_above", Threshold::clear_above),
    ("clear_at_least", Threshold::clear_at_least),
    ("clear_below", Threshold::clear_below),
    ("clear_at_most", Threshold::clear_at_most),
];

const GATHERS: [(&str, How); 5] = [
    ("sum", How::Sum),
    ("avg", How::Avg),
    ("min", How::Min),
    ("max", How::Max),
    ("count", How::Count),
];

const STATS: [(&str, Stat); 12] = [
    ("count", Stat::Count),
    ("sum", Stat::Sum),
    ("avg", Stat::Avg),
    ("min", Stat::Min),
    ("max", Stat::Max),
    ("last", Stat::Last),
    ("rate", Stat::Rate),
    ("increase", Stat::Increase),
    ("stddev", Stat::Stddev),
    ("coverage", Stat::Coverage),
    ("age", Stat::Age),
    ("sources", Stat::Sources),
];

const OPS: [(&str, Op); 4] = [
    ("add", Op::Add),
    ("subtract", Op::Sub),
    ("multiply", Op::Mul),
    ("divide", Op::Div),
];

/// One more condition or expression, at this depth.
fn step(nodes: &mut usize, depth: usize, at: &str) -> Result<(), WireError> {
    *nodes += 1;
    if *nodes > NODES_MAX {
        return Err(WireError::field(
            at,
            format!("the rule has more than {NODES_MAX} conditions and expressions"),
        ));
    }
    if depth > DEPTH_MAX {
        return Err(WireError::field(
            at,
            format!("it is nested deeper than {DEPTH_MAX}"),
        ));
    }
    Ok(())
}

/// Writes conditions and expressions.
#[derive(Default)]
struct Writer {
    nodes: usize,
    regexes: usize,
}

impl Writer {
    fn test(&mut self, test: &Test, at: &str, depth: usize) -> Result<Json, WireError> {
        step(&mut self.nodes, depth, at)?;
        let mut several = |name, all: Vec<&Test>| {
            let mut list = Vec::with_capacity(all.len());
            for (i, one) in all.into_iter().enumerate() {
                list.push(self.test(one, &format!("{at}.{name}[{i}]"), depth + 1)?);
            }
            Ok(Json::object([(name, Json::List(list))]))
        };
        match test {
            Test::And(..) => several(
                "and",
                spine(test, |test| match test {
                    Test::And(a, b) => Some((a, b)),
                    _ => None,
                }),
            ),
            Test::Or(..) => several(
                "or",
                spine(test, |test| match test {
                    Test::Or(a, b) => Some((a, b)),
                    _ => None,
                }),
            ),
            Test::Not(a) => {
                let a = self.test(a, &format!("{at}.not"), depth + 1)?;
                Ok(Json::object([("not", a)]))
            }
            Test::Stale(selector, time) | Test::Gone(selector, time) => {
                let is_stale = matches!(test, Test::Stale(..));
                let name = if is_stale { "stale" } else { "gone" };
                let selector = self.selector(selector, at)?;
                let time = Json::of(&duration_text(*time));
                Ok(Json::object([(name, selector), ("for", time)]))
            }
            Test::When(node, threshold) => {
                let mut fields = self.node(node, at, depth)?;
                let ((raise, bound), clear) = threshold.words();
                fields.push((raise, Json::Real(bound)));
                fields.extend(clear.map(|(word, bound)| {
                    let name = CLEAR
                        .iter()
                        .find(|(n, _)| n.strip_prefix("clear_") == Some(word));
                    (name.map_or("", |(name, _)| *name), Json::Real(bound))
                }));
                Ok(Json::object(fields))
            }
            Test::Moved(node, delta) => {
                let mut fields = self.node(node, at, depth)?;
                match delta.written() {
                    Distance::Absolute(distance) => fields.push(("moved_by", Json::Real(distance))),
                    Distance::Relative { share, floor } => {
                        fields.push(("moved_by_share", Json::Real(share)));
                        if floor.to_bits() != 0 {
                            fields.push(("floor", Json::Real(floor)));
                        }
                    }
                }
                Ok(Json::object(fields))
            }
            Test::Changed(node) => {
                let mut fields = self.node(node, at, depth)?;
                fields.push(("changed", Json::Bool(true)));
                Ok(Json::object(fields))
            }
        }
    }

    /// What is said of an expression, in an object of its own or in that of its condition.
    fn node(
        &mut self,
        node: &Node,
        at: &str,
        depth: usize,
    ) -> Result<Vec<(&'static str, Json)>, WireError> {
        Ok(match node {
            Node::Constant(value) => vec![("constant", Json::Real(*value))],
            Node::Value(Source { selector, gather }) => {
                let selector = self.selector(selector, at)?;
                let Some(gather) = gather else {
                    return Ok(vec![("value", selector)]);
                };
                let how = GATHERS.iter().find(|(_, how)| *how == gather.how);
                let (name, _) =
                    how.ok_or_else(|| WireError::field(at, "only windows are merged"))?;
                let mut fields = vec![(*name, selector)];
                if !gather.by.is_empty() {
                    fields.push(("by", Json::texts(&gather.by, at)?));
                }
                fields
            }
            Node::Window {
                source,
                width,
                stat,
            } => {
                let mut fields = vec![
                    ("over", self.selector(&source.selector, at)?),
                    ("width", Json::of(&duration_text(*width))),
                ];
                match &source.gather {
                    None => {}
                    Some(Gather {
                        how: How::Merge,
                        by,
                    }) if by.is_empty() => fields.push(("merged", Json::Bool(true))),
                    Some(Gather {
                        how: How::Merge,
                        by,
                    }) => fields.push(("by", Json::texts(by, at)?)),
                    Some(_) => return Err(WireError::field(at, "windows are merged, or not")),
                }
                fields.push(match stat {
                    Stat::Quantile(q) => ("quantile", Json::Real(*q)),
                    stat => {
                        let name = STATS.iter().find(|(_, s)| s == stat);
                        let name = name.map(|(name, _)| *name);
                        ("stat", Json::of(name.unwrap_or_default()))
                    }
                });
                fields
            }
            Node::Binary(op, ..) => {
                let operands = spine(node, |node| match node {
                    Node::Binary(other, a, b) if other == op => Some((a, b)),
                    _ => None,
                });
                let name = OPS.iter().find(|(_, other)| other == op);
                let name = name.map_or("", |(name, _)| *name);
                let mut list = Vec::with_capacity(operands.len());
                for (i, one) in operands.into_iter().enumerate() {
                    list.push(self.operand(one, &format!("{at}.{name}[{i}]"), depth + 1)?);
                }
                vec![(name, Json::List(list))]
            }
            Node::Scaled { of, from, to } => vec![
                (
                    "scaled",
                    self.operand(of, &format!("{at}.scaled"), depth + 1)?,
                ),
                ("from", Json::Real(*from)),
                ("to", Json::Real(*to)),
            ],
            Node::Ewma { of, tau } => vec![
                ("ewma", self.operand(of, &format!("{at}.ewma"), depth + 1)?),
                ("tau", Json::of(&duration_text(*tau))),
            ],
            Node::Wrong(why) => return Err(WireError::field(at, why)),
        })
    }

    fn operand(&mut self, node: &Node, at: &str, depth: usize) -> Result<Json, WireError> {
        step(&mut self.nodes, depth, at)?;
        let mut fields = self.node(node, at, depth)?;
        let is_plain = match &fields[..] {
            [("constant", Json::Real(value))] => value.is_finite(),
            [("value", _)] => true,
            _ => false,
        };
        Ok(match fields.pop() {
            Some((_, alone)) if is_plain => alone,
            last => Json::object(fields.into_iter().chain(last)),
        })
    }

    fn selector(
        &mut self,
        selector: &Result<Selector, SelectorError>,
        at: &str,
    ) -> Result<Json, WireError> {
        let selector = selector
            .as_ref()
            .map_err(|error| WireError::field(at, error.to_string()))?;
        if selector.is_of_handle() {
            return Err(WireError::field(
                at,
                format!(
                    "a selector made from a handle means one series of this process; write it down, as {:?}",
                    shown(&selector.to_string())
                ),
            ));
        }
        let text = selector.to_string();
        // As whoever reads it will.
        let mut left = REGEXES_MAX.saturating_sub(self.regexes);
        read_selector(at, &text, &mut left)?;
        self.regexes = REGEXES_MAX - left;
        Ok(Json::Text(text))
    }
}

/// What is put together by one operator from the left: of ((a, b), c) a, b and c.
fn spine<'a, T>(
    whole: &'a T,
    halves: impl Fn(&'a T) -> Option<(&'a Box<T>, &'a Box<T>)>,
) -> Vec<&'a T> {
    let (mut parts, mut rest) = (Vec::new(), whole);
    while let Some((left, right)) = halves(rest) {
        parts.push(&**right);
        rest = left;
    }
    parts.push(rest);
    parts.reverse();
    parts
}

/// Reads conditions and expressions.
struct Reader {
    nodes: usize,
    regexes: usize,
}

impl Reader {
    fn test(&mut self, field: Field, depth: usize) -> Result<Test, WireError> {
        step(&mut self.nodes, depth, &field.path)?;
        let mut object = field.object()?;
        let test = if let Some(all) = object.take("and") {
            self.fold(all, depth, Test::And, Reader::test)?
        } else if let Some(any) = object.take("or") {
            self.fold(any, depth, Test::Or, Reader::test)?
        } else if let Some(not) = object.take("not") {
            Test::Not(Box::new(self.test(not, depth + 1)?))
        } else if let Some(stale) = object.take("stale") {
            let selector = self.selector(stale)?;
            Test::Stale(Ok(selector), object.needed("for")?.duration()?)
        } else if let Some(gone) = object.take("gone") {
            let selector = self.selector(gone)?;
            Test::Gone(Ok(selector), object.needed("for")?.duration()?)
        } else {
            self.judged(&mut object, depth)?
        };
        object.end()?;
        Ok(test)
    }

    /// A condition about an expression.
    fn judged(&mut self, object: &mut Object, depth: usize) -> Result<Test, WireError> {
        let node = self.node(object, depth)?;
        if let Some(changed) = object.take("changed") {
            let path = changed.path.clone();
            if !changed.bool()? {
                return Err(WireError::field(path, "it can only be true, or not there"));
            }
            return Ok(Test::Changed(node));
        }
        if let Some(distance) = object.take("moved_by") {
            return Ok(Test::Moved(node, Delta::absolute(distance.real()?)));
        }
        if let Some(share) = object.take("moved_by_share") {
            let delta = Delta::relative(share.real()?);
            return Ok(Test::Moved(
                node,
                match object.take("floor") {
                    Some(floor) => delta.floor(floor.real()?),
                    None => delta,
                },
            ));
        }
        // A second word is left over, and said to be too much.
        let raise = RAISE
            .iter()
            .find_map(|(word, make)| Some((object.take(word)?, make)));
        let Some((bound, make)) = raise else {
            return Err(WireError::field(
                &object.path,
                "it says of an expression nothing that can hold; one of above, at_least, below, at_most, moved_by, \
                 moved_by_share or changed is wanted",
            ));
        };
        let threshold = make(bound.real()?);
        let clear = CLEAR
            .iter()
            .find_map(|(word, make)| Some((object.take(word)?, make)));
        Ok(Test::When(
            node,
            match clear {
                Some((bound, make)) => make(threshold, bound.real()?),
                None => threshold,
            },
        ))
    }

    fn operand(&mut self, field: Field, depth: usize) -> Result<Node, WireError> {
        step(&mut self.nodes, depth, &field.path)?;
        match field.json {
            Json::Text(_) => Ok(Node::Value(Source {
                selector: Ok(self.selector(field)?),
                gather: None,
            })),
            Json::Whole(_) | Json::Real(_) => Ok(Node::Constant(field.real()?)),
            _ => {
                let mut object = field.object()?;
                let node = self.node(&mut object, depth)?;
                object.end()?;
                Ok(node)
            }
        }
    }

    fn node(&mut self, object: &mut Object, depth: usize) -> Result<Node, WireError> {
        if let Some(value) = object.take("value") {
            return Ok(Node::Value(Source {
                selector: Ok(self.selector(value)?),
                gather: None,
            }));
        }
        if let Some(constant) = object.take("constant") {
            return Ok(Node::Constant(constant.real()?));
        }
        if let Some(over) = object.take("over") {
            return self.window(over, object);
        }
        if let Some(of) = object.take("scaled") {
            return Ok(Node::Scaled {
                of: Box::new(self.operand(of, depth + 1)?),
                from: object.needed("from")?.real()?,
                to: object.needed("to")?.real()?,
            });
        }
        if let Some(of) = object.take("ewma") {
            return Ok(Node::Ewma {
                of: Box::new(self.operand(of, depth + 1)?),
                tau: object.needed("tau")?.duration()?,
            });
        }
        for (name, op) in OPS {
            if let Some(operands) = object.take(name) {
                let join = |a, b| Node::Binary(op, a, b);
                return self.fold(operands, depth, join, Reader::operand);
            }
        }
        for (name, how) in GATHERS {
            if let Some(selector) = object.take(name) {
                let selector = Ok(self.selector(selector)?);
                let by = match object.take("by") {
                    Some(by) => by.texts()?,
                    None => Vec::new(),
                };
                return Ok(Node::Value(Source {
                    selector,
                    gather: Some(Gather { how, by }),
                }));
            }
        }
        Err(WireError::field(
            &object.path,
            "it is about nothing; one of value, sum, avg, min, max, count, over, constant, add, subtract, multiply, divide, \
             scaled, ewma, or of and, or, not, stale, gone is wanted",
        ))
    }

    fn window(&mut self, over: Field, object: &mut Object) -> Result<Node, WireError> {
        let selector = Ok(self.selector(over)?);
        let width = object.needed("width")?.duration()?;
        let merged = match object.take("merged") {
            Some(merged) => merged.bool()?,
            None => false,
        };
        let by = match object.take("by") {
            Some(_) if merged => {
                return Err(WireError::field(
                    &object.path,
                    "a window is either merged, or grouped by labels",
                ));
            }
            Some(by) => Some(by.texts()?),
            None => merged.then(Vec::new),
        };
        let stat = if let Some(q) = object.take("quantile") {
            Stat::Quantile(q.real()?)
        } else {
            let stat = object.needed("stat")?;
            let path = stat.path.clone();
            let name = stat.text()?;
            let known = STATS.iter().find(|(known, _)| *known == name);
            let (_, stat) = known.ok_or_else(|| {
                let names: Vec<_> = STATS.iter().map(|(name, _)| *name).collect();
                WireError::field(
                    path,
                    format!(
                        "{:?} is no statistic; there are {}, and quantile",
                        shown(&name),
                        names.join(", ")
                    ),
                )
            })?;
            *stat
        };
        Ok(Node::Window {
            source: Source {
                selector,
                gather: by.map(|by| Gather {
                    how: How::Merge,
                    by,
                }),
            },
            width,
            stat,
        })
    }

    /// Several, put together from the left.
    fn fold<T>(
        &mut self,
        field: Field,
        depth: usize,
        join: impl Fn(Box<T>, Box<T>) -> T,
        one: fn(&mut Reader, Field, usize) -> Result<T, WireError>,
    ) -> Result<T, WireError> {
        let path = field.path.clone();
        let mut whole: Option<T> = None;
        let list = field.list()?;
        let is_several = list.len() > 1;
        for part in list {
            let part = one(self, part, depth + 1)?;
            whole = Some(match whole {
                Some(before) => join(Box::new(before), Box::new(part)),
                None => part,
            });
        }
        whole
            .filter(|_| is_several)
            .ok_or_else(|| WireError::field(path, "it takes two at least"))
    }

    fn selector(&mut self, field: Field) -> Result<Selector, WireError> {
        let path = field.path.clone();
        read_selector(&path, &field.text()?, &mut self.regexes)
    }
}

/// A JSON value whose objects keep their order and have no name twice.
#[derive(Clone, Debug, PartialEq)]
enum Json {
    Null,
    Bool(bool),
    Whole(u64),
    Real(f64),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    fn of(text: &str) -> Json {
        Json::Text(text.to_owned())
    }

    fn object(fields: impl IntoIterator<Item = (&'static str, Json)>) -> Json {
        let owned = |(name, value): (&str, Json)| (name.to_owned(), value);
        Json::Object(fields.into_iter().map(owned).collect())
    }

    /// Names of labels.
    fn texts(texts: &[String], at: &str) -> Result<Json, WireError> {
        check_many(texts.len(), at)?;
        Ok(Json::List(
            texts.iter().map(|text| Json::of(text)).collect(),
        ))
    }

    fn pairs(pairs: &[(String, String)], at: &str) -> Result<Json, WireError> {
        check_many(pairs.len(), at)?;
        for (i, (name, _)) in pairs.iter().enumerate() {
            if pairs[..i].iter().any(|(earlier, _)| earlier == name) {
                return Err(WireError::field(
                    at,
                    format!("{:?} is there twice", shown(name)),
                ));
            }
        }
        let pairs = pairs
            .iter()
            .map(|(name, value)| (name.clone(), Json::of(value)));
        Ok(Json::Object(pairs.collect()))
    }

    fn what(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool(_) => "a boolean",
            Json::Whole(_) | Json::Real(_) => "a number",
            Json::Text(_) => "a text",
            Json::List(_) => "a list",
            Json::Object(_) => "an object",
        }
    }
}

fn check_many(n: usize, at: &str) -> Result<(), WireError> {
    match n {
        n if n > LABELS_MAX => Err(WireError::field(
            at,
            format!("{n} are too many: at most {LABELS_MAX}"),
        )),
        _ => Ok(()),
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Json::Null => serializer.serialize_unit(),
            Json::Bool(b) => serializer.serialize_bool(*b),
            Json::Whole(n) => Whole(*n).serialize(serializer),
            Json::Real(d) => Real(*d).serialize(serializer),
            Json::Text(text) => serializer.serialize_str(text),
            Json::List(list) => serializer.collect_seq(list),
            Json::Object(fields) => {
                serializer.collect_map(fields.iter().map(|(name, value)| (name, value)))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_unit<E: Error>(self) -> Result<Json, E> {
                Ok(Json::Null)
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Json, E> {
                Ok(Json::Bool(value))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Json, E> {
                Ok(Json::Whole(value))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Json, E> {
                Ok(Json::Real(value as f64))
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Json, E> {
                Ok(Json::Real(value))
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<Json, E> {
                Ok(Json::of(value))
            }

            fn visit_string<E: Error>(self, value: String) -> Result<Json, E> {
                Ok(Json::Text(value))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
                let mut list = Vec::new();
                while let Some(value) = seq.next_element()? {
                    list.push(value);
                }
                Ok(Json::List(list))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
                let mut names = HashSet::new();
                let mut fields = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !names.insert(name.clone()) {
                        let twice = shown(&name);
                        return Err(A::Error::custom(format!("{twice:?} is given twice")));
                    }
                    fields.push((name, map.next_value()?));
                }
                Ok(Json::Object(fields))
            }
        }
        deserializer.deserialize_any(Read)
    }
}

/// A value, and where it stands.
struct Field {
    path: String,
    json: Json,
}

impl Field {
    fn wants<T>(&self, what: &str) -> Result<T, WireError> {
        Err(WireError::field(
            &self.path,
            format!("it is {}; it should be {what}", self.json.what()),
        ))
    }

    fn object(self) -> Result<Object, WireError> {
        Object::of(self.json, &self.path)
    }

    fn list(self) -> Result<Vec<Field>, WireError> {
        let Json::List(list) = self.json else {
            return self.wants("a list");
        };
        if list.len() > NODES_MAX {
            return Err(WireError::field(
                self.path,
                format!("{} are too many: at most {NODES_MAX}", list.len()),
            ));
        }
        let field = |(i, json)| Field {
            path: format!("{}[{i}]", self.path),
            json,
        };
        Ok(list.into_iter().enumerate().map(field).collect())
    }

    fn text(self) -> Result<String, WireError> {
        match self.json {
            Json::Text(text) => Ok(text),
            _ => self.wants("a text"),
        }
    }

    fn bool(self) -> Result<bool, WireError> {
        match self.json {
            Json::Bool(value) => Ok(value),
            _ => self.wants("true or false"),
        }
    }

    fn real(self) -> Result<f64, WireError> {
        let of_text = |text: &String| Real::of_text(text).map(|real| real.0);
        match &self.json {
            Json::Real(value) => Ok(*value),
            Json::Whole(n) => Ok(*n as f64),
            Json::Text(text) if of_text(text).is_some() => Ok(of_text(text).unwrap_or(f64::NAN)),
            _ => self.wants("a number"),
        }
    }

    fn size(self) -> Result<usize, WireError> {
        let n = match &self.json {
            Json::Whole(n) => Some(*n),
            Json::Text(text) => whole(text),
            _ => None,
        };
        match n.and_then(|n| usize::try_from(n).ok()) {
            Some(n) => Ok(n),
            None => self.wants("an integer of 0 or more"),
        }
    }

    fn duration(self) -> Result<Duration, WireError> {
        let path = self.path.clone();
        let text = self.text()?;
        read_duration(&text).ok_or_else(|| {
            WireError::field(
                path,
                format!(
                    "{:?} is no duration; one is written as 500ms or 1h30m, with d, h, m, s, ms, us and ns",
                    shown(&text)
                ),
            )
        })
    }

    fn texts(self) -> Result<Vec<String>, WireError> {
        let path = self.path.clone();
        let list = self.list()?;
        check_many(list.len(), &path)?;
        list.into_iter().map(Field::text).collect()
    }

    fn pairs(self) -> Result<Vec<(String, String)>, WireError> {
        let Object { path, fields } = self.object()?;
        check_many(fields.len(), &path)?;
        let text = |(name, json): (String, Json)| {
            let path = format!("{path}.{}", shown(&name));
            Ok((name, Field { path, json }.text()?))
        };
        fields.into_iter().map(text).collect()
    }
}

/// An object of which one field after the other is taken.
struct Object {
    path: String,
    fields: Vec<(String, Json)>,
}

impl Object {
    fn of(json: Json, path: &str) -> Result<Object, WireError> {
        let path = path.to_owned();
        match json {
            Json::Object(fields) => Ok(Object { path, fields }),
            json => Field { path, json }.wants("an object"),
        }
    }

    fn path_of(&self, name: &str) -> String {
        match &self.path[..] {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }

    fn take(&mut self, name: &str) -> Option<Field> {
        let i = self.fields.iter().position(|(n, _)| n == name)?;
        let (_, json) = self.fields.remove(i);
        Some(Field {
            path: self.path_of(name),
            json,
        })
    }

    fn needed(&mut self, name: &str) -> Result<Field, WireError> {
        self.take(name)
            .ok_or_else(|| WireError::field(self.path_of(name), "it is missing"))
    }

    /// `Err` where there is something left.
    fn end(self) -> Result<(), WireError> {
        match self.fields.first() {
            Some((name, _)) => Err(WireError::field(
                self.path_of(&shown(name)),
                "it is not known here, or does not go with the rest",
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Clock, Expr, MetricBus};

    fn duration() -> impl Strategy<Value = Duration> {
        prop_oneof![
            (0_u64..100_000).prop_map(Duration::from_millis),
            (any::<u64>(), 0_u32..1_000_000_000).prop_map(|(s, ns)| Duration::new(s, ns)),
        ]
    }

    fn number() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<f64>().prop_filter("NaN is not equal to itself", |v| !v.is_nan()),
            (-1_000_i32..1_000).prop_map(|n| f64::from(n) / 8.0),
            Just(f64::INFINITY),
            Just(-0.0),
        ]
    }

    fn selector() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-z_:][a-z0-9_:]{0,9}",
            (any::<String>(), "[!=]=?").prop_map(|(value, op)| {
                let op = if op.starts_with('!') { "!=" } else { "=" };
                let mut text = format!("m{{a{op}\"");
                crate::labels::escape(&mut text, &value);
                text + "\"}"
            }),
            Just(r#"{b=~"x|y.*",c!~"[0-9]+"}"#.to_owned()),
        ]
    }

    fn by() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec("\\PC{0,5}", 0..3)
    }

    fn expr() -> impl Strategy<Value = Expr> {
        let leaf = prop_oneof![
            selector().prop_map(Expr::value),
            number().prop_map(Expr::constant),
            (selector(), by(), 0..5).prop_map(|(s, by, how)| {
                match how {
                    0 => Expr::sum(s),
                    1 => Expr::avg(s),
                    2 => Expr::min(s),
                    3 => Expr::max(s),
                    _ => Expr::count(s),
                }
                .by(by)
            }),
            (
                selector(),
                duration(),
                prop::option::of(by()),
                0..13,
                0.0..1.0
            )
                .prop_map(|(s, width, by, stat, q)| {
                    let over = Expr::over(s, width);
                    let over = match by {
                        Some(by) => over.by(by),
                        None => over,
                    };
                    match stat {
                        0 => over.count(),
                        1 => over.sum(),
                        2 => over.avg(),
                        3 => over.min(),
                        4 => over.max(),
                        5 => over.last(),
                        6 => over.rate(),
                        7 => over.increase(),
                        8 => over.stddev(),
                        9 => over.coverage(),
                        10 => over.age(),
                        11 => over.sources(),
                        _ => over.quantile(q),
                    }
                }),
        ];
        leaf.prop_recursive(4, 12, 2, |inner| {
            prop_oneof![
                (inner.clone(), inner.clone(), 0..4).prop_map(|(a, b, op)| match op {
                    0 => a + b,
                    1 => a - b,
                    2 => a * b,
                    _ => a / b,
                }),
                (inner.clone(), number(), number()).prop_map(|(of, a, b)| of.scaled(a, b)),
                (inner, duration()).prop_map(|(of, tau)| of.ewma(tau)),
            ]
        })
    }

    fn condition() -> impl Strategy<Value = Condition> {
        let threshold =
            (0..4_usize, number(), 0..5_usize, number()).prop_map(|(raise, a, clear, b)| {
                let threshold = RAISE[raise].1(a);
                match CLEAR.get(clear) {
                    Some((_, make)) => make(threshold, b),
                    None => threshold,
                }
            });
        let delta = (0..3, number(), number()).prop_map(|(kind, a, b)| match kind {
            0 => Delta::absolute(a),
            1 => Delta::relative(a),
            _ => Delta::relative(a).floor(b),
        });
        let leaf = prop_oneof![
            (expr(), threshold).prop_map(|(e, t)| Condition::when(e, t)),
            (expr(), delta).prop_map(|(e, d)| Condition::moved(e, d)),
            expr().prop_map(Condition::changed),
            (selector(), duration()).prop_map(|(s, d)| Condition::stale(s, d)),
            (selector(), duration()).prop_map(|(s, d)| Condition::gone(s, d)),
        ];
        leaf.prop_recursive(4, 8, 2, |inner| {
            prop_oneof![
                (inner.clone(), inner.clone()).prop_map(|(a, b)| a & b),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| a | b),
                inner.prop_map(|a| !a),
            ]
        })
    }

    fn pairs() -> impl Strategy<Value = Vec<(String, String)>> {
        prop::collection::btree_map(any::<String>(), any::<String>(), 0..3)
            .prop_map(|pairs| pairs.into_iter().rev().collect())
    }

    /// Braces mean something in them.
    fn annotations() -> impl Strategy<Value = Vec<(String, String)>> {
        let template = |(name, text): (String, String)| (name, text.replace('{', "{{ $value }}"));
        pairs().prop_map(move |pairs| pairs.into_iter().map(template).collect())
    }

    /// Any rule that JSON can express.
    pub(crate) fn rules() -> impl Strategy<Value = Rule> {
        let conditions = prop_oneof![
            ("\\PC{1,20}", condition()).prop_map(|(name, when)| Rule::new(name, when)),
            (
                "\\PC{1,20}",
                prop::collection::vec(("\\PC{0,8}", condition()), 0..3)
            )
                .prop_map(|(name, levels)| Rule::levels(name, levels)),
        ];
        let what = (0..4, any::<usize>(), by(), duration(), duration());
        let how = (
            prop::option::of((any::<u32>(), any::<u32>(), duration())),
            prop::option::of(duration()),
            any::<bool>(),
            any::<bool>(),
            0..=HISTORY_MAX,
            pairs(),
            annotations(),
        );
        (conditions, what, how).prop_map(|(mut rule, what, how)| {
            let (group, k, by, hold, keep) = what;
            let (slots, every, initial, dry_run, history, labels, annotations) = how;
            rule.group = match group {
                0 => Group::Each,
                1 => Group::Any,
                2 => Group::All,
                _ => Group::AtLeast(k),
            };
            rule.by = by;
            (rule.hold, rule.keep) = (hold, keep);
            rule.slots = slots.map(|(m, n, width)| Slots { m, n, width });
            rule.every = every;
            (rule.initial, rule.dry_run, rule.history) = (initial, dry_run, history);
            (rule.labels, rule.annotations) = (labels, annotations);
            rule
        })
    }

    fn full() -> Rule {
        Rule::new(
            "KvFull",
            Condition::when("kv_usage_ratio", Threshold::above(0.9).clear_below(0.8)),
        )
        .hold_for(Duration::from_millis(500))
    }

    /// Every word there is, as people write it.
    const EXAMPLES: [&str; 12] = [
        r#"{"name":"KvFull","when":{"value":"kv_usage_ratio","above":0.9,"clear_below":0.8},"hold_for":"500ms"}"#,
        r#"{"name":"Share","when":{"divide":["kv_blocks_used","kv_blocks"],"at_least":0.9},"group":"any","by":["component"],"labels":{"severity":"page"},"annotations":{"summary":"{{ $value }} full"}}"#,
        r#"{"name":"Errors","when":{"divide":[{"over":"errors_total","width":"5m","by":["service"],"stat":"rate"},{"over":"requests_total","width":"5m","by":["service"],"stat":"rate"}],"above":0.01}}"#,
        r#"{"name":"Slow","when":{"over":"ttft_seconds","width":"1m","merged":true,"quantile":0.99,"above":0.5},"group":"all"}"#,
        r#"{"name":"Levels","levels":[{"level":"warn","when":{"value":"queue_depth","above":80,"clear_below":70}},{"level":"critical","when":{"value":"queue_depth","above":90}}]}"#,
        r#"{"name":"Dead","when":{"or":[{"stale":"heartbeat_total","for":"5s"},{"gone":"heartbeat_total","for":"1m"}]},"group":{"at_least":2}}"#,
        r#"{"name":"Moved","when":{"value":"workers","moved_by_share":0.1,"floor":10},"keep_firing_for":"3s"}"#,
        r#"{"name":"Jumped","when":{"value":"workers","moved_by":5},"m_of_n":{"m":2,"n":3,"slot":"1s"}}"#,
        r#"{"name":"Changed","when":{"value":"version","changed":true},"initial":false,"dry_run":true,"history":5}"#,
        r#"{"name":"Calm","when":{"and":[{"not":{"ewma":"queue_depth","tau":"10s","below":5}},{"scaled":{"sum":"load","by":["zone"]},"from":50,"to":100,"above":0.5,"clear_at_most":0.25}]},"every":"1s"}"#,
        r#"{"name":"Sum","when":{"add":["a",{"multiply":[2,"b"]},{"subtract":["c",{"constant":"+Inf"}]}],"below":0,"clear_at_least":1}}"#,
        r#"{"name":"Some","when":{"count":"up","at_most":3,"clear_above":4}}"#,
    ];

    #[test]
    fn rules_are_written_as_people_read_them() {
        assert_eq!(encode_rule(&full()).unwrap(), EXAMPLES[0]);
        assert_eq!(decode_rule(EXAMPLES[0]).unwrap(), full());
        let share = Rule::new(
            "Share",
            Condition::when(
                Expr::value("kv_blocks_used") / Expr::value("kv_blocks"),
                Threshold::at_least(0.9),
            ),
        )
        .any()
        .by(["component"])
        .label("severity", "page")
        .annotation("summary", "{{ $value }} full");
        assert_eq!(encode_rule(&share).unwrap(), EXAMPLES[1]);
    }

    #[test]
    fn what_people_write_is_written_back_as_it_was_and_a_bus_takes_it() {
        let bus = MetricBus::builder().clock(Clock::manual()).build();
        for text in EXAMPLES {
            let rule = decode_rule(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(encode_rule(&rule).unwrap(), text);
            let added = bus.add_rule(rule);
            assert!(added.is_ok(), "{text}: {:?}", added.err());
        }
    }

    #[test]
    fn whether_a_rule_makes_sense_is_for_the_bus_to_say() {
        let bus = MetricBus::builder().clock(Clock::manual()).build();
        for text in [
            r#"{"name":"","when":{"value":"a","above":1}}"#,
            r#"{"name":"r","levels":[]}"#,
            r#"{"name":"r","when":{"value":"a","above":1,"clear_below":2}}"#,
            r#"{"name":"r","when":{"value":"a","above":"NaN"}}"#,
            r#"{"name":"r","when":{"value":"a","above":"+Inf"}}"#,
            r#"{"name":"r","when":{"value":"a","moved_by":-1}}"#,
            r#"{"name":"r","when":{"constant":1,"above":0}}"#,
            r#"{"name":"r","when":{"stale":"a","for":"1ns"}}"#,
            r#"{"name":"r","when":{"value":"a","above":1},"by":["x"]}"#,
            r#"{"name":"r","when":{"value":"a","above":1},"labels":{"no label":"x"}}"#,
            r#"{"name":"r","when":{"value":"a","above":1},"m_of_n":{"m":2,"n":65,"slot":"1s"}}"#,
            r#"{"name":"r","when":{"over":"a","width":"1ms","stat":"rate","above":1}}"#,
        ] {
            let rule = decode_rule(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let error = bus.add_rule(rule).map(drop).unwrap_err().to_string();
            assert!(!error.is_empty());
        }
    }

    #[test]
    fn what_is_no_rule_is_refused_with_the_place_where_it_is_none() {
        let when = |condition: &str| format!(r#"{{"name":"r","when":{condition}}}"#);
        let rule =
            |rest: &str| format!(r#"{{"name":"r","when":{{"value":"a","above":1}},{rest}}}"#);
        for (place, text) in [
            ("JSON", String::new()),
            ("JSON", "[]".to_owned()),
            ("JSON", "{".to_owned()),
            ("JSON", r#"{"name":"r","name":"s"}"#.to_owned()),
            (
                "JSON",
                format!(r#"{{"name":{}1{}}}"#, "[".repeat(200), "]".repeat(200)),
            ),
            ("name", "{}".to_owned()),
            ("name", r#"{"name":1}"#.to_owned()),
            ("rule", format!(r#"{{"name":"{}"}}"#, "x".repeat(600))),
            ("when", r#"{"name":"r"}"#.to_owned()),
            (
                "when",
                r#"{"name":"r","when":{"value":"a","above":1},"levels":[]}"#.to_owned(),
            ),
            ("when", when("1")),
            ("when", when("{}")),
            ("when", when(r#"{"value":"a"}"#)),
            ("when.value", when(r#"{"value":"a{","above":1}"#)),
            ("when.above", when(r#"{"value":"a","above":"much"}"#)),
            ("when.below", when(r#"{"value":"a","above":1,"below":2}"#)),
            (
                "when.clear_below",
                when(r#"{"value":"a","above":1,"clear_above":2,"clear_below":0}"#),
            ),
            ("when.sum", when(r#"{"value":"a","sum":"b","above":1}"#)),
            ("when.and", when(r#"{"and":[{"value":"a","above":1}]}"#)),
            (
                "when.and[1]",
                when(r#"{"and":[{"value":"a","above":1},{}]}"#),
            ),
            (
                "when.or",
                when(r#"{"and":[{"value":"a","above":1},{"value":"a","above":1}],"or":[]}"#),
            ),
            ("when.for", when(r#"{"stale":"a"}"#)),
            ("when.for", when(r#"{"gone":"a","for":"soon"}"#)),
            ("when.add[1]", when(r#"{"add":["a",true],"above":1}"#)),
            ("when.tau", when(r#"{"ewma":"a","above":1}"#)),
            ("when.stat", when(r#"{"over":"a","width":"1s","above":1}"#)),
            (
                "when.stat",
                when(r#"{"over":"a","width":"1s","stat":"mode","above":1}"#),
            ),
            (
                "when",
                when(
                    r#"{"over":"a","width":"1s","stat":"avg","merged":true,"by":["x"],"above":1}"#,
                ),
            ),
            ("when.by", when(r#"{"value":"a","by":["x"],"above":1}"#)),
            (
                "when.floor",
                when(r#"{"value":"a","moved_by":1,"floor":1}"#),
            ),
            ("when.changed", when(r#"{"value":"a","changed":false}"#)),
            ("group", rule(r#""group":"some""#)),
            ("group.at_least", rule(r#""group":{"at_least":-1}"#)),
            (
                "group.at_most",
                rule(r#""group":{"at_least":1,"at_most":2}"#),
            ),
            ("hold_for", rule(r#""hold_for":5"#)),
            ("hold_for", rule(r#""hold_for":"5""#)),
            (
                "m_of_n.m",
                rule(r#""m_of_n":{"m":4294967296,"n":1,"slot":"1s"}"#),
            ),
            ("m_of_n.slot", rule(r#""m_of_n":{"m":1,"n":1}"#)),
            ("history", rule(r#""history":10001"#)),
            ("labels.a", rule(r#""labels":{"a":1}"#)),
            ("JSON", rule(r#""labels":{"a":"1","a":"2"}"#)),
            ("holdfor", rule(r#""holdfor":"5s""#)),
        ] {
            let error = decode_rule(&text).unwrap_err().to_string();
            let told = error.split_once(": ").map_or("", |(place, _)| place);
            assert!(
                told == place || error.contains(place) && matches!(place, "JSON" | "rule"),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn rules_beyond_the_limits_are_refused_both_ways() {
        let leaf = || Condition::when("a", Threshold::above(1.0));
        let many = |n| Rule::new("r", (1..n).fold(leaf(), |all, _| all & leaf()));
        // Each condition, and the one that is all of them.
        assert!(encode_rule(&many(NODES_MAX - 1)).is_ok());
        let template = Rule::new("r", leaf()).annotation("what", "{{ $value");
        let error = encode_rule(&template).unwrap_err().to_string();
        assert!(
            error.contains("annotations.what") && error.contains("not closed"),
            "{error}"
        );
        // As deep as they can be made.
        let deep = (1..256).fold(Expr::value("v"), |expr, _| expr.scaled(0.0, 1.0));
        let deep = Rule::new("r", Condition::when(deep, Threshold::above(0.5)));
        let error = encode_rule(&deep).unwrap_err().to_string();
        assert!(error.contains("deeper than"), "{error}");
        assert!(encode_rule(&many(NODES_MAX)).is_err());
        let text = encode_rule(&many(NODES_MAX - 1)).unwrap();
        assert_eq!(decode_rule(&text).unwrap(), many(NODES_MAX - 1));
        let more = text.replacen("[{", r#"[{"value":"a","above":1},{"#, 1);
        assert!(
            decode_rule(&more)
                .unwrap_err()
                .to_string()
                .contains("more than 256")
        );

        let deep = |n| Rule::new("r", (0..n).fold(leaf(), |all, _| !all));
        let text = encode_rule(&deep(DEPTH_MAX)).unwrap();
        assert_eq!(decode_rule(&text).unwrap(), deep(DEPTH_MAX));
        assert!(encode_rule(&deep(DEPTH_MAX + 1)).is_err());
        let deeper = text.replacen(r#"{"not":"#, r#"{"not":{"not":"#, 1) + "}";
        assert!(
            decode_rule(&deeper)
                .unwrap_err()
                .to_string()
                .contains("deeper than 32")
        );
        // Much deeper, to the right and in expressions.
        assert!(encode_rule(&Rule::new("r", (0..90).fold(leaf(), |all, _| leaf() | all))).is_err());
        let steep = (0..90).fold(Expr::value("a"), |e, _| 1.0 - e);
        assert!(encode_rule(&Rule::new("r", Condition::changed(steep))).is_err());

        let long = full().annotation("a", "x".repeat(RULE_MAX));
        assert!(matches!(
            encode_rule(&long),
            Err(WireError::TooLarge { .. })
        ));
        let long = format!("{}{}", EXAMPLES[0], " ".repeat(RULE_MAX));
        assert!(matches!(
            decode_rule(&long),
            Err(WireError::TooLarge { .. })
        ));
        let numbers = format!(
            r#"{{"name":"r","when":{{"add":[{}0]}}}}"#,
            "0,".repeat(30_000)
        );
        assert!(
            decode_rule(&numbers)
                .unwrap_err()
                .to_string()
                .contains("too many")
        );

        let regexes = |n| Rule::new("r", (1..n).fold(regex(), |all, _| all & regex()));
        assert!(encode_rule(&regexes(REGEXES_MAX)).is_ok());
        assert!(encode_rule(&regexes(REGEXES_MAX + 1)).is_err());
    }

    fn regex() -> Condition {
        Condition::changed(r#"a{b=~"c"}"#)
    }

    #[test]
    fn what_json_cannot_express_is_an_error() {
        let bus = MetricBus::new();
        let gauge = bus.gauge("g", "h").unwrap();
        let of_handle = Rule::new("r", Condition::changed(gauge.series()));
        let error = encode_rule(&of_handle).unwrap_err().to_string();
        assert!(error.contains("write it down"), "{error}");
        for (rule, why) in [
            (Rule::new("r", Condition::changed("a{")), "expected"),
            (
                Rule::new("r", Condition::changed(Expr::value("a").by(["x"]))),
                "by(x)",
            ),
            (full().label("a", "1").label("a", "2"), "twice"),
            (full().history(usize::MAX), "too many"),
            (full().by((0..65).map(|i| i.to_string())), "too many"),
            (
                Rule::levels("r", [("x".repeat(300), regex())]),
                "at most 256",
            ),
        ] {
            let error = encode_rule(&rule).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn keys_say_for_whom_a_rule_is() {
        let key = |namespace: Option<&str>, component: Option<&str>, rule: &str| RuleKey {
            namespace: namespace.map(str::to_owned),
            component: component.map(str::to_owned),
            rule: rule.to_owned(),
        };
        for (key, text) in [
            (
                key(Some("prod"), Some("decode"), "KvFull"),
                "prod.decode.KvFull",
            ),
            (key(None, None, "KV full"), "=all.=all.KV=20full"),
            (key(Some(""), Some("=all"), "a.b"), "=.=3Dall.a=2Eb"),
        ] {
            assert_eq!(rule_key(&key).unwrap(), text);
            assert_eq!(read_rule_key(text).unwrap(), key);
        }
        for bad in [
            "", "a.b", "a.b.c.d", "a.b.=all", "a.b.*", "..", "a.b=2D.c", "=ALL.a.b",
        ] {
            assert!(read_rule_key(bad).is_err(), "{bad}");
        }
        assert!(rule_key(&key(None, None, &"x".repeat(600))).is_err());
    }

    proptest! {
        #[test]
        fn every_rule_comes_back(rule in rules()) {
            let text = encode_rule(&rule).unwrap();
            prop_assert_eq!(decode_rule(&text).unwrap(), rule, "{}", text);
        }

        #[test]
        fn every_key_comes_back(
            namespace in prop::option::of(".{0,30}"), component in prop::option::of(".{0,30}"), rule in ".{0,30}",
        ) {
            let key = RuleKey { namespace, component, rule };
            prop_assert_eq!(read_rule_key(&rule_key(&key).unwrap()).unwrap(), key);
        }
    }
}

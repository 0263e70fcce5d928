//! Which derived gauges look at which, so that circles and long chains are refused where they are declared. Pure data.
//!
//! A derived gauge is only looked at by its name, never by a selector without one; so the names tell who looks at whom. A selector
//! that no series of a gauge can match, by the gauge's constant labels, does not look at it.

use std::collections::{HashMap, HashSet};

use super::plan::Plan;
use crate::{desc::Desc, selector::Selector};

/// The most derived gauges in a row. One mutation goes through all of them, in its thread.
const CHAIN_MAX: usize = 64;

/// The derived gauges of a bus.
#[derive(Default)]
pub(crate) struct Derivations {
    gauges: HashMap<String, Gauge>,
    /// By the name that is looked at, declared or not: who looks.
    readers: HashMap<String, HashSet<String>>,
}

struct Gauge {
    constant: Vec<(String, String)>,
    looks_at: Vec<Selector>,
}

impl Gauge {
    fn reads(&self, name: &str, of: &Gauge) -> bool {
        let mut looks = self.looks_at.iter();
        looks.any(|selector| {
            selector.metric_name() == Some(name) && selector.could_match_labels(&of.constant)
        })
    }
}

impl Derivations {
    /// Adds a gauge.
    ///
    /// # Errors
    ///
    /// When it would close a circle, or make a chain too long: why.
    pub(crate) fn add(&mut self, desc: &Desc, plan: &Plan) -> Result<(), String> {
        let places = plan.places.iter().map(|place| place.selector.clone());
        let looks_at: Vec<_> = places.filter(|s| s.metric_name().is_some()).collect();
        for name in looks_at.iter().filter_map(Selector::metric_name) {
            let readers = self.readers.entry(name.to_owned()).or_default();
            readers.insert(desc.name.clone());
        }
        let gauge = Gauge {
            constant: desc.constant.clone(),
            looks_at,
        };
        self.gauges.insert(desc.name.clone(), gauge);
        self.check(&desc.name)
            .inspect_err(|_| self.remove(&desc.name))
    }

    pub(crate) fn remove(&mut self, name: &str) {
        let Some(gauge) = self.gauges.remove(name) else {
            return;
        };
        for looked_at in gauge.looks_at.iter().filter_map(Selector::metric_name) {
            if let Some(readers) = self.readers.get_mut(looked_at) {
                readers.remove(name);
                if readers.is_empty() {
                    self.readers.remove(looked_at);
                }
            }
        }
    }

    fn check(&self, name: &str) -> Result<(), String> {
        let circle = |path: &[&str]| {
            let path = path.join(", which looks at ");
            format!("it is derived from itself: {path}, which looks at {name}")
        };
        let below = self.longest(name, &|gauge| self.looked_at_by(gauge), circle)?;
        // Whoever looks at it is no circle by now.
        let above = self.longest(name, &|gauge| self.readers_of(gauge), |_| String::new())?;
        let chain = below + above - 1;
        if chain > CHAIN_MAX {
            return Err(format!(
                "it would be one of {chain} gauges that are derived from each other in a row; at most {CHAIN_MAX} may be: \
                 write what is computed as one expression"
            ));
        }
        Ok(())
    }

    fn looked_at_by(&self, name: &str) -> Vec<&str> {
        let Some(gauge) = self.gauges.get(name) else {
            return Vec::new();
        };
        let names = gauge.looks_at.iter().filter_map(Selector::metric_name);
        let found = names.filter(|&n| self.gauges.get(n).is_some_and(|of| gauge.reads(n, of)));
        found.collect()
    }

    fn readers_of(&self, name: &str) -> Vec<&str> {
        let Some(of) = self.gauges.get(name) else {
            return Vec::new();
        };
        let readers = self.readers.get(name).into_iter().flatten();
        let reads = |reader: &&str| {
            self.gauges
                .get(*reader)
                .is_some_and(|gauge| gauge.reads(name, of))
        };
        readers.map(String::as_str).filter(reads).collect()
    }

    /// How many gauges are in the longest row that begins with one. Each gauge is looked at once, by a list rather than by
    /// recursion.
    ///
    /// # Errors
    ///
    /// When the row comes back to where it began: what `circle` says of the way.
    fn longest<'a>(
        &'a self,
        name: &'a str,
        next: &impl Fn(&'a str) -> Vec<&'a str>,
        circle: impl Fn(&[&str]) -> String,
    ) -> Result<usize, String> {
        let mut lengths: HashMap<&str, usize> = HashMap::new();
        // Gauges on the way, what is left to be looked at from each, and the longest row found behind it.
        let mut way = vec![name];
        let mut left = vec![(next(name), 0)];
        while let Some((rest, longest)) = left.last_mut() {
            match rest.pop() {
                Some(one) if one == name => return Err(circle(&way)),
                Some(one) => match lengths.get(one) {
                    Some(&length) => *longest = length.max(*longest),
                    None => {
                        way.push(one);
                        left.push((next(one), 0));
                    }
                },
                None => {
                    let length = *longest + 1;
                    lengths.extend(way.pop().map(|gauge| (gauge, length)));
                    left.pop();
                    match left.last_mut() {
                        Some((_, before)) => *before = length.max(*before),
                        None => return Ok(length),
                    }
                }
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Expr;

    fn add(all: &mut Derivations, desc: Desc, expr: Expr) -> Result<(), String> {
        all.add(&desc, &Plan::of_expression(&expr.0).unwrap())
    }

    fn gauge(name: &str) -> Desc {
        Desc::new(name, "Of a test.")
    }

    #[test]
    fn circles_are_refused_by_whoever_closes_them() {
        let mut all = Derivations::default();
        let itself = add(&mut all, gauge("a"), Expr::value("a") + 1.0).unwrap_err();
        assert_eq!(itself, "it is derived from itself: a, which looks at a");
        add(&mut all, gauge("a"), Expr::value("b") + 1.0).unwrap();
        add(
            &mut all,
            gauge("b"),
            Expr::sum(r#"c{x="1"}"#) + Expr::value("d"),
        )
        .unwrap();
        let closed = add(
            &mut all,
            gauge("c"),
            Expr::value("other") / Expr::value("a"),
        )
        .unwrap_err();
        assert_eq!(
            closed,
            "it is derived from itself: c, which looks at a, which looks at b, which looks at c"
        );
        // Its labels keep it apart.
        add(&mut all, gauge("c").label("x", "2"), Expr::value("a") + 1.0).unwrap();
        // What was refused or removed is no part of it.
        all.remove("b");
        add(&mut all, gauge("d"), Expr::value("a") + 1.0).unwrap();
        assert!(add(&mut all, gauge("b"), Expr::value("d") + 1.0).is_err());
        all.remove("c");
        all.remove("a");
        all.remove("d");
        assert!(all.gauges.is_empty() && all.readers.is_empty());
    }

    #[test]
    fn chains_are_refused_wherever_they_grow() {
        let name = |i: usize| format!("g{i}");
        let chain = |order: Vec<usize>| {
            let mut all = Derivations::default();
            let grow =
                |&i: &usize| add(&mut all, gauge(&name(i + 1)), Expr::value(&*name(i)) + 1.0);
            order.iter().map(grow).filter(Result::is_err).count()
        };
        let last = CHAIN_MAX;
        assert_eq!(chain((0..last).collect()), 0);
        assert_eq!(chain((0..last + 1).collect()), 1);
        assert_eq!(chain((0..last + 1).rev().collect()), 1);
        // Two chains that the last one would join.
        let joined = (0..last / 2)
            .chain(last / 2 + 1..last + 1)
            .chain([last / 2]);
        assert_eq!(chain(joined.collect()), 1);
    }

    #[test]
    fn many_ways_through_the_same_gauges_are_gone_once() {
        let mut all = Derivations::default();
        for layer in 1..30 {
            for side in ["a", "b"] {
                let of = |side: &str| Expr::value(&*format!("{side}{}", layer - 1));
                add(
                    &mut all,
                    gauge(&format!("{side}{layer}")),
                    of("a") + of("b"),
                )
                .unwrap();
            }
        }
    }
}

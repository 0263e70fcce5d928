//! What holds of the layers' machines whatever comes and whenever: nothing is lost uncounted, and at rest what was sent
//! last is what came last.

use std::collections::HashMap;

use proptest::prelude::*;

use super::{
    relay::{Effects, Machine},
    throttle::said,
};
use crate::{
    rule::{Alert, AlertState},
    time::Time,
};

/// Seconds since the one before, which rule, and what: resolved, or firing at one of three levels.
type Course = Vec<(u64, u8, u8)>;

fn course() -> impl Strategy<Value = Course> {
    proptest::collection::vec((0..12_u64, 0..3_u8, 0..4_u8), 0..60)
}

/// A few of the many that could be remembered, so that some are forgotten.
fn keys() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1_usize), Just(2), Just(100)]
}

struct Run<T> {
    taken: Vec<(Time, Alert)>,
    sent: Vec<(Time, T)>,
    passed_over: u64,
    forgotten: u64,
}

/// Runs a machine through a course, and on until nothing is due.
fn run<M: Machine>(mut machine: M, course: Course) -> Run<M::Out> {
    let mut run = Run {
        taken: Vec::new(),
        sent: Vec::new(),
        passed_over: 0,
        forgotten: 0,
    };
    let mut now = Time::ZERO;
    for (wait, rule, what) in course {
        let later = Time(now.0 + wait * 1_000_000_000);
        run.expire(&mut machine, later);
        now = later;
        let alert = alert(now, rule, what);
        run.taken.push((now, alert.clone()));
        run.step(now, |effects| {
            machine.take(alert, now, effects);
            machine.expire(now, effects);
        });
    }
    run.expire(&mut machine, Time(u64::MAX));
    run
}

fn alert(now: Time, rule: u8, what: u8) -> Alert {
    let state = match what {
        0 => AlertState::Resolved,
        _ => AlertState::Firing,
    };
    let level = (what > 1).then(|| what.to_string().into());
    Alert {
        level,
        ..Alert::new(rule.to_string(), state, now)
    }
}

impl<T> Run<T> {
    fn expire<M: Machine<Out = T>>(&mut self, machine: &mut M, until: Time) {
        while let Some(at) = machine.next_due().filter(|at| *at <= until) {
            self.step(at, |effects| machine.expire(at, effects));
            assert!(machine.next_due().is_none_or(|next| next > at));
        }
    }

    fn step(&mut self, now: Time, step: impl FnOnce(&mut Effects<T>)) {
        let mut effects = Effects::default();
        step(&mut effects);
        self.passed_over += effects.passed_over;
        self.forgotten += effects.forgotten;
        self.sent
            .extend(effects.send.into_iter().map(|out| (now, out)));
    }
}

impl Run<Alert> {
    /// Each was sent or counted as passed over.
    fn loses_nothing(&self) {
        assert_eq!(
            self.taken.len() as u64,
            self.sent.len() as u64 + self.passed_over
        );
    }

    fn by_rule(&self) -> HashMap<&str, Vec<(Time, &Alert)>> {
        let mut by_rule: HashMap<&str, Vec<_>> = HashMap::new();
        for (at, alert) in &self.sent {
            by_rule.entry(&alert.rule).or_default().push((*at, alert));
        }
        by_rule
    }

    fn last_taken(&self) -> HashMap<&str, &Alert> {
        let taken = self.taken.iter();
        taken.map(|(_, alert)| (&*alert.rule, alert)).collect()
    }

    /// What was sent last of each rule says what came last of it.
    fn agrees_at_rest(&self) {
        let sent = self.by_rule();
        for (rule, last) in self.last_taken() {
            let told = sent.get(rule).and_then(|alerts| alerts.last());
            assert_eq!(
                told.map(|(_, alert)| said(alert)),
                Some(said(last)),
                "{rule}"
            );
        }
    }
}

proptest! {
    #[test]
    fn a_throttle_keeps_its_distance_loses_nothing_and_agrees_at_rest(course in course(), keys in keys()) {
        let run = run(super::throttle::machine(10, keys), course);
        run.loses_nothing();
        run.agrees_at_rest();
        if run.forgotten == 0 {
            for alerts in run.by_rule().values() {
                for pair in alerts.windows(2) {
                    prop_assert!(pair[1].0.since(pair[0].0).as_secs() >= 10);
                }
            }
        }
    }

    #[test]
    fn a_flap_loses_nothing_and_agrees_at_rest(course in course(), keys in keys(), alerts in 0..4_usize) {
        let run = run(super::flap::machine(alerts, 15, 10, keys), course);
        run.loses_nothing();
        run.agrees_at_rest();
    }

    #[test]
    fn stable_loses_nothing_and_tells_the_end_of_what_it_told(course in course(), keys in keys()) {
        let run = run(super::stable::machine(10, keys), course);
        run.loses_nothing();
        let sent = run.by_rule();
        for (rule, last) in run.last_taken() {
            let told = sent.get(rule).and_then(|alerts| alerts.last());
            match told {
                Some((_, alert)) => prop_assert_eq!(said(alert), said(last)),
                None => prop_assert!(!last.is_firing()),
            }
        }
        if run.forgotten == 0 {
            for alerts in sent.values() {
                let mut firing = false;
                for (_, alert) in alerts {
                    prop_assert!(firing || alert.is_firing(), "resolved, and nobody knows what");
                    firing = alert.is_firing();
                }
            }
        }
    }

    #[test]
    fn a_rollup_sends_each_once_in_order_and_no_batch_too_large(course in course(), max in 1..5_usize) {
        let run = run(super::rollup::machine(10, max), course);
        let sent: Vec<_> = run.sent.iter().flat_map(|(_, rolled)| &rolled.alerts).collect();
        let taken: Vec<_> = run.taken.iter().map(|(_, alert)| alert).collect();
        prop_assert_eq!(sent, taken);
        for (at, rolled) in &run.sent {
            prop_assert!((1..=max).contains(&rolled.alerts.len()));
            prop_assert!(at.since(rolled.since).as_secs() <= 10);
        }
    }
}

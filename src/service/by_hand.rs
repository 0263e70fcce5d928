//! For the tests of the layers' machines: one stepped by hand, on seconds.

use super::{
    relay::{Effects, Machine},
    rollup::Rolled,
};
use crate::{
    rule::{Alert, AlertState},
    time::Time,
};

pub(super) struct ByHand<M> {
    machine: M,
    pub(super) passed_over: u64,
    pub(super) forgotten: u64,
}

/// What was sent, in short.
pub(super) trait Told {
    fn told(&self) -> String;
}

impl<M: Machine<Out: Told>> ByHand<M> {
    pub(super) fn new(machine: M) -> Self {
        ByHand {
            machine,
            passed_over: 0,
            forgotten: 0,
        }
    }

    fn step(&mut self, step: impl FnOnce(&mut M, &mut Effects<M::Out>)) -> Vec<String> {
        let mut effects = Effects::default();
        step(&mut self.machine, &mut effects);
        self.passed_over += effects.passed_over;
        self.forgotten += effects.forgotten;
        effects.send.iter().map(Told::told).collect()
    }

    /// What is sent when an alert comes at this time, with all that is due before.
    pub(super) fn at(&mut self, secs: u64, alert: Alert) -> Vec<String> {
        let mut sent = self.until(secs);
        let now = time(secs);
        sent.extend(self.step(|machine, effects| {
            machine.take(alert, now, effects);
            machine.expire(now, effects);
        }));
        sent
    }

    /// What is sent up to this time, each when it is due.
    pub(super) fn until(&mut self, secs: u64) -> Vec<String> {
        let mut sent = Vec::new();
        while let Some(at) = self.machine.next_due().filter(|at| *at <= time(secs)) {
            sent.extend(self.step(|machine, effects| machine.expire(at, effects)));
            assert!(
                self.machine.next_due().is_none_or(|next| next > at),
                "still due after what is due was done"
            );
        }
        sent
    }

    /// What is sent by a machine that was not stepped until this time.
    pub(super) fn late(&mut self, secs: u64) -> Vec<String> {
        self.step(|machine, effects| machine.expire(time(secs), effects))
    }

    pub(super) fn end(&mut self) -> Vec<String> {
        self.step(|machine, effects| machine.end(effects))
    }

    pub(super) fn next(&self) -> Option<u64> {
        self.machine.next_due().map(|at| at.0 / 1_000_000_000)
    }
}

fn time(secs: u64) -> Time {
    Time(secs * 1_000_000_000)
}

pub(super) fn firing(rule: &str) -> Alert {
    Alert::new(rule, AlertState::Firing, Time::ZERO)
}

pub(super) fn resolved(rule: &str) -> Alert {
    Alert::new(rule, AlertState::Resolved, Time::ZERO)
}

pub(super) fn level(rule: &str, level: &str) -> Alert {
    Alert {
        level: Some(level.into()),
        ..firing(rule)
    }
}

impl Told for Alert {
    fn told(&self) -> String {
        let mut told = match &self.level {
            Some(level) => level.to_string(),
            None => self.state.to_string(),
        };
        if self.repeat > 0 {
            told += &format!(" again {}", self.repeat);
        }
        if self.annotation("flapping") == Some("true") {
            told += " flapping";
        }
        told
    }
}

impl Told for Rolled {
    fn told(&self) -> String {
        let mut told: String = self
            .group
            .iter()
            .map(|(name, value)| format!("{name}={value} "))
            .collect();
        let alerts: Vec<_> = self.alerts.iter().map(Alert::to_string).collect();
        told += &format!("[{}]", alerts.join(", "));
        if self.superseded > 0 {
            told += &format!(" superseded {}", self.superseded);
        }
        told
    }
}

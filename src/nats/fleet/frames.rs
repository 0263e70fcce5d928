//! The frames of one life of a source, in order: a pure state machine that says what is to be applied, and when a snapshot
//! is needed.
//!
//! Values in frames are absolute. So a frame may be lost without harm to those after it, and what it held is had again
//! from a snapshot, which is numbered by the last frame sent before it.
//!
//! | known | what comes | what is done |
//! |---|---|---|
//! | nothing | a frame | kept; a snapshot is wanted |
//! | up to n | frame n+1 | applied |
//! | up to n | frame ≤ n | nothing, counted: a duplicate |
//! | up to n | frame m > n+1 | applied; a gap: m−n−1 are missed, a snapshot is wanted |
//! | up to n | a pulse that speaks of m > n, and m has not come [`GRACE`] later | a gap: m−n are missed, a snapshot is wanted |
//! | a snapshot is on its way | a frame | kept, [`KEPT_MAX`] of them and [`KEPT_BYTES`] at most |
//! | a snapshot is on its way | it comes, numbered s | it replaces everything; kept frames > s are applied, in order |
//! | a snapshot is on its way | it does not come | kept frames are applied where there was one before; asked again, ever later |
//! | up to n, for [`SETTLED`] already | a pulse that speaks of less than n | we were misled: as a gap |
//!
//! | up to n | a frame, or a pulse that speaks, of more than n + [`AHEAD_MAX`] | ignored: no source sends so much |
//!
//! What is dropped from among the kept leaves a gap, which is found when they are applied.

use std::{collections::VecDeque, time::Duration};

use crate::time::Time;

/// How long frames may be behind the pulse that speaks of them: they come by different subscriptions.
pub(super) const GRACE: Duration = Duration::from_millis(200);

/// After this no pulse is on its way any more that was sent before what we know.
pub(super) const SETTLED: Duration = Duration::from_secs(10);

/// Nobody misses more. What is further ahead is a mistake, or malice.
const AHEAD_MAX: u64 = 1 << 32;

const KEPT_MAX: usize = 256;
const KEPT_BYTES: usize = 2 << 20;

/// No source is asked for snapshots more often, however many gaps there are.
const SPACING: Duration = Duration::from_secs(1);

const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// How long to wait after so many failures in a row.
pub(super) fn backoff(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (BACKOFF_MIN * (1 << doublings)).min(BACKOFF_MAX)
}

/// Something that takes room while it is kept.
pub(super) trait Weigh {
    fn bytes(&self) -> usize;
}

#[derive(Debug)]
pub(super) struct Frames<F> {
    /// All up to here have been applied, or are covered by a snapshot, or counted as missed.
    last: u64,
    taken_over: bool,
    wanted: bool,
    asked: bool,
    not_before: Time,
    failures: u32,
    kept: VecDeque<(u64, F)>,
    kept_bytes: usize,
    /// A pulse spoke of this frame; and when it should have come.
    claimed: Option<(u64, Time)>,
    /// What we knew some time ago, and when that was.
    last_then: (u64, Time),
    /// What we know is more than there is: whatever the snapshot says counts.
    misled: bool,
    pub(super) counts: FrameCounts,
}

/// Since the source is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FrameCounts {
    /// Handed on.
    pub(super) applied: u64,
    pub(super) duplicates: u64,
    /// Times at which something was found missing.
    pub(super) gaps: u64,
    /// Frames that never came.
    pub(super) missed: u64,
    /// Snapshots that did not come.
    pub(super) failed: u64,
    pub(super) snapshots: u64,
}

/// What is to be done with the frames of a source, in this order.
#[derive(Debug, PartialEq)]
pub(super) enum Step<F> {
    /// This is the whole state.
    Replace(Vec<F>),
    Apply(F),
}

impl<F: Weigh> Frames<F> {
    /// Of a life of which nothing is known. What was counted goes on.
    pub(super) fn new(counts: FrameCounts) -> Frames<F> {
        Frames {
            last: 0,
            taken_over: false,
            wanted: true,
            asked: false,
            not_before: Time::ZERO,
            failures: 0,
            kept: VecDeque::new(),
            kept_bytes: 0,
            claimed: None,
            last_then: (0, Time::ZERO),
            misled: false,
            counts,
        }
    }

    /// Whether a snapshot has been had.
    pub(super) fn taken_over(&self) -> bool {
        self.taken_over
    }

    /// Whether something is known to be missing.
    #[cfg(test)]
    pub(super) fn gapped(&self) -> bool {
        self.wanted
    }

    /// Whether all is there that pulses spoke of.
    pub(super) fn complete(&self) -> bool {
        let claimed = self.claimed.map_or(0, |(sent, _)| sent);
        self.taken_over && !self.wanted && claimed <= self.last
    }

    /// Snapshots that did not come, in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether a frame of this number can't be.
    pub(super) fn is_beyond(&self, sequence: u64) -> bool {
        self.taken_over && sequence.saturating_sub(self.last) > AHEAD_MAX
    }

    pub(super) fn frame(&mut self, sequence: u64, frame: F) -> Option<Step<F>> {
        if !self.taken_over || self.asked {
            self.keep(sequence, frame);
            return None;
        }
        self.pass(sequence, frame)
    }

    fn keep(&mut self, sequence: u64, frame: F) {
        if self.kept.back().is_some_and(|(last, _)| sequence <= *last) {
            self.counts.duplicates = self.counts.duplicates.saturating_add(1);
            return;
        }
        self.kept_bytes += frame.bytes();
        self.kept.push_back((sequence, frame));
        while self.kept.len() > KEPT_MAX || self.kept_bytes > KEPT_BYTES {
            let Some((_, dropped)) = self.kept.pop_front() else {
                break;
            };
            self.kept_bytes -= dropped.bytes();
        }
    }

    fn pass(&mut self, sequence: u64, frame: F) -> Option<Step<F>> {
        if sequence <= self.last || self.is_beyond(sequence) {
            self.counts.duplicates = self.counts.duplicates.saturating_add(1);
            return None;
        }
        if sequence - self.last > 1 {
            self.missed(sequence - self.last - 1);
        }
        self.last = sequence;
        self.counts.applied = self.counts.applied.saturating_add(1);
        Some(Step::Apply(frame))
    }

    fn missed(&mut self, frames: u64) {
        self.counts.missed = self.counts.missed.saturating_add(frames);
        self.counts.gaps = self.counts.gaps.saturating_add(1);
        self.wanted = true;
    }

    /// Nobody knows what was missed.
    pub(super) fn distrust(&mut self) {
        if self.taken_over && !self.wanted {
            self.counts.gaps = self.counts.gaps.saturating_add(1);
            self.wanted = true;
        }
    }

    /// A pulse says that so many have been sent.
    pub(super) fn claim(&mut self, sent: u64, now: Time) {
        let (then, at) = self.last_then;
        if now.since(at) >= SETTLED {
            if self.taken_over && sent < then {
                self.misled = true;
                self.distrust();
            }
            self.last_then = (self.last, now);
        }
        if sent > self.last && self.claimed.is_none_or(|(claimed, _)| claimed <= self.last) {
            self.claimed = Some((sent, now + GRACE));
        }
    }

    /// Sees whether what pulses spoke of has come.
    pub(super) fn tick(&mut self, now: Time) {
        let Some((sent, until)) = self.claimed else {
            return;
        };
        if sent <= self.last || self.is_beyond(sent) {
            self.claimed = None;
        } else if now >= until && self.taken_over && !self.asked {
            self.claimed = None;
            self.missed(sent - self.last);
            // A frame that comes after all is covered by the snapshot.
            self.last = sent;
        }
    }

    /// Whether a snapshot is to be asked for now. Then it counts as asked.
    pub(super) fn wants_snapshot(&mut self, now: Time) -> bool {
        let due = self.wanted && !self.asked && now >= self.not_before;
        self.asked |= due;
        due
    }

    /// A snapshot that was asked for has come.
    pub(super) fn snapshot(&mut self, sequence: u64, parts: Vec<F>, now: Time) -> Vec<Step<F>> {
        if !self.asked {
            return Vec::new();
        }
        if self.taken_over && sequence < self.last && !self.misled {
            // Older than what is shown.
            return self.failed(now);
        }
        self.misled = false;
        self.asked = false;
        self.wanted = false;
        self.taken_over = true;
        self.failures = 0;
        self.not_before = now + SPACING;
        self.last = sequence;
        self.last_then = (sequence, now);
        self.counts.snapshots = self.counts.snapshots.saturating_add(1);
        let mut steps = vec![Step::Replace(parts)];
        self.release(&mut steps);
        steps
    }

    /// It did not come, or could not be read.
    pub(super) fn failed(&mut self, now: Time) -> Vec<Step<F>> {
        if !self.asked {
            return Vec::new();
        }
        self.asked = false;
        self.failures = self.failures.saturating_add(1);
        self.counts.failed = self.counts.failed.saturating_add(1);
        self.not_before = now + backoff(self.failures);
        let mut steps = Vec::new();
        if self.taken_over {
            // What they say is true, whatever else is missing.
            self.release(&mut steps);
        }
        steps
    }

    /// The own connection came up: what failed may go well now.
    pub(super) fn encourage(&mut self) {
        self.failures = 0;
        self.not_before = Time::ZERO;
    }

    fn release(&mut self, steps: &mut Vec<Step<F>>) {
        self.kept_bytes = 0;
        for (sequence, frame) in std::mem::take(&mut self.kept) {
            // Those up to the snapshot are in it.
            if sequence > self.last {
                steps.extend(self.pass(sequence, frame));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    impl Weigh for &'static str {
        fn bytes(&self) -> usize {
            self.len()
        }
    }

    fn ms(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    fn known_up_to(sequence: u64) -> Frames<&'static str> {
        let mut frames = Frames::new(FrameCounts::default());
        assert!(frames.wants_snapshot(ms(0)));
        let steps = frames.snapshot(sequence, vec!["all"], ms(0));
        assert_eq!(steps, [Step::Replace(vec!["all"])]);
        frames
    }

    #[test]
    fn frames_in_order_are_applied_and_duplicates_are_not() {
        let mut frames = known_up_to(3);
        assert_eq!(frames.frame(4, "d"), Some(Step::Apply("d")));
        assert_eq!(frames.frame(4, "d"), None);
        assert_eq!(frames.frame(2, "b"), None);
        assert_eq!((frames.counts.duplicates, frames.counts.gaps), (2, 0));
        assert!(!frames.wants_snapshot(ms(9000)));
    }

    #[test]
    fn a_gap_is_told_in_frames_and_mended_by_a_snapshot() {
        let mut frames = known_up_to(3);
        assert_eq!(frames.frame(6, "f"), Some(Step::Apply("f")));
        assert_eq!((frames.counts.gaps, frames.counts.missed), (1, 2));
        assert!(!frames.wants_snapshot(ms(999)), "not so soon again");
        assert_eq!(frames.frame(7, "g"), Some(Step::Apply("g")));
        assert!(frames.wants_snapshot(ms(1000)));
        assert_eq!(frames.frame(8, "h"), None, "kept until it is here");
        assert_eq!(frames.frame(9, "i"), None);
        let steps = frames.snapshot(8, vec!["all"], ms(1001));
        assert_eq!(steps, [Step::Replace(vec!["all"]), Step::Apply("i")]);
        assert!(!frames.gapped());
    }

    #[test]
    fn a_late_joiner_keeps_frames_until_its_snapshot_is_here() {
        let mut frames = Frames::new(FrameCounts::default());
        assert_eq!(frames.frame(5, "e"), None);
        assert!(frames.wants_snapshot(ms(0)));
        assert_eq!(frames.frame(6, "f"), None);
        assert_eq!(frames.frame(7, "g"), None);
        let steps = frames.snapshot(6, vec!["all"], ms(1));
        assert_eq!(steps, [Step::Replace(vec!["all"]), Step::Apply("g")]);
        assert_eq!(frames.counts.gaps, 0);
    }

    #[test]
    fn a_snapshot_that_fails_is_asked_for_again_ever_later() {
        let mut frames = Frames::<&str>::new(FrameCounts::default());
        let mut now = ms(0);
        for wait in [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000] {
            assert!(frames.wants_snapshot(now));
            assert_eq!(frames.failed(now), []);
            let next = now + Duration::from_millis(wait);
            assert!(!frames.wants_snapshot(Time(next.0 - 1)));
            now = next;
        }
        frames.encourage();
        assert!(frames.wants_snapshot(now));
    }

    #[test]
    fn of_a_known_source_frames_go_on_when_its_snapshot_fails() {
        let mut frames = known_up_to(3);
        frames.frame(5, "e");
        assert!(frames.wants_snapshot(ms(1000)));
        assert_eq!(frames.frame(6, "f"), None);
        assert_eq!(frames.failed(ms(3000)), [Step::Apply("f")]);
        assert!(frames.gapped());
        assert_eq!(frames.frame(7, "g"), Some(Step::Apply("g")));
    }

    #[test]
    fn the_loss_of_the_last_frame_is_found_by_the_pulse() {
        let mut frames = known_up_to(3);
        frames.claim(5, ms(2000));
        assert_eq!(frames.frame(4, "d"), Some(Step::Apply("d")));
        frames.tick(ms(2199));
        assert!(!frames.gapped());
        frames.tick(ms(2200));
        assert!(frames.gapped());
        assert_eq!(frames.counts.missed, 1);
        assert!(frames.wants_snapshot(ms(2200)));
        // It was late, not lost: the snapshot holds it.
        assert_eq!(frames.frame(5, "e"), None);
        let steps = frames.snapshot(5, vec!["all"], ms(2201));
        assert_eq!(steps, [Step::Replace(vec!["all"])]);
    }

    #[test]
    fn a_frame_behind_its_pulse_is_no_gap() {
        let mut frames = known_up_to(3);
        frames.claim(4, ms(2000));
        assert_eq!(frames.frame(4, "d"), Some(Step::Apply("d")));
        frames.tick(ms(5000));
        assert!(!frames.gapped());
    }

    #[test]
    fn what_is_kept_has_a_bound_and_what_is_dropped_leaves_a_gap() {
        let mut frames = Frames::new(FrameCounts::default());
        assert!(frames.wants_snapshot(ms(0)));
        for sequence in 1..=300 {
            frames.frame(sequence, "x");
        }
        let steps = frames.snapshot(10, vec!["all"], ms(1));
        assert_eq!(steps.len(), 1 + KEPT_MAX);
        assert_eq!(frames.counts.missed, 300 - 256 - 10);
        assert!(frames.gapped());
    }

    #[test]
    fn a_snapshot_older_than_what_is_shown_is_refused() {
        let mut frames = known_up_to(3);
        frames.frame(9, "i");
        assert!(frames.wants_snapshot(ms(1000)));
        assert_eq!(frames.snapshot(4, vec!["old"], ms(1000)), []);
        assert!(frames.gapped());
        assert_eq!(frames.counts.failed, 1);
    }

    #[test]
    fn a_number_that_misled_us_is_mended() {
        let mut frames = known_up_to(3);
        frames.frame(AHEAD_MAX, "x");
        assert!(frames.wants_snapshot(ms(1000)));
        assert_eq!(frames.snapshot(4, vec!["all"], ms(1000)), []);
        frames.claim(4, ms(1100));
        frames.claim(5, ms(10_100));
        assert!(!frames.misled, "they may be late");
        frames.claim(5, ms(20_100));
        assert!(frames.wants_snapshot(ms(20_100)));
        let steps = frames.snapshot(5, vec!["all"], ms(20_101));
        assert_eq!(steps, [Step::Replace(vec!["all"])]);
        assert_eq!(frames.frame(6, "f"), Some(Step::Apply("f")));
    }

    #[test]
    fn numbers_beyond_all_measure_are_ignored_and_break_nothing() {
        for taken_over in [false, true] {
            let mut frames = match taken_over {
                true => known_up_to(3),
                false => Frames::new(FrameCounts::default()),
            };
            for sequence in [u64::MAX >> 1, u64::MAX - 1, u64::MAX] {
                assert_eq!(frames.frame(sequence, "x"), None);
                frames.claim(sequence, ms(0));
                frames.tick(ms(1000));
            }
            if !taken_over {
                assert!(frames.wants_snapshot(ms(1000)));
                frames.snapshot(3, vec!["all"], ms(1000));
                frames.tick(ms(2000));
            }
            assert_eq!(frames.frame(4, "d"), Some(Step::Apply("d")));
            assert_eq!((frames.counts.missed, frames.counts.gaps), (0, 0));
            assert!(frames.complete());
        }
    }

    #[test]
    fn an_answer_to_no_question_is_ignored() {
        let mut frames = known_up_to(3);
        assert_eq!(frames.snapshot(9, vec!["all"], ms(1)), []);
        assert_eq!(frames.failed(ms(1)), []);
    }

    /// One frame sets one of three values to its own sequence.
    #[derive(Clone, Debug, PartialEq)]
    struct Set(Vec<(usize, u64)>);

    impl Weigh for Set {
        fn bytes(&self) -> usize {
            1
        }
    }

    #[derive(Clone, Debug)]
    enum Event {
        Send { lost: bool },
        Pulse,
        Answer { fails: bool },
        Wait(u64),
    }

    proptest! {
        /// Whatever is lost, and whenever answers come: once pulses and answers get through, what is shown is what the
        /// source has, and no value ever falls behind on the way.
        #[test]
        fn what_is_shown_agrees_in_the_end_and_never_goes_back(events in prop::collection::vec(prop_oneof![
            4 => any::<bool>().prop_map(|lost| Event::Send { lost }),
            1 => Just(Event::Pulse),
            2 => any::<bool>().prop_map(|fails| Event::Answer { fails }),
            1 => (0u64..3000).prop_map(Event::Wait),
        ], 0..80)) {
            let mut source: BTreeMap<usize, u64> = BTreeMap::new();
            let mut sent = 0;
            let mut shown: BTreeMap<usize, u64> = BTreeMap::new();
            let mut frames = Frames::<Set>::new(FrameCounts::default());
            let mut now = Time::ZERO;
            let mut asked = false;
            let settle = [Event::Pulse, Event::Wait(300), Event::Wait(11_000), Event::Answer { fails: false },
                Event::Wait(11_000), Event::Answer { fails: false }];
            let all = events.into_iter().chain(settle);
            for event in all {
                let mut steps = Vec::new();
                match event {
                    Event::Send { lost } => {
                        sent += 1;
                        let key = (sent % 3) as usize;
                        source.insert(key, sent);
                        if !lost {
                            steps.extend(frames.frame(sent, Set(vec![(key, sent)])));
                        }
                    }
                    Event::Pulse => frames.claim(sent, now),
                    Event::Answer { fails } if asked => {
                        asked = false;
                        steps = if fails {
                            frames.failed(now)
                        } else {
                            let all = source.iter().map(|(k, v)| (*k, *v)).collect();
                            frames.snapshot(sent, vec![Set(all)], now)
                        };
                    }
                    Event::Answer { .. } => {}
                    Event::Wait(ms) => now = now + Duration::from_millis(ms),
                }
                frames.tick(now);
                for step in steps {
                    let sets = match step {
                        Step::Apply(Set(sets)) => sets,
                        Step::Replace(parts) => {
                            let sets: Vec<_> = parts.into_iter().flat_map(|Set(s)| s).collect();
                            shown.retain(|k, _| sets.iter().any(|(key, _)| key == k));
                            sets
                        }
                    };
                    for (key, value) in sets {
                        let before = shown.insert(key, value).unwrap_or(0);
                        prop_assert!(before <= value, "{before} then {value}");
                    }
                }
                if frames.wants_snapshot(now) {
                    asked = true;
                }
            }
            prop_assert_eq!(shown, source);
        }
    }
}

//! How things are timed: in lanes that take turns, round by round. It knows nothing of what is measured.
//!
//! A *lane* is one contender: metricbus (the subject), the floor (the least that any implementation has to do), or a
//! peer. All lanes of an entry run in one process, one after the other, in short rounds, in another order each time
//! (A B C, C A B, B A C, …), so that what disturbs a machine (a neighbour, a frequency step) disturbs all of them alike,
//! and none always runs in the wake of the same other one. A lane's figure is the median of its rounds; a ratio is the
//! median of the ratios within each round.
//!
//! Every lane runs the same loop, [`spin`], around its own operation. How often it runs in a round is calibrated once,
//! so that a round lasts long enough for the clock not to matter.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use crate::Failure;

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// For checking that everything works rather than for figures.
    pub(crate) quick: bool,
}

impl Effort {
    /// Picks by effort: `(quick, full)`.
    pub(crate) fn pick<T>(self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }

    /// How often all entries are gone through. What disturbs the machine for some seconds then disturbs a part of the
    /// rounds of an entry and not all of them, and each pass lays its data elsewhere in memory.
    pub(crate) fn passes(self) -> usize {
        self.pick(1, 3)
    }

    /// The plan for operations of nanoseconds, in each pass.
    pub(crate) fn fast(self) -> Plan {
        Plan {
            rounds: self.pick(15, 81),
            round: self.pick(Duration::from_micros(200), Duration::from_micros(500)),
        }
    }
}

/// How many rounds, and how long each lane runs in one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) round: Duration,
}

/// What a lane is to the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// metricbus.
    Subject,
    /// The least that has to be done.
    Floor,
    /// The peer that the entry is compared with.
    Peer,
    /// Shown for orientation.
    Other,
}

/// Does its operation so many times; the time that took.
type Run<'a> = Box<dyn FnMut(u64) -> Result<Duration, Failure> + 'a>;

/// One contender.
pub(crate) struct Lane<'a> {
    pub(crate) role: Role,
    pub(crate) name: &'static str,
    run: Run<'a>,
}

impl<'a> Lane<'a> {
    /// A lane that measures itself: setting up and tidying between rounds stay outside of the time it returns.
    pub(crate) fn new(
        role: Role,
        name: &'static str,
        run: impl FnMut(u64) -> Result<Duration, Failure> + 'a,
    ) -> Self {
        Lane {
            role,
            name,
            run: Box::new(run),
        }
    }

    /// A lane that does `op` with `handle` in a loop.
    pub(crate) fn of<T: 'a>(
        role: Role,
        name: &'static str,
        handle: T,
        op: impl Fn(&T, usize) + Copy + 'a,
    ) -> Self {
        Lane::new(role, name, move |n| Ok(spin(&handle, n, op)))
    }
}

/// The loop of every lane. The operation gets the number of the iteration, to pick a value by.
///
/// The handle comes through a black box, so that the compiler knows nothing about what it points to. Within the loop
/// it stays as it is: a black box there would store and reload the pointer each time, and a store that the next atomic
/// has to wait for costs as much as what is measured.
#[inline(never)]
pub(crate) fn spin<T>(handle: &T, n: u64, op: impl Fn(&T, usize)) -> Duration {
    let handle = black_box(handle);
    let start = Instant::now();
    for i in 0..n as usize {
        op(handle, i);
    }
    start.elapsed()
}

/// The figures of an entry: for each lane one sample per round, in nanoseconds (or bytes) per operation.
pub(crate) struct Rounds {
    pub(crate) lanes: Vec<(Role, &'static str, Vec<f64>)>,
}

impl Rounds {
    /// The samples of the lane with this role, and its name.
    pub(crate) fn lane(&self, role: Role) -> Option<(&'static str, &[f64])> {
        let (_, name, samples) = self.lanes.iter().find(|(r, ..)| *r == role)?;
        Some((name, samples))
    }
}

/// Lets the lanes take turns, each for as long as the plan says.
pub(crate) fn interleave(plan: Plan, lanes: &mut [Lane<'_>]) -> Result<Rounds, Failure> {
    let mut times = Vec::new();
    for lane in lanes.iter_mut() {
        times.push(calibrate(lane, plan.round)?);
    }
    take_turns(plan.rounds, &times, lanes)
}

/// Lets the lanes take turns, each with the same number of operations in a round, after a round that is not counted.
/// For what behaves differently at the start of a round than later in it.
pub(crate) fn interleave_equal(
    rounds: usize,
    n: u64,
    lanes: &mut [Lane<'_>],
) -> Result<Rounds, Failure> {
    for lane in lanes.iter_mut() {
        (lane.run)(n)?;
    }
    take_turns(rounds, &vec![n; lanes.len()], lanes)
}

fn take_turns(rounds: usize, times: &[u64], lanes: &mut [Lane<'_>]) -> Result<Rounds, Failure> {
    let mut samples = vec![Vec::with_capacity(rounds); lanes.len()];
    let mut turns = Turns::new(lanes.len());
    for _ in 0..rounds {
        for &i in turns.shuffled() {
            let took = (lanes[i].run)(times[i])?;
            samples[i].push(took.as_nanos() as f64 / times[i] as f64);
        }
    }
    Ok(Rounds {
        lanes: lanes
            .iter()
            .zip(samples)
            .map(|(lane, samples)| (lane.role, lane.name, samples))
            .collect(),
    })
}

/// The order in which lanes take turns: another one each round, the same ones in every run.
pub(crate) struct Turns {
    order: Vec<usize>,
    random: Random,
}

impl Turns {
    pub(crate) fn new(lanes: usize) -> Turns {
        Turns {
            order: (0..lanes).collect(),
            random: Random::new(),
        }
    }

    /// Each lane once (Fisher and Yates).
    pub(crate) fn shuffled(&mut self) -> &[usize] {
        for left in (1..self.order.len()).rev() {
            let chosen = self.random.next() as usize % (left + 1);
            self.order.swap(left, chosen);
        }
        &self.order
    }
}

/// How often a lane's operation fits into a round. Warms it up on the way.
fn calibrate(lane: &mut Lane<'_>, round: Duration) -> Result<u64, Failure> {
    let mut n = 1;
    loop {
        let mut took = (lane.run)(n)?;
        if took < round {
            // The least of some tries: had somebody else had the processor meanwhile, all rounds would be too short.
            for _ in 0..4 {
                took = took.min((lane.run)(n)?);
            }
        }
        if took * 4 >= round {
            let fitting = n as f64 * round.as_secs_f64() / took.as_secs_f64().max(1e-9);
            return Ok((fitting.round() as u64).max(1));
        }
        n *= 2;
    }
}

/// How many values there are to set or observe. A short list teaches the branch predictor its values by heart.
pub(crate) const VALUES: usize = 1 << 16;

/// Unpredictable values, the same in every run.
pub(crate) struct Values(Box<[f64; VALUES]>);

impl Values {
    pub(crate) fn new(mut value: impl FnMut(&mut Random) -> f64) -> Values {
        let mut random = Random::new();
        let mut values = Box::new([0.0; VALUES]);
        values.fill_with(|| value(&mut random));
        Values(values)
    }

    /// From 0 to 1.
    pub(crate) fn unit() -> Values {
        Values::new(Random::unit)
    }

    /// Without a bounds check, as the index can't be out of bounds.
    #[inline(always)]
    pub(crate) fn get(&self, i: usize) -> f64 {
        self.0[i % VALUES]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = f64> {
        self.0.iter().copied()
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014), with a fixed seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new() -> Random {
        Random(0x6d65_7472_6963_6275)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// At least 0 and less than 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Waits until `done`, without giving the processor away at first. An error after ten seconds.
pub(crate) fn spin_until(what: &str, mut done: impl FnMut() -> bool) -> Result<(), Failure> {
    const SPINS_BEFORE_YIELDING: u32 = 10_000;
    const PATIENCE: Duration = Duration::from_secs(10);
    let mut start = None;
    let mut spins = 0_u32;
    while !done() {
        spins = spins.saturating_add(1);
        if spins < SPINS_BEFORE_YIELDING {
            std::hint::spin_loop();
            continue;
        }
        // On a busy machine the one waited for may need this very core.
        std::thread::yield_now();
        if start.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            return Err(format!("waited 10 s for {what} in vain").into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn each_lane_runs_once_in_every_round() {
        let order = RefCell::new(Vec::new());
        let lane = |name: &'static str| {
            let order = &order;
            Lane::new(Role::Other, name, move |n| {
                order.borrow_mut().push(name);
                Ok(Duration::from_millis(1) * n as u32)
            })
        };
        let plan = Plan {
            rounds: 30,
            round: Duration::from_millis(1),
        };
        let rounds = interleave(plan, &mut [lane("a"), lane("b"), lane("c")]).unwrap();
        // Each lane's first run is long enough.
        let calibration = 3;
        for round in order.borrow()[calibration..].chunks(3) {
            let mut round = round.to_vec();
            round.sort_unstable();
            assert_eq!(round, ["a", "b", "c"]);
        }
        assert!(
            rounds
                .lanes
                .iter()
                .all(|(.., samples)| samples == &[1e6; 30])
        );
    }

    #[test]
    fn no_lane_always_follows_the_same_one() {
        let mut turns = Turns::new(4);
        let mut follows = [[0; 4]; 4];
        for _ in 0..1000 {
            for pair in turns.shuffled().windows(2) {
                follows[pair[0]][pair[1]] += 1;
            }
        }
        for (i, row) in follows.iter().enumerate() {
            // 250 expected.
            assert!(
                row.iter().enumerate().all(|(j, n)| i == j || *n > 180),
                "{follows:?}"
            );
        }
    }

    #[test]
    fn a_round_is_calibrated_to_its_length() {
        let mut lane = Lane::new(Role::Other, "3 ns", |n| Ok(Duration::from_nanos(3 * n)));
        let n = calibrate(&mut lane, Duration::from_micros(300)).unwrap();
        assert_eq!(n, 100_000);
    }

    #[test]
    fn one_disturbed_try_does_not_shorten_all_rounds() {
        let mut tries = 0;
        let mut lane = Lane::new(Role::Other, "3 ns", move |n| {
            tries += 1;
            let disturbance = if tries == 17 { 200_000 } else { 0 };
            Ok(Duration::from_nanos(3 * n + disturbance))
        });
        let n = calibrate(&mut lane, Duration::from_micros(300)).unwrap();
        assert_eq!(n, 100_000);
    }

    #[test]
    fn what_is_slower_than_a_round_runs_once_in_it() {
        let mut lane = Lane::new(Role::Other, "1 s", |n| Ok(Duration::from_secs(n)));
        assert_eq!(calibrate(&mut lane, Duration::from_millis(1)).unwrap(), 1);
    }

    #[test]
    fn values_are_the_same_in_every_run_and_do_not_repeat() {
        let (a, b) = (Values::unit(), Values::unit());
        assert!(a.iter().eq(b.iter()));
        let mut sorted: Vec<f64> = a.iter().collect();
        sorted.sort_by(f64::total_cmp);
        sorted.dedup();
        assert!(sorted.len() > VALUES - 8);
        assert!(sorted.iter().all(|v| (0.0..1.0).contains(v)));
    }
}

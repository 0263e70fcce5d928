//! What people see: a header, a bar and what fires while it runs, tables at the end. Computes no more than the tables.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write as _},
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    SIZE, TARGETS,
    cli::Speed,
    fleet::Books,
    planner::Action,
    signals::{News, Quantity, Signal},
    simulation::{CALLBACKS, Cause, FIXED, Notice, POLL_PERIODS, Sighting, Simulation},
    truth::{self, Excursion},
    worker::Role,
};

/// Between two drawings of the bar on a terminal, and between two lines about progress elsewhere.
const FRAME: Duration = Duration::from_millis(100);
const LINE: Duration = Duration::from_secs(5);

pub fn header(
    source: &str,
    simulation: &Simulation,
    requests: usize,
    speed: Speed,
    metrics: Option<SocketAddr>,
) {
    let length = simulation.length();
    let speed = match speed {
        Speed::Max => "as fast as it can".to_owned(),
        Speed::Times(times) => {
            let real = length.div_f64(times).as_secs_f64();
            format!("{times:.0} times real time, so about {real:.0} s (--speed max: no waiting)")
        }
    };
    let metrics = metrics.map_or("none".into(), |at| {
        format!("http://{at}/metrics, until the end")
    });
    let ([prefill, decode], [prefill_max, decode_max]) = (SIZE.min, SIZE.max);
    say(&format!(
        "\
A planner for a fleet of LLM workers, on metricbus

  requests  {source}: {} over {}
  speed     {speed}
  fleets    five, side by side, with the same requests: one that stays as it is, one whose
            planner hears by callback, three whose planners poll every 1, 5 and 15 s
  workers   {prefill} prefill and {decode} decode; planners go up to {prefill_max} and {decode_max}, \
and a new one serves after {} s
  targets   first token within {} s; {} ms from token to token, on average over a request
  metrics   {metrics}

What fires on the fleet with callbacks, in trace time, and what its planner does:

",
        grouped(requests as u64),
        clock(length),
        SIZE.start_up.as_secs(),
        TARGETS.ttft.as_secs_f64(),
        TARGETS.itl.as_millis(),
    ));
}

/// Prints. Whoever read this may have seen enough (`| head`), which is no error.
fn say(text: &str) {
    let mut out = io::stdout().lock();
    if out
        .write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .is_err()
    {
        std::process::exit(0);
    }
}

/// What is shown while the simulation runs.
pub struct Live {
    terminal: bool,
    started: Instant,
    next: Duration,
}

impl Live {
    pub fn new() -> Live {
        let terminal = io::stdout().is_terminal();
        Live {
            terminal,
            started: Instant::now(),
            next: if terminal { FRAME } else { LINE },
        }
    }

    /// Shows what a planner heard and did, if it is the one with callbacks.
    pub fn notice(&mut self, notice: &Notice<'_>) {
        if notice.contestant != CALLBACKS {
            return;
        }
        let (who, what) = match (&notice.cause, &notice.change) {
            // That it is over again is of interest to the planner only.
            (Cause::Signal(signal), _) if signal.news == News::Cleared => return,
            (Cause::Signal(signal), _) => (signal.worker.as_str(), heard(signal)),
            (Cause::Load(_), None) => return,
            (Cause::Load(load), Some(change)) => {
                let role = change.role();
                let what = match (change.action, role, load) {
                    (Action::Add(_), ..) => "still over its limit".into(),
                    (_, _, None) => "idle".into(),
                    (_, Role::Prefill, Some(load)) => format!("busy {load:.2} of 30 s"),
                    (_, Role::Decode, Some(load)) => format!("KV usage {load:.2} over 30 s"),
                };
                (role.name(), what)
            }
        };
        let done = match &notice.change {
            Some(change) => {
                let verb = match change.action {
                    Action::Add(_) => "add",
                    Action::Remove(_) => "remove",
                };
                let (before, after) = (change.before, change.after);
                format!("{verb} {}: {before} → {after}", change.worker)
            }
            None if notice.count.starting > 0 => "(one is starting)".to_owned(),
            None => "(as many as there may be)".to_owned(),
        };
        self.clear();
        say(&format!(
            "  {:>7}  {who:<10} {what:<26} {done}\n",
            clock(notice.at)
        ));
        if self.terminal {
            // The bar comes back at once.
            self.next = Duration::ZERO;
        }
    }

    /// Draws the bar when it is time to.
    pub fn progress(&mut self, simulation: &Simulation) {
        let elapsed = self.started.elapsed();
        if elapsed < self.next {
            return;
        }
        self.next = elapsed + if self.terminal { FRAME } else { LINE };
        let (now, length) = (simulation.now(), simulation.length());
        let share = now.as_secs_f64() / length.as_secs_f64().max(1e-9);
        let books = |index: usize| simulation.contestants[index].fleet.books;
        let missed = format!(
            "SLA misses: {} fixed, {} with callbacks",
            grouped(books(FIXED).missed),
            grouped(books(CALLBACKS).missed)
        );
        if self.terminal {
            let full = ((share * 24.0) as usize).min(24);
            let bar = format!("[{}{}]", "#".repeat(full), "-".repeat(24 - full));
            let (now, length) = (clock(now), clock(length));
            say(&format!("\r\x1b[K  {bar} {now} of {length}  {missed}"));
        } else {
            let percent = (share * 100.0).min(100.0);
            let (now, length) = (clock(now), clock(length));
            say(&format!(
                "  -- {percent:3.0} %, {now} of {length}; {missed}\n"
            ));
        }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        if self.terminal {
            say("\r\x1b[K");
        }
    }
}

fn heard(signal: &Signal) -> String {
    let value = signal.value;
    match (signal.quantity, signal.news) {
        (Quantity::KvUsage, _) => format!("KV usage {value:.3} > {}", truth::KV.raise),
        (Quantity::PrefillQueue, _) => format!("queue {value} > {}", truth::QUEUE.raise),
        (Quantity::DecodeQueue, News::Jumped(from)) => format!("queue grew from {from} to {value}"),
        (Quantity::DecodeQueue, _) => format!("queue {value}"),
    }
}

/// How a detector did.
struct Detector {
    name: String,
    /// How to write its times: callbacks take microseconds, polls are never better than a fraction of their period.
    text: fn(Duration) -> String,
    /// From onset to sight of each overload, `None` where it was over before it was seen.
    delays: Vec<Option<Duration>>,
    /// Excursions that it saw and that harmed nobody.
    false_triggers: usize,
}

impl Detector {
    fn judge(
        name: String,
        text: fn(Duration) -> String,
        excursions: &[Excursion],
        sightings: &[Sighting],
    ) -> Detector {
        let delay = |e: &Excursion| {
            let within = |s: &&Sighting| s.role == e.role && s.at >= e.onset && s.at <= e.end;
            sightings
                .iter()
                .find(within)
                .map(|s| s.at - e.onset + s.took)
        };
        let (overloads, harmless): (Vec<_>, Vec<_>) =
            excursions.iter().partition(|e| e.is_overload());
        Detector {
            name,
            text,
            delays: overloads.into_iter().map(delay).collect(),
            false_triggers: harmless.into_iter().filter_map(delay).count(),
        }
    }

    fn seen(&self) -> usize {
        self.delays.iter().flatten().count()
    }

    fn sorted(&self) -> Vec<Duration> {
        let mut delays: Vec<_> = self.delays.iter().flatten().copied().collect();
        delays.sort();
        delays
    }
}

/// The tables, the footnotes and what follows from them.
pub fn tables(simulation: &Simulation, elapsed: Duration) {
    let fixed = &simulation.contestants[FIXED].fleet;
    let excursions = fixed.truth.excursions();
    let overloads: Vec<_> = excursions.iter().filter(|e| e.is_overload()).collect();
    let mut detectors = Vec::new();
    for (index, sightings) in simulation.sightings.iter().enumerate() {
        let (name, text): (_, fn(_) -> _) = match index.checked_sub(1) {
            None => ("callback".to_owned(), span),
            Some(i) => (format!("poll {} s", POLL_PERIODS[i].as_secs()), seconds),
        };
        detectors.push(Detector::judge(name, text, &excursions, sightings));
    }
    say(&format!(
        "
Overload episodes of the fixed fleet, and the time from onset until it was seen

{}
What the planners made of it

{}
{}
{}
",
        episodes(&overloads, &detectors),
        fleets(simulation),
        footnotes(simulation, &excursions, elapsed),
        conclusion(simulation, &overloads, &detectors),
    ));
}

fn episodes(overloads: &[&Excursion], detectors: &[Detector]) -> String {
    let mut out = String::new();
    let mut row = |cells: [&str; 5], times: &mut dyn Iterator<Item = String>| {
        let [onset, lasted, role, peak, misses] = cells;
        let _ = write!(
            out,
            "  {onset:>7}  {lasted:>7}  {role:<7}  {peak:>5}  {misses:>6}"
        );
        for time in times {
            let _ = write!(out, "  {time:>9}");
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    };
    let names = &mut detectors.iter().map(|d| d.name.clone());
    row(["onset", "lasted", "role", "peak", "misses"], names);
    for (index, overload) in overloads.iter().enumerate() {
        let peak = match overload.role {
            Role::Prefill => format!("{:.0}", overload.peak),
            Role::Decode => format!("{:.2}", overload.peak),
        };
        let cells = [
            &*clock(overload.onset),
            &seconds(overload.end - overload.onset),
            overload.role.name(),
            &peak,
            &grouped(overload.misses),
        ];
        let times = detectors
            .iter()
            .map(|d| d.delays[index].map_or("not seen".into(), d.text));
        row(cells, &mut times.into_iter());
    }
    if overloads.is_empty() {
        row(["none", "", "", "", ""], &mut std::iter::empty());
    }
    let summary = |title: &str, value: &dyn Fn(&Detector) -> String| {
        let mut line = format!("  {title:<40}");
        for detector in detectors {
            let _ = write!(line, "  {:>9}", value(detector));
        }
        line + "\n"
    };
    let of = |detector: &Detector, share: f64| {
        let delays = detector.sorted();
        let index = (delays.len().saturating_sub(1) as f64 * share).round() as usize;
        delays.get(index).copied().map_or("-".into(), detector.text)
    };
    out += &summary("seen", &|d| format!("{} of {}", d.seen(), overloads.len()));
    out += &summary("time to see it, median", &|d| of(d, 0.5));
    out += &summary("time to see it, longest", &|d| of(d, 1.0));
    out += &summary("false triggers", &|d| d.false_triggers.to_string());
    out
}

fn fleets(simulation: &Simulation) -> String {
    let mut out = format!(
        "  {:<22} {:>10} {:>8} {:>8} {:>8}   {:>5} {:>7} {:>6}  {:>12}\n",
        "planner", "SLA misses", "share", "TTFT", "ITL", "added", "removed", "most", "worker hours"
    );
    for (index, contestant) in simulation.contestants.iter().enumerate() {
        let Books {
            arrived,
            missed,
            missed_ttft,
            missed_itl,
            added,
            removed,
            peak: [prefill, decode],
            worker_time,
            ..
        } = contestant.fleet.books;
        let title = match index {
            FIXED => "none, the fleet is fixed".to_owned(),
            CALLBACKS => "hears by callback".to_owned(),
            _ => format!("polls every {} s", POLL_PERIODS[index - 2].as_secs()),
        };
        let share = 100.0 * missed as f64 / arrived.max(1) as f64;
        let _ = writeln!(
            out,
            "  {title:<24} {:>8} {share:>6.2} % {:>8} {:>8}   {added:>5} {removed:>7} {:>6}  {:>12.2}",
            grouped(missed),
            grouped(missed_ttft),
            grouped(missed_itl),
            format!("{prefill}+{decode}"),
            worker_time.as_secs_f64() / 3600.0,
        );
    }
    out
}

fn footnotes(simulation: &Simulation, excursions: &[Excursion], elapsed: Duration) -> String {
    let fixed = &simulation.contestants[FIXED].fleet;
    let mut took = simulation.took.clone();
    took.sort();
    let at = |share: f64| {
        let index = (took.len().saturating_sub(1) as f64 * share).round() as usize;
        took.get(index).copied().map_or("-".into(), span)
    };
    let lines = [
        format!(
            "- An episode begins when a decode worker's KV usage goes over {} or a prefill worker's queue",
            truth::KV.raise
        ),
        format!(
            "  over {}, and ends when all are back under {} and {}; two less than {} s apart are one. It is in",
            truth::QUEUE.raise,
            truth::KV.clear,
            truth::QUEUE.clear,
            truth::MERGE.as_secs()
        ),
        format!(
            "  the table if a request missed its target there meanwhile. {} more harmed nobody: to fire on",
            excursions.iter().filter(|e| !e.is_overload()).count()
        ),
        format!(
            "  one is a false trigger. Outside of any, {} targets were missed.",
            grouped(fixed.truth.missed_outside)
        ),
        "- All look for the same limits. Polls are late in trace time; callbacks in real time, from the".into(),
        format!(
            "  mutation to the callback: of {}, half took up to {}, 99 % up to {}, all up to {}.",
            grouped(took.len() as u64),
            at(0.5),
            at(0.99),
            at(1.0)
        ),
        "- TTFT, ITL: requests that missed that target. Most: prefill + decode workers, each at its peak.".into(),
        format!(
            "  Worker hours: from the decision to add a worker until it has gone. The run took {:.1} s.",
            elapsed.as_secs_f64()
        ),
    ];
    lines.map(|line| line + "\n").concat()
}

fn conclusion(simulation: &Simulation, overloads: &[&Excursion], detectors: &[Detector]) -> String {
    let books = |index: usize| simulation.contestants[index].fleet.books;
    let (fixed, callbacks) = (books(FIXED), books(CALLBACKS));
    let change = |from: f64, to: f64| match 100.0 * (to - from) / from.max(1e-9) {
        less if less < 0.0 => format!("{:.0} % less", -less),
        more => format!("{more:.0} % more"),
    };
    if overloads.is_empty() {
        return "There was no overload: these requests are no task for a planner.".into();
    }
    let seen = |detector: Option<&Detector>| detector.map_or(0, Detector::seen);
    format!(
        "Of {} overloads, callbacks saw {} and polling every 15 s saw {}.\n\
         SLA misses went from {} to {} with a planner on callbacks ({}), for {} worker time.",
        overloads.len(),
        seen(detectors.first()),
        seen(detectors.last()),
        grouped(fixed.missed),
        grouped(callbacks.missed),
        change(fixed.missed as f64, callbacks.missed as f64),
        change(
            fixed.worker_time.as_secs_f64(),
            callbacks.worker_time.as_secs_f64()
        ),
    )
}

/// A time of the trace: `12:03.4`.
fn clock(time: Duration) -> String {
    let tenths = time.as_millis() / 100;
    let (minutes, tenths) = (tenths / 600, tenths % 600);
    format!("{minutes:02}:{:02}.{}", tenths / 10, tenths % 10)
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// A duration with the unit that suits it.
fn span(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s >= 0.05 => format!("{s:.1} s"),
        s if s >= 0.001 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.0} µs", s * 1e6),
    }
}

/// `19 366`
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn excursion(onset: u64, end: u64, misses: u64) -> Excursion {
        Excursion {
            role: Role::Decode,
            onset: secs(onset),
            end: secs(end),
            peak: 0.95,
            misses,
        }
    }

    #[test]
    fn a_detector_is_judged_by_what_it_sees_while_it_lasts() {
        let excursions = [
            excursion(10, 14, 3),
            excursion(30, 31, 0),
            excursion(50, 52, 1),
        ];
        let sighting = |at| Sighting {
            role: Role::Decode,
            at: secs(at),
            took: Duration::ZERO,
        };
        let sightings = [sighting(12), sighting(13), sighting(30), sighting(60)];
        let detector = Detector::judge("poll".into(), seconds, &excursions, &sightings);
        assert_eq!(detector.delays, [Some(secs(2)), None]);
        assert_eq!((detector.seen(), detector.false_triggers), (1, 1));
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(grouped(19_366), "19 366");
        assert_eq!(grouped(7), "7");
        assert_eq!(clock(Duration::from_millis(723_460)), "12:03.4");
        assert_eq!(span(Duration::from_micros(31)), "31 µs");
        assert_eq!(span(Duration::from_millis(2500)), "2.5 s");
    }
}

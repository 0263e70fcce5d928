//! What rules remember is bounded, however often series and rules come and go: counted by the allocator, in the thread in
//! which everything happens on the virtual clock.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    time::Duration,
};

use metricbus::{
    AlertState, Clock, Condition, Desc, Expr, Family, Gauge, MetricBus, Rule, RuleState, Threshold,
};

struct Counting;

thread_local! {
    static BYTES: Cell<i64> = const { Cell::new(0) };
}

fn count(by: i64) {
    // Whatever is freed while the thread ends counts for nobody.
    let _ = BYTES.try_with(|bytes| bytes.set(bytes.get() + by));
}

// SAFETY: every call goes to the system's allocator as it came; counting touches a thread-local without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: the caller keeps to the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// By how much memory grows from one time at which `f` has been done so often to another.
fn growth(warm: usize, times: usize, mut f: impl FnMut(usize)) -> i64 {
    (0..warm).for_each(&mut f);
    let before = BYTES.get();
    (warm..times).for_each(&mut f);
    BYTES.get() - before
}

/// Small tables may be larger by a doubling; what is left behind each time is more than that.
const SLACK: i64 = 16 << 10;

/// As the table of 10 000 epochs may.
const TABLE: i64 = 640 << 10;

fn bus() -> (MetricBus, Clock) {
    let clock = Clock::manual();
    (MetricBus::builder().clock(clock.clone()).build(), clock)
}

fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn full() -> Condition {
    Condition::when("kv", Threshold::above(0.9).clear_below(0.8))
}

fn workers(bus: &MetricBus) -> Family<Gauge> {
    let desc = Desc::new("kv", "Share of KV blocks in use.").labels(["worker"]);
    bus.family(desc).unwrap()
}

fn one(family: &Family<Gauge>, worker: usize) -> Gauge {
    family.with_label_values(&[worker.to_string()]).unwrap()
}

fn gone(family: &Family<Gauge>, worker: usize) {
    assert!(family.remove(&[worker.to_string()]).unwrap());
}

/// A rule of each kind, with times that are long.
fn rules() -> Vec<Rule> {
    let share = Expr::value("kv") / Expr::value("kv_limit");
    let average = Expr::over("kv", secs(10)).avg();
    let never = Threshold::above(1e9).clear_below(1e8);
    let hour = secs(3_600);
    vec![
        Rule::new("Full", full()),
        Rule::new("Held", full())
            .hold_for(hour)
            .keep_firing_for(hour),
        Rule::new("Any", full()).any().hold_for(hour),
        Rule::new("Often", full()).m_of_n(3, 5, hour),
        Rule::new("Silent", Condition::stale("kv", hour)),
        Rule::new("Gone", Condition::gone("kv", secs(60))),
        Rule::new("Share", Condition::when(share, never)),
        Rule::new("Sum", Condition::when(Expr::sum("kv"), never)),
        Rule::new("Average", Condition::when(average, never)).every(secs(600)),
    ]
}

#[test]
fn rules_that_were_removed_leave_nothing_behind() {
    let (bus, clock) = bus();
    bus.gauge("kv_limit", "kv").unwrap().set(1.0);
    let kv = one(&workers(&bus), 0);
    for rule in rules() {
        let name = rule.name().to_owned();
        let grown = growth(500, 10_000, |i| {
            let live = bus.add_rule(rule.clone()).unwrap();
            kv.set(if i % 2 == 0 { 0.95 } else { 0.1 });
            clock.advance(Duration::from_millis(1));
            assert!(live.remove());
        });
        assert!(grown < SLACK, "{name}: {grown} bytes more");
    }
}

#[test]
fn series_that_were_removed_leave_nothing_behind() {
    for rule in rules() {
        let (bus, clock) = bus();
        bus.gauge("kv_limit", "kv").unwrap().set(1.0);
        let family = workers(&bus);
        let name = rule.name().to_owned();
        let live = bus.add_rule(rule).unwrap();
        // The first ones are those until as many epochs are remembered as ever are.
        let grown = growth(11_000, 22_000, |i| {
            one(&family, i).set(0.95);
            if i >= 10 {
                gone(&family, i - 10);
            }
            clock.advance(Duration::from_millis(100));
        });
        assert!(grown < TABLE, "{name}: {grown} bytes more");
        assert!(live.status().series <= 620, "{:?}", live.status());
    }
}

#[test]
fn a_series_that_comes_and_goes_leaves_nothing_behind() {
    for rule in rules() {
        let (bus, clock) = bus();
        bus.gauge("kv_limit", "kv").unwrap().set(1.0);
        let family = workers(&bus);
        let name = rule.name().to_owned();
        bus.add_rule(rule).unwrap();
        let grown = growth(1_000, 30_000, |_| {
            one(&family, 0).set(0.95);
            one(&family, 0).set(0.1);
            gone(&family, 0);
            clock.advance(Duration::from_micros(10));
        });
        assert!(grown < SLACK, "{name}: {grown} bytes more");
    }
}

#[test]
fn short_times_under_a_long_one_leave_no_timers_behind() {
    let (bus, clock) = bus();
    let family = workers(&bus);
    let missing = Condition::gone("kv", secs(1_000_000));
    let rule = Rule::new("FullOrGone", full().or(missing)).hold_for(secs(1));
    let live = bus.add_rule(rule).unwrap();
    one(&family, 0).set(0.1);
    gone(&family, 0);
    let kv = one(&family, 1);
    let grown = growth(100, 20_000, |_| {
        kv.set(0.95);
        clock.advance(secs(2));
        kv.set(0.1);
    });
    assert!(grown < SLACK, "{grown} bytes more");
    assert_eq!(live.status().fired, 20_001);
}

#[test]
fn a_series_that_is_gone_again_is_so_for_the_whole_time() {
    let (bus, clock) = bus();
    let family = workers(&bus);
    let rule = bus
        .add_rule(Rule::new("Gone", Condition::gone("kv", secs(60))))
        .unwrap();
    one(&family, 0).set(0.1);
    gone(&family, 0);
    clock.advance(secs(10));
    one(&family, 0).set(0.1);
    clock.advance(secs(10));
    gone(&family, 0);
    clock.advance(secs(59));
    assert_eq!(rule.status().state, RuleState::Firing);
    clock.advance(secs(1));
    assert_eq!(rule.status().state, RuleState::Inactive);
    let told: Vec<_> = rule.history().iter().map(|a| (a.at, a.state)).collect();
    let at = |s| metricbus::Time::ZERO + secs(s);
    assert_eq!(
        told,
        [
            (at(0), AlertState::Firing),
            (at(10), AlertState::Resolved),
            (at(20), AlertState::Firing),
            (at(80), AlertState::Resolved),
        ]
    );
}

#[test]
fn two_busy_series_with_the_same_labels_are_both_heard_again() {
    let (bus, clock) = bus();
    let silent = Condition::stale(r#"{__name__=~"in|out"}"#, secs(10));
    let other = Condition::when("limit", Threshold::above(1e9));
    let rule = bus.add_rule(Rule::new("Silent", silent.or(other))).unwrap();
    bus.gauge("limit", "limit").unwrap().set(1.0);
    let (busy, quiet) = (
        bus.gauge("in", "in").unwrap(),
        bus.gauge("out", "out").unwrap(),
    );
    for i in 0..20 {
        busy.set(f64::from(i));
        quiet.set(f64::from(i));
    }
    // From here on only the one is mutated, and still the labels are not silent.
    for i in 0..30 {
        clock.advance(secs(1));
        busy.set(f64::from(i));
    }
    assert_eq!(rule.status().state, RuleState::Inactive, "{rule:?}");
    clock.advance(secs(11));
    assert_eq!(rule.status().state, RuleState::Firing);
}

#[test]
fn one_group_that_comes_and_goes_does_not_make_others_be_forgotten() {
    let (bus, _clock) = bus();
    let family = workers(&bus);
    let rule = bus.add_rule(Rule::new("Full", full())).unwrap();
    let come_and_go = |worker| {
        one(&family, worker).set(0.95);
        gone(&family, worker);
    };
    come_and_go(1);
    (0..10_100).for_each(|_| come_and_go(2));
    come_and_go(1);
    come_and_go(2);
    let last = rule.history().into_iter().rev();
    let epochs: Vec<_> = last.map(|alert| alert.epoch).take(3).collect();
    assert_eq!(epochs, [20_202, 20_201, 4]);
}

/// What one can do with a rule's parts, on the small stack of a test's thread.
fn use_up(expr: Expr, condition: Condition) -> (Option<String>, Option<String>) {
    let copy = (expr.clone(), condition.clone());
    assert!(copy == (expr.clone(), condition.clone()));
    let texts = [
        format!("{expr} {condition}"),
        format!("{expr:?} {condition:?}"),
    ];
    assert!(texts.iter().all(|text| !text.is_empty()));
    let bus = MetricBus::new();
    let derived = bus.derive(Desc::new("derived", "Of a test."), expr);
    let rule = bus.add_rule(Rule::new("rule", condition));
    for i in 0..2 {
        bus.gauge("a", "Of a test.").unwrap().set(f64::from(i));
    }
    if let Ok(rule) = &rule {
        assert!(!format!("{:?}", rule.status()).is_empty());
    }
    let why = |error: metricbus::RuleError| error.to_string();
    (derived.err().map(why), rule.err().map(why))
}

fn over(expr: impl Into<Expr>) -> Condition {
    Condition::when(expr, Threshold::above(0.5))
}

#[test]
fn nested_expressions_are_bounded() {
    let a = || Expr::value("a");
    let deep: [fn(Expr) -> Expr; 4] = [
        |expr| expr + 1.0,
        |expr| Expr::value("a") - expr,
        |expr| expr.scaled(0.0, 1.0),
        |expr| expr.ewma(Duration::from_secs(1)),
    ];
    for deeper in deep {
        let nest = |n| (1..n).fold(a(), |expr, _| deeper(expr));
        assert_eq!(use_up(nest(256), over(nest(256))), (None, None));
        let (derived, rule) = use_up(nest(100_000), over(nest(100_000)));
        assert!(derived.unwrap().contains("nested more than 256 deep"));
        assert!(rule.unwrap().contains("nested more than 256 deep"));
    }
    // Shallow, and wide: each time twice as much of it.
    let wide = (0..14).fold(a(), |expr, _| expr.clone() + expr);
    let (derived, _) = use_up(wide.clone(), over(wide));
    assert!(
        derived
            .unwrap()
            .contains("more than 1000 series or selectors")
    );
}

#[test]
fn conditions_joined_are_bounded() {
    let deep: [fn(Condition) -> Condition; 4] = [
        |condition| condition & over("a"),
        |condition| over("a") | condition,
        |condition| !condition,
        |condition| !(condition | over("a")),
    ];
    for deeper in deep {
        let nest = |n| (1..n).fold(over("a"), |condition, _| deeper(condition));
        assert_eq!(use_up(Expr::value("a"), nest(128)), (None, None));
        let (_, rule) = use_up(Expr::value("a"), nest(10_000));
        assert!(
            rule.unwrap()
                .contains("conditions are nested more than 256 deep")
        );
    }
    let wide = (0..14).fold(over("a"), |condition, _| condition.clone() & condition);
    let (_, rule) = use_up(Expr::value("a"), wide);
    assert!(rule.unwrap().contains("more than 1000 series or selectors"));
}

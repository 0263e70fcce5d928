//! Recording, reading, and replaying.
#![cfg(feature = "backtest")]

use std::{io::Write, path::PathBuf, time::Duration};

use metricbus::{
    Alert, Buckets, Change, Clock, Condition, Counter, Desc, Expr, Gauge, Histogram, MetricBus,
    MetricKind, Rule, Threshold, Value,
    backtest::{
        CsvColumns, CsvError, Entry, ReadError, RecordError, Recorder, Recording, Replay,
        ReplayError,
    },
};
use proptest::prelude::*;
use tempfile::TempDir;

struct Bench {
    dir: TempDir,
    clock: Clock,
    bus: MetricBus,
}

impl Bench {
    fn new() -> Bench {
        let clock = Clock::manual();
        Bench {
            dir: tempfile::tempdir().unwrap(),
            bus: MetricBus::builder().clock(clock.clone()).build(),
            clock,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("test.rec")
    }

    fn record(&self, selector: &str) -> Recorder {
        Recorder::start(&self.bus, selector, self.path()).unwrap()
    }

    fn entries(&self) -> Vec<Entry> {
        entries(&Recording::open(self.path()).unwrap())
    }

    /// Lets `millis` pass.
    fn pass(&self, millis: u64) {
        self.clock.advance(Duration::from_millis(millis));
    }
}

fn entries(recording: &Recording) -> Vec<Entry> {
    recording
        .entries()
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap()
}

/// Mutations as `at series change`, without the rest.
fn mutations(entries: &[Entry]) -> Vec<(f64, String, Change)> {
    entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::Mutation { at, series, change } => {
                Some((at.as_secs_f64(), series.to_string(), *change))
            }
            _ => None,
        })
        .collect()
}

fn set(before: f64, after: f64) -> Change {
    Change::Set { before, after }
}

#[test]
fn what_was_mutated_is_in_the_file_with_its_time() {
    let bench = Bench::new();
    let workers = bench
        .bus
        .family::<Gauge>(
            Desc::new("kv_ratio", "Usage.")
                .unit("ratio")
                .labels(["worker"]),
        )
        .unwrap();
    let requests = bench.bus.counter("requests_total", "Requests.").unwrap();
    let latency = bench
        .bus
        .histogram("latency", "Latency.", Buckets::new([1.0, 2.0]).unwrap())
        .unwrap();
    let a = workers.with_label_values(&["a"]).unwrap();
    a.set(0.25);
    requests.inc_by(7);
    latency.observe(1.5);
    bench.pass(1_000);

    let recorder = bench.record(r#"{__name__!=""}"#);
    a.set(0.5);
    bench.pass(250);
    requests.inc_by(3);
    workers.with_label_values(&["b\"\n"]).unwrap().set(f64::NAN);
    latency.observe(0.1);
    bench.pass(750);
    let summary = recorder.finish().unwrap();
    assert_eq!(
        (summary.mutations, summary.dropped, summary.series),
        (4, 0, 4)
    );
    assert_eq!(summary.span, Duration::from_secs(1));
    assert_eq!(
        summary.bytes,
        std::fs::metadata(bench.path()).unwrap().len()
    );

    let entries = bench.entries();
    let begun = entries.iter().position(|e| *e == Entry::Begun).unwrap();
    let bases: Vec<_> = entries[..begun]
        .iter()
        .map(|entry| match entry {
            Entry::Series { at, series, value } => (at.as_secs_f64(), series.to_string(), *value),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        bases,
        [
            (
                1.0,
                r#"kv_ratio{worker="a"}"#.to_owned(),
                Some(Value::F64(0.25))
            ),
            (1.0, "latency".to_owned(), Some(Value::U64(1))),
            (1.0, "requests_total".to_owned(), Some(Value::U64(7))),
        ]
    );
    let told = mutations(&entries);
    assert_eq!(
        told[0],
        (1.0, r#"kv_ratio{worker="a"}"#.to_owned(), set(0.25, 0.5))
    );
    assert_eq!(
        told[1],
        (
            1.25,
            "requests_total".to_owned(),
            Change::Counted {
                before: Value::U64(7),
                after: Value::U64(10)
            }
        )
    );
    assert_eq!(told[2].1, r#"kv_ratio{worker="b\"\n"}"#);
    assert!(matches!(told[2].2, Change::Set { before: 0.0, after } if after.is_nan()));
    assert_eq!(told[3].2, Change::Observed { value: 0.1 });
    match entries.last() {
        Some(Entry::End { at }) => assert_eq!(at.as_secs_f64(), 2.0),
        other => panic!("{other:?}"),
    }
    for entry in &entries {
        if let Entry::Series { series, value, .. } = entry {
            if series.name() == "kv_ratio" {
                assert_eq!(series.unit(), Some("ratio"));
                assert_eq!(series.kind(), MetricKind::Gauge);
                assert_eq!(series.help(), "Usage.");
            }
            if series.labels() == [("worker".to_owned(), "b\"\n".to_owned())] {
                assert_eq!(*value, None, "nobody had set it when it was made");
            }
            if series.kind() == MetricKind::Histogram {
                assert_eq!(series.bounds(), [1.0, 2.0]);
            }
        }
    }
}

#[test]
fn only_the_selected_series_are_recorded() {
    let bench = Bench::new();
    let (a, b) = (
        bench.bus.gauge("a", "a").unwrap(),
        bench.bus.gauge("b", "b").unwrap(),
    );
    let recorder = bench.record("a");
    a.set(1.0);
    b.set(1.0);
    assert_eq!(recorder.finish().unwrap().mutations, 1);
}

#[test]
fn a_series_comes_and_goes_in_its_place() {
    let bench = Bench::new();
    let workers = bench
        .bus
        .family::<Gauge>(Desc::new("kv", "Usage.").labels(["worker"]))
        .unwrap();
    let recorder = bench.record("kv");
    bench.pass(1);
    workers.with_label_values(&["a"]).unwrap().set(1.0);
    bench.pass(1);
    workers.remove(&["a"]).unwrap();
    bench.pass(1);
    workers.with_label_values(&["b"]).unwrap();
    bench.pass(1);
    workers.with_label_values(&["a"]).unwrap().set(2.0);
    recorder.finish().unwrap();

    let told: Vec<_> = bench
        .entries()
        .iter()
        .map(|entry| match entry {
            Entry::Series { at, series, .. } => (at.as_nanos() / 1_000_000, format!("+{series}")),
            Entry::Removed { at, series } => (at.as_nanos() / 1_000_000, format!("-{series}")),
            Entry::Mutation { at, series, .. } => (at.as_nanos() / 1_000_000, series.to_string()),
            Entry::Begun => (0, "begun".to_owned()),
            Entry::End { at } => (at.as_nanos() / 1_000_000, "end".to_owned()),
            other => panic!("{other:?}"),
        })
        .collect();
    let told: Vec<_> = told.iter().map(|(at, what)| (*at, what.as_str())).collect();
    assert_eq!(
        told,
        [
            (0, "begun"),
            (1, r#"+kv{worker="a"}"#),
            (1, r#"kv{worker="a"}"#),
            (2, r#"-kv{worker="a"}"#),
            (3, r#"+kv{worker="b"}"#),
            (4, r#"+kv{worker="a"}"#),
            (4, r#"kv{worker="a"}"#),
            (4, "end"),
        ]
    );
}

#[test]
fn a_recorder_that_is_dropped_finishes() {
    let bench = Bench::new();
    let gauge = bench.bus.gauge("a", "a").unwrap();
    let recorder = bench.record("a");
    gauge.set(1.0);
    drop(recorder);
    assert_eq!(mutations(&bench.entries()).len(), 1);
}

#[test]
fn the_end_of_the_bus_is_the_end_of_the_recording() {
    let bench = Bench::new();
    let path = bench.path();
    let gauge = bench.bus.gauge("a", "a").unwrap();
    let recorder = bench.record("a");
    gauge.set(1.0);
    drop(bench.bus);
    gauge.set(2.0);
    assert_eq!(recorder.finish().unwrap().mutations, 1);
    assert_eq!(
        mutations(&entries(&Recording::open(path).unwrap())).len(),
        1
    );
}

#[test]
fn every_mutation_of_threads_at_full_speed_is_there_or_counted() {
    let dir = tempfile::tempdir().unwrap();
    let bus = MetricBus::new();
    let counters: Vec<_> = (0..2)
        .map(|i| {
            let desc = Desc::new("c_total", "c").label("i", i.to_string());
            bus.declare::<Counter>(desc).unwrap()
        })
        .collect();
    let path = dir.path().join("fast.rec");
    let recorder = Recorder::start(&bus, "c_total", &path).unwrap();
    const N: u64 = 100_000;
    std::thread::scope(|scope| {
        for counter in &counters {
            scope.spawn(move || (0..N).for_each(|_| counter.inc()));
        }
    });
    let summary = recorder.finish().unwrap();
    assert_eq!(summary.mutations + summary.dropped, 2 * N);
    // Whatever was dropped, the last value is right.
    let mut last = [0, 0];
    let mut dropped = 0;
    for entry in entries(&Recording::open(&path).unwrap()) {
        match entry {
            Entry::Mutation {
                series,
                change:
                    Change::Counted {
                        after: Value::U64(after),
                        before: Value::U64(before),
                    },
                ..
            } => {
                assert_eq!(before, last[series.index()]);
                last[series.index()] = after;
            }
            Entry::Dropped { mutations, .. } => dropped += mutations,
            _ => {}
        }
    }
    assert_eq!(last, [N, N]);
    assert_eq!(dropped, summary.dropped);
}

#[test]
fn a_path_that_cannot_be_written_to_is_an_error_that_names_it() {
    let bench = Bench::new();
    let path = bench.dir.path().join("no/such/directory.rec");
    let error = Recorder::start(&bench.bus, "a", &path).unwrap_err();
    assert!(matches!(error, RecordError::Create { .. }));
    let error = error.to_string();
    assert!(
        error.contains("directory.rec") && error.contains("can be written"),
        "{error}"
    );
    // Nobody listens.
    assert!(format!("{:?}", bench.bus).contains("subscriptions: 0"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_and_the_bus_goes_on() {
    let bench = Bench::new();
    let gauge = bench.bus.gauge("a", "a").unwrap();
    let error = Recorder::start(&bench.bus, "a", "/dev/full").unwrap_err();
    assert!(error.to_string().contains("/dev/full"), "{error}");
    gauge.set(1.0);
    assert!(format!("{:?}", bench.bus).contains("subscriptions: 0"));
}

#[test]
fn a_wrong_selector_is_an_error_and_makes_no_file() {
    let bench = Bench::new();
    let error = Recorder::start(&bench.bus, "a{", bench.path()).unwrap_err();
    assert!(matches!(error, RecordError::Selector(_)), "{error}");
    assert!(!bench.path().exists());
}

/// A recording of several blocks.
fn long_recording() -> (Vec<u8>, Vec<Entry>) {
    let bench = Bench::new();
    let gauge = bench.bus.gauge("a", "a").unwrap();
    let recorder = bench.record("a");
    let mut x = 1_u64;
    for _ in 0..20_000 {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        gauge.set(x as f64 / 3.0);
        bench.clock.advance(Duration::from_nanos(x % 1_000_000));
    }
    assert_eq!(recorder.finish().unwrap().dropped, 0);
    (std::fs::read(bench.path()).unwrap(), bench.entries())
}

/// What can be read of these bytes, and how it ended.
fn read_all(bytes: &[u8]) -> (Vec<Entry>, Option<ReadError>) {
    let recording = match Recording::from_bytes(bytes) {
        Ok(recording) => recording,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut read = Vec::new();
    for entry in recording.entries().unwrap() {
        match entry {
            Ok(entry) => read.push(entry),
            Err(error) => return (read, Some(error)),
        }
    }
    (read, None)
}

/// Alike, a NaN being one.
fn same(a: &[Entry], b: &[Entry]) -> bool {
    format!("{a:?}") == format!("{b:?}")
}

#[test]
fn a_file_that_was_cut_off_is_read_up_to_its_last_whole_block() {
    let (bytes, whole) = long_recording();
    let mut lengths = Vec::new();
    for cut in (0..bytes.len())
        .step_by(977)
        .chain([30, 31, bytes.len() - 1])
    {
        let (read, error) = read_all(&bytes[..cut]);
        match error {
            Some(ReadError::CutOff { offset }) => assert!(offset <= cut as u64),
            Some(ReadError::NotARecording { .. }) => assert_eq!(cut, 0),
            other => panic!("cut at {cut}: {other:?}"),
        }
        assert!(same(&read, &whole[..read.len()]));
        lengths.push((cut, read.len()));
    }
    lengths.sort();
    assert!(lengths.is_sorted_by_key(|(_, read)| *read));
    assert!(
        lengths
            .iter()
            .any(|(_, read)| *read > 5_000 && *read < 19_000)
    );
}

#[test]
fn zeros_at_the_end_are_what_a_crash_leaves() {
    let (bytes, whole) = long_recording();
    // Without the last block, and its room set aside.
    let mut cut = 30;
    loop {
        let packed = u32::from_le_bytes(bytes[cut + 4..cut + 8].try_into().unwrap());
        let next = cut + 12 + packed as usize;
        if next == bytes.len() {
            break;
        }
        cut = next;
    }
    let mut bytes = bytes[..cut].to_vec();
    bytes.extend([0; 4_096]);
    let (read, error) = read_all(&bytes);
    assert!(matches!(error, Some(ReadError::CutOff { offset }) if offset == cut as u64));
    assert!(read.len() > 5_000 && same(&read, &whole[..read.len()]));
}

#[test]
fn something_else_is_not_a_recording_and_a_later_version_is_refused() {
    assert!(matches!(
        read_all(b"time,value\n1,2\n").1,
        Some(ReadError::NotARecording { path: None })
    ));
    assert!(matches!(
        read_all(b"").1,
        Some(ReadError::NotARecording { .. })
    ));
    let (mut bytes, _) = long_recording();
    bytes[8] = 9;
    let error = read_all(&bytes).1.unwrap().to_string();
    assert!(
        error.contains("version 9") && error.contains("newer"),
        "{error}"
    );
    let missing = Recording::open("/no/such/file.rec")
        .unwrap_err()
        .to_string();
    assert!(missing.contains("/no/such/file.rec"), "{missing}");
}

#[test]
fn an_error_in_a_file_names_it() {
    let bench = Bench::new();
    let named = |error: &dyn std::fmt::Display| {
        let (text, path) = (error.to_string(), bench.path().display().to_string());
        assert_eq!(text.matches(&path).count(), 1, "{text}");
    };
    std::fs::write(bench.path(), "time,value\n1,2\n").unwrap();
    named(&Recording::open(bench.path()).unwrap_err());

    let (mut bytes, _) = long_recording();
    bytes[8] = 9;
    std::fs::write(bench.path(), &bytes).unwrap();
    named(&Recording::open(bench.path()).unwrap_err());

    bytes[8] = 1;
    bytes[100] ^= 1;
    std::fs::write(bench.path(), &bytes).unwrap();
    let recording = Recording::open(bench.path()).unwrap();
    named(&Replay::new(recording.clone()).run(|_| {}).unwrap_err());
    named(&recording.entries().unwrap().last().unwrap().unwrap_err());

    std::fs::remove_file(bench.path()).unwrap();
    std::fs::create_dir(bench.path()).unwrap();
    named(&Recording::open(bench.path()).unwrap_err());
}

#[derive(Clone, Debug)]
enum Act {
    Count(u64),
    Amount(f64),
    Set(f64),
    Observe(f64),
    Child(u8, f64),
    Remove(u8),
    Pass(u32),
}

fn any_act() -> impl Strategy<Value = Act> {
    let amount = prop_oneof![0.0..1e9_f64, Just(0.0), 0.0..1e-9_f64];
    prop_oneof![
        prop_oneof![any::<u64>(), 0..3_u64].prop_map(Act::Count),
        amount.prop_map(Act::Amount),
        any::<f64>().prop_map(Act::Set),
        prop_oneof![any::<f64>(), 0.0..3.0_f64].prop_map(Act::Observe),
        (0..3_u8, any::<f64>()).prop_map(|(i, v)| Act::Child(i, v)),
        (0..3_u8).prop_map(Act::Remove),
        any::<u32>().prop_map(Act::Pass),
    ]
}

struct Subjects {
    counter: Counter,
    amount: Counter<f64>,
    gauge: Gauge,
    histogram: Histogram,
    children: metricbus::Family<Gauge>,
}

impl Subjects {
    fn new(bus: &MetricBus) -> Subjects {
        Subjects {
            counter: bus.counter("c_total", "c").unwrap(),
            amount: bus.declare(Desc::new("f_total", "f")).unwrap(),
            gauge: bus.gauge("g", "g").unwrap(),
            histogram: bus
                .histogram("h", "h", Buckets::new([0.5, 1.0]).unwrap())
                .unwrap(),
            children: bus.family(Desc::new("m", "m").labels(["i"])).unwrap(),
        }
    }

    fn act(&self, act: &Act, clock: &Clock) {
        let label = |i: &u8| [i.to_string()];
        match act {
            Act::Count(n) => self.counter.inc_by(*n),
            Act::Amount(n) => self.amount.inc_by(*n),
            Act::Set(v) => self.gauge.set(*v),
            Act::Observe(v) => self.histogram.observe(*v),
            Act::Child(i, v) => self.children.with_label_values(&label(i)).unwrap().set(*v),
            Act::Remove(i) => drop(self.children.remove(&label(i))),
            Act::Pass(nanos) => clock.advance(Duration::from_nanos((*nanos).into())),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn mutations_of_every_type_come_back_as_they_were(
        before in prop::collection::vec(any_act(), 0..10),
        acts in prop::collection::vec(any_act(), 0..60),
    ) {
        let bench = Bench::new();
        let subjects = Subjects::new(&bench.bus);
        before.iter().for_each(|act| subjects.act(act, &bench.clock));
        let mut tap = bench.bus.subscribe(r#"{__name__!=""}"#).unwrap();
        let recorder = bench.record(r#"{__name__!=""}"#);
        acts.iter().for_each(|act| subjects.act(act, &bench.clock));
        recorder.finish().unwrap();
        drop(subjects);
        drop(bench.bus);
        let expected: Vec<_> = futures::executor::block_on_stream(&mut tap)
            .map(|m| m.unwrap())
            .map(|m| format!("{:?} {} {:?}", m.at, m.series, m.change))
            .collect();
        let recording = Recording::open(bench.dir.path().join("test.rec")).unwrap();
        let read: Vec<_> = entries(&recording)
            .iter()
            .filter_map(|entry| match entry {
                Entry::Mutation { at, series, change } => {
                    Some(format!("{at:?} {series} {change:?}"))
                }
                _ => None,
            })
            .collect();
        prop_assert_eq!(read, expected);
    }

    #[test]
    fn damage_is_found_and_nothing_before_it_is_lost(
        at in any::<prop::sample::Index>(),
        with in 1..=255_u8,
    ) {
        use std::sync::LazyLock;
        static WHOLE: LazyLock<(Vec<u8>, Vec<Entry>)> = LazyLock::new(long_recording);
        let (bytes, whole) = &*WHOLE;
        let mut bytes = bytes.clone();
        let at = at.index(bytes.len());
        bytes[at] ^= with;
        let (read, error) = read_all(&bytes);
        prop_assert!(error.is_some(), "byte {} was not missed", at);
        prop_assert!(same(&read, &whole[..read.len()]));
    }
}

#[test]
fn csv_of_the_long_form_is_read() {
    let csv = "\
time,series,value
10,kv{worker=\"a\"},0.5
10.000000001,\"kv{worker=\"\"b\"\"}\",NaN
9.5,requests_total,100
11,requests_total,130
12,requests_total,5
12,kv{worker='a'},0.75
";
    let columns = CsvColumns::long("time", "series", "value").totals("requests_total");
    let recording = Recording::from_csv_text(csv, columns).unwrap();
    assert_eq!(recording.start().as_secs_f64(), 9.5);
    let read = entries(&recording);
    let counted = |before, after| Change::Counted {
        before: Value::F64(before),
        after: Value::F64(after),
    };
    let told = mutations(&read);
    assert_eq!(
        told[0],
        (9.5, "requests_total".to_owned(), counted(100.0, 100.0))
    );
    assert_eq!(
        told[1],
        (10.0, r#"kv{worker="a"}"#.to_owned(), set(0.0, 0.5))
    );
    assert_eq!(told[2].0, 10.000000001);
    assert_eq!(told[3].2, counted(100.0, 130.0));
    // It began anew.
    assert_eq!(told[4].2, counted(130.0, 135.0));
    assert_eq!(
        told[5],
        (12.0, r#"kv{worker="a"}"#.to_owned(), set(0.5, 0.75))
    );
}

#[test]
fn csv_of_the_wide_form_is_read_and_an_empty_cell_is_no_mutation() {
    let csv = "\u{feff}\
when; kv ; CPU %; tokens ;note
2023-11-16T18:15:46.5Z;0.5;1;10;x
2023-11-16 19:15:47+01:00;;2;;y
2023-11-16 18:15:48;0.7;;30;
";
    let columns = CsvColumns::wide("when")
        .delimiter(b';')
        .rename("CPU %", "cpu_percent{host=\"h\"}")
        .skip("note")
        .observations("tokens", Buckets::new([16.0]).unwrap())
        .count_rows("requests_total");
    let recording = Recording::from_csv_text(csv, columns).unwrap();
    let told: Vec<_> = mutations(&entries(&recording))
        .into_iter()
        .map(|(at, series, change)| (at - 1_700_158_546.0, series, change.amount()))
        .collect();
    let told: Vec<_> = told
        .iter()
        .map(|(at, s, n)| (*at, s.as_str(), *n))
        .collect();
    assert_eq!(
        told,
        [
            (0.5, "kv", 0.5),
            (0.5, r#"cpu_percent{host="h"}"#, 1.0),
            (0.5, "tokens", 10.0),
            (0.5, "requests_total", 1.0),
            (1.0, r#"cpu_percent{host="h"}"#, 1.0),
            (1.0, "requests_total", 1.0),
            (2.0, "kv", 0.7 - 0.5),
            (2.0, "tokens", 30.0),
            (2.0, "requests_total", 1.0),
        ]
    );
}

#[test]
fn a_csv_recording_can_be_saved_and_opened() {
    let bench = Bench::new();
    let csv = Recording::from_csv_text("time,kv\n1,2\n", CsvColumns::wide("time")).unwrap();
    csv.save(bench.path()).unwrap();
    assert!(same(&entries(&csv), &bench.entries()));
}

#[test]
fn an_error_in_csv_says_where_and_what_would_be_right() {
    let long = || CsvColumns::long("time", "series", "value");
    let wide = || CsvColumns::wide("time");
    for (csv, columns, parts) in [
        (
            "time,series,value\n1,kv,0.5\n2,kv,much\n",
            long(),
            &["line 3", "\"much\"", "0.95"][..],
        ),
        (
            "time,series,value\n1,kv,\n",
            long(),
            &["line 2", "\"value\"", "0.95"],
        ),
        (
            "time,series,value\nnoon,kv,1\n",
            long(),
            &["line 2", "\"noon\"", "2023-11-16T"],
        ),
        (
            "time,series,value\n-1,kv,1\n",
            long(),
            &["line 2", "\"-1\"", "later"],
        ),
        (
            "time,series,value\n1,kv{,1\n",
            long(),
            &["line 2", "ratio{worker=\"a\"}"],
        ),
        (
            "time,series,value\n1,kv{a=~'b'},1\n",
            long(),
            &["line 2", "labels with ="],
        ),
        (
            "time,series,value\n1,kv{a='b'},1\n2,kv{c='d'},1\n",
            long(),
            &["line 3", "\"c\"", "\"a\""],
        ),
        (
            "time,series,value\n1,kv\n",
            long(),
            &["line 2", "2 fields", "3"],
        ),
        (
            "time,series,value\n1,metricbus_x,1\n",
            long(),
            &["line 2", "metricbus_"],
        ),
        (
            "t,series,value\n1,kv,1\n",
            long(),
            &["\"time\"", "[\"t\", \"series\", \"value\"]"],
        ),
        (
            "time,series,value\n1,c_total,-1\n",
            long().amounts("c_total"),
            &["line 2", "\"-1\"", "counter"],
        ),
        (
            "time,CPU %\n1,1\n",
            wide(),
            &["\"CPU %\"", "is not a series"],
        ),
        (
            "time,kv\n1,1\n",
            wide().rename("KV", "kv"),
            &["\"KV\"", "[\"time\", \"kv\"]"],
        ),
        ("time,kv\n1,1\n", wide().skip("no"), &["\"no\""]),
        ("time,kv\n", wide(), &["no rows"]),
        ("time,kv\n1,\n", wide(), &["no rows"]),
        ("", wide(), &["the file is empty", "names of the columns"]),
        ("\n\n", long(), &["the file is empty"]),
    ] {
        let error = Recording::from_csv_text(csv, columns)
            .unwrap_err()
            .to_string();
        for part in parts {
            assert!(
                error.contains(part),
                "{csv:?}: {error:?} does not say {part:?}"
            );
        }
    }
    let error = Recording::from_csv("/no/such.csv", wide()).unwrap_err();
    assert!(matches!(error, CsvError::Open { .. }) && error.to_string().contains("/no/such.csv"));
    let bench = Bench::new();
    let mut file = std::fs::File::create(bench.path()).unwrap();
    file.write_all(b"time,kv\n1,\xff\n").unwrap();
    let error = Recording::from_csv(bench.path(), wide())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("line 2") && error.contains("UTF-8"),
        "{error}"
    );
}

proptest! {
    #[test]
    fn no_text_makes_the_csv_reader_panic(text in "[a-z0-9{}=\"',.;\\n\\-+:TZ ]{0,80}") {
        let csv = format!("time,series,value\n{text}");
        let _ = Recording::from_csv_text(&csv, CsvColumns::long("time", "series", "value"));
        let _ = Recording::from_csv_text(&text, CsvColumns::wide("time"));
    }
}

/// All that a rule should do again: when, what, of whom, from which value.
fn told(alerts: &[Alert]) -> Vec<String> {
    alerts
        .iter()
        .map(|alert| {
            format!(
                "{:?} {alert} {:?} {:?} {:?} epoch {} since {:?}",
                alert.at, alert.cause, alert.quality, alert.labels, alert.epoch, alert.since
            )
        })
        .collect()
}

/// Rules of every kind, over what [`Subjects`] has.
fn rules() -> Vec<Rule> {
    let ms = Duration::from_millis;
    let above = |bound| Threshold::above(bound).clear_below(bound / 2.0);
    vec![
        Rule::new("Gauge", Condition::when("g", above(0.5))),
        Rule::new("Held", Condition::when("g", above(0.5)))
            .hold_for(ms(2))
            .keep_firing_for(ms(1)),
        Rule::new("Any", Condition::when("m", above(0.5)))
            .any()
            .hold_for(ms(1)),
        Rule::new("Each", Condition::when("m", above(0.5))),
        Rule::new("All", Condition::when("m", above(0.5))).all(),
        Rule::new("Total", Condition::when("f_total", Threshold::above(1.0))),
        Rule::new("Changed", Condition::changed("c_total")).keep_firing_for(ms(1)),
        Rule::new("Stale", Condition::stale("g", ms(10))),
        Rule::new("Gone", Condition::gone("m", ms(20))),
        Rule::new("Observed", Condition::when("h", Threshold::above(1.0))),
        Rule::new(
            "Rate",
            Condition::when(Expr::rate("f_total", ms(1_000)), Threshold::above(0.5)),
        ),
        Rule::new(
            "Average",
            Condition::when(
                Expr::over("g", ms(1_000)).avg() + Expr::value("g"),
                Threshold::above(0.7),
            ),
        ),
    ]
}

/// Milliseconds rather than nanoseconds, and values about where the rules look.
fn any_load() -> impl Strategy<Value = Vec<Act>> {
    let value = prop_oneof![0.0..1.2_f64, Just(f64::NAN), Just(0.6)];
    let act = prop_oneof![
        (0..3_u64).prop_map(Act::Count),
        (0.0..1.0_f64).prop_map(Act::Amount),
        value.clone().prop_map(Act::Set),
        (0.0..1.5_f64).prop_map(Act::Observe),
        (0..3_u8, value).prop_map(|(i, v)| Act::Child(i, v)),
        (0..3_u8).prop_map(Act::Remove),
        (0..4_000_000_u32).prop_map(Act::Pass),
        (0..400_000_000_u32).prop_map(Act::Pass),
    ];
    prop::collection::vec(act, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_replayed_is_what_fired_live(
        before in any_load(),
        acts in any_load(),
        born in any::<bool>(),
    ) {
        let bench = Bench::new();
        let subjects = Subjects::new(&bench.bus);
        if !born {
            before.iter().for_each(|act| subjects.act(act, &bench.clock));
        }
        let recorder = bench.record(r#"{__name__!=""}"#);
        let live: Vec<_> = rules()
            .into_iter()
            .map(|rule| bench.bus.add_rule(rule.history(1_000)).unwrap())
            .collect();
        acts.iter().for_each(|act| subjects.act(act, &bench.clock));
        recorder.finish().unwrap();

        let report = Replay::new(Recording::open(bench.path()).unwrap())
            .rules(rules())
            .run(|_| {})
            .unwrap();
        prop_assert_eq!(report.end, bench.clock.now());
        prop_assert_eq!((report.missed, report.dropped, report.cut_off), (0, 0, false));
        for live in live {
            let replayed: Vec<_> = report
                .transitions
                .iter()
                .filter(|alert| &*alert.rule == live.name())
                .cloned()
                .collect();
            prop_assert_eq!(told(&replayed), told(&live.history()));
        }
    }
}

/// `time,kv` in seconds.
fn kv(rows: &[(f64, f64)]) -> Recording {
    let rows: Vec<_> = rows.iter().map(|(at, v)| format!("{at},{v}\n")).collect();
    Recording::from_csv_text(
        &format!("time,kv\n{}", rows.concat()),
        CsvColumns::wide("time"),
    )
    .unwrap()
}

fn full() -> Rule {
    Rule::new(
        "Full",
        Condition::when("kv", Threshold::above(0.9).clear_below(0.8)),
    )
}

#[test]
fn a_report_says_how_often_and_how_long_each_rule_fired() {
    let recording = kv(&[
        (100.0, 0.1),
        (110.0, 0.95),
        (113.0, 0.2),
        (120.0, 0.95),
        (121.0, 0.95),
    ]);
    let silent = Rule::new("Silent", Condition::when("kw", Threshold::above(1.0)));
    let report = Replay::new(recording)
        .rule(full())
        .rule(silent)
        .tail(Duration::from_secs(9))
        .run(|_| {})
        .unwrap();
    assert_eq!(report.mutations, 5);
    assert_eq!(report.span(), Duration::from_secs(30));
    assert_eq!(report.transitions.len(), 3);
    let full = report.rule("Full").unwrap();
    assert_eq!((full.fired, full.resolved, full.still_firing), (2, 1, 1));
    assert_eq!(full.firing, Duration::from_secs(3 + 10));
    assert_eq!(full.longest, Duration::from_secs(10));
    assert_eq!(full.spans[1].to, report.end);
    assert!(full.ever_matched && !full.spans[1].resolved);
    let silent = report.rule("Silent").unwrap();
    assert!(!silent.ever_matched);
    assert_eq!((silent.fired, silent.series), (0, 0));
    assert!(report.rate() > 0.0);
    assert_eq!(full.condition, "kv above 0.9, clear below 0.8; each series");
    let text = report.to_string();
    for part in [
        "5 mutations over 30s",
        "mutations per second), 3 alerts",
        "\"Silent\" never matched a series",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(!text.contains("0.0 million"), "{text}");
}

#[test]
fn time_that_two_groups_fire_at_once_counts_once() {
    let csv = "time,series,value\n0,m{i='a'},1\n5,m{i='b'},1\n10,m{i='a'},0\n15,m{i='b'},0\n";
    let recording =
        Recording::from_csv_text(csv, CsvColumns::long("time", "series", "value")).unwrap();
    let rule = Rule::new("High", Condition::when("m", Threshold::above(0.5)));
    let report = Replay::new(recording).rule(rule).run(|_| {}).unwrap();
    assert_eq!(report.rules[0].fired, 2);
    assert_eq!(report.rules[0].firing, Duration::from_secs(15));
    assert_eq!(report.rules[0].longest, Duration::from_secs(10));
}

#[test]
fn the_tail_lets_a_hold_come_to_its_end() {
    let recording = kv(&[(0.0, 0.1), (1.0, 0.95)]);
    let rule = || full().hold_for(Duration::from_secs(5));
    let fired = |tail| {
        Replay::new(recording.clone())
            .rule(rule())
            .tail(Duration::from_secs(tail))
            .run(|_| {})
            .unwrap()
            .transitions
    };
    assert!(fired(0).is_empty());
    assert_eq!(fired(5)[0].at.as_secs_f64(), 6.0);
}

#[test]
fn alerts_have_the_dates_of_the_recording() {
    let csv = "time,kv\n2023-11-16T18:15:46.25Z,1\n";
    let recording = Recording::from_csv_text(csv, CsvColumns::wide("time")).unwrap();
    let report = Replay::new(recording).rule(full()).run(|_| {}).unwrap();
    let since_epoch = report.transitions[0]
        .date
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    assert_eq!(since_epoch, Duration::from_millis(1_700_158_546_250));

    // Of a system clock the origin is somewhere, and the date is right all the same.
    let dir = tempfile::tempdir().unwrap();
    let bus = MetricBus::new();
    let gauge = bus.gauge("kv", "kv").unwrap();
    let path = dir.path().join("live.rec");
    let recorder = Recorder::start(&bus, "kv", &path).unwrap();
    let before = std::time::SystemTime::now();
    gauge.set(1.0);
    recorder.finish().unwrap();
    let recording = Recording::open(&path).unwrap();
    let report = Replay::new(recording).rule(full()).run(|_| {}).unwrap();
    let date = report.transitions[0].date;
    let off = date.duration_since(before).unwrap_or_else(|e| e.duration());
    assert!(off < Duration::from_secs(60), "{off:?}");
}

#[test]
fn a_dry_run_is_told_as_if_it_were_none() {
    let report = Replay::new(kv(&[(0.0, 1.0)]))
        .rule(full().dry_run(true))
        .run(|_| {})
        .unwrap();
    assert_eq!(report.transitions.len(), 1);
}

#[test]
fn a_recording_that_was_cut_off_is_replayed_as_far_as_it_goes_and_a_damaged_one_is_not() {
    let (bytes, _) = long_recording();
    let whole = Replay::new(Recording::from_bytes(&bytes[..]).unwrap())
        .run(|_| {})
        .unwrap();
    assert_eq!((whole.mutations, whole.cut_off), (20_000, false));
    let cut = Recording::from_bytes(&bytes[..bytes.len() - 1]).unwrap();
    let cut = Replay::new(cut).run(|_| {}).unwrap();
    assert!(cut.cut_off && cut.mutations > 5_000 && cut.mutations < 20_000);

    let mut bytes = bytes;
    bytes[100] ^= 1;
    let error = Replay::new(Recording::from_bytes(bytes).unwrap())
        .run(|_| {})
        .unwrap_err();
    assert!(
        matches!(error, ReplayError::Recording(ReadError::Corrupt { .. })),
        "{error}"
    );
}

#[test]
fn a_wrong_rule_is_an_error_that_names_it() {
    let wrong = Rule::new("Wrong", Condition::when("kv{", Threshold::above(1.0)));
    let error = Replay::new(kv(&[(0.0, 1.0)]))
        .rule(wrong)
        .run(|_| {})
        .unwrap_err();
    assert!(error.to_string().contains("\"Wrong\""), "{error}");
    let twice = Replay::new(kv(&[(0.0, 1.0)])).rule(full()).rule(full());
    let error = twice.run(|_| {}).unwrap_err().to_string();
    assert!(error.contains("already"), "{error}");
    assert!(!error.contains("set_rule"), "{error}");
}

#[test]
fn progress_ends_with_all_of_it() {
    let (bytes, _) = long_recording();
    let total = bytes.len() as u64;
    let mut last = None;
    Replay::new(Recording::from_bytes(bytes).unwrap())
        .run(|progress| last = Some(progress))
        .unwrap();
    let last = last.unwrap();
    assert_eq!(last.mutations, 20_000);
    assert_eq!((last.bytes, last.bytes_total), (total, total));
}

#[test]
fn a_series_beyond_the_cardinality_limit_keeps_its_label() {
    let bench = Bench::new();
    let family = bench
        .bus
        .family::<Gauge>(Desc::new("kv", "Usage.").labels(["worker"]).series_max(1))
        .unwrap();
    family.with_label_values(&["a"]).unwrap().set(0.1);
    let recorder = bench.record("kv");
    family.with_label_values(&["b"]).unwrap().set(0.95);
    recorder.finish().unwrap();
    let report = Replay::new(Recording::open(bench.path()).unwrap())
        .rule(full())
        .run(|_| {})
        .unwrap();
    let overflow = report.transitions[0].label("otel_metric_overflow");
    assert_eq!(overflow, Some("true"));
}

#[test]
fn a_derived_gauge_is_replayed_with_the_labels_of_its_series() {
    let bench = Bench::new();
    let kv = bench
        .bus
        .family::<Gauge>(Desc::new("kv", "Usage.").labels(["worker", "role"]))
        .unwrap();
    let _percent = bench
        .bus
        .derive(
            Desc::new("kv_percent", "Usage.").unit("percent"),
            Expr::value("kv") * 100.0,
        )
        .unwrap();
    // One series is there when recording begins, one comes while it goes on, and one goes.
    kv.with_label_values(&["a", "decode"]).unwrap().set(0.5);
    let recorder = bench.record("kv_percent");
    bench.pass(1_000);
    kv.with_label_values(&["a", "decode"]).unwrap().set(0.95);
    kv.with_label_values(&["b \"\\", "decode"])
        .unwrap()
        .set(0.99);
    bench.pass(1_000);
    kv.remove(&["a", "decode"]).unwrap();
    bench.pass(1_000);
    recorder.finish().unwrap();

    let report = Replay::new(Recording::open(bench.path()).unwrap())
        .rule(Rule::new(
            "Full",
            Condition::when("kv_percent", Threshold::above(90.0)),
        ))
        // No series without labels may be there: none was recorded.
        .rule(Rule::new(
            "Count",
            Condition::when(Expr::count("kv_percent"), Threshold::above(1.5)),
        ))
        .run(|_| {})
        .unwrap();
    let told: Vec<_> = report
        .transitions
        .iter()
        .map(|alert| {
            let (worker, role) = (alert.label("worker"), alert.label("role"));
            let at = alert.at.as_secs_f64();
            (&*alert.rule, worker, role, alert.is_firing(), at)
        })
        .collect();
    let (b, decode) = (Some("b \"\\"), Some("decode"));
    assert_eq!(
        told,
        [
            ("Full", Some("a"), decode, true, 1.0),
            ("Full", b, decode, true, 1.0),
            ("Count", None, None, true, 1.0),
            ("Full", Some("a"), decode, false, 2.0),
            ("Count", None, None, false, 2.0),
        ]
    );
}

/// The trace is not part of the project; where it is not at hand there is nothing to test.
#[test]
fn the_azure_trace_is_read_and_replayed() {
    let path = std::env::var_os("METRICBUS_AZURE_TRACE").map_or_else(
        || {
            let data = "../shared/data/azure_llm_inference_conv_2023.csv";
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(data)
        },
        PathBuf::from,
    );
    if !path.exists() {
        eprintln!("skipped: no trace at {}", path.display());
        return;
    }
    let tokens = Buckets::exponential(16.0, 2.0, 12).unwrap();
    let columns = CsvColumns::wide("TIMESTAMP")
        .rename("ContextTokens", "context_tokens")
        .observations("context_tokens", tokens.clone())
        .rename("GeneratedTokens", "generated_tokens")
        .observations("generated_tokens", tokens)
        .count_rows("requests_total");
    let recording = Recording::from_csv(path, columns).unwrap();
    let ten = Duration::from_secs(10);
    let report = Replay::new(recording)
        .rule(Rule::new(
            "Burst",
            Condition::when(
                Expr::rate("requests_total", ten),
                Threshold::above(10.0).clear_below(5.0),
            ),
        ))
        .rule(Rule::new(
            "LongContexts",
            Condition::when(
                Expr::over("context_tokens", ten).quantile(0.9),
                Threshold::above(4_000.0),
            ),
        ))
        .run(|_| {})
        .unwrap();
    assert_eq!(report.mutations, 3 * 19_366);
    assert!(
        report
            .rules
            .iter()
            .all(|rule| rule.fired > 0 && rule.ever_matched)
    );
}

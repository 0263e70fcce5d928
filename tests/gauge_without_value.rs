//! A gauge that was never set has no value, wherever one looks.

use futures::{FutureExt, StreamExt};
use metricbus::{
    Change, Counter, Desc, Gauge, MetricBus, MetricGauge, Threshold, Value,
    export::text::{Format, encode},
};

const FORMATS: [Format; 3] = [Format::Text, Format::OpenMetrics, Format::Protobuf];

fn written(bus: &MetricBus, format: Format) -> Vec<u8> {
    let mut out = Vec::new();
    encode(bus, format, &mut out);
    out
}

fn mentions(bus: &MetricBus, format: Format, what: &str) -> bool {
    let out = written(bus, format);
    out.windows(what.len()).any(|at| at == what.as_bytes())
}

#[test]
fn it_has_no_sample_in_any_format() {
    let bus = MetricBus::new();
    let alone = bus.gauge("alone", "g").unwrap();
    let family = bus
        .family::<Gauge>(Desc::new("depth", "g").labels(["queue"]))
        .unwrap();
    let (_never, set) = (
        family.with_label_values(&["never"]).unwrap(),
        family.with_label_values(&["set"]).unwrap(),
    );
    set.set(0.0);
    for format in FORMATS {
        assert!(!mentions(&bus, format, "alone"), "{format:?}");
        assert!(!mentions(&bus, format, "never"), "{format:?}");
        assert!(mentions(&bus, format, "set"), "{format:?}");
    }
    let text = String::from_utf8(written(&bus, Format::Text)).unwrap();
    assert!(text.contains("depth{queue=\"set\"} 0\n"), "{text}");

    let snapshot = bus.snapshot();
    assert_eq!(snapshot.family("alone").unwrap().series, []);
    assert_eq!(snapshot.family("depth").unwrap().series.len(), 1);
    // The series is there for all that; it only has nothing to say.
    let series = &bus.series("alone").unwrap()[0];
    assert_eq!((series.value(), alone.get()), (None, None));
    assert_eq!(format!("{series:?}"), "alone without a value");
    assert!(MetricGauge::get_value(&alone).is_nan());
}

#[test]
fn whoever_adds_to_it_begins_at_0() {
    let made = || MetricBus::new().gauge("g", "g").unwrap();
    type Deed = (fn(&Gauge), f64);
    let deeds: [Deed; 12] = [
        (Gauge::inc, 1.0),
        (Gauge::dec, -1.0),
        (|g| g.add(0.0), 0.0),
        (|g| g.sub(0.0), 0.0),
        (|g| g.add(-0.0), 0.0),
        (|g| g.sub(2.5), -2.5),
        (|g| g.set(-0.0), 0.0),
        (|g| g.set_max(-3.0), -3.0),
        (|g| g.set_min(3.0), 3.0),
        (|g| g.set_max(-0.0), 0.0),
        (|g| g.set_min(-0.0), 0.0),
        (|g| drop(g.track_inprogress()), 0.0),
    ];
    for (i, (deed, value)) in deeds.into_iter().enumerate() {
        let gauge = made();
        deed(&gauge);
        assert_eq!(gauge.get(), Some(value), "deed {i}");
        assert!(gauge.get().unwrap().is_sign_positive() || value < 0.0);
    }
    let gauge = made();
    gauge.set_max(f64::NAN);
    gauge.set_min(f64::NAN);
    assert_eq!(gauge.get(), None, "NaN is no extreme");
    gauge.set(f64::NAN);
    assert!(gauge.get().unwrap().is_nan(), "NaN that is set is a value");
}

#[test]
fn a_zero_that_is_set_is_told_like_any_value() {
    let bus = MetricBus::new();
    let gauge = bus.gauge("g", "g").unwrap();
    let mut low = bus
        .on_threshold("g", Threshold::below(1.0))
        .stream()
        .unwrap();
    let mut tap = bus.subscribe("g").unwrap();
    assert!(low.next().now_or_never().is_none());
    gauge.set(-0.0);
    assert_eq!(low.next().now_or_never().unwrap().unwrap().value, 0.0);
    let change = tap.next().now_or_never().unwrap().unwrap().unwrap().change;
    let set = Change::Set {
        before: None,
        after: 0.0,
    };
    assert_eq!((change, change.amount()), (set, 0.0));
    gauge.set(2.0);
    let change = tap.next().now_or_never().unwrap().unwrap().unwrap().change;
    assert!(matches!(
        change,
        Change::Set {
            before: Some(0.0),
            after: 2.0
        }
    ));
}

#[test]
fn an_initial_value_is_there_from_birth_on_and_overwrites_nothing() {
    let bus = MetricBus::new();
    let declare = |v| {
        bus.declare::<Gauge>(Desc::new("g", "g").initial(v))
            .unwrap()
    };
    assert_eq!(declare(0.0).get(), Some(0.0));
    assert_eq!(declare(7.0).get(), Some(0.0), "it has a value already");
    assert!(mentions(&bus, Format::Text, "g 0\n"));

    let family = bus
        .family::<Gauge>(Desc::new("f", "g").labels(["l"]).initial(-0.0))
        .unwrap();
    let child = family.with_label_values(&["a"]).unwrap();
    assert_eq!(child.series().value(), Some(Value::F64(0.0)));
    child.set(4.0);
    assert_eq!(family.with_label_values(&["a"]).unwrap().get(), Some(4.0));
    family.remove(&["a"]).unwrap();
    assert_eq!(family.with_label_values(&["a"]).unwrap().get(), Some(0.0));

    // Who listens hears of it as of any first value.
    let mut low = bus
        .on_threshold("late", Threshold::below(1.0))
        .stream()
        .unwrap();
    let _late: Gauge = bus.declare(Desc::new("late", "g").initial(0.5)).unwrap();
    assert_eq!(low.next().now_or_never().unwrap().unwrap().value, 0.5);

    let error = bus
        .declare::<Counter>(Desc::new("c_total", "c").initial(1.0))
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("a counter can't begin at 1; only a gauge"),
        "{error}"
    );
    let error = bus.derive(
        Desc::new("d", "d").initial(1.0),
        metricbus::Expr::value("g"),
    );
    let error = error.unwrap_err().to_string();
    assert!(error.contains("leave out initial(1)"), "{error}");
}

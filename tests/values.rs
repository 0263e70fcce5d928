//! Events, snapshots, alerts, ids and rules as serde's data.
#![cfg(all(feature = "serde", feature = "nats"))]

use std::{error::Error, time::Duration};

use metricbus::{
    Alert, Clock, Condition, Counter, Desc, Expr, MetricBus, Rule, Snapshot, SourceId, Threshold,
};
use serde_json::json;

#[test]
fn snapshots_rules_and_ids_come_back_as_they_were() -> Result<(), Box<dyn Error>> {
    let bus = MetricBus::new();
    let requests = bus.family::<Counter>(Desc::new("requests_total", "R.").labels(["code"]))?;
    requests.with_label_values(&["200"])?.inc_by(3);
    bus.gauge("depth", "D.")?.set(0.5);
    bus.histogram("h", "H.", metricbus::Buckets::linear(1.0, 1.0, 2)?)?
        .observe(1.5);
    // The last bound is infinite, which JSON does not have.
    let mut snapshot = bus.snapshot();
    snapshot.families.retain(|family| family.name != "h");
    let text = serde_json::to_string(&snapshot)?;
    assert_eq!(serde_json::from_str::<Snapshot>(&text)?, snapshot);
    assert_eq!(
        serde_json::to_value(&snapshot.families[1].series[0])?,
        json!({"labels": [["code", "200"]], "value": {"counter": 3}})
    );

    let source = SourceId::new("prod", "decode", "pod-7");
    let text = serde_json::to_string(&source)?;
    assert_eq!(serde_json::from_str::<SourceId>(&text)?, source);

    let rule = Rule::new(
        "Deep",
        Condition::when(Expr::value("depth"), Threshold::above(0.9)),
    )
    .hold_for(Duration::from_millis(500))
    .label("severity", "page");
    let text = serde_json::to_string(&rule)?;
    assert_eq!(serde_json::from_str::<Rule>(&text)?, rule);
    assert!(serde_json::from_str::<Rule>("{\"name\": 1}").is_err());
    Ok(())
}

#[test]
fn an_alert_comes_back_without_its_series() -> Result<(), Box<dyn Error>> {
    let bus = MetricBus::builder().clock(Clock::manual()).build();
    let depth = bus.gauge("depth", "D.")?;
    let rule = Rule::new("Deep", Condition::when("depth", Threshold::above(0.9)));
    let _live = bus.add_rule(rule)?;
    depth.set(1.0);
    let (tell, told) = std::sync::mpsc::channel();
    let _heard = bus.on_alert().inline(move |alert: Alert| {
        let _ = tell.send(alert);
    })?;
    let mut alert = told.recv_timeout(Duration::from_secs(60))?;
    let value = serde_json::to_value(&alert)?;
    assert_eq!(value["series"], json!({"name": "depth", "labels": {}}));
    assert_eq!(
        (&value["state"], &value["quality"]),
        (&json!("firing"), &json!("good"))
    );
    alert.series = None;
    assert_eq!(serde_json::from_value::<Alert>(value)?, alert);
    Ok(())
}

#[test]
fn a_derived_gauge_has_a_value_where_it_is_one_series() -> Result<(), Box<dyn Error>> {
    let clock = Clock::manual();
    let bus = MetricBus::builder().clock(clock.clone()).build();
    let depth = bus.family::<metricbus::Gauge>(Desc::new("depth", "D.").labels(["queue"]))?;
    let twice = bus.derive(Desc::new("twice", "Twice."), Expr::value("depth") * 2.0)?;
    let window = twice.window(Duration::from_secs(60))?;
    assert_eq!((twice.get(), twice.series().len()), (None, 0));
    depth.with_label_values(&["a"])?.set(2.0);
    assert_eq!(twice.get(), Some(4.0));
    clock.advance(Duration::from_secs(1));
    assert_eq!(window.stats().max, Some(4.0));
    depth.with_label_values(&["b"])?.set(3.0);
    assert_eq!((twice.get(), twice.series().len()), (None, 2));
    assert_eq!(bus.series(&twice)?.len(), 2);
    Ok(())
}

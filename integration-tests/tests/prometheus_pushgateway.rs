//! Batch jobs push to a real Pushgateway, and a real Prometheus scrapes it.

use std::error::Error;

use metricbus::{
    Buckets, Desc, Histogram, MetricBus,
    export::{Format, Push, PushError},
};
use metricbus_integration_tests::{
    prometheus::{Options, Prometheus},
    pushgateway::{Group, Pushgateway},
    random::HOSTILE,
};

type Outcome = Result<(), Box<dyn Error>>;

fn group(labels: &[(&str, &str)], values: &[(&str, f64)]) -> Group {
    Group {
        labels: labels
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect(),
        values: values.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect(),
    }
}

fn bus(metrics: &[(&str, f64)]) -> Result<MetricBus, Box<dyn Error>> {
    let bus = MetricBus::new();
    for (name, value) in metrics {
        bus.gauge(name, "Pushed.")?.set(*value);
    }
    Ok(bus)
}

#[test]
fn a_push_replaces_the_group_an_add_only_names_and_a_delete_all() -> Outcome {
    let Some(gateway) = Pushgateway::start() else {
        return Ok(());
    };
    let labels = [("instance", "db-1"), ("job", "backup")];
    for format in [Format::Text, Format::Protobuf] {
        let push = Push::new(gateway.url(), "backup")
            .grouping("instance", "db-1")
            .format(format);
        push.push_blocking(&bus(&[("a", 1.0), ("b", 2.0)])?)?;
        assert_eq!(
            gateway.groups(),
            [group(&labels, &[("a", 1.0), ("b", 2.0)])]
        );
        push.add_blocking(&bus(&[("b", 3.0), ("c", 4.0)])?)?;
        let all = [("a", 1.0), ("b", 3.0), ("c", 4.0)];
        assert_eq!(gateway.groups(), [group(&labels, &all)]);
        push.push_blocking(&bus(&[("c", -0.5)])?)?;
        assert_eq!(gateway.groups(), [group(&labels, &[("c", -0.5)])]);
        // Of nothing: a group with nothing in it.
        push.push_blocking(&MetricBus::new())?;
        assert!(gateway.groups().iter().all(|g| g.values.is_empty()));
        push.delete_blocking()?;
        push.delete_blocking()?;
        gateway.wait_until_empty();
    }
    Ok(())
}

#[test]
fn any_text_can_be_a_job_or_a_value_to_group_by() -> Outcome {
    let Some(gateway) = Pushgateway::start() else {
        return Ok(());
    };
    let bus = bus(&[("a", 1.0)])?;
    let ours = [
        "/",
        "//",
        ".",
        "..",
        "a/../b",
        "a b+c%2F?&#;=@",
        "@base64",
        "ü/🦀",
    ];
    for value in HOSTILE.iter().copied().chain(ours) {
        for job in [value, "job"].iter().filter(|job| !job.is_empty()) {
            let push = Push::new(gateway.url(), *job)
                .grouping("first", value)
                .grouping("second", "x");
            push.push_blocking(&bus)?;
            // The gateway shows a label with an empty value, too.
            let labels = [("first", value), ("job", job), ("second", "x")];
            assert_eq!(
                gateway.groups(),
                [group(&labels, &[("a", 1.0)])],
                "{value:?}"
            );
            push.delete_blocking()?;
            gateway.wait_until_empty();
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_was_pushed_is_what_prometheus_answers_with() -> Outcome {
    let Some(gateway) = Pushgateway::start() else {
        return Ok(());
    };
    let bus = MetricBus::new();
    bus.counter("rows_total", "Rows copied.")?.inc_by(12_345);
    let wait: Histogram = bus.declare(
        Desc::new("copy_seconds", "Time to copy.")
            .label("table", "o\"r\\d\ners")
            .buckets(Buckets::new([0.1, 1.0])?),
    )?;
    wait.observe(0.5);
    wait.observe(5.0);
    let push = Push::new(gateway.url(), "backup").grouping("database", "orders");
    push.push(&bus).await?;
    let options = Options {
        honor_labels: true,
        ..Options::default()
    };
    let targets = [("gateway", gateway.local_addr())];
    let Some(prometheus) = Prometheus::with(&options, &targets) else {
        return Ok(());
    };
    let of = "job=\"backup\",database=\"orders\"";
    prometheus.wait_for_value(&format!("rows_total{{{of}}}"), 12_345.0);
    let bucket =
        |le| format!("copy_seconds_bucket{{{of},table=\"o\\\"r\\\\d\\ners\",le=\"{le}\"}}");
    for (le, count) in [("0.1", 0.0), ("+Inf", 2.0)] {
        prometheus.wait_for_value(&bucket(le), count);
    }
    prometheus.wait_for_value(&format!("copy_seconds_sum{{{of}}}"), 5.5);
    push.delete().await?;
    prometheus.wait_for("what was deleted to be gone", |p| {
        p.query("rows_total").is_empty().then_some(())
    });
    Ok(())
}

#[test]
fn native_histograms_come_through_a_gateway() -> Outcome {
    let Some(gateway) = Pushgateway::start() else {
        return Ok(());
    };
    let bus = MetricBus::builder().native_histograms(true).build();
    let wait = bus.histogram("copy_seconds", "Time to copy.", Buckets::new([1.0])?)?;
    (1..=100).for_each(|i| wait.observe(f64::from(i) / 10.0));
    Push::new(gateway.url(), "backup")
        .format(Format::Protobuf)
        .push_blocking(&bus)?;
    let options = Options {
        features: &["native-histograms"],
        honor_labels: true,
    };
    let targets = [("gateway", gateway.local_addr())];
    let Some(prometheus) = Prometheus::with(&options, &targets) else {
        return Ok(());
    };
    prometheus.wait_for_value("histogram_count(copy_seconds{job=\"backup\"})", 100.0);
    let median = prometheus.value("histogram_quantile(0.5, copy_seconds)");
    assert!(
        (median.ok_or("no median")? / 5.0 - 1.0).abs() < 0.022,
        "{median:?}"
    );
    Ok(())
}

#[test]
fn what_a_gateway_refuses_is_said_in_its_words_and_nothing_of_it_is_taken() -> Outcome {
    let Some(gateway) = Pushgateway::start() else {
        return Ok(());
    };
    let push = |job: &str| Push::new(gateway.url(), job);
    push("first").push_blocking(&bus(&[("x", 1.0)])?)?;
    let other = MetricBus::new();
    other.histogram("x", "Pushed.", Buckets::default())?;
    let error = push("second").push_blocking(&other).unwrap_err();
    let PushError::Refused { status, said, .. } = &error else {
        return Err(error.into());
    };
    assert_eq!(*status, 400);
    assert!(said.contains("inconsistent"), "{said}");
    let of_first = group(&[("job", "first")], &[("x", 1.0)]);
    assert!(gateway.groups().contains(&of_first));
    // The group that was to be made is there all the same, with nothing of ours.
    let of_second = group(&[("job", "second")], &[]);
    assert!(gateway.groups().contains(&of_second));

    let wrong = Push::new(format!("{}/no/such/prefix", gateway.url()), "job");
    let error = wrong.push_blocking(&bus(&[("x", 1.0)])?).unwrap_err();
    assert!(
        matches!(error, PushError::Refused { status: 404, .. }),
        "{error}"
    );

    let url = gateway.url();
    drop(gateway);
    let error = Push::new(url, "first").push_blocking(&other).unwrap_err();
    assert!(matches!(error, PushError::Unreachable { .. }), "{error}");
    assert!(
        error.to_string().contains("nothing listens there"),
        "{error}"
    );
    Ok(())
}

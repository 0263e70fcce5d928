//! Rules as operators see them: `/rules`, and what `/metrics` says of rules.
#![cfg(feature = "http")]

use std::{
    collections::HashSet,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use metricbus::{
    Clock, Condition, Desc, Expr, Gauge, MetricBus, Rule, Threshold, export::Exporter,
};
use serde_json::{Value, json};
use tower_service::Service;

fn bus() -> (MetricBus, Clock) {
    let clock = Clock::manual();
    (MetricBus::builder().clock(clock.clone()).build(), clock)
}

fn secs(s: f64) -> Duration {
    Duration::from_secs_f64(s)
}

fn full() -> Condition {
    Condition::when("kv", Threshold::above(0.9).clear_below(0.8))
}

fn workers(bus: &MetricBus) -> impl Fn(&str) -> Gauge {
    let family = bus
        .family::<Gauge>(Desc::new("kv", "Share of KV blocks in use.").labels(["worker"]))
        .unwrap();
    move |worker| family.with_label_values(&[worker]).unwrap()
}

/// What a mounted exporter answers.
fn ask(exporter: &Exporter, path: &str) -> (StatusCode, String) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let request = Request::get(path).body(()).unwrap();
        let response = exporter.clone().call(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.into()).unwrap())
    })
}

fn rules_by(bus: &MetricBus, query: &str) -> Value {
    let (status, body) = ask(&Exporter::new(bus), &format!("/rules{query}"));
    assert_eq!(status, StatusCode::OK, "{body}");
    serde_json::from_str(&body).unwrap_or_else(|why| panic!("{why} in\n{body}"))
}

fn rules(bus: &MetricBus) -> Vec<Value> {
    rules_by(bus, "")["rules"].as_array().unwrap().clone()
}

/// The only rule.
fn rule(bus: &MetricBus) -> Value {
    let [rule] = <[Value; 1]>::try_from(rules(bus)).unwrap();
    rule
}

fn names(answer: &Value) -> Vec<&str> {
    let rules = answer["rules"].as_array().unwrap().iter();
    rules.map(|rule| rule["name"].as_str().unwrap()).collect()
}

/// The lines of `/metrics` that begin with `metricbus_rule`.
fn metrics(bus: &MetricBus) -> Vec<String> {
    let (_, text) = ask(&Exporter::new(bus), "/metrics");
    text.lines()
        .filter(|line| line.starts_with("metricbus_rule"))
        .map(str::to_owned)
        .collect()
}

// ---- /rules ---------------------------------------------------------------------------------------------------------

#[test]
fn everything_about_a_rule_is_told() {
    let (bus, clock) = bus();
    let worker = workers(&bus);
    bus.add_rule(
        Rule::new("KvFull", full())
            .hold_for(secs(0.5))
            .keep_firing_for(secs(3.0))
            .label("severity", "page")
            .annotation("summary", "{{ $labels.worker }} is {{ $value }} full"),
    )
    .unwrap();
    worker("a").set(0.95);
    worker("b").set(0.1);
    clock.advance(secs(2.0));
    worker("c").set(0.99);
    clock.advance(secs(0.25));
    assert_eq!(
        rules_by(&bus, ""),
        json!({
            "now": "1970-01-01T00:00:02.250Z",
            "rules": [{
                "name": "KvFull",
                "type": "metric",
                "state": "firing",
                "conditions": [{ "condition": "kv above 0.9, clear below 0.8" }],
                "groups": { "inactive": 1, "pending": 1, "clearing": 0, "firing": 1 },
                "series": 3,
                "ever_matched": true,
                "value": 0.99,
                "lastEvaluation": "1970-01-01T00:00:02.000Z",
                "since_evaluation": 0.25,
                "fired": 1,
                "resolved": 0,
                "missed": 0,
                "hung": 0,
                "dry_run": false,
                "thresholds": [{ "input": "kv", "raise": 0.9, "clear": 0.8 }],
                "hold_for": 0.5,
                "keep_firing_for": 3.0,
                "m_of_n": null,
                "every": null,
                "grouping": "each",
                "by": [],
                "labels": { "severity": "page" },
                "annotations": { "summary": "{{ $labels.worker }} is {{ $value }} full" },
                "alerts": [
                    {
                        "state": "firing",
                        "labels": { "worker": "a" },
                        "value": 0.95,
                        "quality": "good",
                        "activeAt": "1970-01-01T00:00:00.000Z",
                        "active_for": 2.25,
                        "epoch": 1,
                        "annotations": { "summary": "a is 0.95 full" },
                    },
                    {
                        "state": "pending",
                        "labels": { "worker": "c" },
                        "value": 0.99,
                        "quality": "good",
                        "activeAt": "1970-01-01T00:00:02.000Z",
                        "active_for": 0.25,
                        "epoch": 0,
                        "annotations": { "summary": "c is 0.99 full" },
                    },
                ],
                "groups_left_out": 0,
                "history": [{
                    "at": "1970-01-01T00:00:00.500Z",
                    "state": "firing",
                    "group": { "worker": "a" },
                    "value": 0.95,
                    "quality": "good",
                    "cause": "condition",
                    "epoch": 1,
                }],
            }],
            "rules_left_out": 0,
        })
    );
}

#[test]
fn levels_slots_and_grouping_are_told() {
    let (bus, clock) = bus();
    let worker = workers(&bus);
    bus.add_rule(
        Rule::levels(
            "Full",
            [
                ("warn", Condition::when("kv", Threshold::above(0.8))),
                (
                    "critical",
                    Condition::when(Expr::value("kv") * 2.0, Threshold::above(1.9)),
                ),
            ],
        )
        .at_least(2)
        .by(["worker", "pool"])
        .m_of_n(1, 3, secs(0.5))
        .every(secs(2.0)),
    )
    .unwrap();
    bus.add_rule(Rule::new("Single", full()).dry_run(true))
        .unwrap();
    worker("a").set(0.96);
    clock.advance(secs(1.0));
    let rules = rules(&bus);
    assert_eq!(rules[0]["grouping"], "at_least(2)");
    assert_eq!(rules[0]["by"], json!(["worker", "pool"]));
    assert_eq!(rules[0]["m_of_n"], json!({ "m": 1, "n": 3, "slot": 0.5 }));
    assert_eq!(rules[0]["every"], 2.0);
    assert_eq!(
        rules[0]["conditions"],
        json!([
            { "level": "warn", "condition": "kv above 0.8" },
            { "level": "critical", "condition": "(kv * 2) above 1.9" },
        ])
    );
    assert_eq!(rules[0]["thresholds"][1]["level"], "critical");
    assert_eq!(rules[0]["thresholds"][1]["input"], "(kv * 2)");
    assert_eq!(rules[0]["state"], "inactive");

    let Value::String(note) = &rules[1]["note"] else {
        panic!("no note on a dry run: {}", rules[1]);
    };
    assert!(note.contains("nobody is told"), "{note}");
    assert_eq!(rules[1]["state"], "firing");
}

#[test]
fn the_level_in_force_and_the_one_before_are_told() {
    let (bus, _) = bus();
    let depth = bus.gauge("depth", "Waiting.").unwrap();
    let above = |bound| Condition::when("depth", Threshold::above(bound));
    bus.add_rule(Rule::levels(
        "Deep",
        [("warn", above(80.0)), ("critical", above(90.0))],
    ))
    .unwrap();
    depth.set(85.0);
    depth.set(95.0);
    depth.set(84.0);
    let rule = rule(&bus);
    assert_eq!(rule["alerts"][0]["level"], "warn");
    let levels: Vec<_> = rule["history"].as_array().unwrap().iter().collect();
    let told = levels
        .iter()
        .map(|row| (row["level"].as_str(), row["previous_level"].as_str()));
    assert_eq!(
        told.collect::<Vec<_>>(),
        [
            (Some("warn"), Some("critical")),
            (Some("critical"), Some("warn")),
            (Some("warn"), None),
        ]
    );
}

#[test]
fn values_that_are_no_numbers_in_json_are_text_and_no_data_is_null() {
    let (bus, clock) = bus();
    let kv = bus.gauge("kv", "kv").unwrap();
    bus.add_rule(Rule::new("Full", full())).unwrap();
    bus.add_rule(Rule::new("Silent", Condition::stale("kv", secs(1.0))))
        .unwrap();
    bus.add_rule(Rule::new(
        "Low",
        Condition::when("kv", Threshold::below(-1.0)),
    ))
    .unwrap();
    assert_eq!(rules(&bus)[0]["value"], Value::Null);

    kv.set(f64::INFINITY);
    kv.set(f64::NAN);
    let seen = rules(&bus);
    assert_eq!(seen[0]["value"], "NaN");
    assert_eq!(seen[0]["state"], "firing");
    assert_eq!(seen[0]["alerts"][0]["value"], "+Inf");
    assert_eq!(seen[0]["alerts"][0]["quality"], "nan");
    assert_eq!(seen[0]["history"][0]["value"], "+Inf");
    assert_eq!(seen[0]["history"][0]["quality"], "good");

    kv.set(f64::NEG_INFINITY);
    clock.advance(secs(1.0));
    let seen = rules(&bus);
    assert_eq!(seen[1]["alerts"][0]["value"], "-Inf", "{}", seen[1]);
    assert_eq!(seen[2]["alerts"][0]["value"], Value::Null);
    assert_eq!(seen[2]["alerts"][0]["quality"], "stale");
}

#[test]
fn a_rule_that_never_matched_says_so_and_one_whose_series_have_gone_too() {
    let (bus, _) = bus();
    bus.add_rule(Rule::new("Typo", full())).unwrap();
    let note = |rule: &Value| rule["note"].as_str().unwrap_or_default().to_owned();
    let typo = rule(&bus);
    assert_eq!(typo["ever_matched"], false);
    assert!(note(&typo).contains("no series has ever matched"));
    assert_eq!(
        (&typo["state"], &typo["series"], &typo["lastEvaluation"]),
        (&json!("inactive"), &json!(0), &Value::Null)
    );
    assert!(metrics(&bus).contains(&"metricbus_rules_unmatched 1".to_owned()));

    let _other = bus.gauge("kv_ratio", "kv").unwrap();
    assert!(note(&rule(&bus)).ends_with("did you mean kv_ratio?"));

    let kv = bus.gauge("kv", "kv").unwrap();
    kv.set(0.95);
    let found = rule(&bus);
    assert_eq!(
        (&found["ever_matched"], note(&found)),
        (&json!(true), String::new())
    );
    assert!(metrics(&bus).contains(&"metricbus_rules_unmatched 0".to_owned()));

    bus.remove("kv").unwrap();
    let gone = rule(&bus);
    assert!(note(&gone).contains("no series matches now"));
    assert_eq!(gone["history"][0]["cause"], "removed");
    assert_eq!(gone["alerts"], json!([]));
    assert_eq!(gone["groups"]["inactive"], 0);
}

#[test]
fn a_bus_without_rules_says_so_in_the_same_shape() {
    let (bus, _) = bus();
    assert_eq!(
        rules_by(&bus, ""),
        json!({ "now": "1970-01-01T00:00:00.000Z", "rules": [], "rules_left_out": 0 })
    );
}

#[test]
fn the_newest_transition_comes_first_and_as_many_come_as_are_asked_for() {
    let (bus, _) = bus();
    let kv = bus.gauge("kv", "kv").unwrap();
    bus.add_rule(Rule::new("Full", full()).history(30)).unwrap();
    for _ in 0..20 {
        kv.set(0.95);
        kv.set(0.1);
    }
    let epochs = |query| -> Vec<u64> {
        let answer = rules_by(&bus, query);
        let history = answer["rules"][0]["history"].as_array().unwrap();
        history
            .iter()
            .map(|row| row["epoch"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(epochs(""), (31..=40).rev().collect::<Vec<_>>());
    assert_eq!(epochs("?history=2"), [40, 39]);
    assert_eq!(epochs("?history=0"), [0_u64; 0]);
    assert_eq!(epochs("?history=1000").len(), 30);
}

#[test]
fn rules_can_be_chosen_by_name_and_by_state() {
    let (bus, clock) = bus();
    let kv = bus.gauge("kv", "kv").unwrap();
    let add = |rule| drop(bus.add_rule(rule).unwrap());
    add(Rule::new("b", full()));
    add(Rule::new("a & b", full()).hold_for(secs(5.0)));
    add(Rule::new("c", full()).keep_firing_for(secs(5.0)));
    add(Rule::new("d", Condition::when("kv", Threshold::below(0.0))));
    kv.set(0.95);
    let by = |query| rules_by(&bus, query);
    assert_eq!(names(&by("")), ["a & b", "b", "c", "d"]);
    assert_eq!(names(&by("?state=firing")), ["b", "c"]);
    assert_eq!(names(&by("?state=pending")), ["a & b"]);
    assert_eq!(names(&by("?rule=a+%26+b")), ["a & b"]);
    assert_eq!(names(&by("?rule=d&rule=b&rule=b")), ["b", "d"]);
    assert_eq!(names(&by("?rule=d&state=firing")), [""; 0]);
    clock.advance(secs(1.0));
    kv.set(0.1);
    assert_eq!(names(&by("?state=clearing&state=pending")), ["c"]);
}

#[test]
fn a_question_that_means_nothing_is_told_what_would() {
    let (bus, _) = bus();
    for i in 0..12 {
        bus.add_rule(Rule::new(format!("rule {i:02}"), full()))
            .unwrap();
    }
    let exporter = Exporter::new(&bus);
    for (query, right) in [
        ("?name=a", "rule=NAME"),
        ("?Rule=a", "rule=NAME"),
        ("?state=resolved", "clearing or firing"),
        ("?state=firing,pending", "clearing or firing"),
        ("?history=1.5", "from 0 to 1000"),
        ("?history=100000", "from 0 to 1000"),
        ("?rule=rule", r#"there are "rule 00", "#),
        ("?rule=rule", r#""rule 09" and 2 more"#),
        ("?rule=%FF%00%22", "there are"),
    ] {
        let (status, body) = ask(&exporter, &format!("/rules{query}"));
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}: {body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        let error = body["error"].as_str().unwrap();
        assert!(error.contains(right), "{query}: {error}");
    }
    let (_, body) = ask(&Exporter::new(&MetricBus::new()), "/rules?rule=a");
    assert!(body.contains("there are no rules"), "{body}");
}

#[test]
fn of_many_groups_the_gravest_are_shown_and_the_rest_is_counted() {
    let (bus, clock) = bus();
    let worker = workers(&bus);
    bus.add_rule(Rule::new("Full", full()).hold_for(secs(1.0)))
        .unwrap();
    for i in 0..1_000 {
        worker(&i.to_string()).set(0.95);
    }
    clock.advance(secs(1.0));
    for i in 1_000..1_500 {
        worker(&i.to_string()).set(0.95);
    }
    // The first are no longer so bad.
    for i in 0..700 {
        worker(&i.to_string()).set(0.1);
    }
    let states = |rule: &Value| -> Vec<_> {
        let alerts = rule["alerts"].as_array().unwrap().iter();
        alerts
            .map(|alert| alert["state"].as_str().unwrap().to_owned())
            .collect()
    };
    let some = rule(&bus);
    assert_eq!(states(&some).len(), 800);
    assert!(states(&some)[..300].iter().all(|state| state == "firing"));
    assert_eq!(some["groups_left_out"], 0);

    for i in 0..700 {
        worker(&i.to_string()).set(0.95);
    }
    let many = rule(&bus);
    let shown = states(&many);
    assert_eq!(shown.len(), 1_000);
    assert_eq!(shown.iter().filter(|state| *state == "firing").count(), 300);
    assert!(shown[..300].iter().all(|state| state == "firing"));
    assert_eq!(many["groups_left_out"], 500);

    clock.advance(secs(1.0));
    let all = rule(&bus);
    assert_eq!(states(&all), vec!["firing"; 1_000]);
    assert_eq!(all["groups_left_out"], 500);
    assert_eq!(all["groups"]["firing"], 1_500);
    let labels: HashSet<_> = all["alerts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|alert| alert["labels"]["worker"].as_str().unwrap())
        .collect();
    assert_eq!(labels.len(), 1_000);
    assert!(
        metrics(&bus)
            .contains(&r#"metricbus_rule_groups{rule="Full",state="firing"} 1500"#.to_owned())
    );
}

#[test]
fn rules_beyond_a_bounded_answer_are_counted_and_can_still_be_asked_for() {
    let (bus, _) = bus();
    bus.gauge("kv", "kv").unwrap().set(0.95);
    for i in 0..20 {
        let long = "x".repeat(1 << 20);
        bus.add_rule(Rule::new(format!("{i:02}"), full()).label("long", long))
            .unwrap();
    }
    bus.add_rule(Rule::new(
        "zz",
        Condition::when("kv", Threshold::below(0.0)),
    ))
    .unwrap();
    let all = rules_by(&bus, "");
    let shown = names(&all).len();
    assert!((16..20).contains(&shown), "{shown}");
    assert_eq!(all["rules_left_out"], 21 - shown);
    // Of those asked for.
    let firing = rules_by(&bus, "?state=firing");
    assert_eq!(firing["rules_left_out"], 20 - shown);
    assert_eq!(names(&rules_by(&bus, "?state=inactive")), ["zz"]);
    assert_eq!(names(&rules_by(&bus, "?rule=19")), ["19"]);
}

#[test]
fn names_labels_and_texts_come_back_as_they_were_given() {
    let (bus, _) = bus();
    let odd = "a \"quoted\"\\ \n\u{0} </script> 🦀";
    let worker = workers(&bus);
    bus.add_rule(
        Rule::new(odd, full())
            .label("x", "first")
            .label("x", odd)
            .annotation(odd, odd),
    )
    .unwrap();
    worker(odd).set(0.95);
    let rule = rule(&bus);
    assert_eq!(rule["name"], odd);
    assert_eq!(rule["labels"], json!({ "x": odd }));
    assert_eq!(rule["annotations"], json!({ odd: odd }));
    assert_eq!(rule["alerts"][0]["labels"]["worker"], odd);
    assert_eq!(rule["history"][0]["group"]["worker"], odd);
}

#[test]
fn a_date_that_no_calendar_has_is_null() {
    let (bus, clock) = bus();
    bus.gauge("kv", "kv").unwrap().set(0.95);
    for _ in 0..20 {
        clock.advance(secs(500.0 * 365.25 * 86_400.0));
    }
    bus.add_rule(Rule::new("Full", full())).unwrap();
    assert_eq!(rule(&bus)["state"], "firing");
}

#[test]
fn what_is_told_while_rules_fire_and_are_removed_hangs_together() {
    let bus = MetricBus::new();
    let worker = workers(&bus);
    let kept = bus.add_rule(Rule::new("Full", full()).any()).unwrap();
    let answers = std::thread::scope(|scope| {
        let mutating = scope.spawn(|| {
            for i in 0..2_000 {
                worker(&(i % 7).to_string()).set(f64::from(i % 2));
                if i % 50 == 0 {
                    bus.set_rule(Rule::new("Other", full())).unwrap();
                    bus.remove(r#"kv{worker="3"}"#).unwrap();
                }
                if i % 50 == 25 {
                    bus.remove_rule("Other");
                }
            }
        });
        let mut answers = Vec::new();
        while !mutating.is_finished() || answers.is_empty() {
            answers.push((rules_by(&bus, ""), metrics(&bus)));
        }
        answers
    });
    let mut fired = 0;
    for (answer, _) in &answers {
        let rules = answer["rules"].as_array().unwrap();
        let full = &rules[0];
        assert_eq!(full["name"], "Full");
        assert!(full["fired"].as_u64().unwrap() >= fired);
        fired = full["fired"].as_u64().unwrap();
        for rule in rules {
            let groups = &rule["groups"];
            let active: u64 = ["pending", "clearing", "firing"]
                .iter()
                .map(|state| groups[state].as_u64().unwrap())
                .sum();
            assert_eq!(rule["alerts"].as_array().unwrap().len() as u64, active);
        }
    }
    assert_eq!(
        kept.status().fired,
        rules(&bus)[0]["fired"].as_u64().unwrap()
    );
}

#[test]
fn outside_of_a_runtime_it_says_what_is_missing() {
    let mut exporter = Exporter::new(&MetricBus::new());
    let request = Request::get("/rules").body(()).unwrap();
    let response = futures::executor::block_on(exporter.call(request)).unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
}

// ---- through the server ---------------------------------------------------------------------------------------------

/// Status line and headers in lower case, and body.
fn over_tcp(exporter: &Exporter, method: &Method, path: &str, headers: &str) -> (String, Vec<u8>) {
    let server = exporter.serve_in_background("127.0.0.1:0").unwrap();
    let mut stream = TcpStream::connect(server.local_addr()).unwrap();
    stream.set_read_timeout(Some(secs(60.0))).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n"
    )
    .unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    (head.to_ascii_lowercase(), bytes.split_off(end + 4))
}

#[test]
fn the_server_answers_get_and_head_plain_and_zipped() {
    let (bus, _) = bus();
    workers(&bus)("a").set(0.95);
    bus.add_rule(Rule::new("Full", full())).unwrap();
    let exporter = Exporter::new(&bus);
    let (head, body) = over_tcp(&exporter, &Method::GET, "/rules?state=firing", "");
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    for header in [
        "content-type: application/json",
        "cache-control: no-store",
        "vary: accept-encoding",
    ] {
        assert!(head.contains(header), "no {header} in\n{head}");
    }
    let length = format!("content-length: {}", body.len());
    assert!(head.contains(&length));
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(names(&answer), ["Full"]);

    let (head, none) = over_tcp(&exporter, &Method::HEAD, "/rules?state=firing", "");
    assert!(head.starts_with("http/1.1 200 ") && head.contains(&length));
    assert!(none.is_empty());
    let (head, none) = over_tcp(&exporter, &Method::HEAD, "/rules?state=x", "");
    assert!(head.starts_with("http/1.1 400 ") && none.is_empty());

    let gzip = "Accept-Encoding: gzip\r\n";
    let (head, zipped) = over_tcp(&exporter, &Method::GET, "/rules?state=firing", gzip);
    assert!(head.contains("content-encoding: gzip"));
    let mut unzipped = Vec::new();
    flate2::read::GzDecoder::new(&zipped[..])
        .read_to_end(&mut unzipped)
        .unwrap();
    assert_eq!(unzipped, body);

    let (head, _) = over_tcp(&exporter, &Method::POST, "/rules", "");
    assert!(head.starts_with("http/1.1 405 "));
}

#[test]
fn it_is_named_wherever_one_looks_for_what_there_is() {
    let exporter = Exporter::new(&MetricBus::new());
    let (status, page) = ask(&exporter, "/");
    assert_eq!(status, StatusCode::OK);
    assert!(page.contains("href=\"rules\""));
    let (status, text) = ask(&exporter, "/rules/");
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(text.contains("/rules\n"));
}

// ---- /metrics -------------------------------------------------------------------------------------------------------

#[test]
fn each_rule_has_metrics_of_its_own() {
    let (bus, clock) = bus();
    let worker = workers(&bus);
    bus.add_rule(Rule::new("Full", full())).unwrap();
    worker("a").set(0.95);
    worker("b").set(0.95);
    worker("b").set(0.5);
    clock.advance(secs(1.5));
    assert_eq!(
        metrics(&bus)
            .iter()
            .filter(|line| line.contains("rule=") || line.starts_with("metricbus_rules"))
            .collect::<Vec<_>>(),
        [
            "metricbus_rule_fired_total{rule=\"Full\"} 2",
            "metricbus_rule_groups{rule=\"Full\",state=\"inactive\"} 1",
            "metricbus_rule_groups{rule=\"Full\",state=\"pending\"} 0",
            "metricbus_rule_groups{rule=\"Full\",state=\"clearing\"} 0",
            "metricbus_rule_groups{rule=\"Full\",state=\"firing\"} 1",
            "metricbus_rule_missed_total{rule=\"Full\"} 0",
            "metricbus_rule_resolved_total{rule=\"Full\"} 1",
            "metricbus_rule_series{rule=\"Full\"} 2",
            "metricbus_rule_since_evaluation_seconds{rule=\"Full\"} 1.5",
            "metricbus_rule_threshold{rule=\"Full\",bound=\"raise\",input=\"kv\"} 0.9",
            "metricbus_rule_threshold{rule=\"Full\",bound=\"clear\",input=\"kv\"} 0.8",
            "metricbus_rule_value{rule=\"Full\"} 0.5",
            "metricbus_rules 1",
            "metricbus_rules_left_out 0",
            "metricbus_rules_unmatched 0",
        ]
    );
    worker("a").set(f64::NAN);
    assert!(metrics(&bus).contains(&"metricbus_rule_value{rule=\"Full\"} NaN".to_owned()));
}

#[test]
fn alerts_that_a_slow_subscriber_missed_are_counted_by_rule() {
    let (bus, _) = bus();
    let kv = bus.gauge("kv", "kv").unwrap();
    let rule = bus.add_rule(Rule::new("Full", full())).unwrap();
    let stream = rule.on_alert().capacity(2).stream().unwrap();
    for _ in 0..5 {
        kv.set(0.95);
        kv.set(0.1);
    }
    let missed = rule.status().missed;
    assert!(missed > 0);
    let line = format!("metricbus_rule_missed_total{{rule=\"Full\"}} {missed}");
    assert!(metrics(&bus).contains(&line));
    drop(stream);
}

#[test]
fn bounds_that_are_said_twice_are_one_series_and_other_bounds_of_the_same_are_told_apart() {
    let (bus, _) = bus();
    let kv = |threshold| Condition::when("kv", threshold);
    let between = kv(Threshold::above(0.2)) & kv(Threshold::below(0.8));
    let twice = kv(Threshold::above(0.2)) & !kv(Threshold::above(0.2));
    bus.add_rule(Rule::new("Between", between | twice)).unwrap();
    bus.add_rule(Rule::levels(
        "Levels",
        [
            ("warn", kv(Threshold::above(0.9))),
            ("critical", kv(Threshold::above(0.9))),
        ],
    ))
    .unwrap();
    let lines = metrics(&bus);
    let bounds: Vec<_> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("metricbus_rule_threshold"))
        .filter(|line| line.contains("bound=\"raise\""))
        .collect();
    assert_eq!(
        bounds,
        [
            "{rule=\"Between\",bound=\"raise\",input=\"kv\"} 0.2",
            "{rule=\"Between\",bound=\"raise\",index=\"2\",input=\"kv\"} 0.8",
            "{rule=\"Levels\",bound=\"raise\",input=\"kv\",level=\"warn\"} 0.9",
            "{rule=\"Levels\",bound=\"raise\",input=\"kv\",level=\"critical\"} 0.9",
        ]
    );
    let series: HashSet<_> = lines
        .iter()
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(series, _)| series)
        .collect();
    assert_eq!(series.len(), lines.len());
}

#[test]
fn rules_beyond_the_limit_are_counted_and_not_shown_one_by_one() {
    let (bus, _) = bus();
    for i in 0..2_003 {
        bus.add_rule(Rule::new(format!("rule {i:04}"), full()))
            .unwrap();
    }
    let lines = metrics(&bus);
    assert!(lines.contains(&"metricbus_rules 2003".to_owned()));
    assert!(lines.contains(&"metricbus_rules_left_out 3".to_owned()));
    assert!(lines.contains(&"metricbus_rules_unmatched 2003".to_owned()));
    let fired = lines
        .iter()
        .filter(|line| line.starts_with("metricbus_rule_fired_total"));
    assert_eq!(fired.count(), 2_000);
    assert!(lines.contains(&"metricbus_rule_fired_total{rule=\"rule 1999\"} 0".to_owned()));
}

#[test]
fn the_counts_of_groups_follow_what_comes_goes_and_changes() {
    let (bus, clock) = bus();
    let worker = workers(&bus);
    let rule = Rule::new("Full", full()).hold_for(secs(2.0));
    let live = bus.add_rule(rule.clone()).unwrap();
    let counts = || -> Vec<usize> {
        let lines = metrics(&bus);
        let groups = lines
            .iter()
            .filter(|line| line.starts_with("metricbus_rule_groups"));
        groups
            .map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
            .collect()
    };
    assert_eq!(counts(), [0, 0, 0, 0]);
    worker("a").set(0.95);
    worker("b").set(0.5);
    assert_eq!(counts(), [1, 1, 0, 0]);
    clock.advance(secs(2.0));
    assert_eq!(counts(), [1, 0, 0, 1]);
    live.update(rule.clone().keep_firing_for(secs(5.0)))
        .unwrap();
    worker("a").set(0.5);
    assert_eq!(counts(), [1, 0, 1, 0]);
    live.update(rule.clone().hold_for(secs(60.0))).unwrap();
    assert_eq!(counts(), [2, 0, 0, 0]);
    worker("a").set(0.95);
    assert_eq!(counts(), [1, 1, 0, 0]);
    bus.remove(r#"kv{worker="a"}"#).unwrap();
    assert_eq!(counts(), [1, 0, 0, 0]);
    // Other groups altogether.
    live.update(rule.any()).unwrap();
    assert_eq!(counts(), [1, 0, 0, 0]);
    bus.remove("kv").unwrap();
    assert_eq!(counts(), [0, 0, 0, 0]);
    bus.remove_rule("Full");
    assert_eq!(counts(), [0usize; 0]);
}

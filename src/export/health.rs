//! `/health`: runs the registered checks, all at once, and says in JSON how each ended.

use std::{error::Error, time::Duration};

use serde_json::{Map, Value, json};

use super::collect::{Failure, Job};

/// Why a check failed, as it tells it.
pub(super) type CheckResult = Result<(), Box<dyn Error + Send + Sync>>;

/// What a check's run leaves: its error as text, since errors can't be cloned.
pub(super) type Check = Job<Result<(), String>>;

pub(super) fn check(
    name: impl Into<String>,
    deadline: Duration,
    mut check: impl FnMut() -> CheckResult + Send + 'static,
) -> Check {
    Job::new(name, deadline, move || {
        check().map_err(|error| error.to_string())
    })
}

/// What `/health` answers: whether all is well, and the JSON.
pub(super) async fn report(checks: &[Check]) -> (bool, String) {
    let outcomes = super::join_all(checks.iter().map(Job::run)).await;
    let mut all_well = true;
    let mut each = Map::new();
    for (check, outcome) in checks.iter().zip(outcomes) {
        let entry = match outcome {
            Ok(Ok(())) => json!({ "status": "ok" }),
            Ok(Err(error)) => json!({ "status": "failed", "error": error }),
            Err(failure) => {
                let status = match failure {
                    Failure::Late(_) | Failure::StillRunning(_) => "timeout",
                    Failure::Panicked(_) | Failure::NoThread(_) => "failed",
                };
                json!({ "status": status, "error": failure.to_string() })
            }
        };
        all_well &= entry["status"] == "ok";
        each.insert(check.name.clone(), entry);
    }
    let status = if all_well { "ok" } else { "unavailable" };
    let body: Value = json!({ "status": status, "checks": each });
    (all_well, format!("{body}\n"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn without_checks_all_is_well() {
        let (well, body) = report(&[]).await;
        assert!(well);
        assert_eq!(body, "{\"checks\":{},\"status\":\"ok\"}\n");
    }

    #[tokio::test]
    async fn each_way_to_fail_is_told_apart() {
        let (_keep, never) = mpsc::channel::<()>();
        let checks = [
            check("good", Duration::from_secs(60), || Ok(())),
            check("bad", SHORT, || Err("no \"route\" to host".into())),
            check("hung", SHORT, move || Ok(never.recv()?)),
            check("broken", Duration::from_secs(60), || {
                panic!("index out of bounds")
            }),
        ];
        let (well, body) = report(&checks).await;
        assert!(!well);
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            body,
            json!({
                "status": "unavailable",
                "checks": {
                    "good": { "status": "ok" },
                    "bad": { "status": "failed", "error": "no \"route\" to host" },
                    "hung": { "status": "timeout", "error": "not done within 20ms" },
                    "broken": { "status": "failed", "error": "panicked: index out of bounds" },
                },
            })
        );
    }
}

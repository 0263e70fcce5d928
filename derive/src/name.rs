//! What a name may be. The same rules as the library's own at declaration, so that a name known when compiling fails
//! there.

/// `Err` with what is wrong, unless `name` is `[a-zA-Z_:][a-zA-Z0-9_:]*`.
pub(crate) fn check_metric(name: &str) -> Result<(), String> {
    check(name, true).map_err(|why| {
        format!(
            "metric name {name:?} is not valid: {why}; a name is letters, digits, '_' and ':', not beginning with a digit"
        )
    })
}

/// `Err` with what is wrong, unless `prefix` can be part of a metric name. It may begin with a digit: a scope can have a
/// prefix that comes before it.
pub(crate) fn check_prefix(prefix: &str) -> Result<(), String> {
    check_letters(prefix, true).map_err(|why| {
        format!("prefix {prefix:?} is not valid: {why}; a prefix is letters, digits, '_' and ':'")
    })
}

/// `Err` with what is wrong, unless `name` is `[a-zA-Z_][a-zA-Z0-9_]*` and means nothing else.
pub(crate) fn check_label(name: &str) -> Result<(), String> {
    check(name, false).map_err(|why| {
        format!(
            "label name {name:?} is not valid: {why}; a label name is letters, digits and '_', not beginning with a digit"
        )
    })?;
    let why = match name {
        "le" => "it holds the bound of a histogram's bucket",
        "quantile" => "it holds the quantile of a summary",
        "otel_metric_overflow" => "it marks the series beyond a family's cardinality limit",
        _ if name.starts_with("__") => "names beginning with __ are Prometheus's own",
        _ => return Ok(()),
    };
    Err(format!("label {name:?} is reserved: {why}"))
}

/// `Err` with a name that would do, unless `name` (its prefix included) ends in `_unit`, before a counter's `_total`.
///
/// A scope can add a prefix that is unknown here, so a name that is nothing but the end of `_unit` passes.
pub(crate) fn check_unit(name: &str, unit: &str) -> Result<(), String> {
    if unit.is_empty() || !unit.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(format!(
            "unit {unit:?} is not valid: a unit is letters, digits and '_', as in \"seconds\""
        ));
    }
    let (base, total) = match name.strip_suffix("_total") {
        Some(base) => (base, "_total"),
        None => (name, ""),
    };
    let end = format!("_{unit}");
    if base.ends_with(&end) || end.ends_with(base) {
        return Ok(());
    }
    Err(format!(
        "the name must end in its unit: {name:?} has unit {unit:?}; {:?} would do",
        format!("{base}{end}{total}")
    ))
}

fn check(name: &str, colon: bool) -> Result<(), String> {
    match name.chars().next() {
        None => return Err("it is empty".to_owned()),
        Some(c) if c.is_ascii_digit() => return Err(format!("it begins with {c:?}")),
        _ => {}
    }
    check_letters(name, colon)
}

fn check_letters(name: &str, colon: bool) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colon && c == ':');
    match name.chars().find(|&c| !allowed(c)) {
        Some(c) => Err(format!("it contains {c:?}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_prometheus_takes_pass() {
        for name in ["a", "_a", ":a", "a:b_9"] {
            assert_eq!(check_metric(name), Ok(()), "{name:?}");
        }
        for name in ["", "1st", "kv-usage", "kv usage", "größe", "a\n"] {
            assert!(check_metric(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_prefix_may_be_what_only_another_prefix_makes_a_name() {
        for prefix in ["", "worker_", "5xx_"] {
            assert_eq!(check_prefix(prefix), Ok(()), "{prefix:?}");
        }
        assert!(check_prefix("my-worker_").is_err());
    }

    #[test]
    fn labels_that_mean_something_else_do_not_pass() {
        assert_eq!(check_label("method"), Ok(()));
        for name in [
            "",
            "a:b",
            "9a",
            "le",
            "quantile",
            "otel_metric_overflow",
            "__name__",
        ] {
            assert!(check_label(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_unit_stands_at_the_end_of_the_name_before_total() {
        for name in [
            "wait_seconds",
            "wait_seconds_total",
            "seconds",
            "seconds_total",
        ] {
            assert_eq!(check_unit(name, "seconds"), Ok(()), "{name:?}");
        }
        for name in [
            "wait",
            "waitseconds",
            "seconds_wait",
            "wait_total_seconds_x",
        ] {
            assert!(check_unit(name, "seconds").is_err(), "{name:?}");
        }
        let error = check_unit("wait_total", "seconds").unwrap_err();
        assert!(error.contains("\"wait_seconds_total\" would do"), "{error}");
        assert!(check_unit("wait_", "").is_err());
    }
}

//! What a name may be. The same rules as the library's own at declaration, so that a name known when compiling fails
//! there.

/// `Err` with what is wrong, if `name` can't be a metric's.
pub(crate) fn check_metric(name: &str) -> Result<(), String> {
    check(name).map_err(|why| format!("metric name {name:?} is not valid: {why}; {RIGHT}"))
}

/// `Err` with what is wrong, unless `prefix` can be part of a metric name.
pub(crate) fn check_prefix(prefix: &str) -> Result<(), String> {
    check_letters(prefix).map_err(|why| format!("prefix {prefix:?} is not valid: {why}; {RIGHT}"))
}

/// `Err` with what is wrong, if `name` can't be a label's or means something else.
pub(crate) fn check_label(name: &str) -> Result<(), String> {
    check(name).map_err(|why| format!("label name {name:?} is not valid: {why}; {RIGHT}"))?;
    // In underscores, as many read it.
    let is_underscore =
        |(at, c): (usize, char)| !(c.is_ascii_alphabetic() || (at > 0 && c.is_ascii_digit()));
    let reserved = name.len() > 1
        && name
            .char_indices()
            .take(2)
            .filter(|at| is_underscore(*at))
            .count()
            == 2;
    let why = match name {
        "le" => "it holds the bound of a histogram's bucket",
        "quantile" => "it holds the quantile of a summary",
        "otel_metric_overflow" => "it marks the series beyond a family's cardinality limit",
        _ if reserved => "names beginning with __ are Prometheus's own",
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

/// What a name may be, and should.
const RIGHT: &str =
    "a name is any text without '\"', '\\' and control characters, best of letters, digits and '_'";

fn check(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("it is empty".to_owned());
    }
    check_letters(name)
}

fn check_letters(name: &str) -> Result<(), String> {
    match name
        .chars()
        .find(|&c| c.is_control() || c == '"' || c == '\\')
    {
        Some(c) => Err(format!("it contains {c:?}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_pass_that_need_no_escaping_in_quotes() {
        for name in [
            "a", "_a", ":a", "a:b_9", "1st", "kv-usage", "kv usage", "größe",
        ] {
            assert_eq!(check_metric(name), Ok(()), "{name:?}");
        }
        for name in ["", "a\n", "\"a\"", "a\\b"] {
            assert!(check_metric(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_prefix_may_be_what_only_another_prefix_makes_a_name() {
        for prefix in ["", "worker_", "5xx_", "my-worker_"] {
            assert_eq!(check_prefix(prefix), Ok(()), "{prefix:?}");
        }
        assert!(check_prefix("my\nworker_").is_err());
    }

    #[test]
    fn labels_that_mean_something_else_do_not_pass() {
        for name in ["method", "a:b", "9a", "_1", "http.method", "é"] {
            assert_eq!(check_label(name), Ok(()), "{name:?}");
        }
        for name in [
            "",
            "a\n",
            "_.a",
            "é_",
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

//! What somebody may have meant by a name that nothing has.

/// What names end in by convention, or would with other libraries.
const SUFFIXES: [&str; 10] = [
    "_total",
    "_seconds",
    "_milliseconds",
    "_bytes",
    "_ratio",
    "_bucket",
    "_count",
    "_sum",
    "_info",
    "_created",
];

/// The name that is nearest to this one: it, but for suffixes of convention (`reqs`, `reqs_total`), or a few letters off, one
/// for each four. Of several, the first in the alphabet.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let meant = stem(name);
    names
        .filter_map(|other| {
            let distance = if stem(other) == meant {
                0
            } else {
                let allowed = name.len() / 4;
                // Most names differ by more in length alone.
                if name.len().abs_diff(other.len()) > allowed {
                    return None;
                }
                Some(strsim::osa_distance(name, other)).filter(|d| *d <= allowed)?
            };
            Some((distance, other))
        })
        .min()
        .map(|(_, other)| other.to_owned())
}

fn stem(mut name: &str) -> &str {
    let shorter = |name: &str| {
        SUFFIXES
            .into_iter()
            .find(|suffix| name.ends_with(suffix) && name != *suffix)
    };
    while let Some(suffix) = shorter(name) {
        name = &name[..name.len() - suffix.len()];
    }
    name
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_suffix_or_a_slip_is_seen_and_another_name_is_not() {
        let names = [
            "kv_usage_ratio",
            "queue_depth",
            "reqs_total",
            "ttft_seconds",
            "up",
            "x_total",
            "y",
        ];
        for (name, meant) in [
            ("reqs", Some("reqs_total")),
            ("reqs_count", Some("reqs_total")),
            ("ttft_seconds_bucket", Some("ttft_seconds")),
            ("kv_usage", Some("kv_usage_ratio")),
            ("kv_usgae_ratio", Some("kv_usage_ratio")),
            ("queue_deph", Some("queue_depth")),
            ("queue_dpht", Some("queue_depth")),
            ("x", Some("x_total")),
            // One letter of one is another name.
            ("z", None),
            ("queue_width", None),
            ("latency_seconds", None),
            ("_total", Some("x_total")),
        ] {
            assert_eq!(nearest(name, names.into_iter()).as_deref(), meant, "{name}");
        }
    }
}

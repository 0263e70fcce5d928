//! What a registry that isn't ours has to say. Owns the one type of metric that the bus does not have: the summary.

use super::{
    protobuf,
    text::{Format, Style},
};
use crate::{FamilySnapshot, labels::push_label, names::is_plain};

/// What one foreign registry said.
#[derive(Default)]
pub(super) struct Foreign {
    pub(super) families: Vec<FamilySnapshot>,
    pub(super) summaries: Vec<Summary>,
    /// Name and fault of what can't be exposed.
    pub(super) unfit: Vec<(String, String)>,
    /// Name of the family and fault of single series that can't.
    pub(super) unfit_series: Vec<(String, String)>,
}

/// A family of type summary.
pub(super) struct Summary {
    pub(super) name: String,
    pub(super) help: String,
    pub(super) series: Vec<SummarySeries>,
}

/// One series of a summary.
pub(super) struct SummarySeries {
    pub(super) labels: Vec<(String, String)>,
    pub(super) quantiles: Vec<(f64, f64)>,
    pub(super) sum: f64,
    pub(super) count: u64,
}

impl Summary {
    pub(super) fn exposed_names(&self) -> Vec<String> {
        ["", "_sum", "_count", "_created"]
            .iter()
            .map(|suffix| format!("{}{suffix}", self.name))
            .collect()
    }

    /// Summaries read the same in both text formats, but for a quote in the help text and sums that OpenMetrics forbids.
    pub(super) fn encode(&self, style: Style, out: &mut Vec<u8>) {
        let Style {
            format, escaping, ..
        } = style;
        if format == Format::Protobuf {
            return protobuf::encode_summary(self, escaping, out);
        }
        let mut text = String::new();
        let mut help = self.help.replace('\\', "\\\\").replace('\n', "\\n");
        if format == Format::OpenMetrics {
            help = help.replace('"', "\\\"");
        }
        let name = escaping.of_metric(&self.name);
        let quoted = !is_plain(&name, true);
        let family = if quoted {
            format!("\"{name}\"")
        } else {
            name.to_string()
        };
        text += &format!("# HELP {family} {help}\n# TYPE {family} summary\n");
        let start = |suffix: &str, labels: &str| match (quoted, labels.is_empty()) {
            (false, true) => format!("{name}{suffix}"),
            (false, false) => format!("{name}{suffix}{{{labels}}}"),
            (true, true) => format!("{{\"{name}{suffix}\"}}"),
            (true, false) => format!("{{\"{name}{suffix}\",{labels}}}"),
        };
        for series in &self.series {
            let mut labels = String::new();
            for (name, value) in &series.labels {
                push_label(&mut labels, &escaping.of_label(name), value);
            }
            for (quantile, value) in &series.quantiles {
                let mut labels = labels.clone();
                push_label(&mut labels, "quantile", &number(*quantile));
                text += &format!("{} {}\n", start("", &labels), number(*value));
            }
            // OpenMetrics wants sums that only grow.
            if format == Format::Text || !style.strict || series.sum >= 0.0 {
                text += &format!("{} {}\n", start("_sum", &labels), number(series.sum));
            }
            text += &format!("{} {}\n", start("_count", &labels), series.count);
        }
        out.extend_from_slice(text.as_bytes());
    }
}

fn number(value: f64) -> String {
    match value {
        f64::INFINITY => "+Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_written_with_its_quantiles_sum_and_count() {
        let series = |labels: &[(&str, &str)]| SummarySeries {
            labels: labels
                .iter()
                .map(|(n, v)| (n.to_string(), v.to_string()))
                .collect(),
            quantiles: vec![(0.5, 0.25), (0.99, f64::NAN)],
            sum: f64::INFINITY,
            count: 3,
        };
        let summary = Summary {
            name: "rpc_seconds".to_owned(),
            help: "A \"quoted\"\nhelp.".to_owned(),
            series: vec![series(&[]), series(&[("service", "a\"b")])],
        };
        let mut out = Vec::new();
        summary.encode(Style::of(Format::Text), &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"# HELP rpc_seconds A "quoted"\nhelp.
# TYPE rpc_seconds summary
rpc_seconds{quantile="0.5"} 0.25
rpc_seconds{quantile="0.99"} NaN
rpc_seconds_sum +Inf
rpc_seconds_count 3
rpc_seconds{service="a\"b",quantile="0.5"} 0.25
rpc_seconds{service="a\"b",quantile="0.99"} NaN
rpc_seconds_sum{service="a\"b"} +Inf
rpc_seconds_count{service="a\"b"} 3
"#
        );
        let mut out = Vec::new();
        summary.encode(Style::of(Format::OpenMetrics), &mut out);
        assert!(
            String::from_utf8(out)
                .unwrap()
                .starts_with(r#"# HELP rpc_seconds A \"quoted\"\nhelp."#)
        );
    }
}

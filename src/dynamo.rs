//! NVIDIA Dynamo's names: its labels, its prefix, and the bucket sets of its histograms.
//!
//! Dynamo knows a process by its namespace, component and endpoint. Each level adds its label, and has a [`Scope`] to
//! declare metrics on:
//!
//! ```
//! use metricbus::{Desc, Histogram, MetricBus, dynamo};
//!
//! let bus = MetricBus::new();
//! let decode = dynamo::namespace(&bus, "prod").component("decode");
//! let generate = decode.endpoint("generate");
//!
//! let kv_usage = decode.scope().gauge("kv_usage_ratio", "Share of the KV cache in use.")?;
//! assert_eq!(
//!     kv_usage.series().to_string(),
//!     r#"dynamo_component_kv_usage_ratio{dynamo_namespace="prod",dynamo_component="decode"}"#,
//! );
//!
//! let ttft: Histogram = generate.declare(
//!     Desc::new("time_to_first_token_seconds", "Time from a request to its first token.")
//!         .unit("seconds")
//!         .buckets(dynamo::TTFT_SECONDS),
//! )?;
//! assert_eq!(ttft.series().label("dynamo_endpoint").as_deref(), Some("generate"));
//! # Ok::<(), metricbus::DeclareError>(())
//! ```
//!
//! A metric has the same labels wherever it is declared, so one name can't be declared both on a component and on one
//! of its endpoints: the second is a [`DeclareError::Clash`](crate::DeclareError::Clash).

use std::fmt::Display;

use crate::{Buckets, MetricBus, Scope};

/// The label that holds the namespace: a deployment, as in `prod`.
pub const NAMESPACE_LABEL: &str = "dynamo_namespace";

/// The label that holds the component: a role within the namespace, as in `decode`.
pub const COMPONENT_LABEL: &str = "dynamo_component";

/// The label that holds the endpoint: what a component serves, as in `generate`.
pub const ENDPOINT_LABEL: &str = "dynamo_endpoint";

/// What the names of all metrics begin with.
pub const PREFIX: &str = "dynamo_component_";

/// Time to first token, in seconds: 2.2 ms to 8 minutes.
pub const TTFT_SECONDS: Buckets = Buckets::from_static(&[
    0.0, 0.0022, 0.0047, 0.01, 0.022, 0.047, 0.1, 0.22, 0.47, 1.0, 2.2, 4.7, 10.0, 22.0, 48.0,
    100.0, 220.0, 480.0,
]);

/// Inter-token latency, in seconds: 1.9 ms to 2 s.
pub const ITL_SECONDS: Buckets = Buckets::from_static(&[
    0.0, 0.0019, 0.0035, 0.0067, 0.013, 0.024, 0.045, 0.084, 0.16, 0.3, 0.56, 1.1, 2.0,
]);

/// Duration of a whole request, in seconds: 1.9 s to 260 s.
pub const REQUEST_DURATION_SECONDS: Buckets =
    Buckets::from_static(&[0.0, 1.9, 3.4, 6.3, 12.0, 22.0, 40.0, 75.0, 140.0, 260.0]);

/// Length of a request's input, in tokens: 100 to 130 000.
pub const INPUT_TOKENS: Buckets = Buckets::from_static(&[
    0.0, 100.0, 210.0, 430.0, 870.0, 1_800.0, 3_600.0, 7_400.0, 15_000.0, 31_000.0, 63_000.0,
    130_000.0,
]);

/// A namespace on a bus: metrics get the prefix [`PREFIX`] and the label [`NAMESPACE_LABEL`].
#[must_use]
pub fn namespace(bus: &MetricBus, name: impl Display) -> Namespace {
    let scope = bus.scope().with_prefix(PREFIX);
    Namespace(scope.with_label(NAMESPACE_LABEL, name))
}

/// A Dynamo namespace. Made by [`namespace`].
#[derive(Clone, Debug)]
pub struct Namespace(Scope);

impl Namespace {
    /// The scope of what belongs to the namespace as a whole.
    pub fn scope(&self) -> &Scope {
        &self.0
    }

    /// A component of the namespace: metrics also get the label [`COMPONENT_LABEL`].
    #[must_use]
    pub fn component(&self, name: impl Display) -> Component {
        Component(self.0.with_label(COMPONENT_LABEL, name))
    }
}

/// A component of a Dynamo namespace. Made by [`Namespace::component`].
#[derive(Clone, Debug)]
pub struct Component(Scope);

impl Component {
    /// The scope of what belongs to the component, whatever the endpoint.
    pub fn scope(&self) -> &Scope {
        &self.0
    }

    /// The scope of one endpoint: metrics also get the label [`ENDPOINT_LABEL`].
    #[must_use]
    pub fn endpoint(&self, name: impl Display) -> Scope {
        self.0.with_label(ENDPOINT_LABEL, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_set_can_be_declared() {
        let bus = MetricBus::new();
        let endpoint = namespace(&bus, "prod")
            .component("decode")
            .endpoint("generate");
        for (name, buckets, count) in [
            ("ttft_seconds", TTFT_SECONDS, 18),
            ("itl_seconds", ITL_SECONDS, 13),
            ("request_seconds", REQUEST_DURATION_SECONDS, 10),
            ("input_tokens", INPUT_TOKENS, 12),
        ] {
            assert_eq!(buckets.bounds().len(), count, "{name}");
            assert!(
                endpoint.histogram(name, "A histogram.", buckets).is_ok(),
                "{name}"
            );
        }
    }

    #[test]
    fn each_level_adds_its_label_and_the_prefix_is_there_once() {
        let bus = MetricBus::new();
        let prod = namespace(&bus, "prod");
        let decode = prod.component("decode");
        let labels = |scope: &Scope| {
            assert_eq!(scope.prefix(), "dynamo_component_");
            scope
                .labels()
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(labels(prod.scope()), ["dynamo_namespace=prod"]);
        assert_eq!(
            labels(decode.scope()),
            ["dynamo_namespace=prod", "dynamo_component=decode"]
        );
        assert_eq!(
            labels(&decode.endpoint("generate")),
            [
                "dynamo_namespace=prod",
                "dynamo_component=decode",
                "dynamo_endpoint=generate"
            ]
        );
    }
}

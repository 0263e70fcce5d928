//! Who measured something: the identity of a process among others. Plain values.

use std::{fmt, str::FromStr};

/// The identity of a process that publishes metrics: `namespace/component/instance`, such as `prod/decode/pod-7`.
///
/// Two processes must not share one: series are told apart by name, labels and source. Any text will do for a part,
/// the empty one included; a `/` is written only between them, so a part that is parsed has none.
///
/// ```
/// use metricbus::SourceId;
///
/// let source = SourceId::new("prod", "decode", "pod-7");
/// assert_eq!(source.to_string(), "prod/decode/pod-7");
/// assert_eq!("prod/decode/pod-7".parse(), Ok(source));
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SourceId {
    /// Such as a cluster, a tenant, or Dynamo's namespace.
    pub namespace: String,
    /// What it does: `decode`, `router` …
    pub component: String,
    /// Which one of those: a pod's name.
    pub instance: String,
}

impl SourceId {
    /// The source of these parts.
    pub fn new(
        namespace: impl Into<String>,
        component: impl Into<String>,
        instance: impl Into<String>,
    ) -> SourceId {
        SourceId {
            namespace: namespace.into(),
            component: component.into(),
            instance: instance.into(),
        }
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.component, self.instance)
    }
}

impl fmt::Debug for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not `namespace/component/instance`.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a source: it takes three parts, namespace/component/instance, such as prod/decode/pod-7"
)]
pub struct SourceIdError(String);

impl fmt::Debug for SourceIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SourceId {
    type Err = SourceIdError;

    fn from_str(text: &str) -> Result<SourceId, SourceIdError> {
        match text.split('/').collect::<Vec<_>>()[..] {
            [namespace, component, instance] => Ok(SourceId::new(namespace, component, instance)),
            _ => Err(SourceIdError(text.to_owned())),
        }
    }
}

/// Where an alert was made that came from another process, and its place among what that process said.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Origin {
    /// Who made it.
    pub source: SourceId,
    /// Which life of that process: greater after a restart.
    pub boot: u64,
    /// 1 for the first alert of that life, 2 for the next …
    pub sequence: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_takes_three_parts() {
        for wrong in ["", "a", "a/b", "a/b/c/d"] {
            let error = wrong.parse::<SourceId>().unwrap_err().to_string();
            assert!(error.contains("namespace/component/instance"), "{error}");
        }
        assert_eq!("//".parse(), Ok(SourceId::new("", "", "")));
    }
}

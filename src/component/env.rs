//! The backend that the environment asks for.

use std::{env, fmt, sync::Arc};

use super::{BackendContainer, BaseComponentMetrics};
#[cfg(feature = "otlp")]
use crate::backend::{Otlp, OtlpOptions};
use crate::{
    Desc, MetricBus,
    backend::{Backend, BackendError, Null, Prometheus, Tee},
};

/// The backends that can be asked for by name, in an environment variable or elsewhere.
///
/// | variable | value | when it is not set, or empty |
/// |---|---|---|
/// | `METRICBUS_BACKEND` | `prometheus`, `otlp`, `libnv`, `libnv:PATH`, `null`, or `tee:` and several of them with commas between: `tee:prometheus,otlp` | `prometheus` |
/// | `METRICBUS_PREFIX` | what all names begin with; a `_` comes after it | nothing |
/// | `METRICBUS_LIBNV` | path of the library, for `libnv` without one | an error |
/// | `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_EXPORTER_OTLP_*`, `OTEL_METRIC_EXPORT_INTERVAL` | as OpenTelemetry has them, for `otlp` | as OpenTelemetry has them |
///
/// Backends of other crates join by [`with`](Self::with).
///
/// ```
/// use metricbus::component::Backends;
///
/// let vars = |name: &str| match name {
///     "METRICBUS_BACKEND" => Some("tee:prometheus,null".to_owned()),
///     "METRICBUS_PREFIX" => Some("myapp".to_owned()),
///     _ => None,
/// };
/// let base = Backends::new().from_vars(vars)?;
/// base.container.create_counter("jobs_total", "Jobs done.", &[])?.inc();
/// assert!(base.container.export_prometheus().ends_with("\nmyapp_jobs_total 1\n"));
///
/// let wrong = Backends::new().from_vars(|_| Some("promethus".to_owned())).unwrap_err();
/// assert!(wrong.to_string().starts_with(
///     r#"METRICBUS_BACKEND is "promethus", which names no backend: nothing is called "promethus"; there are "#
/// ), "{wrong}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Backends {
    /// By name, with what its value looks like.
    known: Vec<Known>,
}

#[derive(Clone)]
struct Known {
    name: String,
    usage: String,
    make: Arc<Make>,
}

type Make = dyn Fn(&Choice<'_>) -> Result<Arc<dyn Backend>, BackendError> + Send + Sync;

/// A backend that was asked for. Given to who makes it.
#[non_exhaustive]
pub struct Choice<'a> {
    /// What stands after the colon: the path in `libnv:/usr/lib/libnv.so`.
    pub argument: Option<&'a str>,
    /// The prefix of all names.
    pub prefix: &'a str,
    vars: &'a dyn Fn(&str) -> Option<String>,
}

impl Choice<'_> {
    /// A variable of the environment; `None` where it is not set, or empty.
    pub fn var(&self, name: &str) -> Option<String> {
        (self.vars)(name).filter(|value| !value.is_empty())
    }

    /// The name of the service: `OTEL_SERVICE_NAME`, else the prefix, else `unknown_service`.
    pub fn service_name(&self) -> String {
        let prefix = self.prefix.trim_end_matches('_');
        self.var("OTEL_SERVICE_NAME")
            .or_else(|| Some(prefix.to_owned()).filter(|prefix| !prefix.is_empty()))
            .unwrap_or_else(|| "unknown_service".to_owned())
    }
}

impl fmt::Debug for Choice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Choice")
            .field("argument", &self.argument)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

const BACKEND: &str = "METRICBUS_BACKEND";
const PREFIX: &str = "METRICBUS_PREFIX";

/// Backends of this crate that a program can be built without.
const FEATURES: [&str; 2] = ["otlp", "libnv"];

impl Backends {
    /// Those of this crate, as far as its features were built in.
    pub fn new() -> Self {
        let backends = Backends { known: Vec::new() }.with("prometheus", |choice| {
            no_argument("prometheus", choice)?;
            Ok(Arc::new(Prometheus))
        });
        #[cfg(feature = "otlp")]
        let backends = backends.with("otlp", |choice| {
            no_argument("otlp", choice)?;
            let options = OtlpOptions::from_vars(|name| choice.var(name))?;
            let options = options.service_name_or(choice.prefix.trim_end_matches('_'));
            Ok(Arc::new(Otlp::new(options)))
        });
        #[cfg(feature = "libnv")]
        let backends =
            backends.with_usage("libnv", "libnv:PATH", crate::backend::libnv::Libnv::chosen);
        backends.with("null", |choice| {
            no_argument("null", choice)?;
            Ok(Arc::new(Null))
        })
    }

    /// One more that can be asked for as `name`, or `name:argument`. A later one of the same name takes the place of the earlier.
    ///
    /// `make` is called when it is asked for; see [`backend`](crate::backend) for what it makes.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use metricbus::{backend::Null, component::Backends};
    ///
    /// let backends = Backends::new().with("acme", |choice| {
    ///     let _url = choice.argument.unwrap_or("acme://localhost");
    ///     Ok(Arc::new(Null))
    /// });
    /// let base = backends.from_vars(|name| (name == "METRICBUS_BACKEND").then(|| "acme".to_owned()))?;
    /// # let _ = base;
    /// # Ok::<(), metricbus::backend::BackendError>(())
    /// ```
    #[must_use]
    pub fn with(
        self,
        name: &str,
        make: impl Fn(&Choice<'_>) -> Result<Arc<dyn Backend>, BackendError> + Send + Sync + 'static,
    ) -> Self {
        self.with_usage(name, name, make)
    }

    /// `usage`: how it may be asked for, in messages.
    fn with_usage(
        mut self,
        name: &str,
        usage: &str,
        make: impl Fn(&Choice<'_>) -> Result<Arc<dyn Backend>, BackendError> + Send + Sync + 'static,
    ) -> Self {
        self.known.retain(|known| known.name != name);
        self.known.push(Known {
            name: name.to_owned(),
            usage: usage.to_owned(),
            make: Arc::new(make),
        });
        self
    }

    /// What the process's environment asks for, on a bus of its own.
    ///
    /// # Errors
    ///
    /// As [`BaseComponentMetrics::from_env`].
    pub fn from_env(&self) -> Result<BaseComponentMetrics, BackendError> {
        let ours = |name: &str| name.starts_with("METRICBUS_") || name.starts_with("OTEL_");
        for (name, value) in env::vars_os() {
            if let (Some(name), None) = (name.to_str().filter(|name| ours(name)), value.to_str()) {
                return Err(BackendError::Setting {
                    setting: name.to_owned(),
                    value: value.to_string_lossy().into_owned(),
                    why: "it is not UTF-8".to_owned(),
                });
            }
        }
        self.from_vars(|name| env::var(name).ok())
    }

    /// What these variables ask for, on a bus of its own: for settings that come from elsewhere than the environment.
    ///
    /// # Errors
    ///
    /// As [`BaseComponentMetrics::from_env`].
    pub fn from_vars(
        &self,
        vars: impl Fn(&str) -> Option<String>,
    ) -> Result<BaseComponentMetrics, BackendError> {
        self.on_bus(&MetricBus::new(), vars)
    }

    /// As [`from_vars`](Self::from_vars), on a bus that there is already.
    ///
    /// # Errors
    ///
    /// As [`BaseComponentMetrics::from_env`].
    pub fn on_bus(
        &self,
        bus: &MetricBus,
        vars: impl Fn(&str) -> Option<String>,
    ) -> Result<BaseComponentMetrics, BackendError> {
        let var = |name: &str| vars(name).filter(|value| !value.is_empty());
        let asked = var(BACKEND).unwrap_or_else(|| "prometheus".to_owned());
        let prefix = var(PREFIX).unwrap_or_default();
        check_prefix(&prefix)?;
        let backend = self.make(asked.trim(), &prefix, &var)?;
        let container = BackendContainer::with_dyn(bus, &prefix, backend)?;
        Ok(BaseComponentMetrics::new(Arc::new(container)).named(&prefix))
    }

    fn make(
        &self,
        asked: &str,
        prefix: &str,
        vars: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Arc<dyn Backend>, BackendError> {
        let Some(list) = asked.strip_prefix("tee:") else {
            return self.make_one(asked, asked, prefix, vars);
        };
        let parts: Vec<&str> = list.split(',').map(str::trim).collect();
        if let Some(twice) = parts
            .iter()
            .enumerate()
            .find(|(i, part)| parts[..*i].contains(part))
        {
            return Err(self.unknown(
                asked,
                format!(
                    "{:?} is there twice, and would be told everything twice",
                    twice.1
                ),
            ));
        }
        let one = |part: &&str| self.make_one(part, asked, prefix, vars);
        let backends = parts.iter().map(one).collect::<Result<Vec<_>, _>>()?;
        Ok(Arc::new(Tee::new(backends)))
    }

    fn make_one(
        &self,
        part: &str,
        asked: &str,
        prefix: &str,
        vars: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Arc<dyn Backend>, BackendError> {
        let (name, argument) = match part.split_once(':') {
            Some((name, argument)) => (name, Some(argument)),
            None => (part, None),
        };
        let Some(known) = self.known.iter().find(|known| known.name == name) else {
            let why = match name {
                "tee" if asked.starts_with("tee:") => "a tee can't be in a tee".to_owned(),
                "tee" => "a tee is written \"tee:A,B\"".to_owned(),
                "" => "a name is missing".to_owned(),
                _ if FEATURES.contains(&name) => {
                    format!("this program was built without metricbus's feature {name:?}")
                }
                _ => format!("nothing is called {name:?}"),
            };
            return Err(self.unknown(asked, why));
        };
        (known.make)(&Choice {
            argument,
            prefix,
            vars,
        })
    }

    fn unknown(&self, asked: &str, why: String) -> BackendError {
        BackendError::Unknown {
            origin: BACKEND.to_owned(),
            value: asked.to_owned(),
            why,
            right: self.right(),
        }
    }

    /// What may be said.
    fn right(&self) -> String {
        let names = self.known.iter().map(|known| &*known.usage);
        let names: Vec<&str> = names.chain(["tee:A,B"]).collect();
        names.join(", ")
    }
}

impl Default for Backends {
    fn default() -> Self {
        Backends::new()
    }
}

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.known.iter().map(|known| &known.name);
        f.debug_list().entries(names).finish()
    }
}

fn no_argument(name: &str, choice: &Choice<'_>) -> Result<(), BackendError> {
    match choice.argument {
        None => Ok(()),
        Some(argument) => Err(BackendError::Setting {
            setting: BACKEND.to_owned(),
            value: format!("{name}:{argument}"),
            why: format!("{name} takes nothing after its name; {name:?} would be right"),
        }),
    }
}

/// Tries whether a name can begin like this.
fn check_prefix(prefix: &str) -> Result<(), BackendError> {
    if prefix.is_empty() {
        return Ok(());
    }
    // On a bus for this only.
    let probe = MetricBus::new();
    let tried = probe
        .scope()
        .with_prefix(prefix)
        .declare::<crate::Gauge>(Desc::new("_probe", "A probe."));
    match tried {
        Ok(_) => Ok(()),
        Err(error) => Err(BackendError::Setting {
            setting: PREFIX.to_owned(),
            value: prefix.to_owned(),
            why: format!("no metric's name can begin with it: {error}"),
        }),
    }
}

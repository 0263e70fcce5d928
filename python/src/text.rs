//! A bus as text, for those who want it without a request.

use metricbus::export::text::{Format, encode, finish};
use pyo3::prelude::*;

use crate::{bus::MetricBus, export::HOOKS_DEADLINE, hooks};

#[pymethods]
impl MetricBus {
    /// Every metric in Prometheus text 0.0.4, or in OpenMetrics 1.0, without what an exporter adds about the process.
    ///
    /// What is to run before a scrape (`on_collect`, `Gauge.set_function`) runs first, in threads of its own, which are
    /// waited for 1 s at most.
    #[pyo3(signature = (*, openmetrics=false))]
    fn export_prometheus(&self, py: Python<'_>, openmetrics: bool) -> PyResult<String> {
        hooks::run_here(py, &self.0, HOOKS_DEADLINE)?;
        let bus = self.current()?;
        let format = if openmetrics {
            Format::OpenMetrics
        } else {
            Format::Text
        };
        let text = py.detach(|| {
            let mut out = Vec::new();
            encode(bus, format, &mut out);
            finish(format, &mut out);
            out
        });
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

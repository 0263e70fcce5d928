//! `backend_null`, `backend_prometheus`, `backend_otlp`, `backend_libnv`: adding 1 to a counter that a component made in a
//! container, whatever stands behind it.
//!
//! - Subject: `inc` of the `Box<dyn MetricCounter>` that the container gives. The OTLP exporter is running, and nobody is at the
//!   other end. The library behind `backend_libnv` adds to an atomic.
//! - Floor: `inc` of the core's `Counter` behind the same kind of box. The bar is that a backend which reads adds nothing to it.
//! - Peer: a counter of the OpenTelemetry SDK, bound to the same two labels beforehand, with a reader that nobody asks. Binding is behind
//!   a feature that it calls experimental.

use std::{sync::Arc, time::Duration};

use metricbus::{
    BaseComponentMetrics, Counter, Desc, MetricBus, MetricContainer, MetricCounter, NullContainer,
    OtlpContainer,
    backend::{
        OtlpOptions,
        libnv::{Libnv, abi::mb_backend_table},
    },
    component::BackendContainer,
};
use opentelemetry::{KeyValue, metrics::MeterProvider};
use opentelemetry_sdk::metrics::{ManualReader, SdkMeterProvider};

use crate::{
    Failure,
    harness::{Effort, Lane, Role, interleave},
    report::{Bar, Figures, Unit},
};

/// Within the noise of a busy machine.
const SAME: f64 = 1.1;

const LABELS: [(&str, &str); 2] = [("service", "api"), ("version", "v1")];

pub(crate) fn null(effort: Effort) -> Result<Figures, Failure> {
    let container = NullContainer::new("app");
    let counter = counter_of(&container)?;
    measure("backend_null", effort, counter, Bar::Floor(SAME))
}

pub(crate) fn prometheus(effort: Effort) -> Result<Figures, Failure> {
    let base = BaseComponentMetrics::new_prometheus("app");
    let counter = counter_of(&*base.container)?;
    measure("backend_prometheus", effort, counter, Bar::Floor(SAME))
}

pub(crate) fn otlp(effort: Effort) -> Result<Figures, Failure> {
    // Nobody listens at the discard port of this machine, and it is often asked.
    let options = OtlpOptions::new()
        .endpoint("http://127.0.0.1:9")
        .interval(Duration::from_millis(100));
    let container = OtlpContainer::with(options, "app")?;
    let counter = counter_of(&container)?;
    measure("backend_otlp", effort, counter, Bar::Floor(SAME))
}

unsafe extern "C" {
    fn bench_backend() -> *const mb_backend_table;
}

pub(crate) fn libnv(effort: Effort) -> Result<Figures, Failure> {
    // SAFETY: it gives a table that lives for ever, as the header has it.
    let library = unsafe { Libnv::linked(Some(bench_backend), "bench", "app") }?;
    let container = BackendContainer::with_backend(&MetricBus::new(), "app", Arc::new(library))?;
    let counter = counter_of(&container)?;
    measure("backend_libnv", effort, counter, Bar::None)
}

fn counter_of(container: &dyn MetricContainer) -> Result<Box<dyn MetricCounter>, Failure> {
    Ok(container.create_counter("requests_total", "Requests.", &LABELS)?)
}

fn measure(
    name: &'static str,
    effort: Effort,
    counter: Box<dyn MetricCounter>,
    bar: Bar,
) -> Result<Figures, Failure> {
    let bus = MetricBus::new();
    let desc = Desc::new("requests_total", "Requests.");
    let desc = LABELS.iter().fold(desc, |desc, (n, v)| desc.label(*n, *v));
    let core: Box<dyn MetricCounter> = Box::new(bus.declare::<Counter>(desc)?);
    let provider = SdkMeterProvider::builder()
        .with_reader(ManualReader::builder().build())
        .build();
    let sdk = provider.meter("bench").u64_counter("requests").build();
    let attributes = LABELS.map(|(name, value)| KeyValue::new(name, value));

    // As a component calls it: by the box.
    #[allow(clippy::borrowed_box)]
    let inc = |counter: &Box<dyn MetricCounter>, _: usize| counter.inc();
    let lanes = &mut [
        Lane::of(Role::Subject, "metricbus", counter, inc),
        Lane::of(Role::Floor, "the core", core, inc),
        Lane::of(
            Role::Peer,
            "opentelemetry_sdk, bound",
            sdk.bind(&attributes),
            |sdk, _| sdk.add(1),
        ),
    ];
    let rounds = interleave(effort.fast(), lanes)?;
    Ok(Figures::new(name, Unit::Ns, rounds, bar))
}

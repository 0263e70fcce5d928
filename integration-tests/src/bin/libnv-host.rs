//! A program whose metrics go to a shared library: does a bit of everything with the library that its first argument names,
//! and prints what the library says of it. For the tests, which run it under AddressSanitizer and valgrind.

use std::{error::Error, thread, time::Duration};

use metricbus::{Buckets, LibnvContainer, MetricContainer};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os()
        .nth(1)
        .ok_or("usage: libnv-host LIBRARY")?;
    let container = LibnvContainer::load(path, "host", "host")?;

    let jobs = container.create_counter("jobs_total", "Jobs.", &[("queue", "fast")])?;
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1_000).for_each(|_| jobs.inc()));
        }
    });
    let depth = container.create_gauge("depth", "Depth.", &[])?;
    depth.set(3.0);
    depth.inc(0.5);
    let buckets = Buckets::new([1.0, 10.0])?;
    let size = container.create_histogram("size", "Size.", &[], buckets)?;
    for value in [0.5, 5.0, 50.0] {
        size.observe(value);
    }
    let requests =
        container.create_counter_family("requests_total", "Requests.", &[], &["code"])?;
    requests.with_label_values(&["200"])?.inc_by(7);
    requests.with_label_values(&["404"])?.inc();
    requests.remove(&["404"])?;

    let deadline = Duration::from_secs(10);
    container.flush(deadline)?;
    println!("jobs {}", jobs.get_value());
    println!("depth {}", depth.get_value());
    println!("size {} {}", size.get_count(), size.get_sum());
    println!(
        "requests {}",
        requests.with_label_values(&["200"])?.get_value()
    );
    println!("failed {}", container.backend().failed_calls());
    container.shutdown(deadline)?;

    // The other way round than they were made, and the last ones after the container.
    drop((size, container));
    println!("depth {}", depth.get_value());
    Ok(())
}

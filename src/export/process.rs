//! `process_*`: what the kernel says of this process, under the names that all Prometheus clients use.
//!
//! Read anew for each scrape, from `/proc/self`. What can't be read (another system, a locked-down `/proc`) is left out:
//! nothing is reported that was not measured.

use crate::FamilySnapshot;

/// The families that could be read.
#[cfg(not(target_os = "linux"))]
pub(super) fn families() -> Vec<FamilySnapshot> {
    Vec::new()
}

/// The families that could be read.
#[cfg(target_os = "linux")]
pub(super) fn families() -> Vec<FamilySnapshot> {
    use procfs::{
        ProcResult,
        process::{LimitValue, Process},
    };

    use super::own::{counter, gauge};

    let mut families = Vec::new();
    let Ok(process) = Process::myself() else {
        return families;
    };
    let ticks = procfs::ticks_per_second() as f64;
    if let Ok(stat) = process.stat() {
        families.push(counter(
            "process_cpu_seconds_total",
            "Total user and system CPU time spent in seconds.",
            (stat.utime + stat.stime) as f64 / ticks,
        ));
        families.push(gauge(
            "process_resident_memory_bytes",
            "Resident memory size in bytes.",
            (stat.rss * procfs::page_size()) as f64,
        ));
        families.push(gauge(
            "process_virtual_memory_bytes",
            "Virtual memory size in bytes.",
            stat.vsize as f64,
        ));
        families.push(gauge(
            "process_threads",
            "Number of OS threads in the process.",
            stat.num_threads as f64,
        ));
        if let Ok(boot) = procfs::boot_time_secs() {
            families.push(gauge(
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
                boot as f64 + stat.starttime as f64 / ticks,
            ));
        }
    }
    if let Ok(open) = process.fd_count() {
        families.push(gauge(
            "process_open_fds",
            "Number of open file descriptors.",
            open as f64,
        ));
    }
    // An unlimited number is left out too: there is none.
    let limit: ProcResult<_> = process.limits().map(|l| l.max_open_files.soft_limit);
    if let Ok(LimitValue::Value(limit)) = limit {
        families.push(gauge(
            "process_max_fds",
            "Maximum number of open file descriptors.",
            limit as f64,
        ));
    }
    families.sort_by(|a, b| a.name.cmp(&b.name));
    families
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::SampleValue;

    fn gauge(name: &str) -> f64 {
        let families = families();
        let family = families.iter().find(|f| f.name == name).unwrap();
        match family.series[0].value {
            SampleValue::Gauge(value) => value,
            ref other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_figures_are_those_of_this_process() {
        assert!(gauge("process_resident_memory_bytes") > 100_000.0);
        assert!(gauge("process_virtual_memory_bytes") >= gauge("process_resident_memory_bytes"));
        assert!(gauge("process_threads") >= 1.0);
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        let age = now - gauge("process_start_time_seconds");
        assert!((-2.0..86_400.0).contains(&age), "{age}");
    }

    #[test]
    fn an_open_file_counts() {
        // Other tests open files too, so a margin far above what they do.
        let before = gauge("process_open_fds");
        let files: Vec<_> = (0..500)
            .map(|_| std::fs::File::open("/dev/null").unwrap())
            .collect();
        assert!(gauge("process_open_fds") > before + 300.0);
        drop(files);
    }
}

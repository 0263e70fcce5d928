//! Signals that would end a program for what a peer does.

/// Keeps SIGPIPE from the calling thread, and from those it starts: whoever writes to a connection that its peer has closed
/// gets it, and it ends the process. Only a `main` of Rust's ignores it; one of C or C++, into which we may be linked, does
/// not, and what it does about its own writes is its own affair. So it is each thread of ours that asks for this, and not the
/// process. The write fails all the same, with an error.
pub(crate) fn keep_out_broken_pipes() {
    #[cfg(unix)]
    {
        use nix::sys::signal::{SigSet, Signal};

        let mut signals = SigSet::empty();
        signals.add(Signal::SIGPIPE);
        if let Err(error) = signals.thread_block() {
            tracing::warn!(%error, "metricbus: SIGPIPE can't be blocked in this thread");
        }
    }
}

/// Whether a thread of this process with this name has SIGPIPE blocked; `None` where there is no such thread.
#[cfg(all(test, target_os = "linux"))]
pub(crate) fn has_broken_pipes_kept_out(thread: &str) -> Option<bool> {
    const SIGPIPE: u32 = 13;
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .find_map(|task| {
            let task = task.unwrap().path();
            let name = std::fs::read_to_string(task.join("comm")).ok()?;
            // The kernel keeps 15 bytes of a name.
            if name.trim_end() != &thread[..thread.len().min(15)] {
                return None;
            }
            let status = std::fs::read_to_string(task.join("status")).ok()?;
            let blocked = status
                .lines()
                .find_map(|line| line.strip_prefix("SigBlk:"))?;
            let blocked = u64::from_str_radix(blocked.trim(), 16).unwrap();
            Some(blocked & (1 << (SIGPIPE - 1)) != 0)
        })
}

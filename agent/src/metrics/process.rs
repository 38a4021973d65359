//! The process's own metrics, under the names that Prometheus' client libraries share.
//! <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

use super::text::{Kind, Page};

/// Writes what /proc tells; what it does not is left out.
pub(super) fn write(page: &mut Page, started: SystemTime) {
    if let Ok(cpu) = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID) {
        page.family("process_cpu_seconds_total", Kind::Counter, "CPU time that meshd used.")
            .sample(&[], Duration::from(cpu).as_secs_f64());
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(bytes) = field_kib(&status, "VmRSS:") {
        page.family("process_resident_memory_bytes", Kind::Gauge, "Memory of meshd in RAM.")
            .sample(&[], bytes);
    }
    if let Some(bytes) = field_kib(&status, "VmSize:") {
        page.family("process_virtual_memory_bytes", Kind::Gauge, "Address space of meshd.")
            .sample(&[], bytes);
    }
    if let Ok(fds) = std::fs::read_dir("/proc/self/fd") {
        page.family("process_open_fds", Kind::Gauge, "Open file descriptors.")
            .sample(&[], fds.count());
    }
    let started = started.duration_since(UNIX_EPOCH).unwrap_or_default();
    page.family("process_start_time_seconds", Kind::Gauge, "When meshd began, since the Unix epoch.")
        .sample(&[], started.as_secs_f64());
}

/// A field of /proc/PID/status that is in KiB, in bytes.
fn field_kib(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_process_is_measured() {
        let mut page = Page::default();
        write(&mut page, SystemTime::now());
        let text = page.finish();
        for name in [
            "process_cpu_seconds_total ",
            "process_resident_memory_bytes ",
            "process_virtual_memory_bytes ",
            "process_open_fds ",
            "process_start_time_seconds ",
        ] {
            let value = text.lines().find_map(|l| l.strip_prefix(name)).unwrap();
            assert!(value.parse::<f64>().unwrap() > 0.0, "{name}{value}");
        }
        assert_eq!(field_kib("VmRSS:\t   12 kB\n", "VmRSS:"), Some(12 * 1024));
        assert_eq!(field_kib("VmRSS:\t   x kB\n", "VmRSS:"), None);
    }
}

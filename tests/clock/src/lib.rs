//! The time of day that a host of the lab has: `scripts/lab clock` loads this into the host's meshd, in front of C's
//! library (ld.so(8), `LD_PRELOAD`).
//!
//! The file that [`FILE`] names has how many seconds it is off; it is read at each question, so a meshd that runs
//! sees another one at once. Timers go on as they are. libfaketime (0.9.10) does more, but is not for threads: told to
//! read its file each time, it gives one of a hundred questions that meet another one the machine's own time, and a
//! certificate that was asked about in that moment held.

use std::{
    env,
    ffi::{CString, c_int},
    os::unix::ffi::OsStringExt as _,
    process,
    sync::OnceLock,
};

use libc::{CLOCK_REALTIME, CLOCK_REALTIME_COARSE, O_CLOEXEC, O_RDONLY, clockid_t, timespec};

/// The variable with the file's path. Without it the time is the machine's.
pub const FILE: &str = "MESH_LAB_CLOCK";

/// `clock_gettime(2)`, with the time of day shifted.
///
/// # Safety
/// As C's: `at` is somewhere that can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, at: *mut timespec) -> c_int {
    // SAFETY: the caller's promise. The kernel's, since C's has this one's name.
    let done = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, at) };
    if done == 0 && matches!(clock, CLOCK_REALTIME | CLOCK_REALTIME_COARSE) {
        // SAFETY: the kernel has just written there.
        unsafe { (*at).tv_sec += offset() };
    }
    // 0 or -1.
    done as c_int
}

/// Seconds that the clock is off. Shares nothing between threads but the path.
fn offset() -> i64 {
    static PATH: OnceLock<Option<CString>> = OnceLock::new();
    let path = PATH.get_or_init(|| env::var_os(FILE).and_then(|path| CString::new(path.into_vec()).ok()));
    let Some(path) = path else { return 0 };
    let mut text = [0; 24];
    // SAFETY: a path that ends with 0, and room for what is read. Not std's, which may ask what time it is.
    let read = unsafe {
        let file = libc::open(path.as_ptr(), O_RDONLY | O_CLOEXEC);
        let read = libc::read(file, text.as_mut_ptr().cast(), text.len());
        libc::close(file);
        read
    };
    let text = usize::try_from(read).ok().and_then(|n| str::from_utf8(&text[..n]).ok());
    text.and_then(|text| text.trim().parse().ok()).unwrap_or_else(|| {
        // A test that goes on with another clock than its own proves nothing.
        eprintln!("mesh-clock: no number of seconds in {path:?}, which {FILE} names");
        process::abort()
    })
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::Path,
        process::Command,
        thread,
        time::{Duration, SystemTime},
    };

    use super::*;

    const DAY: u64 = 86_400;

    fn set(file: &Path, seconds: u64) {
        let new = file.with_extension("new");
        fs::write(&new, format!("-{seconds}\n")).unwrap();
        fs::rename(new, file).unwrap();
    }

    /// What [`every_thread_has_the_time_that_was_set`] runs once more, since the variable is read once: in a test, this
    /// library is in front of C's as well.
    #[test]
    #[ignore = "run by every_thread_has_the_time_that_was_set"]
    fn asked_by_many() {
        let ask = || {
            for _ in 0..20_000 {
                let mut real = timespec { tv_sec: 0, tv_nsec: 0 };
                assert_eq!(unsafe { libc::syscall(libc::SYS_clock_gettime, CLOCK_REALTIME, &mut real) }, 0);
                let real = SystemTime::UNIX_EPOCH + Duration::from_secs(real.tv_sec as u64);
                let off = real.duration_since(SystemTime::now()).unwrap().as_secs();
                // A question, and another, and what stops threads in between.
                assert!((DAY - 60..=DAY).contains(&off) || (2 * DAY - 60..=2 * DAY).contains(&off), "{off}");
            }
        };
        thread::scope(|threads| (0..8).for_each(|_| drop(threads.spawn(ask))));
    }

    #[test]
    fn every_thread_has_the_time_that_was_set() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("clock");
        set(&file, DAY);
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "tests::asked_by_many", "--ignored"])
            .env(FILE, &file)
            .spawn()
            .unwrap();
        let ended = loop {
            for days in [2, 1] {
                set(&file, days * DAY);
            }
            if let Some(ended) = child.try_wait().unwrap() {
                break ended;
            }
        };
        assert!(ended.success(), "{ended}");
    }

    #[test]
    fn without_the_variable_it_is_the_machines_time() {
        let mut real = timespec { tv_sec: 0, tv_nsec: 0 };
        assert_eq!(unsafe { libc::syscall(libc::SYS_clock_gettime, CLOCK_REALTIME, &mut real) }, 0);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert!((0..60).contains(&(now.as_secs() as i64 - real.tv_sec)));
    }
}

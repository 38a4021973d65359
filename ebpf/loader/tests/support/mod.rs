//! What the tests share: network namespaces of threads, which leave nothing behind.
#![expect(clippy::unwrap_used, dead_code, reason = "each test uses a part of it")]

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, UdpSocket},
    path::Path,
    process::Command,
    sync::mpsc::{Sender, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

pub mod frame;
pub mod lab;
pub mod packet;
pub mod table;
pub mod world;

/// Waits for a datagram, as long as the socket's time for it lasts. What waits with a limit is interrupted by the end of
/// a child, if the thread that made that one is at making it still.
pub fn received(socket: &UdpSocket, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    loop {
        match socket.recv_from(buf) {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A network and mount namespace that lives as long as its thread.
pub struct Ns {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// Names it for `ip link set … netns`.
    pub path: String,
}

impl Ns {
    pub fn new() -> Self {
        let (jobs, queue) = channel::<Job>();
        let (ready, path) = channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
            // Of this namespace, so that the files below /proc/sys and /sys/class/net are its own.
            ready
                .send(format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid()))
                .unwrap();
            while let Ok(job) = queue.recv() {
                job();
            }
        });
        let ns = Self {
            jobs: Some(jobs),
            thread: Some(thread),
            path: path.recv().unwrap(),
        };
        ns.ip("link set lo up");
        ns
    }

    /// Runs `f` in the namespace; panics come back.
    pub fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel();
        let job: Job = Box::new(move || drop(done.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)))));
        self.jobs.as_ref().unwrap().send(job).unwrap();
        match result.recv().unwrap() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// A command and its output; it must succeed.
    pub fn sh(&self, command: &str) -> String {
        let line = command.to_owned();
        self.run(move || {
            let out = Command::new("sh").args(["-c", &line]).output().unwrap();
            assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).unwrap()
        })
    }

    /// `ip …`.
    pub fn ip(&self, args: &str) -> String {
        self.sh(&format!("ip {args}"))
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Waits until `done` gives something, at most ten seconds.
pub fn wait<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "waited in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Pin directory below a directory of the test's own.
pub fn pins(dir: &Path) -> std::path::PathBuf {
    dir.join("bpf")
}

/// CLOCK_MONOTONIC in nanoseconds, as the programs take it.
#[expect(unsafe_code, reason = "nix has this behind a feature of its own")]
pub fn boot_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid struct.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Makes an LRU map with these rows at `pin`, as another version would have.
#[expect(unsafe_code, reason = "bpf(2) is called directly")]
pub fn old_map(pin: &std::path::Path, rows: &[(mesh_ebpf_common::rows::FlowKey, Vec<u8>)]) {
    let bpf = |command: libc::c_long, attr: &mut [u64; 8]| {
        // SAFETY: union bpf_attr's members for these commands; the pointers in it live until the call returns.
        let ret = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) };
        assert!(ret >= 0, "bpf({command}): {}", std::io::Error::last_os_error());
        ret as u64
    };
    let value_size = rows[0].1.len() as u64;
    // BPF_MAP_CREATE: type and key size, value size and capacity.
    let fd = bpf(0, &mut [9 | 40 << 32, value_size | 1024 << 32, 0, 0, 0, 0, 0, 0]);
    for (key, value) in rows {
        // BPF_MAP_UPDATE_ELEM.
        bpf(2, &mut [fd, std::ptr::from_ref(key) as u64, value.as_ptr() as u64, 0, 0, 0, 0, 0]);
    }
    let path = std::ffi::CString::new(pin.to_str().unwrap()).unwrap();
    // BPF_OBJ_PIN.
    bpf(6, &mut [path.as_ptr() as u64, fd, 0, 0, 0, 0, 0, 0]);
    // SAFETY: our own descriptor, used no more.
    unsafe { libc::close(fd as i32) };
}

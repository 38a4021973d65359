//! What the tests share: network namespaces of threads, which leave nothing behind.
#![expect(clippy::unwrap_used, dead_code, reason = "each test uses a part of it")]

use std::{
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
pub mod world;

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

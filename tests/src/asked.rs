//! Clients that go on asking while something is done: what nobody may notice.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Lab, Place, Result, address};

impl Lab {
    /// Requests one after the other at the published port of each host, while `meanwhile` is done; how many
    /// there were. The first that fails is an error.
    pub fn asked_meanwhile(&self, hosts: &[&str], port: u16, meanwhile: impl FnOnce() -> Result<()>) -> Result<usize> {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let ask = |host: &&str| {
                let (to, over) = (format!("{}:{port}", address(host)), &over);
                scope.spawn(move || {
                    let mut count = 0;
                    while !over.load(Ordering::Relaxed) {
                        count += self.http(Place::Client, &to, 200).map_err(|e| e.to_string())?.len();
                    }
                    Ok::<_, String>(count)
                })
            };
            let asking: Vec<_> = hosts.iter().map(ask).collect();
            let done = meanwhile();
            over.store(true, Ordering::Relaxed);
            let mut count = 0;
            for asked in asking {
                count += asked.join().unwrap_or_else(|_| Err("a thread failed".into()))?;
            }
            done.map(|()| count)
        })
    }
}

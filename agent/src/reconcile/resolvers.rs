//! The resolvers that Docker's embedded one asks: those of the host's resolv.conf (resolv.conf(5)), of
//! IPv4, as libnetwork reads them (sandbox_dns_unix.go, resolvconf.Path).

use std::{collections::BTreeSet, fs, net::Ipv4Addr, path::Path};

/// Where the servers behind systemd-resolved's own address are.
const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
const RESOLVED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);

/// Those of this host. A file that can not be read has none: the DNS says so where it matters.
pub fn of_host(resolv_conf: &Path) -> BTreeSet<Ipv4Addr> {
    let read = |path: &Path| nameservers(&fs::read_to_string(path).unwrap_or_default());
    let mut found = read(resolv_conf);
    if found.len() == 1 && found.contains(&RESOLVED) {
        found = read(Path::new(BEHIND_RESOLVED));
    }
    // Docker asks those from the host's own namespace.
    found.retain(|ip| !ip.is_loopback() && !ip.is_unspecified());
    found
}

fn nameservers(text: &str) -> BTreeSet<Ipv4Addr> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let is_server = words.next() == Some("nameserver");
        words.next().filter(|_| is_server)?.parse().ok()
    };
    text.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_name_servers() {
        let text = "# nameserver 192.0.2.9\nnameserver 192.0.2.1\nsearch x\nnameserver\n nameserver 192.0.2.2 x\nnameserver ::1\noptions ndots:1\n";
        let found: Vec<_> = nameservers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1", "192.0.2.2"]);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        fs::write(&file, "nameserver 127.0.0.1\nnameserver 192.0.2.1\n").unwrap();
        assert_eq!(of_host(&file), BTreeSet::from([Ipv4Addr::new(192, 0, 2, 1)]));
        assert!(of_host(&dir.path().join("none")).is_empty());
    }
}

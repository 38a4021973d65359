//! IPv6: beside IPv4, alone, and under it.

use mesh_tests::{BACKENDS, Lab, Place, Result, address, address6, tally, until, within};

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];
/// The client machine, and a server in the world outside.
const CLIENT6: &str = "fd77::200";
const OUTSIDE6: &str = "2001:db8:100::1";

/// Its addresses.
fn ips(lab: &Lab, network: &str, name: &str) -> Result<Vec<String>> {
    let e = lab.endpoint(network, name)?;
    Ok(std::iter::once(e.ip).chain(e.ip6).collect())
}

/// The virtual addresses of a service in its first network.
fn vips(lab: &Lab, service: &str) -> Result<Vec<String>> {
    let seen = lab.json("h1", &format!("service inspect {service}"))?;
    let seen = seen.as_array().and_then(|l| l.first()).unwrap_or(&seen);
    let vip = &seen["vips"][0];
    Ok(["ip", "ip6"].iter().filter_map(|k| vip[k].as_str()).map(str::to_owned).collect())
}

/// What a name resolves to in a container, sorted.
fn resolve(lab: &Lab, container: &str, name: &str) -> Result<Vec<String>> {
    let done = lab.at(Place::In(container), &format!("meshd-echo client resolve {name}"))?;
    let mut found: Vec<_> = done.ok()?.lines().map(str::to_owned).collect();
    found.sort();
    found.dedup();
    Ok(found)
}

fn sorted(mut list: Vec<String>) -> Vec<String> {
    list.sort();
    list
}

/// `ip` and `port` as one word.
fn at(ip: &str, port: u16) -> String {
    if ip.contains(':') {
        format!("[{ip}]:{port}")
    } else {
        format!("{ip}:{port}")
    }
}

/// Containers w1 to w3, one on each host, behind the service `web` at port 8888.
fn backends(lab: &Lab) -> Result<()> {
    lab.ctl(
        "h1",
        "service create --name web --network demo --publish 8888:80 --publish 8888:7/udp",
    )?
    .ok()?;
    lab.backends("demo", "web")?;
    Ok(())
}

/// Each container reaches each other one by each of its addresses, and is seen with its own.
fn all_pairs(lab: &Lab) -> Result<()> {
    for from in BACKENDS {
        let sources = ips(lab, "demo", from)?;
        assert_eq!(sources.len(), 2, "{sources:?}");
        for to in BACKENDS.iter().filter(|to| **to != from) {
            for (source, target) in sources.iter().zip(ips(lab, "demo", to)?) {
                lab.at(Place::In(from), &format!("ping -n -c 2 -i 0.01 -W 2 {target}"))?.ok()?;
                let mut connection = lab.connect(Place::In(from), &at(&target, 7))?;
                for reply in [connection.ask()?, lab.udp(Place::In(from), &at(&target, 7), 1)?.remove(0)] {
                    assert_eq!((reply.hostname.as_str(), &reply.client), (*to, source), "{from} to {target}");
                }
            }
        }
    }
    Ok(())
}

/// Published ports answer by turns at both addresses of every host, and backends see who asks.
fn published(lab: &Lab) -> Result<()> {
    lab.balanced(&HOSTS, 8888, &BACKENDS)?;
    for host in HOSTS {
        for (to, client) in [(address(host), "192.168.77.200"), (address6(host), CLIENT6)] {
            let to = at(&to, 8888);
            until(10, &format!("{to} to be balanced"), || {
                Ok(lab
                    .http(Place::Client, &to, 6)
                    .is_ok_and(|seen| tally(&seen).values().eq([2, 2, 2].iter())))
            })?;
            for seen in [lab.http(Place::Client, &to, 12)?, lab.udp(Place::Client, &to, 12)?] {
                assert!(tally(&seen).values().eq([4, 4, 4].iter()), "{to}: {:?}", tally(&seen));
                assert!(seen.iter().all(|r| r.client == client), "{seen:?}");
            }
            lab.at(Place::Client, &format!("meshd-echo client download {to} 20000000 --timeout 30"))?
                .ok()?;
        }
    }
    Ok(())
}

/// Virtual addresses lead to every backend, from every host.
fn virtual_addresses(lab: &Lab, users: &[&str]) -> Result<()> {
    let vips = vips(lab, "web")?;
    assert_eq!(vips.len(), 2, "{vips:?}");
    for user in users {
        assert_eq!(resolve(lab, user, "web")?, sorted(vips.clone()));
        for vip in &vips {
            let seen = within(10, &format!("{user} to reach {vip}"), || {
                Ok(lab.http(Place::In(user), &at(vip, 80), 12).ok())
            })?;
            assert!(tally(&seen).keys().map(String::as_str).eq(BACKENDS), "{vip}: {seen:?}");
        }
    }
    Ok(())
}

#[test]
fn both_families_in_one_network() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo --ipv6")?.ok()?;
    let subnets = lab.network("demo")?.subnets;
    assert_eq!(subnets.len(), 2);
    assert!(
        subnets[1].subnet.starts_with("fd") && subnets[1].subnet.ends_with("/64"),
        "{subnets:?}"
    );
    backends(&lab)?;
    all_pairs(&lab)?;
    lab.echo("h1", "user", "--network demo")?;
    lab.container("h2", "other", "--network demo")?;
    for name in BACKENDS {
        assert_eq!(resolve(&lab, "user", name)?, sorted(ips(&lab, "demo", name)?));
        let ip6 = lab.endpoint("demo", name)?.ip6.ok_or("no IPv6 address")?;
        let back = lab.at(Place::In("user"), &format!("getent hosts {ip6}"))?.ok()?;
        assert!(back.contains(&format!("{name}.demo")), "{back}");
    }
    virtual_addresses(&lab, &["user", "other"])?;
    published(&lab)?;
    // Out into the world, and the host into the network.
    let outside = lab.http(Place::In("user"), &at(OUTSIDE6, 80), 1)?;
    assert_eq!(outside[0].client, address6("h1"), "by the host's address");
    for host in HOSTS {
        for ip in ips(&lab, "demo", "w2")? {
            assert_eq!(lab.http(Place::Host(host), &at(&ip, 80), 1)?[0].hostname, "w2", "{host} to {ip}");
        }
    }
    // Chosen addresses, and both given back.
    let [range4, range6] = [0, 1].map(|i| subnets[i].gateway.clone());
    let (ip4, ip6) = (format!("{range4}00"), format!("{range6}234"));
    lab.container("h3", "chosen", &format!("--network demo --ip {ip4} --ip6 {ip6}"))?;
    assert_eq!(ips(&lab, "demo", "chosen")?, [ip4, ip6.clone()]);
    lab.ctl("h1", &format!("network connect --ip6 {ip6} --hostname again demo netns:user"))?
        .refused(4, &[])?;
    lab.lab(&["stop", "chosen"])?.ok()?;
    // Another network's containers are out of reach.
    lab.ctl("h1", "network create apart --ipv6")?.ok()?;
    lab.container("h1", "stranger", "--network apart")?;
    for ip in ips(&lab, "demo", "user")? {
        let done = lab.at(Place::In("stranger"), &format!("ping -n -c 1 -W 1 {ip}"))?;
        assert_ne!(done.status, 0, "{ip} answers a stranger");
    }
    Ok(())
}

#[test]
fn ipv6_alone() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create six --subnet fd05:0:0:1::/64")?.ok()?;
    lab.ctl(
        "h1",
        "service create --name web --network six --publish 8888:80 --publish 8888:7/udp",
    )?
    .ok()?;
    lab.backends("six", "web")?;
    for name in BACKENDS {
        assert_eq!(ips(&lab, "six", name)?.len(), 1);
    }
    // No backend itself: it would be passed over for its own connections.
    lab.container("h1", "user", "--network six")?;
    let addrs = lab.at(Place::In("user"), "ip -4 addr show dev eth0")?.ok()?;
    assert_eq!(addrs.trim(), "", "no IPv4");
    // Names come from the gateway's IPv6 address, and those of the world too.
    assert_eq!(resolve(&lab, "user", "w3")?, ips(&lab, "six", "w3")?);
    assert_eq!(resolve(&lab, "user", "outside.example")?, ["198.51.100.1"]);
    let vip = vips(&lab, "web")?.remove(0);
    assert_eq!(resolve(&lab, "user", "web")?, std::slice::from_ref(&vip));
    let seen = lab.http(Place::In("user"), &at(&vip, 80), 12)?;
    assert_eq!(tally(&seen).len(), 3, "{seen:?}");
    for host in HOSTS {
        let to = at(&address6(host), 8888);
        until(10, &format!("{to} to be balanced"), || {
            Ok(lab.http(Place::Client, &to, 6).is_ok_and(|seen| tally(&seen).len() == 3))
        })?;
        // Nobody serves IPv4: that is refused, not left hanging.
        let asked = lab.at(Place::Client, &format!("meshd-echo client http {}:8888", address(host)))?;
        assert!(asked.err.contains("refused"), "{asked:?}");
        // The host's own processes reach all of them, too.
        for own in [address6(host), "::1".to_owned()] {
            let own = at(&own, 8888);
            for seen in [lab.http(Place::Host(host), &own, 6)?, lab.udp(Place::Host(host), &own, 6)?] {
                assert!(tally(&seen).values().eq([2, 2, 2].iter()), "{host} by {own}: {seen:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn over_an_ipv6_underlay() -> Result<()> {
    let lab = Lab::up("")?;
    for host in ["h3", "h2", "h1"] {
        lab.ctl(host, "leave --force")?.ok()?;
    }
    lab.ctl("h1", &format!("init --advertise-addr {}", address6("h1")))?.joined()?;
    let token = lab.ctl("h1", "token worker -q")?.ok()?;
    let manager = at(&address6("h1"), 2377);
    let join = |host: &str, more: &str| {
        let join = format!("join --token {} {manager} --advertise-addr {}{more}", token.trim(), address6(host));
        lab.ctl(host, &join)
    };
    join("h2", &format!(" --data-path-addr {}", address("h2")))?.refused(1, &["ipv4", "ipv6", "h1"])?;
    for host in ["h2", "h3"] {
        join(host, "")?.joined()?;
    }
    lab.ctl("h1", "network create demo --ipv6")?.ok()?;
    assert_eq!(lab.network("demo")?.mtu, 1430);
    backends(&lab)?;
    all_pairs(&lab)?;
    lab.echo("h1", "user", "--network demo")?;
    virtual_addresses(&lab, &["user"])?;
    published(&lab)
}

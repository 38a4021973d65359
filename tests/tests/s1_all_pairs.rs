//! Scenario 1: everything reaches everything, whole, up to the last byte that fits.

use mesh_tests::{Lab, Network, Place, Result};

/// Containers and their hosts: two on each.
const ENDPOINTS: [(&str, &str); 6] = [("e1", "h1"), ("e2", "h2"), ("e3", "h3"), ("e4", "h1"), ("e5", "h2"), ("e6", "h3")];
/// Bytes around a packet on the underlay: Ethernet, IPv4, UDP and VXLAN headers (RFC 7348).
const VXLAN: u32 = 50;
/// Bytes of the IPv4 and ICMP headers, which ping's -s does not count.
const ICMP: u32 = 28;

#[test]
fn s1_all_pairs() -> Result<()> {
    all_pairs(1500)
}

#[test]
fn s1_all_pairs_jumbo() -> Result<()> {
    all_pairs(9000)
}

fn all_pairs(underlay_mtu: u32) -> Result<()> {
    let lab = Lab::up(&format!("--mtu {underlay_mtu}"))?;
    lab.ctl("h1", "network create pairs --driver overlay")?.ok()?;
    for (name, host) in ENDPOINTS {
        lab.echo(host, name, "--network pairs")?;
    }
    let network = lab.network("pairs")?;
    assert_eq!(network.endpoints.len(), ENDPOINTS.len());
    assert_eq!(network.mtu, underlay_mtu - VXLAN);
    for (from, _) in ENDPOINTS {
        for (to, _) in ENDPOINTS.iter().filter(|(to, _)| *to != from) {
            pair(&lab, &network, from, to)?;
        }
    }
    // Between hosts, and on one.
    for (from, to) in [("e1", "e2"), ("e1", "e4")] {
        let to = ip(&network, to)?;
        for direction in ["download", "upload"] {
            lab.at(
                Place::In(from),
                &format!("meshd-echo client {direction} {to}:80 100000000 --timeout 30"),
            )?
            .ok()?;
        }
        largest(&lab, from, to, network.mtu)?;
    }
    Ok(())
}

/// ICMP, TCP and UDP; each sees the other's own address.
fn pair(lab: &Lab, network: &Network, from: &str, to: &str) -> Result<()> {
    let (source, target) = (ip(network, from)?, ip(network, to)?);
    lab.at(Place::In(from), &format!("ping -n -c 2 -i 0.01 -W 2 {target}"))?.ok()?;
    let mut connection = lab.connect(Place::In(from), &format!("{target}:7"))?;
    for reply in [connection.ask()?, lab.udp(Place::In(from), &format!("{target}:7"), 1)?.remove(0)] {
        assert_eq!((reply.hostname.as_str(), reply.client.as_str()), (to, source));
    }
    Ok(())
}

/// A packet of `mtu` bytes with DF arrives, and one of a byte more is refused by that MTU.
fn largest(lab: &Lab, from: &str, to: &str, mtu: u32) -> Result<()> {
    let ping = |size: u32| lab.at(Place::In(from), &format!("ping -n -c 1 -W 2 -M do -s {} {to}", size - ICMP));
    ping(mtu)?.ok()?;
    let refused = ping(mtu + 1)?;
    assert_ne!(refused.status, 0, "{refused:?}");
    let said = format!("{}{}", refused.out, refused.err);
    assert!(
        said.contains("mtu") && said.contains(&mtu.to_string()),
        "should name the MTU {mtu}: {said}"
    );
    Ok(())
}

fn ip<'a>(network: &'a Network, name: &str) -> Result<&'a str> {
    let endpoint = network.endpoints.iter().find(|e| e.name == name);
    endpoint
        .map(|e| e.ip.as_str())
        .ok_or_else(|| format!("no endpoint {name} in {:?}", network.endpoints).into())
}

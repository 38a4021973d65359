//! Packets that are too large for their way, and datagrams that are larger than any packet.

use mesh_tests::{Lab, Place, Reply, Result, address, address6, until};

/// What the ingress network takes on an underlay of 1500 (RFC 7348).
const INGRESS_MTU: u32 = 1450;

/// Seconds for what is answered at once, where the machine runs.
const LONG: u32 = 20;

/// `ip` and `port` as one word.
fn at(ip: &str, port: u16) -> String {
    if ip.contains(':') {
        format!("[{ip}]:{port}")
    } else {
        format!("{ip}:{port}")
    }
}

/// Bytes of the IP header.
fn head(ip: &str) -> u32 {
    if ip.contains(':') { 40 } else { 20 }
}

/// Who answers a datagram of `size` bytes with one of the same size; none within so many seconds: `None`.
fn datagram(lab: &Lab, from: Place, to: &str, size: u32, seconds: u32) -> Result<Option<String>> {
    let done = lab.at(from, &format!("meshd-echo client udp {to} --size {size} --timeout {seconds}"))?;
    if done.status != 0 {
        return Ok(None);
    }
    let reply: Reply = serde_json::from_str(&done.out)?;
    Ok(Some(reply.hostname))
}

/// h1 and h2 with a container behind the published port 8888 on h2 only, and one that asks on h1.
fn lab() -> Result<Lab> {
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create demo --ipv6")?.ok()?;
    lab.ctl(
        "h1",
        "service create --name web --network demo --publish 8888:80 --publish 8888:7/udp",
    )?
    .ok()?;
    lab.echo("h2", "w1", "--network demo --service web")?;
    lab.container("h1", "user", "--network demo")?;
    lab.balanced(&["h1"], 8888, &["w1"])?;
    Ok(lab)
}

/// What a client's kernel has learnt of the way to `ip`.
fn learnt(lab: &Lab, ip: &str) -> Result<bool> {
    let route = lab.at(Place::Client, &format!("ip -o route get {ip}"))?.ok()?;
    Ok(route.contains(&format!(" mtu {INGRESS_MTU} ")))
}

#[test]
fn a_client_is_told_what_fits_and_datagrams_of_any_size_arrive() -> Result<()> {
    let lab = lab()?;
    for ip in [address("h1"), address6("h1")] {
        let (to, room) = (at(&ip, 8888), INGRESS_MTU - head(&ip) - 8);
        until(10, &format!("{to} to answer"), || {
            Ok(datagram(&lab, Place::Client, &to, 6, 1)?.is_some())
        })?;
        assert_eq!(
            datagram(&lab, Place::Client, &to, room, LONG)?.as_deref(),
            Some("w1"),
            "what just fits"
        );
        assert!(!learnt(&lab, &ip)?);
        // As large as the underlay takes: the client's kernel forbids others to fragment it.
        let most = 1500 - head(&ip) - 8;
        assert_eq!(datagram(&lab, Place::Client, &to, most, 1)?, None, "too large");
        assert!(learnt(&lab, &ip)?, "{to}: nobody told the client");
        for size in [most, room + 1, 9000, 60_000] {
            assert_eq!(
                datagram(&lab, Place::Client, &to, size, LONG)?.as_deref(),
                Some("w1"),
                "{to}: {size} bytes"
            );
        }
    }
    // The virtual addresses, from a container of another host.
    let seen = lab.json("h1", "service inspect web")?;
    let seen = seen.as_array().and_then(|l| l.first()).unwrap_or(&seen);
    for family in ["ip", "ip6"] {
        let vip = seen["vips"][0][family].as_str().ok_or("no virtual address")?;
        for size in [6, 9000, 60_000] {
            let got = datagram(&lab, Place::In("user"), &at(vip, 7), size, LONG)?;
            assert_eq!(got.as_deref(), Some("w1"), "{vip}: {size} bytes");
        }
    }
    Ok(())
}

/// A backend that asks for larger segments than the ingress network takes: the client is told.
#[test]
fn large_segments_are_made_smaller() -> Result<()> {
    let lab = lab()?;
    for (ip, client) in [(address("h1"), "192.168.77.0/24"), (address6("h1"), "fd77::/64")] {
        let gateway = lab.at(
            Place::In("w1"),
            &format!("ip -o route get {}", client.replace("0/24", "200").replace("/64", "200")),
        )?;
        let gateway = gateway.ok()?;
        let via = gateway
            .split_once(" via ")
            .and_then(|(_, rest)| rest.split(' ').next())
            .ok_or("no gateway")?;
        let large = 1500 - head(&ip) - 20;
        lab.at(Place::In("w1"), &format!("ip route add {client} via {via} dev eth0 advmss {large}"))?
            .ok()?;
        let to = at(&ip, 8888);
        lab.at(Place::Client, &format!("meshd-echo client upload {to} 3000000 --timeout 20"))?
            .ok()?;
        assert!(learnt(&lab, &ip)?, "{to}: nobody told the client");
    }
    Ok(())
}

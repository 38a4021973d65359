//! BEHAVIOURS.md, those of packets that already flow while something changes: a test each, on the lab.

use std::time::Instant;

use mesh_tests::{Lab, Place, Process, Result, address, tally, until};

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];

/// Who answers a datagram from this port, so that all are of one flow; nobody within half a second: none.
fn datagram(lab: &Lab, from: Place, port: u16, to: &str) -> Result<Option<String>> {
    let source = if matches!(from, Place::Client) {
        "192.168.77.200"
    } else {
        "0.0.0.0"
    };
    let done = lab.at(from, &format!("meshd-echo client udp {to} --from {source}:{port} --timeout 0.5"))?;
    if done.status != 0 {
        return Ok(None);
    }
    let reply: mesh_tests::Reply = serde_json::from_str(&done.out)?;
    Ok(Some(reply.hostname))
}

#[test]
fn b06_an_address_that_moves_is_reached_and_its_old_connections_end() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo --subnet 172.30.0.0/24")?.ok()?;
    lab.container("h1", "user", "--network demo")?;
    lab.echo("h2", "old", "--network demo --ip 172.30.0.77")?;
    lab.settled(&HOSTS)?;
    let mut long = lab.connect(Place::In("user"), "172.30.0.77:7")?;
    assert_eq!(long.ask()?.hostname, "old");
    lab.lab(&["stop", "old"])?.ok()?;
    lab.echo("h3", "new", "--network demo --ip 172.30.0.77")?;
    until(10, "the address to be reached at its new host", || {
        let done = lab.at(Place::In("user"), "meshd-echo client http 172.30.0.77:80 --timeout 0.5")?;
        Ok(done.out.contains("\"new\""))
    })?;
    assert!(long.ask().is_err(), "the old container's connection does not go on at the new one");
    // And back, while neighbours and forwarding entries of the first move are still young.
    lab.lab(&["stop", "new"])?.ok()?;
    lab.echo("h2", "again", "--network demo --ip 172.30.0.77")?;
    until(10, "the address to be reached where it was", || {
        let done = lab.at(Place::In("user"), "meshd-echo client http 172.30.0.77:80 --timeout 0.5")?;
        Ok(done.out.contains("\"again\""))
    })
}

#[test]
fn b08_what_others_break_on_a_host_is_repaired() -> Result<()> {
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.ctl("h1", "service create --name web --network demo --publish 8080:80")?.ok()?;
    lab.container("h1", "user", "--network demo")?;
    lab.echo("h2", "w", "--network demo --service web")?;
    lab.settled(&["h1", "h2"])?;
    lab.http(Place::In("user"), "web:80", 1)?;
    let before = lab.at(Place::Host("h2"), "nft list table inet meshd")?.ok()?;
    // Twice: the look at everything, every 10 s, may come in time once.
    for _ in 0..2 {
        lab.at(Place::Host("h2"), "nft flush ruleset")?.ok()?;
        until(5, "the rules to be back", || {
            let now = lab.at(Place::Host("h2"), "nft list table inet meshd")?;
            Ok(now.status == 0 && now.out.lines().count() == before.lines().count())
        })?;
    }
    let entries = |lab: &Lab| -> Result<Vec<String>> {
        let shown = lab.at(Place::Host("h1"), "bridge fdb show")?.ok()?;
        let own = shown.lines().filter(|l| l.contains("mx-") && l.contains(" dst "));
        let mut own: Vec<_> = own.map(str::to_owned).collect();
        own.sort();
        Ok(own)
    };
    let had = entries(&lab)?;
    assert!(!had.is_empty());
    for _ in 0..2 {
        for entry in &had {
            lab.at(Place::Host("h1"), &format!("bridge fdb del {}", entry.replace(" extern_learn", "")))?
                .ok()?;
        }
        until(5, "the forwarding entries to be back", || Ok(entries(&lab)? == had))?;
    }
    lab.at(Place::Host("h2"), "ip link set eth0 down")?.ok()?;
    lab.at(Place::Host("h2"), "ip link set eth0 up")?.ok()?;
    until(10, "the network to carry again", || {
        let inside = lab.at(Place::In("user"), "meshd-echo client http web:80 --timeout 0.5")?;
        let to = format!("{}:8080", address("h2"));
        let outside = lab.at(Place::Client, &format!("meshd-echo client http {to} --timeout 0.5"))?;
        Ok(inside.status == 0 && outside.status == 0)
    })?;
    until(10, "h2 to have nothing to complain of", || {
        Ok(lab.json("h2", "status")?["errors"].as_array().is_some_and(Vec::is_empty))
    })
}

#[test]
fn b10_a_range_that_the_host_routes_already_is_refused() -> Result<()> {
    let lab = Lab::up("--nodes 2")?;
    lab.at(Place::Host("h1"), "ip route add 172.40.0.0/16 via 192.168.77.200")?.ok()?;
    // The managers hear of a host's routes a moment later.
    until(10, "the range to be taken", || {
        let done = lab.ctl("h1", "network create demo --subnet 172.40.3.0/24")?;
        if done.status == 0 {
            lab.ctl("h1", "network rm demo")?.ok()?;
            return Ok(false);
        }
        done.refused(4, &["172.40.3.0/24", "172.40.0.0/16", "eth0", "h1"])?;
        Ok(true)
    })?;
    // The underlay itself.
    lab.ctl("h1", "network create demo --subnet 192.168.77.0/24")?
        .refused(4, &["192.168.77.0/24"])?;
    lab.ctl("h1", "network create demo --subnet 172.41.3.0/24")?.ok()?;
    Ok(())
}

#[test]
fn b11_a_port_that_stays_loses_nothing_when_others_change() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.ctl(
        "h1",
        "service create --name web --network demo --publish 8080:80 --publish 8081:7 --publish 9000:7/udp",
    )?
    .ok()?;
    for (host, name) in [("h2", "w2"), ("h3", "w3")] {
        lab.echo(host, name, "--network demo --service web")?;
    }
    lab.balanced(&HOSTS, 8080, &["w2", "w3"])?;
    let (stays, goes) = (format!("{}:8080", address("h1")), format!("{}:8081", address("h1")));
    let mut old = lab.connect(Place::Client, &goes)?;
    old.ask()?;
    // New connections throughout, one after the other; it ends with an error at the first that fails.
    let mut asking = Process::start(lab.command(Place::Client, &["meshd-echo", "client", "http", &stays, "--count", "1000000"])?)?;
    for round in 0..3 {
        let (from, to) = if round % 2 == 0 { (8081, 8082) } else { (8082, 8081) };
        lab.ctl("h1", &format!("service update web --publish-rm {from}:7 --publish-add {to}:7"))?
            .ok()?;
        for host in HOSTS {
            let ask = |port| {
                lab.at(
                    Place::Client,
                    &format!("meshd-echo client tcp {}:{port} --timeout 0.5", address(host)),
                )
            };
            until(10, &format!("{host} to answer at {to} and not at {from}"), || {
                Ok(ask(to)?.status == 0 && ask(from)?.err.to_lowercase().contains("refused"))
            })?;
        }
    }
    assert!(asking.lives()?, "the port that stays was asked in vain");
    drop(asking);
    assert_eq!(lab.udp(Place::Client, &format!("{}:9000", address("h1")), 2)?.len(), 2);
    // What was open by a port that is gone is ended, not left hanging.
    assert!(old.ask().is_err());
    // At once the port is another's.
    lab.ctl("h1", "service create --name next --network demo --publish 8081:80")?.ok()?;
    lab.echo("h2", "n", "--network demo --service next")?;
    lab.balanced(&HOSTS, 8081, &["n"])
}

#[test]
fn b14_udp_outlives_its_server() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.ctl("h1", "service create --name dns --network demo --publish 9000:7/udp")?
        .ok()?;
    lab.container("h1", "user", "--network demo")?;
    let ways = [
        (Place::Client, format!("{}:9000", address("h1"))),
        (Place::Client, format!("{}:9000", address("h3"))),
        (Place::In("user"), "dns:7".to_owned()),
    ];
    // Asked before anybody serves, from the very port that is used later.
    for (from, to) in &ways {
        assert_eq!(datagram(&lab, *from, 23_000, to)?, None);
    }
    let mut before = None;
    for (host, name) in [("h2", "one"), ("h3", "two"), ("h2", "three")] {
        lab.echo(host, name, "--network demo --service dns")?;
        if let Some(before) = before {
            lab.lab(&["stop", before])?.ok()?;
        }
        for (from, to) in &ways {
            until(10, &format!("{name} to answer {from:?} at {to}"), || {
                Ok(datagram(&lab, *from, 23_000, to)?.as_deref() == Some(name))
            })?;
        }
        before = Some(name);
    }
    Ok(())
}

#[test]
fn b17_a_backend_reaches_itself_from_an_address_that_it_can_answer() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.ctl(
        "h1",
        "service create --name web --network demo --publish 8080:80 --publish 9000:7/udp",
    )?
    .ok()?;
    lab.echo("h2", "alone", "--network demo --service web")?;
    lab.balanced(&HOSTS, 8080, &["alone"])?;
    let there = Place::In("alone");
    for to in [
        "web:80".to_owned(),
        format!("{}:8080", address("h2")),
        format!("{}:8080", address("h1")),
    ] {
        for reply in lab.http(there, &to, 3)? {
            assert_eq!(reply.hostname, "alone", "{to}");
            assert_ne!(reply.client, "127.0.0.1", "{to}");
        }
    }
    for to in [
        "web:7".to_owned(),
        format!("{}:9000", address("h2")),
        format!("{}:9000", address("h3")),
    ] {
        assert!(lab.udp(there, &to, 3)?.iter().all(|r| r.hostname == "alone"), "{to}");
    }
    Ok(())
}

/// Counts what comes into a namespace's IP layer with a mark and this TTL: to `port`, by UDP or TCP.
fn count_marked(lab: &Lab, place: Place, protocol: &str, port: u16, ttl: u8) -> Result<()> {
    let rules = format!(
        "add table ip seen{ttl}; add counter ip seen{ttl} marked; \
         add chain ip seen{ttl} in {{ type filter hook prerouting priority -400; }}; \
         add rule ip seen{ttl} in {protocol} dport {port} ip dscp ef ip ttl {ttl} counter name marked"
    );
    lab.argv(place, &["nft", &rules])?.ok().map(drop)
}

/// How many there were.
fn marked(lab: &Lab, place: Place, ttl: u8) -> Result<u64> {
    let shown = lab.at(place, &format!("nft -j list counter ip seen{ttl} marked"))?.ok()?;
    let seen: serde_json::Value = serde_json::from_str(&shown)?;
    let counters = seen["nftables"].as_array().ok_or("no list")?;
    let counter = counters.iter().find_map(|c| c["counter"]["packets"].as_u64());
    counter.ok_or_else(|| format!("no counter: {shown}").into())
}

#[test]
fn b19_what_a_sender_marks_is_marked_on_the_underlay_too() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.ctl("h1", "service create --name web --network demo --publish 8080:80")?.ok()?;
    lab.container("h1", "user", "--network demo")?;
    lab.echo("h3", "w", "--network demo --service web")?;
    lab.balanced(&["h1"], 8080, &["w"])?;
    let mark = "add table ip marks; add chain ip marks out { type filter hook output priority 0; }; \
                add rule ip marks out ip dscp set ef";
    for place in [Place::In("user"), Place::Client] {
        lab.argv(place, &["nft", mark])?.ok()?;
    }
    let (outer, back, inner) = (Place::Host("h3"), Place::Host("h1"), Place::In("w"));
    count_marked(&lab, outer, "udp", 4789, 64)?;
    count_marked(&lab, back, "udp", 4789, 64)?;
    count_marked(&lab, inner, "tcp", 80, 64)?;
    count_marked(&lab, inner, "tcp", 80, 63)?;
    let ip = lab.endpoint("demo", "w")?.ip;
    // By the endpoint's address, by the service's, and by its published port: there the node that is asked is a hop.
    for (from, to, ttl) in [
        (Place::In("user"), format!("{ip}:80"), 64),
        (Place::In("user"), "web:80".to_owned(), 64),
        (Place::Client, format!("{}:8080", address("h1")), 63),
    ] {
        let before = (marked(&lab, outer, 64)?, marked(&lab, inner, ttl)?);
        lab.http(from, &to, 3)?;
        let after = (marked(&lab, outer, 64)?, marked(&lab, inner, ttl)?);
        // SYN, the request and what is acknowledged: at least four packets a connection.
        assert!(after.0 >= before.0 + 12 && after.1 >= before.1 + 12, "{to}: {before:?}, {after:?}");
    }
    // The answers were not marked, and so are their outer packets.
    assert_eq!(marked(&lab, back, 64)?, 0);
    Ok(())
}

#[test]
fn b23_a_connection_to_a_lost_host_is_ended() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.ctl("h1", "service create --name web --network demo --publish 7000:7")?.ok()?;
    lab.container("h1", "user", "--network demo")?;
    lab.echo("h3", "far", "--network demo --service web")?;
    lab.settled(&HOSTS)?;
    let mut inside = lab.connect_for(120, Place::In("user"), "web:7")?;
    assert_eq!(inside.ask()?.hostname, "far");
    // A process of the host, which has its backend by the node's address.
    let mut beside = lab.connect_for(120, Place::Host("h1"), "127.0.0.1:7000")?;
    assert_eq!(beside.ask()?.hostname, "far");
    lab.lab(&["cut", "h3"])?.ok()?;
    until(15, "the service to have nobody", || {
        let done = lab.at(Place::In("user"), "meshd-echo client http web:7 --timeout 0.5")?;
        Ok(done.err.to_lowercase().contains("refused"))
    })?;
    // They are ended, and do not hang for the client's own two minutes.
    let begun = Instant::now();
    assert!(inside.ask().is_err() && beside.ask().is_err());
    assert!(begun.elapsed().as_secs() < 60, "left hanging for {:?}", begun.elapsed());
    Ok(())
}

/// The rule of the README: a published port wins over a process of the host, whichever came first.
#[test]
fn b27_a_published_port_wins_over_a_process_of_the_host() -> Result<()> {
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.echo("h2", "w", "--network demo")?;
    let to = format!("{}:8080", address("h1"));
    let asked = |from| -> Result<bool> {
        let done = lab.at(from, &format!("meshd-echo client http {to} --timeout 0.5"))?;
        Ok(done.status == 0 && !done.out.contains("\"hostname\":\"w\""))
    };
    let host = Process::start(lab.command(Place::Host("h1"), &["meshd-echo", "--http", "8080"])?)?;
    until(5, "the host's process to listen", || asked(Place::Client))?;
    lab.ctl("h1", "service create --name web --network demo --publish 8080:80")?.ok()?;
    lab.lab(&["stop", "w"])?.ok()?;
    lab.echo("h2", "w", "--network demo --service web")?;
    lab.balanced(&["h1", "h2"], 8080, &["w"])?;
    assert!(!asked(Place::Host("h1"))?, "from the host itself too");
    drop(host);
    assert_eq!(tally(&lab.http(Place::Client, &to, 4)?)["w"], 4);
    let _second = Process::start(lab.command(Place::Host("h1"), &["meshd-echo", "--http", "8080"])?)?;
    until(5, "the second to listen", || {
        let shown = lab.at(Place::Host("h1"), "ss -Hltn sport = 8080")?.ok()?;
        Ok(!shown.trim().is_empty())
    })?;
    assert_eq!(tally(&lab.http(Place::Client, &to, 4)?)["w"], 4);
    lab.ctl("h1", "service rm web")?.ok()?;
    until(5, "the port to be the host's again", || asked(Place::Client))
}

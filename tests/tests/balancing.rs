//! The options of a service's balancing (BEHAVIOURS 11, 12, 16, 18, 25), a test each, on the lab.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use mesh_tests::{Lab, Place, Result, address, tally, until};

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];
const NAMES: [&str; 3] = ["w1", "w2", "w3"];

/// The network demo and the service web on port 8080, with an endpoint on each host.
fn web(lab: &Lab, options: &str) -> Result<()> {
    lab.ctl("h1", "network create demo --subnet 172.30.0.0/24")?.ok()?;
    lab.ctl("h1", &format!("service create --name web --network demo {options}"))?
        .ok()?;
    for (host, name) in HOSTS.iter().zip(NAMES) {
        lab.echo(host, name, "--network demo --service web")?;
    }
    lab.settled(&HOSTS)
}

fn port(host: &str, port: u16) -> String {
    format!("{}:{port}", address(host))
}

/// Names of the backends that datagrams from these ports of a client reach, in the ports' order.
fn by_port(lab: &Lab, from: &str, to: &str, count: usize) -> Result<Vec<String>> {
    let done = lab.at(
        Place::Client,
        &format!("meshd-echo client udp {to} --count {count} --from {from} --timeout 3"),
    )?;
    let lines = done.ok()?;
    let replies = lines.lines().map(serde_json::from_str::<mesh_tests::Reply>);
    Ok(replies.map(|r| r.map(|r| r.hostname)).collect::<Result<_, _>>()?)
}

/// Whether a new connection is refused there, at once.
fn refused(lab: &Lab, to: &str) -> Result<bool> {
    let done = lab.at(Place::Client, &format!("meshd-echo client http {to} --timeout 2"))?;
    Ok(done.status != 0 && done.err.to_lowercase().contains("refused"))
}

#[test]
fn turns_follow_the_weights_exactly() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.ctl("h1", "service create --name web --network demo --publish 8080:80")?.ok()?;
    lab.echo("h2", "heavy", "--network demo --service web")?;
    lab.echo("h3", "light", "--network demo --service web")?;
    lab.ctl("h1", "endpoint update heavy --weight 3")?.ok()?;
    let to = port("h1", 8080);
    until(10, "the weights to be known", || {
        let Ok(seen) = lab.http(Place::Client, &to, 8) else {
            return Ok(false);
        };
        let seen = tally(&seen);
        Ok(seen.get("heavy") == Some(&6) && seen.get("light") == Some(&2))
    })?;
    let seen = tally(&lab.http(Place::Client, &to, 400)?);
    assert_eq!((seen["heavy"], seen["light"]), (300, 100));
    let shown = lab.json("h1", "service inspect web")?;
    let weights: BTreeSet<_> = shown["endpoints"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|e| e["weight"].as_u64())
        .collect();
    assert_eq!(weights, [Some(1), Some(3)].into());
    lab.ctl("h1", "endpoint update heavy --weight 0")?.ok()?;
    lab.balanced(&["h1"], 8080, &["light"])
}

/// BEHAVIOURS 18. The routers before a cluster may send a flow to another node at any time: here an
/// address that every node has, and a client that changes its mind about whose it is.
#[test]
fn b18_maglev_chooses_alike_everywhere_and_moves_little() -> Result<()> {
    let lab = Lab::up("")?;
    web(&lab, "--publish 9000:7/udp --lb maglev")?;
    let ask = |host: &str, first: u16| by_port(&lab, &format!("192.168.77.200:{first}"), &port(host, 9000), 60);
    for host in HOSTS {
        until(10, "every node to know every endpoint", || {
            Ok(ask(host, 21_000).is_ok_and(|seen| seen.into_iter().collect::<BTreeSet<_>>().len() == 3))
        })?;
    }
    let one = ask("h1", 22_000)?;
    assert_eq!(one, ask("h2", 22_000)?, "the same flow has the same backend wherever it enters");
    lab.ctl("h1", "endpoint update w2 --state draining")?.ok()?;
    // The third node has not seen these flows.
    let moved = ask("h3", 22_000)?;
    assert!(!moved.contains(&"w2".to_owned()));
    // Few of those that did not have to move did: a table that loses a third is not the same elsewhere.
    let others = one.iter().zip(&moved).filter(|(before, now)| *before != "w2" && before != now);
    assert!(others.count() <= 4, "before {one:?}, now {moved:?}");
    Ok(())
}

/// Name of the device that has an address.
fn device(lab: &Lab, place: Place, address: &str) -> Result<String> {
    let shown = lab.at(place, &format!("ip -o -4 addr show to {address}"))?.ok()?;
    let name = shown.split_whitespace().nth(1);
    Ok(name.ok_or_else(|| format!("no device has {address}"))?.to_owned())
}

#[test]
fn source_hash_keeps_a_client_together() -> Result<()> {
    let lab = Lab::up("")?;
    web(&lab, "--publish 9000:7/udp --publish 8080:80 --lb source-hash")?;
    let mut seen = BTreeSet::new();
    let dev = device(&lab, Place::Client, "192.168.77.200")?;
    for last in 201..=212 {
        let from = format!("192.168.77.{last}");
        lab.at(Place::Client, &format!("ip addr add {from}/24 dev {dev}"))?.ok()?;
        let mut its = BTreeSet::new();
        for host in HOSTS {
            its.extend(by_port(&lab, &format!("{from}:0"), &port(host, 9000), 5)?);
        }
        assert_eq!(its.len(), 1, "{from}: {its:?}");
        seen.extend(its);
    }
    assert!(seen.len() > 1, "all clients have {seen:?}");
    let web: BTreeSet<_> = HOSTS
        .iter()
        .map(|h| lab.http(Place::Client, &port(h, 8080), 5))
        .collect::<Result<Vec<_>>>()?
        .concat()
        .into_iter()
        .map(|r| r.hostname)
        .collect();
    assert_eq!(web.len(), 1, "{web:?}");
    Ok(())
}

/// BEHAVIOURS 16.
#[test]
fn b16_a_client_returns_until_the_timeout_and_never_to_a_draining_one() -> Result<()> {
    let lab = Lab::up("")?;
    web(&lab, "--publish 8080:80 --affinity 8s")?;
    let to = port("h1", 8080);
    let one = |replies: Vec<mesh_tests::Reply>| -> Result<String> {
        let names = tally(&replies);
        assert_eq!(names.len(), 1, "{names:?}");
        Ok(names.into_keys().next().ok_or("nobody answered")?)
    };
    let first = one(lab.http(Place::Client, &to, 10)?)?;
    let last = Instant::now();
    until(30, "the affinity to be over", || Ok(last.elapsed() > Duration::from_secs(10)))?;
    let second = one(lab.http(Place::Client, &to, 10)?)?;
    assert_ne!(first, second, "its turn is over");
    lab.ctl("h1", &format!("endpoint update {second} --state draining"))?.ok()?;
    let third = one(lab.http(Place::Client, &to, 10)?)?;
    assert_ne!(second, third, "it is draining");
    Ok(())
}

/// BEHAVIOURS 25.
#[test]
fn b25_source_ranges_admit_by_the_longest_prefix() -> Result<()> {
    let lab = Lab::up("")?;
    web(&lab, "--publish 8080:80 --source-range !192.168.77.200")?;
    let to = port("h1", 8080);
    let answered = || -> Result<bool> {
        let done = lab.at(Place::Client, &format!("meshd-echo client http {to} --timeout 1"))?;
        Ok(done.status == 0)
    };
    until(10, "the client to be kept out", || Ok(!answered()?))?;
    let update = |change: &str| lab.ctl("h1", &format!("service update web {change}"))?.ok();
    update("--source-range-rm 192.168.77.200")?;
    until(10, "everybody to be let in", &answered)?;
    update("--source-range-add 10.0.0.0/8")?;
    until(10, "only others to be let in", || Ok(!answered()?))?;
    update("--source-range-add 192.168.0.0/16 --source-range-add !192.168.77.0/24 --source-range-add 192.168.77.200")?;
    until(10, "the longest prefix to let it in", &answered)?;
    let ranges = lab.json("h1", "service inspect web")?["source_ranges"].as_array().map(Vec::len);
    assert_eq!(ranges, Some(4));
    Ok(())
}

#[test]
fn host_mode_answers_only_where_an_endpoint_runs() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.ctl(
        "h1",
        "service create --name web --network demo --publish published=8080,target=80,mode=host",
    )?
    .ok()?;
    lab.echo("h1", "w1", "--network demo --service web")?;
    lab.echo("h2", "w2", "--network demo --service web")?;
    lab.balanced(&["h1"], 8080, &["w1"])?;
    lab.balanced(&["h2"], 8080, &["w2"])?;
    assert!(refused(&lab, &port("h3", 8080))?, "nothing runs there");
    lab.lab(&["stop", "w2"])?.ok()?;
    until(5, "the port to be closed", || refused(&lab, &port("h2", 8080)))?;
    lab.ctl("h1", "service create --name other --network demo --publish 8080:80")?
        .refused(4, &["8080/tcp", "web"])
}

#[test]
fn a_containers_own_port_answers_at_its_host() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.echo(
        "h2",
        "one",
        "--network demo --publish 8080:80 --publish 80/tcp --publish 7000:7/udp",
    )?;
    let replies = lab.http(Place::Client, &port("h2", 8080), 3)?;
    assert!(replies.iter().all(|r| r.hostname == "one" && r.client == "192.168.77.200"));
    lab.udp(Place::Client, &port("h2", 7000), 3)?;
    let shown = lab.json("h1", "endpoint inspect one")?;
    let free = shown["ports"][1]["published"].as_u64().ok_or("no port was given")? as u16;
    lab.http(Place::Client, &port("h2", free), 1)?;
    lab.http(Place::Host("h2"), "127.0.0.1:8080", 1)?;
    assert!(refused(&lab, &port("h1", 8080))?, "it does not run there");
    lab.ctl("h1", "service create --name web --network demo --publish 8080:80")?
        .refused(4, &["8080/tcp", "one", "h2"])?;
    lab.lab(&["stop", "one"])?.ok()?;
    until(5, "the port to be closed", || refused(&lab, &port("h2", 8080)))?;
    lab.ctl("h1", "service create --name web --network demo --publish 8080:80")?.ok()?;
    lab.echo("h3", "w3", "--network demo --service web")?;
    let taken = lab.lab(&["run", "h1", "late", "--network", "demo", "--publish", "8080:80", "--", "-"])?;
    taken.refused(4, &["8080/tcp", "web"])
}

#[test]
fn a_bound_port_answers_at_its_address_only() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    for (service, address, host) in [("one", address("h1"), "h3"), ("two", address("h2"), "h1")] {
        lab.ctl(
            "h1",
            &format!("service create --name {service} --network demo --publish {address}:8080:80"),
        )?
        .ok()?;
        lab.echo(host, &format!("{service}-1"), &format!("--network demo --service {service}"))?;
    }
    lab.balanced(&["h1"], 8080, &["one-1"])?;
    lab.balanced(&["h2"], 8080, &["two-1"])?;
    // And to the processes of the host that has it, which keep its address as theirs.
    for (host, name) in [("h1", "one-1"), ("h2", "two-1")] {
        let seen = &lab.http(Place::Host(host), &port(host, 8080), 1)?[0];
        assert_eq!((seen.hostname.as_str(), &seen.client), (name, &address(host)), "{seen:?}");
    }
    assert!(refused(&lab, &port("h3", 8080))?, "nobody has the port there");
    lab.ctl("h1", "service create --name three --network demo --publish 8080:80")?
        .refused(4, &["8080/tcp"])?;
    let shown = lab.json("h1", "service inspect one")?;
    assert_eq!(shown["ports"][0]["address"], address("h1"));
    Ok(())
}

/// Replies that do not go by the node that was asked reach everybody, also who is on the backend's own node.
#[test]
fn replies_go_straight_to_the_client() -> Result<()> {
    let lab = Lab::up("")?;
    web(&lab, "--publish 8080:80 --lb-return direct")?;
    lab.balanced(&["h1"], 8080, &NAMES)?;
    lab.container("h2", "user", "--network demo")?;
    let own = address("h2");
    for (place, client) in [
        (Place::Client, "192.168.77.200"),
        (Place::Host("h2"), &own),
        (Place::In("user"), &own),
    ] {
        let seen = lab.http(place, &port("h1", 8080), 6)?;
        assert!(tally(&seen).values().eq([2, 2, 2].iter()), "{client}: {seen:?}");
        assert!(seen.iter().all(|r| r.client == client), "{seen:?}");
    }
    Ok(())
}

/// BEHAVIOURS 12.
#[test]
fn b12_draining_keeps_what_there_is() -> Result<()> {
    let lab = Lab::up("")?;
    web(&lab, "--publish 8080:80 --publish 7000:7 --drain 5s")?;
    lab.balanced(&HOSTS, 8080, &NAMES)?;
    let mut long = lab.connect(Place::Client, &port("h1", 7000))?;
    let on = long.ask()?.hostname;
    lab.ctl("h1", &format!("endpoint update {on} --state draining"))?.ok()?;
    // It was waited for that every node knows.
    for host in HOSTS {
        let seen = tally(&lab.http(Place::Client, &port(host, 8080), 12)?);
        assert!(!seen.contains_key(&on) && seen.len() == 2, "{host}: {seen:?}");
    }
    assert_eq!(long.ask()?.hostname, on);
    let host = HOSTS[NAMES.iter().position(|n| *n == on).ok_or("an unknown container")?];
    let begun = Instant::now();
    lab.ctl(host, &format!("network disconnect demo netns:{on}"))?.ok()?;
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(4), "its connection had 5 s to end, not {took:?}");
    assert!(long.ask().is_err(), "and ends with it");
    Ok(())
}

/// BEHAVIOURS 12, where no table of flows has the connection: a container's to the VIP.
#[test]
fn b12_a_containers_connection_is_waited_for_too() -> Result<()> {
    let lab = Lab::up("")?;
    web(&lab, "--publish 7000:7 --drain 5s")?;
    lab.container("h3", "asker", "--network demo")?;
    let mut long = lab.connect(Place::In("asker"), "web:7")?;
    let on = long.ask()?.hostname;
    let host = HOSTS[NAMES.iter().position(|n| *n == on).ok_or("an unknown container")?];
    let begun = Instant::now();
    lab.ctl(host, &format!("network disconnect demo netns:{on}"))?.ok()?;
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(4), "its connection had 5 s to end, not {took:?}");
    // Without one there is nothing to wait for, however long it might have.
    lab.ctl("h1", "service update web --drain 300s")?.ok()?;
    let other = NAMES.iter().position(|n| *n != on).ok_or("there is one only")?;
    let begun = Instant::now();
    lab.ctl(HOSTS[other], &format!("network disconnect demo netns:{}", NAMES[other]))?
        .ok()?;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(200), "nobody was connected, and it took {took:?}");
    Ok(())
}

/// BEHAVIOURS 12: removal is acknowledged by every node that balances to the endpoint.
#[test]
fn b12_a_removal_loses_no_request() -> Result<()> {
    let lab = Lab::up("")?;
    web(&lab, "--publish 8080:80")?;
    lab.balanced(&HOSTS, 8080, &NAMES)?;
    let (done, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let streams: Vec<_> = HOSTS
            .iter()
            .map(|host| {
                let (lab, done, stop) = (&lab, &done, &stop);
                scope.spawn(move || -> Result<(), String> {
                    while !stop.load(Ordering::Relaxed) {
                        let seen = lab.http(Place::Client, &port(host, 8080), 40).map_err(|e| format!("{host}: {e}"))?;
                        done.fetch_add(seen.len(), Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        let more = |n: usize| {
            let goal = done.load(Ordering::Relaxed) + n;
            until(20, "requests to be answered", || Ok(done.load(Ordering::Relaxed) >= goal))
        };
        let outcome = more(300)
            .and_then(|()| lab.ctl("h2", "network disconnect demo netns:w2")?.ok())
            .and_then(|_| more(300));
        stop.store(true, Ordering::Relaxed);
        for stream in streams {
            stream.join().map_err(|_| "the requests panicked")??;
        }
        outcome
    })
}

//! Command lines that cannot be read: exit code 2, one line that says what is wrong, and nothing is
//! ever sent (there is no meshd here).

#![expect(clippy::unwrap_used, reason = "test")]

mod common;

use common::{Run, command};

fn run(args: &[&str]) -> Run {
    Run::of(command(args).env("MESHD_SOCKET", "/nonexistent/meshd.sock").output().unwrap())
}

/// Refused with 2, in one line that holds `words`.
fn refused(args: &[&str], words: &str) {
    let run = run(args);
    assert_eq!(run.code, 2, "{args:?}: {run:?}");
    assert_eq!(run.out, "", "{args:?}");
    assert!(run.line().contains(words), "{args:?} should say {words:?}: {}", run.line());
}

#[test]
fn names() {
    let long = "a".repeat(64);
    for (name, words) in [
        ("", "name is empty"),
        (long.as_str(), "has 64 characters"),
        ("a.b", "not a DNS label"),
        ("a_b", "not a DNS label"),
        ("a b", "not a DNS label"),
        ("-a", "not a DNS label"),
        ("a-", "not a DNS label"),
        ("ümlaut", "not a DNS label"),
        ("a\nb", "not a DNS label"),
        ("../etc", "not a DNS label"),
    ] {
        refused(&["network", "create", "--", name], words);
        refused(&["service", "create", "--network", "n", &format!("--name={name}")], words);
        refused(&["network", "connect", "n", "netns:c", &format!("--alias={name}")], words);
        refused(&["network", "connect", "n", "netns:c", &format!("--hostname={name}")], words);
    }
    refused(&["service", "create", "--name", "tasks", "--network", "n"], "reserved");
}

#[test]
fn references_are_not_empty() {
    for args in [
        &["network", "inspect", ""][..],
        &["network", "rm", "a", ""],
        &["node", "inspect", " "],
        &["node", "rm", ""],
        &["service", "inspect", ""],
        &["service", "ps", ""],
        &["service", "create", "--name", "a", "--network", ""],
        &["endpoint", "inspect", ""],
        &["network", "connect", "", "c"],
        &["network", "connect", "n", ""],
    ] {
        refused(args, "empty");
    }
}

#[test]
fn subnets() {
    for (subnet, words) in [
        ("", "not a subnet"),
        ("banana", "not a subnet"),
        ("172.30.0.0", "not a subnet"),
        ("172.30.0.0/33", "not a subnet"),
        ("172.30.0.0/-1", "not a subnet"),
        ("300.0.0.0/8", "not a subnet"),
        ("172.30.5.5/16", "host bits set: use 172.30.0.0/16"),
        ("172.30.0.0/31", "too small"),
        ("172.30.0.0/32", "too small"),
        ("0.0.0.0/0", "unicast"),
        ("16.0.0.0/4", "too large"),
        ("127.0.0.0/8", "unicast"),
        ("224.0.0.0/8", "unicast"),
        ("fd00::1/64", "host bits set: use fd00::/64"),
        ("fd00::/127", "too small"),
        ("ff02::/64", "unicast"),
    ] {
        refused(&["network", "create", "n", &format!("--subnet={subnet}")], words);
    }
    refused(
        &["network", "create", "n", "--subnet", "10.0.0.0/16", "--subnet", "10.0.1.0/24"],
        "overlap",
    );
}

#[test]
fn addresses_of_a_network() {
    let create = |more: &[&str], words: &str| refused(&[&["network", "create", "n", "--subnet", "172.30.0.0/16"], more].concat(), words);
    create(&["--gateway", "172.31.0.1"], "in none of the subnets");
    create(&["--gateway", "172.30.0.0"], "network address");
    create(&["--gateway", "172.30.255.255"], "broadcast address");
    create(&["--gateway", "nope"], "not an IP address");
    create(&["--gateway", "172.30.0.1", "--gateway", "172.30.0.2"], "more than one gateway");
    create(&["--ip-range", "172.31.0.0/24"], "in none of the subnets");
    create(&["--aux-address", "r=172.31.0.1"], "in none of the subnets");
    create(&["--aux-address", "172.30.0.1"], "NAME=ADDRESS");
    create(&["--opt", "mtu=12"], "576 to 65485");
    create(&["--opt", "colour=red"], "not known");
    create(&["--opt", "mtu"], "KEY=VALUE");
    create(&["--label", "=x"], "key is empty");
    create(&["-d", "macvlan"], "use overlay");
    refused(&["network", "create", "n", "--gateway", "172.30.0.1"], "give its subnet too");
}

#[test]
fn ports() {
    let publish = |spec: &str, words: &str| {
        refused(&["service", "create", "--name", "web", "--network", "n", "--publish", spec], words);
        refused(&["service", "update", "web", "--publish-add", spec], words);
    };
    publish("0", "target port 0 is not a port");
    publish("8888:0", "target port 0 is not a port");
    publish("0:80", "published port 0 is not a port");
    publish("70000", "70000 is not a port");
    publish("70000:80", "published port 70000 is not a port: use 1 to 65535");
    publish("8888:70000", "target port 70000 is not a port");
    publish("published=70000,target=80", "published port 70000 is not a port");
    publish("8000-8010:80", "ranges");
    publish("80/sctp", "sctp is not carried: use tcp or udp");
    publish("http", "not a number");
    publish("target=80,mode=global", "ingress or host");
    publish("h1:8080:80", "does not begin with an address");
    publish("fd00::1:8080:80", "not in brackets: use [fd00::1]:8080");
    publish("192.168.77.11:0:80", "published port 0 is not a port");
    publish("published=192.168.77.11,target=80", "not a number");
    for (address, words) in [
        ("0.0.0.0", "leave it out"),
        ("127.0.0.1", "not one that clients can reach"),
        ("[ff02::1]", "not one that clients can reach"),
        ("255.255.255.255", "not one that clients can reach"),
    ] {
        let spec = format!("{address}:8080:80");
        refused(&["service", "create", "--name", "web", "--network", "n", "--publish", &spec], words);
    }
    refused(
        &[
            "service",
            "create",
            "--name",
            "web",
            "--network",
            "n",
            "--publish",
            "80:80",
            "--publish",
            "80:81",
        ],
        "published twice",
    );
}

#[test]
fn services() {
    let create = |more: &[&str], words: &str| refused(&[&["service", "create", "--name", "web", "--network", "n"], more].concat(), words);
    create(&["--lb", "fastest"], "rr, random, maglev, source-hash");
    create(&["--lb", "source_hash"], "source-hash");
    create(&["--lb-return", "dsr"], "tunnel, direct");
    create(&["--endpoint-mode", "dns"], "vip");
    create(&["--drain", "10"], "no unit");
    create(&["--drain=-1s"], "not a duration");
    create(&["--drain", "99999999999s"], "too long");
    create(&["--affinity", "10"], "no unit");
    create(&["--affinity", "25h"], "at most 24h");
    create(&["--source-range", "all"], "not a range of clients");
    create(&["--source-range", "!"], "not a range of clients");
    create(&["--source-range", "10.0.0.1/8"], "host bits set: use 10.0.0.0/8");
    create(&["--source-range", "10.0.0.0/8", "--source-range", "!10.0.0.0/8"], "given twice");
    create(&["--selector", "=x"], "key is empty");
    refused(&["endpoint", "update", "e", "--weight", "1001"], "0 to 1000");
    refused(&["endpoint", "update", "e", "--weight=-1"], "0 to 1000");
    refused(&["endpoint", "update", "e", "--weight", "half"], "0 to 1000");
    refused(&["service", "create", "--name", "web"], "no network");
    refused(&["service", "create", "--network", "n"], "--name");
    refused(&["service", "update", "web"], "nothing to change");
    refused(&["node", "update", "h1"], "nothing to change");
    refused(&["node", "update", "h1", "--availability", "gone"], "drain");
    refused(&["endpoint", "update", "e", "--state", "gone"], "draining");
    refused(&["endpoint", "update", "e"], "--state");
}

#[test]
fn cluster() {
    refused(&["join", "192.168.77.11"], "--token");
    refused(&["join", "--token", "SWMTKN-1-x", "192.168.77.11"], "MESH-1-");
    refused(&["join", "--token", "MESH-1-a-b", "192.168.77.11:0"], "1 to 65535");
    refused(&["join", "--token", "MESH-1-a-b", "http://h1/"], "not a host");
    refused(&["init", "--advertise-addr", "eth0"], "not an IP address");
    refused(&["init", "--default-addr-pool", "10.0.0.1/8"], "host bits");
    refused(
        &["init", "--default-addr-pool", "10.0.0.0/16", "--subnet-size", "12"],
        "holds no /12",
    );
    refused(&["init", "--subnet-size", "31"], "31");
    refused(&["token", "boss"], "worker");
    refused(&["events", "--since", "yesterday"], "duration");
    refused(&["network", "connect", "n", "c", "--ip", "x"], "not an IP address");
    refused(&["network", "connect", "n", "c", "--mac", "01:00:5e:00:00:01"], "multicast");
    refused(&["network", "connect", "n", "c", "--ifname", "a/b"], "interface name");
}

#[test]
fn words_that_mean_nothing() {
    refused(&[], "requires a subcommand");
    refused(&["frobnicate"], "frobnicate");
    refused(&["network"], "(see meshctl network --help)");
    refused(&["network", "create"], "(see meshctl network create --help)");
    refused(&["network", "create", "n", "--nope"], "'--nope'");
    refused(&["network", "create", "n", "extra"], "'extra'");
    refused(&["-o", "yaml", "status"], "json");
    refused(&["completion", "tcsh"], "bash");
}

#[test]
fn help_and_version_go_to_stdout() {
    for args in [
        &["--help"][..],
        &["--version"],
        &["help"],
        &["network", "--help"],
        &["network", "create", "-h"],
        &["help", "service", "update"],
    ] {
        let run = run_plain(args);
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{args:?}");
        assert!(!run.out.is_empty() && !run.out.contains('\x1b'), "{args:?}");
    }
    assert!(
        run_plain(&["network", "create", "--help"])
            .out
            .contains("meshctl network create kafka --driver overlay")
    );
}

fn run_plain(args: &[&str]) -> Run {
    Run::of(command(args).output().unwrap())
}

#[test]
fn completions() {
    for shell in ["bash", "zsh", "fish"] {
        let run = run_plain(&["completion", shell]);
        assert_eq!(run.code, 0);
        assert!(run.out.contains("disconnect") && run.out.contains("ip-range"), "{shell}");
    }
}

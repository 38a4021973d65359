//! The catalog as Consul's HTTP API, read by python3-consul (Debian's, and so with Debian's python) and by curl.

use mesh_tests::{Lab, Place, Result, until};

/// Waits by blocking queries until the service `web` has passing instances as many as its argument says, prints
/// their addresses, and how often it was woken.
const WATCH: &str = r"
import consul, sys
c, index, turns = consul.Consul(), None, 0
while True:
    index, rows = c.health.service('web', passing=True, index=index, wait='10m')
    turns += 1
    if len(rows) == int(sys.argv[1]):
        print(' '.join(sorted('%s:%d' % (r['Service']['Address'], r['Service']['Port']) for r in rows)), turns)
        break
    if turns > 20:
        sys.exit('woken %d times for nothing' % turns)
";

#[test]
fn consuls_clients_read_the_catalog() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.ctl(
        "h1",
        "service create --name web --network demo --publish 8080:80 --label mesh.tags=v1,http",
    )?
    .ok()?;
    for (host, name) in [("h1", "w1"), ("h2", "w2")] {
        lab.echo(host, name, "--network demo --service web")?;
    }
    // A worker answers as well as a manager.
    let on = Place::Host("h3");
    until(10, "h3 to know both instances", || {
        Ok(get(&lab, "health/service/web?passing")?.1.as_array().map(Vec::len) == Some(2))
    })?;
    let (index, services) = get(&lab, "catalog/services")?;
    assert_eq!(services, serde_json::json!({"web": ["http", "v1"]}));
    assert!(index > 0);

    // A client that waits is woken by what concerns it, and not by the rest.
    let mut watch = lab.command(on, &["timeout", "200", "/usr/bin/python3", "-c", WATCH, "3"])?;
    let watch = watch.stdout(std::process::Stdio::piped()).spawn()?;
    let mut made = 0;
    // A node that a busy machine keeps from speaking has the index of what runs there changed.
    until(30, "others to come without a change of this service's index", || {
        let health = get(&lab, "health/service/web")?.0;
        for _ in 0..5 {
            lab.ctl("h1", &format!("network create other{made}"))?.ok()?;
            made += 1;
        }
        Ok(get(&lab, "health/service/web")?.0 == health)
    })?;
    lab.echo("h3", "w3", "--network demo --service web")?;
    let said = String::from_utf8(watch.wait_with_output()?.stdout)?;
    let mut expected: Vec<_> = lab.network("demo")?.endpoints.iter().map(|e| format!("{}:80", e.ip)).collect();
    expected.sort();
    let words: Vec<_> = said.split_whitespace().map(str::to_owned).collect();
    let (turns, addresses) = words.split_last().ok_or("the client said nothing")?;
    assert_eq!(addresses, expected);
    assert!(turns.parse::<u32>()? <= 4, "woken {turns} times");

    // One that drains does not pass, and is still listed.
    lab.ctl("h1", "endpoint update w3 --state draining")?.ok()?;
    until(10, "w3 not to pass", || {
        Ok(get(&lab, "health/service/web?passing")?.1.as_array().map(Vec::len) == Some(2))
    })?;
    assert_eq!(get(&lab, "catalog/service/web")?.1.as_array().map(Vec::len), Some(3));

    // Without any manager it goes on; what is not served says so.
    lab.lab(&["kill", "h1"])?.ok()?;
    assert_eq!(get(&lab, "catalog/service/web")?.1.as_array().map(Vec::len), Some(3));
    for (request, status) in [
        ("-X PUT agent/service/register", "405"),
        ("-H Host:a.example catalog/services", "403"),
        ("-H Host:localhost:8500 catalog/services", "200"),
        ("kv/a", "404"),
        ("catalog/services?index=x", "400"),
    ] {
        let (flags, path) = request.rsplit_once(' ').unwrap_or(("", request));
        let command = format!("curl -s -m 5 -o /dev/null -w %{{http_code}} {flags} http://127.0.0.1:8500/v1/{path}");
        assert_eq!(lab.at(on, &command)?.ok()?, status, "{request}");
    }
    Ok(())
}

/// Asks h3: the index and the answer.
fn get(lab: &Lab, path: &str) -> Result<(u64, serde_json::Value)> {
    let url = format!("http://127.0.0.1:8500/v1/{path}");
    let said = lab.argv(Place::Host("h3"), &["curl", "-s", "-m", "10", "-D", "-", &url])?.ok()?;
    let (head, body) = said.split_once("\r\n\r\n").ok_or_else(|| format!("no answer: {said}"))?;
    let index = head
        .lines()
        .find_map(|l| l.strip_prefix("x-consul-index: "))
        .ok_or_else(|| format!("no index: {said}"))?;
    Ok((index.trim().parse()?, serde_json::from_str(body)?))
}

//! How it ends: exit codes of refusals, half-done removals, streams that are cut, meshd out of reach,
//! readers that leave.

#![expect(clippy::unwrap_used, reason = "test")]

mod common;
mod server;

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    process::Stdio,
};

use common::{Run, command};
use serde_json::json;
use server::Server;

const ID: &str = "0000000000a1";

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn exit_codes_follow_the_refusal() {
    for (status, kind, code) in [
        (400, "malformed", 2),
        (404, "not_found", 3),
        (409, "conflict", 4),
        (503, "unavailable", 5),
        (403, "forbidden", 1),
        (422, "other", 1),
    ] {
        let s = Server::always(status, &json!({"kind": kind, "message": "it is so"}).to_string());
        for line in [
            "status",
            "network inspect x",
            "network create x",
            "network rm x",
            "service update x --drain 1s",
            "events",
            "doctor",
            "token worker",
        ] {
            let run = s.run(&words(line));
            assert_eq!(
                (run.code, run.line(), run.out.replace("[]\n", "").as_str()),
                (code, "meshctl: it is so", ""),
                "{line}"
            );
        }
    }
    let s = Server::always(200, "<html>");
    assert_eq!(s.run(&["status"]).code, 1);
}

#[test]
fn removing_goes_on_after_an_error() {
    let s = Server::new(|seen| match seen.line.as_str() {
        "DELETE /v1/networks/gone" => (
            404,
            json!({"kind": "not_found", "message": "no network named \"gone\""}).to_string(),
        ),
        "DELETE /v1/networks/busy" => (
            409,
            json!({"kind": "conflict", "message": "network \"busy\" has 2 endpoints"}).to_string(),
        ),
        _ => (204, String::new()),
    });
    let run = s.run(&["network", "rm", "a", "busy", "gone", "b"]);
    assert_eq!((run.code, run.out.as_str()), (4, "a\nb\n"));
    assert_eq!(
        run.err,
        "meshctl: network \"busy\" has 2 endpoints\nmeshctl: no network named \"gone\"\n"
    );
    assert_eq!(s.seen().len(), 4);
}

#[test]
fn events_are_lines() {
    let event = json!({"time": "2026-01-31T12:00:00Z", "revision": 12, "action": "create", "kind": "network", "id": ID, "name": "kafka"})
        .to_string();
    let s = Server::always(200, &format!("{event}\n{event}\n"));
    // The stream ends here, which it never should by itself: that is told.
    let run = s.run(&["events", "--since", "2026-01-31T12:00:00Z"]);
    assert_eq!(run.code, 1);
    assert!(run.line().contains("ended the stream"));
    assert_eq!(
        run.out.lines().next().unwrap(),
        format!("2026-01-31T12:00:00.000Z      12  create  network   {ID}  kafka")
    );
    assert_eq!(s.seen()[0].line, "GET /v1/events?since=2026-01-31T12%3A00%3A00Z");
    assert_eq!(s.run(&["events", "-o", "json"]).out, format!("{event}\n{event}\n"));
    assert_eq!(s.run(&["events", "-q", "--since", "7"]).out, format!("{ID}\n{ID}\n"));
}

#[test]
fn flows_are_lines_and_end_with_what_was_counted() {
    let flow = json!({"kind": "flow", "time": "2026-01-31T12:00:00.25Z", "reason": "new_flow", "meaning": "m", "protocol": "tcp",
        "source": "192.168.77.200:4000", "destination": "192.168.77.11:8888", "service": "web",
        "backend": {"id": ID, "name": "w1", "node": "h2", "ip": "172.30.0.3"}, "bytes": 60, "device": "eth0"})
    .to_string();
    let lost = json!({"kind": "lost", "events": 5}).to_string();
    let s = Server::new({
        let packets = std::sync::Mutex::new(0_u64);
        move |seen| {
            if seen.line.contains("/v1/flows") {
                return (200, format!("{flow}\n{lost}\n{flow}\n{flow}\n"));
            }
            let mut n = packets.lock().unwrap();
            *n += 9;
            let reason = json!({"reason": "new_flow", "dropped": false, "packets": *n, "meaning": "m"});
            let traffic = json!({"time": "2026-01-31T12:00:00Z", "clock_ns": *n, "reasons": [reason]});
            (200, traffic.to_string())
        }
    });
    let run = s.run(&words("flows --service web --count 2"));
    assert_eq!((run.code, run.err.as_str()), (0, ""), "{run:?}");
    let lines: Vec<_> = run.out.lines().collect();
    assert!(lines[0].starts_with("TIME") && lines[0].contains("BACKEND"), "{run:?}");
    assert!(lines[1].starts_with("12:00:00.250") && lines[1].ends_with("h2"), "{run:?}");
    assert!(run.out.contains("2 shown, 5 lost"), "{run:?}");
    let asked: Vec<_> = s.seen().into_iter().map(|s| s.line).collect();
    assert_eq!(asked, ["GET /v1/traffic", "GET /v1/flows?service=web", "GET /v1/traffic"]);

    let run = s.run(&words("flows --count 1 -o json"));
    let last: serde_json::Value = serde_json::from_str(run.out.lines().last().unwrap()).unwrap();
    assert_eq!((&last["kind"], &last["shown"]), (&json!("summary"), &json!(1)));
    assert_eq!(last["counted"][0]["packets"], json!(9), "{run:?}");
    s.seen();

    // A meshd that ends the stream by itself: that is told.
    let run = s.run(&words("flows --drops"));
    assert_eq!(run.code, 1);
    assert!(run.line().contains("ended the stream"), "{run:?}");
    assert_eq!(s.seen()[1].line, "GET /v1/flows?drops=true");
}

#[test]
fn says_why_meshd_is_not_reached() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meshd.sock");
    let run = |path: &std::path::Path| Run::of(command(&["status"]).arg("--socket").arg(path).output().unwrap());
    let missing = run(&path);
    assert_eq!((missing.code, missing.out.as_str()), (1, ""));
    assert!(
        missing.line().ends_with("no such file: is meshd running? (systemctl status meshd)"),
        "{}",
        missing.err
    );
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(run(&path).line().contains("nobody listens there"));
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let many = format!("[{}]", vec![json!({"id": ID, "name": "x".repeat(100)}).to_string(); 5000].join(","));
    let s = Server::always(200, &many);
    for args in [&["node", "ls", "-o", "json"][..], &["node", "ls", "-q"]] {
        let mut child = command(args)
            .env("MESHD_SOCKET", s.socket())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = String::new();
        BufReader::with_capacity(16, child.stdout.take().unwrap())
            .read_line(&mut first)
            .unwrap();
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!((child.wait().unwrap().code(), err.as_str()), (Some(0), ""), "{args:?}");
    }
}

/// A meshd whose streams begin and then stay silent.
fn silent() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut first = String::new();
            stream.read_line(&mut first).unwrap();
            let mut line = String::new();
            while stream.read_line(&mut line).unwrap() > 2 {
                line.clear();
            }
            let traffic = json!({"time": "2026-01-31T12:00:00Z", "clock_ns": 1, "reasons": []}).to_string();
            let reply = match first.contains("/v1/traffic") {
                true => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{traffic}", traffic.len()),
                false => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned(),
            };
            stream.get_mut().write_all(reply.as_bytes()).unwrap();
            held.push(stream);
        }
    });
    (dir, path)
}

#[test]
fn a_reader_that_leaves_a_silent_stream_ends_it() {
    let (_dir, socket) = silent();
    for line in ["events", "flows", "flows --drops"] {
        let mut child = command(&words(line))
            .env("MESHD_SOCKET", &socket)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut err = String::new();
        // Its end closes this, and nothing else does.
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!((child.wait().unwrap().code(), err.as_str()), (Some(0), ""), "{line}");
    }
}

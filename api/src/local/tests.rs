//! The client against sockets that answer well, badly, late, or not at all.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
};

use super::*;

/// A socket that takes one connection, reads a request and writes `reply` in the given pieces.
fn server(pieces: &[&str]) -> (tempfile::TempDir, LocalClient, JoinHandle<String>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let pieces: Vec<String> = pieces.iter().map(ToString::to_string).collect();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut seen = String::new();
        let mut buffer = [0; 4096];
        while !seen.contains("\r\n\r\n") || !complete(&seen) {
            let n = stream.read(&mut buffer).await.unwrap();
            assert!(n > 0, "request ends early: {seen}");
            seen.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        }
        for piece in pieces {
            stream.write_all(piece.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            tokio::task::yield_now().await;
        }
        seen
    });
    (dir, LocalClient::new(path), task)
}

fn complete(seen: &str) -> bool {
    let (head, body) = seen.split_once("\r\n\r\n").unwrap();
    let length = head.lines().find_map(|l| {
        l.to_ascii_lowercase()
            .strip_prefix("content-length:")
            .map(|v| v.trim().parse::<usize>().unwrap())
    });
    body.len() >= length.unwrap_or(0)
}

fn reply(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn sends_json_and_reads_it() {
    let (_dir, client, task) = server(&[&reply("201 Created", "{\"a\":1}")]);
    let got: Value = client.post("/v1/x?y=z", &json!({"b": 2})).await.unwrap();
    assert_eq!(got, json!({"a": 1}));
    let seen = task.await.unwrap();
    assert!(
        seen.starts_with("POST /v1/x?y=z HTTP/1.1\r\n") && seen.ends_with("{\"b\":2}"),
        "{seen}"
    );
    assert!(seen.contains("content-type: application/json"), "{seen}");
}

#[tokio::test]
async fn nothing_to_say_is_an_answer() {
    let (_dir, client, _task) = server(&["HTTP/1.1 204 No Content\r\n\r\n"]);
    client.delete::<()>("/v1/x").await.unwrap();
}

#[tokio::test]
async fn a_refusal_keeps_its_kind() {
    let refusal = Refusal::conflict("subnet 172.30.0.0/16 is taken by \"kafka\": choose another");
    let (_dir, client, _task) = server(&[&reply("409 Conflict", &serde_json::to_string(&refusal).unwrap())]);
    let error = client.get::<Value>("/v1/x").await.unwrap_err();
    assert_eq!((error.exit_code(), error.one_line()), (4, refusal.message.clone()));
    assert!(matches!(error, Error::Refused(r) if r == refusal));
}

#[tokio::test]
async fn an_error_in_other_words_stays_one_line() {
    let (_dir, client, _task) = server(&[&reply("422 Unprocessable Entity", "missing\nfield")]);
    let error = client.get::<Value>("/v1/x").await.unwrap_err();
    assert_eq!(
        (error.exit_code(), error.one_line().as_str()),
        (1, "meshd answers 422 Unprocessable Entity missing field")
    );
}

#[tokio::test]
async fn nonsense_is_an_error() {
    for nonsense in [
        "SSH-2.0-x\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{\"a\"",
        &reply("200 OK", "<html>"),
        "",
    ] {
        let (_dir, client, _task) = server(&[nonsense]);
        let error = client.get::<Value>("/v1/x").await.unwrap_err();
        assert_eq!(error.exit_code(), 1, "{nonsense}");
        assert!(!error.one_line().contains('\n'));
    }
}

#[tokio::test]
async fn says_why_there_is_no_connection() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meshd.sock");
    let error = async |path: &Path| LocalClient::new(path).get::<Value>("/").await.unwrap_err();
    let line = error(&path).await.one_line();
    assert!(
        line.ends_with("meshd.sock: no such file: is meshd running? (systemctl status meshd)"),
        "{line}"
    );
    drop(UnixListener::bind(&path).unwrap());
    let line = error(&path).await.one_line();
    assert!(line.contains("nobody listens there"), "{line}");
    let line = error(&dir.path().join("x".repeat(200))).await.one_line();
    assert!(line.starts_with("cannot reach meshd at "), "{line}");
    let denied = LocalClient::new("/s").unreachable(io::ErrorKind::PermissionDenied.into());
    assert!(
        denied
            .one_line()
            .ends_with("permission denied: run as root or as a member of the socket's group")
    );
}

#[tokio::test]
async fn waits_no_longer_than_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let _silent = UnixListener::bind(&path).unwrap();
    let short = Duration::from_millis(20);
    let client = LocalClient::new(path).with_limit(short);
    let error = client.get::<Value>("/").await.unwrap_err();
    assert!(matches!(error, Error::Timeout(limit) if limit == short), "{error}");
    let error = client.delete::<Value>("/").await.unwrap_err();
    assert!(error.one_line().contains("the change may still be made"), "{error}");
}

#[tokio::test]
async fn a_change_that_is_not_answered_may_have_been_made() {
    // The head only: it broke off in the middle.
    let begun = ["HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"];
    let (_dir, client, _task) = server(&begun);
    let line = client.post::<Value>("/v1/networks", &Value::Null).await.unwrap_err().one_line();
    assert!(line.contains("the change may have been made") && line.contains("inspect"), "{line}");
    let (_dir, client, _task) = server(&begun);
    let line = client.get::<Value>("/v1/networks").await.unwrap_err().one_line();
    assert!(line.starts_with("the connection to meshd broke: "), "{line}");
}

#[tokio::test]
async fn lines_come_as_they_are_made() {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let (_dir, client, _task) = server(&[head, "5\r\none\nt\r\n", "4\r\nwo\n\n\r\n", "5\r\nthree\r\n", "0\r\n\r\n"]);
    let mut lines = client.stream_lines("/v1/events").await.unwrap();
    let mut seen = Vec::new();
    while let Some(line) = lines.next().await.unwrap() {
        seen.push(line);
    }
    assert_eq!(seen, ["one", "two", "three"]);
}

#[tokio::test]
async fn a_cut_stream_is_an_error_and_a_refused_one_a_refusal() {
    let (_dir, client, _task) = server(&["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\none\n\r\n"]);
    let mut lines = client.stream_lines("/v1/events").await.unwrap();
    assert_eq!(lines.next().await.unwrap().as_deref(), Some("one"));
    assert!(matches!(lines.next().await, Err(Error::Broken(_))));
    let (_dir, client, _task) = server(&[&reply(
        "503 Service Unavailable",
        "{\"kind\":\"unavailable\",\"message\":\"no manager\"}",
    )]);
    assert_eq!(client.stream_lines("/v1/events").await.unwrap_err().exit_code(), 5);
}

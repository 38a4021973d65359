//! TCP clients, most of them bad.

mod common;

use std::time::{Duration, Instant};

use common::*;
use hickory_proto::{op::ResponseCode, rr::RecordType};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

/// True if the other side has closed within `patience`.
async fn closed(stream: &mut tokio::net::TcpStream, patience: Duration) -> bool {
    let mut rest = Vec::new();
    timeout(patience, stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test]
async fn bad_clients_hold_nobody_up() {
    let f = Fixture::new(&[]).await;
    let (from, to) = (f.net.ip(10), f.gateway(1));
    let first = Instant::now();
    let mut idle = connect(from, to).await;
    let mut half = connect(from, to).await;
    half.write_all(&[0, 40, 1, 2, 3]).await.unwrap();
    let mut length_only = connect(from, to).await;
    length_only.write_all(&[0xff]).await.unwrap();
    // Asks much, and reads nothing.
    let mut deaf = connect(from, to).await;
    let many = query("many", RecordType::A).to_vec().unwrap();
    let many = [&(many.len() as u16).to_be_bytes(), &many[..]].concat().repeat(2000);
    _ = timeout(Duration::from_millis(300), deaf.write_all(&many)).await;
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(addresses(&tcp(from, to, &query("web", RecordType::A)).await), ["10.1.0.5"]);
    }
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    // Ten seconds for a message, then they are cut off.
    let bound = Duration::from_secs(30);
    for stream in [&mut idle, &mut half, &mut length_only] {
        assert!(closed(stream, bound).await);
    }
    assert!(first.elapsed() > Duration::from_secs(9), "but not before");
}

#[tokio::test]
async fn malformed_messages_are_refused_or_end_the_connection() {
    let f = Fixture::new(&[]).await;
    let (from, to) = (f.net.ip(10), f.gateway(1));
    // No room for a header: nothing to answer.
    for bytes in [&[0, 0][..], &[0, 3, 1, 2, 3]] {
        let mut stream = connect(from, to).await;
        stream.write_all(bytes).await.unwrap();
        assert!(closed(&mut stream, Duration::from_secs(8)).await);
    }
    // A header that promises more than there is.
    let mut stream = connect(from, to).await;
    stream.write_all(&[&[0, 12, 0, 7, 1, 0, 0, 1][..], &[0; 6]].concat()).await.unwrap();
    assert_eq!(code(&read(&mut stream).await), ResponseCode::FormErr);
    write(&mut stream, &query("web", RecordType::A)).await;
    assert_eq!(addresses(&read(&mut stream).await), ["10.1.0.5"], "and the connection goes on");
}

#[tokio::test]
async fn queries_overtake_slow_ones_on_one_connection() {
    let net = Net::new();
    let port = net.port();
    let f = Fixture::at(net, port, &[net.ip(200)]).await;
    let good = vec![ip("192.0.2.80")];
    let _slow = Resolver::slow(
        (net.ip(200), port).into(),
        Duration::from_millis(800),
        always(ResponseCode::NoError, good),
    )
    .await;
    let mut stream = connect(f.net.ip(10), f.gateway(1)).await;
    let slow = query("www.example.com", RecordType::A);
    let fast = query("web", RecordType::A);
    write(&mut stream, &slow).await;
    write(&mut stream, &fast).await;
    // No more will be sent, but the answers are waited for.
    stream.shutdown().await.unwrap();
    let (first, second) = (read(&mut stream).await, read(&mut stream).await);
    assert_eq!((first.metadata.id, second.metadata.id), (fast.metadata.id, slow.metadata.id));
    assert_eq!(addresses(&second), ["192.0.2.80"]);
}

#[tokio::test]
async fn messages_in_small_pieces() {
    let f = Fixture::new(&[]).await;
    let mut stream = connect(f.net.ip(10), f.gateway(1)).await;
    stream.set_nodelay(true).unwrap();
    let bytes = query("web", RecordType::A).to_vec().unwrap();
    for byte in [&(bytes.len() as u16).to_be_bytes(), &bytes[..]].concat() {
        stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(addresses(&read(&mut stream).await), ["10.1.0.5"]);
}

#[tokio::test]
async fn one_asker_cannot_take_all_connections() {
    let f = Fixture::new(&[]).await;
    let mut held = Vec::new();
    for _ in 0..40 {
        held.push(connect(f.net.ip(10), f.gateway(1)).await);
    }
    assert_eq!(
        addresses(&tcp(f.net.ip(11), f.gateway(1), &query("web", RecordType::A)).await),
        ["10.1.0.5"]
    );
    let mut refused = 0;
    for stream in &mut held {
        refused += usize::from(closed(stream, Duration::from_millis(20)).await);
    }
    assert_eq!((refused, f.dns.stats().connections_refused), (8, 8));
    drop(held);
    let again = async {
        while f.dns.stats().queries < 2 {
            let mut stream = connect(f.net.ip(10), f.gateway(1)).await;
            let bytes = query("web", RecordType::A).to_vec().unwrap();
            _ = stream.write_all(&[&(bytes.len() as u16).to_be_bytes(), &bytes[..]].concat()).await;
            _ = timeout(BOUND, stream.read_u16()).await;
        }
    };
    timeout(BOUND, again).await.expect("closed connections make room");
}

//! Sockets to an endpoint that is gone are ended, and no others.
#![expect(clippy::unwrap_used, reason = "test")]

mod lab;

use std::{
    io::{self, ErrorKind, Read},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use lab::*;
use mesh_core::action::NetAction;
use mesh_overlay::{Netns, Ports};

const GONE: [&str; 2] = ["127.0.0.2", "::1"];
const THERE: &str = "127.0.0.3";

/// A connection within the namespace: both its ends, so that neither closes.
fn connection(to: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(SocketAddr::new(ip(to), 0)).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    (client, listener.accept().unwrap().0)
}

/// What a socket that is read says. The end of a child interrupts, if another thread is at making that one still.
fn failure(mut read: impl FnMut() -> io::Result<usize>) -> ErrorKind {
    loop {
        match read().unwrap_err().kind() {
            ErrorKind::Interrupted => {}
            kind => return kind,
        }
    }
}

fn read(mut stream: &TcpStream) -> ErrorKind {
    failure(|| stream.read(&mut [0]))
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_to_who_is_gone_are_ended() {
    let (host, container) = (Ns::new(), Ns::new());
    container.ok("ip link set lo up");
    let overlay = host.overlay().await;
    let netns = container.open();
    let open = || {
        let gone = GONE.map(connection);
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        datagrams.connect("127.0.0.2:9").unwrap();
        datagrams.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        (gone, connection(THERE), datagrams)
    };
    let (gone, there, datagrams) = netns.run(open).await.unwrap();
    let sandbox = Some((container.path(), netns.inode()));
    // Twice: what is ended is ended.
    for _ in 0..2 {
        let (peers, sandbox) = (GONE.map(ip).into(), sandbox.clone());
        apply(&overlay, [NetAction::EndSockets { sandbox, peers }]).await;
    }
    for (client, _) in &gone {
        // Over ::1 both ends have the same address, and the one that is ended first resets the other.
        let kind = read(client);
        assert!(matches!(kind, ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset), "{kind}");
    }
    assert_eq!(failure(|| datagrams.recv(&mut [0])), ErrorKind::ConnectionAborted);
    assert_eq!(read(&there.0), ErrorKind::WouldBlock, "it is still there");
    // The host's own, and a container that is gone.
    apply(
        &overlay,
        [
            NetAction::EndSockets {
                sandbox: None,
                peers: [ip(THERE)].into(),
            },
            NetAction::EndSockets {
                sandbox: Some(("/run/netns/no-such".into(), 1)),
                peers: [ip(THERE)].into(),
            },
        ],
    )
    .await;
    assert_eq!(read(&there.0), ErrorKind::WouldBlock, "another namespace's");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_others_made_are_counted() {
    let container = Ns::new();
    container.ok("ip link set lo up");
    let netns = container.open();
    let open = || {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        // As a dual-stack server has them: by IPv4, by IPv6, and from an address of its own.
        let to = ["127.0.0.2", "127.0.0.3", "::1"].map(|to| TcpStream::connect(SocketAddr::new(ip(to), port)).unwrap());
        let served: Vec<_> = (0..3).map(|_| listener.accept().unwrap().0).collect();
        (listener, to, served)
    };
    let (listener, clients, served) = netns.run(open).await.unwrap();
    let look = async |own: &[&str], ports: &mut Ports| {
        let own = own.iter().map(|a| ip(a)).collect();
        Netns::connections(&container.path(), netns.inode(), own, ports).await.unwrap()
    };
    let count = async |own: &[&str]| look(own, &mut Ports::default()).await;
    assert_eq!(count(&["127.0.0.2"]).await, 1);
    assert_eq!(count(&["127.0.0.2", "127.0.0.3", "::1"]).await, 2, "its own to itself are nobody's");
    assert_eq!(count(&["127.0.0.1"]).await, 0, "what it connects to is not what it serves");
    // A server that ends in good order.
    let mut ports = Ports::default();
    assert_eq!(look(&["127.0.0.2"], &mut ports).await, 1);
    drop(listener);
    assert_eq!(look(&["127.0.0.2"], &mut ports).await, 1, "it still answers");
    assert_eq!(count(&["127.0.0.2"]).await, 0, "nobody knows who made it");
    drop(clients);
    drop(served);
    until("the connections' end", || {
        container.ok("ss -Htn state established").trim().is_empty()
    });
    assert_eq!(look(&["127.0.0.2", "127.0.0.3"], &mut ports).await, 0);
    let gone = Netns::connections("/run/netns/no-such", 1, [ip("127.0.0.2")].into(), &mut ports).await;
    assert_eq!(gone.unwrap(), 0);
}

//! The control plane over loopback: real certificates, real consensus, real connections.
#![expect(clippy::unwrap_used, reason = "tests")]

mod server_lab;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::StreamExt as _;
use hyper_util::rt::TokioIo;
use mesh_api::{
    proto::{
        ProposeRequest, QueryRequest, RaftMessage, WatchRequest, agents_client::AgentsClient, control_client::ControlClient as Stub,
        raft_client::RaftClient,
    },
    query::Query,
};
use mesh_control::{
    authz,
    client::{Channels, ControlClient, Purpose, WatchEvent},
    consensus::Consensus,
    identity::Identity,
    join, pki,
    server::refusal_of,
    tls,
    token::Token,
};
use mesh_core::{
    Id, RefusalKind,
    command::{Command, NewEndpoint, Reply},
    objects::{EndpointState, Node, NodeState, Object, Objects, Place, Role, Sandbox},
    spec::NetworkSpec,
};
use server_lab::{Host, PATIENCE, Worker, joining};
use tokio::{io::AsyncWriteExt as _, net::TcpListener};
use tonic::transport::{Channel, Endpoint};

fn network(name: &str) -> Command {
    let spec = NetworkSpec {
        name: name.into(),
        attachable: true,
        ..NetworkSpec::default()
    };
    Command::NetworkCreate {
        id: Id::from_bits(rand::random()),
        at: jiff::Timestamp::now(),
        spec,
    }
}

fn endpoint(id: Id, node: Id, name: &str) -> Command {
    let endpoint = NewEndpoint {
        id,
        node,
        network: "n".into(),
        service: None,
        name: name.into(),
        ip: None,
        ip6: None,
        mac: None,
        aliases: Vec::new(),
        labels: Default::default(),
        sandbox: Sandbox::new(
            id.bits(),
            Place {
                container: name.into(),
                netns: format!("/run/netns/{name}"),
                ..Place::default()
            },
        ),
        ifname: None,
        ports: Vec::new(),
        port_ranges: Vec::new(),
    };
    Command::EndpointCreate {
        endpoint,
        at: jiff::Timestamp::now(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_says_precisely_what_is_wrong() {
    let (host, other) = (Host::found(1).await, Host::found(2).await);
    let token = host.token(Role::Worker).await;
    let refused = async |token: &str, addr: &str| {
        let e = join::enroll(token, addr, joining(9)).await.unwrap_err();
        assert!(!e.message.contains('\n'));
        (e.kind, e.message)
    };

    let (kind, text) = refused(&token[..50], &host.addr()).await;
    assert_eq!(
        (kind, text.contains("only 50 characters")),
        (RefusalKind::Malformed, true),
        "{text}"
    );
    let (kind, text) = refused(&token, "what ever").await;
    assert_eq!(
        (kind, text.contains("is not the address of a manager")),
        (RefusalKind::Malformed, true),
        "{text}"
    );
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (kind, text) = refused(&token, &free.to_string()).await;
    assert_eq!(
        (kind, text.contains("connection refused; is meshd running there")),
        (RefusalKind::Unavailable, true),
        "{text}"
    );
    let (kind, text) = refused(&other.token(Role::Worker).await, &host.addr()).await;
    assert_eq!(
        (kind, text.contains("is not the one this token is for")),
        (RefusalKind::Forbidden, true),
        "{text}"
    );

    let wrong = Token {
        digest: token.parse::<Token>().unwrap().digest,
        secret: mesh_control::token::new_secret(),
    };
    let (kind, text) = refused(&wrong.to_string(), &host.addr()).await;
    assert_eq!(
        (kind, text.contains("it may have been rotated; see meshctl token worker")),
        (RefusalKind::Forbidden, true),
        "{text}"
    );
    host.client
        .propose(Command::TokenRotate {
            role: Role::Worker,
            secret: wrong.secret.clone(),
        })
        .await
        .unwrap()
        .1
        .unwrap();
    assert_eq!(
        refused(&token, &host.addr()).await.0,
        RefusalKind::Forbidden,
        "the rotated token is worth nothing"
    );
    assert_eq!(host.token(Role::Worker).await, wrong.to_string());

    // Something that speaks another protocol.
    let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = web.local_addr().unwrap().to_string();
    let serve = tokio::spawn(async move {
        while let Ok((mut tcp, _)) = web.accept().await {
            let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let (kind, text) = refused(&wrong.to_string(), &at).await;
    assert_eq!((kind, text.contains("is not meshd")), (RefusalKind::Other, true), "{text}");
    serve.abort();

    let taken = host.enroll(1).await.unwrap_err();
    assert_eq!(
        (taken.kind, taken.message.contains("is taken")),
        (RefusalKind::Conflict, true),
        "{taken}"
    );
    host.enroll(3).await.unwrap();
    host.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_does_what_it_may_and_no_more() {
    let host = Host::found(1).await;
    let worker = host.worker(2).await;
    let (me, manager) = (worker.identity.file().node, host.identity.file().node);
    assert_eq!(worker.identity.file().role, Role::Worker);
    host.client.propose(network("n")).await.unwrap().1.unwrap();

    let id = Id::from_bits(77);
    let (first, created) = worker.client.propose(endpoint(id, me, "web")).await.unwrap();
    let (second, again) = worker.client.propose(endpoint(id, me, "web")).await.unwrap();
    assert!(second > first);
    assert_eq!(created, again, "repeated, it is the same endpoint");
    let answer = worker.client.query(Query::Network("n".into())).await.unwrap();
    assert!(answer.revision >= second && answer.objects.iter().any(|o| matches!(o, Object::Endpoint(e) if e.id == id)));
    assert!(answer.managers.iter().any(|m| m.node == manager && m.leader && m.voter));
    let set = Command::EndpointSet {
        id,
        state: EndpointState::Ready,
    };
    assert!(matches!(worker.client.propose(set).await.unwrap().1.unwrap(), Reply::Endpoint(e) if e.state == EndpointState::Ready));

    let hint = format!("this node is a worker: run this on a manager (h1, {})", host.identity.file().addr);
    for command in [
        network("m"),
        endpoint(Id::from_bits(78), manager, "x"),
        Command::NodeRemove {
            node: "h1".into(),
            force: true,
        },
    ] {
        let refusal = worker.client.propose(command).await.unwrap_err();
        assert_eq!((refusal.kind, refusal.message), (RefusalKind::Forbidden, hint.clone()));
    }
    assert_eq!(
        worker.client.query(Query::Token(Role::Worker)).await.unwrap_err().kind,
        RefusalKind::Forbidden
    );
    assert_eq!(
        worker.client.query(Query::Service("none".into())).await.unwrap_err().kind,
        RefusalKind::NotFound
    );
    let joined = Command::NodeLiveness {
        id: me,
        state: NodeState::Down,
        dataplane: mesh_core::objects::Dataplane::Unreachable,
    };
    assert_eq!(
        host.client.propose(joined).await.unwrap_err().kind,
        RefusalKind::Forbidden,
        "not even from a manager"
    );

    // Raft is closed to it, whatever its certificate.
    let channels = Channels::new(&worker.identity).unwrap();
    let raft = RaftClient::new(channels.get(Purpose::Raft, &host.addr()))
        .append(RaftMessage::default())
        .await;
    assert_eq!(refusal_of(&raft.unwrap_err()).unwrap().kind, RefusalKind::Forbidden);

    // A renewed certificate is taken up without a restart.
    let before = worker.identity.get().cert_pem;
    worker.client.renew().await.unwrap();
    assert_ne!(worker.identity.get().cert_pem, before);
    let fresh = Channels::new(&worker.identity).unwrap();
    let request = QueryRequest {
        query: serde_json::to_vec(&Query::Head).unwrap(),
    };
    Stub::new(fresh.get(Purpose::Calls, &host.addr())).query(request).await.unwrap();
    host.stop().await;
}

/// Applies a stream's events until `revision`.
async fn follow(worker: &Worker, from: u64, objects: &mut Objects, until: u64) -> Vec<WatchEvent> {
    let mut stream = worker.client.watch(from).await.unwrap();
    let mut events: Vec<WatchEvent> = Vec::new();
    while events.last().is_none_or(|e| e.revision < until || (e.snapshot && !e.complete)) {
        let event = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap();
        event.changes.iter().for_each(|c| objects.apply(c));
        events.push(event);
    }
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_lists_resumes_and_ends_with_the_node() {
    let host = Host::found(1).await;
    let worker = host.worker(2).await;
    let me = worker.identity.file().node;
    let (r1, _) = host.client.propose(network("a")).await.unwrap();
    let mut seen = Objects::default();
    let events = follow(&worker, 0, &mut seen, r1).await;
    assert!(events[0].snapshot && events.iter().any(|e| e.complete));
    assert!(seen.cluster.is_none() && seen.networks.len() == 2 && seen.nodes.len() == 2);

    let from = events.last().unwrap().revision;
    let (_, one) = host.client.propose(network("b")).await.unwrap();
    let (r3, two) = host.client.propose(network("c")).await.unwrap();
    assert!(one.is_ok() && two.is_ok());
    let events = follow(&worker, from, &mut seen, r3).await;
    assert!(events.iter().all(|e| !e.snapshot && e.revision > from));
    assert_eq!(seen.networks, host.raft.objects().1.networks);
    assert_eq!(seen.nodes.len(), 2);

    // A revision of another cluster is worth nothing.
    let channels = Channels::new(&worker.identity).unwrap();
    let mut agents = AgentsClient::new(channels.get(Purpose::Watch, &host.addr()));
    let foreign = WatchRequest {
        revision: r3,
        cluster: Id::from_bits(1).to_string(),
    };
    assert!(
        agents
            .watch(foreign)
            .await
            .unwrap()
            .into_inner()
            .message()
            .await
            .unwrap()
            .unwrap()
            .snapshot
    );

    let mut open = worker.client.watch(r3).await.unwrap();
    host.client
        .propose(Command::NodeRemove {
            node: "h2".into(),
            force: true,
        })
        .await
        .unwrap()
        .1
        .unwrap();
    let end = loop {
        if let Err(end) = tokio::time::timeout(PATIENCE, open.next()).await.unwrap().unwrap() {
            break end;
        }
    };
    let expected = format!("node {me} was removed from the cluster: run meshctl leave --force there, then join it again");
    assert_eq!((end.kind, end.message), (RefusalKind::Forbidden, expected.clone()));
    assert_eq!(
        worker.client.query(Query::Head).await.unwrap_err().message,
        expected,
        "though its certificate is good for months"
    );
    assert_eq!(worker.client.beat(0).await.unwrap_err().kind, RefusalKind::Forbidden);
    assert_eq!(worker.client.watch(0).await.err().map(|e| e.kind), Some(RefusalKind::Forbidden));
    host.stop().await;
}

/// A connection that shows no certificate.
async fn anonymous(host: &Host) -> Channel {
    let digest = host.token(Role::Worker).await.parse::<Token>().unwrap().digest;
    let (config, _) = tls::joiner_config(digest).unwrap();
    let stream = tls::connect(&host.addr(), config, tls::server_name(Id::default()), PATIENCE)
        .await
        .unwrap();
    let mut stream = Some(TokioIo::new(stream));
    let once = tower::service_fn(move |_| {
        let stream = stream.take().ok_or(std::io::Error::from(std::io::ErrorKind::NotConnected));
        async move { stream }
    });
    Endpoint::from_static("http://manager.mesh")
        .connect_with_connector(once)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_are_missing_foreign_expired_or_of_the_wrong_role_open_nothing() {
    let (host, other) = (Host::found(1).await, Host::found(2).await);
    let worker = host.worker(3).await;

    // None: every service but enrolment is closed.
    let channel = anonymous(&host).await;
    let closed = |status: tonic::Status| assert_eq!(refusal_of(&status).unwrap().kind, RefusalKind::Forbidden, "{status:?}");
    closed(Stub::new(channel.clone()).query(QueryRequest::default()).await.unwrap_err());
    closed(Stub::new(channel.clone()).propose(ProposeRequest::default()).await.unwrap_err());
    closed(
        AgentsClient::new(channel.clone())
            .watch(WatchRequest::default())
            .await
            .err()
            .unwrap(),
    );
    closed(RaftClient::new(channel.clone()).vote(RaftMessage::default()).await.unwrap_err());
    closed(RaftClient::new(channel).append(RaftMessage::default()).await.unwrap_err());

    // Expired, and not valid yet: the handshake ends.
    let cluster = host.raft.objects().1.cluster.clone().unwrap();
    let ca = pki::Authority::load(cluster.id, &cluster.ca_cert, &cluster.ca_key).unwrap();
    let day = Duration::from_secs(86_400);
    let now = SystemTime::now();
    for (valid, word) in [
        (now - 2 * day..now - day, "certificate, which has expired"),
        (now + day..now + 2 * day, "refuses this node's certificate"),
    ] {
        let Identity { file, ca_pem, key_pem, .. } = worker.identity.get();
        let cert_pem = ca
            .sign_for(&pki::signing_request(&key_pem).unwrap(), file.node, Role::Manager, valid)
            .unwrap();
        let bad = Worker::of(join::Enrolled {
            identity: Identity {
                file,
                ca_pem,
                cert_pem,
                key_pem,
            },
            node: (**host.raft.objects().1.node("h3").unwrap()).clone(),
        });
        let mut refusal = bad.client.query(Query::Head).await.unwrap_err();
        for _ in 0..20 {
            // On a busy machine a handshake may not end in time, which says nothing.
            if !refusal.message.contains("no answer within") {
                break;
            }
            refusal = bad.client.query(Query::Head).await.unwrap_err();
        }
        assert!(
            refusal.kind == RefusalKind::Unavailable && refusal.message.contains(word),
            "{refusal}"
        );
    }

    // Another cluster's: neither side takes the other.
    let Identity { mut file, .. } = other.identity.get();
    file.managers = vec![host.addr()];
    let stranger = Worker::of(join::Enrolled {
        identity: Identity {
            file,
            ..other.identity.get()
        },
        node: (**other.raft.objects().1.node("h2").unwrap()).clone(),
    });
    let refusal = stranger.client.query(Query::Head).await.unwrap_err();
    assert!(
        refusal.kind == RefusalKind::Unavailable && refusal.message.contains("its certificate is not of this cluster"),
        "{refusal}"
    );

    // A worker that listens does not pass for a manager.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let acceptor = tokio_rustls::TlsAcceptor::from(tls::server_config(&worker.identity).unwrap());
    let serve = tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let _ = acceptor.accept(tcp).await;
        }
    });
    let config = tls::client_config(&host.identity, None).unwrap();
    let e = tls::connect(&at, config, tls::server_name(cluster.id), PATIENCE).await.unwrap_err();
    assert_eq!(
        e.to_string(),
        "TLS: the certificate is that of a worker, and must be that of a manager"
    );
    serve.abort();
    host.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_decide_who_is_ready() {
    let host = Host::found(1).await;
    let worker = host.worker(2).await;
    let state = |want: NodeState| move |all: &Objects| all.node("h2").is_some_and(|n| n.state == want);
    let beats = host.until("a node that beats is ready", state(NodeState::Ready));
    worker.beats_until(1, beats).await;
    worker.beat(41).await;
    let applied = worker.client.query(mesh_api::query::Query::Applied).await.unwrap();
    let h2 = applied.objects.iter().find_map(|o| match o {
        mesh_core::objects::Object::Node(n) if n.hostname == "h2" => Some(n.id),
        _ => None,
    });
    assert_eq!(
        h2.and_then(|h2| applied.applied.get(&h2)),
        Some(&41),
        "what it has applied can be asked"
    );
    assert_eq!(applied.objects.len(), 2);
    host.until("a node that stops is down", state(NodeState::Down)).await;
    let beats = host.until("and ready again", state(NodeState::Ready));
    worker.beats_until(1, beats).await;
    host.until("the manager itself is ready", |all| {
        all.node("h1").is_some_and(|n| n.state == NodeState::Ready)
    })
    .await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_manager_joins_answers_and_hands_on() {
    let first = Host::found(1).await;
    let second = Host::join(&first, 2).await;
    let mut leadership = first.raft.leadership();
    let voters = leadership.wait_for(|l| l.voters.len() == 2 && l.learners.is_empty());
    tokio::time::timeout(PATIENCE, voters).await.unwrap().unwrap();
    second.until("the second manager has the state", |all| all.nodes.len() == 2).await;

    // Joined through the follower, and talking to it alone.
    let enrolled = join::enroll(&first.token(Role::Worker).await, &second.addr(), joining(3))
        .await
        .unwrap();
    assert_eq!(enrolled.identity.file.managers.len(), 2);
    let worker = Worker::of(enrolled);
    worker.identity.set_managers(vec![second.addr()]).unwrap();
    assert_eq!(
        worker.client.query(Query::Nodes).await.unwrap().objects.len(),
        3,
        "the follower names the leader"
    );
    worker.beat(1).await;
    assert_eq!(
        worker.identity.file().managers.len(),
        2,
        "the heartbeat's answer names all managers"
    );

    worker.identity.set_managers(vec![second.addr()]).unwrap();
    let mut stream = worker.client.watch(0).await.unwrap();
    assert!(
        tokio::time::timeout(PATIENCE, stream.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
            .snapshot,
        "a follower serves watches"
    );
    drop(stream);

    first.stop().await;
    second.stop().await;
}

/// Once a manager is told that it is removed, it may stop that very moment.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_managers_either_may_leave() {
    for leader_leaves in [false, true] {
        let first = Host::found(1).await;
        let second = Host::join(&first, 2).await;
        let mut leadership = first.raft.leadership();
        let voters = leadership.wait_for(|l| l.voters.len() == 2 && l.learners.is_empty());
        tokio::time::timeout(PATIENCE, voters).await.unwrap().unwrap();
        let (leaver, other) = if leader_leaves { (first, second) } else { (second, first) };
        let node = leaver.identity.file().node.to_string();
        leaver
            .client
            .propose(Command::NodeRemove { node, force: true })
            .await
            .unwrap()
            .1
            .unwrap();
        leaver.stop().await;
        other.client.propose(network("n")).await.unwrap().1.unwrap();
        assert_eq!(other.raft.objects().1.nodes.len(), 1);
        other.stop().await;
    }
}

/// Whoever knows that a manager is none any more does not ask it, whatever its certificate says; raft does.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_known_to_be_no_manager_is_not_asked() {
    let host = Host::found(1).await;
    let worker = host.worker(2).await;
    let me = worker.identity.file().node;
    let known = Arc::new(std::sync::Mutex::new((0, Objects::default())));
    let roster = {
        let known = known.clone();
        tls::Roster::new(move |name| {
            let known = known.lock().unwrap();
            authz::may_manage(name, known.0, &known.1)
        })
    };
    let channels = Arc::new(Channels::knowing(&worker.identity, Some(roster)).unwrap());
    let client = ControlClient::new(worker.identity.clone(), channels.clone());
    // One that has just joined knows nothing.
    client.query(Query::Head).await.unwrap();
    let (revision, mut all) = host.raft.objects();
    *known.lock().unwrap() = (revision, Objects::clone(&all));
    channels.renew();
    client.query(Query::Head).await.unwrap();

    // As it would be told by another manager.
    let demoted = Node {
        role: Role::Worker,
        raft_id: 0,
        ..Node::clone(all.nodes.values().find(|n| n.id != me).unwrap())
    };
    Arc::make_mut(&mut all).nodes.insert(demoted.id, Arc::new(demoted));
    *known.lock().unwrap() = (revision, Objects::clone(&all));
    channels.renew();
    let why = client.query(Query::Head).await.unwrap_err();
    assert!(
        why.kind == RefusalKind::Unavailable && why.message.contains("no manager any more"),
        "{why}"
    );
    let raft = RaftClient::new(channels.get(Purpose::Raft, &host.addr()))
        .append(RaftMessage::default())
        .await;
    assert_eq!(
        refusal_of(&raft.unwrap_err()).unwrap().kind,
        RefusalKind::Forbidden,
        "reached, and refused there"
    );
    host.stop().await;
}

/// A root is replaced and forgotten: who holds a connection by a certificate of it loses that, and nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn connections_end_with_the_root_that_let_them_in() {
    let host = Host::found(1).await;
    let worker = host.worker(2).await;
    // As one holds it who does not follow.
    let channels = Channels::new(&worker.identity).unwrap();
    let mut held = AgentsClient::new(channels.get(Purpose::Watch, &host.addr()))
        .watch(WatchRequest {
            revision: 0,
            cluster: worker.identity.file().cluster.to_string(),
        })
        .await
        .unwrap()
        .into_inner();
    let mut followed = worker.client.watch(0).await.unwrap();

    let before = host.raft.objects().1.cluster.clone().unwrap();
    let rotate = Command::CaRotate {
        from: before.ca_cert.clone(),
        at: jiff::Timestamp::now(),
        made: None,
    };
    host.client.propose(rotate).await.unwrap().1.unwrap();
    host.client.renew().await.unwrap();
    worker.client.renew().await.unwrap();
    let end = async { while followed.next().await.transpose().unwrap().is_some() {} };
    tokio::time::timeout(PATIENCE, end)
        .await
        .expect("the stream ends with the certificate that it was made with");
    let mut followed = worker.client.watch(0).await.unwrap();

    // Both roots are trusted: what stands, stands.
    let (revision, made) = host.client.propose(network("a")).await.unwrap();
    made.unwrap();
    let seen = async { while held.message().await.unwrap().unwrap().revision < revision {} };
    tokio::time::timeout(PATIENCE, seen).await.unwrap();

    let forget = Command::CaForget {
        roots: vec![before.ca_cert.clone()],
    };
    host.raft.propose(forget).await.unwrap().outcome.unwrap();
    host.client.renew().await.unwrap();
    let ends = async { while let Ok(Some(_)) = held.message().await {} };
    tokio::time::timeout(PATIENCE, ends)
        .await
        .expect("the root that let it in is forgotten");
    let (revision, made) = host.client.propose(network("b")).await.unwrap();
    made.unwrap();
    let seen = async { while followed.next().await.unwrap().unwrap().revision < revision {} };
    tokio::time::timeout(PATIENCE, seen).await.unwrap();
    worker.client.query(Query::Head).await.unwrap();
    host.stop().await;
}

//! Names outside the mesh: resolvers of every kind of badness on loopback.

mod common;

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use common::*;
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{CNAME, NULL, TXT},
    },
};

/// A DNS whose resolvers are `net.ip(200..)`, and their addresses.
async fn with_resolvers(count: u8) -> (Fixture, Vec<SocketAddr>) {
    let net = Net::new();
    let port = net.port();
    let resolvers: Vec<IpAddr> = (0..count).map(|n| net.ip(200 + n)).collect();
    let at = resolvers.iter().map(|r| (*r, port).into()).collect();
    (Fixture::at(net, port, &resolvers).await, at)
}

const NAME: &str = "wWw.Example.com.";

fn good() -> Vec<IpAddr> {
    vec![ip("192.0.2.80")]
}

fn assert_good(answer: &Message) {
    assert_eq!(
        (code(answer), addresses(answer)),
        (ResponseCode::NoError, vec!["192.0.2.80".to_owned()])
    );
}

#[tokio::test]
async fn passes_answers_on_untouched() {
    let (f, at) = with_resolvers(1).await;
    let _resolver = Resolver::new(at[0], |query, _| {
        let mut answer = respond(query, ResponseCode::NoError, &[]);
        let name = query.queries[0].name().clone();
        let target = Name::from_ascii("Target.Example.net.").unwrap();
        answer.add_answer(Record::from_rdata(name, 1234, RData::CNAME(CNAME(target.clone()))));
        answer.add_answer(Record::from_rdata(
            target.clone(),
            4321,
            RData::TXT(TXT::new(vec!["a text".into()])),
        ));
        // An SVCB record that hickory would not decode, and a type that nobody knows.
        for code in [RecordType::SVCB, RecordType::Unknown(65280)] {
            let rdata = NULL::with(vec![0xff, 0xfe, 0xfd]);
            answer.add_answer(Record::from_rdata(target.clone(), 7, RData::Unknown { code, rdata }));
        }
        vec![answer.to_vec().unwrap()]
    })
    .await;
    let asked = query(NAME, RecordType::TXT).to_vec().unwrap();
    let bytes = exchange(f.net.ip(10), f.gateway(1), &asked, BOUND).await.unwrap();
    let kinds_ttls = |kind: u16, ttl: u32, data: &[u8]| {
        let record = [
            &kind.to_be_bytes()[..],
            &1u16.to_be_bytes(),
            &ttl.to_be_bytes(),
            &(data.len() as u16).to_be_bytes(),
            data,
        ]
        .concat();
        bytes.windows(record.len()).any(|w| w == record)
    };
    assert_eq!(bytes[6..8], 4u16.to_be_bytes(), "four answers");
    assert!(kinds_ttls(16, 4321, b"\x06a text") && kinds_ttls(64, 7, &[0xff, 0xfe, 0xfd]) && kinds_ttls(65280, 7, &[0xff, 0xfe, 0xfd]));
    assert!(
        bytes.windows(16).any(|w| w == b"\x03wWw\x07Example\x03com"[..16].as_ref()),
        "the case is kept"
    );
}

#[tokio::test]
async fn a_dead_first_resolver_costs_little_and_then_less() {
    let (f, at) = with_resolvers(2).await;
    // Bound, and silent: worse than refusing.
    let silent = Resolver::new(at[0], |_, _| Vec::new()).await;
    let _good = Resolver::new(at[1], always(ResponseCode::NoError, good())).await;
    let start = Instant::now();
    assert_good(&f.ask(10, NAME, RecordType::A).await);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    let start = Instant::now();
    for _ in 0..10 {
        assert_good(&f.ask(10, NAME, RecordType::A).await);
    }
    assert!(start.elapsed() < Duration::from_secs(8), "it is remembered: {:?}", start.elapsed());
    // Twice where the good one was slow, on a busy machine.
    assert!(silent.asked() <= 2, "{}", silent.asked());
}

#[tokio::test]
async fn a_refusing_port_is_passed_over_at_once() {
    let (f, at) = with_resolvers(2).await;
    let _good = Resolver::new(at[1], always(ResponseCode::NoError, good())).await;
    // Where it is waited for, it is every time.
    let mut took = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        assert_good(&f.ask(10, NAME, RecordType::A).await);
        took.push(start.elapsed());
    }
    assert!(took.iter().any(|t| *t < Duration::from_secs(1)), "{took:?}");
}

#[tokio::test]
async fn servfail_and_refused_fail_over_and_nxdomain_does_not() {
    for code_of_first in [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NotImp] {
        let (f, at) = with_resolvers(2).await;
        let _bad = Resolver::new(at[0], always(code_of_first, vec![])).await;
        let _good = Resolver::new(at[1], always(ResponseCode::NoError, good())).await;
        assert_good(&f.ask(10, NAME, RecordType::A).await);
    }
    let (f, at) = with_resolvers(2).await;
    let _first = Resolver::new(at[0], always(ResponseCode::NXDomain, vec![])).await;
    let second = Resolver::new(at[1], always(ResponseCode::NoError, good())).await;
    assert_eq!(code(&f.ask(10, NAME, RecordType::A).await), ResponseCode::NXDomain);
    assert_eq!(second.asked(), 0);
}

#[tokio::test]
async fn when_all_fail_the_failure_comes_back() {
    let (f, at) = with_resolvers(2).await;
    let bad: Vec<_> = [
        Resolver::new(at[0], always(ResponseCode::Refused, vec![])).await,
        Resolver::new(at[1], always(ResponseCode::ServFail, vec![])).await,
    ]
    .into();
    assert_eq!(code(&f.ask(10, NAME, RecordType::A).await), ResponseCode::Refused);
    assert!(bad.iter().all(|b| b.asked() == 1), "who knows nothing is not asked again");
}

#[tokio::test]
async fn silence_everywhere_is_servfail_within_the_askers_patience() {
    let (f, at) = with_resolvers(1).await;
    let _silent = Resolver::new(at[0], |_, _| Vec::new()).await;
    // It leaves the asker half a second, which a busy machine may need for itself.
    let mut took = Vec::new();
    while took.last().is_none_or(|t| *t >= Duration::from_secs(5)) {
        assert!(took.len() < 4, "{took:?}");
        let start = Instant::now();
        assert_eq!(code(&f.ask(10, NAME, RecordType::A).await), ResponseCode::ServFail);
        took.push(start.elapsed());
    }
    assert_eq!(f.dns.stats().forward_failed, took.len() as u64);
}

#[tokio::test]
async fn a_slow_answer_still_counts() {
    let (f, at) = with_resolvers(1).await;
    let _slow = Resolver::slow(at[0], Duration::from_millis(2000), always(ResponseCode::NoError, good())).await;
    assert_good(&f.ask(10, NAME, RecordType::A).await);
}

#[tokio::test]
async fn forged_answers_are_passed_over() {
    let (f, at) = with_resolvers(1).await;
    let _resolver = Resolver::new(at[0], |query, _| {
        let forged = [ip("203.0.113.66")];
        let mut wrong_id = respond(query, ResponseCode::NoError, &forged);
        wrong_id.metadata.id = wrong_id.metadata.id.wrapping_add(1);
        let mut wrong_name = respond(query, ResponseCode::NoError, &forged);
        wrong_name.queries[0].set_name(Name::from_ascii("other.example.com.").unwrap());
        let mut wrong_type = respond(query, ResponseCode::NoError, &forged);
        wrong_type.queries[0].set_query_type(RecordType::AAAA);
        let mut none = respond(query, ResponseCode::NoError, &forged);
        none.queries.clear();
        let echo = query.to_vec().unwrap();
        let messages = [
            wrong_id,
            wrong_name,
            wrong_type,
            none,
            respond(query, ResponseCode::NoError, &good()),
        ];
        [echo, vec![1, 2, 3]]
            .into_iter()
            .chain(messages.iter().map(|m| m.to_vec().unwrap()))
            .collect()
    })
    .await;
    assert_good(&f.ask(10, NAME, RecordType::A).await);
}

#[tokio::test]
async fn a_malformed_answer_fails_over() {
    let (f, at) = with_resolvers(2).await;
    let _bad = Resolver::new(at[0], |query, _| {
        let mut bytes = respond(query, ResponseCode::NoError, &good()).to_vec().unwrap();
        bytes.truncate(bytes.len() - 3);
        vec![bytes]
    })
    .await;
    let _good = Resolver::new(at[1], always(ResponseCode::NoError, good())).await;
    assert_good(&f.ask(10, NAME, RecordType::A).await);
}

#[tokio::test]
async fn big_answers_reach_everyone_as_far_as_they_fit() {
    let (f, at) = with_resolvers(1).await;
    let many: Vec<IpAddr> = (1..=200).map(|n| ip(&format!("192.0.2.{n}"))).collect();
    let resolver = Resolver::new(at[0], move |query, via| {
        let mut answer = respond(query, ResponseCode::NoError, &many);
        if via == Via::Udp {
            answer.answers.clear();
            answer.metadata.truncation = true;
        }
        vec![answer.to_vec().unwrap()]
    })
    .await;
    let plain = f.ask(10, NAME, RecordType::A).await;
    assert!(code(&plain) == ResponseCode::NoError && plain.metadata.truncation && plain.answers.len() > 20);
    let edns = f.send(10, &with_edns(query(NAME, RecordType::A), 1232)).await;
    assert!(code(&edns) == ResponseCode::NoError && edns.metadata.truncation && edns.answers.len() > 60);
    let whole = tcp(f.net.ip(10), f.gateway(1), &query(NAME, RecordType::A)).await;
    assert!(!whole.metadata.truncation && whole.answers.len() == 200);
    assert_eq!(resolver.asked(), 3);
}

#[tokio::test]
async fn an_oversized_datagram_for_an_asker_without_edns_is_cut() {
    let (f, at) = with_resolvers(1).await;
    let many: Vec<IpAddr> = (1..=100).map(|n| ip(&format!("192.0.2.{n}"))).collect();
    let _resolver = Resolver::new(at[0], always(ResponseCode::NoError, many)).await;
    let answer = f.ask(10, NAME, RecordType::A).await;
    assert!(code(&answer) == ResponseCode::NoError && answer.metadata.truncation && answer.answers.len() > 20);
}

#[tokio::test]
async fn a_cut_answer_that_tcp_cannot_complete_is_passed_on_cut() {
    let (f, at) = with_resolvers(1).await;
    let _resolver = Resolver::new(at[0], |query, via| {
        let mut answer = respond(query, ResponseCode::NoError, &good());
        answer.metadata.truncation = true;
        if via == Via::Udp {
            vec![answer.to_vec().unwrap()]
        } else {
            Vec::new()
        }
    })
    .await;
    let answer = f.ask(10, NAME, RecordType::A).await;
    assert!(answer.metadata.truncation);
    assert_good(&answer);
}

#[tokio::test]
async fn edits_of_resolv_conf_count_at_once() {
    let (f, at) = with_resolvers(2).await;
    let _one = Resolver::new(at[0], always(ResponseCode::NoError, vec![ip("192.0.2.1")])).await;
    let _two = Resolver::new(at[1], always(ResponseCode::NoError, vec![ip("192.0.2.2")])).await;
    assert_eq!(addresses(&f.ask(10, NAME, RecordType::A).await), ["192.0.2.1"]);
    write_resolv_conf(f.dir.path(), &[at[1].ip()]);
    assert_eq!(addresses(&f.ask(10, NAME, RecordType::A).await), ["192.0.2.2"]);
}

#[tokio::test]
async fn never_forwards_to_itself() {
    let net = Net::new();
    let port = net.port();
    let dir = tempfile::tempdir().unwrap();
    write_resolv_conf(dir.path(), &[net.ip(1), net.ip(2)]);
    let config = mesh_dns::Config {
        resolv_conf: dir.path().join("resolv.conf"),
        port,
        upstream_port: port,
        ttl: 5,
    };
    let dns = mesh_dns::Dns::new(config);
    dns.swap(std::sync::Arc::new(table(net))).await.unwrap();
    let start = Instant::now();
    let answer = udp(net.ip(10), (net.ip(1), port).into(), &query(NAME, RecordType::A)).await;
    assert_eq!(code(&answer), ResponseCode::ServFail);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert_eq!(dns.stats().queries, 1, "it did not ask itself");
}

#[tokio::test]
async fn mesh_names_are_never_forwarded() {
    let (f, at) = with_resolvers(1).await;
    let resolver = Resolver::new(at[0], always(ResponseCode::NoError, good())).await;
    for name in [
        "nothing",
        "nothing.shop",
        "secret.lab",
        "tasks.nothing",
        "web",
        "5.0.2.10.in-addr.arpa",
    ] {
        f.ask(10, name, RecordType::AAAA).await;
    }
    assert_eq!(resolver.asked(), 0);
}

#[tokio::test]
async fn too_many_at_once_fail_quickly_and_leave_mesh_names_alone() {
    let (f, at) = with_resolvers(1).await;
    let _silent = Resolver::new(at[0], |_, _| Vec::new()).await;
    let socket = tokio::net::UdpSocket::bind((f.net.ip(10), 0)).await.unwrap();
    socket.connect(f.gateway(1)).await.unwrap();
    let asked = query(NAME, RecordType::A).to_vec().unwrap();
    let mut buffer = [0; 512];
    // One asker may have 256 under way.
    for _ in 0..256 {
        socket.send(&asked).await.unwrap();
    }
    let start = Instant::now();
    socket.send(&asked).await.unwrap();
    let length = tokio::time::timeout(BOUND, socket.recv(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(code(&Message::from_vec(&buffer[..length]).unwrap()), ResponseCode::ServFail);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert_eq!(f.dns.stats().forward_busy, 1);
    assert_eq!(addresses(&f.ask(10, "web", RecordType::A).await), ["10.1.0.5"]);
}

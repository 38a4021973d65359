//! What is answered from the table, over real sockets on loopback.

mod common;

use std::time::Duration;

use common::*;
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, RecordType},
};
use proptest::prelude::*;

#[tokio::test]
async fn names_of_the_askers_networks() {
    let f = Fixture::new(&[]).await;
    assert_eq!(addresses(&f.ask(10, "web", RecordType::A).await), ["10.1.0.5"]);
    assert_eq!(addresses(&f.ask(10, "web.shop.", RecordType::A).await), ["10.1.0.5"]);
    assert_eq!(addresses(&f.ask(10, "tasks.web", RecordType::A).await), ["10.1.0.6", "10.1.0.7"]);
    assert_eq!(addresses(&f.ask(10, "dual", RecordType::AAAA).await), ["fd00::8"]);
    assert_eq!(
        addresses(&f.ask(11, "secret", RecordType::A).await),
        ["10.2.0.5"],
        "on both networks"
    );
    assert_eq!(addresses(&f.ask(12, "secret.lab", RecordType::A).await), ["10.2.0.5"]);
    for name in ["secret", "secret.lab", "nothing", "nothing.shop"] {
        assert_negative(&f.ask(10, name, RecordType::A).await, ResponseCode::NXDomain);
    }
    assert_negative(&f.ask(12, "web.shop", RecordType::A).await, ResponseCode::NXDomain);
    let answer = f.ask(10, "web", RecordType::A).await;
    assert!(answer.answers[0].ttl <= 5 && answer.metadata.authoritative && answer.metadata.recursion_available);
    let stats = f.dns.stats();
    assert_eq!((stats.answered, stats.name_errors, stats.queries, stats.forwarded), (7, 5, 12, 0));
}

#[tokio::test]
async fn what_exists_without_what_was_asked_for() {
    let f = Fixture::new(&[]).await;
    for kind in [
        RecordType::AAAA,
        RecordType::MX,
        RecordType::HTTPS,
        RecordType::TXT,
        RecordType::SOA,
    ] {
        assert_negative(&f.ask(10, "web", kind).await, ResponseCode::NoError);
        assert_negative(&f.ask(10, "web.shop", kind).await, ResponseCode::NoError);
    }
    assert_negative(&f.ask(10, "gone", RecordType::A).await, ResponseCode::NoError);
    assert_eq!(addresses(&f.ask(10, "dual", RecordType::ANY).await), ["10.1.0.8"], "one record set");
}

#[tokio::test]
async fn the_case_of_the_question_is_kept() {
    let f = Fixture::new(&[]).await;
    let answer = f.ask(10, "wEb.sHOp.", RecordType::A).await;
    assert_eq!(answer.queries[0].name().to_ascii(), "wEb.sHOp.");
    assert_eq!(answer.answers[0].name.to_ascii(), "wEb.sHOp.");
    let answer = f.ask(10, "NoThing.SHOP", RecordType::A).await;
    assert_eq!(answer.authorities[0].name.to_ascii(), "SHOP.");
}

#[tokio::test]
async fn names_of_every_legal_length() {
    let mut f = Fixture::new(&[]).await;
    let label = "l".repeat(63);
    // 3 * 64 + 61 = 253 characters.
    let longest = format!("{label}.{label}.{label}.{}", "m".repeat(61));
    assert_eq!(longest.len(), 253);
    let (short, long) = (label.clone(), longest.clone());
    f.swap(move |t| {
        let zone = t.zones.values_mut().next().unwrap();
        zone.names.insert(short, vec![ip("10.1.0.63")]);
        zone.names.insert(long, vec![ip("10.1.0.253")]);
    })
    .await;
    assert_eq!(addresses(&f.ask(10, &label, RecordType::A).await), ["10.1.0.63"]);
    assert_eq!(addresses(&f.ask(10, &longest, RecordType::A).await), ["10.1.0.253"]);
    // 64 is no length byte, and four labels of 63 are one byte too long.
    for labels in [vec![64], vec![63, 63, 63, 63]] {
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for length in labels {
            bytes.push(length);
            bytes.extend(std::iter::repeat_n(b'x', length.into()));
        }
        bytes.extend([0, 0, 1, 0, 1]);
        let answer = exchange(f.net.ip(10), f.gateway(1), &bytes, BOUND).await.unwrap();
        assert_eq!(code(&Message::from_vec(&answer).unwrap()), ResponseCode::FormErr);
    }
}

#[tokio::test]
async fn long_answers_are_cut_on_udp_and_whole_on_tcp() {
    let f = Fixture::new(&[]).await;
    let cut = f.ask(10, "many", RecordType::A).await;
    assert!(
        cut.metadata.truncation && (25..100).contains(&cut.answers.len()),
        "{} records",
        cut.answers.len()
    );
    let wider = f.send(10, &with_edns(query("many", RecordType::A), 1232)).await;
    assert!(
        wider.metadata.truncation && (70..100).contains(&wider.answers.len()),
        "{} records",
        wider.answers.len()
    );
    let widest = f.send(10, &with_edns(query("many", RecordType::A), 65000)).await;
    assert_eq!(widest.answers.len(), wider.answers.len(), "never more than fits a frame");
    let whole = tcp(f.net.ip(10), f.gateway(1), &query("many", RecordType::A)).await;
    assert!(!whole.metadata.truncation);
    assert_eq!(addresses(&whole).len(), 100);
    assert_eq!(f.dns.stats().truncated, 3);
}

#[tokio::test]
async fn several_addresses_come_in_changing_order() {
    let f = Fixture::new(&[]).await;
    let mut first = std::collections::HashSet::new();
    for _ in 0..64 {
        first.insert(f.ask(10, "tasks.web", RecordType::A).await.answers[0].data.ip_addr());
    }
    assert_eq!(first.len(), 2, "each is first at some time");
}

#[tokio::test]
async fn pointers() {
    let f = Fixture::new(&[]).await;
    let pointer = |message: &Message| match &message.answers[..] {
        [record] => match &record.data {
            RData::PTR(name) => name.0.to_ascii(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    assert_eq!(pointer(&f.ask(10, "6.0.1.10.in-addr.arpa", RecordType::PTR).await), "web-1.shop.");
    let v6: Name = Name::from(ip("fd00::8"));
    assert_eq!(pointer(&f.ask(10, &v6.to_ascii(), RecordType::PTR).await), "dual.shop.");
    assert_negative(&f.ask(10, "6.0.1.10.in-addr.arpa", RecordType::A).await, ResponseCode::NoError);
    assert_negative(&f.ask(10, "5.0.2.10.in-addr.arpa", RecordType::PTR).await, ResponseCode::NXDomain);
    assert_eq!(
        code(&f.ask(10, "1.2.0.192.in-addr.arpa", RecordType::PTR).await),
        ResponseCode::ServFail,
        "forwarded, and nobody to ask"
    );
}

#[tokio::test]
async fn outside_names_do_not_exist_on_an_internal_network() {
    let f = Fixture::new(&[]).await;
    assert_negative(&f.ask(12, "www.example.com", RecordType::A).await, ResponseCode::NXDomain);
    assert!(!f.ask(12, "www.example.com", RecordType::A).await.metadata.recursion_available);
    assert_negative(&f.ask(12, "1.2.0.192.in-addr.arpa", RecordType::PTR).await, ResponseCode::NXDomain);
    // Who is on a network with a way out as well is forwarded from the internal gateway too.
    let answer = udp(f.net.ip(11), f.gateway(2), &query("www.example.com", RecordType::A)).await;
    assert_eq!(code(&answer), ResponseCode::ServFail, "forwarded, and nobody to ask");
}

#[tokio::test]
async fn a_stranger_sees_the_network_whose_gateway_it_asks() {
    let f = Fixture::new(&[]).await;
    assert_eq!(
        addresses(&udp(f.net.ip(99), f.gateway(1), &query("web", RecordType::A)).await),
        ["10.1.0.5"]
    );
    assert_negative(
        &udp(f.net.ip(99), f.gateway(2), &query("web", RecordType::A)).await,
        ResponseCode::NXDomain,
    );
}

#[tokio::test]
async fn what_is_no_plain_query_is_refused_precisely() {
    let f = Fixture::new(&[]).await;
    let mut two = query("web", RecordType::A);
    two.add_query(two.queries[0].clone());
    assert_eq!(code(&f.send(10, &two).await), ResponseCode::FormErr);
    let mut none = query("web", RecordType::A);
    none.queries.clear();
    assert_eq!(code(&f.send(10, &none).await), ResponseCode::FormErr);
    for opcode in [OpCode::Notify, OpCode::Update, OpCode::Status, OpCode::Unknown(9)] {
        let mut other = query("web", RecordType::SOA);
        other.metadata.op_code = opcode;
        assert_eq!(code(&f.send(10, &other).await), ResponseCode::NotImp);
    }
    let mut chaos = Message::query();
    chaos.add_query(
        Query::query(Name::from_ascii("version.bind.").unwrap(), RecordType::TXT)
            .set_query_class(DNSClass::CH)
            .clone(),
    );
    assert_eq!(code(&f.send(10, &chaos).await), ResponseCode::Refused);
    assert_eq!(code(&f.ask(10, "shop", RecordType::AXFR).await), ResponseCode::Refused);
    let mut newer = with_edns(query("web", RecordType::A), 1232);
    newer.edns.as_mut().unwrap().set_version(1);
    let answer = f.send(10, &newer).await;
    assert_eq!((u16::from(code(&answer)), answer.edns.unwrap().version()), (16, 0), "BADVERS");
    let mut response = query("web", RecordType::A);
    response.metadata.message_type = MessageType::Response;
    for silent in [
        response.to_vec().unwrap(),
        vec![],
        vec![0; 11],
        [&[0xff; 12][..], &[0xff; 30]].concat(),
    ] {
        assert_eq!(exchange(f.net.ip(10), f.gateway(1), &silent, Duration::from_millis(50)).await, None);
    }
    assert_eq!(
        addresses(&f.ask(10, "web", RecordType::A).await),
        ["10.1.0.5"],
        "and it still answers"
    );
}

#[tokio::test]
async fn edns_is_answered_with_our_size_and_the_do_bit() {
    let f = Fixture::new(&[]).await;
    let mut asked = with_edns(query("web", RecordType::A), 4096);
    asked.edns.as_mut().unwrap().set_dnssec_ok(true);
    let edns = f.send(10, &asked).await.edns.unwrap();
    assert_eq!((edns.max_payload(), edns.version(), edns.flags().dnssec_ok), (1232, 0, true));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Bytes of every kind, among them mutilated queries: nothing kills it, nothing makes it deaf.
    #[test]
    fn no_message_stops_it(
        junk in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 8),
        flips in proptest::collection::vec((0usize..60, any::<u8>()), 8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let f = Fixture::new(&[]).await;
            let socket = tokio::net::UdpSocket::bind((f.net.ip(10), 0)).await.unwrap();
            let whole = with_edns(query("tasks.web.shop", RecordType::A), 1232).to_vec().unwrap();
            for (at, value) in flips {
                let mut bytes = whole.clone();
                let at = at % bytes.len();
                bytes[at] = value;
                socket.send_to(&bytes, f.gateway(1)).await.unwrap();
                socket.send_to(&whole[..at], f.gateway(1)).await.unwrap();
            }
            for bytes in junk {
                socket.send_to(&bytes, f.gateway(1)).await.unwrap();
            }
            assert_eq!(addresses(&f.ask(10, "web", RecordType::A).await), ["10.1.0.5"]);
            f.dns.shutdown().await;
        });
    }
}

//! Decodes the answer of a resolver so that it can be passed on record by record.
//!
//! Records are kept as bytes wherever their type allows it: what hickory does not know, or finds
//! fault with, reaches the asker unchanged. Called by [`crate::upstream`].

use hickory_proto::{
    op::{Edns, Header, MessageType, Metadata, OpCode, Query},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata::NULL},
    serialize::binary::{BinDecodable, BinDecoder, DecodeError},
};

/// A resolver's answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) metadata: Metadata,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    /// Without the OPT record, which is between us and the resolver.
    pub(crate) additionals: Vec<Record>,
}

/// Why a message is not the answer to a question.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotTheAnswer {
    /// Somebody else's: another id or question. To be passed over.
    #[error("the message belongs to another question")]
    Stray,
    /// Ours, and not to be decoded.
    #[error("the answer is malformed")]
    Malformed(#[from] DecodeError),
}

/// Decodes `bytes` if they are the answer to `question`, asked with `id`.
pub(crate) fn read(bytes: &[u8], id: u16, question: &Query) -> Result<Answer, NotTheAnswer> {
    let mut decoder = BinDecoder::new(bytes);
    let header = Header::read(&mut decoder).map_err(|_| NotTheAnswer::Stray)?;
    let mut metadata = header.metadata;
    if metadata.id != id || metadata.message_type != MessageType::Response || metadata.op_code != OpCode::Query {
        return Err(NotTheAnswer::Stray);
    }
    match header.counts.queries {
        // Some leave the question out of an error.
        0 if u16::from(metadata.response_code) != 0 => (),
        1 => {
            let asked = Query::read(&mut decoder).map_err(|_| NotTheAnswer::Stray)?;
            // Name's equality does not look at case: not every resolver keeps it.
            let same = asked.name() == question.name()
                && asked.query_type() == question.query_type()
                && asked.query_class() == question.query_class();
            if !same {
                return Err(NotTheAnswer::Stray);
            }
        }
        _ => return Err(NotTheAnswer::Stray),
    }
    // A cut message may end in the middle of a record: what is whole counts.
    let cut = metadata.truncation;
    let mut section = |count: u16| -> Result<Vec<Record>, DecodeError> {
        let mut records = Vec::new();
        for _ in 0..count {
            match record(&mut decoder) {
                Ok(record) => records.push(record),
                Err(_) if cut => break,
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    };
    let answers = section(header.counts.answers)?;
    let authorities = section(header.counts.authorities)?;
    let mut additionals = section(header.counts.additionals)?;
    if let Some(opt) = additionals.iter().find(|r| r.record_type() == RecordType::OPT) {
        // RFC 6891 §6.1.3: the upper bits of the response code are the first byte of the TTL.
        metadata.merge_response_code((opt.ttl >> 24) as u8);
    }
    additionals.retain(|r| r.record_type() != RecordType::OPT);
    Ok(Answer {
        metadata,
        answers,
        authorities,
        additionals,
    })
}

/// Reads one record. Those that may hold compressed names (RFC 3597 §4) have to be decoded, all
/// others are kept as bytes.
fn record(decoder: &mut BinDecoder<'_>) -> Result<Record, DecodeError> {
    let start = decoder.index();
    let name = Name::read(decoder)?;
    let kind = RecordType::read(decoder)?;
    let class = decoder.read_u16()?.unverified(/* passed on as it is */);
    let ttl = decoder.read_u32()?.unverified(/* passed on as it is */);
    let length = decoder.read_u16()?.unverified(/* read_slice checks it */);
    let data = decoder.read_slice(usize::from(length))?.unverified(/* passed on as it is */);
    if may_hold_compressed_names(kind) && length > 0 {
        let start = u16::try_from(start).map_err(|_| DecodeError::InsufficientBytes)?;
        return Record::read(&mut decoder.clone(start));
    }
    let data = match data {
        [] => RData::Update0(kind),
        data => RData::Unknown {
            code: kind,
            rdata: NULL::with(data.to_vec()),
        },
    };
    let mut record = Record::from_rdata(name, ttl, data);
    record.dns_class = if kind == RecordType::OPT {
        DNSClass::for_opt(class)
    } else {
        DNSClass::from(class)
    };
    Ok(record)
}

fn may_hold_compressed_names(kind: RecordType) -> bool {
    // In RFC 3597's order, with SRV, which some servers compress against RFC 2782. The obsolete
    // ones (MD, MF, MB, MG, MR, MINFO, RP, AFSDB, RT, SIG, PX, NXT, KX) hickory does not decode either.
    matches!(
        kind,
        RecordType::NS | RecordType::CNAME | RecordType::SOA | RecordType::PTR | RecordType::MX | RecordType::NAPTR | RecordType::SRV
    )
}

/// The OPT record to ask a resolver with.
pub(crate) fn edns_towards(dnssec_ok: bool) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(crate::query::UDP_PAYLOAD)
        .set_version(0)
        .set_dnssec_ok(dnssec_ok);
    edns
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::Message,
        rr::rdata::{A, CNAME},
    };
    use proptest::prelude::*;

    use super::*;

    fn question() -> Query {
        Query::query(Name::from_ascii("www.example.com.").unwrap(), RecordType::A)
    }

    fn message() -> Vec<u8> {
        let target = Name::from_ascii("web.example.com.").unwrap();
        let mut message = Message::response(7, OpCode::Query);
        message.add_query(question());
        message.add_answer(Record::from_rdata(
            question().name().clone(),
            5,
            RData::CNAME(CNAME(target.clone())),
        ));
        message.add_answer(Record::from_rdata(target, 5, RData::A(A::new(192, 0, 2, 1))));
        message.set_edns(edns_towards(false));
        message.to_vec().unwrap()
    }

    #[test]
    fn keeps_records_and_drops_opt() {
        let answer = read(&message(), 7, &question()).unwrap();
        assert_eq!(
            answer.answers.iter().map(Record::record_type).collect::<Vec<_>>(),
            [RecordType::CNAME, RecordType::A]
        );
        assert!(answer.additionals.is_empty());
        assert!(matches!(read(&message(), 8, &question()), Err(NotTheAnswer::Stray)));
    }

    #[test]
    fn a_cut_message_counts_as_far_as_it_goes() {
        let mut bytes = message();
        bytes.truncate(bytes.len() - 15);
        assert!(matches!(read(&bytes, 7, &question()), Err(NotTheAnswer::Malformed(_))));
        bytes[2] |= 2;
        assert_eq!(read(&bytes, 7, &question()).unwrap().answers.len(), 1);
    }

    proptest! {
        /// Whatever a resolver sends: an answer or an error, and every answer can be encoded again.
        #[test]
        fn never_panics(flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), cut in any::<prop::sample::Index>()) {
            let mut bytes = message();
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            if let Ok(answer) = read(&bytes, 7, &question()) {
                let mut again = Message::response(7, OpCode::Query);
                again.add_query(question()).add_answers(answer.answers).add_authorities(answer.authorities).add_additionals(answer.additionals);
                prop_assert!(again.to_vec().is_ok());
            }
        }
    }
}

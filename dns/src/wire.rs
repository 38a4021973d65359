//! What hickory's encoder leaves to be desired, done on encoded messages: compression against the
//! question, cutting to a size, adding the OPT record. Called by [`crate::reply`].
//!
//! hickory measures names before it compresses them, so it cuts long names' answers that would fit,
//! and what it cuts leaves bytes behind.

use hickory_proto::serialize::binary::BinEncoder;

/// Length of the header, RFC 1035 §4.1.1.
const HEADER: usize = 12;
/// Where the header counts the answer, authority and additional records.
const COUNTS: [usize; 3] = [6, 8, 10];
/// The TC bit, in the third byte.
const TRUNCATED: u8 = 0b10;

/// Tells a fresh `encoder` where the labels of the question will be, so that the records' names can
/// point there. `question` is the section as the asker sent it, which is how it is sent back.
pub(crate) fn expect_question(encoder: &mut BinEncoder<'_>, question: &[u8]) {
    let mut at = 0;
    let mut labels = Vec::new();
    let end = loop {
        match question.get(at) {
            Some(0) => break at,
            // A pointer instead of a label: nothing to point to. (Nobody sends this.)
            Some(64..) | None => return,
            Some(length) => {
                labels.push(at);
                at += 1 + usize::from(*length);
            }
        }
    };
    // The bytes go to where the encoder will write them again.
    if encoder.emit_vec(&[0; HEADER]).is_ok() && encoder.emit_vec(&question[..end]).is_ok() {
        for label in labels {
            encoder.store_label_pointer(HEADER + label, HEADER + end);
        }
    }
    encoder.set_offset(0);
}

/// Cuts an encoded message with one question to at most `limit` bytes, at the end of a record. True
/// if records of the answer or authority section are gone, which TC then tells (RFC 2181 §9).
pub(crate) fn cut(message: &mut Vec<u8>, limit: usize) -> bool {
    if message.len() <= limit {
        return false;
    }
    let mut end = after_question(message).unwrap_or(HEADER).min(message.len());
    let mut full = false;
    let mut lost = false;
    for (section, at) in COUNTS.into_iter().enumerate() {
        let count = u16_at(message, at).unwrap_or(0);
        let mut kept = 0;
        while !full && kept < count {
            match after_record(message, end) {
                Some(next) if next <= limit => (end, kept) = (next, kept + 1),
                _ => full = true,
            }
        }
        lost |= kept < count && section < 2;
        set_u16(message, at, kept);
    }
    message.truncate(end);
    if let Some(flags) = message.get_mut(2).filter(|_| lost) {
        *flags |= TRUNCATED;
    }
    lost
}

/// Adds one encoded record to the additional section.
pub(crate) fn add(message: &mut Vec<u8>, record: &[u8]) {
    let [.., additionals] = COUNTS;
    let count = u16_at(message, additionals).unwrap_or(0);
    set_u16(message, additionals, count.saturating_add(1));
    message.extend_from_slice(record);
}

fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    message.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

fn set_u16(message: &mut [u8], at: usize, value: u16) {
    if let Some(field) = message.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

fn after_question(message: &[u8]) -> Option<usize> {
    let questions = u16_at(message, 4)?;
    (0..questions).try_fold(HEADER, |at, _| Some(after_name(message, at)? + 4))
}

fn after_record(message: &[u8], at: usize) -> Option<usize> {
    // Type, class and TTL take 8 bytes, then comes the length of what follows it.
    let length = after_name(message, at)? + 8;
    Some(length + 2 + usize::from(u16_at(message, length)?)).filter(|end| *end <= message.len())
}

/// RFC 1035 §4.1.4: a name ends with the root label or with a pointer.
fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ ..64 => at += 1 + usize::from(length),
            192.. => return Some(at + 2),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::{
        op::{Message, OpCode, Query},
        rr::{Name, RData, Record, RecordType, rdata::A},
    };
    use proptest::prelude::*;

    use super::*;

    fn message(answers: u8, additionals: u8) -> Message {
        let name = Name::from_ascii("a.rather.long.name.example.").unwrap();
        let record = |n| Record::from_rdata(name.clone(), 5, RData::A(A(Ipv4Addr::new(10, 0, 0, n))));
        let mut message = Message::response(7, OpCode::Query);
        message.add_query(Query::query(name.clone(), RecordType::A));
        message
            .add_answers((0..answers).map(record))
            .add_additionals((0..additionals).map(record));
        message
    }

    proptest! {
        #[test]
        fn cuts_at_records(answers in 0u8..60, additionals in 0u8..20, limit in 100usize..1300) {
            let whole = message(answers, additionals);
            let mut bytes = whole.to_vec().unwrap();
            let fits = bytes.len() <= limit;
            let lost = cut(&mut bytes, limit);
            prop_assert!(bytes.len() <= limit);
            let left = Message::from_vec(&bytes).unwrap();
            prop_assert_eq!(left.metadata.truncation, lost);
            prop_assert_eq!(lost, left.answers.len() < whole.answers.len());
            prop_assert_eq!(fits, left.answers.len() == whole.answers.len() && left.additionals.len() == whole.additionals.len());
            prop_assert!(fits || bytes.len() + 16 > limit, "the next record would not have fitted");
            prop_assert!(whole.answers.starts_with(&left.answers));
        }

        #[test]
        fn never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), limit in 0usize..200) {
            cut(&mut bytes, limit);
            add(&mut bytes, &[0]);
            let mut out = Vec::new();
            expect_question(&mut BinEncoder::new(&mut out), &bytes);
        }
    }
}

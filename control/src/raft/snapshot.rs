//! How a state travels from the leader to a manager that is too far behind for the log: lines of
//! JSON. The first has the vote and the metadata, then comes one object a line, then a count and the
//! CRC-32 of all lines before. The lines are cut into chunks at will; the first chunk is the first line.

use std::{collections::BTreeMap, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use mesh_core::{
    Id,
    objects::{Change, Kind, Object, Objects},
};
use serde::{Deserialize, Serialize};

use super::types::{Snapshot, SnapshotMeta, Vote};

/// Bytes of a chunk, about: a chunk ends behind the line that fills it.
const CHUNK_BYTES: usize = 32 << 10;
/// Bytes of the longest line that is read.
const MAX_LINE: usize = 16 << 20;

#[derive(Serialize, Deserialize)]
struct Header {
    vote: Vote,
    meta: SnapshotMeta,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Object(Object),
    End { objects: u64, crc32: u32 },
}

/// Why a stream is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The stream broke.
    #[error("the snapshot broke off: {0}")]
    Broken(String),
    /// It ended too early.
    #[error("the snapshot ended before its last line")]
    Short,
    /// A line can not be read.
    #[error("line {line} of the snapshot can not be read")]
    Json {
        /// Counted from 1.
        line: u64,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A line is too long.
    #[error("a line of the snapshot is longer than {MAX_LINE} bytes")]
    Long,
    /// It does not add up.
    #[error("the snapshot does not match its checksum")]
    Checksum,
}

/// The snapshot as chunks. It is written while it is sent.
pub fn encode(vote: Vote, snapshot: Snapshot) -> Result<impl Stream<Item = Bytes> + Send + use<>, serde_json::Error> {
    let mut first = serde_json::to_vec(&Header { vote, meta: snapshot.meta })?;
    first.push(b'\n');
    let objects: Vec<Object> = snapshot.snapshot.iter().collect();
    let (count, mut crc) = (objects.len() as u64, crc32fast::Hasher::new());
    crc.update(&first);
    let mut rest = Some(objects.into_iter());
    let chunks = std::iter::from_fn(move || {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES + 1024);
        let objects = rest.as_mut()?;
        while chunk.len() < CHUNK_BYTES {
            let Some(object) = objects.next() else {
                crc.update(&chunk);
                rest = None;
                push(
                    &mut chunk,
                    &Line::End {
                        objects: count,
                        crc32: crc.clone().finalize(),
                    },
                );
                return Some(Bytes::from(chunk));
            };
            push(&mut chunk, &Line::Object(object));
        }
        crc.update(&chunk);
        Some(Bytes::from(chunk))
    });
    Ok(stream::iter(std::iter::once(Bytes::from(first)).chain(chunks)))
}

/// Adds a line. An object that could not be written would be missing from the count, so that the
/// other side refuses the whole.
fn push(chunk: &mut Vec<u8>, line: &Line) {
    if let Ok(json) = serde_json::to_vec(line) {
        chunk.extend_from_slice(&json);
        chunk.push(b'\n');
    }
}

/// Reads a whole snapshot.
pub async fn decode(mut chunks: impl Stream<Item = Result<Bytes, String>> + Unpin) -> Result<(Vote, Snapshot), SnapshotError> {
    let mut pending = BytesMut::new();
    let mut header: Option<Header> = None;
    let (mut objects, mut count, mut number) = (Objects::default(), 0u64, 0u64);
    let mut crc = crc32fast::Hasher::new();
    while let Some(chunk) = chunks.next().await {
        pending.extend_from_slice(&chunk.map_err(SnapshotError::Broken)?);
        while let Some(end) = pending.iter().position(|b| *b == b'\n') {
            let line = pending.split_to(end + 1);
            number += 1;
            let failed = |source| SnapshotError::Json { line: number, source };
            let Some(Header { vote, meta }) = &header else {
                header = Some(serde_json::from_slice(&line).map_err(failed)?);
                crc.update(&line);
                continue;
            };
            match serde_json::from_slice(&line).map_err(failed)? {
                Line::Object(object) => {
                    crc.update(&line);
                    count += 1;
                    objects.apply(&put(object));
                }
                Line::End { objects: expected, crc32 } => {
                    let sound = expected == count && crc32 == crc.finalize();
                    let snapshot = Snapshot {
                        meta: meta.clone(),
                        snapshot: Arc::new(objects),
                    };
                    return if sound {
                        Ok((*vote, snapshot))
                    } else {
                        Err(SnapshotError::Checksum)
                    };
                }
            }
        }
        if pending.len() > MAX_LINE {
            return Err(SnapshotError::Long);
        }
    }
    Err(SnapshotError::Short)
}

/// The change that puts an object.
pub fn put(object: Object) -> Change {
    let (kind, id) = object.key();
    Change {
        kind,
        id,
        object: Some(object),
    }
}

/// The changes that lead from one state to another: removals first, those that refer to others
/// before what they refer to; then what is new or different, the other way round.
pub fn diff(from: &Objects, to: &Objects) -> Vec<Change> {
    let index = |objects: &Objects| -> BTreeMap<(Kind, Id), Object> { objects.iter().map(|o| (o.key(), o)).collect() };
    let (old, new) = (index(from), index(to));
    let gone = old.keys().rev().filter(|key| !new.contains_key(*key)).map(|(kind, id)| Change {
        kind: *kind,
        id: *id,
        object: None,
    });
    let put = new
        .iter()
        .filter(|(key, object)| old.get(key) != Some(object))
        .map(|(_, object)| put(object.clone()));
    gone.chain(put).collect()
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use mesh_core::objects::{Endpoint, EndpointState, Place, Sandbox};
    use openraft::vote::RaftLeaderId;
    use proptest::prelude::*;

    use super::*;
    use crate::raft::types::{LogId, Membership};

    fn endpoint(n: u64) -> Object {
        let (at, ip) = ("2026-01-01T00:00:00Z".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let mut endpoint = Endpoint::new(Id::from_bits(n), at, &format!("e{n}"), (Id::from_bits(1), Id::from_bits(2)), ip);
        endpoint.version = n;
        endpoint.sandbox = Sandbox::new(
            1,
            Place {
                container: "netns:x".into(),
                netns: "/run/netns/x".into(),
                ..Place::default()
            },
        );
        endpoint.ifname = "eth0".into();
        endpoint.state = EndpointState::Ready;
        endpoint.slot = 1;
        Object::Endpoint(Arc::new(endpoint))
    }

    fn objects(ids: impl IntoIterator<Item = u64>) -> Objects {
        let mut objects = Objects::default();
        ids.into_iter().for_each(|n| objects.apply(&put(endpoint(n))));
        objects
    }

    fn sample(n: u64) -> (Vote, Snapshot) {
        let vote = Vote::new_committed(7, 1);
        let last = LogId::new(vote.leader_id.to_committed(), 42);
        let meta = SnapshotMeta {
            last_log_id: Some(last),
            last_membership: Membership::default(),
        };
        (
            vote,
            Snapshot {
                meta,
                snapshot: Arc::new(objects(0..n)),
            },
        )
    }

    fn bytes(n: u64) -> Vec<u8> {
        let (vote, snapshot) = sample(n);
        block_on(encode(vote, snapshot).unwrap().collect::<Vec<_>>()).concat()
    }

    fn read(bytes: &[u8], chunk: usize) -> Result<(Vote, Snapshot), SnapshotError> {
        let chunks: Vec<_> = bytes.chunks(chunk).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
        block_on(decode(stream::iter(chunks)))
    }

    #[test]
    fn arrives_as_it_was_sent_however_it_is_cut() {
        for n in [0, 1, 500] {
            let (bytes, (vote, sent)) = (bytes(n), sample(n));
            for chunk in [1000, 65536, 7] {
                let (v, got) = read(&bytes, chunk).unwrap();
                assert_eq!((v, got.meta, got.snapshot), (vote, sent.meta.clone(), sent.snapshot.clone()));
            }
        }
    }

    #[test]
    fn chunks_are_small() {
        let (vote, snapshot) = sample(2000);
        let chunks = block_on(encode(vote, snapshot).unwrap().collect::<Vec<_>>());
        assert!(chunks.len() > 10 && chunks.iter().all(|c| c.len() <= 64 << 10));
    }

    proptest! {
        #[test]
        fn damage_is_found(at in any::<prop::sample::Index>(), mask in 1u8..) {
            let mut bytes = bytes(20);
            let at = at.index(bytes.len());
            bytes[at] ^= mask;
            if let Ok((vote, got)) = read(&bytes, 4096) {
                // What is no part of the checksum is its own line, where a change may mean nothing.
                let (v, sent) = sample(20);
                prop_assert_eq!((vote, got.meta, got.snapshot), (v, sent.meta, sent.snapshot));
            }
        }

        #[test]
        fn a_piece_is_refused(at in any::<prop::sample::Index>()) {
            let bytes = bytes(20);
            prop_assert!(read(&bytes[..at.index(bytes.len())], 4096).is_err());
        }

        #[test]
        fn a_difference_leads_from_one_to_the_other(from in prop::collection::btree_set(0u64..20, 0..20), to in prop::collection::btree_set(0u64..20, 0..20)) {
            let (mut from, to) = (objects(from), objects(to));
            diff(&from.clone(), &to).iter().for_each(|c| from.apply(c));
            prop_assert_eq!(&from, &to);
            prop_assert!(diff(&to, &to).is_empty());
        }
    }
}

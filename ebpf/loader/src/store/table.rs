//! Maps with their names, for [`super::Store`].

use std::{
    borrow::Borrow,
    io,
    os::fd::{AsFd, OwnedFd},
};

use aya::{
    Ebpf, Pod,
    maps::{HashMap, LpmTrie, Map, MapData, MapError, lpm_trie::Key},
    sys::SyscallError,
};
use mesh_ebpf_common::{rows::Plain, spec::MapSpec};

use crate::{Error, sys};

/// BPF_ANY.
pub const ANY: u64 = 0;
/// BPF_NOEXIST.
const NOEXIST: u64 = 1;

/// A row as aya wants it.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Bytes<T>(pub T);

// SAFETY: `Plain` is the same promise as `Pod`, and the wrapper is transparent.
#[expect(unsafe_code, reason = "aya's marker for a type of another crate")]
unsafe impl<T: Plain> Pod for Bytes<T> {}

/// A hash map.
pub struct Table<K: Pod, V: Pod> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
    /// For what aya does not do.
    fd: OwnedFd,
}

impl<K: Pod, V: Pod> Table<K, V> {
    /// Takes the map out of the object.
    pub fn take(ebpf: &mut Ebpf, spec: &MapSpec) -> Result<Self, Error> {
        let name = spec.name;
        let map = ebpf.take_map(name).ok_or(Error::NotInObject { name })?;
        let failed = |source| Error::map(name, "open", source);
        let fd = match &map {
            Map::HashMap(data) => data.fd().as_fd().try_clone_to_owned().map_err(|e| failed(MapError::IoError(e)))?,
            _ => return Err(Error::NotInObject { name }),
        };
        let map = map.try_into().map_err(failed)?;
        Ok(Self { name, map, fd })
    }

    /// Puts a row.
    pub fn put(&mut self, key: impl Borrow<K>, value: impl Borrow<V>) -> Result<(), Error> {
        self.map
            .insert(key, value, ANY)
            .map_err(|source| Error::map(self.name, "write to", source))
    }

    /// Puts a row where none is.
    pub fn put_new(&mut self, key: impl Borrow<K>, value: impl Borrow<V>) -> Result<(), Error> {
        match self.map.insert(key, value, NOEXIST) {
            Err(MapError::SyscallError(SyscallError { io_error, .. })) if io_error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other.map_err(|source| Error::map(self.name, "write to", source)),
        }
    }

    /// Removes a row; what is gone is gone.
    pub fn remove(&mut self, key: &K) -> Result<(), Error> {
        gone(self.name, self.map.remove(key))
    }

    /// One row.
    pub fn get(&self, key: &K) -> Result<Option<V>, Error> {
        match self.map.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(Error::map(self.name, "read", source)),
        }
    }

    /// All rows: many at once where the kernel can do that, else one after the other.
    pub fn rows(&self) -> Result<Vec<(K, V)>, Error> {
        let failed = |source| Error::map(self.name, "read", source);
        match sys::rows(self.fd.as_fd()).map_err(|e| failed(MapError::IoError(e)))? {
            Some(rows) => Ok(rows),
            None => self.map.iter().map(|row| row.map_err(failed)).collect(),
        }
    }
}

fn gone(name: &'static str, removed: Result<(), MapError>) -> Result<(), Error> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(SyscallError { io_error, .. })) if io_error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|source| Error::map(name, "remove from", source)),
    }
}

/// A longest-prefix-match map.
pub struct Trie<K: Pod, V: Pod> {
    name: &'static str,
    map: LpmTrie<MapData, K, V>,
}

impl<K: Pod, V: Pod> Trie<K, V> {
    /// Takes the map out of the object.
    pub fn take(ebpf: &mut Ebpf, spec: &MapSpec) -> Result<Self, Error> {
        let name = spec.name;
        let map = ebpf.take_map(name).ok_or(Error::NotInObject { name })?;
        let map = map.try_into().map_err(|source| Error::map(name, "open", source))?;
        Ok(Self { name, map })
    }

    /// Puts a row whose first `bits` bits count.
    pub fn put(&mut self, bits: u32, data: K, value: V) -> Result<(), Error> {
        self.map
            .insert(&Key::new(bits, data), value, ANY)
            .map_err(|source| Error::map(self.name, "write to", source))
    }

    /// Removes a row; what is gone is gone.
    pub fn remove(&mut self, bits: u32, data: K) -> Result<(), Error> {
        gone(self.name, self.map.remove(&Key::new(bits, data)))
    }

    /// All rows, each with how many of its bits count.
    pub fn rows(&self) -> Result<Vec<(u32, K, V)>, Error> {
        self.map
            .iter()
            .map(|row| row.map_err(|source| Error::map(self.name, "read", source)))
            .map(|row| row.map(|(key, value)| (key.prefix_len(), key.data(), value)))
            .collect()
    }
}

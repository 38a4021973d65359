//! Arrays whose rows are read and written many at a time, for [`super::Store`].

use std::{io, marker::PhantomData};

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError},
};
use mesh_ebpf_common::{rows::Plain, spec::MapSpec};

use crate::{Error, sys};

/// Rows that are read at once.
const BATCH: u32 = 4096;

/// An array.
pub struct Rows<V> {
    name: &'static str,
    map: MapData,
    len: u32,
    rows: PhantomData<V>,
}

impl<V: Plain + Default> Rows<V> {
    /// Takes the map out of the object.
    pub fn take(ebpf: &mut Ebpf, spec: &MapSpec) -> Result<Self, Error> {
        let name = spec.name;
        let Some(Map::Array(map)) = ebpf.take_map(name) else {
            return Err(Error::NotInObject { name });
        };
        Ok(Self {
            name,
            map,
            len: spec.max_entries,
            rows: PhantomData,
        })
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(io::Error) -> Error {
        let name = self.name;
        move |source| Error::map(name, doing, MapError::IoError(source))
    }

    /// Rows from `first` on; fewer where it ends.
    fn read(&self, first: u32, count: u32) -> Result<Vec<V>, Error> {
        let count = count.min(self.len.saturating_sub(first)) as usize;
        let (mut keys, mut values) = (vec![0u32; count], vec![V::default(); count]);
        let mut at = 0;
        while at < count {
            // The kernel goes on after the row that it is told.
            let before = (first + at as u32).checked_sub(1);
            let (n, _) = sys::lookup_batch(&self.map, before, &mut keys[at..], &mut values[at..]).map_err(self.failed("read"))?;
            if n == 0 {
                return Err(self.failed("read")(io::ErrorKind::UnexpectedEof.into()));
            }
            at += n;
        }
        Ok(values)
    }

    /// Looks at all rows.
    pub fn each(&self, mut look: impl FnMut(u32, V)) -> Result<(), Error> {
        for first in (0..self.len).step_by(BATCH as usize) {
            for (i, row) in (first..).zip(self.read(first, BATCH)?) {
                look(i, row);
            }
        }
        Ok(())
    }

    /// Writes rows from `first` on.
    pub fn write(&self, first: u32, rows: &[V]) -> Result<(), Error> {
        let keys: Vec<u32> = (first..).take(rows.len()).collect();
        sys::update_batch(&self.map, &keys, rows).map_err(self.failed("write to"))
    }
}

//! Lists that are seldom other than empty, in objects of which there are very many.

use std::{fmt, ops::Deref};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A list that takes no more room than a pointer while it is empty. It reads as a slice; to change it, make
/// another of a `Vec`.
#[derive(Clone, PartialEq, Eq)]
#[expect(clippy::box_collection, reason = "a boxed slice takes the room of two pointers")]
pub struct Seldom<T>(Option<Box<Vec<T>>>);

impl<T> From<Vec<T>> for Seldom<T> {
    fn from(mut list: Vec<T>) -> Self {
        list.shrink_to_fit();
        Self((!list.is_empty()).then(|| Box::new(list)))
    }
}

impl<T> Default for Seldom<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Deref for Seldom<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }
}

impl<'a, T> IntoIterator for &'a Seldom<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T: fmt::Debug> fmt::Debug for Seldom<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<T: Serialize> Serialize for Seldom<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(to)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Seldom<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Vec::deserialize(from).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_as_a_list() {
        for text in ["[]", "[1,2]"] {
            let list: Seldom<u8> = serde_json::from_str(text).expect("a list");
            assert_eq!(serde_json::to_string(&list).ok().as_deref(), Some(text));
        }
        let list = Seldom::from(vec![1, 2]);
        assert_eq!(
            (list.len(), list.iter().sum::<u8>(), format!("{list:?}")),
            (2, 3, "[1, 2]".to_owned())
        );
        assert_eq!(Seldom::from(Vec::<u8>::new()), Seldom::default());
    }

    /// With 30,000 services there are 120,000 endpoints on every host; with the counts of an `Arc` one has to
    /// fit in 320 bytes, which are what the allocator gives.
    #[test]
    fn endpoints_are_small() {
        assert!(
            size_of::<super::super::Endpoint>() <= 304,
            "{}",
            size_of::<super::super::Endpoint>()
        );
    }
}

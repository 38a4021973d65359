//! Collections that are seldom other than empty, in objects of which there are very many.

use std::{collections::BTreeMap, fmt, ops::Deref};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a [`Seldom`] can hold.
pub trait Collection: Sized + 'static {
    /// The empty one.
    const EMPTY: &'static Self;

    /// It is as the empty one.
    fn is_empty(&self) -> bool;

    /// Gives back room for more.
    fn trim(&mut self) {}
}

impl<T: 'static> Collection for Vec<T> {
    const EMPTY: &'static Self = &Self::new();

    fn is_empty(&self) -> bool {
        Self::is_empty(self)
    }

    fn trim(&mut self) {
        self.shrink_to_fit();
    }
}

impl<K: 'static, V: 'static> Collection for BTreeMap<K, V> {
    const EMPTY: &'static Self = &Self::new();

    fn is_empty(&self) -> bool {
        Self::is_empty(self)
    }
}

/// A collection that takes no more room than a pointer while it is empty. It reads as what it holds; to change
/// it, make another.
#[derive(Clone, PartialEq, Eq)]
pub struct Seldom<C>(Option<Box<C>>);

impl<C> Seldom<C> {
    /// The empty one.
    pub const EMPTY: Self = Self(None);
}

impl<C: Collection> From<C> for Seldom<C> {
    fn from(mut all: C) -> Self {
        all.trim();
        Self((!all.is_empty()).then(|| Box::new(all)))
    }
}

impl<C> Default for Seldom<C> {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl<C: Collection> Deref for Seldom<C> {
    type Target = C;

    fn deref(&self) -> &C {
        self.0.as_deref().unwrap_or(C::EMPTY)
    }
}

impl<'a, C: Collection> IntoIterator for &'a Seldom<C>
where
    &'a C: IntoIterator,
{
    type Item = <&'a C as IntoIterator>::Item;
    type IntoIter = <&'a C as IntoIterator>::IntoIter;

    fn into_iter(self) -> Self::IntoIter {
        (&**self).into_iter()
    }
}

impl<C: Collection + fmt::Debug> fmt::Debug for Seldom<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<C: Collection + Serialize> Serialize for Seldom<C> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(to)
    }
}

impl<'de, C: Collection + Deserialize<'de>> Deserialize<'de> for Seldom<C> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        C::deserialize(from).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use std::mem::size_of;

    use super::{
        super::{Endpoint, Service},
        *,
    };

    fn is_read_and_written<C>(texts: [&str; 2])
    where
        C: Collection + Serialize + for<'de> Deserialize<'de>,
    {
        for text in texts {
            let read: Seldom<C> = serde_json::from_str(text).expect("a collection");
            assert_eq!(serde_json::to_string(&read).ok().as_deref(), Some(text));
            assert_eq!(read.0.is_none(), text.len() == 2, "{text}");
        }
    }

    #[test]
    fn reads_and_writes_as_what_it_holds() {
        is_read_and_written::<Vec<u8>>(["[]", "[1,2]"]);
        is_read_and_written::<BTreeMap<String, String>>(["{}", r#"{"a":"b"}"#]);
        let list = Seldom::from(vec![1, 2]);
        assert_eq!(
            (list.len(), list.iter().sum::<u8>(), format!("{list:?}")),
            (2, 3, "[1, 2]".to_owned())
        );
        assert_eq!(Seldom::from(Vec::<u8>::new()), Seldom::default());
    }

    /// With 30,000 services there are 120,000 endpoints on every host; with the counts of an `Arc` one has to
    /// fit in 128 bytes, which are what the allocator gives, and a service in 192.
    #[test]
    fn objects_are_small() {
        assert!(size_of::<Endpoint>() <= 112, "{}", size_of::<Endpoint>());
        assert!(size_of::<Service>() <= 176, "{}", size_of::<Service>());
    }
}

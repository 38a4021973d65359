//! A JSON object that is taken apart key by key, so that what is left over can be refused.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::failure::Failure;

/// The object.
pub struct Fields<'a> {
    /// Where it is, as a path with its final dot; empty for the configuration itself.
    at: &'a str,
    map: &'a mut Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// Takes `map` apart, which is `at`.
    pub fn new(at: &'a str, map: &'a mut Map<String, Value>) -> Self {
        Self { at, map }
    }

    /// The value of a key, if it is there and not null. `what` is what it must be.
    pub fn take<T: DeserializeOwned>(&mut self, key: &str, what: &str) -> Result<Option<T>, Failure> {
        match self.map.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let shown = short(&value);
                let wrong = |e| Failure::Shape(format!("field {}{key} = {shown}: it is not {what}: {e}", self.at));
                serde_json::from_value(value).map(Some).map_err(wrong)
            }
        }
    }

    /// As [`Self::take`], for what must be an object: serde would read a list as one too.
    pub fn take_object<T: DeserializeOwned>(&mut self, key: &str, what: &str) -> Result<Option<T>, Failure> {
        if let Some(list @ Value::Array(_)) = self.map.get(key) {
            return Err(Failure::Shape(format!(
                "field {}{key} = {}: it is not {what}",
                self.at,
                short(list)
            )));
        }
        self.take(key, what)
    }

    /// A key that is the business of others.
    pub fn skip(&mut self, key: &str) {
        self.map.remove(key);
    }

    /// A key that some write without meaning anything by it.
    pub fn skip_empty(&mut self, key: &str) {
        let is_empty = |v: &Value| v.is_null() || v.as_object().is_some_and(Map::is_empty);
        if self.map.get(key).is_some_and(is_empty) {
            self.map.remove(key);
        }
    }

    /// Refuses whatever is left; `hint` is what would be right.
    pub fn done(self, hint: &'static str) -> Result<(), Failure> {
        // The protocol's own, of whatever version.
        let is_ours = |(key, _): &(&String, &Value)| !key.starts_with("cni.dev/");
        match self.map.iter().find(is_ours) {
            None => Ok(()),
            Some((key, value)) => Err(Failure::UnsupportedField {
                key: format!("{}{key}", self.at),
                value: short(value),
                hint: match key.as_str() {
                    "ipam" => "addresses are given by meshd, for the whole cluster",
                    "ipMasq" => "meshd does that for every network that is not internal",
                    "mtu" => "it belongs to the network: meshctl network create --opt mtu=N",
                    _ => hint,
                },
            }),
        }
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 200 {
        return text;
    }
    text.chars().take(199).chain(['…']).collect()
}

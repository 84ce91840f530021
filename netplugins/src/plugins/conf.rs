//! Access to a configuration: keys without regard to case, types checked, errors that name the key.

use std::net::IpAddr;

use serde_json::{Map, Value};

use super::{Refusal, code};

/// A JSON object.
#[derive(Clone, Debug)]
pub(crate) struct Conf(Map<String, Value>);

impl Conf {
    pub(crate) fn new(value: Value) -> Result<Self, Refusal> {
        match value {
            Value::Object(object) => Ok(Self(object)),
            _ => Err(Refusal::new(code::DECODE, "the network configuration is not a JSON object")),
        }
    }

    /// The value of a key; null counts as absent. The exact spelling wins over others.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        let exact = self.0.get(key);
        let found =
            exact.or_else(|| self.0.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v));
        found.filter(|v| !v.is_null())
    }

    pub(crate) fn value(&self) -> Value {
        Value::Object(self.0.clone())
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, Refusal> {
        self.get(key).map(|v| v.as_str().ok_or_else(|| wrong(key, "a string"))).transpose()
    }

    pub(crate) fn flag(&self, key: &str) -> Result<bool, Refusal> {
        let flag =
            self.get(key).map(|v| v.as_bool().ok_or_else(|| wrong(key, "true or false"))).transpose()?;
        Ok(flag.unwrap_or_default())
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<u32>, Refusal> {
        let read = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        self.get(key).map(|v| read(v).ok_or_else(|| wrong(key, "a number"))).transpose()
    }

    /// A number that may need more than 32 bits.
    pub(crate) fn wide_number(&self, key: &str) -> Result<Option<u64>, Refusal> {
        self.get(key).map(|v| v.as_u64().ok_or_else(|| wrong(key, "a number"))).transpose()
    }

    /// A flag, or `None` where it is absent.
    pub(crate) fn switch(&self, key: &str) -> Result<Option<bool>, Refusal> {
        self.get(key).map(|v| v.as_bool().ok_or_else(|| wrong(key, "true or false"))).transpose()
    }

    /// An object whose values are texts, in the order of its keys.
    pub(crate) fn table(&self, key: &str) -> Result<Vec<(String, String)>, Refusal> {
        let Some(Self(object)) = self.object(key)? else { return Ok(Vec::new()) };
        let read = |(k, v): (String, Value)| match v {
            Value::String(text) => Ok((k, text)),
            _ => Err(wrong(&format!("{key}.{k}"), "a string")),
        };
        object.into_iter().map(read).collect()
    }

    pub(crate) fn address(&self, key: &str) -> Result<Option<IpAddr>, Refusal> {
        let Some(text) = self.text(key)?.filter(|t| !t.is_empty()) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| wrong(key, "an IP address"))
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Self>, Refusal> {
        self.get(key)
            .map(|v| v.as_object().cloned().map(Self).ok_or_else(|| wrong(key, "an object")))
            .transpose()
    }

    pub(crate) fn list(&self, key: &str) -> Result<&[Value], Refusal> {
        self.get(key).map_or(Ok(&[]), |v| v.as_array().map(Vec::as_slice).ok_or_else(|| wrong(key, "a list")))
    }

    /// A list of objects.
    pub(crate) fn objects(&self, key: &str) -> Result<Vec<Self>, Refusal> {
        let read =
            |v: &Value| v.as_object().cloned().map(Self).ok_or_else(|| wrong(key, "a list of objects"));
        self.list(key)?.iter().map(read).collect()
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Vec<String>, Refusal> {
        let read = |v: &Value| v.as_str().map(str::to_owned).ok_or_else(|| wrong(key, "a list of strings"));
        self.list(key)?.iter().map(read).collect()
    }

    /// Refuses a key that this plugin cannot honour, unless its value says "no".
    pub(crate) fn refuse(&self, key: &str) -> Result<(), Refusal> {
        match self.get(key) {
            None | Some(Value::Bool(false)) => Ok(()),
            Some(Value::Number(n)) if n.as_u64() == Some(0) => Ok(()),
            Some(Value::Array(a)) if a.is_empty() => Ok(()),
            Some(Value::String(s)) if s.is_empty() => Ok(()),
            Some(_) => Err(Refusal::new(code::UNSUPPORTED, format!("\"{key}\" is not supported"))),
        }
    }
}

fn wrong(key: &str, wanted: &str) -> Refusal {
    Refusal::new(code::DECODE, format!("\"{key}\" is not {wanted}"))
}

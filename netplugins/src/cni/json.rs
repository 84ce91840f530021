//! JSON of configurations, where a repeated key is a mistake that must not pass silently.
//!
//! JSON parsers keep the last of several equal keys. For `sysctl` that would hide a setting the administrator wrote, so
//! objects under that key are refused when they repeat one; elsewhere the last one wins, as in every other runtime.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The object whose keys must not repeat.
const STRICT: &str = "sysctl";

/// Decodes a document; the error ends in "at line L column C".
pub(crate) fn parse(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Seed { strict: false }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// Decodes one value; `strict`: it is an object whose keys must not repeat.
struct Seed {
    strict: bool,
}

impl Seed {
    fn below(key: &str) -> Self {
        Self { strict: key.eq_ignore_ascii_case(STRICT) }
    }
}

impl<'de> DeserializeSeed<'de> for Seed {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = sequence.next_element_seed(Self::below(""))? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if self.strict && object.contains_key(&key) {
                return Err(A::Error::custom(format_args!(
                    "duplicated {STRICT} keys are not allowed: \"{key}\""
                )));
            }
            let value = map.next_value_seed(Self::below(&key))?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_reads_as_serde_json_reads_it() {
        for text in [
            "null",
            "[1, -2, 3.5, \"a\", true, {}]",
            r#"{"a": {"b": [null, {"c": "d"}]}, "a": 2}"#,
            r#"{"sysctl": {"a": "1", "b": "2"}, "n": 18446744073709551615}"#,
        ] {
            let plain: Value = serde_json::from_str(text).unwrap();
            assert_eq!(parse(text.as_bytes()).unwrap(), plain, "{text}");
        }
        for bad in ["", "{", "[1,]", "{} {}", "{\"a\" 1}"] {
            let (own, plain) = (parse(bad.as_bytes()), serde_json::from_str::<Value>(bad));
            assert_eq!(own.unwrap_err().to_string(), plain.unwrap_err().to_string(), "{bad}");
        }
    }

    #[test]
    fn a_repeated_sysctl_is_refused_where_it_stands() {
        let error = parse(b"{\"sysctl\": {\"a\": \"1\",\n \"a\": \"2\"}}").unwrap_err();
        assert_eq!(error.to_string(), "duplicated sysctl keys are not allowed: \"a\" at line 2 column 4");
    }
}

//! Between the wire and the engine: pure functions, no I/O, table-tested.
//!
//! Decoding ([`pod`], [`container`] and their parts [`mount`], [`namespace`], [`security`], [`resources`], [`signal`],
//! [`image`]) checks every field of a request and either carries it into the engine's types or refuses it with an
//! error that names it by its path in the request; [`crate::fields`] is the list. Encoding ([`view`], [`stats`]) turns
//! the engine's views into answers.

use engine::Error;
use engine::spec::Labels;

pub mod container;
pub mod image;
pub mod mount;
pub mod namespace;
pub mod pod;
pub mod resources;
pub mod security;
pub mod signal;
pub mod stats;
pub mod view;

#[cfg(test)]
mod tests;

/// Reads an enumeration; a number this version does not know is refused, never taken for the default.
pub fn known<E: TryFrom<i32>>(field: &str, value: i32) -> Result<E, Error> {
    E::try_from(value).map_err(|_| Error::invalid(field, format_args!("unknown value {value}")))
}

/// A message that must be there.
fn required<T>(field: &str, value: Option<T>) -> Result<T, Error> {
    value.ok_or_else(|| Error::invalid(field, "must be set"))
}

/// A string that must not be empty, nor hold a NUL, which no system call can carry.
fn non_empty(field: &str, value: String) -> Result<String, Error> {
    if value.is_empty() {
        return Err(Error::invalid(field, "must not be empty"));
    }
    no_nul(field, value)
}

/// A string without NUL.
fn no_nul(field: &str, value: String) -> Result<String, Error> {
    if value.contains('\0') {
        return Err(Error::invalid(field, "holds a NUL character"));
    }
    Ok(value)
}

/// Strings without NUL.
fn no_nuls(field: &str, values: Vec<String>) -> Result<Vec<String>, Error> {
    values.into_iter().enumerate().map(|(i, v)| no_nul(&format!("{field}[{i}]"), v)).collect()
}

/// An absolute path without `..`: the engine resolves it, this only refuses what cannot be meant.
fn absolute(field: &str, value: String) -> Result<String, Error> {
    let value = non_empty(field, value)?;
    if !value.starts_with('/') {
        return Err(Error::invalid(field, format_args!("\"{value}\" is not an absolute path")));
    }
    no_parent(field, value)
}

/// A path none of whose components is `..`.
fn no_parent(field: &str, value: String) -> Result<String, Error> {
    if value.split('/').any(|part| part == "..") {
        return Err(Error::invalid(field, format_args!("\"{value}\" holds \"..\"")));
    }
    Ok(value)
}

/// Refuses the fields for Windows nodes.
pub fn no_windows<T>(field: &str, value: Option<&T>) -> Result<(), Error> {
    match value {
        None => Ok(()),
        Some(_) => Err(Error::invalid(field, "this is a Linux node")),
    }
}

/// Whether all labels of a selector are there with equal values.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

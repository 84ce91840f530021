//! The registry client.

use crate::error::ErrorKind;

/// What a registry, or the way to it, answered.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {}

impl RegistryError {
    /// Class of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match *self {}
    }
}

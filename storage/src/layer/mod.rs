//! Layers: from a compressed stream to a verified tar with an index of its entries.

use crate::error::ErrorKind;

/// Why a layer is not acceptable.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {}

impl LayerError {
    /// Class of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match *self {}
    }
}

//! Promises of the conversion.

//! Snapshot drivers.

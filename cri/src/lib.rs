//! The CRI face of Berth.

pub mod proto;
pub mod streaming;

pub mod trial;

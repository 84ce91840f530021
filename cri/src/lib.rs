//! The CRI face of Berth.

pub mod proto;

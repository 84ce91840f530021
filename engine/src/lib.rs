//! The engine: jobs over pods and containers, and their execution.
//!
//! The interface the `cri` crate is written against (see `api` below) is fixed.
#![deny(unsafe_code)]

pub mod api;
pub mod error;
pub mod exec;
pub mod native;
pub mod spec;
#[allow(unsafe_code)]
pub mod sys;

pub use error::{Error, Kind};

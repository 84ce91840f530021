//! The CRI face of Berth, and the `berth` binary.
//!
//! This crate alone knows gRPC and Kubernetes. In reading order:
//! - [`proto`]: the wire types, generated from `proto/`.
//! - [`convert`]: between the wire and the engine, pure; [`fields`]: what becomes of every field.
//! - [`server`]: one file per RPC; [`metrics`]: the numbers a kubelet may ask for; [`streaming`]: exec, attach, port-forward.
//! - [`telemetry`]: the daemon's own numbers, for Prometheus.
//! - [`config`]: files and flags; [`serve`]: the daemon put together.
//! - [`agent`]: `berth net agent`, a client of the API server that keeps the ways to other nodes' pods.
//! - [`cli`]: the roles of the binary; [`trial`]: `berth try`.
//!
//! Tasks spawned: see [`serve`], [`streaming`], [`telemetry`] and [`trial`]; the server itself spawns none. Files owned: the daemon's
//! sockets and `daemon.pid` ([`serve`]); configuration is only read.
#![forbid(unsafe_code)]

pub mod agent;
pub mod cli;
pub mod config;
pub mod convert;
pub mod fields;
pub mod metrics;
pub mod proto;
pub mod serve;
pub mod server;
pub mod streaming;
pub mod telemetry;
pub mod trial;

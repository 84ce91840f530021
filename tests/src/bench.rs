//! The benchmark: Berth and its rivals side by side, driven by one neutral client.
//!
//! - [`contender`]: each runtime on private directories, well configured, with the same loopback registry
//! - [`action`]: what is measured, each result checked by what the container itself says
//! - [`reads`]: the same for what a kubelet reads, while pods are being made, and for exec
//! - [`machine`]: memory, processor time and mounts, as the kernel counts them
//! - [`run`]: the rounds; [`density`] and [`growth`]: nodes full of pods; [`pull`]: big images; [`memory`]: who holds it
//! - [`remount`]: proof that what was pulled is on the disk
//! - [`net`]: the network of pods alone, against the reference CNI plugins
//! - [`start`]: a container and an exec alone, against OCI runtimes as commands; [`witness`]: what critest itself measures
//! - [`profile`]: where the time goes, by the daemon's own account
//! - [`sample`]: medians and the like
//! - [`table`]: Markdown and JSON; [`plot`]: pictures
//!
//! Rounds are interleaved over the contenders, so that noise hits all alike; ratios count, not milliseconds.

pub mod action;
pub mod contender;
pub mod density;
pub mod growth;
pub mod machine;
pub mod memory;
pub mod net;
pub mod plot;
pub mod profile;
pub mod pull;
pub mod reads;
pub mod remount;
pub mod run;
pub mod sample;
pub mod start;
pub mod table;
pub mod witness;

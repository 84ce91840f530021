//! The suites that drive the shipped `berth` binary the way its users do.
//!
//! `tests/run` prepares (packages, pinned Go tools, the release binary) and starts the `suites` binary of this crate on a
//! private machine (`tests/machine`): network, mounts, processes and cgroups that nobody else has. Read in this order:
//!
//! - [`report`]: cases, and the line that closes a run
//! - [`world`]: what every suite works with: the binary, the tools, the loopback registry with its images
//! - [`node`]: one daemon on a directory of its own
//! - [`census`]: what exists on this machine, and what a suite has left behind
//! - [`images`], [`registry`]: the images of the suites, made from Debian packages, and where they are pulled from
//! - [`client`]: a CRI client that shares no code with the server
//! - [`streams`]: a client of the streaming URLs, over SPDY and WebSocket
//! - [`terminal`]: a program on a terminal of its own
//! - [`suites`]: one file per suite
//! - [`bench`]: Berth and its rivals side by side
//!
//! Tasks and threads: the lying registry of `badinput` has one thread, the client of streams one writer, the suite of
//! streams its clients; everything else is the caller's.
//! Files: all below the run's temporary directory, which is removed at the end unless something failed.
#![forbid(unsafe_code)]

pub mod bench;
pub mod census;
pub mod client;
pub mod images;
pub mod node;
pub mod registry;
pub mod report;
pub mod shell;
pub mod streams;
pub mod suites;
pub mod terminal;
pub mod world;

//! The engine: typed jobs over pods and containers, and the four drivers that do the work.
//!
//! Reading order:
//! - [`spec`] what a client asks for; [`api`] what the outside sees; [`error`] what can go wrong.
//! - [`drivers`] the four driver traits on one page: image, network, execution, volume.
//! - [`job`] a unit of work: steps, deadline, undo, joining; [`jobs`] one file per verb, [`jobs::run_pod`] first.
//! - [`pod`], [`container`] records, state diagrams, policy; [`journal`] how they are kept on disk; [`cdi`] devices by name;
//!   [`selinux`] labels.
//! - [`external`] other OCI runtimes as handlers, beside [`native`].
//! - [`oci`] an OCI runtime command line over [`native`], without a daemon.
//! - [`engine`] composition and snapshots; `restore` what happens after a restart; [`streams`], [`stats`],
//!   [`histogram`].
//!
//! Tasks spawned: one per running job (`job::table`), one per pod (`pod::actor`, the only place where that pod's state
//! changes), a sampler of statistics while they are asked for often (`stats`), one journal flusher thread. Files owned: `<root>/pods/**` (`journal`), `<state>/pods/<id>/{hosts,hostname,
//! resolv.conf}` (`pod::files`); the rest of `<state>/pods/<id>` belongs to the execution driver.
#![deny(unsafe_code)]

pub mod api;
pub mod cdi;
pub mod config;
pub mod container;
pub mod drivers;
pub mod engine;
pub mod error;
mod events;
pub mod exec;
pub mod external;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod histogram;
pub mod image;
pub mod job;
pub mod jobs;
pub mod journal;
pub mod native;
pub mod oci;
pub mod pod;
mod readiness;
mod restore;
pub mod selinux;
pub mod spec;
pub mod stats;
pub mod streams;
#[allow(unsafe_code)]
pub mod sys;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod volume;

pub use config::Config;
pub use engine::Engine;
pub use error::{Error, Kind};

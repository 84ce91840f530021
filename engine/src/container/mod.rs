//! A container: an immutable record and a mutable status, both in the care of its pod's task.
//!
//! ```text
//!             CreateContainer            StartContainer             ends, is stopped
//!   (nothing) ───────────────▶ Creating ──▶ Created ──▶ Starting ──▶ Running ───────────▶ Exited
//!                                │             │           │  start failed (StartError)     ▲ │
//!                 failed, undone │             │           └────────────────────────────────┘ │
//!   (nothing) ◀──────────────────┘             └───────────┬──────── RemoveContainer ─────────┘
//!                                                          ▼
//!                                                       Removing ──▶ (nothing)
//! ```
//!
//! Creating is not shown; Starting is shown as created; Removing as exited. A start whose fate was not seen (the daemon
//! died, the supervisor died) ends as Exited, reason `Unknown`, code 255.

pub mod policy;
pub mod process;
mod record;
#[cfg(test)]
mod tests;

pub use record::{Container, ContainerPhase, ContainerRecord, ContainerStatus, Live, Reason};

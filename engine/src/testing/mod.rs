//! Doubles of the drivers, for tests of the engine and of whoever is built on it.
//!
//! - [`fakes`]: drivers in memory. What they hold is the *world*: it outlives an engine as the kernel outlives a daemon, and
//!   says what is left in it.
//! - [`Failing`]: wraps any driver; a [`Script`] says which call fails, or hangs until it is let go.
//! - [`Node`]: a temporary root, a world and the scripts; opens engines on them, one after the other.

mod failing;
pub mod fakes;
mod node;
mod script;

pub use failing::Failing;
pub use node::{Node, container, pod};
pub use script::{Act, Script};

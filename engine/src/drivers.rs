//! The four drivers behind the engine, on one page.
//!
//! | driver | keeps | implementation |
//! |---|---|---|
//! | [`Image`] | images and containers' root file systems | `storage::Store` |
//! | [`Network`] | pod namespaces and addresses | `netplugins::open` |
//! | [`Execution`] | supervisors, processes, cgroups, logs | `native`, and with other runtimes in it `external` |
//! | [`Volume`] | what is mounted into containers | [`volume::Local`](crate::volume::Local) |
//!
//! The engine is given its drivers by its constructor and knows only these traits; tests give it others
//! (`testing::fakes`, `testing::Failing`).

use std::sync::Arc;

pub use netplugins::Driver as Network;

pub use crate::exec::Driver as Execution;
pub use crate::image::Driver as Image;
pub use crate::volume::Driver as Volume;

/// One of each: what an engine is composed of.
#[derive(Clone, Debug)]
pub struct Drivers {
    /// Images.
    pub images: Arc<dyn Image>,
    /// Network.
    pub network: Arc<dyn Network>,
    /// Execution, by RuntimeClass handler; the first one is the default.
    pub exec: Vec<Arc<dyn Execution>>,
    /// Volumes.
    pub volumes: Arc<dyn Volume>,
}

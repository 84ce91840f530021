//! The four drivers behind the engine, on one page.
//!
//! | driver | keeps | implementation |
//! |---|---|---|
//! | [`Image`] | images and containers' root file systems | `storage::Store` |
//! | [`Network`] | pod namespaces and addresses | `netplugins::open` |
//! | [`Execution`] | supervisors, processes, cgroups, logs | `native` |
//! | [`Volume`] | what is mounted into containers | [`volume::Local`](crate::volume::Local) |
//!
//! The engine is given its drivers by its constructor and knows only these traits; tests give it others
//! (`testing::Fake*`, `testing::Failing`).

pub use netplugins::Driver as Network;

pub use crate::exec::Driver as Execution;
pub use crate::image::Driver as Image;
pub use crate::volume::Driver as Volume;

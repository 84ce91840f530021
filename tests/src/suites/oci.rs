//! `berth oci` under other people's programs: the validation programs of runtime-tools, and Debian's containerd.
//!
//! With `OCI_TABLE=FILE` the table of the validation programs is also written to that file (tests/results/oci.md is one).

mod containerd;
mod table;
mod validation;

use anyhow::Result;

use crate::report::Report;
use crate::world::World;

/// Runs the suite.
///
/// # Errors
/// The programs to run with cannot be put together.
pub fn run(world: &World, report: &mut Report) -> Result<()> {
    let dir = world.dir.join("oci");
    std::fs::create_dir_all(&dir)?;
    // Called by this name the binary is an OCI runtime; one path is all that its callers can name.
    let runtime = dir.join("runc");
    std::os::unix::fs::symlink(&world.berth, &runtime)?;
    validation::run(world, report, &runtime, &dir)?;
    containerd::run(world, report, &runtime, &dir)
}

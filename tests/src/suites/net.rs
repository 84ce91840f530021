//! Pod networking as the shipped binary does it, with traffic of every kind.
//!
//! - [`space`], [`traffic`], [`pods`]: places, what passes between them, and who is in them
//! - [`reach`]: who reaches whom, under which address, through which port
//! - [`limits`]: what is refused, and what a full node says
//! - [`mesh`], with [`api`]: several nodes, and the API server that they hear of each other from
//! - [`policies`]: who may reach whom, where the network says so
//! - [`attack`]: what a pod must not be able to do

mod api;
mod attack;
mod limits;
mod mesh;
mod pods;
mod policies;
mod reach;
mod space;
mod traffic;

use anyhow::Result;

use crate::census::Census;
use crate::images::BUSYBOX;
use crate::node::Node;
use crate::report::Report;
use crate::suites::wait;
use crate::world::World;

/// Runs the suite.
///
/// # Errors
/// The daemon does not start.
pub fn run(world: &World, report: &mut Report) -> Result<()> {
    let outside = space::outside()?;
    let mut node = Node::start(world, "net")?;
    wait(async { Ok(node.client().await?.pull(BUSYBOX).await?) })?;
    let before = Census::take(node.pid())?;
    reach::run(report, &node, &outside);
    attack::run(report, &node);
    limits::bandwidth(report, &node);
    limits::ports(report, &node);
    report.case("leaves nothing behind", || node.settle(&before));
    drop(node);
    limits::full(world, report);
    limits::cidrs(world, report);
    policies::run(world, report);
    mesh::run(world, report);
    Ok(())
}

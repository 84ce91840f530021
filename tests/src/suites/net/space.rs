//! Network namespaces of the suite: pods, and hosts that are not this node.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::shell;

/// A place to send from or to listen at.
#[derive(Clone, Debug)]
pub(super) enum Space {
    /// This node.
    Node,
    /// A namespace with a name, as `ip netns` has it: a pod's id, or another host.
    Named(String),
}

impl Space {
    /// Makes an empty namespace with its loopback up.
    ///
    /// # Errors
    /// `ip netns add` fails.
    pub(super) fn make(name: &str) -> Result<Self> {
        shell::run(10, "ip", &["netns", "add", name])?;
        let space = Self::Named(name.to_owned());
        space.sh("ip link set lo up")?;
        Ok(space)
    }

    /// Runs work here, on a thread that ends with it. Sockets made by it stay here wherever they are used.
    ///
    /// # Errors
    /// There is no such namespace; the work's own.
    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let Self::Named(name) = self else { return work() };
        let path = PathBuf::from("/run/netns").join(name);
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(file, CloneFlags::CLONE_NEWNET).context("setns")?;
                work()
            });
            thread.join().map_err(|_| anyhow!("a thread in {} panicked", path.display()))?
        })
    }

    /// Runs shell commands here and returns what they print.
    ///
    /// # Errors
    /// One of them fails.
    pub(super) fn sh(&self, commands: &str) -> Result<String> {
        self.inside(|| shell::run(20, "sh", &["-ec", commands]))
    }
}

/// Another host on a wire of its own to this node, 198.51.100.9 and 2001:db8:9::9; the node is .1 and ::1. It has no way to pods.
///
/// # Errors
/// A link cannot be made.
pub(super) fn outside() -> Result<Space> {
    let host = Space::make("outside")?;
    Space::Node.sh(
        "ip link add wire0 type veth peer name wire1 netns outside; ip link set wire0 addrgenmode none up
        ip address add 198.51.100.1/24 dev wire0; ip -6 address add 2001:db8:9::1/64 dev wire0 nodad",
    )?;
    host.sh(
        "ip address add 198.51.100.9/24 dev wire1; ip -6 address add 2001:db8:9::9/64 dev wire1 nodad; ip link set wire1 up",
    )?;
    Ok(host)
}

//! What went through the interfaces of pods.
//!
//! Read from `/proc/thread-self/net/dev` (proc_pid_net(5)) by a thread that visits one namespace after the other. That file takes no lock.
//! rtnetlink's dump of links does: the node's one lock for all changes of links, which is held for tens of milliseconds whenever a
//! pod's link comes or goes.

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;

use nix::sched::CloneFlags;

use super::{Namespaces, on_own_thread};
use crate::InterfaceStats;
use crate::error::Error;

/// The loopback interface, whose traffic leaves nobody.
const LOOPBACK: &str = "lo";
/// Longest table that is read: some ten thousand interfaces.
const LONGEST: u64 = 2 << 20;

impl Namespaces {
    /// Counters of all interfaces but the loopback in the namespaces of these ids; none where there is no such namespace.
    pub(crate) fn counters(&self, ids: &[&str]) -> Result<Vec<Result<Vec<InterfaceStats>, Error>>, Error> {
        on_own_thread(|| ids.iter().map(|id| self.visit(id)).collect())
    }

    /// Enters a namespace for good: only for a thread that does nothing else.
    fn visit(&self, id: &str) -> Result<Vec<InterfaceStats>, Error> {
        let Some(namespace) = self.open(id)? else { return Ok(Vec::new()) };
        nix::sched::setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|e| Error::namespace("enter a network namespace")(e.into()))?;
        let table =
            read("/proc/thread-self/net/dev").map_err(Error::file("read", "/proc/thread-self/net/dev"))?;
        Ok(table.lines().filter_map(interface).collect())
    }
}

fn read(path: &str) -> io::Result<String> {
    let mut table = String::new();
    fs::File::open(path)?.take(LONGEST).read_to_string(&mut table)?;
    Ok(table)
}

/// A line of the table: name, then bytes, packets, errors, drops and four more received, and the same sent.
fn interface(line: &str) -> Option<InterfaceStats> {
    let (name, numbers) = line.split_once(':')?;
    let name = name.trim();
    let mut values = [0; 16];
    let mut words = numbers.split_ascii_whitespace();
    for value in &mut values {
        *value = words.next()?.parse().ok()?;
    }
    let four = |from: usize| std::array::from_fn(|index| values[from + index]);
    (name != LOOPBACK).then(|| InterfaceStats { name: name.to_owned(), rx: four(0), tx: four(8) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     616       8    0    0    0     0          0         0      616       8    0    0    0     0       0          0
  eth0:18446744073709551615 9 8 7    6     5          4         3        2       1   22   33   44    55      66         77
";

    #[test]
    fn the_table_gives_every_interface_but_the_loopback() {
        let found: Vec<_> = TABLE.lines().filter_map(interface).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].name, "eth0");
        assert_eq!((found[0].rx, found[0].tx), ([u64::MAX, 9, 8, 7], [2, 1, 22, 33]));
    }

    #[test]
    fn a_line_that_is_cut_off_is_no_interface() {
        assert!(interface("  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15").is_none());
        assert!(interface("  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 x").is_none());
    }
}

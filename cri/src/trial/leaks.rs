//! What a run leaves on the machine, measured: the kernel is asked before and after, and the difference is counted.
//!
//! Other programs work on the machine meanwhile, so a [`Snapshot`] holds only objects that carry a mark of one run
//! ([`Marks`]): its directory, its cgroup, its link prefix, its pod subnet, its nft table, its pod and container ids,
//! or descent from this process. [`parse`] reads the kernel's texts and is pure; [`collect`] fetches them.

pub mod collect;
pub mod parse;

use std::collections::BTreeSet;
use std::fmt;

use parse::Subnet;

/// Kinds of objects that are counted, in the order they are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An entry of this mount namespace's table.
    Mount,
    /// A control group, on any hierarchy.
    Cgroup,
    /// A network namespace that is mounted or has a process in it.
    NetworkNamespace,
    /// A network interface of the node.
    Link,
    /// An nftables table, set element or map element.
    Nft,
    /// A route or address of the node that belongs to a pod.
    Address,
    /// A process, zombies included.
    Process,
    /// A file below the daemon's directories.
    File,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::Mount,
        Self::Cgroup,
        Self::NetworkNamespace,
        Self::Link,
        Self::Nft,
        Self::Address,
        Self::Process,
        Self::File,
    ];

    /// The plural, for a count.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Mount => "mounts",
            Self::Cgroup => "cgroups",
            Self::NetworkNamespace => "network namespaces",
            Self::Link => "links",
            Self::Nft => "nft objects",
            Self::Address => "addresses",
            Self::Process => "processes",
            Self::File => "files",
        }
    }
}

/// One object of the machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    /// What it is.
    pub kind: Kind,
    /// Which one: a path, a name, a pid with its command.
    pub name: String,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Mount => "mount",
            Kind::Cgroup => "cgroup",
            Kind::NetworkNamespace => "network namespace",
            Kind::Link => "link",
            Kind::Nft => "nft",
            Kind::Address => "address",
            Kind::Process => "process",
            Kind::File => "file",
        };
        write!(f, "{kind} {}", self.name)
    }
}

/// By what an object of a run is known.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    /// Words in paths and command lines: the run's directory and cgroup, then the ids of its pods and containers.
    pub words: Vec<String>,
    /// Start of the names of its links, and the name of its nft table.
    pub link_prefix: String,
    /// Addresses its pods may get.
    pub subnets: Vec<Subnet>,
    /// Directories whose files are counted.
    pub directories: Vec<std::path::PathBuf>,
}

impl Marks {
    /// Whether a text carries one of the words.
    pub fn occur_in(&self, text: &str) -> bool {
        self.words.iter().any(|word| text.contains(word.as_str()))
    }
}

/// The marked objects at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    objects: BTreeSet<Object>,
}

impl Snapshot {
    /// A snapshot of given objects.
    pub fn of(objects: impl IntoIterator<Item = Object>) -> Self {
        Self { objects: objects.into_iter().collect() }
    }

    /// Objects that are in `self` and were not in `before`.
    pub fn since(&self, before: &Self) -> Vec<Object> {
        self.objects.difference(&before.objects).cloned().collect()
    }

    /// Whether an object is in it.
    pub fn contains(&self, object: &Object) -> bool {
        self.objects.contains(object)
    }

    /// Number of objects of a kind.
    pub fn count(&self, kind: Kind) -> usize {
        self.objects.iter().filter(|object| object.kind == kind).count()
    }

    /// `3 mounts, 1 link`; empty kinds are left out; empty when there is nothing at all.
    pub fn summary(&self) -> String {
        let counts: Vec<String> = Kind::ALL
            .into_iter()
            .map(|kind| (self.count(kind), kind.plural()))
            .filter(|(count, _)| *count > 0)
            .map(|(count, plural)| format!("{count} {plural}"))
            .collect();
        counts.join(", ")
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: Kind, name: &str) -> Object {
        Object { kind, name: name.to_owned() }
    }

    #[test]
    fn only_what_came_and_stayed_is_a_leak() {
        let before = Snapshot::of([object(Kind::Link, "eth0"), object(Kind::Mount, "/gone")]);
        let after =
            Snapshot::of([object(Kind::Link, "eth0"), object(Kind::Link, "t1"), object(Kind::File, "/x")]);
        let leaked = after.since(&before);
        assert_eq!(leaked, [object(Kind::Link, "t1"), object(Kind::File, "/x")]);
        assert_eq!(leaked[0].to_string(), "link t1");
        assert!(before.since(&before).is_empty());
    }

    #[test]
    fn the_same_name_in_two_kinds_is_two_objects() {
        let both = Snapshot::of([object(Kind::Link, "x"), object(Kind::Cgroup, "x")]);
        assert_eq!(both.since(&Snapshot::of([object(Kind::Link, "x")])), [object(Kind::Cgroup, "x")]);
        assert_eq!(both.summary(), "1 cgroups, 1 links");
        assert!(Snapshot::default().is_empty());
    }

    #[test]
    fn a_mark_is_found_anywhere_in_a_text() {
        let marks = Marks { words: vec!["/tmp/run-1".into()], ..Marks::default() };
        assert!(marks.occur_in("erofs /tmp/run-1/root"));
        assert!(!marks.occur_in("/tmp/run-2"));
    }
}

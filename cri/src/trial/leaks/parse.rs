//! Readers of the kernel's texts: pure, tolerant of lines they do not know.

use std::net::IpAddr;

/// One line of mountinfo (proc_pid_mountinfo(5)), as far as it is needed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountLine {
    /// Path within the file system that forms the root of the mount; `net:[…]` for a network namespace.
    pub root: String,
    /// Where it is mounted.
    pub point: String,
    /// File system type.
    pub kind: String,
    /// File system specific source.
    pub source: String,
    /// Super block options: an overlay names its directories here.
    pub options: String,
}

/// The lines of /proc/self/mountinfo.
pub fn mounts(mountinfo: &str) -> Vec<MountLine> {
    let line = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let mut right = right.split(' ');
        Some(MountLine {
            root: unescape(left.next()?),
            point: unescape(left.next()?),
            kind: unescape(right.next()?),
            source: unescape(right.next()?),
            options: unescape(right.next().unwrap_or_default()),
        })
    };
    mountinfo.lines().filter_map(line).collect()
}

/// Undoes the octal escapes (`\040` is a space) of mountinfo.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = (*first == b'\\').then(|| after.get(..3)).flatten().and_then(|digits| {
            std::str::from_utf8(digits).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok())
        });
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// Any address of it.
    pub address: IpAddr,
    /// Prefix length in bits.
    pub prefix: u8,
}

impl Subnet {
    /// Reads `10.1.0.0/16` or `fd00::/64`.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let prefix: u8 = prefix.parse().ok()?;
        (prefix <= bits(address)).then_some(Self { address, prefix })
    }

    /// Whether the two share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        let shorter = self.prefix.min(other.prefix);
        match (self.address, other.address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let shift = 32 - u32::from(shorter);
                u64::from(a.to_bits()) >> shift == u64::from(b.to_bits()) >> shift
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                (a.to_bits() ^ b.to_bits()).checked_shr(128 - u32::from(shorter)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// What /proc/PID/stat says of a process (proc_pid_stat(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Process id.
    pub pid: i32,
    /// Name of the executable, at most 15 bytes.
    pub command: String,
    /// One letter; `Z` is a zombie.
    pub state: char,
    /// Parent.
    pub parent: i32,
    /// Start time in clock ticks since boot: with the pid it names a process uniquely.
    pub start: u64,
}

/// Reads a stat line. The command is between the first and the last parenthesis and may hold both.
pub fn stat(text: &str) -> Option<Stat> {
    let open = text.find('(')?;
    let close = text.rfind(')')?;
    let mut after = text.get(close + 1..)?.split_whitespace();
    Some(Stat {
        pid: text.get(..open)?.trim().parse().ok()?,
        command: text.get(open + 1..close)?.to_owned(),
        state: after.next()?.chars().next()?,
        parent: after.next()?.parse().ok()?,
        start: after.nth(17)?.parse().ok()?,
    })
}

/// All processes that descend from `ancestor`, itself not included.
pub fn descendants(processes: &[Stat], ancestor: i32) -> Vec<i32> {
    let mut found = vec![ancestor];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(processes.iter().filter(|process| process.parent == parent).map(|process| process.pid));
        next += 1;
    }
    found.split_off(1)
}

/// The paths of /proc/PID/cgroup lines `id:controllers:path` (cgroups(7)).
pub fn cgroup_paths(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.splitn(3, ':').nth(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        Subnet::parse(text).unwrap()
    }

    #[test]
    fn a_mount_line_with_optional_fields_and_escapes_is_read() {
        let text = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:9 master:2 - tmpfs tmpfs rw,mode=755\n\
                    98 27 0:4 net:[4026532441] /run/net\\040ns/a rw - nsfs nsfs rw\nnonsense\n";
        let lines = mounts(text);
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].point.as_str(), lines[0].kind.as_str()), ("/sys/fs/cgroup", "tmpfs"));
        assert_eq!((lines[1].root.as_str(), lines[1].point.as_str()), ("net:[4026532441]", "/run/net ns/a"));
    }

    #[test]
    fn escapes_that_are_none_stay_as_they_are() {
        assert_eq!(unescape(r"a\134b\9x\"), r"a\b\9x\");
    }

    #[test]
    fn subnets_overlap_when_one_holds_the_other() {
        for (a, b, expected) in [
            ("10.0.0.0/8", "10.88.0.0/16", true),
            ("10.88.0.0/16", "10.89.0.0/16", false),
            ("0.0.0.0/0", "10.89.0.0/16", true),
            ("10.88.0.7/32", "10.88.0.7/32", true),
            ("fd00::/64", "fd00::5/128", true),
            ("fd00::/64", "fd00:1::/64", false),
            ("::/0", "fd00::/8", true),
            ("::/0", "10.0.0.0/8", false),
        ] {
            assert_eq!(subnet(a).overlaps(&subnet(b)), expected, "{a} {b}");
            assert_eq!(subnet(b).overlaps(&subnet(a)), expected, "{b} {a}");
        }
        assert_eq!(Subnet::parse("10.0.0.0/33"), None);
        assert_eq!(Subnet::parse("10.0.0.0"), None);
    }

    #[test]
    fn a_stat_line_with_parentheses_in_its_command_is_read() {
        let text = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 7788 1 1 1\n";
        let stat = stat(text).unwrap();
        assert_eq!(stat, Stat { pid: 42, command: "a) b (c".into(), state: 'S', parent: 1, start: 7788 });
    }

    #[test]
    fn this_process_reads_its_own_stat() {
        let own = stat(&std::fs::read_to_string("/proc/self/stat").unwrap()).unwrap();
        assert_eq!(own.pid.cast_unsigned(), std::process::id());
        assert!(own.start > 0);
    }

    #[test]
    fn descent_is_followed_through_generations() {
        let process = |pid, parent| Stat { pid, parent, command: String::new(), state: 'S', start: 1 };
        let all = [process(2, 1), process(5, 3), process(3, 2), process(4, 1), process(9, 5)];
        assert_eq!(descendants(&all, 2), [3, 5, 9]);
        assert_eq!(descendants(&all, 9), [] as [i32; 0]);
    }

    #[test]
    fn a_cgroup_path_may_hold_colons() {
        let text = "9:name=systemd:/a:b\n0::/unified\n";
        assert_eq!(cgroup_paths(text).collect::<Vec<_>>(), ["/a:b", "/unified"]);
    }
}

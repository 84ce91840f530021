//! Architectures: their audit tokens, their system call numbers, the calls that x86 multiplexes.

use super::table::SYSCALLS;

/// An architecture a filter can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 32-bit x86.
    X86,
    /// 64-bit x86 with 32-bit pointers; shares the token of x86_64 and sets [`X32_BIT`] in every number.
    X32,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM, EABI.
    Arm,
    /// 64-bit RISC-V.
    Riscv64,
}

/// Set in every x32 system call number (`__X32_SYSCALL_BIT`, asm/unistd.h).
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// What this binary runs on.
#[cfg(target_arch = "x86_64")]
pub(super) const NATIVE: Arch = Arch::X86_64;
#[cfg(target_arch = "aarch64")]
pub(super) const NATIVE: Arch = Arch::Aarch64;
#[cfg(target_arch = "riscv64")]
pub(super) const NATIVE: Arch = Arch::Riscv64;

/// How a call reaches the kernel on an architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// System call number, with [`X32_BIT`] where it belongs.
    pub(super) number: u32,
    /// The first argument must be this call number of `socketcall` or `ipc`.
    pub(super) multiplexed: Option<u32>,
}

impl Arch {
    /// All of them.
    pub(super) const ALL: [Self; 6] =
        [Self::X86_64, Self::X86, Self::X32, Self::Aarch64, Self::Arm, Self::Riscv64];

    /// `AUDIT_ARCH_*` (linux/audit.h), what `seccomp_data.arch` holds.
    pub(super) fn token(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xC000_003E,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xC000_00B7,
            Self::Arm => 0x4000_0028,
            Self::Riscv64 => 0xC000_00F3,
        }
    }

    /// Whether only the low half of an argument counts.
    pub(super) fn is_32bit(self) -> bool {
        matches!(self, Self::X86 | Self::X32 | Self::Arm)
    }

    /// Name in profiles.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "SCMP_ARCH_X86_64",
            Self::X86 => "SCMP_ARCH_X86",
            Self::X32 => "SCMP_ARCH_X32",
            Self::Aarch64 => "SCMP_ARCH_AARCH64",
            Self::Arm => "SCMP_ARCH_ARM",
            Self::Riscv64 => "SCMP_ARCH_RISCV64",
        }
    }

    /// Name in the `arches` conditions of Docker's profiles.
    pub(super) fn docker_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::X86 => "x86",
            Self::X32 => "x32",
            Self::Aarch64 => "arm64",
            Self::Arm => "arm",
            Self::Riscv64 => "riscv64",
        }
    }

    /// The architectures whose programs also run on a node of this one.
    pub(super) fn family(self) -> &'static [Self] {
        match self {
            Self::X86_64 => &[Self::X86_64, Self::X86, Self::X32],
            Self::Aarch64 => &[Self::Aarch64, Self::Arm],
            Self::Riscv64 => &[Self::Riscv64],
            Self::X86 => &[Self::X86],
            Self::X32 => &[Self::X32],
            Self::Arm => &[Self::Arm],
        }
    }

    /// All ways by which a call of this name reaches the kernel; none when the architecture does not have it.
    pub(super) fn entries(self, name: &str) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(2);
        if let Some(number) = self.number(name) {
            entries.push(Entry { number, multiplexed: None });
        }
        if self == Self::X86 {
            for (multiplexer, calls) in [("socketcall", SOCKETCALL), ("ipc", IPC)] {
                let call = calls.iter().find(|(n, _)| *n == name).map(|(_, call)| *call);
                if let (Some(call), Some(number)) = (call, self.number(multiplexer)) {
                    entries.push(Entry { number, multiplexed: Some(call) });
                }
            }
        }
        entries
    }

    fn number(self, name: &str) -> Option<u32> {
        let row = SYSCALLS.binary_search_by_key(&name, |(n, _)| n).ok()?;
        let number = u32::try_from(SYSCALLS.get(row)?.1.get(self as usize).copied()?).ok()?;
        Some(if self == Self::X32 { number | X32_BIT } else { number })
    }
}

/// socketcall(2): call numbers of linux/net.h.
const SOCKETCALL: &[(&str, u32)] = &[
    ("socket", 1),
    ("bind", 2),
    ("connect", 3),
    ("listen", 4),
    ("accept", 5),
    ("getsockname", 6),
    ("getpeername", 7),
    ("socketpair", 8),
    ("send", 9),
    ("recv", 10),
    ("sendto", 11),
    ("recvfrom", 12),
    ("shutdown", 13),
    ("setsockopt", 14),
    ("getsockopt", 15),
    ("sendmsg", 16),
    ("recvmsg", 17),
    ("accept4", 18),
    ("recvmmsg", 19),
    ("sendmmsg", 20),
];

/// ipc(2): call numbers of linux/ipc.h.
const IPC: &[(&str, u32)] = &[
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

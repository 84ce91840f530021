//! Which devices a container may use: lists on v1, a BPF program on v2.

use std::os::fd::OwnedFd;

use rustix::fs::OFlags;

use super::hierarchy::Hierarchies;
use crate::error::{Error, Kind};
use crate::sys::bpf;

/// What a container may do with devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rules {
    /// Everything.
    All,
    /// Only this.
    Only(Vec<Rule>),
    /// Nothing, then allowed (`true`) and taken away again rule by rule, the last word counting for each kind of access.
    Ordered(Vec<(bool, Rule)>),
}

/// One allowed set of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// `c`, `b`, or `a` for both (in [`Rules::Ordered`] only).
    pub(crate) kind: u8,
    /// Major number; `None`: all.
    pub(crate) major: Option<u32>,
    /// Minor number; `None`: all.
    pub(crate) minor: Option<u32>,
    /// Read, write.
    pub(crate) access: Access,
}

impl Rule {
    /// The rule as a bundle has it (config-linux.md, "Allowed Device list").
    pub(crate) fn document(&self, allow: bool) -> serde_json::Value {
        let mut out = serde_json::json!({
            "allow": allow,
            "type": char::from(self.kind).to_string(),
            "access": self.access.letters(),
        });
        for (key, number) in [("major", self.major), ("minor", self.minor)] {
            if let Some(number) = number {
                out[key] = number.into();
            }
        }
        out
    }
}

/// What may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// Open for reading.
    pub(crate) read: bool,
    /// Open for writing.
    pub(crate) write: bool,
    /// Make nodes.
    pub(crate) mknod: bool,
}

impl Access {
    /// Everything.
    pub(crate) const ALL: Self = Self { read: true, write: true, mknod: true };

    /// From a client's `rwm`.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() || text.bytes().any(|b| !b"rwm".contains(&b)) {
            return Err(Error::invalid(
                "devices.permissions",
                format!("{text:?} is not a combination of r, w, m"),
            ));
        }
        Ok(Self { read: text.contains('r'), write: text.contains('w'), mknod: text.contains('m') })
    }

    fn letters(self) -> String {
        [(self.read, 'r'), (self.write, 'w'), (self.mknod, 'm')]
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, l)| *l)
            .collect()
    }

    /// Bits of `bpf_cgroup_dev_ctx.access_type` (`BPF_DEVCG_ACC_*`).
    fn bits(self) -> u32 {
        u32::from(self.mknod) | u32::from(self.read) << 1 | u32::from(self.write) << 2
    }
}

impl Rules {
    /// What every container may use: nodes may be made, the usual ones opened, terminals used.
    pub(crate) fn usual() -> Vec<Rule> {
        let node = |kind| Rule {
            kind,
            major: None,
            minor: None,
            access: Access { read: false, write: false, mknod: true },
        };
        let device = |major, minor| Rule { kind: b'c', major: Some(major), minor, access: Access::ALL };
        let mut rules = vec![node(b'c'), node(b'b')];
        rules.extend([3, 5, 7, 8, 9].map(|minor| device(1, Some(minor))));
        rules.extend([device(5, Some(0)), device(5, Some(2)), device(136, None)]);
        rules
    }
}

/// Applies rules to a fresh cgroup.
pub(crate) fn apply(node: &Hierarchies, cgroup: &str, rules: &Rules) -> Result<(), Error> {
    let ordered: Vec<(bool, Rule)> = match rules {
        Rules::All => return Ok(()),
        Rules::Only(rules) => rules.iter().map(|rule| (true, *rule)).collect(),
        Rules::Ordered(rules) => rules.clone(),
    };
    let failed = |e| Error::with(Kind::Internal, format!("set the device rules of cgroup {cgroup}"), e);
    if let Some(v1) = node.v1("devices") {
        let open = |file| v1.open_file(cgroup, file, OFlags::WRONLY).map_err(failed);
        let (allow, deny) = (open("devices.allow")?, open("devices.deny")?);
        // One rule with each write(2).
        let say =
            |to: &OwnedFd, text: &str| rustix::io::write(to, text.as_bytes()).map_err(|e| failed(e.into()));
        say(&deny, "a")?;
        return ordered.iter().try_for_each(|(allowed, rule)| {
            say(if *allowed { &allow } else { &deny }, &line(rule)).map(drop)
        });
    }
    let Some(v2) = &node.v2 else { return Ok(()) };
    let dir = v2.open(cgroup).map_err(failed)?;
    let program = match rules {
        Rules::Only(rules) => program(rules),
        _ => ordered_program(&ordered),
    };
    let program = bpf::load_device_program(&program).map_err(failed)?;
    bpf::attach_device_program(std::os::fd::AsFd::as_fd(&dir), std::os::fd::AsFd::as_fd(&program))
        .map_err(failed)
}

/// A rule in the spelling of `devices.allow`.
fn line(rule: &Rule) -> String {
    let number = |n: Option<u32>| n.map_or("*".into(), |n| n.to_string());
    format!(
        "{} {}:{} {}",
        char::from(rule.kind),
        number(rule.major),
        number(rule.minor),
        rule.access.letters()
    )
}

/// An eBPF instruction.
fn insn(code: u8, dst: u8, src: u8, offset: i16, value: i32) -> u64 {
    u64::from(code)
        | u64::from(dst & 15 | src << 4) << 8
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(value.cast_unsigned()) << 32
}

/// The program: r2 = type, r3 = access, r4 = major, r5 = minor; the first rule that covers the access allows it.
fn program(rules: &[Rule]) -> Vec<u64> {
    const LOAD: u8 = 0x61;
    const AND: u8 = 0x54;
    const RSHIFT: u8 = 0x74;
    const MOVE: u8 = 0xb7;
    const MOVE_REGISTER: u8 = 0xbc;
    const JUMP_UNEQUAL: u8 = 0x56;
    const JUMP_UNEQUAL_REGISTER: u8 = 0x5e;
    const EXIT: u8 = 0x95;
    let mut out = vec![
        insn(LOAD, 2, 1, 0, 0),
        insn(AND, 2, 0, 0, 0xffff),
        insn(LOAD, 3, 1, 0, 0),
        insn(RSHIFT, 3, 0, 0, 16),
        insn(LOAD, 4, 1, 4, 0),
        insn(LOAD, 5, 1, 8, 0),
    ];
    for rule in rules {
        // `BPF_DEVCG_DEV_BLOCK` and `_CHAR`.
        let mut tests = vec![(JUMP_UNEQUAL, 2, 0, if rule.kind == b'b' { 1 } else { 2 })];
        if rule.access != Access::ALL {
            tests.push((MOVE_REGISTER, 1, 3, 0));
            tests.push((AND, 1, 0, rule.access.bits().cast_signed()));
            tests.push((JUMP_UNEQUAL_REGISTER, 1, 3, 0));
        }
        tests.extend(rule.major.map(|major| (JUMP_UNEQUAL, 4, 0, major.cast_signed())));
        tests.extend(rule.minor.map(|minor| (JUMP_UNEQUAL, 5, 0, minor.cast_signed())));
        let length = tests.len();
        for (at, (code, dst, src, value)) in tests.into_iter().enumerate() {
            let jump = matches!(code, JUMP_UNEQUAL | JUMP_UNEQUAL_REGISTER);
            // To the next rule: over the rest of the tests, the move and the exit.
            let offset = if jump { i16::try_from(length - at + 1).unwrap_or(i16::MAX) } else { 0 };
            out.push(insn(code, dst, src, offset, value));
        }
        out.push(insn(MOVE, 0, 0, 0, 1));
        out.push(insn(EXIT, 0, 0, 0, 0));
    }
    out.push(insn(MOVE, 0, 0, 0, 0));
    out.push(insn(EXIT, 0, 0, 0, 0));
    out
}

/// The program for rules of which the last word counts: read backwards, r3 keeps the kinds of access nobody has spoken about yet.
fn ordered_program(rules: &[(bool, Rule)]) -> Vec<u64> {
    const AND: u8 = 0x54;
    const MOVE: u8 = 0xb7;
    const MOVE_REGISTER: u8 = 0xbc;
    const JUMP_EQUAL: u8 = 0x16;
    const JUMP_UNEQUAL: u8 = 0x56;
    const EXIT: u8 = 0x95;
    let mut out = program(&[]);
    // The answer of an empty list comes last.
    out.truncate(out.len() - 2);
    for (allow, rule) in rules.iter().rev() {
        let bits = rule.access.bits().cast_signed();
        let mut part = Vec::new();
        if rule.kind != b'a' {
            part.push((JUMP_UNEQUAL, 2, 0, if rule.kind == b'b' { 1 } else { 2 }));
        }
        part.extend(rule.major.map(|major| (JUMP_UNEQUAL, 4, 0, major.cast_signed())));
        part.extend(rule.minor.map(|minor| (JUMP_UNEQUAL, 5, 0, minor.cast_signed())));
        if *allow {
            part.extend([(AND, 3, 0, !bits), (JUMP_UNEQUAL, 3, 0, 0)]);
        } else {
            part.extend([(MOVE_REGISTER, 1, 3, 0), (AND, 1, 0, bits), (JUMP_EQUAL, 1, 0, 0)]);
        }
        part.extend([(MOVE, 0, 0, i32::from(*allow)), (EXIT, 0, 0, 0)]);
        let length = part.len();
        for (at, (code, dst, src, value)) in part.into_iter().enumerate() {
            let jump = matches!(code, JUMP_EQUAL | JUMP_UNEQUAL);
            let offset = if jump { i16::try_from(length - at - 1).unwrap_or(i16::MAX) } else { 0 };
            out.push(insn(code, dst, src, offset, value));
        }
    }
    out.extend([insn(MOVE, 0, 0, 0, 0), insn(EXIT, 0, 0, 0, 0)]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::cast_possible_truncation, reason = "fields of an instruction")]
    /// Interprets the few instructions that `program` uses.
    fn verdict(program: &[u64], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [kind | access << 16, major, minor];
        let mut r = [0u32; 11];
        let mut pc = 0;
        loop {
            let i = program[pc];
            let (code, dst, src) = (i as u8, (i >> 8 & 15) as usize, (i >> 12 & 15) as usize);
            let (offset, value) = ((i >> 16) as i16, (i >> 32) as u32);
            pc += 1;
            let jump = |taken: bool| if taken { usize::try_from(offset).unwrap() } else { 0 };
            match code {
                0x61 => r[dst] = context[usize::try_from(offset).unwrap() / 4],
                0x54 => r[dst] &= value,
                0x74 => r[dst] >>= value,
                0xb7 => r[dst] = value,
                0xbc => r[dst] = r[src],
                0x16 => pc += jump(r[dst] == value),
                0x56 => pc += jump(r[dst] != value),
                0x5e => pc += jump(r[dst] != r[src]),
                0x95 => return r[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn the_program_allows_what_the_rules_say_and_nothing_else() {
        let (mknod, read, write) = (1, 2, 4);
        let mut rules = Rules::usual();
        rules.push(Rule {
            kind: b'b',
            major: Some(8),
            minor: Some(1),
            access: Access { read: true, write: false, mknod: false },
        });
        let program = program(&rules);
        for (kind, access, major, minor, expected) in [
            (2, read | write, 1, 3, true),
            (2, read, 1, 4, false),
            (2, mknod, 1, 4, true),
            (2, mknod | read, 1, 4, false),
            (2, read | write, 136, 77, true),
            (1, read, 8, 1, true),
            (1, write, 8, 1, false),
            (1, read, 8, 2, false),
            (1, read | write, 1, 3, false),
        ] {
            assert_eq!(
                verdict(&program, kind, access, major, minor),
                expected,
                "{kind} {access} {major}:{minor}"
            );
        }
    }

    /// One rule from `rwm` letters.
    fn rule(kind: u8, major: Option<u32>, minor: Option<u32>, access: &str) -> Rule {
        Rule { kind, major, minor, access: Access::parse(access).unwrap() }
    }

    #[test]
    fn the_last_word_on_a_kind_of_access_counts() {
        let (mknod, read, write) = (1, 2, 4);
        let rules = [
            (true, rule(b'a', None, None, "rwm")),
            (false, rule(b'c', Some(10), None, "rw")),
            (true, rule(b'c', Some(10), Some(229), "r")),
            (true, rule(b'c', Some(10), Some(229), "w")),
            (false, rule(b'b', Some(8), None, "w")),
        ];
        let program = ordered_program(&rules);
        for (kind, access, major, minor, expected) in [
            (2, read | write, 1, 1, true),
            (2, read, 10, 200, false),
            (2, mknod, 10, 200, true),
            (2, mknod | read, 10, 200, false),
            (2, read | write, 10, 229, true),
            (1, read, 8, 0, true),
            (1, read | write, 8, 0, false),
            (1, write, 9, 0, true),
        ] {
            assert_eq!(
                verdict(&program, kind, access, major, minor),
                expected,
                "{kind} {access} {major}:{minor}"
            );
        }
        assert!(!verdict(&ordered_program(&[]), 2, read, 1, 3), "nothing said is nothing allowed");
        bpf::load_device_program(&program).unwrap();
    }

    #[test]
    fn the_kernel_accepts_the_program() {
        bpf::load_device_program(&program(&Rules::usual())).unwrap();
    }

    #[test]
    fn rules_read_like_the_kernels_own_list() {
        let lines: Vec<_> = Rules::usual().iter().map(line).collect();
        assert_eq!(lines[0], "c *:* m");
        assert_eq!(lines[2], "c 1:3 rwm");
        Access::parse("rx").unwrap_err();
        Access::parse("").unwrap_err();
    }
}

//! Promises of the compiler, checked by running its programs in an interpreter of classic BPF and against libseccomp.

#![allow(clippy::cast_possible_truncation)] // halves and remainders are what is wanted

use std::io::Write;
use std::process::{Command, Stdio};

use super::arch::Arch;
use super::profile::{Document, Facts, Resolved, resolve};
use super::program::{AND, Action, Instruction, JEQ, JGE, JGT, JUMP, LOAD, RET};
use super::*;

const KILL: u32 = 0;
const ALLOW: u32 = 0x7FFF_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const SYS_ADMIN: u64 = 1 << 21;

/// One call as the kernel shows it to a filter.
#[derive(Clone, Copy, Debug, Default)]
struct Call {
    number: u32,
    token: u32,
    args: [u64; 6],
}

impl Call {
    fn new(arch: Arch, name: &str, args: &[u64]) -> Self {
        let number =
            arch.entries(name).first().map(|e| e.number).unwrap_or_else(|| panic!("{name} on {arch:?}"));
        let mut call = Self { number, token: arch.token(), ..Self::default() };
        call.args[..args.len()].copy_from_slice(args);
        call
    }

    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.token,
            8 | 12 => 0,
            _ => {
                let arg = self.args[(offset as usize - 16) / 8];
                if offset.is_multiple_of(8) { arg as u32 } else { (arg >> 32) as u32 }
            }
        }
    }
}

fn run(program: &[Instruction], call: &Call) -> u32 {
    let (mut at, mut a) = (0, 0);
    loop {
        let i = program[at];
        at += 1;
        let jump = |yes: bool| usize::from(if yes { i.jt } else { i.jf });
        match i.code {
            LOAD => a = call.word(i.k),
            AND => a &= i.k,
            JUMP => at += i.k as usize,
            JEQ => at += jump(a == i.k),
            JGT => at += jump(a > i.k),
            JGE => at += jump(a >= i.k),
            RET => return i.k,
            code => panic!("instruction {code:#x}"),
        }
    }
}

fn facts(capabilities: u64) -> Facts {
    Facts { capabilities, kernel: (6, 18), native: Arch::X86_64 }
}

fn resolved(text: &str, capabilities: u64) -> Result<Resolved, String> {
    let document: Document = serde_json::from_str(text).map_err(|e| e.to_string())?;
    resolve(&document, &facts(capabilities))
}

fn compiled(text: &str, capabilities: u64) -> Vec<Instruction> {
    compile::compile(&resolved(text, capabilities).unwrap()).unwrap()
}

fn default_profile(capabilities: u64) -> Vec<Instruction> {
    compiled(std::str::from_utf8(RUNTIME_DEFAULT).unwrap(), capabilities)
}

#[test]
fn runtime_default_decides_as_documented() {
    let plain = default_profile(0);
    let admin = default_profile(SYS_ADMIN);
    let table: &[(&str, &[u64], u32, u32)] = &[
        ("read", &[], ALLOW, ALLOW),
        ("mount", &[], EPERM, ALLOW),
        ("clone", &[0x11], ALLOW, ALLOW),
        ("clone", &[0x1000_0000], EPERM, ALLOW),
        ("clone3", &[], ENOSYS, ALLOW),
        ("socket", &[2], ALLOW, ALLOW),
        ("socket", &[38], EPERM, EPERM),
        ("socket", &[39], ALLOW, ALLOW),
        ("socket", &[40], EPERM, EPERM),
        ("socket", &[41], ALLOW, ALLOW),
        ("personality", &[0xFFFF_FFFF], ALLOW, ALLOW),
        ("personality", &[0x0040_0000], EPERM, EPERM),
        ("ptrace", &[], ALLOW, ALLOW),
        ("io_uring_setup", &[], EPERM, EPERM),
        ("kexec_load", &[], EPERM, EPERM),
    ];
    for (name, args, without, with) in table {
        let call = Call::new(Arch::X86_64, name, args);
        assert_eq!(run(&plain, &call), *without, "{name}{args:?} without CAP_SYS_ADMIN");
        assert_eq!(run(&admin, &call), *with, "{name}{args:?} with CAP_SYS_ADMIN");
    }
}

/// CVE-2022-0185 (fsconfig), CVE-2026-31431 (AF_ALG), CVE-2022-0492 (mount, unshare), and the like: what escapes from the kernel begin
/// with takes a capability, if it is there at all.
#[test]
fn what_escapes_begin_with_is_not_in_the_default() {
    let program = default_profile(0);
    for name in [
        "fsopen",
        "fsconfig",
        "fsmount",
        "fspick",
        "move_mount",
        "open_tree",
        "mount_setattr",
        "mount",
        "umount2",
        "pivot_root",
        "unshare",
        "setns",
        "bpf",
        "perf_event_open",
        "userfaultfd",
        "keyctl",
        "add_key",
        "request_key",
        "open_by_handle_at",
        "init_module",
        "finit_module",
        "kexec_load",
        "io_uring_setup",
        "io_uring_enter",
        "io_uring_register",
    ] {
        assert_eq!(run(&program, &Call::new(Arch::X86_64, name, &[])), EPERM, "{name}");
    }
    const AF_ALG: u64 = 38;
    for arch in [Arch::X86_64, Arch::X86, Arch::X32] {
        assert_eq!(run(&program, &Call::new(arch, "socket", &[AF_ALG])), EPERM, "{arch:?}");
    }
}

#[test]
fn calls_newer_than_the_profile_answer_enosys() {
    let program = default_profile(0);
    for number in [2000, 0x3FFF_FFFF] {
        let call = Call { number, token: Arch::X86_64.token(), ..Call::default() };
        assert_eq!(run(&program, &call), ENOSYS, "{number}");
    }
}

#[test]
fn a_foreign_architecture_ends_the_thread() {
    let program = default_profile(0);
    assert_eq!(run(&program, &Call::new(Arch::Aarch64, "read", &[])), KILL);
    let only = compiled(r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"]}"#, 0);
    assert_eq!(run(&only, &Call::new(Arch::X32, "read", &[])), KILL);
    assert_eq!(run(&only, &Call::new(Arch::X86, "read", &[])), KILL);
    assert_eq!(run(&only, &Call::new(Arch::X86_64, "read", &[])), ALLOW);
}

#[test]
fn thirty_two_bit_programs_are_filtered_by_their_own_numbers() {
    let program = default_profile(0);
    for arch in [Arch::X86, Arch::X32] {
        assert_eq!(run(&program, &Call::new(arch, "read", &[])), ALLOW, "{arch:?}");
        assert_eq!(run(&program, &Call::new(arch, "mount", &[])), EPERM, "{arch:?}");
    }
}

#[test]
fn a_rule_that_names_an_argument_twice_means_either() {
    let program = compiled(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["dup"],"action":"SCMP_ACT_ALLOW",
            "args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":0,"value":5,"op":"SCMP_CMP_EQ"}]}]}"#,
        0,
    );
    for (arg, verdict) in [(1, ALLOW), (5, ALLOW), (3, EPERM)] {
        assert_eq!(run(&program, &Call::new(Arch::X86_64, "dup", &[arg])), verdict, "{arg}");
    }
}

#[test]
fn a_bad_profile_is_refused_by_the_name_of_what_is_wrong() {
    let table = [
        (r#"{"defaultAction":"SCMP_ACT_MAYBE"}"#, "defaultAction: unknown action SCMP_ACT_MAYBE"),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_KILL"}]}"#,
            "syscalls[0]: names no system call",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_KILL",
                "args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
            "syscalls[0]: args: index 6 is above 5",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_ERRNO","errnoRet":70000}]}"#,
            "syscalls[0]: action: errnoRet 70000 does not fit 16 bits",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["write"],"action":"SCMP_ACT_NOTIFY"}]}"#,
            "syscalls[0]: SCMP_ACT_NOTIFY on write would stop the hand-over of the listener",
        ),
        (r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["FLAG"]}"#, "flags: unknown flag FLAG"),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}]}"#,
            "SCMP_ACT_NOTIFY needs listenerPath",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"a"}"#,
            "listenerPath: a must be an absolute path",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerMetadata":"a"}"#,
            "listenerMetadata: there is no listenerPath to send it to",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_NOTIFY","listenerPath":"/a"}"#,
            "defaultAction: SCMP_ACT_NOTIFY would stop the agent's own answer",
        ),
    ];
    for (text, expected) in table {
        assert_eq!(resolved(text, 0).unwrap_err(), expected);
    }
}

#[test]
fn a_listener_is_asked_for_when_a_rule_notifies() {
    let text = |action: &str| {
        format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/agent","listenerMetadata":"m",
                "flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],"syscalls":[{{"names":["mkdir"],"action":"{action}"}}]}}"#
        )
    };
    let notifying = resolved(&text("SCMP_ACT_NOTIFY"), 0).unwrap();
    assert_eq!(notifying.flags, 1 << 3 | 1 << 5);
    let agent = Listener { path: c"/run/agent".into(), metadata: Some("m".into()) };
    assert_eq!(notifying.listener, Some(agent));
    let silent = resolved(&text("SCMP_ACT_LOG"), 0).unwrap();
    assert_eq!((silent.flags, silent.listener), (0, None), "the kernel refuses the flag without a listener");
}

#[test]
fn a_filter_is_compiled_once_per_profile_and_capabilities() {
    let cache = Cache::new(Node { kernel: (6, 18) });
    let filter = |caps| cache.filter(Some(&ProfileName::RuntimeDefault), caps).unwrap().unwrap();
    assert!(Arc::ptr_eq(&filter(0), &filter(0)));
    assert!(!Arc::ptr_eq(&filter(0), &filter(SYS_ADMIN)));
    assert_eq!(cache.filter(None, 0).unwrap(), None);
    assert_eq!(cache.filter(Some(&ProfileName::Unconfined), 0).unwrap(), None);
    assert_eq!(filter(0).program.len() % 8, 0);
}

#[test]
fn a_missing_or_relative_profile_file_is_named() {
    let cache = Cache::new(Node { kernel: (6, 18) });
    let error = |path: &str| cache.filter(Some(&ProfileName::Localhost(path.into())), 0).unwrap_err().chain();
    assert!(error("/nowhere/profile.json").contains("/nowhere/profile.json"));
    assert_eq!(error("profile.json"), "seccomp.localhost_ref: profile.json: must be an absolute path");
    assert_eq!(error("/dev/null/"), error("/dev/null/"));
    assert!(error("/dev/zero").contains("is not a regular file"));
}

/// A generator of the same numbers on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
    /// A number near which comparisons change.
    fn value(&mut self, wide: bool) -> u64 {
        let bit = 1_u64 << self.below(64);
        let value =
            self.pick(&[0, 1, 38, 40, 0x7E02_0000, u64::from(u32::MAX), u64::MAX, 1 << 32, bit, self.0]);
        if wide { value } else { value & u64::from(u32::MAX) }
    }
}

/// Prints a compiled filter of libseccomp for the rules on its standard input: an oracle we did not write.
const ORACLE: &str = r#"
#include <seccomp.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
int main(void) {
  scmp_filter_ctx ctx = NULL;
  char word[32], name[64];
  unsigned action, n, arch;
  while (scanf("%31s", word) == 1) {
    if (!strcmp(word, "default")) { if (scanf("%u", &action) != 1 || !(ctx = seccomp_init(action))) return 2; }
    else if (!strcmp(word, "arch")) { if (scanf("%u", &arch) != 1) return 3; if (seccomp_arch_remove(ctx, SCMP_ARCH_NATIVE) || seccomp_arch_add(ctx, arch)) return 4; }
    else if (!strcmp(word, "rule")) {
      struct scmp_arg_cmp cmp[6]; memset(cmp, 0, sizeof cmp);
      if (scanf("%u %63s %u", &action, name, &n) != 3) return 5;
      for (unsigned i = 0; i < n; i++) {
        unsigned long long a, b; unsigned arg, op;
        if (scanf("%u %u %llu %llu", &arg, &op, &a, &b) != 4) return 6;
        cmp[i].arg = arg; cmp[i].op = op; cmp[i].datum_a = a; cmp[i].datum_b = b;
      }
      int nr = seccomp_syscall_resolve_name(name);
      if (nr == __NR_SCMP_ERROR) return 7;
      int rc = seccomp_rule_add_array(ctx, action, nr, n, cmp);
      if (rc && rc != -17) { fprintf(stderr, "%s %d\n", name, rc); return 8; }
    }
  }
  return seccomp_export_bpf(ctx, 1) ? 9 : 0;
}
"#;

const OPERATORS: [&str; 7] = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];

/// A random profile in both spellings: ours and the oracle's.
fn random_profile(random: &mut Random, names: &[&str]) -> (String, String, Vec<String>, Arch) {
    let actions = [
        ("ALLOW", Action::Allow),
        ("ERRNO", Action::Errno(1)),
        ("LOG", Action::Log),
        ("TRAP", Action::Trap),
        ("TRACE", Action::Trace(1)),
        ("NOTIFY", Action::Notify),
        ("KILL_THREAD", Action::KillThread),
        ("KILL_PROCESS", Action::KillProcess),
    ];
    let (default_name, default) = random.pick(&actions[..2]);
    let (mut json, mut text) = (Vec::new(), format!("default {}\n", default.verdict()));
    // One architecture each: with several, 2.5.4 emits programs that forget to load the number. On 32-bit architectures it cuts some
    // 64-bit operands and compares others whole: those get operands that fit.
    let arch = random.pick(&[Arch::X86_64, Arch::X86_64, Arch::X86, Arch::X32]);
    let wide = arch == Arch::X86_64;
    match arch {
        Arch::X86 => text.push_str(&format!("arch {}\n", 0x4000_0003_u32)),
        Arch::X32 => text.push_str(&format!("arch {}\n", 0x4000_003E_u32)),
        _ => {}
    }
    let mut used = Vec::new();
    for _ in 0..random.below(40) {
        let name = random.pick(names);
        // Rules of a multiplexer and of the calls behind it share a number, and libseccomp gives their conditions an order of its own.
        if used.iter().any(|n| n == name) || (arch == Arch::X86 && ["socketcall", "ipc"].contains(&name)) {
            continue;
        }
        used.push(name.to_string());
        let (action_name, action) = random.pick(&actions);
        if action == default || (action == Action::Notify && name == "write") {
            continue;
        }
        // libseccomp keeps the rules of one call in a tree and loses alternatives when their ordered comparisons overlap (seen with
        // 2.5.4), so a call has either one rule of any kind, or several that test the same argument for equality.
        let several = random.below(3) == 0;
        let (rules, common) = if several { (1 + random.below(3), random.below(6)) } else { (1, 0) };
        for _ in 0..rules {
            let mut indexes: Vec<usize> = (0..6).collect();
            let (mut args, mut words) = (Vec::new(), String::new());
            let count = if several { 1 } else { random.below(4) };
            for _ in 0..count {
                let index = if several { common } else { indexes.remove(random.below(indexes.len())) };
                let op = if several { 3 } else { random.below(7) };
                let (mut a, mut b) = (random.value(wide), random.value(wide));
                if op == 6 {
                    // libseccomp takes a mask without bits in a half for no test of that half, whatever the value.
                    a = random.pick(&[
                        1,
                        0x7E02_0000,
                        u64::from(u32::MAX),
                        if wide { 0x0000_0001_0000_0001 } else { 3 },
                    ]);
                    b &= a;
                }
                args.push(format!(
                    r#"{{"index":{index},"value":{a},"valueTwo":{b},"op":"SCMP_CMP_{}"}}"#,
                    OPERATORS[op]
                ));
                words.push_str(&format!(" {index} {} {a} {b}", op + 1));
            }
            json.push(format!(
                r#"{{"names":["{name}"],"action":"SCMP_ACT_{action_name}","args":[{}]}}"#,
                args.join(",")
            ));
            text.push_str(&format!("rule {} {name} {count}{words}\n", action.verdict()));
        }
    }
    let document = format!(
        r#"{{"defaultAction":"SCMP_ACT_{default_name}","architectures":["{}"],"listenerPath":"/a","syscalls":[{}]}}"#,
        arch.name(),
        json.join(",")
    );
    (document, text, used, arch)
}

fn oracle() -> Option<tempdir::Dir> {
    if !Path::new("/usr/include/seccomp.h").exists() {
        assert!(std::env::var_os("BERTH_TEST_ORACLES").is_none(), "the package libseccomp-dev is missing");
        eprintln!("skip: seccomp differential (missing package libseccomp-dev)");
        return None;
    }
    let dir = tempdir::Dir::new();
    std::fs::write(dir.path("oracle.c"), ORACLE).unwrap();
    let status = Command::new("cc")
        .args(["-O1", "-o"])
        .arg(dir.path("oracle"))
        .arg(dir.path("oracle.c"))
        .arg("-lseccomp")
        .status();
    assert!(status.unwrap().success(), "the oracle compiles");
    Some(dir)
}

fn ask(oracle: &Path, rules: &str) -> Vec<Instruction> {
    let mut child = Command::new(oracle).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{} on\n{rules}", output.status);
    let short = |b: &[u8]| u16::from_ne_bytes([b[0], b[1]]);
    let word = |b: &[u8]| u32::from_ne_bytes([b[4], b[5], b[6], b[7]]);
    output
        .stdout
        .chunks_exact(8)
        .map(|b| Instruction { code: short(b), jt: b[2], jf: b[3], k: word(b) })
        .collect()
}

#[test]
fn libseccomp_gives_the_same_verdict_for_100000_random_calls() {
    let Some(dir) = oracle() else { return };
    // Names that Debian's libseccomp knows.
    let names: Vec<&str> = table::SYSCALLS
        .iter()
        .filter(|(name, n)| {
            !name.starts_with("ur") && *name != "uprobe" && n[0] < 440 && n[1] < 440 && n[1].max(n[0]) >= 0
        })
        .map(|(n, _)| *n)
        .collect();
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for profile in 0..200 {
        let (document, rules, used, arch) = random_profile(&mut random, &names);
        let mut ours = resolved(&document, 0).unwrap();
        ours.enosys_for_newer = false; // libseccomp has no such thing
        let ours = compile::compile(&ours).unwrap();
        let theirs = ask(&dir.path("oracle"), &rules);
        for _ in 0..500 {
            let name = if used.is_empty() { "read" } else { used[random.below(used.len())].as_str() };
            let entries = arch.entries(name);
            let mut call =
                Call { number: random.next() as u32 % 450, token: arch.token(), ..Call::default() };
            if random.below(8) > 0 && !entries.is_empty() {
                let entry = entries[random.below(entries.len())];
                call.number = entry.number;
                call.args[0] = entry.multiplexed.unwrap_or(0).into();
            } else if arch == Arch::X32 {
                call.number |= arch::X32_BIT;
            }
            let fixed = usize::from(call.args[0] != 0);
            for arg in call.args.iter_mut().skip(fixed) {
                *arg = random.value(true);
            }
            let rules: Vec<&str> = rules.lines().filter(|l| l.contains(name) || l.starts_with('d')).collect();
            assert_eq!(
                run(&ours, &call),
                run(&theirs, &call),
                "profile {profile} {name} {arch:?} {call:x?}\n{rules:?}"
            );
        }
    }
}

/// A directory that is gone when the test is.
mod tempdir {
    use std::path::PathBuf;

    pub(super) struct Dir(PathBuf);

    impl Dir {
        pub(super) fn new() -> Self {
            let path = std::env::temp_dir().join(format!("berth-seccomp-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
        pub(super) fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

//! The compiler: a resolved profile to one program.
//!
//! Per architecture, every system call number has a *leaf*: a verdict, or a chain of conditional rules. Neighbouring numbers with the
//! same leaf form a range; the program finds the range by binary search.

use std::collections::BTreeMap;

use super::arch::{Arch, Entry, X32_BIT};
use super::profile::{Compare, Condition, Resolved};
use super::program::{AND, Action, Builder, Instruction, JEQ, JGE, JGT, LOAD, Label};

/// Offsets in `struct seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

/// ENOSYS.
const ENOSYS: u32 = 38;

/// What becomes of one call number.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Leaf {
    Verdict(Action),
    /// Tried in order; when none matches, the default action.
    Chain(Vec<(Vec<Condition>, Action)>),
}

/// Numbers from `start` up to the next range's start.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    start: u32,
    leaf: Leaf,
}

/// Compiles a profile. An architecture it does not list ends the thread, as with libseccomp.
pub(super) fn compile(profile: &Resolved) -> Result<Vec<Instruction>, String> {
    let mut out = Builder::default();
    let mut next = out.ret(Action::KillThread.verdict());
    let mut tokens: Vec<(u32, Vec<Arch>)> = Vec::new();
    for arch in &profile.arches {
        match tokens.iter_mut().find(|(token, _)| *token == arch.token()) {
            Some((_, list)) => list.push(*arch),
            None => tokens.push((arch.token(), vec![*arch])),
        }
    }
    for (token, arches) in tokens.into_iter().rev() {
        let mut ranges = Vec::new();
        for arch in &arches {
            ranges.extend(ranges_of(profile, *arch));
        }
        if arches.first() == Some(&Arch::X86_64) && arches.len() == 1 {
            ranges.retain(|r: &Range| r.start < X32_BIT);
            ranges.push(Range { start: X32_BIT, leaf: Leaf::Verdict(Action::KillThread) });
        }
        ranges.dedup_by(|later, earlier| later.leaf == earlier.leaf);
        let narrow =
            |start: u32| arches.iter().any(|a| a.is_32bit() && (*a != Arch::X32 || start >= X32_BIT));
        let search = search(&mut out, &ranges, profile.default, &narrow);
        let section = out.then(LOAD, NUMBER, search);
        next = out.branch(JEQ, token, section, next);
    }
    let start = out.then(LOAD, ARCH, next);
    out.finish(start)
}

/// All ranges of an architecture, in order, the first starting at its first number.
fn ranges_of(profile: &Resolved, arch: Arch) -> Vec<Range> {
    let mut leaves: BTreeMap<u32, Leaf> = BTreeMap::new();
    let mut newest = None;
    for rule in &profile.rules {
        for entry in rule.names.iter().flat_map(|name| arch.entries(name)) {
            newest = newest.max(Some(entry.number));
            let conditions = conditions_at(&rule.conditions, entry);
            let leaf = leaves.entry(entry.number).or_insert_with(|| Leaf::Chain(Vec::new()));
            match leaf {
                // An unconditional rule says it all, whatever comes later.
                Leaf::Verdict(_) => {}
                _ if conditions.is_empty() => *leaf = Leaf::Verdict(rule.action),
                Leaf::Chain(chain) => chain.push((conditions, rule.action)),
            }
        }
    }
    let base = if arch == Arch::X32 { X32_BIT } else { 0 };
    let mut ranges = vec![Range { start: base, leaf: Leaf::Verdict(profile.default) }];
    for (number, leaf) in leaves {
        if ranges.last().is_some_and(|last| last.start == number) {
            ranges.pop();
        }
        ranges.push(Range { start: number, leaf });
        ranges.push(Range { start: number.saturating_add(1), leaf: Leaf::Verdict(profile.default) });
    }
    if let (true, Some(newest)) = (profile.enosys_for_newer, newest) {
        ranges.retain(|range| range.start <= newest);
        ranges.push(Range { start: newest.saturating_add(1), leaf: Leaf::Verdict(Action::Errno(ENOSYS)) });
    }
    ranges.dedup_by(|later, earlier| later.leaf == earlier.leaf);
    ranges
}

/// The conditions of a rule at one way into the kernel: a multiplexed call's first argument is its own number, the rest is in memory.
fn conditions_at(conditions: &[Condition], entry: Entry) -> Vec<Condition> {
    let Some(call) = entry.multiplexed else { return conditions.to_vec() };
    let selects = Condition { index: 0, compare: Compare::Eq(call.into()) };
    std::iter::once(selects).chain(conditions.iter().copied().filter(|c| c.index != 0)).collect()
}

/// Binary search over ranges.
fn search(out: &mut Builder, ranges: &[Range], default: Action, narrow: &dyn Fn(u32) -> bool) -> Label {
    match ranges {
        [] => out.ret(default.verdict()),
        [range] => match &range.leaf {
            Leaf::Verdict(action) => out.ret(action.verdict()),
            Leaf::Chain(chain) => conditional(out, chain, default, narrow(range.start)),
        },
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let start = high.first().map_or(0, |range| range.start);
            let high = search(out, high, default, narrow);
            let low = search(out, low, default, narrow);
            out.branch(JGE, start, high, low)
        }
    }
}

/// A chain of conditional rules: the first whose conditions all hold decides.
fn conditional(
    out: &mut Builder,
    chain: &[(Vec<Condition>, Action)],
    default: Action,
    narrow: bool,
) -> Label {
    let mut otherwise = out.ret(default.verdict());
    for (conditions, action) in chain.iter().rev() {
        let mut next = out.ret(action.verdict());
        for condition in conditions.iter().rev() {
            next = test(out, *condition, next, otherwise, narrow);
        }
        otherwise = next;
    }
    otherwise
}

/// One comparison of a 64-bit argument by its two halves; on 32-bit architectures only the low half counts.
fn test(out: &mut Builder, condition: Condition, yes: Label, no: Label, narrow: bool) -> Label {
    let low_at = ARGS + 8 * condition.index;
    let high_at = low_at + 4;
    let (code, value, mask, yes, no) = match condition.compare {
        Compare::Eq(v) => (JEQ, v, u64::MAX, yes, no),
        Compare::Ne(v) => (JEQ, v, u64::MAX, no, yes),
        Compare::Gt(v) => (JGT, v, u64::MAX, yes, no),
        Compare::Le(v) => (JGT, v, u64::MAX, no, yes),
        Compare::Ge(v) => (JGE, v, u64::MAX, yes, no),
        Compare::Lt(v) => (JGE, v, u64::MAX, no, yes),
        Compare::Masked(mask, v) => (JEQ, v, mask, yes, no),
    };
    let (value_high, value_low) = halves(value);
    let (mask_high, mask_low) = halves(mask);
    let mut low = out.branch(code, value_low, yes, no);
    if mask_low != u32::MAX {
        low = out.then(AND, mask_low, low);
    }
    low = out.then(LOAD, low_at, low);
    if narrow || (mask_high == 0 && value_high == 0) {
        return low;
    }
    let mut high = out.branch(JEQ, value_high, low, no);
    if code != JEQ {
        high = out.branch(JGT, value_high, yes, high);
    }
    if mask_high != u32::MAX {
        high = out.then(AND, mask_high, high);
    }
    out.then(LOAD, high_at, high)
}

#[allow(clippy::cast_possible_truncation)] // the halves are what is wanted
fn halves(value: u64) -> (u32, u32) {
    ((value >> 32) as u32, value as u32)
}

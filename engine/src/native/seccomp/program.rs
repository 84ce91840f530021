//! A small assembler for classic BPF (linux/filter.h), and the verdicts of a seccomp filter (linux/seccomp.h).
//!
//! Programs are written from their end: an instruction can only jump forward, so whatever it jumps to has been written before.

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Action {
    Allow,
    Log,
    Trace(u32),
    Notify,
    Errno(u32),
    Trap,
    KillThread,
    KillProcess,
}

impl Action {
    /// `SECCOMP_RET_*` with its data.
    pub(super) fn verdict(self) -> u32 {
        match self {
            Self::Allow => 0x7FFF_0000,
            Self::Log => 0x7FFC_0000,
            Self::Trace(data) => 0x7FF0_0000 | data,
            Self::Notify => 0x7FC0_0000,
            Self::Errno(errno) => 0x0005_0000 | errno,
            Self::Trap => 0x0003_0000,
            Self::KillThread => 0,
            Self::KillProcess => 0x8000_0000,
        }
    }

    /// Whether the call takes place.
    pub(super) fn is_permissive(self) -> bool {
        matches!(self, Self::Allow | Self::Log | Self::Notify | Self::Trace(_))
    }
}

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u16,
    pub(super) jt: u8,
    pub(super) jf: u8,
    pub(super) k: u32,
}

/// Loads the word at offset k of `struct seccomp_data`: BPF_LD | BPF_W | BPF_ABS.
pub(super) const LOAD: u16 = 0x20;
/// A &= k: BPF_ALU | BPF_AND | BPF_K.
pub(super) const AND: u16 = 0x54;
/// Unconditional jump by k: BPF_JMP | BPF_JA.
pub(super) const JUMP: u16 = 0x05;
/// A == k: BPF_JMP | BPF_JEQ | BPF_K.
pub(super) const JEQ: u16 = 0x15;
/// A > k: BPF_JMP | BPF_JGT | BPF_K.
pub(super) const JGT: u16 = 0x25;
/// A >= k: BPF_JMP | BPF_JGE | BPF_K.
pub(super) const JGE: u16 = 0x35;
/// Ends with verdict k: BPF_RET | BPF_K.
pub(super) const RET: u16 = 0x06;

/// BPF_MAXINSNS.
const MAX_INSTRUCTIONS: usize = 4096;

/// A place in a program: how many instructions come from there to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Label(usize);

/// A program under construction; the first instruction written is the last to run.
#[derive(Debug, Default)]
pub(super) struct Builder {
    reversed: Vec<Instruction>,
    /// Where each verdict was last written.
    verdicts: Vec<(u32, Label)>,
}

impl Builder {
    /// The instruction that ends with a verdict, reusing one within reach.
    pub(super) fn ret(&mut self, verdict: u32) -> Label {
        // Other jumps may be written between now and the use: stay well below the reach of 255.
        let known =
            self.verdicts.iter().find(|(v, label)| *v == verdict && self.reversed.len() - label.0 < 128);
        if let Some((_, label)) = known {
            return *label;
        }
        let label = self.push(RET, 0, 0, verdict);
        self.verdicts.retain(|(v, _)| *v != verdict);
        self.verdicts.push((verdict, label));
        label
    }

    /// Does something, then goes on with `next`.
    pub(super) fn then(&mut self, code: u16, k: u32, next: Label) -> Label {
        self.fall(next);
        self.push(code, 0, 0, k)
    }

    /// Compares and goes on with one of two places.
    pub(super) fn branch(&mut self, code: u16, k: u32, yes: Label, no: Label) -> Label {
        let yes = self.near(yes);
        let before = self.reversed.len();
        let no = self.near(no);
        // Bringing `no` near may have pushed `yes` one further away; `near` leaves room for that.
        debug_assert!(self.reversed.len() - before <= 1);
        let (jt, jf) = (self.distance(yes), self.distance(no));
        self.push(code, jt, jf, k)
    }

    /// The finished program, first instruction first.
    pub(super) fn finish(mut self, start: Label) -> Result<Vec<Instruction>, String> {
        self.fall(start);
        self.reversed.reverse();
        match self.reversed.len() {
            n if n > MAX_INSTRUCTIONS => {
                Err(format!("compiles to {n} instructions; the kernel takes {MAX_INSTRUCTIONS}"))
            }
            _ => Ok(self.reversed),
        }
    }

    /// Makes `next` what runs after the instruction written next.
    fn fall(&mut self, next: Label) {
        let skipped = self.reversed.len() - next.0;
        if skipped > 0 {
            self.push(JUMP, 0, 0, u32::try_from(skipped).unwrap_or(u32::MAX));
        }
    }

    /// A place within reach of a conditional jump that leads to `target`.
    fn near(&mut self, target: Label) -> Label {
        if self.reversed.len() - target.0 < 250 {
            return target;
        }
        let skipped = self.reversed.len() - target.0;
        self.push(JUMP, 0, 0, u32::try_from(skipped).unwrap_or(u32::MAX))
    }

    fn distance(&self, target: Label) -> u8 {
        u8::try_from(self.reversed.len() - target.0).unwrap_or(u8::MAX)
    }

    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Label {
        self.reversed.push(Instruction { code, jt, jf, k });
        Label(self.reversed.len())
    }
}

/// `struct sock_filter[]` as the kernel reads it.
pub(super) fn bytes(program: &[Instruction]) -> Box<[u8]> {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for instruction in program {
        bytes.extend_from_slice(&instruction.code.to_ne_bytes());
        bytes.extend_from_slice(&[instruction.jt, instruction.jf]);
        bytes.extend_from_slice(&instruction.k.to_ne_bytes());
    }
    bytes.into_boxed_slice()
}

//! Sequences of requests, random but repeatable, about a few named objects.

/// What is done in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// The RPC.
    pub(super) rpc: &'static str,
    /// Number of the pod.
    pub(super) pod: usize,
    /// Number of the container.
    pub(super) container: usize,
    /// Which of the RPC's requests.
    pub(super) variant: &'static str,
}

/// Pods and containers that a sequence speaks of.
pub(super) const PODS: usize = 2;
pub(super) const CONTAINERS: usize = 3;
/// Steps of a sequence.
const LENGTH: usize = 12;

/// RPCs with their weight and their requests.
const ALPHABET: &[(&str, u64, &[&str])] = &[
    (
        "RunPodSandbox",
        4,
        &["plain", "plain", "full", "host network", "unknown handler", "no metadata", "no uid"],
    ),
    ("StopPodSandbox", 2, &["plain"]),
    ("RemovePodSandbox", 1, &["plain", "absent"]),
    ("PodSandboxStatus", 4, &["plain", "prefix", "absent"]),
    ("ListPodSandbox", 2, &["all", "ready", "notready", "label", "id", "no match"]),
    (
        "CreateContainer",
        6,
        &[
            "sleeps",
            "sleeps",
            "sleeps",
            "ends",
            "fails",
            "full",
            "terminal",
            "absent image",
            "no metadata",
            "no image",
            "bad mount",
            "group without user",
            "privileged",
            "unknown user",
        ],
    ),
    ("StartContainer", 6, &["plain", "plain", "plain", "absent"]),
    ("StopContainer", 2, &["now", "absent"]),
    ("RemoveContainer", 2, &["plain", "absent"]),
    ("ContainerStatus", 5, &["plain", "prefix", "absent", "empty"]),
    ("ListContainers", 2, &["all", "running", "exited", "label", "pod", "no match"]),
    ("ExecSync", 3, &["true", "output", "fails", "no command", "absent program", "timeout", "absent"]),
    ("Exec", 1, &["plain", "no streams", "tty and stderr", "no command", "absent"]),
    ("Attach", 1, &["plain", "no streams", "tty and stderr", "absent"]),
    ("PortForward", 1, &["plain", "absent"]),
    ("UpdateContainerResources", 2, &["memory", "shares", "nothing", "absent"]),
    ("ReopenContainerLog", 1, &["plain", "absent"]),
    ("ContainerStats", 1, &["plain", "absent"]),
    ("ListContainerStats", 1, &["all", "label"]),
    ("PodSandboxStats", 1, &["plain", "absent"]),
    ("ListPodSandboxStats", 1, &["all"]),
    ("ImageStatus", 1, &["tag", "absent", "empty"]),
    ("ListImages", 1, &["all", "one", "no match"]),
    ("PullImage", 1, &["again", "absent", "not a name", "empty"]),
    ("RemoveImage", 1, &["absent", "empty"]),
    ("ImageFsInfo", 1, &["plain"]),
    ("Version", 1, &["plain"]),
    ("Status", 1, &["plain"]),
    ("RuntimeConfig", 1, &["plain"]),
];

/// A small generator: the same sequences everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.roll(u64::try_from(length).unwrap_or(1))).unwrap_or(0)
    }
}

/// The n-th sequence. It begins with a pod and a container, or most of what follows would speak of nothing.
pub(super) fn sequence(number: u64) -> Vec<Step> {
    let mut dice = Dice(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed);
    let variant = |rpc: &str, dice: &mut Dice| -> (&'static str, &'static str) {
        let row = ALPHABET.iter().find(|(name, ..)| *name == rpc).unwrap_or(&ALPHABET[0]);
        (row.0, row.2[dice.index(row.2.len())])
    };
    let mut steps = Vec::new();
    for rpc in ["RunPodSandbox", "CreateContainer", "StartContainer"] {
        // Mostly the good one, which is the first.
        let (rpc, any) = variant(rpc, &mut dice);
        let first = ALPHABET.iter().find(|(name, ..)| *name == rpc).map_or(any, |row| row.2[0]);
        let variant = if dice.roll(3) == 0 { any } else { first };
        steps.push(Step { rpc, pod: 0, container: 0, variant });
    }
    let total: u64 = ALPHABET.iter().map(|row| row.1).sum();
    while steps.len() < LENGTH {
        let mut at = dice.roll(total);
        let row = ALPHABET.iter().find(|row| {
            let here = at < row.1;
            at = at.saturating_sub(row.1);
            here
        });
        let Some(row) = row else { continue };
        let (pod, container) = (dice.index(PODS), dice.index(CONTAINERS));
        steps.push(Step { rpc: row.0, pod, container, variant: row.2[dice.index(row.2.len())] });
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_hundred_sequences_send_every_request_there_is() {
        let sent: Vec<Step> = (0..300).flat_map(sequence).collect();
        for (rpc, _, variants) in ALPHABET {
            for variant in *variants {
                assert!(
                    sent.iter().any(|s| (s.rpc, s.variant) == (*rpc, *variant)),
                    "{rpc} {variant} is never sent"
                );
            }
        }
        assert_eq!(sequence(7), sequence(7));
    }
}

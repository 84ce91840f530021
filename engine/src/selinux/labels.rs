//! From what is asked for to labels. Pure: what the policy knows is asked through a function.

use std::io;

use serde::{Deserialize, Serialize};

use super::context::{Context, is_level, is_name};
use super::defaults::Defaults;
use super::unanswered;
use crate::error::Error;
use crate::spec::{ContainerSpec, NamespaceMode, PodSpec, SelinuxLabel};

/// The labels of a pod, from which those of its containers are made. They are in its record, so that they stay the same for as long
/// as it lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodLabels {
    /// Of processes.
    pub process: Context,
    /// Of the file systems and files that are the pod's alone.
    pub file: Context,
}

/// The labels of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerLabels {
    /// Of its processes; `None`: none is asked for, and the policy decides at execve(2), as for every program of the node.
    pub process: Option<Context>,
    /// Of its root, the file systems mounted for it, and the volumes that are to be relabelled.
    pub file: Context,
}

/// The labels of a pod that asks for this. `level`: its own pair of categories, when it asks for no level.
pub(super) fn pod(defaults: &Defaults, asked: &SelinuxLabel, level: Option<&str>) -> PodLabels {
    let Defaults { process, file, .. } = defaults.clone();
    let mut labels = merge(&PodLabels { process, file }, asked);
    if let Some(level) = level {
        (labels.process.level, labels.file.level) = (Some(level.into()), Some(level.into()));
    }
    labels
}

/// The labels of a container of this pod that asks for this, part by part. User and level are also those of its files; role and type
/// are about processes.
pub(super) fn merge(pod: &PodLabels, asked: &SelinuxLabel) -> PodLabels {
    let mut labels = pod.clone();
    let set = |to: &mut String, part: &str| {
        if !part.is_empty() {
            *to = part.to_owned();
        }
    };
    set(&mut labels.process.role, &asked.role);
    set(&mut labels.process.kind, &asked.kind);
    for label in [&mut labels.process, &mut labels.file] {
        set(&mut label.user, &asked.user);
        if !asked.level.is_empty() {
            label.level = Some(asked.level.clone());
        }
    }
    labels
}

/// What of its labels a container takes. One that is privileged is not confined. One that sees all of the node's processes or IPC could
/// do nothing with them from behind its own categories, so it is confined only if somebody has asked for a label.
pub(super) fn container(merged: PodLabels, pod: &PodSpec, spec: &ContainerSpec) -> ContainerLabels {
    let asked = [&pod.security.selinux, &spec.security.selinux]
        .into_iter()
        .flatten()
        .any(|label| *label != SelinuxLabel::default());
    let namespaces = &spec.security.namespaces;
    let of_the_node =
        namespaces.pid == NamespaceMode::Node || pod.security.namespaces.ipc == NamespaceMode::Node;
    let free = spec.security.privileged || of_the_node && !asked;
    ContainerLabels { process: Some(merged.process).filter(|_| !free), file: merged.file }
}

/// Refuses, by its name, a part that cannot be one, or that the policy does not know in place of the usual one.
pub(super) fn check(
    defaults: &Defaults,
    asked: &SelinuxLabel,
    knows: impl Fn(&Context) -> io::Result<bool>,
) -> Result<(), Error> {
    type Put = fn(&mut Context, String);
    let parts: [(&str, &str, Put); 4] = [
        ("user", &asked.user, |c, v| c.user = v),
        ("role", &asked.role, |c, v| c.role = v),
        ("type", &asked.kind, |c, v| c.kind = v),
        ("level", &asked.level, |c, v| c.level = Some(v)),
    ];
    let given = parts.iter().filter(|(_, value, _)| !value.is_empty());
    for (part, value, put) in given.clone() {
        let field = format!("selinux_options.{part}");
        if !(if *part == "level" { is_level(value) } else { is_name(value) }) {
            return Err(Error::invalid(&field, format!("{value:?} cannot be the {part} of a label")));
        }
        let mut label = defaults.process.clone();
        put(&mut label, (*value).to_owned());
        // The parts go together: what is wrong with one alone may be right with the others.
        if given.clone().count() == 1 && !knows(&label).map_err(|e| unanswered(&label, e))? {
            return Err(Error::invalid(&field, format!("\"{value}\": the policy does not know \"{label}\"")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Defaults {
        let label = |text: &str| text.parse().unwrap();
        Defaults {
            process: label("u:r:container_t:s0"),
            file: label("u:o:file_t:s0"),
            image: label("u:o:ro_t:s0"),
        }
    }

    fn asked(user: &str, role: &str, kind: &str, level: &str) -> SelinuxLabel {
        SelinuxLabel { user: user.into(), role: role.into(), kind: kind.into(), level: level.into() }
    }

    fn texts(labels: &PodLabels) -> (String, String) {
        (labels.process.to_string(), labels.file.to_string())
    }

    fn pair(process: &str, file: &str) -> (String, String) {
        (process.into(), file.into())
    }

    #[test]
    fn what_is_not_asked_for_comes_from_the_pod_and_then_from_the_policy() {
        let own = pod(&defaults(), &SelinuxLabel::default(), Some("s0:c1,c2"));
        assert_eq!(texts(&own), pair("u:r:container_t:s0:c1,c2", "u:o:file_t:s0:c1,c2"));
        let given = pod(&defaults(), &asked("", "", "other_t", "s0:c9"), None);
        assert_eq!(texts(&given), pair("u:r:other_t:s0:c9", "u:o:file_t:s0:c9"));

        for (asked, process, file) in [
            (asked("", "", "", ""), "u:r:other_t:s0:c9", "u:o:file_t:s0:c9"),
            (asked("", "", "third_t", ""), "u:r:third_t:s0:c9", "u:o:file_t:s0:c9"),
            (asked("v", "", "", ""), "v:r:other_t:s0:c9", "v:o:file_t:s0:c9"),
            (asked("", "q", "", ""), "u:q:other_t:s0:c9", "u:o:file_t:s0:c9"),
            (asked("", "", "", "s0"), "u:r:other_t:s0", "u:o:file_t:s0"),
        ] {
            assert_eq!(texts(&merge(&given, &asked)), pair(process, file), "{asked:?}");
        }
    }

    #[test]
    fn a_policy_without_levels_gets_labels_without() {
        let label = |text: &str| text.parse().unwrap();
        let flat = Defaults { process: label("u:r:t"), file: label("u:o:f"), image: label("u:o:i") };
        assert_eq!(texts(&pod(&flat, &SelinuxLabel::default(), None)), pair("u:r:t", "u:o:f"));
    }

    #[test]
    fn who_is_confined() {
        type Change = fn(&mut PodSpec, &mut ContainerSpec);
        let labels = pod(&defaults(), &SelinuxLabel::default(), Some("s0:c1,c2"));
        let table: [(Change, bool); 8] = [
            (|_, _| (), true),
            (|_, c| c.security.privileged = true, false),
            (|p, _| p.security.privileged = true, true),
            (|_, c| c.security.namespaces.pid = NamespaceMode::Node, false),
            (|p, _| p.security.namespaces.ipc = NamespaceMode::Node, false),
            (|p, _| p.security.namespaces.network = NamespaceMode::Node, true),
            (
                |_, c| {
                    c.security.namespaces.pid = NamespaceMode::Node;
                    c.security.selinux = Some(asked("", "", "t", ""));
                },
                true,
            ),
            (
                |_, c| {
                    c.security.privileged = true;
                    c.security.selinux = Some(asked("", "", "t", ""));
                },
                false,
            ),
        ];
        for (number, (change, confined)) in table.into_iter().enumerate() {
            let (mut pod, mut spec) = (PodSpec::default(), ContainerSpec::default());
            change(&mut pod, &mut spec);
            let taken = container(labels.clone(), &pod, &spec);
            assert_eq!(taken.process.is_some(), confined, "{number}");
            assert_eq!(taken.file, labels.file, "{number}: its files are the pod's all the same");
        }
    }

    #[test]
    fn a_wrong_part_is_refused_by_field_and_value() {
        let refused = |asked: &SelinuxLabel, knows: bool| {
            check(&defaults(), asked, |_| Ok(knows)).map_err(|e| e.chain()).err()
        };
        assert_eq!(refused(&asked("a", "b", "c", "s0:c4,c5"), true), None);
        assert_eq!(refused(&asked("", "", "", ""), false), None, "nothing is asked for");
        for (asked, field, value) in [
            (asked("a:b", "", "", ""), "selinux_options.user", "a:b"),
            (asked("a", "b c", "", ""), "selinux_options.role", "b c"),
            (asked("a", "b", "c\n", ""), "selinux_options.type", "c\\n"),
            (asked("a", "b", "c", "s0,c4,c5"), "selinux_options.level", "s0,c4,c5"),
            (asked("", "", "no\0", ""), "selinux_options.type", "no\\0"),
        ] {
            let said = refused(&asked, true).unwrap();
            assert!(said.starts_with(field) && said.contains(value), "{said}");
        }
        let said = refused(&asked("", "", "unheard_t", ""), false).unwrap();
        assert!(said.starts_with("selinux_options.type") && said.contains("u:r:unheard_t:s0"), "{said}");
        let said = refused(&asked("", "", "", "s9"), false).unwrap();
        assert!(said.starts_with("selinux_options.level") && said.contains("u:r:container_t:s9"), "{said}");
        assert_eq!(refused(&asked("a", "b", "c", "s9"), false), None, "the label is judged as a whole");
        let broken =
            check(&defaults(), &asked("", "", "t", ""), |_| Err(io::ErrorKind::PermissionDenied.into()));
        assert!(broken.unwrap_err().chain().contains("u:r:t:s0"));
    }
}

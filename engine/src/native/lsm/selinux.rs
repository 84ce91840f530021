//! SELinux: the labels in a container's record ([`crate::selinux`]), asked for where the kernel takes such wishes.

use std::ffi::CStr;

use super::{Label, Module, Request};
use crate::error::Error;
use crate::selinux::Context;

/// Where a process asks for its label after execve(2) (proc_pid_attr(5)).
pub(super) const EXEC: &CStr = c"self/attr/exec";
/// Where it asks for the label of keyrings it makes: the session keyring is to be the container's, not the supervisor's. It does not
/// outlive execve(2).
const KEYS: &CStr = c"self/attr/keycreate";

/// SELinux. Whether it is on has been decided with the record.
#[derive(Debug)]
pub(crate) struct Selinux;

impl Module for Selinux {
    fn labels(&self, request: &Request<'_>) -> Result<Vec<Label>, Error> {
        let process = request.selinux.and_then(|labels| labels.process.as_ref());
        Ok(process.map(wishes).into_iter().flatten().collect())
    }
}

/// What asks for a label at execve(2), and for the keyring before.
pub(super) fn wishes(label: &Context) -> [Label; 2] {
    [EXEC, KEYS].map(|file| Label { file, value: label.to_string().into_bytes() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selinux::ContainerLabels;
    use crate::spec::ContainerSpec;

    #[test]
    fn a_process_asks_for_the_label_in_the_record_and_for_none_without() {
        let asked = |selinux: Option<&ContainerLabels>| {
            let request = Request { container: &ContainerSpec::default(), selinux };
            let labels = Selinux.labels(&request).unwrap();
            labels.into_iter().map(|l| (l.file, String::from_utf8(l.value).unwrap())).collect::<Vec<_>>()
        };
        let label = "u:r:t:s0:c1,c2";
        let mut labels =
            ContainerLabels { process: label.parse().ok(), file: "u:o:f:s0:c1,c2".parse().unwrap() };
        assert_eq!(asked(Some(&labels)), [(EXEC, label.to_owned()), (KEYS, label.to_owned())]);
        labels.process = None;
        assert_eq!(asked(Some(&labels)), []);
        assert_eq!(asked(None), []);
    }
}

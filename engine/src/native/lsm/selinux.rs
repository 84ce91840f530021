//! SELinux: labels of processes. Where it is off, labels are informational, as they are for the other runtimes.

use std::path::Path;

use super::{Label, Module, Request};
use crate::error::{Error, Kind};

/// SELinux as this kernel has it.
#[derive(Debug)]
pub(crate) struct Selinux {
    enabled: bool,
}

impl Selinux {
    /// Looks for the module's file system, which is there when a policy can be.
    pub(crate) fn probe() -> Self {
        Self { enabled: Path::new("/sys/fs/selinux/enforce").exists() }
    }
}

impl Module for Selinux {
    fn label(&self, request: &Request<'_>) -> Result<Option<Label>, Error> {
        let (pod, container) = (&request.pod.security.selinux, &request.container.security.selinux);
        let relabel = request.container.mounts.iter().any(|mount| mount.selinux_relabel);
        let asked = container.is_some() || pod.is_some() || relabel;
        if self.enabled && asked && !request.container.security.privileged {
            return Err(Error::new(
                Kind::Unimplemented,
                "selinux_options: SELinux is on here, and labels are not built yet",
            ));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{ContainerSpec, PodSpec, SelinuxLabel};

    #[test]
    fn labels_are_informational_while_selinux_is_off_and_refused_while_it_is_on() {
        let mut container = ContainerSpec::default();
        let asked = |enabled, container: &ContainerSpec| {
            Selinux { enabled }.label(&Request { pod: &PodSpec::default(), container })
        };
        assert_eq!(asked(true, &container).unwrap(), None);
        container.security.selinux = Some(SelinuxLabel::default());
        assert_eq!(asked(false, &container).unwrap(), None);
        asked(true, &container).unwrap_err();
    }
}

//! SELinux labels of volumes: whose they are, and what must not have any.

use std::os::fd::AsFd;

use crate::exec::PreparedMount;
use crate::selinux::relabel::{self, Outcome};
use crate::selinux::{Context, PodLabels};
use crate::{Error, Kind};

/// Refuses to relabel what the node itself lives on.
pub(super) fn check(mount: &PreparedMount) -> Result<(), Error> {
    // An image is mounted with a label, not relabelled.
    if !mount.spec.selinux_relabel || mount.spec.image.is_some() {
        return Ok(());
    }
    let path = mount.spec.host_path.display();
    let place = relabel::system_place(&mount.fd)
        .map_err(|e| Error::with(Kind::Internal, format!("look at host_path {path}"), e))?;
    match place {
        None => Ok(()),
        Some(place) => Err(Error::invalid(
            "mounts.selinux_relabel",
            format!("host_path {path} is {place}, which the node needs as it is labelled"),
        )),
    }
}

/// Gives a volume whose request says so the label of the container: it is that pod's alone from here on (`:Z` of other tools).
pub(super) fn requested(mount: &PreparedMount, label: Option<&Context>) -> Result<(), Error> {
    let Some(label) = label.filter(|_| mount.spec.selinux_relabel && mount.spec.image.is_none()) else {
        return Ok(());
    };
    // Once more: the path may lead elsewhere since the container was made.
    check(mount)?;
    apply(mount, label)
}

/// Gives a fresh directory that is the container's alone its label.
pub(super) fn own(mount: &PreparedMount, label: Option<&Context>) -> Result<(), Error> {
    label.map_or(Ok(()), |label| apply(mount, label))
}

/// Gives a file that all containers of the pod have the pod's label; as soon as one of them has another level, and then for good, one
/// without categories, so that each of them can read it.
pub(super) fn of_the_pod(mount: &PreparedMount, labels: Option<(&Context, &PodLabels)>) -> Result<(), Error> {
    let Some((container, pod)) = labels else { return Ok(()) };
    let level = pod.file.level.as_ref().map(|_| "s0".to_owned());
    let shared = Context { level, ..pod.file.clone() };
    let now = relabel::current(mount.fd.as_fd()).ok().flatten();
    let apart = container.level != pod.file.level || now.as_deref() == Some(shared.to_string().as_bytes());
    apply(mount, if apart { &shared } else { &pod.file })
}

fn apply(mount: &PreparedMount, label: &Context) -> Result<(), Error> {
    let path = mount.spec.host_path.display();
    match relabel::tree(mount.fd.as_fd(), &label.to_string()) {
        Ok(Outcome::Labelled) => Ok(()),
        Ok(Outcome::Unlabelled) => {
            tracing::debug!(%path, %label, "not relabelled: its file system keeps no labels");
            Ok(())
        }
        Err(e) => {
            let what = format!("mounts.selinux_relabel: give {path} the label \"{label}\"");
            Err(Error::with(Kind::FailedPrecondition, what, e))
        }
    }
}

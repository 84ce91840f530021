//! Idmapped mounts: volumes whose files belong to the users of a pod's user namespace (mount_setattr(2), KEP-127).

use std::os::fd::{AsFd, OwnedFd};

use crate::exec::PreparedMount;
use crate::native::userns;
use crate::spec::UserNamespace;
use crate::{Error, Kind};

/// A pod's user namespace and its mapping.
type User<'a> = Option<(&'a OwnedFd, &'a UserNamespace)>;

/// Maps a volume whose request says so. The mapping must be the pod's: only for that there is a namespace.
pub(super) fn requested(mount: &PreparedMount, user: User<'_>) -> Result<(), Error> {
    let (uids, gids) = (&mount.spec.uid_mappings, &mount.spec.gid_mappings);
    if uids.is_empty() && gids.is_empty() {
        return Ok(());
    }
    match user {
        Some((_, map)) if (&map.uids, &map.gids) == (uids, gids) => own(mount, user),
        _ => Err(Error::invalid(
            "mounts.uidMappings",
            format!("those of {} are not the mappings of the pod's user namespace", mount.destination),
        )),
    }
}

/// Maps a mount that is the runtime's own.
pub(super) fn own(mount: &PreparedMount, user: User<'_>) -> Result<(), Error> {
    let Some((user, _)) = user else { return Ok(()) };
    userns::map(mount.fd.as_fd(), user.as_fd()).map_err(|e| {
        let what =
            format!("map the ids of {}: its file system may not support idmapped mounts", mount.destination);
        Error::with(Kind::FailedPrecondition, what, e)
    })
}

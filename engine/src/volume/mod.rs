//! The volume driver: what is mounted into a container, opened on the node.
//!
//! Vocabulary: a *source* is a path of the node or an image; *preparing* turns it into a detached mount (open_tree(2))
//! that appears in nobody's mount table and goes away with its descriptor. The execution driver attaches it in the
//! container and applies propagation, read-only and option flags there.
//!
//! Contract: `check` refuses at CreateContainer what cannot work at StartContainer; `prepare` may be repeated and leaves
//! nothing but descriptors and the image-declared volumes below the container's directory, which go with it. Both block. Where SELinux
//! is on, `prepare` gives what is the container's alone its label, and sources as far as the request says so (`label`).

mod bind;
mod idmap;
mod label;
pub mod log;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use crate::exec::PreparedMount;
use crate::image;
use crate::pod::files::FILES;
use crate::selinux::{Context, PodLabels};
use crate::spec::{ContainerSpec, MountSpec, UserNamespace};
use crate::{Error, Kind};

/// Opens mounts on the node.
pub trait Driver: Send + Sync + std::fmt::Debug {
    /// Refuses a mount whose source is missing, cannot be propagated as asked, or must not have the label of a container. `label`: the
    /// container's; `None`: SELinux is off.
    fn check(&self, mount: &MountSpec, label: Option<&Context>) -> Result<(), Error>;
    /// All mounts of a container, in mount order.
    fn prepare(&self, request: &Request<'_>) -> Result<Vec<PreparedMount>, Error>;
}

/// What a container wants mounted.
#[derive(Debug)]
pub struct Request<'a> {
    /// The container as requested.
    pub spec: &'a ContainerSpec,
    /// Its image.
    pub image_id: &'a str,
    /// Paths of volumes the image declares.
    pub image_volumes: &'a [String],
    /// The container's directory; image-declared volumes are made in it.
    pub directory: &'a Path,
    /// Where the pod's hosts, hostname and resolv.conf are.
    pub pod_files: &'a Path,
    /// The pod's user namespace and its mapping; `None`: the node's.
    pub user: Option<(&'a OwnedFd, &'a UserNamespace)>,
    /// SELinux label of the container's files, and the labels of its pod; `None`: SELinux is off.
    pub labels: Option<(&'a Context, &'a PodLabels)>,
}

/// Binds, image volumes, image-declared volumes: all local.
#[derive(Debug)]
pub struct Local {
    images: Arc<dyn image::Driver>,
    create_missing: bool,
}

impl Local {
    /// A driver over an image store. `create_missing`: a missing `host_path` is made as a directory.
    pub fn new(images: Arc<dyn image::Driver>, create_missing: bool) -> Self {
        Self { images, create_missing }
    }

    fn open(&self, mount: &MountSpec, label: Option<&Context>) -> Result<PreparedMount, Error> {
        match &mount.image {
            None => bind::prepare(mount),
            Some(image) => {
                let failed = |e: Error| e.context("ImageVolumeMountFailed");
                let found = self.images.find(&image.image).ok_or_else(|| {
                    failed(Error::new(
                        Kind::NotFound,
                        format!(
                            "image \"{}\", mounted at {}, is not on this node: pull it first",
                            image.image, mount.container_path
                        ),
                    ))
                })?;
                let fd = self.images.mount_image(&found.id, &mount.image_sub_path, label).map_err(failed)?;
                bind::prepared(fd, mount)
            }
        }
    }
}

impl Driver for Local {
    fn check(&self, mount: &MountSpec, label: Option<&Context>) -> Result<(), Error> {
        if self.create_missing && mount.image.is_none() {
            bind::create_missing(&mount.host_path)?;
        }
        let opened = self.open(mount, label)?;
        label.map_or(Ok(()), |_| label::check(&opened))
    }

    fn prepare(&self, request: &Request<'_>) -> Result<Vec<PreparedMount>, Error> {
        let requested = &request.spec.mounts;
        let taken = |path: &str| requested.iter().any(|mount| clean(&mount.container_path) == clean(path));
        let label = request.labels.map(|(label, _)| label);
        let mut mounts =
            requested.iter().map(|mount| self.open(mount, label)).collect::<Result<Vec<_>, _>>()?;
        // Before ids are mapped: labels are the node's business.
        mounts.iter().try_for_each(|mount| label::requested(mount, label))?;
        mounts.iter().try_for_each(|mount| idmap::requested(mount, request.user))?;
        for path in request.image_volumes.iter().filter(|path| !taken(path)) {
            let mount = bind::image_volume(&*self.images, request, path)?;
            label::own(&mount, label)?;
            idmap::own(&mount, request.user)?;
            mounts.push(mount);
        }
        for (path, name) in FILES.into_iter().filter(|(path, _)| !taken(path)) {
            let host_path = request.pod_files.join(name);
            let readonly = request.spec.security.readonly_rootfs;
            mounts.push(bind::prepare(&MountSpec {
                container_path: path.into(),
                host_path,
                readonly,
                ..MountSpec::default()
            })?);
            mounts.last().map_or(Ok(()), |mount| label::of_the_pod(mount, request.labels))?;
            // Everybody may read them; whose they are matters less than that the pod starts.
            let _ = mounts.last().map(|mount| idmap::own(mount, request.user));
        }
        Ok(mounts)
    }
}

/// A container path for comparison: no empty components, no `.`.
fn clean(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").collect()
}

//! Snapshot drivers: how an image becomes a file system, and a container's writable layer is laid over it.
//!
//! # Vocabulary
//! - **image directory**: `images/<hex>/`, where a driver keeps what it built of an image, and nothing else.
//! - **view**: the image as a read-only tree, as descriptors of directories or detached mounts, topmost first.
//! - **container directory**: `containers/<name>/`, with what the driver needs for one writable layer.
//!
//! # Contract
//! 1. [`Driver::build`] runs once per image, in a staging directory that the store moves into place afterwards. When it returns,
//!    everything it wrote is flushed. It sees complete, verified layers and merges them by the rules in `tree`; all drivers
//!    show the same names, contents and attributes.
//! 2. [`Driver::view`] may run at any time after that, any number of times, also after a restart; the store shares one view among all
//!    users of an image and drops it after the last. A view is read-only, and stays what it is while a container uses it.
//! 3. [`Driver::prepare`] makes a container's directory ready; a repeat changes nothing. [`Driver::mount`] returns a new detached
//!    mount; nothing appears in the host's mount table. Dropping it undoes it.
//! 4. A failed call leaves its directory to the caller to delete, and no mount.
//! 5. [`Driver::usage`] counts what the container wrote, not what the image has.
//! 6. Nothing in an image can make a driver touch a file outside the directory it was given.
//!
//! The suite in `suite.rs` runs these promises against each implementation.

mod btrfs;
mod erofs;
#[cfg(test)]
pub(crate) mod failing;
mod measure;
mod mount;
mod overlay;
mod unpack;
mod vfs;

use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{FileError, OpenError, SnapshotError};
use crate::layer::LayerError;
use crate::layer::entry::{self, Entry};
use crate::tree::{Hidden, Tree};
use crate::{Kernel, RootfsOptions, Usage, files};

/// What a driver is given of an image.
#[derive(Clone, Debug)]
pub struct ImageLayers {
    /// Image id.
    pub id: String,
    /// Directories of the layers, lowest first; each holds `tar` and `entries`.
    pub layers: Vec<PathBuf>,
}

/// An image, readable.
#[derive(Debug)]
pub struct View {
    /// Read-only trees, topmost first.
    pub lowers: Vec<OwnedFd>,
    /// What it was made of.
    pub image: ImageLayers,
}

/// A snapshot driver; see the module's contract.
pub trait Driver: Debug + Send + Sync {
    /// Its name in configuration and messages.
    fn name(&self) -> &'static str;
    /// Builds what the image needs in `directory`; returns what it uses there.
    fn build(&self, image: &ImageLayers, directory: &Path) -> Result<Usage, SnapshotError>;
    /// Opens the image built in `directory`.
    fn view(&self, image: &ImageLayers, directory: &Path) -> Result<View, SnapshotError>;
    /// Makes the directory of a container ready.
    fn prepare(&self, view: &View, container: &Path) -> Result<(), SnapshotError>;
    /// Mounts a container's root, detached.
    fn mount(
        &self,
        view: &View,
        container: &Path,
        options: &RootfsOptions<'_>,
    ) -> Result<OwnedFd, SnapshotError>;
    /// Mounts the image alone, read-only and detached. `label`: SELinux label of all of its files.
    fn mount_view(&self, view: &View, label: Option<&str>) -> Result<OwnedFd, SnapshotError>;
    /// Bytes and inodes of a container's writable layer; may walk it. `None`: the image is not open at the moment.
    fn usage(&self, view: Option<&View>, container: &Path) -> Result<Usage, SnapshotError>;
    /// Called for a directory that this driver filled, before it is deleted file by file: whatever is quicker than that.
    fn discard(&self, _directory: &Path) -> Result<(), SnapshotError> {
        Ok(())
    }
}

/// The drivers, best first.
pub const DRIVERS: [&str; 4] = ["erofs", "overlay", "btrfs", "vfs"];

/// The configured driver, or the first that works in `root`; each is tried for real, with a mount. `label`: SELinux label of images.
pub(crate) fn choose(
    wanted: Option<&str>,
    root: &Path,
    kernel: Kernel,
    label: Option<&str>,
) -> Result<Arc<dyn Driver>, OpenError> {
    let by_name = |name: &str| by_name(name, kernel, label);
    if let Some(name) = wanted {
        let refuse = |reason: String| OpenError::Driver { name: name.to_owned(), reason };
        let Some(driver) = by_name(name) else {
            return Err(refuse(format!("there is none of that name; there are: {}", DRIVERS.join(", "))));
        };
        return probe(&*driver, root).map(|()| driver).map_err(|error| refuse(chain(&error)));
    }
    let mut reasons = Vec::new();
    for driver in DRIVERS.iter().filter_map(|name| by_name(name)) {
        match probe(&*driver, root) {
            Ok(()) => return Ok(driver),
            Err(error) => reasons.push(format!("{}: {}", driver.name(), chain(&error))),
        }
    }
    Err(OpenError::Driver { name: "any".into(), reason: reasons.join("; ") })
}

fn by_name(name: &str, kernel: Kernel, label: Option<&str>) -> Option<Arc<dyn Driver>> {
    match name {
        "erofs" => Some(Arc::new(erofs::Erofs { label: label.map(Into::into) })),
        "overlay" => Some(Arc::new(overlay::Overlay)),
        "btrfs" => Some(Arc::new(btrfs::Btrfs { kernel })),
        "vfs" => Some(Arc::new(vfs::Vfs { kernel })),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) fn overlay_for_tests() -> Box<dyn Driver> {
    Box::new(overlay::Overlay)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Builds an image of one empty layer, mounts a container of it and writes into it.
fn probe(driver: &dyn Driver, root: &Path) -> Result<(), SnapshotError> {
    let base = root.join("staging").join(format!("probe-{}", driver.name()));
    let _ = std::fs::remove_dir_all(&base);
    let result = (|| {
        let (layer, image, container) = (base.join("layer"), base.join("image"), base.join("container"));
        for directory in [&base, &layer, &image, &container] {
            files::directory(directory)?;
        }
        files::write_new(&layer.join("tar"), &[0; 1024])?;
        files::write_new(&layer.join("entries"), &entry::Writer::default().finish())?;
        let layers = ImageLayers { id: "probe".into(), layers: vec![layer] };
        driver.build(&layers, &image)?;
        let view = driver.view(&layers, &image)?;
        driver.prepare(&view, &container)?;
        let mount = driver.mount(&view, &container, &RootfsOptions::default())?;
        drop(driver.mount_view(&view, None)?);
        let (flags, mode) =
            (rustix::fs::OFlags::CREATE | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::RUSR);
        rustix::fs::openat(&mount, "probe", flags, mode).map_err(FileError::at("create", "probe"))?;
        Ok(())
    })();
    for part in ["image", "container"] {
        let _ = driver.discard(&base.join(part));
    }
    let _ = std::fs::remove_dir_all(&base);
    result
}

/// Merges the layers of an image; `each` sees the tree after every layer, for drivers that keep layers apart.
fn merge(
    image: &ImageLayers,
    mut each: impl FnMut(usize, &Tree, Hidden) -> Result<(), SnapshotError>,
) -> Result<Tree, SnapshotError> {
    let mut tree = Tree::new();
    for (number, directory) in image.layers.iter().enumerate() {
        let path = directory.join("entries");
        let bytes = std::fs::read(&path).map_err(FileError::at("read", &path))?;
        let mut entries: Vec<Entry> = Vec::new();
        entry::read::<LayerError>(&bytes, |entry| {
            entries.push(entry);
            Ok(())
        })?;
        drop(bytes);
        let hidden = tree.apply(entries)?;
        each(number, &tree, hidden)?;
    }
    Ok(tree)
}

/// Another detached mount of the same tree.
pub(crate) fn clone(target: &str, mount: &OwnedFd) -> Result<OwnedFd, SnapshotError> {
    mount::clone(target, mount)
}

/// A detached mount of one path below a mount; symlinks resolve inside it (openat2(2), `RESOLVE_IN_ROOT`).
pub(crate) fn clone_at(image: &str, mount: &OwnedFd, sub_path: &str) -> Result<OwnedFd, SnapshotError> {
    use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let at = openat2(mount, sub_path, flags, Mode::empty(), resolve).map_err(|errno| {
        SnapshotError::SubPath { image: image.to_owned(), path: sub_path.to_owned(), source: errno.into() }
    })?;
    mount::clone(image, at)
}

#[cfg(test)]
mod suite;

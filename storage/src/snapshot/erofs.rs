//! The `erofs` driver: names and attributes in a small EROFS image, contents in the layers' tars, one mount per image, one overlay
//! per container. Nothing is unpacked.
//!
//! Needs Linux 6.12.2 (file-backed mounts, and sub-page blocks on them: CVE-2024-56750 corrupts before) and overlays over detached
//! mounts (6.15); the probe finds out.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::error::{FileError, SnapshotError};
use crate::snapshot::{Driver, ImageLayers, View, measure, merge, mount, overlay};
use crate::{RootfsOptions, Usage, erofs, files};

/// The image's metadata, in its directory.
const INDEX: &str = "index.erofs";

/// The driver; it keeps no state.
#[derive(Debug)]
pub(super) struct Erofs {
    /// SELinux label of all files of all images.
    pub(super) label: Option<String>,
}

fn tars(image: &ImageLayers) -> Vec<PathBuf> {
    image.layers.iter().map(|layer| layer.join("tar")).collect()
}

/// Sub-page blocks on file-backed mounts read wrong data before 6.12.2: a probe that happens to work proves nothing.
fn kernel_is_safe(release: &str) -> bool {
    let number = |part: Option<&str>| {
        let digits = part.unwrap_or("");
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        digits[..end].parse::<u32>().unwrap_or(0)
    };
    let mut parts = release.split('.');
    let version = (number(parts.next()), number(parts.next()), number(parts.next()));
    version >= (6, 12, 2)
}

impl Driver for Erofs {
    fn name(&self) -> &'static str {
        "erofs"
    }

    fn build(&self, image: &ImageLayers, directory: &Path) -> Result<Usage, SnapshotError> {
        let tree = merge(image, |_, _, _| Ok(()))?;
        let mut devices = Vec::new();
        for tar in tars(image) {
            let size = std::fs::metadata(&tar).map_err(FileError::at("stat", &tar))?.len();
            devices.push(erofs::Device { size });
        }
        let path = directory.join(INDEX);
        let file = File::create_new(&path).map_err(FileError::at("create", &path))?;
        let mut out = BufWriter::with_capacity(256 << 10, file);
        erofs::write(&tree, &devices, &mut out).map_err(FileError::at("write", &path))?;
        out.flush().and_then(|()| out.get_ref().sync_data()).map_err(FileError::at("write", &path))?;
        let bytes = files::blocks(out.get_ref()).map_err(FileError::at("measure", &path))?;
        Ok(Usage { bytes, inodes: 1 })
    }

    fn view(&self, image: &ImageLayers, directory: &Path) -> Result<View, SnapshotError> {
        let release = rustix::system::uname();
        if !kernel_is_safe(&release.release().to_string_lossy()) {
            return Err(SnapshotError::Unsupported {
                driver: "erofs",
                what: "file-backed mounts before Linux 6.12.2",
            });
        }
        let tars = tars(image);
        let devices: Vec<&Path> = tars.iter().map(PathBuf::as_path).collect();
        let mount = mount::erofs(&image.id, &directory.join(INDEX), &devices, self.label.as_deref())?;
        Ok(View { lowers: vec![mount], image: image.clone() })
    }

    fn prepare(&self, _view: &View, container: &Path) -> Result<(), SnapshotError> {
        overlay::prepare(container)
    }

    fn mount(
        &self,
        view: &View,
        container: &Path,
        options: &RootfsOptions<'_>,
    ) -> Result<OwnedFd, SnapshotError> {
        overlay::mount_container(self.name(), view, container, options)
    }

    fn mount_view(&self, view: &View, label: Option<&str>) -> Result<OwnedFd, SnapshotError> {
        overlay::mount_lowers("image", view, label)
    }

    fn usage(&self, _view: Option<&View>, container: &Path) -> Result<Usage, SnapshotError> {
        measure::all(&container.join("upper"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_corrupt_sub_page_blocks_are_refused_by_version() {
        for (release, safe) in [
            ("6.12.1", false),
            ("6.12.2-rc1+", true),
            ("6.18.44-fc", true),
            ("6.1.0", false),
            ("7.0-rc1", true),
            ("x", false),
        ] {
            assert_eq!(kernel_is_safe(release), safe, "{release}");
        }
    }
}

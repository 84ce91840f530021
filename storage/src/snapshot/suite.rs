//! The drivers' conformance suite: the rules of layer application, one test each, the same for every driver.
//!
//! Each test gives layers as tars and says what must be seen; `check` builds and mounts the image with each driver and looks with
//! the kernel's eyes.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Driver, ImageLayers, by_name};
use crate::digest::Digest;
use crate::layer::spool::Spool;
use crate::layer::{Expect, LayerError, ingest};
use crate::{RootfsOptions, SnapshotError, files};

mod place;
mod rules;

use crate::support::kernel::KERNEL;
use crate::support::tar::{Entry, Tar};
use place::Place;

/// What is seen of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    links: u64,
    device: u64,
    /// File contents or link target.
    data: Vec<u8>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

type Shown = BTreeMap<String, Seen>;

/// A place for one test.
struct Bench(Place);

impl std::ops::Deref for Bench {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.0.0
    }
}

/// Every driver with a place that suits it.
fn benches() -> impl Iterator<Item = (&'static str, Bench)> {
    super::DRIVERS.into_iter().filter_map(|name| Some((name, Bench(Place::of(name)?))))
}

impl Bench {
    fn new() -> Self {
        Self(Place::of("any").unwrap())
    }

    /// Takes a layer in as a pull would.
    fn layer(&self, number: usize, tar: &[u8]) -> Result<PathBuf, LayerError> {
        let directory = self.join(format!("layer{number}"));
        files::directory(&directory)?;
        let (spool, _) = Spool::open(&self.join("spool"), u64::MAX).unwrap();
        let spool = Arc::new(spool);
        Spool::delete(&self.join("spool"));
        spool.write_at(0, tar).unwrap();
        spool.complete();
        let digest = Digest::of(tar);
        let expect = Expect { blob: digest.clone(), size: tar.len() as u64, diff_id: digest };
        ingest(&spool, &expect, &directory)?;
        Ok(directory)
    }

    fn image(&self, tars: &[Tar]) -> Result<ImageLayers, LayerError> {
        let layers =
            tars.iter().enumerate().map(|(number, tar)| self.layer(number, &Tar(tar.0.clone()).finish()));
        Ok(ImageLayers { id: "suite".into(), layers: layers.collect::<Result<_, _>>()? })
    }
}

/// What a driver shows of the layers.
fn show_with(name: &str, bench: &Bench, tars: &[Tar]) -> Result<Shown, SnapshotError> {
    let image = bench.image(tars)?;
    let (driver, view) = built(name, bench, &image)?;
    let mount = driver.mount_view(&view, None)?;
    Ok(look(&mount))
}

fn built(
    name: &str,
    bench: &Bench,
    image: &ImageLayers,
) -> Result<(Arc<dyn Driver>, super::View), SnapshotError> {
    let driver = by_name(name, KERNEL, None).unwrap();
    let directory = bench.join("image");
    files::directory(&directory)?;
    driver.build(image, &directory)?;
    let view = driver.view(image, &directory)?;
    Ok((driver, view))
}

/// What all drivers show; they must agree.
fn show(tars: &[Tar]) -> Shown {
    let mut first: Option<Shown> = None;
    for (name, bench) in benches() {
        let shown =
            show_with(name, &bench, tars).map_err(|e| format!("{name}: {}", super::chain(&e))).unwrap();
        let first = first.get_or_insert_with(|| shown.clone());
        for (path, seen) in &*first {
            assert_eq!(Some(seen), shown.get(path), "{path}: erofs, {name}");
        }
        assert_eq!(first.keys().collect::<Vec<_>>(), shown.keys().collect::<Vec<_>>(), "{name}");
    }
    first.unwrap()
}

/// The error of layers that must be refused, the same by all drivers.
fn refused(tars: &[Tar]) -> String {
    let one = |(name, bench): (&str, Bench)| super::chain(&show_with(name, &bench, tars).unwrap_err());
    let mut texts: Vec<String> = benches().map(one).collect();
    texts.dedup();
    assert_eq!(texts.len(), 1, "{texts:?}");
    texts.remove(0)
}

fn look(mount: &OwnedFd) -> Shown {
    let root = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(mount));
    let mut shown = Shown::new();
    look_at(Path::new(&format!("{root}/.")), "", &mut shown);
    shown
}

fn look_at(path: &Path, name: &str, shown: &mut Shown) {
    let metadata = std::fs::symlink_metadata(path).unwrap();
    let kind = metadata.file_type();
    let data = match (kind.is_file(), kind.is_symlink()) {
        (true, _) => std::fs::read(path).unwrap(),
        (_, true) => std::fs::read_link(path).unwrap().into_os_string().into_encoded_bytes(),
        _ => Vec::new(),
    };
    let seen = Seen {
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        // Directories' counts are the file system's business.
        links: if kind.is_dir() { 0 } else { metadata.nlink() },
        device: metadata.rdev(),
        data,
        xattrs: xattrs(path),
    };
    shown.insert(name.to_owned(), seen);
    if kind.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let file_name = entry.file_name().to_string_lossy().into_owned();
            look_at(&entry.path(), &format!("{name}/{file_name}"), shown);
        }
    }
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0_u8; 65536];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap();
    let names = names[..length].split(|b| *b == 0).filter(|name| !name.is_empty());
    let read = |name: &[u8]| {
        let mut value = vec![0_u8; 65536];
        let length = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
        (String::from_utf8_lossy(name).into_owned(), value[..length].to_vec())
    };
    // An overlay's own marks are not the image's.
    names.map(read).filter(|(name, _)| !name.starts_with("trusted.overlay.")).collect()
}

fn data<'a>(shown: &'a Shown, path: &str) -> &'a [u8] {
    &shown.get(path).unwrap_or_else(|| panic!("{path} is not there: {:?}", shown.keys())).data
}

fn names(shown: &Shown) -> Vec<&str> {
    shown.keys().map(String::as_str).filter(|path| !path.is_empty()).collect()
}

#[test]
fn a_container_writes_over_the_image_and_never_into_it() {
    for (name, bench) in benches() {
        let image = bench.image(&[Tar::new().dir("./", 0o751).file("a", b"image")]).unwrap();
        let (driver, view) = built(name, &bench, &image).unwrap();
        let container = bench.join("container");
        files::directory(&container).unwrap();
        driver.prepare(&view, &container).unwrap();
        driver.prepare(&view, &container).unwrap();
        let mount = driver.mount(&view, &container, &RootfsOptions::default()).unwrap();
        let root = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&mount));
        assert_eq!(
            std::fs::metadata(format!("{root}/.")).unwrap().mode() & 0o7777,
            0o751,
            "the image's root mode"
        );
        std::fs::write(format!("{root}/a"), "container").unwrap();
        std::fs::write(format!("{root}/b"), "new").unwrap();
        let seen = look(&driver.mount_view(&view, None).unwrap());
        assert_eq!((data(&seen, "/a"), seen.contains_key("/b")), (&b"image"[..], false));
        assert_eq!(driver.usage(Some(&view), &container).unwrap().inodes, 3, "{name}");
        drop(mount);
        // After a crash of the daemon the volatile mark of the first mount is still there.
        let again = driver.mount(&view, &container, &RootfsOptions::default()).unwrap();
        assert_eq!(data(&look(&again), "/a"), b"container");
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains(bench.to_str().unwrap()), "nothing is in the host's mount table");
    }
}

#[test]
fn what_the_erofs_driver_writes_passes_fsck() {
    if !Path::new("/usr/bin/fsck.erofs").exists() {
        eprintln!("skip: what_the_erofs_driver_writes_passes_fsck (missing fsck.erofs)");
        return;
    }
    let bench = Bench::new();
    let mut base = Tar::new().dir("d/", 0o755).symlink("s", &"t/".repeat(45)).file("f", &[1; 5000]);
    for number in 0..200 {
        base = base.file(&format!("d/{number}-{}", "n".repeat(number % 90)), b"x");
    }
    let image = bench.image(&[base, Tar::new().hardlink("d/h", "f")]).unwrap();
    built("erofs", &bench, &image).unwrap();
    let mut command = std::process::Command::new("fsck.erofs");
    for layer in &image.layers {
        command.arg(format!("--device={}", layer.join("tar").display()));
    }
    let output = command.arg(bench.join("image/index.erofs")).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    if text.contains("isn't supported on this platform") {
        eprintln!(
            "skip: what_the_erofs_driver_writes_passes_fsck (missing erofs-utils that read 512-byte blocks)"
        );
        return;
    }
    assert!(output.status.success(), "{text}");
}

//! The images of the suites: made here from Debian packages, packed as OCI layouts.
//!
//! critest names its images by their public names; the recipes below give what the specs use of each of them: a shell with
//! busybox's applets, nginx with its process title and pid file, a set-uid program, users and groups.

mod bulk;
mod layout;
mod rootfs;

use std::path::{Path, PathBuf};

use anyhow::Result;

pub use bulk::{FORTY_LAYERS, SHARED, big, forty_layers, shared};
pub use layout::{Config, Layer, digest};

/// An image as an OCI layout on disk.
#[derive(Debug)]
pub struct Image {
    /// Every name it is pushed under.
    pub names: Vec<String>,
    /// The OCI layout.
    pub layout: PathBuf,
    /// Manifest format for the registry (`v2s2`); `None`: OCI, as it is.
    pub format: Option<&'static str>,
}

/// The image most cases run: busybox.
pub const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
/// An image of one file of its own, `/pause`.
pub const PAUSE: &str = "registry.k8s.io/pause:3.9";
/// A web server on port 80.
pub const HTTPD: &str = "registry.k8s.io/e2e-test-images/httpd:2.4.39-4";
/// An image index that has nothing for any Linux.
pub const FOREIGN: &str = "gcr.io/suite/foreign:latest";
/// An image index with an entry for this platform among others.
pub const INDEX: &str = "gcr.io/suite/index:latest";
/// An image with three layers in three compressions, whiteouts between them.
pub const LAYERED: &str = "gcr.io/suite/layered:latest";

/// The image of the pull benchmark.
pub const BIG: &str = "gcr.io/suite/big:latest";

const STAGING: &str = "gcr.io/k8s-staging-cri-tools";

// === recipes ===

/// Builds all images below `dir`.
///
/// # Errors
/// A package is not installed or a file cannot be written.
pub fn build(dir: &Path) -> Result<Vec<Image>> {
    let busybox = Layer::gzip(&rootfs::busybox(&dir.join("busybox"))?)?;
    let mut images = small(dir, &busybox)?;
    let users = [
        ("test-image-user-uid", "1002"),
        ("test-image-user-username", "www-data"),
        ("test-image-user-uid-group", "1003:users"),
        ("test-image-user-username-group", "www-data:100"),
        ("test-image-predefined-group", "1000"),
    ];
    for (name, user) in users {
        let config = Config { user, ..Config::default() };
        images.push(layout::image(dir, &[&format!("{STAGING}/{name}:latest")], &config, &[&busybox])?);
    }
    images.extend(servers(dir, &busybox)?);
    let names = ["registry.k8s.io/e2e-test-images/nonewprivs:1.3"];
    let program = Layer::gzip(&rootfs::set_uid_reporter(&dir.join("nnp"))?)?;
    images.push(layout::image(dir, &names, &Config { cmd: &["/nnp"], ..Config::default() }, &[&program])?);
    images.push(layout::index(dir, INDEX, &[("linux", "s390x"), ("linux", layout::ARCHITECTURE)], &busybox)?);
    images.push(layout::index(dir, FOREIGN, &[("plan9", "mips"), ("windows", "amd64")], &busybox)?);
    images.push(layered(dir, &busybox)?);
    Ok(images)
}

/// Images of one small file each, told apart by its content; busybox itself.
fn small(dir: &Path, busybox: &Layer) -> Result<Vec<Image>> {
    let config = Config { cmd: &["sh"], ..Config::default() };
    let benchmarks: Vec<String> = ["1.35.0-glibc", "1-uclibc", "1", "1-glibc", "1-musl"]
        .map(|tag| format!("public.ecr.aws/docker/library/busybox:{tag}"))
        .to_vec();
    let mut names: Vec<&str> = benchmarks.iter().map(String::as_str).collect();
    names.push(BUSYBOX);
    let mut images = vec![layout::image(dir, &names, &config, &[busybox])?];
    // One repository of the loopback registry is the mirror of registry.k8s.io and k8s.gcr.io.
    let pause = Layer::gzip(&rootfs::pause(&dir.join("pause"))?)?;
    let cmd = Config { cmd: &["/pause"], ..config };
    images.push(layout::image(dir, &[PAUSE], &cmd, &[&pause])?);
    let tags = [1, 2, 3].map(|n| format!("{STAGING}/test-image-tags:{n}"));
    let mut singles: Vec<Vec<String>> = vec![tags.to_vec()];
    for name in ["latest", "tag:test", "tag:all", "1", "2", "3"] {
        singles.push(vec![format!("{STAGING}/test-image-{name}")]);
    }
    for (number, names) in singles.iter().enumerate() {
        let layer = Layer::gzip(&rootfs::one_file(&dir.join(format!("single{number}")), &names[0])?)?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut image = layout::image(dir, &names, &config, &[busybox, &layer])?;
        image.format = (number % 2 == 0).then_some("v2s2");
        images.push(image);
    }
    Ok(images)
}

/// The web servers. nginx comes out of its Debian package; without it (another distribution) critest has to go without.
fn servers(dir: &Path, busybox: &Layer) -> Result<Vec<Image>> {
    let httpd = Config {
        cmd: &["sh", "-c", "echo httpd serves on port 80; exec httpd -f -vv -p 80 -h /www"],
        ..Config::default()
    };
    let mut images = vec![layout::image(dir, &[HTTPD], &httpd, &[busybox])?];
    let hostnet = format!("{STAGING}/hostnet-nginx-{}:latest", layout::ARCHITECTURE);
    for (port, name) in [(80, "registry.k8s.io/e2e-test-images/nginx:1.14-2"), (12003, hostnet.as_str())] {
        let root = rootfs::nginx(&dir.join(format!("nginx{port}")), &dir.join("debs"), port)?;
        let config = Config {
            cmd: &["nginx", "-g", "daemon off;"],
            stop_signal: "SIGQUIT",
            ports: &["80/tcp"],
            ..Config::default()
        };
        images.push(layout::image(dir, &[name], &config, &[busybox, &Layer::gzip(&root)?])?);
    }
    Ok(images)
}

/// Three layers over busybox: gzip, zstd and plain; the upper ones hide and replace files of the lower ones.
fn layered(dir: &Path, busybox: &Layer) -> Result<Image> {
    let [base, middle, top] = rootfs::stack(&dir.join("layered"))?;
    let layers = [&Layer::gzip(&base)?, &Layer::zstd(&middle)?, &Layer::plain(&top)?];
    let config = Config { cmd: &["sh"], env: &["LAYERED=yes"], working_dir: "/data", ..Config::default() };
    layout::image(dir, &[LAYERED], &config, &[busybox, layers[0], layers[1], layers[2]])
}

/// An image of one layer, as a layout.
///
/// # Errors
/// A file cannot be written.
pub fn single(dir: &Path, name: &str, root: &Path) -> Result<PathBuf> {
    let layer = Layer::plain(root)?;
    Ok(layout::image(dir, &[name], &Config::default(), &[&layer])?.layout)
}

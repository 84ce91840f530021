//! Proof that a pull which counts as durable is: after a sync, the file system is taken away and put back, and all files of the image
//! are there. Not measured, and of every runtime, so that no row of pulls is met by what only memory holds.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as api;
use nix::sys::signal::Signal;

use super::action;
use super::contender::Contender;
use crate::client;
use crate::images::{BIG, BUSYBOX, Image};
use crate::report::line;
use crate::shell;
use crate::suites::wait;

/// Bytes of the disk: the image packed and unpacked, twice.
const DISK: u64 = 8 << 30;
/// How long a container may read all files.
const READING: Duration = Duration::from_secs(300);

/// Lets every runtime pull the image onto a disk of its own, takes the disk away, and compares what is on it then with the layers.
///
/// # Errors
/// A file is missing or another one, the disk is still in use when its runtime has ended, or a call fails.
pub fn all(contenders: &mut [Contender], image: &Image) -> Result<()> {
    let wanted = contents(image)?;
    for contender in contenders {
        let found = pulled(contender).with_context(|| contender.name.clone())?;
        ensure!(found == wanted, "{}: files of {BIG}: {found}, not {wanted}", contender.name);
        line(format_args!(
            "  {}: after a sync and a remount all files of the big image are there",
            contender.name
        ));
    }
    Ok(())
}

/// Number and checksum of all files in the image's layers, one after the other, as [`LOOK`] says it.
fn contents(image: &Image) -> Result<String> {
    let layers = super::pull::layers(image)?;
    let blobs = image.layout.join("blobs");
    let paths = layers.iter().map(|(digest, _)| blobs.join(digest.replace(':', "/")).display().to_string());
    let script = r#"
        for layer; do tar -tzf "$layer"; done | grep -vc '/$'
        for layer; do tar -xzOf "$layer"; done | md5sum"#;
    let words: Vec<_> = ["-c", script, "sh"].into_iter().map(str::to_owned).chain(paths).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    Ok(shell::run(300, "sh", &words)?.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// What a container does with the image, which is mounted at /big; the layers' directories follow each other by name.
const LOOK: &str = "cd /big; find . -type f | wc -l; find . -type f | sort | xargs cat | md5sum";

/// What a container finds in the image that was pulled before the disk was taken away.
fn pulled(contender: &mut Contender) -> Result<String> {
    let root = contender.dir.join("root");
    let mut disk = Disk { file: contender.dir.join("disk.img"), at: root, mounted: false };
    fs::File::create(&disk.file)?.set_len(DISK)?;
    shell::run(60, "mkfs.ext4", &["-q", &disk.file.display().to_string()])?;
    contender.end(Signal::SIGTERM)?;
    disk.mount()?;
    contender.begin()?;
    wait(async {
        let mut client = contender.client().await?;
        client.pull(BUSYBOX).await?;
        action::pull(&mut client, BIG, &disk.at).await.map(drop)
    })?;
    contender.end(Signal::SIGTERM)?;
    disk.unmount()?;
    disk.mount()?;
    contender.begin()?;
    let found = wait(Box::pin(look(contender)))?;
    contender.end(Signal::SIGTERM)?;
    disk.unmount()?;
    fs::remove_file(&disk.file)?;
    contender.begin()?;
    Ok(found)
}

/// Runs [`LOOK`].
async fn look(contender: &Contender) -> Result<String> {
    let mut client = contender.client().await?;
    let logs = contender.dir.join("logs/remount");
    fs::create_dir_all(&logs)?;
    let config = client::pod("remount", &logs);
    let mut spec = client::container("look", BUSYBOX, &["sh", "-c", LOOK]);
    spec.mounts.push(api::Mount {
        container_path: "/big".to_owned(),
        image: Some(api::ImageSpec { image: BIG.to_owned(), ..Default::default() }),
        readonly: true,
        ..Default::default()
    });
    let pod = client.run_pod(&config).await?;
    let container = client.create(&pod, &spec, &config).await?;
    client.start(&container).await?;
    tokio::time::timeout(READING, async {
        while client.status(&container).await?.state() != api::ContainerState::ContainerExited {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok::<_, anyhow::Error>(())
    })
    .await
    .context("the files are still being read")??;
    client.remove_pod(&pod).await?;
    words(&logs.join("look.log"))
}

/// A CRI log's own words, without what stands before each line.
fn words(log: &Path) -> Result<String> {
    let text = fs::read_to_string(log)?;
    let words: Vec<_> = text.lines().flat_map(|line| line.split_whitespace().skip(3)).collect();
    Ok(words.join(" "))
}

/// A file system in a file, where a runtime has its root.
struct Disk {
    file: PathBuf,
    at: PathBuf,
    mounted: bool,
}

impl Disk {
    fn mount(&mut self) -> Result<()> {
        let (file, at) = (self.file.display().to_string(), self.at.display().to_string());
        shell::run(60, "mount", &["-o", "loop", &file, &at])?;
        self.mounted = true;
        Ok(())
    }

    /// Not lazily, and until nobody has the file system any more: else what is mounted next would be the same one.
    fn unmount(&mut self) -> Result<()> {
        shell::run(120, "umount", &[&self.at.display().to_string()])?;
        self.mounted = false;
        shell::eventually("the file system is let go", 20, || {
            let users = shell::run(10, "losetup", &["--associated", &self.file.display().to_string()])?;
            Ok(users.trim().is_empty().then_some(()))
        })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            let _ = shell::run(20, "umount", &["--lazy", &self.at.display().to_string()]);
        }
    }
}

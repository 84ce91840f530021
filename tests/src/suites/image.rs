//! The image store in the shipped binary, once with each snapshot driver: what a container sees, what is counted, what is left.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as api;

use super::wait;
use crate::census::Census;
use crate::client::{self, Client};
use crate::images::LAYERED;
use crate::node::Node;
use crate::report::Report;
use crate::shell;
use crate::world::World;

/// What the container writes, in bytes.
const WRITTEN: u64 = 5 << 20;

/// A file system in a file, below a node's directory; gone with its owner.
struct Disk(PathBuf);

/// Runs the suite.
///
/// # Errors
/// None: whatever fails is a case.
pub fn run(world: &World, report: &mut Report) -> Result<()> {
    for driver in ["erofs", "overlay", "btrfs", "vfs"] {
        report.case(&format!("{driver}: an image is shown, run, written over, counted and removed"), || {
            let disk = (driver == "btrfs").then(|| Disk::btrfs(world, driver)).transpose()?;
            let node = Node::with_config(world, driver, &format!("[image]\ndriver = {driver:?}\n"));
            let mut node = node?;
            let before = Census::take(node.pid())?;
            wait(whole_life(&node, driver))?;
            node.settle(&before)?;
            drop(node);
            drop(disk);
            Ok(())
        });
    }
    report.case("a driver that does not work here is refused by name, with the reason", || {
        let error = Node::with_config(world, "refused", "[image]\ndriver = \"btrfs\"\n").err();
        let text = format!("{:#}", error.context("the daemon started")?);
        ensure!(text.contains("\"btrfs\"") && text.contains("another file system"), "{text}");
        Ok(())
    });
    Ok(())
}

impl Disk {
    fn btrfs(world: &World, node: &str) -> Result<Self> {
        let (file, at) = (world.dir.join("btrfs.img"), world.dir.join(node).join("root"));
        fs::create_dir_all(&at)?;
        fs::File::create(&file)?.set_len(1 << 30)?;
        let (path, target) = (file.display().to_string(), at.display().to_string());
        shell::run(60, "mkfs.btrfs", &["-q", &path])?;
        shell::run(20, "mount", &["-o", "loop", &path, &target])?;
        Ok(Self(at))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = shell::run(20, "umount", &["-l", &self.0.display().to_string()]);
    }
}

async fn whole_life(node: &Node, driver: &str) -> Result<()> {
    let mut client = node.client().await?;
    let request = api::StatusRequest { verbose: true };
    let info = client.runtime.status(request).await?.into_inner().info;
    let config: serde_json::Value = serde_json::from_str(info.get("config").context("no config")?)?;
    ensure!(config["snapshotter"] == driver, "{config}");
    let root = node.dir.join("root");
    let empty = used(&mut client).await?;
    client.pull(LAYERED).await?;
    let (bytes, inodes) = used(&mut client).await?;
    let (walked_bytes, walked_inodes) = walk(&root)?;
    // btrfs keeps small files with their names, so their blocks are counted when it pleases.
    ensure!(driver == "btrfs" || bytes == walked_bytes, "{bytes} bytes are counted and {walked_bytes} used");
    ensure!(inodes == walked_inodes, "{inodes} inodes are counted and {walked_inodes} used");
    container(&mut client, node).await?;
    let image = Some(api::ImageSpec { image: LAYERED.to_owned(), ..Default::default() });
    client.image.remove_image(api::RemoveImageRequest { image }).await?;
    ensure!(used(&mut client).await? == empty, "{:?} is still counted", used(&mut client).await?);
    for place in ["layers/sha256", "images", "containers"] {
        let left: Vec<_> = fs::read_dir(root.join(place))?.flatten().collect();
        ensure!(left.is_empty(), "{left:?} is left");
    }
    shell::eventually("the trash is empty", 20, || {
        Ok(fs::read_dir(root.join("trash"))?.next().is_none().then_some(()))
    })
}

/// A container over the image: what it sees, what it may write, what that counts.
async fn container(client: &mut Client, node: &Node) -> Result<()> {
    let logs = node.dir.join("logs");
    let config = client::pod("image", &logs);
    let pod = client.run_pod(&config).await?;
    let spec = client::container("main", LAYERED, &["sh", "-c", "sleep 1000"]);
    let container = client.create(&pod, &spec, &config).await?;
    client.start(&container).await?;
    let look = "cd /data && cat replaced link hard; cat kept; ls; cat 'name with spaces and ünïcode'; stat -c %u:%g:%a name*";
    let output = client.exec(&container, &["sh", "-c", look]).await?;
    let seen = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(seen.starts_with("toptoptopbase"), "{seen} {}", String::from_utf8_lossy(&output.stderr));
    ensure!(
        seen.ends_with("odd1000:50000:640\n") && !seen.contains("gone") && !seen.contains("hidden"),
        "{seen}"
    );
    let before = writable(client, &container).await?;
    let write = format!("head -c {WRITTEN} /dev/urandom > /data/new && echo changed > /data/replaced");
    let output = client.exec(&container, &["sh", "-c", &write]).await?;
    ensure!(output.exit_code == 0, "{output:?}");
    // The last measurement may be a second old.
    let counted = async {
        loop {
            let now = writable(client, &container).await?;
            if now >= before + WRITTEN {
                return anyhow::Ok(now - before);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let counted = tokio::time::timeout(Duration::from_secs(20), counted).await.context("not counted")??;
    ensure!(counted < WRITTEN + (2 << 20), "{counted} bytes are counted");
    Ok(client.remove_pod(&pod).await?)
}

/// Bytes of a container's writable layer.
async fn writable(client: &mut Client, container: &str) -> Result<u64> {
    let request = api::ContainerStatsRequest { container_id: container.to_owned() };
    let stats = client.runtime.container_stats(request).await?.into_inner().stats.context("no stats")?;
    Ok(stats.writable_layer.and_then(|layer| layer.used_bytes).context("no writable layer")?.value)
}

/// Bytes and inodes of all images, as ImageFsInfo says.
async fn used(client: &mut Client) -> Result<(u64, u64)> {
    let info = client.image.image_fs_info(api::ImageFsInfoRequest {}).await?.into_inner();
    let one = info.image_filesystems.first().context("no image file system")?;
    let value = |value: &Option<api::UInt64Value>| value.as_ref().map_or(0, |value| value.value);
    Ok((value(&one.used_bytes), value(&one.inodes_used)))
}

/// The same by walking what the store keeps of layers and images; each inode once.
fn walk(root: &Path) -> Result<(u64, u64)> {
    let mut todo = Vec::new();
    for place in ["layers/sha256", "layers/sha512", "images"] {
        todo.extend(
            fs::read_dir(root.join(place))?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?,
        );
    }
    let (mut bytes, mut seen) = (0, std::collections::BTreeSet::new());
    while let Some(path) = todo.pop() {
        let metadata = fs::symlink_metadata(&path)?;
        if seen.insert((metadata.dev(), metadata.ino())) {
            bytes += metadata.blocks() * 512;
        }
        if metadata.is_dir() {
            todo.extend(fs::read_dir(&path)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?);
        }
    }
    Ok((bytes, u64::try_from(seen.len())?))
}

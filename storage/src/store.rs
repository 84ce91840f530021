//! [`Store`]: the one object the engine holds.
//!
//! Readers look at an immutable [`Index`] and never wait; writers take `write`, change a copy, make it durable, and swap it in.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;

use crate::containers::Containers;
use crate::digest::Digest;
use crate::error::{FileError, OpenError, RemoveError, SnapshotError};
use crate::flight::{Flights, Staging};
use crate::graph::{self, Index};
use crate::registry::{Clients, Timing};
use crate::snapshot::{self, Driver, ImageLayers, View};
use crate::{Config, Image, Label, Usage, files};

/// Partial blobs are kept this long for somebody to continue them.
const PARTIAL_AGE: Duration = Duration::from_secs(24 * 3600);

/// The image store of one root directory.
#[derive(Debug)]
pub struct Store {
    pub(crate) config: Config,
    pub(crate) timing: Timing,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) index: ArcSwap<Index>,
    pub(crate) write: Mutex<()>,
    pub(crate) flights: Flights,
    pub(crate) clients: Clients,
    pub(crate) containers: Containers,
    /// Layers and images (as their config digests) that running pulls rely on, with how many do.
    pub(crate) pins: Arc<Mutex<HashMap<Digest, u32>>>,
    views: Mutex<HashMap<String, Weak<View>>>,
    trash_number: AtomicU64,
    /// Held, with its lock, as long as the store is open.
    _lock: File,
}

/// Keeps layers and an image from being removed while a pull relies on them.
#[derive(Debug)]
pub(crate) struct Pin {
    pins: Arc<Mutex<HashMap<Digest, u32>>>,
    digests: Vec<Digest>,
}

// === impl Store ===

impl Store {
    /// Opens (and creates) the store. Blocking.
    ///
    /// # Errors
    /// The root cannot be made or read, another process has it open, or the driver does not work here.
    pub fn open(config: Config) -> Result<Arc<Self>, OpenError> {
        Self::open_with(config, Timing::default())
    }

    /// [`Self::open`] with other network times.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(config: Config, timing: Timing) -> Result<Arc<Self>, OpenError> {
        let (wanted, kernel) = (config.driver.clone(), config.kernel);
        let label = config.label.as_ref().map(|label| label.text.clone());
        Self::open_driver(config, timing, |root| {
            snapshot::choose(wanted.as_deref(), root, kernel, label.as_deref())
        })
    }

    /// [`Self::open_with`] with a driver of the caller's choice.
    pub(crate) fn open_driver(
        mut config: Config,
        timing: Timing,
        choose: impl FnOnce(&Path) -> Result<Arc<dyn Driver>, OpenError>,
    ) -> Result<Arc<Self>, OpenError> {
        std::fs::create_dir_all(&config.root).map_err(FileError::at("create", &config.root))?;
        // Mounts name files by path: one that does not depend on where the process stands.
        config.root = config.root.canonicalize().map_err(FileError::at("resolve", &config.root))?;
        let root = config.root.clone();
        let lock = lock(&root)?;
        for name in [
            "layers",
            "layers/sha256",
            "layers/sha512",
            "images",
            "containers",
            "staging",
            "staging/partial",
            "trash",
        ] {
            files::directory(&root.join(name))?;
        }
        files::spread(&root.join("containers"));
        for name in ["layers", "images", "containers", "staging"] {
            put_label(config.label.as_ref(), &root.join(name))?;
        }
        sweep_staging(&root)?;
        let driver = choose(&root)?;
        let index = Index::load(&root)?;
        let store = Arc::new(Self {
            flights: Flights::new(&root, config.pull_memory, config.keep_blobs),
            containers: Containers::load(&root)?,
            clients: Clients::default(),
            driver,
            timing,
            config,
            index: ArcSwap::from_pointee(index),
            write: Mutex::default(),
            pins: Arc::default(),
            views: Mutex::default(),
            trash_number: AtomicU64::new(0),
            _lock: lock,
        });
        store.sweep_orphans()?;
        Ok(store)
    }

    /// All images; never waits.
    pub fn images(&self) -> Vec<Arc<Image>> {
        self.index.load().images.values().map(|held| held.image.clone()).collect()
    }

    /// By tag, digest reference, id or id prefix.
    pub fn find(&self, name: &str) -> Option<Arc<Image>> {
        self.index.load().find(name).map(|held| held.image.clone())
    }

    /// Bytes and inodes of all images, exact, without walking.
    pub fn usage(&self) -> Usage {
        self.index.load().usage()
    }

    /// [`Config::root`], absolute.
    pub fn root(&self) -> &Path {
        &self.config.root
    }

    /// The driver in use.
    pub fn driver_name(&self) -> &'static str {
        self.driver.name()
    }

    /// Removes all names of an image, and the image. Absent is fine; a repeat and a race are fine.
    ///
    /// # Errors
    /// A container or a running pull holds it, or the disk fails.
    pub fn remove(&self, name: &str) -> Result<(), RemoveError> {
        let guard = self.write_lock();
        let mut index = Index::clone(&self.index.load());
        let Some(id) = index.find(name).map(|held| held.record.id.clone()) else { return Ok(()) };
        if let Some(user) = self.containers.user_of(id.as_str()) {
            return Err(RemoveError::InUse { id: id.to_string(), user: format!("container {user}") });
        }
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if pins.contains_key(&id) {
            return Err(RemoveError::InUse { id: id.to_string(), user: "a running pull".into() });
        }
        let layers = index.take(id.as_str(), &|digest| pins.contains_key(digest));
        drop(pins);
        index.rename();
        // The names first: from here on it is not an image, whatever happens to its files.
        index.names.write(&self.config.root)?;
        self.discard(&graph::image_directory(&self.config.root, id.as_str()))?;
        for layer in &layers {
            self.discard(&graph::layer_directory(&self.config.root, layer))?;
        }
        self.views.lock().unwrap_or_else(PoisonError::into_inner).remove(id.as_str());
        self.index.store(Arc::new(index));
        drop(guard);
        self.empty_trash();
        Ok(())
    }

    /// Gives an image another tag, as `docker tag` does; the tag leaves whoever had it.
    ///
    /// # Errors
    /// No such image, the tag does not parse, or the disk fails.
    pub fn tag(&self, name: &str, tag: &str) -> Result<(), SnapshotError> {
        let _guard = self.write_lock();
        let mut index = Index::clone(&self.index.load());
        let held = index.find(name).ok_or_else(|| SnapshotError::NoImage(name.to_owned()))?;
        let id = held.record.id.to_string();
        let reference = tag.parse::<crate::ImageRef>().ok().and_then(|reference| reference.tagged());
        let full = reference.ok_or_else(|| SnapshotError::BadTag(tag.to_owned()))?;
        index.names.tag(&id, full);
        index.rename();
        index.names.write(&self.config.root)?;
        self.index.store(Arc::new(index));
        Ok(())
    }

    /// Sets or clears the mark that keeps an image from the kubelet's GC.
    ///
    /// # Errors
    /// No such image, or the disk fails.
    pub fn pin(&self, name: &str, pinned: bool) -> Result<(), SnapshotError> {
        let _guard = self.write_lock();
        let mut index = Index::clone(&self.index.load());
        let held = index.find(name).ok_or_else(|| SnapshotError::NoImage(name.to_owned()))?;
        let id = held.record.id.to_string();
        index.names.images.entry(id).or_default().pinned = pinned;
        index.rename();
        index.names.write(&self.config.root)?;
        self.index.store(Arc::new(index));
        Ok(())
    }

    pub(crate) fn write_lock(&self) -> MutexGuard<'_, ()> {
        // It guards no data: the index is swapped whole.
        self.write.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn pin_digests(&self, digests: Vec<Digest>) -> Pin {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        digests.iter().for_each(|digest| *pins.entry(digest.clone()).or_default() += 1);
        drop(pins);
        Pin { pins: self.pins.clone(), digests }
    }

    /// Counts a layer anew, after a file was added to it.
    pub(crate) fn measure_layer(&self, diff_id: &Digest) -> Result<(), FileError> {
        let _guard = self.write_lock();
        let mut index = Index::clone(&self.index.load());
        if let Some(usage) = index.layers.get_mut(diff_id) {
            *usage = files::flat_usage(&graph::layer_directory(&self.config.root, diff_id))?;
            self.index.store(Arc::new(index));
        }
        Ok(())
    }

    /// What a driver needs to know of an image.
    pub(crate) fn image_layers(&self, id: &str) -> Result<ImageLayers, SnapshotError> {
        let index = self.index.load();
        let held = index.images.get(id).ok_or_else(|| SnapshotError::NoImage(id.to_owned()))?;
        let layers = held.record.layers.iter().map(|l| graph::layer_directory(&self.config.root, &l.diff_id));
        Ok(ImageLayers { id: id.to_owned(), layers: layers.collect() })
    }

    /// Builds the driver's part of an image in `directory`, with a record of what it uses.
    pub(crate) fn build(&self, layers: &ImageLayers, directory: &Path) -> Result<(), SnapshotError> {
        files::directory(directory)?;
        let usage = self.driver.build(layers, directory)?;
        graph::record_usage(directory, usage)?;
        Ok(files::sync_directory(directory)?)
    }

    /// The image as a tree, shared by all who use it.
    pub(crate) fn view(&self, id: &str) -> Result<Arc<View>, SnapshotError> {
        let layers = self.image_layers(id)?;
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(view) = views.get(id).and_then(Weak::upgrade) {
            return Ok(view);
        }
        let built = graph::image_directory(&self.config.root, id).join(self.driver.name());
        if !built.exists() {
            // Pulled under another driver.
            let staging = self.flights.stage()?;
            let directory = staging.0.join("built");
            self.build(&layers, &directory)?;
            files::publish(&directory, &built)?;
        }
        let view = Arc::new(self.driver.view(&layers, &built)?);
        views.retain(|_, view| view.strong_count() > 0);
        views.insert(id.to_owned(), Arc::downgrade(&view));
        Ok(view)
    }

    /// A read-only detached mount of an image, or of one path in it. `label`: SELinux label that all of its files have in this mount.
    ///
    /// # Errors
    /// No such image; the path is not in it; a mount call fails; the driver knows no labels.
    pub fn mount_image(
        &self,
        image_id: &str,
        sub_path: &str,
        label: Option<&str>,
    ) -> Result<OwnedFd, SnapshotError> {
        let view = self.view(image_id)?;
        let mount = self.driver.mount_view(&view, label)?;
        if sub_path.trim_matches('/').is_empty() {
            return Ok(mount);
        }
        snapshot::clone_at(image_id, &mount, sub_path)
    }

    /// Moves something to the trash: gone at once, deleted later.
    pub(crate) fn discard(&self, path: &Path) -> Result<(), FileError> {
        let number = self.trash_number.fetch_add(1, Ordering::Relaxed);
        let to = self.config.root.join("trash").join(format!("{}-{number}", std::process::id()));
        match std::fs::rename(path, &to) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(FileError::at("move to the trash", path)),
        }
    }

    /// Deletes what is in the trash, on a thread of its own.
    pub(crate) fn empty_trash(&self) {
        let (trash, driver) = (self.config.root.join("trash"), self.driver.clone());
        let spawned = std::thread::Builder::new().name("trash".into()).spawn(move || empty(&trash, &*driver));
        if let Err(error) = spawned {
            tracing::warn!(%error, "the trash is emptied at the next start");
        }
    }

    /// Layers and image directories that no image has: a pull that a power cut ended between its steps.
    fn sweep_orphans(&self) -> Result<(), OpenError> {
        let index = self.index.load();
        let needed: BTreeSet<PathBuf> =
            index.needed_layers().iter().map(|d| graph::layer_directory(&self.config.root, d)).collect();
        let images: BTreeSet<PathBuf> =
            index.images.keys().map(|id| graph::image_directory(&self.config.root, id)).collect();
        for (directory, known) in
            [("layers/sha256", &needed), ("layers/sha512", &needed), ("images", &images)]
        {
            let directory = self.config.root.join(directory);
            for entry in std::fs::read_dir(&directory).map_err(FileError::at("list", &directory))? {
                let path = entry.map_err(FileError::at("list", &directory))?.path();
                if !known.contains(&path) {
                    self.discard(&path)?;
                }
            }
        }
        self.empty_trash();
        Ok(())
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        for digest in &self.digests {
            if let Some(count) = pins.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(digest);
                }
            }
        }
    }
}

fn empty(trash: &Path, driver: &dyn Driver) {
    for entry in std::fs::read_dir(trash).into_iter().flatten().flatten() {
        // A container's directory is the driver's, of an image's one directory is.
        for directory in [entry.path(), entry.path().join(driver.name())] {
            if let Err(error) = driver.discard(&directory) {
                tracing::debug!(path = %directory.display(), %error, "deleted file by file");
            }
        }
        drop(Staging(entry.path()));
    }
}

/// One process per store. A holder that was killed is waited for: a process that it was just making has its descriptors, and with
/// them the lock, until it runs its own program (execve(2)).
fn lock(root: &Path) -> Result<File, OpenError> {
    const LIMIT: Duration = Duration::from_secs(1);
    const PAUSE: Duration = Duration::from_millis(5);
    let path = root.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(FileError::at("open", &path))?;
    let end = Instant::now() + LIMIT;
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < end => std::thread::sleep(PAUSE),
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::Locked { root: root.to_owned() }),
            Err(error) => return Err(FileError::at("lock", &path)(error).into()),
        }
    }
}

/// Gives a directory of the store its SELinux label, if there is one to give.
fn put_label(label: Option<&Label>, directory: &Path) -> Result<(), FileError> {
    let Some(label) = label else { return Ok(()) };
    let open = File::open(directory).map_err(FileError::at("open", directory))?;
    (label.apply)(open.as_fd(), &label.text).map_err(FileError::at("label", directory))
}

/// Empties `staging/`, but for partial blobs that are still worth continuing.
fn sweep_staging(root: &Path) -> Result<(), FileError> {
    let staging = root.join("staging");
    for entry in std::fs::read_dir(&staging).map_err(FileError::at("list", &staging))? {
        let entry = entry.map_err(FileError::at("list", &staging))?;
        if entry.file_name() != "partial" {
            drop(Staging(entry.path()));
        }
    }
    sweep_partial(root, PARTIAL_AGE).map(drop)
}

/// Deletes partial blobs that nobody has continued for this long; returns what they took.
pub(crate) fn sweep_partial(root: &Path, age: Duration) -> Result<Usage, FileError> {
    use std::os::unix::fs::MetadataExt;
    let partial = root.join("staging/partial");
    let mut gone = Usage::default();
    for entry in std::fs::read_dir(&partial).map_err(FileError::at("list", &partial))? {
        let entry = entry.map_err(FileError::at("list", &partial))?;
        let metadata = entry.metadata().map_err(FileError::at("stat", entry.path()))?;
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        if modified.elapsed().unwrap_or_default() >= age {
            std::fs::remove_file(entry.path()).map_err(FileError::at("delete", entry.path()))?;
            gone.bytes += metadata.blocks() * 512;
            gone.inodes += 1;
        }
    }
    Ok(gone)
}

#[cfg(test)]
mod tests;

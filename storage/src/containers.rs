//! Containers' writable layers: made, mounted, measured, released; each pins its image.
//!
//! `containers/<name>/record.json` names the image, so that pins survive a restart. Owned by this module.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{FileError, SnapshotError};
use crate::snapshot::{self, View};
use crate::store::Store;
use crate::{RootfsOptions, Usage, files};

const VERSION: u32 = 1;

/// A measurement is good for this long, and for [`PATIENCE`] times what it took.
const FRESH: Duration = Duration::from_secs(1);
/// See [`FRESH`]: at most a fiftieth of a processor goes into measuring one container.
const PATIENCE: u32 = 50;
/// A measurement that takes longer is taken on a thread of its own, and whoever asks meanwhile gets the last one.
const QUICK: Duration = Duration::from_millis(2);

/// What is written of a container.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    image: String,
}

/// A container the store knows.
#[derive(Debug, Default)]
struct Container {
    /// Image id; empty if the record was unreadable.
    image: String,
    /// Keeps the image's mount shared while somebody uses it.
    view: Option<Arc<View>>,
    /// A copy of the mount handed out, to hand out again.
    mount: Option<OwnedFd>,
    measured: Option<Measured>,
}

/// The size of a writable layer, as last seen.
#[derive(Clone, Copy, Debug)]
struct Measured {
    usage: Usage,
    at: Instant,
    took: Duration,
    /// Somebody is measuring again.
    busy: bool,
}

impl Measured {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < FRESH.max(self.took * PATIENCE)
    }
}

/// All containers of a store; clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Containers {
    root: PathBuf,
    known: Arc<Mutex<HashMap<String, Container>>>,
}

impl Containers {
    /// Reads the records.
    pub(crate) fn load(root: &Path) -> Result<Self, FileError> {
        let root = root.join("containers");
        let mut known = HashMap::new();
        for entry in std::fs::read_dir(&root).map_err(FileError::at("list", &root))? {
            let entry = entry.map_err(FileError::at("list", &root))?;
            let record = files::decode::<Record>(&entry.path().join("record.json"), "container", VERSION);
            // Without a record it pins nothing, but can still be released and swept.
            let image = record.map(|record| record.image).unwrap_or_default();
            let name = entry.file_name().to_string_lossy().into_owned();
            known.insert(name, Container { image, ..Container::default() });
        }
        Ok(Self { root, known: Arc::new(Mutex::new(known)) })
    }

    /// A container that uses the image.
    pub(crate) fn user_of(&self, image: &str) -> Option<String> {
        self.lock().iter().find(|(_, container)| container.image == image).map(|(name, _)| name.clone())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Container>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn directory(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Keeps a measurement, unless the container is gone meanwhile.
    fn remember(&self, name: &str, measured: Option<Measured>) {
        if let Some(state) = self.lock().get_mut(name) {
            state.measured = measured;
        }
    }
}

fn check_name(name: &str) -> Result<(), SnapshotError> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if name.is_empty() || name.len() > 200 || name.starts_with('.') || !name.bytes().all(fine) {
        return Err(SnapshotError::BadName(name.to_owned()));
    }
    Ok(())
}

impl Store {
    /// Creates a container's writable layer and pins the image. A repeat changes nothing.
    ///
    /// # Errors
    /// No such image; the container exists with another; the name cannot be a file name; the disk fails.
    pub fn prepare(&self, image_id: &str, container: &str) -> Result<(), SnapshotError> {
        check_name(container)?;
        // Against a removal of the image between the look and the pin.
        let _guard = self.write_lock();
        let view = self.view(image_id)?;
        let mut known = self.containers.lock();
        if let Some(existing) = known.get(container) {
            if existing.image == image_id {
                return Ok(());
            }
            let (container, image) = (container.to_owned(), existing.image.clone());
            return Err(SnapshotError::OtherImage { container, image });
        }
        let directory = self.containers.directory(container);
        files::directory(&directory)?;
        let made = self.driver.prepare(&view, &directory).and_then(|()| {
            // A power cut ends the container with its record; only a restart of the daemon must find it.
            let bytes = files::encode("container", VERSION, &Record { image: image_id.to_owned() });
            let path = directory.join("record.json");
            Ok(std::fs::write(&path, bytes).map_err(FileError::at("write", &path))?)
        });
        if let Err(error) = made {
            let _ = self.discard(&directory);
            return Err(error);
        }
        let container_state =
            Container { image: image_id.to_owned(), view: Some(view), ..Container::default() };
        known.insert(container.to_owned(), container_state);
        Ok(())
    }

    /// A detached mount of the container's root. A repeat gives another mount of the same root.
    ///
    /// # Errors
    /// Not prepared; its image is gone; a mount call fails.
    pub fn mount(&self, container: &str, options: &RootfsOptions<'_>) -> Result<OwnedFd, SnapshotError> {
        let mut known = self.containers.lock();
        let state =
            known.get_mut(container).ok_or_else(|| SnapshotError::NoContainer(container.to_owned()))?;
        if let Some(mount) = &state.mount {
            // Two overlays over one upper directory would be undefined behaviour.
            return snapshot::clone(container, mount);
        }
        let view = match &state.view {
            Some(view) => view.clone(),
            None => self.view(&state.image)?,
        };
        let mount = self.driver.mount(&view, &self.containers.directory(container), options)?;
        state.mount = Some(snapshot::clone(container, &mount)?);
        state.view = Some(view);
        Ok(mount)
    }

    /// Drops the container's writable layer and the pin. Absent is fine.
    ///
    /// # Errors
    /// The disk fails.
    pub fn release(&self, container: &str) -> Result<(), SnapshotError> {
        let mut known = self.containers.lock();
        if !known.contains_key(container) {
            return Ok(());
        }
        self.discard(&self.containers.directory(container))?;
        let gone = known.remove(container);
        drop(known);
        // Unmounting waits for nothing we hold.
        drop(gone);
        self.empty_trash();
        Ok(())
    }

    /// Drops what no live container owns; returns what was dropped. For the start after a crash.
    pub fn retain(&self, live: &dyn Fn(&str) -> bool) -> Vec<String> {
        let names: Vec<String> = self.containers.lock().keys().filter(|name| !live(name)).cloned().collect();
        let released = names.into_iter().filter(|name| match self.release(name) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(container = %name, %error, "writable layer is left over");
                false
            }
        });
        released.collect()
    }

    /// The container's writable layer; `None`: there is no such container. A large layer is not walked for it: the answer
    /// is then the last measurement, and a new one is under way if that is old.
    pub fn container_usage(&self, container: &str) -> Option<Usage> {
        let mut known = self.containers.lock();
        let state = known.get_mut(container)?;
        let last = state.measured;
        let job = Measure {
            driver: self.driver.clone(),
            view: state.view.clone(),
            directory: self.containers.directory(container),
        };
        match &mut state.measured {
            Some(last) if last.is_fresh() || last.busy => return Some(last.usage),
            Some(last) if last.took > QUICK => last.busy = true,
            _ => {
                drop(known);
                let measured = job.run()?;
                self.containers.remember(container, Some(measured));
                return Some(measured.usage);
            }
        }
        drop(known);
        let (containers, name) = (self.containers.clone(), container.to_owned());
        let spawned = std::thread::Builder::new()
            .name("measure".into())
            .spawn(move || containers.remember(&name, job.run().or(last)));
        if let Err(error) = spawned {
            tracing::warn!(%container, %error, "its size is not measured again");
            self.containers.remember(container, last);
        }
        last.map(|last| last.usage)
    }
}

/// One measurement.
struct Measure {
    driver: Arc<dyn snapshot::Driver>,
    view: Option<Arc<View>>,
    directory: PathBuf,
}

impl Measure {
    fn run(self) -> Option<Measured> {
        let start = Instant::now();
        let usage = self.driver.usage(self.view.as_deref(), &self.directory).ok()?;
        Some(Measured { usage, at: Instant::now(), took: start.elapsed(), busy: false })
    }
}

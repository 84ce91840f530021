//! What every suite works with: the binary under test, the tools, the registry with its images.

use std::cell::OnceCell;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::images;
use crate::registry::Registry;

/// One run of the suites.
#[derive(Debug)]
pub struct World {
    /// Temporary directory of the run.
    pub dir: PathBuf,
    /// The repository.
    pub tree: PathBuf,
    /// The binary under test.
    pub berth: PathBuf,
    registry: OnceCell<Registry>,
}

// === impl World ===

impl World {
    /// Looks up what `tests/run` has prepared and makes the run's directory.
    ///
    /// # Errors
    /// `BERTH_BINARY` is not set, or the directory cannot be made.
    pub fn open() -> Result<Self> {
        let berth = PathBuf::from(
            std::env::var_os("BERTH_BINARY").context("BERTH_BINARY is not set: use tests/run")?,
        );
        let tree = std::env::current_dir()?;
        let dir = std::env::temp_dir().join(format!("berth-suites-{}", nanoseconds()?));
        std::fs::create_dir_all(&dir)?;
        Ok(Self { dir, tree, berth, registry: OnceCell::new() })
    }

    /// The registry with all images; made at its first use.
    ///
    /// # Errors
    /// An image cannot be built or pushed.
    pub fn registry(&self) -> Result<&Registry> {
        if let Some(registry) = self.registry.get() {
            return Ok(registry);
        }
        let dir = self.dir.join("images");
        std::fs::create_dir_all(&dir)?;
        let registry = Registry::start(&dir)?;
        for image in images::build(&dir)? {
            registry.push(&image)?;
        }
        Ok(self.registry.get_or_init(|| registry))
    }

    /// Path of a tool that `tests/run` has built (`CRICTL`, `KUBELET`, …); `None` when it could not.
    #[must_use]
    pub fn tool(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().filter(|path| !path.is_empty())
    }
}

/// Tells runs apart: process ids repeat on private machines.
fn nanoseconds() -> Result<u128> {
    Ok(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos())
}

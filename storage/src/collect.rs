//! Garbage collection by hand: images nobody needs, and what broken pulls have left.
//!
//! The kubelet collects by disk use and age; this is for an administrator who wants the space now.

use std::time::Duration;

use crate::Usage;
use crate::error::{FileError, RemoveError};
use crate::store::{Store, sweep_partial};

/// What a collection has freed.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    /// Ids of the images that are gone.
    pub images: Vec<String>,
    /// What is free now that was not.
    pub freed: Usage,
}

impl Store {
    /// Removes images without a name, or with `all` every image, and in both cases none that is pinned, used by a container, or being
    /// pulled; then partial blobs that no running pull continues. Blocking.
    ///
    /// # Errors
    /// The disk fails; what is gone by then is gone.
    pub fn collect(&self, all: bool) -> Result<Collected, RemoveError> {
        let before = self.usage();
        let mut collected = Collected::default();
        for image in self.images() {
            let nameless = image.repo_tags.is_empty() && image.repo_digests.is_empty();
            if image.pinned || !(all || nameless) {
                continue;
            }
            match self.remove(&image.id) {
                Ok(()) => collected.images.push(image.id.clone()),
                Err(RemoveError::InUse { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let after = self.usage();
        collected.freed = Usage {
            bytes: before.bytes.saturating_sub(after.bytes),
            inodes: before.inodes.saturating_sub(after.inodes),
        };
        self.drop_partials(&mut collected.freed)?;
        Ok(collected)
    }

    /// Partial blobs that nobody is writing.
    fn drop_partials(&self, freed: &mut Usage) -> Result<(), FileError> {
        if self.flights.any() {
            return Ok(());
        }
        let gone = sweep_partial(self.root(), Duration::ZERO)?;
        freed.bytes += gone.bytes;
        freed.inodes += gone.inodes;
        Ok(())
    }
}

//! Images as trees, shared by all who use them, and kept for a while after the last.
//!
//! A mount of its own has a page cache of its own: a job that runs each minute, alone with its image, would read its program anew each
//! time. What is kept costs a descriptor and what the kernel may take back when it needs the memory.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::error::SnapshotError;
use crate::snapshot::View;

/// So many images are kept, those that were used last.
const KEPT: usize = 8;

/// The views of a store.
#[derive(Debug, Default)]
pub(crate) struct Views(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// By image id.
    shared: HashMap<String, Weak<View>>,
    /// The last one used at the end.
    kept: VecDeque<Arc<View>>,
}

impl Views {
    /// The view of an image, which `make` makes if there is none.
    pub(crate) fn get(
        &self,
        id: &str,
        make: impl FnOnce() -> Result<View, SnapshotError>,
    ) -> Result<Arc<View>, SnapshotError> {
        let mut known = self.lock();
        let view = match known.shared.get(id).and_then(Weak::upgrade) {
            Some(view) => view,
            None => {
                let view = Arc::new(make()?);
                known.shared.retain(|_, view| view.strong_count() > 0);
                known.shared.insert(id.to_owned(), Arc::downgrade(&view));
                view
            }
        };
        let too_many = known.keep(view.clone());
        drop(known);
        // Unmounting waits for nothing we hold.
        drop(too_many);
        Ok(view)
    }

    /// Keeps an image that is being removed no longer. Whoever drops what comes back may have to wait for its unmounting.
    pub(crate) fn forget(&self, id: &str) -> Option<Arc<View>> {
        let mut known = self.lock();
        known.shared.remove(id);
        known.take(id)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Makes this the last one used; the one that has not been used for longest comes back if there are too many.
    fn keep(&mut self, view: Arc<View>) -> Option<Arc<View>> {
        self.take(&view.image.id);
        self.kept.push_back(view);
        if self.kept.len() > KEPT { self.kept.pop_front() } else { None }
    }

    fn take(&mut self, id: &str) -> Option<Arc<View>> {
        let place = self.kept.iter().position(|view| view.image.id == id)?;
        self.kept.remove(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::ImageLayers;

    fn view(id: &str) -> View {
        View { lowers: Vec::new(), image: ImageLayers { id: id.to_owned(), layers: Vec::new() } }
    }

    fn never() -> Result<View, SnapshotError> {
        panic!("made a second time")
    }

    #[test]
    fn an_image_without_users_keeps_its_view_until_others_are_used_or_it_is_removed() {
        let views = Views::default();
        drop(views.get("a", || Ok(view("a"))).unwrap());
        drop(views.get("a", never).unwrap());
        for other in 1..KEPT {
            drop(views.get(&other.to_string(), || Ok(view(&other.to_string()))).unwrap());
        }
        let a = Arc::downgrade(&views.get("a", never).unwrap());
        let first = Arc::downgrade(&views.get("1", never).unwrap());
        drop(views.get("one too many", || Ok(view("one too many"))).unwrap());
        assert!(views.get("2", || Err(SnapshotError::NoImage("2".into()))).is_err(), "the oldest was kept");
        assert!(a.strong_count() > 0 && first.strong_count() > 0);

        drop(views.forget("a").unwrap());
        assert_eq!(a.strong_count(), 0);
        assert!(views.forget("a").is_none());
    }

    #[test]
    fn a_view_in_use_is_shared_though_it_is_not_kept() {
        let views = Views::default();
        let used = views.get("used", || Ok(view("used"))).unwrap();
        for other in 0..=KEPT {
            drop(views.get(&other.to_string(), || Ok(view(&other.to_string()))).unwrap());
        }
        assert!(Arc::ptr_eq(&used, &views.get("used", never).unwrap()));
    }
}

//! CheckImages: an administrator's `berth fsck`.

use std::sync::Arc;

use crate::engine::blocking;
use crate::image::local;
use crate::job::{Cx, Job};
use crate::{Engine, Error};

/// Reads every layer again and compares it with its name.
#[derive(Clone, Copy, Debug)]
pub struct CheckImages;

/// A layer that is no longer what it was.
#[derive(Clone, Debug)]
pub struct BadLayer {
    /// Diff ID.
    pub layer: String,
    /// Ids of the images it is part of.
    pub images: Vec<String>,
    /// What was found instead.
    pub found: String,
}

impl Job for CheckImages {
    const NAME: &'static str = "CheckImages";
    type Output = Vec<BadLayer>;

    fn identity(&self, _: &Engine) -> Option<String> {
        Some(String::new())
    }

    fn subject(&self) -> String {
        "all images".into()
    }

    async fn run(self, engine: Arc<Engine>, cx: Cx) -> Result<Vec<BadLayer>, Error> {
        let store = local(&engine)?;
        let damage = cx.step("read every layer", blocking(move || Ok(store.scrub()))).await?;
        let bad = |one: storage::Damage| BadLayer {
            layer: one.layer.to_string(),
            images: one.images,
            found: match one.found {
                Ok(digest) => digest.to_string(),
                Err(error) => crate::error::chain(&error),
            },
        };
        Ok(damage.into_iter().map(bad).collect())
    }
}

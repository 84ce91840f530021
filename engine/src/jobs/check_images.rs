//! CheckImages: an administrator's `berth fsck`.

use std::sync::Arc;

use crate::engine::blocking;
use crate::image::{self, local};
use crate::job::{Cx, Job};
use crate::{Engine, Error};

/// Reads every layer again and compares it with its name.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckImages {
    /// Put right what is damaged.
    pub repair: bool,
}

/// A layer that is no longer what it was.
#[derive(Clone, Debug)]
pub struct BadLayer {
    /// Diff ID.
    pub layer: String,
    /// Ids of the images it is part of.
    pub images: Vec<String>,
    /// What was found instead.
    pub found: String,
    /// It was put right, or why not; `None`: nobody tried.
    pub repaired: Option<Result<(), String>>,
}

impl Job for CheckImages {
    const NAME: &'static str = "CheckImages";
    type Output = Vec<BadLayer>;

    fn identity(&self, _: &Engine) -> Option<String> {
        Some(if self.repair { "repair" } else { "" }.to_owned())
    }

    fn subject(&self) -> String {
        "all images".into()
    }

    async fn run(self, engine: Arc<Engine>, cx: Cx) -> Result<Vec<BadLayer>, Error> {
        let store = local(&engine)?;
        let reader = store.clone();
        let damage = cx.step("read every layer", blocking(move || Ok(reader.scrub()))).await?;
        let mut bad = Vec::new();
        for one in damage {
            let repaired = if self.repair {
                let heal = async {
                    let healed = store.heal(&one.layer).await;
                    healed.map_err(|e| Error::of(image::kind(e.kind()), &e))
                };
                Some(cx.step("fetch a damaged layer again", heal).await.map_err(|e| e.chain()))
            } else {
                None
            };
            let found = match one.found {
                Ok(digest) => digest.to_string(),
                Err(error) => crate::error::chain(&error),
            };
            bad.push(BadLayer { layer: one.layer.to_string(), images: one.images, found, repaired });
        }
        Ok(bad)
    }
}

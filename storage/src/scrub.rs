//! Scrub: reads every layer again and compares it with its name, because disks forget.

use std::collections::BTreeMap;

use crate::digest::Digest;
use crate::error::FileError;
use crate::store::Store;
use crate::{files, graph};

/// A layer whose bytes are no longer what they were.
#[derive(Debug)]
pub struct Damage {
    /// Diff ID of the layer: the digest its tar had when it was pulled.
    pub layer: Digest,
    /// Ids of the images that contain it; remove and pull them again.
    pub images: Vec<String>,
    /// What was found: another digest, or why it could not be read.
    pub found: Result<Digest, FileError>,
}

impl Store {
    /// Hashes the tar of every layer; returns those that differ. Blocking, as long as the disk takes; changes nothing.
    pub fn scrub(&self) -> Vec<Damage> {
        let mut users: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
        for (id, held) in &self.index.load().images {
            for layer in &held.record.layers {
                let images = users.entry(layer.diff_id.clone()).or_default();
                if images.last() != Some(id) {
                    images.push(id.clone());
                }
            }
        }
        let check = |(layer, images): (Digest, Vec<String>)| {
            // An image removed meanwhile is no damage.
            let still_there = || self.index.load().layers.contains_key(&layer);
            let found = files::digest(&graph::layer_directory(self.root(), &layer).join("tar"), &layer);
            let fine = found.as_ref().is_ok_and(|found| *found == layer);
            (!fine && still_there()).then_some(Damage { layer, images, found })
        };
        users.into_iter().filter_map(check).collect()
    }
}

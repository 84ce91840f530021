//! Splitting an archive into files as it comes, so that a blob worth keeping is moved into the store and not copied.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::ArchiveError;
use crate::error::FileError;
use crate::flight::Staging;
use crate::layer::entry::Kind;
use crate::layer::tar::Scanner;
use crate::layer::{LayerError, decode};
use crate::store::Store;

/// Most files in an archive.
const FILES_MAX: usize = 100_000;
/// Bytes handled at a time.
const PIECE: usize = 1 << 20;

/// An archive's files, in staging; gone when this is dropped.
#[derive(Debug)]
pub struct Unpacked {
    _staging: Staging,
    files: BTreeMap<String, PathBuf>,
    /// Links of a docker-archive: name and the file it stands for.
    links: BTreeMap<String, String>,
}

/// Cuts a tar stream into files.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    scanner: Scanner,
    /// Offset of the next byte in the tar.
    at: u64,
    /// Files that are still being written: where in the tar they begin and end.
    open: Vec<(File, PathBuf, u64, u64)>,
    count: usize,
    links: BTreeMap<String, String>,
}

/// Opens the file for a name and a number.
type Place<'a> = &'a mut dyn FnMut(&str, usize) -> Result<(File, PathBuf), ArchiveError>;

impl Store {
    /// Reads an archive, compressed or not, to its end. Blocking.
    ///
    /// # Errors
    /// It is no tar, or the disk fails.
    pub fn unpack(&self, archive: impl Read) -> Result<Unpacked, ArchiveError> {
        let staging = self.flights.stage()?;
        let mut files = BTreeMap::new();
        let mut splitter = Splitter::default();
        let mut failed = None;
        let decoded = decode::decode(archive, PIECE, &mut |piece| {
            let pushed = splitter.push(piece.slice(), &mut |name, number| {
                // Names inside an archive are never names on this machine.
                let path = staging.0.join(number.to_string());
                let file = File::create_new(&path).map_err(FileError::at("create", &path))?;
                files.insert(name.to_owned(), path.clone());
                Ok((file, path))
            });
            pushed.map(|()| piece).map_err(|error| {
                failed = Some(error);
                LayerError::Thread
            })
        });
        if let Some(error) = failed {
            return Err(error);
        }
        decoded.map_err(|error| ArchiveError::Read(crate::error::chain(&error)))?;
        let links = splitter.finish()?;
        Ok(Unpacked { _staging: staging, files, links })
    }
}

// === impl Unpacked ===

impl Unpacked {
    /// The file of this name.
    pub(super) fn find(&self, name: &str) -> Option<&Path> {
        let name = name.trim_start_matches("./");
        let name = self.links.get(name).map_or(name, String::as_str);
        self.files.get(name).map(PathBuf::as_path)
    }

    /// A small file's content.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, ArchiveError> {
        let Some(path) = self.find(name) else { return Ok(None) };
        let size = std::fs::metadata(path).map_err(FileError::at("stat", path))?.len();
        if size > limit {
            return Err(ArchiveError::Read(format!("{name} has {size} bytes, the limit is {limit}")));
        }
        Ok(Some(std::fs::read(path).map_err(FileError::at("read", path))?))
    }
}

// === impl Splitter ===

impl Splitter {
    /// Takes the next bytes; `place` is asked for each file that begins in them.
    pub(super) fn push(&mut self, piece: &[u8], place: Place<'_>) -> Result<(), ArchiveError> {
        let mut entries = Vec::new();
        self.scanner.push(piece, &mut |entry| entries.push(entry)).map_err(|error| broken(&error))?;
        for entry in entries {
            let name = String::from_utf8_lossy(&entry.path).into_owned();
            match entry.kind {
                Kind::File { offset, size } => {
                    if self.count >= FILES_MAX {
                        return Err(ArchiveError::Read(format!("it holds more than {FILES_MAX} files")));
                    }
                    let (file, path) = place(&name, self.count)?;
                    self.count += 1;
                    self.open.push((file, path, offset, offset.saturating_add(size)));
                }
                Kind::HardLink { target } => {
                    self.links.insert(name, String::from_utf8_lossy(&target).into_owned());
                }
                Kind::Symlink { target } => {
                    let target = beside(&name, &String::from_utf8_lossy(&target));
                    self.links.insert(name, target);
                }
                _ => {}
            }
        }
        let end = self.at + piece.len() as u64;
        for (file, path, from, to) in &mut self.open {
            let (from, to) = ((*from).max(self.at), (*to).min(end));
            if from < to {
                let index = |offset: u64| usize::try_from(offset - self.at).unwrap_or(0);
                let written = file.write_all(&piece[index(from)..index(to)]);
                written.map_err(FileError::at("write", path.as_path()))?;
            }
        }
        self.open.retain(|(_, _, _, to)| *to > end);
        self.at = end;
        Ok(())
    }

    /// The stream is over; was it whole? Returns the links it held: names, and the files they stand for.
    pub(super) fn finish(self) -> Result<BTreeMap<String, String>, ArchiveError> {
        self.scanner.finish().map_err(|error| broken(&error))?;
        Ok(self.links)
    }
}

fn broken(error: &dyn std::error::Error) -> ArchiveError {
    ArchiveError::Read(crate::error::chain(error))
}

/// A relative link's target, as a name inside the archive.
fn beside(name: &str, target: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_old_docker_archives_lead_to_the_file_they_mean() {
        assert_eq!(beside("aa/layer.tar", "../bb/layer.tar"), "bb/layer.tar");
        assert_eq!(beside("aa/layer.tar", "../../../etc/passwd"), "etc/passwd", "a name, never a path");
        assert_eq!(beside("x", "./y"), "y");
    }
}

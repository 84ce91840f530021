//! Files and directories as the journal uses them.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::JournalError;

/// No journal is larger: a request is at most 16 MiB, and bytes in JSON take up to four characters.
const LIMIT: u64 = 512 << 20;

fn io_error(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Io { call, path, source }
}

/// Appends to a file, which `fresh` makes: then it must not exist yet. Returns the length.
pub(super) fn append(path: &Path, text: &[u8], fresh: bool) -> Result<u64, JournalError> {
    OpenOptions::new()
        .append(true)
        .create_new(fresh)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| {
            file.write_all(text)?;
            Ok(file.metadata()?.len())
        })
        .map_err(io_error("append to", path))
}

/// Replaces a file atomically. The new content is on the disk before it has the name, because the old one may be.
pub(super) fn replace(path: &Path, text: &[u8]) -> Result<(), JournalError> {
    let temporary = path.with_extension("tmp");
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(text)?;
            file.sync_data()
        })
        .map_err(io_error("write", &temporary))?;
    fs::rename(&temporary, path).map_err(io_error("rename", path))
}

/// Reads a file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, JournalError> {
    let mut text = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(LIMIT).read_to_end(&mut text))
        .map_err(io_error("read", path))?;
    Ok(text)
}

/// Removes a file; absent is fine.
pub(super) fn remove(path: &Path) -> Result<(), JournalError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(io_error("remove", path)),
    }
}

/// Makes a directory and its parents, 0700.
pub fn make_dir(path: &Path) -> Result<(), JournalError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("mkdir", path))
}

/// Removes a tree, which a container may have made ([`storage::remove_tree`]); absent is fine.
pub fn remove_tree(path: &Path) -> Result<(), JournalError> {
    storage::remove_tree(path).map_err(|error| io_error("remove", path)(error.source))
}

/// Names in a directory, sorted; absent is empty.
pub fn names(path: &Path) -> Result<Vec<String>, JournalError> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(io_error("read directory", path))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io_error("read directory", path))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

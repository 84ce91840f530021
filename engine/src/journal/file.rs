//! One file of the journal: `{"format":…,"version":1,"sha256":…,"body":…}`.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::JournalError;

/// Version written; older ones are read as long as serde's defaults can fill what they lack.
pub const VERSION: u32 = 1;

/// No record is larger: a request is at most 16 MiB, and bytes in JSON take up to four characters.
const LIMIT: u64 = 128 << 20;

#[derive(Serialize)]
struct Sealed<'a> {
    format: &'a str,
    version: u32,
    sha256: &'a str,
    body: &'a RawValue,
}

#[derive(Deserialize)]
struct Opened<'a> {
    format: String,
    version: u32,
    sha256: String,
    #[serde(borrow)]
    body: &'a RawValue,
}

fn io_error(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Io { call, path, source }
}

/// Replaces `path` atomically.
pub fn write<T: Serialize>(path: &Path, format: &str, value: &T) -> Result<(), JournalError> {
    let encode = |source| JournalError::Encode { path: path.to_owned(), source };
    let body = serde_json::value::to_raw_value(value).map_err(encode)?;
    let sha256 = seal(format, VERSION, &body);
    let text = serde_json::to_vec(&Sealed { format, version: VERSION, sha256: &sha256, body: &body })
        .map_err(encode)?;
    let temporary = path.with_extension("tmp");
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(&text))
        .map_err(io_error("write", &temporary))?;
    fs::rename(&temporary, path).map_err(io_error("rename", path))
}

/// Reads and verifies.
pub fn read<T: DeserializeOwned>(path: &Path, format: &str) -> Result<T, JournalError> {
    let damaged = |why: String| JournalError::Damaged { path: path.to_owned(), why };
    let mut text = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(LIMIT).read_to_end(&mut text))
        .map_err(io_error("read", path))?;
    let file: Opened<'_> = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
    if file.format != format {
        return Err(damaged(format!("is a {}, not a {format}", file.format)));
    }
    if file.version > VERSION {
        return Err(damaged(format!("has version {}, this Berth reads up to {VERSION}", file.version)));
    }
    if file.sha256 != seal(&file.format, file.version, file.body) {
        return Err(damaged("checksum mismatch".into()));
    }
    serde_json::from_str(file.body.get()).map_err(|e| damaged(e.to_string()))
}

/// Makes a directory and its parents, 0700.
pub fn make_dir(path: &Path) -> Result<(), JournalError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("mkdir", path))
}

/// Removes a tree without following links; absent is fine.
pub fn remove_tree(path: &Path) -> Result<(), JournalError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(io_error("remove", path)),
    }
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

/// The checksum covers everything but itself.
fn seal(format: &str, version: u32, body: &RawValue) -> String {
    let digest =
        Sha256::new().chain_update(format!("{format} {version} ")).chain_update(body.get()).finalize();
    hex(&digest)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

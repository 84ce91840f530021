//! One entry of a pod's journal: a line `{"format":…,"version":1,"sha256":…,"body":…}`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::container::{ContainerRecord, ContainerStatus};
use crate::pod::{PodRecord, PodStatus};

/// What the line is, for a person and for whoever finds the file elsewhere.
const FORMAT: &str = "pod.journal";

/// Version written; older ones are read as long as serde's defaults can fill what they lack.
const VERSION: u32 = 1;

/// Something that has become true. Later entries replace earlier ones about the same thing.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Entry<'a> {
    /// The pod exists; always the first.
    Pod(Cow<'a, PodRecord>),
    /// Its status.
    PodStatus(Cow<'a, PodStatus>),
    /// A container exists.
    Container(Cow<'a, ContainerRecord>),
    /// The status of the container of this id.
    ContainerStatus(Cow<'a, str>, Cow<'a, ContainerStatus>),
    /// The container of this id is no more.
    ContainerGone(Cow<'a, str>),
}

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

impl Entry<'_> {
    /// Appends the entry to `text`. The line break comes first, so that an entry stands alone even behind a torn one.
    pub(super) fn encode(&self, text: &mut Vec<u8>) -> serde_json::Result<()> {
        let body = serde_json::value::to_raw_value(self)?;
        let sha256 = seal(FORMAT, VERSION, &body);
        text.push(b'\n');
        serde_json::to_writer(
            text,
            &Sealed { format: FORMAT, version: VERSION, sha256: &sha256, body: &body },
        )
    }
}

impl Entry<'static> {
    /// Reads a line; an error says what is wrong with it.
    pub(super) fn decode(line: &[u8]) -> Result<Self, String> {
        let line: Opened<'_> = serde_json::from_slice(line).map_err(|e| e.to_string())?;
        if line.format != FORMAT {
            return Err(format!("is a {}, not a {FORMAT}", line.format));
        }
        if line.version > VERSION {
            return Err(format!("has version {}, this Berth reads up to {VERSION}", line.version));
        }
        if line.sha256 != seal(&line.format, line.version, line.body) {
            return Err("checksum mismatch".into());
        }
        serde_json::from_str(line.body.get()).map_err(|e| e.to_string())
    }
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

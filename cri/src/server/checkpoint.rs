//! CheckpointContainer, CheckpointPod and RestorePod: not built; each says so by its own name.

use engine::{Error, Kind};

pub(crate) fn refuse<T>(rpc: &str) -> Result<T, Error> {
    Err(Error::new(Kind::Unimplemented, format!("{rpc}: this runtime does not checkpoint yet")))
}

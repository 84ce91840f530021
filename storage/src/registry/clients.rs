//! Clients are kept for a while, so that pulls share connections, tokens and what a host has asked for.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::auth::Secret;
use super::client::{Client, Host};
use super::hosts::Endpoint;
use super::{RegistryError, Timing};

/// Without use, a client and its connections go after this.
const IDLE: Duration = Duration::from_secs(120);
/// A client is made anew after this, so that changed system roots are noticed.
const AGE: Duration = Duration::from_secs(900);

/// All clients of a store. One caller's client is never another's: the credentials are part of the key.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    known: Mutex<HashMap<Key, Known>>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    endpoint: Endpoint,
    secret: Secret,
    /// Certificate files with size and time of change: a rotated certificate makes another client.
    files: Vec<(PathBuf, Option<(u64, SystemTime)>)>,
}

#[derive(Debug)]
struct Known {
    host: Arc<Host>,
    made: Instant,
    used: Instant,
}

// === impl Clients ===

impl Clients {
    /// The client for an endpoint with these credentials.
    pub(super) fn get(
        &self,
        endpoint: &Endpoint,
        secret: Secret,
        timing: Timing,
    ) -> Result<Client, RegistryError> {
        let now = Instant::now();
        let key = Key { endpoint: endpoint.clone(), secret: secret.clone(), files: stamps(endpoint) };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, k| now.duration_since(k.used) < IDLE && now.duration_since(k.made) < AGE);
        if let Some(found) = known.get_mut(&key) {
            found.used = now;
            return Ok(Client::new(found.host.clone()));
        }
        let host = Arc::new(Host::new(endpoint, secret, timing)?);
        known.insert(key, Known { host: host.clone(), made: now, used: now });
        Ok(Client::new(host))
    }
}

fn stamps(endpoint: &Endpoint) -> Vec<(PathBuf, Option<(u64, SystemTime)>)> {
    let pairs = endpoint.client.iter().flat_map(|pair| std::iter::once(&pair.certificate).chain(&pair.key));
    let stamp = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).ok();
        (path.clone(), metadata.and_then(|m| Some((m.len(), m.modified().ok()?))))
    };
    endpoint.ca.iter().chain(pairs).map(stamp).collect()
}

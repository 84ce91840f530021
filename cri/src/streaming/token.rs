//! Requests that wait for their client, each under a one-time token.
//!
//! A token is 24 random bytes. The table is keyed by its SHA-256, so that neither lookup time nor a core dump of the
//! table tells a token. It lives for a minute, and the first request that shows it takes it out.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use engine::{Error, Kind};
use ring::rand::{SecureRandom, SystemRandom};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::request::Request;

/// How long a URL is good for; the reference server's value.
const LIFETIME: Duration = Duration::from_secs(60);
/// Requests that may wait at once; the reference server's value.
const MOST: usize = 1000;
/// Random bytes in a token.
const RANDOM: usize = 24;

type Key = [u8; 32];

/// The waiting requests.
#[derive(Debug)]
pub(super) struct Waiting {
    random: SystemRandom,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    requests: HashMap<Key, Request>,
    /// The keys of `requests`, oldest first as all live equally long, and some already taken.
    expiry: VecDeque<(Instant, Key)>,
}

impl Waiting {
    pub(super) fn new() -> Self {
        Self { random: SystemRandom::new(), table: Mutex::default() }
    }

    /// Keeps a request and returns its token.
    pub(super) fn put(&self, request: Request) -> Result<String, Error> {
        let mut bytes = [0; RANDOM];
        self.random
            .fill(&mut bytes)
            .map_err(|_| Error::new(Kind::Internal, "the kernel gives no random bytes for a token"))?;
        let token = URL_SAFE_NO_PAD.encode(bytes);
        let now = Instant::now();
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.expire(now);
        if table.requests.len() >= MOST {
            return Err(Error::new(
                Kind::ResourceExhausted,
                format!(
                    "{} URLs of exec, attach and port-forward wait to be used, the most at once; each lives {} seconds: try again then",
                    table.requests.len(),
                    LIFETIME.as_secs()
                ),
            ));
        }
        let key = key(&token);
        table.requests.insert(key, request);
        table.expiry.push_back((now + LIFETIME, key));
        Ok(token)
    }

    /// Takes the request out, if it is there, not expired, and asked for by the right path.
    pub(super) fn take(&self, path: &str, token: &str) -> Option<Request> {
        let key = key(token);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.expire(Instant::now());
        if table.requests.get(&key)?.path() != path {
            return None;
        }
        table.requests.remove(&key)
    }
}

impl Table {
    fn expire(&mut self, now: Instant) {
        if self.expiry.len() > 2 * MOST {
            let Self { requests, expiry } = self;
            expiry.retain(|(_, key)| requests.contains_key(key));
        }
        while let Some(&(at, key)) = self.expiry.front() {
            if at > now {
                return;
            }
            self.expiry.pop_front();
            self.requests.remove(&key);
        }
    }
}

fn key(token: &str) -> Key {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(pod: &str) -> Request {
        Request::PortForward { pod: pod.into(), ports: Vec::new() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_works_once_and_on_its_own_path_only() {
        let waiting = Waiting::new();
        let token = waiting.put(request("a")).unwrap();
        assert_eq!(token.len(), 32);
        assert_eq!(waiting.take("exec", &token), None);
        assert_eq!(waiting.take("portforward", &token), Some(request("a")));
        assert_eq!(waiting.take("portforward", &token), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_dies_after_a_minute() {
        let waiting = Waiting::new();
        let early = waiting.put(request("a")).unwrap();
        tokio::time::advance(LIFETIME / 2).await;
        let late = waiting.put(request("b")).unwrap();
        tokio::time::advance(LIFETIME / 2).await;
        assert_eq!(waiting.take("portforward", &early), None);
        assert_eq!(waiting.take("portforward", &late), Some(request("b")));
    }

    #[tokio::test(start_paused = true)]
    async fn the_thousand_and_first_request_is_refused_until_one_expires() {
        let waiting = Waiting::new();
        for _ in 0..MOST {
            waiting.put(request("a")).unwrap();
        }
        assert_eq!(waiting.put(request("b")).unwrap_err().kind(), Kind::ResourceExhausted);
        tokio::time::advance(LIFETIME).await;
        waiting.put(request("b")).unwrap();
    }
}

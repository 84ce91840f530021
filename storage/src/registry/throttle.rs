//! `Retry-After`, obeyed by everybody who asks the same host: after the time one request goes first, and the rest when it is answered.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::MutexGuard;

/// Whether a host takes requests.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    /// Until when it takes none; `None`: it is open.
    until: Mutex<Option<Instant>>,
    /// Held by the one request that goes first.
    first: tokio::sync::Mutex<()>,
}

// === impl Throttle ===

impl Throttle {
    /// Returns when a request may be sent. While the host is throttled, what is returned must be held until it is answered.
    pub(super) async fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        self.until()?;
        let first = self.first.lock().await;
        loop {
            match self.until().map(|until| until.saturating_duration_since(Instant::now())) {
                // It has opened while we waited.
                None => return None,
                Some(Duration::ZERO) => return Some(first),
                Some(left) => tokio::time::sleep(left).await,
            }
        }
    }

    /// The host asks for peace.
    pub(super) fn close(&self, after: Duration) {
        let until = Instant::now() + after;
        let mut slot = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = Some(slot.map_or(until, |known| known.max(until)));
    }

    /// The host has answered.
    pub(super) fn open(&self) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn until(&self) -> Option<Instant> {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_the_time_one_goes_first_and_the_rest_when_it_is_answered() {
        let throttle = Throttle::default();
        assert!(throttle.turn().await.is_none(), "an open host is asked at once");
        throttle.close(Duration::ZERO);
        let first = throttle.turn().await;
        assert!(first.is_some());
        let second = throttle.turn();
        tokio::pin!(second);
        let early = tokio::time::timeout(Duration::from_secs(3600), &mut second).await;
        assert!(early.is_err(), "nobody goes while the first is not answered");
        throttle.open();
        drop(first);
        assert!(second.await.is_none());
    }
}

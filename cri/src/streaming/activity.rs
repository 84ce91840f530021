//! When a connection last moved a byte, and waiting until it has not for too long.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Time of the last byte in either direction.
#[derive(Debug)]
pub(super) struct Activity {
    start: Instant,
    /// Milliseconds after `start`.
    last: AtomicU64,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0) }
    }

    /// Something moved.
    pub(super) fn touch(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        // Relaxed: a clock that is read alone orders nothing else.
        self.last.store(now, Ordering::Relaxed);
    }

    /// Returns when nothing has moved for `limit`.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let end = self.start + Duration::from_millis(self.last.load(Ordering::Relaxed)) + limit;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_byte_puts_the_end_off() {
        let limit = Duration::from_secs(10);
        let activity = Activity::new();
        let begin = Instant::now();
        let touch = async {
            tokio::time::sleep(Duration::from_secs(7)).await;
            activity.touch();
        };
        tokio::join!(activity.idle(limit), touch);
        assert_eq!(begin.elapsed(), Duration::from_secs(17));
    }
}

//! Whether pods can be run: asked every few seconds and by many, and never a reason to wait.
//!
//! To say so the network looks into its directories, and these may lie on a file system that hangs. So a thread of its own takes the
//! look. Who asks waits for it for [`PATIENCE`]; of one that takes longer it is given what was said last, and soon a text that says
//! what is wrong.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout_at;

use crate::Engine;
use crate::api::Readiness;
use crate::drivers::Network;

/// How long a caller waits for a look; it takes some twenty microseconds where nothing is wrong.
const PATIENCE: Duration = Duration::from_millis(100);
/// A look that takes longer is a reason not to be ready.
const HANGS: Duration = Duration::from_secs(5);

/// Takes looks, one at a time.
#[derive(Debug, Default)]
pub(crate) struct Lookout {
    now: Mutex<Now>,
    /// Changes with the end of each look.
    ended: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Now {
    /// Since when somebody looks.
    looking: Option<Instant>,
    /// What was found last.
    said: Option<Said>,
}

/// What the network says.
#[derive(Clone, Debug)]
struct Said {
    status: Result<(), String>,
    notice: Option<String>,
}

impl Engine {
    /// Whether pods can be run.
    pub async fn readiness(&self) -> Readiness {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut ended = self.lookout.ended.subscribe();
            let begun = self.lookout.begin(&self.network);
            match begun {
                // It began before we asked: the next one is ours.
                Ok(Some(since)) if since.elapsed() < PATIENCE => {
                    if timeout_at(until.into(), ended.changed()).await.is_err() {
                        break;
                    }
                }
                Ok(Some(_)) => break,
                Ok(None) => {
                    let _ = timeout_at(until.into(), ended.changed()).await;
                    break;
                }
                Err(error) => {
                    tracing::warn!(%error, "no thread to look after the network");
                    break;
                }
            }
        }
        let Said { status, notice } = self.lookout.said();
        Readiness { runtime: Ok(()), network: status, notice }
    }
}

impl Lookout {
    /// Begins a look, or says since when there is one.
    fn begin(self: &Arc<Self>, network: &Arc<dyn Network>) -> io::Result<Option<Instant>> {
        let mut now = self.lock();
        if let Some(since) = now.looking {
            return Ok(Some(since));
        }
        let (lookout, network) = (Arc::clone(self), Arc::clone(network));
        let look = move || {
            // The notice is about what status just looked at.
            let status = network.status();
            let said = Said { status, notice: network.notice() };
            *lookout.lock() = Now { looking: None, said: Some(said) };
            lookout.ended.send_replace(());
        };
        std::thread::Builder::new().name("readiness".into()).spawn(look)?;
        now.looking = Some(Instant::now());
        Ok(None)
    }

    /// What was found last, unless that is long ago.
    fn said(&self) -> Said {
        let now = self.lock();
        let hangs = now.looking.map(|since| since.elapsed()).filter(|elapsed| *elapsed > HANGS);
        match (hangs, &now.said) {
            (None, Some(said)) => said.clone(),
            (None, None) => Said::not_ready("the network has not been looked at yet".into()),
            (Some(elapsed), _) => Said::not_ready(format!(
                "to look at the network's configuration and plugins takes {} s already: do their directories answer?",
                elapsed.as_secs()
            )),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Said {
    fn not_ready(why: String) -> Self {
        Self { status: Err(why), notice: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Act, Node};

    #[tokio::test]
    async fn status_says_what_the_network_says_now() {
        let node = Node::new();
        let engine = node.engine().await.unwrap();
        assert!(engine.readiness().await.network.is_ok());
        node.script.on("status", [Act::Fail]);
        assert!(engine.readiness().await.network.is_err());
        assert!(engine.readiness().await.network.is_ok());
    }

    #[tokio::test]
    async fn a_network_that_hangs_keeps_nobody_waiting_and_is_named_in_the_end() {
        let node = Node::new();
        let engine = node.engine().await.unwrap();
        assert!(engine.readiness().await.network.is_ok());
        node.script.on("status", [Act::Hang]);
        assert!(engine.readiness().await.network.is_ok(), "what was said last");
        let begun = Instant::now();
        for _ in 0..100 {
            assert!(engine.readiness().await.network.is_ok());
        }
        assert!(begun.elapsed() < 2 * PATIENCE, "{:?}", begun.elapsed());
        engine.lookout.lock().looking = Instant::now().checked_sub(HANGS);
        let why = engine.readiness().await.network.unwrap_err();
        assert!(why.contains("takes 5 s already"), "{why}");
        node.script.release();
        while engine.readiness().await.network.is_err() {
            tokio::task::yield_now().await;
        }
    }
}

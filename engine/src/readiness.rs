//! Whether pods can be run: asked every few seconds and by many, and never a reason to wait.
//!
//! To say so the network looks into its directories, and these may lie on a file system that hangs. So another thread takes the look. Who
//! asks waits for it for [`PATIENCE`]; of one that takes longer it is given what was said last, and soon a text that says what is wrong.
//! Who asks soon after somebody else is given what that one was, and has the next one looked for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout_at;

use crate::Engine;
use crate::api::Readiness;
use crate::drivers::Network;

/// An answer younger than this is given once more.
const FRESH: Duration = Duration::from_secs(1);
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
    /// What was found last, and when.
    said: Option<(Instant, Readiness)>,
}

impl Engine {
    /// Whether pods can be run, as of now or a second ago at most.
    pub async fn readiness(&self) -> Readiness {
        let mut ended = self.lookout.ended.subscribe();
        let fresh = self.lookout.is_fresh();
        let since = self.lookout.begin(&self.network);
        if !fresh {
            let _ = timeout_at((since + PATIENCE).into(), ended.changed()).await;
        }
        self.lookout.said()
    }
}

impl Lookout {
    /// Begins a look, unless there is one: since when.
    fn begin(self: &Arc<Self>, network: &Arc<dyn Network>) -> Instant {
        let mut now = self.lock();
        if let Some(since) = now.looking {
            return since;
        }
        let (lookout, network) = (Arc::clone(self), Arc::clone(network));
        let look = move || {
            // The notice is about what status just looked at.
            let status = network.status();
            let said = Readiness { runtime: Ok(()), network: status, notice: network.notice() };
            *lookout.lock() = Now { looking: None, said: Some((Instant::now(), said)) };
            lookout.ended.send_replace(());
        };
        tokio::task::spawn_blocking(look);
        *now.looking.insert(Instant::now())
    }

    fn is_fresh(&self) -> bool {
        self.lock().said.as_ref().is_some_and(|(at, _)| at.elapsed() < FRESH)
    }

    /// What was found last, unless that is long ago.
    fn said(&self) -> Readiness {
        let not_ready = |why: String| Readiness { runtime: Ok(()), network: Err(why), notice: None };
        let now = self.lock();
        let hangs = now.looking.map(|since| since.elapsed()).filter(|elapsed| *elapsed > HANGS);
        match (hangs, &now.said) {
            (None, Some((_, said))) => said.clone(),
            (None, None) => not_ready("the network has not been looked at yet".into()),
            (Some(elapsed), _) => not_ready(format!(
                "to look at the network's configuration and plugins takes {} s already: do their directories answer?",
                elapsed.as_secs()
            )),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Act, Node};

    /// As if what was said last had been said long ago.
    fn age(engine: &Engine) {
        if let Some((at, _)) = &mut engine.lookout.lock().said {
            *at = at.checked_sub(FRESH).unwrap();
        }
    }

    #[tokio::test]
    async fn status_says_what_the_network_says_now() {
        let node = Node::new();
        let engine = node.engine().await.unwrap();
        for _ in 0..3 {
            age(&engine);
            node.script.on("status", [Act::Fail]);
            assert!(engine.readiness().await.network.is_err());
            age(&engine);
            assert!(engine.readiness().await.network.is_ok());
        }
    }

    #[tokio::test]
    async fn who_asks_often_does_not_wait_and_hears_of_a_change_soon() {
        let node = Node::new();
        let engine = node.engine().await.unwrap();
        assert!(engine.readiness().await.network.is_ok());
        node.script.on("status", [Act::Fail; 100]);
        while engine.readiness().await.network.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_network_that_hangs_keeps_nobody_waiting_and_is_named_in_the_end() {
        let node = Node::new();
        let engine = node.engine().await.unwrap();
        assert!(engine.readiness().await.network.is_ok());
        node.script.on("status", [Act::Hang]);
        age(&engine);
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
        // Its end is an answer like any other.
        while engine.readiness().await.network.is_err() {
            tokio::task::yield_now().await;
        }
    }
}

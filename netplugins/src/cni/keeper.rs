//! The background thread of configured networks: asks STATUS, repeats failed DELs, runs GC.
//!
//! It starts with the first configuration, works in the namespace of the thread that started it, and ends with its owner.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Cni;

/// How often the plugins are asked for STATUS.
const STATUS_PERIOD: Duration = Duration::from_secs(5);
/// How often a failed DEL is repeated.
const PENDING_PERIOD: Duration = Duration::from_secs(60);
const GC_PERIOD: Duration = Duration::from_secs(3600);

/// Keeps the thread; dropping it waits for the end of what the thread is doing.
#[derive(Debug)]
pub(crate) struct Keeper {
    alive: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(crate) fn start(cni: &Arc<Cni>) -> Self {
        let (alive, ended) = channel();
        let cni = Arc::clone(cni);
        let started = std::thread::Builder::new().name("cni".into()).spawn(move || {
            let (mut pending, mut gc) = (Instant::now() + PENDING_PERIOD, Instant::now() + GC_PERIOD);
            loop {
                round(&cni, &mut pending, &mut gc);
                if ended.recv_timeout(STATUS_PERIOD) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        if let Err(e) = &started {
            tracing::error!("the thread that watches over CNI plugins cannot be started: {e}");
        }
        Self { alive: Some(alive), thread: started.ok() }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.alive.take());
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the thread that watches over CNI plugins panicked");
        }
    }
}

fn round(cni: &Cni, pending: &mut Instant, gc: &mut Instant) {
    let now = Instant::now();
    cni.ask_health();
    if now >= *pending {
        *pending = now + PENDING_PERIOD;
        cni.retry_pending();
    }
    if now >= *gc {
        *gc = now + GC_PERIOD;
        cni.collect();
    }
}

//! Clients that make pods while somebody reads.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::bench::action::{self, Pod};
use crate::bench::contender::Contender;
use crate::bench::machine::number;
use crate::client::{self, Client};
use crate::suites::wait;

/// How the clients go about it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Making {
    /// They make pods, one after the other each, and remove none: a create is always in progress for each of them.
    Only,
    /// Each of them removes its pod before it makes the next.
    Removing,
    /// So too, but all of them together make so many pods a second and no more.
    At(f64),
}

impl Making {
    /// How rows name it.
    pub(super) fn label(self) -> String {
        match self {
            Self::Only => "while creates run: ms".to_owned(),
            Self::Removing => "under load: ms".to_owned(),
            Self::At(rate) => format!("at {rate} pods a second: ms"),
        }
    }

    /// Whether the node fills up.
    pub(super) fn leaves_pods(self) -> bool {
        self == Self::Only
    }
}

/// The clients, on a thread of their own.
pub(super) struct Makers {
    clients: usize,
    progress: Arc<Progress>,
    thread: JoinHandle<Result<Vec<Pod>>>,
}

#[derive(Debug, Default)]
struct Progress {
    begun: AtomicUsize,
    made: AtomicUsize,
    stop: AtomicBool,
}

impl Makers {
    pub(super) fn start(contender: &Contender, making: Making, clients: usize) -> Self {
        let progress = Arc::new(Progress::default());
        let maker = Maker {
            socket: contender.socket.clone(),
            logs: contender.dir.join("logs/reads"),
            making,
            clients,
            progress: progress.clone(),
        };
        Self { clients, progress, thread: std::thread::spawn(move || wait(Box::pin(maker.all()))) }
    }

    /// Comes back when each of them has begun, or one has failed.
    pub(super) async fn at_work(&self) {
        while self.progress.begun.load(Ordering::Relaxed) < self.clients && !self.thread.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// How many pods there have been so far.
    pub(super) fn made(&self) -> usize {
        self.progress.made.load(Ordering::Relaxed)
    }

    /// Lets each finish its pod; the pods that were not removed.
    pub(super) fn end(self) -> Result<Vec<Pod>> {
        self.progress.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the makers panicked"))?
    }
}

/// What a client needs to know.
#[derive(Clone, Debug)]
struct Maker {
    socket: PathBuf,
    logs: PathBuf,
    making: Making,
    clients: usize,
    progress: Arc<Progress>,
}

impl Maker {
    async fn all(self) -> Result<Vec<Pod>> {
        let mut makers = tokio::task::JoinSet::new();
        for index in 0..self.clients {
            let client = client::connect(&self.socket).await?;
            makers.spawn(self.clone().one(client, index, Instant::now()));
        }
        let mut left = Vec::new();
        while let Some(done) = makers.join_next().await {
            left.extend(done??);
        }
        Ok(left)
    }

    /// Least time from one pod of a client to its next.
    fn period(&self) -> Duration {
        match self.making {
            Making::At(rate) => Duration::from_secs_f64(number(self.clients) / rate),
            Making::Only | Making::Removing => Duration::ZERO,
        }
    }

    async fn one(self, mut client: Client, index: usize, start: Instant) -> Result<Vec<Pod>> {
        let mut left = Vec::new();
        // Spread evenly over the period.
        let mut next = start + self.period().mul_f64(number(index) / number(self.clients));
        for round in 0.. {
            tokio::time::sleep_until(next.into()).await;
            if self.progress.stop.load(Ordering::Relaxed) {
                break;
            }
            // One that is late does not catch up: it would be two at once.
            next = Instant::now().max(next) + self.period();
            self.progress.begun.fetch_add(1, Ordering::Relaxed);
            let (_, pod) = action::pod(&mut client, &format!("maker{index}-{round}"), &self.logs).await?;
            if self.making.leaves_pods() {
                left.push(pod);
            } else {
                action::remove(&mut client, &pod).await?;
            }
            self.progress.made.fetch_add(1, Ordering::Relaxed);
        }
        Ok(left)
    }
}

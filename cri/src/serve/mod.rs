//! `berth serve`: the daemon put together, run, and ended.
//!
//! In order: [`preflight`] what must be so, [`listen`] the sockets, then store, network, execution driver and engine are
//! opened (pods of a previous daemon are found again), then calls are served and readiness is told ([`notify`]). Sockets
//! are bound first, so that a second daemon fails before it touches anything and early clients wait instead of failing.
//! SIGTERM and SIGINT end the daemon and leave containers running; SIGHUP reads the configuration again ([`reload`]).
//!
//! Tasks spawned: on a thread of their own ([`front`]) one per listener ([`listen`]) and one per connection ([`transport`]); those
//! of the streaming server and of the metrics' one, and one that gives memory back. Files owned: the sockets,
//! `<state>/daemon.pid`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::Engine;
use engine::native::Native;
use engine::sys::{footprint, spawn};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::server::sessions::Sessions;
use crate::server::{self, Service};
use crate::streaming;
use crate::telemetry::{self, Telemetry};
use reload::{Reload, SetLog};

pub mod authority;
mod bulk;
pub mod front;
pub mod listen;
pub mod notify;
pub mod preflight;
pub mod reload;
mod socket;
pub mod transport;

/// How long running calls may take to end after SIGTERM; event streams never end by themselves.
const FAREWELL: Duration = Duration::from_secs(3);

/// How long after its start the daemon gives back what it does not need any more.
const SETTLED: Duration = Duration::from_secs(1);

/// How often the daemon looks whether it holds memory for nothing, and how much free heap is worth the work.
const LOOK: Duration = Duration::from_secs(60);
const SPARE: usize = 4 << 20;

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine or the surroundings do not allow it.
    #[error(transparent)]
    Preflight(#[from] preflight::Error),
    /// An endpoint cannot be served.
    #[error(transparent)]
    Listen(#[from] listen::Error),
    /// Those that supervisors are started with.
    #[error("cannot reserve descriptors")]
    Descriptors(#[source] std::io::Error),
    /// The runtime or its signals.
    #[error("cannot start the daemon's threads")]
    Runtime(#[source] std::io::Error),
    /// The image store does not open.
    #[error("cannot open the image store")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What the SELinux policy says of containers makes no sense.
    #[error("cannot read the SELinux policy's labels for containers: {}", .0.chain())]
    Selinux(engine::Error),
    /// The network does not open.
    #[error("cannot open the pod network")]
    Network(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The execution driver does not start.
    #[error("cannot start the execution drivers: {}", .0.chain())]
    Execution(engine::Error),
    /// The engine does not open.
    #[error("cannot read back pods and containers: {}", .0.chain())]
    Engine(engine::Error),
    /// The streaming server does not start.
    #[error(transparent)]
    Streaming(#[from] streaming::StartError),
    /// The daemon's own numbers cannot be served.
    #[error(transparent)]
    Metrics(#[from] telemetry::server::StartError),
}

/// Runs the daemon until a signal ends it.
pub fn main(config: Config, set_log: SetLog) -> Result<(), Error> {
    let started = Instant::now();
    footprint::frugal_heap();
    spawn::reserve().map_err(Error::Descriptors)?;
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let _guard = preflight::check(&release, &config.root, &config.state)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::Runtime)?;
    let outcome = runtime.block_on(Box::pin(run(config, set_log, started)));
    // Blocking work that hangs in a system call must not keep the process from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn run(config: Config, set_log: SetLog, started: Instant) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    let (endpoints, tls) = (config.listen.clone(), config.tls.clone());
    let listeners = blocking(move || listen::bind(&endpoints, tls.as_ref())).await??;
    let engine = open(&config).await?;
    let sessions = Arc::new(Sessions(engine.clone()));
    let streaming = streaming::Server::start(config.streaming, sessions).await?;
    let telemetry = Arc::new(Telemetry::default());
    let mut reload = Reload {
        sources: config.sources,
        set_log,
        engine: engine.clone(),
        streaming: streaming.clone(),
        telemetry: telemetry.clone(),
    };
    let (state, root) = (config.state, config.root);
    let service = Service { engine, streaming: streaming.clone(), state, root, telemetry };

    let stop = CancellationToken::new();
    if let Some(address) = config.metrics {
        telemetry::server::start(address, service.clone(), stop.clone()).await?;
    }
    let mut serving = front::serve(listeners, server::routes(&service), stop.clone())?;
    tracing::info!(after = ?started.elapsed(), "ready");
    notify::ready();
    tokio::spawn(settle());
    while signals.next().await == Wish::Reload {
        reload.reload();
    }
    notify::stopping();
    tracing::info!("ending; containers go on");
    stop.cancel();
    // Calls that do not end in time are cut off.
    let _ = tokio::time::timeout(FAREWELL, &mut serving).await;
    streaming.stop().await;
    blocking(move || service.engine.leave()).await
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// SIGTERM, SIGINT.
    End,
    /// SIGHUP.
    Reload,
}

/// The signals the daemon answers, caught from here on.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, Error> {
        let catch = |kind| signal(kind).map_err(Error::Runtime);
        Ok(Self {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
            hangup: catch(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::End,
            _ = self.interrupt.recv() => Wish::End,
            _ = self.hangup.recv() => Wish::Reload,
        }
    }
}

/// Gives memory back: what only the start needed, when nobody waits for it any more, and what a burst of work leaves free.
async fn settle() {
    tokio::time::sleep(SETTLED).await;
    let mut kept = None;
    loop {
        let spare = footprint::spare();
        kept = match kept {
            Some(kept) if spare < kept + SPARE => Some(spare.min(kept)),
            _ => {
                // It may take a millisecond, for which no call should have to wait.
                let _ = blocking(footprint::give_back).await;
                Some(footprint::spare())
            }
        };
        tokio::time::sleep(LOOK).await;
    }
}

/// Opens the four drivers and the engine on top of them.
async fn open(config: &Config) -> Result<Arc<Engine>, Error> {
    let (mut storage, network) = (config.storage.clone(), config.network.clone());
    let selinux = config.engine.selinux.clone();
    let label =
        blocking(move || selinux.map(|place| engine::selinux::image_label(&place)).transpose()).await?;
    storage.label = label.map_err(Error::Selinux)?.flatten();
    let store = blocking(move || storage::Store::open(storage)).await?.map_err(|e| Error::Store(e.into()))?;
    let network = blocking(move || netplugins::open(network)).await?.map_err(|e| Error::Network(e.into()))?;
    let (native, handlers) = (config.native.clone(), config.handlers.clone());
    let drivers =
        blocking(move || Native::with_runtimes(native, handlers)).await?.map_err(Error::Execution)?;
    Engine::open(config.engine.clone(), store, network, drivers).await.map_err(Error::Engine)
}

/// Drivers open by blocking calls.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::Runtime(std::io::Error::other(e)))
}

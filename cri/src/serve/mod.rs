//! `berth serve`: the daemon put together, run, and ended.
//!
//! In order: [`preflight`] what must be so, [`listen`] the sockets, then store, network, execution driver and engine are
//! opened (pods of a previous daemon are found again), then calls are served and readiness is told ([`notify`]). Sockets
//! are bound first, so that a second daemon fails before it touches anything and early clients wait instead of failing.
//! SIGTERM and SIGINT end the daemon and leave containers running.
//!
//! Tasks spawned: one per listener ([`listen`]), one per connection (hyper), one of the streaming server. Files owned:
//! the sockets, `<state>/daemon.pid`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::Engine;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::server::sessions::Sessions;
use crate::server::{self, Service};
use crate::streaming;

pub mod authority;
pub mod listen;
pub mod notify;
pub mod preflight;

/// How long running calls may take to end after SIGTERM; event streams never end by themselves.
const FAREWELL: Duration = Duration::from_secs(3);

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine or the surroundings do not allow it.
    #[error(transparent)]
    Preflight(#[from] preflight::Error),
    /// An endpoint cannot be served.
    #[error(transparent)]
    Listen(#[from] listen::Error),
    /// The runtime or its signals.
    #[error("cannot start the daemon's threads")]
    Runtime(#[source] std::io::Error),
    /// The image store does not open.
    #[error("cannot open the image store")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The network does not open.
    #[error("cannot open the pod network")]
    Network(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The execution driver does not start.
    #[error("cannot start the native execution driver: {}", .0.chain())]
    Execution(engine::Error),
    /// The engine does not open.
    #[error("cannot read back pods and containers: {}", .0.chain())]
    Engine(engine::Error),
    /// The streaming server does not start.
    #[error(transparent)]
    Streaming(#[from] streaming::StartError),
    /// The transport failed while serving.
    #[error("serving calls failed")]
    Serve(#[source] tonic::transport::Error),
}

/// Runs the daemon until a signal ends it.
pub fn main(config: Config) -> Result<(), Error> {
    let started = Instant::now();
    let _guard = preflight::check(&config.root, &config.state)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::Runtime)?;
    let outcome = runtime.block_on(Box::pin(run(config, started)));
    // Blocking work that hangs in a system call must not keep the process from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn run(config: Config, started: Instant) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Runtime)?;
    let listeners = listen::bind(&config.listen, config.tls.as_ref())?;
    let engine = open(&config).await?;
    let sessions = Arc::new(Sessions(engine.clone()));
    let streaming = streaming::Server::start(config.streaming, sessions).await?;
    let service = Service { engine, streaming: streaming.clone(), state: config.state, root: config.root };

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tonic::transport::Server::builder()
        .add_routes(server::routes(&service))
        .serve_with_incoming_shutdown(listeners.incoming(), async {
            let _ = stopped.await;
        });
    let mut serving = tokio::spawn(serving);
    tracing::info!(after = ?started.elapsed(), "ready");
    notify::ready();
    let early = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        ended = &mut serving => Some(ended),
    };
    notify::stopping();
    tracing::info!("ending; containers go on");
    let ended = match early {
        Some(ended) => Ok(ended),
        None => {
            let _ = stop.send(());
            tokio::time::timeout(FAREWELL, &mut serving).await
        }
    };
    streaming.stop().await;
    match ended {
        Ok(Ok(Err(error))) => Err(Error::Serve(error)),
        // Served to the end, or calls were cut off after their time.
        _ => Ok(()),
    }
}

/// Opens the four drivers and the engine on top of them.
async fn open(config: &Config) -> Result<Arc<Engine>, Error> {
    let (storage, network) = (config.storage.clone(), config.network.clone());
    let store = blocking(move || storage::Store::open(storage)).await?.map_err(|e| Error::Store(e.into()))?;
    let network = blocking(move || netplugins::open(network)).await?.map_err(|e| Error::Network(e.into()))?;
    let native = config.native.clone();
    let native = blocking(move || engine::native::Native::new(native)).await?.map_err(Error::Execution)?;
    Engine::open(config.engine.clone(), store, network, vec![native]).await.map_err(Error::Engine)
}

/// Drivers open by blocking calls.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::Runtime(std::io::Error::other(e)))
}

//! `berth net agent`: keeps the ways to other nodes' pods as the cluster's Nodes say.
//!
//! It runs beside the daemon, with an identity of its own that may list and watch Nodes and nothing else: the daemon needs no
//! key to the API server, and the kubelet's may not see other nodes. In reading order: [`kubeconfig`] (which server, which
//! identity), [`api`] (the two requests), [`nodes`] (what a Node says), and this file, which puts them together with
//! [`netplugins::Mesh`].
//!
//! Tasks: one follows the Nodes; the caller's applies what they say, on a blocking thread. Files: none; what it has made in the
//! kernel stays when it ends, so that it can be replaced while pods talk.

pub mod api;
pub mod kubeconfig;
pub mod nodes;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use netplugins::{Kind, Mesh, Peer};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use api::Api;

/// How long further changes are waited for before one is applied: a new node is told in several.
const SETTLE: Duration = Duration::from_millis(50);
/// How often the kernel is looked at although no Node changed.
const RECONCILE: Duration = Duration::from_secs(10);
const LEAST_PAUSE: Duration = Duration::from_millis(200);
const MOST_PAUSE: Duration = Duration::from_secs(10);

/// All nodes by name, once they are known.
type Nodes = Option<BTreeMap<String, Peer>>;

/// Why the agent ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Signals cannot be received.
    #[error("cannot wait for signals")]
    Signals(#[source] std::io::Error),
    /// The mesh cannot be made.
    #[error("the links cannot be made")]
    Mesh(#[source] netplugins::Error),
}

/// Runs until SIGTERM or SIGINT. `node` is this node's name; links begin with `prefix`.
///
/// # Errors
/// Only what can never get better; everything else is logged and tried again.
pub async fn run(api: Api, node: String, prefix: &str) -> Result<(), Error> {
    let mesh = Arc::new(Mutex::new(Mesh::new(prefix).map_err(Error::Mesh)?));
    let mut ended = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    let (tell, mut told) = watch::channel(None);
    let following = tokio::spawn(follow(api, tell));
    let mut tick = tokio::time::interval(RECONCILE);
    loop {
        tokio::select! {
            _ = ended.recv() => break,
            _ = interrupted.recv() => break,
            changed = told.changed() => {
                if changed.is_err() {
                    break;
                }
                tokio::time::sleep(SETTLE).await;
            }
            _ = tick.tick() => {}
        }
        let nodes = told.borrow_and_update().clone();
        if let Some(nodes) = nodes {
            apply(&mesh, &node, nodes).await;
        }
    }
    following.abort();
    tracing::info!("ended; routes and tunnel stay as they are");
    Ok(())
}

/// Makes the kernel agree; what goes wrong is logged, and tried again at the next change or look.
async fn apply(mesh: &Arc<Mutex<Mesh>>, node: &str, mut nodes: BTreeMap<String, Peer>) {
    let Some(own) = nodes.remove(node) else {
        tracing::warn!(node, "this node is not among the Nodes; is its name right (--node)?");
        return;
    };
    let peers: Vec<Peer> = nodes.into_values().collect();
    let mesh = Arc::clone(mesh);
    let applied = tokio::task::spawn_blocking(move || {
        mesh.lock().unwrap_or_else(PoisonError::into_inner).apply(&own, &peers)
    });
    match applied.await {
        Ok(Ok(changes)) => changes.iter().for_each(|change| tracing::info!("{change}")),
        Ok(Err(error)) if error.kind() == Kind::NotReady => tracing::info!("{error}"),
        Ok(Err(error)) => tracing::error!("{}", error.chain()),
        Err(panic) => tracing::error!("the mesh panicked: {panic}"),
    }
}

/// Lists, watches, and begins again wherever that ends: from the last known version while the server has it. What is known of
/// the nodes stays in force while the server is away.
async fn follow(api: Api, tell: watch::Sender<Nodes>) {
    let mut pause = LEAST_PAUSE;
    loop {
        match api.list().await {
            Ok((mut nodes, mut version)) => {
                tell.send_if_modified(|told| told.replace(nodes.clone()).as_ref() != Some(&nodes));
                pause = LEAST_PAUSE;
                watch_on(&api, &tell, &mut nodes, &mut version).await;
            }
            Err(error) => tracing::warn!("listing Nodes: {}", engine::error::chain(&error)),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MOST_PAUSE);
    }
}

/// Watches from `version` on, again and again, until the server no longer has it.
async fn watch_on(
    api: &Api,
    tell: &watch::Sender<Nodes>,
    nodes: &mut BTreeMap<String, Peer>,
    version: &mut String,
) {
    let mut pause = LEAST_PAUSE;
    loop {
        let mut heard = false;
        let ended = api.watch(version, |event| {
            heard = true;
            if event.apply(nodes) {
                tell.send_replace(Some(nodes.clone()));
            }
        });
        match ended.await {
            Ok(()) => pause = LEAST_PAUSE, // it lasts only as long as it was asked to
            Err(error) => {
                tracing::warn!("watching Nodes: {}", engine::error::chain(&error));
                if error.is_expired() {
                    return;
                }
                pause = if heard { LEAST_PAUSE } else { (pause * 2).min(MOST_PAUSE) };
            }
        }
        tokio::time::sleep(pause).await;
    }
}

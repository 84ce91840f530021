//! The thread that serves calls, with a runtime of its own, goes before all others, in real time where that is allowed: it computes for
//! microseconds, and a kubelet that has to wait takes the node for a sick one.
//!
//! Jobs work for milliseconds between two awaits, and dozens of them may run at once. A List, Status or stats call that had to take
//! turns with them would be late by all of their turns; here it has the thread, and as good as always a processor, at once. What a
//! call starts as a job runs in the runtime in which the engine was opened, and this one only waits for its end; but for ExecSync, of which
//! there is little to compute here (`Job::AT_ONCE`). What blocks for a call
//! (a reading of one container, say) is on threads like all others.

use engine::sys::thread;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::listen::Listeners;
use super::{Error, transport};

/// Serves calls until `stop`; the answer comes when the last one has ended.
pub fn serve(
    listeners: Listeners,
    routes: Routes,
    stop: CancellationToken,
) -> Result<oneshot::Receiver<()>, Error> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
    let (done, ended) = oneshot::channel();
    let serve = move || {
        if let Err(error) = thread::go_first() {
            tracing::debug!(%error, "calls are served by a thread like all others");
        }
        runtime.block_on(transport::serve(listeners, routes, stop));
        let _ = done.send(());
    };
    std::thread::Builder::new().name("calls".into()).spawn(serve).map_err(Error::Runtime)?;
    Ok(ended)
}

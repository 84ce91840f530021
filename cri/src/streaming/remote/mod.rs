//! A command's streams, whatever carries them: exec and attach.
//!
//! Bytes go straight between the client's connection and the process; nothing is kept but one buffer per direction. At
//! the end the outputs are ended first, then the status document says how it went, and only then the connection is
//! closed, since clients read in that order.

pub(super) mod channels;
pub(super) mod spdy;

#[cfg(test)]
mod tests;

use std::io;
use std::pin::pin;
use std::time::Duration;

use engine::api::{Reader, Session, Writer};
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{unconstrained, yield_now};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::conduit::Outflow;
use super::handshake::Version;
use super::pipe::{Outlet, Size};
use super::request::{Request, Streams};
use super::server::Shared;
use super::session::SessionError;
use super::status::Outcome;

/// First and largest size of an output buffer: an idle session needs little, a busy one grows it.
const SMALL: usize = 4 << 10;
const LARGE: usize = 64 << 10;
/// How long outputs may be silent after the command has ended: something it left behind may hold them open for ever.
const SILENCE: Duration = Duration::from_secs(2);
/// Output of a container that may wait for an attached client. The container does not: when there is more, the client is
/// let go of.
const ATTACH_BACKLOG: usize = 1 << 20;
/// Least time between two terminal sizes handed on; only the latest one counts.
const RESIZE_PAUSE: Duration = Duration::from_millis(10);

/// The client's ends of a command's streams.
pub(super) struct Wires {
    pub(super) version: Version,
    pub(super) stdin: Option<Outflow>,
    pub(super) sizes: Option<watch::Receiver<Size>>,
    pub(super) stdout: Option<Outlet>,
    pub(super) stderr: Option<Outlet>,
    pub(super) error: Outlet,
}

/// "Once `after` has happened, silence for `limit` is the end."
#[derive(Clone, Debug)]
pub(super) struct Quiet {
    pub(super) after: CancellationToken,
    pub(super) limit: Duration,
}

/// Runs the command, or joins it, and tells the client how it ended.
pub(super) async fn run(shared: &Shared, request: Request, mut wires: Wires) -> Result<(), SessionError> {
    let stop = async {
        shared.stop.cancelled().await;
        Outcome::Failed("the container runtime is shutting down".to_owned())
    };
    let behind = CancellationToken::new();
    let outcome = tokio::select! {
        outcome = conduct(shared, request, &mut wires, &behind) => outcome,
        outcome = stop => outcome,
        () = behind.cancelled() => return Err(SessionError::Behind(ATTACH_BACKLOG)),
    };
    for outlet in [&mut wires.stdout, &mut wires.stderr].into_iter().flatten() {
        outlet.finish().await.map_err(SessionError::Write)?;
    }
    let document = outcome.document(wires.version);
    if !document.is_empty() {
        wires.error.say(&document).await.map_err(SessionError::Write)?;
    }
    wires.error.finish().await.map_err(SessionError::Write)
}

/// `behind` is cancelled when an attached client does not keep up.
async fn conduct(
    shared: &Shared,
    request: Request,
    wires: &mut Wires,
    behind: &CancellationToken,
) -> Outcome {
    let attach = matches!(request, Request::Attach(_));
    let behind = attach.then_some(behind);
    let began = match request {
        Request::Exec(exec) => shared.sessions.exec(exec).await,
        Request::Attach(attach) => shared.sessions.attach(attach).await,
        Request::PortForward { .. } => Err(engine::Error::invalid("request", "a port is not a command")),
    };
    let ended = match began {
        Ok(session) => join(session, wires, behind).await,
        Err(error) => Err(error),
    };
    match ended {
        // The container's end is the end attach waits for, whatever its code.
        Ok(_) if attach => Outcome::Exit(0),
        Ok(code) => Outcome::Exit(code),
        Err(error) if attach => Outcome::Failed(format!("error attaching to container: {}", error.chain())),
        Err(error) => Outcome::Failed(format!("error executing command in container: {}", error.chain())),
    }
}

/// Moves bytes both ways until the command has ended and its output is out. Returns its exit code.
async fn join(
    session: Session,
    wires: &mut Wires,
    behind: Option<&CancellationToken>,
) -> Result<i32, engine::Error> {
    let Session { stdin, stdout, stderr, resize, exit } = session;
    let exited = CancellationToken::new();
    let quiet = Quiet { after: exited.clone(), limit: SILENCE };
    let exit = async {
        let result = exit.await;
        exited.cancel();
        result
    };
    // Attached to a container that closed its outputs and goes on, or let go of by its supervisor because we were late: nothing comes
    // any more. A command's exit is always waited for.
    let attached = behind.is_some() && (stdout.is_some() || stderr.is_some());
    let patience = if attached { SILENCE } else { Duration::MAX };
    let outputs = async {
        tokio::join!(
            output(stdout, &mut wires.stdout, &quiet, behind),
            output(stderr, &mut wires.stderr, &quiet, behind)
        );
    };
    let outward = async {
        let (mut exit, mut outputs) = (pin!(exit), pin!(outputs));
        tokio::select! {
            result = &mut exit => {
                outputs.await;
                result
            }
            () = &mut outputs => match timeout(patience, exit).await {
                Ok(result) => result,
                Err(_) => Err(engine::Error::new(engine::Kind::Unavailable, "its output ended before it did")),
            },
        }
    };
    let stdin = async {
        if let (Some(from), Some(to)) = (wires.stdin.take(), stdin) {
            from.carry(to).await;
        }
    };
    let inward = async {
        tokio::join!(stdin, resizes(wires.sizes.take(), resize));
        std::future::pending::<std::convert::Infallible>().await
    };
    tokio::select! {
        result = outward => result.map(|exit| exit.code),
        never = inward => match never {},
    }
}

async fn output(
    from: Option<Reader>,
    to: &mut Option<Outlet>,
    quiet: &Quiet,
    behind: Option<&CancellationToken>,
) {
    let Some(to) = to else { return };
    // The process's end of a broken stream is closed by dropping ours; how the command ends tells the rest.
    match (from, behind) {
        (Some(mut from), None) => drop(pump(&mut from, to, quiet).await),
        (Some(from), Some(behind)) => {
            let (queue, waiting) = tokio::io::duplex(ATTACH_BACKLOG);
            let mut waiting: Reader = Box::new(waiting);
            tokio::join!(gather(from, queue, behind), pump(&mut waiting, to, quiet)).1.ok();
        }
        (None, _) => {}
    }
    let _ = to.finish().await;
}

/// Reads what a container writes as it comes, and queues it. Ends with the output, or when the queue is full.
async fn gather(mut from: Reader, mut queue: DuplexStream, behind: &CancellationToken) {
    let mut buffer = vec![0; SMALL];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        // Outside the scheduler's budget, so that "not now" means a full queue and nothing else.
        match unconstrained(queue.write_all(&buffer[..read])).now_or_never() {
            Some(Ok(())) => {}
            // The client's side has ended by itself.
            Some(Err(_)) => return,
            None => return behind.cancel(),
        }
        if read == buffer.len() && read < LARGE {
            buffer.resize(2 * read, 0);
        }
        // A container that always has more would fill the queue before its other end is looked at even once.
        yield_now().await;
    }
}

/// Copies until the end of `from`. A read error is the end as well: a terminal reports one when its last user leaves.
pub(super) async fn pump(from: &mut Reader, to: &mut Outlet, quiet: &Quiet) -> io::Result<()> {
    let head = to.headroom();
    let mut buffer = vec![0; head + SMALL];
    loop {
        let silence = async {
            quiet.after.cancelled().await;
            sleep(quiet.limit).await;
        };
        let read = tokio::select! {
            biased;
            read = from.read(&mut buffer[head..]) => read.unwrap_or(0),
            () = silence => 0,
        };
        if read == 0 {
            return Ok(());
        }
        to.send(&mut buffer[..head + read]).await?;
        if head + read == buffer.len() && read < LARGE {
            buffer.resize(head + 2 * read, 0);
        }
    }
}

/// Copies until the end of `from`, and closes `to` then.
pub(super) async fn feed(mut from: DuplexStream, mut to: Writer) {
    let mut buffer = vec![0; SMALL];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..read]).await.is_err() || to.flush().await.is_err() {
            return;
        }
        if read == buffer.len() && read < LARGE {
            buffer.resize(2 * read, 0);
        }
    }
    // Whoever reads may have closed it first.
    let _ = to.shutdown().await;
}

async fn resizes(sizes: Option<watch::Receiver<Size>>, resize: mpsc::UnboundedSender<Size>) {
    let Some(mut sizes) = sizes else { return };
    while sizes.changed().await.is_ok() {
        let size = *sizes.borrow_and_update();
        if resize.send(size).is_err() {
            return;
        }
        sleep(RESIZE_PAUSE).await;
    }
}

/// Whether the client sends terminal sizes.
pub(super) fn resizable(streams: Streams, version: Version) -> bool {
    streams.tty && version >= Version::V3
}

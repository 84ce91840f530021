//! ExecSync.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use crate::api::ExecOutput;
use crate::exec::Exec;
use crate::job::{Cx, Job};
use crate::streams::{self, Pipe, Wanted};
use crate::{Engine, Error, Kind, sys};

/// Runs a command in a running container and waits for it. Each call is a process of its own.
#[derive(Clone, Debug)]
pub struct ExecSync {
    /// Container id or unique prefix.
    pub container: String,
    /// argv.
    pub command: Vec<String>,
    /// The command is killed after this time; `None`: never.
    pub timeout: Option<Duration>,
}

/// Most bytes of each stream that are kept; the rest is read and dropped (CVE-2022-1708, CVE-2022-31030).
pub const CAP: usize = 16 << 20;
/// Who says more than a probe does is listened to by the threads that do the work, for as long as it takes: the one that answers calls has
/// others to answer, and goes before everybody else on the node.
const PROBE: usize = 64 << 10;

impl Job for ExecSync {
    const NAME: &'static str = "ExecSync";
    const AT_ONCE: bool = true;
    type Output = ExecOutput;

    fn subject(&self) -> String {
        self.container.clone()
    }

    async fn run(self, engine: Arc<Engine>, cx: Cx) -> Result<ExecOutput, Error> {
        let (pod, container) = engine.container_state(&self.container)?;
        let supervisor = pod.supervisor()?;
        let wanted = Wanted { stdin: false, stdout: true, stderr: true, tty: false, until_end: true };
        let exec = cx.step("start", streams::start_exec(&pod, &container, &self.command, wanted)).await?;
        let (number, drain) = (exec.id, engine.config().exec_drain);
        let error = tokio::select! {
            output = cx.step("run", collect(exec, drain, engine.workers())) => return output,
            error = timeout(self.timeout) => error,
            error = cx.ended(Some(Duration::ZERO)) => error,
        };
        cx.undo().push("kill", async move { supervisor.kill_exec(&container.record.id, number).await });
        Err(error)
    }
}

async fn timeout(after: Option<Duration>) -> Error {
    let Some(after) = after else { return std::future::pending().await };
    tokio::time::sleep(after).await;
    Error::new(Kind::DeadlineExceeded, format!("the command was killed: timeout of {after:?} exceeded"))
}

/// Reads both streams to their end, or until `drain` after the end of the process: processes it left behind may hold
/// them open for ever, while all that it wrote itself can be read at once.
async fn collect(exec: Exec, drain: Duration, workers: &Handle) -> Result<ExecOutput, Error> {
    let (out, err) = (Kept::default(), Kept::default());
    let exit = {
        let mut end = exec.exit;
        let streams = async {
            tokio::try_join!(
                gather(exec.stdio.stdout, &out, workers),
                gather(exec.stdio.stderr, &err, workers)
            )
        };
        tokio::pin!(streams);
        tokio::select! {
            read = &mut streams => read.and(end.await)?,
            exit = &mut end => {
                let _ = tokio::time::timeout(drain, &mut streams).await;
                exit?
            }
        }
    };
    Ok(ExecOutput { stdout: out.take(), stderr: err.take(), code: exit.code })
}

/// What a stream has brought so far.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

/// Reads a stream to its end.
async fn gather(stream: Option<OwnedFd>, kept: &Kept, workers: &Handle) -> Result<(), Error> {
    let Some(stream) = stream else { return Ok(()) };
    let mut pipe = Pipe::new(stream)?;
    if !kept.read(&mut pipe, PROBE).await {
        sys::later(|| drop(pipe));
        return Ok(());
    }
    let (stream, kept) = (pipe.into_fd(), kept.clone());
    let rest = async move {
        kept.read(&mut Pipe::new(stream)?, usize::MAX).await;
        Ok(())
    };
    let rest = AbortOnDropHandle::new(workers.spawn(rest));
    rest.await.map_err(|e| Error::with(Kind::Internal, "the output was not read", e))?
}

impl Kept {
    /// Keeps the first [`CAP`] bytes and drops the rest, so that the process never waits for us. Whether there may be more after `most`
    /// bytes.
    async fn read(&self, stream: &mut Pipe, most: usize) -> bool {
        let mut buffer = vec![0; 32 << 10];
        let mut left = most;
        // A read error is the end of the stream; what has been read stands.
        while left > 0
            && let Ok(count @ 1..) = stream.read(&mut buffer).await
        {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let room = CAP - kept.len();
            kept.extend_from_slice(&buffer[..count.min(room)]);
            left = left.saturating_sub(count);
        }
        left == 0
    }

    fn take(self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

//! ExecSync.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::api::ExecOutput;
use crate::exec::Exec;
use crate::job::{Cx, Job};
use crate::streams::{self, Pipe, Wanted};
use crate::{Engine, Error, Kind};

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
            output = cx.step("run", collect(exec, drain)) => return output,
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
async fn collect(exec: Exec, drain: Duration) -> Result<ExecOutput, Error> {
    let stdout = exec.stdio.stdout.map(Pipe::new).transpose()?;
    let stderr = exec.stdio.stderr.map(Pipe::new).transpose()?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = {
        let mut end = exec.exit;
        let streams = async { tokio::join!(gather(stdout, &mut out), gather(stderr, &mut err)) };
        tokio::pin!(streams);
        tokio::select! {
            _ = &mut streams => end.await?,
            exit = &mut end => {
                let _ = tokio::time::timeout(drain, &mut streams).await;
                exit?
            }
        }
    };
    Ok(ExecOutput { stdout: out, stderr: err, code: exit.code })
}

/// Keeps the first [`CAP`] bytes and drops the rest, so that the process never waits for us.
async fn gather(stream: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut buffer = vec![0; 32 << 10];
    // A read error is the end of the stream; what has been read stands.
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let room = CAP - kept.len();
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
}

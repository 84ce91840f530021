//! How administrators' commands reach the daemon.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use super::args::{Arg, Args, Error};
use super::{USAGE, chain, complain, fail};
use crate::config::DEFAULT_LISTEN;

/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What every administrators' command takes.
#[derive(Clone, Debug)]
pub(super) struct Command {
    /// `unix:///…`
    pub(super) address: String,
    /// `--json`: for programs.
    pub(super) json: bool,
    /// Operands.
    pub(super) operands: Vec<String>,
}

/// Reads `--address`, `--json` and operands; `None`: help was asked for.
pub(super) fn parse(mut args: Args) -> Result<Option<Command>, Error> {
    let address = std::env::var("BERTH_ADDRESS").unwrap_or_else(|_| DEFAULT_LISTEN.into());
    let mut command = Command { address, json: false, operands: Vec::new() };
    while let Some(arg) = args.take()? {
        match arg {
            Arg::Operand(text) => command.operands.push(text),
            Arg::Option(name, inline) => match name.as_str() {
                "--address" => command.address = args.value(&name, inline)?,
                "--json" if inline.is_none() => command.json = true,
                "--json" => return Err(Error::NoValue(name)),
                "-h" | "--help" => return Ok(None),
                _ => return Err(Error::Unknown(name)),
            },
        }
    }
    Ok(Some(command))
}

/// Complains about a command line.
pub(super) fn usage(verb: &str, error: &dyn std::fmt::Display) -> ExitCode {
    complain(format_args!("{verb}: {error}; `berth {verb} --help` tells more"));
    ExitCode::from(USAGE)
}

/// Connects; the error is a sentence that says what to do.
pub(super) async fn connect(address: &str) -> Result<Channel, String> {
    let Some(path) = address.strip_prefix("unix://") else {
        return Err(format!("{address}: expected unix:///PATH"));
    };
    if !Path::new(path).exists() {
        return Err(format!(
            "{path} does not exist: is `berth serve` running? --address names another socket"
        ));
    }
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|e| chain(&e))?;
    let endpoint = endpoint.connect_timeout(PATIENCE);
    endpoint.connect().await.map_err(|e| format!("cannot connect to {path}: {}", chain(&e)))
}

/// Runs a command on a runtime of its own.
pub(super) fn block_on(work: impl Future<Output = Result<(), String>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(error),
    };
    match runtime.block_on(work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error),
    }
}

/// A refused call as a sentence.
pub(super) fn refused(status: &tonic::Status) -> String {
    status.message().to_owned()
}

//! How administrators' commands reach the daemon.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use super::args::{Arg, Args, Error};
use super::{USAGE, chain, complain, fail};
use crate::config::DEFAULT_LISTEN;

/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What an administrators' command was given.
#[derive(Clone, Debug, Default)]
pub(super) struct Command {
    /// `unix:///…`
    pub(super) address: String,
    /// `--json`: for programs.
    pub(super) json: bool,
    /// Operands.
    pub(super) operands: Vec<String>,
    /// The command's own options; a switch has an empty value.
    pub(super) options: BTreeMap<String, String>,
}

/// An option of one command, beside those that all have.
#[derive(Clone, Copy, Debug)]
pub(super) enum Known {
    /// `--name VALUE`
    Value(&'static str),
    /// `--name`
    Switch(&'static str),
}

// === impl Command ===

impl Command {
    /// The value of an option, if it was given.
    pub(super) fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    /// Operands, of which there must be some.
    pub(super) fn named(&self, what: &str) -> Result<&[String], String> {
        if self.operands.is_empty() {
            Err(format!("expected the name of {what}"))
        } else {
            Ok(&self.operands)
        }
    }
}

/// Reads `--address`, `--json` and operands; `None`: help was asked for.
pub(super) fn parse(args: Args) -> Result<Option<Command>, Error> {
    parse_with(args, &[])
}

/// [`parse`] with options of the command's own.
pub(super) fn parse_with(mut args: Args, known: &[Known]) -> Result<Option<Command>, Error> {
    let address = std::env::var("BERTH_ADDRESS").unwrap_or_else(|_| DEFAULT_LISTEN.into());
    let mut command = Command { address, ..Command::default() };
    while let Some(arg) = args.take()? {
        let (name, inline) = match arg {
            Arg::Operand(text) => {
                command.operands.push(text);
                continue;
            }
            Arg::Option(name, inline) => (name, inline),
        };
        match name.as_str() {
            "--address" => command.address = args.value(&name, inline)?,
            "--json" if inline.is_none() => command.json = true,
            "--json" => return Err(Error::NoValue(name)),
            "-h" | "--help" => return Ok(None),
            own => {
                match known.iter().find(|k| matches!(k, Known::Value(n) | Known::Switch(n) if *n == own)) {
                    Some(Known::Value(_)) => {
                        let value = args.value(&name, inline)?;
                        command.options.insert(name, value);
                    }
                    Some(Known::Switch(_)) if inline.is_some() => return Err(Error::NoValue(name)),
                    Some(Known::Switch(_)) => {
                        command.options.insert(name, String::new());
                    }
                    None => return Err(Error::Unknown(name)),
                }
            }
        }
    }
    Ok(Some(command))
}

/// What a command does, once its line is read.
pub(super) type Work = std::pin::Pin<Box<dyn Future<Output = Result<(), String>>>>;

/// Reads a command line and does what it says.
pub(super) fn run(
    verb: &str,
    help: &str,
    args: Args,
    known: &[Known],
    work: fn(Command) -> Work,
) -> ExitCode {
    match parse_with(args, known) {
        Ok(Some(command)) => block_on(work(command)),
        Ok(None) => super::say(help),
        Err(error) => usage(verb, &error),
    }
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
    match status.message() {
        "" => format!("the daemon answered {:?} and gave no reason", status.code()),
        message => message.to_owned(),
    }
}

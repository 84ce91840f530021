//! `berth version`.

use std::process::ExitCode;

use super::args::Args;
use super::connect::{block_on, connect, parse, usage};
use super::say;
use crate::proto::VersionRequest;
use crate::proto::runtime_service_client::RuntimeServiceClient;

const HELP: &str = "\
usage: berth version [--address unix:///PATH]

Prints the version of this program, and that of the daemon when one answers.
";

pub(super) fn main(args: Args) -> ExitCode {
    let command = match parse(args) {
        Ok(Some(command)) => command,
        Ok(None) => return say(HELP),
        Err(error) => return usage("version", &error),
    };
    say(format_args!("berth   {}\n", env!("CARGO_PKG_VERSION")));
    block_on(async {
        let line = match connect(&command.address).await {
            Ok(channel) => {
                match RuntimeServiceClient::new(channel).version(VersionRequest::default()).await {
                    Ok(answer) => {
                        let answer = answer.into_inner();
                        format!("daemon  {} {}", answer.runtime_name, answer.runtime_version)
                    }
                    Err(status) => format!("daemon  {}", status.message()),
                }
            }
            Err(why) => format!("daemon  none ({why})"),
        };
        say(format_args!("{line}\n"));
        Ok(())
    })
}

//! `berth net`: the way to the pods of other nodes.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use super::args::{Arg, Args, Error};
use super::connect::usage;
use super::{chain, fail, say};
use crate::agent::api::Api;
use crate::agent::kubeconfig::Access;

const HELP: &str = "\
usage: berth net agent [OPTIONS]   keeps routes and tunnel to other nodes' pods, as the cluster's Nodes say
       berth net clear [OPTIONS]   removes them

  --kubeconfig FILE  the API server, and an identity that may list and watch nodes; without it, the pod's service account
  --node NAME        name of this Node (default: $NODE_NAME, else the host name)
  --link-prefix P    start of link names, as in the daemon's configuration (default berth)
  --log FILTER       error, warn, info, debug, trace (default info)
  -h, --help         this text

The agent may end at any time: what it has made stays, and its successor goes on from there.
";

/// The command line.
struct Options {
    verb: String,
    kubeconfig: Option<PathBuf>,
    node: Option<String>,
    prefix: String,
    log: String,
}

pub(super) fn main(args: Args) -> ExitCode {
    let options = match parse(args) {
        Ok(Some(options)) => options,
        Ok(None) => return say(HELP),
        Err(error) => return usage("net", &error),
    };
    match options.verb.as_str() {
        "agent" => agent(options),
        "clear" => match netplugins::Mesh::new(&options.prefix).and_then(|mut mesh| mesh.clear()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(error.chain()),
        },
        _ => usage("net", &"expected agent or clear"),
    }
}

fn parse(mut args: Args) -> Result<Option<Options>, Error> {
    let mut options = Options {
        verb: String::new(),
        kubeconfig: None,
        node: std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty()),
        prefix: "berth".into(),
        log: "info".into(),
    };
    while let Some(arg) = args.take()? {
        match arg {
            Arg::Operand(verb) if options.verb.is_empty() => options.verb = verb,
            Arg::Operand(text) => return Err(Error::Unexpected(text)),
            Arg::Option(name, inline) => match name.as_str() {
                "-h" | "--help" => return Ok(None),
                "--kubeconfig" => options.kubeconfig = Some(args.value(&name, inline)?.into()),
                "--node" => options.node = Some(args.value(&name, inline)?),
                "--link-prefix" => options.prefix = args.value(&name, inline)?,
                "--log" => options.log = args.value(&name, inline)?,
                _ => return Err(Error::Unknown(name)),
            },
        }
    }
    Ok(Some(options))
}

fn agent(options: Options) -> ExitCode {
    let filter = match tracing_subscriber::EnvFilter::try_new(&options.log) {
        Ok(filter) => filter,
        Err(error) => return fail(format_args!("--log \"{}\": {error}", options.log)),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let access = match &options.kubeconfig {
        Some(file) => Access::from_file(file),
        None => Access::of_pod(),
    };
    let api = match access.map_err(|e| chain(&e)).and_then(|a| Api::new(a).map_err(|e| chain(&e))) {
        Ok(api) => api,
        Err(why) => return fail(why),
    };
    let node = options
        .node
        .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase());
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(format_args!("cannot start: {error}")),
    };
    match runtime.block_on(crate::agent::run(api, node, &options.prefix)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(chain(&error)),
    }
}

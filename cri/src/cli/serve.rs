//! `berth serve`: flags, logging, and the daemon's errors for a person.

use std::io::IsTerminal;
use std::process::ExitCode;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, reload};

use super::args::{Arg, Args, Error};
use super::{USAGE, chain, complain, fail, say};
use crate::config::{Config, Flags};
use crate::serve::reload::SetLog;

const HELP: &str = "\
usage: berth serve [OPTIONS]

Runs the daemon. No option and no configuration file is needed.

  --listen ENDPOINT  serve the CRI there; may be repeated
                       unix:///PATH          a socket, 0660 (default unix:///run/berth/berth.sock, where only root gets to)
                       tcp://ADDRESS:PORT    with mutual TLS only, see [tls] in the configuration
                       fd://                 sockets of systemd socket activation
  --root DIR         images, layers, pod records: what survives a reboot (default /var/lib/berth)
  --state DIR        sockets and supervisors: what does not (default /run/berth)
  --config FILE      configuration (default /etc/berth/config.toml, and conf.d/*.toml beside it)
  --log FILTER       error, warn, info, debug, trace, or per part as in \"engine=debug,info\" (default info)
  --check            read the configuration, say whether it is good, and end; what it names is looked for at start only
  -h, --help         this text

SIGTERM ends the daemon and leaves containers running; the next start finds them again. SIGHUP reads the configuration
again: deploy/config.toml marks what takes effect without a restart.
";

pub(super) fn main(args: Args) -> ExitCode {
    let (flags, check) = match parse(args) {
        Ok(Some(parsed)) => parsed,
        Ok(None) => return say(HELP),
        Err(error) => {
            complain(format_args!("serve: {error}; `berth serve --help` lists the options"));
            return ExitCode::from(USAGE);
        }
    };
    let config = match Config::load(&flags) {
        Ok(config) => config,
        Err(error) => return fail(chain(&error)),
    };
    let filter = match EnvFilter::try_new(own_words(&config.log)) {
        Ok(filter) => filter,
        Err(error) => return fail(format_args!("log: \"{}\": {error}", config.log)),
    };
    if check {
        return say("the configuration is good\n");
    }
    let set_log = start_log(filter);
    match crate::serve::main(config, set_log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(chain(&error)),
    }
}

/// Starts logging; what it returns changes the filter later.
fn start_log(filter: EnvFilter) -> SetLog {
    let (filter, handle) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(filter).with(lines).init();
    Box::new(move |text| {
        let filter = EnvFilter::try_new(own_words(text)).map_err(|error| format!("\"{text}\": {error}"))?;
        handle.reload(filter).map_err(|error| error.to_string())
    })
}

/// A bare level is meant for what this program says; the transport below it speaks of every frame.
fn own_words(filter: &str) -> String {
    match filter {
        "debug" | "trace" => {
            format!("{filter},h2=info,hyper=info,hyper_util=info,rustls=info,tonic=info,tower=info")
        }
        filter => filter.to_owned(),
    }
}

/// The flags and whether only to check; `None`: help was asked for.
fn parse(mut args: Args) -> Result<Option<(Flags, bool)>, Error> {
    let mut flags = Flags::default();
    let mut check = false;
    while let Some(arg) = args.take()? {
        let (name, inline) = match arg {
            Arg::Option(name, inline) => (name, inline),
            Arg::Operand(text) => return Err(Error::Unexpected(text)),
        };
        match name.as_str() {
            "--listen" => flags.listen.push(args.value(&name, inline)?),
            "--root" => flags.root = Some(args.value(&name, inline)?.into()),
            "--state" => flags.state = Some(args.value(&name, inline)?.into()),
            "--config" => flags.config = Some(args.value(&name, inline)?.into()),
            "--log" => flags.log = Some(args.value(&name, inline)?),
            "--check" if inline.is_none() => check = true,
            "--check" => return Err(Error::NoValue(name)),
            "-h" | "--help" => return Ok(None),
            _ => return Err(Error::Unknown(name)),
        }
    }
    Ok(Some((flags, check)))
}

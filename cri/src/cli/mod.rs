//! The one binary and its roles, chosen by argv[0] or the first argument.
//!
//! | argument | role | in |
//! |---|---|---|
//! | `serve` | the daemon | [`crate::serve`] |
//! | `podd` | supervisor of a pod | `engine` |
//! | `cni`, or argv[0] of a plugin | a CNI executable | `netplugins` |
//! | `net` | the ways to other nodes' pods | [`crate::agent`] |
//! | `oci`, or argv[0] `runc` | an OCI runtime command line | `engine` |
//! | `try` | the main job on a private daemon | [`crate::trial`] |
//! | `version`, `jobs`, `job`, `images`, `pull`, `push`, `save`, … | for administrators | here |
//!
//! Roles that must stay single-threaded are entered before anything else happens.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

pub mod archive;
pub mod args;
pub mod cni;
pub mod connect;
pub mod images;
pub mod jobs;
pub mod login;
pub mod net;
pub mod progress;
pub mod registry;
pub mod serve;
pub mod upkeep;
pub mod version;

use args::Args;
use engine::error::chain;

/// Exit code for a command line that makes no sense (sysexits(3), EX_USAGE).
pub const USAGE: u8 = 64;

const HELP: &str = "\
berth: a Kubernetes node runtime in one binary

usage: berth COMMAND [OPTIONS]

  serve                 run the daemon (the CRI on unix:///run/berth/berth.sock)
  try [IMAGE [CMD...]]  run the main job against a private daemon in a temporary directory

  version               versions of this program and of the daemon
  jobs                  running and recent jobs of the daemon
  job ID                one job, its steps drawn as a waterfall

  images                images of the daemon
  pull IMAGE...         pull images
  rmi IMAGE...          remove images
  tag IMAGE NAME        give an image another name
  push IMAGE [NAME]     send an image to a registry
  save IMAGE...         write images as an archive or an OCI layout
  load                  take in the images of an archive or an OCI layout
  search TERM           ask a registry what it has
  inspect IMAGE         everything known of an image
  fsck                  read every layer again, compare it with its digest, and repair it
  gc                    remove images nobody needs, and what broken pulls have left

  oci COMMAND           be an OCI runtime with runc's command line (also by the name runc as argv[0])

  cni install DIR       make the built-in network plugins CNI executables in DIR
  cni PLUGIN            be a CNI plugin (also by the plugin's name as argv[0])

  net agent             keep the ways to other nodes' pods, as the cluster's Nodes say
  net clear             remove them

berth COMMAND --help tells the options of a command. Those that ask the daemon take --address unix:///PATH as well (default
$BERTH_ADDRESS, else unix:///run/berth/berth.sock).
";

/// Runs the role that the arguments name.
pub fn main(argv: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut argv = argv.into_iter();
    let name = argv.next().unwrap_or_default();
    let arguments: Vec<OsString> = argv.collect();
    if let Some(role) = by_name(&name, &arguments) {
        return role;
    }
    let Some((command, rest)) = arguments.split_first() else {
        complain(HELP.trim_end());
        return ExitCode::from(USAGE);
    };
    match command.to_str().unwrap_or_default() {
        // Single-threaded roles.
        "podd" => engine::exec::podd::main(rest.iter().cloned()),
        "oci" => engine::oci::main(rest),
        "serve" => serve::main(Args::new(rest)),
        "version" | "--version" | "-V" => version::main(Args::new(rest)),
        "images" => images::list(Args::new(rest)),
        "pull" => images::pull(Args::new(rest)),
        "rmi" => images::remove(Args::new(rest)),
        "save" => archive::save(Args::new(rest)),
        "load" => archive::load(Args::new(rest)),
        "push" => registry::push(Args::new(rest)),
        "tag" => registry::tag(Args::new(rest)),
        "search" => registry::search(Args::new(rest)),
        "inspect" => upkeep::inspect(Args::new(rest)),
        "fsck" => upkeep::fsck(Args::new(rest)),
        "gc" => upkeep::gc(Args::new(rest)),
        "cni" => cni::main(Args::new(rest)),
        "net" => net::main(Args::new(rest)),
        "jobs" => jobs::list(Args::new(rest)),
        "job" => jobs::show(Args::new(rest)),
        "try" => trial(rest, crate::trial::main),
        "help" | "--help" | "-h" => say(HELP),
        _ => match trial_role(&arguments) {
            Some(code) => code,
            None => unknown(&command.to_string_lossy()),
        },
    }
}

/// Roles taken from argv[0]: the name under which another program calls us.
fn by_name(name: &OsString, arguments: &[OsString]) -> Option<ExitCode> {
    let name = std::path::Path::new(name).file_name()?.to_str()?;
    match name {
        "runc" => Some(engine::oci::main(arguments)),
        name => netplugins::cni_main(name, cni::make_tap),
    }
}

fn trial(rest: &[OsString], main: fn(&[String]) -> ExitCode) -> ExitCode {
    match strings(rest) {
        Ok(rest) => main(&rest),
        Err(argument) => fail(format_args!("{argument} is not UTF-8")),
    }
}

fn trial_role(arguments: &[OsString]) -> Option<ExitCode> {
    crate::trial::inside(&strings(arguments).ok()?)
}

fn strings(arguments: &[OsString]) -> Result<Vec<String>, String> {
    let string = |a: &OsString| a.to_str().map(str::to_owned).ok_or_else(|| a.to_string_lossy().into_owned());
    arguments.iter().map(string).collect()
}

fn unknown(command: &str) -> ExitCode {
    complain(format_args!("{command} is no command of berth; `berth --help` lists them"));
    ExitCode::from(USAGE)
}

/// Prints to standard output; a closed pipe is no error.
pub(crate) fn say(text: impl Display) -> ExitCode {
    let _ = write!(std::io::stdout(), "{text}");
    ExitCode::SUCCESS
}

/// Prints one line to standard error.
pub(crate) fn complain(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "berth: {text}");
}

/// Prints one line of what goes on to standard error.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Complains and fails.
pub(crate) fn fail(text: impl Display) -> ExitCode {
    complain(text);
    ExitCode::FAILURE
}

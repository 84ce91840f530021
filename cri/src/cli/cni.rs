//! `berth cni`: the built-in plugins as CNI executables.

use std::path::Path;
use std::process::ExitCode;

use netplugins::CNI_PLUGINS;

use super::args::{Arg, Args, Error};
use super::connect::usage;
use super::{chain, fail, say};

const HELP: &str = "\
usage: berth cni install DIR   makes DIR/PLUGIN a link to this program for every built-in plugin
       berth cni list          names the built-in plugins
       berth cni PLUGIN        acts as that plugin: CNI_* variables, configuration on standard input

Under the name of a plugin (as argv[0]) this program is that plugin.
";

pub(super) fn main(args: Args) -> ExitCode {
    let operands = match parse(args) {
        Ok(Some(operands)) => operands,
        Ok(None) => return say(HELP),
        Err(error) => return usage("cni", &error),
    };
    match operands.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["list"] => say(CNI_PLUGINS.map(|name| format!("{name}\n")).concat()),
        ["install", directory] => install(Path::new(directory)),
        [plugin] => netplugins::cni_main(plugin, make_tap).unwrap_or_else(|| {
            let known = CNI_PLUGINS.join(", ");
            usage("cni", &format_args!("{plugin} is no built-in plugin; there are {known}"))
        }),
        _ => usage("cni", &"expected install DIR, list, or the name of a plugin"),
    }
}

/// The one thing that plugins do by an ioctl.
///
/// # Errors
/// The kernel's.
pub fn make_tap(tap: &netplugins::Tap) -> std::io::Result<()> {
    engine::sys::tap::make(&tap.name, tap.multi_queue, tap.owner, tap.group)
}

fn parse(mut args: Args) -> Result<Option<Vec<String>>, Error> {
    let mut operands = Vec::new();
    while let Some(arg) = args.take()? {
        match arg {
            Arg::Operand(text) => operands.push(text),
            Arg::Option(name, _) if name == "-h" || name == "--help" => return Ok(None),
            Arg::Option(name, _) => return Err(Error::Unknown(name)),
        }
    }
    Ok(Some(operands))
}

fn install(directory: &Path) -> ExitCode {
    let installed = std::env::current_exe()
        .map_err(|e| format!("cannot tell where this program is: {e}"))
        .and_then(|program| netplugins::install_cni(directory, &program).map_err(|e| chain(&e)));
    match installed {
        Ok(links) => say(links.iter().map(|link| format!("{}\n", link.display())).collect::<String>()),
        Err(why) => fail(why),
    }
}

//! Address management by another plugin, built in or executed.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Answer, Command, Refusal, Request, code};
use crate::cni::config::at_least;
use crate::cni::invoke::{self, Call, Failure};
use crate::cni::result::Success;

/// Longer than any address takes.
const LIMIT: Duration = Duration::from_secs(60);

/// Which plugin manages the addresses (`ipam.type`), if one does.
pub(super) fn manager(request: &Request) -> Result<Option<String>, Refusal> {
    let Some(ipam) = request.conf.object("ipam")? else { return Ok(None) };
    Ok(ipam.text("type")?.filter(|kind| !kind.is_empty()).map(str::to_owned))
}

/// Runs the address manager with the request as it is; `None`: there is none.
pub(super) fn ipam(request: &Request) -> Result<Option<Answer>, Refusal> {
    Ok(manager(request)?.map(|kind| call(&kind, request)))
}

/// Runs another plugin with a request.
pub(super) fn call(kind: &str, request: &Request) -> Answer {
    super::run(kind, request).unwrap_or_else(|| execute(kind, request))
}

/// The same command for the address manager, if there is one. Somebody else's is asked for what its version has.
pub(super) fn forward(request: &Request) -> Result<(), Refusal> {
    let Some(kind) = manager(request)? else { return Ok(()) };
    let young = matches!(request.command, Command::Gc | Command::Status);
    if young && !at_least(&request.version, "1.1.0") && !super::NAMES.contains(&&*kind) {
        return Ok(());
    }
    call(&kind, request).map(drop)
}

/// Refuses a configuration that names no address manager.
pub(super) fn require(request: &Request) -> Result<(), Refusal> {
    let missing = || Refusal::config("this plugin requires an IPAM configuration");
    manager(request)?.map(drop).ok_or_else(missing)
}

/// [`allocate`] where an address manager is named, else nothing.
pub(super) fn allocate_if_asked(request: &Request) -> Result<Success, Refusal> {
    if require(request).is_ok() { allocate(request) } else { Ok(Success::default()) }
}

/// ADD of the address manager; it must give at least one address.
pub(super) fn allocate(request: &Request) -> Result<Success, Refusal> {
    let answer = ipam(request)?.ok_or_else(|| Refusal::config("\"ipam\" is missing"))??;
    answer
        .filter(|s| !s.ips.is_empty())
        .ok_or_else(|| Refusal::config("IPAM plugin returned missing IP config"))
}

/// DEL of the address manager after a failure; its own failure changes nothing.
pub(super) fn give_back(request: &Request) {
    let back = Request { command: Command::Del, ..request.clone() };
    let _ = ipam(&back);
}

fn execute(kind: &str, request: &Request) -> Answer {
    if kind.is_empty() || kind.contains('/') || matches!(kind, "." | "..") {
        return Err(Refusal::config(format!("plugin type \"{kind}\" is no name")));
    }
    let plugin = invoke::find(kind, &request.path).map_err(|e| refusal(&e))?;
    let args: Vec<String> = request.args.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let call = Call {
        command: request.command.name(),
        container: &request.container,
        netns: request.netns.as_deref(),
        interface: &request.interface,
        args: &args.join(";"),
        path: &request.path,
        deadline: Instant::now() + LIMIT,
    };
    let printed =
        invoke::run(&plugin, &call, request.conf.value().to_string().as_bytes()).map_err(|e| refusal(&e))?;
    if request.command != Command::Add {
        return Ok(None);
    }
    let unreadable = |e: String| Refusal::new(code::DECODE, format!("result of {kind}: {e}"));
    let value: Value = serde_json::from_slice(&printed).map_err(|e| unreadable(e.to_string()))?;
    Success::decode(&value, &request.version).map(Some).map_err(unreadable)
}

fn refusal(failure: &Failure) -> Refusal {
    match failure {
        Failure::Failed { code, text, .. } if *code != 0 => Refusal::new(*code, text.clone()),
        other => Refusal::new(code::INTERNAL, crate::error::chain(other)),
    }
}

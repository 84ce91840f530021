//! Request and image config merged into one process: the Docker rule, pure.

use storage::ImageConfig;

use crate::Error;
use crate::exec::Process;
use crate::spec::ContainerSpec;

/// `PATH` where neither request nor image names one.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The process of a container, without its user.
///
/// `command` replaces the image's Entrypoint and, if `args` is empty, drops its Cmd; `args` replaces Cmd. Environment:
/// `PATH`, `HOSTNAME` (and `TERM` on a terminal) as defaults, then the image's, then the request's, by name.
pub fn merge(spec: &ContainerSpec, image: &ImageConfig, hostname: &str) -> Result<Process, Error> {
    let entrypoint = if spec.command.is_empty() { &image.entrypoint } else { &spec.command };
    let replaced = !spec.command.is_empty() || !spec.args.is_empty();
    let arguments = if replaced { &spec.args } else { &image.cmd };
    let args: Vec<String> = entrypoint.iter().chain(arguments).cloned().collect();
    if args.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("command", "neither the request nor the image says what to run"));
    }
    let cwd = match (spec.working_dir.as_str(), image.working_dir.as_str()) {
        ("", "") => "/".to_owned(),
        ("", image) if image.starts_with('/') => image.to_owned(),
        ("", image) => format!("/{image}"),
        (requested, _) => requested.to_owned(),
    };
    Ok(Process {
        args,
        env: environment(spec, image, hostname),
        cwd,
        user: Default::default(),
        tty: spec.tty,
        stdin: spec.stdin,
    })
}

fn environment(spec: &ContainerSpec, image: &ImageConfig, hostname: &str) -> Vec<Vec<u8>> {
    let mut env = Vec::with_capacity(image.env.len() + spec.envs.len() + 4);
    for variable in image.env.iter().filter(|v| v.contains('=')) {
        set(&mut env, variable.as_bytes().to_vec());
    }
    for (name, value) in &spec.envs {
        set(&mut env, [name.as_bytes(), b"=", value].concat());
    }
    add_default(&mut env, "PATH", PATH);
    add_default(&mut env, "HOSTNAME", hostname);
    add_default(&mut env, "TERM", if spec.tty { "xterm" } else { "" });
    env
}

/// Sets a variable unless it is there already or `value` is empty.
pub fn add_default(env: &mut Vec<Vec<u8>>, name: &str, value: &str) {
    let variable = format!("{name}={value}").into_bytes();
    if !value.is_empty() && !env.iter().any(|have| name_of(have) == name.as_bytes()) {
        env.push(variable);
    }
}

/// Sets a variable; overrides in place, so that the order stays the image's.
pub fn set(env: &mut Vec<Vec<u8>>, variable: Vec<u8>) {
    match env.iter_mut().find(|have| name_of(have) == name_of(&variable)) {
        Some(have) => *have = variable,
        None => env.push(variable),
    }
}

fn name_of(variable: &[u8]) -> &[u8] {
    variable.split(|byte| *byte == b'=').next().unwrap_or_default()
}

/// The signal that stops a container: the request's, the image's, SIGTERM.
pub fn stop_signal(spec: &ContainerSpec, image: &ImageConfig) -> Result<i32, Error> {
    match spec.stop_signal {
        Some(signal) => Ok(signal),
        None if image.stop_signal.is_empty() => Ok(libc::SIGTERM),
        None => parse_signal(&image.stop_signal).ok_or_else(|| {
            Error::invalid("image StopSignal", format!("\"{}\" is not a signal", image.stop_signal))
        }),
    }
}

/// A signal by number or name, with or without `SIG`, real-time ones as `RTMIN+n` or `RTMAX-n` (signal(7)).
pub fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |text: &str| if text.is_empty() { Some(0) } else { text.get(1..)?.parse::<i32>().ok() };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return offset(rest).filter(|n| (0..=30).contains(n) && !rest.starts_with('-')).map(|n| 34 + n);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return offset(rest).filter(|n| (0..=30).contains(n) && !rest.starts_with('+')).map(|n| 64 - n);
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

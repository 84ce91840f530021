//! Container requests.

use engine::Error;
use engine::spec::ContainerSpec;

use super::{image, mount, resources, security, signal};
use super::{no_nul, no_nuls, no_parent, no_windows, non_empty, required};
use crate::proto;

/// Reads a container configuration found at `at`.
pub fn container(at: &str, config: Option<proto::ContainerConfig>) -> Result<ContainerSpec, Error> {
    let config = required(at, config)?;
    no_windows(&format!("{at}.windows"), config.windows.as_ref())?;
    let metadata = required(&format!("{at}.metadata"), config.metadata)?;
    let linux = config.linux.unwrap_or_default();
    Ok(ContainerSpec {
        name: non_empty(&format!("{at}.metadata.name"), metadata.name)?,
        attempt: metadata.attempt,
        image: image::image(&format!("{at}.image"), config.image)?,
        command: no_nuls(&format!("{at}.command"), config.command)?,
        args: no_nuls(&format!("{at}.args"), config.args)?,
        working_dir: no_nul(&format!("{at}.working_dir"), config.working_dir)?,
        envs: envs(&format!("{at}.envs"), config.envs)?,
        mounts: mount::mounts(&format!("{at}.mounts"), config.mounts)?,
        devices: mount::devices(&format!("{at}.devices"), config.devices)?,
        cdi_devices: cdi_devices(&format!("{at}.CDI_devices"), config.cdi_devices)?,
        runtime_edits: Default::default(),
        labels: config.labels,
        annotations: config.annotations,
        log_path: log_path(&format!("{at}.log_path"), config.log_path)?.into(),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        resources: resources::resources(&format!("{at}.linux.resources"), linux.resources)?,
        security: security::container(&format!("{at}.linux.security_context"), linux.security_context)?,
        stop_signal: signal::stop_signal(&format!("{at}.stop_signal"), config.stop_signal)?,
    })
}

/// Environment: names that execve(2) can carry, values any bytes but NUL.
fn envs(at: &str, envs: Vec<proto::KeyValue>) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let env = |(i, e): (usize, proto::KeyValue)| {
        let key = non_empty(&format!("{at}[{i}].key"), e.key)?;
        if key.contains('=') {
            return Err(Error::invalid(&format!("{at}[{i}].key"), format_args!("\"{key}\" holds \"=\"")));
        }
        if e.value.contains(&0) {
            return Err(Error::invalid(&format!("{at}[{i}].value"), "holds a NUL byte"));
        }
        Ok((key, e.value))
    };
    envs.into_iter().enumerate().map(env).collect()
}

/// Fully qualified CDI names, `vendor/class=name` (CDI specification, "Kind").
fn cdi_devices(at: &str, devices: Vec<proto::CdiDevice>) -> Result<Vec<String>, Error> {
    let device = |(i, d): (usize, proto::CdiDevice)| {
        let parts = d.name.split_once('=').and_then(|(kind, name)| Some((kind.split_once('/')?, name)));
        match parts {
            Some(((vendor, class), name)) if ![vendor, class, name].contains(&"") => Ok(d.name),
            _ => {
                let why = format!("\"{}\" is not of the form vendor/class=name", d.name);
                Err(Error::invalid(&format!("{at}[{i}].name"), why))
            }
        }
    };
    devices.into_iter().enumerate().map(device).collect()
}

/// Relative to the pod's log directory and inside it.
fn log_path(field: &str, path: String) -> Result<String, Error> {
    let path = no_parent(field, no_nul(field, path)?)?;
    if path.starts_with('/') {
        let why = format!("\"{path}\" must be relative to the pod's log_directory");
        return Err(Error::invalid(field, why));
    }
    Ok(path)
}

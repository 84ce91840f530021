//! Mounts and devices of a container.

use engine::Error;
use engine::spec::{DeviceSpec, MountSpec, Propagation};

use super::{absolute, image, known, namespace, no_parent};
use crate::proto;

/// The word kubelet looks for when an image volume cannot be had (cri-api `errors.go`).
pub const IMAGE_VOLUME_FAILED: &str = "ImageVolumeMountFailed";

/// Reads the mounts in their order.
pub fn mounts(at: &str, mounts: Vec<proto::Mount>) -> Result<Vec<MountSpec>, Error> {
    mounts.into_iter().enumerate().map(|(i, m)| mount(&format!("{at}[{i}]"), m)).collect()
}

fn mount(at: &str, m: proto::Mount) -> Result<MountSpec, Error> {
    let propagation = propagation(&format!("{at}.propagation"), m.propagation)?;
    if m.recursive_read_only && !m.readonly {
        return Err(Error::invalid(&format!("{at}.recursive_read_only"), "only goes with readonly"));
    }
    if m.recursive_read_only && propagation != Propagation::Private {
        return Err(Error::invalid(
            &format!("{at}.recursive_read_only"),
            "only goes with propagation PRIVATE",
        ));
    }
    let (host_path, image) = match m.image {
        None => {
            if !m.image_sub_path.is_empty() {
                return Err(Error::invalid(&format!("{at}.image_sub_path"), "only goes with image"));
            }
            (absolute(&format!("{at}.host_path"), m.host_path)?, None)
        }
        Some(spec) => {
            image_volume(at, &m.host_path, m.readonly)?;
            (String::new(), Some(image::image(&format!("{at}.image"), Some(spec))?))
        }
    };
    Ok(MountSpec {
        container_path: absolute(&format!("{at}.container_path"), m.container_path)?,
        host_path: host_path.into(),
        readonly: m.readonly,
        recursive_readonly: m.recursive_read_only,
        selinux_relabel: m.selinux_relabel,
        propagation,
        uid_mappings: namespace::mappings(&format!("{at}.uidMappings"), &m.uid_mappings)?,
        gid_mappings: namespace::mappings(&format!("{at}.gidMappings"), &m.gid_mappings)?,
        image,
        image_sub_path: no_parent(&format!("{at}.image_sub_path"), m.image_sub_path)?,
        options: options(&format!("{at}.mount_options"), m.mount_options)?,
    })
}

/// What an image mount must not ask for.
fn image_volume(at: &str, host_path: &str, readonly: bool) -> Result<(), Error> {
    let refuse = |field: &str, why: &str| {
        let message = format!("{IMAGE_VOLUME_FAILED}: {at}.{field}: {why}");
        Err(Error::new(engine::Kind::InvalidArgument, message))
    };
    if !host_path.is_empty() {
        return refuse("host_path", "must be empty with image");
    }
    if !readonly {
        return refuse("readonly", "an image is mounted read-only; set it");
    }
    Ok(())
}

fn propagation(field: &str, value: i32) -> Result<Propagation, Error> {
    Ok(match known::<proto::MountPropagation>(field, value)? {
        proto::MountPropagation::PropagationPrivate => Propagation::Private,
        proto::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        proto::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    })
}

fn options(field: &str, options: Vec<String>) -> Result<Vec<String>, Error> {
    for option in &options {
        if !matches!(option.as_str(), "noexec" | "nodev" | "nosuid") {
            let why = format!("\"{option}\" is none of noexec, nodev, nosuid");
            return Err(Error::invalid(field, why));
        }
    }
    Ok(options)
}

/// Reads device nodes.
pub fn devices(at: &str, devices: Vec<proto::Device>) -> Result<Vec<DeviceSpec>, Error> {
    devices.into_iter().enumerate().map(|(i, d)| device(&format!("{at}[{i}]"), d)).collect()
}

fn device(at: &str, d: proto::Device) -> Result<DeviceSpec, Error> {
    let host_path = absolute(&format!("{at}.host_path"), d.host_path)?;
    let container_path = match d.container_path.is_empty() {
        true => host_path.clone(),
        false => absolute(&format!("{at}.container_path"), d.container_path)?,
    };
    let permissions = if d.permissions.is_empty() { "rwm".to_owned() } else { d.permissions };
    if !permissions.chars().all(|c| "rwm".contains(c)) {
        let why = format!("\"{permissions}\" holds more than r, w and m");
        return Err(Error::invalid(&format!("{at}.permissions"), why));
    }
    Ok(DeviceSpec { container_path, host_path: host_path.into(), permissions, ..Default::default() })
}

/// Writes a mount back, for ContainerStatus.
pub fn encode(m: &MountSpec) -> proto::Mount {
    let propagation = match m.propagation {
        Propagation::Private => proto::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => proto::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => proto::MountPropagation::PropagationBidirectional,
    };
    proto::Mount {
        container_path: m.container_path.clone(),
        host_path: m.host_path.to_string_lossy().into_owned(),
        readonly: m.readonly,
        selinux_relabel: m.selinux_relabel,
        propagation: propagation.into(),
        uid_mappings: namespace::encode_mappings(&m.uid_mappings),
        gid_mappings: namespace::encode_mappings(&m.gid_mappings),
        recursive_read_only: m.recursive_readonly,
        image: m.image.as_ref().map(image::encode),
        image_sub_path: m.image_sub_path.clone(),
        mount_options: m.options.clone(),
    }
}

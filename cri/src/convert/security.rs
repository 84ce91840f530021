//! Security contexts: identity, capabilities, profiles.

use engine::Error;
use engine::spec::{ContainerSecurity, PodSecurity, Profile, SelinuxLabel, UserSpec};

use super::namespace::{self, Owner};
use super::{absolute, known, no_nul, no_nuls, non_empty};
use crate::proto;

/// Largest id: `u32::MAX` means "no change" to setresuid(2).
const LARGEST_ID: i64 = u32::MAX as i64 - 1;

/// Reads the security context of a sandbox.
#[expect(deprecated, reason = "kubelets before 1.19 and critest still send the string")]
pub fn pod(at: &str, context: Option<proto::LinuxSandboxSecurityContext>) -> Result<PodSecurity, Error> {
    let Some(c) = context else { return Ok(PodSecurity::default()) };
    let user = Identity {
        uid: c.run_as_user,
        username: String::new(),
        gid: c.run_as_group,
        groups: c.supplemental_groups,
        policy: c.supplemental_groups_policy,
    };
    Ok(PodSecurity {
        namespaces: namespace::options(&format!("{at}.namespace_options"), c.namespace_options, Owner::Pod)?,
        privileged: c.privileged,
        readonly_rootfs: c.readonly_rootfs,
        user: user.read(at)?,
        seccomp: seccomp(at, c.seccomp, &c.seccomp_profile_path)?,
        apparmor: apparmor(at, c.apparmor, "")?,
        selinux: c.selinux_options.map(|s| selinux(at, s)).transpose()?,
    })
}

/// Reads the security context of a container.
#[expect(deprecated, reason = "kubelets before 1.19 and critest still send the strings")]
pub fn container(
    at: &str,
    context: Option<proto::LinuxContainerSecurityContext>,
) -> Result<ContainerSecurity, Error> {
    let Some(c) = context else { return Ok(ContainerSecurity::default()) };
    let capabilities = c.capabilities.unwrap_or_default();
    let user = Identity {
        uid: c.run_as_user,
        username: c.run_as_username,
        gid: c.run_as_group,
        groups: c.supplemental_groups,
        policy: c.supplemental_groups_policy,
    };
    let caps = |name: &str, list| capability_names(&format!("{at}.capabilities.{name}"), list);
    let paths = |name: &str, list: Vec<String>| -> Result<Vec<String>, Error> {
        let one = |(i, path)| absolute(&format!("{at}.{name}[{i}]"), path);
        list.into_iter().enumerate().map(one).collect()
    };
    Ok(ContainerSecurity {
        add_capabilities: caps("add_capabilities", capabilities.add_capabilities)?,
        drop_capabilities: caps("drop_capabilities", capabilities.drop_capabilities)?,
        add_ambient_capabilities: caps("add_ambient_capabilities", capabilities.add_ambient_capabilities)?,
        privileged: c.privileged,
        namespaces: namespace::options(
            &format!("{at}.namespace_options"),
            c.namespace_options,
            Owner::Container,
        )?,
        selinux: c.selinux_options.map(|s| selinux(at, s)).transpose()?,
        user: user.read(at)?,
        readonly_rootfs: c.readonly_rootfs,
        no_new_privs: c.no_new_privs,
        masked_paths: paths("masked_paths", c.masked_paths)?,
        readonly_paths: paths("readonly_paths", c.readonly_paths)?,
        seccomp: seccomp(at, c.seccomp, &c.seccomp_profile_path)?,
        apparmor: apparmor(at, c.apparmor, &c.apparmor_profile)?,
    })
}

/// The identity fields that sandbox and container share.
struct Identity {
    uid: Option<proto::Int64Value>,
    username: String,
    gid: Option<proto::Int64Value>,
    groups: Vec<i64>,
    policy: i32,
}

impl Identity {
    fn read(self, at: &str) -> Result<UserSpec, Error> {
        let uid = self.uid.map(|v| id(&format!("{at}.run_as_user"), v.value)).transpose()?;
        let gid = self.gid.map(|v| id(&format!("{at}.run_as_group"), v.value)).transpose()?;
        if uid.is_some() && !self.username.is_empty() {
            return Err(Error::invalid(&format!("{at}.run_as_username"), "does not go with run_as_user"));
        }
        if gid.is_some() && uid.is_none() && self.username.is_empty() {
            return Err(Error::invalid(
                &format!("{at}.run_as_group"),
                "needs run_as_user or run_as_username",
            ));
        }
        let group = |(i, g)| id(&format!("{at}.supplemental_groups[{i}]"), g);
        let policy: proto::SupplementalGroupsPolicy =
            known(&format!("{at}.supplemental_groups_policy"), self.policy)?;
        Ok(UserSpec {
            uid,
            username: no_nul(&format!("{at}.run_as_username"), self.username)?,
            gid,
            supplemental_groups: self.groups.into_iter().enumerate().map(group).collect::<Result<_, _>>()?,
            strict_groups: policy == proto::SupplementalGroupsPolicy::Strict,
        })
    }
}

fn id(field: &str, value: i64) -> Result<i64, Error> {
    if (0..=LARGEST_ID).contains(&value) {
        return Ok(value);
    }
    Err(Error::invalid(field, format_args!("{value} is not between 0 and {LARGEST_ID}")))
}

/// Checks the shape only; whether the kernel knows the capability is the engine's question.
fn capability_names(field: &str, names: Vec<String>) -> Result<Vec<String>, Error> {
    for (i, name) in names.iter().enumerate() {
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            let why = format!("\"{name}\" is not the name of a capability");
            return Err(Error::invalid(&format!("{field}[{i}]"), why));
        }
    }
    no_nuls(field, names)
}

fn selinux(at: &str, o: proto::SeLinuxOption) -> Result<SelinuxLabel, Error> {
    let part = |name: &str, value| no_nul(&format!("{at}.selinux_options.{name}"), value);
    Ok(SelinuxLabel {
        user: part("user", o.user)?,
        role: part("role", o.role)?,
        kind: part("type", o.r#type)?,
        level: part("level", o.level)?,
    })
}

/// Seccomp: the typed field wins over the deprecated string; neither means unconfined.
fn seccomp(
    at: &str,
    typed: Option<proto::SecurityProfile>,
    deprecated: &str,
) -> Result<Option<Profile>, Error> {
    let (field, profile) = profile(at, "seccomp", typed, "seccomp_profile_path", deprecated)?;
    if let Some(Profile::Localhost(path)) = profile {
        return Ok(Some(Profile::Localhost(absolute(&field, path)?)));
    }
    Ok(profile)
}

/// AppArmor: the typed field wins over the deprecated string.
fn apparmor(
    at: &str,
    typed: Option<proto::SecurityProfile>,
    deprecated: &str,
) -> Result<Option<Profile>, Error> {
    let (field, profile) = profile(at, "apparmor", typed, "apparmor_profile", deprecated)?;
    if let Some(Profile::Localhost(name)) = profile {
        return Ok(Some(Profile::Localhost(non_empty(&field, name)?)));
    }
    Ok(profile)
}

/// The profile and the path of the field that holds its reference.
fn profile(
    at: &str,
    typed_name: &str,
    typed: Option<proto::SecurityProfile>,
    deprecated_name: &str,
    deprecated: &str,
) -> Result<(String, Option<Profile>), Error> {
    use proto::security_profile::ProfileType;
    if let Some(typed) = typed {
        let kind = known(&format!("{at}.{typed_name}.profile_type"), typed.profile_type)?;
        let field = format!("{at}.{typed_name}.localhost_ref");
        if kind != ProfileType::Localhost && !typed.localhost_ref.is_empty() {
            return Err(Error::invalid(&field, "only goes with profile_type Localhost"));
        }
        let profile = match kind {
            ProfileType::RuntimeDefault => Profile::RuntimeDefault,
            ProfileType::Unconfined => Profile::Unconfined,
            ProfileType::Localhost => Profile::Localhost(typed.localhost_ref),
        };
        return Ok((field, Some(profile)));
    }
    let field = format!("{at}.{deprecated_name}");
    let profile = match deprecated {
        "" => None,
        "unconfined" => Some(Profile::Unconfined),
        "runtime/default" | "docker/default" => Some(Profile::RuntimeDefault),
        other => match other.strip_prefix("localhost/") {
            Some(reference) => Some(Profile::Localhost(reference.to_owned())),
            None => {
                let why = format!("\"{other}\" is none of unconfined, runtime/default, localhost/…");
                return Err(Error::invalid(&field, why));
            }
        },
    };
    Ok((field, profile))
}

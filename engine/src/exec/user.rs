//! Users and groups of an image: one audited, bounded lookup.
//!
//! Digits are never names, numbers out of range are errors, files are those of the container alone ([`file::open`]) and small.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::error::{Error, Kind};
use crate::exec::{ResolvedUser, file};
use crate::spec::UserSpec;

/// Largest /etc/passwd or /etc/group that is read.
const MAX_FILE: usize = 4 << 20;
/// Most supplementary groups the kernel takes (NGROUPS_MAX).
const MAX_GROUPS: usize = 65536;

/// The user part of `USER[:GROUP]` as an image or a client writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// A number.
    Id(u32),
    /// A name to be looked up.
    Name(String),
}

impl Name {
    /// Reads one half of `USER[:GROUP]`. All digits are a number that must fit; a leading sign or a control character is refused.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("is empty".into());
        }
        if text.bytes().all(|b| b.is_ascii_digit()) {
            return match text.parse::<u32>() {
                // -1 means "leave alone" to setresuid(2) and is nobody's id.
                Ok(u32::MAX) | Err(_) => Err(format!("\"{text}\" is out of range")),
                Ok(id) => Ok(Self::Id(id)),
            };
        }
        if text.starts_with(['-', '+']) || text.contains(|c: char| c.is_control() || c == ':' || c == ' ') {
            return Err(format!("{text:?} is not a name"));
        }
        Ok(Self::Name(text.into()))
    }
}

/// Splits an image's `User` into user and group. `None`: the image names nobody, so root.
pub fn image_user(text: &str) -> Result<Option<(Name, Option<Name>)>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let bad = |why| Error::invalid("image user", why);
    // "1:" names no group, as "1" does; ":5" keeps root as the user.
    let user = if user.is_empty() { Name::Id(0) } else { Name::parse(user).map_err(bad)? };
    let group = match group {
        Some("") | None => None,
        Some(group) => Some(Name::parse(group).map_err(bad)?),
    };
    Ok(Some((user, group)))
}

/// Who a process runs as: the request's user, else the image's, else root, with the image's supplementary groups unless the
/// request is strict (KEP-3619). The primary group is always among the groups.
pub fn resolve(rootfs: BorrowedFd<'_>, spec: &UserSpec, image: &str) -> Result<ResolvedUser, Error> {
    // What the request itself has wrong is said first.
    wanted(spec, image)?;
    look_up(spec, image, &read(rootfs, c"etc/passwd")?, &read(rootfs, c"etc/group")?)
}

/// As [`resolve`], from the text of the image's files. Pure.
pub(crate) fn look_up(
    spec: &UserSpec,
    image: &str,
    passwd: &str,
    group_file: &str,
) -> Result<ResolvedUser, Error> {
    let requested_gid = spec.gid.map(|gid| id("run_as_group", gid)).transpose()?;
    let (user, image_group) = wanted(spec, image)?;
    let entry = passwd_entry(passwd, &user);
    let uid = match (&user, &entry) {
        (Name::Id(uid), _) => *uid,
        (Name::Name(_), Some(entry)) => entry.uid,
        (Name::Name(name), None) => {
            return Err(Error::invalid("user", format!("no user \"{name}\" in the image's /etc/passwd")));
        }
    };
    let gid = match (requested_gid, image_group) {
        (Some(gid), _) | (None, Some(Name::Id(gid))) => gid,
        (None, Some(Name::Name(name))) => group_id(group_file, &name).ok_or_else(|| {
            Error::invalid("group", format!("no group \"{name}\" in the image's /etc/group"))
        })?,
        (None, None) => entry.as_ref().map_or(0, |e| e.gid),
    };
    let mut groups = vec![gid];
    if !spec.strict_groups
        && let Some(entry) = &entry
    {
        memberships(group_file, &entry.name, &mut groups);
    }
    for group in &spec.supplemental_groups {
        groups.push(id("supplemental_groups", *group)?);
    }
    groups.sort_unstable();
    groups.dedup();
    if groups.len() > MAX_GROUPS {
        return Err(Error::invalid(
            "supplemental_groups",
            format!("{} groups, at most {MAX_GROUPS}", groups.len()),
        ));
    }
    Ok(ResolvedUser { uid, gid, groups })
}

/// Home directory of a user in the image, for HOME; `/` when unknown or not an absolute path of printable characters.
pub fn home(rootfs: BorrowedFd<'_>, uid: u32) -> Result<String, Error> {
    let passwd = read(rootfs, c"etc/passwd")?;
    let home = passwd_entry(&passwd, &Name::Id(uid)).map(|e| e.home).unwrap_or_default();
    let sound = home.starts_with('/') && !home.contains(char::is_control);
    Ok(if sound {
        home
    } else if uid == 0 && home.is_empty() {
        "/root".into()
    } else {
        "/".into()
    })
}

/// User and, when the image decides it, group.
fn wanted(spec: &UserSpec, image: &str) -> Result<(Name, Option<Name>), Error> {
    if let Some(uid) = spec.uid {
        return Ok((Name::Id(id("run_as_user", uid)?), None));
    }
    if !spec.username.is_empty() {
        let name = Name::parse(&spec.username).map_err(|why| Error::invalid("run_as_username", why))?;
        return Ok((name, None));
    }
    Ok(image_user(image)?.unwrap_or((Name::Id(0), None)))
}

/// A client's id as the kernel's.
fn id(field: &str, value: i64) -> Result<u32, Error> {
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(Error::invalid(field, format!("{value} is out of range"))),
    }
}

/// A line of passwd(5).
struct Entry {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

/// First line for the user; malformed lines are skipped.
fn passwd_entry(file: &str, user: &Name) -> Option<Entry> {
    file.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid: u32 = fields.nth(1)?.parse().ok()?;
        let gid: u32 = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or_default();
        let hit = match user {
            Name::Id(id) => *id == uid,
            Name::Name(wanted) => wanted == name,
        };
        (hit && uid != u32::MAX && gid != u32::MAX).then(|| Entry {
            name: name.into(),
            uid,
            gid,
            home: home.into(),
        })
    })
}

/// Number of a named group (group(5)).
fn group_id(file: &str, name: &str) -> Option<u32> {
    file.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then_some(())?;
        fields.nth(1)?.parse().ok().filter(|gid| *gid != u32::MAX)
    })
}

/// Adds the groups that list the user as a member.
fn memberships(file: &str, user: &str, groups: &mut Vec<u32>) {
    for line in file.lines() {
        let mut fields = line.split(':').skip(2);
        let (Some(Ok(gid)), Some(members)) = (fields.next().map(str::parse::<u32>), fields.next()) else {
            continue;
        };
        if gid != u32::MAX && members.split(',').any(|member| member == user) && groups.len() <= MAX_GROUPS {
            groups.push(gid);
        }
    }
}

/// A small regular file below the root; absent is empty.
fn read(rootfs: BorrowedFd<'_>, path: &std::ffi::CStr) -> Result<String, Error> {
    let shown = path.to_string_lossy();
    let fd = match file::open(rootfs, path) {
        Ok(Some(fd)) => fd,
        Ok(None) => return Err(Error::invalid("image", format!("/{shown} is not a regular file"))),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(e) => return Err(Error::with(Kind::Internal, format!("open /{shown} of the image"), e)),
    };
    bounded(&fd, &shown)
}

/// Reads at most [`MAX_FILE`] bytes. Bytes that are no UTF-8 cannot match a name and are replaced.
fn bounded(fd: &OwnedFd, shown: &str) -> Result<String, Error> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 16384];
    loop {
        match rustix::io::read(fd.as_fd(), &mut chunk) {
            Ok(0) => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
            Err(Errno::INTR) => {}
            Err(e) => return Err(Error::with(Kind::Internal, format!("read /{shown} of the image"), e)),
        }
        if bytes.len() > MAX_FILE {
            return Err(Error::invalid("image", format!("/{shown} is larger than {MAX_FILE} bytes")));
        }
    }
}

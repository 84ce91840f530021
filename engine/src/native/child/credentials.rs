//! Steps that change who the process is. All calls change the calling thread only, which is the only one.

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use super::{Detail, Done, plain};

/// Raises limits as far as we may: without CAP_SYS_RESOURCE a hard limit can only go down.
pub(super) fn limit(resource: u64, soft: u64, hard: u64) -> Done {
    let wanted = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    crate::sys::thread::set_limit(resource as u32, wanted).map_err(plain)
}

/// Drops what is not to be kept; the kernel ends the list by EINVAL. Who may not drop anything may still lack it already.
pub(super) fn bounding(keep: u64) -> Done {
    for bit in (0..64).filter(|bit| keep & (1 << bit) == 0) {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Err(Errno::INVAL) => return Ok(()),
            Err(Errno::PERM) if rustix::thread::capability_is_in_bounding_set(capability) == Ok(false) => {}
            other => other.map_err(plain)?,
        }
    }
    Ok(())
}

/// Groups first, while we may; capabilities are kept over the change so that the plan can set them exactly.
pub(super) fn become_user(uid: u64, gid: u64, groups: &[Gid]) -> Done {
    let narrow =
        |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or((Errno::INVAL, Detail::None));
    let (uid, gid) = (Uid::from_raw(narrow(uid)?), Gid::from_raw(narrow(gid)?));
    rustix::thread::set_keep_capabilities(true).map_err(plain)?;
    rustix::thread::set_thread_groups(groups).map_err(plain)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(plain)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(plain)?;
    rustix::thread::set_keep_capabilities(false).map_err(plain)
}

/// Becomes root of the user namespace just entered; capabilities come with it.
pub(crate) fn become_root() -> Done {
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    rustix::thread::set_thread_groups(&[]).map_err(plain)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(plain)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(plain)
}

/// All five sets are explicit; ambient ones must be permitted and inheritable.
pub(super) fn capabilities(permitted: u64, effective: u64, inheritable: u64, ambient: u64) -> Done {
    rustix::thread::clear_ambient_capability_set().map_err(plain)?;
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(effective),
        permitted: CapabilitySet::from_bits_retain(permitted),
        inheritable: CapabilitySet::from_bits_retain(inheritable),
    };
    rustix::thread::set_capabilities(None, sets).map_err(plain)?;
    for bit in (0..64).filter(|bit| ambient & (1 << bit) != 0) {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        rustix::thread::configure_capability_in_ambient_set(capability, true).map_err(plain)?;
    }
    Ok(())
}

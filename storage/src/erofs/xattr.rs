//! Inline extended attributes (`struct erofs_xattr_ibody_header`, `struct erofs_xattr_entry`).

use std::io;

/// Header before the entries, in bytes.
const HEADER: u64 = 12;

type Xattrs = [(Vec<u8>, Vec<u8>)];

/// Prefix number and the rest of the name; attributes without a known prefix cannot be stored.
fn index(name: &[u8]) -> Option<(u8, &[u8])> {
    let prefixes: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
    match name {
        b"system.posix_acl_access" => Some((2, b"")),
        b"system.posix_acl_default" => Some((3, b"")),
        name => prefixes
            .iter()
            .find_map(|(prefix, number)| name.strip_prefix(*prefix).map(|rest| (*number, rest))),
    }
}

fn known(xattrs: &Xattrs) -> impl Iterator<Item = (u8, &[u8], &[u8])> {
    xattrs
        .iter()
        .filter_map(|(name, value)| index(name).map(|(number, rest)| (number, rest, value.as_slice())))
}

/// Bytes behind the inode.
pub(super) fn size(xattrs: &Xattrs) -> io::Result<u64> {
    let entries: u64 =
        known(xattrs).map(|(_, n, v)| (4 + n.len() as u64 + v.len() as u64).next_multiple_of(4)).sum();
    // `i_xattr_icount` counts units of 4 bytes in 16 bits.
    if entries > 4 * 65_534 {
        return Err(io::Error::other("extended attributes of one file are larger than 256 KiB"));
    }
    Ok(if entries == 0 { 0 } else { HEADER + entries })
}

/// `i_xattr_icount`.
pub(super) fn count(xattrs: &Xattrs) -> io::Result<u16> {
    let size = size(xattrs)?;
    Ok(if size == 0 { 0 } else { u16::try_from((size - HEADER) / 4 + 1).unwrap_or(u16::MAX) })
}

/// Writes header and entries.
pub(super) fn append(xattrs: &Xattrs, out: &mut Vec<u8>) -> io::Result<()> {
    if size(xattrs)? == 0 {
        return Ok(());
    }
    out.extend_from_slice(&[0; 12]);
    for (number, name, value) in known(xattrs) {
        let bad = |_| io::Error::other("an extended attribute is too large");
        out.push(u8::try_from(name.len()).map_err(bad)?);
        out.push(number);
        out.extend_from_slice(&u16::try_from(value.len()).map_err(bad)?.to_le_bytes());
        out.extend_from_slice(name);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    Ok(())
}

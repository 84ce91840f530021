//! Sealed memfds: written once, then seen as an unchanging slice by whoever gets the descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};

/// Seals under which neither content nor size can change.
const SEALS: SealFlags = SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK);

/// A memfd with this content, sealed.
pub fn seal(name: &str, content: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut rest = content;
    while !rest.is_empty() {
        let written = rustix::io::write(&fd, rest)?;
        rest = &rest[written..];
    }
    fcntl_add_seals(&fd, SEALS | SealFlags::SEAL)?;
    Ok(fd)
}

/// A sealed, executable memfd with the content of a file. Fails with EACCES where vm.memfd_noexec forbids it.
pub fn seal_program(name: &str, file: &mut std::fs::File) -> io::Result<OwnedFd> {
    /// `MFD_EXEC` (Linux 6.3).
    const EXEC: MemfdFlags = MemfdFlags::from_bits_retain(0x10);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match memfd_create(name, flags | EXEC) {
        Err(rustix::io::Errno::INVAL) => memfd_create(name, flags)?,
        other => other?,
    };
    let mut copy = std::fs::File::from(fd);
    io::copy(file, &mut copy)?;
    fcntl_add_seals(&copy, SEALS | SealFlags::SEAL)?;
    Ok(copy.into())
}

/// A sealed memfd mapped for reading.
#[derive(Debug)]
pub struct Sealed {
    address: *mut libc::c_void,
    length: usize,
}

impl Sealed {
    /// Maps a memfd, after checking that it is sealed and at most `limit` bytes long.
    pub fn map(fd: impl AsFd, limit: usize) -> io::Result<Self> {
        let fd = fd.as_fd();
        if !fcntl_get_seals(fd)?.contains(SEALS) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "memory is not sealed"));
        }
        let length = usize::try_from(fstat(fd)?.st_size).map_err(io::Error::other)?;
        if length == 0 || length > limit {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "sealed memory has a wrong size"));
        }
        // SAFETY: a new private read-only mapping at an address of the kernel's choice disturbs nothing.
        let address = unsafe {
            libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_PRIVATE, fd.as_raw_fd(), 0)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { address, length })
    }

    /// The content.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping covers `length` bytes and lives as long as `self`. The seals, which cannot be taken off, keep everybody
        // from writing to it and from shrinking it under us.
        unsafe { std::slice::from_raw_parts(self.address.cast(), self.length) }
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no slice of it outlives `self`.
        unsafe { libc::munmap(self.address, self.length) };
    }
}

/// Starts writing a file's changed pages to the disk and does not wait for them (sync_file_range(2)).
pub fn start_writing(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call takes integers; a length of 0 means to the end of the file.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    super::check(result.into()).map(drop)
}

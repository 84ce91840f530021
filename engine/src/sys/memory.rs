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

/// Has the kernel hold the parts of a file of memory in which these bytes of it lie in huge pages, each of which a process maps with one
/// fault (`MADV_COLLAPSE`, Linux 6.1; no setting of transparent huge pages but `deny` keeps it from that). Where it cannot nothing changes.
pub fn hold_together(file: BorrowedFd<'_>, bytes: impl IntoIterator<Item = u64>) {
    /// Of both architectures, with pages of 4 KiB; with others, nothing comes of it.
    const HUGE: usize = 2 << 20;
    /// Not in libc yet.
    const MADV_COLLAPSE: libc::c_int = 25;
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    for byte in bytes {
        let start = byte / HUGE as u64 * HUGE as u64;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let room = unsafe { libc::mmap(std::ptr::null_mut(), 2 * HUGE, libc::PROT_NONE, anonymous, -1, 0) };
        if room == libc::MAP_FAILED {
            return;
        }
        let aligned = room.with_addr(room.addr().next_multiple_of(HUGE));
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
        let (fd, offset) = (file.as_raw_fd(), start.cast_signed());
        // SAFETY: what is replaced is a part of the mapping just made, in which nothing lies.
        if unsafe { libc::mmap(aligned, HUGE, libc::PROT_READ, flags, fd, offset) } != libc::MAP_FAILED {
            // SAFETY: this moves the file's pages and changes nothing of what is in them.
            unsafe { libc::madvise(aligned, HUGE, MADV_COLLAPSE) };
        }
        // SAFETY: both mappings are ours, and nothing refers to them.
        unsafe { libc::munmap(room, 2 * HUGE) };
    }
}

/// Leaves the whole pages of a piece of memory out of processes that are cloned from this one (`MADV_DONTFORK`): they begin the sooner, and
/// it is not copied when it is written to next. They must not use it.
pub fn keep_from_children(memory: &mut [u8]) {
    let page = super::page_size();
    let range = memory.as_mut_ptr_range();
    let (start, end) = (range.start.addr().next_multiple_of(page), range.end.addr() / page * page);
    if start < end {
        // SAFETY: nothing changes for this process; what is left out of a child's memory faults there.
        unsafe { libc::madvise(range.start.with_addr(start).cast(), end - start, libc::MADV_DONTFORK) };
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_together_stays_what_it_was() {
        let content: Vec<u8> = (0..251).cycle().take(5 << 20).collect();
        let sealed = seal("held-together", &content).unwrap();
        hold_together(sealed.as_fd(), [1, (2 << 20) + 1, (4 << 20) + 1, 1 << 40]);
        assert!(Sealed::map(&sealed, content.len()).unwrap().bytes() == content);
    }

    #[test]
    fn what_is_kept_from_children_is_left_out_of_a_fork_by_the_kernel() {
        let mut memory = vec![7; 1 << 20];
        keep_from_children(&mut memory);
        let kept = memory.as_ptr().addr().next_multiple_of(crate::sys::page_size());
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let holds_it = |line: &&str| {
            let (start, end) = line.split_once(' ')?.0.split_once('-')?;
            let address = |text| usize::from_str_radix(text, 16).ok();
            Some((address(start)?..address(end)?).contains(&kept))
        };
        let ours = maps.lines().skip_while(|line| holds_it(line) != Some(true));
        let flags = ours.into_iter().find(|line| line.starts_with("VmFlags:")).unwrap();
        assert!(flags.split(' ').any(|flag| flag == "dc"), "{flags}");
        assert!(memory.iter().all(|byte| *byte == 7));
    }
}

//! What the daemon holds in memory, and gives back once it needs it no more.

use libc::{c_int, c_void, size_t};

/// Bytes of a piece of memory that is not the heap's but a mapping of its own, and of what may be free at the heap's end: more than an
/// answer about a full node takes, for which pages would be mapped, cleared and unmapped again each time.
#[cfg(target_env = "gnu")]
const LARGE: c_int = 2 << 20;

/// Tells the allocator, before any thread is started, to be content with two arenas: each one keeps what its threads have freed, and
/// a daemon's threads are many and rarely allocate at the same time. And to give large pieces back at once when they are freed:
/// otherwise it takes the first one as a sign that more will be wanted, and keeps up to 64 MiB (mallopt(3), `M_MMAP_THRESHOLD`).
pub fn frugal_heap() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 2), (libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, LARGE)]
    {
        // SAFETY: mallopt takes two integers and only changes how later allocations are placed.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Bytes of the heap that are free. Some of them may have been given back: the allocator does not tell these from the others.
#[must_use]
pub fn spare() -> usize {
    // SAFETY: mallinfo2 locks the arenas one by one and returns plain numbers.
    #[cfg(target_env = "gnu")]
    return unsafe { libc::mallinfo2() }.fordblks;
    #[cfg(not(target_env = "gnu"))]
    0
}

/// Gives free heap memory back to the kernel, and does as [`forget_program`].
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim locks the arenas it works on and changes nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
    forget_program();
}

/// Takes the program's code and constants out of the page table: what start-up alone needed does not come back, the rest does with its
/// next use, from the page cache.
pub fn forget_program() {
    // SAFETY: `forget_segments` is called with valid information about each loaded object and keeps none of it.
    unsafe { libc::dl_iterate_phdr(Some(forget_segments), std::ptr::null_mut()) };
}

/// Where in the program's file something lies that belongs to its code or constants.
#[must_use]
pub fn place_in_program(thing: *const c_void) -> Option<u64> {
    let mut search = (thing.addr(), None);
    // SAFETY: `find_in_segments` is called with valid information about each loaded object, and with the pointer given here, which is valid
    // until it returns.
    unsafe { libc::dl_iterate_phdr(Some(find_in_segments), std::ptr::from_mut(&mut search).cast()) };
    search.1
}

/// Looks for the first part of the pair, an address, in the program itself, which comes first.
unsafe extern "C" fn find_in_segments(
    info: *mut libc::dl_phdr_info,
    _size: size_t,
    search: *mut c_void,
) -> c_int {
    // SAFETY: this is the pair of `place_in_program`, to which nobody else has a reference now.
    let (address, found) = unsafe { &mut *search.cast::<(usize, Option<u64>)>() };
    // SAFETY: the loader hands out a valid structure.
    let info = unsafe { &*info };
    // SAFETY: its headers are an array of this length that lives as long as the program.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    for header in headers.iter().filter(|h| h.p_type == libc::PT_LOAD) {
        let within = address.checked_sub(info.dlpi_addr as usize + header.p_vaddr as usize);
        if let Some(within) = within.filter(|within| *within < header.p_filesz as usize) {
            *found = Some(header.p_offset + within as u64);
        }
    }
    1
}

/// For each segment of a loaded object that cannot be written to.
unsafe extern "C" fn forget_segments(
    info: *mut libc::dl_phdr_info,
    _size: size_t,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: the loader hands out a valid structure.
    let info = unsafe { &*info };
    // SAFETY: its headers are an array of this length that lives as long as the program.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let page = super::page_size();
    for header in headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0) {
        let start = (info.dlpi_addr as usize + header.p_vaddr as usize).next_multiple_of(page);
        let end = (info.dlpi_addr as usize + header.p_vaddr as usize + header.p_memsz as usize) / page * page;
        if start < end {
            // SAFETY: whole pages of a private mapping of the program's file that were never written to: dropping them loses nothing,
            // they are read again from the file. Relocated data is in other, writable segments.
            unsafe { libc::madvise(start as *mut c_void, end - start, libc::MADV_DONTNEED) };
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_constants_are_found_in_the_programs_file() {
        let program = std::fs::read("/proc/self/exe").unwrap();
        let constant: &[u8; 32] = b"a constant that is in this file.";
        let place = usize::try_from(place_in_program(constant.as_ptr().cast()).unwrap()).unwrap();
        assert_eq!(&program[place..place + constant.len()], constant);
        assert!(place_in_program((give_back as fn()) as *const c_void).is_some());
        assert_eq!(place_in_program((&raw const place).cast()), None, "the stack is in no file");
    }

    #[test]
    fn the_program_goes_on_after_its_code_was_forgotten() {
        let text = || "constants and code".repeat(1000);
        let before = text();
        give_back();
        assert_eq!(text(), before);
    }
}

//! Layers that the bytes describe, merged and written as an EROFS image: another reader of the format sees the same files.
#![no_main]

use std::collections::BTreeMap;

use erofs_rs::EroFS;
use erofs_rs::backend::SliceImage;
use libfuzzer_sys::fuzz_target;
use storage::fuzzing::{Written, image};

const S_IFMT: u32 = 0o170_000;

fuzz_target!(|bytes: &[u8]| {
    let Some((image, layers, expected)) = image(bytes) else { return };
    let devices = (0..layers).map(|_| SliceImage::new(&[])).collect();
    let fs = EroFS::new_with_devices(SliceImage::new(&image), devices).expect("the superblock");
    let mut seen = BTreeMap::new();
    for entry in fs.walk_dir("/").expect("the root") {
        let entry = entry.expect("an entry");
        seen.insert(entry.dir_entry.path().to_string_lossy().into_owned(), entry.inode);
    }
    for Written { path, mode, uid, gid, size, target } in expected {
        if path == "/" {
            continue;
        }
        let inode = seen.remove(&path).unwrap_or_else(|| panic!("{path} is not there"));
        let kind = (inode.is_dir(), inode.is_file(), inode.is_symlink());
        let is = |bits| mode & S_IFMT == bits;
        assert_eq!(kind, (is(0o040_000), is(0o100_000), is(0o120_000)), "{path}");
        assert_eq!((inode.uid(), inode.gid()), (uid, gid), "{path}");
        if inode.is_file() || inode.is_symlink() {
            assert_eq!(inode.data_size(), size, "{path}");
        }
        if inode.is_symlink() {
            let link = fs.read_link_inode(inode).expect("a target");
            assert_eq!(link.to_string_lossy().as_bytes(), target, "{path}");
        }
    }
    assert!(seen.is_empty(), "nobody wrote {:?}", seen.keys());
});

//! Layers that the bytes describe, merged and written as an EROFS image: another reader of the format sees the same files.
#![no_main]

use erofs_rs::EroFS;
use erofs_rs::backend::SliceImage;
use libfuzzer_sys::fuzz_target;
use storage::fuzzing::{Written, image};

fuzz_target!(|bytes: &[u8]| {
    let Some((image, expected)) = image(bytes) else { return };
    // The reader wants to be told that the bytes stay.
    let image: &'static [u8] = Vec::leak(image);
    let fs = EroFS::new(SliceImage::new(image)).expect("the superblock");
    for Written { path, mode, uid, gid, size, target } in expected {
        let inode = fs.get_path_inode(&path).expect("the way there").expect("it is there");
        assert_eq!(inode.file_type().as_raw_mode(), mode & 0o170_000, "{path}");
        assert_eq!((inode.uid(), inode.gid()), (uid, gid), "{path}");
    }
});

//! Layer application, rule by rule (OCI image-spec layer.md, and where it is silent, what the two big runtimes do).

use super::*;

#[test]
fn a_layer_over_another_replaces_files_and_keeps_what_it_does_not_name() {
    let shown = show(&[
        Tar::new().dir("d/", 0o755).file("d/a", b"1").file("d/b", b"1"),
        Tar::new().file("d/a", b"22"),
    ]);
    assert_eq!((data(&shown, "/d/a"), data(&shown, "/d/b")), (&b"22"[..], &b"1"[..]));
}

#[test]
fn names_are_cleaned_and_never_leave_the_root() {
    let shown = show(&[Tar::new()
        .file("/abs", b"1")
        .file("./dot", b"2")
        .file("../../up", b"3")
        .file("a//b/./c", b"4")]);
    assert_eq!(names(&shown), ["/a", "/a/b", "/a/b/c", "/abs", "/dot", "/up"]);
}

#[test]
fn the_roots_own_entry_sets_its_attributes() {
    let root = Entry { kind: b'5', name: "./", mode: 0o1777, uid: 5, gid: 6, ..Entry::default() };
    let shown = show(&[Tar::new().file("x", b""), Tar::new().entry(root)]);
    assert_eq!((shown[""].mode & 0o7777, shown[""].owner), (0o1777, (5, 6)));
}

#[test]
fn a_whiteout_hides_what_lies_below_in_any_order_and_the_same_layers_entry_wins() {
    let base =
        || Tar::new().dir("d/", 0o755).file("d/a", b"1").file("d/b", b"1").dir("e/", 0o755).file("e/x", b"1");
    let top = Tar::new()
        .file("d/a", b"2")
        .file("d/.wh.a", b"")
        .file("d/.wh.b", b"")
        .file(".wh.e", b"")
        .file("e/y", b"2");
    let shown = show(&[base(), top]);
    assert_eq!(names(&shown), ["/d", "/d/a", "/e", "/e/y"]);
    assert_eq!(data(&shown, "/d/a"), b"2");
}

#[test]
fn an_opaque_mark_hides_lower_children_wherever_it_stands() {
    let base = || Tar::new().dir("d/", 0o755).file("d/old", b"1").dir("d/s/", 0o755).file("d/s/deep", b"1");
    for top in [
        Tar::new().file("d/.wh..wh..opq", b"").file("d/new", b"2"),
        Tar::new().file("d/new", b"2").file("d/.wh..wh..opq", b""),
        Tar::new().dir("d/", 0o755).file("d/new", b"2").dir("d/s/", 0o700).file("d/.wh..wh..opq", b""),
    ] {
        let shown = show(&[base(), top]);
        assert!(
            shown.contains_key("/d/new") && !shown.contains_key("/d/old") && !shown.contains_key("/d/s/deep")
        );
    }
}

#[test]
fn whiteouts_of_a_parent_and_its_child_and_of_nothing_are_fine_and_one_without_a_name_is_not() {
    let base = || Tar::new().dir("d/", 0o755).file("d/a", b"1");
    let shown = show(&[base(), Tar::new().file(".wh.d", b"").file("d/.wh.a", b"").file("no/.wh.such", b"")]);
    assert!(names(&shown).is_empty(), "{:?}", names(&shown));
    let shown = show(&[base(), Tar::new().file(".wh..wh.plnk", b"").file("k", b"")]);
    assert_eq!(names(&shown), ["/d", "/d/a", "/k"]);
    assert!(refused(&[base(), Tar::new().file("d/.wh.", b"")]).contains("whiteout without a name"));
}

#[test]
fn a_directory_over_a_directory_keeps_the_children_and_any_other_pair_replaces() {
    let base = || Tar::new().dir("a/", 0o755).file("a/x", b"1").file("b", b"1").symlink("c", "a");
    let top = || Tar::new().dir("a/", 0o700).dir("b/", 0o755).file("b/y", b"2").file("c", b"2");
    let shown = show(&[base(), top()]);
    assert_eq!(names(&shown), ["/a", "/a/x", "/b", "/b/y", "/c"]);
    assert_eq!((shown["/a"].mode & 0o777, data(&shown, "/c")), (0o700, &b"2"[..]));
    let shown = show(&[base(), top(), Tar::new().file("a", b"3"), Tar::new().dir("a/", 0o711)]);
    assert_eq!(names(&shown), ["/a", "/b", "/b/y", "/c"]);
}

#[test]
fn of_two_entries_with_one_path_the_last_wins() {
    let shown = show(&[Tar::new().file("a", b"1").file("./a", b"22")]);
    assert_eq!((names(&shown), data(&shown, "/a")), (vec!["/a"], &b"22"[..]));
}

#[test]
fn no_symlink_makes_a_tree_deeper_than_a_thousand_directories_and_that_deep_it_is_fine() {
    // Each of 25 links leads 40 directories further.
    let links = |tar: Tar, link: usize| {
        let before = if link == 0 { String::new() } else { format!("link{}/", link - 1) };
        tar.symlink(&format!("link{link}"), &(before + &"t/".repeat(40)))
    };
    let through = |last: &str| (0..25).fold(Tar::new(), links).file(&format!("link24/{last}"), b"1");
    assert_eq!(data(&show(&[through("x")]), &format!("/{}x", "t/".repeat(1000))), b"1");
    assert!(refused(&[through("t/x")]).contains("deeper than 1000 directories"));
}

#[test]
fn directories_that_layers_name_one_by_one_are_no_deeper_than_a_thousand_either() {
    // Forty directories, a link to the last of them, and so on behind the link.
    let forty = |tar: Tar, link: usize| {
        let before = if link == 0 { String::new() } else { format!("link{}/", link - 1) };
        let deeper = |tar: Tar, depth: usize| tar.dir(&(before.clone() + &"t/".repeat(depth)), 0o700);
        (1..=40).fold(tar, deeper).symlink(&format!("link{link}"), &(before.clone() + &"t/".repeat(40)))
    };
    let thousand = || (0..25).fold(Tar::new(), forty);
    let shown = show(&[thousand().file("link24/x", b"1")]);
    let deepest = "/t".repeat(1000);
    assert_eq!((shown[&deepest].mode & 0o777, &*shown[&(deepest + "/x")].data), (0o700, &b"1"[..]));
    let text = refused(&[thousand().dir("link24/t/", 0o700)]);
    assert!(text.contains("link24/t") && text.contains("deeper than 1000 directories"), "{text}");
    assert!(refused(&[thousand(), Tar::new().dir("link24/t/", 0o700)]).contains("deeper than 1000"));
    let pax = vec![("path", "t/".repeat(1001).into_bytes())];
    let straight = Tar::new().entry(Entry { kind: b'5', name: "t/", pax, ..Entry::default() });
    assert!(refused(&[straight]).contains("deeper than 1000 directories"));
}

#[test]
fn a_hard_link_reaches_a_file_that_lies_deeper_than_any_path_is_long() {
    // Forty links, each of which leads through two directories: 9600 bytes.
    let (one, two) = ("a".repeat(120), "b".repeat(120));
    let link = |tar: Tar, link: usize| {
        let before = if link == 0 { String::new() } else { format!("l{}/", link - 1) };
        let pax = vec![("linkpath", format!("{before}{one}/{two}").into_bytes())];
        tar.entry(Entry { kind: b'2', name: &format!("l{link}"), link: "cut", pax, ..Entry::default() })
    };
    let links = || (0..40).fold(Tar::new(), link);
    let layers = [links().file("l39/deep", b"1").hardlink("z", "l39/deep").hardlink("l38/b", "z")];
    for (name, bench) in benches() {
        let image = bench.image(&layers).unwrap();
        let (driver, view) = built(name, &bench, &image).map_err(|e| super::super::chain(&e)).unwrap();
        let mount = driver.mount_view(&view, None).unwrap();
        let stat = rustix::fs::statat(&mount, "z", rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
        assert_eq!((stat.st_nlink, stat.st_size), (3, 1), "{name}");
    }
}

#[test]
fn an_implied_directory_keeps_the_attributes_the_layers_below_gave_it() {
    let dir = Entry { kind: b'5', name: "d/", mode: 0o2750, uid: 3, gid: 4, ..Entry::default() };
    let shown = show(&[Tar::new().entry(dir), Tar::new().file("d/x", b"1").file("nowhere/x", b"1")]);
    assert_eq!((shown["/d"].mode & 0o7777, shown["/d"].owner), (0o2750, (3, 4)));
    assert_eq!((shown["/nowhere"].mode & 0o7777, shown["/nowhere"].owner), (0o755, (0, 0)));
}

#[test]
fn hard_links_reach_files_of_the_layers_below_and_share_their_inode() {
    let shown = show(&[Tar::new().file("a", b"1"), Tar::new().hardlink("b", "/a").hardlink("c", "b")]);
    assert_eq!((data(&shown, "/c"), shown["/a"].links, shown["/c"].links), (&b"1"[..], 3, 3));
    let shown = show(&[Tar::new().symlink("s", "nowhere").hardlink("h", "s")]);
    assert_eq!((data(&shown, "/h"), shown["/h"].links), (&b"nowhere"[..], 2));
    assert!(
        refused(&[Tar::new().hardlink("b", "later").file("later", b"")]).contains("target does not exist")
    );
}

#[test]
fn extended_attributes_are_kept_byte_for_byte_and_foreign_ones_dropped() {
    let capability = vec![1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let pax = vec![
        ("SCHILY.xattr.user.bin", vec![0, 255, b'\n', b'=']),
        ("SCHILY.xattr.security.capability", capability.clone()),
        ("SCHILY.xattr.security.selinux", b"system_u".to_vec()),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y".to_vec()),
        ("LIBARCHIVE.xattr.user.a%20b", b"aGk=".to_vec()),
    ];
    let shown =
        show(&[Tar::new().entry(Entry { name: "f", data: b"1", mode: 0o4755, pax, ..Entry::default() })]);
    let found = &shown["/f"].xattrs;
    assert_eq!(found.get("user.bin").map(Vec::as_slice), Some(&[0, 255, b'\n', b'='][..]));
    assert_eq!(found.get("security.capability"), Some(&capability));
    assert_eq!(found.get("user.a b").map(Vec::as_slice), Some(&b"hi"[..]));
    assert_eq!((found.len(), shown["/f"].mode & 0o7777), (3, 0o4755), "{found:?}");
}

#[test]
fn owners_modes_and_times_survive_large_fractional_and_negative() {
    let big = vec![
        ("uid", b"4000000000".to_vec()),
        ("gid", b"70000".to_vec()),
        ("mtime", b"1600000000.123456789".to_vec()),
    ];
    let old = vec![("mtime", b"-1.25".to_vec())];
    let shown = show(&[Tar::new()
        .entry(Entry { name: "f", mode: 0o6711, pax: big, ..Entry::default() })
        .entry(Entry { name: "old", pax: old, ..Entry::default() })]);
    assert_eq!((shown["/f"].owner, shown["/f"].mode & 0o7777), ((4_000_000_000, 70_000), 0o6711));
    assert_eq!(shown["/f"].mtime, (1_600_000_000, 123_456_789));
    assert_eq!(shown["/old"].mtime, (-2, 750_000_000));
    let bad = vec![("uid", b"4294967295".to_vec())];
    assert!(refused(&[Tar::new().entry(Entry { name: "f", pax: bad, ..Entry::default() })]).contains("uid"));
}

#[test]
fn devices_and_pipes_are_made_and_a_device_zero_is_no_whiteout() {
    let special = |kind, name, device| Entry { kind, name, device, mode: 0o600, ..Entry::default() };
    let shown = show(&[Tar::new()
        .entry(special(b'3', "null", (1, 3)))
        .entry(special(b'4', "disk", (259, 70_000)))
        .entry(special(b'6', "pipe", (0, 0)))
        .entry(special(b'3', "zero", (0, 0)))]);
    assert_eq!(names(&shown), ["/disk", "/null", "/pipe"]);
    assert_eq!(shown["/null"].device, rustix::fs::makedev(1, 3));
    assert_eq!(shown["/disk"].device, rustix::fs::makedev(259, 70_000));
}

#[test]
fn pax_records_outrank_the_header_and_a_size_that_disagrees_with_itself_is_refused() {
    let long = format!("dir/{}", "n".repeat(200));
    let mut tar = Tar::new();
    tar.raw(b'g', "global", "", b"19 path=elsewhere/x\n", &Entry::default());
    let shown = show(&[tar.entry(Entry {
        name: "short",
        data: b"1",
        pax: vec![("path", long.clone().into_bytes())],
        ..Entry::default()
    })]);
    assert_eq!(names(&shown), ["/dir".to_owned(), format!("/{long}")]);
    let twice = vec![("size", b"1".to_vec()), ("size", b"2".to_vec())];
    let text = refused(&[Tar::new().entry(Entry { name: "f", data: b"1", pax: twice, ..Entry::default() })]);
    assert!(text.contains("twice"), "{text}");
}

#[test]
fn pax_and_gnu_long_names_may_come_in_any_order_before_their_entry() {
    let mut tar = Tar::new();
    tar.raw(b'x', "x", "", b"20 mtime=1600000000\n", &Entry::default());
    tar.raw(b'L', "././@LongLink", "", format!("long/{}\0", "x".repeat(120)).as_bytes(), &Entry::default());
    tar.raw(b'K', "././@LongLink", "", format!("{}\0", "t".repeat(130)).as_bytes(), &Entry::default());
    tar.raw(b'2', "cut", "cut", b"", &Entry::default());
    let shown = show(&[tar]);
    let path = format!("/long/{}", "x".repeat(120));
    assert_eq!((data(&shown, &path).len(), shown[&path].mtime.0), (130, 1_600_000_000));
}

#[test]
fn a_path_through_a_symlink_lands_inside_the_image_wherever_the_link_points() {
    let base = || {
        Tar::new()
            .dir("usr/", 0o755)
            .dir("usr/lib/", 0o755)
            .symlink("lib", "usr/lib")
            .symlink("out", "../../etc")
    };
    let shown = show(&[base(), Tar::new().file("lib/a", b"1").file("out/passwd", b"2")]);
    assert!(shown.contains_key("/usr/lib/a") && shown.contains_key("/etc/passwd"));
    assert_eq!(data(&shown, "/lib"), b"usr/lib");
    let text = refused(&[Tar::new().symlink("l", "l").file("l/x", b"")]);
    assert!(text.contains("symbolic links"), "{text}");
    assert!(refused(&[Tar::new().file("f", b"").file("f/x", b"")]).contains("not a directory"));
}

#[test]
fn sparse_files_of_all_forms_show_their_holes() {
    let mut expected = vec![0_u8; 12_000];
    expected[4096..4608].fill(1);
    expected[8192..8704].fill(2);
    let stored = [[1_u8; 512], [2_u8; 512]].concat();
    let pax_01 = vec![
        ("GNU.sparse.major", b"0".to_vec()),
        ("GNU.sparse.minor", b"1".to_vec()),
        ("GNU.sparse.size", b"12000".to_vec()),
        ("GNU.sparse.map", b"4096,512,8192,512".to_vec()),
        ("GNU.sparse.name", b"one".to_vec()),
    ];
    let pax_10 = vec![
        ("GNU.sparse.major", b"1".to_vec()),
        ("GNU.sparse.minor", b"0".to_vec()),
        ("GNU.sparse.realsize", b"12000".to_vec()),
        ("GNU.sparse.name", b"two".to_vec()),
    ];
    let mut lines = b"2\n4096\n512\n8192\n512\n".to_vec();
    lines.resize(512, 0);
    lines.extend_from_slice(&stored);
    let shown = show(&[Tar::new()
        .entry(Entry { name: "x", data: &stored, pax: pax_01, ..Entry::default() })
        .entry(Entry { name: "y", data: &lines, pax: pax_10, ..Entry::default() })
        .file("after", b"in step")]);
    assert_eq!(names(&shown), ["/after", "/one", "/two"]);
    assert!(data(&shown, "/one") == expected && data(&shown, "/two") == expected);
}

#[test]
fn broken_tars_are_refused_with_the_offset() {
    let whole = || Tar::new().file("a", &[1; 2000]);
    let mut cut = whole();
    cut.0.truncate(1500);
    let bench = Bench::new();
    let text = super::super::chain(&bench.layer(0, &cut.0).unwrap_err());
    assert!(text.contains("offset 0") && text.contains("ends inside"), "{text}");
    let mut flipped = Tar::new().file("a", b"1").file("b", b"2");
    flipped.0[1024] ^= 1;
    assert!(refused(&[flipped]).contains("offset 1024: header checksum"));
    assert!(
        refused(&[Tar::new().entry(Entry { kind: b'M', name: "m", ..Entry::default() })]).contains("'M'")
    );
    assert!(
        refused(&[Tar::new().file(&"n".repeat(60), b"").entry(Entry {
            name: "x",
            pax: vec![("path", "n".repeat(256).into_bytes())],
            ..Entry::default()
        })])
        .contains("component longer than 255")
    );
}

#[test]
fn an_image_without_entries_is_an_empty_directory() {
    assert!(names(&show(&[Tar::new()])).is_empty());
    assert!(names(&show(&[])).is_empty());
}

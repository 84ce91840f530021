//! Root file systems, as directories, out of Debian packages.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::shell;

/// Users and groups the specs know by name.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
    www-data:x:33:33:www-data:/var/www:/bin/false\ndefault-user:x:1000:1000::/home/default-user:/bin/sh\n\
    nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nwww-data:x:33:\nusers:x:100:\ndefault-user:x:1000:\n\
    group-defined-in-image:x:50000:default-user\nnogroup:x:65534:\n";

/// busybox with a hard link per applet, as its public image has it, and what Debian's lacks: `ipcs` of util-linux, `pgrep` of procps.
pub(super) fn busybox(root: &Path) -> Result<PathBuf> {
    for dir in [
        "bin",
        "etc",
        "root",
        "home/default-user",
        "var/run",
        "var/log",
        "www",
        "usr/sbin",
        "proc",
        "sys",
        "dev",
    ] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::create_dir_all(root.join("tmp"))?;
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::write(root.join("etc/passwd"), PASSWD)?;
    fs::write(root.join("etc/group"), GROUP)?;
    fs::write(root.join("www/index.html"), "a page of the test server\n")?;
    let binary = root.join("bin/busybox");
    let source = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| Path::new(path).exists());
    fs::copy(source.context("busybox-static is not installed")?, &binary)?;
    let applets = shell::run(10, &binary.display().to_string(), &["--list"])?;
    for applet in applets.lines().filter(|&name| name != "busybox") {
        fs::hard_link(&binary, root.join("bin").join(applet))?;
    }
    dynamic(root, Path::new("/usr/bin/ipcs"))?;
    dynamic(root, Path::new("/usr/bin/pgrep"))?;
    Ok(root.to_owned())
}

/// A single file that makes the image unlike every other.
pub(super) fn one_file(root: &Path, text: &str) -> Result<PathBuf> {
    fs::create_dir_all(root)?;
    fs::write(root.join("name"), text)?;
    Ok(root.to_owned())
}

/// A set-uid program that prints its effective user id.
pub(super) fn set_uid_reporter(root: &Path) -> Result<PathBuf> {
    let main = "#include <stdio.h>\n#include <unistd.h>\n\
        int main(void) { return printf(\"Effective uid: %d\\n\", (int)geteuid()) < 0; }\n";
    compile(root, "nnp", main)?;
    fs::set_permissions(root.join("nnp"), fs::Permissions::from_mode(0o4755))?;
    Ok(root.to_owned())
}

/// What other runtimes run to hold a pod's namespaces: waits, reaps, ends on SIGTERM.
pub(super) fn pause(root: &Path) -> Result<PathBuf> {
    let main = "#include <signal.h>\n#include <unistd.h>\nstatic void end(int s) { (void)s; _exit(0); }\n\
        int main(void) { signal(SIGTERM, end); signal(SIGINT, end); signal(SIGCHLD, SIG_IGN); for (;;) pause(); }\n";
    compile(root, "pause", main)
}

/// A static program, by the C compiler that building Berth needs anyway.
fn compile(root: &Path, name: &str, main: &str) -> Result<PathBuf> {
    fs::create_dir_all(root)?;
    let (source, binary) = (root.with_extension("c"), root.join(name));
    fs::write(&source, main)?;
    let (from, to) = (source.display().to_string(), binary.display().to_string());
    shell::run(60, "cc", &["-static", "-O1", "-s", "-o", &to, &from])?;
    Ok(root.to_owned())
}

/// nginx out of its Debian package, to go over busybox.
pub(super) fn nginx(root: &Path, packages: &Path, port: u16) -> Result<PathBuf> {
    for dir in ["usr/sbin", "etc/nginx", "var/log/nginx", "var/lib/nginx", "var/run", "usr/share/nginx/html"]
    {
        fs::create_dir_all(root.join(dir))?;
    }
    let unpacked = unpack(packages, "nginx")?;
    fs::copy(unpacked.join("usr/sbin/nginx"), root.join("usr/sbin/nginx"))?;
    libraries(root, &unpacked.join("usr/sbin/nginx"), Some(&unpacked))?;
    fs::write(root.join("usr/share/nginx/html/index.html"), "a page of nginx\n")?;
    let server = format!("server {{ listen {port}; root /usr/share/nginx/html; }}");
    fs::write(
        root.join("etc/nginx/nginx.conf"),
        format!(
            "user www-data;\npid /var/run/nginx.pid;\nevents {{}}\nhttp {{ access_log /dev/stdout; error_log /dev/stderr; {server} }}\n"
        ),
    )?;
    Ok(root.to_owned())
}

/// Three layers: the second hides a file and a directory of the first, the third replaces one and adds odd names.
pub(super) fn stack(dir: &Path) -> Result<[PathBuf; 3]> {
    let layers = ["base", "middle", "top"].map(|name| dir.join(name));
    let [base, middle, top] = &layers;
    fs::create_dir_all(base.join("data/hidden-dir"))?;
    fs::create_dir_all(base.join("data/opaque"))?;
    for (path, text) in
        [("kept", "base"), ("gone", "base"), ("replaced", "base"), ("hidden-dir/x", ""), ("opaque/old", "")]
    {
        fs::write(base.join("data").join(path), text)?;
    }
    fs::create_dir_all(middle.join("data/opaque"))?;
    for path in [".wh.gone", ".wh.hidden-dir", "opaque/.wh..wh..opq", "opaque/new"] {
        fs::write(middle.join("data").join(path), "")?;
    }
    fs::create_dir_all(top.join("data"))?;
    fs::write(top.join("data/replaced"), "top")?;
    symlink("replaced", top.join("data/link"))?;
    fs::hard_link(top.join("data/replaced"), top.join("data/hard"))?;
    let owned = top.join("data/name with spaces and ünïcode");
    fs::write(&owned, "odd")?;
    chown(&owned, Some(1000), Some(50000))?;
    fs::set_permissions(&owned, fs::Permissions::from_mode(0o640))?;
    Ok(layers)
}

// === packages and libraries ===

/// Downloads a Debian package with its libraries (not their dependencies: libc6 is one of them) and unpacks all of them.
fn unpack(packages: &Path, name: &str) -> Result<PathBuf> {
    let root = packages.join("root");
    if root.join("usr").exists() {
        return Ok(root);
    }
    fs::create_dir_all(&root)?;
    let cache = std::env::var("BERTH_TEST_DEBS").context("BERTH_TEST_DEBS is not set: use tests/run")?;
    for entry in fs::read_dir(&cache).with_context(|| format!("packages of {name} in {cache}"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            shell::run(60, "dpkg-deb", &["-x", &path.display().to_string(), &root.display().to_string()])?;
        }
    }
    Ok(root)
}

/// Copies a dynamically linked program of this machine with its libraries.
fn dynamic(root: &Path, program: &Path) -> Result<()> {
    fs::copy(program, root.join("bin").join(program.file_name().context("a program has a name")?))?;
    libraries(root, program, None)
}

/// Copies what the dynamic linker would load, from below `prefix` where it is there, else from this machine.
fn libraries(root: &Path, program: &Path, prefix: Option<&Path>) -> Result<()> {
    let search = prefix.map_or_else(String::new, |prefix| {
        [
            "usr/lib/x86_64-linux-gnu",
            "lib/x86_64-linux-gnu",
            "usr/lib/aarch64-linux-gnu",
            "lib/aarch64-linux-gnu",
        ]
        .map(|dir| prefix.join(dir).display().to_string())
        .join(":")
    });
    let search = format!("LD_LIBRARY_PATH={search}");
    let listing = shell::run(10, "env", &[&search, "ldd", &program.display().to_string()])?;
    for line in listing.lines() {
        let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) else { continue };
        let path = Path::new(path);
        let name = path.file_name().context("a library has a name")?;
        // The interpreter is found by its full path, everything else in the default directories.
        let inside = if line.contains("=>") { Path::new("/usr/lib").join(name) } else { path.to_owned() };
        let target = root.join(inside.strip_prefix("/")?);
        fs::create_dir_all(target.parent().context("a library is in a directory")?)?;
        fs::copy(path, target).with_context(|| format!("library {}", path.display()))?;
    }
    Ok(())
}

//! The image verbs of the binary against real registries, with real tools as witnesses: every digest stays, no byte is fetched twice.

mod proxy;
mod site;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::images::{BUSYBOX, LAYERED};
use crate::node::Node;
use crate::report::Report;
use crate::shell;
use crate::world::World;
use proxy::Proxy;
use site::Site;

/// Runs the suite.
///
/// # Errors
/// The daemon or the registry does not start.
pub fn run(world: &World, report: &mut Report) -> Result<()> {
    let (mut node, before) = super::node(world, "verbs")?;
    let berth = Berth {
        program: world.berth.display().to_string(),
        socket: format!("unix://{}", node.socket.display()),
    };
    names(report, &berth);
    files(world, report, &berth, &node);
    pushes(world, report, &berth);
    transfers(world, report)?;
    report.case("fsck names a damaged layer, fsck --repair fetches it again", || {
        let layers = fs::read_dir(node.dir.join("root/layers/sha256"))?;
        let mut layers = layers.map(|layer| Ok(layer?.path())).collect::<Result<Vec<_>>>()?;
        layers.sort();
        let layer = layers.first().context("no layer")?;
        let mut tar = fs::read(layer.join("tar"))?;
        tar[700] ^= 1;
        fs::write(layer.join("tar"), &tar)?;
        let name = layer.file_name().and_then(|name| name.to_str()).context("no name")?;
        let output = shell::output(60, &berth.program, &berth.line(&["fsck"]))?;
        ensure!(
            !output.status.success() && String::from_utf8_lossy(&output.stdout).contains(name),
            "{output:?}"
        );
        let repaired = berth.run(&["fsck", "--repair"])?;
        ensure!(repaired.contains(name) && repaired.contains("what they were again"), "{repaired}");
        tar[700] ^= 1;
        ensure!(fs::read(layer.join("tar"))? == tar);
        Ok(())
    });
    report.case("fsck finds nothing, gc --all removes everything", || {
        ensure!(berth.run(&["fsck"])?.contains("all layers are what they were\n"));
        berth.run(&["gc", "--all"])?;
        ensure!(berth.run(&["images", "--json"])?.trim() == "[]", "images are left");
        Ok(())
    });
    report.case("leaves nothing behind", || node.settle(&before));
    Ok(())
}

/// The binary, speaking to one daemon.
struct Berth {
    program: String,
    socket: String,
}

impl Berth {
    fn run(&self, args: &[&str]) -> Result<String> {
        shell::run(120, &self.program, &self.line(args))
    }

    /// The line of a failure.
    fn fails(&self, args: &[&str]) -> Result<String> {
        let output = shell::output(120, &self.program, &self.line(args))?;
        ensure!(!output.status.success(), "{args:?} succeeded");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn line<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        args.iter().copied().chain(["--address", self.address()]).collect()
    }

    fn address(&self) -> &str {
        &self.socket
    }

    fn on(world: &World, node: &Node) -> Self {
        let socket = format!("unix://{}", node.socket.display());
        Self { program: world.berth.display().to_string(), socket }
    }
}

/// One field of `berth inspect`.
fn inspected(berth: &Berth, image: &str, field: &str) -> Result<String> {
    let value: serde_json::Value = serde_json::from_str(&berth.run(&["inspect", image])?)?;
    Ok(value[field].as_str().unwrap_or_default().to_owned())
}

fn names(report: &mut Report, berth: &Berth) {
    report.case(
        "pull prints the id, lines of progress without a terminal, and a job that can be looked at",
        || {
            let output = shell::output(60, &berth.program, &berth.line(&["pull", LAYERED]))?;
            let (out, err) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            ensure!(output.status.success() && out.contains("sha256:"), "{out}{err}");
            ensure!(!err.contains('\u{1b}'), "escape sequences without a terminal: {err}");
            let jobs: serde_json::Value = serde_json::from_str(&berth.run(&["jobs", "--json"])?)?;
            let pull = jobs.as_array().and_then(|all| all.iter().find(|job| job["name"] == "PullImage"));
            let pull = pull.context("no PullImage among the jobs")?;
            let layers = pull["progress"]["layers"].as_array().map_or(0, Vec::len);
            ensure!(layers == 4 && pull["progress"]["layers"][0]["finished"] == true, "{pull}");
            Ok(())
        },
    );
    report.case("tag gives a second name, and takes it from whoever had it", || {
        berth.run(&["pull", BUSYBOX])?;
        berth.run(&["tag", LAYERED, "local.example/it:1"])?;
        let id = inspected(berth, LAYERED, "id")?;
        ensure!(inspected(berth, "local.example/it:1", "id")? == id);
        berth.run(&["tag", BUSYBOX, "local.example/it:1"])?;
        ensure!(inspected(berth, "local.example/it:1", "id")? != id);
        ensure!(berth.fails(&["tag", "absent.example/x", "y:1"])?.contains("absent.example/x"));
        Ok(())
    });
    report.case("search names repositories and tags", || {
        let found = berth.run(&["search", "127.0.0.1:5000/suite/lay"])?;
        ensure!(found.contains("127.0.0.1:5000/suite/layered"), "{found}");
        let tags = berth.run(&["search", "--tags", LAYERED])?;
        ensure!(tags.contains("latest"), "{tags}");
        Ok(())
    });
}

// === files ===

fn files(world: &World, report: &mut Report, berth: &Berth, node: &Node) {
    let file = node.dir.join("saved.tar").display().to_string();
    report.case("save writes an archive in which skopeo finds the same manifest", || {
        berth.run(&["save", LAYERED, "-o", &file])?;
        let raw = shell::run(30, "skopeo", &["inspect", "--raw", &format!("oci-archive:{file}:latest")])?;
        ensure!(crate::images::digest(raw.as_bytes()) == inspected(berth, LAYERED, "manifestDigest")?);
        Ok(())
    });
    let layout = format!("{}/", node.dir.join("layout").display());
    report.case("save writes a layout that skopeo copies without changing a digest", || {
        berth.run(&["save", BUSYBOX, "-o", &layout])?;
        let copy = format!("oci:{}:x", node.dir.join("copy").display());
        let from = format!("oci:{}", layout.trim_end_matches('/'));
        shell::run(60, "skopeo", &["--insecure-policy", "copy", "-q", "--preserve-digests", &from, &copy])?;
        let raw = shell::run(30, "skopeo", &["inspect", "--raw", &copy])?;
        ensure!(crate::images::digest(raw.as_bytes()) == inspected(berth, BUSYBOX, "manifestDigest")?);
        Ok(())
    });
    if shell::installed("umoci") {
        report.case("umoci unpacks a saved layout", || {
            let bundle = node.dir.join("bundle");
            let image = format!("{}:1.29-2", layout.trim_end_matches('/'));
            shell::run(60, "umoci", &["unpack", "--image", &image, &bundle.display().to_string()])?;
            ensure!(bundle.join("rootfs/bin/sh").symlink_metadata().is_ok(), "no shell in it");
            Ok(())
        });
    } else {
        report.skip("umoci unpacks a saved layout", "umoci");
    }
    report.case(
        "save, a pipe, load: another node has the same image, and needs no registry to save it again",
        || {
            let other = Node::start(world, "verbs-other")?;
            let there = Berth::on(world, &other);
            pipe(berth, &["save", LAYERED], &there, &["load"])?;
            let field = |name| {
                Ok::<_, anyhow::Error>((inspected(berth, LAYERED, name)?, inspected(&there, LAYERED, name)?))
            };
            for (here, there) in [field("id")?, field("manifestDigest")?] {
                ensure!(here == there, "{here} is {there} there");
            }
            let again = other.dir.join("again.tar").display().to_string();
            there.run(&["save", LAYERED, "-o", &again])?;
            ensure!(fs::read(&again)? == fs::read(&file)?, "the archives differ");
            there.run(&["load", "-i", layout.trim_end_matches('/')])?;
            ensure!(inspected(&there, BUSYBOX, "id")? == inspected(berth, BUSYBOX, "id")?);
            ensure!(there.run(&["fsck"])?.contains("all layers"));
            Ok(())
        },
    );
    report.case("an archive that is none is one clear line", || {
        let bad = node.dir.join("bad.tar").display().to_string();
        fs::write(&bad, "nothing of the kind")?;
        let line = berth.fails(&["load", "-i", &bad])?;
        ensure!(line.lines().count() == 1 && line.contains("archive"), "{line}");
        ensure!(berth.fails(&["save", "absent.example/x:1", "-o", &bad])?.contains("absent.example/x:1"));
        Ok(())
    });
}

/// Runs one command into another.
fn pipe(from: &Berth, first: &[&str], to: &Berth, second: &[&str]) -> Result<()> {
    let mut writer = Command::new(&from.program)
        .args(from.line(first))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start the first")?;
    let out = writer.stdout.take().context("no output")?;
    let reader =
        Command::new(&to.program).args(to.line(second)).stdin(out).output().context("start the second")?;
    let written = writer.wait()?;
    ensure!(written.success() && reader.status.success(), "{}", String::from_utf8_lossy(&reader.stderr));
    Ok(())
}

// === registries with doors ===

fn pushes(world: &World, report: &mut Report, berth: &Berth) {
    if !shell::installed("openssl") {
        report.skip("push to a registry with TLS and a password", "openssl");
        return;
    }
    let registries = [
        ("docker-registry", Some("docker-registry".to_owned())),
        ("distribution v3", world.tool("REGISTRY")),
    ];
    for (name, program) in registries {
        let case =
            format!("push to {name} with TLS, a client certificate and a password, and pull from there");
        match program {
            None => report.skip(&case, name),
            Some(program) => {
                report.case(&case, || push_and_pull(world, berth, &program));
            }
        }
    }
}

fn push_and_pull(world: &World, berth: &Berth, program: &str) -> Result<()> {
    let site = Site::start(&world.dir.join(format!("site-{}", program.len())), program)?;
    let target = format!("{}/pushed/it:v1", site.address);
    let mirrors = &world.registry()?.mirrors;
    site.install(mirrors, false)?;
    let line = berth.fails(&["push", LAYERED, &target, "--creds", "user:secret"])?;
    ensure!(line.contains("TLS"), "an unknown authority is trusted: {line}");
    site.install(mirrors, true)?;
    let line = berth.fails(&["push", LAYERED, &target, "--creds", "user:wrong"])?;
    ensure!(line.contains(&site.address) && !line.contains("wrong"), "{line}");
    let pushed = berth.run(&["push", LAYERED, &target, "--creds", "user:secret"])?;
    let digest = inspected(berth, LAYERED, "manifestDigest")?;
    ensure!(pushed.contains(&digest), "{pushed}");
    let again = berth.run(&["push", LAYERED, &target, "--creds", "user:secret"])?;
    ensure!(again.contains(" 0 B sent"), "{again}");
    let other = Node::start(world, &format!("verbs-door-{}", program.len()))?;
    let there = Berth::on(world, &other);
    ensure!(there.fails(&["pull", &target])?.contains("password"), "it lets anybody in");
    there.run(&["pull", &target, "--creds", "user:secret"])?;
    ensure!(inspected(&there, &target, "manifestDigest")? == digest);
    let auth = other.dir.join("auth.json");
    fs::write(&auth, format!("{{\"auths\": {{\"{}\": {{\"auth\": \"dXNlcjpzZWNyZXQ=\"}}}}}}", site.address))?;
    there.run(&["pull", &target, "--authfile", &auth.display().to_string()])?;
    Ok(())
}

// === transfers that break ===

/// Bytes of the layer that is transferred.
const BIG: u64 = 60_000_000;

fn transfers(world: &World, report: &mut Report) -> Result<()> {
    let dir = world.dir.join("transfers");
    fs::create_dir_all(&dir)?;
    let layout = big_image(&dir)?;
    let mut registry = site::Plain::start(&dir)?;
    let to = format!("docker://{}/big:1", registry.address);
    let from = format!("oci:{}", layout.display());
    shell::run(
        60,
        "skopeo",
        &["--insecure-policy", "copy", "-q", "--dest-tls-verify=false", "--preserve-digests", &from, &to],
    )?;
    report.case("a proxy that cuts every 10 MB: bytes on the wire are at most 1.02 times the size", || {
        let proxy = Proxy::start(&registry.address)?;
        proxy.cut_every(10_000_000);
        let (node, berth) = fresh(world, "verbs-cut")?;
        berth.run(&["pull", &format!("{}/big:1", proxy.address)])?;
        within(&proxy)?;
        drop(node);
        Ok(())
    });
    report.case("a daemon killed in the middle goes on from there", || {
        let proxy = Proxy::start(&registry.address)?;
        proxy.hold_after(BIG / 2);
        let (mut node, berth) = fresh(world, "verbs-kill")?;
        let image = format!("{}/big:1", proxy.address);
        let mut pulling =
            Command::new(&berth.program).args(berth.line(&["pull", &image])).stderr(Stdio::null()).spawn()?;
        shell::eventually("half of the layer is here", 30, || Ok(proxy.is_holding().then_some(())))?;
        node.end(Signal::SIGKILL)?;
        ensure!(!pulling.wait()?.success(), "the pull ended well without a daemon");
        proxy.release();
        node.launch()?;
        berth.run(&["pull", &image])?;
        // What the kernel still held for the daemon when it died is gone with it, up to a socket's receive buffer (tcp(7)).
        let moved = proxy.moved();
        ensure!((BIG..=BIG * 5 / 4).contains(&moved), "{moved} bytes for {BIG}");
        Ok(())
    });
    report.case("a registry restarted in the middle is asked for the rest", || {
        let proxy = Proxy::start(&registry.address)?;
        proxy.hold_after(BIG / 2);
        let (_node, berth) = fresh(world, "verbs-restart")?;
        let image = format!("{}/big:1", proxy.address);
        let mut pulling = Command::new(&berth.program).args(berth.line(&["pull", &image])).spawn()?;
        shell::eventually("half of the layer is here", 30, || Ok(proxy.is_holding().then_some(())))?;
        registry.restart()?;
        proxy.cut_all();
        proxy.release();
        ensure!(pulling.wait()?.success(), "the pull failed");
        within(&proxy)
    });
    Ok(())
}

fn fresh(world: &World, name: &str) -> Result<(Node, Berth)> {
    let node = Node::start(world, name)?;
    let berth = Berth::on(world, &node);
    Ok((node, berth))
}

/// What has crossed the wire, headers and small blobs included.
fn within(proxy: &Proxy) -> Result<()> {
    let moved = proxy.moved();
    ensure!((BIG..=BIG * 102 / 100).contains(&moved), "{moved} bytes for {BIG}");
    Ok(())
}

/// An OCI layout with one layer of noise.
fn big_image(dir: &Path) -> Result<std::path::PathBuf> {
    let root = dir.join("root");
    fs::create_dir_all(&root)?;
    let mut state = 1_u64;
    let mut noise = Vec::with_capacity(usize::try_from(BIG)?);
    while (noise.len() as u64) < BIG {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        noise.extend_from_slice(&state.to_be_bytes()[..4]);
    }
    fs::write(root.join("noise"), noise)?;
    crate::images::single(dir, "example.test/big:1", &root)
}

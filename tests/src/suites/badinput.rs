//! What is wrong from outside gets one clear line that names it, the right gRPC code, and leaves nothing behind.

mod liar;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as api;
use tonic::{Code, Status};

use super::wait;
use crate::census::Census;
use crate::client::{self, Client};
use crate::images::{BUSYBOX, FOREIGN};
use crate::node::Node;
use crate::report::Report;
use crate::shell;
use crate::world::World;
use liar::Liar;

/// Runs the suite.
///
/// # Errors
/// The daemon does not start.
pub fn run(world: &World, report: &mut Report) -> Result<()> {
    // The kubelet's habit of mounting what is not there yet is off, so that the missing source is an error here.
    let mut node = Node::with_config(world, "badinput", "[engine]\ncreate_missing_host_paths = false\n")?;
    let before = Census::take(node.pid())?;
    let liar = Liar::start()?;
    pulls(report, &node, &liar);
    containers(report, &node);
    processes(world, report, &node);
    drop(liar);
    report.case("no failed pull left a file behind", || no_file_below(&node.dir.join("root/staging")));
    report.case("leaves nothing behind", || node.settle(&before));
    Ok(())
}

/// An error must carry `code` and a text of one line that names the thing.
fn refused<T: std::fmt::Debug>(outcome: Result<T, Status>, codes: &[Code], names: &[&str]) -> Result<()> {
    let status = outcome.err().context("it was accepted")?;
    let text = status.message();
    ensure!(codes.contains(&status.code()), "{:?} instead of {codes:?}: {text}", status.code());
    ensure!(!text.contains('\n') && text.len() < 600, "not one line: {text}");
    for name in names {
        ensure!(text.contains(name), "{name:?} is not named: {text}");
    }
    Ok(())
}

// === images ===

fn pulls(report: &mut Report, node: &Node, liar: &Liar) {
    let absent = "registry.k8s.io/e2e-test-images/absent:9";
    let digest = format!("sha256:{}", "ab".repeat(32));
    let wrong = format!("registry.k8s.io/e2e-test-images/busybox@{digest}");
    let cases: [(&str, String, &[Code], Vec<&str>); 10] = [
        ("a missing image is NotFound", absent.to_owned(), &[Code::NotFound], vec!["absent"]),
        ("a digest nobody has is NotFound", wrong, &[Code::NotFound], vec![digest.as_str()]),
        (
            "an image for other platforms names this one",
            FOREIGN.to_owned(),
            &[Code::NotFound, Code::FailedPrecondition],
            vec!["linux/"],
        ),
        (
            "a reference that is none is InvalidArgument",
            "Not A Name".to_owned(),
            &[Code::InvalidArgument],
            vec!["Not A Name"],
        ),
        (
            "an unreachable registry is Unavailable",
            "127.0.0.1:1/nobody:1".to_owned(),
            &[Code::Unavailable],
            vec!["127.0.0.1:1"],
        ),
        (
            "a manifest with another digest is refused",
            liar.digest_reference(),
            &[Code::DataLoss, Code::Internal, Code::FailedPrecondition, Code::Unavailable],
            vec!["sha256:"],
        ),
        ("a corrupt layer is refused", liar.image("corrupt"), &[Code::Unavailable], vec!["sha256:"]),
        ("a truncated layer is refused", liar.image("truncated"), &[Code::Unavailable], vec!["sha256:"]),
        (
            "a layer that unpacks to something else than its config says is refused",
            liar.image("diffid"),
            &[Code::InvalidArgument],
            vec!["sha256:"],
        ),
        (
            "a manifest that is no manifest is refused",
            liar.image("garbage"),
            &[
                Code::DataLoss,
                Code::Internal,
                Code::InvalidArgument,
                Code::FailedPrecondition,
                Code::Unavailable,
            ],
            vec!["manifest"],
        ),
    ];
    for (name, image, codes, names) in cases {
        report.case(name, || {
            wait(async {
                let mut client = node.client().await?;
                refused(client.pull(&image).await, codes, &names)?;
                let filter = Some(api::ImageSpec { image: image.clone(), ..Default::default() });
                let request = api::ImageStatusRequest { image: filter, verbose: false };
                match client.image.image_status(request).await {
                    Ok(answer) => ensure!(answer.into_inner().image.is_none(), "it is listed all the same"),
                    Err(status) => ensure!(status.code() == Code::InvalidArgument, "{status}"),
                }
                Ok(())
            })
        });
    }
}

/// No file of the refused images may stay on disk; the directories are furniture.
fn no_file_below(dir: &Path) -> Result<()> {
    let files = shell::run(10, "find", &[&dir.display().to_string(), "-type", "f"])?;
    ensure!(files.is_empty(), "{files}");
    Ok(())
}

// === containers ===

/// What makes a container request bad, and the texts its refusal holds.
type Spoil = fn(&mut api::ContainerConfig);

const CONTAINERS: [(&str, Spoil, &[Code], &[&str]); 11] = [
    (
        "a command that is not in the image",
        |c| c.command = vec!["/no/such".into()],
        &[Code::NotFound, Code::FailedPrecondition, Code::InvalidArgument],
        &["/no/such"],
    ),
    (
        "a bare command that is not on the image's PATH",
        |c| c.command = vec!["nosuch".into()],
        &[Code::NotFound, Code::FailedPrecondition, Code::InvalidArgument],
        &["nosuch"],
    ),
    (
        "an entrypoint that is not executable",
        |c| c.command = vec!["/etc/passwd".into()],
        &[Code::PermissionDenied, Code::FailedPrecondition, Code::InvalidArgument],
        &["/etc/passwd"],
    ),
    (
        "a user name the image does not know",
        |c| user(c, "nosuchuser"),
        &[Code::NotFound, Code::FailedPrecondition, Code::InvalidArgument],
        &["nosuchuser"],
    ),
    (
        "a log path that cannot be written",
        |c| c.log_path = "/dev/null/x/main.log".into(),
        &[
            Code::FailedPrecondition,
            Code::InvalidArgument,
            Code::Internal,
            Code::PermissionDenied,
            Code::NotFound,
        ],
        &["main.log"],
    ),
    (
        "an image that was never pulled",
        |c| image(c, "registry.k8s.io/never:1"),
        &[Code::NotFound],
        &["registry.k8s.io/never:1"],
    ),
    (
        "a mount whose source is missing",
        |c| c.mounts = vec![mount("/no/source", "/x")],
        &[Code::NotFound, Code::FailedPrecondition, Code::InvalidArgument],
        &["/no/source"],
    ),
    (
        "a device that does not exist",
        device,
        &[Code::NotFound, Code::FailedPrecondition, Code::InvalidArgument],
        &["/dev/nosuch"],
    ),
    (
        "a seccomp profile that does not exist",
        profile,
        &[Code::NotFound, Code::FailedPrecondition, Code::InvalidArgument],
        &["/no/profile.json"],
    ),
    ("a capability nobody knows", capability, &[Code::InvalidArgument], &["CAP_FLY"]),
    ("no metadata", |c| c.metadata = None, &[Code::InvalidArgument], &["metadata"]),
];

fn containers(report: &mut Report, node: &Node) {
    let pod = wait(async {
        let mut client = node.client().await?;
        client.pull(BUSYBOX).await?;
        let config = client::pod("bad", &node.dir.join("logs"));
        Ok((client.run_pod(&config).await?, config))
    });
    let (pod, config) = match pod {
        Ok(pod) => pod,
        Err(error) => return report.record("a pod for the cases", 0.0, Some(format!("{error:#}"))),
    };
    for (name, spoil, codes, names) in CONTAINERS {
        report.case(&format!("{name} is refused by name"), || {
            let mut spec = client::container("bad", BUSYBOX, &["sleep", "100"]);
            spoil(&mut spec);
            wait(attempt(node, &pod, &config, &spec, codes, names))
        });
    }
    report.case("a request for what is not there says so", || wait(absent(node)));
    report.case("a container that nests directories deeper than any stack is removed", || {
        wait(nested(node, &pod, &config))?;
        shell::eventually("the trash is empty", 60, || {
            Ok(fs::read_dir(node.dir.join("root/trash"))?.next().is_none().then_some(()))
        })
    });
    report.case("the pod of the refused containers goes away", || {
        wait(async { Ok(node.client().await?.remove_pod(&pod).await?) })
    });
}

/// Create or Start has to refuse; afterwards the container can be removed and is gone.
async fn attempt(
    node: &Node,
    pod: &str,
    config: &api::PodSandboxConfig,
    spec: &api::ContainerConfig,
    codes: &[Code],
    names: &[&str],
) -> Result<()> {
    let mut client = node.client().await?;
    let outcome = match client.create(pod, spec, config).await {
        Ok(container) => {
            let outcome = client.start(&container).await;
            if outcome.is_err() {
                let status = client.status(&container).await?;
                ensure!(
                    status.state() == api::ContainerState::ContainerExited && status.reason == "StartError",
                    "{status:?}"
                );
            }
            client.runtime.remove_container(api::RemoveContainerRequest { container_id: container }).await?;
            outcome
        }
        Err(status) => Err(status),
    };
    refused(outcome, codes, names)?;
    let listed = client.runtime.list_containers(api::ListContainersRequest::default()).await?.into_inner();
    ensure!(listed.containers.is_empty(), "{:?}", listed.containers);
    Ok(())
}

/// Nests 20,000 directories in the container's writable layer, and removes the container.
async fn nested(node: &Node, pod: &str, config: &api::PodSandboxConfig) -> Result<()> {
    // Each round puts what there is at the bottom of 500 more; no path is too long.
    const SCRIPT: &str = "deep=$(for i in $(seq 500); do printf d/; done); cd /tmp; mkdir nest
        for i in $(seq 40); do mkdir -p new/$deep && mv nest new/$deep && mv new nest || exit 1; done; echo nested";
    let mut client = node.client().await?;
    let spec = client::container("nested", BUSYBOX, &["sh", "-c", "exec sleep 1000"]);
    let container = client.create(pod, &spec, config).await?;
    client.start(&container).await?;
    let output = client.exec(&container, &["sh", "-c", SCRIPT]).await?;
    ensure!(output.stdout == b"nested\n", "{output:?}");
    Ok(client.discard(&container).await?)
}

async fn absent(node: &Node) -> Result<()> {
    let mut client: Client = node.client().await?;
    let id = "f".repeat(64);
    refused(client.start(&id).await, &[Code::NotFound], &[&id])?;
    refused(client.status(&id).await, &[Code::NotFound], &[&id])?;
    refused(client.exec(&id, &["true"]).await, &[Code::NotFound], &[&id])?;
    client.remove_pod(&id).await?;
    Ok(client.discard(&id).await?)
}

fn security(config: &mut api::ContainerConfig) -> &mut api::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

fn user(config: &mut api::ContainerConfig, name: &str) {
    name.clone_into(&mut security(config).run_as_username);
}

fn image(config: &mut api::ContainerConfig, name: &str) {
    config.image = Some(api::ImageSpec { image: name.to_owned(), ..Default::default() });
}

fn mount(host: &str, inside: &str) -> api::Mount {
    api::Mount { host_path: host.to_owned(), container_path: inside.to_owned(), ..Default::default() }
}

fn device(config: &mut api::ContainerConfig) {
    let path = "/dev/nosuch".to_owned();
    config.devices =
        vec![api::Device { container_path: path.clone(), host_path: path, permissions: "rw".into() }];
}

fn profile(config: &mut api::ContainerConfig) {
    let kind = api::security_profile::ProfileType::Localhost.into();
    security(config).seccomp =
        Some(api::SecurityProfile { profile_type: kind, localhost_ref: "/no/profile.json".into() });
}

fn capability(config: &mut api::ContainerConfig) {
    security(config).capabilities =
        Some(api::Capability { add_capabilities: vec!["CAP_FLY".into()], ..Default::default() });
}

// === the daemon itself ===

fn processes(world: &World, report: &mut Report, node: &Node) {
    let berth = world.berth.display().to_string();
    let expect = |args: &[&str], names: &[&str]| -> Result<()> {
        let output = shell::output(20, &berth, args)?;
        let text = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        ensure!(!output.status.success() && output.status.code() != Some(124), "{}: {text}", output.status);
        ensure!(text.lines().count() == 1, "not one line: {text}");
        for name in names {
            ensure!(text.contains(name), "{name:?} is not named: {text}");
        }
        Ok(())
    };
    report.case("a second daemon on the same socket says which", || {
        let listen = format!("unix://{}", node.socket.display());
        let (root, state) = (world.dir.join("second/root"), world.dir.join("second/state"));
        let (root, state) = (root.display().to_string(), state.display().to_string());
        expect(
            &["serve", "--root", &root, "--state", &state, "--listen", &listen],
            &[&node.socket.display().to_string()],
        )
    });
    report.case("a second daemon on the same root says which", || {
        let mut args = node.arguments();
        let other = format!("unix://{}", world.dir.join("other.sock").display());
        if let Some(last) = args.last_mut() {
            *last = other;
        }
        expect(&args.iter().map(String::as_str).collect::<Vec<_>>(), &[&node.dir.display().to_string()])
    });
    report.case("a configuration that is wrong is named with its line", || {
        let config = world.dir.join("wrong.toml");
        fs::write(&config, "[registry]\nconfig_path = 7\n")?;
        let config = config.display().to_string();
        expect(
            &["serve", "--config", &config, "--root", "/tmp/never", "--state", "/tmp/never"],
            &[&config, "2"],
        )
    });
    report.case("an unknown word is named", || expect(&["srve"], &["srve"]));
    report.case("without root it says that it needs root", || {
        // The binary may lie where others cannot look.
        let copy = std::env::temp_dir().join(format!("berth-{}", std::process::id()));
        fs::copy(&world.berth, &copy)?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
        let path = copy.display().to_string();
        let output = shell::output(
            20,
            "setpriv",
            &["--reuid=65534", "--regid=65534", "--clear-groups", &path, "serve"],
        );
        fs::remove_file(&copy)?;
        let output = output?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            !output.status.success() && text.contains("root") && text.trim_end().lines().count() == 1,
            "{text}"
        );
        Ok(())
    });
}

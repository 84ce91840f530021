//! What `deploy/` holds is accepted by the programs it is for.

use anyhow::{Result, ensure};

use crate::node::Node;
use crate::report::Report;
use crate::shell;
use crate::world::World;

/// Runs the suite.
///
/// # Errors
/// None.
pub fn run(world: &World, report: &mut Report) -> Result<()> {
    let chart = world.tree.join("deploy/helm/berth").display().to_string();
    if let Some(helm) = world.tool("HELM") {
        report.case("helm lint finds no fault with the chart", || {
            shell::run(60, &helm, &["lint", "--strict", &chart]).map(drop)
        });
        report.case("helm template renders the chart with its defaults", || {
            let text = shell::run(60, &helm, &["template", "berth", &chart, "--namespace", "kube-system"])?;
            ensure!(text.contains("kind: DaemonSet"), "{text}");
            Ok(())
        });
    } else {
        report.skip("helm lint and template", "helm");
    }
    report.case("the daemon starts with the configuration in deploy/", || {
        let text = std::fs::read_to_string(world.tree.join("deploy/config.toml"))?;
        Node::with_config(world, "deploy", &text).map(drop)
    });
    if shell::installed("systemd-analyze") {
        report.case("systemd accepts the units", || {
            for name in ["berth.service", "berth-net-agent.service"] {
                let unit = world.tree.join("deploy").join(name).display().to_string();
                let output = shell::output(60, "systemd-analyze", &["verify", "--man=no", &unit])?;
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                // The binary is not installed where the unit will look for it; that is all it may complain of.
                let complaint =
                    text.lines().find(|line| line.contains(name) && !line.contains("not executable"));
                ensure!(complaint.is_none(), "{text}");
            }
            Ok(())
        });
    } else {
        report.skip("systemd accepts the units", "systemd-analyze");
    }
    Ok(())
}

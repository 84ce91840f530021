//! What a container pays for being the first of its image: after the pull, and after the image has left memory. The runtime is in
//! memory each time.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::bench::action;
use crate::bench::contender::Contender;
use crate::bench::run::Results;
use crate::bench::sample::Sample;
use crate::client::{self, Client};
use crate::images::{BUSYBOX, PAUSE};
use crate::report::line;
use crate::shell;
use crate::suites::wait;

/// The rows: the image was just pulled; it has been used before; nothing of it is in memory.
const ROWS: [&str; 3] = [
    "container up, image just pulled: ms",
    "container up, image warm: ms",
    "container up, image not in memory: ms",
];
/// How much longer than with a warm image it may take, in milliseconds.
const LIMIT: f64 = 5.0;

/// Starts containers of a small image in one pod, `rounds` times in each of the three ways.
///
/// # Errors
/// A call fails, or Berth takes longer than it may.
pub(super) fn all(contender: &Contender, results: &mut Results, rounds: usize) -> Result<()> {
    wait(async {
        let mut client = contender.client().await?;
        let logs = contender.dir.join("logs/cold");
        fs::create_dir_all(&logs)?;
        client.pull(PAUSE).await?;
        let pod = client.run_pod(&client::pod("cold", &logs)).await?;
        for round in 0..rounds {
            action::remove_image(&mut client, BUSYBOX).await?;
            client.pull(BUSYBOX).await?;
            for row in ROWS {
                if row == ROWS[2] {
                    // sysctl/vm: clean page cache, dentries and inodes.
                    shell::run(60, "sync", &[])?;
                    fs::write("/proc/sys/vm/drop_caches", "3")?;
                    // What a node has in memory is the runtime itself: all that a start of another image needs.
                    let other = client::container(&format!("o{round}"), PAUSE, &["/pause"]);
                    let id = client.create(&pod, &other, &client::pod("cold", &logs)).await?;
                    client.start(&id).await?;
                    // And what this client waits with.
                    let log = logs.join(format!("o{round}.log"));
                    ensure!(!action::says(&log, " up"), "{PAUSE} writes nothing");
                    tokio::time::sleep(Duration::from_micros(100)).await;
                    client.discard(&id).await?;
                }
                let name = format!("c{round}-{}", row.len());
                let taken = up(&mut client, &pod, &name, &logs).await?;
                let row = results.entry(row.to_owned()).or_default();
                row.entry(contender.name.clone()).or_default().push(taken);
            }
        }
        Ok(client.remove_pod(&pod).await?)
    })?;
    let median =
        |row| results.get(row).and_then(|row| row.get(&contender.name)).map_or(f64::NAN, Sample::median);
    let [first, warm, cold] = ROWS.map(median);
    line(format_args!(
        "  {:16} container up: image just pulled {first:.1}, warm {warm:.1}, not in memory {cold:.1} ms",
        contender.name
    ));
    let late = first.max(cold) - warm;
    ensure!(contender.name != "berth" || late <= LIMIT, "a cold image costs {late:.1} ms");
    Ok(())
}

/// From CreateContainer until the container says that it runs; then it is removed.
async fn up(client: &mut Client, pod: &str, name: &str, logs: &Path) -> Result<f64> {
    let config = client::pod("cold", logs);
    let spec = client::container(name, BUSYBOX, &["sh", "-c", "echo up; exec sleep 1000"]);
    let log = logs.join(format!("{name}.log"));
    let start = Instant::now();
    let id = client.create(pod, &spec, &config).await?;
    client.start(&id).await?;
    action::said(&log, " up")?;
    let taken = start.elapsed().as_secs_f64() * 1e3;
    client.discard(&id).await?;
    Ok(taken)
}

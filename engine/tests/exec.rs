//! The execution drivers, our own and other people's runtimes, against the kernel: real supervisors, containers, cgroups. Needs root and
//! busybox-static.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use engine::exec::PreparedMount;
use engine::spec::NamespaceMode;
use support::handlers::Handler;
use support::*;

on_every_handler! {
    a_container_runs_logs_and_leaves_nothing
    the_entrypoint_sees_its_own_world
    what_an_administrator_does_to_the_directory_of_cgroups_nobody_else_sees
    the_descriptors_of_a_process_are_0_1_and_2_however_it_is_started
    a_missing_command_is_named
    an_exec_of_which_only_the_end_matters_says_why_it_was_not_started
    hooks_that_devices_ask_for_run
    an_exec_runs_inside_the_container
    kill_ends_every_process
    a_container_out_of_memory_is_reported_as_such
    user_groups_capabilities_and_seccomp_are_exact
    masked_and_read_only_paths_hold_and_missing_ones_do_not_matter
    volumes_appear_where_they_should
    a_log_can_be_reopened_and_loses_nothing
    a_terminal_is_one_and_can_be_resized
    an_exec_can_have_a_terminal
    stdin_reaches_the_container_and_ends_once
    a_daemon_that_comes_back_finds_everything
    containers_share_processes_as_the_pod_says
    who_attaches_to_a_silent_container_and_leaves_costs_the_supervisor_nothing;
    a_daemon_that_does_not_listen_for_a_while_is_told_every_exit
}

async fn a_container_runs_logs_and_leaves_nothing(on: &Handler) {
    let mut pod = Pod::on(on).await;
    let container = pod.container("echo out; echo err >&2; hostname; exit 3");
    let cgroup = pod.cgroup(&container.id);
    let (exit, log) = pod.run(container).await;
    assert_eq!(exit.code, 3);
    assert!(!exit.oom);
    let mut lines: Vec<_> = log.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["stderr F err", "stdout F out", "stdout F test-pod"]);
    assert_eq!(pod.added_mounts(), 0, "container mounts never enter the node's mount table");
    assert!(cgroup_exists(&cgroup));
    pod.driver.remove_cgroup(&cgroup).await.unwrap();
    assert!(!cgroup_exists(&cgroup));
    pod.end().await;
}

async fn the_entrypoint_sees_its_own_world(on: &Handler) {
    let mut pod = Pod::on(on).await;
    assert_eq!(
        pod.output("echo $$; grep -c . /proc/1/cgroup; cut -d: -f3 /proc/self/cgroup | sort -u")
            .await
            .lines()
            .next(),
        Some("1")
    );
    assert_eq!(pod.output("cut -d: -f3 /proc/self/cgroup | sort -u").await, "/\n");
    assert_eq!(
        pod.output("stat -c %t:%T /dev/null; ls -d /dev/shm /dev/mqueue /dev/pts; readlink /dev/fd").await,
        "1:3\n/dev/mqueue\n/dev/pts\n/dev/shm\n/proc/self/fd\n"
    );
    assert_eq!(pod.output("umask; pwd").await, "0022\n/\n");
    let mut direct = pod.container("");
    direct.process.args = ["grep", "-E", "SigIgn|SigBlk", "/proc/self/status"].map(Into::into).into();
    let (_, log) = pod.run(direct).await;
    assert_eq!(text(&log), "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
    // Over v1 hierarchies others mount a tmpfs of the container's own, which it may write to.
    let sealed = pod.output("touch /sys/x /sys/fs/cgroup/x 2>&1 | grep -c Read-only").await;
    assert!(sealed == "2\n" || (!on.is_native() && sealed == "1\n"), "{sealed}");
    // Each hierarchy begins where the container is, and nothing that is mounted there on the node shows up (mountinfo of proc(5)).
    let hierarchies =
        pod.output("grep -E ' - cgroup2? ' /proc/self/mountinfo | cut -d ' ' -f 4,7 | sort -u").await;
    assert_eq!(hierarchies, "/ -\n");
    assert_eq!(
        pod.output("grep -L '^1$' $(find /sys/fs/cgroup/ -maxdepth 2 -name cgroup.procs); true").await,
        ""
    );
    pod.end().await;
}

async fn what_an_administrator_does_to_the_directory_of_cgroups_nobody_else_sees(on: &Handler) {
    let mut pod = Pod::on(on).await;
    let look = "ls -d /sys/fs/cgroup/left 2>&1 | grep -c 'No such'";
    let mut administrator = pod.container(
        "mount -o remount,rw /sys/fs/cgroup 2>/dev/null; mkdir /sys/fs/cgroup/left 2>/dev/null; true",
    );
    administrator.spec.security.add_capabilities = vec!["SYS_ADMIN".into()];
    pod.run(administrator).await;
    assert_eq!(pod.output(look).await, "1\n");
    pod.end().await;
}

/// CVE-2024-21626 and its kind begin with a descriptor too many.
async fn the_descriptors_of_a_process_are_0_1_and_2_however_it_is_started(on: &Handler) {
    for pid in [NamespaceMode::Container, NamespaceMode::Pod, NamespaceMode::Node] {
        let mut spec = pod_spec();
        spec.security.namespaces.pid = pid;
        let pod = Pod::of(on, spec).await;
        for (tty, stdin) in [(false, false), (false, true), (true, true)] {
            let mut container = pod.container("");
            // No shell, which would open files of its own.
            container.process.args = ["sleep", "1000"].map(Into::into).into();
            (container.process.tty, container.process.stdin, container.spec.stdin) = (tty, stdin, stdin);
            container.mounts = vec![PreparedMount {
                fd: clone_tree(&pod.dir.join("root/etc")),
                destination: "/volume".into(),
                directory: true,
                spec: engine::spec::MountSpec::default(),
            }];
            let (id, spec) = (container.id.clone(), container.spec.clone());
            let started = pod.start(container).await;
            executed(started.pid, "sleep").await;
            assert_eq!(descriptors(started.pid), [0, 1, 2], "{pid:?}, terminal {tty}, stdin {stdin}");

            let mut process = shell("");
            (process.args, process.tty) = (["sleep", "1000"].map(Into::into).into(), tty);
            let exec = pod.try_exec(&id, &spec, &process, [stdin, true, !tty], false).await.unwrap();
            executed(exec.pid, "sleep").await;
            assert_eq!(descriptors(exec.pid), [0, 1, 2], "exec, {pid:?}, terminal {tty}, stdin {stdin}");
            pod.connection.supervisor.kill(&id).await.unwrap();
            exec.exit.await.unwrap();
        }
        pod.end().await;
    }
}

async fn a_missing_command_is_named(on: &Handler) {
    let pod = Pod::on(on).await;
    for (args, expected) in [
        (vec!["nosuch"], "command \"nosuch\" not found in the image (PATH=/bin)"),
        (vec!["/bin/nosuch"], "command \"/bin/nosuch\" does not exist in the image"),
        (
            vec!["/etc/passwd"],
            "command \"/etc/passwd\" is not executable by the container's user (or is a directory)",
        ),
    ] {
        let mut container = pod.container("");
        let command = args[0].to_owned();
        container.process.args = args.into_iter().map(Into::into).collect();
        let cgroup = pod.cgroup(&container.id);
        let error = pod.try_start(container).await.unwrap_err();
        if on.is_native() {
            assert_eq!(error.chain(), expected);
        } else {
            assert!(error.chain().contains(&command) && error.chain().contains(on.name), "{}", error.chain());
        }
        assert!(!cgroup_exists(&cgroup), "a failed start leaves no cgroup");
    }
    pod.end().await;
}

async fn an_exec_of_which_only_the_end_matters_says_why_it_was_not_started(on: &Handler) {
    let mut pod = Pod::on(on).await;
    let container = pod.container("exec sleep 1000");
    let (id, spec) = (container.id.clone(), container.spec.clone());
    pod.start(container).await;
    let files =
        |pod: &Pod| fs::read_dir(format!("/proc/{}/fd", pod.connection.supervisor.pid())).unwrap().count();
    let before = files(&pod);
    let mut missing = shell("");
    missing.args = vec!["nosuch".into()];
    for _ in 0..3 {
        let error = pod.refused_exec(&id, &spec, &missing).await;
        assert!(error.contains("nosuch"), "{error}");
    }
    // Whoever does not wait for the end costs the others nothing.
    drop(pod.try_exec(&id, &spec, &shell("exit 3"), [false, true, true], true).await.unwrap());
    let (exit, out) = pod.exec(&id, &spec, "echo fine; exit 7").await;
    assert_eq!((exit.code, out.as_str()), (7, "fine\n"));
    while files(&pod) > before {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    pod.connection.supervisor.kill(&id).await.unwrap();
    pod.exit(&id).await;
    let error = pod.refused_exec(&id, &spec, &shell("true")).await;
    assert!(!on.is_native() || error.contains("not running"), "{error}");
    pod.end().await;
}

async fn hooks_that_devices_ask_for_run(on: &Handler) {
    let mut pod = Pod::on(on).await;
    let heard = |moment: &str| pod.dir.join(format!("heard-{moment}"));
    let mut container = pod.container("echo up; exec sleep 1000");
    for moment in ["createRuntime", "createContainer", "poststop"] {
        let script = format!("cat > {}", heard(moment).display());
        let hook = serde_json::json!({ "path": "/bin/sh", "args": ["sh", "-c", script] });
        container.spec.runtime_edits.hooks.insert(moment.into(), vec![hook]);
    }
    let (id, spec) = (container.id.clone(), container.spec.clone());
    let (before, after) = (["createRuntime", "createContainer"].map(heard), heard("poststop"));
    pod.start(container).await;
    for file in before {
        let state: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        assert_eq!(state["id"], id.as_str(), "{state}");
    }
    // A container like any other.
    let (exit, _) =
        pod.exec(&id, &spec, "until grep -q sleep /proc/1/comm; do sleep 0.01; done; exit 5").await;
    assert_eq!(exit.code, 5);
    pod.connection.supervisor.signal(&id, 15).await.unwrap();
    pod.connection.supervisor.kill(&id).await.unwrap();
    assert_eq!(text(&pod.log(&id)), "up\n");
    pod.exit(&id).await;
    pod.driver.discard(&id, &pod.dir.join("state")).await.unwrap();
    assert!(after.exists());
    pod.end().await;
}

async fn an_exec_runs_inside_the_container(on: &Handler) {
    let mut pod = Pod::on(on).await;
    let container =
        pod.container("echo marker > /tmp/marker; trap 'exit 7' TERM; while :; do sleep 0.05; done");
    let (id, spec) = (container.id.clone(), container.spec.clone());
    let started = pod.start(container).await;
    assert!(fs::metadata(format!("/proc/{}", started.pid)).is_ok());
    let (exit, out) = pod
        .exec(
            &id,
            &spec,
            "until [ -s /tmp/marker ]; do sleep 0.01; done; cat /tmp/marker; cut -d: -f3 /proc/self/cgroup | sort -u; ls /proc/1/exe >/dev/null; exit 5",
        )
        .await;
    assert_eq!((exit.code, out.as_str()), (5, "marker\n/\n"));
    pod.connection.supervisor.signal(&id, 15).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 7);
    pod.end().await;
}

async fn kill_ends_every_process(on: &Handler) {
    let mut pod = Pod::on(on).await;
    let container = pod.container("sleep 1000 & sleep 1000");
    let id = container.id.clone();
    pod.start(container).await;
    pod.connection.supervisor.kill(&id).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 137);
    pod.connection.supervisor.signal(&id, 9).await.unwrap();
    pod.end().await;
}

async fn a_container_out_of_memory_is_reported_as_such(on: &Handler) {
    let mut pod = Pod::on(on).await;
    let mut container = pod.container("dd if=/dev/zero of=/dev/null bs=40M count=1; exit $?");
    container.spec.resources.memory_limit = 15 << 20;
    let id = container.id.clone();
    pod.start(container).await;
    let exit = pod.exit(&id).await;
    assert_eq!((exit.code, exit.oom), (137, true));
    let mut calm = pod.container("exit 137");
    calm.spec.resources.memory_limit = 15 << 20;
    assert!(!pod.run(calm).await.0.oom, "137 alone is no OOM");
    pod.end().await;
}

async fn user_groups_capabilities_and_seccomp_are_exact(on: &Handler) {
    let mut pod = Pod::on(on).await;
    let status = ["grep", "-E", "^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp):|^Cap", "/proc/self/status"];
    let mut container = pod.container("");
    container.process.args = status.map(Into::into).into();
    container.process.user = engine::exec::ResolvedUser { uid: 1000, gid: 1000, groups: vec![1000, 2000] };
    container.spec.security.no_new_privs = true;
    container.spec.security.seccomp = Some(engine::spec::Profile::RuntimeDefault);
    container.spec.security.add_ambient_capabilities = vec!["NET_BIND_SERVICE".into()];
    let log = text(&pod.run(container).await.1);
    let fields: std::collections::BTreeMap<_, _> = log.lines().filter_map(|l| l.split_once(":\t")).collect();
    assert_eq!(fields["Uid"], "1000\t1000\t1000\t1000");
    assert_eq!(fields["Gid"], "1000\t1000\t1000\t1000");
    assert_eq!(fields["Groups"].trim(), "1000 2000");
    assert_eq!(fields["CapBnd"], "00000000a80425fb", "the usual fourteen");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(fields[set], "0000000000000400", "{set}: only the ambient one");
    }
    assert_eq!((fields["NoNewPrivs"], fields["Seccomp"]), ("1", "2"));

    let mut root = pod.container("");
    root.process.args = status.map(Into::into).into();
    root.spec.security.seccomp = Some(engine::spec::Profile::RuntimeDefault);
    let log = text(&pod.run(root).await.1);
    assert!(log.contains("CapEff:\t00000000a80425fb") && log.contains("CapInh:\t0000000000000000"), "{log}");
    assert!(log.contains("NoNewPrivs:\t0") && log.contains("Seccomp:\t2"), "{log}");
    pod.end().await;
}

async fn masked_and_read_only_paths_hold_and_missing_ones_do_not_matter(on: &Handler) {
    let mut pod = Pod::on(on).await;
    let mut container = pod.container(
        "cat /proc/keys | wc -c; ls /sys/firmware | wc -l; echo x 2>/dev/null > /proc/sys/kernel/domainname || echo ro; \
         wc -c < /etc/passwd; chmod 777 /proc/keys 2>/dev/null || echo held; touch /new 2>/dev/null || echo root-ro; touch /dev/shm/x && echo shm",
    );
    let security = &mut container.spec.security;
    security.masked_paths =
        ["/proc/keys", "/sys/firmware", "/nowhere/at/all", "/etc/passwd"].map(Into::into).into();
    security.readonly_paths = ["/proc/sys", "/proc/absent"].map(Into::into).into();
    security.readonly_rootfs = true;
    let mut output = text(&pod.run(container).await.1);
    if !on.is_native() {
        // Others hide files behind the container's own null device, whose mode its root may change.
        output = output.replace("0\nroot-ro", "0\nheld\nroot-ro");
    }
    assert_eq!(output, "0\n0\nro\n0\nheld\nroot-ro\nshm\n");
    pod.end().await;
}

async fn volumes_appear_where_they_should(on: &Handler) {
    let mut pod = Pod::on(on).await;
    let (volume, file) = (pod.dir.join("volume"), pod.dir.join("hosts"));
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("hello"), "from the node\n").unwrap();
    fs::write(&file, "127.0.0.1 localhost\n").unwrap();
    // A dangling link in the image is followed inside the image.
    std::os::unix::fs::symlink("/run/deep/resolv.conf", pod.dir.join("root/etc/resolv.conf")).unwrap();
    let mount = |path: &std::path::Path, destination: &str, readonly| engine::exec::PreparedMount {
        fd: clone_tree(path),
        destination: destination.into(),
        directory: path.is_dir(),
        spec: engine::spec::MountSpec { readonly, ..Default::default() },
    };
    let mut container = pod.container(
        "cat /made/for/it/hello /etc/hosts /run/deep/resolv.conf; touch /made/for/it/x 2>/dev/null || echo ro; echo w > /rw/written",
    );
    container.mounts = vec![
        mount(&volume, "/made/for/it", true),
        mount(&volume, "/rw", false),
        mount(&file, "/etc/hosts", false),
        mount(&file, "/etc/resolv.conf", false),
    ];
    let log = text(&pod.run(container).await.1);
    assert_eq!(log, "from the node\n127.0.0.1 localhost\n127.0.0.1 localhost\nro\n");
    assert_eq!(fs::read_to_string(volume.join("written")).unwrap(), "w\n");
    pod.end().await;
}

async fn a_log_can_be_reopened_and_loses_nothing(on: &Handler) {
    let mut pod = Pod::on(on).await;
    let container =
        pod.container("i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; printf tail");
    let id = container.id.clone();
    pod.start(container).await;
    let rotated = pod.dir.join("rotated.log");
    fs::rename(pod.log_path(&id), &rotated).unwrap();
    let fresh = fs::File::options().create(true).append(true).open(pod.log_path(&id)).unwrap();
    pod.connection.supervisor.reopen_log(&id, fresh.into()).await.unwrap();
    pod.exit(&id).await;
    let all = fs::read_to_string(&rotated).unwrap() + &fs::read_to_string(pod.log_path(&id)).unwrap();
    let lines: Vec<_> = all.lines().map(|l| l.split_once(" stdout ").unwrap().1.to_owned()).collect();
    let expected: Vec<_> = (0..2000).map(|i| format!("F line {i}")).chain(["P tail".to_owned()]).collect();
    assert_eq!(lines, expected);
    pod.end().await;
}

async fn a_terminal_is_one_and_can_be_resized(on: &Handler) {
    let mut pod = Pod::on(on).await;
    let mut container = pod.container(
        "stty -echo; read go; trap 'stty size; exit 4' WINCH; tty; ls -l /dev/console | cut -c1; echo ready; \
         while :; do sleep 0.02; done",
    );
    container.process.tty = true;
    let id = container.id.clone();
    pod.start(container).await;
    let stdio = pod.connection.supervisor.attach(&id, true, true, false).await.unwrap();
    assert!(stdio.stderr.is_none());
    rustix::io::write(stdio.stdin.as_ref().unwrap(), b"\n").unwrap();
    let (mut seen, mut buffer) = (String::new(), [0; 256]);
    let mut out = tokio::fs::File::from_std(stdio.stdout.unwrap().into());
    while !seen.contains("ready") {
        let length = tokio::io::AsyncReadExt::read(&mut out, &mut buffer).await.unwrap();
        seen.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    pod.connection.supervisor.resize(&id, None, 99, 33).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 4);
    let log = pod.log(&id);
    assert!(log.ends_with("stdout F /dev/pts/0\nstdout F c\nstdout F ready\nstdout F 33 99\n"), "{log}");
    pod.end().await;
}

async fn an_exec_can_have_a_terminal(on: &Handler) {
    let mut pod = Pod::on(on).await;
    let container = pod.container("sleep 1000");
    let (id, spec) = (container.id.clone(), container.spec.clone());
    pod.start(container).await;
    let mut process = shell("tty; read line; echo got $line; stty size");
    process.tty = true;
    let exec = pod.try_exec(&id, &spec, &process, [true, true, false], false).await.unwrap();
    pod.connection.supervisor.resize(&id, Some(exec.id), 80, 24).await.unwrap();
    let master = exec.stdio.stdout.unwrap();
    rustix::io::write(&master, b"hello\n").unwrap();
    assert_eq!(exec.exit.await.unwrap().code, 0);
    let seen = read_all(master).await;
    assert!(seen.contains("/dev/pts/0") && seen.contains("got hello") && seen.contains("24 80"), "{seen:?}");
    pod.connection.supervisor.kill(&id).await.unwrap();
    pod.exit(&id).await;
    pod.end().await;
}

async fn stdin_reaches_the_container_and_ends_once(on: &Handler) {
    let mut pod = Pod::on(on).await;
    let mut container = pod.container("cat; echo over");
    container.process.stdin = true;
    container.spec.stdin = true;
    container.spec.stdin_once = true;
    let id = container.id.clone();
    pod.start(container).await;
    let stdio = pod.connection.supervisor.attach(&id, true, true, true).await.unwrap();
    rustix::io::write(stdio.stdin.as_ref().unwrap(), b"words\n").unwrap();
    drop(stdio.stdin);
    assert_eq!(pod.exit(&id).await.code, 0);
    assert_eq!(read_all(stdio.stdout.unwrap()).await, "words\nover\n");
    assert_eq!(pod.log(&id), "stdout F words\nstdout F over\n");
    pod.end().await;
}

async fn a_daemon_that_comes_back_finds_everything(on: &Handler) {
    let mut pod = Pod::on(on).await;
    let ends = "echo first; until [ -e /dev/shm/go ]; do sleep 0.01; done; echo last; exit 9";
    let (ends, stays) = (pod.container(ends), pod.container("sleep 1000"));
    let (ends_id, stays_id) = (ends.id.clone(), stays.id.clone());
    pod.start(ends).await;
    let started = pod.start(stays).await;
    let pid = pod.connection.supervisor.pid();
    // The old daemon's connection closes with its last holder.
    let state = pod.dir.join("state");
    let again = pod.driver_again();
    let fresh = again.connect(&pod.id, &state).await.unwrap().unwrap();
    assert_eq!(fresh.survivors.len(), 2);
    pod.connection = fresh;
    assert_eq!(pod.connection.supervisor.pid(), pid);
    // Not before somebody new listens: an exit that is in the answer to its greeting is not told again.
    let go = pod.container("touch /dev/shm/go");
    pod.start(go).await;
    assert_eq!(pod.exit(&ends_id).await.code, 9);
    let third = again.connect(&pod.id, &state).await.unwrap().unwrap();
    let ended = third.survivors.iter().find(|s| s.id == ends_id).unwrap();
    assert_eq!(ended.exit.as_ref().unwrap().code, 9, "an exit is told to whoever comes later");
    let alive = third.survivors.iter().find(|s| s.id == stays_id).unwrap();
    assert_eq!((alive.pid, alive.exit.clone()), (started.pid, None));
    assert_eq!(again.recorded_exits(&state)[&ends_id].code, 9);
    assert_eq!(pod.log(&ends_id), "stdout F first\nstdout F last\n");
    pod.connection = third;
    pod.connection.supervisor.kill(&stays_id).await.unwrap();
    assert_eq!(pod.exit(&stays_id).await.code, 137);
    let dir = state.clone();
    pod.end().await;
    assert!(again.connect("gone", &dir).await.unwrap().is_none());
}

async fn containers_share_processes_as_the_pod_says(on: &Handler) {
    let mut spec = pod_spec();
    spec.security.namespaces.pid = NamespaceMode::Pod;
    let mut pod = Pod::of(on, spec).await;
    let sleeper = pod.container("exec sleep 1000");
    let sleeper_id = sleeper.id.clone();
    pod.start(sleeper).await;
    assert_eq!(
        pod.output("ps -o args | grep -c '[s]leep 1000'").await,
        "1\n",
        "one container sees the other"
    );
    let orphan = pod.container("(sleep 0.05; exit 0) & exit 0");
    assert_eq!(pod.run(orphan).await.0.code, 0);

    let mut debug = pod.container("ps -o args | grep -c '[s]leep 1000'");
    debug.spec.security.namespaces.pid = NamespaceMode::Target;
    debug.spec.security.namespaces.target_id = sleeper_id.clone();
    assert_eq!(text(&pod.run(debug).await.1), "1\n");

    let mut own = pod.container("echo $$");
    own.spec.security.namespaces.pid = NamespaceMode::Container;
    assert_eq!(text(&pod.run(own).await.1), "1\n");

    let mut node = pod.container("readlink /proc/self/ns/pid; echo $$ > /dev/null");
    node.spec.security.namespaces.pid = NamespaceMode::Node;
    let ours = fs::read_link("/proc/self/ns/pid").unwrap().to_str().unwrap().to_owned() + "\n";
    assert_eq!(text(&pod.run(node).await.1), ours);
    pod.connection.supervisor.kill(&sleeper_id).await.unwrap();
    pod.exit(&sleeper_id).await;
    pod.end().await;
}

/// A full socket once cost the connection, and every exec on it its exit code.
async fn a_daemon_that_does_not_listen_for_a_while_is_told_every_exit(on: &Handler) {
    const TOGETHER: usize = 400;
    let pod = Pod::on(on).await;
    let container = pod.container("exec sleep 1000");
    let (id, spec) = (container.id.clone(), container.spec.clone());
    pod.start(container).await;
    let mut execs = Vec::new();
    for _ in 0..TOGETHER {
        let process = shell("read line; exit 7");
        execs.push(pod.try_exec(&id, &spec, &process, [true, false, false], false).await.unwrap());
    }
    let (pids, exits): (Vec<_>, Vec<_>) = execs.into_iter().map(|exec| (exec.pid, exec.exit)).unzip();
    // This runtime has one thread, so nobody reads what the supervisor says until it is free again.
    while pids.iter().any(|pid| Path::new(&format!("/proc/{pid}")).exists()) {
        std::thread::sleep(Duration::from_millis(10));
    }
    for exit in exits {
        assert_eq!(exit.await.unwrap().code, 7);
    }
    pod.end().await;
}

async fn who_attaches_to_a_silent_container_and_leaves_costs_the_supervisor_nothing(on: &Handler) {
    let pod = Pod::on(on).await;
    let container = pod.container("exec sleep 1000");
    let id = container.id.clone();
    pod.start(container).await;
    let files = || fs::read_dir(format!("/proc/{}/fd", pod.connection.supervisor.pid())).unwrap().count();
    // An answer is a proof of one more round through what has happened, of which a round takes sixteen: forty ends are heard in three.
    let settled = async || {
        for _ in 0..4 {
            pod.connection.supervisor.attach(&id, false, false, false).await.unwrap();
        }
        files()
    };
    let before = settled().await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(pod.connection.supervisor.attach(&id, false, true, true).await.unwrap());
    }
    assert_eq!(settled().await, before + 40);
    drop(clients);
    assert_eq!(settled().await, before);
    pod.end().await;
}

#[tokio::test]
async fn a_plan_of_any_length_is_carried_out() {
    let pod = Pod::new().await;
    for length in [1, 10 << 10, 100 << 10] {
        let mut container = pod.container("exec sleep 1000");
        container.process.env.push(format!("LONG={}", "x".repeat(length)).into_bytes());
        let (id, spec) = (container.id.clone(), container.spec.clone());
        pod.start(container).await;
        let (exit, out) = pod.exec(&id, &spec, "tr '\\0' '\\n' < /proc/1/environ | grep ^LONG | wc -c").await;
        assert_eq!((exit.code, out), (0, format!("{}\n", length + "LONG=\n".len())));
    }
    pod.end().await;
}

#[tokio::test]
async fn what_a_start_needed_of_the_program_is_given_back_when_the_supervisor_is_idle() {
    let pod = Pod::new().await;
    pod.start(pod.container("exec sleep 1000")).await;
    let resident = || {
        let smaps = fs::read_to_string(format!("/proc/{}/smaps_rollup", pod.connection.supervisor.pid()));
        let smaps = smaps.unwrap();
        let kib = smaps.lines().find_map(|l| l.strip_prefix("Rss:")?.trim().strip_suffix(" kB"));
        kib.unwrap().parse::<u64>().unwrap()
    };
    let started = resident();
    let settled = async {
        // How much it is depends on how much of the file one fault maps; nothing else takes any of it away.
        while resident() >= started {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), settled)
        .await
        .unwrap_or_else(|_| panic!("{started} KiB, then {} KiB", resident()));
    pod.end().await;
}

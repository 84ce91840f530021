//! Promises of the configuration.

use super::*;

fn parse(text: &str) -> Result<File, Error> {
    File::parse(Path::new("/etc/berth/config.toml"), text)
}

#[test]
fn no_file_is_needed() {
    let config = Config::from_parts(File::default(), &Flags::default()).unwrap();
    assert_eq!(config.listen, [DEFAULT_LISTEN.parse().unwrap()]);
    assert_eq!(config.root, Path::new("/var/lib/berth"));
    assert_eq!(config.storage.registry_config[0], Path::new("/etc/berth/certs.d"));
    assert_eq!(config.storage.registry_config[3], Path::new("/etc/containers/registries.conf"));
    assert!(config.streaming.address.ip().is_loopback());
}

#[test]
fn an_error_names_file_line_and_column() {
    for (text, place, word) in [
        ("root = \"/x\"\nrot = 1\n", "config.toml:2:1", "rot"),
        ("[network]\n  pod_cidr = []\n", "config.toml:2:3", "pod_cidr"),
        ("root = \n", "config.toml:1:8", ""),
        ("[image]\npull_memory = 7\n", "config.toml:2:15", "string"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(place) && error.contains(word), "{text:?} gave {error}");
    }
}

#[test]
fn later_files_win_key_by_key() {
    let dir = std::env::temp_dir().join(format!("berth-config-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("conf.d")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    write(
        "config.toml",
        "root = \"/a\"\nstate = \"/a\"\n[network]\nconf_dir = \"/a\"\nlink_prefix = \"a\"\n",
    );
    write("conf.d/20.toml", "state = \"/c\"\n");
    write("conf.d/10.toml", "state = \"/b\"\n[network]\nlink_prefix = \"b\"\n");
    write("conf.d/30.txt", "not read");
    let flags = Flags { config: Some(dir.join("config.toml")), ..Flags::default() };
    let config = Config::load(&flags).unwrap();
    assert_eq!((config.root.to_str(), config.state.to_str()), (Some("/a"), Some("/c")));
    assert_eq!((config.network.conf_dir.to_str(), &*config.network.link_prefix), (Some("/a"), "b"));
    let flags = Flags { state: Some("/flag".into()), ..flags };
    assert_eq!(Config::load(&flags).unwrap().state, Path::new("/flag"));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_named_file_must_exist() {
    let flags = Flags { config: Some("/nonexistent/berth.toml".into()), ..Flags::default() };
    assert!(Config::load(&flags).unwrap_err().to_string().contains("/nonexistent/berth.toml"));
}

#[test]
fn tcp_is_refused_without_mutual_tls() {
    let listen = vec!["tcp://127.0.0.1:2376".to_owned()];
    let flags = Flags { listen, ..Flags::default() };
    let error = Config::from_parts(File::default(), &flags).unwrap_err();
    assert!(error.to_string().contains("mutual TLS"), "{error}");
    let half = parse("[tls]\ncertificate = \"/c\"\nkey = \"/k\"\n").unwrap();
    assert!(Config::from_parts(half, &flags).unwrap_err().to_string().contains("tls.client_ca"));
    let whole = parse("[tls]\ncertificate = \"/c\"\nkey = \"/k\"\nclient_ca = \"/a\"\n").unwrap();
    assert_eq!(Config::from_parts(whole, &flags).unwrap().listen[0].to_string(), "tcp://127.0.0.1:2376");
}

#[test]
fn values_without_meaning_are_named() {
    for (text, name) in [
        ("root = \"relative\"", "root"),
        ("listen = [\"http://x\"]", "listen"),
        ("listen = [\"unix://x\"]", "listen"),
        ("[engine]\nkill_wait = \"10\"", "engine.kill_wait"),
        ("[engine]\ncgroup_driver = \"cgroup2\"", "engine.cgroup_driver"),
        ("[rdt.info]", "rdt.info"),
        ("[rdt.\"a/b\"]", "rdt.a/b"),
        ("[rdt.gold]\nschemata = [\"L3\"]", "rdt.gold.schemata"),
        ("[[blockio.slow]]", "blockio.slow"),
        ("[[blockio.slow]]\nweight = 5", "blockio.slow.weight"),
        ("[[blockio.slow]]\nread_bps = \"1MiB\"", "blockio.slow.devices"),
        ("[[blockio.slow]]\ndevices = [\"sda\"]\nweight = 10", "blockio.slow.devices"),
        ("[[blockio.slow]]\ndevices = [\"/dev/sda\"]\nwrite_bps = \"fast\"", "blockio.slow.write_bps"),
        ("[engine]\ncgroup_parent = \"/berth.slice\"", "engine.cgroup_parent"),
        ("[engine]\ncgroup_driver = \"systemd\"\ncgroup_parent = \"/berth\"", "engine.cgroup_parent"),
        (
            "[engine]\ncgroup_driver = \"systemd\"\n[native]\nsupervisor_cgroup = \"/berth/podd\"",
            "native.supervisor_cgroup",
        ),
        ("[image]\npull_memory = \"12XB\"", "image.pull_memory"),
        ("[network]\nlink_prefix = \"far-too-long\"", "network.link_prefix"),
        ("[network]\npod_cidrs = [\"10.88.0.0\"]", "network.pod_cidrs"),
        ("[network]\nmax_networks = 0", "network.max_networks"),
        ("[network]\nbin_dirs = [\"/opt/cni/bin\", \"bin\"]", "network.bin_dirs"),
        ("[native]\ndefault_capabilities = [\"FLY\"]", "native: default_capabilities"),
        ("[image]\ndriver = \"zfs\"", "image.driver"),
        ("[image]\nverifiers = \"verify\"", "image.verifiers"),
        ("[engine]\nhosts_file = \"hosts\"", "engine.hosts_file"),
        ("[tls]\nkey = \"server.key\"", "tls.key"),
        ("[streaming]\naddress = \"localhost\"", "streaming.address"),
        ("[streaming.tls]\nself_signed = true\nkey = \"/k\"", "streaming.tls"),
    ] {
        let error = Config::from_parts(parse(text).unwrap(), &Flags::default()).unwrap_err().to_string();
        assert!(error.contains(name), "{text:?} gave {error}");
    }
}

#[test]
fn the_cgroup_driver_is_one_for_pods_and_supervisors() {
    let with = |text| Config::from_parts(parse(text).unwrap(), &Flags::default()).unwrap();
    let usual = with("");
    assert_eq!(
        (usual.engine.cgroup_driver, usual.native.cgroup_driver),
        (CgroupDriver::Cgroupfs, CgroupDriver::Cgroupfs)
    );
    assert_eq!((&*usual.engine.cgroup_parent, &*usual.native.supervisor_cgroup), ("/berth", "/berth/podd"));
    let systemd = with("[engine]\ncgroup_driver = \"systemd\"\n");
    assert_eq!(
        (systemd.engine.cgroup_driver, systemd.native.cgroup_driver),
        (CgroupDriver::Systemd, CgroupDriver::Systemd)
    );
    let places = (&*systemd.engine.cgroup_parent, &*systemd.native.supervisor_cgroup);
    assert_eq!(places, ("/berth.slice", "/system.slice/berth-podd.scope"));
    let named = with("[engine]\ncgroup_driver = \"systemd\"\ncgroup_parent = \"a-b.slice\"\n");
    assert_eq!(named.engine.cgroup_parent, "/a.slice/a-b.slice");
}

#[test]
fn classes_of_resources_are_read_by_name() {
    let text = "[rdt.gold]\nschemata = [\"L3:0=ff\", \"MB:0=80\"]\n[rdt.made]\n[[blockio.slow]]\nweight = 50\n[[blockio.slow]]\n\
                devices = [\"/dev/sd*\"]\nread_bps = \"50MiB\"\nwrite_iops = 100\n";
    let classes = Config::from_parts(parse(text).unwrap(), &Flags::default()).unwrap().native.classes;
    assert_eq!(classes.rdt["gold"], ["L3:0=ff", "MB:0=80"]);
    assert!(classes.rdt["made"].is_empty());
    let [share, limits] = &classes.blockio["slow"][..] else { panic!("{classes:?}") };
    assert_eq!((share.weight, share.devices.is_empty()), (Some(50), true));
    assert_eq!((limits.read_bps, limits.write_iops, limits.write_bps), (Some(50 << 20), Some(100), None));
    assert!(parse("[rdt.gold]\nschema = []\n").unwrap_err().to_string().contains("config.toml:2:1"));
}

#[test]
fn endpoints_read_as_they_print() {
    for text in ["unix:///run/berth/berth.sock", "tcp://[::1]:10", "fd://"] {
        assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
    }
    assert!(format!("unix:///{}", "x".repeat(107)).parse::<Endpoint>().is_err());
}

//! What a machine can check of the rules the README prints under "Architecture".

mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use toml::Table;

use crate::report::Report;
use crate::world::World;

/// The crates of the product, and what each may depend on among them: arrows point down.
const HOUSE: [(&str, &[&str]); 4] = [
    ("cri", &["engine", "netplugins", "storage"]),
    ("engine", &["netplugins", "storage"]),
    ("netplugins", &[]),
    ("storage", &[]),
];

/// Dependencies that only the top crate may have: the wire stops there.
const WIRE: [&str; 7] =
    ["k8s-cri", "prost", "prost-types", "protox", "tonic", "tonic-prost", "tonic-prost-build"];

/// Words that have no business in this repository, in two halves so that this file does not hold them.
const FORBIDDEN: [(&str, &str); 7] = [
    ("/wo", "rk/"),
    ("cla", "ude"),
    ("anthr", "opic"),
    ("co-auth", "ored-by"),
    ("open", "ai"),
    ("chat", "gpt"),
    ("language mo", "del"),
];

/// Runs the suite.
///
/// # Errors
/// A manifest cannot be read.
pub fn run(world: &World, report: &mut Report) -> Result<()> {
    let tree = &world.tree;
    let mut manifests = BTreeMap::new();
    for (name, _) in HOUSE {
        manifests.insert(name, fs::read_to_string(tree.join(name).join("Cargo.toml"))?.parse::<Table>()?);
    }
    report.case("crate dependencies point down, and the wire stops at cri", || directions(&manifests));
    report.case("the README's table of dependencies equals the manifests", || dependencies(tree, &manifests));
    let files = rust_files(tree)?;
    report.case("every file opens with //!", || {
        each(&files, |_, text| if text.starts_with("//!") { Ok(()) } else { anyhow::bail!("no //!") })
    });
    report.case("files have at most 600 lines", || each(&files, |_, text| short(text.lines().count(), 600)));
    report.case("functions have at most 80 lines", || each(&files, |_, text| source::functions(text, 80)));
    report.case("unsafe stands in engine::sys only, and its comments argue", || {
        each(&files, |path, text| source::unsafe_code(text, path.starts_with("engine/src/sys")))
    });
    report.case("storage, netplugins and cri forbid unsafe code", || {
        ["storage", "netplugins", "cri"].iter().try_for_each(|name| {
            let text = fs::read_to_string(tree.join(name).join("src/lib.rs"))?;
            ensure!(text.contains("#![forbid(unsafe_code)]"), "{name} does not");
            Ok(())
        })
    });
    report.case("no crate below cri names a type of the wire", || {
        each(&files, |path, text| {
            if path.starts_with("cri") || path.starts_with("tests") {
                Ok(())
            } else {
                source::no_wire(text, &WIRE)
            }
        })
    });
    report.case("no module is a drawer for everything", || {
        each(&files, |path, _| {
            let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            ensure!(
                !["utils", "util", "helpers", "common", "misc"].contains(&name),
                "a name that says nothing"
            );
            Ok(())
        })
    });
    report.case("the repository speaks of Berth alone", || forbidden(tree));
    report.case("each rule against an escape can be taken out as its patch says", || patches(tree));
    Ok(())
}

fn short(lines: usize, limit: usize) -> Result<()> {
    ensure!(lines <= limit, "{lines} lines");
    Ok(())
}

/// Applies a rule to every file and reports all that break it.
fn each(files: &[(PathBuf, String)], rule: impl Fn(&Path, &str) -> Result<()>) -> Result<()> {
    let broken = |(path, text): &(PathBuf, String)| {
        rule(path, text).err().map(|error| format!("{}: {error:#}", path.display()))
    };
    let broken: Vec<_> = files.iter().filter_map(broken).collect();
    ensure!(broken.is_empty(), "{}", broken.join("\n"));
    Ok(())
}

/// Every Rust file git knows, by its path in the tree.
fn rust_files(tree: &Path) -> Result<Vec<(PathBuf, String)>> {
    let paths = tracked(tree)?.into_iter().filter(|path| path.extension().is_some_and(|end| end == "rs"));
    paths.map(|path| Ok((path.clone(), fs::read_to_string(tree.join(path))?))).collect()
}

fn tracked(tree: &Path) -> Result<Vec<PathBuf>> {
    let text = git(tree, &["ls-files"])?;
    Ok(text.lines().map(PathBuf::from).filter(|path| tree.join(path).is_file()).collect())
}

/// What git says of a tree, whoever it belongs to.
fn git(tree: &Path, words: &[&str]) -> Result<String> {
    let tree = tree.display().to_string();
    crate::shell::run(20, "git", &[&["-c", "safe.directory=*", "-C", &tree], words].concat())
}

/// The names under a manifest's dependency tables; `dev` ones too when asked.
fn named(manifest: &Table, tables: &[&str]) -> BTreeSet<String> {
    let tables = tables.iter().filter_map(|&name| manifest.get(name)).filter_map(toml::Value::as_table);
    tables.flat_map(Table::keys).cloned().collect()
}

fn directions(manifests: &BTreeMap<&str, Table>) -> Result<()> {
    let house: Vec<_> = HOUSE.iter().map(|(name, _)| *name).collect();
    for (name, below) in HOUSE {
        for dependency in named(&manifests[name], &["dependencies", "dev-dependencies", "build-dependencies"])
        {
            let inner = house.contains(&dependency.as_str());
            ensure!(!inner || below.contains(&dependency.as_str()), "{name} depends on {dependency}");
            ensure!(name == "cri" || !WIRE.contains(&dependency.as_str()), "{name} depends on {dependency}");
            ensure!(
                dependency != "k8s-cri",
                "the product must not need protoc: {name} depends on {dependency}"
            );
        }
    }
    Ok(())
}

/// Every dependency of the product has a row, and every row is a dependency of the product or of the suites.
fn dependencies(tree: &Path, manifests: &BTreeMap<&str, Table>) -> Result<()> {
    let readme = fs::read_to_string(tree.join("README.md")).context("README.md")?;
    let section = readme.split("\n## Dependencies").nth(1).context("no section Dependencies")?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.split('|').next());
    let listed: BTreeSet<String> =
        rows.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect();
    let mut wanted = BTreeSet::new();
    for manifest in manifests.values() {
        wanted.append(&mut named(manifest, &["dependencies", "build-dependencies"]));
    }
    for (name, _) in HOUSE {
        wanted.remove(name);
    }
    let missing: Vec<_> = wanted.difference(&listed).collect();
    ensure!(missing.is_empty(), "without a row: {missing:?}");
    let suites = fs::read_to_string(tree.join("tests/Cargo.toml"))?.parse::<Table>()?;
    wanted.append(&mut named(&suites, &["dependencies"]));
    for manifest in manifests.values() {
        wanted.append(&mut named(manifest, &["dev-dependencies"]));
    }
    let stale: Vec<_> = listed.difference(&wanted).collect();
    ensure!(stale.is_empty(), "rows of nothing: {stale:?}");
    Ok(())
}

/// What `tests/run without-rules` begins with; that runs when it is named, and a patch is stale with one changed line.
fn patches(tree: &Path) -> Result<()> {
    let mut patches = tracked(tree)?;
    patches.retain(|path| path.starts_with("engine/tests/escape/mutations"));
    ensure!(!patches.is_empty(), "there are none");
    for patch in patches {
        git(tree, &["apply", "--check", &patch.display().to_string()])?;
    }
    Ok(())
}

fn forbidden(tree: &Path) -> Result<()> {
    let mut found = Vec::new();
    for path in tracked(tree)? {
        let Ok(text) = fs::read_to_string(tree.join(&path)) else { continue };
        for (number, line) in text.lines().enumerate() {
            let lower = line.to_lowercase();
            let word =
                FORBIDDEN.iter().map(|(a, b)| format!("{a}{b}")).find(|word| lower.contains(word.as_str()));
            if let Some(word) = word {
                found.push(format!("{}:{}: {word}", path.display(), number + 1));
            }
        }
    }
    ensure!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}

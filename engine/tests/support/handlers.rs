//! Who makes the containers of a test: the native driver, other people's OCI runtimes, and our own OCI command line as one of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::exec::Driver;
use engine::external;
use engine::native::Native;

/// A handler.
#[derive(Clone, Debug)]
pub struct Handler {
    pub name: &'static str,
    /// Its program; `None`: the native driver.
    path: Option<PathBuf>,
    /// Global arguments of the program.
    arguments: Vec<String>,
}

impl Handler {
    pub fn native() -> Self {
        Self { name: "native", path: None, arguments: Vec::new() }
    }

    /// Our own command line.
    pub fn berth() -> Self {
        let path = Some(env!("CARGO_BIN_EXE_oci").into());
        Self { name: "berth-oci", path, arguments: Vec::new() }
    }

    /// A runtime of this name: one of `OCI_RUNTIMES`, else the node's own. A test without it says so, and fails where every oracle has
    /// to be there.
    pub fn of(name: &'static str) -> Option<Self> {
        let given = std::env::var("OCI_RUNTIMES").unwrap_or_default();
        let directories = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];
        let usual = directories.iter().map(|directory| Path::new(directory).join(name));
        let given = given.split(':').map(PathBuf::from).filter(|path| path.ends_with(name));
        let found = given.chain(usual).find(|path| path.is_file());
        if found.is_none() {
            assert!(std::env::var_os("BERTH_TEST_ORACLES").is_none(), "the runtime {name} is missing");
            super::skip(&format!("missing: {name}"));
        }
        found.map(|path| Self { name, path: Some(path), arguments: Vec::new() })
    }

    /// Whether it is the native driver.
    pub fn is_native(&self) -> bool {
        self.path.is_none()
    }

    /// Where the runtime keeps its state.
    pub fn root(id: &str) -> PathBuf {
        format!("/tmp/exec-{id}-root").into()
    }

    /// The settings of the handler for a pod; `None`: it is the native driver.
    pub fn config(&self, id: &str) -> Option<external::Config> {
        let path = self.path.clone()?;
        let arguments = self.arguments.clone();
        let timeout = external::Config::TIMEOUT;
        Some(external::Config { name: self.name.into(), path, root: Self::root(id), arguments, timeout })
    }

    /// A driver for a pod of this name.
    pub fn driver(&self, id: &str) -> Arc<dyn Driver> {
        let mut native = super::config(Path::new(env!("CARGO_BIN_EXE_podd")), &format!("/berth-test-{id}"));
        native.hooks = Self::berth().config(id);
        let drivers = Native::with_runtimes(native, self.config(id).into_iter().collect());
        let drivers = drivers.unwrap_or_else(|e| panic!("{}", e.chain()));
        drivers.last().unwrap().clone()
    }

    /// Asserts that the runtime has kept nothing.
    pub fn end(&self, id: &str) {
        let left: Vec<_> = fs::read_dir(Self::root(id)).into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "{} has kept {left:?}", self.name);
        let _ = fs::remove_dir(Self::root(id));
    }
}

/// Every promise as a test on each handler. Those in brackets are about the supervisor alone and kept once.
#[macro_export]
macro_rules! on_every_handler {
    ($($promise:ident)* ; $($ours:ident)*) => {
        mod native {
            use $crate::support::handlers::Handler;
            $(#[tokio::test] async fn $promise() { super::$promise(&Handler::native()).await })*
            $(#[tokio::test] async fn $ours() { super::$ours(&Handler::native()).await })*
        }
        mod berth_oci {
            use $crate::support::handlers::Handler;
            $(#[tokio::test] async fn $promise() { super::$promise(&Handler::berth()).await })*
        }
        mod crun {
            use $crate::support::handlers::Handler;
            $(#[tokio::test] async fn $promise() {
                if let Some(handler) = Handler::of("crun") { super::$promise(&handler).await }
            })*
        }
        mod runc {
            use $crate::support::handlers::Handler;
            $(#[tokio::test] async fn $promise() {
                if let Some(handler) = Handler::of("runc") { super::$promise(&handler).await }
            })*
        }
    };
}

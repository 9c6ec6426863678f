//! Builds programs from Go modules and keeps them in the cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::tools::cache::{self, Key};
use crate::tools::command::run;

/// Programs to build from one Go module.
pub struct Programs {
    /// The name of the cache entry.
    pub name: &'static str,
    /// The module's path.
    pub module: &'static str,
    /// The module's version, with the `v`.
    pub version: &'static str,
    /// The build tags.
    pub tags: &'static [&'static str],
    /// The Go variable to set to the version without the `v`.
    ///
    /// `None` if the program finds out its version by itself.
    pub version_variable: Option<&'static str>,
    /// The packages of the programs, relative to the module.
    pub packages: &'static [&'static str],
    /// The packages whose tests are built into programs. Their names end with `.test`.
    pub tests: &'static [&'static str],
}

impl Programs {
    /// Returns the directory with the programs. They are built first if they are not in the cache.
    pub fn obtain(&self) -> Result<PathBuf> {
        let mut key = Key::default();
        key.add("module", self.module)
            .add("version", self.version)
            .add("recipe", include_str!("go.rs"));
        for (name, parts) in [("tag", self.tags), ("package", self.packages), ("test", self.tests)]
        {
            for part in parts {
                key.add(name, part);
            }
        }
        key.add("variable", self.version_variable.unwrap_or_default());
        cache::entry(self.name, &key, |dir| self.build(dir))
    }

    /// Builds the programs like `go install MODULE@VERSION`, but in the module's own directory.
    ///
    /// In this directory Go uses the dependencies that the module has locked. Go also requests only
    /// this version from the proxy. It does not request the list of all versions, which some
    /// proxies lack.
    fn build(&self, dir: &Path) -> Result<()> {
        let variable = self
            .version_variable
            .map(|name| format!(" -X {name}={}", self.version.trim_start_matches('v')));
        let source = self.source()?;
        let go = |arguments: &[&str]| {
            let mut command = Command::new("go");
            command.current_dir(&source).env("CGO_ENABLED", "0").args(arguments);
            command.args(["-trimpath", "-buildvcs=false", "-tags", &self.tags.join(",")]);
            command.arg(format!("-ldflags=-s -w{}", variable.as_deref().unwrap_or_default()));
            command.arg("-o").arg(dir.join(""));
            command
        };
        if !self.packages.is_empty() {
            run(go(&["build"]).args(self.packages))?;
        }
        if !self.tests.is_empty() {
            run(go(&["test", "-c"]).args(self.tests))?;
        }
        Ok(())
    }

    /// Returns the directory of the module's source, which is read-only.
    pub fn source(&self) -> Result<PathBuf> {
        let module = format!("{}@{}", self.module, self.version);
        let described = run(Command::new("go").args(["mod", "download", "-json", &module]))?;
        let described: serde_json::Value =
            serde_json::from_str(&described).context("reading what `go mod download` said")?;
        Ok(described["Dir"].as_str().with_context(|| format!("no source for {module}"))?.into())
    }
}

/// Returns the directory of the Go module `integration/NAME` in this repository.
pub fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Builds the Go module `integration/NAME` of this repository with these arguments for `go build`.
///
/// Returns the path of the program, which is kept in the cache.
pub fn own(name: &str, arguments: &[&str]) -> Result<PathBuf> {
    let source = source(name);
    let mut key = Key::default();
    key.add_tree(&source)?
        .add("recipe", include_str!("go.rs"))
        .add("arguments", arguments.join(" "));
    let dir = cache::entry(name, &key, |dir| {
        let mut command = Command::new("go");
        command.current_dir(&source).env("CGO_ENABLED", "0").args([
            "build",
            "-trimpath",
            "-buildvcs=false",
        ]);
        run(command.args(arguments).arg("-o").arg(dir.join(name)).arg(".")).map(|_| ())
    })?;
    Ok(dir.join(name))
}

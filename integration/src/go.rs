//! Programs built from Go modules, and kept in the cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::{self, Key};
use crate::image::run;

/// Programs of one module.
pub struct Programs {
    /// The name in the cache.
    pub name: &'static str,
    /// The module's path.
    pub module: &'static str,
    /// Its version, with the `v`.
    pub version: &'static str,
    /// Build tags.
    pub tags: &'static [&'static str],
    /// The variable that is set to the version, without the `v`, if the program does not find out by itself.
    pub version_variable: Option<&'static str>,
    /// The programs' packages below the module.
    pub packages: &'static [&'static str],
    /// Packages of whose tests a program is to be made, with `.test` behind its name.
    pub tests: &'static [&'static str],
}

impl Programs {
    /// The directory with the programs, built first if they are not in the cache.
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

    /// As `go install MODULE@VERSION` does, but in the module's own directory: that takes its locked dependencies, and asks the
    /// proxy for this one version only and not for a list of all, which not every proxy has.
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

    /// Where the module's source is, which nobody may write to.
    pub fn source(&self) -> Result<PathBuf> {
        let module = format!("{}@{}", self.module, self.version);
        let described = run(Command::new("go").args(["mod", "download", "-json", &module]))?;
        let described: serde_json::Value =
            serde_json::from_str(&described).context("reading what `go mod download` said")?;
        Ok(described["Dir"].as_str().with_context(|| format!("no source for {module}"))?.into())
    }
}

/// Where the module of a program of this repository is.
pub fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// A program of this repository, built from the Go module in `integration/NAME`, with these arguments for `go build`. Its path.
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

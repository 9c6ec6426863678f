//! Builds programs from Go modules and keeps them in the cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::tools::cache::{self, Key};
use crate::tools::command::run;

/// An environment variable for every build. With this value, the programs need no C library.
const ENVIRONMENT: (&str, &str) = ("CGO_ENABLED", "0");

/// The flags of every build. With these flags, the programs contain no paths of this machine.
const FLAGS: [&str; 2] = ["-trimpath", "-buildvcs=false"];

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
    /// The Go variable that the build sets to the version without the `v`.
    ///
    /// `None` if the program determines its version itself.
    pub version_variable: Option<&'static str>,
    /// The packages of the programs, relative to the module.
    pub packages: &'static [&'static str],
    /// The packages whose tests are built into programs. The names of these programs end with
    /// `.test`.
    pub tests: &'static [&'static str],
}

impl Programs {
    /// Returns the directory with the programs. Builds the programs first if they are not in the
    /// cache.
    pub fn obtain(&self) -> Result<PathBuf> {
        cache::entry(self.name, &self.key(), |dir| {
            // Run Go in the module's own directory, so that Go uses the dependencies that the
            // module has locked. Go then requests only this version from the proxy. `go install
            // MODULE@VERSION` would request the list of all versions, which some proxies lack.
            let source = self.source()?;
            self.builds().iter().try_for_each(|build| build.run(&source, &dir.join("")))
        })
    }

    /// Returns the cache key of the programs.
    pub(crate) fn key(&self) -> Key {
        let mut key = Key::default();
        key.add("module", self.module).add("version", self.version);
        for build in self.builds() {
            build.add_to(&mut key);
        }
        key
    }

    fn builds(&self) -> Vec<Build<'_>> {
        let variable = self
            .version_variable
            .map(|name| format!(" -X {name}={}", self.version.trim_start_matches('v')));
        let flags = vec![
            format!("-tags={}", self.tags.join(",")),
            format!("-ldflags=-s -w{}", variable.unwrap_or_default()),
        ];
        let build = |verb, packages| Build { verb, flags: flags.clone(), packages };
        [build(&["build"][..], self.packages), build(&["test", "-c"], self.tests)]
            .into_iter()
            .filter(|build| !build.packages.is_empty())
            .collect()
    }

    /// Returns the directory of the module's source, which is read-only.
    pub fn source(&self) -> Result<PathBuf> {
        let module = format!("{}@{}", self.module, self.version);
        let described = run(Command::new("go").args(["mod", "download", "-json", &module]))?;
        let described: serde_json::Value =
            serde_json::from_str(&described).context("reading the answer of `go mod download`")?;
        Ok(described["Dir"]
            .as_str()
            .with_context(|| format!("go mod download named no directory for {module}"))?
            .into())
    }
}

/// Returns the directory of the Go module `integration/NAME` in this repository.
pub(crate) fn own_source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// A Go module `integration/NAME` in this repository with one program.
pub(crate) struct OwnProgram {
    /// The name of the directory, the program and the cache entry.
    pub(crate) name: &'static str,
    /// Flags of `go build`.
    pub(crate) flags: Vec<String>,
}

impl OwnProgram {
    /// Returns the path of the program. Builds the program first if it is not in the cache.
    pub(crate) fn obtain(&self) -> Result<PathBuf> {
        let dir = cache::entry(self.name, &self.key()?, |dir| {
            self.build().run(&own_source(self.name), &dir.join(self.name))
        })?;
        Ok(dir.join(self.name))
    }

    /// Returns the cache key of the program.
    pub(crate) fn key(&self) -> Result<Key> {
        let mut key = Key::default();
        key.add_tree(&own_source(self.name))?;
        self.build().add_to(&mut key);
        Ok(key)
    }

    fn build(&self) -> Build<'_> {
        Build { verb: &["build"], flags: self.flags.clone(), packages: &["."] }
    }
}

/// A call of the `go` command that builds programs.
pub(crate) struct Build<'a> {
    /// The subcommand.
    pub(crate) verb: &'a [&'a str],
    pub(crate) flags: Vec<String>,
    pub(crate) packages: &'a [&'a str],
}

impl Build<'_> {
    /// Builds the packages of the module in the directory `source`.
    ///
    /// `output` is the path of the program. A path that ends with a slash is a directory for the
    /// programs.
    pub(crate) fn run(&self, source: &Path, output: &Path) -> Result<()> {
        let mut command = Command::new("go");
        command.current_dir(source).env(ENVIRONMENT.0, ENVIRONMENT.1);
        command.args(self.verb).args(FLAGS).args(&self.flags);
        run(command.arg("-o").arg(output).args(self.packages)).map(|_| ())
    }

    /// Adds the call of `go` to a cache key.
    pub(crate) fn add_to(&self, key: &mut Key) {
        key.add("environment", format!("{}={}", ENVIRONMENT.0, ENVIRONMENT.1));
        let words = self.verb.iter().chain(&FLAGS).copied();
        for word in words.chain(self.flags.iter().map(String::as_str)) {
            key.add("word", word);
        }
        for package in self.packages {
            key.add("package", package);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: Programs = Programs {
        name: "hello",
        module: "example.com/hello",
        version: "v1.2.3",
        tags: &["a", "b"],
        version_variable: Some("main.Version"),
        packages: &["./cmd/hello"],
        tests: &[],
    };

    #[test]
    fn key_changes_with_every_input() {
        let keys = [
            HELLO,
            Programs { module: "example.com/other", ..HELLO },
            Programs { version: "v1.2.4", ..HELLO },
            Programs { tags: &["a"], ..HELLO },
            Programs { version_variable: None, ..HELLO },
            Programs { packages: &["./cmd/hello", "./cmd/bye"], ..HELLO },
            Programs { packages: &[], tests: &["./cmd/hello"], ..HELLO },
        ]
        .map(|programs| programs.key().hex());
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key), "input {index} is not in the key");
        }
        assert_eq!(Programs { name: "another", ..HELLO }.key().hex(), HELLO.key().hex());
    }
}

//! Command line of `plimsoll lint`: finds and reads the files for [`crate::commands::lint`].

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use plimsoll_core::policy::Node;
use plimsoll_core::units::{Bytes, PageSize};
use serde::Serialize;
use walkdir::WalkDir;

use crate::commands::explain::Basis;
use crate::commands::failure::Failure;
use crate::commands::input::{load_config, quantity, read_file, shown};
use crate::commands::lint::{self, Level, Report};
use crate::commands::output::print;
use crate::config::{Config, NodeAllocatable};

/// Check the memory requests and limits in manifests.
#[derive(Args)]
#[command(
    long_about = "\
Check the memory requests and limits in Kubernetes manifests, as for a pipeline. The command checks
pods, objects with a pod template (Deployments, StatefulSets, DaemonSets, Jobs, CronJobs and so on)
and lists of them, and ignores other objects. A file may have several documents: a broken document
hides no findings in the others.

The command searches directories at any depth for *.yaml, *.yml and *.json, and does not follow
symbolic links to directories. Render templates first: helm template . | plimsoll lint -

The rules and their levels:

  error    unreadable                  a file that cannot be read
  error    syntax                      a document that is not YAML or JSON
  error    invalid                     a pod without containers, or with invalid values
  error    memory-request-above-limit  a memory request above the limit
  warning  limit-request-ratio         a memory limit too many times the request
  warning  memory-request-missing      a container without a memory request
  warning  memory-limit-missing        a container without a memory limit
  warning  annotation-ignored          an annotation of plimsoll.nri.io without effect
  warning  duplicate-field             a field that occurs twice
  note     memory-request-defaulted    a memory limit without a request

Exit codes: 0 no findings, or only findings below --fail-on; 1 findings of at least that level;
2 errors, whatever --fail-on is.",
    after_long_help = "\
Examples:
  plimsoll lint deploy/
  kubectl kustomize overlays/live | plimsoll lint - --fail-on warning
  plimsoll lint deploy/ --format sarif > plimsoll.sarif"
)]
pub(crate) struct Lint {
    /// Manifests in YAML or JSON, and directories of manifests; - is standard input
    #[arg(required = true, value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,

    /// Highest allowed ratio of memory limit to request; by default, maxLimitRequestRatio
    #[arg(long, value_name = "NUMBER", value_parser = ratio)]
    max_ratio: Option<f64>,

    /// Lowest level of findings for which the command fails
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = Level::Error)]
    fail_on: Level,

    /// Format of the output
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Text)]
    format: Format,

    /// Also print class, ratio and values of each container; JSON always has them
    #[arg(long)]
    values: bool,

    /// Configuration file of the nodes; by default, the default configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Memory that all pods of a node may use together, such as 60Gi
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    node_allocatable: Option<Bytes>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
    Sarif,
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(ratio) if ratio >= 1.0 && f64::is_finite(ratio) => Ok(ratio),
        _ => Err("expected a number of at least 1".to_owned()),
    }
}

impl Lint {
    /// Checks the manifests and prints the findings.
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let config = match &self.config {
            Some(path) => load_config(path)?,
            None => Config::default(),
        };
        let max_ratio = self.max_ratio.or(config.max_limit_request_ratio).unwrap_or(f64::INFINITY);
        let mut report = Report::new(self.basis(&config), max_ratio);
        let here = std::env::current_dir().unwrap_or_default();
        for path in &self.paths {
            let mut found = false;
            for file in files(path) {
                found = true;
                let (file, read) = match file {
                    Ok(file) => {
                        let read = read_file(&file, lint::LARGEST);
                        (file, read)
                    }
                    Err((file, error)) => (file, Err(error)),
                };
                // Report paths relative to the current directory. Code scanning expects paths
                // relative to the repository root, and a pipeline runs the command there.
                let name =
                    file.strip_prefix(&here).or_else(|_| file.strip_prefix(".")).unwrap_or(&file);
                match read {
                    Ok(text) => report.lint(name, &text),
                    Err(error) => report.add_unreadable(name, &error),
                }
            }
            if !found {
                let expected = "expected *.yaml, *.yml or *.json in the directory, found none";
                return Err(Failure::Usage(anyhow!("{}: {expected}", shown(path))));
            }
        }
        match self.format {
            Format::Text => print(format_args!("{}", report.text(self.values)))?,
            Format::Json => print_json(&report)?,
            Format::Sarif => print_json(&report.sarif())?,
        }
        Ok(match report.worst() {
            Some(Level::Error) => ExitCode::from(2),
            Some(level) if level >= self.fail_on => ExitCode::from(1),
            _ => ExitCode::SUCCESS,
        })
    }

    /// Returns the settings that apply to every explained pod. Ignores the memory size and page
    /// size of this machine, because this machine is not the node.
    fn basis(&self, config: &Config) -> Basis {
        let configured = match config.node_allocatable {
            NodeAllocatable::Fixed(bytes) => Some(bytes),
            NodeAllocatable::Auto => None,
        };
        let node =
            Node { allocatable: self.node_allocatable.or(configured), page_size: PageSize::KIB4 };
        Basis { policy: config.policy, node, allocatable_source: "given".to_owned() }
    }
}

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let json =
        serde_json::to_string_pretty(value).map_err(|error| Failure::Runtime(error.into()))?;
    print(format_args!("{json}\n"))
}

/// Returns `path` itself if it is not a directory. For a directory, returns the manifests below the
/// directory in the order of their names. An error contains the path that could not be listed.
fn files(path: &Path) -> Box<dyn Iterator<Item = Result<PathBuf, (PathBuf, io::Error)>>> {
    if !path.is_dir() {
        return Box::new(std::iter::once(Ok(path.to_owned())));
    }
    let directory = path.to_owned();
    Box::new(WalkDir::new(path).sort_by_file_name().into_iter().filter_map(
        move |entry| match entry {
            Ok(entry) => {
                let file = entry.into_path();
                let named = file.extension().is_some_and(|extension| {
                    ["yaml", "yml", "json"].iter().any(|known| extension == *known)
                });
                // A symbolic link to a file counts as a file.
                (named && file.is_file()).then_some(Ok(file))
            }
            Err(error) => Some(Err((error.path().unwrap_or(&directory).to_owned(), error.into()))),
        },
    ))
}

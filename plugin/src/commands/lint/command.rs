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

/// Check the memory of pods in manifests, as for a pipeline.
#[derive(Args)]
#[command(
    long_about = "\
Check requests and limits of memory in Kubernetes manifests: of pods, of objects with a pod template such as Deployments, \
StatefulSets, DaemonSets, Jobs and CronJobs, and of lists of these. Other objects are passed over. A file may hold several \
documents; a broken one is reported and hides nothing of the others. Directories are searched to any depth for *.yaml, *.yml \
and *.json; symbolic links to directories are not followed. Templates have to be rendered first: helm template . | plimsoll \
lint -

  error    unreadable                  a file that cannot be read
  error    syntax                      a document that is no YAML or JSON
  error    invalid                     a pod without containers, or with wrong values
  error    memory-request-above-limit  a memory request above the limit
  warning  limit-request-ratio         a memory limit too many times the request
  warning  memory-request-missing      a container without memory request
  warning  memory-limit-missing        a container without memory limit
  warning  annotation-ignored          an annotation of plimsoll.nri.io without effect
  note     memory-request-defaulted    a memory limit without request

Exit codes: 0 fine, also with findings below --fail-on; 1 findings of that level; 2 errors, whatever --fail-on says.",
    after_long_help = "\
Examples:
  plimsoll lint deploy/
  kubectl kustomize overlays/live | plimsoll lint - --fail-on warning
  plimsoll lint deploy/ --format sarif > plimsoll.sarif"
)]
pub(crate) struct Lint {
    /// Manifests, YAML or JSON, and directories that hold such; - is standard input
    #[arg(required = true, value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,

    /// How many times its memory request a container's limit may be; without it, the configuration's maxLimitRequestRatio
    #[arg(long, value_name = "NUMBER", value_parser = ratio)]
    max_ratio: Option<f64>,

    /// The lowest level of findings to fail for
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = Level::Error)]
    fail_on: Level,

    /// The form of the output
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Text)]
    format: Format,

    /// As text, show class, ratio and values of every container, too; JSON always has them
    #[arg(long)]
    values: bool,

    /// The nodes' configuration file; without it, the defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Memory that pods may use altogether on a node, such as 60Gi, for the values of containers without a limit
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
        _ => Err("expected a number of 1 or more".to_owned()),
    }
}

impl Lint {
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
                // Name files relative to the current directory. Code scanning expects paths
                // relative to the repository root, where a pipeline runs the command.
                let name =
                    file.strip_prefix(&here).or_else(|_| file.strip_prefix(".")).unwrap_or(&file);
                match read {
                    Ok(text) => report.lint(name, &text),
                    Err(error) => report.unreadable(name, &error),
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

    /// Returns the basis of the explanations. Ignores memory and page size of this machine, because
    /// this machine is not the node.
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

/// Returns `path` itself if it is not a directory. For a directory, returns the manifests below it
/// in the order of their names. An error holds the path that could not be listed.
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

//! What passed on which node, and the table in SUPPORT.md that is made of it.
//!
//! Each test program that runs on nodes leaves a file in the target directory, with a line for each case that passed. It starts anew with
//! the program, so that the files together are what was run last.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::env;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, ensure};
use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};
use serde::{Deserialize, Serialize};

use crate::kubelet::Driver;
use crate::node::Node;

/// Where the table is, and between which lines.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../SUPPORT.md");
const BEGIN: &str = "<!-- hack/support writes this -->\n\n";
const END: &str = "\n<!-- to here -->\n";

/// The directory of what has passed.
const PASSED: &str = "passed-on-nodes";

/// A node, in the words of its own programs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Facts {
    runtime: String,
    driver: String,
    oci_runtime: String,
    distribution: String,
    kernel: String,
    systemd: String,
}

/// A case that passed.
#[derive(Debug, Serialize, Deserialize)]
struct Passed {
    #[serde(flatten)]
    facts: Facts,
    /// The version of a real kubelet.
    kubernetes: Option<String>,
    placement: String,
    case: String,
}

/// What is known of nodes, by runtime and driver: those of one kind are from the same image.
static KNOWN: LazyLock<Mutex<HashMap<(String, Driver), Facts>>> = LazyLock::new(Mutex::default);
static FILE: Mutex<Option<File>> = Mutex::new(None);

/// Begins this program's file anew: what passed in earlier runs does not count from here on.
pub fn begin() -> Result<()> {
    let mut file = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    if file.is_none() {
        let program = env::current_exe().context("looking for this program")?;
        let path = directory(&program, PASSED)?
            .join(program.file_stem().context("this program has no name")?);
        *file = Some(File::create(&path).with_context(|| format!("creating {}", path.display()))?);
    }
    Ok(())
}

/// Notes that this thread's case passed on a node: with the plugin in this placement, and the kubelet's double or, by its version, a real one.
pub fn passed(
    node: &Node,
    driver: Driver,
    placement: &str,
    kubernetes: Option<&str>,
) -> Result<()> {
    let kind = (node.runtime().to_string(), driver);
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get(&kind).cloned();
    let facts = match known {
        Some(facts) => facts,
        None => {
            let facts = ask(node, driver)?;
            KNOWN.lock().unwrap_or_else(PoisonError::into_inner).insert(kind, facts.clone());
            facts
        }
    };
    let passed = Passed {
        facts,
        kubernetes: kubernetes.map(str::to_owned),
        placement: placement.to_owned(),
        case: thread::current().name().unwrap_or("a case").to_owned(),
    };
    let mut line = serde_json::to_string(&passed).context("writing what passed")?;
    line.push('\n');
    let mut file = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    let file = file.as_mut().context("no test of this program has begun")?;
    file.write_all(line.as_bytes()).context("writing what passed")
}

fn ask(node: &Node, driver: Driver) -> Result<Facts> {
    // Each handler has its OCI runtime, and handlers are called as the drivers here.
    let script = format!(
        r#". /etc/os-release; echo "$PRETTY_NAME"; uname -r; systemctl --version | awk 'NR == 1 {{ print $2 }}'
           said=$(crictl version); echo "$said" | awk '/^Runtime(Name|Version):/ {{ print $2 }}'
           path=$({{ cat /etc/crio/crio.conf.d/* /etc/containerd/config.toml 2>/dev/null || true; }} | awk -F "[\"']" \
               '/^\[/ {{ found = /runtimes\.{driver}(\.options)?\]$/ }} found && /^(runtime_path|BinaryName)/ {{ print $2; exit }}')
           "${{path:-runc}}" --version | sed -n 1p"#
    );
    let said = node.run(&script)?.stdout;
    let lines: Vec<&str> = said.lines().map(str::trim).collect();
    let [distribution, kernel, systemd, name, version, oci_runtime] = lines[..] else {
        anyhow::bail!("six lines were expected of a node, it said:\n{said}")
    };
    Ok(Facts {
        runtime: format!("{name} {}", upstream(version)),
        driver: driver.to_string(),
        oci_runtime: upstream(oci_runtime).replace(" version", ""),
        distribution: distribution.to_owned(),
        kernel: kernel.to_owned(),
        systemd: systemd.to_owned(),
    })
}

/// A version without what a distribution or a build adds.
fn upstream(version: &str) -> &str {
    version.split(['~', '+']).next().unwrap_or(version)
}

/// Where the files of test programs are: beside the directory of a program's like, by this name.
pub(crate) fn directory(program: &Path, name: &str) -> Result<PathBuf> {
    // As target/debug/deps/plugin-0123456789abcdef or target/debug/support.
    let profile = program.ancestors().find(|path| path.join("deps").is_dir());
    let directory =
        profile.context("this program is not in a target directory of cargo")?.join(name);
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    Ok(directory)
}

/// Writes what was run last into SUPPORT.md.
pub fn write() -> Result<()> {
    let directory = directory(&env::current_exe().context("looking for this program")?, PASSED)?;
    // One program may have been built, and run, more than once: the latest counts.
    let mut latest = BTreeMap::new();
    for entry in
        fs::read_dir(&directory).with_context(|| format!("listing {}", directory.display()))?
    {
        let path = entry.context("listing what passed")?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let program = name.split('-').next().unwrap_or_default().to_owned();
        let time = path
            .metadata()
            .and_then(|metadata| metadata.modified())
            .context("when was this written?")?;
        let newest = latest.entry(program).or_insert((time, path.clone()));
        if newest.0 < time {
            *newest = (time, path);
        }
    }
    let mut passed = Vec::new();
    for (_, path) in latest.into_values() {
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        for line in text.lines() {
            let one: Passed = serde_json::from_str(line)
                .with_context(|| format!("reading {}", path.display()))?;
            passed.push(one);
        }
    }
    ensure!(
        !passed.is_empty(),
        "nothing has passed on nodes in {}: run hack/check first",
        directory.display()
    );
    let document = fs::read_to_string(DOCUMENT).context("reading SUPPORT.md")?;
    let (before, after) = around(&document)?;
    fs::write(DOCUMENT, format!("{before}{BEGIN}{}{END}{after}", table(&passed)))
        .context("writing SUPPORT.md")
}

/// What comes before the table and after it.
fn around(document: &str) -> Result<(&str, &str)> {
    let (before, rest) =
        document.split_once(BEGIN).context("SUPPORT.md has no beginning of the table")?;
    let (_, after) = rest.split_once(END).context("SUPPORT.md has no end of the table")?;
    Ok((before, after))
}

const COLUMNS: [&str; 8] = [
    "runtime",
    "cgroup driver",
    "OCI runtime",
    "distribution",
    "systemd",
    "kernel",
    "kubelet",
    "cases passed",
];

/// Cases, by how the plugin was placed.
type Placements<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

fn table(passed: &[Passed]) -> String {
    let mut rows: BTreeMap<(&Facts, Option<&str>), Placements<'_>> = BTreeMap::new();
    for Passed { facts, kubernetes, placement, case } in passed {
        let placements = rows.entry((facts, kubernetes.as_deref())).or_default();
        placements.entry(placement).or_default().insert(case);
    }
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN).set_header(COLUMNS);
    for ((facts, kubernetes), placements) in rows {
        let cases: Vec<String> = placements
            .into_iter()
            .map(|(placement, cases)| format!("{} {placement}", cases.len()))
            .collect();
        table.add_row([
            &facts.runtime,
            &facts.driver,
            &facts.oci_runtime,
            &facts.distribution,
            &facts.systemd,
            &facts.kernel,
            kubernetes.unwrap_or("double"),
            &cases.join(", "),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Left);
    }
    format!("{table}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Runtime;

    fn passed(case: &str, placement: &str, driver: Driver) -> Passed {
        Passed {
            facts: Facts {
                runtime: "containerd 2.1.9".into(),
                driver: driver.to_string(),
                oci_runtime: "runc 1.3.6".into(),
                distribution: "Debian GNU/Linux forky/sid".into(),
                kernel: "7.2.12".into(),
                systemd: "262".into(),
            },
            kubernetes: None,
            placement: placement.into(),
            case: case.into(),
        }
    }

    #[test]
    fn nodes_that_are_alike_are_one_row_with_each_case_counted_once() {
        let table = table(&[
            passed("a", "without", Driver::Systemd),
            passed("b", "as a service", Driver::Systemd),
            passed("b", "as a service", Driver::Systemd),
            passed("c", "as a service", Driver::Systemd),
            passed("c", "as a service", Driver::Cgroupfs),
        ]);
        let rows: Vec<Vec<&str>> = table
            .lines()
            .skip(2)
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
            .collect();
        let of_node = |driver, cases| {
            [
                "containerd 2.1.9",
                driver,
                "runc 1.3.6",
                "Debian GNU/Linux forky/sid",
                "262",
                "7.2.12",
                "double",
                cases,
            ]
        };
        assert_eq!(
            rows,
            [
                of_node("cgroupfs", "1 as a service"),
                of_node("systemd", "2 as a service, 1 without")
            ]
        );
    }

    /// Debian moves on, so exact versions are those of the day when it was written, and so is what had run.
    #[test]
    fn the_table_claims_no_runtime_and_driver_that_tests_do_not_run_on() {
        let document = fs::read_to_string(DOCUMENT).unwrap();
        let (before, after) = around(&document).unwrap();
        let table = &document[before.len() + BEGIN.len()..document.len() - after.len() - END.len()];
        let row = |line: &str| -> Vec<String> {
            line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
        };
        let mut lines = table.lines().map(row);
        assert_eq!(lines.next().unwrap(), COLUMNS);
        let written: BTreeSet<(String, String)> = lines
            .skip(1)
            .map(|cells| {
                let (name, version) = cells[0].split_once(' ').expect("a name and a version");
                let minor: Vec<&str> = version.split('.').take(2).collect();
                (format!("{}-{}", name.replace("cri-o", "crio"), minor.join(".")), cells[1].clone())
            })
            .collect();
        let run = Runtime::ALL.iter().flat_map(|runtime| {
            [Driver::Systemd, Driver::Cgroupfs]
                .map(|driver| (runtime.to_string(), driver.to_string()))
        });
        let run: BTreeSet<_> = run.collect();
        assert!(!written.is_empty() && written.is_subset(&run), "{written:?} of {run:?}");
    }
}

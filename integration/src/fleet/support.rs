//! Records the cases that passed on each node and makes the table in SUPPORT.md from these records.
//!
//! Each test program with node tests writes a file in the target directory, with a line for each
//! passed case. A new run of the program replaces the file of the earlier run, so the files contain
//! the latest results.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::env;
use std::fs::{self, File};
use std::io::Write as _;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, ensure};
use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};
use serde::{Deserialize, Serialize};

use crate::machine::Node;
use crate::runtime::Driver;
use crate::tools::target_directory::directory;

/// The document with the table. The table is between the lines `BEGIN` and `END`.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../SUPPORT.md");

const BEGIN: &str = "<!-- hack/support writes this -->\n\n";

const END: &str = "\n<!-- to here -->\n";

/// The directory with the files of passed cases.
const PASSED: &str = "passed-on-nodes";

/// The properties of a node, as the node's own programs report them.
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
    /// The version of the real kubelet. `None` for the kubelet double.
    kubernetes: Option<String>,
    placement: String,
    case: String,
}

/// The known properties of nodes by runtime and driver.
///
/// Nodes of one kind have the same image and therefore the same properties.
static KNOWN: LazyLock<Mutex<HashMap<(String, Driver), Facts>>> = LazyLock::new(Mutex::default);

static FILE: Mutex<Option<File>> = Mutex::new(None);

/// Empties this program's file on the first call, so that results of earlier runs no longer count.
pub fn begin() -> Result<()> {
    let mut file = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    if file.is_none() {
        let program = env::current_exe().context("finding the path of this program")?;
        let path = directory(&program, PASSED)?
            .join(program.file_stem().context("this program has no name")?);
        *file = Some(File::create(&path).with_context(|| format!("creating {}", path.display()))?);
    }
    Ok(())
}

/// Records that this thread's case passed on a node where the plugin has this placement (launched
/// or external).
///
/// `kubernetes` is the version of a real kubelet, or `None` for the kubelet double.
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
    let mut line = serde_json::to_string(&passed).context("recording a passed case")?;
    line.push('\n');
    let mut file = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    let file = file.as_mut().context("a passed case is recorded before `begin`")?;
    file.write_all(line.as_bytes()).context("recording a passed case")
}

fn ask(node: &Node, driver: Driver) -> Result<Facts> {
    // Each runtime handler has its own OCI runtime and is named after its cgroup driver.
    let script = format!(
        r#". /etc/os-release; echo "$PRETTY_NAME"; uname -r
           systemctl --version | awk 'NR == 1 {{ print $2 }}'
           said=$(crictl version); echo "$said" | awk '/^Runtime(Name|Version):/ {{ print $2 }}'
           files='/etc/crio/crio.conf.d/* /etc/containerd/config.toml'
           path=$({{ cat $files 2>/dev/null || true; }} |
               awk -F "[\"']" '
                   /^\[/ {{ found = /runtimes\.{driver}(\.options)?\]$/ }}
                   found && /^(runtime_path|BinaryName)/ {{ print $2; exit }}')
           "${{path:-runc}}" --version | sed -n 1p"#
    );
    let said = node.run(&script)?.stdout;
    let lines: Vec<&str> = said.lines().map(str::trim).collect();
    let [distribution, kernel, systemd, name, version, oci_runtime] = lines[..] else {
        anyhow::bail!("the node must print 6 lines, but printed:\n{said}")
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

/// Returns a version without the suffix that a distribution or a build has added.
fn upstream(version: &str) -> &str {
    version.split(['~', '+']).next().unwrap_or(version)
}

/// Writes the results of the last runs into SUPPORT.md.
pub fn write() -> Result<()> {
    let directory =
        directory(&env::current_exe().context("finding the path of this program")?, PASSED)?;
    // Several builds of one program may have written files. Only the latest file counts.
    let mut latest = BTreeMap::new();
    for entry in
        fs::read_dir(&directory).with_context(|| format!("listing {}", directory.display()))?
    {
        let path = entry.context("listing the records of passed cases")?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let program = name.split('-').next().unwrap_or_default().to_owned();
        let time = path
            .metadata()
            .and_then(|metadata| metadata.modified())
            .context("reading the modification time of a record")?;
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
        "{} has no passed cases: run hack/check first",
        directory.display()
    );
    let document = fs::read_to_string(DOCUMENT).context("reading SUPPORT.md")?;
    let (before, after) = around(&document)?;
    fs::write(DOCUMENT, format!("{before}{BEGIN}{}{END}{after}", table(&passed)))
        .context("writing SUPPORT.md")
}

/// Returns the parts of the document before and after the table.
fn around(document: &str) -> Result<(&str, &str)> {
    let (before, rest) =
        document.split_once(BEGIN).context("SUPPORT.md has no line before the table")?;
    let (_, after) = rest.split_once(END).context("SUPPORT.md has no line after the table")?;
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

/// The passed cases under each placement of the plugin (launched or external).
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
    fn rows_merge_identical_nodes_and_repeated_cases() {
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

    /// This test compares only the runtimes, their minor versions and their drivers.
    ///
    /// Debian's packages change, so the table has the exact versions from its last update. The
    /// cases in the table are also from its last update.
    #[test]
    fn documented_runtime_driver_pairs_are_all_known() {
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

//! The memory files of cgroups on a node.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::machine::Node;

/// The mount point of cgroup v2 on the node.
pub const ROOT: &str = "/sys/fs/cgroup";

/// The value that stands for the kernel's `max`: no limit.
pub const MAX: u64 = u64::MAX;

/// The memory values of one cgroup in bytes. [`MAX`] stands for `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// memory.min
    pub min: u64,
    /// memory.low
    pub low: u64,
    /// memory.high
    pub high: u64,
    /// memory.max
    pub max: u64,
    /// memory.swap.max
    pub swap_max: u64,
}

/// Reads the values of several cgroups (paths below [`ROOT`]) with one command.
///
/// crun puts a container's processes into the cgroup `container` within the container's scope. For
/// these containers, this function returns the protection of the scope, and the lower limits of the
/// scope and the child cgroup.
pub fn memory(node: &Node, cgroups: &[&str]) -> Result<Vec<Memory>> {
    let mut script = String::new();
    for cgroup in cgroups {
        let _ = writeln!(
            script,
            "cd {ROOT}/{cgroup}
             inner=.; if [ -e container ]; then inner=container; fi
             echo $(<memory.min); echo $(<memory.low)
             for file in memory.high memory.max memory.swap.max; do
                 echo $(<$file) $(<$inner/$file)
             done"
        );
    }
    let output = node.run(&script).context("reading the memory files of cgroups")?;
    let value = |text: &str| match text {
        "max" => Ok(MAX),
        bytes => {
            bytes.parse().with_context(|| format!("{bytes:?} is neither a number of bytes nor max"))
        }
    };
    let lower = |line: &str| {
        line.split(' ')
            .map(value)
            .collect::<Result<Vec<u64>>>()?
            .into_iter()
            .min()
            .context("a line has no value")
    };
    let values: Vec<u64> = output.stdout.lines().map(lower).collect::<Result<_>>()?;
    let mut memory = Vec::new();
    for value in values.chunks(5) {
        let &[min, low, high, max, swap_max] = value else {
            anyhow::bail!("the script must print 5 values for each cgroup, but printed {value:?}");
        };
        memory.push(Memory { min, low, high, max, swap_max });
    }
    Ok(memory)
}

/// Returns the ancestors of a cgroup (a path below [`ROOT`]) and the cgroup itself, topmost first.
pub fn chain(cgroup: &str) -> Vec<&str> {
    let ends = cgroup.match_indices('/').map(|(at, _)| at).chain([cgroup.len()]);
    ends.map(|end| &cgroup[..end]).collect()
}

/// The memory usage of a cgroup in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// memory.current
    pub current: u64,
    /// Anonymous memory.
    pub anon: u64,
    /// Page cache.
    pub file: u64,
}

/// Reads the memory usage of several cgroups.
pub fn usage(node: &Node, cgroups: &[&str]) -> Result<Vec<Usage>> {
    let mut script = String::new();
    for cgroup in cgroups {
        let _ = writeln!(
            script,
            "cd {ROOT}/{cgroup}
             awk 'FNR == NR {{ print; nextfile }} $1 ~ /^(anon|file)$/ {{ print $2 }}' \
             memory.current memory.stat"
        );
    }
    let output = node.run(&script).context("reading the memory usage of cgroups")?;
    let values: Vec<u64> = output
        .stdout
        .lines()
        .map(|line| line.parse().with_context(|| format!("{line:?} is not a number of bytes")))
        .collect::<Result<_>>()?;
    ensure!(
        values.len() == 3 * cgroups.len(),
        "the script must print 3 values for each cgroup, but printed {values:?}"
    );
    Ok(values
        .chunks(3)
        .map(|three| Usage { current: three[0], anon: three[1], file: three[2] })
        .collect())
}

/// Reads memory.events: the number of times that each event happened.
pub fn events(node: &Node, cgroup: &str) -> Result<BTreeMap<String, u64>> {
    let file = node.read(&format!("{ROOT}/{cgroup}/memory.events"))?;
    let entry = |line: &str| {
        let (name, count) =
            line.split_once(' ').with_context(|| format!("{line:?} in memory.events"))?;
        Ok((name.to_owned(), count.parse().with_context(|| format!("{line:?} in memory.events"))?))
    };
    file.lines().map(entry).collect()
}

/// The expected content of one file of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The path of the cgroup below [`ROOT`].
    pub cgroup: String,
    /// The name of the file.
    pub file: &'static str,
    /// The expected value. [`MAX`] stands for `max`.
    pub value: u64,
}

impl Expected {
    /// Returns the expectation that `file` of `cgroup` contains `value`.
    pub fn new(cgroup: impl Into<String>, file: &'static str, value: u64) -> Expected {
        Expected { cgroup: cgroup.into(), file, value }
    }
}

/// The time and the number of checks until files had their expected values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The time from the script's end to the last wrong value. Zero if no value was wrong.
    pub after: Duration,
    /// The number of checks that a shell on the node completed until the last wrong value. Each
    /// check reads all files.
    ///
    /// The shell pauses for 5 ms between checks. On a busy host, both the node and the checks are
    /// slow. Therefore the number of checks depends less on the host's load than the time does.
    pub looks: u64,
}

/// Runs a script on the node and waits until all files have their expected values.
///
/// The files must then keep these values for the time `hold`. Returns the time from the script's
/// end to the last wrong value. If files are still wrong after `limit`, the error names these
/// files.
pub fn settle(
    node: &Node,
    script: &str,
    expected: &[Expected],
    hold: Duration,
    limit: Duration,
) -> Result<Settled> {
    let mut wanted = String::new();
    for Expected { cgroup, file, value } in expected {
        let value = if *value == MAX { "max".to_owned() } else { value.to_string() };
        let _ = write!(wanted, " {ROOT}/{cgroup}/{file} {value}");
    }
    let script_limit = limit + hold + Duration::from_secs(120);
    let output = node.try_run_within(
        script_limit,
        &settle_script(&wanted, script, hold, limit),
        Vec::new(),
    )?;
    ensure!(
        output.status.success(),
        "files have wrong values {limit:?} ({}) after\n{script}\n{}{}",
        output.status,
        output.stdout,
        output.stderr
    );
    let numbers = output.stdout.trim().split_once(' ');
    let (microseconds, looks) = numbers.with_context(|| {
        format!("the script must print 2 numbers, but printed {:?}", output.stdout)
    })?;
    let number = |text: &str| text.parse().with_context(|| format!("{text:?} is not a number"));
    Ok(Settled { after: Duration::from_micros(number(microseconds)?), looks: number(looks)? })
}

/// Returns the script of [`settle`].
fn settle_script(wanted: &str, script: &str, hold: Duration, limit: Duration) -> String {
    // The loop starts no process, because a fork takes longer on the node than the awaited change.
    // The pipe never has data, so a `read` with a timeout is a pause.
    format!(
        "wanted=({wanted})
             compare() {{
                 if [[ $value != $want ]]; then
                     wrong+=\"$file is $value instead of $want\"$'\\n'
                 fi
             }}
             exec {{pause}}<> <(:)
             {{ :
             {script}
             }} >&2
             began=${{EPOCHREALTIME//[.,]/}} wrong_at=0 looks=0 wrong_looks=0
             while :; do
                 wrong= looks=$((looks + 1))
                 for ((i = 0; i < ${{#wanted[@]}}; i += 2)); do
                     value=gone
                     file=${{wanted[i]}} want=${{wanted[i + 1]}}
                     {{ read -r value <$file; }} 2>/dev/null || value=gone
                     compare
                     # The processes of a container by crun are in this cgroup.
                     file=${{file%/*}}/container/${{file##*/}}
                     if [[ -e $file ]]; then
                         {{ read -r value <$file; }} 2>/dev/null || value=$want
                         compare
                     fi
                 done
                 now=$((${{EPOCHREALTIME//[.,]/}} - began))
                 if [[ $wrong ]]; then wrong_at=$now wrong_looks=$looks; fi
                 if ((now - wrong_at >= {hold})); then echo $wrong_at $wrong_looks; exit; fi
                 if ((now >= {limit})); then printf '%s' \"$wrong\"; exit 1; fi
                 read -r -t 0.005 -u $pause || true
             done",
        hold = hold.as_micros(),
        limit = (limit + hold).as_micros(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_lists_ancestors_topmost_first_then_itself() {
        assert_eq!(chain("a/b/c"), ["a", "a/b", "a/b/c"]);
        assert_eq!(chain("a"), ["a"]);
    }

    #[test]
    fn settling_waits_then_reports_the_wrong_file() {
        const SHORT: Duration = Duration::from_millis(100);
        const LONG: Duration = Duration::from_secs(30);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("memory.min");
        let file = file.to_str().unwrap();
        let run = |script: &str, limit: Duration| {
            let wanted = format!(" {file} 4096");
            let script = settle_script(&wanted, script, Duration::from_millis(20), limit);
            let bash = format!("set -euo pipefail\n{script}");
            let output = std::process::Command::new("bash").args(["-c", &bash]).output().unwrap();
            (output.status.code(), String::from_utf8(output.stdout).unwrap())
        };
        assert_eq!(run(&format!("echo 4096 > {file}"), LONG), (Some(0), "0 0\n".to_owned()));
        let wrong = format!("{file} is 0 instead of 4096\n");
        assert_eq!(run(&format!("echo 0 > {file}"), SHORT), (Some(1), wrong));
        let (code, output) =
            run(&format!("echo 0 > {file}; (sleep 0.05; echo 4096 > {file}) &"), LONG);
        let after: u64 = output.split(' ').next().unwrap().parse().unwrap();
        assert!(code == Some(0) && after > 0, "{code:?}: {output}");
    }
}

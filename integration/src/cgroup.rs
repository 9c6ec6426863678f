//! The memory files of cgroups as the node's kernel has them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::node::Node;

/// Where cgroup v2 is mounted on the node.
pub const ROOT: &str = "/sys/fs/cgroup";

/// The kernel's `max`: no limit.
pub const MAX: u64 = u64::MAX;

/// The memory values of one cgroup in bytes; [`MAX`] where the file says `max`.
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

/// Reads the values of several cgroups (paths below [`ROOT`]) in one go. Of a container by crun, whose processes are in a cgroup
/// `container` of its scope, the scope's protection, and the lower limits of both.
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
        bytes => bytes.parse().with_context(|| format!("{bytes:?} is neither bytes nor max")),
    };
    let lower = |line: &str| {
        line.split(' ')
            .map(value)
            .collect::<Result<Vec<u64>>>()?
            .into_iter()
            .min()
            .context("no value")
    };
    let values: Vec<u64> = output.stdout.lines().map(lower).collect::<Result<_>>()?;
    let mut memory = Vec::new();
    for value in values.chunks(5) {
        let &[min, low, high, max, swap_max] = value else {
            anyhow::bail!("five values expected for each cgroup, got {value:?}");
        };
        memory.push(Memory { min, low, high, max, swap_max });
    }
    Ok(memory)
}

/// A cgroup (a path below [`ROOT`]) and those above it, the topmost first.
pub fn chain(cgroup: &str) -> Vec<&str> {
    let ends = cgroup.match_indices('/').map(|(at, _)| at).chain([cgroup.len()]);
    ends.map(|end| &cgroup[..end]).collect()
}

/// What a cgroup uses, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// memory.current
    pub current: u64,
    /// Anonymous memory.
    pub anon: u64,
    /// Page cache.
    pub file: u64,
}

/// Reads what several cgroups use.
pub fn usage(node: &Node, cgroups: &[&str]) -> Result<Vec<Usage>> {
    let mut script = String::new();
    for cgroup in cgroups {
        let _ = writeln!(
            script,
            "cd {ROOT}/{cgroup}; awk 'FNR == NR {{ print; nextfile }} $1 == \"anon\" || $1 == \"file\" {{ print $2 }}' \
             memory.current memory.stat"
        );
    }
    let output = node.run(&script).context("reading what cgroups use")?;
    let values: Vec<u64> = output
        .stdout
        .lines()
        .map(|line| line.parse().with_context(|| format!("{line:?} is not a number of bytes")))
        .collect::<Result<_>>()?;
    ensure!(
        values.len() == 3 * cgroups.len(),
        "three values expected for each cgroup, got {values:?}"
    );
    Ok(values
        .chunks(3)
        .map(|three| Usage { current: three[0], anon: three[1], file: three[2] })
        .collect())
}

/// Reads memory.events: how often each thing happened.
pub fn events(node: &Node, cgroup: &str) -> Result<BTreeMap<String, u64>> {
    let file = node.read(&format!("{ROOT}/{cgroup}/memory.events"))?;
    let entry = |line: &str| {
        let (name, count) =
            line.split_once(' ').with_context(|| format!("{line:?} in memory.events"))?;
        Ok((name.to_owned(), count.parse().with_context(|| format!("{line:?} in memory.events"))?))
    };
    file.lines().map(entry).collect()
}

/// What a file of a cgroup is to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The cgroup below [`ROOT`].
    pub cgroup: String,
    /// The file's name.
    pub file: &'static str,
    /// Its content; [`MAX`] stands for `max`.
    pub value: u64,
}

impl Expected {
    /// `file` of `cgroup` is to hold `value`.
    pub fn new(cgroup: impl Into<String>, file: &'static str, value: u64) -> Expected {
        Expected { cgroup: cgroup.into(), file, value }
    }
}

/// How long files were wrong after something was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// By the node's clock: zero if they were right all the time.
    pub after: Duration,
    /// How often a shell on the node looked at all files until then, one time after the other with pauses of 5 ms. A node that is slow,
    /// since its machine has other things to do, is slow in this, too.
    pub looks: u64,
}

/// Runs a script on the node and waits until all files hold what is expected, and go on to for the time `hold`. Returns how
/// long after the script's end the last of them was still wrong.
///
/// Which files are wrong after `limit` is the error.
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
    // Without a process for each look: a fork takes longer here than what is waited for. Nothing ever comes through the
    // pipe, so that reading from it is a pause.
    let output = node.try_run_within(
        limit + hold + Duration::from_secs(120),
        &format!(
            "wanted=({wanted})
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
                     if [[ $value != $want ]]; then wrong+=\"$file is $value instead of $want\"$'\\n'; fi
                     # Where a container by crun has its processes.
                     file=${{file%/*}}/container/${{file##*/}}
                     if [[ -e $file ]]; then
                         {{ read -r value <$file; }} 2>/dev/null || value=$want
                         if [[ $value != $want ]]; then wrong+=\"$file is $value instead of $want\"$'\\n'; fi
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
        ),
        Vec::new(),
    )?;
    ensure!(
        output.status.success(),
        "not settled within {limit:?} ({}) of\n{script}\n{}{}",
        output.status,
        output.stdout,
        output.stderr
    );
    let numbers = output.stdout.trim().split_once(' ');
    let (microseconds, looks) =
        numbers.with_context(|| format!("two numbers expected: {:?}", output.stdout))?;
    let number = |text: &str| text.parse().with_context(|| format!("{text:?} is no number"));
    Ok(Settled { after: Duration::from_micros(number(microseconds)?), looks: number(looks)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_leads_from_the_top_to_the_cgroup_itself() {
        assert_eq!(chain("a/b/c"), ["a", "a/b", "a/b/c"]);
        assert_eq!(chain("a"), ["a"]);
    }
}

//! Records the memory of a pod and its container over time.
//!
//! A script on the node reads the cgroup files several times a second until it is stopped.

use anyhow::{Context, Result, ensure};

use crate::kubelet::{Kubelet, Pod};
use crate::machine::Node;
use crate::probe::cgroup::{MAX, ROOT};

const SCRIPT: &str = "/run/recorder.sh";
const SAMPLES: &str = "/run/recorder.samples";

/// The script that records the values. The script takes two arguments: the pod's cgroup, and the
/// name of the sandbox's cgroup within the pod. The script starts no processes, because starting a
/// process would take longer than the reads. The pipe never has data, so a `read` with a timeout is
/// a pause. During a recording the container may end and restart.
const RECORDER: &str = r#"
cd "$1"
exec {pause}<> <(:)
value() { { read -r value <"$1"; } 2>/dev/null || value=-; }
while :; do
    line=${EPOCHREALTIME//[.,]/}
    while read -r name count; do
        if [[ $name = oom_kill ]]; then line+=" $count"; fi
    done <memory.events
    value memory.max; line+=" $value"
    container='- - -'
    for group in */; do
        if [[ $group != "$2/" && -d $group ]]; then
            value "$group/memory.current"; container=$value
            value "$group/memory.high"; container+=" $value"
            value "$group/memory.max"; container+=" $value"
        fi
    done
    echo "$line $container"
    read -r -t 0.1 -u $pause || true
done
"#;

/// The values that the script read at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The time in microseconds by the node's clock.
    pub at: u64,
    /// The pod's oom_kill count so far.
    ///
    /// If the kernel kills all processes of a container at once, the kernel counts one of the
    /// processes twice.
    pub kills: u64,
    /// The pod's memory.max. [`MAX`] stands for no limit.
    pub pod_max: u64,
    /// The memory of the container. `None` while the container is down.
    pub container: Option<Level>,
}

/// The memory values of a container in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// memory.current
    pub current: u64,
    /// memory.high. [`MAX`] stands for no limit.
    pub high: u64,
    /// memory.max. [`MAX`] stands for no limit.
    pub max: u64,
}

/// A running recording on a node.
pub struct Recorder<'n> {
    node: &'n Node,
}

impl<'n> Recorder<'n> {
    /// Starts to record a pod with one container. Returns when the first sample exists.
    ///
    /// A node can have only one recording at a time.
    pub fn start(node: &'n Node, kubelet: &Kubelet<'_>, pod: &Pod) -> Result<Recorder<'n>> {
        node.write_file(SCRIPT, RECORDER, 0o755)?;
        let sandbox = kubelet.sandbox_cgroup(pod);
        let sandbox = sandbox.rsplit('/').next().unwrap_or_default();
        node.run(&format!(
            "rm -f {SAMPLES}
             systemd-run --quiet --collect --unit recorder --slice system.slice \
                 --property StandardOutput=file:{SAMPLES} bash {SCRIPT} {ROOT}/{} {sandbox}
             until test -s {SAMPLES}; do sleep 0.1; done",
            pod.cgroup
        ))
        .context("starting the recording")?;
        Ok(Recorder { node })
    }

    /// Returns the time in microseconds by the node's clock.
    pub fn now(&self) -> Result<u64> {
        let now = self.node.run("echo ${EPOCHREALTIME//[.,]/}")?.stdout;
        now.trim().parse().with_context(|| format!("{now:?} is not a time"))
    }

    /// Stops the recording and returns its samples. There is at least one sample.
    pub fn stop(self) -> Result<Vec<Sample>> {
        let samples = self
            .node
            .run(&format!("systemctl stop recorder; cat {SAMPLES}"))
            .context("stopping the recording")?;
        let samples: Vec<Sample> = samples.stdout.lines().map(parse).collect::<Result<_>>()?;
        ensure!(!samples.is_empty(), "the recording has no sample");
        Ok(samples)
    }
}

/// Parses a line of the script.
///
/// The line has the time, the kills and the pod's memory.max. The rest of the line is three values
/// of the container, or `-`.
fn parse(line: &str) -> Result<Sample> {
    let read = |word: &str| match word {
        "-" => Ok(None),
        "max" => Ok(Some(MAX)),
        number => {
            number.parse().map(Some).with_context(|| format!("{number:?} in the sample {line:?}"))
        }
    };
    let values: Vec<Option<u64>> = line.split(' ').map(read).collect::<Result<_>>()?;
    let &[Some(at), Some(kills), Some(pod_max), current, high, max] = values.as_slice() else {
        anyhow::bail!(
            "a sample has six values (time, kills, pod limit, usage, memory.high, limit), \
             found {line:?}"
        );
    };
    // A container that ends while its files are read has only some of the values.
    let container =
        current.zip(high).zip(max).map(|((current, high), max)| Level { current, high, max });
    Ok(Sample { at, kills, pod_max, container })
}

/// Returns the times of OOM kills in the pod: for each kill the time of the first sample that
/// includes the kill.
///
/// Increases in consecutive samples count as one kill. If the kernel kills a whole container, the
/// kernel counts the container's processes one after another.
pub fn kills(samples: &[Sample]) -> Vec<u64> {
    let mut counted =
        samples.windows(2).map(|pair| (pair[1].at, pair[1].kills > pair[0].kills)).peekable();
    let mut kills = Vec::new();
    while let Some((at, kills_more)) = counted.next() {
        if kills_more {
            kills.push(at);
            while counted.next_if(|(_, kills_more)| *kills_more).is_some() {}
        }
    }
    kills
}

/// Returns the time of each increase of the pod's limit and the new limit.
pub fn raises(samples: &[Sample]) -> Vec<(u64, u64)> {
    let raised = samples.windows(2).filter(|pair| pair[1].pod_max > pair[0].pod_max);
    raised.map(|pair| (pair[1].at, pair[1].pod_max)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incomplete_container_values_count_as_no_container() {
        let container = Some(Level { current: 4096, high: MAX, max: 8192 });
        assert_eq!(
            parse("7 0 8192 4096 max 8192").unwrap(),
            Sample { at: 7, kills: 0, pod_max: 8192, container }
        );
        for line in ["7 1 max - - -", "7 1 max 4096 - -"] {
            assert_eq!(
                parse(line).unwrap(),
                Sample { at: 7, kills: 1, pod_max: MAX, container: None }
            );
        }
        for line in ["", "7", "- 0 max - - -", "7 0 max 1 2", "7 0 much - - -"] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn consecutive_kills_merge_and_decreases_are_ignored() {
        let sample = |(at, kills, pod_max)| Sample { at, kills, pod_max, container: None };
        let samples =
            [(1, 3, 60), (2, 3, 60), (3, 4, 60), (4, 5, 90), (5, 5, 80), (6, 5, 120), (7, 6, 120)]
                .map(sample);
        assert_eq!(kills(&samples), [3, 7]);
        assert_eq!(raises(&samples), [(4, 90), (6, 120)]);
    }
}

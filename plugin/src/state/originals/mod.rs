//! Values that cgroup files had before the plugin changed them. The plugin stores these original
//! values in a file, so that they survive a crash of the plugin.
//!
//! Each line of the file is a JSON object about one target: a container or a cgroup. The plugin
//! appends the original values of a target before it first changes the target. The file is below
//! `/run`, so a reboot removes both the file and the cgroups. Examples:
//!
//! ```json
//! {"cgroup":"kubepods.slice","inode":4242,"memory.min":"0","memory.low":"0"}
//! {"container":"3f0c…","memory.high":"50331648"}
//! {"container":"3f0c…","during_decrease":"50331648"}
//! {"cgroup":"kubepods/pod1","inode":4243,"raised":"memory.max","from":"1048576","to":"2097152"}
//! ```
//!
//! A line with `during_decrease` has the value of `memory.high` before a limit decrease lowered it.
//! If the plugin is killed during the decrease, the next plugin process restores this value. A
//! later line with `"decrease_over":true` cancels this line.
//!
//! A line with `raised` is about a pod limit that the plugin has raised. The plugin never restores
//! this limit, because a limit decrease could OOM-kill a process. The plugin uses the line only for
//! reports.
//!
//! A line with `"restored":true` cancels the earlier lines about the same target. The file still
//! keeps the original values of cgroups above containers, because systemd may have drop-ins for
//! these cgroups. Only `plimsoll restore` removes these drop-ins.
//!
//! If the plugin wrote a line before the container's creation, the line has only the values that
//! the runtime's client asked for. For each missing value, the original value is the kernel's
//! default.
//!
//! A crash can leave an incomplete line. The plugin ignores this line, because the plugin had not
//! changed the target yet. The plugin counts and keeps every complete line that it cannot
//! interpret. If no line is about a target, the plugin has never changed this target.

mod line;
mod record;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::units::Limit;

use self::line::{Line, json};
pub use self::record::{RaisedLimit, Target, Values};
use crate::state::atomic_file;

/// Directory of the plugin's state, relative to the root of the node's file system.
pub const DIRECTORY: &str = "run/plimsoll";

/// Name of the file in [`DIRECTORY`].
const FILE: &str = "originals";

/// The plugin rewrites the file if it has this many lines more than twice the needed lines.
const SLACK: usize = 1000;

/// All original values and raised limits, with the file that stores them.
#[derive(Debug)]
pub struct Originals {
    path: PathBuf,
    known: HashMap<Target, Values>,
    raised: Vec<RaisedLimit>,
    /// Value of `memory.high` before a limit decrease lowered it, by container ID.
    decreasing: HashMap<String, Limit>,
    /// Original values of the cgroups above containers in which the plugin has restored them.
    former: HashMap<Target, Values>,
    /// Complete lines that the plugin cannot interpret. Each may be about a target that the plugin
    /// has changed.
    unreadable: Vec<Vec<u8>>,
    file: Option<File>,
    lines: usize,
    /// Whether the plugin failed to write a line, so that it must rewrite the file.
    is_behind: bool,
}

impl Originals {
    /// Loads the stored values of the node whose file system is at `host`. Does not create the
    /// file, because the first appended line creates it.
    ///
    /// # Errors
    ///
    /// Fails if the file exists but cannot be read.
    pub fn load(host: &Path) -> io::Result<Self> {
        let mut originals = Self::none(host);
        let file = match File::open(&originals.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(originals),
            Err(error) => return Err(error),
        };
        for line in BufReader::new(file).split(b'\n') {
            originals.lines += 1;
            let text = line?;
            let is_read = match serde_json::from_slice::<Line>(&text) {
                Ok(line) => originals.note(line),
                // The line is empty or incomplete.
                Err(error) => error.is_eof(),
            };
            if !is_read {
                originals.unreadable.push(text);
            }
        }
        Ok(originals)
    }

    /// Applies a line of the file to the values in memory. Returns whether the plugin can interpret
    /// the line.
    fn note(&mut self, line: Line) -> bool {
        if line.raised.is_some() {
            return line.read_raised().map(|limit| self.note_raised(limit)).is_some();
        }
        if line.during_decrease.is_some() || line.decrease_over {
            return self.note_decrease(line).is_some();
        }
        let restored = line.restored;
        match line.read() {
            Some((target, _)) if restored => _ = self.leave(&target),
            Some((target, values)) => {
                self.former.remove(&target);
                // Only the first line about a target contains its original values.
                self.known.entry(target).or_insert(values);
            }
            None => return false,
        }
        true
    }

    /// Marks a target as unchanged. Returns whether the target counted as changed before.
    fn leave(&mut self, target: &Target) -> bool {
        let Some(values) = self.known.remove(target) else { return false };
        if matches!(target, Target::Cgroup(..)) {
            self.former.insert(target.clone(), values);
        }
        true
    }

    /// Returns the cgroups above containers whose original values the plugin has restored: path,
    /// inode and original values. systemd may still have drop-ins for these cgroups.
    pub fn former(&self) -> impl Iterator<Item = (&CgroupPath, u64, Values)> {
        self.former.iter().filter_map(|(target, values)| match target {
            Target::Cgroup(path, inode) => Some((path, *inode, *values)),
            Target::Container(_) => None,
        })
    }

    /// Returns the number of complete lines that the plugin cannot interpret. The targets of these
    /// lines are unknown.
    pub fn unreadable(&self) -> usize {
        self.unreadable.len()
    }

    /// Creates an instance without any recorded values. Does not read the file.
    pub fn none(host: &Path) -> Self {
        Self {
            path: host.join(DIRECTORY).join(FILE),
            known: HashMap::new(),
            raised: Vec::new(),
            decreasing: HashMap::new(),
            former: HashMap::new(),
            unreadable: Vec::new(),
            file: None,
            lines: 0,
            is_behind: false,
        }
    }

    /// Returns the raised limits of pods. [`Originals::retain`] removes the entries of pods that no
    /// longer exist.
    pub fn raised_limits(&self) -> &[RaisedLimit] {
        &self.raised
    }

    /// Records a raised limit of a pod.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written. In this case, only the plugin's memory has the change.
    pub fn remember_raised(&mut self, limit: RaisedLimit) -> io::Result<()> {
        let line = json(&Line::of_raised(&limit))?;
        self.note_raised(limit);
        self.append(&line)
    }

    fn note_raised(&mut self, limit: RaisedLimit) {
        let is_it = |one: &&mut RaisedLimit| {
            (&one.cgroup, one.inode, &one.file) == (&limit.cgroup, limit.inode, &limit.file)
        };
        match self.raised.iter_mut().find(is_it) {
            Some(one) => one.to = limit.to,
            None => self.raised.push(limit),
        }
    }

    fn note_decrease(&mut self, line: Line) -> Option<()> {
        let id = line.container?;
        match line.during_decrease {
            Some(high) => _ = self.decreasing.insert(id, high.parse().ok()?),
            None => _ = self.decreasing.remove(&id),
        }
        Some(())
    }

    /// Returns the value of a container's `memory.high` before a limit decrease lowered it. Returns
    /// `None` if no decrease is under way.
    pub fn high_during_decrease(&self, id: &str) -> Option<Limit> {
        self.decreasing.get(id).copied()
    }

    /// Records the value of a container's `memory.high`, before a limit decrease lowers it.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written. In this case, only the plugin's memory has the value.
    pub fn begin_decrease(&mut self, id: &str, high: Limit) -> io::Result<()> {
        if self.decreasing.get(id) == Some(&high) {
            return Ok(());
        }
        self.decreasing.insert(id.to_owned(), high);
        self.append(&json(&Line::of_decrease(id, high))?)
    }

    /// Records that `memory.high` has its desired value again after a limit decrease.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written. In this case, only the plugin's memory has the change.
    pub fn end_decrease(&mut self, id: &str) -> io::Result<()> {
        if self.decreasing.remove(id).is_none() {
            return Ok(());
        }
        self.append(&json(&Line::of_ended_decrease(id))?)
    }

    /// Returns the original values of a target. Returns `None` if the target does not count as
    /// changed.
    pub fn get(&self, target: &Target) -> Option<Values> {
        self.known.get(target).copied()
    }

    /// Returns all changed targets.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.known.keys()
    }

    /// Records the values of a target before its first change. Later calls for the target have no
    /// effect.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written. In this case, only the plugin's memory has the values.
    pub fn remember(&mut self, target: Target, values: Values) -> io::Result<()> {
        if self.known.contains_key(&target) {
            return Ok(());
        }
        let line = json(&Line::new(&target, &values))?;
        self.former.remove(&target);
        self.known.insert(target, values);
        self.append(&line)
    }

    /// Records that a target has its original values again. The target then counts as never
    /// changed.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written. In this case, only the plugin's memory has the change.
    pub fn restored(&mut self, target: &Target) -> io::Result<()> {
        if !self.leave(target) {
            return Ok(());
        }
        self.append(&json(&Line::of_restored(target))?)
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        self.lines += 1;
        // The plugin's memory contains this line and all lines that the plugin could not write.
        let result = if self.is_behind { self.rewrite() } else { self.write(line) };
        self.is_behind = result.is_err();
        if result.is_err() {
            // Open the file again for the next line. The file may now end with an incomplete line,
            // or may be on a file system that another mount hides.
            self.file = None;
        }
        result
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                if let Some(directory) = self.path.parent() {
                    fs::create_dir_all(directory)?;
                }
                let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
                // The previous line may be incomplete, so begin a new line.
                file.write_all(b"\n")?;
                self.file.insert(file)
            }
        };
        file.write_all(line)
    }

    /// Forgets the targets for which `keep` returns false. Rewrites the file if most of its lines
    /// are about forgotten targets. Also rewrites the file if an earlier line could not be written.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written. The file then stays unchanged, and the next call tries
    /// again.
    pub fn retain(&mut self, mut keep: impl FnMut(&Target) -> bool) -> io::Result<()> {
        self.known.retain(|target, _| keep(target));
        self.raised.retain(|limit| keep(&Target::Cgroup(limit.cgroup.clone(), limit.inode)));
        self.former.retain(|target, _| keep(target));
        self.decreasing.retain(|id, _| keep(&Target::Container(id.clone())));
        if !self.is_behind && self.lines <= 2 * self.needed() + SLACK {
            return Ok(());
        }
        let result = self.rewrite();
        self.is_behind = result.is_err();
        result
    }

    /// Returns the number of lines that the file would have after a rewrite.
    fn needed(&self) -> usize {
        let cgroups = 2 * self.former.len() + self.raised.len();
        self.known.len() + cgroups + self.decreasing.len() + self.unreadable.len()
    }

    /// Rewrites the file from memory.
    fn rewrite(&mut self) -> io::Result<()> {
        let mut text = Vec::new();
        for line in &self.unreadable {
            text.extend_from_slice(line);
            text.push(b'\n');
        }
        for (target, values) in &self.former {
            text.extend(json(&Line::new(target, values))?);
            text.extend(json(&Line::of_restored(target))?);
        }
        for (target, values) in &self.known {
            text.extend(json(&Line::new(target, values))?);
        }
        for limit in &self.raised {
            text.extend(json(&Line::of_raised(limit))?);
        }
        for (id, high) in &self.decreasing {
            text.extend(json(&Line::of_decrease(id, *high))?);
        }
        atomic_file::replace(&self.path, &text)?;
        self.file = None;
        self.lines = self.needed();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_core::units::Bytes;

    use super::*;

    fn container(id: &str) -> Target {
        Target::Container(id.to_owned())
    }

    fn cgroup(path: &str, inode: u64) -> Target {
        Target::Cgroup(CgroupPath::parse(path).unwrap(), inode)
    }

    fn min(bytes: u64) -> Values {
        Values { min: Some(Limit::Bytes(Bytes::new(bytes))), ..Values::default() }
    }

    #[test]
    fn what_was_there_first_is_found_again() {
        let host = tempfile::tempdir().unwrap();
        let mut originals = Originals::load(host.path()).unwrap();
        assert_eq!(originals.get(&container("a")), None);
        originals
            .remember(container("a"), Values { high: Some(Limit::Max), ..Values::default() })
            .unwrap();
        originals.remember(cgroup("kubepods", 7), min(4096)).unwrap();
        originals.remember(cgroup("kubepods", 7), min(8192)).unwrap();
        let originals = Originals::load(host.path()).unwrap();
        assert_eq!(originals.get(&container("a")).unwrap().high, Some(Limit::Max));
        assert_eq!(originals.get(&cgroup("kubepods", 7)), Some(min(4096)));
        assert_eq!(originals.get(&cgroup("kubepods", 8)), None, "another cgroup has the same path");
        assert_eq!(originals.targets().count(), 2);
    }

    #[test]
    fn defaults_in_unified_are_no_values() {
        let unified = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect::<HashMap<_, _>>()
        };
        let defaults = unified(&[("memory.min", "0"), ("memory.low", "0"), ("memory.high", "max")]);
        assert_eq!(Values::of_unified(&defaults), Values::default());
        let claims = unified(&[("memory.min", "1"), ("memory.low", "max"), ("memory.high", "0")]);
        assert_eq!(Values::of_unified(&claims).to_unified(), claims);
    }

    #[test]
    fn what_was_restored_counts_as_never_changed() {
        let host = tempfile::tempdir().unwrap();
        let mut originals = Originals::load(host.path()).unwrap();
        originals.remember(container("a"), min(1)).unwrap();
        originals.restored(&container("a")).unwrap();
        originals.restored(&container("b")).unwrap();
        assert_eq!(originals.get(&container("a")), None);
        assert_eq!(Originals::load(host.path()).unwrap().targets().count(), 0);
        originals.remember(container("a"), min(2)).unwrap();
        assert_eq!(Originals::load(host.path()).unwrap().get(&container("a")), Some(min(2)));
    }

    #[test]
    fn restored_cgroups_are_remembered_as_former() {
        let host = tempfile::tempdir().unwrap();
        let slice = cgroup("system.slice", 7);
        let mut originals = Originals::load(host.path()).unwrap();
        originals.remember(slice.clone(), min(1)).unwrap();
        originals.restored(&slice).unwrap();
        let is_former = |originals: &Originals| {
            let former: Vec<_> = originals
                .former()
                .map(|(path, inode, values)| (path.clone(), inode, values))
                .collect();
            former == [(CgroupPath::parse("system.slice").unwrap(), 7, min(1))]
        };
        assert!(is_former(&originals) && is_former(&Originals::load(host.path()).unwrap()));
        for id in 0..3 * SLACK {
            originals.remember(container(&id.to_string()), min(1)).unwrap();
        }
        originals.retain(|target| *target == slice).unwrap();
        assert!(
            is_former(&Originals::load(host.path()).unwrap()),
            "the rewritten file has the values too"
        );
        originals.remember(slice.clone(), min(2)).unwrap();
        let mut originals = Originals::load(host.path()).unwrap();
        assert_eq!((originals.former().count(), originals.get(&slice)), (0, Some(min(2))));
        originals.restored(&slice).unwrap();
        originals.retain(|_| false).unwrap();
        assert_eq!(originals.former().count(), 0, "the cgroup is gone");
    }

    #[test]
    fn a_torn_line_loses_nothing_else() {
        let host = tempfile::tempdir().unwrap();
        let mut originals = Originals::load(host.path()).unwrap();
        originals.remember(container("a"), min(1)).unwrap();
        let path = originals.path.clone();
        let mut text = fs::read(&path).unwrap();
        text.extend(b"{\"container\":\"b\",\"memory.mi");
        fs::write(&path, &text).unwrap();
        let mut originals = Originals::load(host.path()).unwrap();
        assert_eq!(originals.unreadable(), 0, "the plugin had not made the change yet");
        originals.remember(container("c"), min(3)).unwrap();
        let originals = Originals::load(host.path()).unwrap();
        assert_eq!(originals.unreadable(), 0);
        assert_eq!(originals.get(&container("a")), Some(min(1)));
        assert_eq!(originals.get(&container("b")), None);
        assert_eq!(originals.get(&container("c")), Some(min(3)));
    }

    #[test]
    fn raised_limits_keep_their_first_value() {
        let host = tempfile::tempdir().unwrap();
        let mut originals = Originals::load(host.path()).unwrap();
        let limit = |inode, from: &str, to: &str| RaisedLimit {
            cgroup: CgroupPath::parse("kubepods/pod1").unwrap(),
            inode,
            file: "memory.max".to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
        };
        originals.remember(cgroup("kubepods/pod1", 7), min(4096)).unwrap();
        originals.remember_raised(limit(7, "1", "2")).unwrap();
        originals.remember_raised(limit(7, "2", "3")).unwrap();
        originals.remember_raised(limit(8, "5", "6")).unwrap();
        assert_eq!(originals.raised_limits(), [limit(7, "1", "3"), limit(8, "5", "6")]);
        let mut read = Originals::load(host.path()).unwrap();
        assert_eq!(read.raised_limits(), originals.raised_limits());
        assert_eq!(
            read.get(&cgroup("kubepods/pod1", 7)),
            Some(min(4096)),
            "another line of the same target counts separately"
        );
        read.retain(|target| *target == cgroup("kubepods/pod1", 8)).unwrap();
        assert_eq!(read.raised_limits(), [limit(8, "5", "6")]);
    }

    #[test]
    fn unreadable_lines_are_counted_and_kept() {
        let host = tempfile::tempdir().unwrap();
        fs::create_dir_all(host.path().join(DIRECTORY)).unwrap();
        let lines = [
            "",
            "\u{0}",
            "[]",
            "{}",
            r#"{"container":"a","cgroup":"b","inode":1}"#,
            r#"{"cgroup":"../b","inode":1}"#,
            r#"{"cgroup":"b"}"#,
            r#"{"container":"a","memory.min":"many"}"#,
            r#"{"container":"good","memory.min":"4096","since":"another version"}"#,
        ];
        fs::write(host.path().join(DIRECTORY).join(FILE), lines.join("\n")).unwrap();
        let mut originals = Originals::load(host.path()).unwrap();
        assert_eq!(originals.targets().collect::<Vec<_>>(), [&container("good")]);
        assert_eq!(
            originals.unreadable(),
            lines.len() - 2,
            "every line except the empty and the valid one is unreadable"
        );
        for id in 0..3 * SLACK {
            originals.remember(container(&id.to_string()), min(1)).unwrap();
        }
        originals.retain(|target| *target == container("good")).unwrap();
        let originals = Originals::load(host.path()).unwrap();
        assert_eq!((originals.targets().count(), originals.unreadable()), (1, lines.len() - 2));
    }

    #[test]
    fn removed_containers_are_deleted_from_the_file() {
        let host = tempfile::tempdir().unwrap();
        let mut originals = Originals::load(host.path()).unwrap();
        for id in 0..3 * SLACK {
            originals.remember(container(&id.to_string()), min(1)).unwrap();
        }
        let size = |originals: &Originals| fs::metadata(&originals.path).unwrap().len();
        let before = size(&originals);
        originals.retain(|target| *target == container("7")).unwrap();
        assert!(size(&originals) < before / 1000);
        originals.remember(container("new"), min(2)).unwrap();
        let originals = Originals::load(host.path()).unwrap();
        assert_eq!(originals.targets().count(), 2);
        assert_eq!(originals.get(&container("7")), Some(min(1)));
    }

    #[test]
    fn a_failed_write_keeps_values_in_memory() {
        let host = tempfile::tempdir().unwrap();
        // Create a file where the plugin expects a directory.
        fs::write(host.path().join("run"), "").unwrap();
        let mut originals = Originals::none(host.path());
        assert!(originals.remember(container("a"), min(1)).is_err());
        assert_eq!(originals.get(&container("a")), Some(min(1)));
    }

    #[test]
    fn lines_that_failed_are_written_later() {
        for is_retain in [true, false] {
            let host = tempfile::tempdir().unwrap();
            let directory = host.path().join(DIRECTORY);
            std::fs::create_dir_all(directory.parent().unwrap()).unwrap();
            std::fs::write(&directory, "a file in place of the directory").unwrap();
            let mut originals = Originals::none(host.path());
            let [first, second] = ["a", "b"].map(|id| Target::Container(id.to_owned()));
            assert!(originals.remember(first.clone(), Values::default()).is_err());
            std::fs::remove_file(&directory).unwrap();
            if is_retain {
                originals.retain(|_| true).unwrap();
            } else {
                originals.remember(second.clone(), Values::default()).unwrap();
            }
            let read = Originals::load(host.path()).unwrap();
            assert!(read.get(&first).is_some());
            assert_eq!(read.get(&second).is_some(), !is_retain);
        }
    }
}

//! The files that make the running plugin stop setting values: the marker file of `plimsoll
//! restore`, and the brake's state file.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use futures::StreamExt as _;
use inotify::{Inotify, WatchMask};

use crate::agent::configurator::Configurator;
use crate::report::{self, Reports};
use crate::state::brake;
use crate::state::originals;
use crate::state::settings::RESTORE_MARKER;

/// Applies the brake whenever the number of repairs, conflicts or OOM kills exceeds the maximum
/// that the configuration allows.
pub(super) async fn keep_brake(configurator: &Configurator, reports: Arc<Reports>) {
    loop {
        let record = reports.brake.exceeded(report::now).await;
        configurator.apply_brake(&record);
    }
}

/// Watches the marker file of `plimsoll restore` and the brake's state file, and applies every
/// change. Returns only when inotify can no longer watch the files.
pub(super) async fn watch_restored(host: &Path, configurator: &Configurator) -> anyhow::Result<()> {
    let directory = host.join(originals::DIRECTORY);
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let inotify = Inotify::init().context("cannot start inotify")?;
    let watched =
        inotify.watches().add(&directory, WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE);
    watched.with_context(|| format!("cannot watch {}", directory.display()))?;
    let mut changes = inotify.into_event_stream([0; 4096]).context("cannot read from inotify")?;
    configurator.check_markers();
    loop {
        let change =
            changes.next().await.context("inotify ended")?.context("cannot read from inotify")?;
        // Ignore the events of the directory's other files, because the plugin itself often writes
        // these files. An event without a file name may report that events were lost.
        let marks = [Path::new(RESTORE_MARKER).file_name(), Some(OsStr::new(brake::FILE))];
        if change.name.is_none_or(|name| marks.contains(&Some(name.as_os_str()))) {
            configurator.check_markers();
        }
    }
}

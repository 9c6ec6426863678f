//! Applies the configuration file whenever it changes.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tracing::{error, info, warn};

use crate::agent::configurator::Configurator;
use crate::commands::input::read_file;
use crate::commands::run::file_watch::FileWatch;
use crate::config::{self, Config};
use crate::state::containers::Containers;

/// Maximum time that the starting plugin waits until an empty configuration file has content.
const EMPTY_LIMIT: Duration = Duration::from_secs(1);

/// Poll interval while the file is empty.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Applies the configuration in the first existing file of `files`, whenever the file changes or
/// other code notifies `reload`. `had_file` is true if a file existed when the plugin started.
pub(super) async fn watch_config(
    files: &[PathBuf],
    had_file: bool,
    configurator: &Configurator,
    containers: &Containers,
    reload: &Notify,
) -> Infallible {
    let names =
        files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(" and ");
    let mut changes = FileWatch::new(files).inspect_err(|error| unwatched(&names, error)).ok();
    let mut is_asked_for = false;
    // The file may have been removed since the plugin started.
    let mut seen = had_file.then(Vec::new);
    loop {
        read_and_apply(files, &names, &mut seen, is_asked_for, configurator, containers);
        let changed = async {
            let Some(watched) = &mut changes else { return std::future::pending().await };
            watched.next().await
        };
        is_asked_for = tokio::select! {
            changed = changed => {
                if let Err(error) = changed {
                    unwatched(&names, &error);
                    changes = None;
                }
                false
            }
            () = reload.notified() => {
                info!(signal = "SIGHUP", "reading the configuration again");
                true
            }
        };
    }
}

/// Reads the first existing file, and applies the file's text if the text differs from `seen`.
/// `is_asked_for` is true if the user requested the reload.
fn read_and_apply(
    files: &[PathBuf],
    names: &str,
    seen: &mut Option<Vec<u8>>,
    is_asked_for: bool,
    configurator: &Configurator,
    containers: &Containers,
) {
    let now = files.iter().find_map(|file| match read_file(file, config::LARGEST) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        result => Some((file, result)),
    });
    match now {
        None if seen.is_some() => {
            warn!("the configuration file was removed; the previous configuration stays in force");
            *seen = None;
        }
        None if is_asked_for => {
            warn!("found no file {names}; the previous configuration stays in force");
        }
        None => {}
        Some((file, Err(error))) => {
            let file = file.display();
            error!("cannot read {file}: {error}; the previous configuration stays in force");
        }
        Some((file, Ok(text))) if is_asked_for || seen.as_ref() != Some(&text) => {
            let file = file.display().to_string();
            apply_config(&file, &text, configurator, containers, is_asked_for);
            *seen = Some(text);
        }
        Some(_) => {}
    }
}

fn unwatched(files: &str, error: &anyhow::Error) {
    warn!("changes of {files} take effect only with SIGHUP or a restart: {error:#}");
}

/// Applies the text of a configuration file, if the text is valid and differs from the
/// configuration in force. `is_asked_for` is true if the user requested the reload. In this case,
/// the function also logs that the configuration is unchanged.
fn apply_config(
    file: &str,
    text: &[u8],
    configurator: &Configurator,
    containers: &Containers,
    is_asked_for: bool,
) {
    let in_force = &containers.settings().config;
    match Config::parse(text, file) {
        Ok(config) if config == *in_force => {
            if is_asked_for {
                info!(file, "the configuration is in force already");
            }
        }
        // A program may have truncated the file before it writes the new text. When the plugin
        // starts, an empty file stands for the defaults, which are already in force.
        Ok(_) if is_empty(text) => warn!(
            "{file} is empty: expected at least one field, or {{}} for the defaults; the \
             configuration before stays in force"
        ),
        Ok(config) => {
            configurator.reconfigure(config, file);
        }
        Err(errors) => error!("{errors}\nthe previous configuration stays in force"),
    }
}

/// Waits until a configuration file has content, for at most [`EMPTY_LIMIT`]. An editor truncates a
/// file before it writes the new content, so a file without a single byte may be incomplete.
pub(super) fn wait_while_empty(file: &Path) {
    let deadline = Instant::now() + EMPTY_LIMIT;
    let is_empty = || read_file(file, config::LARGEST).is_ok_and(|text| text.is_empty());
    while is_empty() && Instant::now() < deadline {
        thread::sleep(POLL_INTERVAL);
    }
}

/// Returns whether a YAML file holds only white space, comments and document markers.
fn is_empty(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let mut lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
    lines.all(|line| line.is_empty() || line.starts_with('#') || ["---", "..."].contains(&line))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn an_empty_file_is_awaited_until_written() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("plimsoll.yaml");
        fs::write(&file, "").expect("written");
        let written = thread::spawn({
            let file = file.clone();
            move || {
                thread::sleep(EMPTY_LIMIT / 5);
                fs::write(file, "logLevel: debug\n").expect("written");
            }
        });
        wait_while_empty(&file);
        assert_eq!(fs::read_to_string(&file).expect("read"), "logLevel: debug\n");
        written.join().expect("the thread ends");
        // A file that stays empty stands for the defaults. A file with a comment counts as
        // complete.
        fs::write(&file, "").expect("written");
        wait_while_empty(&file);
        fs::write(&file, "# nothing").expect("written");
        let began = Instant::now();
        wait_while_empty(&file);
        assert!(began.elapsed() < EMPTY_LIMIT);
    }

    #[test]
    fn comments_and_marks_alone_are_empty() {
        for text in ["", "\n", " \t\r\n", "# a: b", "---\n# a\n...\n", "\u{feff}\n"] {
            assert!(is_empty(text.as_bytes()), "{text:?}");
        }
        for text in ["{}", "null", "a: b", "# a\nb", "---\n{}\n", "\0"] {
            assert!(!is_empty(text.as_bytes()), "{text:?}");
        }
    }
}

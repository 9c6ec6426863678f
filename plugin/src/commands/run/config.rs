//! Applies the configuration file whenever it changes.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;

use tokio::sync::Notify;
use tracing::{error, info, warn};

use crate::agent::service::Service;
use crate::commands::read_file;
use crate::commands::run::file_watch::FileWatch;
use crate::config::{self, Config};
use crate::state::containers::Containers;

/// Applies the configuration in the first existing file of `files` whenever the file changes, and
/// when `reload` is notified.
pub(super) async fn watch_config(
    files: &[PathBuf],
    service: &Service,
    containers: &Containers,
    reload: &Notify,
) -> Infallible {
    let names =
        files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(" and ");
    let mut changes = FileWatch::new(files).inspect_err(|error| unwatched(&names, error)).ok();
    let mut is_asked_for = false;
    let mut seen = None;
    loop {
        let now = files.iter().find_map(|file| match read_file(file, config::LARGEST) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            result => Some((file, result)),
        });
        match now {
            None if seen.is_some() => {
                warn!(
                    "the configuration file was removed; the configuration before stays in force"
                );
                seen = None;
            }
            None if is_asked_for => {
                warn!("there is no {names}; the configuration before stays in force")
            }
            None => {}
            Some((file, Err(error))) => {
                error!(
                    "cannot read {}: {error}; the configuration before stays in force",
                    file.display()
                );
            }
            Some((file, Ok(text))) if is_asked_for || seen.as_ref() != Some(&text) => {
                apply_config(&file.display().to_string(), &text, service, containers, is_asked_for);
                seen = Some(text);
            }
            Some(_) => {}
        }
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

fn unwatched(files: &str, error: &anyhow::Error) {
    warn!("changes of {files} take effect only with SIGHUP or a restart: {error:#}");
}

/// Applies the text of a configuration file, if the text is valid and differs from the
/// configuration in force. `is_asked_for` states that the user requested the reload, so an
/// unchanged configuration is logged.
fn apply_config(
    file: &str,
    text: &[u8],
    service: &Service,
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
        // A program that rewrites the file may have truncated it first. At the start an empty file
        // means the defaults, which are in force already.
        Ok(_) if is_empty(text) => warn!(
            "{file} is empty: expected at least one field, or {{}} for the defaults; the \
             configuration before stays in force"
        ),
        Ok(config) => {
            info!(file, "configuration changed");
            service.reconfigure(config);
        }
        Err(errors) => error!("{errors}\nthe configuration before stays in force"),
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
    use super::*;

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

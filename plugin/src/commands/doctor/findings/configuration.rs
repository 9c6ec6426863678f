//! Findings about the plugin's configuration and mode.

use plimsoll_core::units::excerpt;

use crate::commands::doctor::facts::NodeFacts;
use crate::commands::doctor::finding::Finding;
use crate::config::{Config, DROP_INS, Mode};
use crate::state::brake;
use crate::state::originals::DIRECTORY;
use crate::state::settings::RESTORE_MARKER;

/// Name of the check for the plugin's mode.
const MODE: &str = "mode";

impl NodeFacts {
    pub(super) fn configuration(&self) -> Finding {
        const CHECK: &str = "configuration";
        let Some((path, text)) = self.plugin.drop_ins.first() else {
            let file = format!("{DROP_INS}/90-plimsoll.conf");
            if self.plugin.reported_mode.is_some() {
                let found = format!("{file} does not exist; the plugin may use another file");
                let advice = "run 'plimsoll check' with the file that the plugin's --config \
                              names, or with the chart's ConfigMap";
                return Finding::unknown(CHECK, found, advice);
            }
            let found = format!("{file} does not exist, so the defaults apply");
            return Finding::ok(CHECK, found);
        };
        let shown = excerpt(path);
        let text = match text {
            Ok(text) => text,
            Err(error) => {
                let found = format!("{shown}: {}", error.why);
                if error.is_denied && !self.is_root {
                    return Finding::unknown(CHECK, found, self.how_to_read());
                }
                let advice = "replace it by a file that root can read, or remove it to use the \
                              defaults";
                return Finding::failed(CHECK, found, advice);
            }
        };
        match Config::parse(text, &shown) {
            Ok(_) => match self.plugin.drop_ins.get(1) {
                Some((other, _)) => {
                    let other = excerpt(other);
                    Finding::ok(CHECK, format!("{shown} is valid; the plugin ignores {other}"))
                }
                None => Finding::ok(CHECK, format!("{shown} is valid")),
            },
            Err(errors) => {
                let found = format!("{shown} is invalid, so the plugin does not start:\n{errors}");
                let advice = format!("correct the file and run 'plimsoll check {shown}'");
                Finding::failed(CHECK, found, advice)
            }
        }
    }

    pub(super) fn restore(&self) -> Finding {
        const CHECK: &str = "restore";
        match &self.plugin.is_restored {
            Ok(false) => Finding::ok(CHECK, "'plimsoll restore' is not in effect"),
            Ok(true) => {
                let found = "'plimsoll restore' is in effect, so the plugin sets nothing";
                Finding::warning(CHECK, found, "run 'plimsoll restore --undo'")
            }
            Err(error) => {
                let found = format!("/{RESTORE_MARKER}: {}", error.why);
                Finding::unknown(CHECK, found, self.how_to_read())
            }
        }
    }

    /// Checks whether the plugin writes values or only observes.
    pub(super) fn mode(&self) -> Finding {
        match &self.plugin.brake {
            Ok(Some(record)) => Finding::warning(
                MODE,
                format!("the brake stopped the plugin after {record}; the plugin sets nothing"),
                "find the cause, then run 'plimsoll reset-brake'",
            ),
            Err(error) => Finding::unknown(
                MODE,
                format!("/{DIRECTORY}/{}: {error}; the plugin only observes", brake::FILE),
                "run 'plimsoll reset-brake'",
            ),
            Ok(None) => self.mode_without_brake(),
        }
    }

    fn mode_without_brake(&self) -> Finding {
        let plugin = &self.plugin;
        let mode = match (&plugin.reported_mode, plugin.config(), plugin.drop_ins.first()) {
            (Some(Ok(mode)), ..) => *mode,
            (Some(Err(why)), ..) => {
                let found = format!("the plugin does not report its mode: {}", excerpt(why));
                let advice = "start the plugin, or run 'plimsoll status' as root";
                return Finding::unknown(MODE, found, advice);
            }
            (None, None, Some((path, _))) => {
                let found = format!("mode unknown, because {} is invalid", excerpt(path));
                let advice = "see the check 'configuration'; 'plimsoll status' shows the mode of a \
                              running plugin";
                return Finding::unknown(MODE, found, advice);
            }
            (None, config, _) => config.unwrap_or_default().mode,
        };
        match mode {
            Mode::Enforce => Finding::ok(MODE, "enforce: the plugin sets values"),
            Mode::Observe => Finding::ok(
                MODE,
                "observe: the plugin sets nothing; 'plimsoll status' shows the desired values",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::commands::doctor::finding::Mark;
    use crate::commands::doctor::fixture::*;

    #[test]
    fn all_mistakes_in_a_file_are_reported() {
        let node = Node::good();
        node.write(DROP_IN, "logLevel: loud\nmemoryThrottlingFactor: 2\n");
        // Without a valid configuration file, doctor does not know the mode either.
        let troubles = |node: &Node| {
            let mut troubles = node.troubles();
            assert_eq!(
                troubles.pop().map(|finding| (finding.check, finding.mark)),
                Some(("mode", Mark::Unknown))
            );
            troubles
        };
        let found = troubles(&node);
        expect(
            &found,
            "configuration",
            Mark::Failed,
            "90-plimsoll.conf:1: logLevel: expected error",
            "plimsoll check",
        );
        assert!(
            found[0].found.contains("90-plimsoll.conf:2: memoryThrottlingFactor: "),
            "{}",
            found[0].found
        );
        fs::write(node.path(DROP_IN), b"logLevel: \xff").unwrap();
        expect(&troubles(&node), "configuration", Mark::Failed, "UTF-8", "correct the file");
        node.remove(DROP_IN);
        fs::create_dir(node.path(DROP_IN)).unwrap();
        expect(
            &troubles(&node),
            "configuration",
            Mark::Failed,
            "expected a regular file",
            "file that root can read",
        );
        node.remove(DROP_IN);
        ok(&node.facts(), "configuration", "the defaults apply");
        node.write("etc/nri/conf.d/plimsoll.conf", "logLevel: loud\n");
        expect(
            &troubles(&node),
            "configuration",
            Mark::Failed,
            "conf.d/plimsoll.conf:1: logLevel",
            "correct the file",
        );
        node.write(DROP_IN, "");
        ok(&node.facts(), "configuration", "ignores /etc/nri/conf.d/plimsoll.conf");
    }

    #[test]
    fn an_invalid_configuration_leaves_the_mode_unknown() {
        let node = Node::good();
        node.write(DROP_IN, "mode: observing\n");
        let mode: Vec<_> =
            node.troubles().into_iter().filter(|finding| finding.check == "mode").collect();
        expect(
            &mode,
            "mode",
            Mark::Unknown,
            "/etc/nri/conf.d/90-plimsoll.conf is invalid",
            "'configuration'",
        );
        node.remove(DROP_IN);
        ok(&node.facts(), "mode", "enforce");
    }

    #[test]
    fn an_unresponsive_plugin_has_unknown_mode() {
        let mut node = Node::good();
        node.listen("run/plimsoll/plimsoll.sock");
        node.die("run/plimsoll/plimsoll.sock");
        expect(
            &node.troubles(),
            "mode",
            Mark::Unknown,
            "the plugin does not report its mode: ",
            "plimsoll status",
        );
    }
}

//! Findings about the plugin's configuration and mode.

use plimsoll_core::units::excerpt;

use crate::commands::doctor::facts::NodeFacts;
use crate::commands::doctor::finding::Finding;
use crate::config::{Config, DROP_INS, Mode};
use crate::state::brake;
use crate::state::containers::STAND_ASIDE;
use crate::state::originals::DIRECTORY;

impl NodeFacts {
    pub(super) fn configuration(&self) -> Finding {
        const CHECK: &str = "configuration";
        let Some((path, text)) = self.plugin.drop_ins.first() else {
            if self.plugin.told.is_some() {
                let found = format!(
                    "no {DROP_INS}/90-plimsoll.conf, and the plugin that runs may have another file"
                );
                let advice = "call 'plimsoll check' with the file that the plugin was given with --config, or that the chart made";
                return Finding::unknown(CHECK, found, advice);
            }
            return Finding::ok(
                CHECK,
                format!("no {DROP_INS}/90-plimsoll.conf, so the defaults are in force"),
            );
        };
        let shown = excerpt(path);
        let text = match text {
            Ok(text) => text,
            Err(error) if error.is_denied && !self.is_root => {
                return Finding::unknown(
                    CHECK,
                    format!("{shown}: {}", error.why),
                    "call this as root",
                );
            }
            Err(error) => {
                let advice = "make it a file that root can read, or remove it: the defaults are in force then";
                return Finding::failed(CHECK, format!("{shown}: {}", error.why), advice);
            }
        };
        match Config::parse(text, &shown) {
            Ok(_) => match self.plugin.drop_ins.get(1) {
                Some((other, _)) => Finding::ok(
                    CHECK,
                    format!("{shown} is valid; {} is passed over", excerpt(other)),
                ),
                None => Finding::ok(CHECK, format!("{shown} is valid")),
            },
            Err(errors) => {
                let found = format!(
                    "{shown} has mistakes, with which the plugin does not start:\n{errors}"
                );
                Finding::failed(
                    CHECK,
                    found,
                    format!("mend them; 'plimsoll check {shown}' looks again"),
                )
            }
        }
    }

    pub(super) fn restore(&self) -> Finding {
        const CHECK: &str = "restore";
        match &self.plugin.stands_aside {
            Ok(false) => Finding::ok(CHECK, "'plimsoll restore' was not called"),
            Ok(true) => {
                let found = "'plimsoll restore' was called, so nothing is set";
                Finding::warning(CHECK, found, "plimsoll restore --undo")
            }
            Err(error) => Finding::unknown(
                CHECK,
                format!("/{STAND_ASIDE}: {}", error.why),
                self.how_to_read(),
            ),
        }
    }

    /// Checks whether the plugin writes values or only observes.
    pub(super) fn mode(&self) -> Finding {
        const CHECK: &str = "mode";
        let says = |mode| match mode {
            Mode::Enforce => Finding::ok(CHECK, "enforce"),
            Mode::Observe => {
                Finding::ok(CHECK, "observe: nothing is set; 'plimsoll status' shows what would be")
            }
        };
        match &self.plugin.brake {
            Ok(Some(record)) => {
                let found = format!("the brake is applied after {record}, so nothing is set");
                Finding::warning(
                    CHECK,
                    found,
                    "find out why there was so much, then plimsoll reset-brake",
                )
            }
            Err(error) => {
                let found =
                    format!("/{DIRECTORY}/{}: {error}; the plugin only observes", brake::FILE);
                Finding::unknown(CHECK, found, "plimsoll reset-brake")
            }
            Ok(None) => {
                match (&self.plugin.told, self.plugin.config(), self.plugin.drop_ins.first()) {
                    (Some(Ok(mode)), ..) => says(*mode),
                    (Some(Err(why)), ..) => {
                        let found = format!("the plugin does not tell it: {}", excerpt(why));
                        Finding::unknown(
                            CHECK,
                            found,
                            "start the plugin, or call 'plimsoll status' as root",
                        )
                    }
                    (None, None, Some((path, _))) => {
                        let found =
                            format!("{} is not valid, so the mode is unknown", excerpt(path));
                        Finding::unknown(
                            CHECK,
                            found,
                            "see the check 'configuration'; 'plimsoll status' shows the mode in force",
                        )
                    }
                    (None, config, _) => says(config.unwrap_or_default().mode),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::commands::doctor::finding::Mark;
    use crate::commands::doctor::fixture::*;

    #[test]
    fn every_mistake_of_the_plugins_configuration_is_shown() {
        let node = Node::good();
        node.write(DROP_IN, "logLevel: loud\nmemoryThrottlingFactor: 2\n");
        // Without a valid configuration the mode is unknown too.
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
        expect(&troubles(&node), "configuration", Mark::Failed, "UTF-8", "mend");
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
        ok(&node.facts(), "configuration", "the defaults are in force");
        node.write("etc/nri/conf.d/plimsoll.conf", "logLevel: loud\n");
        expect(
            &troubles(&node),
            "configuration",
            Mark::Failed,
            "conf.d/plimsoll.conf:1: logLevel",
            "mend",
        );
        node.write(DROP_IN, "");
        ok(&node.facts(), "configuration", "/etc/nri/conf.d/plimsoll.conf is passed over");
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
            "/etc/nri/conf.d/90-plimsoll.conf is not valid",
            "'configuration'",
        );
        node.remove(DROP_IN);
        ok(&node.facts(), "mode", "enforce");
    }

    #[test]
    fn the_mode_of_a_plugin_that_does_not_tell_it_is_unknown() {
        let mut node = Node::good();
        node.listen("run/plimsoll/plimsoll.sock");
        node.die("run/plimsoll/plimsoll.sock");
        expect(
            &node.troubles(),
            "mode",
            Mark::Unknown,
            "the plugin does not tell it: ",
            "plimsoll status",
        );
    }
}

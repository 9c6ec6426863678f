//! Parses the text of a configuration file into fields.

use serde_json::Value as RawValue;

use crate::config::errors::{ConfigErrors, FieldError};
use crate::config::model::Config;
use crate::yaml::{self, Duplicate, Parsed, PlacedValue, describe};

/// Maximum size of a configuration in bytes.
pub const LARGEST: usize = 1 << 20;

impl Config {
    /// Parses a configuration. `source` names the configuration in messages, usually by its path.
    ///
    /// # Errors
    ///
    /// All mistakes, in the order of their lines:
    ///
    /// - unknown or repeated fields
    /// - values of the wrong type or out of range
    /// - text that is not YAML or not UTF-8
    /// - text larger than [`LARGEST`]
    pub fn parse(text: &[u8], source: &str) -> Result<Self, ConfigErrors> {
        let errors = |errors| ConfigErrors { source_name: source.to_owned(), errors };
        if text.len() > LARGEST {
            return Err(errors(vec![FieldError {
                line: 1,
                field: None,
                expected: format!("at most {LARGEST} bytes"),
                found: format!("{} bytes", text.len()),
            }]));
        }
        let text = std::str::from_utf8(text).map_err(|error| {
            let line =
                1 + text[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count();
            errors(vec![FieldError {
                line: line as u64,
                field: None,
                expected: "UTF-8 text".to_owned(),
                found: format!("byte 0x{:02x}", text[error.valid_up_to()]),
            }])
        })?;
        let (raw, syntax) = RawConfig::read(text);
        let (config, mut found) = raw.validate();
        found.extend(syntax);
        if found.is_empty() {
            Ok(config)
        } else {
            // Parsing stops at a syntax error, so this error is always the last mistake and needs
            // no sorting.
            Err(errors(found))
        }
    }
}

/// Unchecked configuration: the fields, including unknown fields, with their lines.
#[derive(Default)]
pub(super) struct RawConfig {
    pub(super) fields: Vec<(String, u64, RawValue)>,
    pub(super) duplicates: Vec<Duplicate>,
}

impl RawConfig {
    /// Reads the fields up to the first YAML error. Returns the fields and the error.
    fn read(text: &str) -> (Self, Option<FieldError>) {
        let Parsed { mut documents, duplicates, error } = yaml::parse(text, 0);
        let outside = |line, expected: &str, found: String| {
            Some(FieldError { line, field: None, expected: expected.to_owned(), found })
        };
        let mut error = error.and_then(|error| {
            outside(error.place.line, &error.expected, "a mistake in the YAML".to_owned())
        });
        if let [_, second, ..] = &documents[..] {
            let line = second.places.place.line;
            error = error.or_else(|| outside(line, "one document", "another one".to_owned()));
        }
        let mut raw = Self { fields: Vec::new(), duplicates };
        documents.truncate(1);
        match documents.pop() {
            Some(PlacedValue { value: RawValue::Object(fields), places }) => {
                let line = |name: &String| {
                    places.parts.get(name).map_or(places.place.line, |part| part.key.line)
                };
                let fields = fields.into_iter().map(|(name, value)| (line(&name), name, value));
                raw.fields = fields.map(|(line, name, value)| (name, line, value)).collect();
            }
            None | Some(PlacedValue { value: RawValue::Null, .. }) => {}
            Some(PlacedValue { value, places }) => {
                let form = "one 'field: value' a line";
                error = error.or_else(|| outside(places.place.line, form, describe(&value)));
            }
        }
        (raw, error)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use plimsoll_core::pod::CgroupPath;
    use plimsoll_core::policy::rescue::{Ceiling, OomRescue};
    use plimsoll_core::policy::{Policy, ReservationPolicy, ThrottlingFactor};
    use plimsoll_core::units::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::config::brake::Bounds;
    use crate::config::choices::{LogLevel, Mode, NodeAllocatable, Shrink};
    use crate::config::reserved::{Owner, Reserved};
    use crate::config::testing::parse;
    use crate::kubelet::node::{KubeletFiles, MinorVersion};

    fn reserved(owner: Owner, cgroup: &str, memory: u64) -> Reserved {
        Reserved { owner, cgroup: CgroupPath::parse(cgroup).unwrap(), memory: Bytes::new(memory) }
    }

    #[test]
    fn an_empty_configuration_is_the_default() {
        for text in ["", "\n\n", "# nothing\n", "---\n", "{}", "null", "---\n# x\n...\n"] {
            assert_eq!(parse(text), Ok(Config::default()), "{text:?}");
        }
        let config = Config::default();
        assert_eq!(config.policy.throttling, ThrottlingFactor::new(0.9));
        assert_eq!(config.policy.reservation, ReservationPolicy::HardReservation);
        assert_eq!(config.node_allocatable, NodeAllocatable::Auto);
        assert_eq!(config.log_level, LogLevel::Info);
    }

    #[test]
    fn every_field_is_read() {
        assert_eq!(
            parse(
                "mode: observe\nmemoryThrottlingFactor: 0.5\nmemoryReservationPolicy: \
                 TieredReservation\nmemoryMinHeadroom: 1Mi\n\
                 nodeAllocatable: 60Gi\nsystemReservedCgroup: system.slice\nsystemReserved: \
                 {memory: 500Mi}\n\
                 kubeReserved:\n  memory: 1Gi\nkubeReservedCgroup: /kubelet.slice/kubelet.service\n\
                 nodeGuard: 2Gi\nkubelet: {config: /c, \
                 configDir: /d, rootDir: /r, version: '1.36'}\nthrottleDeadline: 2m 5s\nshrink: defer\nshrinkDeadline: 1h\n\
                 oomRescue: {kills: 5, window: 1m, factor: 2, minimum: 1Mi, ceiling: \
                 1Gi}\nraisePodLimits: true\n\
                 repair: false\nbrake: {repairs: 7, conflicts: 6, kills: 5, window: \
                 1m}\nmaxLimitRequestRatio: 2.5\n\
                 metricsAddress: 127.0.0.1:9477\ncontainerMetrics: true\nkubeconfig: /k\nlogLevel: \
                 debug\n"
            ),
            Ok(Config {
                mode: Mode::Observe,
                policy: Policy {
                    throttling: ThrottlingFactor::new(0.5),
                    reservation: ReservationPolicy::TieredReservation,
                    headroom: Bytes::new(1 << 20),
                },
                node_allocatable: NodeAllocatable::Fixed(Bytes::new(60 << 30)),
                reserved: vec![
                    reserved(Owner::System, "/system.slice", 500 << 20),
                    reserved(Owner::Kube, "/kubelet.slice/kubelet.service", 1 << 30),
                ],
                node_guard: Some(Bytes::new(2 << 30)),
                kubelet: Some(KubeletFiles {
                    config: Some("/c".to_owned()),
                    config_dir: Some("/d".to_owned()),
                    root_dir: Some("/r".to_owned()),
                    version: Some(MinorVersion(36)),
                }),
                throttle_deadline: Some(Duration::from_secs(125)),
                shrink: Shrink::Defer,
                shrink_deadline: Duration::from_secs(3600),
                oom_rescue: Some(OomRescue {
                    kills: 5,
                    window: Duration::from_secs(60),
                    factor: 2.0,
                    minimum: Bytes::new(1 << 20),
                    ceiling: Ceiling::Limit(Bytes::new(1 << 30)),
                }),
                raise_pod_limits: true,
                repair: false,
                brake: Some(Bounds {
                    repairs: 7,
                    conflicts: 6,
                    kills: 5,
                    window: Duration::from_secs(60)
                }),
                max_limit_request_ratio: Some(2.5),
                metrics_address: Some(SocketAddr::from(([127, 0, 0, 1], 9477))),
                container_metrics: true,
                kubeconfig: Some("/k".into()),
                log_level: LogLevel::Debug,
            })
        );
    }

    #[test]
    fn null_factor_and_none_policy_mean_off() {
        for null in ["null", "~", ""] {
            let config =
                parse(&format!("memoryThrottlingFactor: {null}\nmemoryReservationPolicy: None"))
                    .unwrap();
            assert_eq!(config.policy, Policy { headroom: Policy::DEFAULT_HEADROOM, ..Policy::OFF });
        }
    }

    #[test]
    fn an_amount_may_be_a_number() {
        for (text, bytes) in [
            ("4294967296", 4_294_967_296),
            ("1e9", 1_000_000_000),
            ("'512Mi'", 512 << 20),
            ("0x100000", 1 << 20),
        ] {
            let config = parse(&format!("nodeAllocatable: {text}"));
            assert_eq!(
                config.map(|config| config.node_allocatable),
                Ok(NodeAllocatable::Fixed(Bytes::new(bytes))),
                "{text}"
            );
        }
    }

    #[test]
    fn every_error_has_line_field_and_form() {
        let text = "\
# comment
memoryThrottlingFactor: 1.5
memoryReservationPolicy: hard

nodeAllocatable: 60GB
logLevel: [debug]
logLevel: debug
memoryThrottlingfactor: 0.9
color: red
";
        assert_eq!(
            parse(text).unwrap_err(),
            "\
f.yaml:2: memoryThrottlingFactor: expected a number above 0 and at most 1, or null, found the \
    number 1.5
f.yaml:3: memoryReservationPolicy: expected None, TieredReservation or HardReservation, found 'hard'
f.yaml:5: nodeAllocatable: expected auto, or a quantity above 0 such as 60Gi, found '60GB'
f.yaml:7: logLevel: expected each field once, found it again after line 6
f.yaml:8: memoryThrottlingfactor: expected memoryThrottlingFactor (did you mean that?), found an \
    unknown field
f.yaml:9: color: expected one of mode, memoryThrottlingFactor, memoryReservationPolicy, \
    memoryMinHeadroom, nodeAllocatable, \
             systemReservedCgroup, systemReserved, kubeReservedCgroup, kubeReserved, nodeGuard, kubelet, \
             throttleDeadline, shrink, \
             shrinkDeadline, oomRescue, raisePodLimits, repair, brake, maxLimitRequestRatio, \
             metricsAddress, containerMetrics, kubeconfig, logLevel, found an \
             unknown field"
        );
    }

    #[test]
    fn a_field_of_a_mapping_occurs_once() {
        assert_eq!(
            parse("oomRescue:\n  kills: 3\n  kills: 4").unwrap_err(),
            "f.yaml:3: kills: expected each field once, found it again after line 2"
        );
    }

    #[test]
    fn comments_may_have_any_length() {
        let comments = "  # note\n".repeat(200);
        let text = format!("nodeAllocatable:\n{comments}  60Gi\n");
        assert_eq!(
            parse(&text).map(|config| config.node_allocatable),
            Ok(NodeAllocatable::Fixed(Bytes::new(60 << 30)))
        );
    }

    #[test]
    fn values_of_wrong_type_or_range_fail() {
        for line in [
            "memoryThrottlingFactor: 0",
            "memoryThrottlingFactor: -0.5",
            "memoryThrottlingFactor: .nan",
            "memoryThrottlingFactor: .inf",
            "memoryThrottlingFactor: '0.9'",
            "memoryThrottlingFactor: none",
            "memoryThrottlingFactor: true",
            "memoryThrottlingFactor: [0.9]",
            "memoryThrottlingFactor: {a: 1}",
            "mode: off",
            "mode: null",
            "mode: Observe",
            "raisePodLimits: maybe",
            "raisePodLimits: null",
            "repair: 1",
            "shrink: never",
            "brake: true",
            "brake: 5",
            "throttleDeadline: 0s",
            "maxLimitRequestRatio: 0.5",
            "maxLimitRequestRatio: many",
            "metricsAddress: 9477",
            "metricsAddress: localhost:9477",
            "containerMetrics: 1",
            "kubeconfig: ~/.kube/config",
            "kubeconfig: 5",
            "kubeconfig: {}",
            "throttleDeadline: 30",
            "throttleDeadline: soon",
            "throttleDeadline: -1s",
            "memoryReservationPolicy: null",
            "memoryReservationPolicy: none",
            "memoryReservationPolicy: 1",
            "nodeAllocatable: null",
            "nodeAllocatable: 0",
            "nodeAllocatable: -1Gi",
            "nodeAllocatable: 16Ei",
            "nodeAllocatable: Auto",
            "nodeAllocatable: true",
            "nodeAllocatable: 99999999999999999999999999999999",
            "memoryMinHeadroom: -1",
            "memoryMinHeadroom: null",
            "memoryMinHeadroom: 2%",
            "systemReservedCgroup: /",
            "systemReservedCgroup: /system.slice/../..",
            "systemReservedCgroup: a.slice:b:c",
            "systemReservedCgroup: 1",
            "kubeReservedCgroup: [a]",
            "systemReserved: 500Mi",
            "systemReserved: {}",
            "systemReserved: {memory: 0}",
            "systemReserved: {memory: 1Gi, cpu: 1}",
            "kubeReserved: {cpu: 1}",
            "kubeReserved: {memory: {a: b}}",
            "logLevel: INFO",
            "logLevel: 3",
            "logLevel: off",
            "logLevel:",
        ] {
            let error = parse(line).unwrap_err();
            let field = line.split(':').next().unwrap();
            assert!(error.starts_with(&format!("f.yaml:1: {field}: expected ")), "{line}: {error}");
            assert_eq!(error.lines().count(), 1, "{line}: {error}");
        }
    }

    #[test]
    fn unusable_yaml_errors_name_file_and_expectation() {
        for text in [
            "- a\n- b",
            "text",
            "3",
            "\"",
            "a: b: c",
            "a: [",
            "{",
            "a: 1\n---\na: 2",
            "\tlogLevel: x",
            "a: *b",
            "? [a]\n: b",
            "<<: {a: b}",
            "%YAML 9",
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.lines().all(|line| line.starts_with("f.yaml:")), "{text:?}: {error}");
            assert!(error.contains("expected "), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_syntax_error_keeps_earlier_errors() {
        let error =
            parse("logLevel: loud\nnodeAllocatable: [1\nmemoryThrottlingFactor: 2\n").unwrap_err();
        assert!(error.starts_with("f.yaml:1: logLevel: expected error, warn"), "{error}");
        assert!(error.contains("\nf.yaml:"), "{error}");
    }

    #[test]
    fn invalid_bytes_are_reported_with_their_line() {
        let errors = Config::parse(b"logLevel: info\n\xff", "f.yaml").unwrap_err();
        assert_eq!(errors.to_string(), "f.yaml:2: expected UTF-8 text, found byte 0xff");
    }

    #[test]
    fn oversized_and_exploding_input_is_refused() {
        let error = Config::parse(&vec![b'#'; LARGEST + 1], "f.yaml").unwrap_err();
        assert_eq!(
            error.to_string(),
            "f.yaml:1: expected at most 1048576 bytes, found 1048577 bytes"
        );
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let previous = format!("*a{},", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{previous}]\n"));
        }
        assert!(parse(&bomb).is_err());
        assert!(parse(&"[".repeat(100_000)).is_err());
    }

    #[test]
    fn newlines_in_input_never_split_messages() {
        let error = parse("\"a\\nb\": \"c\\nd\"\nlogLevel: \"e\\nf\"").unwrap_err();
        assert_eq!(error.lines().count(), 2, "{error}");
    }

    /// Regular expression for text that resembles a configuration.
    const LIKE_CONFIGURATIONS: &str = concat!(
        "((memoryThrottlingFactor|logLevel|nodeAllocatable|x): ?",
        "|[-\\[\\]{}&*!|>'\"%@`,?:#~]|[0-9a-z.]{0,3}| |\n){0,20}",
    );

    proptest! {
        #[test]
        fn any_bytes_are_a_configuration_or_errors(
            bytes in proptest::collection::vec(any::<u8>(), 0..120),
        ) {
            if let Err(errors) = Config::parse(&bytes, "f.yaml") {
                prop_assert!(!errors.errors.is_empty());
            }
        }

        #[test]
        fn random_text_gives_one_line_per_error(text in LIKE_CONFIGURATIONS) {
            if let Err(errors) = Config::parse(text.as_bytes(), "f.yaml") {
                prop_assert!(errors.to_string().lines().count() == errors.errors.len());
            }
        }
    }
}

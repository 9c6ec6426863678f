//! Descriptions of the values that a field allows.

use crate::config::fields::field_type::{Field, Kind, Range};

impl Field {
    /// Describes the allowed values, without `null` and without examples.
    pub fn allowed(&self) -> String {
        match &self.kind {
            Kind::Choice(choices) => {
                let words: Vec<&str> = choices.iter().map(|choice| choice.value).collect();
                match words.split_last() {
                    Some((last, [])) => (*last).to_owned(),
                    Some((last, others)) => format!("{} or {last}", others.join(", ")),
                    None => String::new(),
                }
            }
            Kind::Boolean => "true or false".to_owned(),
            Kind::Count { most } => format!("a whole number from 1 to {most}"),
            Kind::Number(Range { least, is_above_least: true, most }) => {
                format!("a number above {least} and at most {most}")
            }
            Kind::Number(Range { least, most, .. }) => format!("a number from {least} to {most}"),
            Kind::Quantity { may_be_zero: true } => "a quantity of 0 or more".to_owned(),
            Kind::Quantity { .. } => "a quantity above 0".to_owned(),
            Kind::QuantityOrAuto => "auto, or a quantity above 0".to_owned(),
            Kind::QuantityOrShare => "a quantity above 0, or a share from 1% to 100%".to_owned(),
            Kind::Duration => "a time above 0".to_owned(),
            Kind::Cgroup => "the path of a cgroup below the root, without ., .. or :".to_owned(),
            Kind::Address => "an IP address and a port".to_owned(),
            Kind::Path => "an absolute path".to_owned(),
            Kind::KubernetesVersion => "a version of Kubernetes in quotes".to_owned(),
            Kind::Mapping { .. } => "a mapping".to_owned(),
        }
    }

    /// Describes the expected value for messages.
    pub fn expected(&self) -> String {
        let allowed = self.allowed();
        let examples = self.examples.join(" or ");
        let expected = match &self.kind {
            Kind::Choice(_) | Kind::Boolean | Kind::Count { .. } | Kind::Number(_) => allowed,
            Kind::Quantity { may_be_zero: true } => format!("a quantity such as {examples}, or 0"),
            Kind::Cgroup | Kind::QuantityOrShare => format!("{allowed}, such as {examples}"),
            _ => format!("{allowed} such as {examples}"),
        };
        if self.null.is_some() { format!("{expected}, or null") } else { expected }
    }
}

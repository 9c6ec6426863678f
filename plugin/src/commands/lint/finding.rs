//! Finding: a violation of a rule, with its position in a file.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::commands::explain::ContainerKind;
use crate::commands::lint::place::File;
use crate::commands::lint::rule::{Level, Rule};
use crate::yaml::Place;

/// Subject of a finding: kind and name of the object, and the container if the finding concerns
/// only one container.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) object: String,
    pub(super) container: Option<(ContainerKind, String)>,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.object)?;
        match &self.container {
            Some((kind, name)) => write!(f, ", {kind} {name}"),
            None => Ok(()),
        }
    }
}

/// Violation of a rule, with its position in a file.
#[derive(Clone, Debug)]
pub struct Finding {
    pub(super) file: File,
    pub(super) place: Place,
    pub(super) rule: Rule,
    pub(super) subject: Option<Subject>,
    pub(super) message: String,
}

impl Finding {
    /// Returns the violated rule.
    pub const fn rule(&self) -> Rule {
        self.rule
    }

    /// Returns the line, counted from 1.
    pub const fn line(&self) -> u64 {
        self.place.line
    }

    /// Returns the message and the subject, but not the file.
    pub(super) fn text(&self) -> String {
        match &self.subject {
            Some(subject) => format!("{subject}: {}", self.message),
            None => self.message.clone(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (file, line, level) = (&self.file.shown, self.place.line, self.rule.level());
        write!(f, "{file}:{line}: {level}: {} [{}]", self.text(), self.rule.id())
    }
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Form<'a> {
            file: &'a File,
            #[serde(flatten)]
            place: Place,
            level: Level,
            rule: Rule,
            object: Option<&'a str>,
            container: Option<&'a str>,
            message: &'a str,
        }
        let subject = self.subject.as_ref();
        Form {
            file: &self.file,
            place: self.place,
            level: self.rule.level(),
            rule: self.rule,
            object: subject.map(|subject| subject.object.as_str()),
            container: subject
                .and_then(|subject| subject.container.as_ref())
                .map(|(_, name)| name.as_str()),
            message: &self.message,
        }
        .serialize(serializer)
    }
}

//! Reports as SARIF 2.1.0.

use serde_json::{Value, json};

use crate::commands::lint::finding::Finding;
use crate::commands::lint::report::Report;
use crate::commands::lint::rule::Rule;

impl Report {
    /// Returns the findings as SARIF 2.1.0, with the fields that GitHub's code scanning requires.
    pub fn sarif(&self) -> Value {
        let rules = Rule::ALL.map(|rule| {
            json!({
                "id": rule.id(),
                "shortDescription": { "text": rule.summary() },
                "fullDescription": { "text": rule.help() },
                "help": { "text": rule.help() },
                "defaultConfiguration": { "level": rule.level() },
            })
        });
        let results: Vec<Value> = self
            .findings
            .iter()
            .map(|finding| {
                let Finding { file, place, rule, .. } = finding;
                // SARIF messages use brackets for links, so escape brackets.
                let text =
                    finding.text().replace('\\', r"\\").replace('[', r"\[").replace(']', r"\]");
                json!({
                    "ruleId": rule.id(),
                    "ruleIndex": Rule::ALL.iter().position(|other| other == rule),
                    "level": rule.level(),
                    "message": { "text": text },
                    "locations": [{
                        "physicalLocation": {
                            "artifactLocation": { "uri": file.uri },
                            "region": { "startLine": place.line, "startColumn": place.column },
                        },
                    }],
                })
            })
            .collect();
        json!({
            "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
            "version": "2.1.0",
            "runs": [{
                "tool": {
                    "driver": {
                        "name": "plimsoll",
                        "version": env!("CARGO_PKG_VERSION"),
                        "informationUri": env!("CARGO_PKG_REPOSITORY"),
                        "rules": rules,
                    },
                },
                "columnKind": "unicodeCodePoints",
                "results": results,
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::*;
    use crate::commands::lint::testing::{DEPLOYMENT, report};

    #[test]
    fn sarif_is_what_code_scanning_takes() {
        let mut report = report(DEPLOYMENT);
        report.add_unreadable(Path::new("a b/\u{e9}#.yaml"), &io::Error::other("no"));
        report.lint(Path::new("-"), b"[");
        report.lint(Path::new("/x.yaml"), b"kind: Pod\nmetadata: {name: '[a](b)'}");
        let sarif = report.sarif();
        assert_eq!(sarif["version"], "2.1.0");
        let run = &sarif["runs"][0];
        let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
        assert_eq!(run["tool"]["driver"]["name"], "plimsoll");
        for (rule, described) in Rule::ALL.iter().zip(rules) {
            assert_eq!(described["id"], rule.id());
            for text in ["shortDescription", "fullDescription", "help"] {
                assert!(
                    described[text]["text"].as_str().is_some_and(|text| !text.is_empty()),
                    "{text}"
                );
            }
        }
        let results = run["results"].as_array().unwrap();
        assert_eq!(results.len(), report.findings.len());
        for result in results {
            let rule = &rules[usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap()];
            assert_eq!(result["ruleId"], rule["id"]);
            assert_eq!(result["level"], rule["defaultConfiguration"]["level"]);
            assert!(["note", "warning", "error"].contains(&result["level"].as_str().unwrap()));
            let place = &result["locations"][0]["physicalLocation"];
            assert!(place["region"]["startLine"].as_u64().unwrap() >= 1);
            assert!(place["region"]["startColumn"].as_u64().unwrap() >= 1);
        }
        let uris: Vec<&str> = results[4..]
            .iter()
            .map(|result| {
                result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
                    .as_str()
                    .unwrap()
            })
            .collect();
        assert_eq!(uris, ["f.yaml", "a%20b/%C3%A9%23.yaml", "stdin", "file:///x.yaml"]);
        assert!(
            results[7]["message"]["text"].as_str().unwrap().starts_with(r"Pod \[a\](b): expected"),
            "{}",
            results[7]
        );
    }
}

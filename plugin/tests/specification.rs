//! Tests of the statements in the repository's documents against the repository.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use walkdir::WalkDir;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// The parts of a document that the tests check.
#[derive(Default)]
struct Document {
    /// Headings, in the form that links use.
    headings: BTreeSet<String>,
    /// Text and destination of each link.
    links: Vec<(String, String)>,
    /// The first bold words of each list item, and the links of the item.
    items: Vec<(String, Vec<(String, String)>)>,
}

impl Document {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let mut document = Self::default();
        // Text and destination of the open link, and the words of the latest heading or bold text.
        let (mut link, mut words, mut is_in_item) = (None, String::new(), false);
        for event in Parser::new_ext(&text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    link = Some((String::new(), dest_url.into_string()));
                }
                Event::End(TagEnd::Link | TagEnd::Image) => {
                    let link = link.take().expect("it was opened");
                    if let Some((_, links)) = document.items.last_mut().filter(|_| is_in_item) {
                        links.push(link.clone());
                    }
                    document.links.push(link);
                }
                Event::Start(Tag::Heading { .. } | Tag::Strong) => words.clear(),
                Event::End(TagEnd::Heading(_)) => drop(document.headings.insert(anchor(&words))),
                Event::Start(Tag::Item) => {
                    document.items.push(Default::default());
                    is_in_item = true;
                }
                Event::End(TagEnd::Item) => is_in_item = false,
                Event::End(TagEnd::Strong) => {
                    if let Some((name, _)) =
                        document.items.last_mut().filter(|(name, _)| is_in_item && name.is_empty())
                    {
                        name.clone_from(&words);
                    }
                }
                Event::Text(text) | Event::Code(text) => {
                    words.push_str(&text);
                    if let Some((of_link, _)) = &mut link {
                        of_link.push_str(&text);
                    }
                }
                _ => {}
            }
        }
        document
    }
}

/// Returns the name of a heading in links, in the form of GitHub.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
    kept.flat_map(char::to_lowercase)
        .map(|letter| if letter == ' ' { '-' } else { letter })
        .collect()
}

/// Returns the names of the tests in a Rust file: functions with a test attribute, and names in
/// `node_tests!`.
fn tests(source: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    let (mut is_test, mut of_nodes) = (false, false);
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if line.starts_with("node_tests!(") || line.starts_with("integration::node_tests!(")
        {
            of_nodes = true;
        } else if line == "});" || line == "]);" {
            of_nodes = false;
        } else if of_nodes {
            let name = line.trim_end_matches([',', ';']);
            names.extend(Some(name).filter(|name| {
                name.chars().all(|letter| letter == '_' || letter.is_alphanumeric())
            }));
        } else if let Some((before, after)) = line.split_once("fn ")
            && (before.is_empty() || before.ends_with("async "))
        {
            let name = after.split(['(', '<']).next();
            names.extend(name.filter(|_| is_test));
            is_test = false;
        }
    }
    names
}

#[test]
fn every_promise_names_the_tests_that_hold_it() {
    let promises: Vec<_> = Document::read(&repository().join("SPECIFICATION.md"))
        .items
        .into_iter()
        .filter(|(name, _)| !name.is_empty())
        .collect();
    assert!(promises.len() > 50, "only {} promises are found", promises.len());
    let mut sources: BTreeMap<String, String> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (promise, links) in promises {
        assert!(seen.insert(promise.clone()), "{promise} is there twice");
        let mut held = false;
        for (test, path) in links.into_iter().filter(|(_, path)| path.ends_with(".rs")) {
            let source = sources.entry(path.clone()).or_insert_with_key(|path| {
                fs::read_to_string(repository().join(path))
                    .unwrap_or_else(|error| panic!("{promise}: {path}: {error}"))
            });
            assert!(tests(source).contains(test.as_str()), "{promise}: {path} has no test {test}");
            held = true;
        }
        assert!(held, "{promise} names no test");
    }
}

#[test]
fn every_link_in_the_documents_leads_somewhere() {
    let is_source = |name: &str| name != "target" && !name.starts_with('.');
    let files = WalkDir::new(repository()).into_iter().filter_entry(|entry| {
        entry.depth() == 0 || entry.file_name().to_str().is_some_and(is_source)
    });
    let documents: BTreeMap<PathBuf, Document> = files
        .map(|entry| entry.unwrap().into_path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .map(|path| (path.clone(), Document::read(&path)))
        .collect();
    assert!(documents.len() > 5, "only {} documents are found", documents.len());
    for (path, document) in &documents {
        for (text, to) in document.links.iter().filter(|(_, to)| !to.contains("://")) {
            let (file, heading) = to
                .split_once('#')
                .map_or((to.as_str(), None), |(file, heading)| (file, Some(heading)));
            let file = if file.is_empty() { path.clone() } else { path.with_file_name(file) };
            let file = file
                .canonicalize()
                .unwrap_or_else(|error| panic!("{}: {text}: {to}: {error}", path.display()));
            let is_there =
                heading.is_none_or(|heading| documents[&file].headings.contains(heading));
            assert!(is_there, "{}: {text}: {to}: no such heading", path.display());
        }
    }
}

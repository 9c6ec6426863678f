//! Tests of the specification: the numbers of the promises, and the tests that the promises name.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn specification() -> String {
    fs::read_to_string(repository().join("SPECIFICATION.md")).unwrap()
}

/// A list item of a document.
#[derive(Default)]
struct Item {
    /// The second-level heading above the item. Empty for an item above the first heading.
    section: String,
    /// The first bold words of the item.
    name: String,
    /// Text and destination of each link of the item, without the links of nested items.
    links: Vec<(String, String)>,
    /// Whether the item is inside another item.
    is_nested: bool,
}

/// Returns the list items of a document.
fn items(text: &str) -> Vec<Item> {
    let mut items = Vec::<Item>::new();
    // Text and destination of the link that the loop is inside, and the words of the latest heading
    // or bold text.
    let (mut link, mut words) = (None, String::new());
    // The current section, and the indices of the items that the loop is inside, outermost first.
    let (mut section, mut open) = (String::new(), Vec::<usize>::new());
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                link = Some((String::new(), dest_url.into_string()));
            }
            Event::End(TagEnd::Link | TagEnd::Image) => {
                let link = link.take().expect("a link was opened");
                if let Some(&item) = open.last() {
                    items[item].links.push(link);
                }
            }
            Event::Start(Tag::Heading { .. } | Tag::Strong) => words.clear(),
            Event::End(TagEnd::Heading(HeadingLevel::H2)) => section.clone_from(&words),
            Event::Start(Tag::Item) => {
                let is_nested = !open.is_empty();
                open.push(items.len());
                let section = section.clone();
                items.push(Item { section, is_nested, ..Item::default() });
            }
            Event::End(TagEnd::Item) => drop(open.pop()),
            Event::End(TagEnd::Strong) => {
                if let Some(&item) = open.last()
                    && items[item].name.is_empty()
                {
                    items[item].name.clone_from(&words);
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
    items
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

/// Returns the promises of a specification: the list items in sections, except in "Not promised".
fn promises(specification: &str) -> Vec<Item> {
    let is_promise = |item: &Item| !item.section.is_empty() && item.section != "Not promised";
    items(specification).into_iter().filter(is_promise).collect()
}

/// Returns the letter and the number at the beginning of a promise's name, such as `V12`.
fn number(name: &str) -> Option<(char, u32)> {
    let word = name.split_whitespace().next()?;
    let letter = word.chars().next().filter(char::is_ascii_uppercase)?;
    Some((letter, word[1..].parse().ok()?))
}

/// Returns the mistakes in the numbering of the promises.
///
/// Each section has its own letter. The promises of a section are numbered from 1 without gaps.
fn number_faults(promises: &[Item]) -> Vec<String> {
    let mut faults = Vec::new();
    // The section and the latest number of each letter.
    let mut latest: BTreeMap<char, (&str, u32)> = BTreeMap::new();
    // The letter of each section.
    let mut letters: BTreeMap<&str, char> = BTreeMap::new();
    for Item { section, name, is_nested, .. } in promises {
        if *is_nested {
            faults.push(format!("{section}: {name:?} is in a nested list"));
        }
        let Some((letter, found)) = number(name) else {
            faults.push(format!("{section}: {name:?} has no number"));
            continue;
        };
        if *letters.entry(section.as_str()).or_insert(letter) != letter {
            faults.push(format!("{section}: {name:?} has the letter of another section"));
        }
        let (owner, before) = latest.entry(letter).or_insert((section.as_str(), 0));
        if *owner != section.as_str() {
            faults.push(format!("{section}: {name:?} has the letter of {owner}"));
        }
        let expected = *before + 1;
        if found != expected {
            faults.push(format!("{section}: {name:?}: expected {letter}{expected}"));
        }
        *before = found.max(*before);
    }
    faults
}

#[test]
fn numbers_of_promises_ascend_without_gaps() {
    let promises = promises(&specification());
    assert!(promises.len() > 50, "only {} promises are found", promises.len());
    assert_eq!(number_faults(&promises), [] as [String; 0]);
}

#[test]
fn faulty_numbers_of_promises_are_found() {
    let faults = |text: &str| number_faults(&promises(text)).len();
    let values = "## Values\n\n- **V1 First.** One.\n- **V2 `Second`.** Two.\n";
    assert_eq!(faults(&format!("- no promise\n\n{values}\n## Not promised\n\n- Times.\n")), 0);
    for (item, fault) in [
        ("- Without a name.\n", "no number"),
        ("- **Third.** Three.\n", "no number"),
        ("- **V2 Third.** Three.\n", "repeated"),
        ("- **V1 Third.** Three.\n", "descending"),
        ("- **V4 Third.** Three.\n", "a gap"),
        ("  - **V3 Third.** Three.\n", "nested"),
        ("\n## Other\n\n- **V3 Third.** Three.\n", "the letter of another section"),
    ] {
        assert_eq!(faults(&format!("{values}{item}")), 1, "{fault}: {item}");
    }
}

#[test]
fn every_promise_links_an_existing_test() {
    let mut sources: BTreeMap<String, String> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for Item { section, name, links, .. } in promises(&specification()) {
        let title = name.split_once(' ').map_or(name.as_str(), |(_, title)| title).to_owned();
        assert!(seen.insert((section, title)), "SPECIFICATION.md has {name} twice");
        let mut held = name.trim_end_matches('.').ends_with("(withdrawn)");
        for (test, path) in links.into_iter().filter(|(_, path)| path.ends_with(".rs")) {
            let source = sources.entry(path.clone()).or_insert_with_key(|path| {
                fs::read_to_string(repository().join(path))
                    .unwrap_or_else(|error| panic!("{name}: {path}: {error}"))
            });
            assert!(tests(source).contains(test.as_str()), "{name}: {path} has no test {test}");
            held = true;
        }
        assert!(held, "{name} names no test");
    }
}

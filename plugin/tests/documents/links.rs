//! Links between documents, and to files of the repository.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use crate::repository;

/// The headings and links of a document.
#[derive(Default)]
struct Document {
    /// The anchor that GitHub makes for each heading.
    headings: BTreeSet<String>,
    /// Text and destination of each link.
    links: Vec<(String, String)>,
}

impl Document {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let mut document = Self::default();
        // Text and destination of the link that the loop is inside, and the words of the latest
        // heading.
        let (mut link, mut words) = (None, String::new());
        for event in Parser::new_ext(&text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    link = Some((String::new(), dest_url.into_string()));
                }
                Event::End(TagEnd::Link | TagEnd::Image) => {
                    document.links.push(link.take().expect("it was opened"));
                }
                Event::Start(Tag::Heading { .. }) => words.clear(),
                Event::End(TagEnd::Heading(_)) => {
                    document.headings.insert(anchor(&words));
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

/// Returns the anchor that GitHub makes for a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
    kept.flat_map(char::to_lowercase)
        .map(|letter| if letter == ' ' { '-' } else { letter })
        .collect()
}

#[test]
fn every_link_in_the_documents_leads_somewhere() {
    let documents: BTreeMap<PathBuf, Document> = repository::documents()
        .into_iter()
        .map(|path| (path.clone(), Document::read(&path)))
        .collect();
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

//! Fenced code blocks of the documents.
//!
//! The info string after the fence determines what a test does with a block. CONTRIBUTING.md lists
//! the info strings.

use std::fs;
use std::path::Path;

use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};

use crate::repository;

/// The purpose of a block, which follows from the block's info string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `sh`: commands that a test runs.
    Script,
    /// `console`: commands with their output. A test runs the commands and compares the output.
    Session,
    /// `sh node`, `sh cluster` and `sh build`: commands that no test of documents can run.
    Elsewhere,
    /// `console node` and `json node`: output of a node, which `hack/outputs` writes.
    NodeOutput,
    /// `yaml`: a configuration of Plimsoll.
    Configuration,
    /// `yaml NAME`: a file that the commands of the same document use.
    File(String),
    /// `toml`: dependencies of a crate.
    Dependencies,
    /// `text` and `go`: drawings, measurements and sources, which no test checks.
    Unchecked,
}

impl Kind {
    /// Returns the kind for an info string, or `None` for an unknown info string.
    fn parse(info: &str) -> Option<Self> {
        Some(match info {
            "sh" => Self::Script,
            "console" => Self::Session,
            "sh node" | "sh cluster" | "sh build" => Self::Elsewhere,
            "console node" | "json node" => Self::NodeOutput,
            "yaml" => Self::Configuration,
            "toml" => Self::Dependencies,
            "text" | "go" => Self::Unchecked,
            _ => {
                let is_plain =
                    |letter: char| letter.is_ascii_lowercase() || ".-0123456789".contains(letter);
                let name = info.strip_prefix("yaml ")?;
                let is_file = name.ends_with(".yaml") || name.ends_with(".conf");
                (is_file && name.chars().all(is_plain)).then(|| Self::File(name.to_owned()))?
            }
        })
    }
}

/// A fenced code block of a document.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// The document's path in the repository, and the line number of the fence.
    pub(crate) place: String,
    pub(crate) info: String,
    pub(crate) kind: Kind,
    pub(crate) text: String,
    /// The HTML comment directly before the block, without its delimiters.
    pub(crate) comment: Option<String>,
}

impl Block {
    /// Returns whether the block contains commands and not only the output of a command.
    pub(crate) fn has_commands(&self) -> bool {
        self.info.starts_with("sh") || self.info.starts_with("console")
    }

    /// Returns the commands of the block, each with the output that the document shows.
    ///
    /// The commands of a session begin with `$ `. A script has one command per line and no output.
    pub(crate) fn commands(&self) -> Result<Vec<Command>, String> {
        let is_session = self.info.starts_with("console");
        let mut commands = Vec::<Command>::new();
        for line in self.text.lines() {
            let command = if is_session { line.strip_prefix("$ ") } else { Some(line) };
            match (command, commands.last_mut()) {
                (Some(text), _) => {
                    commands.push(Command { text: text.to_owned(), output: vec![] });
                }
                (None, Some(command)) => command.output.push(line.to_owned()),
                (None, None) => {
                    return Err(format!(
                        "{}: expected a command ('$ ...') before the output, found {line:?}: \
                         write the command that prints this line",
                        self.place
                    ));
                }
            }
        }
        Ok(commands)
    }
}

/// A command of a block and the lines of output that the document shows below the command.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    pub(crate) text: String,
    pub(crate) output: Vec<String>,
}

/// A document and its blocks.
pub(crate) struct Document {
    pub(crate) blocks: Vec<Block>,
}

/// Reads the blocks of all documents. Panics if a block has an unknown info string.
pub(crate) fn read_all() -> Vec<Document> {
    let repository = repository::directory();
    let documents = repository::documents().into_iter().map(|path| {
        let place = path.strip_prefix(&repository).unwrap().display().to_string();
        let blocks = parse(&place, &fs::read_to_string(&path).unwrap());
        Document { blocks: blocks.unwrap_or_else(|error| panic!("{error}")) }
    });
    documents.collect()
}

/// Returns the blocks of a document, or an error for a block with an unknown info string.
pub(crate) fn parse(document: &str, text: &str) -> Result<Vec<Block>, String> {
    let mut blocks = Vec::new();
    let mut comment = None;
    let mut open: Option<Block> = None;
    for (event, range) in Parser::new(text).into_offset_iter() {
        match event {
            Event::Html(html) => {
                comment = html
                    .trim()
                    .strip_prefix("<!--")
                    .and_then(|html| html.strip_suffix("-->"))
                    .map(|html| html.trim().to_owned());
            }
            Event::Start(Tag::CodeBlock(kind)) => {
                let line = text[..range.start].lines().count().max(1);
                let line = if text[..range.start].ends_with('\n') { line + 1 } else { line };
                let info = match kind {
                    CodeBlockKind::Fenced(info) => info.into_string(),
                    CodeBlockKind::Indented => "indented by spaces".to_owned(),
                };
                let place = format!("{document}:{line}");
                let kind = Kind::parse(&info).ok_or_else(|| {
                    format!(
                        "{place}: expected an info string that CONTRIBUTING.md lists, found \
                         {info:?}: say what a test does with this block"
                    )
                })?;
                let comment = comment.take();
                open = Some(Block { place, info, kind, text: String::new(), comment });
            }
            Event::End(TagEnd::CodeBlock) => blocks.extend(open.take()),
            Event::Text(text) => {
                if let Some(block) = &mut open {
                    block.text.push_str(&text);
                }
            }
            Event::Start(Tag::HtmlBlock) | Event::End(TagEnd::HtmlBlock) => {}
            _ => comment = None,
        }
    }
    Ok(blocks)
}

#[test]
fn every_info_string_is_listed_for_contributors() {
    let contributing = Path::new(&repository::directory()).join("CONTRIBUTING.md");
    let contributing = fs::read_to_string(contributing).unwrap();
    for document in read_all() {
        for Block { place, info, kind, .. } in document.blocks {
            let info = if matches!(kind, Kind::File(_)) { "yaml NAME" } else { &info };
            let row = format!("`{info}`");
            let is_listed =
                contributing.lines().any(|line| line.starts_with("| `") && line.contains(&row));
            assert!(is_listed, "{place}: expected {row} in the table of CONTRIBUTING.md");
        }
    }
}

#[test]
fn blocks_with_unknown_info_strings_fail() {
    let fenced = |info: &str| format!("Text.\n\n```{info}\ntrue\n```\n");
    for info in ["sh", "console", "sh node", "yaml", "yaml pod.yaml", "text"] {
        let blocks = parse("a.md", &fenced(info)).unwrap();
        assert_eq!((blocks.len(), &*blocks[0].place, &*blocks[0].text), (1, "a.md:3", "true\n"));
    }
    for info in ["", "bash", "sh nodes", "sh node root", "console cluster", "yaml ../pod.yaml"] {
        let error = parse("a.md", &fenced(info)).unwrap_err();
        assert!(error.starts_with("a.md:3: expected") && error.contains(info), "{error}");
    }
    let error = parse("a.md", "Text.\n\n    plimsoll status\n").unwrap_err();
    assert!(error.contains("indented by spaces"), "{error}");
}

#[test]
fn comments_belong_to_the_next_block() {
    let text =
        "<!-- output: a -->\n```text\n```\n\n```text\n```\n\n<!-- b -->\n\nText.\n\n```text\n```\n";
    let blocks = parse("a.md", text).unwrap();
    let comments: Vec<_> = blocks.iter().map(|block| block.comment.as_deref()).collect();
    assert_eq!(comments, [Some("output: a"), None, None]);
}

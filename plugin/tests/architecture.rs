//! Tests of the layout in docs/architecture.md: the order of imports, the absence of cycles, the
//! files that may write to cgroups, and the sizes of files, functions and lines.
//!
//! The tests read the `use` lines and the paths in the sources. The tests ignore test modules. The
//! tests also ignore re-exports (`pub use`), because a `mod.rs` re-exports its children.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

/// A crate whose layout the tests check.
struct Crate {
    /// Folder of the sources, relative to the repository.
    sources: &'static str,
    /// Modules directly below the crate's root, lowest first. A module may import only the modules
    /// that precede it in this list.
    order: &'static [&'static str],
}

const CRATES: [Crate; 4] = [
    Crate {
        sources: "proto/src",
        order: &[
            "event",
            "version",
            "plugin",
            "error",
            "identity",
            "mux",
            "answer",
            "handle",
            "instance_lock",
            "launch",
            "service",
            "stub",
            "runtime",
        ],
    },
    Crate {
        sources: "plugin/core/src",
        order: &["units", "outcome", "pod", "policy", "requests", "incident"],
    },
    Crate {
        sources: "plugin/src",
        order: &[
            "yaml", "cgroup", "host", "kubelet", "config", "state", "report", "agent", "commands",
        ],
    },
    Crate {
        sources: "integration/src",
        order: &[
            "tools",
            "runtime",
            "image",
            "machine",
            "probe",
            "kubelet",
            "placement",
            "fleet",
            "cluster",
            "stories",
            "bin",
        ],
    },
];

/// Files and folders of `plugin/src` whose code writes files of cgroups: the type that writes, the
/// path of an event, and the reconciler.
const WRITERS: [&str; 4] = ["cgroup/", "state/levels/", "agent/decrease.rs", "agent/reconciler/"];
/// Functions that write files of cgroups.
const WRITES: [&str; 4] = ["write_knob(", "set_cpu_max(", "reclaim(", "reclaim_to("];

/// Maximum number of lines of a file without its tests.
const MOST_LINES: usize = 500;
/// Maximum median number of lines per file.
const MEDIAN_LINES: usize = 200;
/// Maximum number of lines of a function.
const MOST_LINES_OF_A_FUNCTION: usize = 60;
/// Maximum number of columns of a line.
const MOST_COLUMNS: usize = 100;
/// Number of words in the name of a test. The module already names the subject.
const WORDS_OF_A_TEST: RangeInclusive<usize> = 4..=7;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// A source file without its tests.
struct Source {
    /// Path relative to the crate's sources.
    path: String,
    /// Names of the modules from the crate's root to this file.
    module: Vec<String>,
    /// The number and the text of each line.
    lines: Vec<(usize, String)>,
}

impl Source {
    fn is_root(&self) -> bool {
        self.module.is_empty()
    }
}

/// Returns the sources of a crate, without test modules and generated files.
fn sources(of: &Crate) -> Vec<Source> {
    let root = repository().join(of.sources);
    let mut test_files = BTreeSet::new();
    let mut sources = Vec::new();
    let is_generated = |name: &std::ffi::OsStr| name == "generated";
    let files = WalkDir::new(&root).sort_by_file_name().into_iter();
    let files = files.filter_entry(|file| !is_generated(file.file_name())).map(Result::unwrap);
    for file in files.filter(|file| file.path().extension().is_some_and(|kind| kind == "rs")) {
        let path = file.path().strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        let module = module(&path);
        let text = fs::read_to_string(file.path()).unwrap();
        let lines = without_tests(&text, &module, &mut test_files);
        sources.push(Source { path, module, lines });
    }
    // A file that only tests use is declared after `#[cfg(test)]`.
    sources.retain(|source| {
        !(1..=source.module.len()).any(|depth| test_files.contains(&source.module[..depth]))
    });
    assert!(sources.len() > 5, "{}: only {} files are found", of.sources, sources.len());
    sources
}

/// Returns the names of the modules from the crate's root to the file.
fn module(path: &str) -> Vec<String> {
    let parts = path.strip_suffix(".rs").unwrap().split('/').map(str::to_owned);
    let mut parts: Vec<_> = parts.collect();
    if parts.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        parts.pop();
    }
    parts
}

/// Returns the lines of a file, but not the lines of items for tests. Adds to `test_files` the
/// modules that only tests use.
fn without_tests(
    text: &str,
    module: &[String],
    test_files: &mut BTreeSet<Vec<String>>,
) -> Vec<(usize, String)> {
    let mut kept = Vec::new();
    let mut lines = (1..).zip(text.lines()).peekable();
    while let Some((number, line)) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept.push((number, line.to_owned()));
            continue;
        }
        let indentation = &line[..line.len() - line.trim_start().len()];
        let is_attribute = |line: &str| line.trim_start().starts_with("#[");
        while lines.next_if(|(_, line)| is_attribute(line)).is_some() {}
        let Some((_, item)) = lines.next() else { break };
        let name = item.trim().strip_prefix("pub ").unwrap_or(item.trim());
        if let Some(name) = name.strip_prefix("mod ").and_then(|name| name.strip_suffix(';')) {
            test_files.insert(module.iter().cloned().chain([name.to_owned()]).collect());
        }
        if !item.ends_with(';') && !item.ends_with('}') {
            let end = format!("{indentation}}}");
            let _ = lines.by_ref().find(|(_, line)| line.starts_with(&end));
        }
    }
    kept
}

/// An import: the number of its line, and the modules of its path.
type Import = (usize, Vec<String>);

/// Returns the paths within the crate that a file uses.
fn imports(source: &Source) -> Vec<Import> {
    let mut imports = Vec::new();
    let mut lines = source.lines.iter().peekable();
    while let Some((number, line)) = lines.next() {
        let code = line.trim_start();
        if code.starts_with("//") {
            continue;
        }
        let is_reexport = code.starts_with("pub") && code.contains(" use ");
        if code.starts_with("use ") || is_reexport {
            let mut statement = code.to_owned();
            while !statement.contains(';') {
                let Some((_, next)) = lines.next() else { break };
                statement.push_str(next.trim());
            }
            if !is_reexport {
                let tree = statement.trim_start_matches("use ").trim_end_matches(';');
                imports.extend(paths(tree).into_iter().map(|path| (*number, path)));
            }
        } else {
            imports.extend(paths_in_code(code).into_iter().map(|path| (*number, path)));
        }
    }
    let within = ["crate", "super", "self"];
    imports.retain(|(_, path)| within.contains(&path[0].as_str()));
    imports
}

/// Returns the paths in an import tree such as `a::{b, c::{d, e}}`.
fn paths(tree: &str) -> Vec<Vec<String>> {
    let names = |path: &str| -> Vec<String> {
        let names = path.split("::").map(str::trim).filter(|name| !name.is_empty());
        names.map(str::to_owned).collect()
    };
    let Some((before, rest)) = tree.split_once('{') else {
        let path = names(tree.split(" as ").next().unwrap());
        return if path.is_empty() { Vec::new() } else { vec![path] };
    };
    let inside = rest.rsplit_once('}').map_or(rest, |(inside, _)| inside);
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for letter in inside.chars() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().unwrap().push(letter);
    }
    let prefix = names(before);
    let with_prefix = |path: Vec<String>| prefix.iter().cloned().chain(path).collect();
    parts.iter().flat_map(|part| paths(part.trim())).map(with_prefix).collect()
}

/// Returns the paths that begin with `crate`, `super` or `self` in a line of code.
fn paths_in_code(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            // `$crate` in a macro means the crate in which the macro is used.
            let before = code[..at].chars().next_back();
            if before.is_some_and(|before| before.is_alphanumeric() || "_:$".contains(before)) {
                continue;
            }
            let is_part = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':';
            let path = code[at..].split(|letter| !is_part(letter)).next().unwrap();
            found.extend(paths(path));
        }
    }
    found
}

/// The files of a crate, each with its imports.
struct Graph {
    files: BTreeMap<Vec<String>, String>,
    edges: BTreeMap<Vec<String>, BTreeMap<Vec<String>, usize>>,
}

impl Graph {
    fn of(sources: &[Source]) -> Self {
        let files: BTreeMap<_, _> =
            sources.iter().map(|source| (source.module.clone(), source.path.clone())).collect();
        let mut edges: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for source in sources.iter().filter(|source| !source.is_root()) {
            for (line, path) in imports(source) {
                let mut target = match path[0].as_str() {
                    "crate" => Vec::new(),
                    "self" => source.module.clone(),
                    _ => {
                        let above = path.iter().take_while(|name| *name == "super").count();
                        // A relative path in a macro starts at the module that uses the macro.
                        let Some(depth) = source.module.len().checked_sub(above) else { continue };
                        source.module[..depth].to_vec()
                    }
                };
                let rest = path
                    .iter()
                    .skip_while(|name| ["crate", "super", "self"].contains(&name.as_str()));
                for name in rest {
                    target.push(name.clone());
                    if !files.contains_key(&target) {
                        target.pop();
                        break;
                    }
                }
                if !target.is_empty() && target != source.module {
                    edges.entry(source.module.clone()).or_default().entry(target).or_insert(line);
                }
            }
        }
        Self { files, edges }
    }

    /// Returns the files of an import cycle, if the imports have a cycle.
    fn cycle(&self) -> Option<Vec<&str>> {
        let mut done = BTreeSet::new();
        self.files.keys().find_map(|start| self.cycle_from(start, &mut Vec::new(), &mut done))
    }

    fn cycle_from<'g>(
        &'g self,
        at: &'g Vec<String>,
        path: &mut Vec<&'g Vec<String>>,
        done: &mut BTreeSet<&'g Vec<String>>,
    ) -> Option<Vec<&'g str>> {
        if let Some(first) = path.iter().position(|before| *before == at) {
            return Some(path[first..].iter().map(|module| self.files[*module].as_str()).collect());
        }
        if !done.insert(at) {
            return None;
        }
        path.push(at);
        let next = self.edges.get(at).into_iter().flat_map(BTreeMap::keys);
        for target in next {
            if let Some(cycle) = self.cycle_from(target, path, done) {
                return Some(cycle);
            }
        }
        path.pop();
        None
    }
}

#[test]
fn imports_follow_the_folder_order() {
    let mut wrong = Vec::new();
    for of in CRATES {
        let graph = Graph::of(&sources(&of));
        let rank = |module: &[String]| {
            let name = &module[0];
            of.order.iter().position(|folder| folder == name).unwrap_or_else(|| {
                panic!("{}/{name}: expected one of {:?}; add it there", of.sources, of.order)
            })
        };
        for (from, targets) in &graph.edges {
            for (to, line) in targets.iter().filter(|(to, _)| rank(to) > rank(from)) {
                let [from, to] = [&graph.files[from], &graph.files[to]];
                wrong.push(format!("{}/{from}:{line} imports {to}, which is above it", of.sources));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_files_import_each_other() {
    let cycles: Vec<_> = CRATES
        .iter()
        .filter_map(|of| {
            let graph = Graph::of(&sources(of));
            let cycle = graph.cycle()?;
            Some(format!("{}: these files import each other: {cycle:?}", of.sources))
        })
        .collect();
    assert!(cycles.is_empty(), "{}", cycles.join("\n"));
}

#[test]
fn only_listed_modules_write_to_cgroups() {
    let plugin = CRATES.iter().find(|of| of.sources == "plugin/src").unwrap();
    let sources = sources(plugin);
    let mut writers = BTreeSet::new();
    let mut wrong = Vec::new();
    for source in &sources {
        let is_write = |line: &str| WRITES.iter().any(|write| line.contains(&format!(".{write}")));
        let writes = source.lines.iter().filter(|(_, line)| is_write(line));
        match WRITERS.iter().find(|writer| source.path.starts_with(**writer)) {
            Some(writer) => writers.extend(writes.map(|_| *writer)),
            None => wrong.extend(writes.map(|(number, _)| format!("{}:{number}", source.path))),
        }
    }
    assert!(wrong.is_empty(), "only {WRITERS:?} may write to cgroups, but also {wrong:?} do");
    assert_eq!(writers, BTreeSet::from(WRITERS), "a listed writer writes nothing");
}

#[test]
fn files_functions_and_lines_are_short() {
    let mut wrong = Vec::new();
    for of in CRATES {
        let sources = sources(&of);
        let mut sizes: Vec<_> = sources.iter().map(|source| source.lines.len()).collect();
        sizes.sort_unstable();
        let median = sizes[sizes.len() / 2];
        if median > MEDIAN_LINES {
            wrong.push(format!("{}: the median file has {median} lines", of.sources));
        }
        for source in &sources {
            let path = format!("{}/{}", of.sources, source.path);
            if source.lines.len() > MOST_LINES {
                wrong.push(format!("{path} has {} lines without tests", source.lines.len()));
            }
            let long = source.lines.iter().filter(|(_, line)| line.chars().count() > MOST_COLUMNS);
            wrong.extend(long.map(|(number, line)| {
                format!("{path}:{number} has {} columns", line.chars().count())
            }));
            wrong.extend(
                long_functions(source).into_iter().map(|(number, lines)| {
                    format!("{path}:{number} is a function of {lines} lines")
                }),
            );
        }
    }
    let limits = format!(
        "expected at most {MOST_LINES} lines in a file without its tests, a median of \
         {MEDIAN_LINES}, {MOST_LINES_OF_A_FUNCTION} lines in a function and {MOST_COLUMNS} columns"
    );
    assert!(wrong.is_empty(), "{limits}\n{}", wrong.join("\n"));
}

#[test]
fn names_of_tests_have_the_right_length() {
    let mut wrong = Vec::new();
    let mut tests = 0;
    for folder in ["plugin", "proto", "integration"] {
        let files = WalkDir::new(repository().join(folder)).sort_by_file_name().into_iter();
        let files = files.filter_entry(|file| file.file_name() != "target").map(Result::unwrap);
        for file in files.filter(|file| file.path().extension().is_some_and(|kind| kind == "rs")) {
            let text = fs::read_to_string(file.path()).unwrap();
            let mut lines = text.lines().map(str::trim).zip(1..);
            while let Some((line, _)) = lines.next() {
                if line != "#[test]" && !line.starts_with("#[tokio::test") {
                    continue;
                }
                let declaration = |(line, _): &(&str, usize)| is_function(line);
                let Some((line, number)) = lines.find(declaration) else { continue };
                let name = line.split_once("fn ").unwrap().1;
                let name = name.split(['(', '<']).next().unwrap();
                // A macro declares this test with a name of another file.
                if name.starts_with('$') {
                    continue;
                }
                tests += 1;
                if !WORDS_OF_A_TEST.contains(&name.split('_').count()) {
                    wrong.push(format!("{}:{number}: {name}", file.path().display()));
                }
            }
        }
    }
    let expected = format!(
        "expected {} to {} words in the name of a test",
        WORDS_OF_A_TEST.start(),
        WORDS_OF_A_TEST.end()
    );
    assert!(wrong.is_empty(), "{expected}\n{}", wrong.join("\n"));
    assert!(tests > 700, "only {tests} tests are found");
}

/// Returns the first line and the length of each function that is too long.
fn long_functions(source: &Source) -> Vec<(usize, usize)> {
    let starts = source.lines.iter().enumerate().filter(|(_, (_, line))| is_function(line));
    let long = starts.filter_map(|(at, (number, line))| {
        let rest = || source.lines[at..].iter().map(|(_, line)| line.as_str());
        // The declaration of a function without a body ends with a semicolon.
        let end_of_signature = rest().find(|line| line.ends_with(['{', '}', ';']))?;
        if !end_of_signature.ends_with('{') {
            return None;
        }
        let indentation = &line[..line.len() - line.trim_start().len()];
        let end = format!("{indentation}}}");
        let length = rest().take_while(|line| *line != end).count() + 1;
        (length > MOST_LINES_OF_A_FUNCTION).then_some((*number, length))
    });
    long.collect()
}

/// Returns whether the line is the first line of a function.
fn is_function(line: &str) -> bool {
    let mut code = line.trim_start();
    if let Some((_, rest)) = code.strip_prefix("pub(").and_then(|rest| rest.split_once(") ")) {
        code = rest;
    }
    let qualifiers = ["pub ", "const ", "async ", "unsafe "];
    while let Some(rest) = qualifiers.iter().find_map(|qualifier| code.strip_prefix(qualifier)) {
        code = rest;
    }
    code.starts_with("fn ")
}

#[test]
fn paths_of_imports_are_found() {
    let found = |code: &str| -> Vec<String> {
        paths(code).into_iter().map(|path| path.join("::")).collect()
    };
    assert_eq!(
        found("crate::a::{self, b, c::{d, e as f}}"),
        ["crate::a::self", "crate::a::b", "crate::a::c::d", "crate::a::c::e"]
    );
    let in_code = |code: &str| -> Vec<String> {
        paths_in_code(code).into_iter().map(|path| path.join("::")).collect()
    };
    assert_eq!(
        in_code("let x = crate::a::f(super::b::C, $crate::d::g!());"),
        ["crate::a::f", "super::b::C"]
    );
}

#[test]
fn test_modules_do_not_count() {
    let text = "use crate::a;\n#[cfg(test)]\nmod fake;\n#[cfg(test)]\nmod tests {\n    use crate::b;\n}\nfn f() {}\n";
    let mut test_files = BTreeSet::new();
    let kept = without_tests(text, &["m".to_owned()], &mut test_files);
    let kept: Vec<_> = kept.into_iter().map(|(_, line)| line).collect();
    assert_eq!(kept, ["use crate::a;", "fn f() {}"]);
    assert!(test_files.contains(&vec!["m".to_owned(), "fake".to_owned()]));
}

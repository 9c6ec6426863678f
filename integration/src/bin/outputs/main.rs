//! Writes the output of commands on a real node into README.md and docs/.
//!
//! In a document, the comment `<!-- output: NAME -->` before a fenced block names the output of the
//! block. The program fails if a command ends with an unexpected exit code.

mod scenes;
mod session;
mod stable;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use integration::tools::blocks::{self, OUTPUTS};

/// Writes the output of commands on a node into README.md and the documents in docs
#[derive(Parser)]
struct Arguments {
    /// Only print which blocks would change, and write nothing. The exit code is 1 if a block
    /// would change
    #[arg(long)]
    check: bool,
}

fn main() -> Result<ExitCode> {
    let Arguments { check } = Arguments::parse();
    let outputs = scenes::record()?;
    let names: Vec<&str> = outputs.keys().copied().collect();
    ensure!(
        names == OUTPUTS,
        "expected the outputs of OUTPUTS in integration/src/tools/blocks.rs, found {names:?}: \
         correct the list or the scenes"
    );
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let mut all_changed = BTreeSet::new();
    for path in documents(&repository)? {
        let place = path.strip_prefix(&repository)?.display();
        let document = fs::read_to_string(&path).with_context(|| format!("reading {place}"))?;
        let (new, changed) =
            blocks::replace(&document, &outputs).with_context(|| place.to_string())?;
        for name in &changed {
            println!("{place}: {name} {}", if check { "would change" } else { "has changed" });
        }
        if !check && !changed.is_empty() {
            fs::write(&path, new).with_context(|| format!("writing {place}"))?;
        }
        all_changed.extend(changed);
    }
    if !check || all_changed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for name in all_changed {
        println!("\n{name}:\n{}", outputs.get(name.as_str()).map_or("", String::as_str));
    }
    Ok(ExitCode::FAILURE)
}

/// Returns the paths of README.md and of the documents in docs, sorted.
fn documents(repository: &Path) -> Result<Vec<PathBuf>> {
    let docs = repository.join("docs");
    let files = fs::read_dir(&docs).with_context(|| format!("listing {}", docs.display()))?;
    let mut paths: Vec<PathBuf> = files
        .map(|file| Ok(file?.path()))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    paths.push(repository.join("README.md"));
    paths.sort();
    Ok(paths)
}

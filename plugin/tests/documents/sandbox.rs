//! A temporary directory in which the commands of a document run.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;
use walkdir::WalkDir;

use crate::blocks::{Document, Kind};
use crate::repository;

/// The program, freshly built for the tests.
const PROGRAM: &str = env!("CARGO_BIN_EXE_plimsoll");

/// A temporary directory with a copy of `deploy` and with the files of a document.
pub(crate) struct Sandbox {
    directory: TempDir,
}

impl Sandbox {
    /// Makes a sandbox with the files of a document. The files are the document's blocks that have
    /// a file name.
    pub(crate) fn new(document: &Document) -> Self {
        let directory = tempfile::tempdir().unwrap();
        copy(&repository::directory().join("deploy"), &directory.path().join("deploy"));
        for block in &document.blocks {
            if let Kind::File(name) = &block.kind {
                let path = directory.path().join(name);
                assert!(!path.exists(), "{}: another block already is {name}", block.place);
                fs::write(path, &block.text).unwrap();
            }
        }
        Self { directory }
    }

    /// Runs a bash script with the program first on PATH. Standard error goes to standard output.
    pub(crate) fn run(&self, script: &str) -> Output {
        let mut path = Path::new(PROGRAM).parent().unwrap().as_os_str().to_owned();
        path.push(":");
        path.push(env::var_os("PATH").unwrap());
        Command::new("timeout")
            .args(["60", "bash", "-uo", "pipefail", "-c", &format!("exec 2>&1\n{script}")])
            .current_dir(self.directory.path())
            .env("PATH", path)
            .env("HOME", self.directory.path())
            .env_remove("COLUMNS")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in WalkDir::new(from) {
        let entry = entry.unwrap();
        let target = to.join(entry.path().strip_prefix(from).unwrap());
        if entry.file_type().is_dir() {
            fs::create_dir(target).unwrap();
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

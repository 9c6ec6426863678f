//! The repository and its documents.

use std::path::{Path, PathBuf};

use walkdir::WalkDir;

/// Returns the directory of the repository.
pub(crate) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Returns the paths of all documents, sorted.
pub(crate) fn documents() -> Vec<PathBuf> {
    let is_source = |name: &str| name != "target" && !name.starts_with('.');
    let files = WalkDir::new(directory()).sort_by_file_name().into_iter();
    let files = files.filter_entry(|entry| {
        entry.depth() == 0 || entry.file_name().to_str().is_some_and(is_source)
    });
    let documents: Vec<PathBuf> = files
        .map(|entry| entry.unwrap().into_path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    assert!(documents.len() > 5, "only {} documents are found", documents.len());
    documents
}

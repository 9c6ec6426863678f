//! Rewrites the table in SUPPORT.md from the results of the node tests in the target directory.
//!
//! `hack/support` runs this program.

fn main() -> anyhow::Result<()> {
    integration::fleet::support::write()
}

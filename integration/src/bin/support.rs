//! Writes SUPPORT.md anew from what the tests on nodes have left in the target directory: `hack/support`.

fn main() -> anyhow::Result<()> {
    integration::support::write()
}

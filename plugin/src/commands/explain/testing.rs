//! Helpers for the tests of this folder.

use plimsoll_core::policy::{Node, Policy};
use plimsoll_core::units::{Bytes, PageSize};

use crate::commands::explain::manifest::explain;
use crate::commands::explain::model::{Basis, Explanation};

pub(super) fn basis() -> Basis {
    Basis {
        policy: Policy::default(),
        node: Node { allocatable: Some(Bytes::new(8 << 30)), page_size: PageSize::KIB4 },
        allocatable_source: "given".to_owned(),
    }
}

pub(super) fn pod(body: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n{body}")
}

pub(super) fn explained(manifest: &str) -> Explanation {
    explain(manifest, &basis()).unwrap_or_else(|error| panic!("{error}"))
}

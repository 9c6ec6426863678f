//! Tests of the repository's documents.

#![allow(clippy::unwrap_used)]

mod links;

//! Tests of the repository's documents.

#![allow(clippy::unwrap_used)]

mod blocks;
mod commands;
mod configurations;
mod elsewhere;
mod links;
mod outputs;
mod repository;
mod sandbox;

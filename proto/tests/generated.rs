//! Checks that the code in `src/generated` is the code that `nri.proto` generates.
//!
//! After a change to `nri.proto`, run `NRI_REGENERATE=1 cargo test -p nri --test generated`.

use std::collections::HashMap;
use std::path::Path;

use protobuf::reflect::{EnumDescriptor, FieldDescriptor, MessageDescriptor};
use protobuf_codegen::{Customize, CustomizeCallback};

const PACKAGE: &str = "nri.pkg.api.v1alpha1";

/// The comments of `nri.proto`, by the full name of the item below each comment. The generator's
/// own parser drops comments. Without this type the public messages would have no documentation.
struct Comments(HashMap<String, String>);

impl Comments {
    fn parse(proto: &str) -> Self {
        let mut by_name = HashMap::new();
        let mut scope = vec![PACKAGE.to_owned()];
        let mut pending: Vec<&str> = Vec::new();
        for line in proto.lines().map(str::trim) {
            if let Some(text) = line.strip_prefix("//") {
                pending.push(text.trim());
                continue;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            let name = match words.as_slice() {
                ["message" | "enum" | "service", name, "{" | "{}", ..] => Some(*name),
                [.., name, "=", _number] => Some(*name),
                _ => None,
            };
            if let Some(name) = name {
                let full = format!("{}.{name}", scope.join("."));
                by_name.insert(full, std::mem::take(&mut pending).join(" "));
            }
            match words.as_slice() {
                ["message" | "enum" | "service", name, "{"] => scope.push((*name).to_owned()),
                ["}"] => drop(scope.pop()),
                _ => {}
            }
            pending.clear();
        }
        Self(by_name)
    }

    fn document(&self, full_name: &str) -> Customize {
        match self.0.get(full_name) {
            Some(text) if !text.is_empty() => {
                Customize::default().before(&format!("#[doc = {text:?}]"))
            }
            _ => panic!("nri.proto says nothing about {full_name}; add a comment above it"),
        }
    }
}

impl CustomizeCallback for Comments {
    fn message(&self, message: &MessageDescriptor) -> Customize {
        self.document(message.full_name())
    }

    fn field(&self, field: &FieldDescriptor) -> Customize {
        let message = field.containing_message();
        // Each map entry is a synthetic message, for which no code is generated.
        if message.proto().options.map_entry() {
            return Customize::default();
        }
        self.document(&format!("{}.{}", message.full_name(), field.name()))
    }

    fn enumeration(&self, enumeration: &EnumDescriptor) -> Customize {
        self.document(enumeration.full_name())
    }
}

#[test]
fn the_committed_code_matches_nri_proto() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let proto = std::fs::read_to_string(package.join("nri.proto")).expect("nri.proto");
    let fresh = tempfile::tempdir().expect("a temporary directory");

    ttrpc_codegen::Codegen::new()
        .out_dir(fresh.path())
        .input(package.join("nri.proto"))
        .include(package)
        .rust_protobuf()
        .rust_protobuf_customize(
            Customize::default()
                .gen_mod_rs(false)
                // Omit reflection: it doubles the code, and nothing here needs descriptors at run
                // time.
                .lite_runtime(true),
        )
        .rust_protobuf_customize_callback(Comments::parse(&proto))
        .customize(ttrpc_codegen::Customize { async_all: true, ..Default::default() })
        .run()
        .expect("nri.proto generates");

    for name in ["nri.rs", "nri_ttrpc.rs"] {
        let generated = std::fs::read_to_string(fresh.path().join(name)).expect("generated code");
        let path = package.join("src/generated").join(name);
        if std::env::var_os("NRI_REGENERATE").is_some() {
            std::fs::write(&path, &generated).expect("write the generated code");
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == generated,
            "{} differs from what nri.proto generates; run: NRI_REGENERATE=1 cargo test -p nri --test generated",
            path.display()
        );
    }
}

//! Rules of the work tree that no compiler checks: licences of what is linked, and where things may stand.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sqlite_gcs_tests::shell::{Program, workspace};

/// Licences under which a dependency may come, whatever else it offers.
const ACCEPTED: [&str; 9] =
    ["MIT", "Apache-2.0", "ISC", "BSD-2-Clause", "BSD-3-Clause", "Zlib", "0BSD", "Unicode-3.0", "CDLA-Permissive-2.0"];

/// Whether an SPDX expression can be met by accepted licences alone.
fn is_acceptable(expression: &str) -> bool {
    // An exception only widens what its licence allows; a slash is the old way to write OR.
    let text = expression.replace('/', " OR ").replace(" WITH LLVM-exception", "");
    let spaced = text.replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    alternatives(&mut words) == Some(true) && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

// Each returns whether its part can be met; `None` where the text is no expression.

fn alternatives(words: &mut Words<'_>) -> Option<bool> {
    let mut met = conjunction(words)?;
    while words.next_if_eq(&"OR").is_some() {
        met |= conjunction(words)?;
    }
    Some(met)
}

fn conjunction(words: &mut Words<'_>) -> Option<bool> {
    let mut met = licence(words)?;
    while words.next_if_eq(&"AND").is_some() {
        met &= licence(words)?;
    }
    Some(met)
}

fn licence(words: &mut Words<'_>) -> Option<bool> {
    match words.next()? {
        "(" => {
            let met = alternatives(words)?;
            (words.next()? == ")").then_some(met)
        }
        name => Some(ACCEPTED.contains(&name)),
    }
}

#[test]
fn licence_expressions_are_read_as_spdx_means_them() {
    for good in ["MIT", "MIT/Apache-2.0", "GPL-3.0 OR MIT", "(MIT OR GPL-3.0) AND Unicode-3.0", "Apache-2.0 AND ISC"] {
        assert!(is_acceptable(good), "{good}");
    }
    for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "MIT OR", "(MIT", "GPL-3.0 OR (MIT AND LGPL-2.1)", "MIT ISC"] {
        assert!(!is_acceptable(bad), "{bad}");
    }
}

#[test]
fn every_dependency_has_an_accepted_licence_and_comes_from_the_registry() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let listed = Program::new(cargo)
        .args(["metadata", "--format-version", "1", "--offline", "--filter-platform", &host])
        .directory(workspace())
        .run();
    let metadata: Value = serde_json::from_str(listed.expect_success()).expect("cargo's own JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 50, "cargo named only {} packages", packages.len());
    let mut refused = Vec::new();
    for package in packages {
        let name = format!("{} {}", package["name"], package["version"]);
        match package["license"].as_str() {
            Some(licence) if is_acceptable(licence) => (),
            licence => refused.push(format!("{name}: licence {licence:?}")),
        }
        let source = package["source"].as_str().unwrap_or("registry+ of this work tree");
        if !source.starts_with("registry+") {
            refused.push(format!("{name}: comes from {source}"));
        }
    }
    assert!(refused.is_empty(), "{refused:#?}");
}

/// What a build compiles: each crate with its features.
fn compiled(selection: &[&str]) -> BTreeSet<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let tree = ["tree", "--offline", "--locked", "--edges", "normal,build", "--prefix", "none", "--format", "{p}|{f}"];
    let listed = Program::new(cargo).args(tree).args(selection.iter().copied()).directory(workspace()).run();
    listed.expect_success().lines().map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
}

#[test]
fn the_extension_and_the_rest_are_built_from_the_same_compiled_crates() {
    let rest = compiled(&["--workspace", "--exclude", "sqlite-gcs-loadable"]);
    for package in ["sqlite-gcs-loadable", "guestbook"] {
        let alone = compiled(&["--package", package]);
        assert!(alone.len() > 50, "cargo named only {} crates", alone.len());
        let twice: Vec<_> = alone.difference(&rest).filter(|name| !name.contains("sqlite-gcs")).collect();
        assert!(twice.is_empty(), "{package} has these compiled with other features, which takes minutes: {twice:#?}");
    }
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the work tree").flatten() {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_source_file_says_first_what_it_is_for() {
    let mut files = Vec::new();
    for folder in ["vfs/src", "loadable-ext/src", "tests", "examples/cities/src", "examples/guestbook", "bench/src"] {
        rust_files(&workspace().join(folder), &mut files);
    }
    assert!(files.len() > 20, "found only {} files", files.len());
    let silent: Vec<_> = files
        .into_iter()
        .filter(|path| !std::fs::read_to_string(path).is_ok_and(|text| text.trim_start().starts_with("//!")))
        .filter(|path| !path.ends_with("tests.rs"))
        .collect();
    assert!(silent.is_empty(), "no `//!` at the top of {silent:#?}");
}

/// The URI parameters that the code accepts, as its own error message lists them.
fn accepted() -> Vec<String> {
    let source = std::fs::read_to_string(workspace().join("vfs/src/config.rs")).expect("config.rs");
    let line = source.lines().find(|line| line.starts_with("const NAMES:")).expect("the list of names");
    let names = line.split('"').nth(1).expect("a string");
    names.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_readme_lists_the_uri_parameters_that_there_are() {
    let readme = std::fs::read_to_string(workspace().join("README.md")).expect("README.md");
    let (_, section) = readme.split_once("| parameter |").expect("the table of parameters");
    let table = section.split("\n\n").next().unwrap_or_default();
    let mut documented: Vec<_> =
        table.lines().filter_map(|row| Some(row.strip_prefix("| `")?.split('`').next()?.to_owned())).collect();
    let mut accepted = accepted();
    documented.sort();
    accepted.sort();
    assert_eq!(documented, accepted);
}

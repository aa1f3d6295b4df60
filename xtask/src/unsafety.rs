//! Where `unsafe` may stand: the loops, the memory maps, the exchange of two names, the bridge to faer, and the door to C.

use std::path::Path;

/// All of these.
const FOLDERS: [&str; 2] = ["crates/c/src/", "crates/kernels/src/"];

/// And these.
const ALLOWED: [&str; 3] = [
    "crates/tensor/src/checkpoint/exchange.rs",
    "crates/tensor/src/checkpoint/map.rs",
    "crates/tensor/src/linalg/backend/bridge.rs",
];

/// Files below `crates/*/src` that allow or hold unsafe code, relative to the workspace.
fn found(root: &Path) -> Vec<String> {
    // Cut in two, so that this file is not among them.
    let marks =
        [concat!("allow(uns", "afe_code)"), concat!("uns", "afe {"), concat!("uns", "afe fn")];
    let mut folders = vec![root.join("crates")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of the workspace") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(root).expect("below the root").to_string_lossy();
            let name = name.replace('\\', "/");
            let source = name.ends_with(".rs") && name.split('/').nth(2) == Some("src");
            let holds = || {
                let text = std::fs::read_to_string(&path).expect("a source file");
                marks.iter().any(|mark| text.contains(mark))
            };
            if source && holds() {
                files.push(name);
            }
        }
    }
    files.sort();
    files
}

#[test]
fn unsafe_code_stands_where_it_may() {
    let files = found(&crate::root());
    let stray: Vec<&String> = files
        .iter()
        .filter(|f| !FOLDERS.iter().any(|folder| f.starts_with(folder)))
        .filter(|f| !ALLOWED.contains(&f.as_str()))
        .collect();
    assert!(stray.is_empty(), "unsafe code where none may stand: {stray:?}");
    assert!(files.len() > ALLOWED.len() && ALLOWED.iter().all(|a| files.iter().any(|f| f == a)));
}

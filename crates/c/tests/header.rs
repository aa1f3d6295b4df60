//! include/tensorpress.h is what cbindgen makes of src/.

use std::path::Path;

/// In the order of the header.
const MODULES: [&str; 10] = [
    "status", "context", "numbers", "model", "layer", "multiply", "compress", "kv", "page", "bytes",
];

/// With `TENSORPRESS_WRITE_HEADER=1` it is written.
#[test]
fn the_header_is_the_committed_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    let mut builder = cbindgen::Builder::new().with_config(config);
    for module in MODULES {
        builder = builder.with_src(root.join(format!("src/{module}.rs")));
    }
    let mut made = Vec::new();
    builder.generate().expect("src/ can be read").write(&mut made);
    let made = String::from_utf8(made).expect("a header is text");
    let made = without_safety(&made);
    let path = root.join("include/tensorpress.h");
    if std::env::var_os("TENSORPRESS_WRITE_HEADER").is_some() {
        std::fs::write(&path, &made).expect("the header can be written");
    }
    let committed = std::fs::read_to_string(&path).expect("the header is there");
    let differs = committed.lines().zip(made.lines()).position(|(old, new)| old != new);
    assert!(
        committed == made,
        "src/ says otherwise from line {:?} on: TENSORPRESS_WRITE_HEADER=1 cargo test writes it",
        differs.map(|line| line + 1)
    );
    for module in MODULES {
        let source = std::fs::read_to_string(root.join(format!("src/{module}.rs"))).unwrap();
        for function in source.lines().filter_map(|l| l.split_once("extern \"C\" fn ")) {
            let name = function.1.split('(').next().unwrap();
            assert!(made.contains(&format!("{name}(")), "{name} is not in the header");
        }
    }
}

/// What a Rust page has to say last of each function, and C has heard in the introduction, goes.
fn without_safety(header: &str) -> String {
    let (mut lines, mut leaving) = (Vec::<&str>::new(), false);
    for line in header.lines() {
        if line == "// # Safety" {
            assert_eq!(lines.pop(), Some("//"), "a paragraph of its own");
            leaving = true;
        }
        leaving &= line.starts_with("//");
        if !leaving {
            lines.push(line);
        }
    }
    lines.join("\n") + "\n"
}

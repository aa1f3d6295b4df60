//! Every format to every other.

use std::path::Path;

use tensorpress::ErrorKind;
use tensorpress::pipeline::{Convert, Target};
use tensorpress::prelude::*;

use super::{compressed, convert};

/// What one conversion comes to, in words for a page.
fn words(source: &Source, to: Target, out: &Path) -> String {
    match Convert::new(to).run(source, out) {
        Ok(report) => match report.tensors.iter().all(|t| t.lossless) {
            true => "lossless".to_owned(),
            false => panic!("{}: rounded without being asked", to.name()),
        },
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::Unsupported, "{}: {e}", to.name());
            let report = Convert::new(to).with_requantize(true).run(source, out).expect("rounds");
            let errors: Vec<f64> = report.tensors.iter().filter_map(|t| t.error).collect();
            let mean = errors.iter().sum::<f64>() / errors.len().max(1) as f64;
            let why = e.message().split(": ").next().unwrap_or_default().to_owned();
            format!("refused ({why}); requantised {mean:.3}")
        }
    }
}

/// Every format to every other: the table of docs/interop.md, which `TENSORPRESS_WRITE_TABLES=1` writes anew.
#[test]
fn every_pair_of_formats_is_lossless_or_said() {
    let parent = tempfile::tempdir().expect("a folder");
    let path = |name: &str| parent.path().join(name);
    let four = compressed("rtn(bits=4, group=32, symmetric=true)", &path("four"));
    let zeros = compressed("rtn(bits=4, group=32)", &path("zeros"));
    let nf4 = compressed("nf4(block=64)", &path("nf4"));
    let floats = Source::demo(&registry()).expect("opens");
    let via = |source: &Source, to: &str| {
        let out = path(&format!("via-{}", to.replace(['(', ')'], "-")));
        convert(source, to.parse().unwrap(), &out);
        open_model(&out).expect("opens")
    };
    let sources = [
        ("GGUF Q4_0", via(&four, "gguf")),
        ("GGUF Q4_1", via(&floats, "gguf(Q4_1)")),
        ("GPTQ, symmetric", via(&four, "gptq")),
        ("GPTQ v2, zero points", via(&zeros, "gptq_v2")),
        ("AWQ", via(&zeros, "awq")),
        ("compressed-tensors, symmetric", via(&four, "compressed-tensors")),
        ("bitsandbytes NF4", via(&nf4, "bnb")),
        ("tensorpress, floats", floats),
    ];
    let targets = [
        "gguf",
        "gptq",
        "gptq_v2",
        "awq",
        "compressed-tensors",
        "bnb",
        "tensorpress",
        "safetensors",
    ];
    let mut rows = vec!["| from | to | |".to_owned(), "|---|---|---|".to_owned()];
    for (name, source) in &sources {
        let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
        for to in targets {
            let out = path("out");
            let said = words(source, to.parse().unwrap(), &out);
            if out.is_dir() {
                std::fs::remove_dir_all(&out).expect("removed");
            } else {
                std::fs::remove_file(&out).expect("removed");
            }
            match groups.iter_mut().find(|(known, _)| *known == said) {
                Some((_, list)) => list.push(to),
                None => groups.push((said, vec![to])),
            }
        }
        for (said, list) in groups {
            rows.push(format!("| {name} | {} | {said} |", list.join(", ")));
        }
    }
    let table = rows.join("\n");
    println!("{table}");
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/interop.md");
    let text = std::fs::read_to_string(&page).expect("the page is there");
    let (begin, end) = ("<!-- pairs -->\n", "\n<!-- /pairs -->");
    let from = text.find(begin).expect("a place for the table") + begin.len();
    let to = text.find(end).expect("its end");
    if std::env::var_os("TENSORPRESS_WRITE_TABLES").is_some() {
        std::fs::write(&page, format!("{}{table}{}", &text[..from], &text[to..])).expect("written");
        return;
    }
    assert_eq!(&text[from..to], table, "TENSORPRESS_WRITE_TABLES=1 writes it anew");
}

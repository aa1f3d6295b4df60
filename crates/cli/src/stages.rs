//! `tensorpress stages`

use std::fmt::Write as _;

use tensorpress::recipe::{reference, schema};
use tensorpress::tensor::stage::{Part, Row, Stages};
use tensorpress::{Error, kvcache, registry, tokencomp};

use crate::args::Stages as Args;
use crate::failure::{Failure, Outcome};
use crate::output::{listed, print, print_json};

pub(crate) fn run(args: &Args) -> Outcome {
    let registry = registry();
    let (weights, caches, tokens) = (registry.stages(), kvcache::stages(), tokencomp::stages());
    if args.schema {
        return print_json(&schema(weights));
    }
    let rooms = [WEIGHTS, CACHES, TOKENS];
    if args.markdown {
        let parts = [reference(weights), reference(&caches), reference(&tokens)];
        let pages = rooms.iter().zip(parts).map(|(title, part)| format!("## {title}\n{part}"));
        return print(&pages.collect::<Vec<_>>().join("\n"));
    }
    match &args.name {
        None => {
            let lists = [list(weights), list(&caches), list(&tokens)];
            let parts = rooms.iter().zip(lists).map(|(title, list)| format!("{title}:\n{list}"));
            print(&parts.collect::<Vec<_>>().join("\n"))
        }
        Some(name) => {
            let found = [named(weights, name), named(&caches, name), named(&tokens, name)];
            let texts = rooms.iter().zip(found).filter_map(|(title, text)| Some((title, text?)));
            let texts: Vec<String> =
                texts.map(|(title, text)| format!("{title}: {text}")).collect();
            if texts.is_empty() {
                // Says which there are.
                let error =
                    weights.find(name).err().unwrap_or_else(|| Error::invalid(name.as_str()));
                return Err(Failure::of_argument("NAME", error));
            }
            print(&texts.join("\n"))
        }
    }
}

const WEIGHTS: &str = "Weights (compress --recipe)";
const CACHES: &str = "Caches (eval and run --kv)";
const TOKENS: &str = "Tokens (squeeze --recipe; reductions: library)";

fn list<P: Part>(stages: &Stages<P>) -> String {
    let presets = stages.presets().iter().map(|p| (p.name, format!("{}: {}", p.line, p.about)));
    let rows = stages.rows().iter();
    let rows = rows.map(|row| (row.name(), format!("{}: {}", row.role(), row.about())));
    let all: Vec<_> = presets.chain(rows).map(|(name, text)| [name.to_owned(), text]).collect();
    listed(&all)
}

fn named<P: Part>(stages: &Stages<P>, name: &str) -> Option<String> {
    let row: &Row<P> = stages.rows().iter().find(|row| row.name() == name)?;
    let mut text = format!("{name}, {}\n  {}\n", row.role(), row.about());
    let inside = stages.names_of(row.inside().roles());
    if !inside.is_empty() {
        writeln!(text, "  inside: {inside}").expect("grows");
    }
    let keys = row.keys().into_iter().map(|key| {
        let default = key.default.as_ref().map_or("none".to_owned(), ToString::to_string);
        [key.name.to_string(), format!("{default} ({}): {}", key.takes, key.about)]
    });
    Some(text + &listed(&keys.collect::<Vec<_>>()))
}
